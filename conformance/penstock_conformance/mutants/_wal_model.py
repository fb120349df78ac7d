"""Write-ahead logs that are wrong about what is around their entries: what they tell, to whom, and what they keep."""

from __future__ import annotations

__all__ = ()

import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.errors import ClosedError, FencedError, InvalidRequestError, UnavailableError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference import _wal
from penstock_conformance.reference._wal import WAL_CAPABILITIES, FileWal

KIND = "wal"

Group = list[tuple[WalAppend, list[Buffer]]]

_LIVES = "random_lives_agree_with_a_model"
_MANY = "tens_of_thousands_of_entries_come_back"
_LEAVES = "looking_and_being_refused_leaves_nothing"
_FENCED = "fence_is_told_to_callbacks"


# --- entries and buffers


@mutant(KIND, "empties_the_callers_list", _LIVES)
class EmptiesTheCallersList(FileWal):
    """Takes the buffers out of the list that it was given."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        if isinstance(data, list):
            data.clear()
        return append


@mutant(KIND, "reuses_recovered_buffers", _LIVES)
class ReusesRecoveredBuffers(FileWal):
    """Writes into the memory of which it gave views to who recovered."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        self._buffers: list[bytearray] = []
        async for entry in super().recover():
            self._buffers.append(bytearray(entry.data))
            yield replace(entry, data=memoryview(self._buffers[-1]))

    def _write(self, group: Group) -> None:
        for buffer in self._buffers:
            buffer[:] = bytes(len(buffer))
        super()._write(group)


@mutant(KIND, "skips_entries_like_its_records", _LIVES)
class SkipsEntriesLikeItsRecords(FileWal):
    """Takes the bytes of an entry that begins as its own records do for one of them."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            if bytes(entry.data[:4]) != b"PCWL":
                yield entry


@mutant(KIND, "writes_4096_of_a_group", _MANY)
class Writes4096OfAGroup(FileWal):
    """Has an index of that many in each group."""

    def _write(self, group: Group) -> None:
        super()._write(group[:4096])


@mutant(KIND, "loses_an_entry_where_16_bits_end", _MANY)
class LosesAnEntryWhere16BitsEnd(FileWal):
    """Counts its entries in too few bits."""

    _written = 0

    def _write(self, group: Group) -> None:
        before, self._written = self._written, self._written + len(group)
        super()._write(group[:-1] if before < 2**16 <= self._written else group)


@mutant(KIND, "claims_more_than_it_takes", "largest_entry_is_taken_and_comes_back")
class ClaimsMoreThanItTakes(FileWal):
    """Says that entries may have 16 MiB, and has buffers of 9."""

    capabilities = replace(WAL_CAPABILITIES, entry_bytes_max=16 * 2**20)

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, max(capacity, 64 * 2**20))

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if sum(map(len, data)) > _wal.WAL_CAPABILITIES.entry_bytes_max:
            raise InvalidRequestError("the entry is too large")
        return super().append(data, checksum)


# --- what is told


@mutant(KIND, "is_sealed_once", "sealed_log_stays_sealed")
class IsSealedOnce(FileWal):
    """Takes a seal that is there for that of somebody else."""

    async def seal(self) -> None:
        if not self._is_owner():
            raise FencedError("a newer owner took over the log, or it is sealed")
        await super().seal()


@mutant(KIND, "pends_after_its_end", "statistics_tell_the_state")
class PendsAfterItsEnd(FileWal):
    """What it flushes as it ends it never counts as done."""

    _left = 0

    def close(self) -> None:
        self._left = len(self._queue)
        super().close()

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, pending_entries=told.pending_entries + self._left)


@mutant(KIND, "confirms_what_pends", _LIVES)
class ConfirmsWhatPends(FileWal):
    """Tells the end of the log as durable."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), confirmed_position=self._end)


@mutant(KIND, "tells_no_pending_bytes", _LIVES)
class TellsNoPendingBytes(FileWal):
    """Counts what pends, and not how large it is."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), pending_bytes=0)


@mutant(KIND, "tells_its_own_use", _LIVES)
class TellsItsOwnUse(FileWal):
    """Counts the room of what it appended, and not of what it found."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, used_bytes=told.used_bytes if self._entries else 0)


@mutant(KIND, "counts_back_at_a_trim", _LIVES)
class CountsBackAtATrim(FileWal):
    """Counts the entries that it has as those that were appended."""

    async def trim(self, position: int) -> None:
        await super().trim(position)
        self._entries = min(self._entries, len(self._ends) + len(self._queue))


@mutant(KIND, "has_one_snapshot", _LIVES)
class HasOneSnapshot(FileWal):
    """Gives everybody the same object, which goes along."""

    _told: WalStatistics | None = None

    def statistics(self) -> WalStatistics:
        now = super().statistics()
        if self._told is None:
            self._told = now
        for name in WalStatistics.__dataclass_fields__:
            object.__setattr__(self._told, name, getattr(now, name))
        return self._told


@mutant(KIND, "tells_wrong_ends_outside", _LIVES)
class TellsWrongEndsOutside(FileWal):
    """Tells the last byte of an entry for the one behind it, to who only looks."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        async for entry in super().read(path, epoch):
            yield replace(entry, next_position=entry.next_position - 1)


@mutant(KIND, "answers_from_a_thread", _LIVES)
class AnswersFromAThread(FileWal):
    """Completes appends in the thread that wrote them."""

    def _answer(self, group: Group) -> None:
        thread = threading.Thread(target=super()._answer, args=(group,))
        thread.start()
        thread.join()


@mutant(KIND, "tells_failures_to_waiters_only", _FENCED)
class TellsFailuresToWaitersOnly(FileWal):
    """Wakes who waits, and has callbacks for success."""

    def _fail(self, state: str, group: Group, error: Exception) -> None:
        for append, _ in (*group, *self._queue):
            append.run_callback = append._callback = None
        super()._fail(state, group, error)


@mutant(KIND, "tells_fenced_as_closed", _FENCED)
class TellsFencedAsClosed(FileWal):
    """Calls a log that was taken over a log that was closed."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        try:
            return super().append(data, checksum)
        except FencedError as error:
            raise ClosedError("the log is closed") from error


# --- owners


@mutant(KIND, "lets_an_epoch_in_twice", "epoch_has_one_owner")
class LetsAnEpochInTwice(FileWal):
    """Refuses older epochs, and not its own."""

    def _take_over(self) -> None:
        epoch = self._epoch
        with self._locked():
            self._epoch += self._read_header().epoch == epoch
        super()._take_over()


@mutant(KIND, "lets_the_epoch_of_a_closed_log_in_again", "epoch_has_one_owner")
class LetsTheEpochOfAClosedLogInAgain(FileWal):
    """Refuses its own epoch only while an owner has it."""

    def _take_over(self) -> None:
        self._closed = self._path.with_suffix(f".{self._epoch}")
        self._epoch += self._closed.exists()
        super()._take_over()

    def close(self) -> None:
        super().close()
        self._closed.touch()


@mutant(KIND, "forgets_its_seal_at_the_second_opening", "sealed_log_stays_sealed")
class ForgetsItsSealAtTheSecondOpening(FileWal):
    """Takes its seal over from the owner before, and from no other."""

    def _take_over(self) -> None:
        super()._take_over()
        if self._header.sealed:
            with self._locked():
                if (mark := self._path.with_suffix(".sealed")).exists():
                    self._header = self._header._replace(sealed=False)
                    self._write_header()
                mark.touch()


@mutant(KIND, "keeps_what_a_refused_opener_opened", _LEAVES)
class KeepsWhatARefusedOpenerOpened(FileWal):
    """Opens a file, and forgets it when it is fenced."""

    def _take_over(self) -> None:
        try:
            super()._take_over()
        except FencedError:
            os.dup(self._file)
            raise


@mutant(KIND, "keeps_what_it_identified", _LEAVES)
class KeepsWhatItIdentified(FileWal):
    """Opens a file to look at the identity."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        if path.exists():
            os.open(path, os.O_RDONLY)
        return super().identify(path, epoch)


@mutant(KIND, "keeps_what_it_read_outside", _LEAVES)
class KeepsWhatItReadOutside(FileWal):
    """Opens a file to read the log from outside."""

    @classmethod
    def _look(cls, path: Path) -> tuple[Any, memoryview]:
        found = super()._look(path)
        os.open(path, os.O_RDONLY)
        return found


@mutant(KIND, "hides_its_owners_error", "error_of_its_owner_comes_out")
class HidesItsOwnersError(FileWal):
    """Says that the log broke off, and not why."""

    def close(self) -> None:
        super().close()
        if sys.exc_info()[1] is not None:
            raise UnavailableError("the log broke off")
