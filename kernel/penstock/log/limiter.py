"""A bound on bytes: first come, first served."""

from __future__ import annotations

__all__ = ("BytesLimiter",)

from collections import deque

import anyio

from penstock.errors import FullError


class _Held:
    __slots__ = ("_limiter", "size")

    def __init__(self, limiter: BytesLimiter, size: int) -> None:
        self._limiter = limiter
        self.size = size

    def release(self) -> None:
        self._limiter._release(self)


class BytesLimiter:
    """Hands out charges up to ``limit`` bytes; one larger than that passes alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiters: deque[tuple[int, anyio.Event]] = deque()

    @property
    def is_short(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiters)

    def _fits(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self.limit

    def charge_nowait(self, size: int) -> _Held:
        """Account for ``size`` bytes. Raises FullError when over the limit or others wait."""
        if self._waiters or not self._fits(size):
            raise FullError(
                f"too many bytes are on their way to clients: used={self.used} limit={self.limit}"
            )
        self.used += size
        return _Held(self, size)

    async def charge(self, size: int) -> _Held:
        """The same, but waits for room; a cancelled wait gives up its place."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._waiters and self._fits(size):
            self.used += size
            return _Held(self, size)
        waiter = (size, anyio.Event())
        self._waiters.append(waiter)
        try:
            await waiter[1].wait()
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            else:  # granted already
                self.used -= size
            self._grant()
            raise
        return _Held(self, size)

    def _release(self, held: _Held) -> None:
        self.used -= held.size
        held.size = 0
        self._grant()

    def _grant(self) -> None:
        while self._waiters and self._fits(self._waiters[0][0]):
            size, event = self._waiters.popleft()
            self.used += size
            event.set()
