"""Bytes in, frames out: whatever pieces they come in and whatever isn't taken at once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.server.frames import FrameReader, ReadEnd, start_of
from penstock.server.settings import LARGE_FRAME_BYTES, PEEK_BYTES, SCRATCH_BYTES

LENGTH_MAX = 1 << 20
no_time: Callable[[], float] = repeat(0.0).__next__


def frame(number: int, size: int = 10, api_key: int = 3, version: int = 1) -> bytes:
    """A frame with so many bytes behind its length."""
    return struct.pack(">ihhi", size, api_key, version, number) + bytes(size - 8)


class Taker:
    """Takes frames when it's told to, and remembers them."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int, int]] = []
        self.answers: list[bool] = []

    def take(self, view: memoryview, api_key: int, version: int, number: int) -> bool:
        assert start_of(view) == (api_key, version, number)
        if self.answers and not self.answers.pop(0):
            return False
        self.taken.append((api_key, version, number, len(view)))
        return True


def nobody(view: memoryview, api_key: int, version: int, number: int) -> bool:
    return False


class Receiver:
    """A connection's reading side: a scratch buffer with something else's bytes in it, and a reader."""

    def __init__(self, length_max: int = LENGTH_MAX) -> None:
        self.scratch = memoryview(bytearray(b"\xee" * SCRATCH_BYTES))
        self.reader = FrameReader(length_max)
        self.taker = Taker()

    def receive(self, data: bytes, count: int = 64) -> ReadEnd:
        """As much as comes at once."""
        self.reader.buffer(self.scratch)[: len(data)] = data
        end = self.reader.joined(len(data))
        ended = self._read(self.scratch, end, count)
        self.scratch[:] = b"\xee" * SCRATCH_BYTES  # others receive there
        return ended

    def again(self, count: int = 64) -> ReadEnd:
        """What was kept."""
        backlog = self.reader.take_backlog()
        return self._read(memoryview(backlog), len(backlog), count)

    def _read(self, view: memoryview, end: int, count: int) -> ReadEnd:
        return self.reader.read(view, end, nobody, self.taker.take, count=count, until=1.0, clock=no_time)


@given(
    sizes=st.lists(st.integers(10, 3000), max_size=40),
    cuts=st.lists(st.integers(0, 1 << 30), max_size=20),
    refusals=st.lists(st.booleans(), max_size=60),
    count=st.integers(1, 5),
)
def test_frames_are_taken_in_order_each_once_and_none_is_lost(
    sizes: list[int], cuts: list[int], refusals: list[bool], count: int
) -> None:
    sent = [frame(number, size) for number, size in enumerate(sizes)]
    data = b"".join(sent)
    receiver = Receiver()
    reader, taker = receiver.reader, receiver.taker
    taker.answers = refusals
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    begin = 0
    for end in ends:
        ended = receiver.receive(data[begin:end], count)
        begin = end
        while ended is not ReadEnd.MORE:
            assert reader.is_stuck
            assert ended in {ReadEnd.REFUSED, ReadEnd.TURN_OVER}
            taken = sum(4 + size for *_, size in taker.taken)
            assert reader.held_bytes == reader.carried_bytes == end - taken, "nothing is lost"
            ended = receiver.again(count)
        assert not reader.is_stuck
        assert reader.begun_bytes == end - sum(4 + size for *_, size in taker.taken)
    assert taker.taken == [(3, 1, number, size) for number, size in enumerate(sizes)]
    assert (reader.held_bytes, reader.has_begun) == (0, False)


def test_a_frame_is_offered_to_the_second_only_if_the_first_does_not_take_it() -> None:
    offered: list[tuple[str, int]] = []

    def first(view: memoryview, api_key: int, version: int, number: int) -> bool:
        offered.append(("first", number))
        return number % 2 == 0

    def second(view: memoryview, api_key: int, version: int, number: int) -> bool:
        offered.append(("second", number))
        return number < 3

    data = b"".join(map(frame, range(5)))
    reader = FrameReader(LENGTH_MAX)
    ended = reader.read(memoryview(data), len(data), first, second, count=9, until=1.0, clock=no_time)
    assert ended is ReadEnd.REFUSED
    assert offered == [
        ("first", 0),
        ("first", 1),
        ("second", 1),
        ("first", 2),
        ("first", 3),
        ("second", 3),
    ]
    assert bytes(reader.backlog) == data[3 * 14 :]


def test_one_frame_at_least_is_taken_in_a_turn_and_none_after_its_time() -> None:
    receiver = Receiver()
    late = repeat(2.0).__next__
    data = memoryview(b"".join(map(frame, range(3))))
    taker = receiver.taker
    ended = receiver.reader.read(data, len(data), nobody, taker.take, count=9, until=1.0, clock=late)
    assert ended is ReadEnd.TURN_OVER
    assert [number for _, _, number, _ in taker.taken] == [0]


@pytest.mark.parametrize("length", [-1, 0, 9, LENGTH_MAX + 1, 0x7FFFFFFF])
@pytest.mark.parametrize("whole", [4, 14])
def test_a_length_that_no_request_has_is_malformed_whatever_follows(length: int, whole: int) -> None:
    receiver = Receiver()
    data = frame(0) + (struct.pack(">i", length) + bytes(10))[:whole]
    assert receiver.receive(data) is ReadEnd.MALFORMED
    assert receiver.reader.bad_length == length
    assert len(receiver.taker.taken) == 1, "what came before it is handled"


def test_a_frame_longer_than_allowed_is_malformed_even_if_it_is_there() -> None:
    receiver = Receiver(length_max=100)
    assert receiver.receive(frame(0, 101)) is ReadEnd.MALFORMED
    assert receiver.taker.taken == []


def test_a_large_frame_is_told_as_soon_as_its_header_is_there() -> None:
    receiver = Receiver()
    reader = receiver.reader
    data = frame(0) + frame(1, LARGE_FRAME_BYTES)
    assert receiver.receive(data[: 14 + 13]) is ReadEnd.MORE
    assert receiver.receive(data[14 + 13 : 14 + 20]) is ReadEnd.LARGE
    assert reader.large_size == LARGE_FRAME_BYTES
    assert len(reader.large_start) == 16
    assert reader.partial == b""


def test_after_a_large_frame_little_is_received_blindly_until_a_small_one_came() -> None:
    receiver = Receiver()
    reader = receiver.reader
    assert len(reader.buffer(receiver.scratch)) == SCRATCH_BYTES
    receiver.receive(frame(0, LARGE_FRAME_BYTES)[:100])
    assert len(reader.buffer(receiver.scratch)) == PEEK_BYTES
    assert receiver.receive(frame(1)) is ReadEnd.MORE
    assert len(reader.buffer(receiver.scratch)) == SCRATCH_BYTES


def test_nothing_is_left_of_what_is_dropped() -> None:
    receiver = Receiver()
    receiver.taker.answers = [False]
    receiver.receive(frame(0) + frame(1)[:9])
    assert receiver.reader.held_bytes == 23
    receiver.reader.drop()
    assert (receiver.reader.held_bytes, receiver.reader.is_stuck) == (0, False)
