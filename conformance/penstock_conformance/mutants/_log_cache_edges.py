"""Log caches that let the wrong entries go first, take away what was read, or know a deleted stream again."""

from __future__ import annotations

__all__ = ()

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from penstock.spi.log_cache import LogCacheBlock, LogCacheStatistics, StreamEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._log_cache import Block, PlainLogCache

KIND = "log_cache"

_FIRST = "oldest_entries_go_first"
_WANTED = "memory_that_goes_may_be_wanted_at_once"


@mutant(KIND, "evicts_the_one_block_that_is_enough", _FIRST)
class EvictsTheOneBlockThatIsEnough(PlainLogCache):
    """Fewer blocks, less work."""

    def evict(self, bytes_wanted: int) -> int:
        for block in self._frozen:
            if block.uploaded and block.held_bytes >= bytes_wanted > 0:
                others = [other for other in self._frozen if other is not block]
                self._frozen = [block]
                freed = super().evict(bytes_wanted)
                self._frozen = others
                return freed
        return super().evict(bytes_wanted)


@mutant(KIND, "evicts_stream_by_stream", _FIRST)
class EvictsStreamByStream(PlainLogCache):
    """Of a block only as many streams as are wanted, by their numbers."""

    def evict(self, bytes_wanted: int) -> int:
        freed = 0
        for block in [block for block in self._frozen if block.uploaded]:
            while freed < bytes_wanted and block.streams:
                entries = block.streams.pop(min(block.streams))
                freed += sum(len(entry.data) for entry in entries)
                self._release(entries)
            if not block.streams:
                self._frozen.remove(block)
        return freed


@mutant(KIND, "wipes_its_memory_at_the_end", "what_was_read_outlives_the_cache")
class WipesItsMemoryAtTheEnd(PlainLogCache):
    """Nobody has an entry any more, or so one might think."""

    def close(self) -> None:
        for block in (*self._frozen, self._active):
            for entries in block.streams.values():
                for entry in entries:
                    entry.data = memoryview(b"")
        super().close()


@mutant(KIND, "goes_on_where_a_deleted_stream_ended", "successor_may_begin_anywhere")
class GoesOnWhereADeletedStreamEnded(PlainLogCache):
    """Hides what frozen blocks have of it, until a stream of this id goes on there."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden: dict[int, list[StreamEntry]] = {}

    def _entries(self, stream_id: int) -> list[StreamEntry]:
        hidden = self._hidden.get(stream_id, ())
        return [entry for entry in super()._entries(stream_id) if entry not in hidden]

    def drop_stream(self, stream_id: int) -> None:
        self._release(active := self._active.streams.pop(stream_id, []))
        self._active.size_bytes -= sum(len(entry.data) for entry in active)
        self._hidden[stream_id] = super()._entries(stream_id) + active

    def put(self, entry: StreamEntry) -> None:
        hidden = self._hidden.get(entry.stream_id)
        if hidden and hidden[-1].next_offset == entry.base_offset:
            del self._hidden[entry.stream_id]  # nobody deletes a stream and goes on with it
            self._active.add(entry)
        else:
            super().put(entry)


@mutant(KIND, "finds_what_begins_an_entry", "read_from_within_an_entry_is_a_hit")
class FindsWhatBeginsAnEntry(PlainLogCache):
    """From within an entry it isn't quite what was asked for."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        hits = self._hits
        got = super().get(stream_id, start_offset, end_offset, bytes_max)
        if self._hits > hits and got[0].base_offset != start_offset:
            self._hits, self._misses = hits, self._misses + 1
        return got


@mutant(KIND, "counts_deleted_entries_for_ever", "statistics_add_up")
class CountsDeletedEntriesForEver(PlainLogCache):
    """Takes off entries as they are evicted, and these never are."""

    _deleted = 0

    def drop_stream(self, stream_id: int) -> None:
        self._deleted += sum(len(block.streams.get(stream_id, ())) for block in self._frozen)
        super().drop_stream(stream_id)

    def statistics(self) -> LogCacheStatistics:
        told = super().statistics()
        return replace(told, entries=told.entries + self._deleted)


@mutant(KIND, "releases_what_has_bytes", "charges_of_empty_entries_go_with_them")
class ReleasesWhatHasBytes(PlainLogCache):
    """Nothing takes no memory."""

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        super()._release([entry for entry in entries if len(entry.data)])


@mutant(KIND, "returns_long_lists_as_they_are", "what_was_read_outlives_the_cache")
class ReturnsLongListsAsTheyAre(PlainLogCache):
    """Who reads all of a stream gets its list, which is cheaper than a copy."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        run = super()._run(entries, first, end_offset, bytes_max)
        whole = self._active.streams.get(run[0].stream_id, []) if run else []
        return whole if len(run) == len(whole) > 8 else run


@mutant(KIND, "evicts_for_less_than_nothing", "only_uploaded_blocks_are_evicted")
class EvictsForLessThanNothing(PlainLogCache):
    """Takes what is wanted from what is free, and the result for a size."""

    def evict(self, bytes_wanted: int) -> int:
        return super().evict(abs(bytes_wanted))


_EMPTY = "charges_of_empty_entries_go_with_them"


@mutant(KIND, "evicts_the_younger_of_two_alike", _FIRST)
class EvictsTheYoungerOfTwoAlike(PlainLogCache):
    """Looks for the largest one, from the end."""

    def evict(self, bytes_wanted: int) -> int:
        first = [block for block in self._frozen if block.uploaded][:2]
        if bytes_wanted > 0 and len(first) == 2 and first[0].held_bytes == first[1].held_bytes:
            older, self._frozen = self._frozen, [block for block in self._frozen if block is not first[0]]
            freed = super().evict(min(bytes_wanted, first[0].held_bytes))
            self._frozen = [block for block in older if block is first[0] or block in self._frozen]
            return freed
        return super().evict(bytes_wanted)


@mutant(KIND, "keeps_deleted_entries_of_uploaded_blocks", _EMPTY)
class KeepsDeletedEntriesOfUploadedBlocks(PlainLogCache):
    """Until its own end: nobody is there to evict them."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = Block()

    def drop_stream(self, stream_id: int) -> None:
        for block in self._frozen:
            for entry in block.streams.pop(stream_id, ()) if block.uploaded else ():
                self._kept.add(entry)
        super().drop_stream(stream_id)

    def close(self) -> None:
        self._frozen.append(self._kept)
        super().close()


@mutant(KIND, "drops_empty_entries_once_uploaded", _EMPTY)
class DropsEmptyEntriesOnceUploaded(PlainLogCache):
    """There is nothing to read in them."""

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        super().mark_uploaded(block)
        for stream_id, entries in list(block.streams.items()):
            if not any(len(entry.data) for entry in entries):
                self._release(entries)
                next(one for one in self._frozen if one is block).streams.pop(stream_id)


@mutant(KIND, "releases_empty_entries_once_uploaded", _EMPTY)
class ReleasesEmptyEntriesOnceUploaded(PlainLogCache):
    """And keeps them."""

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        super().mark_uploaded(block)
        for entries in block.streams.values():
            self._release([entry for entry in entries if not len(entry.data)])


@mutant(KIND, "evicts_no_block_with_entries_that_are_not_charged", _EMPTY)
class EvictsNoBlockWithEntriesThatAreNotCharged(PlainLogCache):
    """A block is charged, or it isn't."""

    def evict(self, bytes_wanted: int) -> int:
        kept = [
            block
            for block in self._frozen
            if len({entry.charge is None for entries in block.streams.values() for entry in entries}) > 1
        ]
        all_blocks, self._frozen = self._frozen, [block for block in self._frozen if block not in kept]
        freed = super().evict(bytes_wanted)
        self._frozen = [block for block in all_blocks if block in kept or block in self._frozen]
        return freed


@mutant(KIND, "releases_the_beginnings_of_long_lists", "leaving_the_context_releases_everything")
class ReleasesTheBeginningsOfLongLists(PlainLogCache):
    """As many entries as there are in a turn."""

    def close(self) -> None:
        for block in self._frozen:
            for entries in block.streams.values():
                del entries[64:]
        super().close()


@mutant(KIND, "counts_offsets_of_an_entry_in_40_bits", "entry_of_many_offsets_is_found")
class CountsOffsetsOfAnEntryIn40Bits(PlainLogCache):
    """Five bytes are a lot."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        span = entry.next_offset - entry.base_offset
        if span > 2**40:
            entry.next_offset = entry.base_offset + span % 2**40


@mutant(KIND, "remembers_where_each_read_ended", "long_use_grows_nothing", level=5)
class RemembersWhereEachReadEnded(PlainLogCache):
    """The reader will come back."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[int, dict[int, int]] = {}

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = super().get(stream_id, start_offset, end_offset, bytes_max)
        if found:
            self._ends.setdefault(stream_id, {})[found[-1].next_offset] = len(found)
        return found

    def drop_stream(self, stream_id: int) -> None:
        super().drop_stream(stream_id)
        self._ends.pop(stream_id, None)

    def evict(self, bytes_wanted: int) -> int:
        freed = super().evict(bytes_wanted)
        self._ends = {stream_id: ends for stream_id, ends in self._ends.items() if self._entries(stream_id)}
        return freed


@mutant(KIND, "adds_bytes_up_in_32_bits", "bytes_of_a_stream_are_more_than_32_bits")
class AddsBytesUpIn32Bits(PlainLogCache):
    """Finds how many entries fit by sums of all that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: Counter[int] = Counter()

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        self._sums[entry.stream_id] += len(entry.data)

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        over = (
            self._sums[entries[first].stream_id] >= 2**32 > self._sums[entries[first].stream_id] - bytes_max
        )
        return super()._run(entries, first, end_offset, 0 if over else bytes_max)


@mutant(KIND, "lets_go_before_it_forgets", _WANTED)
class LetsGoBeforeItForgets(PlainLogCache):
    """Somebody may ask for what is just going, and is told of it once more."""

    def evict(self, bytes_wanted: int) -> int:
        freed = 0
        for block in [block for block in self._frozen if block.uploaded]:
            if freed >= bytes_wanted:
                break
            freed += block.held_bytes
            for entries in block.streams.values():
                self._release(entries)
            if block in self._frozen:
                self._frozen.remove(block)
        return freed


@mutant(KIND, "looks_at_its_charges_one_by_one", _WANTED)
class LooksAtItsChargesOneByOne(PlainLogCache):
    """Each is there until it is released, and so are the others."""

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        for entry in entries:
            if entry.charge is not None:
                entry.charge.release()
                entry.charge = None

    def close(self) -> None:
        for block in (*self._frozen, self._active):
            for entries in block.streams.values():
                self._release(entries)
        self._frozen, self._active = [], Block()


@mutant(KIND, "gives_memory_back_in_a_thread", _WANTED)
class GivesMemoryBackInAThread(PlainLogCache):
    """So that nobody waits for it."""

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        thread = threading.Thread(target=super()._release, args=(entries,))
        thread.start()
        thread.join()


@mutant(KIND, "keeps_what_is_behind_a_view", "successor_may_begin_anywhere")
class KeepsWhatIsBehindAView(PlainLogCache):
    """A view is of something."""

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        whole = StreamEntry(*(getattr(entry, name) for name in entry.__struct_fields__))
        whole.data = memoryview(entry.data.obj)
        self._active.streams[entry.stream_id][-1] = whole


@mutant(KIND, "takes_waiting_at_the_end_for_a_hit", "read_from_within_an_entry_is_a_hit")
class TakesWaitingAtTheEndForAHit(PlainLogCache):
    """There is nothing that it hasn't."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        newest = self._newest_of(stream_id)
        if newest is not None and start_offset == newest.next_offset:
            self._hits += 1
            return []
        return super().get(stream_id, start_offset, end_offset, bytes_max)
