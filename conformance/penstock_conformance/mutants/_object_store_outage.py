"""Object stores that tell something wrong while their medium fails."""

from __future__ import annotations

__all__ = ()

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from penstock.errors import AlreadyExistsError, ConflictError, NotFoundError, UnavailableError
from penstock.spi.object_store import ObjectInfo, ObjectStoreStatistics
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import DirectoryStore

KIND = "object_store"


@mutant(KIND, "heads_nothing_in_an_outage", "outage_is_not_emptiness", level=4)
class HeadsNothingInAnOutage(DirectoryStore):
    """What can't be opened isn't there, if nobody wants its bytes."""

    async def head(self, key: str) -> ObjectInfo:
        try:
            return await super().head(key)
        except UnavailableError:
            raise NotFoundError(f"no such object: key={key}") from None


@mutant(KIND, "swaps_in_vain_in_an_outage", "outage_is_not_emptiness", level=4)
class SwapsInVainInAnOutage(DirectoryStore):
    """A token that can't be read is another one."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        try:
            return await super().compare_and_swap(key, body, token)
        except UnavailableError:
            raise ConflictError(f"the object changed: key={key}") from None


@mutant(KIND, "creates_in_vain_in_an_outage", "outage_is_not_emptiness", level=4)
class CreatesInVainInAnOutage(DirectoryStore):
    """What can't be created is there."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        try:
            return await super().put_if_absent(key, body)
        except UnavailableError:
            raise AlreadyExistsError(f"the object exists: key={key}") from None


@mutant(KIND, "deletes_nothing_in_an_outage", "outage_is_not_emptiness", level=4)
class DeletesNothingInAnOutage(DirectoryStore):
    """Says that all is deleted."""

    async def delete(self, keys: Sequence[str]) -> None:
        with suppress(UnavailableError):
            await super().delete(keys)


@mutant(KIND, "takes_what_it_could_not_create_for_there", "full_disk_is_told_and_harms_nothing", level=4)
class TakesWhatItCouldNotCreateForThere(DirectoryStore):
    """Notes which keys are taken before they are."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._begun: set[str] = set()

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if key in self._begun:
            raise AlreadyExistsError(f"the object exists: key={key}")
        try:
            return await super().put_if_absent(key, body)
        except UnavailableError:
            self._begun.add(key)
            raise


@mutant(KIND, "counts_no_failures", "outage_is_not_emptiness", level=4)
class CountsNoFailures(DirectoryStore):
    """Tells how often it was asked, and not how often in vain."""

    def statistics(self) -> ObjectStoreStatistics:
        return replace(super().statistics(), errors=0, consecutive_failures=0, last_error="")


@mutant(KIND, "is_in_an_outage_for_ever", "outage_is_not_emptiness", level=4)
class IsInAnOutageForEver(DirectoryStore):
    """Takes all failures for such as follow each other."""

    def statistics(self) -> ObjectStoreStatistics:
        told = super().statistics()
        return replace(told, consecutive_failures=told.errors)


@mutant(KIND, "says_why_though_nothing_failed", "counters_begin_with_the_opener")
class SaysWhyThoughNothingFailed(DirectoryStore):
    """Has a word for the state of a disk that is well."""

    def statistics(self) -> ObjectStoreStatistics:
        told = super().statistics()
        return replace(told, last_error=told.last_error or "none")


@mutant(KIND, "makes_room_for_a_swap", "full_disk_is_told_and_harms_nothing", level=4)
class MakesRoomForASwap(DirectoryStore):
    """Removes what it swaps first."""

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        if locked:
            self._path(key).unlink()
        return super()._write(key, body, exclusive=exclusive, locked=locked)


@mutant(KIND, "takes_a_refusal_for_no_answer", "outage_is_not_emptiness", level=4)
class TakesARefusalForNoAnswer(DirectoryStore):
    """Ends an outage when a call has done what it was asked for."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        failures = self._counts.consecutive_failures
        try:
            return await super().put_if_absent(key, body)
        except AlreadyExistsError:
            self._counts.consecutive_failures = failures
            raise


class _StaysInAnOutage(DirectoryStore):
    """Takes some answers for no sign that the outage is over."""

    def _keeps(self, before: int) -> None:
        self._counts.consecutive_failures = before


@mutant(KIND, "puts_end_no_outage", "outage_is_not_emptiness", level=4)
class PutsEndNoOutage(_StaysInAnOutage):
    """Counts attempts to read."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        before = self._counts.consecutive_failures
        token = await super().put(key, body)
        self._keeps(before)
        return token


@mutant(KIND, "missing_objects_end_no_outage", "outage_is_not_emptiness", level=4)
class MissingObjectsEndNoOutage(_StaysInAnOutage):
    """Nothing was read."""

    async def head(self, key: str) -> ObjectInfo:
        before = self._counts.consecutive_failures
        try:
            return await super().head(key)
        except NotFoundError:
            self._keeps(before)
            raise


@mutant(KIND, "tells_no_failures_of_many_deletions", "outage_is_not_emptiness", level=4)
class TellsNoFailuresOfManyDeletions(DirectoryStore):
    """One of them may have been deleted."""

    async def delete(self, keys: Sequence[str]) -> None:
        with suppress(UnavailableError) if len(keys) > 1 else nullcontext():
            await super().delete(keys)


@mutant(KIND, "tells_why_and_what", "outage_is_not_emptiness", level=4)
class TellsWhyAndWhat(DirectoryStore):
    """Statistics say which bytes couldn't be written."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        try:
            return await super().put(key, body)
        except UnavailableError:
            self._what = b"".join(body).decode()
            raise

    def statistics(self) -> ObjectStoreStatistics:
        told = super().statistics()
        return replace(told, last_error=told.last_error and f"{told.last_error} {getattr(self, '_what', '')}")
