"""A bare log server that Kafka clients can talk to: what it suffers beside a reader of old data, no broker can avoid.

    python -m penstock_tools.bench.bare_log DIRECTORY OLD_BYTES

Produce: the batch's checksum is checked, one thread writes and syncs whatever has gathered, the answer leaves.
Fetch, at a port of its own: a thread for each connection reads the next four mebibytes of a file of old batches, past
the page cache in the pieces that a Penstock broker reads, into memory that it has already, and sends them. Nothing is
looked up, checked or cached. Who produces shares with it processors, disk, and the interpreter lock, which system
calls don't hold. Topics are whatever is asked for, with :data:`PARTITIONS` partitions each; offsets are zeros.
"""

from __future__ import annotations

__all__ = ("BareLog", "bare_log_process")

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, cast

from crc32c import crc32c

from penstock.errors import UnavailableError
from penstock.wire import ApiKey, ErrorCode, decode_request, encode_response
from penstock.wire.messages.api_versions import ApiVersion, ApiVersionsResponse
from penstock.wire.messages.fetch import FetchableTopicResponse, FetchRequest, FetchResponse, PartitionData
from penstock.wire.messages.metadata import (
    MetadataRequest,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from penstock.wire.messages.produce import (
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceResponse,
)
from penstock.wire.records import ATTRIBUTES_POS, CRC_POS
from penstock.wire.registry import decode_request_header
from penstock_tools.bench.floor import FloorWriter, produce_frame
from penstock_tools.bench.probe import PARTITIONS

#: What a fetch gets of one partition: whole batches, then zeros, which aren't sent.
_PAGE_BYTES: Final = 2**20
_BATCH_BYTES: Final = 64 * 1024
#: One read of the disk, as the file store of Penstock reads.
_READ_BYTES: Final = 2**18
_API_VERSIONS_MAX: Final = 3
#: What librdkafka must find to speak of record batches (message format 2).
_APIS: Final = (
    (ApiKey.PRODUCE, 3, 9),
    (ApiKey.FETCH, 4, 12),
    (ApiKey.METADATA, 1, 12),
    (ApiKey.API_VERSIONS, 0, _API_VERSIONS_MAX),
)


class BareLog(NamedTuple):
    """Where it listens, as bootstrap servers."""

    produce: str
    fetch: str


class _Connection(asyncio.BufferedProtocol):
    """Someone who produces."""

    def __init__(self, writer: FloorWriter, port: int) -> None:
        self._writer = writer
        self._port = port
        self._buffer = memoryview(bytearray(2**22))
        self._have = 0
        #: Answers of what the writer has not written yet.
        self._answers: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        buffer = self._buffer
        end = self._have + nbytes
        position = 0
        while end - position >= 4:
            size = int.from_bytes(buffer[position : position + 4], "big")
            if end - position - 4 < size:
                break
            self._take(memoryview(bytes(buffer[position + 4 : position + 4 + size])))
            position += 4 + size
        buffer[: end - position] = buffer[position:end]
        self._have = end - position

    def _take(self, frame: memoryview) -> None:
        header = decode_request_header(frame)
        key, version, correlation_id = header.api_key, header.api_version, header.correlation_id
        if key == ApiKey.API_VERSIONS:
            apis = [ApiVersion(api_key=api, min_version=low, max_version=high) for api, low, high in _APIS]
            response = ApiVersionsResponse(api_keys=apis)
            if version > _API_VERSIONS_MAX:  # KIP-511: told in version 0, which asks for one that is known
                response.error_code, version = ErrorCode.UNSUPPORTED_VERSION, 0
            self._send(encode_response(key, version, correlation_id, response))
            return
        request = decode_request(key, version, frame, header.body_pos, lenient=True)
        if isinstance(request, MetadataRequest):
            metadata = _metadata([topic.name or "" for topic in request.topics or ()], self._port)
            self._send(encode_response(key, version, correlation_id, metadata))
            return
        assert isinstance(request, ProduceRequest)
        (topic,) = request.topic_data
        (partition,) = topic.partition_data
        batch = partition.records
        assert isinstance(batch, memoryview)
        if crc32c(batch[ATTRIBUTES_POS:]) != int.from_bytes(batch[CRC_POS : CRC_POS + 4], "big"):
            raise ValueError("checksum mismatch")
        answer = PartitionProduceResponse(index=partition.index, error_code=0, base_offset=0)
        answers = [TopicProduceResponse(name=topic.name, partition_responses=[answer])]
        self._answers.append(
            b"".join(encode_response(key, version, correlation_id, ProduceResponse(responses=answers)))
        )
        self._writer.waiting.put((self, batch))

    def _send(self, buffers: list[bytes | bytearray | memoryview]) -> None:
        self._transport.write(b"".join(buffers))

    def answer(self, count: int) -> None:
        answers = b"".join([self._answers.popleft() for _ in range(count)])
        if not self._transport.is_closing():
            self._transport.write(answers)


def _metadata(topics: list[str], port: int) -> MetadataResponse:
    partitions = [
        MetadataResponsePartition(partition_index=index, leader_id=1, replica_nodes=[1], isr_nodes=[1])
        for index in range(PARTITIONS)
    ]
    return MetadataResponse(
        brokers=[MetadataResponseBroker(node_id=1, host="127.0.0.1", port=port)],
        controller_id=1,
        cluster_id="bare",
        topics=[MetadataResponseTopic(name=name, partitions=partitions) for name in topics],
    )


class _OldData:
    """A file of batches, page by page, each of ``batches_bytes`` of whole batches."""

    def __init__(self, path: Path, size: int) -> None:
        batch = produce_frame(_BATCH_BYTES)[1]
        batches = batch * (_PAGE_BYTES // len(batch))
        self.batches_bytes = len(batches)
        self._pages = max(PARTITIONS, size // _PAGE_BYTES)
        with path.open("wb") as file:
            for _ in range(self._pages):
                file.write(batches.ljust(_PAGE_BYTES, b"\0"))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        flags = os.O_RDONLY | os.O_DIRECT
        try:
            self._fd = os.open(path, flags)
        except OSError:  # a file system without direct reads
            self._fd = os.open(path, os.O_RDONLY)

    def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects to ``listener``, each from the beginning."""
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=self._answer_fetches, args=(sock,), daemon=True).start()

    def _answer_fetches(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        memory = memoryview(mmap.mmap(-1, PARTITIONS * _PAGE_BYTES))
        page = 0
        with sock, contextlib.suppress(ConnectionError):
            while head := sock.recv(4, socket.MSG_WAITALL):
                frame = sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                header = decode_request_header(frame)
                request = decode_request(header.api_key, header.api_version, frame, header.body_pos)
                assert isinstance(request, FetchRequest)
                (topic,) = request.topics
                parts = []
                for number, asked in enumerate(topic.partitions):
                    start = number * _PAGE_BYTES
                    self._read(memory[start : start + _PAGE_BYTES], page)
                    page = (page + 1) % self._pages
                    records = memory[start : start + self.batches_bytes]
                    parts.append(
                        PartitionData(partition_index=asked.partition, high_watermark=2**40, records=records)
                    )
                response = FetchResponse(
                    responses=[FetchableTopicResponse(topic=topic.topic, partitions=parts)]
                )
                for buffer in encode_response(
                    header.api_key, header.api_version, header.correlation_id, response
                ):
                    sock.sendall(buffer)

    def _read(self, memory: memoryview, page: int) -> None:
        for start in range(0, _PAGE_BYTES, _READ_BYTES):
            os.preadv(self._fd, [memory[start : start + _READ_BYTES]], page * _PAGE_BYTES + start)


async def _serve(directory: Path, old_bytes: int) -> None:
    """Run until SIGTERM; prints the two ports."""
    loop = asyncio.get_running_loop()
    old = _OldData(directory / "old", old_bytes)
    writer = FloorWriter(directory / "log", loop)
    writer.start()
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=old.serve, args=(listener,), daemon=True).start()
    ports: list[int] = []
    server = await loop.create_server(lambda: _Connection(writer, ports[0]), "127.0.0.1", 0)
    ports += [server.sockets[0].getsockname()[1], listener.getsockname()[1]]
    sys.stdout.write(f"{ports[0]} {ports[1]}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


@contextlib.contextmanager
def bare_log_process(directory: Path, old_bytes: int) -> Iterator[BareLog]:
    """The server, with its files in ``directory``, which is made. Raises UnavailableError if it doesn't start."""
    directory.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "penstock_tools.bench.bare_log",
        str(directory),
        str(old_bytes),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ports = process.stdout.readline().split()
            if not ports:
                raise UnavailableError("the bare server didn't start, it said why on stderr")
            yield BareLog(*(f"127.0.0.1:{port}" for port in ports))
        finally:
            process.terminate()


def main() -> None:
    """Be the server."""
    import uvloop

    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
