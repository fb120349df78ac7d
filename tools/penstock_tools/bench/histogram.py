"""Latencies counted in buckets whose width grows with the value, as HdrHistogram does it."""

from __future__ import annotations

__all__ = ("RELATIVE_ERROR", "VALUE_MAX", "Histogram", "quantile_ticks")

import math
from collections.abc import Iterable, Mapping
from typing import Self

_BITS = 8
_HALF = 1 << (_BITS - 1)
_VALUE_BITS = 36
_SIZE = (_VALUE_BITS - _BITS) * _HALF + 2 * _HALF

#: Larger values count as this one; in microseconds it is 19 hours.
VALUE_MAX = (1 << _VALUE_BITS) - 1
#: A reported value differs from the recorded one by at most this part of it (exact below 256).
RELATIVE_ERROR = 1 / (1 << _BITS)


class Histogram:
    """Counts of non-negative integers, exact below 256 and within :data:`RELATIVE_ERROR` above.

    One thread records; another may take :meth:`copy` at any time, since counts only grow.
    """

    __slots__ = ("_counts",)

    def __init__(self, buckets: Mapping[int, int] | Iterable[tuple[int, int]] = ()) -> None:
        self._counts = [0] * _SIZE
        for index, count in buckets.items() if isinstance(buckets, Mapping) else buckets:
            self._counts[index] += count

    def record(self, value: int, count: int = 1) -> None:
        """Count ``value``; below 0 it counts as 0, above :data:`VALUE_MAX` as that."""
        if value >= 1 << _BITS:
            if value > VALUE_MAX:
                value = VALUE_MAX
            shift = value.bit_length() - _BITS
            self._counts[(shift << (_BITS - 1)) + (value >> shift)] += count
        else:
            self._counts[max(0, value)] += count

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self._counts)

    @property
    def mean(self) -> float:
        """The average; 0 without values."""
        total = self.count
        return (
            sum(_middle(i) * count for i, count in enumerate(self._counts) if count) / total if total else 0.0
        )

    @property
    def max(self) -> float:
        """The largest value; 0 without values."""
        return self.quantile(1.0)

    def quantile(self, q: float) -> float:
        """The smallest value that is not below a part ``q`` (0 to 1) of all values; 0 without values."""
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Iterable[float]) -> list[float]:
        """:meth:`quantile` of each, which must ascend, in one pass."""
        total = self.count
        found: list[float] = []
        seen = 0
        index = -1
        for q in qs:
            rank = max(1, math.ceil(q * total - 1e-9))
            while total and seen < rank:
                index += 1
                seen += self._counts[index]
            found.append(_middle(index) if total else 0.0)
        return found

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]

    def minus(self, earlier: Histogram) -> Histogram:
        """What was recorded since ``earlier``, a copy of this one."""
        return Histogram(
            (i, a - b) for i, (a, b) in enumerate(zip(self._counts, earlier._counts, strict=True)) if a != b
        )

    def copy(self) -> Self:
        """The counts as they are now."""
        made = type(self)()
        made._counts = self._counts.copy()
        return made

    def buckets(self) -> list[tuple[int, int]]:
        """(index, count) of every bucket in use: what the constructor takes, and fit for JSON."""
        return [(index, count) for index, count in enumerate(self._counts) if count]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment] # counts change


def _middle(index: int) -> float:
    """The value in the middle of a bucket."""
    if index < 2 * _HALF:
        return float(index)
    shift = (index >> (_BITS - 1)) - 1
    low = (index - (shift << (_BITS - 1))) << shift
    return low + ((1 << shift) - 1) / 2


def quantile_ticks(count: int) -> list[float]:
    """Parts (0 to 1) at which to show a distribution of ``count`` values: denser and denser towards 1.

    Four steps for each halving of what is left, until less than one value is left; the last is 1.
    """
    ticks: list[float] = []
    step = 0
    while count * 2 ** -(step / 4) >= 1 and step < 100:
        ticks.append(1 - 2 ** -(step / 4))
        step += 1
    return [*ticks, 1.0]
