"""A log cache that keeps, per stream, a plain list of entries."""

from __future__ import annotations

__all__ = ("Block", "PlainLogCache")

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from penstock.errors import InvariantError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.log_cache import (
    LogCacheBlock,
    LogCacheCapabilities,
    LogCacheSpec,
    LogCacheStatistics,
    StreamEntry,
)
from penstock.spi.plugin import Services


class Block:
    """See ``penstock.spi.log_cache.LogCacheBlock``."""

    def __init__(self) -> None:
        self.streams: dict[int, list[StreamEntry]] = {}
        self.size_bytes = 0
        self.wal_end = 0
        self.uploaded = False

    @property
    def held_bytes(self) -> int:
        """What of it is in memory: less than its size, if streams were deleted since it was frozen."""
        return sum(len(entry.data) for entries in self.streams.values() for entry in entries)

    def add(self, entry: StreamEntry) -> None:
        self.streams.setdefault(entry.stream_id, []).append(entry)
        self.size_bytes += len(entry.data)
        self.wal_end = max(self.wal_end, entry.wal_position)


class PlainLogCache:
    """See ``penstock.spi.log_cache.LogCache``."""

    def __init__(self) -> None:
        self._frozen: list[Block] = []
        self._active = Block()
        self._dropped: set[int] = set()
        self._hits = self._misses = 0

    @property
    def capabilities(self) -> LogCacheCapabilities:
        return LogCacheCapabilities()

    @property
    def active_bytes(self) -> int:
        return self._active.size_bytes

    def put(self, entry: StreamEntry) -> None:
        newest = self._newest_of(entry.stream_id)
        if newest is not None and newest.next_offset != entry.base_offset:
            raise InvariantError(f"an entry doesn't continue its stream: {entry!r} after {newest!r}")
        self._active.add(entry)

    def _newest_of(self, stream_id: int) -> StreamEntry | None:
        for block in (self._active, *reversed(self._frozen)):
            if entries := block.streams.get(stream_id):
                return entries[-1]
        return None

    def _entries(self, stream_id: int) -> list[StreamEntry]:
        return [
            entry for block in (*self._frozen, self._active) for entry in block.streams.get(stream_id, ())
        ]

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        entries = self._entries(stream_id)
        first = next(
            (
                index
                for index, entry in enumerate(entries)
                if entry.base_offset <= start_offset < entry.next_offset
            ),
            None,
        )
        if first is None:
            self._misses += 1
            first = self._newest_run(entries)
            if first is None or entries[first].base_offset < start_offset:
                return []
        else:
            self._hits += 1
        return self._run(entries, first, end_offset, bytes_max)

    def _newest_run(self, entries: list[StreamEntry]) -> int | None:
        index = len(entries) - 1
        while index > 0 and entries[index - 1].next_offset == entries[index].base_offset:
            index -= 1
        return index if index >= 0 else None

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        run: list[StreamEntry] = []
        size = 0
        for entry in entries[first:]:
            if entry.base_offset >= end_offset or (run and run[-1].next_offset != entry.base_offset):
                break
            size += len(entry.data)
            if run and size > bytes_max:
                break
            run.append(entry)
        return run

    def freeze(self) -> Block | None:
        if not self._active.streams:
            return None
        block, self._active = self._active, Block()
        self._frozen.append(block)
        return block

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        assert isinstance(block, Block), "a cache gets its own blocks back"
        block.uploaded = True

    def evict(self, bytes_wanted: int) -> int:
        freed = 0
        for block in [block for block in self._frozen if block.uploaded]:
            if freed >= bytes_wanted:
                break
            if block not in self._frozen:
                continue  # who waited for the memory of another wanted this, too
            self._frozen.remove(block)
            freed += block.held_bytes
            for entries in block.streams.values():
                self._release(entries)
        return freed

    def drop_stream(self, stream_id: int) -> None:
        for block in (*self._frozen, self._active):
            entries = block.streams.pop(stream_id, [])
            if block is self._active:
                block.size_bytes -= sum(len(entry.data) for entry in entries)
            self._release(entries)

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        for entry in entries:
            charge, entry.charge = entry.charge, None
            if charge is not None:  # its release may ask for more: nothing leads to it any more
                charge.release()

    def close(self) -> None:
        """Release everything."""
        blocks = [*self._frozen, self._active]
        self._frozen, self._active = [], Block()
        for block in blocks:
            for entries in block.streams.values():
                self._release(entries)

    def statistics(self) -> LogCacheStatistics:
        return LogCacheStatistics(
            active_bytes=self._active.size_bytes,
            frozen_bytes=sum(block.held_bytes for block in self._frozen if not block.uploaded),
            uploaded_bytes=sum(block.held_bytes for block in self._frozen if block.uploaded),
            entries=sum(
                len(entries) for block in (*self._frozen, self._active) for entries in block.streams.values()
            ),
            hits=self._hits,
            misses=self._misses,
        )


class LogCacheSettings(Settings):
    """Nothing to set."""


@asynccontextmanager
async def _open(settings: LogCacheSettings, services: Services) -> AsyncIterator[PlainLogCache]:
    cache = PlainLogCache()
    try:
        yield cache
    finally:
        cache.close()


@hookimpl
def penstock_register_log_cache() -> LogCacheSpec[LogCacheSettings]:
    """Register the plain log cache."""
    return LogCacheSpec(
        name="reference",
        summary="A log cache that keeps, per stream, a plain list of entries.",
        settings=LogCacheSettings,
        capabilities=LogCacheCapabilities(),
        open=_open,
    )
