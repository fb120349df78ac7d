"""OffsetCommit v2-10, OffsetFetch v1-10, OffsetDelete v0: the offsets that consumer groups have committed.

They are kept by the topic's name, so what a request gives by topic id (v10, KIP-848) is resolved first.
"""

from __future__ import annotations

__all__ = ("APIS", "handle_offset_commit", "handle_offset_delete", "handle_offset_fetch")

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import anyio.lowlevel

from penstock.api.authorization import DENIED, each, the_group
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, Frame, one_code
from penstock.api.lookup import AskedTopic, TopicKey, find_topic, resolve_topics
from penstock.api.portions import Steps, by_portions
from penstock.coordinator.group_types import CommittedOffset, OffsetAndMetadata, TopicPartition
from penstock.coordinator.placement import hash_steps
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
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
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
)
from penstock.work.pieces import PORTION, in_portions, pieces

# Versions at which a rule changed.
_COMMIT_GROUP_NOT_FOUND_VERSION: Final = 9
_FETCH_GROUP_ERROR_VERSION: Final = 2
_FETCH_GROUPS_VERSION: Final = 8
_TOPIC_IDS_VERSION: Final = 10
#: Partitions of a request that are gathered in one go.
_SLICE_OFFSETS: Final = 500
#: One group takes as long as so many of its topics.
_STEPS_OF_GROUP: Final = 3
#: All offsets of a group that is named again are told up to this: a short request must make no response of any size.
_REPEATED_PARTITIONS_MAX: Final = 10_000
#: Metadata of offsets that may be told again.
_REPEATED_BYTES_MAX: Final = 256 * 1024
#: A topic whose offsets are asked for: of one group, and of one of many.
_AskedFor: TypeAlias = OffsetFetchRequestTopic | OffsetFetchRequestTopics
#: A topic in the answer of a group.
T = TypeVar("T", OffsetCommitResponseTopic, OffsetDeleteResponseTopic)
#: Errors of topics whose offsets are told: they are kept by name, also of a topic that is gone.
_HAS_OFFSETS: Final = frozenset({ErrorCode.NONE, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION})
_NO_OFFSET: Final = CommittedOffset(-1, -1, "", -1)


async def handle_offset_commit(request: OffsetCommitRequest, context: RequestContext) -> OffsetCommitResponse:
    """OffsetCommit v2-10; offsets are durable when it is answered."""
    by_id = context.version >= _TOPIC_IDS_VERSION
    # an empty name is no topic's, and here the authorizer isn't asked of it
    keys = (one.topic_id if by_id else one.name or None for one in request.topics)
    found = await resolve_topics(keys, Operation.READ, context)
    offsets: dict[TopicPartition, OffsetAndMetadata] = {}
    async for asked, known in in_portions(zip(request.topics, found, strict=True)):
        if known.topic is None or known.error is not ErrorCode.NONE:
            continue
        async for one in in_portions(asked.partitions):
            partition = (known.topic.name, one.partition_index)
            offset = _offset_of(one)
            # of a partition that is named again, the last offset that can be committed is
            if 0 <= one.partition_index < known.topic.partition_count and (
                partition not in offsets or context.groups.may_commit(offset)
            ):
                offsets[partition] = offset
    errors: Mapping[TopicPartition, ErrorCode] = {}
    if offsets or not request.topics:
        errors = await context.groups.commit_offsets(
            request.group_id,
            offsets,
            member_id=request.member_id,
            generation_id=request.generation_id_or_member_epoch,
            group_instance_id=request.group_instance_id,
            retention_ms=request.retention_time_ms,
        )
    return OffsetCommitResponse(topics=await _committed(request.topics, found, errors, context))


def _offset_of(one: OffsetCommitRequestPartition) -> OffsetAndMetadata:
    return OffsetAndMetadata(one.committed_offset, one.committed_leader_epoch, one.committed_metadata or "")


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
    topics: Sequence[OffsetCommitRequestTopic],
    found: Sequence[AskedTopic],
    errors: Mapping[TopicPartition, ErrorCode],
    context: RequestContext,
) -> list[OffsetCommitResponseTopic]:
    first: dict[TopicKey, OffsetCommitResponseTopic] = {}
    of_group: list[tuple[TopicKey, OffsetCommitResponseTopic]] = []
    version = context.version
    by_id = version >= _TOPIC_IDS_VERSION
    async for asked, known in in_portions(zip(topics, found, strict=True)):
        key = bytes(asked.topic_id) if by_id else asked.name
        missing: list[OffsetCommitResponsePartition] = []
        answered: list[OffsetCommitResponsePartition] = []
        async for one in in_portions(asked.partitions):
            index = one.partition_index
            error = _partition_error(known, index, errors)
            if error is ErrorCode.GROUP_ID_NOT_FOUND and version < _COMMIT_GROUP_NOT_FOUND_VERSION:
                error = ErrorCode.ILLEGAL_GENERATION
            elif error is ErrorCode.NONE and not context.groups.may_commit(_offset_of(one)):
                error = ErrorCode.OFFSET_METADATA_TOO_LARGE  # another offset of the partition was committed
            result = OffsetCommitResponsePartition(partition_index=index, error_code=error)
            (answered if (known.name, index) in errors else missing).append(result)
        if missing or known.error is not ErrorCode.NONE:
            first.setdefault(key, _answer_of(asked, [])).partitions.extend(missing)
        if answered:
            of_group.append((key, _answer_of(asked, answered)))
    return await _together(first, of_group)


async def _together(first: dict[TopicKey, T], of_group: Sequence[tuple[TopicKey, T]]) -> list[T]:
    """The topics of an answer in the order that Kafka has.

    What isn't there, or may not be read, comes first, each topic once; then the group's answers, as they were asked
    for, or beside what isn't there of the same topic.
    """
    if not first:
        return [topic for _, topic in of_group]
    async for key, topic in in_portions(of_group):
        if key in first:
            first[key].partitions.extend(topic.partitions)
        else:
            first[key] = topic
    return list(first.values())


def _answer_of(
    asked: OffsetCommitRequestTopic, partitions: list[OffsetCommitResponsePartition]
) -> OffsetCommitResponseTopic:
    return OffsetCommitResponseTopic(topic_id=asked.topic_id, name=asked.name, partitions=partitions)


def _partition_error(known: AskedTopic, index: int, errors: Mapping[TopicPartition, ErrorCode]) -> ErrorCode:
    """The topic's error, else that of the partition; what isn't among ``errors`` isn't there."""
    if known.name is None or known.error is not ErrorCode.NONE:
        return known.error
    return errors.get((known.name, index), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)


async def handle_offset_fetch(request: OffsetFetchRequest, context: RequestContext) -> OffsetFetchResponse:
    """OffsetFetch v1-10: one group before v8, many since; topics null means all that have an offset.

    What has no offset is -1 without an error, also in a group that doesn't exist.
    """
    await anyio.lowlevel.checkpoint()
    if context.version >= _FETCH_GROUPS_VERSION:
        groups: list[OffsetFetchResponseGroup] = []
        repeated: dict[str, OffsetFetchResponseGroup] = {}
        repeats = _Repeats()
        left = PORTION
        for one in request.groups:
            if left <= 0:
                await anyio.lowlevel.checkpoint()
                left = PORTION
            group = repeated.get(one.group_id) if one.topics is None else None
            if group is None:
                group = await _fetched_group(one.group_id, one.topics, context, repeats)
                if one.topics is None:
                    repeated[one.group_id] = group
            elif not repeats.allow_group(group):
                group = None
            left -= _STEPS_OF_GROUP + hash_steps(one.group_id)
            if group is not None:
                groups.append(group)
                left -= _steps(group)
        return OffsetFetchResponse(groups=groups)
    group = await _fetched_group(request.group_id, request.topics, context, _Repeats())
    error = group.error_code if context.version < _FETCH_GROUP_ERROR_VERSION else 0
    if error:  # v1 has no error of the group: every partition carries it
        return OffsetFetchResponse(topics=await by_portions(_all_with_error(request.topics or (), error)))
    return OffsetFetchResponse(error_code=group.error_code, topics=await by_portions(_singles(group.topics)))


def _all_with_error(topics: Iterable[_AskedFor], error: int) -> Steps[list[OffsetFetchResponseTopic]]:
    answer: list[OffsetFetchResponseTopic] = []
    for one in topics:
        partitions: list[OffsetFetchResponsePartition] = []
        for index in one.partition_indexes:
            partitions.append(_single(_fetched(index, None, error)))
            yield
        answer.append(OffsetFetchResponseTopic(name=one.name, partitions=partitions))
        yield
    return answer


def _singles(topics: list[OffsetFetchResponseTopics]) -> Steps[list[OffsetFetchResponseTopic]]:
    """``topics`` of the answer of one group, as versions before v8 have them; they are gone then."""
    answer: list[OffsetFetchResponseTopic] = []
    topics.reverse()
    while topics:
        one = topics.pop()
        partitions: list[OffsetFetchResponsePartition] = []
        for each_one in one.partitions:
            partitions.append(_single(each_one))
            yield
        answer.append(OffsetFetchResponseTopic(name=one.name, partitions=partitions))
        yield
    return answer


def _steps(group: OffsetFetchResponseGroup) -> int:
    """As how many elements of a request its answer counts."""
    topics = group.topics
    return PORTION if len(topics) > PORTION else sum(1 + len(one.partitions) for one in topics)


class _Repeats:
    """What a request asks for again, and may be told again: a partition of two bytes has 4 KiB of metadata."""

    def __init__(self) -> None:
        self._partitions_left = _REPEATED_PARTITIONS_MAX
        self._bytes_left = _REPEATED_BYTES_MAX
        self._told: set[tuple[str, TopicPartition]] = set()

    def allow_group(self, group: OffsetFetchResponseGroup) -> bool:
        """Whether all offsets of a group may be told again."""
        self._partitions_left -= 1 + sum(len(topic.partitions) for topic in group.topics)
        if self._partitions_left >= 0:
            self._bytes_left -= sum(
                len(one.metadata or "") for topic in group.topics for one in topic.partitions
            )
        return self._partitions_left >= 0 and self._bytes_left >= 0

    def allow(self, group_id: str, partition: TopicPartition, offset: CommittedOffset | None) -> bool:
        """Whether one offset may be told: for the first time, or with little beside it."""
        if offset is None or not offset.metadata:
            return True
        key = (group_id, partition)
        if key not in self._told:
            self._told.add(key)
            return True
        self._bytes_left -= len(offset.metadata)
        return self._bytes_left >= 0


async def _fetched_group(
    group_id: str,
    topics: Sequence[_AskedFor] | None,
    context: RequestContext,
    repeats: _Repeats,
) -> OffsetFetchResponseGroup:
    if not context.may(Operation.DESCRIBE, ResourceType.GROUP, group_id):
        return OffsetFetchResponseGroup(group_id=group_id, error_code=DENIED[ResourceType.GROUP])
    if topics is None:
        return await _fetched_all(group_id, context)
    keys = (_key(one, context.version) for one in topics)
    found = await resolve_topics(keys, Operation.DESCRIBE, context)
    error, described = await _fetched_topics(group_id, topics, found, context, repeats)
    return OffsetFetchResponseGroup(group_id=group_id, error_code=error, topics=described)


def _key(topic: _AskedFor, version: int) -> TopicKey:
    if version >= _TOPIC_IDS_VERSION and isinstance(topic, OffsetFetchRequestTopics):
        return topic.topic_id
    return topic.name


async def _fetched_topics(
    group_id: str,
    topics: Iterable[_AskedFor],
    found: Iterable[AskedTopic],
    context: RequestContext,
    repeats: _Repeats,
) -> tuple[ErrorCode, list[OffsetFetchResponseTopics]]:
    """What of the group's offsets was asked for, looked up a portion at a time; or the group's error.

    Up to a portion it's from one moment. All offsets of a long request at a time would take 10 ms, and again when
    they are dropped.
    """
    error, _ = await _offsets(group_id, (), context)
    if error is not ErrorCode.NONE:
        return error, []
    described: list[OffsetFetchResponseTopics] = []
    pairs = in_portions(zip(topics, found, strict=True), more=lambda pair: len(pair[0].partition_indexes))
    async for asked, known in pairs:
        topic_of = OffsetFetchResponseTopics(name=asked.name, partitions=[])
        if isinstance(asked, OffsetFetchRequestTopics):
            topic_of.topic_id = asked.topic_id
        name = known.name if known.error in _HAS_OFFSETS else None
        for number, indexes in enumerate(pieces(asked.partition_indexes, PORTION)):
            if number:
                await anyio.lowlevel.checkpoint()
            if name is None:
                topic_of.partitions += [_fetched(index, None, known.error) for index in indexes]
                continue
            error, offsets = await _offsets(group_id, [(name, index) for index in indexes], context)
            if error is not ErrorCode.NONE:
                return error, []  # since others had their turns
            for index in indexes:
                offset = offsets[name, index]
                if repeats.allow(group_id, (name, index), offset):
                    topic_of.partitions.append(_fetched(index, offset))
        described.append(topic_of)
    return error, described


async def _offsets(
    group_id: str, partitions: Sequence[TopicPartition] | None, context: RequestContext
) -> tuple[ErrorCode, dict[TopicPartition, CommittedOffset | None]]:
    fetched = context.groups.fetch_offsets_nowait(group_id, partitions)
    return fetched or await context.groups.fetch_offsets(group_id, partitions)


async def _fetched_all(group_id: str, context: RequestContext) -> OffsetFetchResponseGroup:
    error, offsets = await _offsets(group_id, None, context)
    if error is not ErrorCode.NONE:
        return OffsetFetchResponseGroup(group_id=group_id, error_code=error)
    by_id = context.version >= _TOPIC_IDS_VERSION
    topics: dict[str, OffsetFetchResponseTopics] = {}
    hidden = context.denied(Operation.DESCRIBE, ResourceType.TOPIC, (name for name, _ in offsets))
    async for (name, index), committed in in_portions(sorted(offsets.items())):
        if name in hidden:
            continue
        if name not in topics:
            topic = find_topic(name, context) if by_id else None
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
    found = await resolve_topics((one.name for one in request.topics), Operation.READ, context)
    partitions = [
        (known.topic.name, one.partition_index)
        async for asked, known in in_portions(zip(request.topics, found, strict=True))
        if known.topic is not None and known.error is ErrorCode.NONE
        async for one in in_portions(asked.partitions, _SLICE_OFFSETS)
        if 0 <= one.partition_index < known.topic.partition_count
    ]
    error, errors = await context.groups.delete_offsets(request.group_id, partitions)
    if error is not ErrorCode.NONE:
        return OffsetDeleteResponse(error_code=error)
    first: dict[TopicKey, OffsetDeleteResponseTopic] = {}
    of_group: list[tuple[TopicKey, OffsetDeleteResponseTopic]] = []
    async for asked, known in in_portions(zip(request.topics, found, strict=True)):
        missing: list[OffsetDeleteResponsePartition] = []
        answered: list[OffsetDeleteResponsePartition] = []
        async for one in in_portions(asked.partitions):
            index = one.partition_index
            result = OffsetDeleteResponsePartition(
                partition_index=index, error_code=_partition_error(known, index, errors)
            )
            (answered if (known.name, index) in errors else missing).append(result)
        if missing or known.error is not ErrorCode.NONE:
            topic = first.setdefault(asked.name, OffsetDeleteResponseTopic(name=asked.name, partitions=[]))
            topic.partitions.extend(missing)
        if answered:
            topic = OffsetDeleteResponseTopic(name=asked.name, partitions=answered)
            of_group.append((asked.name, topic))
    return OffsetDeleteResponse(topics=await _together(first, of_group))


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
        key=ApiKey.OFFSET_DELETE,
        needs=(the_group(Operation.DELETE), each(Operation.READ, ResourceType.TOPIC)),
        handler=handle_offset_delete,
        failure=one_code(OffsetDeleteResponse),
    ),
)
