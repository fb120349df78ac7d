"""Opening the selected plugins, in the order of the table of kinds."""

from __future__ import annotations

__all__ = ("PluginOpener",)

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from penstock.plugins._nested import Opened
from penstock.plugins._registry import Selection
from penstock.spi.kinds import KINDS, SERVICES, Kind
from penstock.spi.plugin import FencedWords, Services
from penstock.work.traffic import view_of

T = TypeVar("T")


class PluginOpener:
    """Opens the plugins of a selection into ``stack``, which closes them in the opposite order.

    ``opener[WAL]`` is the opened object of a kind, with the type of its contract. Each plugin gets ``services`` as
    they are when it is opened; the object of a kind that serves others is added to them.
    """

    def __init__(self, stack: AsyncExitStack, selection: Selection, services: Services) -> None:
        self._stack = stack
        self._selection = selection
        self.services = services
        self._opened: dict[str, Any] = {}
        self._by_plugins = Opened(selection.finder) if selection.finder is not None else None

    def __getitem__(self, kind: Kind[T]) -> T:
        opened: T = self._opened[kind.name]
        return opened

    def get(self, kind: Kind[T]) -> T | None:
        """The opened object of a kind; None if no plugin of it is selected, or it isn't open yet."""
        opened: T | None = self._opened.get(kind.name)
        return opened

    @property
    def opened(self) -> list[Kind[Any]]:
        """The kinds that are open, in the order of the table."""
        return [kind for kind in KINDS.values() if kind.name in self._opened]

    def set_services(self, **changed: Any) -> None:
        """Change ``services`` for the plugins that are still to be opened."""
        self.services = dataclasses.replace(self.services, **changed)

    @property
    def opened_by_plugins(self) -> Mapping[str, Any]:
        """The objects that plugins have opened, by the keys of their tables."""
        return self._by_plugins.objects if self._by_plugins is not None else {}

    def set_words(self, words: Callable[[str, Services], FencedWords | None]) -> None:
        """``words(owner, services)`` are the fenced words of each plugin that is still to be opened."""
        if self._by_plugins is not None:
            self._by_plugins.words = words

    def services_of(self, kind: Kind[Any]) -> Services:
        """``services`` as the plugin of that kind gets them: the object store is that of its class of traffic."""
        services = self.services
        if services.object_store is not None:
            services = dataclasses.replace(
                services, object_store=view_of(services.object_store, kind.traffic)
            )
        if self._by_plugins is None:
            return services
        name, settings = self._selection.specs[kind.name].name, self._selection.settings[kind.name]
        return self._by_plugins.bind(services, (kind.name,), name, settings)

    def set(self, kind: Kind[T], opened: T) -> None:
        """Have ``opened``, perhaps a wrapper of what was opened, stand for the kind from now on."""
        self._opened[kind.name] = opened
        if kind.name in SERVICES:
            self.set_services(**{kind.name: opened})

    def context(self, kind: Kind[T]) -> AbstractAsyncContextManager[T]:
        """The plugin, to be opened and closed by the caller."""
        spec, settings = self._selection.specs[kind.name], self._selection.settings[kind.name]
        context: AbstractAsyncContextManager[T] = spec.open(settings, self.services_of(kind))
        return context

    async def open(self, kind: Kind[T]) -> T:
        """Open one plugin. Raises what its ``open`` raises."""
        opened = await self._stack.enter_async_context(self.context(kind))
        self.set(kind, opened)
        return opened

    async def open_through(self, last: Kind[T]) -> T:
        """Open what a broker opens and isn't open, down the table to ``last``; the object of ``last``."""
        for kind in KINDS.values():
            await self._open_for_broker(kind)
            if kind is last:
                break
        return self[last]

    async def open_rest(self) -> None:
        """Open the rest of what a broker opens."""
        for kind in KINDS.values():
            await self._open_for_broker(kind)

    async def _open_for_broker(self, kind: Kind[Any]) -> None:
        is_wanted = kind.opened_by == "broker" and kind.name in self._selection.specs
        if is_wanted and kind.name not in self._opened:
            await self.open(kind)
