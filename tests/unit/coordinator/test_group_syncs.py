"""SyncGroup on the pure machine, and what a group shows, stores and is restored from."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.coordinator.group_driver import (
    DELAY,
    REBALANCE,
    SESSION,
    SETTINGS,
    Driver,
    request,
    subscription,
)

from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_types import (
    GroupState,
    LeaveMember,
)
from penstock.wire.error_codes import ErrorCode


def test_followers_wait_for_the_leader_and_missing_assignments_are_empty() -> None:
    driver = Driver()
    driver.join(), driver.join()
    driver.pass_ms(2 * DELAY)
    follower = driver.sync("m2")
    assert follower not in driver.answers
    leader = driver.sync("m1", {"m1": b"one", "stranger": b"x"})
    assert driver.synced(leader).assignment == b"one"
    assert driver.synced(follower).assignment == b""


def test_an_assignment_is_handed_out_only_when_it_is_durable() -> None:
    driver = Driver()
    driver.join()
    driver.pass_ms(DELAY)
    driver.hold = True
    waiter = driver.sync("m1", {"m1": b"a"})
    assert waiter not in driver.answers
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    driver.settle()
    assert driver.synced(waiter).assignment == b"a"
    assert driver.state() is GroupState.STABLE


def test_an_assignment_that_cannot_be_written_is_refused_and_the_group_rebalances() -> None:
    driver = Driver()
    driver.join()
    driver.pass_ms(DELAY)
    driver.hold = True
    waiter = driver.sync("m1", {"m1": b"a"})
    driver.settle(ErrorCode.COORDINATOR_NOT_AVAILABLE)
    assert driver.synced(waiter).error is ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert driver.state() is GroupState.PREPARING_REBALANCE
    assert driver.group.members["m1"].assignment == b""


def test_an_assignment_that_becomes_durable_too_late_changes_nothing() -> None:
    driver = Driver()
    driver.join()
    driver.pass_ms(DELAY)
    driver.hold = True
    waiter = driver.sync("m1", {"m1": b"old"})
    joined = driver.join(request("m1", protocols=(("range", b"x"),)))
    assert driver.synced(waiter).error is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.joined(joined).generation_id == 2
    driver.settle()
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    assert driver.group.members["m1"].assignment == b""


def test_a_sync_in_a_stable_group_gets_the_current_assignment() -> None:
    driver = Driver()
    members = driver.stable(2)
    assert driver.synced(driver.sync(members[1])).assignment == b"m2"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"member_id": "ghost"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"generation_id": 0}, ErrorCode.ILLEGAL_GENERATION),
        ({"generation_id": 2}, ErrorCode.ILLEGAL_GENERATION),
        ({"group_instance_id": "i"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"protocol_type": "connect"}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_name": "sticky"}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_type": "consumer", "protocol_name": "range"}, ErrorCode.NONE),
    ],
)
def test_what_sync_checks(changes: dict[str, Any], error: ErrorCode) -> None:
    driver = Driver()
    driver.stable()
    assert driver.synced(driver.sync("m1", **changes)).error is error


def test_sync_during_the_join_phase_tells_to_rejoin() -> None:
    driver = Driver()
    members = driver.stable(2)
    driver.join(request(members[0]))
    assert driver.synced(driver.sync(members[1])).error is ErrorCode.REBALANCE_IN_PROGRESS


def test_members_that_never_sync_are_dropped_after_the_rebalance_timeout() -> None:
    driver = Driver()
    driver.join(), driver.join()
    driver.pass_ms(2 * DELAY)
    waiter = driver.sync("m1", {})
    for _ in range(REBALANCE // 5_000):
        driver.heartbeat("m2")
        driver.heartbeat("m1")
        driver.pass_ms(5_000)
    assert driver.synced(waiter).error is ErrorCode.NONE
    assert list(driver.group.members) == ["m1"]
    assert driver.state() is GroupState.PREPARING_REBALANCE


def test_protocol_and_metadata_are_described_only_when_stable_and_assignments_always() -> None:
    driver = Driver()
    driver.stable(1, group_instance_id="i")
    described = driver.group.describe()
    assert (described.state, described.protocol_type, described.protocol_name) == (
        GroupState.STABLE,
        "consumer",
        "range",
    )
    assert (described.members[0].metadata, described.members[0].assignment) == (subscription("t"), b"m1")
    assert described.members[0].group_instance_id == "i"
    driver.join()
    described = driver.group.describe()
    assert (described.protocol_name, described.members[0].metadata) == ("", b"")
    assert described.members[0].assignment == b"m1", (
        "between rebalances the old assignment is shown, as in Kafka"
    )


def test_a_restored_group_goes_on_where_it_was() -> None:
    driver = Driver()
    members = driver.stable(2)
    metadata = driver.persisted[-1]
    again = Driver()
    again.do(again.group.restore(metadata, again.now))
    assert again.group.describe() == driver.group.describe()
    assert again.group.leader_id == members[0]
    assert [again.heartbeat(member) for member in members] == [ErrorCode.NONE, ErrorCode.NONE]
    assert again.synced(again.sync(members[1])).assignment == b"m2"
    again.pass_ms(SESSION)
    assert again.state() is GroupState.EMPTY, "sessions run from the restart on"


def test_a_restored_empty_group_keeps_its_generation_and_the_time_it_became_empty() -> None:
    driver = Driver()
    driver.stable()
    driver.leave(LeaveMember("m1"))
    again = Group("g", SETTINGS, driver.now + 12345)
    again.restore(driver.persisted[-1], driver.now + 12345)
    assert (again.state, again.generation_id) == (GroupState.EMPTY, 2)
    assert again.state_timestamp_ms == driver.now
