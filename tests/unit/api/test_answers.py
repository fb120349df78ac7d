"""Answers as Apache Kafka 4.2 gives them, where the comparison (tests/differential) showed that ours were others."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import configs, fetch, metadata, offsets, producer_ids, reassignments, topics
from penstock.api.produce import _distinct as distinct
from penstock.log.topic_config import TOPIC_CONFIGS
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages import (
    alter_configs,
    alter_partition_reassignments,
    create_partitions,
    create_topics,
    delete_records,
    delete_topics,
    describe_cluster,
    describe_configs,
    elect_leaders,
    incremental_alter_configs,
    init_producer_id,
    list_offsets,
    produce,
)
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.record_builder import build_batch

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4
SET, DELETE, APPEND = 0, 1, 2


@pytest.fixture
def logs() -> FakeLogs:
    found = FakeLogs()
    found.add("t", 2)
    return found


async def alter_broker(
    logs: FakeLogs, name: str, operation: int, value: str | None, resource: str = "7"
) -> int:
    change = incremental_alter_configs.AlterableConfig(name=name, config_operation=operation, value=value)
    request = incremental_alter_configs.IncrementalAlterConfigsRequest(
        resources=[
            incremental_alter_configs.AlterConfigsResource(
                resource_type=BROKER, resource_name=resource, configs=[change]
            )
        ]
    )
    (answer,) = (await configs.handle_incremental_alter_configs(request, make_context(logs, 1))).responses
    return answer.error_code


@pytest.mark.parametrize("resource", ["", "7"])
@pytest.mark.parametrize("name", ["leader.replication.throttled.rate", "log.retention.ms", "no.such.config"])
async def test_deleting_a_broker_config_that_is_not_set_succeeds(
    logs: FakeLogs, name: str, resource: str
) -> None:
    assert await alter_broker(logs, name, DELETE, None, resource) == ErrorCode.NONE
    assert await alter_broker(logs, name, DELETE, "", resource) == ErrorCode.NONE


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("leader.replication.throttled.rate", "1000000", ErrorCode.NONE),
        ("follower.replication.throttled.rate", "1000000", ErrorCode.NONE),
        ("leader.replication.throttled.rate", "much", ErrorCode.INVALID_CONFIG),
        ("log.retention.ms", "1", ErrorCode.INVALID_CONFIG),
    ],
)
async def test_a_throttle_of_what_does_not_happen_is_kept_and_settings_are_not_changed(
    logs: FakeLogs, name: str, value: str, code: ErrorCode
) -> None:
    assert await alter_broker(logs, name, SET, value) == code
    assert await alter_broker(logs, name, SET, value, "8") == ErrorCode.INVALID_REQUEST, "another broker"


@pytest.mark.parametrize(
    "given",
    [[("retention.ms", None)], [("retention.ms", "1"), ("retention.ms", "2")]],
)
async def test_alter_configs_with_a_null_or_a_doubled_config_changes_nothing(
    logs: FakeLogs, given: list[tuple[str, str | None]]
) -> None:
    logs.topics()["t"].configs["segment.ms"] = "7"
    resource = alter_configs.AlterConfigsResource(
        resource_type=TOPIC,
        resource_name="t",
        configs=[alter_configs.AlterableConfig(name=name, value=value) for name, value in given],
    )
    request = alter_configs.AlterConfigsRequest(resources=[resource])
    (answer,) = (await configs.handle_alter_configs(request, make_context(logs, 2))).responses
    assert answer.error_code == ErrorCode.INVALID_REQUEST
    assert logs.topics()["t"].configs == {"segment.ms": "7"}


@pytest.mark.parametrize(
    ("kind", "name", "changes", "code"),
    [
        (TOPIC, "no", [("retention.ms", SET, "1")], ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (TOPIC, "no", [("retention.ms", SET, "x")], ErrorCode.INVALID_CONFIG),
        (TOPIC, "no", [("no.such", SET, None)], ErrorCode.INVALID_REQUEST),
        (TOPIC, "a b", [("retention.ms", SET, "x")], ErrorCode.INVALID_TOPIC_EXCEPTION),
        (TOPIC, "a b", [("retention.ms", APPEND, "1")], ErrorCode.INVALID_CONFIG),
        (TOPIC, "", [("no.such", APPEND, "1")], ErrorCode.INVALID_CONFIG),
        (TOPIC, "", [("no.such", SET, "1")], ErrorCode.INVALID_REQUEST),
        (4, "7", [("no.such", SET, "1"), ("no.such", SET, "1")], ErrorCode.INVALID_REQUEST),
        (8, "7", [], ErrorCode.NONE),
        (8, "7", [("no.such", SET, "INFO")], ErrorCode.INVALID_CONFIG),
        (8, "7", [("root", APPEND, "INFO")], ErrorCode.INVALID_REQUEST),
        (8, "7", [("root", SET, "INFO"), ("no.such", APPEND, "INFO")], ErrorCode.INVALID_REQUEST),
        (8, "7", [("no.such", SET, "INFO"), ("root", APPEND, "INFO")], ErrorCode.INVALID_CONFIG),
        (8, "8", [("root", SET, "INFO")], ErrorCode.INVALID_REQUEST),
        (16, "s", [("no.such", DELETE, None)], ErrorCode.NONE),
        (16, "s", [("no.such", SET, "1")], ErrorCode.INVALID_REQUEST),
        (16, "s", [("interval.ms", SET, "1")], ErrorCode.INVALID_CONFIG),
        (32, "g", [("no.such", DELETE, None)], ErrorCode.NONE),
        (32, "g", [("consumer.session.timeout.ms", SET, "1")], ErrorCode.INVALID_CONFIG),
        (32, "", [("no.such", DELETE, None)], ErrorCode.INVALID_REQUEST),
        (64, "x", [], ErrorCode.INVALID_REQUEST),
    ],
)
async def test_of_a_change_its_form_is_looked_at_first_then_the_name_the_values_and_whether_it_is_there(
    logs: FakeLogs, kind: int, name: str, changes: list[tuple[str, int, str | None]], code: ErrorCode
) -> None:
    resource = incremental_alter_configs.AlterConfigsResource(
        resource_type=kind,
        resource_name=name,
        configs=[
            incremental_alter_configs.AlterableConfig(name=key, config_operation=operation, value=value)
            for key, operation, value in changes
        ],
    )
    request = incremental_alter_configs.IncrementalAlterConfigsRequest(resources=[resource])
    (answer,) = (await configs.handle_incremental_alter_configs(request, make_context(logs, 1))).responses
    assert answer.error_code == code


def test_describe_configs_tells_a_brokers_settings_from_defaults_with_synonyms(logs: FakeLogs) -> None:
    given = {
        "num.partitions": "3",
        "auto.create.topics.enable": "true",
        "listeners": "PLAINTEXT://127.0.0.1:9",
        "advertised.listeners": None,
    }
    resource = describe_configs.DescribeConfigsResource(
        resource_type=BROKER, resource_name="7", configuration_keys=None
    )
    request = describe_configs.DescribeConfigsRequest(resources=[resource], include_synonyms=True)
    (answer,) = configs.describe_configs_nowait(request, make_context(logs, 4, broker_configs=given)).results
    found = {
        one.name: (one.value, one.config_source, [(s.name, s.value, s.source) for s in one.synonyms])
        for one in answer.configs
    }
    assert found == {
        "num.partitions": ("3", 4, [("num.partitions", "3", 4), ("num.partitions", "1", 5)]),
        "auto.create.topics.enable": ("true", 5, [("auto.create.topics.enable", "true", 5)]),
        "listeners": (
            "PLAINTEXT://127.0.0.1:9",
            4,
            [("listeners", "PLAINTEXT://127.0.0.1:9", 4), ("listeners", "PLAINTEXT://:9092", 5)],
        ),
        "advertised.listeners": (None, 5, []),
        "log.dirs": ("memory://", 4, [("log.dirs", "memory://", 4)]),
    }


def test_synonyms_of_topic_configs_have_the_names_of_broker_configs(logs: FakeLogs) -> None:
    logs.topics()["t"].configs["max.message.bytes"] = "9"
    logs.broker_defaults = {"max.message.bytes": "5"}
    resource = describe_configs.DescribeConfigsResource(
        resource_type=TOPIC, resource_name="t", configuration_keys=["max.message.bytes"]
    )
    request = describe_configs.DescribeConfigsRequest(resources=[resource], include_synonyms=True)
    (answer,) = configs.describe_configs_nowait(request, make_context(logs, 4)).results
    (entry,) = answer.configs
    assert [(s.name, s.value, s.source) for s in entry.synonyms] == [
        ("max.message.bytes", "9", 1),
        ("message.max.bytes", "5", 4),
        ("message.max.bytes", TOPIC_CONFIGS["max.message.bytes"].default, 5),
    ]


async def create(
    logs: FakeLogs, name: str, timeout_ms: int = 1000, settings: dict[str, str] | None = None
) -> int:
    given = [
        create_topics.CreatableTopicConfig(name=key, value=value) for key, value in (settings or {}).items()
    ]
    asked = create_topics.CreatableTopic(
        name=name, num_partitions=1, replication_factor=1, assignments=[], configs=given
    )
    request = create_topics.CreateTopicsRequest(topics=[asked], timeout_ms=timeout_ms)
    (answer,) = (await topics.handle_create_topics(request, make_context(logs, 7))).topics
    return answer.error_code


@pytest.mark.parametrize(("first", "second"), [("a.b", "a_b"), ("a_b", "a.b"), ("x.y_z", "x_y.z")])
async def test_topics_that_differ_only_in_dot_and_underscore_are_refused(
    logs: FakeLogs, first: str, second: str
) -> None:
    assert await create(logs, first) == ErrorCode.NONE
    assert await create(logs, second) == ErrorCode.INVALID_TOPIC_EXCEPTION
    assert await create(logs, first) == ErrorCode.TOPIC_ALREADY_EXISTS
    request = MetadataRequest(topics=[MetadataRequestTopic(name=second)], allow_auto_topic_creation=True)
    answer: Any = await metadata.handle_metadata(request, make_context(logs, 9))
    assert [topic.error_code for topic in answer.topics] == [ErrorCode.INVALID_TOPIC_EXCEPTION]
    assert second not in logs.topics()


async def test_the_name_of_the_metadata_log_is_no_topic(logs: FakeLogs) -> None:
    assert await create(logs, "__cluster_metadata") == ErrorCode.INVALID_REQUEST
    asked = [MetadataRequestTopic(name="__cluster_metadata")]
    request = MetadataRequest(topics=asked, allow_auto_topic_creation=True)
    answer: Any = await metadata.handle_metadata(request, make_context(logs, 9))
    assert [topic.error_code for topic in answer.topics] == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
    assert sorted(logs.topics()) == ["t"]


async def test_who_asks_for_an_internal_topic_that_is_not_there_makes_none(logs: FakeLogs) -> None:
    names = ["__consumer_offsets", "__share_group_state", "__transaction_state"]
    asked = [MetadataRequestTopic(name=name) for name in names]
    request = MetadataRequest(topics=asked, allow_auto_topic_creation=True)
    answer: Any = await metadata.handle_metadata(request, make_context(logs, 9))
    assert [topic.error_code for topic in answer.topics] == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION] * 3
    assert [topic.is_internal for topic in answer.topics] == [True] * 3
    assert sorted(logs.topics()) == ["t"]


@pytest.mark.parametrize(
    "name", ["remote.storage.enable", "remote.log.copy.disable", "remote.log.delete.on.disable"]
)
async def test_configs_of_tiers_are_taken_at_their_defaults(logs: FakeLogs, name: str) -> None:
    assert await create(logs, "a", settings={name: "false"}) == ErrorCode.NONE
    assert await create(logs, "b", settings={name: "true"}) == ErrorCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("value", "code"), [("*", 0), ("0:1,1:7", 0), ("", 0), ("0", 40), ("0:1,", 0), ("all", 40)]
)
async def test_throttled_replicas_are_all_or_a_list(logs: FakeLogs, value: str, code: int) -> None:
    assert await create(logs, "a", settings={"leader.replication.throttled.replicas": value}) == code


@pytest.mark.parametrize("timeout_ms", [0, -1, -(2**31)])
async def test_a_request_that_allows_no_time_is_timed_out_and_changes_nothing(
    logs: FakeLogs, timeout_ms: int
) -> None:
    late = ErrorCode.REQUEST_TIMED_OUT
    context = make_context(logs, 2)
    assert await create(logs, "new", timeout_ms) == late
    deleted = await topics.handle_delete_topics(
        delete_topics.DeleteTopicsRequest(topic_names=["t"], timeout_ms=timeout_ms), context
    )
    assert [one.error_code for one in deleted.responses] == [late]
    more = create_partitions.CreatePartitionsTopic(name="t", count=9, assignments=None)
    grown = await topics.handle_create_partitions(
        create_partitions.CreatePartitionsRequest(topics=[more], timeout_ms=timeout_ms), context
    )
    assert [one.error_code for one in grown.results] == [late]
    elected = reassignments.elect_leaders_nowait(
        elect_leaders.ElectLeadersRequest(
            topic_partitions=[elect_leaders.TopicPartitions(topic="t", partitions=[0])], timeout_ms=timeout_ms
        ),
        context,
    )
    assert elected.error_code == late
    assert [one.error_code for one in elected.replica_election_results[0].partition_result] == [late]
    topic = alter_partition_reassignments.ReassignableTopic(name="t", partitions=[])
    for asked, code in (([topic], late), ([], ErrorCode.NONE)):
        moved = reassignments.alter_partition_reassignments_nowait(
            alter_partition_reassignments.AlterPartitionReassignmentsRequest(
                topics=asked, timeout_ms=timeout_ms
            ),
            context,
        )
        assert moved.error_code == code
    assert {name: topic.partition_count for name, topic in logs.topics().items()} == {"t": 2}


async def list_offset(
    logs: FakeLogs, partitions: list[int], isolation_level: int = 0
) -> list[list_offsets.ListOffsetsTopicResponse]:
    asked = [list_offsets.ListOffsetsPartition(partition_index=index, timestamp=-1) for index in partitions]
    request = list_offsets.ListOffsetsRequest(
        isolation_level=isolation_level, topics=[list_offsets.ListOffsetsTopic(name="t", partitions=asked)]
    )
    return (await offsets.handle_list_offsets(request, make_context(logs, 7))).topics


async def test_a_partition_that_is_named_twice_in_list_offsets_is_refused_once(logs: FakeLogs) -> None:
    (topic,) = await list_offset(logs, [0, 1, 0])
    assert [(one.partition_index, one.error_code, one.offset) for one in topic.partitions] == [
        (0, ErrorCode.INVALID_REQUEST, -1),
        (1, ErrorCode.NONE, 0),
    ]
    assert await list_offset(logs, []) == [], "a topic of which nothing is asked isn't mentioned"


@pytest.mark.parametrize("isolation_level", [2, -1, 127])
async def test_an_isolation_level_that_nobody_knows_is_an_error(logs: FakeLogs, isolation_level: int) -> None:
    unknown = ErrorCode.UNKNOWN_SERVER_ERROR
    (topic,) = await list_offset(logs, [0], isolation_level)
    assert [(one.error_code, one.offset) for one in topic.partitions] == [(unknown, -1)]
    asked = FetchTopic(
        topic="t", partitions=[FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=9)]
    )
    request = FetchRequest(isolation_level=isolation_level, topics=[asked], max_wait_ms=0)
    answer = fetch.fetch_nowait(request, make_context(logs, 12))
    assert answer is not None
    assert answer.error_code == unknown
    assert [one.error_code for one in answer.responses[0].partitions] == [unknown]


def test_a_fetch_in_no_session_or_of_no_topic_is_told_so_whatever_its_isolation_level(logs: FakeLogs) -> None:
    request = FetchRequest(isolation_level=2, session_id=5, session_epoch=3, topics=[], max_wait_ms=0)
    answer = fetch.fetch_nowait(request, make_context(logs, 12))
    assert answer is not None
    assert answer.error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
    unknown = FetchTopic(topic="no", partitions=[FetchPartition(partition=0, partition_max_bytes=9)])
    request = FetchRequest(isolation_level=2, session_epoch=-1, topics=[unknown], max_wait_ms=0)
    answer = fetch.fetch_nowait(request, make_context(logs, 12))
    assert answer is not None
    codes = [one.error_code for one in answer.responses[0].partitions]
    assert (answer.error_code, codes) == (0, [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION])


@pytest.mark.parametrize(("replica_id", "version"), [(0, 11), (7, 11)])
def test_a_follower_is_told_that_there_are_no_replicas(logs: FakeLogs, replica_id: int, version: int) -> None:
    asked = FetchTopic(
        topic="t", partitions=[FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=9)]
    )
    answer = fetch.fetch_nowait(
        FetchRequest(replica_id=replica_id, topics=[asked], max_wait_ms=0), make_context(logs, version)
    )
    assert answer is not None
    assert [one.error_code for one in answer.responses[0].partitions] == [ErrorCode.NOT_LEADER_OR_FOLLOWER]


async def test_records_of_internal_topics_are_not_deleted_and_partitions_are_answered_once(
    logs: FakeLogs,
) -> None:
    logs.add("__consumer_offsets", internal=True)
    one = delete_records.DeleteRecordsPartition(partition_index=0, offset=0)
    request = delete_records.DeleteRecordsRequest(
        topics=[
            delete_records.DeleteRecordsTopic(name="t", partitions=[one, one]),
            delete_records.DeleteRecordsTopic(name="__consumer_offsets", partitions=[one]),
        ]
    )
    answer = await offsets.handle_delete_records(request, make_context(logs, 2))
    assert [(topic.name, [one.error_code for one in topic.partitions]) for topic in answer.topics] == [
        ("t", [ErrorCode.NONE]),
        ("__consumer_offsets", [ErrorCode.INVALID_TOPIC_EXCEPTION]),
    ]


@pytest.mark.parametrize(
    ("transactional_id", "producer_id", "epoch"), [("", -1, -1), (None, 5, -1), (None, -1, 5), ("t", 5, -1)]
)
async def test_an_empty_transactional_id_or_half_an_identity_is_invalid(
    logs: FakeLogs, transactional_id: str | None, producer_id: int, epoch: int
) -> None:
    request = init_producer_id.InitProducerIdRequest(
        transactional_id=transactional_id, producer_id=producer_id, producer_epoch=epoch
    )
    answer = await producer_ids.handle_init_producer_id(request, make_context(logs, 5))
    assert (answer.error_code, answer.producer_id) == (ErrorCode.INVALID_REQUEST, -1)


@pytest.mark.parametrize(
    ("endpoint_type", "code"),
    [(1, 0), (2, ErrorCode.MISMATCHED_ENDPOINT_TYPE), (3, ErrorCode.UNSUPPORTED_ENDPOINT_TYPE), (0, 115)],
)
def test_endpoint_types_that_nobody_knows_are_unsupported(
    logs: FakeLogs, endpoint_type: int, code: int
) -> None:
    request = describe_cluster.DescribeClusterRequest(endpoint_type=endpoint_type)
    assert metadata.describe_cluster_nowait(request, make_context(logs, 2)).error_code == code


@pytest.mark.parametrize(("version", "code"), [(10, 42), (11, 42), (12, 0), (13, 0)])
def test_metadata_by_id_works_from_version_12_on_and_the_id_counts(
    logs: FakeLogs, version: int, code: int
) -> None:
    known = logs.topics()["t"]
    request = MetadataRequest(
        topics=[MetadataRequestTopic(name="other", topic_id=known.id)], allow_auto_topic_creation=False
    )
    answer = metadata.metadata_nowait(request, make_context(logs, version))
    assert answer is not None
    assert [(topic.error_code, topic.name) for topic in answer.topics] == [(code, "other" if code else "t")]
    assert bool(answer.brokers) is not bool(code), "a request that is refused as a whole gets nothing else"


def test_beside_ids_no_name_counts_in_metadata(logs: FakeLogs) -> None:
    """Also no name that is wrong, and no topic that has neither."""
    by_id = MetadataRequestTopic(name="other", topic_id=logs.topics()["t"].id)
    for beside in (MetadataRequestTopic(name=name) for name in ("t", "no", "a b", "", None)):
        request = MetadataRequest(topics=[beside, by_id], allow_auto_topic_creation=True)
        answer = metadata.metadata_nowait(request, make_context(logs, 12))
        assert answer is not None
        assert [(topic.error_code, topic.name) for topic in answer.topics] == [(0, "t")]


@pytest.mark.parametrize(
    ("kind", "name", "key", "expected"),
    [
        (16, "any", "interval.ms", ("300000", 5, False)),
        (32, "any", "consumer.session.timeout.ms", ("45000", 5, False)),
        (8, "07", "root", (None, 6, True)),
    ],
)
def test_loggers_client_metrics_and_groups_are_described_with_what_they_have(
    logs: FakeLogs, kind: int, name: str, key: str, expected: tuple[str | None, int, bool]
) -> None:
    def described(resource_name: str) -> describe_configs.DescribeConfigsResult:
        resource = describe_configs.DescribeConfigsResource(
            resource_type=kind, resource_name=resource_name, configuration_keys=[key, "no"]
        )
        request = describe_configs.DescribeConfigsRequest(resources=[resource])
        (result,) = configs.describe_configs_nowait(request, make_context(logs, 4)).results
        return result

    (entry,) = described(name).configs
    value, source, read_only = expected
    assert (entry.name, entry.config_source, entry.read_only) == (key, source, read_only)
    assert entry.value == value or kind == 8
    assert described("").error_code == ErrorCode.INVALID_REQUEST


def test_a_session_by_id_tells_a_topic_that_is_gone_from_one_that_came_back_as_another(
    logs: FakeLogs,
) -> None:
    known = logs.topics()["t"]
    asked = FetchTopic(
        topic_id=known.id, partitions=[FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=9)]
    )
    context = make_context(logs, 13)
    opened = fetch.fetch_nowait(FetchRequest(session_epoch=0, topics=[asked], max_wait_ms=0), context)
    assert opened is not None
    assert opened.session_id

    def codes(epoch: int) -> list[int]:
        request = FetchRequest(session_id=opened.session_id, session_epoch=epoch, topics=[], max_wait_ms=0)
        answer = fetch.fetch_nowait(request, context)
        assert answer is not None
        return [one.error_code for topic in answer.responses for one in topic.partitions]

    assert codes(1) == []
    logs.topics().pop("t")  # type: ignore[attr-defined]
    assert codes(2) == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
    logs.add("t", 2).id = bytes(15) + b"\x09"
    assert codes(3) == [ErrorCode.INCONSISTENT_TOPIC_ID]
    logs.topics()["t"].partition_count = 0
    assert codes(4) == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION], "the other one has no such partition"
    stranger = FetchTopic(topic_id=bytes(15) + b"\7", partitions=asked.partitions)
    alone = fetch.fetch_nowait(FetchRequest(session_epoch=-1, topics=[stranger], max_wait_ms=0), context)
    assert alone is not None
    assert alone.responses[0].partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID


def test_a_partition_that_produce_names_twice_is_appended_once_and_the_last_counts() -> None:
    """But for what isn't a batch, which is told wherever it is named."""
    batches = [memoryview(build_batch([(b"key", value, (), 0)])) for value in (b"1", b"2", b"3", b"4")]
    torn = batches[3][:-1]

    def data(*named: tuple[int, memoryview]) -> produce.TopicProduceData:
        parts = [produce.PartitionProduceData(index=index, records=records) for index, records in named]
        return produce.TopicProduceData(name="t", partition_data=parts)

    nothing = produce.TopicProduceData(name="nothing", partition_data=[])
    topics = [
        data((0, batches[0]), (1, batches[1]), (2, torn)),
        nothing,
        data((0, batches[2]), (2, batches[3])),
        data((1, torn)),
    ]
    (found,) = distinct(produce.ProduceRequest(topic_data=topics), 9).topic_data
    assert [(one.index, one.records) for one in found.partition_data] == [
        (0, batches[2]),
        (1, torn),
        (2, torn),
    ]
