"""Three ways to choose a partition. Pure: randomness is seeded, time comes with the news about partitions."""

from __future__ import annotations

__all__ = ("ConfiguredPartitioner", "PartitionerSettings", "open_partitioner")

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from random import Random
from typing import Literal

from pydantic import Field

from penstock.errors import InvalidRequestError
from penstock.spi import Duration, Services, Settings, Size
from penstock.spi.partitioner import PartitionerCapabilities, PartitionLoad
from penstock_partitioner._murmur2 import murmur2

_UNKNOWN = PartitionLoad()


class PartitionerSettings(Settings):
    """Settings of the partitioner."""

    strategy: Literal["hash", "sticky", "round_robin"] = Field(
        default="hash",
        description="hash: by key, and sticky for records without one; sticky, round_robin: ignore keys.",
    )
    batch_bytes: Size = Field(
        default=16 * 1024, ge=1, description="Bytes that go to a partition before sticky moves on."
    )
    adaptive: bool = Field(
        default=True, description="Whether sticky prefers partitions with shorter queues (KIP-794)."
    )
    availability_timeout: Duration = Field(
        default=0,
        ge=0,
        description="Adaptive: leave out partitions whose oldest batch waits longer than this; 0 never does.",
    )
    seed: int | None = Field(default=None, description="Makes the choices repeatable; random if not given.")


class _Topic(ABC):
    """The state of one topic."""

    __slots__ = ("loads",)

    def __init__(self) -> None:
        self.loads: Mapping[int, PartitionLoad] = {}

    @abstractmethod
    def choose(self, size_bytes: int, partition_count: int) -> int:
        """The partition for a record."""

    @abstractmethod
    def update(self, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        """News about the partitions."""

    def available(self, partition_count: int) -> Sequence[int]:
        """Partitions with a leader; all of them if none has one, since one must be chosen."""
        loads = self.loads
        found = [p for p in range(partition_count) if loads.get(p, _UNKNOWN).available]
        return found or range(partition_count)


class _StickyTopic(_Topic):
    """Uniform sticky partitioning (KIP-794): stay for ``batch_bytes``, then draw the next partition.

    Counting bytes, not batches, is what makes it uniform: a slow partition gets larger batches, but not more
    data. Drawing with a probability that falls with the queue is what takes load off slow brokers.
    """

    __slots__ = (
        "_adaptive", "_batch_bytes", "_partition_count", "_partition", "_produced_bytes", "_random", "_table",
        "_timeout_ms", "_now_ms",
    )  # fmt: skip

    def __init__(self, settings: PartitionerSettings, random: Random) -> None:
        super().__init__()
        self._batch_bytes = settings.batch_bytes
        self._adaptive = settings.adaptive
        self._timeout_ms = settings.availability_timeout
        self._random = random
        self._partition = -1
        self._produced_bytes = 0
        #: What the table was made for; 0 if there is none.
        self._partition_count = 0
        #: Partitions to draw from, and the running sum of their weights.
        self._table: tuple[Sequence[int], list[int]] = ((), [])
        self._now_ms = 0.0

    def choose(self, size_bytes: int, partition_count: int) -> int:
        if partition_count != self._partition_count:
            self._make_table(partition_count)
        if self._partition < 0:
            self._partition = self._draw()
            self._produced_bytes = 0
        partition = self._partition
        self._produced_bytes += size_bytes
        if self._produced_bytes >= self._batch_bytes:
            self._partition = -1
        return partition

    def update(self, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self.loads = dict(loads)
        self._now_ms = now_ms
        if self._partition_count:
            self._make_table(self._partition_count)

    def _make_table(self, partition_count: int) -> None:
        """Weights as in Java's BuiltInPartitioner: longest queue + 1 - queue, so that none gets a zero."""
        self._partition_count = partition_count
        partitions = self.available(partition_count)
        weights = [1] * len(partitions)
        if self._adaptive:
            responsive = [p for p in partitions if self._is_responsive(p)]
            partitions = responsive or partitions
            queues = [self.loads.get(p, _UNKNOWN).queued_batches for p in partitions]
            longest = max(queues)
            weights = [longest + 1 - queue for queue in queues]
        self._table = (partitions, list(accumulate(weights)))
        if self._partition not in partitions:
            self._partition = -1  # gone, or left out: don't finish the batch there

    def _is_responsive(self, partition: int) -> bool:
        since_ms = self.loads.get(partition, _UNKNOWN).waiting_since_ms
        return not self._timeout_ms or since_ms is None or self._now_ms - since_ms <= self._timeout_ms

    def _draw(self) -> int:
        partitions, sums = self._table
        return partitions[bisect_right(sums, self._random.randrange(sums[-1]))]


class _RoundRobinTopic(_Topic):
    """Each record to the next partition that has a leader."""

    __slots__ = ("_next", "_partition_count", "_partitions")

    def __init__(self) -> None:
        super().__init__()
        self._next = 0
        self._partition_count = 0
        self._partitions: Sequence[int] = ()

    def choose(self, size_bytes: int, partition_count: int) -> int:
        if partition_count != self._partition_count:
            self._partition_count = partition_count
            self._partitions = self.available(partition_count)
        partition = self._partitions[self._next % len(self._partitions)]
        self._next += 1
        return partition

    def update(self, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self.loads = dict(loads)
        self._partition_count = 0


class ConfiguredPartitioner:
    """The strategy of the settings, with a state of its own for each topic."""

    def __init__(self, settings: PartitionerSettings) -> None:
        self._settings = settings
        self._by_key = settings.strategy == "hash"
        self._random = Random(settings.seed)
        self._topics: dict[str, _Topic] = {}

    @property
    def capabilities(self) -> PartitionerCapabilities:
        settings = self._settings
        return PartitionerCapabilities(
            key_affinity=self._by_key,
            java_hash=self._by_key,
            adaptive=settings.adaptive and settings.strategy != "round_robin",
        )

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if partition_count < 1:
            raise InvalidRequestError(f"topic has no partitions: topic={topic!r} count={partition_count}")
        if key is not None and self._by_key:
            return (murmur2(key) & 0x7FFF_FFFF) % partition_count
        return (self._topics.get(topic) or self._new(topic)).choose(size_bytes, partition_count)

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        (self._topics.get(topic) or self._new(topic)).update(loads, now_ms)

    def _new(self, topic: str) -> _Topic:
        settings = self._settings
        state: _Topic = (
            _RoundRobinTopic() if settings.strategy == "round_robin" else _StickyTopic(settings, self._random)
        )
        self._topics[topic] = state
        return state


@asynccontextmanager
async def open_partitioner(
    settings: PartitionerSettings, services: Services
) -> AsyncIterator[ConfiguredPartitioner]:
    """A partitioner; it holds nothing that has to be closed."""
    yield ConfiguredPartitioner(settings)
