"""Turns on the event loop: the requests of one connection are handled in slices, between which others are served.

A connection handles what it received in the call that received it, as long as that is little. The rest waits here.
Connections that wait get their turns one after the other, for ``SLICE_S`` in each iteration of the loop; so whoever
asks for little is served after one slice, however many others ask for much.
"""

from __future__ import annotations

__all__ = ("SLICE_REQUESTS", "SLICE_S", "Turns")

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

#: Seconds that one connection, and all that wait together, may take before others get their turn.
SLICE_S: Final = 0.0005
#: Requests of one connection in one slice.
SLICE_REQUESTS: Final = 64


class _Waits(Protocol):
    def turn(self) -> None:
        """Go on for one slice. Doesn't raise."""


class Turns:
    """Connections that have more to do. ``call_soon`` runs a function in the next iteration of the loop."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any], clock: Callable[[], float]) -> None:
        self._call_soon = call_soon
        self._clock = clock
        self._waiting: deque[_Waits] = deque()
        self._is_scheduled = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: _Waits) -> None:
        """It gets a turn after those that wait already."""
        self._waiting.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        waiting = self._waiting
        end = self._clock() + SLICE_S
        for _ in range(len(waiting)):
            waiting.popleft().turn()
            if self._clock() >= end:
                break
        if waiting:
            self._schedule()
