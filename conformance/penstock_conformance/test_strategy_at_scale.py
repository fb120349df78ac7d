"""Clauses about a strategy: many at once, much of it, and what comes directly after something else."""

from __future__ import annotations

import anyio

from penstock.limits import ALLOCATOR_BYTES_MIN
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._strategy import StrategyEnv
from penstock_conformance._strategy_kafka import Acked, Records, compare, in_order
from penstock_conformance._strategy_session import Session

KIND = "strategy"

#: More than eight bits count: each gets an entry of the log at once.
_PARTITIONS = 270
_FEW = 6
#: Records that are three times as much as the memory of a broker that has the least.
_LARGE = 900_000
_LARGE_COUNT = 3 * ALLOCATOR_BYTES_MIN // _LARGE
#: Settings of brokers that upload when there is so much, and never as time passes.
_UPLOADS_BY_SIZE: dict[str, str | int] = {"stream.upload_interval": "1h", "stream.upload_bytes": "256KiB"}
_BLOCK_BYTES_MAX = 16 * 2**20
_PIECE = 100_000
#: How often a broker is asked how far it is.
_LOOK_S = 0.01


@clause(level=3)
async def test_what_is_acknowledged_at_once_survives_the_next_moment(env: StrategyEnv) -> None:
    """A broker that dies (SIGKILL) in the very moment of an acknowledgement has kept what it acknowledged: one
    record, hundreds of as many partitions, and a large one among a few. Timers hardly move on until then, so what a
    log puts off by one isn't done yet."""
    env.need_durable()
    acked: dict[int, Acked] = {}
    partitions = min(_PARTITIONS, env.config().tree.topics.partitions_max // 2)
    few = [env.random.choice((300, 3000)) for _ in range(min(_FEW, partitions - 1))]
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", partitions)
        for sizes in ([300], [300] * partitions, [*few, _LARGE]) * env.rounds:
            acked |= await broker.die_acknowledging("topic", 1, sizes, len(acked))
            await broker.start()
            compare(await client.ask(Records.fetch_all, "topic"), acked)
        acked |= await client.ask(Records.produce, "topic", 1, [300] * 2 * partitions, first=len(acked))
        await broker.stop()
        await broker.start()  # and now from objects: what hundreds of partitions had got was uploaded at once
        compare(await client.ask(Records.fetch_all, "topic"), acked)
        await broker.stop()
    await env.verify()


@clause(level=3)
async def test_what_is_acknowledged_during_an_upload_survives_its_end(env: StrategyEnv) -> None:
    """The log is trimmed up to what was uploaded and no further: a broker that dies (SIGKILL) as an upload is over
    has kept what it acknowledged while that was under way."""
    env.need_durable()
    env.defaults.update(_UPLOADS_BY_SIZE)
    block = env.config(with_defaults=True).tree.stream.upload_bytes
    if block > _BLOCK_BYTES_MAX:
        not_applicable(f"uploads begin at stream.upload_bytes={block}, try {_BLOCK_BYTES_MAX} or less")
    async with env.broker() as broker, env.session() as session:
        await broker.start()
        await session.ask(Session.create, "topic", 1, {})
        for count in (1, 3, 8) * env.rounds:
            await session.ask(Session.write, "topic", 0, [300])  # who begins to write may need metadata
            await session.ask(Session.flush)
            await broker.change_medium(full_below=env.uploads())
            await session.ask(Session.write, "topic", 0, [_PIECE] * (block // _PIECE + 1))
            await session.ask(Session.flush)
            while not await broker.refused_writes():  # noqa: ASYNC110 - it doesn't tell
                await anyio.sleep(_LOOK_S)
            for _ in range(count):
                await session.ask(Session.write, "topic", 0, [300])
                await session.ask(Session.flush)
            await broker.die_uploaded(full_below=[])
            await env.verify()  # who reads what is lost may wait for ever
            await broker.start()
            await session.ask(Session.read_all)
        await broker.stop()
    await env.verify()


@clause(level=3)
async def test_what_a_start_recovers_survives_its_end(env: StrategyEnv) -> None:
    """What was recovered is in the log until it is uploaded: starts that die (SIGKILL) before that lose nothing."""
    env.need_durable()
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        acked = await client.ask(Records.produce, "topic", 1, [3000] * 50)
        await broker.kill()
        for _ in range(2 * env.rounds):
            await broker.die_uploading()
        await broker.start()
        fetched = await client.ask(Records.fetch_all, "topic")
        compare(fetched, acked)
        in_order(fetched)
        await broker.stop()
    await env.verify()


async def test_more_than_fits_into_memory_is_kept(env: StrategyEnv) -> None:
    """What caches have to give up is read from objects, and what isn't in objects yet isn't given up: a broker with
    as little memory as it takes is written and read at once, far more than that holds, and read again; and what it
    has by then isn't all in memory."""
    env.defaults["memory.limit"] = str(env.config().tree.memory.reserve + ALLOCATOR_BYTES_MIN)
    acked: dict[int, Acked] = {}
    held: list[int] = []

    async with env.broker() as broker, env.client() as client, env.client() as reader:
        if await broker.try_start():
            env.defaults.clear()  # what the user has set needs more
            await broker.start()
        await client.ask(Records.create_topic, "topic", 4)
        before = broker.resident_bytes()

        async def write() -> None:
            acked.update(await client.ask(Records.produce, "topic", 1, [_LARGE] * _LARGE_COUNT))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            in_order(await reader.ask(Records.fetch_in_group, "topic", "group", _LARGE_COUNT, growing=True))
        for _ in range(2):
            held.append(broker.resident_bytes() - before)
            fetched = await client.ask(Records.fetch_all, "topic")
            compare(fetched, acked)
            in_order(fetched)
        held.append(broker.resident_bytes() - before)
        await broker.stop()
    memory = env.config(with_defaults=True).tree.memory
    limit = memory.limit - memory.reserve
    if max(held) > 2 * limit + _LARGE and (await env.look())[0]["durable"]:
        raise AssertionError(f"memory in use stays under the limit, and grew by {max(held)} bytes: {limit=}")
