"""What the metadata image is made of: nodes, topics, streams, objects, and all of them together.

These change in place, and only by the fold (``penstock.metadata.image``).
"""

from __future__ import annotations

__all__ = ("IMAGE_VERSION", "ImageData", "NodeState", "ObjectState", "StreamState", "TopicState")

from typing import Literal

import msgspec

from penstock.metadata.ranges import Ranges

#: 2: ranges are bytes, an object's are counted instead of listed, nodes say which WAL they use.
#: 3: nodes say since when, and for every WAL, also one that tells no identity. 1 and 2 are read as well.
IMAGE_VERSION = 3


class NodeState(msgspec.Struct):
    """A broker; a higher epoch is a later life of it, or says that another node took its WAL over."""

    node_id: int
    epoch: int
    incarnation: str
    #: Identity of the WAL that it used last, and where that is, for people; empty: that wasn't told.
    wal: str = ""
    wal_location: str = ""
    #: That WAL may hold acknowledged records that aren't uploaded; False after a clean stop.
    wal_in_use: bool = False
    #: Identities of WALs whose records were given up on purpose, oldest first.
    lost_wals: list[str] = []
    #: Streams that the node opened at an earlier index have nothing in that WAL.
    wal_since: int = 0
    #: That WAL had an entry, or was trimmed, up to this position at least; 0: nothing is known.
    wal_end: int = 0
    #: Identity of the WAL that another node took over from it; empty since it started again with another one.
    wal_taken: str = ""

    @property
    def wal_name(self) -> str:
        """The identity of its WAL; of one that tells none, a name that changes with each life of the node."""
        return self.wal or f"unnamed-{self.node_id}-{self.epoch}"

    @property
    def wal_unknown(self) -> bool:
        """Nothing is known of the WAL that is in use: it was used before that was recorded."""
        return self.wal_in_use and not self.wal and not self.wal_location


class TopicState(msgspec.Struct):
    """A topic; partition ``i`` has the streams ``log_streams[i]`` and ``state_streams[i]``."""

    topic_id: bytes
    name: str
    configs: dict[str, str]
    internal: bool
    log_streams: list[int]
    state_streams: list[int]

    @property
    def partition_count(self) -> int:
        """How many partitions the topic has."""
        return len(self.log_streams)

    def __copy__(self) -> TopicState:
        """One that doesn't change when this one does."""
        return msgspec.structs.replace(
            self, log_streams=self.log_streams.copy(), state_streams=self.state_streams.copy()
        )


class StreamState(msgspec.Struct):
    """A stream: live offsets [start, end) are committed and tiled by ``ranges`` (I2).

    ``start`` may be past ``end``: records were deleted that only the WAL holds so far.
    """

    stream_id: int
    topic_id: bytes
    partition: int
    start: int = 0
    end: int = 0
    #: Index of the entry that opened it; 0 if it never was.
    epoch: int = 0
    #: Its owner, or the last one (``penstock.metadata.owners``); -1 before the first opening.
    node_id: int = -1
    #: (leader epoch, first offset) of each leader that wrote something, oldest first (KIP-101).
    leader_epochs: list[tuple[int, int]] = []
    ranges: Ranges = msgspec.field(default_factory=Ranges)

    @property
    def leader_epoch(self) -> int:
        """The current leader epoch; -1 before the first opening."""
        return self.leader_epochs[-1][0] if self.leader_epochs else -1

    @property
    def opened_at(self) -> int:
        """Where the stream went on when it was opened last: what older ownerships acknowledged is below."""
        return self.leader_epochs[-1][1] if self.leader_epochs else max(self.start, self.end)

    def range_at(self, offset: int) -> int:
        """Index in ``ranges`` of the one that holds ``offset``, or of the first one after it."""
        return self.ranges.find(offset)

    def __copy__(self) -> StreamState:
        """One that doesn't change when this one does."""
        return msgspec.structs.replace(
            self, leader_epochs=self.leader_epochs.copy(), ranges=self.ranges.copy()
        )


class ObjectState(msgspec.Struct, gc=False):
    """An object: prepared -> committed -> destroyed -> forgotten."""

    object_id: int
    state: Literal["prepared", "committed", "destroyed"]
    size: int
    #: Prepared: when it is given up. Destroyed: when it was. Wall clock, ms.
    at_ms: int
    #: How many ranges of streams are in it.
    live_ranges: int = 0


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
