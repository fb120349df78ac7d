"""Deltas: the changes of an entry in the image, by id.

Folding an entry gives these, in order; the image is already as it is after the whole entry when somebody sees them.
So a delta doesn't carry what the image can be asked for, and what it names may be gone again. Whoever keeps a picture
of his own looks up each id that is named: there is no change of the image that isn't told.
"""

from __future__ import annotations

__all__ = (
    "ClusterNamed",
    "ControllerChanged",
    "Delta",
    "IdsGiven",
    "LeadersChanged",
    "NodesChanged",
    "ObjectsChanged",
    "ObjectsRemoved",
    "StreamsAdded",
    "StreamsChanged",
    "StreamsRemoved",
    "TopicAdded",
    "TopicChanged",
    "TopicGrown",
    "TopicRemoved",
)

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec


class Delta(msgspec.Struct, frozen=True):
    """Base of all; the classes are events of :class:`penstock.bus.EventBus`."""


class ClusterNamed(Delta, frozen=True):
    """The cluster has its name."""


class NodesChanged(Delta, frozen=True):
    """Nodes registered, or use another WAL, or none any more, or were fenced."""

    node_ids: Sequence[int]


class ControllerChanged(Delta, frozen=True):
    """Another node decides for the cluster."""


class TopicAdded(Delta, frozen=True):
    """A topic is there, with all its partitions."""

    topic_id: bytes


class TopicGrown(Delta, frozen=True):
    """The partitions from ``first`` on are new."""

    topic_id: bytes
    first: int


class TopicChanged(Delta, frozen=True):
    """Fields of the topic changed that have no delta of their own, as its configs have none."""

    topic_id: bytes


class TopicRemoved(Delta, frozen=True):
    """A topic is gone; what it was called and had is said, as nothing else says it any more."""

    topic_id: bytes
    name: str
    stream_ids: Sequence[int]


class LeadersChanged(Delta, frozen=True):
    """Partitions, by topic id, have another leader, or none, or the same in a new epoch."""

    partitions: Mapping[bytes, Sequence[int]]


class StreamsAdded(Delta, frozen=True):
    """Streams are new: those with ids in [first, end)."""

    first: int
    end: int


class StreamsChanged(Delta, frozen=True):
    """Another start, end, owner or leader epoch, or other ranges."""

    stream_ids: Sequence[int]


class StreamsRemoved(Delta, frozen=True):
    """Streams are gone, with their topic."""

    stream_ids: Sequence[int]


class ObjectsChanged(Delta, frozen=True):
    """Objects were prepared, committed or destroyed, or fewer ranges are in them."""

    object_ids: Sequence[int]


class ObjectsRemoved(Delta, frozen=True):
    """Destroyed objects were forgotten."""

    object_ids: Sequence[int]


class IdsGiven(Delta, frozen=True):
    """Every id of that kind below ``end`` was given out, or passed over."""

    kind: Literal["stream", "object", "producer"]
    end: int
