"""Clauses about what a strategy costs and leaves. What is counted is requests and objects, never time."""

from __future__ import annotations

from collections import Counter

import anyio

from penstock_conformance._child import Child
from penstock_conformance._clause import clause
from penstock_conformance._growth import kept_with_each
from penstock_conformance._strategy import BrokerProcess, StrategyEnv, restart
from penstock_conformance._strategy_kafka import Records

KIND = "strategy"

_PARTS = 4
_TIMES = 4
#: An event loop keeps a hundred timers that were cancelled, each with a context.
_TIMERS = ("asyncio.events.TimerHandle", "_contextvars.Context")
_RECORDS = 2000
#: For so long a broker is left alone, of which it has each part: a moment in which it got no processor is no rest.
_IDLE_S = 1.0
_IDLE_PARTS = 20
_IDLE_MAX = 2
_LOOKS = 5


@clause(level=5)
async def test_restarts_leave_nothing_behind(env: StrategyEnv) -> None:
    """Broker after broker in one process: none leaves a descriptor, task, thread or object in memory."""
    env.need_durable()
    arguments = {"port": env.port, "scope": env.scope, "parts": _PARTS + 1, "times": _TIMES}
    async with Child(env, restart, **arguments) as child:
        told = await child.finish()
    for what, counted in zip(("descriptors", "tasks", "threads"), zip(*told, strict=True), strict=False):
        left = counted[-1] - counted[0]
        assert left < _TIMES * _PARTS // 2, f"{_TIMES * _PARTS} restarts left {left} {what} behind"
    grown = kept_with_each([Counter(objects) for *_, objects in told], _TIMES)
    kept = [name for name in grown if name not in _TIMERS]
    assert not kept, f"an object or more stays in memory with each restart: {', '.join(kept)}"


@clause(level=5)
async def test_records_that_come_together_share_requests(env: StrategyEnv) -> None:
    """Thousands of records take a few requests to the object store, and what is idle afterwards comes to rest."""
    async with env.broker() as broker, env.client() as client:
        await broker.start()
        await client.ask(Records.create_topic, "topic", 2)
        before = await broker.change_medium()
        await client.ask(Records.produce, "topic", 1, [1000] * _RECORDS)
        after = await broker.change_medium()
        idle: list[int] = []
        while not idle or (idle[-1] > _IDLE_MAX and len(idle) < _LOOKS):  # uploads may still be on their way
            idle.append(await _made_while_idle(broker))
        await broker.stop()
    assert after - before < _RECORDS // 20, f"{_RECORDS} records took {after - before} requests"
    assert idle[-1] <= _IDLE_MAX, f"it never came to rest: requests in looks of {_IDLE_S:g} s: {idle}"


async def _made_while_idle(broker: BrokerProcess) -> int:
    """How many requests it makes meanwhile."""
    before = now = await broker.change_medium()
    for _ in range(_IDLE_PARTS):
        await anyio.sleep(_IDLE_S / _IDLE_PARTS)
        now = await broker.change_medium()
    return now - before
