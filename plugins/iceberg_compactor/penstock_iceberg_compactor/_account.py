"""What the compactor's process keeps, on the account of the broker's allocator: as much as it kept at most of late.

Caches fill an allocator up to its limit: for each byte that is charged there they let go of one, which the system
gets, and each that is released is made anew, with a fault for each page, on the event loop. What goes up and down
with every commit would have the memory of producers made anew all the time.
"""

from __future__ import annotations

__all__ = ("Account",)

from collections.abc import Callable
from typing import Protocol

from penstock.spi.allocator import Allocator, Charge

#: What is kept goes under.
_PURPOSE = "lake"
#: What wasn't needed for so long, and at most twice as long, is released.
_KEPT_S = 5.0


class Timer(Protocol):
    """One call that is to come."""

    def cancel(self) -> None:
        """Call nothing."""


class Account:
    """A size, charged at its highest of the last seconds."""

    def __init__(
        self, allocator: Allocator, call_later: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        """``call_later`` schedules a function on the event loop."""
        self._allocator = allocator
        self._call_later = call_later
        self._charges: list[Charge] = []
        #: What there is, and at most was since the last look.
        self._size = self._highest = 0
        self.charged = 0
        self._timer: Timer | None = None

    def add(self, size: int) -> None:
        """There is so much more, or less. Accounted for whatever the limit is, as it is there anyway."""
        self._size += size
        self._highest = max(self._highest, self._size)
        self._charge(self._size)
        if self.charged > self._size and self._allocator.statistics().waiting:
            self.settle()  # somebody waits for memory, perhaps until nobody else has any
        if self._timer is None and self.charged > self._size:
            self._timer = self._call_later(_KEPT_S, self._look)

    def _charge(self, size: int) -> None:
        if size > self.charged:
            self._charges.append(self._allocator.charge_anyway(size - self.charged, _PURPOSE))
            self.charged = size

    def _look(self) -> None:
        self._timer = None
        self._lower(self._highest)
        self._highest = self._size
        self.add(0)  # which looks who waits, and for when to look again

    def _lower(self, size: int) -> None:
        if size < self.charged:
            charges, self._charges, self.charged = self._charges, [], 0
            for charge in charges:
                charge.release()
            self._charge(size)

    def settle(self) -> None:
        """Release at once what isn't there."""
        self._highest = self._size
        self._lower(self._size)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
