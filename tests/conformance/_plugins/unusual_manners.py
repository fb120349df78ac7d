"""Plugins that keep their contracts in unusual ways; ``manner`` chooses one."""

from __future__ import annotations

__all__ = ()

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
from pydantic import Field

from penstock.hookspecs import hookimpl
from penstock.spi import Settings, Size
from penstock.spi.allocator import AllocatorCapabilities, AllocatorSpec, AllocatorStatistics
from penstock.spi.block_cache import BlockCacheCapabilities, BlockCacheSpec, BlockLoader, BlockRef
from penstock.spi.metadata_log import (
    MetadataEntry,
    MetadataLogCapabilities,
    MetadataLogSpec,
    MetadataSnapshot,
)
from penstock.spi.plugin import Buffer
from penstock_conformance.reference._allocator import PlainAllocator, _Grant
from penstock_conformance.reference._block_cache import PlainBlockCache
from penstock_conformance.reference._metadata_log import PlainMetadataLog
from penstock_conformance.reference._plugin import closing


class KeepsNothing(PlainBlockCache):
    """Each block is loaded for each reader."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        got = await super().get(blocks, load, prefetch=prefetch)
        self._make_room(self._limit, ())
        return got


class KeepsOne(PlainBlockCache):
    """The last block only."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        got = await super().get(blocks, load, prefetch=prefetch)
        for block, slot in list(self._slots.items())[:-1]:
            if self._is_idle(block, slot):
                self._drop(block)
        return got


class CopiesEachResult(PlainBlockCache):
    """Fresh, writable bytes for each reader."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        return [bytearray(data) for data in await super().get(blocks, load, prefetch=prefetch)]


class PrefetchesNothing(PlainBlockCache):
    """There is never room for what is for later."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        return [] if prefetch else await super().get(blocks, load)


class EvictsByTheDozen(PlainBlockCache):
    """More than was wanted, so that it is asked seldom."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(max(bytes_wanted, 50_000) if bytes_wanted > 0 else 0)


class ChargesAFixedPart(PlainBlockCache):
    """Has memory of its own on the account."""

    def __init__(self, limit: int, allocator: Any) -> None:
        super().__init__(limit, allocator)
        self._fixed = allocator.charge_nowait(1000, "block_cache")

    def close(self) -> None:
        super().close()
        self._fixed.release()


class TakesItsTime(PlainMetadataLog):
    """Each call takes many turns."""

    async def _wait(self) -> None:
        for _ in range(15):
            await anyio.lowlevel.checkpoint()

    async def append(self, index: int, data: bytes) -> None:
        await self._wait()
        await super().append(index, data)
        await self._wait()

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        await self._wait()
        async for entry in super().read(start_index):
            await self._wait()
            yield entry


class WakesForNothing(PlainMetadataLog):
    """Who waits looks again and again."""

    async def wait_for_news(self, after_index: int) -> None:
        self._check_open()
        with anyio.move_on_after(0.002):
            await super().wait_for_news(after_index)
        self._check_open()


class LooksNowAndThen(PlainMetadataLog):
    """Nobody is woken."""

    async def wait_for_news(self, after_index: int) -> None:
        while self.statistics().last_index <= after_index:
            await anyio.sleep(0.02)
            self._check_open()


class RemembersTheNewest(PlainMetadataLog):
    """What was appended or read lately is read from memory, up to 20 MiB of it."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._newest: dict[int, MetadataEntry] = {}

    async def append(self, index: int, data: bytes) -> None:
        await super().append(index, data)
        self._keep(MetadataEntry(index, data))

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        kept = self._newest.get(index)
        return kept or self._keep(super()._decode(index, raw))

    def _keep(self, entry: MetadataEntry) -> MetadataEntry:
        self._newest[entry.index] = entry
        while sum(len(kept.data) for kept in self._newest.values()) > 20 * 2**20:
            del self._newest[next(iter(self._newest))]
        return entry


class ReturnsViews(PlainMetadataLog):
    """Views, of memory that nobody writes to."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        data: Any = memoryview(super()._decode(index, raw).data)
        return MetadataEntry(index, data)


class KeepsAllEntries(PlainMetadataLog):
    """Drops nothing."""

    async def _dropped(self) -> int:
        entries = [info.key async for info in self._store.list("log/")]
        return int(entries[0].rpartition("/")[2]) - 1 if entries else await super()._dropped()


class DropsAsMuchAsItMay(PlainMetadataLog):
    """Passes older snapshots over."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        there = await self.read_snapshot()
        if there is None or snapshot.index > there.index:
            await super().write_snapshot(snapshot)


class ReadsInOnes(PlainMetadataLog):
    """One entry a listing; and so meets what is appended meanwhile."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        while found := [entry async for entry in super().read(start_index)][:1]:
            yield found[0]
            start_index += 1


class RoundsUp(PlainAllocator):
    """Memory in whole pages."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        if not mapped or size > self._limit:
            return super()._grant(size, purpose, mapped, own)
        rounded = -(-size // 4096) * 4096
        grant = super()._grant(rounded, purpose, mapped, own)
        if grant is not None:
            grant.view = grant.view[:size]
            grant.size = rounded
            return _Rounded(grant, size)
        return None


class _Rounded(_Grant):
    """A part of what was granted."""

    def __init__(self, grant: _Grant, size: int) -> None:
        self._rounded, self.size, self.view, self.purpose = grant, size, grant.view, grant.purpose

    def release(self) -> None:
        self.view = memoryview(b"")
        self._rounded.release()


class GrantsLate(PlainAllocator):
    """A turn after it could."""

    async def take(self, *arguments: Any, **keys: Any) -> _Grant:
        grant = await super().take(*arguments, **keys)
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException:
            grant.release()
            raise
        return grant


class PressesTwice(PlainAllocator):
    """Asks again for a little."""

    def _press(self, size: int) -> int:
        return super()._press(size) or super()._press(1)


class AsksForMore(PlainAllocator):
    """Twice as much as is wanted."""

    def _press(self, size: int) -> int:
        return super()._press(2 * size)


class IsAligned(PlainAllocator):
    """Mappings begin with pages."""

    @property
    def capabilities(self) -> AllocatorCapabilities:
        return AllocatorCapabilities(alignment_bytes=4096)


class HasIdleMemory(PlainAllocator):
    """Tells of a purpose that has nothing."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        return dataclasses.replace(told, used_by_purpose={**told.used_by_purpose, "idle": 0})


class Manner(Settings):
    """Which of them."""

    manner: str = Field(description="which plugin")
    limit: Size = Field(default=4 * 2**20, description="memory")


@hookimpl
def penstock_register_block_cache() -> BlockCacheSpec[Manner]:
    """Register the unusual block caches."""
    return BlockCacheSpec(
        name="unusual",
        summary="unusual",
        settings=Manner,
        capabilities=BlockCacheCapabilities(readahead=True),
        open=closing(
            lambda settings, services: globals()[settings.manner](settings.limit, services.allocator)
        ),
    )


@hookimpl
def penstock_register_metadata_log() -> MetadataLogSpec[Manner]:
    """Register the unusual metadata logs."""
    return MetadataLogSpec(
        name="unusual",
        summary="unusual",
        settings=Manner,
        capabilities=MetadataLogCapabilities(entry_bytes_max=256 * 1024),
        open=closing(lambda settings, services: globals()[settings.manner](services.object_store)),
        requires=frozenset({"put_if_absent", "ordered_listing"}),
        key_prefixes=lambda _: ("log/", "snapshot/"),
    )


@hookimpl
def penstock_register_allocator() -> AllocatorSpec[Manner]:
    """Register the unusual allocators."""
    return AllocatorSpec(
        name="unusual",
        summary="unusual",
        settings=Manner,
        capabilities=AllocatorCapabilities(),
        open=closing(lambda settings, _: globals()[settings.manner](settings.limit)),
    )
