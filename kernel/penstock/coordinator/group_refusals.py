"""What a classic group refuses, and with which error: decided before a request changes anything.

Pure functions of a group's state and a request; `penstock.coordinator.group_machine` asks them.
"""

from __future__ import annotations

__all__ = (
    "CONSUMER_PROTOCOL_TYPE",
    "commit_error",
    "delete_error",
    "delete_offsets_error",
    "heartbeat_error",
    "join_error",
    "session_error",
    "sync_error",
)

from typing import Final, Protocol

from penstock.coordinator.group_roster import Roster
from penstock.coordinator.group_types import GroupSettings, GroupState, JoinRequest, SyncRequest
from penstock.wire.error_codes import ErrorCode

CONSUMER_PROTOCOL_TYPE: Final = "consumer"


class GroupView(Protocol):
    """What of a group decides about a request."""

    @property
    def state(self) -> GroupState: ...
    @property
    def generation_id(self) -> int: ...
    @property
    def protocol_type(self) -> str | None: ...
    @property
    def protocol_name(self) -> str | None: ...
    @property
    def members(self) -> Roster: ...


def session_error(request: JoinRequest, settings: GroupSettings) -> ErrorCode:
    """JoinGroup, whether or not there is such a group."""
    session_ms = request.session_timeout_ms
    if not settings.min_session_timeout_ms <= session_ms <= settings.max_session_timeout_ms:
        return ErrorCode.INVALID_SESSION_TIMEOUT
    return ErrorCode.NONE


def join_error(group: GroupView, request: JoinRequest, settings: GroupSettings) -> ErrorCode:
    """JoinGroup, of a new member or an old one."""
    error = session_error(request, settings)
    if error is not ErrorCode.NONE:
        return error
    if group.state is GroupState.DEAD:
        return ErrorCode.COORDINATOR_NOT_AVAILABLE
    if not _has_place(group, request.member_id, settings.group_size_max):
        return ErrorCode.GROUP_MAX_SIZE_REACHED
    if not _supports_protocols(group, request):
        return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
    return ErrorCode.NONE


def _has_place(group: GroupView, member_id: str, size_max: int) -> bool:
    member = group.members.get(member_id)
    if group.state is GroupState.EMPTY:
        return True
    if group.state is GroupState.PREPARING_REBALANCE:
        return (member is not None and member.join_waiter is not None) or group.members.joined < size_max
    return member is not None or len(group.members) < size_max


def _supports_protocols(group: GroupView, request: JoinRequest) -> bool:
    if group.state is GroupState.EMPTY:
        return bool(request.protocol_type and request.protocols)
    if request.protocol_type != group.protocol_type:
        return False
    return group.members.shares_a_protocol(request)


def sync_error(group: GroupView, request: SyncRequest) -> ErrorCode:
    """SyncGroup, of a member of the present generation."""
    if group.state is GroupState.DEAD:
        return ErrorCode.COORDINATOR_NOT_AVAILABLE
    error = group.members.error_of(request.member_id, request.group_instance_id)
    if error is not ErrorCode.NONE:
        return error
    if request.generation_id != group.generation_id:
        return ErrorCode.ILLEGAL_GENERATION
    for said, ours in (
        (request.protocol_type, group.protocol_type),
        (request.protocol_name, group.protocol_name),
    ):
        if said is not None and ours is not None and said != ours:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
    if group.state is GroupState.PREPARING_REBALANCE:
        return ErrorCode.REBALANCE_IN_PROGRESS
    return ErrorCode.NONE


def heartbeat_error(
    group: GroupView, member_id: str, generation_id: int, group_instance_id: str | None
) -> ErrorCode:
    """Heartbeat: who may extend a session."""
    if group.state is GroupState.DEAD:
        return ErrorCode.COORDINATOR_NOT_AVAILABLE
    error = group.members.error_of(member_id, group_instance_id)
    if error is ErrorCode.NONE and generation_id != group.generation_id:
        return ErrorCode.ILLEGAL_GENERATION
    return error


def commit_error(
    group: GroupView, member_id: str, generation_id: int, group_instance_id: str | None
) -> ErrorCode:
    """OffsetCommit, of a member, or of somebody who is none and commits to a group without members."""
    if group.state is GroupState.DEAD:
        return ErrorCode.COORDINATOR_NOT_AVAILABLE
    if generation_id < 0 and group.state is GroupState.EMPTY:
        # A consumer that assigns partitions itself, or an administrator.
        return ErrorCode.NONE
    if generation_id < 0 and not member_id and group_instance_id is None:
        return ErrorCode.UNKNOWN_MEMBER_ID
    error = group.members.error_of(member_id, group_instance_id)
    if error is not ErrorCode.NONE:
        return error
    if generation_id != group.generation_id:
        return ErrorCode.ILLEGAL_GENERATION
    if group.state is GroupState.COMPLETING_REBALANCE:
        # The member knows the new generation but not yet its assignment.
        return ErrorCode.REBALANCE_IN_PROGRESS
    return ErrorCode.NONE


def delete_error(group: GroupView) -> ErrorCode:
    """DeleteGroups: only a group without members goes."""
    if group.state is GroupState.DEAD:
        return ErrorCode.GROUP_ID_NOT_FOUND
    return ErrorCode.NONE if group.state is GroupState.EMPTY else ErrorCode.NON_EMPTY_GROUP


def delete_offsets_error(group: GroupView) -> ErrorCode:
    """OffsetDelete: whether single topics may be looked at; those that are subscribed to are refused one by one."""
    if group.state is GroupState.DEAD:
        return ErrorCode.GROUP_ID_NOT_FOUND
    if group.state is GroupState.EMPTY or group.protocol_type == CONSUMER_PROTOCOL_TYPE:
        return ErrorCode.NONE
    return ErrorCode.NON_EMPTY_GROUP
