"""The waits of the group coordinator: for a time, and for answers."""

from __future__ import annotations

__all__ = ("Clock", "SystemClock", "Waiter")

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import anyio

_T = TypeVar("_T")


class Clock(Protocol):
    """Time for the service: one line that never jumps, in milliseconds since the epoch."""

    def now_ms(self) -> int:
        """The time now."""
        ...

    async def wait(self, event: anyio.Event, delay_ms: int | None) -> None:
        """Return when `event` is set or `delay_ms` have passed (None: only for the event)."""
        ...


class SystemClock:
    """Wall time at the start, monotonic from there: setting the host's clock expires no session."""

    def __init__(self) -> None:
        self._anchor_ms = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return self._anchor_ms + time.monotonic_ns() // 1_000_000

    async def wait(self, event: anyio.Event, delay_ms: int | None) -> None:
        """Return when `event` is set or `delay_ms` have passed."""
        with anyio.move_on_after(None if delay_ms is None else delay_ms / 1_000):
            await event.wait()


class Waiter(Generic[_T]):
    """A request that waits for its answer."""

    __slots__ = ("_event", "_result", "_then")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._result: _T | None = None
        self._then: Callable[[], None] | None = None

    def answer(self, result: _T) -> None:
        """Give the one answer."""
        assert self._result is None, "a request is answered once"
        self._result = result
        self._event.set()
        if self._then is not None:
            self._then()

    def when_answered(self, then: Callable[[], None]) -> None:
        """Call ``then`` with the answer, or now if it is there."""
        if self._result is None:
            self._then = then
        else:
            then()

    async def wait_until(self, clock: Clock, at_ms: int) -> _T | None:
        """The answer, or None if it isn't there at ``at_ms``; it may come later."""
        if self._result is None and (left_ms := at_ms - clock.now_ms()) > 0:
            await clock.wait(self._event, left_ms)
        return self._result

    async def wait(self) -> _T:
        """The answer, once it is there."""
        await self._event.wait()
        assert self._result is not None, "an answered request has a result"
        return self._result
