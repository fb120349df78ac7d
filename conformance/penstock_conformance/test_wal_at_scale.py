"""Clauses of ``penstock.spi.wal``: large and many groups, large entries, laps, company, openings, from outside."""

from __future__ import annotations

import asyncio
import bz2
import gc
import gzip
import itertools
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from crc32c import crc32c

from penstock.errors import ClosedError, CorruptError, FencedError, FullError, PenstockError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import BoundedLog, WalAppend
from penstock_conformance._body import Label, check_body, make_body
from penstock_conformance._child import Child, killed
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._leaks import leaves_nothing
from penstock_conformance._medium import flipped, medium_of, zero_around
from penstock_conformance._pace import Pace
from penstock_conformance._wal_steps import (
    append_all,
    check_same,
    make_bodies,
    read,
    recovered,
    room_of,
    surviving,
)

KIND = "wal"

#: Entries of a burst: beyond every small power of two at which a group or a vector of buffers may end.
_BURST = 1100
#: What a group takes of a log at most, whatever its alignment, if its entries are small.
_GROUP_BYTES = 8192
#: How many groups a log has when it is opened again.
_LENGTHS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 48, 64, 96, 100, 128)
#: One in so many groups of a log is damaged, from its beginning to its end.
_STRIDE = 8
#: How many entries a process appends at a time that is killed then, and of how many bytes at most.
_BURSTS = (150, 400)
_ENTRY_BYTES = 300
#: Entries up to here are written in no time.
_LARGE_BYTES = 8 * 2**20


async def test_large_bursts_come_back_whole(env: Env) -> None:
    """All acknowledged entries in append order, and their callbacks: also the last of a burst, however long it is."""
    bodies = make_bodies(_BURST, size=60)
    told: list[int] = []

    def tell(append: WalAppend) -> None:
        told.append(append.position)

    def tell_run(run: Sequence[WalAppend], _: Exception | None) -> None:
        told.extend(append.position for append in run)

    async with env.open() as wal:
        await recovered(wal)
        appends = [wal.append([body]) for body in bodies]
        for number, append in enumerate(appends):
            if number // 100 % 2:
                append.set_run_callback(tell_run)
            else:
                append.set_callback(tell)
        await appends[-1].wait_durable()
        assert told == [append.position for append in appends], (
            f"{len(told)} of {_BURST} entries were told, or not in their order"
        )
        await append_all(wal, [b"behind"])
    check_same(await read(env), [*bodies, b"behind"], f"a burst of {_BURST}")


async def test_a_thousand_groups_come_back(env: Env) -> None:
    """All acknowledged entries since the trim point, however many groups they are, to each opening."""
    async with env.open() as wal:
        await recovered(wal)
        bodies = make_bodies(1010, size=60)
        appends: list[WalAppend] = []
        pace = Pace(env.target.deadline_s / 5, len(bodies))
        while len(appends) < len(bodies) and not pace.is_over and _has_room(wal):
            appends += await append_all(wal, [bodies[len(appends)]])
            pace.step()
        count = len(appends)
        bodies = bodies[:count]
        for earlier, later in itertools.pairwise(appends):
            assert earlier.next_position <= later.position, "two entries overlap, or positions don't grow"
    check_same(await read(env, 2), bodies, f"{count} groups")
    if env.can_read_outside():
        outside = [bytes(entry.data) for entry in await env.read_outside()]
        check_same(outside, bodies, f"{count} groups, read from outside")
    async with env.open(epoch=3) as wal:
        entries = await recovered(wal)
        check_same([bytes(entry.data) for entry in entries], bodies, f"{count} groups, opened again")
        assert [entry.position for entry in entries] == [one.position for one in appends], "other positions"
        await append_all(wal, make_bodies(70, owner=3))
        cut = count - count // 7
        await wal.trim(appends[cut].next_position)
        left = [*bodies[cut + 1 :], *make_bodies(70, owner=3)]
        if wal.capabilities.fencing:  # who takes it over finds it as the trim left it, without an end
            check_same((await read(env, 4))[-len(left) :], left, f"{count} groups, taken over after a trim")
    check_same((await read(env, 5))[-len(left) :], left, f"{count} groups after a trim")


def _has_room(wal: Any) -> bool:
    """A bounded log isn't much more than half full."""
    counters = wal.statistics()
    return bool(counters.capacity_bytes == 0 or 5 * counters.used_bytes < 3 * counters.capacity_bytes)


async def test_entries_of_all_sizes_come_back_as_they_were(env: Env) -> None:
    """``data`` is exactly the bytes that were appended, in whatever buffers, with a known checksum and without."""
    async with env.open() as wal:
        await recovered(wal)
        left = room_of(wal, 6 * 2**20)
        largest = min(wal.capabilities.entry_bytes_max, left // 6)
        left -= 2 * largest
        bodies: list[bytes] = [env.random.randbytes(largest), env.random.randbytes(largest - 1)]
        while left > 0 and len(bodies) < 150:
            size = env.random.choice((1, 30, 4096, env.random.randrange(1, 70_000), largest // 3))
            size = min(size, largest)
            bodies.append(env.random.randbytes(size))
            left -= size + _GROUP_BYTES
        bodies += _looks_packed()
        last = [await _append_in_pieces(env, wal, body) for body in bodies][-1]
        await last.wait_durable()
    check_same(await read(env), bodies, "entries of all sizes")


def _looks_packed() -> list[bytes]:
    """What a log that packs entries, or marks their kind, might take for its own work."""
    text = b"an entry that is shorter when it is packed" * 3
    return [
        zlib.compress(text),
        gzip.compress(text),
        bz2.compress(text),
        b"\xef\xbb\xbf" + text,
        b"\r\n",
        b"\0",
    ]


async def test_megabytes_of_small_entries_come_back_as_they_were(env: Env) -> None:
    """``data`` is exactly the bytes that were appended, wherever in the log they are, or in what is read at once."""
    async with env.open() as wal:
        await recovered(wal)
        bodies: list[bytes] = []
        size = 0
        while size < 5 * 2**20 // 2 and _has_room(wal):
            left = room_of(wal, 200_000)
            burst: list[bytes] = []
            while left > 0:
                burst.append(env.random.randbytes(env.random.randrange(1000, 2500)))
                left -= len(burst[-1])
            await append_all(wal, burst)
            bodies += burst
            size += sum(map(len, burst))
    check_same(await read(env), bodies, f"{len(bodies)} small entries")


async def _append_in_pieces(env: Env, wal: Any, body: bytes) -> WalAppend:
    """In one buffer, or in thousands; mostly at once, sometimes when all before is durable."""
    step = env.random.choice((len(body), len(body), 1 + len(body) // 3000, 1 + len(body) // 40))
    parts: list[Buffer] = [body[start : start + step] for start in range(0, len(body), step)]
    append: WalAppend = wal.append(parts, crc32c(body) if env.random.random() < 0.5 else None)
    if env.random.random() < 0.1:
        await append.wait_durable()
    return append


async def test_trim_while_appends_pend_loses_nothing(env: Env) -> None:
    """``trim`` drops entries up to its position: what is appended and not yet durable is above it."""
    wanted: list[bytes] = []
    async with env.open() as wal:
        await recovered(wal)
        for number in range(8):
            appends = await append_all(wal, make_bodies(30, owner=2 * number))
            pending = make_bodies(70, owner=2 * number + 1)
            later: list[WalAppend] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_append_one_by_one, wal, pending, later)
                for place in (5, 10, 20, -2, 3):
                    for _ in range(number % 3):
                        await checkpoint()
                    tasks.start_soon(wal.trim, appends[place].next_position)
            for append in later:
                await append.wait_durable()
            wanted = [make_bodies(30, owner=2 * number)[-1], *pending]
    check_same((await read(env))[-len(wanted) :], wanted, "what was pending when a trim came")


async def _append_one_by_one(wal: Any, bodies: list[bytes], appends: list[WalAppend]) -> None:
    """One in each turn of the event loop, so that at any moment some are pending."""
    for body in bodies:
        appends.append(wal.append([body]))
        await checkpoint()


@clause(claims="bounded")
async def test_nothing_above_a_trim_is_lost_on_later_laps(env: Env) -> None:
    """Entries whose next position is at most ``position`` may be dropped, no others, however often it was filled."""
    async with env.open() as wal:
        capacity = wal.statistics().capacity_bytes
        if capacity > 32 * 2**20:
            not_applicable("filling the log several times would take long, set a capacity of at most 32MiB")
        has_identity = wal.capabilities.identity
    identity = await env.identify() if has_identity else None
    history: list[tuple[bytes, WalAppend]] = []
    size = capacity // 120 or 2000
    trimmed = 0
    for epoch in range(2, 8):
        async with env.open(epoch=epoch) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            kept = [body for body, append in history if append.next_position > trimmed]
            check_same(found[len(found) - len(kept) :], kept, f"above the trim point, in lap {epoch - 1}")
            for number in range(140):
                body = make_body(epoch, number, size)
                try:
                    append = wal.append([body])
                except FullError:
                    await history[-1][1].wait_durable()
                    trimmed = history[-min(env.random.randrange(2, 30), len(history))][1].position
                    await wal.trim(trimmed)
                    append = wal.append([body])
                history.append((body, append))
                if number % 5 == 0:
                    await append.wait_durable()
            await history[-1][1].wait_durable()
            trimmed = max(trimmed, history[-env.random.randrange(3, 9)][1].position)
            await wal.trim(trimmed)
        now = await env.identify() if has_identity else None
        assert now == identity, f"it is another log after lap {epoch - 1}: identity={now} before={identity}"


@clause(claims="bounded")
async def test_what_would_fit_is_taken(env: Env) -> None:
    """``would_fit`` says yes only if ``append`` wouldn't raise FullError; of a log that is trimmed to its end it does
    for every entry that the log takes at all."""
    async with env.open() as wal:
        await recovered(wal)
        if not _is_asked(wal):
            not_applicable("the log has no would_fit, as SPI version 2 asks")
        capacity, largest = wal.statistics().capacity_bytes, wal.capabilities.entry_bytes_max
        if capacity > 32 * 2**20:
            not_applicable("filling the log would take long, set a capacity of at most 32MiB")
        for lap in range(4):
            assert wal.would_fit(largest), f"trimmed to its end, and has no room: entry_bytes={largest}"
            number = 0
            # to the last byte that it says to have, with entries that are written and such as aren't yet
            while (size := _largest(wal, min(largest, max(1, capacity // env.random.randrange(5, 40))))) > 0:
                end = wal.statistics().end_position
                append = _taken(wal, make_body(lap, number, size) if size >= 28 else bytes(size), size)
                assert append.position >= end, "asking what would fit took room"
                number += 1
                if env.random.random() < 0.3:
                    await append.wait_durable()
            with suppress(FullError):  # it has refused one, which is forgotten with the trim
                append = wal.append([bytes(min(largest, _LARGE_BYTES))])
            await append.wait_durable()
            await wal.trim(append.next_position)
    async with env.open(epoch=2) as wal:  # trimmed to its end, and written to by others only
        await recovered(wal)
        await wal.trim(wal.statistics().end_position)
        assert wal.would_fit(largest), f"opened again and trimmed, and has no room: entry_bytes={largest}"
        if largest <= _LARGE_BYTES:
            await _taken(wal, bytes(largest), largest).wait_durable()


def _is_asked(wal: object) -> bool:
    return isinstance(wal, BoundedLog)


def _largest(wal: BoundedLog, size_max: int) -> int:
    """The largest entry up to ``size_max`` that would fit; 0: none does."""
    low, high = 0, size_max + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wal.would_fit(middle) else (low, middle)
    return low


def _taken(wal: Any, body: bytes, size: int) -> WalAppend:
    try:
        append: WalAppend = wal.append([body])
    except FullError as error:
        raise AssertionError(f"it would fit, and wasn't taken: entry_bytes={size} error={error}") from error
    return append


@clause(claims="bounded")
async def test_refused_entry_leaves_nothing(env: Env) -> None:
    """FullError: nothing was appended; what was accepted before is durable, and what fits is still taken."""
    async with env.open() as wal:
        await recovered(wal)
        capacity = wal.statistics().capacity_bytes
        if capacity > 32 * 2**20:
            not_applicable("filling the log would take long, set a capacity of at most 32MiB")
        size = min(capacity // 20, wal.capabilities.entry_bytes_max)
        bodies: list[bytes] = []
        refusals = 0
        while size >= 28:
            body = make_body(refusals, len(bodies), size)
            end = wal.statistics().end_position
            try:
                append = wal.append([body])
            except FullError:
                assert wal.statistics().end_position == end, "a refused entry took room"
                refusals += 1
                size //= 2
            else:
                bodies.append(body)
                last = append
        await last.wait_durable()
        assert wal.statistics().appended_entries == len(bodies), "refused entries are counted as appended"
    check_same(await read(env), bodies, f"what a log accepted that refused {refusals} times")


async def test_each_opening_finds_what_all_before_it_left(env: Env) -> None:
    """Entries of all owners, over any number of openings: some append much, some nothing, some trim."""
    wanted: list[bytes] = []
    trimmed: list[bytes] = []
    for epoch in range(1, 14):
        async with env.open(epoch=epoch) as wal:
            entries = await recovered(wal)
            found = [bytes(entry.data) for entry in entries]
            check_same(found[len(found) - len(wanted) :], wanted, f"what opening {epoch} finds")
            check_same(found, [*trimmed, *wanted][-len(found) :] if found else [], f"of opening {epoch}, all")
            added = make_bodies((0, 1, 90, 5)[epoch % 4], owner=epoch)
            appends = await append_all(wal, added)
            wanted += added
            gone = len(wanted) - 3
            if epoch % 5 == 0 and len(appends) > 3:
                await wal.trim(appends[-4].next_position)
            elif not added and gone > 0:  # what others have appended
                await wal.trim(entries[-4].next_position)
            else:
                continue
            trimmed, wanted = [*trimmed, *wanted[:gone]], wanted[gone:]
    check_same((await read(env, 20))[-len(wanted) :], wanted, "what all openings left")
    await _lengths_come_back(env.elsewhere("lengths"))


async def _lengths_come_back(env: Env) -> None:
    """Logs of as many groups as windows and pages hold, one more, and one fewer."""
    pace = Pace(env.target.deadline_s / 5, max(_LENGTHS))
    wanted: list[bytes] = []
    for epoch, length in enumerate((*_LENGTHS, 0), 1):
        async with env.open(epoch=epoch) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            check_same(found, wanted, f"a log of {len(wanted)} groups")
            while len(wanted) < length and not pace.is_over and _has_room(wal):
                wanted.append(make_body(epoch, len(wanted), 60))
                await append_all(wal, wanted[-1:])
                pace.step()


async def test_owner_that_ends_in_its_recovery_loses_nothing(env: Env) -> None:
    """Recovery changes nothing of what is there: an owner may end at any place of it, again and again."""
    bodies = make_bodies(150)
    async with env.open() as wal:
        await recovered(wal)
        await append_all(wal, bodies[:100])
        for body in bodies[100:]:
            await append_all(wal, [body])
    for epoch, stop in enumerate((0, 1, 99, 149, 150), 2):
        async with env.open(epoch=epoch) as wal:
            entries = wal.recover()
            for _ in range(stop):
                await anext(entries)
            if epoch % 2:
                await entries.aclose()
    check_same(await read(env), bodies, "after owners that ended in their recoveries")


@clause(claims="fencing")
async def test_racing_openers_lose_nothing(env: Env) -> None:
    """Of owners that open at once the newest holds the log, with all that any of them had acknowledged."""
    acked: list[bytes] = []
    unacked: set[bytes] = set()  # appended by who was fenced before it was told: may be there or not
    for number in range(6):
        first = 10 * number + 1
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(env.open(epoch=first))
            found = [bytes(entry.data) for entry in await recovered(old)]
            check_same([body for body in found if body not in unacked], acked, f"before race {number}")
            await append_all(old, make_bodies(80, owner=first))
            acked += make_bodies(80, owner=first)
            order = list(range(1, 5))
            env.random.shuffle(order)
            done: dict[int, list[bytes]] = {}
            await together(call(partial(_own_for_a_moment, env, done), first + each) for each in order)
        assert done, "nobody could open the log"
        for owner in (first + each for each in sorted(order)):
            acked += done.get(owner, [])
            unacked.update(() if owner in done else make_bodies(1, owner=owner))
    found = [body for body in await read(env, 100) if body not in unacked]
    check_same(found, acked, "after races of openers")


async def _own_for_a_moment(env: Env, done: dict[int, list[bytes]], epoch: int) -> None:
    """Open, recover, append; what was acknowledged goes to ``done``. A newer one may come at any time."""
    with suppress(FencedError, ClosedError):
        async with env.open(epoch=epoch) as wal:
            for body in make_bodies(1, owner=epoch):
                await recovered(wal)
                await wal.append([body]).wait_durable()
                done[epoch] = [body]


@clause(claims="fencing")
async def test_fence_meets_every_entry_of_a_burst(env: Env) -> None:
    """``open`` fences an older owner: of hundreds that it has pending, those are acknowledged that are recovered."""
    epoch = 1
    for number in range(6):
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(env.open(epoch=epoch))
            await recovered(old)
            appends = [old.append([body]) for body in make_bodies(400, size=100, owner=epoch)]
            for _ in range(2 * number):
                await checkpoint()
            new = await stack.enter_async_context(env.open(epoch=epoch + 1))
            with suppress(FencedError, ClosedError):
                appends += [old.append([body]) for body in make_bodies(300, size=100, owner=epoch + 5)]
            entries = await recovered(new)
            found = {check_body(entry.data) for entry in entries}
            await append_all(new, make_bodies(3, owner=epoch + 1))
            for append in appends:
                with suppress(FencedError, ClosedError):
                    await append.wait_durable()
            for sequence, append in enumerate(appends[:400]):
                if append.error is None:
                    assert Label(epoch, sequence) in found, "acknowledged, but not recovered by the new owner"
            assert all(append.error is not None for append in appends[400:]), (
                "appended after the new owner's open returned, and acknowledged"
            )
            if entries:
                await new.trim(entries[-1].next_position)
        epoch += 10


@clause(claims="seal")
async def test_seal_meets_what_is_pending(env: Env) -> None:
    """From the return of ``seal`` on nothing is acknowledged; what was acknowledged before is there."""
    async with env.open() as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(90, owner=1))
        appends = [wal.append([body]) for body in make_bodies(300, size=100, owner=2)]
        called: list[WalAppend] = []  # those that callbacks make meanwhile

        def append_more(_: WalAppend) -> None:
            with suppress(PenstockError):
                called.append(wal.append([b"of a callback"]))
                if len(called) < 20:
                    called[-1].set_callback(append_more)

        for append in appends[9::97]:
            append.set_callback(append_more)
        await wal.seal()
        by_then = [append for append in appends if append.done and append.error is None]
        called_by_then = sum(append.done and append.error is None for append in called)
        with raises(PenstockError):
            await wal.append([b"late"]).wait_durable()
        for append in appends + called:
            with suppress(PenstockError):
                await append.wait_durable()
        assert sum(append.error is None for append in appends) == len(by_then), "acknowledged after the seal"
        assert sum(append.error is None for append in called) == called_by_then, (
            "what a callback appended was acknowledged after the seal"
        )
    wanted = [*make_bodies(90, owner=1), *make_bodies(300, size=100, owner=2)[: len(by_then)]]
    for epoch in (2, 3):
        found = await read(env, epoch)
        check_same(found[: len(wanted)], wanted, "what a sealed log had acknowledged")


async def test_callback_that_raises_keeps_nobody_waiting(env: Env) -> None:
    """All are completed, even if a callback raises: the log goes on, and who waits for others is answered."""

    def bad(_: WalAppend) -> None:
        raise RuntimeError("the suite's own callback raises")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # where such an error may be told
    try:
        async with env.open() as wal:
            await recovered(wal)
            for number in range(3):
                appends = [wal.append([body]) for body in make_bodies(20, owner=number)]
                for place in (0, 7):
                    with suppress(RuntimeError):  # at once, if it is done already
                        appends[place].set_callback(bad)
                for append in appends[1:7] + appends[8:]:
                    await append.wait_durable()
    finally:
        loop.set_exception_handler(None)
    check_same(await read(env), [b for n in range(3) for b in make_bodies(20, owner=n)], "with bad callbacks")


class _Payload(bytearray):
    """Memory whose end can be seen."""


async def _append_payloads(wal: Any, owner: int) -> list[weakref.ref[_Payload]]:
    """Append some, wait for them, and return only references that don't keep them."""
    payloads = [_Payload(body) for body in make_bodies(40, size=3000, owner=owner)]
    appends: list[WalAppend] = []
    with suppress(PenstockError):
        appends += [wal.append([payload]) for payload in payloads]
    for append in appends:
        with suppress(PenstockError):
            await append.wait_durable()
    return [weakref.ref(payload) for payload in payloads]


async def test_payloads_are_let_go(env: Env) -> None:
    """Buffers belong to the caller again when an append is done, or failed: the log keeps none, also an idle one."""
    async with AsyncExitStack() as stack:
        wal = await stack.enter_async_context(env.open())
        await recovered(wal)
        seen: list[weakref.ref[_Payload]] = []
        for number in range(5):
            if number == 4 and wal.capabilities.fencing:
                await stack.enter_async_context(env.open(epoch=2))
            seen += await _append_payloads(wal, number)
        # what acknowledged the last ones may have a way to go until it ends
        until = time.monotonic() + env.target.deadline_s / 20
        while (kept := sum(ref() is not None for ref in seen)) and time.monotonic() < until:
            await anyio.sleep(0.01)
            gc.collect()
        assert kept == 0, f"{kept} of {len(seen)} payloads are still held by a log with nothing to do"


async def test_opening_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""

    async def use(wal: Any) -> None:
        await recovered(wal)
        appends = await append_all(wal, make_bodies(5))
        await wal.trim(appends[-1].next_position)
        wal.append([b"flushed at the end"])

    await leaves_nothing(env, use)


async def test_statistics_go_along(env: Env) -> None:
    """A snapshot of the state: of hundreds of entries, of what pends, and of the room that a trim gives back."""
    async with env.open() as wal:
        await recovered(wal)
        appends: list[WalAppend] = []
        count = room_of(wal, 200 * _GROUP_BYTES) // _GROUP_BYTES
        if not count:
            not_applicable("the log is too small for a group after the other")
        pace = Pace(env.target.deadline_s / 5, count)
        while len(appends) < 3 * count and not pace.is_over:
            appends += await append_all(wal, make_bodies(3, size=100, owner=len(appends)))
            pace.step()
        count = len(appends) // 3
        pending = [wal.append([body]) for body in make_bodies(70, size=100)]
        counters = wal.statistics()
        assert counters.appended_entries == 3 * count + 70, f"entries: {counters.appended_entries}"
        assert counters.appended_payload_bytes == 100 * (3 * count + 70), "other payload bytes than appended"
        assert 0 <= counters.pending_entries <= 70, f"pending: {counters.pending_entries}"
        assert counters.pending_entries == sum(not append.done for append in pending), "what pends isn't told"
        if counters.pending_entries == len(pending):
            told = counters.pending_bytes
            assert told >= 70 * 100, f"entries of 7000 bytes pend, with all that goes with them: {told} told"
        for append in pending:
            await append.wait_durable()
        assert wal.statistics().written_groups >= count, "groups are written one after the other"
        before = wal.statistics()
        await wal.trim(appends[-1].next_position)
        counters = wal.statistics()
        has_bound = counters.capacity_bytes > 0
        assert wal.capabilities.bounded == has_bound, (
            f"room for 0 bytes is unbounded: {counters.capacity_bytes}"
        )
        if wal.capabilities.bounded:  # others may drop entries later, or never
            assert counters.trimmed_position >= appends[-1].next_position, "the trim point isn't told"
        if counters.trimmed_position > before.trimmed_position:
            assert counters.used_bytes < before.used_bytes, "a trim of nearly all gave no room back"
        assert counters.confirmed_position >= pending[-1].next_position, "the confirmed position lags"


# --- 2: races between processes


@clause(level=2, claims="fencing")
async def test_fenced_process_with_much_on_its_way_acknowledges_nothing_more(env: Env) -> None:
    """Two owners, hundreds of entries on their way: what the fenced one acknowledged, the new one recovers."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
    for number in range(3 * env.rounds):
        epoch = 2 * number + 2
        async with Child(env, "append_until_fenced", epoch=epoch, owner=epoch, pending=200) as child:
            assert await child.next() == ["ready"], "the child process failed to open the log"
            acked = [await child.next() for _ in range(env.random.randrange(1, 300))]
            async with env.open(epoch=epoch + 1) as wal:
                entries = await recovered(wal)
                found = {check_body(entry.data) for entry in entries}
                await wal.append([make_body(epoch + 1, 0, 100)]).wait_durable()
                lines = await child.finish()
                assert lines and lines[-1][0] == "end", "the fenced process wasn't told"
                acked += lines[:-1]
                lost = [line[1] for line in acked if Label(epoch, line[1]) not in found]
                assert not lost, f"acknowledged, and the new owner didn't recover them: {lost[:5]}"
                await wal.trim(entries[-1].next_position)


# --- 3: crashes and damage


@clause(level=3)
async def test_large_bursts_survive_a_kill(env: Env) -> None:
    """All acknowledged entries since the trim point: of bursts of hundreds, too."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
        if room_of(wal, _BURSTS[0] * _ENTRY_BYTES) < _BURSTS[0] * _ENTRY_BYTES:
            not_applicable("the log is too small for a burst")
        recovered_before: set[Label] = set()
    for number in range(1, 6 * env.rounds + 1):
        owner = 2 * number
        lines = await killed(
            env,
            "append_until_killed",
            "at an ack" if number % 3 else "from outside",
            900,
            epoch=owner,
            owner=owner,
            seed=env.random.randrange(2**32),
            trim=False,
            bursts=_BURSTS,
            sizes=(60, _ENTRY_BYTES),
        )
        acked = [(line[1], line[2]) for line in lines if line[0] == "ack"]
        trimmed = max((line[1] for line in lines if line[0] == "trim"), default=0)
        async with env.open(epoch=owner + 1) as wal:
            entries = await recovered(wal)
            found = {check_body(entry.data) for entry in entries}
            lost = [
                sequence for sequence, end in acked if end > trimmed and Label(owner, sequence) not in found
            ]
            assert not lost, f"{len(lost)} of {len(acked)} acknowledged entries are lost, from {lost[0]} on"
            recovered_before = found
            if entries:
                await wal.trim(entries[-1].next_position)
    assert recovered_before, "nothing was ever recovered"


@clause(level=3)
async def test_damage_far_into_the_log_is_reported(env: Env) -> None:
    """CorruptError, naming the position, wherever an entry below the confirmed position is damaged or lost (I10): all
    that was acknowledged when the newest entry was appended is, however the owner ended."""
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        path = medium_of(wal)
        count = min(160, room_of(wal, 160 * _GROUP_BYTES) // _GROUP_BYTES)
        if count < 2 * _STRIDE:
            not_applicable("the log is too small to be damaged far into it")
        bodies = make_bodies(count, size=min(3500, wal.capabilities.entry_bytes_max))
        for body in bodies:
            await append_all(wal, [body])
        killed = path.read_bytes()
    closed = path.read_bytes()
    has_read = env.can_read_outside()
    victims = (*range(env.random.randrange(_STRIDE), count - 2, _STRIDE), count - 2)
    for number, victim in enumerate(victims):
        whole = killed if number % 4 > 1 or victim == count - 2 else closed
        path.write_bytes(
            zero_around(whole, bodies[victim]) if number % 2 else flipped(whole, bodies[victim], env.random)
        )
        await _expect_corrupt(env, bodies, victim)
        if has_read and (found := await _outside(env)) is not None:
            raise AssertionError(f"a read from outside passed over the damage: {len(found)} of {count} came")
    for whole in (killed, closed):
        path.write_bytes(whole)
        check_same(await read(env, 3), bodies, "the log is whole again")


async def _outside(env: Env) -> list[bytes] | None:
    """What a read from outside returns, to its regular end."""
    try:
        return [bytes(entry.data) for entry in await env.read_outside()]
    except CorruptError:
        return None


async def _expect_corrupt(env: Env, bodies: list[bytes], victim: int) -> None:
    found: list[bytes] = []
    try:
        async with env.open(epoch=2) as wal:
            async for entry in wal.recover():
                found.append(bytes(entry.data))
    except CorruptError as error:
        assert "position=" in str(error), f"the error doesn't name the position: {error}"
        check_same(found, bodies[: len(found)], "before the damage")
        assert len(found) <= victim, "an entry after the damage was returned"
        return
    raise AssertionError(f"the damage was passed over: {len(found)} of {len(bodies)} entries came back")
