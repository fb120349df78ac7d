"""Stores, caches, allocators and metadata logs with which a whole broker is wrong, though little of them is."""

from __future__ import annotations

__all__ = ()

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import ClassVar

from penstock.errors import ConflictError, UnavailableError
from penstock.spi.allocator import Allocator
from penstock.spi.block_cache import BlockLoader, BlockRef
from penstock.spi.log_cache import LogCacheBlock, StreamEntry
from penstock.spi.metadata_log import MetadataEntry, MetadataSnapshot
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock_conformance._target import STRATEGY
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_conformance.reference._block_cache import PlainBlockCache, _Slot
from penstock_conformance.reference._log_cache import Block, PlainLogCache
from penstock_conformance.reference._metadata_log import PlainMetadataLog, _pack
from penstock_conformance.reference._object_store import DirectoryStore

_RESTARTS = "random_lives_with_restarts_agree_with_a_model"
_KILLS = "random_lives_with_kills_agree_with_a_model"
_UPLOAD = "what_is_acknowledged_during_an_upload_survives_its_end"
_REFUSED = "what_the_store_refuses_is_not_acknowledged"


@mutant(STRATEGY, "loses_its_newest_objects", _RESTARTS, part="object_store")
class LosesItsNewestObjects(DirectoryStore):
    """Forgets the last that were put when it is opened again."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        for path in sorted(self._objects.iterdir(), key=lambda path: path.stat().st_mtime_ns)[-4:]:
            path.unlink()


@mutant(STRATEGY, "deletes_the_neighbour", _RESTARTS, part="object_store")
class DeletesTheNeighbour(DirectoryStore):
    """Takes one more with each deletion, once it has many."""

    async def delete(self, keys: Sequence[str]) -> None:
        there = sorted(self._keys())
        after = [key for key in there if key > max(keys, default="")]
        if keys and len(there) > 30 and after:
            keys = [*keys, after[0]]
        await super().delete(keys)


@mutant(STRATEGY, "writes_what_it_acknowledged_later", _UPLOAD, level=3, part="object_store")
class WritesWhatItAcknowledgedLater(DirectoryStore):
    """Has large objects in memory for a moment, from where it reads them."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._late: dict[str, bytes] = {}

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        whole = b"".join(body)
        if len(whole) < 4000:
            return await super().put(key, body)
        self._late[key] = whole
        asyncio.get_running_loop().call_later(0.3, self._settle, key)
        return ""

    def _settle(self, key: str) -> None:
        self._write(key, [self._late.pop(key)], exclusive=False)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        if key in self._late:
            return self._late[key][start:end]
        return await super().get(key, start, end)


class _MovingBlock(Block):
    """Tells the end of the log of a block that is filled after it."""

    cache: PlainLogCache

    def __getattribute__(self, name: str) -> object:
        if name == "wal_end" and "cache" in vars(self):
            return max(super().__getattribute__("wal_end"), self.cache._active.wal_end)
        return super().__getattribute__(name)


@mutant(STRATEGY, "has_the_log_trimmed_ahead_of_uploads", _UPLOAD, level=3, part="log_cache")
class HasTheLogTrimmedAheadOfUploads(PlainLogCache):
    """The end of the log that goes with a frozen block moves on."""

    def freeze(self) -> Block | None:
        block = super().freeze()
        if block is not None:
            moving = _MovingBlock()
            vars(moving).update(vars(block))
            moving.cache = self
            self._frozen[-1] = block = moving
        return block


@mutant(STRATEGY, "tells_the_entry_before_of_one_size", _RESTARTS, part="log_cache")
class TellsTheEntryBeforeOfOneSize(PlainLogCache):
    """Finds the bytes of what was uploaded by their size, now and then the wrong ones."""

    _has_uploads = False

    def mark_uploaded(self, block: LogCacheBlock) -> None:
        self._has_uploads = True
        super().mark_uploaded(block)

    def get(
        self, stream_id: int, start_offset: int, end_offset: int, bytes_max: int
    ) -> Sequence[StreamEntry]:
        found = list(super().get(stream_id, start_offset, end_offset, bytes_max))
        for place in range(5, len(found), 5) if self._has_uploads else ():
            before, entry = found[place - 1 : place + 1]
            if len(before.data) == len(entry.data):
                found[place] = StreamEntry(
                    stream_id,
                    entry.base_offset,
                    entry.next_offset,
                    entry.time_ms,
                    before.data,
                    checksum=before.checksum,
                )
        return found


@mutant(
    STRATEGY,
    "drops_the_stream_behind_the_one_that_goes",
    "a_topic_that_is_deleted_takes_nothing_of_its_neighbours",
    part="log_cache",
)
class DropsTheStreamBehindTheOneThatGoes(PlainLogCache):
    """Counts both ends of what it drops."""

    def drop_stream(self, stream_id: int) -> None:
        super().drop_stream(stream_id)
        super().drop_stream(stream_id + 1)


@mutant(
    STRATEGY, "gives_an_evicted_block_for_another", "more_than_fits_into_memory_is_kept", part="block_cache"
)
class GivesAnEvictedBlockForAnother(PlainBlockCache):
    """Finds what it dropped by its size, once it has dropped some."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._gone: dict[int, Buffer] = {}

    def _drop(self, block: BlockRef) -> int:
        data = self._slots[block].data
        if data is not None:
            self._gone[block.size] = data
        return super()._drop(block)

    async def _collect(self, slots: Sequence[_Slot]) -> Sequence[Buffer]:
        found = await super()._collect(slots)
        return [self._gone.get(len(data), data) for data in found] if len(self._gone) > 3 else found


@mutant(
    STRATEGY,
    "gives_who_joins_a_load_its_memory_too_early",
    "cold_readers_beside_each_other_get_everything",
    level=2,
    part="block_cache",
)
class GivesWhoJoinsALoadItsMemoryTooEarly(PlainBlockCache):
    """Has half of a block by then."""

    async def _get_piece(
        self, blocks: Sequence[BlockRef], load: BlockLoader, prefetch: bool
    ) -> Sequence[Buffer]:
        joins = any(block in self._slots and not self._slots[block].done.is_set() for block in blocks)
        found = await super()._get_piece(blocks, load, prefetch)
        return [bytes(data[: len(data) // 2]).ljust(len(data), b"\0") for data in found] if joins else found


@mutant(STRATEGY, "loses_its_last_entry", _KILLS, level=3, part="metadata_log")
class LosesItsLastEntry(PlainMetadataLog):
    """Doesn't see the newest entry when it is opened again, and so gives its index once more."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._is_new = True

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        found = [entry async for entry in super().read(start_index)]
        if self._is_new and found:
            self._last_index = found.pop().index - 1
            await self._store.delete([self._key(self._last_index + 1)])
        self._is_new = False
        for entry in found:
            yield entry


@mutant(STRATEGY, "writes_entries_behind", _REFUSED, level=4, part="metadata_log")
class WritesEntriesBehind(PlainMetadataLog):
    """Acknowledges an entry, and puts it a moment later."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._puts: set[asyncio.Task[None]] = set()

    async def _find_last(self) -> int:
        return max(self._last_index, await super()._find_last())

    async def _create(self, key: str, body: bytes) -> None:
        async def later() -> None:
            await asyncio.sleep(0.1)
            await self._store.put_if_absent(key, [body])

        task = asyncio.get_running_loop().create_task(later())
        self._puts.add(task)
        task.add_done_callback(self._puts.discard)


@mutant(
    STRATEGY,
    "drops_an_entry_behind_its_snapshot",
    "what_is_written_during_a_snapshot_of_metadata_survives_it",
    level=3,
    part="metadata_log",
)
class DropsAnEntryBehindItsSnapshot(PlainMetadataLog):
    """Counts from the index at which the snapshot ends, while others append."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        await self._store.delete([self._key(snapshot.index + 1)])


@mutant(STRATEGY, "takes_an_outage_for_success", _REFUSED, level=4, part="metadata_log")
class TakesAnOutageForSuccess(PlainMetadataLog):
    """Takes every error of a put for a lost reply."""

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except UnavailableError:
            return


@mutant(
    STRATEGY,
    "takes_an_outage_for_emptiness",
    "a_start_one_request_of_which_fails_loses_nothing",
    level=4,
    part="metadata_log",
)
class TakesAnOutageForEmptiness(PlainMetadataLog):
    """Reads what it can, and calls that all."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        try:
            async for entry in super().read(start_index):
                yield entry
        except UnavailableError:
            return


@mutant(
    STRATEGY, "asks_all_the_time", "records_that_come_together_share_requests", level=5, part="metadata_log"
)
class AsksAllTheTime(PlainMetadataLog):
    """Lists what is new ten times a second."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        while not self._closed:
            await self._find_last()
            await asyncio.sleep(0.1)

    def close(self) -> None:
        super().close()
        self._asking.cancel()


@mutant(STRATEGY, "stays_in_memory", "restarts_leave_nothing_behind", level=5, part="log_cache")
class StaysInMemory(PlainLogCache):
    """Is remembered by its class."""

    known: ClassVar[list[PlainLogCache]] = []

    def __init__(self) -> None:
        super().__init__()
        self.known.append(self)


@mutant(
    STRATEGY,
    "uploads_a_dozen_streams_of_a_block",
    "what_is_acknowledged_at_once_survives_the_next_moment",
    level=3,
    part="log_cache",
)
class UploadsADozenStreamsOfABlock(PlainLogCache):
    """Has no room for a thirteenth."""

    def freeze(self) -> Block | None:
        block = super().freeze()
        if block is not None:
            for stream_id in list(block.streams)[12:]:
                self._release(block.streams.pop(stream_id))
        return block


_FENCED = "a_second_owner_fences_the_first"
#: A log that another host can take over.
_TAKEN_OVER = {"wal.plugin": "wal_s3", "object_store.url": "file://{dir}/objects"}


@mutant(
    STRATEGY, "writes_over_what_came_meanwhile", _FENCED, level=4, part="metadata_log", settings=_TAKEN_OVER
)
class WritesOverWhatCameMeanwhile(PlainMetadataLog):
    """Takes who has written before for the only one who does."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            if not self._appends:
                raise
            await self._store.put(self._key(index), [_pack(index, data)])


@mutant(
    STRATEGY,
    "takes_an_entry_of_others_for_its_own",
    _FENCED,
    level=4,
    part="metadata_log",
    settings=_TAKEN_OVER,
)
class TakesAnEntryOfOthersForItsOwn(PlainMetadataLog):
    """An index that is taken was taken by itself, and the reply was lost."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            if not self._appends:
                raise


_MEMORY = "more_than_fits_into_memory_is_kept"


@mutant(STRATEGY, "gives_memory_that_there_is_not", _MEMORY, part="allocator")
class GivesMemoryThatThereIsNot(PlainAllocator):
    """Always has room."""

    def _fits(self, size: int, own: int) -> bool:
        return True


@mutant(STRATEGY, "keeps_copies_of_what_it_drops", _MEMORY, part="block_cache")
class KeepsCopiesOfWhatItDrops(PlainBlockCache):
    """Gives all memory back, and has a copy that is on no account."""

    def __init__(self, limit: int, allocator: Allocator | None) -> None:
        super().__init__(limit, allocator)
        self._copies: list[bytes] = []

    def _drop(self, block: BlockRef) -> int:
        self._copies.append(bytes(self._slots[block].data or b""))
        return super()._drop(block)


@mutant(
    STRATEGY, "dates_all_like_the_first", "random_lives_with_restarts_agree_with_a_model", part="log_cache"
)
class DatesAllLikeTheFirst(PlainLogCache):
    """What is uploaded of a stream has the time of its first entry."""

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[int, int] = {}

    def freeze(self) -> Block | None:
        block = super().freeze()
        for stream_id, entries in block.streams.items() if block is not None else ():
            time_ms = self._times.setdefault(stream_id, entries[0].time_ms)
            for entry in entries:
                entry.time_ms = time_ms
        return block
