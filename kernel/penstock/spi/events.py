"""The events that observers are called with: one frozen class per life-cycle event."""

from __future__ import annotations

__all__ = (
    "BrokerStarted",
    "BrokerStopping",
    "ObjectsDestroyed",
    "PartitionClosed",
    "PartitionOpened",
    "RecoveryFinished",
    "TopicCreated",
    "TopicDeleted",
    "UploadCommitted",
    "WalDegraded",
    "WalRestored",
)

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStarted:
    """The broker accepts clients. ``plugins`` maps each kind to the selected plugin's name."""

    node_id: int
    epoch: int
    cluster_id: str
    bootstrap_servers: str
    plugins: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStopping:
    """The broker stops taking requests and begins to drain."""

    node_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicCreated:
    """A topic was created; ``topic_id`` is its UUID as text."""

    name: str
    topic_id: str
    partition_count: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDeleted:
    """A topic was deleted."""

    name: str
    topic_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionOpened:
    """This broker leads the partition, offsets [start_offset, end_offset)."""

    topic: str
    partition: int
    leader_epoch: int
    start_offset: int
    end_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionClosed:
    """This broker no longer leads the partition."""

    topic: str
    partition: int
    end_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCommitted:
    """A block of the log cache is in the object store and committed to metadata."""

    object_ids: tuple[int, ...]
    stream_count: int
    payload_bytes: int
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectsDestroyed:
    """Objects that nothing refers to any more were deleted from the store.

    An id comes again if a put of it landed after its deletion, and the orphan sweep deleted what landed.
    """

    object_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFinished:
    """The WAL of an earlier run was replayed."""

    entries: int
    recovered_bytes: int
    skipped_entries: int
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WalDegraded:
    """The write-ahead log goes on with less than its settings promise; ``reason`` is one sentence."""

    location: str
    durability_domain: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WalRestored:
    """The write-ahead log keeps again what its settings promise."""

    location: str
    durability_domain: str
