"""Topics with a ``compression.type``: every client writes with every codec, and finds its records in the topic's."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from tests.integration import test_aiokafka, test_confluent, test_kafka_python
from tests.integration.conftest import ServeProcess
from tests.integration.kafka_clients import DEADLINE_S, Row, real_rows, serving
from tests.integration.test_between_clients import write_with_all
from tests.integration.wire import Wire, batch_of, produce_request

from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.produce import ProduceResponse
from penstock.wire.records import iter_batches, iter_records

TYPES = ("uncompressed", "gzip", "snappy", "lz4", "zstd")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kafka")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module."""
    with serving(tmp_path_factory.mktemp("compression")) as broker:
        yield broker


@pytest.fixture
def wire(shared: ServeProcess) -> Iterator[Wire]:
    with Wire(shared) as connection:
        yield connection


def fetched(wire: Wire, topic: str, offset: int, bytes_max: int = 1 << 20) -> memoryview:
    records = wire.fetch(topic, offset, bytes_max=bytes_max).records
    assert isinstance(records, bytes | bytearray | memoryview)
    assert len(records)
    return memoryview(records)


def stored_codecs(wire: Wire, topic: str, count: int) -> set[int]:
    """The codecs of all batches of partition 0."""
    found: set[int] = set()
    offset = 0
    while offset < count:
        for _, header in iter_batches(fetched(wire, topic, offset)):
            found.add(header.codec)
            offset = header.next_offset
    return found


@pytest.mark.parametrize("target", TYPES)
def test_all_clients_write_all_codecs_and_read_the_topics(
    shared: ServeProcess, wire: Wire, log_lines: list[str], target: str
) -> None:
    topic = wire.create(f"all-{target}", configs={"compression.type": target})
    written = write_with_all(shared, topic, real_rows(log_lines, lines=40, rows=20))
    assert stored_codecs(wire, topic, len(written)) == {TYPES.index(target)}
    found = test_confluent.read(shared, topic, len(written))
    assert [test_confluent.as_row(message) for message in found] == written
    if target != "snappy" or test_kafka_python.HAS_SNAPPY:
        records = test_kafka_python.read(shared, topic, len(written))
        assert [test_kafka_python.as_row(record) for record in records] == written
    records = asyncio.run(test_aiokafka.read(shared, topic, len(written)))
    assert [test_aiokafka.as_row(record) for record in records] == written


def test_large_batches_of_many_producers_keep_each_ones_order(shared: ServeProcess, wire: Wire) -> None:
    """Batches of a megabyte go through threads; each producer's records stay in order, none twice, none lost."""
    topic = wire.create("order", configs={"compression.type": "zstd"})
    payload = b"".join(b'{"id": %d, "text": "something"}' % (number * 7919 % 10007) for number in range(600))
    count, producers = 200, 4

    def write(number: int) -> None:
        producer = Producer(
            {"bootstrap.servers": shared.bootstrap_servers, "enable.idempotence": True, "linger.ms": 20}
        )
        for at in range(count):
            producer.produce(topic, key=b"%d" % number, value=b"%d " % at + payload)
        assert producer.flush(DEADLINE_S) == 0

    threads = [threading.Thread(target=write, args=(number,)) for number in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    seen: dict[bytes, list[int]] = {}
    for message in test_confluent.read(shared, topic, count * producers):
        value, key = message.value(), message.key()
        assert value is not None
        assert key is not None
        assert value.endswith(payload)
        seen.setdefault(key, []).append(int(value.split(b" ", 1)[0]))
    assert seen == {b"%d" % number: list(range(count)) for number in range(producers)}


def test_pipelined_requests_of_one_connection_are_appended_in_their_order(wire: Wire) -> None:
    topic = wire.create("pipeline", configs={"compression.type": "gzip"})
    values = [bytes([65 + at]) * (200_000 if at % 2 == 0 else 50) for at in range(10)]
    numbers = [wire.send(ApiKey.PRODUCE, 9, produce_request(topic, batch_of([value]))) for value in values]
    for at, number in enumerate(numbers):
        answer = wire.receive(ApiKey.PRODUCE, 9, number)
        assert isinstance(answer, ProduceResponse)
        (result,) = answer.responses[0].partition_responses
        assert (result.error_code, result.base_offset) == (0, at)
    found = [
        bytes(record.value or b"") for at in range(10) for record in iter_records(fetched(wire, topic, at, 1))
    ]
    assert found == values


def test_a_type_that_is_altered_holds_for_what_comes_later(shared: ServeProcess, wire: Wire) -> None:
    admin = AdminClient({"bootstrap.servers": shared.bootstrap_servers})
    topic = wire.create("altered")
    rows = [Row(None, b"text " * 100, (), 1_700_000_000_000)]
    test_confluent.produce(shared, topic, rows, compression_type="lz4")

    def alter(*changes: tuple[str, str | None]) -> None:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        for name, value in changes:
            operation = AlterConfigOpType.SET if value is not None else AlterConfigOpType.DELETE
            resource.add_incremental_config(ConfigEntry(name, value, incremental_operation=operation))
        (future,) = admin.incremental_alter_configs([resource]).values()
        future.result(DEADLINE_S)

    alter(("compression.type", "gzip"), ("compression.gzip.level", "9"))
    test_confluent.produce(shared, topic, rows, compression_type="lz4")
    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    entries = future.result(DEADLINE_S)
    assert entries["compression.type"].value == "gzip"
    assert entries["compression.gzip.level"].value == "9"
    assert (entries["compression.zstd.level"].value, entries["compression.lz4.level"].value) == ("3", "9")
    alter(("compression.type", None))
    test_confluent.produce(shared, topic, rows, compression_type="zstd")
    codecs = [header.codec for at in range(3) for _, header in iter_batches(fetched(wire, topic, at, 1))]
    assert codecs == [3, 1, 4]
    for name, value in (("compression.type", "brotli"), ("compression.gzip.level", "0")):
        with pytest.raises(KafkaException) as refused:
            alter((name, value))
        assert refused.value.args[0].code() == KafkaError.INVALID_CONFIG


def test_what_does_not_fit_uncompressed_is_refused_and_told(wire: Wire) -> None:
    topic = wire.create("fits", configs={"compression.type": "uncompressed", "max.message.bytes": "100000"})
    squeezed = batch_of([b"x" * 200_000], codec=1)
    assert len(squeezed) < 1000
    assert wire.produce(topic, squeezed).error_code == ErrorCode.MESSAGE_TOO_LARGE
    damaged = batch_of([os.urandom(50_000)], codec=0)
    assert wire.produce(topic, damaged).error_code == 0


def test_the_brokers_default_holds_for_topics_that_say_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with (
        serving(tmp_path_factory.mktemp("default"), "topics.compression_type=lz4") as broker,
        Wire(broker) as wire,
    ):
        topic, own = wire.create("plain"), wire.create("own", configs={"compression.type": "producer"})
        for name in (topic, own):
            assert wire.produce(name, batch_of([b"text " * 100], codec=1)).error_code == 0
        assert stored_codecs(wire, topic, 1) == {3}
        assert stored_codecs(wire, own, 1) == {1}
        with closing(
            test_confluent.consumer_of(broker)
        ) as consumer:  # groups write to their own topic as ever
            consumer.subscribe([topic])
            (message,) = test_confluent.take(consumer, 1)
            consumer.commit(message=message, asynchronous=False)
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        resource = ConfigResource(ResourceType.TOPIC, topic)
        entry = admin.describe_configs([resource])[resource].result(DEADLINE_S)["compression.type"]
        assert (entry.value, entry.source) == ("lz4", 4)
