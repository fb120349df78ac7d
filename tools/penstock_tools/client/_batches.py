"""The queue of a producer for one partition: batches being filled, waiting, on their way. No I/O, no clock.

One queue in sequence order. A batch is *open* (takes records), *ready* (closed by size, by age or by a
flush), *sent*, and finally *settled*. Sequences are given when a batch is first sent. When one batch has to be
sent again, all after it are too, in order and with the sequences they had: the broker recognises those that
it has (KIP-98), and order holds.
"""

from __future__ import annotations

__all__ = ("Batch", "Delivery", "PartitionQueue", "SendRefusal", "refusal_of")

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

import anyio

from penstock.errors import PenstockError, again
from penstock.wire import ErrorCode
from penstock.wire.records import BatchBuilder
from penstock_tools.client.errors import is_retriable

_SEQUENCE_MASK: Final = 0x7FFF_FFFF


class Batch:
    """Records that are sent together; ``base_offset`` is -1 until the broker told it, and with acks=0."""

    __slots__ = (
        "attempts",
        "base_offset",
        "base_sequence",
        "builder",
        "created_s",
        "done",
        "error",
        "is_open",
        "log_append_time_ms",
        "partition",
        "payload_bytes",
        "settled",
        "topic",
    )

    def __init__(self, topic: str, partition: int, builder: BatchBuilder, created_s: float) -> None:
        self.topic = topic
        self.partition = partition
        self.builder = builder
        #: Keys and values of its records, as they were given.
        self.payload_bytes = 0
        self.created_s = created_s
        self.is_open = True
        self.attempts = 0
        self.base_sequence = -1
        self.base_offset = -1
        self.log_append_time_ms = -1
        self.error: PenstockError | None = None
        self.done = False
        self.settled: anyio.Event | None = None

    def settle(self, error: PenstockError | None) -> None:
        """Say how it ended; once."""
        assert not self.done
        self.done, self.error = True, error
        if self.settled is not None:
            self.settled.set()


class Delivery:
    """The fate of one record."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    @property
    def partition(self) -> int:
        """The partition that the record was queued for."""
        return self._batch.partition

    async def wait(self) -> int:
        """The record's offset once the broker has acknowledged it; -1 with acks=0.

        Raises:
            PenstockError: it was given up; says why.
        """
        batch = self._batch
        if not batch.done:
            if batch.settled is None:
                batch.settled = anyio.Event()
            await batch.settled.wait()
        if batch.error is not None:
            raise again(batch.error)
        return batch.base_offset + self._index if batch.base_offset >= 0 else -1


class SendRefusal(Enum):
    """The ways to go on with a batch that the broker refused."""

    SEND_AGAIN = "as it is: it may pass, or was only out of turn"
    NEW_PRODUCER = (
        "under a new producer id: the broker's sequences don't fit ours, and it has not taken the batch"
    )
    GIVE_UP = "for good"


def refusal_of(code: int, *, is_first: bool, has_gap: bool, attempts: int) -> SendRefusal:
    """Decide about a batch that came back with error ``code``.

    ``is_first``: all before it are settled. ``has_gap``: one before it was given up, so its sequence is one
    that the broker doesn't wait for.
    """
    if code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER:
        if not is_first:
            return SendRefusal.SEND_AGAIN
        return SendRefusal.NEW_PRODUCER if has_gap else SendRefusal.GIVE_UP
    if code == ErrorCode.UNKNOWN_PRODUCER_ID:
        # The broker forgot us (KIP-360). A batch that was sent once only can't be there already.
        return SendRefusal.NEW_PRODUCER if is_first and attempts == 1 else SendRefusal.GIVE_UP
    if code == ErrorCode.CORRUPT_MESSAGE or is_retriable(code):
        return SendRefusal.SEND_AGAIN
    return SendRefusal.GIVE_UP


class PartitionQueue:
    """The batches of one partition, oldest first."""

    __slots__ = (
        "_batch_bytes_max",
        "_codec",
        "_level",
        "_on_change",
        "_queue",
        "_sent",
        "has_gap",
        "next_sequence",
        "partition",
        "producer_epoch",
        "producer_id",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        batch_bytes_max: int,
        codec: int = 0,
        level: int | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self._batch_bytes_max = batch_bytes_max
        self._codec = codec
        self._level = level
        self._on_change = on_change
        self._queue: deque[Batch] = deque()
        self._sent = 0
        #: A batch was given up after it may have been sent: the next sequences don't follow the broker's.
        self.has_gap = False
        self.producer_id = -1
        self.producer_epoch = -1
        self.next_sequence = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def waiting_count(self) -> int:
        """Batches that aren't on their way, the open one included."""
        return len(self._queue) - self._sent

    @property
    def oldest(self) -> Batch | None:
        """The batch that is to be settled next."""
        return self._queue[0] if self._queue else None

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        timestamp_ms: int,
        now_s: float,
    ) -> tuple[Batch, int, int]:
        """Take one record: (its batch, its index there, the bytes that the queue grew by)."""
        payload_bytes = len(key or b"") + len(value or b"")
        batch = self._queue[-1] if self._queue else None
        if batch is not None and batch.is_open:
            before = batch.builder.size_bytes
            index = batch.builder.append(key, value, headers, timestamp_ms)
            if index is not None:
                grown = batch.builder.size_bytes - before
                batch.payload_bytes += payload_bytes
                if batch.builder.size_bytes >= self._batch_bytes_max:
                    self.close_open()
                return batch, index, grown
            self.close_open()
        builder = BatchBuilder(bytes_max=self._batch_bytes_max, codec=self._codec, level=self._level)
        batch = Batch(self.topic, self.partition, builder, now_s)
        builder.append(key, value, headers, timestamp_ms)
        batch.payload_bytes = payload_bytes
        self._queue.append(batch)
        if builder.size_bytes >= self._batch_bytes_max:
            batch.is_open = False
        self._changed()
        return batch, 0, builder.size_bytes

    def close_open(self) -> None:
        """Nothing more into the open batch: it is ready."""
        if self._queue and self._queue[-1].is_open:
            self._queue[-1].is_open = False
            self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def next_ready(self, now_s: float, linger_s: float) -> Batch | None:
        """The next batch to send, closing the open one if it has lingered; None if there is nothing yet."""
        if self._sent >= len(self._queue):
            return None
        batch = self._queue[self._sent]
        if batch.is_open:
            if now_s < batch.created_s + linger_s:
                return None
            batch.is_open = False
        return batch

    def ready_at_s(self, linger_s: float) -> float | None:
        """When the next batch is ready at the latest; None without one."""
        if self._sent >= len(self._queue):
            return None
        batch = self._queue[self._sent]
        return batch.created_s + linger_s if batch.is_open else batch.created_s

    def mark_sent(self, batch: Batch) -> None:
        """``batch``, from :meth:`next_ready`, goes out now; gives it its sequence if it has none."""
        assert self._queue[self._sent] is batch
        assert not batch.is_open
        self._sent += 1
        batch.attempts += 1
        if self.producer_id >= 0 and batch.base_sequence < 0:
            batch.base_sequence = self.next_sequence
            self.next_sequence = (self.next_sequence + len(batch.builder)) & _SEQUENCE_MASK

    def rewind(self) -> None:
        """Everything on its way is to be sent again, in order, with the sequences it has."""
        self._sent = 0

    def pop_oldest(self) -> Batch:
        """Take out the oldest batch, which was sent or is given up."""
        if self._sent:
            self._sent -= 1
        return self._queue.popleft()

    def renumber(self, producer_id: int, producer_epoch: int) -> None:
        """Go on under another producer: sequences start at 0 with the oldest batch. Nothing may be on its way."""
        assert self._sent == 0
        self.producer_id, self.producer_epoch = producer_id, producer_epoch
        self.next_sequence = 0
        self.has_gap = False
        for batch in self._queue:
            batch.base_sequence = -1
