"""Pieces of n: what is long is done some at a time, so that others get their turn and a limit per call holds."""

from __future__ import annotations

__all__ = ("pieces",)

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in order, ``size`` at a time; the last piece is what is left, and nothing gives no piece."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
