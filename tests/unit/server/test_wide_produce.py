"""A Produce of many partitions: in portions, in order, and without a trace when it ends early."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from tests.unit.api.fakes import FakeLogs, make_batch
from tests.unit.server.harness import offsets, produce, serving, until

from penstock.api.produce import PORTION_PARTITIONS
from penstock.wire.api_keys import ApiKey

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
        assert max(steps) <= PORTION_PARTITIONS, "others get their turn in between"
        for at in range(count):
            for charge in logs.at("t", at).charges:
                charge.release()
        assert harness.server.core.handling.used == 0
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
