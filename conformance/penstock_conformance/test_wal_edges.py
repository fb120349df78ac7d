"""Clauses of ``penstock.spi.wal`` about its edges: beyond both ends, half-way, refused, from inside, once more."""

from __future__ import annotations

import gc
import weakref
from collections import UserList, deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from typing import Any

from crc32c import crc32c

from penstock.errors import CorruptError, FencedError, FullError, InvalidRequestError, PenstockError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import BoundedLog, WalAppend
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises
from penstock_conformance._medium import bits_of
from penstock_conformance._wal_steps import (
    append_all,
    check_same,
    end_of,
    make_bodies,
    read,
    recovered,
    room_of,
    surviving,
)

KIND = "wal"

_POSITION_MAX = 2**63 - 1
_REFUSALS = 2000


# --- beyond both ends


async def test_trim_past_the_end_keeps_what_comes_later(env: Env) -> None:
    """Of what was acknowledged when ``trim`` is called: the rest is kept, wherever it is, and trimmed as ever."""
    for number, past in enumerate((1, 1000, 2**40, _POSITION_MAX)):
        async with env.open(epoch=2 * number + 1) as wal:
            await recovered(wal)
            appends = await append_all(wal, make_bodies(5, owner=number))
            pending = [wal.append([body]) for body in make_bodies(5, owner=number + 10)]
            acknowledged = sum(append.done for append in pending)  # some logs are quick
            await wal.trim(min(appends[-1].next_position + past, _POSITION_MAX))
            told = wal.statistics().trimmed_position
            assert told >= appends[-1].next_position or not wal.capabilities.bounded, (
                f"what was acknowledged has no room back after a trim to {past} beyond it: {told}"
            )
            for append in pending[acknowledged:][:1]:
                assert told <= append.position, (
                    f"trimmed up to {told}, and an entry waits at {append.position}"
                )
            for append in pending:
                await append.wait_durable()
            later = await append_all(wal, make_bodies(5, owner=number + 20))
            told = wal.statistics().trimmed_position
            assert told <= later[0].position, f"trimmed up to {told}, and an entry is at {later[0].position}"
            wanted = [*make_bodies(5, owner=number + 10), *make_bodies(5, owner=number + 20)][acknowledged:]
            if number % 2:
                await wal.trim(later[1].next_position)
                wanted = wanted[-3:]
                told = wal.statistics().trimmed_position
                assert told >= later[1].next_position or not wal.capabilities.bounded, (
                    f"trimmed to beyond the end, and from then on not at all: {told}"
                )
        found = await read(env, 2 * number + 2)
        check_same(found[-len(wanted) :], wanted, f"after a trim to {past} beyond the end")


async def test_trim_below_the_start_changes_nothing(env: Env) -> None:
    """Lower values are no-ops, negative ones, too: of an empty log, and of one that was trimmed."""
    lower = (-1, -3, -7, -(2**63), 0, 1)
    bodies = make_bodies(12)
    async with env.open() as wal:
        await recovered(wal)
        for position in lower[:-1]:
            await wal.trim(position)
        appends = await append_all(wal, bodies)
        for position in lower[:-1]:
            await wal.trim(position)
        await wal.trim(appends[5].next_position)
        before = wal.statistics()
        for position in (*lower, appends[2].next_position):
            await wal.trim(min(position, appends[5].next_position))
            told = wal.statistics()
            assert told.trimmed_position == before.trimmed_position, (
                "a trim of what is trimmed moved the start"
            )
            assert told.used_bytes == before.used_bytes, "a trim of what is trimmed gave or took room"
        await append_all(wal, make_bodies(3, owner=1))
    wanted = [*bodies[6:], *make_bodies(3, owner=1)]
    check_same((await read(env))[-len(wanted) :], wanted, "above the trim point")


# --- half-way


async def test_recovery_in_part_permits_no_append(env: Env) -> None:
    """InvalidRequestError when ``recover`` wasn't run to its end, however far it came; nothing is lost by that."""
    bodies = make_bodies(20)
    async with env.open() as wal:
        await recovered(wal)
        await append_all(wal, bodies[:13])
        await append_all(wal, bodies[13:])
    for epoch, stop in enumerate((0, 1, 10, 19, 20) * 2, 2):  # who has them all hasn't heard that it is all
        async with env.open(epoch=epoch) as wal:
            entries = wal.recover()
            for _ in range(stop):
                await anext(entries)
            if epoch > 6 and hasattr(entries, "aclose"):
                await entries.aclose()
            with raises(InvalidRequestError):
                wal.append([b"too early"])
            again = wal.recover()
            try:  # it runs once: a second one is refused, or is as good as the first
                first = await anext(again)
            except (InvalidRequestError, StopAsyncIteration):
                pass
            else:
                assert bytes(first.data) == bodies[0], "a second recovery goes on in the middle"
                with raises(InvalidRequestError):
                    wal.append([b"too early"])
    check_same(await read(env, 12), bodies, "after owners that recovered a part")
    check_same(await read(env, 13), bodies, "after owners that recovered a part, once more")


async def test_end_of_an_empty_log_is_known_to_every_owner(env: Env) -> None:
    """Where the log ends is known, also of an empty one, to owners that append nothing, trim only, or do nothing."""
    end = 0
    for epoch, does in enumerate(
        ("", "append", "trim", "", "", "append and trim", "", "", "append", "trim"), 1
    ):
        async with env.open(epoch=epoch) as wal:
            await recovered(wal)
            found = end_of(env, wal)
            assert found >= end, f"the log ended at {end}, and opening {epoch} finds that it does at {found}"
            if "append" in does:
                appends = await append_all(wal, make_bodies(3, owner=epoch))
                assert appends[0].position >= max(end, found), "a position was used again"
                end = appends[-1].next_position
            if "trim" in does:
                await wal.trim(end)


# --- refused


class _Payload(bytearray):
    """Memory whose end can be seen."""


@clause(claims="bounded")
async def test_refusals_take_no_room_however_many(env: Env) -> None:
    """FullError: nothing was appended; of thousands of refusals neither room is taken nor memory kept."""
    async with env.open() as wal:
        await recovered(wal)
        capacity, largest = wal.statistics().capacity_bytes, wal.capabilities.entry_bytes_max
        if capacity > 32 * 2**20:
            not_applicable("filling the log would take long, set a capacity of at most 32MiB")
        size = min(capacity // 20, largest)
        with suppress(FullError):
            while True:
                last = wal.append([bytes(size)])
        await last.wait_durable()
        before, fits = wal.statistics(), _fits(wal, size)
        seen: list[weakref.ref[_Payload]] = []
        for number in range(_REFUSALS):
            with raises(FullError):
                payload = _Payload(size if number % 100 == 99 else 0)
                wal.append(
                    [payload, bytes(size)] if number % 2 else [bytes(min(size + number, largest)), payload]
                )
            if number % 100 == 99:
                seen.append(weakref.ref(payload))
            del payload
        gc.collect()
        assert wal.statistics() == before, (
            f"after {_REFUSALS} refusals: {wal.statistics()} instead of {before}"
        )
        kept = sum(ref() is not None for ref in seen)
        assert not kept, f"{kept} of {len(seen)} payloads that were refused are kept"
        if fits:
            last = _taken(wal, fits, f"would fit before {_REFUSALS} refusals")
        await last.wait_durable()
        await wal.trim(last.next_position)
        await _taken(
            wal, largest, f"of a log that was trimmed to its end, after {_REFUSALS} refusals"
        ).wait_durable()


def _fits(wal: object, size_max: int) -> int:
    """The largest entry below ``size_max`` that would fit; 0: none does, or the log can't be asked."""
    low, high = 0, size_max + 1
    while isinstance(wal, BoundedLog) and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wal.would_fit(middle) else (low, middle)
    return low


def _taken(wal: Any, size: int, what: str) -> WalAppend:
    try:
        append: WalAppend = wal.append([bytes(size)])
    except FullError as error:
        raise AssertionError(f"an entry isn't taken, {what}: entry_bytes={size} error={error}") from error
    return append


# --- from inside


async def test_what_a_callback_appends_is_kept(env: Env) -> None:
    """Callbacks append: from the middle of a group, several at once, again and again, and while the log is left."""
    made: list[tuple[WalAppend, bytes]] = []
    owner = 0

    def add(wal: Any) -> WalAppend:
        body = make_body(owner, len(made), 300)
        made.append((wal.append([body]), body))
        return made[-1][0]

    def go_on(wal: Any, depth: int) -> Callable[[WalAppend], None]:
        def told(_: WalAppend) -> None:
            with suppress(PenstockError):  # a log that is being left may take nothing more
                append = add(wal)
                if depth:
                    append.set_callback(go_on(wal, depth - 1))

        return told

    def go_on_with_run(run: Sequence[WalAppend], _: Exception | None) -> None:
        for append in run:
            go_on(wal, 0)(append)

    async with env.open() as wal:
        await recovered(wal)
        for count in (1, 2, 5, 40):
            owner += 1
            for number in range(count):
                append = add(wal)
                if number % 3 != 1:
                    append.set_callback(go_on(wal, number % 4))
                elif number % 2:
                    append.set_run_callback(go_on_with_run)
            for append, _ in made:  # it grows
                if append.run_callback is None:
                    await append.wait_durable()
        owner += 1
        for _ in range(7):
            add(wal).set_callback(go_on(wal, 1))
    answered = [append.done or append.run_callback is not None for append, _ in made]
    assert all(answered), f"{answered.count(False)} of {len(answered)} appends weren't answered"
    made.sort(key=lambda item: item[0].position)
    acked = [body for append, body in made if append.error is None]
    check_same(await read(env), acked, "with what callbacks appended")


# --- once more


@clause(claims="fencing")
async def test_trim_of_a_fenced_owner_changes_nothing(env: Env) -> None:
    """After a newer owner took over, it finds all that was there when it opened, whatever the older one trims."""
    bodies = make_bodies(10)
    for number in range(3):
        epoch = 10 * number
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(env.open(epoch=epoch + 1))
            entries = await recovered(old)
            if entries:
                await old.trim(entries[-1].next_position)
            appends = await append_all(old, bodies)
            new = await stack.enter_async_context(env.open(epoch=epoch + 2))
            if number:
                await recovered(new)
            if number == 2:
                await append_all(new, bodies)
            with suppress(PenstockError):
                await old.trim(appends[7].next_position)
            if not number:
                found = [bytes(entry.data) for entry in await recovered(new)]
                check_same(found[-10:], bodies, "what a successor recovers when its predecessor has trimmed")
        wanted = bodies * 2 if number == 2 else bodies
        found = await read(env, epoch + 3)
        check_same(found[-len(wanted) :], wanted, "after a trim of an owner that was fenced")


@clause(claims="fencing")
async def test_epoch_has_one_owner_whatever_it_did(env: Env) -> None:
    """``open`` raises FencedError if this epoch was used before, also by an owner that appended or read nothing."""
    wanted: list[bytes] = []
    for number, does in enumerate(("", "append", "trim", "recover", "")):
        epoch = 3 * number + 2
        async with env.open(epoch=epoch) as wal:
            if does:
                entries = await recovered(wal)
            if does == "append":
                wanted += make_bodies(3, owner=number)
                await append_all(wal, make_bodies(3, owner=number))
            elif does == "trim":
                wanted = []
                await wal.trim(entries[-1].next_position)
        with raises(FencedError):
            async with env.open(epoch=epoch):
                pass
    found = await read(env, 100)
    check_same(found[len(found) - len(wanted) :], wanted, "after epochs that came twice")


async def test_trim_into_an_entry_keeps_it(env: Env) -> None:
    """Entries whose next position is at most ``position`` may be dropped: not the one that ``position`` is in."""
    bodies = make_bodies(46)
    places = [sum(range(step + 1)) for step in range(1, 10)]  # each trim drops one more than that before
    ends: list[int] = []
    async with env.open(epoch=1) as wal:
        surviving(wal)
        await recovered(wal)
        for start, stop in pairwise(
            [0, *(place + 1 for place in places)]
        ):  # each trim is in the last of a group
            ends += [append.next_position for append in await append_all(wal, bodies[start:stop])]
    for number, place in enumerate(places, 1):
        async with env.open(epoch=2 * number) as wal:
            await recovered(wal)
            await wal.trim(ends[place] - 1)
        found = await read(env, 2 * number + 1)
        check_same(
            found[-len(bodies[place:]) :], bodies[place:], f"from the entry on that trim {number} was in"
        )


async def test_sequence_is_the_callers_again_at_once(env: Env) -> None:
    """``data`` is any sequence, and the caller's again when ``append`` returns; its buffers are when it is done."""
    pieces = [b"one", b"and two", b"-and three-", b"and four"]
    wanted: list[bytes] = []
    async with env.open() as wal:
        await recovered(wal)
        times = min(room_of(wal, 2**20), wal.capabilities.entry_bytes_max) // 60
        makers: list[tuple[Callable[[Sequence[Buffer]], Any], int, int]]
        makers = [(make, 1, 4) for make in (list, tuple, UserList, deque)]
        makers += [(list, times, 4), (deque, times, 4)]
        for make, long, count in [
            *makers,
            *((list, 1, count) for count in (1, 2, 3, 40, min(1500, 4 * times))),
        ]:
            one, two, three, four = (piece * long for piece in pieces)
            parts: list[Buffer] = [
                *(one, bytearray(two), memoryview(three)[1:-1], memoryview(bytearray(four)))
            ]
            parts = (parts * -(-count // len(parts)))[:count]
            whole = b"".join(parts)
            wanted += [whole] * 2
            data: Any = make(parts)
            first = wal.append(data)
            assert list(data) == parts, "append changed the sequence that it was given"
            await first.wait_durable()
            assert list(data) == parts, "append changed the sequence that it was given, later"
            second = wal.append(data, crc32c(whole))
            if make is not tuple:
                data.clear()
                data.append(b"of the caller's next entry")
            await second.wait_durable()
            assert make is tuple or list(data) == [b"of the caller's next entry"], "it is the caller's"
            assert b"".join(parts) == whole, "the log changed buffers of the caller"
    check_same(await read(env), wanted, "whose sequences were used again")


# --- 3: damage


@clause(level=3)
async def test_damage_is_found_in_entries_of_every_kind(env: Env) -> None:
    """CorruptError, or the end of the log where it is the last group: never is an entry returned with another bit."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
        await recovered(wal)
        largest = min(300_000, room_of(wal, 1_500_000) // 5, wal.capabilities.entry_bytes_max)
        sizes = [size + odd for size in (40, 900, largest // 3, largest, 40, 5000) for odd in range(2)]
        bodies = [env.random.randbytes(min(size, largest)) for size in sizes]
        for number, body in enumerate(bodies):
            cut = env.random.choice((0, len(body) // 2))
            data: Sequence[Buffer] = [body[:cut], body[cut:]]
            append = wal.append(data, crc32c(body) if number % 2 else None)
            if number % 4 == 3 or number > 9:
                await append.wait_durable()
        medium = bits_of(wal, env.store_dir)
    places = [(0, 0), (1, -1), (2, -1), (3, 0), (6, 0), (6, -1), (7, -1), (8, 5), (11, -1)]
    places += [(10, place) for place in range(300, 5000, 600)]  # no part of an entry goes without
    places += [(number, env.random.randrange(len(bodies[number]))) for number in (4, 5, 6, 7)]
    for victim, place in places:
        size = len(bodies[victim])
        with medium.damaged(bodies[victim], place % size):
            found, told = await _found(env)
        assert found == bodies[: len(found)], f"an entry of {size} bytes came with another bit"
        assert len(found) <= victim, "an entry after a damaged one was returned"
        assert told or victim == len(bodies) - 1, f"damage was passed over: {len(found)} entries came"
    check_same(await read(env, 3), bodies, "the log is whole again")


async def _found(env: Env) -> tuple[list[bytes], bool]:
    """What is recovered, and whether an error was told."""
    found: list[bytes] = []
    try:
        async with env.open(epoch=2) as wal:
            async for entry in wal.recover():
                found.append(bytes(entry.data))
    except CorruptError:
        return found, True
    return found, False
