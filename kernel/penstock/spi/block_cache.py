"""Block cache: data blocks of objects, shared by all cold readers, with readahead.

Blocks are immutable and named by (object_id, position). The kernel knows where blocks are and how to load
adjacent ones with one ranged read; the cache decides what to keep, joins concurrent loads of one block, and
says how far to read ahead.
"""

from __future__ import annotations

__all__ = (
    "BlockCache",
    "BlockCacheCapabilities",
    "BlockCacheSpec",
    "BlockCacheStatistics",
    "BlockLoader",
    "BlockRef",
)

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Protocol, TypeAlias

from penstock.spi.plugin import Buffer, PluginSpec, S
from penstock.spi.statistics import counter, gauge


class BlockRef(NamedTuple):
    """One data block: object, byte position in it, size in bytes."""

    object_id: int
    position: int
    size: int


#: Loads the given blocks (ascending, of one object each call or several), returns their bytes in the same order.
BlockLoader: TypeAlias = Callable[[Sequence[BlockRef]], Awaitable[Sequence[Buffer]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCacheCapabilities:
    """What a block cache promises."""

    #: ``readahead_bytes`` grows for sequential readers (False: it always answers 0).
    readahead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCacheStatistics:
    """A snapshot."""

    used_bytes: Annotated[int, gauge("bytes", "Memory of cached blocks.")] = 0
    limit_bytes: Annotated[int, gauge("bytes", "Memory that blocks may take.")] = 0
    blocks: Annotated[int, gauge("blocks", "Cached blocks.")] = 0
    hits: Annotated[int, counter("blocks", "Blocks that were there.")] = 0
    misses: Annotated[int, counter("blocks", "Blocks that had to be loaded.")] = 0
    joined: Annotated[
        int, counter("loads", "Loads that were joined because another reader was already at it.")
    ] = 0
    evicted: Annotated[int, counter("blocks", "Blocks that made room for others.")] = 0
    wasted: Annotated[
        int, counter("blocks", "Blocks that were read ahead and evicted before anybody read them.")
    ] = 0
    loading: Annotated[int, gauge("blocks", "Blocks that are being loaded.")] = 0


class BlockCache(Protocol):
    """The contract of a block cache."""

    @property
    def capabilities(self) -> BlockCacheCapabilities:
        """What this instance promises."""

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        """The bytes of ``blocks``, in order; those not cached nor being loaded go to one ``load`` call, ascending. If
        there are none of those, ``load`` isn't called.

        Concurrent readers of one block share one load; if the reader that loads is cancelled, the others
        still get their block. A failed load raises its error to all who wait for it and caches nothing.
        With ``prefetch`` the blocks are for later: they must not push out blocks that are being waited for,
        and the result may be empty when there is no room.
        Memory stays under the limit; a read that finds no room waits for it. A block larger than the limit is read,
        and not kept. What is returned stays as it is while it is referenced; ``load`` is let go with its call.
        """

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        """How many bytes past the current read are worth loading for the reader that read [offset, next_offset).

        Called once per cold read. A reader that continues where it ended is sequential and gets more each
        time, up to a bound; waste (``wasted``) cools it down. What is remembered of readers is bounded, however many
        streams are read.
        """

    def evict(self, bytes_wanted: int) -> int:
        """Drop blocks that nobody waits for until ``bytes_wanted`` are free or none is left; bytes freed. If none are
        wanted (0, or less), none goes. Whenever this cache releases a charge, this may be called before that returns,
        for somebody who waits for memory: in any method, and while the context is left.
        """

    def forget_object(self, object_id: int) -> None:
        """The object was destroyed: its blocks are never read again. Who waits for one already gets it, and then it
        goes, too.
        """

    def statistics(self) -> BlockCacheStatistics:
        """A snapshot of the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCacheSpec(PluginSpec[S, BlockCache]):
    """Registration of a block cache. Leaving its context releases every charge."""

    kind: ClassVar[str] = "block_cache"
    capabilities: BlockCacheCapabilities
