"""The door to native code, which is optional: modules in C where they were built and may be used.

The build leaves them out where no C compiler is. ``PENSTOCK_NATIVE`` decides at start: ``auto`` (the default) uses
what is there, ``off`` nothing, ``require`` refuses to start where one isn't there. A built file of another interface,
which an editable install keeps when its source changes, isn't used.
"""

from __future__ import annotations

__all__ = ("SWITCH", "Combine", "Copy", "choose_module", "combine", "copy", "load_module")

import logging
import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Final, Protocol

from penstock.errors import ConfigError

logger = logging.getLogger("penstock.native")

SWITCH: Final = "PENSTOCK_NATIVE"
_MODES: Final = ("auto", "off", "require")
#: Of ``_buffers`` that this code can call: raised with every change of what a caller can see.
_BUFFERS_INTERFACE: Final = 1


class Combine(Protocol):
    """Combines checksums."""

    def __call__(self, first: int, second: int, second_bytes: int, /) -> int:
        """As ``penstock.checksum.combine_in_python``."""


class Copy(Protocol):
    """Copies buffers behind each other."""

    def __call__(
        self,
        target: bytearray | memoryview,
        position: int,
        buffers: list[bytes | bytearray | memoryview],
        /,
    ) -> int:
        """Copy ``buffers`` to ``position`` of ``target`` and on; where the last one ends.

        The interpreter is let go of while many bytes are copied. ValueError if they don't fit.
        """


def choose_module(mode: str, load: Callable[[], ModuleType], interface: int) -> tuple[ModuleType | None, str]:
    """The native module to use, and why there is none ("" if there is). ``load`` imports it.

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
        if found == interface:
            return module, ""
        fault = (
            f"it was built from other source, install penstock again: interface={found} needed={interface}"
        )
        if mode == "auto":
            logger.warning("the native module isn't used, %s", fault)
    if mode == "require":
        raise ConfigError(f"{SWITCH}=require, but the native module can't be used: {fault}")
    return None, fault


def load_module(name: str, interface: int) -> tuple[ModuleType | None, str]:
    """``choose_module`` for the module of that name, as the environment says."""
    return choose_module(os.environ.get(SWITCH) or "auto", lambda: import_module(name), interface)


_buffers, _ = load_module("penstock._buffers", _BUFFERS_INTERFACE)
#: None: there is no native code, or it was built before the function came.
combine: Combine | None = getattr(_buffers, "combine", None)
copy: Copy | None = getattr(_buffers, "copy", None)
