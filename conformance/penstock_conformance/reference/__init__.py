"""Plain implementations of every contract: what serves a plugin under test, and what the mutants are made from.

They are written to be read, not to be fast. As plugins they are called ``reference``::

    penstock conformance run wal -p penstock_conformance.reference --plugin reference
"""

from __future__ import annotations

__all__ = (
    "STORE_CAPABILITIES",
    "WAL_CAPABILITIES",
    "AllocatorSettings",
    "BlockCacheSettings",
    "DirectoryStore",
    "FileWal",
    "NoSettings",
    "PlainAllocator",
    "PlainBlockCache",
    "PlainLogCache",
    "PlainMetadataLog",
    "PlainPartitioner",
    "WalSettings",
    "closing",
    "identify_wal",
    "open_wal",
)

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import Field

from penstock.hookspecs import hookimpl
from penstock.spi import Services, Settings, Size
from penstock.spi.allocator import AllocatorCapabilities, AllocatorSpec
from penstock.spi.block_cache import BlockCacheCapabilities, BlockCacheSpec
from penstock.spi.log_cache import LogCacheCapabilities, LogCacheSpec
from penstock.spi.metadata_log import MetadataLogCapabilities, MetadataLogSpec
from penstock.spi.object_store import ObjectStoreSpec
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec
from penstock.spi.wal import WalSpec
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_conformance.reference._block_cache import PlainBlockCache
from penstock_conformance.reference._log_cache import PlainLogCache
from penstock_conformance.reference._metadata_log import PlainMetadataLog
from penstock_conformance.reference._object_store import STORE_CAPABILITIES, DirectoryStore
from penstock_conformance.reference._partitioner import PlainPartitioner
from penstock_conformance.reference._wal import WAL_CAPABILITIES, FileWal, identify_wal, open_wal

T = TypeVar("T")

NAME = "reference"
SUMMARY = "the conformance suite's own plain implementation"


class NoSettings(Settings):
    """Nothing to set."""


class AllocatorSettings(Settings):
    """Settings of the plain allocator."""

    limit: Size = Field(default=64 * 2**20, ge=1, description="memory for payload")


class BlockCacheSettings(Settings):
    """Settings of the plain block cache."""

    limit: Size = Field(default=4 * 2**20, ge=1, description="memory for blocks")


class WalSettings(Settings):
    """Settings of the file WAL."""

    capacity: Size = Field(default=2 * 2**20, ge=4096, description="bytes of the log between trims")


def closing(make: Callable[[Any, Services], T]) -> Callable[[Any, Services], Any]:
    """An ``open`` that makes an object and calls its ``close``, if it has one, at the end."""

    @asynccontextmanager
    async def opened(settings: Any, services: Services) -> AsyncIterator[T]:
        made = make(settings, services)
        try:
            yield made
        finally:
            close = getattr(made, "close", None)
            if close is not None:
                close()

    return opened


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[NoSettings]:
    """Register the directory store."""
    return ObjectStoreSpec(
        name=NAME,
        summary=SUMMARY,
        settings=NoSettings,
        capabilities=STORE_CAPABILITIES,
        open=closing(lambda _, services: DirectoryStore(services.data_dir / "objects")),
    )


@hookimpl
def penstock_register_wal() -> WalSpec[WalSettings]:
    """Register the file WAL."""
    return WalSpec(
        name=NAME,
        summary=SUMMARY,
        settings=WalSettings,
        capabilities=WAL_CAPABILITIES,
        open=open_wal(FileWal),
        identify=identify_wal(lambda _: FileWal),
    )


@hookimpl
def penstock_register_log_cache() -> LogCacheSpec[NoSettings]:
    """Register the plain log cache."""
    return LogCacheSpec(
        name=NAME,
        summary=SUMMARY,
        settings=NoSettings,
        capabilities=LogCacheCapabilities(),
        open=closing(lambda *_: PlainLogCache()),
    )


@hookimpl
def penstock_register_block_cache() -> BlockCacheSpec[BlockCacheSettings]:
    """Register the plain block cache."""
    return BlockCacheSpec(
        name=NAME,
        summary=SUMMARY,
        settings=BlockCacheSettings,
        capabilities=BlockCacheCapabilities(readahead=True),
        open=closing(lambda settings, services: PlainBlockCache(settings.limit, services.allocator)),
    )


@hookimpl
def penstock_register_allocator() -> AllocatorSpec[AllocatorSettings]:
    """Register the plain allocator."""
    return AllocatorSpec(
        name=NAME,
        summary=SUMMARY,
        settings=AllocatorSettings,
        capabilities=AllocatorCapabilities(),
        open=closing(lambda settings, _: PlainAllocator(settings.limit)),
    )


@hookimpl
def penstock_register_metadata_log() -> MetadataLogSpec[NoSettings]:
    """Register the plain metadata log."""
    return MetadataLogSpec(
        name=NAME,
        summary=SUMMARY,
        settings=NoSettings,
        capabilities=MetadataLogCapabilities(),
        open=closing(lambda _, services: PlainMetadataLog(services.object_store)),
        requires=frozenset({"put_if_absent"}),
    )


@hookimpl
def penstock_register_partitioner() -> PartitionerSpec[NoSettings]:
    """Register the plain partitioner."""
    return PartitionerSpec(
        name=NAME,
        summary=SUMMARY,
        settings=NoSettings,
        capabilities=PartitionerCapabilities(key_affinity=True, adaptive=True),
        open=closing(lambda *_: PlainPartitioner()),
    )
