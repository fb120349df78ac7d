"""Block caches that are wrong about great numbers, odd orders, other readers, what they count, and their end."""

from __future__ import annotations

__all__ = ()

import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from penstock.errors import ClosedError, NotFoundError, UnavailableError
from penstock.spi.block_cache import BlockCacheStatistics, BlockLoader, BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._block_cache import PlainBlockCache, _Slot

KIND = "block_cache"

_MODEL = "random_histories_agree_with_a_model"
_SIZES = "blocks_of_any_size_are_whole"
_END = "end_leaves_no_load_and_no_reader"
_READERS = "each_reader_is_known_by_its_number"


class _Renames(PlainBlockCache):
    """Keeps blocks under names of its own."""

    def _name(self, block: BlockRef) -> BlockRef:
        raise NotImplementedError

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        named = {self._name(block): block for block in blocks}

        async def load_named(refs: Sequence[BlockRef]) -> Sequence[Buffer]:
            wanted = sorted(named[ref] for ref in refs)
            loaded = dict(zip(wanted, await load(wanted), strict=True))
            return [loaded[named[ref]] for ref in refs]

        return await super().get([self._name(block) for block in blocks], load_named, prefetch=prefetch)


@mutant(KIND, "has_48_bits_for_an_object", _MODEL)
class Has48BitsForAnObject(_Renames):
    """Takes two objects for one."""

    def _name(self, block: BlockRef) -> BlockRef:
        return block._replace(object_id=block.object_id % 2**48)


@mutant(KIND, "adds_object_and_position", _MODEL)
class AddsObjectAndPosition(_Renames):
    """Makes one number of two that overlap."""

    def _name(self, block: BlockRef) -> BlockRef:
        return BlockRef(0, (block.object_id << 20) + block.position, block.size)

    def forget_object(self, object_id: int) -> None:
        pass


class _LoadsOtherwise(PlainBlockCache):
    """Asks loaders in another way."""

    async def _load(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        async def ask(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
            return await self._ask(blocks, load)

        await super()._load(missing, slots, ask)

    async def _ask(self, blocks: Sequence[BlockRef], load: BlockLoader) -> Sequence[Buffer]:
        raise NotImplementedError


@mutant(KIND, "uses_memory_of_evicted_blocks_again", _MODEL)
class UsesMemoryOfEvictedBlocksAgain(_LoadsOtherwise):
    """A reader that still has a block sees the next one in it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free: dict[int, list[bytearray]] = {}

    async def _ask(self, blocks: Sequence[BlockRef], load: BlockLoader) -> Sequence[Buffer]:
        made = []
        for data in await load(blocks):
            free = self._free.get(len(data))
            memory = free.pop() if free else bytearray(len(data))
            memory[:] = data
            made.append(memory)
        return made

    def _drop(self, block: BlockRef) -> int:
        data = self._slots[block].data
        if isinstance(data, bytearray):
            self._free.setdefault(len(data), []).append(data)
        return super()._drop(block)


@mutant(KIND, "loads_in_pieces_of_64", _MODEL)
class LoadsInPiecesOf64(_LoadsOtherwise):
    """Makes several requests of what is one."""

    async def _ask(self, blocks: Sequence[BlockRef], load: BlockLoader) -> Sequence[Buffer]:
        pieces = [await load(blocks[start : start + 64]) for start in range(0, len(blocks), 64)]
        return [data for piece in pieces for data in piece]


@mutant(KIND, "loads_many_backwards", _MODEL)
class LoadsManyBackwards(_LoadsOtherwise):
    """Wants the last ones first."""

    async def _ask(self, blocks: Sequence[BlockRef], load: BlockLoader) -> Sequence[Buffer]:
        return await load(blocks) if len(blocks) < 16 else (await load(blocks[::-1]))[::-1]


@mutant(KIND, "knows_one_loader_of_an_object", _MODEL)
class KnowsOneLoaderOfAnObject(PlainBlockCache):
    """Loads with what its first reader gave, who may be gone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._loaders: dict[int, BlockLoader] = {}

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        return await super().get(
            blocks, self._loaders.setdefault(blocks[0].object_id, load) if blocks else load, prefetch=prefetch
        )


@mutant(KIND, "loads_what_it_has_beside_much", _MODEL)
class LoadsWhatItHasBesideMuch(PlainBlockCache):
    """Takes a read of many blocks from the store as a whole."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        async def load_all(refs: Sequence[BlockRef]) -> Sequence[Buffer]:
            wanted = sorted(set(blocks)) if len(blocks) > 8 else list(refs)
            loaded = dict(zip(wanted, await load(wanted), strict=True))
            return [loaded[ref] for ref in refs]

        return await super().get(blocks, load_all, prefetch=prefetch)


@mutant(KIND, "damages_large_blocks_that_are_cached", _SIZES)
class DamagesLargeBlocksThatAreCached(PlainBlockCache):
    """Is right about a block beyond 1 MiB the first time."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        there = [block in self._slots for block in blocks]
        got = []
        for cached, data in zip(there, await super().get(blocks, load, prefetch=prefetch), strict=True):
            wrong = bytearray(data) if cached and len(data) > 2**20 else None
            if wrong is not None:
                wrong[-1] ^= 1
            got.append(data if wrong is None else wrong)
        return got


@mutant(KIND, "keeps_what_is_larger_than_its_limit", _SIZES)
class KeepsWhatIsLargerThanItsLimit(PlainBlockCache):
    """Lets one block in that is too large, and keeps it."""

    def _make_room(self, wanted: int, keep: Sequence[BlockRef]) -> bool:
        return True if not wanted else super()._make_room(wanted, keep)


@mutant(KIND, "remembers_the_second_failure", _MODEL)
class RemembersTheSecondFailure(PlainBlockCache):
    """Thinks that what failed twice will fail."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._failures: list[tuple[set[BlockRef], Exception]] = []

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        if len(self._failures) > 1 and self._failures[-1][0] & set(blocks):
            raise self._failures.pop()[1]
        try:
            return await super().get(blocks, load, prefetch=prefetch)
        except UnavailableError as error:
            self._failures.append((set(blocks), error))
            raise


@mutant(KIND, "tells_who_joined_something_else", _MODEL)
class TellsWhoJoinedSomethingElse(PlainBlockCache):
    """The loader's error is that of its own reader only."""

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        try:
            return await super()._collect(slots)
        except UnavailableError as error:
            if slots[0].waiting > 1:
                raise UnavailableError("the load of another reader failed") from error
            raise


@mutant(KIND, "keeps_charges_of_failed_loads", _MODEL)
class KeepsChargesOfFailedLoads(PlainBlockCache):
    """Gives the first one back."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        for slot in slots[1:]:
            slot.charge = None
        super()._settle_failed(missing, slots, error)


@mutant(KIND, "takes_a_failed_prefetch_for_empty", _MODEL)
class TakesAFailedPrefetchForEmpty(PlainBlockCache):
    """Whoever reads what was read ahead in vain gets nothing, and isn't told."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        async def load_quietly(refs: Sequence[BlockRef]) -> Sequence[Buffer]:
            data = await load(refs)
            return [b""] * len(data) if prefetch and len(data) > 4 else data

        return await super().get(blocks, load_quietly, prefetch=prefetch)


@mutant(KIND, "begins_to_count_with_each_object", _MODEL)
class BeginsToCountWithEachObject(PlainBlockCache):
    """Forgets its counters with an object."""

    def forget_object(self, object_id: int) -> None:
        super().forget_object(object_id)
        self._hits = self._misses = 0


@mutant(KIND, "counts_loads_for_misses", _MODEL)
class CountsLoadsForMisses(PlainBlockCache):
    """One load is one miss, of however many blocks."""

    _loads = 0

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        self._loads += 1
        super()._spawn(missing, slots, load)

    def statistics(self) -> BlockCacheStatistics:
        return dataclasses.replace(super().statistics(), misses=self._loads)


@mutant(KIND, "counts_what_is_gone_twice", _MODEL)
class CountsWhatIsGoneTwice(PlainBlockCache):
    """What makes room is counted where it is dropped, too."""

    def _drop(self, block: BlockRef) -> int:
        self._evicted += 1
        return super()._drop(block)


@mutant(KIND, "has_one_snapshot_of_figures", _MODEL)
class HasOneSnapshotOfFigures(PlainBlockCache):
    """Gives everybody the same object, which goes along."""

    _told: BlockCacheStatistics | None = None

    def statistics(self) -> BlockCacheStatistics:
        now = super().statistics()
        self._told = self._told or now
        for name in BlockCacheStatistics.__dataclass_fields__:
            object.__setattr__(self._told, name, getattr(now, name))
        return self._told


@mutant(KIND, "evicts_64_at_most", _MODEL)
class Evicts64AtMost(PlainBlockCache):
    """Ends before there is what was wanted."""

    def evict(self, bytes_wanted: int) -> int:
        first = sum(block.size for block in list(self._slots)[:64])
        return super().evict(min(bytes_wanted, first))


@mutant(KIND, "forgets_64_at_most", _MODEL)
class Forgets64AtMost(PlainBlockCache):
    """Keeps what a large object has beyond."""

    def forget_object(self, object_id: int) -> None:
        for block in [block for block in self._slots if block.object_id == object_id][:64]:
            if self._slots[block].done.is_set() and not self._slots[block].waiting:
                self._drop(block)


@mutant(KIND, "fails_who_waits_for_a_forgotten_object", _MODEL)
class FailsWhoWaitsForAForgottenObject(PlainBlockCache):
    """Whoever came before the object was destroyed gets nothing of it."""

    def forget_object(self, object_id: int) -> None:
        super().forget_object(object_id)
        for block, slot in list(self._slots.items()):
            if block.object_id == object_id and not slot.done.is_set():
                slot.error = NotFoundError("the object was destroyed")


@mutant(KIND, "lets_loads_run_on", _END)
class LetsLoadsRunOn(PlainBlockCache):
    """Answers its readers at the end, and leaves their loads."""

    def close(self) -> None:
        self._tasks = set()
        super().close()


@mutant(KIND, "leaves_who_waits_for_room", _END, hangs=True)
class LeavesWhoWaitsForRoom(PlainBlockCache):
    """Answers those who wait for a load."""

    def _tell_room(self) -> None:
        if not self._closed:
            super()._tell_room()


@mutant(KIND, "loads_after_its_end", _END)
class LoadsAfterItsEnd(PlainBlockCache):
    """Passes on whoever comes late."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        return await load(blocks) if self._closed else await super().get(blocks, load, prefetch=prefetch)


@mutant(KIND, "refuses_pressure_after_its_end", _END)
class RefusesPressureAfterItsEnd(PlainBlockCache):
    """Stands in the way of whoever needs memory later."""

    def _on_pressure(self, bytes_wanted: int) -> None:
        if self._closed:
            raise ClosedError("the block cache is closed")
        super()._on_pressure(bytes_wanted)


@mutant(KIND, "promises_memory_that_it_has_not", "reader_waits_for_memory_of_others", hangs=True)
class PromisesMemoryThatItHasNot(PlainBlockCache):
    """Says that it let go of what was wanted: it's asked for ever."""

    def _on_pressure(self, bytes_wanted: int) -> Any:
        self.evict(bytes_wanted)
        return bytes_wanted


@mutant(KIND, "keeps_its_loaders", "loaders_are_let_go")
class KeepsItsLoaders(PlainBlockCache):
    """Has a reader's state as long as it is open."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._loaders: list[BlockLoader] = []

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        self._loaders.append(load)
        super()._spawn(missing, slots, load)


@mutant(KIND, "shares_its_blocks_with_all_others", "two_caches_have_nothing_to_do_with_each_other")
class SharesItsBlocksWithAllOthers(_LoadsOtherwise):
    """Single blocks are those of the process."""

    _all: ClassVar[dict[BlockRef, Buffer]] = {}

    async def _ask(self, blocks: Sequence[BlockRef], load: BlockLoader) -> Sequence[Buffer]:
        if any(block not in self._all for block in blocks):
            self._all.update(zip(blocks, await load(blocks), strict=True))
        return [self._all[block] for block in blocks]


@mutant(KIND, "knows_64_readers", _READERS)
class Knows64Readers(PlainBlockCache):
    """Takes readers whose numbers are alike for one."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return super().readahead_bytes(stream_id % 64, offset, next_offset)


@mutant(KIND, "has_32_bits_for_a_reader", _READERS)
class Has32BitsForAReader(PlainBlockCache):
    """Takes readers whose numbers are alike for one."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return super().readahead_bytes(stream_id % 2**32, offset, next_offset)


@mutant(KIND, "tires_of_long_readers", _READERS)
class TiresOfLongReaders(PlainBlockCache):
    """Gives less to who reads for long."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        window = super().readahead_bytes(stream_id, offset, next_offset)
        return window // 4 if offset % 2**30 > 1000 else window


@mutant(KIND, "calls_the_loader_for_no_block", _MODEL)
class CallsTheLoaderForNoBlock(PlainBlockCache):
    """A read of nothing is a request, too."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        return await super().get(blocks, load, prefetch=prefetch) if blocks else await load([])


@mutant(KIND, "remembers_what_was_missing", "no_kind_of_error_is_kept")
class RemembersWhatWasMissing(PlainBlockCache):
    """Caches that an object isn't there."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        super()._settle_failed(missing, slots, error)
        if isinstance(error, NotFoundError):
            self.__dict__.setdefault("_missing", set()).update(missing)

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        if not self.__dict__.get("_missing", set()).isdisjoint(blocks):
            raise NotFoundError("the object wasn't there a while ago")
        return await super().get(blocks, load, prefetch=prefetch)


@mutant(KIND, "counts_what_it_reads_ahead_as_found", _MODEL)
class CountsWhatItReadsAheadAsFound(PlainBlockCache):
    """A block that is read ahead is there, now, so it is a hit."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        found = await super().get(blocks, load, prefetch=prefetch)
        if prefetch:
            self._hits += len(found)
        return found


@mutant(KIND, "evicts_half_of_much", _MODEL)
class EvictsHalfOfMuch(PlainBlockCache):
    """Of hundreds of kilobytes that are wanted it frees the half."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(bytes_wanted if bytes_wanted < 400_000 else bytes_wanted // 2)


# --- what stays


@mutant(KIND, "keeps_what_was_forgotten_half_way", "long_use_grows_nothing", level=5)
class KeepsWhatWasForgottenHalfWay(PlainBlockCache):
    """Forgets the blocks that it has, and then keeps those that were on their way."""

    def _drop_forgotten(self, block: BlockRef, slot: _Slot) -> None:
        if not self._tasks:
            super()._drop_forgotten(block, slot)


@mutant(KIND, "keeps_every_error", "long_use_grows_nothing", level=5)
class KeepsEveryError(PlainBlockCache):
    """Has a list of what went wrong."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._errors: list[Exception] = []

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        self._errors.append(error)
        super()._settle_failed(missing, slots, error)


@mutant(KIND, "remembers_every_reader", "readers_that_came_once_are_forgotten", level=5)
class RemembersEveryReader(PlainBlockCache):
    """Knows where each stream was read last, for ever."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        self.__dict__.setdefault("_ends", {})[stream_id] = next_offset
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "is_left_open_by_an_error", _END, hangs=True)
class IsLeftOpenByAnError(PlainBlockCache):
    """Closes behind its ``yield``, without ``try`` and ``finally``."""

    def close(self) -> None:
        if sys.exc_info()[1] is None:
            super().close()


@mutant(KIND, "takes_the_first_object_for_none", "forgotten_objects_are_dropped")
class TakesTheFirstObjectForNone(PlainBlockCache):
    """Asks whether there is a number, and there is 0."""

    def forget_object(self, object_id: int) -> None:
        if object_id:
            super().forget_object(object_id)


@mutant(KIND, "calls_all_that_goes_wasted", "eviction_frees_memory")
class CallsAllThatGoesWasted(PlainBlockCache):
    """Doesn't know what was read ahead, nor what was read."""

    def statistics(self) -> BlockCacheStatistics:
        told = super().statistics()
        return dataclasses.replace(told, wasted=told.evicted)


@mutant(KIND, "has_readers_in_common", "two_caches_have_nothing_to_do_with_each_other")
class HasReadersInCommon(PlainBlockCache):
    """Keeps what it knows of readers in the class."""

    _known: ClassVar[dict[int, tuple[int, int]]] = {}

    def __init__(self, limit: int, allocator: Any) -> None:
        super().__init__(limit, allocator)
        self._readers = self._known


@mutant(KIND, "keeps_its_last_loader", "loaders_are_let_go")
class KeepsItsLastLoader(PlainBlockCache):
    """Has it at hand for whatever comes next."""

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        self._last_loader = load
        super()._spawn(missing, slots, load)


@mutant(KIND, "keeps_its_last_error", "loaders_are_let_go")
class KeepsItsLastError(PlainBlockCache):
    """Has the error at hand, and with it all that its traceback leads to."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        self._last_error = error
        super()._settle_failed(missing, slots, error)


@mutant(KIND, "writes_over_what_memory_was_wanted_for", "reader_waits_for_memory_of_others")
class WritesOverWhatMemoryWasWantedFor(PlainBlockCache):
    """What the account asks for is used again at once, though a reader still has it."""

    async def _load(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        async def load_own(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
            return [memoryview(bytearray(data)) for data in await load(blocks)]

        await super()._load(missing, slots, load_own)

    def _on_pressure(self, bytes_wanted: int) -> None:
        before = dict(self._slots)
        super()._on_pressure(bytes_wanted)
        for block, slot in before.items():
            if block not in self._slots and isinstance(slot.data, memoryview) and slot.data:
                slot.data[0] ^= 0xFF


@mutant(KIND, "is_left_open_by_a_cancellation", _END, hangs=True)
class IsLeftOpenByACancellation(PlainBlockCache):
    """Waits for something before it closes, and is cancelled there."""

    def close(self) -> None:
        if not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            super().close()
