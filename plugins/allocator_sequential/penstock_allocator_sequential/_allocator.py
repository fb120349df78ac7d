"""The account and the cutting: who holds how much memory, who waits for some, and when it may be reused."""

from __future__ import annotations

__all__ = ("SequentialAllocator", "SequentialAllocatorSettings", "open_allocator")

import asyncio
import mmap
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled
from pydantic import Field

from penstock.errors import ClosedError, FullError, InvalidRequestError, InvariantError, again
from penstock.spi import Services, Settings, Size
from penstock.spi.allocator import Allocation, AllocatorCapabilities, AllocatorStatistics, Reservation
from penstock_allocator_sequential._mapping import (
    NO_VIEW,
    Chunk,
    IdlePool,
    class_bytes,
    is_exported,
    map_memory,
    map_sparsely,
    round_to_pages,
)

#: Pinned mappings looked at per request that needs a mapping, to bound its cost.
_PINNED_CHECKS = 8
#: Rounds of pressure in which a request waits for a whole chunk; then a smaller one does. A cache lets go of some
#: hundred entries a round, and a chunk comes free with its last one.
_WHOLE_CHUNK_ROUNDS = 64
#: A chunk takes at most this part of the limit, so that a few purposes can't use it up with open chunks.
_CHUNK_LIMIT_PART = 32
#: Idle memory takes at most this part of the limit.
_IDLE_LIMIT_PART = 4


class SequentialAllocatorSettings(Settings):
    """Settings of the sequential allocator."""

    limit: Size = Field(
        default=512 * 1024**2,
        ge=1,
        description="Memory for payload; past it, requests wait. The kernel sets it.",
    )
    chunk_bytes: Size = Field(
        default=4 * 1024**2,
        ge=mmap.PAGESIZE,
        description="Size of a chunk. Requests over half a chunk get memory of their own.",
    )
    idle_chunks_max: int = Field(
        default=32,
        ge=0,
        description="Released memory kept for reuse, in chunks; at most a quarter of the limit.",
    )


class _Allocation(msgspec.Struct, eq=False, gc=False):
    """Memory cut from a chunk. One for each small request: made without a step of Python, and not the collector's."""

    view: memoryview
    size: int
    _chunk: Chunk | None
    _owner: SequentialAllocator

    def release(self) -> None:
        chunk = self._chunk
        if chunk is None:
            raise InvariantError(f"allocation was released twice: size={self.size}")
        self._chunk = None
        self.view = NO_VIEW
        chunk.live -= 1
        if not chunk.live:
            self._owner._emptied(chunk)


class _Charge:
    """Bytes that somebody else made."""

    __slots__ = ("_owner", "_purpose", "size")

    def __init__(self, size: int, purpose: str, owner: SequentialAllocator) -> None:
        self.size = size
        self._purpose = purpose
        self._owner: SequentialAllocator | None = owner

    def release(self) -> None:
        owner = self._owner
        if owner is None:
            raise InvariantError(f"charge was released twice: size={self.size} purpose={self._purpose}")
        self._owner = None
        owner._discharge(self.size, self._purpose)

    def absorbed(self) -> int:
        """The bytes, which somebody else gives back from now on."""
        self._owner = None
        return self.size


class _Reservation:
    """A mapping of its own, accounted for page by page as it is granted."""

    __slots__ = ("_mapping", "_owner", "_purpose", "accounted", "granted", "size", "view")

    def __init__(self, mapping: mmap.mmap, size: int, purpose: str, owner: SequentialAllocator) -> None:
        self.view = memoryview(mapping)[:size]
        self.size = size
        self.granted = 0
        #: Bytes on the account: ``granted`` in whole pages.
        self.accounted = 0
        self._mapping: mmap.mmap | None = mapping
        self._purpose = purpose
        self._owner: SequentialAllocator | None = owner

    def grant_nowait(self, size: int) -> None:
        owner, more = self._asked(size)
        self._granted(owner.charge_nowait(more, self._purpose, own=self.accounted), size)

    async def grant(self, size: int) -> None:
        """See ``Reservation.grant``. Without contention this is no more than a check for cancellation."""
        owner, more = self._asked(size)
        charge = await owner.charge(more, self._purpose, own=self.accounted)
        if self._owner is None:  # released meanwhile
            charge.release()
            raise InvariantError(f"reservation was released while it waited: size={self.size}")
        self._granted(charge, size)

    def _asked(self, size: int) -> tuple[SequentialAllocator, int]:
        owner = self._owner
        if owner is None:
            raise InvariantError(f"reservation was released: size={self.size} purpose={self._purpose}")
        if not self.granted <= size <= self.size:
            raise InvalidRequestError(
                f"a grant goes on from the last one, up to the size: granted={self.granted} "
                f"wanted={size} size={self.size}"
            )
        return owner, round_to_pages(size) - self.accounted

    def _granted(self, charge: _Charge, size: int) -> None:
        self.accounted += charge.absorbed()
        self.granted = size

    def release(self) -> None:
        owner, mapping = self._owner, self._mapping
        if owner is None or mapping is None:
            raise InvariantError(f"reservation was released twice: size={self.size} purpose={self._purpose}")
        self._owner = self._mapping = None
        self.view = NO_VIEW
        owner._unreserve(mapping, self.accounted, self._purpose)


class _Watch(weakref.ref[mmap.mmap]):
    """Tells when the last view of a pinned mapping, and with it the mapping, is gone."""

    __slots__ = ("size",)

    size: int


_Grant: TypeAlias = _Allocation | _Charge
#: Called with whether a new chunk must be a whole one.
_TryGrant: TypeAlias = Callable[[bool], _Grant | None]


class _Waiter:
    """A request in the queue, until it has an ``answer``."""

    __slots__ = ("answer", "event", "size", "try_grant")

    def __init__(self, size: int, try_grant: _TryGrant) -> None:
        self.size = size
        self.try_grant = try_grant
        self.event = anyio.Event()
        self.answer: _Grant | ClosedError | None = None

    def settle(self, answer: _Grant | ClosedError) -> None:
        self.answer = answer
        self.event.set()


class SequentialAllocator:
    """Allocations are cut, one after the other, from chunks that hold allocations of one purpose only.

    A chunk goes back as a whole when all its allocations are released. Then, if no view of it is left, it is
    reused; otherwise it stays untouched and accounted for as ``pinned`` until the last view is gone.

    ``call_soon`` schedules a function on the event loop from any thread.
    """

    def __init__(
        self, settings: SequentialAllocatorSettings, call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._limit = settings.limit
        pages_max = max(mmap.PAGESIZE, settings.limit // _CHUNK_LIMIT_PART // mmap.PAGESIZE * mmap.PAGESIZE)
        self._chunk_bytes = min(round_to_pages(settings.chunk_bytes), pages_max)
        self._small_max = self._chunk_bytes // 2
        self._idle = IdlePool(
            min(settings.idle_chunks_max * self._chunk_bytes, settings.limit // _IDLE_LIMIT_PART)
        )
        self._call_soon = call_soon
        self._open: dict[str, Chunk] = {}
        #: Everything accounted, idle and pinned memory included.
        self._total = 0
        self._peak = 0
        self._by_purpose: dict[str, int] = {}
        self._pinned: deque[tuple[mmap.mmap, int]] = deque()
        self._pinned_bytes = 0
        self._watches: set[_Watch] = set()
        self._unpinned: deque[_Watch] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._listeners: list[Callable[[int], int | None]] = []
        self._serving = False
        self._pressing = False
        self._closed = False

    @property
    def capabilities(self) -> AllocatorCapabilities:
        return AllocatorCapabilities()

    # Requests

    def allocate_nowait(self, size: int, purpose: str) -> Allocation:
        chunk = self._open.get(purpose)
        if chunk is not None and 0 < size <= self._small_max and not self._waiters:
            start = chunk.used
            end = start + size
            if end <= chunk.size:
                chunk.used = end
                chunk.live += 1
                return _Allocation(chunk.base[start:end], size, chunk, self)
        self._check(size, purpose, 1)
        self._no_overtaking(size, purpose)
        grant = self._granted(lambda whole: self._try_allocate(size, purpose, whole), size)
        if grant is None:
            raise self._full(size, purpose)
        assert isinstance(grant, _Allocation)
        return grant

    async def allocate(self, size: int, purpose: str) -> Allocation:
        """See ``Allocator.allocate``. Without contention this is no more than a check for cancellation."""
        await checkpoint_if_cancelled()
        self._check(size, purpose, 1)
        grant = await self._wait(lambda whole: self._try_allocate(size, purpose, whole), size)
        assert isinstance(grant, _Allocation)
        return grant

    def reserve(self, size: int, purpose: str) -> Reservation:
        self._check(size, purpose, 1)
        return _Reservation(map_sparsely(round_to_pages(size)), size, purpose, self)

    def charge_nowait(self, size: int, purpose: str, *, own: int = 0) -> _Charge:
        self._check(size, purpose, 0)
        if self._waiters:
            self._no_overtaking(size, purpose)
        grant = self._try_charge(size, purpose, own) or self._granted(
            lambda _: self._try_charge(size, purpose, own), size
        )
        if grant is None:
            raise self._full(size, purpose)
        assert isinstance(grant, _Charge)
        return grant

    async def charge(self, size: int, purpose: str, *, own: int = 0) -> _Charge:
        """See ``Allocator.charge``. Without contention this is no more than a check for cancellation.

        ``own`` bytes are the requester's already: with no others in use it is alone.
        """
        await checkpoint_if_cancelled()
        self._check(size, purpose, 0)
        grant = await self._wait(lambda _: self._try_charge(size, purpose, own), size)
        assert isinstance(grant, _Charge)
        return grant

    def charge_anyway(self, size: int, purpose: str) -> _Charge:
        self._check(size, purpose, 0)
        grant = self._granted(lambda _: self._try_charge(size, purpose), size)
        if grant is None:
            self._take(size, purpose)
            grant = _Charge(size, purpose, self)
        assert isinstance(grant, _Charge)
        return grant

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        self._listeners.append(listener)

    def statistics(self) -> AllocatorStatistics:
        self._recheck_pinned(len(self._pinned))
        self._settle_unpinned()
        used = {purpose: size for purpose, size in self._by_purpose.items() if size}
        if self._pinned_bytes:
            used["pinned"] = used.get("pinned", 0) + self._pinned_bytes
        if self._idle.bytes:
            used["idle"] = used.get("idle", 0) + self._idle.bytes
        return AllocatorStatistics(
            limit_bytes=self._limit,
            used_bytes=self._total,
            used_by_purpose=used,
            waiting=len(self._waiters),
            peak_bytes=self._peak,
        )

    def close(self) -> None:
        """Answer who waits with ClosedError. What is still allocated stays valid until it is released."""
        self._closed = True
        for waiter in self._waiters:
            waiter.settle(ClosedError("allocator was closed while a request waited"))
        self._waiters.clear()
        for chunk in list(self._open.values()):
            self._shut(chunk)
        self._idle.bytes_max = 0
        self._total -= self._idle.shrink(self._idle.bytes)

    def _check(self, size: int, purpose: str, size_min: int) -> None:
        if self._closed:
            raise ClosedError("allocator is closed")
        if size < size_min:
            raise InvalidRequestError(f"a request needs a size: size={size} purpose={purpose}")

    def _full(self, size: int, purpose: str) -> FullError:
        return FullError(
            f"memory limit is reached, wait or release: size={size} purpose={purpose} "
            f"used={self._total} limit={self._limit} waiting={len(self._waiters)}"
        )

    def _no_overtaking(self, size: int, purpose: str) -> None:
        """Raises FullError while others wait: they came first."""
        if self._waiters:
            self._serve()
            if self._waiters:
                raise self._full(size, purpose)

    # Waiting

    async def _wait(self, try_grant: _TryGrant, size: int) -> _Grant:
        waiter = _Waiter(size, try_grant)
        self._waiters.append(waiter)
        self._serve()
        if waiter.answer is None:
            await self._answered(waiter)
        answer = waiter.answer
        if isinstance(answer, ClosedError):
            raise again(answer)
        assert answer is not None
        return answer

    async def _answered(self, waiter: _Waiter) -> None:
        """Wait; who is cancelled gives back what was granted in the meantime, or the place in the queue."""
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.answer is None:
                self._waiters.remove(waiter)
                self._serve()
            elif not isinstance(waiter.answer, ClosedError):
                waiter.answer.release()
            raise

    def _serve(self) -> None:
        """Grant to waiters, first come first served, what has become free."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiters:
                waiter = self._waiters[0]
                grant = self._granted(waiter.try_grant, waiter.size)
                if grant is None:
                    break
                self._waiters.popleft()
                waiter.settle(grant)
        finally:
            self._serving = False

    def _granted(self, try_grant: _TryGrant, size: int) -> _Grant | None:
        """``try_grant`` again and again for as long as the pressure listeners make progress.

        Whole chunks first: near the limit they are the ones that come free, and are used again. Smaller ones would
        be made anew, each page with a fault.
        """
        grant = try_grant(True)
        rounds = 0
        while grant is None and not self._pressing and self._listeners:
            before = self._total - self._idle.bytes
            freed = self._press(size)
            rounds += 1
            grant = try_grant(rounds <= _WHOLE_CHUNK_ROUNDS)
            if not freed and self._total - self._idle.bytes >= before:
                break
        return grant or try_grant(False)

    def _press(self, size: int) -> int:
        """Ask the listeners, one after the other, for what is missing; what they say they let go of."""
        self._pressing = True
        freed = 0
        try:
            for listener in self._listeners:
                wanted = min(size, self._limit) - (self._limit - (self._total - self._idle.bytes))
                if wanted <= 0 and size <= self._limit:
                    wanted = size  # whole chunks count: free bytes there are, but not in one piece
                freed += listener(max(wanted, 1)) or 0
        finally:
            self._pressing = False
        return freed

    # Cutting and accounting

    def _try_charge(self, size: int, purpose: str, own: int = 0) -> _Charge | None:
        if self._total + size > self._limit and not self._make_room(size, own):
            return None
        self._take(size, purpose)
        return _Charge(size, purpose, self)

    def _discharge(self, size: int, purpose: str) -> None:
        self._total -= size
        self._by_purpose[purpose] -= size
        if self._waiters:
            self._serve()

    def _try_allocate(self, size: int, purpose: str, whole: bool) -> _Allocation | None:
        if size > self._small_max:
            return self._allocate_alone(size, purpose)
        chunk = self._open.get(purpose)
        if chunk is None or chunk.used + size > chunk.size:
            if chunk is not None:
                self._shut(chunk)
            chunk = self._open_chunk(size, purpose, whole)
            if chunk is None:
                return None
        start = chunk.used
        chunk.used = start + size
        chunk.live += 1
        return _Allocation(chunk.base[start : chunk.used], size, chunk, self)

    def _open_chunk(self, size: int, purpose: str, whole: bool) -> Chunk | None:
        """A new chunk for ``purpose``; unless it must be a ``whole`` one, a smaller one that still holds ``size``."""
        chunk_bytes = self._chunk_bytes
        mapping = self._obtain(chunk_bytes, purpose)
        while not whole and mapping is None and chunk_bytes >= 2 * max(size, mmap.PAGESIZE):
            chunk_bytes = round_to_pages(chunk_bytes // 2)
            mapping = self._obtain(chunk_bytes, purpose)
        if mapping is None:
            return None
        chunk = Chunk(mapping, chunk_bytes, purpose, memoryview(mapping))
        self._open[purpose] = chunk
        return chunk

    def _allocate_alone(self, size: int, purpose: str) -> _Allocation | None:
        """A mapping for one large allocation."""
        mapped = class_bytes(size)
        mapping = self._obtain(mapped, purpose)
        if mapping is None and round_to_pages(size) < mapped:
            mapped = round_to_pages(size)
            mapping = self._obtain(mapped, purpose)
        if mapping is None:
            return None
        chunk = Chunk(mapping, mapped, purpose, None)
        chunk.live = 1
        return _Allocation(memoryview(mapping)[:size], size, chunk, self)

    def _obtain(self, size: int, purpose: str) -> mmap.mmap | None:
        """A mapping of ``size`` bytes, recycled or fresh, on the account of ``purpose``; None if there is no room."""
        if self._pinned:
            self._recheck_pinned(_PINNED_CHECKS)
        mapping = self._idle.take(size)
        if mapping is not None:
            # It was accounted for all the time: nothing changes but its purpose.
            self._by_purpose[purpose] = self._by_purpose.get(purpose, 0) + size
            return mapping
        if self._total + size > self._limit and not self._make_room(size):
            return None
        mapping = map_memory(size)
        self._take(size, purpose)
        return mapping

    def _take(self, size: int, purpose: str) -> None:
        self._by_purpose[purpose] = self._by_purpose.get(purpose, 0) + size
        self._total += size
        if self._total > self._peak:
            self._peak = self._total

    def _make_room(self, size: int, own: int = 0) -> bool:
        """Give back what nobody uses; whether ``size`` more bytes may be taken now.

        More than the whole limit may be taken by one who is alone, with ``own`` bytes of the account.
        """
        self._recheck_pinned(len(self._pinned))
        self._settle_unpinned()
        if self._total - self._idle.bytes + size > self._limit:
            for chunk in list(self._open.values()):
                if not chunk.live:
                    self._shut(chunk)
        self._total -= self._idle.shrink(self._total + size - self._limit)
        if self._total + size <= self._limit:
            return True
        self._watch_pinned()
        return self._total == own

    # Giving back

    def _emptied(self, chunk: Chunk) -> None:
        """The last allocation of ``chunk`` was released."""
        if not chunk.open:
            self._recycle(chunk)
        elif self._waiters or self._closed:
            self._shut(chunk)
        if self._waiters:
            self._serve()

    def _unreserve(self, mapping: mmap.mmap, accounted: int, purpose: str) -> None:
        """A reservation was released."""
        if not accounted:
            mapping.close()
            return
        self._by_purpose[purpose] -= accounted
        size = len(mapping)
        if is_exported(mapping, size):
            self._pinned_bytes += accounted
            if accounted == size:
                self._pinned.append((mapping, size))
            else:
                self._watch(mapping, accounted)
        elif accounted == size == class_bytes(size):
            self._total -= self._idle.put(mapping, size)
        else:
            mapping.close()
            self._total -= accounted
        if self._waiters:
            self._serve()

    def _shut(self, chunk: Chunk) -> None:
        """Cut nothing more from ``chunk``."""
        chunk.open = False
        del self._open[chunk.purpose]
        if not chunk.live:
            self._recycle(chunk)

    def _recycle(self, chunk: Chunk) -> None:
        assert not chunk.live
        chunk.base = NO_VIEW
        self._by_purpose[chunk.purpose] -= chunk.size
        if is_exported(chunk.mapping, chunk.size):
            self._pinned_bytes += chunk.size
            self._pinned.append((chunk.mapping, chunk.size))
        else:
            self._total -= self._idle.put(chunk.mapping, chunk.size)

    def _recheck_pinned(self, count: int) -> None:
        """Look at ``count`` pinned mappings in turn; those without a view become idle."""
        for _ in range(min(count, len(self._pinned))):
            mapping, size = self._pinned.popleft()
            if is_exported(mapping, size):
                self._pinned.append((mapping, size))
            else:
                self._pinned_bytes -= size
                self._total -= self._idle.put(mapping, size)

    def _watch_pinned(self) -> None:
        """Somebody waits: be told when a view goes away, at the price of not recycling the mapping.

        A mapping lives as long as its views. With our own reference gone, its end is the end of the last one.
        """
        while self._pinned:
            self._watch(*self._pinned.popleft())

    def _watch(self, mapping: mmap.mmap, accounted: int) -> None:
        watch = _Watch(mapping, self._on_view_gone)
        watch.size = accounted
        self._watches.add(watch)

    def _on_view_gone(self, watch: weakref.ref[mmap.mmap]) -> None:
        """Called in whatever thread dropped the last view, at any point of its code: only takes notes."""
        assert isinstance(watch, _Watch)
        self._unpinned.append(watch)
        try:
            self._call_soon(self._after_view_gone)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _after_view_gone(self) -> None:
        self._settle_unpinned()
        if self._waiters:
            self._serve()

    def _settle_unpinned(self) -> None:
        while self._unpinned:
            watch = self._unpinned.popleft()
            self._watches.discard(watch)
            self._pinned_bytes -= watch.size
            self._total -= watch.size


@asynccontextmanager
async def open_allocator(
    settings: SequentialAllocatorSettings, services: Services
) -> AsyncIterator[SequentialAllocator]:
    """An allocator that answers its waiters with ClosedError when the context is left."""
    allocator = SequentialAllocator(settings, asyncio.get_running_loop().call_soon_threadsafe)
    try:
        yield allocator
    finally:
        allocator.close()
