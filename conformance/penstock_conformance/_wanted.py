"""An account on which somebody always waits: whatever is given back, more is wanted."""

from __future__ import annotations

__all__ = ("WantedMemory",)

import threading
from collections.abc import Callable

from penstock_conformance.reference._allocator import PlainAllocator, _Grant


class WantedMemory(PlainAllocator):
    """Asks ``evict`` for more within each release, as an allocator does that lets the next one in who waits."""

    def __init__(self, limit: int = 2**30) -> None:
        super().__init__(limit)
        #: Asked for room, once there is a cache; what it said that it freed within other calls.
        self.evict: Callable[[int], int] | None = None
        self.freed = 0
        self.other_threads = 0
        self._asking = False

    def give_back(self, grant: _Grant) -> None:
        super().give_back(grant)
        self.other_threads += threading.get_ident() != self._thread
        if self.evict is not None and not self._asking:
            self._asking = True
            try:
                self.freed += self.evict(1)
            finally:
                self._asking = False
