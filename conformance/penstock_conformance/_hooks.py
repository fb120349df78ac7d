"""Hooks of a package that has a module for each kind of plugins."""

from __future__ import annotations

__all__ = ("hooks_in",)

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from penstock.spi.kinds import REGISTER


def hooks_in(package: str, path: Iterable[str]) -> dict[str, Any]:
    """The registering hooks of all modules of ``package`` (at ``path``) by name: a new module adds its own."""
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(path):
        if info.name != "__main__":
            module = importlib.import_module(f"{package}.{info.name}")
            found.update({name: value for name, value in vars(module).items() if name.startswith(REGISTER)})
    return found
