"""Murmur2 over the key, or a random partition that changes every 16 KiB, weighted by queue lengths."""

from __future__ import annotations

__all__ = ("PlainPartitioner", "murmur2")

import random
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from penstock.errors import InvalidRequestError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec, PartitionLoad
from penstock.spi.plugin import Services

_CAPABILITIES = PartitionerCapabilities(key_affinity=True, java_hash=True, adaptive=True)
_STICKY_BYTES = 16384
_MASK = 0xFFFFFFFF
_NO_NEWS = PartitionLoad()


def murmur2(data: bytes) -> int:
    """The hash of Kafka's default partitioner, as an unsigned 32-bit integer."""
    m, h = 0x5BD1E995, 0x9747B28C ^ len(data)
    for part in struct.unpack_from(f"<{len(data) // 4}I", data):
        k = part * m & _MASK
        h = (h * m & _MASK) ^ ((k ^ k >> 24) * m & _MASK)
    tail = data[len(data) & ~3 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & _MASK
    h = (h ^ h >> 13) * m & _MASK
    return h ^ h >> 15


class PlainPartitioner:
    """See ``penstock.spi.partitioner.Partitioner``."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._sticky: dict[str, tuple[int, int]] = {}
        self._loads: dict[str, Mapping[int, PartitionLoad]] = {}

    @property
    def capabilities(self) -> PartitionerCapabilities:
        return _CAPABILITIES

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if partition_count < 1:
            raise InvalidRequestError(
                f"a topic has at least one partition: partition_count={partition_count}"
            )
        if key is not None:
            return self._of_hash(murmur2(key), partition_count)
        partition, used = self._sticky.get(topic, (-1, 0))
        if not 0 <= partition < partition_count or used >= _STICKY_BYTES:
            partition, used = self._draw(topic, partition_count), 0
        self._sticky[topic] = (partition, used + size_bytes)
        return partition

    def _of_hash(self, value: int, partition_count: int) -> int:
        return (value & 0x7FFFFFFF) % partition_count

    def _draw(self, topic: str, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        queues = [loads.get(partition, _NO_NEWS) for partition in range(partition_count)]
        longest = max(load.queued_batches for load in queues)
        weights = [longest + 1 - load.queued_batches if load.available else 0 for load in queues]
        if not any(weights):
            weights = [1] * partition_count
        return self._random.choices(range(partition_count), weights)[0]

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._loads[topic] = dict(loads)


class PartitionerSettings(Settings):
    """Nothing to set."""


@asynccontextmanager
async def _open(settings: PartitionerSettings, services: Services) -> AsyncIterator[PlainPartitioner]:
    yield PlainPartitioner()


@hookimpl
def penstock_register_partitioner() -> PartitionerSpec[PartitionerSettings]:
    """Register the plain partitioner."""
    return PartitionerSpec(
        name="reference",
        summary="Java's hash of the key; without one, partitions by turns, the less queued the likelier.",
        settings=PartitionerSettings,
        capabilities=_CAPABILITIES,
        open=_open,
    )
