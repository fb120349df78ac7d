"""Counting partitions agrees with decoding them, and ends at the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.produce_scan import count_parts, has_too_many_partitions
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.registry import decode_request_header, encode_request


def encoded(version: int, counts: list[int], record_bytes: int, transactional_id: str | None) -> memoryview:
    request = ProduceRequest(
        transactional_id=transactional_id,
        topic_data=[
            TopicProduceData(
                name=f"topic-{at}" * 30,
                partition_data=[
                    PartitionProduceData(index=index, records=b"x" * record_bytes) for index in range(count)
                ],
            )
            for at, count in enumerate(counts)
        ],
    )
    return memoryview(b"".join(encode_request(0, version, 1, "c", request)))[4:]


@given(
    version=st.integers(3, 13),
    counts=st.lists(st.integers(0, 40), max_size=8),
    record_bytes=st.sampled_from([0, 1, 200, 20_000]),
    transactional_id=st.sampled_from([None, "", "tx" * 100]),
)
def test_limit_is_exact(
    version: int, counts: list[int], record_bytes: int, transactional_id: str | None
) -> None:
    frame = encoded(version, counts, record_bytes, transactional_id)
    pos = decode_request_header(frame).body_pos
    enough = max(sum(counts), len(counts))
    assert not has_too_many_partitions(frame, pos, version, enough)
    assert count_parts(frame, pos, version, enough) == len(counts) + sum(counts)
    if sum(counts):
        assert has_too_many_partitions(frame, pos, version, sum(counts) - 1)


@given(version=st.integers(3, 13), data=st.binary(max_size=200))
def test_any_bytes_are_survived(version: int, data: bytes) -> None:
    has_too_many_partitions(memoryview(data), 0, version, 100)


@pytest.mark.parametrize("version", [3, 9, 13])
def test_cut_frame_is_left_to_the_decoder(version: int) -> None:
    frame = encoded(version, [3], 100, None)
    pos = decode_request_header(frame).body_pos
    assert not has_too_many_partitions(frame[:-50], pos, version, 3)
    assert (count_parts(frame[:-50], pos, version, 3) or 0) >= 3, "as many as it may decode before it knows"


@pytest.mark.parametrize("end", [1, 2, 3], ids=["request", "topic", "partition"])
def test_tagged_fields_count_as_partitions_do(end: int) -> None:
    """They take as long to skip. They are the last bytes of a partition, of a topic, and of the request."""
    frame = encoded(9, [1], 10, None)
    pos = decode_request_header(frame).body_pos
    at = len(frame) - end
    with_tags = memoryview(bytes(frame[:at]) + b"\x05" + b"\x63\0" * 5 + bytes(frame[at + 1 :]))
    assert not has_too_many_partitions(with_tags, pos, 9, 6)
    assert has_too_many_partitions(with_tags, pos, 9, 5)
    assert count_parts(with_tags, pos, 9, 6) == 7, "and the topic"
