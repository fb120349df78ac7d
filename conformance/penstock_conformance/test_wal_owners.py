"""Clauses of ``penstock.spi.wal`` about owners: what they leave, what is taken over, and who wakes up too late."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ClosedError, CorruptError, FencedError, PenstockError, UnavailableError
from penstock.spi.wal import WalAppend
from penstock_conformance._body import Label, check_body, make_body
from penstock_conformance._child import Child
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises
from penstock_conformance._faults import error_of
from penstock_conformance._least_store import least_store
from penstock_conformance._listings import check_keys_are_told
from penstock_conformance._wal_steps import (
    append_all,
    check_same,
    end_of,
    fitting,
    make_bodies,
    read,
    recovered,
    surviving,
)

KIND = "wal"

#: An entry of more takes another way in many logs than a small one.
_LARGE_BYTES = 400_000
#: They aren't node 1, whatever of a number is looked at.
_OTHER_NODES = (101, 257, 1001, 65_537)
#: What an owner does that was fenced when it had recovered so many entries, or all, to the end (None).
_LATE = (
    *((begun, "appends") for begun in (0, 1, 3, 99)),
    *((begun, "leaves") for begun in (0, 1, None)),
    (0, "recovers"),
)


async def test_end_of_the_log_is_told(env: Env) -> None:
    """Where the log ends: every later entry is at or above; also of an empty log, and of one trimmed or left."""
    end = 0
    for epoch in range(1, 5):
        async with env.open(epoch=epoch) as wal:
            await recovered(wal)
            assert end_of(env, wal) >= end, "the log ends before what it held"
            found = end_of(env, wal)
            appends = await append_all(wal, make_bodies(3, owner=epoch))
            assert appends[0].position >= found, "an entry is before where the log ended"
            end = appends[-1].next_position
            assert end_of(env, wal) >= end, "the end didn't move with what was appended"
            if epoch % 2:
                await wal.trim(end)
        assert end_of(env, wal) >= end, "a log that was left forgot where it ends"


@clause(claims="fencing")
async def test_trim_of_a_fenced_owner_takes_nothing_of_its_successor(env: Env) -> None:
    """FencedError after a newer owner took over. From then on it changes nothing: the newer owner finds what was
    there when it opened, also below ``position``, and keeps what it appended."""
    async with env.open(epoch=1) as old:
        await recovered(old)
        appends = await append_all(old, make_bodies(10))
        async with env.open(epoch=2) as new:
            wanted = [bytes(entry.data) for entry in await recovered(new)]
            for owner, place in enumerate((2, 4, 9)):
                await append_all(new, make_bodies(10, owner=owner))
                wanted += make_bodies(10, owner=owner)
                with suppress(FencedError, UnavailableError, ClosedError):
                    await old.trim(appends[place].next_position)
            if env.can_read_outside():
                found = [bytes(entry.data) for entry in await env.read_outside()]
                check_same(found, wanted, "read from outside after the trims of an owner that was fenced")
            await append_all(new, make_bodies(3, owner=3))
            wanted += make_bodies(3, owner=3)
    found = await read(env, 3)
    check_same(found[-len(wanted) :], wanted, "above the trims of an owner that was fenced")


@clause(claims="fencing")
async def test_fence_outlasts_what_the_successor_does(env: Env) -> None:
    """Fenced is fenced, with small entries and large ones: also when the newer owner has recovered, trimmed all or a
    part, or closed the log."""
    for number, does in enumerate(("", "trim", "trim all", "close")):
        epoch, bodies = 10 * number, make_bodies(6, owner=number)
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(env.open(epoch=epoch + 1))
            await recovered(old)
            late = bytes(fitting(old, [_LARGE_BYTES])[0]) if number % 2 else b"late"
            await append_all(old, make_bodies(1, owner=number + 100))
            async with env.open(epoch=epoch + 2) as new:
                await recovered(new)
                appends = await append_all(new, bodies) if does else []
                if "trim" in does:
                    await new.trim(appends[-1 if does == "trim all" else 2].next_position)
                if does != "close":
                    with raises(FencedError, ClosedError):
                        await old.append([late]).wait_durable()
                    assert end_of(env, old) > 0, "an owner that was fenced forgot where its log ended"
            with raises(FencedError, ClosedError):
                await old.append([late]).wait_durable()
        found = await read(env, epoch + 3)
        wanted = bodies[{"trim": 3, "trim all": 6}.get(does, 0) :] if does else []
        check_same(found[len(found) - len(wanted) :], wanted, f"of a successor that did this: {does}")
        assert late not in found, f"an entry of a fenced owner is there, whose successor did this: {does}"


@clause(claims="fencing")
async def test_recovery_and_end_of_a_fenced_owner_change_nothing(env: Env) -> None:
    """Fenced before its recovery, in it or behind it: what it does then, to its end, is nothing to its successor. Nor
    is its end, if it has heard of nothing and does nothing."""
    wanted: list[bytes] = []
    for number, (begun, does) in enumerate(_LATE):
        epoch = 10 * number
        async with AsyncExitStack() as stack:
            async with env.open(epoch=epoch + 1) as old:
                entries = old.recover()
                for _ in range(len(wanted) + 1 if begun is None else min(begun, len(wanted))):
                    await anext(entries, None)
                new = await stack.enter_async_context(env.open(epoch=epoch + 2))
                await recovered(new)
                wanted += await _append(new, make_bodies(4, owner=epoch))
                with suppress(FencedError, ClosedError, CorruptError, UnavailableError):
                    if does != "leaves":
                        async for _ in entries:
                            pass
                    if does == "appends":
                        await old.append([b"late"]).wait_durable()
                        raise AssertionError("acknowledged by an owner that was fenced in its recovery")
                wanted += await _append(new, make_bodies(2, owner=epoch + 1))
            try:
                wanted += await _append(new, make_bodies(2, owner=epoch + 2))
            except PenstockError as error:
                raise AssertionError(f"the end of a fenced owner ended its successor: {error}") from error
        check_same(await read(env, epoch + 3), wanted, f"whose predecessor {does} late: begun={begun}")


async def _append(wal: Any, bodies: list[bytes]) -> list[bytes]:
    await append_all(wal, bodies)
    return bodies


async def test_keys_begin_as_the_spec_tells(env: Env) -> None:
    """``key_prefixes`` are the beginnings of *all* keys that the plugin keeps in the object store."""
    store = env.plain_store()
    for epoch in (1, 2, 3):
        async with env.open(epoch=epoch, object_store=store) as wal:
            await recovered(wal)
            appends = await append_all(wal, make_bodies(6, owner=epoch))
            await wal.trim(appends[3].next_position)
            if epoch == 3 and wal.capabilities.seal:
                await wal.seal()
        await check_keys_are_told(env, store)


async def test_needs_of_the_store_are_told(env: Env) -> None:
    """``requires`` names the capabilities of the object store that the plugin can't do without: on one that has no
    others the log is as right, listings in another order, views, and objects without time or token included."""
    plain = env.plain_store()
    store = least_store(env, plain)
    every: list[bytes] = []
    for epoch in (1, 2, 3):
        async with env.open(epoch=epoch, object_store=store) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            kept = max(len(found), 2 if every else 0)  # what is trimmed may come again
            check_same(found, every[len(every) - kept :], f"by owner {epoch}")
            appends = await append_all(wal, make_bodies(6, owner=epoch))
            every += make_bodies(6, owner=epoch)
            await wal.trim(appends[3].next_position)
        await check_keys_are_told(env, plain)


@clause(claims="seal")
async def test_seal_of_a_fenced_owner_is_told(env: Env) -> None:
    """From the return of ``seal`` on no append of any owner is acknowledged: FencedError if a newer one goes on."""
    for number in range(2):
        place = env.elsewhere(f"knows-{number}")
        async with place.open(epoch=1) as old:
            if not old.capabilities.fencing:
                not_applicable("the log doesn't claim to fence")
            await recovered(old)
            async with place.open(epoch=2) as new:
                await recovered(new)
                if number:  # it has heard that it is fenced
                    with raises(FencedError, ClosedError):
                        await old.append([b"late"]).wait_durable()
                error = await error_of(old.seal())
                if error is None:
                    with raises(FencedError):
                        await new.append([b"sealed"]).wait_durable()
                    continue
                assert isinstance(error, FencedError | ClosedError), f"fenced, and told otherwise: {error!r}"
                await append_all(new, [b"goes on"])


@clause(claims="fencing")
async def test_nothing_is_acknowledged_past_an_untold_error(env: Env) -> None:
    """Once an append fails, every append that was made after it fails too, up to when its error was told."""
    for number in range(6):
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(env.open(epoch=2 * number + 1))
            await recovered(old)
            appends: list[WalAppend] = []

            def append(old: Any = old, appends: list[WalAppend] = appends) -> None:
                for body in make_bodies(7, size=2000):
                    appends.append(old.append([body]))

            append()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_take_over, env, 2 * number + 2)
                for _ in range(3 * number):
                    await checkpoint()
                    if not any(one.done and one.error is not None for one in appends):
                        with suppress(FencedError, ClosedError):
                            append()
            for one in appends:
                with suppress(FencedError, ClosedError):
                    await one.wait_durable()
            failed = [one.error is not None for one in appends]
            assert failed == sorted(failed), "acknowledged, though an earlier append had failed"


async def _take_over(env: Env, epoch: int) -> None:
    async with env.open(epoch=epoch) as wal:
        await recovered(wal)
        await wal.append([b"new"]).wait_durable()


@clause(claims="shareable")
async def test_survivor_takes_a_dead_nodes_log_over_beside_its_own(env: Env) -> None:
    """The log is the one of ``Services.node_id``, whoever opens it on whatever host, with the same settings."""
    async with env.open(node_id=1, epoch=1) as dead:
        surviving(dead)
        await recovered(dead)
        appends = await append_all(dead, make_bodies(5, owner=1))
    host = env.on_another_host()
    # its number begins as the dead node's does
    async with host.open(node_id=12, epoch=2) as own:
        assert await recovered(own) == [], "another node's log isn't this node's"
        await append_all(own, make_bodies(2, owner=2))
        async with host.open(node_id=1, epoch=3) as taken:
            found = [bytes(entry.data) for entry in await recovered(taken)]
            assert found == make_bodies(5, owner=1), "the survivor finds otherwise than the dead node left it"
            await taken.trim(appends[2].next_position)
            await append_all(taken, make_bodies(1, owner=3))
        await append_all(own, make_bodies(1, owner=2))
    left = await read(env, 4)
    assert left[-3:] == [*make_bodies(5, owner=1)[3:], *make_bodies(1, owner=3)]
    for other in _OTHER_NODES:
        place = env.elsewhere(f"beside-{other}")
        async with place.open(node_id=1) as wal:
            await recovered(wal)
            await append_all(wal, make_bodies(1))
        async with place.open(node_id=other, epoch=2) as wal:
            assert await recovered(wal) == [], f"the log of node 1 is that of node {other}, too"


@clause(claims="seal")
async def test_sealed_log_can_be_trimmed(env: Env) -> None:
    """A sealed log can be opened, recovered and trimmed; only its appends raise FencedError."""
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        appends = await append_all(wal, make_bodies(6))
        await wal.seal()
    async with env.open(epoch=2) as wal:
        surviving(wal)
        assert [bytes(entry.data) for entry in await recovered(wal)] == make_bodies(6)
        assert end_of(env, wal) >= appends[-1].next_position, "a sealed log ends before its last entry"
        for place in (1, 3):
            await wal.trim(appends[place].next_position)
        with raises(FencedError):
            await wal.append([b"late"]).wait_durable()
    assert (await read(env, 3))[-2:] == make_bodies(6)[4:]
    async with env.open(epoch=4) as wal:
        await recovered(wal)
        with raises(FencedError):
            await wal.append([b"later"]).wait_durable()


@clause(level=2, claims="shareable")
async def test_stopped_owner_that_wakes_up_acknowledges_nothing_more(env: Env) -> None:
    """An owner is stopped (SIGSTOP), its log is taken over, it wakes: nothing more is acknowledged, nothing lost,
    neither of its own entries nor of those of its successor."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
        if not wal.capabilities.shareable:
            not_applicable(
                "shareable isn't claimed, and who is stopped may hold a lock that its successor waits for"
            )
    #: Acknowledged, and not trimmed.
    kept: set[tuple[int, int]] = set()
    rounds = 20 * env.rounds
    for number in range(rounds):
        epoch = 2 * number + 2
        pending = env.random.choice((1, 4, 30))
        async with Child(env, "append_until_fenced", epoch=epoch, owner=epoch, pending=pending) as child:
            assert await child.next() == ["ready"], "the child process failed to open the log"
            lines = [await child.next() for _ in range(env.random.randrange(1, 20))]
            await anyio.sleep(env.random.random() * 0.005)
            child.stop()
            async with env.open(epoch=epoch + 1) as wal:
                opened_at = time.monotonic()
                found = {check_body(entry.data) for entry in await recovered(wal)}
                assert kept <= found, f"gone since an owner woke up: {sorted(kept - found)[:3]}"
                await wal.append([make_body(epoch + 1, 0, 100)]).wait_durable()
                child.wake()
                lines += await child.finish()
                assert lines[-1][0] == "end", "the owner that woke up wasn't told"
                for _, sequence, begun in lines[:-1]:
                    assert begun <= opened_at, "begun after the new owner's open returned, and acknowledged"
                    assert Label(epoch, sequence) in found, (
                        "acknowledged, and its new owner didn't recover it"
                    )
                    kept.add((epoch, sequence))
                end = wal.append([make_body(epoch + 1, 1, 100)])
                await end.wait_durable()
                kept |= {(epoch + 1, 0), (epoch + 1, 1)}
                if env.random.random() < 0.3:
                    await wal.trim(end.position)
                    kept = {(epoch + 1, 1)}
    left = {tuple(check_body(payload)) for payload in await read(env, 2 * rounds + 2)}
    assert kept <= left, f"gone since an owner woke up: {sorted(kept - left)[:3]}"
