"""Clauses about a strategy whose object store is wrong at a chosen request: that fails, or later ones overtake it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import anyio

from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._pace import Pace
from penstock_conformance._strategy import BrokerProcess, StrategyEnv
from penstock_conformance._strategy_client import Client
from penstock_conformance._strategy_kafka import Records
from penstock_conformance._strategy_life import QUICK
from penstock_conformance._strategy_session import Session

KIND = "strategy"

#: The first requests of a start, with which a broker learns what there is: each of them fails once.
_FIRST = 12
#: So many of those behind them do.
_LATER = 4
#: How often a broker is asked how far it is.
_LOOK_S = 0.01
#: So many ask for topics at once: while an entry is written, the commands of the next one come.
_AT_ONCE = 4
_ENTRIES_MAX = 100


@clause(level=4)
async def test_what_the_store_refuses_is_not_acknowledged(env: StrategyEnv) -> None:
    """Topics that are made, changed, written and deleted while the object store takes no writes: what the broker says
    that it did is there after its death (SIGKILL), whether it said so while the store was full or when it no longer
    was."""
    env.need_durable()
    async with env.broker() as broker, env.session() as session:
        await broker.start()
        for number in range(env.rounds):
            topic, other = f"topic-{number}", f"other-{number}"
            await _ask_in_vain(broker, session, Session.create, topic, 1, {})
            await _ask_in_vain(broker, session, Session.configure, topic, "delete.retention.ms", "7200000")
            await session.ask(Session.write, topic, 0, [300])  # who begins to write may need metadata
            await session.ask(Session.flush)
            await _ask_in_vain(broker, session, Session.write_and_flush, topic, 0, [300])
            await _ask_in_vain(broker, session, Session.add_partitions, topic)
            await _ask_in_vain(broker, session, Session.create, other, 2, {})
            await _ask_in_vain(broker, session, Session.delete, other)
        await broker.stop()
    await env.verify()


async def _ask_in_vain(
    broker: BrokerProcess, session: Client[Session], method: Callable[..., None], *arguments: Any
) -> None:
    """Ask for something while the store is full, until it has refused a write; kill the broker as it answers."""
    await broker.change_medium(full=True)
    answered = anyio.Event()

    async def ask() -> None:
        await session.ask(method, *arguments)
        answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await broker.feel_refusals(answered.is_set)  # who keeps metadata elsewhere isn't refused anything
        await broker.change_medium(full=False)
    await broker.kill()
    await broker.start()
    await session.ask(Session.look_at_topics)
    await session.ask(Session.read_all)


@clause(level=4)
async def test_a_start_one_request_of_which_fails_loses_nothing(env: StrategyEnv) -> None:
    """Start after start of a broker that was killed, in each of which another request to the object store fails: it
    goes on over that, or says that the store was unavailable; nothing that it couldn't read is taken for lost."""
    env.need_durable()
    async with env.broker() as broker, env.session() as session:
        with env.steps.told():
            await broker.start()
            await session.ask(Session.create, "topic", 2, {})
            await _look_and_write(session)
            runs, requests = True, 0
            for _ in range(env.rounds):
                later = range(_FIRST + 1, max(requests, _FIRST + _LATER) + 1)
                pace = Pace(env.target.deadline_s / 2, _FIRST + _LATER)
                for failing_at in (*range(1, _FIRST + 1), *sorted(env.random.sample(later, _LATER))):
                    env.steps.note(f"kill and start, request {failing_at} fails")
                    if runs:
                        await broker.kill()
                    refusal = await broker.try_start(failing_at=failing_at)
                    assert not refusal or "UnavailableError" in refusal, (
                        f"the broker doesn't start: {refusal}"
                    )
                    runs = not refusal
                    if runs:
                        requests = await broker.change_medium()
                        await _look_and_write(session)
                    pace.step()
                    if pace.is_over:
                        break
            if not runs:
                await broker.start()
            await _look_and_write(session)
            await broker.stop()
    await env.verify()


async def _look_and_write(session: Client[Session]) -> None:
    """Compare what there is, and write what the next start has to recover."""
    await session.ask(Session.look_at_topics)
    await session.ask(Session.read_all)
    await session.ask(Session.write_and_flush, "topic", 0, [300])


@clause(level=3)
async def test_what_is_written_during_a_snapshot_of_metadata_survives_it(env: StrategyEnv) -> None:
    """Topics that are made one after another, in a store in which whatever is under way is overtaken: entries of
    metadata land while a snapshot does, and are there when the broker dies (SIGKILL) behind it."""
    env.need_durable()
    env.defaults.update(QUICK)
    entries = env.config(with_defaults=True).tree.stream.metadata_snapshot_entries
    if entries > _ENTRIES_MAX:
        not_applicable(
            f"snapshots are written after stream.metadata_snapshot_entries={entries}, try {_ENTRIES_MAX} or less"
        )
    made: list[str] = []
    async with env.broker() as broker, env.client() as client:
        for number in range(env.rounds):
            await broker.start()
            over = anyio.Event()
            await broker.change_medium(overtaken=True)

            async def make(name: str, over: anyio.Event = over) -> None:
                async with env.asking() as asking:
                    for count in itertools.count():
                        await asking.begin("create", f"{name}-{count}")
                        assert await asking.was_granted(), f"a topic isn't made: {name}-{count}"
                        made.append(f"{name}-{count}")
                        if over.is_set():
                            break

            async with anyio.create_task_group() as tasks:
                for maker in range(_AT_ONCE):
                    tasks.start_soon(make, f"topic-{number}-{maker}")
                while not await broker.has_snapshot():  # noqa: ASYNC110 - it doesn't tell
                    await anyio.sleep(_LOOK_S)
                over.set()
            await broker.kill()
            await broker.start()
            for topic in made:
                assert await client.ask(Records.fetch_all, topic) == []
            await broker.stop()
    await env.verify()
