"""Heartbeats, leaving and expiry on the pure machine of the classic group protocol."""

from __future__ import annotations

from tests.unit.coordinator.group_driver import DELAY, JOIN_TIMER, SESSION, Driver, request

from penstock.coordinator.group_types import (
    GroupState,
    JoinResult,
    LeaveMember,
    TimerKind,
)
from penstock.wire.error_codes import ErrorCode


def test_heartbeat_in_each_state() -> None:
    driver = Driver()
    assert driver.heartbeat("m1") is ErrorCode.UNKNOWN_MEMBER_ID
    driver.join(), driver.join()
    driver.pass_ms(2 * DELAY)
    assert driver.heartbeat("m1") is ErrorCode.NONE  # completing
    driver.sync("m2"), driver.sync("m1")
    assert driver.heartbeat("m1") is ErrorCode.NONE  # stable
    assert driver.heartbeat("m1", generation=0) is ErrorCode.ILLEGAL_GENERATION
    assert driver.heartbeat("ghost") is ErrorCode.UNKNOWN_MEMBER_ID
    driver.join(request("m1"))
    assert driver.heartbeat("m2") is ErrorCode.REBALANCE_IN_PROGRESS
    driver.do(driver.group.close(ErrorCode.NOT_COORDINATOR))
    assert driver.heartbeat("m2") is ErrorCode.COORDINATOR_NOT_AVAILABLE


def test_heartbeats_keep_a_session_alive_and_silence_ends_it() -> None:
    driver = Driver()
    members = driver.stable(2)
    for _ in range(5):
        driver.pass_ms(SESSION - 1)
        driver.heartbeat(members[0]), driver.heartbeat(members[1])
    driver.pass_ms(SESSION - 1)
    driver.heartbeat(members[0])
    driver.pass_ms(1)
    assert list(driver.group.members) == [members[0]]
    assert driver.state() is GroupState.PREPARING_REBALANCE
    assert driver.heartbeat(members[0]) is ErrorCode.REBALANCE_IN_PROGRESS


def test_a_parked_member_does_not_expire() -> None:
    driver = Driver()
    members = driver.stable(2)
    waiter = driver.join(request(members[0]))
    for _ in range(5):
        driver.pass_ms(SESSION - 1)
        driver.heartbeat(members[1])
    assert waiter not in driver.answers
    assert members[0] in driver.group.members


def test_the_last_member_leaving_empties_the_group_durably() -> None:
    driver = Driver()
    (member,) = driver.stable()
    assert driver.leave(LeaveMember(member)) == [ErrorCode.NONE]
    assert (driver.state(), driver.group.generation_id) == (GroupState.EMPTY, 2)
    assert driver.persisted[-1].members == ()
    assert driver.persisted[-1].protocol_name is None
    assert driver.group._deadlines == {}


def test_a_leaving_leader_hands_over() -> None:
    driver = Driver()
    members = driver.stable(2)
    driver.leave(LeaveMember(members[0]))
    waiter = driver.join(request(members[1]))
    assert driver.joined(waiter).leader == members[1]


def test_leaving_in_batches_gives_one_result_each() -> None:
    driver = Driver()
    members = driver.stable(2)
    static = driver.join(request(group_instance_id="i"))
    for member in members:
        driver.join(request(member))
    static_id = driver.joined(static).member_id
    errors = driver.leave(
        LeaveMember(members[0]),
        LeaveMember("ghost"),
        LeaveMember("", "i"),
        LeaveMember("", "unknown"),
        LeaveMember(members[1], "unknown"),
    )
    assert errors == [0, ErrorCode.UNKNOWN_MEMBER_ID, 0, ErrorCode.UNKNOWN_MEMBER_ID, 25]
    assert list(driver.group.members) == [members[1]]
    assert static_id not in driver.group.members


def test_an_instance_that_is_named_twice_leaves_once() -> None:
    driver = Driver()
    driver.stable(1, group_instance_id="i")
    named = LeaveMember("", "i")
    assert driver.leave(named, LeaveMember("wrong", "i"), named) == [
        ErrorCode.NONE,
        ErrorCode.UNKNOWN_MEMBER_ID,
        ErrorCode.UNKNOWN_MEMBER_ID,
    ]


def test_leaving_with_another_members_instance_is_fenced() -> None:
    driver = Driver()
    driver.stable(1, group_instance_id="i")
    assert driver.leave(LeaveMember("wrong", "i")) == [ErrorCode.FENCED_INSTANCE_ID]


def test_a_parked_join_of_a_leaving_member_is_answered() -> None:
    driver = Driver()
    members = driver.stable(2)
    waiter = driver.join(request(members[0]))
    driver.leave(LeaveMember(members[0]))
    assert driver.joined(waiter) == JoinResult(member_id="", error=ErrorCode.UNKNOWN_MEMBER_ID)


def test_pending_and_members_may_leave_together() -> None:
    driver = Driver()
    members = driver.stable(2)
    driver.join(request(require_known_member_id=True))
    pending = next(iter(driver.group.pending_members))
    waiter = driver.join(request(members[0]))
    assert driver.leave(LeaveMember(pending), LeaveMember(members[1])) == [0, 0]
    assert driver.joined(waiter).generation_id == 2


def test_close_answers_everything_that_is_parked() -> None:
    driver = Driver()
    driver.join(), driver.join()
    driver.pass_ms(2 * DELAY)
    sync = driver.sync("m2")
    driver.do(driver.group.close(ErrorCode.NOT_COORDINATOR))
    assert driver.synced(sync).error is ErrorCode.NOT_COORDINATOR
    assert driver.joined(driver.join()).error is ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert driver.synced(driver.sync("m1")).error is ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert driver.leave(LeaveMember("m1")) == [ErrorCode.COORDINATOR_NOT_AVAILABLE]


def test_stale_timers_are_ignored() -> None:
    driver = Driver()
    (member,) = driver.stable()
    key = (TimerKind.SESSION, member)
    assert driver.group.timer_fired(key, driver.now) == []
    assert driver.group.timer_fired(JOIN_TIMER, driver.now + 10**9) == []
    assert driver.group.timer_fired((TimerKind.SESSION, "ghost"), driver.now) == []
