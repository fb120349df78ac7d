"""How much windows of one kind differ by themselves: a smaller difference between two kinds says nothing."""

from __future__ import annotations

__all__ = ("spread",)

from collections.abc import Sequence
from statistics import quantiles


def spread(values: Sequence[float]) -> float:
    """From the lower quartile to the upper, 0 for less than two values.

    Not the worst value less the best: one stall would excuse everything.
    """
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low
