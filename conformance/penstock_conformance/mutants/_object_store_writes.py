"""Broken object stores: what is right for one way of writing, and wrong for another."""

from __future__ import annotations

__all__ = ()

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from anyio.lowlevel import checkpoint

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.files import ACCESSES
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore, _Upload

KIND = "object_store"

_LARGE_BYTES = 2**20
_PIECE_BYTES = 64 * 1024


def _size(body: Sequence[Buffer]) -> int:
    return sum(map(len, body))


@mutant(KIND, "creates_in_place", "objects_appear_whole_between_processes", level=2)
class CreatesInPlace(DirectoryStore):
    """Creates the file exclusively, which has one winner, and then fills it."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        token = secrets.token_bytes(_TOKEN_BYTES)
        try:
            with self._path(key).open("xb", buffering=0) as file:
                for part in (token, *body):
                    for start in range(0, len(part), _PIECE_BYTES):
                        file.write(memoryview(part)[start : start + _PIECE_BYTES])
        except FileExistsError:
            raise AlreadyExistsError(f"the object exists: key={key}") from None
        return token.hex()


@mutant(KIND, "creates_step_by_step", "each_way_of_writing_is_atomic", "each_way_of_writing_may_be_cancelled")
class CreatesStepByStep(DirectoryStore):
    """Creates the file exclusively, and awaits as it fills it."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        token = secrets.token_bytes(_TOKEN_BYTES)
        try:
            with self._path(key).open("xb", buffering=0) as file:
                for part in (token, *body):
                    file.write(part)
                    await checkpoint()
        except FileExistsError:
            raise AlreadyExistsError(f"the object exists: key={key}") from None
        return token.hex()


class _UploadInPlace(_Upload):
    async def complete(self) -> None:
        token = secrets.token_bytes(_TOKEN_BYTES)
        with self._store._path(self._key).open("wb", buffering=0) as file:
            for part in (token, *self._parts):
                file.write(part)
                await checkpoint()


@mutant(KIND, "completes_in_place", "each_way_of_writing_is_atomic", "each_way_of_writing_may_be_cancelled")
class CompletesInPlace(DirectoryStore):
    """Puts the parts together where the object is."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _UploadInPlace(self, key)


class _UploadThatMakesRoom(_Upload):
    async def complete(self) -> None:
        await self._store.delete([self._key])
        await super().complete()


@mutant(KIND, "deletes_before_it_completes", "each_way_of_writing_is_atomic")
class DeletesBeforeItCompletes(DirectoryStore):
    """Makes room for the object that an upload replaces."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _UploadThatMakesRoom(self, key)


@mutant(KIND, "swaps_in_place", "each_way_of_writing_is_atomic", "each_way_of_writing_may_be_cancelled")
class SwapsInPlace(DirectoryStore):
    """Holds a lock against other writers, and no reader knows of it."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        if self._info(key).token != token:
            return await super().compare_and_swap(key, body, token)
        new = secrets.token_bytes(_TOKEN_BYTES)
        with self._path(key).open("wb", buffering=0) as file:
            for part in (new, *body):
                file.write(part)
                await checkpoint()
        return new.hex()


@mutant(KIND, "puts_large_objects_in_place", "each_way_of_writing_is_atomic")
class PutsLargeObjectsInPlace(DirectoryStore):
    """Small objects are replaced; large ones would need the room twice."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if _size(body) <= _LARGE_BYTES:
            return await super().put(key, body)
        token = secrets.token_bytes(_TOKEN_BYTES)
        with self._path(key).open("wb", buffering=0) as file:
            for part in (token, *body):
                file.write(part)
                await checkpoint()
        return token.hex()


@mutant(KIND, "reads_large_objects_in_pieces", "each_way_of_writing_is_atomic")
class ReadsLargeObjectsInPieces(DirectoryStore):
    """Asks for a mebibyte at a time, of whatever object is there then."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        size = (await self.head(key)).size
        if size <= _LARGE_BYTES or start or end is not None:
            return await super().get(key, start, end)
        pieces: list[Buffer] = []
        for at in range(0, size, _LARGE_BYTES):
            try:
                pieces.append(await super().get(key, at, at + _LARGE_BYTES))
            except InvalidRequestError:
                break  # it is shorter now
        return b"".join(pieces)


@mutant(KIND, "keeps_the_creators_buffer", "no_way_of_writing_keeps_a_buffer")
class KeepsTheCreatorsBuffer(DirectoryStore):
    """Answers first, and writes what was created when the loop has time."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        token = await super().put_if_absent(key, [bytes(_size(body))])
        kept = list(body)

        def fill() -> None:
            self._path(key).write_bytes(b"".join([bytes.fromhex(token), *kept]))

        asyncio.get_running_loop().call_soon(fill)
        return token


@mutant(KIND, "swaps_large_objects_blindly", "swap_minds_the_token_at_every_size")
class SwapsLargeObjectsBlindly(DirectoryStore):
    """Uploads what is large in parts, which know no condition."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        if _size(body) > _LARGE_BYTES:
            return await self.put(key, body)
        return await super().compare_and_swap(key, body, token)


@mutant(KIND, "takes_an_empty_body_for_none", "swap_minds_the_token_at_every_size")
class TakesAnEmptyBodyForNone(DirectoryStore):
    """Has nothing to write where there are no bytes."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        if not _size(body):
            return (await self.head(key)).token
        return await super().compare_and_swap(key, body, token)


class _UploadOfSomething(_Upload):
    async def complete(self) -> None:
        if any(self._parts):
            await super().complete()


@mutant(KIND, "completes_no_empty_upload", "what_was_written_is_told_alike")
class CompletesNoEmptyUpload(DirectoryStore):
    """An upload without bytes is none."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _UploadOfSomething(self, key)


class _UploadWithTheSizeOfItsEnd(_Upload):
    async def complete(self) -> None:
        await super().complete()
        _SizesOfParts.sizes[self._key] = len(self._parts[-1]) if self._parts else 0


@mutant(KIND, "tells_the_size_of_the_last_part", "what_was_written_is_told_alike")
class _SizesOfParts(DirectoryStore):
    """Knows of an upload what it heard last."""

    sizes: ClassVar[dict[str, int]] = {}

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _UploadWithTheSizeOfItsEnd(self, key)

    async def head(self, key: str) -> ObjectInfo:
        info = await super().head(key)
        return replace(info, size=self.sizes.get(key, info.size))


@mutant(KIND, "lists_other_tokens", "what_was_written_is_told_alike")
class ListsOtherTokens(DirectoryStore):
    """The token of a listing is the key's."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after):
            yield replace(info, token=info.key)


@mutant(KIND, "tells_seconds", "what_was_written_is_told_alike")
class TellsSeconds(DirectoryStore):
    """The time of the last change in the unit that the system has; each object is older than any grace."""

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return replace(info, modified_ms=info.modified_ms // 1000)


@mutant(KIND, "tells_local_time", "what_was_written_is_told_alike")
class TellsLocalTime(DirectoryStore):
    """Takes the server's UTC for the time of its own zone."""

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return replace(info, modified_ms=info.modified_ms - 3_600_000)


@mutant(KIND, "refuses_ranges_of_nothing", "ranges_of_empty_objects_are_empty")
class RefusesRangesOfNothing(DirectoryStore):
    """Asks for a range, and an empty object has none (416)."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        if (start, end) != (0, None) and not (await self.head(key)).size:
            raise InvalidRequestError(f"the range isn't satisfiable: key={key}")
        return await super().get(key, start, end)


@mutant(KIND, "counts_ends_in_32_bits", "ranges_of_empty_objects_are_empty")
class CountsEndsIn32Bits(DirectoryStore):
    """Cuts an end off that no object has."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        return await super().get(key, start, None if end is None else max(start, end & 0xFFFF_FFFF))


@mutant(KIND, "ends_where_its_place_is_deleted", "listings_are_each_for_itself")
class EndsWhereItsPlaceIsDeleted(DirectoryStore):
    """Goes on behind the object that it told last, if that is still there."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        last = ""
        async for info in super().list(prefix, start_after):
            if last and not await self._is_there(last):
                return
            last = info.key
            yield info

    async def _is_there(self, key: str) -> bool:
        try:
            await self.head(key)
        except NotFoundError:
            return False
        return True


@mutant(KIND, "has_one_cursor", "listings_are_each_for_itself")
class HasOneCursor(DirectoryStore):
    """Remembers where the listing of pages is, and there is one such place."""

    _cursor = ""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self._cursor = max(start_after, self._cursor)
        while True:
            page = [info async for info in super().list(prefix, self._cursor)][:10]
            if not page:
                break
            for info in page:
                self._cursor = info.key
                yield info
        self._cursor = ""


@mutant(KIND, "closes_what_is_shared", "openers_end_each_for_itself")
class ClosesWhatIsShared(DirectoryStore):
    """One client for all openers of a place, which ends with the first of them."""

    _clients: ClassVar[dict[Path, list[bool]]] = {}

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._is_open = self._clients.setdefault(directory, [True])
        self._is_open[0] = True

    def close(self) -> None:
        self._is_open[0] = False

    def _read(self, key: str) -> bytes:
        if not self._is_open[0]:
            raise UnavailableError("the session is closed")
        return super()._read(key)


@mutant(
    KIND,
    "looks_before_it_creates_large_objects_elsewhere",
    "large_objects_have_one_creator_among_processes",
    level=2,
)
class LooksBeforeItCreatesLargeObjectsElsewhere(DirectoryStore):
    """Large objects are created in two steps, under a lock of this process."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._creating = asyncio.Lock()

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if _size(body) <= _LARGE_BYTES:
            return await super().put_if_absent(key, body)
        async with self._creating:
            if self._path(key).exists():
                raise AlreadyExistsError(f"the object exists: key={key}")
            return await self.put(key, body)


@mutant(KIND, "leaves_half_of_what_it_creates", "created_and_completed_objects_survive_a_kill", level=3)
class LeavesHalfOfWhatItCreates(CreatesInPlace):
    """A crash leaves what was written until then."""


@mutant(KIND, "forgets_what_it_created", "created_and_completed_objects_survive_a_kill", level=3)
class ForgetsWhatItCreated(DirectoryStore):
    """Created objects are small, and are written together."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._kept: dict[str, bytes] = {}

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        if key in self._kept or self._path(key).exists():
            raise AlreadyExistsError(f"the object exists: key={key}")
        self._kept[key] = b"".join(body)
        if len(self._kept) > 4:
            self.close()
        return ""

    def close(self) -> None:
        for key, body in self._kept.items():
            self._write(key, [body], exclusive=False)
        self._kept.clear()

    def _read(self, key: str) -> bytes:
        return bytes(_TOKEN_BYTES) + self._kept[key] if key in self._kept else super()._read(key)


@mutant(KIND, "tells_the_time_of_the_look", "time_of_an_object_is_that_of_its_newest_put")
class TellsTheTimeOfTheLook(DirectoryStore):
    """No object ever gets old, so what nobody needs is never removed."""

    def _info(self, key: str) -> ObjectInfo:
        return replace(super()._info(key), modified_ms=time.time_ns() // 1_000_000)


@mutant(KIND, "tells_the_time_of_the_first_put", "time_of_an_object_is_that_of_its_newest_put")
class TellsTheTimeOfTheFirstPut(DirectoryStore):
    """What was put again is as old as before, and is removed as if nobody needed it."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._first: dict[str, int] = {}

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return replace(info, modified_ms=self._first.setdefault(key, info.modified_ms))


@mutant(KIND, "takes_lists_only", "no_way_of_writing_keeps_a_buffer")
class TakesListsOnly(DirectoryStore):
    """Adds to the body what it writes behind it."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await super().put(key, body + [])  # type: ignore[operator]


class _KeepsLoneBuffers(_Upload):
    async def write_part(self, part: Sequence[Buffer]) -> None:
        await checkpoint()
        self._parts.append(part[0] if len(part) == 1 else b"".join(part))  # type: ignore[arg-type]


@mutant(KIND, "keeps_the_only_buffer_of_a_part", "multipart_appears_whole")
class KeepsTheOnlyBufferOfAPart(DirectoryStore):
    """Copies where it has to join, and writes when the upload is completed."""

    async def create_multipart(self, key: str) -> _Upload:
        return _KeepsLoneBuffers(self, key)


@mutant(KIND, "counts_the_puts_of_a_key", "swap_needs_the_current_token")
class CountsThePutsOfAKey(DirectoryStore):
    """Has the number of the put for a token, which begins anew with an object."""

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        try:
            number = int(self._info(key).token, 16) + 1
        except NotFoundError:
            number = 1
        super()._write(key, body, exclusive=exclusive, locked=locked)
        token = number.to_bytes(_TOKEN_BYTES, "big")
        with self._path(key).open("r+b") as file:
            file.write(token)
        return token.hex()


@mutant(KIND, "looks_at_the_range_first", "missing_object_is_not_found")
class LooksAtTheRangeFirst(DirectoryStore):
    """Takes an object that isn't there for one without bytes."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        try:
            return await super().get(key, start, end)
        except NotFoundError:
            if start:
                raise InvalidRequestError(f"the range starts past the object: {key=} {start=}") from None
            raise


_PRIVATE = "files_are_for_nobody_else"


@mutant(KIND, "makes_files_for_everybody", _PRIVATE)
class MakesFilesForEverybody(DirectoryStore):
    """Leaves to the umask what others may read."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced, access=ACCESSES["everybody"])


@mutant(KIND, "lets_others_put_files", _PRIVATE)
class LetsOthersPutFiles(DirectoryStore):
    """Hides its files, and leaves their directory to the umask."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        directory.chmod(0o711)
        self._objects.chmod(0o733)


@mutant(KIND, "makes_files_for_its_owner_only", _PRIVATE)
class MakesFilesForItsOwnerOnly(DirectoryStore):
    """Isn't told that a group may read them."""


@mutant(KIND, "swaps_for_the_token_of_another_object", "swap_needs_the_current_token")
class SwapsForTheTokenOfAnotherObject(DirectoryStore):
    """Looks whether there is such a token."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        if token in [self._info(other).token for other in self._keys()]:
            with suppress(NotFoundError):
                token = self._info(key).token
        return await super().compare_and_swap(key, body, token)


@mutant(KIND, "aborts_all_uploads_of_a_key", "uploads_of_one_key_do_not_mix")
class AbortsAllUploadsOfAKey(DirectoryStore):
    """Looks up what is to be aborted by its key."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._uploads: dict[str, list[_Upload]] = {}

    async def create_multipart(self, key: str) -> _Upload:
        uploads = self._uploads.setdefault(key, [])
        uploads.append(_AbortsAll(self, key, uploads))
        return uploads[-1]


class _AbortsAll(_Upload):
    def __init__(self, store: DirectoryStore, key: str, uploads: list[_Upload]) -> None:
        super().__init__(store, key)
        self._uploads = uploads

    async def abort(self) -> None:
        await super().abort()
        for upload in self._uploads:
            upload._parts.clear()


@mutant(KIND, "remembers_what_is_often_asked_for", "overwritten_objects_are_read_anew")
class RemembersWhatIsOftenAskedFor(DirectoryStore):
    """Keeps what it told of an object, until it writes that itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._told: dict[str, list[ObjectInfo]] = {}

    async def head(self, key: str) -> ObjectInfo:
        told = self._told.setdefault(key, [])
        if len(told) < 3:
            told.append(await super().head(key))
        return told[-1]

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        self._told.pop(key, None)
        return await super().put(key, body)

    async def delete(self, keys: Sequence[str]) -> None:
        self._told.clear()
        await super().delete(keys)


class _CountsAsErrors(DirectoryStore):
    """Counts some answers as calls that failed."""

    _answer: ClassVar[type[Exception]]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            with super()._counted():
                yield
        except self._answer:
            self._counts.errors += 1
            raise


@mutant(KIND, "counts_refused_creations_as_errors", "statistics_count")
class CountsRefusedCreationsAsErrors(_CountsAsErrors):
    """Nothing was put."""

    _answer = AlreadyExistsError


@mutant(KIND, "counts_missing_objects_as_errors", "statistics_count")
class CountsMissingObjectsAsErrors(_CountsAsErrors):
    """Nothing was found."""

    _answer = NotFoundError


@mutant(KIND, "counts_refused_swaps_as_errors", "statistics_count")
class CountsRefusedSwapsAsErrors(_CountsAsErrors):
    """Nothing was swapped."""

    _answer = ConflictError


@mutant(KIND, "deletes_the_first_of_a_tuple", "deleted_objects_are_gone")
class DeletesTheFirstOfATuple(DirectoryStore):
    """Takes what isn't a list for a pair of a key and something else."""

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys if isinstance(keys, list) else keys[:1])


@mutant(KIND, "creates_from_two_buffers", "no_way_of_writing_keeps_a_buffer")
class CreatesFromTwoBuffers(DirectoryStore):
    """A tuple is a head and a body."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        return await super().put_if_absent(key, body if isinstance(body, list) else body[:2])


@mutant(KIND, "refuses_places_beyond_any_object", "missing_object_is_not_found")
class RefusesPlacesBeyondAnyObject(DirectoryStore):
    """Objects aren't that large, whether there is one or not."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        if start > 2**39:
            raise InvalidRequestError(f"the range starts past the object: key={key} start={start}")
        return await super().get(key, start, end)


@mutant(KIND, "has_six_large_buffers", "result_of_get_outlives_the_object")
class HasSixLargeBuffers(DirectoryStore):
    """Nobody holds more at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._buffers = [bytearray(_LARGE_BYTES) for _ in range(6)]

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        found = super()._range(body, start, end)
        if not _PIECE_BYTES < len(found) <= _LARGE_BYTES:
            return found
        buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        buffer[: len(found)] = found
        return memoryview(buffer)[: len(found)].toreadonly()  # type: ignore[return-value] # a buffer is as good


@mutant(KIND, "takes_equal_bytes_for_its_own_swap", "swap_needs_the_current_token")
class TakesEqualBytesForItsOwnSwap(DirectoryStore):
    """Resolves a swap as it resolves a creation: by reading back."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        try:
            return await super().compare_and_swap(key, body, token)
        except ConflictError:
            with suppress(NotFoundError):
                if bytes(await self.get(key)) == b"".join(body):
                    return (await self.head(key)).token
            raise


class _LargeAndGone(_Upload):
    """An upload whose parts are in a file of its own that ``abort`` looks for, if they are many."""

    async def abort(self) -> None:
        if _size(self._parts) > _LARGE_BYTES:
            await self._store.delete([self._key])
        await super().abort()


@mutant(KIND, "aborts_what_is_large_and_complete", "aborted_multipart_leaves_nothing")
class AbortsWhatIsLargeAndComplete(DirectoryStore):
    """Large uploads are written in place, and aborted there."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _LargeAndGone(self, key)


class _AbortedOnceMore(_Upload):
    """Minds the second time that nobody expected."""

    _times = 0

    async def abort(self) -> None:
        self._times += 1
        if self._times > 2:
            raise NotFoundError("there is no such upload")
        await super().abort()


@mutant(KIND, "minds_the_third_abort", "aborted_multipart_leaves_nothing")
class MindsTheThirdAbort(DirectoryStore):
    """Two are usual: one of who failed, one of who cleans up."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _AbortedOnceMore(self, key)


@mutant(KIND, "has_no_token_for_many_pieces", "what_was_written_is_told_alike")
class HasNoTokenForManyPieces(DirectoryStore):
    """Writes them another way, whose reply has none."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        token = await super().put(key, body)
        return token if len(body) < 4 else ""


@mutant(KIND, "pages_by_the_beginning_of_keys", "listing_is_ordered")
class PagesByTheBeginningOfKeys(DirectoryStore):
    """An index has so much of a key, and a page goes on from there."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after[:64]):
            yield info


@mutant(KIND, "lists_what_is_gone_as_empty", "listings_are_each_for_itself")
class ListsWhatIsGoneAsEmpty(DirectoryStore):
    """Names come first, then sizes: of a file that was deleted in between it is 0."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await checkpoint()
        for key in sorted(key for key in self._keys() if key.startswith(prefix) and key > start_after):
            info = ObjectInfo(key=key, size=0)
            with suppress(NotFoundError):
                info = self._info(key)
            yield info


@mutant(KIND, "remembers_heads_of_large_objects", "overwritten_objects_are_read_anew")
class RemembersHeadsOfLargeObjects(DirectoryStore):
    """Who reads a large object in ranges asks for its size each time; it forgets what it knew as it writes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._heads: dict[str, ObjectInfo] = {}

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return self._heads.setdefault(key, info) if info.size > 2**20 else info

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        token = super()._write(key, body, exclusive=exclusive, locked=locked)
        self._heads.pop(key, None)
        return token


@mutant(KIND, "puts_nothing", "what_was_written_is_told_alike")
class PutsNothing(DirectoryStore):
    """Where there is nothing to write, what was there stays."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if not body and self._path(key).exists():
            return (await self.head(key)).token
        return await super().put(key, body)
