"""CreateTopics, DeleteTopics and CreatePartitions: one clause of the protocol each."""

from __future__ import annotations

from typing import Any, Final

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import topics
from penstock.api.context import CHANGE_S, CHANGED_PARTITION_S
from penstock.api.dispatch import apis
from penstock.errors import UnavailableError
from penstock.log.topic_config import (
    TOPIC_CONFIGS,
)
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
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
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.registry import encode_response

pytestmark = pytest.mark.anyio

TABLE: Final = apis()

TOPIC, BROKER = 2, 4


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


@pytest.mark.parametrize("under_way", [0, 9])
async def test_what_changes_of_topics_take_of_the_loop_is_on_their_clients_account(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch, under_way: int
) -> None:
    """Metadata are written in tasks of others; changes that wait at a time share their entries."""
    monkeypatch.setattr(logs, "changes_under_way", under_way)

    async def elsewhere_s(key: ApiKey, request: Any) -> float:
        api, context = TABLE[key], make_context(logs, TABLE[key].high, partitions_default=2)
        assert api.handler is not None
        await api.handler(request, context)
        return context.elsewhere_s

    logs.add("x.y", 1)
    made = CreateTopicsRequest(topics=[new("a"), new("b", 3), new("t")])
    judged = CreateTopicsRequest(topics=[new("c")], validate_only=True)
    grown = CreatePartitionsRequest(
        timeout_ms=1000,
        topics=[CreatePartitionsTopic(name=name, count=4, assignments=None) for name in ("a", "none")],
    )
    wanted = MetadataRequest(topics=[MetadataRequestTopic(name="d")], allow_auto_topic_creation=True)
    # a name that differs from another's in nothing that metrics show
    refused = MetadataRequest(topics=[MetadataRequestTopic(name="x_y")], allow_auto_topic_creation=True)
    gone = DeleteTopicsRequest(
        topics=[DeleteTopicState(name=name) for name in ("b", "d", "none")], timeout_ms=1000
    )
    again = DeleteTopicsRequest(topics=[DeleteTopicState(name="b")], timeout_ms=1000)
    altered = IncrementalAlterConfigsRequest(
        resources=[
            AlterConfigsResource(
                resource_type=TOPIC,
                resource_name=name,
                configs=[AlterableConfig(name="retention.ms", config_operation=0, value="1000")],
            )
            for name in ("t", "none")
        ]
    )
    for key, request, partitions in (
        (ApiKey.CREATE_TOPICS, made, 2 + 3),
        (ApiKey.CREATE_TOPICS, judged, None),
        (ApiKey.CREATE_PARTITIONS, grown, 2),
        (ApiKey.METADATA, wanted, 2),
        (ApiKey.METADATA, wanted, None),
        (ApiKey.DELETE_TOPICS, gone, 3 + 2),
        (ApiKey.DELETE_TOPICS, again, None),
        (ApiKey.INCREMENTAL_ALTER_CONFIGS, altered, 1),
        (ApiKey.INCREMENTAL_ALTER_CONFIGS, altered, None),
        (ApiKey.METADATA, refused, None),
    ):
        expected = (
            0.0 if partitions is None else CHANGE_S / (1 + under_way) + partitions * CHANGED_PARTITION_S
        )
        assert await elsewhere_s(key, request) == pytest.approx(expected), key


async def test_create_topic_answers_with_id_and_all_configs(logs: FakeLogs) -> None:
    (result,) = await create(logs, new(retention_ms="1000"))
    assert (result.error_code, result.num_partitions, result.replication_factor) == (0, 2, 1)
    assert result.topic_id == logs.topics()["new"].id
    assert result.configs is not None
    values = {config.name: (config.value, config.config_source) for config in result.configs}
    assert values["retention.ms"] == ("1000", 1)
    assert values["cleanup.policy"] == ("delete", 5)
    assert set(values) == set(TOPIC_CONFIGS)


async def test_the_configs_of_many_new_topics_are_few_objects(logs: FakeLogs) -> None:
    """The answer to a megabyte of names would take 8 KB for each of them."""
    results = await create(logs, *(new(f"new-{number}", retention_ms="1000") for number in range(20)))
    entries = [config for result in results for config in result.configs or ()]
    assert len(entries) == 20 * len(TOPIC_CONFIGS)
    assert len({id(config) for config in entries}) == 20 + len(TOPIC_CONFIGS) - 1


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


async def test_a_request_for_too_many_partitions_creates_none_of_its_topics(logs: FakeLogs) -> None:
    """As in Kafka. What isn't created anyway doesn't count."""
    reserved = new("__cluster_metadata", 10_001)
    asked = [*(new(f"new-{number}", 100) for number in range(100)), reserved]
    fine = await create(logs, *asked, validate_only=True)
    assert [result.error_code for result in fine] == [0] * 100 + [ErrorCode.INVALID_REQUEST]
    results = await create(logs, *asked, new("one-more", 1))
    assert [result.error_code for result in results] == [ErrorCode.POLICY_VIOLATION] * 102
    assert {result.name for result in results}.isdisjoint(logs.topics())
    results = await create(logs, new("below-none", -5_000), new("more", 10_001), validate_only=True)
    assert [result.error_code for result in results] == [ErrorCode.POLICY_VIOLATION] * 2


async def test_of_an_assignment_counts_what_it_assigns(logs: FakeLogs) -> None:
    """As in Kafka: a number of partitions beside it is wrong, however large it is."""
    asked = new(partitions=101, factor=-1)
    asked.assignments = [CreatableReplicaAssignment(partition_index=0, broker_ids=[7])]
    (result,) = await create(logs, asked)
    assert result.error_code == ErrorCode.INVALID_REQUEST


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
    reserved = CreatableTopic(name="__cluster_metadata", num_partitions=1, replication_factor=1)
    refused = await topics.handle_create_topics(
        CreateTopicsRequest(timeout_ms=0, topics=[reserved]), make_context(logs, 7)
    )
    assert [result.error_code for result in refused.topics] == [ErrorCode.INVALID_REQUEST]
    more = [CreatePartitionsTopic(name=name, count=9, assignments=None) for name in ("t", "t", "n")]
    for count, codes in ((3, late), (2, [ErrorCode.INVALID_REQUEST])):
        grown = await topics.handle_create_partitions(
            CreatePartitionsRequest(timeout_ms=0, topics=more[:count]), make_context(logs, 3)
        )
        assert [result.error_code for result in grown.results] == codes
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
