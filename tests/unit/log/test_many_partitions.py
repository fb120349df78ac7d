"""What concerns many partitions is done some at a time: it comes to the same, wherever it is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from tests.unit.log.test_partition import NOW_MS, Logs, append, batch, codes, open_logs
from tests.unit.stream.harness import World

from penstock.errors import UnavailableError
from penstock.log import manager as manager_module
from penstock.log import served_topics as served_module
from penstock.log.partition import Partition
from penstock.log.partition_bound import PartitionBound
from penstock.log.partition_config import PartitionConfig
from penstock.log.served_topics import SLICE_PARTITIONS, ServedTopics
from penstock.log.topic import NewTopic, Topic
from penstock.metadata.commands import Command
from penstock.metadata.commands.streams import TrimStreams
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.service import BATCH_COMMANDS_MAX
from penstock.spi.events import PartitionClosed
from penstock.stream import engine as engine_module
from penstock.stream.events import BlockUploaded
from penstock.work.pieces import PORTION

pytestmark = pytest.mark.anyio
COUNT = 7


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, now_ms=NOW_MS)


@pytest.fixture(params=[1, 3, 1000])
def sliced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(manager_module, "SLICE_PARTITIONS", request.param)
    monkeypatch.setattr(served_module, "SLICE_PARTITIONS", request.param)
    monkeypatch.setattr(engine_module, "STREAMS_PER_COMMAND", request.param)
    monkeypatch.setattr(manager_module, "STREAMS_PER_COMMAND", request.param)
    return int(request.param)


def partitions(logs: Logs) -> list[Partition]:
    return [logs.partition(index=index) for index in range(COUNT)]


async def fill(logs: Logs) -> None:
    """Some batches in each partition, half of them uploaded; the producers' state is worth keeping."""
    await logs.create(partitions=COUNT, retention_bytes="300")
    rng = Random(1)
    for round_ in range(2):
        for partition in partitions(logs):
            for _ in range(rng.randrange(6)):
                append(partition, batch(b"x" * 50, producer=(7, 0, partition.stream.next_offset)))
        if not round_:
            await logs.manager._engine.flush()
            for partition in partitions(logs):
                partition.snapshot_producers(NOW_MS)
            await logs.manager._engine.flush()


def starts(logs: Logs) -> list[int]:
    return [partition.log_start_offset for partition in partitions(logs)]


async def test_retention_in_slices_trims_what_it_would_in_one_go(world: World, sliced: int) -> None:
    async with open_logs(world) as logs:
        await fill(logs)
        expected = [partition.expired_offset(NOW_MS) for partition in partitions(logs)]
        moved = sum(start > 0 for start in expected)
        assert 2 <= moved < COUNT
        assert await logs.manager.clean() == moved
        assert starts(logs) == expected
        assert await logs.manager.clean() == 0
    world.wal.crash()
    async with open_logs(world) as logs:
        assert starts(logs) == expected


async def test_a_trim_that_a_crash_cuts_short_is_whole_command_by_command_and_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "STREAMS_PER_COMMAND", 2)
    async with open_logs(world) as logs:
        await logs.create(partitions=COUNT, retention_bytes="0")
        for partition in partitions(logs):
            append(partition, batch(b"a"))
        metadata = logs.manager._metadata
        submit, written, stuck = metadata.submit, 0, anyio.Event()

        async def stop_after_two(command: Command) -> Any:
            nonlocal written
            if isinstance(command, TrimStreams):
                if written == 2:
                    stuck.set()
                    await anyio.sleep_forever()
                written += 1
            return await submit(command)

        monkeypatch.setattr(metadata, "submit", stop_after_two)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logs.manager.clean)
            await stuck.wait()
            tasks.cancel_scope.cancel()
    world.wal.crash()
    async with open_logs(world) as logs:
        assert starts(logs) == [1, 1, 1, 1, 0, 0, 0]
        assert await logs.manager.clean() == 3
        assert starts(logs) == [1] * COUNT


async def test_a_partition_that_cant_be_cleaned_keeps_no_other_from_it(
    world: World, sliced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Partition.save_producers

    async def fail_for_one(self: Partition, start: int) -> None:
        if self.index == 2:
            raise UnavailableError("the state of its producers can't be written")
        await save(self, start)

    monkeypatch.setattr(Partition, "save_producers", fail_for_one)
    async with open_logs(world) as logs:
        await logs.create(partitions=COUNT, retention_bytes="0")
        for partition in partitions(logs):
            append(partition, batch(b"a"))
        with pytest.raises(UnavailableError):
            await logs.manager.clean()
        assert starts(logs) == [1, 1, 0, 1, 1, 1, 1]


async def test_after_an_upload_each_partition_has_a_snapshot_of_its_producers(
    world: World, sliced: int
) -> None:
    async with open_logs(world) as logs:
        logs.engine_bus.subscribe(BlockUploaded, logs.manager.upload_committed)
        await logs.create(partitions=COUNT)
        for partition in partitions(logs):
            append(partition, batch(b"a", producer=(7, 0, 0)))
        await logs.manager._engine.flush()
        await anyio.wait_all_tasks_blocked()
        assert [p.state_stream.confirmed_offset for p in partitions(logs)] == [1] * COUNT


async def test_a_deleted_topic_leaves_no_partition_behind(world: World, sliced: int) -> None:
    async with open_logs(world) as logs:
        await logs.create(partitions=COUNT)
        deleted = partitions(logs)
        streams = {s.stream_id for p in deleted for s in (p.stream, p.state_stream)}
        told: list[int] = []
        for partition in deleted:
            append(partition, batch(b"a"))
            partition.add_listener(lambda index=partition.index: told.append(index))  # type: ignore[misc]
        assert await logs.manager.delete_topics(["events"]) == [None]
        assert told == list(range(COUNT))
        assert all(codes(append(partition, batch(b"b"))) != [0] for partition in deleted)
        closed = [event.partition for _, event in logs.events if isinstance(event, PartitionClosed)]
        assert closed == list(range(COUNT))
        assert streams.isdisjoint(logs.manager._engine._streams)
        assert streams.isdisjoint(logs.manager._by_stream)


async def test_topics_that_are_created_together_are_dealt_with_some_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part of their way: what is reserved for them, folded, opened; others get their turn meanwhile."""
    in_this_turn: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any) -> Any:
            in_this_turn[name] += 1
            most[name] = max(most[name], in_this_turn[name])
            return original(*args)

        monkeypatch.setattr(owner, name, watched)

    watch(PartitionBound, "reserve")
    watch(CreateTopic, "fold")
    watch(ServedTopics, "_make_partition")
    watch(ServedTopics, "_put_in")

    async def begin_turns() -> None:
        while True:
            in_this_turn.clear()
            await anyio.lowlevel.checkpoint()

    async with open_logs(world) as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(begin_turns)
        count = 3 * BATCH_COMMANDS_MAX
        made = await logs.manager.create_topics([NewTopic(f"t{i}", 1) for i in range(count)])
        tasks.cancel_scope.cancel()
        assert [topic.name for topic in made if isinstance(topic, Topic)] == [f"t{i}" for i in range(count)]
    assert set(most) == {"reserve", "fold", "_make_partition", "_put_in"}
    assert most.pop("fold") <= BATCH_COMMANDS_MAX <= 200
    assert max(most.values()) <= max(PORTION, SLICE_PARTITIONS)


async def test_topics_with_the_same_configs_have_them_parsed_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0
    parse = PartitionConfig.parse

    def count(values: Mapping[str, str], *, validate_full: bool) -> PartitionConfig:
        nonlocal parsed
        parsed += 1
        return parse(values, validate_full=validate_full)

    async with open_logs(world) as logs:
        monkeypatch.setattr(PartitionConfig, "parse", count)
        await logs.manager.create_topics([NewTopic(f"a{i}", 1, {"retention.ms": "5"}) for i in range(COUNT)])
        assert parsed == 1
        await logs.manager.create_topics([NewTopic("b", 1, {"retention.ms": "6"})])
        assert parsed == 2
        assert [logs.partition(name).config.retention_ms for name in ("a0", "a6", "b")] == [5, 5, 6]
