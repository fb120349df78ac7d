"""The bound on the partitions of all topics together, whichever way they come.

Long values of topics' configs take as much memory: they count as the partitions that would.
"""

from __future__ import annotations

__all__ = ("PartitionBound",)

from collections.abc import Callable

from penstock.log.errors import KafkaError
from penstock.wire.error_codes import ErrorCode


class PartitionBound:
    """``count`` says how many there are; those in the making are reserved here, so that no two share a place.

    What is reserved for a topic is given back in the moment in which ``count`` has it: counted twice while it is
    being opened, it would have others refused for whom there is room.
    """

    def __init__(self, partitions_max: int, count: Callable[[], int]) -> None:
        self._partitions_max = partitions_max
        self._count = count
        self._reserved: dict[bytes, int] = {}
        self._reserved_sum = 0

    def check(self, partitions: int, beside: int = 0) -> None:
        """Raises KafkaError POLICY_VIOLATION, which no client retries, unless there are places for so many.

        ``beside`` more count as if they were there.
        """
        count = self._count() + self._reserved_sum + beside
        if count + partitions > self._partitions_max:
            raise KafkaError(
                ErrorCode.POLICY_VIOLATION,
                "too many partitions, delete topics or raise topics.partitions_max: "
                f"partitions={count} wanted={partitions} partitions_max={self._partitions_max}",
            )

    def reserve(self, topic_id: bytes, partitions: int) -> None:
        """Take places, until ``release``. Raises what ``check`` raises."""
        self.check(partitions)
        self._reserved[topic_id] = partitions
        self._reserved_sum += partitions

    def release(self, topic_id: bytes) -> None:
        """Give back what is reserved for a topic, if anything: it is made and counted now, or never will be."""
        self._reserved_sum -= self._reserved.pop(topic_id, 0)
