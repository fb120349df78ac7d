"""Topics and which streams their partitions are."""

from __future__ import annotations

__all__ = ("TopicState", "Topics")

from collections.abc import KeysView

import msgspec

from penstock.metadata.table import Table


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


class Topics(Table[bytes, TopicState]):
    """All topics by id (16 bytes)."""

    noun = "topic"

    def __init__(self, rows: dict[bytes, TopicState]) -> None:
        super().__init__(rows)
        self._by_name = {topic.name: topic for topic in rows.values()}

    def named(self, name: str) -> TopicState | None:
        """The topic of that name, if there is one."""
        return self._by_name.get(name)

    def names(self) -> KeysView[str]:
        """All names; a live view."""
        return self._by_name.keys()

    def client_partitions(self) -> int:
        """How many partitions clients have made: those of internal topics don't count."""
        return sum(topic.partition_count for topic in self._rows.values() if not topic.internal)

    # -- for the fold ----------------------------------------------------------------------------------------

    def put(self, key: bytes, row: TopicState) -> None:
        """A topic that wasn't there."""
        super().put(key, row)
        self._by_name[row.name] = row

    def drop(self, key: bytes) -> TopicState:
        """Take a topic out, and free its name."""
        topic = super().drop(key)
        del self._by_name[topic.name]
        return topic
