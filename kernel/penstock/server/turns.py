"""Turns on the event loop: the requests of one connection are handled in slices, between which others are served.

A connection handles what it received in the call that received it, as long as that is little. The rest waits here.
Connections that wait get their turns one after the other, for ``SLICE_S`` in each iteration of the loop; so whoever
asks for little is served after one slice, however many others ask for much. Who used more than its share of the
loop's time (``penstock.time_shares``) waits until it may go on; so does a handler, between two of its portions.
"""

from __future__ import annotations

__all__ = ("SLICE_REQUESTS", "SLICE_S", "Turns", "metered")

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from types import coroutine
from typing import Any, Final, Protocol, TypeVar

from penstock.time_shares import TimeMember, TimeShares

T = TypeVar("T")

#: Seconds that one connection, and all that wait together, may take before others get their turn.
SLICE_S: Final = 0.0005
#: Requests of one connection in one slice.
SLICE_REQUESTS: Final = 64


class _Waits(Protocol):
    time: TimeMember

    def turn(self) -> None:
        """Go on for one slice. Doesn't raise."""


class Turns:
    """Connections that have more to do.

    ``call_soon(function)`` runs it in the next iteration of the loop, ``call_at(time, function)`` at a time of
    ``clock``.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], Any],
        call_at: Callable[[float, Callable[[], None]], Any],
        clock: Callable[[], float],
        processor_time: Callable[[], float],
        shares: TimeShares,
    ) -> None:
        self._call_soon = call_soon
        self._call_at = call_at
        self._clock = clock
        self._processor_time = processor_time
        self._shares = shares
        self._waiting: deque[_Waits] = deque()
        #: Those that may not go on yet, by the time when they may.
        self._limited: list[tuple[float, int, _Waits]] = []
        self._number = 0
        self._is_scheduled = False
        #: When ``_wake`` is called next.
        self._wakes_at: float | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._limited)

    def hold_back(self, connection: _Waits, now: float, *, is_greedy: bool) -> bool:
        """Whether what ``connection`` has just received has to wait for a turn."""
        member = connection.time
        if member.is_limited or member.address.is_limited:
            return self._shares.ready_at(member, now) > now
        return is_greedy and len(self) > 0

    def add(self, connection: _Waits) -> None:
        """It gets a turn after those that wait already."""
        self._waiting.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting:
            if not self._is_scheduled:
                self._is_scheduled = True
                self._call_soon(self._run)
        elif self._limited:
            at = self._limited[0][0]
            if self._wakes_at is None or at < self._wakes_at:
                self._wakes_at = at
                self._call_at(at, self._wake)

    def _wake(self) -> None:
        self._wakes_at = None
        if not self._is_scheduled:
            self._run()

    def _run(self) -> None:
        self._is_scheduled = False
        waiting, limited, shares = self._waiting, self._limited, self._shares
        now = self._clock()
        used = self._processor_time()
        end = used + SLICE_S
        while limited and limited[0][0] <= now:
            waiting.append(heappop(limited)[2])
        for _ in range(len(waiting)):
            connection = waiting.popleft()
            ready = shares.ready_at(connection.time, now)
            if ready > now:
                self._number += 1
                heappush(limited, (ready, self._number, connection))
                continue
            connection.turn()
            began, now = now, self._clock()
            begin, used = used, self._processor_time()
            shares.used(connection.time, used - begin, now - began, now)
            if used >= end:
                break
        self._schedule()


@coroutine
def metered(
    work: Coroutine[Any, Any, T],
    member: TimeMember,
    shares: TimeShares,
    clock: Callable[[], float],
    processor_time: Callable[[], float],
) -> Generator[Any, Any, T]:
    """Run ``work``, and let others go first where it lets them if ``member`` used more than its share."""

    def step(go_on: Callable[[Any], Any], value: Any) -> Any:
        began, begin = clock(), processor_time()
        try:
            return go_on(value)
        finally:
            now = clock()
            shares.used(member, processor_time() - begin, now - began, now)

    try:
        waits = step(work.send, None)
        while True:
            try:
                yield waits
                if waits is None:  # a checkpoint: it could go on at once
                    while (ready := shares.ready_at(member, clock())) > (now := clock()):
                        yield from asyncio.sleep(ready - now).__await__()
            except BaseException as raised:  # noqa: BLE001 - it is raised where work waits
                waits = step(work.throw, raised)
            else:
                waits = step(work.send, None)
    except StopIteration as end:
        result: T = end.value
        return result
