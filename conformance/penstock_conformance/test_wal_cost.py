"""Clauses of ``penstock.spi.wal`` about continuity and cost: what an idle log does, and what a long use leaves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio

from penstock.errors import ClosedError, FencedError, PenstockError
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, given_up
from penstock_conformance._growth import grows_nothing, kept_bytes
from penstock_conformance._wal_medium import WalMedium, faulty_medium
from penstock_conformance._wal_steps import append_all, make_bodies, recovered, room_of

KIND = "wal"

#: Looks in a second, and at most.
_LOOKS, _LOOKS_MAX = 4, 30
_BURST = 2000
_ASKED = 200
_PIECE_BYTES = 4000
_BYTES = 500 * _PIECE_BYTES


def _accesses(medium: WalMedium) -> int:
    if not medium.accesses:
        not_applicable(
            "the medium isn't files or the object store: give the opened log a `medium` with a `step`"
        )
    return medium.accesses


@clause(level=5)
async def test_idle_log_leaves_its_medium_alone(env: Env) -> None:
    """While nothing is appended or trimmed, a log comes to rest: no request, no write, no read. So does one that was
    opened again, and an owner that was fenced."""
    async with faulty_medium(env) as medium, medium.open(1) as wal:
        await recovered(wal)
        appends = await append_all(wal, make_bodies(60))
        await wal.trim(appends[29].next_position)
        await _comes_to_rest(medium, "it")
        if not wal.capabilities.fencing:
            return
        with suppress(PenstockError):  # a lock of this host may be met before the fence
            async with medium.open(10) as successor:
                await recovered(successor)
                with suppress(FencedError, ClosedError):
                    await wal.append([b"late"]).wait_durable()
                await _comes_to_rest(medium, "a log with two owners, of which one is fenced,", 2)


async def _comes_to_rest(medium: WalMedium, what: str, owners: int = 1) -> None:
    """Within a second, each owner may say once that it lives."""
    before, busy = _accesses(medium), deque([True] * _LOOKS, maxlen=_LOOKS)
    for _ in range(_LOOKS_MAX):
        await anyio.sleep(1 / _LOOKS)
        now = _accesses(medium)
        busy.append(now != before)
        before = now
        if sum(busy) <= owners:
            return
    raise AssertionError(f"{what} never came to rest in {_LOOKS_MAX} looks, {_LOOKS} each second")


@clause(level=5)
async def test_entries_that_come_together_share_accesses(env: Env) -> None:
    """What is appended while nothing else can run shares accesses, few for however many entries."""
    async with faulty_medium(env) as medium, medium.open(1) as wal:
        await recovered(wal)
        if (first := wal.append(make_bodies(1))).done:
            not_applicable("entries are durable when `append` returns, so none waits for others")
        await first.wait_durable()
        before = _accesses(medium)
        await append_all(wal, make_bodies(_BURST, size=60))
        made = _accesses(medium) - before
        assert made <= _BURST // 10, f"{_BURST} entries that came together took {made} accesses"
        count = room_of(wal, _BYTES) // _PIECE_BYTES
        await append_all(wal, make_bodies(count, size=_PIECE_BYTES))
        made = _accesses(medium) - before - made
        assert made <= max(count // 2, 10), f"{count} entries of {_PIECE_BYTES} bytes took {made} accesses"


@clause(level=5, claims="bounded")
async def test_who_asks_for_room_asks_no_medium(env: Env) -> None:
    """Whether an entry would fit is known without I/O: who appends to several logs asks each of them each time."""
    async with faulty_medium(env) as medium, medium.open(1) as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(20))
        for what in ("at rest", "with an entry on its way"):
            pending = [wal.append([b"on its way"])] if what != "at rest" else []
            before = _accesses(medium)
            for size in range(1, _ASKED + 1):
                wal.would_fit(size)
            made = _accesses(medium) - before
            # a thread may have been at it anyway
            assert made < _ASKED // 4, f"{_ASKED} questions for room took {made} accesses of a log {what}"
            for append in pending:
                await append.wait_durable()


@clause(level=5)
async def test_durable_entries_take_no_memory(env: Env) -> None:
    """The medium has them, trimmed or not: neither who appended keeps them in memory, nor who has recovered them."""
    async with env.open(epoch=1) as wal:
        if wal.capabilities.durability_domain == "process":
            not_applicable("the log lives and dies with its process")
        await recovered(wal)
        count = room_of(wal, _BYTES) // _PIECE_BYTES // 2
        if not count:
            not_applicable("the log is too small for entries whose memory is seen")
        await append_all(wal, make_bodies(count, size=_PIECE_BYTES))  # what is loaded once is there now
        async with kept_bytes() as grown:
            await append_all(wal, make_bodies(count, size=_PIECE_BYTES))
            await append_all(wal, [b"last"])  # who answered the others is done with them
            kept = await _settled(env, grown, count * _PIECE_BYTES // 2)
        assert kept < count * _PIECE_BYTES // 2, (
            f"{count} entries are durable, and {kept} bytes are in memory"
        )
    for epoch in (2, 3):
        async with env.open(epoch=epoch) as wal, kept_bytes() as grown:
            await recovered(wal)
            kept = await _settled(env, grown, count * _PIECE_BYTES)
    assert kept < count * _PIECE_BYTES, f"{2 * count} entries were let go, and {kept} bytes are in memory"


async def _settled(env: Env, grown: Callable[[], int], some: int) -> int:
    """What is still in memory when threads that answered have had their time to end."""
    until = time.monotonic() + env.target.deadline_s / 20
    while (kept := grown()) >= some and time.monotonic() < until:  # noqa: ASYNC110 - memory tells nobody
        await anyio.sleep(0.01)
    return kept


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Hundreds of times appended and trimmed: no task, descriptor or object stays, nor what is trimmed."""
    async with env.open() as wal:
        await recovered(wal)

        async def cycle(number: int) -> None:
            appends = await append_all(wal, make_bodies(5, owner=number))
            await given_up(number % 4, partial(wal.trim, appends[-1].next_position))
            await wal.trim(appends[-1].next_position)

        await grows_nothing(cycle, lambda: sum(path.is_file() for path in env.store_dir.rglob("*")))
