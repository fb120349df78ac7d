"""Memory of tables at work: what one gave back is kept for the next one, for some seconds.

Caches fill an allocator up to its limit. Whoever is granted much there has them let go of as much, which goes back to
the system, and what he gives back is fresh memory to the next one who wants some: a fault for each page, on the event
loop. Tables that are committed every few seconds would have the memory of producers made anew all the time, and their
own.
"""

from __future__ import annotations

__all__ = ("KEPT_S", "StepMemory", "StepRoom")

from penstock.spi.allocator import Allocator, Charge
from penstock.wire.record_columns import ColumnMemory
from penstock.work.timer import Timer, call_after

#: What nobody wanted for so long, and at most twice as long, goes back.
KEPT_S = 5.0
#: Of a step's room: what it reads, the columns made of it, and what inflates meanwhile.
_PARTS = 3


class StepRoom:
    """What a step of a table has: a charge for all of it, and memory for columns of records."""

    def __init__(self, charge: Charge, columns_bytes: int) -> None:
        self.charge = charge
        self.columns = ColumnMemory(columns_bytes)
        self._columns_bytes = columns_bytes

    def renew(self) -> None:
        """Use no memory of before: a compactor that failed or was cancelled may still look at it."""
        self.columns = ColumnMemory(self._columns_bytes)


class StepMemory:
    """Room for steps of tables, each as large."""

    def __init__(self, allocator: Allocator, size: int, batch_bytes: int) -> None:
        """``size`` is charged for a step; a batch of records takes ``batch_bytes`` at most."""
        self._size = size
        #: So much a step reads at once, and so much are the columns of one batch.
        self.window_bytes = max(1, size // _PARTS)
        self.columns_bytes = min(batch_bytes, self.window_bytes)
        self._allocator = allocator
        self._kept: list[StepRoom] = []
        #: How many of them nobody wanted since the last look.
        self._unwanted = 0
        self._timer: Timer | None = None
        self._is_closed = False

    def take_nowait(self) -> StepRoom:
        """Room for a step. Raises FullError, also while others wait for memory: they came first."""
        if self._is_wanted:
            self._let_go(len(self._kept))
        if not self._kept:
            return StepRoom(self._allocator.charge_nowait(self._size, "lake"), self.columns_bytes)
        room = self._kept.pop()
        self._unwanted = min(self._unwanted, len(self._kept))
        return room

    def give_back(self, room: StepRoom) -> None:
        """The step has ended."""
        if self._is_closed or self._is_wanted:
            room.charge.release()
            return
        self._kept.append(room)
        if self._timer is None:
            self._timer = call_after(KEPT_S, self._look)

    @property
    def _is_wanted(self) -> bool:
        """Somebody waits for memory, perhaps until nobody else has any."""
        return self._allocator.statistics().waiting > 0

    def _let_go(self, count: int) -> None:
        for _ in range(count):
            self._kept.pop().charge.release()
        self._unwanted = len(self._kept)

    def _look(self) -> None:
        self._let_go(len(self._kept) if self._is_wanted else self._unwanted)
        self._timer = call_after(KEPT_S, self._look) if self._kept else None

    def close(self) -> None:
        """Keep nothing from now on."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_go(len(self._kept))
