"""Random lives of a broker: everything at once, with faults, crashes and restarts, checked against a model.

Each seed gives one history (proved by a test): several tasks produce, read, create, grow, trim and delete, groups
commit and are deleted (in every other history), the store fails or loses replies, the WAL fills up, fails, and
crashes. After each start, and at each quiet end of a life, the invariants I1, I2, I4, I6, I7, the exactly-once
promise to idempotent producers and the offsets of groups are checked.

``pytest --depth broker_lives=1000`` runs more of them; ``PENSTOCK_SIMULATION_SEED=42`` runs one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from penstock_metadata_object import _format
from tests.depth import in_full, seeds
from tests.patience import HANG_S
from tests.simulation.world import SimulatedStore, SimulatedWal
from tests.unit.log.test_partition import NOW_MS
from tests.unit.stream.harness import NODE, SETTINGS, Engine, World

from penstock.broker._groups import OFFSETS_TOPIC, follow_logs
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupSettings, OffsetAndMetadata, TopicPartition
from penstock.coordinator.placement import partition_for
from penstock.errors import ClosedError, FullError, PenstockError, UnavailableError
from penstock.log import producer_snapshots as snapshots_module
from penstock.log.append_outcome import AppendOutcome
from penstock.log.errors import KafkaError
from penstock.log.keyed_log import KeyedLog
from penstock.log.manager import LogManager, LogSettings
from penstock.log.partition import Partition
from penstock.log.producer_book import WINDOW_BATCHES
from penstock.log.topic import NewTopic
from penstock.metadata import service as service_module
from penstock.metadata.commands import Command, decode_entry
from penstock.metadata.commands.streams import TrimStreams
from penstock.metadata.deltas import TopicAdded
from penstock.metadata.image import Image
from penstock.metadata.service import load_image
from penstock.stream import uploader as uploader_module
from penstock.stream.engine import StreamEngine
from penstock.stream.entry import decode_header
from penstock.stream.object_format import object_key
from penstock.stream.pacer import Pacer
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import build_batch, iter_records
from penstock_tools.inspection.verify import Report, check_tiling

pytestmark = pytest.mark.anyio

LIVES = 6
GROUPS = ("g", "h")
GROUP_SETTINGS = GroupSettings(
    offsets_retention_ms=2**60, checkpoint_records=8, checkpoint_bytes=10**6, append_bytes_max=300
)
#: What an iteration of the event loop takes in its own time, at least.
_ITERATION_S = 1e-5
NAMES = ("a", "b", "c")
_SEED = os.environ.get("PENSTOCK_SIMULATION_SEED")
SEEDS = [int(_SEED)] if _SEED else list(seeds("broker_lives"))

#: (topic id, partition)
Place = tuple[bytes, int]


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses on the real clock, no threads, and bounds that a short history meets."""

    async def inline(function: Callable[..., Any], *args: Any, limiter: object = None) -> Any:
        return function(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)
    monkeypatch.setattr(service_module, "_BACKOFF_S", (0,))
    monkeypatch.setattr(uploader_module, "_BACKOFF_S", (0,))
    monkeypatch.setattr(Pacer, "pause_s", lambda *_: 0.0)
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BYTES", 1500)


@pytest.fixture(autouse=True)
async def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's clock goes on by iterations, and at once to the next timer where nothing else is to be done.

    So it depends on the seed alone when pauses end.
    """
    loop: Any = asyncio.get_running_loop()
    now, select = loop.time(), loop._selector.select

    def passing() -> float:
        nonlocal now
        now += _ITERATION_S
        return float(now)

    def select_at_once(timeout: float | None = None) -> Any:
        nonlocal now
        if timeout is None:  # no timer: only another thread or process can go on
            return select(None)
        now += timeout
        return select(0)

    monkeypatch.setattr(loop, "time", passing)
    monkeypatch.setattr(loop._selector, "select", select_at_once)


@dataclass
class Written:
    """What the model knows of one partition."""

    #: Acknowledged values by offset: they must be there (I1).
    acked: dict[int, bytes] = field(default_factory=dict)
    #: Everything that was ever sent: nothing else may be there.
    sent: set[bytes] = field(default_factory=set)
    #: The log start that was acknowledged, and the greatest that was asked for.
    start: int = 0
    start_max: int = 0
    #: Offsets [start, end) that were trimmed before anything began to upload them.
    never_uploaded: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Sent:
    """What one idempotent producer knows of one partition."""

    next: int = 0
    epoch: int = 0
    #: (first sequence, values) of batches whose outcome isn't known yet, as many as a client has in flight at most.
    unknown: list[tuple[int, list[bytes]]] = field(default_factory=list)
    #: (first sequence, values, base offset) of the last acknowledged batch.
    last: tuple[int, list[bytes], int] | None = None
    #: The same of the epoch before, once a batch of this one is acknowledged.
    fenced: tuple[int, list[bytes], int] | None = None

    def begin_epoch(self) -> None:
        """As clients do that give batches up: everything after them is of another epoch, and counts from 0."""
        self.epoch += 1
        self.next, self.last, self.fenced = 0, None, self.last or self.fenced


@dataclass
class Producer:
    """A client with a producer id; -1 for one without."""

    producer_id: int
    number: int
    sequences: dict[Place, Sent] = field(default_factory=dict)
    count: int = 0


@dataclass
class Committed:
    """What a group may have as its offset of a partition: the newest of these that is certain, or a later one."""

    topic_id: bytes
    #: None: it has none.
    history: list[int | None] = field(default_factory=lambda: [None])
    certain: int = 0
    #: (end of the group's log by then, place among all) of what was acknowledged.
    acked: list[tuple[int, int]] = field(default_factory=list)

    def begin(self, value: int | None) -> int:
        """The value is on its way; its place among all."""
        self.history.append(value)
        return len(self.history) - 1

    def settle(self, at: int, log_end: int | None = None) -> None:
        """The value at this place is durable, in a log that goes so far."""
        self.certain = max(self.certain, at)
        if log_end is not None:
            self.acked.append((log_end, at))

    def lose(self, uploaded_end: int) -> None:
        """Of the log, only this is left."""
        self.acked = [one for one in self.acked if one[0] <= uploaded_end]
        self.certain = max((at for _, at in self.acked), default=0)

    def allowed(self) -> set[int | None]:
        """What may be found."""
        return set(self.history[self.certain :])


class SteadyClock:
    """A clock that never stands still, over all lives: what is said later has a later time."""

    def __init__(self) -> None:
        self._now_ms = NOW_MS

    def now_ms(self) -> int:
        self._now_ms += 1
        return self._now_ms

    async def wait(self, event: anyio.Event, delay_ms: int | None) -> None:
        with anyio.move_on_after(None if delay_ms is None else delay_ms / 1000):
            await event.wait()


@dataclass
class _Asked:
    """An append that waits for its outcome."""

    wal: SimulatedWal
    done: anyio.Event = field(default_factory=anyio.Event)
    outcomes: list[AppendOutcome] = field(default_factory=list)
    #: Of the WAL, when the outcome came.
    wal_state: str = ""

    def answer(self, outcome: AppendOutcome) -> None:
        self.outcomes.append(outcome)
        self.wal_state = self.wal.state
        self.done.set()


class BrokerCrashError(Exception):
    """Ends a life."""


@dataclass
class Life:
    """A running broker, as far as the simulation needs one."""

    engine: Engine
    logs: LogManager
    groups: GroupService


class Simulation:
    """One history, from one seed."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.random = Random(seed)
        self.store = SimulatedStore(self.random)
        self.wal = SimulatedWal(self.random, self.random.choice([4_000, 20_000, 10**9]))
        upload = dataclasses.replace(
            SETTINGS.upload,
            commit_ranges_max=self.random.choice([1, 3, 5000]),
            object_split_bytes=self.random.choice([400, 2**20]),
        )
        self.world = World(
            directory,
            wal=self.wal,
            store=self.store,
            snapshot_entries=25,
            now_ms=NOW_MS,
            clock=lambda: self.world.now_ms / 1000,
            settings=dataclasses.replace(
                SETTINGS,
                upload_bytes=self.random.choice([800, 3000, 2**20]),
                in_flight_bytes_max=self.random.choice([1500, 2**20]),
                upload=upload,
            ),
        )
        if self.random.random() < 0.5:
            self.store.now_ms = lambda: self.world.now_ms
        #: Of what takes no number from others.
        self._aside = Random(f"aside {seed}")
        self._groups_random = Random(f"groups {seed}")
        self._groups_used = 0 if seed % 2 else len(GROUPS)
        self._commits = 0
        self._wal_is_lost = False
        self.orphans_deleted = 0
        self._sweeping = False
        self.written: dict[Place, Written] = {}
        self.producers = [Producer(1000 + i if i else -1, i) for i in range(4)]
        #: Topic ids by name that were acknowledged, and those whose deletion was asked for.
        self.created: dict[bytes, str] = {}
        self.doomed: set[bytes] = set()
        self.deleted: set[bytes] = set()
        #: By group, topic and partition.
        self.committed: dict[tuple[str, TopicPartition], Committed] = {}
        self.clock = SteadyClock()
        #: Topics that were made before what groups say of another of that name was gone: a kill may bring that back.
        self.unforgotten: set[str] = set()
        #: When the present life began.
        self.leader_epochs: dict[Place, int] = {}
        #: What happened, for people and for the proof that a seed gives one history.
        self.trace: list[str] = []

    def note(self, text: str) -> None:
        self.trace.append(text)

    # -- lives -----------------------------------------------------------------------------------------------

    async def run(self) -> list[str]:
        """All lives; returns the trace."""
        clean = False
        for number in range(LIVES):
            last = number == LIVES - 1
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
            GROUP_SETTINGS,
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

        engine.metadata.submit = submitted  # type: ignore[method-assign]

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

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    async def _forever(self, step: Callable[..., Awaitable[None]], *args: Any) -> None:
        while True:
            await self._turns(1 + self.random.randrange(12))
            await step(*args)

    async def _perhaps_cancelled(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The result of ``call``, or None when its client went away first."""
        result = error = None
        patience = self.random.randrange(1, 40) if self.random.random() < 0.4 else 0

        async def leave(scope: anyio.CancelScope) -> None:
            await self._turns(patience)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            if patience:
                tasks.start_soon(leave, tasks.cancel_scope)
            try:
                result = await call()
            except PenstockError as raised:
                error = raised  # raised below: the task group would wrap it
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error
        return result

    # -- what clients do -------------------------------------------------------------------------------------

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

    def _pick(self, life: Life) -> Partition | None:
        topics = [topic for name, topic in sorted(life.logs.topics().items()) if name in NAMES]
        if not topics:
            return None
        topic = self.random.choice(topics)
        return topic.partitions.get(self.random.randrange(topic.partition_count))

    def _written(self, partition: Partition) -> Written:
        return self.written.setdefault((partition.topic_id, partition.index), Written())

    async def _produce(self, life: Life, producer: Producer) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        place = (partition.topic_id, partition.index)
        sequence = producer.sequences.setdefault(place, Sent())
        if sequence.last is not None and not sequence.unknown and self.random.random() < 0.15:
            await self._produce_again(life, producer, partition, sequence)
            return
        if producer.producer_id >= 0 and not sequence.unknown and self._aside.random() < 0.15:
            sequence.begin_epoch()
        batches = list(sequence.unknown)  # first of all, and as they were
        in_flight = self.random.choice([1, 1, 2, WINDOW_BATCHES]) if producer.producer_id >= 0 else 1
        while len(batches) < in_flight:
            batches.append((sequence.next, self._make_values(producer)))
            if producer.producer_id >= 0:
                sequence.next += len(batches[-1][1])
                sequence.unknown.append(batches[-1])
        written = self._written(partition)
        asked: list[_Asked] = []
        for first, values in batches:
            written.sent.update(values)
            asked.append(await self._send(life, partition, producer, sequence.epoch, first, values))
            await self._turns(self.random.randrange(4))
        failed = False
        for (first, values), answer in zip(batches, asked, strict=True):
            outcome = await self._outcome(answer)
            if outcome.error_code:
                failed = True
                continue
            assert not failed, "nothing overtakes what failed"
            self.note(f"acked {partition.topic}-{partition.index}@{outcome.base_offset}+{len(values)}")
            for i, value in enumerate(values):
                assert written.acked.setdefault(outcome.base_offset + i, value) == value, (
                    "an offset is given once"
                )
            assert partition.high_watermark >= outcome.base_offset + len(values)
            if producer.producer_id >= 0:
                sequence.unknown.remove((first, values))
                sequence.last = (first, values, outcome.base_offset)

    def _make_values(self, producer: Producer) -> list[bytes]:
        values = []
        for _ in range(self.random.randrange(1, 4)):
            producer.count += 1
            values.append(b"%d-%d" % (producer.number, producer.count) + b"." * self.random.randrange(150))
        return values

    async def _produce_again(
        self, life: Life, producer: Producer, partition: Partition, sequence: Sent
    ) -> None:
        """What was acknowledged last, whether it is deleted meanwhile or not; or last in the epoch before."""
        if producer.producer_id < 0 or sequence.last is None:
            return
        first, values, base_offset = sequence.last
        if sequence.fenced is not None and self._aside.random() < 0.5:
            first, values, _ = sequence.fenced
            asked = await self._send(life, partition, producer, sequence.epoch - 1, first, values)
            await asked.done.wait()
            code = asked.outcomes[0].error_code
            assert code in {ErrorCode.INVALID_PRODUCER_EPOCH, ErrorCode.NOT_LEADER_OR_FOLLOWER}, code
            self.note(f"fenced {partition.topic}-{partition.index} {code}")
            return
        outcome = await self._outcome(
            await self._send(life, partition, producer, sequence.epoch, first, values)
        )
        if outcome.error_code == 0:
            assert outcome.base_offset == base_offset, "a duplicate gets the offset that it has"

    async def _send(
        self,
        life: Life,
        partition: Partition,
        producer: Producer,
        epoch: int,
        first: int,
        values: list[bytes],
    ) -> _Asked:
        """Append like the Produce API; what is returned waits for the answer."""
        idempotent = producer.producer_id >= 0
        batch = build_batch(
            [(None, value, (), self.world.now_ms) for value in values],
            producer_id=producer.producer_id,
            producer_epoch=epoch if idempotent else -1,
            base_sequence=first if idempotent else -1,
        )
        asked = _Asked(self.wal)
        while True:
            try:
                partition.append(
                    memoryview(batch),
                    produce_version=9,
                    now_ms=self.world.now_ms,
                    charge=None,
                    on_done=asked.answer,
                )
                break
            except FullError:
                await life.logs.wait_for_room()
        return asked

    async def _outcome(self, asked: _Asked) -> AppendOutcome:
        await asked.done.wait()
        (outcome,) = asked.outcomes
        if outcome.error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER:
            assert asked.wal_state == "open", "who hears of a hole sends what is in doubt under a new epoch"
            self.note("hole")
            return outcome
        assert outcome.error_code in {
            0,
            ErrorCode.KAFKA_STORAGE_ERROR,
            ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            ErrorCode.NOT_LEADER_OR_FOLLOWER,
        }, outcome.error_message
        return outcome

    async def _read_somewhere(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        written = self._written(partition)
        offset = self.random.randint(partition.log_start_offset, partition.high_watermark)
        try:
            result = await partition.read(
                offset, self.random.choice([1, 300, 10**6]), read_committed=False, at_least_one=True
            )
        except UnavailableError:
            assert self.store.fault_rate
            return
        except KafkaError as error:
            trimmed = error.error_code == ErrorCode.OFFSET_OUT_OF_RANGE and offset < written.start_max
            gone = error.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER and partition.topic_id in self.doomed
            if not (trimmed or gone):
                raise
            return
        for piece in result.records:
            for record in iter_records(piece):
                value = bytes(record.value or b"")
                assert value in written.sent
                assert written.acked.get(record.offset, value) == value

    async def _administrate(self, life: Life) -> None:
        step = self.random.choice(
            [
                self._create,
                self._create,
                self._grow,
                self._delete,
                self._trim,
                self._trim,
                self._clean,
                self._flush,
                self._flush,
                self._sweep,
                self._sweep_orphans,
                self._evict,
                self._configure,
            ]
        )
        try:
            await step(life)
        except UnavailableError:
            pass
        except ClosedError:
            assert self.wal.state != "open"

    async def _create(self, life: Life) -> None:
        name = self.random.choice(NAMES)
        count = self.random.randrange(1, 4)
        results = await self._perhaps_cancelled(lambda: life.logs.create_topics([NewTopic(name, count)]))
        if results is not None and not isinstance(results[0], Exception):
            self.note(f"created {name} {count}")
            self.created[results[0].id] = name

    async def _grow(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        count = self.random.randrange(2, 6)

        async def grow(count: int) -> None:
            with suppress(PenstockError):
                await self._perhaps_cancelled(lambda: life.logs.create_partitions(partition.topic, count))
                self.note(f"grown {partition.topic} {count}")

        async with anyio.create_task_group() as tasks:
            for more in range(self.random.randrange(1, 3)):
                tasks.start_soon(grow, count + more)

    async def _delete(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None or self.random.random() < 0.5:
            return
        self.doomed.add(partition.topic_id)
        results = await self._perhaps_cancelled(lambda: life.logs.delete_topics([partition.topic]))
        if results == [None]:
            self.note(f"deleted {partition.topic}")
            self.deleted.add(partition.topic_id)

    async def _trim(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        written = self._written(partition)
        offset = self.random.randint(partition.log_start_offset, partition.high_watermark)
        with suppress(KafkaError):
            start = await self._perhaps_cancelled(lambda: partition.delete_records(offset))
            if start is not None:
                self.note(f"trimmed {partition.topic}-{partition.index} {start}")
                assert start >= offset
                written.start = max(written.start, offset)

    async def _clean(self, life: Life) -> None:
        await self._perhaps_cancelled(life.logs.clean)

    async def _flush(self, life: Life) -> None:
        await self._perhaps_cancelled(life.engine.engine.flush)

    async def _sweep(self, life: Life) -> None:
        self.world.now_ms += self.random.choice([1, 1000, SETTINGS.upload.prepare_deadline_ms])
        await self._perhaps_cancelled(life.engine.engine._lifecycle.sweep)

    async def _sweep_orphans(self, life: Life) -> None:
        self.store.land(0.2)
        if self._sweeping:
            return  # a broker has one task that sweeps
        self._sweeping = True
        try:
            self.world.now_ms += self.random.choice([0, SETTINGS.orphan_grace_ms])
            await self._perhaps_cancelled(life.engine.engine._orphans.sweep)
        finally:
            self._sweeping = False

    async def _evict(self, life: Life) -> None:
        life.engine.log_cache.evict(self.random.choice([1, 1000, 2**30]))

    async def _configure(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is not None:
            limit = str(self.random.choice([500, 2500, -1]))
            with suppress(PenstockError):
                await self._perhaps_cancelled(
                    lambda: life.logs.alter_configs(partition.topic, {"retention.bytes": limit})
                )

    # -- what groups do --------------------------------------------------------------------------------------

    async def _use_group(self, life: Life, group_id: str) -> None:
        await self._turns(self._groups_random.randrange(30))
        chance = self._groups_random.random()
        if chance < 0.5:
            await self._commit(life, group_id)
        elif chance < 0.55:
            await self._delete_group(life, group_id)
        elif chance < 0.8:
            await self._check_group(life, group_id)

    def _not_forgotten(self, groups: GroupService) -> set[str]:
        return {*groups._unforgotten, *groups._made_meanwhile}

    def _known(self, life: Life, group_id: str, place: TopicPartition) -> Committed:
        """What is known of the offset; of a topic that is new, that there is none."""
        topic = life.logs.topics().get(place[0])
        topic_id = b"" if topic is None else topic.id
        known = self.committed.setdefault((group_id, place), Committed(topic_id))
        if known.topic_id != topic_id:
            is_open = place[0] in self.unforgotten | self._not_forgotten(life.groups)
            known.topic_id = topic_id
            none = known.begin(None)
            if not is_open:
                known.settle(none)
        return known

    def _is_certain(self, life: Life, place: TopicPartition, topic_id: bytes) -> bool:
        topic = life.logs.topics().get(place[0])
        return topic is not None and topic.id == topic_id and topic.id not in self.doomed

    def _offsets_of(self, life: Life, group_id: str) -> Partition:
        partition = life.logs.partition(OFFSETS_TOPIC, partition_for(group_id, 2))
        assert partition is not None
        return partition

    async def _commit(self, life: Life, group_id: str) -> None:
        self._commits += 1
        number = self._commits
        topics = sorted(name for name in life.logs.topics() if name in NAMES)
        if not topics:
            return
        name = self._groups_random.choice(topics)
        places = [(name, index) for index in range(self._groups_random.randrange(1, 3))]
        known = [self._known(life, group_id, place) for place in places]
        topic_id = known[0].topic_id
        begun = [one.begin(number) for one in known]
        errors = await self._perhaps_cancelled(
            lambda: life.groups.commit_offsets(
                group_id, {place: OffsetAndMetadata(number) for place in places}
            )
        )
        if not self._is_certain(life, places[0], topic_id):
            for one in known:
                one.begin(None)
            return
        for place, one, at in zip(places, known, begun, strict=True):
            if errors is not None and errors[place] == 0:
                self.note(f"committed {group_id} {name} {number}")
                one.settle(at, self._offsets_of(life, group_id).high_watermark)

    async def _delete_group(self, life: Life, group_id: str) -> None:
        known = [one for (group, _), one in self.committed.items() if group == group_id]
        begun = [one.begin(None) for one in known]
        errors = await self._perhaps_cancelled(lambda: life.groups.delete_groups([group_id]))
        if errors == {group_id: ErrorCode.NONE}:
            self.note(f"deleted group {group_id}")
            for one, at in zip(known, begun, strict=True):
                one.settle(at, self._offsets_of(life, group_id).high_watermark)

    async def _check_group(self, life: Life, group_id: str) -> None:
        places = [place for group, place in self.committed if group == group_id]
        known = [self._known(life, group_id, place) for place in places]
        topic_ids = [one.topic_id for one in known]
        allowed = [one.allowed() for one in known]
        error, offsets = await life.groups.fetch_offsets(group_id, places)
        if error is not ErrorCode.NONE:
            return
        for place, one, topic_id, may_be in zip(places, known, topic_ids, allowed, strict=True):
            found = offsets[place]
            value = None if found is None else found.offset
            if self._is_certain(life, place, topic_id) and one.topic_id == topic_id:
                assert value in may_be | one.allowed(), (group_id, place, value, one)

    async def _check_groups(self, life: Life) -> None:
        await life.groups.wait_loaded()
        for group_id in GROUPS:
            await self._check_group(life, group_id)

    # -- what must be so -------------------------------------------------------------------------------------

    async def _check(self, life: Life) -> None:
        """With no fault and nothing on its way."""
        await self._check_groups(life)
        await self._check_image(life)
        self._check_topics(life)
        await self._check_objects(life, exactly=False)
        for name, topic in life.logs.topics().items():
            if name in NAMES:
                for partition in topic.partitions.values():
                    await self._check_log(partition)

    async def _check_image(self, life: Life) -> None:
        """I2; I7: from the newest snapshot, and from the very first entry, the same image."""
        image = life.engine.metadata.image
        report = Report()
        check_tiling(image, report)
        assert report.problems == []
        loaded = await load_image(life.engine.metadata_log)
        while loaded.index != image.index:  # trims go on whose clients have left
            loaded = await load_image(life.engine.metadata_log)
        expected = image.to_snapshot()
        assert loaded.to_snapshot() == expected
        replayed = Image()
        for key in sorted(self.store.entries):
            index = _format.entry_index("metadata/", key)
            data = _format.decode(_format.ENTRY_MAGIC, index, key, self.store.entries[key])
            if index <= image.index:
                replayed.fold(index, decode_entry(index, data))
        assert replayed.to_snapshot() == expected

    def _leader_epochs(self, life: Life) -> Iterator[tuple[Place, int]]:
        for topic in life.logs.topics().values():
            for partition in topic.partitions.values():
                yield (topic.id, partition.index), partition.leader_epoch

    def _check_topics(self, life: Life) -> None:
        image = life.engine.metadata.image
        assert self.deleted.isdisjoint(image.topics.ids())
        assert set(self.created) - self.doomed <= set(image.topics.ids())
        live = life.logs.topics()
        for topic in image.topics.all():
            if topic.name in NAMES:
                assert sorted(live[topic.name].partitions) == list(range(topic.partition_count))
                assert live[topic.name].id == topic.topic_id
        assert set(live) == set(image.topics.names())

    async def _check_objects(self, life: Life, *, exactly: bool) -> None:
        """I6: what metadata says is there is there; ``exactly``: after the deadlines, nothing else is."""
        objects = life.engine.metadata.image.objects
        found = {key for key in self.store.objects if key.startswith("objects/")}
        committed = {object_key(held.object_id) for held in objects.all() if held.state == "committed"}
        assert committed <= found
        if exactly:
            assert found == committed
            assert len(objects) == len(committed)

    async def _check_log(self, partition: Partition) -> None:
        """I1, exactly once, and offsets without a gap."""
        written = self._written(partition)
        place = f"{partition.topic}-{partition.index}"
        start, end = partition.log_start_offset, partition.high_watermark
        assert written.start <= start <= max(written.start_max, written.start), place
        found: dict[int, bytes] = {}
        offset = start
        while offset < end:
            result = await partition.read(offset, 700, read_committed=False, at_least_one=True)
            for piece in result.records:
                for record in iter_records(piece):
                    found[record.offset] = bytes(record.value or b"")
                    offset = record.offset + 1
        assert [o for o in sorted(found) if o >= start] == list(range(start, end)), place
        lost = {o: v for o, v in written.acked.items() if o >= start and found.get(o) != v}
        assert lost == {}, place
        values = [found[o] for o in range(start, end)]
        assert written.sent.issuperset(values), place
        assert len(set(values)) == len(values), f"a batch is there twice: {place}"
        for number in range(1, len(self.producers)):
            counts = [int(v.split(b".")[0].split(b"-")[1]) for v in values if v.startswith(b"%d-" % number)]
            assert counts == sorted(counts), f"a producer's batches are out of order: {place}"

    def _check_trim(self, engine: Engine, position: int) -> None:
        """I4: everything that the WAL forgets is committed, or of a stream that is trimmed or gone."""
        for entry in self.wal.durable:
            if self.wal.trimmed_ever < entry.next_position <= position:
                header = decode_header(entry.data, entry.position)
                stream = engine.metadata.image.streams.get(header.stream_id)
                assert stream is None or header.next_offset <= max(stream.start, stream.end), (
                    f"trimmed and not committed: {header}"
                )


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


@pytest.fixture(scope="module")
def lived() -> dict[int, Simulation]:
    """What was lived once, by seed: a seed gives one history."""
    return {}


async def _history(seed: int, directory: Path, lived: dict[int, Simulation]) -> Simulation:
    if seed not in lived:
        simulation = Simulation(seed, directory)
        try:
            with anyio.fail_after(HANG_S):
                await simulation.run()
        except BaseException:
            print("\n".join(simulation.trace[-60:]))
            raise
        lived[seed] = simulation
    return lived[seed]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_history_breaks_no_promise(
    seed: int, tmp_path: Path, lived: dict[int, Simulation]
) -> None:
    await _history(seed, tmp_path, lived)


@pytest.mark.parametrize("seed", [6, *in_full(7, 9, 12, 14)])
async def test_a_seed_gives_one_history(seed: int, tmp_path: Path, lived: dict[int, Simulation]) -> None:
    one, two = await _history(seed, tmp_path, lived), Simulation(seed, tmp_path)
    assert one.trace == await two.run()
    assert len(one.store.entries) == len(two.store.entries)


async def test_histories_hold_what_they_are_for(tmp_path: Path, lived: dict[int, Simulation]) -> None:
    """The simulation isn't idle: acknowledgements, deletions, trims, failures, recoveries, faults, uploads."""
    histories = [await _history(seed, tmp_path, lived) for seed in seeds("broker_lives")]
    trace = [line for each in histories for line in each.trace]
    words = [line.split()[0] for line in trace]
    for word in (
        "acked",
        "created",
        "grown",
        "deleted",
        "trimmed",
        "crash",
        "quiet",
        "wal",
        "hole",
        "lost",
        "known",
        "fenced",
        "committed",
    ):
        assert words.count(word) >= 3, word
    ends = [line for line in trace if line.startswith("wal ends")]
    assert any(not line.endswith("kept=0") for line in ends), "what failed is on the medium, and comes back"
    assert any(line.startswith("life") and not line.endswith("recovered=0") for line in trace)
    assert sum(each.store.faults for each in histories) > 20
    assert sum(len(each.world.uploads) for each in histories) > 20
    assert sum(each.orphans_deleted for each in histories) > 5
