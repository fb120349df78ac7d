"""JoinGroup on the pure machine of the classic group protocol, cooperative rebalances (KIP-429) included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.coordinator.group_driver import (
    DELAY,
    JOIN_TIMER,
    REBALANCE,
    SESSION,
    SETTINGS,
    Driver,
    request,
    subscription,
)

from penstock.coordinator.group_roster import Roster
from penstock.coordinator.group_types import (
    GroupState,
    JoinResult,
    LeaveMember,
    SyncResult,
)
from penstock.wire.error_codes import ErrorCode


def test_a_single_member_goes_from_empty_to_stable() -> None:
    driver = Driver()
    waiter = driver.join()
    assert driver.state() is GroupState.PREPARING_REBALANCE
    driver.pass_ms(DELAY - 1)
    assert waiter not in driver.answers
    driver.pass_ms(1)
    result = driver.joined(waiter)
    assert (result.error, result.generation_id, result.member_id, result.leader) == (0, 1, "m1", "m1")
    assert (result.protocol_type, result.protocol_name) == ("consumer", "range")
    assert [one.member_id for one in result.members] == ["m1"]
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    sync = driver.sync("m1", {"m1": b"all"})
    assert driver.synced(sync) == SyncResult(
        protocol_type="consumer", protocol_name="range", assignment=b"all"
    )
    assert driver.state() is GroupState.STABLE
    assert driver.persisted[-1].members[0].assignment == b"all"


def test_only_the_leader_gets_the_member_list() -> None:
    driver = Driver()
    first, second = driver.join(), driver.join()
    driver.pass_ms(2 * DELAY)
    assert len(driver.joined(first).members) == 2
    assert driver.joined(second).members == ()
    assert driver.joined(second).leader == "m1"


def test_the_initial_delay_is_extended_by_joins_up_to_the_rebalance_timeout() -> None:
    driver = Driver()
    first = driver.join(request(rebalance_timeout_ms=7_000, session_timeout_ms=7_000))
    for _ in range(2):
        driver.pass_ms(DELAY - 1_000)
        driver.join(request(rebalance_timeout_ms=7_000, session_timeout_ms=7_000))
    driver.pass_ms(2_999)  # at 6999 ms
    assert first not in driver.answers
    driver.pass_ms(1)
    assert driver.joined(first).generation_id == 1
    assert len(driver.joined(first).members) == 3


def test_without_a_new_join_the_delay_ends_at_once() -> None:
    driver = Driver()
    waiter = driver.join()
    driver.pass_ms(DELAY)
    assert waiter in driver.answers


def test_a_rebalance_timeout_of_minus_one_is_the_session_timeout() -> None:
    driver = Driver()
    driver.stable(2, rebalance_timeout_ms=-1)
    driver.join(request(rebalance_timeout_ms=-1))
    assert driver.group.deadline(JOIN_TIMER) == driver.now + SESSION


def test_a_dynamic_member_is_sent_away_with_an_id_first() -> None:
    driver = Driver()
    waiter = driver.join(request(require_known_member_id=True))
    assert driver.joined(waiter).error is ErrorCode.MEMBER_ID_REQUIRED
    assert driver.joined(waiter).member_id == "m1"
    assert driver.state() is GroupState.EMPTY
    waiter = driver.join(request("m1", require_known_member_id=True))
    driver.pass_ms(DELAY)
    assert driver.joined(waiter).member_id == "m1"
    assert driver.group.pending_members == frozenset()


def test_a_static_member_needs_no_id_first() -> None:
    driver = Driver()
    driver.join(request(group_instance_id="i", require_known_member_id=True))
    assert list(driver.group.members) == ["m1"]


def test_a_pending_member_expires_with_its_session() -> None:
    driver = Driver()
    driver.join(request(require_known_member_id=True))
    driver.pass_ms(SESSION)
    assert driver.group.pending_members == frozenset()
    assert driver.group.is_disposable
    waiter = driver.join(request("m1", require_known_member_id=True))
    assert driver.joined(waiter).error is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_rebalance_waits_for_pending_members() -> None:
    driver = Driver()
    (member,) = driver.stable()
    driver.join(request(require_known_member_id=True))
    waiter = driver.join(request(member, protocols=(("range", b"other"),)))
    assert waiter not in driver.answers
    pending = next(iter(driver.group.pending_members))
    assert driver.leave(LeaveMember(pending)) == [ErrorCode.NONE]
    assert driver.joined(waiter).generation_id == 2


@pytest.mark.parametrize(
    "timeout", [SETTINGS.min_session_timeout_ms - 1, SETTINGS.max_session_timeout_ms + 1]
)
def test_session_timeouts_out_of_range_are_refused(timeout: int) -> None:
    driver = Driver()
    waiter = driver.join(request(session_timeout_ms=timeout))
    assert driver.joined(waiter).error is ErrorCode.INVALID_SESSION_TIMEOUT


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol_type": "connect"},
        {"protocols": (("roundrobin", b""),)},
        {"protocols": ()},
    ],
)
@pytest.mark.parametrize("state", ["preparing", "completing", "stable"])
def test_a_member_that_shares_no_protocol_is_refused(state: str, changes: dict[str, Any]) -> None:
    driver = Driver()
    if state == "stable":
        driver.stable()
    else:
        driver.join()
        driver.pass_ms(DELAY if state == "completing" else 0)
    waiter = driver.join(request(**changes))
    assert driver.joined(waiter).error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL


@pytest.mark.parametrize("changes", [{"protocol_type": ""}, {"protocols": ()}])
def test_an_empty_group_wants_a_protocol(changes: dict[str, Any]) -> None:
    driver = Driver()
    waiter = driver.join(request(**changes))
    assert driver.joined(waiter).error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL


def test_an_emptied_group_may_change_its_protocol_type() -> None:
    driver = Driver()
    (member,) = driver.stable()
    driver.leave(LeaveMember(member))
    assert driver.state() is GroupState.EMPTY
    waiter = driver.join(request(protocol_type="connect"))
    driver.pass_ms(DELAY)
    assert driver.joined(waiter).protocol_type == "connect"
    assert driver.joined(waiter).generation_id == 3


def test_a_join_and_a_heartbeat_pass_over_no_other_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of members join one by one: a pass over all for each of them was minutes of the loop."""
    driver = Driver()
    members = driver.stable(3)
    passes: list[str] = []
    for name in ("__iter__", "keys", "values", "items"):
        real = getattr(dict, name)

        def counted(self: Any, name: str = name, real: Any = real) -> Any:
            passes.append(name)
            return real(self)

        monkeypatch.setattr(Roster, name, counted, raising=False)
    first = driver.join(request(members[1], protocols=(("range", subscription("u")),)))
    assert driver.state() is GroupState.PREPARING_REBALANCE
    begun = len(passes)
    new = driver.join()
    refused = driver.join(request(protocols=(("other", b""),)))
    assert driver.heartbeat(members[0]) is ErrorCode.REBALANCE_IN_PROGRESS
    again = driver.join(request(members[0]))
    assert len(passes) == begun
    assert driver.joined(refused).error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL
    last = driver.join(request(members[2]))
    assert {driver.joined(waiter).generation_id for waiter in (first, new, again, last)} == {2}
    assert len(passes) > begun


def test_a_protocol_that_only_members_of_before_spoke_is_forgotten() -> None:
    driver = Driver()
    members = driver.stable(2, protocols=(("a", b""), ("b", b"")))
    driver.leave(LeaveMember(members[1]))
    waiter = driver.join(request(members[0], protocols=(("b", b""), ("b", b"again"), ("c", b""))))
    assert driver.joined(waiter).protocol_name == "b"
    assert driver.joined(driver.join(request(protocols=(("a", b""),)))).error is (
        ErrorCode.INCONSISTENT_GROUP_PROTOCOL
    )
    driver.leave(LeaveMember(members[0]))
    assert not driver.group.members._spoken


def test_the_protocol_with_most_first_votes_among_common_ones_wins() -> None:
    driver = Driver()
    orders = [("a", "b", "c"), ("c", "b", "a"), ("d", "b", "a")]
    waiters = [driver.join(request(protocols=tuple((name, b"") for name in order))) for order in orders]
    driver.pass_ms(3 * DELAY)
    # common: a and b; votes: a, b, b
    assert {driver.joined(waiter).protocol_name for waiter in waiters} == {"b"}


def test_an_unknown_member_id_is_refused() -> None:
    driver = Driver()
    driver.stable()
    waiter = driver.join(request("ghost"))
    assert driver.joined(waiter).error is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_second_join_of_a_parked_member_answers_the_first() -> None:
    driver = Driver()
    members = driver.stable(2)
    first = driver.join(request(members[0]))
    second = driver.join(request(members[0]))
    assert driver.joined(first).error is ErrorCode.REBALANCE_IN_PROGRESS
    third = driver.join(request(members[1]))
    assert driver.joined(second).generation_id == driver.joined(third).generation_id == 2


def test_a_lost_join_answer_is_repeated_while_completing() -> None:
    driver = Driver()
    waiters = [driver.join(), driver.join()]
    driver.pass_ms(2 * DELAY)
    for waiter, member in zip(waiters, ["m1", "m2"], strict=True):
        again = driver.join(request(member))
        assert driver.joined(again) == driver.joined(waiter)
    assert driver.state() is GroupState.COMPLETING_REBALANCE


def test_changed_metadata_while_completing_starts_the_rebalance_again() -> None:
    driver = Driver()
    driver.join(), driver.join()
    driver.pass_ms(2 * DELAY)
    parked = driver.sync("m2")
    waiter = driver.join(request("m1", protocols=(("range", b"other"),)))
    assert driver.state() is GroupState.PREPARING_REBALANCE
    assert driver.synced(parked).error is ErrorCode.REBALANCE_IN_PROGRESS
    driver.join(request("m2"))
    assert driver.joined(waiter).generation_id == 2


def test_an_unchanged_follower_rejoins_a_stable_group_without_a_rebalance() -> None:
    driver = Driver()
    members = driver.stable(2)
    waiter = driver.join(request(members[1]))
    assert driver.state() is GroupState.STABLE
    assert (driver.joined(waiter).generation_id, driver.joined(waiter).members) == (1, ())


@pytest.mark.parametrize("who", ["leader", "changed follower"])
def test_the_leader_or_a_changed_follower_starts_a_rebalance(who: str) -> None:
    driver = Driver()
    members = driver.stable(2)
    if who == "leader":
        driver.join(request(members[0]))
    else:
        driver.join(request(members[1], protocols=(("range", b"other"),)))
    assert driver.state() is GroupState.PREPARING_REBALANCE


def test_members_that_do_not_rejoin_in_time_are_dropped() -> None:
    driver = Driver()
    members = driver.stable(2)
    waiter = driver.join(request(members[1], protocols=(("range", b"x"),), session_timeout_ms=SESSION))
    for _ in range(REBALANCE // 5_000):
        driver.heartbeat(members[0])  # alive, but never rejoins
        driver.pass_ms(5_000)
    result = driver.joined(waiter)
    assert (result.leader, [one.member_id for one in result.members]) == (members[1], [members[1]])
    assert driver.heartbeat(members[0]) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_leader_that_is_late_loses_the_lead_to_one_that_joined() -> None:
    driver = Driver()
    members = driver.stable(3, group_instance_id=None)
    waiters = [driver.join(request(name, protocols=(("range", b"x"),))) for name in members[1:]]
    driver.leave(LeaveMember(members[0]))
    assert {driver.joined(waiter).leader for waiter in waiters} == {members[1]}


def test_a_new_member_whose_join_is_parked_too_long_is_dropped() -> None:
    driver = Driver()
    (member,) = driver.stable(1, rebalance_timeout_ms=1_000_000)
    waiter = driver.join(request(rebalance_timeout_ms=1_000_000))
    for _ in range(SETTINGS.new_member_join_timeout_ms // 5_000):
        assert driver.heartbeat(member) is ErrorCode.REBALANCE_IN_PROGRESS
        driver.pass_ms(5_000)
    assert driver.joined(waiter).error is ErrorCode.UNKNOWN_MEMBER_ID
    assert list(driver.group.members) == [member]


@pytest.mark.parametrize("is_stable", [True, False])
def test_a_full_group_takes_no_more(is_stable: bool) -> None:
    driver = Driver(replace(SETTINGS, group_size_max=2))
    if is_stable:
        driver.stable(2)
    else:
        driver.join(), driver.join()
    waiter = driver.join()
    assert driver.joined(waiter) == JoinResult(member_id="", error=ErrorCode.GROUP_MAX_SIZE_REACHED)
    assert len(driver.group.members) == 2


def test_a_cooperative_rebalance_is_two_ordinary_ones() -> None:
    """The revoking member rejoins right after its sync, with its new owned partitions as metadata."""
    driver = Driver()
    first = driver.join(request(protocols=(("cooperative-sticky", b"owns nothing"),)))
    driver.pass_ms(DELAY)
    leader = driver.joined(first).member_id
    driver.sync(leader, {leader: b"p0,p1"})
    second = driver.join(request(protocols=(("cooperative-sticky", b"owns nothing"),)))
    driver.join(request(leader, protocols=(("cooperative-sticky", b"owns p0,p1"),)))
    follower = driver.joined(second).member_id
    parked = driver.sync(follower)
    driver.sync(leader, {leader: b"p0", follower: b""})
    assert driver.synced(parked).assignment == b""
    rejoined = driver.join(request(leader, protocols=(("cooperative-sticky", b"owns p0"),)))
    assert driver.heartbeat(follower) is ErrorCode.REBALANCE_IN_PROGRESS
    driver.join(request(follower, protocols=(("cooperative-sticky", b"owns nothing"),)))
    assert driver.joined(rejoined).generation_id == 3
    parked = driver.sync(follower)
    driver.sync(leader, {leader: b"p0", follower: b"p1"})
    assert driver.synced(parked).assignment == b"p1"
