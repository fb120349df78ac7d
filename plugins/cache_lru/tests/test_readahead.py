"""Readahead windows: growth, bounds, cool-down, and a bounded memory of readers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from penstock_cache_lru._readahead import READAHEAD_STEP_BYTES, Readahead

STEP = READAHEAD_STEP_BYTES
MIB = 1024 * 1024


def windows(policy: Readahead, count: int, *, start: int = 0, now: float = 0.0, stream: int = 1) -> list[int]:
    return [policy.on_read(stream, start + i, start + i + 1, now) for i in range(count)]


def test_a_sequential_reader_gets_more_each_time_up_to_the_bound() -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 1000)
    assert windows(policy, 7) == [0, STEP, 2 * STEP, 4 * STEP, 8 * STEP, 8 * STEP, 8 * STEP]


def test_a_reader_that_jumps_gets_nothing() -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 1000)
    assert [policy.on_read(1, offset, offset + 1, 0.0) for offset in (5, 50, 20, 90)] == [0, 0, 0, 0]


def test_readers_of_one_stream_have_windows_of_their_own() -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 1000)
    windows(policy, 4)
    assert windows(policy, 3, start=100) == [0, STEP, 2 * STEP]
    assert policy.on_read(1, 4, 5, 0.0) == 8 * STEP


def test_all_windows_together_take_at_most_half_of_the_cache() -> None:
    policy = Readahead(32 * MIB, 16 * MIB, 1000)
    assert windows(policy, 8)[-1] == 8 * MIB
    assert windows(policy, 8, stream=2)[-1] == 4 * MIB


def test_waste_makes_windows_small_until_it_cooled_down() -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 1000)
    windows(policy, 5)
    policy.on_waste(10.0)
    assert windows(policy, 3, start=5, now=10.5) == [STEP, STEP, STEP]
    assert windows(policy, 3, start=8, now=11.5) == [2 * STEP, 4 * STEP, 8 * STEP]


def test_waste_between_two_reads_is_noticed_even_without_cool_down() -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 0)
    windows(policy, 5)
    policy.on_waste(0.0)
    assert windows(policy, 2, start=5) == [STEP, 2 * STEP]


def test_a_reader_that_stayed_away_begins_anew() -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 1000)
    windows(policy, 5)
    assert policy.on_read(1, 5, 6, 61.0) == 0


def test_zero_turns_it_off() -> None:
    assert set(windows(Readahead(0, 64 * MIB, 1000), 5)) == {0}


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5)), max_size=3000), st.floats(0, 5))
def test_the_table_of_readers_is_bounded(reads: list[tuple[int, int]], pace: float) -> None:
    policy = Readahead(4 * MIB, 64 * MIB, 1000)
    for number, (offset, stream) in enumerate(reads):
        window = policy.on_read(stream, offset, offset + 1, number * pace)
        assert 0 <= window <= 4 * MIB
        assert 1 <= len(policy) <= 1024
