"""Penstock against the floor: a bare server that receives, checks the CRC-32C, and syncs to the same disk.

    penstock bench floor             # ratios for 200 KiB, 16 KiB and 1 KiB requests; latency of one and of two alone
    penstock bench floor --json out.json --seconds 5 --rounds 3 --dir /var/tmp
    penstock bench floor -p penstock_tools.bench.stub_store --set wal.plugin=wal_s3 --set object_store.plugin=stub

The floor does what no durable broker can leave out and nothing else: it frames Produce requests, checks each
batch's checksum, hands the batches to one writer thread that writes and fdatasyncs whatever has gathered (group
commit), and answers with a Produce response. It keeps no offsets, serves no reads and uploads nothing.

A second floor also writes every batch a second time, into object files on the same disk, as a broker must whose
objects are kept beside its log. It tells what of the distance to the first floor is the disk's.

The servers run as processes of their own; the load comes from this process: a few connections that keep
``depth`` requests in flight each. They are measured in turn, round by round, so that a noisy machine
disturbs all; what counts is the ratio.
"""

from __future__ import annotations

__all__ = (
    "CASES",
    "RECORD_BYTES",
    "TOPIC",
    "VERSION",
    "FloorWriter",
    "Load",
    "Producing",
    "Result",
    "compare",
    "create_topic",
    "floor_process",
    "main",
    "measure",
    "penstock_process",
    "produce_frame",
    "produce_response",
    "serve_floor",
)

import asyncio
import contextlib
import os
import queue
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from crc32c import crc32c

from penstock.direct_io import DirectGather, filler_bytes, write_vectors
from penstock.wire import ApiKey, encode_request, encode_response
from penstock.wire.messages import produce
from penstock.wire.records import ATTRIBUTES_POS, CRC_POS, build_batch

VERSION = 9
TOPIC = "bench"
RECORD_BYTES = 1000


# -- the bare server -----------------------------------------------------------------------------------------


class Producing(Protocol):
    """A connection that waits for what it handed to the writer."""

    def answer(self, count: int) -> None:
        """The first ``count`` batches that it waits for are synced."""


class FloorWriter(threading.Thread):
    """Writes and syncs whatever has gathered, then answers all of it with one wake-up of the loop."""

    def __init__(
        self, path: Path, loop: asyncio.AbstractEventLoop, objects: FloorObjects | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._objects = objects
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._loop = loop
        self._size = 256 * 2**20
        with open(path, "r+b") as file:  # written once, so that no write has to extend the file
            file.writelines(bytes(2**20) for _ in range(self._size // 2**20))
            os.fsync(file.fileno())
        self._position = 0
        self.waiting: queue.SimpleQueue[tuple[Producing, memoryview]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            group = [self.waiting.get()]
            while not self.waiting.empty() and len(group) < 512:
                group.append(self.waiting.get())
            size = sum(len(data) for _, data in group)
            if self._position + size > self._size:
                self._position = 0
            os.pwritev(self._fd, [data for _, data in group], self._position)
            os.fdatasync(self._fd)
            self._position += size
            self._loop.call_soon_threadsafe(self._answer, group)
            if self._objects is not None:
                self._objects.put([data for _, data in group], size)

    @staticmethod
    def _answer(group: list[tuple[Producing, memoryview]]) -> None:
        counts: dict[Producing, int] = {}
        for connection, _ in group:
            counts[connection] = counts.get(connection, 0) + 1
        for connection, count in counts.items():
            connection.answer(count)


class FloorObjects(threading.Thread):
    """Writes everything a second time: files of 64 MiB, past the page cache and synced, at most 256 MiB behind."""

    _FILE_BYTES = 64 * 2**20
    _PIECE_BYTES = 2**20
    _BEHIND_BYTES_MAX = 256 * 2**20

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._files = 0
        self._waiting: queue.SimpleQueue[tuple[list[memoryview], int]] = queue.SimpleQueue()
        self._behind = 0
        self._progress = threading.Condition()

    def put(self, batches: list[memoryview], size: int) -> None:
        """Queue ``size`` bytes; waits while too much is queued."""
        with self._progress:
            self._progress.wait_for(lambda: self._behind < self._BEHIND_BYTES_MAX)
            self._behind += size
        self._waiting.put((batches, size))

    def run(self) -> None:
        while True:
            self._files += 1
            fd = os.open(
                self._directory / f"{self._files}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600
            )
            try:
                self._fill(fd)
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def _fill(self, fd: int) -> None:
        position = 0

        def write(vectors: Sequence[memoryview]) -> None:
            nonlocal position
            write_vectors(fd, vectors, position)
            position += sum(map(len, vectors))

        gather = DirectGather(self._PIECE_BYTES, write, write_bytes=self._PIECE_BYTES)
        filled = 0
        while filled < self._FILE_BYTES:
            batches, size = self._waiting.get()
            for batch in batches:
                filler = bytes(filler_bytes(filled, (batch,)))
                gather.add(filler)
                gather.add(batch)
                filled += len(filler) + len(batch)
            with self._progress:
                self._behind -= size
                self._progress.notify()
        gather.pad()
        gather.flush()
        gather.close()


class Floor(asyncio.BufferedProtocol):
    """One connection: frames are received into buffers of their own size."""

    def __init__(self, writer: FloorWriter, offset: int, response: bytes) -> None:
        self._writer = writer
        self._offset = offset
        self._response = response
        self._scratch = memoryview(bytearray(2**18))
        self._have = 0
        self._frame: memoryview | None = None
        self._frame_have = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame is not None:
            return self._frame[self._frame_have :]
        return self._scratch[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._frame is not None:
            self._frame_have += nbytes
            if self._frame_have == len(self._frame):
                frame, self._frame = self._frame, None
                self._take(frame)
            return
        end = self._have + nbytes
        position = 0
        while end - position >= 4:
            size = int.from_bytes(self._scratch[position : position + 4], "big")
            if end - position - 4 >= size:
                self._take(memoryview(bytes(self._scratch[position + 4 : position + 4 + size])))
                position += 4 + size
                continue
            if size > 2**16:
                self._frame = memoryview(bytearray(size))
                self._frame_have = end - position - 4
                self._frame[: self._frame_have] = self._scratch[position + 4 : end]
                position = end
            break
        self._scratch[: end - position] = self._scratch[position:end]
        self._have = end - position

    def _take(self, frame: memoryview) -> None:
        batch = frame[self._offset : -3]  # behind the records: two empty tag sections and the request's own
        stored = int.from_bytes(batch[CRC_POS : CRC_POS + 4], "big")
        if crc32c(batch[ATTRIBUTES_POS:]) != stored:
            raise ValueError("checksum mismatch")
        self._writer.waiting.put((self, batch))

    def answer(self, count: int) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._response * count)


async def serve_floor(path: Path, batch_bytes: int, objects: Path | None = None) -> None:
    """Run the bare server until SIGTERM; prints its port. With ``objects``, a directory, it fills that too."""
    loop = asyncio.get_running_loop()
    store = None
    if objects is not None:
        store = FloorObjects(objects)
        store.start()
    writer = FloorWriter(path, loop, store)
    writer.start()
    frame, batch = produce_frame(batch_bytes)
    offset = frame.index(batch) - 4
    server = await loop.create_server(lambda: Floor(writer, offset, produce_response()), "127.0.0.1", 0)
    _say(str(server.sockets[0].getsockname()[1]))
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


# -- requests ------------------------------------------------------------------------------------------------


def produce_frame(batch_bytes: int) -> tuple[bytes, bytes]:
    """(a Produce request with one batch of about ``batch_bytes``, the batch)."""
    records = max(1, batch_bytes // 1024)
    value = os.urandom(RECORD_BYTES // 2) + b"x" * (RECORD_BYTES // 2)
    now_ms = time.time_ns() // 1_000_000
    batch = bytes(build_batch([(None, value, (), now_ms)] * records))
    partition = produce.PartitionProduceData(index=0, records=batch)
    request = produce.ProduceRequest(
        acks=-1,
        timeout_ms=30_000,
        topic_data=[produce.TopicProduceData(name=TOPIC, partition_data=[partition])],
    )
    return b"".join(encode_request(ApiKey.PRODUCE, VERSION, 1, "bench", request)), batch


def produce_response() -> bytes:
    """What a broker answers; its size is the same whatever the offsets."""
    answer = produce.PartitionProduceResponse(index=0, error_code=0, base_offset=0)
    response = produce.ProduceResponse(
        responses=[produce.TopicProduceResponse(name=TOPIC, partition_responses=[answer])]
    )
    return b"".join(encode_response(ApiKey.PRODUCE, VERSION, 1, response))


# -- load ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What one run showed."""

    requests_per_s: float
    megabytes_per_s: float
    p50_ms: float
    p99_ms: float


class Load:
    """Connections that keep ``depth`` requests in flight each."""

    def __init__(self, port: int, frame: bytes, connections: int, depth: int) -> None:
        self._frame = frame
        self._response = len(produce_response())
        self._selector = selectors.DefaultSelector()
        self._depth = depth
        self._bulk = frame * min(depth, max(1, 2**20 // len(frame)))
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            state = _Connection(sock)
            self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, state)
            self._owe(state, depth)

    def _owe(self, state: _Connection, count: int) -> None:
        state.owed_bytes += count * len(self._frame)

    def run(self, seconds: float) -> Result:
        """Send for ``seconds``; requests answered in that time count."""
        requests = 0
        latencies: list[float] = []
        start = time.perf_counter()
        end = start + seconds
        frame = len(self._frame)
        while (now := time.perf_counter()) < end:
            for key, events in self._selector.select(0.5):
                state: _Connection = key.data
                if events & selectors.EVENT_READ:
                    state.received += len(state.sock.recv(2**18))
                    done, state.received = divmod(state.received, self._response)
                    requests += done
                    self._owe(state, done)
                    if self._depth == 1 and done:
                        latencies.append(time.perf_counter() - state.sent_at)
                if state.owed_bytes:
                    self._send(state, frame, now)
        elapsed = time.perf_counter() - start
        latencies.sort()
        return Result(
            requests / elapsed,
            requests * frame / elapsed / 1e6,
            _quantile(latencies, 0.5) * 1000,
            _quantile(latencies, 0.99) * 1000,
        )

    def _send(self, state: _Connection, frame: int, now: float) -> None:
        state.sent_at = time.perf_counter()
        while state.owed_bytes:
            first = state.phase  # bytes of the current frame that are sent already
            size = min(len(self._bulk) - first, state.owed_bytes)
            try:
                sent = state.sock.send(memoryview(self._bulk)[first : first + size])
            except BlockingIOError:
                break
            state.owed_bytes -= sent
            state.phase = (first + sent) % frame
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if state.owed_bytes else 0)
        self._selector.modify(state.sock, events, state)

    def close(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.owed_bytes = 0
        self.phase = 0
        self.received = 0
        self.sent_at = 0.0


def _quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(len(values) * q))] if values else 0.0


# -- runs ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def floor_process(directory: Path, batch_bytes: int, *, objects: bool = False) -> Iterator[int]:
    """The bare server; gives its port. ``objects``: it writes everything into object files too."""
    command = [sys.executable, "-m", "penstock_tools.bench.floor", str(directory / "floor.wal")]
    command.append(str(batch_bytes))
    if objects:
        command.append(str(directory / "p"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextlib.contextmanager
def penstock_process(directory: Path, sets: list[str], arguments: Sequence[str] = ()) -> Iterator[int]:
    """``penstock ARGUMENTS serve`` with its defaults in ``directory``; gives its port."""
    command = [sys.executable, "-m", "penstock", *arguments, "serve", "--log-level", "warning"]
    for setting in [f"broker.data_dir={directory}", "listener.bind=127.0.0.1:0", *sets]:
        command += ["--set", setting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = 0
            for line in process.stdout:
                if "listening" in line:
                    port = int(line.split()[1].rpartition(":")[2])
                if "metadata_log" in line and "/" in line:
                    break
            if not port:
                raise RuntimeError("penstock serve didn't start; see what it printed above")
            create_topic(port)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def create_topic(port: int) -> None:
    """Have the topic made by asking for it (auto creation)."""
    from penstock.wire.messages import metadata

    request = metadata.MetadataRequest(
        topics=[metadata.MetadataRequestTopic(name=TOPIC)], allow_auto_topic_creation=True
    )
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"".join(encode_request(ApiKey.METADATA, 9, 1, "bench", request)))
        size = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
        sock.recv(size, socket.MSG_WAITALL)


CASES = [  # name, batch bytes, connections, depth
    ("200 KiB", 200 * 1024, 4, 5),
    ("16 KiB", 16 * 1024, 4, 16),
    ("1 KiB", 1024, 4, 128),
    ("1 KiB, depth 1", 1024, 1, 1),
    ("1 KiB, two alone", 1024, 2, 1),
]


def measure(port: int, batch_bytes: int, connections: int, depth: int, seconds: float) -> Result:
    """One run against whatever listens on ``port``."""
    load = Load(port, produce_frame(batch_bytes)[0], connections, depth)
    try:
        load.run(min(1.0, seconds / 2))  # warm up
        return load.run(seconds)
    finally:
        load.close()


def compare(
    directory: Path,
    seconds: float,
    rounds: int,
    sets: list[str],
    only: str | None,
    arguments: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """All cases, the servers in turn; prints a line per case. ``arguments`` are the broker's, before ``serve``."""
    rows = []
    _say(f"{'request':<16}{'penstock':>22}{'floor':>22}{'ratio':>7}{'floor with objects':>22}{'ratio':>7}")
    for name, batch_bytes, connections, depth in CASES:
        if only is not None and only not in name:
            continue
        ours: list[Result] = []
        floors: list[Result] = []
        with_objects: list[Result] = []
        for _ in range(rounds):
            for process, results in (
                (penstock_process(directory / "p", sets, arguments), ours),
                (floor_process(directory, batch_bytes), floors),
                (floor_process(directory, batch_bytes, objects=True), with_objects),
            ):
                with process as port:
                    results.append(measure(port, batch_bytes, connections, depth, seconds))
                shutil.rmtree(directory / "p", ignore_errors=True)
        rows.append(_row(name, depth, ours, floors, with_objects))
    return rows


def _row(
    name: str, depth: int, ours: list[Result], floors: list[Result], with_objects: list[Result]
) -> dict[str, Any]:
    ratios = [_ratio(depth, ours, some) for some in (floors, with_objects)]
    cells = [_cell(depth, some) for some in (ours, floors, with_objects)]
    shown = [f"{ratio:.2f}x" if depth == 1 else f"{ratio:.0%}" for ratio in ratios]
    _say(f"{name:<16}{cells[0]:>22}{cells[1]:>22}{shown[0]:>7}{cells[2]:>22}{shown[1]:>7}")
    return {
        "case": name,
        "ratio": ratios[0],
        "ratio_with_objects": ratios[1],
        "penstock": [asdict(r) for r in ours],
        "floor": [asdict(r) for r in floors],
        "floor_with_objects": [asdict(r) for r in with_objects],
    }


def _ratio(depth: int, ours: list[Result], floors: list[Result]) -> float:
    """Of latency at depth 1, else of throughput; the median over the rounds."""
    if depth == 1:
        return statistics.median(o.p50_ms / f.p50_ms for o, f in zip(ours, floors, strict=True))
    return statistics.median(o.requests_per_s / f.requests_per_s for o, f in zip(ours, floors, strict=True))


def _cell(depth: int, results: list[Result]) -> str:
    result = _median(results)
    if depth == 1:
        return f"{result.p50_ms:.2f}, p99 {result.p99_ms:.2f} ms"
    return f"{result.requests_per_s:,.0f}/s {result.megabytes_per_s:,.0f} MB/s"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _median(results: list[Result]) -> Result:
    return sorted(results, key=lambda r: r.requests_per_s)[len(results) // 2]


def main() -> None:
    """Be the bare server: ``python -m penstock_tools.bench.floor FILE BATCH_BYTES [OBJECTS_DIR]``."""
    import uvloop

    objects = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    uvloop.run(serve_floor(Path(sys.argv[1]), int(sys.argv[2]), objects))


if __name__ == "__main__":
    main()
