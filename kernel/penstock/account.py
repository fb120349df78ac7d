"""Memory that clients make the broker remember (groups, producers, fetch sessions): counted, bounded, charged.

Each kind of state has a ``Ledger``. Its owner asks for room before state is made, where the answer can still be an
error, and adds what the state takes, which is an integer addition; the allocator's account is moved in steps. State
is never made to wait behind payload: it is small, and groups must work while producers are held back.
"""

from __future__ import annotations

__all__ = ("Ledger", "LedgerStatistics")

from dataclasses import dataclass
from typing import Annotated, Final

from penstock.spi.allocator import Allocator, Charge
from penstock.spi.statistics import counter, gauge

#: What the allocator is charged at a time, and how much less must be in use before a step is given back.
STEP_BYTES: Final = 64 * 1024
_STEPS_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatistics:
    """A snapshot of one kind of state."""

    used_bytes: Annotated[int, gauge("bytes", "Memory that the state takes, by estimate.")]
    limit_bytes: Annotated[int, gauge("bytes", "Memory that it may take.")]
    refused: Annotated[int, counter("requests", "How often there was no room.")]


class Ledger:
    """The account of one kind of state, in estimated bytes: charged to ``allocator``, or only counted without one.

    ``used_bytes`` may be over the limit, after a start with a smaller one than before: state that is there stays,
    and no more is made until enough is gone.
    """

    __slots__ = ("_allocator", "_charged", "_charges", "_purpose", "limit_bytes", "refused", "used_bytes")

    def __init__(self, purpose: str, limit_bytes: int, allocator: Allocator | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.refused = 0
        self._purpose = purpose
        self._allocator = allocator
        self._charges: list[Charge] = []
        self._charged = 0

    def has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes of state may be made; counts refusals."""
        if self.used_bytes + size <= self.limit_bytes:
            return True
        self.refused += 1
        return False

    def add(self, size: int) -> None:
        """State was made or, with a negative size, is gone."""
        self.used_bytes += size
        assert self.used_bytes >= 0, f"more state is gone than was made: purpose={self._purpose}"
        if self._allocator is None:
            return
        while self._charged < self.used_bytes:
            # a start may load megabytes, but what goes later is given back in whole charges
            steps = -(-(self.used_bytes - self._charged) // STEP_BYTES)
            missing = min(steps, _STEPS_MAX) * STEP_BYTES
            self._charges.append(self._allocator.charge_anyway(missing, self._purpose))
            self._charged += missing
        keep = self.used_bytes + STEP_BYTES if self.used_bytes else 0
        while self._charges and self._charged - self._charges[-1].size >= keep:
            charge = self._charges.pop()
            self._charged -= charge.size
            charge.release()

    def close(self) -> None:
        """The owner is gone, and all of its state."""
        self.add(-self.used_bytes)

    def statistics(self) -> LedgerStatistics:
        """A snapshot."""
        return LedgerStatistics(
            used_bytes=self.used_bytes, limit_bytes=self.limit_bytes, refused=self.refused
        )
