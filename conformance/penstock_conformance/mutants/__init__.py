"""Deliberately broken plugins, which the suite must catch by name: the suite's own test.

They ship with the suite, so that whoever changes or extends a clause can prove it the same way::

    penstock conformance run wal -p penstock_conformance.mutants --plugin mutant --set defect=ignores_the_fence

Each is a reference implementation with one thing wrong. ``MUTANTS`` names them all, with the clauses that must fail.
"""

from __future__ import annotations

__all__ = ("MUTANTS", "Mutant")

from pathlib import Path

from pydantic import Field

from penstock.hookspecs import hookimpl
from penstock.spi import Services, Settings
from penstock.spi.allocator import AllocatorCapabilities, AllocatorSpec
from penstock.spi.block_cache import BlockCacheCapabilities, BlockCacheSpec
from penstock.spi.log_cache import LogCacheCapabilities, LogCacheSpec
from penstock.spi.metadata_log import MetadataLogCapabilities, MetadataLogSpec
from penstock.spi.object_store import ObjectStoreSpec
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec
from penstock.spi.wal import WalSpec
from penstock_conformance.mutants import (
    _allocator,
    _block_cache,
    _log_cache,
    _metadata_log,
    _object_store,
    _partitioner,
    _wal,
)
from penstock_conformance.mutants._mutant import MUTANTS, Mutant, make
from penstock_conformance.reference import (
    STORE_CAPABILITIES,
    WAL_CAPABILITIES,
    AllocatorSettings,
    BlockCacheSettings,
    FileWal,
    WalSettings,
    closing,
    identify_wal,
    open_wal,
)

_MODULES = (_allocator, _block_cache, _log_cache, _metadata_log, _object_store, _partitioner, _wal)

NAME = "mutant"
SUMMARY = "deliberately broken, to test the conformance suite"
_DEFECT = "what is wrong with it"


class Defective(Settings):
    """Which mutant it is."""

    defect: str = Field(description=_DEFECT)


class DefectiveAllocator(AllocatorSettings):
    """Which mutant it is, and the limit."""

    defect: str = Field(description=_DEFECT)


class DefectiveBlockCache(BlockCacheSettings):
    """Which mutant it is, and the limit."""

    defect: str = Field(description=_DEFECT)


class DefectiveWal(WalSettings):
    """Which mutant it is, and the capacity."""

    defect: str = Field(description=_DEFECT)


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[Defective]:
    """Register the broken object stores."""
    return ObjectStoreSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=STORE_CAPABILITIES,
        open=closing(
            lambda settings, services: make("object_store", settings.defect, services.data_dir / "objects")
        ),
    )


def _make_wal(settings: DefectiveWal, path: Path, epoch: int, capacity: int) -> FileWal:
    made = make("wal", settings.defect, path, epoch, capacity)
    assert isinstance(made, FileWal)
    return made


def _wal_class(settings: DefectiveWal) -> type[FileWal]:
    made = MUTANTS["wal", settings.defect].make
    assert isinstance(made, type)
    assert issubclass(made, FileWal)
    return made


def _open_wal(settings: DefectiveWal, services: Services) -> object:
    return open_wal(lambda path, epoch, capacity: _make_wal(settings, path, epoch, capacity))(
        settings, services
    )


@hookimpl
def penstock_register_wal() -> WalSpec[DefectiveWal]:
    """Register the broken WALs."""
    return WalSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectiveWal,
        capabilities=WAL_CAPABILITIES,
        open=_open_wal,  # type: ignore[arg-type] # the reference's class stands for the Protocol
        identify=identify_wal(_wal_class),
    )


@hookimpl
def penstock_register_log_cache() -> LogCacheSpec[Defective]:
    """Register the broken log caches."""
    return LogCacheSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=LogCacheCapabilities(),
        open=closing(lambda settings, _: make("log_cache", settings.defect)),
    )


@hookimpl
def penstock_register_block_cache() -> BlockCacheSpec[DefectiveBlockCache]:
    """Register the broken block caches."""
    return BlockCacheSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectiveBlockCache,
        capabilities=BlockCacheCapabilities(readahead=True),
        open=closing(
            lambda settings, services: make(
                "block_cache", settings.defect, settings.limit, services.allocator
            )
        ),
    )


@hookimpl
def penstock_register_allocator() -> AllocatorSpec[DefectiveAllocator]:
    """Register the broken allocators."""
    return AllocatorSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectiveAllocator,
        capabilities=AllocatorCapabilities(),
        open=closing(lambda settings, _: make("allocator", settings.defect, settings.limit)),
    )


@hookimpl
def penstock_register_metadata_log() -> MetadataLogSpec[Defective]:
    """Register the broken metadata logs."""
    return MetadataLogSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=MetadataLogCapabilities(),
        open=closing(lambda settings, services: make("metadata_log", settings.defect, services.object_store)),
    )


@hookimpl
def penstock_register_partitioner() -> PartitionerSpec[Defective]:
    """Register the broken partitioners."""
    return PartitionerSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=PartitionerCapabilities(key_affinity=True, adaptive=True),
        open=closing(lambda settings, _: make("partitioner", settings.defect)),
    )
