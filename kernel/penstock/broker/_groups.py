"""How the groups of a broker follow its logs: where their state is, and which partitions are its own."""

from __future__ import annotations

__all__ = ("OFFSETS_TOPIC", "follow_logs", "offsets_log")

from functools import partial
from typing import Final

from penstock.broker._process import now_ms
from penstock.bus import EventBus
from penstock.config import Tree
from penstock.coordinator.group_service import GroupService
from penstock.errors import again
from penstock.log.events import TopicsDeleted
from penstock.log.keyed_log import KeyedLog
from penstock.log.manager import LogManager
from penstock.log.topic import NewTopic
from penstock.metadata.deltas import TopicAdded
from penstock.metadata.image import Image
from penstock.spi.events import PartitionClosed, PartitionOpened

OFFSETS_TOPIC: Final = "__consumer_offsets"


async def offsets_log(logs: LogManager, tree: Tree) -> KeyedLog:
    """The log behind the group coordinator; its topic is made at the first start."""
    topic = logs.topics().get(OFFSETS_TOPIC)
    if topic is None:
        (made,) = await logs.create_topics(
            [
                NewTopic(
                    OFFSETS_TOPIC,
                    tree.groups.offsets_partitions,
                    {"cleanup.policy": "compact", "compression.type": "producer"},
                )
            ],
            internal=True,
        )
        if isinstance(made, Exception):
            raise again(made)
        topic = made
    return KeyedLog(OFFSETS_TOPIC, topic.partition_count, logs.partition, now_ms)


def follow_logs(groups: GroupService, logs: LogManager, image: Image, bus: EventBus) -> None:
    """Coordinate the groups of the partitions that this broker leads, now and later, and forget deleted topics.

    ``image`` is that of metadata.
    """

    def opened(event: PartitionOpened) -> None:
        if event.topic == OFFSETS_TOPIC:
            groups.lead(event.partition)

    def closed(event: PartitionClosed) -> None:
        if event.topic == OFFSETS_TOPIC:
            groups.resign(event.partition)

    def added(delta: TopicAdded) -> None:
        topic = image.topics.get(delta.topic_id)
        if topic is not None:
            groups.on_topic_created(topic.name)

    bus.subscribe(PartitionOpened, opened)
    bus.subscribe(PartitionClosed, closed)
    bus.subscribe(TopicAdded, added)
    bus.subscribe(
        TopicsDeleted, lambda event: event.work.append(partial(groups.on_topics_deleted, event.names))
    )
    logs.is_name_held = groups.is_forgetting
    for index in logs.topics()[OFFSETS_TOPIC].partitions:
        groups.lead(index)
