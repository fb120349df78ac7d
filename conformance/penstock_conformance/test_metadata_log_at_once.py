"""Clauses of ``penstock.spi.metadata_log`` about calls that meet each other, the end, or somebody who gives up."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ConflictError, CorruptError, PenstockError
from penstock.spi.metadata_log import MetadataSnapshot
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, given_up, raises, together
from penstock_conformance._listings import files_below
from penstock_conformance._medium import swap_files_with
from penstock_conformance._told_sizes import told_sizes

KIND = "metadata_log"

_TURNS = (0, 1, 2, 3, 5, 8)


def _entry(index: int, owner: int = 0) -> bytes:
    return make_body(owner, index, 120)


async def _fill(log: Any, start: int, stop: int) -> None:
    for index in range(start, stop):
        await log.append(index, _entry(index))


async def _read(log: Any, start: int) -> list[tuple[int, bytes]]:
    return [(entry.index, bytes(entry.data)) async for entry in log.read(start)]


async def _later(turns: int, call: Callable[[], Awaitable[None]]) -> None:
    for _ in range(turns):
        await checkpoint()
    await call()


# --- snapshots


async def test_newest_of_snapshots_at_once_comes_back(env: Env) -> None:
    """The newest is the one of the greatest index: also of those that are written at once, whichever ends last."""
    for turns in _TURNS:
        place = env.elsewhere(f"at-once-{turns}")
        async with place.open() as log, place.open(node_id=2, epoch=2) as other:
            await _fill(log, 1, 9)
            newest = MetadataSnapshot(7, b"newest")
            older = MetadataSnapshot(4, b"older")
            await together(
                [
                    partial(log.write_snapshot, newest),
                    partial(_later, turns, partial(other.write_snapshot, older)),
                    partial(_later, turns // 2, partial(log.write_snapshot, MetadataSnapshot(5, b"between"))),
                ]
            )
            for each in (log, other):
                found = await each.read_snapshot()
                assert found == newest, f"snapshots of 4, 5 and 7 were written at once, and {found} came back"
        async with place.open(node_id=3, epoch=3) as log:
            found = await log.read_snapshot()
            assert found == newest, f"{found} came back to a new opener"
            assert await _read(log, 8) == [(8, _entry(8))]


async def test_snapshot_that_was_given_up_holds_nothing_up(env: Env) -> None:
    """A cancelled snapshot is there, whole, or isn't; what comes behind it is written, and no entry is lost."""
    async with env.open() as log:
        await _fill(log, 1, 7)
        await log.write_snapshot(MetadataSnapshot(2, b"first"))
        end, known = 7, 2
        given: dict[int, bytes] = {}  # one that was given up may still land, also after others
        written = {2: b"first"}
        for number, turns in enumerate(_TURNS):
            body = make_body(number, 0, 3000)
            given[end - 1] = body
            await given_up(turns, partial(log.write_snapshot, MetadataSnapshot(end - 1, body)))
            await log.append(end, _entry(end))
            end += 1
            found = await log.read_snapshot()
            assert found is not None, "the snapshot before one that was given up is gone"
            assert found.index >= known, f"a snapshot of {found.index} came back, one of {known} was written"
            assert found.index == known or found.index in given, (
                f"a snapshot of {found.index} was never written"
            )
            whole = (given.get(found.index), written.get(found.index))
            assert bytes(found.data) in whole, "half of a snapshot came back"
            known = found.index
            wanted = [(index, _entry(index)) for index in range(known + 1, end)]
            assert await _read(log, known + 1) == wanted, "entries behind the newest snapshot are lost"
            if number % 2:
                known, written[end - 1] = end - 1, b"in between"
                await log.write_snapshot(MetadataSnapshot(known, written[known]))


# --- appends


async def test_append_that_was_given_up_is_nobodys_later(env: Env) -> None:
    """ConflictError if the index is taken by what *another* attempt appended, whatever was tried there before."""
    async with env.open() as log, env.open(node_id=2, epoch=2) as other:
        index = 1
        for turns in _TURNS:
            await given_up(turns, partial(log.append, index, _entry(index, owner=1)))
            with suppress(ConflictError):  # it is there, then
                await other.append(index, _entry(index, owner=2))
            before = await _read(other, index)
            for data in (_entry(index, owner=1), _entry(index, owner=3)):
                with raises(ConflictError):
                    await log.append(index, data)
            after = await _read(other, index)
            assert after == before, "an entry that was there was replaced"
            assert await _read(log, index) == before, "the two owners read other entries"
            index += 1


async def test_append_that_is_under_way_at_the_end_is_answered(env: Env) -> None:
    """Leaving the context answers everybody: an append that returns is there, and one that raises tells the end."""
    for turns in _TURNS:
        place = env.elsewhere(f"left-{turns}")
        returned: list[int] = []

        async def append(log: Any, index: int, returned: list[int]) -> None:
            with suppress(PenstockError):
                await log.append(index, _entry(index))
                returned.append(index)

        async with anyio.create_task_group() as tasks:
            async with place.open() as log:
                await _fill(log, 1, 3)
                tasks.start_soon(append, log, 3, returned)
                for _ in range(turns):
                    await checkpoint()
        async with place.open(epoch=2) as log:
            found = await _read(log, 1)
            whole = [(index, _entry(index)) for index in (1, 2, 3)]
            assert found in (whole[:2], whole), "other entries than were appended"
            assert len(found) == 3 or not returned, "an append returned as the log was left, and isn't there"


# --- reads


async def test_read_beside_appends_and_snapshots_is_whole(env: Env) -> None:
    """Entries up to the newest, each of them or an error: also as more are appended, and a snapshot is written."""
    async with env.open() as log:
        await _fill(log, 1, 21)
        for place in (1, 20, 9):  # what is below a snapshot may be gone for who begins there later
            end = log.statistics().last_index + 1
            seen: list[int] = []
            async for entry in log.read(1):
                assert bytes(entry.data) == _entry(entry.index), "an entry changed as it was read"
                seen.append(entry.index)
                if len(seen) == place:
                    await log.append(end, _entry(end))
                    if place == 9:
                        await log.write_snapshot(MetadataSnapshot(5, b"of what was read"))
            assert len(seen) >= end - 1, (
                f"{len(seen)} of {end - 1} entries were read, as more were appended behind entry {place}"
            )
            assert seen == list(range(1, len(seen) + 1)), f"entries out of order: {seen}"


async def test_read_directly_behind_a_snapshot_is_empty(env: Env) -> None:
    """None if it is past the newest; NotFoundError only if an entry was dropped: also behind a snapshot alone."""
    async with env.open() as log:
        assert await _read(log, 1) == []
        await log.write_snapshot(MetadataSnapshot(40, b"brought"))
        assert await _read(log, 41) == []
        assert await _read(log, 42) == []
    async with env.open(node_id=2, epoch=2) as log:
        assert await _read(log, 41) == []
        await log.append(41, _entry(41))
        assert await _read(log, 41) == [(41, _entry(41))]


async def test_contents_that_look_like_a_logs_own_come_back(env: Env) -> None:
    """Make ``data`` the entry: any bytes, also such as a log might write, pack or mark itself."""
    text = b"state that is shorter when it is packed" * 4
    packed = [
        zlib.compress(text),
        zlib.compress(text, wbits=31),
        b"\xef\xbb\xbf" + text,
        b"\r\n",
        text + b"\n",
    ]
    async with env.open() as log:
        index = 0
        for data in packed:
            index += 1
            await log.append(index, data)
        assert [data for _, data in await _read(log, 1)] == packed, "entries that look packed"
        for data in packed:
            await log.write_snapshot(MetadataSnapshot(index, data))
            found = await log.read_snapshot()
            assert found == MetadataSnapshot(index, data), (
                f"a snapshot that looks packed came back as {found}"
            )
            index += 1
            await log.append(index, data)


# --- 3: damage


@clause(level=3)
async def test_entry_or_snapshot_that_is_cut_off_is_reported(env: Env) -> None:
    """CorruptError: what was stored and is cut short, to nothing even, is damaged, and no end of the log."""
    body = make_body(1, 1, 3000)
    async with env.open() as log:
        await _fill(log, 1, 7)
        await log.write_snapshot(MetadataSnapshot(2, b"older"))
        await log.write_snapshot(MetadataSnapshot(3, body))
    store = env.plain_store()
    for payload, looks in ((_entry(5), "entry"), (_entry(6), "entry"), (body, "snapshot")):
        keys = [info.key async for info in store.list()]
        holders = {key: whole for key in keys if payload in (whole := bytes(await store.get(key)))}
        if len(holders) != 1 or len(next(iter(holders.values()))) > 2 * len(payload) + 1024:
            not_applicable("the entry isn't an object of its own")
        ((key, whole),) = holders.items()
        for kept in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            await store.put(key, [whole[:kept]])
            async with env.open(epoch=2) as log:
                with raises(CorruptError):
                    await (log.read_snapshot() if looks == "snapshot" else _read(log, 4))
        await store.put(key, [whole])


async def test_sizes_are_told_before_as_they_are(env: Env) -> None:
    """``sizes`` tells before anything is opened what entries an opened log then takes, and which setting decides."""
    told = told_sizes(env).entry
    async with env.open() as log:
        largest = log.capabilities.entry_bytes_max
    assert told is None or told.size == largest, (
        f"sizes tells of entries of {told and told.size} bytes, and the log takes {largest}"
    )


async def test_who_only_looks_changes_nothing(env: Env) -> None:
    """``read_only``: open without making or changing anything, where a log is and where none is."""
    for place, begun in ((env.elsewhere("empty"), False), (env.elsewhere("begun"), True)):
        async with AsyncExitStack() as stack:
            store = await place.store_of(stack)
            if begun:
                async with place.open(object_store=store) as log:
                    await _fill(log, 1, 6)
                    await log.write_snapshot(MetadataSnapshot(3, b"state"))
            before = await _all_there(place, store)
            with suppress(*(() if begun else (PenstockError,))):  # that there is no log may be told
                async with place.open(epoch=0, object_store=store, read_only=True) as log:
                    found = await log.read_snapshot()
                    assert (found is not None) == begun, f"{found} where a log was begun: {begun}"
                    wanted = [(index, _entry(index)) for index in (4, 5)] if begun else []
                    assert await _read(log, 4 if begun else 1) == wanted, "who only looks reads other entries"
            after = await _all_there(place, store)
            changed = sorted(dict(after.items() ^ before.items()))
            assert not changed, f"who only looks has changed {changed[:3]}"


async def _all_there(place: Env, store: Any) -> dict[str, bytes | str]:
    """Files of the plugin's own, and objects."""
    files = files_below(place.data_dir)
    kept: dict[str, bytes | str] = {
        name: body for name, body in files.items() if not name.startswith("conformance-")
    }
    async for info in store.list():
        kept[f"object {info.key}"] = bytes(await store.get(info.key))
    return kept


@clause(level=3)
async def test_snapshot_in_the_place_of_another_is_reported(env: Env) -> None:
    """Raises CorruptError: a snapshot that is whole, but isn't the one of its index, is an older state of the log."""
    bodies = [make_body(number, 1, 900) for number in range(2)]
    async with env.open() as log:
        await _fill(log, 1, 9)
        await log.write_snapshot(MetadataSnapshot(4, bodies[0]))
        await log.write_snapshot(MetadataSnapshot(7, bodies[1]))
    swap_files_with(env.data_dir, bodies[0], bodies[1])
    async with env.open(epoch=2) as log:
        with raises(CorruptError):
            await log.read_snapshot()
