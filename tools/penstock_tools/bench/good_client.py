"""A client that keeps to the protocol, and its requests: what attackers ask for, they ask in the same words."""

from __future__ import annotations

__all__ = ("HOST", "GoodClient", "exactly", "fetch_request", "request")

import socket
import time
from typing import Any, Final

from penstock.wire import ApiKey, encode_request
from penstock.wire.messages import fetch
from penstock.wire.registry import Message, decode_response
from penstock_tools.bench.floor import TOPIC, produce_frame

HOST: Final = "127.0.0.1"


def request(key: ApiKey, version: int, message: Message, client_id: str = "bad") -> bytes:
    """The bytes of the request."""
    return b"".join(encode_request(key, version, 1, client_id, message))


def fetch_request(
    max_bytes: int,
    partitions: int = 1,
    wait_ms: int = 0,
    min_bytes: int = 1,
    offset: int = 0,
    topic: str = TOPIC,
    client_id: str = "bad",
) -> bytes:
    """A Fetch of the topic's first partitions, whether they are there or not."""
    return request(
        ApiKey.FETCH,
        11,
        fetch.FetchRequest(
            max_wait_ms=wait_ms,
            min_bytes=min_bytes,
            max_bytes=max_bytes,
            topics=[
                fetch.FetchTopic(
                    topic=topic,
                    partitions=[
                        fetch.FetchPartition(
                            partition=index, fetch_offset=offset, partition_max_bytes=max_bytes
                        )
                        for index in range(partitions)
                    ],
                )
            ],
        ),
        client_id,
    )


class GoodClient:
    """Produces a batch and fetches it, one request at a time, with a connection for each."""

    def __init__(self, port: int, batch_bytes: int, timeout_s: float = 60.0) -> None:
        self._frame = produce_frame(batch_bytes)[0]
        self._sockets = [socket.create_connection((HOST, port), timeout_s) for _ in range(2)]
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._max_bytes = 2 * batch_bytes

    def close(self) -> None:
        """End."""
        for sock in self._sockets:
            sock.close()

    def once(self) -> tuple[float, float]:
        """(seconds to produce, seconds to fetch what was produced)."""
        producer, consumer = self._sockets
        begin = time.perf_counter()
        answer: Any = self._ask(producer, self._frame, ApiKey.PRODUCE, 9)
        produced = time.perf_counter()
        result = answer.responses[0].partition_responses[0]
        assert result.error_code == 0, f"refused: error_code={result.error_code} {result.error_message}"
        data = fetch_request(self._max_bytes, wait_ms=500, offset=result.base_offset, client_id="bench")
        got: Any = self._ask(consumer, data, ApiKey.FETCH, 11)
        assert got.responses[0].partitions[0].records, "nothing was fetched"
        return produced - begin, time.perf_counter() - produced

    @staticmethod
    def _ask(sock: socket.socket, data: bytes, key: ApiKey, version: int) -> Message:
        sock.sendall(data)
        size = int.from_bytes(exactly(sock, 4), "big")
        return decode_response(key, version, exactly(sock, size))[1]

    def run(self, seconds: float) -> tuple[list[float], list[float]]:
        """Latencies of as many as fit, and of one at least."""
        end = time.perf_counter() + seconds
        pairs = [self.once()]
        while time.perf_counter() < end:
            pairs.append(self.once())
            time.sleep(0.001)
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise ConnectionResetError("the broker closed the good client's connection")
        view = view[got:]
    return bytes(data)
