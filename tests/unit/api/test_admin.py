"""Metadata, topics, configs, offsets, producer ids: one clause of the protocol each."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
from tests.unit.api.fakes import ENDPOINT, FakeLogs, any_request, make_context

from penstock.api import acls, config_changes, configs, metadata, offsets, producer_ids, topics
from penstock.api.context import RequestContext
from penstock.api.dispatch import advertised, apis
from penstock.api.names import is_valid_topic_name
from penstock.errors import ClosedError, UnavailableError
from penstock.log.errors import KafkaError
from penstock.log.partition_config import PartitionConfig
from penstock.log.topic_config import (
    TOPIC_CONFIGS,
    TopicConfig,
    TopicConfigTable,
    effective_values,
    validate_topic_config,
)
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.alter_configs import AlterableConfig as OldConfig
from penstock.wire.messages.alter_configs import AlterConfigsRequest
from penstock.wire.messages.alter_configs import AlterConfigsResource as OldResource
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.create_acls import AclCreation, CreateAclsRequest
from penstock.wire.messages.create_partitions import (
    CreatePartitionsAssignment,
    CreatePartitionsRequest,
    CreatePartitionsTopic,
)
from penstock.wire.messages.create_topics import (
    CreatableReplicaAssignment,
    CreatableTopic,
    CreatableTopicConfig,
    CreatableTopicResult,
    CreateTopicsRequest,
)
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.describe_acls import DescribeAclsRequest
from penstock.wire.messages.describe_cluster import DescribeClusterRequest
from penstock.wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsRequestCursor,
    TopicRequest,
)
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.list_config_resources import ListConfigResourcesRequest
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse
from penstock.wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from penstock.wire.registry import encode_response

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


# -- Metadata -----------------------------------------------------------------------------------------------


async def ask_metadata(
    logs: FakeLogs, version: int, *names: str, all_topics: bool = False
) -> MetadataResponse:
    asked = None if all_topics else [MetadataRequestTopic(name=name) for name in names]
    request = MetadataRequest(topics=asked, allow_auto_topic_creation=True)
    context = make_context(logs, version)
    response = metadata.metadata_nowait(request, context) or await metadata.handle_metadata(request, context)
    encode_response(ApiKey.METADATA, version, 1, response)
    assert isinstance(response, MetadataResponse)
    return response


async def test_metadata_describes_broker_and_topics(logs: FakeLogs) -> None:
    logs.add("a", 2, internal=True)
    response = await ask_metadata(logs, 12, all_topics=True)
    assert (response.cluster_id, response.controller_id) == ("fake-cluster", 7)
    assert [(b.node_id, b.host, b.port) for b in response.brokers] == [(7, ENDPOINT.host, ENDPOINT.port)]
    assert [(t.name, t.is_internal, len(t.partitions)) for t in response.topics] == [
        ("a", True, 2),
        ("t", False, 3),
    ]
    partition = response.topics[1].partitions[2]
    assert (partition.partition_index, partition.leader_id, partition.leader_epoch) == (2, 7, 3)
    assert partition.replica_nodes == partition.isr_nodes == [7]
    assert response.topics[0].topic_authorized_operations == -(2**31)


async def test_metadata_empty_list_means_all_in_version_0_and_none_later(logs: FakeLogs) -> None:
    assert len((await ask_metadata(logs, 0)).topics) == 1
    assert len((await ask_metadata(logs, 1)).topics) == 0
    assert len((await ask_metadata(logs, 1, all_topics=True)).topics) == 1


def test_metadata_tells_the_operations_on_a_topic_that_is_not_there_too(logs: FakeLogs) -> None:
    asked = [MetadataRequestTopic(name="t"), MetadataRequestTopic(name="no")]
    request = MetadataRequest(
        topics=asked, allow_auto_topic_creation=False, include_topic_authorized_operations=True
    )
    answer = metadata.metadata_nowait(request, make_context(logs, 10))
    assert answer is not None
    operations = {topic.topic_authorized_operations for topic in answer.topics}
    assert len(operations) == 1, "the same as on one that is there"
    assert operations != {-(2**31)}


async def test_metadata_creates_topics_when_client_and_broker_agree(logs: FakeLogs) -> None:
    request = MetadataRequest(topics=[MetadataRequestTopic(name="new")], allow_auto_topic_creation=False)
    response = metadata.metadata_nowait(request, make_context(logs, 9))
    assert response is not None
    assert response.topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    request.allow_auto_topic_creation = True
    response = metadata.metadata_nowait(request, make_context(logs, 9, auto_create_topics=False))
    assert response is not None
    assert response.topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    context = make_context(logs, 9, partitions_default=4)
    assert metadata.metadata_nowait(request, context) is None
    made = await metadata.handle_metadata(request, context)
    assert isinstance(made, MetadataResponse)
    response = made
    assert (response.topics[0].error_code, len(response.topics[0].partitions)) == (0, 4)


async def test_metadata_says_why_a_topic_was_not_created(logs: FakeLogs) -> None:
    logs.fail_with = UnavailableError("storage is away")
    response = await ask_metadata(logs, 9, "new", "t")
    assert [t.error_code for t in response.topics] == [ErrorCode.KAFKA_STORAGE_ERROR, 0]


@pytest.mark.parametrize("name", ["", "a b", "..", "x" * 250, "ü"])
async def test_metadata_refuses_illegal_names(logs: FakeLogs, name: str) -> None:
    response = await ask_metadata(logs, 9, name)
    assert response.topics[0].error_code == ErrorCode.INVALID_TOPIC_EXCEPTION
    assert not is_valid_topic_name(name)


async def test_metadata_by_id_from_version_12_on(logs: FakeLogs) -> None:
    known = MetadataRequestTopic(name=None, topic_id=logs.topics()["t"].id)
    unknown = MetadataRequestTopic(name=None, topic_id=b"x" * 16)
    request = MetadataRequest(topics=[known, unknown])
    response = metadata.metadata_nowait(request, make_context(logs, 12))
    assert response is not None
    assert [(t.name, t.error_code) for t in response.topics] == [("t", 0), (None, ErrorCode.UNKNOWN_TOPIC_ID)]
    encode_response(ApiKey.METADATA, 12, 1, response)


async def test_describe_cluster_names_a_listed_controller(logs: FakeLogs) -> None:
    response = metadata.describe_cluster_nowait(DescribeClusterRequest(), make_context(logs, 2))
    assert response.controller_id in {broker.broker_id for broker in response.brokers}
    other = metadata.describe_cluster_nowait(DescribeClusterRequest(endpoint_type=2), make_context(logs, 2))
    assert other.error_code == ErrorCode.MISMATCHED_ENDPOINT_TYPE


async def test_describe_topic_partitions_comes_in_pages(logs: FakeLogs) -> None:
    logs.add("u", 2)
    names = [TopicRequest(name=name) for name in ("u", "t", "zz")]
    seen: list[tuple[str | None, int]] = []
    cursor = None
    for _ in range(10):
        request = DescribeTopicPartitionsRequest(topics=names, response_partition_limit=2, cursor=cursor)
        response = metadata.describe_topic_partitions_nowait(request, make_context(logs, 0))
        encode_response(ApiKey.DESCRIBE_TOPIC_PARTITIONS, 0, 1, response)
        seen += [(t.name, p.partition_index) for t in response.topics for p in t.partitions]
        if response.next_cursor is None:
            break
        cursor = DescribeTopicPartitionsRequestCursor(
            topic_name=response.next_cursor.topic_name, partition_index=response.next_cursor.partition_index
        )
    assert seen == [("t", 0), ("t", 1), ("t", 2), ("u", 0), ("u", 1)]
    assert response.topics[-1].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


@pytest.mark.parametrize(
    ("names", "topic", "partition"),
    [(["t", "u"], "t", -1), (["u"], "t", 0), (["t", "u"], "tt", 0), ([], "t", -5)],
)
async def test_describe_topic_partitions_refuses_a_cursor_that_is_not_ours(
    logs: FakeLogs, names: list[str], topic: str, partition: int
) -> None:
    request = DescribeTopicPartitionsRequest(
        topics=[TopicRequest(name=name) for name in names],
        cursor=DescribeTopicPartitionsRequestCursor(topic_name=topic, partition_index=partition),
    )
    response = metadata.describe_topic_partitions_nowait(request, make_context(logs, 0))
    encode_response(ApiKey.DESCRIBE_TOPIC_PARTITIONS, 0, 1, response)
    assert [(t.name, t.error_code) for t in response.topics] == [
        (name, ErrorCode.INVALID_REQUEST) for name in names
    ]
    assert response.next_cursor is None


async def test_describe_topic_partitions_leaves_out_nothing_behind_a_topic_that_is_hidden_since_the_last_page(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allowed(
        _context: RequestContext, _operation: object, _resource: object, names: list[str]
    ) -> list[str]:
        return [name for name in names if name != "t"]

    monkeypatch.setattr(RequestContext, "allowed", allowed)
    logs.add("u", 3)
    request = DescribeTopicPartitionsRequest(
        topics=[TopicRequest(name=name) for name in ("t", "u")],
        cursor=DescribeTopicPartitionsRequestCursor(topic_name="t", partition_index=2),
    )
    response = metadata.describe_topic_partitions_nowait(request, make_context(logs, 0))
    hidden, shown = response.topics
    assert hidden.error_code == ErrorCode.TOPIC_AUTHORIZATION_FAILED
    assert [one.partition_index for one in shown.partitions] == [0, 1, 2]


async def test_describe_topic_partitions_stops_before_a_topic_that_is_not_there_too(logs: FakeLogs) -> None:
    names = [TopicRequest(name=name) for name in ("t", "u")]
    request = DescribeTopicPartitionsRequest(topics=names, response_partition_limit=3)
    response = metadata.describe_topic_partitions_nowait(request, make_context(logs, 0))
    assert [topic.name for topic in response.topics] == ["t"]
    assert response.next_cursor is not None
    assert (response.next_cursor.topic_name, response.next_cursor.partition_index) == ("u", 0)


async def test_describe_topic_partitions_skips_nothing_behind_a_cursor_in_a_topic_that_is_gone(
    logs: FakeLogs,
) -> None:
    request = DescribeTopicPartitionsRequest(
        topics=[TopicRequest(name=name) for name in ("gone", "t")],
        cursor=DescribeTopicPartitionsRequestCursor(topic_name="gone", partition_index=2),
    )
    response = metadata.describe_topic_partitions_nowait(request, make_context(logs, 0))
    assert [len(topic.partitions) for topic in response.topics] == [0, 3]


async def test_describe_topic_partitions_goes_on_behind_a_topic_that_is_gone(logs: FakeLogs) -> None:
    logs.add("v", 1)
    for topic, partition in (("u", 1), ("t", 99)):
        request = DescribeTopicPartitionsRequest(
            cursor=DescribeTopicPartitionsRequestCursor(topic_name=topic, partition_index=partition)
        )
        response = metadata.describe_topic_partitions_nowait(request, make_context(logs, 0))
        assert [(t.name, p.partition_index) for t in response.topics for p in t.partitions] == [("v", 0)]
        assert response.next_cursor is None


# -- ApiVersions --------------------------------------------------------------------------------------------


def test_advertised_versions_are_those_that_are_handled() -> None:
    table = apis()
    versions = {key: (low, high) for key, low, high in advertised(table)}
    assert versions[ApiKey.PRODUCE] == (0, 13), "librdkafka compresses only if it sees 0"
    assert versions[ApiKey.FETCH] == (4, 18)
    assert versions[ApiKey.INIT_PRODUCER_ID] == (0, 5), "6 is two-phase commit"
    assert versions[ApiKey.DESCRIBE_LOG_DIRS] == (1, 4), "5 is Kafka 4.3, and cordoned directories"
    assert 24 not in versions  # AddPartitionsToTxn
    for key, api in table.items():
        assert key == ApiKey.PRODUCE or api.handler is not None or api.nowait is not None


@pytest.mark.parametrize("version", range(5))
async def test_api_versions_in_every_version(logs: FakeLogs, version: int) -> None:
    context = make_context(logs, version)
    context.api.api_versions = advertised(apis())
    request = ApiVersionsRequest(client_software_name="lib", client_software_version="1.2-x")
    response = metadata.api_versions_nowait(request, context)
    assert (response.error_code, len(response.api_keys)) == (0, len(apis()))
    assert not response.supported_features
    assert not response.finalized_features
    encode_response(ApiKey.API_VERSIONS, version, 1, response)
    assert context.client.software_name == ("lib" if version >= 3 else "unknown")


@pytest.mark.parametrize("name", ["", "-x", "a b", "x-"])
async def test_api_versions_checks_the_software_name(logs: FakeLogs, name: str) -> None:
    """KIP-511."""
    request = ApiVersionsRequest(client_software_name=name, client_software_version="1")
    response = metadata.api_versions_nowait(request, make_context(logs, 3))
    assert response.error_code == ErrorCode.INVALID_REQUEST


def test_failure_responses_exist_where_the_protocol_has_a_place_for_them() -> None:
    for key, api in apis().items():
        request = any_request(key)
        for version in range(api.low, api.high + 1):
            response = api.failure_response(request, version, ErrorCode.UNKNOWN_SERVER_ERROR)
            if response is not None:
                assert encode_response(key, version, 1, response)
    assert apis()[ApiKey.METADATA].failure_response(None, 9, -1) is None


# -- topics -------------------------------------------------------------------------------------------------


async def create(
    logs: FakeLogs, *asked: CreatableTopic, validate_only: bool = False
) -> list[CreatableTopicResult]:
    request = CreateTopicsRequest(topics=list(asked), validate_only=validate_only)
    response = await topics.handle_create_topics(request, make_context(logs, 7, partitions_per_topic_max=100))
    for version in range(2, 8):
        encode_response(ApiKey.CREATE_TOPICS, version, 1, response)
    return response.topics


def new(name: str = "new", partitions: int = 2, factor: int = 1, **values: str | None) -> CreatableTopic:
    return CreatableTopic(
        name=name,
        num_partitions=partitions,
        replication_factor=factor,
        configs=[
            CreatableTopicConfig(name=key.replace("_", "."), value=value) for key, value in values.items()
        ],
    )


async def test_create_topic_answers_with_id_and_all_configs(logs: FakeLogs) -> None:
    (result,) = await create(logs, new(retention_ms="1000"))
    assert (result.error_code, result.num_partitions, result.replication_factor) == (0, 2, 1)
    assert result.topic_id == logs.topics()["new"].id
    assert result.configs is not None
    values = {config.name: (config.value, config.config_source) for config in result.configs}
    assert values["retention.ms"] == ("1000", 1)
    assert values["cleanup.policy"] == ("delete", 5)
    assert set(values) == set(TOPIC_CONFIGS)


async def test_validate_only_says_what_topics_partitions_max_leaves_no_room_for(logs: FakeLogs) -> None:
    """As the creation would: of several topics those that fit are counted, those that don't aren't."""
    logs.bound_partitions(8)  # there is one with three
    asked = [new("a", 3), new("b", 3), new("c", 2), new("d", 1)]
    results = await create(logs, *asked, validate_only=True)
    full = ErrorCode.POLICY_VIOLATION
    assert [result.error_code for result in results] == [0, full, 0, full]
    growths = [CreatePartitionsTopic(name="t", count=count, assignments=None) for count in (8, 9)]
    codes = [
        (
            await topics.handle_create_partitions(
                CreatePartitionsRequest(timeout_ms=1000, topics=[growth], validate_only=True),
                make_context(logs, 3),
            )
        )
        .results[0]
        .error_code
        for growth in growths
    ]
    assert codes == [0, full]


async def test_validate_only_creates_nothing(logs: FakeLogs) -> None:
    (result,) = await create(logs, new(), validate_only=True)
    assert result.error_code == 0
    assert "new" not in logs.topics()


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (new("t"), ErrorCode.TOPIC_ALREADY_EXISTS),
        (new("a/b"), ErrorCode.INVALID_TOPIC_EXCEPTION),
        (new(partitions=0), ErrorCode.INVALID_PARTITIONS),
        (new(partitions=-2), ErrorCode.INVALID_PARTITIONS),
        (new(partitions=101), ErrorCode.POLICY_VIOLATION),
        (new(partitions=-1, factor=-1), ErrorCode.NONE),
        (new(factor=0), ErrorCode.INVALID_REPLICATION_FACTOR),
        (new(factor=3), ErrorCode.INVALID_REPLICATION_FACTOR),
        (new(retention_ms="soon"), ErrorCode.INVALID_CONFIG),
        (new(retention_ms=None), ErrorCode.INVALID_CONFIG),
        (new(retension_ms="1"), ErrorCode.INVALID_CONFIG),
        (new(cleanup_policy="compact"), ErrorCode.INVALID_CONFIG),
        (new(min_insync_replicas="2"), ErrorCode.INVALID_CONFIG),
        (new(segment_bytes="1048576"), ErrorCode.NONE),
        (new(compression_type="zstd"), ErrorCode.NONE),
        (new(compression_type="uncompressed"), ErrorCode.NONE),
        (new(compression_type="none"), ErrorCode.INVALID_CONFIG),
        (new(compression_gzip_level="-1"), ErrorCode.NONE),
        (new(compression_gzip_level="9"), ErrorCode.NONE),
        (new(compression_gzip_level="0"), ErrorCode.INVALID_CONFIG),
        (new(compression_gzip_level="10"), ErrorCode.INVALID_CONFIG),
        (new(compression_lz4_level="17"), ErrorCode.NONE),
        (new(compression_lz4_level="0"), ErrorCode.INVALID_CONFIG),
        (new(compression_lz4_level="18"), ErrorCode.INVALID_CONFIG),
        (new(compression_zstd_level="-131072"), ErrorCode.NONE),
        (new(compression_zstd_level="-131073"), ErrorCode.INVALID_CONFIG),
        (new(compression_zstd_level="23"), ErrorCode.INVALID_CONFIG),
    ],
)
async def test_create_topic_is_validated(logs: FakeLogs, asked: CreatableTopic, code: ErrorCode) -> None:
    fine = new("fine")
    results = await create(logs, asked, fine)
    assert [result.error_code for result in results] == [code, 0]
    assert bool(results[0].error_message) == bool(code)


async def test_a_config_that_is_refused_says_why_in_one_sentence_with_its_name_and_value_last(
    logs: FakeLogs,
) -> None:
    """Kafka Streams, Kafka Connect and others show it as it is, when they make their compacted topics."""
    (result,) = await create(logs, new(cleanup_policy="compact"))
    assert result.error_message == (
        "invalid value of a topic config, this broker doesn't compact topics, "
        "only cleanup.policy=delete is supported: name=cleanup.policy value='compact'"
    )


async def test_topic_twice_in_a_request_is_refused(logs: FakeLogs) -> None:
    (result,) = await create(logs, new(), new())
    assert result.error_code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("assignments", "code"),
    [
        ([(0, [7]), (1, [7])], ErrorCode.NONE),
        ([(0, [7]), (2, [7])], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        ([(0, [8])], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        ([(0, [7, 7])], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
    ],
)
async def test_replica_assignment(
    logs: FakeLogs, assignments: list[tuple[int, list[int]]], code: ErrorCode
) -> None:
    asked = new(partitions=-1, factor=-1)
    asked.assignments = [
        CreatableReplicaAssignment(partition_index=at, broker_ids=ids) for at, ids in assignments
    ]
    (result,) = await create(logs, asked)
    assert result.error_code == code
    asked.num_partitions = 2
    assert (await create(logs, asked))[0].error_code in {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.TOPIC_ALREADY_EXISTS,
    }


async def test_storage_failure_is_told_per_topic(logs: FakeLogs) -> None:
    logs.fail_with = UnavailableError("storage is away")
    (result,) = await create(logs, new())
    assert result.error_code == ErrorCode.KAFKA_STORAGE_ERROR


async def test_delete_topics_by_name_and_by_id(logs: FakeLogs) -> None:
    other = logs.add("u")
    request = DeleteTopicsRequest(
        timeout_ms=1000,
        topics=[
            DeleteTopicState(name="t"),
            DeleteTopicState(name=None, topic_id=other.id),
            DeleteTopicState(name="unknown"),
            DeleteTopicState(name=None, topic_id=b"x" * 16),
        ],
    )
    response = await topics.handle_delete_topics(request, make_context(logs, 6))
    encode_response(ApiKey.DELETE_TOPICS, 6, 1, response)
    assert [result.error_code for result in response.responses] == [
        0,
        0,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
    ]
    assert not logs.topics()


async def test_a_topic_that_is_named_twice_is_not_deleted(logs: FakeLogs) -> None:
    """By name and by id is twice, too. As in Kafka, neither of the two acts; other topics of the request go."""
    twice, other = logs.add("u"), logs.add("v")
    request = DeleteTopicsRequest(
        timeout_ms=1000,
        topics=[
            DeleteTopicState(name="t"),
            DeleteTopicState(name="t"),
            DeleteTopicState(name="u"),
            DeleteTopicState(name=None, topic_id=twice.id),
            DeleteTopicState(name=None, topic_id=other.id),
        ],
    )
    response = await topics.handle_delete_topics(request, make_context(logs, 6))
    encode_response(ApiKey.DELETE_TOPICS, 6, 1, response)
    codes = [result.error_code for result in response.responses]
    assert codes == [ErrorCode.INVALID_REQUEST] * 2 + [ErrorCode.NONE], "each topic is answered once"
    assert sorted(logs.topics()) == ["t", "u"]


async def test_what_is_named_by_both_or_neither_is_refused_for_itself_alone(logs: FakeLogs) -> None:
    both = DeleteTopicState(name="t", topic_id=b"\7" * 16)
    asked = [both, both, DeleteTopicState(name=None), DeleteTopicState(name="t")]
    request = DeleteTopicsRequest(timeout_ms=1000, topics=asked)
    response = await topics.handle_delete_topics(request, make_context(logs, 6))
    codes = [result.error_code for result in response.responses]
    assert codes == [ErrorCode.INVALID_REQUEST] * 3 + [ErrorCode.NONE]
    assert not logs.topics()


async def test_a_timeout_of_0_is_answered_for_whatever_is_named_if_anything_is_left_to_do(
    logs: FakeLogs,
) -> None:
    late = [ErrorCode.REQUEST_TIMED_OUT] * 3
    named = [DeleteTopicState(name=name) for name in ("t", "t", "a b")]
    deleted = await topics.handle_delete_topics(
        DeleteTopicsRequest(timeout_ms=0, topics=named), make_context(logs, 6)
    )
    assert [result.error_code for result in deleted.responses] == late
    asked = [CreatableTopic(name=name, num_partitions=1, replication_factor=1) for name in ("n", "n", "a b")]
    created = await topics.handle_create_topics(
        CreateTopicsRequest(timeout_ms=0, topics=asked), make_context(logs, 7)
    )
    assert [result.error_code for result in created.topics] == late
    doubled = await topics.handle_create_topics(
        CreateTopicsRequest(timeout_ms=0, topics=asked[:2]), make_context(logs, 7)
    )
    assert [result.error_code for result in doubled.topics] == [ErrorCode.INVALID_REQUEST]
    assert sorted(logs.topics()) == ["t"]


async def test_an_unknown_topic_that_is_named_twice_is_answered_once(logs: FakeLogs) -> None:
    states = [DeleteTopicState(name=None, topic_id=b"x" * 16), DeleteTopicState(name="no")]
    request = DeleteTopicsRequest(timeout_ms=1000, topics=[*states, *states])
    response = await topics.handle_delete_topics(request, make_context(logs, 6))
    assert [(one.name, one.error_code) for one in response.responses] == [
        (None, ErrorCode.INVALID_REQUEST),
        ("no", ErrorCode.INVALID_REQUEST),
    ]


async def test_delete_topics_before_version_6_and_internal_ones(logs: FakeLogs) -> None:
    logs.add("__consumer_offsets", internal=True)
    request = DeleteTopicsRequest(timeout_ms=1000, topic_names=["t", "__consumer_offsets"])
    response = await topics.handle_delete_topics(request, make_context(logs, 5))
    encode_response(ApiKey.DELETE_TOPICS, 5, 1, response)
    assert [r.error_code for r in response.responses] == [0, ErrorCode.TOPIC_AUTHORIZATION_FAILED]
    assert list(logs.topics()) == ["__consumer_offsets"]


async def test_create_partitions_answers_for_each_topic(logs: FakeLogs) -> None:
    asked = [
        CreatePartitionsTopic(name="t", count=5, assignments=None),
        CreatePartitionsTopic(name="unknown", count=5, assignments=None),
    ]
    response = await topics.handle_create_partitions(
        CreatePartitionsRequest(topics=asked, timeout_ms=1000), make_context(logs, 3)
    )
    assert [r.error_code for r in response.results] == [0, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
    assert logs.topics()["t"].partition_count == 5


@pytest.mark.parametrize(
    ("count", "assignments", "code"),
    [
        (3, None, ErrorCode.INVALID_PARTITIONS),
        (2, None, ErrorCode.INVALID_PARTITIONS),
        (10**9, None, ErrorCode.INVALID_PARTITIONS),
        (5, [[7], [7]], ErrorCode.NONE),
        (5, [[7]], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (4, [[8]], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (2, [[8]], ErrorCode.INVALID_PARTITIONS),
        (10**9, [[8]], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
    ],
)
async def test_create_partitions_is_validated(
    logs: FakeLogs, count: int, assignments: list[list[int]] | None, code: ErrorCode
) -> None:
    given = (
        None if assignments is None else [CreatePartitionsAssignment(broker_ids=ids) for ids in assignments]
    )
    request = CreatePartitionsRequest(
        timeout_ms=1000,
        topics=[CreatePartitionsTopic(name="t", count=count, assignments=given)],
        validate_only=True,
    )
    response = await topics.handle_create_partitions(request, make_context(logs, 3))
    assert [result.error_code for result in response.results] == [code]
    assert logs.topics()["t"].partition_count == 3


# -- configs ------------------------------------------------------------------------------------------------


async def test_describe_configs_gives_all_with_their_sources(logs: FakeLogs) -> None:
    logs.topics()["t"].configs["retention.ms"] = "1000"
    logs.broker_defaults = {"max.message.bytes": "500"}
    named_none: tuple[list[str] | None, ...] = (None, [])
    for keys in named_none:
        request = DescribeConfigsRequest(
            resources=[
                DescribeConfigsResource(resource_type=TOPIC, resource_name="t", configuration_keys=keys)
            ],
            include_synonyms=True,
        )
        response = configs.describe_configs_nowait(request, make_context(logs, 4))
        encode_response(ApiKey.DESCRIBE_CONFIGS, 4, 1, response)
        found = {c.name: (c.value, c.config_source, len(c.synonyms)) for c in response.results[0].configs}
        assert set(found) == set(TOPIC_CONFIGS)
        assert found["retention.ms"] == ("1000", 1, 1), "log.retention.ms has no default in Kafka"
        assert found["max.message.bytes"] == ("500", 4, 2)
        assert found["cleanup.policy"] == ("delete", 5, 1)


class Compared(str):
    """A text that counts how often texts like it are compared with another one."""

    __slots__ = ()
    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return str.__eq__(self, other) is True

    __hash__ = str.__hash__


def test_long_lists_of_configs_are_looked_through_once(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand items, appended to or taken from as many, would hold the broker for minutes."""
    name, count = "leader.replication.throttled.replicas", 500
    there = {name: ",".join(f"{number}:1" for number in range(count))}
    given = [Compared(f"{number}:1") for number in range(count // 2, count + count // 2)]
    monkeypatch.setattr(config_changes, "_given_items", lambda _value: given)
    left = {}
    for operation in (APPEND, SUBTRACT):
        change = AlterableConfig(name=name, config_operation=operation, value="given")
        left[operation] = config_changes.changed([change], TopicConfigTable(), there)[name].count(":")
    assert left == {APPEND: count + count // 2, SUBTRACT: count // 2}
    request = DescribeConfigsRequest(
        resources=[
            DescribeConfigsResource(resource_type=TOPIC, resource_name="t", configuration_keys=list(given))
        ]
    )
    assert configs.describe_configs_nowait(request, make_context(logs, 4)).results[0].configs == []
    assert Compared.times < 10 * count, "not each with each"


async def test_all_configs_of_a_resource_are_told_once_however_often_it_is_named(logs: FakeLogs) -> None:
    """The answer is hundreds of times as long as the question; what names its configs is answered each time."""
    named = DescribeConfigsResource(
        resource_type=TOPIC, resource_name="t", configuration_keys=["retention.ms"]
    )
    resources = [DescribeConfigsResource(resource_type=TOPIC, resource_name="t"), named] * 100
    request = DescribeConfigsRequest(resources=resources)
    response = await configs.handle_describe_configs(request, make_context(logs, 4))
    assert Counter(len(result.configs) for result in response.results) == {len(TOPIC_CONFIGS): 1, 1: 100}


def test_the_configs_of_many_topics_are_few_objects_for_the_collector(logs: FakeLogs) -> None:
    """It looks at all of them, again and again, while a long answer is made."""
    topics = 50
    resources = [
        DescribeConfigsResource(resource_type=TOPIC, resource_name=logs.add(f"many-{number}").name)
        for number in range(topics)
    ]
    context = make_context(logs, 4)
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        before = gc.get_count()[0]
        response = configs.describe_configs_nowait(DescribeConfigsRequest(resources=resources), context)
        objects = gc.get_count()[0] - before
    finally:
        if is_enabled:
            gc.enable()
    assert len(response.results) == topics
    assert objects < topics * len(TOPIC_CONFIGS) / 2, "not one for each config"


async def test_describe_configs_of_the_broker_and_of_others(logs: FakeLogs) -> None:
    resources = [
        DescribeConfigsResource(resource_type=BROKER, resource_name="7", configuration_keys=None),
        DescribeConfigsResource(resource_type=BROKER, resource_name="8", configuration_keys=None),
        DescribeConfigsResource(resource_type=TOPIC, resource_name="unknown", configuration_keys=None),
        DescribeConfigsResource(resource_type=16, resource_name="metrics", configuration_keys=None),
        DescribeConfigsResource(resource_type=16, resource_name="", configuration_keys=None),
    ]
    context = make_context(
        logs, 4, broker_configs={"num.partitions": "1", "auto.create.topics.enable": "true"}
    )
    response = configs.describe_configs_nowait(DescribeConfigsRequest(resources=resources), context)
    assert [result.error_code for result in response.results] == [
        0,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.NONE,
        ErrorCode.INVALID_REQUEST,
    ]
    assert [(c.name, c.value, c.read_only) for c in response.results[0].configs] == [
        ("auto.create.topics.enable", "true", True),
        ("log.dirs", "memory://", True),
        ("num.partitions", "1", True),
    ]


@pytest.mark.parametrize(
    ("version", "types", "code", "found"),
    [
        (0, [], ErrorCode.NONE, []),
        (1, [], ErrorCode.NONE, [("t", 2), ("u", 2), ("7", 4), ("7", 8)]),
        (1, [4], ErrorCode.NONE, [("7", 4)]),
        (1, [2, 32], ErrorCode.NONE, [("t", 2), ("u", 2)]),
        (1, [8, 16], ErrorCode.NONE, [("7", 8)]),
        (1, [2, 3], ErrorCode.UNSUPPORTED_VERSION, []),
    ],
)
def test_list_config_resources(
    logs: FakeLogs, version: int, types: list[int], code: ErrorCode, found: list[tuple[str, int]]
) -> None:
    logs.add("u", 1)
    request = ListConfigResourcesRequest(resource_types=types)
    response = configs.list_config_resources_nowait(request, make_context(logs, version))
    encode_response(ApiKey.LIST_CONFIG_RESOURCES, version, 1, response)
    assert response.error_code == code
    assert [(each.resource_name, each.resource_type) for each in response.config_resources] == found


async def alter(
    logs: FakeLogs, *changes: tuple[str, int, str | None], kind: int = TOPIC, validate_only: bool = False
) -> int:
    resource = AlterConfigsResource(
        resource_type=kind,
        resource_name="t" if kind == TOPIC else "7",
        configs=[AlterableConfig(name=n, config_operation=op, value=v) for n, op, v in changes],
    )
    request = IncrementalAlterConfigsRequest(resources=[resource], validate_only=validate_only)
    response = await configs.handle_incremental_alter_configs(request, make_context(logs, 1))
    assert bool(response.responses[0].error_message) == bool(response.responses[0].error_code)
    return response.responses[0].error_code


SET, DELETE, APPEND, SUBTRACT = range(4)


async def test_incremental_alter_sets_and_deletes(logs: FakeLogs) -> None:
    assert await alter(logs, ("retention.ms", SET, "1000"), ("retention.bytes", SET, "5")) == 0
    assert await alter(logs, ("retention.ms", DELETE, None)) == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}
    assert await alter(logs, ("retention.ms", SET, "7"), validate_only=True) == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}


async def test_deleting_a_config_that_is_not_set_or_not_known_succeeds(logs: FakeLogs) -> None:
    assert await alter(logs, ("retention.bytes", SET, "5")) == 0
    assert await alter(logs, ("retention.ms", DELETE, None), ("unknown.key", DELETE, None)) == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}


async def test_incremental_alter_of_lists_keeps_their_order(logs: FakeLogs) -> None:
    name = "leader.replication.throttled.replicas"
    assert await alter(logs, (name, SET, "0:7,1:7")) == 0
    assert await alter(logs, (name, APPEND, "2:7,0:7")) == 0
    assert logs.topics()["t"].configs[name] == "0:7,1:7,2:7"
    assert await alter(logs, (name, SUBTRACT, "1:7")) == 0
    assert logs.topics()["t"].configs[name] == "0:7,2:7"


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ([("unknown.key", SET, "1")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("unknown.key", APPEND, "1")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", APPEND, "1")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", 9, "1")], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("retention.ms", SET, "1"), ("retention.ms", SET, "2")], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("retention.ms", SET, None)], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("cleanup.policy", APPEND, None)], TOPIC, ErrorCode.INVALID_REQUEST),
        ([("cleanup.policy", APPEND, "compact")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("cleanup.policy", APPEND, ",delete")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("cleanup.policy", SET, "delete,")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", SET, "1_000")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("retention.ms", SET, "\u0661")], TOPIC, ErrorCode.INVALID_CONFIG),
        ([("log.retention.ms", SET, "1")], BROKER, ErrorCode.INVALID_CONFIG),
        ([("x", SET, "1")], 16, ErrorCode.INVALID_REQUEST),
    ],
)
async def test_incremental_alter_is_all_or_nothing(
    logs: FakeLogs, changes: list[tuple[str, int, str | None]], kind: int, code: ErrorCode
) -> None:
    assert await alter(logs, ("max.message.bytes", SET, "9"), *changes, kind=kind) == code
    assert logs.topics()["t"].configs == {}


async def test_a_topic_without_cleanup_policy_keeps_its_records(logs: FakeLogs) -> None:
    """KIP-1247: deletion can be taken away; the limits of retention are kept and don't act."""
    assert await alter(logs, ("cleanup.policy", SUBTRACT, "delete")) == 0
    configs = {**logs.topics()["t"].configs, "retention.ms": "1"}
    assert configs["cleanup.policy"] == ""
    parsed = PartitionConfig.parse(effective_values(configs, {}), validate_full=False)
    assert (parsed.retention_ms, parsed.retention_bytes) == (-1, -1)


async def test_alter_configs_replaces_everything(logs: FakeLogs) -> None:
    await alter(logs, ("retention.ms", SET, "1000"))
    resource = OldResource(
        resource_type=TOPIC, resource_name="t", configs=[OldConfig(name="retention.bytes", value="5")]
    )
    response = await configs.handle_alter_configs(
        AlterConfigsRequest(resources=[resource]), make_context(logs, 2)
    )
    assert response.responses[0].error_code == 0
    assert logs.topics()["t"].configs == {"retention.bytes": "5"}


def test_unknown_topic_config_names_the_nearest() -> None:
    with pytest.raises(KafkaError, match=r"did you mean retention\.ms"):
        validate_topic_config("retension.ms", "1")


def test_any_negative_retention_by_size_is_no_limit() -> None:
    assert validate_topic_config("retention.bytes", "-2") == "-2"


@pytest.mark.parametrize("config", TOPIC_CONFIGS.values(), ids=TOPIC_CONFIGS)
def test_default_of_each_topic_config_is_valid(config: TopicConfig) -> None:
    assert validate_topic_config(config.name, config.default) == config.default
    assert config.doc


# -- offsets ------------------------------------------------------------------------------------------------


async def list_offset(
    logs: FakeLogs,
    timestamp: int,
    *,
    version: int = 11,
    partition: int = 0,
    epoch: int = -1,
    isolation: int = 0,
) -> tuple[int, int, int, int]:
    asked = ListOffsetsPartition(partition_index=partition, timestamp=timestamp, current_leader_epoch=epoch)
    request = ListOffsetsRequest(
        isolation_level=isolation, topics=[ListOffsetsTopic(name="t", partitions=[asked])]
    )
    response = await offsets.handle_list_offsets(request, make_context(logs, version))
    result = response.topics[0].partitions[0]
    return result.error_code, result.offset, result.timestamp, result.leader_epoch


@pytest.mark.parametrize(
    ("timestamp", "version", "result"),
    [
        (-1, 1, (0, 10, -1, 3)),
        (-2, 1, (0, 2, -1, 3)),
        (-3, 7, (0, 9, 5004, 3)),
        (-3, 6, (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)),
        (-4, 8, (0, 2, -1, 3)),
        (-5, 9, (0, -1, -1, -1)),
        (-6, 11, (0, -1, -1, -1)),
        (-6, 10, (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)),
        (-7, 11, (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)),
        (1003, 5, (0, 3, 1003, 3)),
        (2000, 5, (0, 5, 5000, 3)),
        (9999, 5, (0, -1, -1, -1)),
    ],
)
async def test_list_offsets(logs: FakeLogs, timestamp: int, version: int, result: tuple[int, ...]) -> None:
    logs.at("t").write(5, timestamp=1000)
    logs.at("t").write(5, timestamp=5000)
    logs.at("t").log_start_offset = 2
    assert await list_offset(logs, timestamp, version=version) == result


async def test_list_offsets_answers_for_every_partition_that_was_asked(logs: FakeLogs) -> None:
    assert (await list_offset(logs, -1, partition=9))[0] == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await list_offset(logs, -1, epoch=2))[0] == ErrorCode.FENCED_LEADER_EPOCH
    assert (await list_offset(logs, -1, epoch=4))[0] == ErrorCode.UNKNOWN_LEADER_EPOCH
    assert (await list_offset(logs, -1, epoch=3, isolation=1)) == (0, 0, -1, 3)


async def test_list_offsets_looks_at_the_timestamp_before_it_looks_for_the_partition(logs: FakeLogs) -> None:
    for unknown in ({"partition": 9}, {"epoch": 2}):
        assert (await list_offset(logs, -7, **unknown))[0] == ErrorCode.UNSUPPORTED_VERSION


@pytest.mark.parametrize(
    ("partition", "current", "asked", "result"),
    [
        (0, -1, 3, (0, 3, 4)),
        (0, 3, 9, (0, 3, 4)),
        (0, -1, 1, (0, -1, -1)),
        (0, 2, 3, (ErrorCode.FENCED_LEADER_EPOCH, -1, -1)),
        (8, -1, 3, (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, -1)),
    ],
)
async def test_offset_for_leader_epoch(
    logs: FakeLogs, partition: int, current: int, asked: int, result: tuple[int, ...]
) -> None:
    logs.at("t").write(4)
    topic = OffsetForLeaderTopic(
        topic="t",
        partitions=[
            OffsetForLeaderPartition(partition=partition, current_leader_epoch=current, leader_epoch=asked)
        ],
    )
    response = await offsets.handle_offset_for_leader_epoch(
        OffsetForLeaderEpochRequest(topics=[topic]), make_context(logs, 4)
    )
    got = response.topics[0].partitions[0]
    assert (got.error_code, got.leader_epoch, got.end_offset) == result


@pytest.mark.parametrize(
    ("offset", "result"),
    [
        (2, (0, 2)),
        (-1, (0, 4)),
        (0, (0, 1)),
        (5, (ErrorCode.OFFSET_OUT_OF_RANGE, -1)),
        (-2, (ErrorCode.OFFSET_OUT_OF_RANGE, -1)),
    ],
)
async def test_delete_records(logs: FakeLogs, offset: int, result: tuple[int, int]) -> None:
    logs.at("t").write(4)
    logs.at("t").log_start_offset = 1
    topic = DeleteRecordsTopic(
        name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=offset)]
    )
    response = await offsets.handle_delete_records(
        DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
    )
    got = response.topics[0].partitions[0]
    assert (got.error_code, got.low_watermark) == result


async def test_records_of_a_compacted_topic_are_not_deleted(logs: FakeLogs) -> None:
    logs.topics()["t"].configs["cleanup.policy"] = "compact"
    topic = DeleteRecordsTopic(name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=0)])
    response = await offsets.handle_delete_records(
        DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
    )
    assert response.topics[0].partitions[0].error_code == ErrorCode.POLICY_VIOLATION


# -- the rest -----------------------------------------------------------------------------------------------


async def test_each_producer_gets_an_id_of_its_own(logs: FakeLogs) -> None:
    request = InitProducerIdRequest(transactional_id=None)
    first = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    second = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert (first.error_code, first.producer_epoch) == (0, 0)
    assert first.producer_id != second.producer_id


async def test_producer_ids_fail_clearly(logs: FakeLogs) -> None:
    request = InitProducerIdRequest(transactional_id="tx")
    response = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert (response.error_code, response.producer_id) == (
        ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        -1,
    )
    logs.fail_with = UnavailableError("storage is away")
    request.transactional_id = None
    response = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert response.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE
    logs.fail_with = ClosedError("the broker is stopping")
    response = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert response.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE, (
        "aiokafka ends on NOT_LEADER_OR_FOLLOWER"
    )


async def test_acls_say_that_security_is_disabled(logs: FakeLogs) -> None:
    described = acls.describe_acls_nowait(DescribeAclsRequest(), make_context(logs, 3))
    assert described.error_code == ErrorCode.SECURITY_DISABLED
    created = acls.create_acls_nowait(CreateAclsRequest(creations=[AclCreation()]), make_context(logs, 3))
    assert [result.error_code for result in created.results] == [ErrorCode.SECURITY_DISABLED]


async def test_an_unavailable_partition_is_offline_and_takes_only_deletions(logs: FakeLogs) -> None:
    """Compacted or not, and at the log start too: it may come back by it."""
    partition = logs.at("t")
    partition.write(4)
    partition.unavailable = "damaged"
    logs.topics()["t"].configs["cleanup.policy"] = "compact"
    asked = MetadataRequest(topics=[MetadataRequestTopic(name="t")])
    shown = metadata.metadata_nowait(asked, make_context(logs, 12))
    assert shown is not None
    offline = shown.topics[0].partitions[0]
    assert (offline.error_code, offline.leader_id) == (ErrorCode.LEADER_NOT_AVAILABLE, -1)
    assert (offline.leader_epoch, offline.offline_replicas) == (partition.leader_epoch, [logs.node_id])
    for timestamp in (-1, -2, -3, 0):
        wanted = ListOffsetsTopic(
            name="t", partitions=[ListOffsetsPartition(partition_index=0, timestamp=timestamp)]
        )
        listed = await offsets.handle_list_offsets(
            ListOffsetsRequest(replica_id=-1, topics=[wanted]), make_context(logs, 7)
        )
        assert listed.topics[0].partitions[0].error_code == ErrorCode.KAFKA_STORAGE_ERROR
    for offset in (0, 2):
        topic = DeleteRecordsTopic(
            name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=offset)]
        )
        response = await offsets.handle_delete_records(
            DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
        )
        got = response.topics[0].partitions[0]
        assert (got.error_code, got.low_watermark) == (0, offset)
