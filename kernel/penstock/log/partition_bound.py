"""The bound on the partitions of all topics together, whichever way they come."""

from __future__ import annotations

__all__ = ("PartitionBound",)

from collections.abc import Callable

from penstock.log.errors import KafkaError
from penstock.wire.error_codes import ErrorCode


class PartitionBound:
    """``count`` says how many there are; those in the making are reserved here, so that no two share a place."""

    def __init__(self, partitions_max: int, count: Callable[[], int]) -> None:
        self._partitions_max = partitions_max
        self._count = count
        self._reserved = 0

    def reserve(self, partitions: int) -> None:
        """Take places, until ``release``. Raises KafkaError POLICY_VIOLATION, which no client retries."""
        count = self._count() + self._reserved
        if count + partitions > self._partitions_max:
            raise KafkaError(
                ErrorCode.POLICY_VIOLATION,
                "too many partitions, delete topics or raise topics.partitions_max: "
                f"partitions={count} wanted={partitions} partitions_max={self._partitions_max}",
            )
        self._reserved += partitions

    def release(self, partitions: int) -> None:
        """Give a reservation back: the partitions are made and counted now, or never will be."""
        self._reserved -= partitions
        assert self._reserved >= 0, "what is released was reserved"
