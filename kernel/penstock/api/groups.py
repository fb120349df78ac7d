"""Membership of classic consumer groups, and the groups listed: wire messages translated for the group service.

Versions matter here only where a field's meaning changed; the codecs leave out what a version doesn't have.
"""

from __future__ import annotations

__all__ = (
    "APIS",
    "handle_delete_groups",
    "handle_describe_groups",
    "handle_heartbeat",
    "handle_join_group",
    "handle_leave_group",
    "handle_list_groups",
    "handle_sync_group",
)

from typing import Final

from penstock.api.authorization import DENIED, each, the_group
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, Frame, one_code
from penstock.coordinator.group_types import (
    GroupDescription,
    JoinRequest,
    LeaveMember,
    SyncRequest,
)
from penstock.spi.authorizer import CLUSTER_NAME, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.delete_groups import (
    DeletableGroupResult,
    DeleteGroupsRequest,
    DeleteGroupsResponse,
)
from penstock.wire.messages.describe_groups import (
    DescribedGroup,
    DescribedGroupMember,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
)
from penstock.wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember
from penstock.wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberResponse
from penstock.wire.messages.list_groups import ListedGroup, ListGroupsRequest, ListGroupsResponse
from penstock.wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse
from penstock.work.pieces import PORTION, in_portions

# Versions at which a rule changed.
_JOIN_MEMBER_ID_REQUIRED_VERSION: Final = 4
_JOIN_NULLABLE_PROTOCOL_VERSION: Final = 7
_JOIN_SKIP_ASSIGNMENT_VERSION: Final = 9
_SYNC_PROTOCOL_VERSION: Final = 5
_LEAVE_BATCH_VERSION: Final = 3
_DESCRIBE_NOT_FOUND_VERSION: Final = 6
#: Groups that are described in one go.
_DESCRIPTIONS: Final = 50


async def handle_join_group(request: JoinGroupRequest, context: RequestContext) -> JoinGroupResponse:
    """JoinGroup v0-9; answered when the join phase is over."""
    version = context.version
    # the request views its frame, which doesn't outlive it
    protocols = tuple([(one.name, bytes(one.metadata)) async for one in in_portions(request.protocols)])
    request.protocols = []  # it waits, maybe for long: nothing stays of it but what is on the group's account
    result = await context.groups.join(
        request.group_id,
        JoinRequest(
            member_id=request.member_id,
            group_instance_id=request.group_instance_id,
            client_id=context.client.client_id or "",
            client_host=f"/{context.client.host}",  # as Java prints an address; tools show it like that
            session_timeout_ms=request.session_timeout_ms,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            protocol_type=request.protocol_type,
            protocols=protocols,
            require_known_member_id=version >= _JOIN_MEMBER_ID_REQUIRED_VERSION,
            supports_skip_assignment=version >= _JOIN_SKIP_ASSIGNMENT_VERSION,
        ),
    )
    # as in Kafka, an empty name and none are the same
    protocol_name = result.protocol_name or ("" if version < _JOIN_NULLABLE_PROTOCOL_VERSION else None)
    context.is_long = len(result.members) > PORTION
    return JoinGroupResponse(
        error_code=result.error,
        generation_id=result.generation_id,
        protocol_type=result.protocol_type,
        protocol_name=protocol_name,
        leader=result.leader,
        skip_assignment=result.skip_assignment,
        member_id=result.member_id,
        members=[
            JoinGroupResponseMember(
                member_id=one.member_id, group_instance_id=one.group_instance_id, metadata=one.metadata
            )
            async for one in in_portions(result.members)
        ],
    )


async def handle_sync_group(request: SyncGroupRequest, context: RequestContext) -> SyncGroupResponse:
    """SyncGroup v0-5; answered when the leader's assignment is durable."""
    if context.version >= _SYNC_PROTOCOL_VERSION and None in {request.protocol_type, request.protocol_name}:
        return SyncGroupResponse(error_code=ErrorCode.INCONSISTENT_GROUP_PROTOCOL)  # KIP-559
    assignments = {one.member_id: bytes(one.assignment) async for one in in_portions(request.assignments)}
    request.assignments = []  # as in handle_join_group; and who is named a hundred thousand times is one member
    result = await context.groups.sync(
        request.group_id,
        SyncRequest(
            member_id=request.member_id,
            generation_id=request.generation_id,
            group_instance_id=request.group_instance_id,
            protocol_type=request.protocol_type,
            protocol_name=request.protocol_name,
            assignments=assignments,
        ),
    )
    return SyncGroupResponse(
        error_code=result.error,
        protocol_type=result.protocol_type,
        protocol_name=result.protocol_name,
        assignment=result.assignment,
    )


async def handle_heartbeat(request: HeartbeatRequest, context: RequestContext) -> HeartbeatResponse:
    """Heartbeat v0-4."""
    error = await context.groups.heartbeat(
        request.group_id, request.member_id, request.generation_id, request.group_instance_id
    )
    return HeartbeatResponse(error_code=error)


async def handle_leave_group(request: LeaveGroupRequest, context: RequestContext) -> LeaveGroupResponse:
    """LeaveGroup v0-5; before v3 the one member's error is that of the response."""
    is_batch = context.version >= _LEAVE_BATCH_VERSION
    members = (
        [LeaveMember(one.member_id, one.group_instance_id) async for one in in_portions(request.members)]
        if is_batch
        else [LeaveMember(request.member_id)]
    )
    error, results = await context.groups.leave(request.group_id, members)
    if not is_batch:
        return LeaveGroupResponse(error_code=error or results[0].error)
    return LeaveGroupResponse(
        error_code=error,
        members=[
            MemberResponse(
                member_id=one.member_id, group_instance_id=one.group_instance_id, error_code=one.error
            )
            async for one in in_portions(results)
        ],
    )


async def handle_describe_groups(
    request: DescribeGroupsRequest, context: RequestContext
) -> DescribeGroupsResponse:
    """DescribeGroups v0-6; an unknown group is an error from v6 on, and Dead before."""
    asked = dict.fromkeys(request.groups)
    denied = context.denied(Operation.DESCRIBE, ResourceType.GROUP, asked)
    permitted = [name async for name in in_portions(asked) if name not in denied]
    descriptions = await context.groups.describe(permitted)
    groups: list[DescribedGroup] = []
    members = 0
    async for one in in_portions(descriptions, _DESCRIPTIONS):
        groups.append(await _described(one, context.version))
        members += len(one.members)
    context.is_long = members > PORTION
    groups += [
        DescribedGroup(group_id=name, error_code=DENIED[ResourceType.GROUP])
        async for name in in_portions(asked)
        if name in denied
    ]
    if request.include_authorized_operations:
        for group in groups:
            if group.error_code == ErrorCode.NONE:
                group.authorized_operations = context.authorized_operations(
                    ResourceType.GROUP, group.group_id
                )
    return DescribeGroupsResponse(groups=groups)


async def _described(group: GroupDescription, version: int) -> DescribedGroup:
    error, message, state = group.error, None, str(group.state)
    if error is ErrorCode.GROUP_ID_NOT_FOUND:
        if version < _DESCRIBE_NOT_FOUND_VERSION:
            error = ErrorCode.NONE
        else:
            message = f"group {group.group_id!r} not found"
    elif error is not ErrorCode.NONE:
        state = ""
    return DescribedGroup(
        error_code=error,
        error_message=message,
        group_id=group.group_id,
        group_state=state,
        protocol_type=group.protocol_type,
        protocol_data=group.protocol_name,
        members=[
            DescribedGroupMember(
                member_id=one.member_id,
                group_instance_id=one.group_instance_id,
                client_id=one.client_id,
                client_host=one.client_host,
                member_metadata=one.metadata,
                member_assignment=one.assignment,
            )
            async for one in in_portions(group.members)
        ],
    )


async def handle_list_groups(request: ListGroupsRequest, context: RequestContext) -> ListGroupsResponse:
    """ListGroups v0-5, with the filters of v4 (states) and v5 (types)."""
    error, listings = await context.groups.list_groups(request.states_filter, request.types_filter)
    if not context.may(Operation.DESCRIBE, ResourceType.CLUSTER, CLUSTER_NAME):
        hidden = context.denied(Operation.DESCRIBE, ResourceType.GROUP, (one.group_id for one in listings))
        listings = [one for one in listings if one.group_id not in hidden]
    context.is_long = len(listings) > PORTION
    return ListGroupsResponse(
        error_code=error,
        groups=[
            ListedGroup(
                group_id=one.group_id,
                protocol_type=one.protocol_type,
                group_state=str(one.state),
                group_type=one.group_type,
            )
            async for one in in_portions(listings)
        ],
    )


async def handle_delete_groups(request: DeleteGroupsRequest, context: RequestContext) -> DeleteGroupsResponse:
    """DeleteGroups v0-2."""
    denied = context.denied(Operation.DELETE, ResourceType.GROUP, request.groups_names)
    permitted = [name async for name in in_portions(request.groups_names) if name not in denied]
    results = dict(await context.groups.delete_groups(permitted))
    results |= dict.fromkeys(sorted(denied), DENIED[ResourceType.GROUP])
    return DeleteGroupsResponse(
        results=[
            DeletableGroupResult(group_id=group_id, error_code=error)
            async for group_id, error in in_portions(results.items())
        ]
    )


APIS: Final = (
    Api(
        key=ApiKey.JOIN_GROUP,
        needs=(the_group(Operation.READ),),
        handler=handle_join_group,
        cancellable=True,
        frame=Frame.GROUP,
        failure=one_code(JoinGroupResponse),
        note="the classic protocol; static members; cooperative rebalancing",
    ),
    Api(
        key=ApiKey.HEARTBEAT,
        needs=(the_group(Operation.READ),),
        handler=handle_heartbeat,
        failure=one_code(HeartbeatResponse),
    ),
    Api(
        key=ApiKey.LEAVE_GROUP,
        needs=(the_group(Operation.READ),),
        handler=handle_leave_group,
        failure=one_code(LeaveGroupResponse),
    ),
    Api(
        key=ApiKey.SYNC_GROUP,
        needs=(the_group(Operation.READ),),
        handler=handle_sync_group,
        cancellable=True,
        frame=Frame.GROUP,
        failure=one_code(SyncGroupResponse),
    ),
    Api(
        key=ApiKey.DESCRIBE_GROUPS,
        needs=(each(Operation.DESCRIBE, ResourceType.GROUP),),
        handler=handle_describe_groups,
    ),
    Api(
        key=ApiKey.LIST_GROUPS,
        # the cluster's permission shows all groups, else those are shown that may be described
        needs=(each(Operation.DESCRIBE, ResourceType.CLUSTER), each(Operation.DESCRIBE, ResourceType.GROUP)),
        handler=handle_list_groups,
        failure=one_code(ListGroupsResponse),
    ),
    Api(
        key=ApiKey.DELETE_GROUPS,
        needs=(each(Operation.DELETE, ResourceType.GROUP),),
        handler=handle_delete_groups,
    ),
)
