"""A store and a WAL that fail, stall and crash as a seeded generator decides, without threads or clocks."""

from __future__ import annotations

__all__ = ("SimulatedStore", "SimulatedWal")

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random

import anyio
from tests.unit.stream.harness import FakeWal

from penstock.errors import AlreadyExistsError, FullError, NotFoundError, UnavailableError
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry
from penstock.stream.entry import decode_header
from penstock.stream.marks import MARK_STREAM


class SimulatedStore:
    """Objects in a dict. An operation takes a few turns of the loop; it may fail before or after its effect.

    A put of an object that fails, or whose process dies, may land at any time later: see :meth:`land`.
    """

    capabilities = ObjectStoreCapabilities(put_if_absent=True, durable=True, durability_domain="host")
    location = "simulated store"

    def __init__(self, random: Random) -> None:
        self._random = random
        self.objects: dict[str, bytes] = {}
        #: When objects were put, by the clock below: a store tells 0 if it doesn't know.
        self.modified_ms: dict[str, int] = {}
        self.now_ms: Callable[[], int] = lambda: 0
        #: Puts that nobody waits for any more and that haven't landed yet.
        self.late: dict[str, bytes] = {}
        self.landed = 0
        #: Every metadata entry ever written, by key: replay from the first one needs those dropped since.
        self.entries: dict[str, bytes] = {}
        self.fault_rate = 0.0
        self.faults = 0

    async def _operation(self) -> bool:
        """Take some time, perhaps fail; whether the reply gets lost after the effect."""
        slow = self._random.random() < self.fault_rate / 10
        for _ in range(200 if slow else self._random.randrange(5)):
            await anyio.lowlevel.checkpoint()
        if self._random.random() >= self.fault_rate:
            return False
        self.faults += 1
        if self._random.random() < 0.5:
            raise UnavailableError("simulated: the request failed")
        return True

    async def _reply(self, lost: bool) -> None:
        for _ in range(self._random.randrange(3)):
            await anyio.lowlevel.checkpoint()
        if lost:
            raise UnavailableError("simulated: the reply was lost")

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        lost = await self._operation()
        found = self.objects.get(key)
        await self._reply(lost)
        if found is None:
            raise NotFoundError(f"no such object: key={key}")
        return found[start:end]

    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size=len(await self.get(key)))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        data = b"".join(body)
        try:
            lost = await self._operation()
        except BaseException:
            if key.startswith("objects/"):
                self.late[key] = data
            raise
        self._store(key, data)
        await self._reply(lost)
        return ""

    def _store(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.modified_ms[key] = self.now_ms()

    def land(self, chance: float) -> None:
        """Each late put lands with this chance."""
        for key in sorted(self.late):
            if self._random.random() < chance:
                self.landed += 1
                self._store(key, self.late.pop(key))

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        lost = await self._operation()
        taken = key in self.objects
        if not taken:
            self.objects[key] = self.entries[key] = b"".join(body)
        await self._reply(lost)
        if taken:
            raise AlreadyExistsError(f"the object is there already: key={key}")
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise NotImplementedError

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise NotImplementedError

    async def delete(self, keys: Sequence[str]) -> None:
        lost = await self._operation()
        for key in keys:
            self.objects.pop(key, None)
        await self._reply(lost)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._reply(await self._operation())
        for key in sorted(self.objects):
            if key in self.objects and key.startswith(prefix) and key > start_after:
                modified_ms = self.modified_ms.get(key, 0)
                yield ObjectInfo(key=key, size=len(self.objects[key]), modified_ms=modified_ms)
                await anyio.lowlevel.checkpoint()

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics(errors=self.faults)


class SimulatedWal(FakeWal):
    """Bounded; acknowledges when told to. A crash may keep part of what was pending, and forget trims."""

    def __init__(self, random: Random, capacity_bytes: int) -> None:
        super().__init__()
        self._random = random
        self.capacity_bytes = capacity_bytes
        #: Where the log starts after a crash that forgets the latest trims.
        self._durable_trims = [0]
        self.trimmed_ever = 0
        self.on_trim: Callable[[int], None] = lambda position: None

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        used = self.position - self.trimmed
        if used and used + sum(len(part) for part in data) > self.capacity_bytes:
            raise FullError("the simulated wal is full")
        append = super().append(data)
        if (
            not self.automatic
            and decode_header(memoryview(data[0]), append.position).stream_id == MARK_STREAM
        ):
            # what commands wait for comes by itself, with everything before it
            asyncio.get_running_loop().call_soon(self._complete_through, append)
        return append

    def _complete_through(self, mark: WalAppend) -> None:
        for count, (append, _) in enumerate(self.pending, 1):
            if append is mark:
                self.complete(count)
                break

    async def trim(self, position: int) -> None:
        for _ in range(self._random.randrange(3)):
            await anyio.lowlevel.checkpoint()
        await super().trim(position)
        self.on_trim(position)
        self.trimmed_ever = max(self.trimmed_ever, position)
        self._durable_trims.append(self.trimmed)

    def crash(self) -> None:
        """What was pending is gone but for a prefix of it; the latest trims may be forgotten."""
        kept = self._random.randrange(len(self.pending) + 1)
        for append, data in self.pending[:kept]:
            self.durable.append(WalEntry(append.position, append.next_position, memoryview(data)))
        # the next owner writes where the last whole entry ends
        self.position = self.durable[-1].next_position if self.durable else 0
        self.trimmed = self._random.choice(self._durable_trims[-3:])
        self._durable_trims = [self.trimmed]
        super().crash()
        self.automatic = False
