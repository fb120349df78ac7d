"""The queue of one partition: how batches fill, when they are ready, and which sequences they carry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire import ErrorCode
from penstock_tools.client._batches import Batch, PartitionQueue, SendRefusal, refusal_of


def queue(batch_bytes_max: int = 1 << 16, producer_id: int = 7) -> PartitionQueue:
    made = PartitionQueue("t", 0, batch_bytes_max=batch_bytes_max)
    made.renumber(producer_id, 0)
    return made


def put(target: PartitionQueue, count: int = 1, now_s: float = 0.0) -> list[Batch]:
    return [target.append(None, b"v" * 50, (), 0, now_s)[0] for _ in range(count)]


def test_an_open_batch_is_ready_when_it_lingered_and_not_before() -> None:
    target = queue()
    (batch,) = put(target, now_s=10.0)
    assert target.next_ready(10.004, 0.005) is None
    assert target.ready_at_s(0.005) == pytest.approx(10.005)
    assert target.next_ready(10.006, 0.005) is batch
    assert not batch.is_open


def test_a_full_batch_is_ready_at_once_and_the_next_record_opens_another() -> None:
    target = queue(batch_bytes_max=150)
    batches = put(target, 3)
    assert batches[0] is not batches[1]
    assert target.next_ready(0.0, 60.0) is batches[0]


def test_a_record_above_the_limit_is_a_batch_of_its_own() -> None:
    target = queue(batch_bytes_max=100)
    batch, index, grown = target.append(b"k", b"v" * 5000, (), 0, 0.0)
    assert index == 0
    assert grown == batch.builder.size_bytes > 5000
    assert target.next_ready(0.0, 60.0) is batch


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(80, 500))
def test_grown_bytes_add_up_to_the_batches_and_no_record_is_lost(sizes: list[int], limit: int) -> None:
    target = queue(batch_bytes_max=limit)
    grown, batches = 0, []
    for size in sizes:
        batch, index, more = target.append(None, b"x" * size, (), 0, 0.0)
        grown += more
        if batch not in batches:
            batches.append(batch)
            assert index == 0
    assert sum(len(batch.builder) for batch in batches) == len(sizes)
    assert sum(batch.builder.size_bytes for batch in batches) == grown
    assert [batch.is_open for batch in batches[:-1]] == [False] * (len(batches) - 1)


def test_sequences_follow_each_other_and_stay_when_batches_are_sent_again() -> None:
    target = queue(batch_bytes_max=150)
    put(target, 6)
    target.close_open()
    sent = []
    while (batch := target.next_ready(0.0, 0.0)) is not None:
        target.mark_sent(batch)
        sent.append(batch)
    expected, next_sequence = [], 0
    for batch in sent:
        expected.append(next_sequence)
        next_sequence += len(batch.builder)
    assert [batch.base_sequence for batch in sent] == expected
    target.rewind()
    again = target.next_ready(0.0, 0.0)
    assert again is sent[0]
    target.mark_sent(again)
    assert (again.base_sequence, again.attempts) == (0, 2)


def test_sequences_wrap_from_the_largest_int32_to_zero() -> None:
    target = queue()
    target.next_sequence = 0x7FFF_FFFF
    (batch,) = put(target)
    target.close_open()
    target.mark_sent(batch)
    assert (batch.base_sequence, target.next_sequence) == (0x7FFF_FFFF, 0)


def test_another_producer_id_starts_at_zero_with_the_oldest_batch() -> None:
    target = queue(batch_bytes_max=100)
    put(target, 2)
    first = target.next_ready(0.0, 0.0)
    assert first is not None
    target.mark_sent(first)
    target.pop_oldest()
    target.has_gap = True
    target.renumber(8, 3)
    second = target.next_ready(0.0, 0.0)
    assert second is not None
    target.mark_sent(second)
    assert (second.base_sequence, target.producer_id, target.has_gap) == (0, 8, False)


@pytest.mark.parametrize(
    ("code", "is_first", "has_gap", "attempts", "expected"),
    [
        (ErrorCode.NOT_LEADER_OR_FOLLOWER, True, False, 1, SendRefusal.SEND_AGAIN),
        (ErrorCode.KAFKA_STORAGE_ERROR, True, False, 9, SendRefusal.SEND_AGAIN),
        (ErrorCode.MESSAGE_TOO_LARGE, True, False, 1, SendRefusal.GIVE_UP),
        (ErrorCode.INVALID_RECORD, True, True, 1, SendRefusal.GIVE_UP),
        (ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, False, False, 1, SendRefusal.SEND_AGAIN),
        (ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, True, True, 1, SendRefusal.NEW_PRODUCER),
        (ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, True, False, 1, SendRefusal.GIVE_UP),
        (ErrorCode.UNKNOWN_PRODUCER_ID, True, False, 1, SendRefusal.NEW_PRODUCER),
        (ErrorCode.UNKNOWN_PRODUCER_ID, True, False, 2, SendRefusal.GIVE_UP),
        (31_000, True, False, 1, SendRefusal.GIVE_UP),
    ],
)
def test_what_becomes_of_a_refused_batch(
    code: int, is_first: bool, has_gap: bool, attempts: int, expected: SendRefusal
) -> None:
    assert refusal_of(code, is_first=is_first, has_gap=has_gap, attempts=attempts) is expected
