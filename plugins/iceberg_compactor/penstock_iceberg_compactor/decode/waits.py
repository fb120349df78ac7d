"""What a thread waits for on behalf of somebody who may give up: it is ended then."""

from __future__ import annotations

__all__ = ("Call", "check_wanted", "ended_with_call", "is_wanted")

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from penstock.errors import UnavailableError

_current: ContextVar[Call | None] = ContextVar("call", default=None)


class Call:
    """Work in a thread that nobody may need any more. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._waits: set[Callable[[], None]] = set()

    @property
    def is_over(self) -> bool:
        """Whether nobody needs it any more."""
        return self._is_over

    def begin(self) -> None:
        """What this thread waits for from here on, in this context, belongs to the call."""
        _current.set(self)

    def end(self) -> None:
        """Nobody needs it any more: what it waits for ends, and what it would wait for then does at once."""
        with self._lock:
            self._is_over = True
            waits = list(self._waits)
        for shut in waits:
            shut()

    @contextmanager
    def ends(self, shut: Callable[[], None]) -> Iterator[None]:
        """Within, ``shut`` is called when the call ends, perhaps at once."""
        with self._lock:
            self._waits.add(shut)
            is_over = self._is_over
        if is_over:
            shut()
        try:
            yield
        finally:
            with self._lock:
                self._waits.discard(shut)


@contextmanager
def ended_with_call(shut: Callable[[], None]) -> Iterator[None]:
    """Within, ``shut`` is called when whoever this thread works for gives up; never, if that is nobody."""
    call = _current.get()
    if call is None:
        yield
        return
    with call.ends(shut):
        yield


def is_wanted() -> bool:
    """Whether whoever this thread works for, if anybody, didn't give up."""
    call = _current.get()
    return call is None or not call.is_over


def check_wanted() -> None:
    """Raise UnavailableError if whoever this thread works for gave up: before what nothing ends."""
    if not is_wanted():
        raise UnavailableError("nobody waits for it any more")
