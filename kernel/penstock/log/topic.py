"""Topics as others see them, and what is to be known of one to create it."""

from __future__ import annotations

__all__ = ("NewTopic", "Topic")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.log.partition import Partition
from penstock.log.topic_config import INTERNAL_TOPICS
from penstock.metadata.topics import TopicState


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to create; name and configs are validated already."""

    name: str
    partition_count: int = 1
    #: What differs from the defaults, by Kafka's names.
    configs: Mapping[str, str] = field(default_factory=dict)


class Topic:
    """A topic: a live view of metadata, and the partitions that this broker leads."""

    __slots__ = ("_state", "applied", "partitions", "version")

    def __init__(self, state: TopicState) -> None:
        self._state = state
        #: Those that this broker leads, by index.
        self.partitions: dict[int, Partition] = {}
        #: Grows whenever a partition gets another leader, or is opened, closed, or becomes (un)available here.
        self.version = 0
        #: The configs that its partitions have here; None: none yet.
        self.applied: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """The topic's name; after its deletion another topic may have it."""
        return self._state.name

    @property
    def id(self) -> bytes:
        """The topic's id, 16 bytes; no other topic ever has it."""
        return self._state.topic_id

    @property
    def partition_count(self) -> int:
        """The number of its partitions, led by this broker or not."""
        return self._state.partition_count

    @property
    def leaders(self) -> Sequence[int]:
        """The id of the node that leads each partition; -1: none does."""
        return self._state.leaders

    @property
    def configs(self) -> Mapping[str, str]:
        """The topic's own configs, by Kafka's names; for others the defaults hold."""
        return self._state.configs

    @property
    def internal(self) -> bool:
        """Whether it is the broker's own: clients may read it, but not write to it."""
        return self._state.internal or self._state.name in INTERNAL_TOPICS
