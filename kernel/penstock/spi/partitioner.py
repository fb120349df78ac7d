"""Partitioner: chooses a partition for a record that comes without one."""

from __future__ import annotations

__all__ = ("PartitionLoad", "Partitioner", "PartitionerCapabilities", "PartitionerSpec")

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from penstock.spi.plugin import PluginSpec, S


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionerCapabilities:
    """What a partitioner promises."""

    #: Records with equal keys go to equal partitions while the partition count stays.
    key_affinity: bool = False
    #: A key goes where the Java client of Kafka sends it: ``(murmur2(key) & 0x7fffffff) % partition_count``, of the
    #: key's bytes as they are. So producers of both kinds can write to one topic.
    java_hash: bool = False
    #: Uses ``update_load`` to prefer partitions that drain faster (KIP-794).
    adaptive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLoad:
    """What the producer knows of one partition."""

    #: Batches waiting to be sent.
    queued_batches: int = 0
    #: False while the partition has no reachable leader.
    available: bool = True
    #: Monotonic ms at which the oldest waiting batch became ready; None if none waits.
    waiting_since_ms: float | None = None


class Partitioner(Protocol):
    """The contract of a partitioner. Pure and synchronous; time and randomness come from outside."""

    @property
    def capabilities(self) -> PartitionerCapabilities:
        """What this instance promises."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        """The partition, 0 <= p < ``partition_count``, for a record of ``size_bytes`` (key, value, headers).

        Records without a key get to all partitions of their topic over time, whatever is chosen for other topics, or
        for keys with ``key_affinity``, in between. Then many keys leave no partition empty, either.
        Raises InvalidRequestError if ``partition_count`` < 1.
        """

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        """News about the partitions of ``topic``; ignored by partitioners that aren't adaptive.

        They take the place of those told of this topic before, whatever ``now_ms`` is, and say nothing of others. Of
        a partition that isn't among them nothing is known: it is chosen as if nobody had ever told of it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionerSpec(PluginSpec[S, Partitioner]):
    """Registration of a partitioner. Its settings may have ``seed`` for repeatable choices."""

    kind: ClassVar[str] = "partitioner"
    capabilities: PartitionerCapabilities
