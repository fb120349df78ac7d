"""Produced batches that take longer than the event loop may be held up: checked, and recompressed, in a thread.

To check the records of a compressed batch it has to be inflated: from 0.2 ms (lz4) to 2 ms (gzip) per megabyte. Where
the topic's ``compression.type`` is another codec than the producer's, the plain bytes are packed again, which takes
from 3 ms (lz4) to 40 ms (gzip) per megabyte; a batch is inflated once for both. Small batches are done at once. For
others ``Partition.append`` raises ``NotNowError``: its ``wait`` does the work in a thread, and the caller appends
what it returns. A connection takes no further request meanwhile, so its appends keep their order.

Memory: a batch that comes out is the allocator's, like every batch. What it inflates to on the way is charged as
``inflate``; where there is no room for it, one batch at a time goes on without, so that all of them end (I8: the
limit plus one maximal record). So does one at a time that comes out larger than it came.
"""

from __future__ import annotations

__all__ = (
    "RECOMPRESS_BYTES_MAX",
    "RECOMPRESS_INFLATED_BYTES_MAX",
    "Preparation",
    "Preparer",
)

from collections.abc import Callable
from typing import Final, TypeVar

import anyio

from penstock.errors import FullError, NotNowError
from penstock.spi.allocator import Allocation, Allocator, Charge
from penstock.threads import run_in_thread
from penstock.wire.compression import CODEC_NONE, CODEC_ZSTD
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import (
    HEADER_BYTES,
    BatchError,
    BatchHeader,
    read_header,
)
from penstock.wire.record_walk import INFLATED_BYTES_MAX, plain_records
from penstock.wire.records import repack
from penstock.wire.validation import (
    INLINE_PYTHON_BYTES_MAX,
    BatchRules,
    amend_batch,
    amended_header,
    check_records,
    check_sum,
)

_T = TypeVar("_T")

#: Batches up to this size that inflate to no more than that are recompressed at once: a millisecond of gzip.
RECOMPRESS_BYTES_MAX: Final = 16 * 1024
RECOMPRESS_INFLATED_BYTES_MAX: Final = 32 * 1024
#: Levels of zstd above take up to ten times as long, so that no batch is small.
_INLINE_ZSTD_LEVEL_MAX: Final = 9

# How much a batch may inflate to in the first and the second attempt: most take little memory, and the bound that
# also a suspicious one gets (see ``plain_records``) needn't be charged for each of them.
_FIRST_BYTES: Final = 1024 * 1024
_RATIOS: Final = (8, 64)


class _Beyond:
    """A batch in memory beyond the limit of the account, an ``Allocation``; ``ended`` is called when it is gone."""

    __slots__ = ("_charge", "_ended", "size", "view")

    def __init__(self, batch: bytearray, charge: Charge, ended: Callable[[], None]) -> None:
        self.size = len(batch)
        self.view = memoryview(batch)
        self._charge = charge
        self._ended = ended

    def release(self) -> None:
        """The batch isn't needed any more. Once."""
        self.view = memoryview(b"")
        self._charge.release()
        self._ended()


class Preparer:
    """The threads and the memory that looking into batches may take, for all partitions of a broker."""

    def __init__(self, allocator: Allocator, *, threads: int) -> None:
        self.allocator = allocator
        #: The most that a batch may inflate to, here.
        self.inflated_bytes_max = min(INFLATED_BYTES_MAX, max(1, allocator.statistics().limit_bytes // 4))
        #: One for each batch that is looked into, and until what comes out has its memory.
        self.turns = anyio.Semaphore(threads)
        self._threads = anyio.CapacityLimiter(threads)
        #: Held by the one batch that goes on without a charge.
        self._uncharged = anyio.Lock()
        #: There is a batch beyond the limit; those that wait until it is gone, or there is room.
        self._is_beyond = False
        self._waiting: set[anyio.CancelScope] = set()

    async def place(self, batch: bytearray) -> Allocation:
        """Memory with ``batch`` in it, for who has memory already, but less.

        Waiting for room might be for ever: others have all memory, and wait for the turn that this one has. So one at
        a time goes beyond the limit. It is in the log then, which gives memory back when others want some.
        """
        while self._is_beyond:
            with anyio.CancelScope() as scope:
                self._waiting.add(scope)
                try:
                    own = await self.allocator.allocate(len(batch), "append")
                finally:
                    self._waiting.discard(scope)
                own.view[:] = batch
                return own
        self._is_beyond = True
        return _Beyond(batch, self.allocator.charge_anyway(len(batch), "append"), self._ended)

    def _ended(self) -> None:
        """The batch beyond the limit is gone."""
        self._is_beyond = False
        for scope in tuple(self._waiting):
            scope.cancel()

    async def look_into(self, batch: memoryview, codec: int, look: Callable[[int], _T]) -> _T:
        """``look(inflated_bytes_max)`` in a thread, which may inflate the records of ``batch`` to so much.

        The caller has one of ``turns``. Cancellable; the memory of the batch must stay until then.

        Raises:
            BatchError: what ``look`` raises; MESSAGE_TOO_LARGE says that the bound is too low, up to the last one.
        """
        bounds = self._bounds(len(batch), codec)
        for bound in bounds[:-1]:
            try:
                return await self._charged(bound, look)
            except BatchError as error:
                if error.error_code != ErrorCode.MESSAGE_TOO_LARGE:
                    raise
        return await self._charged(bounds[-1], look)

    async def search(self, batch: memoryview, look: Callable[[int], _T]) -> _T:
        """``look(inflated_bytes_max)``, which reads the records of a stored batch: at once if it is small.

        Cancellable; the memory of the batch must stay until then.

        Raises:
            BatchError: as ``look_into``.
        """
        codec = read_header(batch).codec
        if len(batch) <= INLINE_PYTHON_BYTES_MAX:
            try:
                return look(INLINE_PYTHON_BYTES_MAX)
            except BatchError as error:
                if error.error_code != ErrorCode.MESSAGE_TOO_LARGE:
                    raise
        async with self.turns:
            return await self.look_into(batch, codec, look)

    async def _charged(self, bound: int, look: Callable[[int], _T]) -> _T:
        charge = None
        try:
            charge = self.allocator.charge_nowait(bound, "inflate")
        except FullError:
            await self._uncharged.acquire()
        try:
            return await run_in_thread(look, bound, limiter=self._threads)
        finally:
            if charge is None:
                self._uncharged.release()
            else:
                charge.release()

    def _bounds(self, size: int, codec: int) -> list[int]:
        if codec == CODEC_NONE:
            return [size]  # nothing inflates; Python works on a copy
        last = self.inflated_bytes_max
        guesses = (max(_FIRST_BYTES, size * ratio) for ratio in _RATIOS)
        return sorted({min(guess, last) for guess in (*guesses, last)})


class Preparation:
    """One batch whose header is checked already, what its topic asks of its records, and the codec it is to have."""

    __slots__ = ("_batch", "_codec", "_header", "_is_summed", "_level", "_now_ms", "_preparer", "_rules")

    def __init__(
        self,
        preparer: Preparer,
        batch: memoryview,
        header: BatchHeader,
        rules: BatchRules,
        now_ms: int,
        codec: int | None = None,
        level: int | None = None,
    ) -> None:
        self._preparer = preparer
        self._batch = batch
        self._header = header
        self._rules = rules
        self._now_ms = now_ms
        #: None: the producer's own.
        self._codec = codec
        self._level = level
        self._is_summed = False

    def recompress_nowait(self) -> Allocation | None:
        """The checked and recompressed batch, in memory of its own.

        None if that takes too long or finds no memory: ``run`` it.

        Raises:
            BatchError: as ``run``.
        """
        if len(self._batch) > RECOMPRESS_BYTES_MAX or self._is_slow():
            return None
        try:
            packed = self._repacked(RECOMPRESS_INFLATED_BYTES_MAX)
        except BatchError as error:
            if error.error_code == ErrorCode.MESSAGE_TOO_LARGE:
                return None  # ``run`` has larger bounds
            raise
        try:
            own = self._preparer.allocator.allocate_nowait(len(packed), "append")
        except FullError:
            return None
        own.view[:] = packed
        return own

    def _is_slow(self) -> bool:
        return self._codec == CODEC_ZSTD and self._level is not None and self._level > _INLINE_ZSTD_LEVEL_MAX

    def due(self) -> NotNowError:
        """The error of an append that needs this first; its ``wait`` is ``run``."""
        return NotNowError(
            "the batch has to be checked or recompressed in a thread first", self.run, is_work=True
        )

    async def run(self) -> tuple[memoryview, Allocation | None]:
        """The batch to append, and its memory; None if that is the original's, which may be written to.

        Cancellable; the original's memory must stay until then.

        Raises:
            BatchError: as ``check_sum``, as ``check_records``; INVALID_RECORD if the records
                can't be inflated, MESSAGE_TOO_LARGE if they inflate beyond all bounds or the result is over
                ``max.message.bytes``.
        """
        async with self._preparer.turns:
            if self._codec is not None:
                return await self._recompress()
            codec = self._header.codec
            max_timestamp = await self._preparer.look_into(self._batch, codec, self._checked)
            amend_batch(self._batch, self._header, max_timestamp)
            return self._batch, None

    async def _recompress(self) -> tuple[memoryview, Allocation | None]:
        batch, preparer = self._batch, self._preparer
        packed = await preparer.look_into(batch, self._header.codec, self._repacked)
        size = len(packed)
        try:
            own = preparer.allocator.allocate_nowait(size, "append")
        except FullError:
            if size <= len(batch):
                # Who has memory doesn't wait for memory: else many such could wait for each other.
                batch[:size] = packed
                return batch[:size], None
            own = await preparer.place(packed)
        else:
            own.view[:] = packed
        return own.view, own

    def _check_sum(self) -> None:
        """First, and once: a batch may be looked into again with a higher bound."""
        if not self._is_summed:
            check_sum(self._batch, self._header, self._rules)
            self._is_summed = True

    def _checked(self, inflated_bytes_max: int) -> int:
        self._check_sum()
        plain = plain_records(self._batch, self._header, inflated_bytes_max, from_client=True)
        return check_records(plain, 0, self._header, self._rules, self._now_ms)

    def _repacked(self, inflated_bytes_max: int) -> bytearray:
        self._check_sum()
        header, rules = self._header, self._rules
        assert self._codec is not None
        if self._codec == CODEC_NONE:  # what it inflates to is what it will be
            inflated_bytes_max = min(inflated_bytes_max, max(1, rules.max_message_bytes - HEADER_BYTES))
        plain = plain_records(self._batch, header, inflated_bytes_max, from_client=True)
        max_timestamp = header.max_timestamp
        if rules.full:
            max_timestamp = check_records(plain, 0, header, rules, self._now_ms)
        header = amended_header(header, max_timestamp)
        return repack(header, plain, self._codec, self._level, rules.max_message_bytes)
