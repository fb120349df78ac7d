"""The classic group protocol, clause by clause, on the pure machine."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from typing import Any

import pytest

from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_offsets import committed_offset
from penstock.coordinator.group_roster import Roster
from penstock.coordinator.group_types import (
    CommittedOffset,
    Complete,
    GroupMetadata,
    GroupSettings,
    GroupState,
    JoinRequest,
    JoinResult,
    LeaveMember,
    OffsetAndMetadata,
    Output,
    PersistGroup,
    SyncRequest,
    SyncResult,
    TimerKind,
)
from penstock.wire.error_codes import ErrorCode

SETTINGS = GroupSettings()
DELAY = SETTINGS.initial_rebalance_delay_ms
SESSION = 10_000
REBALANCE = 60_000
JOIN_TIMER = (TimerKind.JOIN, "")
SYNC_TIMER = (TimerKind.SYNC, "")


def subscription(*topics: str) -> bytes:
    body = struct.pack(">hi", 0, len(topics))
    return body + b"".join(struct.pack(">h", len(t)) + t.encode() for t in topics) + struct.pack(">i", -1)


def request(member_id: str = "", **changes: Any) -> JoinRequest:
    base = JoinRequest(
        member_id=member_id,
        client_id="client",
        client_host="/127.0.0.1",
        session_timeout_ms=SESSION,
        rebalance_timeout_ms=REBALANCE,
        protocol_type="consumer",
        protocols=(("range", subscription("t")),),
    )
    return replace(base, **changes)


class Driver:
    """Feeds a group and keeps what comes out; persisting succeeds at once unless `hold` is set."""

    def __init__(self, settings: GroupSettings = SETTINGS) -> None:
        self.now = 1_000_000
        self.group = Group("g", settings, self.now)
        self.answers: dict[object, Any] = {}
        self.held: list[PersistGroup] = []
        self.persisted: list[GroupMetadata] = []
        self.hold = False
        self.names = (f"m{index}" for index in itertools.count(1))
        self.waiters = itertools.count()

    def state(self) -> GroupState:
        return self.group.state

    def do(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Complete):
                assert output.waiter not in self.answers, "answered twice"
                self.answers[output.waiter] = output.result
            elif isinstance(output, PersistGroup):
                self.held.append(output)
        if not self.hold:
            self.settle()

    def settle(self, error: ErrorCode = ErrorCode.NONE) -> None:
        held, self.held = self.held, []
        for output in held:
            if error is ErrorCode.NONE:
                self.persisted.append(output.metadata)
            self.do(self.group.persisted(output.token, error, self.now))

    def join(self, asked: JoinRequest | None = None) -> int:
        waiter = next(self.waiters)
        self.do(self.group.join(asked or request(), waiter, next(self.names), self.now))
        return waiter

    def joined(self, waiter: int) -> JoinResult:
        result = self.answers[waiter]
        assert isinstance(result, JoinResult)
        return result

    def sync(self, member: str, assignments: dict[str, bytes] | None = None, **changes: Any) -> int:
        waiter = next(self.waiters)
        asked = SyncRequest(
            member_id=member, generation_id=self.group.generation_id, assignments=assignments or {}
        )
        self.do(self.group.sync(replace(asked, **changes), waiter, self.now))
        return waiter

    def synced(self, waiter: int) -> SyncResult:
        result = self.answers[waiter]
        assert isinstance(result, SyncResult)
        return result

    def heartbeat(self, member: str, generation: int | None = None, instance: str | None = None) -> ErrorCode:
        current = self.group.generation_id if generation is None else generation
        error, outputs = self.group.heartbeat(member, current, instance, self.now)
        self.do(outputs)
        return error

    def leave(self, *members: LeaveMember) -> list[ErrorCode]:
        results, outputs = self.group.leave(members, self.now)
        self.do(outputs)
        return [one.error for one in results]

    def pass_ms(self, ms: int) -> None:
        """Let time pass, firing timers in order."""
        end = self.now + ms
        while True:
            timers = [(at, key) for key, at in self.group._deadlines.items() if at <= end]
            if not timers:
                break
            self.now, key = min(timers, key=lambda timer: timer[0])
            self.do(self.group.timer_fired(key, self.now))
        self.now = end

    def stable(self, count: int = 1, **changes: Any) -> list[str]:
        """A stable group of `count` members m1, m2... of which the first leads."""
        waiters = [self.join(request(**changes)) for _ in range(count)]
        self.pass_ms(DELAY * 2)
        members = [self.joined(waiter).member_id for waiter in waiters]
        for member in reversed(members):
            self.sync(member, {name: name.encode() for name in members})
        assert self.group.state is GroupState.STABLE
        return members


# -- joining --------------------------------------------------------------------------------------------------


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


# -- syncing --------------------------------------------------------------------------------------------------


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


# -- heartbeats, leaving, expiry ------------------------------------------------------------------------------


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
    assert driver.leave(named, named) == [ErrorCode.NONE, ErrorCode.UNKNOWN_MEMBER_ID]


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


# -- static members (KIP-345) ---------------------------------------------------------------------------------


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
        error = commit(driver, "other", 1, instance="i")
    assert error is ErrorCode.FENCED_INSTANCE_ID
    assert driver.heartbeat(member, instance="i") is ErrorCode.NONE


# -- cooperative rebalancing (KIP-429) ------------------------------------------------------------------------


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


# -- offsets --------------------------------------------------------------------------------------------------


def commit(
    driver: Driver,
    member: str = "",
    generation: int = -1,
    *,
    instance: str | None = None,
    offset: int = 5,
    metadata: str = "",
    retention: int | None = None,
    topic: str = "t",
) -> ErrorCode:
    asked = OffsetAndMetadata(offset, 3, metadata)
    committed = committed_offset(asked, retention, driver.now, SETTINGS.offset_metadata_bytes_max)
    sets = [] if committed is None else [{(topic, 0): committed}]
    error, outputs = driver.group.begin_commit(member, generation, instance, sets, driver.now)
    driver.do(outputs)
    if error is ErrorCode.NONE:
        for offsets in sets:
            driver.group.settle_commit(offsets, durable=True)
    return error or (ErrorCode.OFFSET_METADATA_TOO_LARGE if committed is None else ErrorCode.NONE)


def test_a_simple_consumer_commits_to_an_empty_group_only() -> None:
    driver = Driver()
    assert commit(driver) is ErrorCode.NONE
    driver.stable()
    assert commit(driver) is ErrorCode.UNKNOWN_MEMBER_ID


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
    assert commit(driver, member, generation) is error


def test_commits_while_preparing_are_taken_and_while_completing_refused() -> None:
    driver = Driver()
    driver.stable(2)
    driver.join(request("m1"))
    assert driver.state() is GroupState.PREPARING_REBALANCE
    assert commit(driver, "m2", 1) is ErrorCode.NONE
    driver.join(request("m2"))
    assert driver.state() is GroupState.COMPLETING_REBALANCE
    assert commit(driver, "m2", 2) is ErrorCode.REBALANCE_IN_PROGRESS


def test_a_generation_in_an_empty_group_is_unknown() -> None:
    driver = Driver()
    assert commit(driver, "m1", 1) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_commit_extends_the_session() -> None:
    driver = Driver()
    driver.stable()
    driver.pass_ms(SESSION - 1)
    commit(driver, "m1", 1)
    driver.pass_ms(SESSION - 1)
    assert driver.state() is GroupState.STABLE


def test_offset_metadata_has_a_limit() -> None:
    driver = Driver()
    assert commit(driver, metadata="x" * 4096) is ErrorCode.NONE
    assert commit(driver, metadata="x" * 4097) is ErrorCode.OFFSET_METADATA_TOO_LARGE
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
    commit(driver, "m1", 1)
    for _ in range(3):
        driver.now += RETENTION
        assert driver.group.expired_offsets(driver.now) == []
    driver.leave(LeaveMember("m1"))
    assert driver.group.expired_offsets(driver.now + RETENTION - 1) == []
    assert driver.group.expired_offsets(driver.now + RETENTION) == [("t", 0)]


def test_a_simple_consumers_retention_counts_from_the_commit() -> None:
    driver = Driver()
    driver.now += RETENTION
    commit(driver)
    assert driver.group.expired_offsets(driver.now + RETENTION - 1) == []
    assert driver.group.expired_offsets(driver.now + RETENTION) == [("t", 0)]


def test_an_explicit_retention_time_wins() -> None:
    driver = Driver()
    commit(driver, retention=1_000)
    assert driver.group.expired_offsets(driver.now + 999) == []
    assert driver.group.expired_offsets(driver.now + 1_000) == [("t", 0)]


def test_offsets_of_topics_nobody_subscribes_to_expire_in_a_stable_group() -> None:
    driver = Driver()
    driver.stable()
    commit(driver, "m1", 1, topic="t")
    commit(driver, "m1", 1, topic="old")
    assert driver.group.expired_offsets(driver.now + RETENTION) == [("old", 0)]


def test_a_pending_commit_keeps_its_offset_from_expiring() -> None:
    driver = Driver()
    commit(driver)
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


# -- showing and restoring ------------------------------------------------------------------------------------


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
