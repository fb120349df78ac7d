"""Careless and lying producers at a real broker with default settings: Kafka's answers, and consumers get past."""

from __future__ import annotations

import os
import time
from typing import Any

import anyio
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.raw_client import connect, create, produce_request
from tests.patience import HANG_S
from tests.unit.wire.batches import with_body, with_header
from tests.unit.wire.test_validation import MALFORMED

from penstock.wire.api_keys import ApiKey
from penstock.wire.compression import CODEC_NAMES
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.records import CODEC_MASK, build_batch

pytestmark = pytest.mark.anyio

CODECS = range(len(CODEC_NAMES))
WEEK_MS = 7 * 24 * 3_600_000


@pytest.fixture(params=["auto", "off"])
def broker(
    request: pytest.FixtureRequest, serve: ServeFactory, monkeypatch: pytest.MonkeyPatch
) -> ServeProcess:
    """A broker with default settings, with native code (where it was built) and without."""
    mode = "off" if request.param == "off" else os.environ.get("PENSTOCK_NATIVE", "auto")
    monkeypatch.setenv("PENSTOCK_NATIVE", mode)
    return serve()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def answer(client: Any, topic: str, batch: bytes | bytearray) -> Any:
    """The partition's part of the response."""
    response = await client.call(ApiKey.PRODUCE, 9, produce_request(topic, batch))
    return response.responses[0].partition_responses[0]


def consume(broker: ServeProcess, topic: str, count: int) -> list[tuple[int, bytes | None]]:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "g", "check.crcs": True})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[tuple[int, bytes | None]] = []
    deadline = time.monotonic() + HANG_S
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is not None:
            if message.error():
                raise KafkaException(message.error())
            found.append((message.offset(), message.value()))
    consumer.close()
    return found


async def test_malformed_batches_are_refused_with_kafkas_codes_and_consumers_get_past(
    broker: ServeProcess,
) -> None:
    """All kinds, with each codec, small and as large as goes to a thread; KIP-467 names records where Kafka does."""
    async with await connect(broker.bootstrap_servers) as client:
        assert await create(client, "t") == 0
        expected: list[tuple[int, bytes | None]] = []
        for codec in CODECS:
            for case in MALFORMED:
                body: Any = case.values[0]
                count: Any = case.values[1]
                result = await answer(client, "t", with_body(body, count, codec, base_timestamp=now_ms()))
                assert (result.error_code, result.record_errors) == (ErrorCode.INVALID_RECORD, []), (
                    case.id,
                    codec,
                )
            for size in (10, 900_000):
                value = b"text that packs well, "[: size % 22] + b"text that packs well, " * (size // 22)
                times = (now_ms(), now_ms() + 7_200_000, now_ms())
                batch = build_batch([(b"k", value, (), at) for at in times], codec=codec)
                if len(batch) < 1_000_000:
                    result = await answer(client, "t", with_header(batch, max_timestamp=times[0]))
                    assert result.error_code == ErrorCode.INVALID_TIMESTAMP
                    assert [one.batch_index for one in result.record_errors] == [1]
                good = build_batch([(b"k", value, (), times[0])], codec=codec)
                left_over = with_body(
                    b"\x0c\x00\x00\x00\x01\x01\x00" + value, 1, codec, base_timestamp=times[0]
                )
                assert (await answer(client, "t", left_over)).error_code == ErrorCode.INVALID_RECORD
                result = await answer(client, "t", with_header(good, attributes=codec | 0x40))
                assert (result.error_code, result.base_offset) == (0, len(expected))
                expected.append((len(expected), value))
            odd = with_header(build_batch([(None, b"v", (), now_ms())]), attributes=5 + codec % 3)
            assert (await answer(client, "t", odd)).error_code == ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
            assert odd[22] & CODEC_MASK > 4
        with anyio.fail_after(HANG_S):
            assert await anyio.to_thread.run_sync(consume, broker, "t", len(expected)) == expected


@pytest.fixture
def fast_retention(serve: ServeFactory) -> ServeProcess:
    """Default settings, but for passes of retention and uploads, which don't keep us waiting."""
    return serve("stream.retention_interval=100ms", "stream.upload_interval=200ms")


async def test_what_librdkafka_sends_without_timestamps_outlives_retention_and_is_no_time(
    fast_retention: ServeProcess,
) -> None:
    """It writes base -1 and a greatest timestamp of 0: acknowledged, and gone at the next pass, that was."""
    broker = fast_retention
    async with await connect(broker.bootstrap_servers) as client:
        await create(client, "t")
        await create(client, "passes", retention_ms="1000")

        def produce() -> None:
            producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "enable.idempotence": True})
            for number in range(20):
                producer.produce("t", b"%d" % number, timestamp=-1)
            assert producer.flush(HANG_S) == 0

        await anyio.to_thread.run_sync(produce)
        # a pass that deletes what is old elsewhere has looked at these, too
        old = build_batch([(None, b"old", (), now_ms() - 5_000)])
        assert (await answer(client, "passes", old)).error_code == 0
        with anyio.fail_after(HANG_S):
            while (await offset_of(client, "passes", -2))[0] != 1:  # noqa: ASYNC110 - another process
                await anyio.sleep(0.05)
        assert await offset_of(client, "t", -2) == (0, -1)
        assert (await offset_of(client, "t", 0))[0] == -1, "no record has a timestamp at or after 1970"
        assert await offset_of(client, "t", -3) == (0, -1), "the first of those that have none, as in Kafka"
        found = await anyio.to_thread.run_sync(consume, broker, "t", 20)
        assert found == [(number, b"%d" % number) for number in range(20)]


async def offset_of(client: Any, topic: str, timestamp: int) -> tuple[int, int]:
    part = ListOffsetsPartition(partition_index=0, current_leader_epoch=-1, timestamp=timestamp)
    asked = ListOffsetsRequest(
        replica_id=-1, isolation_level=0, topics=[ListOffsetsTopic(name=topic, partitions=[part])]
    )
    response = await client.call(ApiKey.LIST_OFFSETS, 7, asked)
    found = response.topics[0].partitions[0]
    assert found.error_code == 0
    return found.offset, found.timestamp
