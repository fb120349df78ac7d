"""Large objects pass the page cache by, and are exactly what was written and what is read."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_object_store_fsspec._direct import (
    BUFFER_BYTES,
    DIRECT_READ_BYTES_MIN,
    FileWriter,
    read_buffers,
    read_direct,
)
from penstock_object_store_fsspec._files import FileTree
from tests.depth import examples

from penstock.checksum import checksum
from penstock.spi import Buffer
from penstock.spi.log_cache import StreamEntry
from penstock.stream.object_format import (
    FOOTER,
    ObjectWriter,
    decode_block,
    decode_footer,
    decode_index,
    verify_block,
)

SIZES = st.one_of(
    st.integers(0, 5000), st.sampled_from([4096, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 4097])
)


@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(SIZES, max_size=4), min_size=1, max_size=4))
def test_any_sequence_of_writes_gives_their_concatenation(tmp_path: Path, writes: list[list[int]]) -> None:
    path = tmp_path / "object"
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    expected = b""
    try:
        writer = FileWriter(fd)
        for sizes in writes:
            body = [bytes([number % 251 + 1]) * size for number, size in enumerate(sizes)]
            writer.write(body)
            expected += b"".join(body)
        writer.finish()
    finally:
        os.close(fd)
    assert path.read_bytes() == expected


def test_objects_that_are_put_one_after_the_other_use_one_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh memory costs a page fault per page."""
    tree = FileTree(str(tmp_path / "store"))
    tree.open()
    made: list[int] = []
    fresh = mmap.mmap

    def count(fd: int, size: int, *flags: int) -> mmap.mmap:
        made.append(size)
        return fresh(fd, size, *flags)

    monkeypatch.setattr("penstock.direct_io.mmap.mmap", count)
    try:
        for number in range(5):
            body = [bytes([number]) * 1000] * 2000
            tree.put("a", body)
            assert tree.get("a", 0, None) == b"".join(body)
    finally:
        tree.close()
    assert made.count(BUFFER_BYTES) == 1


def test_a_file_system_without_direct_writes_is_written_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_object_store_fsspec._direct._set_direct", lambda fd, on: False)
    path = tmp_path / "object"
    body = [os.urandom(BUFFER_BYTES), b"tail"]
    with path.open("wb", buffering=0) as file:
        writer = FileWriter(file.fileno())
        writer.write(body)
        writer.finish()
    assert path.read_bytes() == b"".join(body)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 600_000), st.integers(0, 600_000), st.integers(1, 600_000))
def test_any_range_is_read_directly_as_it_is(tmp_path: Path, size: int, start: int, length: int) -> None:
    path = tmp_path / "object"
    data = bytes(range(251)) * (size // 251 + 1)
    path.write_bytes(data[:size])
    end = start + length
    fd = os.open(path, os.O_RDONLY)
    try:
        found = read_direct(fd, start, end, read_buffers())
    finally:
        os.close(fd)
    assert found is not None, "this file system takes O_DIRECT"
    assert found == data[:size][start:end]


@pytest.mark.parametrize("refused_by", ["fcntl", "preadv"])
def test_where_direct_reads_are_refused_the_store_reads_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_by: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    tree = FileTree(str(tmp_path))
    tree.open()
    try:
        body = os.urandom(DIRECT_READ_BYTES_MIN + 100)
        tree.put("key", [body])
        if refused_by == "fcntl":
            monkeypatch.setattr("penstock_object_store_fsspec._direct._set_direct", lambda fd, on: False)
        else:
            monkeypatch.setattr(os, "preadv", refuse)
        assert tree.get("key", 0, None) == body
        assert tree.get("key", 50, len(body) - 7) == body[50:-7]
    finally:
        tree.close()


@pytest.mark.parametrize("part_bytes", [4096, BUFFER_BYTES // 2])
def test_a_disk_that_fills_up_half_way_through_a_write_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    """And nothing else: discarding works while the error, which knows of what wasn't written, is handled."""
    real = os.pwritev
    calls = 0

    def pwritev(fd: int, vectors: Sequence[memoryview], position: int, flags: int = 0) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, [vectors[0][:4096]], position, flags)

    fd = os.open(tmp_path / "object", os.O_CREAT | os.O_WRONLY)
    writer = FileWriter(fd)
    try:
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - as FileTree.put does it
            try:
                monkeypatch.setattr(os, "pwritev", pwritev)
                writer.write([bytes(part_bytes)] * (4 * BUFFER_BYTES // part_bytes))
            finally:
                writer.discard()
    finally:
        os.close(fd)
    assert calls == 2


MEMORY = memoryview(mmap.mmap(-1, 2**22))
MEMORY[:] = random.Random(1).randbytes(2**22)
ENTRIES = st.tuples(
    st.one_of(st.integers(1, 5000), st.integers(65_530, 66_000), st.integers(65_536, 1_500_000)),  # bytes
    st.integers(0, 4095),  # where in a page they begin
    st.booleans(),  # their checksum is known
)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    streams=st.lists(st.lists(ENTRIES, min_size=1, max_size=4), min_size=1, max_size=3),
    block_bytes=st.sampled_from([1, 70_000, 2**20]),
    part_bytes=st.sampled_from([1, 100_000, 2**20, 2**30]),
)
def test_objects_with_fillers_are_read_as_they_were_built(
    tmp_path: Path, streams: list[list[tuple[int, int, bool]]], block_bytes: int, part_bytes: int
) -> None:
    """From large payloads, wherever they lie, over parts of any size, to every entry of every block."""
    writer = ObjectWriter(7, block_bytes, direct_io=True)
    expected: dict[int, list[bytes]] = {}
    for stream_id, sizes in enumerate(streams):
        entries = []
        for number, (size, in_page, known) in enumerate(sizes):
            start = (stream_id * 5 + number * 3) * 4096 + in_page
            data = MEMORY[start : start + size]
            entry = StreamEntry(stream_id, number, number + 1, number, data)
            entry.checksum = checksum(data) if known else None
            entries.append(entry)
        writer.add(stream_id, entries)
        expected[stream_id] = [bytes(entry.data) for entry in entries]
    body, size = writer.finish()
    path = tmp_path / "object"
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        file = FileWriter(fd)
        part: list[Buffer] = []
        for buffer in body:
            part.append(buffer)
            if sum(map(len, part)) >= part_bytes:
                file.write(part)
                part = []
        file.write(part)
        file.finish()
    finally:
        os.close(fd)
    data = memoryview(path.read_bytes())
    assert len(data) == size
    position, index_bytes, crc = decode_footer(data[-FOOTER.size :], 7)
    index = decode_index(data[position : position + index_bytes], crc, 7)
    found: dict[int, list[bytes]] = {}
    for row in index.rows:
        block = data[row.position : row.position + row.size]
        verify_block(block, 7, row.position)
        found.setdefault(row.stream_id, []).extend(bytes(e.data) for e in decode_block(block, row.stream_id))
    assert found == expected
