"""Objects: prepared, committed, and destroyed ones that may still be in the store."""

from __future__ import annotations

__all__ = ("ObjectState", "Objects")

from array import array
from collections import Counter
from typing import Literal

import msgspec

from penstock.metadata.table import Table


class ObjectState(msgspec.Struct, gc=False):
    """An object: prepared -> committed -> destroyed -> forgotten."""

    object_id: int
    state: Literal["prepared", "committed", "destroyed"]
    size: int
    #: Prepared: when it is given up. Destroyed: when it was. Wall clock, ms.
    at_ms: int
    #: How many ranges of streams are in it.
    live_ranges: int = 0


class Objects(Table[int, ObjectState]):
    """All objects by id."""

    noun = "object"

    def __init__(self, rows: dict[int, ObjectState], next_id: int) -> None:
        super().__init__(rows)
        #: Every id below this was given out, or passed over; what of them isn't here was forgotten.
        self.next_id = next_id

    def is_forgotten(self, object_id: int) -> bool:
        """Whether the id was given out and is known no more; once true, it is true for ever."""
        return object_id < self.next_id and object_id not in self._rows

    # -- for the fold ----------------------------------------------------------------------------------------

    def prepare(self, count: int, deadline_ms: int) -> list[int]:
        """Give out ``count`` ids, in order."""
        object_ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        for object_id in object_ids:
            self.put(object_id, ObjectState(object_id, "prepared", 0, deadline_ms))
        return object_ids

    def release(self, dropped: array[int], now_ms: int) -> list[int]:
        """A range in each of these objects is gone; one without any is destroyed. Returns each of them once."""
        counts = Counter(dropped)
        for object_id, count in counts.items():
            held = self.change(object_id)
            held.live_ranges -= count
            assert held.live_ranges >= 0, held
            if not held.live_ranges:
                held.state = "destroyed"
                held.at_ms = now_ms
        return list(counts)
