"""A heap of timers that are mostly moved before they fire, such as session timeouts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ("TimerHeap",)

_Key = TypeVar("_Key", bound=Hashable)


class TimerHeap(Generic[_Key]):
    """Wakes keys up at the earliest time they were scheduled for, and once.

    The truth about a deadline stays with the owner of the key, who schedules again if it woke up too early.
    So moving a timer into the future costs nothing, and the heap holds one live entry per key. A key that its owner
    has no use for any more stays until its time comes, or until ``prune``.
    """

    __slots__ = ("_earliest", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, _Key]] = []
        self._earliest: dict[_Key, int] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._earliest)

    @property
    def next_at_ms(self) -> int | None:
        """When the next key wakes up."""
        return self._heap[0][0] if self._heap else None

    def schedule(self, key: _Key, at_ms: int) -> None:
        """Wake `key` up at `at_ms`, unless it wakes up earlier anyway."""
        earliest = self._earliest.get(key)
        if earliest is not None and earliest <= at_ms:
            return
        self._earliest[key] = at_ms
        self._sequence += 1
        heapq.heappush(self._heap, (at_ms, self._sequence, key))

    @property
    def held(self) -> int:
        """Entries in memory, live or not."""
        return len(self._heap)

    def prune(self, is_needed: Callable[[_Key], bool]) -> None:
        """Forget the keys that aren't needed, and entries whose key wakes up earlier."""
        self._heap = [
            (at_ms, sequence, key)
            for at_ms, sequence, key in self._heap
            if self._earliest.get(key) == at_ms and is_needed(key)
        ]
        heapq.heapify(self._heap)
        self._earliest = {key: at_ms for at_ms, _, key in self._heap}

    def pop_due(self, now_ms: int) -> list[_Key]:
        """The keys that wake up now, in the order of their times."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, key = heapq.heappop(self._heap)
            if self._earliest.get(key) == at_ms:
                del self._earliest[key]
                due.append(key)
        return due
