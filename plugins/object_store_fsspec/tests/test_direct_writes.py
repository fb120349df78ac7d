"""Large objects pass the page cache by, and are exactly what was written and what is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_object_store_fsspec._direct import BUFFER_BYTES, DIRECT_READ_BYTES_MIN, FileWriter, read_direct
from penstock_object_store_fsspec._files import FileTree

SIZES = st.one_of(
    st.integers(0, 5000), st.sampled_from([4096, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 4097])
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 600_000), st.integers(0, 600_000), st.integers(1, 600_000))
def test_any_range_is_read_directly_as_it_is(tmp_path: Path, size: int, start: int, length: int) -> None:
    path = tmp_path / "object"
    data = bytes(range(251)) * (size // 251 + 1)
    path.write_bytes(data[:size])
    end = start + length
    fd = os.open(path, os.O_RDONLY)
    try:
        found = read_direct(fd, start, end)
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
