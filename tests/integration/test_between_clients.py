"""What holds between clients: each reads what the others wrote, and finds what they committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.integration import test_aiokafka, test_confluent, test_kafka_python
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import CODECS, Row, real_rows, serving, unique
from tests.integration.wire import TIME_MS, Wire, list_offsets, values_in

from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.list_offsets import ListOffsetsPartition
from penstock.wire.record_builder import build_batch


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("between")) as broker:
        yield broker


def write_with_all(broker: ServeProcess, topic: str, rows: list[Row]) -> list[Row]:
    """Each client writes all rows with each of its codecs; what must be in the one partition, in order."""
    written: list[Row] = []
    for codec in CODECS:
        name = None if codec == "none" else codec
        test_confluent.produce(broker, topic, rows, compression_type=codec, linger_ms=100)
        written += rows
        if codec != "snappy" or test_kafka_python.HAS_SNAPPY:
            test_kafka_python.produce(broker, topic, rows, compression_type=name, linger_ms=100)
            written += rows
        asyncio.run(
            test_aiokafka.produce(broker, topic, rows, compression_type=name, enable_idempotence=True)
        )
        written += rows
    return written


def check_with_all(broker: ServeProcess, topic: str, written: list[Row]) -> None:
    """Each client reads the same, and finds the same place in time."""
    found = test_confluent.read(broker, topic, len(written))
    assert [test_confluent.as_row(message) for message in found] == written
    records = test_kafka_python.read(broker, topic, len(written))
    assert [test_kafka_python.as_row(record) for record in records] == written
    records = asyncio.run(test_aiokafka.read(broker, topic, len(written)))
    assert [test_aiokafka.as_row(record) for record in records] == written
    assert [record.offset for record in records] == list(range(len(written)))


def test_each_client_reads_what_the_others_wrote(serve: ServeFactory, log_lines: list[str]) -> None:
    """From memory, from the WAL after a kill, and from the object store after a clean stop."""
    broker = serve()
    topic = unique("babel")
    written = write_with_all(broker, topic, real_rows(log_lines, lines=60, rows=30))
    check_with_all(broker, topic, written)
    broker.kill()
    broker.start()
    check_with_all(broker, topic, written)
    assert broker.terminate() == 0
    broker.start()
    check_with_all(broker, topic, written)


def test_committed_offsets_are_the_same_for_all_clients(shared: ServeProcess) -> None:
    """A group that one client's consumer left is taken over by the next client's."""
    topic, group = unique("relay"), unique("relay")
    test_confluent.produce(shared, topic, [test_confluent.text(number) for number in range(30)])
    with closing(test_confluent.consumer_of(shared, group, enable_auto_commit=False)) as consumer:
        consumer.subscribe([topic])
        messages = test_confluent.take(consumer, 10)
        consumer.commit(message=messages[-1], asynchronous=False)
        assert [message.offset() for message in messages] == list(range(10))
    with closing(test_kafka_python.consumer_of(shared, group, enable_auto_commit=False)) as consumer:
        consumer.subscribe([topic])
        records = test_kafka_python.take(consumer, 10)
        consumer.commit()
        assert [record.offset for record in records] == list(range(10, 20))

    async def finish() -> None:
        settings = {"group_id": group, "enable_auto_commit": False}
        async with test_aiokafka.consumer_of(shared, topic, **settings) as consumer:
            records = await test_aiokafka.take(consumer, 10)
            assert [record.offset for record in records] == list(range(20, 30))

    asyncio.run(finish())


def test_what_holds_in_memory_holds_in_the_object_store(serve: ServeFactory) -> None:
    """Middle of a batch, limits, times and log start of data that only objects have, a batch cut by the log start."""
    broker = serve()
    with Wire(broker) as wire:
        topic = wire.create("cold")
        for start in range(0, 50, 10):
            times = [TIME_MS + 100 * start + 10 * at for at in range(10)]
            records = [(None, b"%d" % (start + at), (), time_ms) for at, time_ms in enumerate(times)]
            assert wire.produce(topic, build_batch(records, codec=start // 10)).base_offset == start
    assert broker.terminate() == 0
    broker.start()
    with Wire(broker) as wire:
        assert [offset for offset, _ in values_in(wire.fetch(topic, 13))] == list(range(10, 50))
        assert values_in(wire.fetch(topic, 49, bytes_max=1)) == [(at, b"%d" % at) for at in range(40, 50)]
        assert wire.fetch(topic, 51).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        for asked_ms, expected in ((0, 0), (1, 1), (1011, 12), (4090, 49), (4091, -1), (95, 10)):
            asked = ListOffsetsPartition(partition_index=0, timestamp=TIME_MS + asked_ms)
            (found,) = list_offsets(wire, topic, [asked])
            assert (found.error_code, found.offset) == (0, expected), asked_ms
        (found,) = list_offsets(wire, topic, [ListOffsetsPartition(partition_index=0, timestamp=-3)])
        assert (found.offset, found.timestamp) == (49, TIME_MS + 4090)
        trim = DeleteRecordsTopic(
            name=topic, partitions=[DeleteRecordsPartition(partition_index=0, offset=25)]
        )
        request = DeleteRecordsRequest(topics=[trim], timeout_ms=30_000)
        (answer,) = wire.ask(ApiKey.DELETE_RECORDS, 2, request).topics
        assert (answer.partitions[0].error_code, answer.partitions[0].low_watermark) == (0, 25)
    broker.kill()
    broker.start()
    with Wire(broker) as wire:
        assert wire.fetch(topic, 24).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        data = wire.fetch(topic, 25)
        assert data.log_start_offset == 25
        assert [offset for offset, _ in values_in(data)] == list(range(20, 50)), (
            "the whole batch that holds 25"
        )
        for timestamp, expected in ((-2, 25), (TIME_MS, 25), (TIME_MS + 2061, 27)):
            asked = ListOffsetsPartition(partition_index=0, timestamp=timestamp)
            (found,) = list_offsets(wire, topic, [asked])
            assert found.offset == expected
