"""Clauses of ``penstock.spi.metadata_log``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    ClosedError,
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
)
from penstock.spi.metadata_log import MetadataEntry, MetadataSnapshot
from penstock_conformance._body import Label, check_body, make_body
from penstock_conformance._child import Child, Moment, Race, killed, share_of
from penstock_conformance._clause import clause
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._leaks import each_way_out
from penstock_conformance._medium import flip_in_files, remove_files_with

KIND = "metadata_log"

_PROCESSES = 4
_WAITERS = 150


async def _listed(entries: AsyncIterator[MetadataEntry]) -> list[tuple[int, bytes]]:
    return [(entry.index, bytes(entry.data)) async for entry in entries]


async def _read(log: Any, start_index: int = 1) -> list[tuple[int, bytes]]:
    return await _listed(log.read(start_index))


def _entry(index: int) -> bytes:
    return make_body(0, index, 200)


async def _fill(log: Any, start: int, stop: int) -> None:
    for index in range(start, stop):
        await log.append(index, _entry(index))


async def test_entries_come_back_in_order(env: Env) -> None:
    """Entries from ``start_index`` in order, up to the newest; indexes start at 1 and have no gap."""
    async with env.open() as log:
        assert await _read(log) == [], "a new log has entries"
        await _fill(log, 1, 41)
        wanted = [(index, _entry(index)) for index in range(1, 41)]
        for start in (1, 2, 17, 39, 40):
            assert await _read(log, start) == wanted[start - 1 :], f"read from {start}"
        assert await _read(log, 41) == [], "an entry past the newest"
        assert log.statistics().last_index == 40
        assert log.statistics().appends == 40
    async with env.open(epoch=2) as log:
        assert await _read(log) == wanted, "entries are lost when the log is opened again"


async def test_entry_data_of_any_kind(env: Env) -> None:
    """Make ``data`` the entry: any bytes, also none, up to ``entry_bytes_max``."""
    async with env.open() as log:
        entry_bytes_max = log.capabilities.entry_bytes_max
        datas = [b"", b"\0", b"same", b"same", env.random.randbytes(50_000)]
        datas += [env.random.randbytes(size) for size in (2**12, 2**16, 2**17) if size <= entry_bytes_max]
        if entry_bytes_max <= 8 * 2**20:
            datas.append(env.random.randbytes(entry_bytes_max))
        for index, data in enumerate(datas, start=1):
            await log.append(index, data)
        assert [data for _, data in await _read(log)] == datas


async def test_oversized_entries_are_refused(env: Env) -> None:
    """InvalidRequestError if the entry is larger than ``entry_bytes_max``."""
    async with env.open() as log:
        with raises(InvalidRequestError):
            await log.append(1, bytes(log.capabilities.entry_bytes_max + 1))
        assert await _read(log) == []
        await log.append(1, b"x")


async def test_taken_index_is_a_conflict(env: Env) -> None:
    """ConflictError if the index is taken, by the same bytes of the same writer, too; an entry never changes."""
    async with env.open() as log:
        await _fill(log, 1, 6)
        for index in (5, 3, 1):
            for data in (b"another", _entry(index)):
                with raises(ConflictError):
                    await log.append(index, data)
        assert await _read(log) == [(index, _entry(index)) for index in range(1, 6)], "an entry changed"
        assert log.statistics().conflicts >= 6
        large = env.random.randbytes(min(50_000, log.capabilities.entry_bytes_max))
        await log.append(6, large)
        with raises(ConflictError):
            await log.append(6, large)
    async with env.open(epoch=2) as log:
        for data in (b"another", large):
            with raises(ConflictError):
                await log.append(6, data)
        assert (await _read(log, 6)) == [(6, large)], "an entry changed"


async def test_second_writer_meets_the_first(env: Env) -> None:
    """Whoever appends at an index first, wins: this is what fences a deposed writer."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(env.open(node_id=1, epoch=1))
        await _fill(first, 1, 4)
        second = await stack.enter_async_context(env.open(node_id=2, epoch=2))
        assert len(await _read(second)) == 3
        await second.append(4, b"second's")
        with raises(ConflictError):
            await first.append(4, b"first's")
        assert await _read(first, 4) == [(4, b"second's")], "the loser doesn't see the winner's entry"
        await first.append(5, b"caught up")
        assert await _read(second, 4) == [(4, b"second's"), (5, b"caught up")]


async def test_gaps_are_refused(env: Env) -> None:
    """InvalidRequestError if the entry would leave a gap."""
    async with env.open() as log:
        for index in (2, 100, 0, -1):
            with raises(InvalidRequestError):
                await log.append(index, b"x")
        await _fill(log, 1, 4)
        for index in (5, 6):
            with raises(InvalidRequestError):
                await log.append(index, b"x")
        assert len(await _read(log)) == 3, "a refused entry is in the log"


async def test_one_task_wins_each_index(env: Env) -> None:
    """Compare-and-append: of many attempts at one index, exactly one returns."""
    async with env.open() as log:
        for index in range(1, 8):
            winners: list[int] = []

            async def append(owner: int, index: int = index, winners: list[int] = winners) -> None:
                try:
                    await log.append(index, make_body(owner, index, 100))
                except ConflictError:
                    return
                winners.append(owner)

            await together([call(append, owner) for owner in range(6)])
            assert len(winners) == 1, f"{len(winners)} writers won the index {index}"
            entries = await _read(log, index)
            assert check_body(entries[0][1]) == Label(winners[0], index), "the entry isn't the winner's"


async def test_cancelled_append_is_whole_or_nothing(env: Env) -> None:
    """A cancelled append may or may not be there; the log goes on without a gap."""
    async with env.open() as log:
        index = 1
        for turns in range(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.append, index, _entry(index))
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            try:
                await log.append(index, _entry(index))
            except ConflictError:
                assert await _read(log, index) == [(index, _entry(index))], "half an entry"
            index += 1
        assert await _read(log) == [(number, _entry(number)) for number in range(1, index)]


async def test_wait_returns_when_there_is_news(env: Env) -> None:
    """Return when there may be an entry past ``after_index``. May be cancelled."""
    async with env.open() as log:
        await _fill(log, 1, 3)
        with anyio.fail_after(env.target.deadline_s):
            await log.wait_for_news(0)
            await log.wait_for_news(1)
        woken = 0

        async def follow(_: int) -> None:
            nonlocal woken
            index = 2
            while index < 6:  # it may return early
                await log.wait_for_news(index)
                async for entry in log.read(index + 1):
                    index = entry.index
            woken += 1

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(follow, number)
            with anyio.move_on_after(0.01):
                await log.wait_for_news(1000)
            await _fill(log, 3, 7)
        assert woken == 3


@clause(claims="shareable")
async def test_news_of_others_arrive(env: Env) -> None:
    """Several hosts can append and follow."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(env.open(node_id=1))
        second = await stack.enter_async_context(env.open(node_id=2))
        await first.append(1, b"1")

        async def follow() -> None:
            index = 0
            while index < 3:
                await second.wait_for_news(index)
                async for entry in second.read(index + 1):
                    index = entry.index

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.sleep(0.01)
            await first.append(2, b"2")
            await first.append(3, b"3")


async def test_waiters_are_answered_at_the_end(env: Env) -> None:
    """Leaving the context, be it by an error or a cancellation, answers every waiter, and from then on the log is
    closed."""
    for first, context in zip((1, 3, 5), each_way_out(env), strict=True):
        await _leave_with_waiters(context, first, env.target.deadline_s)


async def _leave_with_waiters(
    context: AbstractAsyncContextManager[Any], first: int, deadline_s: float
) -> None:
    answered = 0

    async def wait(log: Any) -> None:
        nonlocal answered
        try:
            while True:
                await log.wait_for_news(50)
        except PenstockError:
            answered += 1

    async with anyio.create_task_group() as tasks:
        async with context as log:
            await _fill(log, first, first + 2)
            for _ in range(_WAITERS):
                tasks.start_soon(wait, log)
            for _ in range(5):
                await checkpoint()
        with anyio.fail_after(deadline_s):
            while answered < _WAITERS:
                await checkpoint()
    with raises(ClosedError):
        await log.append(first + 2, b"late")


async def test_closed_log_is_no_empty_one(env: Env) -> None:
    """After its context was left every method that asks the log raises ClosedError."""
    async with env.open() as log:
        await _fill(log, 1, 6)
        await log.write_snapshot(MetadataSnapshot(3, b"at 3"))
        reading, unbegun = log.read(4), log.read(4)
        assert (await anext(reading)).index == 4
    for what, ask in (
        ("a read", lambda: _read(log, 4)),
        ("a read of news", lambda: _read(log, 6)),
        ("a read that was asked for before", lambda: _listed(unbegun)),
        ("a read of the snapshot", log.read_snapshot),
        ("a snapshot", lambda: log.write_snapshot(MetadataSnapshot(5, b"at 5"))),
        ("a wait for news", lambda: log.wait_for_news(0)),
        ("an append", lambda: log.append(6, b"late")),
    ):
        try:
            found = await ask()
        except ClosedError:
            continue
        raise AssertionError(f"{what} of a closed log gave {found!r}")
    with contextlib.suppress(ClosedError):  # what was begun may go on, and doesn't end before its end
        assert [entry.index async for entry in reading] == [5], "a read that was under way ended early"


async def test_newest_snapshot_comes_back(env: Env) -> None:
    """The newest whole snapshot; None if there is none."""
    large = env.random.randbytes(3 * 2**20)
    async with env.open() as log:
        assert await log.read_snapshot() is None, "a new log has a snapshot"
        await _fill(log, 1, 10)
        await log.write_snapshot(MetadataSnapshot(4, b"at 4"))
        assert await log.read_snapshot() == MetadataSnapshot(4, b"at 4")
        await log.write_snapshot(MetadataSnapshot(9, large))
        assert await log.read_snapshot() == MetadataSnapshot(9, large)
        assert log.statistics().snapshot_index == 9
    async with env.open(epoch=2) as log:
        snapshot = await log.read_snapshot()
        assert snapshot == MetadataSnapshot(9, large), "the snapshot is lost when the log is opened again"
        await log.append(10, _entry(10))
        assert await _read(log, 10) == [(10, _entry(10))]


async def test_snapshots_keep_what_followers_need(env: Env) -> None:
    """Entries up to its index may be dropped; those of at least one older snapshot's span are kept."""
    async with env.open() as log, env.open(node_id=2) as follower:
        previous, index = 0, 1
        for snapshot_index in (10, 20, 30, 40, 50):
            await _fill(log, index, snapshot_index + 4)
            index = snapshot_index + 4
            await log.write_snapshot(MetadataSnapshot(snapshot_index, b"at %d" % snapshot_index))
            for reader in (log, follower):
                got = await _read(reader, previous + 1)
                wanted = [(number, _entry(number)) for number in range(previous + 1, index)]
                assert got == wanted, f"a reader just behind misses entries: from {previous + 1}"
            previous = snapshot_index
        for start in range(1, 40):
            try:
                entries = await _read(log, start)
            except NotFoundError:
                continue
            assert entries[0][0] == start, "a read from a dropped index begins elsewhere"
            assert [number for number, _ in entries] == list(range(start, index)), "entries with a gap"
        with raises(ConflictError):
            await log.append(2, b"once more")
        await log.append(index, _entry(index))
    async with env.open(epoch=2) as log:
        snapshot = await log.read_snapshot()
        assert snapshot is not None
        assert [number for number, _ in await _read(log, snapshot.index + 1)] == list(range(51, index + 1))
        with raises(ConflictError):
            await log.append(1, b"once more")


# --- 2: races between processes


@clause(level=2)
async def test_one_process_wins_each_index(env: Env) -> None:
    """Whoever appends at an index first, wins: with several processes nothing acknowledged is lost, and no gap."""
    times, halts = 10 * env.rounds, 12 * env.rounds
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(Child(env, "append_race", owner=owner))
            for owner in range(1, _PROCESSES + 1)
        ]
        for child in children:
            assert await child.next() == "ready", "a child process failed to open the log"
        race = Race(children)
        told = [
            await race.answers({"times": times}),
            *[
                await race.answers({"times": 1}, number % _PROCESSES, share_of(number))
                for number in range(halts)
            ],
        ]
        won: dict[int, Label] = {}
        for answers in told:
            for owner, answer in enumerate(answers, start=1):
                for index, sequence in answer:
                    assert index not in won, f"two processes won the index {index}"
                    won[index] = Label(owner, sequence)
    async with env.open() as log:
        entries = {index: check_body(data) for index, data in await _read(log)}
    assert sorted(entries) == list(range(1, _PROCESSES * (times + halts) + 1)), (
        "the log has a gap, or too few entries"
    )
    assert entries == won, "the log holds other entries than were acknowledged"


# --- 3: crashes and damage


@clause(level=3)
async def test_acknowledged_entries_survive_a_kill(env: Env) -> None:
    """Make ``data`` the entry, durably; keep the snapshot, durably."""
    last = snapshot_index = 0
    for owner in range(1, 8 * env.rounds + 1):
        acked: dict[int, int] = {}
        order = {"owner": owner, "seed": env.random.randrange(2**32)}
        moment: Moment = "at an ack" if owner % 2 == 1 else "from outside"
        lines = await killed(env, "append_metadata_until_killed", moment, 30, **order)
        for line in lines:
            what, index = line
            if what == "entry":
                acked[index] = owner
            else:
                snapshot_index = index
        async with env.open(node_id=99) as log:
            snapshot = await log.read_snapshot()
            found = snapshot.index if snapshot is not None else 0
            assert found >= snapshot_index, "an acknowledged snapshot is lost"
            snapshot_index = found
            if snapshot is not None:
                check_body(snapshot.data)
            entries = await _read(log, found + 1)
            assert [index for index, _ in entries] == list(range(found + 1, found + 1 + len(entries)))
            newest = entries[-1][0] if entries else found
            assert newest >= max(acked, default=last), "an acknowledged entry is lost"
            assert newest >= last, "an entry that was there is lost"
            for index, data in entries:
                label = check_body(data)
                assert label.sequence == index, "an entry is in the place of another"
                assert label.owner == acked.get(index, label.owner), "an acknowledged entry changed"
            last = newest


@clause(level=3)
async def test_damaged_entry_is_reported(env: Env) -> None:
    """CorruptError on a failed checksum. Every durable byte is checksummed (I11)."""
    await _damaged(env, (40, 5), flip_in_files)


@clause(level=3)
async def test_missing_entry_is_reported(env: Env) -> None:
    """CorruptError on a gap."""
    await _damaged(env, (40, 4), remove_files_with)


async def _damaged(env: Env, victims: Sequence[int], damage: Any) -> None:
    """One after the other, from the last to the first: each is what a read stops at."""
    async with env.open() as log:
        await _fill(log, 1, 51)
    for victim in victims:
        damage(env.data_dir, _entry(victim), env.random)
        found: list[int] = []
        async with env.open(epoch=2) as log:
            with raises(CorruptError):  # nor is it passed over where the read begins
                await _read(log, victim)
            error = None
            try:
                async for entry in log.read(1):
                    assert bytes(entry.data) == _entry(entry.index), "damaged bytes were returned"
                    found.append(entry.index)
            except CorruptError as caught:
                error = caught
        assert error is not None, f"the damage was passed over: {found} came back"
        assert found == list(range(1, len(found) + 1))
        assert len(found) < victim, "an entry after the damage was returned"


@clause(level=3)
async def test_damaged_snapshot_is_reported(env: Env) -> None:
    """Raises CorruptError if the newest fails its checksum."""
    body = make_body(0, 1, 5000)
    async with env.open() as log:
        await _fill(log, 1, 4)
        await log.write_snapshot(MetadataSnapshot(2, b"older"))
        await log.write_snapshot(MetadataSnapshot(3, body))
    flip_in_files(env.data_dir, body, env.random)
    async with env.open(epoch=2) as log:
        with raises(CorruptError):
            await log.read_snapshot()
