"""Log caches that are wrong about what they return later on, and about what they do when much is asked of them."""

from __future__ import annotations

__all__ = ()

import sys
from collections.abc import Sequence
from typing import ClassVar

from penstock.errors import UnavailableError
from penstock.spi.log_cache import LogCacheStatistics, StreamEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._log_cache import Block, PlainLogCache

KIND = "log_cache"

_MODEL = "random_operations_agree_with_a_model"


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
