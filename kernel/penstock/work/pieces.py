"""Pieces of n: what is long is done some at a time, so that others get their turn and a limit per call holds.

``in_portions`` is for whatever a client can make long: handlers go through a request's elements by it.
"""

from __future__ import annotations

__all__ = ("PORTION", "in_portions", "pieces")

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import anyio.lowlevel

T = TypeVar("T")

#: Elements of a request that are dealt with in one go: some tenths of a millisecond.
PORTION: Final = 100


def pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in order, ``size`` at a time; the last piece is what is left, and nothing gives no piece."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


async def in_portions(
    items: Iterable[T], size: int = PORTION, *, more: Callable[[T], int] | None = None
) -> AsyncIterator[T]:
    """``items`` in order; after each ``size`` of them others get their turn. They mustn't change meanwhile.

    An item counts for as many more as ``more`` says: for what is dealt with together with it.
    """
    left = size
    for item in items:
        if left <= 0:
            await anyio.lowlevel.checkpoint()
            left = size
        left -= 1 if more is None else 1 + more(item)
        yield item
