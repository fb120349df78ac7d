"""Who wants to know when a partition's high watermark moves: told once each, a crowd some at a time."""

from __future__ import annotations

__all__ = ("TOLD_AT_ONCE", "Listener", "Listeners")

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Final, TypeAlias

Listener: TypeAlias = Callable[[], None]

#: Of a crowd so many are told in one iteration of the event loop: each has a task that goes on then.
TOLD_AT_ONCE: Final = 16


class Listeners:
    """Callables, each of which is called once after it was added, when ``tell`` is called next.

    Who was told and hasn't been added again knows already that there is something to look at: telling it once more
    would cost the loop time and say nothing. Callbacks must not raise; they may add and remove.
    """

    __slots__ = ("_due", "_told", "_waiting")

    def __init__(self) -> None:
        #: In the order in which they came; as keys, since thousands may come and go.
        self._waiting: dict[Listener, None] = {}
        #: Those that are to be called in the next iterations of the loop, and those that were.
        self._due: dict[Listener, None] = {}
        self._told: dict[Listener, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._due) + len(self._told)

    def add(self, listener: Listener) -> None:
        """Call ``listener`` with the next ``tell``; also if it was told before, or is about to be."""
        self._told.pop(listener, None)
        self._due.pop(listener, None)
        self._waiting[listener] = None

    def remove(self, listener: Listener) -> None:
        """Forget it; an unknown one is ignored."""
        self._waiting.pop(listener, None)
        self._told.pop(listener, None)
        self._due.pop(listener, None)

    def tell(self) -> None:
        """Call those that wait: a few of them now, of a crowd some in each of the next iterations of the loop."""
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = {}
        if not self._due and len(waiting) <= TOLD_AT_ONCE:
            told = self._told
            told.update(waiting)
            for listener in waiting:
                if listener in told:  # else another one has just removed it
                    listener()
            return
        is_scheduled = bool(self._due)
        self._due.update(waiting)
        if not is_scheduled:
            self._tell_some()

    def _tell_some(self) -> None:
        due = self._due
        for listener in tuple(islice(due, TOLD_AT_ONCE)):
            if listener in due:
                del due[listener]
                self._told[listener] = None
                listener()
        if due:
            asyncio.get_running_loop().call_soon(self._tell_some)
