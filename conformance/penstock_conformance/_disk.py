"""A disk between a plugin and its files that fails when it is told to, and knows what a power cut would leave.

Plugins write with the calls of :mod:`os`. While a :class:`FaultyDisk` is entered, these calls pass through it, from
any thread. What is written otherwise (file objects of Python, memory maps, libraries of C) isn't seen: then ``seen``
stays empty, and a clause can't be tried.
"""

from __future__ import annotations

__all__ = ("BROKEN", "FULL", "FaultyDisk")

import errno
import fcntl
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

#: Errors of a disk that doesn't work, and of one that is full.
BROKEN, FULL = errno.EIO, errno.ENOSPC

_SECTOR_BYTES = 512
_BLOCK_BYTES = 4096
_DSYNC = getattr(os, "O_DSYNC", 0)


class FaultyDisk:
    """Sees all writes, reads and syncs of files below ``root``, except below ``besides``."""

    def __init__(self, root: Path, besides: Path) -> None:
        self._root = f"{root.resolve()}/"
        self._besides = f"{besides.resolve()}/"
        self._lock = threading.RLock()
        self._faults: dict[str, list[int]] = {"write": [], "read": [], "sync": []}
        self._short = 0
        #: By path: what a power cut leaves for sure, and what was written since and may be on the medium, or not.
        self._durable: dict[str, bytearray] = {}
        self._unsynced: dict[str, list[tuple[int, bytes]]] = {}
        #: Called before each sync has its effect, in whatever thread.
        self.on_sync: Callable[[], None] = lambda: None
        #: Called after each write, read and sync, in whatever thread; others go on meanwhile.
        self.after: Callable[[], None] = lambda: None
        #: Calls that were seen, and that failed.
        self.seen: Counter[str] = Counter()
        self.failed = 0

    # -- what a clause asks for ----------------------------------------------------------------------------

    def fail(self, call: str, number: int, *, times: int = 1, skip: int = 0) -> None:
        """The calls (``write``, ``read``, ``sync``) behind the next ``skip`` fail with the error ``number``.

        After a sync that failed, what it was to make durable isn't, whatever a later sync says.
        """
        with self._lock:
            self._faults[call] += [0] * skip + [number] * times

    def shorten(self, *, times: int = 1) -> None:
        """The next writes write a part only, and say so."""
        with self._lock:
            self._short += times

    def heal(self) -> None:
        """From now on all goes well."""
        with self._lock:
            self._short = 0
            for faults in self._faults.values():
                faults.clear()

    def power_cut(self, rng: random.Random, likely: float | None = None) -> dict[str, bytes]:
        """Files as a power cut would leave them now: what wasn't synced is there, or not, sector by sector.

        ``likely``: that a sector is there; anything if None.
        """
        with self._lock:
            images = {path: bytearray(image) for path, image in self._durable.items()}
            unsynced = {path: list(writes) for path, writes in self._unsynced.items()}
        for path, writes in unsynced.items():
            share = rng.choice((0.0, 0.2, 0.9, 1.0)) if likely is None else likely
            for offset, data in rng.sample(writes, len(writes)) if rng.random() < 0.3 else writes:
                for start in range(0, len(data), _SECTOR_BYTES):
                    if rng.random() < share:
                        _put(images[path], offset + start, data[start : start + _SECTOR_BYTES])
        return {path: bytes(image) for path, image in images.items()}

    @property
    def is_synced(self) -> bool:
        """A power cut would take nothing now."""
        with self._lock:
            return not any(self._unsynced.values())

    def synced(self) -> dict[str, bytes]:
        """Files as the worst power cut would leave them now: nothing of what wasn't synced is there."""
        with self._lock:
            return {path: bytes(image) for path, image in self._durable.items()}

    def restore(self, images: dict[str, bytes]) -> None:
        """Give the files, which are closed, the bytes of :meth:`power_cut`."""
        for path, image in images.items():
            self._durable[path] = bytearray(image)
            self._unsynced[path] = []
            if os.path.exists(path):
                with open(path, "r+b") as file:
                    file.write(image)
                    file.truncate()

    # -- between the plugin and the system -----------------------------------------------------------------

    def __enter__(self) -> FaultyDisk:
        for folder, _, names in os.walk(self._root):
            for name in names:
                self._file(os.path.join(folder, name))
        self._system: dict[str, Callable[..., Any]] = {}
        for name in (
            "pwrite",
            "pwritev",
            "write",
            "writev",
            "fsync",
            "fdatasync",
            "pread",
            "preadv",
            "ftruncate",
            "rename",
            "replace",
        ):
            if hasattr(os, name):
                self._system[name] = getattr(os, name)
                setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, function in self._system.items():
            setattr(os, name, function)

    def _path(self, fd: int) -> str:
        """The file below the root that is open as ``fd``, or nothing."""
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return ""
        return path if path.startswith(self._root) and not path.startswith(self._besides) else ""

    def _file(self, path: str) -> bool:
        if not path or path.startswith(self._besides) or not os.path.isfile(path):
            return False
        if path not in self._durable:
            with open(path, "rb") as file:
                self._durable[path] = bytearray(file.read())
            self._unsynced[path] = []
        return True

    def _meet(self, call: str) -> None:
        self.seen[call] += 1
        if self._faults[call]:
            number = self._faults[call].pop(0)
            if number:
                self.failed += 1
                raise OSError(number, os.strerror(number))

    def _through(self, fd: int, buffers: Sequence[Any], offset: int | None, flags: int) -> int:
        """Write, and remember what a power cut may take back."""
        with self._lock:
            path = self._path(fd)
            if not self._file(path):
                return self._plain(fd, buffers, offset, flags)
            self._meet("write")
            if self._short and (half := _half(buffers)):
                self._short -= 1
                self.failed += 1
                buffers = half
            if offset is None:
                offset = os.lseek(fd, 0, os.SEEK_CUR)
                if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
                    offset = os.fstat(fd).st_size
                done = self._plain(fd, buffers, None, 0)
            else:
                done = self._plain(fd, buffers, offset, flags)
            data = b"".join(bytes(buffer) for buffer in buffers)[:done]
            if flags & getattr(os, "RWF_DSYNC", 0) or (_DSYNC and fcntl.fcntl(fd, fcntl.F_GETFL) & _DSYNC):
                self._unsynced[path].append((offset, data))
                self.on_sync()
                self._unsynced[path].pop()
                self._meet("sync")
                _put(self._durable[path], offset, data)
                self._unsynced[path] = _besides(self._unsynced[path], offset, offset + len(data))
            else:
                self._unsynced[path].append((offset, data))
            return done

    def _plain(self, fd: int, buffers: Sequence[Any], offset: int | None, flags: int) -> int:
        if offset is None:
            return int(self._system["writev"](fd, buffers))
        if flags:
            return int(self._system["pwritev"](fd, buffers, offset, flags))
        return int(self._system["pwritev"](fd, buffers, offset))

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._pwritev(fd, [data], offset)

    def _pwritev(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        done = self._through(fd, buffers, offset, flags)
        self.after()
        return done

    def _write(self, fd: int, data: Any) -> int:
        if not self._path(fd):
            return int(self._system["write"](fd, data))
        return self._writev(fd, [data])

    def _writev(self, fd: int, buffers: Sequence[Any]) -> int:
        done = self._through(fd, buffers, None, 0)
        self.after()
        return done

    def _synced(self, name: str, fd: Any) -> None:
        with self._lock:
            path = self._path(fd if isinstance(fd, int) else fd.fileno())
            if not self._file(path):
                self._system[name](fd)
                return
            self.on_sync()
            try:
                self._meet("sync")
            except OSError:
                # what couldn't be written back is dropped, and the next sync knows nothing of it
                self._unsynced[path].clear()
                raise
            # nothing is asked of the disk: what a power cut leaves is decided here
            for offset, data in self._unsynced[path]:
                _put(self._durable[path], offset, data)
            self._unsynced[path].clear()

    def _fsync(self, fd: Any) -> None:
        self._synced("fsync", fd)
        self.after()

    def _fdatasync(self, fd: Any) -> None:
        self._synced("fdatasync", fd)
        self.after()

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        self._read(fd)
        data = bytes(self._system["pread"](fd, size, offset))
        self.after()
        return data

    def _preadv(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        self._read(fd)
        size = int(self._system["preadv"](fd, buffers, offset, flags))
        self.after()
        return size

    def _read(self, fd: int) -> None:
        if self._path(fd):
            with self._lock:
                self._meet("read")

    def _ftruncate(self, fd: int, size: int) -> None:
        self._system["ftruncate"](fd, size)
        with self._lock:
            path = self._path(fd)
            if self._file(path):
                image = self._durable[path]
                del image[size:]
                image.extend(bytes(size - len(image)))

    def _rename(self, source: Any, target: Any, **places: Any) -> None:
        self._renamed("rename", source, target, places)

    def _replace(self, source: Any, target: Any, **places: Any) -> None:
        self._renamed("replace", source, target, places)

    def _renamed(self, name: str, source: Any, target: Any, places: dict[str, Any]) -> None:
        """A file takes its bytes with it, synced or not. That the directory has to be synced, too, isn't seen."""
        with self._lock:
            self._system[name](source, target, **places)
            before, after = (os.path.realpath(os.fsdecode(path)) for path in (source, target))
            if places or before not in self._durable:
                return
            self._durable[after] = self._durable.pop(before)
            self._unsynced[after] = self._unsynced.pop(before)


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def _besides(writes: list[tuple[int, bytes]], start: int, end: int) -> list[tuple[int, bytes]]:
    """What ``writes`` wrote outside of [start, end)."""
    left = []
    for offset, data in writes:
        if offset < start:
            left.append((offset, data[: start - offset]))
        if offset + len(data) > end:
            skip = max(0, end - offset)
            left.append((offset + skip, data[skip:]))
    return left


def _half(buffers: Sequence[Any]) -> list[memoryview]:
    """About the first half, in whole blocks if there are several; nothing if there is one, which can't be cut."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    left = sum(map(len, views)) // 2
    left = left // _BLOCK_BYTES * _BLOCK_BYTES if left >= _BLOCK_BYTES or left % _SECTOR_BYTES == 0 else left
    half = []
    for view in views:
        if left > 0:
            half.append(view[:left])
            left -= len(half[-1])
    return half
