"""What a snapshot of the image holds.

MessagePack, a map with these fields in this order; rows are maps too, and a stream's ranges are bytes
(:mod:`penstock.metadata.ranges`). ``version`` stays where it is in all that come. Versions:

- 2: ranges are bytes, an object's are counted instead of listed, nodes say which WAL they use.
- 3: nodes say since when, and for every WAL, also one that tells no identity.

Older ones are read as well.
"""

from __future__ import annotations

__all__ = ("IMAGE_VERSION", "ImageData", "upgrade")

from collections import Counter

import msgspec

from penstock.metadata.nodes import NodeState
from penstock.metadata.objects import ObjectState
from penstock.metadata.streams import StreamState
from penstock.metadata.topics import TopicState

IMAGE_VERSION = 3


class ImageData(msgspec.Struct):
    """What a snapshot holds."""

    version: int = IMAGE_VERSION
    index: int = 0
    cluster_id: str = ""
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
    data.version = IMAGE_VERSION
