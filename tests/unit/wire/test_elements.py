"""The elements of messages, as what they take once they are decoded."""

from __future__ import annotations

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
    inner = messages[0].topics[0]
    drop_elements(*messages, MetadataRequest(topics=None))
    assert [count_elements(message) for message in messages] == [0, 0, 0, 0]
    assert inner.partitions == [], "before what it is in"


def test_what_somebody_else_has_is_left() -> None:
    message, other = wide(2, 600), wide(1, 600)
    kept, inner = message.topics[1].partitions, other.topics
    drop_elements(message, other)
    assert len(kept) == 600
    assert message.topics == []
    assert len(inner) == 1
    assert len(inner[0].partitions) == 600
