"""Clauses of ``penstock.spi.wal`` about the tail that a crash leaves behind the last acknowledged entry."""

from __future__ import annotations

import os
from contextlib import suppress

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import CorruptError, PenstockError
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause
from penstock_conformance._env import Env
from penstock_conformance._medium import medium_of, torn
from penstock_conformance._wal_medium import WalMedium, faulty_medium
from penstock_conformance._wal_steps import (
    append_all,
    check_same,
    copies_around,
    fitting,
    make_bodies,
    read,
    recovered,
)

KIND = "wal"


@clause(level=3)
async def test_torn_tail_ends_the_log(env: Env) -> None:
    """Entries never acknowledged may be there or not, but only as a continuation: a torn write ends the log, whatever
    is in it, and nothing of it shows through what is appended then."""
    bodies = make_bodies(6, size=700)
    cases = [(env, [make_body(0, 6, 16_000)]), (env.elsewhere("several"), make_bodies(4, size=500, owner=1))]
    cases.append((env.elsewhere("copy"), [await _longer_log(env.elsewhere("longer"))]))
    made = [(place, last, *await copies_around(place, bodies, last)) for place, last in cases]
    for number in range(13 * env.rounds):
        place, last, path, before, after = made[(0, 1, 0, 1, 2)[number % 5]]
        path.write_bytes(torn(before, after, env.random, first_is_lost=number % 5 == 3))
        # The tear is always between epochs 1 and 2, whatever was done to the copy before.
        async with place.open(epoch=2) as wal:
            try:
                found = [bytes(entry.data) for entry in await recovered(wal)]
            except CorruptError:
                assert len(last) > 1, "a torn write is taken for damage"
                continue  # they were several groups, of which a later one confirms what is torn
            assert found[:6] == bodies, (
                f"acknowledged entries are lost by a torn write after them: round={number}"
            )
            assert found[6:] == last[: len(found) - 6], (
                "half of an entry came back, or one behind a missing one"
            )
            behind = make_body(2, 0, len(last[0]))  # in the same place
            await wal.append([behind]).wait_durable()
        again = await read(place, 3)
        assert again == [*found, behind], (
            "something else came back than what was found, and appended behind it"
        )


async def _longer_log(env: Env) -> bytes:
    """The end of the medium of another log, for an entry to hold: somebody may keep copies of logs in a log."""
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        path = medium_of(wal)
        for body in make_bodies(40, size=700):
            await append_all(wal, [body])
        size = fitting(wal, [16_000])[0]
    return path.read_bytes().rstrip(b"\0")[-size:]


@clause(level=4)
async def test_what_was_recovered_survives_a_power_cut(env: Env) -> None:
    """What ``recover`` returned is durable when it ends, also what an owner had written, and not synced, when it was
    killed."""
    bodies = make_bodies(8, size=700)
    async with faulty_medium(env) as medium:
        async with medium.open(1) as wal:
            await recovered(wal)
            await append_all(wal, bodies[:5])
            medium.require_disk()
            synced = medium.disk.synced()
            await append_all(wal, bodies[5:])
            written = medium.disk.synced()
        medium.disk.restore(synced)
        for path, image in written.items():
            _write(path, image)
        async with medium.open(2) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            cut = medium.disk.synced()
        check_same(found, bodies[: max(5, len(found))], "of an owner that was killed before a sync")
        medium.disk.restore(cut)
    check_same(await read(env, 3), found, "after a power cut, what was recovered before")


@clause(level=4)
async def test_what_was_recovered_is_in_the_store(env: Env) -> None:
    """What ``recover`` returned is durable when it ends: of a log in an object store it is there, and the next owner
    finds it, on another host, too. What an owner had only in memory, or in a file, isn't."""
    bodies = make_bodies(12, size=700)
    async with faulty_medium(env) as medium:
        async with anyio.create_task_group() as tasks:
            with suppress(PenstockError):  # its end, too, may say that the store is away
                async with medium.open(1) as wal:
                    await recovered(wal)
                    await append_all(wal, bodies[:5])
                    medium.require_store()
                    medium.fail_writes(times=10**6)
                    tasks.start_soon(_heal_later, medium, env.target.deadline_s / 8)
                    for body in bodies[5:]:
                        wal.append([body])
                        await checkpoint()
            tasks.cancel_scope.cancel()
        medium.heal()
        async with medium.open(2) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            place = env.on_another_host() if wal.capabilities.shareable else env
        check_same(found, bodies[: max(5, len(found))], "of an owner whose store was away")
        async with place.open(epoch=3, object_store=medium.store) as wal:
            again = [bytes(entry.data) for entry in await recovered(wal)]
        check_same(again, found, "what the owner before had recovered")


async def _heal_later(medium: WalMedium, seconds: float) -> None:
    """Some owners don't end without their store."""
    await anyio.sleep(seconds)
    medium.heal()


def _write(path: str, image: bytes) -> None:
    file = os.open(path, os.O_WRONLY)
    os.pwrite(file, image, 0)
    os.close(file)


@clause(level=3)
async def test_lost_unacknowledged_tail_ends_the_log(env: Env) -> None:
    """Entries appended but never acknowledged may be there or not: a lost tail ends the log cleanly."""
    bodies = make_bodies(6, size=700)
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        path = medium_of(wal)
        for body in bodies:
            await wal.append([body]).wait_durable()
        crash = path.read_bytes()
        await append_all(wal, make_bodies(6, size=700, owner=1))
    path.write_bytes(crash)
    async with env.open(epoch=2) as wal:
        assert [bytes(entry.data) for entry in await recovered(wal)] == bodies
        # Same sizes, so the same places: whatever the first owner left there must not show through.
        await append_all(wal, make_bodies(3, size=700, owner=2))
    assert await read(env, 3) == [*bodies, *make_bodies(3, size=700, owner=2)]
