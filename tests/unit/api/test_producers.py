"""DescribeProducers: the state of each partition's idempotent producers."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.portions import other_portions
from penstock.api.producers import describe_producers_nowait
from penstock.log.producer_book import ProducerInfo
from penstock.wire import ApiKey, ErrorCode, encode_response
from penstock.wire.messages.describe_producers import (
    DescribeProducersRequest,
    DescribeProducersResponse,
    TopicRequest,
)


def describe(logs: FakeLogs, **asked: list[int]) -> DescribeProducersResponse:
    request = DescribeProducersRequest(
        topics=[TopicRequest(name=name, partition_indexes=indexes) for name, indexes in asked.items()]
    )
    response = describe_producers_nowait(request, make_context(logs, 0))
    encode_response(ApiKey.DESCRIBE_PRODUCERS, 0, 1, response)
    return response


def test_states_are_those_of_the_partition(logs: FakeLogs) -> None:
    logs.at("t", 1).active = [ProducerInfo(1001, 2, 41, 9_000), ProducerInfo(1002, 0, -1, 8_000)]
    response = describe(logs, t=[0, 1])
    empty, full = response.topics[0].partitions
    assert (empty.error_code, empty.active_producers) == (0, [])
    assert [
        (p.producer_id, p.producer_epoch, p.last_sequence, p.last_timestamp) for p in full.active_producers
    ] == [(1001, 2, 41, 9_000), (1002, 0, -1, 8_000)]
    assert {(p.coordinator_epoch, p.current_txn_start_offset) for p in full.active_producers} == {(-1, -1)}


def test_partitions_that_are_not_there_and_not_open_are_told_apart(logs: FakeLogs) -> None:
    logs.shut("t", 2)
    response = describe(logs, t=[2, 3, -1], none=[0])
    codes = [p.error_code for topic in response.topics for p in topic.partitions]
    unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert codes == [ErrorCode.NOT_LEADER_OR_FOLLOWER, unknown, unknown, unknown]


def test_nothing_is_said_of_producers_that_cannot_be_known(logs: FakeLogs) -> None:
    logs.at("t", 1).unavailable = "data of the partition are damaged"
    (result,) = describe(logs, t=[1]).topics[0].partitions
    assert (result.error_code, result.error_message) == (
        ErrorCode.KAFKA_STORAGE_ERROR,
        "data of the partition are damaged",
    )


def test_a_partition_is_answered_once_however_often_it_is_asked_for(logs: FakeLogs) -> None:
    response = describe(logs, t=[0] * 1000)
    assert [p.partition_index for p in response.topics[0].partitions] == [0]


@pytest.mark.anyio
async def test_the_producers_of_a_partition_are_told_of_in_portions(logs: FakeLogs) -> None:
    """There may be as many as their memory holds: tens of thousands."""
    logs.at("t", 1).active = [ProducerInfo(number, 0, 0, 9_000) for number in range(1_000)]
    request = DescribeProducersRequest(topics=[TopicRequest(name="t", partition_indexes=[1])])
    context = make_context(logs, 0)
    assert describe_producers_nowait(request, context) is None
    response = await other_portions(request, context)
    assert isinstance(response, DescribeProducersResponse)
    assert len(response.topics[0].partitions[0].active_producers) == 1_000
