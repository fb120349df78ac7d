"""An object store that breaks one promise, named by ``lie``, and claims it all the same."""

from __future__ import annotations

__all__ = ("LyingSettings", "LyingStore", "penstock_register_object_store")

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
import anyio.lowlevel
import penstock_object_store_fsspec
from pydantic import Field

from penstock.errors import AlreadyExistsError, ConflictError, NotFoundError
from penstock.hookspecs import hookimpl
from penstock.spi import Buffer, Services, Settings
from penstock.spi.object_store import (
    AppendableStore,
    ObjectInfo,
    ObjectStore,
    ObjectStoreCapabilities,
    ObjectStoreSpec,
)

_FILES = penstock_object_store_fsspec.penstock_register_object_store()
_LARGE_BYTES = 2**20
_PAGE = 1000


class LyingSettings(Settings):
    """Where the objects are, and which promise is broken."""

    url: str = Field(description="Where the objects are, as in object_store_fsspec.")
    lie: str = Field(description="What isn't kept.")


class LyingStore:
    """See ``penstock.spi.object_store.ObjectStore``; everything but the lie goes to ``honest``."""

    def __init__(self, honest: ObjectStore, lie: str) -> None:
        self._honest = honest
        self._lie = lie
        #: What was read of a key at first, and what the last listing would have shown.
        self._first: dict[str, bytes] = {}
        self._listed: dict[str, list[ObjectInfo]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        if self._lie == "broken put":
            await self._honest.put(key, [b"".join(body)[:1000]])
            await anyio.lowlevel.checkpoint()
        return await self._honest.put(key, body)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        large = sum(map(len, body)) > _LARGE_BYTES
        if self._lie == "create in turn":
            return await self._honest.put(key, body)
        if self._lie != "create" and not (self._lie == "create large" and large):
            return await self._honest.put_if_absent(key, body)
        try:
            await self._honest.head(key)
        except NotFoundError:
            await anyio.sleep(0.3)  # long enough for every writer that began with this one
            return await self._honest.put(key, body)
        raise AlreadyExistsError(f"the object exists: key={key!r}")

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        if self._lie == "swap in turn":
            return await self._honest.put(key, body)
        if self._lie != "swap":
            return await self._honest.compare_and_swap(key, body, token)
        try:
            found = (await self._honest.head(key)).token
        except NotFoundError:
            found = ""
        await anyio.sleep(0.3)
        if found != token:
            raise ConflictError(f"the object has changed: key={key!r}")
        return await self._honest.put(key, body)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        if self._lie == "append":
            with suppress(NotFoundError):
                offset = (await self._honest.head(key)).size
        return await cast("AppendableStore", self._honest).append(key, body, offset)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        data = bytes(await self._honest.get(key, 0, None)) if key not in self._first else b""
        if self._lie == "stale read" and "/reads/" in key:
            return self._first.setdefault(key, data)
        if self._lie == "range" and end is not None:
            end += 1
        return await self._honest.get(key, start, end)

    async def create_multipart(self, key: str) -> Any:
        upload = await self._honest.create_multipart(key)
        if self._lie == "upload":
            await self._honest.put(key, [hashlib.sha256(key.encode()).digest()])
        return upload

    async def delete(self, keys: Sequence[str]) -> None:
        await self._honest.delete(keys[:_PAGE] if self._lie == "delete page" else keys)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        found = [info async for info in self._honest.list(prefix, start_after)]
        if self._lie == "order":  # a folder's objects where the folder's name would be
            found.sort(key=lambda info: info.key.split("/"))
        if self._lie == "page":
            found = found[:_PAGE]
        if self._lie == "stale list" and "/reads/" in prefix:
            found, self._listed[prefix] = self._listed.get(prefix, []), found
        for info in found:
            yield info


@asynccontextmanager
async def _open(settings: LyingSettings, services: Services) -> AsyncIterator[ObjectStore]:
    honest = penstock_object_store_fsspec.Settings(url=settings.url)
    async with _FILES.open(honest, services) as store:
        yield LyingStore(store, settings.lie)


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[LyingSettings]:
    """Register ``lying``."""
    return ObjectStoreSpec(
        name="lying",
        summary="object_store_fsspec with one broken promise",
        settings=LyingSettings,
        capabilities=ObjectStoreCapabilities(put_if_absent=True, multipart=True),
        open=_open,
    )
