"""The pace of uploads: little more than data come in, so that they leave disk and processor to appends (pure).

    intake, smoothed over seconds  ->  rate  ->  when the next piece of an upload may begin

An upload that goes as fast as it can shares the disk with the syncs of the WAL, and the interpreter with the event
loop, for as long as it takes; then there is none for a while. Spread over the time in which the next block fills, it
is hardly noticed. It must not fall behind either: what isn't uploaded holds memory and WAL.
"""

from __future__ import annotations

__all__ = ("PRESSURE_MAX", "Pacer")

import sys
from math import exp

#: Uploads are so much faster than intake that each is done before the next block is full.
_HEADROOM = 1.25
#: With little or no intake uploads go so fast nevertheless: 64 MiB take 8 s.
_RATE_MIN = 8 * 2**20
#: Over how many seconds intake is averaged. Blocks fill in seconds, so a burst counts and a hiccup doesn't.
_SMOOTH_S = 2.0
#: Time that an upload lost, as the disk was slow or a thread had to wait, is made up for by at most so much of haste.
_LATE_S = 0.02
#: From this pressure on nothing is put off any more.
PRESSURE_MAX = 2.0
#: What the pace puts in so many seconds may go in one burst. Each costs the event loop two hops to a thread, so a
#: fast pace in small pieces would take a seventh of the loop's time, and more than the disk needs for them.
_BURST_S = 0.016


class Pacer:
    """Says how long to wait before the next piece. Times are seconds of one clock that never goes back."""

    __slots__ = ("_due_at", "_intake", "_looked_at", "_taken_bytes", "burst_bytes", "rate")

    def __init__(self, now_s: float, taken_bytes: int = 0) -> None:
        """``taken_bytes`` is what has come in so far, as in :meth:`pause_s`."""
        self._looked_at = now_s
        self._taken_bytes = taken_bytes
        self._intake = 0.0
        self._due_at = now_s
        #: Bytes per second that uploads go at; of the last piece.
        self.rate = float(_RATE_MIN)
        #: What may be put in one go; of the last piece. ``sys.maxsize`` while nothing is put off.
        self.burst_bytes = 0

    def pause_s(self, size: int, now_s: float, taken_bytes: int, pressure: float) -> float:
        """How long to wait before ``size`` bytes more are put, which is counted as done; 0: don't.

        ``taken_bytes`` is everything that has come in up to now. ``pressure`` is 0 while nothing presses; with 1
        uploads go twice as fast, from :data:`PRESSURE_MAX` on as fast as they can.
        """
        self._look(now_s, taken_bytes)
        self.rate = max(_RATE_MIN, _HEADROOM * self._intake) * (1 + pressure)
        if pressure >= PRESSURE_MAX:
            self._due_at = now_s
            self.burst_bytes = sys.maxsize
            return 0.0
        self.burst_bytes = int(self.rate * _BURST_S)
        due_at = max(self._due_at, now_s - _LATE_S)
        self._due_at = due_at + size / self.rate
        return max(0.0, due_at - now_s)

    def _look(self, now_s: float, taken_bytes: int) -> None:
        passed_s = now_s - self._looked_at
        if passed_s <= 0:
            return
        rate = (taken_bytes - self._taken_bytes) / passed_s
        self._intake += (rate - self._intake) * (1 - exp(-passed_s / _SMOOTH_S))
        self._looked_at, self._taken_bytes = now_s, taken_bytes
