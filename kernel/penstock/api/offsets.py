"""ListOffsets v1-11, OffsetForLeaderEpoch v2-4, DeleteRecords v0-2."""

from __future__ import annotations

__all__ = ("APIS", "handle_delete_records", "handle_list_offsets", "handle_offset_for_leader_epoch")

from collections import Counter
from collections.abc import Sequence
from typing import Final

import anyio

from penstock.api.authorization import each
from penstock.api.context import RequestContext
from penstock.api.deadline import Deadline
from penstock.api.declaration import Api
from penstock.api.errors import OPERATING_ERRORS, error_code_of
from penstock.api.lookup import check_topic_permitted
from penstock.log.errors import KafkaError
from penstock.log.partition import Partition
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsPartitionResult,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DeleteRecordsTopicResult,
)
from penstock.wire.messages.list_offsets import (
    ListOffsetsPartition,
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from penstock.wire.messages.offset_for_leader_epoch import (
    EpochEndOffset,
    OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)
from penstock.work.one_error import one_error
from penstock.work.pieces import in_portions

_LATEST: Final = -1
_EARLIEST: Final = -2
_MAX_TIMESTAMP: Final = -3
_EARLIEST_LOCAL: Final = -4
_LATEST_TIERED: Final = -5
_EARLIEST_PENDING_UPLOAD: Final = -6
#: The version in which each special timestamp came (KIP-734, KIP-405, KIP-1005, KIP-1023).
_SINCE_VERSION: Final = {
    _LATEST: 0,
    _EARLIEST: 0,
    _MAX_TIMESTAMP: 7,
    _EARLIEST_LOCAL: 8,
    _LATEST_TIERED: 9,
    _EARLIEST_PENDING_UPLOAD: 11,
}
_READ_COMMITTED: Final = 1
_ISOLATION_LEVELS: Final = frozenset({0, 1})
_HIGH_WATERMARK: Final = -1
#: Partitions whose records are deleted together, and that are looked at in one go.
_DELETIONS: Final = 50


async def handle_list_offsets(request: ListOffsetsRequest, context: RequestContext) -> ListOffsetsResponse:
    """ListOffsets: one result per partition that was asked, with an error of its own."""
    if request.isolation_level not in _ISOLATION_LEVELS:
        return await _refused_list(request, ErrorCode.UNKNOWN_SERVER_ERROR)
    topics: dict[str, ListOffsetsTopicResponse] = {}
    committed = request.isolation_level == _READ_COMMITTED
    times: Counter[tuple[str, int]] = Counter()
    async for topic in in_portions(request.topics):
        async for asked in in_portions(topic.partitions):
            times[topic.name, asked.partition_index] += 1
    seen: set[tuple[str, int]] = set()
    denied = context.denied(Operation.DESCRIBE, ResourceType.TOPIC, (topic.name for topic in request.topics))
    async for topic in in_portions(request.topics):
        async for asked in in_portions(topic.partitions):
            key = (topic.name, asked.partition_index)
            if key in seen:
                continue
            seen.add(key)
            result = ListOffsetsPartitionResponse(partition_index=asked.partition_index)
            try:
                check_topic_permitted(topic.name, denied)
                if times[key] > 1:
                    raise KafkaError(ErrorCode.INVALID_REQUEST, "the partition is in the request twice")
                await _list_offset(topic.name, asked, result, context, committed)
            except OPERATING_ERRORS as error:
                result.error_code = error_code_of(error)
            if topic.name not in topics:
                topics[topic.name] = ListOffsetsTopicResponse(name=topic.name, partitions=[])
            topics[topic.name].partitions.append(result)
    return ListOffsetsResponse(topics=list(topics.values()))


async def _refused_list(request: ListOffsetsRequest, error_code: int) -> ListOffsetsResponse:
    """One result for each time that a partition is named, as Kafka answers what is wrong with all of a request."""
    topics: list[ListOffsetsTopicResponse] = []
    async for topic in in_portions(request.topics):
        partitions = [
            ListOffsetsPartitionResponse(partition_index=asked.partition_index, error_code=error_code)
            async for asked in in_portions(topic.partitions)
        ]
        topics.append(ListOffsetsTopicResponse(name=topic.name, partitions=partitions))
    return ListOffsetsResponse(topics=topics)


async def _list_offset(
    topic: str,
    asked: ListOffsetsPartition,
    result: ListOffsetsPartitionResponse,
    context: RequestContext,
    committed: bool,
) -> None:
    timestamp = asked.timestamp
    found: tuple[int, int, int] | None
    if timestamp < 0:  # before anything is looked up: the partition isn't what is wrong with the question
        since = _SINCE_VERSION.get(timestamp)
        if since is None or context.version < since:
            raise KafkaError(
                ErrorCode.UNSUPPORTED_VERSION, f"special timestamp is unknown: timestamp={timestamp}"
            )
    partition = _find_available(topic, asked.partition_index, context)
    _fence(asked.current_leader_epoch, partition)
    if timestamp == _LATEST:
        end = partition.last_stable_offset if committed else partition.high_watermark
        found = (end, -1, partition.leader_epoch)
    elif timestamp in {_EARLIEST, _EARLIEST_LOCAL}:
        # All data is equally near: the local log starts where the log starts.
        start = partition.log_start_offset
        found = (start, -1, partition.leader_epoch_at(start))
    elif timestamp == _MAX_TIMESTAMP:
        found = await partition.max_timestamp_offset()
    elif timestamp in {_LATEST_TIERED, _EARLIEST_PENDING_UPLOAD}:
        found = None  # no tiers here
    else:
        found = await partition.offset_for_timestamp(timestamp)
        if found is not None and committed and found[0] >= partition.last_stable_offset:
            found = None
    if found is not None:
        result.offset, result.timestamp, result.leader_epoch = found


async def handle_offset_for_leader_epoch(
    request: OffsetForLeaderEpochRequest, context: RequestContext
) -> OffsetForLeaderEpochResponse:
    """OffsetForLeaderEpoch (KIP-320): where an epoch ended, (-1, -1) for one we never had."""
    topics: list[OffsetForLeaderTopicResult] = []
    denied = context.denied(Operation.DESCRIBE, ResourceType.TOPIC, (topic.topic for topic in request.topics))
    async for topic in in_portions(request.topics):
        results: list[EpochEndOffset] = []
        async for asked in in_portions(topic.partitions):
            result = EpochEndOffset(partition=asked.partition)
            try:
                check_topic_permitted(topic.topic, denied)
                partition = _find_available(topic.topic, asked.partition, context)
                _fence(asked.current_leader_epoch, partition)
                result.leader_epoch, result.end_offset = partition.end_offset_for_epoch(asked.leader_epoch)
            except OPERATING_ERRORS as error:
                result.error_code = error_code_of(error)
            results.append(result)
        topics.append(OffsetForLeaderTopicResult(topic=topic.topic, partitions=results))
    return OffsetForLeaderEpochResponse(topics=topics)


async def handle_delete_records(
    request: DeleteRecordsRequest, context: RequestContext
) -> DeleteRecordsResponse:
    """DeleteRecords: move the log start of each partition, answer with the new one.

    Unavailable partitions too: giving up what is damaged is a way to have them back.
    """
    deadline = Deadline(request.timeout_ms)
    # A partition that is named twice is dealt with once, by what was said last.
    wanted: dict[str, dict[int, DeleteRecordsPartition]] = {}
    async for topic in in_portions(request.topics):
        async for asked in in_portions(topic.partitions):
            wanted.setdefault(topic.name, {})[asked.partition_index] = asked
    denied = context.denied(Operation.DELETE, ResourceType.TOPIC, wanted)
    topics: list[DeleteRecordsTopicResult] = []
    due: list[tuple[Partition, int, DeleteRecordsPartitionResult]] = []
    async for name, partitions in in_portions(wanted.items(), _DELETIONS):
        results: list[DeleteRecordsPartitionResult] = []
        async for asked in in_portions(partitions.values(), _DELETIONS):
            result = DeleteRecordsPartitionResult(partition_index=asked.partition_index, low_watermark=-1)
            try:
                check_topic_permitted(name, denied)
                partition, offset = _deletable(name, asked, context)
            except OPERATING_ERRORS as error:
                result.error_code = error_code_of(error)
            else:
                if offset <= partition.log_start_offset and partition.unavailable is None:
                    result.low_watermark = partition.log_start_offset
                else:
                    due.append((partition, offset, result))
            results.append(result)
            if len(due) == _DELETIONS:
                await _delete_records(due, deadline)
                due = []
        topics.append(DeleteRecordsTopicResult(name=name, partitions=results))
    await _delete_records(due, deadline)
    return DeleteRecordsResponse(topics=topics)


async def _delete_records(
    due: Sequence[tuple[Partition, int, DeleteRecordsPartitionResult]], deadline: Deadline
) -> None:
    """Delete the records of these partitions together: they share metadata entries, and uploads."""

    async def delete(partition: Partition, offset: int, result: DeleteRecordsPartitionResult) -> None:
        try:
            result.low_watermark = await deadline.of(partition.delete_records(offset))
        except OPERATING_ERRORS as error:
            result.error_code = error_code_of(error)

    if len(due) == 1:
        await delete(*due[0])
        return
    with one_error():
        async with anyio.create_task_group() as tasks:
            for one in due:
                tasks.start_soon(delete, *one)


def _deletable(topic: str, asked: DeleteRecordsPartition, context: RequestContext) -> tuple[Partition, int]:
    """The partition, and the offset up to which its records go."""
    partition = _find(topic, asked.partition_index, context)
    known = context.api.logs.topics().get(topic)
    if known is not None and known.internal:
        raise KafkaError(
            ErrorCode.INVALID_TOPIC_EXCEPTION, f"records of an internal topic stay: topic={topic}"
        )
    policy = context.api.logs.config_value(topic, "cleanup.policy")
    if partition.unavailable is None and policy and "delete" not in policy:
        raise KafkaError(
            ErrorCode.POLICY_VIOLATION, f"records of a compacted topic can't be deleted: topic={topic}"
        )
    offset = asked.offset
    if offset == _HIGH_WATERMARK:
        offset = partition.high_watermark
    if offset < 0 or offset > partition.high_watermark:
        raise KafkaError(
            ErrorCode.OFFSET_OUT_OF_RANGE,
            f"offset is beyond the high watermark: offset={offset} high_watermark={partition.high_watermark}",
        )
    return partition, offset


def _find(topic: str, index: int, context: RequestContext) -> Partition:
    partition = context.api.logs.partition(topic, index)
    if partition is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
    return partition


def _find_available(topic: str, index: int, context: RequestContext) -> Partition:
    partition = _find(topic, index, context)
    if partition.unavailable is not None:
        raise KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, partition.unavailable)
    return partition


def _fence(asked_epoch: int, partition: Partition) -> None:
    """KIP-320: a client with older metadata than ours, or newer, is told so."""
    if asked_epoch in {-1, partition.leader_epoch}:
        return
    if asked_epoch < partition.leader_epoch:
        raise KafkaError(ErrorCode.FENCED_LEADER_EPOCH)
    raise KafkaError(ErrorCode.UNKNOWN_LEADER_EPOCH)


APIS: Final = (
    Api(
        key=ApiKey.LIST_OFFSETS,
        needs=(each(Operation.DESCRIBE, ResourceType.TOPIC),),
        handler=handle_list_offsets,
        note="all special timestamps; there are no tiers, so latest-tiered and earliest-pending-upload are -1",
    ),
    Api(
        key=ApiKey.DELETE_RECORDS,
        needs=(each(Operation.DELETE, ResourceType.TOPIC),),
        handler=handle_delete_records,
    ),
    Api(
        key=ApiKey.OFFSET_FOR_LEADER_EPOCH,
        # and CLUSTER_ACTION, of followers, which there are none here
        needs=(each(Operation.DESCRIBE, ResourceType.TOPIC),),
        handler=handle_offset_for_leader_epoch,
    ),
)
