"""Readahead of each sequential reader: pure, with the time passed in."""

from __future__ import annotations

__all__ = ("READAHEAD_STEP_BYTES", "Readahead")

from collections import OrderedDict

READAHEAD_STEP_BYTES = 512 * 1024
#: Readers remembered; the one unheard of for longest goes first.
_READERS_MAX = 1024
_READER_IDLE_S = 60.0


class _Reader:
    """A reader that is expected to continue."""

    __slots__ = ("seen_at", "waste", "window")

    def __init__(self, seen_at: float, waste: int) -> None:
        self.window = 0
        self.waste = waste
        self.seen_at = seen_at


class Readahead:
    """A window per reader: nothing at first, then 512 KiB, then twice as much with each sequential read.

    All windows together take at most half of the cache. Waste (blocks evicted before anybody read them)
    means that the windows are too large for the memory there is: they start again, and don't grow for a while.
    """

    def __init__(self, bytes_max: int, cache_bytes: int, cooldown_ms: int) -> None:
        self._bytes_max = bytes_max
        self._shared_bytes = cache_bytes // 2
        self._cooldown_s = cooldown_ms / 1000
        #: By (stream, offset where the next read begins), least recently seen first.
        self._readers: OrderedDict[tuple[int, int], _Reader] = OrderedDict()
        self._waste = 0
        self._cool_until = float("-inf")

    def __len__(self) -> int:
        return len(self._readers)

    def on_waste(self, now: float) -> None:
        """A block that was read ahead was evicted unread."""
        self._waste += 1
        self._cool_until = now + self._cooldown_s

    def on_read(self, stream_id: int, offset: int, next_offset: int, now: float) -> int:
        """The window of the reader that read [offset, next_offset)."""
        reader = self._readers.pop((stream_id, offset), None)
        if reader is not None and now - reader.seen_at <= _READER_IDLE_S:
            if reader.waste != self._waste or now < self._cool_until:
                reader.window = min(reader.window, READAHEAD_STEP_BYTES)
            else:
                reader.window = min(max(2 * reader.window, READAHEAD_STEP_BYTES), self._bytes_max)
            reader.waste = self._waste
            reader.seen_at = now
        else:
            reader = _Reader(now, self._waste)
        self._readers[stream_id, next_offset] = reader
        self._readers.move_to_end((stream_id, next_offset))
        self._forget(now)
        # What the share of this reader doesn't allow now may be allowed when others have gone.
        share = self._shared_bytes // len(self._readers)
        return min(reader.window, share)

    def _forget(self, now: float) -> None:
        while self._readers:
            oldest = next(iter(self._readers.values()))
            if len(self._readers) <= _READERS_MAX and now - oldest.seen_at <= _READER_IDLE_S:
                break
            self._readers.popitem(last=False)
