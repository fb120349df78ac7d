"""A function that is called after a while: for waits that end by being woken, where a scope would cancel them.

What is cancelled goes on at once and pays for it: an exception comes through all its frames.
"""

from __future__ import annotations

__all__ = ("Timer", "call_after")

import asyncio
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """One call that is to come."""

    def cancel(self) -> None:
        """Call nothing; harmless if that is done."""


def call_after(delay_s: float, function: Callable[[], None]) -> Timer:
    """Call ``function``, which doesn't raise, on the event loop after so long, unless the timer is cancelled.

    Loops count in milliseconds: it may be one less.
    """
    return asyncio.get_running_loop().call_later(delay_s, function)
