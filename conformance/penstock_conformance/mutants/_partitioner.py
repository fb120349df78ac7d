"""Broken partitioners."""

from __future__ import annotations

__all__ = ()

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from penstock.hookspecs import hookimpl
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec, PartitionLoad
from penstock_conformance.mutants._mutant import NAME, SUMMARY, Defective, make, mutant
from penstock_conformance.reference._partitioner import PlainPartitioner
from penstock_conformance.reference._plugin import closing

KIND = "partitioner"


@mutant(KIND, "takes_the_hash_as_signed", "partition_is_in_range")
class TakesTheHashAsSigned(PlainPartitioner):
    """Java's remainder of a negative number is negative."""

    def _of_hash(self, value: int, partition_count: int) -> int:
        signed = value - 2**32 if value & 0x80000000 else value
        return signed % partition_count if signed >= 0 else -(-signed % partition_count)


@mutant(KIND, "counts_from_one", "partition_is_in_range")
class CountsFromOne(PlainPartitioner):
    """Partitions 1 to n."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        return super().choose(topic, key, size_bytes, partition_count) + 1


@mutant(KIND, "sticks_to_a_vanished_partition", "partition_stays_in_range_when_the_count_changes")
class SticksToAVanishedPartition(PlainPartitioner):
    """Doesn't look whether its partition is still there."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is None and topic in self._sticky and self._sticky[topic][1] < 16384:
            partition, used = self._sticky[topic]
            self._sticky[topic] = (partition, used + size_bytes)
            return partition
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "hashes_differently_each_time", "equal_keys_go_together")
class HashesDifferentlyEachTime(PlainPartitioner):
    """A hash with a salt, as Python's own."""

    def __init__(self) -> None:
        super().__init__()
        self._salt = random.getrandbits(31)

    def _of_hash(self, value: int, partition_count: int) -> int:
        return (value ^ self._salt) % partition_count


@mutant(KIND, "never_leaves_its_partition", "keyless_records_spread")
class NeverLeavesItsPartition(PlainPartitioner):
    """Sticky for ever."""

    def _draw(self, topic: str, partition_count: int) -> int:
        return 0


@mutant(
    KIND,
    "ignores_the_load",
    "partitions_that_drain_faster_get_more",
    "unavailable_partitions_get_nothing",
)
class IgnoresTheLoad(PlainPartitioner):
    """Claims to be adaptive."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        """News are for others."""


@mutant(KIND, "accepts_no_partitions", "no_partitions_is_refused")
class AcceptsNoPartitions(PlainPartitioner):
    """Answers 0 for a topic without partitions."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        return super().choose(topic, key, size_bytes, max(partition_count, 1))


@mutant(KIND, "hashes_to_one_partition", "keys_spread")
class HashesToOnePartition(PlainPartitioner):
    """Every key goes with every other."""

    def _of_hash(self, value: int, partition_count: int) -> int:
        return partition_count - 1


@mutant(KIND, "moves_keys_with_the_load", "news_move_no_key")
class MovesKeysWithTheLoad(PlainPartitioner):
    """Prefers an idle partition to the right one."""

    def _of_hash(self, value: int, partition_count: int) -> int:
        return super()._of_hash(value + len(self._loads), partition_count)


@mutant(KIND, "knows_only_its_own_topics", "news_are_accepted_by_all")
class KnowsOnlyItsOwnTopics(PlainPartitioner):
    """Fails on news about a topic that it never saw."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._sticky.__getitem__(topic)
        super().update_load(topic, loads, now_ms)


@mutant(KIND, "gives_up_where_most_are_away", "unavailable_partitions_get_nothing")
class GivesUpWhereMostAreAway(PlainPartitioner):
    """Draws ten times, and takes what comes then."""

    def _draw(self, topic: str, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        for _ in range(10):
            drawn = self._random.randrange(partition_count)
            if loads.get(drawn, PartitionLoad()).available:
                break
        return drawn


class DefectivePartitioner(Defective):
    """Which mutant it is, and the seed of its choices."""

    seed: int | None = Field(default=None, description="Makes the choices repeatable.")


def _make(settings: DefectivePartitioner) -> Any:
    given = () if settings.seed is None else (settings.seed,)
    return make("partitioner", settings.defect, *given)


@hookimpl
def penstock_register_partitioner() -> PartitionerSpec[DefectivePartitioner]:
    """Register the broken partitioners."""
    return PartitionerSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectivePartitioner,
        capabilities=PartitionerCapabilities(key_affinity=True, java_hash=True, adaptive=True),
        open=closing(lambda settings, _: _make(settings)),
    )


@mutant(KIND, "takes_minus_two_for_a_count", "no_partitions_is_refused")
class TakesMinusTwoForACount(PlainPartitioner):
    """Knows 0 and -1 for topics that have no partitions, and makes one of all else."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        count = partition_count if partition_count >= -1 else 1
        return super().choose(topic, key, size_bytes, count)


@mutant(KIND, "hashes_as_python_does", "equal_keys_go_together")
class HashesAsPythonDoes(PlainPartitioner):
    """Each process has a seed of its own for that."""

    @property
    def capabilities(self) -> PartitionerCapabilities:
        return replace(super().capabilities, java_hash=False)

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None and partition_count > 0:
            return self._of_hash(hash(key), partition_count)
        return super().choose(topic, key, size_bytes, partition_count)
