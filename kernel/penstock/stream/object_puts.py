"""Putting a block into the object store: ids from metadata, then an object for each part of the plan."""

from __future__ import annotations

__all__ = ("ObjectPuts", "UploadSettings")

import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import PenstockError
from penstock.limits import COMMIT_RANGES_MAX, UPLOADS_PARALLEL
from penstock.metadata.commands.objects import AbandonObjects, PrepareObjects, UploadedObject
from penstock.metadata.service import MetadataService
from penstock.spi.log_cache import StreamEntry
from penstock.spi.object_store import MultipartUpload, ObjectStore
from penstock.spi.plugin import Buffer
from penstock.stream.object_format import object_key
from penstock.stream.upload_plan import UploadBlock, live_offsets, object_pieces, plan_objects
from penstock.threads import run_in_thread
from penstock.work.pieces import pieces

logger = logging.getLogger("penstock.stream.upload")

#: An object of at most so many entries is built on the event loop: a thread would take longer to wake up.
INLINE_ENTRIES_MAX = 64
#: Streams that are looked at before others get their turn: half a microsecond each.
_LOOKED_AT_ONCE = 500
#: Where parts cost nothing but their bytes, one has so many: it is on the disk in a millisecond, so a sync of the WAL
#: waits for no longer than that, and large enough to be worth a thread's while.
PIECE_BYTES = 2**20
#: Several pieces are put together when many are due, so that the hops to threads don't take more time than the disk:
#: at most so much, and so many buffers. There are about two an entry, which takes some microseconds of a thread that
#: wants the interpreter.
BURST_BYTES_MAX = 8 * 2**20
BURST_BUFFERS_MAX = 2048


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
    commit_ranges_max: int = COMMIT_RANGES_MAX
    parallel_max: int = UPLOADS_PARALLEL


class ObjectPuts:
    """Puts blocks for the node ``node_id`` in its life ``node_epoch``. One attempt each; the caller repeats it."""

    def __init__(
        self,
        metadata: MetadataService,
        store: ObjectStore,
        settings: UploadSettings,
        *,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        pace: Callable[[int], Awaitable[None]],
        burst_bytes: Callable[[], int],
    ) -> None:
        """``pace(size)`` is awaited before so many bytes are put: it says how fast.

        Where pieces may be small, as many are put together as there are in ``burst_bytes()``, but at least one.
        """
        self._metadata = metadata
        self._store = store
        self._settings = settings
        self._node_id = node_id
        self._node_epoch = node_epoch
        self._now_ms = now_ms
        self._pace = pace
        self._burst_bytes = burst_bytes

    async def put(self, block: UploadBlock) -> list[UploadedObject]:
        """Put what of the block is still wanted; none of it is part of a stream before it is committed.

        Raises UnavailableError of store and metadata; the ids that were taken for it are given up then.
        """
        settings = self._settings
        live: dict[int, int] = {}
        for stream_ids in pieces(tuple(block.streams), _LOOKED_AT_ONCE):
            if live:
                await checkpoint()
            live.update(live_offsets(stream_ids, self._metadata.image))
        plan_block = partial(
            plan_objects,
            block,
            live,
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
        settings, can = self._settings, self._store.capabilities
        # what is put whole, and what parts have if it isn't
        whole_bytes = part_bytes = PIECE_BYTES
        if not can.multipart:
            whole_bytes = sys.maxsize
        elif not can.small_parts:
            whole_bytes, part_bytes = settings.multipart_bytes, settings.part_bytes
        made = object_pieces(object_id, streams, settings.block_bytes, part_bytes, direct_io=can.direct_io)
        # checksums of many entries take milliseconds: not on the event loop
        large = sum(len(entries) for _, entries in streams) > INLINE_ENTRIES_MAX
        key = object_key(object_id)
        parts: list[list[Buffer]] = []
        size = 0
        uploaded: UploadedObject | None = None
        while uploaded is None and size <= whole_bytes:
            piece, uploaded = await run_in_thread(next, made) if large else next(made)
            parts.append(piece)
            size += sum(map(len, piece))
        if uploaded is not None and size <= whole_bytes:
            await self._pace(size)
            await self._store.put(key, [buffer for part in parts for buffer in part])
            return uploaded
        upload = await self._store.create_multipart(key)
        try:
            for part in parts:
                await self._put_part(upload, part)
            parts.clear()
            while uploaded is None:
                burst_bytes = min(self._burst_bytes(), BURST_BYTES_MAX) if can.small_parts else 0
                join = partial(_join, made, burst_bytes)
                piece, uploaded = await run_in_thread(join) if large else join()
                await self._put_part(upload, piece)
            await upload.complete()
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                try:
                    await upload.abort()
                except PenstockError as error:  # why it was given up is what counts
                    logger.warning("an upload that was given up is still there: key=%s error=%s", key, error)
            raise
        return uploaded

    async def _put_part(self, upload: MultipartUpload, part: Sequence[Buffer]) -> None:
        await self._pace(sum(map(len, part)))
        await upload.write_part(part)

    async def discard(self, objects: Sequence[UploadedObject]) -> None:
        """Delete objects that metadata refused: it may have forgotten them before they were put (I6)."""
        object_ids = [uploaded.object_id for uploaded in objects]
        await self._metadata.submit(AbandonObjects(object_ids))
        await self._store.delete([object_key(object_id) for object_id in object_ids])


def _join(
    pieces: Iterator[tuple[list[Buffer], UploadedObject | None]], size: int
) -> tuple[list[Buffer], UploadedObject | None]:
    """The next pieces of an object as one, until they have ``size`` bytes or the most buffers; one piece at least."""
    joined, uploaded = next(pieces)
    have = sum(map(len, joined))
    while uploaded is None and have < size and len(joined) < BURST_BUFFERS_MAX:
        piece, uploaded = next(pieces)
        have += sum(map(len, piece))
        joined += piece
    return joined, uploaded
