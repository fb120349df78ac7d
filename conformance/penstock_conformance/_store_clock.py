"""The clock by which an object store tells when an object was written."""

from __future__ import annotations

__all__ = ("ticked",)

import itertools
from typing import Any

import anyio

#: Nobody waits longer for a tick.
_TICK_S_MAX = 0.5


async def ticked(store: Any, since_ms: int) -> bool:
    """Wait until what is written gets a later time than ``since_ms``; False if that can't be told of this clock: of
    none, of one that counts seconds, or of one whose ticks take long."""
    if since_ms % 1000 == 0:
        return False
    with anyio.move_on_after(_TICK_S_MAX):
        for number in itertools.count():
            key = f"beside/clock/{since_ms}/{number}"  # a new one: whether others keep their times is under test
            await store.put(key, [b"tick"])
            if (await store.head(key)).modified_ms > since_ms:
                return True
            await anyio.sleep(0.005)
    return False
