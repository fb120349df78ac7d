"""CRC-32C: the standard's own example, and checksums that follow from others."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock.checksum
from penstock.checksum import COMBINE_BYTES_MIN, checksum, combine, combine_in_python
from penstock.native import Combine
from penstock.wire.records import build_batch, set_log_append_time, whole_checksum

SIZES = st.one_of(st.integers(0, 300), st.sampled_from([4095, 65536, 200_001, 2**20]))


def test_the_example_of_rfc_3720() -> None:
    assert checksum(bytes(32)) == 0x8A9136AA
    assert checksum(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("combine", [combine, combine_in_python])
@given(first=st.binary(max_size=100), pattern=st.binary(min_size=1, max_size=50), second_bytes=SIZES)
def test_two_runs_of_bytes_combine(combine: Combine, first: bytes, pattern: bytes, second_bytes: int) -> None:
    second = (pattern * (second_bytes // len(pattern) + 1))[:second_bytes]
    assert combine(checksum(first), checksum(second), second_bytes) == checksum(first + second)


def test_threads_that_combine_for_the_first_time_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Produce on the event loop and uploads in threads do: a table that got in twice made all others wrong."""
    first, second = b"first", bytes(range(256)) * 1000
    expected = checksum(first + second)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                monkeypatch.setattr(penstock.checksum, "_shifts", [])
                list(pool.map(lambda size: combine_in_python(1, 2, size), [2**20 - 1] * 4))
                assert combine_in_python(checksum(first), checksum(second), len(second)) == expected
    finally:
        sys.setswitchinterval(interval)


@given(st.integers(1, 300_000), st.booleans())
def test_a_batch_tells_the_checksum_of_all_its_bytes(value_bytes: int, log_append_time: bool) -> None:
    batch = bytearray(build_batch([(None, b"v" * value_bytes, (), 1000)]))
    if log_append_time:
        set_log_append_time(batch, 2000)
    assert whole_checksum(batch) in (None, checksum(batch))
    assert (whole_checksum(batch) is None) == (len(batch) < COMBINE_BYTES_MIN)
