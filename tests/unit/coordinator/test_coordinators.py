"""Coordinators follow the leadership of partitions: loaded in the background, some at a time, and unloaded."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog, entries, settle
from tests.unit.coordinator.test_group_service import DAMAGED, OFFSET, REQUEST, SETTINGS, TP, Calls, stable

from penstock.coordinator import coordinators as module
from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupSettings, LeaveMember, OffsetAndMetadata, SyncRequest
from penstock.coordinator.placement import partition_for
from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    NewerVersionError,
    PenstockError,
    UnavailableError,
)
from penstock.log.keyed_log import Record
from penstock.wire.error_codes import ErrorCode
from penstock.work.pieces import PORTION
from penstock_conformance.reference._allocator import PlainAllocator

pytestmark = pytest.mark.anyio

LOADING = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
ELSEWHERE = ErrorCode.NOT_COORDINATOR
UNAVAILABLE = ErrorCode.COORDINATOR_NOT_AVAILABLE
#: A group of each partition.
GROUPS = {partition_for(name, 3): name for name in ("a", "b", "c")}
Open: TypeAlias = Callable[..., AbstractAsyncContextManager[GroupService]]


class GatedLog(MemoryLog):
    """Reading waits for a gate of its partition, and fails as told."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[int, anyio.Event] = {}
        self.read_errors: dict[int, PenstockError] = {}
        self.reading: set[int] = set()

    async def read_all(self, partition: int) -> AsyncIterator[Record]:
        self.reading.add(partition)
        try:
            if partition in self.gates:
                await self.gates[partition].wait()
            if partition in self.read_errors:
                raise self.read_errors[partition]
            async for record in super().read_all(partition):
                yield record
        finally:
            self.reading.discard(partition)


class FailingLog(MemoryLog):
    """After some good appends, one fails."""

    good_appends: int | None = None

    async def append(self, partition: int, records: Sequence[Record]) -> int:
        if self.good_appends is not None:
            self.good_appends -= 1
            if self.good_appends < 0:
                self.good_appends = None
                raise UnavailableError("no")
        return await super().append(partition, records)


@pytest.fixture
def log() -> GatedLog:
    return GatedLog()


@pytest.fixture
def allocator() -> PlainAllocator:
    return PlainAllocator(64 * 2**20)


@pytest.fixture
def opened(log: GatedLog, clock: FakeClock, allocator: PlainAllocator) -> Open:
    ids = itertools.count(1)

    @asynccontextmanager
    async def open_service(bounds: GroupSettings = SETTINGS) -> AsyncIterator[GroupService]:
        async with GroupService(log, bounds, clock, lambda: str(next(ids)), allocator) as service:
            yield service

    return open_service


async def filled(log: MemoryLog, clock: FakeClock) -> None:
    """An offset for one group of each partition."""
    async with LedService(log, SETTINGS, clock) as service:
        for name in GROUPS.values():
            assert await service.commit_offsets(name, {TP: OFFSET}) == {TP: ErrorCode.NONE}


async def answers(service: GroupService, group_id: str) -> set[ErrorCode]:
    """What every request about a group is answered with, where that is one error."""
    (described,) = await service.describe([group_id])
    return {
        (await service.join(group_id, REQUEST)).error,
        (await service.sync(group_id, SyncRequest(member_id="m", generation_id=1))).error,
        (await service.leave(group_id, [LeaveMember("m")]))[0],
        *(await service.commit_offsets(group_id, {TP: OFFSET})).values(),
        (await service.fetch_offsets(group_id))[0],
        (await service.delete_offsets(group_id, [TP]))[0],
        *(await service.delete_groups([group_id])).values(),
        described.error,
    }


# -- leading --------------------------------------------------------------------------------------------------


async def test_groups_of_a_partition_that_is_not_led_are_coordinated_elsewhere(opened: Open) -> None:
    async with opened() as service:
        assert await answers(service, "g") == {ELSEWHERE}
        assert await service.heartbeat("g", "m", 1) is ELSEWHERE
        assert not service.coordinates("g")
        assert await service.list_groups() == (ErrorCode.NONE, [])
        service.resign(0)  # harmless


async def test_a_partition_that_is_loading_says_so_and_others_work(
    opened: Open, log: GatedLog, clock: FakeClock
) -> None:
    await filled(log, clock)
    log.gates[0] = anyio.Event()
    async with opened() as service:
        service.lead(0)
        service.lead(1)
        await settle()
        assert await answers(service, GROUPS[0]) == {LOADING}
        assert await service.heartbeat(GROUPS[0], "m", 1) is ErrorCode.NONE, "as in Kafka: no need to rejoin"
        assert service.coordinates(GROUPS[0])
        assert await service.list_groups() == (LOADING, []), "a list would be taken for all there is"
        assert (await service.fetch_offsets(GROUPS[1], [TP]))[1][TP] is not None
        assert (await service.fetch_offsets(GROUPS[2], [TP]))[0] is ELSEWHERE
        statistics = service.statistics()
        assert (statistics.loading_partitions, statistics.active_partitions) == (1, 1)
        log.gates[0].set()
        await service.wait_loaded()
        assert (await service.fetch_offsets(GROUPS[0], [TP]))[1][TP] is not None
        assert {one.group_id for one in (await service.list_groups())[1]} == {GROUPS[0], GROUPS[1]}
        service.lead(0)  # once more changes nothing
        assert service.statistics().active_partitions == 2


async def test_loads_in_parallel_are_bounded(opened: Open, log: GatedLog) -> None:
    log.gates = {partition: anyio.Event() for partition in range(3)}
    async with opened(replace(SETTINGS, load_concurrency=2)) as service:
        for partition in range(3):
            service.lead(partition)
        await settle()
        assert len(log.reading) == 2
        for gate in log.gates.values():
            gate.set()
        await service.wait_loaded()
        assert service.statistics().active_partitions == 3


async def test_offsets_of_topics_that_are_deleted_during_a_load_go_after_it(
    opened: Open, log: GatedLog, clock: FakeClock
) -> None:
    await filled(log, clock)
    log.gates[0] = anyio.Event()
    async with opened() as service, anyio.create_task_group() as tasks:
        service.lead(0)
        calls = Calls(tasks)
        calls.start("deleted", service.on_topics_deleted(["t"]))
        await settle()
        assert calls.results == {}
        log.gates[0].set()
        await settle()
        assert "deleted" in calls.results
        assert await service.fetch_offsets(GROUPS[0]) == (ErrorCode.NONE, {})


async def test_a_topic_that_is_made_during_a_load_begins_without_the_offsets_of_another_of_its_name(
    opened: Open, log: GatedLog, clock: FakeClock
) -> None:
    """That one was deleted before, and who deleted it was killed; what is committed elsewhere meanwhile stays."""
    await filled(log, clock)
    await clock.advance(1_000)
    log.gates[0] = anyio.Event()
    async with opened() as service:
        service.lead(0)
        service.lead(1)
        await settle()
        service.on_topic_created("t")
        await service.commit_offsets(GROUPS[1], {TP: OFFSET})
        log.gates[0].set()
        await service.wait_loaded()
        assert await service.fetch_offsets(GROUPS[0]) == (ErrorCode.NONE, {})
        await settle()
        await service.commit_offsets(GROUPS[0], {("t", 1): OFFSET})
        service.on_topic_created("t")  # nothing is being loaded any more
        service.lead(2)
        await service.wait_loaded()
    async with LedService(log, SETTINGS, clock) as service:
        for partition, expected in enumerate(({("t", 1)}, {TP}, {TP})):
            assert set((await service.fetch_offsets(GROUPS[partition]))[1]) == expected


async def test_topics_that_come_and_go_during_a_load_are_remembered_while_they_are_there(
    opened: Open, log: GatedLog, clock: FakeClock
) -> None:
    """A load may be put off for hours, and names are what clients make of them."""
    await filled(log, clock)
    log.gates[0] = anyio.Event()
    async with opened() as service, anyio.create_task_group() as tasks:
        service.lead(0)
        await settle()
        calls = Calls(tasks)
        for name in ("t", "u"):
            service.on_topic_created(name)
        calls.start("deleted", service.on_topics_deleted(["t"]))
        await settle()
        assert set(service._made_meanwhile) == {"u"}
        log.gates[0].set()
        await settle()
        assert "deleted" in calls.results
        assert await service.fetch_offsets(GROUPS[0]) == (ErrorCode.NONE, {})


async def test_a_topic_that_another_broker_makes_again_keeps_its_offsets_while_its_predecessor_is_forgotten(
    opened: Open, log: GatedLog, clock: FakeClock
) -> None:
    await filled(log, clock)
    await clock.advance(1_000)
    log.gates[0] = anyio.Event()
    async with opened() as service, anyio.create_task_group() as tasks:
        service.lead(0)
        service.lead(1)
        calls = Calls(tasks)
        calls.start("deleted", service.on_topics_deleted(["t"]))
        await clock.advance(1_000)
        assert await service.fetch_offsets(GROUPS[1]) == (ErrorCode.NONE, {}), (
            "nobody is told of them any more"
        )
        service.on_topic_created("t")
        await service.commit_offsets(GROUPS[1], {TP: OFFSET})
        log.gates[0].set()
        await settle()
        assert "deleted" in calls.results
        assert not service.is_forgetting("t")
        assert set((await service.fetch_offsets(GROUPS[1]))[1]) == {TP}
        assert await service.fetch_offsets(GROUPS[0]) == (ErrorCode.NONE, {})


# -- loads that fail ------------------------------------------------------------------------------------------


async def test_a_log_that_cannot_be_read_now_is_tried_again(
    opened: Open, log: GatedLog, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(log, clock)
    monkeypatch.setattr(module, "_RETRY_PAUSES_S", (0.0,))
    log.read_errors[0] = UnavailableError("not now")
    async with opened() as service:
        service.lead(0)
        with pytest.raises(UnavailableError, match="not now"):
            await service.wait_loaded()
        assert (await service.fetch_offsets(GROUPS[0]))[0] is LOADING
        with pytest.raises(UnavailableError, match="not now"):
            await service.on_topics_deleted(["u"])
        del log.read_errors[0]
        while (await service.fetch_offsets(GROUPS[0]))[0] is LOADING:
            await settle()
        await service.wait_loaded()
        assert set((await service.fetch_offsets(GROUPS[0]))[1]) == {TP}


async def test_a_partition_that_is_found_damaged_once_it_can_be_read_keeps_no_name_of_a_deleted_topic(
    opened: Open, log: GatedLog, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_PAUSES_S", (0.0,))
    log.read_errors[0] = UnavailableError("not now")
    async with opened() as service:
        service.lead(0)
        with pytest.raises(UnavailableError, match="not now"):
            await service.on_topics_deleted(["t"])
        assert service.is_forgetting("t")
        log.read_errors[0] = CorruptError("damaged")
        while not service.statistics().damaged_partitions:
            await settle()
        await service.wait_loaded()
        await clock.advance(60_000)
        assert not service.is_forgetting("t")


@pytest.mark.parametrize("error", [ClosedError("closed"), FencedError("another owner")])
async def test_a_partition_that_closes_during_its_load_is_coordinated_elsewhere(
    opened: Open, log: GatedLog, error: PenstockError
) -> None:
    log.read_errors[0] = error
    async with opened() as service:
        service.lead(0)
        await settle()
        assert await answers(service, GROUPS[0]) == {ELSEWHERE}
        del log.read_errors[0]
        service.lead(0)
        await service.wait_loaded()
        assert service.statistics().active_partitions == 1


async def test_a_damaged_partition_is_loaded_anew_when_it_is_led_again(
    opened: Open, log: GatedLog, clock: FakeClock, allocator: PlainAllocator
) -> None:
    await filled(log, clock)
    log.ends[0] += 1
    log.records[0].append((log.ends[0], DAMAGED))
    async with opened() as service:
        service.lead(0)
        await service.wait_loaded()
        assert await answers(service, GROUPS[0]) == {UNAVAILABLE}
        assert not service.coordinates(GROUPS[0])
        assert service.statistics().damaged_partitions == 1
        assert allocator.statistics().used_bytes == 0, "what was loaded before the damage is given back"
        log.records[0].pop()  # mended
        service.lead(0)
        await service.wait_loaded()
        assert set((await service.fetch_offsets(GROUPS[0]))[1]) == {TP}
        service.resign(0)
        assert service.statistics().damaged_partitions == 0


async def test_a_newer_version_ends_a_broker_that_runs(opened: Open, log: GatedLog) -> None:
    """A partition may come later: its records are of no older broker."""
    await log.append(0, [(b"\x00\x09later", b"\x00\x07value")])

    async def live() -> None:
        async with opened() as service:
            service.lead(1)
            await service.wait_loaded()
            service.lead(0)
            await anyio.sleep_forever()

    with pytest.raises(NewerVersionError, match="version=9 known=2"):
        await live()


# -- resigning ------------------------------------------------------------------------------------------------


async def park(service: GroupService, calls: Calls, clock: FakeClock, group_id: str) -> None:
    """A commit that waits for the log, and a JoinGroup that waits for others."""
    calls.start("join", service.join(group_id, REQUEST))
    calls.start("commit", service.commit_offsets(group_id + "-", {TP: OFFSET}))
    await settle()


async def test_resigning_answers_who_waits_and_gives_all_memory_back(
    opened: Open, log: GatedLog, clock: FakeClock, allocator: PlainAllocator
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        for partition in range(3):
            service.lead(partition)
        await service.wait_loaded()
        calls = Calls(tasks)
        other, group_id = GROUPS[1], GROUPS[0]
        member = await stable(service, clock, other)
        kept = service.statistics().memory.used_bytes
        await stable(service, clock, group_id)
        calls.start("join", service.join(group_id, replace(REQUEST, protocols=(("range", b"other"),))))
        await settle()
        assert service.statistics().parked_requests == 1
        service.resign(0)
        assert await answers(service, group_id) == {ELSEWHERE}, "from this moment on"
        await settle()
        assert calls.results["join"].error is ELSEWHERE
        assert service.statistics().memory.used_bytes == kept
        assert len(service._timers._heaps) == 2, "those of the other partition and of the check stay"
        assert await service.heartbeat(other, member, 1) is ErrorCode.NONE
        await clock.advance(SETTINGS.max_session_timeout_ms)
        assert service.statistics().active_partitions == 2
    assert allocator.statistics().used_bytes == 0


async def test_what_is_being_appended_ends_before_the_partition_is_loaded_again(
    opened: Open, log: GatedLog, clock: FakeClock
) -> None:
    """Else the new coordinator would not know of it, and something older could come after something newer."""
    group_id = GROUPS[0]
    async with opened() as service, anyio.create_task_group() as tasks:
        service.lead(0)
        await service.wait_loaded()
        calls = Calls(tasks)
        log.gate = anyio.Event()
        calls.start("first", service.commit_offsets(group_id, {TP: OffsetAndMetadata(1)}))
        await settle()
        calls.start("second", service.commit_offsets(group_id, {TP: OffsetAndMetadata(2)}))
        await settle()
        service.resign(0)
        service.lead(0)
        service.resign(0)
        service.lead(0)
        await settle()
        assert calls.results == {"second": {TP: ELSEWHERE}}
        assert (await service.fetch_offsets(group_id))[0] is LOADING
        log.gate.set()
        await service.wait_loaded()
        await settle()
        assert calls.results["first"] == {TP: ErrorCode.NONE}
        _, offsets = await service.fetch_offsets(group_id, [TP])
        committed = offsets[TP]
        assert committed is not None
        assert committed.offset == 1


async def test_resigning_ends_a_load(opened: Open, log: GatedLog, allocator: PlainAllocator) -> None:
    log.gates[0] = anyio.Event()
    async with opened() as service:
        service.lead(0)
        await settle()
        service.resign(0)
        assert await answers(service, GROUPS[0]) == {ELSEWHERE}
        await settle()
        assert log.reading == set()
        assert service.statistics().loading_partitions == 0
        assert allocator.statistics().used_bytes == 0


async def test_members_and_offsets_move_with_the_partition(log: GatedLog, clock: FakeClock) -> None:
    """Two brokers, one log: the second leads what the first resigns."""
    group_id = GROUPS[0]
    async with LedService(log, SETTINGS, clock) as first, GroupService(log, SETTINGS, clock) as second:
        member = await stable(first, clock, group_id)
        await first.commit_offsets(group_id, {TP: OFFSET}, member_id=member, generation_id=1)
        first.resign(0)
        await settle()
        second.lead(0)
        await second.wait_loaded()
        assert await first.heartbeat(group_id, member, 1) is ELSEWHERE
        assert await second.heartbeat(group_id, member, 1) is ErrorCode.NONE
        assert set((await second.fetch_offsets(group_id))[1]) == {TP}


@pytest.mark.parametrize("is_failing", [False, True])
async def test_offsets_of_topics_that_are_gone_when_groups_are_loaded_are_removed(
    log: GatedLog, clock: FakeClock, is_failing: bool
) -> None:
    """Who deleted them was killed, or stopped, before that was written; a topic that gets such a name begins anew."""
    group_id = GROUPS[0]
    async with LedService(log, SETTINGS, clock) as service:
        await service.commit_offsets(group_id, {TP: OFFSET, ("gone", 0): OFFSET})
    async with LedService(log, SETTINGS, clock, has_topic=lambda name: name != "gone") as service:
        log.error = UnavailableError("no") if is_failing else None
        await settle()
        log.error = None
        if is_failing:
            await clock.advance(1_000)
        assert set((await service.fetch_offsets(group_id))[1]) == {TP}
    async with LedService(log, SETTINGS, clock) as service:
        assert set((await service.fetch_offsets(group_id))[1]) == {TP}


async def test_counters_go_on_when_partitions_go(opened: Open, clock: FakeClock) -> None:
    async with opened() as service:
        service.lead(0)
        await service.wait_loaded()
        await service.commit_offsets(GROUPS[0], {TP: OFFSET})
        assert service.statistics().appends == 1
        service.resign(0)
        await settle()
        assert service.statistics().appends == 1


# -- sets that are cut ----------------------------------------------------------------------------------------


async def test_a_group_that_is_half_deleted_is_there_and_can_be_deleted_again(clock: FakeClock) -> None:
    """Its offsets go in several sets, its own tombstone last; memory says what the log says at each step."""
    offsets = {("t", number): OFFSET for number in range(20)}
    failing = FailingLog()
    bounds = replace(SETTINGS, append_bytes_max=80)
    async with LedService(failing, bounds, clock) as service:
        await service.commit_offsets("g", offsets)
        failing.good_appends = 2
        assert await service.delete_groups(["g"]) == {"g": UNAVAILABLE}
        left = set((await service.fetch_offsets("g"))[1])
        assert 0 < len(left) < 20
    async with LedService(failing, bounds, clock) as service:
        assert set((await service.fetch_offsets("g"))[1]) == left
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.NONE}
        assert failing.live() == {}


@pytest.mark.parametrize("of_topic", [False, True])
async def test_offsets_that_are_left_when_their_partition_goes_are_not_told_to_be_gone(
    opened: Open, log: GatedLog, of_topic: bool
) -> None:
    """Of a deletion that takes several appends, those after the one that was on its way."""
    offsets = {("t", number): OFFSET for number in range(9)}
    async with opened(replace(SETTINGS, append_bytes_max=60)) as service, anyio.create_task_group() as tasks:
        service.lead(0)
        await service.wait_loaded()
        await service.commit_offsets(GROUPS[0], offsets)
        log.gate = anyio.Event()
        calls = Calls(tasks)
        if of_topic:
            calls.start("deleted", refusal_of(service.on_topics_deleted(["t"])))
        else:
            calls.start("deleted", service.delete_offsets(GROUPS[0], list(offsets)))
        await settle()
        service.resign(0)
        await settle()
        log.gate.set()
        await settle()
        result = calls.results["deleted"]
        service.lead(0)
        await service.wait_loaded()
        left = dict(entries(service)[GROUPS[0]].group.offsets.items())
        assert 0 < len(left) < len(offsets)
        if of_topic:
            assert "groups=1" in result
        else:
            assert {one: error for one, error in result[1].items() if error is not ErrorCode.NONE} == (
                dict.fromkeys(left, ELSEWHERE)
            )


async def refusal_of(call: Awaitable[object]) -> str:
    with pytest.raises(UnavailableError) as raised:
        await call
    return str(raised.value)


async def test_members_of_a_partition_that_goes_while_they_leave_look_for_their_coordinator(
    opened: Open, clock: FakeClock
) -> None:
    """UNKNOWN_MEMBER_ID would say that the others have left."""
    async with opened() as service, anyio.create_task_group() as tasks:
        service.lead(0)
        await service.wait_loaded()
        await stable(service, clock, GROUPS[0])
        calls = Calls(tasks)
        members = [LeaveMember(str(number)) for number in range(10 * PORTION)]
        calls.start("leave", service.leave(GROUPS[0], members))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        assert not calls.results, "they take their turns"
        service.resign(0)
        await settle()
        assert calls.results["leave"] == (ELSEWHERE, [])


async def test_a_stop_answers_also_who_waits_for_a_partition_that_is_just_being_unloaded(
    opened: Open,
) -> None:
    """Groups are closed some at a time; the stop comes in between."""
    names = [name for name in map(str, range(300)) if partition_for(name, 3) == 0]
    assert len(names) > 60
    async with anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        async with opened() as service:
            service.lead(0)
            await service.wait_loaded()
            for name in names:
                calls.start(name, service.join(name, REQUEST))
            await settle()
            service.resign(0)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            assert not all(name in calls.results for name in names)
        await settle()
        tasks.cancel_scope.cancel()
    assert {name: result.error for name, result in calls.results.items()} == dict.fromkeys(names, ELSEWHERE)


async def test_a_bug_in_an_answer_keeps_nobody_waiting_when_the_service_ends(
    opened: Open, log: GatedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve_until_told() -> None:
        async with opened() as service:
            for partition in range(3):
                service.lead(partition)
            await service.wait_loaded()
            log.gate = anyio.Event()
            for partition in range(3):
                calls.start(f"join {partition}", service.join(f"j{GROUPS[partition]}", REQUEST))
                for number in range(2):  # the second one waits
                    commit = service.commit_offsets(GROUPS[partition], {TP: OffsetAndMetadata(number)})
                    calls.start(f"commit {partition} {number}", commit)
                    await settle()
            settle_commit = Group.settle_commit

            def fail(group: Group, *args: Any, durable: bool) -> None:
                settle_commit(group, *args, durable=durable)
                if group.group_id == GROUPS[0]:
                    raise RuntimeError("a bug")

            monkeypatch.setattr(Group, "settle_commit", fail)

    async with anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        with pytest.raises((RuntimeError, ExceptionGroup)):
            await serve_until_told()
        await settle()
        tasks.cancel_scope.cancel()
    answered = {name for name in calls.results if "join" in name}
    assert answered == {"join 0", "join 1", "join 2"}
    others = {f"commit {partition} {number}" for partition in (1, 2) for number in range(2)}
    assert others <= set(calls.results)


# -- memory and log -------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=examples(60))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "stable",
                    "stable",
                    "commit",
                    "commit",
                    "forget",
                    "topics",
                    "leave",
                    "delete",
                    "fail",
                    "move",
                ]
            ),
            st.integers(0, 2),
            st.integers(1, 5),
        ),
        min_size=5,
        max_size=25,
    )
)
def test_memory_says_what_the_log_says_after_any_history(steps: list[tuple[str, int, int]]) -> None:
    """With sets that are cut, checkpoints, appends that fail in between, and partitions that go and come back."""
    anyio.run(_history, steps)


async def _history(steps: list[tuple[str, int, int]]) -> None:
    log, clock, ids = FailingLog(), FakeClock(), itertools.count(1)
    bounds = replace(SETTINGS, append_bytes_max=90, checkpoint_records=12)
    async with LedService(log, bounds, clock, lambda: str(next(ids))) as service:
        for step, which, size in steps:
            group_id = GROUPS[which]
            (described,) = await service.describe([group_id])
            members = [one.member_id for one in described.members]
            offsets = {
                ("t" if number % 2 else "u", number): OffsetAndMetadata(size) for number in range(size)
            }
            if step == "stable" and not members:
                await stable(service, clock, group_id)
            elif step == "commit" and not members:
                await service.commit_offsets(group_id, offsets)
            elif step == "forget":
                await service.delete_offsets(group_id, [("u", 0), ("t", 1), ("u", 2)])
            elif step == "topics" and log.good_appends is None:
                await service.on_topics_deleted(["u"])
            elif step == "leave" and members:
                await service.leave(group_id, [LeaveMember(members[0])])
            elif step == "delete":
                await service.delete_groups([group_id])
            elif step == "fail":
                log.good_appends = size  # one of those after them fails
            elif step == "move":
                service.resign(which)
                service.lead(which)
                await service.wait_loaded()
            await settle()
            for coordinator in service._coordinators.active():
                newest = {key: value for _, (key, value) in log.records[coordinator.partition]}
                said = {key: value for key, value in newest.items() if value is not None}
                assert dict(coordinator.live()) == said


async def test_leaving_with_very_many_members_gives_a_result_for_each(
    log: GatedLog, clock: FakeClock
) -> None:
    async with LedService(log, SETTINGS, clock) as service:
        member = await stable(service, clock, "g")
        named = [*(LeaveMember(f"ghost-{number}") for number in range(249)), LeaveMember(member)]
        error, results = await service.leave("g", named)
        assert error is ErrorCode.NONE
        assert [one.member_id for one in results] == [one.member_id for one in named]
        assert [one.error for one in results] == [ErrorCode.UNKNOWN_MEMBER_ID] * 249 + [ErrorCode.NONE]
        (described,) = await service.describe(["g"])
        assert str(described.state) == "Empty"


async def test_very_many_groups_are_deleted_with_one_result_each(log: GatedLog, clock: FakeClock) -> None:
    async with LedService(log, SETTINGS, clock) as service:
        names = [f"g{number}" for number in range(120)]
        for name in names:
            await service.commit_offsets(name, {TP: OFFSET})
        results = await service.delete_groups([*names, "none", names[0]])
        assert results == {**dict.fromkeys(names, ErrorCode.NONE), "none": ErrorCode.GROUP_ID_NOT_FOUND}
        assert log.live() == {}
