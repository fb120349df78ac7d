"""The tables that a broker makes: a task for each topic that wants one and whose first partition it leads."""

from __future__ import annotations

__all__ = ("LakeService",)

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import anyio
from anyio.abc import TaskGroup

from penstock.bus import EventBus
from penstock.lake.configs import TableConfigs
from penstock.lake.memory import StepMemory
from penstock.lake.source import LakeSource, Throttle
from penstock.lake.statistics import LakeStatistics
from penstock.lake.table_task import LakeSettings, Surroundings, TableTask, Wanted
from penstock.lake.topics import lake_topic
from penstock.lake.turns import Turns
from penstock.log.topic_config import TopicConfigTable
from penstock.metadata.deltas import (
    LeadersChanged,
    StreamsChanged,
    TopicAdded,
    TopicChanged,
    TopicGrown,
    TopicRemoved,
)
from penstock.spi.lake import LakeCompactor
from penstock.spi.object_store import ObjectStore
from penstock.stream.engine import StreamEngine

logger = logging.getLogger("penstock.lake")

#: How long a stop waits for another try of tables that stand, and for maintenance, at least.
_WAIVED_STOP_S = 1.0


class _Running:
    """A task, and how it is ended."""

    __slots__ = ("scope", "task")

    def __init__(self, task: TableTask) -> None:
        self.task = task
        self.scope = anyio.CancelScope()


class LakeService:
    """Use ``async with LakeService.open(...)``; leaving it commits what is durable, within a bounded time."""

    def __init__(
        self, around: Surroundings, topic_configs: TopicConfigTable, tasks: TaskGroup, bus: EventBus
    ) -> None:
        self._around = around
        self._topic_configs = topic_configs
        self._tasks = tasks
        self._running: dict[bytes, _Running] = {}
        #: Who wants to hear of a stream.
        self._by_stream: dict[int, TableTask] = {}
        self._changed: set[bytes] = set(around.metadata.image.topics.ids())
        self._news = anyio.Event()
        self._news.set()
        self._ending = False
        bus.subscribe(TopicAdded, lambda delta: self._note(delta.topic_id))
        bus.subscribe(TopicChanged, lambda delta: self._note(delta.topic_id))
        bus.subscribe(TopicGrown, lambda delta: self._note(delta.topic_id))
        bus.subscribe(TopicRemoved, lambda delta: self._note(delta.topic_id))
        bus.subscribe(LeadersChanged, lambda delta: self._note(*delta.partitions))
        bus.subscribe(StreamsChanged, self._notify)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        engine: StreamEngine,
        compactor: LakeCompactor,
        batch_bytes: int,
        store: ObjectStore,
        topic_configs: TopicConfigTable,
        settings: LakeSettings,
        node_id: int,
        node_epoch: int,
        bus: EventBus,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> AsyncIterator[LakeService]:
        """Make the tables of ``compactor`` until the context is left.

        ``store`` is read from, in the class of traffic ``lake``. A table that fails stands alone: nothing of this
        room is raised here.
        """
        async with anyio.create_task_group() as tasks:
            image = engine.metadata.image
            throttle = Throttle(settings.bandwidth, clock)
            around = Surroundings(
                metadata=engine.metadata,
                compactor=compactor,
                batch_bytes=batch_bytes,
                source=LakeSource(image, store, tasks, throttle, engine.reads.read_uploaded),
                allocator=engine.allocator,
                memory=StepMemory(engine.allocator, settings.memory_bytes, batch_bytes),
                settings=settings,
                node_id=node_id,
                node_epoch=node_epoch,
                begin_upload=engine.begin_upload,
                durable_end=engine.durable_end,
                clock=clock,
                now_ms=now_ms,
                random=Random(),
                limiter=anyio.CapacityLimiter(settings.concurrency),
                maintenance_turns=Turns(),
            )
            service = cls(around, topic_configs, tasks, bus)
            tasks.start_soon(service._follow)
            try:
                yield service
                with anyio.move_on_after(settings.stop_timeout_s, shield=True):
                    await service._stop()
            finally:
                service._ending = True
                around.memory.close()
                tasks.cancel_scope.cancel()

    def statistics(self) -> LakeStatistics:
        """A snapshot."""
        used = self._around.allocator.statistics().used_by_purpose
        tables = {running.task.topic_name: running.task.statistics() for running in self._running.values()}
        return LakeStatistics(memory_bytes=used.get("lake", 0), tables=tables)

    def _note(self, *topic_ids: bytes) -> None:
        self._changed.update(topic_ids)
        self._news.set()

    def _notify(self, delta: StreamsChanged) -> None:
        if self._by_stream:
            for stream_id in delta.stream_ids:
                task = self._by_stream.get(stream_id)
                if task is not None:
                    task.notify()

    async def _follow(self) -> None:
        """Begin and end tasks as metadata change."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            while self._changed and not self._ending:
                self._look(self._changed.pop())
                await anyio.lowlevel.checkpoint()

    def _look(self, topic_id: bytes) -> None:
        """Have a task for the topic if it wants a table and this broker owns it, else none."""
        running = self._running.get(topic_id)
        wanted = self._wanted(topic_id)
        if wanted is None:
            if running is not None:
                self._end(topic_id, running)
            return
        state = self._around.metadata.image.topics.require(topic_id)
        if running is None:
            running = self._running[topic_id] = _Running(TableTask(self._around, state, wanted))
            self._tasks.start_soon(self._run, topic_id, running)
        elif running.task.wanted != wanted:
            running.task.wanted = wanted
            running.task.notify()
        for stream_id in state.log_streams:
            self._by_stream[stream_id] = running.task

    def _wanted(self, topic_id: bytes) -> Wanted | None:
        state = self._around.metadata.image.topics.get(topic_id)
        if state is None or state.internal or state.leaders[0] != self._around.node_id:
            return None
        configs = TableConfigs.of(self._topic_configs.added_values(state.configs))
        return Wanted(lake_topic(state, configs), configs) if configs.is_enabled else None

    def _end(self, topic_id: bytes, running: _Running) -> None:
        running.scope.cancel()
        self._forget(topic_id, running)

    def _forget(self, topic_id: bytes, running: _Running) -> None:
        if self._running.get(topic_id) is running:
            del self._running[topic_id]
            gone = [stream_id for stream_id, task in self._by_stream.items() if task is running.task]
            for stream_id in gone:
                del self._by_stream[stream_id]

    async def _run(self, topic_id: bytes, running: _Running) -> None:
        with running.scope:
            await running.task.run()

    async def _stop(self) -> None:
        """Commit what is durable, and leave the tables."""
        self._ending = True
        all_running = list(self._running.values())
        for running in all_running:
            running.task.stop()
        # one that stands has nothing that the next start doesn't read again, and may wait for what is dead
        standing = [
            running for running in all_running if running.task.is_standing and not running.task.is_maintaining
        ]
        # maintenance may take hours, and goes on with the next owner; what came meanwhile is read again, too
        maintained = [running for running in all_running if running.task.is_maintaining]
        with anyio.move_on_after(_WAIVED_STOP_S):
            for running in standing + maintained:
                await running.task.stopped.wait()
        for running in standing:
            running.scope.cancel()
        for running in all_running:
            if running not in maintained:
                await running.task.stopped.wait()
        # after the others' commits, as a compactor that doesn't leave off may be ended as a whole
        for running in maintained:
            if running.task.is_maintaining:
                running.scope.cancel()
            await running.task.stopped.wait()
