"""Block caches that are right for few readers who are never cancelled, and small numbers."""

from __future__ import annotations

__all__ = ()

from collections.abc import Sequence
from typing import Any

import anyio

from penstock.errors import PenstockError, UnavailableError
from penstock.spi.allocator import Allocator, Charge
from penstock.spi.block_cache import BlockLoader, BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._block_cache import PlainBlockCache, _Slot

KIND = "block_cache"

_MANY = "hundreds_of_readers_share_one_load"
_CANCELLED = "block_of_a_cancelled_reader_is_whole"
_FAILURE = "failure_of_one_load_harms_no_other"
_PLACES = "blocks_of_any_place_are_kept_apart"
_ACCOUNT = "cached_memory_is_on_the_account"


@mutant(KIND, "loads_for_every_hundredth", _MANY)
class LoadsForEveryHundredth(PlainBlockCache):
    """Has room for so many who wait for a load; the others load it themselves."""

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        if any(slot.waiting > 100 and not slot.done.is_set() for slot in slots):
            blocks = [block for block, slot in self._slots.items() if slot in slots]
            assert self._loader is not None
            await self._loader(blocks)
        return await super()._collect(slots)

    _loader: BlockLoader | None = None

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        self._loader = load
        super()._spawn(missing, slots, load)


@mutant(KIND, "strands_the_last_of_many", _MANY, hangs=True)
class StrandsTheLastOfMany(PlainBlockCache):
    """Wakes a hundred and fifty."""

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        if any(slot.waiting > 150 and not slot.done.is_set() for slot in slots):
            await anyio.Event().wait()
        return await super()._collect(slots)


@mutant(KIND, "cuts_blocks_of_the_cancelled", _CANCELLED)
class CutsBlocksOfTheCancelled(PlainBlockCache):
    """Keeps what had arrived when a reader was cancelled, though others wait."""

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        try:
            return await super()._collect(slots)
        except anyio.get_cancelled_exc_class():
            for slot in slots:
                if not slot.done.is_set() and slot.waiting > 1:
                    self._cut.append(slot)
            raise

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._cut: list[_Slot] = []

    async def _load(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        await super()._load(missing, slots, load)
        for slot in slots:
            if slot in self._cut and slot.data is not None:
                slot.data = bytes(slot.data)[: len(slot.data) // 2]


@mutant(KIND, "pins_blocks_of_the_cancelled", _CANCELLED)
class PinsBlocksOfTheCancelled(PlainBlockCache):
    """Still waits for a reader that is gone."""

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        try:
            return await super()._collect(slots)
        except anyio.get_cancelled_exc_class():
            slots[0].waiting += 1
            raise


@mutant(KIND, "ends_loads_of_the_cancelled", _CANCELLED)
class EndsLoadsOfTheCancelled(PlainBlockCache):
    """Ends the load when one of its readers is cancelled, and tells the others that it failed."""

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        try:
            return await super()._collect(slots)
        except anyio.get_cancelled_exc_class():
            loading = [
                block for block, slot in self._slots.items() if slot in slots and not slot.done.is_set()
            ]
            mine = [self._slots[block] for block in loading]
            self._settle_failed(loading, mine, UnavailableError("the reader is gone"))
            raise


@mutant(KIND, "fails_readers_of_a_cancelled_prefetch", "cancelled_prefetch_strands_nobody")
class FailsReadersOfACancelledPrefetch(PlainBlockCache):
    """What nobody wants for now needn't be loaded, whoever joined."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        try:
            return await super()._get_piece(blocks, load, prefetch)
        except anyio.get_cancelled_exc_class():
            loading = [block for block in blocks if prefetch and not self._slots[block].done.is_set()]
            mine = [self._slots[block] for block in loading]
            self._settle_failed(loading, mine, UnavailableError("the prefetch was cancelled"))
            raise


@mutant(KIND, "drops_all_when_one_fails", _FAILURE)
class DropsAllWhenOneFails(PlainBlockCache):
    """Begins anew after a failure."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        super()._settle_failed(missing, slots, error)
        if isinstance(error, UnavailableError):
            self.evict(2**60)


@mutant(KIND, "fails_all_when_one_fails", _FAILURE)
class FailsAllWhenOneFails(PlainBlockCache):
    """A store that fails fails for all that are being loaded."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        loading = [block for block, slot in self._slots.items() if not slot.done.is_set()]
        super()._settle_failed(loading, [self._slots[block] for block in loading], error)


@mutant(KIND, "leaks_failed_loads", _FAILURE)
class LeaksFailedLoads(PlainBlockCache):
    """Drops a block that failed, and counts it for ever."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        used = self._used
        super()._settle_failed(missing, slots, error)
        self._used = used - sum(block.size for block in missing[1:])


@mutant(KIND, "has_positions_of_32_bits", _PLACES)
class HasPositionsOf32Bits(PlainBlockCache):
    """Takes a block far inside an object for one at its beginning."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        return await super()._get_piece(
            [block._replace(position=block.position & 0xFFFFFFFF) for block in blocks], load, prefetch
        )


@mutant(KIND, "has_object_ids_of_32_bits", _PLACES)
class HasObjectIdsOf32Bits(PlainBlockCache):
    """Forgets another object with the one that was destroyed."""

    def forget_object(self, object_id: int) -> None:
        for alike in {block.object_id for block in self._slots}:
            if alike & 0xFFFFFFFF == object_id & 0xFFFFFFFF:
                super().forget_object(alike)


@mutant(KIND, "returns_each_block_once", _PLACES)
class ReturnsEachBlockOnce(PlainBlockCache):
    """A block that is asked twice comes once."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        return await super()._get_piece(list(dict.fromkeys(blocks)), load, prefetch)


@mutant(KIND, "charges_the_first_of_a_load", _ACCOUNT)
class ChargesTheFirstOfALoad(PlainBlockCache):
    """Charges one block for each load."""

    def _charges(self, missing: Sequence[BlockRef]) -> list[Charge | None] | None:
        first = super()._charges(missing[:1])
        return None if first is None else [*first, *(None for _ in missing[1:])]


@mutant(KIND, "charges_what_arrived", _ACCOUNT)
class ChargesWhatArrived(PlainBlockCache):
    """What is being loaded takes no memory yet."""

    def _charges(self, missing: Sequence[BlockRef]) -> list[Charge | None] | None:
        return [None for _ in missing]

    async def _load(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        await super()._load(missing, slots, load)
        for block, slot in zip(missing, slots, strict=True):
            if self._allocator is not None and slot.error is None:
                slot.charge = self._allocator.charge_nowait(block.size, "block_cache")


@mutant(KIND, "gives_way_block_by_block", "cache_gives_way_to_others")
class GivesWayBlockByBlock(PlainBlockCache):
    """Lets go of one block, whatever is wanted."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(min(bytes_wanted, 1))


@mutant(KIND, "keeps_what_is_protected", "cache_gives_way_to_others")
class KeepsWhatIsProtected(PlainBlockCache):
    """Half of it is for its own readers, whoever wants memory."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(min(bytes_wanted, self._used // 2))


@mutant(KIND, "drops_blocks_in_the_making", "eviction_during_loads_loses_nothing")
class DropsBlocksInTheMaking(PlainBlockCache):
    """Drops what is being loaded, too, if it is asked for everything, and tells its readers that there is no room."""

    def evict(self, bytes_wanted: int) -> int:
        if bytes_wanted > 10**8:
            loading = [block for block, slot in self._slots.items() if not slot.done.is_set()]
            mine = [self._slots[block] for block in loading]
            self._settle_failed(loading, mine, UnavailableError("no room"))
        return super().evict(bytes_wanted)


@mutant(KIND, "has_one_reader", "readers_do_not_disturb_each_other")
class HasOneReader(PlainBlockCache):
    """Compares each read with the one before, whose ever that was."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return super().readahead_bytes(0, offset, next_offset)


_OPENED: list[Any] = []


@mutant(KIND, "keeps_every_opener", "opening_leaves_nothing_behind")
class KeepsEveryOpener(PlainBlockCache):
    """Is in a list of all caches that there ever were."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        _OPENED.append(self)


@mutant(KIND, "gives_a_thousand_blocks", "one_read_may_want_thousands_of_blocks")
class GivesAThousandBlocks(PlainBlockCache):
    """One page of blocks is enough for most readers."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        return await super().get(blocks[:1000], load, prefetch=prefetch)


@mutant(KIND, "forgets_a_page_of_blocks", "object_of_thousands_of_blocks_is_forgotten")
class ForgetsAPageOfBlocks(PlainBlockCache):
    """Looks for the blocks of a destroyed object among the newest 4,096."""

    def forget_object(self, object_id: int) -> None:
        for block, slot in list(self._slots.items())[-4096:]:
            if block.object_id == object_id and slot.done.is_set() and not slot.waiting:
                self._drop(block)


@mutant(KIND, "evicts_at_any_rate", "eviction_frees_memory")
class EvictsAtAnyRate(PlainBlockCache):
    """Whoever asks gets a block, also if nothing is wanted."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(max(bytes_wanted, 1))


@mutant(KIND, "counts_what_pressure_evicts", "eviction_frees_memory")
class CountsWhatPressureEvicts(PlainBlockCache):
    """Counts what it evicts for itself, not for others."""

    def evict(self, bytes_wanted: int) -> int:
        before = self._evicted
        freed = super().evict(bytes_wanted)
        self._evicted = before
        return freed


@mutant(KIND, "takes_leaps_for_going_on", "sequential_readers_read_further_ahead")
class TakesLeapsForGoingOn(PlainBlockCache):
    """Everybody who comes from below is sequential."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        expected, window = self._readers.get(stream_id, (-1, 0))
        if 0 <= expected < offset:
            self._readers[stream_id] = (offset, window)
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "takes_reading_again_for_going_on", "sequential_readers_read_further_ahead")
class TakesReadingAgainForGoingOn(PlainBlockCache):
    """Whoever comes to where the last read was, is sequential."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        expected, window = self._readers.get(stream_id, (-1, 0))
        if expected == next_offset:
            self._readers[stream_id] = (offset, window)
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "takes_going_back_for_going_on", "sequential_readers_read_further_ahead")
class TakesGoingBackForGoingOn(PlainBlockCache):
    """Whoever reads what is beside the last read is sequential."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._starts: dict[int, int] = {}

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        if self._starts.get(stream_id) == next_offset:
            self._readers[stream_id] = (offset, self._readers[stream_id][1])
        self._starts[stream_id] = offset
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "reads_parts_of_bytes_ahead", "sequential_readers_read_further_ahead")
class ReadsPartsOfBytesAhead(PlainBlockCache):
    """Grows by a factor, which isn't whole."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        window: Any = super().readahead_bytes(stream_id, offset, next_offset) * 0.75
        return window  # type: ignore[no-any-return]


@mutant(KIND, "tells_who_joined_another_error", "failed_load_is_told_to_all_and_not_cached")
class TellsWhoJoinedAnotherError(PlainBlockCache):
    """Whoever didn't begin the load hears that it failed, and not why."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        joins = any(block in self._slots and not self._slots[block].done.is_set() for block in blocks)
        try:
            return await super().get(blocks, load, prefetch=prefetch)
        except PenstockError:
            if joins:
                raise UnavailableError("a load failed") from None
            raise


@mutant(KIND, "counts_eight_hits_a_read", "one_read_may_want_thousands_of_blocks")
class CountsEightHitsARead(PlainBlockCache):
    """Counts as many as it looked up at once."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        before = self._hits
        got = await super().get(blocks, load, prefetch=prefetch)
        self._hits = min(self._hits, before + 8)
        return got


@mutant(KIND, "counts_no_eviction_under_pressure", "cache_gives_way_to_others")
class CountsNoEvictionUnderPressure(PlainBlockCache):
    """Counts what made room for its own blocks."""

    def evict(self, bytes_wanted: int) -> int:
        evicted = self._evicted
        freed = super().evict(bytes_wanted)
        self._evicted = evicted
        return freed
