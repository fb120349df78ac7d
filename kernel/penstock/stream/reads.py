"""Reads of a stream wherever its entries are: the log cache has the newest, objects have the rest.

An entry may move from one to the other while somebody looks for it, and may be trimmed. So whoever finds nothing
looks again, and damage is only what is neither here, nor there, nor gone.
"""

from __future__ import annotations

__all__ = ("StreamReads",)

import sys
from collections.abc import Iterator, Mapping, Sequence

import anyio

from penstock.errors import CorruptError, NotFoundError
from penstock.metadata.image import Image
from penstock.metadata.streams import StreamState
from penstock.spi.log_cache import LogCache, StreamEntry
from penstock.stream.entry import retention_time_ms
from penstock.stream.open_stream import Stream
from penstock.stream.reader import ColdReader, Wanted

#: How much of what only memory and the WAL hold is looked at in one go.
UNCOMMITTED_READ_BYTES = 64 * 1024


class StreamReads:
    """See the module's docstring. ``open_streams`` is the engine's: what isn't in it was deleted."""

    def __init__(
        self, image: Image, log_cache: LogCache, cold: ColdReader, open_streams: Mapping[int, Stream]
    ) -> None:
        self._image = image
        self._log_cache = log_cache
        self._cold = cold
        self._streams = open_streams

    def read_cached(self, stream: Stream, offset: int, bytes_max: int) -> Sequence[StreamEntry] | None:
        """Durable entries from the one that holds ``offset``; None if the log cache doesn't hold that one."""
        entries = self._log_cache.get(stream.stream_id, offset, stream.confirmed_offset, bytes_max)
        if entries and entries[0].base_offset <= offset:
            return entries
        return None

    def read_uploaded(self, stream_id: int, offset: int, bytes_max: int) -> Sequence[StreamEntry]:
        """Entries from the one that holds ``offset`` that objects have and the log cache still has; else none."""
        state = self._image.streams.get(stream_id)
        if state is None or offset >= state.end:
            return ()
        entries = self._log_cache.get(stream_id, offset, state.end, bytes_max)
        return entries if entries and entries[0].base_offset <= offset else ()

    async def find_time(self, stream: Stream, offset: int, time_ms: int) -> StreamEntry | None:
        """The first durable entry past ``offset`` (its holder included) with a timestamp >= ``time_ms``."""
        state = self._image.streams.get(stream.stream_id)
        if state is None:
            return None
        # taken first: what is uploaded and evicted while the reader looks would be in neither
        cached = self._log_cache.get(stream.stream_id, offset, stream.confirmed_offset, sys.maxsize)
        found = await self._cold.find_time(state, offset, time_ms)
        if found is not None:
            return found
        for entry in cached:
            if entry.time_ms >= time_ms and entry.next_offset > offset:
                return entry
        return None

    async def max_time(self, stream: Stream, offset: int) -> int:
        """The greatest timestamp of the durable entries from ``offset`` on; -1 if there is none."""
        cached = self._log_cache.get(stream.stream_id, offset, stream.confirmed_offset, sys.maxsize)
        greatest = max((entry.time_ms for entry in cached), default=-1)
        state = self._image.streams.get(stream.stream_id)
        return greatest if state is None else max(greatest, await self._cold.max_time(state, offset))

    def ranges(self, stream: Stream) -> Iterator[tuple[int, int, int]]:
        """The ranges that retention may drop, oldest first: (end offset, payload bytes, time).

        The time is the greatest timestamp; where no record has one, that of the newest append; -1 if not known.
        Committed ranges first, then what only memory and the WAL hold, entry by entry. Take what you need at
        once: later, it may be gone.
        """
        state = self._image.streams.get(stream.stream_id)
        if state is None:
            return
        for r in state.ranges:
            yield r.end, r.size, retention_time_ms(r.time_ms)
        for entry in self._uncommitted(stream, state):
            yield entry.next_offset, len(entry.data), retention_time_ms(entry.time_ms)

    def size_bytes(self, stream: Stream) -> int:
        """Payload of all :meth:`ranges` together."""
        state = self._image.streams.get(stream.stream_id)
        if state is None:
            return 0
        return state.ranges.size_bytes + sum(len(entry.data) for entry in self._uncommitted(stream, state))

    def _uncommitted(self, stream: Stream, state: StreamState) -> Iterator[StreamEntry]:
        committed = offset = max(state.end, state.start)
        # some at a time: of the many that there may be, retention mostly looks at the first
        while entries := self._log_cache.get(
            stream.stream_id, offset, stream.confirmed_offset, UNCOMMITTED_READ_BYTES
        ):
            for entry in entries:
                if entry.next_offset > committed:
                    yield entry
            offset = entries[-1].next_offset

    async def find_damage(self, stream: Stream, offset: int) -> tuple[int, int]:
        """The first damaged block from ``offset`` on, as offsets [start, end).

        All that is left if no block is to blame. Raises UnavailableError.
        """
        while offset < stream.confirmed_offset:
            try:
                entries = await self.read(stream, offset, 1)
            except (CorruptError, NotFoundError):
                state = self._image.streams.get(stream.stream_id)
                end = stream.confirmed_offset if state is None else await self._cold.block_end(state, offset)
                return offset, max(end, offset)
            if not entries:
                break
            offset = entries[-1].next_offset
        return offset, stream.confirmed_offset

    async def read(self, stream: Stream, offset: int, bytes_max: int) -> Sequence[StreamEntry]:
        """Durable entries from the one that holds ``offset``: about ``bytes_max``, at least one; [] at the end.

        ``offset`` is in [start_offset, confirmed_offset]. Raises UnavailableError, CorruptError.
        """
        end = stream.confirmed_offset
        if offset >= end:
            return []
        cached = self._log_cache.get(stream.stream_id, offset, end, bytes_max)
        if cached and cached[0].base_offset <= offset:
            await anyio.lowlevel.checkpoint()
            return cached
        state = self._image.streams.get(stream.stream_id)
        if state is None:
            return []
        cold_end = cached[0].base_offset if cached else end
        try:
            entries = await self._cold.read(state, offset, cold_end, bytes_max)
        except (CorruptError, NotFoundError):
            if self._is_gone(stream, state, offset):
                return []
            raise
        if entries:
            return entries
        # committed and evicted, or trimmed, while we looked
        again = self.read_cached(stream, offset, bytes_max)
        if again is None and not self._is_gone(stream, state, offset):
            raise CorruptError(
                f"durable records are neither cached nor in an object: stream={stream.stream_id} offset={offset}"
            )
        return again or []

    async def load(self, wanted: Sequence[tuple[Stream, int, int]], bytes_max: int) -> None:
        """Prepare several reads (stream, offset, bytes), which then take fewer requests to the object store.

        What isn't prepared is read all the same. Loads about ``bytes_max``, in this order.
        """
        reads: list[Wanted] = []
        for stream, offset, limit in wanted:
            state = self._image.streams.get(stream.stream_id)
            if state is not None and offset < state.end:
                reads.append(Wanted(state, offset, min(state.end, stream.confirmed_offset), limit))
        if len(reads) > 1:
            await self._cold.load(reads, bytes_max)

    def _is_gone(self, stream: Stream, state: StreamState, offset: int) -> bool:
        """Whether ``offset`` was trimmed or the stream deleted; metadata knows a moment before the caller does."""
        stream.start_offset = max(stream.start_offset, state.start)
        deleted = stream.stream_id not in self._image.streams
        return deleted or offset < stream.start_offset or stream.stream_id not in self._streams
