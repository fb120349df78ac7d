"""One history of a simulated broker: what it runs on, what its model knows, and what each of its steps uses."""

from __future__ import annotations

__all__ = ("BrokerCrashError", "History", "Life")

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import anyio
from tests.simulation.model import GROUPS, NAMES, Committed, Place, Producer, Written
from tests.simulation.world import SimulatedStore, SimulatedWal
from tests.unit.log.test_partition import NOW_MS
from tests.unit.stream.harness import SETTINGS, Engine, World

from penstock.broker._groups import OFFSETS_TOPIC
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import TopicPartition
from penstock.coordinator.placement import partition_for
from penstock.errors import PenstockError
from penstock.log.manager import LogManager
from penstock.log.partition import Partition


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


class BrokerCrashError(Exception):
    """Ends a life."""


@dataclass
class Life:
    """A running broker, as far as the simulation needs one."""

    engine: Engine
    logs: LogManager
    groups: GroupService


class History:
    """What all of a history shares: the seed's dice, store and log, what the model knows, and a trace."""

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

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

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

    def _pick(self, life: Life) -> Partition | None:
        topics = [topic for name, topic in sorted(life.logs.topics().items()) if name in NAMES]
        if not topics:
            return None
        topic = self.random.choice(topics)
        return topic.partitions.get(self.random.randrange(topic.partition_count))

    def _written(self, partition: Partition) -> Written:
        return self.written.setdefault((partition.topic_id, partition.index), Written())

    def _offsets_of(self, life: Life, group_id: str) -> Partition:
        partition = life.logs.partition(OFFSETS_TOPIC, partition_for(group_id, 2))
        assert partition is not None
        return partition
