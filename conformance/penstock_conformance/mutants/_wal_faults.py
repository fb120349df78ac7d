"""Write-ahead logs that are right as long as their medium is."""

from __future__ import annotations

__all__ = ()

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar
from unittest.mock import patch

from crc32c import crc32c

from penstock.errors import AlreadyExistsError, CorruptError, FencedError, FullError, UnavailableError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.mutants._wal_in_store import StoreWal
from penstock_conformance.reference._wal import _RECORD, RECORD_BYTES, FileWal

KIND = "wal"

FileGroup = list[tuple[WalAppend, list[Buffer]]]

_FAILED = "failed_writes_are_told_and_leave_no_hole"
_FULL = "full_medium_is_told_and_leaves_no_hole"
_SYNCS = "failed_syncs_acknowledge_nothing"
_SHORT = "short_writes_are_completed_or_told"
_POWER = "power_cut_takes_nothing_that_was_acknowledged"
_SYNCED = "each_acknowledgement_is_of_what_is_synced"
_UNSYNCED = "no_group_is_acknowledged_unsynced"
_LOST = "lost_replies_are_resolved"
_OUTAGE = "outage_is_not_the_end_of_the_log"
_TRIM = "failed_trim_loses_nothing"
_TRIM_FAILED = "trim_of_a_log_that_has_failed_says_so_or_nothing"
_LATE = "late_write_of_a_fenced_owner_is_never_acknowledged"
_ORDER = "writes_that_end_out_of_order_are_acknowledged_in_order"


class WithSteps(FileWal):
    """Writes and syncs in two steps, so that a mutant can get one of them wrong."""

    def _write(self, group: FileGroup) -> None:
        pieces = []
        for append, data in group:
            payload = b"".join(data)
            pieces.append(self._record_of(append, payload))
        self._write_block(b"".join(pieces), group[0][0].position)
        self._sync(len(group))

    def _record_of(self, append: WalAppend, payload: bytes) -> bytes:
        head = _RECORD.pack(b"PCWL", len(payload), append.position, self._confirmed)
        return head + crc32c(payload, crc32c(head)).to_bytes(4, "big") + payload

    def _write_block(self, block: bytes, position: int) -> None:
        if os.pwrite(self._file, block, position) != len(block):
            raise OSError(errno.ENOSPC, "the medium took a part of a group only")

    def _sync(self, entries: int) -> None:
        os.fdatasync(self._file)


@mutant(KIND, "acks_on_a_write_error", _FAILED, level=4)
class AcksOnAWriteError(WithSteps):
    """Looks at errors of the sync, as that is what makes durable."""

    def _write_block(self, block: bytes, position: int) -> None:
        with suppress(OSError):
            super()._write_block(block, position)


@mutant(KIND, "goes_on_behind_a_failed_group", _FAILED, level=4)
class GoesOnBehindAFailedGroup(WithSteps):
    """Fails the group that couldn't be written, and takes the next one, which was appended before that was told."""

    def _fail(self, state: str, group: FileGroup, error: Exception) -> None:
        if state != "failed":
            super()._fail(state, group, error)
            return
        for append, _ in group:
            append.complete(error)


@mutant(KIND, "takes_a_trim_after_its_end_for_a_bug", _TRIM_FAILED, level=4)
class TakesATrimAfterItsEndForABug(WithSteps):
    """Has nothing left that a trim could be about, and didn't expect one."""

    async def trim(self, position: int) -> None:
        if self._state == "failed":
            raise ValueError("there is nothing to trim")
        await super().trim(position)


@mutant(KIND, "waits_for_room_and_forgets", _FULL, level=4)
class WaitsForRoomAndForgets(WithSteps):
    """Takes a full disk for something that passes, and doesn't write again what it was about."""

    def _write_block(self, block: bytes, position: int) -> None:
        try:
            super()._write_block(block, position)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@mutant(KIND, "raises_what_the_system_raises", _FULL, level=4)
class RaisesWhatTheSystemRaises(WithSteps):
    """Tells errors as they come."""

    def _fail(self, state: str, group: FileGroup, error: Exception) -> None:
        super()._fail(state, group, OSError(errno.ENOSPC, str(error)) if state == "failed" else error)


@mutant(KIND, "syncs_again", _SYNCS, level=4)
class SyncsAgain(WithSteps):
    """Believes the second sync, which knows nothing of what the first one dropped."""

    def _sync(self, entries: int) -> None:
        try:
            super()._sync(entries)
        except OSError:
            os.fdatasync(self._file)


@mutant(KIND, "ignores_failed_syncs", _SYNCS, level=4)
class IgnoresFailedSyncs(WithSteps):
    """Takes what is in the page cache for durable enough."""

    def _sync(self, entries: int) -> None:
        with suppress(OSError):
            super()._sync(entries)


@mutant(KIND, "believes_every_write", _SHORT, level=4)
class BelievesEveryWrite(WithSteps):
    """Doesn't look how much was written."""

    def _write_block(self, block: bytes, position: int) -> None:
        os.pwrite(self._file, block, position)


@mutant(KIND, "begins_anew_after_a_short_write", _SHORT, level=4)
class BeginsAnewAfterAShortWrite(WithSteps):
    """Writes the rest where the whole began."""

    def _write_block(self, block: bytes, position: int) -> None:
        done = 0
        while done < len(block):
            done += os.pwrite(self._file, block[done:], position)


@mutant(KIND, "syncs_small_groups", _POWER, level=4)
class SyncsSmallGroups(WithSteps):
    """Leaves large groups to the system, which will write them soon."""

    def _sync(self, entries: int) -> None:
        if entries < 64:
            super()._sync(entries)


@mutant(KIND, "syncs_before_it_writes", _POWER, level=4)
class SyncsBeforeItWrites(WithSteps):
    """Syncs what was written for the group before."""

    def _write_block(self, block: bytes, position: int) -> None:
        os.fdatasync(self._file)
        super()._write_block(block, position)

    def _sync(self, entries: int) -> None:
        """Done."""


@mutant(KIND, "never_syncs", _POWER, level=4)
class NeverSyncs(WithSteps):
    """Survives a kill, and no power cut."""

    def _sync(self, entries: int) -> None:
        """What for?"""


@mutant(KIND, "marks_groups_before_they_are_durable", _POWER, level=4)
class MarksGroupsBeforeTheyAreDurable(WithSteps):
    """Notes in the header where the log will end, so that a torn tail is taken for a loss."""

    def _write_block(self, block: bytes, position: int) -> None:
        self._header = self._header._replace(confirmed=position + len(block))
        self._write_header()
        super()._write_block(block, position)


@mutant(KIND, "has_synced_with_the_trim", _SYNCED, level=4)
class HasSyncedWithTheTrim(WithSteps):
    """Takes the sync of a trim for that of the next group."""

    _has_synced = False

    def _drop(self, position: int) -> None:
        super()._drop(position)
        self._has_synced = True

    def _sync(self, entries: int) -> None:
        if not self._has_synced:
            super()._sync(entries)
        self._has_synced = False


@mutant(KIND, "syncs_most_groups", _SYNCED, level=4)
class SyncsMostGroups(WithSteps):
    """Leaves each ninth group to the sync of the next."""

    def _sync(self, entries: int) -> None:
        if self._groups % 9 != 8:
            super()._sync(entries)


@mutant(KIND, "takes_its_own_object_for_anothers", _LOST, level=4)
class TakesItsOwnObjectForAnothers(StoreWal):
    """Whoever has the number is the owner."""

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        try:
            await self._store.put_if_absent(self._key(slot), body)
        except AlreadyExistsError:
            raise FencedError("another owner has the number") from None


@mutant(KIND, "puts_again_under_the_next_number", _LOST, level=4)
class PutsAgainUnderTheNextNumber(StoreWal):
    """Is on the safe side when it doesn't know."""

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        try:
            await super()._put_once(slot, body)
        except UnavailableError:
            await super()._put_once(self._slot, body)
            self._slot += 1


@mutant(KIND, "fails_what_is_there_and_goes_on", _LOST, level=4)
class FailsWhatIsThereAndGoesOn(StoreWal):
    """Tells an error at the first lost reply, and goes on with the next group."""

    async def _put(self, slot: int, parts: list[Buffer]) -> None:
        if parts and not self._commit.idle:
            try:
                await self._put_once(slot, [_head(self), *parts])
            except UnavailableError:
                for group in list(self._commit._flying):
                    for append, _, _ in list(group.entries):
                        append.complete(UnavailableError("the store is away"))
                    group.entries.clear()
            return
        await super()._put(slot, parts)


def _head(wal: StoreWal) -> bytes:
    return wal._epoch.to_bytes(8, "big") + wal._nonce


@mutant(KIND, "acks_when_the_store_is_away", _FAILED, level=4)
class AcksWhenTheStoreIsAway(StoreWal):
    """Tries three times."""

    async def _put(self, slot: int, parts: list[Buffer]) -> None:
        with suppress(UnavailableError):
            await self._put_once(slot, [_head(self), *parts])


@mutant(KIND, "recovers_what_its_process_has", "what_was_recovered_is_in_the_store", level=4)
class RecoversWhatItsProcessHas(StoreWal):
    """What an owner of this process couldn't put is recovered by the next one, and put by nobody."""

    _left: ClassVar[dict[str, dict[int, WalEntry]]] = {}

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        entry = WalEntry(append.position, append.next_position, memoryview(b"".join(data)))
        self._left.setdefault(self._store.location, {})[append.position] = entry
        return append

    async def recover(self) -> AsyncIterator[WalEntry]:
        end = 0
        async for entry in super().recover():
            end = entry.next_position
            yield entry
        left = self._left.pop(self._store.location, {})
        for position in sorted(left):
            if position >= end:
                yield left[position]


@mutant(KIND, "ends_where_it_cannot_read", _OUTAGE, level=4)
class EndsWhereItCannotRead(StoreWal):
    """Returns what can be had."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        try:
            async for entry in super().recover():
                yield entry
        except (UnavailableError, CorruptError):
            self._commit.start(self._kept[-1][1] if self._kept else 0, len(self._kept))


@mutant(KIND, "lists_nothing_in_an_outage", _OUTAGE, level=4)
class ListsNothingInAnOutage(StoreWal):
    """Takes a failed listing for an empty one, in its recovery."""

    async def _slots(self) -> list[int]:
        try:
            return await super()._slots()
        except UnavailableError:
            if not self._slot:
                raise
            return []


@mutant(KIND, "takes_an_unreadable_file_for_a_new_one", _OUTAGE, level=4)
class TakesAnUnreadableFileForANewOne(FileWal):
    """Begins a log where there seems to be none."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        try:
            async for entry in super().recover():
                yield entry
        except UnavailableError:
            self._recovered = True


@mutant(KIND, "erases_before_it_notes", _TRIM, level=4)
class ErasesBeforeItNotes(FileWal):
    """Overwrites what is trimmed before the header says that it is."""

    def _drop(self, position: int) -> None:
        if self._ends and self._ends[0] <= position:
            os.pwrite(self._file, bytes(RECORD_BYTES), self._header.start)
        super()._drop(position)


@mutant(KIND, "raises_raw_errors_of_a_trim", _TRIM, level=4)
class RaisesRawErrorsOfATrim(FileWal):
    """Leaves it to the caller to know of disks."""

    async def trim(self, position: int) -> None:
        try:
            await super().trim(position)
        except UnavailableError as error:
            raise OSError(errno.EIO, str(error)) from error


@mutant(KIND, "deletes_from_the_end", _TRIM, level=4)
class DeletesFromTheEnd(StoreWal):
    """A hole that is trimmed is none, as long as everything goes."""

    async def _drop(self, slots: list[int]) -> None:
        for slot in sorted(slots, reverse=True):
            try:
                await self._store.delete([self._key(slot)])
            except UnavailableError:
                return


@mutant(KIND, "forgets_what_a_failed_trim_left", _TRIM, level=4)
class ForgetsWhatAFailedTrimLeft(StoreWal):
    """Begins each trim behind the one before, whatever came of that: a hole is between them."""

    async def _drop(self, slots: list[int]) -> None:
        self._undropped = []
        await super()._drop(slots)


@mutant(KIND, "takes_any_object_for_its_own", _LATE, level=4)
class TakesAnyObjectForItsOwn(StoreWal):
    """Exists is as good as done: somebody must have put it."""

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        with suppress(AlreadyExistsError):
            await self._store.put_if_absent(self._key(slot), body)


@mutant(KIND, "puts_over_what_is_there", _LATE, level=4)
class PutsOverWhatIsThere(StoreWal):
    """Looks whether the number is taken, and puts."""

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        if slot in await self._slots():
            await super()._put_once(slot, body)
        else:
            await self._store.put(self._key(slot), body)


@mutant(KIND, "goes_around_whoever_is_there", _LATE, level=4)
class GoesAroundWhoeverIsThere(StoreWal):
    """Takes the next number if this one is taken."""

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        while True:
            try:
                await super()._put_once(slot, body)
                return
            except FencedError:
                if len(body) == 1:
                    raise
                slot += 1
                self._slot = slot + 1


@mutant(KIND, "acks_in_the_order_of_the_store", _ORDER, level=4)
class AcksInTheOrderOfTheStore(StoreWal):
    """Answers each group when its object is there, whatever is missing before it."""

    writes_max = 4

    async def _write(self, begun: tuple[int, list[Buffer]]) -> None:
        await super()._write(begun)
        for group in list(self._commit._flying):
            if group.end_position == dict(self._kept)[begun[0]]:
                for append, _, _ in group.entries:
                    append.complete()
                group.entries.clear()


@mutant(KIND, "loses_what_lands_behind_a_gap", _ORDER, level=4)
class LosesWhatLandsBehindAGap(StoreWal):
    """Acknowledges the oldest group when any is there: as many as are durable."""

    writes_max = 4

    async def _write(self, begun: tuple[int, list[Buffer]]) -> None:
        await super()._write(begun)
        first = self._commit._flying[0]
        for append, _, _ in first.entries:
            append.complete()
        first.entries.clear()


@mutant(KIND, "says_that_it_is_sealed", "failed_seal_is_told", level=4)
class SaysThatItIsSealed(FileWal):
    """Takes no more appends itself, and leaves it at that if the seal can't be written."""

    async def seal(self) -> None:
        try:
            await super().seal()
        except OSError:
            self._fail("fenced", [], FencedError("the log is sealed"))


@mutant(KIND, "leaves_torn_groups_behind_its_end", "what_a_power_cut_left_behind_never_comes_back", level=4)
class LeavesTornGroupsBehindItsEnd(FileWal):
    """Goes on in the middle of the group that a cut has torn, and removes nothing of its end."""

    def _settle(self, position: int) -> None:
        self._end = self._confirmed = position


class _Spares(FileWal):
    """Spares the sync of some groups."""

    def _is_spared(self, size: int) -> bool:
        raise NotImplementedError

    def _write(self, group: FileGroup) -> None:
        if not self._is_spared(group[-1][0].next_position - group[0][0].position):
            super()._write(group)
            return
        for append, data in group:
            payload = b"".join(data)
            head = _RECORD.pack(b"PCWL", len(payload), append.position, self._confirmed)
            record = head + crc32c(payload, crc32c(head)).to_bytes(4, "big") + payload
            os.pwrite(self._file, record, append.position)


@mutant(KIND, "syncs_no_large_groups", _UNSYNCED, level=4)
class SyncsNoLargeGroups(_Spares):
    """The system writes so much at once by itself."""

    def _is_spared(self, size: int) -> bool:
        return size > 500_000


@mutant(KIND, "syncs_no_whole_pages", _UNSYNCED, level=4)
class SyncsNoWholePages(_Spares):
    """Of whole pages nothing is left to write."""

    def _is_spared(self, size: int) -> bool:
        return size % 4096 == 0


@mutant(KIND, "syncs_every_other_group_of_a_long_life", _UNSYNCED, level=4)
class SyncsEveryOtherGroupOfALongLife(_Spares):
    """Who appends that much is in a hurry."""

    def _is_spared(self, size: int) -> bool:
        return self._groups > 256 and self._groups % 2 == 0


@mutant(KIND, "syncs_nothing_behind_a_refusal", _UNSYNCED, level=4)
class SyncsNothingBehindARefusal(_Spares):
    """What is asked for once more has been synced before, it thinks."""

    _refused = False

    def _check_room(self, size: int) -> None:
        try:
            super()._check_room(size)
        except FullError:
            self._refused = True
            raise

    def _is_spared(self, size: int) -> bool:
        refused, self._refused = self._refused, False
        return refused


@mutant(KIND, "says_fenced_when_it_failed", _FAILED, level=4)
class SaysFencedWhenItFailed(FileWal):
    """Either way it takes no more."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, state="fenced") if told.state == "failed" else told


@mutant(KIND, "writes_the_rest_when_it_has_synced", "short_writes_are_completed_or_told", level=4)
class WritesTheRestWhenItHasSynced(FileWal):
    """A write that took a part is completed behind the sync."""

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        rest: list[tuple[bytes, int]] = []
        pwrite = os.pwrite

        def write(file: int, data: bytes, place: int) -> int:
            written = pwrite(file, data, place)
            rest.append((data[written:], place + written))
            return len(data)

        with patch.object(os, "pwrite", write):
            super()._write(group)
        for data, place in rest:
            while data:
                written = pwrite(self._file, data, place)
                data, place = data[written:], place + written


@mutant(KIND, "seals_without_a_sync", "power_cut_unseals_nothing", level=4)
class SealsWithoutASync(FileWal):
    """Nothing will be written any more, so nothing has to be synced."""

    def _write_header(self) -> None:
        if not self._header.sealed:
            super()._write_header()
            return
        with patch.object(os, "fdatasync", lambda file: None):
            super()._write_header()
