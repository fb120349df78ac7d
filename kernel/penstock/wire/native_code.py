"""The one door to native code, which is optional: ``walk`` in C where it was built and may be used, else None.

The build leaves it out where no C compiler is. ``PENSTOCK_NATIVE`` decides at start: ``auto`` (the default) uses it
if it is there, ``off`` never, ``require`` refuses to start without it. A built file of another interface, which an
editable install keeps when its source changes, isn't used.
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

import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Protocol

from penstock.errors import ConfigError

logger = logging.getLogger("penstock.wire")

#: Of the native module that this code can call: raised with every change of what a caller can see.
INTERFACE: Final = 2
SWITCH: Final = "PENSTOCK_NATIVE"
_MODULE: Final = "penstock.wire._walk"
_MODES: Final = ("auto", "off", "require")


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
        columns: tuple[bytearray, ...],
        filled: tuple[int, ...],
        /,
    ) -> tuple[int, ...] | None:
        """As ``penstock.wire.record_columns.gather``, or None if anything is out of order."""


def choose(mode: str, load: Callable[[], ModuleType]) -> tuple[Walk | None, str]:
    """The walk to use, and why it isn't native ("" if it is). ``load`` imports the native module.

    Raises:
        ConfigError: no such ``mode``, or it is ``require`` and there is nothing to use.
    """
    if mode not in _MODES:
        raise ConfigError(f"{SWITCH} must be auto, off or require: value={mode}")
    if mode == "off":
        return None, f"{SWITCH}=off"
    try:
        module = load()
    except ModuleNotFoundError:
        fault = "it wasn't built when penstock was installed, for want of a C compiler or Python's headers"
    except ImportError as error:
        fault = f"it can't be loaded: {error}"
    else:
        found = getattr(module, "INTERFACE", None)
        if found == INTERFACE:
            native: Walk = module.walk
            return native, ""
        fault = (
            f"it was built from other source, install penstock again: interface={found} needed={INTERFACE}"
        )
        if mode == "auto":
            logger.warning("the native module isn't used, %s", fault)
    if mode == "require":
        raise ConfigError(f"{SWITCH}=require, but the native module can't be used: {fault}")
    return None, fault


def _added(name: str) -> Any:
    """A function that the native module has, if that is used and was built since the function is there; else None."""
    return None if walk is None else getattr(sys.modules.get(_MODULE), name, None)


walk, reason = choose(os.environ.get(SWITCH) or "auto", lambda: import_module(_MODULE))
measure: Measure | None = _added("measure")
gather: Gather | None = _added("gather")


def status() -> str:
    """Which code checks records here, and why, for people."""
    return "native code" if walk is not None else f"Python ({reason})"
