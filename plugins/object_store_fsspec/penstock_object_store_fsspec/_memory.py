"""Objects in the memory of this process; a name is one bucket for as long as the process lives."""

from __future__ import annotations

__all__ = ("MemoryBackend",)

import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from penstock.spi.object_store import ObjectInfo, ObjectStoreCapabilities
from penstock.spi.plugin import Buffer
from penstock_object_store_fsspec._backend import Health, check_range
from penstock_object_store_fsspec._settings import MEMORY_CAPABILITIES


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    version: int
    modified_ms: int


@dataclass(slots=True)
class _Bucket:
    """The lock is for brokers on event loops of other threads; nobody waits while holding it."""

    objects: dict[str, _Object] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    version: int = 0

    def write(self, key: str, data: bytes) -> str:
        self.version += 1
        self.objects[key] = _Object(data, self.version, time.time_ns() // 1_000_000)
        return str(self.version)


_buckets: dict[str, _Bucket] = {}


class MemoryBackend:
    """Every method is one checkpoint, then one atomic step."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bucket = _buckets.setdefault(name, _Bucket())
        self.health = Health()

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        return MEMORY_CAPABILITIES

    @property
    def location(self) -> str:
        return f"memory://{self._name}"

    @property
    def endpoint(self) -> str:
        return ""

    def _find(self, key: str) -> _Object:
        found = self._bucket.objects.get(key)
        if found is None:
            raise NotFoundError(f"no such object: key={key!r} location={self.location}")
        return found

    async def get(self, key: str, start: int, end: int | None) -> Buffer:
        await checkpoint()
        data = self._find(key).data
        end = check_range(key, len(data), start, end)
        return data if end - start == len(data) else memoryview(data)[start:end]

    async def head(self, key: str) -> ObjectInfo:
        await checkpoint()
        return _info(key, self._find(key))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        data = b"".join(body)
        with self._bucket.lock:
            return self._bucket.write(key, data)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        data = b"".join(body)
        with self._bucket.lock:
            if key in self._bucket.objects:
                raise AlreadyExistsError(f"the object exists: key={key!r} location={self.location}")
            return self._bucket.write(key, data)

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        await checkpoint()
        data = b"".join(body)
        with self._bucket.lock:
            found = self._bucket.objects.get(key)
            if found is None or str(found.version) != token:
                raise ConflictError(f"the object changed: key={key!r} token={token!r}")
            return self._bucket.write(key, data)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        await checkpoint()
        data = b"".join(body)
        with self._bucket.lock:
            found = self._bucket.objects.get(key)
            there = b"" if found is None else found.data
            if len(there) != offset:
                raise ConflictError(
                    f"the object ends elsewhere: key={key!r} offset={offset} size={len(there)}"
                )
            return self._bucket.write(key, there + data)

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _Upload(self, key)

    async def delete(self, keys: Sequence[str]) -> None:
        await checkpoint()
        with self._bucket.lock:
            for key in keys:
                self._bucket.objects.pop(key, None)

    async def list(self, prefix: str, start_after: str) -> AsyncIterator[ObjectInfo]:
        await checkpoint()
        with self._bucket.lock:
            found = [
                (key, entry)
                for key, entry in self._bucket.objects.items()
                if key.startswith(prefix) and key > start_after
            ]
        for key, entry in sorted(found, key=lambda item: item[0]):
            yield _info(key, entry)


def _info(key: str, entry: _Object) -> ObjectInfo:
    return ObjectInfo(key=key, size=len(entry.data), modified_ms=entry.modified_ms, token=str(entry.version))


class _Upload:
    """Parts gathered until ``complete``."""

    def __init__(self, backend: MemoryBackend, key: str) -> None:
        self._backend = backend
        self._key = key
        self._parts: list[bytes] | None = []

    def _open_parts(self) -> list[bytes]:
        if self._parts is None:
            raise InvalidRequestError(f"the upload was completed or aborted: key={self._key!r}")
        return self._parts

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await checkpoint()
        self._open_parts().append(b"".join(part))

    async def complete(self) -> None:
        await self._backend.put(self._key, self._open_parts())
        self._parts = None

    async def abort(self) -> None:
        await checkpoint()
        self._parts = None
