"""The medium: what it is, whether it was synced, and what a crash, a full or a failing disk does to it.

Damage is done on purpose, to files; what is a file and what isn't is told by the plugin's ``location``.
"""

from __future__ import annotations

__all__ = (
    "Bits",
    "OwnMedium",
    "bits_of",
    "disk_with_room_for",
    "file_system",
    "flip_in_files",
    "flipped",
    "local_folder",
    "medium_of",
    "own_medium",
    "no_descriptors_left",
    "remove_files_with",
    "swap_files_with",
    "torn",
    "unsynced_bytes",
    "unsynced_files",
    "zero_around",
)

import ctypes
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from penstock_conformance._clause import not_applicable

_SECTOR_BYTES = 512
_SIZE_MAX = 256 * 2**20
#: Linux's call that says how much of a file the page cache holds, and how much of that isn't written yet.
_CACHESTAT = 451


class OwnMedium(Protocol):
    """What a plugin may have as ``medium`` on the object that it opens, if its data aren't in files or in a store."""

    #: Set by the suite; to be called before each "read", "write" and "sync" of the medium. May raise OSError.
    step: Callable[[str], None]

    def load(self) -> bytes:
        """The whole medium, also when the log is closed."""

    def store(self, data: bytes) -> None:
        """Put ``data`` in the place of the whole medium."""


class _Whole:
    """A medium of a plugin's own, as if it were a file."""

    def __init__(self, medium: OwnMedium) -> None:
        self._medium = medium

    def read_bytes(self) -> bytes:
        return self._medium.load()

    def write_bytes(self, data: bytes) -> None:
        self._medium.store(data)

    def unlink(self) -> None:
        not_applicable("the medium isn't a file that could be removed")


def own_medium(opened: Any) -> OwnMedium | None:
    """The plugin's ``medium``, if it has one that can be disturbed; any other thing may have this name, too."""
    own: OwnMedium | None = getattr(opened, "medium", None)
    return own if hasattr(own, "step") else None


def _whole(own: OwnMedium) -> _Whole:
    if not hasattr(own, "load"):
        not_applicable("the plugin's medium can't be damaged, it has no load and store")
    return _Whole(own)


def medium_of(opened: Any) -> Path | _Whole:
    """The file that holds the whole log, or the plugin's ``medium``; without one the clause can't be tried."""
    if (own := own_medium(opened)) is not None:
        return _whole(own)
    path = Path(str(opened.location))
    if not path.is_file():
        not_applicable("the log isn't a regular file that could be damaged")
    if path.stat().st_size > _SIZE_MAX:
        not_applicable("the log's file is too large to be copied, set a smaller capacity")
    return path


class Bits(Protocol):
    """All that a closed log has on its medium, in which single bits can be wrong for a while."""

    def damaged(self, payload: bytes, place: int) -> AbstractContextManager[None]:
        """A bit of the byte ``place`` of the payload is wrong, wherever it is; then all is again as it was."""


def bits_of(opened: Any, directory: Path) -> Bits:
    """What is called when the log is closed to damage it: files below ``directory``, or the plugin's ``medium``."""
    own = own_medium(opened)
    return _FileBits(directory) if own is None else _OwnBits(_whole(own))


class _OwnBits:
    def __init__(self, medium: _Whole) -> None:
        self._medium = medium

    @contextmanager
    def damaged(self, payload: bytes, place: int) -> Iterator[None]:
        whole = self._medium.read_bytes()
        self._medium.write_bytes(_with_wrong_bit(whole, find(whole, payload) + place))
        yield
        self._medium.write_bytes(whole)


class _FileBits:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _files(self) -> dict[Path, bytes]:
        paths = [path for path in self._directory.rglob("*") if path.is_file()]
        if sum(path.stat().st_size for path in paths) > _SIZE_MAX:
            not_applicable("the log's files are too large to be copied, set a smaller capacity")
        return {path: path.read_bytes() for path in paths}

    @contextmanager
    def damaged(self, payload: bytes, place: int) -> Iterator[None]:
        whole = self._files()
        holders = [path for path, data in whole.items() if payload in data]
        if not holders:
            not_applicable("the payload isn't on the medium as it was given")
        for path in holders:
            path.write_bytes(_with_wrong_bit(whole[path], whole[path].find(payload) + place))
        yield
        for path, data in self._files().items():
            if path not in whole:
                path.unlink()
            elif data != whole[path]:
                path.write_bytes(whole[path])


def _with_wrong_bit(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


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


def torn(before: bytes, after: bytes, rng: random.Random, *, first_is_lost: bool = False) -> bytes:
    """The medium if only some sectors of the last write reached it, or all but its first.

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
    for sector in run[1:] if first_is_lost else written:
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


def file_system(directory: Path) -> str:
    """The type of file system below ``directory``; empty where the system doesn't say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = str(directory.resolve())
    inside = [mount for mount in mounts if f"{place}/".startswith(mount[1].rstrip("/") + "/")]
    return max(inside, key=lambda mount: len(mount[1]))[2] if inside else ""


def local_folder(opened: Any) -> Path:
    """The directory that holds everything; without one the clause can't be tried."""
    url = urlsplit(str(opened.location))
    path = Path(url.path)
    if url.scheme not in ("", "file") or not path.is_absolute() or not path.is_dir():
        not_applicable(f"the data aren't in a directory of this machine: location={opened.location}")
    return path


def unsynced_bytes(folder: Path) -> int:
    """Bytes of the files below ``folder`` that are in the page cache and not on the disk.

    Not every system tells; a file that is left unsynced on purpose shows whether this one does.
    """
    return sum(unsynced_files(folder).values())


def unsynced_files(folder: Path) -> Mapping[Path, int]:
    """``unsynced_bytes`` of each file that has some."""
    probe = folder / f"penstock-conformance-{os.getpid()}.probe"
    try:
        probe.write_bytes(bytes(4096))
        if _unsynced(probe) == 0:
            not_applicable(
                f"{file_system(folder) or 'the file system'} doesn't say what it hasn't written yet"
            )
    finally:
        probe.unlink(missing_ok=True)
    found = {path: _unsynced(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {path: size for path, size in found.items() if size}


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def _unsynced(path: Path) -> int:
    if sys.platform != "linux":
        return 0
    pages = _Pages()
    try:
        file = path.open("rb")
    except FileNotFoundError:  # somebody tidies up
        return 0
    with file:
        failed = ctypes.CDLL(None).syscall(
            _CACHESTAT, file.fileno(), ctypes.byref(_Range(0, 0)), ctypes.byref(pages), 0
        )
    return 0 if failed else (pages.dirty + pages.writeback) * resource.getpagesize()


@contextmanager
def disk_with_room_for(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond ``size_bytes``: a write that would is refused, as by a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """This process can open nothing more: what is open stays so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def swap_files_with(directory: Path, one: bytes, other: bytes) -> None:
    """Each of the two files that hold the payloads and next to nothing else gets the other's bytes."""
    found: list[Path] = []
    for payload in (one, other):
        holders = [
            path for path in sorted(directory.rglob("*")) if path.is_file() and payload in path.read_bytes()
        ]
        if len(holders) != 1 or holders[0].stat().st_size > 2 * len(payload) + 1024:
            not_applicable("the entry isn't a file of its own")
        found += holders
    bodies = [path.read_bytes() for path in found]
    for path, body in zip(found, bodies[::-1], strict=True):
        path.write_bytes(body)
