"""Histograms: bounded error at every quantile, and merging loses nothing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_tools.bench.histogram import RELATIVE_ERROR, VALUE_MAX, Histogram, quantile_ticks

VALUES = st.lists(
    st.one_of(st.integers(0, 300), st.integers(0, 10**6), st.integers(0, VALUE_MAX)), min_size=1, max_size=200
)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(values=VALUES, q=st.floats(0, 1))
def test_quantile_is_the_value_of_that_rank_within_the_error(values: list[int], q: float) -> None:
    rank = max(1, math.ceil(q * len(values) - 1e-9))
    exact = sorted(values)[rank - 1]
    assert abs(filled(values).quantile(q) - exact) <= exact * RELATIVE_ERROR


@given(values=st.lists(st.integers(0, 255), min_size=1))
def test_small_values_are_exact(values: list[int]) -> None:
    histogram = filled(values)
    assert histogram.quantile(0) == min(values)
    assert histogram.max == max(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


@given(first=VALUES, second=VALUES)
def test_merged_is_what_one_histogram_would_have_counted(first: list[int], second: list[int]) -> None:
    merged = filled(first)
    merged.merge(filled(second))
    assert merged == filled(first + second)
    assert merged.count == len(first) + len(second)


@given(first=VALUES, second=VALUES)
def test_minus_gives_what_came_after_the_copy(first: list[int], second: list[int]) -> None:
    histogram = filled(first)
    earlier = histogram.copy()
    for value in second:
        histogram.record(value)
    assert histogram.minus(earlier) == filled(second)
    assert earlier == filled(first)


@given(values=VALUES)
def test_buckets_survive_json(values: list[int]) -> None:
    histogram = filled(values)
    assert Histogram(json.loads(json.dumps(histogram.buckets()))) == histogram


@given(values=VALUES, qs=st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_several_quantiles_at_once_are_those_one_by_one(values: list[int], qs: list[float]) -> None:
    histogram = filled(values)
    assert histogram.quantiles(sorted(qs)) == [histogram.quantile(q) for q in sorted(qs)]


def test_values_out_of_range_count_at_its_ends() -> None:
    histogram = filled([-5, VALUE_MAX * 8])
    assert histogram.quantile(0) == 0
    assert histogram.max == pytest.approx(VALUE_MAX, rel=RELATIVE_ERROR)


def test_nothing_recorded_is_zero_everywhere() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.mean, histogram.max, histogram.quantile(0.5)) == (0, 0.0, 0.0, 0.0)


def test_one_call_counts_many() -> None:
    histogram = Histogram()
    histogram.record(7, 1000)
    assert histogram.count == 1000
    assert histogram.quantile(0.5) == 7


@given(count=st.integers(0, 10**9))
def test_ticks_ascend_to_one_and_stop_where_less_than_one_value_is_left(count: int) -> None:
    ticks = quantile_ticks(count)
    assert ticks == sorted(set(ticks))
    assert ticks[-1] == 1.0
    assert all((1 - tick) * count >= 0.99 for tick in ticks[:-1])
