"""Where group state is kept: the contract of the log behind the group service, and the writer in front of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from penstock.account import Ledger
from penstock.coordinator.group_types import GroupSettings
from penstock.errors import ClosedError, FencedError, PenstockError
from penstock.wire.error_codes import ErrorCode

__all__ = ("GroupLog", "LogRecord", "PartitionWriter", "partition_for")

_LOGGER = logging.getLogger("penstock.coordinator")
_HASH_MASK = 0xFFFF_FFFF
_INT32_MIN = 0x8000_0000

#: (key, value); a null value is a tombstone.
LogRecord: TypeAlias = tuple[bytes, bytes | None]


class GroupLog(Protocol):
    """A compacted log of keyed records in numbered partitions: `__consumer_offsets` as the service needs it."""

    @property
    def partition_count(self) -> int:
        """How many partitions there are; constant, since it decides where a group lives."""
        ...

    async def append(self, partition: int, records: Sequence[LogRecord]) -> int:
        """Append records in order, all or none, and return the offset of the first once all are durable.

        Offsets are dense: the record after the last one gets the returned offset plus `len(records)`.
        The service never has two appends of one partition in flight. A cancelled append may or may not
        land.

        Raises:
            PenstockError: nothing is acknowledged; FencedError and ClosedError mean that another owner has
                the partition, anything else that it may work later.
        """
        ...

    def read_all(self, partition: int) -> AsyncIterator[LogRecord]:
        """Every record from the start of the partition to its end, in order. Only used before any append.

        Raises:
            PenstockError: the partition can't be read completely.
        """
        ...

    async def trim(self, partition: int, offset: int) -> None:
        """Everything before `offset` may go; durable eventually, and repeating it is harmless.

        Raises:
            PenstockError: it didn't work this time; the next trim covers it.
        """
        ...


def partition_for(group_id: str, partition_count: int) -> int:
    """The partition a group lives in, as Kafka does it: `abs(groupId.hashCode()) % partitions`.

    Java hashes UTF-16 code units with 32-bit overflow, and Kafka's abs maps the one number without a positive
    counterpart to 0.
    """
    digest = 0
    units = group_id.encode("utf-16-be", "surrogatepass")
    for index in range(0, len(units), 2):
        digest = (31 * digest + (units[index] << 8) + units[index + 1]) & _HASH_MASK
    if digest == _INT32_MIN:
        return 0
    return (digest if digest < _INT32_MIN else _HASH_MASK + 1 - digest) % partition_count


class _Write:
    """Records to append together, and who is told."""

    __slots__ = ("done", "records", "size")

    def __init__(self, records: Sequence[LogRecord], done: Callable[[ErrorCode], None]) -> None:
        self.records = records
        self.size = sum(len(key) + len(value or b"") for key, value in records)
        self.done = done


class PartitionWriter:
    """Writes one partition in the order of `submit`, many writes per append, and keeps it from growing.

    A task runs only while there is something to write: `spawn` starts it in the scope of the service. When
    the log has grown enough since the last checkpoint, the live state is appended once more and everything
    before it is trimmed; since this happens between appends, the live state is exactly what the log says.
    """

    def __init__(
        self,
        partition: int,
        log: GroupLog,
        settings: GroupSettings,
        live: Callable[[], Iterable[LogRecord]],
        spawn: Callable[[Callable[[], Coroutine[object, object, None]]], None],
        memory: Ledger,
    ) -> None:
        self._partition = partition
        self._log = log
        self._settings = settings
        self._live = live
        self._spawn = spawn
        #: Of what waits; shared with the other partitions.
        self._memory = memory
        self._queue: deque[_Write] = deque()
        self._is_running = False
        self._is_closed = False
        self._next_offset = 0
        self._grown_records = 0
        self._grown_bytes = 0
        self._live_records = 0
        self._live_bytes = 0
        self.appends = 0
        self.failures = 0
        self.checkpoints = 0

    @property
    def pending(self) -> int:
        """Writes that wait for their append."""
        return len(self._queue)

    def loaded(self, record: LogRecord) -> None:
        """Account for one record that was read at start."""
        self._grown_records += 1
        self._grown_bytes += len(record[0]) + len(record[1] or b"")

    def submit(self, records: Sequence[LogRecord], done: Callable[[ErrorCode], None]) -> None:
        """Queue records; `done` is called exactly once, in the order of submission, never from in here
        unless the writer is closed or full.
        """
        if self._is_closed:
            done(ErrorCode.NOT_COORDINATOR)
            return
        if len(self._queue) >= self._settings.pending_writes_max:
            self.failures += 1
            done(ErrorCode.COORDINATOR_NOT_AVAILABLE)
            return
        write = _Write(records, done)
        # with nothing on the way even a large write goes: else it never would
        if self._memory.used_bytes and not self._memory.has_room(write.size):
            self.failures += 1
            done(ErrorCode.COORDINATOR_NOT_AVAILABLE)
            return
        self._memory.add(write.size)
        self._queue.append(write)
        if not self._is_running:
            self._is_running = True
            self._spawn(self._run)

    def close(self) -> None:
        """Refuse everything that hasn't started; what is being appended is answered by its own task."""
        self._is_closed = True
        while self._queue:
            write = self._queue.popleft()
            self._memory.add(-write.size)
            write.done(ErrorCode.NOT_COORDINATOR)

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._append(self._take_batch())
                if self._is_checkpoint_due():
                    await self._checkpoint()
        finally:
            self._is_running = False

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
            records = [record for write in batch for record in write.records]
            # Usually one chunk; only a write that is too large by itself is cut.
            for chunk in self._chunks(records):
                self._next_offset = await self._log.append(self._partition, chunk) + len(chunk)
            error = ErrorCode.NONE
            self.appends += 1
            self._grown_records += len(records)
            self._grown_bytes += sum(write.size for write in batch)
        except (FencedError, ClosedError) as cause:
            self._failed(cause)
        except PenstockError as cause:
            error = ErrorCode.COORDINATOR_NOT_AVAILABLE
            self._failed(cause)
        finally:
            for write in batch:
                self._memory.add(-write.size)
                write.done(error)

    def _failed(self, cause: PenstockError) -> None:
        self.failures += 1
        _LOGGER.warning("group state couldn't be written: partition=%d error=%s", self._partition, cause)

    def _is_checkpoint_due(self) -> bool:
        # Twice the live state, so that checkpoints never cost more than what they make room for.
        return self._grown_records >= max(
            self._settings.checkpoint_records, 2 * self._live_records
        ) or self._grown_bytes >= max(self._settings.checkpoint_bytes, 2 * self._live_bytes)

    async def _checkpoint(self) -> None:
        start = self._next_offset  # with nothing alive, everything so far may go
        records = size = 0
        self._grown_records = self._grown_bytes = 0
        try:
            for chunk in self._chunks(self._live()):
                offset = await self._log.append(self._partition, chunk)
                start = offset if records == 0 else start
                self._next_offset = offset + len(chunk)
                records += len(chunk)
                size += sum(len(key) + len(value or b"") for key, value in chunk)
            await self._log.trim(self._partition, start)
        except PenstockError as cause:
            self._failed(cause)
            return
        self._live_records, self._live_bytes = records, size
        self.checkpoints += 1

    def _chunks(self, records: Iterable[LogRecord]) -> Iterator[list[LogRecord]]:
        chunk: list[LogRecord] = []
        size = 0
        for key, value in records:
            record_size = len(key) + len(value or b"")
            if chunk and size + record_size > self._settings.append_bytes_max:
                yield chunk
                chunk, size = [], 0
            chunk.append((key, value))
            size += record_size
        if chunk:
            yield chunk
