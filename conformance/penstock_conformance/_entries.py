"""Entries of log caches, by what they tell: a cache may give those that were put, or others like them."""

from __future__ import annotations

__all__ = ("told",)

from collections.abc import Iterable
from typing import Any

from penstock.spi.log_cache import StreamEntry


def told(entries: Iterable[StreamEntry]) -> list[tuple[Any, ...]]:
    """All that entries tell, to be compared."""
    return [
        (
            *(entry.stream_id, entry.base_offset, entry.next_offset, entry.time_ms, entry.wal_position),
            *(entry.checksum, bytes(entry.data)),
        )
        for entry in entries
    ]
