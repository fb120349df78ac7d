"""Defects of the engine, of metadata and of WALs, for the simulation to find: each is entered around a history."""

from __future__ import annotations

__all__ = ("BUGS",)

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from unittest import mock

from penstock_wal_block._headers import Headers, SharedHeaders
from penstock_wal_block._log import BlockLog, CachedReader
from penstock_wal_s3 import ObjectWal
from penstock_wal_s3._log import ObjectLog
from penstock_wal_s3._puts import Puts
from penstock_wal_s3express_replicated import ReplicatedWal
from penstock_wal_s3express_replicated._replica import Replica

from penstock.errors import AlreadyExistsError, CorruptError, UnavailableError
from penstock.spi.plugin import Buffer
from penstock.stream import lifecycle as lifecycle_module
from penstock.stream.engine import StreamEngine
from penstock.stream.replay import Replay
from penstock.wal import Group, GroupCommit, LogScan

Bug = Callable[[], AbstractContextManager[object]]


def _trims_what_is_not_uploaded() -> AbstractContextManager[object]:
    """The engine trims the WAL up to the newest entry, not up to the block that was committed."""
    real = StreamEngine._trim_uploaded

    async def trim(self: StreamEngine, position: int) -> None:
        await real(self, self._stored_end)

    return mock.patch.object(StreamEngine, "_trim_uploaded", trim)


def _acks_out_of_order() -> AbstractContextManager[object]:
    """A group that is durable is acknowledged, with all before it, whether those are or not."""
    real = GroupCommit.finish

    def finish(self: GroupCommit, group: Group) -> None:
        for earlier in list(self._flying):
            if earlier is group:
                break
            if not earlier.done:
                real(self, earlier)
        if not group.done:
            real(self, group)

    return mock.patch.object(GroupCommit, "finish", finish)


def _takes_any_object_for_its_own() -> AbstractContextManager[object]:
    """wal_s3 takes an object that exists for its own, after a lost reply."""

    async def create_once(self: Puts, key: str, body: Sequence[Buffer]) -> None:
        with suppress(AlreadyExistsError):
            await self._store.put_if_absent(key, body)

    return mock.patch.object(Puts, "_create_once", create_once)


def _passes_over_what_is_behind_a_mark() -> AbstractContextManager[object]:
    """Recovery passes over the entries of a stream that come in the same WAL after 20 others."""
    real = Replay._is_needed

    def needed(self: Replay, header: Any, recovered: Any) -> bool:
        return real(self, header, recovered) and self.entries < 20

    return mock.patch.object(Replay, "_is_needed", needed)


def _passes_over_what_a_trim_begins_in() -> AbstractContextManager[object]:
    """Recovery takes an entry that begins before the start of its stream for one that is trimmed."""
    real = Replay._is_needed

    def needed(self: Replay, header: Any, recovered: Any) -> bool:
        state = self._image.streams.get(header.stream_id)
        is_cut = state is not None and header.base_offset < state.start < header.next_offset
        return real(self, header, recovered) and not is_cut

    return mock.patch.object(Replay, "_is_needed", needed)


def _believes_any_clock() -> AbstractContextManager[object]:
    """What a clock destroyed that was years ahead waits for that time."""
    return mock.patch.object(lifecycle_module, "CLOCK_SLACK_MS", 2**62)


def _trims_one_too_many() -> AbstractContextManager[object]:
    """wal_s3 moves its start one object too far when it is trimmed."""
    real = ObjectWal.trim

    async def trim(self: ObjectWal, position: int) -> None:
        self._settle()
        later = [stored.end_position for stored in self._stored if stored.end_position > position]
        await real(self, later[0] if len(later) > 1 else position)

    return mock.patch.object(ObjectWal, "trim", trim)


def _skips_damaged_objects() -> AbstractContextManager[object]:
    """wal_s3 ends its log at an object that is missing or damaged."""
    real = ObjectLog.read

    async def read(self: ObjectLog, found: Any, *, live: bool = False) -> AsyncIterator[Any]:
        try:
            async for item in real(self, found, live=live):
                yield item
        except CorruptError:
            return

    return mock.patch.object(ObjectLog, "read", read)


def _never_syncs() -> AbstractContextManager[object]:
    """wal_block takes a write for durable."""
    real = BlockLog.put

    def put(self: BlockLog, flight: Any) -> None:
        with mock.patch.object(self._device, "sync"):
            real(self, flight)

    return mock.patch.object(BlockLog, "put", put)


@contextmanager
def _never_looks_who_owns_it() -> Iterator[None]:
    """wal_block holds no lock, and doesn't look whether another owner came."""
    with (
        mock.patch.object(Headers, "check"),
        mock.patch.object(SharedHeaders, "check"),
        mock.patch.object(BlockLog, "_enter", _enter_unlocked),
    ):
        yield


def _enter_unlocked(self: BlockLog) -> None:
    self._writing += 1


def _ends_at_damage() -> AbstractContextManager[object]:
    """Recovery takes what doesn't fit for the end of the log."""
    return mock.patch.object(LogScan, "_decide")


def _believes_a_second_sync() -> AbstractContextManager[object]:
    """wal_block tries a sync again that failed; the second one has nothing to do any more, and succeeds."""
    real = BlockLog.put

    def put(self: BlockLog, flight: Any) -> None:
        sync = self._device.sync

        def twice() -> None:
            try:
                sync()
            except OSError:
                sync()

        with mock.patch.object(self._device, "sync", twice):
            real(self, flight)

    return mock.patch.object(BlockLog, "put", put)


def _takes_a_failed_read_for_the_end() -> AbstractContextManager[object]:
    """wal_block's recovery ends where the disk can't be read."""
    real = CachedReader.read

    def read(self: CachedReader, position: int, size: int) -> memoryview:
        try:
            return real(self, position, size)
        except (OSError, UnavailableError):
            return memoryview(b"")

    return mock.patch.object(CachedReader, "read", read)


def _keeps_the_memory_of_what_failed() -> AbstractContextManager[object]:
    """The engine forgets to let go of the memory of appends that fail."""
    real = StreamEngine._fail

    def fail(self: StreamEngine, run: Sequence[Any], error: Exception) -> Exception | None:
        for _, entry, *_ in run:
            entry.charge = None
        return real(self, run, error)

    return mock.patch.object(StreamEngine, "_fail", fail)


# -- the replicated log


def _acks_before_the_smaller_set_is_recorded() -> AbstractContextManager[object]:
    """A replica that failed is forgotten at once, and metadata are told later."""
    real = ReplicatedWal._lost

    def lost(self: ReplicatedWal, replica: Replica) -> None:
        real(self, replica)
        rest = [each for each in self._counting if each.error is None]
        if rest and self._recovery == "done":
            with mock.patch.object(self, "_counting", rest):
                self._advance()

    return mock.patch.object(ReplicatedWal, "_lost", lost)


def _counts_before_it_was_caught_up() -> AbstractContextManager[object]:
    """A replica that returns gets what is new, and not what the log holds."""

    async def copy(self: ReplicatedWal, source: Replica, replica: Replica, reached: int | None) -> int | None:
        return reached

    return mock.patch.object(ReplicatedWal, "_copy", copy)


def _repairs_nothing() -> AbstractContextManager[object]:
    """What one replica lacks at a recovery stays missing there."""

    async def copy(self: Replica, *_: object) -> None:
        self._bound(0, 0)

    return mock.patch.object(Replica, "copy", copy)


@contextmanager
def _takes_back_what_was_out() -> Iterator[None]:
    """A replica that returns is taken as it is: what it holds of before counts, with what nobody acknowledged."""
    real = Replica._filtered

    async def empty(self: Replica, tag: bytes) -> None:
        async for _ in self.wal.recover():
            pass

    def filtered(self: Replica, entries: Any, _since: int) -> AsyncIterator[Any]:
        return real(self, entries, 0)

    with mock.patch.object(Replica, "empty", empty), mock.patch.object(Replica, "_filtered", filtered):
        yield


def _recovers_from_the_first_that_answers() -> AbstractContextManager[object]:
    """Recovery reads one replica that counts, and doesn't look whether another one has more."""
    real = ReplicatedWal.recover

    async def recover(self: ReplicatedWal) -> AsyncIterator[Any]:
        for other in self._counting[1:]:
            other.head = None
        async for entry in real(self):
            yield entry

    return mock.patch.object(ReplicatedWal, "recover", recover)


BUGS: dict[str, dict[str, Bug]] = {
    "wal_s3": {
        "passes_over_what_a_trim_begins_in": _passes_over_what_a_trim_begins_in,
        "believes_any_clock": _believes_any_clock,
        "trims_what_is_not_uploaded": _trims_what_is_not_uploaded,
        "acks_out_of_order": _acks_out_of_order,
        "takes_any_object_for_its_own": _takes_any_object_for_its_own,
        "passes_over_what_is_behind_a_mark": _passes_over_what_is_behind_a_mark,
        "trims_one_too_many": _trims_one_too_many,
        "skips_damaged_objects": _skips_damaged_objects,
    },
    "wal_block": {
        "trims_what_is_not_uploaded": _trims_what_is_not_uploaded,
        "passes_over_what_is_behind_a_mark": _passes_over_what_is_behind_a_mark,
        "never_syncs": _never_syncs,
        "believes_a_second_sync": _believes_a_second_sync,
        "takes_a_failed_read_for_the_end": _takes_a_failed_read_for_the_end,
        "keeps_the_memory_of_what_failed": _keeps_the_memory_of_what_failed,
        "never_looks_who_owns_it": _never_looks_who_owns_it,
        "ends_at_damage": _ends_at_damage,
    },
    "wal_s3express_replicated": {
        "trims_what_is_not_uploaded": _trims_what_is_not_uploaded,
        "acks_before_the_smaller_set_is_recorded": _acks_before_the_smaller_set_is_recorded,
        "counts_before_it_was_caught_up": _counts_before_it_was_caught_up,
        "repairs_nothing": _repairs_nothing,
        "takes_back_what_was_out": _takes_back_what_was_out,
        "recovers_from_the_first_that_answers": _recovers_from_the_first_that_answers,
    },
    "wal_block_shared": {"never_looks_who_owns_it": _never_looks_who_owns_it},
}
