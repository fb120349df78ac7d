"""Many partitions: how long each operation keeps a broker's event loop from serving anybody else.

    python tools/bench/metadata_scale.py                            # 100 topics x 100 partitions, 200,000 ranges
    python tools/bench/metadata_scale.py --topics 10 --ranges 20 --only snapshot,metadata --json out.json

A broker in this process gets its image through the real commands: topics through the log
manager, committed ranges through ``PrepareObjects`` and ``CommitUpload`` of the metadata service (their objects have
no bytes; nothing here reads them). Then each operation runs once, requests over a socket, while a timer of 1 ms shows
how long the loop was held up at most:

    block  the longest time between two turns of the timer, less its 1 ms
    cpu    the most processor time that the loop's thread used between two turns: free of what else the machine does
    took   how long the operation took in all

``baseline`` is the same with nothing going on: what the machine itself does to the timer. ``image`` says what the
image takes, by what the process grew while the ranges came.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio

from penstock.broker import Broker, Collector, uvloop_installed
from penstock.bus import EventBus
from penstock.config import load_config
from penstock.log.manager import LogManager
from penstock.log.partition import Partition
from penstock.log.topic import NewTopic
from penstock.metadata.commands.objects import CommitUpload, PrepareObjects, UploadedObject, UploadedRange
from penstock.metadata.image import Image
from penstock.metadata.service import load_image
from penstock.spi.kinds import METADATA_LOG
from penstock.wire import ApiKey, encode_request
from penstock.wire.messages import fetch, list_offsets, metadata
from penstock.wire.records import build_batch

TICK_S = 0.001
#: Streams whose ranges share an object, as the uploader does it.
STREAMS_PER_OBJECT = 5000
RANGE_RECORDS, RANGE_BYTES = 100, 50_000
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
TARGET_MS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """What one operation did to the loop; milliseconds."""

    name: str
    block_ms: float
    cpu_ms: float
    took_ms: float


class Watch:
    """A timer on the loop that notices when it comes late."""

    def __init__(self) -> None:
        self.results: list[Blocked] = []
        self._worst_s = self._worst_cpu_s = 0.0
        self._last_s = self._last_cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def _tick(self) -> None:
        now, cpu = time.perf_counter(), time.thread_time()
        self._worst_s = max(self._worst_s, now - self._last_s - TICK_S)
        self._worst_cpu_s = max(self._worst_cpu_s, cpu - self._last_cpu_s)
        self._last_s, self._last_cpu_s = now, cpu
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    async def measure(self, name: str, operation: Callable[[], Awaitable[object]]) -> None:
        """Run ``operation`` and note the longest block."""
        gc.collect()
        await anyio.sleep(0.05)
        self._last_s, self._last_cpu_s = time.perf_counter(), time.thread_time()
        self._worst_s = self._worst_cpu_s = 0.0
        started = time.perf_counter()
        self._tick()
        await anyio.sleep(0.01)
        await operation()
        took_s = time.perf_counter() - started - 0.01
        await anyio.sleep(0.01)
        assert self._timer is not None
        self._timer.cancel()
        self.results.append(
            Blocked(
                name=name,
                block_ms=round(self._worst_s * 1000, 2),
                cpu_ms=round(self._worst_cpu_s * 1000, 2),
                took_ms=round(took_s * 1000, 1),
            )
        )
        print(report_line(self.results[-1]), flush=True)


def report_line(result: Blocked) -> str:
    """One line of the table."""
    verdict = "" if result.cpu_ms <= TARGET_MS else f"  > {TARGET_MS:g} ms"
    return f"{result.name:<40}{result.block_ms:>9.1f} ms{result.cpu_ms:>9.1f} ms{result.took_ms:>10.0f} ms{verdict}"


# -- the image -----------------------------------------------------------------------------------------------


async def make_topics(logs: LogManager, count: int, partitions: int) -> None:
    """``count`` topics with ``partitions`` partitions each."""
    for number in range(count):
        (made,) = await logs.create_topics([NewTopic(f"scale-{number:04d}", partitions, {})])
        if isinstance(made, Exception):
            raise made


async def commit_ranges(broker: Broker, rounds: int) -> None:
    """Commit ``rounds`` ranges for each partition's log stream, as uploads of all of them would."""
    parts = broker._running
    streams = [
        partition.stream.stream_id
        for topic in parts.logs.topics().values()
        if not topic.internal
        for partition in topic.partitions.values()
    ]
    for number in range(rounds):
        time_ms = NOW_MS + number * HOUR_MS
        start = number * RANGE_RECORDS
        for first in range(0, len(streams), STREAMS_PER_OBJECT):
            some = streams[first : first + STREAMS_PER_OBJECT]
            (object_id,) = await parts.metadata.submit(
                PrepareObjects(parts.logs.node_id, parts.node_epoch, 1, 2**62)
            )
            ranges = [UploadedRange(s, start, start + RANGE_RECORDS, RANGE_BYTES, time_ms) for s in some]
            uploaded = UploadedObject(object_id, len(some) * RANGE_BYTES, ranges)
            await parts.metadata.submit(CommitUpload(parts.logs.node_id, parts.node_epoch, [uploaded]))
    for topic in parts.logs.topics().values():
        for partition in topic.partitions.values():
            state = parts.metadata.image.streams.require(partition.stream.stream_id)
            partition.stream.next_offset = partition.stream.confirmed_offset = max(state.start, state.end)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


# -- requests ------------------------------------------------------------------------------------------------


class Client:
    """A blocking socket, used from threads, so that the loop does nothing but the broker's work."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(60)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def call(self, frame: bytes) -> int:
        """Send a request; the size of its response in bytes."""
        self._socket.sendall(frame)
        size = int.from_bytes(self._exactly(4), "big")
        self._exactly(size)
        return size

    def _exactly(self, count: int) -> bytes:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            received = self._socket.recv_into(view)
            if not received:
                raise RuntimeError("the broker closed the connection")
            view = view[received:]
        return bytes(buffer)


def metadata_frame() -> bytes:
    """Metadata of all topics, as Java's client asks for it."""
    request = metadata.MetadataRequest(topics=None)
    return b"".join(encode_request(ApiKey.METADATA, 12, 1, "scale", request))


def places(logs: LogManager, count: int) -> dict[str, list[Partition]]:
    """The first ``count`` partitions, by topic."""
    found: dict[str, list[Partition]] = {}
    for name in sorted(logs.topics()):
        topic = logs.topics()[name]
        for partition in () if topic.internal else topic.partitions.values():
            if count:
                found.setdefault(name, []).append(partition)
                count -= 1
    return found


def list_offsets_frame(chosen: dict[str, list[Partition]], timestamp: int) -> bytes:
    """ListOffsets of the chosen partitions."""
    topics = [
        list_offsets.ListOffsetsTopic(
            name=name,
            partitions=[
                list_offsets.ListOffsetsPartition(partition_index=p.index, timestamp=timestamp)
                for p in partitions
            ],
        )
        for name, partitions in chosen.items()
    ]
    request = list_offsets.ListOffsetsRequest(topics=topics)
    return b"".join(encode_request(ApiKey.LIST_OFFSETS, 7, 1, "scale", request))


def fetch_frame(chosen: dict[str, list[Partition]], session_id: int, epoch: int, wait_ms: int) -> bytes:
    """Fetch of the chosen partitions at their ends, in a session."""
    topics = [
        fetch.FetchTopic(
            topic=name,
            partitions=[
                fetch.FetchPartition(
                    partition=p.index, fetch_offset=p.high_watermark, partition_max_bytes=2**20
                )
                for p in partitions
            ],
        )
        for name, partitions in chosen.items()
    ]
    request = fetch.FetchRequest(
        max_wait_ms=wait_ms,
        min_bytes=1,
        max_bytes=2**24,
        session_id=session_id,
        session_epoch=epoch,
        topics=topics,
        forgotten_topics_data=[],
    )
    return b"".join(encode_request(ApiKey.FETCH, 11, 1, "scale", request))


# -- operations ----------------------------------------------------------------------------------------------


class Bench:
    """The operations, in the order that they are run: those that drop data come last."""

    def __init__(self, broker: Broker, watch: Watch, args: argparse.Namespace) -> None:
        self._broker = broker
        self._parts = broker._running
        self._logs = self._parts.logs
        self._watch = watch
        self._args = args

    async def run(self) -> None:
        only = set(self._args.only.split(",")) if self._args.only else None
        for name in (
            "baseline", "garbage", "metadata", "offsets", "fetch", "snapshot", "create", "upload",
            "start", "retention", "trim", "delete",
        ):  # fmt: skip
            if only is None or name in only:
                await getattr(self, name)()

    async def baseline(self) -> None:
        await self._watch.measure("nothing", lambda: anyio.sleep(0.3))

    async def garbage(self) -> None:
        async def collect() -> None:
            gc.collect()

        await self._watch.measure("garbage collector, everything", collect)

    async def _call(self, name: str, client: Client, frame: bytes, meanwhile: Any = None) -> None:
        async def operation() -> None:
            async with anyio.create_task_group() as tasks:
                if meanwhile is not None:
                    tasks.start_soon(meanwhile)
                await anyio.to_thread.run_sync(client.call, frame)

        await self._watch.measure(name, operation)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        port = int(self._broker.bootstrap_servers.rpartition(":")[2])
        client = await anyio.to_thread.run_sync(Client, port)
        try:
            yield client
        finally:
            client.close()

    async def metadata(self) -> None:
        async with self._client() as client:
            await self._call("Metadata of all topics, the first", client, metadata_frame())
            await self._call("Metadata of all topics, again", client, metadata_frame())

    async def offsets(self) -> None:
        chosen = places(self._logs, 1000)
        async with self._client() as client:
            await self._call("ListOffsets of 1,000, latest", client, list_offsets_frame(chosen, -1))
            far = list_offsets_frame(chosen, 2**62)
            await self._call("ListOffsets of 1,000, by time", client, far)

    async def fetch(self) -> None:
        for count in (1000, 10_000):
            chosen = places(self._logs, count)
            count = sum(map(len, chosen.values()))
            async with self._client() as client:
                first = fetch_frame(chosen, 0, 0, 50)
                await self._call(f"Fetch of {count:,}, full, session made", client, first)
                sessions = self._parts.server.core.api.fetch_sessions
                session_id = next(reversed(sessions._sessions))
                await self._call(
                    f"Fetch of {count:,}, nothing new", client, fetch_frame({}, session_id, 1, 100)
                )
                target = next(iter(chosen.values()))[0]

                async def produce(target: Partition = target) -> None:
                    await anyio.sleep(0.05)
                    await target.append_batch(batch())

                frame = fetch_frame({}, session_id, 2, 5000)
                await self._call(f"Fetch of {count:,}, one gets a record", client, frame, produce)

    async def snapshot(self) -> None:
        async def write() -> None:
            await self._parts.metadata.write_snapshot()

        await self._logs._metadata.submit(
            PrepareObjects(self._logs.node_id, self._parts.node_epoch, 1, 2**62)
        )
        await self._watch.measure("metadata snapshot", write)

    async def create(self) -> None:
        async def make() -> None:
            (made,) = await self._logs.create_topics([NewTopic("made", 1000, {})])
            if isinstance(made, Exception):
                raise made

        await self._watch.measure("topic of 1,000 partitions: create", make)

        async def drop() -> None:
            await self._logs.delete_topics(["made"])

        await self._watch.measure("topic of 1,000 partitions: delete, empty", drop)

    async def upload(self) -> None:
        partitions = [p for some in places(self._logs, 5000).values() for p in some]
        for idempotent in (False, True):
            for first in range(0, len(partitions), 500):
                async with anyio.create_task_group() as tasks:
                    for number, partition in enumerate(partitions[first : first + 500]):
                        producer = 10**6 + first + number if idempotent else -1
                        tasks.start_soon(partition.append_batch, batch(producer))
            kind = "idempotent" if idempotent else "plain"
            await self._watch.measure(
                f"upload of {len(partitions):,} streams, {kind}", self._parts.engine.flush
            )

    async def start(self) -> None:
        await measure_start(self._broker, self._watch)

    async def retention(self) -> None:
        clean = self._logs.clean
        self._logs._now_ms = lambda: NOW_MS
        await self._watch.measure("retention, nothing to drop", clean)
        # seven days are Kafka's default
        self._logs._now_ms = lambda: NOW_MS + 7 * 24 * HOUR_MS + self._args.ranges // 4 * HOUR_MS + 1
        await self._watch.measure("retention, a quarter of all ranges", clean)

    async def trim(self) -> None:
        starts = [
            (p.stream.stream_id, self._args.ranges // 2 * RANGE_RECORDS)
            for some in places(self._logs, 10**9).values()
            for p in some
        ]
        await self._watch.measure(
            f"trim of {len(starts):,} streams, a quarter", lambda: self._parts.engine.trim_streams(starts)
        )

    async def delete(self) -> None:
        names = [name for name in sorted(self._logs.topics()) if name.startswith("scale-")]
        tenth = names[: max(1, len(names) // 10)]
        count = sum(len(self._logs.topics()[name].partitions) for name in tenth)
        await self._watch.measure(
            f"{len(tenth)} topics, {count:,} partitions: delete", lambda: self._logs.delete_topics(tenth)
        )
        left = names[len(tenth) :]
        await self._watch.measure(f"{len(left)} more topics: delete", lambda: self._logs.delete_topics(left))
        await self._watch.measure("object lifecycle sweep", self._parts.engine._lifecycle.sweep)


def batch(producer_id: int = -1) -> bytearray:
    """A record batch of one record."""
    if producer_id < 0:
        return bytearray(build_batch([(None, b"x" * 100, (), NOW_MS)]))
    return bytearray(
        build_batch(
            [(None, b"x" * 100, (), NOW_MS)], producer_id=producer_id, producer_epoch=0, base_sequence=0
        )
    )


async def measure_start(broker: Broker, watch: Watch) -> None:
    """Load the image from its snapshot and log; then open all streams again, as a start does."""
    parts = broker._running
    await watch.measure("start: image from snapshot and log", lambda: load_image(parts.plugins[METADATA_LOG]))
    data = parts.metadata.image.to_snapshot()
    started = time.perf_counter()
    Image.from_snapshot(data)
    print(f"  snapshot: {len(data) / 2**20:.1f} MiB, read in {(time.perf_counter() - started) * 1000:.0f} ms")

    async def nothing(partition: Partition, now_ms: int) -> None:
        """The ranges have no objects to read."""

    real, Partition.load = Partition.load, nothing  # type: ignore[assignment, method-assign]

    async def reopen() -> None:
        logs = parts.logs
        other = LogManager(
            parts.engine, logs._settings, node_id=logs.node_id, node_epoch=parts.node_epoch,
            now_ms=lambda: NOW_MS, bus=EventBus(), tasks=logs._tasks,
        )  # fmt: skip
        topics = list(parts.metadata.image.topics.all())
        await parts.engine.open_streams([s for t in topics for s in t.log_streams + t.state_streams])
        await other._served.reconcile([topic.topic_id for topic in topics])

    try:
        await watch.measure("start: open all streams and partitions", reopen)
    finally:
        Partition.load = real  # type: ignore[method-assign]


async def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All of it."""
    overrides = {
        "broker.data_dir": str(directory),
        "listener.bind": "127.0.0.1:0",
        "topics.partitions_max": args.topics * args.partitions + 10_000,
    }
    watch = Watch()
    async with Broker(load_config(sets=args.set, overrides=overrides)) as broker:
        # penstock serve does the same
        Collector(broker.unaccounted_bytes).start()
        before = resident_bytes()
        started = time.perf_counter()
        await make_topics(broker._running.logs, args.topics, args.partitions)
        gc.collect()
        made = resident_bytes()
        await commit_ranges(broker, args.ranges)
        gc.collect()
        filled = resident_bytes()
        partitions, ranges = args.topics * args.partitions, args.topics * args.partitions * args.ranges
        print(
            f"{partitions:,} partitions, {ranges:,} ranges, filled in {time.perf_counter() - started:.1f} s: "
            f"{(made - before) / partitions:,.0f} bytes per partition (image, streams, log), "
            f"{(filled - made) / max(1, ranges):,.0f} bytes per range\n"
        )
        print(f"{'':<40}{'block':>12}{'cpu':>12}{'took':>13}")
        await Bench(broker, watch, args).run()
    return {
        "partitions": partitions,
        "ranges": ranges,
        "bytes_per_partition": round((made - before) / partitions),
        "bytes_per_range": round((filled - made) / max(1, ranges)),
        "operations": [asdict(result) for result in watch.results],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="How long operations over many partitions keep the event loop busy in one piece."
    )
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--partitions", type=int, default=100, help="of each topic")
    parser.add_argument("--ranges", type=int, default=20, help="committed ranges of each partition")
    parser.add_argument("--only", default="", help="operations, with commas between them")
    parser.add_argument("--dir", type=Path, help="where the broker has its data for a while")
    parser.add_argument("--set", action="append", default=[], help="broker configuration, KEY=VALUE")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="penstock-scale-", dir=args.dir) as directory:
        figures = anyio.run(
            measure,
            args,
            Path(directory),
            backend="asyncio",
            backend_options={"use_uvloop": uvloop_installed()},
        )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
