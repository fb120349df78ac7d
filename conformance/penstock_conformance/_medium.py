"""Damage: what a crash or a failing disk does to the files of a log, done on purpose."""

from __future__ import annotations

__all__ = ("flip_in_files", "flipped", "medium_of", "remove_files_with", "torn", "zero_around")

import random
from pathlib import Path
from typing import Any

from penstock_conformance._clause import not_applicable

_SECTOR_BYTES = 512
_SIZE_MAX = 256 * 2**20


def medium_of(opened: Any) -> Path:
    """The regular file that holds the whole log; without one the clause can't be tried."""
    path = Path(str(opened.location))
    if not path.is_file():
        not_applicable(f"the log isn't a regular file that could be damaged: location={opened.location}")
    if path.stat().st_size > _SIZE_MAX:
        not_applicable("the log's file is too large to be copied, set a smaller capacity")
    return path


def find(medium: bytes, payload: bytes) -> int:
    """Where the payload is, as plain bytes; media that encode or encrypt can't be damaged in a known place."""
    place = medium.find(payload)
    if place < 0:
        not_applicable("the payload isn't on the medium as it was given")
    return place


def flipped(medium: bytes, payload: bytes, rng: random.Random) -> bytes:
    """One bit of the payload is wrong."""
    place = find(medium, payload) + rng.randrange(len(payload))
    return medium[:place] + bytes([medium[place] ^ (1 << rng.randrange(8))]) + medium[place + 1 :]


def zero_around(medium: bytes, payload: bytes) -> bytes:
    """The payload and what is directly before it was never written, as after a lost write."""
    place = find(medium, payload)
    start = max(0, place - 24)
    return medium[:start] + bytes(place + len(payload) - start) + medium[place + len(payload) :]


def torn(before: bytes, after: bytes, rng: random.Random) -> bytes:
    """The medium if only some sectors of the last write reached it.

    The last write is the longest run of changed sectors. Everything else that changed is taken back too: it may have
    been written after the run was durable.
    """
    padded = before.ljust(len(after), b"\0")
    changed = [
        sector
        for sector in range(0, len(after), _SECTOR_BYTES)
        if padded[sector : sector + _SECTOR_BYTES] != after[sector : sector + _SECTOR_BYTES]
    ]
    runs: list[list[int]] = []
    for sector in changed:
        if runs and sector == runs[-1][-1] + _SECTOR_BYTES:
            runs[-1].append(sector)
        else:
            runs.append([sector])
    run = max(runs, key=len)
    medium = bytearray(padded)
    written = (
        run[: rng.randrange(len(run))] if rng.random() < 0.5 else rng.sample(run, rng.randrange(len(run)))
    )
    for sector in written:
        medium[sector : sector + _SECTOR_BYTES] = after[sector : sector + _SECTOR_BYTES]
    return bytes(medium)


def flip_in_files(directory: Path, payload: bytes, rng: random.Random) -> None:
    """Damage the payload wherever it is below ``directory``."""
    found = False
    for path in sorted(directory.rglob("*")):
        if path.is_file() and payload in (data := path.read_bytes()):
            path.write_bytes(flipped(data, payload, rng))
            found = True
    if not found:
        not_applicable("the bytes aren't in a file of the data directory as they were given")


def remove_files_with(directory: Path, payload: bytes, _rng: random.Random) -> None:
    """Delete the files below ``directory`` that hold the payload and next to nothing else."""
    found = False
    for path in sorted(directory.rglob("*")):
        if path.is_file() and payload in (data := path.read_bytes()):
            if len(data) > 2 * len(payload) + 1024:
                not_applicable("the entry isn't a file of its own")
            path.unlink()
            found = True
    if not found:
        not_applicable("the bytes aren't in a file of the data directory as they were given")
