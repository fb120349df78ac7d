"""The classic consumer group APIs: thin translations between wire messages and the group service.

Versions matter here only where a field's meaning changed; the codecs leave out what a version doesn't have.
Offsets are kept by topic name, so requests by topic id (OffsetCommit and OffsetFetch v10, KIP-848) are
resolved first.
"""

from __future__ import annotations

__all__ = (
    "APIS",
    "handle_delete_groups",
    "handle_describe_groups",
    "handle_find_coordinator",
    "handle_heartbeat",
    "handle_join_group",
    "handle_leave_group",
    "handle_list_groups",
    "handle_offset_commit",
    "handle_offset_delete",
    "handle_offset_fetch",
    "handle_sync_group",
)

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import anyio

from penstock.api.authorization import CLUSTER_NAME, DENIED, NOBODY, Operation, ResourceType, each, the_group
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, Frame, one_code
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import (
    CommittedOffset,
    GroupDescription,
    JoinRequest,
    LeaveMember,
    OffsetAndMetadata,
    SyncRequest,
    TopicPartition,
)
from penstock.log.topic import Topic
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
from penstock.wire.messages.find_coordinator import (
    Coordinator,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
)
from penstock.wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember
from penstock.wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberResponse
from penstock.wire.messages.list_groups import ListedGroup, ListGroupsRequest, ListGroupsResponse
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestTopic,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from penstock.wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
)
from penstock.wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse
from penstock.work.pieces import in_portions

# Versions at which a rule changed.
_JOIN_MEMBER_ID_REQUIRED_VERSION: Final = 4
_JOIN_NULLABLE_PROTOCOL_VERSION: Final = 7
_JOIN_SKIP_ASSIGNMENT_VERSION: Final = 9
_SYNC_PROTOCOL_VERSION: Final = 5
_LEAVE_BATCH_VERSION: Final = 3
_DESCRIBE_NOT_FOUND_VERSION: Final = 6
_COMMIT_GROUP_NOT_FOUND_VERSION: Final = 9
_FETCH_GROUP_ERROR_VERSION: Final = 2
_FETCH_GROUPS_VERSION: Final = 8
_TOPIC_IDS_VERSION: Final = 10
_FIND_BATCH_VERSION: Final = 4
#: Others get their turn after so many keys of one request.
_SLICE_KEYS: Final = 100
_SLICE_OFFSETS: Final = 500

_KEY_TYPE_GROUP: Final = 0
_KEY_TYPE_TRANSACTION: Final = 1
_KEY_KINDS: Final = {
    _KEY_TYPE_GROUP: ResourceType.GROUP,
    _KEY_TYPE_TRANSACTION: ResourceType.TRANSACTIONAL_ID,
}
_NO_OFFSET: Final = CommittedOffset(-1, -1, "", -1)


def _groups(context: RequestContext) -> GroupService:
    service = context.api.groups
    assert service is not None, "a broker has a group coordinator"
    return service


async def handle_join_group(request: JoinGroupRequest, context: RequestContext) -> JoinGroupResponse:
    """JoinGroup v0-9; answered when the join phase is over."""
    version = context.version
    result = await _groups(context).join(
        request.group_id,
        JoinRequest(
            member_id=request.member_id,
            group_instance_id=request.group_instance_id,
            client_id=context.client.client_id or "",
            client_host=f"/{context.client.host}",  # as Java prints an address; tools show it like that
            session_timeout_ms=request.session_timeout_ms,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            protocol_type=request.protocol_type,
            # The request views its frame, which doesn't outlive it.
            protocols=tuple((one.name, bytes(one.metadata)) for one in request.protocols),
            require_known_member_id=version >= _JOIN_MEMBER_ID_REQUIRED_VERSION,
            supports_skip_assignment=version >= _JOIN_SKIP_ASSIGNMENT_VERSION,
        ),
    )
    protocol_name = result.protocol_name
    if protocol_name is None and version < _JOIN_NULLABLE_PROTOCOL_VERSION:
        protocol_name = ""
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
            for one in result.members
        ],
    )


async def handle_sync_group(request: SyncGroupRequest, context: RequestContext) -> SyncGroupResponse:
    """SyncGroup v0-5; answered when the leader's assignment is durable."""
    if context.version >= _SYNC_PROTOCOL_VERSION and None in {request.protocol_type, request.protocol_name}:
        return SyncGroupResponse(error_code=ErrorCode.INCONSISTENT_GROUP_PROTOCOL)  # KIP-559
    result = await _groups(context).sync(
        request.group_id,
        SyncRequest(
            member_id=request.member_id,
            generation_id=request.generation_id,
            group_instance_id=request.group_instance_id,
            protocol_type=request.protocol_type,
            protocol_name=request.protocol_name,
            assignments={one.member_id: bytes(one.assignment) for one in request.assignments},
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
    error = await _groups(context).heartbeat(
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
    error, results = await _groups(context).leave(request.group_id, members)
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
    descriptions = await _groups(context).describe(permitted)
    groups = [_described(one, context.version) async for one in in_portions(descriptions)]
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


def _described(group: GroupDescription, version: int) -> DescribedGroup:
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
            for one in group.members
        ],
    )


async def handle_list_groups(request: ListGroupsRequest, context: RequestContext) -> ListGroupsResponse:
    """ListGroups v0-5, with the filters of v4 (states) and v5 (types)."""
    error, listings = await _groups(context).list_groups(request.states_filter, request.types_filter)
    if not context.may(Operation.DESCRIBE, ResourceType.CLUSTER, CLUSTER_NAME):
        hidden = context.denied(Operation.DESCRIBE, ResourceType.GROUP, (one.group_id for one in listings))
        listings = [one for one in listings if one.group_id not in hidden]
    return ListGroupsResponse(
        error_code=error,
        groups=[
            ListedGroup(
                group_id=one.group_id,
                protocol_type=one.protocol_type,
                group_state=str(one.state),
                group_type=one.group_type,
            )
            for one in listings
        ],
    )


async def handle_delete_groups(request: DeleteGroupsRequest, context: RequestContext) -> DeleteGroupsResponse:
    """DeleteGroups v0-2."""
    denied = context.denied(Operation.DELETE, ResourceType.GROUP, request.groups_names)
    permitted = [name async for name in in_portions(request.groups_names) if name not in denied]
    results = dict(await _groups(context).delete_groups(permitted))
    results |= dict.fromkeys(sorted(denied), DENIED[ResourceType.GROUP])
    return DeleteGroupsResponse(
        results=[
            DeletableGroupResult(group_id=group_id, error_code=error)
            async for group_id, error in in_portions(results.items())
        ]
    )


async def handle_offset_commit(request: OffsetCommitRequest, context: RequestContext) -> OffsetCommitResponse:
    """OffsetCommit v2-10; offsets are durable when it is answered."""
    by_id = context.version >= _TOPIC_IDS_VERSION
    found = [_find(one.topic_id if by_id else one.name, context) async for one in in_portions(request.topics)]
    denied = context.denied(Operation.READ, ResourceType.TOPIC, _names(request.topics, found))
    offsets = {
        (topic.name, one.partition_index): OffsetAndMetadata(
            one.committed_offset, one.committed_leader_epoch, one.committed_metadata or ""
        )
        async for asked, topic in in_portions(zip(request.topics, found, strict=True))
        if topic is not None and topic.name not in denied
        async for one in in_portions(asked.partitions)
        if 0 <= one.partition_index < topic.partition_count
    }
    errors: Mapping[TopicPartition, ErrorCode] = {}
    if offsets or not request.topics:
        errors = await _groups(context).commit_offsets(
            request.group_id,
            offsets,
            member_id=request.member_id,
            generation_id=request.generation_id_or_member_epoch,
            group_instance_id=request.group_instance_id,
            retention_ms=request.retention_time_ms,
        )
    return OffsetCommitResponse(
        topics=[
            await _committed(asked, topic, errors, denied, context.version)
            async for asked, topic in in_portions(zip(request.topics, found, strict=True))
            if asked.partitions
        ]
    )


def _each_partition(request: OffsetCommitRequest, _version: int, error_code: int) -> OffsetCommitResponse:
    return OffsetCommitResponse(
        topics=[
            OffsetCommitResponseTopic(
                topic_id=topic.topic_id,
                name=topic.name,
                partitions=[
                    OffsetCommitResponsePartition(partition_index=one.partition_index, error_code=error_code)
                    for one in topic.partitions
                ],
            )
            for topic in request.topics
        ]
    )


async def _committed(
    asked: OffsetCommitRequestTopic,
    topic: Topic | None,
    errors: Mapping[TopicPartition, ErrorCode],
    denied: Collection[str],
    version: int,
) -> OffsetCommitResponseTopic:
    partitions = []
    async for one in in_portions(asked.partitions):
        if (asked.name if topic is None else topic.name) in denied:
            error = DENIED[ResourceType.TOPIC]
        elif topic is None:
            error = _unknown_topic(version)
        else:
            key = (topic.name, one.partition_index)
            error = errors.get(key, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        if error is ErrorCode.GROUP_ID_NOT_FOUND and version < _COMMIT_GROUP_NOT_FOUND_VERSION:
            error = ErrorCode.ILLEGAL_GENERATION
        partitions.append(
            OffsetCommitResponsePartition(partition_index=one.partition_index, error_code=error)
        )
    return OffsetCommitResponseTopic(topic_id=asked.topic_id, name=asked.name, partitions=partitions)


async def handle_offset_fetch(request: OffsetFetchRequest, context: RequestContext) -> OffsetFetchResponse:
    """OffsetFetch v1-10: one group before v8, many since; topics null means all that have an offset.

    What has no offset is -1 without an error, also in a group that doesn't exist.
    """
    if context.version >= _FETCH_GROUPS_VERSION:
        groups = [
            await _fetched_group(one.group_id, one.topics, context)
            for one in _all_offsets_once(request.groups)
        ]
        return OffsetFetchResponse(groups=groups)
    topics = (
        None
        if request.topics is None
        else [
            OffsetFetchRequestTopics(name=one.name, partition_indexes=one.partition_indexes)
            for one in request.topics
        ]
    )
    group = await _fetched_group(request.group_id, topics, context)
    error = group.error_code if context.version < _FETCH_GROUP_ERROR_VERSION else 0
    if error:  # v1 has no error of the group: every partition carries it
        return OffsetFetchResponse(
            topics=[
                OffsetFetchResponseTopic(
                    name=one.name,
                    partitions=[_single(_fetched(index, None, error)) for index in one.partition_indexes],
                )
                for one in topics or ()
            ]
        )
    return OffsetFetchResponse(
        error_code=group.error_code,
        topics=[
            OffsetFetchResponseTopic(name=one.name, partitions=[_single(each) for each in one.partitions])
            for one in group.topics
        ],
    )


def _all_offsets_once(groups: Sequence[OffsetFetchRequestGroup]) -> Iterator[OffsetFetchRequestGroup]:
    """Whoever asks for all offsets of a group a thousand times in one request gets them once."""
    seen: set[str] = set()
    for one in groups:
        if one.topics is None:
            if one.group_id in seen:
                continue
            seen.add(one.group_id)
        yield one


async def _fetched_group(
    group_id: str, topics: Sequence[OffsetFetchRequestTopics] | None, context: RequestContext
) -> OffsetFetchResponseGroup:
    if not context.may(Operation.DESCRIBE, ResourceType.GROUP, group_id):
        return OffsetFetchResponseGroup(group_id=group_id, error_code=DENIED[ResourceType.GROUP])
    if topics is None:
        return await _fetched_all(group_id, context)
    by_id = context.version >= _TOPIC_IDS_VERSION
    names: list[str | None] = []
    async for asked in in_portions(topics):
        topic = _find(asked.topic_id, context) if by_id else None
        names.append(asked.name if not by_id else topic.name if topic is not None else None)
    denied = context.denied(
        Operation.DESCRIBE, ResourceType.TOPIC, (name for name in names if name is not None)
    )
    partitions = [
        (name, index)
        async for asked, name in in_portions(zip(topics, names, strict=True))
        if name is not None and name not in denied
        async for index in in_portions(asked.partition_indexes, _SLICE_OFFSETS)
    ]
    error, offsets = await _groups(context).fetch_offsets(group_id, partitions)
    if error is not ErrorCode.NONE:
        return OffsetFetchResponseGroup(group_id=group_id, error_code=error)
    described: list[OffsetFetchResponseTopics] = []
    async for asked, name in in_portions(zip(topics, names, strict=True)):
        topic_of = OffsetFetchResponseTopics(topic_id=asked.topic_id, name=asked.name, partitions=[])
        async for index in in_portions(asked.partition_indexes):
            if name is None:
                one = _fetched(index, None, ErrorCode.UNKNOWN_TOPIC_ID)
            elif name in denied:
                one = _fetched(index, None, DENIED[ResourceType.TOPIC])
            else:
                one = _fetched(index, offsets[name, index])
            topic_of.partitions.append(one)
        described.append(topic_of)
    return OffsetFetchResponseGroup(group_id=group_id, topics=described)


async def _fetched_all(group_id: str, context: RequestContext) -> OffsetFetchResponseGroup:
    error, offsets = await _groups(context).fetch_offsets(group_id)
    if error is not ErrorCode.NONE:
        return OffsetFetchResponseGroup(group_id=group_id, error_code=error)
    by_id = context.version >= _TOPIC_IDS_VERSION
    topics: dict[str, OffsetFetchResponseTopics] = {}
    hidden = context.denied(Operation.DESCRIBE, ResourceType.TOPIC, (name for name, _ in offsets))
    async for (name, index), committed in in_portions(sorted(offsets.items())):
        if name in hidden:
            continue
        if name not in topics:
            topic = _find(name, context) if by_id else None
            if by_id and topic is None:
                continue  # a topic that is gone has no id to answer with
            topics[name] = OffsetFetchResponseTopics(name=name, partitions=[])
            if topic is not None:
                topics[name].topic_id = topic.id
        topics[name].partitions.append(_fetched(index, committed))
    return OffsetFetchResponseGroup(group_id=group_id, topics=list(topics.values()))


def _fetched(
    index: int, committed: CommittedOffset | None, error: int = ErrorCode.NONE
) -> OffsetFetchResponsePartitions:
    committed = committed or _NO_OFFSET
    return OffsetFetchResponsePartitions(
        partition_index=index,
        committed_offset=committed.offset,
        committed_leader_epoch=committed.leader_epoch,
        metadata=committed.metadata,
        error_code=error,
    )


def _single(one: OffsetFetchResponsePartitions) -> OffsetFetchResponsePartition:
    return OffsetFetchResponsePartition(
        partition_index=one.partition_index,
        committed_offset=one.committed_offset,
        committed_leader_epoch=one.committed_leader_epoch,
        metadata=one.metadata,
        error_code=one.error_code,
    )


async def handle_offset_delete(request: OffsetDeleteRequest, context: RequestContext) -> OffsetDeleteResponse:
    """OffsetDelete v0 (KIP-496)."""
    found = [_find(one.name, context) async for one in in_portions(request.topics)]
    denied = context.denied(Operation.READ, ResourceType.TOPIC, (one.name for one in request.topics))
    partitions = [
        (asked.name, one.partition_index)
        async for asked, topic in in_portions(zip(request.topics, found, strict=True))
        if topic is not None and topic.name not in denied
        async for one in in_portions(asked.partitions, _SLICE_OFFSETS)
        if 0 <= one.partition_index < topic.partition_count
    ]
    error, errors = await _groups(context).delete_offsets(request.group_id, partitions)
    if error is not ErrorCode.NONE:
        return OffsetDeleteResponse(error_code=error)
    return OffsetDeleteResponse(
        topics=[
            OffsetDeleteResponseTopic(
                name=asked.name,
                partitions=[
                    OffsetDeleteResponsePartition(
                        partition_index=one.partition_index,
                        error_code=DENIED[ResourceType.TOPIC]
                        if asked.name in denied
                        else errors.get(
                            (asked.name, one.partition_index), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                        ),
                    )
                    async for one in in_portions(asked.partitions)
                ],
            )
            async for asked in in_portions(request.topics)
            if asked.partitions
        ]
    )


async def handle_find_coordinator(
    request: FindCoordinatorRequest, context: RequestContext
) -> FindCoordinatorResponse:
    """FindCoordinator v0-6: this broker coordinates all groups."""
    is_batch = context.version >= _FIND_BATCH_VERSION
    kind = _KEY_KINDS.get(request.key_type)
    keys = request.coordinator_keys if is_batch else [request.key]
    denied = NOBODY if kind is None else context.denied(Operation.DESCRIBE, kind, keys)
    if is_batch:
        coordinators: list[Coordinator] = []
        for key in request.coordinator_keys:
            coordinators.append(_coordinator(key, request.key_type, denied, context))
            if len(coordinators) % _SLICE_KEYS == 0:
                await anyio.lowlevel.checkpoint()
        return FindCoordinatorResponse(coordinators=coordinators)
    one = _coordinator(request.key, request.key_type, denied, context)
    return FindCoordinatorResponse(
        error_code=one.error_code,
        error_message=one.error_message,
        node_id=one.node_id,
        host=one.host,
        port=one.port,
    )


def _coordinator(key: str, key_type: int, denied: Collection[str], context: RequestContext) -> Coordinator:
    if key in denied:
        error, message = DENIED[_KEY_KINDS[key_type]], "not permitted"
        return Coordinator(key=key, node_id=-1, host="", port=-1, error_code=error, error_message=message)
    # There are no transactions yet. Clients ask on and on after an error here that isn't one of a few, so a
    # transactional producer is sent to InitProducerId, whose UNSUPPORTED_VERSION says what is the matter.
    if key_type == _KEY_TYPE_GROUP and not _groups(context).coordinates(key):
        error = ErrorCode.COORDINATOR_NOT_AVAILABLE
        message = "the group's state is damaged, or its partition has no leader"
        return Coordinator(key=key, node_id=-1, host="", port=-1, error_code=error, error_message=message)
    if key_type in {_KEY_TYPE_GROUP, _KEY_TYPE_TRANSACTION}:
        endpoint = context.client.advertised
        return Coordinator(
            key=key, node_id=endpoint.node_id, host=endpoint.host, port=endpoint.port, error_message=None
        )
    error = ErrorCode.INVALID_REQUEST
    message = f"unknown coordinator type, use 0 for groups: type={key_type}"
    return Coordinator(key=key, node_id=-1, host="", port=-1, error_code=error, error_message=message)


def _find(topic: str | bytes, context: RequestContext) -> Topic | None:
    """A topic by its name or by its id."""
    if isinstance(topic, str):
        return context.api.logs.topics().get(topic)
    return context.api.logs.topic_by_id(topic)


def _names(asked: Sequence[OffsetCommitRequestTopic], found: Sequence[Topic | None]) -> Iterator[str]:
    """The names of topics, where they are known."""
    for one, topic in zip(asked, found, strict=True):
        name = one.name if topic is None else topic.name
        if name:
            yield name


def _unknown_topic(version: int) -> ErrorCode:
    if version >= _TOPIC_IDS_VERSION:
        return ErrorCode.UNKNOWN_TOPIC_ID
    return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


APIS: Final = (
    Api(
        key=ApiKey.OFFSET_COMMIT,
        needs=(the_group(Operation.READ), each(Operation.READ, ResourceType.TOPIC)),
        handler=handle_offset_commit,
        frame=Frame.GROUP,
        failure=_each_partition,
    ),
    Api(
        key=ApiKey.OFFSET_FETCH,
        needs=(each(Operation.DESCRIBE, ResourceType.GROUP), each(Operation.DESCRIBE, ResourceType.TOPIC)),
        handler=handle_offset_fetch,
        failure=one_code(
            OffsetFetchResponse, since=_FETCH_GROUP_ERROR_VERSION, until=_FETCH_GROUPS_VERSION - 1
        ),
    ),
    Api(
        key=ApiKey.FIND_COORDINATOR,
        needs=(
            each(Operation.DESCRIBE, ResourceType.GROUP),
            each(Operation.DESCRIBE, ResourceType.TRANSACTIONAL_ID),
        ),
        handler=handle_find_coordinator,
        failure=one_code(FindCoordinatorResponse, until=_FIND_BATCH_VERSION - 1),
    ),
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
    Api(
        key=ApiKey.OFFSET_DELETE,
        needs=(the_group(Operation.DELETE), each(Operation.READ, ResourceType.TOPIC)),
        handler=handle_offset_delete,
        failure=one_code(OffsetDeleteResponse),
    ),
)
