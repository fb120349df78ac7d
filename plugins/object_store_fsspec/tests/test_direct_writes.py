"""Large objects pass the page cache by and still hold exactly what was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_object_store_fsspec._direct import BUFFER_BYTES, FileWriter

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
