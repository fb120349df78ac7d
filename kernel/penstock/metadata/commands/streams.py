"""Streams get their owner, and a new start."""

from __future__ import annotations

__all__ = ("OpenStreams", "TrimStreams")

from array import array

from penstock.errors import ConflictError
from penstock.metadata import owners
from penstock.metadata.command import Command
from penstock.metadata.deltas import LeadersChanged, NodesChanged, ObjectsChanged, StreamsChanged
from penstock.metadata.state import Moment, State


class OpenStreams(Command, tag="open", frozen=True):
    """The node owns these streams from now on; their epoch becomes the index of this entry.

    Of the partitions whose logs are among them, it is the leader.

    Refused (version 2) if another node owns one of them whose WAL may hold its records.
    """

    node_id: int
    node_epoch: int
    stream_ids: list[int]

    def fold(self, image: State, at: Moment) -> list[int]:
        """Open the streams that exist; returns their ids."""
        nodes, streams = image.nodes, image.streams
        nodes.check_epoch(self.node_id, self.node_epoch)
        opened = [stream for stream in map(streams.get, self.stream_ids) if stream is not None]
        if at.rules > 1:
            for stream in opened:
                holder = owners.holder_of(nodes, stream)
                if holder is not None and holder.node_id != self.node_id:
                    raise ConflictError(
                        f"records of the stream may be in the WAL of its owner only, which must close it first: "
                        f"stream={stream.stream_id} owner={holder.node_id} node_id={self.node_id}"
                    )
        node = nodes.require(self.node_id)
        if opened and not node.wal_in_use:
            # nobody said which WAL this is; what can be appended to may hold something
            node.wal = node.wal_location = ""
            node.wal_in_use, node.wal_since = True, at.index
            at.tell(NodesChanged([self.node_id]))
        led: dict[bytes, list[int]] = {}
        topic_id, logs, partitions = b"", [], []
        for stream in opened:
            streams.open(stream, self.node_id, at.index)
            if stream.topic_id != topic_id:
                topic_id = stream.topic_id
                logs = image.topics.require(topic_id).log_streams
                partitions = led.setdefault(topic_id, [])
            if logs[stream.partition] == stream.stream_id:
                partitions.append(stream.partition)
        led = {topic_id: partitions for topic_id, partitions in led.items() if partitions}
        for topic_id, partitions in led.items():
            image.topics.lead(topic_id, partitions, self.node_id)
        stream_ids = [stream.stream_id for stream in opened]
        at.tell(StreamsChanged(stream_ids))
        at.tell(LeadersChanged(led))
        return stream_ids

    def weight(self, image: State) -> int:
        """Each stream changes."""
        return len(self.stream_ids)


class TrimStreams(Command, tag="trim", frozen=True):
    """Move the start of streams forward: (stream id, new start offset)."""

    node_id: int
    node_epoch: int
    starts: list[tuple[int, int]]

    def fold(self, image: State, at: Moment) -> list[int]:
        """Move starts; returns the ids of the streams whose start moved."""
        streams = image.streams
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        if at.rules > 1:
            for stream_id, _ in self.starts:
                stream = streams.get(stream_id)
                if stream is not None:
                    streams.check_owner(stream, self.node_id)
        trimmed = []
        dropped = array("q")
        for stream_id, start in self.starts:
            stream = streams.get(stream_id)
            if stream is None or start <= stream.start:
                continue
            dropped.extend(streams.trim(stream, start))
            trimmed.append(stream_id)
        at.tell(StreamsChanged(trimmed))
        if dropped:
            at.tell(ObjectsChanged(image.objects.release(dropped, at.now_ms)))
        return trimmed

    def weight(self, image: State) -> int:
        """Each stream changes."""
        return len(self.starts)
