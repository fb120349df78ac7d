"""Block caches that forget who else there is: loads under way, readers that join or give up, and those that leap."""

from __future__ import annotations

__all__ = ()

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import anyio

from penstock.errors import UnavailableError
from penstock.spi.allocator import Allocator, Charge
from penstock.spi.block_cache import BlockCacheStatistics, BlockLoader, BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._block_cache import PlainBlockCache, _Slot

KIND = "block_cache"

_ROOM = "whatever_makes_room_is_counted"
_WASTE = "what_was_read_is_not_wasted"
_COOLS = "waste_is_counted_and_cools_readers_down"
_LET_GO = "loaders_of_all_readers_are_let_go"
_GOES_ON = "whoever_goes_on_is_sequential"
_WANTED = "memory_that_goes_may_be_wanted_at_once"


@mutant(KIND, "loads_beside_its_limit", "loads_under_way_keep_to_the_limit")
class LoadsBesideItsLimit(PlainBlockCache):
    """What is on its way isn't there yet; when it comes, something else goes."""

    def _there(self) -> int:
        return sum(block.size for block, slot in self._slots.items() if slot.done.is_set())

    def _make_room(self, wanted: int, keep: Sequence[BlockRef]) -> bool:
        loading, self._used = self._used - self._there(), self._there()
        there = super()._make_room(wanted, keep)
        self._used += loading
        return there

    def statistics(self) -> BlockCacheStatistics:
        return replace(super().statistics(), used_bytes=min(self._there(), self._limit))


@mutant(KIND, "counts_one_eviction_for_each_read", _ROOM)
class CountsOneEvictionForEachRead(PlainBlockCache):
    """However many blocks made room."""

    def _make_room(self, wanted: int, keep: Sequence[BlockRef]) -> bool:
        before = self._evicted
        there = super()._make_room(wanted, keep)
        self._evicted = min(self._evicted, before + 1)
        return there


@mutant(KIND, "counts_what_was_destroyed_as_evicted", _ROOM)
class CountsWhatWasDestroyedAsEvicted(PlainBlockCache):
    """What goes, goes."""

    def forget_object(self, object_id: int) -> None:
        before = len(self._slots)
        super().forget_object(object_id)
        self._evicted += before - len(self._slots)


@mutant(KIND, "joins_itself", "a_lone_reader_joins_nobody")
class JoinsItself(PlainBlockCache):
    """Counts each reader of a load."""

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[object], load: BlockLoader) -> None:
        super()._spawn(missing, slots, load)  # type: ignore[arg-type]
        self._joined += 1


class _Wasting(PlainBlockCache):
    """Counts blocks that were read ahead and go unread."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._unread: set[BlockRef] = set()
        self._lost = 0

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        if prefetch:
            self._ahead(blocks)
        else:
            self._read(blocks)
        return await super().get(blocks, load, prefetch=prefetch)

    def _ahead(self, blocks: Sequence[BlockRef]) -> None:
        self._unread |= set(blocks) - set(self._slots)

    def _read(self, blocks: Sequence[BlockRef]) -> None:
        self._unread -= set(blocks)

    def _drop(self, block: BlockRef) -> int:
        self._lost += block in self._unread and not self._slots[block].forgotten
        self._unread.discard(block)
        return super()._drop(block)

    def statistics(self) -> BlockCacheStatistics:
        return replace(super().statistics(), wasted=self._lost)


@mutant(KIND, "knows_no_waste", _COOLS)
class KnowsNoWaste(PlainBlockCache):
    """Cools down, and tells nobody why."""

    def statistics(self) -> BlockCacheStatistics:
        return replace(super().statistics(), wasted=0)


@mutant(KIND, "never_cools_down", _COOLS)
class NeverCoolsDown(PlainBlockCache):
    """Counts what is wasted, and goes on as before."""

    def _cool_down(self) -> None:
        pass


@mutant(KIND, "takes_lists_only", "get_returns_the_blocks_in_order")
class TakesListsOnly(PlainBlockCache):
    """Takes what was loaded out of the list that it is given."""

    def _spawn(self, missing: Sequence[BlockRef], slots: Sequence[object], load: BlockLoader) -> None:
        async def taken(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
            loaded = await load(blocks)
            return [loaded.pop(0) for _ in blocks]  # type: ignore[attr-defined] # the lie

        super()._spawn(missing, slots, taken)  # type: ignore[arg-type]


@mutant(KIND, "knows_no_readers_that_came_during_the_load", _WASTE)
class KnowsNoReadersThatCameDuringTheLoad(_Wasting):
    """Whoever joins reads nothing yet."""

    def _read(self, blocks: Sequence[BlockRef]) -> None:
        self._unread -= {
            block for block in blocks if block in self._slots and self._slots[block].done.is_set()
        }


@mutant(KIND, "reads_ahead_what_was_read", _WASTE)
class ReadsAheadWhatWasRead(_Wasting):
    """What is read ahead is unread, once more."""

    def _ahead(self, blocks: Sequence[BlockRef]) -> None:
        self._unread |= set(blocks)


@mutant(KIND, "takes_what_was_destroyed_for_wasted", _WASTE)
class TakesWhatWasDestroyedForWasted(_Wasting):
    """Nobody has read it, and nobody will."""

    def forget_object(self, object_id: int) -> None:
        mine = {block for block in self._unread if block.object_id == object_id and block in self._slots}
        self._lost += len(mine)
        super().forget_object(object_id)


@mutant(KIND, "tells_the_failure_of_a_prefetch_later", "failed_prefetch_is_nobodys")
class TellsTheFailureOfAPrefetchLater(PlainBlockCache):
    """To the first reader who wants what couldn't be read ahead."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._untold: dict[BlockRef, Exception] = {}

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        for block in blocks:
            if not prefetch and block in self._untold:
                raise self._untold.pop(block)
        try:
            return await super().get(blocks, load, prefetch=prefetch)
        except UnavailableError as error:
            if prefetch:
                self._untold = {blocks[-1]: error}
            raise


@mutant(KIND, "keeps_room_for_who_gave_up", "who_gives_up_waiting_for_room_takes_none")
class KeepsRoomForWhoGaveUp(PlainBlockCache):
    """Whoever waits has a part of the limit, and gives it back when there is room."""

    _promised = 0

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        wanted = sum(block.size for block in set(blocks) - set(self._slots))
        waited_for = sum(block.size for block, slot in self._slots.items() if not slot.done.is_set())
        if waited_for and waited_for + wanted > self._limit and not prefetch:
            self._promise(wanted // 8)
            await self._room.wait()
            self._promise(-(wanted // 8))
        return await super()._get_piece(blocks, load, prefetch)

    def _promise(self, size: int) -> None:
        self._promised += size
        self._used += size

    def statistics(self) -> BlockCacheStatistics:
        return replace(super().statistics(), used_bytes=self._used - self._promised)


@mutant(KIND, "has_one_buffer_for_what_is_too_large", "bytes_of_what_is_too_large_are_the_readers")
class HasOneBufferForWhatIsTooLarge(PlainBlockCache):
    """Nobody keeps it, so it may be used again."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._buffer = bytearray()

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        got = await super().get(blocks, load, prefetch=prefetch)
        if len(blocks) != 1 or blocks[0].size <= self._limit:
            return got
        if len(self._buffer) != blocks[0].size:
            self._buffer = bytearray(blocks[0].size)
        self._buffer[:] = got[0]
        return [self._buffer]


@mutant(KIND, "keeps_loaders_for_a_second_try", _LET_GO)
class KeepsLoadersForASecondTry(PlainBlockCache):
    """Whoever joins may have to load, if the first fails."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._second: dict[BlockRef, BlockLoader] = {}

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        pending = [block for block in blocks if block in self._slots and not self._slots[block].done.is_set()]
        self._second |= dict.fromkeys(pending, load)
        return await super().get(blocks, load, prefetch=prefetch)


@mutant(KIND, "keeps_loaders_of_who_was_cancelled", _LET_GO)
class KeepsLoadersOfWhoWasCancelled(PlainBlockCache):
    """Whoever gives up may come again."""

    _load_of_the_last: BlockLoader | None = None

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        try:
            return await super().get(blocks, load, prefetch=prefetch)
        except asyncio.CancelledError:
            self._load_of_the_last = load
            raise


@mutant(KIND, "never_trusts_who_leapt", _GOES_ON)
class NeverTrustsWhoLeapt(PlainBlockCache):
    """Once a random reader, always a random reader."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        expected, window = self._readers.get(stream_id, (offset, 0))
        if expected != offset or window < 0:
            self._readers[stream_id] = (next_offset, -1)
            return 0
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "wants_reads_of_one_length", _GOES_ON)
class WantsReadsOfOneLength(PlainBlockCache):
    """A stride is a stride."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._length = 0

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        length, self._length = self._length, next_offset - offset
        if length != self._length:
            self._readers.pop(stream_id, None)
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "has_32_bits_for_where_a_reader_ended", _GOES_ON)
class Has32BitsForWhereAReaderEnded(PlainBlockCache):
    """Offsets as those of files once were."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return super().readahead_bytes(stream_id, offset & 0xFFFFFFFF, next_offset & 0xFFFFFFFF)


@mutant(KIND, "keeps_what_is_read_ahead_of_a_destroyed_object", "forgotten_objects_are_dropped")
class KeepsWhatIsReadAheadOfADestroyedObject(PlainBlockCache):
    """Nobody waits for what is read ahead."""

    def forget_object(self, object_id: int) -> None:
        ahead = [slot for slot in self._slots.values() if slot.unread and not slot.done.is_set()]
        super().forget_object(object_id)
        for slot in ahead:
            slot.forgotten = False


@mutant(KIND, "keeps_memory_of_a_failed_prefetch", "failed_prefetch_is_nobodys")
class KeepsMemoryOfAFailedPrefetch(PlainBlockCache):
    """Has it at hand, for the next one, until its end."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._at_hand: list[Charge] = []

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        for slot in slots:
            if slot.unread and slot.charge is not None:
                self._at_hand.append(slot.charge)
                slot.charge = None
        super()._settle_failed(missing, slots, error)

    def close(self) -> None:
        super().close()
        for charge in self._at_hand:
            charge.release()


@mutant(KIND, "gives_away_what_it_has_of_a_read", "cached_blocks_of_a_read_may_make_room_for_its_others")
class GivesAwayWhatItHasOfARead(PlainBlockCache):
    """Looks what is cached, asks for memory for the rest, and then takes what was cached."""

    def _charges_beside(
        self, blocks: Sequence[BlockRef], missing: Sequence[BlockRef]
    ) -> list[Charge | None] | None:
        return self._charges(missing)


@mutant(KIND, "tells_no_room_of_failed_loads", "room_of_a_load_that_fails_is_had_by_who_waits")
class TellsNoRoomOfFailedLoads(PlainBlockCache):
    """Their readers will."""

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        room, self._room = self._room, anyio.Event()
        super()._settle_failed(missing, slots, error)
        self._room = room


@mutant(KIND, "keeps_failures_ahead_to_itself", "failed_load_is_told_to_all_and_not_cached")
class KeepsFailuresAheadToItself(PlainBlockCache):
    """What is read ahead will be read again, by who needs it."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        try:
            return await super().get(blocks, load, prefetch=prefetch)
        except UnavailableError:
            if prefetch:
                return []
            raise


@mutant(KIND, "counts_no_waste_under_pressure", "cache_gives_way_to_others")
class CountsNoWasteUnderPressure(PlainBlockCache):
    """Others wanted the memory, so nobody is to blame."""

    def _on_pressure(self, bytes_wanted: int) -> None:
        wasted = self._wasted
        super()._on_pressure(bytes_wanted)
        self._wasted = wasted


@mutant(KIND, "takes_reading_ahead_for_reading", _COOLS)
class TakesReadingAheadForReading(PlainBlockCache):
    """What is asked for twice was wanted."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        for block in blocks:
            if block in self._slots:
                self._slots[block].unread = False
        return await super().get(blocks, load, prefetch=prefetch)


@mutant(KIND, "cools_down_once", _COOLS)
class CoolsDownOnce(PlainBlockCache):
    """And is as hot as before for ever."""

    _cooled = False

    def _cool_down(self) -> None:
        if not self._cooled:
            super()._cool_down()
        self._cooled = self._wasted >= 10


@mutant(KIND, "knows_its_first_thousand_readers", _GOES_ON)
class KnowsItsFirstThousandReaders(PlainBlockCache):
    """And takes no more."""

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        if len(self._readers) >= 1000 and stream_id not in self._readers:
            return 0
        return super().readahead_bytes(stream_id, offset, next_offset)


@mutant(KIND, "keeps_memory_of_who_gives_up_waiting_for_it", "reader_waits_for_memory_of_others")
class KeepsMemoryOfWhoGivesUpWaitingForIt(PlainBlockCache):
    """Waits once more while it has it."""

    async def _wait_for_memory(self, size: int) -> None:
        if self._allocator is not None:
            charge = await self._allocator.charge(size, "block_cache")
            await anyio.lowlevel.checkpoint()
            charge.release()


class _Rearranged(PlainBlockCache):
    """Calls loaders in another way."""

    async def _called(self, blocks: Sequence[BlockRef], load: BlockLoader) -> dict[BlockRef, Buffer]:
        raise NotImplementedError

    async def _load(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], load: BlockLoader) -> None:
        async def called(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
            found = await self._called(blocks, load)
            return [found[block] for block in blocks]

        await super()._load(missing, slots, called)


@mutant(KIND, "orders_positions_as_signed_numbers", "blocks_of_any_place_are_kept_apart")
class OrdersPositionsAsSignedNumbers(_Rearranged):
    """Of 32 bits: those from 2 GiB on come first."""

    async def _called(self, blocks: Sequence[BlockRef], load: BlockLoader) -> dict[BlockRef, Buffer]:
        ordered = sorted(blocks, key=lambda block: (block.object_id, (block.position + 2**31) % 2**32))
        return dict(zip(ordered, await load(ordered), strict=True))


@mutant(KIND, "loads_a_thousand_blocks_at_a_time", "one_read_may_want_thousands_of_blocks")
class LoadsAThousandBlocksAtATime(_Rearranged):
    """Each a request of its own."""

    async def _called(self, blocks: Sequence[BlockRef], load: BlockLoader) -> dict[BlockRef, Buffer]:
        found: dict[BlockRef, Buffer] = {}
        for start in range(0, len(blocks), 1000):
            piece = blocks[start : start + 1000]
            found |= zip(piece, await load(piece), strict=True)
        return found


@mutant(KIND, "charges_all_with_the_first_after_waiting", "reader_waits_for_memory_of_others")
class ChargesAllWithTheFirstAfterWaiting(PlainBlockCache):
    """One charge for all that waited, which goes when the first of them does."""

    _waited = False

    async def _wait_for_memory(self, size: int) -> None:
        self._waited = True
        await super()._wait_for_memory(size)

    def _charges(self, missing: Sequence[BlockRef]) -> list[Charge | None] | None:
        if not self._waited or not missing:
            return super()._charges(missing)
        whole = super()._charges([BlockRef(0, 0, sum(block.size for block in missing))])
        return None if whole is None else [*whole, *[None] * (len(missing) - 1)]


@mutant(KIND, "keeps_failures_of_what_is_too_large", "bytes_of_what_is_too_large_are_the_readers")
class KeepsFailuresOfWhatIsTooLarge(PlainBlockCache):
    """Only the block is too large to be kept."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._failures: dict[BlockRef, Exception] = {}

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        for block in blocks:
            if block in self._failures:
                raise self._failures[block]
        return await super().get(blocks, load, prefetch=prefetch)

    def _settle_failed(self, missing: Sequence[BlockRef], slots: Sequence[_Slot], error: Exception) -> None:
        self._failures.update({block: error for block in missing if block.size > self._limit})
        super()._settle_failed(missing, slots, error)


@mutant(KIND, "keeps_room_of_what_was_read_often", "what_is_read_often_makes_room_like_any_other")
class KeepsRoomOfWhatWasReadOften(PlainBlockCache):
    """Protects it, and forgets that it did."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._reads: Counter[BlockRef] = Counter()

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        self._reads.update(blocks)
        return await super().get(blocks, load, prefetch=prefetch)

    def _drop(self, block: BlockRef) -> int:
        freed = super()._drop(block)
        self._used += block.size if self._reads.pop(block, 0) > 3 else 0
        return freed


@mutant(KIND, "has_the_last_results_at_hand", "what_goes_is_let_go")
class HasTheLastResultsAtHand(PlainBlockCache):
    """Whoever reads may read the same again."""

    _last: Sequence[Buffer] = ()

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        self._last = await super().get(blocks, load, prefetch=prefetch)
        return self._last


@mutant(KIND, "keeps_what_it_evicted", "what_goes_is_let_go")
class KeepsWhatItEvicted(PlainBlockCache):
    """A few of them, in case they come again; nobody is charged for that."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._ghosts: list[_Slot] = []

    def _drop(self, block: BlockRef) -> int:
        self._ghosts = [*self._ghosts[-7:], self._slots[block]]
        return super()._drop(block)


@mutant(KIND, "wants_blocks_in_a_list", "get_returns_the_blocks_in_order")
class WantsBlocksInAList(PlainBlockCache):
    """Joins it with another one."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        if not isinstance(blocks, list):
            raise TypeError("a list, please")
        return await super().get(blocks, load, prefetch=prefetch)


@mutant(KIND, "lets_go_before_it_forgets", _WANTED)
class LetsGoBeforeItForgets(PlainBlockCache):
    """Somebody may ask for what is just going, and gets it a second time."""

    def _drop(self, block: BlockRef) -> int:
        charge = self._slots[block].charge
        if charge is not None:
            charge.release()
        self._slots.pop(block, None)
        self._used -= block.size
        return block.size


@mutant(KIND, "looks_once_at_what_may_go", _WANTED)
class LooksOnceAtWhatMayGo(PlainBlockCache):
    """Nothing else goes while it lets go of that."""

    def _is_idle(self, block: BlockRef, slot: _Slot) -> bool:
        return slot.done.is_set() and not slot.waiting


@mutant(KIND, "forgets_an_object_block_by_block", _WANTED)
class ForgetsAnObjectBlockByBlock(PlainBlockCache):
    """All of it is there until it has gone."""

    def forget_object(self, object_id: int) -> None:
        mine = [block for block in self._slots if block.object_id == object_id]
        for block in mine:
            slot = self._slots[block]
            slot.forgotten = True
            self._drop_forgotten(block, slot)


@mutant(KIND, "gives_memory_back_in_a_thread", _WANTED)
class GivesMemoryBackInAThread(PlainBlockCache):
    """So that nobody waits for it."""

    def _drop(self, block: BlockRef) -> int:
        slot = self._slots[block]
        charge, slot.charge = slot.charge, None
        freed = super()._drop(block)
        if charge is not None:
            thread = threading.Thread(target=charge.release)
            thread.start()
            thread.join()
        return freed


@mutant(KIND, "lets_all_in_that_are_too_large", "bytes_of_what_is_too_large_are_the_readers")
class LetsAllInThatAreTooLarge(PlainBlockCache):
    """There would never be room for one."""

    def _make_room(self, wanted: int, keep: Sequence[BlockRef]) -> bool:
        return wanted > self._limit or super()._make_room(wanted, keep)


@mutant(KIND, "reads_ahead_block_by_block", "cached_blocks_are_not_loaded_again")
class ReadsAheadBlockByBlock(PlainBlockCache):
    """Nobody waits for it."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        if not prefetch:
            return await super().get(blocks, load)
        found = [
            await super(ReadsAheadBlockByBlock, self).get([block], load, prefetch=True) for block in blocks
        ]
        return [data for each in found for data in each] if all(found) else []
