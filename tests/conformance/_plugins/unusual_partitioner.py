"""Partitioners that keep the contract in ways that nobody expects."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from pydantic import Field

from penstock.errors import InvalidRequestError
from penstock.hookspecs import hookimpl
from penstock.spi import Services, Settings
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec, PartitionLoad
from penstock_conformance.reference._partitioner import murmur2


class _Anywhere:
    """Every record goes anywhere; news are ignored."""

    capabilities = PartitionerCapabilities()

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if partition_count < 1:
            raise InvalidRequestError(f"no partitions: partition_count={partition_count}")
        return self._place(topic, key, size_bytes, partition_count)

    def _place(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        return random.randrange(partition_count)

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        """Of no interest."""


class _InTurn(_Anywhere):
    """From the last partition of a topic to the first; keys by another checksum."""

    capabilities = PartitionerCapabilities(key_affinity=True)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def _place(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None:
            return zlib.crc32(key) * 2654435761 % 2**64 % partition_count
        self._counts[topic] += 1
        return partition_count - 1 - self._counts[topic] % partition_count


class _JavaOnly(_Anywhere):
    """Java's hash, which it doesn't remember, and no claim that equal keys stay together."""

    capabilities = PartitionerCapabilities(java_hash=True)

    def _place(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is None:
            return super()._place(topic, key, size_bytes, partition_count)
        return (murmur2(key) & 0x7FFFFFFF) % partition_count


class _Sticky(_InTurn):
    """Stays for a megabyte, whatever happens to its partition meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._at: dict[str, tuple[int, int]] = {}

    def _place(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None:
            return super()._place(topic, key, size_bytes, partition_count)
        at, used = self._at.get(topic, (0, 2**20))
        if used >= 2**20 or at >= partition_count:
            at, used = super()._place(topic, key, size_bytes, partition_count), 0
        self._at[topic] = at, used + size_bytes
        return at


class _TwoChoices(_Anywhere):
    """Draws two, and takes the less queued; keys are nothing to it."""

    capabilities = PartitionerCapabilities(adaptive=True)

    def __init__(self) -> None:
        self._loads: dict[str, Mapping[int, PartitionLoad]] = {}

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._loads[topic] = dict(loads)

    def _place(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        known = {number: loads.get(number, PartitionLoad()) for number in range(partition_count)}
        fit = [number for number, load in known.items() if load.available] or list(known)
        return min(random.choice(fit), random.choice(fit), key=lambda number: known[number].queued_batches)


class _Shortest(_TwoChoices):
    """Always one of those with the shortest queue: whoever waits gets nothing."""

    def _place(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        known = {number: loads.get(number, PartitionLoad()) for number in range(partition_count)}
        fit = [number for number, load in known.items() if load.available] or list(known)
        shortest = min(known[number].queued_batches for number in fit)
        return random.choice([number for number in fit if known[number].queued_batches == shortest])


WAYS: dict[str, type[_Anywhere]] = {
    "anywhere": _Anywhere,
    "in_turn": _InTurn,
    "java_only": _JavaOnly,
    "sticky": _Sticky,
    "two_choices": _TwoChoices,
    "shortest": _Shortest,
}


class UnusualSettings(Settings):
    """Which of them."""

    way: str = Field(default="anywhere", description="How it is unusual.")


@asynccontextmanager
async def _open(settings: UnusualSettings, services: Services) -> AsyncIterator[_Anywhere]:
    yield WAYS[settings.way]()


@hookimpl
def penstock_register_partitioner() -> PartitionerSpec[UnusualSettings]:
    """Register all of them."""
    return PartitionerSpec(
        name="unusual_partitioner",
        summary="Right, in its own way.",
        settings=UnusualSettings,
        open=_open,
        capabilities=PartitionerCapabilities(),
    )
