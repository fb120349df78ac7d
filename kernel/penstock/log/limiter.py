"""A bound on bytes, shared fairly: the waiting that ``penstock.shares`` leaves to its caller."""

from __future__ import annotations

__all__ = ("SERVED_AT_ONCE", "BytesLimiter")

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import anyio

from penstock.errors import FullError
from penstock.shares import Member, Shares

#: What a client may hold of a response before it has taken anything.
_CREDIT: Final = 256 * 1024
#: One response takes at most this part of the limit.
_CREDIT_PART_MAX: Final = 8
#: So many who wait are served in one iteration of the event loop: each has a task that goes on then, some 50 us, and
#: receives or sends at once what it was given room for. What one large member gives back may be enough for dozens.
SERVED_AT_ONCE: Final = 4


class _Held:
    __slots__ = ("_limiter", "_member", "size")

    def __init__(self, limiter: BytesLimiter, member: Member, size: int) -> None:
        self._limiter = limiter
        self._member = member
        self.size = size

    def release(self) -> None:
        size, self.size = self.size, 0
        self._limiter.give(self._member, size)


class BytesLimiter:
    """Hands out charges up to ``limit`` bytes to its members, by the rules of ``penstock.shares``.

    Whoever makes members listens for shortage too: each step of ``on_shortage(spare)`` closes one member that is
    stuck, but not ``spare``, for as long as there are any. It's called when somebody finds no room.

    Of a crowd that waits some are served in each iteration of the event loop; who comes meanwhile has its place among
    the others by the same rules.
    """

    def __init__(
        self,
        limit: int,
        *,
        credit: int = _CREDIT,
        credit_max: int | None = None,
        passes_elder: bool = False,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        if credit_max is None:
            credit_max = max(1, limit // _CREDIT_PART_MAX)
        self.shares = Shares(limit, credit=credit, credit_max=credit_max, passes_elder=passes_elder)
        self.clock = clock
        self.on_shortage: Callable[[Member | None], Iterator[None]] | None = None
        #: Called when somebody begins to wait.
        self.on_waiting: Callable[[], None] | None = None
        self._events: dict[Member, anyio.Event] = {}
        #: So many may be served in this iteration of the loop.
        self._left = SERVED_AT_ONCE

    @property
    def limit(self) -> int:
        """Bytes that may be charged."""
        return self.shares.limit

    @property
    def used(self) -> int:
        """Bytes that are charged."""
        return self.shares.used

    @property
    def waiting(self) -> int:
        """Members that wait."""
        return self.shares.waiting

    @property
    def is_short(self) -> bool:
        """Whether somebody waits, or more is held than there is."""
        return self.shares.is_short

    def join(self, address: str, owner: object) -> Member:
        """A member of ``address``; ``leave`` ends it."""
        return self.shares.join(address, owner, self.clock())

    def leave(self, member: Member) -> None:
        """The member is gone; charges that it still has are worth nothing."""
        self.shares.leave(member)
        self.serve()

    def allowance(self, member: Member) -> int:
        """How many bytes are sensible to give ``member`` in one response."""
        return self.shares.allowance(member)

    def try_take(self, member: Member, size: int, rest: int = 0) -> bool:
        """Take ``size`` bytes for ``member`` if there is room, or room can be made; whether there was.

        ``rest`` is what it needs after that until it's done.
        """
        shares = self.shares
        if not shares.fits(member, size, rest):
            if self.on_shortage is None:
                return False
            for _ in self.on_shortage(member):
                if shares.fits(member, size, rest):
                    break
            else:
                return False
        shares.take(member, size, self.clock())
        return True

    def take(self, member: Member, size: int) -> None:
        """Count what ``member`` holds already, room or not."""
        self.shares.take(member, size, self.clock())

    def give(self, member: Member, size: int) -> None:
        """``size`` bytes are out of its hands."""
        self.shares.give(member, min(size, member.held))  # who has left holds nothing any more
        if self.shares.waiting:
            self.serve()

    def serve(self) -> None:
        """Wake those who wait and fit now: some, and of a crowd some more in each of the next iterations."""
        served = self.shares.serve(self.clock(), self._left)
        if not served:
            return
        if self._left == SERVED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        self._left -= len(served)
        for member in served:
            self._events.pop(member).set()

    def _next_iteration(self) -> None:
        self._left = SERVED_AT_ONCE
        if self.shares.waiting:
            self.serve()

    async def wait_and_take(self, member: Member, size: int, rest: int = 0) -> None:
        """Take ``size`` bytes for ``member`` as soon as it's its turn; a cancelled wait gives up its place.

        ``rest`` is what it needs after that until it's done: who needs least goes first.
        """
        shares = self.shares
        event = self._events[member] = anyio.Event()
        shares.wait(member, size, rest)
        if self.on_waiting is not None:
            self.on_waiting()
        self.serve()
        try:
            await event.wait()
        except BaseException:
            if self._events.pop(member, None) is not None:
                shares.withdraw(member)
                self.serve()
            else:  # granted already
                self.give(member, size)
            raise

    def charge_nowait(self, size: int, member: Member) -> _Held:
        """Account for ``size`` bytes. Raises FullError when there is no room for them."""
        if not self.try_take(member, size):
            raise FullError(
                f"too many bytes are on their way to clients: used={self.used} limit={self.limit}"
            )
        return _Held(self, member, size)

    def charge_anyway(self, size: int, member: Member) -> _Held:
        """Account for ``size`` bytes that are there already, room or not."""
        self.take(member, size)
        return _Held(self, member, size)

    async def charge(self, size: int, member: Member) -> _Held:
        """Account for ``size`` bytes; waits for room, and gives its place up if cancelled."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not self.try_take(member, size):
            await self.wait_and_take(member, size)
        return _Held(self, member, size)
