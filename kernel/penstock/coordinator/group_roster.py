"""Who is in a classic group: its members by id and by instance, and the ids that were given out."""

from __future__ import annotations

__all__ = ("PendingIds", "Roster")

from collections import Counter
from collections.abc import Mapping

from penstock.coordinator.group_member import PENDING_BYTES, Member
from penstock.coordinator.group_types import JoinRequest
from penstock.wire.error_codes import ErrorCode


class Roster(dict[str, Member]):
    """member id -> member, in the order of joining; knows what they take together, and who has which instance id.

    It counts as members come and go what each JoinGroup asks of all of them: a pass over thousands of members for
    each of them is minutes of the loop.
    """

    def __init__(self, members: Mapping[str, Member] | None = None) -> None:
        super().__init__(members or {})
        self.size_bytes = sum(member.size_bytes for member in self.values())
        #: group instance id -> member id, of the static members (KIP-345).
        self.static = {
            member.group_instance_id: name
            for name, member in self.items()
            if member.group_instance_id is not None
        }
        #: How many wait for the join phase to end.
        self.joined = sum(member.join_waiter is not None for member in self.values())
        self._spoken = Counter(name for member in self.values() for name in dict(member.protocols))

    def __setitem__(self, member_id: str, member: Member) -> None:
        assert member_id not in self, f"a member joins once: member_id={member_id!r}"
        super().__setitem__(member_id, member)
        self.size_bytes += member.size_bytes
        self.joined += member.join_waiter is not None
        self._spoken.update(dict(member.protocols).keys())
        if member.group_instance_id is not None:
            self.static[member.group_instance_id] = member_id

    def __delitem__(self, member_id: str) -> None:
        member = self[member_id]
        self.size_bytes -= member.size_bytes
        self.joined -= member.join_waiter is not None
        self._forget_protocols(member)
        if member.group_instance_id is not None:
            del self.static[member.group_instance_id]
        super().__delitem__(member_id)

    def clear(self) -> None:
        """Nobody is a member any more."""
        super().clear()
        self.static.clear()
        self._spoken.clear()
        self.size_bytes = self.joined = 0

    def replaced(self, old: Member, new: Member) -> Roster:
        """With ``new`` in the place of ``old``."""
        return Roster(
            {
                (new.member_id if one is old else name): (new if one is old else one)
                for name, one in self.items()
            }
        )

    def renew(self, member: Member, request: JoinRequest) -> None:
        """The member says something else with a new JoinGroup."""
        self.size_bytes -= member.size_bytes
        self._forget_protocols(member)
        member.update(request)
        self._spoken.update(dict(member.protocols).keys())
        self.size_bytes += member.size_bytes

    def park(self, member: Member, waiter: object | None) -> object | None:
        """The member waits for the join phase to end, or with None no more; who waited in its place until now."""
        before, member.join_waiter = member.join_waiter, waiter
        self.joined += (waiter is not None) - (before is not None)
        return before

    def assign(self, member: Member, assignment: bytes) -> None:
        """The member gets an assignment, or with an empty one none."""
        self.size_bytes += len(assignment) - len(member.assignment)
        member.assign(assignment)

    def _forget_protocols(self, member: Member) -> None:
        for name in dict(member.protocols):
            self._spoken[name] -= 1
            if not self._spoken[name]:
                del self._spoken[name]  # names are the clients': there may be any

    # -- who is there -------------------------------------------------------------------------------------

    def error_of(self, member_id: str, group_instance_id: str | None) -> ErrorCode:
        """Whether somebody may speak for this member: NONE, UNKNOWN_MEMBER_ID, or FENCED_INSTANCE_ID (KIP-345)."""
        if group_instance_id is not None:
            holder = self.static.get(group_instance_id)
            if holder is None:
                return ErrorCode.UNKNOWN_MEMBER_ID
            if holder != member_id:
                return ErrorCode.FENCED_INSTANCE_ID
        return ErrorCode.NONE if member_id in self else ErrorCode.UNKNOWN_MEMBER_ID

    def shares_a_protocol(self, request: JoinRequest) -> bool:
        """Whether one of the request's protocols is spoken by all members."""
        return any(self._spoken[name] == len(self) for name, _ in request.protocols)

    def selected_protocol(self) -> str:
        """The protocol with the most votes; every member votes for its first one that all speak."""
        common = {name for name, count in self._spoken.items() if count == len(self)}
        if len(common) == 1:
            return common.pop()
        votes = Counter(member.vote(common) for member in self.values())
        return votes.most_common(1)[0][0]

    @property
    def parked_requests(self) -> int:
        """How many JoinGroup and SyncGroup requests wait for an answer."""
        return self.joined + sum(member.sync_waiter is not None for member in self.values())

    @property
    def rebalance_timeout_ms(self) -> int:
        """How long a join phase lasts: as long as the most patient member wants."""
        return max((member.rebalance_timeout_ms for member in self.values()), default=0)

    def joined_leader(self, leader_id: str | None) -> str | None:
        """Who leads once the join phase ends: the leader if it has rejoined, else the first member that has."""
        leader = self.get(leader_id or "")
        if leader is not None and leader.join_waiter is not None:
            return leader.member_id
        return next((name for name, member in self.items() if member.join_waiter is not None), None)


class PendingIds(set[str]):
    """Member ids that were given out and didn't come back yet (KIP-394); knows what they take together."""

    size_bytes = 0

    def add(self, member_id: str) -> None:
        """Note a member id that was given out; each is new."""
        super().add(member_id)
        self.size_bytes += PENDING_BYTES + len(member_id)

    def discard(self, member_id: object) -> None:
        """Forget a member id: who got it has joined with it, or its time is up."""
        if isinstance(member_id, str) and member_id in self:
            super().discard(member_id)
            self.size_bytes -= PENDING_BYTES + len(member_id)

    def clear(self) -> None:
        """Forget all of them: none is valid any more."""
        super().clear()
        self.size_bytes = 0
