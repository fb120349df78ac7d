"""Record batches v2: layout, what producers may send, walking, building, time, damage."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable

import msgspec
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.unit.wire.batches import NOW, sample, with_body, with_header
from tests.unit.wire.whole_batch import validate_produce_batch

from penstock.errors import InvalidRequestError
from penstock.wire import compression
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import (
    ATTRIBUTES_POS,
    BASE_OFFSET_POS,
    BATCH_HEADER,
    CONTROL_BIT,
    COUNT_POS,
    CRC_POS,
    HEADER_BYTES,
    LEADER_EPOCH_POS,
    LENGTH_POS,
    MAGIC_POS,
    MAX_TIMESTAMP_POS,
    TRANSACTIONAL_BIT,
    BatchBuilder,
    BatchError,
    BatchHeader,
    Record,
    assign_offsets,
    build_batch,
    build_marker,
    find_timestamp,
    iter_batches,
    iter_records,
    max_timestamp_record,
    plain_records,
    read_header,
    recompress,
    set_log_append_time,
)
from penstock.wire.validation import BatchRules, check_records

CODECS = [pytest.param(codec, id=name) for codec, name in enumerate(compression.CODEC_NAMES)]

# One record, spelled out: key "k", value "v", header h=1, timestamp 1000, offset 5, epoch 2.
LITERAL = bytes.fromhex(
    "0000000000000005"  # base offset
    "0000003e"  # length 62
    "00000002"  # leader epoch
    "02"  # magic
    "00000000"  # checksum, below (by another implementation)
    "0000"  # attributes
    "00000000"  # last offset delta
    "00000000000003e8"  # base timestamp
    "00000000000003e8"  # max timestamp
    "ffffffffffffffff"  # producer id
    "ffff"  # producer epoch
    "ffffffff"  # base sequence
    "00000001"  # count
    "18"  # record length 12
    "00"  # attributes
    "00"  # timestamp delta
    "00"  # offset delta
    "026b"  # key
    "0276"  # value
    "02"  # one header
    "0268"  # its key
    "0231"  # its value
)
LITERAL = LITERAL[:CRC_POS] + struct.pack(">I", 0xBC1D551F) + LITERAL[ATTRIBUTES_POS:]

Raw = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], int]
raw_records = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=80),
        st.none() | st.binary(max_size=300),
        st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=20)), max_size=3),
        st.integers(-1, 2**42),
    ),
    min_size=1,
    max_size=80,
)


RULES = BatchRules(max_message_bytes=1 << 20, keys_required=True)


def validate(batch: memoryview) -> BatchHeader:
    """As a topic that asks for nothing does."""
    rules = BatchRules(max_message_bytes=1 << 20)
    return validate_produce_batch(batch, rules, produce_version=9, now_ms=NOW)


def plain(record: Record) -> Raw:
    key = None if record.key is None else bytes(record.key)
    value = None if record.value is None else bytes(record.value)
    return key, value, record.headers, record.timestamp_ms


# --- layout ---


def test_literal_batch_is_read() -> None:
    header = read_header(LITERAL)
    assert header == BatchHeader(5, 62, 2, 2, 0xBC1D551F, 0, 0, 1000, 1000, -1, -1, -1, 1)
    assert (header.size_bytes, header.last_offset, header.next_offset) == (74, 5, 6)
    (record,) = iter_records(memoryview(LITERAL))
    assert record.offset == 5
    assert plain(record) == (b"k", b"v", [("h", b"1")], 1000)


def test_literal_batch_is_built() -> None:
    assert build_batch([(b"k", b"v", [("h", b"1")], 1000)], base_offset=5, leader_epoch=2) == LITERAL


def test_positions_are_those_of_the_struct() -> None:
    fields = (11, 22, 33, 2, 44, 55, 66, 77, 88, 99, 111, 122, 133)
    raw = BATCH_HEADER.pack(*fields)
    assert len(raw) == HEADER_BYTES == 61
    for pos, code, value in (
        (BASE_OFFSET_POS, ">q", 11),
        (LENGTH_POS, ">i", 22),
        (LEADER_EPOCH_POS, ">i", 33),
        (MAGIC_POS, ">b", 2),
        (CRC_POS, ">I", 44),
        (ATTRIBUTES_POS, ">h", 55),
        (MAX_TIMESTAMP_POS, ">q", 88),
        (COUNT_POS, ">i", 133),
    ):
        assert struct.unpack_from(code, raw, pos) == (value,)


def test_attribute_bits() -> None:
    header = read_header(
        sample(codec=3, transactional=True, producer_id=1, producer_epoch=0, base_sequence=0)
    )
    assert (header.codec, header.is_transactional, header.is_control) == (3, True, False)
    assert header.timestamp_type == "CreateTime"
    control = read_header(sample(control=True))
    assert (control.is_control, control.is_transactional) == (True, False)


def test_last_sequence_wraps() -> None:
    header = read_header(sample(3, producer_id=1, producer_epoch=0, base_sequence=2**31 - 2))
    assert header.last_sequence == 0
    assert read_header(sample()).last_sequence == -1


def test_assign_offsets_patches_in_place_and_keeps_the_checksum() -> None:
    buffer = bytearray(b"before" + sample(3))
    view = memoryview(buffer)[6:]
    assign_offsets(view, 2**40, 17)
    header = read_header(buffer, 6)
    assert (header.base_offset, header.leader_epoch) == (2**40, 17)
    assert crc32c(view[ATTRIBUTES_POS:]) == header.crc
    assert [record.offset for record in iter_records(view)] == [2**40, 2**40 + 1, 2**40 + 2]


def test_log_append_time_renews_the_checksum_and_rules_all_records() -> None:
    batch = sample(3, codec=1)
    set_log_append_time(batch, NOW + 500)
    header = read_header(batch)
    assert (header.timestamp_type, header.max_timestamp, header.codec) == ("LogAppendTime", NOW + 500, 1)
    assert crc32c(memoryview(batch)[ATTRIBUTES_POS:]) == header.crc
    assert {record.timestamp_ms for record in iter_records(memoryview(batch))} == {NOW + 500}


def test_iter_batches_gives_positions() -> None:
    batches = [sample(2), sample(1, base_offset=2), sample(4, base_offset=3)]
    found = list(iter_batches(b"".join(batches)))
    assert [pos for pos, _ in found] == [0, len(batches[0]), len(batches[0]) + len(batches[1])]
    assert [header.next_offset for _, header in found] == [2, 3, 7]
    assert list(iter_batches(b"")) == []


def test_iter_batches_yields_the_whole_ones_before_a_cut_one() -> None:
    batch = sample()
    found = iter_batches(batch + batch[:-1])
    assert next(found)[0] == 0
    with pytest.raises(BatchError) as caught:
        next(found)
    assert caught.value.error_code == ErrorCode.CORRUPT_MESSAGE


def test_iter_batches_refuses_old_formats() -> None:
    with pytest.raises(BatchError) as caught:
        list(iter_batches(with_header(sample(), magic=1)))
    assert caught.value.error_code == ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT


# --- walking and building ---


@pytest.mark.parametrize("codec", CODECS)
@given(records=raw_records, base_offset=st.integers(0, 2**50))
@settings(max_examples=examples(60), deadline=None)
def test_what_is_built_is_read_and_valid(codec: int, records: list[Raw], base_offset: int) -> None:
    batch = build_batch(records, codec=codec)
    header = read_header(batch)
    assert validate(memoryview(batch)) == header
    assert header.max_timestamp == max(record[3] for record in records)
    assign_offsets(batch, base_offset, 0)
    found = list(iter_records(memoryview(batch)))
    assert [plain(record) for record in found] == records
    assert [record.offset for record in found] == list(range(base_offset, base_offset + len(records)))


@given(
    records=raw_records, target=st.integers(-1, 2**42 + 1), codec=st.integers(0, 4), skip=st.integers(0, 10)
)
@settings(max_examples=examples(150), deadline=None)
def test_time_lookups_agree_with_a_plain_walk(records: list[Raw], target: int, codec: int, skip: int) -> None:
    batch = memoryview(build_batch(records, codec=codec, base_offset=100))
    times = [(100 + index, record[3]) for index, record in enumerate(records)]
    if target == -1:
        target = random.Random(len(records)).choice(times)[1]
    later = [(offset, ts) for offset, ts in times if ts >= target and offset >= 100 + skip]
    assert find_timestamp(batch, target, min_offset=100 + skip) == (later[0] if later else None)
    assert max_timestamp_record(batch) == max(times, key=lambda item: item[1])


def test_time_lookups_on_log_append_time() -> None:
    batch = sample(3, base_offset=10)
    set_log_append_time(batch, NOW + 50)
    view = memoryview(batch)
    assert find_timestamp(view, NOW + 50) == (10, NOW + 50)
    assert find_timestamp(view, NOW + 50, min_offset=12) == (12, NOW + 50)
    assert find_timestamp(view, NOW + 51) is None
    assert max_timestamp_record(view) == (10, NOW + 50)


def test_emptied_batch_has_no_records_but_its_offsets() -> None:
    """Compaction keeps the header of a batch whose records are all gone."""
    batch = memoryview(with_header(sample(4)[:HEADER_BYTES], length=49, count=0, base_offset=20))
    ((_, header),) = iter_batches(batch)
    assert header.next_offset == 24
    assert list(iter_records(batch)) == []
    assert max_timestamp_record(batch) is None
    assert find_timestamp(batch, 0) is None


def test_thinned_batch_keeps_its_offsets() -> None:
    body = b"\x0c\x00\x00\x04\x01\x01\x00" + b"\x0c\x00\x02\x0c\x01\x01\x00"  # offset deltas 2 and 6
    batch = memoryview(with_body(body, 2, last_offset_delta=9, base_offset=50, max_timestamp=NOW + 1))
    assert [record.offset for record in iter_records(batch)] == [52, 56]
    assert find_timestamp(batch, NOW + 1) == (56, NOW + 1)


def test_header_key_that_is_not_utf8_is_read_with_replacement() -> None:
    body = b"\x12\x00\x00\x00\x01\x01\x02\x02\xff\x01"
    (record,) = iter_records(memoryview(with_body(body, 1)))
    assert record.headers == [("\ufffd", None)]


def test_builder_stops_at_its_limit_and_starts_again() -> None:
    builder = BatchBuilder(bytes_max=201)
    appended = []
    while (delta := builder.append(b"k", bytes(20), (), NOW)) is not None:
        appended.append(delta)
    batch = builder.build()
    assert appended == [0, 1, 2, 3, 4]
    assert len(batch) == builder.size_bytes == 201
    assert len(list(iter_records(memoryview(batch)))) == len(builder) == 5
    builder.clear()
    assert (len(builder), builder.size_bytes) == (0, HEADER_BYTES)
    assert builder.append(b"k", bytes(1000), (), 5) == 0  # the first always fits
    assert builder.append(None, None) is None
    assert read_header(builder.build()).base_timestamp == 5


def test_builder_takes_negative_time_steps() -> None:
    batch = build_batch([(None, b"", (), 100), (None, None, (), 40)])
    assert [record.timestamp_ms for record in iter_records(memoryview(batch))] == [100, 40]
    assert read_header(batch).max_timestamp == 100


def test_empty_batch_cannot_be_built() -> None:
    with pytest.raises(InvalidRequestError):
        BatchBuilder().build()


@pytest.mark.parametrize("commit", [False, True])
def test_marker(commit: bool) -> None:
    batch = build_marker(
        producer_id=3, producer_epoch=4, commit=commit, coordinator_epoch=5, timestamp_ms=NOW, base_offset=6
    )
    header = read_header(batch)
    assert header.attributes == CONTROL_BIT | TRANSACTIONAL_BIT
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (3, 4, -1)
    (record,) = iter_records(memoryview(batch))
    assert plain(record) == (struct.pack(">hh", 0, commit), struct.pack(">hi", 0, 5), [], NOW)


@pytest.mark.parametrize("target", CODECS)
@pytest.mark.parametrize("source", CODECS)
def test_recompress_changes_only_the_codec(source: int, target: int) -> None:
    batch = sample(50, codec=source, producer_id=1, producer_epoch=2, base_sequence=3)
    again = recompress(memoryview(batch), target)
    old, new = read_header(batch), validate(memoryview(again))
    assert new.codec == target
    assert msgspec.structs.replace(new, length=0, crc=0, attributes=0) == msgspec.structs.replace(
        old, length=0, crc=0, attributes=0
    )
    assert [plain(r) for r in iter_records(memoryview(again))] == [
        plain(r) for r in iter_records(memoryview(batch))
    ]


@given(raw_records, st.sampled_from(range(5)), st.sampled_from(range(5)), st.sampled_from((None, 1, 5, 9)))
def test_recompressed_twice_is_what_it_was(
    raw: list[Raw], source: int, target: int, level: int | None
) -> None:
    """All records of any batch come back, through any two codecs, and the plain bytes are the same."""
    batch = build_batch([(key, value, headers, time) for key, value, headers, time in raw], codec=source)
    once = recompress(memoryview(batch), target, level)
    header = read_header(once)
    assert header.codec == target
    assert header.size_bytes == len(once)
    assert header.crc == crc32c(memoryview(once)[ATTRIBUTES_POS:])
    assert list(map(plain, iter_records(memoryview(once)))) == list(
        map(plain, iter_records(memoryview(batch)))
    )
    assert recompress(memoryview(once), 0) == recompress(memoryview(batch), 0)


@pytest.mark.parametrize("target", CODECS)
@pytest.mark.parametrize("source", CODECS)
def test_recompression_is_bounded(source: int, target: int) -> None:
    batch = build_batch([(b"k", bytes(100_000), (), NOW)], codec=source)
    size = len(recompress(memoryview(batch), target))
    assert recompress(memoryview(batch), target, size_bytes_max=size)
    with pytest.raises(BatchError) as caught:
        recompress(memoryview(batch), target, size_bytes_max=size - 1)
    assert caught.value.error_code == ErrorCode.MESSAGE_TOO_LARGE
    if source:
        with pytest.raises(BatchError) as caught:
            recompress(memoryview(batch), target, inflated_bytes_max=99_999)
        assert caught.value.error_code == ErrorCode.MESSAGE_TOO_LARGE


# --- damage ---

READERS: list[Callable[[memoryview], object]] = [
    lambda view: list(iter_records(view)),
    lambda view: [list(iter_records(view[pos:])) for pos, _ in iter_batches(view)],
    lambda view: find_timestamp(view, NOW + 40),
    max_timestamp_record,
    validate,
    lambda view: check_records(plain_records(view, read_header(view)), 0, read_header(view), RULES, NOW),
    lambda view: recompress(view, 0),
]


def only_batch_errors(batch: bytes | bytearray) -> None:
    for reader in READERS:
        with contextlib.suppress(BatchError):
            reader(memoryview(bytearray(batch)))


@pytest.mark.parametrize("codec", CODECS)
def test_every_cut_gives_only_batch_errors(codec: int) -> None:
    batch = sample(5, codec=codec)
    for size in range(len(batch)):
        only_batch_errors(batch[:size])
        if size >= HEADER_BYTES:  # cut below a header that agrees
            only_batch_errors(with_header(batch[:size], length=size - LEADER_EPOCH_POS))


@given(
    codec=st.integers(0, 4),
    flips=st.lists(st.integers(0, 2**31), min_size=1, max_size=8),
    sealed=st.booleans(),
)
@settings(max_examples=examples(400), deadline=None)
def test_bit_flips_give_only_batch_errors(codec: int, flips: list[int], sealed: bool) -> None:
    batch = build_batch([(b"k%d" % i, b"v" * i, [("h", b"x")], NOW + i) for i in range(40)], codec=codec)
    for flip in flips:
        bit = flip % (len(batch) * 8)
        batch[bit // 8] ^= 1 << bit % 8
    only_batch_errors(with_header(batch) if sealed else batch)


@given(body=st.binary(max_size=60), count=st.integers(1, 5), codec=st.integers(0, 4))
@settings(max_examples=examples(300), deadline=None)
def test_noise_as_records_gives_only_batch_errors(body: bytes, count: int, codec: int) -> None:
    only_batch_errors(with_body(body, count, codec))
