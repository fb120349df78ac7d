"""How many steps the hot paths take, counted exactly: ``python tools/bench/counts.py``.

Bytecodes, calls of Python functions and calls of C functions of one Produce between its frame and its answer, and of
one fetch of many small batches, whatever else the machine is doing. Nothing is between the frame and the answer but
what a broker has there: connection, partition, engine, log cache, allocator and group commit; there are no sockets,
and the medium of the write-ahead log is memory. ``counts.txt`` has the figures that are agreed on; ``--check`` fails
where a count is more than 5 % above them.

Counted are Python's own steps, so figures belong to a version of Python. ``validation`` is what looking at each
record takes, which isn't part of the other figures; native code leaves little of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import anyio
import anyio.lowlevel
from penstock_allocator_sequential import SequentialAllocatorSettings, penstock_register_allocator
from penstock_cache_fifo import FifoLogCacheSettings, penstock_register_log_cache
from penstock_cache_lru import LruBlockCacheSettings, penstock_register_block_cache
from penstock_metadata_object import Settings as MetadataSettings
from penstock_metadata_object import penstock_register_metadata_log
from penstock_object_store_fsspec import Settings as StoreSettings
from penstock_object_store_fsspec import penstock_register_object_store

from penstock.api.client import Endpoint
from penstock.api.context import ApiContext, ApiSettings
from penstock.api.dispatch import apis
from penstock.bus import EventBus
from penstock.log.manager import LogManager, LogSettings
from penstock.log.topic import NewTopic
from penstock.metadata.service import MetadataService
from penstock.server import Server
from penstock.server.connection import Connection
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics
from penstock.stream.engine import EngineSettings, StreamEngine
from penstock.stream.object_puts import UploadSettings
from penstock.stream.reader import ReaderSettings
from penstock.wal.group_commit import GroupCommit
from penstock.wire import ApiKey, encode_request, native_code
from penstock.wire.messages import fetch, produce
from penstock.wire.records import build_batch

AGREED = Path(__file__).with_name("counts.txt")
#: A count may grow by this part before somebody has to say why.
ALLOWED = 0.05
NOW_MS = 1_700_000_000_000
TOPIC = "counts"
PRODUCE_VERSION = 9
FETCH_VERSION = 12
#: Requests that are received together, and so share what a group commit and a write to a socket take.
TOGETHER = 32
SMALL_BATCHES = 640
_COUNTED_APART = {"check_records_nowait"}
_HUGE = 2**40


class MemoryWal:
    """A write-ahead log in memory: durable in the next turn of the loop, or when it is told so if it is ``held``."""

    capabilities = WalCapabilities(durability_domain="process")
    location = "memory"

    def __init__(self) -> None:
        self.commit = GroupCommit(alignment=4096)
        self.commit.start(0, 0)
        self.append: Callable[..., WalAppend] = self._append_and_complete

    async def recover(self) -> AsyncIterator[WalEntry]:
        """Nothing is there."""
        nothing: list[WalEntry] = []
        for entry in nothing:
            yield entry

    def _append_and_complete(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        asyncio.get_running_loop().call_soon(self.complete)
        return self.commit.append(data, checksum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for ``complete``."""
        before, self.append = self.append, self.commit.append
        yield
        self.append = before

    def complete(self) -> None:
        """What was appended is durable."""
        group = self.commit.take()
        if group is not None:
            self.commit.finish(group)

    async def trim(self, position: int) -> None:
        """Nothing takes room."""

    async def seal(self) -> None:
        """Nobody else is there."""

    def statistics(self) -> WalStatistics:
        """A snapshot."""
        return self.commit.statistics()


class Wire:
    """The transport of a connection: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Buffer] = []

    def write(self, data: Buffer) -> None:
        """As asyncio's."""
        self.sent.append(data)

    def writelines(self, parts: list[Buffer]) -> None:
        """As uvloop's."""
        self.sent += parts

    def get_write_buffer_size(self) -> int:
        """Everything is sent at once."""
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Somebody on this host."""
        return ("127.0.0.1", 1) if name in {"peername", "sockname"} else default

    def is_closing(self) -> bool:
        """Never."""
        return False

    def pause_reading(self) -> None:
        """Nothing is read."""

    resume_reading = close = abort = pause_reading

    def set_write_buffer_limits(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""


class Rig:
    """A broker's hot path, one connection to it, and its steps one by one."""

    def __init__(self, wal: MemoryWal, server: Server) -> None:
        self.wal = wal
        self.server = server
        self.wire = Wire()
        self.connection = Connection(
            server.core, server.connections, Endpoint(node_id=1, host="localhost", port=1)
        )
        self.connection.connection_made(self.wire)  # type: ignore[arg-type]

    def exchange(self, data: bytes) -> None:
        """From the frames in ``data`` to their answers."""
        buffer = self.connection.get_buffer(-1)
        buffer[: len(data)] = data
        self.connection.buffer_updated(len(data))
        self.wal.complete()
        self.server.core.flush_dirty()

    def answers(self) -> bytes:
        """What was sent since the last time."""
        sent = b"".join(self.wire.sent)
        self.wire.sent.clear()
        return sent


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """Open everything."""
    engine_settings = EngineSettings(
        upload_bytes=_HUGE,
        upload_interval_ms=_HUGE,
        in_flight_bytes_max=2**30,
        lifecycle_interval_ms=_HUGE,
        delete_delay_ms=0,
        orphan_sweep_interval_ms=_HUGE,
        orphan_grace_ms=_HUGE,
        upload=UploadSettings(
            block_bytes=2**20,
            object_split_bytes=2**30,
            multipart_bytes=2**30,
            part_bytes=2**23,
            prepare_deadline_ms=60_000,
        ),
        reader=ReaderSettings(merge_bytes_max=2**20),
    )
    log_settings = LogSettings(
        topic_defaults={}, retention_interval_ms=_HUGE, fetch_in_flight_bytes_max=2**30, validate_full=True
    )
    wal = MemoryWal()
    with tempfile.TemporaryDirectory() as folder:
        services = Services(node_id=1, epoch=1, cluster_id="", data_dir=Path(folder), clock=time.monotonic)
        async with (
            penstock_register_allocator().open(SequentialAllocatorSettings(), services) as allocator,
            penstock_register_object_store().open(
                StoreSettings(url=f"memory://counts-{random.getrandbits(64):x}"), services
            ) as store,
        ):
            services = replace(services, allocator=allocator, object_store=store)
            async with (
                penstock_register_metadata_log().open(MetadataSettings(), services) as metadata_log,
                MetadataService.open(metadata_log, now_ms=now_ms) as metadata,
                penstock_register_log_cache().open(FifoLogCacheSettings(), services) as log_cache,
                penstock_register_block_cache().open(
                    LruBlockCacheSettings(limit=2**20), services
                ) as block_cache,
            ):
                epoch = await metadata.register(1)
                bus = EventBus()
                async with (
                    StreamEngine.open(
                        metadata=metadata,
                        store=store,
                        wal=wal,
                        log_cache=log_cache,
                        block_cache=block_cache,
                        allocator=allocator,
                        settings=engine_settings,
                        node_id=1,
                        node_epoch=epoch,
                        now_ms=now_ms,
                        bus=bus,
                    ) as engine,
                    LogManager.open(
                        engine, log_settings, node_id=1, node_epoch=epoch, now_ms=now_ms, bus=bus
                    ) as logs,
                ):
                    await logs.create_topics([NewTopic(name=TOPIC, partition_count=1, configs={})])
                    api = ApiContext(
                        logs=logs, groups=None, settings=ApiSettings(), clock=clock, now_ms=now_ms
                    )
                    async with Server(listeners=[], api=api, apis=apis(), allocator=allocator) as server:
                        server.core.gathers = True  # as with uvloop
                        made = Rig(wal, server)
                        with wal.held():
                            yield made
                        made.connection.connection_lost(None)


def now_ms() -> int:
    """The wall clock; always the same time, so that each run is the same."""
    return NOW_MS


#: Seconds; always the same, so that no request waits for its turn however long counting takes.
clock: Callable[[], float] = repeat(1.0).__next__


# -- requests ------------------------------------------------------------------------------------------------


def produce_frames(count: int, size: int, sequence: int, producer_id: int = -1) -> bytes:
    """``count`` requests, each with one batch of one record of ``size`` bytes for one partition."""
    frames = []
    for number in range(sequence, sequence + count):
        idempotent = producer_id >= 0
        batch = build_batch(
            [(None, b"x" * size, (), NOW_MS)],
            producer_id=producer_id,
            producer_epoch=0 if idempotent else -1,
            base_sequence=number if idempotent else -1,
        )
        data = produce.PartitionProduceData(index=0, records=bytes(batch))
        request = produce.ProduceRequest(
            acks=-1,
            timeout_ms=30_000,
            topic_data=[produce.TopicProduceData(name=TOPIC, partition_data=[data])],
        )
        frames += encode_request(ApiKey.PRODUCE, PRODUCE_VERSION, number, "counts", request)
    return b"".join(frames)


def fetch_frame(offset: int) -> bytes:
    """A request for all from ``offset`` on."""
    wanted = fetch.FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=2**30)
    request = fetch.FetchRequest(
        max_wait_ms=0,
        min_bytes=1,
        max_bytes=2**30,
        session_id=0,
        session_epoch=-1,
        topics=[fetch.FetchTopic(topic=TOPIC, partitions=[wanted])],
    )
    return b"".join(encode_request(ApiKey.FETCH, FETCH_VERSION, 1, "counts", request))


# -- counting ------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Steps."""

    bytecodes: float = 0
    python_calls: float = 0
    c_calls: float = 0

    def per(self, number: int) -> Counts:
        """Of one of so many."""
        return Counts(self.bytecodes / number, self.python_calls / number, self.c_calls / number)


class Counter:
    """Counts what runs inside of ``counting``, by the function that it is on behalf of."""

    def __init__(self) -> None:
        self.main = Counts()
        self.apart = Counts()
        #: Bytecodes and calls by function.
        self.by_function: dict[str, list[int]] = {}
        self._current = self.main

    @contextmanager
    def counting(self, *, calls_of_c: bool) -> Iterator[None]:
        """Bytecodes and Python calls; or, as both at once would count each other, C calls."""
        stop = self._count_calls_of_c() if calls_of_c else self._count_steps()
        try:
            yield
        finally:
            stop()

    def _entered(self, code: CodeType) -> None:
        if code.co_name in _COUNTED_APART:
            self._current = self.apart

    def _left(self, code: CodeType) -> None:
        if code.co_name in _COUNTED_APART:
            self._current = self.main

    def _call(self, code: CodeType) -> list[int]:
        """Count one; return the counts of that function."""
        self._entered(code)
        self._current.python_calls += 1
        counts = self.by_function.setdefault(code.co_qualname, [0, 0])
        counts[1] += 1
        return counts

    def _count_steps(self) -> Callable[[], None]:
        """Begin; the returned function ends it."""
        if sys.version_info >= (3, 12):
            # there, settrace tells of bytecodes only in code that was traced before
            return self._monitor()
        sys.settrace(self._trace)
        return lambda: sys.settrace(None)

    if sys.version_info >= (3, 12):

        def _monitor(self) -> Callable[[], None]:
            monitoring = sys.monitoring
            tool, events = monitoring.PROFILER_ID, monitoring.events

            def step(code: CodeType, offset: int) -> None:
                if code not in _NOT_COUNTED:
                    self._current.bytecodes += 1
                    self.by_function.setdefault(code.co_qualname, [0, 0])[0] += 1

            def entered(code: CodeType, offset: int) -> None:
                if code not in _NOT_COUNTED:
                    self._call(code)

            def left(code: CodeType, offset: int, value: object) -> None:
                self._left(code)

            def stop() -> None:
                monitoring.set_events(tool, 0)
                monitoring.free_tool_id(tool)

            monitoring.use_tool_id(tool, "counts")
            monitoring.register_callback(tool, events.INSTRUCTION, step)
            monitoring.register_callback(tool, events.PY_START, entered)
            monitoring.register_callback(tool, events.PY_RETURN, left)
            monitoring.register_callback(tool, events.PY_UNWIND, left)
            monitoring.set_events(
                tool, events.INSTRUCTION | events.PY_START | events.PY_RETURN | events.PY_UNWIND
            )
            _NOT_COUNTED.add(stop.__code__)
            return stop

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if code in _NOT_COUNTED:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        by_function = self._call(code)
        counts = self._current

        def step(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
            if event == "opcode":
                counts.bytecodes += 1
                by_function[0] += 1
            elif event == "return":
                self._left(code)
            return step

        return step

    def _count_calls_of_c(self) -> Callable[[], None]:
        """Begin; the returned function ends it."""

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            code = frame.f_code
            if event == "call":
                self._entered(code)
            elif event == "return":
                self._left(code)
            elif event == "c_call" and code not in _NOT_COUNTED:
                self._current.c_calls += 1

        def stop() -> None:
            sys.setprofile(None)

        _NOT_COUNTED.add(stop.__code__)
        sys.setprofile(profile)
        return stop


#: What begins and ends the counting isn't counted.
_NOT_COUNTED: set[CodeType] = {
    Counter.counting.__wrapped__.__code__,  # type: ignore[attr-defined]
    Counter._count_steps.__code__,
    contextlib._GeneratorContextManager.__enter__.__code__,
    contextlib._GeneratorContextManager.__exit__.__code__,
}
_NOT_COUNTED |= {each for each in Counter._count_steps.__code__.co_consts if isinstance(each, CodeType)}


def measure(run: Callable[[], None]) -> Counter:
    """All counts of ``run``, which does the same each time."""
    counter = Counter()
    for calls_of_c in (False, True):
        with counter.counting(calls_of_c=calls_of_c):
            run()
    return counter


def count_produce(made: Rig, together: int, producer_id: int) -> tuple[Counts, Counts, Counter]:
    """Of one request of ``together`` in one read: without, and of, the check of its records."""
    frames = iter([produce_frames(together, 1024, at * together, producer_id) for at in range(6)])
    for _ in range(4):  # what is learned once is learned
        made.exchange(next(frames))
    made.answers()
    counter = measure(lambda: made.exchange(next(frames)))
    size = len(made.answers())
    assert size > 0, "there are answers"
    assert size % (2 * together) == 0, "each request has its answer"
    return counter.main.per(together), counter.apart.per(together), counter


def count_fetch(made: Rig) -> tuple[Counts, Counter]:
    """Of one batch of a fetch of many small ones."""
    for at in range(0, SMALL_BATCHES, TOGETHER):
        made.exchange(produce_frames(TOGETHER, 100, at))
    made.answers()
    frame = fetch_frame(0)
    made.exchange(frame)
    first = made.answers()
    counter = measure(lambda: made.exchange(frame))
    assert made.answers() == first * 2, "the same each time"
    assert len(first) > SMALL_BATCHES * 100
    return counter.main.per(SMALL_BATCHES), counter


async def count_all(verbose: bool) -> dict[str, Counts]:
    """All cases."""
    found: dict[str, Counts] = {}
    for name, together, producer_id in (
        ("produce", TOGETHER, -1),
        ("produce-idempotent", TOGETHER, 7),
        ("produce-alone", 1, -1),
    ):
        async with rig() as made:
            found[name], apart, counter = count_produce(made, together, producer_id)
            if name == "produce":
                found["validation"] = apart
            if verbose:
                show(name, counter, together)
    async with rig() as made:
        found["fetch-small-batch"], counter = count_fetch(made)
        if verbose:
            show("fetch-small-batch", counter, SMALL_BATCHES)
    return found


def show(case: str, counter: Counter, number: int) -> None:
    """Who takes how many steps."""
    print(f"-- {case}: bytecodes and calls by function")
    rows = sorted(counter.by_function.items(), key=lambda row: -row[1][0])
    for name, (bytecodes, calls) in rows:
        print(f"{bytecodes / number:10.1f} {calls / number:6.2f}  {name}")


# -- the agreed figures --------------------------------------------------------------------------------------


def agreed(text: str, version: str) -> dict[str, Counts]:
    """The figures for one version of Python: lines of version, case, three counts, and why they are what they are."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            python, case, bytecodes, python_calls, c_calls, _why = line.split(None, 5)
            if python == version:
                found[case] = Counts(float(bytecodes), float(python_calls), float(c_calls))
    return found


def grown(found: dict[str, Counts], known: dict[str, Counts]) -> list[str]:
    """What to say of each count that is too far above the agreed one."""
    faults = []
    for case, counts in found.items():
        if case not in known:
            faults.append(f"{case}: there is no line for it")
            continue
        for kind in ("bytecodes", "python_calls", "c_calls"):
            now, before = getattr(counts, kind), getattr(known[case], kind)
            if now > before * (1 + ALLOWED) + 0.05:
                faults.append(f"{case}: {kind.replace('_', ' ')} grew from {before:.1f} to {now:.1f}")
    return faults


def main() -> int:
    """Count, print, and perhaps compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a count is above the agreed one")
    parser.add_argument("--verbose", action="store_true", help="say which function takes how much")
    given = parser.parse_args()
    found = anyio.run(count_all, given.verbose)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for case, counts in found.items():
        print(f"{version:5}{case:20}{counts.bytecodes:9.1f}{counts.python_calls:7.1f}{counts.c_calls:7.1f}")
    if not given.check:
        return 0
    known = agreed(AGREED.read_text(), version)
    if not known:
        print(f"there are no figures for Python {version} in {AGREED.name}: nothing is compared")
        return 0
    if native_code.walk is None:
        del found["validation"]  # in Python it takes a hundred times as long, and nobody counts that
    faults = grown(found, known)
    for fault in faults:
        print(f"{fault}: take it back, or change the line in tools/bench/{AGREED.name} and say there why")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
