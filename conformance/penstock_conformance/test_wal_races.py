"""Clauses of ``penstock.spi.wal`` about another owner who comes between two accesses to the medium."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, suppress
from functools import partial

from penstock.errors import PenstockError
from penstock.spi.wal import WalAppend
from penstock_conformance._body import make_body
from penstock_conformance._child import Child, Race, share_of
from penstock_conformance._clause import clause
from penstock_conformance._env import Env
from penstock_conformance._meeting import Meeting, patience_for
from penstock_conformance._wal_medium import WalMedium, faulty_medium
from penstock_conformance._wal_steps import append_all, check_same, make_bodies, recovered, surviving

KIND = "wal"

_ACCESSES = 4


@clause(level=2, claims="fencing")
async def test_a_newer_owner_may_come_between_any_accesses(env: Env) -> None:
    """Whoever opens the log between two accesses of another opening or append finds all that is ever acknowledged."""
    async with faulty_medium(env) as medium:
        kept = [b"first"]
        async with medium.open(1) as wal:
            await recovered(wal)
            await append_all(wal, kept)
            medium.require_disk()
        found: list[bytes] = []
        patience_s = await patience_for(partial(_take_over, medium, 2, found))
        for access in range(1, _ACCESSES + 1):
            for is_opening in (False, True):
                kept, found = found, []
                epoch = 4 * access + 2 * is_opening
                newer = Meeting(partial(_take_over, medium, epoch + 1, found), access, patience_s)
                kept += await _acked_beside(medium, epoch, newer, is_opening=is_opening)
                if await newer.has_ended():
                    what = f"acknowledged, where another owner came after access {access}"
                    check_same(found[: len(kept)], kept, f"{what} of an opening" if is_opening else what)
                else:
                    found = kept  # it has fewer accesses


async def _acked_beside(medium: WalMedium, epoch: int, newer: Meeting, *, is_opening: bool) -> list[bytes]:
    """Open and append, with another owner who comes between; what was acknowledged."""
    bodies = make_bodies(4, owner=epoch)
    appends: list[WalAppend] = []
    try:
        if is_opening:
            medium.disk.after = newer.meet
        with suppress(PenstockError):
            async with medium.open(epoch) as wal:
                await recovered(wal)
                medium.disk.after = newer.meet
                for body in bodies:
                    appends.append(wal.append([body]))
                    await appends[-1].wait_durable()
    finally:
        medium.disk.after = lambda: None
    return bodies[: sum(append.done and append.error is None for append in appends)]


async def _take_over(medium: WalMedium, epoch: int, found: list[bytes]) -> None:
    """Open the log; what it holds, and what is then acknowledged."""
    async with medium.open(epoch) as wal:
        found += [bytes(entry.data) for entry in await recovered(wal)]
        body = make_body(epoch, 99, 100)
        await append_all(wal, [body])
        found.append(body)


@clause(level=2, claims="fencing")
async def test_an_epoch_is_of_one_process(env: Env) -> None:
    """FencedError if this epoch was used before: of two processes that open with one epoch at once, one appends."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(Child(env, "open_race", owner=owner)) for owner in range(2)
        ]
        for child in children:
            assert await child.next() == "ready", "a child process failed"
        race = Race(children)
        for number in range(1, 18 * env.rounds):
            epoch = 10 * number
            order = {"epoch": epoch, "at": time.monotonic() + 0.002}
            taken = await race.answers(order, number % 2 if number % 3 else None, share_of(number))
            assert not all(taken), f"two owners have one epoch, and both were acknowledged: {epoch=}"
            for child in children:
                await child.tell("close")
