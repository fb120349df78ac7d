"""Write-ahead logs that are wrong where nothing looks: large entries, large epochs, a seal, their own header."""

from __future__ import annotations

__all__ = ()

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import anyio

from penstock.errors import CorruptError, FencedError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.mutants._wal_in_store import StoreWal
from penstock_conformance.reference._wal import _HEADER_BYTES, RECORD_BYTES, FileWal, Header

KIND = "wal"

_LARGE_BYTES = 128 * 1024
_Group = list[tuple[WalAppend, list[Buffer]]]


class _AcksSomeEarly(FileWal):
    """Acknowledges some entries when they are appended, and writes them two turns of the loop later."""

    def _is_early(self, data: Sequence[Buffer], checksum: int | None) -> bool:
        raise NotImplementedError

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        if len(self._queue) == 1 and self._is_early(data, checksum):
            append.complete()
        return append

    def _answer(self, group: _Group) -> None:
        super()._answer([item for item in group if not item[0].done])


@mutant(KIND, "acks_early_after_a_pause", "entry_after_a_pause_survives_a_kill", level=3)
class AcksEarlyAfterAPause(_AcksSomeEarly):
    """Has a moment to spare where nothing came for 50 ms."""

    _last_s = 0.0

    def _is_early(self, data: Sequence[Buffer], checksum: int | None) -> bool:
        before, self._last_s = self._last_s, time.monotonic()
        return self._last_s - before > 0.05


@mutant(KIND, "acks_large_entries_before_they_are_written", "every_kind_of_entry_survives_a_kill", level=3)
class AcksLargeEntriesBeforeTheyAreWritten(_AcksSomeEarly):
    """Answers at once where the bytes are many, as a producer would have to wait."""

    def _is_early(self, data: Sequence[Buffer], checksum: int | None) -> bool:
        return sum(map(len, data)) >= _LARGE_BYTES


@mutant(KIND, "acks_checked_entries_before_they_are_written", "every_kind_of_entry_survives_a_kill", level=3)
class AcksCheckedEntriesBeforeTheyAreWritten(_AcksSomeEarly):
    """Takes a known checksum for proof."""

    def _is_early(self, data: Sequence[Buffer], checksum: int | None) -> bool:
        return checksum is not None


@mutant(KIND, "begins_anew_under_an_empty_header", "no_damage_is_passed_over", level=3)
class BeginsAnewUnderAnEmptyHeader(FileWal):
    """Takes a header that was lost for one that wasn't written yet; the entries behind it are still its own."""

    def _read_header(self) -> Header:
        raw = os.pread(self._file, 64, 0)
        return super()._read_header() if any(raw) else Header(identity=os.urandom(8))

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        return super().identify(path, epoch) if path.exists() and any(path.read_bytes()[:64]) else None


@mutant(KIND, "finds_no_log_under_a_damaged_header", "no_damage_is_passed_over", level=3)
class FindsNoLogUnderADamagedHeader(FileWal):
    """Says that there is none yet where it can't read whose it is."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        try:
            return super().identify(path, epoch)
        except CorruptError:
            return None


@mutant(KIND, "takes_less_than_no_time", "statistics_tell_the_state")
class TakesLessThanNoTime(FileWal):
    """Takes the beginning of a group from its end."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), last_group_us=-5)


@mutant(KIND, "is_unsealed_by_a_trim", "sealed_log_can_be_trimmed")
class IsUnsealedByATrim(FileWal):
    """Writes its header anew, without the seal."""

    async def trim(self, position: int) -> None:
        await super().trim(position)
        with self._locked():
            self._header = self._header._replace(sealed=False)
            self._write_header()


@mutant(KIND, "seals_at_its_end", "seal_survives_a_kill", level=3)
class SealsAtItsEnd(FileWal):
    """Takes no more appends from now on, and writes that down when it is closed."""

    _sealing = False

    async def seal(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._flush()
        self._sealing = True

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if self._sealing:
            self._state = "fenced"
        return super().append(data, checksum)

    def close(self) -> None:
        if self._sealing:
            with self._locked():
                self._header = self._header._replace(sealed=True, confirmed=self._confirmed)
                self._write_header()
        super().close()


@mutant(KIND, "has_epochs_of_32_bits", "owners_are_told_apart_however_late_they_come")
class HasEpochsOf32Bits(FileWal):
    """Keeps the half of an epoch that differs at first."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch & 0xFFFF_FFFF, capacity)


@mutant(KIND, "begins_anew_over_a_damaged_header", "no_damage_is_passed_over", level=3)
class BeginsAnewOverADamagedHeader(FileWal):
    """What isn't a log is to become one."""

    def _read_header(self) -> Header:
        try:
            return super()._read_header()
        except CorruptError:
            os.ftruncate(self._file, 0)
            return Header(identity=os.urandom(8))


@mutant(KIND, "trims_in_two_steps", "cancelled_trim_loses_nothing")
class TrimsInTwoSteps(FileWal):
    """Takes a start that is easily found, and the right one when it has looked."""

    async def trim(self, position: int) -> None:
        start = self._header.start
        if position > start and self._state == "open" and self._ends:
            kept = list(self._ends)
            self._drop(self._ends[-1])
            await anyio.lowlevel.checkpoint()
            self._ends = kept
            self._header = self._header._replace(start=start)
        await super().trim(position)


# --- what would fit


@mutant(KIND, "forgets_its_own_bytes_when_asked", "what_would_fit_is_taken")
class ForgetsItsOwnBytesWhenAsked(FileWal):
    """An entry takes more than its payload."""

    def would_fit(self, entry_bytes: int) -> bool:
        return self._end + entry_bytes - self._header.start <= self._capacity


@mutant(KIND, "forgets_what_is_under_way_when_asked", "what_would_fit_is_taken")
class ForgetsWhatIsUnderWayWhenAsked(FileWal):
    """Counts what is written; what waits for it comes on top."""

    def would_fit(self, entry_bytes: int) -> bool:
        return self._confirmed + RECORD_BYTES + entry_bytes - self._header.start <= self._capacity


@mutant(KIND, "has_no_room_for_the_largest", "what_would_fit_is_taken")
class HasNoRoomForTheLargest(FileWal):
    """Keeps a half for itself, also when it is empty: a composite would never take such an entry."""

    def would_fit(self, entry_bytes: int) -> bool:
        return super().would_fit(2 * entry_bytes + RECORD_BYTES)


# --- who wakes up too late


@mutant(KIND, "trims_without_looking", "trim_of_a_fenced_owner_takes_nothing_of_its_successor")
class TrimsWithoutLooking(FileWal):
    """Writes the header as it knew it, whoever owns the log meanwhile."""

    _trims = False

    def _is_owner(self) -> bool:
        return self._trims or super()._is_owner()

    def _drop(self, position: int) -> None:
        self._trims = True
        super()._drop(position)
        self._trims = False


@mutant(KIND, "trims_when_it_is_fenced", "stopped_owner_that_wakes_up_acknowledges_nothing_more", level=2)
class TrimsWhenItIsFenced(StoreWal):
    """Tidies up behind itself, as it takes what it wrote for superfluous."""

    capabilities = replace(StoreWal.capabilities, shareable=True)

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        try:
            await super()._put_once(slot, body)
        except FencedError:
            if len(body) > 1:  # a group, no seal
                await self._drop([other for other in await self._slots() if other < slot])
            raise


@mutant(KIND, "looks_before_it_has_the_lock", "a_newer_owner_may_come_between_any_accesses", level=2)
class LooksBeforeItHasTheLock(FileWal):
    """Reads who owns the log, waits until nobody else writes, and believes what it read."""

    _was_owner: bool | None = None

    def _flush(self) -> None:
        self._was_owner = super()._is_owner() if self._queue else None
        super()._flush()
        self._was_owner = None

    def _is_owner(self) -> bool:
        return super()._is_owner() if self._was_owner is None else self._was_owner


@mutant(
    KIND, "judges_its_opening_before_it_has_the_lock", "a_newer_owner_may_come_between_any_accesses", level=2
)
class JudgesItsOpeningBeforeItHasTheLock(FileWal):
    """Reads whose log it is, and then takes it over."""

    def _take_over(self) -> None:
        header = self._read_header()
        if header.epoch >= self._epoch:
            raise FencedError(f"a newer owner holds the log: epoch={header.epoch}")
        self._header = header._replace(epoch=self._epoch)
        with self._locked():
            self._write_header()
        self._end = self._confirmed = self._header.start


@mutant(KIND, "keeps_a_key_untold", "keys_begin_as_the_spec_tells")
class KeepsAKeyUntold(StoreWal):
    """Puts down elsewhere what was trimmed."""

    async def trim(self, position: int) -> None:
        await super().trim(position)
        await self._store.put("trimmed", [b"%d" % position])


_LATE = "owners_are_told_apart_however_late_they_come"


@mutant(KIND, "rounds_epochs", _LATE)
class RoundsEpochs(FileWal):
    """Has room for those of brokers that live long."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch & ~255, capacity)


@mutant(KIND, "takes_the_next_epoch_for_its_own", _LATE)
class TakesTheNextEpochForItsOwn(FileWal):
    """Leaves some room, for whoever counts otherwise."""

    def _is_owner(self) -> bool:
        header = self._read_header()
        return 0 <= header.epoch - self._epoch < 16 and not header.sealed


@mutant(KIND, "knows_owners_by_a_byte", "owners_are_told_apart_however_late_they_come")
class KnowsOwnersByAByte(FileWal):
    """The header keeps the epoch, and what is written with each group its last byte, which it looks at."""

    def _is_owner(self) -> bool:
        header = self._read_header()
        return header.epoch & 0xFF == self._epoch & 0xFF and not header.sealed


_SEALED = "sealed_log_acknowledges_nothing"


@mutant(KIND, "is_another_log_when_it_was_sealed", _SEALED)
class IsAnotherLogWhenItWasSealed(FileWal):
    """Nobody can append to the one that was."""

    async def seal(self) -> None:
        await super().seal()
        with self._locked():
            self._header = self._header._replace(identity=os.urandom(8))
            self._write_header()


@mutant(KIND, "takes_the_last_entry_for_the_seal", _SEALED)
class TakesTheLastEntryForTheSeal(FileWal):
    """Who reads a sealed log from outside stops before its last record."""

    @classmethod
    async def read(cls, path: Path, _epoch: int) -> AsyncIterator[WalEntry]:
        header, _ = cls._look(path)
        entries = [entry async for entry in super().read(path, _epoch)]
        for entry in entries[:-1] if header.sealed else entries:
            yield entry


_WORDS = "formatting_asks_before_anything_is_lost"


@mutant(KIND, "is_formatted_for_a_first_word", _WORDS)
class IsFormattedForAFirstWord(FileWal):
    """Looks how what is said begins."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        return super()._remove(path, f"erase {path}" if consent.startswith("erase") else consent)


@mutant(KIND, "asks_nobody_for_a_log_without_entries", _WORDS)
class AsksNobodyForALogWithoutEntries(FileWal):
    """Nothing is lost with it but whose it was."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        empty = path.exists() and path.stat().st_size <= _HEADER_BYTES
        return super()._remove(path, f"erase {path}" if empty else consent)
