"""Producers get their ids."""

from __future__ import annotations

__all__ = ("AllocateProducerIds",)

from penstock.metadata.command import Command
from penstock.metadata.deltas import IdsGiven
from penstock.metadata.state import Moment, State


class AllocateProducerIds(Command, tag="pids", frozen=True):
    """Reserve a block of producer ids."""

    node_id: int
    node_epoch: int
    count: int

    def fold(self, image: State, at: Moment) -> int:
        """The first of them."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        first = image.producer_ids.take(self.count)
        at.tell(IdsGiven("producer", image.producer_ids.next_id))
        return first
