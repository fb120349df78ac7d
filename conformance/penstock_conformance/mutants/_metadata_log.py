"""Broken metadata logs."""

from __future__ import annotations

__all__ = ()

from collections.abc import AsyncIterator

import anyio

from penstock.errors import ConflictError, CorruptError, InvalidRequestError
from penstock.hookspecs import hookimpl
from penstock.spi.metadata_log import (
    MetadataEntry,
    MetadataLogCapabilities,
    MetadataLogSpec,
    MetadataSnapshot,
)
from penstock_conformance.mutants._mutant import NAME, SUMMARY, Defective, make, mutant
from penstock_conformance.reference._metadata_log import PlainMetadataLog, _pack, _unpack
from penstock_conformance.reference._plugin import closing

KIND = "metadata_log"


@mutant(KIND, "overwrites_an_index", "one_process_wins_each_index", level=2)
class OverwritesAnIndex(PlainMetadataLog):
    """Looks whether the index is free, and then puts."""

    async def _create(self, key: str, body: bytes) -> None:
        await self._store.put(key, [body])


@mutant(KIND, "overwrites_among_tasks", "one_task_wins_each_index")
class OverwritesAmongTasks(OverwritesAnIndex):
    """Overwrites an entry that another task of this process appended."""


@mutant(KIND, "trusts_its_memory", "second_writer_meets_the_first")
class TrustsItsMemory(PlainMetadataLog):
    """Believes that what it hasn't written isn't there."""

    async def _find_last(self) -> int:
        return self._last_index

    async def _create(self, key: str, body: bytes) -> None:
        await self._store.put(key, [body])


@mutant(KIND, "appends_the_same_twice", "taken_index_is_a_conflict")
class AppendsTheSameTwice(PlainMetadataLog):
    """Takes what it finds at the index for its own, if it is the same: a reply may have been lost."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            async for entry in self.read(index):
                if entry.data == data:
                    return
                break
            raise


@mutant(KIND, "skips_corrupt_entries", "damaged_entry_is_reported", level=3)
class SkipsCorruptEntries(PlainMetadataLog):
    """Reads on behind the damage."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for info in self._store.list("log/", self._key(start_index - 1)):
            index = int(info.key.rpartition("/")[2])
            try:
                yield self._decode(index, bytes(await self._store.get(info.key)))
            except CorruptError:
                continue


@mutant(KIND, "skips_missing_entries", "missing_entry_is_reported", level=3)
class SkipsMissingEntries(PlainMetadataLog):
    """Reads what the listing shows."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for info in self._store.list("log/", self._key(start_index - 1)):
            index = int(info.key.rpartition("/")[2])
            yield self._decode(index, bytes(await self._store.get(info.key)))


@mutant(KIND, "returns_damaged_entries", "damaged_entry_is_reported", level=3)
class ReturnsDamagedEntries(PlainMetadataLog):
    """Doesn't look at the checksum."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return MetadataEntry(index, raw[20:])


@mutant(KIND, "returns_damaged_snapshots", "damaged_snapshot_is_reported", level=3)
class ReturnsDamagedSnapshots(PlainMetadataLog):
    """Takes the older one when the newest is damaged, and says nothing."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        keys = [info.key async for info in self._store.list("snapshot/")]
        for key in reversed(keys):
            index = int(key.rpartition("/")[2])
            try:
                return MetadataSnapshot(index, _unpack(index, bytes(await self._store.get(key))))
            except CorruptError:
                continue
        return None


@mutant(KIND, "leaves_gaps", "gaps_are_refused")
class LeavesGaps(PlainMetadataLog):
    """Appends at any index that is free."""

    async def append(self, index: int, data: bytes) -> None:
        if index > self._last_index:
            self._last_index = index - 1
        await super().append(index, data)

    async def _find_last(self) -> int:
        return max(self._last_index, await super()._find_last())


@mutant(KIND, "drops_too_much", "snapshots_keep_what_followers_need")
class DropsTooMuch(PlainMetadataLog):
    """Deletes every entry that the newest snapshot covers."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        keys = [info.key async for info in self._store.list("log/")]
        await self._store.delete([key for key in keys if key <= self._key(snapshot.index)])


@mutant(KIND, "returns_the_oldest_snapshot", "newest_snapshot_comes_back")
class ReturnsTheOldestSnapshot(PlainMetadataLog):
    """Lists, and takes the first."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        async for info in self._store.list("snapshot/"):
            index = int(info.key.rpartition("/")[2])
            return MetadataSnapshot(index, _unpack(index, bytes(await self._store.get(info.key))))
        return None


@mutant(KIND, "never_wakes_followers", "wait_returns_when_there_is_news", hangs=True)
class NeverWakesFollowers(PlainMetadataLog):
    """Learns, and keeps it to itself."""

    def _learn(self, index: int) -> None:
        self._last_index = max(self._last_index, index)


@mutant(KIND, "leaves_followers_waiting", "waiters_are_answered_at_the_end", hangs=True)
class LeavesFollowersWaiting(PlainMetadataLog):
    """Ends without a word."""

    def close(self) -> None:
        self._closed = True


@mutant(KIND, "acks_before_durable", "acknowledged_entries_survive_a_kill", level=3)
class AcksBeforeDurable(PlainMetadataLog):
    """Writes an entry when the next one comes."""

    _unwritten: tuple[int, bytes] | None = None

    async def append(self, index: int, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self._unwritten is not None and index != self._unwritten[0] + 1:
            raise InvalidRequestError(f"the entry would leave a gap: index={index}")
        await self._write()
        self._unwritten = (index, data)

    async def _write(self) -> None:
        if self._unwritten is not None:
            await super().append(*self._unwritten)
            self._unwritten = None

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await self._write()
        await super().write_snapshot(snapshot)


@mutant(KIND, "begins_one_late", "entries_come_back_in_order")
class BeginsOneLate(PlainMetadataLog):
    """Takes the start for exclusive."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for entry in super().read(start_index):
            if entry.index > start_index:
                yield entry


@mutant(KIND, "strips_zeros", "entry_data_of_any_kind")
class StripsZeros(PlainMetadataLog):
    """Pads entries, and takes the padding off again."""

    async def append(self, index: int, data: bytes) -> None:
        await super().append(index, data.rstrip(b"\0"))


@mutant(KIND, "cuts_large_entries", "oversized_entries_are_refused")
class CutsLargeEntries(PlainMetadataLog):
    """Keeps as much as fits."""

    async def append(self, index: int, data: bytes) -> None:
        await super().append(index, data[: self.capabilities.entry_bytes_max])


@mutant(KIND, "says_nothing_about_conflicts", "taken_index_is_a_conflict")
class SaysNothingAboutConflicts(PlainMetadataLog):
    """The index has an entry, and that is what was wanted."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            return


@mutant(KIND, "appends_in_two_steps", "cancelled_append_is_whole_or_nothing")
class AppendsInTwoSteps(PlainMetadataLog):
    """Reserves the index with an empty object, and fills it."""

    async def _create(self, key: str, body: bytes) -> None:
        await super()._create(key, b"")
        await self._store.put(key, [body])


@mutant(KIND, "writes_snapshots_in_parts", "needs_of_the_store_are_told")
class WritesSnapshotsInParts(PlainMetadataLog):
    """Any store takes parts."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        upload = await self._store.create_multipart(f"snapshot/{snapshot.index:020}")
        await upload.write_part([_pack(snapshot.index, snapshot.data)])
        await upload.complete()


@hookimpl
def penstock_register_metadata_log() -> MetadataLogSpec[Defective]:
    """Register the broken metadata logs."""
    return MetadataLogSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=MetadataLogCapabilities(),
        open=closing(lambda settings, services: make("metadata_log", settings.defect, services.object_store)),
        requires=frozenset({"put_if_absent", "ordered_listing"}),
        key_prefixes=lambda _: ("log/", "snapshot/"),
    )
