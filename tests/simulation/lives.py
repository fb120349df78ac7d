"""Lives of a simulated broker, one after the other: starts, everything at once, crashes and quiet ends."""

from __future__ import annotations

__all__ = ("Simulation",)

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from tests.patience import HANG_S
from tests.simulation.clients import Clients
from tests.simulation.history import BrokerCrashError, Life
from tests.simulation.model import GROUPS, Sent
from tests.simulation.promises import Promises
from tests.simulation.world import SimulatedWal
from tests.unit.stream.harness import NODE, SETTINGS, Engine

from penstock.broker._groups import OFFSETS_TOPIC, follow_logs
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupSettings
from penstock.errors import UnavailableError
from penstock.log.keyed_log import KeyedLog
from penstock.log.manager import LogManager, LogSettings
from penstock.log.producer_book import WINDOW_BATCHES
from penstock.log.topic import NewTopic
from penstock.metadata.commands import Command
from penstock.metadata.commands.streams import TrimStreams
from penstock.metadata.deltas import TopicAdded
from penstock.stream.engine import StreamEngine

_LIVES = 6
_GROUP_SETTINGS = GroupSettings(
    offsets_retention_ms=2**60, checkpoint_records=8, checkpoint_bytes=10**6, append_bytes_max=300
)


class Simulation(Clients, Promises):
    """One history, from one seed."""

    async def run(self) -> list[str]:
        """All lives; returns the trace."""
        clean = False
        for number in range(_LIVES):
            last = number == _LIVES - 1
            while number and self.random.random() < 0.3:
                await self._start_that_dies()
                clean = False
            if number and self._aside.random() < 0.2:
                self.note("lost wal")
                self.wal = self.world.wal = SimulatedWal(self.random, self.wal.capacity_bytes)
                self._wal_is_lost = True
                clean = False
            with suppress(BrokerCrashError):
                clean = await self._live(number, crash=not last and self.random.random() < 0.7, clean=clean)
                continue
            clean = False
        return self.trace

    async def _live(self, number: int, *, crash: bool, clean: bool) -> bool:
        self.store.fault_rate = 0.0
        self.wal.automatic = False
        allocator = None
        try:
            with _one_crash(self.wal):
                async with self._open() as life:
                    allocator = life.engine.allocator
                    recovered = self.world.recovered[-1].entries
                    self.note(f"life {number} index={life.engine.metadata.image.index} recovered={recovered}")
                    assert not (clean and recovered), "a clean stop leaves nothing to recover"
                    self._sweeping = False
                    self.store.land(0.3)
                    if self._wal_is_lost:
                        await self._go_on_without_wal(life)
                        self._wal_is_lost = False
                    await self._check(life)
                    self.leader_epochs = dict(self._leader_epochs(life))
                    self.store.fault_rate = self.random.choice([0.0, 0.05, 0.3])
                    await self._everything_at_once(life, crash)
                    await self._quiet_end(life)
        finally:
            self.wal.crash()
        assert allocator is not None
        assert allocator.statistics().used_by_purpose.get("append", 0) == 0, "nothing is charged for ever"
        return True

    async def _start_that_dies(self) -> None:
        """It ends anywhere: while it reads the WAL, uploads, commits, opens partitions."""
        turns = self.random.randrange(20, 300)
        self.note(f"start dies after {turns} turns")
        self.store.fault_rate = 0.0
        self.wal.automatic = False

        async def end(scope: anyio.CancelScope) -> None:
            await self._turns(turns)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end, tasks.cancel_scope)
            async with self._open():
                tasks.cancel_scope.cancel()
        self.wal.crash()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Life]:
        self.wal.on_trim = lambda position: None
        settings = LogSettings(
            topic_defaults={"retention.bytes": "2500"},
            retention_interval_ms=3_600_000,
            fetch_in_flight_bytes_max=2**20,
        )
        async with self.world.open() as engine:
            self.wal.on_trim = lambda position: self._check_trim(engine, position)
            async with LogManager.open(
                engine.engine,
                settings,
                node_id=NODE,
                node_epoch=engine.metadata.image.nodes.require(NODE).epoch,
                now_ms=lambda: self.world.now_ms,
                bus=engine.bus,
            ) as logs:
                self._watch_trims(engine.engine, logs)
                async with self._open_groups(engine, logs) as groups:
                    yield Life(engine, logs, groups)

    @asynccontextmanager
    async def _open_groups(self, engine: Engine, logs: LogManager) -> AsyncIterator[GroupService]:
        self.wal.automatic = True  # so that the log's topic is there
        if OFFSETS_TOPIC not in logs.topics():
            await logs.create_topics([NewTopic(OFFSETS_TOPIC, 2)], internal=True)
        self.wal.automatic = False
        image = engine.metadata.image
        async with GroupService(
            KeyedLog(OFFSETS_TOPIC, 2, logs.partition, lambda: self.world.now_ms),
            _GROUP_SETTINGS,
            self.clock,
            has_topic=lambda name: image.topics.named(name) is not None,
        ) as groups:
            follow_logs(groups, logs, image, engine.bus)
            engine.metadata.bus.subscribe(
                TopicAdded, lambda delta: groups.on_topic_created(image.topics.require(delta.topic_id).name)
            )
            try:
                yield groups
            finally:
                self.unforgotten.update(self._not_forgotten(groups) & image.topics.names())

    def _watch_trims(self, engine: StreamEngine, logs: LogManager) -> None:
        """Remember how far trims were asked for, by whomever."""
        submit = engine.metadata.submit

        async def submitted(command: Command) -> Any:
            for stream_id, start in command.starts if isinstance(command, TrimStreams) else ():
                partition = logs._by_stream.get(stream_id)
                if partition is not None and partition.stream.stream_id == stream_id:
                    written = self._written(partition)
                    written.start_max = max(written.start_max, start)
                    written.never_uploaded.append((engine.uploading_end(stream_id), start))
            return await submit(command)

        engine.metadata.submit = submitted  # type: ignore[method-assign, assignment]

    async def _everything_at_once(self, life: Life, crash: bool) -> None:
        async with anyio.create_task_group() as tasks:
            for producer in self.producers:
                tasks.start_soon(self._forever, self._produce, life, producer)
            for _ in range(2):
                tasks.start_soon(self._forever, self._administrate, life)
                tasks.start_soon(self._forever, self._read_somewhere, life)
            for group_id in GROUPS[: self._groups_used]:
                tasks.start_soon(self._forever, self._use_group, life, group_id)
            tasks.start_soon(self._forever, self._acknowledge)
            await self._turns(self.random.randrange(100, 900))
            if crash:
                self.note("crash")
                raise BrokerCrashError
            if self.wal.state != "open":
                # clients go on, until the broker has uploaded what it acknowledged
                await anyio.sleep_forever()
            tasks.cancel_scope.cancel()

    async def _forever(self, step: Callable[..., Awaitable[None]], *args: Any) -> None:
        while True:
            await self._turns(1 + self.random.randrange(12))
            await step(*args)

    async def _acknowledge(self) -> None:
        """The WAL's medium: some pending appends become durable, or all fail; or it ends, and kept some of them."""
        chance = self.random.random()
        if self.wal.state != "open":
            return
        if chance < 0.005 and self.store.fault_rate:
            kept = self.random.randrange(len(self.wal.pending) + 1)
            self.note(f"wal ends {len(self.wal.pending)} kept={kept}")
            self.wal.end(kept=kept)
        elif chance < 0.02 and self.store.fault_rate:
            self.note(f"wal fails {len(self.wal.pending)}")
            self.wal.fail()
        elif self.wal.pending:
            self.wal.complete(self.random.randrange(1, len(self.wal.pending) + 1))

    async def _quiet_end(self, life: Life) -> None:
        """No more faults: everything that was begun ends, and what is promised for then is so."""
        self.note("quiet")
        self.store.fault_rate = 0.0
        self.wal.complete()
        self.wal.automatic = True
        with anyio.fail_after(HANG_S):
            await life.engine.engine.flush()
            await life.logs.next_producer_id()  # commands are answered in order: all earlier ones are done
            await self._turns(50)
            await self._check(life)
            for place, epoch in self._leader_epochs(life):
                assert epoch == self.leader_epochs.get(place, 0), "a partition is opened once in a life (I3)"
            await life.logs.drain()
            await self._turns(50)
            for _ in range(2):
                self.world.now_ms += SETTINGS.upload.prepare_deadline_ms + 1
                await life.engine.engine._lifecycle.sweep()
            self.store.land(1)
            for _ in range(
                3
            ):  # a sweep that was cut short, one that notes the age of ids, and one that knows it
                self.world.now_ms += SETTINGS.orphan_grace_ms
                await life.engine.engine._orphans.sweep()
            self.orphans_deleted += life.engine.engine._orphans.statistics().deleted_objects
            await self._check_objects(life, exactly=True)
            await life.engine.metadata.write_snapshot()

    async def _go_on_without_wal(self, life: Life) -> None:
        """A lost WAL took what it alone held, and nothing else; then clients take new producer ids."""
        for (group_id, (name, _)), one in self.committed.items():
            topic = life.logs.topics().get(name)
            # tombstones are among what it took, also those of a topic that had the name before
            topic_id = b"" if topic is None else topic.id
            if one.topic_id != topic_id:
                one.topic_id = topic_id
                one.begin(None)
            one.lose(self._offsets_of(life, group_id).uploaded_end)
        for place, written in self.written.items():
            topic = life.logs.topic_by_id(place[0])
            partition = None if topic is None else topic.partitions.get(place[1])
            end = 0 if partition is None else partition.uploaded_end
            written.acked = {offset: value for offset, value in written.acked.items() if offset < end}
            for producer in self.producers:
                sent = producer.sequences.pop(place, Sent())
                last, is_in_window = sent.last, len(sent.unknown) < WINDOW_BATCHES
                if partition is None or last is None or not is_in_window or last[2] >= end:
                    continue
                if not any(start <= last[2] < end for start, end in written.never_uploaded):
                    outcome = await self._outcome(
                        await self._send(life, partition, producer, sent.epoch, *last[:2])
                    )
                    assert (outcome.error_code, outcome.base_offset) == (0, last[2]), (
                        "what objects said is known"
                    )
                    self.note(f"known {partition.topic}-{partition.index}@{last[2]}")
        for producer in self.producers[1:]:
            producer.producer_id += 1000


class _one_crash:  # noqa: N801 - used like a function
    """Raises the crash, or the end of the WAL, that task groups wrapped; and anything else as it is."""

    def __init__(self, wal: SimulatedWal) -> None:
        self._wal = wal

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BaseExceptionGroup):
            ends = BrokerCrashError if self._wal.state == "open" else (BrokerCrashError, UnavailableError)
            _, rest = error.split(ends)
            if rest is None:
                raise BrokerCrashError from None
