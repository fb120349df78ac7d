"""Write-ahead logs that are right for a few small entries, one owner and one opening."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.errors import CorruptError, FencedError, FullError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._wal import FileWal

KIND = "wal"

Group = list[tuple[WalAppend, list[Buffer]]]

_BURSTS = "large_bursts_come_back_whole"
_GROUPS = "a_thousand_groups_come_back"
_SIZES = "entries_of_all_sizes_come_back_as_they_were"
_OPENINGS = "each_opening_finds_what_all_before_it_left"
_OUTSIDE = "reading_from_outside_tells_all_and_fences_nobody"
_LEAVES = "opening_leaves_nothing_behind"


@mutant(KIND, "writes_the_first_64_of_a_group", _BURSTS)
class WritesTheFirst64OfAGroup(FileWal):
    """Acknowledges a group, of which it writes what fits into its vector."""

    def _write(self, group: Group) -> None:
        super()._write(group[:64])


@mutant(KIND, "writes_a_vector_of_1024", _BURSTS)
class WritesAVectorOf1024(FileWal):
    """Gives the system as many buffers as it takes in one call."""

    def _write(self, group: Group) -> None:
        super()._write(group[:1024])


@mutant(KIND, "strands_the_last_of_many", _BURSTS, hangs=True)
class StrandsTheLastOfMany(FileWal):
    """Answers a thousand at a time, and forgets the rest."""

    def _answer(self, group: Group) -> None:
        super()._answer(group[:1000])


@mutant(KIND, "tells_the_end_of_a_burst_first", _BURSTS)
class TellsTheEndOfABurstFirst(FileWal):
    """Answers in calls of so many, the newest first."""

    def _answer(self, group: Group) -> None:
        super()._answer(group[300:])
        super()._answer(group[:300])


@mutant(KIND, "ends_after_256_groups", _GROUPS)
class EndsAfter256Groups(FileWal):
    """Has an index with one page."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        count = 0
        async for entry in super().recover():
            count += 1
            if count <= 256:
                yield entry


@mutant(KIND, "cuts_at_a_page_of_boundaries", _GROUPS)
class CutsAtAPageOfBoundaries(FileWal):
    """Knows the newest 64 places at which it can be cut, and takes the next best."""

    def _drop(self, position: int) -> None:
        del self._ends[:-64]
        super()._drop(max(position, self._ends[0] if self._ends else 0))


@mutant(KIND, "has_lengths_of_16_bits", _SIZES)
class HasLengthsOf16Bits(FileWal):
    """Cuts what is longer than its field for the length."""

    def _write(self, group: Group) -> None:
        super()._write([(append, [b"".join(data)[:0xFFFF]]) for append, data in group])


@mutant(KIND, "writes_a_thousand_buffers", _SIZES)
class WritesAThousandBuffers(FileWal):
    """Takes as many buffers of an entry as one call of the system does."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        return super().append(data[:1024])


@mutant(KIND, "keeps_the_checksum_of_large_entries", _SIZES)
class KeepsTheChecksumOfLargeEntries(FileWal):
    """Saves a pass over large entries, and writes the checksum in the place of their last bytes."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        whole = b"".join(data)
        if checksum is not None and len(whole) > 16_384:
            data = [whole[:-4], checksum.to_bytes(4, "big")]
        return super().append(data)


@mutant(KIND, "forgets_what_pends_when_trimmed", "trim_while_appends_pend_loses_nothing")
class ForgetsWhatPendsWhenTrimmed(FileWal):
    """Acknowledges with a trim all that it holds, written or not."""

    def _drop(self, position: int) -> None:
        pending, self._queue = self._queue, []
        super()._drop(position)
        self._answer(pending)


@mutant(KIND, "strands_what_pends_when_trimmed", "trim_while_appends_pend_loses_nothing", hangs=True)
class StrandsWhatPendsWhenTrimmed(FileWal):
    """Makes a new queue with each trim."""

    def _drop(self, position: int) -> None:
        self._queue = []
        super()._drop(position)


@mutant(KIND, "trims_one_too_many_after_a_wrap", "nothing_above_a_trim_is_lost_on_later_laps")
class TrimsOneTooManyAfterAWrap(FileWal):
    """Rounds up where the log has gone around its capacity."""

    def _drop(self, position: int) -> None:
        if position > 2 * self._capacity:
            position = next((end for end in self._ends if end > position), position)
        super()._drop(position)


@mutant(KIND, "takes_what_it_refuses", "refused_entry_leaves_nothing")
class TakesWhatItRefuses(FileWal):
    """Says that there is no room when it has appended."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data)
        if self._end - self._header.start > self._capacity * 0.9:
            raise FullError("the log is nearly at its capacity, trim it")
        return append


@mutant(KIND, "truncates_at_the_fifth_opening", _OPENINGS)
class TruncatesAtTheFifthOpening(FileWal):
    """Counts its openings in the place of something else, and drops the last record by it."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        entries = [entry async for entry in super().recover()]
        if self._epoch % 5 == 0 and len(entries) > 2:
            self._end = self._confirmed = entries[-1].position
            self._ends.pop()
            entries.pop()
        for entry in entries:
            yield entry


@mutant(KIND, "knows_the_last_owner_only", _OPENINGS)
class KnowsTheLastOwnerOnly(FileWal):
    """Begins where the owner before the last one ended."""

    def _note(self) -> Path:
        return self._path.with_suffix(".owners")

    async def recover(self) -> AsyncIterator[WalEntry]:
        ends = [int(word) for word in self._note().read_text().split()] if self._note().exists() else []
        first = ends[-3] if len(ends) > 2 else 0
        async for entry in super().recover():
            if entry.position >= first:
                yield entry

    def close(self) -> None:
        with self._note().open("a") as file:
            file.write(f"{self._end} ")
        super().close()


@mutant(KIND, "trims_what_it_recovers", "owner_that_ends_in_its_recovery_loses_nothing")
class TrimsWhatItRecovers(FileWal):
    """Takes what it has returned for uploaded."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            yield entry
            if not self._recovered:
                self._header = self._header._replace(start=entry.next_position)
                self._write_header()


@mutant(KIND, "loses_the_last_entry_of_a_live_owner", "racing_openers_lose_nothing")
class LosesTheLastEntryOfALiveOwner(FileWal):
    """Begins where the owner before confirmed last, if that one didn't say goodbye."""

    def close(self) -> None:
        super().close()
        self._path.with_suffix(".clean").touch()

    async def recover(self) -> AsyncIterator[WalEntry]:
        was_clean = self._path.with_suffix(".clean").exists()
        self._path.with_suffix(".clean").unlink(missing_ok=True)
        entries = [entry async for entry in super().recover()]
        if not was_clean and entries:
            self._end = self._confirmed = entries.pop().position
        for entry in entries:
            yield entry


@mutant(KIND, "looks_for_the_fence_at_64", "fence_meets_every_entry_of_a_burst")
class LooksForTheFenceAt64(FileWal):
    """A large group is worth no look at the header."""

    def _is_owner(self) -> bool:
        return len(self._queue) > 0 or self._large or super()._is_owner()

    _large = False

    def _flush(self) -> None:
        self._large = len(self._queue) > 64
        super()._flush()
        self._large = False


@mutant(
    KIND,
    "looks_for_the_fence_when_it_is_calm",
    "fenced_process_with_much_on_its_way_acknowledges_nothing_more",
    level=2,
)
class LooksForTheFenceWhenItIsCalm(FileWal):
    """Looks who owns the log at every third group, if it comes directly after the one before."""

    _groups_since = 0

    def _is_owner(self) -> bool:
        self._groups_since += 1
        return self._groups_since % 3 != 0 or super()._is_owner()


@mutant(KIND, "seals_before_it_writes", "seal_meets_what_is_pending")
class SealsBeforeItWrites(FileWal):
    """Acknowledges what pended at the seal, and doesn't write it any more."""

    async def seal(self) -> None:
        pending, self._queue = self._queue, []
        await super().seal()
        self._answer(pending)


@mutant(KIND, "acknowledges_behind_its_seal", "seal_meets_what_is_pending")
class AcknowledgesBehindItsSeal(FileWal):
    """Writes what is pending at the seal, and answers when the loop comes to it."""

    async def seal(self) -> None:
        pending, self._queue = self._queue, []
        await super().seal()
        if pending:
            self._write(pending)
            asyncio.get_running_loop().call_soon(self._answer, pending)


@mutant(KIND, "stops_at_a_bad_callback", "callback_that_raises_keeps_nobody_waiting", hangs=True)
class StopsAtABadCallback(FileWal):
    """Answers one after the other, as long as nothing goes wrong."""

    def _answer(self, group: Group) -> None:
        for append, _ in group:
            append.complete()


@mutant(KIND, "keeps_its_last_groups", "payloads_are_let_go")
class KeepsItsLastGroups(FileWal):
    """Holds on to what it wrote last, for whoever may ask."""

    def _answer(self, group: Group) -> None:
        self._last = group
        super()._answer(group)


@mutant(KIND, "keeps_descriptors", _LEAVES)
class KeepsDescriptors(FileWal):
    """Opens its directory to sync it, once in each life."""

    def _take_over(self) -> None:
        os.fsync(os.open(self._path.parent, os.O_RDONLY))
        super()._take_over()


@mutant(KIND, "keeps_tasks", _LEAVES)
class KeepsTasks(FileWal):
    """Has a task that looks after the file, for ever."""

    def _take_over(self) -> None:
        super()._take_over()
        event = asyncio.Event()
        _tasks.append(asyncio.get_running_loop().create_task(event.wait()))


@mutant(KIND, "keeps_threads", _LEAVES)
class KeepsThreads(FileWal):
    """Has a thread that nobody ends."""

    def _take_over(self) -> None:
        super()._take_over()
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@mutant(KIND, "keeps_itself", _LEAVES)
class KeepsItself(FileWal):
    """Is in a list of all logs that were ever open."""

    def _take_over(self) -> None:
        super()._take_over()
        _opened.append(self)


_tasks: list[asyncio.Task[Any]] = []
_opened: list[FileWal] = []


@mutant(KIND, "gives_no_room_back", "statistics_go_along")
class GivesNoRoomBack(FileWal):
    """Counts what was used, trimmed or not."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), used_bytes=self._end)


@mutant(KIND, "counts_what_is_written", "statistics_go_along")
class CountsWhatIsWritten(FileWal):
    """Never has anything pending, as far as it tells."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), pending_entries=0, pending_bytes=0)


@mutant(KIND, "reads_a_page_from_outside", _OUTSIDE)
class ReadsAPageFromOutside(FileWal):
    """Shows the first hundred."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        count = 0
        async for entry in super().read(path, epoch):
            count += 1
            if count <= 100:
                yield entry


@mutant(KIND, "reads_by_opening", _OUTSIDE)
class ReadsByOpening(FileWal):
    """Looks as the next owner would, and is it then."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        cls._look(path)
        made = cls(path, 5, 2 * 2**20)
        async for entry in made.recover():
            yield entry
        made._header = made._header._replace(epoch=6)
        made._write_header()
        os.close(made._file)


@mutant(KIND, "describes_by_opening", "describing_changes_nothing_and_fences_nobody")
class DescribesByOpening(FileWal):
    """Becomes the owner to tell who is."""

    @classmethod
    async def describe(cls, path: Path, epoch: int) -> Mapping[str, object]:
        facts = await super().describe(path, epoch)
        made = cls(path, 6, 2 * 2**20)
        os.close(made._file)
        return facts


@mutant(KIND, "makes_what_it_describes", "looking_for_a_log_that_is_not_there_makes_none")
class MakesWhatItDescribes(FileWal):
    """Has a log wherever it looks."""

    @classmethod
    async def describe(cls, path: Path, epoch: int) -> Mapping[str, object]:
        with suppress(FencedError):
            cls(path, epoch, 2 * 2**20).close()
        return await super().describe(path, epoch)


@mutant(KIND, "acks_large_groups_before_they_are_written", "large_bursts_survive_a_kill", level=3)
class AcksLargeGroupsBeforeTheyAreWritten(FileWal):
    """Answers a large group first, as that is what takes long."""

    def _flush(self) -> None:
        if self._state == "open" and len(self._queue) > 64:
            for append, _ in self._queue:
                append.complete()
        super()._flush()

    def _answer(self, group: Group) -> None:
        super()._answer([item for item in group if not item[0].done])


@mutant(KIND, "checks_the_first_64_records", "damage_far_into_the_log_is_reported", level=3)
class ChecksTheFirst64Records(FileWal):
    """Trusts a log that was right so far."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        count = 0
        entries = super().recover()
        while True:
            try:
                entry = await anext(entries)
            except StopAsyncIteration:
                return
            except CorruptError:
                if count < 64:
                    raise
                self._recovered = True
                return
            count += 1
            yield entry


@mutant(KIND, "reads_a_mebibyte_at_a_time", "megabytes_of_small_entries_come_back_as_they_were")
class ReadsAMebibyteAtATime(FileWal):
    """Puts a small entry that two reads share together with a byte that is wrong."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            if entry.position // 2**20 != entry.next_position // 2**20 and 1 < len(entry.data) < 3000:
                data = bytes(entry.data)
                entry = WalEntry(entry.position, entry.next_position, memoryview(data[:-1] + data[:1]))
            yield entry


@mutant(KIND, "shows_what_is_before_damage", "damage_far_into_the_log_is_reported", level=3)
class ShowsWhatIsBeforeDamage(FileWal):
    """Is content, from outside, with what can be read."""

    @classmethod
    async def read(cls, path: Path, epoch: int) -> AsyncIterator[WalEntry]:
        with suppress(CorruptError):
            async for entry in super().read(path, epoch):
                yield entry


@mutant(KIND, "is_another_log_on_its_second_lap", "nothing_above_a_trim_is_lost_on_later_laps")
class IsAnotherLogOnItsSecondLap(FileWal):
    """Begins anew when nothing is left of what it began with."""

    def _drop(self, position: int) -> None:
        lap = self._header.start // self._capacity
        super()._drop(position)
        if self._header.start // self._capacity > lap:
            self._header = self._header._replace(identity=os.urandom(8))
            self._write_header()
