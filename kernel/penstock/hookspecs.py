"""The hooks: eight that register a plugin, and the observers. Each is documented in docs/hooks.md.

Hooks make, objects do: they are called at start-up and at life-cycle moments, never per record. All are
synchronous; an observer must return quickly and must not block (hand work to a thread or task of its own).
An error in an observer is logged with the plugin's name and changes nothing else.
"""

from __future__ import annotations

__all__ = ("HOOK_NAMESPACE", "hookimpl", "hookspec")

from typing import Any

import pluggy

from penstock.spi.allocator import AllocatorSpec
from penstock.spi.block_cache import BlockCacheSpec
from penstock.spi.events import (
    BrokerStarted,
    BrokerStopping,
    ObjectsDestroyed,
    PartitionClosed,
    PartitionOpened,
    RecoveryFinished,
    TopicCreated,
    TopicDeleted,
    UploadCommitted,
    WalDegraded,
    WalRestored,
)
from penstock.spi.lake import LakeCompactorSpec
from penstock.spi.log_cache import LogCacheSpec
from penstock.spi.metadata_log import MetadataLogSpec
from penstock.spi.object_store import ObjectStoreSpec
from penstock.spi.partitioner import PartitionerSpec
from penstock.spi.wal import WalSpec

HOOK_NAMESPACE = "penstock"

hookspec = pluggy.HookspecMarker(HOOK_NAMESPACE)
hookimpl = pluggy.HookimplMarker(HOOK_NAMESPACE)


@hookspec
def penstock_register_object_store() -> ObjectStoreSpec[Any]:
    """Register an object store."""


@hookspec
def penstock_register_wal() -> WalSpec[Any]:
    """Register a write-ahead log."""


@hookspec
def penstock_register_log_cache() -> LogCacheSpec[Any]:
    """Register a log cache."""


@hookspec
def penstock_register_block_cache() -> BlockCacheSpec[Any]:
    """Register a block cache."""


@hookspec
def penstock_register_allocator() -> AllocatorSpec[Any]:
    """Register an allocator."""


@hookspec
def penstock_register_partitioner() -> PartitionerSpec[Any]:
    """Register a partitioner."""


@hookspec
def penstock_register_metadata_log() -> MetadataLogSpec[Any]:
    """Register a metadata log."""


@hookspec
def penstock_register_lake_compactor() -> LakeCompactorSpec[Any]:
    """Register a lake compactor."""


@hookspec
def penstock_on_broker_started(event: BrokerStarted) -> None:
    """The broker accepts clients."""


@hookspec
def penstock_on_broker_stopping(event: BrokerStopping) -> None:
    """The broker begins to drain."""


@hookspec
def penstock_on_topic_created(event: TopicCreated) -> None:
    """A topic was created."""


@hookspec
def penstock_on_topic_deleted(event: TopicDeleted) -> None:
    """A topic was deleted."""


@hookspec
def penstock_on_partition_opened(event: PartitionOpened) -> None:
    """This broker began to lead a partition."""


@hookspec
def penstock_on_partition_closed(event: PartitionClosed) -> None:
    """This broker ceased to lead a partition."""


@hookspec
def penstock_on_upload_committed(event: UploadCommitted) -> None:
    """A block of the log cache was uploaded and committed."""


@hookspec
def penstock_on_objects_destroyed(event: ObjectsDestroyed) -> None:
    """Unreferenced objects were deleted from the object store."""


@hookspec
def penstock_on_recovery_finished(event: RecoveryFinished) -> None:
    """The write-ahead log of an earlier run was replayed."""


@hookspec
def penstock_on_wal_degraded(event: WalDegraded) -> None:
    """The write-ahead log began to do with less than its settings promise."""


@hookspec
def penstock_on_wal_restored(event: WalRestored) -> None:
    """The write-ahead log keeps again what its settings promise."""
