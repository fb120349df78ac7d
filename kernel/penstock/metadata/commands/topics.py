"""Topics are created, grown, configured and deleted."""

from __future__ import annotations

__all__ = ("AddPartitions", "CreateTopic", "DeleteTopic", "SetTopicConfigs")

from array import array

import msgspec

from penstock.errors import AlreadyExistsError, InvalidRequestError
from penstock.metadata.command import Command
from penstock.metadata.deltas import (
    IdsGiven,
    ObjectsChanged,
    StreamsAdded,
    StreamsRemoved,
    TopicAdded,
    TopicChanged,
    TopicGrown,
    TopicRemoved,
)
from penstock.metadata.state import Moment, State
from penstock.metadata.topics import NO_LEADER, TopicState


def _grow(image: State, at: Moment, topic: TopicState, partition_count: int) -> None:
    first = image.streams.next_id
    image.topics.grown(topic, partition_count - topic.partition_count)
    for partition in range(topic.partition_count, partition_count):
        for streams in (topic.log_streams, topic.state_streams):
            streams.append(image.streams.add(topic.topic_id, partition))
        topic.leaders.append(NO_LEADER)
    at.tell(StreamsAdded(first, image.streams.next_id))
    at.tell(IdsGiven("stream", image.streams.next_id))


class CreateTopic(Command, tag="topic+", frozen=True):
    """Create a topic with all its partitions; each gets a log stream and a state stream."""

    name: str
    topic_id: bytes
    partition_count: int
    configs: dict[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False

    def fold(self, image: State, at: Moment) -> TopicState:
        """Refused if there is a topic of that name, or with that id."""
        if image.topics.named(self.name) is not None:
            raise AlreadyExistsError(f"a topic of that name exists: topic={self.name}")
        if self.topic_id in image.topics or self.partition_count < 1:
            raise InvalidRequestError(f"topic id is taken or partition count is below 1: topic={self.name}")
        topic = TopicState(self.topic_id, self.name, dict(self.configs), self.internal, [], [])
        image.topics.put(self.topic_id, topic)
        _grow(image, at, topic, self.partition_count)
        at.tell(TopicAdded(self.topic_id))
        return topic

    def weight(self, image: State) -> int:
        """Two streams for each partition."""
        return 2 * self.partition_count


class AddPartitions(Command, tag="partitions+", frozen=True):
    """Grow a topic to ``partition_count`` partitions."""

    topic_id: bytes
    partition_count: int

    def fold(self, image: State, at: Moment) -> TopicState:
        """Refused if the topic has as many already."""
        topic = image.topics.require(self.topic_id)
        before = topic.partition_count
        if self.partition_count <= before:
            raise InvalidRequestError(
                f"partitions can only be added: topic={topic.name} "
                f"partitions={before} asked={self.partition_count}"
            )
        _grow(image, at, image.topics.change(self.topic_id), self.partition_count)
        at.tell(TopicGrown(self.topic_id, before))
        return topic

    def weight(self, image: State) -> int:
        """Two streams for each partition, at most."""
        return 2 * self.partition_count


class DeleteTopic(Command, tag="topic-", frozen=True):
    """Delete a topic and its streams."""

    topic_id: bytes

    def fold(self, image: State, at: Moment) -> list[int]:
        """The ids of its streams."""
        topic = image.topics.require(self.topic_id)
        image.topics.drop(self.topic_id)
        stream_ids = topic.log_streams + topic.state_streams
        dropped = array("q")
        for stream_id in stream_ids:
            dropped.extend(image.streams.drop(stream_id).ranges.object_ids)
        at.tell(StreamsRemoved(stream_ids))
        at.tell(ObjectsChanged(image.objects.release(dropped, at.now_ms)))
        at.tell(TopicRemoved(self.topic_id, topic.name, stream_ids))
        return stream_ids

    def weight(self, image: State) -> int:
        """Two streams for each partition that is there."""
        topic = image.topics.get(self.topic_id)
        return 1 if topic is None else 2 * topic.partition_count


class SetTopicConfigs(Command, tag="configs", frozen=True):
    """Replace the config overrides of a topic."""

    topic_id: bytes
    configs: dict[str, str]

    def fold(self, image: State, at: Moment) -> TopicState:
        """Refused if there is no such topic; whether the configs make sense is for others to check."""
        image.topics.require(self.topic_id)
        image.topics.configure(self.topic_id, dict(self.configs))
        at.tell(TopicChanged(self.topic_id))
        return image.topics.require(self.topic_id)
