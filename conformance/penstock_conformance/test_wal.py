"""Clauses of ``penstock.spi.wal``."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import fields, replace
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from crc32c import crc32c

from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    PenstockError,
)
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend
from penstock_conformance._body import Label, check_body, make_body
from penstock_conformance._child import Child, Moment, killed
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises
from penstock_conformance._faults import error_of
from penstock_conformance._medium import flipped, medium_of, zero_around
from penstock_conformance._wal_steps import (
    append_all,
    check_reason,
    check_same,
    check_unchanged,
    files_of,
    fitting,
    make_bodies,
    read,
    recovered,
    room_of,
    surviving,
)

KIND = "wal"

_FILL_BYTES_MAX = 96 * 2**20


# --- 1: semantics


async def test_new_log_is_empty(env: Env) -> None:
    """All acknowledged entries since the trim point: of a new log, none."""
    async with env.open() as wal:
        assert await recovered(wal) == [], "a new log has entries"
        assert wal.statistics().state == "open"


async def test_recover_returns_exactly_what_was_appended(env: Env) -> None:
    """All acknowledged entries in append order; ``data`` is exactly the bytes that were appended."""
    sizes = (1, 2, 3, 511, 512, 513, 4095, 4096, 4097, 70_000, 7)
    async with env.open() as wal:
        await recovered(wal)
        payloads = [env.random.randbytes(size) for size in fitting(wal, sizes)]
        for payload in payloads:  # one group each
            await wal.append([payload]).wait_durable()
        with suppress(InvalidRequestError):  # a second recovery is refused, or begins anew
            found = [bytes(entry.data) for entry in await recovered(wal)]
            assert found == payloads, f"{len(found)} of {len(payloads)} entries came from a second recovery"
        await append_all(wal, payloads[3::-1])  # one group, as far as they fit
    assert await read(env) == payloads + payloads[3::-1], "recovery returned other entries or another order"


async def test_entry_is_the_concatenation_of_its_buffers(env: Env) -> None:
    """Append one entry, the concatenation of ``data``; buffers belong to the caller again when it is done."""
    buffer = bytearray(b"abcdef" * 100)
    async with env.open() as wal:
        await recovered(wal)
        parts: list[Buffer] = [b"12", memoryview(buffer)[:300], b"", buffer, memoryview(b"xyz")[1:2]]
        wanted = b"".join(parts)
        await wal.append(parts).wait_durable()
        buffer[:] = bytes(600)
        await wal.append([b"next"]).wait_durable()
    assert await read(env) == [wanted, b"next"]


async def test_known_checksum_changes_nothing(env: Env) -> None:
    """``checksum`` is the CRC-32C of the entry, or None: the same comes back in either case."""
    async with env.open() as wal:
        await recovered(wal)
        bodies = [env.random.randbytes(size) for size in fitting(wal, (1, 5000, 100_000) * 2)[:3]]
        for body in bodies:
            wal.append([body[:1], body[1:]], crc32c(body))
            last = wal.append([body])
        await last.wait_durable()
    assert await read(env) == [body for body in bodies for _ in range(2)], (
        "an entry with a checksum is another one"
    )


async def test_positions_grow_and_tile(env: Env) -> None:
    """A position strictly grows with append order; an entry covers [position, next_position)."""
    async with env.open() as wal:
        await recovered(wal)
        appends = [wal.append([body]) for body in make_bodies(20)]  # in one flush
        for append in appends:
            await append.wait_durable()
        for body in make_bodies(5):
            appends.append(wal.append([body]))
            await appends[-1].wait_durable()
        for append in appends:
            assert append.position < append.next_position, "an entry covers nothing"
        for earlier, later in itertools.pairwise(appends):
            assert earlier.next_position <= later.position, "two entries overlap, or positions don't grow"
    async with env.open(epoch=2) as wal:
        entries = await recovered(wal)
        assert [entry.position for entry in entries] == [append.position for append in appends], (
            "recovery tells other positions than append did"
        )
        assert [entry.next_position for entry in entries] == [append.next_position for append in appends], (
            "recovery tells other next positions than append did"
        )
        later_append = wal.append([b"x"])
        assert later_append.position >= appends[-1].next_position, "a position was used again"
        await later_append.wait_durable()


async def test_appends_complete_in_position_order(env: Env) -> None:
    """Appends complete in position order: when one is done, every earlier one is. Callbacks run in that order."""
    async with env.open() as wal:
        await recovered(wal)
        order: list[int] = []
        appends: list[WalAppend] = []

        def completed(append: WalAppend) -> None:
            assert append.error is None
            order.append(append.position)
            pending = [
                other.position for other in appends if not other.done and other.position < append.position
            ]
            if pending:
                overtaken.append(append.position)

        overtaken: list[int] = []
        for round_number in range(6):
            for body in make_bodies(env.random.randrange(2, 30), size=env.random.choice((50, 3000))):
                append = wal.append([body])
                appends.append(append)
                append.set_callback(completed)
            if round_number % 2:
                await checkpoint()
            else:
                await appends[-1].wait_durable()
        for append in appends:
            await append.wait_durable()
        assert not overtaken, "an append completed before an earlier one"
        assert order == [append.position for append in appends], "callbacks ran in another order"


async def test_callback_may_append(env: Env) -> None:
    """Callbacks run on the event loop, directly from the completion: the broker appends from there."""
    async with env.open() as wal:
        await recovered(wal)
        second: list[WalAppend] = []
        first = wal.append([b"first"])
        first.set_callback(lambda _: second.append(wal.append([b"second"])))
        await first.wait_durable()
        await second[0].wait_durable()
    assert await read(env) == [b"first", b"second"]


async def test_many_can_wait_for_one_append(env: Env) -> None:
    """Return when the entry is durable. Cancelling doesn't take it back."""
    async with env.open() as wal:
        await recovered(wal)
        woken = 0

        async def wait(append: WalAppend) -> None:
            nonlocal woken
            await append.wait_durable()
            woken += 1

        for body in make_bodies(10):
            append = wal.append([body])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, append)
                tasks.start_soon(wait, append)
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await append.wait_durable()
        assert woken == 20
    assert await read(env) == make_bodies(10), "an append was lost because nobody waited for it any more"


async def test_append_needs_a_finished_recovery(env: Env) -> None:
    """InvalidRequestError when ``recover`` wasn't run to its end."""
    async with env.open() as wal:
        with raises(InvalidRequestError):
            wal.append([b"too early"])
        await recovered(wal)
        await append_all(wal, make_bodies(5))
    async with env.open(epoch=2) as wal:
        entries = wal.recover()
        await anext(entries)
        with raises(InvalidRequestError):
            wal.append([b"too early"])
        rest = [entry async for entry in entries]
        assert len(rest) == 4
        await wal.append([b"now"]).wait_durable()


async def test_empty_and_oversized_entries_are_refused(env: Env) -> None:
    """InvalidRequestError when the entry is empty, or larger than ``entry_bytes_max``."""
    piece = bytes(2**20)
    async with env.open() as wal:
        await recovered(wal)
        entry_bytes_max = wal.capabilities.entry_bytes_max
        pieces, rest = divmod(entry_bytes_max + 1, len(piece))
        too_large = [piece] * pieces + [bytes(rest)]
        for data in ([], [b""], [b"", b""], too_large):
            with raises(InvalidRequestError):
                wal.append(data)
        await wal.append([b"kept"]).wait_durable()
        if entry_bytes_max <= room_of(wal, 4 * 2**20):
            await wal.append([bytes(entry_bytes_max)]).wait_durable()
        else:
            entry_bytes_max = 0
    sizes = [len(payload) for payload in await read(env)]
    assert sizes == ([4, entry_bytes_max] if entry_bytes_max else [4]), "a refused entry came back"


async def test_leaving_the_context_flushes(env: Env) -> None:
    """Leave the context (flushes what was appended): everything accepted is durable, and says so."""
    answers: list[Exception | None] = []
    async with env.open() as wal:
        await recovered(wal)
        await wal.append([b"first"]).wait_durable()
        for body in make_bodies(30, size=2000):
            wal.append([body]).set_callback(lambda append: answers.append(append.error))
    assert answers == [None] * 30, f"appends weren't flushed: {len(answers)} answers, {answers[:3]}"
    assert await read(env) == [b"first", *make_bodies(30, size=2000)], "the tail was lost on close"


async def test_closed_log_refuses_appends(env: Env) -> None:
    """ClosedError when closed: what is appended, and a seal."""
    async with env.open() as wal:
        await recovered(wal)
        await wal.append([b"x"]).wait_durable()
    with raises(ClosedError):
        wal.append([b"late"])
    if wal.capabilities.seal:
        assert await error_of(wal.seal()) is not None, "a closed log was sealed"
    assert wal.statistics().state == "closed"
    assert await read(env) == [b"x"]


async def test_every_waiter_is_answered_when_the_scope_dies(env: Env) -> None:
    """Leaving the context answers every waiter, also when it is left by cancellation."""
    wanted: list[bytes] = []
    for epoch in range(1, 5):
        wanted += await _cancelled_owner(env, epoch, turns=epoch - 1)
        kept = await read(env, 2 * epoch + 1)
        assert kept[: len(wanted)] == wanted, "what was acknowledged at the end isn't there"
        wanted = kept


async def _cancelled_owner(env: Env, epoch: int, turns: int) -> list[bytes]:
    """Append, leave by cancellation after some turns of the loop; returns what was acknowledged."""
    bodies = make_bodies(20, size=3000, owner=epoch)
    appends: list[WalAppend] = []
    answered = 0

    async def wait(append: WalAppend) -> None:
        nonlocal answered
        with suppress(PenstockError):
            await append.wait_durable()
        answered += 1

    async with anyio.create_task_group() as waiters:
        with anyio.CancelScope() as scope:
            async with env.open(epoch=2 * epoch) as wal:
                await recovered(wal)
                for body in bodies:
                    appends.append(wal.append([body]))
                    waiters.start_soon(wait, appends[-1])
                for _ in range(turns):
                    await checkpoint()
                scope.cancel()
                if turns % 2:
                    await checkpoint()
    assert answered == 20
    return [body for body, append in zip(bodies, appends, strict=True) if append.error is None]


async def test_reopening_continues_the_log(env: Env) -> None:
    """Entries of all owners, in append order, over any number of openings."""
    wanted: list[bytes] = []
    for epoch in range(1, 6):
        async with env.open(epoch=epoch) as wal:
            assert [bytes(entry.data) for entry in await recovered(wal)] == wanted
            added = make_bodies(3, owner=epoch)
            if epoch != 3:  # an owner that appends nothing
                await append_all(wal, added)
                wanted += added
    assert await read(env) == wanted


async def test_trim_keeps_what_is_above(env: Env) -> None:
    """Entries whose next position is at most ``position`` may be dropped. Lower values are no-ops."""
    bodies = make_bodies(30, size=900)
    async with env.open() as wal:
        await recovered(wal)
        appends = await append_all(wal, bodies[:20])
        await wal.trim(appends[9].next_position)
        await wal.trim(appends[4].next_position)
        await wal.trim(0)
        await wal.trim(appends[11].position)  # inside the twelfth entry: it stays
        await append_all(wal, bodies[20:])
    kept = await read(env)
    assert kept[-19:] == bodies[11:], "an entry above the trim point is gone"
    assert kept == bodies[len(bodies) - len(kept) :], "entries don't follow each other after a trim"


async def test_positions_grow_over_a_trimmed_end(env: Env) -> None:
    """A position strictly grows with append order, also when the log was trimmed to its end before reopening."""
    last = 0
    for epoch in range(1, 5):
        async with env.open(epoch=epoch) as wal:
            await recovered(wal)
            appends = await append_all(wal, make_bodies(4))
            assert appends[0].position >= last, "a position was used again"
            last = appends[-1].next_position
            await wal.trim(last)


async def test_statistics_tell_the_state(env: Env) -> None:
    """A snapshot of the state, also when the context was left: nothing pends then."""
    async with env.open() as wal:
        await recovered(wal)
        appends = await append_all(wal, make_bodies(10, size=100))
        counters = wal.statistics()
        assert counters.appended_entries == 10
        assert counters.appended_payload_bytes == 1000
        assert counters.pending_entries == 0
        assert counters.pending_bytes == 0
        assert counters.confirmed_position >= appends[-1].next_position, "the confirmed position lags"
        assert counters.written_bytes >= 1000
        assert counters.capacity_bytes == 0 or counters.used_bytes <= counters.capacity_bytes
        assert counters.state == "degraded" or not counters.last_error, (
            f"it says why, and nothing is: {counters}"
        )
        known = replace(counters, end_position=max(counters.end_position, 0))
        figures = (getattr(known, field.name) for field in fields(known))
        assert all(figure >= 0 for figure in figures if isinstance(figure, int)), (
            f"less than none: {counters}"
        )
        appends += [wal.append([body]) for body in make_bodies(5)]
    counters = wal.statistics()
    assert counters.appended_entries == 15
    end = max((append.next_position for append in appends if append.error is None), default=0)
    assert counters.confirmed_position >= end, (
        f"the log was left, and durable are entries up to {end}: {counters}"
    )
    pending = (counters.pending_entries, counters.pending_bytes)
    assert pending == (0, 0), f"the log was left, and says that so many entries and bytes pend: {pending}"
    async with env.open(epoch=2) as wal:
        entries = await recovered(wal)
        counters = wal.statistics()
        appended = (counters.appended_entries, counters.appended_payload_bytes)
        assert appended == (0, 0), f"what was recovered was appended by another owner: {appended}"
        end = max((entry.next_position for entry in entries), default=0)
        assert counters.confirmed_position >= end, f"what was recovered is durable, up to {end}: {counters}"
        assert counters.used_bytes > 0 or not entries, f"what was recovered takes room: {counters}"


@clause(claims="identity")
async def test_identity_outlives_owners(env: Env) -> None:
    """The identity of a log is the same for every owner, open and closed, empty and not, also after a trim."""
    seen: list[str | None] = []
    for epoch in range(1, 5):
        async with env.open(epoch=epoch) as wal:
            seen.append(await env.identify(epoch=epoch))
            await recovered(wal)
            appends = await append_all(wal, make_bodies(3, owner=epoch))
            seen.append(await env.identify(epoch=epoch))
            if epoch == 2:
                await wal.trim(appends[-1].next_position)
                seen.append(await env.identify(epoch=epoch))
        seen.append(await env.identify())
    assert len(set(seen)) == 1, f"the identity changed: {seen}"
    (identity,) = set(seen)
    assert identity is not None, "there is a log, and it has no identity"
    assert 0 < len(identity) <= 64, f"an identity has 1 to 64 characters: {identity!r}"
    assert identity.isprintable() and " " not in identity, f"an identity is printable: {identity!r}"


@clause(claims="identity")
async def test_two_logs_have_two_identities(env: Env) -> None:
    """Every other log has another identity, also one of the same owner in another place."""
    other = env.elsewhere()
    async with env.open() as wal:
        here = await env.identify()
        location = wal.location
    async with other.open() as wal:
        if wal.location == location:
            not_applicable("the settings name one place, whatever the data directory")
        there = await other.identify()
    assert here is not None, "there is a log, and it has no identity"
    assert here != there, f"two logs have one identity: {here}"
    assert await env.identify() == here, "another log changed this one's identity"


@clause(claims="identity")
async def test_log_made_anew_is_another_one(env: Env) -> None:
    """Every other log has another identity, wherever and whenever it is made."""
    async with env.open() as wal:
        surviving(wal)
        first = await env.identify()
        path = medium_of(wal)
    path.unlink()
    assert await env.identify() is None, "the log is gone, and has an identity"
    async with env.open():
        second = await env.identify()
    assert first is not None, "there is a log, and it has no identity"
    assert second not in (None, first), f"a new log has the identity of the old one: {first}"
    with suppress(PenstockError, FileNotFoundError):  # empty, it may be damaged to a log, or none
        os.truncate(str(path), 0)
        async with env.open(epoch=2):
            third = await env.identify()
        assert third not in (None, first, second), f"a log in a file that was emptied is the old one: {third}"


@clause(claims="identity")
async def test_looking_for_the_identity_changes_nothing(env: Env) -> None:
    """None if ``open`` would create a log; looking changes nothing and fences nobody, also while an owner lives."""
    for _ in range(2):
        assert await env.identify() is None, "there is no log, and it has an identity"
    async with env.open(epoch=5) as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(3))
        before = files_of(env)
        identity = await env.identify()
        assert await env.identify(epoch=9) == identity, "the identity depends on who looks"
        await check_unchanged(env, before, "looking")
        await append_all(wal, make_bodies(3, owner=1))
    before = files_of(env)
    assert await env.identify() == identity
    assert files_of(env) == before, "looking changed a file"
    assert await read(env, 6) == [*make_bodies(3), *make_bodies(3, owner=1)]


@clause(claims="bounded")
async def test_full_log_refuses_until_trimmed(env: Env) -> None:
    """FullError when a bounded log has no room (trim, then retry: nothing was appended)."""
    async with env.open() as wal:
        await recovered(wal)
        capacity, claims = wal.statistics().capacity_bytes, wal.capabilities
        assert capacity > 0, "a bounded log tells its capacity"
        if capacity > _FILL_BYTES_MAX:
            not_applicable("filling the log would take long, set a capacity of at most 96MiB")
        size = max(1000, min(capacity // 40, wal.capabilities.entry_bytes_max))
        sequence, kept = 0, 0
        for lap in range(3):
            appends: list[WalAppend] = []
            accepted = 0
            while True:
                try:
                    append = wal.append([make_body(0, sequence, size)])
                except FullError:
                    break
                appends.append(append)
                sequence += 1
                accepted += size
                assert accepted <= capacity, "more was accepted than the log can hold"
                if sequence % 3 == 0:
                    await append.wait_durable()
            assert appends, "a trimmed log has no room"
            assert wal.capabilities == claims, "a log that is full promises otherwise than an empty one"
            await appends[-1].wait_durable()
            counters = wal.statistics()
            assert counters.used_bytes <= counters.capacity_bytes
            assert counters.state in ("open", "degraded"), (
                f"a log that is full is in no other state: {counters}"
            )
            kept = len(appends)
            if lap < 2:
                await wal.trim(appends[-1].next_position)
    labels = [check_body(payload).sequence for payload in await read(env)]
    assert labels == list(range(sequence - len(labels), sequence)), "entries are lost or out of order"
    assert len(labels) >= kept, "entries that weren't trimmed are gone"


@clause(claims="fencing")
async def test_second_opener_fences_first(env: Env) -> None:
    """``open`` fences an older owner that is still alive: it never acknowledges again."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(env.open(epoch=1))
        await recovered(old)
        await append_all(old, make_bodies(5, owner=1))
        groups = old.statistics().written_groups
        new = await stack.enter_async_context(env.open(epoch=2))
        late: list[WalAppend] = []
        for body in make_bodies(5, owner=9):
            try:
                late.append(old.append([body]))
            except (FencedError, ClosedError):
                break
        for append in late:
            with raises(FencedError, ClosedError):
                await append.wait_durable()
        assert [bytes(entry.data) for entry in await recovered(new)] == make_bodies(5, owner=1)
        await append_all(new, make_bodies(5, owner=2))
        with raises(FencedError, ClosedError):
            await old.append([b"again"]).wait_durable()
        told = old.statistics()
        assert told.state in ("fenced", "failed", "closed")
        check_reason(old)
        pending = (told.pending_entries, told.pending_bytes)
        assert pending == (0, 0), f"all was answered, and so many entries and bytes pend: {pending}"
        told = old.statistics().written_groups
        assert told == groups, f"groups that are durable: {groups}, and {told} are told since some failed"
    labels = [check_body(payload) for payload in await read(env)]
    assert labels == [Label(owner, sequence) for owner in (1, 2) for sequence in range(5)]


@clause(claims="fencing")
async def test_appends_under_way_are_acked_or_fenced(env: Env) -> None:
    """After a fence, every pending append is answered; acknowledged are those that the new owner recovers."""
    for number in range(4):
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(env.open(epoch=2 * number + 1))
            await recovered(old)
            appends = [old.append([body]) for body in make_bodies(12, size=3000, owner=number)]
            for _ in range(number):
                await checkpoint()
            new = await stack.enter_async_context(env.open(epoch=2 * number + 2))
            found = {check_body(entry.data) for entry in await recovered(new)}
            for sequence, append in enumerate(appends):
                try:
                    await append.wait_durable()
                except (FencedError, ClosedError):
                    continue
                assert Label(number, sequence) in found, "acknowledged, but its new owner didn't recover it"


@clause(claims="fencing")
async def test_older_owner_cannot_open(env: Env) -> None:
    """``open`` raises FencedError if a newer owner holds the log."""
    async with env.open(epoch=5) as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(3))
        with raises(FencedError):
            async with env.open(epoch=4) as older:
                await recovered(older)
        await append_all(wal, make_bodies(3))
    assert len(await read(env)) == 6


@clause(claims="seal")
async def test_sealed_log_acknowledges_nothing(env: Env) -> None:
    """From the return of this call on, no append of any owner is acknowledged."""

    async def refused(wal: Any) -> None:
        try:
            append = wal.append([b"late"])
        except PenstockError:
            return
        with raises(PenstockError):
            await append.wait_durable()

    async with env.open() as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(4))
        lasts = wal.capabilities.durability_domain != "process"
        identity = await env.identify() if wal.capabilities.identity else None
        await wal.seal()
        await refused(wal)
        if wal.capabilities.identity:
            assert await env.identify() == identity, "a log that was sealed is another one"
        if lasts and env.can_read_outside():
            found = [bytes(entry.data) for entry in await env.read_outside()]
            check_same(found, make_bodies(4), "read from outside of a log that was sealed")
        state = wal.statistics().state
        assert state not in ("open", "degraded"), f"a log that was sealed goes on, it says: state={state}"
        check_reason(wal)
    async with env.open(epoch=2) as wal:
        assert [bytes(entry.data) for entry in await recovered(wal)] == make_bodies(4)
        await refused(wal)
    assert await read(env) == make_bodies(4)


@clause(refuses="seal")
async def test_unclaimed_seal_is_refused(env: Env) -> None:
    """Raises InvalidRequestError if unclaimed."""
    async with env.open() as wal:
        await recovered(wal)
        with raises(InvalidRequestError):
            await wal.seal()
        await wal.append([b"x"]).wait_durable()


# --- 2: races between processes


@clause(level=2, claims="fencing")
async def test_fenced_process_never_acknowledges_again(env: Env) -> None:
    """Two owners, rising epochs: what the fenced one acknowledged, the new one recovers; later it acks nothing."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
    epoch = 2
    for _ in range(4 * env.rounds):
        async with Child(env, "append_until_fenced", epoch=epoch, owner=epoch) as child:
            assert await child.next() == ["ready"], "the child process failed to open the log"
            acked: list[tuple[int, float]] = []
            for _ in range(env.random.randrange(1, 30)):
                line = await child.next()
                assert line is not None, "the child process failed"
                acked.append((line[1], line[2]))
            async with env.open(epoch=epoch + 1) as wal:
                opened_at = time.monotonic()
                found = {check_body(entry.data) for entry in await recovered(wal)}
                await wal.append([make_body(epoch + 1, 0, 100)]).wait_durable()
                await anyio.sleep(0.01)
                lines = await child.finish()
                assert lines, "the child process failed"
                assert lines[-1][0] == "end", "the fenced process wasn't told"
                acked += [(line[1], line[2]) for line in lines if line[0] == "ack"]
                for sequence, begun in acked:
                    assert begun <= opened_at, "begun after the new owner's open returned, and acknowledged"
                    assert Label(epoch, sequence) in found, (
                        "acknowledged, but the new owner didn't recover it"
                    )
                await wal.append([make_body(epoch + 1, 1, 100)]).wait_durable()
        epoch += 2
    labels = [check_body(payload) for payload in await read(env, epoch)]
    assert labels == sorted(labels), "entries of a fenced owner are among those of its successor"
    for owner in range(3, epoch, 2):
        assert [label.sequence for label in labels if label.owner == owner] == [0, 1], (
            "acked entries are lost"
        )


# --- 3: crashes and damage


@clause(level=3)
async def test_acknowledged_entries_survive_a_kill(env: Env) -> None:
    """All acknowledged entries since the trim point, in append order; no entry is returned after a missing one."""
    async with env.open(epoch=1) as wal:
        surviving(wal)
        claims_identity = wal.capabilities.identity
    identity = await env.identify() if claims_identity else None
    history: list[Label] = []
    trimmed_entries = 0
    for round_number in range(1, 10 * env.rounds + 1):
        epoch = 2 * round_number
        acked: list[tuple[int, int]] = []
        trimmed = 0
        order = {"epoch": epoch, "owner": round_number, "trim": round_number % 2 == 0}
        order["seed"] = env.random.randrange(2**32)
        moment: Moment = "at an ack" if round_number % 4 in (1, 2) else "from outside"
        if history and round_number % 5 == 0:  # in its recovery, again and again
            order["die_recovering"], moment = env.random.choice((1, 2)), "at an ack"
        lines = await killed(env, "append_until_killed", moment, 120, **order)
        for line in lines:
            if line[0] == "ack":
                acked.append((line[1], line[2]))
            elif line[0] == "trim":
                trimmed = line[1]
        assert [sequence for sequence, _ in acked] == list(range(len(acked))), "acknowledged out of order"
        if trimmed:
            # The trim point is inside the child's own entries; all before may be gone, and may come again.
            trimmed_entries = len(history) + sum(next_position <= trimmed for _, next_position in acked)
        history += [Label(round_number, sequence) for sequence, _ in acked]
        async with env.open(epoch=epoch + 1) as wal:
            found = [check_body(entry.data) for entry in await recovered(wal)]
            history = _check_recovered(history, found, round_number, trimmed_entries)
            now = await env.identify() if claims_identity else None
            assert now == identity, f"a kill made another log of it: identity={now} before={identity}"
            await wal.append([make_body(10**6 + round_number, 0, 100)]).wait_durable()
            history.append(Label(10**6 + round_number, 0))


def _check_recovered(acked: list[Label], found: list[Label], owner: int, trimmed_entries: int) -> list[Label]:
    """``found`` is a suffix of ``acked`` with a continuation of ``owner``; returns the history from now on."""
    extra = [label for label in found if label.owner == owner and label not in set(acked)]
    history = acked + extra
    first = sum(label.owner == owner for label in acked)
    assert [label.sequence for label in extra] == list(range(first, first + len(extra))), (
        "an entry is returned after a missing one"
    )
    assert len(found) >= len(history) - trimmed_entries, (
        f"acknowledged entries are lost: {len(history) - trimmed_entries - len(found)} of {len(acked)}"
    )
    assert found == history[len(history) - len(found) :], "entries are missing in the middle, or out of order"
    return history


@clause(level=3)
async def test_damage_below_the_confirmed_position_is_reported(env: Env) -> None:
    """CorruptError, naming the position, when an entry below the confirmed position fails its checksum (I10)."""
    bodies = make_bodies(10, size=900)
    path, whole = await _closed_log(env, bodies)
    for victim in (0, 3, 6):
        path.write_bytes(flipped(whole, bodies[victim], env.random))
        await _expect_corrupt(env, bodies, victim)


@clause(level=3)
async def test_hole_below_the_confirmed_position_is_reported(env: Env) -> None:
    """CorruptError, naming the position, when an entry below the confirmed position is missing (never skipped)."""
    bodies = make_bodies(10, size=900)
    path, whole = await _closed_log(env, bodies)
    for victim in (0, 3, 6):
        path.write_bytes(zero_around(whole, bodies[victim]))
        await _expect_corrupt(env, bodies, victim)


async def _closed_log(env: Env, bodies: list[bytes]) -> tuple[Any, bytes]:
    """A log with one group per entry, cleanly closed."""
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        path = medium_of(wal)
        for body in bodies:
            await wal.append([body]).wait_durable()
    return path, path.read_bytes()


async def _expect_corrupt(env: Env, bodies: list[bytes], victim: int) -> None:
    """Recovery may return what is before the damage, and must then raise."""
    found: list[bytes] = []
    async with env.open(epoch=2) as wal:
        error = None
        try:
            async for entry in wal.recover():
                found.append(bytes(entry.data))
        except CorruptError as caught:
            error = caught
    assert found == bodies[: len(found)], "damaged or misplaced bytes were returned"
    assert error is not None, f"the damage was passed over: {len(found)} of {len(bodies)} entries came back"
    assert len(found) <= victim, "an entry after the damage was returned"
    assert "position=" in str(error), f"the error doesn't name the position: {error}"
