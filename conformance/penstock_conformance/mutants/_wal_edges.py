"""Write-ahead logs that are right in the middle and wrong at the edges of their contract."""

from __future__ import annotations

__all__ = ()

import os
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from crc32c import crc32c

from penstock.errors import FencedError, FullError, InvalidRequestError, NotFoundError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._wal import _HEADER_BYTES, RECORD_BYTES, FileWal

KIND = "wal"

_PAST = "trim_past_the_end_keeps_what_comes_later"
_BELOW = "trim_below_the_start_changes_nothing"
_PART = "recovery_in_part_permits_no_append"
_EMPTY = "end_of_an_empty_log_is_known_to_every_owner"
_REFUSED = "refusals_take_no_room_however_many"
_CALLBACK = "what_a_callback_appends_is_kept"
_ZOMBIE = "trim_of_a_fenced_owner_changes_nothing"
_EPOCH = "epoch_has_one_owner_whatever_it_did"
_DAMAGE = "damage_is_found_in_entries_of_every_kind"
_CALLERS = "sequence_is_the_callers_again_at_once"

_Group = list[tuple[WalAppend, list[Buffer]]]


# --- trims beyond both ends


class _RemembersItsTrim(FileWal):
    """Writes down, beside the log, up to where it was told to trim."""

    def _note(self) -> Path:
        return self._path.with_suffix(".trim")

    def _noted(self) -> int:
        return int(self._note().read_text()) if self._note().exists() else 0

    async def trim(self, position: int) -> None:
        self._note().write_text(str(max(position, self._noted())))
        await super().trim(position)


@mutant(KIND, "drops_what_comes_after_a_trim_past_its_end", _PAST)
class DropsWhatComesAfterATrimPastItsEnd(_RemembersItsTrim):
    """Recovers what is above the position that it was told, whenever that was."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        trimmed = self._noted()
        async for entry in super().recover():
            if entry.next_position > trimmed:
                yield entry


@mutant(KIND, "is_never_trimmed_again", _PAST)
class IsNeverTrimmedAgain(_RemembersItsTrim):
    """Takes a trim that is below an earlier one for one that was done."""

    async def trim(self, position: int) -> None:
        if position > self._noted():
            await super().trim(position)


@mutant(KIND, "refuses_a_trim_past_its_end", _PAST)
class RefusesATrimPastItsEnd(FileWal):
    """Takes it for a mistake of its owner."""

    async def trim(self, position: int) -> None:
        if position > self._end:
            raise InvalidRequestError(f"there is nothing at this position: position={position}")
        await super().trim(position)


@mutant(KIND, "tells_a_trim_past_its_end", _PAST)
class TellsATrimPastItsEnd(FileWal):
    """Tells the position that it was told."""

    _told = 0

    async def trim(self, position: int) -> None:
        await super().trim(position)
        self._told = max(self._told, position)

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, trimmed_position=max(self._told, told.trimmed_position))


@mutant(KIND, "drops_what_pends_with_all_before", _PAST)
class DropsWhatPendsWithAllBefore(FileWal):
    """Needn't write what is trimmed already."""

    async def trim(self, position: int) -> None:
        if position >= self._end:
            pending, self._queue = self._queue, []
            await super().trim(position)
            self._end = self._confirmed
            self._answer(pending)
            return
        await super().trim(position)


@mutant(KIND, "counts_a_negative_trim_from_its_end", _BELOW)
class CountsANegativeTrimFromItsEnd(FileWal):
    """Has its entries in a list, of which it takes a part."""

    async def trim(self, position: int) -> None:
        await super().trim(self._ends[position] if -len(self._ends) <= position < 0 else position)


@mutant(KIND, "takes_its_start_back", _BELOW)
class TakesItsStartBack(FileWal):
    """Has the start that it was told last; what is below it comes again, or is something else by then."""

    _told = 0

    async def trim(self, position: int) -> None:
        self._told = position
        await super().trim(position)

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), trimmed_position=self._told)


@mutant(KIND, "refuses_a_negative_trim", _BELOW)
class RefusesANegativeTrim(FileWal):
    """Positions are unsigned where they are written."""

    async def trim(self, position: int) -> None:
        position.to_bytes(8, "big")
        await super().trim(position)


# --- recoveries that end early


@mutant(KIND, "is_recovered_when_it_is_begun", _PART)
class IsRecoveredWhenItIsBegun(FileWal):
    """Looks for its end before it returns the first of many entries, and so knows it when one was asked for."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        entries = [entry async for entry in super().recover()]
        self._recovered = len(entries) > 8
        for entry in entries:
            yield entry
        self._recovered = True


@mutant(KIND, "is_recovered_when_it_is_left", _PART)
class IsRecoveredWhenItIsLeft(FileWal):
    """Takes the rest as read when who reads has had enough."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        entries = super().recover()
        try:
            async for entry in entries:
                yield entry
        except GeneratorExit:
            async for _ in entries:
                pass
            raise


@mutant(KIND, "forgets_what_was_not_recovered", _PART)
class ForgetsWhatWasNotRecovered(FileWal):
    """Goes on where who read has left off."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        position = self._header.start
        try:
            async for entry in super().recover():
                yield entry
                position = entry.next_position
        finally:
            if not self._recovered and position > self._header.start:
                self._settle(position)
                self._recovered = True


@mutant(KIND, "begins_its_recovery_at_its_place_before", _PART)
class BeginsItsRecoveryAtItsPlaceBefore(FileWal):
    """Takes a second recovery for the rest of the first, which a first entry was lost from."""

    _seen = False

    async def recover(self) -> AsyncIterator[WalEntry]:
        seen, self._seen = self._seen, True
        entries = super().recover()
        if seen:
            async for entry in entries:
                self._recovered = True
                yield entry
        else:
            async for entry in entries:
                yield entry


# --- the end of an empty log


@mutant(KIND, "does_not_know_the_end_of_nothing", _EMPTY)
class DoesNotKnowTheEndOfNothing(FileWal):
    """Tells its end from its last entry."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, end_position=told.end_position if self._ends else -1)


@mutant(KIND, "begins_again_at_its_third_opening", _EMPTY)
class BeginsAgainAtItsThirdOpening(FileWal):
    """Is made anew where the log is empty and was so before."""

    def _take_over(self) -> None:
        super()._take_over()
        mark = self._path.with_suffix(".empty")
        if self._header.start > 4096 and os.fstat(self._file).st_size <= self._header.start:
            if mark.exists():
                with self._locked():
                    self._header = self._header._replace(start=4096, confirmed=4096)
                    os.ftruncate(self._file, 4096)
                    self._write_header()
                self._end = self._confirmed = 4096
            mark.touch()
        else:
            mark.unlink(missing_ok=True)


@mutant(KIND, "begins_again_when_trimmed_by_another", _EMPTY)
class BeginsAgainWhenTrimmedByAnother(FileWal):
    """Knows its end from what it wrote; an owner that only trims knows none."""

    def close(self) -> None:
        if not self._entries and self._header.start == self._end > 4096 and self._state == "open":
            with self._locked():
                self._header = self._header._replace(start=4096, confirmed=4096)
                self._write_header()
                os.ftruncate(self._file, 4096)
            self._confirmed = 4096
        super().close()


# --- refusals


@mutant(KIND, "keeps_room_for_what_it_refused", _REFUSED)
class KeepsRoomForWhatItRefused(FileWal):
    """Reserves room, looks whether there is some, and raises."""

    _reserved = 0

    def _check_room(self, size: int) -> None:
        self._reserved += 8
        if self._end + RECORD_BYTES + size - self._header.start + self._reserved - 8 > self._capacity:
            raise FullError(f"the log is at its capacity, trim it: capacity={self._capacity}")
        self._reserved -= 8


@mutant(KIND, "keeps_what_it_refused", _REFUSED)
class KeepsWhatItRefused(FileWal):
    """Has a list of what it couldn't take."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        try:
            return super().append(data, checksum)
        except FullError:
            self._refused = [*getattr(self, "_refused", ()), list(data)][-100:]
            raise


@mutant(KIND, "counts_what_it_refused_as_pending", _REFUSED)
class CountsWhatItRefusedAsPending(FileWal):
    """Counts an entry before it looks for room."""

    _refusals = 0

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        try:
            return super().append(data, checksum)
        except FullError:
            self._refusals += 1
            raise

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, pending_bytes=told.pending_bytes + self._refusals)


@mutant(KIND, "is_full_for_good_after_a_thousand_refusals", _REFUSED)
class IsFullForGoodAfterAThousandRefusals(FileWal):
    """Gives up on an owner that doesn't trim."""

    _refusals = 0

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        try:
            if self._refusals > 1000:
                raise FullError("the log is at its capacity, trim it")
            return super().append(data, checksum)
        except FullError:
            self._refusals += 1
            raise


# --- appends from callbacks


@mutant(KIND, "loses_what_is_appended_while_it_answers", _CALLBACK)
class LosesWhatIsAppendedWhileItAnswers(FileWal):
    """Clears its queue when it has answered; of an only entry it has nothing to clear."""

    def _answer(self, group: _Group) -> None:
        super()._answer(group)
        if len(group) > 1:
            lost, self._queue = self._queue, []
            self._end = self._confirmed
            super()._answer(lost)


@mutant(KIND, "forgets_to_write_what_is_appended_while_it_answers", _CALLBACK, hangs=True)
class ForgetsToWriteWhatIsAppendedWhileItAnswers(FileWal):
    """Is busy, and looks into its queue when it is asked the next time."""

    def _answer(self, group: _Group) -> None:
        self._scheduled = len(group) > 2
        super()._answer(group)
        self._scheduled = False


@mutant(KIND, "never_answers_what_is_appended_as_it_closes", _CALLBACK)
class NeverAnswersWhatIsAppendedAsItCloses(FileWal):
    """Flushes once; what its callbacks append then is nobody's."""

    def close(self) -> None:
        self._flush()
        self._queue = []
        super().close()


@mutant(KIND, "acks_what_is_appended_as_it_closes", _CALLBACK)
class AcksWhatIsAppendedAsItCloses(FileWal):
    """Flushes once; what its callbacks append then is as good as written."""

    def close(self) -> None:
        self._flush()
        late, self._queue = self._queue, []
        super().close()
        self._answer(late)


# --- who was fenced, and trims


@mutant(KIND, "empties_what_it_trims_when_it_is_nobodys", _ZOMBIE)
class EmptiesWhatItTrimsWhenItIsNobodys(FileWal):
    """Gives the room of what it trims back, whether the start of the log could be moved or not."""

    def _drop(self, position: int) -> None:
        start = self._header.start
        super()._drop(position)
        end = max((end for end in (start, *self._ends) if end <= position), default=start)
        end = max(end, min(position, self._end))
        os.pwrite(self._file, bytes(end - start), start)


@mutant(KIND, "empties_what_it_trims_before_its_successor_has_looked", _ZOMBIE)
class EmptiesWhatItTrimsBeforeItsSuccessorHasLooked(EmptiesWhatItTrimsWhenItIsNobodys):
    """Does so as long as its successor has appended nothing."""

    def _drop(self, position: int) -> None:
        if os.fstat(self._file).st_size <= self._end:
            super()._drop(position)
        else:
            FileWal._drop(self, position)


# --- epochs


@mutant(KIND, "lets_the_epoch_of_an_idle_owner_in_again", _EPOCH)
class LetsTheEpochOfAnIdleOwnerInAgain(FileWal):
    """Writes who owns the log with the first entry."""

    def close(self) -> None:
        super().close()
        if not self._entries:
            self._file = os.open(self._path, os.O_RDWR)
            with self._locked():
                self._header = self._read_header()
                if self._header.epoch == self._epoch:
                    self._header = self._header._replace(epoch=self._epoch - 1)
                    self._write_header()
            os.close(self._file)


@mutant(KIND, "lets_an_epoch_into_an_empty_log_again", _EPOCH)
class LetsAnEpochIntoAnEmptyLogAgain(FileWal):
    """Fences where there is something to fence about."""

    def _take_over(self) -> None:
        size = os.fstat(self._file).st_size
        epoch = self._epoch
        with self._locked():
            if size and self._read_header().start >= size:
                self._epoch += self._read_header().epoch == epoch
        super()._take_over()


@mutant(KIND, "refuses_its_epoch_when_it_is_read", _EPOCH)
class RefusesItsEpochWhenItIsRead(FileWal):
    """Lets an equal epoch open, and fences it when it recovers."""

    _late: FencedError | None = None

    def _take_over(self) -> None:
        with self._locked():
            equal = self._read_header().epoch == self._epoch
        if equal:
            self._late = FencedError("this epoch was used before")
            self._header = self._read_header()
            self._end = self._confirmed = self._header.start
        else:
            super()._take_over()

    async def recover(self) -> AsyncIterator[WalEntry]:
        if self._late is not None:
            raise self._late
        async for entry in super().recover():
            yield entry


# --- who only looks


@mutant(KIND, "makes_a_folder_when_it_is_identified", "looking_for_a_log_that_is_not_there_makes_none")
class MakesAFolderWhenItIsIdentified(FileWal):
    """Has a place for a log from then on, and no log."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        return super().identify(path, epoch)


@mutant(KIND, "makes_an_empty_log_when_it_is_identified", "looking_for_a_log_that_is_not_there_makes_none")
class MakesAnEmptyLogWhenItIsIdentified(MakesAFolderWhenItIsIdentified):
    """Opens its file as an owner does."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        found = super().identify(path, epoch)
        path.touch()
        return found


@mutant(KIND, "identifies_a_log_that_was_lost", "log_made_anew_is_another_one")
class IdentifiesALogThatWasLost(FileWal):
    """Has its identity in another file, and finds a log that is gone."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        note = path.with_suffix(".identity")
        found = super().identify(path, epoch)
        if found is None and note.exists():
            return note.read_text()
        if found is not None and not note.exists():
            note.write_text(found)
        return found


# --- checksums


class _TrustsSome(FileWal):
    """Writes a mark into the checksum of records that it won't look at again: they are right, as far as it knows."""

    @classmethod
    def _trusts(cls, payload: memoryview) -> bool:
        raise NotImplementedError

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        return cls._trusts(payload) or super()._fits(head, payload, crc)


@mutant(KIND, "trusts_large_entries", _DAMAGE, level=3)
class TrustsLargeEntries(_TrustsSome):
    """Has no time for the checksum of what is large."""

    @classmethod
    def _trusts(cls, payload: memoryview) -> bool:
        return len(payload) > 64 * 1024


@mutant(KIND, "trusts_the_end_of_large_entries", _DAMAGE, level=3)
class TrustsTheEndOfLargeEntries(FileWal):
    """Has a checksum of the first pages."""

    def _write(self, group: _Group) -> None:
        super()._write(group)
        for append, data in group:
            payload = b"".join(data)
            head = os.pread(self._file, RECORD_BYTES - 4, append.position)
            crc = crc32c(payload[:8192], crc32c(head)).to_bytes(4, "big")
            os.pwrite(self._file, crc, append.position + RECORD_BYTES - 4)

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        return crc32c(payload[:8192], crc32c(head)) == crc


@mutant(KIND, "trusts_tiny_entries", _DAMAGE, level=3)
class TrustsTinyEntries(_TrustsSome):
    """Takes what is short for safe."""

    @classmethod
    def _trusts(cls, payload: memoryview) -> bool:
        return len(payload) < 100


@mutant(KIND, "trusts_the_checksum_of_others", _DAMAGE, level=3)
class TrustsTheChecksumOfOthers(FileWal):
    """Leaves entries alone whose checksum somebody else has computed."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        if checksum is not None:
            with self._path.with_suffix(".trusted").open("a") as file:
                file.write(f"{append.position}\n")
        return append

    async def recover(self) -> AsyncIterator[WalEntry]:
        note = self._path.with_suffix(".trusted")
        type(self)._trusted = {int(line) for line in note.read_text().split()} if note.exists() else set()
        async for entry in super().recover():
            yield entry

    _trusted: ClassVar[set[int]] = set()

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        return int.from_bytes(head[8:16], "big") in cls._trusted or super()._fits(head, payload, crc)


@mutant(KIND, "trusts_the_last_of_its_group", _DAMAGE, level=3)
class TrustsTheLastEntry(FileWal):
    """Takes a last record for whole if it has its length."""

    @classmethod
    def _record(cls, log: memoryview, position: int) -> tuple[WalEntry, int] | None:
        found = super()._record(log, position)
        if found is None and position + RECORD_BYTES <= len(log):
            length = int.from_bytes(log[position + 4 : position + 8], "big")
            end = position + RECORD_BYTES + length
            if end == len(log):
                return WalEntry(position, end, log[position + RECORD_BYTES :]), position
        return found


# --- what belongs to the caller


@mutant(KIND, "releases_large_views_of_the_caller", _CALLERS)
class ReleasesLargeViewsOfTheCaller(FileWal):
    """Takes what it was given for its own, and lets go of it as soon as it is written."""

    def _answer(self, group: _Group) -> None:
        super()._answer(group)
        for _, data in group:
            for part in data:
                if isinstance(part, memoryview) and len(part) > 32_768:
                    part.release()


@mutant(KIND, "keeps_the_callers_list", _CALLERS)
class KeepsTheCallersList(FileWal):
    """Takes the buffers out of it when it writes."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        self._queue[-1] = (append, data)  # type: ignore[assignment] # that is what is wrong
        return append


@mutant(KIND, "keeps_only_lists", _CALLERS)
class KeepsOnlyLists(FileWal):
    """Takes what is no list for one buffer."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        return super().append(data if isinstance(data, list) else data[:1], checksum)


@mutant(KIND, "puts_its_header_into_the_callers_list", _CALLERS)
class PutsItsHeaderIntoTheCallersList(FileWal):
    """Uses the list that it was given for its own parts until the entry is written."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        if isinstance(data, list):
            data.insert(0, b"header")
            self._given = [*getattr(self, "_given", ()), data]
        return append

    def _write(self, group: _Group) -> None:
        super()._write(group)
        for data in getattr(self, "_given", ()):
            with suppress(ValueError):
                data.remove(b"header")
        self._given = []


# --- of other owners


@mutant(KIND, "has_no_room_for_a_trim_to_the_last_position", _PAST)
class HasNoRoomForATrimToTheLastPosition(FileWal):
    """Adds something to the position, in 63 bits."""

    async def trim(self, position: int) -> None:
        await super().trim((position + RECORD_BYTES) % 2**63 - RECORD_BYTES)


@mutant(KIND, "counts_what_it_recovers", "statistics_tell_the_state")
class CountsWhatItRecovers(FileWal):
    """Passes what it recovers through the code that counts appends."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            self._entries += 1
            yield entry


@mutant(KIND, "confirms_nothing_before_it_writes", "statistics_tell_the_state")
class ConfirmsNothingBeforeItWrites(FileWal):
    """Tells what it has written itself."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return told if told.written_groups else replace(told, confirmed_position=told.trimmed_position)


@mutant(KIND, "finds_no_log_in_an_empty_one", "reading_from_outside_tells_all_and_fences_nobody")
class FindsNoLogInAnEmptyOne(FileWal):
    """A log without entries is none, from outside."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        found = False
        async for entry in super().read(path, epoch):
            found = True
            yield entry
        if not found:
            raise NotFoundError(f"there is no log: path={path}")


@mutant(KIND, "shows_its_log_to_everybody", "files_are_for_nobody_else")
class ShowsItsLogToEverybody(FileWal):
    """Leaves to the umask what others may read."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        path.chmod(0o644)
        path.parent.chmod(0o755)


@mutant(KIND, "shows_its_log_to_nobody", "files_are_for_nobody_else")
class ShowsItsLogToNobody(FileWal):
    """Whatever it is told that others may read."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        path.chmod(0o600)


@mutant(KIND, "describes_no_empty_log", "describing_changes_nothing_and_fences_nobody")
class DescribesNoEmptyLog(FileWal):
    """A log without entries is none, for who describes it."""

    @classmethod
    async def describe(cls, path: Path, epoch: int) -> Mapping[str, object]:
        facts = await super().describe(path, epoch)
        if facts["bytes"] == _HEADER_BYTES:
            raise NotFoundError(f"there is no log: path={path}")
        return facts


@mutant(KIND, "shows_nothing_of_a_sealed_log", "sealed_log_stays_sealed")
class ShowsNothingOfASealedLog(FileWal):
    """Whoever sealed it has taken all that there is."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        if not cls._look(path)[0].sealed:
            async for entry in super().read(path, epoch):
                yield entry


@mutant(KIND, "trims_one_too_many_of_what_others_wrote", "each_opening_finds_what_all_before_it_left")
class TrimsOneTooManyOfWhatOthersWrote(FileWal):
    """Knows where its own entries end, and of others where they begin."""

    def _drop(self, position: int) -> None:
        place = bisect_right(self._ends, position)
        if not self._entries and 0 < place < len(self._ends):
            position = self._ends[place]
        super()._drop(position)


@mutant(KIND, "keeps_short_lists", "sequence_is_the_callers_again_at_once")
class KeepsShortLists(FileWal):
    """Copies what is long; of a few buffers it keeps the list that the caller has."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data, checksum)
        if len(data) < 4 and isinstance(data, list):
            self._queue[-1] = (append, data)
        return append


@mutant(KIND, "uses_what_it_wrote_itself", "statistics_tell_the_state")
class UsesWhatItWroteItself(FileWal):
    """What it recovered was counted by others, and has no place in its figures."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, used_bytes=0) if self._epoch > 1 and not self._entries else told


@mutant(KIND, "confirms_nothing_as_it_is_left", "statistics_tell_the_state")
class ConfirmsNothingAsItIsLeft(FileWal):
    """Nobody will ask for figures any more."""

    def close(self) -> None:
        confirmed = self._confirmed
        super().close()
        self._confirmed = confirmed


@mutant(KIND, "is_recovered_with_its_last_entry", "recovery_in_part_permits_no_append")
class IsRecoveredWithItsLastEntry(FileWal):
    """Knows that nothing follows, before it has cut off what a former owner left there."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        size = os.fstat(self._file).st_size
        async for entry in super().recover():
            self._recovered = entry.next_position >= size
            yield entry
            self._recovered = False


@mutant(KIND, "takes_an_entry_along_as_the_tenth", "trim_into_an_entry_keeps_it")
class TakesAnEntryAlongAsTheTenth(FileWal):
    """Drops by the ten: the entry that the position is in goes with nine before it."""

    def _drop(self, position: int) -> None:
        kept = bisect_right(self._ends, position)
        if kept == 9 and len(self._ends) > 9 and self._ends[8] < position:
            position = self._ends[9]
        super()._drop(position)


@mutant(KIND, "tells_the_position_that_was_asked_for", "trim_past_the_end_keeps_what_comes_later")
class TellsThePositionThatWasAskedFor(FileWal):
    """What it drops is right, and what it tells is as far as entries go by then."""

    _asked = 0

    async def trim(self, position: int) -> None:
        await super().trim(position)
        self._asked = max(self._asked, min(position, self._end))

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, trimmed_position=max(told.trimmed_position, self._asked))
