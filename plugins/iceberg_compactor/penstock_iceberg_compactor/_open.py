"""Opening the plugin: what it needs is imported here, so that a Penstock without the extra starts as fast as ever."""

from __future__ import annotations

__all__ = ("open_compactor", "open_here", "watch")

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from penstock.errors import PluginError
from penstock.spi import Services
from penstock.spi.lake import LakeCompactor
from penstock_iceberg_compactor._settings import Settings


@asynccontextmanager
async def open_compactor(settings: Settings, services: Services) -> AsyncIterator[LakeCompactor]:
    """Open the catalog; for a broker in a process of its own, for who only looks, as a command does, in this one.

    Raises PluginError if a library is missing, ConfigError for properties that can't be right.
    """
    if settings.own_process and services.allocator is not None and not services.read_only:
        from penstock_iceberg_compactor._apart import ApartCompactor

        async with ApartCompactor.opened(settings, services) as apart:
            yield apart
    else:
        async with open_here(settings, services) as here:
            yield here


@asynccontextmanager
async def open_here(settings: Settings, services: Services) -> AsyncIterator[LakeCompactor]:
    """Open the catalog in this process. Raises as ``open_compactor`` does."""
    try:
        from penstock_iceberg_compactor._compactor import IcebergCompactor
    except ImportError as error:
        raise PluginError(
            f"iceberg_compactor needs libraries that aren't installed, run pip install 'penstock[iceberg]': "
            f"missing={error.name}"
        ) from error
    async with IcebergCompactor.opened(settings, services) as compactor:
        yield compactor


def watch(compactor: LakeCompactor, step: Callable[[str], None]) -> None:
    """Have ``step`` called after each thing that is done on a medium."""
    from penstock_iceberg_compactor._apart import ApartCompactor

    if isinstance(compactor, ApartCompactor):
        compactor.watch(step)
        return
    from penstock_iceberg_compactor._compactor import IcebergCompactor

    assert isinstance(compactor, IcebergCompactor)
    compactor.watch(step)
