"""What must not grow with the time that something is used: tasks, threads, descriptors, and objects in memory."""

from __future__ import annotations

__all__ = ("counts", "grows_nothing", "kept_bytes", "kept_with_each", "objects_by_type")

import asyncio
import gc
import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

from anyio.lowlevel import checkpoint

from penstock_conformance.reference._object_store import forget_names

#: Cycles after which caches are full, pools have their threads, and what is remembered is remembered.
_WARM = 150
#: Then objects are counted, as often as there are parts of so many cycles.
_PARTS = 4
_PART = 50
_CYCLES = _PARTS * _PART
#: What may come and go. One task, thread or descriptor for each tenth cycle is more.
_SOME = 20
#: An event loop may hold a hundred timers that were cancelled, each with a context; all that is kept beside is more.
_OBJECTS = 2 * _CYCLES
#: What the collector doesn't know, such as a number or bytes in a list, takes so much with each cycle at least.
_BYTES = 24
#: Parts in which it has to grow: cancelled timers, and what is kept for a while, go in one of them.
_PARTS_MAX = 20


async def grows_nothing(
    cycle: Callable[[int], Awaitable[None]], held: Callable[[], int] = lambda: 0, bytes_each: int = _BYTES
) -> None:
    """Run ``cycle(number)`` many times; ``held()``, something of the plugin's own, mustn't grow either, nor what is
    in memory by ``bytes_each`` with each."""
    for number in range(_WARM):
        await cycle(number)
    before = await counts()
    own = held()
    objects = [objects_by_type()]
    grown: list[int] = []
    async with kept_bytes() as kept_now:

        async def run_part(part: int) -> None:
            then = kept_now()
            for number in range(_PART):
                await cycle(_WARM + part * _PART + number)
            grown.append(kept_now() - then)

        for part in range(_PARTS):
            await run_part(part)
            after = await counts()
            objects.append(objects_by_type())
        while min(grown) >= _PART * bytes_each and len(grown) < _PARTS_MAX:
            await run_part(len(grown))
    for what, then, now in zip(("descriptors", "tasks", "threads"), before, after, strict=True):
        assert now - then < _SOME, f"{_CYCLES} cycles left {now - then} {what} behind"
    kept = kept_with_each(objects, _PART)
    assert not kept, f"an object or more stays in memory with each cycle: {', '.join(kept)}"
    more = objects[-1].total() - objects[0].total()
    assert more < _OBJECTS, f"{_CYCLES} cycles left {more} objects in memory"
    assert held() - own < _SOME, f"what is held grew with {_CYCLES} cycles: before={own} now={held()}"
    each = min(grown) // _PART
    assert each < bytes_each, (
        f"memory grows with each of {_WARM + len(grown) * _PART} cycles, by {each} bytes at least"
    )


@asynccontextmanager
async def kept_bytes() -> AsyncIterator[Callable[[], int]]:
    """What is called inside tells by how many bytes Python's own memory has grown since the beginning."""
    traced = tracemalloc.is_tracing()
    forget_names()
    gc.collect()
    if not traced:
        tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    def grown() -> int:
        forget_names()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield grown
    finally:
        if not traced:
            tracemalloc.stop()


def kept_with_each(objects: Sequence[Counter[str]], cycles: int) -> list[str]:
    """The types of which each count has an object more for each of the ``cycles`` since the one before.

    What is kept for a while, as a loop keeps timers that were cancelled, goes at some time, and is less in one of
    them.
    """
    pairs = list(pairwise(objects))
    return [
        name for name in objects[-1] if all(after[name] - before[name] >= cycles for before, after in pairs)
    ]


def objects_by_type() -> Counter[str]:
    """How many objects there are of each type that the collector knows, by name."""
    return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())


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
