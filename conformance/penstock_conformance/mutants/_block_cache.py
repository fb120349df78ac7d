"""Broken block caches."""

from __future__ import annotations

__all__ = ()

import dataclasses
from collections.abc import Sequence

from pydantic import Field

from penstock.errors import NotFoundError, UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi.allocator import Allocator
from penstock.spi.block_cache import (
    BlockCacheCapabilities,
    BlockCacheSpec,
    BlockCacheStatistics,
    BlockLoader,
    BlockRef,
)
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import DEFECT, NAME, SUMMARY, make, mutant
from penstock_conformance.reference._block_cache import BlockCacheSettings, PlainBlockCache, _Slot
from penstock_conformance.reference._plugin import closing

KIND = "block_cache"


@mutant(KIND, "loads_twice", "concurrent_readers_share_one_load")
class LoadsTwice(PlainBlockCache):
    """Doesn't know what is being loaded."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        if any(block in self._slots and not self._slots[block].done.is_set() for block in blocks):
            return await load(blocks)
        return await super()._get_piece(blocks, load, prefetch)


@mutant(
    KIND,
    "strands_waiters",
    "cancelled_loader_strands_nobody",
    "lone_cancelled_read_leaves_the_cache_usable",
    hangs=True,
)
class StrandsWaiters(PlainBlockCache):
    """The reader that comes first loads for all, and when it is cancelled nobody does."""

    _pending: tuple[Sequence[BlockRef], Sequence[_Slot], BlockLoader] | None = None

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        self._pending = (missing, slots, load)

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        if self._pending is not None:
            missing, mine, load = self._pending
            self._pending = None
            for block, slot, data in zip(missing, mine, await load(missing), strict=True):
                assert self._slots[block] is slot
                slot.data = data
                slot.done.set()
        return await super()._collect(slots)


@mutant(KIND, "caches_failures", "failed_load_is_told_to_all_and_not_cached")
class CachesFailures(PlainBlockCache):
    """Remembers that a block couldn't be loaded."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        for slot in slots:
            slot.error = error
            slot.done.set()


@mutant(KIND, "pays_for_what_is_not_there", "no_kind_of_error_is_kept")
class PaysForWhatIsNotThere(PlainBlockCache):
    """Gives memory back when the store fails, and forgets it when an object is gone."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        if isinstance(error, NotFoundError):
            for slot in slots:
                slot.charge = None
        super()._settle_failed(missing, slots, error)


@mutant(KIND, "knows_all_blocks_that_ever_were", "blocks_that_are_gone_are_forgotten", level=5)
class KnowsAllBlocksThatEverWere(PlainBlockCache):
    """Has a number for each, to tell a block that comes for the second time."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._ever: set[int] = set()

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        self._ever.update(hash(block) for block in missing)
        super()._spawn(missing, slots, load)


@mutant(KIND, "exceeds_its_limit", "memory_stays_under_the_limit", "prefetch_pushes_out_nobody")
class ExceedsItsLimit(PlainBlockCache):
    """Lets every read in at once."""

    def _make_room(self, wanted: int, keep: Sequence[BlockRef]) -> bool:
        super()._make_room(wanted, keep)
        return True


@mutant(KIND, "leaks_charges", "leaving_the_context_releases_everything", "eviction_frees_memory")
class LeaksCharges(PlainBlockCache):
    """Drops blocks and keeps their account."""

    def _drop(self, block: BlockRef) -> int:
        self._slots[block].charge = None
        return super()._drop(block)


@mutant(KIND, "returns_in_load_order", "get_returns_the_blocks_in_order")
class ReturnsInLoadOrder(PlainBlockCache):
    """What was cached comes first."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        blocks = sorted(blocks, key=lambda block: block not in self._slots)
        return await super()._get_piece(blocks, load, prefetch)


@mutant(KIND, "leaves_readers_waiting", "readers_are_answered_at_the_end")
class LeavesReadersWaiting(PlainBlockCache):
    """Ends without a word to those who wait."""

    def close(self) -> None:
        self._tasks.clear()
        for block, slot in list(self._slots.items()):
            if slot.done.is_set():
                self._drop(block)


@mutant(KIND, "mixes_up_objects", "get_returns_the_blocks_in_order", "random_reads_agree_with_the_store")
class MixesUpObjects(PlainBlockCache):
    """Finds blocks by their position only."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        known = {block.position: block for block in self._slots}
        return await super()._get_piece(
            [known.get(block.position, block) for block in blocks], load, prefetch
        )


@mutant(KIND, "says_that_it_keeps", "cached_blocks_are_not_loaded_again")
class SaysThatItKeeps(PlainBlockCache):
    """Drops every block once it was read, and tells that it has them."""

    def statistics(self) -> BlockCacheStatistics:
        return dataclasses.replace(super().statistics(), blocks=self._misses)

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        got = await super().get(blocks, load, prefetch=prefetch)
        self.evict(2**60)
        return got


@mutant(KIND, "remembers_destroyed_objects", "forgotten_objects_are_dropped")
class RemembersDestroyedObjects(PlainBlockCache):
    """Never forgets."""

    def forget_object(self, object_id: int) -> None:
        """Who knows, it may come back."""


@mutant(KIND, "reads_ahead_for_everybody", "sequential_readers_read_further_ahead")
class ReadsAheadForEverybody(PlainBlockCache):
    """One window for all."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return 2**20


@mutant(KIND, "drops_awaited_blocks", "awaited_blocks_are_not_evicted")
class DropsAwaitedBlocks(PlainBlockCache):
    """Under pressure, loads under way are given up."""

    def evict(self, bytes_wanted: int) -> int:
        loading = [block for block, slot in self._slots.items() if not slot.done.is_set()]
        self._settle_failed(loading, [self._slots[block] for block in loading], UnavailableError("no room"))
        return super().evict(bytes_wanted)


@mutant(KIND, "counts_what_is_on_its_way_as_there", "concurrent_readers_share_one_load")
class CountsWhatIsOnItsWayAsThere(PlainBlockCache):
    """Blocks are those that it knows of."""

    def statistics(self) -> BlockCacheStatistics:
        return dataclasses.replace(super().statistics(), blocks=len(self._slots))


class DefectiveBlockCache(BlockCacheSettings):
    """Which mutant it is, and the limit."""

    defect: str = Field(description=DEFECT)


@hookimpl
def penstock_register_block_cache() -> BlockCacheSpec[DefectiveBlockCache]:
    """Register the broken block caches."""
    return BlockCacheSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectiveBlockCache,
        capabilities=BlockCacheCapabilities(readahead=True),
        open=closing(
            lambda settings, services: make(
                "block_cache", settings.defect, settings.limit, services.allocator
            )
        ),
    )
