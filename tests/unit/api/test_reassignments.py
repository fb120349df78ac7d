"""Elections and reassignments where each partition has one replica, on one broker."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.reassignments import (
    alter_partition_reassignments_nowait,
    elect_leaders_nowait,
    list_partition_reassignments_nowait,
)
from penstock.wire import ApiKey, ErrorCode, encode_response
from penstock.wire.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)
from penstock.wire.messages.elect_leaders import ElectLeadersRequest, TopicPartitions
from penstock.wire.messages.list_partition_reassignments import (
    ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsTopics,
)


def elect(
    logs: FakeLogs, asked: list[TopicPartitions] | None, election_type: int = 0, version: int = 2
) -> tuple[int, dict[tuple[str, int], int]]:
    request = ElectLeadersRequest(election_type=election_type, topic_partitions=asked)
    response = elect_leaders_nowait(request, make_context(logs, version))
    encode_response(ApiKey.ELECT_LEADERS, version, 1, response)
    codes = {
        (result.topic, partition.partition_id): partition.error_code
        for result in response.replica_election_results
        for partition in result.partition_result
    }
    return response.error_code, codes


def test_a_timeout_of_0_is_over_before_the_election_type_is_looked_at(logs: FakeLogs) -> None:
    for asked, code in ((None, ErrorCode.REQUEST_TIMED_OUT), ([], ErrorCode.NONE)):
        request = ElectLeadersRequest(election_type=9, timeout_ms=0, topic_partitions=asked)
        assert elect_leaders_nowait(request, make_context(logs, 2)).error_code == code


def test_the_election_type_is_looked_at_where_there_is_something_to_elect(logs: FakeLogs) -> None:
    assert elect(logs, [], 2) == (0, {})
    assert elect(logs, None, 2) == (ErrorCode.INVALID_REQUEST, {})
    asked = [TopicPartitions(topic="t", partitions=[0])]
    assert elect(logs, asked, 2) == (ErrorCode.INVALID_REQUEST, {("t", 0): ErrorCode.INVALID_REQUEST})


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("election_type", [0, 1])
def test_no_election_is_needed_where_the_one_replica_leads(
    logs: FakeLogs, election_type: int, version: int
) -> None:
    asked = [TopicPartitions(topic="t", partitions=[0, 2])]
    code = ErrorCode.ELECTION_NOT_NEEDED
    assert elect(logs, asked, election_type, version) == (0, {("t", 0): code, ("t", 2): code})


def test_unknown_partitions_are_told(logs: FakeLogs) -> None:
    asked = [TopicPartitions(topic="t", partitions=[3, -1]), TopicPartitions(topic="none", partitions=[0])]
    code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert elect(logs, asked) == (0, {("t", 3): code, ("t", -1): code, ("none", 0): code})


@pytest.mark.parametrize(
    ("election_type", "code"),
    [(0, ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE), (1, ErrorCode.ELIGIBLE_LEADERS_NOT_AVAILABLE)],
)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_partition_that_is_not_open_or_damaged_can_not_be_led(
    logs: FakeLogs, election_type: int, code: ErrorCode, is_damaged: bool
) -> None:
    """As in Metadata, which shows both without leader."""
    if is_damaged:
        logs.at("t", 1).unavailable = "damaged"
    else:
        logs.shut("t", 1)
    asked = [TopicPartitions(topic="t", partitions=[1])]
    assert elect(logs, asked, election_type) == (0, {("t", 1): code})
    assert elect(logs, None, election_type) == (0, {("t", 1): code}), (
        "of all, those without need are left out"
    )


def test_an_unknown_kind_of_election_is_refused(logs: FakeLogs) -> None:
    assert elect(logs, [TopicPartitions(topic="t", partitions=[0])], 2) == (
        ErrorCode.INVALID_REQUEST,
        {("t", 0): ErrorCode.INVALID_REQUEST},
    )


@pytest.mark.parametrize(
    "asked", [None, [ListPartitionReassignmentsTopics(name="t", partition_indexes=[0])], []]
)
def test_no_reassignment_is_under_way(
    logs: FakeLogs, asked: list[ListPartitionReassignmentsTopics] | None
) -> None:
    request = ListPartitionReassignmentsRequest(topics=asked)
    response = list_partition_reassignments_nowait(request, make_context(logs, 0))
    encode_response(ApiKey.LIST_PARTITION_REASSIGNMENTS, 0, 1, response)
    assert (response.error_code, response.error_message, response.topics) == (0, None, [])


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("topic", "partition", "replicas", "code"),
    [
        ("t", 0, [7], ErrorCode.NONE),
        ("t", 0, [8], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        ("t", 0, [7, 8], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        ("t", 0, [7, 7], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        ("t", 0, [], ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        ("t", 0, None, ErrorCode.NO_REASSIGNMENT_IN_PROGRESS),
        ("t", 3, [7], ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        ("t", 3, None, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        ("none", 0, [7], ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    ],
)
def test_only_where_a_partition_is_already_can_it_go(
    logs: FakeLogs, topic: str, partition: int, replicas: list[int] | None, code: ErrorCode, version: int
) -> None:
    request = AlterPartitionReassignmentsRequest(
        topics=[
            ReassignableTopic(
                name=topic, partitions=[ReassignablePartition(partition_index=partition, replicas=replicas)]
            )
        ]
    )
    response = alter_partition_reassignments_nowait(request, make_context(logs, version))
    encode_response(ApiKey.ALTER_PARTITION_REASSIGNMENTS, version, 1, response)
    assert (response.error_code, response.error_message) == (0, None)
    (answered,) = response.responses
    (result,) = answered.partitions
    assert (answered.name, result.partition_index, result.error_code) == (topic, partition, code)
    assert bool(result.error_message) == bool(code)
