"""The metadata service: one writer, whatever the log and other writers do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from tests.patience import HANG_S

from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    ConfigError,
    ConflictError,
    CorruptError,
    FencedError,
    InvalidRequestError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.limits import SNAPSHOT_ENTRIES
from penstock.metadata import service as service_module
from penstock.metadata import tailer as tailer_module
from penstock.metadata.commands import Entry, decode_entry, encode_entry
from penstock.metadata.commands.nodes import RegisterNode, SetWord, UseWal
from penstock.metadata.commands.producer_ids import AllocateProducerIds
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.deltas import TopicAdded
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService, follow, load_image
from penstock.metadata.topics import TopicState
from penstock.metadata.versions import METADATA_VERSION
from penstock.spi.metadata_log import (
    MetadataEntry,
    MetadataLogCapabilities,
    MetadataLogStatistics,
    MetadataSnapshot,
)

pytestmark = pytest.mark.anyio
NODE = 1


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_BACKOFF_S", (0,))


class FakeLog:
    """A metadata log in memory; ``faults`` are taken one per append, ``read_faults`` one per entry read."""

    location = "fake log"

    def __init__(self, entry_bytes_max: int = 2**20) -> None:
        self.capabilities = MetadataLogCapabilities(entry_bytes_max=entry_bytes_max)
        self.entries: list[bytes] = []
        self.snapshots: list[MetadataSnapshot] = []
        self.faults: list[str] = []
        self.read_faults: list[str] = []
        #: Entries up to here are below a snapshot, and gone.
        self.dropped_index = 0
        self.news = anyio.Event()
        #: As a log that looks for entries of other brokers.
        self.tells_news = False
        self.gate = anyio.Event()
        self.gate.set()
        self.attempts = 0
        self.fail_snapshots = False
        self.snapshot_gate = anyio.Event()
        self.snapshot_gate.set()

    async def append(self, index: int, data: bytes) -> None:
        self.attempts += 1
        await self.gate.wait()
        await anyio.lowlevel.checkpoint()
        if len(data) > self.capabilities.entry_bytes_max:
            raise InvalidRequestError(f"too large: index={index}")
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "unavailable":
            raise UnavailableError("the fake log fails")
        if fault == "corrupt":
            raise CorruptError("the fake log is damaged")
        if index != len(self.entries) + 1:
            raise ConflictError(f"taken: index={index}")
        self.entries.append(data)
        self.news.set()
        self.news = anyio.Event()
        if fault == "lost reply":
            raise UnavailableError("the fake log's reply is lost")

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        if start_index <= self.dropped_index:
            raise NotFoundError(f"dropped below a snapshot: index={start_index}")
        for index in range(start_index, len(self.entries) + 1):
            await anyio.lowlevel.checkpoint()
            if self.read_faults and self.read_faults.pop(0):
                raise UnavailableError("the fake log can't be read")
            yield MetadataEntry(index, self.entries[index - 1])

    async def wait_for_news(self, after_index: int) -> None:
        await anyio.lowlevel.checkpoint()
        while len(self.entries) <= after_index or not self.tells_news:
            await self.news.wait()

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await anyio.lowlevel.checkpoint()
        await self.snapshot_gate.wait()
        if self.fail_snapshots:
            raise UnavailableError("the fake log takes no snapshot")
        self.snapshots.append(snapshot)

    async def read_snapshot(self) -> MetadataSnapshot | None:
        await anyio.lowlevel.checkpoint()
        return self.snapshots[-1] if self.snapshots else None

    def statistics(self) -> MetadataLogStatistics:
        return MetadataLogStatistics()


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


def open_service(log: FakeLog, cluster_id: str = "", snapshot_entries: int = SNAPSHOT_ENTRIES) -> Any:
    return MetadataService.open(
        log, now_ms=lambda: 1000, cluster_id=cluster_id, snapshot_entries=snapshot_entries
    )


def topic(name: str, partitions: int = 1) -> CreateTopic:
    return CreateTopic(name, name.encode().ljust(16, b"."), partitions)


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


async def in_background(tasks: Any, call: Callable[[], Any], into: list[Any]) -> None:
    async def run() -> None:
        try:
            into.append(await call())
        except PenstockError as error:
            into.append(error)

    tasks.start_soon(run)
    await anyio.wait_all_tasks_blocked()


async def test_commands_that_wait_together_share_an_entry_and_keep_their_order(log: FakeLog) -> None:
    async with open_service(log) as service:
        log.gate = anyio.Event()
        results: list[Any] = []
        async with anyio.create_task_group() as tasks:
            for i in range(5):
                await in_background(tasks, partial(service.submit, topic(f"t{i}")), results)
            log.gate.set()
        assert len(log.entries) == 3, "the format, the first command, and the four that came meanwhile"
        assert [state.name for state in results] == [f"t{i}" for i in range(5)]
        assert [state.log_streams for state in results] == [[1], [3], [5], [7], [9]]


async def test_each_command_of_a_batch_has_its_own_result(log: FakeLog) -> None:
    async with open_service(log) as service:
        made, again, other = await service.submit_many([topic("a"), topic("a"), topic("b")])
        assert isinstance(made, TopicState)
        assert isinstance(again, AlreadyExistsError)
        assert isinstance(other, TopicState)
        assert await service.submit_many([]) == []


async def test_commands_that_dont_fit_one_entry_take_several() -> None:
    log = FakeLog(entry_bytes_max=400)
    async with open_service(log) as service:
        results = await service.submit_many([topic(f"t{i}") for i in range(30)])
        assert all(isinstance(result, TopicState) for result in results)
        assert len(log.entries) > 5


async def test_a_command_that_fits_no_entry_is_refused_alone() -> None:
    log = FakeLog(entry_bytes_max=400)
    async with open_service(log) as service:
        large = CreateTopic("large", b"l" * 16, 1, {"key": "x" * 500})
        before, refused, after = await service.submit_many([topic("a"), large, topic("b")])
        assert isinstance(refused, InvalidRequestError)
        assert isinstance(before, TopicState)
        assert isinstance(after, TopicState)


async def test_after_a_conflict_the_newer_image_decides(log: FakeLog) -> None:
    async with open_service(log) as one, open_service(log) as two:
        await one.submit(topic("a"))
        with pytest.raises(AlreadyExistsError):
            await two.submit(topic("a"))
        state = await two.submit(topic("b"))
        assert state.log_streams == [3], "ids go on after those that the other one gave out"
        await one.submit(topic("c"))
        await two.submit(topic("d"))
        await one.submit(topic("e"))
        assert set(one.image.topics.names()) == {"a", "b", "c", "d", "e"}


async def test_a_log_that_is_unavailable_is_tried_until_it_works(log: FakeLog) -> None:
    async with open_service(log) as service:
        log.faults = ["unavailable"] * 8
        await service.submit(topic("a"))
        assert len(log.entries) == 2


async def test_an_index_that_is_taken_by_what_cant_be_read_yet_is_not_tried_all_the_time(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(service_module, "_BACKOFF_S", (1, 2))
    async with open_service(log) as one, open_service(log) as two:
        await two.submit(topic("a"))
        monkeypatch.setattr(anyio, "sleep", sleep)
        log.read_faults, attempts = ["fail"] * 3, log.attempts
        await one.submit(topic("b"))
        assert pauses == [1, 2, 2]
        assert log.attempts == attempts + 5, "three in vain, one that can be read, and the entry"


@pytest.mark.parametrize("read_faults", [0, 1, 3])
async def test_an_entry_whose_reply_was_lost_is_recognised_and_counts_once(
    log: FakeLog, read_faults: int
) -> None:
    async with open_service(log) as service:
        epoch = await service.register(NODE)
        for expected in (1, 2, 3):
            log.faults = ["lost reply"]
            log.read_faults = ["fail"] * read_faults
            assert await service.submit(AllocateProducerIds(NODE, epoch, 1)) == expected
        assert len(log.entries) == 5, "the format, the node, and one entry for each command"


async def test_own_entry_is_recognised_even_if_reading_fails_right_after_it(log: FakeLog) -> None:
    """Both writers race; ours landed, its reply was lost, and the entry after it can't be read at once."""
    async with open_service(log) as one, open_service(log) as two:
        epoch = await one.register(NODE)
        await two.submit(topic("a"))
        append = log.append

        async def land_then_lose(index: int, data: bytes) -> None:
            log.append = append  # type: ignore[method-assign]
            await append(index, data)
            await two.submit(topic("b"))
            log.read_faults = ["", "fail"]
            raise UnavailableError("the reply is lost")

        await one.submit(topic("c"))
        log.append = land_then_lose  # type: ignore[method-assign]
        first = await one.submit(AllocateProducerIds(NODE, epoch, 10))
        assert first == 1
        assert await one.submit(AllocateProducerIds(NODE, epoch, 10)) == 11


async def test_the_witness_is_told_of_the_own_entry_and_of_none_behind_it(log: FakeLog) -> None:
    """Its reply is lost, and a later life registers behind it: a mark of that would say that metadata are lost.

    Found by the simulation (wal_block_shared, seed 47).
    """
    told: list[int] = []
    async with open_service(log) as one, open_service(log) as two:
        epoch = await one.register(NODE)
        append = log.append

        def witness(index: int) -> None:
            told.append(index)
            one.witnessed(index)

        async def land_then_lose(index: int, data: bytes) -> None:
            log.append = append  # type: ignore[method-assign]
            await append(index, data)
            later.append(await two.register(NODE))
            raise UnavailableError("the reply is lost")

        later: list[int] = []
        one.set_witness(witness)
        log.append = land_then_lose  # type: ignore[method-assign]
        assert await one.submit(AllocateProducerIds(NODE, epoch, 10)) == 1
        assert told == [later[0] - 1]


async def test_an_error_that_cant_be_retried_answers_the_batch_and_only_that(log: FakeLog) -> None:
    async with open_service(log) as service:
        log.faults = ["corrupt"]
        with pytest.raises(CorruptError):
            await service.submit(topic("a"))
        await service.submit(topic("b"))


async def test_who_waits_when_the_service_closes_is_answered(log: FakeLog) -> None:
    results: list[Any] = []
    async with anyio.create_task_group() as tasks:
        async with open_service(log) as service:
            log.gate = anyio.Event()
            for name in ("a", "b"):
                await in_background(tasks, partial(service.submit, topic(name)), results)
    assert [type(result) for result in results] == [ClosedError, ClosedError]
    with pytest.raises(ClosedError):
        await service.submit(topic("c"))


async def test_a_cancelled_submit_still_takes_effect(log: FakeLog) -> None:
    async with open_service(log) as service:
        log.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            await in_background(tasks, lambda: service.submit(topic("a")), [])
            tasks.cancel_scope.cancel()
        log.gate.set()
        await service.submit(topic("b"))
        assert set(service.image.topics.names()) == {"a", "b"}


async def test_snapshots_bound_replay_and_give_the_same_image(log: FakeLog) -> None:
    """I7."""
    async with open_service(log, snapshot_entries=5) as service:
        for i in range(12):
            await service.submit(topic(f"t{i}"))
        assert [snapshot.index for snapshot in log.snapshots] == [5, 10]
        await service.write_snapshot()
        await service.write_snapshot()
        assert [snapshot.index for snapshot in log.snapshots] == [5, 10, 13], "none without news"
        expected = service.image.to_snapshot()
    for snapshots in ([], log.snapshots[:1], log.snapshots[:2], log.snapshots):
        log.snapshots = snapshots
        assert (await load_image(log)).to_snapshot() == expected


async def test_commands_go_on_while_a_snapshot_is_written(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SNAPSHOT_PAUSE_BYTES", 0)
    log.snapshot_gate = anyio.Event()
    async with open_service(log, snapshot_entries=5) as service:
        for i in range(4):
            await service.submit(topic(f"t{i}"))
        expected = service.image.to_snapshot()
        for i in range(4, 15):
            await service.submit(topic(f"t{i}"))
        assert log.snapshots == [], "the first one is still on its way"
        log.snapshot_gate.set()
        await service.write_snapshot()
        first, *_, last = log.snapshots
        assert (first.index, first.data) == (5, expected)
        assert (last.index, last.data) == (16, service.image.to_snapshot())
        assert not service.image.streams.is_cut


async def test_what_is_folded_in_one_go_is_bounded(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "BATCH_WEIGHT_MAX", 40)
    async with open_service(log) as service:
        before = len(log.entries)
        sizes = [5, 5, 10, 1, 50, 1, 1]
        results = await service.submit_many([topic(f"t{i}", size) for i, size in enumerate(sizes)])
        assert [len(result.log_streams) for result in results] == sizes
        batches = [
            [c.partition_count for c in decode_entry(i, data).commands if isinstance(c, CreateTopic)]
            for i, data in enumerate(log.entries[before:])
        ]
        assert batches == [[5, 5, 10], [1], [50], [1, 1]]


async def test_who_hands_many_commands_over_is_woken_once(log: FakeLog) -> None:
    """Not once for each: two thousand answers would be as many iterations of the loop."""
    async with open_service(log) as service:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            results = await service.submit_many(
                [topic(f"t{i}") for i in range(service_module.BATCH_COMMANDS_MAX)]
            )
            tasks.cancel_scope.cancel()
        assert [result.name for result in results] == [f"t{i}" for i in range(len(results))]
        assert turns < len(results) / 2


async def test_a_snapshot_that_cant_be_written_stops_nothing(log: FakeLog) -> None:
    log.fail_snapshots = True
    async with open_service(log, snapshot_entries=2) as service:
        for i in range(4):
            await service.submit(topic(f"t{i}"))
        log.fail_snapshots = False
        await service.submit(topic("last"))
        await service.submit(topic("very last"))
        assert log.snapshots != []


async def test_a_snapshot_of_another_index_than_it_says_is_refused(log: FakeLog) -> None:
    async with open_service(log) as service:
        log.snapshots.append(MetadataSnapshot(7, service.image.to_snapshot()))
    with pytest.raises(CorruptError, match="found=1"):
        await load_image(log)


async def test_snapshots_that_others_write_while_the_log_is_read_have_it_read_again(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as they get newer: else the log lacks entries."""
    async with open_service(log, snapshot_entries=4) as service:
        for i in range(12):
            await service.submit(topic(f"t{i}"))
        expected = service.image.to_snapshot()
    snapshots = [None, *log.snapshots]
    given: list[int] = []
    log.dropped_index = 8

    async def lagging() -> MetadataSnapshot | None:
        given.append(len(given))
        return snapshots[min(given[-1], len(snapshots) - 1)]

    monkeypatch.setattr(log, "read_snapshot", lagging)
    assert (await load_image(log)).to_snapshot() == expected
    assert len(given) == 3, "none, of 4, of 8"

    async def follow_it(image: Image) -> None:
        checked.append(image.index)
        if len(checked) == 1:
            image.index = 5  # it takes long: what follows is dropped
        await follow(log, image)

    checked: list[int] = []
    async with MetadataService.open(log, now_ms=lambda: 1000, before_writing=follow_it) as service:
        assert service.image.to_snapshot() == expected
    assert checked == [13, 13]

    log.dropped_index = 13
    with pytest.raises(UnavailableError, match="index=12"):
        await load_image(log)


async def test_a_newer_life_of_the_node_fences_the_older_one(log: FakeLog) -> None:
    """I9: from the first entry that the older one meets, it writes nothing more, and ends with that error."""
    results: list[Any] = []

    async def old_life() -> None:
        async with open_service(log) as old:
            await old.register(NODE)
            async with open_service(log) as new:
                await new.register(NODE)
            async with anyio.create_task_group() as tasks:
                await in_background(tasks, lambda: old.submit(topic("a")), results)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(HANG_S):
        await old_life()
    assert [type(error) for error in leaves(caught.value)] == [FencedError]
    assert [type(result) for result in results] == [FencedError]
    assert (await load_image(log)).topics.named("a") is None


async def test_a_life_with_another_wal_is_refused_also_if_the_first_one_recorded_its_own_a_moment_ago(
    log: FakeLog,
) -> None:
    """I3: the newer one's image is older than the record, so the fold decides; the older one goes on."""
    async with open_service(log) as old, open_service(log) as new:
        epoch = await old.register(NODE)
        await old.submit(UseWal(NODE, epoch, "w1", "there"))
        with pytest.raises(ConfigError, match="recorded=w1"):
            await new.register(NODE, wal="w2")
        await old.submit(topic("a"))
        before = len(log.entries)
        with pytest.raises(ConfigError, match="recorded=w1"):
            await new.register(NODE, wal="w2")
        assert len(log.entries) == before, "what is refused from the start is never written"
        await new.register(NODE, wal="w1")


async def test_a_node_that_registers_again_in_the_same_process_goes_on(log: FakeLog) -> None:
    async with open_service(log) as service:
        first = await service.register(NODE)
        second = await service.register(NODE)
        assert second > first
        await service.submit(RegisterNode(NODE + 1, "another node"))
        await service.submit(topic("a"))


async def test_a_log_is_formatted_once_and_keeps_its_cluster(log: FakeLog) -> None:
    async with open_service(log, "mine") as service:
        assert service.image.cluster_id == "mine"
    async with open_service(log) as service:
        assert service.image.cluster_id == "mine"
    with pytest.raises(ExceptionGroup) as caught:
        async with open_service(log, "yours"):
            pass
    (error,) = leaves(caught.value)
    assert isinstance(error, InvalidRequestError)
    assert "found=mine" in str(error)
    assert len(log.entries) == 1


async def test_two_that_format_at_once_agree(log: FakeLog) -> None:
    ids: list[str] = []

    async def start() -> None:
        async with open_service(log) as service:
            ids.append(service.image.cluster_id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        tasks.start_soon(start)
    assert len(set(ids)) == 1


async def test_a_log_that_cant_be_formatted_doesnt_open(log: FakeLog) -> None:
    log.faults = ["corrupt"]
    with pytest.raises(ExceptionGroup) as caught:
        async with open_service(log):
            pass
    assert [type(error) for error in leaves(caught.value)] == [CorruptError]


async def test_entries_of_other_writers_are_followed_and_told_of(log: FakeLog) -> None:
    """Without a command of one's own: each delta once, in order, after the whole entry."""
    log.tells_news = True
    async with open_service(log) as one, open_service(log) as other:
        told: list[str] = []

        def added(delta: TopicAdded) -> None:
            told.append(one.image.topics.require(delta.topic_id).name)
            assert len(one.image.topics) == len(log_topics(log))

        one.bus.subscribe(TopicAdded, added)
        await other.submit_many([topic("a"), topic("b")])
        await one.submit(topic("c"))
        await other.submit(topic("d"))
        with anyio.fail_after(HANG_S):
            while one.image.index < len(log.entries):
                await anyio.lowlevel.checkpoint()
        assert told == ["a", "b", "c", "d"]
        assert one.statistics().followed_entries == 2
        assert other.statistics().followed_entries == 1, "the first entry of all was read at the start"
        assert one.image.to_snapshot() == other.image.to_snapshot()


def log_topics(log: FakeLog) -> list[str]:
    return [
        command.name
        for index, data in enumerate(log.entries, 1)
        for command in decode_entry(index, data).commands
        if isinstance(command, CreateTopic)
    ]


async def test_who_is_fenced_ends_when_it_hears_of_that(log: FakeLog) -> None:
    """I9: it writes nothing, and doesn't wait until it wants to."""
    log.tells_news = True

    async def old_life() -> None:
        async with open_service(log) as old:
            await old.register(NODE)
            async with open_service(log) as new:
                await new.register(NODE)
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(HANG_S):
        await old_life()
    assert [type(error) for error in leaves(caught.value)] == [FencedError]
    assert len(log.entries) == 3, "both registered, and nothing else was written"


@pytest.mark.parametrize("fault", ["", "lost reply", "unavailable"])
async def test_an_entry_that_the_follower_finds_first_is_the_writers_own(log: FakeLog, fault: str) -> None:
    """It is applied once, and its writer is answered, whoever reads it."""
    log.tells_news = True
    async with open_service(log) as one, open_service(log) as other:
        results: list[Any] = []

        async def create(service: MetadataService, name: str) -> None:
            results.append(await service.submit(topic(name)))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                log.faults.append(fault)
                tasks.start_soon(create, one, f"one{number}")
                tasks.start_soon(create, other, f"other{number}")
                await anyio.lowlevel.checkpoint()
        assert len(results) == 40
        assert all(isinstance(result, TopicState) for result in results)
        with anyio.fail_after(HANG_S):
            while one.image.index != other.image.index:
                await anyio.lowlevel.checkpoint()
        assert len(one.image.topics) == 40
        assert one.image.to_snapshot() == other.image.to_snapshot()


async def test_a_log_that_cant_be_followed_for_now_is_followed_later(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailer_module, "_PAUSES_S", (0,))
    log.tells_news = True
    async with open_service(log) as one, open_service(log) as other:
        log.read_faults = ["unavailable", "unavailable"]
        await other.submit(topic("a"))
        with anyio.fail_after(HANG_S):
            while "a" not in one.image.topics.names():
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("tells_news", [True, False])
@pytest.mark.parametrize("is_fenced", [False, True])
async def test_who_misses_entries_that_were_dropped_ends(
    log: FakeLog, tells_news: bool, is_fenced: bool
) -> None:
    """As after a pause of hours: only a new start has the snapshot that they are in. Who was fenced is told that."""

    async def behind() -> None:
        async with open_service(log) as one:
            await one.register(NODE)
            async with open_service(log) as other:
                await other.register(NODE if is_fenced else NODE + 1)
                await other.write_snapshot()
            log.dropped_index, log.tells_news = len(log.entries), tells_news
            log.news.set()
            if not tells_news:
                with pytest.raises(FencedError if is_fenced else UnavailableError):
                    await one.submit(topic("b"))
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(HANG_S):
        await behind()
    (error,) = leaves(caught.value)
    assert isinstance(error, FencedError if is_fenced else UnavailableError)
    assert is_fenced or "a new start is needed" in str(error)


async def test_entries_that_were_applied_before_they_were_dropped_are_not_missed(log: FakeLog) -> None:
    """Who follows reads slowly; meanwhile the writer catches up, goes on, and its snapshot drops what is read."""
    log.tells_news = True
    read, is_reading, may_read = log.read, anyio.Event(), anyio.Event()

    async def read_late(start_index: int) -> AsyncIterator[MetadataEntry]:
        log.read = read  # type: ignore[method-assign]
        is_reading.set()
        await may_read.wait()
        async for entry in read(start_index):
            yield entry

    async with open_service(log) as service:
        log.read = read_late  # type: ignore[method-assign]
        await log.append(service.image.index + 1, encode_entry(Entry([topic("a")], "other", 1)))
        await is_reading.wait()
        await service.submit(topic("b"))
        await service.write_snapshot()
        log.dropped_index = service.image.index
        may_read.set()
        await anyio.wait_all_tasks_blocked()
        await service.submit(topic("c"))
        assert sorted(service.image.topics.names()) == ["a", "b", "c"]


async def test_who_meets_an_entry_of_a_newer_version_ends(log: FakeLog) -> None:
    """Another writer was upgraded: what can't be read can't be followed, and nothing is written after it."""
    log.tells_news = True

    async def run() -> None:
        async with open_service(log) as service:
            newer = Entry([topic("a")], "newer", 1, version=METADATA_VERSION + 1)
            await log.append(service.image.index + 1, encode_entry(newer))
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(HANG_S):
        await run()
    assert [type(error) for error in leaves(caught.value)] == [NewerVersionError]


async def test_a_word_is_told_before_the_wal_has_a_mark_of_its_entry() -> None:
    """A WAL may acknowledge nothing, not even a mark, before its word is there."""
    async with MetadataService.open(FakeLog(), now_ms=lambda: 1) as service:
        epoch = await service.register(NODE, wal="w1")
        service.set_witness(lambda index: None)
        with anyio.fail_after(HANG_S):
            assert await service.submit(SetWord(NODE, epoch, "wal/x/n", "a", "")) == service.image.index
        with anyio.move_on_after(0) as scope:
            await service.submit(AllocateProducerIds(NODE, epoch, 1))
        assert scope.cancelled_caught
