"""A running broker follows what another writer appends to its metadata log, without having asked for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.broker.test_wal import Place

from penstock.broker import Broker
from penstock.log.events import TopicsDeleted
from penstock.log.topic import NewTopic
from penstock.metadata.commands.nodes import ReleaseWal
from penstock.metadata.commands.topics import AddPartitions, CreateTopic, DeleteTopic, SetTopicConfigs
from penstock.metadata.service import MetadataService
from penstock.plugins import PluginOpener, PluginRegistry
from penstock.spi.events import PartitionClosed, PartitionOpened, TopicCreated, TopicDeleted
from penstock.spi.kinds import METADATA_LOG, OBJECT_STORE
from penstock.spi.plugin import Services
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio
TOPIC_ID = b"made by another!"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@asynccontextmanager
async def running(place: Place) -> AsyncIterator[tuple[Broker, MetadataService]]:
    """A broker that looks for others' entries, and somebody else on its metadata log."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            place.broker(metadata_log__follow=True, metadata_log__follow_interval_ms_max="100ms")
        )
        registry = PluginRegistry()
        services = Services(
            node_id=9, epoch=0, cluster_id="", data_dir=place.directory / "data", clock=time.monotonic
        )
        plugins = PluginOpener(stack, registry.select_all(broker.config), services)
        await plugins.open(OBJECT_STORE)
        log = await plugins.open(METADATA_LOG)
        writer = await stack.enter_async_context(
            MetadataService.open(log, now_ms=lambda: int(time.time() * 1000))
        )
        yield broker, writer


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(HANG_S):
        while not condition():  # noqa: ASYNC110 - entries come with the latency of the log
            await anyio.sleep(0.01)


async def send(broker: Broker, topic: str, count: int) -> None:
    async with broker.producer() as producer:
        for number in range(count):
            await producer.send(topic, value=b"%d" % number, partition=0)


async def test_a_topic_that_another_writer_makes_grows_configures_and_deletes_is_so_here(
    place: Place,
) -> None:
    """Nobody calls the log manager: what is in metadata comes about."""
    async with running(place) as (broker, writer):
        told: list[object] = []
        for event in (TopicCreated, TopicDeleted, TopicsDeleted):
            broker.logs._bus.subscribe(event, told.append)
        await writer.submit(CreateTopic("theirs", TOPIC_ID, 2, {"retention.ms": "1000000"}))
        await until(lambda: "theirs" in broker.logs.topics())
        topic = broker.logs.topics()["theirs"]
        assert sorted(topic.partitions) == [0, 1], "it is there with all its partitions"
        assert list(topic.leaders) == [1, 1]
        assert topic.partitions[0].config.retention_ms == 1_000_000
        await send(broker, "theirs", 3)
        assert topic.partitions[0].high_watermark == 3

        await writer.submit(SetTopicConfigs(TOPIC_ID, {"retention.ms": "77"}))
        await until(lambda: topic.partitions[0].config.retention_ms == 77)

        await writer.submit(AddPartitions(TOPIC_ID, 3))
        await until(lambda: sorted(topic.partitions) == [0, 1, 2])
        assert topic.partitions[0].high_watermark == 3, "what was open went on"

        partition = topic.partitions[0]
        await writer.submit(DeleteTopic(TOPIC_ID))
        await until(lambda: "theirs" not in broker.logs.topics())
        await until(lambda: len(told) == 3)
        assert partition.is_closed
        assert broker.logs.topic_by_id(TOPIC_ID) is None
        assert [type(event) for event in told] == [TopicCreated, TopicDeleted, TopicsDeleted]


async def test_configs_that_make_no_sense_stop_nobody(place: Place) -> None:
    """Another writer checks nothing; the topic has the broker's defaults until they are mended."""
    async with running(place) as (broker, writer):
        await writer.submit(CreateTopic("theirs", TOPIC_ID, 1, {"retention.ms": "soon"}))
        await until(lambda: "theirs" in broker.logs.topics())
        partition = broker.logs.topics()["theirs"].partitions[0]
        assert partition.config.retention_ms == 7 * 24 * 3_600_000
        await writer.submit(SetTopicConfigs(TOPIC_ID, {"retention.ms": "5"}))
        await until(lambda: partition.config.retention_ms == 5)


async def test_both_write_and_both_are_right(place: Place) -> None:
    """Of one name there is one topic, whoever was first; both have the same picture, and so has the next start."""
    async with running(place) as (broker, writer):
        results: list[object] = []

        async def ours(number: int) -> None:
            (made,) = await broker.logs.create_topics([NewTopic(f"t{number}")])
            results.append(made)

        async def theirs(number: int) -> None:
            results.extend(await writer.submit_many([CreateTopic(f"t{number}", bytes([number + 1]) * 16, 1)]))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(ours, number)
                tasks.start_soon(theirs, number)
        assert sum(not isinstance(result, Exception) for result in results) == 10
        names = {f"t{number}" for number in range(10)}
        await until(lambda: names <= set(broker.logs.topics()))
        for name in names:
            topic = broker.logs.topics()[name]
            assert sorted(topic.partitions) == [0]
            assert topic.partitions[0].leader_epoch == 0, "opened once"
        await until(lambda: writer.image.index == broker._running.metadata.image.index)
        assert writer.image.to_snapshot() == broker._running.metadata.image.to_snapshot()
    async with place.broker() as broker:
        assert names <= set(broker.logs.topics())


async def test_a_topic_that_another_writer_is_making_counts_as_being_changed(place: Place) -> None:
    """So Metadata waits a while, or says LEADER_NOT_AVAILABLE, as for one that is made here."""
    async with running(place) as (broker, writer):
        seen: list[bool] = []
        reconcile = broker.logs._served._reconciler._reconcile

        async def watched(ids: list[bytes]) -> object:
            seen.append(broker.logs.is_changing("theirs"))
            return await reconcile(ids)

        broker.logs._served._reconciler._reconcile = watched  # type: ignore[assignment]
        await writer.submit(CreateTopic("theirs", TOPIC_ID, 1))
        await until(lambda: bool(seen))
        await broker.logs.wait_changed(["theirs"])
        assert "theirs" in broker.logs.topics()
        assert seen[0]
        assert not broker.logs.is_changing("theirs")


async def test_who_leads_and_controls_is_in_metadata(place: Place) -> None:
    async with place.broker() as broker:
        await broker.logs.create_topics([NewTopic("t")])
        image = broker._running.metadata.image
        assert (image.controller, broker.logs.controller_id) == (1, 1)
        assert list(image.topics.named("t").leaders) == [1]  # type: ignore[union-attr]
    assert list(image.topics.named("t").leaders) == [-1], "a clean stop leaves everything to others"  # type: ignore[union-attr]
    async with place.broker() as broker:
        assert broker.logs.topics()["t"].partitions[0].leader_epoch == 1


async def test_partitions_that_another_node_leads_are_closed_here(place: Place) -> None:
    """As soon as metadata say so. They aren't opened again in this life: their WAL was released."""
    async with running(place) as (broker, writer):
        await broker.logs.create_topics([NewTopic("t")])
        await until(lambda: writer.image.topics.named("t") is not None)
        topic = broker.logs.topics()["t"]
        partition = topic.partitions[0]
        told: list[object] = []
        for event in (PartitionClosed, PartitionOpened):
            broker.logs._bus.subscribe(event, told.append)
        state = writer.image.topics.named("t")
        assert state is not None
        await broker.flush()
        await until(lambda: writer.image.index == broker._running.metadata.image.index)
        version = topic.version
        await writer.submit(ReleaseWal(1, broker._running.node_epoch))
        await until(lambda: 0 not in topic.partitions)
        assert partition.is_closed
        assert topic.version > version, "Metadata says something new of it"
        assert list(topic.leaders) == [-1]
        assert [event.topic for event in told if isinstance(event, PartitionClosed)].count("t") == 1
        assert not any(isinstance(event, PartitionOpened) for event in told)
        outcomes: list[int] = []
        partition.append(
            memoryview(b""),
            produce_version=9,
            now_ms=0,
            charge=None,
            on_done=lambda outcome: outcomes.append(outcome.error_code),
        )
        assert outcomes == [ErrorCode.NOT_LEADER_OR_FOLLOWER]
