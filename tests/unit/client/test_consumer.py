"""Reading from a scripted broker: positions, cut batches, damage, and what is not a record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.client.fake_broker import FakeBroker

from penstock.errors import CorruptError, InvalidRequestError, NotFoundError
from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.fetch import FetchRequest, FetchResponse
from penstock.wire.record_builder import build_batch, build_marker
from penstock_tools.client import ClientSettings, Cluster, Consumer

pytestmark = pytest.mark.anyio


def fill(broker: FakeBroker, partition: int = 0, batches: int = 3, per_batch: int = 4) -> None:
    """Batches of records whose value is their offset."""
    for number in range(batches):
        first = number * per_batch
        records = [(None, b"%d" % (first + index), (), 0) for index in range(per_batch)]
        broker.append("t", partition, build_batch(records))


@asynccontextmanager
async def reading(broker: FakeBroker, positions: dict[tuple[str, int], int]) -> AsyncIterator[Consumer]:
    async with broker.serving():
        client = ClientSettings(bootstrap_servers=broker.address, retry_backoff_s=0.001)
        async with Cluster.open(client) as cluster, Consumer.open(cluster, positions) as consumer:
            yield consumer


async def read_to_end(consumer: Consumer) -> list[tuple[int, int]]:
    """(partition, offset) of every record, until all partitions are at their end."""
    found = []
    async for fetched in consumer:
        found += [(fetched.partition, record.offset) for record in fetched.records()]
        if fetched.is_at_end:
            consumer.stop([(fetched.topic, fetched.partition)])
    return found


async def test_reading_begins_at_the_position_even_inside_a_batch_and_ends_at_the_end() -> None:
    broker = FakeBroker()
    fill(broker)
    async with reading(broker, {("t", 0): 6}) as consumer:
        assert await read_to_end(consumer) == [(0, offset) for offset in range(6, 12)]
        assert consumer.positions == {("t", 0): 12}


async def test_all_partitions_are_read_each_in_order_and_once() -> None:
    broker = FakeBroker({"t": 3})
    for partition in range(3):
        fill(broker, partition, batches=partition + 1)
    async with reading(broker, {("t", partition): 0 for partition in range(3)}) as consumer:
        found = await read_to_end(consumer)
    for partition in range(3):
        assert [offset for number, offset in found if number == partition] == list(range(4 * (partition + 1)))


async def test_a_batch_that_the_size_limit_cut_is_read_by_the_next_poll() -> None:
    broker = FakeBroker()
    fill(broker)

    def cut(request: FetchRequest) -> FetchResponse:
        answer = broker.fetch(request)
        assert isinstance(answer, FetchResponse)
        data = answer.responses[0].partitions[0]
        assert isinstance(data.records, bytes)
        if len(data.records) > 200:
            data.records = data.records[:-30]
        return answer

    broker.override[ApiKey.FETCH] = cut
    async with reading(broker, {("t", 0): 0}) as consumer:
        assert await read_to_end(consumer) == [(0, offset) for offset in range(12)]


async def test_control_records_are_left_out_but_passed() -> None:
    broker = FakeBroker()
    fill(broker, batches=1)
    marker = build_marker(producer_id=5, producer_epoch=0, commit=True, coordinator_epoch=0, timestamp_ms=0)
    broker.append("t", 0, marker)
    async with reading(broker, {("t", 0): 0}) as consumer:
        assert await read_to_end(consumer) == [(0, offset) for offset in range(4)]
        assert consumer.positions == {("t", 0): 5}


async def test_a_damaged_batch_is_an_error_that_names_it() -> None:
    broker = FakeBroker()
    fill(broker)
    log = broker.logs["t", 0]
    log[1] = log[1][:-1] + bytes([log[1][-1] ^ 1])
    async with reading(broker, {("t", 0): 0}) as consumer:
        with pytest.raises(CorruptError, match="checksum: topic=t partition=0 base_offset=4"):
            await read_to_end(consumer)


async def test_an_offset_that_is_not_there_is_said() -> None:
    broker = FakeBroker()
    fill(broker)
    async with reading(broker, {("t", 0): 99}) as consumer:
        with pytest.raises(InvalidRequestError, match=r"no such offset in the partition.*offset=99"):
            await read_to_end(consumer)


async def test_a_topic_that_is_not_there_is_said() -> None:
    async with reading(FakeBroker(), {("other", 0): 0}) as consumer:
        with pytest.raises(NotFoundError, match="topic=other"):
            await read_to_end(consumer)


async def test_a_leader_that_moves_is_looked_up_again() -> None:
    broker = FakeBroker()
    fill(broker)
    refusals = [ErrorCode.NOT_LEADER_OR_FOLLOWER] * 2

    def fetch(request: FetchRequest) -> FetchResponse:
        answer = broker.fetch(request)
        assert isinstance(answer, FetchResponse)
        if refusals:
            data = answer.responses[0].partitions[0]
            data.error_code, data.records = refusals.pop(), b""
        return answer

    broker.override[ApiKey.FETCH] = fetch
    async with reading(broker, {("t", 0): 0}) as consumer:
        assert len(await read_to_end(consumer)) == 12
    assert sum(key == ApiKey.METADATA for key, _, _ in broker.seen) == 3
