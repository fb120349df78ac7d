"""Who gets the processors first, where clients that would be on other machines share them with a broker."""

from __future__ import annotations

__all__ = ("REALTIME", "give_way", "take_realtime")

import contextlib
import os
from pathlib import Path
from typing import Final

from penstock.errors import ConfigError

#: The priority of what is measured; one below is that of who gives way.
REALTIME: Final = 2
_LOWEST: Final = 19


def take_realtime() -> None:
    """Be at real-time priority, with all processes that are started from now on. Raises ConfigError if forbidden."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REALTIME))
    except (AttributeError, PermissionError) as error:
        raise ConfigError("a real-time priority isn't allowed here, root has it") from error


def give_way() -> None:
    """Have the lowest priority, as if on another machine: the broker isn't to wait for the processor.

    Where the system groups processes by session (sched_autogroup), only a group's priority counts among groups.
    Of processes at real-time priority it is one below theirs, ahead of whatever else runs here.
    """
    with contextlib.suppress(AttributeError):  # a system without such priorities
        policy = os.sched_getscheduler(0)
        if policy in (os.SCHED_FIFO, os.SCHED_RR):
            priority = max(1, os.sched_getparam(0).sched_priority - 1)
            os.sched_setscheduler(0, policy, os.sched_param(priority))
            return
    os.nice(_LOWEST)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_LOWEST))
