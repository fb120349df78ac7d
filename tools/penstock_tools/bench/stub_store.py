"""An object store that keeps no large body: what is measured on it is the write-ahead log and the broker.

    penstock bench floor -p penstock_tools.bench.stub_store --set wal.plugin=wal_s3 --set object_store.plugin=stub

Small objects are kept, as the metadata log reads its own. Of larger ones the size is kept, and nothing is copied: a
put costs no more than its call. Nothing outlives the process.
"""

from __future__ import annotations

__all__ = ("KEPT_BYTES_MAX", "StubStore", "penstock_register_object_store")

import bisect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.object_store import (
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreSpec,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer, Services

#: Larger bodies aren't kept.
KEPT_BYTES_MAX = 64 * 1024

_CAPABILITIES = ObjectStoreCapabilities(
    put_if_absent=True, multipart=True, small_parts=True, durable=False, durability_domain="process"
)


class StubStore:
    """Sizes by key, and the bodies of small objects. Every method is one checkpoint, then one atomic step."""

    capabilities = _CAPABILITIES
    location = "stub"

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._bodies: dict[str, bytes] = {}
        #: Sorted, for listings; log and uploads put thousands.
        self._keys: list[str] = []
        self._gets = self._puts = self._deletes = self._lists = self._bytes_written = 0

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        size = (await self.head(key)).size
        self._gets += 1
        if start < 0 or start > size or (end is not None and end < start):
            raise InvalidRequestError(
                f"not a range of the object: key={key} start={start} end={end} size={size}"
            )
        if key not in self._bodies:
            raise InvalidRequestError(
                f"the stub keeps no body above {KEPT_BYTES_MAX} bytes, measure reads on another store: key={key}"
            )
        return self._bodies[key][start:end]

    async def head(self, key: str) -> ObjectInfo:
        await checkpoint()
        try:
            return ObjectInfo(key=key, size=self._sizes[key])
        except KeyError:
            raise NotFoundError(f"no such object: key={key}") from None

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        self.keep(key, sum(map(len, body)), body)
        return ""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        if key in self._sizes:
            raise AlreadyExistsError(f"the object is there already: key={key}")
        self.keep(key, sum(map(len, body)), body)
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise InvalidRequestError("the stub has no compare-and-swap")

    async def create_multipart(self, key: str) -> StubUpload:
        await checkpoint()
        return StubUpload(self, key)

    async def delete(self, keys: Sequence[str]) -> None:
        await checkpoint()
        for key in keys:
            self._deletes += 1
            if self._sizes.pop(key, None) is not None:
                self._bodies.pop(key, None)
                del self._keys[bisect.bisect_left(self._keys, key)]

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await checkpoint()
        self._lists += 1
        first = bisect.bisect_left(self._keys, max(prefix, start_after))
        for key in self._keys[first:]:
            if key > start_after:
                if not key.startswith(prefix):
                    break
                if key in self._sizes:
                    yield ObjectInfo(key=key, size=self._sizes[key])

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics(
            gets=self._gets,
            puts=self._puts,
            deletes=self._deletes,
            lists=self._lists,
            bytes_written=self._bytes_written,
        )

    def keep(self, key: str, size: int, body: Sequence[Buffer]) -> None:
        """Replace the object under ``key``; ``body`` is looked at only if ``size`` is small."""
        self._puts += 1
        self._bytes_written += size
        if key not in self._sizes:
            bisect.insort(self._keys, key)
        self._sizes[key] = size
        self._bodies.pop(key, None)
        if size <= KEPT_BYTES_MAX:
            self._bodies[key] = b"".join(body)


class StubUpload:
    """An upload in parts: its size, and its bytes as long as they are few."""

    def __init__(self, store: StubStore, key: str) -> None:
        self._store = store
        self._key = key
        self._size = 0
        self._parts: list[bytes] = []

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await checkpoint()
        self._size += sum(map(len, part))
        if self._size <= KEPT_BYTES_MAX:
            self._parts.extend(map(bytes, part))

    async def complete(self) -> None:
        await checkpoint()
        self._store.keep(self._key, self._size, self._parts)

    async def abort(self) -> None:
        await checkpoint()
        self._parts.clear()


@asynccontextmanager
async def _open(_: Settings, __: Services) -> AsyncIterator[StubStore]:
    yield StubStore()


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[Settings]:
    """Register ``stub``."""
    return ObjectStoreSpec(
        name="stub",
        summary="keeps no large body: for benchmarks of what is in front of it",
        settings=Settings,
        capabilities=_CAPABILITIES,
        open=_open,
    )
