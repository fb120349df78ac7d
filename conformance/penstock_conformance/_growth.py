"""What must not grow with the time that something is used: tasks, threads, descriptors, and objects in memory."""

from __future__ import annotations

__all__ = ("grows_nothing",)

import gc
from collections.abc import Awaitable, Callable

from penstock_conformance._leaks import counts

#: Cycles after which caches are full, pools have their threads, and what is remembered is remembered.
_WARM = 150
_CYCLES = 200
#: What may come and go. One task, thread or descriptor for each tenth cycle is more.
_SOME = 20
#: A cycle keeps nothing. An event loop may hold a hundred timers that were cancelled, each with a context; something
#: that is kept in every cycle, with what it refers to, is more.
_OBJECTS = 2 * _CYCLES


async def grows_nothing(cycle: Callable[[int], Awaitable[None]], held: Callable[[], int] = lambda: 0) -> None:
    """Run ``cycle(number)`` many times; ``held()``, something of the plugin's own, mustn't grow either."""
    before, objects, own = (0, 0, 0), 0, 0
    for number in range(_WARM + _CYCLES):
        if number == _WARM:
            before = await counts()
            objects, own = len(gc.get_objects()), held()
        await cycle(number)
    for what, then, now in zip(("descriptors", "tasks", "threads"), before, await counts(), strict=True):
        assert now - then < _SOME, f"{_CYCLES} cycles left {now - then} {what} behind"
    grown = len(gc.get_objects()) - objects
    assert grown < _OBJECTS, f"{_CYCLES} cycles left {grown} objects in memory"
    assert held() - own < _SOME, f"what is held grew with {_CYCLES} cycles: before={own} now={held()}"
