"""A process that takes as much of the machine as another one, and has nothing to do with any broker.

What it does to a broker beside it is the machine's part of what the other one does: processors and a disk that are
shared. ``python -m penstock_tools.bench.neutral DIRECTORY CPU_PER_S BYTES_PER_S PERIOD_S`` runs until its input ends.
"""

from __future__ import annotations

__all__ = ("NeutralProcess", "main")

import hashlib
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

#: How far others are preferred, as the process that makes tables prefers its broker, and itself to the rest of the
#: host beside a broker of a real-time priority.
_NICE: Final = 5
_NICE_BESIDE_REAL_TIME: Final = -10
_PIECE_BYTES: Final = 2**20


class NeutralProcess:
    """A context manager: the process runs within."""

    def __init__(self, directory: Path, *, cpu_per_s: float, bytes_per_s: float, period_s: float) -> None:
        """Of each ``period_s`` it works and writes in one go, and syncs what it wrote."""
        figures = map(str, (cpu_per_s, bytes_per_s, period_s))
        self._command = [sys.executable, "-m", "penstock_tools.bench.neutral", str(directory), *figures]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def _give_way() -> None:
    """Let the broker have the processors that it wants."""
    nice = _NICE
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        nice = _NICE_BESIDE_REAL_TIME
    with suppress(OSError):  # forbidden, or there are no sessions that have priorities of their own
        os.nice(nice)
        Path("/proc/self/autogroup").write_text(str(nice))


def _work(cpu_s: float, size: int, path: Path) -> None:
    """Spend so much time of a processor, and write so much, both piece by piece."""
    piece = bytes(_PIECE_BYTES)
    until = time.thread_time() + cpu_s
    with path.open("wb", buffering=0) as file:
        while size > 0 or time.thread_time() < until:
            if size > 0:
                size -= file.write(piece[:size])
            if time.thread_time() < until:
                hashlib.blake2b(piece)
        os.fsync(file.fileno())


def main() -> None:
    """See the module."""
    path = Path(sys.argv[1], "neutral")
    cpu_per_s, bytes_per_s, period_s = map(float, sys.argv[2:])
    _give_way()
    due_at = time.monotonic()
    while True:
        due_at += period_s
        _work(cpu_per_s * period_s, int(bytes_per_s * period_s), path)
        if select.select([sys.stdin], [], [], max(0.0, due_at - time.monotonic()))[0]:
            path.unlink()
            return


if __name__ == "__main__":
    main()
