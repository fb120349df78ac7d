"""Idempotent producers of one partition: window, order, epochs, failed appends, snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.depth import examples

from penstock.account import Ledger
from penstock.errors import CorruptError, NewerVersionError
from penstock.log.producer_book import (
    PRODUCER_BYTES,
    Duplicate,
    Producer,
    ProducerBook,
    ProducerMemory,
    SequenceError,
)
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import (
    CONTROL_BIT,
    TIMESTAMP_TYPE_BIT,
    TRANSACTIONAL_BIT,
    BatchError,
    BatchHeader,
    build_batch,
    read_header,
)

SEQUENCE_MAX = 2**31 - 1
EXPIRATION_MS = 100


def batch(
    sequence: int,
    count: int = 1,
    *,
    pid: int = 7,
    epoch: int = 0,
    base_offset: int = 0,
    attributes: int = 0,
    max_timestamp: int = 1000,
) -> BatchHeader:
    return BatchHeader(
        base_offset=base_offset,
        length=100,
        leader_epoch=-1,
        magic=2,
        crc=0,
        attributes=attributes,
        last_offset_delta=count - 1,
        base_timestamp=1000,
        max_timestamp=max_timestamp,
        producer_id=pid,
        producer_epoch=epoch,
        base_sequence=sequence,
        count=count,
    )


@dataclass
class Log:
    """A partition log that gives out offsets and keeps what was appended."""

    table: ProducerBook = field(default_factory=ProducerBook)
    end: int = 0
    stored: list[tuple[int, BatchHeader]] = field(default_factory=list)

    def append(self, header: BatchHeader, now_ms: int = 0) -> int:
        """The base offset in the answer; raises SequenceError."""
        verdict = None if header.producer_id < 0 else self.table.admit(header, now_ms)
        if isinstance(verdict, Duplicate):
            return verdict.base_offset
        offset = self.end
        if verdict is not None:
            self.table.appended(verdict, header, offset, now_ms)
        self.stored.append((offset, header))
        self.end += header.last_offset_delta + 1
        return offset

    def fail_from(self, offset: int) -> None:
        self.table.failed_from(offset)
        self.stored = [(at, header) for at, header in self.stored if at < offset]
        self.end = offset

    def code(self, header: BatchHeader, now_ms: int = 0) -> int:
        with pytest.raises(SequenceError) as caught:
            self.table.admit(header, now_ms)
        return caught.value.error_code


@pytest.fixture
def log() -> Log:
    return Log()


def test_batch_without_producer_id_is_always_accepted_and_not_remembered(log: Log) -> None:
    for _ in range(2):
        log.append(batch(-1, pid=-1, epoch=-1))
    assert (log.end, len(log.table)) == (2, 0)


def test_any_of_the_last_five_batches_comes_back_with_its_first_offset(log: Log) -> None:
    offsets = [log.append(batch(i * 3, 3)) for i in range(5)]
    assert [log.append(batch(i * 3, 3)) for i in range(5)] == offsets == [0, 3, 6, 9, 12]
    assert log.table.admit(batch(6, 3), 0) == Duplicate(6, 8, -1)


def test_sixth_last_batch_is_out_of_order(log: Log) -> None:
    for i in range(6):
        log.append(batch(i))
    assert log.code(batch(0)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(1)) == 1


def test_same_first_sequence_with_another_count_is_no_duplicate(log: Log) -> None:
    log.append(batch(0, 3))
    assert log.code(batch(0, 2)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_a_gap_is_refused_and_names_the_expected_sequence(log: Log) -> None:
    log.append(batch(0, 2))
    with pytest.raises(SequenceError, match=r"base_sequence=3 expected=2$"):
        log.table.admit(batch(3), 0)


def test_unknown_producer_may_start_anywhere(log: Log) -> None:
    assert log.append(batch(41)) == 0
    assert log.code(batch(41 + 5)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(42)) == 1


def test_sequences_wrap_to_zero(log: Log) -> None:
    log.append(batch(SEQUENCE_MAX - 1, 4))  # 2147483646, 2147483647, 0, 1
    assert log.append(batch(SEQUENCE_MAX - 1, 4)) == 0
    assert log.append(batch(2)) == 4
    log.append(batch(SEQUENCE_MAX, pid=8))
    assert log.append(batch(0, pid=8)) == 6


def test_older_epoch_is_fenced(log: Log) -> None:
    log.append(batch(0, epoch=3))
    assert log.code(batch(1, epoch=2)) == ErrorCode.INVALID_PRODUCER_EPOCH
    assert log.code(batch(0, epoch=2)) == ErrorCode.INVALID_PRODUCER_EPOCH


def test_new_epoch_starts_at_zero_and_forgets_the_window(log: Log) -> None:
    log.append(batch(0))
    assert log.code(batch(1, epoch=1)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(0, epoch=1)) == 1
    assert log.append(batch(0, epoch=1)) == 1
    assert log.table.epoch(7) == 1


def test_marker_with_a_newer_epoch_fences_and_restarts_sequences(log: Log) -> None:
    log.append(batch(0, 5))
    log.table.marked(batch(-1, epoch=1, attributes=CONTROL_BIT | TRANSACTIONAL_BIT), 5, 0)
    assert log.code(batch(5)) == ErrorCode.INVALID_PRODUCER_EPOCH
    assert log.code(batch(5, epoch=1)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert isinstance(log.table.admit(batch(0, epoch=1), 0), Producer)


def test_marker_of_the_same_epoch_keeps_the_sequence(log: Log) -> None:
    log.append(batch(0, 5))
    log.table.marked(batch(-1, attributes=CONTROL_BIT | TRANSACTIONAL_BIT), 5, 0)
    assert isinstance(log.table.admit(batch(5), 0), Producer)
    assert log.append(batch(0, 5)) == 0


def test_duplicate_tells_its_log_append_time(log: Log) -> None:
    admitted = log.table.admit(batch(0), 50)
    assert isinstance(admitted, Producer)
    log.table.appended(admitted, batch(0), 0, 50, log_append_time_ms=50)
    assert log.table.admit(batch(0), 60) == Duplicate(0, 0, 50)


def test_producer_expires_after_its_last_write() -> None:
    log = Log(ProducerBook(expiration_ms=100))
    log.append(batch(0), now_ms=10)
    assert log.code(batch(5), now_ms=110) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(5), now_ms=111) == 1
    assert log.code(batch(0), now_ms=111) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER  # the old window is gone


def test_expire_drops_only_old_producers() -> None:
    log = Log(ProducerBook(expiration_ms=100))
    for pid, now_ms in ((1, 0), (2, 0), (3, 50)):
        log.append(batch(0, pid=pid), now_ms)
    log.append(batch(1, pid=1), 60)
    assert log.table.expire(120) == 1
    assert [pid in log.table for pid in (1, 2, 3)] == [True, False, True]


def test_past_the_limit_the_longest_idle_producer_goes() -> None:
    log = Log(ProducerBook(producers_max=2))
    for pid, sequence in ((1, 0), (2, 0), (1, 1), (3, 0)):
        log.append(batch(sequence, pid=pid))
    assert [pid in log.table for pid in (1, 2, 3)] == [True, False, True]


def test_forget(log: Log) -> None:
    log.append(batch(0))
    log.table.forget(7)
    log.table.forget(7)
    assert isinstance(log.table.admit(batch(9), 0), Producer)


# --- transactions, which there are none of ---


@pytest.mark.parametrize("sequence", [0, 1, 2, 5])
def test_a_transactional_batch_is_refused_whoever_sends_it_and_changes_nothing(
    log: Log, sequence: int
) -> None:
    log.append(batch(0))
    log.append(batch(1))
    before = log.table.snapshot(log.end)
    for pid in (7, 8):
        with pytest.raises(BatchError, match="no transactions") as caught:
            log.table.admit(batch(sequence, pid=pid, attributes=TRANSACTIONAL_BIT), 0)
        assert caught.value.error_code == ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    assert log.table.snapshot(log.end) == before
    assert log.append(batch(2)) == 2


def test_without_transactions_all_that_is_durable_is_settled(log: Log) -> None:
    log.append(batch(0, 5))
    assert (log.table.last_stable_offset(3), log.table.aborted(0, 5)) == (3, ())
    log.table.trimmed_to(5)
    assert log.append(batch(0, 5)) == 0, "where the log starts changes nothing for its producers"


# --- failed appends ---


def test_those_in_flight_behind_a_failed_batch_do_not_overtake_it(log: Log) -> None:
    for i in range(3):
        log.append(batch(i))
    log.fail_from(1)
    assert log.code(batch(2)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(0)) == 0  # still a duplicate
    assert log.append(batch(1)) == 1
    assert log.append(batch(2)) == 2


def test_failed_first_batch_is_waited_for(log: Log) -> None:
    log.append(batch(10))
    log.append(batch(11))
    log.fail_from(0)
    assert log.code(batch(11)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(10)) == 0


def test_all_five_in_flight_may_fail(log: Log) -> None:
    for i in range(15):
        log.append(batch(i))
    log.fail_from(10)
    assert log.code(batch(14)) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert [log.append(batch(i)) for i in range(10, 15)] == [10, 11, 12, 13, 14]


def test_more_failed_than_remembered_needs_a_new_epoch(log: Log) -> None:
    for i in range(10):
        log.append(batch(i))
    log.fail_from(4)
    assert {log.code(batch(i)) for i in range(12)} == {ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER}
    assert log.append(batch(0, epoch=1)) == 4


def test_rollback_hits_all_producers_and_counts(log: Log) -> None:
    for i in range(2):
        log.append(batch(i, pid=1))
        log.append(batch(i, pid=2))
    assert log.table.failed_from(1) == 3
    assert isinstance(log.table.admit(batch(1, pid=1), 0), Producer)
    assert isinstance(log.table.admit(batch(0, pid=2), 0), Producer)
    assert log.table.failed_from(1) == 0


def test_failed_new_epoch_still_fences_the_old_one(log: Log) -> None:
    log.append(batch(0))
    log.append(batch(0, epoch=1))
    log.fail_from(1)
    assert log.code(batch(1)) == ErrorCode.INVALID_PRODUCER_EPOCH
    assert log.append(batch(0, epoch=1)) == 1


# --- snapshots and replay ---


def test_snapshot_leaves_out_what_is_not_durable(log: Log) -> None:
    log.append(batch(0))
    log.append(batch(1))
    log.append(batch(0, pid=8))
    restored = ProducerBook()
    assert restored.restore(log.table.snapshot(1)) == 1
    assert restored.admit(batch(0), 0) == Duplicate(0, 0, -1)
    assert isinstance(restored.admit(batch(1), 0), Producer)
    assert 8 not in restored


def test_replay_of_an_overlap_changes_nothing(log: Log) -> None:
    headers = [batch(i, base_offset=i) for i in range(8)]
    for header in headers:
        log.append(header)
    for header in headers:
        log.table.replay(header, 0)
    assert log.append(headers[3]) == 3
    assert log.append(batch(8)) == 8


def test_replay_keeps_the_log_append_time() -> None:
    table = ProducerBook()
    table.replay(batch(0, base_offset=3, attributes=TIMESTAMP_TYPE_BIT, max_timestamp=77), 0)
    assert table.admit(batch(0), 0) == Duplicate(3, 3, 77)


def test_a_restored_producer_that_begins_a_new_epoch_fences_the_old_one_after_a_crash() -> None:
    """Its entry is older than the batch: what isn't durable may be left out of a snapshot, the producer may not."""
    log = Log()
    log.append(batch(0))
    restored = Log(ProducerBook(), end=1)
    restored.table.restore(log.table.snapshot(1))
    restored.append(batch(0, epoch=1))
    after_crash = ProducerBook()
    after_crash.restore(restored.table.snapshot(1))  # the new epoch's batch was lost
    with pytest.raises(SequenceError) as caught:
        after_crash.admit(batch(1), 0)
    assert caught.value.error_code == ErrorCode.INVALID_PRODUCER_EPOCH


#: Written by the code of November 23, of what ``test_a_snapshot_is_written_and_read_as_it_was`` does.
RECORDED_AT_17 = (
    "505350530001000000000000001100000003da4550a700000000000000080002000000020000000000000067ffffffffffffffff017ffffffe"
    "000000010000000000000003000000000000000600000000000000320000000000000007000100000002000000000000006cffffffffffffff"
    "ff01000000000000000100000000000000080000000000000009ffffffffffffffff000000000000000900000000000c0000000000000074"
    "000000000000000b050000000700000007000000000000000c000000000000000cffffffffffffffff0000000800000008000000000000000d"
    "000000000000000dffffffffffffffff0000000900000009000000000000000e000000000000000effffffffffffffff0000000a0000000a00"
    "0000000000000f000000000000000fffffffffffffffff0000000b0000000b00000000000000100000000000000010ffffffffffffffff"
)
RECORDED_AT_12 = (
    "505350530001000000000000000c00000003104a4e8400000000000000080002000000020000000000000067ffffffffffffffff017ffffffe"
    "000000010000000000000003000000000000000600000000000000320000000000000007000100000002000000000000006cffffffffffffff"
    "ff01000000000000000100000000000000080000000000000009ffffffffffffffff00000000000000090000000000070000000000000074"
    "000000000000000b00"
)


def test_a_snapshot_is_written_and_read_as_it_was() -> None:
    book, offset = ProducerBook(), 0
    wrote = [(7, 0, 0, 3, -1), (8, 2, SEQUENCE_MAX - 1, 4, 50), (7, 0, 3, 1, -1), (7, 1, 0, 2, -1)]
    for pid, epoch, sequence, count, append_time_ms in [*wrote, *((9, 0, 5 + i, 1, -1) for i in range(7))]:
        header = batch(sequence, count, pid=pid, epoch=epoch)
        admitted = book.admit(header, 100 + offset)
        assert isinstance(admitted, Producer)
        book.appended(admitted, header, offset, 100 + offset, append_time_ms)
        offset += count
    for end, recorded in ((17, RECORDED_AT_17), (12, RECORDED_AT_12)):
        assert book.snapshot(end).hex() == recorded
        restored = ProducerBook()
        assert restored.restore(bytes.fromhex(recorded)) == end
        assert restored.snapshot(end).hex() == recorded
    assert restored.admit(batch(SEQUENCE_MAX - 1, 4, pid=8, epoch=2), 200) == Duplicate(3, 6, 50)


def test_damaged_snapshot_is_refused_and_changes_nothing(log: Log) -> None:
    log.append(batch(0))
    log.append(batch(1))
    data = log.table.snapshot(2)
    damaged = [data[:size] for size in range(len(data))] + [data + b"\x00"]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for bad in damaged:
        is_newer = bad[:4] == data[:4] and bad[4:6] > data[4:6]
        with pytest.raises(NewerVersionError if is_newer else CorruptError):
            log.table.restore(bad)
    assert log.append(batch(1)) == 1


# --- properties ---

Step = tuple[str, int, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["next", "next", "next", "retry", "any", "epoch", "fail", "idle"]),
        st.integers(1, 2),  # producer
        st.integers(1, 3),  # count
        st.integers(-3, 8),  # how far off
        st.sampled_from([0, 0, SEQUENCE_MAX - 4]),  # where a producer starts
    ),
    max_size=60,
)


@dataclass
class Model:
    """The obvious implementation: all batches of the log, searched from the end."""

    history: list[tuple[int, BatchHeader]] = field(default_factory=list)
    waits_for: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # pid: epoch, sequence after a failure
    #: pid: how many older batches its failed ones pushed out of the window.
    pushed_out: dict[int, int] = field(default_factory=dict)
    #: pid: when it wrote last, and the offset of its first batch since it expired.
    written_ms: dict[int, int] = field(default_factory=dict)
    began: dict[int, int] = field(default_factory=dict)

    def has_expired(self, pid: int, now_ms: int) -> bool:
        return now_ms - self.written_ms.get(pid, now_ms) > EXPIRATION_MS

    def verdict(self, header: BatchHeader, now_ms: int) -> int | str:
        """A base offset, "accept", or an error code."""
        if self.has_expired(header.producer_id, now_ms):
            return "accept"
        began = self.began.get(header.producer_id, 0)
        mine = [(at, h) for at, h in self.history if h.producer_id == header.producer_id and at >= began]
        wait = self.waits_for.get(header.producer_id)
        epoch = max([h.producer_epoch for _, h in mine[-1:]] + ([wait[0]] if wait else []), default=None)
        if epoch is None:
            return "accept"
        if header.producer_epoch < epoch:
            return 47
        if header.producer_epoch > epoch:
            return "accept" if header.base_sequence == 0 else 45
        window = [(at, h) for at, h in mine if h.producer_epoch == epoch]
        if wait is not None:
            expected = wait[1]
        else:
            last = window[-1][1]
            expected = (last.base_sequence + last.count) % 2**31
        if header.base_sequence == expected:
            return "accept"
        # A failed batch has pushed an older one out of the window: that one was answered long before.
        for at, h in window[-5 + self.pushed_out.get(header.producer_id, 0) :]:
            if (h.base_sequence, h.count) == (header.base_sequence, header.count):
                return at
        return 45


def _next_header(log: Log, step: Step, heads: dict[int, tuple[int, int]]) -> BatchHeader:
    kind, pid, count, off, start = step
    epoch, sequence = heads.get(pid, (0, start))
    mine = [header for _, header in log.stored if header.producer_id == pid]
    if kind == "retry" and mine:
        return mine[-min(len(mine), abs(off) + 1)]
    if kind == "any":
        return batch((sequence + off) % 2**31, count, pid=pid, epoch=max(0, epoch - (off == 8)))
    if kind == "epoch":
        return batch(max(0, off), count, pid=pid, epoch=epoch + 1)
    return batch(sequence, count, pid=pid, epoch=epoch)


@given(steps)
@example([("next", 1, 1, 0, 0), ("epoch", 1, 1, 0, 0), ("fail", 1, 2, 0, 0), ("next", 1, 1, 0, 0)])
@settings(max_examples=examples(300), deadline=None)
def test_behaves_like_the_whole_history(script: list[Step]) -> None:
    log, model, heads = Log(ProducerBook(expiration_ms=EXPIRATION_MS)), Model(), dict[int, tuple[int, int]]()
    durable = now_ms = 0
    for step in script:
        if step[0] == "idle":  # what was in flight is durable long before a producer expires
            now_ms += EXPIRATION_MS * step[2] // 2 + 1
            durable = len(log.stored)
            log.table.expire(now_ms - step[3] % 2 * EXPIRATION_MS)  # which only frees memory
            continue
        if step[0] == "fail":
            keep = max(durable, len(log.stored) - step[2])  # at most three fail: fewer than the window
            if keep < len(log.stored):
                failed = [header for _, header in log.stored[keep:]]
                for pid in {header.producer_id for header in failed}:
                    # The newest epoch stays; it waits for the first of its batches that failed.
                    epoch = max(h.producer_epoch for h in failed if h.producer_id == pid)
                    first = next(h for h in failed if (h.producer_id, h.producer_epoch) == (pid, epoch))
                    gone = sum((h.producer_id, h.producer_epoch) == (pid, epoch) for h in failed)
                    model.pushed_out[pid] = model.pushed_out.get(pid, 0) + gone
                    model.waits_for[pid] = heads[pid] = (epoch, first.base_sequence)
                    model.began[pid] = min(model.began.get(pid, 0), log.stored[keep][0])
                log.fail_from(log.stored[keep][0])
                model.history = list(log.stored)
            durable = len(log.stored)
            continue
        header = _next_header(log, step, heads)
        expected = model.verdict(header, now_ms)
        try:
            before = log.end
            offset = log.append(header, now_ms)
            got: int | str = "accept" if log.end > before else offset
        except SequenceError as error:
            got = error.error_code
        assert got == expected, (step, header)
        if got == "accept":
            if model.has_expired(header.producer_id, now_ms):
                model.began[header.producer_id] = offset
                model.pushed_out.pop(header.producer_id, None)
            model.written_ms[header.producer_id] = now_ms
            model.history = list(log.stored)
            model.waits_for.pop(header.producer_id, None)
            same_epoch = heads.get(header.producer_id, (0, 0))[0] == header.producer_epoch
            short = model.pushed_out.get(header.producer_id, 0) if same_epoch else 0
            model.pushed_out[header.producer_id] = max(0, short - 1)
            heads[header.producer_id] = (header.producer_epoch, (header.last_sequence + 1) % 2**31)


@given(steps, st.integers(0, 100))
@settings(max_examples=examples(200), deadline=None)
def test_snapshot_and_replay_give_back_the_state(script: list[Step], percent: int) -> None:
    """Restoring at any durable point and replaying the rest of the log decides like the original."""
    log, heads = Log(), dict[int, tuple[int, int]]()
    for step in script:
        header = _next_header(log, step, heads)
        try:
            log.append(header)
        except SequenceError:
            continue
        heads[header.producer_id] = (header.producer_epoch, (header.last_sequence + 1) % 2**31)
    cut = len(log.stored) * percent // 100
    end = log.stored[cut][0] if cut < len(log.stored) else log.end
    restored = ProducerBook()
    start = restored.restore(log.table.snapshot(end))
    for offset, header in log.stored:
        if offset >= start:
            moved = batch(
                header.base_sequence,
                header.count,
                pid=header.producer_id,
                epoch=header.producer_epoch,
                base_offset=offset,
            )
            restored.replay(moved, 0)
    assert restored.snapshot(log.end) == _sorted_like(log.table, restored, log.end)
    for step in script:
        probe = _next_header(log, step, heads)
        assert _outcome(restored, probe) == _outcome(log.table, probe)


def _sorted_like(table: ProducerBook, other: ProducerBook, end: int) -> bytes:
    """The table's snapshot, taken over a round trip, so that both were restored once."""
    again = ProducerBook()
    again.restore(table.snapshot(end))
    assert len(again) == len(other)
    return again.snapshot(end)


def _outcome(table: ProducerBook, header: BatchHeader) -> object:
    try:
        admitted = table.admit(header, 0)
    except SequenceError as error:
        return error.error_code
    return "accept" if isinstance(admitted, Producer) else admitted


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4))
@settings(max_examples=examples(100), deadline=None)
def test_retries_of_a_pipelining_producer_never_append_twice(lost: list[int], count: int) -> None:
    """Each batch goes out again as long as its answer is lost; the log holds each exactly once, in order."""
    log = Log()
    pending = [batch(i * count, count) for i in range(len(lost))]
    losses = list(lost)
    answers: dict[int, int] = {}
    while len(answers) < len(pending):
        in_flight = [i for i in range(len(pending)) if i not in answers][:5]
        oldest = in_flight[0]
        for i in in_flight:
            offset = log.append(pending[i])
            assert offset == i * count
            if losses[i] == 0:
                if i == oldest or i - 1 in answers:
                    answers[i] = offset
            else:
                losses[i] -= 1
    assert [header.base_sequence for _, header in log.stored] == [i * count for i in range(len(lost))]


def test_active_producers_are_listed_with_what_they_wrote_last() -> None:
    log = Log(ProducerBook(expiration_ms=1000))
    log.append(batch(0, 3, pid=9), now_ms=100)
    log.append(batch(0, 2, pid=7, epoch=4), now_ms=200)
    log.append(batch(2, 1, pid=7, epoch=4), now_ms=900)
    assert log.table.active(1000) == [(7, 4, 2, 900), (9, 0, 2, 100)]
    assert log.table.active(1101) == [(7, 4, 2, 900)], "the other one has expired"


def test_a_producer_whose_only_batch_failed_has_no_last_sequence() -> None:
    log = Log()
    log.append(batch(0, 3))
    log.table.failed_from(0)
    assert [info.last_sequence for info in log.table.active(0)] == [-1]


def test_the_last_sequence_wraps_with_the_sequences() -> None:
    log = Log()
    log.append(batch(SEQUENCE_MAX - 1, 2))
    assert [info.last_sequence for info in log.table.active(0)] == [SEQUENCE_MAX]
    log.append(batch(0, 1))
    assert [info.last_sequence for info in log.table.active(0)] == [0]


def test_a_snapshot_of_a_newer_version_is_named_and_never_damaged() -> None:
    snapshot = ProducerBook().snapshot(7)
    with pytest.raises(
        NewerVersionError, match="newer penstock, upgrade this one: end_offset=7 version=2 known=1"
    ):
        ProducerBook().restore(snapshot[:4] + b"\0\2" + snapshot[6:])


def memory_for(producers: int) -> tuple[Ledger, ProducerMemory]:
    ledger = Ledger("producers", producers * PRODUCER_BYTES)
    return ledger, ProducerMemory(ledger)


def write(table: ProducerBook, producer_id: int, offset: int, now_ms: int = 0) -> None:
    batch = build_batch([(None, b"v", (), 0)], producer_id=producer_id, producer_epoch=0, base_sequence=0)
    header = read_header(memoryview(batch))
    admitted = table.admit(header, now_ms)
    assert isinstance(admitted, Producer)
    table.appended(admitted, header, offset, now_ms)


def test_at_the_bound_the_partition_with_most_producers_forgets_its_oldest() -> None:
    """One client that makes ids up takes nothing from the producers of other partitions."""
    ledger, memory = memory_for(100)
    victim, attacked = ProducerBook(memory=memory), ProducerBook(memory=memory)
    for producer_id in range(5):
        write(victim, producer_id, producer_id)
    for producer_id in range(1000, 6000):
        write(attacked, producer_id, producer_id)
        assert ledger.used_bytes <= ledger.limit_bytes
    assert [info.producer_id for info in victim.active(0)] == list(range(5))
    assert 5999 in attacked
    assert 1000 not in attacked
    assert len(attacked) > 80


def test_snapshots_with_more_producers_than_fit_are_loaded_and_then_shrink() -> None:
    ledger, memory = memory_for(1000)
    before = ProducerBook(memory=memory)
    for producer_id in range(500):
        write(before, producer_id, producer_id)
    data = before.snapshot(500)
    before.release()
    assert ledger.used_bytes == 0
    ledger, memory = memory_for(50)
    after = ProducerBook(memory=memory)
    after.restore(data)
    assert (len(after), ledger.used_bytes) == (500, 500 * PRODUCER_BYTES)
    write(after, 999, 500)
    assert len(after) <= 50
    assert 999 in after


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("wwwfexcrs"), st.integers(0, 30)), max_size=80))
def test_the_memory_of_producers_is_counted_exactly(steps: list[tuple[int, str, int]]) -> None:
    ledger, memory = memory_for(20)
    tables = [ProducerBook(memory=memory, producers_max=12, expiration_ms=20) for _ in range(2)]
    for number, (which, step, value) in enumerate(steps):
        table = tables[which]
        if step == "w":
            if value not in table:
                write(table, value, number, now_ms=number)
        elif step == "f":
            table.forget(value)
        elif step == "e":
            table.expire(number)
        elif step == "x":
            table.failed_from(number - value)
        elif step == "c":
            table.clear()
        elif step == "s":
            table.restore(table.snapshot(number))
        assert ledger.used_bytes == sum(map(len, tables)) * PRODUCER_BYTES
        assert ledger.used_bytes <= ledger.limit_bytes
    for table in tables:
        table.release()
    assert (ledger.used_bytes, memory._tables) == (0, set())


def test_a_producer_without_an_epoch_is_taken_as_kafka_takes_it_until_it_has_one() -> None:
    """Epoch -1 is older than any other, no sequence is checked in it, and -2 is never one."""
    log = Log()
    for sequence in (0, 1, 7):
        log.append(batch(sequence, epoch=-1))
    assert log.append(batch(7, epoch=-1)) == 2, "a duplicate is still one"
    with pytest.raises(SequenceError) as caught:
        log.append(batch(0, epoch=-2))
    assert caught.value.error_code == ErrorCode.INVALID_PRODUCER_EPOCH
    log.append(batch(5, epoch=0))
    with pytest.raises(SequenceError) as caught:
        log.append(batch(8, epoch=-1))
    assert caught.value.error_code == ErrorCode.INVALID_PRODUCER_EPOCH
