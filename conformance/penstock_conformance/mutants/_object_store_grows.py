"""Object stores that are wrong about objects that grow."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from penstock.errors import ConflictError, NotFoundError, UnavailableError
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore

KIND = "object_store"

_TOLD = "appends_are_told_as_any_other_write"
_STEP = 65_536


@mutant(KIND, "grows_piece_by_piece", "appends_are_whole_or_not_at_all")
class GrowsPieceByPiece(DirectoryStore):
    """Each a write of its own."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        whole = b"".join(body)
        token = await super().append(key, [whole[:_STEP]], offset)
        for at in range(_STEP, len(whole), _STEP):
            token = await super().append(key, [whole[at : at + _STEP]], offset + at)
        return token


@mutant(KIND, "writes_what_it_appends_later", _TOLD)
class WritesWhatItAppendsLater(DirectoryStore):
    """Makes room, and fills it from the caller's buffers."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        token = await super().append(key, [bytes(len(part)) for part in body], offset)
        asyncio.get_running_loop().call_later(0.003, self._fill_in, key, body, offset)
        return token

    def _fill_in(self, key: str, body: Sequence[Buffer], offset: int) -> None:
        with self._path(key).open("r+b") as file:
            file.seek(_TOKEN_BYTES + offset)
            file.writelines(body)


@mutant(KIND, "appends_to_no_empty_object", _TOLD)
class AppendsToNoEmptyObject(DirectoryStore):
    """At 0 it makes one."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        if not offset and self._path(key).exists():
            raise ConflictError(f"the object exists: key={key}")
        return await super().append(key, body, offset)


@mutant(KIND, "appends_few_buffers", _TOLD)
class AppendsFewBuffers(DirectoryStore):
    """As many as the system takes at once."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        return await super().append(key, body[: os.sysconf("SC_IOV_MAX")], offset)


@mutant(KIND, "swaps_what_has_grown", _TOLD)
class SwapsWhatHasGrown(DirectoryStore):
    """What has grown is still the same object."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        before = self._info(key).token if self._path(key).exists() else ""
        self._older = {before: await super().append(key, body, offset)}
        return self._older[before]

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        return await super().compare_and_swap(key, body, self._older.get(token, token))


@mutant(KIND, "lists_what_was_put", _TOLD)
class ListsWhatWasPut(DirectoryStore):
    """What has grown since is listed as it began."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        token = await super().append(key, body, offset)
        self._put = {token: offset}
        return token

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after):
            yield replace(info, size=getattr(self, "_put", {}).get(info.token, info.size))


@mutant(KIND, "counts_no_appends", _TOLD)
class CountsNoAppends(DirectoryStore):
    """Counts what is put."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        puts, written = self._counts.puts, self._counts.bytes_written
        token = await super().append(key, body, offset)
        self._counts.puts, self._counts.bytes_written = puts, written
        return token


@mutant(KIND, "fails_where_an_object_ends_elsewhere", _TOLD)
class FailsWhereAnObjectEndsElsewhere(DirectoryStore):
    """Each time is a failure more."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        try:
            return await super().append(key, body, offset)
        except ConflictError:
            self._counts.errors += 1
            raise


@mutant(KIND, "keeps_the_time_of_the_put", _TOLD)
class KeepsTheTimeOfThePut(DirectoryStore):
    """An object is as old as its beginning."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        began = self._path(key).stat().st_mtime_ns if self._path(key).exists() else 0
        token = await super().append(key, body, offset)
        if began:
            os.utime(self._path(key), ns=(began, began))
        return token


@mutant(KIND, "appends_elsewhere_in_an_outage", "outage_is_not_emptiness", level=4)
class AppendsElsewhereInAnOutage(DirectoryStore):
    """An end that can't be seen is another one."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        try:
            return await super().append(key, body, offset)
        except UnavailableError:
            raise ConflictError(f"the object ends elsewhere: key={key}") from None


@mutant(KIND, "grows_in_place_on_a_full_disk", "full_disk_is_told_and_harms_nothing", level=4)
class GrowsInPlaceOnAFullDisk(DirectoryStore):
    """Writes behind what is there, as far as there is room."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        try:
            if self._info(key).size != offset:
                raise ConflictError(f"the object ends elsewhere: key={key}")
        except NotFoundError:
            return await super().append(key, body, offset)
        try:
            with self._path(key).open("ab", buffering=0) as file:
                for part in body:
                    file.write(part)
        except OSError as error:
            raise UnavailableError("the medium failed") from error
        return self._info(key).token


@mutant(KIND, "remembers_where_objects_end", "append_minds_what_other_openers_did")
class RemembersWhereObjectsEnd(DirectoryStore):
    """Looks at no object that it has appended to itself."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._grown: dict[str, bytes] = {}

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        there = self._grown.get(key)
        if there is None or len(there) != offset:
            token = await super().append(key, body, offset)
            there = self._read(key)[_TOKEN_BYTES : _TOKEN_BYTES + offset]
        else:
            token = await self.put(key, [there, *body])
        self._grown[key] = b"".join([there, *body])
        return token


@mutant(KIND, "syncs_no_appends", "completed_puts_are_on_the_disk", level=3, on_disk=True)
class SyncsNoAppends(DirectoryStore):
    """Syncs objects as they are put, and forgets them when they grow."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        self._synced = False
        try:
            return await super().append(key, body, offset)
        finally:
            self._synced = True


@mutant(KIND, "grows_files_for_everybody", "files_are_for_nobody_else")
class GrowsFilesForEverybody(DirectoryStore):
    """Lets everybody through its directories, and read what has grown."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        for folder in (directory, self._objects):
            folder.chmod(0o711)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        token = await super().append(key, body, offset)
        self._path(key).chmod(0o666)
        return token


@mutant(KIND, "tells_what_it_could_not_append", "outage_is_not_emptiness", level=4)
class TellsWhatItCouldNotAppend(DirectoryStore):
    """So that somebody may do it by hand."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        try:
            return await super().append(key, body, offset)
        except UnavailableError as error:
            raise UnavailableError(f"{error} body={b''.join(body)!r}") from None


@mutant(KIND, "grows_under_its_readers", _TOLD)
class GrowsUnderItsReaders(DirectoryStore):
    """Has what it read last at hand, and lets that grow with its object."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._at_hand: dict[str, bytearray] = {}

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        found = await super().get(key, start, end)
        if start or end is not None:
            return found
        self._at_hand = {key: bytearray(found)}
        return memoryview(self._at_hand[key])

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        token = await super().append(key, body, offset)
        if key in self._at_hand:
            self._at_hand[key] += b"".join(body)
        return token


@mutant(KIND, "appends_four_mebibytes_at_most", "bodies_of_round_sizes_come_back_whole")
class AppendsFourMebibytesAtMost(DirectoryStore):
    """As much as a request holds."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        return await super().append(key, [b"".join(body)[: 4 * 2**20]], offset)
