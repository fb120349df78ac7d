"""What the reference plugins of all kinds have in common."""

from __future__ import annotations

__all__ = ("NAME", "SUMMARY", "NoSettings", "closing")

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from penstock.spi import Services, Settings

T = TypeVar("T")

NAME: Final = "reference"
SUMMARY: Final = "the conformance suite's own plain implementation"


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
