"""Topics, configs, offsets and groups: what a person does to a cluster.

Everything retries what may pass (see :meth:`Cluster.retry`), and raises NotFoundError, AlreadyExistsError,
InvalidRequestError (the broker refuses, with its reason) or UnavailableError.
"""

from __future__ import annotations

__all__ = (
    "EARLIEST",
    "LATEST",
    "Admin",
    "CommittedOffset",
    "ConfigEntry",
    "GroupInfo",
    "GroupListing",
    "GroupMember",
    "ListedOffset",
    "TopicPartition",
)

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import msgspec

from penstock.wire import ApiKey, DecodeError, Message, decode_data
from penstock.wire.messages.consumer_protocol_assignment import ConsumerProtocolAssignment
from penstock.wire.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopic,
)
from penstock.wire.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
    CreateTopicsResponse,
)
from penstock.wire.messages.delete_groups import DeleteGroupsRequest, DeleteGroupsResponse
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicsResponse, DeleteTopicState
from penstock.wire.messages.describe_configs import (
    DescribeConfigsRequest,
    DescribeConfigsResource,
    DescribeConfigsResponse,
)
from penstock.wire.messages.describe_groups import DescribeGroupsRequest, DescribeGroupsResponse
from penstock.wire.messages.describe_log_dirs import (
    DescribableLogDirTopic,
    DescribeLogDirsRequest,
    DescribeLogDirsResponse,
)
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from penstock.wire.messages.list_groups import ListGroupsRequest, ListGroupsResponse
from penstock.wire.messages.list_offsets import (
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsTopic,
)
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
    OffsetCommitResponse,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestTopic,
    OffsetFetchResponse,
)
from penstock_tools.client.cluster import Cluster, TopicInfo
from penstock_tools.client.connection import Connection
from penstock_tools.client.errors import check, no_such

TopicPartition: TypeAlias = tuple[str, int]
M = TypeVar("M", bound=msgspec.Struct)

#: Special timestamps of ListOffsets.
EARLIEST: Final = -2
LATEST: Final = -1

_TOPIC_RESOURCE: Final = 2
_SET: Final = 0
_DELETE: Final = 1
_TIMEOUT_MS: Final = 30_000
# KIP-226: where a config value comes from.
_CONFIG_SOURCES: Final = {
    1: "topic",
    2: "broker (dynamic)",
    3: "cluster (dynamic)",
    4: "broker",
    5: "default",
    6: "broker logger",
    7: "client metrics",
    8: "group",
}


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """One config of a topic; ``value`` is None where it is secret or unset."""

    name: str
    value: str | None
    source: str
    is_read_only: bool


@dataclass(frozen=True, slots=True)
class ListedOffset:
    """An offset and the timestamp of its record, -1 where ListOffsets gives none; offset -1: no such record."""

    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """The offset that a group has committed for a partition, with its metadata."""

    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class GroupListing:
    """A group in a listing."""

    group: str
    state: str
    protocol_type: str


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member and the partitions that it was given."""

    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group; ``assignor`` is empty while it has none."""

    group: str
    state: str
    protocol_type: str
    assignor: str
    members: tuple[GroupMember, ...]


class Admin:
    """Operations on a cluster that somebody else holds open."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    # -- topics ----------------------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = -1,
        replication_factor: int = -1,
        configs: Mapping[str, str] | None = None,
    ) -> int:
        """Create a topic; -1 stands for the broker's default. Returns the number of partitions, -1 if not told.

        Raises:
            AlreadyExistsError: it is there, or a retry met what its first attempt had made.
        """
        topic = CreatableTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=replication_factor,
            configs=[CreatableTopicConfig(name=key, value=value) for key, value in (configs or {}).items()],
        )
        request = CreateTopicsRequest(topics=[topic], timeout_ms=_TIMEOUT_MS)

        def verify(answer: CreateTopicsResponse) -> None:
            result = answer.topics[0]
            check(result.error_code, f"topic can't be created topic={name}", result.error_message)

        answer = await self._ask_controller(ApiKey.CREATE_TOPICS, request, CreateTopicsResponse, verify)
        self.cluster.forget_topics()
        return answer.topics[0].num_partitions

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and its records."""
        request = DeleteTopicsRequest(
            topics=[DeleteTopicState(name=name)], topic_names=[name], timeout_ms=_TIMEOUT_MS
        )

        def verify(answer: DeleteTopicsResponse) -> None:
            result = answer.responses[0]
            check(result.error_code, f"topic can't be deleted topic={name}", result.error_message)

        await self._ask_controller(ApiKey.DELETE_TOPICS, request, DeleteTopicsResponse, verify)
        self.cluster.forget_topics()

    async def create_partitions(self, name: str, count: int) -> None:
        """Raise the number of partitions to ``count``."""
        topic = CreatePartitionsTopic(name=name, count=count, assignments=None)
        request = CreatePartitionsRequest(topics=[topic], timeout_ms=_TIMEOUT_MS)

        def verify(answer: CreatePartitionsResponse) -> None:
            result = answer.results[0]
            check(result.error_code, f"partitions can't be added topic={name}", result.error_message)

        await self._ask_controller(ApiKey.CREATE_PARTITIONS, request, CreatePartitionsResponse, verify)
        self.cluster.forget_topics()

    async def topics(self, names: Sequence[str] | None = None) -> list[TopicInfo]:
        """Topics by name, all if ``names`` is None; see :meth:`Cluster.topics`."""
        return await self.cluster.topics(names)

    async def topic_configs(self, name: str) -> list[ConfigEntry]:
        """The configs that act on a topic, by name."""
        resource = DescribeConfigsResource(
            resource_type=_TOPIC_RESOURCE, resource_name=name, configuration_keys=None
        )
        request = DescribeConfigsRequest(resources=[resource])

        def verify(answer: DescribeConfigsResponse) -> None:
            result = answer.results[0]
            check(result.error_code, f"configs can't be read topic={name}", result.error_message)

        answer = await self._ask_controller(ApiKey.DESCRIBE_CONFIGS, request, DescribeConfigsResponse, verify)
        entries = [
            ConfigEntry(
                entry.name,
                None if entry.is_sensitive else entry.value,
                _CONFIG_SOURCES.get(entry.config_source, "unknown"),
                entry.read_only,
            )
            for entry in answer.results[0].configs
        ]
        return sorted(entries, key=lambda entry: entry.name)

    async def alter_topic_configs(
        self, name: str, *, set_to: Mapping[str, str] | None = None, delete: Sequence[str] = ()
    ) -> None:
        """Set some configs and return others to their default; the rest stays (KIP-339)."""
        changes = [
            AlterableConfig(name=key, config_operation=_SET, value=value)
            for key, value in (set_to or {}).items()
        ]
        changes += [AlterableConfig(name=key, config_operation=_DELETE, value=None) for key in delete]
        resource = AlterConfigsResource(resource_type=_TOPIC_RESOURCE, resource_name=name, configs=changes)

        def verify(answer: IncrementalAlterConfigsResponse) -> None:
            result = answer.responses[0]
            check(result.error_code, f"configs can't be changed topic={name}", result.error_message)

        await self._ask_controller(
            ApiKey.INCREMENTAL_ALTER_CONFIGS,
            IncrementalAlterConfigsRequest(resources=[resource]),
            IncrementalAlterConfigsResponse,
            verify,
        )

    async def partition_sizes(self, topic: TopicInfo) -> dict[int, int]:
        """Bytes of a topic's partitions, each as its leader has it; those without a leader are left out.

        Raises:
            InvalidRequestError: the broker doesn't tell (DescribeLogDirs, KIP-113), or not to us.
        """
        sizes: dict[int, int] = {}
        led = [(topic.name, each.partition) for each in topic.partitions if each.leader >= 0]

        async def attempt() -> None:
            for node_id, keys in (await self.cluster.by_leader(led)).items():
                request = DescribeLogDirsRequest(
                    topics=[
                        DescribableLogDirTopic(
                            topic=topic.name, partitions=[partition for _, partition in keys]
                        )
                    ]
                )
                answer = await self._ask(
                    await self.cluster.node(node_id),
                    ApiKey.DESCRIBE_LOG_DIRS,
                    request,
                    DescribeLogDirsResponse,
                )
                what = f"sizes can't be read topic={topic.name}"
                check(answer.error_code, what)
                for place in answer.results:
                    check(place.error_code, what)
                    for found in place.topics:
                        for each in found.partitions:
                            if found.name == topic.name and not each.is_future_key:
                                sizes[each.partition_index] = each.partition_size

        await self.cluster.retry(attempt)
        return sizes

    # -- offsets ---------------------------------------------------------------------------------------------

    async def list_offsets(self, wanted: Mapping[TopicPartition, int]) -> dict[TopicPartition, ListedOffset]:
        """Per partition the first offset at or after a timestamp (ms), or for EARLIEST or LATEST.

        LATEST is the offset that the next record will get. Offset -1: no record is that young.
        """
        found: dict[TopicPartition, ListedOffset] = {}

        async def attempt() -> None:
            left = [key for key in wanted if key not in found]
            for node_id, keys in (await self.cluster.by_leader(left)).items():
                topics: dict[str, ListOffsetsTopic] = {}
                for topic, partition in keys:
                    entry = ListOffsetsPartition(
                        partition_index=partition, timestamp=wanted[topic, partition]
                    )
                    topics.setdefault(topic, ListOffsetsTopic(name=topic, partitions=[])).partitions.append(
                        entry
                    )
                request = ListOffsetsRequest(
                    replica_id=-1, topics=list(topics.values()), timeout_ms=_TIMEOUT_MS
                )
                answer = await self._ask(
                    await self.cluster.node(node_id), ApiKey.LIST_OFFSETS, request, ListOffsetsResponse
                )
                for listed in answer.topics:
                    for each in listed.partitions:
                        check(
                            each.error_code,
                            f"offset can't be found topic={listed.name} partition={each.partition_index}",
                        )
                        found[listed.name, each.partition_index] = ListedOffset(each.offset, each.timestamp)

        await self.cluster.retry(attempt)
        return {key: found[key] for key in wanted}

    async def delete_records(self, before: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Delete all records before an offset (-1: before the end); the new log start per partition.

        Also of partitions that are offline because their data are damaged: Penstock takes them back like that.
        """
        starts: dict[TopicPartition, int] = {}

        async def attempt() -> None:
            left = [key for key in before if key not in starts]
            for node_id, keys in (await self.cluster.by_leader(left, or_replica=True)).items():
                topics: dict[str, DeleteRecordsTopic] = {}
                for topic, partition in keys:
                    entry = DeleteRecordsPartition(partition_index=partition, offset=before[topic, partition])
                    topics.setdefault(topic, DeleteRecordsTopic(name=topic, partitions=[])).partitions.append(
                        entry
                    )
                request = DeleteRecordsRequest(topics=list(topics.values()), timeout_ms=_TIMEOUT_MS)
                answer = await self._ask(
                    await self.cluster.node(node_id), ApiKey.DELETE_RECORDS, request, DeleteRecordsResponse
                )
                for done in answer.topics:
                    for each in done.partitions:
                        check(
                            each.error_code,
                            f"records can't be deleted topic={done.name} partition={each.partition_index}",
                        )
                        starts[done.name, each.partition_index] = each.low_watermark

        await self.cluster.retry(attempt)
        return starts

    # -- groups ----------------------------------------------------------------------------------------------

    async def groups(self) -> list[GroupListing]:
        """All groups of all brokers, by name."""
        found: dict[str, GroupListing] = {}

        async def attempt() -> None:
            await self.cluster.topics([])
            for node in self.cluster.nodes:
                answer = await self._ask(
                    await self.cluster.node(node.node_id),
                    ApiKey.LIST_GROUPS,
                    ListGroupsRequest(),
                    ListGroupsResponse,
                )
                check(answer.error_code, f"groups can't be listed node_id={node.node_id}")
                for each in answer.groups:
                    found[each.group_id] = GroupListing(each.group_id, each.group_state, each.protocol_type)

        await self.cluster.retry(attempt)
        return [found[name] for name in sorted(found)]

    async def group(self, name: str) -> GroupInfo:
        """One group and its members.

        Raises:
            NotFoundError: there is no such group.
        """
        request = DescribeGroupsRequest(groups=[name])

        async def attempt() -> GroupInfo:
            answer = await self._ask_coordinator(
                name, ApiKey.DESCRIBE_GROUPS, request, DescribeGroupsResponse
            )
            found = answer.groups[0]
            check(found.error_code, f"group can't be described group={name}", found.error_message)
            if found.group_state == "Dead":
                # Before version 6 (KIP-1043) an unknown group isn't an error but a dead group.
                raise no_such("group", name)
            members = tuple(
                GroupMember(
                    member.member_id,
                    member.group_instance_id,
                    member.client_id,
                    member.client_host,
                    _assigned(member.member_assignment),
                )
                for member in sorted(found.members, key=lambda member: member.member_id)
            )
            return GroupInfo(name, found.group_state, found.protocol_type, found.protocol_data, members)

        return await self.cluster.retry(attempt, group=name)

    async def delete_group(self, name: str) -> None:
        """Delete a group and its offsets.

        Raises:
            InvalidRequestError: it has members.
        """

        async def attempt() -> None:
            answer = await self._ask_coordinator(
                name, ApiKey.DELETE_GROUPS, DeleteGroupsRequest(groups_names=[name]), DeleteGroupsResponse
            )
            check(answer.results[0].error_code, f"group can't be deleted group={name}")

        await self.cluster.retry(attempt, group=name)

    async def committed_offsets(
        self, group: str, partitions: Sequence[TopicPartition] | None = None
    ) -> dict[TopicPartition, CommittedOffset]:
        """The committed offsets of a group, of ``partitions`` or of all; those without a commit are left out."""
        topics: dict[str, list[int]] = {}
        for topic, partition in partitions or ():
            topics.setdefault(topic, []).append(partition)
        request = OffsetFetchRequest(
            group_id=group,
            topics=None
            if partitions is None
            else [
                OffsetFetchRequestTopic(name=name, partition_indexes=indexes)
                for name, indexes in topics.items()
            ],
        )

        async def attempt() -> dict[TopicPartition, CommittedOffset]:
            answer = await self._ask_coordinator(group, ApiKey.OFFSET_FETCH, request, OffsetFetchResponse)
            check(answer.error_code, f"offsets can't be read group={group}")
            found = {}
            for topic in answer.topics:
                for each in topic.partitions:
                    what = f"offset can't be read group={group} topic={topic.name} partition={each.partition_index}"
                    check(each.error_code, what)
                    if each.committed_offset >= 0:
                        found[topic.name, each.partition_index] = CommittedOffset(
                            each.committed_offset, each.metadata or ""
                        )
            return found

        return await self.cluster.retry(attempt, group=group)

    async def commit_offsets(
        self,
        group: str,
        offsets: Mapping[TopicPartition, int],
        *,
        member_id: str = "",
        generation: int = -1,
    ) -> None:
        """Commit for a group: as a member of a generation, or from outside, which needs a group without members.

        Raises:
            FencedError: it has members, or this isn't one of them any more.
        """
        topics: dict[str, OffsetCommitRequestTopic] = {}
        for (topic, partition), offset in offsets.items():
            entry = OffsetCommitRequestPartition(partition_index=partition, committed_offset=offset)
            topics.setdefault(topic, OffsetCommitRequestTopic(name=topic, partitions=[])).partitions.append(
                entry
            )
        request = OffsetCommitRequest(
            group_id=group,
            member_id=member_id,
            generation_id_or_member_epoch=generation,
            topics=list(topics.values()),
        )

        async def attempt() -> None:
            answer = await self._ask_coordinator(group, ApiKey.OFFSET_COMMIT, request, OffsetCommitResponse)
            for topic in answer.topics:
                for each in topic.partitions:
                    what = (
                        f"offset can't be committed group={group} topic={topic.name} "
                        f"partition={each.partition_index}"
                    )
                    check(each.error_code, what)

        await self.cluster.retry(attempt, group=group)

    # -- asking ----------------------------------------------------------------------------------------------

    async def _ask(self, connection: Connection, api_key: int, request: Message, kind: type[M]) -> M:
        answer = await self.cluster.ask(connection, api_key, request)
        assert isinstance(answer, kind)
        return answer

    async def _ask_controller(
        self, api_key: int, request: Message, kind: type[M], verify: Callable[[M], None]
    ) -> M:
        """The answer, once ``verify`` raises nothing for it; what may pass is tried again."""

        async def attempt() -> M:
            answer = await self._ask(await self.cluster.controller(), api_key, request, kind)
            verify(answer)
            return answer

        return await self.cluster.retry(attempt)

    async def _ask_coordinator(self, group: str, api_key: int, request: Message, kind: type[M]) -> M:
        return await self._ask(await self.cluster.coordinator(group), api_key, request, kind)


def _assigned(assignment: bytes | bytearray | memoryview) -> tuple[TopicPartition, ...]:
    """The partitions of an assignment; none where a client uses a format of its own."""
    if not assignment:
        return ()
    try:
        _, decoded = decode_data(ConsumerProtocolAssignment, assignment, lenient=True)
    except DecodeError:
        return ()
    return tuple(
        sorted(
            (each.topic, partition) for each in decoded.assigned_partitions for partition in each.partitions
        )
    )
