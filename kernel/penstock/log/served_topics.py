"""The topics and partitions that this broker serves: what metadata say, made so.

The image says which topics there are, how they are configured and who leads their partitions. Whatever of that
changes, by a command of this broker or of another writer, comes as a delta, and a delta only marks its topic. What is
to be done follows from comparing the topic in the image with what is served:

- a partition without a leader that nobody here has opened before is claimed, if this node is the controller;
- one that this node leads, and that isn't open, is opened: its streams, then its producers' state;
- one that is open, and that this node doesn't lead, is closed;
- configs are set, and a topic that is gone is dropped, with what memory holds of it.

Partitions are worked on some at a time; a topic that comes becomes visible with all its partitions at once.
"""

from __future__ import annotations

__all__ = ("ServedTopics",)

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import anyio
from anyio.abc import TaskGroup

from penstock.bus import EventBus
from penstock.errors import PenstockError, kept
from penstock.log.events import AvailabilityChanged, TopicsDeleted
from penstock.log.partition import Partition
from penstock.log.partition_config import PartitionConfig
from penstock.log.preparation import Preparer
from penstock.log.producer_book import ProducerMemory
from penstock.log.reconciler import Reconciler
from penstock.log.topic import Topic
from penstock.metadata.deltas import LeadersChanged, TopicAdded, TopicChanged, TopicGrown, TopicRemoved
from penstock.metadata.topics import NO_LEADER, TopicState
from penstock.spi.events import PartitionClosed, PartitionOpened, TopicCreated, TopicDeleted
from penstock.stream.engine import StreamEngine
from penstock.work.pieces import pieces

logger = logging.getLogger("penstock.log")

#: Partitions whose producers' state is read at the same time when they are opened.
LOADS_PARALLEL = 16
#: Partitions that are worked on before others get their turn.
SLICE_PARTITIONS = 100


class ServedTopics:
    """Topics by name (``topics``) and id (``by_id``), and partitions by their streams (``by_stream``): live views.

    Published on ``bus``: TopicCreated, TopicDeleted, TopicsDeleted, PartitionOpened, PartitionClosed.
    """

    def __init__(
        self,
        engine: StreamEngine,
        *,
        node_id: int,
        config_of: Callable[[TopicState], PartitionConfig],
        preparer: Preparer,
        producer_memory: ProducerMemory,
        now_ms: Callable[[], int],
        bus: EventBus,
        tasks: TaskGroup,
    ) -> None:
        self.topics: dict[str, Topic] = {}
        self.by_id: dict[bytes, Topic] = {}
        self.by_stream: dict[int, Partition] = {}
        self._engine = engine
        self._image = engine.metadata.image
        self._node_id = node_id
        self._config_of = config_of
        self._preparer = preparer
        self._producer_memory = producer_memory
        self._now_ms = now_ms
        self._bus = bus
        self._reconciler = Reconciler(self.reconcile, tasks)
        #: Partitions that observers were told are open.
        self._announced: set[Partition] = set()
        #: Topics that came while this broker ran, and whose observers aren't told yet.
        self._fresh: set[bytes] = set()
        #: Topics that are gone, and still served.
        self._removed: dict[bytes, TopicRemoved] = {}
        #: Held by the pass that computes: several at a time would each do a slice in the same iteration of the loop.
        #: Not acquired fast: its owner may have done a slice in this iteration.
        self._computing = anyio.Lock()
        self._ended = False
        bus.subscribe(AvailabilityChanged, self._availability_changed)

    async def open(self) -> None:
        """Open all that there is, and follow metadata from then on. Raises the first error."""
        topic_ids = list(self._image.topics.ids())
        deltas = self._engine.metadata.bus
        deltas.subscribe(TopicAdded, self._topic_added)
        deltas.subscribe(TopicGrown, lambda delta: self._reconciler.mark((delta.topic_id,)))
        deltas.subscribe(TopicChanged, lambda delta: self._reconciler.mark((delta.topic_id,)))
        deltas.subscribe(TopicRemoved, self._topic_removed)
        deltas.subscribe(LeadersChanged, self._leaders_changed)
        self._reconciler.mark(topic_ids)
        await self._reconciler.settled(topic_ids)

    async def settled(self, topic_ids: Collection[bytes]) -> None:
        """Return when these topics are what metadata said of them when this was called, or later.

        Raises the error of the first attempt if that fails; it is tried again.
        """
        await self._reconciler.settled(topic_ids)

    def end(self) -> None:
        """Follow metadata no longer: what is served stays as it is."""
        self._ended = True
        self._reconciler.end()

    # -- what metadata tell ----------------------------------------------------------------------------------

    def _topic_added(self, delta: TopicAdded) -> None:
        self._fresh.add(delta.topic_id)
        self._reconciler.mark((delta.topic_id,))

    def _topic_removed(self, delta: TopicRemoved) -> None:
        self._removed[delta.topic_id] = delta
        self._reconciler.mark((delta.topic_id,))

    def _leaders_changed(self, delta: LeadersChanged) -> None:
        for topic_id in delta.partitions:
            topic = self.by_id.get(topic_id)
            if topic is not None:
                topic.version += 1
        self._reconciler.mark(delta.partitions)

    # -- making it so ----------------------------------------------------------------------------------------

    async def reconcile(self, topic_ids: Sequence[bytes]) -> dict[bytes, PenstockError]:
        """Make these topics what metadata say; the errors by topic. Raises what concerns all of them."""
        errors: dict[bytes, PenstockError] = {}
        await self._drop_removed(topic_ids)
        unled = await self._find_unled(topic_ids)
        if unled:
            await self._engine.own_streams(unled)
        self._reconciler.unmark(topic_ids)  # by what we just wrote, or before it: it is seen from here on
        async with self._computing:
            opened = await self._make(topic_ids)
        await self._load([partition for partition in opened if partition.has_records], errors)
        async with self._computing:
            await self._show(topic_ids, opened, errors)
        return errors

    async def _find_unled(self, topic_ids: Iterable[bytes]) -> list[int]:
        """The streams of partitions that have no leader, if this node decides who gets them.

        One that was opened in this life already is left alone: what was appended to it may be in the WAL only.
        """
        unled: list[int] = []
        if self._image.controller != self._node_id:
            return unled
        seen = 0
        for topic_id in topic_ids:
            topic = self._image.topics.get(topic_id)
            if topic is None:
                continue
            for index, leader in enumerate(topic.leaders):
                log = topic.log_streams[index]
                if leader == NO_LEADER and not self._engine.is_open(log):
                    unled += (log, topic.state_streams[index])
            seen += topic.partition_count
            if seen >= 10 * SLICE_PARTITIONS:
                seen = 0
                await anyio.lowlevel.checkpoint()
        return unled

    async def _make(self, topic_ids: Iterable[bytes]) -> list[Partition]:
        """Close the partitions that others lead, and make those that this node leads and that aren't open."""
        made: list[Partition] = []
        seen = 0
        for topic_id in topic_ids:
            state = self._image.topics.get(topic_id)
            if state is None:
                continue
            topic = self.by_id.get(topic_id)
            opened = topic.partitions if topic is not None else {}
            config = None
            for index in range(state.partition_count):
                seen += 1
                if seen % SLICE_PARTITIONS == 0:
                    await anyio.lowlevel.checkpoint()
                    if topic_id not in self._image.topics:
                        break
                is_ours = state.leaders[index] == self._node_id
                partition = opened.get(index)
                if partition is not None and not is_ours and topic is not None:
                    self._take_out(topic, partition)
                elif partition is None and is_ours:
                    config = config or self._config_of(state)
                    new = self._make_partition(state, index, config)
                    if new is not None:
                        made.append(new)
        return made

    def _make_partition(self, state: TopicState, index: int, config: PartitionConfig) -> Partition | None:
        log = self._engine.attach_stream(state.log_streams[index])
        state_stream = self._engine.attach_stream(state.state_streams[index])
        if log is None or state_stream is None:
            return None
        return Partition(
            state.name,
            state.topic_id,
            index,
            engine=self._engine,
            stream=log,
            state_stream=state_stream,
            config=config,
            preparer=self._preparer,
            producer_memory=self._producer_memory,
            bus=self._bus,
        )

    async def _load(self, partitions: Sequence[Partition], errors: dict[bytes, PenstockError]) -> None:
        """Several at a time: each may take requests to the object store."""
        now_ms = self._now_ms()
        limiter = anyio.CapacityLimiter(LOADS_PARALLEL)

        async def load(partition: Partition) -> None:
            async with limiter:
                try:
                    await partition.load(now_ms)
                except PenstockError as error:
                    errors.setdefault(partition.topic_id, kept(error))

        async with anyio.create_task_group() as tasks:
            for partition in partitions:
                tasks.start_soon(load, partition)

    async def _show(
        self, topic_ids: Iterable[bytes], made: Iterable[Partition], errors: Mapping[bytes, PenstockError]
    ) -> None:
        """Serve what was made, and set the configs of these topics."""
        by_topic: dict[bytes, list[Partition]] = {}
        for partition in made:
            by_topic.setdefault(partition.topic_id, []).append(partition)
        shown = 0
        for topic_id in topic_ids:
            if shown >= SLICE_PARTITIONS:
                shown = 0
                await anyio.lowlevel.checkpoint()
            state = self._image.topics.get(topic_id)
            partitions = by_topic.get(topic_id, ())
            if state is None or topic_id in errors or self._ended:
                for partition in partitions:
                    partition.close()
                continue
            shown += 1 + len(partitions)
            # in one go: a topic is there with all its partitions
            topic = self.by_id.get(topic_id)
            if topic is None:
                topic = self.by_id[topic_id] = self.topics[state.name] = Topic(state)
            for partition in partitions:
                self._put_in(topic, partition)
            self._configure(topic, state)
            if topic_id in self._fresh:
                self._fresh.discard(topic_id)
                self._bus.publish(
                    TopicCreated(
                        name=state.name,
                        topic_id=str(uuid.UUID(bytes=topic_id)),
                        partition_count=state.partition_count,
                        configs=dict(state.configs),
                    ),
                )

    def _configure(self, topic: Topic, state: TopicState) -> None:
        if topic.applied is state.configs:
            return  # the fold replaces them whole
        config = self._config_of(state)
        topic.applied = state.configs
        for partition in topic.partitions.values():
            partition.config = config

    def _put_in(self, topic: Topic, partition: Partition) -> None:
        topic.partitions[partition.index] = partition
        topic.version += 1
        self.by_stream[partition.stream.stream_id] = partition
        self.by_stream[partition.state_stream.stream_id] = partition
        if partition.unavailable is None:
            self._opened(partition)

    def _take_out(self, topic: Topic, partition: Partition) -> None:
        """Serve a partition no longer, since another node leads it.

        Its streams stay open in the engine, so appends on their way are still uploaded and answered.
        """
        logger.warning("%s-%d is led by another node, closing it", partition.topic, partition.index)
        del topic.partitions[partition.index]
        topic.version += 1
        self.by_stream.pop(partition.stream.stream_id, None)
        self.by_stream.pop(partition.state_stream.stream_id, None)
        self.close(partition)

    def _availability_changed(self, event: AvailabilityChanged) -> None:
        topic = self.by_id.get(event.topic_id)
        partition = None if topic is None else topic.partitions.get(event.partition)
        if topic is None or partition is None:
            return  # while it is opened
        topic.version += 1
        if partition.unavailable is None:
            self._opened(partition)

    def _opened(self, partition: Partition) -> None:
        if partition in self._announced:
            return
        self._announced.add(partition)
        self._bus.publish(
            PartitionOpened(
                topic=partition.topic,
                partition=partition.index,
                leader_epoch=partition.leader_epoch,
                start_offset=partition.log_start_offset,
                end_offset=partition.high_watermark,
            ),
        )

    def close(self, partition: Partition) -> None:
        """Nothing is appended to it or read from it any more; observers are told."""
        partition.close()
        if partition not in self._announced:
            return  # damaged since the start: observers were never told that it is open
        self._announced.discard(partition)
        self._bus.publish(
            PartitionClosed(
                topic=partition.topic, partition=partition.index, end_offset=partition.high_watermark
            ),
        )

    # -- topics that are gone --------------------------------------------------------------------------------

    async def _drop_removed(self, topic_ids: Iterable[bytes]) -> None:
        """Drop those of the topics that are deleted, and let others do what is to be done then."""
        dropped: dict[bytes, str] = {}
        for topic_id in topic_ids:
            removed = self._removed.pop(topic_id, None)
            if removed is not None:
                self._fresh.discard(topic_id)
                await self.forget(topic_id, removed.stream_ids)
                dropped[topic_id] = removed.name
        if not dropped:
            return
        event = TopicsDeleted(names=list(dropped.values()))
        self._bus.publish(event)
        for work in event.work:
            try:
                await work()
            except PenstockError as error:
                logger.warning("topics are deleted, and not all that goes with them yet: %s", error)

    async def forget(self, topic_id: bytes, stream_ids: Sequence[int]) -> None:
        """Serve the topic no longer, and drop what memory holds of its streams."""
        topic = self.by_id.pop(topic_id, None)
        for stream_id in stream_ids:
            self.by_stream.pop(stream_id, None)
        if topic is not None:
            if self.topics.get(topic.name) is topic:
                del self.topics[topic.name]
            for partitions in pieces(list(topic.partitions.values()), SLICE_PARTITIONS):
                for partition in partitions:
                    self.close(partition)
                await anyio.lowlevel.checkpoint()
        for chunk in pieces(stream_ids, SLICE_PARTITIONS):
            self._engine.forget_streams(chunk)
            await anyio.lowlevel.checkpoint()
        if topic is not None:
            self._bus.publish(TopicDeleted(name=topic.name, topic_id=str(uuid.UUID(bytes=topic_id))))
