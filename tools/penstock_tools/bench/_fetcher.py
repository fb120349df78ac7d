"""A reader that costs next to nothing: it fetches, looks where the next batch begins, and throws the bytes away.

A Kafka client at 150 MB/s fills a processor with its own work. Where the question is what reads cost the broker,
that would be measured as well.
"""

from __future__ import annotations

__all__ = ("FetchingClient",)

import socket
import struct
import threading
import time
from typing import Any, Final

from penstock.wire import ApiKey, ErrorCode, decode_response, encode_request
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchResponse, FetchTopic
from penstock.wire.record_batch import iter_batches
from penstock_tools.bench.histogram import Histogram

_VERSION: Final = 12
_PARTITION_BYTES: Final = 2**20
_TIMEOUT_S: Final = 30.0
#: One call receives at most so much: nobody else gets the processor while the system copies, up to a millisecond for
#: a megabyte.
_PIECE_BYTES: Final = 64 * 1024
#: Behind its schedule, a paced reader makes up for at most this much.
_LATE_S_MAX: Final = 0.05


class FetchingClient(threading.Thread):
    """Reads all partitions of a topic from the beginning, at a rate or as fast as it can, and again at the end."""

    def __init__(self, spec: dict[str, Any], load: dict[str, Any]) -> None:
        super().__init__(name=f"fetcher-{spec['index']}", daemon=True)
        self._topic: str = spec["topic"]
        host, _, port = spec["config"]["bootstrap.servers"].rpartition(":")
        self._socket = socket.create_connection((host, int(port)), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._offsets = dict.fromkeys(range(load["partitions"]), 0)
        #: Bytes a second; 0: as fast as it can.
        self._rate: float = load["bytesPerSecond"]
        self._buffer = memoryview(bytearray(2**16))
        self.assigned = len(self._offsets)
        self.wanted = threading.Event()
        self.wanted.set()
        self.ending = False
        self.failure = ""
        self.received = self.bytes = 0
        self.histograms: dict[str, Histogram] = {}

    def run(self) -> None:
        due = time.monotonic()
        try:
            while not self.ending:
                if not self.wanted.wait(0.05):
                    continue
                before = self.bytes
                self._fetch()
                if self._rate:
                    due = max(due, time.monotonic() - _LATE_S_MAX) + (self.bytes - before) / self._rate
                    time.sleep(max(0.0, due - time.monotonic()))
        except Exception as error:  # noqa: BLE001 # told to the conductor with the next answer
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self._socket.close()

    def _fetch(self) -> None:
        partitions = [
            FetchPartition(partition=index, fetch_offset=offset, partition_max_bytes=_PARTITION_BYTES)
            for index, offset in self._offsets.items()
        ]
        request = FetchRequest(
            max_wait_ms=100,
            min_bytes=1,
            max_bytes=_PARTITION_BYTES * len(partitions),
            topics=[FetchTopic(topic=self._topic, partitions=partitions)],
        )
        self._socket.sendall(b"".join(encode_request(ApiKey.FETCH, _VERSION, 1, "fetcher", request)))
        _, response = decode_response(ApiKey.FETCH, _VERSION, self._receive())
        assert isinstance(response, FetchResponse)
        for topic in response.responses:
            for data in topic.partitions:
                if data.error_code:
                    raise RuntimeError(f"fetch failed: {ErrorCode(data.error_code).name}")
                records = data.records or b""
                assert isinstance(records, (bytes, memoryview))
                for _, header in iter_batches(records):
                    self._offsets[data.partition_index] = header.next_offset
                    self.received += header.count
                if not records and self._offsets[data.partition_index] >= data.high_watermark:
                    self._offsets[data.partition_index] = 0
                self.bytes += len(records)

    def _receive(self) -> memoryview:
        """One response without its length, in a buffer that the next one is received into."""
        (size,) = struct.unpack(">i", self._exactly(4))
        return self._exactly(size)

    def _exactly(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        position = 0
        while position < size:
            count = self._socket.recv_into(self._buffer[position : min(size, position + _PIECE_BYTES)])
            if not count:
                raise ConnectionError("the broker closed the connection")
            position += count
        return self._buffer[:size]

    def statistics(self) -> dict[str, int]:
        """Counts so far; bytes are those of record batches, as stored."""
        return {"received": self.received, "receivedBytes": self.bytes, "assigned": self.assigned}

    def end(self) -> None:
        """Stop reading."""
        self.ending = True
        self.wanted.set()
        self.join(60)

    def account(self) -> dict[str, Any]:
        """Nothing to account for: it reads without looking."""
        return {}
