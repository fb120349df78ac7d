"""The producer against a broker with KIP-98's rules that refuses, hangs up and loses answers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.patience import HANG_S
from tests.unit.client.fake_broker import SILENCE, FakeBroker

from penstock.errors import ClosedError, InvalidRequestError, NotFoundError, UnavailableError
from penstock.spi.partitioner import PartitionerCapabilities, PartitionLoad
from penstock.wire import ApiKey, ErrorCode
from penstock.wire.records import read_header
from penstock_tools.client import ClientSettings, Cluster, Producer, ProducerSettings

pytestmark = pytest.mark.anyio


class Turns:
    """Partitions in turn; remembers what it is told."""

    def __init__(self) -> None:
        self.capabilities = PartitionerCapabilities(adaptive=True)
        self.chosen: list[tuple[bytes | None, int, int]] = []
        self.loads: list[Mapping[int, PartitionLoad]] = []

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        self.chosen.append((key, size_bytes, partition_count))
        return (len(self.chosen) - 1) % partition_count

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self.loads.append(loads)


@asynccontextmanager
async def producing(
    broker: FakeBroker, partitioner: Turns | None = None, **settings: Any
) -> AsyncIterator[Producer]:
    request_timeout_s = settings.pop("request_timeout_s", HANG_S)
    async with broker.serving():
        client = ClientSettings(
            bootstrap_servers=broker.address,
            retry_backoff_s=0.001,
            retry_backoff_max_s=0.002,
            retry_timeout_s=HANG_S,
            request_timeout_s=request_timeout_s,
        )
        made = ProducerSettings(**{"linger_ms": 0.0, **settings})
        async with (
            Cluster.open(client) as cluster,
            Producer.open(cluster, partitioner or Turns(), made, now_ms=lambda: 1000) as producer,
        ):
            yield producer


async def test_records_arrive_in_order_with_offsets_and_timestamps() -> None:
    broker = FakeBroker()
    async with producing(broker, batch_bytes_max=300) as producer:
        deliveries = [await producer.send("t", b"%d" % index) for index in range(100)]
        assert [await each.wait() for each in deliveries] == list(range(100))
    assert broker.values() == [b"%d" % index for index in range(100)]
    assert read_header(broker.logs["t", 0][0]).base_timestamp == 1000
    assert producer.statistics.records_delivered == 100


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_lost_doubled_or_reordered_whatever_the_broker_does(seed: int) -> None:
    rng = random.Random(seed)
    broker = FakeBroker()
    faults: list[int | str | None] = [
        "lose",
        "drop",
        int(ErrorCode.NOT_LEADER_OR_FOLLOWER),
        int(ErrorCode.KAFKA_STORAGE_ERROR),
        None,
        None,
    ]
    broker.produce_faults = [rng.choice(faults) for _ in range(60)]
    async with producing(broker, batch_bytes_max=200) as producer:
        for index in range(400):
            await producer.send("t", b"%d" % index)
            if rng.random() < 0.05:
                await anyio.lowlevel.checkpoint()
    assert broker.values() == [b"%d" % index for index in range(400)]
    assert producer.first_error is None


async def test_a_refused_batch_fails_alone_and_the_partition_goes_on() -> None:
    broker = FakeBroker()
    broker.produce_faults = [None, int(ErrorCode.MESSAGE_TOO_LARGE)]
    async with producing(broker, batch_bytes_max=100) as producer:
        deliveries = [await producer.send("t", b"x" * 90 + b"%d" % index) for index in range(8)]
        await producer.flush()
        with pytest.raises(InvalidRequestError, match=r"topic=t partition=0.*MESSAGE_TOO_LARGE"):
            await deliveries[1].wait()
        assert await deliveries[7].wait() == 6
    assert [value and value[-1:] for value in broker.values()] == [b"0", b"2", b"3", b"4", b"5", b"6", b"7"]
    assert (producer.statistics.records_failed, producer.statistics.records_delivered) == (1, 7)


async def test_without_idempotence_one_batch_is_on_its_way_and_none_has_a_sequence() -> None:
    broker = FakeBroker()
    broker.produce_faults = [int(ErrorCode.NOT_LEADER_OR_FOLLOWER), None, int(ErrorCode.REQUEST_TIMED_OUT)]
    async with producing(broker, batch_bytes_max=100, idempotent=False) as producer:
        for index in range(6):
            await producer.send("t", b"x" * 90 + b"%d" % index)
    assert [value and value[-1:] for value in broker.values()] == [b"%d" % index for index in range(6)]
    assert {read_header(batch).producer_id for batch in broker.logs["t", 0]} == {-1}
    assert ApiKey.INIT_PRODUCER_ID not in {key for key, _, _ in broker.seen}


async def test_acks_0_waits_for_no_answer() -> None:
    broker = FakeBroker()
    async with producing(broker, acks=0, idempotent=False) as producer:
        assert await (await producer.send("t", b"v")).wait() == -1
        while not broker.values():
            await anyio.lowlevel.checkpoint()
    assert broker.values() == [b"v"]


async def test_the_partitioner_chooses_with_key_and_size_and_hears_of_the_load() -> None:
    broker, turns = FakeBroker({"t": 3}), Turns()
    async with producing(broker, turns) as producer:
        for _ in range(6):
            await producer.send("t", b"12345", key=b"k")
    assert {(key, count) for key, _, count in turns.chosen} == {(b"k", 3)}
    assert all(size > 6 for _, size, _ in turns.chosen)
    assert [len(broker.values("t", partition)) for partition in range(3)] == [2, 2, 2]
    assert turns.loads
    assert turns.loads[-1].keys() <= {0, 1, 2}


async def test_a_given_partition_is_used_and_a_wrong_one_refused() -> None:
    broker, turns = FakeBroker({"t": 2}), Turns()
    async with producing(broker, turns) as producer:
        assert (await producer.send("t", b"v", partition=1)).partition == 1
        with pytest.raises(NotFoundError, match="partition=2 partitions=2"):
            await producer.send("t", b"v", partition=2)
    assert turns.chosen == []


async def test_sending_waits_while_the_buffer_is_full_and_goes_on_when_there_is_room() -> None:
    broker = FakeBroker()
    async with producing(broker, buffered_bytes_max=1000, batch_bytes_max=400, linger_ms=1e6) as producer:
        await producer.send("t", b"first")
        taken = 0
        while producer.send_nowait("t", b"x" * 100) is not None:
            taken += 1
        assert 0 < taken < 12
        with anyio.fail_after(HANG_S):
            await producer.send("t", b"last")
    assert broker.values()[-1] == b"last"
    assert len(broker.values()) == taken + 2


async def test_a_record_is_given_up_after_the_delivery_timeout() -> None:
    broker = FakeBroker()
    broker.override[ApiKey.PRODUCE] = lambda request: SILENCE
    async with producing(broker, delivery_timeout_s=0.05, request_timeout_s=0.02) as producer:
        delivery = await producer.send("t", b"v")
        with pytest.raises(
            UnavailableError, match=r"wasn't acknowledged within 0.05 s, it may be there or not"
        ):
            await delivery.wait()


async def test_a_topic_that_disappears_fails_its_records() -> None:
    broker = FakeBroker()
    async with producing(broker, linger_ms=1e6) as producer:
        delivery = await producer.send("t", b"v")
        del broker.topics["t"]
        broker.produce_faults = [int(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)]
        await producer.flush()
        with pytest.raises(NotFoundError, match="there is no such topic"):
            await delivery.wait()


async def test_an_error_in_the_body_comes_out_as_it_is_and_what_is_left_is_answered() -> None:
    broker = FakeBroker()
    broker.override[ApiKey.PRODUCE] = lambda request: SILENCE
    deliveries = []

    async def fail_while_producing() -> None:
        async with producing(broker) as producer:
            deliveries.append(await producer.send("t", b"v"))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail_while_producing()
    (delivery,) = deliveries
    with pytest.raises(ClosedError):
        await delivery.wait()


async def test_idempotence_without_all_acks_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="acks=all"):
        async with producing(FakeBroker(), acks=1):
            pytest.fail("opened")
