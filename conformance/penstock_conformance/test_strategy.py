"""Clauses about a strategy: a whole broker on a chosen set of plugins, seen by a client that knows none of them."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio

from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._strategy import BrokerProcess, StrategyEnv
from penstock_conformance._strategy_client import Client
from penstock_conformance._strategy_kafka import Acked, Fetched, Records, Writer, compare, in_order

KIND = "strategy"

#: From the smallest body that can be checked to nearly the largest that a broker takes by default.
_SIZES = [28, 100, 1000, 65_536, 900_000]

#: How often it is asked how far a broker is.
_LOOK_S = 0.01


async def test_what_is_produced_is_fetched(env: StrategyEnv) -> None:
    """Every record comes back, byte by byte, at the offset that was acknowledged: small, large, compressed or not."""
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        for codec in ("none", "lz4", "zstd", "gzip"):
            await client.ask(Records.create_topic, codec, 3)
            acked = await client.ask(Records.produce, codec, 1, _SIZES * 4, codec=codec)
            fetched = await client.ask(Records.fetch_all, codec)
            compare(fetched, acked)
            in_order(fetched)


async def test_a_group_goes_on_where_it_committed(env: StrategyEnv) -> None:
    """A member that comes later gets what was not committed, and nothing else."""
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        acked = await client.ask(Records.produce, "topic", 1, [100] * 200)
        first = await client.ask(Records.fetch_in_group, "topic", "group", 80)
        second = await client.ask(Records.fetch_in_group, "topic", "group", 200 - len(first))
        compare([*first, *second], acked)


async def test_an_orderly_restart_keeps_everything(env: StrategyEnv) -> None:
    """What was uploaded at the end of a run is fetched in the next one, offsets go on, and so do groups."""
    env.need_durable()
    acked: dict[int, Acked] = {}
    async with env.broker() as broker, env.client() as client:
        for run in range(3):
            await broker.start()
            if run == 0:
                await client.ask(Records.create_topic, "topic", 2)
            acked |= await client.ask(Records.produce, "topic", 1, [3000] * 50, first=50 * run)
            part = await client.ask(Records.fetch_in_group, "topic", "group", 50)
            assert {record.sequence for record in part} == set(range(50 * run, 50 * run + 50))
            fetched = await client.ask(Records.fetch_all, "topic")
            compare(fetched, acked)
            in_order(fetched)
            await broker.stop()
    await env.verify()


async def test_a_topic_that_is_deleted_takes_nothing_of_its_neighbours(env: StrategyEnv) -> None:
    """What was acknowledged just now for the topics that were made before and behind it is there, warm and cold."""
    env.need_durable()
    acked: dict[str, dict[int, Acked]] = {}

    async def check(client: Client[Records]) -> None:
        for topic, known in acked.items():
            compare(await client.ask(Records.fetch_all, topic), known)

    async with env.broker() as broker, env.client() as client:
        await broker.start()
        for number in range(env.rounds):
            topics = [f"{name}-{number}" for name in ("before", "gone", "behind")]
            for topic in topics:
                await client.ask(Records.create_topic, topic, 2)
            for topic in topics:
                acked[topic] = await client.ask(Records.produce, topic, 1, [300] * 20)
            await client.ask(Records.delete_topic, topics[1])
            del acked[topics[1]]
            await check(client)
        await broker.stop()
        await broker.start()
        await check(client)
        await broker.stop()
    await env.verify()


@clause(level=2)
async def test_producers_and_consumers_beside_each_other(env: StrategyEnv) -> None:
    """Several producers and groups at once: each record once, each producer's in order, each group gets all."""
    count = 300 * env.rounds
    acked: dict[int, dict[int, Acked]] = {}
    read: dict[str, list[Fetched]] = {}

    async def write(owner: int) -> None:
        async with env.client() as client:
            acked[owner] = await client.ask(Records.produce, "topic", owner, [500] * count)

    async def consume(group: str) -> None:
        async with env.client() as client:
            read[group] = await client.ask(Records.fetch_in_group, "topic", group, 3 * count, growing=True)

    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 4)
        async with anyio.create_task_group() as tasks:
            for owner in (1, 2, 3):
                tasks.start_soon(write, owner)
            for group in ("one", "two"):
                tasks.start_soon(consume, group)
        for owner in (1, 2, 3):
            for records in read.values():
                compare(records, acked[owner], owner)


@clause(level=2)
async def test_cold_readers_beside_each_other_get_everything(env: StrategyEnv) -> None:
    """What no cache has yet is read by several at once, whose reads meet on the way to the store."""
    env.need_durable()
    sizes = [env.random.choice((100, 3000, 90_000)) for _ in range(150)]

    async def read(acked: dict[int, Acked]) -> None:
        async with env.client() as client:
            fetched = await client.ask(Records.fetch_all, "topic")
            compare(fetched, acked)
            in_order(fetched)

    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 3)
        acked = await client.ask(Records.produce, "topic", 1, sizes)
        for _ in range(env.rounds):
            await broker.stop()
            await broker.start()
            await broker.change_medium(slow_s=0.03)
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(read, acked)


@clause(level=3)
async def test_acknowledged_records_survive_kills_once_and_in_order(env: StrategyEnv) -> None:
    """Whatever was acknowledged before a SIGKILL is there after it; an idempotent producer goes on over it, and
    what it sends again isn't there twice."""
    env.need_durable()
    sizes = [env.random.choice((28, 300, 5000)) for _ in range(1000)]
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        async with env.writer("topic", 1) as writer:
            await writer.ask(Writer.keep_writing, sizes)
            for _ in range(3 * env.rounds):
                await writer.ask(Writer.wait_for_acks, env.random.randrange(20, 400))
                await broker.kill()
                before = await writer.ask(Writer.acked)
                await broker.start()
                compare(await client.ask(Records.fetch_all, "topic"), before)
            acked = await writer.ask(Writer.rest)
        fetched = await client.ask(Records.fetch_all, "topic")
        compare(fetched, acked)
        in_order(fetched)
        await broker.stop()
    await env.verify()


@clause(level=3)
async def test_committed_offsets_survive_a_kill(env: StrategyEnv) -> None:
    """A group whose commit was acknowledged before a SIGKILL goes on from there."""
    env.need_durable()
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        acked = await client.ask(Records.produce, "topic", 1, [200] * 200)
        first = await client.ask(Records.fetch_in_group, "topic", "group", 100)
        committed = await client.ask(Records.commit_of, "topic", "group", 2)
        await broker.kill()
        await broker.start()
        assert committed == await client.ask(Records.commit_of, "topic", "group", 2)
        second = await client.ask(Records.fetch_in_group, "topic", "group", len(acked) - len(first))
        compare([*first, *second], acked)


@clause(level=3)
async def test_topics_created_before_a_kill_are_there_after_it(env: StrategyEnv) -> None:
    """An acknowledged change of metadata is durable."""
    env.need_durable()
    async with env.broker() as broker, env.client() as client:
        for number in range(5 * env.rounds):
            await broker.start()
            for earlier in range(number):
                assert await client.ask(Records.fetch_all, f"topic-{earlier}") == []
            await client.ask(Records.create_topic, f"topic-{number}", number % 3 + 1)
            await broker.kill()


@clause(level=4)
async def test_a_second_owner_fences_the_first(env: StrategyEnv) -> None:
    """A broker that was stopped (SIGSTOP) and wakes up after another took its place acknowledges nothing any more,
    neither records nor what becomes of topics, and nothing that it acknowledged before is lost; also if its object
    store was away while it fell asleep. Where two can't be at one log, the second is refused."""
    env.need_durable()
    shareable = (await env.look())[0]["shareable"]
    if shareable and not await env.shares("another"):
        not_applicable(
            "another data directory has another object store: try object_store.url=file://{dir}/objects"
        )
    port = env.another_port()
    servers = f"127.0.0.1:{port}"
    async with (
        env.broker() as first,
        env.broker(host="another" if shareable else "broker", port=port) as second,
        env.client() as client,
        env.client(servers) as client_of_second,
    ):
        await first.start()
        await client.ask(Records.create_topic, "topic", 1)
        async with env.writer("topic", 1) as writer:
            await writer.ask(Writer.keep_writing, [300])
            await writer.ask(Writer.wait_for_acks, 100)
            first.pause()
            refusal = await second.try_start()
            if refusal:
                first.resume()
                await writer.ask(Writer.wait_for_acks, 100)
                assert not shareable, f"the log claims to be shareable, and can't be taken over: {refusal}"
                not_applicable(f"the log can't be opened beside its owner: {refusal}")
            acked = await _wake(first, client_of_second, writer)
        await client_of_second.ask(Records.produce, "topic", 2, [300] * 50)
        compare(await client_of_second.ask(Records.fetch_all, "topic"), acked)
        async with env.writer("topic", 3, servers) as writer:
            await writer.ask(Writer.keep_writing, [300])
            await writer.ask(Writer.wait_for_acks, 100)
            await second.change_medium(down=True)
            handed_over = await writer.ask(Writer.handed_over)
            # it falls asleep over a write that failed, or its log needs no store
            while not (  # noqa: ASYNC110 - they don't tell
                await second.refused_writes() or await writer.ask(Writer.was_acked, handed_over)
            ):
                await anyio.sleep(_LOOK_S)
            second.pause()
            await first.start()
            again = await _wake(second, client, writer, owner=3)
        await client.ask(Records.create_topic, "other", 1)
        async with AsyncExitStack() as stack:
            wanted = [("create", "late"), ("delete", "other"), ("configure", "topic")]
            asking = {what: await stack.enter_async_context(env.asking()) for what in wanted}
            first.pause()
            await second.start()
            await client_of_second.ask(Records.produce, "topic", 4, [300] * 50)
            for what in env.random.sample(wanted, len(wanted)):  # the first to be refused ends it
                await asking[what].begin(*what)
            await _has_ended(first)
            for what, each in asking.items():
                granted = await each.was_granted()
                assert not granted, f"the owner before was fenced, and said that it did {' '.join(what)}"
        fetched = await client_of_second.ask(Records.fetch_all, "topic")
        for owner, known in ((1, acked), (3, again)):
            compare(fetched, known, owner)
        await second.stop()
    await env.verify(host="another")


async def _wake(
    sleeper: BrokerProcess, client: Client[Records], writer: Client[Writer], owner: int = 1
) -> dict[int, Acked]:
    """Another broker, which ``client`` asks, has taken the place of one that sleeps, which then wakes up; what that
    had acknowledged to ``writer``."""
    taken = await client.ask(Records.fetch_all, "topic")
    acked = await writer.ask(Writer.acked)
    compare(taken, acked, owner)
    await writer.ask(Writer.note_loss)
    await _has_ended(sleeper)
    await writer.ask(Writer.wait_for_loss)  # what that broker sent before it ended is heard by then
    known = {record.sequence for record in taken if record.owner == owner}
    late = set(await writer.ask(Writer.acked)) - known
    assert not late, f"the owner before acknowledged after it was fenced: sequences={sorted(late)[:5]}"
    return acked


async def _has_ended(sleeper: BrokerProcess) -> None:
    """Who was fenced wakes up, with a store that works, and ends."""
    await sleeper.resume_with(down=False)
    ending = await sleeper.ending()
    assert "FencedError" in ending, f"the owner before ended otherwise: {ending}"


@clause(level=4)
async def test_an_outage_of_the_object_store_loses_nothing(env: StrategyEnv) -> None:
    """While the store is away acknowledgements may wait; when it is back everything is taken, once and in order."""
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        async with env.writer("topic", 1) as writer:
            await writer.ask(Writer.keep_writing, [2000])
            for _ in range(2 * env.rounds):
                await writer.ask(Writer.wait_for_acks, 100)
                await broker.change_medium(down=True)
                await anyio.sleep(0.3 + env.random.random())
                await broker.change_medium(down=False)
            await writer.ask(Writer.wait_for_acks, 100)
            acked = await writer.ask(Writer.rest)
        fetched = await client.ask(Records.fetch_all, "topic")
        compare(fetched, acked)
        in_order(fetched)
        await broker.stop()


@clause(level=4)
async def test_a_kill_during_an_outage_loses_nothing(env: StrategyEnv) -> None:
    """A broker that is killed while the object store is away recovers all that was acknowledged when it is back."""
    env.need_durable()
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        async with env.writer("topic", 1) as writer:
            await writer.ask(Writer.keep_writing, [2000])
            await writer.ask(Writer.wait_for_acks, 200)
            await broker.change_medium(down=True)
            await anyio.sleep(0.3)
            await broker.kill()
            before = await writer.ask(Writer.acked)
            await broker.start()
            compare(await client.ask(Records.fetch_all, "topic"), before)
            acked = await writer.ask(Writer.rest)
        fetched = await client.ask(Records.fetch_all, "topic")
        compare(fetched, acked)
        in_order(fetched)
        await broker.stop()
    await env.verify()


@clause(level=4)
async def test_writes_whose_reply_is_lost_happen_once(env: StrategyEnv) -> None:
    """A store that does what it is told and loses every fifth reply: nothing is lost, doubled or out of order."""
    env.need_durable()
    async with env.broker() as broker, env.client() as client:
        await broker.start(lost_replies=0.2)
        await client.ask(Records.create_topic, "topic", 2)
        acked = await client.ask(Records.produce, "topic", 1, [2000] * 300)
        await broker.stop()
        await broker.start(lost_replies=0.2)
        fetched = await client.ask(Records.fetch_all, "topic")
        compare(fetched, acked)
        in_order(fetched)
        await broker.kill()
    await env.verify()
