"""The process around a broker: its lock on the data directory, and the interpreter's switch interval."""

from __future__ import annotations

__all__ = ("capacity_of", "now_ms", "own_directory", "switch_interval")

import errno
import fcntl
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.errors import ConfigError, UnavailableError
from penstock.files import Access, create_file, make_directories, open_own, sync_directory

logger = logging.getLogger("penstock.broker")

#: Threads wait for the interpreter lock at most about this long when the event loop is busy; with Python's
#: default of 5 ms a saturated loop starves the WAL's writer thread for seconds (measured).
SWITCH_INTERVAL_S = 1e-4

#: What a broker writes into its lock, the number of its process, which isn't synced: a power failure leaves zeros.
_LOCK_CONTENT = re.compile(rb"[\d\0]{0,19}\n?")
_LOCK_BYTES_MAX = 20
_NOT_A_LOCK = {errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO}
#: What may go away by itself; anything else is a mistake in the path or its permissions.
_DISK_ERRORS = {
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
}


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def capacity_of(location: str) -> tuple[int, int] | None:
    """(total, usable) bytes of a local place (``file:///...``), None of any other. Asks the disk: blocks."""
    path = location.removeprefix("file://")
    if path == location:
        return None
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        logger.debug("the size of a disk can't be told: location=%s error=%s", location, error.strerror)
        return None
    return usage.total, usage.free


class DirectoryInUseError(ConfigError):
    """Another process has the data directory."""


@contextmanager
def own_directory(path: Path, access: Access, *, alone: bool = False) -> Iterator[None]:
    """Hold the data directory for this process; the system lets go of it when the process ends, however it ends.

    A second broker on the same files would fence the first one, which is right between hosts and a mishap on one.
    On a file system without locks fencing alone keeps two apart. Whoever would do that to a broker that runs asks to
    be ``alone`` for sure.

    Raises DirectoryInUseError when another process has it, or ``alone`` when one may have it, or one elsewhere;
    ConfigError when it can't be used, UnavailableError when the disk fails.
    """
    lock = path / "penstock.lock"
    if alone and not os.path.lexists(lock):
        raise DirectoryInUseError(
            f"no broker has run on this data directory, so it may run on another: path={path}"
        )
    try:
        for made in make_directories(path, access):
            sync_directory(made.parent)  # else a power failure takes it, and what is in it
        fd = _open_lock(lock, access)
    except OSError as error:
        kind = UnavailableError if error.errno in _DISK_ERRORS else ConfigError
        raise kind(
            f"the data directory can't be used, check the path and the disk: path={path} error={error.strerror}"
        ) from error
    with open(fd, "r+b", buffering=0) as file:  # unbuffered: closing has nothing to write that could fail
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DirectoryInUseError(
                f"another broker runs on this data directory, stop it or set broker.data_dir: path={path} "
                f"pid={(file.read(20) or b'unknown').decode('ascii', 'replace')}"
            ) from None
        except OSError as error:
            if alone:
                raise DirectoryInUseError(
                    f"the data directory can't be locked, so another broker may run on it: path={path} "
                    f"error={error.strerror}"
                ) from None
            logger.debug("the data directory can't be locked: path=%s error=%s", path, error.strerror)
        if not _LOCK_CONTENT.fullmatch(file.read(_LOCK_BYTES_MAX + 1)):
            raise ConfigError(
                f"a file of the lock's name is in the data directory and isn't a lock, it was left as it is; move it "
                f"away: path={lock}"
            )
        with suppress(OSError):  # the number is for people; a full disk must not keep a broker from starting
            file.truncate(0)
            file.seek(0)
            file.write(b"%d" % os.getpid())
        yield


def _open_lock(path: Path, access: Access) -> int:
    """Raises ConfigError for what can't be a lock that a broker made, OSError."""
    while True:
        try:
            return open_own(path, os.O_RDWR)
        except FileNotFoundError:
            with suppress(FileExistsError):  # made at the same time by another broker
                return create_file(path, os.O_RDWR, access)
        except OSError as error:
            if error.errno not in _NOT_A_LOCK:
                raise
            raise ConfigError(
                "the lock in the data directory is a link or no regular file, it was left as it is; move it away: "
                f"path={path}"
            ) from error


@contextmanager
def switch_interval() -> Iterator[None]:
    """Let threads have the interpreter sooner, see SWITCH_INTERVAL_S; as before on leaving."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
