"""Another owner who comes at a step of what is under way: on a thread, with an event loop of its own."""

from __future__ import annotations

__all__ = ("Meeting", "patience_for")

import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread


class Meeting:
    """``work`` begins at the call number ``step`` of :meth:`meet`, which returns when it is done.

    Or when ``patience_s`` are over: it may wait for a lock, which goes with what is under way.
    """

    def __init__(self, work: Callable[[], Awaitable[None]], step: int, patience_s: float) -> None:
        # daemon: one that never ends must not keep the suite from telling so
        self._thread = threading.Thread(target=anyio.run, args=(work,), daemon=True)
        self._left = step
        self._patience_s = patience_s

    def meet(self, *_: object) -> None:
        """A step, on whatever thread."""
        self._left -= 1
        if self._left == 0:
            self._thread.start()
            self._thread.join(self._patience_s)

    @property
    def was_met(self) -> bool:
        """Whether the last step was the one at which the other came."""
        return self._left == 0

    async def has_ended(self) -> bool:
        """Whether it came, once it is done."""
        self._left = 0
        if self._thread.ident is None:
            return False
        await anyio.to_thread.run_sync(self._thread.join, abandon_on_cancel=True)
        return True


async def patience_for(work: Callable[[], Awaitable[None]]) -> float:
    """Several times as long as ``work`` takes when nothing is under way."""
    began = time.monotonic()
    meeting = Meeting(work, 1, 0)
    meeting.meet()
    await meeting.has_ended()
    return 0.05 + 3 * (time.monotonic() - began)
