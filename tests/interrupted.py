"""Has a run that is interrupted end soon, whatever its tests wait for.

``KeyboardInterrupt`` is raised in the middle of a test, and then everything that opened something closes it: clients
flush to a broker that is full or gone, brokers drain into a store that doesn't answer, threads are joined. Each of it
has a deadline, but those are for busy machines, and many. So what hasn't ended in a while is told with the stacks of
all threads, and the process ends; the keeper removes the rest.

A task group makes a failed test of it, since it raises a group of errors; the run ends all the same.
"""

from __future__ import annotations

__all__ = ("Interruption",)

import _thread
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from types import FrameType
from typing import NoReturn

import pytest

#: Seconds; pytest-xdist gives its workers ten.
_ENDING_S = 15.0


class Interruption:
    """Handles SIGINT, also where a shell had it ignored, as it does for jobs in the background."""

    def __init__(self) -> None:
        self._stderr = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)  # tests' own is captured
        self._came = False
        self._before = signal.signal(signal.SIGINT, self._interrupt)

    def close(self) -> None:
        """Give SIGINT back; but after one, what the process still does is part of its end."""
        if not self._came:
            signal.signal(signal.SIGINT, self._before)
            os.close(self._stderr)

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        if not self._came:
            self._came = True
            _thread.start_new_thread(self._end, ())  # threading's own locks may be held where this runs
        raise KeyboardInterrupt

    def _end(self) -> None:
        time.sleep(_ENDING_S)
        os.write(self._stderr, f"\ninterrupted {_ENDING_S:.0f} s ago, and still here:\n".encode())
        faulthandler.dump_traceback(self._stderr)
        os._exit(pytest.ExitCode.INTERRUPTED)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Have it end as interrupted, also where pytest stumbles over a fixture that is half set up."""
        try:
            yield
        except Exception:
            if not self._came:
                raise
            traceback.print_exc()
        if self._came:
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def pytest_runtest_logfinish(self) -> None:
        """Has no test begin after one that was interrupted and failed of it."""
        if self._came:
            raise KeyboardInterrupt
