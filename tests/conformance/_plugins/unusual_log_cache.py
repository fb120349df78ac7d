"""Log caches that keep the contract and are otherwise unlike those of Penstock: ``way`` says how.

A suite that accuses one of them asks for more than the contract does.
"""

from __future__ import annotations

__all__ = ("WAYS", "penstock_register_log_cache")

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio.lowlevel import checkpoint

from penstock.errors import InvariantError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings as BaseSettings
from penstock.spi.log_cache import (
    LogCacheBlock,
    LogCacheCapabilities,
    LogCacheSpec,
    LogCacheStatistics,
    StreamEntry,
)
from penstock.spi.plugin import Buffer, Services


@dataclass(frozen=True)
class Way:
    """What is unusual about a cache."""

    #: Blocks are evicted as a whole.
    by_blocks: bool = False
    #: Entries are others than those that were put, from then on or from their freeze on.
    copies: bool = False
    compacts: bool = False
    #: Frozen blocks look their streams up in one list, and give tuples.
    flat: bool = False
    #: Streams that were deleted stay in frozen blocks until these go.
    drops_with_blocks: bool = False


WAYS = {
    "entry_by_entry": Way(),
    "evicts_blocks": Way(by_blocks=True),
    "copies": Way(copies=True),
    "compacts_frozen_blocks": Way(compacts=True),
    "flat": Way(flat=True),
    "drops_with_blocks": Way(drops_with_blocks=True),
}


class Settings(BaseSettings):
    way: str = "entry_by_entry"


class Block:
    """See ``penstock.spi.log_cache.LogCacheBlock``."""

    def __init__(self, flat: bool) -> None:
        self.entries: list[StreamEntry] = []
        self.uploaded = False
        self._flat = flat
        self._frozen: Mapping[int, Sequence[StreamEntry]] | None = None

    @property
    def streams(self) -> Mapping[int, Sequence[StreamEntry]]:
        if self._frozen is not None:
            return self._frozen
        found: dict[int, list[StreamEntry]] = {}
        for entry in self.entries:
            found.setdefault(entry.stream_id, []).append(entry)
        return Flat(self.entries) if self._flat else found

    @property
    def size_bytes(self) -> int:
        return sum(len(entry.data) for entry in self.entries)

    @property
    def wal_end(self) -> int:
        return max(entry.wal_position for entry in self.entries)


class Flat(Mapping[int, Sequence[StreamEntry]]):
    """A mapping that is no dict, with sequences that are no lists."""

    def __init__(self, entries: list[StreamEntry]) -> None:
        self._entries = tuple(entries)

    def __getitem__(self, stream_id: int) -> Sequence[StreamEntry]:
        found = tuple(entry for entry in self._entries if entry.stream_id == stream_id)
        if not found:
            raise KeyError(stream_id)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(dict.fromkeys(entry.stream_id for entry in self._entries))

    def __len__(self) -> int:
        return len({entry.stream_id for entry in self._entries})


class Snapshot:
    """What a frozen block is for others: nothing that happens here changes it."""

    def __init__(self, block: Block) -> None:
        self.streams = block.streams
        self.size_bytes = block.size_bytes
        self.wal_end = block.wal_end


def _copy(entry: StreamEntry, data: Buffer) -> StreamEntry:
    return StreamEntry(
        entry.stream_id,
        entry.base_offset,
        entry.next_offset,
        entry.time_ms,
        memoryview(data),
        entry.charge,
        entry.wal_position,
        entry.checksum,
    )


class UnusualCache:
    """See ``penstock.spi.log_cache.LogCache``: a list of blocks, oldest first, the last one active."""

    capabilities = LogCacheCapabilities()

    def __init__(self, way: Way) -> None:
        self._way = way
        self._blocks = [Block(way.flat)]
        self._given: dict[int, tuple[Snapshot, Block]] = {}
        self._streams: dict[int, list[StreamEntry]] = {}
        self._hits = self._misses = 0

    @property
    def active_bytes(self) -> int:
        return self._blocks[-1].size_bytes

    def put(self, entry: StreamEntry) -> None:
        cached = self._streams.setdefault(entry.stream_id, [])
        if cached and cached[-1].next_offset != entry.base_offset:
            raise InvariantError(
                f"the entry isn't next: stream={entry.stream_id} expected={cached[-1].next_offset}"
            )
        if self._way.copies:
            entry = _copy(entry, bytes(entry.data))
        cached.append(entry)
        self._blocks[-1].entries.append(entry)

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        cached = self._streams.get(stream_id, []) if start_offset < end_offset else []
        found = [at for at, e in enumerate(cached) if e.base_offset <= start_offset < e.next_offset]
        if found:
            begin = found[0]
        else:  # the newest continuous range, if it begins in what is asked for
            begin = len(cached) - 1
            while begin > 0 and cached[begin - 1].next_offset == cached[begin].base_offset:
                begin -= 1
            if begin < 0 or not start_offset < cached[begin].base_offset < end_offset:
                self._misses += 1
                return ()
        run: list[StreamEntry] = []
        size = 0
        for entry in cached[begin:]:
            size += len(entry.data)
            if entry.base_offset >= end_offset or (run and run[-1].next_offset != entry.base_offset):
                break
            if run and size > bytes_max:
                break
            run.append(entry)
        if found:
            self._hits += 1
        else:
            self._misses += 1
        return run

    def freeze(self) -> Snapshot | None:
        block = self._blocks[-1]
        if not block.entries:
            return None
        self._blocks.append(Block(self._way.flat))
        if self._way.compacts:
            arena = memoryview(b"".join(entry.data for entry in block.entries))
            start = 0
            for at, entry in enumerate(block.entries):
                end = start + len(entry.data)
                block.entries[at] = _copy(entry, arena[start:end])
                cached = self._streams[entry.stream_id]
                cached[cached.index(entry)] = block.entries[at]
                start = end
        given = Snapshot(block)
        self._given[id(given)] = given, block
        return given

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        _, ours = self._given.pop(id(block))
        ours.uploaded = True

    def evict(self, bytes_wanted: int) -> int:
        freed = 0
        for block in [block for block in self._blocks if block.uploaded]:
            while block.entries and freed < bytes_wanted:
                for entry in list(block.entries) if self._way.by_blocks else block.entries[:1]:
                    if entry in block.entries:  # or it went for somebody who waited for another's memory
                        freed += len(entry.data)
                        self._drop(block, entry)
            if not block.entries and block in self._blocks:
                self._blocks.remove(block)
        return freed

    def _drop(self, block: Block, entry: StreamEntry) -> None:
        block.entries.remove(entry)
        cached = self._streams.get(entry.stream_id, [])
        if entry in cached:
            cached.remove(entry)
            if not cached:
                del self._streams[entry.stream_id]
        if entry.charge is not None:
            entry.charge.release()

    def drop_stream(self, stream_id: int) -> None:
        gone = self._streams.pop(stream_id, [])
        for block in self._blocks:
            if not self._way.drops_with_blocks or block is self._blocks[-1]:
                mine = [entry for entry in gone if entry in block.entries]
                for entry in mine:
                    block.entries.remove(entry)
                for entry in mine:
                    if entry.charge is not None:
                        entry.charge.release()

    def statistics(self) -> LogCacheStatistics:
        *frozen, active = self._blocks
        return LogCacheStatistics(
            active_bytes=active.size_bytes,
            frozen_bytes=sum(block.size_bytes for block in frozen if not block.uploaded),
            uploaded_bytes=sum(block.size_bytes for block in frozen if block.uploaded),
            entries=sum(len(block.entries) for block in self._blocks),
            hits=self._hits,
            misses=self._misses,
        )

    def close(self) -> None:
        blocks, self._blocks = self._blocks, [Block(self._way.flat)]
        for block in blocks:
            for entry in block.entries:
                if entry.charge is not None:
                    entry.charge.release()


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[UnusualCache]:
    await checkpoint()
    cache = UnusualCache(WAYS[settings.way])
    try:
        yield cache
    finally:
        cache.close()


@hookimpl
def penstock_register_log_cache() -> LogCacheSpec[Settings]:
    return LogCacheSpec(
        name="unusual_log_cache",
        summary="keeps the contract in an unusual way",
        settings=Settings,
        capabilities=LogCacheCapabilities(),
        open=_open,
    )
