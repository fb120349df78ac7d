"""Internal topics as coordinators need them: keyed records in, all of them back, in numbered partitions."""

from __future__ import annotations

__all__ = ("KeyedLog", "Record", "RecordLog")

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol, TypeAlias

from penstock.errors import ClosedError
from penstock.log.errors import KafkaError
from penstock.log.partition import Partition
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import BatchBuilder, iter_records, read_header
from penstock.work.pieces import in_portions

READ_BYTES = 2**20
#: A set is one batch however large it is; who submits sets bounds them.
_NO_LIMIT: Final = 1 << 62

#: (key, value) of a record; a null value is a tombstone.
Record: TypeAlias = tuple[bytes, bytes | None]


class RecordLog(Protocol):
    """Keyed records in numbered partitions, each written by one owner at a time: what a state log is made of."""

    @property
    def partition_count(self) -> int:
        """How many partitions there are; constant, since it decides where a key lives."""
        ...

    async def append(self, partition: int, records: Sequence[Record]) -> int:
        """Append records in order, all or none, and return the offset of the first once all are durable.

        Offsets are dense: the record after the last one gets the returned offset plus ``len(records)``.
        An owner never has two appends of one partition in flight. A cancelled append may or may not land.

        Raises:
            PenstockError: nothing is acknowledged; FencedError and ClosedError mean that another owner has
                the partition, anything else that it may work later.
        """
        ...

    def read_all(self, partition: int) -> AsyncIterator[Record]:
        """Every record from the start of the partition to its end, in order. Only used before any append.

        Raises:
            PenstockError: the partition can't be read completely; ClosedError: this broker doesn't lead it.
        """
        ...

    def uploaded_end(self, partition: int) -> int:
        """The offset up to which records outlive the WAL; 0 if this broker doesn't lead the partition."""
        ...

    async def trim(self, partition: int, offset: int) -> None:
        """Everything before ``offset`` may go; durable eventually, and repeating it is harmless.

        Raises:
            PenstockError: it didn't work this time; the next trim covers it.
        """
        ...


class KeyedLog:
    """An internal topic as a :class:`RecordLog`; a set of records is one record batch."""

    def __init__(
        self,
        topic: str,
        partition_count: int,
        partition_of: Callable[[str, int], Partition | None],
        now_ms: Callable[[], int],
    ) -> None:
        self._topic = topic
        self._partition_of = partition_of
        self._now_ms = now_ms
        self.partition_count = partition_count

    def _partition(self, index: int) -> Partition:
        partition = self._partition_of(self._topic, index)
        if partition is None or partition.is_closed:
            raise ClosedError(
                f"this broker doesn't lead the partition: topic={self._topic} partition={index}"
            )
        return partition

    async def append(self, partition: int, records: Sequence[Record]) -> int:
        """Append the records as one batch; returns the first one's offset once they are durable.

        A long batch is built in portions, between which others get their turn: no other append of this partition,
        by the contract. Cancelled meanwhile, nothing lands.
        """
        now_ms = self._now_ms()
        builder = BatchBuilder(bytes_max=_NO_LIMIT)
        async for key, value in in_portions(records):
            builder.append(key, value, (), now_ms)
        # looked up last: it may have been closed meanwhile
        return await self._partition(partition).append_batch(builder.build())

    async def read_all(self, partition: int) -> AsyncIterator[Record]:
        """Every record from the log start to the end, in order. Damage takes the partition offline."""
        log = self._partition(partition)
        offset = log.log_start_offset
        end = log.high_watermark
        while offset < end:
            try:
                result = await log.read(offset, READ_BYTES, read_committed=False, at_least_one=True)
            except KafkaError as error:
                if error.error_code == ErrorCode.CORRUPT_MESSAGE:
                    # nothing may be added by an owner that doesn't know the rest
                    await log.take_offline(error, offset)
                if log.is_closed:
                    raise self._closed(partition) from error
                raise
            if not result.records:
                raise self._closed(partition)
            for batch in result.records:
                for record in iter_records(batch):
                    if record.offset >= log.log_start_offset and record.key is not None:
                        yield bytes(record.key), None if record.value is None else bytes(record.value)
                offset = read_header(batch).next_offset

    def _closed(self, index: int) -> ClosedError:
        return ClosedError(f"the partition was closed: topic={self._topic} partition={index}")

    def uploaded_end(self, partition: int) -> int:
        """The offset up to which objects have the records."""
        log = self._partition_of(self._topic, partition)
        return 0 if log is None else log.uploaded_end

    async def trim(self, partition: int, offset: int) -> None:
        """Everything before ``offset`` may go."""
        await self._partition(partition).delete_records(offset)
