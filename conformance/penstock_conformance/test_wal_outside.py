"""Clauses of ``penstock.spi.wal`` about who looks at a log from outside: ``read``, ``describe`` and ``identify``."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import NotFoundError
from penstock_conformance._env import Env, raises
from penstock_conformance._wal_steps import (
    append_all,
    check_same,
    check_unchanged,
    files_of,
    make_bodies,
    read,
    recovered,
    surviving,
)

KIND = "wal"


async def test_reading_from_outside_tells_all_and_fences_nobody(env: Env) -> None:
    """What ``recover`` would return now, changing nothing and fencing nobody, while an owner lives and after."""
    async with env.open(epoch=5) as wal:
        surviving(wal)
        await recovered(wal)
        assert await env.read_outside() == [], "entries of an empty log"
        appends = await append_all(wal, make_bodies(300))
        for body in make_bodies(80, owner=1):
            appends += await append_all(wal, [body])
        wanted = [*make_bodies(300), *make_bodies(80, owner=1)]
        before = files_of(env)
        entries = await env.read_outside()
        check_same([bytes(entry.data) for entry in entries], wanted, "a read beside the owner")
        assert [entry.position for entry in entries] == [one.position for one in appends], "other positions"
        await check_unchanged(env, before, "reading")
        await append_all(wal, make_bodies(3, owner=2))
        await wal.trim(appends[199].next_position)
        wanted = [*wanted, *make_bodies(3, owner=2)]
        found = [bytes(entry.data) for entry in await env.read_outside()]
        check_same(found[-183:], wanted[200:], "a read beside an owner that has trimmed")
    check_same(
        [bytes(e.data) for e in await env.read_outside()], await read(env, 6), "a read of a closed log"
    )
    async with env.open(epoch=7) as wal:
        await recovered(wal)
        await wal.trim(wal.statistics().end_position)
    # one without entries is one: no NotFoundError
    found = [bytes(entry.data) for entry in await env.read_outside()]
    check_same(found, await read(env, 8), "a read of a log that was trimmed to its end")
    async with env.open(epoch=9) as wal:
        await recovered(wal)
        await append_all(wal, [b"alone"])
    found = [bytes(entry.data) for entry in await env.read_outside()]
    check_same(
        found, await read(env, 10), "a read of a log with a single entry behind those that were trimmed"
    )


async def test_describing_changes_nothing_and_fences_nobody(env: Env) -> None:
    """Facts about the log, read from outside likewise: changing nothing, fencing nobody, while an owner lives."""
    async with env.open(epoch=5) as wal:
        surviving(wal)
        await recovered(wal)
        assert await env.describe_outside(), "a log without entries has no facts"
        await append_all(wal, make_bodies(100))
        before = files_of(env)
        facts = await env.describe_outside()
        assert facts, "a log has no facts"
        await check_unchanged(env, before, "describing")
        await append_all(wal, make_bodies(100, owner=1))
        assert await env.describe_outside(), "a log that grew has no facts"
        await append_all(wal, make_bodies(1, owner=2))
    before = files_of(env)
    # of a live owner only what it noted may be known
    assert await env.describe_outside() != facts, "the facts of a log that grew are the same"
    assert files_of(env) == before, "describing changed a file"
    wanted = [*make_bodies(100), *make_bodies(100, owner=1), *make_bodies(1, owner=2)]
    check_same(await read(env, 6), wanted, "after it was described")
    async with env.open(epoch=7) as wal:
        await recovered(wal)
        await wal.trim(wal.statistics().end_position)
        if wal.capabilities.seal:
            await wal.seal()
    assert await env.describe_outside(), "a log that is empty, and sealed, has no facts"


async def test_looking_for_a_log_that_is_not_there_makes_none(env: Env) -> None:
    """NotFoundError, or no identity, if there is no log; then there is still none, and no place for one."""
    async with env.elsewhere().open() as wal:
        surviving(wal)
    before = _places(env)
    if wal.capabilities.identity:
        assert await env.identify() is None, "there is no log, and it has an identity"
        made = set(_places(env)) - set(before)
        assert not made, f"looking for the identity made {sorted(path.name for path in made)}"
    for look, can in (
        (env.read_outside, env.can_read_outside()),
        (env.describe_outside, env.can_describe_outside()),
    ):
        if can:
            with raises(NotFoundError):
                await look()
    assert _places(env) == before, "looking made something"


def _places(env: Env) -> list[Path]:
    """Files and folders of the data directory, but folders that the suite itself makes."""
    places = (path.relative_to(env.data_dir) for path in env.data_dir.rglob("*"))
    return sorted(
        place
        for place in places
        if (env.data_dir / place).is_file() or not place.parts[0].startswith("conformance-")
    )
