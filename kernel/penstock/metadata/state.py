"""The parts of the image: a table per domain, and the moment at which a command changes them."""

from __future__ import annotations

__all__ = ("Moment", "State")

from penstock.metadata.deltas import Delta
from penstock.metadata.nodes import Nodes
from penstock.metadata.objects import Objects
from penstock.metadata.producer_ids import ProducerIds
from penstock.metadata.stored import ImageData
from penstock.metadata.streams import Streams
from penstock.metadata.topics import Topics


class State:
    """The image without its fold: commands ask it, and change it through the helpers of the tables."""

    def __init__(self, data: ImageData) -> None:
        #: Index of the last folded entry.
        self.index = data.index
        #: The cluster's name; empty before the log was formatted.
        self.cluster_id = data.cluster_id
        #: The node that decides for the cluster: the one that registered last; -1 before the first did.
        self.controller = data.controller
        self.nodes = Nodes(data.nodes)
        self.topics = Topics(data.topics)
        self.streams = Streams(data.streams, data.next_stream_id)
        self.objects = Objects(data.objects, data.next_object_id)
        self.producer_ids = ProducerIds(data.next_producer_id)


class Moment:
    """The entry that is being folded, and what it changed so far."""

    __slots__ = ("deltas", "index", "now_ms", "rules")

    def __init__(self, index: int, now_ms: int, rules: int) -> None:
        self.index = index
        #: Wall clock of the writer.
        self.now_ms = now_ms
        #: Version of the entry: the rules that decide on it.
        self.rules = rules
        self.deltas: list[Delta] = []

    def tell(self, delta: Delta) -> None:
        """Something has changed."""
        self.deltas.append(delta)
