"""What level 5 takes for growth: what each part of a long use adds, and nothing that comes and goes."""

from __future__ import annotations

from collections import Counter

from penstock_conformance._growth import kept_with_each


def test_one_object_for_each_cycle_is_growth_and_what_goes_again_is_not() -> None:
    counted = [
        Counter(leak=10 + 50 * part, timers=[0, 60, 100, 20, 70][part], rare=part) for part in range(5)
    ]
    assert kept_with_each(counted, 50) == ["leak"]
