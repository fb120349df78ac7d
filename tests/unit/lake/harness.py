"""A lake service with fakes around it, in simulated time: no thread, no file, no clock."""

from __future__ import annotations

__all__ = (
    "DOWN",
    "ENABLED",
    "EndedError",
    "INTERVAL_S",
    "NODE",
    "Stored",
    "World",
    "simulated",
    "suppress_in_groups",
)

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import anyio

from penstock.bus import EventBus
from penstock.errors import FencedError, FullError, PenstockError, UnavailableError, again
from penstock.lake.configs import LAKE_PREFIX, topic_config_table
from penstock.lake.memory import StepMemory
from penstock.lake.service import LakeService
from penstock.lake.source import LakeSource
from penstock.lake.table_task import LakeSettings, Surroundings
from penstock.lake.turns import Turns
from penstock.metadata.command import Command
from penstock.metadata.commands import decode_entry, encode_entry, new_entry
from penstock.metadata.commands.lake import ClaimLake
from penstock.metadata.commands.nodes import RegisterNode
from penstock.metadata.commands.objects import CommitUpload, PrepareObjects, UploadedObject, UploadedRange
from penstock.metadata.commands.streams import OpenStreams, TrimStreams
from penstock.metadata.commands.topics import CreateTopic, SetTopicConfigs
from penstock.metadata.image import Image
from penstock.metadata.streams import StreamState
from penstock.metadata.topics import LakeClaim
from penstock.spi.lake import (
    LakeCommit,
    LakeCompactorCapabilities,
    LakeCompactorSpec,
    LakeMaintenance,
    LakeRecords,
    LakeTopic,
    LakeTopicConfig,
    LakeWritten,
)
from penstock.spi.log_cache import StreamEntry
from penstock.wire.record_batch import assign_offsets
from penstock.wire.records import build_batch
from penstock_conformance.simulation._loop import run_simulated

NODE = 1
INTERVAL_S = 10.0
ENABLED = {LAKE_PREFIX + "enable": "true", LAKE_PREFIX + "commit.interval.ms": "10000"}
_SPEC: LakeCompactorSpec[Any] = LakeCompactorSpec(
    name="fake",
    summary="",
    settings=cast(Any, None),
    open=cast(Any, None),
    capabilities=LakeCompactorCapabilities(maintains=True),
    topic_configs=(LakeTopicConfig(name="format", default="raw", doc=""),),
)


class _FakeAllocator:
    """Counts; ``free`` is what it still grants."""

    def __init__(self) -> None:
        self.used = 0
        self.free = 2**40
        self.refused = 0
        self.charges = 0
        self.waiting = 0

    def charge_nowait(self, size: int, purpose: str) -> Any:
        if size > self.free:
            self.refused += 1
            raise FullError("no memory")
        return self.charge_anyway(size, purpose)

    def charge_anyway(self, size: int, purpose: str) -> Any:
        self.used += size
        self.charges += 1
        return SimpleNamespace(release=lambda: self._release(size))

    def _release(self, size: int) -> None:
        self.used -= size

    def statistics(self) -> Any:
        return SimpleNamespace(used_by_purpose={"lake": self.used}, waiting=self.waiting)


@dataclass
class Stored:
    """What the medium has of one table."""

    positions: dict[int, int] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    epoch: int = 0
    commits: int = 0
    maintained: int = 0
    open: int = 0


class World:
    """Metadata in memory, a compactor whose every step can fail or hang, and a service."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.clock = loop.time
        self.image = Image()
        self.bus = EventBus()
        self.allocator = _FakeAllocator()
        self.tables: dict[str, Stored] = {}
        #: Each step that was begun, with the time: (step, topic, seconds).
        self.steps: list[tuple[str, str, float]] = []
        #: Errors by (step, topic): one for each time, the last one stays if it is in ``always``.
        self.errors: dict[tuple[str, str], list[Exception]] = {}
        self.always: dict[tuple[str, str], Exception] = {}
        #: What a write and the like takes, and how many records a read gives at most.
        self.write_s = 0.0
        self.maintain_s = 0.0
        self.open_s = 0.0
        #: A table with so many rows that wait for their commit would rather commit.
        self.rows_max = 10**9
        self.read_max = 10**9
        #: The step that never ends.
        self.hangs = ""
        self.figures: Mapping[str, int] = {"files": 3}
        self.limiter = anyio.CapacityLimiter(1)
        self.settings = LakeSettings(
            memory_bytes=3000,
            concurrency=1,
            bandwidth=0,
            retry_min_s=1,
            retry_max_s=8,
            maintenance_interval_s=0,
            stop_timeout_s=30,
        )
        self.fold(RegisterNode(NODE, "w"))
        self.node_epoch = self.image.nodes.require(NODE).epoch

    # -- metadata

    def fold(self, command: Command) -> Any:
        index = self.image.index + 1
        entry = decode_entry(index, encode_entry(new_entry([command], "w", self.now_ms())))
        folded = self.image.fold(index, entry)
        for delta in folded.deltas:
            self.bus.publish(delta)
        (result,) = folded.results
        if isinstance(result, Exception):
            raise again(result)
        return result

    async def submit(self, command: Command) -> Any:
        topic = self.image.topics.get(command.topic_id)  # type: ignore[attr-defined]
        await self.step("claim" if isinstance(command, ClaimLake) else "tell", topic.name if topic else "")
        return self.fold(command)

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self.clock() * 1000)

    def create(self, name: str, configs: Mapping[str, str] = ENABLED) -> None:
        state = self.fold(CreateTopic(name, name.encode().ljust(16, b"."), 1, dict(configs)))
        self.fold(OpenStreams(NODE, self.node_epoch, [*state.log_streams, *state.state_streams]))

    def alter(self, name: str, **configs: str) -> None:
        state = self.topic(name)
        set_to = {LAKE_PREFIX + key.replace("_", "."): value for key, value in configs.items()}
        self.fold(SetTopicConfigs(state.topic_id, state.configs | set_to))

    def topic(self, name: str) -> Any:
        state = self.image.topics.named(name)
        assert state is not None
        return state

    def claim(self, name: str) -> LakeClaim:
        claim = self.topic(name).lake
        assert claim is not None
        return cast(LakeClaim, claim)

    def stream(self, name: str) -> StreamState:
        return self.image.streams.require(self.topic(name).log_streams[0])

    def upload(self, name: str, count: int) -> None:
        """So many more records are in objects."""
        stream = self.stream(name)
        (object_id,) = self.fold(PrepareObjects(NODE, self.node_epoch, 1, 2**50))
        moved = UploadedRange(stream.stream_id, stream.end, stream.end + count, 100 * count, 1)
        self.fold(CommitUpload(NODE, self.node_epoch, [UploadedObject(object_id, 100 * count, [moved])]))

    def trim(self, name: str, start: int) -> None:
        self.fold(TrimStreams(NODE, self.node_epoch, [(self.stream(name).stream_id, start)]))

    # -- the medium

    def note(self, name: str, topic: str) -> None:
        self.steps.append((name, topic, self.clock()))

    async def step(self, name: str, topic: str) -> None:
        self.note(name, topic)
        await anyio.lowlevel.checkpoint()
        if self.hangs == name:
            await anyio.sleep_forever()
        waiting = self.errors.get((name, topic))
        error = waiting.pop(0) if waiting else self.always.get((name, topic))
        if error is not None:
            raise again(error) if isinstance(error, PenstockError) else error

    def times(self, name: str, topic: str = "orders") -> list[float]:
        return [at for step, of, at in self.steps if (step, of) == (name, topic)]

    async def read(self, stream: StreamState, offset: int, bytes_max: int) -> Sequence[StreamEntry]:
        topic = self.image.topics.require(stream.topic_id)
        await self.step("read", topic.name)
        if offset >= stream.end:
            return ()
        end = min(stream.end, offset + self.read_max)
        batch = bytearray(build_batch([(None, b"value", (), 1)] * (end - offset)))
        assign_offsets(batch, offset, 0)
        return [StreamEntry(stream.stream_id, offset, end, 1, memoryview(batch))]

    async def sleep(self, pause_s: float) -> None:
        await self.step("memory", "")
        await anyio.sleep(pause_s)

    @property
    def capabilities(self) -> LakeCompactorCapabilities:
        return _SPEC.capabilities

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[_FakeTable]:
        await self.step("open", topic.name)
        await anyio.sleep(self.open_s)
        stored = self.tables.setdefault(topic.name, Stored())
        if epoch < stored.epoch:
            raise FencedError("somebody opened it")
        stored.epoch = epoch
        stored.open += 1
        try:
            yield _FakeTable(self, topic, stored, epoch)
        finally:
            stored.open -= 1

    # -- the service

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[LakeService]:
        """As ``LakeService.open`` does, whose engine and store are left out here."""
        async with anyio.create_task_group() as tasks:
            around = self.around()
            service = LakeService(around, topic_config_table(_SPEC, {}, {}), tasks, self.bus)
            tasks.start_soon(service._follow)
            try:
                yield service
                with anyio.move_on_after(self.settings.stop_timeout_s, shield=True):
                    await service._stop()
            finally:
                service._ending = True
                around.memory.close()
                tasks.cancel_scope.cancel()

    def around(self) -> Surroundings:
        return Surroundings(
            metadata=cast(Any, self),
            compactor=cast(Any, self),
            batch_bytes=1000,
            source=cast(LakeSource, self),
            allocator=cast(Any, self.allocator),
            memory=StepMemory(cast(Any, self.allocator), self.settings.memory_bytes, 1000),
            settings=self.settings,
            node_id=NODE,
            node_epoch=self.node_epoch,
            begin_upload=lambda: None,
            durable_end=lambda stream_id: None,
            clock=self.clock,
            now_ms=self.now_ms,
            random=Random(1),
            limiter=self.limiter,
            maintenance_turns=Turns(),
            sleep=self.sleep,
        )


class _FakeTable:
    """A table that is open."""

    def __init__(self, world: World, topic: LakeTopic, stored: Stored, epoch: int) -> None:
        self._world = world
        self._topic = topic
        self._stored = stored
        self._epoch = epoch
        self._written: list[int] = []
        self.name = f"table of {topic.name}"

    async def _step(self, name: str) -> None:
        await self._world.step(name, self._topic.name)
        if self._stored.epoch != self._epoch:
            raise FencedError(f"somebody else owns the table: topic={self._topic.name}")

    async def positions(self) -> Mapping[int, int]:
        await self._step("positions")
        return dict(self._stored.positions)

    async def write(self, records: LakeRecords) -> LakeWritten:
        await self._step("write")
        await anyio.sleep(self._world.write_s)
        self._written += list(records.offsets)
        return LakeWritten(rows=len(records), is_full=len(self._written) >= self._world.rows_max)

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        await self._step("commit")
        self._stored.rows += self._written
        self._stored.positions.update(positions)
        self._stored.commits += 1
        rows, self._written = len(self._written), []
        return LakeCommit(version="", files=1, rows=rows, size_bytes=0)

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        await self._step("maintain")
        try:
            await anyio.sleep(self._world.maintain_s)
        finally:
            self._world.note("left", self._topic.name)
        assert not self._written
        self._stored.maintained += 1
        return LakeMaintenance(figures=self._world.figures, saved_bytes=7, dry_run=dry_run)


def simulated(test: Callable[[World], Awaitable[None]]) -> None:
    """Run it in simulated time; nothing of the room is left afterwards."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        world = World(loop)
        await test(world)
        await anyio.lowlevel.checkpoint()
        assert world.allocator.used == 0, "memory stays charged"
        assert world.limiter.borrowed_tokens == 0
        assert all(stored.open == 0 for stored in world.tables.values()), "a table stays open"
        assert asyncio.all_tasks(loop) == {asyncio.current_task(loop)}, "a task stays"

    run_simulated(cast(Callable[[Any], Coroutine[Any, Any, None]], main), 0)


class EndedError(Exception):
    """The broker ends, and waits for nothing."""


@contextmanager
def suppress_in_groups(error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except BaseExceptionGroup as group:
        _, rest = group.split(error)
        if rest is not None:
            raise rest from None


DOWN = UnavailableError("the catalog is down")
