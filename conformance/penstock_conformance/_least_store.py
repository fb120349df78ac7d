"""An object store that can do no more than a plugin says that it needs."""

from __future__ import annotations

__all__ = ("LeastStore", "least_store")

from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace

from penstock.errors import InvalidRequestError
from penstock.spi.object_store import MultipartUpload, ObjectInfo, ObjectStore, ObjectStoreCapabilities
from penstock.spi.plugin import Buffer
from penstock.spi.settings import plugin_tables
from penstock_conformance._clause import not_applicable
from penstock_conformance._env import Env
from penstock_conformance._scoped_store import ScopedStore

_CHOSEN = ("put_if_absent", "compare_and_swap", "append", "multipart", "ordered_listing")


class LeastStore(ScopedStore):
    """Refuses what isn't among ``required``, as a store does that can't do it; its listings begin with the last.

    What it gives are views of a part of something, it knows no times, and tokens only for who swaps.
    """

    def __init__(self, store: ObjectStore, required: frozenset[str]) -> None:
        super().__init__(store, "")
        self._can = {name: name in required for name in _CHOSEN}

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        return replace(
            super().capabilities,
            put_if_absent=self._can["put_if_absent"],
            compare_and_swap=self._can["compare_and_swap"],
            append=self._can["append"],
            multipart=self._can["multipart"],
            ordered_listing=self._can["ordered_listing"],
        )

    def _need(self, name: str) -> None:
        if not self._can[name]:
            raise InvalidRequestError(f"the store can't, and nobody said that it must: {name}")

    def _token(self, token: str) -> str:
        return token if self._can["compare_and_swap"] else ""

    def _told(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, modified_ms=0, token=self._token(info.token))

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        whole = memoryview(b"".join((b"more", await super().get(key, start, end), b"more")))
        return whole[4:-4]

    async def head(self, key: str) -> ObjectInfo:
        return self._told(await super().head(key))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return self._token(await super().put(key, body))

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        self._need("put_if_absent")
        return self._token(await super().put_if_absent(key, body))

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        self._need("compare_and_swap")
        return await super().compare_and_swap(key, body, token)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        self._need("append")
        return self._token(await super().append(key, body, offset))

    async def create_multipart(self, key: str) -> MultipartUpload:
        self._need("multipart")
        return await super().create_multipart(key)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        if start_after:
            self._need("ordered_listing")
        found = [info async for info in super().list(prefix, start_after)]
        for info in found if self._can["ordered_listing"] else reversed(found):
            yield self._told(info)


def least_store(env: Env, store: ObjectStore) -> LeastStore:
    """``store``, as little as the plugin under test has to make do with."""
    spec = env.spec()
    if any(plugin_tables(env.target.checked_settings(spec, env.data_dir))):
        not_applicable(
            "the plugin has others keep what is in the object store, which have needs of their own"
        )
    unknown = sorted(spec.requires - {field.name for field in fields(ObjectStoreCapabilities)})
    assert not unknown, f"no store has what is required, so no broker takes the plugin: {unknown[0]}"
    return LeastStore(store, spec.requires)
