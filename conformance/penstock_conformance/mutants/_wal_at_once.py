"""Write-ahead logs that are wrong where calls meet each other, the end of the log, or somebody who gives up."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from anyio.lowlevel import checkpoint

from penstock.errors import UnavailableError
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.mutants._wal_in_store import StoreWal
from penstock_conformance.reference._wal import FileWal, Header

KIND = "wal"

_Group = list[tuple[WalAppend, list[Buffer]]]

_SEALS = "each_of_several_seals_has_sealed"
_REFUSED = "refused_opener_changes_nothing"
_GIVEN_UP = "opening_that_was_given_up_keeps_nobody_out"


async def _linger() -> None:
    for _ in range(5):
        await checkpoint()


# --- trims


@mutant(KIND, "leaves_its_trim_to_the_one_under_way", "each_of_several_trims_at_once_has_made_room")
class LeavesItsTrimToTheOneUnderWay(FileWal):
    """Tells the trim that is under way how far to go, and returns."""

    _target: int | None = None

    async def trim(self, position: int) -> None:
        if self._target is not None:
            self._target = max(self._target, min(position, self._confirmed))
            await checkpoint()
            return
        self._target = min(position, self._confirmed)
        try:
            await _linger()
            await super().trim(self._target)
        finally:
            self._target = None


@mutant(KIND, "trims_what_it_had_told_a_turn_before", "trim_of_who_was_just_told_makes_room")
class TrimsWhatItHadToldATurnBefore(FileWal):
    """Takes note of what it has acknowledged when everybody was told."""

    _noted: int | None = None

    def _answer(self, group: _Group) -> None:
        self._noted = group[0][0].position
        super()._answer(group)
        asyncio.get_running_loop().call_soon(self._note)

    def _note(self) -> None:
        self._noted = None

    async def trim(self, position: int) -> None:
        await super().trim(position if self._noted is None else min(position, self._noted))


# --- seals


@mutant(KIND, "leaves_its_seal_to_the_one_under_way", _SEALS)
class LeavesItsSealToTheOneUnderWay(FileWal):
    """Somebody is at it."""

    _seals = False

    async def seal(self) -> None:
        if self._seals:
            await checkpoint()
            return
        self._seals = True
        try:
            await _linger()
            await super().seal()
        finally:
            self._seals = False


@mutant(KIND, "takes_a_seal_that_was_given_up_for_done", _SEALS)
class TakesASealThatWasGivenUpForDone(FileWal):
    """Remembers that it was asked, and not whether it came to it."""

    _was_asked = False

    async def seal(self) -> None:
        if self._was_asked and self._state in ("open", "fenced"):
            await checkpoint()
            return
        self._was_asked = True
        await super().seal()


@mutant(KIND, "seals_nothing_as_it_is_left", "what_is_under_way_when_the_log_is_left_is_answered")
class SealsNothingAsItIsLeft(FileWal):
    """Has nothing to keep sealed any more, and says so."""

    async def seal(self) -> None:
        was_open = self._state == "open"
        await checkpoint()
        if not was_open or self._state != "closed":
            await super().seal()


# --- appends


@mutant(KIND, "writes_when_nothing_more_comes", "entries_that_keep_coming_hold_no_other_up")
class WritesWhenNothingMoreComes(FileWal):
    """Each append puts the group off by one turn, so that more of them share it."""

    _seen = -1

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, min(capacity, 64 * 1024))

    def _flush(self) -> None:
        if self._state == "open" and len(self._queue) != self._seen:
            self._seen = len(self._queue)
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._seen = -1
        super()._flush()

    async def seal(self) -> None:
        self._seen = len(self._queue)
        await super().seal()

    def close(self) -> None:
        self._seen = len(self._queue)
        super().close()


@mutant(KIND, "counts_down_when_all_were_told", "statistics_know_what_a_callback_is_told")
class CountsDownWhenAllWereTold(FileWal):
    """Takes a group for pending until its last callback has returned."""

    _telling: Sequence[WalAppend] = ()

    def _answer(self, group: _Group) -> None:
        self._telling = [append for append, _ in group]
        super()._answer(group)
        self._telling = ()

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        size = sum(append.next_position - append.position for append in self._telling)
        return replace(
            told,
            pending_entries=told.pending_entries + len(self._telling),
            pending_bytes=told.pending_bytes + size,
        )


# --- openings


@mutant(KIND, "stays_locked_by_who_gave_up", _GIVEN_UP)
class StaysLockedByWhoGaveUp(FileWal):
    """A file keeps others out during a recovery, to its end."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        lock = self._path.with_name("recovering")
        if lock.exists():
            raise UnavailableError("somebody recovers the log")
        lock.touch()
        async for entry in super().recover():
            yield entry
        lock.unlink()


@mutant(KIND, "ends_where_a_recovery_was_given_up", _GIVEN_UP)
class EndsWhereARecoveryWasGivenUp(FileWal):
    """Takes note of what it has recovered, also if that isn't all."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        try:
            async for entry in super().recover():
                yield entry
        except asyncio.CancelledError:
            if self._ends:
                self._settle(self._ends[-1])
            raise


@mutant(KIND, "is_unsealed_by_whom_it_refuses", _REFUSED)
class IsUnsealedByWhomItRefuses(FileWal):
    """Makes the header ready before it looks who the owner is."""

    def _take_over(self) -> None:
        header = self._read_header()
        if header.sealed and header.epoch >= self._epoch:
            self._header = header._replace(sealed=False)
            self._write_header()
        super()._take_over()


@mutant(KIND, "begins_again_for_whom_it_refuses", _REFUSED)
class BeginsAgainForWhomItRefuses(FileWal):
    """Forgets a trim."""

    def _take_over(self) -> None:
        header = self._read_header()
        if header.epoch > self._epoch:
            self._header = header._replace(start=header.confirmed)
            self._write_header()
        super()._take_over()


_FORMATS = "formatting_asks_before_anything_is_lost"


@mutant(KIND, "is_formatted_for_any_word", _FORMATS)
class IsFormattedForAnyWord(FileWal):
    """Takes whatever is said for consent, if something is."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        return super()._remove(path, consent and f"erase {path}")


@mutant(KIND, "tries_the_place_before_it_asks", _FORMATS)
class TriesThePlaceBeforeItAsks(FileWal):
    """Writes where a header would be, to see whether it can."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        with path.open("r+b") as file:
            file.write(bytes(64))
        return super()._remove(path, consent)


@mutant(KIND, "keeps_the_log_that_it_formatted", _FORMATS)
class KeepsTheLogThatItFormatted(FileWal):
    """Says that it is gone."""

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        kept = path.read_bytes()
        told = super()._remove(path, consent)
        path.write_bytes(kept)
        return told


@mutant(KIND, "counts_the_logs_of_its_process", "logs_of_two_processes_have_two_identities", level=2)
class CountsTheLogsOfItsProcess(FileWal):
    """Tells its logs apart by a number, which begins anew in each process."""

    made: ClassVar[list[int]] = [0]

    def _read_header(self) -> Header:
        found = super()._read_header()
        if os.fstat(self._file).st_size:
            return found
        self.made[0] += 1
        return found._replace(identity=self.made[0].to_bytes(8, "big"))


# --- entries


@mutant(KIND, "takes_its_memory_back_at_its_end", "recovered_entries_outlive_their_log")
class TakesItsMemoryBackAtItsEnd(FileWal):
    """Entries are views of memory that is used again when the log is closed."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._lent: list[bytearray] = []

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            self._lent.append(bytearray(entry.data))
            yield WalEntry(entry.position, entry.next_position, memoryview(self._lent[-1]))

    def close(self) -> None:
        super().close()
        for memory in self._lent:
            memory[:] = bytes(len(memory))


@mutant(KIND, "unpacks_what_it_did_not_pack", "entries_of_all_sizes_come_back_as_they_were")
class UnpacksWhatItDidNotPack(FileWal):
    """Packs what gets smaller by that, and knows it by how it begins."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            data = entry.data
            if bytes(data[:2]) == b"\x78\x9c":
                data = memoryview(zlib.decompress(data))
            yield WalEntry(entry.position, entry.next_position, data)


@mutant(KIND, "tells_a_larger_entry_beforehand", "sizes_are_told_before_as_they_are")
class TellsALargerEntryBeforehand(FileWal):
    """Counts what an entry takes of the log, and claims what is left for its payload."""

    SIZES_OFF_BY = 32


@mutant(KIND, "has_no_end_when_it_is_sealed", "sealed_log_can_be_trimmed")
class HasNoEndWhenItIsSealed(FileWal):
    """Nothing comes later anyway."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, end_position=-1) if self._header.sealed else told


@mutant(KIND, "takes_node_twelve_for_its_own", "survivor_takes_a_dead_nodes_log_over_beside_its_own")
class TakesNodeTwelveForItsOwn(StoreWal):
    """Lists all keys that begin with its node's number."""

    capabilities = replace(StoreWal.capabilities, shareable=True)

    def __init__(self, store: ObjectStore, epoch: int, node_id: int = 1) -> None:
        super().__init__(store, epoch)
        self._node_id = node_id

    async def _slots(self) -> list[int]:
        keys = [info.key async for info in self._store.list(f"wal/{self._node_id}")]
        return [int(key.rpartition("/")[2]) for key in keys]

    def _key(self, slot: int) -> str:  # type: ignore[override] # of a node
        return f"wal/{self._node_id}/{slot:012}"


@mutant(KIND, "says_nothing_of_its_needs", "needs_of_the_store_are_told")
class SaysNothingOfItsNeeds(StoreWal):
    """Any store creates an object once, and lists in order."""
