"""The elements of messages, as what they take once they are decoded."""

from __future__ import annotations

from typing import SupportsIndex

from penstock.wire.elements import count_elements, drop_elements
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest


def wide(topics: int, partitions: int) -> ListOffsetsRequest:
    return ListOffsetsRequest(
        replica_id=-1,
        topics=[
            ListOffsetsTopic(
                name=f"t{topic}",
                partitions=[ListOffsetsPartition(partition_index=index) for index in range(partitions)],
            )
            for topic in range(topics)
        ],
    )


def test_all_elements_are_dropped_however_they_are_divided() -> None:
    messages = [wide(1, 2_000), wide(2_000, 1), wide(700, 3), wide(0, 0)]
    drop_elements(*messages, MetadataRequest(topics=None))
    assert [count_elements(message) for message in messages] == [0, 0, 0, 0]


def test_elements_go_before_what_they_are_in() -> None:
    """Else they would all go with it."""
    message = wide(2, 1_300)
    left: list[int] = []

    class Topics(list[ListOffsetsTopic]):
        def __delitem__(self, at: SupportsIndex | slice) -> None:
            left.extend(len(topic.partitions) for topic in self)
            super().__delitem__(at)

    message.topics = Topics(message.topics)
    drop_elements(message)
    assert left == [0, 0]


def test_what_somebody_else_has_is_left() -> None:
    message, other = wide(2, 600), wide(1, 600)
    kept, inner = message.topics[1].partitions, other.topics
    drop_elements(message, other)
    assert len(kept) == 600
    assert message.topics == []
    assert len(inner) == 1
    assert len(inner[0].partitions) == 600
    topic = inner[0]
    del inner
    drop_elements(other)
    assert other.topics == []
    assert len(topic.partitions) == 600
