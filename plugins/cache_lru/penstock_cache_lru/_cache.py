"""Shared blocks: who waits for which load, what is kept, and what goes when memory is wanted."""

from __future__ import annotations

__all__ = ("LruBlockCache", "LruBlockCacheSettings", "open_block_cache")

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled
from pydantic import Field

from penstock.errors import ClosedError, FullError, InvariantError, again, kept
from penstock.spi import Buffer, Duration, Services, Settings, Size
from penstock.spi.allocator import Allocator, Charge
from penstock.spi.block_cache import BlockCacheCapabilities, BlockCacheStatistics, BlockLoader, BlockRef
from penstock_cache_lru._readahead import Readahead

_PURPOSE = "block_cache"
#: Part of the limit that blocks read more than once may keep from the others.
_PROTECTED_PART = 0.75
#: Hits in direct succession (one reader takes a block in pieces) that count as one more use.
_SUCCESSIVE_HITS = 2


class LruBlockCacheSettings(Settings):
    """Settings of the LRU block cache."""

    limit: Size = Field(default=64 * 1024**2, ge=1, description="Memory for blocks, cached or being loaded.")
    readahead_max: Size = Field(
        default=32 * 1024**2,
        ge=0,
        description="Readahead of one reader; all together take at most half of the limit. 0 turns it off.",
    )
    readahead_cooldown: Duration = Field(
        default=60_000,
        ge=0,
        description="How long readahead stays small after blocks were evicted unread.",
    )


class _Block:
    """A block: loading while ``load`` is set, then ready or failed."""

    __slots__ = ("charge", "data", "forgotten", "load", "protected", "ref", "successive", "unread")

    def __init__(self, ref: BlockRef, load: _Load, unread: bool) -> None:
        self.ref = ref
        self.load: _Load | None = load
        self.data: Buffer = b""
        self.charge: Charge | None = None
        self.protected = False
        #: Read ahead, and not read by anybody yet.
        self.unread = unread
        self.forgotten = False
        self.successive = 0

    def take_charge(self) -> Charge | None:
        charge, self.charge = self.charge, None
        return charge


class _Load:
    """One call of a loader and those who wait for it."""

    __slots__ = ("blocks", "bytes", "done", "error", "loader")

    def __init__(self, loader: BlockLoader, size: int) -> None:
        self.loader = loader
        #: Bytes on the account of the cache; 0 if the blocks are too large for it and only pass through.
        self.bytes = size
        self.blocks: list[_Block] = []
        self.done = anyio.Event()
        self.error: BaseException | None = None


class _SharedCharge:
    """One charge for several blocks; the last of them releases it."""

    __slots__ = ("_charge", "_count")

    def __init__(self, charge: Charge, count: int) -> None:
        self._charge = charge
        self._count = count

    @property
    def size(self) -> int:
        return self._charge.size

    def release(self) -> None:
        self._count -= 1
        if not self._count:
            self._charge.release()


class LruBlockCache:
    """Blocks enter on probation; those used again are protected, up to a part of the limit.

    Loads run in ``tasks``, the cache's own task group, so that no reader's cancellation touches another.
    A block is evictable as soon as it is loaded: who waited for it holds its bytes already.
    """

    def __init__(
        self,
        settings: LruBlockCacheSettings,
        tasks: TaskGroup,
        clock: Callable[[], float],
        allocator: Allocator | None = None,
    ) -> None:
        self._limit = settings.limit
        self._protected_max = int(settings.limit * _PROTECTED_PART)
        self._tasks = tasks
        self._clock = clock
        self._allocator = allocator
        self._readahead = Readahead(settings.readahead_max, settings.limit, settings.readahead_cooldown)
        #: Loading and ready blocks.
        self._blocks: dict[BlockRef, _Block] = {}
        self._by_object: dict[int, set[BlockRef]] = {}
        self._probation: OrderedDict[BlockRef, _Block] = OrderedDict()
        self._protected: OrderedDict[BlockRef, _Block] = OrderedDict()
        self._protected_bytes = 0
        self._used = 0
        self._loading_bytes = 0
        self._loads: set[_Load] = set()
        self._oversized = False
        self._last: _Block | None = None
        self._turn = anyio.Lock(fast_acquire=True)
        self._changed = anyio.Event()
        self._hits = self._misses = self._joined = self._evicted = self._wasted = 0
        self._closed = False

    @property
    def capabilities(self) -> BlockCacheCapabilities:
        return BlockCacheCapabilities(readahead=True)

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        """See ``BlockCache.get``. A read of cached blocks is no more than a check for cancellation."""
        await checkpoint_if_cancelled()
        found = self._claim(blocks, load, prefetch)
        if found is None:
            if prefetch:
                return ()
            found = await self._claim_in_turn(blocks, load)
        for block in found:
            pending = block.load
            if pending is not None:
                await pending.done.wait()
                if pending.error is not None:
                    raise again(pending.error)
        return [block.data for block in found]

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return self._readahead.on_read(stream_id, offset, next_offset, self._clock())

    def evict(self, bytes_wanted: int) -> int:
        freed = self._shrink(bytes_wanted, spare_protected=False)
        if freed:
            self._wake()
        return freed

    def forget_object(self, object_id: int) -> None:
        gone = []
        for ref in self._by_object.pop(object_id, ()):
            block = self._blocks.pop(ref)
            if block.load is not None:
                block.forgotten = True
            else:
                self._unlist(block)
                gone.append(block)
        self._discharge(gone)
        self._wake()

    def statistics(self) -> BlockCacheStatistics:
        return BlockCacheStatistics(
            used_bytes=self._used,
            limit_bytes=self._limit,
            blocks=len(self._probation) + len(self._protected),
            hits=self._hits,
            misses=self._misses,
            joined=self._joined,
            evicted=self._evicted,
            wasted=self._wasted,
            loading=sum(len(load.blocks) for load in self._loads),
        )

    def close(self) -> None:
        """Answer who waits with ClosedError and release every charge."""
        self._closed = True
        for load in list(self._loads):
            self._settle_failed(load, ClosedError("block cache was closed during a load"))
        gone = [*self._probation.values(), *self._protected.values()]
        for block in gone:
            self._unlist(block)
        self._blocks.clear()
        self._by_object.clear()
        self._discharge(gone)
        self._wake()

    # Claiming: which blocks are there, which are on their way, which are to be loaded

    def _claim(self, refs: Sequence[BlockRef], loader: BlockLoader, prefetch: bool) -> list[_Block] | None:
        """The blocks of ``refs``, with a load started for those that are new; None if these find no room."""
        if self._closed:
            raise ClosedError("block cache is closed")
        found = {ref: self._blocks.get(ref) for ref in refs}
        missing = [ref for ref, block in found.items() if block is None]
        load: _Load | None = None
        if missing:
            missing.sort()
            load = self._start(missing, found, loader, prefetch)
            if load is None:
                return None
            found.update((block.ref, block) for block in load.blocks)
        blocks = [block for ref in refs if (block := found[ref]) is not None]
        if not prefetch:
            self._use(blocks, load)
        return blocks

    def _start(
        self, missing: Sequence[BlockRef], wanted: Iterable[BlockRef], loader: BlockLoader, prefetch: bool
    ) -> _Load | None:
        """A load of ``missing``, on its way; None if there is no room for it."""
        need = sum(ref.size for ref in missing)
        oversized = need > self._limit
        if oversized:
            if prefetch or self._oversized:
                return None
        elif not self._make_room(need, wanted, prefetch):
            return None
        load = _Load(loader, 0 if oversized else need)
        load.blocks = [_Block(ref, load, prefetch) for ref in missing]
        if prefetch and not self._charge_nowait(load.blocks):
            load.blocks = []
            return None
        for block in load.blocks:
            self._blocks[block.ref] = block
            self._by_object.setdefault(block.ref.object_id, set()).add(block.ref)
        self._oversized = self._oversized or oversized
        self._used += load.bytes
        self._loading_bytes += load.bytes
        self._loads.add(load)
        self._tasks.start_soon(self._run, load)
        return load

    async def _claim_in_turn(self, refs: Sequence[BlockRef], loader: BlockLoader) -> list[_Block]:
        """Wait for room, first come first served, holding nothing that others may wait for."""
        async with self._turn:
            while True:
                found = self._claim(refs, loader, False)
                if found is not None:
                    return found
                self._changed = anyio.Event()
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()

    def _use(self, blocks: Sequence[_Block], load: _Load | None) -> None:
        """Count ``blocks`` and move them to where recently used blocks are; ``load`` was started for this."""
        for block in blocks:
            if block.load is None:
                self._hits += 1
                # Making room for the others may have evicted it.
                if self._blocks.get(block.ref) is block:
                    self._touch(block)
            elif block.load is load:
                self._misses += 1
            else:
                self._joined += 1
                block.unread = False
            self._last = block

    def _touch(self, block: _Block) -> None:
        """A ready block was read."""
        ref = block.ref
        if block.protected:
            self._protected.move_to_end(ref)
            return
        self._probation.move_to_end(ref)
        if block.unread:
            block.unread = False
            return
        if block is self._last:
            block.successive += 1
            if block.successive < _SUCCESSIVE_HITS:
                return
        self._protect(block)

    def _protect(self, block: _Block) -> None:
        del self._probation[block.ref]
        self._protected[block.ref] = block
        block.protected = True
        self._protected_bytes += block.ref.size
        while self._protected_bytes > self._protected_max:
            ref, oldest = self._protected.popitem(last=False)
            oldest.protected = False
            oldest.successive = 0
            self._protected_bytes -= ref.size
            self._probation[ref] = oldest

    # Loading

    async def _run(self, load: _Load) -> None:
        refs = [block.ref for block in load.blocks]
        try:
            charged = load.blocks[0].charge is not None or self._charge_nowait(load.blocks)
            if not charged and self._allocator is not None:
                await self._charge(load.blocks, self._allocator)
                if self._closed:
                    raise ClosedError("block cache was closed while a load waited for memory")
            buffers = await load.loader(refs)
            _check_sizes(refs, buffers)
        except BaseException as error:
            closed = ClosedError("block cache was closed during a load")
            failed = isinstance(error, Exception)
            self._settle_failed(load, kept(error) if failed else closed)
            if not failed:
                raise
        else:
            self._settle(load, buffers)
        finally:
            load.blocks = []  # a block whose load failed leads to the load: no cycle

    def _charge_nowait(self, blocks: Sequence[_Block]) -> bool:
        """Account for each block on its own; False, with nothing accounted, if the memory is full."""
        if self._allocator is None:
            return True
        try:
            for block in blocks:
                block.charge = self._allocator.charge_nowait(block.ref.size, _PURPOSE)
        except FullError:
            _release(blocks)
            return False
        return True

    async def _charge(self, blocks: Sequence[_Block], allocator: Allocator) -> None:
        """Wait for the memory of all at once: loads that each hold a half would wait for each other."""
        charge = await allocator.charge(sum(block.ref.size for block in blocks), _PURPOSE)
        shared = _SharedCharge(charge, len(blocks))
        for block in blocks:
            block.charge = shared

    def _settle(self, load: _Load, buffers: Sequence[Buffer]) -> None:
        if load not in self._loads:
            _release(load.blocks)  # closed in the meantime
            return
        self._loads.discard(load)
        for block, buffer in zip(load.blocks, buffers, strict=True):
            block.data = _owned(buffer)
            block.load = None
            if not load.bytes or block.forgotten:
                self._let_go(block, load)
            else:
                self._probation[block.ref] = block
        self._finish(load)

    def _settle_failed(self, load: _Load, error: BaseException) -> None:
        if load not in self._loads:
            # Closed in the meantime; memory may have been granted since.
            _release(load.blocks)
            return
        self._loads.discard(load)
        load.error = error
        for block in load.blocks:
            self._let_go(block, load)
        self._finish(load)

    def _let_go(self, block: _Block, load: _Load) -> None:
        """Don't keep ``block``."""
        if not block.forgotten:
            del self._blocks[block.ref]
            self._unindex(block.ref)
        if load.bytes:
            self._discharge([block])
        else:
            _release([block])

    def _finish(self, load: _Load) -> None:
        self._loading_bytes -= load.bytes
        if not load.bytes:
            self._oversized = False
        load.done.set()
        self._wake()

    # Memory

    def _make_room(self, need: int, refs: Iterable[BlockRef], prefetch: bool) -> bool:
        """Evict until ``need`` more bytes are under the limit, blocks of ``refs`` last."""
        excess = self._used + need - self._limit
        if excess <= 0:
            return True
        evictable = self._used - self._loading_bytes - (self._protected_bytes if prefetch else 0)
        if evictable < excess:
            return False
        for ref in refs:
            block = self._blocks.get(ref)
            if block is not None and block.load is None:
                (self._protected if block.protected else self._probation).move_to_end(ref)
        self._shrink(excess, spare_protected=prefetch)
        return True

    def _shrink(self, bytes_wanted: int, *, spare_protected: bool) -> int:
        freed = 0
        while freed < bytes_wanted:
            if self._probation:
                block = next(iter(self._probation.values()))
            elif self._protected and not spare_protected:
                block = next(iter(self._protected.values()))
            else:
                break
            freed += block.ref.size
            self._evict(block)
        return freed

    def _evict(self, block: _Block) -> None:
        self._evicted += 1
        if block.unread:
            self._wasted += 1
            self._readahead.on_waste(self._clock())
        del self._blocks[block.ref]
        self._unindex(block.ref)
        self._unlist(block)
        self._discharge([block])

    def _unlist(self, block: _Block) -> None:
        if block.protected:
            del self._protected[block.ref]
            self._protected_bytes -= block.ref.size
        else:
            del self._probation[block.ref]

    def _unindex(self, ref: BlockRef) -> None:
        refs = self._by_object[ref.object_id]
        refs.discard(ref)
        if not refs:
            del self._by_object[ref.object_id]

    def _discharge(self, blocks: Sequence[_Block]) -> None:
        """Give back the memory of blocks that are in no table any more: a release may evict others meanwhile."""
        for block in blocks:
            self._used -= block.ref.size
            if self._last is block:
                self._last = None
        _release(blocks)


def _release(blocks: Iterable[_Block]) -> None:
    for block in blocks:
        charge = block.take_charge()
        if charge is not None:
            charge.release()


def _check_sizes(refs: Sequence[BlockRef], buffers: Sequence[Buffer]) -> None:
    """Raises InvariantError if the loader didn't return what it was asked for."""
    if [len(buffer) for buffer in buffers] != [ref.size for ref in refs]:
        raise InvariantError(
            f"loader returned other sizes than it was asked for: blocks={len(refs)} buffers={len(buffers)} "
            f"bytes_wanted={sum(ref.size for ref in refs)} bytes={sum(map(len, buffers))}"
        )


def _owned(buffer: Buffer) -> Buffer:
    """``buffer``, or a copy if it is a small part of something larger that it would keep alive unaccounted."""
    if isinstance(buffer, memoryview):
        whole = memoryview(buffer.obj).nbytes
        if whole - buffer.nbytes > buffer.nbytes // 8:
            return bytes(buffer)
    return buffer


@asynccontextmanager
async def open_block_cache(
    settings: LruBlockCacheSettings, services: Services
) -> AsyncIterator[LruBlockCache]:
    """A block cache that ends its loads and releases every charge when the context is left."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        cache = LruBlockCache(settings, tasks, services.clock, services.allocator)
        try:
            yield cache
        except Exception as error:  # noqa: BLE001 - raised again below: the task group would wrap it
            failure = error
        finally:
            cache.close()
            tasks.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
