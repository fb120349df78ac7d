"""Timers that are mostly moved before they fire, such as session timeouts: a heap, and a task that waits."""

from __future__ import annotations

__all__ = ("TimerHeap", "Timers")

import heapq
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, Generic, TypeVar

import anyio

from penstock.coordinator.waiting import Clock
from penstock.work.pieces import in_portions

_Owner = TypeVar("_Owner", bound=Hashable)
_Key = TypeVar("_Key", bound=Hashable)
#: Timers that an owner has before those without use are looked for.
_HELD_MIN: Final = 250


class TimerHeap(Generic[_Key]):
    """Wakes keys up at the earliest time they were scheduled for, and once.

    The truth about a deadline stays with the owner of the key, who schedules again if it woke up too early.
    So moving a timer into the future costs nothing, and the heap holds one live entry per key. A key that its owner
    has no use for any more stays until its time comes, or until ``prune``.
    """

    __slots__ = ("_earliest", "_heap", "_sequence", "held_max")

    def __init__(self) -> None:
        #: Entries above which those without use should be looked for.
        self.held_max = _HELD_MIN
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
        self.held_max = max(_HELD_MIN, 2 * len(self._heap))

    def pop_due(self, now_ms: int) -> list[_Key]:
        """The keys that wake up now, in the order of their times."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, key = heapq.heappop(self._heap)
            if self._earliest.get(key) == at_ms:
                del self._earliest[key]
                due.append(key)
        return due


class Timers(Generic[_Owner, _Key]):
    """Timers by owner, and the task, `run`, that calls ``fire(owner, key, now_ms)`` for those that are due.

    What is held is bounded by twice what ``is_needed``: of members that left long before their session would end,
    the timers are forgotten. All timers of an owner are forgotten at once, however many they are.
    """

    __slots__ = ("_clock", "_fire", "_heaps", "_is_needed", "_moved", "_sleeps_until_ms")

    def __init__(
        self,
        clock: Clock,
        fire: Callable[[_Owner, _Key, int], None],
        is_needed: Callable[[_Owner, _Key], bool],
    ) -> None:
        self._clock = clock
        self._fire = fire
        self._is_needed = is_needed
        self._heaps: dict[_Owner, TimerHeap[_Key]] = {}
        self._moved = anyio.Event()
        self._sleeps_until_ms: int | None = None

    @property
    def held(self) -> int:
        """Timers in memory, of use or not."""
        return sum(heap.held for heap in self._heaps.values())

    def schedule(self, owner: _Owner, key: _Key, at_ms: int) -> None:
        """Fire `key` of `owner` at `at_ms`, unless it is fired earlier anyway."""
        heap = self._heaps.get(owner)
        if heap is None:
            heap = self._heaps[owner] = TimerHeap()
        heap.schedule(key, at_ms)
        if heap.held > heap.held_max:
            heap.prune(partial(self._is_needed, owner))
        if self._sleeps_until_ms is None or at_ms < self._sleeps_until_ms:
            self._moved.set()

    def forget(self, owner: _Owner) -> None:
        """Fire nothing of `owner` any more."""
        self._heaps.pop(owner, None)

    async def run(self) -> None:
        """Fire what is due, until it's cancelled."""
        while True:
            now_ms = self._clock.now_ms()
            for owner, heap in list(self._heaps.items()):
                # thousands of sessions end at a time where a whole application is killed
                async for key in in_portions(heap.pop_due(now_ms)):
                    if self._heaps.get(owner) is not heap:
                        break  # the owner was forgotten while others had their turn
                    self._fire(owner, key, now_ms)
            self._moved = anyio.Event()
            times = [heap.next_at_ms for heap in self._heaps.values()]
            self._sleeps_until_ms = min((at for at in times if at is not None), default=None)
            delay_ms = None
            if self._sleeps_until_ms is not None:
                delay_ms = max(self._sleeps_until_ms - self._clock.now_ms(), 0)
            await self._clock.wait(self._moved, delay_ms)
