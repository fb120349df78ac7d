"""Object stores that are right for few, small, lone and new objects, and on a disk that never fails."""

from __future__ import annotations

__all__ = ()

import fnmatch
import os
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, NotFoundError, UnavailableError
from penstock.spi.object_store import ObjectInfo, ObjectStoreStatistics
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore, _Upload

KIND = "object_store"

_PAGE = 1000
_MANY = "thousands_of_keys_are_listed_and_deleted"
_KEYS = "every_printable_key_is_its_own"
_WHOLE = "large_objects_come_back_whole"
_RANGES = "ranges_lie_right_in_large_objects"
_8_MIB = 8 * 2**20


def _size(body: Sequence[Buffer]) -> int:
    return sum(len(part) for part in body)


# --- many
_ABORT = "abort_of_what_has_ended_changes_nothing"


@mutant(KIND, "lists_one_page", _MANY)
class ListsOnePage(DirectoryStore):
    """Asks for a listing once, and gets as many as the store gives."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        count = 0
        async for info in super().list(prefix, start_after):
            count += 1
            if count <= _PAGE:
                yield info


@mutant(KIND, "repeats_the_end_of_a_page", _MANY)
class RepeatsTheEndOfAPage(DirectoryStore):
    """Begins the next page with the last key of the one before."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        count = 0
        async for info in super().list(prefix, start_after):
            yield info
            count += 1
            if count % _PAGE == 0:
                yield info


@mutant(KIND, "loses_the_start_of_a_page", _MANY)
class LosesTheStartOfAPage(DirectoryStore):
    """Begins the next page after the key that it should begin with."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        count = 0
        async for info in super().list(prefix, start_after):
            count += 1
            if count != _PAGE + 1:
                yield info


@mutant(KIND, "orders_page_by_page", _MANY)
class OrdersPageByPage(DirectoryStore):
    """Puts each page in order, and the pages as they come."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        found = [info async for info in super().list(prefix, start_after)]
        for info in [*found[_PAGE:], *found[:_PAGE]]:
            yield info


@mutant(KIND, "asks_for_pages_by_number", _MANY)
class AsksForPagesByNumber(DirectoryStore):
    """Goes on at a place in a list that has become shorter meanwhile."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        place = 0
        while True:
            page = [info async for info in super().list(prefix, start_after)]
            page = page[place : place + _PAGE // 2]
            for info in page:
                yield info
            place += len(page)
            if not page:
                return


@mutant(KIND, "deletes_one_request_full", _MANY)
class DeletesOneRequestFull(DirectoryStore):
    """Sends the keys that fit in one request."""

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys[:_PAGE])


@mutant(KIND, "stops_at_an_absent_key", "deletion_takes_exactly_what_was_named")
class StopsAtAnAbsentKey(DirectoryStore):
    """Takes a key that isn't there for the end of its work."""

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            if not self._path(key).exists():
                return
            await super().delete([key])


@mutant(KIND, "deletes_by_prefix", "deletion_takes_exactly_what_was_named", _KEYS)
class DeletesByPrefix(DirectoryStore):
    """Deletes what begins with a key, as recursive deletions do."""

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete([other for other in self._keys() if other.startswith(tuple(keys))])


# --- keys


@mutant(KIND, "deletes_by_pattern", _KEYS)
class DeletesByPattern(DirectoryStore):
    """Expands stars and brackets in what it should delete."""

    async def delete(self, keys: Sequence[str]) -> None:
        found = [other for other in self._keys() for key in keys if fnmatch.fnmatchcase(other, key)]
        await super().delete(found)


@mutant(KIND, "lists_prefixes_in_any_case", _KEYS)
class ListsPrefixesInAnyCase(DirectoryStore):
    """Asks a database whose LIKE knows no case."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list("", start_after):
            if info.key.lower().startswith(prefix.lower()):
                yield info


@mutant(KIND, "decodes_keys_twice", _KEYS)
class DecodesKeysTwice(DirectoryStore):
    """Takes the escapes in a key for its own."""

    def _path(self, key: str) -> Path:
        return super()._path(unquote(key))


@mutant(KIND, "ignores_case", _KEYS)
class IgnoresCase(DirectoryStore):
    """Is on a file system where A is a."""

    def _path(self, key: str) -> Path:
        return super()._path(key.lower())


@mutant(KIND, "ends_keys_at_a_question_mark", _KEYS)
class EndsKeysAtAQuestionMark(DirectoryStore):
    """Takes a key for a URL, with a query."""

    def _path(self, key: str) -> Path:
        return super()._path(key.partition("?")[0])


@mutant(KIND, "trims_keys", _KEYS)
class TrimsKeys(DirectoryStore):
    """Takes spaces at the end for a mistake."""

    def _path(self, key: str) -> Path:
        return super()._path("/".join(part.strip() for part in unicodedata.normalize("NFC", key).split("/")))


@mutant(KIND, "hides_its_own_names", _KEYS)
class HidesItsOwnNames(DirectoryStore):
    """Takes whatever looks like a temporary file for one of its own."""

    def _keys(self) -> Iterator[str]:
        return (key for key in super()._keys() if not key.endswith((".tmp", ".part")))


@mutant(KIND, "hides_dotfiles", _KEYS)
class HidesDotfiles(DirectoryStore):
    """Lists as a shell does."""

    def _keys(self) -> Iterator[str]:
        return (key for key in super()._keys() if "/." not in key)


@mutant(KIND, "takes_plus_for_a_space", _KEYS)
class TakesPlusForASpace(DirectoryStore):
    """Escapes keys as forms do."""

    def _path(self, key: str) -> Path:
        return self._objects / quote(key.replace("+", " "), safe="")


# --- large


@mutant(KIND, "repeats_the_first_part", _WHOLE)
class RepeatsTheFirstPart(DirectoryStore):
    """Beyond 8 MiB it writes in parts, and takes the first one again."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if _size(body) > _8_MIB:
            whole = b"".join(body)
            body = [whole[:_8_MIB], whole[: len(whole) - _8_MIB]]
        return await super().put(key, body)


@mutant(KIND, "ends_at_a_whole_page", _WHOLE)
class EndsAtAWholePage(DirectoryStore):
    """Writes large objects in whole pages, and forgets what is over."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        whole = b"".join(body)
        return await super().put(key, [whole[: len(whole) & ~4095] if len(whole) > _8_MIB else whole])


@mutant(KIND, "writes_few_buffers", _WHOLE)
class WritesFewBuffers(DirectoryStore):
    """Sends the buffers of a large object with one vectored write of sixteen."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await super().put(key, body[:16] if _size(body) > _8_MIB else body)


@mutant(KIND, "swaps_large_parts", _WHOLE)
class SwapsLargeParts(DirectoryStore):
    """Sends the parts of a large object at once, and joins them as they arrive. The length is right."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if _size(body) > _8_MIB:
            whole = b"".join(body)
            body = [whole[2**20 : 2**21], whole[: 2**20], whole[2**21 :]]
        return await super().put(key, body)


@mutant(KIND, "is_one_off_far_inside", _RANGES)
class IsOneOffFarInside(DirectoryStore):
    """Counts from one beyond the first MiB."""

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        return body[start : end - 1 if end is not None and start > 2**20 and end < len(body) else end]


@mutant(KIND, "reads_a_mib_at_a_time", _RANGES)
class ReadsAMibAtATime(DirectoryStore):
    """Answers long ranges as far as one read goes."""

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        data = super()._range(body, start, end)
        return data[: 2**20] if start else data


@mutant(KIND, "reads_from_whole_pages", _RANGES)
class ReadsFromWholePages(DirectoryStore):
    """Beyond 8 MiB it reads from where a page begins."""

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        return super()._range(body, start & ~4095 if start > _8_MIB else start, end)


@mutant(KIND, "creates_large_objects_over_others", "large_put_if_absent_creates_once")
class CreatesLargeObjectsOverOthers(DirectoryStore):
    """The condition goes with a plain put; objects beyond 8 MiB go in parts, without it."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        return await (super().put if _size(body) > _8_MIB else super().put_if_absent)(key, body)


@mutant(KIND, "looks_before_it_creates_large_objects", "large_put_if_absent_creates_once")
class LooksBeforeItCreatesLargeObjects(DirectoryStore):
    """Beyond 8 MiB it looks whether the object is there, and then puts it."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if _size(body) <= _8_MIB:
            return await super().put_if_absent(key, body)
        if self._path(key).exists():
            raise AlreadyExistsError(f"the object exists: key={key}")
        return await super().put(key, body)


@mutant(KIND, "takes_empty_for_absent", "put_if_absent_minds_empty_and_deleted_objects")
class TakesEmptyForAbsent(DirectoryStore):
    """Looks at the size to see whether an object is there."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        with suppress(NotFoundError):
            if not self._info(key).size:
                return await super().put(key, body)
        return await super().put_if_absent(key, body)


@mutant(KIND, "remembers_deleted_objects", "put_if_absent_minds_empty_and_deleted_objects")
class RemembersDeletedObjects(DirectoryStore):
    """Keeps in mind what it created more than once, and refuses it without looking."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._created: list[str] = []

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if self._created.count(key) > 2:
            raise AlreadyExistsError(f"the object exists: key={key}")
        token = await super().put_if_absent(key, body)
        self._created.append(key)
        return token


class _ManyParts(_Upload):
    async def complete(self) -> None:
        numbered = sorted(enumerate(self._parts, 1), key=lambda item: str(item[0]))
        await self._store.put(self._key, [part for _, part in numbered])


@mutant(KIND, "orders_parts_as_texts", "many_parts_go_in_call_order")
class OrdersPartsAsTexts(DirectoryStore):
    """Part 10 comes before part 2."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _ManyParts(self, key)


@mutant(KIND, "shares_parts_of_a_key", "uploads_of_one_key_do_not_mix")
class SharesPartsOfAKey(DirectoryStore):
    """Keeps parts by the key of their object."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._parts: dict[str, list[bytes]] = {}

    async def create_multipart(self, key: str) -> _Upload:
        upload = await super().create_multipart(key)
        upload._parts = self._parts.setdefault(key, [])
        return upload


# --- again


@mutant(KIND, "knows_objects_by_size", "overwritten_objects_are_read_anew")
class KnowsObjectsBySize(DirectoryStore):
    """Serves an object from memory as long as its size is the same."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._bodies: dict[tuple[str, int], bytes] = {}

    def _read(self, key: str) -> bytes:
        return self._bodies.setdefault((key, self._info(key).size), super()._read(key))


@mutant(KIND, "sees_only_its_own_puts", "overwritten_objects_are_read_anew")
class SeesOnlyItsOwnPuts(DirectoryStore):
    """Serves from memory until it puts or deletes the object itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._bodies: dict[str, bytes] = {}

    def _read(self, key: str) -> bytes:
        return self._bodies.setdefault(key, super()._read(key))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        self._bodies.pop(key, None)
        return await super().put(key, body)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._bodies.pop(key, None)
        await super().delete(keys)


@mutant(KIND, "serves_ranges_of_the_deleted", "overwritten_objects_are_read_anew")
class ServesRangesOfTheDeleted(DirectoryStore):
    """Keeps the last body for ranged reads until it is put anew."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._bodies: dict[str, bytes] = {}

    def _read(self, key: str) -> bytes:
        try:
            return self._bodies.setdefault(key, super()._read(key)) and super()._read(key)
        except NotFoundError:
            if key in self._bodies:
                return self._bodies[key]
            raise


@mutant(KIND, "draws_tokens_at_opening", "tokens_outlive_the_opener")
class DrawsTokensAtOpening(DirectoryStore):
    """A token is the object's and the opener's."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._salt = os.urandom(4).hex()

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return ObjectInfo(key=key, size=info.size, token=self._salt + info.token)

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        return self._salt + super()._write(key, body, exclusive=exclusive, locked=locked)


@mutant(KIND, "clears_up_too_much", "third_opener_finds_everything")
class ClearsUpTooMuch(DirectoryStore):
    """Takes the oldest of many objects for what a dead writer left, and deletes it when it opens."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        names = sorted(os.listdir(self._objects))
        if len(names) > 6:
            (self._objects / names[0]).unlink()


@mutant(KIND, "shares_its_scratch_file", "many_tasks_work_beside_each_other")
class SharesItsScratchFile(DirectoryStore):
    """Every put under way fills the same buffer."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._scratch: list[Buffer] = []

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        self._scratch[:] = body
        await checkpoint()
        return await super().put(key, list(self._scratch))


@mutant(KIND, "loses_objects_when_cancelled", "cancelled_calls_harm_no_others")
class LosesObjectsWhenCancelled(DirectoryStore):
    """Takes what was cancelled for what failed, and clears up."""

    async def head(self, key: str) -> ObjectInfo:
        try:
            return await super().head(key)
        except BaseException as error:
            if not isinstance(error, NotFoundError):
                self._path(key).unlink()
            raise


_OPENED: list[Any] = []


@mutant(KIND, "never_closes_its_lock", "reading_and_writing_leaves_nothing_behind")
class NeverClosesItsLock(DirectoryStore):
    """Opens its directory, and leaves it open."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._descriptor = os.open(directory, os.O_RDONLY)


@mutant(KIND, "keeps_every_opener", "reading_and_writing_leaves_nothing_behind")
class KeepsEveryOpener(DirectoryStore):
    """Is in a list of all stores that there ever were."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        _OPENED.append(self)


# --- the medium


@mutant(KIND, "never_syncs", "completed_puts_are_on_the_disk", level=3, on_disk=True)
class NeverSyncs(DirectoryStore):
    """Leaves it to the system when to write."""

    def _fill(self, path: Path, parts: Sequence[Buffer]) -> None:
        path.write_bytes(b"".join(parts))


@mutant(KIND, "syncs_small_objects", "completed_puts_are_on_the_disk", level=3, on_disk=True)
class SyncsSmallObjects(DirectoryStore):
    """Syncing a large one would take too long."""

    def _fill(self, path: Path, parts: Sequence[Buffer]) -> None:
        if _size(parts) < 2**20:
            super()._fill(path, parts)
        else:
            path.write_bytes(b"".join(parts))


class _Unsynced(_Upload):
    async def complete(self) -> None:
        self._store._synced = False
        try:
            await super().complete()
        finally:
            self._store._synced = True


@mutant(KIND, "syncs_no_parts", "completed_puts_are_on_the_disk", level=3, on_disk=True)
class SyncsNoParts(DirectoryStore):
    """Syncs objects that are put, and forgets those that are completed."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _Unsynced(self, key)


_FULL = "full_disk_is_told_and_harms_nothing"


@mutant(KIND, "swallows_a_full_disk", _FULL, level=4)
class SwallowsAFullDisk(DirectoryStore):
    """Logs that an object couldn't be written."""

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        try:
            return super()._write(key, body, exclusive=exclusive, locked=locked)
        except UnavailableError:
            return ""


@mutant(KIND, "keeps_what_fits", _FULL, level=4)
class KeepsWhatFits(DirectoryStore):
    """Ends the object where the disk ends."""

    def _fill(self, path: Path, parts: Sequence[Buffer]) -> None:
        with suppress(OSError):
            super()._fill(path, parts)


@mutant(KIND, "makes_room_first", _FULL, level=4)
class MakesRoomFirst(DirectoryStore):
    """Deletes the old object before it writes the new one, if that is large."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if _size(body) > 2**20:
            self._path(key).unlink(missing_ok=True)
        return await super().put(key, body)


@mutant(KIND, "raises_what_the_system_raises", _FULL, "outage_is_not_emptiness", level=4)
class RaisesWhatTheSystemRaises(DirectoryStore):
    """Has no errors of its own."""

    def _read(self, key: str) -> bytes:
        try:
            return super()._read(key)
        except UnavailableError as error:
            raise error.__cause__ or error  # noqa: B904 # the defect

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        try:
            return super()._write(key, body, exclusive=exclusive, locked=locked)
        except UnavailableError as error:
            raise error.__cause__ or error  # noqa: B904 # the defect


@mutant(KIND, "takes_an_outage_for_absence", "outage_is_not_emptiness", level=4)
class TakesAnOutageForAbsence(DirectoryStore):
    """An object that can't be opened isn't there."""

    def _read(self, key: str) -> bytes:
        try:
            return super()._read(key)
        except UnavailableError:
            raise NotFoundError(f"no such object: key={key}") from None


@mutant(KIND, "lists_nothing_in_an_outage", "listing_without_descriptors_is_no_empty_listing", level=4)
class ListsNothingInAnOutage(DirectoryStore):
    """A directory that can't be read is empty."""

    def _keys(self) -> Iterator[str]:
        try:
            return iter(list(super()._keys()))
        except UnavailableError:
            return iter(())


@mutant(KIND, "lists_what_it_can_open", "listing_without_descriptors_is_no_empty_listing", level=4)
class ListsWhatItCanOpen(DirectoryStore):
    """Knows the names, and leaves out those that it can't look at."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._names: list[str] = []

    def _keys(self) -> Iterator[str]:
        with suppress(UnavailableError):
            self._names = list(super()._keys())
        return iter(self._names)

    def _info(self, key: str) -> ObjectInfo:
        try:
            return super()._info(key)
        except UnavailableError:
            raise NotFoundError(f"no such object: key={key}") from None


@mutant(KIND, "lists_one_directory", _MANY)
class ListsOneDirectory(DirectoryStore):
    """Reads the directory in pieces, and the last piece only if it is whole."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        found = [info async for info in super().list(prefix, start_after)]
        for info in islice(found, len(found) // 500 * 500 or len(found)):
            yield info


@mutant(KIND, "takes_prefixes_for_patterns", _KEYS)
class TakesPrefixesForPatterns(DirectoryStore):
    """``WHERE key LIKE prefix || '%'``: an underscore is any character."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list("", start_after):
            like = len(info.key) >= len(prefix) and all(
                wanted in ("_", found) for wanted, found in zip(prefix, info.key, strict=False)
            )
            if like:
                yield info


@mutant(KIND, "lists_no_empty_objects", "empty_objects_are_listed_like_others")
class ListsNoEmptyObjects(DirectoryStore):
    """Takes what is empty for a folder's marker."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after):
            if info.size:
                yield info


@mutant(KIND, "remembers_what_it_created", "put_if_absent_minds_empty_and_deleted_objects")
class RemembersWhatItCreated(DirectoryStore):
    """Asks the medium no more for what it has created, until it deletes that itself."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._created: set[str] = set()

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if key in self._created:
            raise AlreadyExistsError(f"the object exists: key={key}")
        token = await super().put_if_absent(key, body)
        self._created.add(key)
        return token

    async def delete(self, keys: Sequence[str]) -> None:
        self._created.difference_update(keys)
        await super().delete(keys)


@mutant(KIND, "has_tokens_of_the_beginning", "token_changes_with_any_byte")
class HasTokensOfTheBeginning(DirectoryStore):
    """Hashes 64 KiB and the size."""

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        begin = self._read(key)[_TOKEN_BYTES:][:65_536]
        return replace(info, token=sha256(begin + b"%d" % info.size).hexdigest())

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        super()._write(key, body, exclusive=exclusive, locked=locked)
        return self._info(key).token


class _ThousandParts(_Upload):
    async def complete(self) -> None:
        del self._parts[1000:]
        await super().complete()


@mutant(KIND, "keeps_a_thousand_parts", "thousands_of_small_parts_are_one_object")
class KeepsAThousandParts(DirectoryStore):
    """One page of parts is put together."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _ThousandParts(self, key)


@mutant(KIND, "ends_a_page_too_early", "bodies_of_round_sizes_come_back_whole")
class EndsAPageTooEarly(DirectoryStore):
    """Writes 8 MiB at a time, and takes a last whole piece for the end of one that was written before."""

    def _fill(self, path: Path, parts: Sequence[Buffer]) -> None:
        body = b"".join(parts)
        size = len(body) - _TOKEN_BYTES
        super()._fill(path, [body[:-1] if size and size % 2**23 == 0 else body])


@mutant(KIND, "knows_sizes_of_16_bits", "bodies_of_round_sizes_come_back_whole")
class KnowsSizesOf16Bits(DirectoryStore):
    """Takes an object of 64 KiB for an empty one."""

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return replace(info, size=0 if info.size == 2**16 else info.size)


class _Ended(_Upload):
    """Knows whether it has ended, and how."""

    _completed = _aborted = False

    async def complete(self) -> None:
        await super().complete()
        self._completed = True

    async def abort(self) -> None:
        await super().abort()
        self._aborted = True


class _TakesBack(_Ended):
    async def abort(self) -> None:
        if self._completed:
            await self._store.delete([self._key])
        await super().abort()


@mutant(KIND, "takes_back_what_is_complete", _ABORT)
class TakesBackWhatIsComplete(DirectoryStore):
    """Aborts by deleting the key that the upload was for."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _TakesBack(self, key)


class _Insists(_Ended):
    async def abort(self) -> None:
        if self._completed or self._aborted:
            raise NotFoundError(f"there is no such upload: key={self._key}")
        await super().abort()


@mutant(KIND, "insists_on_aborting", _ABORT)
class InsistsOnAborting(DirectoryStore):
    """Passes on what the store says of an upload that it doesn't know any more."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _Insists(self, key)


@mutant(KIND, "forgets_why_it_failed", "outage_is_not_emptiness", level=4)
class ForgetsWhyItFailed(DirectoryStore):
    """Has nothing to say as soon as calls succeed again."""

    def statistics(self) -> ObjectStoreStatistics:
        told = super().statistics()
        return told if told.consecutive_failures else replace(told, last_error="")


@mutant(KIND, "counts_no_bytes_of_parts", "statistics_count")
class CountsNoBytesOfParts(DirectoryStore):
    """Counts in put alone."""

    async def create_multipart(self, key: str) -> Any:
        upload = await super().create_multipart(key)
        complete = upload.complete

        async def uncounted() -> None:
            before = self._counts.bytes_written
            await complete()
            self._counts.bytes_written = before

        upload.complete = uncounted  # type: ignore[method-assign]
        return upload
