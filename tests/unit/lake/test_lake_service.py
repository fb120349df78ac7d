"""The task of one table and the service around it, with fakes, in simulated time: no thread, no file, no clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from penstock.bus import EventBus
from penstock.errors import ClosedError, FencedError, FullError, PenstockError, UnavailableError, again
from penstock.lake.configs import LAKE_PREFIX, MAINTENANCE_REQUEST, topic_config_table
from penstock.lake.service import LakeService
from penstock.lake.source import LakeSource, Throttle
from penstock.lake.states import LakeState
from penstock.lake.table_task import LakeSettings, Surroundings
from penstock.lake.turns import Turns
from penstock.metadata.command import Command
from penstock.metadata.commands import decode_entry, encode_entry, new_entry
from penstock.metadata.commands.lake import REASON_LENGTH_MAX, ClaimLake
from penstock.metadata.commands.nodes import RegisterNode, ReleaseWal
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
SPEC: LakeCompactorSpec[Any] = LakeCompactorSpec(
    name="fake",
    summary="",
    settings=cast(Any, None),
    open=cast(Any, None),
    capabilities=LakeCompactorCapabilities(maintains=True),
    topic_configs=(LakeTopicConfig(name="format", default="raw", doc=""),),
)


class FakeAllocator:
    """Counts; ``free`` is what it still grants."""

    def __init__(self) -> None:
        self.used = 0
        self.free = 2**40
        self.refused = 0

    def charge_nowait(self, size: int, purpose: str) -> Any:
        if size > self.free:
            self.refused += 1
            raise FullError("no memory")
        return self.charge_anyway(size, purpose)

    def charge_anyway(self, size: int, purpose: str) -> Any:
        self.used += size
        return SimpleNamespace(release=lambda: self._release(size))

    def _release(self, size: int) -> None:
        self.used -= size

    def statistics(self) -> Any:
        return SimpleNamespace(used_by_purpose={"lake": self.used})


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
        self.allocator = FakeAllocator()
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
        return SPEC.capabilities

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[FakeTable]:
        await self.step("open", topic.name)
        await anyio.sleep(self.open_s)
        stored = self.tables.setdefault(topic.name, Stored())
        if epoch < stored.epoch:
            raise FencedError("somebody opened it")
        stored.epoch = epoch
        stored.open += 1
        try:
            yield FakeTable(self, topic, stored, epoch)
        finally:
            stored.open -= 1

    # -- the service

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[LakeService]:
        """As ``LakeService.open`` does, whose engine and store are left out here."""
        async with anyio.create_task_group() as tasks:
            service = LakeService(self.around(), topic_config_table(SPEC, {}, {}), tasks, self.bus)
            tasks.start_soon(service._follow)
            try:
                yield service
                with anyio.move_on_after(self.settings.stop_timeout_s, shield=True):
                    await service._stop()
            finally:
                service._ending = True
                tasks.cancel_scope.cancel()

    def around(self) -> Surroundings:
        return Surroundings(
            metadata=cast(Any, self),
            compactor=cast(Any, self),
            batch_bytes=1000,
            source=cast(LakeSource, self),
            allocator=cast(Any, self.allocator),
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


class FakeTable:
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


def test_records_are_in_the_table_once_after_the_interval_and_a_stop_commits_the_rest() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            world.upload("orders", 5)
            await anyio.sleep(INTERVAL_S)
            assert world.tables["orders"].rows == [0, 1, 2, 3, 4]
            assert service.statistics().tables["orders"].lag_records == {"0": 0}
            world.upload("orders", 2)
        assert world.tables["orders"].rows == list(range(7))
        assert world.claim("orders").state == "stopped"

    simulated(test)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_commit() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.always["open", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(40)
            told = world.claim("orders")
            assert (told.state, told.reason) == ("failed", "the catalog is down")
            tries = world.times("open")
            pauses = [after - before for before, after in pairwise(tries)]
            for pause_s, wanted_s in zip(pauses, (1, 2, 4, 8, 8), strict=False):
                assert wanted_s * 0.8 <= pause_s <= wanted_s * 1.2
            assert len(pauses) >= 5
            del world.always["open", "orders"]
            world.upload("orders", 1)
            await anyio.sleep(20)
            assert world.claim("orders").state == "running"
            world.errors["commit", "orders"] = [DOWN]
            world.upload("orders", 1)
            began = len(world.times("open"))
            await anyio.sleep(INTERVAL_S + 2)
            assert len(world.times("open")) == began + 1, "the first pause again"
        assert world.tables["orders"].rows == [0, 1]

    simulated(test)


def test_a_table_runs_again_with_the_next_try_and_not_an_interval_later() -> None:
    """Whether records wait for it, or it has them all."""

    async def test(world: World) -> None:
        world.create("orders")
        world.alter("orders", commit_interval_ms="3600000")
        async with world.serve():
            await anyio.sleep(1)
            for rows in ([], [0]):
                world.always["open", "orders"] = DOWN
                world.alter("orders", format=f"with {len(rows)}")  # so it is opened again
                await anyio.sleep(20)
                assert world.claim("orders").state == "failed"
                if rows:
                    world.upload("orders", 1)
                del world.always["open", "orders"]
                await anyio.sleep(1.2 * world.settings.retry_max_s)
                assert world.claim("orders").state == "running"
                assert world.tables["orders"].rows == rows

    simulated(test)


def test_a_stop_ends_the_pause_after_a_failure() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, retry_min_s=1000, retry_max_s=1000)
        world.always["open", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(1)
            began = world.clock()
        assert world.clock() - began < 1
        assert world.claim("orders").state == "stopped"

    simulated(test)


def test_a_config_of_the_compactor_opens_the_table_again_with_what_was_written_committed() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve():
            await anyio.sleep(1)
            world.upload("orders", 3)
            world.alter("orders", format="json")
            await anyio.sleep(1)
            assert world.tables["orders"].rows == [0, 1, 2]
            assert len(world.times("open")) == 2
            world.alter("orders", commit_interval_ms="1000")  # the kernel's own: nothing is to be opened
            world.upload("orders", 1)
            await anyio.sleep(1.5)
            assert world.tables["orders"].rows == [0, 1, 2, 3]
            assert len(world.times("open")) == 2

    simulated(test)


def test_a_config_change_ends_the_pause_after_a_failure() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, retry_min_s=1000, retry_max_s=1000)
        world.errors["open", "orders"] = [DOWN]
        async with world.serve():
            await anyio.sleep(1)
            world.alter("orders", format="json")
            await anyio.sleep(1)
            assert len(world.times("open")) == 2
            await anyio.sleep(INTERVAL_S)
            assert world.claim("orders").state == "running"

    simulated(test)


@pytest.mark.parametrize(
    "step", ["claim", "open", "positions", "read", "write", "commit", "maintain", "tell", "memory"]
)
@pytest.mark.parametrize("how", ["disabled", "ended"])
def test_cancellation_at_each_step_leaves_no_memory_task_or_table(step: str, how: str) -> None:
    """By a topic that wants no table any more, and by an owner that ends without waiting."""

    async def test(world: World) -> None:
        world.create("orders", ENABLED | {MAINTENANCE_REQUEST: "1"})
        world.hangs = step
        if step == "memory":
            world.allocator.free = 0
        world.settings = replace(world.settings, stop_timeout_s=5)
        with suppress_in_groups(EndedError):
            async with world.serve():
                await anyio.sleep(1)
                world.upload("orders", 20)
                await anyio.sleep(INTERVAL_S)
                assert world.steps[-1][0] == step
                if how == "ended":
                    raise EndedError
                world.alter("orders", enable="false")
                await anyio.sleep(1)
                assert world.allocator.used == 0
                assert world.limiter.borrowed_tokens == 0

    simulated(test)


def test_a_stop_that_hangs_ends_after_its_time() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve():
            await anyio.sleep(1)
            world.hangs = "commit"
            world.upload("orders", 1)
            began = world.clock()
        assert world.clock() - began == pytest.approx(world.settings.stop_timeout_s)

    simulated(test)


def test_a_stop_waits_little_for_a_table_that_stands() -> None:
    """What it waits for may be dead: a catalog, a registry."""

    async def test(world: World) -> None:
        world.create("bad")
        world.settings = replace(world.settings, stop_timeout_s=1000)
        world.always["open", "bad"] = UnavailableError("the catalog is away")
        async with world.serve():
            await anyio.sleep(1)
            assert world.claim("bad").state == "failed"
            del world.always["open", "bad"]
            world.hangs = "open"
            await anyio.sleep(3 * INTERVAL_S)
            began = world.clock()
        assert world.clock() - began < 10

    simulated(test)


def test_a_stop_begins_no_maintenance_of_a_table_that_is_just_tried_again() -> None:
    """Cancelled, maintenance may take other tables' last commits along."""

    async def test(world: World) -> None:
        world.create("bad")
        world.settings = replace(world.settings, retry_min_s=100, retry_max_s=100)
        world.always["write", "bad"] = DOWN
        world.upload("bad", 1)
        async with world.serve():
            await anyio.sleep(INTERVAL_S + 2)
            assert world.claim("bad").state == "failed"
            world.open_s = 1.5
            world.alter("bad", maintenance_request="1")
            await anyio.sleep(1)
            assert len(world.times("open", "bad")) == 2
        assert not world.times("maintain", "bad")

    simulated(test)


def test_a_failing_table_stops_no_other() -> None:
    """Whatever it raises, also what isn't one of our errors."""

    async def test(world: World) -> None:
        world.create("bad")
        world.create("good")
        world.always["write", "bad"] = ValueError("a bug\nof two lines")
        async with world.serve():
            world.upload("bad", 3)
            world.upload("good", 3)
            await anyio.sleep(3 * INTERVAL_S)
            assert world.tables["good"].rows == [0, 1, 2]
            assert world.tables["bad"].rows == []
            assert world.claim("bad").reason == "the compactor raised ValueError: a bug of two lines"
            del world.always["write", "bad"]
            await anyio.sleep(3 * INTERVAL_S)
            assert world.tables["bad"].rows == [0, 1, 2]
            assert (world.claim("bad").state, world.claim("bad").reason) == ("running", "")

    simulated(test)


def test_a_compactor_that_says_it_is_closed_is_tried_again() -> None:
    """Only metadata that are closed say that the broker ends."""

    async def test(world: World) -> None:
        world.create("orders")
        world.errors["write", "orders"] = [ClosedError("the catalog's session is closed")]
        async with world.serve():
            world.upload("orders", 1)
            await anyio.sleep(INTERVAL_S + 0.5)
            assert world.claim("orders").reason == "the catalog's session is closed"
            await anyio.sleep(2 * INTERVAL_S)
            assert world.tables["orders"].rows == [0]

    simulated(test)


def test_a_table_that_is_far_behind_is_committed_all_the_same_and_hears_of_its_configs() -> None:
    """After an outage there may be hours of work."""

    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, stop_timeout_s=0)
        world.write_s, world.read_max = 1, 1
        async with world.serve():
            world.upload("orders", 1000)
            await anyio.sleep(1)
            world.alter("orders", maintenance_request="1")
            await anyio.sleep(3 * INTERVAL_S)
            stored = world.tables["orders"]
            assert stored.maintained == 1
            assert len(stored.rows) >= INTERVAL_S
            world.alter("orders", format="json")
            await anyio.sleep(2 * INTERVAL_S)
            assert len(world.times("open")) == 2
            assert stored.rows == list(range(len(stored.rows)))

    simulated(test)


@pytest.mark.parametrize("error", [UnavailableError, ValueError])
def test_a_reason_that_is_no_text_or_long_is_told_as_far_as_metadata_can_keep_it(
    error: type[Exception],
) -> None:
    """A name of a file may have halves of surrogate pairs; metadata that can't be written end the broker."""

    async def test(world: World) -> None:
        world.create("orders")
        world.errors["open", "orders"] = [error("file \udcff " + "x" * 10 * REASON_LENGTH_MAX)]
        async with world.serve():
            await anyio.sleep(0.5)
            told = world.claim("orders")
            assert told.state == "failed"
            assert "file ? xxx" in told.reason
            assert len(told.reason) <= REASON_LENGTH_MAX

    simulated(test)


def test_a_table_that_was_opened_by_another_is_claimed_again_only_by_the_leader() -> None:
    """Fenced, the task claims anew after a pause, as it leads; the claim of another leader ends it."""

    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            first = world.claim("orders").epoch
            world.tables["orders"].epoch = first + 1  # somebody's, who claimed nothing
            world.image.index += 5
            world.upload("orders", 2)
            await anyio.sleep(2 * INTERVAL_S + 2 * world.settings.retry_max_s)
            assert world.claim("orders").epoch > first + 1
            assert world.tables["orders"].rows == [0, 1]
            # another node leads now
            world.fold(ReleaseWal(NODE, world.node_epoch))
            world.fold(RegisterNode(2, "other"))
            stream = world.stream("orders")
            world.fold(OpenStreams(2, world.image.nodes.require(2).epoch, [stream.stream_id]))
            await anyio.sleep(1)
            assert service.statistics().tables == {}
            claims = len(world.times("claim"))
            await anyio.sleep(100)
            assert len(world.times("claim")) == claims

    simulated(test)


def test_a_table_that_a_stranger_took_is_told_of_and_not_raced_for() -> None:
    """A broker from a copy of this one's directory claims in metadata of its own: ours know of nobody."""

    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            world.tables["orders"].epoch += 1000
            claims = len(world.times("claim"))
            world.upload("orders", 1)
            await anyio.sleep(INTERVAL_S)
            told = service.statistics().tables["orders"]
            assert told.state == LakeState.FAILED
            assert told.reason.startswith(
                "somebody else owns the table: topic=orders (no broker of this cluster"
            )
            assert world.claim("orders").reason == told.reason
            assert len(world.times("claim")) == claims
            await anyio.sleep(world.settings.retry_max_s)
            assert len(world.times("claim")) == claims + 1
            world.image.index += 10_000
            await anyio.sleep(world.settings.retry_max_s + INTERVAL_S)
            assert service.statistics().tables["orders"].state == LakeState.RUNNING
            assert world.tables["orders"].rows == [0]

    simulated(test)


def test_memory_that_is_refused_is_asked_for_again_and_holds_up_one_table_only_so_long() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.allocator.free = 0
        async with world.serve():
            world.upload("orders", 2)
            await anyio.sleep(INTERVAL_S + 5)
            assert world.allocator.refused > 3
            assert world.tables["orders"].rows == []
            world.allocator.free = 2**40
            await anyio.sleep(2)
            assert world.tables["orders"].rows == [0, 1]

    simulated(test)


def test_a_gap_stops_the_topic_and_nothing_is_skipped_before_its_config_says_so() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            world.always["write", "orders"] = DOWN
            world.upload("orders", 10)
            await anyio.sleep(2 * INTERVAL_S)
            world.trim("orders", 4)
            await anyio.sleep(5 * INTERVAL_S)
            del world.always["write", "orders"]
            await anyio.sleep(2 * INTERVAL_S)
            told = world.claim("orders")
            assert told.state == "gap"
            assert "position=0 start=4" in told.reason
            assert world.tables["orders"].rows == []
            world.alter("orders", gap="skip")
            await anyio.sleep(INTERVAL_S + 1)
            assert world.tables["orders"].rows == [4, 5, 6, 7, 8, 9]
            assert world.claim("orders").state == "running"
            assert service.statistics().tables["orders"].gap_records == 4

    simulated(test)


def test_what_was_read_before_retention_deleted_it_is_in_the_table() -> None:
    """Also if it waits for its commit when there is a gap behind it: it couldn't be read again."""

    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve():
            await anyio.sleep(1)
            world.upload("orders", 20)
            await anyio.sleep(INTERVAL_S / 10)
            assert world.times("write")
            assert world.tables["orders"].rows == []
            world.upload("orders", 20)
            world.trim("orders", 30)
            await anyio.sleep(3 * INTERVAL_S)
            told = world.claim("orders")
            assert told.state == "gap"
            assert "position=20 start=30" in told.reason
            assert world.tables["orders"].rows == list(range(20))

    simulated(test)


@pytest.mark.parametrize("seed", range(5))
def test_beside_retention_each_record_is_in_the_table_once_or_counted_as_a_gap(seed: int) -> None:
    """Retention doesn't wait for the table."""
    random = Random(seed)

    async def test(world: World) -> None:
        world.create("orders", ENABLED | {LAKE_PREFIX + "gap": "skip"})
        world.write_s = INTERVAL_S / 3
        world.read_max = 7
        async with world.serve() as service:
            await anyio.sleep(1)
            for _ in range(100):
                world.upload("orders", random.randrange(1, 30))
                await anyio.sleep(random.random() * INTERVAL_S)
                stream = world.stream("orders")
                world.trim("orders", random.randrange(stream.start, stream.end + 1))
                if not random.randrange(10):
                    world.errors["write", "orders"] = [DOWN]
            await anyio.sleep(100 * INTERVAL_S)
            rows, of_table = world.tables["orders"].rows, service.statistics().tables["orders"]
            assert rows == sorted(set(rows))
            assert rows
            assert of_table.gap_records == world.stream("orders").end - len(rows) > 0

    simulated(test)


def test_a_state_that_was_refused_is_told_by_the_next_claim() -> None:
    """What metadata didn't take isn't known to anybody."""

    async def test(world: World) -> None:
        world.create("orders")
        world.errors["tell", "orders"] = [FencedError("claimed again")]
        async with world.serve():
            await anyio.sleep(INTERVAL_S + 1)
            assert world.claim("orders").state == "running"

    simulated(test)


def test_a_table_that_is_ahead_of_its_topic_is_refused() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.tables["orders"] = Stored(positions={0: 9})
        async with world.serve():
            await anyio.sleep(1)
            assert "ahead of its topic" in world.claim("orders").reason

    simulated(test)


def test_maintenance_runs_on_its_schedule_also_over_restarts() -> None:
    """Restarts that come more often than maintenance don't put it off."""

    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, maintenance_interval_s=100)
        async with world.serve():
            await anyio.sleep(105 + INTERVAL_S)
        assert world.tables["orders"].maintained == 1
        told = world.claim("orders").maintained
        assert told is not None
        assert (told.reason, told.saved_bytes, told.figures) == ("", 7, {"files": 3})
        for _ in range(4):
            async with world.serve():
                await anyio.sleep(50)
        assert world.tables["orders"].maintained == 3

    simulated(test)


def test_a_request_for_maintenance_is_answered_once_with_everything_committed_before() -> None:
    async def test(world: World) -> None:
        world.create("orders", ENABLED | {LAKE_PREFIX + "commit.interval.ms": "1000000"})
        async with world.serve():
            await anyio.sleep(1)
            world.upload("orders", 2)
            world.alter("orders", maintenance_request="5")
            await anyio.sleep(1)
            assert world.tables["orders"].rows == [0, 1]
            assert world.tables["orders"].maintained == 1
            told = world.claim("orders").maintained
            assert told is not None
            assert told.request == 5
            world.alter("orders", maintenance_request="4")
            await anyio.sleep(1)
        async with world.serve():
            await anyio.sleep(1)
            assert world.tables["orders"].maintained == 1
            world.alter("orders", maintenance_request="6")
            await anyio.sleep(1)
            assert world.tables["orders"].maintained == 2

    simulated(test)


def test_maintenance_that_fails_is_told_once_and_keeps_no_record_from_the_table() -> None:
    async def test(world: World) -> None:
        world.create("orders", ENABLED | {MAINTENANCE_REQUEST: "1"})
        world.always["maintain", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(5)
            told = world.claim("orders").maintained
            assert told is not None
            assert (told.request, told.reason) == (1, "the catalog is down")
            world.upload("orders", 2)
            await anyio.sleep(10 * INTERVAL_S)
            assert world.tables["orders"].rows == [0, 1]
            assert len(world.times("maintain")) == 1
            assert world.claim("orders").state == "running"

    simulated(test)


def test_a_table_that_stands_is_claimed_once_however_often_it_is_tried() -> None:
    """A claim is a commit of the table, and an entry of metadata."""

    async def test(world: World) -> None:
        world.create("orders")
        world.always["write", "orders"] = DOWN
        world.upload("orders", 1)
        async with world.serve():
            await anyio.sleep(20 * INTERVAL_S)
            assert len(world.times("open")) > 5
            assert len(world.times("claim")) == 1

    simulated(test)


def test_a_table_that_stands_is_maintained_on_its_schedule_and_on_request() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, maintenance_interval_s=1000)
        world.always["write", "orders"] = DOWN
        world.upload("orders", 1)
        async with world.serve():
            await anyio.sleep(20 * INTERVAL_S)
            assert world.tables["orders"].maintained == 0
            world.alter("orders", maintenance_request="1")
            await anyio.sleep(1 + world.settings.retry_max_s)
            told = world.claim("orders").maintained
            assert told is not None
            assert (told.request, told.reason) == (1, "")
            assert world.claim("orders").state == "failed"
            await anyio.sleep(1100)
            assert world.tables["orders"].maintained == 2

    simulated(test)


def test_who_asks_for_maintenance_of_a_table_that_cant_be_opened_is_told_why() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.always["open", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(20 * INTERVAL_S)
            assert world.claim("orders").maintained is None
            world.alter("orders", maintenance_request="3")
            await anyio.sleep(1)
            told = world.claim("orders").maintained
            assert told is not None
            assert (told.request, told.reason) == (3, "the table can't be opened: the catalog is down")
            del world.always["open", "orders"]
            await anyio.sleep(20 * INTERVAL_S)
            assert world.tables["orders"].maintained == 0, "it was answered"

    simulated(test)


def test_maintenance_that_takes_long_keeps_no_other_topics_records_from_their_tables() -> None:
    """One table at a time is maintained; others take records meanwhile, and have their turn after it."""

    async def test(world: World) -> None:
        names = ("a", "b", "c")
        world.maintain_s = 1000
        for name in names:
            world.create(name)
        async with world.serve():
            await anyio.sleep(1)
            for name in names:
                world.alter(name, maintenance_request="1")
            await anyio.sleep(INTERVAL_S)
            began = [name for name in names if world.times("maintain", name)]
            assert len(began) == 1
            for name in names:
                world.upload(name, 2)
            await anyio.sleep(2 * INTERVAL_S)
            assert [name for name in names if world.tables[name].rows] == [
                name for name in names if name not in began
            ]
            await anyio.sleep(3000)
            assert [world.tables[name].maintained for name in names] == [1, 1, 1]
            assert [world.tables[name].rows for name in names] == [[0, 1]] * 3

    simulated(test)


@pytest.mark.parametrize("stands", [False, True])
def test_a_stop_waits_little_for_maintenance_and_commits_what_others_have(*, stands: bool) -> None:
    """It waited for all of ``drain_timeout``, and then for the compactor to leave off: 49 s."""

    async def test(world: World) -> None:
        world.settings = replace(world.settings, stop_timeout_s=1000)
        world.write_s = 5
        if stands:
            world.always["write", "a"] = DOWN
        world.maintain_s = 3600
        for name in ("a", "b"):
            world.create(name)
        world.upload("a", 1)
        async with world.serve():
            await anyio.sleep(INTERVAL_S + 2)
            world.alter("a", maintenance_request="1")
            await anyio.sleep(INTERVAL_S + world.settings.retry_max_s)
            assert world.times("maintain", "a")
            world.upload("b", 2)
            began = world.clock()
        assert world.clock() - began < 10
        assert world.tables["b"].rows == [0, 1]
        assert world.times("left", "a")[-1:] >= world.times("commit", "b")[-1:], (
            "it may end the compactor as a whole"
        )

    simulated(test)


def test_a_table_that_is_full_is_committed_before_its_interval_is_over() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.rows_max, world.read_max = 20, 5
        async with world.serve():
            world.upload("orders", 100)
            await anyio.sleep(1)
            stored = world.tables["orders"]
            assert len(stored.rows) >= 80, "batches that aren't whole wait for the interval"
            assert stored.commits >= 4

    simulated(test)


def test_figures_of_a_strange_compactor_are_told_as_far_as_metadata_can_keep_them() -> None:
    async def test(world: World) -> None:
        world.create("orders", ENABLED | {MAINTENANCE_REQUEST: "1"})
        world.figures = {f"\udcff{n}" + "x" * 1000: 2**70 for n in range(1000)}
        async with world.serve():
            await anyio.sleep(5)
            told = world.claim("orders").maintained
            assert told is not None
            assert Counter(told.figures.values()) == {2**63 - 1: 32}
            assert all(len(name) <= 100 for name in told.figures)

    simulated(test)


def test_what_was_read_is_paid_for_before_more_is() -> None:
    async def test(world: World) -> None:
        throttle = Throttle(100, world.clock)
        began = world.clock()
        for size in (50, 300, 10):
            await throttle.wait()
            throttle.take(size)
        assert world.clock() - began == pytest.approx(3.5)
        free = Throttle(0, world.clock)
        free.take(10**9)
        await free.wait()
        assert world.clock() - began == pytest.approx(3.5)

    simulated(test)
