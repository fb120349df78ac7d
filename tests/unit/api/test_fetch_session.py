"""Fetch sessions (KIP-227), as pure values."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.account import Ledger
from penstock.api.fetch_session import _PARTITION_BYTES, _SESSION_BYTES, FetchSessions, Plan, SessionError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import FetchPartition, FetchTopic, ForgottenTopic


def topic(name: str, *partitions: int, offset: int = 0) -> FetchTopic:
    return FetchTopic(
        topic=name,
        topic_id=name.encode().rjust(16),
        partitions=[
            FetchPartition(partition=p, fetch_offset=offset, partition_max_bytes=100) for p in partitions
        ],
    )


def sessions(sessions_max: int = 10) -> FetchSessions:
    return FetchSessions(sessions_max, random.Random(1))


def begin(
    of: FetchSessions,
    session_id: int,
    epoch: int,
    *topics: FetchTopic,
    forgotten: tuple[ForgottenTopic, ...] = (),
    by_id: bool = False,
    now_s: float = 0.0,
) -> Plan:
    return of.begin(session_id, epoch, topics, forgotten, by_id=by_id, now_s=now_s)


def test_without_session_everything_is_asked_and_told_each_time() -> None:
    of = sessions()
    plan = begin(of, 0, -1, topic("a", 0, 1))
    assert (plan.session_id, plan.incremental, len(of)) == (0, False, 0)
    for cached in plan:
        assert plan.wanted(cached, size_bytes=0, failed=False, offsets=(5, 5, 0))
        assert plan.wanted(cached, size_bytes=0, failed=False, offsets=(5, 5, 0))


def test_incremental_request_names_only_what_changes() -> None:
    of = sessions()
    first = begin(of, 0, 0, topic("a", 0, 1), topic("b", 0))
    assert first.session_id > 0
    second = begin(of, first.session_id, 1, topic("a", 1, offset=9))
    assert [(c.topic, c.partition, c.fetch_offset) for c in second] == [("a", 0, 0), ("a", 1, 9), ("b", 0, 0)]
    third = begin(of, first.session_id, 2, forgotten=(ForgottenTopic(topic="a", partitions=[0, 1]),))
    assert [(c.topic, c.partition) for c in third] == [("b", 0)]


def test_what_is_named_and_forgotten_in_one_request_is_forgotten() -> None:
    of = sessions()
    first = begin(of, 0, 0, topic("a", 0, 1))
    gone = (ForgottenTopic(topic="a", partitions=[1, 2]),)
    second = begin(of, first.session_id, 1, topic("a", 1, 2), forgotten=gone)
    assert [(c.topic, c.partition) for c in second] == [("a", 0)]


def test_a_session_ends_with_its_last_partition() -> None:
    of = sessions()
    first = begin(of, 0, 0, topic("a", 0))
    gone = (ForgottenTopic(topic="a", partitions=[0]),)
    last = begin(of, first.session_id, 1, topic("a", 0), forgotten=gone)
    assert (last.session_id, last.incremental, [c.partition for c in last]) == (0, False, [0])
    assert (len(of), of._memory.used_bytes) == (0, 0)


def test_a_session_may_begin_with_nothing() -> None:
    of = sessions()
    first = begin(of, 0, 0)
    assert first.session_id > 0
    assert [c.partition for c in begin(of, first.session_id, 1, topic("a", 3))] == [3]


def test_incremental_answer_mentions_data_errors_and_moved_offsets_only() -> None:
    of = sessions()
    first = begin(of, 0, 0, topic("a", 0))
    (cached,) = first
    assert first.wanted(cached, size_bytes=0, failed=False, offsets=(5, 5, 0))
    plan = begin(of, first.session_id, 1)
    assert not plan.wanted(cached, size_bytes=0, failed=False, offsets=(5, 5, 0))
    assert plan.wanted(cached, size_bytes=1, failed=False, offsets=(5, 5, 0))
    assert plan.wanted(cached, size_bytes=0, failed=False, offsets=(6, 6, 0))
    assert plan.wanted(cached, size_bytes=0, failed=False, offsets=(6, 6, 2))
    assert plan.wanted(cached, size_bytes=0, failed=True, offsets=(-1, -1, -1))
    assert plan.wanted(cached, size_bytes=0, failed=False, offsets=(6, 6, 2)), "told again after an error"


def test_partition_with_data_goes_to_the_end() -> None:
    of = sessions()
    session_id = begin(of, 0, 0, topic("a", 0, 1, 2)).session_id
    plan = begin(of, session_id, 1)
    plan.wanted(next(iter(plan)), size_bytes=10, failed=False, offsets=(5, 5, 0))
    assert [c.partition for c in begin(of, session_id, 2)] == [1, 2, 0]


def test_a_session_begins_in_the_order_of_its_first_answer() -> None:
    """Whoever got data: what is named first comes first once more; what isn't there was told last."""
    of = sessions()
    plan = begin(of, 0, 0, topic("a", 9, 0, 1))
    lost, first, second = plan
    plan.wanted(first, size_bytes=10, failed=False, offsets=(5, 5, 0))
    plan.wanted(second, size_bytes=0, failed=False, offsets=(5, 5, 0))
    plan.wanted(lost, size_bytes=0, failed=True, offsets=(-1, -1, -1))
    assert [c.partition for c in begin(of, plan.session_id, 1)] == [0, 1, 9]


def test_wrong_ids_and_epochs_are_refused() -> None:
    of = sessions()
    session_id = begin(of, 0, 0, topic("a", 0)).session_id
    for args, by_id, code in (
        ((session_id + 1, 1), False, ErrorCode.FETCH_SESSION_ID_NOT_FOUND),
        ((session_id, 2), False, ErrorCode.INVALID_FETCH_SESSION_EPOCH),
        ((session_id, 1), True, ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR),
    ):
        with pytest.raises(SessionError) as caught:
            begin(of, *args, by_id=by_id)
        assert caught.value.error_code == code
    assert begin(of, session_id, 1).session_id == session_id, "a refused request changes nothing"


def test_final_epoch_closes_the_session() -> None:
    of = sessions()
    session_id = begin(of, 0, 0, topic("a", 0)).session_id
    assert begin(of, session_id, -1, topic("a", 0)).session_id == 0
    assert len(of) == 0


def test_epoch_wraps_to_1() -> None:
    of = sessions()
    plan = begin(of, 0, 0, topic("a", 0))
    of._sessions[plan.session_id].epoch = 2**31 - 1
    begin(of, plan.session_id, 2**31 - 1)
    begin(of, plan.session_id, 1)


def test_least_recently_used_session_goes_but_not_a_fresh_one() -> None:
    of = sessions(2)
    one = begin(of, 0, 0, topic("a", 0), now_s=0).session_id
    two = begin(of, 0, 0, topic("a", 0), now_s=1).session_id
    assert begin(of, 0, 0, topic("a", 0), now_s=100).session_id == 0, "both were used within two minutes"
    begin(of, one, 1, now_s=110)
    three = begin(of, 0, 0, topic("a", 0), now_s=200).session_id
    assert three
    with pytest.raises(SessionError):
        begin(of, two, 1)
    begin(of, one, 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=30))
def test_session_holds_what_was_added_and_not_forgotten(steps: list[tuple[str, int, bool]]) -> None:
    of = sessions()
    plan = begin(of, 0, 0, topic("a", 0))
    model = {("a", 0)}
    epoch = 0
    for name, partition, add in steps:
        if not add and model == {(name, partition)}:
            continue  # the last one, with which the session would end
        epoch += 1
        if add:
            plan = begin(of, plan.session_id, epoch, topic(name, partition))
            model.add((name, partition))
        else:
            gone = ForgottenTopic(topic=name, partitions=[partition])
            plan = begin(of, plan.session_id, epoch, forgotten=(gone,))
            model.discard((name, partition))
        assert {(c.topic, c.partition) for c in plan} == model
        size = sum(_PARTITION_BYTES + len(name) for name, _ in model)
        assert of._memory.used_bytes == _SESSION_BYTES + size
    begin(of, plan.session_id, -1)
    assert of._memory.used_bytes == 0


def test_without_room_new_clients_have_no_session_and_old_ones_make_room_when_idle() -> None:
    memory = Ledger("sessions", 3 * (_SESSION_BYTES + 2 * _PARTITION_BYTES))
    of = FetchSessions(1000, random.Random(1), memory)
    ids = [begin(of, 0, 0, topic("a", 0, 1), now_s=number).session_id for number in range(4)]
    assert [bool(one) for one in ids] == [True, True, False, False]
    assert begin(of, 0, 0, topic("a", 0, 1), now_s=200).session_id, "the oldest was idle for two minutes"
    assert memory.used_bytes <= memory.limit_bytes
    with pytest.raises(SessionError) as raised:
        begin(of, ids[0], 1, now_s=200)
    assert raised.value.error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


def test_a_session_that_grows_over_the_room_ends() -> None:
    """Its client is told so, sends everything, and is served without a session."""
    memory = Ledger("sessions", _SESSION_BYTES + 10 * (_PARTITION_BYTES + 1))
    of = FetchSessions(1000, random.Random(1), memory)
    plan = begin(of, 0, 0, topic("a", *range(8)))
    with pytest.raises(SessionError) as raised:
        begin(of, plan.session_id, 1, topic("b", *range(5)))
    assert raised.value.error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
    assert (len(of), memory.used_bytes) == (0, 0)
    plan = begin(of, 0, 0, topic("a", *range(8)), topic("b", *range(5)))
    assert (plan.session_id, len(plan)) == (0, 13)


def test_a_request_that_is_broken_off_leaves_nothing_that_is_on_nobodys_account() -> None:
    """Whoever went away in the midst of long requests made a session as large as he liked, for nothing."""
    memory = Ledger("sessions", 2**30)
    of = FetchSessions(10, random.Random(1), memory)
    session_id = begin(of, 0, 0, topic("a", 0)).session_id
    steps = of.begin_in_steps(session_id, 1, [topic("b", *range(10_000))], (), by_id=False, now_s=0.0)
    for _ in range(5):
        next(steps)
    steps.close()
    assert memory.used_bytes == 0
    with pytest.raises(SessionError) as caught:
        begin(of, session_id, 2)
    assert caught.value.error_code is ErrorCode.FETCH_SESSION_ID_NOT_FOUND
