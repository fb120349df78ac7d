"""Object stores that are wrong for who asks at the same time as others."""

from __future__ import annotations

__all__ = ()

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint

from penstock.errors import NotFoundError, UnavailableError
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore, _Upload

KIND = "object_store"

_AT_ONCE = "what_is_asked_at_once_is_each_for_itself"


class _Joins(DirectoryStore):
    """Asks the medium once for those who ask at once."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._asked: dict[object, asyncio.Task[Any]] = {}

    async def _join(self, question: object, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        task = self._asked.get(question)
        if task is None:
            task = self._asked[question] = asyncio.get_running_loop().create_task(ask())
            task.add_done_callback(lambda _: self._asked.pop(question))
        return await asyncio.shield(task)


async def _linger() -> None:
    for _ in range(6):
        await checkpoint()


@mutant(KIND, "joins_ranges_that_begin_alike", _AT_ONCE)
class JoinsRangesThatBeginAlike(_Joins):
    """Takes the key and the start for the question."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        found: Buffer = await self._join((key, start), lambda: DirectoryStore.get(self, key, start, end))
        return found


@mutant(KIND, "joins_what_was_read_before_a_put", _AT_ONCE)
class JoinsWhatWasReadBeforeAPut(_Joins):
    """Joins those who come when the bytes were read, and have yet to be handed over."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        async def ask() -> Buffer:
            found = await DirectoryStore.get(self, key, start, end)
            await _linger()
            return found

        found: Buffer = await self._join((key, start, end), ask)
        return found


@mutant(KIND, "joins_listings_of_before_a_put", _AT_ONCE)
class JoinsListingsOfBeforeAPut(_Joins):
    """Joins listings likewise."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async def ask() -> Sequence[ObjectInfo]:
            found = [info async for info in DirectoryStore.list(self, prefix, start_after)]
            await _linger()
            return found

        for info in await self._join((prefix, start_after), ask):
            yield info


@mutant(KIND, "reads_end_with_the_first_reader", _AT_ONCE)
class ReadsEndWithTheFirstReader(DirectoryStore):
    """Whoever asks first reads for all; when he is cancelled, so is everybody's read."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._asked: dict[object, asyncio.Future[Buffer]] = {}

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        question = (key, start, end)
        if question in self._asked:
            return await asyncio.shield(self._asked[question])
        answer = self._asked[question] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.exception())
        try:
            await _linger()
            answer.set_result(await super().get(key, start, end))
        except BaseException as error:
            answer.set_exception(
                error
                if isinstance(error, Exception)
                else UnavailableError("the read was given up, try again")
            )
            raise
        finally:
            del self._asked[question]
        found: Buffer = answer.result()
        return found


@mutant(KIND, "trips_over_another_deletion", _AT_ONCE)
class TripsOverAnotherDeletion(DirectoryStore):
    """Looks which objects are there, and deletes those."""

    async def delete(self, keys: Sequence[str]) -> None:
        there = [key for key in dict.fromkeys(keys) if self._path(key).exists()]
        await checkpoint()
        for key in there:
            try:
                self._path(key).unlink()
            except FileNotFoundError as error:
                raise NotFoundError(f"no such object: key={key}") from error
        self._counts.deletes += len(keys)


@mutant(KIND, "ends_a_listing_at_what_vanished", "listings_are_each_for_itself")
class EndsAListingAtWhatVanished(DirectoryStore):
    """Takes a file that went meanwhile for the end."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        keys = [info.key async for info in super().list(prefix, start_after)]
        for key in keys:
            if not self._path(key).exists():
                return
            yield self._info(key)


@mutant(KIND, "joins_reads_of_one_range", "many_tasks_work_beside_each_other")
class JoinsReadsOfOneRange(DirectoryStore):
    """Readers of the same range share one read, whatever the object."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._under_way: dict[tuple[int, int | None], list[Buffer]] = {}

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        if not start:
            return await super().get(key, start, end)
        joined = self._under_way.get((start, end))
        if joined is not None:
            while not joined:
                await checkpoint()
            return joined[0]
        mine = self._under_way[start, end] = []
        try:
            mine.append(await super().get(key, start, end))
        finally:
            del self._under_way[start, end]
        return mine[0]


@mutant(KIND, "swaps_in_place_what_is_as_large", "objects_appear_whole_between_processes", level=2)
class SwapsInPlaceWhatIsAsLarge(DirectoryStore):
    """Writes over an object of the same size, and gives readers time for its halves."""

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        data, path = b"".join(body), self._path(key)
        if exclusive or not locked or self._info(key).size != len(data):
            return super()._write(key, body, exclusive=exclusive, locked=locked)
        token = secrets.token_bytes(_TOKEN_BYTES)
        half = len(data) // 2
        with path.open("r+b", buffering=0) as file:
            file.write(token + data[:half])
            time.sleep(0.05)
            file.write(data[half:])
        return token.hex()


class _UploadInFiles(_Upload):
    """Has its parts in a file of its own until it is completed."""

    def __init__(self, store: _HasUploadsInFiles, key: str) -> None:
        super().__init__(store, key)
        self._path = store.uploads / secrets.token_hex(8)

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await checkpoint()
        with self._path.open("ab") as file:
            file.writelines(part)

    async def complete(self) -> None:
        self._parts = [self._path.read_bytes() if self._path.exists() else b""]
        self._path.unlink(missing_ok=True)
        await super().complete()

    async def abort(self) -> None:
        self._path.unlink(missing_ok=True)
        await super().abort()


class _HasUploadsInFiles(DirectoryStore):
    """Clears up what nobody completed."""

    knows_who_looks = True

    def __init__(self, directory: Path, *, synced: bool = True, read_only: bool = False) -> None:
        super().__init__(directory, synced=synced, read_only=read_only)
        self.uploads = self._temporary
        if self._clears_up(read_only):
            for path in self.uploads.glob("*"):
                path.unlink()

    def _clears_up(self, read_only: bool) -> bool:
        raise NotImplementedError

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _UploadInFiles(self, key)


@mutant(KIND, "clears_up_for_who_looks", "who_only_looks_makes_nothing")
class ClearsUpForWhoLooks(_HasUploadsInFiles):
    """Looking takes no room, and makes some."""

    def _clears_up(self, read_only: bool) -> bool:
        return read_only


@mutant(KIND, "clears_up_as_it_opens", "openers_end_each_for_itself")
class ClearsUpAsItOpens(_HasUploadsInFiles):
    """Whatever is there is of somebody who is gone."""

    def _clears_up(self, read_only: bool) -> bool:
        return not read_only
