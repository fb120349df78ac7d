"""Broken log caches."""

from __future__ import annotations

__all__ = ()

from collections.abc import Sequence
from dataclasses import replace

from penstock.errors import InvariantError
from penstock.hookspecs import hookimpl
from penstock.spi.log_cache import LogCacheCapabilities, LogCacheSpec, LogCacheStatistics, StreamEntry
from penstock_conformance.mutants._mutant import NAME, SUMMARY, Defective, make, mutant
from penstock_conformance.reference._log_cache import PlainLogCache
from penstock_conformance.reference._plugin import closing

KIND = "log_cache"


@mutant(KIND, "jumps_over_holes", "get_offers_the_newest_continuous_range")
class JumpsOverHoles(PlainLogCache):
    """Returns whatever is cached of the range."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        return [entry for entry in entries[first:] if entry.base_offset < end_offset]


@mutant(KIND, "serves_evicted_entries", "get_offers_the_newest_continuous_range")
class ServesEvictedEntries(PlainLogCache):
    """Keeps an index of its own, and forgets to clean it: stale ranges, whose memory is gone."""

    def __init__(self) -> None:
        super().__init__()
        self._index: dict[int, list[StreamEntry]] = {}

    def put(self, entry: StreamEntry) -> None:
        super().put(entry)
        self._index.setdefault(entry.stream_id, []).append(entry)

    def _entries(self, stream_id: int) -> list[StreamEntry]:
        return self._index.get(stream_id, [])


@mutant(KIND, "remembers_where_streams_ended", "entries_must_continue_their_stream")
class RemembersWhereStreamsEnded(PlainLogCache):
    """Refuses what begins below the end of a stream, though nothing of the stream is cached any more."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[int, int] = {}

    def put(self, entry: StreamEntry) -> None:
        if entry.base_offset < self._ends.get(entry.stream_id, 0):
            raise InvariantError(f"the entry was there already: {entry!r}")
        super().put(entry)
        self._ends[entry.stream_id] = entry.next_offset

    def drop_stream(self, stream_id: int) -> None:
        super().drop_stream(stream_id)
        self._ends.pop(stream_id, None)


@mutant(KIND, "counts_each_hit_twice", "statistics_add_up")
class CountsEachHitTwice(PlainLogCache):
    """Once when it finds the stream, and once when it finds the entry."""

    def statistics(self) -> LogCacheStatistics:
        counters = super().statistics()
        return replace(counters, hits=2 * counters.hits)


@mutant(KIND, "releases_twice", "dropped_streams_are_gone")
class ReleasesTwice(PlainLogCache):
    """Releases the entries of a dropped stream, and again when their block goes."""

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        for entry in entries:
            if entry.charge is not None:
                entry.charge.release()

    def drop_stream(self, stream_id: int) -> None:
        for block in (*self._frozen, self._active):
            self._release(block.streams.get(stream_id, []))


@mutant(
    KIND, "leaks_on_eviction", "only_uploaded_blocks_are_evicted", "leaving_the_context_releases_everything"
)
class LeaksOnEviction(PlainLogCache):
    """Never gives memory back."""

    def _release(self, entries: Sequence[StreamEntry]) -> None:
        """Somebody else's affair."""


@mutant(KIND, "evicts_before_upload", "only_uploaded_blocks_are_evicted")
class EvictsBeforeUpload(PlainLogCache):
    """Takes frozen for uploaded."""

    def evict(self, bytes_wanted: int) -> int:
        for block in self._frozen:
            block.uploaded = True
        return super().evict(bytes_wanted)


@mutant(KIND, "accepts_gaps", "entries_must_continue_their_stream")
class AcceptsGaps(PlainLogCache):
    """Takes any entry."""

    def put(self, entry: StreamEntry) -> None:
        self._active.add(entry)


@mutant(KIND, "returns_nothing_when_small", "get_respects_bytes_max")
class ReturnsNothingWhenSmall(PlainLogCache):
    """A consumer with a small fetch size never gets on."""

    def _run(
        self, entries: list[StreamEntry], first: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        if len(entries[first].data) > bytes_max:
            return []
        return super()._run(entries, first, end_offset, bytes_max)


@mutant(
    KIND,
    "reads_only_the_active_block",
    "freeze_hands_over_the_active_block",
    "random_walk_agrees_with_a_model",
)
class ReadsOnlyTheActiveBlock(PlainLogCache):
    """What is frozen is out of sight."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        frozen, self._frozen = self._frozen, []
        try:
            return super().get(stream_id, start_offset, end_offset, bytes_max)
        finally:
            self._frozen = frozen


@mutant(KIND, "wants_exact_offsets", "get_returns_what_was_put")
class WantsExactOffsets(PlainLogCache):
    """Finds entries by their base offset only."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = super().get(stream_id, start_offset, end_offset, bytes_max)
        return [entry for entry in found if entry.base_offset >= start_offset]


@mutant(KIND, "counts_nothing", "statistics_add_up")
class CountsNothing(PlainLogCache):
    """Has no counters."""

    def statistics(self) -> LogCacheStatistics:
        return LogCacheStatistics()


@mutant(KIND, "counts_what_it_offers_instead_as_found", "statistics_add_up")
class CountsWhatItOffersInsteadAsFound(PlainLogCache):
    """A read that gets anything is a hit."""

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = super().get(stream_id, start_offset, end_offset, bytes_max)
        if found and found[0].base_offset > start_offset:
            self._misses -= 1
            self._hits += 1
        return found


@hookimpl
def penstock_register_log_cache() -> LogCacheSpec[Defective]:
    """Register the broken log caches."""
    return LogCacheSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=LogCacheCapabilities(),
        open=closing(lambda settings, _: make("log_cache", settings.defect)),
    )
