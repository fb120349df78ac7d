"""The group service: waiters, timers, write-through, checkpoints, shutdown."""

from __future__ import annotations

import itertools
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from tests.patience import HANG_S
from tests.unit.coordinator.conftest import LedService

from penstock.coordinator.group_coordinator import GroupCoordinator
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import (
    CommittedOffset,
    GroupSettings,
    GroupState,
    JoinRequest,
    JoinResult,
    LeaveMember,
    OffsetAndMetadata,
    SyncRequest,
    SyncResult,
    TopicPartition,
)
from penstock.coordinator.placement import partition_for
from penstock.coordinator.records import encode_group_key
from penstock.coordinator.timers import TimerHeap
from penstock.coordinator.waiting import SystemClock
from penstock.errors import FencedError, NewerVersionError, UnavailableError
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio

SETTINGS = GroupSettings()
SUBSCRIPTION = struct.pack(">hih", 0, 1, 1) + b"t" + struct.pack(">i", -1)
REQUEST = JoinRequest(
    member_id="",
    client_id="client",
    client_host="/127.0.0.1",
    session_timeout_ms=10_000,
    rebalance_timeout_ms=60_000,
    protocol_type="consumer",
    protocols=(("range", SUBSCRIPTION),),
)
OFFSET = OffsetAndMetadata(42, 1, "note")
TP: TopicPartition = ("t", 0)


class Clock(Protocol):
    def now_ms(self) -> int: ...
    async def wait(self, event: anyio.Event, delay_ms: int | None) -> None: ...
    async def advance(self, ms: int) -> None: ...


Log: TypeAlias = Any
Open: TypeAlias = Callable[..., AbstractAsyncContextManager[GroupService]]


@pytest.fixture
def opened(log: Log, clock: Clock) -> Open:
    """Opens a service on the same log and clock, as often as one likes."""
    ids = itertools.count(1)

    @asynccontextmanager
    async def open_service(settings: GroupSettings = SETTINGS) -> AsyncIterator[GroupService]:
        async with LedService(log, settings, clock, lambda: str(next(ids))) as service:
            yield service

    return open_service


async def settle() -> None:
    """Let every task run until it waits; what these tests wait for is at most some steps away."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


class Calls:
    """Runs calls next to the test and keeps their results."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self.results: dict[str, Any] = {}

    def start(self, name: str, call: Coroutine[Any, Any, Any]) -> None:
        async def run() -> None:
            self.results[name] = await call

        self._tasks.start_soon(run)


async def stable(service: GroupService, clock: Clock, group_id: str = "g", **changes: Any) -> str:
    """A stable group of one member; returns the member id."""
    joined: list[JoinResult] = []

    async def join() -> None:
        joined.append(await service.join(group_id, replace(REQUEST, **changes)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(join)
        await settle()
        await clock.advance(SETTINGS.initial_rebalance_delay_ms)
    member = joined[0].member_id
    synced = await service.sync(
        group_id,
        SyncRequest(member_id=member, generation_id=joined[0].generation_id, assignments={member: b"all"}),
    )
    assert synced.assignment == b"all"
    return member


# -- membership -----------------------------------------------------------------------------------------------


async def test_members_join_sync_and_expire_by_the_clock(opened: Open, clock: Clock) -> None:
    async with opened() as service:
        member = await stable(service, clock)
        assert member == "client-1"
        assert await service.heartbeat("g", member, 1) is ErrorCode.NONE
        await clock.advance(9_999)
        assert await service.heartbeat("g", member, 1) is ErrorCode.NONE
        await clock.advance(10_000)
        assert await service.heartbeat("g", member, 1) is ErrorCode.UNKNOWN_MEMBER_ID
        (described,) = await service.describe(["g"])
        assert described.state is GroupState.EMPTY


async def test_two_members_share_a_generation(opened: Open, clock: Clock) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        calls.start("a", service.join("g", REQUEST))
        calls.start("b", service.join("g", replace(REQUEST, group_instance_id="i")))
        await settle()
        await clock.advance(2 * SETTINGS.initial_rebalance_delay_ms)
        a, b = calls.results["a"], calls.results["b"]
        assert {a.generation_id, b.generation_id} == {1}
        assert b.member_id == "i-2"
        calls.start("sync b", service.sync("g", SyncRequest(member_id=b.member_id, generation_id=1)))
        await settle()
        assert "sync b" not in calls.results
        leader = SyncRequest(member_id=a.member_id, generation_id=1, assignments={b.member_id: b"B"})
        await service.sync("g", leader)
        await settle()
        assert calls.results["sync b"].assignment == b"B"


async def test_a_cancelled_join_leaves_its_member_until_it_expires(opened: Open, clock: Clock) -> None:
    async with opened() as service:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.join, "g", REQUEST)
            await settle()
            tasks.cancel_scope.cancel()
        assert service.statistics().members == 1
        await clock.advance(SETTINGS.initial_rebalance_delay_ms + REQUEST.session_timeout_ms)
        assert service.statistics().members == 0


async def test_a_group_that_never_was_is_forgotten_at_the_next_look_at_what_has_expired(
    opened: Open, clock: Clock, log: Log
) -> None:
    """Until then it is there, as in Kafka, and can be deleted; nothing of it is ever written."""
    async with opened() as service:
        assert (await service.join("g", replace(REQUEST, session_timeout_ms=1))).error == 26
        assert service.statistics().groups == 0
        result = await service.join("g", replace(REQUEST, require_known_member_id=True))
        assert result.error is ErrorCode.MEMBER_ID_REQUIRED
        assert (await service.join("h", replace(REQUEST, protocols=()))).error == 23
        assert (await service.join("i", replace(REQUEST, protocols=()))).error == 23
        await clock.advance(REQUEST.session_timeout_ms)
        described = await service.describe(["g", "h"])
        assert [one.state for one in described] == [GroupState.EMPTY] * 2
        await clock.advance(SETTINGS.offsets_retention_check_interval_ms)
        assert service.statistics().groups == 0
        assert not any(log.records)
        assert await service.delete_groups(["i"]) == {"i": ErrorCode.GROUP_ID_NOT_FOUND}


async def test_a_group_that_lost_its_last_offset_is_empty_until_it_expires(
    opened: Open, clock: Clock
) -> None:
    async with opened() as service:
        await service.commit_offsets("g", {TP: OFFSET})
        assert await service.delete_offsets("g", [TP]) == (ErrorCode.NONE, {TP: ErrorCode.NONE})
        assert [one.state for one in await service.describe(["g"])] == [GroupState.EMPTY]
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.NONE}
        await service.commit_offsets("g", {TP: OFFSET})
        await service.delete_offsets("g", [TP])
        await clock.advance(SETTINGS.offsets_retention_check_interval_ms)
        assert service.statistics().groups == 0


async def test_what_an_unknown_group_answers(opened: Open) -> None:
    unknown = ErrorCode.UNKNOWN_MEMBER_ID
    async with opened() as service:
        assert (await service.join("g", replace(REQUEST, member_id="m"))).error is unknown
        assert (await service.sync("g", SyncRequest(member_id="m", generation_id=1))).error is unknown
        assert await service.heartbeat("g", "m", 1) is unknown
        error, (left,) = await service.leave("g", [LeaveMember("m")])
        assert (error, left.error) == (ErrorCode.NONE, unknown)
        (described,) = await service.describe(["g"])
        assert (described.state, described.error) == (GroupState.DEAD, ErrorCode.GROUP_ID_NOT_FOUND)
        assert await service.fetch_offsets("g", [TP]) == (ErrorCode.NONE, {TP: None})
        assert await service.fetch_offsets("g") == (ErrorCode.NONE, {})
        assert await service.delete_offsets("g", [TP]) == (ErrorCode.GROUP_ID_NOT_FOUND, {})
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.GROUP_ID_NOT_FOUND}
        assert await service.commit_offsets("g", {TP: OFFSET}, member_id="m", generation_id=1) == {
            TP: ErrorCode.GROUP_ID_NOT_FOUND
        }
        assert service.statistics().groups == 0


async def test_an_empty_group_id_can_have_offsets_but_no_members(opened: Open) -> None:
    async with opened() as service:
        assert (await service.join("", REQUEST)).error is ErrorCode.INVALID_GROUP_ID
        assert await service.heartbeat("", "m", 1) is ErrorCode.INVALID_GROUP_ID
        assert await service.commit_offsets("", {TP: OFFSET}) == {TP: ErrorCode.NONE}


async def test_names_that_do_not_fit_into_a_record_are_refused(opened: Open) -> None:
    async with opened() as service:
        long = "x" * 32_768
        assert (await service.join(long, REQUEST)).error is ErrorCode.INVALID_GROUP_ID
        for change in ({"group_instance_id": long}, {"protocol_type": long}, {"protocols": ((long, b""),)}):
            result = await service.join("g", replace(REQUEST, **change))
            assert result.error is ErrorCode.INVALID_REQUEST


# -- offsets --------------------------------------------------------------------------------------------------


async def test_a_commit_is_acknowledged_and_visible_only_when_durable(opened: Open, log: Log) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        log.gate = anyio.Event()
        calls.start("commit", service.commit_offsets("g", {TP: OFFSET}))
        await settle()
        assert "commit" not in calls.results
        assert (await service.fetch_offsets("g", [TP]))[1] == {TP: None}
        log.gate.set()
        await settle()
        assert calls.results["commit"] == {TP: ErrorCode.NONE}
        _, offsets = await service.fetch_offsets("g", [TP])
        assert offsets == {TP: CommittedOffset(42, 1, "note", 1_000_000)}


async def test_a_failed_commit_changes_nothing(opened: Open, log: Log) -> None:
    async with opened() as service:
        await service.commit_offsets("g", {TP: OFFSET})
        log.error = UnavailableError("no")
        refused = await service.commit_offsets("g", {TP: OffsetAndMetadata(99)})
        assert refused == {TP: ErrorCode.COORDINATOR_NOT_AVAILABLE}
        log.error = FencedError("other owner")
        refused = await service.commit_offsets("g", {TP: OffsetAndMetadata(99)})
        assert refused == {TP: ErrorCode.NOT_COORDINATOR}
        log.error = None
        _, offsets = await service.fetch_offsets("g")
        assert [one.offset for one in offsets.values() if one is not None] == [42]
        assert service.statistics().append_failures == 2


async def test_commits_that_wait_together_are_written_together(opened: Open, log: Log) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        log.gate = anyio.Event()
        for number in range(10):
            calls.start(str(number), service.commit_offsets("g", {TP: OffsetAndMetadata(number)}))
            await settle()
        log.gate.set()
        await settle()
        assert log.batches == [1, 9]
        _, offsets = await service.fetch_offsets("g", [TP])
        committed = offsets[TP]
        assert committed is not None
        assert committed.offset == 9, "the last one that was sent wins"


async def test_one_append_is_bounded_but_takes_at_least_one_record(opened: Open, log: Log) -> None:
    size = 40  # of one commit, roughly
    async with (
        opened(replace(SETTINGS, append_bytes_max=4 * size)) as service,
        anyio.create_task_group() as tasks,
    ):
        calls = Calls(tasks)
        for number in range(9):
            calls.start(str(number), service.commit_offsets("g", {TP: OffsetAndMetadata(number)}))
        await settle()
        assert sum(log.batches) == 9
        assert 1 < max(log.batches) <= 4
        log.batches.clear()
        await service.commit_offsets("g", {("t", index): OFFSET for index in range(50)})
        assert sum(log.batches) == 50
        assert 1 < max(log.batches) <= 5
        await service.commit_offsets("g", {TP: OffsetAndMetadata(1, 1, "x" * 500)})
        assert log.batches[-1] == 1


async def test_a_cancelled_commit_that_lands_is_visible(opened: Open, log: Log) -> None:
    """Memory and log must agree, whether or not the client still waits."""
    async with opened() as service:
        log.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.commit_offsets, "g", {TP: OFFSET})
            await settle()
            tasks.cancel_scope.cancel()
        log.gate.set()
        await settle()
        _, offsets = await service.fetch_offsets("g", [TP])
        assert offsets[TP] is not None


async def test_too_many_waiting_writes_are_refused_as_retriable(opened: Open, log: Log) -> None:
    async with opened(replace(SETTINGS, pending_writes_max=1)) as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        log.gate = anyio.Event()
        for number in range(3):
            calls.start(str(number), service.commit_offsets("g", {TP: OffsetAndMetadata(number)}))
            await settle()
        assert calls.results == {"2": {TP: ErrorCode.COORDINATOR_NOT_AVAILABLE}}
        log.gate.set()


async def test_oversized_metadata_is_refused_next_to_good_partitions(opened: Open) -> None:
    async with opened() as service:
        result = await service.commit_offsets(
            "g", {TP: OFFSET, ("t", 1): OffsetAndMetadata(1, -1, "x" * 5000)}
        )
        assert result == {TP: ErrorCode.NONE, ("t", 1): ErrorCode.OFFSET_METADATA_TOO_LARGE}
        assert set((await service.fetch_offsets("g"))[1]) == {TP}


async def test_a_commit_makes_a_group_with_its_first_offset_also_a_refused_one(opened: Open) -> None:
    async with opened() as service:
        assert await service.commit_offsets("g", {}) == {}
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.GROUP_ID_NOT_FOUND}
        refused = {TP: ErrorCode.OFFSET_METADATA_TOO_LARGE}
        assert await service.commit_offsets("g", {TP: OffsetAndMetadata(1, -1, "m" * 5_000)}) == refused
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.NONE}


async def test_an_id_that_was_given_out_leaves_once(opened: Open) -> None:
    async with opened() as service:
        given = await service.join("g", replace(REQUEST, require_known_member_id=True))
        _, results = await service.leave("g", [LeaveMember(given.member_id, name) for name in ("a", "b")])
        assert [one.error for one in results] == [ErrorCode.NONE, ErrorCode.UNKNOWN_MEMBER_ID]


async def test_deleting_offsets_spares_subscribed_topics(opened: Open, clock: Clock) -> None:
    async with opened() as service:
        member = await stable(service, clock)
        offsets = {TP: OFFSET, ("old", 0): OFFSET}
        await service.commit_offsets("g", offsets, member_id=member, generation_id=1)
        error, errors = await service.delete_offsets("g", [TP, ("old", 0), ("never", 0)])
        assert error is ErrorCode.NONE
        assert errors == {
            TP: ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC,
            ("old", 0): ErrorCode.NONE,
            ("never", 0): ErrorCode.NONE,
        }
        assert set((await service.fetch_offsets("g"))[1]) == {TP}


async def test_offsets_of_deleted_topics_go(opened: Open, log: Log) -> None:
    async with opened() as service:
        for group_id in ("a", "b", "c"):
            await service.commit_offsets(group_id, {TP: OFFSET, ("keep", 0): OFFSET})
        await service.commit_offsets("only", {TP: OFFSET})
        await service.on_topics_deleted(["t"])
        for group_id in ("a", "b", "c"):
            assert set((await service.fetch_offsets(group_id))[1]) == {("keep", 0)}
        log.error = UnavailableError("no")
        with pytest.raises(UnavailableError, match="groups=3"):
            await service.on_topics_deleted(["keep"])
        log.error = None
    async with opened() as service:
        assert set((await service.fetch_offsets("a"))[1]) == {("keep", 0)}


async def test_offsets_of_deleted_topics_that_cannot_be_removed_go_later(
    opened: Open, log: Log, clock: Clock
) -> None:
    """A topic that is made anew with that name would begin with them; what is committed for it stays."""
    async with opened() as service:
        for group_id in ("a", "b", "c"):
            await service.commit_offsets(group_id, {TP: OFFSET, ("t", 1): OFFSET, ("keep", 0): OFFSET})
        await clock.advance(1)
        log.error = UnavailableError("no")
        with pytest.raises(UnavailableError, match="groups=3"):
            await service.on_topics_deleted(["t"])
        await clock.advance(1_000)
        log.error = None
        assert set((await service.fetch_offsets("a"))[1]) == {("keep", 0)}, "nobody is told of them any more"
        await service.commit_offsets("a", {TP: OFFSET})
        assert set((await service.fetch_offsets("a", [TP, ("t", 1)]))[1].values()) > {None}
        assert service.is_forgetting("t")
        await clock.advance(60_000)
        assert set((await service.fetch_offsets("a"))[1]) == {TP, ("keep", 0)}
        assert set((await service.fetch_offsets("b"))[1]) == {("keep", 0)}
        assert not service.is_forgetting("t")
        appends = service.statistics().appends
        await clock.advance(600_000)
        assert service.statistics().appends == appends, "that was all"
        log.error = UnavailableError("no")
        with pytest.raises(UnavailableError, match="groups=3"):
            await service.on_topics_deleted(["keep"])
        log.error = None
        await clock.advance(0)
        await clock.advance(60_000)
        assert set((await service.fetch_offsets("a"))[1]) == {TP}
        assert set((await service.fetch_offsets("c"))[1]) == set()


async def test_the_end_of_a_topic_concerns_only_coordinators_with_groups(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[GroupCoordinator] = []
    forget_topics = GroupCoordinator.forget_topics

    async def ask(coordinator: GroupCoordinator, topics: Mapping[str, int], places: anyio.Semaphore) -> int:
        asked.append(coordinator)
        return await forget_topics(coordinator, topics, places)

    monkeypatch.setattr(GroupCoordinator, "forget_topics", ask)
    async with opened() as service:
        await service.on_topics_deleted(["t"])
        assert not asked
        await service.commit_offsets("g", {TP: OFFSET})
        await service.on_topics_deleted(["t"])
        assert len(asked) == 1
        assert (await service.fetch_offsets("g"))[1] == {}


async def test_offsets_and_then_their_group_expire(opened: Open, clock: Clock, log: Log) -> None:
    retention_ms, check_ms = 1_000_000, 100_000
    settings = replace(
        SETTINGS, offsets_retention_ms=retention_ms, offsets_retention_check_interval_ms=check_ms
    )
    async with opened(settings) as service:
        member = await stable(service, clock)
        await service.commit_offsets("g", {TP: OFFSET}, member_id=member, generation_id=1)
        await service.leave("g", [LeaveMember(member)])
        await clock.advance(retention_ms - check_ms)
        assert service.statistics().offsets == 1
        await clock.advance(2 * check_ms)
        assert (service.statistics().offsets, service.statistics().groups) == (0, 0)
        assert log.live() == {}


async def test_the_last_member_has_left_once_that_is_durable(opened: Open, clock: Clock, log: Log) -> None:
    """A crash right after the answer must not bring the member back for a session timeout."""
    async with opened() as service, anyio.create_task_group() as tasks:
        member = await stable(service, clock)
        log.gate = anyio.Event()
        answered: list[ErrorCode] = []

        async def leave() -> None:
            error, _ = await service.leave("g", [LeaveMember(member)])
            answered.append(error)

        tasks.start_soon(leave)
        await settle()
        assert answered == []
        log.gate.set()
        await settle()
        assert answered == [ErrorCode.NONE]
        log.gate = None
        again = await stable(service, clock)
        log.error = UnavailableError("no")
        error, _ = await service.leave("g", [LeaveMember(again)])
        assert error is ErrorCode.COORDINATOR_NOT_AVAILABLE, "not written, and gone all the same"
        log.error = None


# -- deleting and listing -------------------------------------------------------------------------------------


async def test_groups_are_deleted_with_their_offsets_when_empty(opened: Open, clock: Clock, log: Log) -> None:
    async with opened() as service:
        member = await stable(service, clock)
        await service.commit_offsets("g", {TP: OFFSET}, member_id=member, generation_id=1)
        assert await service.delete_groups(["g", "x"]) == {
            "g": ErrorCode.NON_EMPTY_GROUP,
            "x": ErrorCode.GROUP_ID_NOT_FOUND,
        }
        await service.leave("g", [LeaveMember(member)])
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.NONE}
        assert log.live() == {}
        assert service.statistics().groups == 0


async def test_a_commit_during_a_deletion_waits_for_it(opened: Open, log: Log) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        await service.commit_offsets("g", {("t", 1): OFFSET})
        log.gate = anyio.Event()
        calls.start("delete", service.delete_groups(["g"]))
        await settle()
        calls.start("commit", service.commit_offsets("g", {TP: OFFSET}))
        await settle()
        log.gate.set()
        await settle()
        assert calls.results == {"delete": {"g": ErrorCode.NONE}, "commit": {TP: ErrorCode.NONE}}
        assert set((await service.fetch_offsets("g"))[1]) == {TP}


async def test_a_deletion_that_cannot_be_written_keeps_the_group(opened: Open, log: Log) -> None:
    async with opened() as service:
        await service.commit_offsets("g", {TP: OFFSET})
        log.error = UnavailableError("no")
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.COORDINATOR_NOT_AVAILABLE}
        log.error = None
        assert set((await service.fetch_offsets("g"))[1]) == {TP}


async def test_listing_filters_by_state_and_type_in_any_case(opened: Open, clock: Clock) -> None:
    async with opened() as service:
        await stable(service, clock, "full")
        await service.commit_offsets("simple", {TP: OFFSET})
        for states, types, expected in [
            ((), (), {"full", "simple"}),
            (("stable",), (), {"full"}),
            (("EMPTY",), (), {"simple"}),
            (("Dead",), (), set()),
            ((), ("Classic",), {"full", "simple"}),
            ((), ("consumer",), set()),
        ]:
            error, listed = await service.list_groups(states, types)
            assert error is ErrorCode.NONE
            assert {one.group_id for one in listed} == expected
        assert {one.group_id: one.protocol_type for one in (await service.list_groups())[1]} == {
            "full": "consumer",
            "simple": "",
        }


# -- restart and the log --------------------------------------------------------------------------------------


async def test_everything_durable_survives_a_restart(opened: Open, clock: Clock) -> None:
    async with opened() as service:
        member = await stable(service, clock, group_instance_id="i")
        await service.commit_offsets("g", {TP: OFFSET}, member_id=member, generation_id=1)
        await service.commit_offsets("simple", {TP: OFFSET}, retention_ms=1_000)
        before = await service.describe(["g"]), (await service.fetch_offsets("simple"))[1]
    async with opened() as service:
        assert (await service.describe(["g"]), (await service.fetch_offsets("simple"))[1]) == (
            before[0],
            {TP: replace(before[1][TP] or CommittedOffset(0, 0, "", 0), leader_epoch=-1)},
        )
        assert await service.heartbeat("g", member, 1, "i") is ErrorCode.NONE
        assert set((await service.fetch_offsets("g"))[1]) == {TP}
        await clock.advance(REQUEST.session_timeout_ms)
        assert await service.heartbeat("g", member, 1, "i") is ErrorCode.UNKNOWN_MEMBER_ID


async def test_the_log_stays_bounded_and_checkpoints_lose_nothing(
    opened: Open, log: Log, clock: Clock
) -> None:
    settings = replace(SETTINGS, checkpoint_records=10, append_bytes_max=200)
    async with opened(settings) as service:
        member = await stable(service, clock)
        for number in range(200):
            group_id = f"group-{number % 7}"
            await service.commit_offsets(group_id, {("t", number % 3): OffsetAndMetadata(number)})
        await service.delete_groups(["group-0"])
        await settle()
        expected = {g: (await service.fetch_offsets(g))[1] for g in ["g", *(f"group-{n}" for n in range(7))]}
        described = await service.describe(["g"])
        statistics = service.statistics()
    assert statistics.checkpoints > 5
    assert sum(len(records) for records in log.records) < 120
    async with opened(settings) as service:
        assert {group_id: (await service.fetch_offsets(group_id))[1] for group_id in expected} == expected
        assert await service.describe(["g"]) == described
        assert await service.heartbeat("g", member, 1) is ErrorCode.NONE


async def test_a_checkpoint_of_nothing_empties_the_log(opened: Open, log: Log) -> None:
    async with opened(replace(SETTINGS, checkpoint_records=4)) as service:
        await service.commit_offsets("g", {TP: OFFSET, ("t", 1): OFFSET})
        await service.delete_groups(["g"])
        await settle()
        assert log.records[partition_for("g", 3)] == []


async def test_a_failed_checkpoint_is_tried_again_later(opened: Open, log: Log) -> None:
    async with opened(replace(SETTINGS, checkpoint_records=5)) as service:
        log.trim_error = UnavailableError("no")
        for number in range(10):
            await service.commit_offsets("g", {TP: OffsetAndMetadata(number)})
        await settle()
        assert service.statistics().checkpoints == 0
        log.trim_error = None
        for number in range(10):
            result = await service.commit_offsets("g", {TP: OffsetAndMetadata(number)})
            assert result == {TP: ErrorCode.NONE}
        await settle()
        assert service.statistics().checkpoints > 0
        assert len(log.records[partition_for("g", 3)]) < 10


DAMAGED = (b"\x00\x01\x00\x01g\x00\x01t\x00\x00\x00\x00", b"\x00\x03bad")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (b"\x00\x09a key of later times", r"partition=\d+ version=9 known=2"),
        (encode_group_key("g"), "version=7 known=4"),
    ],
)
async def test_a_record_of_a_newer_version_stops_the_start_since_a_checkpoint_would_drop_it(
    opened: Open, log: Log, key: bytes, told: str
) -> None:
    partition = partition_for("g", 3)
    await log.append(partition, [(key, b"\x00\x07value")])
    with pytest.raises(
        NewerVersionError, match=f"newer penstock, upgrade this one: log=__consumer_offsets {told}"
    ):
        async with opened():
            pass
    assert [record for _, record in log.records[partition]] == [(key, b"\x00\x07value")]


async def test_a_damaged_partition_costs_only_its_own_groups_their_coordinator(
    opened: Open, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """They are told to look for one again, nothing is written for them, and all others work."""
    damaged = partition_for("g", 3)
    other = next(name for name in ("a", "b", "c", "d") if partition_for(name, 3) != damaged)
    async with opened() as service:
        await service.commit_offsets("g", {TP: OFFSET})
        await service.commit_offsets(other, {TP: OFFSET})
    await log.append(damaged, [DAMAGED])
    before = list(log.records[damaged])
    unavailable = ErrorCode.COORDINATOR_NOT_AVAILABLE
    async with opened() as service:
        assert not service.coordinates("g")
        assert (await service.join("g", REQUEST)).error is unavailable
        sync = SyncRequest(member_id="m", generation_id=1, assignments={})
        assert (await service.sync("g", sync)).error is unavailable
        assert await service.heartbeat("g", "m", 1) is unavailable
        assert (await service.leave("g", []))[0] is unavailable
        assert await service.commit_offsets("g", {TP: OFFSET}) == {TP: unavailable}
        assert await service.fetch_offsets("g") == (unavailable, {})
        assert (await service.delete_offsets("g", [TP]))[0] is unavailable
        assert await service.delete_groups(["g"]) == {"g": unavailable}
        assert [one.error for one in await service.describe(["g"])] == [unavailable]
        await service.on_topics_deleted(["t"])
        assert service.coordinates(other)
        assert [one.state for one in (await service.list_groups())[1]] == [GroupState.EMPTY]
        assert await service.commit_offsets(other, {TP: OFFSET}) == {TP: ErrorCode.NONE}
        assert service.statistics().damaged_partitions == 1
    assert log.records[damaged] == before
    assert "an offset commit" in caplog.text


async def test_an_unreadable_log_stops_the_start(opened: Open, log: Log) -> None:
    log.error = UnavailableError("gone")
    with pytest.raises(UnavailableError, match="gone"):
        async with opened():
            pass


async def test_an_assignment_that_cannot_be_written_is_refused(opened: Open, log: Log, clock: Clock) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        calls.start("join", service.join("g", REQUEST))
        await settle()
        await clock.advance(SETTINGS.initial_rebalance_delay_ms)
        log.error = UnavailableError("no")
        member = calls.results["join"].member_id
        synced = await service.sync("g", SyncRequest(member_id=member, generation_id=1))
        assert synced.error is ErrorCode.COORDINATOR_NOT_AVAILABLE
        assert await service.heartbeat("g", member, 1) is ErrorCode.REBALANCE_IN_PROGRESS


# -- the end --------------------------------------------------------------------------------------------------


async def park(service: GroupService, calls: Calls, clock: Clock) -> None:
    """A parked JoinGroup in one group, a parked SyncGroup in another."""
    calls.start("a", service.join("syncing", REQUEST))
    calls.start("b", service.join("syncing", REQUEST))
    await settle()
    await clock.advance(2 * SETTINGS.initial_rebalance_delay_ms)
    b = calls.results.pop("b")
    calls.results.pop("a")
    calls.start("sync", service.sync("syncing", SyncRequest(member_id=b.member_id, generation_id=1)))
    calls.start("join", service.join("joining", REQUEST))
    await settle()
    assert calls.results == {}
    assert service.statistics().parked_requests == 2


async def test_everything_that_waits_is_answered_when_the_scope_ends(
    opened: Open, log: Log, clock: Clock
) -> None:
    async with anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        async with opened() as service:
            await park(service, calls, clock)
            log.gate = anyio.Event()
            calls.start("commit", service.commit_offsets("c", {TP: OFFSET}))
            await settle()  # this one is being appended, the others wait behind it
            calls.start("behind", service.commit_offsets("c", {TP: OFFSET}))
            calls.start("delete", service.delete_offsets("c", [TP]))
            await settle()
        with anyio.fail_after(HANG_S):
            await settle()
        no = ErrorCode.NOT_COORDINATOR
        assert calls.results["join"].error is no
        assert calls.results["sync"].error is no
        assert calls.results["commit"] == calls.results["behind"] == {TP: no}
        assert calls.results["delete"] == (ErrorCode.NONE, {TP: no})
        assert (await service.join("g", REQUEST)).error is no
        assert await service.heartbeat("syncing", "m", 1) is no
        assert await service.commit_offsets("g", {TP: OFFSET}) == {TP: no}
        assert (await service.fetch_offsets("g"))[0] is no
        assert (await service.list_groups())[0] is no


async def test_a_cancelled_scope_answers_too(log: Log, clock: Clock) -> None:
    results: list[JoinResult | SyncResult] = []

    async def join(service: GroupService) -> None:
        results.append(await service.join("g", REQUEST))

    async with anyio.create_task_group() as outside:
        with anyio.CancelScope() as scope:
            async with LedService(log, SETTINGS, clock) as service:
                outside.start_soon(join, service)
                await settle()
                scope.cancel()
                await anyio.sleep_forever()
    assert [one.error for one in results] == [ErrorCode.NOT_COORDINATOR]


async def test_draining_answers_what_is_parked_and_still_takes_commits(opened: Open, clock: Clock) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        await park(service, calls, clock)
        service.drain()
        await settle()
        assert {one.error for one in calls.results.values()} == {ErrorCode.NOT_COORDINATOR}
        assert (await service.join("g", REQUEST)).error is ErrorCode.NOT_COORDINATOR
        assert await service.commit_offsets("simple", {TP: OFFSET}) == {TP: ErrorCode.NONE}


async def test_before_the_start_the_coordinator_is_loading(log: Log, clock: Clock) -> None:
    service = GroupService(log, SETTINGS, clock)
    assert (await service.join("g", REQUEST)).error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    assert await service.heartbeat("g", "m", 1) is ErrorCode.NONE


# -- small parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group_id", "hash_code"),
    [
        ("", 0),
        ("a", 97),
        ("hello", 99162322),
        ("my-consumer-group", None),
        ("polygenelubricants", 0),  # Integer.MIN_VALUE, which Kafka maps to 0
        ("ä€😀", None),
    ],
)
def test_groups_live_where_kafka_puts_them(group_id: str, hash_code: int | None) -> None:
    if hash_code is None:
        hash_code = 0
        units = struct.unpack(f">{len(group_id.encode('utf-16-be')) // 2}H", group_id.encode("utf-16-be"))
        for unit in units:
            hash_code = (hash_code * 31 + unit) % 2**32
        hash_code = abs(hash_code - 2**32 if hash_code >= 2**31 else hash_code)
    assert partition_for(group_id, 50) == hash_code % 50


def test_a_moved_timer_wakes_up_once_at_its_earliest_time() -> None:
    heap: TimerHeap[str] = TimerHeap()
    heap.schedule("a", 10)
    heap.schedule("a", 20)
    heap.schedule("b", 15)
    heap.schedule("b", 5)
    assert heap.next_at_ms == 5
    assert heap.pop_due(9) == ["b"]
    assert heap.pop_due(15) == ["a"]
    assert heap.pop_due(100) == []
    assert len(heap) == 0
    assert not heap.next_at_ms


async def test_the_system_clock_waits_for_the_event_or_the_delay() -> None:
    system = SystemClock()
    event = anyio.Event()
    before = system.now_ms()
    await system.wait(event, 1)
    assert system.now_ms() > before
    event.set()
    await system.wait(event, None)
