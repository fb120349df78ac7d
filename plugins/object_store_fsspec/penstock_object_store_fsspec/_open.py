"""From the settings to an open store: which backend a URL means, and closing it."""

from __future__ import annotations

__all__ = ("open_store",)

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock_object_store_fsspec._local import open_local
from penstock_object_store_fsspec._memory import MemoryBackend
from penstock_object_store_fsspec._settings import Settings
from penstock_object_store_fsspec._store import FsspecObjectStore


@asynccontextmanager
async def open_store(settings: Settings, services: Services) -> AsyncIterator[ObjectStore]:
    """Open the store of ``settings.url``.

    Raises ConfigError for a place that can't be used or refused credentials; PluginError if a package for the
    protocol is missing; UnavailableError if a remote store can't be reached.
    """
    protocol, _, place = settings.url.partition("://")
    if protocol in {"file", "local"}:
        async with open_local(
            _directory(services, place), read_only=services.read_only, access=services.access
        ) as local:
            yield FsspecObjectStore(local)
    elif protocol == "memory":
        yield FsspecObjectStore(MemoryBackend(place))
    else:
        from penstock_object_store_fsspec._connect import open_remote

        async with open_remote(protocol, place, settings, services.clock) as remote:
            yield FsspecObjectStore(remote)


def _directory(services: Services, place: str) -> str:
    return os.path.abspath(os.path.join(services.data_dir, place))
