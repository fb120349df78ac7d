"""Snapshots, and the question whether an index lies below what may have been deleted."""

from __future__ import annotations

__all__ = ("Snapshots",)

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

from penstock.errors import NotFoundError
from penstock.spi.metadata_log import MetadataSnapshot
from penstock.spi.object_store import ObjectInfo, ObjectStore
from penstock.threads import run_in_thread
from penstock_metadata_object._format import (
    SNAPSHOT_MAGIC,
    SnapshotKey,
    decode,
    encode_header,
    entry_index,
    entry_key,
    parse_snapshot_key,
)

_DELETE_KEYS_MAX = 1000
_INLINE_BYTES_MAX = 2**20


class Snapshots:
    """The snapshots of one log.

    An entry that was deleted leaves a vacant key, which put-if-absent would happily fill. So whoever created or
    read an entry asks ``assert_not_dropped`` *afterwards*. Why its short way (one HEAD) is sound: a snapshot is
    written in the order put, list, delete older snapshots, delete entries up to the floor. If an entry above the
    guard's index is gone, then the guard, which was listed before that snapshot was put, is gone as well; and
    its key never comes back.
    """

    def __init__(self, store: ObjectStore, prefix: str, kept: int) -> None:
        self._store = store
        self._prefix = prefix
        self._kept = kept
        self._guard: SnapshotKey | None = None

    @property
    def newest_index(self) -> int:
        """Index of the newest snapshot known here; 0 if there is none."""
        return self._guard.index if self._guard else 0

    async def assert_not_dropped(self, index: int) -> None:
        """Raise NotFoundError if the entry ``index`` may have been deleted before this call."""
        if self._guard is not None and index > self._guard.index:
            try:
                await self._store.head(self._guard.key(self._prefix))
            except NotFoundError:
                pass  # a newer snapshot took its place: look which
            else:
                return
        floor = max((snapshot.floor for snapshot in await self._list()), default=0)
        if index <= floor:
            raise NotFoundError(
                f"the metadata entry was dropped below a snapshot: index={index} dropped_up_to={floor}"
            )

    async def write(self, snapshot: MetadataSnapshot, nonce: bytes, *, begins: bool = False) -> None:
        """Keep the snapshot, then delete what it makes superfluous. Nothing happens if a newer one is there.

        The log ``begins`` with it if there is no entry up to its index.
        """
        there = await self._list()
        if there and there[-1].index >= snapshot.index:
            return
        indexes = sorted({found.index for found in there} | {snapshot.index})
        floor = max((found.floor for found in there), default=0)
        if len(indexes) >= self._kept:
            floor = max(floor, indexes[-self._kept])
        if begins:
            floor = snapshot.index
        key = SnapshotKey(snapshot.index, floor, nonce.hex())
        encode = partial(encode_header, SNAPSHOT_MAGIC, snapshot.index, snapshot.data, nonce)
        # the checksum of a large one takes milliseconds: not on the event loop
        large = len(snapshot.data) > _INLINE_BYTES_MAX
        header = await run_in_thread(encode) if large else encode()
        await self._store.put(key.key(self._prefix), [header, snapshot.data])
        older = [found for found in await self._list() if found.index < floor]
        await self._store.delete([found.key(self._prefix) for found in older])
        await self._delete_entries(floor)

    async def read(self) -> MetadataSnapshot | None:
        """The newest snapshot, or None. Raises CorruptError if it is not whole."""
        while there := await self._list():
            newest = there[-1]
            key = newest.key(self._prefix)
            try:
                stored = await self._store.get(key)
            except NotFoundError:
                continue  # a newer one took its place since the listing
            return MetadataSnapshot(newest.index, decode(SNAPSHOT_MAGIC, newest.index, key, stored))
        return None

    async def _list(self) -> Sequence[SnapshotKey]:
        found = sorted(
            [parse_snapshot_key(self._prefix, info.key) async for info in self._infos("snapshot/")]
        )
        self._guard = found[-1] if found else None
        return found

    async def _delete_entries(self, floor: int) -> None:
        keys: list[str] = []
        end = entry_key(self._prefix, floor)
        async with aclosing(cast("Any", self._infos("log/"))) as infos:
            async for info in infos:
                if info.key > end:
                    break
                entry_index(self._prefix, info.key)
                keys.append(info.key)
        for at in range(0, len(keys), _DELETE_KEYS_MAX):
            await self._store.delete(keys[at : at + _DELETE_KEYS_MAX])

    def _infos(self, folder: str) -> AsyncIterator[ObjectInfo]:
        return self._store.list(f"{self._prefix}{folder}")
