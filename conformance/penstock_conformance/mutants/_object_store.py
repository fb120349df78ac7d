"""Broken object stores."""

from __future__ import annotations

__all__ = ()

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, NotFoundError
from penstock.hookspecs import hookimpl
from penstock.spi.object_store import ObjectInfo, ObjectStoreSpec, ObjectStoreStatistics
from penstock.spi.plugin import Buffer, Services
from penstock_conformance.mutants._mutant import NAME, SUMMARY, Defective, find, make, mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, STORE_CAPABILITIES, DirectoryStore
from penstock_conformance.reference._plugin import closing

KIND = "object_store"


@mutant(KIND, "looks_for_the_object_before_the_range", "bad_ranges_are_refused")
class LooksForTheObjectBeforeTheRange(DirectoryStore):
    """What is wrong with a range depends on whether there is an object."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        await self.head(key)
        return await super().get(key, start, end)


@mutant(KIND, "counts_the_buffers_of_a_put", "statistics_count")
class CountsTheBuffersOfAPut(DirectoryStore):
    """Each is told as a write."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        token = await super().put(key, body)
        self._counts.puts += max(0, len(body) - 1)
        return token


@mutant(KIND, "creates_in_two_steps", "put_if_absent_has_one_winner_among_processes", level=2)
class CreatesInTwoSteps(DirectoryStore):
    """Looks whether the object is there, and then writes it: what generic file system layers do."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        if self._path(key).exists():
            raise AlreadyExistsError(f"the object exists: key={key}")
        return self._write(key, body, exclusive=False)


@mutant(KIND, "creates_over_others", "put_if_absent_creates_once")
class CreatesOverOthers(DirectoryStore):
    """Takes put_if_absent for put."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        return await self.put(key, body)


@mutant(
    KIND,
    "awaits_between_look_and_create",
    "put_if_absent_has_one_winner_among_tasks",
)
class AwaitsBetweenLookAndCreate(DirectoryStore):
    """Check-then-write with a suspension between."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if self._path(key).exists():
            raise AlreadyExistsError(f"the object exists: key={key}")
        return await self.put(key, body)


@mutant(KIND, "swaps_without_a_lock", "swap_loses_no_update_among_processes", level=2)
class SwapsWithoutALock(DirectoryStore):
    """Compares and then swaps."""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        yield


@mutant(KIND, "swaps_over_what_is_put_meanwhile", "swap_loses_no_update_among_processes", level=2)
class SwapsOverWhatIsPutMeanwhile(DirectoryStore):
    """Has a lock for those who swap, and none for those who put.

    So that it is caught for certain, a put waits until a swap has compared, and that swap until the put is done.
    """

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        putting, swapping = self._temporary / "putting", self._temporary / "swapping"
        if locked:
            if putting.exists():
                swapping.touch()
                _wait(lambda: not putting.exists())
            token = super()._write(key, body, exclusive=exclusive, locked=True)
            swapping.unlink(missing_ok=True)
            return token
        if exclusive or not self._path(key).exists():
            return super()._write(key, body, exclusive=exclusive, locked=True)
        putting.touch()
        _wait(swapping.exists)
        token = super()._write(key, body, exclusive=exclusive, locked=True)
        putting.unlink()
        _wait(lambda: not swapping.exists())
        return token


def _wait(condition: Callable[[], bool]) -> None:
    """For another process; for ten seconds at most, since it may be gone."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


@mutant(KIND, "lists_from_a_cache", "listing_sees_completed_puts_at_once")
class ListsFromACache(DirectoryStore):
    """Keeps the first listing."""

    _cached: list[str] | None = None

    def _keys(self) -> Iterator[str]:
        if not self._cached:
            self._cached = list(super()._keys())
        return iter(self._cached)


@mutant(KIND, "lists_by_directory", "listing_is_ordered")
class ListsByDirectory(DirectoryStore):
    """Walks a tree in order, so that a/b comes before a-b."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        found = [info async for info in super().list(prefix, start_after)]
        for info in sorted(found, key=lambda info: info.key.split("/")):
            yield info


@mutant(KIND, "start_after_is_inclusive", "listing_is_ordered")
class StartAfterIsInclusive(DirectoryStore):
    """Returns the key it should start after."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix):
            if info.key >= start_after:
                yield info


@mutant(KIND, "range_is_off_by_one", "get_returns_the_asked_range")
class RangeIsOffByOne(DirectoryStore):
    """Takes the end for inclusive, as HTTP does."""

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        return body[start : end + 1 if end else end]


@mutant(KIND, "ranges_are_stale", "ranges_are_of_the_newest_object")
class RangesAreStale(DirectoryStore):
    """Serves ranges from the body that it read first."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._bodies: dict[str, bytes] = {}

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        if not start:
            return await super().get(key, start, end)
        if key not in self._bodies:
            self._bodies[key] = bytes(await super().get(key))
        return self._bodies[key][start:end]


@mutant(KIND, "writes_in_place", "readers_see_old_or_new", "cancelled_put_is_whole_or_nothing")
class WritesInPlace(DirectoryStore):
    """Truncates the object and fills it again, bit by bit."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        token = bytes(range(16))
        with self._path(key).open("wb", buffering=0) as file:
            file.write(token)
            for part in body:
                await checkpoint()
                file.write(part)
        return token.hex()


@mutant(KIND, "acknowledges_before_writing", "acknowledged_objects_survive_a_kill", level=3)
class AcknowledgesBeforeWriting(DirectoryStore):
    """Keeps the last three objects in memory, in the hope of merging later writes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._unwritten: dict[str, bytes] = {}

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        self._unwritten[key] = b"".join(body)
        if len(self._unwritten) > 3:
            self.close()
        return ""

    def close(self) -> None:
        for key, body in self._unwritten.items():
            self._write(key, [body], exclusive=False)
        self._unwritten.clear()


@mutant(KIND, "leaves_debris", "acknowledged_objects_survive_a_kill", level=3)
class LeavesDebris(DirectoryStore):
    """Shows objects that are being written, under another name."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._temporary = self._objects

    def _keys(self) -> Iterator[str]:
        prefix = next((key.rpartition("/")[0] for key in super()._keys() if "/" in key), "")
        return (key if "/" in key else f"{prefix}/{key}" for key in super()._keys())

    def _info(self, key: str) -> ObjectInfo:
        try:
            return super()._info(key)
        except NotFoundError:
            return ObjectInfo(key=key, size=0)


@mutant(KIND, "multipart_appears_early", "multipart_appears_whole", "aborted_multipart_leaves_nothing")
class MultipartAppearsEarly(DirectoryStore):
    """Writes each part straight to the object."""

    async def create_multipart(self, key: str) -> _EarlyUpload:  # type: ignore[override]
        await checkpoint()
        return _EarlyUpload(self, key)


class _EarlyUpload:
    def __init__(self, store: DirectoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._parts: list[bytes] = []

    async def write_part(self, part: Sequence[Buffer]) -> None:
        self._parts.append(b"".join(part))
        await self._store.put(self._key, self._parts)

    async def complete(self) -> None:
        await checkpoint()

    async def abort(self) -> None:
        await checkpoint()


@mutant(KIND, "keeps_the_callers_buffer", "put_keeps_no_buffer_of_the_caller")
class KeepsTheCallersBuffer(DirectoryStore):
    """Writes when the object is read for the first time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._lazy: dict[str, Sequence[Buffer]] = {}

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        self._lazy[key] = body
        return ""

    def _read(self, key: str) -> bytes:
        if key in self._lazy:
            self._write(key, self._lazy.pop(key), exclusive=False)
        return super()._read(key)


@mutant(KIND, "accepts_bad_ranges", "bad_ranges_are_refused")
class AcceptsBadRanges(DirectoryStore):
    """Slices as Python does."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        await checkpoint()
        return self._read(key)[16:][start:end]


@mutant(KIND, "writes_in_place_between_processes", "readers_of_other_processes_see_old_or_new", level=2)
class WritesInPlaceBetweenProcesses(WritesInPlace):
    """Writes objects in place: another process reads half of one."""


@mutant(KIND, "insists_on_deleting", "deleted_objects_are_gone")
class InsistsOnDeleting(DirectoryStore):
    """Complains about keys that aren't there."""

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.head(key)
        await super().delete(keys)


@mutant(KIND, "reads_missing_as_empty", "missing_object_is_not_found")
class ReadsMissingAsEmpty(DirectoryStore):
    """Has every object, some without bytes."""

    def _read(self, key: str) -> bytes:
        try:
            return super()._read(key)
        except NotFoundError:
            return bytes(16)


@mutant(KIND, "writes_the_first_buffer", "get_returns_what_put_wrote")
class WritesTheFirstBuffer(DirectoryStore):
    """Takes a body for one buffer."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await super().put(key, body[:1])


@mutant(KIND, "tells_the_size_on_disk", "head_tells_key_and_size", "ranges_are_of_the_newest_object")
class TellsTheSizeOnDisk(DirectoryStore):
    """Counts its own token among the object's bytes."""

    def _info(self, key: str) -> ObjectInfo:
        info = super()._info(key)
        return ObjectInfo(key=key, size=info.size + 16, token=info.token)


@mutant(KIND, "reuses_its_read_buffer", "result_of_get_outlives_the_object")
class ReusesItsReadBuffer(DirectoryStore):
    """Every result is a view of one buffer."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._buffer = bytearray(2**21)

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        data = super()._range(body, start, end)
        self._buffer[: len(data)] = data
        return memoryview(self._buffer)[: len(data)]  # type: ignore[return-value] # the defect


@mutant(KIND, "starts_anew_each_time", "objects_outlive_the_opener")
class StartsAnewEachTime(DirectoryStore):
    """Every opener has a directory of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / secrets.token_hex(8))


@mutant(KIND, "swaps_whatever_is_there", "swap_needs_the_current_token", "swap_loses_no_update_among_tasks")
class SwapsWhateverIsThere(DirectoryStore):
    """Takes compare_and_swap for put."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        return await self.put(key, body)


@mutant(KIND, "swaps_for_an_empty_token", "swap_needs_the_current_token")
class SwapsForAnEmptyToken(DirectoryStore):
    """Takes no token for any token."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        if not token:
            return await self.put(key, body)
        return await super().compare_and_swap(key, body, token)


@mutant(KIND, "appends_wherever_the_end_is", "append_needs_the_end_of_the_object")
class AppendsWhereverTheEndIs(DirectoryStore):
    """Takes no notice of the offset, as a log file does."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        with suppress(NotFoundError):
            offset = (await self.head(key)).size
        return await super().append(key, body, offset)


@mutant(KIND, "begins_an_object_at_any_offset", "append_needs_the_end_of_the_object")
class BeginsAnObjectAtAnyOffset(DirectoryStore):
    """Makes an object of an append to one that was deleted meanwhile."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        try:
            await self.head(key)
        except NotFoundError:
            offset = 0
        return await super().append(key, body, offset)


@mutant(KIND, "lets_others_append_between", "append_has_one_winner_among_tasks")
class LetsOthersAppendBetween(DirectoryStore):
    """Looks where the object ends, and writes all of it a moment later."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        try:
            there = bytes(await self.get(key))
        except NotFoundError:
            there = b""
        if len(there) != offset:
            raise ConflictError(f"the object ends elsewhere: key={key}")
        return await self.put(key, [there, *body])


@mutant(KIND, "grows_objects_in_two_steps", "append_loses_nothing_among_processes", level=2)
class GrowsObjectsInTwoSteps(DirectoryStore):
    """Looks where the object ends, and then writes all of it, with a lock that ends at its own process."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        await checkpoint()
        try:
            there = bytes(self._read(key)[_TOKEN_BYTES:])
        except NotFoundError:
            there = b""
        if len(there) != offset:
            raise ConflictError(f"the object ends elsewhere: key={key}")
        return self._write(key, [there, *body], exclusive=False)


@mutant(KIND, "counts_nothing", "statistics_count")
class CountsNothing(DirectoryStore):
    """Has no counters."""

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics()


@mutant(KIND, "counts_whole_objects_for_ranges", "statistics_count")
class CountsWholeObjectsForRanges(DirectoryStore):
    """Of whatever is asked for, it counts what there is."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        found = await super().get(key, start, end)
        self._counts.bytes_read += self._info(key).size - len(found)
        return found


@mutant(KIND, "takes_missing_objects_for_failures", "statistics_count")
class TakesMissingObjectsForFailures(DirectoryStore):
    """Counts each as an attempt that failed, whatever succeeds behind it."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._missing = 0

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        try:
            return await super().get(key, start, end)
        except NotFoundError:
            self._missing += 1
            raise

    def statistics(self) -> ObjectStoreStatistics:
        return replace(super().statistics(), errors=self._missing, consecutive_failures=self._missing)


def _made(defect: str, services: Services) -> Any:
    """The broken store. Few of them are told that somebody only looks."""
    found = find(KIND, defect)
    path = services.data_dir / "objects"
    if found is not None and getattr(found.make, "knows_who_looks", False):
        return found.make(path, read_only=services.read_only)
    return make(KIND, defect, path)


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[Defective]:
    """Register the broken object stores."""
    return ObjectStoreSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=STORE_CAPABILITIES,
        open=closing(lambda settings, services: _made(settings.defect, services)),
    )
