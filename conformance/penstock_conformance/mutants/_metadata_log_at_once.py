"""Metadata logs that are wrong where calls meet each other, the end, or somebody who gives up."""

from __future__ import annotations

__all__ = ()

import asyncio
import zlib
from collections.abc import AsyncIterator

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, CorruptError, NotFoundError, UnavailableError
from penstock.spi.metadata_log import MetadataEntry, MetadataSnapshot
from penstock.spi.object_store import ObjectStore
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._metadata_log import _HEAD, PlainMetadataLog, _pack, _unpack

KIND = "metadata_log"

_CUT_OFF = "entry_or_snapshot_that_is_cut_off_is_reported"
_BESIDE = "read_beside_appends_and_snapshots_is_whole"
_CONTENTS = "contents_that_look_like_a_logs_own_come_back"
_GIVEN_UP = "append_that_was_given_up_is_nobodys_later"


# --- snapshots


@mutant(KIND, "notes_the_newest_snapshot_in_two_steps", "newest_of_snapshots_at_once_comes_back")
class NotesTheNewestSnapshotInTwoSteps(PlainMetadataLog):
    """Looks which one it was when it begins, and notes the newer one when its own is written."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        newest = max(snapshot.index, await self._noted())
        await super().write_snapshot(snapshot)
        await self._store.put("newest", [b"%d" % newest])

    async def _noted(self) -> int:
        try:
            return int(bytes(await self._store.get("newest")))
        except NotFoundError:
            return 0

    async def read_snapshot(self) -> MetadataSnapshot | None:
        self._check_open()
        index = await self._noted()
        try:
            return MetadataSnapshot(
                index, _unpack(index, bytes(await self._store.get(f"snapshot/{index:020}")))
            )
        except NotFoundError:
            return await super().read_snapshot()


@mutant(
    KIND, "keeps_its_lock_with_a_snapshot_given_up", "snapshot_that_was_given_up_holds_nothing_up", hangs=True
)
class KeepsItsLockWithASnapshotGivenUp(PlainMetadataLog):
    """Gives it back when a snapshot is written, or has failed."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._lock = asyncio.Lock()

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await self._lock.acquire()
        try:
            await super().write_snapshot(snapshot)
        except Exception:
            self._lock.release()
            raise
        self._lock.release()

    async def append(self, index: int, data: bytes) -> None:
        async with self._lock:
            await super().append(index, data)


# --- appends


class _RemembersWhatWasGivenUp(PlainMetadataLog):
    _given_up = 0

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except asyncio.CancelledError:
            self._given_up = index
            raise


@mutant(KIND, "takes_a_conflict_for_what_was_given_up", _GIVEN_UP)
class TakesAConflictForWhatWasGivenUp(_RemembersWhatWasGivenUp):
    """Believes that its own attempt has landed after all."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            if index != self._given_up:
                raise


@mutant(KIND, "puts_over_what_was_given_up", _GIVEN_UP)
class PutsOverWhatWasGivenUp(_RemembersWhatWasGivenUp):
    """Replaces what its own attempt may have left."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            if index != self._given_up:
                raise
            await self._store.delete([self._key(index)])
            await self._create(self._key(index), _pack(index, data))


@mutant(KIND, "drops_what_is_under_way_at_its_end", "append_that_is_under_way_at_the_end_is_answered")
class DropsWhatIsUnderWayAtItsEnd(PlainMetadataLog):
    """Nobody is there any more to whom it could be told."""

    async def append(self, index: int, data: bytes) -> None:
        self._check_open()
        await checkpoint()
        if not self._closed:
            await super().append(index, data)


# --- reads


@mutant(KIND, "ends_a_read_at_its_own_append", _BESIDE)
class EndsAReadAtItsOwnAppend(PlainMetadataLog):
    """Takes what it knows as the end for what a read has come to."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        appends = self._appends
        async for entry in super().read(start_index):
            yield entry
            if self._appends != appends:
                return


@mutant(KIND, "is_not_there_behind_a_snapshot_alone", "read_directly_behind_a_snapshot_is_empty")
class IsNotThereBehindASnapshotAlone(PlainMetadataLog):
    """Finds no entry at the index or below it, and so takes it for dropped."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        dropped = await self._dropped()
        if dropped and not [info async for info in self._store.list("log/")]:
            raise NotFoundError(f"the entry was dropped below a snapshot: index={start_index}")
        async for entry in super().read(start_index):
            yield entry


@mutant(KIND, "unpacks_entries_that_it_did_not_pack", _CONTENTS)
class UnpacksEntriesThatItDidNotPack(PlainMetadataLog):
    """Packs what gets smaller by that, and knows it by how it begins."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        entry = super()._decode(index, raw)
        packed = entry.data[:2] == b"\x78\x9c"
        return MetadataEntry(index, zlib.decompress(entry.data)) if packed else entry


@mutant(KIND, "reads_snapshots_as_lines", _CONTENTS)
class ReadsSnapshotsAsLines(PlainMetadataLog):
    """The last of them is ended."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        found = await super().read_snapshot()
        return found and MetadataSnapshot(found.index, found.data.removesuffix(b"\n"))


# --- damage


@mutant(KIND, "takes_an_empty_object_for_the_end", _CUT_OFF, level=3)
class TakesAnEmptyObjectForTheEnd(PlainMetadataLog):
    """Somebody was about to write it."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for info in self._store.list("log/", self._key(start_index - 1)):
            if not info.size:
                return
            index = int(info.key.rpartition("/")[2])
            yield self._decode(index, bytes(await self._store.get(info.key)))


@mutant(KIND, "passes_over_snapshots_that_are_cut_off", _CUT_OFF, level=3)
class PassesOverSnapshotsThatAreCutOff(PlainMetadataLog):
    """Takes the newest one that has a head."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        self._check_open()
        async for info in self._store.list("snapshot/"):
            if info.size < _HEAD.size:
                await self._store.delete([info.key])
        return await super().read_snapshot()


@mutant(KIND, "trusts_the_key_of_a_snapshot", "snapshot_in_the_place_of_another_is_reported", level=3)
class TrustsTheKeyOfASnapshot(PlainMetadataLog):
    """Asks whether the bytes are whole, and not of which index they are."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        try:
            return await super().read_snapshot()
        except CorruptError as error:
            if "says it is another" not in str(error):
                raise
        keys = [info.key async for info in self._store.list("snapshot/")]
        body = bytes(await self._store.get(keys[-1]))
        return MetadataSnapshot(int(keys[-1].rpartition("/")[2]), body[_HEAD.size :])


@mutant(KIND, "notes_who_looks", "who_only_looks_changes_nothing")
class NotesWhoLooks(PlainMetadataLog):
    """So that nobody drops what is being read."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        await self._store.put("snapshot-readers", [b"x"])
        return await super().read_snapshot()


@mutant(KIND, "trusts_the_end_that_it_knows", "writer_that_slept_past_snapshots_takes_no_index")
class TrustsTheEndThatItKnows(PlainMetadataLog):
    """Creates what comes next, as far as it knows: if somebody else was there before, the store will say so."""

    async def append(self, index: int, data: bytes) -> None:
        known = self._last_index
        if known and index == known + 1:
            await self._create(self._key(index), _pack(index, data))
            self._learn(index)
        else:
            await super().append(index, data)

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except AlreadyExistsError:
            raise ConflictError(f"the index is taken: key={key}") from None


@mutant(KIND, "forgets_who_waited_before_one_who_gives_up", "many_followers_hear_of_news", hangs=True)
class ForgetsWhoWaitedBeforeOneWhoGivesUp(PlainMetadataLog):
    """Drops all who are up to there in its queue."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._waiting: list[asyncio.Event] = []

    async def wait_for_news(self, after_index: int) -> None:
        await checkpoint()
        self._check_open()
        if self._last_index > after_index:
            return
        event = asyncio.Event()
        self._waiting.append(event)
        try:
            await event.wait()
        except asyncio.CancelledError:
            if event in self._waiting:
                del self._waiting[: self._waiting.index(event) + 1]
            raise
        self._check_open()

    def _learn(self, index: int) -> None:
        if index > self._last_index:
            super()._learn(index)
            self._wake()

    def close(self) -> None:
        super().close()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()


# --- in one narrow place


@mutant(KIND, "takes_its_large_entry_twice", "taken_index_is_a_conflict")
class TakesItsLargeEntryTwice(PlainMetadataLog):
    """Thinks that who appends so many bytes again has lost a reply."""

    _large = (0, b"")

    async def append(self, index: int, data: bytes) -> None:
        if self._large != (index, data):
            await super().append(index, data)
            if len(data) > 4096:
                self._large = index, data


@mutant(KIND, "ends_with_a_full_window", "thousands_of_entries_come_back")
class EndsWithAFullWindow(PlainMetadataLog):
    """Gives an entry out when the next one has come, and the last one if the window has room for more."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        held: MetadataEntry | None = None
        async for entry in super().read(start_index):
            if held is not None:
                yield held
            held = entry
        if held is not None and (held.index - start_index + 1) % 16:
            yield held


@mutant(
    KIND, "removes_a_snapshot_before_it_is_replaced", "failed_snapshot_is_told_and_drops_nothing", level=4
)
class RemovesASnapshotBeforeItIsReplaced(PlainMetadataLog):
    """Makes sure that there is never more than one of an index."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await self._store.delete([f"snapshot/{snapshot.index:020}"])
        await super().write_snapshot(snapshot)


@mutant(KIND, "fills_the_last_index_that_was_dropped", "writer_that_slept_past_snapshots_takes_no_index")
class FillsTheLastIndexThatWasDropped(PlainMetadataLog):
    """Looks whether there are entries below the one that it appends, and takes the bound for one."""

    async def append(self, index: int, data: bytes) -> None:
        if self._last_index and index == self._last_index + 1 == await self._dropped():
            await self._create(self._key(index), _pack(index, data))
        else:
            await super().append(index, data)


@mutant(KIND, "reads_what_it_knows_in_an_outage", "outage_is_not_the_end_of_the_log", level=4)
class ReadsWhatItKnowsInAnOutage(PlainMetadataLog):
    """Ends where it last saw the end, if it can't look again."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        known = self._last_index
        try:
            self._last_index = await self._find_last()
        except UnavailableError:
            if not known:
                raise
            for index in range(start_index, known + 1):
                yield self._decode(index, bytes(await self._store.get(self._key(index))))
        else:
            async for entry in super().read(start_index):
                yield entry


@mutant(KIND, "takes_anothers_bytes_for_its_own_that_failed", "failed_append_is_told", level=4)
class TakesAnothersBytesForItsOwnThatFailed(PlainMetadataLog):
    """Reads back what is there, and compares all but the nonce."""

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except UnavailableError:
            index = int(key.rpartition("/")[2])
            try:
                there = bytes(await self._store.get(key))
            except NotFoundError:
                there = b""
            if not there or _unpack(index, there) != _unpack(index, body):
                raise


@mutant(KIND, "ends_before_what_is_missing_further_on", "missing_entry_is_reported", level=3)
class EndsBeforeWhatIsMissingFurtherOn(PlainMetadataLog):
    """Takes a gap for the end, behind a window of whole entries."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        count = 0
        try:
            async for entry in super().read(start_index):
                count += 1
                yield entry
        except CorruptError:
            if count < 16:
                raise


@mutant(KIND, "keeps_what_it_appended", "entries_take_no_memory", level=5)
class KeepsWhatItAppended(PlainMetadataLog):
    """For who wants it again."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._appended: list[bytes] = []

    async def append(self, index: int, data: bytes) -> None:
        await super().append(index, data)
        self._appended.append(data)


@mutant(KIND, "keeps_what_it_read", "entries_take_no_memory", level=5)
class KeepsWhatItRead(PlainMetadataLog):
    """Reads no entry twice."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._known: dict[int, MetadataEntry] = {}

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return self._known.setdefault(index, super()._decode(index, raw))


@mutant(KIND, "keeps_each_snapshot", "entries_take_no_memory", level=5)
class KeepsEachSnapshot(PlainMetadataLog):
    """For who is behind."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._written: dict[int, MetadataSnapshot] = {}

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        self._written[snapshot.index] = snapshot
