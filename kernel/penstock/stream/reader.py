"""Cold reads: from a stream offset to verified entries, by metadata -> object index -> data blocks.

Blocks come through the block cache, so readers of one block share one load; missing blocks that lie near each other
in an object are loaded with one ranged read, also those of several streams if they are wanted together. Cold reads
have limiters of their own and never hold up appends or tail reads. To the object store, reads of a stream's newest
range are tail traffic, and so are lookups; the rest is catch-up.
"""

from __future__ import annotations

__all__ = ("ColdReader", "Part", "ReaderSettings", "ReaderStatistics", "Wanted", "compact")

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple, cast

import anyio
from anyio.abc import TaskGroup

from penstock import native
from penstock.direct_io import ReadBuffers
from penstock.errors import CorruptError, InvalidRequestError, NotFoundError, PenstockError, again, kept
from penstock.metadata.image import Image
from penstock.metadata.streams import StreamState
from penstock.spi.block_cache import BlockCache, BlockRef
from penstock.spi.log_cache import StreamEntry
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.spi.statistics import counter
from penstock.spi.traffic import Traffic
from penstock.stream.object_format import (
    IndexRow,
    ObjectIndex,
    decode_block,
    decode_footer,
    decode_index,
    object_key,
    verify_block,
)
from penstock.threads import run_in_thread
from penstock.work.pieces import pieces
from penstock.work.traffic import view_of

logger = logging.getLogger("penstock.stream.read")

#: So much is copied by the event loop; a thread gives the interpreter away after each piece of more.
_INLINE_COPY_BYTES = 64 * 1024
_COPY_BYTES = 64 * 1024
#: Larger copies have memory that is used again: fresh memory takes 35 times as long to write to, and a thread that
#: writes to it keeps the interpreter. So much waits for the next copies.
_REUSED_BYTES = 8 * 2**20
#: The tail of an object that is read to find its index; covers about 1,300 blocks at once.
INDEX_TAIL_BYTES = 64 * 1024
#: So many reads are looked up before others get their turn: a hundredth of a millisecond each.
_LOCATED_IN_A_GO = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """Bounds of cold reads."""

    #: One ranged read at most (blocks near each other are merged up to here).
    merge_bytes_max: int = 4 * 2**20
    #: So much between two blocks is read and dropped rather than asking twice: on a cloud it takes a millisecond or
    #: two, and a request takes twenty, half a millisecond of the event loop, and money.
    merge_gap_max: int = 128 * 2**10
    #: Ranged reads in flight, of each class of traffic.
    parallel_max: int = 8
    #: Readaheads in flight; more are skipped.
    prefetch_max: int = 4
    #: Object indexes kept.
    index_cache_bytes: int = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderStatistics:
    """A snapshot."""

    reads: Annotated[int, counter("reads", "Reads from objects.")]
    ranged_gets: Annotated[int, counter("requests", "Ranged reads of blocks.")]
    ranged_bytes: Annotated[int, counter("bytes", "Their bytes.")]
    index_gets: Annotated[int, counter("requests", "Reads of object indexes.")]
    prefetches: Annotated[int, counter("reads", "Reads ahead.")]


class _Source(NamedTuple):
    """The object store for one class of traffic, and how many ranged reads of it are in flight."""

    store: ObjectStore
    limiter: anyio.CapacityLimiter


class Wanted(NamedTuple):
    """A read that somebody is about to make."""

    stream: StreamState
    start: int
    end: int
    bytes_max: int


class ColdReader:
    """Owned by the engine; readahead runs in the engine's task group."""

    def __init__(
        self,
        image: Image,
        store: ObjectStore,
        cache: BlockCache,
        settings: ReaderSettings,
        tasks: TaskGroup,
        traffic: Traffic | None = None,
    ) -> None:
        """All reads are of the class ``traffic``, if that is given, wherever they begin."""
        self._image = image
        # readers near the end don't wait behind those that read everything, so each class has a limiter
        self._tail = _Source(
            view_of(store, traffic or Traffic.TAIL), anyio.CapacityLimiter(settings.parallel_max)
        )
        self._catch_up = self._tail
        if traffic is None:
            limiter = anyio.CapacityLimiter(settings.parallel_max)
            self._catch_up = _Source(view_of(store, Traffic.CATCH_UP), limiter)
        self._cache = cache
        self._settings = settings
        self._tasks = tasks
        self._buffers = copy_buffers()
        self._indexes: OrderedDict[int, ObjectIndex] = OrderedDict()
        self._indexes_bytes = 0
        self._loading: dict[int, anyio.Event] = {}
        self._prefetching = 0
        self._reads = 0
        self._ranged_gets = 0
        self._ranged_bytes = 0
        self._index_gets = 0
        self._prefetches = 0

    def statistics(self) -> ReaderStatistics:
        """A snapshot of the counters."""
        return ReaderStatistics(
            reads=self._reads,
            ranged_gets=self._ranged_gets,
            ranged_bytes=self._ranged_bytes,
            index_gets=self._index_gets,
            prefetches=self._prefetches,
        )

    async def read(self, stream: StreamState, start: int, end: int, bytes_max: int) -> list[StreamEntry]:
        """Committed entries from the one that holds ``start``, below ``end``, about ``bytes_max``, at least one.

        Continuous; empty if nothing from ``start`` on is committed. Raises UnavailableError; CorruptError
        if a block fails its checksum or the stream has a hole.
        """
        self._reads += 1
        try:
            return await self._read(stream, start, end, bytes_max)
        except NotFoundError:
            # the object went away between looking it up and reading it: look again, once
            return await self._read(stream, start, end, bytes_max)

    async def _read(self, stream: StreamState, start: int, end: int, bytes_max: int) -> list[StreamEntry]:
        source = self._tail if _is_newest(stream, start) else self._catch_up
        wanted = await self._locate(source, stream, start, end, bytes_max)
        if not wanted:
            return []
        buffers = await self._cache.get([ref for ref, _ in wanted], partial(self._load, source))
        self._read_ahead(stream, start, wanted[-1][1].end, end)
        entries, parts = _select(buffers, stream.stream_id, start, end, bytes_max)
        copied = parts_to_copy(parts)
        if sum(part.bytes for part in copied) < _INLINE_COPY_BYTES:
            return copy_parts(entries, copied, self._buffers)
        return await run_in_thread(copy_parts, entries, copied, self._buffers)

    async def load(self, reads: Sequence[Wanted], bytes_max: int) -> None:
        """Have the blocks of several reads in the cache, about ``bytes_max`` of them in this order, by few requests.

        It promises nothing: a read loads what isn't there when it comes, and raises what went wrong.
        """
        is_newest = all(_is_newest(wanted.stream, wanted.start) for wanted in reads)
        source = self._tail if is_newest else self._catch_up
        try:
            refs = await self._locate_all(source, reads, bytes_max)
            if refs:
                await self._cache.get(sorted(refs), partial(self._load, source), prefetch=True)
        except PenstockError as error:
            logger.debug("several reads weren't prepared: %s", error)

    async def _locate_all(self, source: _Source, reads: Sequence[Wanted], bytes_max: int) -> set[BlockRef]:
        """The blocks of the reads, until they hold ``bytes_max``."""
        refs: set[BlockRef] = set()
        size = 0
        for number, (stream, start, end, limit) in enumerate(reads, 1):
            if size >= bytes_max:
                break
            located = await self._locate(source, stream, start, end, min(limit, bytes_max - size))
            size += sum(ref.size for ref, _ in located)
            refs.update(ref for ref, _ in located)
            if number % _LOCATED_IN_A_GO == 0:
                await anyio.lowlevel.checkpoint()
        return refs

    async def find_time(self, stream: StreamState, offset: int, time_ms: int) -> StreamEntry | None:
        """The first committed entry from the one that holds ``offset`` on with a timestamp >= ``time_ms``."""
        for r in stream.ranges.since(time_ms):
            if r.end <= offset:
                continue
            index = await self._index(self._tail, r.object_id)
            for row in index.blocks_from(stream.stream_id, max(offset, r.start)):
                if row.time_ms < time_ms:
                    continue
                for entry in await self._block(stream, r.object_id, row):
                    if entry.time_ms >= time_ms and entry.next_offset > offset:
                        return entry
        return None

    async def max_time(self, stream: StreamState, offset: int) -> int:
        """The greatest timestamp of the committed entries from the one that holds ``offset`` on; -1 if none."""
        greatest = -1
        for r in list(stream.ranges):
            if r.end <= offset or r.time_ms <= greatest:
                continue
            if r.start >= offset:
                greatest = r.time_ms
                continue
            index = await self._index(self._tail, r.object_id)
            for row in index.blocks_from(stream.stream_id, offset):
                if row.start >= offset:
                    greatest = max(greatest, row.time_ms)
                    continue
                for entry in await self._block(stream, r.object_id, row):
                    if entry.next_offset > offset:
                        greatest = max(greatest, entry.time_ms)
        return greatest

    async def block_end(self, stream: StreamState, offset: int) -> int:
        """Where the block that holds ``offset`` ends.

        Where its object's part of the stream ends, if the object's index is lost. Raises UnavailableError.
        """
        position = stream.range_at(offset)
        if position >= len(stream.ranges):
            return stream.end
        r = stream.ranges[position]
        try:
            index = await self._index(self._tail, r.object_id)
        except (CorruptError, NotFoundError):
            return r.end
        return min(r.end, next((row.end for row in index.blocks_from(stream.stream_id, offset)), r.end))

    async def _get(self, source: _Source, key: str, start: int, end: int) -> Buffer:
        try:
            return await source.store.get(key, start, end)
        except InvalidRequestError as error:
            raise CorruptError(
                f"object is shorter than metadata says: key={key} range=[{start},{end})"
            ) from error

    async def _block(self, stream: StreamState, object_id: int, row: IndexRow) -> list[StreamEntry]:
        ref = BlockRef(object_id, row.position, row.size)
        (data,) = await self._cache.get([ref], partial(self._load, self._tail))
        return list(decode_block(data, stream.stream_id))

    async def _locate(
        self, source: _Source, stream: StreamState, start: int, end: int, bytes_max: int
    ) -> list[tuple[BlockRef, IndexRow]]:
        """The data blocks of [start, end), at least one, until they hold ``bytes_max``."""
        found: list[tuple[BlockRef, IndexRow]] = []
        size = 0
        offset = start
        while offset < end and (not found or size < bytes_max):
            position = stream.range_at(offset)
            if position >= len(stream.ranges) or (found and stream.ranges[position].start > offset):
                break
            r = stream.ranges[position]
            index = await self._index(source, r.object_id)
            before = offset
            for row in index.blocks_from(stream.stream_id, max(offset, r.start)):
                found.append((BlockRef(r.object_id, row.position, row.size), row))
                size += row.size
                offset = row.end
                if size >= bytes_max or offset >= end:
                    break
            if offset == before:
                raise CorruptError(
                    f"object doesn't hold what metadata says, run 'penstock verify': object_id={r.object_id} "
                    f"stream={stream.stream_id} offset={offset}"
                )
        return found

    async def _index(self, source: _Source, object_id: int) -> ObjectIndex:
        """The object's index: cached, or loaded once for all who want it now."""
        while True:
            index = self._indexes.get(object_id)
            if index is not None:
                self._indexes.move_to_end(object_id)
                return index
            loading = self._loading.get(object_id)
            if loading is None:
                break
            await loading.wait()
        done = self._loading[object_id] = anyio.Event()
        try:
            index = await self._load_index(source, object_id)
        finally:
            del self._loading[object_id]
            done.set()
        self._indexes[object_id] = index
        self._indexes_bytes += index.size
        while self._indexes_bytes > self._settings.index_cache_bytes and len(self._indexes) > 1:
            _, dropped = self._indexes.popitem(last=False)
            self._indexes_bytes -= dropped.size
        return index

    async def _load_index(self, source: _Source, object_id: int) -> ObjectIndex:
        held = self._image.objects.get(object_id)
        if held is None:
            raise NotFoundError(f"there is no such object: object_id={object_id}")
        key = object_key(object_id)
        self._index_gets += 1
        tail_start = max(0, held.size - INDEX_TAIL_BYTES)
        tail = memoryview(await self._get(source, key, tail_start, held.size))
        position, size, crc = decode_footer(tail, object_id)
        if position >= tail_start:
            return decode_index(tail[position - tail_start : position - tail_start + size], crc, object_id)
        return decode_index(await self._get(source, key, position, position + size), crc, object_id)

    async def _load(self, source: _Source, refs: Sequence[BlockRef]) -> Sequence[Buffer]:
        """The given blocks, verified; neighbours share a ranged read. Raises the first error that one met."""
        results: dict[BlockRef, Buffer] = {}
        runs = merge_near(refs, self._settings.merge_bytes_max, self._settings.merge_gap_max)
        if len(runs) == 1:  # as most are: a task group takes the event loop ten times as long as this
            await self._load_run(source, runs[0], results)
            return [results[ref] for ref in refs]
        errors: list[PenstockError] = []

        async def load(run: list[BlockRef]) -> None:
            try:
                await self._load_run(source, run, results)
            except PenstockError as error:
                errors.append(kept(error))

        async with anyio.create_task_group() as tasks:
            for run in runs:
                tasks.start_soon(load, run)
        if errors:
            raise again(errors[0])
        return [results[ref] for ref in refs]

    async def _load_run(self, source: _Source, run: list[BlockRef], results: dict[BlockRef, Buffer]) -> None:
        first, last = run[0], run[-1]
        async with source.limiter:
            data = await self._get(
                source, object_key(first.object_id), first.position, last.position + last.size
            )
        self._ranged_gets += 1
        self._ranged_bytes += len(data)
        # megabytes of checksums and copies would hold up every produce and tail read on the event loop
        results.update(await run_in_thread(split_run, run, data, self._buffers))

    def _read_ahead(self, stream: StreamState, start: int, next_offset: int, end: int) -> None:
        window = self._cache.readahead_bytes(stream.stream_id, start, next_offset)
        if window <= 0 or next_offset >= end or self._prefetching >= self._settings.prefetch_max:
            return
        self._prefetching += 1
        self._prefetches += 1
        self._tasks.start_soon(self._prefetch, stream, next_offset, end, window)

    async def _prefetch(self, stream: StreamState, start: int, end: int, window: int) -> None:
        try:
            wanted = await self._locate(self._catch_up, stream, start, end, window)
            if wanted:
                load = partial(self._load, self._catch_up)
                await self._cache.get([ref for ref, _ in wanted], load, prefetch=True)
        except PenstockError as error:
            # the reader that gets there will meet the same error, and report it
            logger.debug("readahead failed: %s", error)
        finally:
            self._prefetching -= 1


class Part(NamedTuple):
    """The part of one block that a read takes: the entries [first, last) of all that it takes."""

    first: int
    last: int
    #: Their payload, and the block that it keeps in memory.
    bytes: int
    block_bytes: int


def _select(
    buffers: Sequence[Buffer], stream_id: int, start: int, end: int, bytes_max: int
) -> tuple[list[StreamEntry], list[Part]]:
    """Entries from the one that holds ``start``, and the part that they are of each block."""
    entries: list[StreamEntry] = []
    parts: list[Part] = []
    size = 0
    expected = start
    is_over = False
    for buffer in buffers:
        first, before = len(entries), size
        for entry in decode_block(buffer, stream_id):
            if entry.next_offset <= start:
                continue
            is_over = entry.base_offset >= end or (bool(entries) and size + len(entry.data) > bytes_max)
            if is_over:
                break
            if entry.base_offset > expected:
                raise CorruptError(
                    f"stream has a hole, run 'penstock verify': stream={stream_id} "
                    f"expected={expected} found={entry.base_offset}"
                )
            entries.append(entry)
            size += len(entry.data)
            expected = entry.next_offset
        if len(entries) > first:
            parts.append(Part(first, len(entries), size - before, len(buffer)))
        if is_over:
            break
    return entries, parts


def compact(entries: list[StreamEntry], parts: list[Part]) -> list[StreamEntry]:
    """``entries``, as far as need be copied into memory of their own.

    A slow reader must not keep whole blocks for a small part (I8): together they keep a third more than their own
    bytes at most.
    """
    return copy_parts(entries, parts_to_copy(parts), copy_buffers())


def parts_to_copy(parts: Sequence[Part]) -> list[Part]:
    """The smallest parts of their blocks, as many as must be copied so that all keep little more than their own."""
    size = sum(part.bytes for part in parts)
    held = sum(part.block_bytes for part in parts)
    copied: list[Part] = []
    for part in sorted(parts, key=lambda part: part.bytes / part.block_bytes):
        if size * 4 >= held * 3:
            break
        held -= part.block_bytes - part.bytes
        copied.append(part)
    return copied


def copy_buffers() -> ReadBuffers:
    """Memory for the copies of one reader."""
    return ReadBuffers(_REUSED_BYTES)


def copy_parts(entries: list[StreamEntry], parts: Sequence[Part], buffers: ReadBuffers) -> list[StreamEntry]:
    """``entries``, those of ``parts`` replaced by copies; others get the interpreter between pieces of long ones."""
    for part in parts:
        copied = entries[part.first : part.last]
        whole = _joined([entry.data for entry in copied], part.bytes, buffers)
        position = 0
        for number, entry in enumerate(copied, part.first):
            end = position + len(entry.data)
            entries[number] = StreamEntry(
                entry.stream_id, entry.base_offset, entry.next_offset, entry.time_ms, whole[position:end]
            )
            position = end
    return entries


def _joined(parts: Sequence[Buffer], size: int, buffers: ReadBuffers) -> memoryview:
    """Copies of ``parts``, ``size`` bytes in all, one behind the other."""
    if size <= _COPY_BYTES:
        return memoryview(b"".join(parts))
    whole = buffers.take(size)
    if native.copy is not None:  # lets go of the interpreter
        native.copy(whole, 0, list(parts))
        return whole.toreadonly()
    position = 0
    for part in parts:
        for piece in pieces(memoryview(part), _COPY_BYTES):
            whole[position : position + len(piece)] = cast(memoryview, piece)
            position += len(piece)
    return whole.toreadonly()


def split_run(run: Sequence[BlockRef], data: Buffer, buffers: ReadBuffers) -> dict[BlockRef, Buffer]:
    """The blocks that one ranged read brought, each verified. Raises CorruptError."""
    view = memoryview(data)
    start = run[0].position
    blocks: dict[BlockRef, Buffer] = {}
    for ref in run:
        block = view[ref.position - start : ref.position - start + ref.size]
        verify_block(block, ref.object_id, ref.position)
        # a block must not keep much more than itself alive once its neighbours are evicted
        blocks[ref] = block if _fills_its_memory(block) else _joined([block], len(block), buffers)
    return blocks


def _fills_its_memory(block: memoryview) -> bool:
    """Whether ``block`` keeps little more than itself alive. A cache would copy it otherwise, on the event loop."""
    return memoryview(block.obj).nbytes - len(block) <= len(block) // 8


def merge_near(refs: Sequence[BlockRef], bytes_max: int, gap_max: int) -> list[list[BlockRef]]:
    """``refs`` cut into runs that one ranged read each covers: of ``bytes_max``, with gaps of ``gap_max`` at most.

    A single block may be larger than that.
    """
    runs: list[list[BlockRef]] = []
    for ref in refs:
        if runs:
            first, last = runs[-1][0], runs[-1][-1]
            if (
                ref.object_id == last.object_id
                and 0 <= ref.position - (last.position + last.size) <= gap_max
                and ref.position + ref.size - first.position <= bytes_max
            ):
                runs[-1].append(ref)
                continue
        runs.append([ref])
    return runs


def _is_newest(stream: StreamState, offset: int) -> bool:
    """Whether ``offset`` is in the newest range of the stream: somebody who reads there is nearly at its end."""
    return bool(stream.ranges) and offset >= stream.ranges[-1].start
