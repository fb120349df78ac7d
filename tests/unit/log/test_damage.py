"""A damaged object makes unavailable the partitions that need it to go on, and no others; nothing is skipped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from tests.simulation.world import SimulatedStore
from tests.unit.log.test_partition import NOW_MS, Logs, append, batch, codes, open_logs, read
from tests.unit.stream.harness import World

from penstock.errors import UnavailableError
from penstock.log import producer_snapshots as snapshots_module
from penstock.log.errors import KafkaError
from penstock.log.keyed_log import KeyedLog
from penstock.log.partition import Partition
from penstock.spi.events import PartitionClosed, PartitionOpened
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio

BATCHES = 10


@pytest.fixture
def store() -> SimulatedStore:
    return SimulatedStore(Random(0))


@pytest.fixture
def world(tmp_path: Path, store: SimulatedStore) -> World:
    return World(tmp_path, now_ms=NOW_MS, store=store)


def value(index: int, number: int) -> bytes:
    return b"<%d-%d>" % (index, number) + b"." * 60


async def write(logs: Logs, partitions: int = 2) -> None:
    """Ten batches of an idempotent producer in each partition, uploaded; no snapshot of its state."""
    await logs.create(partitions=partitions)
    for number in range(BATCHES):
        for index in range(partitions):
            outcome = append(
                logs.partition(index=index), batch(value(index, number), producer=(7, 0, number))
            )
            assert codes(outcome) == [0]
    await logs.manager._engine.flush()


def turn(store: SimulatedStore, needle: bytes) -> str:
    """Damage the bytes ``needle`` in the object that has them; once more mends it. The object's key."""
    (key,) = [key for key in store.objects if key.startswith("objects/") and needle in store.objects[key]]
    data = store.objects[key]
    at = data.index(needle)
    store.objects[key] = data[:at] + bytes(byte ^ 0xFF for byte in needle) + data[at + len(needle) :]
    return key


def mend(store: SimulatedStore, needle: bytes) -> None:
    turned = bytes(byte ^ 0xFF for byte in needle)
    turn(store, turned)


def opened(logs: Logs) -> list[int]:
    return [e.partition for _, e in logs.events if isinstance(e, PartitionOpened) and e.topic == "events"]


async def refused(call: Callable[[], Awaitable[object]]) -> int:
    with pytest.raises(KafkaError) as caught:
        await call()
    return caught.value.error_code


async def check_serves_nothing(partition: Partition, next_sequence: int = BATCHES) -> None:
    storage_error = ErrorCode.KAFKA_STORAGE_ERROR
    assert codes(append(partition, batch(b"x", producer=(7, 0, next_sequence)))) == [storage_error]
    assert codes(append(partition, batch(b"x"))) == [storage_error]
    assert await refused(lambda: read(partition)) == storage_error
    assert await refused(lambda: partition.offset_for_timestamp(0)) == storage_error
    assert await refused(partition.max_timestamp_offset) == storage_error
    assert await refused(lambda: partition.append_batch(batch(b"x"))) == storage_error
    with pytest.raises(KafkaError):
        partition.read_nowait(0, 1000, read_committed=False, at_least_one=True)


@pytest.mark.parametrize("damage", ["a block", "the object is gone", "the object is cut"])
async def test_a_partition_that_cannot_know_its_producers_serves_nothing_and_others_do(
    world: World,
    store: SimulatedStore,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BYTES", 1)
    monkeypatch.setattr(snapshots_module, "REPLAY_BYTES", 1)
    async with open_logs(world) as logs:
        await logs.create("other")
        await append_other(logs, b"before")
        await write(logs, 1)
    world.wal.crash()
    if damage == "a block":
        turn(store, b"<0-4>")
    else:
        (key,) = [key for key in store.objects if b"<0-4>" in store.objects[key]]
        body = store.objects.pop(key)
        if damage == "the object is cut":
            store.objects[key] = body[:-40]
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert logs.manager.unavailable_partitions() == ["events-0"]
        await check_serves_nothing(partition)
        assert opened(logs) == []
        told = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert len(told) == 1
        assert "events-0 is unavailable" in told[0]
        assert "penstock topic delete-records events --partition 0" in told[0]
        assert await read(logs.partition("other")) == [(0, b"before")]
        await append_other(logs, b"after")
        await logs.manager.alter_configs("events", {"retention.bytes": "0"})
        await logs.manager.clean()
        assert partition.log_start_offset == 0, "retention waits as well"
        await logs.manager.drain()
        assert partition.state_stream.confirmed_offset == 0, "no snapshot of a state that isn't known"
        assert not [e for _, e in logs.events if isinstance(e, PartitionClosed) and e.topic == "events"], (
            "never told as open"
        )
    world.wal.crash()
    async with open_logs(world) as logs:
        await logs.manager.delete_topics(["events"])
        assert logs.manager.unavailable_partitions() == []
        assert "events" not in logs.manager.topics()
        await logs.create()
        assert codes(append(logs.partition(), batch(b"new"))) == [0]


async def append_other(logs: Logs, data: bytes) -> None:
    """Uploaded on its own, so that it is in another object."""
    assert codes(append(logs.partition("other"), batch(data))) == [0]
    await logs.manager._engine.flush()


async def test_a_mended_object_brings_everything_back(world: World, store: SimulatedStore) -> None:
    async with open_logs(world) as logs:
        await write(logs)
    world.wal.crash()
    turn(store, b"<0-4>")
    async with open_logs(world) as logs:
        assert logs.manager.unavailable_partitions() == ["events-0"]
    world.wal.crash()
    mend(store, b"<0-4>")
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert [o for o, _ in await read(partition)] == list(range(BATCHES))
        again = append(partition, batch(value(0, 9), producer=(7, 0, 9)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 9)]
        assert codes(append(partition, batch(b"new", producer=(7, 0, 10)))) == [0]


async def test_records_up_to_the_damage_can_be_given_up(
    world: World, store: SimulatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left is whole, so it is served, and what it says of its producers is known."""
    async with open_logs(world) as logs:
        await write(logs)
    world.wal.crash()
    turn(store, b"<0-4>")
    async with open_logs(world) as logs:
        partition = logs.partition()
        message = next(r.getMessage() for r in caplog.records if r.levelname == "ERROR")
        before = int(message.partition("--before ")[2].partition(")")[0])
        assert 4 < before < BATCHES, "one block is given up, not the object"
        assert await partition.delete_records(2) == 2
        await check_serves_nothing(partition)
        version = logs.manager.topics()["events"].version
        assert await partition.delete_records(before) == before
        assert partition.unavailable is None
        assert logs.manager.topics()["events"].version > version, "what Metadata keeps of the topic is old"
        assert opened(logs) == [1, 0]
        for _ in range(2):
            assert [o for o, _ in await read(partition, before)] == list(range(before, BATCHES))
            again = append(partition, batch(value(0, 9), producer=(7, 0, 9)))
            assert [(o.error_code, o.base_offset) for o in again] == [(0, 9)]
        assert codes(append(partition, batch(b"new", producer=(7, 0, 10)))) == [0]
    world.wal.crash()
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert (partition.unavailable, partition.log_start_offset) == (None, before)
        assert codes(append(partition, batch(b"newer", producer=(7, 0, 11)))) == [0]


async def test_further_damage_keeps_the_partition_offline(
    world: World, store: SimulatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_logs(world) as logs:
        await write(logs)
    world.wal.crash()
    turn(store, b"<0-1>")
    turn(store, b"<0-8>")
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert await partition.delete_records(5) == 5
        await check_serves_nothing(partition)
        told = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert len(told) == 2
        assert await partition.delete_records(-1) == BATCHES
        assert partition.unavailable is None
        assert codes(append(partition, batch(b"new", producer=(8, 0, 0)))) == [0]


@pytest.mark.parametrize("callers", [1, 2])
async def test_a_damaged_snapshot_of_producers_is_given_up_only_when_asked(
    world: World, store: SimulatedStore, caplog: pytest.LogCaptureFixture, callers: int
) -> None:
    """Deleting records, be it none, is the word for it; what the log says of its producers is then what is known."""
    async with open_logs(world) as logs:
        await write(logs, 1)
        await logs.manager.drain()
        assert logs.partition().state_stream.confirmed_offset == 1
    world.wal.crash()
    turn(store, b"PSPS")
    async with open_logs(world) as logs:
        partition = logs.partition()
        await check_serves_nothing(partition)
        assert "the snapshot of its producers' state" in caplog.text
        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(partition.delete_records, 0)
        assert "giving up the producers' state of events-0" in caplog.text
        assert opened(logs) == [0]
        assert [o for o, _ in await read(partition)] == list(range(BATCHES))
        again = append(partition, batch(value(0, 9), producer=(7, 0, 9)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 9)]
    world.wal.crash()
    async with open_logs(world) as logs:
        assert logs.partition().unavailable is None


async def test_a_whole_snapshot_of_producers_is_never_given_up(world: World, store: SimulatedStore) -> None:
    """Deleting too few records leaves everything as it is."""
    async with open_logs(world) as logs:
        await write(logs, 1)
        partition = logs.partition()
        partition.snapshot_producers(NOW_MS)
        append(partition, batch(b"<later>", producer=(7, 0, BATCHES)))
        await logs.manager._engine.flush()
    world.wal.crash()
    turn(store, b"<later>")
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert await partition.delete_records(3) == 3
        await check_serves_nothing(partition)
        state = partition.state_stream
        assert (state.start_offset, state.confirmed_offset) == (0, 1)
        assert await partition.delete_records(-1) == BATCHES + 1
        again = append(partition, batch(value(0, 9), producer=(7, 0, 9)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 9)], "the snapshot still says so"


async def test_half_a_state_of_producers_is_never_written(
    world: World, store: SimulatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if somebody deletes more records while the partition is on its way back."""
    monkeypatch.setattr(snapshots_module, "REPLAY_BYTES", 1)
    async with open_logs(world) as logs:
        await write(logs, 1)
    world.wal.crash()
    turn(store, b"<0-1>")
    async with open_logs(world) as logs:
        partition = logs.partition()
        reads = logs.manager._engine.reads
        read_stream = reads.read
        half, go_on = anyio.Event(), anyio.Event()

        async def held(stream: Any, offset: int, bytes_max: int) -> Any:
            if len(partition.producers) and offset < BATCHES - 1:
                half.set()
                await go_on.wait()
                if offset < stream.start_offset:
                    return []  # as for any reader of what was deleted meanwhile
            return await read_stream(stream, offset, bytes_max)

        monkeypatch.setattr(reads, "read", held)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partition.delete_records, 5)
            await half.wait()
            tasks.start_soon(partition.delete_records, 7)
            await anyio.wait_all_tasks_blocked()
            assert partition.log_start_offset == 7
            assert partition.state_stream.confirmed_offset == 0
            go_on.set()
        assert partition.unavailable is None
        for number in (7, 9):
            again = append(partition, batch(value(0, number), producer=(7, 0, number)))
            assert [(o.error_code, o.base_offset) for o in again] == [(0, number)]


async def test_a_store_that_fails_for_now_is_no_damage(world: World, store: SimulatedStore) -> None:
    """The start is put off instead: nothing is known to be lost."""
    async with open_logs(world) as logs:
        await write(logs)
    world.wal.crash()
    get = store.get

    async def fail(key: str, start: int = 0, end: int | None = None) -> object:
        if key.startswith("objects/"):
            raise UnavailableError("not now")
        return await get(key, start, end)

    store.get = fail  # type: ignore[assignment,method-assign]
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_logs(world):
            pass
    assert caught.group_contains(UnavailableError)


async def test_an_owner_that_cannot_read_its_log_writes_nothing_to_it(
    world: World, store: SimulatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group coordinator: without the old records, a checkpoint would drop what they say."""
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BYTES", 1)
    async with open_logs(world) as logs:
        await logs.create(partitions=2)
        keyed = KeyedLog("events", 2, logs.manager.partition, lambda: world.now_ms)
        for number in range(BATCHES):
            for index in range(2):
                await keyed.append(index, [(value(index, number), b"v")])
        await logs.manager.drain()
    world.wal.crash()
    turn(store, b"<0-4>")
    async with open_logs(world) as logs:
        assert logs.manager.unavailable_partitions() == [], "the snapshot is newer than the damage"
        keyed = KeyedLog("events", 2, logs.manager.partition, lambda: world.now_ms)
        with pytest.raises(KafkaError):
            [record async for record in keyed.read_all(0)]
        assert len([record async for record in keyed.read_all(1)]) == BATCHES
        assert logs.manager.unavailable_partitions() == ["events-0"]
        await logs.partition().delete_records(-1)
        assert opened(logs) == [0, 1], "observers are told once"
        logs.partition().unavailable = "as before"
        assert await refused(lambda: keyed.append(0, [(b"k", b"v")])) == ErrorCode.KAFKA_STORAGE_ERROR
        await keyed.append(1, [(b"k", b"v")])
