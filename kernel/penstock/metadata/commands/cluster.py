"""Commands about the cluster as a whole."""

from __future__ import annotations

__all__ = ("FormatCluster", "SkipLost")

from penstock.errors import AlreadyExistsError
from penstock.metadata.command import Command
from penstock.metadata.deltas import ClusterNamed, IdsGiven
from penstock.metadata.state import Moment, State


class FormatCluster(Command, tag="format", frozen=True):
    """Name the cluster, once; the first entry of every log."""

    cluster_id: str

    def fold(self, image: State, at: Moment) -> str:
        """The name."""
        if image.cluster_id:
            raise AlreadyExistsError(f"the cluster is formatted already: cluster_id={image.cluster_id}")
        image.cluster_id = self.cluster_id
        at.tell(ClusterNamed())
        return self.cluster_id


class SkipLost(Command, tag="skip", frozen=True):
    """Entries were lost and given up: pass over the ids that they may have given out."""

    #: No object gets an id below this.
    next_object_id: int
    #: So many ids of streams, and of producers, are passed over.
    count: int

    def fold(self, image: State, at: Moment) -> None:
        """Nothing is refused."""
        image.objects.next_id = max(image.objects.next_id, self.next_object_id)
        image.streams.next_id += self.count
        image.producer_ids.take(self.count)
        at.tell(IdsGiven("object", image.objects.next_id))
        at.tell(IdsGiven("stream", image.streams.next_id))
        at.tell(IdsGiven("producer", image.producer_ids.next_id))
