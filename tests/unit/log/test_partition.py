"""A Kafka partition on the stream engine: sequencing, durability, duplicates, time, deletion, retention."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import HANG_S
from tests.unit.stream.harness import World

from penstock.bus import EventBus
from penstock.errors import ClosedError, FullError, InvalidRequestError, NotNowError
from penstock.log.append_outcome import AppendOutcome
from penstock.log.errors import KafkaError
from penstock.log.events import TopicsDeleted
from penstock.log.keyed_log import KeyedLog
from penstock.log.manager import LogManager, LogSettings
from penstock.log.partition import Partition, ReadResult
from penstock.log.producer_book import AbortedTransaction, ProducerBook
from penstock.log.topic import NewTopic
from penstock.plugins import observer_hooks
from penstock.spi.allocator import Allocation
from penstock.stream.entry import retention_time_ms, untimed
from penstock.wire.compression import CODEC_LZ4
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import (
    ATTRIBUTES_POS,
    CRC_POS,
    HEADER_BYTES,
    TRANSACTIONAL_BIT,
    BatchError,
    build_batch,
    iter_records,
    read_header,
)

pytestmark = pytest.mark.anyio
NOW_MS = 2_000_000


@dataclass
class Logs:
    """A log manager over the engine's harness; what survives a crash is the world."""

    world: World
    manager: LogManager
    events: list[tuple[str, object]]
    bus: EventBus
    engine_bus: EventBus

    def partition(self, name: str = "events", index: int = 0) -> Partition:
        found = self.manager.partition(name, index)
        assert found is not None
        return found

    async def create(self, name: str = "events", partitions: int = 1, **configs: str) -> Partition:
        keys = {key.replace("_", "."): value for key, value in configs.items()}
        (made,) = await self.manager.create_topics([NewTopic(name, partitions, keys)])
        assert not isinstance(made, Exception), made
        return self.partition(name)


@asynccontextmanager
async def open_logs(
    world: World, *, validate_full: bool = True, partitions_max: int = 10_000
) -> AsyncIterator[Logs]:
    events: list[tuple[str, object]] = []
    settings = LogSettings(
        topic_defaults={},
        retention_interval_ms=3_600_000,
        fetch_in_flight_bytes_max=2**20,
        validate_full=validate_full,
        partitions_max=partitions_max,
    )
    async with world.open() as e:
        bus = EventBus()  # not the engine's: what an upload brings about, tests do themselves
        for hook_name, event_type in observer_hooks().items():
            bus.subscribe(event_type, lambda event, name=hook_name: events.append((name, event)))  # type: ignore[misc]
        async with LogManager.open(
            e.engine,
            settings,
            node_id=1,
            node_epoch=e.metadata.image.nodes.require(1).epoch,
            now_ms=lambda: world.now_ms,
            bus=bus,
        ) as manager:
            yield Logs(world, manager, events, bus, e.bus)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, now_ms=NOW_MS)


def batch(
    *values: bytes, timestamp: int = NOW_MS, producer: tuple[int, int, int] = (-1, -1, -1)
) -> bytearray:
    producer_id, epoch, sequence = producer
    return build_batch(
        [(None, value, (), timestamp) for value in values],
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )


def append(
    partition: Partition,
    data: bytearray | memoryview,
    *,
    version: int = 9,
    charge: Allocation | None = None,
    is_prepared: bool = False,
) -> list[AppendOutcome]:
    outcomes: list[AppendOutcome] = []
    partition.append(
        memoryview(data),
        produce_version=version,
        now_ms=NOW_MS,
        charge=charge,
        on_done=outcomes.append,
        is_prepared=is_prepared,
    )
    return outcomes


async def append_any(partition: Partition, data: bytearray) -> list[AppendOutcome]:
    """Append as a connection does: what is due is done first."""
    try:
        return append(partition, data)
    except NotNowError as due:
        try:
            view, own = await due.wait()
        except BatchError as error:
            return [AppendOutcome(error.error_code, str(error), error.record_errors)]
        outcomes = append(partition, view, charge=own, is_prepared=True)
        if own is not None and outcomes and outcomes[0].error_code:
            own.release()
        return outcomes


async def read(partition: Partition, offset: int = 0) -> list[tuple[int, bytes]]:
    result = await partition.read(offset, 10**6, read_committed=False, at_least_one=True)
    return [
        (record.offset, bytes(record.value or b""))
        for piece in result.records
        for record in iter_records(piece)
    ]


def codes(outcomes: Sequence[AppendOutcome]) -> list[int]:
    return [outcome.error_code for outcome in outcomes]


async def test_offsets_follow_and_the_high_watermark_moves_with_durability(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        world.wal.automatic = False
        woken: list[int] = []

        def listener() -> None:
            woken.append(partition.high_watermark)
            partition.add_listener(listener)

        partition.add_listener(listener)
        first, second = append(partition, batch(b"a", b"b")), append(partition, batch(b"c"))
        assert (first, second, partition.high_watermark) == ([], [], 0)
        world.wal.complete()
        assert [(o[0].error_code, o[0].base_offset) for o in (first, second)] == [(0, 0), (0, 2)]
        assert woken == [2, 3] or woken == [3, 3]
        assert await read(partition) == [(0, b"a"), (1, b"b"), (2, b"c")]
        assert await read(partition, 1) == [(0, b"a"), (1, b"b"), (2, b"c")], "the whole batch that holds 1"


@pytest.mark.parametrize("kind", ["CreateTime", "LogAppendTime"])
async def test_a_large_batch_comes_back_from_an_object(world: World, kind: str) -> None:
    """Its checksum in the WAL (which the harness checks) and in the object follow from the one that it came with."""
    async with open_logs(world) as logs:
        partition = await logs.create(message_timestamp_type=kind, max_message_bytes="1000000")
        values = [bytes([number]) * 30_000 for number in range(6)]
        assert codes(await append_any(partition, batch(*values))) == [0]
        await logs.manager._engine.flush()
        logs.manager._engine._log_cache.evict(10**9)
        assert await read(partition) == list(enumerate(values))


async def test_a_bad_batch_is_refused_and_changes_nothing(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(max_message_bytes="200")
        damaged = batch(b"a")
        damaged[-1] ^= 1
        assert codes(append(partition, damaged)) == [ErrorCode.CORRUPT_MESSAGE]
        assert codes(append(partition, batch(b"x" * 300))) == [ErrorCode.MESSAGE_TOO_LARGE]
        assert partition.stream.next_offset == 0


@pytest.mark.parametrize("deep", [False, True], ids=["header", "full"])
async def test_a_batch_whose_records_lie_is_found_out_by_the_full_check_only(
    world: World, deep: bool
) -> None:
    lying = batch(b"one", b"two")
    lying[HEADER_BYTES + 3] ^= 0x7F  # the first record's timestamp and offset deltas
    struct.pack_into(">I", lying, CRC_POS, crc32c(bytes(lying[ATTRIBUTES_POS:])))
    async with open_logs(world, validate_full=deep) as logs:
        partition = await logs.create()
        assert codes(append(partition, lying)) == [ErrorCode.INVALID_RECORD if deep else 0]
        assert codes(append(partition, batch(b"honest"))) == [0]


@pytest.mark.parametrize("part", [5, 3])
async def test_the_full_check_inflates_no_more_than_a_quarter_of_the_memory(world: World, part: int) -> None:
    value = bytes(range(256)) * (world.limit // part // 256)
    large = build_batch([(None, value, (), NOW_MS)], codec=CODEC_LZ4)
    assert len(large) < 1_000_000
    async with open_logs(world, validate_full=True) as logs:
        partition = await logs.create(max_message_bytes="1000000")
        assert codes(await append_any(partition, large)) == [0 if part > 4 else ErrorCode.MESSAGE_TOO_LARGE]
        assert codes(append(partition, batch(b"honest"))) == [0]


async def test_a_batch_that_comes_again_gets_its_offset_again_even_while_in_flight(world: World) -> None:
    """KIP-98: never appended twice, never confirmed before it is durable."""
    async with open_logs(world) as logs:
        partition = await logs.create()
        world.wal.automatic = False
        first = append(partition, batch(b"a", producer=(7, 0, 0)))
        again = append(partition, batch(b"a", producer=(7, 0, 0)))
        assert (first, again) == ([], [])
        world.wal.complete()
        assert [(o[0].error_code, o[0].base_offset) for o in (first, again)] == [(0, 0), (0, 0)]
        assert codes(append(partition, batch(b"c", producer=(7, 0, 2)))) == [
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        ]
        assert codes(append(partition, batch(b"c", producer=(7, 0, 0)))) == [0]
        assert partition.stream.next_offset == 1


async def test_a_batch_out_of_sequence_is_told_where_the_log_starts(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", producer=(7, 0, 0)))
        await partition.delete_records(1)
        (outcome,) = append(partition, batch(b"c", producer=(7, 0, 2)))
        assert (outcome.error_code, outcome.base_offset, outcome.log_start_offset) == (
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
            -1,
            1,
        )


async def test_what_is_wrong_with_a_batch_is_told_before_its_sequence(world: World) -> None:
    """As in Kafka, also of what its producer has sent before."""
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", producer=(7, 0, 0)))
        for sequence in (0, 2):
            late = batch(b"a", producer=(7, 0, sequence), timestamp=NOW_MS + 10**10)
            assert codes(append(partition, late)) == [ErrorCode.INVALID_TIMESTAMP]


async def test_what_the_wal_never_takes_is_too_large_and_the_producer_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retriable error would have clients send it again until they give up, and hold back what comes after it."""
    async with open_logs(world) as logs:
        partition = await logs.create()

        def refuse(*_: object) -> None:
            raise InvalidRequestError("a wal entry is too large: entry_bytes=9 entry_bytes_max=8")

        with monkeypatch.context() as patched:
            patched.setattr(world.wal, "append", refuse)
            assert codes(append(partition, batch(b"large", producer=(7, 0, 0)))) == [
                ErrorCode.MESSAGE_TOO_LARGE
            ]
        (outcome,) = append(partition, batch(b"small", producer=(7, 0, 0)))
        assert (outcome.error_code, outcome.base_offset) == (0, 0)


async def test_after_a_failure_the_producer_goes_on_with_what_failed_first(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        world.wal.automatic = False
        first = append(partition, batch(b"a", producer=(7, 0, 0)))
        duplicate = append(partition, batch(b"a", producer=(7, 0, 0)))
        second = append(partition, batch(b"b", producer=(7, 0, 1)))
        world.wal.fail()
        assert [codes(o) for o in (first, duplicate, second)] == [
            [ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND]
        ] * 3
        world.wal.automatic = True
        assert codes(append(partition, batch(b"b", producer=(7, 0, 1)))) == [
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        ], "nothing overtakes what failed"
        assert codes(append(partition, batch(b"a", producer=(7, 0, 0)))) == [0]
        assert codes(append(partition, batch(b"b", producer=(7, 0, 1)))) == [0]
        assert await read(partition) == [(0, b"a"), (1, b"b")]


@pytest.mark.parametrize("state", ["failed", "fenced"])
@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_after_a_wal_that_ended_nobody_is_told_of_a_hole_and_nothing_is_stored_twice(
    world: World, state: str, kept: int
) -> None:
    """A producer that hears of a hole takes a new epoch, and the next start may bring back what it sends again."""
    sent = [batch(value, producer=(7, 0, i)) for i, value in enumerate((b"a", b"b", b"c", b"d"))]
    with pytest.raises(ExceptionGroup):  # noqa: PT012 - the body is what is ended
        async with open_logs(world) as logs:
            partition = await logs.create()
            world.wal.automatic = False
            in_doubt = [append(partition, data) for data in sent[:2]]
            world.wal.end(state, kept)
            refused = [append(partition, data) for data in (*sent[2:], *reversed(sent))]
            await anyio.sleep_forever()
    assert [codes(o) for o in in_doubt] == [[ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND]] * 2
    assert [codes(o) for o in refused] == [[ErrorCode.NOT_LEADER_OR_FOLLOWER]] * 6
    world.wal.crash()
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert partition.high_watermark == kept
        assert [o.base_offset for data in sent for o in append(partition, data)] == [0, 1, 2, 3]
        assert partition.high_watermark == 4


async def test_a_wal_that_refuses_before_it_has_failed_makes_no_hole(world: World) -> None:
    """Its thread has ended it, the appends in flight aren't answered yet, and a batch between is refused."""
    world.settings = replace(world.settings, last_upload_ms=0)  # the log never tells of the first one
    with pytest.raises(ExceptionGroup):  # noqa: PT012 - the body is what is ended
        async with open_logs(world) as logs:
            partition = await logs.create()
            world.wal.automatic = False
            append(partition, batch(b"a", producer=(7, 0, 0)))
            world.wal.state = "failed"
            refused = [append(partition, batch(b"b", producer=(7, 0, sequence))) for sequence in (1, 2)]
            await anyio.sleep_forever()
    assert [codes(o) for o in refused] == [[ErrorCode.NOT_LEADER_OR_FOLLOWER]] * 2


@pytest.mark.parametrize("flushed", [False, True], ids=["from the wal", "from a snapshot"])
async def test_producers_are_remembered_over_a_crash(world: World, flushed: bool) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", producer=(7, 3, 0)))
        if flushed:
            partition.snapshot_producers(NOW_MS)
            await logs.manager._engine.flush()
        append(partition, batch(b"b", producer=(7, 3, 1)))
    world.wal.crash()
    async with open_logs(world) as logs:
        partition = logs.partition()
        again = append(partition, batch(b"b", producer=(7, 3, 1)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 1)]
        again = append(partition, batch(b"a", producer=(7, 3, 0)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 0)]
        assert codes(append(partition, batch(b"z", producer=(7, 2, 5)))) == [ErrorCode.INVALID_PRODUCER_EPOCH]
        assert partition.leader_epoch == 1, "a new leader"


async def test_a_batch_of_the_brokers_own_gets_memory_in_its_turn_beside_others_who_always_wait(
    world: World,
) -> None:
    """A commit of offsets waits with the producers, and goes on when it has its memory, whoever waits behind it."""
    async with open_logs(world) as logs, anyio.create_task_group() as tasks:
        partition = await logs.create()
        allocator = logs.manager._engine.allocator
        left = world.limit - allocator.statistics().used_bytes
        some, rest = (
            allocator.charge_nowait(left // 2, "test"),
            allocator.charge_nowait(left - left // 2, "test"),
        )
        ended = anyio.Event()

        async def commit() -> None:
            assert await partition.append_batch(batch(b"a")) == 0
            ended.set()

        tasks.start_soon(commit)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(allocator.charge, world.limit - left // 4, "test")
        await anyio.wait_all_tasks_blocked()
        assert allocator.statistics().waiting == 2
        some.release()
        with anyio.fail_after(HANG_S):
            await ended.wait()
        assert allocator.statistics().waiting == 1
        tasks.cancel_scope.cancel()
    assert rest.size


async def test_a_full_log_changes_nothing_and_the_same_batch_can_come_again(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(message_timestamp_type="LogAppendTime")
        world.wal.full = True
        data = batch(b"a")
        before = bytes(data)
        allocation = logs.manager._engine.allocator.allocate_nowait(len(data), "network")
        allocation.view[:] = data
        with pytest.raises(FullError):
            partition.append(
                allocation.view,
                produce_version=9,
                now_ms=NOW_MS,
                charge=allocation,
                on_done=lambda outcome: None,
            )
        assert bytes(allocation.view) == before
        world.wal.full = False
        outcomes: list[AppendOutcome] = []
        assert partition.append(
            allocation.view, produce_version=9, now_ms=NOW_MS + 5, charge=allocation, on_done=outcomes.append
        )
        assert [(o.error_code, o.log_append_time_ms) for o in outcomes] == [(0, NOW_MS + 5)]
        result = partition.read_nowait(0, 1000, read_committed=False, at_least_one=True)
        assert result is not None
        assert [r.timestamp_ms for r in iter_records(result.records[0])] == [NOW_MS + 5]


async def test_lookups_by_time_go_into_batches_and_respect_the_log_start(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        for first in (100, 200, 150):
            append(
                partition,
                build_batch([(None, b"", (), NOW_MS + first + i * 10) for i in range(3)]),
            )

        async def at(time_ms: int) -> tuple[int, int] | None:
            found = await partition.offset_for_timestamp(NOW_MS + time_ms)
            return None if found is None else (found[0], found[1] - NOW_MS)

        assert await at(0) == (0, 100)
        assert await at(105) == (1, 110)
        assert await at(121) == (3, 200)
        assert await at(221) is None
        assert (await partition.max_timestamp_offset() or ())[:2] == (5, NOW_MS + 220)
        await partition.delete_records(2)
        assert await at(0) == (2, 120)
        await partition.delete_records(6)
        assert (await partition.max_timestamp_offset() or ())[:2] == (8, NOW_MS + 170)
        await partition.delete_records(-1)
        assert await partition.max_timestamp_offset() is None


async def test_reads_outside_of_the_log_are_refused(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", b"b"))
        assert await read(partition, 2) == []
        await partition.delete_records(1)
        for offset in (0, 3):
            with pytest.raises(KafkaError) as caught:
                await read(partition, offset)
            assert caught.value.error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        with pytest.raises(KafkaError):
            await partition.delete_records(3)


async def test_leader_epochs_tell_where_each_ended(world: World) -> None:
    """KIP-320."""
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", b"b"))
    world.wal.crash()
    async with open_logs(world) as logs:
        partition = logs.partition()
        append(partition, batch(b"c"))
        assert partition.end_offset_for_epoch(0) == (0, 2)
        assert partition.end_offset_for_epoch(1) == (1, 3)
        assert partition.end_offset_for_epoch(2) == (-1, -1)
        epochs: list[int] = []
        for offset in (0, 2):  # what was recovered is in an object, what came after it in the log cache
            result = await partition.read(offset, 10**6, read_committed=False, at_least_one=True)
            epochs += [read_header(piece).leader_epoch for piece in result.records]
        assert epochs == [0, 1]


async def test_epochs_that_ended_before_the_log_begins_are_forgotten(world: World) -> None:
    """Asked for one of them, Kafka answers that it ended where the log begins."""
    async with open_logs(world) as logs:
        append(await logs.create(), batch(b"a", b"b"))
    world.wal.crash()
    async with open_logs(world) as logs:
        append(logs.partition(), batch(b"c", b"d"))
    world.wal.crash()
    async with open_logs(world) as logs:
        partition = logs.partition()
        append(partition, batch(b"e"))
        ends = [partition.end_offset_for_epoch(epoch) for epoch in (-2, 0, 1, 2)]
        assert ends == [(-2, 0), (0, 2), (1, 4), (2, 5)]
        await partition.delete_records(3)
        ends = [partition.end_offset_for_epoch(epoch) for epoch in (-2, 0, 1, 2)]
        assert ends == [(-2, 3), (0, 3), (1, 4), (2, 5)]
        await partition.delete_records(5)
        ends = [partition.end_offset_for_epoch(epoch) for epoch in (-2, 0, 1, 2)]
        assert ends == [(-2, 5), (0, 5), (1, 5), (2, 5)]


async def test_retention_by_size_and_by_time_drops_the_oldest_only(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(retention_bytes="250", retention_ms="-1")
        for i in range(5):
            append(partition, batch(bytes([i]) * 100))
        assert await logs.manager.clean() == 1
        assert partition.log_start_offset == 3, "what stays is at least the limit"
        await logs.manager.alter_configs("events", {"retention.ms": "1000"})
        world.now_ms += 1001
        assert await logs.manager.clean() == 1
        assert partition.log_start_offset == partition.high_watermark == 5


async def check_untimed(world: World, logs: Logs) -> None:
    """Two records without timestamp, appended at NOW_MS, with ``retention.ms`` 1000."""
    partition = logs.partition()
    assert await partition.offset_for_timestamp(0) is None
    assert await partition.max_timestamp_offset() == (0, -1, 0), "the first of those that have none"
    world.now_ms = NOW_MS + 1000
    assert await logs.manager.clean() == 0
    world.now_ms += 1
    assert await logs.manager.clean() == 1
    assert partition.log_start_offset == partition.high_watermark == 2
    assert await partition.max_timestamp_offset() is None


@pytest.mark.parametrize("place", ["log cache", "object", "recovered from the WAL"])
async def test_records_without_timestamp_expire_by_the_time_of_their_append(world: World, place: str) -> None:
    """But no lookup by timestamp finds them by it."""
    async with open_logs(world) as logs:
        partition = await logs.create(retention_ms="1000")
        append(partition, batch(b"a", timestamp=-1))
        append(partition, batch(b"b", timestamp=-1))
        if place == "log cache":
            await check_untimed(world, logs)
            return
        if place == "object":
            await logs.manager.drain()
    world.wal.crash()
    world.now_ms = NOW_MS + 500
    async with open_logs(world) as logs:
        await check_untimed(world, logs)


@pytest.mark.parametrize("uploaded", [False, True])
async def test_where_records_have_timestamps_those_count(world: World, uploaded: bool) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create(retention_ms="1000")
        for value, timestamp in ((b"a", -1), (b"b", NOW_MS + 50), (b"c", -1)):
            append(partition, batch(value, timestamp=timestamp))
        if uploaded:
            await logs.manager._engine.flush()
        assert (await partition.offset_for_timestamp(0) or ())[:2] == (1, NOW_MS + 50)
        assert await partition.offset_for_timestamp(NOW_MS + 51) is None
        assert (await partition.max_timestamp_offset() or ())[:2] == (1, NOW_MS + 50)
        world.now_ms = NOW_MS + 1001
        assert await logs.manager.clean() == (not uploaded), "an object's range goes by its timestamps"
        assert partition.log_start_offset == (0 if uploaded else 1)
        world.now_ms += 50
        assert await logs.manager.clean() == 1
        assert partition.log_start_offset == 3


@given(
    st.lists(
        st.tuples(st.one_of(st.just(-1), st.integers(0, 2**53)), st.integers(0, 2**53)),
        min_size=1,
    )
)
def test_the_greatest_time_of_some_entries_is_what_retention_goes_by(entries: list[tuple[int, int]]) -> None:
    """(timestamp, time of the append): timestamps go before appends, the newest of each counts."""
    greatest = max(timestamp if timestamp >= 0 else untimed(now) for timestamp, now in entries)
    timestamps = [timestamp for timestamp, _ in entries if timestamp >= 0]
    expected = max(timestamps) if timestamps else max(now for _, now in entries)
    assert retention_time_ms(greatest) == expected
    assert greatest >= 0 or not timestamps
    assert retention_time_ms(-1) == -1, "written before appends were timed"


async def test_the_size_is_that_of_the_batches_uploaded_or_not(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        assert partition.size_bytes == 0
        first = batch(b"x" * 1000)
        append(partition, first)
        await logs.manager._engine.flush()
        assert partition.size_bytes == len(first)
        second = batch(b"y" * 300)
        append(partition, second)
        await read(partition, 1)
        assert partition.size_bytes == len(first) + len(second)
        await partition.delete_records(1)
        assert partition.size_bytes == len(second)


async def test_topics_come_and_go_and_observers_are_told(world: World) -> None:
    async with open_logs(world) as logs:
        await logs.create("events", 2)
        (again,) = await logs.manager.create_topics([NewTopic("events")])
        assert isinstance(again, Exception)
        append(logs.partition("events", 1), batch(b"a"))
        deleted: list[str] = []

        logs.bus.subscribe(TopicsDeleted, lambda event: deleted.extend(event.names))
        closed = logs.partition()
        missing, error = await logs.manager.delete_topics(["events", "nope"])
        assert missing is None
        assert error is not None
        assert deleted == ["events"]
        assert codes(append(closed, batch(b"a"))) == [ErrorCode.NOT_LEADER_OR_FOLLOWER]
        assert logs.manager.partition("events", 0) is None
        names = [name for name, _ in logs.events]
        assert names.count("penstock_on_partition_opened") == 3  # the harness's own topic has one
        assert names.count("penstock_on_partition_closed") == 2
        assert names[-1] == "penstock_on_topic_deleted"


async def test_producer_ids_are_new_over_restarts(world: World) -> None:
    seen = set()
    for _ in range(2):
        async with open_logs(world) as logs:
            for _ in range(3):
                producer_id, epoch = await logs.manager.next_producer_id()
                assert producer_id not in seen
                assert epoch == 0
                seen.add(producer_id)
        world.wal.crash()


async def test_a_keyed_log_gives_back_every_record_from_its_start(world: World) -> None:
    async with open_logs(world) as logs:
        await logs.create("keyed")
        log = KeyedLog("keyed", 1, logs.manager.partition, lambda: NOW_MS)
        assert await log.append(0, [(b"k1", b"v1"), (b"k2", None)]) == 0
        assert await log.append(0, [(b"k3", b"v3")]) == 2
        assert [record async for record in log.read_all(0)] == [(b"k1", b"v1"), (b"k2", None), (b"k3", b"v3")]
        assert log.uploaded_end(0) == 0
        await logs.manager._engine.flush()
        assert log.uploaded_end(0) == 3
        await log.trim(0, 1)
        assert [record async for record in log.read_all(0)] == [(b"k2", None), (b"k3", b"v3")]


async def test_a_long_set_of_a_keyed_log_is_built_in_portions_and_is_one_batch(world: World) -> None:
    records = [(str(number).encode(), b"v") for number in range(2_500)]
    async with open_logs(world) as logs:
        partition = await logs.create("keyed")
        log = KeyedLog("keyed", 1, logs.manager.partition, lambda: NOW_MS)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, 0, records)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
                assert partition.stream.next_offset == 0
        result = await partition.read(0, 2**20, read_committed=False, at_least_one=True)
        assert [read_header(one).count for one in result.records] == [2_500]
        assert [record async for record in log.read_all(0)] == records


async def test_a_set_of_a_keyed_log_that_is_cancelled_while_it_is_built_does_not_land(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create("keyed")
        log = KeyedLog("keyed", 1, logs.manager.partition, lambda: NOW_MS)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, 0, [(b"k", b"v")] * 2_500)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert await log.append(0, [(b"k", b"v")]) == 0
        assert partition.high_watermark == 1


async def test_a_set_of_a_keyed_log_whose_partition_is_lost_while_it_is_built_is_refused(
    world: World,
) -> None:
    async with open_logs(world) as logs:
        found: Partition | None = await logs.create("keyed")
        log = KeyedLog("keyed", 1, lambda _topic, _index: found, lambda: NOW_MS)

        async def refused() -> None:
            with pytest.raises(ClosedError, match="doesn't lead the partition"):
                await log.append(0, [(b"k", b"v")] * 2_500)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            found = None


class _Settled(ProducerBook):
    """As if a transaction were open from offset 3 on, and another one had been aborted."""

    def last_stable_offset(self, high_watermark: int) -> int:
        return min(high_watermark, 3)

    def aborted(self, start_offset: int, end_offset: int) -> Sequence[AbortedTransaction]:
        return [AbortedTransaction(7, start_offset), AbortedTransaction(8, end_offset)]


@pytest.mark.parametrize("cold", [False, True])
async def test_readers_of_committed_data_stop_where_the_book_says_and_are_told_what_was_aborted(
    world: World, cold: bool
) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        for value in (b"a", b"b", b"c", b"d"):
            append(partition, batch(value))
        partition.producers = _Settled()
        assert (partition.last_stable_offset, partition.high_watermark) == (3, 4)

        async def look(offset: int, *, committed: bool) -> ReadResult:
            if cold:
                return await partition.read(offset, 10**6, read_committed=committed, at_least_one=True)
            found = partition.read_nowait(offset, 10**6, read_committed=committed, at_least_one=True)
            assert found is not None
            return found

        found = await look(1, committed=True)
        assert [read_header(records).base_offset for records in found.records] == [1, 2]
        assert found.aborted == [(7, 1), (8, 3)]
        assert (await look(3, committed=True)).records == ()
        found = await look(1, committed=False)
        assert ([read_header(records).base_offset for records in found.records], found.aborted) == (
            [1, 2, 3],
            (),
        )


async def test_a_transactional_batch_is_refused_and_its_memory_stays_the_callers(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        data = batch(b"a", producer=(7, 0, 0))
        struct.pack_into(">h", data, ATTRIBUTES_POS, TRANSACTIONAL_BIT)
        struct.pack_into(">I", data, CRC_POS, crc32c(data[ATTRIBUTES_POS:]))
        outcomes: list[AppendOutcome] = []
        taken = partition.append(
            memoryview(data), produce_version=9, now_ms=NOW_MS, charge=None, on_done=outcomes.append
        )
        assert (taken, codes(outcomes), partition.high_watermark) == (
            False,
            [ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED],
            0,
        )
