"""Object store: the contract, which is written down in :mod:`penstock.spi.objects`, and the registration of one.

The contract is a module of its own since the services that every registration speaks of name it.
"""

from __future__ import annotations

__all__ = (
    "AppendableStore",
    "MultipartUpload",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreCapabilities",
    "ObjectStoreSpec",
    "ObjectStoreStatistics",
    "RESERVED_PREFIXES",
)

from dataclasses import dataclass
from typing import ClassVar

from penstock.spi.objects import (
    RESERVED_PREFIXES,
    AppendableStore,
    MultipartUpload,
    ObjectInfo,
    ObjectStore,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import PluginSpec, S


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStoreSpec(PluginSpec[S, ObjectStore]):
    """Registration of an object store."""

    kind: ClassVar[str] = "object_store"
    capabilities: ObjectStoreCapabilities
