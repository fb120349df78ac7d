"""Makes a place ready for a log: looks at what is there, tries the device, and empties it if that is wished."""

from __future__ import annotations

__all__ = ("format_wal",)

import errno
import mmap
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from penstock.errors import ConfigError, CorruptError, NewerVersionError, NotFoundError, UnavailableError
from penstock.files import open_own
from penstock.spi.plugin import Services
from penstock.threads import run_in_thread
from penstock_wal_block._device import is_owned
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES
from penstock_wal_block._inspect import read_header
from penstock_wal_block._place import check_different, check_place, real_path, signature
from penstock_wal_block._reservation import medium_error
from penstock_wal_block._settings import Settings
from penstock_wal_block._stripe import Label

#: Every mark of a log, a file system or a volume is in these; so are the labels at the end of a device.
_HEAD_BYTES = 4 * 2**20
_TAIL_BYTES = 2**20
_SCAN_BYTES = 4 * 2**20
_TRIES = 20


async def format_wal(settings: Settings, services: Services, consent: str) -> dict[str, object]:
    """See ``WalSpec.format``."""
    paths = settings.paths_of(services.data_dir, services.node_id)
    return await run_in_thread(_format, paths, settings.capacity // len(paths), consent)


def _format(paths: Sequence[Path], capacity: int, consent: str) -> dict[str, object]:
    """Look at all, then empty all."""
    paths = [real_path(path) for path in paths]
    check_different(paths)
    sizes: list[int] = []
    held: list[str] = []
    words = f"erase {' '.join(map(str, paths))}"
    with ExitStack() as stack:
        fds: list[int] = []
        for path in paths:
            if not check_place(path):
                raise NotFoundError(
                    f"there is nothing to format, a file is made when the broker starts: path={path}"
                )
            fds.append(stack.enter_context(_opened(path)))
            if is_owned(fds[-1]):
                raise ConfigError(
                    f"a broker of this host has the wal open, so nothing was changed; stop it first: path={path}"
                )
            sizes.append(os.lseek(fds[-1], 0, os.SEEK_END))
            if stat.S_ISBLK(os.fstat(fds[-1]).st_mode) and sizes[-1] < capacity:
                raise ConfigError(
                    f"the device is smaller than wal.capacity, lower that: path={path} device_bytes={sizes[-1]} "
                    f"capacity={capacity}"
                )
            held.append(_what_is_there(fds[-1], path, sizes[-1]))
            if held[-1] and consent != words:
                raise ConfigError(
                    f"the place for the wal holds {held[-1]}, so nothing was changed; if that can go, say "
                    f"--force {words!r}: path={path}"
                )
        latencies_us = [_empty(fd, size) for fd, size in zip(fds, sizes, strict=True)]
    facts: dict[str, object] = {
        "path": ", ".join(map(str, paths)),
        "size_bytes": sum(sizes),
        "held": ", ".join(filter(None, held)) or "nothing",
        "block_bytes": BLOCK_BYTES,
    }
    if any(latencies_us):  # files aren't measured: they are cut off, and grow as they are used
        facts["write_us_p50"] = max(latencies_us)
    return facts


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_EXCL if stat.S_ISBLK(os.lstat(path).st_mode) else os.O_RDWR
    try:
        fd = open_own(path, flags, block_device=True)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ConfigError(
                f"the device is in use, mounted or as part of a volume, choose another: path={path}"
            ) from error
        raise UnavailableError(
            f"the place for the wal can't be opened: path={path} error={error.strerror}"
        ) from error
    try:
        yield fd
    except OSError as error:
        raise medium_error("the place for the wal can't be used", path, error) from error
    finally:
        os.close(fd)


def _what_is_there(fd: int, path: Path, size: int) -> str:
    """In words; empty if every byte is zero."""
    try:
        if Label.decode(os.pread(fd, HEADER_AREA_BYTES, 0), str(path)) is not None:
            return "a device of a striped wal"
        header = read_header(path)
    except NewerVersionError:
        return "a wal of a newer penstock"
    except (CorruptError, NotFoundError):
        pass
    else:
        return (
            f"a wal of cluster {header.cluster_id!r}, node {header.node_id}, epoch {header.epoch}"
            f"{'' if header.clean else ', which was not closed'}"
        )
    if name := signature(lambda offset, count: os.pread(fd, count, offset), size):
        return name
    buffer = bytearray(_SCAN_BYTES)
    zeros = bytes(_SCAN_BYTES)
    for offset in range(0, size, _SCAN_BYTES):
        count = os.preadv(fd, [buffer], offset)
        if buffer[:count] != zeros[:count]:
            at = offset + next(n for n in range(count) if buffer[n])
            return f"data (the byte at {at} isn't zero)"
    return ""


def _empty(fd: int, size: int) -> int:
    """Clear all marks, and try what a log does to the device: the median microseconds of a small durable write.

    Raises OSError.
    """
    zeros = bytes(_SCAN_BYTES)
    for start, end in ((0, min(size, _HEAD_BYTES)), (max(0, size - _TAIL_BYTES), size)):
        os.pwrite(fd, zeros[: end - start], start)
    os.fsync(fd)
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
        os.fsync(fd)
        return 0
    marks = mmap.mmap(-1, BLOCK_BYTES)
    back = mmap.mmap(-1, BLOCK_BYTES)
    times: list[int] = []
    for number in range(_TRIES):
        marks[:] = bytes([number + 1]) * BLOCK_BYTES
        begun = time.perf_counter_ns()
        os.pwritev(fd, [marks], 0)
        os.fdatasync(fd)
        times.append(time.perf_counter_ns() - begun)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(fd, [back], 0)
        if back[:] != marks[:]:
            raise OSError(errno.EIO, "what was written doesn't come back")
    os.pwrite(fd, zeros[:BLOCK_BYTES], 0)
    os.fsync(fd)
    return sorted(times)[_TRIES // 2] // 1000
