"""The registration of a plugin (its spec), and the services that the kernel hands to it when it is opened."""

from __future__ import annotations

__all__ = ("SPI_VERSION", "SPI_VERSION_MIN", "Buffer", "PluginSizes", "PluginSpec", "SettingSize", "Services")

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from penstock.files import ACCESSES, Access
from penstock.spi.settings import Settings

if TYPE_CHECKING:
    from penstock.spi.allocator import Allocator
    from penstock.spi.object_store import ObjectStore

SPI_VERSION = 2
#: The oldest version that this Penstock speaks. A plugin of version 1 is taken as it is: what version 2 adds has
#: defaults, and what it demands is looked for (RFC 0021).
SPI_VERSION_MIN = 1

#: Bytes of any kind. A plugin must not keep a writable buffer past the call that it got it in, unless the
#: contract of that method says so.
Buffer: TypeAlias = bytes | bytearray | memoryview

S = TypeVar("S", bound=Settings)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that a plugin gets when it is opened; ``penstock.spi.kinds`` has the order of openings.

    ``node_id``/``epoch`` identify the owner: epochs come from the metadata log and strictly grow, and a
    higher epoch of the same ``node_id`` is a newer owner. ``cluster_id`` names the cluster.
    ``data_dir`` is where relative paths in settings start. ``allocator`` is there for every kind but the
    allocator itself; ``object_store`` for kinds opened after it (metadata log, WAL). ``read_only`` says that
    somebody only looks, as ``penstock verify`` does, perhaps at a medium that can't be written: open without
    making or changing anything; the object's methods that write won't be called. ``access`` are the modes of local
    directories and files that hold data; make them with ``penstock.files``.
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
    entered once; leaving it closes the object, ends its tasks and threads, and answers every waiter.
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
