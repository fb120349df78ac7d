"""Clauses of ``penstock.spi.lake`` about another owner who comes at a step of what is under way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from penstock.errors import ConflictError, FencedError, UnavailableError
from penstock.spi.lake import LakeCompactor, LakeTopic
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env
from penstock_conformance._lake import check_table, made, spec_of, topic_of
from penstock_conformance._meeting import Guest, Meeting, patience_for

KIND = "lake_compactor"

#: More than a table has until its first commit is done: made, claimed, written, sent.
_STEPS_MAX = 6


@clause(level=2, claims="maintains")
async def test_a_newer_owner_may_come_during_maintenance(env: Env) -> None:
    """Whoever claims the table and commits at a step of another's maintenance finds all, and loses nothing."""
    watch = spec_of(env).watch
    if watch is None:
        not_applicable("the plugin doesn't tell its steps")
    topic = topic_of(env)
    told = [0]
    patience_s = await patience_for(partial(_go_on, env, topic, 1, told))
    async with env.open() as compactor:
        meet: Callable[[str], None] = _ignore

        def stepped(name: str) -> None:
            meet(name)

        watch(compactor, stepped)
        for step in range(1, env.rounds + 1):
            async with compactor.open_table(topic, 2 * step) as table:
                position = (await table.positions()).get(0, 0)
                for _ in range(2):
                    await table.write(made(0, position, position + 3))
                    await table.commit({0: position + 3})
                    position += 3
                newer = Meeting(partial(_go_on, env, topic, 2 * step + 1, told), step, patience_s)
                meet = newer.meet
                with suppress(FencedError, ConflictError, UnavailableError):
                    await table.maintain()
                meet = _ignore
            await newer.has_ended()
            await check_table(compactor, topic, {0: max(position, *told)})


@clause(level=4)
async def test_who_is_fenced_while_a_reply_is_lost_goes_on_behind_nobody(env: Env) -> None:
    """Whoever claims the table and commits at a step of another's opening or commits, of which the reply is then
    lost, finds all, and loses nothing: the owner of before may learn that it was done, and changes nothing more."""
    watch = spec_of(env).watch
    if watch is None:
        not_applicable("the plugin doesn't tell its steps")
    topic = topic_of(env)
    told = [0]
    step = left = 0
    newer: Guest[LakeCompactor] = Guest(partial(_claim_and_commit, topic, told))

    def lose(name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            newer.come(2 * step + 1)
            raise UnavailableError(f"the reply is lost: step={name}")

    async with env.open() as compactor, newer.invited(lambda: env.open(node_id=2, epoch=2)):
        watch(compactor, lose)
        for step in range(1, _STEPS_MAX + 1):
            left, acknowledged = step, told[-1]
            with suppress(FencedError, ConflictError, UnavailableError):
                async with compactor.open_table(topic, 2 * step) as table:
                    position = (await table.positions()).get(0, 0)
                    for count in (3, 2, 1):  # the reply to the first is lost, if it wasn't that to the claim
                        await table.write(made(0, position, position + count))
                        position += count
                        await table.commit({0: position})
                        acknowledged = position
            came, left = left <= 0, 0
            await newer.has_left()
            found = await check_table(compactor, topic)
            assert found.get(0, 0) >= max(acknowledged, *told), "a commit is lost"
            if not came:
                break


def _ignore(_: str) -> None:
    """A step at which nobody comes."""


async def _go_on(env: Env, topic: LakeTopic, epoch: int, told: list[int]) -> None:
    """Claim the table, and commit once."""
    with suppress(FencedError, ConflictError, UnavailableError):
        async with env.open(node_id=2, epoch=epoch) as compactor:
            await _claim_and_commit(topic, told, compactor, epoch)


async def _claim_and_commit(topic: LakeTopic, told: list[int], compactor: LakeCompactor, epoch: int) -> None:
    with suppress(FencedError, ConflictError, UnavailableError):
        async with compactor.open_table(topic, epoch) as table:
            position = (await table.positions()).get(0, 0)
            await table.write(made(0, position, position + 3))
            await table.commit({0: position + 3})
            told.append(position + 3)
