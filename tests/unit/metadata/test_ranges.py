"""The compact list of a stream's ranges does what a list would do."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.metadata.ranges import _COPIED_MAX, Ranges, StreamRange

numbers = st.integers(-(2**63), 2**63 - 1)
ranges = st.lists(st.builds(StreamRange, numbers, numbers, numbers, numbers, numbers), max_size=8)
edges = st.lists(st.integers(0, 1000), min_size=1, max_size=30, unique=True).map(sorted)


def tiled(offsets: list[int]) -> list[StreamRange]:
    return [StreamRange(a, b, i, b - a, 0) for i, (a, b) in enumerate(pairwise(offsets))]


@given(ranges, ranges, st.integers(-9, 9), st.integers(-9, 9))
def test_it_changes_as_a_list_does(
    before: list[StreamRange], more: list[StreamRange], a: int, b: int
) -> None:
    expected, found = list(before), Ranges(before)
    assert (list(found), len(found), found == Ranges(before)) == (expected, len(expected), True)
    assert list(found[a:b]) == expected[a:b]
    for one in more:
        expected.insert(a, one)
        found.insert(a, one)
        expected.append(one)
        found.append(one)
    assert list(found) == expected
    assert [found[i] for i in range(-len(expected), len(expected))] == expected * 2
    del expected[a:b], found[a:b]
    assert list(found) == expected
    expected[a:b], found[a:b] = more, more
    assert list(found) == expected
    if expected and more:
        expected[-1] = found[-1] = more[0]
        del expected[0], found[0]
    for time_ms in [0, *(r.time_ms for r in expected)]:
        assert found.since(time_ms) == [r for r in expected if r.time_ms >= time_ms]
    kept = found.copy()
    assert list(found) == list(kept) == expected
    found.clear()
    assert (list(found), list(kept)) == ([], expected), "a copy stays as it is"


def test_an_index_past_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        Ranges()[0]
    with pytest.raises(ValueError, match="one piece"):
        Ranges()[::2]


@given(ranges)
def test_it_comes_back_from_its_bytes(before: list[StreamRange]) -> None:
    assert list(Ranges.of(Ranges(before).to_bytes())) == before
    assert Ranges(before).to_bytes() == b"".join(
        number.to_bytes(8, "little", signed=True)
        for r in before
        for number in (r.start, r.end, r.object_id, r.size, r.time_ms)
    )


@given(edges, st.integers(-1, 1001), st.integers(0, _COPIED_MAX))
def test_offsets_are_found_and_dropped(offsets: list[int], offset: int, copied_max: int) -> None:
    listed = tiled(offsets)
    found = Ranges(listed)
    expected = next((i for i, r in enumerate(listed) if r.end > offset), len(listed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.metadata.ranges._COPIED_MAX", copied_max)
        assert found.find(offset) == expected
        assert found.size_bytes == sum(r.size for r in listed)
        assert list(found.object_ids) == [r.object_id for r in listed]
        assert list(found.drop(offset)) == [r.object_id for r in listed[:expected]]
    assert list(found) == listed[expected:]
