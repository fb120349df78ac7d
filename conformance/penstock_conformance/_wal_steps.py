"""Steps that clauses of write-ahead logs are made of."""

from __future__ import annotations

__all__ = (
    "append_all",
    "check_reason",
    "check_same",
    "check_unchanged",
    "copies_around",
    "end_of",
    "files_of",
    "fitting",
    "make_bodies",
    "read",
    "recovered",
    "room_of",
    "surviving",
)

import time
from collections.abc import Sequence
from typing import Any

import anyio

from penstock.spi.wal import WalAppend, WalEntry
from penstock_conformance._body import make_body
from penstock_conformance._clause import not_applicable
from penstock_conformance._env import Env
from penstock_conformance._medium import medium_of

#: The SPI version from which on a log tells where it ends.
_TELLS_ITS_END = 2


async def recovered(wal: Any) -> list[WalEntry]:
    """What it recovers, to the end."""
    return [entry async for entry in wal.recover()]


async def read(env: Env, epoch: int = 10) -> list[bytes]:
    """The payloads that a new owner recovers."""
    async with env.open(epoch=epoch) as wal:
        return [bytes(entry.data) for entry in await recovered(wal)]


async def append_all(wal: Any, payloads: list[bytes]) -> list[WalAppend]:
    """Append all at once, then wait for all."""
    appends = [wal.append([payload]) for payload in payloads]
    for append in appends:
        await append.wait_durable()
    return appends


def end_of(env: Env, wal: Any) -> int:
    """Where the recovered log says that it ends; plugins of SPI version 1 needn't."""
    end: int = wal.statistics().end_position
    if end < 0 and env.spec().spi_version < _TELLS_ITS_END:
        not_applicable("the log doesn't tell its end, as SPI version 2 asks")
    assert end >= 0, "a log that was recovered doesn't know where it ends"
    return end


def surviving(wal: Any) -> None:
    """Races and crashes need a log that outlives its process."""
    if wal.capabilities.durability_domain == "process":
        not_applicable("the log lives and dies with its process")


def files_of(env: Env) -> dict[str, bytes]:
    """What is in each file below the clause's directory."""
    return {str(path): path.read_bytes() for path in env.data_dir.rglob("*") if path.is_file()}


async def check_unchanged(env: Env, before: dict[str, bytes], what: str) -> None:
    """Nothing differs from what :func:`files_of` told before ``what`` was done, beside an owner that lives.

    The owner may write all the time, that it is alive, say: then what has changed changes again by itself.
    """
    now = files_of(env)
    changed = {path for path in now.keys() | before.keys() if now.get(path) != before.get(path)}
    until = time.monotonic() + env.target.deadline_s / 5
    while changed and time.monotonic() < until:
        await anyio.sleep(0.02)
        later = files_of(env)
        changed = {path for path in changed if later.get(path) == now.get(path)}
    assert not changed, f"{what} changed {min(changed)!r}"


def make_bodies(count: int, size: int = 200, owner: int = 0) -> list[bytes]:
    """Payloads that tell whose they are, and their place."""
    return [make_body(owner, sequence, size) for sequence in range(count)]


def check_same(found: list[bytes], wanted: list[bytes], what: str) -> None:
    """Entry by entry the same bytes; tells where they part, and not all that they are."""
    if found == wanted:
        return
    pairs = enumerate(zip(found, wanted, strict=False))
    place = next((number for number, (one, other) in pairs if one != other), min(len(found), len(wanted)))
    raise AssertionError(
        f"{what}: {len(found)} entries instead of {len(wanted)}, wrong from number {place} on"
    )


def check_reason(wal: Any) -> None:
    """Of a log that isn't as it should be, its statistics say why, to people."""
    told = wal.statistics()
    if told.state in ("degraded", "fenced", "failed"):
        assert told.last_error.strip(), f"the log is {told.state}, and doesn't say why"


def fitting(wal: Any, sizes: Sequence[int]) -> list[int]:
    """``sizes`` in bytes, each no larger than an entry may be, and all of them within the room of a bounded log."""
    room = room_of(wal, sum(sizes))
    largest: int = min(wal.capabilities.entry_bytes_max, room if room == sum(sizes) else room // len(sizes))
    return [min(size, largest) for size in sizes]


def room_of(wal: Any, wanted_bytes: int) -> int:
    """``wanted_bytes``, or what a bounded log surely takes between two trims, whatever it adds to entries."""
    capacity: int = wal.statistics().capacity_bytes
    return min(wanted_bytes, capacity // 3) if capacity else wanted_bytes


async def copies_around(env: Env, bodies: list[bytes], last: list[bytes]) -> tuple[Any, bytes, bytes]:
    """The file of a log before and after ``last`` was appended to it, and where that file is."""
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        path = medium_of(wal)
        for body in bodies:
            await wal.append([body]).wait_durable()
        before = path.read_bytes()
        copies: list[bytes] = []
        appends = [wal.append([body]) for body in last]
        appends[-1].set_callback(lambda _: copies.append(path.read_bytes()))
        await appends[-1].wait_durable()
    if before == copies[0]:
        not_applicable("the append isn't visible in the file")
    return path, before, copies[0]
