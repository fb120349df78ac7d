"""A store that hangs, refuses or is full: admin calls keep their timeouts, and people are told what happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.conftest import ServeFactory
from tests.integration.ledger import TOPIC, create_topic
from tests.integration.test_faults import FLAKY, WITH_PLUGINS, Flaky, eventually
from tests.integration.test_semantics import Wire, batch_of

from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.metadata import MetadataRequest

TIMEOUT_MS = 300


@pytest.fixture
def flaky(serve: ServeFactory) -> Iterator[Flaky]:
    """A broker with a topic on a store that fails on command; it works again before the broker is stopped."""
    switch = Flaky(serve(*FLAKY, arguments=WITH_PLUGINS))
    create_topic(switch.broker.bootstrap_servers)
    yield switch
    switch.turn("ok")


def create(wire: Wire, name: str) -> int:
    topic = CreatableTopic(name=name, num_partitions=1, replication_factor=1, assignments=[], configs=[])
    request = CreateTopicsRequest(topics=[topic], timeout_ms=TIMEOUT_MS)
    (result,) = wire.ask(ApiKey.CREATE_TOPICS, 7, request).topics
    return int(result.error_code)


def delete(wire: Wire, name: str) -> int:
    request = DeleteTopicsRequest(topic_names=[name], timeout_ms=TIMEOUT_MS)
    (result,) = wire.ask(ApiKey.DELETE_TOPICS, 5, request).responses
    return int(result.error_code)


def grow(wire: Wire, name: str) -> int:
    topic = CreatePartitionsTopic(name=name, count=9, assignments=None)
    request = CreatePartitionsRequest(topics=[topic], timeout_ms=TIMEOUT_MS)
    (result,) = wire.ask(ApiKey.CREATE_PARTITIONS, 3, request).results
    return int(result.error_code)


def delete_records(wire: Wire, name: str) -> int:
    partition = DeleteRecordsPartition(partition_index=0, offset=1)
    request = DeleteRecordsRequest(
        topics=[DeleteRecordsTopic(name=name, partitions=[partition])], timeout_ms=TIMEOUT_MS
    )
    (topic,) = wire.ask(ApiKey.DELETE_RECORDS, 2, request).topics
    (result,) = topic.partitions
    return int(result.error_code)


def topics(wire: Wire) -> dict[str, int]:
    """Partitions of each topic."""
    answer = wire.ask(ApiKey.METADATA, 12, MetadataRequest(topics=None))
    return {topic.name: len(topic.partitions) for topic in answer.topics if not topic.is_internal}


@pytest.mark.parametrize("mode", ["stall", "fail"])
def test_admin_calls_keep_their_timeouts_and_take_effect_when_the_store_is_back(
    flaky: Flaky, mode: str
) -> None:
    """A store that is full fails as one that refuses. What is asked for is neither lost nor half done."""
    with Wire(flaky.broker) as wire:
        assert create(wire, "to-delete") == 0
        assert create(wire, "to-shorten") == 0
        assert wire.produce("to-shorten", batch_of([b"a", b"b"])).error_code == 0
        flaky.turn(mode)
        late = ErrorCode.REQUEST_TIMED_OUT
        assert create(wire, "to-create") == late
        assert create(wire, "to-create") == late
        assert grow(wire, TOPIC) == late
        assert delete(wire, "to-delete") == late
        assert delete_records(wire, "to-shorten") == late
        assert wire.produce("to-shorten", batch_of([b"c"])).error_code == 0, "only metadata waits"
        flaky.turn("ok")
        eventually(lambda: topics(wire) == {"to-create": 1, TOPIC: 9, "to-shorten": 1}, "all changes")
        eventually(lambda: delete_records(wire, "to-shorten") == 0, "the deletion of records")
        assert create(wire, "to-create") == ErrorCode.TOPIC_ALREADY_EXISTS
        assert grow(wire, TOPIC) == ErrorCode.INVALID_PARTITIONS


@pytest.mark.slow
def test_calls_without_a_timeout_of_their_own_are_answered_before_clients_hang_up(flaky: Flaky) -> None:
    """AdminClient's request.timeout.ms is 30 s."""
    with Wire(flaky.broker) as wire:
        flaky.turn("stall")
        answer = wire.ask(ApiKey.INIT_PRODUCER_ID, 4, InitProducerIdRequest(transactional_id=None))
        assert answer.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE
