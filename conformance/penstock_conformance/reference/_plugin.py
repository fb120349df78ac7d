"""How mutants are opened. References do without: each is whole in itself, since ``penstock plugin new`` copies it."""

from __future__ import annotations

__all__ = ("NoSettings", "closing")

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from penstock.spi import Services, Settings

T = TypeVar("T")


class NoSettings(Settings):
    """Nothing to set."""


def closing(make: Callable[[Any, Services], T]) -> Callable[[Any, Services], Any]:
    """An ``open`` that makes an object and calls its ``close``, if it has one, at the end."""

    @asynccontextmanager
    async def opened(settings: Any, services: Services) -> AsyncIterator[T]:
        made = make(settings, services)
        try:
            yield made
        finally:
            close = getattr(made, "close", None)
            if close is not None:
                close()

    return opened
