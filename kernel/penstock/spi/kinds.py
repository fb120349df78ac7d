"""The kinds of plugins, one row each, in the order in which they are opened.

Everything that deals with all kinds goes by this table: the sections of the configuration, their defaults, the
template and the reference; which spec a registering hook must return; the order in which a broker opens plugins, and
what it tells of them; the options of the conformance suite; the tables in docs. So a new kind is a row here, its
contract (a module beside this one), its hook (``penstock_register_<kind>`` in :mod:`penstock.hookspecs`) and its
clauses (``penstock_conformance.test_<kind>``).
"""

from __future__ import annotations

__all__ = (
    "ALLOCATOR",
    "BLOCK_CACHE",
    "KINDS",
    "LAKE_COMPACTOR",
    "LOG_CACHE",
    "METADATA_LOG",
    "OBJECT_STORE",
    "PARTITIONER",
    "REGISTER",
    "SERVICES",
    "WAL",
    "Kind",
)

from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar

from penstock.spi.allocator import Allocator, AllocatorSpec
from penstock.spi.block_cache import BlockCache, BlockCacheSpec
from penstock.spi.lake import LakeCompactor, LakeCompactorSpec
from penstock.spi.log_cache import LogCache, LogCacheSpec
from penstock.spi.metadata_log import MetadataLog, MetadataLogSpec
from penstock.spi.object_store import ObjectStore, ObjectStoreSpec
from penstock.spi.partitioner import Partitioner, PartitionerSpec
from penstock.spi.plugin import PluginSpec, Services
from penstock.spi.traffic import Traffic
from penstock.spi.wal import WalSpec, WriteAheadLog

T = TypeVar("T")

#: What the name of each registering hook begins with; the kind follows.
REGISTER = "penstock_register_"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind(Generic[T]):
    """A kind of plugins; ``T`` is its contract."""

    #: What a plugin of this kind registers. It knows the kind's name.
    spec: type[PluginSpec[Any, T]]
    #: What the opened object keeps.
    contract: type[object]
    #: The plugin that is taken when the configuration names none; empty: none is, and the broker does without.
    default: str
    #: What the kind is for, one sentence.
    meaning: str
    #: Kinds that must be open before: they are handed over in ``Services``, or tell what is handed over.
    needs: tuple[Kind[Any], ...] = ()
    #: Who opens it: a broker for its own life, or a client of it, for one producer.
    opened_by: Literal["broker", "client"] = "broker"
    #: The broker's statistics have a part of this name: what the opened object's ``statistics()`` returns.
    statistics: bool = True
    #: Of which class its requests to the object store are.
    traffic: Traffic = Traffic.COMPACTION

    @property
    def name(self) -> str:
        """Lowercase, with underscores: the section of the configuration, and the end of the hook's name."""
        return self.spec.kind

    @property
    def hook(self) -> str:
        """The hook that registers a plugin of this kind."""
        return REGISTER + self.name

    @property
    def clauses(self) -> str:
        """The module of the conformance suite that holds plugins of this kind against the contract."""
        return f"penstock_conformance.test_{self.name}"

    @property
    def is_optional(self) -> bool:
        """Whether a broker does without a plugin of this kind unless the configuration names one."""
        return not self.default

    @property
    def has_place(self) -> bool:
        """Whether the opened object says where its data are."""
        return hasattr(self.contract, "location")


ALLOCATOR = Kind(
    spec=AllocatorSpec,
    contract=Allocator,
    default="allocator_sequential",
    meaning="The account of the memory that payload takes.",
    statistics=False,  # told as memory_limit_bytes, memory_used_bytes and memory
)
OBJECT_STORE = Kind(
    spec=ObjectStoreSpec,
    contract=ObjectStore,
    default="object_store_fsspec",
    meaning="Where objects are kept: records, and with metadata_object the metadata.",
    needs=(ALLOCATOR,),
)
METADATA_LOG = Kind(
    spec=MetadataLogSpec,
    contract=MetadataLog,
    default="metadata_object",
    meaning="The log that all metadata of the cluster is in.",
    needs=(ALLOCATOR, OBJECT_STORE),
    statistics=False,  # told with the metadata service that writes it
    traffic=Traffic.WAL,
)
WAL = Kind(
    spec=WalSpec,
    contract=WriteAheadLog,
    default="wal_block",
    meaning="The write-ahead log that makes records durable before they are acknowledged.",
    needs=(ALLOCATOR, OBJECT_STORE, METADATA_LOG),  # metadata give the epoch that fences older owners
    traffic=Traffic.WAL,
)
LOG_CACHE = Kind(
    spec=LogCacheSpec,
    contract=LogCache,
    default="cache_fifo",
    meaning="Records since the last upload.",
    needs=(ALLOCATOR,),
)
BLOCK_CACHE = Kind(
    spec=BlockCacheSpec,
    contract=BlockCache,
    default="cache_lru",
    meaning="Blocks read back from objects.",
    needs=(ALLOCATOR,),
)
LAKE_COMPACTOR = Kind(
    spec=LakeCompactorSpec,
    contract=LakeCompactor,
    default="",
    meaning="Makes tables of the topics that want one; without it there are none.",
    needs=(ALLOCATOR,),
    statistics=False,  # told by the kernel, which knows lag and progress: penstock.lake
    traffic=Traffic.LAKE,
)
PARTITIONER = Kind(
    spec=PartitionerSpec,
    contract=Partitioner,
    default="partitioner",
    meaning="Chooses partitions for records that come without one.",
    opened_by="client",
    statistics=False,
)

_ROWS: tuple[Kind[Any], ...] = (
    ALLOCATOR,
    OBJECT_STORE,
    METADATA_LOG,
    WAL,
    LOG_CACHE,
    BLOCK_CACHE,
    LAKE_COMPACTOR,
    PARTITIONER,
)

#: By name, in opening order.
KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in _ROWS}

#: Those whose object is handed to kinds that are opened after it.
SERVICES = tuple(name for name in KINDS if name in {item.name for item in fields(Services)})
