"""The elements of messages, as what they take once they are decoded."""

from __future__ import annotations

from typing import Any, SupportsIndex

from penstock.wire.api_keys import ApiKey
from penstock.wire.elements import count_elements, drop_elements
from penstock.wire.messages.fetch import FetchRequest, ForgottenTopic
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest
from penstock.wire.registry import decode_request, decode_request_header, encode_request


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


def drop(messages: list[Any]) -> int:
    """In so many portions."""
    return sum(1 for _ in drop_elements(messages))


def test_all_elements_are_dropped_however_they_are_divided() -> None:
    messages: list[Any] = [wide(1, 2_000), wide(2_000, 1), wide(700, 3), wide(0, 0)]
    messages.append(MetadataRequest(topics=None))
    drop(messages)
    assert [count_elements(message) for message in messages] == [0, 0, 0, 0, 0]


def test_what_is_long_is_dropped_in_portions_and_what_is_short_in_one() -> None:
    assert drop([wide(1, 100_000)]) == 100
    assert drop([wide(3, 33_333)]) > 90
    assert drop([wide(5_000, 0)]) == 50
    assert drop([wide(3, 100)]) == 0


def test_elements_go_before_what_they_are_in() -> None:
    """Else they would all go with it."""
    message = wide(2, 1_300)
    left: list[int] = []

    class Topics(list[ListOffsetsTopic]):
        def pop(self, at: SupportsIndex = -1, /) -> ListOffsetsTopic:
            left.append(len(self[at].partitions))
            return super().pop(at)

    message.topics = Topics(message.topics)
    messages: list[Any] = [message]
    del message
    drop(messages)
    assert left == [0, 0]


def test_what_somebody_else_has_is_left() -> None:
    messages: list[Any] = [wide(2, 600), wide(1, 600), wide(1, 600)]
    kept = messages[0].topics[1].partitions
    array = messages[1].topics
    drop(messages)
    assert len(kept) == 600
    assert messages[0].topics == []
    assert len(array) == 1
    assert len(array[0].partitions) == 600
    assert messages[2].topics == []
    topic = array[0]
    del array
    drop(messages)
    assert messages[1].topics == []
    assert len(topic.partitions) == 600


def test_a_message_that_somebody_else_has_is_left() -> None:
    message = wide(1, 600)
    drop([message])
    assert len(message.topics[0].partitions) == 600


def test_many_numbers_are_a_flat_array_with_the_same_values_and_bytes() -> None:
    for size in (999, 1_000, 100_000):
        numbers = [(-1) ** at * at * 20_011 for at in range(size)]
        topics = [ForgottenTopic(topic="t", partitions=numbers)]
        request = FetchRequest(max_wait_ms=0, min_bytes=0, topics=[], forgotten_topics_data=topics)
        data = b"".join(encode_request(ApiKey.FETCH, 11, 1, "c", request))[4:]
        header = decode_request_header(memoryview(data))
        decoded: Any = decode_request(ApiKey.FETCH, 11, data, header.body_pos)
        found = decoded.forgotten_topics_data[0].partitions
        assert isinstance(found, list) == (size < 1_000)
        assert list(found) == numbers
        assert count_elements(decoded) == 1 + size
        assert b"".join(encode_request(ApiKey.FETCH, 11, 1, "c", decoded))[4:] == data
        assert drop([decoded]) == 0
