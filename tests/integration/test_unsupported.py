"""What isn't there ends a client's attempt with its first request, not when its patience is over."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable
from contextlib import closing

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TransactionalIdAuthorizationFailed
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from tests.fuzz.run import statistics
from tests.integration.conftest import ServeProcess
from tests.integration.kafka_clients import DEADLINE_S

from penstock.wire.api_keys import ApiKey

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python uses what newer Pythons will drop
    from kafka import KafkaProducer
    from kafka.errors import TransactionalIdAuthorizationFailedError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kafka")


def requests(broker: ServeProcess, api_key: ApiKey) -> int:
    """How many requests of one kind the broker has seen."""
    seen: dict[str, int] = statistics(broker)["server"]["requests_by_api"]
    return seen.get(str(int(api_key)), 0)


def librdkafka_transaction(servers: str) -> None:
    """As an application begins; by default it would wait for ever."""
    producer = Producer({"bootstrap.servers": servers, "transactional.id": "any", "log_level": 0})
    with pytest.raises(KafkaException) as caught:
        producer.init_transactions(DEADLINE_S)
    error = caught.value.args[0]
    assert error.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    assert error.fatal()


def kafka_python_transaction(servers: str) -> None:
    """The same."""
    with closing(KafkaProducer(bootstrap_servers=servers, transactional_id="any")) as producer:
        with pytest.raises(TransactionalIdAuthorizationFailedError):
            producer.init_transactions()


def aiokafka_transaction(servers: str) -> None:
    """The same."""

    async def begin() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=servers, transactional_id="any")
        try:
            with pytest.raises(TransactionalIdAuthorizationFailed):
                await producer.start()
        finally:
            await producer.stop()

    asyncio.run(begin())


@pytest.mark.parametrize("begin", [librdkafka_transaction, kafka_python_transaction, aiokafka_transaction])
def test_a_transaction_is_refused_with_one_request(
    broker: ServeProcess, begin: Callable[[str], None]
) -> None:
    """And the log says once why."""
    begin(broker.bootstrap_servers)
    assert requests(broker, ApiKey.INIT_PRODUCER_ID) == 1
    broker.wait_for_output("a producer with a transactional id was refused")


def test_the_new_group_protocol_is_refused_with_one_request(broker: ServeProcess) -> None:
    """Librdkafka, which waits for ever where the API isn't advertised."""
    settings = {
        "bootstrap.servers": broker.bootstrap_servers,
        "group.id": "new",
        "group.protocol": "consumer",
        "log_level": 0,
    }
    with closing(Consumer(settings)) as consumer:
        consumer.subscribe(["any"])
        deadline = time.monotonic() + DEADLINE_S
        message = None
        while message is None and time.monotonic() < deadline:
            message = consumer.poll(0.5)
    assert message is not None, "told nothing"
    assert message.error().code() == KafkaError._FATAL
    assert "API version not supported" in message.error().str()
    assert requests(broker, ApiKey.CONSUMER_GROUP_HEARTBEAT) == 1
