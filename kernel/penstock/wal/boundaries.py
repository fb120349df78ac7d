"""Group boundaries at which a log may be cut when it is trimmed, thinned out to a bounded number."""

from __future__ import annotations

__all__ = ("Boundaries",)

from collections import deque

from penstock.wal.framing import Cursor


class Boundaries:
    """The cursors between groups, at least ``step_bytes`` apart, so that a trim finds where to start again."""

    def __init__(self, start: Cursor, *, step_bytes: int) -> None:
        self._start = start
        self._step_bytes = step_bytes
        # Each with the end of the last entry before it, which lies before the cursor by up to the alignment.
        self._cursors: deque[tuple[int, Cursor]] = deque()
        self._newest: tuple[int, Cursor] | None = None

    @property
    def start(self) -> Cursor:
        """The oldest group that is still kept."""
        return self._start

    def add(self, entries_end: int, cursor: Cursor) -> None:
        """``cursor`` is the end of the newest group, ``entries_end`` that of its last entry."""
        self._newest = (entries_end, cursor)
        last = self._cursors[-1][1] if self._cursors else self._start
        if cursor.position - last.position >= self._step_bytes:
            self._cursors.append(self._newest)

    def trim(self, position: int) -> Cursor:
        """Drop what ends at or below ``position``, as far as known boundaries allow; the new start."""
        if self._newest is not None and self._newest[0] <= position:
            self._start = self._newest[1]
            self._cursors.clear()
        while self._cursors and self._cursors[0][0] <= position:
            self._start = self._cursors.popleft()[1]
        return self._start
