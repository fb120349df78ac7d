"""The registration of a plugin (its spec), and the services that the kernel hands to it when it is opened."""

from __future__ import annotations

__all__ = (
    "SPI_VERSION",
    "SPI_VERSION_MIN",
    "Buffer",
    "ChosenPlugin",
    "FencedWords",
    "PluginSizes",
    "PluginSpec",
    "Plugins",
    "Services",
    "SettingSize",
)

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from penstock.errors import InvariantError
from penstock.files import ACCESSES, Access
from penstock.spi.buffers import Buffer
from penstock.spi.memory import Allocator
from penstock.spi.objects import ObjectStore
from penstock.spi.settings import PluginTable, Settings

SPI_VERSION = 2
#: The oldest version that this Penstock speaks. A plugin of version 1 is taken as it is: what version 2 adds has
#: defaults, and what it demands is looked for (RFC 0021).
SPI_VERSION_MIN = 1

S = TypeVar("S", bound=Settings)
T = TypeVar("T")


class FencedWords(Protocol):
    """Small facts of a plugin, kept in metadata for its node: by whom it is owned decides who may change them.

    A word is a text of up to 1 KiB under a name. Each plugin has its own, by the key of its table and its name; a
    node keeps 16 of all its plugins. Those of a WAL go to the node that takes the WAL over.
    """

    async def read(self, name: str) -> str:
        """The word; empty if there is none. It is that of ``Services.node_id``, whoever asks.

        Raises UnavailableError, CorruptError if metadata can't be read.
        """

    async def write(self, name: str, value: str, expected: str) -> int:
        """Put ``value`` where ``expected`` is now (empty: nothing), and return when that is durable.

        The result is a new epoch, above all that were given out before: the index of the metadata entry. Raises
        ConflictError if another word is there; FencedError once a newer owner registered, so a fenced one changes
        nothing any more; InvalidRequestError if the bounds are passed, or for a reader; ClosedError at the end. An
        outage of the metadata log is waited for.
        """


class Plugins(Protocol):
    """Opens plugins for a plugin; asked through ``Services.open_plugin`` and ``Services.choose_plugin``."""

    def choose(
        self,
        services: Services,
        kind: type[PluginSpec[Any, T]],
        table: PluginTable | Mapping[str, Any],
        keys: Mapping[str, Any],
    ) -> AbstractAsyncContextManager[ChosenPlugin[T]]:
        """See ``Services.choose_plugin``."""

    def open(
        self,
        services: Services,
        kind: type[PluginSpec[Any, T]],
        table: PluginTable | Mapping[str, Any],
        keys: Mapping[str, Any],
    ) -> AbstractAsyncContextManager[T]:
        """See ``Services.open_plugin``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that a plugin gets when it is opened; ``penstock.spi.kinds`` has the order of openings.

    ``node_id``/``epoch`` identify the owner: epochs come from the metadata log and strictly grow, and a
    higher epoch of the same ``node_id`` is a newer owner. ``cluster_id`` names the cluster.
    ``data_dir`` is where relative paths in settings start. ``allocator`` is there for every kind but the
    allocator itself; ``object_store`` for kinds opened after it (metadata log, WAL); in a broker, requests to it take
    their turn as those of this kind do (``penstock.spi.traffic``). ``read_only`` says that somebody only looks, as
    ``penstock verify`` does, perhaps at a medium that can't be written: open without making or changing anything; the
    object's methods that write won't be called. ``access`` are the modes of local
    directories and files that hold data; make them with ``penstock.files``. They are the same for every caller of
    a plugin's functions, ``identify``, ``read`` and ``describe`` too, but for what the caller's purpose decides:
    who only looks has epoch 0, and may read words but not write them.
    """

    node_id: int
    epoch: int
    cluster_id: str
    data_dir: Path
    allocator: Allocator | None = None
    object_store: ObjectStore | None = None
    read_only: bool = False
    access: Access = ACCESSES["owner"]
    #: Monotonic seconds; injected so that tests can turn the clock.
    clock: Callable[[], float]
    #: The plugin's words in metadata; there for kinds opened after the metadata log (WAL, caches).
    words: FencedWords | None = None
    #: Behind ``open_plugin``; None where nobody opens plugins for plugins.
    plugins: Plugins | None = None

    def open_plugin(
        self,
        kind: type[PluginSpec[Any, T]],
        table: PluginTable | Mapping[str, Any],
        *,
        epoch: int | None = None,
        keys: Mapping[str, Any] = MappingProxyType({}),
    ) -> AbstractAsyncContextManager[T]:
        """Open another plugin: ``async with services.open_plugin(WalSpec, settings.replicas[0]) as log``.

        ``kind`` is the class of that kind's specs. ``table`` is a value of the plugin's own settings
        (``penstock.spi.settings.PluginTable``), or keys that the plugin makes itself, ``plugin`` among them; ``keys``
        take the place of its. It is found and checked as a plugin that the configuration selects: settings, versions,
        the capabilities that it needs. It gets these services, of ``epoch`` if that is given. If it works in the
        object store and its table has a table ``object_store``, that store is opened first, and takes the place of
        the broker's. What is open is told in the broker's statistics under the key of its table.

        Enter and leave it in one task. Raises ConfigError, PluginError, CapabilityError, and what ``open`` of the
        other plugin raises, with the key of its table.
        """
        return self._plugins.open(self._of(epoch), kind, table, keys)

    def choose_plugin(
        self,
        kind: type[PluginSpec[Any, T]],
        table: PluginTable | Mapping[str, Any],
        *,
        epoch: int | None = None,
        keys: Mapping[str, Any] = MappingProxyType({}),
    ) -> AbstractAsyncContextManager[ChosenPlugin[T]]:
        """As :meth:`open_plugin`, but only get ready: for functions of its spec beside ``open``, such as ``read``."""
        return self._plugins.choose(self._of(epoch), kind, table, keys)

    def _of(self, epoch: int | None) -> Services:
        return self if epoch is None else replace(self, epoch=epoch)

    @property
    def _plugins(self) -> Plugins:
        if self.plugins is None:
            raise InvariantError(
                "these services open no plugins, the program has to give them Services.plugins"
            )
        return self.plugins


class SettingSize(NamedTuple):
    """Bytes that follow from a plugin's settings, and which setting to change for others."""

    size: int
    #: The setting that decides, of those that have a part in it. It is ``ratio`` times the size: 4 for ``capacity``
    #: where an entry takes a quarter of it, 1/2**20 for a number of buffers of 1 MiB each.
    setting: str
    ratio: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSizes:
    """Sizes of a plugin, once it is open, that must fit the rest of a broker; None: nothing must, or no bound."""

    #: The largest entry of a log.
    entry: SettingSize | None = None
    #: What a cache holds.
    capacity: SettingSize | None = None
    #: What it charges to the allocator as long as it is open.
    memory: SettingSize | None = None


def _no_keys(settings: Settings) -> Sequence[str]:
    """The plugin keeps nothing in the object store."""
    return ()


def _no_sizes(settings: Settings) -> PluginSizes:
    """Nothing of the plugin must fit anything, or it tells once it is open."""
    return PluginSizes()


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSpec(Generic[S, T]):
    """The registration of one plugin; each kind has a subclass (``penstock.spi.kinds`` lists them).

    ``open(settings, services)`` returns an async context manager that yields the opened object. It is
    entered once; leaving it, at its end or by an error, closes the object, ends its tasks and threads, and answers
    every waiter; the error comes out.
    ``requires`` names capabilities of the selected object store that this plugin can't do without
    (for instance ``{"put_if_absent"}``); the kernel refuses other combinations at start.
    """

    kind: ClassVar[str]

    name: str
    summary: str
    settings: type[S]
    capabilities: Any
    open: Callable[[S, Services], AbstractAsyncContextManager[T]]
    requires: frozenset[str] = field(default=frozenset())
    version: str = ""
    spi_version: int = SPI_VERSION
    #: Tells before anything is opened what must fit other settings, so that ``penstock config check`` refuses what
    #: doesn't (``penstock.limits``).
    sizes: Callable[[S], PluginSizes] = _no_sizes
    #: The beginnings of all keys that the plugin keeps in the broker's object store. One that is the beginning of
    #: another plugin's, or the other way round, is refused, and so is the kernel's (``penstock.spi.object_store``).
    key_prefixes: Callable[[S], Sequence[str]] = _no_keys

    def fault(self) -> str:
        """The contradiction within the spec, one sentence without the plugin's name; empty if there is none."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenPlugin(Generic[T]):
    """A plugin that another one chose, and what its functions are called with: ``spec.read(settings, services)``."""

    #: That of its table: ``wal.replicas[1]``.
    key: str
    spec: PluginSpec[Any, T]
    settings: Settings
    services: Services
    #: Opens it, as ``Services.open_plugin`` does.
    open: Callable[[], AbstractAsyncContextManager[T]]
