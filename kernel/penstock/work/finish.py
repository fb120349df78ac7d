"""Finishing in spite of cancellation: work that was begun takes effect whole, whether or not anybody waits for it."""

from __future__ import annotations

__all__ = ("Finisher",)

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from penstock.errors import ClosedError, PenstockError, UnavailableError, again, kept

T = TypeVar("T")


class Finisher:
    """Does work in ``tasks``, which belong to a room: its end, and not that of a request, ends the work.

    At most ``waiting_max`` pieces of work are under way: each holds a task, and those who asked may be gone.
    """

    def __init__(self, tasks: TaskGroup, *, waiting_max: int, full: str, stopped: str) -> None:
        """``full`` and ``stopped`` are the sentences of the errors when too much is under way, and at the end."""
        self._tasks = tasks
        self._waiting_max = waiting_max
        self._full = full
        self._stopped = stopped
        #: Pieces of work that are under way.
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether so much is under way that nothing more is begun."""
        return self.waiting >= self._waiting_max

    async def finish(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of ``work``, or its error; a cancelled call leaves it running.

        Raises UnavailableError if too much is under way (nothing was begun), ClosedError if the room ended before
        the work did. An error that is no PenstockError, with nobody left to be told, ends the room.
        """
        if self.is_full:
            raise UnavailableError(f"{self._full}: waiting={self.waiting}")
        done = anyio.Event()
        results: list[T] = []
        errors: list[Exception] = []
        waiting = True

        async def run() -> None:
            try:
                results.append(await work())
            except Exception as error:
                if not waiting and not isinstance(error, PenstockError):
                    raise
                errors.append(kept(error))
            finally:
                self.waiting -= 1
                done.set()

        self.waiting += 1
        self._tasks.start_soon(run)
        try:
            await done.wait()
        finally:
            waiting = False
        if errors:
            raise again(errors[0])
        if not results:
            raise ClosedError(self._stopped)
        return results[0]
