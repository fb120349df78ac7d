"""Write-ahead logs that are wrong about ends: of an opening in vain, of an owner that was fenced, or has failed."""

from __future__ import annotations

__all__ = ()

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from anyio.lowlevel import checkpoint
from crc32c import crc32c

from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    FullError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._wal import _CRC, _HEADER_BYTES, _MAGIC, _RECORD, FileWal

KIND = "wal"

_FENCED = "recovery_and_end_of_a_fenced_owner_change_nothing"
_VAIN = "failed_opening_leaves_nothing"
_Group = list[tuple[WalAppend, list[Buffer]]]
_LOOK = "looks_in_an_outage_find_no_other_log"


@mutant(KIND, "calls_itself_open_when_it_has_failed", "failed_writes_are_told_and_leave_no_hole", level=4)
class CallsItselfOpenWhenItHasFailed(FileWal):
    """Knows of two ends, its own and a fence."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, state="open") if told.state == "failed" else told


# --- openings in vain


@mutant(KIND, "keeps_the_file_that_it_could_not_open", _VAIN, level=4)
class KeepsTheFileThatItCouldNotOpen(FileWal):
    """Closes it where it ends in order."""

    def _take_over(self) -> None:
        try:
            super()._take_over()
        except OSError:
            os.dup(self._file)
            raise


@mutant(KIND, "keeps_the_file_that_it_could_not_recover", _VAIN, level=4)
class KeepsTheFileThatItCouldNotRecover(FileWal):
    """Reads through a descriptor that a successful read closes."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        try:
            async for entry in super().recover():
                yield entry
        except UnavailableError:
            os.dup(self._file)
            raise


@mutant(KIND, "keeps_the_file_that_is_damaged", "no_damage_is_passed_over", level=3)
class KeepsTheFileThatIsDamaged(FileWal):
    """For whoever mends it."""

    def _take_over(self) -> None:
        try:
            super()._take_over()
        except CorruptError:
            os.dup(self._file)
            raise

    async def recover(self) -> AsyncIterator[WalEntry]:
        try:
            async for entry in super().recover():
                yield entry
        except CorruptError:
            os.dup(self._file)
            raise


# --- the end of an owner that is fenced


@mutant(KIND, "cuts_the_log_where_it_saw_its_end", _FENCED)
class CutsTheLogWhereItSawItsEnd(FileWal):
    """Ends its recovery as if nobody had come meanwhile."""

    def _settle(self, position: int) -> None:
        os.ftruncate(self._file, position)
        super()._settle(position)


@mutant(KIND, "takes_the_log_back_at_its_end", _FENCED)
class TakesTheLogBackAtItsEnd(FileWal):
    """Writes its header once more as it is closed."""

    def close(self) -> None:
        with suppress(OSError), self._locked():
            self._header = self._header._replace(sealed=self._read_header().sealed)
            self._write_header()
        super().close()


@mutant(KIND, "takes_its_fence_for_a_seal", "seal_of_a_fenced_owner_is_told")
class TakesItsFenceForASeal(FileWal):
    """Acknowledges nothing more itself, so it has nothing to do."""

    async def seal(self) -> None:
        if self._read_header().epoch == self._epoch:
            await super().seal()


@mutant(KIND, "takes_its_failure_for_a_seal", "failed_seal_is_told", level=4)
class TakesItsFailureForASeal(FileWal):
    """A log that has failed takes no appends."""

    async def seal(self) -> None:
        if self._state == "open":
            await super().seal()


# --- what is seen from outside


@mutant(KIND, "is_another_log_after_a_kill", "acknowledged_entries_survive_a_kill", level=3)
class IsAnotherLogAfterAKill(FileWal):
    """Draws its identity anew where it wasn't closed."""

    def _clean(self) -> Path:
        return self._path.with_suffix(".clean")

    def _take_over(self) -> None:
        super()._take_over()
        if not self._clean().exists() and os.fstat(self._file).st_size > self._header.start:
            self._header = self._header._replace(identity=os.urandom(8))
            self._write_header()
        self._clean().unlink(missing_ok=True)

    def close(self) -> None:
        super().close()
        self._clean().touch()


def _seen(path: Path) -> bytes:
    """What is read with a call that may fail."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


@mutant(KIND, "has_no_identity_in_an_outage", _LOOK, level=4)
class HasNoIdentityInAnOutage(FileWal):
    """What can't be read isn't there."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        try:
            _seen(path)
        except OSError:
            return None
        return super().identify(path, epoch)


@mutant(KIND, "shows_less_in_an_outage", _LOOK, level=4)
class ShowsLessInAnOutage(FileWal):
    """Reads as far as it comes."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        async for entry in super().read(path, epoch):
            yield entry
            with suppress(FileNotFoundError):
                try:
                    _seen(path)
                except OSError:
                    return


# --- what is told and kept


@mutant(KIND, "has_its_last_entries_pend_for_ever", "failed_writes_are_told_and_leave_no_hole", level=4)
class HasItsLastEntriesPendForEver(FileWal):
    """Takes what failed for what waits."""

    _lost = 0

    def _fail(self, state: str, group: _Group, error: Exception) -> None:
        self._lost = len(group) if state == "failed" else 0
        super()._fail(state, group, error)

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, pending_entries=told.pending_entries + self._lost)


@mutant(KIND, "counts_what_it_refuses", "failed_writes_are_told_and_leave_no_hole", level=4)
class CountsWhatItRefuses(FileWal):
    """Counts calls."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        try:
            return super().append(data, checksum)
        except ClosedError:
            self._entries += 1
            raise


@mutant(KIND, "is_another_log_when_it_is_sealed", "sealed_log_stays_sealed")
class IsAnotherLogWhenItIsSealed(FileWal):
    """Writes its header as if it were the first."""

    async def seal(self) -> None:
        await super().seal()
        with self._locked():
            self._header = self._header._replace(sealed=True, identity=os.urandom(8))
            self._write_header()


@mutant(KIND, "is_known_by_its_file", "log_made_anew_is_another_one")
class IsKnownByItsFile(FileWal):
    """Takes the number of the file for the identity of what is in it."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        return None if super().identify(path, epoch) is None else f"inode-{path.stat().st_ino}"


@mutant(KIND, "is_unfenced_by_a_trim", "fence_outlasts_what_the_successor_does")
class IsUnfencedByATrim(FileWal):
    """Writes no epoch with its start, and takes a log without one for its own."""

    def _is_owner(self) -> bool:
        header = self._read_header()
        return header.epoch in (0, self._epoch) and not header.sealed

    def _drop(self, position: int) -> None:
        super()._drop(position)
        if self._state == "open" and self._header.start > _HEADER_BYTES:
            header = self._header
            with self._locked():
                self._header = header._replace(epoch=0)
                self._write_header()
            self._header = header


@mutant(KIND, "has_the_last_of_several_trims_win", "trims_beside_each_other_free_what_the_furthest_frees")
class HasTheLastOfSeveralTrimsWin(FileWal):
    """Tells, and counts the room of, the trim that ended last."""

    _told = 0
    _trims = 0

    async def trim(self, position: int) -> None:
        alone = not self._trims
        self._trims += 1
        try:
            await super().trim(position)
            self._told = max(self._told, self._header.start) if alone else min(position, self._header.start)
        finally:
            self._trims -= 1

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), trimmed_position=self._told, used_bytes=self._end - self._told)


@mutant(KIND, "seals_with_what_callbacks_append", "seal_meets_what_is_pending")
class SealsWithWhatCallbacksAppend(FileWal):
    """Writes what callbacks of its last group append one turn after the seal."""

    _sealing = False

    async def seal(self) -> None:
        await checkpoint()
        self._flush()
        self._sealing = bool(self._queue)
        with self._locked():
            self._header = self._header._replace(sealed=True, confirmed=self._confirmed)
            self._write_header()
        if not self._sealing:
            self._fail("fenced", [], FencedError("the log is sealed"))

    def _is_owner(self) -> bool:
        header = self._read_header()
        return header.epoch == self._epoch and (self._sealing or not header.sealed)


@mutant(KIND, "seals_when_closed", "closed_log_refuses_appends")
class SealsWhenClosed(FileWal):
    """Has nothing to seal any more, and says that it has."""

    async def seal(self) -> None:
        if self._state != "closed":
            await super().seal()


@mutant(KIND, "recovers_nothing_again", "recover_returns_exactly_what_was_appended")
class RecoversNothingAgain(FileWal):
    """Goes on where it was: at the end."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        if not self._recovered:
            async for entry in super().recover():
                yield entry


@mutant(KIND, "flushes_its_end_without_a_sync", "what_is_flushed_at_the_end_is_synced", level=4)
class FlushesItsEndWithoutASync(FileWal):
    """Leaves the last group to the system, as nobody is there any more to wait for it."""

    _ending = False

    def close(self) -> None:
        self._ending = True
        super().close()

    def _write(self, group: _Group) -> None:
        if not self._ending:
            super()._write(group)
            return
        for append, data in group:
            payload = b"".join(data)
            head = _RECORD.pack(_MAGIC, len(payload), append.position, self._confirmed)
            record = head + _CRC.pack(crc32c(payload, crc32c(head))) + payload
            os.pwrite(self._file, record, append.position)

    def _write_header(self) -> None:
        if not self._ending:
            super()._write_header()


@mutant(KIND, "skips_the_hundredth_sync", "each_acknowledgement_is_of_what_is_synced", level=4)
class SkipsTheHundredthSync(FlushesItsEndWithoutASync):
    """Has synced so much already."""

    def _write(self, group: _Group) -> None:
        self._ending = self._groups % 100 == 99
        super()._write(group)
        self._ending = False

    def close(self) -> None:
        FileWal.close(self)


@mutant(KIND, "keeps_what_failed", "payloads_are_let_go")
class KeepsWhatFailed(FileWal):
    """Has the entries at hand that it couldn't write."""

    def _fail(self, state: str, group: _Group, error: Exception) -> None:
        self._failed = [*group, *self._queue]
        super()._fail(state, group, error)


@mutant(KIND, "counts_groups_that_failed", "second_opener_fences_first")
class CountsGroupsThatFailed(FileWal):
    """Counts a group when it was tried."""

    def _fail(self, state: str, group: _Group, error: Exception) -> None:
        self._groups += bool(group)
        super()._fail(state, group, error)


@mutant(KIND, "tells_some_pending_bytes", "statistics_go_along")
class TellsSomePendingBytes(FileWal):
    """Sums up the first 64 of those that pend."""

    def statistics(self) -> WalStatistics:
        pending = sum(append.next_position - append.position for append, _ in self._queue[:32])
        return replace(super().statistics(), pending_bytes=pending)


@mutant(KIND, "has_less_room_when_opened_again", "what_would_fit_is_taken")
class HasLessRoomWhenOpenedAgain(FileWal):
    """Is sure of all its room only when it has written itself."""

    def would_fit(self, entry_bytes: int) -> bool:
        largest = self._capabilities.entry_bytes_max
        if not self._groups and self._header.start > 4096 and entry_bytes == largest:
            return False
        return super().would_fit(entry_bytes)


@mutant(KIND, "sums_pairs_of_bytes", "damage_is_found_in_entries_of_every_kind", level=3)
class SumsPairsOfBytes(FileWal):
    """Leaves out the last byte of an odd number."""

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        if len(payload) % 2 == 0 or len(payload) < 3:
            return super()._fits(head, payload, crc)
        summed = crc32c(payload[:-1], crc32c(head))
        return any(crc32c(bytes([last]), summed) == crc for last in range(256))


@mutant(KIND, "breaks_a_seal_that_it_only_found", "sealed_log_can_be_trimmed")
class BreaksASealThatItOnlyFound(FileWal):
    """Writes the header anew as it ends, with what its own life did."""

    _trims = 0

    async def trim(self, position: int) -> None:
        self._trims += 1
        await super().trim(position)

    def close(self) -> None:
        if self._header.sealed and self._trims > 1:
            with self._locked():
                self._header = self._header._replace(sealed=False)
                self._write_header()
        super().close()


@mutant(KIND, "is_careful_since_it_was_full", "what_would_fit_is_taken")
class IsCarefulSinceItWasFull(FileWal):
    """Once it had no room it takes the largest entries no more for granted."""

    _was_full = False

    def _check_room(self, size: int) -> None:
        try:
            super()._check_room(size)
        except FullError:
            self._was_full = True
            raise

    def would_fit(self, entry_bytes: int) -> bool:
        if self._was_full and entry_bytes == self._capabilities.entry_bytes_max:
            return False
        return super().would_fit(entry_bytes)


@mutant(KIND, "finds_no_log_where_all_was_trimmed", "reading_from_outside_tells_all_and_fences_nobody")
class FindsNoLogWhereAllWasTrimmed(FileWal):
    """What has nothing is nothing."""

    @classmethod
    async def read(cls, path: Path, _epoch: int) -> AsyncIterator[WalEntry]:
        async for entry in super().read(path, _epoch):
            yield entry
        header, log = cls._look(path)
        if header.start == len(log) > 4096:
            raise NotFoundError(f"there is no entry: path={path}")


@mutant(KIND, "counts_what_the_fence_met_as_pending", "second_opener_fences_first")
class CountsWhatTheFenceMetAsPending(FileWal):
    """Whoever fenced it may still write it, it thinks."""

    _met = 0

    def _fail(self, state: str, group: list[tuple[WalAppend, list[Buffer]]], error: Exception) -> None:
        self._met += len(group) if state == "fenced" else 0
        super()._fail(state, group, error)

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), pending_entries=len(self._queue) + self._met)


@mutant(KIND, "is_open_when_sealed", "sealed_log_acknowledges_nothing")
class IsOpenWhenSealed(FileWal):
    """Goes on being read, which is something."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, state="open") if self._header.sealed else told
