"""Clauses of ``penstock.spi.wal`` about what is rare: large epochs, a cancelled trim, a seal and a kill, damage."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ClosedError, CorruptError, FencedError, PenstockError
from penstock.spi.settings import plugin_tables
from penstock_conformance._body import check_body
from penstock_conformance._child import Child, killed
from penstock_conformance._clause import clause
from penstock_conformance._env import EPOCHS_APART, Env, raises, together
from penstock_conformance._growth import counts
from penstock_conformance._medium import medium_of
from penstock_conformance._wal_steps import append_all, check_same, make_bodies, read, recovered, surviving

KIND = "wal"

#: A log has come to rest after it.
_PAUSE_S = 0.12

#: Epochs are indexes of the metadata log: int64. These are just beyond 31, 32 and 53 bits, and far beyond any log.
_EPOCHS = tuple(-(-number // EPOCHS_APART) for number in (7000, 2**31, 2**32, 2**53, 2**60))


@clause(claims="fencing")
async def test_owners_are_told_apart_however_late_they_come(env: Env) -> None:
    """``open`` raises FencedError if a newer owner holds the log, however far the epochs have come."""
    for number, epoch in enumerate(_EPOCHS):
        async with env.open(epoch=epoch) as wal:
            await recovered(wal)
            await append_all(wal, make_bodies(2, owner=number))
            for older in (*_EPOCHS[:number], epoch - 1):
                with raises(FencedError):
                    async with env.open(epoch=older) as beaten:
                        await recovered(beaten)
            await append_all(wal, make_bodies(2, owner=number + 100))
    owners = [check_body(payload).owner for payload in await read(env, _EPOCHS[-1] + 1)]
    assert owners == [
        owner for number in range(len(_EPOCHS)) for owner in (number,) * 2 + (number + 100,) * 2
    ]
    await _owners_in_quick_succession(env, _EPOCHS[-1] + 2)
    for apart in (2**5, 2**13, 2**29):  # their last 8, 16, and 32 bits are alike
        await _owners_apart(env.elsewhere(f"apart-{apart}"), apart)


async def _owners_apart(env: Env, apart: int) -> None:
    async with env.open(epoch=1) as old:
        await recovered(old)
        await append_all(old, make_bodies(2))
        async with env.open(epoch=1 + apart) as new:
            with raises(FencedError, ClosedError):
                await old.append([b"late"]).wait_durable()
            assert [bytes(entry.data) for entry in await recovered(new)] == make_bodies(2)
            await append_all(new, make_bodies(2))


async def _owners_in_quick_succession(env: Env, epoch: int) -> None:
    """Each with the epoch directly above that of the one before."""
    if any(plugin_tables(env.target.checked_settings(env.spec(), env.data_dir))):
        return  # a plugin that opens others needs epochs between those of two owners
    owners: list[Any] = []
    async with AsyncExitStack() as stack:
        for later in range(3):
            wal = await stack.enter_async_context(env.open(epoch=epoch, later=later))
            await recovered(wal)
            await append_all(wal, make_bodies(1, owner=later))
            with raises(PenstockError):  # a lock of this host may be met before the fence
                async with env.open(epoch=epoch, later=later) as again:
                    await recovered(again)
            if owners:
                with raises(PenstockError):
                    async with env.open(epoch=epoch, later=later - 1) as older:
                        await recovered(older)
                with raises(FencedError, ClosedError):
                    await owners[-1].append([b"late"]).wait_durable()
            owners.append(wal)


async def test_cancelled_trim_loses_nothing(env: Env) -> None:
    """Entries whose next position is above ``position`` stay, also when ``trim`` is cancelled on its way."""
    for turns in range(5):
        bodies = make_bodies(12, owner=turns)
        async with env.open(epoch=2 * turns + 1) as wal:
            await recovered(wal)
            appends = await append_all(wal, bodies)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wal.trim, appends[5].next_position)
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
        found = await read(env, 2 * turns + 2)
        assert found[-6:] == bodies[6:], (
            f"an entry above a trim that was cancelled is gone: {len(found)} are left"
        )


@clause(claims="bounded")
async def test_trims_beside_each_other_free_what_the_furthest_frees(env: Env) -> None:
    """Room is there again when ``trim`` returns, and stays, whichever of several at once ends last."""
    async with env.open() as wal:
        await recovered(wal)
        for number, places in enumerate(((2, 5), (5, 2), (1, 7, 3), (7, 7, 0))):
            appends = await append_all(wal, make_bodies(9, owner=number))
            furthest = appends[max(places)].next_position
            await together([partial(wal.trim, appends[place].next_position) for place in places])
            told = wal.statistics()
            assert told.trimmed_position >= furthest, (
                f"trimmed up to {furthest} and less at once, and then up to {told.trimmed_position}"
            )
            await wal.trim(furthest)
            assert wal.statistics().used_bytes == told.used_bytes, "a trim beside another one gave less room"
    check_same((await read(env))[-1:], make_bodies(9, owner=3)[8:], "above trims at once")


# --- 3: crashes


@clause(level=3)
async def test_every_kind_of_entry_survives_a_kill(env: Env) -> None:
    """Durable when it completes: a small entry or a large one, in whatever company, with a known checksum or not."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
        size = min(300_000, wal.capabilities.entry_bytes_max)
    for number in range(1, 6 * env.rounds + 1):
        arguments = {"epoch": 2 * number, "owner": number, "size": size, "seed": env.random.randrange(2**32)}
        acked = await killed(env, "append_kinds_until_killed", "at an ack", 8, **arguments)
        async with env.open(epoch=2 * number + 1) as wal:
            found = {check_body(entry.data) for entry in await recovered(wal)}
            for kind, sequence in acked:
                assert (number, sequence) in found, f"an acknowledged entry is lost: {kind}"
            await wal.trim(wal.statistics().end_position)


@clause(level=3)
async def test_entry_after_a_pause_survives_a_kill(env: Env) -> None:
    """Durable when it completes, also where nothing was appended for a while."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
    for number in range(1, 3 * env.rounds + 1):
        arguments = {"epoch": 2 * number, "owner": number, "size": 300, "seed": number, "pause_s": _PAUSE_S}
        acked = await killed(env, "append_kinds_until_killed", "at an ack", 4, **arguments)
        async with env.open(epoch=2 * number + 1) as wal:
            found = {check_body(entry.data) for entry in await recovered(wal)}
            for _, sequence in acked:
                assert (number, sequence) in found, "an entry that came after a pause was lost"
            await wal.trim(wal.statistics().end_position)


@clause(level=3, claims="seal")
async def test_seal_survives_a_kill(env: Env) -> None:
    """From the return of ``seal`` on, no append of any owner is acknowledged, whatever ends who sealed."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
    async with Child(env, "seal_and_wait", epoch=2) as child:
        assert await child.next() == "sealed", "the child process failed"
        child.kill()
        await child.rest()
    async with env.open(epoch=3) as wal:
        assert len(await recovered(wal)) == 1
        with raises(PenstockError):
            await wal.append([b"late"]).wait_durable()


@clause(level=3)
async def test_no_damage_is_passed_over(env: Env) -> None:
    """CorruptError, wherever the medium is damaged, or all that was acknowledged; the log's own pages count, too."""
    bodies = make_bodies(12, size=3000)
    async with env.open(epoch=1) as wal:
        surviving(wal)
        path = medium_of(wal)
        await recovered(wal)
        for body in bodies:
            await append_all(wal, [body])
        has_identity = wal.capabilities.identity
    identity = await env.identify() if has_identity else None
    whole = path.read_bytes()
    pages = [page for page in range(0, len(whole), 4096) if any(whole[page : page + 4096])]
    damages = [(f"page {page // 4096} is empty", page, bytes(4096)) for page in pages[:9]]
    damages += [
        (f"bit {place * 8} is wrong", place, bytes([whole[place] ^ 1])) for place in (0, 5, 9, 17, 26)
    ]
    # a header alone, of any size: a log without one isn't new while it holds entries
    damages += [(f"{size} bytes at the start are empty", 0, bytes(size)) for size in (64, 512)]
    damages.append(("all but a byte is gone", 1, b""))  # what is left of a log is no place for a new one
    before, *_ = await counts()
    for what, place, there in damages:
        path.write_bytes(whole[:place] + there + whole[place + len(there) :] if there else whole[:place])
        if has_identity:
            with suppress(CorruptError):
                assert await env.identify() == identity, f"{what}, and who looks finds another log, or none"
        if await _comes_whole(env, bodies, what) and has_identity:
            assert await env.identify() == identity, f"{what}, and the log is another one"
        path.write_bytes(whole)
    after, *_ = await counts()
    assert after - before < len(damages) // 2, f"openings of damaged logs left {after - before} descriptors"
    assert await read(env, 3) == bodies, "the log is whole again"


async def _comes_whole(env: Env, bodies: list[bytes], what: str) -> bool:
    """Whether it does; CorruptError is the only other way."""
    try:
        found = await read(env, 2)
    except CorruptError:
        return False
    assert found[: len(bodies) - 1] == bodies[:-1], (
        f"{what}, and {len(found)} of {len(bodies)} entries came back"
    )
    return True
