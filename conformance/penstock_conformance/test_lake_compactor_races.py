"""Clauses of ``penstock.spi.lake`` about another owner who comes at each step of what is under way."""

from __future__ import annotations

import threading
from contextlib import suppress

import anyio

from penstock.errors import ConflictError, FencedError, UnavailableError
from penstock.spi.lake import LakeTopic
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env
from penstock_conformance._lake import check_table, made, spec_of, topic_of

KIND = "lake_compactor"

#: A newer owner that isn't done by then waits for a lock, which goes with the step.
_LOCKED_S = 0.1


@clause(level=2, claims="maintains")
async def test_a_newer_owner_may_come_during_maintenance(env: Env) -> None:
    """Whoever claims the table and commits at a step of another's maintenance finds all, and loses nothing."""
    watch = spec_of(env).watch
    if watch is None:
        not_applicable("the plugin doesn't tell its steps")
    topic = topic_of(env)
    told: list[int] = []
    async with env.open() as compactor:
        left = 0
        newer = threading.Thread()

        def meet(_: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                newer.start()
                newer.join(_LOCKED_S)

        watch(compactor, meet)
        for step in range(1, env.rounds + 1):
            # daemon: one that never ends must not keep the suite from telling so
            newer = threading.Thread(
                target=anyio.run, args=(_go_on, env, topic, 2 * step + 1, told), daemon=True
            )
            async with compactor.open_table(topic, 2 * step) as table:
                position = (await table.positions()).get(0, 0)
                for _ in range(2):
                    await table.write(made(0, position, position + 3))
                    await table.commit({0: position + 3})
                    position += 3
                left = step
                with suppress(FencedError, ConflictError, UnavailableError):
                    await table.maintain()
                left = 0
            if newer.ident is not None:
                await anyio.to_thread.run_sync(newer.join, abandon_on_cancel=True)
                position = max(position, *told)
            await check_table(compactor, topic, {0: position})


async def _go_on(env: Env, topic: LakeTopic, epoch: int, told: list[int]) -> None:
    """Another owner, with an event loop of its own: claims the table, and commits once."""
    with suppress(FencedError, ConflictError, UnavailableError):
        async with env.open(node_id=2, epoch=epoch) as compactor:
            async with compactor.open_table(topic, epoch) as table:
                position = (await table.positions()).get(0, 0)
                await table.write(made(0, position, position + 3))
                await table.commit({0: position + 3})
                told.append(position + 3)
