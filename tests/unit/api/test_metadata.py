"""Metadata, DescribeCluster and DescribeTopicPartitions: one clause of the protocol each."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import ENDPOINT, FakeLogs, make_context

from penstock.api import metadata
from penstock.api.context import RequestContext
from penstock.api.names import is_valid_topic_name
from penstock.errors import UnavailableError
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_cluster import DescribeClusterRequest
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsRequestCursor,
    TopicRequest,
)
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse
from penstock.wire.registry import encode_response

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


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


async def test_a_topic_that_cannot_be_made_for_now_is_asked_for_again(logs: FakeLogs) -> None:
    """Its name is held, say; of other errors sarama asks for none again."""
    logs.fail_with = UnavailableError("not yet")
    response = await ask_metadata(logs, 9, "new", "t")
    assert [t.error_code for t in response.topics] == [ErrorCode.LEADER_NOT_AVAILABLE, 0]


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
    def denied(
        _context: RequestContext, _operation: object, _resource: object, names: list[str]
    ) -> frozenset[str]:
        return frozenset(names) & {"t"}

    monkeypatch.setattr(RequestContext, "denied", denied)
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
