"""Ids of idempotent producers: each is given out once."""

from __future__ import annotations

__all__ = ("ProducerIds",)


class ProducerIds:
    """Which ids were given out; of the producers themselves partitions know (:mod:`penstock.log.producer_book`)."""

    def __init__(self, next_id: int) -> None:
        #: Every id below this was given out, or passed over.
        self.next_id = next_id

    # -- for the fold ----------------------------------------------------------------------------------------

    def take(self, count: int) -> int:
        """Give out ``count`` ids; the first of them."""
        first = self.next_id
        self.next_id = first + count
        return first
