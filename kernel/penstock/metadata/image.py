"""The metadata image: the state that every broker holds, and the fold that makes it from commands.

Rule 1: everything that changes the image is in this file, and depends on nothing but the command, the entry's index
and time, and the image itself. Folding never fails half-way: a command is refused with an error (the image
is unchanged) or applied whole.
"""

from __future__ import annotations

__all__ = ("Image",)

from array import array
from collections import Counter
from typing import Any

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    kept,
)
from penstock.metadata import commands as c
from penstock.metadata import owners
from penstock.metadata.rows import ImageData, NodeState, ObjectState, StreamState, TopicState
from penstock.metadata.snapshot import Cut, decode_snapshot


class Image:
    """The state after the entry ``index``; read it freely, change it only through :meth:`fold`."""

    def __init__(self, data: ImageData | None = None) -> None:
        self._data = data or ImageData()
        self._cuts: list[Cut] = []
        #: Version of the entry that is being folded.
        self._rules = c.ENTRY_VERSION
        self.topic_ids = {topic.name: topic_id for topic_id, topic in self._data.topics.items()}

    @property
    def index(self) -> int:
        """Index of the last folded entry."""
        return self._data.index

    @property
    def cluster_id(self) -> str:
        """The cluster's name; empty before the log was formatted."""
        return self._data.cluster_id

    @property
    def nodes(self) -> dict[int, NodeState]:
        """Brokers by id."""
        return self._data.nodes

    @property
    def topics(self) -> dict[bytes, TopicState]:
        """Topics by id (16 bytes)."""
        return self._data.topics

    @property
    def streams(self) -> dict[int, StreamState]:
        """Streams by id."""
        return self._data.streams

    @property
    def objects(self) -> dict[int, ObjectState]:
        """Objects by id: prepared, committed, and destroyed ones that may still be in the store."""
        return self._data.objects

    @property
    def next_object_id(self) -> int:
        """Every object id below this was handed out once."""
        return self._data.next_object_id

    def topic_by_name(self, name: str) -> TopicState | None:
        """The topic of that name, if there is one."""
        topic_id = self.topic_ids.get(name)
        return None if topic_id is None else self._data.topics[topic_id]

    def cut(self) -> Cut:
        """Begin a snapshot of the image as it is now; use it in a ``with`` statement."""
        return Cut(self._data, self._cuts)

    def to_snapshot(self) -> bytes:
        """The whole image as bytes; equal images give equal bytes."""
        with self.cut() as cut:
            return b"".join(cut.pieces())

    @classmethod
    def from_snapshot(cls, data: bytes) -> Image:
        """The image of a snapshot. Raises CorruptError if it can't be read."""
        return cls(decode_snapshot(data))

    def weight(self, command: c.Command) -> int:
        """About how many rows of the image the command changes: 2,000 are folded in a millisecond or two."""
        match command:
            case c.CreateTopic() | c.AddPartitions():
                return 2 * command.partition_count
            case c.DeleteTopic():
                topic = self._data.topics.get(command.topic_id)
                return 1 if topic is None else 2 * topic.partition_count
            case c.OpenStreams():
                return len(command.stream_ids)
            case c.TrimStreams():
                return len(command.starts)
            case c.CommitUpload():
                return sum(len(uploaded.ranges) for uploaded in command.objects)
            case c.AbandonObjects() | c.ForgetObjects():
                return len(command.object_ids)
            case _:
                return 1

    def fold(self, index: int, entry: c.Entry) -> list[Any]:
        """Apply the entry ``index``; returns one result per command: its value, or the error that refused it."""
        assert index == self.index + 1, f"entries fold in order: index={index} image={self.index}"
        self._rules = entry.version
        results: list[Any] = []
        for command in entry.commands:
            try:
                results.append(_FOLDS[type(command)](self, command, index, entry.now_ms))
            except PenstockError as error:
                results.append(kept(error))
        if entry.wal_end:
            self._note_wal_end(entry)
        self._data.index = index
        return results

    def _note_wal_end(self, entry: c.Entry) -> None:
        """Of the WAL that the writer has in use; what a fenced one says of its own doesn't count."""
        for node in self._data.nodes.values():
            if node.incarnation == entry.writer and node.wal_in_use and node.wal:
                node.wal_end = max(node.wal_end, entry.wal_end)

    def _change_topic(self, topic: TopicState) -> TopicState:
        """To be called before a topic that was there changes."""
        for cut in self._cuts:
            cut.before("topics", topic.topic_id, topic)
        return topic

    def _change_stream(self, stream: StreamState) -> StreamState:
        """To be called before a stream that was there changes."""
        for cut in self._cuts:
            cut.before("streams", stream.stream_id, stream)
        return stream

    def _change_object(self, held: ObjectState) -> ObjectState:
        """To be called before an object that was there changes."""
        for cut in self._cuts:
            cut.before("objects", held.object_id, held)
        return held

    # -- one method per command: check everything, then change ------------------------------------------------

    def _format(self, command: c.FormatCluster, index: int, now_ms: int) -> str:
        if self._data.cluster_id:
            raise AlreadyExistsError(f"the cluster is formatted already: cluster_id={self._data.cluster_id}")
        self._data.cluster_id = command.cluster_id
        return command.cluster_id

    def _register(self, command: c.RegisterNode, index: int, now_ms: int) -> int:
        owners.check_registration(self._data.nodes, command, self._rules)
        node = self._data.nodes.setdefault(command.node_id, NodeState(command.node_id, 0, ""))
        if node.wal_in_use and not owners.is_own(node, command):
            _give_up(node)
        node.epoch, node.incarnation = index, command.incarnation
        node.wal_taken = ""
        if self._rules > 1:
            for other in owners.taken_over(self._data.nodes, command):
                self._take_over(other, node)
                other.epoch = index
            lost = owners.given_up(command)
            for other in owners.wals_in_use(self._data.nodes, command.node_id):
                if other.wal_name in lost:
                    _give_up(other)
                    other.epoch = index
        return index

    def check_wal(self, command: c.RegisterNode) -> None:
        """Raise ConfigError if the node may not start with the WAL that it found (I1, I3); changes nothing."""
        owners.check_registration(self._data.nodes, command, c.ENTRY_VERSION)

    def _take_over(self, old: NodeState, new: NodeState) -> None:
        """The WAL of ``old``, and the streams that have something in it, are ``new``'s."""
        new.wal_since = min(old.wal_since, new.wal_since) if new.wal_in_use else old.wal_since
        new.wal, new.wal_location, new.wal_in_use = old.wal, old.wal_location, True
        new.wal_end = old.wal_end
        for stream in self._data.streams.values():
            if stream.node_id == old.node_id and owners.holder_of(self._data.nodes, stream) is old:
                self._change_stream(stream).node_id = new.node_id
        old.wal_taken = old.wal
        old.wal = old.wal_location = ""
        old.wal_in_use = False
        old.wal_end = 0

    def _use_wal(self, command: c.UseWal, index: int, now_ms: int) -> None:
        self._check_node(command.node_id, command.node_epoch)
        owners.check_use(self._data.nodes, command, self._rules)
        node = self._data.nodes[command.node_id]
        if not node.wal_in_use:
            node.wal_since = index
        if not node.wal_in_use or node.wal != command.wal:
            node.wal_end = 0
        node.wal, node.wal_location, node.wal_in_use = command.wal, command.location, True

    def _release_wal(self, command: c.ReleaseWal, index: int, now_ms: int) -> None:
        self._check_node(command.node_id, command.node_epoch)
        self._data.nodes[command.node_id].wal_in_use = False

    def _create_topic(self, command: c.CreateTopic, index: int, now_ms: int) -> TopicState:
        if command.name in self.topic_ids:
            raise AlreadyExistsError(f"a topic of that name exists: topic={command.name}")
        if command.topic_id in self._data.topics or command.partition_count < 1:
            raise InvalidRequestError(
                f"topic id is taken or partition count is below 1: topic={command.name}"
            )
        topic = TopicState(command.topic_id, command.name, dict(command.configs), command.internal, [], [])
        self._data.topics[command.topic_id] = topic
        self.topic_ids[command.name] = command.topic_id
        self._grow(topic, command.partition_count)
        return topic

    def _grow(self, topic: TopicState, partition_count: int) -> None:
        for partition in range(topic.partition_count, partition_count):
            for streams in (topic.log_streams, topic.state_streams):
                stream_id = self._data.next_stream_id
                self._data.next_stream_id += 1
                self._data.streams[stream_id] = StreamState(stream_id, topic.topic_id, partition)
                streams.append(stream_id)

    def _topic(self, topic_id: bytes) -> TopicState:
        topic = self._data.topics.get(topic_id)
        if topic is None:
            raise NotFoundError(f"there is no such topic: topic_id={topic_id.hex()}")
        return topic

    def _add_partitions(self, command: c.AddPartitions, index: int, now_ms: int) -> TopicState:
        topic = self._topic(command.topic_id)
        if command.partition_count <= topic.partition_count:
            raise InvalidRequestError(
                f"partitions can only be added: topic={topic.name} "
                f"partitions={topic.partition_count} asked={command.partition_count}"
            )
        self._grow(self._change_topic(topic), command.partition_count)
        return topic

    def _delete_topic(self, command: c.DeleteTopic, index: int, now_ms: int) -> list[int]:
        topic = self._topic(command.topic_id)
        del self._data.topics[topic.topic_id]
        del self.topic_ids[topic.name]
        stream_ids = topic.log_streams + topic.state_streams
        dropped = array("q")
        for stream_id in stream_ids:
            dropped.extend(self._data.streams.pop(stream_id).ranges.object_ids)
        self._release(dropped, now_ms)
        return stream_ids

    def _set_configs(self, command: c.SetTopicConfigs, index: int, now_ms: int) -> TopicState:
        topic = self._topic(command.topic_id)
        self._change_topic(topic).configs = dict(command.configs)
        return topic

    def _check_node(self, node_id: int, node_epoch: int) -> None:
        node = self._data.nodes.get(node_id)
        if node is None or node.epoch != node_epoch:
            raise FencedError(
                f"another process registered as this node, or with its WAL, and took over, this one must stop: "
                f"node_id={node_id} epoch={node_epoch} current={node.epoch if node else None}"
            )

    def _check_owner(self, stream: StreamState, node_id: int) -> None:
        if self._rules > 1 and stream.node_id != node_id:
            raise FencedError(
                f"another node owns the stream, this one must leave it alone: stream={stream.stream_id} "
                f"owner={stream.node_id} node_id={node_id}"
            )

    def _open(self, command: c.OpenStreams, index: int, now_ms: int) -> list[int]:
        self._check_node(command.node_id, command.node_epoch)
        nodes = self._data.nodes
        opened = [stream_id for stream_id in command.stream_ids if stream_id in self._data.streams]
        if self._rules > 1:
            for stream_id in opened:
                holder = owners.holder_of(nodes, self._data.streams[stream_id])
                if holder is not None and holder.node_id != command.node_id:
                    raise ConflictError(
                        f"records of the stream may be in the WAL of its owner only, which must close it first: "
                        f"stream={stream_id} owner={holder.node_id} node_id={command.node_id}"
                    )
        node = nodes[command.node_id]
        if opened and not node.wal_in_use:
            # nobody said which WAL this is; what can be appended to may hold something
            node.wal = node.wal_location = ""
            node.wal_in_use, node.wal_since = True, index
        for stream_id in opened:
            stream = self._change_stream(self._data.streams[stream_id])
            stream.epoch = index
            stream.node_id = command.node_id
            first = max(stream.start, stream.end)
            leader_epoch = stream.leader_epoch + 1
            if stream.leader_epochs and stream.leader_epochs[-1][1] == first:
                stream.leader_epochs[-1] = (leader_epoch, first)  # the last leader wrote nothing
            else:
                stream.leader_epochs.append((leader_epoch, first))
        return opened

    def _trim(self, command: c.TrimStreams, index: int, now_ms: int) -> list[int]:
        self._check_node(command.node_id, command.node_epoch)
        trimmed = []
        dropped = array("q")
        streams = self._data.streams
        for stream_id, _ in command.starts:
            if stream_id in streams:
                self._check_owner(streams[stream_id], command.node_id)
        for stream_id, start in command.starts:
            stream = streams.get(stream_id)
            if stream is None or start <= stream.start:
                continue
            self._change_stream(stream).start = start
            dropped.extend(stream.ranges.drop(start))
            epochs = stream.leader_epochs
            while len(epochs) > 1 and epochs[1][1] <= start:
                del epochs[0]
            trimmed.append(stream_id)
        self._release(dropped, now_ms)
        return trimmed

    def _release(self, dropped: array[int], now_ms: int) -> None:
        """A range in each of these objects is gone."""
        for object_id, count in Counter(dropped).items():
            held = self._change_object(self._data.objects[object_id])
            held.live_ranges -= count
            assert held.live_ranges >= 0, held
            if not held.live_ranges:
                held.state = "destroyed"
                held.at_ms = now_ms

    def _prepare(self, command: c.PrepareObjects, index: int, now_ms: int) -> list[int]:
        self._check_node(command.node_id, command.node_epoch)
        first = self._data.next_object_id
        self._data.next_object_id += command.count
        object_ids = list(range(first, first + command.count))
        for object_id in object_ids:
            self._data.objects[object_id] = ObjectState(object_id, "prepared", 0, command.deadline_ms)
        return object_ids

    def _commit(self, command: c.CommitUpload, index: int, now_ms: int) -> None:
        self._check_node(command.node_id, command.node_epoch)
        self._check_commit(command)
        streams, watched = self._data.streams, bool(self._cuts)
        for uploaded in command.objects:
            object_id = uploaded.object_id
            held = self._change_object(self._data.objects[object_id])
            held.size = uploaded.size
            for r in uploaded.ranges:
                stream = streams.get(r.stream_id)
                if stream is None:
                    continue  # deleted while the upload was on its way
                if watched:
                    self._change_stream(stream)
                stream.end = end = r.end
                if end > stream.start:
                    stream.ranges.add(r.start, end, object_id, r.size, r.time_ms)
                    held.live_ranges += 1
            held.state = "committed" if held.live_ranges else "destroyed"
            held.at_ms = now_ms

    def _check_commit(self, command: c.CommitUpload) -> None:
        ends: dict[int, int] = {}
        streams = self._data.streams
        for uploaded in command.objects:
            held = self._data.objects.get(uploaded.object_id)
            if held is None or held.state != "prepared":
                raise NotFoundError(
                    f"the object isn't prepared any more, its deadline passed: object_id={uploaded.object_id}"
                )
            for r in uploaded.ranges:
                stream_id, start = r.stream_id, r.start
                stream = streams.get(stream_id)
                if stream is None:
                    continue
                self._check_owner(stream, command.node_id)
                end = ends.get(stream_id, stream.end)
                # I2: ranges continue the stream; a gap is fine only where the records were deleted already
                if r.end <= start or (start != end and not end < start <= stream.start):
                    raise ConflictError(
                        f"the range doesn't continue its stream: stream={stream_id} "
                        f"committed_end={end} range=[{start},{r.end})"
                    )
                ends[stream_id] = r.end

    def _abandon(self, command: c.AbandonObjects, index: int, now_ms: int) -> list[int]:
        abandoned = []
        for object_id in command.object_ids:
            held = self._data.objects.get(object_id)
            if held is not None and held.state == "prepared":
                self._change_object(held).state = "destroyed"
                held.at_ms = now_ms
                abandoned.append(object_id)
        return abandoned

    def _forget(self, command: c.ForgetObjects, index: int, now_ms: int) -> None:
        for object_id in command.object_ids:
            held = self._data.objects.get(object_id)
            if held is not None and held.state == "destroyed":
                del self._data.objects[object_id]

    def _allocate_pids(self, command: c.AllocateProducerIds, index: int, now_ms: int) -> int:
        self._check_node(command.node_id, command.node_epoch)
        first = self._data.next_producer_id
        self._data.next_producer_id += command.count
        return first

    def _skip_lost(self, command: c.SkipLost, index: int, now_ms: int) -> None:
        self._data.next_object_id = max(self._data.next_object_id, command.next_object_id)
        self._data.next_stream_id += command.count
        self._data.next_producer_id += command.count


def _give_up(node: NodeState) -> None:
    """What only the node's WAL holds is lost, and that WAL is never taken again."""
    node.lost_wals = [*node.lost_wals, node.wal_name]
    node.wal = node.wal_location = ""
    node.wal_in_use = False
    node.wal_end = 0


_FOLDS: dict[type, Any] = {
    c.FormatCluster: Image._format,
    c.RegisterNode: Image._register,
    c.UseWal: Image._use_wal,
    c.ReleaseWal: Image._release_wal,
    c.CreateTopic: Image._create_topic,
    c.AddPartitions: Image._add_partitions,
    c.DeleteTopic: Image._delete_topic,
    c.SetTopicConfigs: Image._set_configs,
    c.OpenStreams: Image._open,
    c.TrimStreams: Image._trim,
    c.PrepareObjects: Image._prepare,
    c.CommitUpload: Image._commit,
    c.AbandonObjects: Image._abandon,
    c.ForgetObjects: Image._forget,
    c.AllocateProducerIds: Image._allocate_pids,
    c.SkipLost: Image._skip_lost,
}
