"""Partitioner: murmur2 key hash as in Java, uniform sticky as in KIP-794, round robin."""

from __future__ import annotations

__all__ = ("PartitionerSettings", "penstock_register_partitioner")

from penstock.hookspecs import hookimpl
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec
from penstock_partitioner._partitioner import PartitionerSettings, open_partitioner


@hookimpl
def penstock_register_partitioner() -> PartitionerSpec[PartitionerSettings]:
    """Register the partitioner; the capabilities are those of its default strategy."""
    return PartitionerSpec(
        name="partitioner",
        summary="murmur2 key hash as in Java, uniform sticky (KIP-794) without a key, or round robin",
        settings=PartitionerSettings,
        capabilities=PartitionerCapabilities(key_affinity=True, java_hash=True, adaptive=True),
        open=open_partitioner,
    )
