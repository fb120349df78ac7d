"""Clauses of ``penstock.spi.wal`` about a medium that fails, is full, loses replies, and loses what wasn't synced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi.wal import WalAppend
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause
from penstock_conformance._disk import BROKEN, FULL
from penstock_conformance._env import Env, raises
from penstock_conformance._faults import error_of
from penstock_conformance._leaks import looks_leave_nothing
from penstock_conformance._patience import Patience
from penstock_conformance._wal_medium import History, WalMedium, faulty_medium
from penstock_conformance._wal_steps import (
    append_all,
    check_reason,
    check_same,
    make_bodies,
    read,
    recovered,
    room_of,
)

KIND = "wal"

_OUTAGE = "unavailable"
#: Lives that end by a cut, each later than the one before, and the groups of one that has no reason to end.
_CUT_LIVES = 4
_CUT_GROUPS = 110
#: Groups that a cut tears, and the entries of each.
_TORN_GROUPS = 6
_TORN_ENTRIES = 12


async def _live(
    env: Env, medium: WalMedium, history: History, epoch: int, hurt: Callable[[], None] = lambda: None
) -> None:
    """One owner's life: recover, append, ``hurt`` the medium while appends go on, heal it, append again."""
    images: dict[str, bytes] = {}
    async with medium.open(epoch) as wal:
        history.check([bytes(entry.data) for entry in await recovered(wal)], f"in life {epoch}")
        bodies = make_bodies(90, size=env.random.choice((40, 900, 6000)), owner=epoch)
        appends = await append_all(wal, bodies[:5])
        hurt()
        try:
            for body in bodies[5:70]:
                appends.append(wal.append([body]))
                if env.random.random() < 0.2:
                    await checkpoint()
        except (ClosedError, FencedError, FullError):
            pass  # told already
        with anyio.move_on_after(env.target.deadline_s / 4):
            await _ended(appends)
        medium.heal()
        await _ended(appends)
        outcomes = [append.error is not None for append in appends]
        assert outcomes == sorted(outcomes), "acknowledged, though an append before it had failed untold"
        for append in appends:
            assert append.error is None or isinstance(append.error, PenstockError), f"raw: {append.error!r}"
        assert not any(isinstance(append.error, FencedError) for append in appends), (
            "nobody else opened the log, and its owner was told that it is fenced"
        )
        _figures_fit(wal, appends)
        try:
            with suppress(FullError, UnavailableError):
                appends += await append_all(wal, bodies[len(appends) :][:20])
                _state_is(wal, goes_on=True)
        except ClosedError:
            _state_is(wal, goes_on=False)
        history.add(bodies, appends)
        if medium.is_disk:
            images = medium.disk.power_cut(env.random)
    medium.disk.restore(images)


def _state_is(wal: Any, *, goes_on: bool) -> None:
    """``open``, ``degraded`` (it goes on), or another word, which says that it doesn't."""
    state = wal.statistics().state
    told = "takes appends" if goes_on else "refuses every append with ClosedError"
    assert (state in ("open", "degraded")) is goes_on, f"the log {told}, and says of itself: state={state}"
    assert state != "fenced", "nobody else opened the log, and it says that it is fenced"
    check_reason(wal)


def _figures_fit(wal: Any, appends: list[WalAppend]) -> None:
    """All were answered: none pends, and what was refused wasn't appended."""
    told = wal.statistics()
    pending = (told.pending_entries, told.pending_bytes)
    assert pending == (0, 0), f"all appends were answered, and so many entries and bytes pend: {pending}"
    appended = told.appended_entries
    assert appended <= len(appends), f"{len(appends)} entries were appended, others refused: {appended} told"


async def _ended(appends: list[WalAppend]) -> None:
    for append in appends:
        with suppress(PenstockError):
            await append.wait_durable()


async def _lives(env: Env, hurt: Callable[[WalMedium], None], lives: int = 6) -> None:
    """Lives in which the medium is hurt, and a last one that finds what they leave."""
    history = History()
    async with faulty_medium(env) as medium:
        await _live(env, medium, history, 1)
        for epoch in range(2, 2 + lives):
            await _live(env, medium, history, epoch, lambda: hurt(medium))
        assert medium.failed, "the suite's faults met nobody"
        await _live(env, medium, history, 2 + lives)


@clause(level=4)
async def test_failed_writes_are_told_and_leave_no_hole(env: Env) -> None:
    """An append whose write failed isn't acknowledged, nor any after it until that was told; what was acked stays."""
    await _lives(env, lambda medium: medium.fail_writes(BROKEN, times=env.random.choice((1, 1, 3))))


@clause(level=4)
async def test_full_medium_is_told_and_leaves_no_hole(env: Env) -> None:
    """A medium without room acknowledges nothing more, and loses nothing of what it has; then it may go on."""
    await _lives(env, lambda medium: medium.fail_writes(FULL, times=env.random.choice((1, 2, 4))), lives=4)


@clause(level=4)
async def test_failed_syncs_acknowledge_nothing(env: Env) -> None:
    """What a failed sync was to make durable isn't, and a second sync doesn't say so: write again, or fail."""

    def hurt(medium: WalMedium) -> None:
        if not medium.is_own:
            medium.require_disk()
        medium.fail_syncs(env.random.choice((BROKEN, FULL)), times=env.random.choice((1, 1, 2)))

    await _lives(env, hurt)


@clause(level=4)
async def test_short_writes_are_completed_or_told(env: Env) -> None:
    """A write may take a part only, and says so: the rest is written, or nothing is acknowledged."""

    def hurt(medium: WalMedium) -> None:
        medium.require_disk()
        medium.disk.shorten(times=env.random.choice((1, 2, 5)))

    await _lives(env, hurt)
    history, place = History(), env.elsewhere()
    async with faulty_medium(place) as medium:
        for epoch in range(1, 5):  # whatever a write was made of: what is acknowledged is synced
            async with medium.open(epoch) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                history.check(found, "after a short write and a cut")
                bodies = make_bodies(4, size=2500 * epoch, owner=epoch)
                appends = await append_all(wal, bodies[:1])
                medium.disk.shorten(times=epoch)
                with suppress(PenstockError):  # of one that writes at once, and has failed by now
                    for body in bodies[1:]:
                        appends.append(wal.append([body]))
                await _ended(appends)
                history.add(bodies, appends)
                images = medium.disk.synced()
            medium.heal()
            medium.disk.restore(images)
        history.check(await read(place, 10), "after short writes and cuts")


@clause(level=4)
async def test_power_cut_takes_nothing_that_was_acknowledged(env: Env) -> None:
    """Durable when acknowledged: what wasn't synced is on the medium or not, in any order, and all acked is there."""
    history = History()
    async with faulty_medium(env) as medium:
        for epoch in range(1, 13):
            async with medium.open(epoch) as wal:
                history.check(
                    [bytes(entry.data) for entry in await recovered(wal)], f"after {epoch - 1} cuts"
                )
                if epoch == 1:
                    history.add([b"first"], await append_all(wal, [b"first"]))
                    medium.require_disk()
                sizes = env.random.choice(((50,), (50, 3000), (9000, 100)))
                bodies = [make_body(epoch, number, sizes[number % len(sizes)]) for number in range(110)]
                appends = [wal.append([body]) for body in bodies[: env.random.choice((1, 30, 110))]]
                appends += [wal.append([body]) for body in bodies[len(appends) :][:3]]
                cuts: list[tuple[list[bool], dict[str, bytes]]] = []

                def cut(appends: list[WalAppend] = appends, cuts: list[Any] = cuts) -> None:
                    """First who was told, then what is on the disk."""
                    cuts.append(([append.done for append in appends], medium.disk.power_cut(env.random)))

                medium.disk.on_sync = cut if epoch % 2 else lambda: None
                await appends[env.random.randrange(len(appends))].wait_durable()
                if not cuts:
                    cut()
                medium.disk.on_sync = lambda: None
                acked, images = env.random.choice(cuts)
                await _ended(appends)
            told = sum(acked)
            assert acked == sorted(acked, reverse=True), "acknowledged out of order"
            history.add(bodies, appends[:told])
            history.doubt(bodies[told : len(appends)])
            medium.disk.restore(images)


@clause(level=4)
async def test_what_a_power_cut_left_behind_never_comes_back(env: Env) -> None:
    """No entry is returned after a missing one, also not when others of its size have filled the hole since: what a
    cut left of a group that nobody was told of is out of the log, once its next owner has recovered without it."""
    async with faulty_medium(env) as medium:
        wanted: list[bytes] = []
        for number in range(_TORN_GROUPS):
            async with medium.open(3 * number + 1) as wal:
                check_same(
                    [bytes(entry.data) for entry in await recovered(wal)], wanted, f"after {number} cuts"
                )
                wanted += await _acked(wal, [b"first"])
                medium.require_disk()
                torn: list[dict[str, bytes]] = []

                def cut(torn: list[dict[str, bytes]] = torn) -> None:
                    torn.append(medium.disk.power_cut(env.random, 0.9))

                medium.disk.on_sync = cut
                await append_all(wal, make_bodies(_TORN_ENTRIES, size=1200, owner=number))
                medium.disk.on_sync = lambda: None
            medium.disk.restore(torn[0] if torn else {})
            async with medium.open(3 * number + 2) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                check_same(found[: len(wanted)], wanted, "acknowledged before a cut")
                wanted = found + await _acked(wal, make_bodies(3, size=1200, owner=100 + number))
            async with medium.open(3 * number + 3) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                check_same(found, wanted, "entries where a cut had left others")


@clause(level=4)
async def test_each_acknowledgement_is_of_what_is_synced(env: Env) -> None:
    """Durable when acknowledged: alone or with others, small or large, the first behind a trim, and the hundredth."""
    async with faulty_medium(env) as medium:
        kept: list[bytes] = []
        for life in range(_CUT_LIVES):
            async with medium.open(life + 1) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                check_same(found[len(found) - len(kept) :], kept, f"acknowledged entries, after {life} cuts")
                images = await _synced_at_a_doubt(env, medium, wal, kept, doubts=life * life)
            medium.disk.restore(images)


async def _synced_at_a_doubt(
    env: Env, medium: WalMedium, wal: Any, kept: list[bytes], doubts: int
) -> dict[str, bytes]:
    """What is synced when entries were just acknowledged and something isn't, past so many other ``doubts``.

    ``kept`` is then what was acknowledged and not trimmed.
    """
    for number in range(_CUT_GROUPS):
        bodies = make_bodies(
            env.random.choice((1, 1, 1, 3, 20)), size=env.random.choice((20, 500, 2000)), owner=number
        )
        appends = await append_all(wal, bodies)
        medium.require_disk()
        kept += bodies
        if not medium.disk.is_synced:
            doubts -= 1
            if doubts < 0:
                break
        if number % 6 == 5 or env.random.random() < 0.1:
            await wal.trim(appends[-1].next_position)
            kept.clear()
    return medium.disk.synced()


@clause(level=4)
async def test_no_group_is_acknowledged_unsynced(env: Env) -> None:
    """Durable when acknowledged: half a megabyte, whole pages, the three hundredth, what comes behind a refusal."""
    async with faulty_medium(env) as medium:
        kept: list[bytes] = []
        for life, plan in enumerate((_large, _whole_pages, _three_hundred, _after_a_refusal)):
            async with medium.open(life + 1) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                check_same(found[len(found) - len(kept) :], kept, "acknowledged before a cut")
                first = await append_all(wal, [b"first"])
                medium.require_disk()
                await wal.trim(first[0].next_position)
                kept = []
                async for bodies in plan(wal, first[0]):
                    await append_all(wal, bodies)
                    kept += bodies
                    if not medium.disk.is_synced:
                        break
                images = medium.disk.synced()
            medium.disk.restore(images)
        async with medium.open(5) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            check_same(found[len(found) - len(kept) :], kept, "acknowledged before the last cut")


async def _large(wal: Any, first: WalAppend) -> AsyncIterator[list[bytes]]:
    size = min(room_of(wal, 600_000) // 8, wal.capabilities.entry_bytes_max)
    yield make_bodies(8, size=size)


async def _whole_pages(wal: Any, first: WalAppend) -> AsyncIterator[list[bytes]]:
    """With what the log adds to an entry, as far as its positions tell."""
    added = (first.next_position - first.position - len(b"first")) % 4096
    for pages in (1, 2, 16):
        size = 4096 * pages - added
        if size <= min(room_of(wal, 2**17), wal.capabilities.entry_bytes_max):
            yield make_bodies(1, size=size, owner=pages)


async def _three_hundred(wal: Any, first: WalAppend) -> AsyncIterator[list[bytes]]:
    for number in range(300):
        last = await append_all(wal, make_bodies(1, size=20, owner=number))
        if number % 50 == 49:
            await wal.trim(last[-1].next_position)
    for number in range(2):
        yield make_bodies(1, size=20, owner=300 + number)


async def _after_a_refusal(wal: Any, first: WalAppend) -> AsyncIterator[list[bytes]]:
    capacity = wal.statistics().capacity_bytes
    size = min(wal.capabilities.entry_bytes_max, capacity // 4)
    if 0 < capacity <= 32 * 2**20:
        try:
            for number in range(2 * capacity // size):
                last = await append_all(wal, [bytes([number % 250 + 1]) * size])
        except FullError:
            await wal.trim(last[-1].next_position)
    with raises(InvalidRequestError):
        wal.append([])
    for number in range(2):
        yield make_bodies(1, size=100, owner=number)


@clause(level=4)
async def test_what_is_flushed_at_the_end_is_synced(env: Env) -> None:
    """Leave the context (flushes what was appended): what is acknowledged then is durable like everything else."""
    kept: list[bytes] = []
    async with faulty_medium(env) as medium:
        for life in range(3):
            bodies = make_bodies(1 + 12 * life, size=700, owner=life)
            async with medium.open(life + 1) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                check_same(found, kept, f"acknowledged entries, after {life} owners that were flushed")
                await append_all(wal, [b"first"])
                medium.require_disk()
                appends = [wal.append([body]) for body in bodies]
            kept += [b"first", *(bodies[at] for at, append in enumerate(appends) if append.error is None)]
            medium.disk.restore(medium.disk.synced())
        async with medium.open(4) as wal:
            check_same([bytes(entry.data) for entry in await recovered(wal)], kept, "what was flushed")


@clause(level=4)
async def test_lost_replies_are_resolved(env: Env) -> None:
    """A write that took effect and whose reply was lost is one entry, acknowledged or failed, and fences nobody."""

    def hurt(medium: WalMedium) -> None:
        medium.require_store()
        for method in ("put", "put_if_absent"):
            medium.store.lose_reply(method, times=env.random.choice((1, 1, 3)))

    await _lives(env, hurt)


@clause(level=4)
async def test_outage_is_not_the_end_of_the_log(env: Env) -> None:
    """All acknowledged entries, or an error that says that they can't be had: an outage makes no log shorter."""
    bodies = make_bodies(60)
    async with faulty_medium(env) as medium:
        async with medium.open(1) as wal:
            await recovered(wal)
            await append_all(wal, bodies[:40])
            for body in bodies[40:]:
                await append_all(wal, [body])
        epoch = 2
        for after in (-1, 0, 1, 5):
            for times in (1, 2, 60):
                found: list[bytes] | None = None
                with anyio.move_on_after(env.target.deadline_s / 8):
                    found = await _read_in_an_outage(medium, epoch, after, times)
                medium.heal()
                if found is not None:
                    check_same(found, bodies, "recovered in an outage, to a regular end")
                check_same(await read(env, epoch + 1), bodies, "after an outage")
                epoch += 2
        if not medium.is_disk and not medium.is_own:
            medium.require_store()


async def _read_in_an_outage(medium: WalMedium, epoch: int, after: int, times: int) -> list[bytes] | None:
    """What a new owner recovers if ``times`` reads fail when it has ``after`` entries; None if it is told.

    -1 is before it opens, 0 behind that.
    """
    found: list[bytes] = []
    try:
        if after < 0:
            medium.fail_reads(times)
        async with medium.open(epoch) as wal:
            if after == 0:
                medium.fail_reads(times)
            async for entry in wal.recover():
                found.append(bytes(entry.data))
                if len(found) == after:
                    medium.fail_reads(times)
    except PenstockError as error:
        assert not isinstance(error, CorruptError | FencedError), f"an outage was told as {error!r}"
        return None
    return found


@clause(level=4)
async def test_failed_trim_loses_nothing(env: Env) -> None:
    """``trim`` may be durable later: if the medium fails in it, what is above is there all the same, also when the
    next trim succeeds."""
    async with faulty_medium(env) as medium:
        epoch = 1
        for number in range(6):
            async with medium.open(epoch) as wal:
                await recovered(wal)
                bodies = make_bodies(40, owner=epoch)
                appends = [(await append_all(wal, [body]))[0] for body in bodies]
                medium.fail_writes(times=1 + number % 2, skip=number // 2)
                medium.store.fail("delete", times=number % 2, skip=number // 2)
                error = await error_of(wal.trim(appends[19].next_position))
                images = medium.disk.power_cut(env.random) if medium.is_disk else {}
                medium.heal()
                assert error is None or isinstance(error, PenstockError), f"a failed trim raised {error!r}"
                if number > 2:
                    with suppress(PenstockError):  # the log may have failed
                        await wal.trim(appends[29].next_position)
                        bodies = bodies[10:]
                        images = {}
            medium.disk.restore(images)
            found = await read(env, epoch + 1)
            check_same(
                found[len(found) - len(bodies[20:]) :], bodies[20:], "above a trim that met a failing medium"
            )
            epoch += 2


@clause(level=4)
async def test_trim_of_a_log_that_has_failed_says_so_or_nothing(env: Env) -> None:
    """The kernel trims what it uploaded while a log fails: an error of operation at most, and nothing is lost."""
    bodies = make_bodies(60)
    async with faulty_medium(env) as medium:
        async with medium.open(1) as wal:
            await recovered(wal)
            appends = await append_all(wal, bodies[:40])
            medium.fail_writes(BROKEN, times=60)
            with suppress(ClosedError, FencedError, FullError):
                appends += [wal.append([body]) for body in bodies[40:]]
            with Patience(env.target.deadline_s / 60):
                await _ended(appends)
            for append in (appends[9], appends[19]):
                error = await error_of(wal.trim(append.next_position))
                assert error is None or isinstance(error, UnavailableError | FencedError), (
                    f"a trim of a log that has failed raised {error!r}"
                )
            medium.heal()
            await _ended(appends)
            acked = bodies[20 : sum(append.error is None for append in appends)]
        found = await read(env, 2)
        begin = found.index(acked[0]) if acked[0] in found else len(found)
        check_same(found[begin:][: len(acked)], acked, "above the trims of a log that has failed")


@clause(level=4, claims="seal")
async def test_failed_seal_is_told(env: Env) -> None:
    """From the return of ``seal`` on no append of any owner is acknowledged, so it doesn't return unwritten."""
    for ended in (False, True):
        async with faulty_medium(env.elsewhere(f"ended-{ended}")) as medium:
            returned = False
            async with medium.open(1) as wal:
                await recovered(wal)
                await append_all(wal, make_bodies(3))
                medium.fail_writes(times=60)
                with Patience(env.target.deadline_s / 60):
                    if ended:  # an append fails, and the log perhaps with it; the medium works again
                        await error_of(wal.append([b"failed"]).wait_durable())
                        medium.heal()
                    returned = await error_of(wal.seal()) is None
                medium.heal()
            async with medium.open(2) as wal:
                found = [bytes(entry.data) for entry in await recovered(wal)]
                check_same([body for body in found if body != b"failed"], make_bodies(3), "of a sealed log")
                if returned:
                    with raises(FencedError):
                        await wal.append([b"late"]).wait_durable()


@clause(level=4, claims="seal")
async def test_power_cut_unseals_nothing(env: Env) -> None:
    """From the return of ``seal`` on no append of any owner is acknowledged: it was made durable."""
    async with faulty_medium(env) as medium:
        async with medium.open(1) as wal:
            await recovered(wal)
            await append_all(wal, make_bodies(3))
            medium.require_disk()
            await wal.seal()
            images = medium.disk.synced()
        medium.disk.restore(images)
        async with medium.open(2) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            check_same(found, make_bodies(3), "of a log that was sealed before a cut")
            with raises(FencedError):
                await wal.append([b"late"]).wait_durable()


@clause(level=4)
async def test_failed_opening_leaves_nothing(env: Env) -> None:
    """Who can't open or recover a log, or gives up, leaves no descriptor, task or thread: the broker tries again."""
    async with faulty_medium(env) as medium:
        epoch = 1
        async with medium.open(epoch) as wal:
            await recovered(wal)
            await append_all(wal, make_bodies(5))

        async def attempt(fail: Callable[[], None], *, opened: bool) -> None:
            nonlocal epoch
            epoch += 1
            with suppress(PenstockError), Patience(env.target.deadline_s / 200):
                if not opened:
                    fail()
                async with medium.open(epoch) as wal:
                    fail()
                    await recovered(wal)
            medium.heal()

        def fail_writes() -> None:
            medium.fail_writes(times=60)

        def fail_reads() -> None:
            medium.fail_reads(60)

        for fail, opened in ((fail_writes, False), (fail_reads, False), (fail_reads, True)):
            await looks_leave_nothing(partial(attempt, fail, opened=opened))
        check_same(await read(env, epoch + 1), make_bodies(5), "after openings in vain")


@clause(level=4)
async def test_looks_in_an_outage_find_no_other_log(env: Env) -> None:
    """A medium that fails is told as such: not as a log that isn't there, another one, or one with fewer entries."""
    async with faulty_medium(env) as medium:
        async with medium.open(1) as wal:
            await recovered(wal)
            await append_all(wal, make_bodies(5))
            claims_identity = wal.capabilities.identity
        right = await env.identify() if claims_identity else None
        for times in (1, 2, 60):
            if claims_identity:
                medium.fail_reads(times)
                told = await _looked(env, env.identify(object_store=medium.store))
                assert told in (right, _OUTAGE), (
                    f"in an outage the identity was told as {told}, it is {right}"
                )
            if env.can_read_outside():
                medium.fail_reads(times)
                entries = await _looked(env, env.read_outside(object_store=medium.store))
                if entries != _OUTAGE:
                    found = [bytes(entry.data) for entry in entries]
                    check_same(found, make_bodies(5), "read from outside in an outage, to a regular end")
            if env.can_describe_outside():
                medium.fail_reads(times)
                await _looked(env, env.describe_outside(object_store=medium.store))
            medium.heal()


async def _looked(env: Env, look: Awaitable[Any]) -> Any:
    """What a look from outside told, or that the medium failed, or that nothing came in time."""
    with Patience(env.target.deadline_s / 60):
        try:
            return await look
        except (CorruptError, FencedError, NotFoundError) as error:
            raise AssertionError(f"an outage was told as {error!r}") from error
        except (PenstockError, OSError):
            return _OUTAGE
    return _OUTAGE


@clause(level=4, claims="fencing")
async def test_late_write_of_a_fenced_owner_is_never_acknowledged(env: Env) -> None:
    """A write that a fenced owner had on its way lands after the takeover, or fails and is tried again then, also
    where all is trimmed by now: not acknowledged, no part of the log. What it was charged for is released."""
    await _lands_where_all_is_trimmed(env.elsewhere("trimmed"))
    async with faulty_medium(env) as medium:
        wanted: list[bytes] = []
        for number in range(8):
            epoch = 10 * number + 1
            async with AsyncExitStack() as stack:
                old = await stack.enter_async_context(medium.open(epoch))
                account = env.plain_allocator
                await recovered(old)
                wanted += await _acked(old, make_bodies(4, owner=epoch))
                medium.require_store()
                lost_reply = number % 2 == 1
                medium.store.hold("put_if_absent", "put", after=lost_reply)
                late = [old.append([body]) for body in make_bodies(3, owner=epoch + 1)]
                for _ in range(20):
                    await checkpoint()
                medium.store.hold()
                new = await stack.enter_async_context(medium.open(epoch + 2))
                found = [bytes(entry.data) for entry in await recovered(new)]
                check_same(found[: len(wanted)], wanted, "what the fenced owner had acknowledged")
                landed = found[len(wanted) :]
                check_same(landed, make_bodies(3, owner=epoch + 1)[: len(landed)], "behind it")
                wanted = found + await _acked(new, make_bodies(3, owner=epoch + 2))
                if number % 4 == 2:
                    medium.store.fail("put_if_absent", times=len(medium.store.held))
                medium.store.release()
                for place, append in enumerate(late):
                    with suppress(FencedError, ClosedError, UnavailableError):
                        await append.wait_durable()
                        assert place < len(landed), "acknowledged, and the new owner doesn't have it"
                with raises(FencedError, ClosedError):
                    await old.append([b"again"]).wait_durable()
                medium.store.heal()
                wanted += await _acked(new, make_bodies(2, owner=epoch + 3))
            charged = account.statistics().used_bytes if account is not None else 0
            assert charged == 0, f"an owner that was fenced was left, and {charged} bytes are accounted for"
        check_same(await read(env, 100), wanted, "after writes that landed late")


async def _lands_where_all_is_trimmed(env: Env) -> None:
    async with faulty_medium(env) as medium, AsyncExitStack() as stack:
        old = await stack.enter_async_context(medium.open(1))
        await recovered(old)
        await _acked(old, make_bodies(4))
        medium.require_store()
        medium.store.hold("put_if_absent", "put")
        late = [old.append([body]) for body in make_bodies(3, owner=1)]
        for _ in range(20):
            await checkpoint()
        medium.store.hold()
        new = await stack.enter_async_context(medium.open(2))
        await recovered(new)
        for owner in (2, 3, 4, 5):
            appends = await append_all(new, make_bodies(3, owner=owner))
            await new.trim(appends[-1].next_position)
        await append_all(new, make_bodies(2, owner=6))
        medium.store.release()
        for append in late:
            with suppress(FencedError, ClosedError, UnavailableError):
                await append.wait_durable()
                raise AssertionError("acknowledged, where a newer owner had trimmed all that was there")
    found = await read(env, 100)
    check_same(found[-2:], make_bodies(2, owner=6), "after a write that landed where all was trimmed")


async def _acked(wal: Any, bodies: list[bytes]) -> list[bytes]:
    for body in bodies:
        await append_all(wal, [body])
    return bodies


@clause(level=4, claims="fencing")
async def test_writes_that_end_out_of_order_are_acknowledged_in_order(env: Env) -> None:
    """Appends complete in position order, whichever write ends first; a new owner finds all that were."""
    async with faulty_medium(env) as medium:
        history = History()
        for epoch in range(1, 16, 3):
            async with AsyncExitStack() as stack:
                old = await stack.enter_async_context(medium.open(epoch))
                history.check([bytes(entry.data) for entry in await recovered(old)], f"in life {epoch}")
                history.add([b"first"], await append_all(old, [b"first"]))
                medium.require_store()
                bodies = make_bodies(6, size=3000, owner=epoch)
                appends = await _append_beside_each_other(old, medium, bodies)
                for _ in range(1 + epoch % 4):
                    if medium.store.held:
                        place = env.random.randrange(len(medium.store.held)) if epoch % 2 else -1
                        medium.store.release_one(place)
                    for _ in range(20):
                        await checkpoint()
                    done = [append.done and append.error is None for append in appends]
                    assert done == sorted(done, reverse=True), "acknowledged before an earlier append was"
                history.add(bodies, [append for append in appends if append.done])
                history.doubt(bodies[sum(done) :])
                medium.store.hold()
                new = await stack.enter_async_context(medium.open(epoch + 1))
                found = [bytes(entry.data) for entry in await recovered(new)]
                history.check(found, f"taken over from an owner with writes on their way, in life {epoch}")
                history.add([b"new"], await append_all(new, [b"new"]))
                medium.store.release()
                for body, append in zip(bodies, appends, strict=True):
                    with suppress(FencedError, ClosedError):
                        await append.wait_durable()
                        assert body in found, (
                            "acknowledged after the takeover, and the new owner doesn't have it"
                        )


async def _append_beside_each_other(wal: Any, medium: WalMedium, bodies: list[bytes]) -> list[WalAppend]:
    """Append, with all writes held up; several of them, if the log writes several at a time."""
    medium.store.hold("put_if_absent", "put")
    appends = []
    all_are_held = True
    for body in bodies:
        appends.append(wal.append([body]))
        if all_are_held:
            with Patience(0.2) as scope:
                await medium.store.wait_held(len(appends))
            all_are_held = not scope.cancelled_caught
        else:
            await checkpoint()
    return appends
