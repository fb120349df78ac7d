"""Log caches that are right for few streams, short ones, small numbers, and blocks that are looked at once."""

from __future__ import annotations

__all__ = ()

from collections.abc import Sequence
from typing import Any

from penstock.spi.log_cache import LogCacheBlock, LogCacheStatistics, StreamEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._log_cache import Block, PlainLogCache

KIND = "log_cache"

_FROZEN = "frozen_block_stays_as_it_was"
_DELETED = "deleted_stream_changes_no_frozen_block"
_WAITING = "hundreds_of_blocks_wait_for_their_upload"
_PAYLOADS = "payloads_of_all_sizes_are_whole"
_STREAMS = "thousands_of_streams_are_kept_apart"
_LONG = "long_streams_are_read_to_their_end"
_SIZES = "offsets_and_positions_of_any_size"
_EVICTION = "eviction_tells_what_it_freed"
_LET_GO = "memory_that_was_let_go_is_free"


class _MovingBlock(Block):
    cache: MovesTheEndOfFrozenBlocks

    @property
    def wal_end(self) -> int:
        return self.cache._newest

    @wal_end.setter
    def wal_end(self, value: int) -> None:
        """The cache knows."""


@mutant(KIND, "moves_the_end_of_frozen_blocks", _FROZEN)
class MovesTheEndOfFrozenBlocks(PlainLogCache):
    """A block ends where the WAL does: acknowledged records are trimmed before they were uploaded."""

    def __init__(self) -> None:
        super().__init__()
        self._newest = 0
        self._renew()

    def _renew(self) -> None:
        self._active = _MovingBlock()
        self._active.cache = self

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        self._newest = entry.wal_position

    def freeze(self) -> Block | None:
        block = super().freeze()
        if block is not None:
            self._renew()
        return block


@mutant(KIND, "ends_a_block_at_the_next_entry", _FROZEN)
class EndsABlockAtTheNextEntry(PlainLogCache):
    """Notes the position of each entry in the newest frozen block, too."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        if self._frozen and len(self._frozen) > 3:
            self._frozen[-1].wal_end = entry.wal_position


@mutant(KIND, "appends_to_frozen_streams", _FROZEN)
class AppendsToFrozenStreams(PlainLogCache):
    """Goes on with a stream's list of the block before, if that has one."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        if len(self._frozen) > 4 and entry.stream_id in self._frozen[-1].streams:
            self._frozen[-1].streams[entry.stream_id].append(self._active.streams[entry.stream_id].pop())


@mutant(KIND, "ends_a_block_with_its_last_stream", "end_of_a_block_is_of_its_last_entry")
class EndsABlockWithItsLastStream(PlainLogCache):
    """Looks at the end of the stream that came last into the block."""

    def freeze(self) -> Block | None:
        block = super().freeze()
        if block is not None:
            block.wal_end = list(block.streams.values())[-1][-1].wal_position
        return block


@mutant(KIND, "ends_a_block_with_its_greatest_stream", "end_of_a_block_is_of_its_last_entry")
class EndsABlockWithItsGreatestStream(PlainLogCache):
    """Looks at the end of the stream with the greatest id."""

    def freeze(self) -> Block | None:
        block = super().freeze()
        if block is not None:
            block.wal_end = block.streams[max(block.streams)][-1].wal_position
        return block


@mutant(KIND, "reads_over_few_blocks", "reads_go_on_over_many_blocks")
class ReadsOverFewBlocks(PlainLogCache):
    """Looks at the newest sixteen blocks."""

    def _entries(self, stream_id: int) -> list[StreamEntry]:
        blocks = (*self._frozen[-16:], self._active)
        return [entry for block in blocks for entry in block.streams.get(stream_id, ())]


@mutant(KIND, "keeps_ranges_of_evicted_blocks", "reads_go_on_over_many_blocks")
class KeepsRangesOfEvictedBlocks(PlainLogCache):
    """Finds entries by their number in the stream, which doesn't change when some go."""

    def __init__(self) -> None:
        super().__init__()
        self._gone: dict[int, int] = {}

    def evict(self, bytes_wanted: int) -> int:
        before = {stream: len(self._entries(stream)) for block in self._frozen for stream in block.streams}
        freed = super().evict(bytes_wanted)
        for stream, count in before.items():
            self._gone[stream] = count - len(self._entries(stream))
        return freed

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        late = min(self._gone.get(entries[first].stream_id, 0), len(entries) - 1 - first, 1)
        return super()._run(entries, first + late, end_offset, bytes_max)


@mutant(KIND, "holds_a_thousand_streams", _STREAMS)
class HoldsAThousandStreams(PlainLogCache):
    """Drops the stream that it heard of longest ago, uploaded or not."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        if len(self._active.streams) > 1000:
            self.drop_stream(next(iter(self._active.streams)))


@mutant(KIND, "has_stream_ids_of_32_bits", _STREAMS)
class HasStreamIdsOf32Bits(PlainLogCache):
    """Packs ids in four bytes, and takes a stream for another one."""

    def put(self, entry: StreamEntry) -> None:
        if entry.stream_id >= 2**32:
            self._active.add(entry)
        else:
            super().put(entry)

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super().get(stream_id & 0xFFFFFFFF, start_offset, end_offset, bytes_max)


@mutant(KIND, "reads_a_thousand_entries", _LONG)
class ReadsAThousandEntries(PlainLogCache):
    """Has a bound that nobody asked for."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super()._run(entries, first, end_offset, bytes_max)[:1024]


@mutant(KIND, "reads_65536_entries", _LONG)
class Reads65536Entries(PlainLogCache):
    """Counts them in 16 bits."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super()._run(entries, first, end_offset, bytes_max)[:65536]


@mutant(KIND, "searches_one_off", _LONG)
class SearchesOneOff(PlainLogCache):
    """In long streams it begins with the entry before."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super()._run(entries, first - (first > 1024), end_offset, bytes_max)


@mutant(KIND, "has_offsets_of_32_bits", _SIZES)
class HasOffsetsOf32Bits(PlainLogCache):
    """Keeps offsets in an array of four bytes each."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super().get(stream_id, start_offset & 0xFFFFFFFF, end_offset, bytes_max)


@mutant(KIND, "computes_in_floats", _SIZES)
class ComputesInFloats(PlainLogCache):
    """Interpolates, and rounds offsets beyond 2^53."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super().get(stream_id, int(float(start_offset)), end_offset, bytes_max)


@mutant(KIND, "has_no_negative_times", _SIZES)
class HasNoNegativeTimes(PlainLogCache):
    """Takes a record without a time for one of 1970."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        kept = StreamEntry(
            entry.stream_id,
            entry.base_offset,
            entry.next_offset,
            max(entry.time_ms, 0),
            entry.data,
            entry.charge,
            entry.wal_position,
            entry.checksum,
        )
        self._active.streams[entry.stream_id][-1] = kept


@mutant(KIND, "loses_checksums", _SIZES)
class LosesChecksums(PlainLogCache):
    """Keeps what it needs itself."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        kept = StreamEntry(
            entry.stream_id,
            entry.base_offset,
            entry.next_offset,
            entry.time_ms,
            entry.data,
            entry.charge,
            entry.wal_position,
        )
        self._active.streams[entry.stream_id][-1] = kept


@mutant(KIND, "takes_an_upload_for_all_before", "uploads_end_in_any_order")
class TakesAnUploadForAllBefore(PlainLogCache):
    """Uploads end in order, so it keeps a watermark."""

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        assert isinstance(block, Block)
        for earlier in self._frozen[: self._frozen.index(block) + 1]:
            super().mark_uploaded(earlier)


@mutant(KIND, "evicts_by_number", "uploads_end_in_any_order")
class EvictsByNumber(PlainLogCache):
    """Counts how many are uploaded, and drops so many from the front."""

    def evict(self, bytes_wanted: int) -> int:
        count = sum(block.uploaded for block in self._frozen)
        for number, block in enumerate(self._frozen):
            block.uploaded = number < count
        return super().evict(bytes_wanted)


@mutant(KIND, "tells_what_was_wanted", _EVICTION)
class TellsWhatWasWanted(PlainLogCache):
    """Says that it freed what it was asked for."""

    def evict(self, bytes_wanted: int) -> int:
        return min(bytes_wanted, super().evict(bytes_wanted))


@mutant(KIND, "evicts_a_block_at_most", _EVICTION)
class EvictsABlockAtMost(PlainLogCache):
    """One block is mostly enough."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(min(bytes_wanted, 1))


@mutant(KIND, "counts_evicted_bytes", _EVICTION)
class CountsEvictedBytes(PlainLogCache):
    """Counts a part of what is gone as being there."""

    _gone = 0

    def evict(self, bytes_wanted: int) -> int:
        freed = super().evict(bytes_wanted)
        self._gone += freed // 10
        return freed

    def statistics(self) -> LogCacheStatistics:
        found = super().statistics()
        return LogCacheStatistics(
            active_bytes=found.active_bytes,
            frozen_bytes=found.frozen_bytes,
            uploaded_bytes=found.uploaded_bytes + self._gone,
            entries=found.entries,
            hits=found.hits,
            misses=found.misses,
        )


@mutant(KIND, "keeps_what_it_released", _LET_GO)
class KeepsWhatItReleased(PlainLogCache):
    """The account says that memory is free, and it isn't."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Sequence[StreamEntry]] = []

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        super()._release(entries)
        self._kept.append(entries)


@mutant(KIND, "remembers_what_was_read", _LET_GO)
class RemembersWhatWasRead(PlainLogCache):
    """Keeps the last answers for readers that ask again."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[tuple[int, int], Sequence[StreamEntry]] = {}

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        got = super().get(stream_id, start_offset, end_offset, bytes_max)
        self._answers[stream_id, start_offset] = got
        return got


@mutant(KIND, "revives_deleted_streams", "streams_that_come_again_begin_anew")
class RevivesDeletedStreams(PlainLogCache):
    """Forgets in its newest frozen block only what it was told once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[int] = set()

    def drop_stream(self, stream_id: int) -> None:
        if stream_id in self._told:
            self._release(self._active.streams.pop(stream_id, []))
        else:
            self._told.add(stream_id)
            super().drop_stream(stream_id)


@mutant(KIND, "takes_deleted_streams_off_frozen_blocks", _DELETED)
class TakesDeletedStreamsOffFrozenBlocks(PlainLogCache):
    """A block is as large as what is in it, also when it is on its way."""

    def drop_stream(self, stream_id: int) -> None:
        super().drop_stream(stream_id)
        for block in self._frozen:
            block.size_bytes = block.held_bytes


@mutant(KIND, "ends_blocks_where_others_end", _DELETED)
class EndsBlocksWhereOthersEnd(PlainLogCache):
    """The end of a block is that of the entries which are left."""

    def drop_stream(self, stream_id: int) -> None:
        super().drop_stream(stream_id)
        for block in self._frozen:
            ends = [entry.wal_position for entries in block.streams.values() for entry in entries]
            block.wal_end = max(ends, default=0)


@mutant(KIND, "frees_deleted_streams_twice", _DELETED)
class FreesDeletedStreamsTwice(PlainLogCache):
    """What a block had counts as freed when it goes, though a part went before."""

    def evict(self, bytes_wanted: int) -> int:
        sizes = {id(block): block.size_bytes for block in self._frozen if block.uploaded}
        held = sum(block.held_bytes for block in self._frozen if block.uploaded)
        freed = super().evict(bytes_wanted)
        return sum(sizes.values()) if freed == held else freed


@mutant(KIND, "keeps_deleted_streams_for_ever", _DELETED)
class KeepsDeletedStreamsForEver(PlainLogCache):
    """Looks no more at a stream that was deleted, and so doesn't release it with its block."""

    def drop_stream(self, stream_id: int) -> None:
        self._release(self._active.streams.pop(stream_id, []))
        self._active.size_bytes = self._active.held_bytes
        for block in self._frozen:
            block.streams.pop(stream_id, None)


@mutant(KIND, "uploads_the_successor", _DELETED)
class UploadsTheSuccessor(PlainLogCache):
    """A block that was frozen before a deletion takes what comes of a stream of the same id."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        for block in self._frozen:
            if entry.stream_id in self._deleted and not block.uploaded:
                block.streams.setdefault(entry.stream_id, []).append(entry)

    def __init__(self) -> None:
        super().__init__()
        self._deleted: set[int] = set()

    def drop_stream(self, stream_id: int) -> None:
        self._deleted.add(stream_id)
        super().drop_stream(stream_id)


_OPENED: list[Any] = []


@mutant(KIND, "keeps_every_opener", "opening_leaves_nothing_behind")
class KeepsEveryOpener(PlainLogCache):
    """Is in a list of all caches that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        _OPENED.append(self)


@mutant(KIND, "evicts_a_megabyte_at_a_time", "many_megabytes_are_evicted_at_once")
class EvictsAMegabyteAtATime(PlainLogCache):
    """Lets others have their turn, and whoever needs more is to ask again; nobody does."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(min(bytes_wanted, 2**20))


@mutant(KIND, "freezes_64_blocks", _WAITING)
class Freezes64Blocks(PlainLogCache):
    """Has no more blocks than that, and hopes that one is uploaded soon."""

    def freeze(self) -> Block | None:
        return None if len(self._frozen) >= 64 else super().freeze()


@mutant(KIND, "gives_up_the_oldest_of_a_hundred", _WAITING)
class GivesUpTheOldestOfAHundred(PlainLogCache):
    """What waits for so long was surely uploaded."""

    def freeze(self) -> Block | None:
        if len(self._frozen) >= 100:
            for entries in self._frozen.pop(0).streams.values():
                self._release(entries)
        return super().freeze()


@mutant(KIND, "keeps_a_mebibyte_of_a_payload", _PAYLOADS)
class KeepsAMebibyteOfAPayload(PlainLogCache):
    """Has slots of a fixed size."""

    def put(self, entry: StreamEntry) -> None:
        entry.data = entry.data[: 2**20]
        super().put(entry)


@mutant(KIND, "passes_large_payloads_over", _PAYLOADS)
class PassesLargePayloadsOver(PlainLogCache):
    """Leaves payloads of 4 MiB and more for a read of their own."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = super().get(stream_id, start_offset, end_offset, bytes_max)
        return [entry for place, entry in enumerate(found) if not place or len(entry.data) < 2**22]


@mutant(KIND, "has_32_bits_for_bytes_max", _PAYLOADS)
class Has32BitsForBytesMax(PlainLogCache):
    """Takes a bound of 4 GiB for none at all, and gives one entry."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return super().get(stream_id, start_offset, end_offset, bytes_max & 0xFFFFFFFF)


@mutant(KIND, "forgets_checksums_of_large_entries", _PAYLOADS)
class ForgetsChecksumsOfLargeEntries(PlainLogCache):
    """Keeps large entries elsewhere, with a header that has no place for it."""

    def put(self, entry: StreamEntry) -> None:
        if len(entry.data) > 2**20:
            entry.checksum = None
        super().put(entry)


@mutant(KIND, "counts_long_streams_that_are_gone", _LONG)
class CountsLongStreamsThatAreGone(PlainLogCache):
    """Takes a deleted stream from its count entry by entry, as far as one turn allows."""

    def drop_stream(self, stream_id: int) -> None:
        entries = self._active.streams.get(stream_id, [])
        late = sum(len(entry.data) for entry in entries[1000:])
        super().drop_stream(stream_id)
        self._active.size_bytes += late


@mutant(KIND, "gives_the_last_entry_its_neighbours_checksum", _SIZES)
class GivesTheLastEntryItsNeighboursChecksum(PlainLogCache):
    """In a block that is frozen, where both are as long."""

    def freeze(self) -> Block | None:
        block = super().freeze()
        for entries in block.streams.values() if block is not None else ():
            if len(entries) > 1 and len(entries[-1].data) == len(entries[-2].data):
                entries[-1].checksum = entries[-2].checksum
        return block
