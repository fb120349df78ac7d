"""Upload: frozen log-cache blocks become objects; committed in log order, then the WAL is trimmed.

Blocks are put in parallel (a few at a time) but committed one after the other, in the order they were frozen, each
with one metadata command. Failures are retried for ever: until a block is committed, the WAL holds its data.
"""

from __future__ import annotations

__all__ = ("UploadSettings", "Uploader", "UploaderStatistics")

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeVar

import anyio

from penstock.bus import EventBus
from penstock.errors import ClosedError, InvariantError, NotFoundError, PenstockError
from penstock.metadata.commands.objects import (
    AbandonObjects,
    CommitUpload,
    PrepareObjects,
    UploadedObject,
    UploadedRange,
)
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService
from penstock.spi.events import UploadCommitted
from penstock.spi.log_cache import LogCache, LogCacheBlock, StreamEntry
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.spi.statistics import counter, gauge, text
from penstock.spi.wal import WriteAheadLog
from penstock.stream.events import BlockUploaded
from penstock.stream.object_format import ObjectWriter, object_key
from penstock.threads import run_in_thread
from penstock.work.pieces import pieces
from penstock.work.retry import retry

logger = logging.getLogger("penstock.stream.upload")

T = TypeVar("T")

#: An object of at most so many entries is built on the event loop: a thread would take longer to wake up.
INLINE_ENTRIES_MAX = 64

_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSettings:
    """Sizes in bytes, times in ms."""

    block_bytes: int
    object_split_bytes: int
    multipart_bytes: int
    part_bytes: int
    prepare_deadline_ms: int
    #: Ranges that one metadata commit has at most (and streams that share an object): it is folded in one go, in
    #: some milliseconds, and fits into an entry.
    commit_ranges_max: int = 2500
    parallel_max: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class UploaderStatistics:
    """A snapshot."""

    pending_blocks: Annotated[int, gauge("blocks", "Blocks that are not committed yet.")]
    pending_bytes: Annotated[int, gauge("bytes", "Their payload.")]
    committed_blocks: Annotated[int, counter("blocks", "Blocks that were committed.")]
    committed_bytes: Annotated[int, counter("bytes", "Their payload.")]
    objects: Annotated[int, counter("objects", "Objects that were committed.")]
    failures: Annotated[int, counter("attempts", "Attempts that failed and were repeated.")]
    last_error: Annotated[str, text("Why the last of them failed.")]


def live_offsets(block: LogCacheBlock, image: Image) -> dict[int, int]:
    """Where each stream of the block goes on that still exists: offsets below are committed or deleted."""
    streams = image.streams
    return {
        stream_id: max(state.start, state.end)
        for stream_id in block.streams
        if (state := streams.get(stream_id)) is not None
    }


def plan_objects(
    block: LogCacheBlock, live: Mapping[int, int], object_split_bytes: int, streams_max: int
) -> list[list[tuple[int, Sequence[StreamEntry]]]]:
    """Which streams go into which object: large ones alone, the rest into one (design: stream set object).

    At most ``streams_max`` streams share one. Entries of streams that aren't in ``live`` (deleted), those wholly
    below a stream's start and those that are committed (the block is put again after a part of it was) are left out.
    """
    own: list[list[tuple[int, Sequence[StreamEntry]]]] = []
    shared: list[tuple[int, Sequence[StreamEntry]]] = []
    for stream_id in sorted(live):
        first = live[stream_id]
        entries = [entry for entry in block.streams[stream_id] if entry.next_offset > first]
        if not entries:
            continue
        if sum(len(entry.data) for entry in entries) >= object_split_bytes:
            own.append([(stream_id, entries)])
        else:
            shared.append((stream_id, entries))
    return own + [list(some) for some in pieces(shared, streams_max)]


def build_object(
    object_id: int,
    streams: list[tuple[int, Sequence[StreamEntry]]],
    block_bytes: int,
    *,
    direct_io: bool = False,
) -> tuple[list[Buffer], UploadedObject]:
    """The bytes of an object with these streams, without copying a payload, and what metadata says of it."""
    writer = ObjectWriter(object_id, block_bytes, direct_io=direct_io)
    ranges = []
    for stream_id, entries in streams:
        writer.add(stream_id, entries)
        ranges.append(
            UploadedRange(
                stream_id,
                entries[0].base_offset,
                entries[-1].next_offset,
                sum(len(entry.data) for entry in entries),
                max(entry.time_ms for entry in entries),
            )
        )
    body, size = writer.finish()
    return body, UploadedObject(object_id, size, ranges)


def split_parts(body: Sequence[Buffer], part_bytes: int) -> list[list[Buffer]]:
    """``body`` in parts of at least ``part_bytes``, but for the last."""
    parts: list[list[Buffer]] = [[]]
    size = 0
    for buffer in body:
        if size >= part_bytes:
            parts.append([])
            size = 0
        parts[-1].append(buffer)
        size += len(buffer)
    return parts


def _first_part(objects: list[UploadedObject], ranges_max: int) -> list[UploadedObject]:
    """The first objects with at most ``ranges_max`` ranges together; at least one object."""
    count = ranges = 0
    for uploaded in objects:
        ranges += len(uploaded.ranges)
        if count and ranges > ranges_max:
            break
        count += 1
    return objects[:count]


class _Upload:
    """A frozen block on its way."""

    __slots__ = ("block", "objects", "put", "started")

    def __init__(self, block: LogCacheBlock, started: float) -> None:
        self.block = block
        self.started = started
        self.put = anyio.Event()
        self.objects: list[UploadedObject] = []


class Uploader:
    """Owned by the engine, which runs :meth:`run` in its task group and calls :meth:`submit`."""

    def __init__(
        self,
        metadata: MetadataService,
        store: ObjectStore,
        wal: WriteAheadLog,
        trim_wal: Callable[[int], Awaitable[None]],
        log_cache: LogCache,
        settings: UploadSettings,
        *,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        bus: EventBus,
    ) -> None:
        self._metadata = metadata
        self._store = store
        self._wal = wal
        self._trim_wal = trim_wal
        self._log_cache = log_cache
        self._settings = settings
        self._node_id = node_id
        self._node_epoch = node_epoch
        self._now_ms = now_ms
        self._bus = bus
        self._queue: deque[_Upload] = deque()  # frozen, not committed, in log order
        self._fresh: deque[_Upload] = deque()  # not yet being put
        self._news = anyio.Event()  # for the putting task
        self._submitted = anyio.Event()  # for the committing task
        #: False while the WAL is read at recovery: it can't be trimmed before its end is known.
        self.may_trim = False
        self._idle = anyio.Event()
        self._idle.set()
        self._ended = False
        self._committed_blocks = 0
        self._committed_bytes = 0
        self._objects = 0
        self._failures = 0
        self._last_error = ""

    @property
    def pending_blocks(self) -> int:
        """Blocks that are frozen but not committed."""
        return len(self._queue)

    def submit(self, block: LogCacheBlock) -> None:
        """Queue a frozen block; blocks come in log order."""
        upload = _Upload(block, time.perf_counter())
        self._queue.append(upload)
        self._fresh.append(upload)
        if self._idle.is_set():
            self._idle = anyio.Event()
        self._news.set()
        self._submitted.set()

    async def wait_idle(self) -> None:
        """Return when everything that was submitted is committed. Raises ClosedError if that won't happen."""
        while self._queue:
            if self._ended:
                raise ClosedError("uploads ended before everything was committed; the WAL holds the rest")
            await self._idle.wait()

    def statistics(self) -> UploaderStatistics:
        """A snapshot of the state."""
        return UploaderStatistics(
            pending_blocks=len(self._queue),
            pending_bytes=sum(upload.block.size_bytes for upload in self._queue),
            committed_blocks=self._committed_blocks,
            committed_bytes=self._committed_bytes,
            objects=self._objects,
            failures=self._failures,
            last_error=self._last_error,
        )

    async def run(self) -> None:
        """Put and commit for ever. Raises only errors that can't be retried (fenced, corrupt)."""
        limiter = anyio.CapacityLimiter(self._settings.parallel_max)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._commit_forever)
                while True:
                    if not self._fresh:
                        self._news = anyio.Event()
                        await self._news.wait()
                    upload = self._fresh.popleft()
                    token = object()
                    await limiter.acquire_on_behalf_of(token)
                    tasks.start_soon(self._put_block, upload, limiter, token)
        finally:
            self._ended = True
            self._idle.set()

    async def _put_block(self, upload: _Upload, limiter: anyio.CapacityLimiter, token: object) -> None:
        try:
            upload.objects = await self._retry("upload", lambda: self._put_objects(upload.block))
        finally:
            limiter.release_on_behalf_of(token)
        upload.put.set()

    async def _put_objects(self, block: LogCacheBlock) -> list[UploadedObject]:
        settings = self._settings
        plan_block = partial(
            plan_objects,
            block,
            live_offsets(block, self._metadata.image),
            settings.object_split_bytes,
            settings.commit_ranges_max,
        )
        # nothing is taken out of a block that isn't uploaded, so it can be looked through in a thread
        large = sum(map(len, block.streams.values())) > INLINE_ENTRIES_MAX
        plan = await run_in_thread(plan_block) if large else plan_block()
        if not plan:
            return []
        deadline_ms = self._now_ms() + self._settings.prepare_deadline_ms
        object_ids = await self._metadata.submit(
            PrepareObjects(self._node_id, self._node_epoch, len(plan), deadline_ms)
        )
        uploaded = []
        try:
            for object_id, streams in zip(object_ids, plan, strict=True):
                uploaded.append(await self._put_object(object_id, streams))
        except PenstockError:
            await self._metadata.submit(AbandonObjects(object_ids))
            raise
        return uploaded

    async def _put_object(
        self, object_id: int, streams: list[tuple[int, Sequence[StreamEntry]]]
    ) -> UploadedObject:
        # checksums and parts of large objects take milliseconds: not on the event loop
        large = sum(len(entries) for _, entries in streams) > INLINE_ENTRIES_MAX
        build = partial(self._build, object_id, streams)
        parts, uploaded = await run_in_thread(build) if large else build()
        key = object_key(object_id)
        if len(parts) == 1:
            await self._store.put(key, parts[0])
        else:
            await self._put_multipart(key, parts)
        return uploaded

    def _build(
        self, object_id: int, streams: list[tuple[int, Sequence[StreamEntry]]]
    ) -> tuple[list[list[Buffer]], UploadedObject]:
        """The object's bytes, in parts if it is to be put so."""
        settings, can = self._settings, self._store.capabilities
        body, uploaded = build_object(object_id, streams, settings.block_bytes, direct_io=can.direct_io)
        if can.multipart and uploaded.size > settings.multipart_bytes:
            return split_parts(body, settings.part_bytes), uploaded
        return [body], uploaded

    async def _put_multipart(self, key: str, parts: list[list[Buffer]]) -> None:
        upload = await self._store.create_multipart(key)
        try:
            for part in parts:
                await upload.write_part(part)
            await upload.complete()
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await upload.abort()
            raise

    async def _commit_forever(self) -> None:
        while True:
            if not self._queue:
                self._idle.set()
                self._submitted = anyio.Event()
                await self._submitted.wait()
            upload = self._queue[0]
            await upload.put.wait()
            await self._commit(upload)

    async def _commit(self, upload: _Upload) -> None:
        committed: list[int] = []
        while upload.objects:
            part = _first_part(upload.objects, self._settings.commit_ranges_max)
            try:
                await self._metadata.submit(CommitUpload(self._node_id, self._node_epoch, part))
            except NotFoundError as error:
                logger.warning("upload took longer than its deadline, putting it again: %s", error)
                await self._retry("upload", lambda: self._discard(upload.objects))
                upload.objects = await self._retry("upload", lambda: self._put_objects(upload.block))
            else:
                committed += [uploaded.object_id for uploaded in part]
                upload.objects = upload.objects[len(part) :]
        # I4: only now may the WAL forget these entries
        if self.may_trim:
            await self._retry("WAL trim", lambda: self._trim(upload.block.wal_end))
        self._log_cache.mark_uploaded(upload.block)
        removed = self._queue.popleft()
        if removed is not upload:
            raise InvariantError("uploads are committed in log order")
        self._committed_blocks += 1
        self._committed_bytes += upload.block.size_bytes
        self._objects += len(committed)
        event = UploadCommitted(
            object_ids=tuple(committed),
            stream_count=len(upload.block.streams),
            payload_bytes=upload.block.size_bytes,
            duration_ms=(time.perf_counter() - upload.started) * 1000,
        )
        self._bus.publish(BlockUploaded(event=event, block=upload.block))

    async def _trim(self, position: int) -> None:
        """A WAL that has ended needs no room; whoever opens it next skips what is committed."""
        if self._wal.statistics().state != "failed":
            await self._trim_wal(position)

    async def _discard(self, objects: Sequence[UploadedObject]) -> None:
        """Delete objects that metadata refused: it may have forgotten them before they were put (I6)."""
        object_ids = [uploaded.object_id for uploaded in objects]
        await self._metadata.submit(AbandonObjects(object_ids))
        await self._store.delete([object_key(object_id) for object_id in object_ids])

    async def _retry(self, what: str, step: Callable[[], Awaitable[T]]) -> T:
        """Do ``step`` until it succeeds; raises only what can't be retried."""
        return await retry(what, step, _BACKOFF_S, logger=logger, on_failure=self._count_failure)

    def _count_failure(self, error: PenstockError) -> None:
        self._failures += 1
        self._last_error = str(error)
