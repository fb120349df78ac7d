"""An allocator in which every allocation is a mapping of its own, so that the last view of it can be noticed."""

from __future__ import annotations

__all__ = ("AllocatorSettings", "PlainAllocator")

import asyncio
import mmap
import threading
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from pydantic import Field

from penstock.errors import ClosedError, FullError, InvalidRequestError, InvariantError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings, Size
from penstock.spi.allocator import AllocatorCapabilities, AllocatorSpec, AllocatorStatistics
from penstock.spi.plugin import Services


class _Grant:
    """Accounted bytes, with memory of their own if ``view`` isn't empty."""

    def __init__(self, owner: PlainAllocator, size: int, purpose: str, memory: mmap.mmap | None) -> None:
        self.size = size
        self.purpose = purpose
        self.memory = memory
        self.view = memoryview(memory)[:size] if memory is not None else memoryview(b"")
        self._owner: PlainAllocator | None = owner

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            raise InvariantError(f"released twice: size={self.size} purpose={self.purpose}")
        self.view = memoryview(b"")
        owner.give_back(self)


class _Reservation(_Grant):
    """A mapping of its own; ``accounted`` follows what is granted of it."""

    def __init__(self, owner: PlainAllocator, size: int, purpose: str, memory: mmap.mmap) -> None:
        super().__init__(owner, size, purpose, memory)
        self.granted = 0
        self.accounted = 0

    def grant_nowait(self, size: int) -> None:
        owner = self._checked(size)
        self._absorb(owner.take_nowait(size - self.granted, self.purpose, own=self.accounted), size)

    async def grant(self, size: int) -> None:
        """Wait in the queue of all."""
        owner = self._checked(size)
        self._absorb(await owner.take(size - self.granted, self.purpose, own=self.accounted), size)

    def _checked(self, size: int) -> PlainAllocator:
        if self._owner is None:
            raise InvariantError(f"the reservation was released: size={self.size}")
        if not self.granted <= size <= self.size:
            raise InvalidRequestError(
                f"grants only grow, up to the size: granted={self.granted} wanted={size}"
            )
        return self._owner

    def _absorb(self, grant: _Grant, size: int) -> None:
        self.accounted += grant.size
        grant._owner = None
        self.granted = size


class _Waiter:
    def __init__(self, size: int, purpose: str, mapped: bool, own: int) -> None:
        self.size = size
        self.purpose = purpose
        self.mapped = mapped
        self.own = own
        self.event = anyio.Event()
        self.answer: _Grant | ClosedError | None = None


class PlainAllocator:
    """See ``penstock.spi.allocator.Allocator``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: Counter[str] = Counter()
        self._peak = 0
        self._waiters: deque[_Waiter] = deque()
        self._listeners: list[Callable[[int], int | None]] = []
        self._pins: set[weakref.ref[mmap.mmap]] = set()
        self._thread = threading.get_ident()
        #: Where those wait who are to be told; None until somebody has waited.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving = False
        self._pressing = False
        self._closed = False

    @property
    def capabilities(self) -> AllocatorCapabilities:
        return AllocatorCapabilities()

    def allocate_nowait(self, size: int, purpose: str) -> _Grant:
        return self.take_nowait(size, purpose, mapped=True)

    async def allocate(self, size: int, purpose: str) -> _Grant:
        return await self.take(size, purpose, mapped=True)

    def reserve(self, size: int, purpose: str) -> _Reservation:
        self._check(size, mapped=True)
        return _Reservation(self, size, purpose, self._map(size))

    def charge_nowait(self, size: int, purpose: str) -> _Grant:
        return self.take_nowait(size, purpose)

    async def charge(self, size: int, purpose: str) -> _Grant:
        return await self.take(size, purpose)

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        self._check(size, mapped=False)
        if self._used.total() + size > self._limit:
            self._press(size)
        self._used[purpose] += size
        self._peak = max(self._peak, self._used.total())
        return _Grant(self, size, purpose, None)

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        self._listeners.append(listener)

    def statistics(self) -> AllocatorStatistics:
        used = {purpose: size for purpose, size in self._used.items() if size}
        return AllocatorStatistics(
            limit_bytes=self._limit,
            used_bytes=sum(used.values()),
            used_by_purpose=used,
            waiting=len(self._waiters),
            peak_bytes=self._peak,
        )

    def close(self) -> None:
        """Answer who waits."""
        self._closed = True
        while self._waiters:
            self._settle(self._waiters.popleft(), ClosedError("the allocator was closed"))

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        """Bytes, with memory if ``mapped``, for one who has ``own`` bytes already."""
        self._check(size, mapped)
        grant = None if self._waiters else self._grant(size, purpose, mapped, own)
        if grant is None:
            raise FullError(f"memory limit is reached: size={size} limit={self._limit}")
        return grant

    async def take(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        """``take_nowait`` that waits for its turn and for room."""
        await checkpoint_if_cancelled()
        self._check(size, mapped)
        self._loop = asyncio.get_running_loop()
        waiter = _Waiter(size, purpose, mapped, own)
        self._waiters.append(waiter)
        self._serve()
        if waiter.answer is None:
            try:
                await waiter.event.wait()
            except BaseException:
                self._give_up(waiter)
                raise
        if isinstance(waiter.answer, ClosedError):
            raise waiter.answer
        assert waiter.answer is not None
        return waiter.answer

    def _give_up(self, waiter: _Waiter) -> None:
        """Who is cancelled gives back what was granted meanwhile, or the place in the queue."""
        if isinstance(waiter.answer, _Grant):
            waiter.answer.release()
        elif waiter.answer is None:
            self._waiters.remove(waiter)
            self._serve()

    def _check(self, size: int, mapped: bool) -> None:
        if self._closed:
            raise ClosedError("the allocator is closed")
        if size < (1 if mapped else 0):
            raise InvalidRequestError(f"a request needs a size: size={size}")

    def _fits(self, size: int, own: int) -> bool:
        used = self._used.total()
        return used + size <= self._limit or (own + size > self._limit and used == own)

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        while not self._fits(size, own):
            if not self._press(size) and not self._fits(size, own):
                return None
        self._used[purpose] += size
        self._peak = max(self._peak, self._used.total())
        return _Grant(self, size, purpose, self._map(size) if mapped else None)

    def _press(self, size: int) -> int:
        """Ask all listeners; bytes that they say they let go of, 0 if nobody did, or is just being asked."""
        if self._pressing:
            return 0
        self._pressing = True
        try:
            return sum(listener(size) or 0 for listener in self._listeners)
        finally:
            self._pressing = False

    def _map(self, size: int) -> mmap.mmap:
        return mmap.mmap(-1, size)

    def give_back(self, grant: _Grant) -> None:
        """Un-account what was released; with views still around, when the last one is gone."""
        size = grant.accounted if isinstance(grant, _Reservation) else grant.size
        self._used[grant.purpose] -= size
        memory, grant.memory = grant.memory, None
        if memory is not None:
            self._used["pinned"] += size
            self._pins.add(weakref.ref(memory, partial(self._view_gone, size)))
            del memory
        self._serve()

    def _view_gone(self, size: int, pin: weakref.ref[mmap.mmap]) -> None:
        """Called in whatever thread dropped the last view of a mapping."""
        if self._loop is None or threading.get_ident() == self._thread:
            self._unpin(size, pin)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._unpin, size, pin)

    def _unpin(self, size: int, pin: weakref.ref[mmap.mmap]) -> None:
        self._pins.discard(pin)
        self._used["pinned"] -= size
        self._serve()

    def _serve(self) -> None:
        """Grant to the waiters what has become free. A pressure listener that releases comes back here."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiters:
                waiter = self._waiters[0]
                grant = self._grant(waiter.size, waiter.purpose, waiter.mapped, waiter.own)
                if grant is None:
                    return
                self._waiters.popleft()
                self._settle(waiter, grant)
        finally:
            self._serving = False

    def _settle(self, waiter: _Waiter, answer: _Grant | ClosedError) -> None:
        waiter.answer = answer
        waiter.event.set()


class AllocatorSettings(Settings):
    """Settings of the plain allocator."""

    limit: Size = Field(default=64 * 2**20, ge=1, description="memory for payload")


@asynccontextmanager
async def _open(settings: AllocatorSettings, services: Services) -> AsyncIterator[PlainAllocator]:
    allocator = PlainAllocator(settings.limit)
    try:
        yield allocator
    finally:
        allocator.close()


@hookimpl
def penstock_register_allocator() -> AllocatorSpec[AllocatorSettings]:
    """Register the plain allocator."""
    return AllocatorSpec(
        name="reference",
        summary="An account of memory in which every allocation is a mapping of its own.",
        settings=AllocatorSettings,
        capabilities=AllocatorCapabilities(),
        open=_open,
    )
