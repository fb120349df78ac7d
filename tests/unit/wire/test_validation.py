"""What producers may send: each kind of malformed batch is refused with Kafka's code, for each codec."""

from __future__ import annotations

import random
from typing import Any

import lz4.frame
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.unit.wire.batches import GOOD, NOW, sample, with_body, with_header
from tests.unit.wire.whole_batch import validate_produce_batch

from penstock.errors import InvalidRequestError
from penstock.wire import compression, native_code
from penstock.wire.compression import decompress
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import is_transactional, seal_batch
from penstock.wire.records import (
    ATTRIBUTES_POS,
    CODEC_MASK,
    CONTROL_BIT,
    DELETE_HORIZON_BIT,
    HEADER_BYTES,
    TIMESTAMP_TYPE_BIT,
    TRANSACTIONAL_BIT,
    BatchError,
    BatchHeader,
    build_batch,
    iter_records,
    read_header,
)
from penstock.wire.validation import (
    INLINE_BYTES_MAX,
    INLINE_INFLATED_BYTES_MAX,
    INLINE_PYTHON_BYTES_MAX,
    INLINE_RECORDS_MAX,
    BatchRules,
    amend_batch,
    check_batch,
    check_records_nowait,
    check_sum,
)

CODECS = [pytest.param(codec, id=name) for codec, name in enumerate(compression.CODEC_NAMES)]
FULL = [pytest.param(False, id="header"), pytest.param(True, id="full")]


def validate(batch: bytes | bytearray | memoryview, *, version: int = 9, **rules: Any) -> BatchHeader:
    """All at once; and what a connection does at once comes to the same."""
    before = bytes(batch)
    parsed = BatchRules(**({"max_message_bytes": 1 << 20} | rules))
    copy = memoryview(bytearray(before))
    quick: BatchHeader | BatchError | None
    try:
        quick = check_at_once(copy, parsed, version)
    except BatchError as error:
        quick = error
    try:
        found = validate_produce_batch(memoryview(batch), parsed, produce_version=version, now_ms=NOW)
    except BatchError as error:
        same = quick is None or (isinstance(quick, BatchError) and said(quick) == said(error))
        unchanged = bytes(batch) == before == bytes(copy)
        if not (same and unchanged):
            raise AssertionError(f"same={same} unchanged={unchanged}") from error
        raise
    assert quick is None or (quick, copy) == (found, batch)
    return found


def check_at_once(batch: memoryview, rules: BatchRules, version: int) -> BatchHeader | None:
    header = check_batch(batch, rules, version, NOW)
    if not rules.full:
        return amend_batch(batch, header, header.max_timestamp)
    max_timestamp = check_records_nowait(batch, header, rules, NOW)
    return None if max_timestamp is None else amend_batch(batch, header, max_timestamp)


def said(error: BatchError) -> object:
    return str(error), error.error_code, error.record_errors


def refused(batch: bytes | bytearray, **rules: Any) -> BatchError:
    with pytest.raises(BatchError) as caught:
        validate(batch, **rules)
    return caught.value


# --- the header ---


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("full", FULL)
def test_good_batch_passes_unchanged(codec: int, full: bool) -> None:
    batch = sample(100, codec=codec)
    before = bytes(batch)
    assert validate(batch, full=full, keys_required=full) == read_header(before)
    assert batch == before


_BATCH = bytes(sample(1))
_SHORT = (13).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("batch", "code", "of_frames"),
    [
        pytest.param(_BATCH[:11], ErrorCode.INVALID_RECORD, True, id="no length"),
        pytest.param(_BATCH[:8] + _SHORT, ErrorCode.CORRUPT_MESSAGE, True, id="a short length"),
        pytest.param(_BATCH[:8] + b"\xff" * 4, ErrorCode.CORRUPT_MESSAGE, True, id="a length below zero"),
        pytest.param(_BATCH[:16], ErrorCode.INVALID_RECORD, True, id="no version"),
        pytest.param(_BATCH[:16] + b"\3", ErrorCode.CORRUPT_MESSAGE, True, id="a version of the future"),
        pytest.param(_BATCH[:16] + b"\1" + _BATCH[17:], ErrorCode.INVALID_RECORD, True, id="an old version"),
        pytest.param(_BATCH[:-1], ErrorCode.INVALID_RECORD, True, id="cut"),
        pytest.param(_BATCH * 2, ErrorCode.INVALID_RECORD, True, id="two"),
        pytest.param(_BATCH + _BATCH[:8] + _SHORT, ErrorCode.CORRUPT_MESSAGE, True, id="one and no batch"),
        pytest.param(_BATCH + b"x", ErrorCode.INVALID_RECORD, False, id="one and a byte"),
        pytest.param(
            _BATCH[:8] + (48).to_bytes(4, "big") + _BATCH[12:60],
            ErrorCode.CORRUPT_MESSAGE,
            False,
            id="no count",
        ),
    ],
)
def test_what_is_not_one_whole_batch_is_told_from_what_is_wrong_with_one(
    batch: bytes, code: ErrorCode, of_frames: bool
) -> None:
    error = refused(batch)
    assert (error.error_code, error.is_of_frames) == (code, of_frames)


@pytest.mark.parametrize("length", [14, 48, len(_BATCH) - 12])
def test_a_whole_batch_is_of_a_transaction_if_it_says_so_however_short_it_is(length: int) -> None:
    batch = bytearray(_BATCH[: 12 + length])
    batch[8:12] = length.to_bytes(4, "big")
    assert not is_transactional(memoryview(batch))
    batch[22] |= 0x10
    assert is_transactional(memoryview(batch))
    for end in range(len(batch)):
        assert not is_transactional(memoryview(batch)[:end]), "not a whole one"


def test_of_several_faults_the_first_in_kafkas_order_is_told() -> None:
    batch = with_header(bytearray(_BATCH), base_offset=1)
    torn = bytearray(batch)
    torn[-1] ^= 1
    assert refused(torn, max_message_bytes=10).error_code == ErrorCode.INVALID_RECORD, "its offset"
    torn[:8] = bytes(8)
    assert refused(torn, max_message_bytes=10).error_code == ErrorCode.MESSAGE_TOO_LARGE
    assert refused(torn).error_code == ErrorCode.CORRUPT_MESSAGE


def test_the_log_start_is_told_of_what_the_log_finds_but_for_sizes_and_checksums() -> None:
    torn = bytearray(_BATCH)
    torn[-1] ^= 1
    assert not refused(_BATCH[:-1]).tells_log_start
    assert not refused(torn).tells_log_start
    assert not refused(_BATCH, max_message_bytes=10).tells_log_start
    assert refused(with_header(bytearray(_BATCH), count=77)).tells_log_start


def good_idempotent(**fields: Any) -> bytearray:
    return sample(producer_id=9, producer_epoch=1, base_sequence=5, **fields)


def test_idempotent_and_transactional_batches_pass() -> None:
    assert validate(good_idempotent()).base_sequence == 5
    assert validate(good_idempotent(transactional=True)).is_transactional


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize(
    ("batch", "code"),
    [
        pytest.param(b"", ErrorCode.INVALID_RECORD, id="none"),
        pytest.param(sample() + sample(), ErrorCode.INVALID_RECORD, id="two"),
        pytest.param(sample() + b"\x00", ErrorCode.INVALID_RECORD, id="trailing_byte"),
        pytest.param(sample()[:-1], ErrorCode.INVALID_RECORD, id="cut"),
        pytest.param(sample()[:60], ErrorCode.INVALID_RECORD, id="cut_header"),
        pytest.param(with_header(sample(), magic=0), ErrorCode.INVALID_RECORD, id="magic_0"),
        pytest.param(with_header(sample(), magic=1), ErrorCode.INVALID_RECORD, id="magic_1"),
        pytest.param(with_header(sample(), magic=3), ErrorCode.CORRUPT_MESSAGE, id="magic_3"),
        pytest.param(with_header(sample(), magic=-1), ErrorCode.CORRUPT_MESSAGE, id="magic_negative"),
        pytest.param(with_header(sample(), length=48), ErrorCode.CORRUPT_MESSAGE, id="length_below_header"),
        pytest.param(with_header(sample(), length=-1), ErrorCode.CORRUPT_MESSAGE, id="length_negative"),
        pytest.param(sample()[:-1] + b"\xff", ErrorCode.CORRUPT_MESSAGE, id="checksum"),
        pytest.param(
            with_header(sample(), attributes=5), ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, id="codec_5"
        ),
        pytest.param(
            with_header(sample(), attributes=7), ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, id="codec_7"
        ),
        pytest.param(with_header(sample(), count=2), ErrorCode.INVALID_RECORD, id="count_too_small"),
        pytest.param(with_header(sample(), count=4), ErrorCode.INVALID_RECORD, id="count_too_large"),
        pytest.param(
            with_header(sample(), count=0, last_offset_delta=-1), ErrorCode.INVALID_RECORD, id="no_records"
        ),
        pytest.param(
            with_header(sample(), count=-1, last_offset_delta=-2),
            ErrorCode.INVALID_RECORD,
            id="count_negative",
        ),
        pytest.param(
            with_header(sample(), count=-(2**31), last_offset_delta=2**31 - 1),
            ErrorCode.INVALID_RECORD,
            id="count_wraps",
        ),
        pytest.param(sample(base_offset=3), ErrorCode.INVALID_RECORD, id="base_offset"),
        pytest.param(with_header(sample(), attributes=CONTROL_BIT), ErrorCode.INVALID_RECORD, id="control"),
        pytest.param(
            with_header(good_idempotent(), base_sequence=-1),
            ErrorCode.INVALID_RECORD,
            id="pid_without_sequence",
        ),
        pytest.param(
            with_header(sample(), attributes=TRANSACTIONAL_BIT),
            ErrorCode.INVALID_RECORD,
            id="transactional_without_pid",
        ),
    ],
)
def test_bad_header_is_refused(batch: bytes | bytearray, code: int, full: bool) -> None:
    error = refused(batch, full=full)
    assert (error.error_code, error.record_errors) == (code, [])


def test_what_an_epoch_below_zero_means_is_left_to_who_knows_the_producer() -> None:
    batch = with_header(good_idempotent(), producer_epoch=-1)
    assert validate(batch).producer_epoch == -1


def test_zstd_needs_produce_7() -> None:
    batch = sample(codec=4)
    assert refused(batch, version=6).error_code == ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
    assert validate(batch, version=7).codec == 4
    assert validate(sample(codec=3), version=3).codec == 3


def test_lz4_that_javas_client_cannot_read_is_refused() -> None:
    """Kafka fails on it; stored, it would stop each consumer in Java."""
    batch = sample(codec=3)
    plain = decompress(3, batch[61:], 1 << 20) + bytes(100_000)
    linked = seal_batch(read_header(batch), lz4.frame.compress(plain, block_linked=True))
    error = refused(linked)
    assert error.error_code == ErrorCode.INVALID_RECORD
    assert "it isn't one frame of independent blocks" in str(error)


def test_size_limit_counts_the_whole_batch() -> None:
    batch = sample()
    assert validate(batch, max_message_bytes=len(batch))
    assert refused(batch, max_message_bytes=len(batch) - 1).error_code == ErrorCode.MESSAGE_TOO_LARGE


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bit", [DELETE_HORIZON_BIT, 1 << 7, 1 << 8, -(1 << 15)])
def test_attributes_that_are_not_the_clients_are_not_stored(bit: int, codec: int, full: bool) -> None:
    """Whoever gives these bits a meaning later, such as a cleaner that looks for delete horizons, can rely on it."""
    batch = with_header(sample(codec=codec), attributes=codec | bit)
    header = validate(batch, full=full)
    assert header.attributes == codec
    assert header == read_header(batch)
    assert validate(batch) == header


def test_log_append_time_is_the_brokers_to_say() -> None:
    """Kafka refuses it where the topic has LogAppendTime, and where it hasn't, the records' own times count."""
    batch = with_header(sample(), attributes=TIMESTAMP_TYPE_BIT)
    for rules in ({"is_log_append_time": True}, {"full": False}):
        error = refused(batch, **rules)
        assert error.error_code == ErrorCode.INVALID_TIMESTAMP
        assert [index for index, text in error.record_errors if text] == [0, 1, 2]
    no_time = with_header(batch, max_timestamp=-1)
    assert [index for index, text in refused(no_time).record_errors if text] == [0, 1, 2]
    assert validate(batch).attributes == 0
    assert [record.timestamp_ms for record in iter_records(memoryview(batch))] == [NOW, NOW + 1, NOW + 2]


def test_what_is_to_be_put_right_must_be_writable() -> None:
    wrong = with_header(sample(), max_timestamp=0)
    with pytest.raises(InvalidRequestError, match="writable"):
        validate_produce_batch(
            memoryview(bytes(wrong)), BatchRules(max_message_bytes=1000), produce_version=9, now_ms=NOW
        )


# --- timestamps ---


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize(
    ("shift", "passes"),
    [(0, True), (1000, True), (1001, False), (-2000, True), (-2001, False), (NOW * 999, False)],
)
def test_create_time_must_lie_in_the_topics_range(shift: int, passes: bool, full: bool) -> None:
    batch = build_batch([(None, b"v", (), NOW + shift)])
    rules: dict[str, Any] = {"before_max_ms": 2000, "after_max_ms": 1000, "full": full}
    if passes:
        assert validate(batch, **rules)
    else:
        error = refused(batch, **rules)
        assert error.error_code == ErrorCode.INVALID_TIMESTAMP
        assert [index for index, _ in error.record_errors] == [0] * full
    assert validate(batch, is_log_append_time=True, **rules)


@pytest.mark.parametrize("codec", CODECS)
def test_each_record_out_of_range_is_named_also_in_the_middle(codec: int) -> None:
    """KIP-467; the header says nothing of it."""
    batch = build_batch([(None, b"v", (), NOW + shift) for shift in (0, 5000, -1, -9000, 3)], codec=codec)
    batch = with_header(batch, max_timestamp=NOW + 3)
    error = refused(batch, before_max_ms=2000, after_max_ms=1000)
    assert error.error_code == ErrorCode.INVALID_TIMESTAMP
    assert [index for index, text in error.record_errors if text] == [1, 3]
    assert validate(batch, before_max_ms=2000, after_max_ms=1000, is_log_append_time=True)


@pytest.mark.parametrize("full", FULL)
def test_records_without_timestamp_pass_every_range(full: bool) -> None:
    assert validate(build_batch([(None, b"v", (), -1)] * 2), before_max_ms=1, after_max_ms=1, full=full)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("times", "claimed", "stored"),
    [
        pytest.param((5, 9, 7), 777_777, 9, id="too_late"),
        pytest.param((5, 9, 7), 0, 9, id="kafkajs_without_timestamps"),
        pytest.param((5, 9, 7), -1, 9, id="old_sarama"),
        pytest.param((-1, -1), 0, -1, id="librdkafka_without_timestamps"),
        pytest.param((-1, 5), -1, 5, id="only_some"),
        pytest.param((-5, -9), -5, -1, id="before_1970"),
    ],
)
def test_the_greatest_timestamp_is_the_records_own(
    codec: int, times: tuple[int, ...], claimed: int, stored: int
) -> None:
    batch = build_batch([(None, b"v", (), time) for time in times], codec=codec)
    batch = with_header(batch, max_timestamp=claimed)
    header = validate(batch)
    assert (header.max_timestamp, header) == (stored, read_header(batch))
    assert crc32c(batch[ATTRIBUTES_POS:]) == header.crc
    assert [record.timestamp_ms for record in iter_records(memoryview(batch))] == list(times)
    assert validate(batch) == header


def test_log_append_time_takes_any_timestamps_and_leaves_them() -> None:
    batch = with_header(sample(), max_timestamp=5)
    assert validate(batch, is_log_append_time=True, after_max_ms=0).max_timestamp == 5


def test_overflowing_timestamps_are_named() -> None:
    body = build_batch([(None, None, (), 0), (None, None, (), 2**62)])[HEADER_BYTES:]
    batch = with_body(body, 2, base_timestamp=2**62, max_timestamp=NOW)
    error = refused(batch)
    assert error.error_code == ErrorCode.INVALID_TIMESTAMP
    assert [index for index, _ in error.record_errors] == [1]


# --- keys ---


@pytest.mark.parametrize("codec", CODECS)
def test_compacted_topic_names_each_record_without_key(codec: int) -> None:
    batch = build_batch([(key, b"v", (), NOW) for key in (b"a", None, b"", None)], codec=codec)
    error = refused(batch, keys_required=True)
    assert error.error_code == ErrorCode.INVALID_RECORD
    assert [index for index, text in error.record_errors if text] == [1, 3]
    assert validate(batch)


def test_a_bad_timestamp_decides_on_the_code_and_a_missing_key_comes_first() -> None:
    records = [(b"a", 0), (None, 0), (b"", 5000), (None, 5000)]
    batch = build_batch([(key, b"v", (), NOW + shift) for key, shift in records])
    error = refused(batch, keys_required=True, after_max_ms=1000)
    assert error.error_code == ErrorCode.INVALID_TIMESTAMP
    assert [(index, "key" in str(text)) for index, text in error.record_errors] == [
        (1, True),
        (2, False),
        (3, True),
    ]


def test_record_errors_are_bounded() -> None:
    error = refused(build_batch([(None, b"v", (), NOW)] * 1000), keys_required=True)
    assert len(error.record_errors) == 100


# --- the structure of records ---

SECOND = b"\x0c\x00\x00\x02\x01\x01\x00"
MALFORMED = [
    pytest.param(GOOD, 2, id="fewer_records"),
    pytest.param(GOOD + SECOND, 1, id="more_records"),
    pytest.param(GOOD + b"\x00", 1, id="left_over"),
    pytest.param(GOOD + GOOD, 2, id="offset_twice"),
    pytest.param(SECOND, 1, id="offset_starts_at_1"),
    pytest.param(GOOD + b"\x0c\x00\x00\x08\x01\x01\x00", 2, id="offset_gap"),
    pytest.param(b"\x0c\x00\x00\x01\x01\x01\x00", 1, id="offset_negative"),
    pytest.param(b"\x0a\x00\x00\x00\x01\x01\x00", 1, id="length_too_small"),
    pytest.param(b"\x0e\x00\x00\x00\x01\x01\x00\x00", 1, id="length_too_large"),
    pytest.param(b"\x0b\x00\x00\x00\x01\x01\x00", 1, id="length_negative"),
    pytest.param(b"\x00" + GOOD, 1, id="length_0"),
    pytest.param(b"\x0c\x80\x00\x00\x01\x01\x00", 1, id="attributes_that_kafka_python_reads_on_from"),
    pytest.param(b"\x0c\x00\x00\x00\x03\x01\x00", 1, id="key_length_-2"),
    pytest.param(b"\x0c\x00\x00\x00\x01\x03\x00", 1, id="value_length_-2"),
    pytest.param(b"\x0c\x00\x00\x00\x7e\x01\x00", 1, id="key_beyond"),
    pytest.param(b"\x0c\x00\x00\x00\x01\x7e\x00", 1, id="value_beyond"),
    pytest.param(b"\x0c\x00\x00\x00\x01\x01\x01", 1, id="header_count_-1"),
    pytest.param(b"\x0e\x00\x00\x00\x01\x01\x02\x01", 1, id="header_key_null"),
    pytest.param(b"\x10\x00\x00\x00\x01\x01\x02\x00\x03", 1, id="header_value_-2"),
    pytest.param(b"\x10\x00\x00\x00\x01\x01\x02\x7e\x01", 1, id="header_key_beyond"),
    pytest.param(b"\x10\x00\x00\x00\x01\x01\x02\x00\x7e", 1, id="header_value_beyond"),
    pytest.param(b"\x0c\x00\x00\x00\x01\x01\x7e", 1, id="headers_missing"),
    pytest.param(b"\xff" * 11 + b"\x00" * 20, 1, id="endless_varint"),
    pytest.param(b"\x8c" + b"\x80" * 4 + b"\x00" + GOOD[1:], 1, id="length_of_6_bytes"),
    pytest.param(b"\x16\x00\x00\x00" + b"\x81" + b"\x80" * 4 + b"\x00" + b"\x01\x00", 1, id="key_of_6_bytes"),
    pytest.param(b"\x14\x00\x00\x00" + b"\x81\x80\x80\x80\x10" + b"\x01\x00", 1, id="key_of_33_bits"),
    pytest.param(b"\x20\x00" + b"\x80" * 10 + b"\x00" + b"\x00\x01\x01\x00", 1, id="time_of_11_bytes"),
    pytest.param(b"\x1e\x00" + b"\x80" * 9 + b"\x02" + b"\x00\x01\x01\x00", 1, id="time_of_65_bits"),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("body", "count"), MALFORMED)
def test_malformed_records_are_refused(body: bytes, count: int, codec: int) -> None:
    error = refused(with_body(body, count, codec))
    assert (error.error_code, error.record_errors) == (ErrorCode.INVALID_RECORD, [])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(GOOD, id="the_smallest"),
        pytest.param(b"\x0c\x7f\x00\x00\x01\x01\x00", id="attributes_that_nobody_uses"),
        pytest.param(b"\x12\x00\x00\x00\x01\x01\x02\x02\xff\x01", id="header_key_that_is_not_utf8"),
        pytest.param(b"\x8c\x80\x80\x80\x00" + GOOD[1:], id="long_length"),
        pytest.param(
            b"\x2a\x00" + b"\x80" * 9 + b"\x00\x80\x00\x81\x00\x81\x00\x80\x80\x80\x00", id="long_numbers"
        ),
    ],
)
def test_odd_records_pass_as_in_kafka(body: bytes, codec: int) -> None:
    batch = with_body(body, 1, codec, max_timestamp=NOW)
    assert validate(batch).count == len(list(iter_records(memoryview(batch)))) == 1


@pytest.mark.parametrize("codec", CODECS[1:])
def test_records_that_are_not_what_their_codec_says_are_refused(codec: int) -> None:
    whole = sample(50, codec=codec)
    garbage = with_header(with_body(b"not compressed at all", 1), attributes=codec)
    cut = with_header(whole[:-9], length=len(whole) - 9 - 12)
    junk = with_header(whole + b"zz", length=len(whole) + 2 - 12)
    other = with_header(whole, attributes=codec % 4 + 1)
    for batch in (garbage, cut, junk, other):
        assert refused(batch).error_code == ErrorCode.INVALID_RECORD
        assert validate(batch, full=False)


@pytest.mark.parametrize("codec", CODECS[1:])
def test_inflating_is_bounded(codec: int) -> None:
    batch = memoryview(build_batch([(b"k", bytes(100_000), (), NOW)], codec=codec))
    rules = BatchRules(max_message_bytes=1 << 20)
    how: dict[str, Any] = {"produce_version": 9, "now_ms": NOW}
    assert validate_produce_batch(batch, rules, inflated_bytes_max=200_000, **how)
    with pytest.raises(BatchError) as caught:
        validate_produce_batch(batch, rules, inflated_bytes_max=99_999, **how)
    assert caught.value.error_code == ErrorCode.MESSAGE_TOO_LARGE, (
        "Java producers split such a batch and send its parts"
    )
    with pytest.raises(BatchError):
        list(iter_records(batch, inflated_bytes_max=99_999))


def test_a_bomb_is_stopped_by_its_ratio() -> None:
    batch = with_body(bytes(20 << 20), 1, codec=4)
    assert "inflates beyond" in str(refused(batch))


# --- what is quickly done ---


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("fault", [False, True], ids=["good", "bad"])
def test_what_takes_long_is_not_done_at_once(codec: int, fault: bool) -> None:
    """Neither the check nor, if something is wrong, the look for what it is."""
    rules = BatchRules(max_message_bytes=1 << 30, keys_required=fault)
    large = INLINE_BYTES_MAX if codec == 0 else INLINE_INFLATED_BYTES_MAX
    for size in (INLINE_PYTHON_BYTES_MAX // 2, large + 1):
        value = random.Random(size).randbytes(size)
        batch = memoryview(build_batch([(None, value, (), NOW)], codec=codec))
        header = read_header(batch)
        if size > large:
            assert check_records_nowait(batch, header, rules, NOW) is None
        elif fault:
            with pytest.raises(BatchError):
                check_records_nowait(batch, header, rules, NOW)
        else:
            assert check_records_nowait(batch, header, rules, NOW) == NOW


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("size", [100, 40_000, 140_000, 1_100_000])
@pytest.mark.parametrize("count", [1, INLINE_RECORDS_MAX + 1])
def test_the_checksum_of_what_is_not_looked_at_at_once_is_checked_late_and_no_other(
    codec: int, full: bool, size: int, count: int
) -> None:
    noise = random.Random(1).randbytes(size)
    batch = memoryview(
        build_batch([(None, noise, (), NOW)] + [(None, None, (), NOW)] * (count - 1), codec=codec)
    )
    rules = BatchRules(max_message_bytes=1 << 21, full=full)
    header = check_batch(batch, rules, 9, NOW)
    check_sum(batch, header, rules)
    at_once = not full or check_records_nowait(batch, header, rules, NOW) is not None
    batch[-1] ^= 1
    with pytest.raises(BatchError, match="checksum mismatch") as at_last:
        validate_produce_batch(batch, rules, produce_version=9, now_ms=NOW)
    assert at_last.value.error_code == ErrorCode.CORRUPT_MESSAGE
    found: BatchError | None = None
    try:
        check_batch(batch, rules, 9, NOW)
    except BatchError as error:
        found = error
    assert said(found) == said(at_last.value) if found is not None else not at_once


@pytest.mark.skipif(native_code.walk is None, reason="without native code less is done at once")
def test_many_small_records_are_not_looked_at_at_once_however_few_bytes_they_are() -> None:
    rules = BatchRules(max_message_bytes=1 << 30, keys_required=False)
    for count in (INLINE_RECORDS_MAX, INLINE_RECORDS_MAX + 1):
        batch = memoryview(build_batch([(None, None, (), NOW)] * count))
        assert len(batch) < INLINE_BYTES_MAX
        found = check_records_nowait(batch, read_header(batch), rules, NOW)
        assert found == (NOW if count <= INLINE_RECORDS_MAX else None)


# --- nothing that gets in stops a reader ---


@given(
    codec=st.integers(0, 4),
    flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4),
    fields=st.dictionaries(
        st.sampled_from(["count", "last_offset_delta", "max_timestamp", "base_timestamp", "attributes"]),
        st.integers(-3, 50),
        max_size=2,
    ),
)
@settings(max_examples=examples(600), deadline=None)
def test_what_gets_in_is_read_by_consumers_with_its_offsets_and_times(
    codec: int, flips: list[tuple[int, int]], fields: dict[str, int]
) -> None:
    body = build_batch([(b"k%d" % i, b"v" * i, [("h", b"x")], NOW + i) for i in range(40)])[HEADER_BYTES:]
    for place, value in flips:
        body[place % len(body)] = value
    batch = with_header(with_body(body, 40, codec), **fields)
    try:
        header = validate(batch)
    except BatchError:
        return
    records = list(iter_records(memoryview(batch)))
    assert [record.offset for record in records] == list(range(header.count))
    assert header.max_timestamp == max(-1, *(record.timestamp_ms for record in records))
    assert header.attributes & ~CODEC_MASK & ~TRANSACTIONAL_BIT == 0


@given(body=st.binary(max_size=60))
@settings(max_examples=examples(300), deadline=None)
def test_noise_that_gets_in_is_read(body: bytes) -> None:
    batch = with_body(GOOD + body, 1 if not body else 2, max_timestamp=NOW)
    try:
        header = validate(batch)
    except BatchError:
        return
    assert [record.offset for record in iter_records(memoryview(batch))] == list(range(header.count))
