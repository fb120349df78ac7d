"""Topics as Metadata describes them: as message objects, or encoded piece by piece and kept, where there are many."""

from __future__ import annotations

__all__ = ("PARTITIONS_INLINE_MAX", "MetadataFragments", "describe_topic")

from collections.abc import Sequence
from typing import Final

import anyio

from penstock.log.manager import LogManager
from penstock.log.topic import Topic
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.metadata import (
    MetadataResponse,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from penstock.wire.registry import encode_body, is_flexible
from penstock.wire.splice import ArraySplice, EncodedBody

#: A response with more partitions is put together in pieces: one partition takes 3 µs to describe and encode.
PARTITIONS_INLINE_MAX = 50
#: After so many partitions, or a fifth as many topics, others get their turn.
_PIECE_PARTITIONS = 100
_TOPIC_COST: Final = 5
#: Versions (and options) whose encoded topics are kept.
_KINDS_MAX: Final = 4
#: From this version on a response begins with ``throttle_time_ms``.
_THROTTLE_VERSION: Final = 3


def describe_topic(
    topic: Topic, logs: LogManager, operations: int, indexes: range | None = None
) -> MetadataResponseTopic:
    """The topic with all its partitions, or those in ``indexes``."""
    node_id = logs.node_id
    nodes = [node_id]
    name = topic.name
    leaders = topic.leaders
    partitions: list[MetadataResponsePartition] = []
    for index in range(topic.partition_count) if indexes is None else indexes:
        partition = logs.partition(name, index)
        if leaders[index] != node_id or partition is None or partition.unavailable is not None:
            # as Kafka shows a partition whose only replica is on a failed disk, or on a broker that has no address
            partitions.append(
                MetadataResponsePartition(
                    error_code=ErrorCode.LEADER_NOT_AVAILABLE,
                    partition_index=index,
                    leader_id=-1,
                    leader_epoch=-1 if partition is None else partition.leader_epoch,
                    replica_nodes=nodes,
                    isr_nodes=[],
                    offline_replicas=nodes,
                )
            )
        else:
            partitions.append(
                MetadataResponsePartition(
                    partition_index=index,
                    leader_id=node_id,
                    leader_epoch=partition.leader_epoch,
                    replica_nodes=nodes,
                    isr_nodes=nodes,
                )
            )
    return MetadataResponseTopic(
        name=name,
        topic_id=topic.id,
        is_internal=topic.internal,
        partitions=partitions,
        topic_authorized_operations=operations,
    )


class _Kind:
    """The encoding of topics in one version, and a cache of encoded ones."""

    __slots__ = ("_flexible", "_operations", "_topics", "_version", "encoded")

    def __init__(self, version: int, operations: int) -> None:
        self._version = version
        self._operations = operations
        self._flexible = is_flexible(ApiKey.METADATA, version)
        self._topics = self.splice(MetadataResponse(brokers=[], topics=[]))
        #: (what it depends on, its bytes) by topic id.
        self.encoded: dict[bytes, tuple[tuple[int, int], bytes]] = {}

    def splice(self, response: MetadataResponse) -> ArraySplice:
        """The place of the topics in a response, which has none so far."""
        empty = encode_body(ApiKey.METADATA, self._version, response)
        response.topics = [MetadataResponseTopic(name="", partitions=[])]
        one = encode_body(ApiKey.METADATA, self._version, response)
        response.topics = []
        return ArraySplice(empty, one, flexible=self._flexible)

    def encode(self, topic: MetadataResponseTopic) -> bytes:
        """The bytes of one topic."""
        response = MetadataResponse(brokers=[], topics=[topic])
        return self._topics.elements(encode_body(ApiKey.METADATA, self._version, response), 1)

    async def topic(self, topic: Topic, logs: LogManager) -> bytes:
        """The bytes of a topic, encoded in pieces unless it is known as it is now."""
        count = topic.partition_count
        stamp = (topic.version, count)
        known = self.encoded.get(topic.id)
        if known is not None and known[0] == stamp:
            return known[1]
        described = describe_topic(topic, logs, self._operations, range(0))
        empty = self.encode(described)
        described.partitions = [MetadataResponsePartition(replica_nodes=[], isr_nodes=[])]
        splice = ArraySplice(empty, self.encode(described), flexible=self._flexible)
        pieces = []
        for first in range(0, count, _PIECE_PARTITIONS):
            if first:
                await anyio.lowlevel.checkpoint()
            indexes = range(first, min(first + _PIECE_PARTITIONS, count))
            piece = self.encode(describe_topic(topic, logs, self._operations, indexes))
            pieces.append(splice.elements(piece, len(indexes)))
        data = b"".join(splice.join(count, pieces))
        if (topic.version, topic.partition_count) == stamp:
            self.encoded[topic.id] = (stamp, data)
        return data


class MetadataFragments:
    """Encodes large responses, and keeps the topics in them for the next ones."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, int], _Kind] = {}

    async def respond(
        self,
        response: MetadataResponse,
        topics: Sequence[Topic | MetadataResponseTopic],
        logs: LogManager,
        version: int,
        operations: int,
    ) -> EncodedBody:
        """``response``, which has no topics so far, with these: as they are, or described already (errors)."""
        kind = self._kind(version, operations)
        elements = []
        work = 0
        for topic in topics:
            if isinstance(topic, MetadataResponseTopic):
                data, cost = kind.encode(topic), _TOPIC_COST
            else:
                new = topic.id not in kind.encoded
                data = await kind.topic(topic, logs)
                cost = _TOPIC_COST + topic.partition_count * new
            elements.append(data)
            work += cost
            if work >= _PIECE_PARTITIONS:
                work = 0
                await anyio.lowlevel.checkpoint()
        self._forget_deleted(kind, logs)
        body = b"".join(kind.splice(response).join(len(elements), elements))
        return EncodedBody([body], starts_with_throttle=version >= _THROTTLE_VERSION)

    def _kind(self, version: int, operations: int) -> _Kind:
        kind = self._kinds.pop((version, operations), None) or _Kind(version, operations)
        self._kinds[version, operations] = kind
        if len(self._kinds) > _KINDS_MAX:
            del self._kinds[next(iter(self._kinds))]
        return kind

    @staticmethod
    def _forget_deleted(kind: _Kind, logs: LogManager) -> None:
        if len(kind.encoded) > len(logs.topics()):
            for topic_id in [topic_id for topic_id in kind.encoded if logs.topic_by_id(topic_id) is None]:
                del kind.encoded[topic_id]
