"""What a client knows of a cluster, and what it retries."""

from __future__ import annotations

from typing import Any

import pytest
from tests.patience import HANG_S
from tests.unit.client.fake_broker import FakeBroker

from penstock.errors import InvalidRequestError, NotFoundError, UnavailableError
from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.create_topics import CreatableTopicResult, CreateTopicsResponse
from penstock.wire.messages.metadata import MetadataRequest, MetadataResponse
from penstock_tools.client import Admin, ClientSettings, Cluster
from penstock_tools.client.cluster import parse_bootstrap_servers

pytestmark = pytest.mark.anyio


def settings(broker: FakeBroker, **more: Any) -> ClientSettings:
    return ClientSettings(bootstrap_servers=broker.address, retry_backoff_s=0.001, **more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", [("localhost", 9092)]),
        ("a:1, b:2,", [("a", 1), ("b", 2)]),
        ("[::1]:9093", [("::1", 9093)]),
        ("[::1]", [("::1", 9092)]),
    ],
)
def test_bootstrap_servers(text: str, expected: list[tuple[str, int]]) -> None:
    assert parse_bootstrap_servers(text) == expected


@pytest.mark.parametrize("text", ["", " , ", "a:b", "a:0", "a:70000", ":9092"])
def test_bootstrap_servers_that_are_no_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"write it like 127.0.0.1:9092"):
        parse_bootstrap_servers(text)


async def test_a_topic_that_is_not_there_is_said_at_once() -> None:
    async with FakeBroker().serving() as broker, Cluster.open(settings(broker)) as cluster:
        with pytest.raises(NotFoundError, match="there is no such topic: topic=nosuch"):
            await cluster.topics(["nosuch"])
        assert len(broker.seen) == 2


async def test_a_topic_that_is_being_created_is_waited_for() -> None:
    broker = FakeBroker()
    answers = [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, ErrorCode.LEADER_NOT_AVAILABLE]

    def metadata(request: MetadataRequest) -> MetadataResponse:
        answer = broker.metadata(request)
        if answers:
            answer.topics[0].error_code = answers.pop(0)
        return answer

    broker.override[ApiKey.METADATA] = metadata
    async with broker.serving(), Cluster.open(settings(broker)) as cluster:
        (topic,) = await cluster.topics(["t"], create=True)
        assert (topic.name, len(topic.partitions), answers) == ("t", 1, [])


async def test_retries_end_with_the_last_error() -> None:
    broker = FakeBroker()
    broker.override[ApiKey.METADATA] = lambda request: MetadataResponse(
        brokers=broker.metadata(MetadataRequest(topics=[])).brokers,
        topics=[broker.topic_metadata("t", leader=-1)],
    )
    async with broker.serving(), Cluster.open(settings(broker, retry_timeout_s=0.01)) as cluster:
        with pytest.raises(UnavailableError, match="no leader at the moment: topic=t partition=0"):
            await cluster.retry(lambda: cluster.by_leader([("t", 0)]))


async def test_a_lost_connection_is_opened_again_on_use() -> None:
    async with FakeBroker().serving() as broker, Cluster.open(settings(broker)) as cluster:
        connection = await cluster.any_node()
        connection.abort(UnavailableError("cut"))
        await cluster.topics(["t"])
        assert broker.connections == 2


async def test_an_address_that_was_never_reached_is_not_retried() -> None:
    unreachable = ClientSettings(bootstrap_servers="127.0.0.1:1", retry_timeout_s=HANG_S)
    async with Cluster.open(unreachable) as cluster:
        with pytest.raises(UnavailableError, match="no broker listens there"):
            await cluster.topics()


async def test_the_next_bootstrap_server_is_tried() -> None:
    async with FakeBroker().serving() as broker:
        both = ClientSettings(bootstrap_servers=f"127.0.0.1:1,{broker.address}")
        async with Cluster.open(both) as cluster:
            assert [topic.name for topic in await cluster.topics()] == ["t"]
            assert cluster.cluster_id == "fake"


async def test_a_controller_that_moved_is_looked_up_again() -> None:
    broker = FakeBroker()
    broker.versions[ApiKey.CREATE_TOPICS] = (2, 5)
    codes = [ErrorCode.NOT_CONTROLLER, ErrorCode.NONE]
    broker.override[ApiKey.CREATE_TOPICS] = lambda request: CreateTopicsResponse(
        topics=[CreatableTopicResult(name="new", error_code=codes.pop(0), num_partitions=2)]
    )
    async with broker.serving(), Cluster.open(settings(broker)) as cluster:
        assert await Admin(cluster).create_topic("new") == 2
    asked = [key for key, _, _ in broker.seen if key != ApiKey.API_VERSIONS]
    assert asked == [ApiKey.METADATA, ApiKey.CREATE_TOPICS] * 2
