"""Write-ahead logs and object stores that do what they should, and cost more the longer they are used."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from penstock.errors import AlreadyExistsError
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.mutants._wal_in_store import StoreWal
from penstock_conformance.reference._object_store import DirectoryStore
from penstock_conformance.reference._wal import FileWal

WAL = "wal"
STORE = "object_store"


@mutant(WAL, "looks_after_its_file_when_idle", "idle_log_leaves_its_medium_alone", level=5)
class LooksAfterItsFileWhenIdle(FileWal):
    """Syncs every tenth of a second, whether there is something or not."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._timer = asyncio.get_running_loop().call_later(0.1, self._sync_again)

    def _sync_again(self) -> None:
        os.fdatasync(self._file)
        self._timer = asyncio.get_running_loop().call_later(0.1, self._sync_again)

    def close(self) -> None:
        self._timer.cancel()
        super().close()


@mutant(WAL, "writes_every_entry_by_itself", "entries_that_come_together_share_accesses", level=5)
class WritesEveryEntryByItself(FileWal):
    """A write and a sync for each entry."""

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        for item in group:
            super()._write([item])


@mutant(WAL, "remembers_every_append", "long_use_grows_nothing", level=5)
class RemembersEveryAppend(FileWal):
    """Keeps what it answered, for its statistics."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._answered: list[WalAppend] = []

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        self._answered.append(super().append(data, checksum))
        return self._answered[-1]


@mutant(WAL, "remembers_every_trim", "long_use_grows_nothing", level=5)
class RemembersEveryTrim(FileWal):
    """Keeps one small object each time, in a clause that trims once a cycle."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._trims: list[list[int]] = []

    async def trim(self, position: int) -> None:
        self._trims.append([position])
        await super().trim(position)


@mutant(WAL, "opens_its_file_for_each_trim", "long_use_grows_nothing", level=5)
class OpensItsFileForEachTrim(FileWal):
    """And forgets to close it."""

    async def trim(self, position: int) -> None:
        os.dup(self._file)
        await super().trim(position)


@mutant(WAL, "keeps_the_objects_that_it_trims", "long_use_grows_nothing", level=5)
class KeepsTheObjectsThatItTrims(StoreWal):
    """Trimmed is what recovery leaves out; the store keeps everything."""

    async def _drop(self, slots: list[int]) -> None:
        pass


@mutant(STORE, "remembers_what_is_missing", "long_use_grows_nothing", level=5)
class RemembersWhatIsMissing(DirectoryStore):
    """Keeps an object for each key that was asked for."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._asked: list[list[str]] = []

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        self._asked.append([key])
        return await super().get(key, start, end)


@mutant(STORE, "opens_what_it_looks_at", "long_use_grows_nothing", level=5)
class OpensWhatItLooksAt(DirectoryStore):
    """A descriptor for each object whose size was asked for."""

    async def head(self, key: str) -> ObjectInfo:
        os.open(self._path(key), os.O_RDONLY)
        return await super().head(key)


@mutant(WAL, "writes_little_at_a_time", "entries_that_come_together_share_accesses", level=5)
class WritesLittleAtATime(FileWal):
    """A write and a sync for each few thousand bytes: a quarter of a million of them for a gibibyte."""

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        part: list[tuple[WalAppend, list[Buffer]]] = []
        size = 0
        for item in group:
            part.append(item)
            size += sum(map(len, item[1]))
            if size >= 4000:
                super()._write(part)
                part, size = [], 0
        if part:
            super()._write(part)


@mutant(WAL, "keeps_what_it_has_written", "durable_entries_take_no_memory", level=5)
class KeepsWhatItHasWritten(FileWal):
    """For whoever recovers it, until it is trimmed."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._written: list[bytes] = []

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        self._written.append(b"".join(data))
        return append

    async def trim(self, position: int) -> None:
        await super().trim(position)
        self._written = self._written[len(self._written) - len(self._ends) :]


@mutant(WAL, "keeps_what_it_has_recovered", "durable_entries_take_no_memory", level=5)
class KeepsWhatItHasRecovered(FileWal):
    """Has all of them in a list first."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        self._entries_found = [entry async for entry in super().recover()]
        self._recovered = False
        for entry in self._entries_found:
            yield entry
        self._recovered = True


@mutant(STORE, "keeps_files_of_what_it_refused", "long_use_grows_nothing", level=5)
class KeepsFilesOfWhatItRefused(DirectoryStore):
    """Writes a file first, and removes it if it could be named."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        try:
            return await super().put_if_absent(key, body)
        except AlreadyExistsError:
            (self._temporary / os.urandom(8).hex()).write_bytes(b"".join(body))
            raise


@mutant(STORE, "goes_on_for_who_gave_up", "long_use_grows_nothing", level=5)
class GoesOnForWhoGaveUp(DirectoryStore):
    """Keeps the caller's request, to tell of its end some time."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        telling = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        token = await super().put(key, body)
        telling.cancel()
        return token


_ROOM = "who_asks_for_room_asks_no_medium"


@mutant(WAL, "looks_at_its_file_for_room", _ROOM, level=5)
class LooksAtItsFileForRoom(FileWal):
    """Where the log starts is in its header."""

    def would_fit(self, entry_bytes: int) -> bool:
        self._read_header()
        return super().would_fit(entry_bytes)


@mutant(WAL, "looks_for_room_where_something_is_on_its_way", _ROOM, level=5)
class LooksForRoomWhereSomethingIsOnItsWay(FileWal):
    """Otherwise it knows."""

    def would_fit(self, entry_bytes: int) -> bool:
        if self._queue:
            self._read_header()
        return super().would_fit(entry_bytes)
