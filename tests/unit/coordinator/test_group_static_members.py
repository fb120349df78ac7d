"""Static members (KIP-345) on the pure machine of the classic group protocol."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.group_driver import DELAY, REBALANCE, Driver, request

from penstock.coordinator.group_types import (
    GroupState,
    LeaveMember,
    TimerKey,
    TimerKind,
)
from penstock.wire.error_codes import ErrorCode

JOIN: TimerKey = (TimerKind.JOIN, "")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("is_leader", [False, True])
def test_a_static_member_comes_back_without_a_rebalance(is_leader: bool, skip: bool) -> None:
    driver = Driver()
    waiters = [driver.join(request(group_instance_id=instance)) for instance in ("a", "b")]
    driver.pass_ms(2 * DELAY)
    old = [driver.joined(waiter).member_id for waiter in waiters]
    driver.sync(old[1]), driver.sync(old[0], {old[0]: b"A", old[1]: b"B"})
    instance, before = ("a", old[0]) if is_leader else ("b", old[1])
    waiter = driver.join(request(group_instance_id=instance, supports_skip_assignment=skip))
    result = driver.joined(waiter)
    assert driver.state() is GroupState.STABLE
    assert (result.error, result.generation_id) == (ErrorCode.NONE, 1)
    assert result.member_id not in old
    assert result.skip_assignment is (skip and is_leader)
    if is_leader:
        # Before v9 it must not see itself as leader, or it would assign anew (KIP-814).
        assert result.leader == (result.member_id if skip else old[0])
        assert len(result.members) == (2 if skip else 0)
    assert driver.synced(driver.sync(result.member_id)).assignment == (b"A" if is_leader else b"B")
    assert driver.heartbeat(before, instance=instance) is ErrorCode.FENCED_INSTANCE_ID
    assert driver.heartbeat(before) is ErrorCode.UNKNOWN_MEMBER_ID
    assert result.member_id in {one.member_id for one in driver.persisted[-1].members}


def test_a_replacement_that_cannot_be_written_is_taken_back() -> None:
    driver = Driver()
    (old,) = driver.stable(1, group_instance_id="i")
    driver.hold = True
    waiter = driver.join(request(group_instance_id="i"))
    assert waiter not in driver.answers
    driver.settle(ErrorCode.COORDINATOR_NOT_AVAILABLE)
    assert driver.joined(waiter).error is ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert driver.heartbeat(old, instance="i") is ErrorCode.NONE
    assert driver.group.leader_id == old


def test_a_second_replacement_fences_the_first_one_that_still_waits() -> None:
    driver = Driver()
    driver.stable(1, group_instance_id="i")
    driver.hold = True
    first = driver.join(request(group_instance_id="i"))
    second = driver.join(request(group_instance_id="i"))
    assert driver.joined(first).error is ErrorCode.FENCED_INSTANCE_ID
    driver.settle()
    assert driver.joined(second).error is ErrorCode.NONE
    assert list(driver.group.members) == [driver.joined(second).member_id]


@pytest.mark.parametrize("error", [ErrorCode.NONE, ErrorCode.COORDINATOR_NOT_AVAILABLE])
def test_a_rebalance_that_begins_while_a_replacement_is_written_answers_it(error: ErrorCode) -> None:
    driver = Driver()
    driver.stable(1, group_instance_id="i")
    driver.hold = True
    replaced = driver.join(request(group_instance_id="i"))
    newcomer = driver.join()
    assert driver.state() is GroupState.COMPLETING_REBALANCE, "the replacement counts as joined"
    assert driver.joined(replaced).generation_id == driver.joined(newcomer).generation_id == 2
    driver.settle(error)
    assert set(driver.group.members) == {driver.joined(one).member_id for one in (replaced, newcomer)}


@pytest.mark.parametrize("error", [ErrorCode.NONE, ErrorCode.COORDINATOR_NOT_AVAILABLE])
def test_a_replacement_stays_parked_in_a_rebalance_that_began_meanwhile(error: ErrorCode) -> None:
    driver = Driver()
    waiters = [driver.join(request(group_instance_id="i")), driver.join()]
    driver.pass_ms(2 * DELAY)
    old, other = (driver.joined(waiter).member_id for waiter in waiters)
    driver.sync(other), driver.sync(old, {})
    driver.hold = True
    replaced = driver.join(request(group_instance_id="i"))
    driver.join()  # starts a rebalance, in which `other` is awaited
    driver.settle(error)
    assert replaced not in driver.answers
    driver.join(request(other))
    assert driver.joined(replaced).generation_id == 2


def test_a_replacement_with_another_protocol_rebalances() -> None:
    driver = Driver()
    driver.stable(1, group_instance_id="i", protocols=(("a", b""), ("b", b"")))
    waiter = driver.join(request(group_instance_id="i", protocols=(("b", b""),)))
    assert driver.joined(waiter).generation_id == 2
    assert driver.joined(waiter).protocol_name == "b"


def test_a_replacement_while_completing_rebalances() -> None:
    driver = Driver()
    driver.join(request(group_instance_id="a")), driver.join(request(group_instance_id="b"))
    driver.pass_ms(2 * DELAY)
    driver.join(request(group_instance_id="b"))
    assert driver.state() is GroupState.PREPARING_REBALANCE


def test_a_replacement_while_preparing_takes_the_place_of_the_old_one() -> None:
    driver = Driver()
    waiters = [driver.join(request(group_instance_id=name)) for name in ("a", "b")]
    driver.pass_ms(2 * DELAY)
    old = [driver.joined(waiter).member_id for waiter in waiters]
    driver.sync(old[1]), driver.sync(old[0], {})
    first = driver.join(request(old[0], group_instance_id="a"))
    again = driver.join(request(group_instance_id="a"))
    assert driver.joined(first).error is ErrorCode.FENCED_INSTANCE_ID
    follower = driver.join(request(old[1], group_instance_id="b"))
    assert driver.joined(again).generation_id == driver.joined(follower).generation_id == 2


def test_absent_static_members_stay_until_their_session_ends() -> None:
    driver = Driver()
    waiters = [driver.join(request(group_instance_id=n, session_timeout_ms=100_000)) for n in ("a", "b")]
    driver.pass_ms(2 * DELAY)
    old = [driver.joined(waiter).member_id for waiter in waiters]
    driver.sync(old[1]), driver.sync(old[0], {})
    waiter = driver.join(request(old[1], group_instance_id="b", protocols=(("range", b"x"),)))
    driver.pass_ms(REBALANCE)
    result = driver.joined(waiter)
    assert result.leader == old[1], "the absent leader loses the lead"
    assert {one.member_id for one in result.members} == set(old), "but stays a member"


@pytest.mark.parametrize("operation", ["join", "sync", "heartbeat", "commit"])
def test_a_stolen_instance_id_is_fenced_everywhere(operation: str) -> None:
    driver = Driver()
    (member,) = driver.stable(1, group_instance_id="i")
    if operation == "join":
        error = driver.joined(driver.join(request("other", group_instance_id="i"))).error
    elif operation == "sync":
        error = driver.synced(driver.sync("other", group_instance_id="i")).error
    elif operation == "heartbeat":
        error = driver.heartbeat("other", instance="i")
    else:
        error = driver.commit("other", 1, instance="i")
    assert error is ErrorCode.FENCED_INSTANCE_ID
    assert driver.heartbeat(member, instance="i") is ErrorCode.NONE


def test_who_asks_for_no_time_and_stays_away_is_not_looked_for_again_and_again_at_once() -> None:
    driver = Driver()
    asked = {"a": 0, "b": REBALANCE}
    waiters = [
        driver.join(request(group_instance_id=instance, rebalance_timeout_ms=timeout_ms))
        for instance, timeout_ms in asked.items()
    ]
    driver.pass_ms(2 * DELAY)
    a, b = (driver.joined(waiter).member_id for waiter in waiters)
    driver.sync(b), driver.sync(a, {a: b"A", b: b"B"})
    assert driver.state() is GroupState.STABLE
    driver.leave(LeaveMember(b, "b"))
    driver.group.timer_fired(JOIN, driver.now)
    again = driver.group.deadline(JOIN)
    assert again is not None
    assert again > driver.now
