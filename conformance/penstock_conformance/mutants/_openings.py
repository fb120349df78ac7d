"""Plugins that do what they should, and keep something of each opening, or of each use."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from anyio.lowlevel import checkpoint

from penstock.errors import ConflictError
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._allocator import PlainAllocator, _Reservation, _Waiter
from penstock_conformance.reference._block_cache import PlainBlockCache
from penstock_conformance.reference._log_cache import PlainLogCache
from penstock_conformance.reference._metadata_log import PlainMetadataLog
from penstock_conformance.reference._object_store import DirectoryStore, _Upload
from penstock_conformance.reference._partitioner import PlainPartitioner
from penstock_conformance.reference._wal import FileWal

WAL = "wal"
STORE = "object_store"
METADATA = "metadata_log"
ALLOCATOR = "allocator"

#: What a module remembers of the openings of a process.
_openings: list[list[int]] = []


@mutant(WAL, "remembers_each_opening", "opening_leaves_nothing_behind")
class WalRemembersEachOpening(FileWal):
    """Keeps a list of who opened it, one small object each time."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        _openings.append([epoch])


@mutant(WAL, "keeps_a_page_of_each_opening", "opening_leaves_nothing_behind")
class KeepsAPageOfEachOpening(FileWal):
    """Bytes, which the collector doesn't know."""

    _pages: ClassVar[list[bytes]] = []

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._pages.append(os.pread(self._file, 4096, 0))


@mutant(STORE, "remembers_each_opening", "reading_and_writing_leaves_nothing_behind")
class StoreRemembersEachOpening(DirectoryStore):
    """Keeps an object each time."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        _openings.append([len(_openings)])


@mutant(METADATA, "remembers_each_opening", "opening_leaves_nothing_behind")
class LogRemembersEachOpening(PlainMetadataLog):
    """Keeps an object each time."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        _openings.append([len(_openings)])


@mutant("log_cache", "remembers_each_opening", "opening_leaves_nothing_behind")
class CacheRemembersEachOpening(PlainLogCache):
    """Keeps an object each time."""

    def __init__(self) -> None:
        super().__init__()
        _openings.append([len(_openings)])


@mutant("block_cache", "remembers_each_opening", "opening_leaves_nothing_behind")
class BlockCacheRemembersEachOpening(PlainBlockCache):
    """Keeps an object each time."""

    def __init__(self, limit: int, allocator: Any) -> None:
        super().__init__(limit, allocator)
        _openings.append([len(_openings)])


@mutant(ALLOCATOR, "remembers_each_opening", "opening_leaves_nothing_behind")
class AllocatorRemembersEachOpening(PlainAllocator):
    """Keeps an object each time."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        _openings.append([len(_openings)])


@mutant(WAL, "keeps_words_of_what_is_trimmed", "long_use_grows_nothing", level=5)
class KeepsWordsOfWhatIsTrimmed(FileWal):
    """In bytes, which the collector doesn't know."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._words: list[bytes] = []

    def _drop(self, position: int) -> None:
        self._words += [b"%020d" % end for end in self._ends if end <= position]
        super()._drop(position)


class _Looking(FileWal):
    """Reads its file every tenth of a second, once it has begun to."""

    _timer: asyncio.TimerHandle | None = None

    def _look_again(self) -> None:
        os.pread(self._file, 64, 0)
        self._timer = asyncio.get_running_loop().call_later(0.1, self._look_again)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        self._rest()
        super().close()


@mutant(WAL, "looks_at_its_file_until_it_is_used", "idle_log_leaves_its_medium_alone", level=5)
class LooksAtItsFileUntilItIsUsed(_Looking):
    """When it has recovered something, and nothing was appended since."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        found = 0
        async for entry in super().recover():
            found += 1
            yield entry
        if found:
            self._look_again()

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        self._rest()
        return super().append(data, checksum)


@mutant(WAL, "looks_for_its_successor_when_fenced", "idle_log_leaves_its_medium_alone", level=5)
class LooksForItsSuccessorWhenFenced(_Looking):
    """A fenced owner has nothing to do, and asks on."""

    def _fail(self, state: str, group: list[tuple[WalAppend, list[Buffer]]], error: Exception) -> None:
        super()._fail(state, group, error)
        if state == "fenced":
            self._look_again()


class _KeptUpload(_Upload):
    _kept: ClassVar[list[bytes]] = []

    async def complete(self) -> None:
        self._kept.append(b"".join(self._parts))
        await super().complete()


@mutant(STORE, "keeps_what_it_completed", "long_use_grows_nothing", level=5)
class KeepsWhatItCompleted(DirectoryStore):
    """The bytes of each upload in parts."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _KeptUpload(self, key)


@mutant(METADATA, "keeps_who_gave_up_waiting", "long_use_grows_nothing", level=5)
class KeepsWhoGaveUpWaiting(PlainMetadataLog):
    """Who was cancelled stays in its list."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._waiting: list[list[int]] = []

    async def wait_for_news(self, after_index: int) -> None:
        await checkpoint()
        while self._last_index <= after_index:
            self._check_open()
            mine = [after_index]
            self._waiting.append(mine)
            await self._news.wait()
            self._waiting.remove(mine)
        self._check_open()


@mutant(METADATA, "keeps_what_met_a_conflict", "long_use_grows_nothing", level=5)
class KeepsWhatMetAConflict(PlainMetadataLog):
    """The bytes of each entry whose index was taken."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._lost: list[bytes] = []

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            self._lost.append(data)
            raise


@mutant(ALLOCATOR, "keeps_a_number_of_each_reservation", "long_use_grows_nothing", level=5)
class KeepsANumberOfEachReservation(PlainAllocator):
    """A number in a list, which the collector doesn't know."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._sizes: list[int] = []

    def reserve(self, size: int, purpose: str) -> _Reservation:
        self._sizes.append(size * 1000 + len(self._sizes))
        return super().reserve(size, purpose)


@mutant(ALLOCATOR, "keeps_a_number_of_each_who_gives_up", "long_use_grows_nothing", level=5)
class KeepsANumberOfEachWhoGivesUp(PlainAllocator):
    """As above, of waits that are cancelled."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._given_up: list[int] = []

    def _give_up(self, waiter: _Waiter) -> None:
        self._given_up.append(waiter.size * 1000 + len(self._given_up))
        super()._give_up(waiter)


@mutant(WAL, "leaves_the_task_of_a_trim_that_was_given_up", "long_use_grows_nothing", level=5)
class LeavesTheTaskOfATrimThatWasGivenUp(FileWal):
    """The trim is a task's, and who asked tells it to begin, unless he is gone."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._tasks: set[asyncio.Task[None]] = set()

    async def trim(self, position: int) -> None:
        position = min(position, self._confirmed)
        begin = asyncio.Event()

        async def drop() -> None:
            await begin.wait()
            self._drop(position)

        task = asyncio.get_running_loop().create_task(drop())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await checkpoint()
        begin.set()
        await asyncio.shield(task)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        super().close()


# --- ends by an error or a cancellation


@mutant(WAL, "keeps_its_file_when_it_ends_early", "opening_leaves_nothing_behind")
class KeepsItsFileWhenItEndsEarly(FileWal):
    """Closes it behind its ``yield``, and writes what waits in any case."""

    def close(self) -> None:
        if sys.exc_info()[1] is not None:
            os.dup(self._file)
        super().close()


@mutant(METADATA, "keeps_a_thread_when_it_ends_early", "opening_leaves_nothing_behind")
class KeepsAThreadWhenItEndsEarly(PlainMetadataLog):
    """Ends it behind its ``yield``."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._end = threading.Event()
        threading.Thread(target=self._end.wait, daemon=True).start()

    def close(self) -> None:
        super().close()
        if sys.exc_info()[1] is None:
            self._end.set()


@mutant("partitioner", "is_remembered_when_it_ends_early", "opening_leaves_nothing_behind")
class IsRememberedWhenItEndsEarly(PlainPartitioner):
    """Is on a list as long as it is open."""

    _open: ClassVar[list[PlainPartitioner]] = []

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._open.append(self)

    def close(self) -> None:
        if sys.exc_info()[1] is None:
            self._open.remove(self)
