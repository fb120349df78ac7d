"""Allocator: the contract, which is written down in :mod:`penstock.spi.memory`, and the registration of one.

The contract is a module of its own since the services that every registration speaks of name it.
"""

from __future__ import annotations

__all__ = (
    "Allocation",
    "Allocator",
    "AllocatorCapabilities",
    "AllocatorSpec",
    "AllocatorStatistics",
    "Charge",
    "Reservation",
)

from dataclasses import dataclass
from typing import ClassVar

from penstock.spi.memory import (
    Allocation,
    Allocator,
    AllocatorCapabilities,
    AllocatorStatistics,
    Charge,
    Reservation,
)
from penstock.spi.plugin import PluginSpec, S


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSpec(PluginSpec[S, Allocator]):
    """Registration of an allocator. Its settings have the field ``limit`` (bytes)."""

    kind: ClassVar[str] = "allocator"
    capabilities: AllocatorCapabilities
