"""Reading: partitions from given positions, one long poll at a time per leader, results in arrival order.

No group and no commits here; those are the caller's. Transactions are not filtered: isolation is
read_uncommitted, and control records are left out.
"""

from __future__ import annotations

__all__ = ("Consumer", "ConsumerSettings", "Fetched")

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from crc32c import crc32c

from penstock.errors import CorruptError, InvalidRequestError, PenstockError, UnavailableError, again, kept
from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.fetch import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchTopic,
    PartitionData,
)
from penstock.wire.records import (
    ATTRIBUTES_POS,
    HEADER_BYTES,
    BatchError,
    BatchHeader,
    Record,
    iter_records,
    read_header,
)
from penstock_tools.client._scope import task_group
from penstock_tools.client.admin import TopicPartition
from penstock_tools.client.cluster import Cluster
from penstock_tools.client.errors import error_of, is_retriable

_FINAL_EPOCH: Final = -1  # of a fetch without session (KIP-227)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """Settings of a consumer. The broker holds a poll that finds less than ``min_bytes`` for ``max_wait_ms``."""

    max_wait_ms: int = 500
    min_bytes: int = 1
    fetch_bytes_max: int = 16 * 1024 * 1024
    partition_bytes_max: int = 1024 * 1024
    check_crcs: bool = True


@dataclass(frozen=True, slots=True)
class Fetched:
    """The records that one poll found in one partition; there may be none.

    ``position`` is the offset to go on from, ``high_watermark`` the one after the last readable record.
    """

    topic: str
    partition: int
    first_offset: int
    position: int
    high_watermark: int
    batches: tuple[tuple[BatchHeader, memoryview], ...]

    @property
    def is_at_end(self) -> bool:
        """Nothing more was there when the broker answered."""
        return self.position >= self.high_watermark

    def records(self) -> Iterator[Record]:
        """The records from the position that was asked for, in order.

        Raises:
            CorruptError: a batch can't be read; those before it have been yielded.
        """
        for header, batch in self.batches:
            if header.is_control:
                continue
            try:
                for record in iter_records(batch):
                    if record.offset >= self.first_offset:
                        yield record
            except BatchError as error:
                raise _unreadable(self.topic, self.partition, header.base_offset, error) from error


class Consumer:
    """Reads assigned partitions. Open it with :meth:`open`, which owns the polling tasks; iterate over it."""

    def __init__(
        self,
        cluster: Cluster,
        positions: Mapping[TopicPartition, int],
        settings: ConsumerSettings,
        results: MemoryObjectReceiveStream[Fetched],
    ) -> None:
        self.settings = settings
        self._cluster = cluster
        self._positions = dict(positions)
        self._delivered = dict(positions)
        self._results = results
        self._changed = anyio.Event()
        self._error: PenstockError | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: Cluster,
        positions: Mapping[TopicPartition, int],
        settings: ConsumerSettings | None = None,
    ) -> AsyncIterator[Consumer]:
        """Begin to read ``positions``: partition to first offset. Reading runs ahead by two polls at most."""
        send, receive = anyio.create_memory_object_stream[Fetched](max_buffer_size=0)
        with send, receive:
            consumer = cls(cluster, positions, settings or ConsumerSettings(), receive)
            async with task_group() as tasks:
                tasks.start_soon(consumer._run, send)
                yield consumer

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """The offset after the last result that was handed out, by partition."""
        return dict(self._delivered)

    def stop(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these no more. What a poll under way brings of them may still come."""
        for key in partitions:
            self._positions.pop(key, None)
        self._changed.set()

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> Fetched:
        """The next result, in the order they arrive; ends when no partition is left.

        Raises:
            InvalidRequestError: a position is outside of what the partition keeps.
            NotFoundError: a topic or partition isn't there (any more).
            CorruptError: a batch fails its checksum.
            UnavailableError: the cluster can't be reached within the retry timeout.
        """
        while True:
            try:
                fetched = await self._results.receive()
            except anyio.EndOfStream:
                if self._error is not None:
                    raise again(self._error) from None
                raise StopAsyncIteration from None
            key = (fetched.topic, fetched.partition)
            # A poll that is cancelled in the moment its result is taken will bring that result again.
            if fetched.first_offset >= self._delivered[key]:
                self._delivered[key] = fetched.position
                return fetched

    async def _run(self, results: MemoryObjectSendStream[Fetched]) -> None:
        with results:
            try:
                while self._positions and self._error is None:
                    self._changed = anyio.Event()
                    leaders = await self._cluster.retry(lambda: self._cluster.by_leader(self._positions))
                    async with task_group() as polls:
                        for node_id, keys in leaders.items():
                            polls.start_soon(self._poll_forever, node_id, keys, results)
                        await self._changed.wait()
            except PenstockError as error:
                self._error = kept(error)

    async def _poll_forever(
        self, node_id: int, keys: list[TopicPartition], results: MemoryObjectSendStream[Fetched]
    ) -> None:
        """Poll one leader until something about its partitions changes."""
        pause_s = self._cluster.settings.retry_backoff_s
        try:
            while not self._changed.is_set():
                if await self._poll_once(node_id, keys, results):
                    await self._look_again(pause_s)
        except UnavailableError:
            await self._look_again(pause_s)
        except PenstockError as error:
            # told here and not raised: another leader's poll may fail in the same moment
            self._error = self._error or error
            self._changed.set()

    async def _poll_once(
        self, node_id: int, keys: list[TopicPartition], results: MemoryObjectSendStream[Fetched]
    ) -> bool:
        """Poll and hand over what came; whether the leader has to be looked up again."""
        stale = False
        for topic in (await self._poll(node_id, keys)).responses:
            for data in topic.partitions:
                key = (topic.topic, data.partition_index)
                if data.error_code:
                    stale = True
                    if not is_retriable(data.error_code):
                        self._refuse(key, data.error_code)
                    continue
                await self._deliver(key, data, results)
        return stale

    async def _look_again(self, pause_s: float) -> None:
        """The leader isn't what we took it for: after a pause, everything is looked up again."""
        self._cluster.forget_topics()
        await anyio.sleep(pause_s)
        self._changed.set()

    async def _poll(self, node_id: int, keys: list[TopicPartition]) -> FetchResponse:
        settings = self.settings
        topics: dict[str, FetchTopic] = {}
        for topic, partition in keys:
            if (topic, partition) not in self._positions:
                continue
            entry = FetchPartition(
                partition=partition,
                fetch_offset=self._positions[topic, partition],
                partition_max_bytes=settings.partition_bytes_max,
            )
            topics.setdefault(topic, FetchTopic(topic=topic, partitions=[])).partitions.append(entry)
        request = FetchRequest(
            max_wait_ms=settings.max_wait_ms,
            min_bytes=settings.min_bytes,
            max_bytes=settings.fetch_bytes_max,
            session_epoch=_FINAL_EPOCH,
            topics=list(topics.values()),
        )
        connection = await self._cluster.node(node_id)
        timeout_s = self._cluster.settings.request_timeout_s + settings.max_wait_ms / 1000
        answer = await connection.request(ApiKey.FETCH, request, timeout_s=timeout_s)
        assert isinstance(answer, FetchResponse)
        if answer.error_code:
            raise UnavailableError(f"broker refuses to be read: error_code={answer.error_code}")
        return answer

    async def _deliver(
        self, key: TopicPartition, data: PartitionData, results: MemoryObjectSendStream[Fetched]
    ) -> None:
        first_offset = self._positions.get(key)
        if first_offset is None:
            return
        records = data.records
        view = memoryview(records if isinstance(records, (bytes, bytearray, memoryview)) else b"")
        batches = tuple(_whole_batches(view, key, check_crcs=self.settings.check_crcs))
        position = max(first_offset, batches[-1][0].next_offset) if batches else first_offset
        if view and not batches:
            raise CorruptError(
                f"broker sent a part of a batch only: topic={key[0]} partition={key[1]} offset={first_offset}"
            )
        await results.send(Fetched(key[0], key[1], first_offset, position, data.high_watermark, batches))
        if key in self._positions:
            self._positions[key] = position

    def _refuse(self, key: TopicPartition, code: int) -> None:
        topic, partition = key
        offset = self._positions.get(key, -1)
        what = f"partition can't be read topic={topic} partition={partition} offset={offset}"
        if code == ErrorCode.OFFSET_OUT_OF_RANGE:
            raise InvalidRequestError(
                "no such offset in the partition, it was deleted or isn't there yet: "
                f"topic={topic} partition={partition} offset={offset}"
            )
        raise error_of(code, what)


def _whole_batches(
    view: memoryview, key: TopicPartition, *, check_crcs: bool
) -> Iterator[tuple[BatchHeader, memoryview]]:
    """The batches in a fetch answer; the last may be cut off by the size limit (KIP-74) and is left out."""
    pos = 0
    while len(view) - pos >= HEADER_BYTES:
        header = read_header(view, pos)
        if header.magic != 2:
            raise InvalidRequestError(
                f"broker keeps records in a format from before Kafka 0.11, which this client doesn't read: "
                f"topic={key[0]} partition={key[1]} magic={header.magic}"
            )
        end = pos + header.size_bytes
        if header.size_bytes < HEADER_BYTES:
            raise CorruptError(
                f"a record batch is shorter than its header: topic={key[0]} partition={key[1]} "
                f"base_offset={header.base_offset}"
            )
        if end > len(view):
            return
        batch = view[pos:end]
        if check_crcs and crc32c(batch[ATTRIBUTES_POS:]) != header.crc:
            raise CorruptError(
                f"a record batch fails its checksum: topic={key[0]} partition={key[1]} "
                f"base_offset={header.base_offset}"
            )
        yield header, batch
        pos = end


def _unreadable(topic: str, partition: int, base_offset: int, error: BatchError) -> CorruptError:
    return CorruptError(
        f"a record batch can't be read: topic={topic} partition={partition} base_offset={base_offset} reason={error}"
    )
