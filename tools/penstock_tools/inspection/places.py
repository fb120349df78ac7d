"""Opens the places where a broker keeps its data, as its configuration names them, for reading only."""

from __future__ import annotations

__all__ = ("Places", "format_wal", "open_nested_store", "open_places", "open_store")

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from penstock.config import Config
from penstock.errors import InvalidRequestError, PenstockError
from penstock.metadata.service import load_image
from penstock.metadata.words import ImageWords
from penstock.plugins import NestedPlugin, PluginOpener, PluginRegistry, Selection
from penstock.spi.kinds import ALLOCATOR, METADATA_LOG, OBJECT_STORE, WAL
from penstock.spi.metadata_log import MetadataLog
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock.spi.wal import WalEntry, WalSpec

T = TypeVar("T")
_Read: TypeAlias = Callable[[Any, Services], AsyncIterator[WalEntry]]


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
async def open_nested_store(config: Config, plugin: NestedPlugin) -> AsyncIterator[ObjectStore]:
    """Open the object store that another plugin opens for ``plugin``, which has one. An error says its key."""
    assert plugin.store is not None, "it has one of its own"
    services = _services(config)
    try:
        context = plugin.store.spec.open(plugin.store.settings, services)
        store: ObjectStore = await context.__aenter__()
    except PenstockError as error:
        raise type(error)(f"{plugin.store.key}: {error}") from error
    async with AsyncExitStack() as stack:
        stack.push_async_exit(context)
        yield store


async def format_wal(config: Config, registry: PluginRegistry, consent: str) -> Mapping[str, object]:
    """Make the place of the WAL ready; see ``WalSpec.format``. Raises InvalidRequestError if the plugin can't."""
    selection = registry.select_all(config)
    wal = selection.specs[WAL.name]
    assert isinstance(wal, WalSpec)
    if wal.format is None:
        raise InvalidRequestError(f"this WAL plugin needs no formatting: plugin={wal.name}")
    return await wal.format(selection.settings[WAL.name], _services(config, read_only=False), consent)


@asynccontextmanager
async def open_places(config: Config, registry: PluginRegistry) -> AsyncIterator[Places]:
    """Open what can be shared with a live broker. The WAL isn't opened: that would fence its owner."""
    selection = registry.select_all(config)
    async with AsyncExitStack() as stack:
        plugins = PluginOpener(stack, selection, _services(config))
        await plugins.open(ALLOCATOR)
        object_store = await plugins.open(OBJECT_STORE)
        wal = selection.specs[WAL.name]
        assert isinstance(wal, WalSpec)
        metadata_log = await plugins.open(METADATA_LOG)
        wal_settings = selection.settings[WAL.name]

        async def services() -> Services:
            """As a broker would give them; metadata are read when the WAL is looked at, and not before."""
            image = await load_image(metadata_log)
            plugins.set_services(cluster_id=image.cluster_id)
            plugins.set_words(partial(ImageWords, image))
            return plugins.services_of(WAL)

        async def read(of: _Read) -> AsyncIterator[WalEntry]:
            async for entry in of(wal_settings, await services()):
                yield entry

        async def ask(of: Callable[[Any, Services], Awaitable[T]]) -> T:
            return await of(wal_settings, await services())

        yield Places(
            object_store=object_store,
            metadata_log=metadata_log,
            wal_name=wal.name,
            read_wal=None if wal.read is None else partial(read, wal.read),
            describe_wal=None if wal.describe is None else partial(ask, wal.describe),
            identify_wal=None if wal.identify is None else partial(ask, wal.identify),
            node_id=plugins.services.node_id,
        )
