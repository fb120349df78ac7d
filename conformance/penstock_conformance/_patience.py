"""Waiting for what may never come, on a machine that may stand still meanwhile."""

from __future__ import annotations

__all__ = ("Patience", "has_come")

import asyncio
from collections.abc import Callable
from typing import Any

import anyio

#: Time passes while a process gets no processor, and nothing in it can come: that takes one part of the patience,
#: however long it is.
_PARTS = 20


class Patience:
    """Cancels its body after ``seconds``, as ``move_on_after``, of which the event loop has had each twentieth."""

    def __init__(self, seconds: float) -> None:
        self._part_s = seconds / _PARTS
        self._left = _PARTS
        self._scope = anyio.CancelScope()

    def __enter__(self) -> anyio.CancelScope:
        self._wait()
        return self._scope.__enter__()

    def __exit__(self, *error: Any) -> bool:
        self._timer.cancel()
        return bool(self._scope.__exit__(*error))

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._part_s, self._pass_on)

    def _pass_on(self) -> None:
        self._left -= 1
        if self._left:
            self._wait()
        else:
            self._scope.cancel()


def has_come(wait: Callable[[float], bool], seconds: float) -> bool:
    """Whether ``wait(timeout_s)``, which blocks a thread, says so within ``seconds``, of which it gets a twentieth
    each time."""
    return any(wait(seconds / _PARTS) for _ in range(_PARTS))
