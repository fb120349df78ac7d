"""A block cache with least-recently-used eviction and one task per load."""

from __future__ import annotations

__all__ = ("BlockCacheSettings", "PlainBlockCache")

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from pydantic import Field

from penstock.errors import ClosedError, FullError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings, Size
from penstock.spi.allocator import Allocator, Charge
from penstock.spi.block_cache import (
    BlockCacheCapabilities,
    BlockCacheSpec,
    BlockCacheStatistics,
    BlockLoader,
    BlockRef,
)
from penstock.spi.plugin import Buffer, Services


@dataclass(slots=True, eq=False)
class _Slot:
    """One block: being loaded until ``done`` is set, then ``data`` or ``error``."""

    charge: Charge | None
    waiting: int = 0
    done: anyio.Event = field(default_factory=anyio.Event)
    data: Buffer | None = None
    error: Exception | None = None
    #: The object was destroyed meanwhile: who waits gets the block, and nobody else.
    forgotten: bool = False
    #: Read ahead, and not read by anybody yet.
    unread: bool = False


#: Readers that are remembered; the one unheard of for longest goes first.
_READERS_MAX = 1000


class PlainBlockCache:
    """See ``penstock.spi.block_cache.BlockCache``."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        self._limit = limit
        self._allocator = allocator
        self._slots: dict[BlockRef, _Slot] = {}
        self._used = 0
        self._room = anyio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: dict[int, tuple[int, int]] = {}
        self._hits = self._misses = self._joined = self._evicted = self._wasted = 0
        self._closed = False
        if allocator is not None:
            allocator.add_pressure_listener(self._on_pressure)

    @property
    def capabilities(self) -> BlockCacheCapabilities:
        return BlockCacheCapabilities(readahead=True)

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        await anyio.lowlevel.checkpoint()
        self._check_open()
        # A read larger than the limit goes in pieces; what was read of it stays with the reader only.
        result: list[Buffer] = []
        piece: list[BlockRef] = []
        for block in blocks:
            if piece and sum(item.size for item in piece) + block.size > self._limit:
                result += await self._get_piece(piece, load, prefetch)
                piece = []
            piece.append(block)
        if piece:
            result += await self._get_piece(piece, load, prefetch)
        return result

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        while True:
            missing = [block for block in dict.fromkeys(blocks) if block not in self._slots]
            wanted = sum(block.size for block in missing)
            if not self._make_room(wanted, keep=blocks):
                if prefetch:
                    return []
                await self._room.wait()
            elif (charges := self._charges_beside(blocks, missing)) is not None:
                break
            elif prefetch:
                return []
            else:
                await self._wait_for_memory(wanted)
            self._check_open()
        self._hits += sum(block in self._slots and self._slots[block].done.is_set() for block in blocks)
        self._joined += sum(block in self._slots and not self._slots[block].done.is_set() for block in blocks)
        if missing:
            self._start_load(missing, charges, load)
        slots = [self._slots[block] for block in blocks]
        for block in missing if prefetch else blocks:
            self._slots[block].unread = prefetch
        for block, slot in zip(blocks, slots, strict=True):
            slot.waiting += 1
            if slot.done.is_set():
                self._slots[block] = self._slots.pop(block)  # the most recently used is last
        try:
            return await self._collect(slots)
        finally:
            for block, slot in zip(blocks, slots, strict=True):
                slot.waiting -= 1
                self._drop_forgotten(block, slot)
            if self._used > self._limit:
                self._make_room(0, keep=())  # what is larger than the limit isn't kept
            self._tell_room()

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        result: list[Buffer] = []
        for slot in slots:
            await slot.done.wait()
            if slot.error is not None:
                raise slot.error
            assert slot.data is not None
            result.append(slot.data)
        return result

    def _make_room(self, wanted: int, keep: Sequence[BlockRef]) -> bool:
        kept = set(keep)
        for block, slot in list(self._slots.items()):
            if self._used + wanted <= self._limit:
                break
            if self._is_idle(block, slot) and block not in kept:
                self._evict(block, slot)
        # One block over the limit is let in alone, so that a small limit can't stop reading.
        return self._used + wanted <= self._limit or self._used == 0

    def _charges_beside(
        self, blocks: Sequence[BlockRef], missing: Sequence[BlockRef]
    ) -> list[Charge | None] | None:
        """``_charges``, which may ask this cache for memory, too: what it has of ``blocks`` stays meanwhile."""
        kept = [slot for block in blocks if (slot := self._slots.get(block)) is not None]
        for slot in kept:
            slot.waiting += 1
        try:
            return self._charges(missing)
        finally:
            for slot in kept:
                slot.waiting -= 1

    def _charges(self, missing: Sequence[BlockRef]) -> list[Charge | None] | None:
        """A charge for each block; None, with nothing charged, if the memory is full."""
        charges: list[Charge | None] = []
        for block in missing:
            if self._allocator is None:
                charges.append(None)
                continue
            try:
                charges.append(self._allocator.charge_nowait(block.size, "block_cache"))
            except FullError:
                for taken in charges:
                    if taken is not None:
                        taken.release()
                return None
        return charges

    async def _wait_for_memory(self, size: int) -> None:
        """Others have it; what they give back is asked for again, block by block."""
        if self._allocator is not None:
            (await self._allocator.charge(size, "block_cache")).release()

    def _start_load(
        self, missing: Sequence[BlockRef], charges: Sequence[Charge | None], load: BlockLoader
    ) -> None:
        slots = []
        for block, charge in zip(missing, charges, strict=True):
            slot = self._slots[block] = _Slot(charge)
            self._used += block.size
            slots.append(slot)
        self._misses += len(missing)
        self._spawn(missing, slots, load)

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        """The load is nobody's own: whoever is cancelled, the others get their block."""
        task = asyncio.get_running_loop().create_task(self._load(missing, slots, load))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        try:
            loaded = await load(sorted(missing))
            by_block = dict(zip(sorted(missing), loaded, strict=True))
        except asyncio.CancelledError:
            self._settle_failed(missing, slots, ClosedError("the block cache was closed"))
            raise
        except Exception as error:  # noqa: BLE001 # it is raised by everybody who waits
            self._settle_failed(missing, slots, error)
            return
        for block, slot in zip(missing, slots, strict=True):
            slot.data = by_block[block]
            slot.done.set()
            self._drop_forgotten(block, slot)
        self._tell_room()

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        for block, slot in zip(missing, slots, strict=True):
            slot.error = error
            slot.done.set()
            if self._slots.get(block) is slot:
                self._drop(block)
        self._tell_room()

    def _drop_forgotten(self, block: BlockRef, slot: _Slot) -> None:
        if slot.forgotten and slot.done.is_set() and not slot.waiting and self._slots.get(block) is slot:
            self._drop(block)

    def _drop(self, block: BlockRef) -> int:
        slot = self._slots.pop(block)
        self._used -= block.size
        if slot.charge is not None:
            slot.charge.release()
        return block.size

    def _tell_room(self) -> None:
        room, self._room = self._room, anyio.Event()
        room.set()

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        expected, window = self._readers.pop(stream_id, (-1, 0))
        window = min(max(window * 2, 64 * 1024), 2**20) if offset == expected else 0
        self._readers[stream_id] = (next_offset, window)
        if len(self._readers) > _READERS_MAX:
            del self._readers[next(iter(self._readers))]
        return window

    def evict(self, bytes_wanted: int) -> int:
        freed = 0
        for block, slot in list(self._slots.items()):
            if freed >= bytes_wanted:
                break
            if self._is_idle(block, slot):
                freed += self._evict(block, slot)
        return freed

    def _is_idle(self, block: BlockRef, slot: _Slot) -> bool:
        """Nobody waits for the block; nor did it go for somebody who waited for the memory of another one."""
        return slot.done.is_set() and not slot.waiting and self._slots.get(block) is slot

    def _evict(self, block: BlockRef, slot: _Slot) -> int:
        self._count_evicted(slot)
        return self._drop(block)

    def _count_evicted(self, slot: _Slot) -> None:
        self._evicted += 1
        if slot.unread:
            self._wasted += 1
            self._cool_down()

    def _cool_down(self) -> None:
        """All begin anew."""
        self._readers = {stream_id: (expected, 0) for stream_id, (expected, _) in self._readers.items()}

    def _on_pressure(self, bytes_wanted: int) -> None:
        self.evict(bytes_wanted)

    def forget_object(self, object_id: int) -> None:
        for block, slot in list(self._slots.items()):
            if block.object_id == object_id:
                slot.forgotten = True
                self._drop_forgotten(block, slot)

    def close(self) -> None:
        """End the loads, answer who waits, release everything."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for block, slot in list(self._slots.items()):
            if not slot.done.is_set():
                slot.error = ClosedError("the block cache was closed")
                slot.done.set()
            if self._slots.get(block) is slot:
                self._drop(block)
        self._tell_room()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the block cache is closed")

    def statistics(self) -> BlockCacheStatistics:
        return BlockCacheStatistics(
            used_bytes=self._used,
            limit_bytes=self._limit,
            blocks=sum(slot.done.is_set() for slot in self._slots.values()),
            hits=self._hits,
            misses=self._misses,
            joined=self._joined,
            evicted=self._evicted,
            wasted=self._wasted,
            loading=sum(not slot.done.is_set() for slot in self._slots.values()),
        )


class BlockCacheSettings(Settings):
    """Settings of the plain block cache."""

    limit: Size = Field(default=4 * 2**20, ge=1, description="memory for blocks")


@asynccontextmanager
async def _open(settings: BlockCacheSettings, services: Services) -> AsyncIterator[PlainBlockCache]:
    cache = PlainBlockCache(settings.limit, services.allocator)
    try:
        yield cache
    finally:
        cache.close()


@hookimpl
def penstock_register_block_cache() -> BlockCacheSpec[BlockCacheSettings]:
    """Register the plain block cache."""
    return BlockCacheSpec(
        name="reference",
        summary="A block cache that evicts what was least recently used, with one task per load.",
        settings=BlockCacheSettings,
        capabilities=BlockCacheCapabilities(readahead=True),
        open=_open,
    )
