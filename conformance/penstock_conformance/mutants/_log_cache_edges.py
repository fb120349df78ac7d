"""Log caches that let the wrong entries go first, take away what was read, or know a deleted stream again."""

from __future__ import annotations

__all__ = ()

from collections.abc import Sequence
from dataclasses import replace

from penstock.spi.log_cache import LogCacheStatistics, StreamEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._log_cache import PlainLogCache

KIND = "log_cache"

_FIRST = "oldest_entries_go_first"


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
