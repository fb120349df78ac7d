"""Whose turn it is, where one at a time may and nobody waits. Pure."""

from __future__ import annotations

__all__ = ("Turns",)

from collections.abc import Callable


class Turns:
    """One at a time; who comes meanwhile does something else, and is told when it ends."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: set[Callable[[], None]] = set()

    @property
    def is_free(self) -> bool:
        """Whether :meth:`take` would succeed."""
        return not self._is_taken

    def take(self, notify: Callable[[], None]) -> bool:
        """Whether it is the caller's turn now, which :meth:`end` ends; else ``notify`` is called once it is free."""
        if self._is_taken:
            self._waiting.add(notify)
            return False
        self._is_taken = True
        return True

    def end(self) -> None:
        """Let others have a turn."""
        self._is_taken = False
        waiting, self._waiting = self._waiting, set()
        for notify in waiting:
            notify()
