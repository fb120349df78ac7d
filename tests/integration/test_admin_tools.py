"""What tools and UIs ask of any broker, through real admin clients, our own client and the wire."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import ElectionType
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import KafkaError
from tests.integration.conftest import ServeProcess, penstock
from tests.integration.kafka_clients import DEADLINE_S, serving, unique
from tests.integration.wire import Wire, batch_of

from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.describe_client_quotas import ComponentData, DescribeClientQuotasRequest
from penstock.wire.messages.describe_log_dirs import DescribeLogDirsRequest
from penstock.wire.messages.describe_producers import DescribeProducersRequest, TopicRequest
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsRequestCursor,
)
from penstock.wire.messages.describe_topic_partitions import TopicRequest as DescribedTopic

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python uses what newer Pythons will drop
    from kafka import KafkaAdminClient, KafkaProducer, TopicPartition, errors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kafka")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module."""
    with serving(tmp_path_factory.mktemp("admin-tools")) as broker:
        yield broker


@pytest.fixture(scope="module")
def admin(shared: ServeProcess) -> Iterator[Any]:
    with closing(KafkaAdminClient(bootstrap_servers=shared.bootstrap_servers)) as client:
        yield client


@pytest.fixture
def wire(shared: ServeProcess) -> Iterator[Wire]:
    with Wire(shared) as connection:
        yield connection


def test_log_dirs_have_the_size_of_what_was_produced(admin: Any, shared: ServeProcess, wire: Wire) -> None:
    topic = wire.create("sized", partitions=2)
    size = 0
    for number in range(5):
        batch = batch_of([b"%d" % number * 1000])
        size += len(batch)
        assert wire.produce(topic, batch, partition=1).error_code == 0
    (broker,) = admin.describe_log_dirs({topic: [0, 1]})
    (place,) = broker["log_dirs"]
    assert place["error_code"] == 0
    assert place["log_dir"] == f"file://{shared.data_dir}/objects"
    assert place["total_bytes"] >= place["usable_bytes"] > 0
    (found,) = place["topics"]
    assert {p["partition_index"]: p["partition_size"] for p in found["partitions"]} == {0: 0, 1: size}
    assert {(p["offset_lag"], p["is_future_key"]) for p in found["partitions"]} == {(0, False)}

    (broker,) = admin.describe_log_dirs()
    assert {topic, "__consumer_offsets"} <= {t["name"] for t in broker["log_dirs"][0]["topics"]}
    for version in (1, 2, 3, 4):
        answer = wire.ask(ApiKey.DESCRIBE_LOG_DIRS, version, DescribeLogDirsRequest(topics=None))
        assert [result.error_code for result in answer.results] == [0]


def test_topic_describe_shows_sizes(shared: ServeProcess, wire: Wire) -> None:
    topic = wire.create("shown", partitions=2)
    batch = batch_of([b"x" * 3000])
    assert wire.produce(topic, batch, partition=1).error_code == 0

    def describe(*options: str) -> str:
        done = penstock("topic", "describe", topic, *options, "-b", shared.bootstrap_servers)
        assert done.returncode == 0, done.stderr
        return done.stdout

    document = json.loads(describe("--json"))
    assert [each["size_bytes"] for each in document["partitions"]] == [0, len(batch)]
    assert document["size_bytes"] == len(batch)
    lines = describe().splitlines()
    assert lines[0].startswith(f"{topic}: 2 partitions, 3.0KiB, id ")
    assert [line.split()[-1] for line in lines[2:5]] == ["SIZE", "0B", "3.0KiB"]


def test_elections_are_not_needed(admin: Any, shared: ServeProcess, wire: Wire) -> None:
    topic = wire.create("elected", partitions=2)
    answer = admin.elect_leaders(0, {topic: [0, 1]})
    (result,) = answer.replica_election_results
    assert [p.error_code for p in result.partition_result] == [ErrorCode.ELECTION_NOT_NEEDED] * 2
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        admin.elect_leaders(0, {topic: [2]})

    librdkafka = AdminClient({"bootstrap.servers": shared.bootstrap_servers})
    partitions = [ConfluentPartition(topic, 0), ConfluentPartition(topic, 9)]
    results = librdkafka.elect_leaders(ElectionType.PREFERRED, partitions).result(DEADLINE_S)
    codes = {(each.topic, each.partition): error for each, error in results.items()}
    assert {key: error.code() if error else None for key, error in codes.items()} == {
        (topic, 0): KafkaError.ELECTION_NOT_NEEDED,
        (topic, 9): KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
    assert librdkafka.elect_leaders(ElectionType.UNCLEAN, None).result(DEADLINE_S) == {}


def test_reassignments_go_nowhere(admin: Any, wire: Wire) -> None:
    topic = wire.create("assigned", partitions=3)
    (node,) = admin.describe_cluster()["brokers"]
    node_id = node["broker_id"]
    assert admin.list_partition_reassignments() == {}
    assert admin.list_partition_reassignments({topic: [0]}) == {}
    results = admin.alter_partition_reassignments(
        {
            TopicPartition(topic, 0): [node_id],
            TopicPartition(topic, 1): [node_id, node_id + 1],
            TopicPartition(topic, 2): None,
            TopicPartition(topic, 3): [node_id],
        }
    )
    assert {at.partition: error and error.errno for at, error in results.items()} == {
        0: None,
        1: ErrorCode.INVALID_REPLICA_ASSIGNMENT,
        2: ErrorCode.NO_REASSIGNMENT_IN_PROGRESS,
        3: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    }
    assert admin.list_partition_reassignments() == {}


def test_producers_are_those_that_wrote(admin: Any, shared: ServeProcess, wire: Wire) -> None:
    topic = wire.create("written", partitions=2)
    with closing(KafkaProducer(bootstrap_servers=shared.bootstrap_servers)) as producer:
        for _ in range(3):
            producer.send(topic, value=b"v", partition=0).get(DEADLINE_S)
    found = admin.describe_producers([TopicPartition(topic, 0), TopicPartition(topic, 1)])
    (state,) = found[TopicPartition(topic, 0)].active_producers
    assert (state.producer_epoch, state.last_sequence, state.coordinator_epoch) == (0, 2, -1)
    assert state.producer_id >= 0
    assert state.last_timestamp > 0
    assert state.current_transaction_start_offset == -1
    assert found[TopicPartition(topic, 1)].active_producers == []

    request = DescribeProducersRequest(topics=[TopicRequest(name=topic, partition_indexes=[7])])
    (answered,) = wire.ask(ApiKey.DESCRIBE_PRODUCERS, 0, request).topics
    assert answered.partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def test_topics_are_described_in_pages(admin: Any, wire: Wire) -> None:
    first, second = sorted((wire.create("paged", partitions=3), wire.create("paged", partitions=2)))
    cursor, seen = None, []
    while True:
        page = admin.describe_topic_partitions([first, second], response_partition_limit=2, cursor=cursor)
        assert sum(len(topic["partitions"]) for topic in page["topics"]) <= 2
        seen += [(t["name"], p["partition_index"]) for t in page["topics"] for p in t["partitions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    counts = {first: sum(name == first for name, _ in seen), second: sum(name == second for name, _ in seen)}
    assert sorted(counts.values()) == [2, 3]
    assert seen == [(name, index) for name in (first, second) for index in range(counts[name])]

    request = DescribeTopicPartitionsRequest(
        topics=[DescribedTopic(name=first)],
        cursor=DescribeTopicPartitionsRequestCursor(topic_name=first, partition_index=-1),
    )
    (answered,) = wire.ask(ApiKey.DESCRIBE_TOPIC_PARTITIONS, 0, request).topics
    assert answered.error_code == ErrorCode.INVALID_REQUEST


def test_there_are_no_quotas_and_config_resources_are_listed(admin: Any, wire: Wire) -> None:
    for version in (0, 1):
        answer = wire.ask(ApiKey.DESCRIBE_CLIENT_QUOTAS, version, DescribeClientQuotasRequest())
        assert (answer.error_code, answer.entries) == (0, [])
    twice = [ComponentData(entity_type="user", match_type=2, match=None)] * 2
    answer = wire.ask(ApiKey.DESCRIBE_CLIENT_QUOTAS, 1, DescribeClientQuotasRequest(components=twice))
    assert (answer.error_code, answer.entries) == (ErrorCode.INVALID_REQUEST, None)

    topic = wire.create("listed")
    resources = admin.list_config_resources()
    assert topic in resources["topic"]
    assert len(resources["broker"]) == 1
    assert admin.list_config_resources(["GROUP"]) == {}
    assert unique("listed") not in resources["topic"]
