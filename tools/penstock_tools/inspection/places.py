"""Opens the places where a broker keeps its data, as its configuration names them, for reading only."""

from __future__ import annotations

__all__ = ("Places", "open_places", "open_store")

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from penstock.config import Config
from penstock.plugins import PluginOpener, PluginRegistry, Selection
from penstock.spi.kinds import METADATA_LOG, OBJECT_STORE, WAL
from penstock.spi.metadata_log import MetadataLog
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock.spi.wal import WalEntry, WalSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The object store and the metadata log, opened; the WAL only as far as it can be read from outside."""

    object_store: ObjectStore
    metadata_log: MetadataLog
    wal_name: str
    read_wal: Callable[[], AsyncIterator[WalEntry]] | None
    describe_wal: Callable[[], Awaitable[Mapping[str, object]]] | None
    identify_wal: Callable[[], Awaitable[str | None]] | None = None
    node_id: int = 1


def _services(config: Config, *, read_only: bool = True) -> Services:
    """What plugins get from somebody who only looks."""
    return Services(
        node_id=config.tree.broker.node_id,
        epoch=0,
        cluster_id=config.tree.broker.cluster_id or "",
        data_dir=Path(os.path.abspath(os.path.expanduser(config.tree.broker.data_dir))),
        read_only=read_only,
        clock=time.monotonic,
    )


@asynccontextmanager
async def open_store(
    config: Config, selection: Selection, *, read_only: bool = True
) -> AsyncIterator[ObjectStore]:
    """Open the object store alone. Raises ConfigError, PluginError, UnavailableError as its plugin does."""
    async with AsyncExitStack() as stack:
        services = _services(config, read_only=read_only)
        yield await PluginOpener(stack, selection, services).open(OBJECT_STORE)


@asynccontextmanager
async def open_places(config: Config, registry: PluginRegistry) -> AsyncIterator[Places]:
    """Open what can be shared with a live broker. The WAL isn't opened: that would fence its owner."""
    selection = registry.select_all(config)
    async with AsyncExitStack() as stack:
        plugins = PluginOpener(stack, selection, _services(config))
        object_store = await plugins.open(OBJECT_STORE)
        wal = selection.specs[WAL.name]
        assert isinstance(wal, WalSpec)
        given = (selection.settings[WAL.name], plugins.services)
        yield Places(
            object_store=object_store,
            metadata_log=await plugins.open(METADATA_LOG),
            wal_name=wal.name,
            read_wal=None if wal.read is None else partial(wal.read, *given),
            describe_wal=None if wal.describe is None else partial(wal.describe, *given),
            identify_wal=None if wal.identify is None else partial(wal.identify, *given),
            node_id=plugins.services.node_id,
        )
