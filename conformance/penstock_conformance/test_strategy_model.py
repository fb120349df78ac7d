"""Clauses about a strategy, all at once: random lives of whole clusters, held against a model of what they must hold.

Acknowledged records are there, once, in order and whole; those that nobody answered at most once; offsets are dense
and never given twice; starts and ends never go back; commits, topics and configs are those acknowledged. Whether it
comes from the log, from caches or from objects, what is read is compared byte by byte.
"""

from __future__ import annotations

import anyio

from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._strategy import StrategyEnv
from penstock_conformance._strategy_life import Life, living
from penstock_conformance._strategy_session import Session

KIND = "strategy"

_STEPS = 25
#: So often a broker is asked whether its store has refused something.
_LOOKS = 60
#: So often it is written, and answered, before a broker falls asleep.
_FLUSHED = 3


async def test_random_lives_with_restarts_agree_with_a_model(env: StrategyEnv) -> None:
    """Records, trims, retention, groups, topics that are deleted and made again, uploads in between: nothing that
    was acknowledged is changed by a stop in order, and what is read cold is what was read warm."""
    env.need_durable()
    async with living(env) as life:
        for _ in range(2 * env.rounds):
            await life.go_on(_STEPS)
            await life.write_alike()
            await life.look()
            await _restart(env, life)
            await life.look()
            await life.look()  # from caches that the first look has filled
        await life.broker.stop()
        await env.verify()


async def _restart(env: StrategyEnv, life: Life) -> None:
    life.steps.note("stop and start")
    await life.broker.stop()
    await env.verify()  # who asks for what is lost may wait for ever
    await life.broker.start()


@clause(level=3)
async def test_random_lives_with_kills_agree_with_a_model(env: StrategyEnv) -> None:
    """SIGKILL, directly after something was acknowledged, in the midst of writing or of a start, again and again."""
    env.need_durable()
    async with living(env) as life:
        for number in range(4 * env.rounds):
            await life.go_on(_STEPS // 2)
            if env.random.random() < 0.7:
                await life.begin_to_write()
                await anyio.sleep(env.random.random() * 0.05)
            life.steps.note("kill and start")
            await life.broker.kill()
            if env.random.random() < 0.3:
                await life.session.ask(Session.give_up)
            if env.random.random() < 0.4:
                life.steps.note("kill while it starts")
                await life.broker.die_at_start(env.random.random() * 0.4)
            await life.broker.start()
            if number % 2 or env.random.random() < 0.5:  # else it is killed again with nothing between
                await life.flush()
                await life.look()
        await life.look()
        await life.broker.stop()
        await env.verify()


@clause(level=4)
async def test_random_lives_with_a_failing_store_agree_with_a_model(env: StrategyEnv) -> None:
    """An object store that is away, full, fails a part of its requests or loses replies, and a broker that sleeps
    (SIGSTOP) or is killed meanwhile."""
    env.need_durable()
    async with living(env) as life:
        for number in range(4 * env.rounds):
            await life.go_on(_STEPS // 3)
            await life.begin_to_write()  # a producer that begins to write needs metadata
            await life.flush()
            trouble = ({"down": True}, {"full": True}, {"failing": 0.3}, {"lost_replies": 0.3})[number % 4]
            life.steps.note(f"store {trouble}")
            await life.broker.change_medium(**trouble)
            await life.begin_to_write()
            await life.broker.feel_refusals(looks_max=_LOOKS)
            if number % 4 == 0 or env.random.random() < 0.4:
                life.steps.note("kill and start")
                await life.broker.kill()
                await life.start_in_trouble(failing=0.2)
                await life.flush()
                await life.broker.change_medium(failing=0.2)
                await life.look()  # what is in no cache yet: where a read fails the next one must not
            else:
                life.broker.pause()
                await anyio.sleep(0.05)
                life.broker.resume()
            await life.broker.change_medium(down=False, full=False, failing=0.0, lost_replies=0.0)
            await life.flush()
            await life.look()
        await life.broker.stop()
        await env.verify()


@clause(level=4)
async def test_random_lives_with_takeovers_agree_with_a_model(env: StrategyEnv) -> None:
    """Another host takes the log over while its owner sleeps, and the next one from that: nothing is lost, nothing
    that was given up comes twice, and who wakes up ends."""
    env.need_durable()
    if not (await env.look())[0]["shareable"]:
        not_applicable("the log can't be taken over by another host")
    if not await env.shares("another"):
        not_applicable(
            "another data directory has another object store: try object_store.url=file://{dir}/objects"
        )
    async with living(env) as life:
        for number in range(2 * env.rounds):
            await life.go_on(_STEPS // 2)
            await life.begin_to_write()
            if number % 2 == 0:  # else nobody knows what the last entries of the log are
                await life.flush()
                await life.broker.change_medium(full_below=env.uploads())
                for _ in range(_FLUSHED):
                    await life.begin_to_write()
                    await life.flush()
            life.broker.pause()
            life.steps.note("another host takes over")
            port = env.another_port()
            async with env.broker(host=f"another-{number}", port=port) as successor:
                await successor.start()
                sleeper, life.broker = life.broker, successor
                await life.session.ask(Session.move_to, f"127.0.0.1:{port}")
                await life.look()
                await sleeper.resume_with(full_below=[])
                ending = await sleeper.ending()
                assert "FencedError" in ending, f"the owner before ended otherwise: {ending}"
                await life.go_on(_STEPS // 2)
                await life.look()
                await successor.stop()
                await env.verify(host=f"another-{number}")
            await sleeper.start()
            life.broker = sleeper
            await life.session.ask(Session.move_to, env.bootstrap_servers)
            await life.look()
