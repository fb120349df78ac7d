"""Another owner who comes at a step of what is under way: on a thread, with an event loop of its own."""

from __future__ import annotations

__all__ = ("Guest", "Meeting", "patience_for")

import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

from penstock_conformance._patience import has_come

T = TypeVar("T")


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
            has_come(self._has_ended_in, self._patience_s)

    def _has_ended_in(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

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


class Guest(Generic[T]):
    """Another owner who comes again and again: what it needs for that is opened once."""

    def __init__(self, work: Callable[[T, int], Awaitable[None]]) -> None:
        self._work = work
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._is_away = False
        self._patience_s = 0.0

    @asynccontextmanager
    async def invited(self, opened: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[None]:
        """Open it, and have it come for the first time, as number 1, with nobody in the way."""
        # daemon: one that never ends must not keep the suite from telling so
        threading.Thread(target=anyio.run, args=(self._live, opened), daemon=True).start()
        try:
            await self.has_left()
            began = time.monotonic()
            self._begin(1)
            await self.has_left()
            self._patience_s = 0.05 + 3 * (time.monotonic() - began)
            yield
        finally:
            self._asked.put(None)
        self._is_away = False
        await self.has_left()

    async def _live(self, opened: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        try:
            async with opened() as found:
                self._answers.put(None)
                while (number := await anyio.to_thread.run_sync(self._asked.get)) is not None:
                    await self._work(found, number)
                    self._answers.put(None)
        except BaseException as error:
            self._answers.put(error)
            raise
        self._answers.put(None)

    def _begin(self, number: int) -> None:
        self._is_away = False
        self._asked.put(number)

    def come(self, number: int) -> None:
        """Return when it has done its work, or waits for a lock that goes with what is under way; on any thread."""
        self._begin(number)
        self._is_away = has_come(self._heard, self._patience_s)

    def _heard(self, timeout_s: float | None) -> bool:
        try:
            error = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return False
        if error is not None:
            raise AssertionError(f"another owner failed: {error}") from error
        return True

    async def has_left(self) -> None:
        """Wait until its work is done."""
        if not self._is_away:
            await anyio.to_thread.run_sync(self._heard, None, abandon_on_cancel=True)
            self._is_away = True
