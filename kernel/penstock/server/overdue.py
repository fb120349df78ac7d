"""Requests that nobody answers, told in the log: whoever looks for the reason is to find where they wait.

A look at all connections every few seconds costs their requests nothing. It knows a request by its place in the
pipeline, so it can't tell how old it was at the first look: it's told a little late, not early.
"""

from __future__ import annotations

__all__ = ("PATIENCE_S", "Overdue", "Pending")

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

#: So much longer than it asked for may a request take before that is told.
PATIENCE_S: Final = 30.0
#: Looks that are further apart say nothing: the whole process, or the machine, stood still.
_GAP_S: Final = PATIENCE_S / 2


class Pending(NamedTuple):
    """What a client waits for next: an object that is another one as soon as it gets on, and for how long it may."""

    what: object
    asked_s: float


class _Asks(Protocol):
    @property
    def pending(self) -> Pending | None:
        """What its client waits for, None if it's nothing that we are to do."""


C = TypeVar("C", bound=_Asks)


class _Seen:
    __slots__ = ("is_told", "since", "what")

    def __init__(self, what: object, since: float) -> None:
        self.what = what
        self.since = since
        self.is_told = False


class Overdue(Generic[C]):
    """Calls ``tell(connection, seconds)`` once for each request that is overdue. No clock, no I/O."""

    def __init__(self, tell: Callable[[C, float], None]) -> None:
        self._tell = tell
        #: Of each connection that waited at the last look.
        self._seen: dict[C, _Seen] = {}
        self._looked = 0.0

    def look(self, connections: Iterable[C], now: float) -> Iterator[None]:
        """See who waits for the same thing as before, one connection a step; to be gone through every few seconds."""
        before = self._seen if now - self._looked < _GAP_S else {}
        self._looked = now
        self._seen = {}
        for connection in connections:
            yield
            pending = connection.pending
            if pending is None:
                continue
            seen = before.get(connection)
            if seen is None or seen.what is not pending.what:
                seen = _Seen(pending.what, now)
            elif not seen.is_told and now - seen.since > PATIENCE_S + pending.asked_s:
                seen.is_told = True
                self._tell(connection, now - seen.since)
            self._seen[connection] = seen
