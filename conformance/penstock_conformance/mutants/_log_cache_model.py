"""Log caches that are wrong about what they return later on, and about what they do when much is asked of them."""

from __future__ import annotations

__all__ = ()

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from msgspec import structs

from penstock.errors import UnavailableError
from penstock.spi.log_cache import LogCacheBlock, LogCacheStatistics, StreamEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._log_cache import Block, PlainLogCache

KIND = "log_cache"

_MODEL = "random_operations_agree_with_a_model"
_SHORT = "short_lives_agree_with_a_model"


@mutant(KIND, "has_one_list_of_results", _MODEL)
class HasOneListOfResults(PlainLogCache):
    """Fills the list again that it returned before."""

    def __init__(self) -> None:
        super().__init__()
        self._result: list[StreamEntry] = []

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        self._result[:] = super().get(stream_id, start_offset, end_offset, bytes_max)
        return self._result


@mutant(KIND, "evicts_what_waits_when_much_is_wanted", _MODEL)
class EvictsWhatWaitsWhenMuchIsWanted(PlainLogCache):
    """Gives the oldest of many blocks up, uploaded or not, when all memory is wanted."""

    def evict(self, bytes_wanted: int) -> int:
        freed = super().evict(bytes_wanted)
        if bytes_wanted >= 2**29 and len(self._frozen) > 6:
            block = self._frozen.pop(0)
            freed += block.size_bytes
            for entries in block.streams.values():
                self._release(entries)
        return freed


@mutant(KIND, "ends_large_entries_one_early", _MODEL)
class EndsLargeEntriesOneEarly(PlainLogCache):
    """Looks for the last record of an entry of hundreds in the next one."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = super().get(stream_id, start_offset, end_offset, bytes_max)
        if len(found) > 1 and found[0].next_offset == start_offset + 1 > found[0].base_offset + 500:
            return found[1:]
        return found


@mutant(KIND, "counts_from_each_freeze", _MODEL)
class CountsFromEachFreeze(PlainLogCache):
    """Begins to count anew with each block."""

    def freeze(self) -> Block | None:
        self._hits = self._misses = 0
        return super().freeze()


@mutant(KIND, "has_one_snapshot", _MODEL)
class HasOneSnapshot(PlainLogCache):
    """Gives everybody the same object, which goes along."""

    _told: LogCacheStatistics | None = None

    def statistics(self) -> LogCacheStatistics:
        now = super().statistics()
        if self._told is None:
            self._told = now
        for name in LogCacheStatistics.__dataclass_fields__:
            object.__setattr__(self._told, name, getattr(now, name))
        return self._told


@mutant(KIND, "shares_its_blocks_with_all_others", "two_caches_have_nothing_to_do_with_each_other")
class SharesItsBlocksWithAllOthers(PlainLogCache):
    """Keeps blocks of all caches of the process in one list."""

    _shared: ClassVar[list[Block]] = []

    def __init__(self) -> None:
        super().__init__()
        self._frozen = self._shared

    def close(self) -> None:
        """Release everything, of others, too."""
        for block in (*self._shared, self._active):
            for entries in block.streams.values():
                self._release(entries)
        self._shared.clear()
        self._active = Block()


@mutant(KIND, "hides_its_owners_error", "error_of_its_owner_comes_out")
class HidesItsOwnersError(PlainLogCache):
    """Says that the cache broke off, and not why."""

    def close(self) -> None:
        """Called when the context is left."""
        super().close()
        if sys.exc_info()[1] is not None:
            raise UnavailableError("the cache broke off")


@mutant(KIND, "freezes_no_empty_payloads", _MODEL, _SHORT)
class FreezesNoEmptyPayloads(PlainLogCache):
    """No bytes, so no block: what the log holds of it is never trimmed."""

    def freeze(self) -> Block | None:
        return super().freeze() if self._active.size_bytes else None


@mutant(KIND, "evicts_something_at_any_rate", _MODEL)
class EvictsSomethingAtAnyRate(PlainLogCache):
    """Looks whether enough is free only after it has dropped a block."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(max(bytes_wanted, 1))


@mutant(KIND, "leaves_out_an_entry_far_past_the_end", "entry_of_many_offsets_is_found")
class LeavesOutAnEntryFarPastTheEnd(PlainLogCache):
    """The one entry that has what was asked for goes on too long behind it."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        run = super()._run(entries, first, end_offset, bytes_max)
        return [] if len(run) == 1 and run[0].next_offset > end_offset + 1000 else run


@mutant(KIND, "knows_one_negative_time", _SHORT)
class KnowsOneNegativeTime(PlainLogCache):
    """No timestamp is -1."""

    def put(self, entry: StreamEntry) -> None:
        entry.time_ms = max(entry.time_ms, -1)
        super().put(entry)


@mutant(KIND, "keeps_offsets_as_32_bit_deltas", "entry_of_many_offsets_is_found")
class KeepsOffsetsAs32BitDeltas(PlainLogCache):
    """What is further than 2**31 offsets from a stream's first entry isn't found."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        entries = self._entries(stream_id)
        if entries and start_offset - entries[0].base_offset >= 2**31:
            return []
        return super().get(stream_id, start_offset, end_offset, bytes_max)


@mutant(KIND, "returns_its_own_list", _SHORT)
class ReturnsItsOwnList(PlainLogCache):
    """A read of all of a young stream grows with the next entry."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = super().get(stream_id, start_offset, end_offset, bytes_max)
        own = self._active.streams.get(stream_id, [])
        return own if own == found else found


@mutant(KIND, "counts_entries_of_deleted_streams", _SHORT)
class CountsEntriesOfDeletedStreams(PlainLogCache):
    """Only eviction takes from the number of entries."""

    _deleted = 0

    def drop_stream(self, stream_id: int) -> None:
        self._deleted += len(self._entries(stream_id))
        super().drop_stream(stream_id)

    def statistics(self) -> LogCacheStatistics:
        told = super().statistics()
        return replace(told, entries=told.entries + self._deleted)


@mutant(KIND, "is_active_after_its_only_stream_went", _SHORT)
class IsActiveAfterItsOnlyStreamWent(PlainLogCache):
    """The size of an active block goes back only as long as something is left in it."""

    def drop_stream(self, stream_id: int) -> None:
        before = self._active.size_bytes
        super().drop_stream(stream_id)
        if not self._active.streams:
            self._active.size_bytes = before


@mutant(KIND, "evicts_in_the_order_of_uploads", "only_uploaded_blocks_are_evicted")
class EvictsInTheOrderOfUploads(PlainLogCache):
    """Has a queue of what may go, so that what is left of a stream may have a hole."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: list[LogCacheBlock] = []

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        super().mark_uploaded(block)
        self._queue.append(block)

    def evict(self, bytes_wanted: int) -> int:
        kept = self._frozen
        self._frozen = sorted(kept, key=lambda block: self._queue.index(block) if block.uploaded else -1)
        freed = super().evict(bytes_wanted)
        left = {id(block) for block in self._frozen}
        self._frozen = [block for block in kept if id(block) in left]
        return freed


@mutant(KIND, "knows_no_checksum_of_nothing", _MODEL)
class KnowsNoChecksumOfNothing(PlainLogCache):
    """The checksum of an empty payload is 0, which is taken for none."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry if entry.checksum else structs.replace(entry, checksum=None))


@mutant(KIND, "gives_the_memory_of_long_runs_back_early", _MODEL)
class GivesTheMemoryOfLongRunsBackEarly(PlainLogCache):
    """What is uploaded is accounted for no more where a stream has hundreds of entries, although it is kept."""

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        super().mark_uploaded(block)
        for entries in block.streams.values():
            if len(entries) > 200:
                self._release(list(entries))


# --- what stays


@mutant(KIND, "keeps_the_end_of_each_stream", "long_use_grows_nothing", level=5)
class KeepsTheEndOfEachStream(PlainLogCache):
    """Keeps the end of each stream that it ever had."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[int, int] = {}

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        self._ends[entry.stream_id] = entry.next_offset


@mutant(KIND, "keeps_empty_blocks", "long_use_grows_nothing", level=5)
class KeepsEmptyBlocks(PlainLogCache):
    """Lists all blocks that it froze, and goes over them."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[Block] = []

    def freeze(self) -> Block | None:
        block = super().freeze()
        if block is not None:
            self._blocks.append(block)
        return block


@mutant(KIND, "is_left_open_by_an_error", "error_of_its_owner_comes_out")
class IsLeftOpenByAnError(PlainLogCache):
    """Closes behind its ``yield``, without ``try`` and ``finally``."""

    def close(self) -> None:
        if sys.exc_info()[1] is None:
            super().close()


@mutant(KIND, "counts_deleted_streams_that_were_uploaded", "deleted_stream_changes_no_frozen_block")
class CountsDeletedStreamsThatWereUploaded(PlainLogCache):
    """Tells the sizes that blocks had, whatever went since."""

    def statistics(self) -> LogCacheStatistics:
        uploaded = sum(block.size_bytes for block in self._frozen if block.uploaded)
        return replace(super().statistics(), uploaded_bytes=uploaded)


@mutant(KIND, "evicts_one_more_where_it_fits_exactly", "only_uploaded_blocks_are_evicted")
class EvictsOneMoreWhereItFitsExactly(PlainLogCache):
    """Goes on until more is free than was wanted."""

    def evict(self, bytes_wanted: int) -> int:
        freed = super().evict(bytes_wanted)
        return freed + super().evict(1) if 0 < freed == bytes_wanted else freed


@mutant(KIND, "counts_what_is_charged", "statistics_add_up")
class CountsWhatIsCharged(PlainLogCache):
    """An entry without a charge of its own is none."""

    def statistics(self) -> LogCacheStatistics:
        charged = sum(
            entry.charge is not None
            for block in (*self._frozen, self._active)
            for entries in block.streams.values()
            for entry in entries
        )
        return replace(super().statistics(), entries=charged)


@mutant(KIND, "is_left_open_by_a_cancellation", "error_of_its_owner_comes_out")
class IsLeftOpenByACancellation(PlainLogCache):
    """Waits for something before it closes, and is cancelled there."""

    def close(self) -> None:
        if not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            super().close()
