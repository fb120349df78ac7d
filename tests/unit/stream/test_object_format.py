"""The bytes of an object: what is written is read back, and damage anywhere is noticed."""

from __future__ import annotations

import mmap

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests.depth import examples

from penstock.checksum import checksum
from penstock.direct_io import BLOCK_BYTES, LARGE_BYTES
from penstock.errors import CorruptError, NewerVersionError
from penstock.spi.log_cache import StreamEntry
from penstock.stream.object_format import (
    FOOTER,
    ObjectIndex,
    ObjectWriter,
    decode_block,
    decode_footer,
    decode_index,
    object_key,
    verify_block,
)

OBJECT_ID = 0x1234


def entries_of(stream_id: int, payloads: list[bytes], base: int = 0) -> list[StreamEntry]:
    made = []
    for i, payload in enumerate(payloads):
        made.append(StreamEntry(stream_id, base, base + i + 1, 1000 + i, memoryview(payload)))
        base += i + 1
    return made


def write(streams: dict[int, list[StreamEntry]], block_bytes: int = 64) -> bytes:
    writer = ObjectWriter(OBJECT_ID, block_bytes)
    for stream_id in sorted(streams):
        writer.add(stream_id, streams[stream_id])
    parts, size = writer.finish()
    data = b"".join(parts)
    assert len(data) == size
    return data


def read_index(data: bytes) -> ObjectIndex:
    position, size, crc = decode_footer(data[-FOOTER.size :], OBJECT_ID)
    return decode_index(data[position : position + size], crc, OBJECT_ID)


@given(
    st.dictionaries(
        st.integers(1, 9), st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=8), min_size=1
    ),
    st.integers(1, 300),
)
def test_entries_come_back_unchanged_from_the_blocks_the_index_names(
    payloads: dict[int, list[bytes]], block_bytes: int
) -> None:
    streams = {stream_id: entries_of(stream_id, p) for stream_id, p in payloads.items()}
    data = write(streams, block_bytes)
    index = read_index(data)
    for stream_id, entries in streams.items():
        found = []
        for row in index.blocks_from(stream_id, 0):
            block = data[row.position : row.position + row.size]
            verify_block(block, OBJECT_ID, row.position)
            decoded = list(decode_block(block, stream_id))
            assert (row.start, row.end) == (decoded[0].base_offset, decoded[-1].next_offset)
            assert row.time_ms == max(entry.time_ms for entry in decoded)
            found += decoded
        assert [(e.base_offset, e.next_offset, e.time_ms, bytes(e.data)) for e in found] == [
            (e.base_offset, e.next_offset, e.time_ms, bytes(e.data)) for e in entries
        ]


@settings(max_examples=examples(20), deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(1, 500), st.integers(LARGE_BYTES, 80_000)), st.integers(0, 4095)),
        min_size=1,
        max_size=6,
    )
)
def test_for_direct_io_large_payloads_lie_as_in_memory_and_fillers_are_skipped(
    payloads: list[tuple[int, int]],
) -> None:
    entries = []
    for number, (size, offset) in enumerate(payloads):
        view = memoryview(mmap.mmap(-1, offset + size))[offset:]
        view[:] = bytes([number + 1]) * size
        entries.append(StreamEntry(1, number, number + 1, 1000, view))
    writer = ObjectWriter(OBJECT_ID, 100_000, direct_io=True)
    writer.add(1, entries)
    parts, size_bytes = writer.finish()
    data = b"".join(parts)
    assert len(data) == size_bytes
    found = []
    for row in read_index(data).blocks_from(1, 0):
        block = data[row.position : row.position + row.size]
        verify_block(block, OBJECT_ID, row.position)
        for entry in decode_block(block, 1):
            found.append((entry.base_offset, bytes(entry.data)))
    assert found == [(entry.base_offset, bytes(entry.data)) for entry in entries]
    position = 0
    large = {
        id(entry.data): offset
        for entry, (size, offset) in zip(entries, payloads, strict=True)
        if size >= LARGE_BYTES
    }
    for part in parts:
        if id(part) in large:
            assert position % BLOCK_BYTES == large[id(part)]
        position += len(part)


def test_a_checksum_that_is_known_gives_the_same_object() -> None:
    entries = entries_of(1, [b"a" * 10, b"b" * 70_000, b"c" * 20])
    plain = write({1: entries}, 100_000)
    for entry in entries[1:]:
        entry.checksum = checksum(entry.data)
    assert write({1: entries}, 100_000) == plain


def test_a_lookup_starts_with_the_block_that_holds_the_offset() -> None:
    data = write({1: entries_of(1, [b"x" * 60] * 5), 2: entries_of(2, [b"y"])})
    index = read_index(data)
    # entries cover [0,1) [1,3) [3,6) [6,10) [10,15), one or two to a block of 64 bytes
    for offset in range(15):
        row = next(index.blocks_from(1, offset))
        assert row.start <= offset < row.end
    assert list(index.blocks_from(1, 15)) == []
    assert list(index.blocks_from(3, 0)) == []


@given(st.data())
def test_a_flipped_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    """I11: checksums cover every byte of an object."""
    good = write({1: entries_of(1, [b"hello", b"world" * 20]), 2: entries_of(2, [b"!"])})
    damaged = bytearray(good)
    damaged[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    def read_everything() -> None:
        index = read_index(bytes(damaged))
        for row in index.rows:
            verify_block(bytes(damaged[row.position : row.position + row.size]), OBJECT_ID, row.position)

    with pytest.raises(CorruptError):
        read_everything()


def test_the_footer_names_its_object() -> None:
    data = write({1: entries_of(1, [b"x"])})
    with pytest.raises(CorruptError, match="another object"):
        decode_footer(data[-FOOTER.size :], OBJECT_ID + 1)
    with pytest.raises(CorruptError, match="too short"):
        decode_footer(data[:10], OBJECT_ID)


@pytest.mark.parametrize("whole", [True, False], ids=["checksum as now", "checksum not known"])
def test_an_object_of_a_newer_version_is_named_and_never_damaged(whole: bool) -> None:
    """The version is in the footer's magic, and a footer ends with it and four bytes whatever comes before."""
    footer = bytearray(write({1: entries_of(1, [b"x"])})[-FOOTER.size :])
    footer[-12:-4] = b"PSOBJ002"
    footer[-4:] = checksum(footer[:-4]).to_bytes(4, "big") if whole else b"????"
    with pytest.raises(NewerVersionError, match=f"object_id={OBJECT_ID} version=2 known=1"):
        decode_footer(bytes(footer), OBJECT_ID)


def test_keys_of_neighbours_spread_over_prefixes() -> None:
    assert object_key(1) == "objects/1000000000000000"
    assert object_key(0x1234) == "objects/4321000000000000"
