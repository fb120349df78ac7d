"""The form in which a snapshot stores the image.

MessagePack, one map::

    "version"           that of penstock.metadata.versions
    "index"             of the last entry that is folded into it
    "cluster_id"        name of the cluster
    "controller"        id of the node, -1: none
    "next_stream_id"    and "next_object_id", "next_producer_id": ids below were given out
    "nodes"             map: node id -> map of the fields of NodeState
    "topics"            map: topic id, 16 bytes -> map of the fields of TopicState
    "streams"           map: stream id -> map of the fields of StreamState; its "ranges" are bytes,
                        40 for each range (penstock.metadata.ranges)
    "objects"           map: object id -> map of the fields of ObjectState

All keys are there, in this order. ``version`` stays where it is in all that come; older ones are read as well.
"""

from __future__ import annotations

__all__ = ("ImageData", "upgrade")

from collections import Counter

import msgspec

from penstock.metadata.nodes import NodeState
from penstock.metadata.objects import ObjectState
from penstock.metadata.streams import StreamState
from penstock.metadata.topics import NO_LEADER, TopicState
from penstock.metadata.versions import METADATA_VERSION


class ImageData(msgspec.Struct):
    """The content of a snapshot."""

    version: int = 1
    index: int = 0
    cluster_id: str = ""
    controller: int = -1
    next_stream_id: int = 1
    next_object_id: int = 1
    next_producer_id: int = 1
    nodes: dict[int, NodeState] = {}
    topics: dict[bytes, TopicState] = {}
    streams: dict[int, StreamState] = {}
    objects: dict[int, ObjectState] = {}


def upgrade(data: ImageData) -> None:
    """Bring what an older version wrote into the present form."""
    if data.version < 2:
        live = Counter(
            object_id for stream in data.streams.values() for object_id in stream.ranges.object_ids
        )
        for object_id, held in data.objects.items():
            held.live_ranges = live[object_id]
    if data.version < 3:
        owners = {stream.node_id for stream in data.streams.values()}
        for node in data.nodes.values():
            # what wasn't recorded may hold something
            node.wal_in_use = node.wal_in_use or (not node.wal and node.node_id in owners)
    if data.version < 4:
        _find_leaders(data)
    data.version = METADATA_VERSION


def _find_leaders(data: ImageData) -> None:
    """What the entries before this version say of leaders and controller, as the fold would have it now (I7)."""
    last_epoch = max((node.epoch for node in data.nodes.values()), default=0)
    for topic in data.topics.values():
        topic.leaders = [_leader_of(data, stream_id, last_epoch) for stream_id in topic.log_streams]
    if data.nodes:
        # a node that lost its WAL to a registration has the same epoch
        last = max(
            data.nodes.values(),
            key=lambda node: (node.epoch, not node.wal_taken, node.wal_in_use, node.node_id),
        )
        data.controller = last.node_id


def _leader_of(data: ImageData, stream_id: int, last_epoch: int) -> int:
    """The owner of the log, if it opened it after the last registration of any node, and didn't stop since."""
    stream = data.streams[stream_id]
    node = data.nodes.get(stream.node_id)
    if node is None or not node.wal_in_use or stream.epoch <= last_epoch or stream.epoch < node.wal_since:
        return NO_LEADER
    return node.node_id
