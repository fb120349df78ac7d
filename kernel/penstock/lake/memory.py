"""Memory of tables at work: what one gave back is kept for the next one, for some seconds.

Caches fill an allocator up to its limit. Whoever is granted much there has them let go of as much, which goes back to
the system, and what he gives back is fresh memory to the next one who wants some: a fault for each page, on the event
loop. Tables that are committed every few seconds would have the memory of producers made anew all the time.
"""

from __future__ import annotations

__all__ = ("KEPT_S", "StepMemory")

from penstock.spi.allocator import Allocator, Charge
from penstock.work.timer import Timer, call_after

#: What nobody wanted for so long, and at most twice as long, goes back.
KEPT_S = 5.0


class StepMemory:
    """Charges of one size, each for a step of a table."""

    def __init__(self, allocator: Allocator, size: int) -> None:
        self.size = size
        self._allocator = allocator
        self._kept: list[Charge] = []
        #: How many of them nobody wanted since the last look.
        self._unwanted = 0
        self._timer: Timer | None = None
        self._is_closed = False

    def take_nowait(self) -> Charge:
        """Memory for a step. Raises FullError."""
        if not self._kept:
            return self._allocator.charge_nowait(self.size, "lake")
        charge = self._kept.pop()
        self._unwanted = min(self._unwanted, len(self._kept))
        return charge

    def give_back(self, charge: Charge) -> None:
        """The step has ended."""
        if self._is_closed:
            charge.release()
            return
        self._kept.append(charge)
        if self._timer is None:
            self._timer = call_after(KEPT_S, self._look)

    def _look(self) -> None:
        for _ in range(self._unwanted):
            self._kept.pop().release()
        self._unwanted = len(self._kept)
        self._timer = call_after(KEPT_S, self._look) if self._kept else None

    def close(self) -> None:
        """Keep nothing from now on."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._kept:
            self._kept.pop().release()
