"""The vocabulary of the classic group protocol: what goes into the group machine and what comes out of it.

Everything here is a value. The machine (`penstock.coordinator.group_machine`) takes requests and a time and
returns results and outputs; the coordinator (`penstock.coordinator.group_coordinator`) does what the outputs say.
Of what a rebalance has thousands, one for each member, the types are tuples: they are made in a third of the time.
"""

from __future__ import annotations

__all__ = (
    "PROTOCOL_BYTES",
    "CommittedOffset",
    "Complete",
    "GroupDescription",
    "GroupListing",
    "GroupMetadata",
    "GroupSettings",
    "GroupState",
    "JoinMember",
    "JoinRequest",
    "JoinResult",
    "LeaveMember",
    "LeaveResult",
    "MemberDescription",
    "MemberMetadata",
    "OffsetAndMetadata",
    "Output",
    "PersistGroup",
    "SetTimer",
    "SyncRequest",
    "SyncResult",
    "TimerKey",
    "TimerKind",
    "TopicPartition",
)

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from penstock.coordinator.state_log import StateLogSettings
from penstock.wire.error_codes import ErrorCode

# of a JoinGroup with thousands of protocols, without a step of Python for each
_first, _second = itemgetter(0), itemgetter(1)

#: What a protocol of a member takes beside its name and metadata.
PROTOCOL_BYTES: Final = 128
#: (topic name, partition index)
TopicPartition: TypeAlias = tuple[str, int]


class GroupState(enum.StrEnum):
    """The states of a classic group, spelled as ListGroups and DescribeGroups report them."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """The settings of the group coordinator; defaults are Kafka's."""

    initial_rebalance_delay_ms: int = 3_000
    """How long the first rebalance of an empty group waits for more members (group.initial.rebalance.delay.ms)."""
    min_session_timeout_ms: int = 6_000
    max_session_timeout_ms: int = 1_800_000
    new_member_join_timeout_ms: int = 300_000
    """A new member whose parked JoinGroup is older than this is dropped: its client is gone or will retry."""
    group_size_max: int = 2**31 - 1
    member_bytes_max: int = 1024 * 1024
    """Names and metadata of the protocols in one JoinGroup; a member with more is refused."""
    memory_bytes_max: int = 64 * 1024 * 1024
    """What all groups, members and offsets may take; above it requests that need more are refused as retriable."""
    offsets_retention_ms: int = 7 * 24 * 3_600_000
    """Offsets live this long after their group became empty (KIP-211)."""
    offsets_retention_check_interval_ms: int = 600_000
    offset_metadata_bytes_max: int = 4_096
    write_timeout_ms: int = 5_000
    """Whoever waits longer for a write to the group log is told COORDINATOR_NOT_AVAILABLE (Kafka's
    offsets.commit.timeout.ms). The write isn't taken back, and may become durable later.
    """
    checkpoint_records: int = 10_000
    """A partition of the group log is rewritten after so many records (or twice its live records, if more)."""
    checkpoint_bytes: int = 8 * 1024 * 1024
    """The same in bytes."""
    append_bytes_max: int = 512 * 1024
    """One append to the group log carries at most so many bytes of records (and always at least one set of them)."""
    pending_writes_max: int = 10_000
    """Writes that may wait for one partition of the group log; above it requests are refused as retriable."""
    load_concurrency: int = 8
    """Partitions of the group log that are loaded at the same time."""

    @property
    def log(self) -> StateLogSettings:
        """The bounds of one partition of the group log."""
        return StateLogSettings(
            checkpoint_records=self.checkpoint_records,
            checkpoint_bytes=self.checkpoint_bytes,
            append_bytes_max=self.append_bytes_max,
            pending_writes_max=self.pending_writes_max,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """JoinGroup, all versions. `member_id` is empty for a new member."""

    member_id: str
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    """-1 (JoinGroup v0) stands for the session timeout."""
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    """(name, metadata) in the member's order of preference."""
    group_instance_id: str | None = None
    require_known_member_id: bool = False
    """JoinGroup v4+: a new dynamic member is sent away with an id first (KIP-394)."""
    supports_skip_assignment: bool = False
    """JoinGroup v9+: the leader may be told to keep the assignment (KIP-814)."""

    @property
    def protocols_bytes(self) -> int:
        """Names and metadata of all protocols."""
        names, metadata = map(_first, self.protocols), map(_second, self.protocols)
        return sum(map(len, names)) + sum(map(len, metadata)) + PROTOCOL_BYTES * len(self.protocols)


class JoinMember(NamedTuple):
    """One member in the list that the leader gets."""

    member_id: str
    group_instance_id: str | None
    metadata: bytes


class JoinResult(NamedTuple):
    """The answer to JoinGroup. `members` is filled for the leader only."""

    member_id: str
    error: ErrorCode = ErrorCode.NONE
    generation_id: int = -1
    protocol_type: str | None = None
    protocol_name: str | None = None
    leader: str = ""
    skip_assignment: bool = False
    members: tuple[JoinMember, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """SyncGroup, all versions. `protocol_type` and `protocol_name` come with v5."""

    member_id: str
    generation_id: int
    group_instance_id: str | None = None
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignments: Mapping[str, bytes] = field(default_factory=dict)
    """member id -> assignment; looked at only when the leader sends it."""

    @property
    def assignments_bytes(self) -> int:
        """Member ids and assignments."""
        names, assignments = self.assignments.keys(), self.assignments.values()
        return sum(map(len, names)) + sum(map(len, assignments)) + 256 * len(self.assignments)


class SyncResult(NamedTuple):
    """The answer to SyncGroup."""

    error: ErrorCode = ErrorCode.NONE
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignment: bytes = b""


class LeaveMember(NamedTuple):
    """One member to remove: by member id, or by instance id with an empty member id (KIP-345)."""

    member_id: str
    group_instance_id: str | None = None


class LeaveResult(NamedTuple):
    """What became of one `LeaveMember`."""

    member_id: str
    group_instance_id: str | None
    error: ErrorCode


class OffsetAndMetadata(NamedTuple):
    """What a client commits for one partition."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """A committed offset as it is kept. `expire_timestamp_ms` is set by OffsetCommit v2-4 with a retention time."""

    offset: int
    leader_epoch: int
    metadata: str
    commit_timestamp_ms: int
    expire_timestamp_ms: int | None = None


class MemberMetadata(NamedTuple):
    """One member inside a persisted `GroupMetadata`."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMetadata:
    """What is persisted about a group apart from its offsets (GroupMetadataValue)."""

    protocol_type: str
    generation_id: int
    protocol_name: str | None
    leader: str | None
    state_timestamp_ms: int
    members: tuple[MemberMetadata, ...] = ()

    @property
    def size_bytes(self) -> int:
        """About what the record of it takes."""
        return sum(128 + len(one.subscription) + len(one.assignment) for one in self.members)


class MemberDescription(NamedTuple):
    """One member as DescribeGroups shows it."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription:
    """A group as DescribeGroups shows it; an unknown group is Dead with GROUP_ID_NOT_FOUND (v6)."""

    group_id: str
    error: ErrorCode
    state: GroupState
    protocol_type: str
    protocol_name: str
    members: tuple[MemberDescription, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupListing:
    """A group as ListGroups shows it. `group_type` is "classic" (KIP-848 adds others)."""

    group_id: str
    protocol_type: str
    state: GroupState
    group_type: str = "classic"


class TimerKind(enum.Enum):
    """What a timer of a group stands for."""

    JOIN = "join"
    """The rebalance's join phase ends."""
    SYNC = "sync"
    """Members that didn't send SyncGroup in time are dropped."""
    SESSION = "session"
    """A member's session (or a pending member's id) expires."""
    WRITE = "write"
    """Requests that wait for a write of the group have waited long enough."""


#: (kind, member id); the member id is empty for the timers of the group itself, and of a write its token.
TimerKey: TypeAlias = tuple[TimerKind, str]


class Complete(NamedTuple):
    """Answer the parked request `waiter` (opaque to the machine) with `result`."""

    waiter: object
    result: JoinResult | SyncResult


class SetTimer(NamedTuple):
    """Call `Group.timer_fired(key, now_ms)` at `at_ms` or later, unless `Group.deadline(key)` moved on."""

    key: TimerKey
    at_ms: int


@dataclass(frozen=True, slots=True)
class PersistGroup:
    """Make `metadata` durable, then call `Group.persisted(token, error, now_ms)`."""

    token: int
    metadata: GroupMetadata


Output: TypeAlias = Complete | SetTimer | PersistGroup
