"""What must not stay when a context is left: descriptors, tasks, threads, and the opened object itself."""

from __future__ import annotations

__all__ = ("each_way_out", "errors_come_out", "leaves_nothing", "looks_leave_nothing")

import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock_conformance._env import Env
from penstock_conformance._growth import counts, kept_bytes, kept_with_each, objects_by_type

#: Openings that may do something once and for all: import, start a pool of threads, open a shared client.
_WARM = 3
_OPENINGS = 12
#: After as many openings it is counted what is in memory.
_PART = 3
#: A word of each opening may stay, and a page may not.
_OPENING_BYTES = 2000
#: Cancelled timers, of which an event loop keeps a hundred, each with a context; and what watches the opened objects.
_NOT_THEIRS = ("asyncio.events.TimerHandle", "_contextvars.Context", "weakref.ReferenceType")
_LOOKS = 8


class _OwnersError(Exception):
    """An error of who opened the plugin, which knows nothing of it."""


async def leaves_nothing(env: Env, use: Callable[[Any], Awaitable[None]]) -> None:
    """Open, use and leave the plugin many times, by errors and cancellations, too: what is counted afterwards doesn't
    grow with the openings."""
    kept: list[weakref.ref[Any]] = []
    objects: list[Counter[str]] = []
    grown: list[int] = []
    async with _silent(), kept_bytes() as kept_now:
        for opening in range(_WARM + _OPENINGS):
            if opening == _WARM:
                descriptors, tasks, threads = await counts()
                kept.clear()
            if opening >= _WARM and (opening - _WARM) % _PART == 0:
                objects.append(objects_by_type())
                then = kept_now()
            with suppress(_OwnersError), anyio.CancelScope() as scope:
                async with env.open(epoch=opening + 1) as opened:
                    await use(opened)
                    with suppress(TypeError):  # an object with slots can't be watched
                        kept.append(weakref.ref(getattr(opened, "_store", opened)))
                    await _leave(opening, scope)
            del opened, scope
            if env.plain_allocator is not None:
                charged = env.plain_allocator.statistics().used_bytes
                assert charged == 0, f"the context was left, and {charged} bytes are still accounted for"
            if opening >= _WARM and (opening - _WARM) % _PART == _PART - 1:
                await counts()
                grown.append(kept_now() - then)
        objects.append(objects_by_type())
    now_descriptors, now_tasks, now_threads = await counts()
    some = _OPENINGS // 2
    assert now_descriptors - descriptors < some, (
        f"{_OPENINGS} openings left {now_descriptors - descriptors} descriptors open"
    )
    assert now_tasks - tasks < some, f"{_OPENINGS} openings left {now_tasks - tasks} tasks behind"
    assert now_threads - threads < some, f"{_OPENINGS} openings left {now_threads - threads} threads behind"
    alive = sum(ref() is not None for ref in kept)
    assert alive < some, f"{alive} of {_OPENINGS} opened objects are still in memory after their end"
    stay = [name for name in kept_with_each(objects, _PART) if name not in _NOT_THEIRS]
    assert not stay, f"an object or more stays in memory with each opening: {', '.join(stay)}"
    each = min(grown) // _PART
    assert each < _OPENING_BYTES, f"memory grows with each opening, by {each} bytes at least"


async def _leave(opening: int, scope: anyio.CancelScope) -> None:
    """Of each three openings one is left by an error, one by a cancellation, and one at its end."""
    if opening % _PART == 1:
        raise _OwnersError("of the owner")
    if opening % _PART == 2:
        scope.cancel()
        await checkpoint()


@asynccontextmanager
async def _silent() -> AsyncIterator[None]:
    """Nobody keeps what is logged."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


async def looks_leave_nothing(look: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again that ends by itself: what is counted afterwards doesn't grow with the times."""
    for number in range(_LOOKS + 1):
        if number == 1:
            before = await counts()
        await look()
    after = await counts()
    for what, then, now in zip(("descriptors", "tasks", "threads"), before, after, strict=True):
        assert now - then < _LOOKS // 2, f"{_LOOKS} times left {now - then} {what} behind"


def each_way_out(env: Env, **options: Any) -> Iterator[AbstractAsyncContextManager[Any]]:
    """Contexts of the plugin, opened one after the other: left at its end, by an error, and by a cancellation.

    What leaving promises holds for all. ``options`` are those of ``Env.open``.
    """

    @asynccontextmanager
    async def left_by(error: _OwnersError | None, epoch: int) -> AsyncIterator[Any]:
        with suppress(_OwnersError):
            async with env.open(epoch=epoch, **options) as opened:
                yield opened
                if error is not None:
                    raise error

    @asynccontextmanager
    async def cancelled(epoch: int) -> AsyncIterator[Any]:
        with anyio.CancelScope() as scope:
            async with env.open(epoch=epoch, **options) as opened:
                yield opened
                scope.cancel()
                await checkpoint()

    yield left_by(None, 1)
    yield left_by(_OwnersError("of the owner"), 2)
    yield cancelled(3)


async def errors_come_out(env: Env, use: Callable[[Any, int], Awaitable[None]]) -> None:
    """Leave the context by an error, by a bug and by a cancellation: each comes out, as it is."""
    for number, raised in enumerate((_OwnersError("of the owner"), KeyError("of the owner"))):
        try:
            async with env.open(epoch=number + 1) as opened:
                await use(opened, number)
                raise raised
        except BaseException as error:  # noqa: BLE001 - whatever comes out is looked at
            assert error is raised, f"{raised!r} was raised inside of the context, and {error!r} came out"
            continue
        raise AssertionError(f"{raised!r} was raised inside of the context, and nothing came out")
    behind = False
    with anyio.CancelScope() as scope:
        async with env.open(epoch=3) as opened:
            await use(opened, 2)
            scope.cancel()
            await checkpoint()
        behind = True
    assert not behind, "leaving the context swallowed a cancellation"
