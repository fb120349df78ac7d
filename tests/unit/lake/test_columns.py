"""Committed batches as columns: every record once, in order, bounded, whatever the codec."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.lake.columns import decode_entries, no_records
from penstock.spi.lake import LakeRecord, LakeRecords
from penstock.spi.log_cache import StreamEntry
from penstock.wire import native_code
from penstock.wire.compression import CODEC_NAMES
from penstock.wire.record_batch import BatchError, assign_offsets, set_log_append_time
from penstock.wire.record_columns import ColumnMemory, Columns, Filled
from penstock.wire.records import build_batch, build_marker, iter_records, read_header

NOW = 1_700_000_000_000

_field = st.none() | st.binary(max_size=40)
_headers = st.lists(st.tuples(st.text(max_size=5), _field), max_size=3).map(tuple)
_records = st.lists(st.tuples(_field, _field, _headers, st.integers(0, 2**40)), min_size=1, max_size=20)


@pytest.fixture(params=["native", "python"], autouse=True)
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both, where native code was built."""
    if request.param == "python":
        monkeypatch.setattr(native_code, "measure", None)
        monkeypatch.setattr(native_code, "gather", None)
    elif native_code.gather is None:
        pytest.skip("the native module isn't built, or is older")


def entry(batch: bytearray, base_offset: int) -> StreamEntry:
    assign_offsets(batch, base_offset, 0)
    header = read_header(batch)
    return StreamEntry(1, base_offset, header.next_offset, 0, memoryview(batch), None, 0, None)


def rows(entries: list[StreamEntry], start: int, bytes_max: int) -> list[LakeRecord]:
    """All rows, of batches that join each other and keep to their bound."""
    found: list[LakeRecord] = []
    at = start
    for records in decode_entries(3, entries, start, bytes_max):
        assert records.start_offset == at
        at = records.next_offset
        assert len(records) <= 1 or records.nbytes <= bytes_max + 64
        found += records.rows()
    assert at == max(start, entries[-1].next_offset)
    return found


def read(entries: list[StreamEntry]) -> list[LakeRecord]:
    """By the other decoder."""
    return [
        LakeRecord(
            3,
            one.offset,
            one.timestamp_ms,
            None if one.key is None else bytes(one.key),
            None if one.value is None else bytes(one.value),
            tuple((name.encode(), None if value is None else bytes(value)) for name, value in one.headers),
        )
        for each_entry in entries
        for one in iter_records(each_entry.data)
    ]


@given(
    batches=st.lists(
        st.tuples(_records, st.sampled_from(range(len(CODEC_NAMES))), st.booleans()), min_size=1, max_size=3
    ),
    skipped=st.integers(0, 30),
    bytes_max=st.sampled_from((1, 100, 1000, 2**20)),
)
def test_rows_are_the_records_from_the_start_on(
    batches: list[
        tuple[list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...], int]], int, bool]
    ],
    skipped: int,
    bytes_max: int,
) -> None:
    entries: list[StreamEntry] = []
    base = 10
    for records, codec, is_append_time in batches:
        batch = bytearray(build_batch(records, codec=codec))
        if is_append_time:
            set_log_append_time(batch, NOW)
        entries.append(entry(batch, base))
        base += len(records)
    start = min(10 + skipped, base)
    assert rows(entries, start, bytes_max) == [one for one in read(entries) if one.offset >= start]


def test_control_batches_and_what_is_left_out_only_move_the_position() -> None:
    first = entry(bytearray(build_batch([(b"k", b"v", (), NOW)])), 0)
    marker = entry(
        bytearray(
            build_marker(commit=False, producer_id=7, producer_epoch=0, coordinator_epoch=0, timestamp_ms=NOW)
        ),
        1,
    )
    second = entry(bytearray(build_batch([(b"k", b"w", (), NOW)])), 2)
    assert [one.offset for one in rows([first, marker, second], 0, 1000)] == [0, 2]
    (only,) = decode_entries(3, [marker], 1, 1000)
    assert (len(only), only.start_offset, only.next_offset) == (0, 1, 2)
    out = list(decode_entries(3, [first, second], 0, 1000, lambda header: header.base_offset == 0))
    assert [one.offset for records in out for one in records.rows()] == [2]


def test_records_that_cannot_be_read_are_an_error() -> None:
    batch = bytearray(build_batch([(b"k", b"v", (), NOW)] * 3))
    broken = entry(batch, 0)
    batch[65] ^= 0xFF
    with pytest.raises(BatchError):
        list(decode_entries(0, [broken], 0, 1000))


def test_a_position_alone_has_no_rows() -> None:
    records: LakeRecords = no_records(2, 5, 9)
    assert (len(records), list(records.rows()), records.start_offset, records.next_offset) == (0, [], 5, 9)


def test_values_of_any_size_are_rows() -> None:
    """Large columns are memory of another kind."""
    values = [b"a" * 100_000, b"", b"b" * 70_000]
    entries = [entry(bytearray(build_batch([(one, one, (("h", one),), NOW) for one in values])), 0)]
    found = rows(entries, 0, 2**20)
    assert [(one.key, one.value, one.headers) for one in found] == [(v, v, ((b"h", v),)) for v in values]


def test_batches_are_made_one_after_the_other_in_the_same_memory() -> None:
    """And not in it what is larger than all of it."""
    values = [bytes([number]) * 100_000 for number in range(6)] + [b"x" * 2**20, b"y" * 100_000]
    batch = bytearray(build_batch([(b"k" * 70_000, value, (), NOW) for value in values]))
    places: list[object] = []
    found: list[LakeRecord] = []
    for records in decode_entries(3, [entry(batch, 0)], 0, 400_000, memory=ColumnMemory(400_000)):
        places.append(memoryview(records.values.data).obj)
        found += records.rows()
    assert [(one.key, one.value) for one in found] == [(b"k" * 70_000, value) for value in values]
    assert [place is places[0] for place in places] == [True, True, True, False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="memory that is in use is looked up in /proc")
def test_memory_for_large_columns_isnt_touched_before_records_are_gathered() -> None:
    """Touching new memory holds the interpreter, and so producers, for a millisecond per MiB."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    columns = Columns.of(Filled(value_bytes=256 * 2**20))
    assert resident() - before < 128 * 2**20
    assert (len(columns.values), columns.values[-1]) == (256 * 2**20, 0)
