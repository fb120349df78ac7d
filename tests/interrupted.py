"""Has a run that is interrupted end soon, whatever its tests wait for.

``KeyboardInterrupt`` is raised in the middle of a test, and then everything that opened something closes it: clients
flush to a broker that is full or gone, brokers drain into a store that doesn't answer, threads are joined. Each of it
has a deadline, but those are for busy machines, and many. So what hasn't ended in a while is told with the stacks of
all threads, and the process ends; the keeper removes the rest.
"""

from __future__ import annotations

__all__ = ("end_soon_when_interrupted",)

import _thread
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import pytest

#: Seconds; pytest-xdist gives its workers ten.
_ENDING_S = 15.0


def end_soon_when_interrupted() -> Callable[[], None]:
    """Handle SIGINT, also where a shell had it ignored, as it does for jobs in the background; how to undo it."""
    stderr = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)  # tests' own is captured
    going_on = True

    def end() -> None:
        time.sleep(_ENDING_S)
        if not going_on:
            return
        os.write(stderr, f"\ninterrupted {_ENDING_S:.0f} s ago, and still here:\n".encode())
        faulthandler.dump_traceback(stderr)
        os._exit(pytest.ExitCode.INTERRUPTED)

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        _thread.start_new_thread(end, ())  # threading's own locks may be held where this runs
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)

    def undo() -> None:
        nonlocal going_on
        going_on = False
        signal.signal(signal.SIGINT, before)
        os.close(stderr)

    return undo
