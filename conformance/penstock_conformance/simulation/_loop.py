"""Time that passes when nothing else can happen, and chance that a seed decides: one run is one history.

While :func:`run_simulated` runs a coroutine, the event loop waits for nothing: when no task can go on, its clock
jumps to the next timer. ``time``, ``random``, ``os.urandom`` and threads are the simulation's. What comes first
is so decided by how long everything takes, which the media draw from the seed; within one moment the loop's own order
holds, on which programs may rely.
"""

from __future__ import annotations

__all__ = ("StandstillError", "run_simulated")

import asyncio
import gc
import itertools
import logging
import os
import random
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import anyio
from anyio._backends._asyncio import CancelScope
from anyio.lowlevel import checkpoint

from penstock.metadata import service
from penstock.stream.uploader import Uploader

T = TypeVar("T")

#: The simulation begins here, in seconds: clocks that begin at 0 hide what a machine that runs for long shows.
_BEGIN_S = 1_000_000.0
_EPOCH_S = 1_700_000_000.0
#: What one turn of the loop takes, so that whoever waits for a moment that is nearly there gets there.
_TURN_S = 1e-9
#: Turns without a wait: more, and somebody goes round in circles.
_TURNS_MAX = 200_000


class StandstillError(AssertionError):
    """Nobody can go on, and nothing will happen any more."""


class _Nothing(selectors.BaseSelector):
    """No sockets; to wait is to move the clock."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._turns = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError("nobody can go on, and nothing will happen any more")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > _TURNS_MAX:
            raise StandstillError("somebody goes round in circles, and waits for nothing")
        self._loop.now_s += max(_TURN_S, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self.now_s = _BEGIN_S
        super().__init__(_Nothing(self))
        numbers = itertools.count()
        self.set_task_factory(
            lambda loop, coroutine, **more: _Task(next(numbers), coroutine, loop=loop, **more)
        )

    def time(self) -> float:
        return self.now_s


class _Task(asyncio.Task[Any]):
    """Tasks are kept in sets: their order there must not depend on where they are in memory."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **more: Any) -> None:
        self._number = number
        super().__init__(coroutine, **more)

    def __hash__(self) -> int:
        return self._number


async def _inline(function: Callable[..., T], *arguments: Any, **_: Any) -> T:
    await checkpoint()
    return function(*arguments)


@contextmanager
def _patched(loop: _Loop, seed: int) -> Iterator[None]:
    entropy = random.Random(f"entropy {seed}")

    scopes: dict[int, tuple[int, Any]] = {}  # kept until the end, so that no id comes twice

    def scope_hash(self: Any) -> int:
        return scopes.setdefault(id(self), (len(scopes), self))[0]

    def nanoseconds() -> int:
        return int(loop.now_s * 1e9)

    state = random.getstate()
    random.seed(seed)
    collecting = gc.isenabled()
    gc.disable()
    logging_before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            mock.patch.multiple(
                time,
                monotonic=loop.time,
                perf_counter=loop.time,
                time=lambda: loop.now_s + _EPOCH_S,
                monotonic_ns=nanoseconds,
                perf_counter_ns=nanoseconds,
                time_ns=lambda: nanoseconds() + int(_EPOCH_S * 1e9),
                clock_gettime=lambda _: loop.now_s,
            ),
            mock.patch.object(os, "urandom", entropy.randbytes),
            mock.patch.object(random, "_urandom", entropy.randbytes),
            mock.patch.object(anyio.to_thread, "run_sync", _inline),
            # bound when it was defined
            mock.patch.dict(Uploader.__init__.__kwdefaults__, clock=loop.time),
            mock.patch.object(service, "SNAPSHOT_ENTRIES", 12),
            mock.patch.object(CancelScope, "__hash__", scope_hash),
        ):
            yield
    finally:
        logging.disable(logging_before)
        random.setstate(state)
        if collecting:
            gc.enable()
            gc.collect()


def run_simulated(main: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run ``main(loop)`` to its end, in simulated time. Raises StandstillError if it can't get there."""
    loop = _Loop()
    with _patched(loop, seed), asyncio.Runner(loop_factory=lambda: loop) as runner:
        loop.set_exception_handler(lambda *_: None)
        return runner.run(main(loop))
