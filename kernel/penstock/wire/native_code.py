"""Native code that walks records: ``walk`` in C where it was built and may be used, else None.

Whether it may be used is decided by :mod:`penstock.native`.
"""

from __future__ import annotations

__all__ = (
    "INTERFACE",
    "SWITCH",
    "Gather",
    "Measure",
    "Walk",
    "choose",
    "gather",
    "measure",
    "reason",
    "status",
    "walk",
)

import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Protocol

from penstock.native import SWITCH, choose_module

#: Of the native module that this code can call: raised with every change of what a caller can see.
INTERFACE: Final = 2
_MODULE: Final = "penstock.wire._walk"


class Walk(Protocol):
    """Checks the structure of ``count`` records that fill ``buffer`` from ``start`` on."""

    def __call__(
        self, buffer: bytes | bytearray | memoryview, start: int, count: int, /
    ) -> tuple[int, int, bool] | None:
        """(lowest timestamp delta, highest, whether any key is null), or None if anything is out of order."""


class Measure(Protocol):
    """Says what records take as columns."""

    def __call__(
        self, buffer: bytes | memoryview, position: int, count: int, last_delta: int, bytes_max: int, /
    ) -> tuple[int, ...] | None:
        """As ``penstock.wire.record_columns.measure``, or None if anything is out of order."""


class Gather(Protocol):
    """Copies records that were measured into columns."""

    def __call__(
        self,
        buffer: bytes | memoryview,
        position: int,
        count: int,
        base_offset: int,
        base_timestamp: int,
        is_timed: bool,
        columns: tuple[bytearray | memoryview, ...],
        filled: tuple[int, ...],
        /,
    ) -> tuple[int, ...] | None:
        """As ``penstock.wire.record_columns.gather``, or None if anything is out of order."""


def choose(mode: str, load: Callable[[], ModuleType]) -> tuple[Walk | None, str]:
    """The walk to use, and why it isn't native ("" if it is). ``load`` imports the native module.

    Raises:
        ConfigError: no such ``mode``, or it is ``require`` and there is nothing to use.
    """
    module, fault = choose_module(mode, load, INTERFACE)
    if module is None:
        return None, fault
    native: Walk = module.walk
    return native, ""


def _added(name: str) -> Any:
    """A function that the native module has, if that is used and was built since the function is there; else None."""
    return None if walk is None else getattr(sys.modules.get(_MODULE), name, None)


walk, reason = choose(os.environ.get(SWITCH) or "auto", lambda: import_module(_MODULE))
measure: Measure | None = _added("measure")
gather: Gather | None = _added("gather")


def status() -> str:
    """Which code checks records here, and why, for people."""
    return "native code" if walk is not None else f"Python ({reason})"
