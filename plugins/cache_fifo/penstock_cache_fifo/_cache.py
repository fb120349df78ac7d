"""Blocks in WAL order, and an index by stream across them, so that reads don't depend on the number of blocks."""

from __future__ import annotations

__all__ = ("FifoLogCache", "FifoLogCacheSettings", "open_log_cache")

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heapreplace
from math import inf
from operator import attrgetter

from pydantic import Field

from penstock.errors import ClosedError, InvariantError
from penstock.spi import Services, Settings, Size
from penstock.spi.log_cache import LogCacheBlock, LogCacheCapabilities, LogCacheStatistics, StreamEntry

_base_offset = attrgetter("base_offset")
_wal_position = attrgetter("wal_position")
#: So many entries go at a time, in about a millisecond: all of a block at once, 65,000 of 1 KiB, held the event loop
#: up for a tenth of a second.
_PORTION_ENTRIES = 500
#: With some hundred streams a portion has so many of each, up to twice as many in all: to look at a stream takes as
#: long as to drop some entries. With thousands of streams there is one of each in any case.
_PORTION_ENTRIES_PER_STREAM = 4
#: Read positions remembered per stream: about as many as it has tail readers.
_HINTS_MAX = 64


class FifoLogCacheSettings(Settings):
    """Settings of the FIFO log cache."""

    uploaded_bytes_max: Size = Field(
        default=0,
        ge=0,
        description="Uploaded data kept for tail reads; 0 keeps it until the allocator wants the memory.",
    )


class _Block:
    """Entries of all streams between two freezes."""

    __slots__ = ("dropped", "entries", "heads", "size_bytes", "streams", "uploaded", "wal_end")

    def __init__(self) -> None:
        self.streams: dict[int, list[StreamEntry]] = {}
        #: Streams that were deleted since it was frozen.
        self.dropped: set[int] = set()
        #: While it is evicted: where each stream begins in the WAL, as a heap, and how many entries are left, about.
        self.heads: list[tuple[int, int]] | None = None
        self.entries = 0
        self.size_bytes = 0
        self.wal_end = 0
        self.uploaded = False


class _Stream:
    """All cached entries of one stream, in offset order, over all blocks.

    They are continuous from ``tail`` on. ``removed`` counts entries dropped at the front, so that
    ``hints`` (offset -> index + ``removed``) outlive an eviction; a wrong hint is only a missed shortcut.

    ``ends`` has, for each entry, the payload bytes put up to its end: how many entries fit into so many bytes is
    found by bisection, without a step for each.
    """

    __slots__ = ("active", "block", "ends", "entries", "hints", "next_offset", "removed", "tail", "total")

    def __init__(self) -> None:
        self.entries: list[StreamEntry] = []
        self.ends = array("q")
        #: Payload bytes put so far.
        self.total = 0
        self.next_offset = 0
        self.tail = 0
        self.removed = 0
        self.hints: dict[int, int] = {}
        #: The block that took the newest entry and the list of this stream in it.
        self.block: _Block | None = None
        self.active: list[StreamEntry] = []

    def find(self, offset: int) -> int:
        """Index of the entry that holds ``offset``; -1 if none does."""
        entries = self.entries
        last = entries[-1]
        if offset >= last.base_offset:
            return len(entries) - 1 if offset < last.next_offset else -1
        index = self.hints.get(offset, -1) - self.removed
        if 0 <= index < len(entries) and entries[index].base_offset == offset:
            return index
        index = bisect_right(entries, offset, key=_base_offset) - 1
        return index if index >= 0 and offset < entries[index].next_offset else -1

    def run_end(self, index: int, end_offset: int, bytes_max: int) -> int:
        """Index after the run that begins at ``index``: up to ``end_offset``, of ``bytes_max`` or of one entry."""
        entries, ends = self.entries, self.ends
        limit = ends[index] - len(entries[index].data) + bytes_max
        end = bisect_right(ends, limit, index + 1)
        if entries[end - 1].base_offset >= end_offset:
            end = bisect_left(entries, end_offset, index + 1, end, key=_base_offset)
        if index < self.tail:
            for later in range(index + 1, end):  # blocks were evicted out of order: there are holes
                if entries[later].base_offset != entries[later - 1].next_offset:
                    return later
        return end

    def remember(self, offset: int, index: int) -> None:
        """The reader will come back for ``offset``, which is or will be at ``index``."""
        if len(self.hints) >= _HINTS_MAX:
            self.hints.clear()
        self.hints[offset] = index + self.removed

    def remove(self, entries: Sequence[StreamEntry]) -> None:
        """Drop a run of entries that came from one block, unless they were dropped before."""
        mine = self.entries
        count = len(entries)
        if mine[0] is entries[0]:
            del mine[:count], self.ends[:count]
            self.removed += count
            self.tail = max(0, self.tail - count)
            return
        start = bisect_right(mine, entries[0].base_offset, key=_base_offset) - 1
        if start < 0 or mine[start] is not entries[0]:
            return
        del mine[start : start + count], self.ends[start : start + count]
        if self.active is entries:
            self.active, self.block = [], None
        self.hints.clear()
        self.tail = len(mine) - 1
        while self.tail > 0 and mine[self.tail - 1].next_offset == mine[self.tail].base_offset:
            self.tail -= 1


class FifoLogCache:
    """The newest data of all streams.

    ``wanted`` says whether somebody waits for memory; it is asked when blocks become evictable, because
    whoever waits was told "nothing to evict" before that.
    """

    def __init__(self, settings: FifoLogCacheSettings, wanted: Callable[[], bool] = lambda: False) -> None:
        self._uploaded_bytes_max = settings.uploaded_bytes_max
        self._wanted = wanted
        self._streams: dict[int, _Stream] = {}
        self._active = _Block()
        #: Payload bytes of the active block, which knows its size once it is frozen.
        self.active_bytes = 0
        #: Frozen and uploaded blocks, oldest first.
        self._blocks: deque[_Block] = deque()
        self._frozen_bytes = 0
        self._uploaded_bytes = 0
        self._hits = 0
        self._misses = 0
        self._evicting = False
        self._closed = False

    @property
    def capabilities(self) -> LogCacheCapabilities:
        return LogCacheCapabilities()

    def put(self, entry: StreamEntry) -> None:
        stream_id = entry.stream_id
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._closed:  # which left no stream
                raise ClosedError("log cache is closed")
            stream = self._streams[stream_id] = _Stream()
        elif entry.base_offset != stream.next_offset:
            raise InvariantError(
                f"entry does not continue its stream: stream={stream_id} "
                f"expected={stream.next_offset} got={entry.base_offset}"
            )
        assert entry.next_offset > entry.base_offset, entry
        block = self._active
        size = len(entry.data)
        if stream.block is not block:
            stream.block = block
            stream.active = block.streams[stream_id] = []
            if stream.entries and stream.entries[-1].next_offset != entry.base_offset:
                stream.tail = len(stream.entries)
        stream.active.append(entry)
        stream.entries.append(entry)
        stream.total = total = stream.total + size
        stream.ends.append(total)
        stream.next_offset = entry.next_offset
        self.active_bytes += size
        block.wal_end = entry.wal_position  # the greatest: entries come in the order of the WAL

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        stream = self._streams.get(stream_id)
        if stream is None or start_offset >= end_offset:
            self._misses += 1
            return ()
        index = stream.find(start_offset)
        entries = stream.entries
        if index >= 0:
            self._hits += 1
        else:
            self._misses += 1
            index = stream.tail
            if not start_offset < entries[index].base_offset < end_offset:
                return ()
        end = stream.run_end(index, end_offset, bytes_max)
        stream.remember(entries[end - 1].next_offset, end)
        return entries[index:end]

    def freeze(self) -> LogCacheBlock | None:
        block = self._active
        if not block.streams:
            return None
        block.size_bytes, self.active_bytes = self.active_bytes, 0
        self._active = _Block()
        self._blocks.append(block)
        self._frozen_bytes += block.size_bytes
        return block

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        """See ``LogCache.mark_uploaded``. Raises InvariantError unless the block is frozen here and unmarked."""
        if self._closed:
            return
        if not isinstance(block, _Block) or block.uploaded or block not in self._blocks:
            raise InvariantError("block is not frozen in this cache, or was marked as uploaded before")
        block.uploaded = True
        self._frozen_bytes -= block.size_bytes
        self._uploaded_bytes += block.size_bytes
        for stream_id in block.dropped:
            self._take_out(block, stream_id)
        if self._uploaded_bytes_max and self._uploaded_bytes > self._uploaded_bytes_max:
            self.evict(self._uploaded_bytes - self._uploaded_bytes_max)
        while self._uploaded_bytes and self._wanted():
            self.evict(1)

    def evict(self, bytes_wanted: int) -> int:
        if self._evicting:
            # Asked by the allocator in the middle of giving back a block: what is wanted is on its way.
            return 0
        self._evicting = True
        try:
            return self._evict(bytes_wanted)
        finally:
            self._evicting = False

    def drop_stream(self, stream_id: int) -> None:
        """See ``LogCache.drop_stream``. A frozen block keeps its entries until it is uploaded."""
        if self._streams.pop(stream_id, None) is None:
            return
        for block in (self._active, *self._blocks):
            if stream_id not in block.streams:
                continue
            if block.uploaded or block is self._active:
                self._take_out(block, stream_id)
            else:
                block.dropped.add(stream_id)

    def statistics(self) -> LogCacheStatistics:
        return LogCacheStatistics(
            active_bytes=self.active_bytes,
            frozen_bytes=self._frozen_bytes,
            uploaded_bytes=self._uploaded_bytes,
            entries=sum(sum(map(len, block.streams.values())) for block in (self._active, *self._blocks)),
            hits=self._hits,
            misses=self._misses,
        )

    def close(self) -> None:
        """Drop everything and release every charge."""
        self._closed = True
        blocks = [*self._blocks, self._active]
        self._blocks.clear()
        self._streams.clear()
        self._active = _Block()
        self.active_bytes = self._frozen_bytes = self._uploaded_bytes = 0
        for block in blocks:
            charges = self._unlink(block.streams)
            block.streams = {}
            _release(charges)

    def _evict(self, bytes_wanted: int) -> int:
        freed = 0
        waiting: list[_Block] = []
        while freed < bytes_wanted and self._blocks:
            block = self._blocks.popleft()
            if not block.uploaded:
                waiting.append(block)
                continue
            portion = _oldest(block)
            size = sum(len(entry.data) for entries in portion.values() for entry in entries)
            block.size_bytes -= size
            if block.streams:
                self._blocks.appendleft(block)
            charges = self._unlink(portion)
            del portion
            freed += size
            self._uploaded_bytes -= size
            # After the entries are gone, so that the allocator finds no view of the memory if nobody reads it.
            _release(charges)
        self._blocks.extendleft(reversed(waiting))
        return freed

    def _take_out(self, block: _Block, stream_id: int) -> None:
        """Drop what ``block`` holds of a deleted stream, which is in no index any more."""
        entries = block.streams.pop(stream_id)
        charges = _take_charges(entries)
        size = sum(len(entry.data) for entry in entries)
        if block is self._active:
            self.active_bytes -= size
        else:
            block.size_bytes -= size
        if block.uploaded:
            self._uploaded_bytes -= size
            if not block.streams:
                self._blocks.remove(block)
        del entries  # the last reference, unless somebody reads
        _release(charges)

    def _unlink(self, streams: dict[int, list[StreamEntry]]) -> list[Callable[[], None]]:
        """Forget entries that no block holds any more; they live on only with those who read them."""
        charges: list[Callable[[], None]] = []
        for stream_id, entries in streams.items():
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.remove(entries)
                if not stream.entries:
                    del self._streams[stream_id]
            charges += _take_charges(entries)
        return charges


def _oldest(block: _Block) -> dict[int, list[StreamEntry]]:
    """Take the oldest entries out of a block, in the order of the WAL: a portion, whatever the number of streams.

    In that order, since it is how memory was cut: pieces that lie together come free together.
    """
    streams, heads = block.streams, block.heads
    if heads is None:
        heads = block.heads = [(entries[0].wal_position, stream_id) for stream_id, entries in streams.items()]
        heapify(heads)
        block.entries = sum(map(len, streams.values()))
    size = _PORTION_ENTRIES_PER_STREAM * len(streams)
    if not _PORTION_ENTRIES < size < 2 * _PORTION_ENTRIES:
        size = _PORTION_ENTRIES
    cut, portions = inf, block.entries // size
    if heads and portions > 1:
        cut = heads[0][0] + max(0, block.wal_end - heads[0][0]) // portions
    portion: dict[int, list[StreamEntry]] = {}
    left = 2 * size  # the entries needn't be even
    while heads and left > 0 and heads[0][0] <= cut:
        stream_id = heads[0][1]
        entries = streams.get(stream_id)
        if entries is None:  # its stream was deleted meanwhile
            heappop(heads)
            continue
        end = max(1, min(left, bisect_right(entries, cut, key=_wal_position)))
        left -= end
        block.entries -= end
        if end < len(entries):
            portion[stream_id] = entries[:end]
            del entries[:end]
            heapreplace(heads, (entries[0].wal_position, stream_id))
        else:
            portion[stream_id] = streams.pop(stream_id)
            heappop(heads)
    return portion


def _take_charges(entries: Iterable[StreamEntry]) -> list[Callable[[], None]]:
    """The release of each charge; the entries lose theirs, so that it can't happen twice."""
    charges = []
    for entry in entries:
        if entry.charge is not None:
            charges.append(entry.charge.release)
            entry.charge = None
    return charges


def _release(charges: Iterable[Callable[[], None]]) -> None:
    for release in charges:
        release()


@asynccontextmanager
async def open_log_cache(settings: FifoLogCacheSettings, services: Services) -> AsyncIterator[FifoLogCache]:
    """A log cache that releases every charge when the context is left."""
    allocator = services.allocator
    cache = FifoLogCache(
        settings, (lambda: False) if allocator is None else (lambda: allocator.statistics().waiting > 0)
    )
    try:
        yield cache
    finally:
        cache.close()
