"""An object store in memory, for clauses that need tens of thousands of objects."""

from __future__ import annotations

__all__ = ("MemoryStore",)

from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Sequence

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer


class MemoryStore:
    """See ``penstock.spi.object_store.ObjectStore``. It has no uploads in parts."""

    capabilities = ObjectStoreCapabilities(put_if_absent=True, compare_and_swap=True)
    location = "memory of the suite"

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._keys: list[str] = []
        self._puts = 0

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        await checkpoint()
        if start < 0 or (end is not None and end < start):
            raise InvalidRequestError(f"not a range: key={key} start={start} end={end}")
        body, _ = self._found(key)
        if start > len(body):
            raise InvalidRequestError(f"the range starts past the object: key={key} start={start}")
        return body[start:end]

    async def head(self, key: str) -> ObjectInfo:
        await checkpoint()
        return self._info(key)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        return self._store(key, body)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        if key in self._objects:
            raise AlreadyExistsError(f"the object is there already: key={key}")
        return self._store(key, body)

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        await checkpoint()
        if not token or token != self._objects.get(key, (b"", ""))[1]:
            raise ConflictError(f"the object changed: key={key} token={token}")
        return self._store(key, body)

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise InvalidRequestError(f"this store has no uploads in parts: key={key}")

    async def delete(self, keys: Sequence[str]) -> None:
        await checkpoint()
        for key in keys:
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await checkpoint()
        at = bisect_left(self._keys, prefix)
        if start_after:
            at = max(at, bisect_right(self._keys, start_after))
        while at < len(self._keys) and (key := self._keys[at]).startswith(prefix):
            yield self._info(key)
            at = bisect_right(self._keys, key)  # others may come and go meanwhile

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics()

    def _store(self, key: str, body: Sequence[Buffer]) -> str:
        if key not in self._objects:
            insort(self._keys, key)
        self._puts += 1
        token = str(self._puts)
        self._objects[key] = b"".join(body), token
        return token

    def _info(self, key: str) -> ObjectInfo:
        body, token = self._found(key)
        return ObjectInfo(key=key, size=len(body), modified_ms=0, token=token)

    def _found(self, key: str) -> tuple[bytes, str]:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFoundError(f"no such object: key={key}") from None
