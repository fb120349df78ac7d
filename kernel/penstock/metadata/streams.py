"""Streams: what is committed of each, and who owns it."""

from __future__ import annotations

__all__ = ("StreamState", "Streams")

from array import array

import msgspec

from penstock.errors import FencedError
from penstock.metadata.ranges import Ranges
from penstock.metadata.table import Table


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


class Streams(Table[int, StreamState]):
    """All streams by id."""

    noun = "stream"

    def __init__(self, rows: dict[int, StreamState], next_id: int) -> None:
        super().__init__(rows)
        #: Every id below this was given out, or passed over.
        self.next_id = next_id

    # -- for the fold ----------------------------------------------------------------------------------------

    def add(self, topic_id: bytes, partition: int) -> int:
        """A new stream of that partition; its id."""
        stream_id = self.next_id
        self.next_id = stream_id + 1
        self.put(stream_id, StreamState(stream_id, topic_id, partition))
        return stream_id

    def check_owner(self, stream: StreamState, node_id: int) -> None:
        """Raise FencedError unless the node owns the stream (I3)."""
        if stream.node_id != node_id:
            raise FencedError(
                f"another node owns the stream, this one must leave it alone: stream={stream.stream_id} "
                f"owner={stream.node_id} node_id={node_id}"
            )

    def open(self, stream: StreamState, node_id: int, epoch: int) -> None:
        """The node owns the stream from now on, and begins a leader epoch."""
        if self._cuts:
            self.change(stream.stream_id)
        stream.epoch = epoch
        stream.node_id = node_id
        first = max(stream.start, stream.end)
        epochs = stream.leader_epochs
        if not epochs:
            epochs.append((0, first))
            return
        last, began = epochs[-1]
        if began == first:
            epochs[-1] = (last + 1, first)  # the last leader wrote nothing
        else:
            epochs.append((last + 1, first))

    def trim(self, stream: StreamState, start: int) -> array[int]:
        """Move the start forward; returns the object of each range that is gone."""
        if self._cuts:
            self.change(stream.stream_id)
        stream.start = start
        epochs = stream.leader_epochs
        while len(epochs) > 1 and epochs[1][1] <= start:
            del epochs[0]
        return stream.ranges.drop(start)
