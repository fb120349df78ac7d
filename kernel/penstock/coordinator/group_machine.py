"""The classic consumer group protocol as a pure state machine: no await, no clock, no logging.

One `Group` per group id. Every method that changes something takes the time and returns a list of outputs
(`penstock.coordinator.group_types.Output`), in the order in which they are to be carried out; JoinGroup and
SyncGroup are always answered through a `Complete` output, at once or later.

Rule 1: these are all the transitions (Kafka's ClassicGroupState).

    Empty                -> PreparingRebalance  a member joins; the first phase lasts the initial rebalance delay
    PreparingRebalance   -> CompletingRebalance all members have rejoined, or the rebalance timeout is over
    PreparingRebalance   -> Empty               the phase is over and nobody is left
    CompletingRebalance  -> Stable              the leader's assignment is durable
    CompletingRebalance  -> PreparingRebalance  a member joins, leaves, expires, or doesn't sync in time
    Stable               -> PreparingRebalance  the same, or a member's metadata changed
    any                  -> Dead                the group is deleted, or its coordinator closes

Sources: KIP-62 (rebalance timeout), KIP-134 (initial delay), KIP-345 (static members), KIP-394 (member id
required), KIP-429 (cooperative rebalancing: nothing but correct rejoins), KIP-559 (protocol checks),
KIP-814 (skip assignment), KIP-211 (offset retention).
"""

from __future__ import annotations

__all__ = ("Group",)

from collections.abc import Iterable, Mapping, Sequence

from penstock.coordinator import group_refusals as refusals
from penstock.coordinator.group_member import GROUP_BYTES, Member, Replacement
from penstock.coordinator.group_offsets import OffsetBook
from penstock.coordinator.group_protocols import Subscription, subscription_of
from penstock.coordinator.group_refusals import CONSUMER_PROTOCOL_TYPE
from penstock.coordinator.group_roster import PendingIds, Roster
from penstock.coordinator.group_types import (
    CommittedOffset,
    Complete,
    GroupDescription,
    GroupListing,
    GroupMetadata,
    GroupSettings,
    GroupState,
    JoinMember,
    JoinRequest,
    JoinResult,
    LeaveMember,
    LeaveResult,
    Output,
    PersistGroup,
    SetTimer,
    SyncRequest,
    SyncResult,
    TimerKey,
    TimerKind,
    TopicPartition,
)
from penstock.wire.error_codes import ErrorCode

_JOIN_TIMER: TimerKey = (TimerKind.JOIN, "")
_SYNC_TIMER: TimerKey = (TimerKind.SYNC, "")
#: Who is absent is waited for at least so long before it is looked again, whatever short time its client asked for.
_ABSENT_MS = 1_000
_REBALANCING = (GroupState.EMPTY, GroupState.COMPLETING_REBALANCE, GroupState.STABLE)


class Group:
    """One classic group: members, generation, state, timers and committed offsets."""

    def __init__(self, group_id: str, settings: GroupSettings, now_ms: int) -> None:
        self.group_id = group_id
        self.state = GroupState.EMPTY
        self.generation_id = 0
        self.protocol_type: str | None = None
        self.protocol_name: str | None = None
        self.leader_id: str | None = None
        self.offsets = OffsetBook()
        self.state_timestamp_ms = now_ms
        self._settings = settings
        self._previous_state = GroupState.EMPTY
        self._members = Roster()
        self._pending_joins = PendingIds()
        self._pending_syncs: set[str] = set()
        #: None: what members subscribe to can't be told.
        self._topics: Subscription | None = Subscription()
        self._deadlines: dict[TimerKey, int] = {}
        self._outputs: list[Output] = []
        # The initial rebalance: the delay that runs, what is left of the rebalance timeout, news since it began.
        self._initial_delay_ms = 0
        self._initial_remaining_ms = 0
        self._joined_during_delay = False
        self._token = 0
        self._assigning: tuple[int, int, dict[str, bytes]] | None = None
        self._replacing: dict[int, Replacement] = {}

    # -- what it looks like -------------------------------------------------------------------------------

    @property
    def members(self) -> Roster:
        """member id -> member, in the order of joining."""
        return self._members

    @property
    def pending_members(self) -> frozenset[str]:
        """Member ids that were given out and didn't come back yet (KIP-394)."""
        return frozenset(self._pending_joins)

    @property
    def is_disposable(self) -> bool:
        """Whether nothing would be lost if the group were forgotten: it had no generation yet, and has no offset."""
        return self.generation_id == 0 and self.is_abandoned

    @property
    def is_abandoned(self) -> bool:
        """Whether the group is empty and its last offset is gone, so that it can be deleted (KIP-211)."""
        return (
            self.state is GroupState.EMPTY
            and not self._pending_joins
            and not self.offsets
            and not self.offsets.has_pending
        )

    @property
    def size_bytes(self) -> int:
        """What the group takes in memory: members with metadata and assignments, ids given out, topics, offsets."""
        members_bytes = self._members.size_bytes + self._pending_joins.size_bytes
        topics_bytes = 0 if self._topics is None else self._topics.size_bytes
        return GROUP_BYTES + 2 * len(self.group_id) + members_bytes + topics_bytes + self.offsets.size_bytes

    @property
    def parked_requests(self) -> int:
        """How many JoinGroup and SyncGroup requests wait for an answer."""
        return self._members.parked_requests

    def deadline(self, key: TimerKey) -> int | None:
        """When this timer is due, in ms; None if it isn't running."""
        return self._deadlines.get(key)

    def describe(self) -> GroupDescription:
        """The group as DescribeGroups shows it: protocol and metadata only when Stable, assignments always."""
        protocol_name = self.protocol_name if self.state is GroupState.STABLE else None
        return GroupDescription(
            group_id=self.group_id,
            error=ErrorCode.NONE,
            state=self.state,
            protocol_type=self.protocol_type or "",
            protocol_name=protocol_name or "",
            members=tuple(member.described(protocol_name) for member in self._members.values()),
        )

    def listing(self) -> GroupListing:
        """The group as ListGroups shows it."""
        return GroupListing(group_id=self.group_id, protocol_type=self.protocol_type or "", state=self.state)

    def is_subscribed_to(self, topic: str) -> bool:
        """Whether a member subscribes to `topic`; where that can't be told, of consumers True, as in Kafka."""
        if self._topics is not None:
            return topic in self._topics
        return bool(self._members) and self.protocol_type == CONSUMER_PROTOCOL_TYPE

    # -- events -------------------------------------------------------------------------------------------

    def join(self, request: JoinRequest, waiter: object, new_member_id: str, now_ms: int) -> list[Output]:
        """JoinGroup. `new_member_id` is used if the member needs one; it must be unique."""
        error = refusals.join_error(self, request, self._settings)
        if error is not ErrorCode.NONE:
            member_id = "" if error is ErrorCode.GROUP_MAX_SIZE_REACHED else request.member_id
            if error is ErrorCode.GROUP_MAX_SIZE_REACHED and request.member_id in self._members:
                self._remove_and_update([self._members[request.member_id]], now_ms)
            self._outputs.append(Complete(waiter, JoinResult(member_id=member_id, error=error)))
        elif request.member_id:
            self._join_existing(request, waiter, now_ms)
        elif request.group_instance_id is not None and request.group_instance_id in self._members.static:
            self._replace_static(request, waiter, new_member_id, now_ms)
        elif request.group_instance_id is None and request.require_known_member_id:
            # KIP-394: without a confirmed id, retries of a lost JoinGroup would pile up as ghost members.
            self._pending_joins.add(new_member_id)
            self._set_timer((TimerKind.SESSION, new_member_id), now_ms + request.session_timeout_ms)
            result = JoinResult(member_id=new_member_id, error=ErrorCode.MEMBER_ID_REQUIRED)
            self._outputs.append(Complete(waiter, result))
        else:
            self._add_member(new_member_id, request, waiter, now_ms)
        return self._take_outputs()

    def sync(self, request: SyncRequest, waiter: object, now_ms: int) -> list[Output]:
        """SyncGroup. The leader's assignment becomes visible once it is durable."""
        error = refusals.sync_error(self, request)
        if error is not ErrorCode.NONE:
            self._outputs.append(Complete(waiter, SyncResult(error=error)))
            return self._take_outputs()
        member = self._members[request.member_id]
        self._pending_syncs.discard(member.member_id)
        if not self._pending_syncs:
            self._cancel_timer(_SYNC_TIMER)
        if self.state is GroupState.STABLE:
            self._outputs.append(Complete(waiter, self._sync_result(member)))
            self._renew_session(member, now_ms)
            return self._take_outputs()
        self._answer_sync(member, SyncResult(error=ErrorCode.REBALANCE_IN_PROGRESS))
        member.sync_waiter = waiter
        if member.member_id == self.leader_id:
            assignments = {name: bytes(request.assignments.get(name, b"")) for name in self._members}
            token = self._persist_awaited(assignments, now_ms)
            self._assigning = (token, self.generation_id, assignments)
        return self._take_outputs()

    def heartbeat(
        self, member_id: str, generation_id: int, group_instance_id: str | None, now_ms: int
    ) -> tuple[ErrorCode, list[Output]]:
        """Heartbeat: extends the session and tells the member whether it must rejoin."""
        error = refusals.heartbeat_error(self, member_id, generation_id, group_instance_id)
        if error is not ErrorCode.NONE:
            return error, []
        self._renew_session(self._members[member_id], now_ms)
        if self.state is GroupState.PREPARING_REBALANCE:
            error = ErrorCode.REBALANCE_IN_PROGRESS
        return error, self._take_outputs()

    def leave(self, members: Sequence[LeaveMember], now_ms: int) -> tuple[list[LeaveResult], list[Output]]:
        """LeaveGroup with one or many members, each with its own result (KIP-345)."""
        results = []
        leaving: dict[str, Member] = {}
        pending: dict[str, None] = {}
        for one in members:
            error = ErrorCode.NONE
            member_id = one.member_id
            if self.state is GroupState.DEAD:
                error = ErrorCode.COORDINATOR_NOT_AVAILABLE
            elif not member_id and one.group_instance_id in self._members.static:
                # An administrator names the instance only.
                member_id = self._members.static[one.group_instance_id]
                if member_id in leaving:
                    error = ErrorCode.UNKNOWN_MEMBER_ID  # named twice, as below
                leaving[member_id] = self._members[member_id]
            elif member_id in leaving or member_id in pending:
                error = ErrorCode.UNKNOWN_MEMBER_ID  # named twice: it is gone already
            elif member_id in self._pending_joins:
                pending[member_id] = None
            else:
                error = self._members.error_of(member_id, one.group_instance_id)
                if error is ErrorCode.NONE:
                    leaving[member_id] = self._members[member_id]
                elif self._members.static.get(one.group_instance_id or "") in leaving:
                    error = ErrorCode.UNKNOWN_MEMBER_ID  # who held the instance is gone already
            results.append(LeaveResult(one.member_id, one.group_instance_id, error))
        # Members first: a pending one that goes may complete the join phase, which must not count them.
        self._remove_and_update(leaving.values(), now_ms)
        for member_id in pending:
            self._remove_pending(member_id, now_ms)
        return results, self._take_outputs()

    def timer_fired(self, key: TimerKey, now_ms: int) -> list[Output]:
        """A timer is due. A timer that was moved or cancelled in the meantime is ignored."""
        deadline = self._deadlines.get(key)
        if deadline is None or now_ms < deadline:
            return []
        del self._deadlines[key]
        kind, member_id = key
        if kind is TimerKind.SESSION:
            self._expire_session(member_id, now_ms)
        elif kind is TimerKind.SYNC:
            self._expire_syncs(now_ms)
        elif kind is TimerKind.WRITE:
            return self.persisted(int(member_id), ErrorCode.COORDINATOR_NOT_AVAILABLE, now_ms)
        elif (
            self._previous_state is GroupState.EMPTY
            and self._joined_during_delay
            and self._initial_remaining_ms
        ):
            self._extend_initial_delay(now_ms)
        else:
            self._complete_join(now_ms)
        return self._take_outputs()

    def persisted(self, token: int, error: ErrorCode, now_ms: int) -> list[Output]:
        """The metadata of `PersistGroup` with this token is durable (NONE), or couldn't be written.

        Nothing if whoever waited for it was answered already, with its time over: the members were told to rejoin.
        """
        self._cancel_timer((TimerKind.WRITE, str(token)))
        replacement = self._replacing.pop(token, None)
        if replacement is not None:
            self._finish_replacement(replacement, error, now_ms)
        elif self._assigning is not None and self._assigning[0] == token:
            _, generation_id, assignments = self._assigning
            self._assigning = None
            # The group may have moved on while the record was on its way.
            if self.state is GroupState.COMPLETING_REBALANCE and generation_id == self.generation_id:
                self._finish_assignment(assignments, error, now_ms)
        return self._take_outputs()

    def answer_parked(self, error: ErrorCode) -> list[Output]:
        """Answer every parked request with `error`; the members stay."""
        for member in self._members.values():
            self._answer_join(member, JoinResult(member_id=member.member_id, error=error))
            self._answer_sync(member, SyncResult(error=error))
        return self._take_outputs()

    def close(self, error: ErrorCode) -> list[Output]:
        """The group ends here: everything parked is answered with `error`, the state is Dead."""
        outputs = self.answer_parked(error)
        self._members.clear()
        self._pending_joins.clear()
        self._pending_syncs.clear()
        self._deadlines.clear()
        self._assigning = None
        self._replacing.clear()
        self.leader_id = None
        self._previous_state, self.state = self.state, GroupState.DEAD
        return outputs

    def restore(self, metadata: GroupMetadata, now_ms: int) -> list[Output]:
        """Take over what the log says; sessions start anew, so members have time to find the coordinator."""
        assert not self._members, f"a group is restored only once: group_id={self.group_id!r}"
        self.protocol_type = metadata.protocol_type or None
        self.protocol_name = metadata.protocol_name
        self.generation_id = metadata.generation_id
        self.state_timestamp_ms = metadata.state_timestamp_ms if metadata.state_timestamp_ms >= 0 else now_ms
        for persisted in metadata.members:
            member = Member.restored(persisted, metadata.protocol_type, metadata.protocol_name or "")
            self._members[member.member_id] = member
            self._renew_session(member, now_ms)
        if self._members:
            self.state = GroupState.STABLE
            self.leader_id = (
                metadata.leader if metadata.leader in self._members else next(iter(self._members))
            )
        self._topics = self._subscribed()
        return self._take_outputs()

    # -- offsets ------------------------------------------------------------------------------------------

    def begin_commit(
        self,
        member_id: str,
        generation_id: int,
        group_instance_id: str | None,
        sets: Iterable[Mapping[TopicPartition, CommittedOffset]],
        now_ms: int,
    ) -> tuple[ErrorCode, list[Output]]:
        """OffsetCommit: decide. Without an error each of the sets is pending until `settle_commit`."""
        error = refusals.commit_error(self, member_id, generation_id, group_instance_id)
        if error is not ErrorCode.NONE:
            return error, []
        if member_id in self._members:
            self._renew_session(self._members[member_id], now_ms)
        for offsets in sets:
            self.offsets.begin(offsets)
        return ErrorCode.NONE, self._take_outputs()

    def settle_commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, durable: bool) -> None:
        """A set of a commit is durable, or failed."""
        self.offsets.settle(offsets, durable=durable)

    def delete_error(self) -> ErrorCode:
        """Whether DeleteGroups may delete the group."""
        return refusals.delete_error(self)

    def delete_offsets_error(self) -> ErrorCode:
        """Whether OffsetDelete may look at single topics; subscribed ones are refused one by one."""
        return refusals.delete_offsets_error(self)

    def expired_offsets(
        self, now_ms: int, among: Iterable[TopicPartition] | None = None
    ) -> list[TopicPartition]:
        """The offsets (of ``among``, else of all) whose retention is over (KIP-211)."""
        retention_ms = self._settings.offsets_retention_ms
        if self.state is GroupState.EMPTY:
            # A group that never had members (simple consumer) has no moment at which it became empty.
            since_ms = self.state_timestamp_ms if self.protocol_type is not None else None
            return self.offsets.expired(
                now_ms, retention_ms, empty_since_ms=since_ms, keep_topics=(), among=among
            )
        if (
            self.state is GroupState.STABLE
            and self.protocol_type == CONSUMER_PROTOCOL_TYPE
            and self._topics is not None
        ):
            return self.offsets.expired(
                now_ms, retention_ms, empty_since_ms=None, keep_topics=self._topics, among=among
            )
        return []

    # -- joining ------------------------------------------------------------------------------------------

    def _join_existing(self, request: JoinRequest, waiter: object, now_ms: int) -> None:
        member_id = request.member_id
        if member_id in self._pending_joins and request.group_instance_id is None:
            self._add_member(member_id, request, waiter, now_ms)
            return
        error = self._members.error_of(member_id, request.group_instance_id)
        if error is not ErrorCode.NONE:
            self._outputs.append(Complete(waiter, JoinResult(member_id=member_id, error=error)))
            return
        member = self._members[member_id]
        is_unchanged = member.protocols == request.protocols
        is_leader = member_id == self.leader_id
        answer_now = (self.state is GroupState.COMPLETING_REBALANCE and is_unchanged) or (
            self.state is GroupState.STABLE and is_unchanged and not is_leader
        )
        if answer_now:
            # The answer to the member's first JoinGroup was lost: it gets the current generation once more.
            self._outputs.append(Complete(waiter, self._join_result(member)))
            return
        self._members.renew(member, request)
        self._park_join(member, waiter)
        self._rebalance_or_complete(now_ms)

    def _add_member(self, member_id: str, request: JoinRequest, waiter: object, now_ms: int) -> None:
        member = Member(member_id, request)
        member.is_new = True
        if self.state is GroupState.PREPARING_REBALANCE and self._previous_state is GroupState.EMPTY:
            self._joined_during_delay = True
        if not self._members:
            self.protocol_type = request.protocol_type
        self._members[member_id] = member
        if self.leader_id is None:
            self.leader_id = member_id
        self._pending_joins.discard(member_id)
        self._park_join(member, waiter)
        # A new member can't send heartbeats while its JoinGroup is parked, so the session timeout doesn't
        # count; but a client that retries on another connection leaves a ghost, which this gets rid of.
        timeout_ms = self._settings.new_member_join_timeout_ms
        self._set_timer((TimerKind.SESSION, member_id), now_ms + timeout_ms)
        self._rebalance_or_complete(now_ms)

    def _park_join(self, member: Member, waiter: object) -> None:
        # A second JoinGroup of the same member: the first one's connection is most likely gone.
        superseded = JoinResult(member_id=member.member_id, error=ErrorCode.REBALANCE_IN_PROGRESS)
        self._answer_join(member, superseded)
        self._members.park(member, waiter)

    def _join_result(self, member: Member) -> JoinResult:
        is_leader = member.member_id == self.leader_id
        # without names: of one member in thousands each microsecond is milliseconds
        return JoinResult(
            member.member_id,
            ErrorCode.NONE,
            self.generation_id,
            self.protocol_type,
            self.protocol_name,
            self.leader_id or "",
            False,
            self._member_list() if is_leader else (),
        )

    def _member_list(self) -> tuple[JoinMember, ...]:
        return tuple(
            JoinMember(one.member_id, one.group_instance_id, one.metadata_for(self.protocol_name))
            for one in self._members.values()
        )

    # -- static members (KIP-345) -------------------------------------------------------------------------

    def _replace_static(self, request: JoinRequest, waiter: object, new_member_id: str, now_ms: int) -> None:
        """A known instance came back without its member id: give it a new one and fence the old one."""
        assert request.group_instance_id is not None
        leader_before = self.leader_id or ""
        old = self._members[self._members.static[request.group_instance_id]]
        new = old.successor(new_member_id, request)
        self._answer_join(old, JoinResult(member_id=old.member_id, error=ErrorCode.FENCED_INSTANCE_ID))
        self._answer_sync(old, SyncResult(error=ErrorCode.FENCED_INSTANCE_ID))
        self._swap(old, new)
        self._members.park(new, waiter)
        self._renew_session(new, now_ms)
        keeps_protocol = self._members.selected_protocol() == self.protocol_name
        if self.state is GroupState.STABLE and keeps_protocol:
            kept = {name: one.assignment for name, one in self._members.items()}
            token = self._persist_awaited(kept, now_ms)
            self._replacing[token] = Replacement(old, new, leader_before)
        else:
            # While completing a rebalance the leader may already assign to the old id, so it starts again.
            self._rebalance_or_complete(now_ms)

    def _swap(self, old: Member, new: Member) -> None:
        self._members = self._members.replaced(old, new)
        self._cancel_timer((TimerKind.SESSION, old.member_id))
        if old.member_id in self._pending_syncs:
            self._pending_syncs.discard(old.member_id)
            self._pending_syncs.add(new.member_id)
        if self.leader_id == old.member_id:
            self.leader_id = new.member_id

    def _finish_replacement(self, replacement: Replacement, error: ErrorCode, now_ms: int) -> None:
        new = replacement.new
        is_current = self._members.get(new.member_id) is new
        if not is_current or self.state is not GroupState.STABLE:
            # Replaced once more, gone, or part of a rebalance that has begun since and will answer it.
            return
        if error is not ErrorCode.NONE:
            waiter = self._members.park(new, None)
            self._swap(new, replacement.old)
            self._renew_session(replacement.old, now_ms)
            if waiter is not None:
                self._outputs.append(Complete(waiter, JoinResult(member_id="", error=error)))
            return
        is_leader = new.member_id == self.leader_id
        if new.supports_skip_assignment:
            # KIP-814: the leader learns that it is one, and that it needn't assign.
            leader, members = self.leader_id or "", self._member_list() if is_leader else ()
        else:
            # Older clients would compute a new assignment if they saw themselves as leader.
            leader, members = replacement.leader_before, ()
        result = JoinResult(
            member_id=new.member_id,
            generation_id=self.generation_id,
            protocol_type=self.protocol_type,
            protocol_name=self.protocol_name,
            leader=leader,
            skip_assignment=new.supports_skip_assignment and is_leader,
            members=members,
        )
        self._answer_join(new, result)
        self._renew_session(new, now_ms)

    # -- the rebalance ------------------------------------------------------------------------------------

    def _rebalance_or_complete(self, now_ms: int) -> None:
        if self.state in _REBALANCING:
            self._prepare_rebalance(now_ms)
        else:
            self._complete_join_if_ready(now_ms)

    def _prepare_rebalance(self, now_ms: int) -> None:
        if self.state is GroupState.COMPLETING_REBALANCE:
            self._drop_assignment(ErrorCode.REBALANCE_IN_PROGRESS, now_ms)
        self._cancel_timer(_SYNC_TIMER)
        self._pending_syncs.clear()
        is_initial = self.state is GroupState.EMPTY
        self._transition(GroupState.PREPARING_REBALANCE, now_ms)
        if is_initial:
            # KIP-134: give the other members of a starting application time to arrive.
            self._initial_delay_ms = self._settings.initial_rebalance_delay_ms
            self._initial_remaining_ms = max(self._members.rebalance_timeout_ms - self._initial_delay_ms, 0)
            self._joined_during_delay = False
            self._set_timer(_JOIN_TIMER, now_ms + self._initial_delay_ms)
        elif self._all_joined():
            self._complete_join(now_ms)
        else:
            self._set_timer(_JOIN_TIMER, now_ms + self._members.rebalance_timeout_ms)

    def _extend_initial_delay(self, now_ms: int) -> None:
        self._joined_during_delay = False
        elapsed_ms = self._initial_delay_ms
        self._initial_delay_ms = min(self._settings.initial_rebalance_delay_ms, self._initial_remaining_ms)
        self._initial_remaining_ms = max(self._initial_remaining_ms - elapsed_ms, 0)
        self._set_timer(_JOIN_TIMER, now_ms + self._initial_delay_ms)

    def _complete_join_if_ready(self, now_ms: int) -> None:
        if (
            self.state is GroupState.PREPARING_REBALANCE
            and self._previous_state is not GroupState.EMPTY
            and self._all_joined()
        ):
            self._complete_join(now_ms)

    def _all_joined(self) -> bool:
        return not self._pending_joins and self._members.joined == len(self._members)

    def _complete_join(self, now_ms: int) -> None:
        """The join phase ends: whoever hasn't rejoined is out, unless it is a static member."""
        assert self.state is GroupState.PREPARING_REBALANCE, f"no rebalance is on: state={self.state}"
        self._cancel_timer(_JOIN_TIMER)
        late = [one for one in self._members.values() if one.join_waiter is None and not one.is_static]
        for member in late:
            self._remove(member)
        leader_id = self._members.joined_leader(self.leader_id)
        if self._members and leader_id is None:
            # Only absent static members are left: wait until one comes back or their sessions expire.
            self._set_timer(_JOIN_TIMER, now_ms + max(self._members.rebalance_timeout_ms, _ABSENT_MS))
            return
        self.leader_id = leader_id
        self.generation_id += 1
        self._pending_syncs.clear()
        if not self._members:
            self.protocol_name = None
            self._transition(GroupState.EMPTY, now_ms)
            self._topics = self._subscribed()
            self._persist({}, now_ms)
            return
        self.protocol_name = self._members.selected_protocol()
        self._transition(GroupState.COMPLETING_REBALANCE, now_ms)
        self._topics = self._subscribed()
        for member in self._members.values():
            self._answer_join(member, self._join_result(member))
            member.is_new = False
            self._renew_session(member, now_ms)
            self._pending_syncs.add(member.member_id)
        self._set_timer(_SYNC_TIMER, now_ms + self._members.rebalance_timeout_ms)

    def _subscribed(self) -> Subscription | None:
        if self._members and self.protocol_type != CONSUMER_PROTOCOL_TYPE:
            return None
        return subscription_of(self._members.values(), self.protocol_name)

    # -- the assignment -----------------------------------------------------------------------------------

    def _finish_assignment(self, assignments: Mapping[str, bytes], error: ErrorCode, now_ms: int) -> None:
        if error is not ErrorCode.NONE:
            self._drop_assignment(error, now_ms)
            self._prepare_rebalance(now_ms)
            return
        for member in self._members.values():
            self._members.assign(member, assignments.get(member.member_id, b""))
            if member.sync_waiter is not None:
                self._renew_session(member, now_ms)
            self._answer_sync(member, self._sync_result(member))
        self._transition(GroupState.STABLE, now_ms)

    def _drop_assignment(self, error: ErrorCode, now_ms: int) -> None:
        self._assigning = None
        for member in self._members.values():
            self._members.assign(member, b"")
            if member.sync_waiter is not None:
                self._renew_session(member, now_ms)
                self._answer_sync(member, SyncResult(error=error))

    def _sync_result(self, member: Member) -> SyncResult:
        return SyncResult(
            protocol_type=self.protocol_type, protocol_name=self.protocol_name, assignment=member.assignment
        )

    # -- leaving and expiring -----------------------------------------------------------------------------

    def _expire_session(self, member_id: str, now_ms: int) -> None:
        if member_id in self._pending_joins:
            self._remove_pending(member_id, now_ms)
            return
        member = self._members.get(member_id)
        if member is None:
            return
        is_parked = member.join_waiter is not None or member.sync_waiter is not None
        if is_parked and not member.is_new:
            # The coordinator owes the member an answer; its session starts again with that.
            return
        self._remove_and_update([member], now_ms)

    def _expire_syncs(self, now_ms: int) -> None:
        """KAFKA-13544: a member that joined but never syncs would hold the group up forever."""
        if self.state not in (GroupState.COMPLETING_REBALANCE, GroupState.STABLE) or not self._pending_syncs:
            return
        silent = [one for one in self._members.values() if one.member_id in self._pending_syncs]
        self._remove_and_update(silent, now_ms)

    def _remove_pending(self, member_id: str, now_ms: int) -> None:
        self._pending_joins.discard(member_id)
        self._cancel_timer((TimerKind.SESSION, member_id))
        self._complete_join_if_ready(now_ms)

    def _remove_and_update(self, members: Iterable[Member], now_ms: int) -> None:
        removed = list(members)
        for member in removed:
            self._remove(member)
        if removed:
            self._rebalance_or_complete(now_ms)

    def _remove(self, member: Member) -> None:
        self._answer_join(member, JoinResult(member_id="", error=ErrorCode.UNKNOWN_MEMBER_ID))
        self._answer_sync(member, SyncResult(error=ErrorCode.UNKNOWN_MEMBER_ID))
        del self._members[member.member_id]
        self._pending_syncs.discard(member.member_id)
        self._cancel_timer((TimerKind.SESSION, member.member_id))
        if self.leader_id == member.member_id:
            self.leader_id = next(iter(self._members), None)

    # -- outputs ------------------------------------------------------------------------------------------

    def _transition(self, state: GroupState, now_ms: int) -> None:
        self._previous_state, self.state = self.state, state
        self.state_timestamp_ms = now_ms

    def _answer_join(self, member: Member, result: JoinResult) -> None:
        waiter = self._members.park(member, None)
        if waiter is not None:
            self._outputs.append(Complete(waiter, result))

    def _answer_sync(self, member: Member, result: SyncResult) -> None:
        if member.sync_waiter is not None:
            self._outputs.append(Complete(member.sync_waiter, result))
            member.sync_waiter = None

    def _renew_session(self, member: Member, now_ms: int) -> None:
        if member.is_new and member.join_waiter is not None:
            return  # the limit on a new member's parked JoinGroup isn't extended by anything
        self._set_timer((TimerKind.SESSION, member.member_id), now_ms + member.session_timeout_ms)

    def _set_timer(self, key: TimerKey, at_ms: int) -> None:
        self._deadlines[key] = at_ms
        self._outputs.append(SetTimer(key, at_ms))

    def _cancel_timer(self, key: TimerKey) -> None:
        self._deadlines.pop(key, None)

    def _persist(self, assignments: Mapping[str, bytes], now_ms: int) -> int:
        self._token += 1
        metadata = GroupMetadata(
            protocol_type=self.protocol_type or "",
            generation_id=self.generation_id,
            protocol_name=self.protocol_name,
            leader=self.leader_id,
            state_timestamp_ms=now_ms if not self._members else self.state_timestamp_ms,
            members=tuple(
                one.persisted(self.protocol_name, assignments.get(name, b""))
                for name, one in self._members.items()
            ),
        )
        self._outputs.append(PersistGroup(self._token, metadata))
        return self._token

    def _persist_awaited(self, assignments: Mapping[str, bytes], now_ms: int) -> int:
        """`_persist`, with members who wait for it, but not for ever."""
        token = self._persist(assignments, now_ms)
        self._set_timer((TimerKind.WRITE, str(token)), now_ms + self._settings.write_timeout_ms)
        return token

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs
