"""Logs in memory whose media the tests steer, and a replicated log on them."""

from __future__ import annotations

__all__ = ("Medium", "Place", "Words", "recovered")

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from penstock_wal_s3express_replicated import ReplicatedWal, Settings, penstock_register_wal

from penstock.errors import (
    ClosedError,
    ConflictError,
    FencedError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    again,
)
from penstock.plugins import NestedPlugins, Opened
from penstock.spi import Buffer, PluginSpec, Services
from penstock.spi import Settings as BaseSettings
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalSpec, WalStatistics

_numbers = itertools.count(1)


class Medium:
    """A place of a log. ``held`` keeps appends from becoming durable; ``error`` makes everything fail."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self.error: Exception | None = None
        self.held = False
        self.opening = anyio.Event()
        self.opening.set()
        self.trimming = anyio.Event()
        self.trimming.set()
        self.replace()

    def replace(self) -> None:
        """A new, empty medium is in the place of the old one."""
        #: What stops whoever reads it.
        self.damage: Exception | None = None
        self.identity = ""
        self.entries: list[tuple[int, int, bytes]] = []
        self.epoch = 0
        self.end = self.trimmed = 0
        self.waiting: list[tuple[SteeredWal, WalAppend, bytes]] = []

    def fail(self, message: str = "the medium failed") -> None:
        """Whatever is under way and comes fails."""
        self.error = UnavailableError(message)
        waiting, self.waiting = self.waiting, []
        for _, append, _ in waiting:
            append.complete(again(self.error))

    def release(self, count: int | None = None) -> None:
        """What was held, or the first ``count``, becomes durable."""
        due = self.waiting[:count]
        self.waiting = self.waiting[len(due) :]
        if count is None:
            self.held = False
        for wal, append, data in due:
            wal.write(append, data)


class SteeredSettings(BaseSettings):
    """Which medium."""

    at: int = 0


class SteeredWal:
    """A log in a medium."""

    location = "steered"

    def __init__(self, medium: Medium, epoch: int) -> None:
        self.medium = medium
        self.epoch = epoch
        self.capabilities = WalCapabilities(
            durability_domain="host", fencing=True, identity=True, bounded=bool(medium.capacity)
        )
        self._closed = self._recovered = False

    async def recover(self) -> AsyncIterator[WalEntry]:
        for position, end, data in list(self.medium.entries):
            await anyio.lowlevel.checkpoint()
            if self.medium.error is not None:
                raise again(self.medium.error)
            if self.medium.damage is not None:
                raise again(self.medium.damage)
            if end > self.medium.trimmed:
                yield WalEntry(position, end, memoryview(data))
        self._recovered = True

    def would_fit(self, size: int) -> bool:
        used = self.medium.end - self.medium.trimmed
        return not self.medium.capacity or used + size <= self.medium.capacity

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        medium = self.medium
        if self._closed or not self._recovered:
            raise ClosedError("closed")
        if medium.error is not None:
            raise again(medium.error)
        if medium.epoch != self.epoch:
            raise FencedError("a newer owner has the medium")
        body = b"".join(data)
        if not self.would_fit(len(body)):
            raise FullError("full")
        append = WalAppend(medium.end, medium.end + len(body))
        medium.end += len(body)
        medium.waiting.append((self, append, body))
        if not medium.held:
            asyncio.get_running_loop().call_soon(self._release)
        return append

    def _release(self) -> None:
        if not self.medium.held:
            self.medium.release()

    def write(self, append: WalAppend, data: bytes) -> None:
        if self.medium.epoch != self.epoch:
            append.complete(FencedError("a newer owner has the medium"))
            return
        self.medium.entries.append((append.position, append.next_position, data))
        append.complete()

    async def trim(self, position: int) -> None:
        await anyio.lowlevel.checkpoint()
        await self.medium.trimming.wait()
        self.medium.trimmed = max(self.medium.trimmed, position)

    async def seal(self) -> None:
        raise InvalidRequestError("not offered")

    def statistics(self) -> WalStatistics:
        return WalStatistics(end_position=self.medium.end, capacity_bytes=self.medium.capacity)

    def close(self) -> None:
        self._closed = True
        self.medium.waiting, mine = (
            [item for item in self.medium.waiting if item[0] is not self],
            [item for item in self.medium.waiting if item[0] is self],
        )
        for _, append, _ in mine:
            append.complete(ClosedError("closed"))


class Words:
    """Fenced words in memory; ``gate`` holds writes up."""

    def __init__(self) -> None:
        self.epoch = 0
        self.index = 0
        self.word = ""
        self.history: list[str] = []
        self.gate = anyio.Event()
        self.gate.set()
        self._written = anyio.Event()

    def note(self, word: str) -> None:
        """A word was written."""
        self.word = word
        self.history.append(word)
        self.index += 1
        self._written.set()

    async def wait(self, done: Callable[[], bool]) -> None:
        """Wait until ``done`` is true after some write."""
        while not done():
            self._written = anyio.Event()
            await self._written.wait()

    def of(self, epoch: int) -> _WordsOf:
        return _WordsOf(self, epoch)


class _WordsOf:
    def __init__(self, words: Words, epoch: int) -> None:
        self._words, self._epoch = words, epoch

    async def read(self, name: str) -> str:
        await anyio.lowlevel.checkpoint()
        return self._words.word

    async def write(self, name: str, value: str, expected: str) -> int:
        await self._words.gate.wait()
        await anyio.lowlevel.checkpoint()
        if self._epoch != self._words.epoch:
            raise FencedError("a newer owner registered")
        if expected != self._words.word:
            raise ConflictError("another word is there")
        self._words.note(value)
        return self._words.index


class Place:
    """Media and words, on which the log of node 1 is opened again and again."""

    def __init__(self, replicas: int = 2, capacity: int = 0, **settings: Any) -> None:
        self.media = [Medium(capacity) for _ in range(replicas)]
        self.words = Words()
        self.settings = Settings.model_validate(
            {
                "replicas": [{"plugin": "wal_steered", "at": at} for at in range(replicas)],
                "drop_after": "60s",
                "return_after": "60s",
                **settings,
            }
        )
        self.spec = penstock_register_wal()

    def _spec(self, kind: str, name: str) -> PluginSpec[Any, Any]:
        @asynccontextmanager
        async def opened(settings: SteeredSettings, services: Services) -> AsyncIterator[SteeredWal]:
            medium = self.media[settings.at]
            await medium.opening.wait()
            if medium.error is not None:
                raise again(medium.error)
            if medium.epoch >= services.epoch:
                raise FencedError(f"a newer owner has the medium: {medium.epoch} {services.epoch}")
            medium.epoch = services.epoch
            medium.identity = medium.identity or f"medium-{next(_numbers)}"
            for _, append, _ in medium.waiting:
                append.complete(FencedError("a newer owner has the medium"))
            medium.waiting = []
            medium.end = medium.entries[-1][1] if medium.entries else medium.end
            wal = SteeredWal(medium, services.epoch)
            try:
                yield wal
            finally:
                wal.close()

        async def identify(settings: SteeredSettings, services: Services) -> str | None:
            await anyio.lowlevel.checkpoint()
            medium = self.media[settings.at]
            if medium.error is not None:
                raise again(medium.error)
            return medium.identity or None

        async def read(settings: SteeredSettings, services: Services) -> AsyncIterator[WalEntry]:
            medium = self.media[settings.at]
            if not medium.identity:
                raise NotFoundError("no log")
            for position, end, data in list(medium.entries):
                await anyio.lowlevel.checkpoint()
                if medium.damage is not None:
                    raise again(medium.damage)
                if end > medium.trimmed:
                    yield WalEntry(position, end, memoryview(data))

        async def describe(settings: SteeredSettings, services: Services) -> Mapping[str, object]:
            return {"entries": len(self.media[settings.at].entries)}

        return WalSpec(
            name="wal_steered",
            summary="",
            settings=SteeredSettings,
            capabilities=WalCapabilities(durability_domain="host", fencing=True, identity=True),
            open=opened,
            read=read,
            describe=describe,
            identify=identify,
        )

    def register(self) -> int:
        """A newer owner registers: its epoch."""
        self.words.index += 10
        self.words.epoch = self.words.index
        return self.words.index

    def services(self, epoch: int) -> Services:
        services = Services(
            node_id=1,
            epoch=epoch,
            cluster_id="test",
            data_dir=Path("/nowhere"),
            allocator=object(),  # type: ignore[arg-type]
            object_store=_NoStore(),  # type: ignore[arg-type]
            clock=time.monotonic,
            words=self.words.of(epoch),
        )
        return Opened(NestedPlugins(self._spec, {})).bind(services, ("wal",), "replicated", self.settings)

    def open(self) -> AbstractAsyncContextManager[ReplicatedWal]:
        """The log, as a newer owner."""
        opened: Any = self.spec.open(self.settings, self.services(self.register()))
        return opened  # type: ignore[no-any-return]

    @asynccontextmanager
    async def recovered(self) -> AsyncIterator[ReplicatedWal]:
        """Open and recovered."""
        async with self.open() as wal:
            await recovered(wal)
            yield wal

    async def read(self) -> list[bytes]:
        """The payloads that a new owner finds."""
        async with self.open() as wal:
            return await recovered(wal)

    def holds(self, at: int) -> list[bytes]:
        """The payloads in a medium."""
        return [data[24:] for _, end, data in self.media[at].entries if end > self.media[at].trimmed]


class _NoStore:
    capabilities = None
    location = "nowhere"


async def recovered(wal: ReplicatedWal) -> list[bytes]:
    """The payloads, in order."""
    return [bytes(entry.data) async for entry in wal.recover()]
