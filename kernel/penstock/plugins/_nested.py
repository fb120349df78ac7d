"""Plugins that other plugins open: found, checked and opened as those that the configuration selects itself."""

from __future__ import annotations

__all__ = ("NestedPlugin", "NestedPlugins", "Opened")

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from penstock.config import Origins, dotted, origin_of
from penstock.errors import CapabilityError, ConfigError, InvariantError, PenstockError
from penstock.plugins._checks import validate_settings
from penstock.spi.kinds import KINDS, OBJECT_STORE, SERVICES, Kind
from penstock.spi.object_store import ObjectStore, ObjectStoreCapabilities
from penstock.spi.plugin import ChosenPlugin, FencedWords, PluginSpec, Services
from penstock.spi.settings import PluginTable, Settings, plugin_tables

T = TypeVar("T")

#: Plugins within plugins, at most: more is a mistake, or a plugin that opens itself.
DEPTH_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NestedPlugin:
    """A plugin that another one's settings name, with its checked settings."""

    #: Path of its table: ``("wal", "replicas", "1")``.
    path: tuple[str, ...]
    spec: PluginSpec[Any, Any]
    settings: Settings
    #: The store that it gets in place of the broker's: its table has a table ``object_store``.
    store: NestedPlugin | None = None

    @property
    def key(self) -> str:
        """The path as people write it."""
        return dotted(self.path)

    def check_store(self, capabilities: ObjectStoreCapabilities, name: str) -> None:
        """Raise CapabilityError if the store ``name`` lacks what the plugin needs."""
        for capability in sorted(self.spec.requires):
            if not getattr(capabilities, capability, False):
                raise CapabilityError(
                    f"the plugin at {self.key} needs an object store with {capability} and {name} has it not, choose "
                    f"another one with {self.key}.{OBJECT_STORE.name}, or another plugin: plugin={self.spec.name}"
                )


class NestedPlugins:
    """Finds the plugins that settings name. ``select(kind, name)`` is the registry's."""

    def __init__(self, select: Callable[[str, str], PluginSpec[Any, Any]], origins: Origins) -> None:
        self._select = select
        self._origins = origins

    def within(self, path: tuple[str, ...], settings: Settings) -> Iterator[NestedPlugin]:
        """The plugins in ``settings``, which are at ``path``, and those in theirs. Raises as ``resolve``."""
        for inner, table in plugin_tables(settings):
            yield from self._all(self.resolve(table.kind, table, (*path, *inner)))

    def _all(self, nested: NestedPlugin) -> Iterator[NestedPlugin]:
        yield nested
        if nested.store is not None:
            yield from self._all(nested.store)
        yield from self.within(nested.path, nested.settings)

    def resolve(
        self, kind: str, table: PluginTable | Mapping[str, Any], path: tuple[str, ...]
    ) -> NestedPlugin:
        """The plugin of ``kind`` that ``table`` names. Raises ConfigError, PluginError with the key."""
        key = dotted(path)
        if len(path) > 3 * DEPTH_MAX:
            raise ConfigError(
                f"{self._place(path)}: {key} is a plugin within too many others: max={DEPTH_MAX}"
            )
        settings = _plain(table)
        name = settings.pop("plugin", KINDS[kind].default)
        if not name:
            raise ConfigError(f"{self._place(path)}: {key} must name a plugin of kind {kind}")
        try:
            spec = self._select(kind, name)
        except PenstockError as error:
            raise type(error)(f"{self._place(path)}: {key}: {error}") from error
        store = None
        if (
            OBJECT_STORE.name in settings
            and OBJECT_STORE in KINDS[kind].needs
            and OBJECT_STORE.name not in spec.settings.model_fields
        ):
            store = self._own_store(settings.pop(OBJECT_STORE.name), (*path, OBJECT_STORE.name))
        checked = validate_settings(spec, settings, self._origins, key=key)
        return NestedPlugin(path=path, spec=spec, settings=checked, store=store)

    def _own_store(self, table: object, path: tuple[str, ...]) -> NestedPlugin:
        if not isinstance(table, Mapping):
            raise ConfigError(f"{self._place(path)}: {dotted(path)} must be a table, with a url for instance")
        return self.resolve(OBJECT_STORE.name, table, path)

    def _place(self, path: tuple[str, ...]) -> str:
        return origin_of(path, self._origins).place


class Opened:
    """What plugins have opened: ``penstock.spi.plugin.Plugins`` for all owners, and the objects by their keys."""

    def __init__(
        self, nested: NestedPlugins, words: Callable[[str, Services], FencedWords | None] | None = None
    ) -> None:
        """``words(owner, services)`` are the fenced words of a plugin."""
        self._nested = nested
        self.words = words
        #: Those that are open now, by the keys of their tables.
        self.objects: dict[str, Any] = {}

    def bind(self, services: Services, path: tuple[str, ...], name: str, settings: Settings) -> Services:
        """The services of the plugin ``name``, whose table is at ``path``."""
        owner = f"{dotted(path)}/{name}"
        return dataclasses.replace(
            services,
            plugins=_OfOwner(self, self._nested, path, settings),
            words=services.words if self.words is None else self.words(owner, services),
        )

    @asynccontextmanager
    async def open(self, key: str, context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
        """Open one; the error of an opening says the key."""
        try:
            opened = await context.__aenter__()
        except PenstockError as error:
            raise type(error)(f"{key}: {error}") from error
        self.objects[key] = opened
        async with AsyncExitStack() as stack:
            stack.push_async_exit(context)
            stack.callback(self._forget, key, opened)
            yield opened

    def _forget(self, key: str, opened: object) -> None:
        if self.objects.get(key) is opened:  # perhaps it was opened again meanwhile
            del self.objects[key]


class _OfOwner:
    """See ``penstock.spi.plugin.Plugins``."""

    def __init__(
        self, opened: Opened, nested: NestedPlugins, path: tuple[str, ...], settings: Settings
    ) -> None:
        self._opened = opened
        self._nested = nested
        self._path = path
        #: Tables are told apart by being themselves: two may say the same.
        self._paths = {id(table): inner for inner, table in plugin_tables(settings)}
        self._settings = settings

    @asynccontextmanager
    async def choose(
        self,
        services: Services,
        kind: type[PluginSpec[Any, T]],
        table: PluginTable | Mapping[str, Any],
        keys: Mapping[str, Any],
    ) -> AsyncIterator[ChosenPlugin[T]]:
        missing = [
            need for need in KINDS[kind.kind].needs if need.name in SERVICES and not _has(services, need)
        ]
        if missing:
            raise InvariantError(f"there is no {missing[0].name} yet for a {kind.kind} to be opened with")
        path = (*self._path, *self._paths.get(id(table), (kind.kind,)))
        nested = self._nested.resolve(kind.kind, {**_plain(table), **keys}, path)
        if nested.store is None:
            async with self._chosen(services, nested) as chosen:
                yield chosen
            return
        bound = self._opened.bind(services, nested.store.path, nested.store.spec.name, nested.store.settings)
        context = nested.store.spec.open(nested.store.settings, bound)
        async with self._opened.open(nested.store.key, context) as store:
            async with self._chosen(dataclasses.replace(services, object_store=store), nested) as chosen:
                yield chosen

    @asynccontextmanager
    async def _chosen(self, services: Services, nested: NestedPlugin) -> AsyncIterator[ChosenPlugin[Any]]:
        store: ObjectStore | None = services.object_store
        if store is not None:
            nested.check_store(store.capabilities, store.location)
        spec, settings = nested.spec, nested.settings
        bound = self._opened.bind(services, nested.path, spec.name, settings)
        yield ChosenPlugin(
            key=nested.key,
            spec=spec,
            settings=settings,
            services=bound,
            open=lambda: self._opened.open(nested.key, spec.open(settings, bound)),
        )

    @asynccontextmanager
    async def open(
        self,
        services: Services,
        kind: type[PluginSpec[Any, T]],
        table: PluginTable | Mapping[str, Any],
        keys: Mapping[str, Any],
    ) -> AsyncIterator[T]:
        async with self.choose(services, kind, table, keys) as chosen:
            async with chosen.open() as opened:
                yield opened


def _plain(table: PluginTable | Mapping[str, Any]) -> dict[str, Any]:
    return {"plugin": table.plugin, **table.settings} if isinstance(table, PluginTable) else dict(table)


def _has(services: Services, kind: Kind[Any]) -> bool:
    return getattr(services, kind.name) is not None
