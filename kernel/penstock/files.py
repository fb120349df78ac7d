"""Files and directories of our own: nothing foreign is opened for writing, and nobody else may read them.

Records are in them, so their modes are what is configured, whatever the umask says. What others made keeps its mode.
"""

from __future__ import annotations

__all__ = (
    "ACCESSES",
    "Access",
    "create_file",
    "excess_mode",
    "make_directories",
    "open_own",
    "sync_directory",
)

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Access:
    """Modes of what is made: of directories, and of the files in them."""

    directory_mode: int = 0o700
    file_mode: int = 0o600


#: By the names that the configuration gives them.
ACCESSES: Final[Mapping[str, Access]] = {
    "owner": Access(),
    "group": Access(0o750, 0o640),
    "everybody": Access(0o755, 0o644),
}


def make_directories(path: str | os.PathLike[str], access: Access) -> list[Path]:
    """Make the directory and those above it that are missing; which these were, from the top. Raises OSError.

    Their names are durable once their parents are synced.
    """
    missing: list[Path] = []
    directory = Path(path)
    while not _is_directory(directory):
        missing.append(directory)
        directory = directory.parent
    made: list[Path] = []
    for directory in reversed(missing):
        try:
            directory.mkdir(access.directory_mode)
        except FileExistsError:
            if not directory.is_dir():
                raise
            continue  # somebody else made it at the same time
        inherited = directory.stat().st_mode & stat.S_ISGID  # the group of what is in it: as the parent says
        directory.chmod(access.directory_mode | inherited)
        made.append(directory)
    return made


def _is_directory(path: Path) -> bool:
    """Whether it is there, by one look: between two, another thread may make it. Raises NotADirectoryError."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    return True


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make durable what was put into a directory, or taken out of it. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_file(path: str | os.PathLike[str], flags: int, access: Access) -> int:
    """Create a file and open it; ``flags`` as of os.open(). Raises FileExistsError if anything is there, OSError."""
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, access.file_mode)
    try:
        os.fchmod(fd, access.file_mode)  # the umask took from it
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_own(path: str | os.PathLike[str], flags: int, *, block_device: bool = False) -> int:
    """Open what is there: a regular file (or a block device, if ``block_device``), never through a symbolic link.

    Waits for nobody, as opening a pipe would. Raises FileNotFoundError; OSError with ELOOP for a link, with EINVAL
    for what is something else.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not (block_device and stat.S_ISBLK(mode)):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return fd


def excess_mode(path: str | os.PathLike[str] | int, access: Access) -> str:
    """The mode of a file or directory, if others may do more with it than they are to; else empty. Raises OSError."""
    mode = os.stat(path).st_mode
    wanted = access.directory_mode if stat.S_ISDIR(mode) else access.file_mode
    return f"{stat.S_IMODE(mode):04o}" if stat.S_IMODE(mode) & 0o077 & ~wanted else ""
