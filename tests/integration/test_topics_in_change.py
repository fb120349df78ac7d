"""A slow metadata log: clients that meet a topic while it is made, grown or deleted go on, whoever they are."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import DEADLINE_S, unique

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python uses what newer Pythons will drop
    from kafka import KafkaProducer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kafka")

PLUGINS = Path(__file__).with_name("_plugins")
CLIENTS = 8


@pytest.fixture(params=["slow", pytest.param("slower", marks=pytest.mark.slow)])
def slow(serve: ServeFactory, request: pytest.FixtureRequest) -> Iterator[ServeProcess]:
    """Each entry of its metadata log takes 50 or 700 ms: a topic is made of two of them."""
    broker = serve(
        "object_store.plugin=flaky_store", "topics.partitions=3", arguments=("--plugins-dir", str(PLUGINS))
    )
    control = broker.data_dir / "flaky.control"
    control.write_text(f"{request.param} metadata/")
    yield broker
    control.write_text("ok")


def librdkafka(servers: str, topic: str) -> None:
    """Send one record with librdkafka's defaults; raises what the application is told."""
    told: list[KafkaError | None] = []
    producer = Producer({"bootstrap.servers": servers})
    producer.produce(topic, b"x", on_delivery=lambda error, _: told.append(error))
    assert producer.flush(DEADLINE_S) == 0
    assert told == [None]


def kafka_python(servers: str, topic: str) -> None:
    """The same with kafka-python."""
    producer = KafkaProducer(bootstrap_servers=servers)
    try:
        producer.send(topic, b"x").get(timeout=DEADLINE_S)
    finally:
        producer.close()


def aiokafka(servers: str, topic: str) -> None:
    """The same with aiokafka."""

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            await producer.send_and_wait(topic, b"x")

    asyncio.run(send())


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """The outcome of each, a result or an exception; all begin together."""
    start = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        start.wait(DEADLINE_S)
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - compared
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def code_of(future: Any) -> int:
    """The error code that an admin call ends with."""
    try:
        future.result(DEADLINE_S)
    except KafkaException as error:
        return int(error.args[0].code())
    return 0


@pytest.mark.parametrize("send", [librdkafka, kafka_python, aiokafka])
def test_many_producers_to_a_topic_that_is_not_there_yet(
    slow: ServeProcess, send: Callable[[str, str], None]
) -> None:
    """All create it, one does; none is told that it exists."""
    topic = unique("sudden")
    outcomes = at_once([lambda: send(slow.bootstrap_servers, topic)] * CLIENTS)
    assert outcomes == [None] * CLIENTS


def test_many_make_the_same_topic_and_use_it(slow: ServeProcess) -> None:
    """One makes it; the others are told that it exists, and then it does, with all its partitions."""
    topic = unique("made")

    def make() -> int:
        admin = AdminClient({"bootstrap.servers": slow.bootstrap_servers})
        (future,) = admin.create_topics([NewTopic(topic, 5)]).values()
        assert code_of(future) in {0, KafkaError.TOPIC_ALREADY_EXISTS}
        described = admin.list_topics(topic, timeout=DEADLINE_S).topics[topic]
        assert described.error is None
        assert all(partition.error is None for partition in described.partitions.values())
        return len(described.partitions)

    assert at_once([make] * CLIENTS) == [5] * CLIENTS


def test_a_topic_is_grown_and_deleted_while_it_is_made(slow: ServeProcess) -> None:
    """Each change waits for the one before, and is done."""
    one, other = (AdminClient({"bootstrap.servers": slow.bootstrap_servers}) for _ in range(2))
    topic = unique("restless")
    made = one.create_topics([NewTopic(topic, 1)])[topic]
    grown = other.create_partitions([NewPartitions(topic, 4)])[topic]
    assert code_of(made) == 0
    # 3: it was the first to come
    assert code_of(grown) in {0, KafkaError.UNKNOWN_TOPIC_OR_PART}
    deleted = one.delete_topics([topic])[topic]
    again = other.create_topics([NewTopic(topic, 2)])[topic]
    assert code_of(deleted) == 0
    # 36: it came before the deletion
    assert code_of(again) in {0, KafkaError.TOPIC_ALREADY_EXISTS}
    librdkafka(slow.bootstrap_servers, topic)
