"""A Produce of many partitions: in portions, in order, and without a trace when it ends early."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from tests.unit.api.fakes import FakeLogs, make_batch
from tests.unit.server.harness import offsets, produce, serving, until

from penstock.api.produce import PORTION_PARTITIONS, CheckedRequest, ProduceCall
from penstock.server.connection import Connection
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData

pytestmark = pytest.mark.anyio

PRODUCE = ApiKey.PRODUCE


@pytest.fixture(params=["asyncio", "asyncio+uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "asyncio+uvloop"}


@pytest.mark.parametrize("size", [1, 1_000], ids=["in the shared buffer", "in memory of its own"])
async def test_a_produce_to_many_partitions_goes_to_the_log_in_portions(size: int) -> None:
    count = 3 * PORTION_PARTITIONS + 1
    logs = FakeLogs()
    logs.add("t", count)
    handed: list[int] = []
    async with serving(logs) as harness, await harness.connect() as client:

        def look() -> None:
            handed.append(sum(bool(logs.at("t", at).batches) for at in range(count)))
            if handed[-1] < count:
                harness.server.core.call_soon(look)

        await client.send(PRODUCE, 9, produce(*[make_batch(1, b"x" * size)] * count))
        await client.send(PRODUCE, 9, produce(make_batch()))
        harness.server.core.call_soon(look)
        assert offsets(await client.receive()) == [(0, 0)] * count
        assert offsets(await client.receive()) == [(0, 1)], "what comes behind it stays behind it"
        steps = [after - before for before, after in pairwise(handed)]
        assert max(steps) <= 16, "others get their turn in between"
        for at in range(count):
            for charge in logs.at("t", at).charges:
                charge.release()
        assert harness.server.core.handling.used == 0
        assert harness.allocator.used == 0


async def test_a_produce_to_many_partitions_that_wants_no_answer_leaves_nothing() -> None:
    """Alone in its pipeline, it left that at once, and what it held stayed taken."""
    count = PORTION_PARTITIONS + 1
    logs = FakeLogs()
    logs.add("t", count)
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        core = harness.server.core
        (connection,) = harness.server.connections
        await client.send(PRODUCE, 9, produce(*[make_batch()] * count, acks=0), answered=False)
        await until(lambda: bool(logs.at("t", count - 1).batches) and not connection.is_for_itself)
        assert core.handling.used
        for at in range(count):
            logs.at("t", at).commit()
        await until(lambda: not core.handling.used)
        for at in range(count):
            for charge in logs.at("t", at).charges:
                charge.release()
        assert harness.allocator.used == 0


async def test_a_produce_to_many_partitions_is_refused_as_a_whole_where_it_is_malformed() -> None:
    async with serving() as harness:
        frame = b""
        async with await harness.connect() as client:
            frame = client.frame(PRODUCE, 9, produce(*[make_batch(1, b"x" * 1_000)] * 100), answered=False)
            await client.send_raw(struct.pack(">i", len(frame) - 104) + frame[4:-100])
            assert await client.ends()
        await until(lambda: harness.server.statistics().connections == 0)
        await until(lambda: harness.allocator.used == 0)


async def test_a_connection_lost_while_its_wide_produce_waits_for_room_leaves_nothing() -> None:
    logs = FakeLogs()
    logs.add("wide", 300)
    logs.room = 100
    async with serving(logs) as harness:
        async with await harness.connect() as client:
            await client.send(PRODUCE, 9, produce(*[make_batch(1, b"x" * 500)] * 300, topic="wide"))
            await until(lambda: harness.server.statistics().waiting_for_room == 1)
        await until(lambda: harness.server.statistics().connections == 0)
        await until(lambda: harness.server.statistics().waiting_for_room == 0)
        for at in range(300):
            for charge in logs.at("wide", at).charges:
                charge.release()
        assert harness.allocator.used == 0


@pytest.mark.parametrize("acks", [-1, 0])
async def test_a_produce_to_many_partitions_waits_for_memory_no_longer_than_its_client(acks: int) -> None:
    count = 2 * PORTION_PARTITIONS
    logs = FakeLogs()
    logs.add("t", count)
    async with serving(logs, memory_bytes=1 << 16) as harness, await harness.connect() as client:
        full = harness.allocator.allocate_nowait(1 << 16, "network")
        wide = produce(*[make_batch()] * count, acks=acks, timeout_ms=20)
        await client.send(PRODUCE, 9, wide, answered=acks != 0)
        if acks:
            assert offsets(await client.receive()) == [(ErrorCode.NOT_ENOUGH_REPLICAS, -1)] * count
            full.release()
            assert offsets(await client.call(PRODUCE, 9, produce(make_batch()))) == [(0, 0)]
        else:
            assert await client.ends()
            full.release()
        for charge in logs.at("t").charges:
            charge.release()
        await until(lambda: harness.server.core.handling.used == 0)
        await until(lambda: harness.allocator.used == 0)
        assert harness.server.statistics().waiting_for_room == 0


async def test_a_produce_to_many_partitions_that_waits_for_no_time_is_taken_where_there_is_room() -> None:
    count = PORTION_PARTITIONS + 1
    logs = FakeLogs()
    logs.add("t", count)
    async with serving(logs) as harness, await harness.connect() as client:
        response = await client.call(PRODUCE, 9, produce(*[make_batch()] * count, timeout_ms=0))
        assert offsets(response) == [(0, 0)] * count


async def test_a_connection_lost_while_its_wide_produce_is_given_memory_leaves_nothing() -> None:
    """Both happen before the task goes on, so it isn't cancelled where it waited."""
    logs = FakeLogs()
    logs.add("t", 100)
    async with serving(logs, memory_bytes=1 << 16) as harness, await harness.connect() as client:
        full = harness.allocator.allocate_nowait(1 << 16, "network")
        await client.send(PRODUCE, 9, produce(*[make_batch()] * 100))
        await until(lambda: bool(harness.allocator._waiters))
        full.release()
        (channel,) = [one.channel for one in harness.server.connections if isinstance(one, Connection)]
        channel.abort()
        channel.lose()
        await until(lambda: not harness.allocator._waiters)
        await until(lambda: harness.allocator.used == 0)
        assert harness.server.core.handling.used == 0
        assert harness.server.core.handler_errors == 0


async def test_a_wide_produce_that_waits_while_the_one_before_it_is_answered_has_its_turn() -> None:
    logs = FakeLogs()
    for name in ("t", "u"):
        logs.add(name, 400)
    logs.durable_at_once = False
    async with (
        serving(logs, receive_bytes_max=500_000) as harness,
        await harness.connect() as client,
        await harness.connect() as other,
    ):
        handling = harness.server.core.handling
        for one, name in ((other, "u"), (client, "t")):
            await one.send(PRODUCE, 9, produce(*[make_batch()] * 100, topic=name))
            await until(lambda name=name: bool(logs.at(name, 99).batches))
        await client.send(PRODUCE, 9, produce(*[make_batch()] * 400))
        await until(lambda: handling.waiting == 1)
        logs.durable_at_once = True
        for name, one in (("t", client), ("u", other)):
            for at in range(100):
                logs.at(name, at).commit()
            assert offsets(await one.receive()) == [(0, 0)] * 100
        assert offsets(await client.receive()) == [(0, 1)] * 100 + [(0, 0)] * 300
        await until(lambda: handling.used == 0)
        assert harness.server.core.handler_errors == 0


async def test_a_wide_produce_is_counted_by_its_partitions() -> None:
    """By what its bytes allow it was ten times as much, which caches, and then other producers, made room for."""
    logs = FakeLogs()
    logs.add("t", 400)
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(PRODUCE, 9, produce(*[make_batch(10, bytes(100))] * 400))
        await until(lambda: bool(logs.at("t", 399).batches))
        assert harness.server.core.handling.used == 401 * 640
        for at in range(400):
            logs.at("t", at).commit()
        assert offsets(await client.receive()) == [(0, 0)] * 400
        await until(lambda: harness.server.core.handling.used == 0)


async def test_answers_of_several_wide_produces_dont_wait_for_room_one_beside_the_other() -> None:
    """A client waits for one thing at a time: the second to wait was taken for a bug, and ended the connection."""
    count = 600
    logs = FakeLogs()
    logs.add("t", count)
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        memory = logs.fetch_memory
        memory.take(memory.join("another address", None), memory.limit)
        for number in range(2):
            await client.send(PRODUCE, 9, produce(*[make_batch()] * count))
            await until(lambda number=number: len(logs.at("t", count - 1).batches) > number)
        for at in range(count):
            logs.at("t", at).commit()
        for number in range(2):
            assert offsets(await client.receive()) == [(0, number)] * count
        assert harness.server.core.handler_errors == 0


async def test_a_produce_to_many_topics_takes_a_step_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each portion began at the first topic: 49,000 unknown ones took seconds of the loop, and then were too late."""
    steps: Counter[str] = Counter()

    class Topics(list[TopicProduceData]):
        def __iter__(self) -> Iterator[TopicProduceData]:
            for one in super().__iter__():
                steps["topics"] += 1
                yield one

        def __getitem__(self, at: Any) -> Any:
            steps["topics"] += 1
            return super().__getitem__(at)

    topics = Topics(
        TopicProduceData(name=f"t{number}", partition_data=[PartitionProduceData()])
        for number in range(1_000)
    )

    def check(request: ProduceRequest, version: int) -> CheckedRequest:
        return CheckedRequest(msgspec.structs.replace(request, topic_data=topics), None)

    monkeypatch.setattr("penstock.server.wide_produce.check_request", check)
    async with serving() as harness, await harness.connect() as client:
        response = await client.call(PRODUCE, 9, produce(*[make_batch()] * (PORTION_PARTITIONS + 1)))
        assert len(response.responses) == len(topics)
    assert steps["topics"] < 6 * len(topics)


async def test_a_produce_to_many_partitions_that_is_too_late_is_refused_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 5 * PORTION_PARTITIONS
    logs = FakeLogs()
    logs.add("t", count)
    logs.room = 0
    monkeypatch.setattr("penstock.server.waiting._WORK_WAIT_MS_MIN", 20)
    turn, refused = 0, Counter[int]()
    refuse = ProduceCall._refuse

    def counted(*args: Any) -> None:
        refused[turn] += 1
        refuse(*args)

    monkeypatch.setattr(ProduceCall, "_refuse", counted)
    async with serving(logs) as harness, await harness.connect() as client:

        def look() -> None:
            nonlocal turn
            turn += 1
            harness.server.core.call_later(0, look)

        look()
        response = await client.call(PRODUCE, 9, produce(*[make_batch()] * count, timeout_ms=20))
        assert offsets(response) == [(ErrorCode.NOT_ENOUGH_REPLICAS, -1)] * count
        await until(lambda: harness.allocator.used == 0)
    assert refused.total() == count
    assert max(refused.values()) <= 2 * 16
