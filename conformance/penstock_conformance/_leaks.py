"""What must not stay when a context is left: descriptors, tasks, threads, and the opened object itself."""

from __future__ import annotations

__all__ = ("counts", "leaves_nothing")

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from anyio.lowlevel import checkpoint

from penstock_conformance._env import Env

#: Openings that may do something once and for all: import, start a pool of threads, open a shared client.
_WARM = 3
_OPENINGS = 12


async def leaves_nothing(env: Env, use: Callable[[Any], Awaitable[None]]) -> None:
    """Open, use and leave the plugin many times: what is counted afterwards doesn't grow with the openings."""
    kept: list[weakref.ref[Any]] = []
    for opening in range(_WARM + _OPENINGS):
        if opening == _WARM:
            descriptors, tasks, threads = await counts()
            kept.clear()
        async with env.open(epoch=opening + 1) as opened:
            await use(opened)
            with suppress(TypeError):  # an object with slots can't be watched
                kept.append(weakref.ref(getattr(opened, "_store", opened)))
        del opened
    now_descriptors, now_tasks, now_threads = await counts()
    some = _OPENINGS // 2
    assert now_descriptors - descriptors < some, (
        f"{_OPENINGS} openings left {now_descriptors - descriptors} descriptors open"
    )
    assert now_tasks - tasks < some, f"{_OPENINGS} openings left {now_tasks - tasks} tasks behind"
    assert now_threads - threads < some, f"{_OPENINGS} openings left {now_threads - threads} threads behind"
    alive = sum(ref() is not None for ref in kept)
    assert alive < some, f"{alive} of {_OPENINGS} opened objects are still in memory after their end"


async def counts() -> tuple[int, int, int]:
    """Descriptors, tasks and threads, when what can end has ended."""
    for _ in range(5):
        await checkpoint()
    gc.collect()
    return _descriptors(), len(asyncio.all_tasks()), threading.active_count()


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0  # a system that doesn't tell
