"""Write-ahead logs that are wrong in one narrow place: of one size, in one state, or at one end."""

from __future__ import annotations

__all__ = ()

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crc32c import crc32c

from penstock.errors import CorruptError, FencedError, UnavailableError
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.mutants._wal_in_store import StoreWal
from penstock_conformance.reference._wal import (
    _CRC,
    _HEADER,
    _HEADER_BYTES,
    _MAGIC,
    _RECORD,
    RECORD_BYTES,
    FileWal,
    Header,
)

KIND = "wal"

_LATE = "recovery_and_end_of_a_fenced_owner_change_nothing"
_FAR = "damage_far_into_the_log_is_reported"
_SEALED = "sealed_log_stays_sealed"
_LOOK = "looking_and_being_refused_leaves_nothing"
_LANDS = "late_write_of_a_fenced_owner_is_never_acknowledged"
_FORMAT = "formatting_asks_before_anything_is_lost"


# --- owners that are fenced


@mutant(KIND, "asks_who_owns_it_for_small_groups_alone", "fence_outlasts_what_the_successor_does")
class AsksWhoOwnsItForSmallGroupsAlone(FileWal):
    """Writes large groups by another way, which leads past the fence."""

    _is_large = False

    def _flush(self) -> None:
        self._is_large = sum(len(part) for _, data in self._queue for part in data) > 300_000
        super()._flush()
        self._is_large = False

    def _is_owner(self) -> bool:
        return self._is_large or super()._is_owner()


@mutant(KIND, "takes_the_log_back_as_it_leaves", _LATE)
class TakesTheLogBackAsItLeaves(FileWal):
    """Notes the end of a log to which nothing was appended without a look at who owns it."""

    def close(self) -> None:
        if self._state == "open" and self._recovered and not self._entries:
            self._write_header()
        super().close()


@mutant(KIND, "takes_back_what_it_never_recovered", _LATE)
class TakesBackWhatItNeverRecovered(FileWal):
    """Leaves the header as it found it, whoever came meanwhile."""

    def close(self) -> None:
        if self._state == "open" and not self._recovered:
            self._write_header()
        super().close()


@mutant(
    KIND, "trims_to_its_end_whoever_owns_the_log", "trim_of_a_fenced_owner_takes_nothing_of_its_successor"
)
class TrimsToItsEndWhoeverOwnsTheLog(FileWal):
    """Looks who owns the log for where it is cut, and a log without entries is cut nowhere."""

    def _drop(self, position: int) -> None:
        if self._ends and position >= self._ends[-1] and self._state == "open" and not self._is_owner():
            own, self._header = self._header, self._read_header()._replace(start=self._ends[-1])
            self._write_header()
            self._header = own
        super()._drop(position)


@mutant(KIND, "forgets_its_end_when_it_is_fenced", _SEALED, "fence_outlasts_what_the_successor_does")
class ForgetsItsEndWhenItIsFenced(FileWal):
    """Takes a log that goes on elsewhere for one of which nothing is known."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, end_position=-1) if told.state == "fenced" else told


@mutant(KIND, "unseals_an_empty_log", _SEALED)
class UnsealsAnEmptyLog(FileWal):
    """Takes a log without entries for a new one."""

    def _take_over(self) -> None:
        super()._take_over()
        if self._header.sealed and os.fstat(self._file).st_size <= self._header.start:
            self._header = self._header._replace(sealed=False)
            self._write_header()


@mutant(KIND, "seals_what_it_wrote", _SEALED)
class SealsWhatItWrote(FileWal):
    """Has nothing to seal where it has appended nothing."""

    async def seal(self) -> None:
        if self._entries or not self._ends:
            await super().seal()
        else:
            self._fail("fenced", [], FencedError("the log is sealed"))


# --- who looks from outside, and who formats


@mutant(KIND, "hides_an_entry_that_is_alone", "reading_from_outside_tells_all_and_fences_nobody")
class HidesAnEntryThatIsAlone(FileWal):
    """Takes the first entry behind the trim point for one that is trimmed, unless another follows."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        found = [entry async for entry in super().read(path, epoch)]
        is_alone = len(found) == 1 and found[0].position > _HEADER_BYTES
        for entry in () if is_alone else found:
            yield entry


@mutant(KIND, "keeps_the_file_of_who_reads_a_part", _LOOK)
class KeepsTheFileOfWhoReadsAPart(FileWal):
    """Closes it behind the last entry."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        reading = super().read(path, epoch)
        first = await anext(reading, None)
        if first is not None:
            file = os.open(path, os.O_RDONLY)
            yield first
            async for entry in reading:
                yield entry
            os.close(file)


@mutant(KIND, "reads_a_thousand_from_outside", "a_thousand_groups_come_back")
class ReadsAThousandFromOutside(FileWal):
    """Has a page for who looks."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        count = 0
        async for entry in super().read(path, epoch):
            count += 1
            if count <= 1000:
                yield entry


@mutant(KIND, "describes_no_sealed_log", "describing_changes_nothing_and_fences_nobody")
class DescribesNoSealedLog(FileWal):
    """Takes the seal for the end of what there is to tell."""

    @classmethod
    async def describe(cls, path: Path, epoch: int) -> Mapping[str, object]:
        if cls._look(path)[0].sealed:
            raise FencedError("the log is sealed")
        return await super().describe(path, epoch)


@mutant(KIND, "formats_a_log_that_was_emptied", _FORMAT)
class FormatsALogThatWasEmptied(FileWal):
    """Asks nobody where all is trimmed."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        held = path.read_bytes() if path.exists() else b""
        if held and cls._look(path)[0].start == len(held) > _HEADER_BYTES:
            consent = f"erase {path}"
        return super()._remove(path, consent)


@mutant(KIND, "formats_what_it_can_not_read", _FORMAT)
class FormatsWhatItCanNotRead(FileWal):
    """Takes what isn't a log for nothing."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        try:
            if path.exists():
                cls._look(path)
        except CorruptError:
            consent = f"erase {path}"
        return super()._remove(path, consent)


# --- entries


@mutant(KIND, "keeps_a_long_list_of_the_callers", "sequence_is_the_callers_again_at_once")
class KeepsALongListOfTheCallers(FileWal):
    """Copies what is short."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        if isinstance(data, list) and len(data) > 16:
            self._queue[-1] = append, data
        return append


@mutant(KIND, "claims_no_bound", "statistics_go_along")
class ClaimsNoBound(FileWal):
    """Is full at some size, and promises to have room for everything."""

    @property
    def capabilities(self) -> WalCapabilities:
        return replace(super().capabilities, bounded=False)


@mutant(KIND, "promises_less_as_it_fills", "full_log_refuses_until_trimmed")
class PromisesLessAsItFills(FileWal):
    """Tells of the largest entry that it has room for now: a larger one is the caller's mistake, not a full log."""

    @property
    def capabilities(self) -> WalCapabilities:
        claims = super().capabilities
        room = self._capacity - (self._end - self._header.start) - RECORD_BYTES
        return replace(claims, entry_bytes_max=max(1, min(claims.entry_bytes_max, room)))


@mutant(KIND, "cuts_pieces_out_of_the_sequence", "sequence_is_the_callers_again_at_once")
class CutsPiecesOutOfTheSequence(FileWal):
    """Knows of sequences that can be sliced."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        return super().append([*data[:64], *data[64:]], checksum)


# --- logs in a store


@mutant(KIND, "takes_node_101_for_node_1", "survivor_takes_a_dead_nodes_log_over_beside_its_own")
class TakesNode101ForNode1(StoreWal):
    """Has two digits for nodes."""

    capabilities = replace(StoreWal.capabilities, shareable=True)

    def __init__(self, store: ObjectStore, epoch: int, node_id: int = 1) -> None:
        super().__init__(store, epoch)
        self._folder = f"wal/{node_id % 100:02}/"

    async def _slots(self) -> list[int]:
        return [int(info.key.rpartition("/")[2]) async for info in self._store.list(self._folder)]

    def _key(self, slot: int) -> str:  # type: ignore[override] # of a node
        return f"{self._folder}{slot:012}"


@mutant(KIND, "drops_an_object_with_the_entry_that_a_trim_is_in", "trim_into_an_entry_keeps_it")
class DropsAnObjectWithTheEntryThatATrimIsIn(StoreWal):
    """Takes a trim point that is near the end of an object for one behind it."""

    async def trim(self, position: int) -> None:
        near = [end for _, end in self._kept if 0 < end - position < 40]
        await super().trim(near[0] if near else position)


@mutant(KIND, "takes_a_number_for_its_own_after_a_failure", _LANDS, level=4)
class TakesANumberForItsOwnAfterAFailure(StoreWal):
    """Thinks that a put which failed has come there, when it finds the number taken."""

    _is_in_doubt = False

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        try:
            await super()._put_once(slot, body)
        except UnavailableError:
            self._is_in_doubt = True
            raise
        except FencedError:
            if not self._is_in_doubt:
                raise
        self._is_in_doubt = False


@mutant(KIND, "drops_seals_with_what_is_trimmed", _LANDS, level=4)
class DropsSealsWithWhatIsTrimmed(StoreWal):
    """Leaves numbers vacant that an owner may still be on its way to."""

    async def _drop(self, slots: list[int]) -> None:
        await super()._drop(list(range(slots[-1] + 1)) if slots else [])


@mutant(KIND, "loses_the_end_of_a_full_window", "each_opening_finds_what_all_before_it_left")
class LosesTheEndOfAFullWindow(FileWal):
    """Gives out entries by windows, of which the last one is kept for the next."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        held: WalEntry | None = None
        count = 0
        async for entry in super().recover():
            if held is not None:
                yield held
            held, count = entry, count + 1
        if held is not None and count % 64:
            yield held


@mutant(KIND, "drops_many_before_that_is_noted", "a_thousand_groups_come_back")
class DropsManyBeforeThatIsNoted(FileWal):
    """Gives the room of many groups back at once, and says so to whoever opens the log when it is left."""

    async def trim(self, position: int) -> None:
        before = self._header.start
        await super().trim(position)
        if self._header.start > before + 4096 and self._is_owner():
            os.pwrite(self._file, bytes(RECORD_BYTES), before)
            noted, self._header = self._header, self._header._replace(start=before)
            self._write_header()
            self._header = noted


# --- damage


@mutant(KIND, "leaves_what_it_recovered_unsynced", "what_was_recovered_survives_a_power_cut", level=4)
class LeavesWhatItRecoveredUnsynced(FileWal):
    """Syncs as soon as there is something of its own."""

    _entries = 0  # already, when the log is taken over

    def _write_header(self) -> None:
        if self._entries:
            super()._write_header()
        else:
            fixed = _HEADER.pack(*self._header)
            os.pwrite(self._file, fixed + _CRC.pack(crc32c(fixed)), 0)


@mutant(KIND, "checks_both_ends_of_an_entry", "damage_is_found_in_entries_of_every_kind", level=3)
class ChecksBothEndsOfAnEntry(FileWal):
    """Spares itself the bytes in the middle of what is long."""

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        return crc32c(cls._ends_of(bytes(payload)), crc32c(head)) == crc

    @staticmethod
    def _ends_of(payload: bytes) -> bytes:
        return payload[:2000] + payload[-1500:] if len(payload) > 4000 else payload

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        super()._write(group)
        for append, data in group:
            payload = b"".join(data)
            head = os.pread(self._file, _RECORD.size, append.position)
            crc = crc32c(self._ends_of(payload), crc32c(head))
            os.pwrite(self._file, _CRC.pack(crc), append.position + _RECORD.size)
        os.fdatasync(self._file)


@mutant(KIND, "makes_a_log_of_a_stump", "no_damage_is_passed_over", level=3)
class MakesALogOfAStump(FileWal):
    """Takes a file that is too short for a header for one that was just made."""

    def _read_header(self) -> Header:
        if os.fstat(self._file).st_size < _HEADER.size:
            return Header(identity=os.urandom(8))
        return super()._read_header()


@mutant(KIND, "recovers_the_end_of_a_large_entry_as_it_counts", "largest_entry_is_taken_and_comes_back")
class RecoversTheEndOfALargeEntryAsItCounts(FileWal):
    """Tells the last byte of an entry for the first behind it, where it was read in pieces."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            is_large = len(entry.data) > 100_000
            yield replace(entry, next_position=entry.next_position - 1) if is_large else entry


@mutant(KIND, "forgives_what_one_record_shows", _FAR, level=3)
class ForgivesWhatOneRecordShows(FileWal):
    """Takes a single record behind a damaged one for what a crash left, though it tells of more."""

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        whole = bytes(log)
        places = [place for place in range(position, len(whole)) if whole.startswith(_MAGIC, place)]
        later = [place for place in places if cls._record(log, place) is not None]
        if len(later) != 1 or confirmed > position:
            super()._judge_end(log, position, confirmed)


@mutant(KIND, "takes_damage_in_a_part_for_the_end", _FAR, level=3)
class TakesDamageInAPartForTheEnd(FileWal):
    """Looks for later records in one part of the file only, from its beginning."""

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        if not 65_536 <= position < 98_304:
            super()._judge_end(log, position, confirmed)


@mutant(KIND, "takes_a_copy_for_its_own", "torn_tail_ends_the_log", level=3)
class TakesACopyForItsOwn(FileWal):
    """Looks behind the end for whole records, and doesn't mind that they are of another place."""

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        whole = bytes(log)
        place = whole.find(_MAGIC, position)
        while 0 <= place <= len(log) - RECORD_BYTES:
            head = log[place : place + _RECORD.size]
            _, length, _, told = _RECORD.unpack(head)
            payload = log[place + RECORD_BYTES :][:length]
            if cls._fits(head, payload, *_CRC.unpack_from(log, place + _RECORD.size)):
                confirmed = max(confirmed, told)
            place = whole.find(_MAGIC, place + 1)
        super()._judge_end(log, position, confirmed)
