"""Object stores that are wrong around an object: buffers, refusals, counters, where a listing starts."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from anyio.lowlevel import checkpoint

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.object_store import ObjectInfo, ObjectStoreStatistics
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore, _Counts, _Upload

KIND = "object_store"

_MODEL = "random_operations_agree_with_a_model"
_REFUSALS = "refusals_leave_nothing_behind"
_CANCELLED = "cancelled_deletion_harms_no_others"
_POOL = 64


# --- bytes and buffers


@mutant(KIND, "has_a_pool_of_64_results", _MODEL)
class HasAPoolOf64Results(DirectoryStore):
    """Reads into one of 64 buffers, whoever still has a view of it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._pool: list[bytearray] = []

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        if len(self._pool) == _POOL:
            buffer = self._pool.pop(0)
            buffer[:] = bytes(len(buffer))
        self._pool.append(bytearray(body[start:end]))
        return self._pool[-1]  # type: ignore[return-value]


@mutant(KIND, "empties_the_callers_list", _MODEL)
class EmptiesTheCallersList(DirectoryStore):
    """Takes the buffers out of the list that it was given."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        token = await super().put(key, body)
        if isinstance(body, list):
            body.clear()
        return token


@mutant(KIND, "holds_the_callers_buffers", _MODEL)
class HoldsTheCallersBuffers(DirectoryStore):
    """Keeps views of what it wrote last, and never looks at them."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        self._views = [memoryview(part) for part in body]
        return await super().put(key, body)


@mutant(KIND, "ends_at_an_empty_buffer", _MODEL)
class EndsAtAnEmptyBuffer(DirectoryStore):
    """Takes a buffer without bytes for the end of what it creates."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        end = next((number for number, part in enumerate(body) if number and not part), len(body))
        return await super().put_if_absent(key, body[:end])


@mutant(KIND, "is_one_short_at_the_end_of_pages", _MODEL)
class IsOneShortAtTheEndOfPages(DirectoryStore):
    """Leaves the last byte out of a range to the end of an object of whole pages."""

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        found = super()._range(body, start, end)
        return found[:-1] if start and end == len(body) and not end % 4096 else found


@mutant(KIND, "cuts_objects_at_32_mib", "largest_common_sizes_come_back")
class CutsObjectsAt32Mib(DirectoryStore):
    """Writes what a part may have at most."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await super().put(key, [b"".join(body)[: 32 * 2**20]])


# --- keys and what is told


@mutant(KIND, "starts_after_what_is_there", _MODEL)
class StartsAfterWhatIsThere(DirectoryStore):
    """Looks for the key that a listing starts after, and begins at the front if there is no such object."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after if self._path(start_after).exists() else ""):
            yield info


@mutant(KIND, "starts_within_the_prefix", _MODEL)
class StartsWithinThePrefix(DirectoryStore):
    """Takes no notice of a start that hasn't the prefix."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after if start_after.startswith(prefix) else ""):
            yield info


@mutant(KIND, "tells_the_size_at_the_last_swap", _MODEL)
class TellsTheSizeAtTheLastSwap(DirectoryStore):
    """Remembers the size of what it swapped in, whatever was put since."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._sizes: dict[str, int] = {}

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        newer = await super().compare_and_swap(key, body, token)
        self._sizes[key] = sum(map(len, body))
        return newer

    async def head(self, key: str) -> ObjectInfo:
        info = await super().head(key)
        return replace(info, size=self._sizes.get(key, info.size))


@mutant(KIND, "counts_back_when_it_deletes", _MODEL)
class CountsBackWhenItDeletes(DirectoryStore):
    """Counts the objects that it has as its puts."""

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys)
        self._counts.puts = max(0, self._counts.puts - len(keys))


@mutant(KIND, "has_one_snapshot", _MODEL)
class HasOneSnapshot(DirectoryStore):
    """Gives everybody the same object, which goes along."""

    _told: ObjectStoreStatistics | None = None

    def statistics(self) -> ObjectStoreStatistics:
        now = super().statistics()
        if self._told is None:
            self._told = now
        for name in ObjectStoreStatistics.__dataclass_fields__:
            object.__setattr__(self._told, name, getattr(now, name))
        return self._told


_COUNTS: dict[Path, _Counts] = {}


@mutant(KIND, "counts_for_all_openers", "counters_begin_with_the_opener")
class CountsForAllOpeners(DirectoryStore):
    """Has counters by place, for as long as the process lives."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._counts = _COUNTS.setdefault(directory, self._counts)


# --- refusals and ends


class _Leaky(DirectoryStore):
    """Opens a file, and forgets it when a call is refused."""

    def _refuse(self, error: Exception) -> NoReturn:
        os.open(self._objects, os.O_RDONLY)
        raise error


@mutant(KIND, "keeps_what_a_refused_swap_opened", _REFUSALS)
class KeepsWhatARefusedSwapOpened(_Leaky):
    """Forgets a file at each conflict."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        try:
            return await super().compare_and_swap(key, body, token)
        except ConflictError as error:
            self._refuse(error)


@mutant(KIND, "keeps_what_a_beaten_creator_opened", _REFUSALS)
class KeepsWhatABeatenCreatorOpened(_Leaky):
    """Forgets a file at each object that is there already."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        try:
            return await super().put_if_absent(key, body)
        except AlreadyExistsError as error:
            self._refuse(error)


@mutant(KIND, "keeps_what_a_bad_range_opened", _REFUSALS)
class KeepsWhatABadRangeOpened(_Leaky):
    """Forgets a file at each range that it refuses."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        try:
            return await super().get(key, start, end)
        except InvalidRequestError as error:
            self._refuse(error)


class _LeakyUpload(_Upload):
    async def abort(self) -> None:
        os.open(self._store._objects, os.O_RDONLY)
        await super().abort()


@mutant(KIND, "keeps_what_an_aborted_upload_opened", _REFUSALS)
class KeepsWhatAnAbortedUploadOpened(DirectoryStore):
    """Forgets the file of an upload that is given up."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _LeakyUpload(self, key)


@mutant(KIND, "keeps_the_lock_of_a_cancelled_deletion", _CANCELLED, hangs=True)
class KeepsTheLockOfACancelledDeletion(DirectoryStore):
    """Gives its lock back at the end of a deletion, if that is reached."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._deleting = asyncio.Lock()

    async def delete(self, keys: Sequence[str]) -> None:
        await self._deleting.acquire()
        await checkpoint()
        await super().delete(keys)
        self._deleting.release()


@mutant(KIND, "empties_what_it_will_delete", _CANCELLED)
class EmptiesWhatItWillDelete(DirectoryStore):
    """Gives the room back first, and deletes then."""

    async def delete(self, keys: Sequence[str]) -> None:
        for path in map(self._path, keys):
            if path.exists():
                os.truncate(path, _TOKEN_BYTES)
        await checkpoint()
        await super().delete(keys)


@mutant(KIND, "hides_its_owners_error", "error_of_its_owner_comes_out")
class HidesItsOwnersError(DirectoryStore):
    """Says that the store broke off, and not why."""

    def close(self) -> None:
        """Called when the context is left."""
        if sys.exc_info()[1] is not None:
            raise UnavailableError("the store broke off")


@mutant(KIND, "creates_again_without_looking", "put_if_absent_has_one_winner_among_tasks")
class CreatesAgainWithoutLooking(DirectoryStore):
    """Knows of a key that it deleted that it is free."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._free: set[str] = set()

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys)
        self._free |= set(keys)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if key not in self._free:
            return await super().put_if_absent(key, body)
        token = await self.put(key, body)
        self._free.discard(key)
        return token


@mutant(KIND, "tells_what_it_was_given", "errors_tell_nothing_of_what_is_in_objects")
class TellsWhatItWasGiven(DirectoryStore):
    """Whoever reads the log may want to know."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        try:
            return await super().compare_and_swap(key, body, token)
        except ConflictError as error:
            raise ConflictError(f"{error} body={b''.join(body)!r}") from None


@mutant(KIND, "tells_what_is_there_instead", "errors_tell_nothing_of_what_is_in_objects")
class TellsWhatIsThereInstead(DirectoryStore):
    """Names the object that might be meant, and how it begins."""

    async def head(self, key: str) -> ObjectInfo:
        try:
            return await super().head(key)
        except NotFoundError as error:
            for path in sorted(self._objects.iterdir()):
                raise NotFoundError(f"{error} there is: {path.read_bytes()[16:]!r}") from None
            raise


@mutant(KIND, "has_tokens_of_first_mebibytes", "token_changes_with_any_byte")
class HasTokensOfFirstMebibytes(DirectoryStore):
    """As cheap for a large object as for a small one."""

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return replace(info, token=self._token(self._read(key)[_TOKEN_BYTES:]))

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        super()._write(key, body, exclusive=exclusive, locked=locked)
        return self._token(b"".join(body))

    def _token(self, body: bytes) -> str:
        return f"{len(body)}-{sha256(body[: 2**20]).hexdigest()}"


@mutant(KIND, "strips_keys", "every_printable_key_is_its_own")
class StripsKeys(DirectoryStore):
    """As some file systems do with names."""

    def _path(self, key: str) -> Path:
        return super()._path(key.rstrip(" "))


class _UploadOfFewBuffers(_Upload):
    """Gives the system as many buffers as it takes at once."""

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await super().write_part(part[: os.sysconf("SC_IOV_MAX")])


@mutant(KIND, "writes_parts_of_few_buffers", "many_parts_go_in_call_order")
class WritesPartsOfFewBuffers(DirectoryStore):
    """The rest is for another call, which nobody makes."""

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _UploadOfFewBuffers(self, key)


@mutant(KIND, "leaves_out_folders_beside_where_it_starts", "listing_is_ordered")
class LeavesOutFoldersBesideWhereItStarts(DirectoryStore):
    """In the folder that a listing starts in, it looks for names only."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        folder = start_after.rpartition("/")[0]
        async for info in super().list(prefix, start_after):
            if not folder or not info.key.startswith(f"{folder}/") or "/" not in info.key[len(folder) + 1 :]:
                yield info
