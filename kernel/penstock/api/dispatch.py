"""The table of Kafka APIs that this broker handles, gathered from the modules of this room.

Every module of ``penstock.api`` may have ``APIS``, a tuple of declarations (``penstock.api.declaration``). So a new
API is one module, and this one doesn't know it.
"""

from __future__ import annotations

__all__ = ("advertised", "apis")

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules

import penstock.api
from penstock.api.declaration import Api


def apis() -> dict[int, Api]:
    """All APIs that are handled, by key."""
    table: dict[int, Api] = {}
    for api in _declared():
        if api.key in table:
            raise ValueError(f"api is declared twice: api_key={api.key}")
        table[int(api.key)] = api
    return dict(sorted(table.items()))


def _declared() -> Iterator[Api]:
    for module in iter_modules(penstock.api.__path__, "penstock.api."):
        if module.name != __name__:
            yield from getattr(import_module(module.name), "APIS", ())


def advertised(table: Mapping[int, Api]) -> tuple[tuple[int, int, int], ...]:
    """(API key, lowest, highest version) for ApiVersions."""
    return tuple((key, api.low_advertised, api.high) for key, api in sorted(table.items()))
