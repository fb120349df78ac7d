"""Cutting a byte stream into frames, whatever the chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire import DecodeError
from penstock_tools.client._frames import FrameReader

LENGTH_MAX = 100 * 2**20
BODIES = [b"", b"a", b"bc" * 100, b"", b"tail"]
STREAM = b"".join(len(body).to_bytes(4, "big") + body for body in BODIES)


def read_all(reader: FrameReader, chunks: list[bytes]) -> list[bytes]:
    return [bytes(frame) for chunk in chunks for frame in reader.feed(chunk)]


def test_whole_stream_at_once() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert read_all(reader, [STREAM]) == BODIES
    assert reader.buffered_bytes == 0


def test_byte_by_byte() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert read_all(reader, [STREAM[at : at + 1] for at in range(len(STREAM))]) == BODIES
    assert reader.buffered_bytes == 0


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cuts_give_the_same_frames(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[low:high] for low, high in pairwise(edges)]
    assert read_all(FrameReader(LENGTH_MAX), chunks) == BODIES


def test_trailing_data_waits_for_its_rest() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert read_all(reader, [STREAM + b"\0\0\0\x02x"]) == BODIES
    assert reader.buffered_bytes == 5
    assert read_all(reader, [b"y"]) == [b"xy"]


def test_frame_inside_one_chunk_is_not_copied() -> None:
    chunk = bytearray(STREAM)
    assert all(frame.obj is chunk for frame in FrameReader(LENGTH_MAX).feed(chunk))


def test_frame_over_chunks_stays_unchanged_by_later_ones() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert list(reader.feed(b"\0\0\0\x02a")) == []
    (frame,) = reader.feed(b"b\0\0\0\x01")
    assert list(reader.feed(b"z")) == [b"z"]
    assert bytes(frame) == b"ab"


@pytest.mark.parametrize("prefix", ["80000000", "ffffffff", "00000011", "7fffffff"])
@pytest.mark.parametrize("step", [1, 100])
def test_length_out_of_bounds_raises_after_the_frames_before_it(prefix: str, step: int) -> None:
    reader = FrameReader(frame_bytes_max=16)
    stream = b"\0\0\0\x01a" + bytes.fromhex(prefix) + b"more"
    frames: list[bytes] = []

    def feed_all() -> None:
        for at in range(0, len(stream), step):
            for frame in reader.feed(stream[at : at + step]):
                frames.append(bytes(frame))

    with pytest.raises(DecodeError, match="frame length"):
        feed_all()
    assert frames == [b"a"]


def test_limit_is_inclusive_and_may_be_raised_between_frames() -> None:
    reader = FrameReader(frame_bytes_max=1)
    assert read_all(reader, [b"\0\0\0\x01a"]) == [b"a"]
    reader.frame_bytes_max = 2
    assert read_all(reader, [b"\0\0\0\x02ab"]) == [b"ab"]


def test_memory_follows_what_arrived_not_what_was_announced() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert list(reader.feed((100 * 1024 * 1024).to_bytes(4, "big") + b"x")) == []
    assert reader.buffered_bytes == 5
