"""The state of a coordinator as keyed records of one partition of an internal topic: the newest of each key counts.

    load         every record, in order, is applied to a fresh state
    submit       a set of records is appended as one batch, all of them or none; then its submitter is told
    checkpoint   the live state is appended once more, in portions; once that is uploaded, everything before it is
                 trimmed, beside what is appended after it
    close        nothing is submitted any more; what is being appended ends

State is write-through: who submits changes the state when it is told that the records are durable, and not before. It
is told in the order of submission, and before anything later is appended; so between two appends the live state is
exactly what the records say, which is why a checkpoint may take their place. Nothing here knows what the state is:
consumer groups use it, and so can whatever keeps values by keys.
"""

from __future__ import annotations

__all__ = (
    "Cutter",
    "State",
    "StateLog",
    "StateLogCounters",
    "StateLogSettings",
    "cut_in_portions",
    "records_bytes",
)

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from penstock.account import Ledger
from penstock.errors import ClosedError, FencedError, PenstockError, again, kept
from penstock.log.errors import KafkaError
from penstock.log.keyed_log import Record, RecordLog
from penstock.wire.error_codes import ErrorCode
from penstock.work.one_error import one_error
from penstock.work.pieces import in_portions

logger = logging.getLogger("penstock.coordinator")
#: Records that are applied at a load before others get their turn: about a millisecond.
_SLICE_RECORDS: Final = 500


class State(Protocol):
    """What a coordinator knows of one partition. Pure: no clock, no I/O, and the same for the same records."""

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take over one record of the log; a null value is a tombstone, also of a key that isn't there.

        Raises:
            CorruptError: the record isn't well-formed.
            NewerVersionError: a newer version wrote it.
        """

    def live(self) -> Iterator[Record]:
        """The records that give the state as it is durable, one for each key. Others may run between two of them,
        but nothing is appended but what comes from here.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLogSettings:
    """The bounds of the log of one partition."""

    checkpoint_records: int = 10_000
    """A partition is rewritten after so many records (or twice its live records, if more)."""
    checkpoint_bytes: int = 8 * 1024 * 1024
    """The same in bytes."""
    append_bytes_max: int = 512 * 1024
    """Sets are appended together up to so many bytes of records; a larger one goes alone."""
    pending_writes_max: int = 10_000
    """Sets that may wait for one partition; above it they are refused as retriable."""


@dataclass(slots=True)
class StateLogCounters:
    """What the logs of all partitions have done, whoever led them."""

    appends: int = 0
    failures: int = 0
    checkpoints: int = 0


async def cut_in_portions(records: Iterable[Record], bytes_max: int) -> AsyncGenerator[list[Record], None]:
    """``records`` in order, as sets of at most ``bytes_max`` bytes and of one record at least.

    They may be made one by one: others get their turn between some of them.
    """
    cutter = Cutter(bytes_max)
    async for record in in_portions(records):
        if full := cutter.add(record):
            yield full
    if cutter.rest:
        yield cutter.rest


class Cutter:
    """Gathers records to sets of a size."""

    __slots__ = ("_bytes_max", "_size", "rest")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._size = 0
        #: What is no full set yet.
        self.rest: list[Record] = []

    def add(self, record: Record) -> list[Record] | None:
        """The set that is full now that there's no room in it for ``record``."""
        key, value = record
        size = len(key) + len(value or b"")
        full = None
        if self.rest and self._size + size > self._bytes_max:
            full, self.rest, self._size = self.rest, [], 0
        self.rest.append(record)
        self._size += size
        return full


def records_bytes(records: Iterable[Record]) -> int:
    """What keys and values have, together."""
    # sets are large, and no step of this waits: no bytecode for each record; nulls and empty values have no bytes
    return sum(map(len, filter(None, chain.from_iterable(records))))


class _Write:
    """A set of records, or who makes them, and who is told."""

    __slots__ = ("done", "records", "size")

    def __init__(
        self,
        records: Sequence[Record] | Callable[[], Awaitable[Sequence[Record]]],
        size: int,
        done: Callable[[ErrorCode], None],
    ) -> None:
        self.records = records
        self.size = size
        self.done = done

    async def made(self) -> Sequence[Record]:
        return await self.records() if callable(self.records) else self.records


class StateLog:
    """The records of one partition, for as long as one coordinator has it: `load` it, then `run` it in a task."""

    def __init__(
        self,
        partition: int,
        log: RecordLog,
        settings: StateLogSettings,
        memory: Ledger,
        counters: StateLogCounters,
    ) -> None:
        self.partition = partition
        self._log = log
        self._settings = settings
        #: Of what waits; shared with the other partitions.
        self._memory = memory
        self._counters = counters
        self._live: Callable[[], Iterator[Record]] = lambda: iter(())
        self._queue: deque[_Write] = deque()
        self._wake = anyio.Event()
        self._is_closed = False
        self._next_offset = 0
        self._grown_records = 0
        self._grown_bytes = 0
        self._live_records = 0
        self._live_bytes = 0
        #: Where the checkpoints begin and end that aren't known to be uploaded, oldest first.
        self._checkpoints: deque[tuple[int, int]] = deque()
        #: Where the newest one begins that is uploaded, until somebody trims to there.
        self._trim_to: int | None = None
        self._is_trimming = False

    @property
    def pending(self) -> int:
        """Sets that wait for their append."""
        return len(self._queue)

    async def load(self, state: State) -> None:
        """Apply every record to ``state``, a fresh one; its live records are those of checkpoints from now on.

        Raises:
            PenstockError: the log can't be read, or a record isn't understood. Nothing may be submitted then.
        """
        records = size = 0
        async for key, value in self._log.read_all(self.partition):
            state.apply(key, value)
            records += 1
            size += len(key) + len(value or b"")
            if records % _SLICE_RECORDS == 0:
                await anyio.lowlevel.checkpoint()
        self._grown_records, self._grown_bytes = records, size
        self._live = state.live

    def submit(self, records: Sequence[Record], done: Callable[[ErrorCode], None]) -> None:
        """Queue a set of records, which is appended whole or not at all, behind those that were submitted before.

        ``done`` is called exactly once, in the order of submission, with NONE once the set is durable. From in here
        it's called only if nothing will be appended: NOT_COORDINATOR once the log is closed,
        COORDINATOR_NOT_AVAILABLE where too much waits. After an error the set may still land, as a newer one of its
        keys says.
        """
        self._submit(_Write(records, records_bytes(records), done))

    def submit_later(
        self, make: Callable[[], Awaitable[Sequence[Record]]], size: int, done: Callable[[ErrorCode], None]
    ) -> None:
        """`submit` of records that take long to make, of about ``size`` bytes: ``make`` is called when their turn has
        come, and whoever is served beside that sees them behind what was submitted before.
        """
        self._submit(_Write(make, size, done))

    def _submit(self, write: _Write) -> None:
        done = write.done
        if self._is_closed:
            done(ErrorCode.NOT_COORDINATOR)
            return
        if len(self._queue) >= self._settings.pending_writes_max:
            self._counters.failures += 1
            done(ErrorCode.COORDINATOR_NOT_AVAILABLE)
            return
        # with nothing on the way even a large write goes: else it never would
        if self._memory.used_bytes and not self._memory.has_room(write.size):
            self._counters.failures += 1
            done(ErrorCode.COORDINATOR_NOT_AVAILABLE)
            return
        self._memory.add(write.size)
        self._queue.append(write)
        self._wake.set()

    def close(self) -> None:
        """Refuse everything that isn't being appended, with NOT_COORDINATOR; `run` ends after what is."""
        self._is_closed = True
        self._wake.set()
        left = list(self._queue)
        self._queue.clear()
        self._answer(left, ErrorCode.NOT_COORDINATOR)

    async def run(self) -> None:
        """Append what is submitted, and checkpoint when the log has grown enough, until it's closed or cancelled.

        Trims go on beside: they wait for the store, and what groups write doesn't. However this ends, the log is
        closed then: nobody else would answer who waits.
        """
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    while not self._is_closed:
                        if self._queue:
                            await self._append(self._take_batch())
                            if self._is_checkpoint_due() and not self._is_closed:
                                await self._checkpoint()
                            self._trim_soon(tasks)
                        else:
                            self._wake = anyio.Event()
                            await self._wake.wait()
        finally:
            self.close()

    def _take_batch(self) -> list[_Write]:
        batch = [self._queue.popleft()]
        size = batch[0].size
        while self._queue and size + self._queue[0].size <= self._settings.append_bytes_max:
            size += self._queue[0].size
            batch.append(self._queue.popleft())
        return batch

    async def _append(self, batch: Sequence[_Write]) -> None:
        error = ErrorCode.NOT_COORDINATOR  # the answer if this task is cancelled
        try:
            records = list(chain.from_iterable([await write.made() for write in batch]))
            self._next_offset = await self._log.append(self.partition, records) + len(records)
            error = ErrorCode.NONE
            self._counters.appends += 1
            self._grown_records += len(records)
            self._grown_bytes += sum(write.size for write in batch)
        except PenstockError as cause:
            error = _code_of(cause)
            self._failed(cause)
        finally:
            self._answer(batch, error)

    def _answer(self, batch: Iterable[_Write], error: ErrorCode) -> None:
        """Tell all of them. One who raises is a bug, which is raised once the others are told, too."""
        bug: Exception | None = None
        for write in batch:
            self._memory.add(-write.size)
            try:
                write.done(error)
            except Exception as raised:  # noqa: BLE001 - raised below
                bug = bug or kept(raised)
        if bug is not None:
            raise again(bug)

    def _failed(self, cause: PenstockError) -> None:
        self._counters.failures += 1
        logger.warning(
            "a coordinator's state couldn't be written: partition=%d error=%s", self.partition, cause
        )

    def _is_checkpoint_due(self) -> bool:
        # Twice the live state, so that checkpoints never cost more than what they make room for.
        return self._grown_records >= max(
            self._settings.checkpoint_records, 2 * self._live_records
        ) or self._grown_bytes >= max(self._settings.checkpoint_bytes, 2 * self._live_bytes)

    async def _checkpoint(self) -> None:
        """Write all that is alive again."""
        start = self._next_offset  # with nothing alive, everything so far may go
        records = size = 0
        self._grown_records = self._grown_bytes = 0
        try:
            async with aclosing(cut_in_portions(self._live(), self._settings.append_bytes_max)) as portions:
                async for portion in portions:
                    if self._is_closed:
                        break
                    offset = await self._log.append(self.partition, portion)
                    start = offset if records == 0 else start
                    self._next_offset = offset + len(portion)
                    records += len(portion)
                    size += records_bytes(portion)
        except PenstockError as cause:
            self._failed(cause)
            return
        if self._is_closed:
            # what was written says nothing new; nothing may be trimmed before the rest is there
            return
        self._live_records, self._live_bytes = records, size
        self._checkpoints.append((start, self._next_offset))

    def _trim_soon(self, tasks: TaskGroup) -> None:
        """Trim to the newest checkpoint that is uploaded: what is before another outlives the WAL, and it doesn't."""
        if self._is_closed or not self._checkpoints:
            return
        uploaded = self._log.uploaded_end(self.partition)
        while self._checkpoints and self._checkpoints[0][1] <= uploaded:
            self._trim_to = self._checkpoints.popleft()[0]
        if self._trim_to is not None and not self._is_trimming:
            self._is_trimming = True
            tasks.start_soon(self._trim)

    async def _trim(self) -> None:
        """Trim to where the newest checkpoint begins that is uploaded."""
        try:
            while (start := self._trim_to) is not None:
                self._trim_to = None
                await self._log.trim(self.partition, start)
                self._counters.checkpoints += 1
        except PenstockError as cause:
            self._failed(cause)
        finally:
            self._is_trimming = False


def _code_of(cause: PenstockError) -> ErrorCode:
    """What a client is told of a set that couldn't be appended."""
    if isinstance(cause, FencedError | ClosedError):
        return ErrorCode.NOT_COORDINATOR
    if isinstance(cause, KafkaError) and cause.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER:
        return ErrorCode.NOT_COORDINATOR
    return ErrorCode.COORDINATOR_NOT_AVAILABLE
