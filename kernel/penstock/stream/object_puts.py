"""Putting a block into the object store: ids from metadata, then an object for each part of the plan."""

from __future__ import annotations

__all__ = ("ObjectPuts", "UploadSettings")

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from penstock.errors import PenstockError
from penstock.limits import COMMIT_RANGES_MAX, UPLOADS_PARALLEL
from penstock.metadata.commands.objects import AbandonObjects, PrepareObjects, UploadedObject
from penstock.metadata.service import MetadataService
from penstock.spi.log_cache import StreamEntry
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer
from penstock.stream.object_format import object_key
from penstock.stream.upload_plan import UploadBlock, build_object, live_offsets, plan_objects, split_parts
from penstock.threads import run_in_thread

#: An object of at most so many entries is built on the event loop: a thread would take longer to wake up.
INLINE_ENTRIES_MAX = 64


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
    ) -> None:
        self._metadata = metadata
        self._store = store
        self._settings = settings
        self._node_id = node_id
        self._node_epoch = node_epoch
        self._now_ms = now_ms

    async def put(self, block: UploadBlock) -> list[UploadedObject]:
        """Put what of the block is still wanted; none of it is part of a stream before it is committed.

        Raises UnavailableError of store and metadata; the ids that were taken for it are given up then.
        """
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

    async def discard(self, objects: Sequence[UploadedObject]) -> None:
        """Delete objects that metadata refused: it may have forgotten them before they were put (I6)."""
        object_ids = [uploaded.object_id for uploaded in objects]
        await self._metadata.submit(AbandonObjects(object_ids))
        await self._store.delete([object_key(object_id) for object_id in object_ids])
