"""Plugins that are right in one process, and wrong where several meet, or one ends in the middle."""

from __future__ import annotations

__all__ = ()

import fcntl
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, FencedError, UnavailableError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._metadata_log import PlainMetadataLog
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore
from penstock_conformance.reference._wal import FileWal

WAL = "wal"
STORE = "object_store"

#: Between a look and what is done for it.
_BETWEEN_S = 0.003


@mutant(WAL, "looks_at_the_epoch_before_it_locks", "an_epoch_is_of_one_process", level=2)
class LooksAtTheEpochBeforeItLocks(FileWal):
    """Two processes that open at once find the epoch unused."""

    def _take_over(self) -> None:
        if self._read_header().epoch >= self._epoch:
            raise FencedError("a newer owner holds the log, or this epoch was used before")
        time.sleep(_BETWEEN_S)
        with self._locked():
            header = self._read_header()
            if header.epoch > self._epoch:
                raise FencedError("a newer owner holds the log")
            self._header = header._replace(epoch=self._epoch)
            self._write_header()
        self._end = self._confirmed = self._header.start


@mutant(WAL, "has_its_file_away_while_it_recovers", "acknowledged_entries_survive_a_kill", level=3)
class HasItsFileAwayWhileItRecovers(FileWal):
    """Under another name, which only its own process knows: who is killed meanwhile leaves no log."""

    _away: ClassVar[set[Path]] = set()

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        self._give_back(path)
        super().__init__(path, epoch, capacity)

    @classmethod
    def _give_back(cls, path: Path) -> None:
        if path in cls._away:
            path.with_name("away").rename(path)
            cls._away.discard(path)

    async def recover(self) -> AsyncIterator[WalEntry]:
        self._path.rename(self._path.with_name("away"))
        self._away.add(self._path)
        try:
            async for entry in super().recover():
                yield entry
        finally:
            self._give_back(self._path)


@mutant(WAL, "leaves_short_torn_tails", "torn_tail_ends_the_log", level=3)
class LeavesShortTornTails(FileWal):
    """What is appended next writes over them, as far as it goes."""

    def _settle(self, position: int) -> None:
        tail = os.pread(self._file, 4096, position)
        super()._settle(position)
        if len(tail) < 4096:
            os.pwrite(self._file, tail, position)


@mutant(STORE, "makes_again_without_a_lock", "put_if_absent_has_one_winner_among_processes", level=2)
class MakesAgainWithoutALock(DirectoryStore):
    """What was deleted is looked for, and then written."""

    def _mark(self, key: str) -> Path:
        return self._temporary / f"deleted-{self._path(key).name}"

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            if self._path(key).exists():
                self._mark(key).touch()
        await super().delete(keys)

    def _link(self, temporary: Path, key: str) -> None:
        if not self._mark(key).exists():
            super()._link(temporary, key)
            return
        if self._path(key).exists():
            raise AlreadyExistsError(f"the object exists: key={key}")
        time.sleep(_BETWEEN_S)
        temporary.replace(self._path(key))


@mutant(STORE, "creates_over_what_is_put", "put_if_absent_has_one_winner_among_processes", level=2)
class CreatesOverWhatIsPut(DirectoryStore):
    """Creators exclude each other, and nobody who puts."""

    def _link(self, temporary: Path, key: str) -> None:
        with self._creating():
            if self._path(key).exists():
                raise AlreadyExistsError(f"the object exists: key={key}")
            time.sleep(_BETWEEN_S)
            temporary.replace(self._path(key))

    @contextmanager
    def _creating(self) -> Iterator[None]:
        with self._lock_path.with_name("creating").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@mutant(STORE, "swaps_back_what_is_deleted", "swap_loses_no_update_among_processes", level=2)
class SwapsBackWhatIsDeleted(DirectoryStore):
    """Swaps and puts exclude each other, and nobody who deletes."""

    async def delete(self, keys: Sequence[str]) -> None:
        await checkpoint()
        for key in keys:
            self._path(key).unlink(missing_ok=True)
            self._counts.deletes += 1

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        if locked:
            time.sleep(_BETWEEN_S)
        return super()._write(key, body, exclusive=exclusive, locked=locked)


@mutant(STORE, "leaves_a_file_open_that_it_cannot_fill", "full_disk_is_told_and_harms_nothing", level=4)
class LeavesAFileOpenThatItCannotFill(DirectoryStore):
    """Closes a file when all of it is written."""

    def _fill(self, path: Path, parts: Sequence[Buffer]) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT, self._access.file_mode)
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(file, view) :]
        if self._synced:
            os.fsync(file)
        os.close(file)


@mutant("metadata_log", "counts_what_it_failed_to_append", "failed_append_is_told", level=4)
class CountsWhatItFailedToAppend(PlainMetadataLog):
    """The entry isn't there."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except UnavailableError:
            self._appends += 1
            raise


@mutant(STORE, "counts_its_own_versions", "swap_loses_no_update_among_processes", level=2)
class CountsItsOwnVersions(DirectoryStore):
    """Tokens are numbers of what this process has written."""

    _count: ClassVar[Iterator[int]] = itertools.count(1)

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        super()._write(key, body, exclusive=exclusive, locked=locked)
        token = next(self._count).to_bytes(_TOKEN_BYTES, "big")
        with self._path(key).open("r+b") as file:
            file.write(token)
        return token.hex()
