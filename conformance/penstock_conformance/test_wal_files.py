"""Clauses of ``penstock.spi.wal`` about damage, for logs of many files: objects in a store that is a directory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.errors import CorruptError
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env
from penstock_conformance._medium import flip_in_files, remove_files_with
from penstock_conformance._wal_steps import append_all, make_bodies, read, recovered, surviving

KIND = "wal"


@clause(level=3)
async def test_damage_in_one_of_many_files_is_reported(env: Env) -> None:
    """CorruptError, naming the position, when an entry below the confirmed position fails its checksum (I10)."""
    await _damage(env, flip_in_files)


@clause(level=3)
async def test_missing_file_below_the_confirmed_position_is_reported(env: Env) -> None:
    """CorruptError, naming the position, when an entry below the confirmed position is missing (never skipped)."""
    await _damage(env, remove_files_with)


@clause(level=3)
async def test_lost_file_at_the_end_costs_no_more_than_itself(env: Env) -> None:
    """No entry is returned after a missing one; the end can be lost without a trace, and nothing before it."""
    bodies = make_bodies(6, size=900)
    await _write(env, bodies)
    remove_files_with(env.store_dir, bodies[-1], env.random)
    try:
        found = await read(env, 2)
    except CorruptError:
        return  # something tells that it was there
    assert found == bodies[:-1], "more is lost than what is missing"


def _of_many_files(wal: Any) -> None:
    if Path(str(wal.location)).is_file():
        not_applicable("the log is one file, which other clauses damage")


async def _write(env: Env, bodies: list[bytes]) -> None:
    async with env.open(epoch=1) as wal:
        surviving(wal)
        _of_many_files(wal)
        await recovered(wal)
        for body in bodies:
            await append_all(wal, [body])


async def _damage(env: Env, damage: Callable[[Path, bytes, random.Random], None]) -> None:
    bodies = make_bodies(10, size=900)
    await _write(env, bodies)
    whole = env.store_dir.with_name(f"{env.store_dir.name}-whole")
    shutil.copytree(env.store_dir, whole)
    try:
        for victim in (0, 3, 6):
            damage(env.store_dir, bodies[victim], env.random)
            await _expect_corrupt(env, bodies, victim)
            shutil.rmtree(env.store_dir)
            shutil.copytree(whole, env.store_dir)
    finally:
        shutil.rmtree(whole)
    assert await read(env, 2) == bodies, "the log is whole again"


async def _expect_corrupt(env: Env, bodies: list[bytes], victim: int) -> None:
    """Opening may raise, or recovery, when it has returned what is before the damage."""
    found: list[bytes] = []
    error = None
    try:
        async with env.open(epoch=2) as wal:
            async for entry in wal.recover():
                found.append(bytes(entry.data))
    except CorruptError as caught:
        error = caught
    assert found == bodies[: len(found)], "damaged or misplaced bytes were returned"
    assert error is not None, f"the damage was passed over: {len(found)} of {len(bodies)} entries came back"
    assert len(found) <= victim, "an entry after the damage was returned"
    assert "position=" in str(error), f"the error doesn't name the position: {error}"
