"""One member of a classic group, as the group machine keeps it."""

from __future__ import annotations

__all__ = ("GROUP_BYTES", "PENDING_BYTES", "Member", "Replacement", "member_bytes")

from collections.abc import Collection

from penstock.coordinator.group_types import JoinRequest, MemberDescription, MemberMetadata

#: What a group takes beside its strings, members and offsets (measured: 2.7 KB).
GROUP_BYTES = 3_072
#: What a member takes beside its strings: the objects, places in dictionaries, and timers (measured: 1.6 KB).
MEMBER_BYTES = 2_048
#: The same of a member id that was given out and didn't come back yet.
PENDING_BYTES = 1_024


def member_bytes(member_id: str, request: JoinRequest) -> int:
    """Memory of a member that joined with this request, in estimated bytes, without its assignment."""
    names = len(member_id) + len(request.client_id) + len(request.group_instance_id or "")
    return MEMBER_BYTES + names + request.protocols_bytes


class Member:
    """One member of a group, with its parked requests (`join_waiter`, `sync_waiter`)."""

    __slots__ = (
        "assignment",
        "client_host",
        "client_id",
        "group_instance_id",
        "is_new",
        "join_waiter",
        "member_id",
        "protocols",
        "rebalance_timeout_ms",
        "session_timeout_ms",
        "size_bytes",
        "supports_skip_assignment",
        "sync_waiter",
    )

    def __init__(self, member_id: str, request: JoinRequest) -> None:
        self.member_id = member_id
        self.group_instance_id = request.group_instance_id
        self.client_id = request.client_id
        self.client_host = request.client_host
        self.assignment = b""
        #: What it takes in memory, with its timers; ``update`` and ``assign`` keep it.
        self.size_bytes = 0
        self.is_new = False
        self.join_waiter: object | None = None
        self.sync_waiter: object | None = None
        self.protocols: tuple[tuple[str, bytes], ...]
        self.rebalance_timeout_ms: int
        self.session_timeout_ms: int
        self.supports_skip_assignment: bool
        self.update(request)

    @classmethod
    def restored(cls, metadata: MemberMetadata, protocol_type: str, protocol_name: str) -> Member:
        """The member as it comes back from the log: it speaks the one protocol that was chosen."""
        member = cls(
            metadata.member_id,
            JoinRequest(
                member_id=metadata.member_id,
                group_instance_id=metadata.group_instance_id,
                client_id=metadata.client_id,
                client_host=metadata.client_host,
                session_timeout_ms=metadata.session_timeout_ms,
                rebalance_timeout_ms=metadata.rebalance_timeout_ms,
                protocol_type=protocol_type,
                protocols=((protocol_name, metadata.subscription),),
            ),
        )
        member.assign(metadata.assignment)
        return member

    def update(self, request: JoinRequest) -> None:
        """Take over what the member says with a new JoinGroup."""
        self.protocols = request.protocols
        self.session_timeout_ms = request.session_timeout_ms
        # JoinGroup v0 has no rebalance timeout; the session timeout stands in for it (KIP-62).
        self.rebalance_timeout_ms = (
            request.session_timeout_ms if request.rebalance_timeout_ms < 0 else request.rebalance_timeout_ms
        )
        self.supports_skip_assignment = request.supports_skip_assignment
        self.size_bytes = member_bytes(self.member_id, request) + len(self.assignment)

    def assign(self, assignment: bytes) -> None:
        """Take an assignment, or with an empty one none."""
        self.size_bytes += len(assignment) - len(self.assignment)
        self.assignment = assignment

    def successor(self, member_id: str, request: JoinRequest) -> Member:
        """A member with another id in the place of this static one, with its assignment (KIP-345)."""
        member = Member(member_id, request)
        member.assign(self.assignment)
        return member

    @property
    def is_static(self) -> bool:
        """Whether the member has an instance id (KIP-345)."""
        return self.group_instance_id is not None

    def metadata_for(self, protocol_name: str | None) -> bytes:
        """What the member said for this protocol, empty if it doesn't speak it."""
        for name, metadata in self.protocols:
            if name == protocol_name:
                return metadata
        return b""

    def vote(self, candidates: Collection[str]) -> str:
        """The member's first choice among protocols that all members speak."""
        for name, _ in self.protocols:
            if name in candidates:
                return name
        raise AssertionError(f"a member speaks none of the common protocols: member_id={self.member_id!r}")

    def persisted(self, protocol_name: str | None, assignment: bytes) -> MemberMetadata:
        """The member as it goes to the log, with an assignment that it may not hold yet."""
        return MemberMetadata(
            member_id=self.member_id,
            group_instance_id=self.group_instance_id,
            client_id=self.client_id,
            client_host=self.client_host,
            rebalance_timeout_ms=self.rebalance_timeout_ms,
            session_timeout_ms=self.session_timeout_ms,
            subscription=self.metadata_for(protocol_name),
            assignment=assignment,
        )

    def described(self, protocol_name: str | None) -> MemberDescription:
        """The member as DescribeGroups shows it; without a chosen protocol there's nothing to show of it."""
        return MemberDescription(
            member_id=self.member_id,
            group_instance_id=self.group_instance_id,
            client_id=self.client_id,
            client_host=self.client_host,
            metadata=self.metadata_for(protocol_name) if protocol_name is not None else b"",
            assignment=self.assignment,
        )


class Replacement:
    """A static member that was replaced while its record is being written, so that it can be put back."""

    __slots__ = ("leader_before", "new", "old")

    def __init__(self, old: Member, new: Member, leader_before: str) -> None:
        self.old = old
        self.new = new
        self.leader_before = leader_before
