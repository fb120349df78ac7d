"""An engine on real plugins in memory, with a WAL and a store that the test steers."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from crc32c import crc32c
from penstock_allocator_sequential import SequentialAllocatorSettings, penstock_register_allocator
from penstock_cache_fifo import FifoLogCacheSettings, penstock_register_log_cache
from penstock_cache_lru import LruBlockCacheSettings, penstock_register_block_cache
from penstock_metadata_object import Settings as MetadataSettings
from penstock_metadata_object import penstock_register_metadata_log
from penstock_object_store_fsspec import Settings as StoreSettings
from penstock_object_store_fsspec import penstock_register_object_store
from tests.patience import HANG_S

from penstock.bus import EventBus
from penstock.errors import ClosedError, CorruptError, FullError, UnavailableError
from penstock.limits import SNAPSHOT_ENTRIES
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.service import MetadataService
from penstock.metadata.topics import TopicState
from penstock.spi.allocator import Allocator
from penstock.spi.events import ObjectsDestroyed, RecoveryFinished, UploadCommitted, WalDegraded, WalRestored
from penstock.spi.log_cache import LogCache
from penstock.spi.metadata_log import MetadataLog
from penstock.spi.object_store import MultipartUpload, ObjectInfo, ObjectStore
from penstock.spi.plugin import Buffer, Services
from penstock.spi.traffic import Traffic
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics, complete_all
from penstock.stream.engine import EngineSettings, StreamEngine
from penstock.stream.entry import decode_header
from penstock.stream.events import BlockUploaded
from penstock.stream.marks import MARK_STREAM
from penstock.stream.object_puts import UploadSettings
from penstock.stream.open_stream import Stream
from penstock.stream.reader import ReaderSettings
from penstock.work.traffic import SharedStore

NODE = 1


class FakeWal:
    """A WAL in memory: what was acknowledged survives :meth:`crash`; the test decides when that happens."""

    capabilities = WalCapabilities(durability_domain="process", bounded=True)
    location = "fake wal"

    def __init__(self) -> None:
        self.durable: list[WalEntry] = []
        self.pending: list[tuple[WalAppend, bytes]] = []
        self.position = 0
        self.trimmed = 0
        self.trims = 0
        self.automatic = True
        self.full = False
        #: Bytes that it holds; None: any number.
        self.capacity: int | None = None
        self.fail_trims = False
        self.state = "open"

    @property
    def records(self) -> list[WalEntry]:
        """Durable entries that aren't marks of metadata."""
        return [e for e in self.durable if decode_header(e.data, e.position).stream_id != MARK_STREAM]

    @property
    def left(self) -> list[WalEntry]:
        """Those that weren't trimmed."""
        return [entry for entry in self.records if entry.next_position > self.trimmed]

    def lose(self, index: int) -> None:
        """The entry ``index`` of those with records is gone."""
        self.durable.remove(self.records[index])

    async def recover(self) -> AsyncIterator[WalEntry]:
        for entry in list(self.durable):
            if entry.next_position > self.trimmed:
                yield entry

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if self.state not in ("open", "degraded"):
            raise ClosedError(f"the fake wal {self.state}")
        joined = b"".join(data)
        has_room = self.capacity is None or self.position + len(joined) - self.trimmed <= self.capacity
        if self.full or not has_room:
            raise FullError("the fake wal is full")
        assert checksum is None or checksum == crc32c(joined), "the engine knows the checksum"
        append = WalAppend(self.position, self.position + len(joined))
        self.position += len(joined)
        self.pending.append((append, joined))
        if self.automatic:
            self.complete()
        return append

    def complete(self, count: int | None = None, *, together: bool = False) -> None:
        """Make the oldest ``count`` pending appends durable, one after the other or as one group."""
        due, self.pending = (
            self.pending[:count],
            self.pending[len(self.pending) if count is None else count :],
        )
        for append, data in due:
            self.durable.append(WalEntry(append.position, append.next_position, memoryview(data)))
            if not together:
                append.complete()
        if together:
            complete_all([append for append, _ in due])

    def fail(self) -> None:
        """Fail everything that is pending."""
        due, self.pending = self.pending, []
        for append, _ in due:
            append.complete(UnavailableError("the fake wal failed"))

    def end(self, state: str = "failed", kept: int = 0) -> None:
        """It takes nothing more, for good; the oldest ``kept`` pending appends fail, and are on the medium."""
        self.state = state
        for append, data in self.pending[:kept]:
            self.durable.append(WalEntry(append.position, append.next_position, memoryview(data)))
        self.fail()

    def crash(self) -> None:
        """A new process opens it: what was pending is gone."""
        self.pending = []
        self.automatic = True
        self.full = False
        self.state = "open"

    async def trim(self, position: int) -> None:
        self.trims += 1
        if self.fail_trims:
            raise UnavailableError("the fake wal can't be trimmed")
        self.trimmed = max(self.trimmed, position)

    async def seal(self) -> None:
        raise NotImplementedError

    def statistics(self) -> WalStatistics:
        error = "" if self.state == "open" else f"the fake wal {self.state} for a reason"
        return WalStatistics(trimmed_position=self.trimmed, state=self.state, last_error=error)


class SteeredStore:
    """Wraps a store: puts can be held up or fail, and are counted."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.fail_puts = False
        self.gate = anyio.Event()
        self.gate.set()
        #: The first put has come to a closed gate.
        self.held = anyio.Event()
        #: The first put has failed.
        self.failed = anyio.Event()
        self.object_puts = 0
        self.gets = 0
        #: Awaited before each read of an object.
        self.before_get: Callable[[], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if key.startswith("objects/"):
            if not self.gate.is_set():
                self.held.set()
            await self.gate.wait()
            if self.fail_puts:
                self.failed.set()
                raise UnavailableError("the steered store fails")
            self.object_puts += 1
        return await self._inner.put(key, body)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        if key.startswith("objects/"):
            self.gets += 1
            if self.before_get is not None:
                await self.before_get()
        return await self._inner.get(key, start, end)

    async def create_multipart(self, key: str) -> MultipartUpload:
        await self.gate.wait()
        return await self._inner.create_multipart(key)

    async def keys(self) -> list[str]:
        return [info.key async for info in self._list("objects/")]

    def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._inner.list(prefix)


SETTINGS = EngineSettings(
    upload_bytes=2**20,
    upload_interval_ms=3_600_000,
    in_flight_bytes_max=2**20,
    lifecycle_interval_ms=3_600_000,
    delete_delay_ms=0,
    orphan_sweep_interval_ms=3_600_000,
    orphan_grace_ms=60_000,
    upload=UploadSettings(
        block_bytes=256,
        object_split_bytes=2**20,
        multipart_bytes=2**20,
        part_bytes=2**18,
        prepare_deadline_ms=60_000,
    ),
    reader=ReaderSettings(merge_bytes_max=2**20),
)


@dataclass
class World:
    """What survives a crash: the WAL and the store; and what the last engine told."""

    directory: Path
    wal: FakeWal = field(default_factory=FakeWal)
    url: str = field(default_factory=lambda: f"memory://{uuid.uuid4().hex}")
    settings: EngineSettings = SETTINGS
    limit: int = 64 * 2**20
    snapshot_entries: int = SNAPSHOT_ENTRIES
    uploads: list[UploadCommitted] = field(default_factory=list)
    destroyed: list[ObjectsDestroyed] = field(default_factory=list)
    recovered: list[RecoveryFinished] = field(default_factory=list)
    health: list[WalDegraded | WalRestored] = field(default_factory=list)
    now_ms: int = 1_000_000
    clock: Callable[[], float] = time.monotonic
    #: Instead of a store in memory of the real plugin.
    store: ObjectStore | None = None
    #: The classes of traffic of the newest engine.
    traffic: SharedStore | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        services = Services(node_id=NODE, epoch=1, cluster_id="", data_dir=self.directory, clock=self.clock)
        async with (
            penstock_register_allocator().open(
                SequentialAllocatorSettings(limit=self.limit), services
            ) as allocator,
            penstock_register_object_store().open(StoreSettings(url=self.url), services) as inner,
        ):
            store = SteeredStore(self.store or inner)
            services = replace(services, allocator=allocator, object_store=store)
            async with (
                penstock_register_metadata_log().open(MetadataSettings(), services) as log,
                MetadataService.open(
                    log, now_ms=lambda: self.now_ms, snapshot_entries=self.snapshot_entries
                ) as metadata,
                penstock_register_log_cache().open(FifoLogCacheSettings(), services) as log_cache,
                penstock_register_block_cache().open(
                    LruBlockCacheSettings(limit=2**20), services
                ) as block_cache,
            ):
                epoch = await metadata.register(NODE)

                self.traffic = SharedStore(store, self.clock)
                bus = EventBus()
                bus.subscribe(BlockUploaded, lambda uploaded: self.uploads.append(uploaded.event))
                bus.subscribe(ObjectsDestroyed, self.destroyed.append)
                bus.subscribe(RecoveryFinished, self.recovered.append)
                bus.subscribe(WalDegraded, self.health.append)
                bus.subscribe(WalRestored, self.health.append)
                async with StreamEngine.open(
                    metadata=metadata,
                    store=self.traffic.view(Traffic.COMPACTION),
                    wal=self.wal,
                    log_cache=log_cache,
                    block_cache=block_cache,
                    allocator=allocator,
                    settings=self.settings,
                    node_id=NODE,
                    node_epoch=epoch,
                    now_ms=lambda: self.now_ms,
                    bus=bus,
                ) as engine:
                    opened = Engine(engine, metadata, store, allocator, log_cache, log, bus)
                    await opened.open_topic()
                    yield opened


@dataclass
class Engine:
    """An open engine with one topic's two streams."""

    engine: StreamEngine
    metadata: MetadataService
    store: SteeredStore
    allocator: Allocator
    log_cache: LogCache
    metadata_log: MetadataLog
    bus: EventBus
    streams: list[Stream] = field(default_factory=list)

    async def open_topic(self) -> None:
        topic = self.metadata.image.topics.named("t")
        if topic is None:
            topic = await self.metadata.submit(CreateTopic("t", b"t" * 16, 1))
        assert isinstance(topic, TopicState)
        self.streams = await self.engine.open_streams(topic.log_streams + topic.state_streams)

    @property
    def stream(self) -> Stream:
        return self.streams[0]

    async def flush_until(self, reached: anyio.Event) -> None:
        """Begin to flush, and give it up when this has come; what was begun goes on."""
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.engine.flush)
                await reached.wait()
                tasks.cancel_scope.cancel()

    def append(
        self, payload: bytes, count: int = 1, stream: int = 0, time_ms: int = 0
    ) -> list[Exception | None]:
        """Append; the returned list gets the outcome."""
        outcome: list[Exception | None] = []
        allocation = self.allocator.allocate_nowait(len(payload), "append")
        allocation.view[:] = payload
        self.engine.append(self.streams[stream], count, time_ms, allocation.view, allocation, outcome.append)
        return outcome

    async def read_all(self, stream: int = 0) -> list[tuple[int, bytes]]:
        """(base offset, payload) of every entry, read from the start."""
        opened = self.streams[stream]
        offset = opened.start_offset
        found = []
        while offset < opened.confirmed_offset:
            entries = await self.engine.reads.read(opened, offset, 1000)
            for entry in entries:
                found.append((entry.base_offset, bytes(entry.data)))
            offset = entries[-1].next_offset
        return found


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group of errors, and in the groups within it."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


async def swept_until_damage(world: World, monkeypatch: pytest.MonkeyPatch, sweeper: str) -> None:
    """Run an engine whose ``sweeper`` fails twice, then finds damage; the engine ends with that."""
    sweeps = 0

    async def sweep() -> int:
        nonlocal sweeps
        sweeps += 1
        raise CorruptError("damage") if sweeps == 3 else UnavailableError("not now")

    async def live() -> None:
        async with world.open() as e:
            monkeypatch.setattr(getattr(e.engine, sweeper), "sweep", sweep)
            with anyio.fail_after(HANG_S):
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await live()
    assert sweeps == 3
    assert [type(error) for error in leaves(caught.value)] == [CorruptError]
