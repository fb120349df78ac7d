"""Waiting for room: callers that were refused sleep until something has moved, and try again."""

from __future__ import annotations

__all__ = ("Room",)

import anyio


class Room:
    """Wakes everybody who waits, each time that there may be room. It promises none: whoever wakes up tries again."""

    __slots__ = ("_event", "waiters")

    def __init__(self) -> None:
        self._event = anyio.Event()
        #: How many wait, or were woken and haven't run yet.
        self.waiters = 0

    async def wait(self) -> None:
        """Return after the next :meth:`wake`. Cancellable."""
        if self._event.is_set():
            self._event = anyio.Event()
        self.waiters += 1
        try:
            await self._event.wait()
        finally:
            self.waiters -= 1

    def wake(self) -> None:
        """There may be room now."""
        self._event.set()
