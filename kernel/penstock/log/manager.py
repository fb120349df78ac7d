"""All topics and partitions of this broker: created, opened, configured, cleaned by retention, deleted."""

from __future__ import annotations

__all__ = ("LogManager", "LogSettings", "LogStatistics")

import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeVar

import anyio
from anyio.abc import TaskGroup

from penstock.account import Ledger
from penstock.bus import EventBus
from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    FencedError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.log.errors import KafkaError
from penstock.log.limiter import BytesLimiter
from penstock.log.partition import Partition
from penstock.log.partition_bound import PartitionBound
from penstock.log.partition_config import PartitionConfig
from penstock.log.preparation import Preparer
from penstock.log.producer_book import ProducerMemory
from penstock.log.served_topics import ServedTopics
from penstock.log.topic import NewTopic, Topic
from penstock.log.topic_changes import TopicChanges
from penstock.log.topic_config import TopicConfigTable, effective_values
from penstock.metadata.commands import Command
from penstock.metadata.commands.producer_ids import AllocateProducerIds
from penstock.metadata.commands.topics import AddPartitions, CreateTopic, DeleteTopic, SetTopicConfigs
from penstock.metadata.deltas import TopicAdded, TopicGrown
from penstock.metadata.topics import TopicState, config_places
from penstock.spi.allocator import Charge
from penstock.spi.statistics import gauge
from penstock.stream.engine import STREAMS_PER_COMMAND, StreamEngine
from penstock.stream.events import BlockUploaded
from penstock.wire.error_codes import ErrorCode
from penstock.work.finish import Finisher
from penstock.work.periodic import Jobs, JobsStatistics, PeriodicJob
from penstock.work.pieces import in_portions, pieces

logger = logging.getLogger("penstock.log")

T = TypeVar("T")

#: Producer ids reserved with one metadata entry.
PRODUCER_ID_BLOCK = 1000
#: Partitions that are worked on before others get their turn: retention, snapshots of producers.
SLICE_PARTITIONS = 100
#: Names that are looked at in one go.
_NAMES = 500
#: Changes of topics that wait for the metadata log at most: each holds a task, and those who asked may be gone.
CHANGES_MAX = 1000
#: Threads that recompress batches for topics with a ``compression.type`` of their own; one core is the event loop's.
PREPARATION_THREADS = max(1, min(4, (os.cpu_count() or 2) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the broker's configuration says to the log layer."""

    #: Topic configs by Kafka's names where the broker's default differs from Kafka's.
    topic_defaults: Mapping[str, str]
    #: The topic configs that plugins add, and how they are checked; it has ``topic_defaults`` among its defaults.
    topic_configs: TopicConfigTable | None = None
    retention_interval_ms: int
    fetch_in_flight_bytes_max: int
    validate_full: bool = True
    #: Memory of the idempotent producers that all partitions remember.
    producers_bytes_max: int = 64 * 2**20
    #: Of all topics together, but for internal ones.
    partitions_max: int = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatistics:
    """A snapshot."""

    topics: Annotated[int, gauge("topics", "Topics that this broker knows.")]
    partitions: Annotated[int, gauge("partitions", "Their partitions that this broker leads.")]
    pending_changes: Annotated[int, gauge("changes", "Changes of topics that are under way.")]
    jobs: JobsStatistics


class _Start(NamedTuple):
    """Where a partition is to start, by the configs that it had then."""

    partition: Partition
    offset: int
    config: PartitionConfig


class LogManager:
    """All topics and partitions of this broker, and their changes. Use ``async with LogManager.open(engine, ...)``.

    All calls come from the event loop's thread.
    """

    def __init__(
        self,
        engine: StreamEngine,
        settings: LogSettings,
        *,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        bus: EventBus,
        tasks: TaskGroup,
    ) -> None:
        self._engine = engine
        self._metadata = engine.metadata
        memory = Ledger("producers", settings.producers_bytes_max, engine.allocator)
        self._producer_memory = ProducerMemory(memory)
        self._bound = bound = PartitionBound(settings.partitions_max, self._partition_count)
        deltas = engine.metadata.bus
        deltas.subscribe(TopicAdded, lambda delta: bound.release(delta.topic_id))
        deltas.subscribe(TopicGrown, lambda delta: bound.release(delta.topic_id))
        self._preparer = Preparer(engine.allocator, threads=PREPARATION_THREADS)
        self._settings = settings
        self._topic_configs = settings.topic_configs or TopicConfigTable(defaults=settings.topic_defaults)
        self.node_id = node_id
        self._node_epoch = node_epoch
        self._now_ms = now_ms
        self._bus = bus
        self._tasks = tasks
        #: (configs, whether the topic is internal, what they mean) of the topic that was asked for last.
        self._last_config: tuple[Mapping[str, str], bool, PartitionConfig | None] = ({}, False, None)
        self._served = ServedTopics(
            engine,
            node_id=node_id,
            config_of=self._config,
            preparer=self._preparer,
            producer_memory=self._producer_memory,
            now_ms=now_ms,
            bus=bus,
            tasks=tasks,
        )
        self._topics = self._served.topics
        self._by_id = self._served.by_id
        self._by_stream = self._served.by_stream
        self._producer_ids = iter(range(0))
        #: Set when the reservation of producer ids that is under way has ended; None: none is.
        self._reservation_ended: anyio.Event | None = None
        self._ended = False
        self._finisher = Finisher(
            tasks,
            waiting_max=CHANGES_MAX,
            full="too many changes wait for the metadata log, is its store down?",
            stopped="the broker stopped in the middle of a change of its topics",
        )
        self._changes = TopicChanges()
        #: Whether no topic may be made of that name, since it would begin with what is left of another.
        self.is_name_held: Callable[[str], bool] = lambda name: False
        interval_s = settings.retention_interval_ms / 1000
        self._jobs = Jobs(PeriodicJob("retention", self.clean, interval_s, logger=logger))
        #: The account of what responses hold on their way to clients.
        self.fetch_memory = BytesLimiter(settings.fetch_in_flight_bytes_max)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        engine: StreamEngine,
        settings: LogSettings,
        *,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        bus: EventBus,
    ) -> AsyncIterator[LogManager]:
        """Open every partition. Leaving ends the work on them; :meth:`drain` first, for a clean stop.

        From then on, what metadata say of topics is followed (:mod:`penstock.log.served_topics`), whoever wrote it.
        Published on ``bus``: TopicCreated, TopicDeleted, TopicsDeleted, PartitionOpened, PartitionClosed,
        UploadCommitted.
        Raises CorruptError, UnavailableError, FencedError.
        """
        async with anyio.create_task_group() as tasks:
            manager = cls(
                engine,
                settings,
                node_id=node_id,
                node_epoch=node_epoch,
                now_ms=now_ms,
                bus=bus,
                tasks=tasks,
            )
            await manager._served.open()
            bus.subscribe(BlockUploaded, manager.upload_committed)
            manager._jobs.start(tasks)
            try:
                yield manager
            finally:
                manager._ended = True
                manager._served.end()
                tasks.cancel_scope.cancel()

    def statistics(self) -> LogStatistics:
        """A snapshot of the state."""
        return LogStatistics(
            topics=len(self._topics),
            partitions=sum(len(topic.partitions) for topic in self._topics.values()),
            pending_changes=self._finisher.waiting,
            jobs=self._jobs.statistics(),
        )

    async def drain(self) -> bool:
        """Close all partitions and upload everything; nothing is appended afterwards.

        Returns whether all that was durable in the WAL only is uploaded, and the WAL trimmed.
        """
        self._served.end()
        for topic in self._topics.values():
            for partition in topic.partitions.values():
                partition.snapshot_producers(self._now_ms())
                self._served.close(partition)
        return await self._engine.drain()

    def unuploaded_bytes(self) -> int:
        """Payload that is durable in the WAL and not in the object store yet."""
        return self._engine.unuploaded_bytes()

    def upload_committed(self, uploaded: BlockUploaded) -> None:
        """After an upload, producers' state is snapshot, and older snapshots are trimmed."""
        self._bus.publish(uploaded.event)
        if self._ended:
            return  # the engine still runs for a moment
        # the block may lose streams when topics are deleted
        written = [
            (stream_id, entries[-1].base_offset) for stream_id, entries in uploaded.block.streams.items()
        ]
        self._snapshot_written(written[:SLICE_PARTITIONS])
        if len(written) > SLICE_PARTITIONS:
            self._tasks.start_soon(self._snapshot_in_slices, written[SLICE_PARTITIONS:])

    async def _snapshot_in_slices(self, written: list[tuple[int, int]]) -> None:
        for chunk in pieces(written, SLICE_PARTITIONS):
            await anyio.lowlevel.checkpoint()
            self._snapshot_written(chunk)

    def _snapshot_written(self, written: Sequence[tuple[int, int]]) -> None:
        """(stream id, base offset of its last entry) of streams that were uploaded."""
        now_ms = self._now_ms()
        stale: list[tuple[int, int]] = []
        for stream_id, base_offset in written:
            partition = self._by_stream.get(stream_id)
            if partition is None:
                continue
            if stream_id == partition.stream.stream_id:
                partition.snapshot_producers(now_ms)
            elif base_offset > partition.state_stream.start_offset:
                stale.append((stream_id, base_offset))
        if stale:
            self._tasks.start_soon(self._trim_quietly, stale)

    async def _trim_quietly(self, starts: list[tuple[int, int]]) -> None:
        try:
            await self._engine.trim_streams(starts)
        except FencedError:
            raise
        except PenstockError as error:
            logger.debug("old snapshots stay until the next upload: %s", error)

    # -- look-ups --------------------------------------------------------------------------------------------

    @property
    def controller_id(self) -> int:
        """The node that decides for the cluster; -1: none does."""
        return self._metadata.image.controller

    @property
    def cluster_id(self) -> str:
        """The cluster's name."""
        return self._metadata.image.cluster_id

    def topics(self) -> Mapping[str, Topic]:
        """All topics by name; a live view."""
        return self._topics

    def topic_by_id(self, topic_id: bytes) -> Topic | None:
        """The topic with that id (16 bytes)."""
        return self._by_id.get(topic_id)

    def partition(self, name: str, index: int) -> Partition | None:
        """The partition, if there is one that this broker leads."""
        topic = self._topics.get(name)
        return None if topic is None else topic.partitions.get(index)

    @property
    def appends_wait(self) -> bool:
        """Whether appends wait for the WAL."""
        return self._engine.appends_wait

    def charge_copy(self, size: int) -> Charge:
        """Put ``size`` bytes of records that a response has a copy of on the account of memory, until it has left."""
        return self._engine.allocator.charge_anyway(size, "responses")

    async def prepare_reads(self, wanted: Sequence[tuple[Partition, int, int]], bytes_max: int) -> None:
        """Several reads (partition, offset, bytes) are about to come, about ``bytes_max`` in all.

        What they have to load is asked of the object store together: there, records of many partitions are side by
        side.
        """
        await self._engine.reads.load(
            [(partition.stream, offset, limit) for partition, offset, limit in wanted], bytes_max
        )

    def unavailable_partitions(self) -> list[str]:
        """``topic-partition`` of those that are damaged and serve nobody."""
        return [
            f"{partition.topic}-{partition.index}"
            for topic in self._topics.values()
            for partition in topic.partitions.values()
            if partition.unavailable is not None
        ]

    @property
    def topic_configs(self) -> TopicConfigTable:
        """The topic configs that this broker knows."""
        return self._topic_configs

    def config_default(self, key: str) -> str:
        """The value of a topic config where the topic has none: the broker's default, or Kafka's."""
        return self._topic_configs.value(key, {})

    def config_value(self, name: str, key: str) -> str:
        """The effective value of a topic's config: its override, the broker's default, or Kafka's."""
        topic = self._topics.get(name)
        overrides = topic.configs if topic is not None else {}
        return self._topic_configs.value(key, overrides)

    def _config(self, state: TopicState) -> PartitionConfig:
        """What the topic's configs mean; most topics have the same as the one before."""
        configs, internal, parsed = self._last_config
        if parsed is None or state.configs != configs or state.internal != internal:
            parsed = self._parse_config(state)
            self._last_config = (state.configs, state.internal, parsed)
        return parsed

    def _parse_config(self, state: TopicState) -> PartitionConfig:
        values = effective_values(state.configs, self._settings.topic_defaults)
        if state.internal:
            # its owner trims it; client limits don't apply
            values = {**values, "retention.ms": "-1", "retention.bytes": "-1"}
        full = self._settings.validate_full
        try:
            return PartitionConfig.parse(values, validate_full=full)
        except (KeyError, ValueError) as error:  # another writer doesn't check them
            logger.error("configs of %s make no sense, its defaults are in force: %s", state.name, error)
            return PartitionConfig.parse(
                effective_values({}, self._settings.topic_defaults), validate_full=full
            )

    # -- changes ---------------------------------------------------------------------------------------------

    def is_changing(self, name: str) -> bool:
        """Whether a topic of that name is being created, grown, configured or deleted, here or by another writer."""
        if name in self._changes:
            return True
        return name not in self._topics and self._metadata.image.topics.named(name) is not None

    async def wait_changed(self, names: Collection[str]) -> None:
        """Return when none of the topics is being changed. That may take as long as the store does."""
        await self._changes.wait(names)
        async for name in in_portions(names, _NAMES):
            state = None if name in self._topics else self._metadata.image.topics.named(name)
            if state is not None:
                with suppress(PenstockError):  # whoever made it is told
                    await self._served.settled([state.topic_id])

    async def _change(self, names: Collection[str], change: Callable[[], Awaitable[T]]) -> T:
        """Do ``change`` when no other one holds any of ``names``. Cancelled before that, it isn't done at all."""
        await self._changes.hold(names)

        async def run() -> T:
            try:
                return await change()
            finally:
                self._changes.release(names)

        if self._ended or self._finisher.is_full:
            self._changes.release(names)  # nothing is begun, so nothing comes to its end
        return await self._to_its_end(run)

    @property
    def changes_under_way(self) -> int:
        """How many changes of topics wait for metadata, where those that come together are written together."""
        return self._finisher.waiting

    async def _to_its_end(self, change: Callable[[], Awaitable[T]]) -> T:
        """Do ``change`` even if who asked for it goes away: what metadata says must be so on this broker.

        Raises ClosedError if the broker stops in the middle; the next start finishes it. Raises UnavailableError if
        too many changes wait, as they do while the metadata log hangs and clients ask again and again.
        """
        if self._ended:
            raise ClosedError("the broker is stopping")
        return await self._finisher.finish(change)

    async def create_topics(
        self, topics: Sequence[NewTopic], *, internal: bool = False
    ) -> Sequence[Topic | Exception]:
        """Create topics and open their partitions; one result per topic, in order.

        One that is being created already is waited for, and exists then. A cancelled call takes effect nevertheless,
        once it has begun; so do the other changes below.
        """
        names = {topic.name for topic in topics}
        return await self._change(names, lambda: self._create_topics(topics, internal))

    async def _create_topics(self, topics: Sequence[NewTopic], internal: bool) -> list[Topic | Exception]:
        refused: dict[str, PenstockError] = {}
        commands: list[Command] = []
        reserved: list[bytes] = []
        try:
            async for new in in_portions(topics):
                if new.name in self._topics:
                    refused[new.name] = AlreadyExistsError(f"a topic of that name exists: topic={new.name}")
                    continue
                if self.is_name_held(new.name):
                    refused[new.name] = UnavailableError(
                        f"offsets of a deleted topic of that name aren't removed yet, try again: topic={new.name}"
                    )
                    continue
                topic_id = uuid.uuid4().bytes
                if not internal:
                    try:
                        self._bound.reserve(topic_id, new.partition_count + config_places(new.configs))
                    except KafkaError as error:
                        refused[new.name] = kept(error)
                        continue
                    reserved.append(topic_id)
                commands.append(
                    CreateTopic(new.name, topic_id, new.partition_count, dict(new.configs), internal)
                )
            created = iter(await self._create_fresh(commands))
            return [refused.get(one.name) or next(created) async for one in in_portions(topics, _NAMES)]
        finally:
            for topic_id in reserved:
                self._bound.release(topic_id)

    async def _create_fresh(self, commands: list[Command]) -> list[Topic | Exception]:
        if not commands:
            return []
        results = await self._metadata.submit_many(commands)
        answers: list[Topic | Exception] = []
        for result in results:
            if not isinstance(result, TopicState):
                answers.append(result)
                continue
            try:
                await self._served.settled([result.topic_id])
            except PenstockError as error:  # of this topic: the others may be there
                answers.append(kept(error))
                continue
            topic = self._by_id.get(result.topic_id)
            answers.append(topic or NotFoundError(f"the topic was deleted at once: topic={result.name}"))
        return answers

    async def delete_topics(
        self, names: Sequence[str], topic_ids: Mapping[str, bytes] | None = None
    ) -> Sequence[Exception | None]:
        """Delete topics; one result per name, in order: None, or the error.

        A name of ``topic_ids`` is that of the topic with this id only: another one may have it once it's its turn.
        """
        return await self._change(set(names), lambda: self._delete_topics(names, topic_ids or {}))

    async def _delete_topics(
        self, names: Sequence[str], asked_ids: Mapping[str, bytes]
    ) -> list[Exception | None]:
        results: list[Exception | None] = []
        topic_ids: list[bytes] = []
        for name in names:
            topic, asked_id = self._topics.get(name), asked_ids.get(name)
            if topic is not None and asked_id in (None, topic.id):
                topic_ids.append(topic.id)
                results.append(None)
            elif asked_id is None:
                results.append(NotFoundError(f"there is no such topic: topic={name}"))
            else:
                results.append(KafkaError(ErrorCode.UNKNOWN_TOPIC_ID, "there is no topic with this id"))
        try:
            answers = iter(
                await self._metadata.submit_many([DeleteTopic(topic_id) for topic_id in topic_ids])
            )
        except PenstockError as error:
            return [result or kept(error) for result in results]
        for i, result in enumerate(results):
            if result is None:
                answer = next(answers)
                results[i] = answer if isinstance(answer, Exception) else None
        for topic_id in topic_ids:
            with suppress(PenstockError):  # it is gone, whatever else couldn't be done in the same pass
                await self._served.settled([topic_id])
        return results

    def _partition_count(self) -> int:
        topics = self._metadata.image.topics
        return topics.client_partitions() + topics.config_places()

    def check_room(self, partitions: int, beside: int = 0) -> None:
        """See ``PartitionBound.check``: whether so many partitions could be made now."""
        self._bound.check(partitions, beside)

    async def create_partitions(self, name: str, count: int) -> None:
        """Grow a topic to ``count`` partitions. Raises NotFoundError, InvalidRequestError."""
        # one at a time: a partition is opened once, a second opening would depose the first
        await self._change([name], lambda: self._create_partitions(name, count))

    async def _create_partitions(self, name: str, count: int) -> None:
        topic = self._require(name)
        added = max(0, count - topic.partition_count)
        self._bound.reserve(topic.id, added)
        try:
            await self._metadata.submit(AddPartitions(topic.id, count))
        finally:
            self._bound.release(topic.id)
        await self._served.settled([topic.id])

    async def alter_configs(self, name: str, configs: Mapping[str, str]) -> None:
        """Replace all overrides of a topic. Raises NotFoundError."""
        await self.change_configs(name, lambda _: configs)

    async def change_configs(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> None:
        """Replace all overrides of a topic by what ``change`` makes of them, when no other change is under way.

        Raises NotFoundError, and what ``change`` raises.
        """
        await self._change([name], lambda: self._change_configs(name, change))

    async def _change_configs(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> None:
        topic = self._require(name)
        configs = dict(change(topic.configs))
        if configs == topic.configs:
            return
        growth = config_places(configs) - config_places(topic.configs)
        if growth > 0:
            self._bound.reserve(topic.id, growth)
        try:
            await self._metadata.submit(SetTopicConfigs(topic.id, configs))
        finally:
            self._bound.release(topic.id)
        await self._served.settled([topic.id])

    def _require(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            raise NotFoundError(f"there is no such topic: topic={name}")
        return topic

    async def wait_for_room(self) -> None:
        """Return when an append that brings its memory and met FullError is worth another try.

        Raises ClosedError at the end.
        """
        await self._engine.wait_for_room(0)

    async def next_producer_id(self) -> tuple[int, int]:
        """A new (producer id, epoch 0); ids are reserved in blocks, so most calls need no metadata entry."""
        while (producer_id := next(self._producer_ids, None)) is None:
            # one at a time, also when who began it has gone away: what was submitted can't be taken back, and while
            # the metadata log hangs clients ask again and again
            if self._reservation_ended is None:
                await self._begin_reservation()
            else:
                await self._reservation_ended.wait()
        return producer_id, 0

    async def _begin_reservation(self) -> None:
        ended = self._reservation_ended = anyio.Event()

        def end() -> None:
            self._reservation_ended = None
            ended.set()

        async def reserve() -> None:
            try:
                first = await self._metadata.submit(
                    AllocateProducerIds(self.node_id, self._node_epoch, PRODUCER_ID_BLOCK)
                )
                self._producer_ids = iter(range(first, first + PRODUCER_ID_BLOCK))
            finally:
                end()

        if self._ended or self._finisher.is_full:
            end()  # nothing is begun
        await self._to_its_end(reserve)

    # -- retention -------------------------------------------------------------------------------------------

    async def clean(self) -> int:
        """Apply retention once, some partitions at a time; the number of partitions whose start moved.

        A partition whose log or producers' state can't be written is passed over; its error is raised at the end.
        """
        now_ms = self._now_ms()
        partitions = [p for topic in self._topics.values() for p in topic.partitions.values()]
        starts: list[_Start] = []
        moved = 0
        errors: list[PenstockError] = []
        for chunk in pieces(partitions, SLICE_PARTITIONS):
            starts += await self._expire(chunk, now_ms, errors)
            if len(starts) >= STREAMS_PER_COMMAND or chunk[-1] is partitions[-1]:
                moved += await self._trim(starts, now_ms, errors)
                starts = []
            await anyio.lowlevel.checkpoint()
        if moved:
            logger.info("retention moved the start of %d partitions", moved)
        if errors:
            raise again(errors[0])
        return moved

    async def _expire(
        self, partitions: Sequence[Partition], now_ms: int, errors: list[PenstockError]
    ) -> list[_Start]:
        """Make these partitions ready for the starts that retention asks for."""
        starts: list[_Start] = []

        async def prepare(asked: _Start) -> None:
            partition, offset, _ = asked
            try:
                await partition.save_producers(offset)
            except PenstockError as error:
                errors.append(kept(error))
            else:
                starts.append(asked)
                logger.debug(
                    "retention asks %s-%d to start at offset %d", partition.topic, partition.index, offset
                )

        async with anyio.create_task_group() as tasks:
            for partition in partitions:
                partition.producers.expire(now_ms)
                offset = partition.expired_offset(now_ms)
                if offset > partition.log_start_offset:
                    tasks.start_soon(prepare, _Start(partition, offset, partition.config))
        return starts

    async def _trim(self, asked: list[_Start], now_ms: int, errors: list[PenstockError]) -> int:
        # who was told meanwhile that other configs are in force finds what these keep; what is being changed is left
        # to the next run, as are batches whose producers only the WAL knows
        starts = [
            (one.partition.stream.stream_id, limit)
            for one in asked
            if one.partition.topic not in self._changes
            and (one.config is one.partition.config or one.offset <= one.partition.expired_offset(now_ms))
            and (limit := one.partition.trim_limit(one.offset)) > one.partition.log_start_offset
        ]
        try:
            if starts:
                await self._engine.trim_streams(starts)
        except PenstockError as error:
            if not error.retryable:
                raise
            errors.append(kept(error))
            return 0
        return len(starts)
