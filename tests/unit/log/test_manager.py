"""The log manager where requests go away, meet each other, or come in masses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from tests.patience import HANG_S
from tests.simulation.world import SimulatedStore
from tests.unit.log.test_partition import NOW_MS, Logs, append, batch, codes, open_logs, read
from tests.unit.stream.harness import FakeWal, World

from penstock.errors import AlreadyExistsError, ClosedError, UnavailableError
from penstock.log import manager as manager_module
from penstock.log import producer_snapshots as snapshots_module
from penstock.log import reconciler as reconciler_module
from penstock.log.errors import KafkaError
from penstock.log.events import TopicsDeleted
from penstock.log.limiter import BytesLimiter
from penstock.log.partition import Partition
from penstock.log.producer_book import ProducerBook
from penstock.log.topic import NewTopic, Topic
from penstock.metadata.commands import Command
from penstock.metadata.commands.objects import CommitUpload
from penstock.spi.events import PartitionOpened, UploadCommitted
from penstock.spi.plugin import Buffer
from penstock.stream.events import BlockUploaded
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, now_ms=NOW_MS)


@pytest.fixture(params=["while it is written", "once it is written"])
def written(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "once it is written")


async def leave(logs: Logs, change: Callable[[], Awaitable[object]], written: bool) -> None:
    """Cancel ``change`` around the time that its first metadata entry is written, and let everything settle."""
    index = logs.manager._metadata.image.index + written
    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await change()

            tasks.start_soon(run)
            await anyio.lowlevel.checkpoint()
            while logs.manager._metadata.image.index < index:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    await anyio.wait_all_tasks_blocked()
    await logs.manager.next_producer_id()  # whatever was submitted before this is done as well
    await anyio.wait_all_tasks_blocked()


async def test_no_topic_is_made_of_a_name_that_is_held(world: World) -> None:
    """As groups do while offsets of another topic of that name can't be removed."""
    async with open_logs(world) as logs:
        logs.manager.is_name_held = {"events"}.__contains__
        held, made = await logs.manager.create_topics([NewTopic("events", 1), NewTopic("others", 1)])
        assert isinstance(held, UnavailableError), "clients try again; who is told that it exists gives up"
        assert made is logs.manager.topics()["others"]
        logs.manager.is_name_held = {"others"}.__contains__
        await logs.create()


async def test_a_topic_whose_creator_went_away_is_there_whole(world: World, written: bool) -> None:
    async with open_logs(world) as logs:
        await leave(logs, lambda: logs.manager.create_topics([NewTopic("events", 3)]), written)
        assert len(logs.manager.topics()["events"].partitions) == 3
        assert codes(append(logs.partition(index=2), batch(b"a"))) == [0]


async def test_a_topic_whose_deleter_went_away_is_gone(world: World, written: bool) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        await leave(logs, lambda: logs.manager.delete_topics(["events"]), written)
        assert "events" not in logs.manager.topics()
        assert codes(append(partition, batch(b"a"))) != [0]


async def test_partitions_whose_creator_went_away_are_there(world: World, written: bool) -> None:
    async with open_logs(world) as logs:
        await logs.create()
        await leave(logs, lambda: logs.manager.create_partitions("events", 4), written)
        assert sorted(logs.manager.topics()["events"].partitions) == [0, 1, 2, 3]


async def test_configs_whose_setter_went_away_are_in_force(world: World, written: bool) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        await leave(logs, lambda: logs.manager.alter_configs("events", {"max.message.bytes": "77"}), written)
        assert partition.config.rules.max_message_bytes == 77


async def test_partitions_that_two_ask_for_at_once_are_opened_once(world: World) -> None:
    """I1: a partition that is opened twice has two owners, and what the first one acknowledges is lost."""
    async with open_logs(world) as logs:
        await logs.create()

        async def grow(count: int) -> None:
            await logs.manager.create_partitions("events", count)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(grow, 3)
            tasks.start_soon(grow, 5)
        opened = [event for _, event in logs.events if isinstance(event, PartitionOpened)]
        indexes = sorted(event.partition for event in opened if event.topic == "events")
        assert indexes == [0, 1, 2, 3, 4]
        for index in range(5):
            assert codes(append(logs.partition(index=index), batch(b"a"))) == [0]
    world.wal.crash()
    async with open_logs(world) as logs:
        for index in range(5):
            assert await read(logs.partition(index=index)) == [(0, b"a")]


async def test_one_topic_made_by_many_at_once_is_made_once(world: World) -> None:
    async with open_logs(world) as logs:
        results: list[object] = []

        async def make() -> None:
            results.extend(await logs.manager.create_topics([NewTopic("events", 2)]))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(make)
        assert sum(not isinstance(result, Exception) for result in results) == 1
        assert codes(append(logs.partition(), batch(b"a"))) == [0]


async def test_a_topic_that_is_told_to_exist_is_there(world: World) -> None:
    """Whoever is answered TOPIC_ALREADY_EXISTS goes on as if he had made it himself."""
    async with open_logs(world) as logs:
        index = logs.manager._metadata.image.index

        async def make() -> None:
            (result,) = await logs.manager.create_topics([NewTopic("events", 2)])
            assert isinstance(result, AlreadyExistsError) or result is logs.manager.topics()["events"]
            assert len(logs.manager.topics()["events"].partitions) == 2

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(make)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            assert logs.manager.is_changing("events")
        # the topic, its streams opened: who came second wrote nothing
        assert logs.manager._metadata.image.index == index + 2


async def test_a_topic_that_is_deleted_by_its_id_is_no_other_one_that_has_its_name_meanwhile(
    world: World,
) -> None:
    """Whoever was told that time is over asks again; by then it is deleted, and made anew."""
    async with open_logs(world) as logs:
        await logs.create()
        first = logs.manager.topics()["events"].id
        results: list[object] = []
        forgotten = anyio.Event()
        logs.bus.subscribe(TopicsDeleted, lambda event: event.work.append(forgotten.wait))

        async def make() -> None:
            await logs.manager.create_topics([NewTopic("events", 1)])

        async def delete() -> None:
            results.extend(await logs.manager.delete_topics(["events"], {"events": first}))

        async with anyio.create_task_group() as tasks:
            for change in (delete, make, delete):
                tasks.start_soon(change)
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            forgotten.set()
        refused = results[1]
        assert results[0] is None
        assert isinstance(refused, KafkaError)
        assert refused.error_code == ErrorCode.UNKNOWN_TOPIC_ID
        assert logs.manager.topics()["events"].id != first


async def test_a_topic_that_can_not_be_opened_is_told_of_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All topics of the request had its error, also those that were there."""
    async with open_logs(world) as logs:
        served = logs.manager._served
        settled = served.settled

        async def fail_one(topic_ids: Collection[bytes]) -> None:
            bad = logs.manager._metadata.image.topics.named("bad")
            if bad is not None and bad.topic_id in topic_ids:
                raise UnavailableError("it can't be opened now")
            await settled(topic_ids)

        monkeypatch.setattr(served, "settled", fail_one)
        topics = [NewTopic(name, 1) for name in ("a", "bad", "b")]
        first, bad, last = await logs.manager.create_topics(topics)
        assert isinstance(bad, UnavailableError)
        assert [getattr(one, "name", "") for one in (first, last)] == ["a", "b"]
        assert await logs.manager.delete_topics(["a", "bad"]) == [None, None]


async def test_a_topic_is_deleted_though_what_goes_with_it_fails(world: World) -> None:
    """As in Kafka: it is gone, and whoever tried again would be told that there is no such topic."""
    async with open_logs(world) as logs:
        await logs.create()
        done: list[str] = []

        async def fail() -> None:
            raise UnavailableError("offsets couldn't be removed")

        async def forget() -> None:
            done.append("forgotten")

        logs.bus.subscribe(TopicsDeleted, lambda event: event.work.extend([fail, forget]))
        assert await logs.manager.delete_topics(["events"]) == [None]
        assert done == ["forgotten"]
        assert "events" not in logs.manager.topics()


async def test_a_topic_is_deleted_and_made_again_in_the_order_that_was_asked(world: World) -> None:
    async with open_logs(world) as logs:
        order: list[str] = []
        forgotten = anyio.Event()

        async def forget() -> None:
            order.append("offsets of the deleted one are gone")
            await forgotten.wait()

        logs.bus.subscribe(TopicsDeleted, lambda event: event.work.append(forget))

        async def make() -> None:
            await logs.manager.create_topics([NewTopic("events", 1)])
            order.append("made")

        async def delete() -> None:
            assert await logs.manager.delete_topics(["events"]) == [None]
            order.append("deleted")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make)
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(delete)  # while it is being made
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(make)  # while it is being deleted
            await anyio.wait_all_tasks_blocked()
            forgotten.set()
        assert order[:2] == ["made", "offsets of the deleted one are gone"]
        assert sorted(order[2:]) == ["deleted", "made"]
        assert codes(append(logs.partition(), batch(b"a"))) == [0]


async def test_others_get_their_turns_while_many_names_are_looked_at(world: World) -> None:
    """Metadata may ask for 150,000 topics, which took the loop for a tenth of a second here."""
    async with open_logs(world) as logs:
        await logs.create()
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            await logs.manager.wait_changed([f"n{number}" for number in range(5_000)])
            tasks.cancel_scope.cancel()
        assert turns > 10


async def test_who_waits_for_a_topic_and_goes_away_leaves_nothing_behind(world: World) -> None:
    async with open_logs(world) as logs:
        index = logs.manager._metadata.image.index
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logs.manager.create_topics, [NewTopic("events", 1)])
            await anyio.lowlevel.checkpoint()
            with anyio.move_on_after(0):
                await logs.manager.create_topics([NewTopic("events", 1), NewTopic("other", 1)])
            with anyio.move_on_after(0):
                await logs.manager.wait_changed(["events"])
        assert "events" in logs.manager.topics()
        assert "other" not in logs.manager.topics()
        assert not logs.manager.is_changing("events")
        assert not logs.manager.is_changing("other")
        assert logs.manager._metadata.image.index == index + 2


async def test_configs_that_two_change_at_once_are_both_changed(world: World) -> None:
    async with open_logs(world) as logs:
        await logs.create()

        async def change(key: str) -> None:
            await logs.manager.change_configs("events", lambda configs: {**configs, key: "77"})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change, "max.message.bytes")
            tasks.start_soon(change, "retention.ms")
        topic = logs.manager.topics()["events"]
        assert topic.configs == {"max.message.bytes": "77", "retention.ms": "77"}


async def test_topics_may_come_and_go_while_retention_runs(world: World) -> None:
    async with open_logs(world) as logs:
        for i in range(3):
            await logs.create(f"t{i}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logs.manager.clean)
            await anyio.lowlevel.checkpoint()
            await logs.manager._served.forget(logs.manager.topics()["t1"].id, [])


async def test_a_drain_writes_one_snapshot_per_partition(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", producer=(7, 0, 0)))
        world.wal.automatic = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logs.manager.drain)
            await anyio.wait_all_tasks_blocked()
            world.wal.complete()
            world.wal.automatic = True
        assert partition.state_stream.confirmed_offset == 1


@pytest.mark.parametrize("records_at_last", [0, 1])
async def test_a_start_reads_a_bounded_part_of_a_log_without_idempotent_producers(
    world: World, monkeypatch: pytest.MonkeyPatch, records_at_last: int
) -> None:
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BYTES", 500)
    async with open_logs(world) as logs:
        partition = await logs.create()
        for i in range(10):
            append(partition, batch(bytes([i]) * 100))
        partition.snapshot_producers(NOW_MS)
        for _ in range(records_at_last):
            append(partition, batch(b"z"))
        partition.snapshot_producers(NOW_MS)
        assert partition.state_stream.confirmed_offset == 1, "a few bytes more are worth no snapshot"
    world.wal.crash()
    replayed: list[int] = []
    replay = ProducerBook.replay

    def count(self: ProducerBook, header: Any, now_ms: int) -> None:
        replayed.append(header.base_offset)
        replay(self, header, now_ms)

    monkeypatch.setattr(ProducerBook, "replay", count)
    async with open_logs(world):
        assert replayed == [10] * records_at_last


@pytest.mark.parametrize("producer", [None, 7])
async def test_starts_of_a_broker_that_is_killed_again_and_again_read_a_bounded_part(
    world: World, monkeypatch: pytest.MonkeyPatch, producer: int | None
) -> None:
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_UPLOADS", 3)
    replayed: list[int] = []
    replay = ProducerBook.replay

    def count(self: ProducerBook, header: Any, now_ms: int) -> None:
        replayed[-1] += 1
        replay(self, header, now_ms)

    monkeypatch.setattr(ProducerBook, "replay", count)
    for life in range(10):
        replayed.append(0)
        async with open_logs(world) as logs:
            partition = logs.partition() if life else await logs.create()
            sent = batch(b"a") if producer is None else batch(b"a", producer=(producer, 0, life))
            (outcome,) = append(partition, sent)
            assert (outcome.error_code, outcome.base_offset) == (0, life)
        world.wal.crash()
    assert replayed == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]


async def test_many_small_uploads_without_idempotent_producers_end_in_a_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is in an object of its own, which a start would read."""
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_UPLOADS", 3)
    async with open_logs(world) as logs:
        partition = await logs.create()
        ends: list[int] = []
        for _ in range(6):
            append(partition, batch(b"a"))
            partition.snapshot_producers(NOW_MS)
            ends.append(partition.state_stream.confirmed_offset)
    assert ends == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("by", ["request", "retention"])
async def test_producers_go_on_after_a_crash_though_what_they_wrote_was_deleted(
    world: World, by: str
) -> None:
    """The newest snapshot may be older than the log start: the state in between must not be lost with the log."""
    async with open_logs(world) as logs:
        partition = await logs.create(retention_bytes="0" if by == "retention" else "-1")
        append(partition, batch(b"a", producer=(7, 0, 0)))
        partition.snapshot_producers(NOW_MS)
        append(partition, batch(b"b", producer=(7, 0, 1)))
        if by == "retention":
            await logs.manager.clean()
        else:
            await partition.delete_records(-1)
        assert partition.log_start_offset == 2
    world.wal.crash()
    async with open_logs(world) as logs:
        partition = logs.partition()
        again = append(partition, batch(b"b", producer=(7, 0, 1)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 1)]
        assert codes(append(partition, batch(b"c", producer=(7, 0, 2)))) == [0]


@pytest.mark.parametrize("by", ["request", "retention"])
async def test_producers_whose_uploaded_batches_were_deleted_are_known_without_the_wal(
    world: World, by: str
) -> None:
    """A lost WAL takes what it alone held: their state went on from what objects said, and so must stay in one."""
    async with open_logs(world) as logs:
        logs.engine_bus.subscribe(BlockUploaded, logs.manager.upload_committed)
        partition = await logs.create(retention_bytes="0" if by == "retention" else "-1")
        for number in range(3):
            append(partition, batch(b"%d" % number, producer=(7, 0, number)))
            await logs.manager._engine.flush()
        assert partition.state_stream.confirmed_offset == 3, "the newest snapshot is in the WAL only"
        if by == "retention":
            assert await logs.manager.clean() == 1
        else:
            assert await partition.delete_records(-1) == 3
        deleted = partition.log_start_offset
        assert deleted == (2 if by == "retention" else 3)
    world.wal = FakeWal()
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert partition.log_start_offset == deleted
        again = append(partition, batch(b"2", producer=(7, 0, 2)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 2)]
        assert codes(append(partition, batch(b"3", producer=(7, 0, 3)))) == [0]
        if by == "retention":
            for moved, start in ((0, 2), (1, 4)):
                await logs.manager._engine.flush()
                assert await logs.manager.clean() == moved, (
                    "it leaves for the next run what it can't delete yet"
                )
                assert partition.log_start_offset == start


def uploads_held_back(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """No upload is committed until this is set."""
    metadata, may_commit = logs.manager._metadata, anyio.Event()
    submit = metadata.submit

    async def submit_late(command: Command) -> Any:
        if isinstance(command, CommitUpload):
            await may_commit.wait()
        return await submit(command)

    monkeypatch.setattr(metadata, "submit", submit_late)
    return may_commit


async def test_what_is_being_uploaded_is_deleted_once_the_state_of_its_producers_is_uploaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload may be committed before a trim is written that was asked for earlier."""
    async with open_logs(world) as logs:
        partition = await logs.create(retention_bytes="0")
        may_commit = uploads_held_back(logs, monkeypatch)
        append(partition, batch(b"a", producer=(7, 0, 0)))
        logs.manager._engine.begin_upload()
        assert await logs.manager.clean() == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partition.delete_records, -1)
            await anyio.wait_all_tasks_blocked()
            assert partition.log_start_offset == 0
            may_commit.set()
        assert partition.log_start_offset == 1
    world.wal = FakeWal()
    async with open_logs(world) as logs:
        again = append(logs.partition(), batch(b"a", producer=(7, 0, 0)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 0)]


async def test_a_deletion_that_failed_is_not_done_with_a_later_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", b"b"))
        trim = partition._engine.trim

        async def refuse(starts: object) -> None:
            monkeypatch.setattr(partition._engine, "trim", trim)
            raise UnavailableError("not now")

        monkeypatch.setattr(partition._engine, "trim", refuse)
        with pytest.raises(UnavailableError):
            await partition.delete_records(2)
        assert await partition.delete_records(1) == 1


async def test_deletion_of_records_whose_stream_is_gone_is_tried_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic is deleted meanwhile, and its partition isn't closed yet: nothing moves the start any more."""
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a"))
        trims = 0

        async def nothing(starts: object) -> None:
            nonlocal trims
            trims += 1
            assert trims == 1

        monkeypatch.setattr(partition._engine, "trim", nothing)
        with pytest.raises(KafkaError) as refused:
            await partition.delete_records(1)
        assert refused.value.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_deletions_that_wait_for_an_upload_hold_one_task_for_each_partition(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often clients write, ask, and go away: what was begun goes on, and nothing else is done for them."""
    async with open_logs(world) as logs:
        partition = await logs.create()
        may_commit = uploads_held_back(logs, monkeypatch)
        for number in range(3):
            append(partition, batch(b"%d" % number, producer=(7, 0, number)))
        logs.manager._engine.begin_upload()
        async with anyio.create_task_group() as tasks:
            for number, offset in enumerate((2, 3, 1, -1), 3):
                tasks.start_soon(partition.delete_records, offset)
                await anyio.wait_all_tasks_blocked()
                append(partition, batch(b"%d" % number, producer=(7, 0, number)))
            assert logs.manager._engine._finisher.waiting == 1
            assert partition.state_stream.confirmed_offset == 1, "and one snapshot"
            tasks.cancel_scope.cancel()
        may_commit.set()
        assert await partition.delete_records(1) == 2


async def test_who_deletes_records_is_told_when_they_are_gone_whatever_others_want_by_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        trim, trimmed = partition._engine.trim, list[int]()

        async def trim_and_want_more(starts: Sequence[tuple[int, int]]) -> None:
            await trim(starts)
            trimmed.append(partition.log_start_offset)
            if len(trimmed) < 5:
                append(partition, batch(b"a"))
                tasks.start_soon(partition.delete_records, -1)
                await anyio.wait_all_tasks_blocked()

        monkeypatch.setattr(partition._engine, "trim", trim_and_want_more)
        append(partition, batch(b"a"))
        async with anyio.create_task_group() as tasks:
            await partition.delete_records(1)
            assert trimmed == [1], "it isn't kept by those that came since"
        assert trimmed == [1, 2, 3, 4, 5]


async def test_a_snapshot_of_producers_says_nothing_of_batches_that_went_with_a_lost_wal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload is committed in parts: the snapshot may have been in the first one, and the batches in the next."""
    upload = replace(world.settings.upload, object_split_bytes=300, commit_ranges_max=1)
    world.settings = replace(world.settings, upload=upload)
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", producer=(7, 0, 0)))
        for producer in (8, 9):
            partition.snapshot_producers(NOW_MS)
            append(partition, batch(b"", producer=(producer, 0, 0)))
        partition.snapshot_producers(NOW_MS)
        metadata, state_stream = logs.manager._metadata, partition.state_stream.stream_id
        submit, is_half_way = metadata.submit, anyio.Event()

        async def submit_one(command: Command) -> Any:
            if isinstance(command, CommitUpload):
                if is_half_way.is_set():
                    await anyio.sleep_forever()
                is_half_way.set()
            return await submit(command)

        monkeypatch.setattr(metadata, "submit", submit_one)
        logs.manager._engine.begin_upload()
        await anyio.wait_all_tasks_blocked()
        assert partition.uploaded_end == 0
        assert logs.manager._engine.uploaded_end(state_stream) == 3
    world.wal = FakeWal()
    async with open_logs(world) as logs:
        partition = logs.partition()
        assert partition.high_watermark == 0
        again = append(partition, batch(b"b", producer=(9, 0, 0)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 0)]
        assert await read(partition) == [(0, b"b")]
        await partition.delete_records(-1)
    world.wal.crash()
    async with open_logs(world) as logs:
        again = append(logs.partition(), batch(b"b", producer=(9, 0, 0)))
        assert [(o.error_code, o.base_offset) for o in again] == [(0, 0)], "what it says now is what is kept"


@pytest.mark.parametrize("told", [True, False], ids=["told", "under way"])
async def test_retention_spares_what_other_configs_keep_that_came_while_it_ran(
    world: World, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: whoever was told that they are in force finds the records, however long the producers' state took."""
    ready = anyio.Event()

    async def save(self: Partition, start: int) -> None:
        await ready.wait()

    monkeypatch.setattr(Partition, "save_producers", save)
    async with open_logs(world) as logs:
        partition = await logs.create(retention_bytes="0")
        append(partition, batch(b"a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logs.manager.clean)
            await anyio.wait_all_tasks_blocked()
            world.wal.automatic = told
            tasks.start_soon(logs.manager.alter_configs, "events", {"retention.bytes": "1000"})
            await anyio.wait_all_tasks_blocked()
            assert logs.manager.is_changing("events") is not told
            ready.set()
            await anyio.wait_all_tasks_blocked()
            world.wal.automatic = True
            world.wal.complete()
        assert partition.log_start_offset == 0
        await logs.manager.alter_configs("events", {"retention.bytes": "0"})
        assert await logs.manager.clean() == 1
        assert partition.log_start_offset == 1


async def test_an_upload_that_is_committed_while_the_broker_stops_is_no_error(world: World) -> None:
    async with open_logs(world) as logs:
        partition = await logs.create()
        append(partition, batch(b"a", producer=(7, 0, 0)))
        for _ in range(2):
            partition.snapshot_producers(NOW_MS)
            append(partition, batch(b"b"))
        block = logs.manager._engine._log_cache.freeze()
        assert block is not None
    event = UploadCommitted(object_ids=(1,), stream_count=2, payload_bytes=1, duration_ms=1.0)
    logs.manager.upload_committed(BlockUploaded(event=event, block=block))
    assert logs.events[-1] == ("penstock_on_upload_committed", event)
    with pytest.raises(ClosedError):
        await logs.manager.create_topics([NewTopic("late")])
    with pytest.raises(ClosedError):
        await partition.delete_records(1)
    logs.manager._engine._relieve(1)


async def test_the_limit_of_bytes_holds_when_many_ask_at_once() -> None:
    """I8."""
    limiter = BytesLimiter(100, credit=100, credit_max=100)
    held: list[object] = []

    async def take() -> None:
        held.append(await limiter.charge(60, limiter.join("here", None)))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        assert (len(held), limiter.used) == (1, 60)
        tasks.cancel_scope.cancel()


class CountingStore(SimulatedStore):
    """Counts the reads of objects that are on their way at the same time."""

    reading = reading_max = 0

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        counted = key.startswith("objects/")
        self.reading += counted
        self.reading_max = max(self.reading, self.reading_max)
        try:
            await anyio.lowlevel.checkpoint()
            return await super().get(key, start, end)
        finally:
            self.reading -= counted


async def test_partitions_are_opened_side_by_side(world: World) -> None:
    """A start on a distant store doesn't take a round trip per partition."""
    store = CountingStore(Random(0))
    world.store = store
    async with open_logs(world) as logs:
        await logs.create(partitions=12)
        for index in range(12):
            append(logs.partition(index=index), batch(b"%d" % index, producer=(7, 0, 0)))
        await logs.manager.drain()
    world.wal.crash()
    store.reading_max = 0
    async with open_logs(world) as logs:
        assert store.reading_max > 4
        assert sorted(logs.manager.topics()["events"].partitions) == list(range(12))
        for index in range(12):
            again = append(logs.partition(index=index), batch(b"%d" % index, producer=(7, 0, 0)))
            assert [(o.error_code, o.base_offset) for o in again] == [(0, 0)]


async def test_the_partitions_of_all_topics_are_bounded_whichever_way_they_come(world: World) -> None:
    """CreateTopics, topics that Metadata requests create, and CreatePartitions all end here."""
    async with open_logs(world, partitions_max=6) as logs:  # the harness has one
        first, second, third = await logs.manager.create_topics(
            [NewTopic("a", 2), NewTopic("b", 2), NewTopic("c", 2)]
        )
        assert not isinstance(first, Exception)
        assert not isinstance(second, Exception)
        assert isinstance(third, KafkaError)
        assert third.error_code == ErrorCode.POLICY_VIOLATION
        with pytest.raises(KafkaError, match=r"topics\.partitions_max"):
            await logs.manager.create_partitions("a", 4)
        await logs.manager.create_partitions("a", 3)
        assert await logs.manager.delete_topics(["b"]) == [None]
        await logs.manager.create_partitions("a", 5)
        (internal,) = await logs.manager.create_topics([NewTopic("__internal", 3)], internal=True)
        assert not isinstance(internal, Exception), "a broker can always start"


async def test_long_configs_count_as_the_partitions_that_would_take_as_much(world: World) -> None:
    """10,000 topics with two lists of 32 KiB would be 640 MB that no account knows."""
    long = {"leader.replication.throttled.replicas": "1" * 32_767}
    async with open_logs(world, partitions_max=22) as logs:  # a partition of the harness, one of each, and 18
        await logs.manager.create_topics([NewTopic("a", 1), NewTopic("b", 1)])
        await logs.manager.alter_configs("a", long)
        with pytest.raises(KafkaError, match=r"topics\.partitions_max") as caught:
            await logs.manager.alter_configs("b", long)
        assert caught.value.error_code == ErrorCode.POLICY_VIOLATION
        (refused,) = await logs.manager.create_topics([NewTopic("c", 1, long)])
        assert isinstance(refused, KafkaError)
        await logs.manager.alter_configs("a", {"retention.ms": "1"})
        await logs.manager.alter_configs("b", long)
        assert await logs.manager.delete_topics(["b"]) == [None]
        (made,) = await logs.manager.create_topics([NewTopic("c", 1, long)])
        assert not isinstance(made, Exception)


async def test_topics_that_are_created_at_the_same_time_share_the_bound(world: World) -> None:
    async with open_logs(world, partitions_max=5) as logs:
        made: list[object] = []

        async def create(name: str) -> None:
            made.extend(await logs.manager.create_topics([NewTopic(name, 2)]))

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(create, f"t{number}")
        assert sum(not isinstance(one, Exception) for one in made) == 2


async def test_what_is_made_and_not_yet_open_is_bounded_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as reserved, too, while it is being opened, it would leave no room for others."""
    async with open_logs(world, partitions_max=7) as logs, anyio.create_task_group() as tasks:
        opens = anyio.Event()
        settled = logs.manager._served.settled

        async def hang(topic_ids: Collection[bytes]) -> None:
            await opens.wait()
            await settled(topic_ids)

        monkeypatch.setattr(logs.manager._served, "settled", hang)
        made: list[object] = []

        async def create(name: str) -> None:
            made.extend(await logs.manager.create_topics([NewTopic(name, 3)]))

        for name in ("a", "b", "c"):  # the harness has one
            tasks.start_soon(create, name)
            await anyio.wait_all_tasks_blocked()
        assert [type(one) for one in made] == [KafkaError], "there is room for two"
        opens.set()
    assert [type(one) for one in made] == [KafkaError, Topic, Topic]


async def test_changes_that_wait_for_a_hanging_metadata_log_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients whose time is over ask again; what they asked for before goes on."""
    monkeypatch.setattr(manager_module, "CHANGES_MAX", 2)
    async with open_logs(world) as logs:
        hang = anyio.Event()
        submit = logs.manager._metadata.submit_many

        async def hanging(commands: Any) -> Any:
            await hang.wait()
            return await submit(commands)

        monkeypatch.setattr(logs.manager._metadata, "submit_many", hanging)
        for name in ("a", "b"):
            with anyio.move_on_after(0):
                await logs.manager.create_topics([NewTopic(name, 1)])
        with pytest.raises(UnavailableError, match=r"too many changes wait for the metadata log.*waiting=2"):
            await logs.manager.create_topics([NewTopic("c", 1)])
        hang.set()
        await logs.manager.wait_changed(["a", "b"])
        await anyio.wait_all_tasks_blocked()
        assert not logs.manager.is_changing("c"), "what wasn't begun holds its name"
        await logs.manager.create_topics([NewTopic("c", 1)])
        assert set(logs.manager.topics()) == {"a", "b", "c", "t"}


async def test_producers_that_come_while_the_metadata_log_hangs_reserve_their_ids_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request that gave up has submitted stays there: one for each would be as many as clients ask again."""
    async with open_logs(world) as logs:
        hang = anyio.Event()
        submit = logs.manager._metadata.submit
        submitted: list[object] = []

        async def hanging(command: Any) -> Any:
            submitted.append(command)
            await hang.wait()
            return await submit(command)

        monkeypatch.setattr(logs.manager._metadata, "submit", hanging)
        given: list[tuple[int, int]] = []

        async def ask() -> None:
            given.append(await logs.manager.next_producer_id())

        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            hang.set()
        assert len(submitted) == 1
        assert len(set(given)) == 2


async def test_a_reservation_of_producer_ids_that_fails_is_tried_by_who_comes_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_logs(world) as logs:
        submit = logs.manager._metadata.submit

        async def fails_once(command: Any) -> Any:
            monkeypatch.setattr(logs.manager._metadata, "submit", submit)
            raise UnavailableError("not now")

        monkeypatch.setattr(logs.manager._metadata, "submit", fails_once)
        with pytest.raises(UnavailableError, match="not now"):
            await logs.manager.next_producer_id()
        first = await logs.manager.next_producer_id()
        assert await logs.manager.next_producer_id() == (first[0] + 1, 0)
        monkeypatch.setattr(logs.manager, "_producer_ids", iter(()))
        monkeypatch.setattr(logs.manager._finisher, "_waiting_max", 0)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="too many changes"):
                await logs.manager.next_producer_id()


async def test_a_topic_whose_opening_failed_is_opened_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked is told; what metadata say comes about all the same, without another request or a restart."""
    monkeypatch.setattr(reconciler_module, "_PAUSES_S", (0,))
    async with open_logs(world) as logs:
        engine = logs.manager._engine
        own_streams = engine.own_streams

        async def fails_once(stream_ids: Any) -> None:
            monkeypatch.setattr(engine, "own_streams", own_streams)
            raise UnavailableError("not now")

        monkeypatch.setattr(engine, "own_streams", fails_once)
        (error,) = await logs.manager.create_topics([NewTopic("events", 2)])
        assert isinstance(error, UnavailableError)
        assert logs.manager.is_changing("events") or "events" in logs.manager.topics()
        with anyio.fail_after(HANG_S):
            while "events" not in logs.manager.topics():
                await anyio.lowlevel.checkpoint()
        assert codes(append(logs.partition(index=1), batch(b"a"))) == [0]
        assert not logs.manager.is_changing("events")


async def test_one_partition_that_cant_be_loaded_holds_up_its_topic_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start fails then, as it does for a store that doesn't answer."""
    async with open_logs(world) as logs:
        for name in ("one", "two"):
            append(await logs.create(name), batch(b"a"))
        await logs.manager._engine.flush()
    load = Partition.load

    async def fails(partition: Partition, now_ms: int) -> None:
        if partition.topic == "one":
            raise UnavailableError("the store is away")
        await load(partition, now_ms)

    monkeypatch.setattr(Partition, "load", fails)
    with pytest.raises(ExceptionGroup) as caught:
        async with open_logs(world):
            pass
    assert "the store is away" in str(leaf(caught.value))
    monkeypatch.setattr(Partition, "load", load)
    async with open_logs(world) as logs:
        assert await read(logs.partition("one")) == [(0, b"a")]


def leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error
