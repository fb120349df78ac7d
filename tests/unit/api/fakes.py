"""A log manager, topics and partitions in memory, in place of the log layer's, and the rest a handler needs."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import anyio

from penstock.api.context import (
    ApiContext,
    ApiSettings,
    Client,
    DataPlace,
    Endpoint,
    RequestContext,
)
from penstock.errors import AlreadyExistsError, FullError, InvariantError, NotFoundError
from penstock.log.append_outcome import AppendOutcome
from penstock.log.errors import KafkaError
from penstock.log.limiter import BytesLimiter
from penstock.log.listeners import Listeners
from penstock.log.manager import LogManager
from penstock.log.partition import Partition, ReadResult
from penstock.log.partition_bound import PartitionBound
from penstock.log.preparation import Preparation, Preparer
from penstock.log.producer_book import ProducerInfo
from penstock.log.topic import NewTopic, Topic
from penstock.log.topic_config import TopicConfigTable
from penstock.spi.allocator import Allocation, AllocatorStatistics, Charge
from penstock.spi.authorizer import Authorizer
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages._index import INDEX
from penstock.wire.record_batch import BatchError, assign_offsets
from penstock.wire.record_builder import build_batch
from penstock.wire.records import iter_records, read_header
from penstock.wire.registry import Message
from penstock.wire.validation import BatchRules, check_batch


class FakeAllocation:
    """Plain memory that notices a second release."""

    def __init__(self, allocator: FakeAllocator, size: int) -> None:
        self._allocator = allocator
        self.size = size
        self.view = memoryview(bytearray(size))
        self.released = False

    def release(self) -> None:
        if self.released:
            raise InvariantError("released twice")
        self.released = True
        self._allocator.give_back(self.size)


class FakeReservation(FakeAllocation):
    """Accounted for as it is granted."""

    def __init__(self, owner: FakeAllocator, size: int) -> None:
        self._allocator = owner
        self.size = size
        self.view = memoryview(mmap.mmap(-1, size))
        self.released = False
        self.granted = 0

    def grant_nowait(self, size: int) -> None:
        more = size - self.granted
        if self._allocator.is_full(more):
            raise FullError("full")
        self._allocator.used += more
        self.granted = size

    async def grant(self, size: int) -> None:
        (await self._allocator.allocate(size - self.granted, "network")).release()
        self._allocator.used += size - self.granted
        self.granted = size

    def release(self) -> None:
        self._allocator.used += self.size - self.granted
        super().release()


class FakeAllocator:
    """Counts, and refuses or waits over its limit."""

    capabilities = None

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.used = 0
        self.allocations: list[FakeAllocation] = []
        self._waiters: deque[tuple[int, anyio.Event]] = deque()

    def is_full(self, size: int) -> bool:
        return bool(self._waiters or (self.used and self.used + size > self.limit))

    def allocate_nowait(self, size: int, purpose: str) -> FakeAllocation:
        if self.is_full(size):
            raise FullError("full")
        return self._grant(size)

    def reserve(self, size: int, purpose: str) -> FakeReservation:
        reservation = FakeReservation(self, size)
        self.allocations.append(reservation)
        return reservation

    async def allocate(self, size: int, purpose: str) -> FakeAllocation:
        while self.used and self.used + size > self.limit:
            event = anyio.Event()
            self._waiters.append((size, event))
            try:
                await event.wait()
            finally:
                self._waiters.remove((size, event))
        return self._grant(size)

    def charge_nowait(self, size: int, purpose: str = "fetch") -> FakeAllocation:
        return self.allocate_nowait(size, purpose)

    async def charge(self, size: int, purpose: str = "fetch") -> FakeAllocation:
        return await self.allocate(size, purpose)

    def charge_anyway(self, size: int, purpose: str) -> FakeAllocation:
        return self._grant(size)

    def _grant(self, size: int) -> FakeAllocation:
        self.used += size
        allocation = FakeAllocation(self, size)
        self.allocations.append(allocation)
        return allocation

    def give_back(self, size: int) -> None:
        self.used -= size
        for _, event in self._waiters:
            event.set()

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        raise NotImplementedError

    def statistics(self) -> AllocatorStatistics:
        return AllocatorStatistics(
            limit_bytes=self.limit, used_bytes=self.used, used_by_purpose={}, waiting=0, peak_bytes=self.used
        )


class FakePartition(Partition):
    """Whole batches in a list. Durable at once, or when the test says ``commit``."""

    leader_epoch = 3
    log_start_offset = 0
    high_watermark = 0
    unavailable: str | None = None

    def __init__(self, logs: FakeLogs, topic: str, topic_id: bytes, index: int) -> None:
        self._logs = logs
        self.topic = topic
        self.topic_id = topic_id
        self.index = index
        self.next_offset = 0
        #: (base offset, next offset, bytes)
        self.batches: list[tuple[int, int, bytes]] = []
        self.charges: list[Allocation] = []
        self.pending: deque[tuple[Callable[[AppendOutcome], None], AppendOutcome, int]] = deque()
        self.listeners = Listeners()
        self.cold = False
        self.cold_reads = 0
        self.fail_with: Exception | None = None
        self.active: list[ProducerInfo] = []
        #: The codec that batches are recompressed to, never at once.
        self.codec: int | None = None
        self.preparer: Preparer | None = None

    @property
    def last_stable_offset(self) -> int:
        return self.high_watermark

    @property
    def size_bytes(self) -> int:
        return sum(len(batch) for _, _, batch in self.batches)

    def active_producers(self, now_ms: int) -> list[ProducerInfo]:
        return self.active

    def append(
        self,
        records: memoryview,
        *,
        produce_version: int,
        now_ms: int,
        charge: Allocation | None,
        on_done: Callable[[AppendOutcome], None],
        is_prepared: bool = False,
    ) -> bool:
        assert not records.readonly
        if self.fail_with is not None:
            raise self.fail_with
        try:
            rules = BatchRules(max_message_bytes=1 << 20, full=False)
            header = (
                read_header(records) if is_prepared else check_batch(records, rules, produce_version, now_ms)
            )
        except BatchError as error:
            on_done(AppendOutcome(error.error_code, str(error), error.record_errors))
            return False
        if self.codec is not None and header.codec != self.codec:
            assert self.preparer is not None
            work = Preparation(self.preparer, records, header, rules, now_ms, self.codec)
            raise work.due()
        if self._logs.room <= 0:
            raise FullError("no room")
        self._logs.room -= 1
        base = self.next_offset
        assign_offsets(records, base, self.leader_epoch)
        self.next_offset += header.count
        self.batches.append((base, self.next_offset, bytes(records)))
        if charge is not None:
            self.charges.append(charge)
        self.pending.append((on_done, AppendOutcome(base_offset=base, log_start_offset=0), self.next_offset))
        if self._logs.durable_at_once:
            self.commit()
        return True

    def commit(self) -> None:
        """All appends so far are durable."""
        while self.pending:
            on_done, result, end = self.pending.popleft()
            self.high_watermark = end
            on_done(result)
        self.listeners.tell()

    def write(self, count: int, *, timestamp: int = 1000, value: bytes = b"v") -> None:
        """Append a batch of ``count`` records directly."""
        batch = build_batch(
            [(None, value, (), timestamp + at) for at in range(count)], base_offset=self.next_offset
        )
        end = self.next_offset + count
        self.batches.append((self.next_offset, end, bytes(batch)))
        self.next_offset = self.high_watermark = end
        self.listeners.tell()

    def read_nowait(
        self, offset: int, bytes_max: int, *, read_committed: bool, at_least_one: bool
    ) -> ReadResult | None:
        self._check(offset)
        return None if self.cold else self._read(offset, bytes_max, at_least_one)

    async def read(
        self, offset: int, bytes_max: int, *, read_committed: bool, at_least_one: bool
    ) -> ReadResult:
        self._check(offset)
        self.cold_reads += 1
        await anyio.lowlevel.checkpoint()
        return self._read(offset, bytes_max, at_least_one)

    def _check(self, offset: int) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        if not self.log_start_offset <= offset <= self.high_watermark:
            raise KafkaError(ErrorCode.OFFSET_OUT_OF_RANGE)

    def _read(self, offset: int, bytes_max: int, at_least_one: bool) -> ReadResult:
        pieces: list[memoryview] = []
        size = 0
        is_cut = False
        for _, end, batch in self.batches:
            if end <= offset or end > self.high_watermark:
                continue
            if size + len(batch) > bytes_max and (pieces or not at_least_one):
                is_cut = True
                break
            pieces.append(memoryview(batch))
            size += len(batch)
        return ReadResult(pieces, size, is_cut=is_cut)

    def add_listener(self, listener: Callable[[], None]) -> None:
        self.listeners.add(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        self.listeners.remove(listener)

    @property
    def watchers(self) -> int:
        return len(self.listeners)

    def _records(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for base, _, batch in self.batches:
            for at, record in enumerate(iter_records(memoryview(batch))):
                found.append((base + at, record.timestamp_ms))
        return found

    async def offset_for_timestamp(self, timestamp: int) -> tuple[int, int, int] | None:
        for offset, at in self._records():
            if at >= timestamp:
                return offset, at, self.leader_epoch
        return None

    async def max_timestamp_offset(self) -> tuple[int, int, int] | None:
        records = self._records()
        if not records:
            return None
        offset, at = max(records, key=lambda pair: pair[1])
        return offset, at, self.leader_epoch

    async def delete_records(self, offset: int) -> int:
        self.log_start_offset = offset
        return offset

    def leader_epoch_at(self, offset: int) -> int:
        return self.leader_epoch

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        return (self.leader_epoch, self.high_watermark) if epoch >= self.leader_epoch else (-1, -1)


class FakeTopic(Topic):
    """What a topic is, without metadata."""

    name = ""
    id = b""
    partition_count = 0
    configs: dict[str, str] = {}  # noqa: RUF012 - each has its own
    internal = False

    def __init__(
        self, name: str, topic_id: bytes, partition_count: int, configs: dict[str, str], internal: bool
    ) -> None:
        self.name = name
        self.id = topic_id
        self.partition_count = partition_count
        self.configs = configs
        self.internal = internal
        self.version = 0
        #: Nodes that lead its partitions, where it isn't the broker.
        self.led_elsewhere: dict[int, int] = {}

    @property
    def leaders(self) -> list[int]:
        return [self.led_elsewhere.get(index, 7) for index in range(self.partition_count)]


class FakeLogs(LogManager):
    """Topics in memory."""

    cluster_id = "fake-cluster"
    controller_id = 7
    changes_under_way = 0
    #: Set by tests.
    appends_wait = False

    def __init__(self) -> None:
        self.node_id = 7
        self.fetch_memory = BytesLimiter(1 << 30, credit=1 << 30, credit_max=1 << 30, clock=lambda: 100.0)
        #: Bytes of the copies that responses have.
        self.copies = BytesLimiter(1 << 30, clock=lambda: 100.0)
        self.durable_at_once = True
        #: Appends that are let in before FullError.
        self.room = 1 << 60
        self._room_event = anyio.Event()
        self._by_name: dict[str, FakeTopic] = {}
        self._partitions: dict[tuple[str, int], FakePartition] = {}
        self._next_producer_id = 1000
        self.broker_defaults: dict[str, str] = {}
        self.fail_with: Exception | None = None
        #: Names of topics that are being changed, and who waits for that; set by tests.
        self.changing: set[str] = set()
        #: The calls of ``prepare_reads``: topic, partition, offset, bytes, and the bytes in all.
        self.prepared: list[tuple[list[tuple[str, int, int, int]], int]] = []
        self.changed = anyio.Event()
        self.bound_partitions(2**31 - 1)

    def bound_partitions(self, partitions_max: int) -> None:
        """Let there be no more than so many in all."""
        self._bound = PartitionBound(partitions_max, lambda: len(self._partitions))

    def add(self, name: str, partitions: int = 1, *, internal: bool = False, **configs: str) -> FakeTopic:
        """Make a topic, at once."""
        topic = FakeTopic(
            name, (len(self._by_name) + 1).to_bytes(16, "big"), partitions, dict(configs), internal
        )
        self._by_name[name] = topic
        for index in range(partitions):
            self._partitions[name, index] = FakePartition(self, name, topic.id, index)
        return topic

    def make_room(self, appends: int) -> None:
        """Let so many more appends in and wake who waits."""
        self.room += appends
        event, self._room_event = self._room_event, anyio.Event()
        event.set()

    def at(self, name: str, index: int = 0) -> FakePartition:
        return self._partitions[name, index]

    def shut(self, name: str, index: int) -> None:
        """The partition exists and isn't open."""
        del self._partitions[name, index]

    def topics(self) -> Mapping[str, FakeTopic]:
        return self._by_name

    def topic_by_id(self, topic_id: bytes) -> FakeTopic | None:
        return next((topic for topic in self._by_name.values() if topic.id == topic_id), None)

    def partition(self, name: str, index: int) -> FakePartition | None:
        return self._partitions.get((name, index))

    def charge_copy(self, size: int) -> Charge:
        return self.copies.charge_anyway(size, self.copies.join("127.0.0.1", None))

    async def prepare_reads(self, wanted: Sequence[tuple[Partition, int, int]], bytes_max: int) -> None:
        await anyio.lowlevel.checkpoint()
        self.prepared.append(([(one.topic, one.index, at, size) for one, at, size in wanted], bytes_max))

    async def create_topics(
        self, topics: Sequence[NewTopic], *, internal: bool = False
    ) -> Sequence[FakeTopic | Exception]:
        await anyio.lowlevel.checkpoint()
        results: list[FakeTopic | Exception] = []
        for new in topics:
            if self.fail_with is not None:
                results.append(self.fail_with)
            elif new.name in self._by_name:
                results.append(AlreadyExistsError(f"topic exists: name={new.name}"))
            else:
                topic = self.add(new.name, new.partition_count)
                topic.configs = dict(new.configs)
                results.append(topic)
        return results

    async def delete_topics(
        self, names: Sequence[str], topic_ids: Mapping[str, bytes] | None = None
    ) -> Sequence[Exception | None]:
        results: list[Exception | None] = []
        for name, topic_id in (topic_ids or {}).items():
            assert self._by_name[name].id == topic_id
        for name in names:
            topic = self._by_name.pop(name, None)
            results.append(None if topic else NotFoundError("gone"))
            for key in [key for key in self._partitions if key[0] == name]:
                del self._partitions[key]
        return results

    async def create_partitions(self, name: str, count: int) -> None:
        topic = self._by_name[name]
        for index in range(topic.partition_count, count):
            self._partitions[name, index] = FakePartition(self, name, topic.id, index)
        topic.partition_count = count

    async def alter_configs(self, name: str, configs: Mapping[str, str]) -> None:
        self._by_name[name].configs = dict(configs)

    async def change_configs(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> None:
        await self.alter_configs(name, change(self._by_name[name].configs))

    def is_changing(self, name: str) -> bool:
        return name in self.changing

    async def wait_changed(self, names: Collection[str]) -> None:
        while any(name in self.changing for name in names):
            await self.changed.wait()

    @property
    def topic_configs(self) -> TopicConfigTable:
        return TopicConfigTable(defaults=self.broker_defaults)

    def config_default(self, key: str) -> str:
        return self.topic_configs.value(key, {})

    def config_value(self, name: str, key: str) -> str:
        return self.topic_configs.value(key, self._by_name[name].configs)

    async def wait_for_room(self) -> None:
        if self.room <= 0:
            await self._room_event.wait()
        else:
            await anyio.lowlevel.checkpoint()

    async def next_producer_id(self) -> tuple[int, int]:
        if self.fail_with is not None:
            raise self.fail_with
        self._next_producer_id += 1
        return self._next_producer_id, 0


class FakeClock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


ENDPOINT = Endpoint(node_id=7, host="broker.example", port=9092)


def make_api(
    logs: FakeLogs,
    clock: Callable[[], float] | None = None,
    *,
    authorizer: Authorizer | None = None,
    **settings: Any,
) -> ApiContext:
    """An ApiContext around ``logs``."""
    return ApiContext(
        logs=logs,
        groups=None,
        settings=ApiSettings(**settings),
        clock=clock or FakeClock(),
        now_ms=lambda: 10_000,
        authorizer=authorizer,
        data_place=DataPlace(location="memory://", capacity=lambda: (1000, 400)),
    )


def make_context(logs: FakeLogs, version: int, **settings: Any) -> RequestContext:
    """A RequestContext of a client of ``logs``."""
    outgoing = logs.fetch_memory.join("127.0.0.1", None)
    client = Client(host="127.0.0.1", port=50_000, advertised=ENDPOINT, outgoing=outgoing)
    return RequestContext(api=make_api(logs, **settings), client=client, version=version)


def make_batch(count: int = 1, value: bytes = b"hello", timestamp: int = 9_000) -> bytearray:
    """A valid batch as a producer sends it."""
    return build_batch([(None, value, (), timestamp + at) for at in range(count)])


def any_request(key: int) -> Message:
    """A request of this API with nothing in it but defaults."""
    module = INDEX[key][0]
    kind = "".join(part.capitalize() for part in module.split("_")) + "Request"
    request: Message = getattr(import_module(f"penstock.wire.messages.{module}"), kind)()
    return request
