"""Batches for topics whose ``compression.type`` names another codec than the producer used.

The records of a batch are inflated and packed as a whole, and not one of them is decoded. That takes from 3 ms (lz4)
to 40 ms (gzip) per megabyte, so only small batches are done at once; for others ``Partition.append`` raises
``RecompressionDueError``, whose ``work`` is done in a thread, and the caller appends what it gives. A
connection takes no further request meanwhile, so its appends keep their order.

Memory: the result is the allocator's, like every batch. What is inflated on the way is charged as ``recompress``;
where there is no room for it, one batch at a time goes on without, so that all of them end (I8: the limit plus one
maximal record).
"""

from __future__ import annotations

__all__ = (
    "INLINE_BYTES",
    "INLINE_INFLATED_BYTES",
    "RECOMPRESSED_VERSION",
    "Recompression",
    "RecompressionDueError",
    "Recompressor",
)

from functools import partial
from typing import Final

import anyio

from penstock.errors import FullError, PenstockError
from penstock.spi.allocator import Allocation, Allocator
from penstock.threads import run_in_thread
from penstock.wire.compression import CODEC_ZSTD
from penstock.wire.records import INFLATED_BYTES_MAX, MESSAGE_TOO_LARGE, BatchError, recompress

#: Batches up to this size that inflate to no more than that are recompressed at once: a millisecond of gzip.
INLINE_BYTES: Final = 16 * 1024
INLINE_INFLATED_BYTES: Final = 32 * 1024
#: Levels of zstd above take up to ten times as long, so that no batch is small.
_INLINE_ZSTD_LEVEL_MAX: Final = 9

#: The Produce version that a recompressed batch goes as: its codec is the broker's choice and not the client's,
#: so that it may be zstd whatever the client speaks (KIP-110).
RECOMPRESSED_VERSION: Final = 13

# How much a batch may inflate to in the first and the second attempt: most take little memory, and the bound that
# also a suspicious one gets (see ``penstock.wire.records``) needn't be charged for each of them.
_FIRST_BYTES: Final = 1024 * 1024
_RATIOS: Final = (8, 64)


class RecompressionDueError(PenstockError):
    """The batch has another codec than its topic: await ``work.run()``, then append what it gives.

    Nothing was appended, and nothing has changed.
    """

    retryable = True

    def __init__(self, work: Recompression) -> None:
        super().__init__("the batch has to be recompressed for its topic first")
        self.work = work


class Recompressor:
    """The threads and the memory that recompression may take, for all partitions of a broker."""

    def __init__(self, allocator: Allocator, *, threads: int) -> None:
        self.allocator = allocator
        #: The most that a batch may inflate to, here.
        self.inflated_bytes_max = min(INFLATED_BYTES_MAX, max(1, allocator.statistics().limit_bytes // 4))
        self.turns = anyio.Semaphore(threads)
        self.threads = anyio.CapacityLimiter(threads)
        #: Held by the one batch that goes on without a charge.
        self.uncharged = anyio.Lock()


class Recompression:
    """One batch, checked already, and the codec that its topic wants."""

    __slots__ = ("_batch", "_codec", "_level", "_recompressor", "_size_max")

    def __init__(
        self, recompressor: Recompressor, batch: memoryview, codec: int, level: int | None, size_max: int
    ) -> None:
        self._recompressor = recompressor
        self._batch = batch
        self._codec = codec
        self._level = level
        #: ``max.message.bytes``, which holds for the result too.
        self._size_max = size_max

    def run_nowait(self) -> Allocation | None:
        """The recompressed batch in memory of its own; None if that takes too long or finds no memory: ``run`` it.

        Raises:
            BatchError: as ``run``.
        """
        if len(self._batch) > INLINE_BYTES or self._is_slow():
            return None
        try:
            packed = self._pack(INLINE_INFLATED_BYTES)
        except BatchError as error:
            if error.error_code == MESSAGE_TOO_LARGE:
                return None  # ``run`` has larger bounds
            raise
        try:
            own = self._recompressor.allocator.allocate_nowait(len(packed), "append")
        except FullError:
            return None
        own.view[:] = packed
        return own

    def _is_slow(self) -> bool:
        return self._codec == CODEC_ZSTD and self._level is not None and self._level > _INLINE_ZSTD_LEVEL_MAX

    async def run(self) -> tuple[memoryview, Allocation | None]:
        """The recompressed batch, and its memory; None if it lies in the original's, which is overwritten then.

        Cancellable; the original's memory must stay until then.

        Raises:
            BatchError: INVALID_RECORD if the records can't be inflated, MESSAGE_TOO_LARGE if they inflate beyond all
                bounds or the result is over ``max.message.bytes``.
        """
        recompressor = self._recompressor
        async with recompressor.turns:
            packed = await self._pack_in_thread()
            size = len(packed)
            try:
                own = recompressor.allocator.allocate_nowait(size, "append")
            except FullError:
                if size <= len(self._batch):
                    # Who has memory doesn't wait for memory: else many such could wait for each other.
                    self._batch[:size] = packed
                    return self._batch[:size], None
                own = await recompressor.allocator.allocate(size, "append")
            own.view[:] = packed
            return own.view, own

    async def _pack_in_thread(self) -> bytearray:
        recompressor = self._recompressor
        bounds = self._bounds()
        for inflated_max in bounds:
            pack = partial(self._pack, inflated_max)
            try:
                try:
                    charge = recompressor.allocator.charge_nowait(inflated_max, "recompress")
                except FullError:
                    async with recompressor.uncharged:
                        return await run_in_thread(pack, limiter=recompressor.threads)
                try:
                    return await run_in_thread(pack, limiter=recompressor.threads)
                finally:
                    charge.release()
            except BatchError as error:
                if error.error_code != MESSAGE_TOO_LARGE or inflated_max == bounds[-1]:
                    raise
        raise AssertionError("there is at least one bound")

    def _bounds(self) -> list[int]:
        last = self._recompressor.inflated_bytes_max
        guesses = (max(_FIRST_BYTES, len(self._batch) * ratio) for ratio in _RATIOS)
        return sorted({min(guess, last) for guess in (*guesses, last)})

    def _pack(self, inflated_max: int) -> bytearray:
        return recompress(
            self._batch,
            self._codec,
            self._level,
            inflated_bytes_max=inflated_max,
            size_bytes_max=self._size_max,
        )
