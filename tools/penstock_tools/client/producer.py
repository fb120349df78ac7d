"""Producing: records into batches by partition, batches to leaders, answers back to whoever waits.

Per partition one task sends. With idempotence (the default) up to five batches of a partition are on their way
at once, the window in which the broker recognises what it has (KIP-98); without it one, so that a retry can't
change the order. What fails for good is told to its records only, and the partition goes on.
"""

from __future__ import annotations

__all__ = ("Delivery", "Producer", "ProducerSettings", "ProducerStatistics")

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final

import anyio
import anyio.abc

from penstock.errors import ClosedError, InvalidRequestError, PenstockError, UnavailableError
from penstock.spi.partitioner import Partitioner, PartitionLoad
from penstock.spi.statistics import counter
from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from penstock.wire.messages.produce import (
    PartitionProduceData,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
)
from penstock.work.retry import Backoff, doubling
from penstock_tools.client._batches import Batch, Delivery, PartitionQueue, SendRefusal, refusal_of
from penstock_tools.client._scope import task_group
from penstock_tools.client.cluster import Cluster, TopicInfo
from penstock_tools.client.connection import Pending
from penstock_tools.client.errors import check, error_of

#: The broker keeps the last five batches of a producer per partition.
_IDEMPOTENT_WINDOW: Final = 5
_TRANSACTION_TIMEOUT_MS: Final = 60_000
_RECORD_OVERHEAD_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings:
    """Settings of a producer. ``acks`` is -1 (all), 1 or 0; ``codec`` an id as in ``penstock.wire.compression``."""

    acks: int = -1
    idempotent: bool = True
    codec: int = 0
    compression_level: int | None = None
    batch_bytes_max: int = 64 * 1024
    linger_ms: float = 5.0
    #: Records that are neither sent nor answered; sending waits above it.
    buffered_bytes_max: int = 32 * 1024 * 1024
    #: From the record's send until it is given up, retries included.
    delivery_timeout_s: float = 120.0
    #: Whether the broker may create a topic that isn't there, if it is set up so.
    create_topics: bool = True


@dataclass(slots=True)
class ProducerStatistics:
    """Counts since the producer was opened; bytes as they went out, compressed, with batch headers."""

    records_delivered: Annotated[int, counter("records", "Records that were acknowledged.")] = 0
    records_failed: Annotated[int, counter("records", "Records that were given up.")] = 0
    payload_bytes_delivered: Annotated[int, counter("bytes", "Keys and values of the delivered records.")] = 0
    batches_sent: Annotated[int, counter("batches", "Batches that were sent.")] = 0
    bytes_sent: Annotated[int, counter("bytes", "Their bytes, compressed, with headers.")] = 0


class Producer:
    """Sends records. Open it with :meth:`open`; leaving that flushes, unless an error is on its way out.

    For one event loop; any number of its tasks may send. Records of one partition keep the order of the
    ``send`` calls.
    """

    def __init__(
        self,
        cluster: Cluster,
        partitioner: Partitioner,
        settings: ProducerSettings,
        tasks: anyio.abc.TaskGroup,
        now_ms: Callable[[], int],
    ) -> None:
        if settings.acks not in (-1, 0, 1):
            raise InvalidRequestError(f"acks is all, 1 or 0: acks={settings.acks}")
        if settings.idempotent and settings.acks != -1:
            raise InvalidRequestError(
                f"idempotence needs acks=all, switch one of them: acks={settings.acks} idempotent=true"
            )
        self.settings = settings
        self.statistics = ProducerStatistics()
        self.first_error: PenstockError | None = None
        self._cluster = cluster
        self._partitioner = partitioner
        self._adaptive = partitioner.capabilities.adaptive
        self._tasks = tasks
        self._now_ms = now_ms
        self._topics: dict[str, TopicInfo] = {}
        self._senders: dict[tuple[str, int], _Sender] = {}
        self._buffered_bytes = 0
        self._room = anyio.Event()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: Cluster,
        partitioner: Partitioner,
        settings: ProducerSettings | None = None,
        *,
        now_ms: Callable[[], int],
    ) -> AsyncIterator[Producer]:
        """A producer; ``now_ms`` gives the timestamp of records that come without one.

        Raises:
            InvalidRequestError: the settings contradict each other.
        """
        async with task_group() as tasks:
            producer = cls(cluster, partitioner, settings or ProducerSettings(), tasks, now_ms)
            try:
                yield producer
                await producer.flush()
            finally:
                producer._close()

    # -- sending ---------------------------------------------------------------------------------------------

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Delivery:
        """Queue one record; waits while ``buffered_bytes_max`` is reached. The partitioner chooses if you don't.

        Raises:
            NotFoundError: no such topic or partition.
            UnavailableError: the cluster isn't reachable.
            ClosedError: the producer is closed.
        """
        while True:
            delivery = self.send_nowait(
                topic, value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms
            )
            if delivery is not None:
                return delivery
            if topic not in self._topics:
                self._topics[topic] = await self._cluster.topic(topic, create=self.settings.create_topics)
            else:
                await self._room.wait()

    def send_nowait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Delivery | None:
        """Queue a record like :meth:`send`; None where that would wait, for room or for metadata of the topic."""
        if self._closed:
            raise ClosedError("producer is closed")
        info = self._topics.get(topic)
        if info is None or self._buffered_bytes >= self.settings.buffered_bytes_max:
            return None
        if partition is None:
            size_bytes = len(key or b"") + len(value or b"") + sum(len(n) + len(v or b"") for n, v in headers)
            partition = self._partitioner.choose(
                topic, key, size_bytes + _RECORD_OVERHEAD_BYTES, len(info.partitions)
            )
        sender = self._senders.get((topic, partition))
        if sender is None:
            sender = self._start_sender(info, partition)
        timestamp_ms = self._now_ms() if timestamp_ms is None else timestamp_ms
        batch, index, grown = sender.queue.append(key, value, headers, timestamp_ms, anyio.current_time())
        self._buffered_bytes += grown
        if self._buffered_bytes >= self.settings.buffered_bytes_max:
            self._room = anyio.Event()
        return Delivery(batch, index)

    async def flush(self) -> None:
        """Send everything now and wait until each record is acknowledged or given up.

        Raises nothing for records that were given up: see ``first_error``, ``statistics`` and their Delivery.
        """
        for sender in list(self._senders.values()):
            sender.flushing = True
            sender.queue.close_open()
            sender.wake()
        for sender in list(self._senders.values()):
            await sender.wait_empty()
            sender.flushing = False

    def _close(self) -> None:
        self._closed = True
        for sender in self._senders.values():
            sender.give_up(ClosedError("producer was closed before the record was acknowledged"))

    def _start_sender(self, info: TopicInfo, partition: int) -> _Sender:
        if not 0 <= partition < len(info.partitions):
            info.leader_of(partition)  # raises NotFoundError with the sentence
        sender = _Sender(self, info.name, partition)
        self._senders[info.name, partition] = sender
        self._tasks.start_soon(sender.run)
        return sender

    # -- for the senders -------------------------------------------------------------------------------------

    def settle(self, batch: Batch, error: PenstockError | None) -> None:
        """One batch ended; frees its bytes."""
        self._buffered_bytes -= batch.builder.size_bytes
        if self._buffered_bytes < self.settings.buffered_bytes_max:
            self._room.set()
        if error is None:
            self.statistics.records_delivered += len(batch.builder)
            self.statistics.payload_bytes_delivered += batch.payload_bytes
        else:
            self.statistics.records_failed += len(batch.builder)
            if self.first_error is None:
                self.first_error = error
        batch.settle(error)

    def tell_load(self, topic: str) -> None:
        """Tell the partitioner how the partitions of ``topic`` are doing, if it cares."""
        info = self._topics.get(topic)
        if not self._adaptive or info is None:
            return
        loads = {
            partition: sender.load() for (name, partition), sender in self._senders.items() if name == topic
        }
        self._partitioner.update_load(topic, loads, anyio.current_time() * 1000)

    def refresh_topic(self, info: TopicInfo) -> None:
        """Newer news of a topic: partitions may have been added."""
        self._topics[info.name] = info


class _Sender:
    """Sends one partition's batches, in order."""

    def __init__(self, producer: Producer, topic: str, partition: int) -> None:
        settings = producer.settings
        self.queue = PartitionQueue(
            topic,
            partition,
            batch_bytes_max=settings.batch_bytes_max,
            codec=settings.codec,
            level=settings.compression_level,
            on_change=self.wake,
        )
        self.flushing = False
        self._producer = producer
        self._cluster = producer._cluster
        self._window: deque[tuple[Batch, Pending]] = deque()
        #: Whether the broker has acknowledged a batch of the present producer id.
        self._is_known = False
        self._wake = anyio.Event()
        self._empty: anyio.Event | None = None
        self._available = True
        retries = self._cluster.settings
        self._backoff = Backoff(doubling(retries.retry_backoff_s, retries.retry_backoff_max_s))

    @property
    def _what(self) -> str:
        return f"topic={self.queue.topic} partition={self.queue.partition}"

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    def load(self) -> PartitionLoad:
        """For the partitioner."""
        oldest = self.queue.oldest
        waits = self.queue.waiting_count > 0 and oldest is not None
        return PartitionLoad(
            queued_batches=self.queue.waiting_count,
            available=self._available,
            waiting_since_ms=oldest.created_s * 1000 if waits and oldest is not None else None,
        )

    @property
    def _window_max(self) -> int:
        # A broker takes any sequence from a producer that it doesn't know (Kafka too): were the first batch
        # refused, the second would be taken for the first. So the first one goes alone.
        return _IDEMPOTENT_WINDOW if self._producer.settings.idempotent and self._is_known else 1

    async def wait_empty(self) -> None:
        """Return when every batch is settled."""
        if len(self.queue):
            if self._empty is None:
                self._empty = anyio.Event()
            await self._empty.wait()

    def give_up(self, error: PenstockError) -> None:
        """Settle all that is left with ``error``."""
        while len(self.queue):
            self._settle_oldest(error)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._wake = anyio.Event()
            self._drop_overdue()
            try:
                await self._fill_window()
                await self._settle_answered()
            except PenstockError as error:
                if not error.retryable:
                    self._abandon_window()
                    self.queue.has_gap = True
                    self.give_up(error)
                    continue
                await self._recover(error)
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        """Until a batch is ready, an answer is there, or a timeout runs out."""
        now = anyio.current_time()
        settings = self._producer.settings
        until = [now + settings.delivery_timeout_s]
        if self._window:
            until.append(self._window[0][1].sent_at_s + self._cluster.settings.request_timeout_s)
        if len(self._window) < self._window_max:
            ready_at = self.queue.ready_at_s(self._linger_s)
            if ready_at is not None:
                until.append(ready_at)
        with anyio.move_on_after(max(0.0, min(until) - now)):
            await self._wake.wait()

    @property
    def _linger_s(self) -> float:
        return 0.0 if self.flushing else self._producer.settings.linger_ms / 1000

    async def _fill_window(self) -> None:
        while len(self._window) < self._window_max:
            batch = self.queue.next_ready(anyio.current_time(), self._linger_s)
            if batch is None:
                return
            await self._identify()
            await self._transmit(batch)

    async def _identify(self) -> None:
        """Get a producer id where one is needed (InitProducerId without a transaction, KIP-98)."""
        if self._producer.settings.idempotent and self.queue.producer_id < 0:
            answer = await self._cluster.ask(
                await self._cluster.any_node(),
                ApiKey.INIT_PRODUCER_ID,
                InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS),
            )
            assert isinstance(answer, InitProducerIdResponse)
            check(answer.error_code, "broker gives no producer id")
            self.queue.renumber(answer.producer_id, answer.producer_epoch)
            self._is_known = False

    async def _transmit(self, batch: Batch) -> None:
        queue, settings = self.queue, self._producer.settings
        info = await self._cluster.topic(queue.topic)
        self._producer.refresh_topic(info)
        connection = await self._cluster.node(info.leader_of(queue.partition))
        queue.mark_sent(batch)
        records = batch.builder.build(
            producer_id=queue.producer_id,
            producer_epoch=queue.producer_epoch,
            base_sequence=batch.base_sequence,
        )
        data = PartitionProduceData(index=queue.partition, records=records)
        request = ProduceRequest(
            acks=settings.acks,
            timeout_ms=int(self._cluster.settings.request_timeout_s * 1000),
            topic_data=[TopicProduceData(name=queue.topic, partition_data=[data])],
        )
        pending = await connection.begin(ApiKey.PRODUCE, request, answered=settings.acks != 0)
        self._producer.statistics.batches_sent += 1
        self._producer.statistics.bytes_sent += len(records)
        if settings.acks == 0:
            self._settle_oldest(None)
            return
        pending.on_done = self.wake
        self._window.append((batch, pending))
        if pending.done:
            self.wake()
        self._producer.tell_load(queue.topic)

    async def _settle_answered(self) -> None:
        """Take the answers in order. Raises for the first that isn't a success and may be sent again."""
        while self._window:
            batch, pending = self._window[0]
            if not pending.done:
                timeout_s = self._cluster.settings.request_timeout_s
                if anyio.current_time() < pending.sent_at_s + timeout_s:
                    return
                pending.expire(timeout_s)
            answer = pending.result()
            assert isinstance(answer, ProduceResponse)
            result = answer.responses[0].partition_responses[0]
            if result.error_code and result.error_code != ErrorCode.DUPLICATE_SEQUENCE_NUMBER:
                error = error_of(
                    result.error_code, f"record can't be produced {self._what}", result.error_message
                )
                await self._refused(batch, result.error_code, error)
                return
            self._window.popleft()
            batch.base_offset = result.base_offset
            batch.log_append_time_ms = result.log_append_time_ms
            self._is_known = self._available = True
            self._backoff.succeeded()
            self._settle_oldest(None)

    async def _refused(self, batch: Batch, code: int, error: PenstockError) -> None:
        """The broker refused the oldest batch."""
        refusal = refusal_of(code, is_first=True, has_gap=self.queue.has_gap, attempts=batch.attempts)
        if refusal is SendRefusal.SEND_AGAIN:
            raise UnavailableError(str(error)) from error
        await self._await_window()
        self._abandon_window()
        if refusal is SendRefusal.NEW_PRODUCER:
            self.queue.renumber(-1, -1)
            return
        self.queue.has_gap = self.queue.producer_id >= 0
        self._settle_oldest(error)

    async def _await_window(self) -> None:
        """Let the broker answer everything that is on its way."""
        for _, pending in self._window:
            await pending.wait(self._cluster.settings.request_timeout_s)

    def _abandon_window(self) -> None:
        for _, pending in self._window:
            pending.on_done = None
        self._window.clear()
        self.queue.rewind()

    async def _recover(self, error: PenstockError) -> None:
        """What is on its way failed, perhaps: wait for what can still answer, pause, look for the leader again."""
        self._available = False
        await self._await_window()
        self._abandon_window()
        self._drop_overdue(error)
        self._cluster.forget_topics()
        await anyio.sleep(self._backoff.failed())

    def _drop_overdue(self, cause: PenstockError | None = None) -> None:
        """Give up batches that are older than the delivery timeout and not on their way."""
        timeout_s = self._producer.settings.delivery_timeout_s
        while not self._window and (batch := self.queue.oldest) is not None:
            if anyio.current_time() < batch.created_s + timeout_s:
                return
            if batch.attempts and self.queue.producer_id >= 0:
                self.queue.has_gap = True
            reason = f" last_error={cause}" if cause is not None else ""
            self._settle_oldest(
                UnavailableError(
                    f"record wasn't acknowledged within {timeout_s:g} s, it may be there or not: {self._what}{reason}"
                )
            )

    def _settle_oldest(self, error: PenstockError | None) -> None:
        batch = self.queue.pop_oldest()
        self._producer.settle(batch, error)
        if not len(self.queue) and self._empty is not None:
            self._empty.set()
            self._empty = None
