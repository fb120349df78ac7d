"""How much of a clause's time a slow medium gets."""

from __future__ import annotations

__all__ = ("Pace",)

import time
from collections.abc import Callable
from statistics import median

#: Of fewer, one that took very long says nothing.
_STEPS_MIN = 3


class Pace:
    """Says when a slow medium has had its time, and never that a busy machine has.

    On most media ``steps`` steps take much less than ``budget_s``. Over a network each of them takes longer. Where
    the machine is busy with something else, a few take very long, and most of them take what they always do.
    """

    def __init__(self, budget_s: float, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_s = budget_s
        self._steps = steps
        self._clock = clock
        self._began = self._last = clock()
        self._took: list[float] = []

    def step(self) -> None:
        """One more was done."""
        now = self._clock()
        self._took.append(now - self._last)
        self._last = now

    @property
    def is_over(self) -> bool:
        """Whether the other steps are left out."""
        so_far_s = self._clock() - self._began
        if len(self._took) < _STEPS_MIN:
            return so_far_s > _STEPS_MIN * self._budget_s
        return so_far_s > self._budget_s and self._steps * median(self._took) > self._budget_s
