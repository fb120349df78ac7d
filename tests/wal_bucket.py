"""A bucket in memory whose requests the tests steer, and logs in it."""

from __future__ import annotations

__all__ = ("Bucket", "Place", "bodies", "recovered")

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint
from penstock_wal_s3 import ObjectWal, Settings, penstock_register_wal

from penstock.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from penstock.spi import Buffer, Services
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)

Step = Callable[[str, str], Awaitable[None]]


async def _nothing(action: str, key: str) -> None:
    """The request is answered at once."""


class Bucket:
    """See ``ObjectStore``. ``before(action, key)`` and ``after(action, key)`` are awaited around the effect."""

    location = "bucket://test/"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.capabilities = ObjectStoreCapabilities(put_if_absent=True, durability_domain="region")
        self.requests: Counter[str] = Counter()
        self.before: Step = _nothing
        self.after: Step = _nothing

    async def _call(self, action: str, key: str, effect: Callable[[], Any]) -> Any:
        self.requests[action] += 1
        await checkpoint()
        await self.before(action, key)
        result = effect()
        await self.after(action, key)
        return result

    def _find(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFoundError(f"no such object: key={key!r}")
        return self.objects[key]

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        data: bytes = await self._call("get", key, lambda: self._find(key))
        return data[start:end]

    async def head(self, key: str) -> ObjectInfo:
        size: int = await self._call("head", key, lambda: len(self._find(key)))
        return ObjectInfo(key=key, size=size)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        raise InvalidRequestError("a WAL replaces nothing")

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        def effect() -> None:
            if key in self.objects:
                raise AlreadyExistsError(f"the object exists: key={key!r}")
            self.objects[key] = b"".join(body)

        await self._call("put", key, effect)
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise InvalidRequestError("not offered")

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise InvalidRequestError("not offered")

    async def delete(self, keys: Sequence[str]) -> None:
        def effect() -> None:
            for key in keys:
                self.objects.pop(key, None)

        await self._call("delete", keys[0], effect)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        found: list[str] = await self._call("list", prefix, lambda: sorted(self.objects))
        for key in found:
            if key.startswith(prefix) and key > start_after:
                yield ObjectInfo(key=key, size=len(self.objects.get(key, b"")))

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics()


class Place:
    """A bucket and a clock, in which the log of node 1 is opened again and again."""

    def __init__(self, **settings: Any) -> None:
        self.bucket = Bucket()
        self.settings = Settings(**settings)
        self.now: float | None = None
        self.spec = penstock_register_wal()

    def services(self, epoch: int, node_id: int = 1) -> Services:
        return Services(
            node_id=node_id,
            epoch=epoch,
            cluster_id="test",
            data_dir=Path("/nowhere"),
            object_store=self.bucket,
            clock=lambda: time.monotonic() if self.now is None else self.now,
        )

    def open(self, epoch: int, node_id: int = 1) -> AbstractAsyncContextManager[ObjectWal]:
        """The log of ``node_id``, as its owner ``epoch``."""
        opened: Any = self.spec.open(self.settings, self.services(epoch, node_id))
        return opened  # type: ignore[no-any-return]

    @asynccontextmanager
    async def recovered(self, epoch: int) -> AsyncIterator[ObjectWal]:
        """Open and recovered."""
        async with self.open(epoch) as wal:
            await recovered(wal)
            yield wal

    async def read(self, epoch: int) -> list[bytes]:
        """The payloads that a new owner finds."""
        async with self.open(epoch) as wal:
            return await recovered(wal)

    def slots(self) -> list[str]:
        """The objects that are there, as EPOCH.SLOT without zeros."""
        names = sorted(key.rpartition("/")[2] for key in self.bucket.objects)
        return [".".join(str(int(part)) for part in name.split(".")) for name in names]


async def recovered(wal: ObjectWal) -> list[bytes]:
    """The payloads, in order."""
    return [bytes(entry.data) async for entry in wal.recover()]


def bodies(count: int, owner: int = 0) -> list[bytes]:
    """Payloads that are all different."""
    return [f"{owner}/{number}".encode() for number in range(count)]
