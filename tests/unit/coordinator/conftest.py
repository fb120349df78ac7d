"""What the coordinator's tests share: the async backend, a clock to turn by hand, a log in memory, services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Self

import anyio
import anyio.lowlevel
import pytest

from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_table import Entry
from penstock.errors import PenstockError
from penstock.log.keyed_log import Record


async def settle() -> None:
    """Let every task run until it waits; what these tests wait for is at most some steps away."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


class FakeClock:
    """Time moves only with `advance`, which also lets everything that became due run."""

    def __init__(self) -> None:
        self._now_ms = 1_000_000
        self._sleepers: list[tuple[int, anyio.CancelScope]] = []

    def now_ms(self) -> int:
        return self._now_ms

    async def wait(self, event: anyio.Event, delay_ms: int | None) -> None:
        if delay_ms == 0:
            await anyio.lowlevel.checkpoint()
            return
        with anyio.CancelScope() as scope:
            sleeper = (self._now_ms + (delay_ms or 0), scope)
            if delay_ms is not None:
                self._sleepers.append(sleeper)
            await event.wait()
        if sleeper in self._sleepers:
            self._sleepers.remove(sleeper)

    async def advance(self, ms: int) -> None:
        end = self._now_ms + ms
        while due := [at for at, _ in self._sleepers if at <= end]:
            self._now_ms = min(due)
            for at, scope in self._sleepers:
                if at <= self._now_ms:
                    scope.cancel()
            self._sleepers = [(at, scope) for at, scope in self._sleepers if at > self._now_ms]
            await settle()
        self._now_ms = end
        await settle()


class MemoryLog:
    """A `RecordLog` that keeps records in lists, fails on demand and can be held up."""

    def __init__(self, partition_count: int = 3) -> None:
        self.records: list[list[tuple[int, Record]]] = [[] for _ in range(partition_count)]
        self.ends = [0] * partition_count
        self.starts = [0] * partition_count
        #: What is uploaded of every partition at most.
        self.uploaded_end_max = 2**63
        self.error: PenstockError | None = None
        self.trim_error: PenstockError | None = None
        self.gate: anyio.Event | None = None
        self.batches: list[int] = []
        self._appending: set[int] = set()

    @property
    def partition_count(self) -> int:
        return len(self.records)

    async def append(self, partition: int, records: Sequence[Record]) -> int:
        assert partition not in self._appending, "one append at a time"
        assert records
        self._appending.add(partition)
        try:
            await anyio.lowlevel.checkpoint()
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self._appending.discard(partition)
        self.batches.append(len(records))
        base = self.ends[partition]
        self.records[partition] += [(base + index, record) for index, record in enumerate(records)]
        self.ends[partition] += len(records)
        return base

    async def read_all(self, partition: int) -> AsyncIterator[Record]:
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        for _, record in list(self.records[partition]):
            yield record

    def uploaded_end(self, partition: int) -> int:
        return min(self.ends[partition], self.uploaded_end_max)

    async def trim(self, partition: int, offset: int) -> None:
        await anyio.lowlevel.checkpoint()
        if self.trim_error is not None:
            raise self.trim_error
        assert self.starts[partition] <= offset <= self.ends[partition]
        self.starts[partition] = offset
        self.records[partition] = [one for one in self.records[partition] if one[0] >= offset]

    def live(self) -> dict[bytes, bytes]:
        """What compaction would leave of all partitions."""
        values: dict[bytes, bytes] = {}
        for partition in self.records:
            for _, (key, value) in partition:
                if value is None:
                    values.pop(key, None)
                else:
                    values[key] = value
        return values


class LedService(GroupService):
    """A service whose broker leads all partitions; they are loaded when it's entered, or the error is raised."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            for partition in range(self._coordinators.partition_count):
                self.lead(partition)
            await self.wait_loaded()
        except BaseException:
            await super().__aexit__(None, None, None)
            raise
        return self


def entries(service: GroupService) -> dict[str, Entry]:
    """The groups of all partitions."""
    return {
        name: entry
        for coordinator in service._coordinators.active()
        for name, entry in coordinator.entries.items()
    }


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()
