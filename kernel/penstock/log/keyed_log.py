"""A compacted internal topic as the group coordinator needs it: keyed records in, all of them back at start."""

from __future__ import annotations

__all__ = ("KeyedLog",)

from collections.abc import AsyncIterator, Callable, Sequence

from penstock.errors import ClosedError
from penstock.log.errors import KafkaError
from penstock.log.partition import Partition
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import build_batch, iter_records, read_header

READ_BYTES = 2**20


class KeyedLog:
    """``__consumer_offsets``, as :class:`penstock.coordinator.group_log.GroupLog` describes it."""

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
        if partition is None:
            raise ClosedError(
                f"this broker doesn't lead the partition: topic={self._topic} partition={index}"
            )
        return partition

    async def append(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> int:
        """Append the records as one batch; returns the first one's offset once they are durable."""
        now_ms = self._now_ms()
        batch = build_batch([(key, value, (), now_ms) for key, value in records])
        return await self._partition(partition).append_batch(batch)

    async def read_all(self, partition: int) -> AsyncIterator[tuple[bytes, bytes | None]]:
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
                raise
            if not result.records:
                raise ClosedError(f"the topic was deleted: topic={self._topic} partition={partition}")
            for batch in result.records:
                for record in iter_records(batch):
                    if record.offset >= log.log_start_offset and record.key is not None:
                        yield bytes(record.key), None if record.value is None else bytes(record.value)
                offset = read_header(batch).next_offset

    async def trim(self, partition: int, offset: int) -> None:
        """Everything before ``offset`` may go."""
        await self._partition(partition).delete_records(offset)
