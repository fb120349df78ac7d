"""A metadata log of numbered objects, created with put-if-absent."""

from __future__ import annotations

__all__ = ("PlainMetadataLog",)

import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from crc32c import crc32c

from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
)
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.metadata_log import (
    MetadataEntry,
    MetadataLogCapabilities,
    MetadataLogSpec,
    MetadataLogStatistics,
    MetadataSnapshot,
)
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services

_CAPABILITIES = MetadataLogCapabilities(entry_bytes_max=256 * 1024)
# CRC-32C of the rest, index, nonce that tells writers apart
_HEAD = struct.Struct(">IQ8s")


class PlainMetadataLog:
    """See ``penstock.spi.metadata_log.MetadataLog``."""

    def __init__(self, store: ObjectStore | None) -> None:
        assert store is not None, "the metadata log is opened after the object store"
        self._store = store
        self._last_index = 0
        self._news = anyio.Event()
        self._closed = False
        self._appends = self._conflicts = self._snapshot_index = 0

    @property
    def capabilities(self) -> MetadataLogCapabilities:
        return _CAPABILITIES

    @property
    def location(self) -> str:
        return self._store.location

    def close(self) -> None:
        """Answer who waits."""
        self._closed = True
        self._news.set()

    async def append(self, index: int, data: bytes) -> None:
        self._check_open()
        if len(data) > _CAPABILITIES.entry_bytes_max:
            raise InvalidRequestError(f"the entry is too large: bytes={len(data)}")
        last = await self._find_last()
        if index < 1 or index > last + 1:
            raise InvalidRequestError(f"the entry would leave a gap: index={index} last_index={last}")
        if index <= last:
            self._conflicts += 1
            raise ConflictError(f"the index is taken: index={index}")
        try:
            await self._create(self._key(index), _pack(index, data))
        except AlreadyExistsError:
            self._conflicts += 1
            raise ConflictError(f"the index is taken: index={index}") from None
        self._appends += 1
        self._learn(index)

    async def _create(self, key: str, body: bytes) -> None:
        await self._store.put_if_absent(key, [body])

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        self._check_open()
        index = start_index
        if index <= await self._dropped():
            raise NotFoundError(f"the entry was dropped below a snapshot: index={index}")
        keys = [info.key async for info in self._store.list("log/", self._key(start_index - 1))]
        for key in keys:
            if key != self._key(index):
                raise CorruptError(f"a metadata entry is missing: index={index}")
            yield self._decode(index, bytes(await self._store.get(key)))
            self._learn(index)
            index += 1

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return MetadataEntry(index, _unpack(index, raw))

    async def wait_for_news(self, after_index: int) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            self._check_open()
            if self._last_index > after_index:
                return
            await self._news.wait()

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        self._check_open()
        await self._store.put(f"snapshot/{snapshot.index:020}", [_pack(snapshot.index, snapshot.data)])
        self._snapshot_index = max(self._snapshot_index, snapshot.index)
        keys = [info.key async for info in self._store.list("snapshot/")]
        if len(keys) > 2:
            await self._store.delete(keys[:-2])
            dropped = await self._dropped()
            entries = [info.key async for info in self._store.list("log/")]
            await self._store.delete([key for key in entries if key <= self._key(dropped)])

    async def read_snapshot(self) -> MetadataSnapshot | None:
        self._check_open()
        while keys := [info.key async for info in self._store.list("snapshot/")]:
            index = int(keys[-1].rpartition("/")[2])
            try:
                body = bytes(await self._store.get(keys[-1]))
            except NotFoundError:
                continue  # newer ones took its place since the listing
            return MetadataSnapshot(index, _unpack(index, body))
        return None

    def statistics(self) -> MetadataLogStatistics:
        return MetadataLogStatistics(
            appends=self._appends,
            conflicts=self._conflicts,
            last_index=self._last_index,
            snapshot_index=self._snapshot_index,
        )

    def _key(self, index: int) -> str:
        return f"log/{max(index, 0):020}"

    async def _find_last(self) -> int:
        keys = [info.key async for info in self._store.list("log/", self._key(self._last_index))]
        if not keys and not self._last_index:
            keys = [info.key async for info in self._store.list("snapshot/")]
        last = int(keys[-1].rpartition("/")[2]) if keys else self._last_index
        self._learn(last)
        return last

    async def _dropped(self) -> int:
        """Entries up to here are gone: those of the span of the older of two snapshots are kept."""
        keys = [info.key async for info in self._store.list("snapshot/")]
        if not keys:
            return 0
        if len(keys) > 1:
            return int(keys[0].rpartition("/")[2])
        first = [info.key async for info in self._store.list("log/")][:1]
        index = int(keys[0].rpartition("/")[2])
        return index if not first or first[0] > self._key(index) else 0  # the log began with it

    def _learn(self, index: int) -> None:
        if index > self._last_index:
            self._last_index = index
            news, self._news = self._news, anyio.Event()
            news.set()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the metadata log is closed")


def _pack(index: int, data: bytes) -> bytes:
    rest = _HEAD.pack(0, index, secrets.token_bytes(8))[4:] + data
    return crc32c(rest).to_bytes(4, "big") + rest


def _unpack(index: int, raw: bytes) -> bytes:
    if len(raw) < _HEAD.size or crc32c(raw[4:]) != int.from_bytes(raw[:4], "big"):
        raise CorruptError(f"a metadata entry fails its checksum: index={index}")
    if _HEAD.unpack_from(raw)[1] != index:
        raise CorruptError(f"a metadata entry says it is another: index={index}")
    return raw[_HEAD.size :]


class MetadataLogSettings(Settings):
    """Nothing to set."""


@asynccontextmanager
async def _open(settings: MetadataLogSettings, services: Services) -> AsyncIterator[PlainMetadataLog]:
    log = PlainMetadataLog(services.object_store)
    try:
        yield log
    finally:
        log.close()


@hookimpl
def penstock_register_metadata_log() -> MetadataLogSpec[MetadataLogSettings]:
    """Register the plain metadata log."""
    return MetadataLogSpec(
        name="reference",
        summary="A metadata log of numbered objects, created with put-if-absent.",
        settings=MetadataLogSettings,
        capabilities=_CAPABILITIES,
        open=_open,
        requires=frozenset({"put_if_absent", "ordered_listing"}),
        key_prefixes=lambda _: ("log/", "snapshot/"),
    )
