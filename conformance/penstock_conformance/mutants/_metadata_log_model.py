"""Metadata logs that are wrong beside others, later on, about odd bytes, and in what they count."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.metadata_log import MetadataEntry, MetadataLogStatistics, MetadataSnapshot
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._metadata_log import _HEAD, PlainMetadataLog

KIND = "metadata_log"

_MODEL = "random_histories_agree_with_a_model"
_OUTAGES = "random_histories_with_outages_agree_with_a_model"
_DAMAGE = "damage_of_any_entry_is_reported"
_COST = "appends_and_waits_ask_the_store_little"
_GROWTH = "long_use_grows_nothing"


@mutant(KIND, "reads_into_one_buffer", _MODEL)
class ReadsIntoOneBuffer(PlainMetadataLog):
    """Hands out views of memory that the next entry is read into."""

    _buffer = bytearray(2**20)

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        data = super()._decode(index, raw).data
        self._buffer[: len(data)] = data
        view: Any = memoryview(self._buffer)[: len(data)]
        return MetadataEntry(index, view)


@mutant(KIND, "takes_the_same_bytes_for_its_own", _MODEL)
class TakesTheSameBytesForItsOwn(PlainMetadataLog):
    """Resolves whose entry it is by what is in it: two writers of the same words both win."""

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except AlreadyExistsError:
            if bytes(await self._store.get(key))[_HEAD.size :] != body[_HEAD.size :]:
                raise


@mutant(KIND, "forgives_a_conflict_after_an_outage", _OUTAGES, level=4)
class ForgivesAConflictAfterAnOutage(PlainMetadataLog):
    """Takes whatever is there after a failed append for what it tried."""

    _failed = False

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except UnavailableError:
            self._failed = True
            raise
        except ConflictError:
            if not self._failed:
                raise
            self._failed = False


@mutant(KIND, "has_one_place_for_all_readers", _MODEL)
class HasOnePlaceForAllReaders(PlainMetadataLog):
    """Two who read at once get what the other one didn't."""

    _readers = 0
    _place = 0

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        self._readers += 1
        self._place = max(self._place, start_index) if self._readers > 1 else start_index
        try:
            async for entry in super().read(start_index):
                if self._readers == 1 or entry.index >= self._place:
                    self._place = entry.index
                    yield entry
        finally:
            self._readers -= 1


@mutant(KIND, "goes_on_where_a_reader_left", _MODEL)
class GoesOnWhereAReaderLeft(PlainMetadataLog):
    """A read that was left half-way is missing an entry in the next one."""

    _left = 0

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        left, self._left = self._left, 0
        at = 0
        try:
            async for entry in super().read(start_index):
                if entry.index != left:
                    at = entry.index + 1
                    yield entry
            at = 0
        finally:
            self._left = at


@mutant(KIND, "reads_before_its_start", _MODEL)
class ReadsBeforeItsStart(PlainMetadataLog):
    """Whoever asks for what is far past the end gets the last entry once more."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        last = await self._find_last()
        async for entry in super().read(last if 0 < last < start_index - 1 else start_index):
            yield entry


@mutant(KIND, "hears_only_of_the_next_entry", _MODEL, hangs=True)
class HearsOnlyOfTheNextEntry(PlainMetadataLog):
    """Who waits for an index further on waits for ever."""

    async def wait_for_news(self, after_index: int) -> None:
        if after_index > self._last_index:
            while not self._closed:
                await self._news.wait()
        await super().wait_for_news(after_index)


@mutant(KIND, "forgets_who_waits_at_a_snapshot", _MODEL, hangs=True)
class ForgetsWhoWaitsAtASnapshot(PlainMetadataLog):
    """Begins anew with a snapshot, also with those who wait."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        self._news = anyio.Event()
        await super().write_snapshot(snapshot)


@mutant(KIND, "says_nothing_of_what_it_reads", _MODEL, hangs=True)
class SaysNothingOfWhatItReads(PlainMetadataLog):
    """Who waits hears only of what was appended here."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        self._last_index = max(self._last_index, index)
        return super()._decode(index, raw)


@mutant(KIND, "tells_of_the_last_written_snapshot", _MODEL)
class TellsOfTheLastWrittenSnapshot(PlainMetadataLog):
    """The figure goes back with a snapshot of an older index."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        self._snapshot_index = snapshot.index


@mutant(KIND, "drops_what_comes_beside_a_snapshot", _MODEL)
class DropsWhatComesBesideASnapshot(PlainMetadataLog):
    """The third snapshot takes entries along that were appended while it was written."""

    _times = 0

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        last = self._last_index
        self._times += 1
        await super().write_snapshot(snapshot)
        if self._times > 2:
            await self._store.delete([self._key(index) for index in range(last + 1, self._last_index)])


@mutant(KIND, "takes_an_empty_snapshot_for_none", _MODEL)
class TakesAnEmptySnapshotForNone(PlainMetadataLog):
    """A state of no bytes is none."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        found = await super().read_snapshot()
        return found if found is not None and found.data else None


@mutant(KIND, "strips_texts", _MODEL)
class StripsTexts(PlainMetadataLog):
    """Takes what ends an entry for what ends a line."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return MetadataEntry(index, super()._decode(index, raw).data.rstrip(b"\n"))


@mutant(KIND, "strips_snapshots", _MODEL)
class StripsSnapshots(PlainMetadataLog):
    """Takes the zeros at the end of a state for padding."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        found = await super().read_snapshot()
        return None if found is None else MetadataSnapshot(found.index, found.data.rstrip(b"\0"))


@mutant(KIND, "counts_gaps_as_conflicts", _MODEL)
class CountsGapsAsConflicts(PlainMetadataLog):
    """Every refusal is a conflict to it."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except InvalidRequestError:
            self._conflicts += 1
            raise


@mutant(KIND, "counts_attempts_as_appends", _MODEL)
class CountsAttemptsAsAppends(PlainMetadataLog):
    """Counts what it was asked for."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            self._appends += 1
            raise


@mutant(KIND, "has_one_snapshot_of_figures", _MODEL)
class HasOneSnapshotOfFigures(PlainMetadataLog):
    """Gives everybody the same object, which goes along."""

    _told: MetadataLogStatistics | None = None

    def statistics(self) -> MetadataLogStatistics:
        now = super().statistics()
        self._told = self._told or now
        for name in MetadataLogStatistics.__dataclass_fields__:
            object.__setattr__(self._told, name, getattr(now, name))
        return self._told


@mutant(KIND, "tells_of_a_snapshot_that_failed", _OUTAGES, level=4)
class TellsOfASnapshotThatFailed(PlainMetadataLog):
    """Notes the index before it writes."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        self._snapshot_index = max(self._snapshot_index, snapshot.index)
        await super().write_snapshot(snapshot)


@mutant(KIND, "counts_an_append_that_failed", _OUTAGES, level=4)
class CountsAnAppendThatFailed(PlainMetadataLog):
    """Takes what it sent for what is there, in its figures only."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except UnavailableError:
            self._appends += 1
            raise


@mutant(KIND, "knows_an_entry_that_failed", _OUTAGES, level=4)
class KnowsAnEntryThatFailed(PlainMetadataLog):
    """Tells the index that it tried last."""

    _tried = 0

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except UnavailableError:
            self._tried = index
            raise

    def statistics(self) -> MetadataLogStatistics:
        told = super().statistics()
        return replace(told, last_index=max(told.last_index, self._tried))


@mutant(KIND, "ends_a_read_at_an_outage", _OUTAGES, level=4)
class EndsAReadAtAnOutage(PlainMetadataLog):
    """Tells of an outage only if it comes before the first entry."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        some = False
        try:
            async for entry in super().read(start_index):
                some = True
                yield entry
        except UnavailableError:
            if not some:
                raise


class _StoresLater(PlainMetadataLog):
    """Acknowledges some entries before they are stored."""

    _created = 0

    def _is_late(self, body: bytes) -> bool:
        raise NotImplementedError

    async def _create(self, key: str, body: bytes) -> None:
        self._created += 1
        if not self._is_late(body):
            await super()._create(key, body)
            return
        self._task = asyncio.get_running_loop().create_task(super()._create(key, body))
        await anyio.lowlevel.checkpoint()


@mutant(KIND, "acks_small_entries_at_once", "acknowledged_entries_are_stored", level=4)
class AcksSmallEntriesAtOnce(_StoresLater):
    """Stores what is small when there is time."""

    def _is_late(self, body: bytes) -> bool:
        return len(body) < 64


@mutant(KIND, "acks_at_once_when_warm", "acknowledged_entries_are_stored", level=4)
class AcksAtOnceWhenWarm(_StoresLater):
    """Waits for the store no more once that went well a hundred times."""

    def _is_late(self, body: bytes) -> bool:
        return self._created > 100


@mutant(KIND, "takes_a_snapshot_that_went_for_none", "snapshot_that_goes_while_it_is_read", level=4)
class TakesASnapshotThatWentForNone(PlainMetadataLog):
    """Lists the snapshots once."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        keys = [info.key async for info in self._store.list("snapshot/")]
        try:
            body = bytes(await self._store.get(keys[-1])) if keys else b""
        except NotFoundError:
            return None
        return MetadataSnapshot(int(keys[-1].rpartition("/")[2]), body[_HEAD.size :]) if keys else None


@mutant(KIND, "leaves_large_entries_unchecked", _DAMAGE, level=3)
class LeavesLargeEntriesUnchecked(PlainMetadataLog):
    """A checksum of much takes long."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return MetadataEntry(index, raw[_HEAD.size :]) if len(raw) > 65536 else super()._decode(index, raw)


@mutant(KIND, "leaves_the_first_entry_unchecked", _DAMAGE, level=3)
class LeavesTheFirstEntryUnchecked(PlainMetadataLog):
    """Checks each entry with the one before."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return MetadataEntry(index, raw[_HEAD.size :]) if index == 1 else super()._decode(index, raw)


@mutant(KIND, "checks_each_entry_once", _DAMAGE, level=3)
class ChecksEachEntryOnce(PlainMetadataLog):
    """What was whole when it was read first is whole."""

    _checked = 0

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        if index <= self._checked:
            return MetadataEntry(index, raw[_HEAD.size :])
        self._checked = index
        return super()._decode(index, raw)


@mutant(KIND, "leaves_large_snapshots_unchecked", "damage_of_a_large_snapshot_is_reported", level=3)
class LeavesLargeSnapshotsUnchecked(PlainMetadataLog):
    """A checksum of much takes long."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        keys = [info.key async for info in self._store.list("snapshot/")]
        body = bytes(await self._store.get(keys[-1])) if keys else b""
        if len(body) < 2**20:
            return await super().read_snapshot()
        return MetadataSnapshot(int(keys[-1].rpartition("/")[2]), body[_HEAD.size :])


@mutant(KIND, "keeps_a_descriptor_of_each_conflict", _GROWTH, level=5)
class KeepsADescriptorOfEachConflict(PlainMetadataLog):
    """Looks whose entry it is, and doesn't close it."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            os.open("/dev/null", os.O_RDONLY)
            raise


@mutant(KIND, "keeps_a_task_of_each_wait", _GROWTH, level=5)
class KeepsATaskOfEachWait(PlainMetadataLog):
    """Who gives up leaves a task that waits on."""

    async def wait_for_news(self, after_index: int) -> None:
        await asyncio.shield(asyncio.get_running_loop().create_task(super().wait_for_news(after_index)))


@mutant(KIND, "lists_all_with_each_append", _COST, level=5)
class ListsAllWithEachAppend(PlainMetadataLog):
    """Looks at each entry that there is."""

    async def append(self, index: int, data: bytes) -> None:
        await super().append(index, data)
        for each in range(1, index):
            await self._store.get(self._key(each))


@mutant(KIND, "looks_all_the_time", _COST, level=5)
class LooksAllTheTime(PlainMetadataLog):
    """Hears of news at once, for as many requests as go."""

    async def wait_for_news(self, after_index: int) -> None:
        while self._last_index <= after_index:
            self._check_open()
            await self._find_last()


@mutant(KIND, "is_left_open_by_an_error", "waiters_are_answered_at_the_end", hangs=True)
class IsLeftOpenByAnError(PlainMetadataLog):
    """Closes behind its ``yield``, without ``try`` and ``finally``."""

    def close(self) -> None:
        if sys.exc_info()[1] is None:
            super().close()


@mutant(KIND, "is_left_open_by_a_cancellation", "waiters_are_answered_at_the_end", hangs=True)
class IsLeftOpenByACancellation(PlainMetadataLog):
    """Waits for something before it closes, and is cancelled there."""

    def close(self) -> None:
        if not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            super().close()
