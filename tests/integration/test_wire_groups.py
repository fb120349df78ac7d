"""Clauses of the protocol that no client shows: committed offsets, groups, metadata, and empty beside null."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import serving, unique
from tests.integration.wire import Wire, batch_of, fetch_request, fetch_topic, partition_at, produce_request

from penstock.wire import ZERO_UUID, ApiKey, ErrorCode, supported_versions
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.describe_cluster import DescribeClusterRequest
from penstock.wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from penstock.wire.messages.describe_groups import DescribeGroupsRequest
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsRequestCursor,
    TopicRequest,
)
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("wire-groups")) as broker:
        yield broker


@pytest.fixture
def wire(shared: ServeProcess) -> Iterator[Wire]:
    with Wire(shared) as connection:
        yield connection


# -- committed offsets -----------------------------------------------------------------------------------------


def test_offsets_of_an_unknown_group_are_no_error(wire: Wire) -> None:
    """-1 with error 0 in every version; all offsets of a group nobody knows are none."""
    topic = wire.create("nogroup")
    for version in range(1, 10):
        group = unique("nobody")
        if version < 8:
            asked = [OffsetFetchRequestTopic(name=topic, partition_indexes=[0])]
            answer = wire.ask(
                ApiKey.OFFSET_FETCH, version, OffsetFetchRequest(group_id=group, topics=asked, groups=[])
            )
            found = answer
        else:
            wanted = [OffsetFetchRequestTopics(name=topic, partition_indexes=[0])]
            request = OffsetFetchRequest(
                groups=[OffsetFetchRequestGroup(group_id=group, topics=wanted)], topics=None
            )
            (found,) = wire.ask(ApiKey.OFFSET_FETCH, version, request).groups
        if version >= 2:
            assert found.error_code == 0
        (partition,) = found.topics[0].partitions
        assert (partition.committed_offset, partition.error_code) == (-1, 0)
    request = OffsetFetchRequest(
        groups=[OffsetFetchRequestGroup(group_id=unique("x"), topics=None)], topics=None
    )
    (found,) = wire.ask(ApiKey.OFFSET_FETCH, 9, request).groups
    assert (found.error_code, found.topics) == (0, [])


def test_a_commit_without_a_group_and_one_with_long_metadata(wire: Wire) -> None:
    topic = wire.create("simple")
    group = unique("simple")

    def commit(metadata: str, **settings: Any) -> int:
        partition = OffsetCommitRequestPartition(
            partition_index=0, committed_offset=5, committed_metadata=metadata
        )
        request = OffsetCommitRequest(
            group_id=group,
            topics=[OffsetCommitRequestTopic(name=topic, partitions=[partition])],
            **settings,
        )
        (found,) = wire.ask(ApiKey.OFFSET_COMMIT, 8, request).topics
        code = found.partitions[0].error_code
        assert isinstance(code, int)
        return code

    assert commit("here") == 0
    assert commit("m" * 4097) == ErrorCode.OFFSET_METADATA_TOO_LARGE
    assert commit("", generation_id_or_member_epoch=3, member_id="somebody") == ErrorCode.UNKNOWN_MEMBER_ID


def test_a_commit_answers_once_for_each_topic_that_is_not_there_and_before_those_that_are(wire: Wire) -> None:
    topic, missing = wire.create("partly"), unique("missing")

    def wanted(name: str, *indexes: int) -> OffsetCommitRequestTopic:
        partitions = [
            OffsetCommitRequestPartition(partition_index=one, committed_offset=1) for one in indexes
        ]
        return OffsetCommitRequestTopic(name=name, partitions=partitions)

    asked = [wanted(topic, 0), wanted(missing, 0), wanted(topic, 9), wanted(missing, 1), wanted(unique("x"))]
    request = OffsetCommitRequest(group_id=unique("partly"), topics=asked)
    answer = wire.ask(ApiKey.OFFSET_COMMIT, 8, request).topics
    unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert [(one.name, [(p.partition_index, p.error_code) for p in one.partitions]) for one in answer] == [
        (missing, [(0, unknown), (1, unknown)]),
        (topic, [(9, unknown), (0, 0)]),
        (asked[-1].name, []),
    ]


# -- groups ----------------------------------------------------------------------------------------------------


def test_a_member_has_to_come_with_an_id(wire: Wire) -> None:
    """JoinGroup v4+ without a member id: MEMBER_ID_REQUIRED with one to come back with (KIP-394)."""
    group = unique("ids")
    protocols = [JoinGroupRequestProtocol(name="range", metadata=b"")]

    def join(version: int, **settings: Any) -> Any:
        settings = {"session_timeout_ms": 6000, "rebalance_timeout_ms": 6000, **settings}
        request = JoinGroupRequest(group_id=group, protocol_type="consumer", protocols=protocols, **settings)
        return wire.ask(ApiKey.JOIN_GROUP, version, request)

    assert join(5, session_timeout_ms=5999).error_code == ErrorCode.INVALID_SESSION_TIMEOUT
    refused = join(9)
    assert refused.error_code == ErrorCode.MEMBER_ID_REQUIRED
    assert refused.member_id
    joined = join(9, member_id=refused.member_id)
    assert (joined.error_code, joined.leader, joined.member_id) == (0, refused.member_id, refused.member_id)
    assert [member.member_id for member in joined.members] == [refused.member_id]
    assert (joined.protocol_type, joined.protocol_name) == ("consumer", "range")


def test_groups_nobody_knows_are_described_as_dead(wire: Wire) -> None:
    for version in range(7):
        request = DescribeGroupsRequest(groups=[unique("dead")])
        (found,) = wire.ask(ApiKey.DESCRIBE_GROUPS, version, request).groups
        expected = ErrorCode.NONE if version < 6 else ErrorCode.GROUP_ID_NOT_FOUND
        assert (found.error_code, found.group_state, found.members) == (expected, "Dead", [])


@pytest.mark.parametrize("version", range(7))
def test_the_coordinator_of_a_group_is_found(shared: ServeProcess, wire: Wire, version: int) -> None:
    request = FindCoordinatorRequest(key="g", key_type=0, coordinator_keys=["g", "h"] if version >= 4 else [])
    answer = wire.ask(ApiKey.FIND_COORDINATOR, version, request)
    found = answer.coordinators if version >= 4 else [answer]
    assert len(found) == (2 if version >= 4 else 1)
    for coordinator in found:
        assert (coordinator.error_code, coordinator.host, coordinator.port) == (0, "127.0.0.1", shared.port)


# -- metadata --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(14))
def test_metadata_of_every_version(shared: ServeProcess, wire: Wire, version: int) -> None:
    """All topics, none, one, an unknown one, an impossible name; controller, cluster id and topic ids."""
    topic = wire.create("meta", 2)
    everything = MetadataRequest(topics=[] if version == 0 else None)
    answer = wire.ask(ApiKey.METADATA, version, everything)
    assert [(broker.host, broker.port) for broker in answer.brokers] == [("127.0.0.1", shared.port)]
    assert topic in {found.name for found in answer.topics}
    if version >= 1:
        assert answer.controller_id == answer.brokers[0].node_id
        assert wire.ask(ApiKey.METADATA, version, MetadataRequest(topics=[])).topics == []
    if version >= 2:
        assert answer.cluster_id

    names = [topic, unique("nobody"), "no/such*name"]
    request = MetadataRequest(
        topics=[MetadataRequestTopic(name=name) for name in names], allow_auto_topic_creation=False
    )
    found = wire.ask(ApiKey.METADATA, version, request).topics
    assert [one.name for one in found] == names
    if version >= 4:  # before, every request creates what it names
        assert found[1].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert found[2].error_code == ErrorCode.INVALID_TOPIC_EXCEPTION
    assert (found[0].error_code, found[0].is_internal) == (0, False)
    assert [partition.partition_index for partition in found[0].partitions] == [0, 1]
    for partition in found[0].partitions:
        leader = answer.brokers[0].node_id
        assert (partition.leader_id, partition.replica_nodes, partition.isr_nodes) == (
            leader,
            [leader],
            [leader],
        )
    if version >= 10:
        assert found[0].topic_id != ZERO_UUID
    if version >= 8:
        assert found[0].topic_authorized_operations == -(2**31), "not asked for"
    if version >= 12:
        by_id = [
            MetadataRequestTopic(topic_id=found[0].topic_id, name=None),
            MetadataRequestTopic(topic_id=b"0123456789abcdef", name=None),
        ]
        known, unknown = wire.ask(ApiKey.METADATA, version, MetadataRequest(topics=by_id)).topics
        assert (known.error_code, known.name) == (0, topic)
        assert (unknown.error_code, unknown.name) == (ErrorCode.UNKNOWN_TOPIC_ID, None)


def test_topics_are_created_on_request_only(shared: ServeProcess, wire: Wire, serve: ServeFactory) -> None:
    name = unique("auto")
    asked = MetadataRequest(topics=[MetadataRequestTopic(name=name)], allow_auto_topic_creation=True)
    (found,) = wire.ask(ApiKey.METADATA, 12, asked).topics
    assert (found.error_code, len(found.partitions)) == (0, 1)
    strict = serve("topics.auto_create=false")
    with Wire(strict) as other:
        (found,) = other.ask(ApiKey.METADATA, 12, asked).topics
        assert found.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert other.produce(name, batch_of([b"x"])).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def test_a_topic_made_again_has_another_id(wire: Wire) -> None:
    """By its old id it is unknown: to Fetch, to Produce, to DeleteTopics."""
    name = wire.create("again")
    old = wire.topic_id(name)
    request = DeleteTopicsRequest(
        topics=[DeleteTopicState(name=None, topic_id=old)], topic_names=[], timeout_ms=10_000
    )
    (deleted,) = wire.ask(ApiKey.DELETE_TOPICS, 6, request).responses
    assert (deleted.error_code, deleted.name) == (0, name)
    asked = CreatableTopic(name=name, num_partitions=-1, replication_factor=-1, assignments=[], configs=[])
    (made,) = wire.ask(ApiKey.CREATE_TOPICS, 7, CreateTopicsRequest(topics=[asked])).topics
    assert made.error_code == 0
    assert bytes(made.topic_id) != old
    (found,) = wire.ask(ApiKey.FETCH, 13, fetch_request([fetch_topic(old, [partition_at(0)])])).responses
    assert found.partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID
    produced = produce_request("", batch_of([b"x"]))
    produced.topic_data[0].topic_id = old
    (answer,) = wire.ask(ApiKey.PRODUCE, 13, produced).responses
    assert answer.partition_responses[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID
    (again,) = wire.ask(ApiKey.DELETE_TOPICS, 6, request).responses
    assert again.error_code == ErrorCode.UNKNOWN_TOPIC_ID


# -- null and empty --------------------------------------------------------------------------------------------


def test_lists_in_answers_are_empty_rather_than_null(wire: Wire) -> None:
    """A null where the Java client expects a list ends its admin thread."""
    asked = CreatableTopic(
        name=unique("lists"), num_partitions=2, replication_factor=1, assignments=[], configs=[]
    )
    for version in (5, 6, 7):
        asked.name = unique("lists")
        (made,) = wire.ask(ApiKey.CREATE_TOPICS, version, CreateTopicsRequest(topics=[asked])).topics
        assert made.configs
        assert (made.num_partitions, made.replication_factor) == (2, 1)
    described = wire.ask(
        ApiKey.DESCRIBE_TOPIC_PARTITIONS,
        0,
        DescribeTopicPartitionsRequest(
            topics=[TopicRequest(name=asked.name)], response_partition_limit=1, cursor=None
        ),
    )
    (topic,) = described.topics
    (partition,) = topic.partitions
    assert (partition.eligible_leader_replicas, partition.last_known_elr, partition.offline_replicas) == (
        [],
        [],
        [],
    )
    cursor = described.next_cursor
    assert (cursor.topic_name, cursor.partition_index) == (asked.name, 1)
    described = wire.ask(
        ApiKey.DESCRIBE_TOPIC_PARTITIONS,
        0,
        DescribeTopicPartitionsRequest(
            topics=[TopicRequest(name=asked.name)],
            response_partition_limit=1,
            cursor=DescribeTopicPartitionsRequestCursor(topic_name=asked.name, partition_index=1),
        ),
    )
    assert [one.partition_index for one in described.topics[0].partitions] == [1]
    assert described.next_cursor is None


def test_no_config_names_means_all_of_them(wire: Wire) -> None:
    topic = wire.create("names")
    for keys, count in ((None, 20), (["retention.ms"], 1)):
        for version in range(1, 5):
            resource = DescribeConfigsResource(resource_type=2, resource_name=topic, configuration_keys=keys)
            request = DescribeConfigsRequest(resources=[resource])
            (found,) = wire.ask(ApiKey.DESCRIBE_CONFIGS, version, request).results
            assert found.error_code == 0
            assert len(found.configs) >= count
            assert keys is None or [config.name for config in found.configs] == keys


def test_every_topic_of_a_request_has_a_result(wire: Wire) -> None:
    topic = wire.create("grow")
    request = CreatePartitionsRequest(
        timeout_ms=10_000,
        topics=[
            CreatePartitionsTopic(name=name, count=3, assignments=None)
            for name in (topic, "nobody-made-this")
        ],
    )
    for version, first in ((0, ErrorCode.NONE), (3, ErrorCode.INVALID_PARTITIONS)):
        results = wire.ask(ApiKey.CREATE_PARTITIONS, version, request).results
        assert {result.name: result.error_code for result in results} == {
            topic: first,
            "nobody-made-this": ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        }


@pytest.mark.parametrize("version", range(3))
def test_the_cluster_is_described(shared: ServeProcess, wire: Wire, version: int) -> None:
    answer = wire.ask(ApiKey.DESCRIBE_CLUSTER, version, DescribeClusterRequest(endpoint_type=1))
    assert answer.error_code == 0
    assert answer.cluster_id
    assert [broker.port for broker in answer.brokers] == [shared.port]
    assert answer.controller_id == answer.brokers[0].broker_id


def test_every_advertised_version_has_a_codec(wire: Wire) -> None:
    answer = wire.ask(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
    for api in answer.api_keys:
        codecs = supported_versions(api.api_key)
        assert codecs is not None
        low = 3 if api.api_key == ApiKey.PRODUCE else api.min_version
        assert codecs.low <= low <= api.max_version <= codecs.high, api
