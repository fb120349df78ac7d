"""Clauses of ``penstock.spi.metadata_log``: many entries, large snapshots, company, reopening, a store that fails."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi.metadata_log import MetadataSnapshot
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises
from penstock_conformance._faults import FaultyStore, error_of
from penstock_conformance._leaks import leaves_nothing
from penstock_conformance._least_store import least_store
from penstock_conformance._listings import check_keys_are_told
from penstock_conformance._medium import flip_in_files, swap_files_with

KIND = "metadata_log"

#: Beyond the 1,000 keys that a listing of most stores stops at.
_MANY = 1004
#: Appends to a store that takes nothing: none of them is a reason to give up the log.
_FAILURES = 12
#: Whole numbers of what windows and pages hold.
_WINDOWS = (8, 16, 32, 48, 64, 80, 96, 100, 128, 192, 256)
#: Beyond what windows and pages hold that are a power of two.
_VERY_MANY = 4200
#: Where numbers get another digit, or don't fit into what programs keep them in.
_EDGES = (10**4, 10**6, 10**9, 2**31, 2**32, 10**10, 2**53, 2**62)


def _entry(index: int) -> bytes:
    return make_body(0, index, 120)


async def _fill(log: Any, start: int, stop: int) -> None:
    for index in range(start, stop):
        await log.append(index, _entry(index))


async def _read(log: Any, start_index: int = 1) -> list[tuple[int, bytes]]:
    return [(entry.index, bytes(entry.data)) async for entry in log.read(start_index)]


def _check_entries(got: list[tuple[int, bytes]], start: int, stop: int, what: str) -> None:
    """Exactly the entries [start, stop), each with its own bytes."""
    indexes = [index for index, _ in got]
    wanted = list(range(start, stop))
    if indexes != wanted:
        place = next(
            (n for n, index in enumerate(wanted) if n >= len(indexes) or indexes[n] != index), len(wanted)
        )
        raise AssertionError(
            f"{what}: {len(got)} entries instead of {len(wanted)}, wrong from index {start + place} on"
        )
    for index, data in got:
        assert data == _entry(index), f"{what}: other bytes than were appended: index={index}"


async def test_thousands_of_entries_come_back(env: Env) -> None:
    """Entries from ``start_index`` in order, up to the newest, however many; they vanish only below a snapshot."""
    store = env.large_store()
    async with env.open(object_store=store) as log:
        await _fill(log, 1, _MANY + 1)
        for start in (1, 2, 500, 998, 999, 1000, 1001, _MANY):
            _check_entries(await _read(log, start), start, _MANY + 1, f"a read from {start}")
        for count in _WINDOWS:  # whatever a reader gets at once, its end isn't the end of the read
            start = _MANY + 1 - count
            _check_entries(await _read(log, start), start, _MANY + 1, f"a read of {count} entries")
    async with env.open(node_id=2, epoch=2, object_store=store) as log:
        _check_entries(await _read(log), 1, _MANY + 1, "a read of another opener")
        for index in (998, 1002):
            await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
        _check_entries(
            await _read(log, 999), 999, _MANY + 1, "a read of what the older of two snapshots lacks"
        )
        with raises(ConflictError):
            await log.append(1000, b"another")
        await log.append(_MANY + 1, _entry(_MANY + 1))
        _check_entries(await _read(log, _MANY), _MANY, _MANY + 2, "a read across a snapshot's span")


async def test_more_than_four_thousand_entries_are_read(env: Env) -> None:
    """Entries up to the newest: a read has no size of its own, however far behind the reader is, nor has an owner."""
    store = env.large_store()
    async with env.open(object_store=store) as log:
        await _fill(log, 1, _VERY_MANY + 1)
        _check_entries(await _read(log), 1, _VERY_MANY + 1, "a read")
        async with env.open(node_id=2, epoch=2, object_store=store) as other:
            _check_entries(await _read(other), 1, _VERY_MANY + 1, "a read of another opener")
            with raises(ConflictError):
                await other.append(_VERY_MANY, b"another")
            await other.append(_VERY_MANY + 1, _entry(_VERY_MANY + 1))
        with raises(ConflictError):  # whoever has appended thousands is overtaken like everybody
            await log.append(_VERY_MANY + 1, b"late")
        assert await _read(log, _VERY_MANY + 1) == [(_VERY_MANY + 1, _entry(_VERY_MANY + 1))]
        for index in (500, _VERY_MANY - 10):
            await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
        behind = await _read(log, 501)
        _check_entries(
            behind, 501, _VERY_MANY + 2, "a read of a long span, of which there is the older snapshot,"
        )


async def test_indexes_of_all_sizes_are_in_order(env: Env) -> None:
    """Indexes fit into 63 bits: an empty log begins with a snapshot of any, and goes on behind it, in order."""
    for place, edge in enumerate(_EDGES):
        here = env.elsewhere(f"edge-{place}")
        first = edge - 3  # the entries after it are on both sides of the edge
        async with here.open() as log:
            try:
                await log.write_snapshot(MetadataSnapshot(first, b"brought"))
            except InvalidRequestError as error:
                raise AssertionError(f"an empty log refused the snapshot of {first}: {error}") from error
            await _fill(log, first + 1, first + 8)
            await _goes_on(log, first, first + 8, MetadataSnapshot(first, b"brought"))
        end, newest = first + 8, MetadataSnapshot(first, b"brought")
        async with here.open(node_id=2, epoch=2) as log:
            await _goes_on(log, first, end, newest)
            for index in (edge - 1, edge + 1, edge + 3):
                newest = MetadataSnapshot(index, b"at %d" % index)
                await log.write_snapshot(newest)
                await log.append(end, _entry(end))
                end += 1
                found = await log.read_snapshot()
                assert found == newest, f"the snapshot of {index} was written, and {found} came back"
            _check_entries(await _read(log, edge + 2), edge + 2, end, "a read of the older snapshot's span")
        async with here.open(node_id=3, epoch=3) as log:
            await _goes_on(log, newest.index, end, newest)


async def _goes_on(log: Any, dropped: int, end: int, newest: MetadataSnapshot) -> None:
    """The log has the entries after the newest snapshot, and not those that came before its first."""
    found = await log.read_snapshot()
    assert found == newest, f"the newest snapshot is of {newest.index}, and {found} came back"
    _check_entries(await _read(log, newest.index + 1), newest.index + 1, end, "a read behind the snapshot")
    for taken in (dropped, newest.index + 1, end - 1):
        with raises(ConflictError):
            await log.append(taken, b"another")
    with raises(InvalidRequestError):
        await log.append(end + 1, b"behind a gap")
    if dropped == newest.index:
        with raises(NotFoundError):
            await _read(log, 1)


async def test_older_snapshot_never_wins(env: Env) -> None:
    """The newest whole snapshot: the one of the greatest index, whichever was written last, and by whom."""
    async with env.open(node_id=1) as log, env.open(node_id=2) as other:
        await _fill(log, 1, 120)
        await _read(other)
        newest = second = 0
        for writer, index in (
            (log, 9),
            (log, 10),
            (log, 4),
            (other, 99),
            (log, 100),
            (other, 20),
            (log, 101),
            (other, 9),
        ):
            await writer.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
            second, newest = sorted({second, newest, index})[-2:]
            for reader in (log, other):
                snapshot = await reader.read_snapshot()
                assert snapshot == MetadataSnapshot(newest, b"at %d" % newest), (
                    f"after one of {index} was written, not that of {newest} came back: {snapshot}"
                )
            _check_entries(await _read(log, second + 1), second + 1, 120, "what followers just behind need")
    async with env.open(epoch=2) as log:
        snapshot = await log.read_snapshot()
        assert snapshot == MetadataSnapshot(101, b"at 101"), f"another snapshot after reopening: {snapshot}"


async def test_large_snapshot_comes_back_whole(env: Env) -> None:
    """Keep the snapshot: its bytes, also beyond 16 MiB."""
    data = env.random.randbytes(16 * 2**20 + 4099)
    async with env.open() as log:
        await _fill(log, 1, 3)
        await log.write_snapshot(MetadataSnapshot(1, data[::-1]))
        await log.write_snapshot(MetadataSnapshot(2, data))
    async with env.open(epoch=2) as log:
        snapshot = await log.read_snapshot()
        assert snapshot is not None, "the snapshot is lost"
        assert len(snapshot.data) == len(data), f"{len(snapshot.data)} bytes instead of {len(data)}"
        if bytes(snapshot.data) != data:  # an assertion would show both, at length
            raise AssertionError("other bytes than were written")


async def test_each_opening_continues_the_log(env: Env) -> None:
    """An entry, once appended, never changes: the third opener finds what the first two appended, and goes on."""
    end = 1
    newest = 0
    for opening in range(1, 6):
        async with env.open(node_id=opening, epoch=opening) as log:
            snapshot = await log.read_snapshot()
            found = 0 if snapshot is None else snapshot.index
            assert found == newest, f"opening {opening} finds the snapshot of {found}, not of {newest}"
            _check_entries(await _read(log, found + 1), found + 1, end, f"what opening {opening} reads")
            if end > 1:
                for taken in (end - 1, found + 1):
                    with raises(ConflictError):
                        await log.append(taken, b"another")
            await _fill(log, end, end + 7)
            end += 7
            if opening in (2, 4):
                newest = end - 3
                await log.write_snapshot(MetadataSnapshot(newest, b"at %d" % newest))
            _check_entries(
                await _read(log, newest + 1), newest + 1, end, f"what opening {opening} reads of its own"
            )


async def test_reader_that_is_overtaken_is_told(env: Env) -> None:
    """NotFoundError if entries were dropped below a snapshot: a reader gets every entry or an error, never fewer."""
    async with env.open() as log, env.open(node_id=2) as follower:
        await _fill(log, 1, 91)
        got: list[int] = []
        told = False
        try:
            async for entry in follower.read(1):
                got.append(entry.index)
                assert bytes(entry.data) == _entry(entry.index), f"other bytes: index={entry.index}"
                if entry.index == 3:
                    for index in (30, 60, 80, 85):
                        await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
        except NotFoundError:
            told = True
        assert got == list(range(1, len(got) + 1)), f"entries were skipped: {got[:3]}...{got[-3:]}"
        assert told or got[-1] == 90, f"the read ended at {got[-1]} of 90 as if that were the newest"


async def test_writer_that_slept_past_snapshots_takes_no_index(env: Env) -> None:
    """ConflictError if the index is taken, also where the entry that took it has vanished below a snapshot since: who
    knows nothing of either makes none anew."""
    for number, snapshots in enumerate(((8, 14, 20, 24), (4, 24), (3, 4, 5))):
        place = env.elsewhere(f"slept-{number}")
        async with place.open() as log, place.open(node_id=2) as other:
            await _fill(log, 1, 4)
            _check_entries(await _read(other), 1, 4, "a read before it slept")
            await _fill(log, 4, 30)
            for index in snapshots:
                await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
            for index in (4, 5, 25):
                with raises(ConflictError):
                    await other.append(index, b"late")
            for start in (4, 25):
                with suppress(NotFoundError):  # or nothing was dropped
                    _check_entries(await _read(other, start), start, 30, "a read behind a writer that slept")


async def test_many_followers_hear_of_news(env: Env) -> None:
    """Return when there may be an entry past ``after_index``; whoever is cancelled takes no news along."""
    async with env.open() as log:
        await _fill(log, 1, 3)
        heard: set[int] = set()

        async def follow(number: int) -> None:
            index = 2
            while index < 3:  # one entry is news, too
                await log.wait_for_news(index)
                async for entry in log.read(index + 1):
                    index = entry.index
            heard.add(number)

        async with anyio.create_task_group() as tasks:
            gone = [anyio.CancelScope() for _ in range(3)]

            async def give_up(scope: anyio.CancelScope) -> None:
                with scope:
                    await follow(-1)

            for number in range(60):
                if number % 20 == 0:
                    tasks.start_soon(give_up, gone[number // 20])
                tasks.start_soon(follow, number)
            for _ in range(5):
                await checkpoint()
            for scope in gone:
                scope.cancel()
            await checkpoint()
            since = anyio.current_time()
            await _fill(log, 3, 4)
        took_s = anyio.current_time() - since  # some look for news now and then
        assert heard == set(range(60)), f"{60 - len(heard)} of 60 followers never heard of the news"
        late = anyio.Event()

        async def wait_for_the_next() -> None:
            await log.wait_for_news(3)
            late.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_the_next)
            for _ in range(5):
                await checkpoint()
            await log.wait_for_news(2)  # who is behind needn't wait, and takes no news along either
            await _fill(log, 4, 5)
            with anyio.move_on_after(env.target.deadline_s / 8 + 2 * took_s):
                await late.wait()
            tasks.cancel_scope.cancel()
        assert late.is_set(), "who waited didn't hear of the news, since another needn't wait meanwhile"


async def test_news_come_by_reading_too(env: Env) -> None:
    """There may be an entry past ``after_index`` if this process has read one, whoever appended it."""
    async with env.open() as log, env.open(node_id=2) as other:
        await _fill(log, 1, 6)
        _check_entries(await _read(other), 1, 6, "what another appended")
        for index in range(5):
            await other.wait_for_news(index)
        assert other.statistics().last_index == 5, (
            "the newest index known here isn't that of the entry just read"
        )
        await _fill(log, 6, 10)
        reading = other.read(6)
        for _ in range(3):
            await anext(reading)
        await reading.aclose()  # left half-way: what was read is known all the same
        await other.wait_for_news(6)


async def test_opening_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""
    index = 1

    async def use(log: Any) -> None:
        nonlocal index
        await log.read_snapshot()
        await _read(log, index)
        await _fill(log, index, index + 2)
        index += 2
        async for _ in log.read(index - 2):
            break  # an iterator that is left half-way
        await log.write_snapshot(MetadataSnapshot(index - 1, b"x"))

    await leaves_nothing(env, use)


async def test_keys_begin_as_the_spec_tells(env: Env) -> None:
    """``key_prefixes`` are the beginnings of *all* keys that the plugin keeps in the object store."""
    store = env.plain_store()
    for epoch in (1, 2):
        async with env.open(epoch=epoch, object_store=store) as log:
            start = 20 * epoch - 19
            await _fill(log, start, start + 20)
            for index in (start + 5, start + 10, start + 15):
                await log.write_snapshot(MetadataSnapshot(index, b"x"))
            with raises(ConflictError):
                await log.append(start + 19, b"another")
            await check_keys_are_told(env, store)


async def test_needs_of_the_store_are_told(env: Env) -> None:
    """``requires`` names the capabilities of the object store that the plugin can't do without: on one that has no
    others the log is as right, listings in another order, views, and objects without time or token included."""
    plain = env.plain_store()
    store = least_store(env, plain)
    for epoch in (1, 2):
        async with env.open(epoch=epoch, object_store=store) as log:
            start = 20 * epoch - 19
            await _fill(log, start, start + 20)
            for index in (start + 5, start + 15):
                await log.write_snapshot(MetadataSnapshot(index, b"of %d" % index))
            assert await log.read_snapshot() == MetadataSnapshot(start + 15, b"of %d" % (start + 15))
            found = await _read(log, start + 16)
            _check_entries(found, start + 16, start + 20, "a read behind the newest snapshot")
            await check_keys_are_told(env, plain)


# --- 3: damage


@clause(level=3)
async def test_damage_of_the_newest_entry_is_reported(env: Env) -> None:
    """CorruptError on a failed checksum: also of the last entry, which was acknowledged like the others."""
    async with env.open() as log:
        await _fill(log, 1, 6)
    flip_in_files(env.data_dir, _entry(5), env.random)
    async with env.open(epoch=2) as log:
        with raises(CorruptError):
            await _read(log)


@clause(level=3)
async def test_entry_in_the_place_of_another_is_reported(env: Env) -> None:
    """CorruptError: an entry that is whole, but isn't the one of its index, is as wrong as a damaged one."""
    async with env.open() as log:
        await _fill(log, 1, 8)
    swap_files_with(env.data_dir, _entry(4), _entry(5))
    async with env.open(epoch=2) as log:
        with raises(CorruptError):
            await _read(log)


# --- 4: faults of the medium


async def _faulty(env: Env, stack: AsyncExitStack, epoch: int = 1) -> tuple[Any, FaultyStore]:
    store = FaultyStore(env.plain_store())
    return await stack.enter_async_context(env.open(epoch=epoch, object_store=store)), store


def _applies(store: FaultyStore) -> None:
    if not store.failed:
        not_applicable("the plugin doesn't ask its object store this way")


@clause(level=4)
async def test_lost_reply_of_an_append_is_resolved(env: Env) -> None:
    """An attempt whose outcome is unknown is resolved by reading back; UnavailableError if that can't be either."""
    async with AsyncExitStack() as stack:
        log, store = await _faulty(env, stack)
        await _fill(log, 1, 4)
        for index in (4, 5):
            store.lose_reply("put_if_absent")
            error = await error_of(log.append(index, _entry(index)))
            _applies(store)
            assert not isinstance(error, ConflictError), "the log takes its own entry for another's"
            assert error is None or isinstance(error, UnavailableError), f"a lost reply became {error!r}"
            store.heal()
            _check_entries(await _read(log), 1, index + 1, "what a lost reply was about")
        with raises(ConflictError):
            await log.append(5, b"another")
        await _fill(log, 6, 8)
        _check_entries(await _read(log), 1, 8, "a log that lost replies")


@clause(level=4)
async def test_failed_append_is_told(env: Env) -> None:
    """UnavailableError if the medium failed: an append that returns is there, one that raises isn't."""
    async with AsyncExitStack() as stack:
        log, store = await _faulty(env, stack)
        await _fill(log, 1, 4)
        for times in (1, 1000):
            index = log.statistics().last_index + 1
            for method in ("put_if_absent", "put"):
                store.fail(method, times=times)
            with anyio.move_on_after(env.target.deadline_s / 4):
                for _ in range(min(times, _FAILURES)):
                    error = await error_of(log.append(index, _entry(index)))
                    _applies(store)
                    assert error is None or isinstance(error, UnavailableError), (
                        f"a failed append raised {error!r}"
                    )
                    if error is None:
                        break
                    _check_entries(await _read(log), 1, index, "a log whose store takes nothing")
                store.heal()
                there = index + 1 if error is None else index
                counted = log.statistics().appends
                assert counted == there - 1, f"{there - 1} entries were appended, and {counted} are counted"
                _check_entries(await _read(log), 1, there, "what a failed append left")
            store.heal()
            if log.statistics().last_index < index:
                await log.append(index, _entry(index))
        index = log.statistics().last_index + 1
        _check_entries(await _read(log), 1, index, "a log whose appends failed")
        for method in ("put_if_absent", "put"):
            store.fail(method, times=1000)
        with anyio.move_on_after(env.target.deadline_s / 4):
            await error_of(log.append(index, _entry(index)))
        store.heal()
        other = await stack.enter_async_context(env.open(object_store=store))
        with suppress(ConflictError):  # an attempt that was given up may have come there after all
            await other.append(index, _entry(index))
        with raises(ConflictError):  # the index is another's, whatever its bytes are
            await log.append(index, _entry(index))
        await _fails_as_another_appends(log, other, store, index + 1)


async def _fails_as_another_appends(log: Any, other: Any, store: FaultyStore, index: int) -> None:
    """An attempt whose outcome is unknown is told from another's, which has the same bytes."""
    errors: list[Exception | None] = []

    async def append() -> None:
        errors.append(await error_of(log.append(index, _entry(index))))

    store.hold("put_if_absent", "put")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append)
        for _ in range(50):
            await checkpoint()
        store.hold()
        await other.append(index, _entry(index))
        for method in ("put_if_absent", "put"):
            store.fail(method)
        store.release()
    store.heal()
    assert errors != [None], f"two appends at {index} returned, of which one had failed"


@clause(level=4)
async def test_entry_waits_for_the_one_below_it(env: Env) -> None:
    """An entry is made if the one below it exists: one that is on its way doesn't yet, and may fail."""
    async with AsyncExitStack() as stack:
        log, store = await _faulty(env, stack)
        await _fill(log, 1, 4)
        errors: dict[int, Exception | None] = {}

        async def append(index: int) -> None:
            errors[index] = await error_of(log.append(index, _entry(index)))

        store.hold("put_if_absent", "put", "compare_and_swap")
        async with anyio.create_task_group() as tasks:
            for index in (4, 5):
                tasks.start_soon(append, index)
                for _ in range(50):
                    await checkpoint()
            if not store.held:
                tasks.cancel_scope.cancel()
            else:
                for method in ("put_if_absent", "put", "compare_and_swap"):
                    store.fail(method)
                store.release_one(0)
                for _ in range(50):
                    await checkpoint()
                store.heal()
                store.hold()
                store.release()
        _applies(store)
        for index, error in errors.items():
            assert error is None or isinstance(error, UnavailableError | InvalidRequestError), (
                f"an append at {index} raised {error!r}"
            )
        stop = 4 + next((n for n, index in enumerate((4, 5)) if errors[index] is not None), 2)
        assert stop == 6 or errors[5] is not None, "an entry was appended behind one that isn't there"
        _check_entries(await _read(log), 1, stop, "a log of which an append failed")


@clause(level=4)
async def test_outage_is_not_the_end_of_the_log(env: Env) -> None:
    """Entries up to the newest, or an error that says that they can't be had: an outage makes no log shorter."""
    async with env.open() as log:
        await _fill(log, 1, 41)
    async with AsyncExitStack() as stack:
        log, store = await _faulty(env, stack, epoch=2)
        other = await stack.enter_async_context(env.open(node_id=2, epoch=3))
        end = 41
        for method in ("get", "list", "head"):
            for lost in (False, True):
                await other.append(end, _entry(end))  # it knew of all before that
                end += 1
                (store.lose_reply if lost else store.fail)(method, times=1000)
                try:
                    got = await _read(log)
                except PenstockError as error:
                    assert isinstance(error, UnavailableError), f"an outage ({method}) was told as {error!r}"
                else:
                    _check_entries(got, 1, end, f"a read during an outage ({method})")
                store.heal()
                _check_entries(await _read(log), 1, end, f"a read after an outage ({method})")
        _applies(store)


@clause(level=4)
async def test_outage_is_not_an_older_snapshot(env: Env) -> None:
    """The newest whole snapshot, or an error: an outage makes no snapshot vanish."""
    async with env.open() as log:
        await _fill(log, 1, 11)
        for index in (4, 9):
            await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
    async with AsyncExitStack() as stack:
        log, store = await _faulty(env, stack, epoch=2)
        for method in ("get", "list"):
            for times in (1, 1000):
                store.fail(method, times=times)
                try:
                    snapshot = await log.read_snapshot()
                except PenstockError as error:
                    assert isinstance(error, UnavailableError), f"an outage ({method}) was told as {error!r}"
                else:
                    assert snapshot == MetadataSnapshot(9, b"at 9"), f"an outage ({method}) gave {snapshot}"
                store.heal()
        _applies(store)
        assert await log.read_snapshot() == MetadataSnapshot(9, b"at 9"), "another snapshot after the outage"


@clause(level=4)
async def test_failed_snapshot_is_told_and_drops_nothing(env: Env) -> None:
    """Keep the snapshot, durably; *then* entries up to its index may be dropped."""
    async with AsyncExitStack() as stack:
        log, store = await _faulty(env, stack)
        await _fill(log, 1, 31)
        for index in (5, 10):
            await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
        for method in ("put", "put_if_absent"):
            store.fail(method, times=1000)
        error = await error_of(log.write_snapshot(MetadataSnapshot(25, b"at 25")))
        _applies(store)
        await error_of(log.write_snapshot(MetadataSnapshot(10, b"at 10")))  # it is there already, and stays
        store.heal()
        assert error is not None, "a snapshot that couldn't be written was acknowledged"
        assert isinstance(error, UnavailableError), f"a failed snapshot raised {error!r}"
        snapshot = await log.read_snapshot()
        assert snapshot == MetadataSnapshot(10, b"at 10"), f"not the last snapshot that was kept: {snapshot}"
        _check_entries(await _read(log, 6), 6, 31, "what followers just behind the last kept snapshot need")
        store.fail("delete", times=1000)
        await error_of(log.write_snapshot(MetadataSnapshot(28, b"at 28")))
        store.heal()
        snapshot = await log.read_snapshot()
        assert snapshot in (MetadataSnapshot(28, b"at 28"), MetadataSnapshot(10, b"at 10")), (
            f"lost: {snapshot}"
        )
        _check_entries(await _read(log, 29), 29, 31, "what the newest snapshot lacks")
