"""An object store seen through a prefix, so that clauses don't meet each other's objects in a shared bucket."""

from __future__ import annotations

__all__ = ("ScopedStore",)

import dataclasses
from collections import UserList
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from penstock.spi.object_store import (
    AppendableStore,
    MultipartUpload,
    ObjectInfo,
    ObjectStore,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer


class ScopedStore:
    """Adds the prefix to every key on the way in and takes it off on the way out; nothing else."""

    def __init__(self, store: ObjectStore, prefix: str, asked: Callable[[], None] = lambda: None) -> None:
        """``asked`` is called when something is asked of the store."""
        self._store = store
        self._prefix = prefix
        self._asked = asked

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        return self._store.capabilities

    @property
    def location(self) -> str:
        return self._store.location

    @property
    def has_append(self) -> bool:
        """Whether the store has the method at all, which only one that claims it needs."""
        return getattr(self._store, "append", None) is not None

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        self._asked()
        return await self._store.get(self._prefix + key, start, end)

    async def head(self, key: str) -> ObjectInfo:
        self._asked()
        return self._strip(await self._store.head(self._prefix + key))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        self._asked()
        return await self._store.put(self._prefix + key, body)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        self._asked()
        return await self._store.put_if_absent(self._prefix + key, body)

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        self._asked()
        return await self._store.compare_and_swap(self._prefix + key, body, token)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        self._asked()
        assert self.has_append, "the store has no method append"
        token: str = await cast("AppendableStore", self._store).append(self._prefix + key, body, offset)
        return token

    async def create_multipart(self, key: str) -> MultipartUpload:
        self._asked()
        return await self._store.create_multipart(self._prefix + key)

    async def delete(self, keys: Sequence[str]) -> None:
        self._asked()
        named = [self._prefix + key for key in keys]
        given = (
            tuple(named)
            if isinstance(keys, tuple)
            else UserList(named)
            if isinstance(keys, UserList)
            else list(named)
        )
        await self._store.delete(given)
        assert list(given) == named, "delete changed the keys that it was given"

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self._asked()
        start_after = self._prefix + start_after if start_after else ""
        async for info in self._store.list(self._prefix + prefix, start_after):
            yield self._strip(info)

    def statistics(self) -> ObjectStoreStatistics:
        return self._store.statistics()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def clean(self) -> None:
        """Delete all objects of the scope, for stores that outlive the data directory."""
        await self.delete([info.key async for info in self.list()])

    def _strip(self, info: ObjectInfo) -> ObjectInfo:
        assert info.key.startswith(self._prefix), f"the store listed a key outside the prefix: key={info.key}"
        return dataclasses.replace(info, key=info.key[len(self._prefix) :])
