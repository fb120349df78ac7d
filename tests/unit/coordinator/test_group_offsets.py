"""OffsetCommit, expiry and deletion of offsets on the pure machine of the classic group protocol."""

from __future__ import annotations

import pytest
from tests.unit.coordinator.group_driver import SESSION, SETTINGS, Driver, request

from penstock.coordinator.group_types import (
    CommittedOffset,
    GroupState,
    LeaveMember,
)
from penstock.wire.error_codes import ErrorCode


def test_a_simple_consumer_commits_to_an_empty_group_only() -> None:
    driver = Driver()
    assert driver.commit() is ErrorCode.NONE
    driver.stable()
    assert driver.commit() is ErrorCode.UNKNOWN_MEMBER_ID


@pytest.mark.parametrize(
    ("member", "generation", "error"),
    [
        ("m1", 1, ErrorCode.NONE),
        ("m1", 0, ErrorCode.ILLEGAL_GENERATION),
        ("m1", -1, ErrorCode.ILLEGAL_GENERATION),
        ("ghost", 1, ErrorCode.UNKNOWN_MEMBER_ID),
        ("", 1, ErrorCode.UNKNOWN_MEMBER_ID),
    ],
)
def test_what_commit_checks_in_a_stable_group(member: str, generation: int, error: ErrorCode) -> None:
    driver = Driver()
    driver.stable()
    assert driver.commit(member, generation) is error


def test_commits_while_preparing_are_taken_and_while_completing_refused() -> None:
    driver = Driver()
    driver.stable(2)
    driver.join(request("m1"))
    assert driver.state() is GroupState.PREPARING_REBALANCE
    assert driver.commit("m2", 1) is ErrorCode.NONE
    driver.join(request("m2"))
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    assert driver.commit("m2", 2) is ErrorCode.REBALANCE_IN_PROGRESS


def test_a_generation_in_an_empty_group_is_unknown() -> None:
    driver = Driver()
    assert driver.commit("m1", 1) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_commit_extends_the_session() -> None:
    driver = Driver()
    driver.stable()
    driver.pass_ms(SESSION - 1)
    driver.commit("m1", 1)
    driver.pass_ms(SESSION - 1)
    assert driver.state() is GroupState.STABLE


def test_offset_metadata_has_a_limit() -> None:
    driver = Driver()
    assert driver.commit(metadata="x" * 4096) is ErrorCode.NONE
    assert driver.commit(metadata="x" * 4097) is ErrorCode.OFFSET_METADATA_TOO_LARGE
    committed = driver.group.offsets.get(("t", 0))
    assert committed is not None
    assert committed.metadata == "x" * 4096


def test_an_offset_is_visible_only_when_durable() -> None:
    driver = Driver()
    offsets = {("t", 0): CommittedOffset(1, -1, "", driver.now)}
    driver.group.begin_commit("", -1, None, [offsets], driver.now)
    assert driver.group.offsets.get(("t", 0)) is None
    assert not driver.group.is_disposable
    driver.group.settle_commit(offsets, durable=False)
    assert driver.group.offsets.get(("t", 0)) is None
    assert driver.group.is_disposable


RETENTION = SETTINGS.offsets_retention_ms


def test_retention_counts_from_when_the_group_became_empty() -> None:
    driver = Driver()
    driver.stable()
    driver.commit("m1", 1)
    for _ in range(3):
        driver.now += RETENTION
        assert driver.group.expired_offsets(driver.now) == []
    driver.leave(LeaveMember("m1"))
    assert driver.group.expired_offsets(driver.now + RETENTION - 1) == []
    assert driver.group.expired_offsets(driver.now + RETENTION) == [("t", 0)]


def test_a_simple_consumers_retention_counts_from_the_commit() -> None:
    driver = Driver()
    driver.now += RETENTION
    driver.commit()
    assert driver.group.expired_offsets(driver.now + RETENTION - 1) == []
    assert driver.group.expired_offsets(driver.now + RETENTION) == [("t", 0)]


def test_an_explicit_retention_time_wins() -> None:
    driver = Driver()
    driver.commit(retention=1_000)
    assert driver.group.expired_offsets(driver.now + 999) == []
    assert driver.group.expired_offsets(driver.now + 1_000) == [("t", 0)]


def test_offsets_of_topics_nobody_subscribes_to_expire_in_a_stable_group() -> None:
    driver = Driver()
    driver.stable()
    driver.commit("m1", 1, topic="t")
    driver.commit("m1", 1, topic="old")
    assert driver.group.expired_offsets(driver.now + RETENTION) == [("old", 0)]


def test_a_pending_commit_keeps_its_offset_from_expiring() -> None:
    driver = Driver()
    driver.commit()
    offsets = {("t", 0): CommittedOffset(9, -1, "", driver.now)}
    driver.group.begin_commit("", -1, None, [offsets], driver.now)
    assert driver.group.expired_offsets(driver.now + RETENTION) == []


def test_deleting_needs_an_empty_group() -> None:
    driver = Driver()
    assert driver.group.delete_error() is ErrorCode.NONE
    driver.stable()
    assert driver.group.delete_error() is ErrorCode.NON_EMPTY_GROUP
    assert driver.group.delete_offsets_error() is ErrorCode.NONE
    assert driver.group.is_subscribed_to("t")
    assert not driver.group.is_subscribed_to("other")
    driver.leave(LeaveMember("m1"))
    assert not driver.group.is_subscribed_to("t")
    driver.do(driver.group.close(ErrorCode.NOT_COORDINATOR))
    assert driver.group.delete_error() is ErrorCode.GROUP_ID_NOT_FOUND
    assert driver.group.delete_offsets_error() is ErrorCode.GROUP_ID_NOT_FOUND


def test_offsets_of_a_live_group_that_is_not_of_consumers_cannot_be_deleted() -> None:
    driver = Driver()
    driver.stable(1, protocol_type="connect")
    assert driver.group.delete_offsets_error() is ErrorCode.NON_EMPTY_GROUP
