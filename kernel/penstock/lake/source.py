"""Where records of tables come from: what metadata has committed, from the log cache or from objects.

Reads for tables have a reader of their own: its requests are of the class ``lake``, it keeps no blocks, so what
consumers have in the block cache stays there, and it reads no faster than is configured.
"""

from __future__ import annotations

__all__ = ("LakeSource", "Throttle")

from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskGroup

from penstock.metadata.image import Image
from penstock.metadata.streams import StreamState
from penstock.spi.block_cache import (
    BlockCacheCapabilities,
    BlockCacheStatistics,
    BlockLoader,
    BlockRef,
)
from penstock.spi.log_cache import StreamEntry
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.spi.traffic import Traffic
from penstock.stream.reader import ColdReader, ReaderSettings

#: Ranged reads in flight for all tables: they are for throughput, and nobody waits for one.
_PARALLEL = 4

ReadUploaded = Callable[[int, int, int], Sequence[StreamEntry]]


class Throttle:
    """A bound of bytes per second. What was taken is paid for before more is: one read may exceed a second's."""

    def __init__(
        self,
        rate: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """``rate`` 0 is no bound."""
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0

    async def wait(self) -> None:
        """Return when all that was taken so far is paid for."""
        pause_s = self._free_at - self._clock()
        if self._rate and pause_s > 0:
            await self._sleep(pause_s)

    def take(self, size: int) -> None:
        """``size`` bytes were read."""
        if self._rate:
            self._free_at = max(self._free_at, self._clock()) + size / self._rate


class _NoCache:
    """A block cache that keeps nothing: a table reads each block once."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle

    @property
    def capabilities(self) -> BlockCacheCapabilities:
        return BlockCacheCapabilities()

    async def get(
        self, blocks: Sequence[BlockRef], load: BlockLoader, *, prefetch: bool = False
    ) -> Sequence[Buffer]:
        await self._throttle.wait()
        self._throttle.take(sum(block.size for block in blocks))
        return await load(blocks)

    def readahead_bytes(self, stream_id: int, offset: int, next_offset: int) -> int:
        return 0

    def evict(self, bytes_wanted: int) -> int:
        return 0

    def forget_object(self, object_id: int) -> None:
        pass

    def statistics(self) -> BlockCacheStatistics:
        return BlockCacheStatistics()


class LakeSource:
    """Reads the records of all tables of a broker."""

    def __init__(
        self,
        image: Image,
        store: ObjectStore,
        tasks: TaskGroup,
        throttle: Throttle,
        read_uploaded: ReadUploaded | None = None,
    ) -> None:
        """``read_uploaded`` looks into the log cache (``StreamReads.read_uploaded``)."""
        self._read_uploaded = read_uploaded
        settings = ReaderSettings(parallel_max=_PARALLEL)
        self._reader = ColdReader(image, store, _NoCache(throttle), settings, tasks, Traffic.LAKE)

    async def read(self, stream: StreamState, offset: int, bytes_max: int) -> Sequence[StreamEntry]:
        """Committed entries from the one that holds ``offset``, about ``bytes_max``, at least one; none at the end.

        Raises UnavailableError, CorruptError.
        """
        if offset >= stream.end:
            return ()
        if self._read_uploaded is not None:
            cached = self._read_uploaded(stream.stream_id, offset, bytes_max)
            if cached:
                return cached
        return await self._reader.read(stream, offset, stream.end, bytes_max)
