"""Topics, which streams their partitions are, and who leads them."""

from __future__ import annotations

__all__ = ("NO_LEADER", "LakeClaim", "LakeMaintained", "TopicState", "Topics", "config_places")

from collections.abc import Collection, KeysView, Mapping, Sequence
from typing import Final

import msgspec

from penstock.limits import PARTITION_BYTES
from penstock.metadata.table import Table

#: Instead of a node's id.
NO_LEADER: Final = -1
#: Values up to here are within what a partition takes.
_SHORT_CHARS: Final = 1024


def config_places(configs: Mapping[str, str]) -> int:
    """How many partitions would take as much memory as the long values of a topic's configs."""
    return sum(len(value) for value in configs.values() if len(value) > _SHORT_CHARS) // PARTITION_BYTES


class LakeMaintained(msgspec.Struct, frozen=True):
    """The newest maintenance of a lake table, as its owner told it."""

    #: Wall clock when it ended.
    ended_ms: int
    #: The greatest request for one (the topic config ``penstock.lake.maintenance.request``) that it answers.
    request: int = 0
    #: Why it failed, one sentence; empty if it ended well.
    reason: str = ""
    #: Bytes that the table takes less.
    saved_bytes: int = 0
    #: What was done, by words, in the order in which to show it.
    figures: dict[str, int] = {}


class LakeClaim(msgspec.Struct, frozen=True):
    """Who makes the topic's lake table, and how that goes; a higher epoch is a later claim, which fences this one."""

    epoch: int
    node_id: int
    #: ``running``, or why not: see ``penstock.lake.states``.
    state: str = ""
    #: One sentence for people; empty while it runs.
    reason: str = ""
    #: Wall clock when this state began.
    since_ms: int = 0
    #: None: no maintenance has ended yet, of this claim or of an earlier one.
    maintained: LakeMaintained | None = None


class TopicState(msgspec.Struct):
    """A topic; partition ``i`` has the streams ``log_streams[i]`` and ``state_streams[i]``."""

    topic_id: bytes
    name: str
    configs: dict[str, str]
    internal: bool
    log_streams: list[int]
    state_streams: list[int]
    #: The node that leads partition ``i``; -1: none does. Its leader epoch is that of the log stream.
    leaders: list[int] = msgspec.field(default_factory=list)
    #: The newest claim of its lake table; None: it never had one.
    lake: LakeClaim | None = None

    @property
    def partition_count(self) -> int:
        """How many partitions the topic has."""
        return len(self.log_streams)

    def __copy__(self) -> TopicState:
        """One that doesn't change when this one does."""
        return msgspec.structs.replace(
            self,
            log_streams=self.log_streams.copy(),
            state_streams=self.state_streams.copy(),
            leaders=self.leaders.copy(),
        )


class Topics(Table[bytes, TopicState]):
    """All topics by id (16 bytes)."""

    noun = "topic"

    def __init__(self, rows: dict[bytes, TopicState]) -> None:
        super().__init__(rows)
        self._by_name = {topic.name: topic for topic in rows.values()}
        self._client_partitions = 0
        self._config_places = 0
        for topic in rows.values():
            self.grown(topic, topic.partition_count)
            self._config_places += config_places(topic.configs)

    def named(self, name: str) -> TopicState | None:
        """The topic of that name, if there is one."""
        return self._by_name.get(name)

    def names(self) -> KeysView[str]:
        """All names; a live view."""
        return self._by_name.keys()

    def client_partitions(self) -> int:
        """How many partitions clients have made: those of internal topics don't count.

        It is kept, not counted: it is asked for each topic of a request that creates thousands.
        """
        return self._client_partitions

    def config_places(self) -> int:
        """How many partitions would take as much memory as the long values of all configs; kept, not counted."""
        return self._config_places

    # -- for the fold ----------------------------------------------------------------------------------------

    def put(self, key: bytes, row: TopicState) -> None:
        """A topic that wasn't there."""
        super().put(key, row)
        self._by_name[row.name] = row
        self.grown(row, row.partition_count)
        self._config_places += config_places(row.configs)

    def configure(self, key: bytes, configs: dict[str, str]) -> None:
        """Other overrides in the place of those that the topic has."""
        topic = self.change(key)
        self._config_places += config_places(configs) - config_places(topic.configs)
        topic.configs = configs

    def drop(self, key: bytes) -> TopicState:
        """Take a topic out, and free its name."""
        topic = super().drop(key)
        del self._by_name[topic.name]
        self.grown(topic, -topic.partition_count)
        self._config_places -= config_places(topic.configs)
        return topic

    def grown(self, row: TopicState, partitions: int) -> None:
        """The topic has so many partitions more, or less."""
        if not row.internal:
            self._client_partitions += partitions

    def lead(self, topic_id: bytes, partitions: Sequence[int], node_id: int) -> None:
        """The node leads these partitions from now on."""
        leaders = self.change(topic_id).leaders
        for partition in partitions:
            leaders[partition] = node_id

    def unlead(self, node_ids: Collection[int]) -> dict[bytes, list[int]]:
        """These nodes lead nothing any more; the partitions that they led, by topic id."""
        lost = {}
        for topic_id, topic in self._rows.items():
            led = [index for index, node_id in enumerate(topic.leaders) if node_id in node_ids]
            if led:
                lost[topic_id] = led
        for topic_id, led in lost.items():
            self.lead(topic_id, led, NO_LEADER)
        return lost
