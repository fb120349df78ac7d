"""Broken write-ahead logs."""

from __future__ import annotations

__all__ = ()

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from inspect import signature
from itertools import pairwise
from pathlib import Path

import anyio
from pydantic import Field

from penstock.errors import ClosedError, CorruptError, FencedError
from penstock.hookspecs import hookimpl
from penstock.spi import Services
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer, PluginSizes, SettingSize
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalSpec, WalStatistics
from penstock_conformance.mutants._mutant import DEFECT, NAME, SUMMARY, find, make, mutant
from penstock_conformance.mutants._wal_in_store import StoreWal, open_store_wal
from penstock_conformance.reference._wal import (
    RECORD_BYTES,
    WAL_CAPABILITIES,
    FileWal,
    Header,
    WalSettings,
    describe_wal,
    format_wal,
    identify_wal,
    open_wal,
    read_wal,
)

KIND = "wal"


@mutant(KIND, "acks_before_durable", "acknowledged_entries_survive_a_kill", level=3)
class AcksBeforeDurable(FileWal):
    """Acknowledges what is only in its own memory, and writes when there is enough of it."""

    def _flush(self) -> None:
        if self._state == "closing" or len(self._queue) > 15:
            self._state = "open"
            super()._flush()
        self._scheduled = False
        for append, _ in self._queue:
            if not append.done:
                self._confirmed = append.next_position
                append.complete()

    def _answer(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        super()._answer([item for item in group if not item[0].done])

    def close(self) -> None:
        if self._state == "open":
            self._state = "closing"
        super().close()


@mutant(KIND, "loses_the_tail_on_close", "leaving_the_context_flushes")
class LosesTheTailOnClose(FileWal):
    """Acknowledges at the end what it never wrote."""

    def close(self) -> None:
        unwritten, self._queue = self._queue, []
        super().close()
        self._answer(unwritten)


@mutant(KIND, "strands_waiters_on_close", "every_waiter_is_answered_when_the_scope_dies", hangs=True)
class StrandsWaitersOnClose(FileWal):
    """Drops what is pending without a word."""

    def close(self) -> None:
        self._queue.clear()
        super().close()


@mutant(KIND, "reorders_completions", "appends_complete_in_position_order")
class ReordersCompletions(FileWal):
    """Answers a group from its end."""

    def _answer(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        super()._answer(group[::-1])


@mutant(KIND, "reorders_entries", "recover_returns_exactly_what_was_appended", "positions_grow_and_tile")
class ReordersEntries(FileWal):
    """Recovers from the end."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        for entry in [entry async for entry in super().recover()][::-1]:
            yield entry


@mutant(
    KIND,
    "ignores_the_fence",
    "second_opener_fences_first",
    "appends_under_way_are_acked_or_fenced",
)
class IgnoresTheFence(FileWal):
    """Never looks who owns the log."""

    def _is_owner(self) -> bool:
        return True


@mutant(KIND, "looks_for_the_fence_once_in_a_while", "fenced_process_never_acknowledges_again", level=2)
class LooksForTheFenceOnceInAWhile(FileWal):
    """A lease, as it were: for a while after a look it takes itself for the owner."""

    _looks = 0

    def _is_owner(self) -> bool:
        self._looks += 1
        return self._looks % 200 != 0 or super()._is_owner()


@mutant(KIND, "lets_older_owners_open", "older_owner_cannot_open")
class LetsOlderOwnersOpen(FileWal):
    """The last to come is the owner."""

    def _read_header(self) -> Header:
        header = super()._read_header()
        return header._replace(epoch=min(header.epoch, self._epoch - 1))


@mutant(
    KIND,
    "skips_holes",
    "hole_below_the_confirmed_position_is_reported",
    "damage_below_the_confirmed_position_is_reported",
    level=3,
)
class SkipsHoles(FileWal):
    """Looks for the next record that fits."""

    @classmethod
    def _record(cls, log: memoryview, position: int) -> tuple[WalEntry, int] | None:
        while position + RECORD_BYTES <= len(log):
            found = super()._record(log, position)
            if found is not None:
                return found
            position += 1
        return None

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        """Whatever comes is the end."""


@mutant(KIND, "ends_at_holes", "hole_below_the_confirmed_position_is_reported", level=3)
class EndsAtHoles(FileWal):
    """Takes a hole for the end of the log."""

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        """Whatever comes is the end."""


@mutant(KIND, "returns_damaged_entries", "damage_below_the_confirmed_position_is_reported", level=3)
class ReturnsDamagedEntries(FileWal):
    """Has checksums and doesn't look at them."""

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        return True


@mutant(KIND, "stops_at_a_torn_tail", "torn_tail_ends_the_log", level=3)
class StopsAtATornTail(FileWal):
    """Takes every tear for damage."""

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        if any(log[position:]):
            raise CorruptError(f"something is wrong: position={position}")


@mutant(KIND, "exceeds_its_capacity", "full_log_refuses_until_trimmed")
class ExceedsItsCapacity(FileWal):
    """Takes everything."""

    def _check_room(self, size: int) -> None:
        """There is always room."""


@mutant(KIND, "tells_wrong_next_positions", "positions_grow_and_tile")
class TellsWrongNextPositions(FileWal):
    """Forgets that records have headers."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data)
        append.next_position -= RECORD_BYTES
        return append


@mutant(KIND, "reuses_positions", "positions_grow_over_a_trimmed_end")
class ReusesPositions(FileWal):
    """Starts from the front when everything was trimmed."""

    def _take_over(self) -> None:
        super()._take_over()
        if self._header.start == self._header.confirmed:
            self._header = Header(epoch=self._epoch, identity=self._header.identity)
            self._end = self._confirmed = self._header.start
            os.ftruncate(self._file, self._header.start)


@mutant(KIND, "trims_too_much", "trim_keeps_what_is_above")
class TrimsTooMuch(FileWal):
    """Drops the entry that the position is in."""

    def _drop(self, position: int) -> None:
        later = [end for end in self._ends if end > position]
        super()._drop(later[0] if later and position else position)


@mutant(KIND, "appends_before_recovery", "append_needs_a_finished_recovery")
class AppendsBeforeRecovery(FileWal):
    """Is ready at once, and writes over what is there."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        self._recovered = True
        return super().append(data)


@mutant(KIND, "forgets_when_cancelled", "many_can_wait_for_one_append", hangs=True)
class ForgetsWhenCancelled(FileWal):
    """Takes an append back whose waiter was cancelled."""

    _lingered = False

    def _flush(self) -> None:
        if self._lingered or self._state != "open":
            super()._flush()
        else:
            asyncio.get_running_loop().call_later(0.002, super()._flush)

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = super().append(data)
        item = self._queue[-1]
        made = _Forgettable(append.position, append.next_position)

        def forget() -> None:
            if item in self._queue:
                self._queue.remove(item)

        made.forget = forget
        append.set_callback(lambda done: made.complete(done.error))
        return made


class _Forgettable(WalAppend, eq=False):
    forget: Callable[[], None] = lambda: None

    async def wait_durable(self) -> None:
        try:
            await super().wait_durable()
        except anyio.get_cancelled_exc_class():
            self.forget()
            raise


@mutant(KIND, "acks_after_the_seal", "sealed_log_acknowledges_nothing")
class AcksAfterTheSeal(FileWal):
    """The seal binds the others."""

    async def seal(self) -> None:
        await anyio.lowlevel.checkpoint()


@mutant(KIND, "takes_empty_entries", "empty_and_oversized_entries_are_refused")
class TakesEmptyEntries(FileWal):
    """Gives an empty entry a byte of its own."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        return super().append(data if any(data) else [b"\0"])


@mutant(KIND, "refuses_appends_from_callbacks", "callback_may_append")
class RefusesAppendsFromCallbacks(FileWal):
    """Isn't ready while it answers."""

    _answering = False

    def _answer(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        self._answering = True
        super()._answer(group)
        self._answering = False

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if self._answering:
            raise ClosedError("not now")
        return super().append(data)


@mutant(KIND, "takes_appends_when_closed", "closed_log_refuses_appends")
class TakesAppendsWhenClosed(FileWal):
    """Takes what nobody will write."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if self._state == "closed":
            return WalAppend(self._end, self._end + 1)
        return super().append(data)


@mutant(KIND, "writes_the_first_buffer", "entry_is_the_concatenation_of_its_buffers")
class WritesTheFirstBuffer(FileWal):
    """Takes an entry for one buffer."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        return super().append(data[:1])


@mutant(KIND, "writes_the_checksum", "known_checksum_changes_nothing")
class WritesTheChecksum(FileWal):
    """Takes the checksum for a part of the entry."""

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if checksum is not None:
            data = [*data, checksum.to_bytes(4, "big")]
        return super().append(data)


@mutant(KIND, "writes_from_the_front", "reopening_continues_the_log")
class WritesFromTheFront(FileWal):
    """Recovers, and then starts where recovery started."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            yield entry
        self._end = self._confirmed = self._header.start


@mutant(KIND, "insists_on_its_tail", "lost_unacknowledged_tail_ends_the_log", level=3)
class InsistsOnItsTail(FileWal):
    """Notes in a second file where it is going to write, and takes that for confirmed."""

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        self._path.with_suffix(".end").write_text(str(group[-1][0].next_position))
        super()._write(group)

    def _take_over(self) -> None:
        super()._take_over()
        note = self._path.with_suffix(".end")
        noted = int(note.read_text()) if note.exists() else 0
        self._header = self._header._replace(confirmed=max(self._header.confirmed, noted))


@mutant(KIND, "invents_an_entry", "new_log_is_empty")
class InventsAnEntry(FileWal):
    """Begins with an entry of its own."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        yield WalEntry(0, 1, memoryview(b"hello"))
        async for entry in super().recover():
            yield entry


@mutant(KIND, "is_another_log_for_each_owner", "identity_outlives_owners")
class IsAnotherLogForEachOwner(FileWal):
    """Draws its identity at each opening."""

    def _read_header(self) -> Header:
        return super()._read_header()._replace(identity=self._drawn)

    def _take_over(self) -> None:
        self._drawn = os.urandom(8)
        super()._take_over()


@mutant(KIND, "forgets_itself_when_trimmed", "identity_outlives_owners")
class ForgetsItselfWhenTrimmed(FileWal):
    """An empty log is as good as a new one."""

    def _drop(self, position: int) -> None:
        self._header = self._header._replace(identity=os.urandom(8))
        super()._drop(position)


@mutant(KIND, "is_its_owner", "two_logs_have_two_identities", "log_made_anew_is_another_one")
class IsItsOwner(FileWal):
    """Takes whose it is for what it is."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        return "1" if super().identify(path, epoch) else None


@mutant(KIND, "is_its_place", "log_made_anew_is_another_one")
class IsItsPlace(FileWal):
    """Takes where it is for what it is."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        return str(path) if super().identify(path, epoch) else None


@mutant(KIND, "creates_what_it_looks_for", "looking_for_the_identity_changes_nothing")
class CreatesWhatItLooksFor(FileWal):
    """Looks by opening, which makes a log where there was none."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        with suppress(FencedError):
            cls(path, epoch, 2**20).close()
        return super().identify(path, epoch)


@mutant(KIND, "takes_what_it_looks_at", "looking_for_the_identity_changes_nothing")
class TakesWhatItLooksAt(FileWal):
    """Becomes the owner of a log by looking at it, if there is one."""

    @classmethod
    def identify(cls, path: Path, epoch: int) -> str | None:
        if path.exists():
            cls(path, max(epoch, 50), 2**20).close()
        return super().identify(path, epoch)


@mutant(KIND, "tells_its_start_as_its_end", "end_of_the_log_is_told")
class TellsItsStartAsItsEnd(FileWal):
    """Takes the trim point for the end, which it is of an empty log."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), end_position=self._header.start)


@mutant(KIND, "acks_past_an_error", "nothing_is_acknowledged_past_an_untold_error")
class AcksPastAnError(FileWal):
    """Fails the entry that met the fence, and nothing else."""

    def _fail(self, state: str, group: list[tuple[WalAppend, list[Buffer]]], error: Exception) -> None:
        super()._fail(state, group[:1], error)
        self._answer(group[1:])


@mutant(KIND, "cannot_be_trimmed_when_sealed", "sealed_log_can_be_trimmed")
class CannotBeTrimmedWhenSealed(FileWal):
    """Takes a trim for a write like any other."""

    async def trim(self, position: int) -> None:
        if self._header.sealed:
            raise FencedError("the log is sealed")
        await super().trim(position)


@mutant(KIND, "is_shareable_within_its_host", "survivor_takes_a_dead_nodes_log_over_beside_its_own")
class IsShareableWithinItsHost(FileWal):
    """Claims that another host can open it, and is in the data directory."""

    @property
    def capabilities(self) -> WalCapabilities:
        return replace(WAL_CAPABILITIES, shareable=True)


@mutant(
    KIND,
    "believes_what_it_knew_before_it_slept",
    "stopped_owner_that_wakes_up_acknowledges_nothing_more",
    level=2,
)
class BelievesWhatItKnewBeforeItSlept(IsShareableWithinItsHost):
    """Looks who owns the log, and believes it for some groups."""

    _looks = 0

    def _is_owner(self) -> bool:
        self._looks += 1
        return self._looks % 20 != 0 or super()._is_owner()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        yield  # who sleeps must not hold up its successor


class OneFilePerEntry(FileWal):
    """Keeps each entry in a file of its own while the log is closed; right, but for what is derived from it."""

    @property
    def location(self) -> str:
        return str(self._path.parent)

    def _take_over(self) -> None:
        for part in self._parts():
            os.pwrite(self._file, part.read_bytes(), int(part.suffix[1:]))
        super()._take_over()

    def _parts(self) -> list[Path]:
        return list(self._path.parent.glob(f"{self._path.name}.[0-9]*"))

    def close(self) -> None:
        super().close()
        whole = self._path.read_bytes()
        for start, end in pairwise([self._header.start, *self._ends]):
            self._path.with_suffix(f".{start}").write_bytes(whole[start:end])
        os.truncate(self._path, self._header.start)


@mutant(KIND, "returns_damaged_files", "damage_in_one_of_many_files_is_reported", level=3)
class ReturnsDamagedFiles(OneFilePerEntry, ReturnsDamagedEntries):
    """Has checksums and doesn't look at them."""


@mutant(KIND, "skips_missing_files", "missing_file_below_the_confirmed_position_is_reported", level=3)
class SkipsMissingFiles(OneFilePerEntry, SkipsHoles):
    """Takes what is listed for what there was."""


@mutant(KIND, "gives_all_up_with_its_end", "lost_file_at_the_end_costs_no_more_than_itself", level=3)
class GivesAllUpWithItsEnd(OneFilePerEntry):
    """Begins anew where the newest file is missing."""

    def _parts(self) -> list[Path]:
        newest = self._path.with_suffix(".newest")
        parts = super()._parts()
        return parts if newest.exists() and Path(newest.read_text()) in parts else []

    def _take_over(self) -> None:
        super()._take_over()
        self._header = self._header._replace(confirmed=self._header.start)

    def close(self) -> None:
        super().close()
        if len(self._ends) > 1:
            self._path.with_suffix(".newest").write_text(str(self._path.with_suffix(f".{self._ends[-2]}")))


@mutant(KIND, "counts_nothing", "statistics_tell_the_state")
class CountsNothing(FileWal):
    """Has no counters."""

    def statistics(self) -> WalStatistics:
        return WalStatistics(state=self._state)


@mutant(KIND, "says_why_while_it_is_well", "statistics_tell_the_state")
class SaysWhyWhileItIsWell(FileWal):
    """Has a sentence for each state."""

    def statistics(self) -> WalStatistics:
        return replace(super().statistics(), last_error=f"the log is {self._state}")


@mutant(KIND, "says_nothing_of_a_fence", "second_opener_fences_first", "sealed_log_acknowledges_nothing")
class SaysNothingOfAFence(FileWal):
    """Who looks sees that it is fenced, and not by whom."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, last_error="") if told.state == "fenced" else told


@mutant(KIND, "says_nothing_of_a_failure", "failed_writes_are_told_and_leave_no_hole", level=4)
class SaysNothingOfAFailure(FileWal):
    """The error is told to who appended, and to nobody who looks later."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return replace(told, last_error="") if told.state == "failed" else told


@mutant(KIND, "has_a_state_for_full", "full_log_refuses_until_trimmed")
class HasAStateForFull(FileWal):
    """Who looks at states of a log knows no such word."""

    def statistics(self) -> WalStatistics:
        told = super().statistics()
        return told if self.would_fit(self._capacity // 10) else replace(told, state="full")


class DefectiveWal(WalSettings):
    """Which mutant it is, and the capacity."""

    defect: str = Field(description=DEFECT)


def _store_class(settings: DefectiveWal) -> type[StoreWal] | None:
    """Of a mutant whose medium is the object store."""
    found = find("wal", settings.defect)
    made = found.make if found is not None else None
    return made if isinstance(made, type) and issubclass(made, StoreWal) else None


def _make_wal(settings: DefectiveWal, path: Path, epoch: int, capacity: int) -> FileWal:
    made = make("wal", settings.defect, path, epoch, capacity)
    assert isinstance(made, FileWal)
    return made


def _wal_class(settings: DefectiveWal) -> type[FileWal]:
    found = find("wal", settings.defect)
    made = found.make if found is not None else None
    assert isinstance(made, type)
    assert issubclass(made, FileWal)
    return made


def _make_store_wal(made: type[StoreWal], store: ObjectStore, epoch: int, services: Services) -> StoreWal:
    """One that minds whose log it is takes the node, too."""
    of_node = "node_id" in signature(made).parameters
    return made(store, epoch, **({"node_id": services.node_id} if of_node else {}))


def _sizes(settings: DefectiveWal) -> PluginSizes:
    """What mutants tell beforehand, if they do; ``SIZES_OFF_BY`` is how far they err."""
    found = find("wal", settings.defect)
    off_by = getattr(found.make, "SIZES_OFF_BY", None) if found is not None else None
    if off_by is None:
        return PluginSizes()
    largest = min(WAL_CAPABILITIES.entry_bytes_max, settings.capacity - RECORD_BYTES)
    return PluginSizes(entry=SettingSize(largest + off_by, "capacity"))


def _open_wal(settings: DefectiveWal, services: Services) -> object:
    if (in_store := _store_class(settings)) is not None:
        return open_store_wal(
            lambda store, epoch: _make_store_wal(in_store, store, epoch, services), services
        )
    return open_wal(lambda path, epoch, capacity: _make_wal(settings, path, epoch, capacity))(
        settings, services
    )


@hookimpl
def penstock_register_wal() -> WalSpec[DefectiveWal]:
    """Register the broken WALs."""
    return WalSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectiveWal,
        capabilities=WAL_CAPABILITIES,
        open=_open_wal,  # type: ignore[arg-type] # the reference's class stands for the Protocol
        identify=identify_wal(_wal_class),
        read=read_wal(_wal_class),
        describe=describe_wal(_wal_class),
        format=format_wal(_wal_class),
        key_prefixes=lambda _: ("wal/",),
        sizes=_sizes,
    )
