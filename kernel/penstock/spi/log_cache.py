"""Log cache: the newest data of all streams, in memory, until uploaded and beyond.

The kernel puts each entry once it is durable in the WAL, in WAL order. The active block takes entries; ``freeze``
closes it and hands it to the upload; once committed to the object store it is marked ``uploaded`` and may
be evicted, but keeps serving tail reads until the memory is wanted.
"""

from __future__ import annotations

__all__ = (
    "LogCache",
    "LogCacheBlock",
    "LogCacheCapabilities",
    "LogCacheSpec",
    "LogCacheStatistics",
    "StreamEntry",
)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import msgspec

from penstock.spi.allocator import Charge
from penstock.spi.plugin import PluginSpec, S
from penstock.spi.statistics import counter, gauge


class StreamEntry(msgspec.Struct, eq=False, gc=False):  # one per append: made without a step of Python
    """A run of records [base_offset, next_offset) of one stream and its payload.

    ``time_ms`` is the largest timestamp in it, for lookups and retention; negative where no record has one, and to
    be kept as it is. A payload may be empty, and a run longer than 2**31 offsets. ``charge`` is the memory that goes
    when the entry does; who drops the entry releases it.
    ``checksum`` is the CRC-32C of the payload if it is known.

    The garbage collector doesn't look at entries: a cache has hundreds of thousands, and a pass over them held
    everything up for a quarter of a second. So nothing in one may lead back to it.
    """

    stream_id: int
    base_offset: int
    next_offset: int
    time_ms: int
    data: memoryview
    charge: Charge | None = None
    #: Position after this entry in the WAL (its ``next_position``).
    wal_position: int = 0
    checksum: int | None = None

    def __repr__(self) -> str:
        return f"StreamEntry(stream={self.stream_id}, [{self.base_offset}, {self.next_offset}), {len(self.data)} B)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCacheCapabilities:
    """What a log cache promises: nothing optional so far."""


class LogCacheBlock(Protocol):
    """A frozen block; its entries don't change any more.

    Until it is uploaded ``size_bytes`` and ``wal_end`` are what they were when it was frozen. Of ``streams`` one may
    vanish that was deleted meanwhile: nobody uploads that.
    """

    @property
    def streams(self) -> Mapping[int, Sequence[StreamEntry]]:
        """Entries by stream id, each in offset order, continuous within the block."""

    @property
    def size_bytes(self) -> int:
        """Payload bytes, those of streams that were deleted since the freeze included."""

    @property
    def wal_end(self) -> int:
        """The greatest ``wal_position`` in the block: once committed, the WAL may be trimmed up to here.

        A deletion after the freeze lowers it no more: the log would keep what nobody needs.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCacheStatistics:
    """A snapshot, in payload bytes; of deleted streams those that are still in memory."""

    active_bytes: Annotated[int, gauge("bytes", "Payload of the active block.")] = 0
    frozen_bytes: Annotated[int, gauge("bytes", "Payload that is on its way to the object store.")] = 0
    uploaded_bytes: Annotated[int, gauge("bytes", "Payload that is uploaded and kept for readers.")] = 0
    entries: Annotated[int, gauge("entries", "Cached entries.")] = 0
    hits: Annotated[int, counter("reads", "Reads that found what they asked for.")] = 0
    misses: Annotated[int, counter("reads", "Reads that did not.")] = 0


class LogCache(Protocol):
    """The contract of a log cache. All calls come from the event loop's thread; none blocks."""

    @property
    def capabilities(self) -> LogCacheCapabilities:
        """What this instance promises."""

    @property
    def active_bytes(self) -> int:
        """Payload bytes in the active block."""

    def put(self, entry: StreamEntry) -> None:
        """Take one entry; it starts where the stream's newest cached entry ends.

        Raises InvariantError if it doesn't, unless nothing of the stream is cached.
        """

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        """Cached entries of [start_offset, end_offset), in offset order, continuous, about ``bytes_max``.

        If the entry that holds ``start_offset`` is cached: the longest run beginning with it, of at most
        ``bytes_max`` payload bytes but at least that one entry. Otherwise: a run beginning at the oldest cached
        offset of the newest continuous range, if that is below ``end_offset`` (the caller reads the missing
        prefix elsewhere). Otherwise empty. Entries are those that were put, or others that tell the same. What was
        returned doesn't change, whatever is put or dropped later.
        """

    def freeze(self) -> LogCacheBlock | None:
        """Close the active block and start a new one; None if the active block is empty."""

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        """The block's data are committed elsewhere: from now on ``evict`` may drop it; until then it serves reads."""

    def evict(self, bytes_wanted: int) -> int:
        """Drop uploaded entries, oldest first, until ``bytes_wanted`` are free or none is left; bytes freed.

        A block needn't go as a whole: of one with a great many entries, only as many may go as are wanted. If none
        are (0, or less), none goes. Whenever this cache releases a charge, this may be called before that returns,
        for somebody who waits for memory: in ``evict`` itself, in ``drop_stream``, and while the context is left.
        """

    def drop_stream(self, stream_id: int) -> None:
        """The stream was deleted: its entries are never read again.

        Those of the active block are dropped at once; those of a block that was frozen may go with it. Its memory is
        released, and told by ``evict``, once. A stream of this id may come again, at any offset.
        """

    def statistics(self) -> LogCacheStatistics:
        """A snapshot of the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCacheSpec(PluginSpec[S, LogCache]):
    """Registration of a log cache. Leaving its context releases every charge."""

    kind: ClassVar[str] = "log_cache"
    capabilities: LogCacheCapabilities
