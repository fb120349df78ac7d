"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.units import format_duration, format_size, parse_duration_ms, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (4096, 4096),
        ("512MiB", 512 * 2**20),
        ("512 mib", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("10kB", 10_000),
        ("10k", 10_000),
        ("1TB", 10**12),
        ("7b", 7),
        (" 2KiB ", 2048),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_size_is_read_in_binary_and_decimal_units(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "12 parsecs", "1e3", "-5", "1,5MiB", "9" * 400, "1MiB\n2", True, 1.5, None]
)
def test_size_of_another_form_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="write it like 512MiB"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("250ms", 250),
        ("1.5s", 1500),
        ("5m", 300_000),
        ("5min", 300_000),
        ("2H", 7_200_000),
        ("7d", 604_800_000),
        ("-1", -1),
        (-1, -1),
        ("0s", 0),
    ],
)
def test_duration_is_read_with_its_unit(text: str | int, duration_ms: int) -> None:
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize("text", ["", "5", 5, "9" * 400 + "d", "5 fortnights", "-2s", True, None])
def test_duration_without_a_known_unit_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="like 250ms, 30s or 7d"):
        parse_duration_ms(text)  # type: ignore[arg-type]


@given(st.integers(-1, 10**12))
def test_formatted_duration_reads_back_exactly(duration_ms: int) -> None:
    assert parse_duration_ms(format_duration(duration_ms)) == duration_ms


@given(st.integers(0, 2**50))
def test_formatted_size_reads_back_within_a_twentieth_of_its_unit(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(size, 1) * 0.05


@given(st.integers(0, 1023), st.sampled_from([1, 2**10, 2**20, 2**30, 2**40]))
def test_formatted_size_is_exact_for_whole_units(count: int, unit: int) -> None:
    assert parse_size(format_size(count * unit)) == count * unit


def test_any_size_can_be_formatted() -> None:
    """A number with 400 digits is refused in a sentence that shows it."""
    assert format_size(18 * 10**400).endswith("TiB")
