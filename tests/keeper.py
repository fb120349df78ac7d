"""Ends and removes what a run of the tests leaves behind, however the run ends.

A run has one directory, the root: all its temporary files are below it, and all its processes carry its path in
their environment. Files that are wanted in memory are in a directory of the same name there. The run starts a keeper,
which is this module as a program, in a session of its own, and holds a pipe to it. The pipe closes when the run ends,
is interrupted or is killed; then the keeper kills every process that carries the mark, gives back mounts and loop
devices below the root, and removes both directories. A run also removes roots whose keeper is gone.
"""

from __future__ import annotations

__all__ = (
    "MARK",
    "Keeper",
    "environment_of",
    "has_room_in_memory",
    "in_memory",
    "marked",
    "remove_abandoned",
    "sweep",
)

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: The environment variable that holds the root.
MARK = "TESTS_ROOT_OF_PENSTOCK"
_PREFIX = "penstock-tests-"
_MEMORY = Path("/dev/shm")
#: A run has half of the first at most at once, and processes need memory, too.
_ROOM_BYTES = 4 * 2**30
_AVAILABLE_BYTES = 8 * 2**30
#: Killed processes go at once, but for those in the middle of a write to a slow disk.
_ROUNDS_MAX = 600
_ROUND_S = 0.05
#: How long a process may take from its beginning until its program runs, and which field of ``stat`` tells of it.
_START_S = 2.0
_STARTED = 19


class Keeper:
    """The root of a run, and the process that removes it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _locked(self.root)
        assert self._lock is not None, self.root
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.root)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # what interrupts the run must not reach it
            pass_fds=(self._lock.fileno(),),
            env=environment,
            cwd="/",
        )

    def close(self) -> None:
        """Have it sweep, and return when it has."""
        self._process.communicate()
        if self._lock is not None:
            self._lock.close()


def in_memory() -> Path | None:
    """The directory of this run in memory, where a sync takes no time; none where there is no such place."""
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)):
        return None
    place = _MEMORY / Path(os.environ[MARK]).name
    place.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    return place


def has_room_in_memory() -> bool:
    """Whether all files of a run may be in memory: there a file is made in a twentieth of the processor time."""
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)):
        return False
    found = os.statvfs(_MEMORY)
    if found.f_flag & os.ST_NOEXEC or found.f_bavail * found.f_frsize < _ROOM_BYTES:
        return False
    figures = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(figures["MemAvailable"].split()[0]) * 1024 >= _AVAILABLE_BYTES


def marked(root: Path) -> dict[int, str]:
    """The processes that carry the mark of the run: by id, their command lines."""
    mark = f"{MARK}={root}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if mark in environment_of(entry).split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = command.strip()
    return found


def environment_of(process: Path) -> bytes:
    """What it was started with, also if it is only being started: then it can't be read for some milliseconds."""
    while not (found := (process / "environ").read_bytes()):
        (process / "exe").readlink()  # what has no program is the system's own, or has ended
        ticks = int((process / "stat").read_text().rpartition(")")[2].split()[_STARTED])
        age_s = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        if age_s > _START_S:
            break  # it was started with nothing
        time.sleep(0.001)
    return found


def sweep(root: Path) -> None:
    """Kill the run's processes, and remove its files with what is mounted or attached below them."""
    for _ in range(_ROUNDS_MAX):
        left = marked(root)
        if not left:
            break
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_ROUND_S)
    for place in (_MEMORY / root.name, root):
        for point in _mounts(place):
            subprocess.run(["umount", "--lazy", point], check=False)
        for device in _loop_devices(place):
            subprocess.run(["losetup", "--detach", device], check=False)
        for directory, folders, _ in os.walk(place):  # tests take permissions away
            for folder in folders:
                path = Path(directory, folder)
                if not path.is_symlink():
                    path.chmod(stat.S_IRWXU)
        shutil.rmtree(place, ignore_errors=True)


def remove_abandoned(older_than_s: float = 60) -> None:
    """Remove the roots of earlier runs that lost their keepers too; a new root may not have its lock yet."""
    for root in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else removes it, or owns it
            found = root.lstat()
            if (
                stat.S_ISDIR(found.st_mode)
                and found.st_uid == os.getuid()
                and found.st_mtime < time.time() - older_than_s
            ):
                lock = _locked(root)
                if lock is not None:
                    with lock:
                        sweep(root)


def _locked(root: Path) -> IO[bytes] | None:
    """The lock of a root, held; none when its run or its keeper is there."""
    file = (root / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _mounts(root: Path) -> Iterator[str]:
    """What is mounted below the root, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    yield from sorted((point for point in points if Path(point).is_relative_to(root)), reverse=True)


def _loop_devices(root: Path) -> Iterator[str]:
    """Loop devices over files below the root, also over files that are gone."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{root}/"):
                yield f"/dev/{backing.parent.parent.name}"


def _keep(root: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # until the run is over
    sweep(root)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
