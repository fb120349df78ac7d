"""Time that passes when nothing else can happen, and chance that a seed decides: one run is one history.

While :func:`run_simulated` runs a coroutine, the event loop waits for nothing: when no task can go on, its clock
jumps to the next timer. ``time``, ``random``, ``os.urandom`` and threads are the simulation's. What comes first
is so decided by how long everything takes, which the media draw from the seed; within one moment the loop's own order
holds, on which programs may rely.
"""

from __future__ import annotations

__all__ = ("SimulatedLoop", "StandstillError", "run_simulated")

import asyncio
import gc
import heapq
import itertools
import logging
import os
import random
import selectors
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar, TypeVarTuple
from unittest import mock

import anyio
from anyio._backends._asyncio import CancelScope
from anyio.lowlevel import checkpoint

from penstock.stream.uploader import Uploader

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

#: The simulation begins here, in seconds: clocks that begin at 0 hide what a machine that runs for long shows.
_BEGIN_S = 1_000_000.0
_EPOCH_S = 1_700_000_000.0
#: What one turn of the loop takes, so that whoever waits for a moment that is nearly there gets there.
_TURN_S = 1e-9
#: Turns without a wait: more, and somebody goes round in circles.
_TURNS_MAX = 200_000
#: How far the clock jumps in idle time, and what it waits then for those that it woke.
_STRIDE_S = 18.0
_SETTLE_S = 2.0
#: Timers that were cancelled are swept out when there are twice as many as were needed, and so many more.
_TIMERS_KEPT = 1000


class StandstillError(AssertionError):
    """Nobody can go on, and nothing will happen any more."""


class _Nothing(selectors.BaseSelector):
    """No sockets, and nothing to wait for."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


class _Handle(asyncio.TimerHandle):
    """A callback that is due, without what asyncio keeps for debugging, as a history has thousands of them."""

    __slots__ = ()

    _callback: Callable[..., object] | None
    _context: Context
    _when: float

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when_s: float
    ) -> None:
        self._callback, self._args = callback, args
        self._context = context or copy_context()
        self._when = when_s
        self._cancelled = False

    def run(self) -> None:
        assert self._callback is not None
        self._context.run(self._callback, *self._args)

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = None, ()  # it isn't held on to until its time


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own: when nobody can go on, it is the moment of the next timer.

    Timers of one moment run in the order in which they were set.
    """

    _ready: deque[_Handle]
    _stopping: bool

    def __init__(self) -> None:
        self.now_s = _BEGIN_S
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timers_max = _TIMERS_KEPT
        self._timer_numbers = itertools.count()
        self._turns = 0
        super().__init__(_Nothing())
        numbers = itertools.count()
        self.set_task_factory(
            lambda loop, coroutine, **more: _Task(next(numbers), coroutine, loop=loop, **more)
        )

    def time(self) -> float:
        return self.now_s

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, context, self.now_s)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Handle:
        return self.call_soon(callback, *args, context=context)  # the loop waits while threads run

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Handle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._timer_numbers), handle))
        if len(self._timers) > self._timers_max:
            self._timers = [timer for timer in self._timers if not timer[2]._cancelled]
            heapq.heapify(self._timers)
            self._timers_max = 2 * len(self._timers) + _TIMERS_KEPT
        return handle

    def _run_once(self) -> None:
        """One turn: move the clock, then run what is due. In the place of asyncio's, which would ask the selector."""
        timers, ready = self._timers, self._ready
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        wait_s = 0.0
        if not ready and not self._stopping:
            if not timers:
                raise StandstillError("nobody can go on, and nothing will happen any more")
            wait_s = timers[0][0] - self.now_s
        self._turns = 0 if wait_s > 0 else self._turns + 1
        if self._turns > _TURNS_MAX:
            raise StandstillError("somebody goes round in circles, and waits for nothing")
        self.now_s += max(_TURN_S, wait_s)
        due_s = self.now_s + _TURN_S
        while timers and timers[0][0] < due_s:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                try:
                    handle.run()
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - tasks and futures keep their own
                    self.call_exception_handler({"message": "a callback failed", "exception": error})

    async def skip(self, seconds: float) -> None:
        """Let ``seconds`` pass while nothing is under way: what is due each second is due a few times only."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + _STRIDE_S)
            await asyncio.sleep(_SETTLE_S)

    def try_pass(self, seconds: float) -> bool:
        """Move the clock on by ``seconds``, if nobody would do anything until then."""
        if self._ready:
            return False
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        now_s = self.now_s + max(_TURN_S, seconds)
        if timers and timers[0][0] <= now_s + _TURN_S:
            return False
        self.now_s = now_s
        return True


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
def _patched(loop: SimulatedLoop, seed: int) -> Iterator[None]:
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
            mock.patch.object(CancelScope, "__hash__", scope_hash),
        ):
            yield
    finally:
        logging.disable(logging_before)
        random.setstate(state)
        if collecting:
            gc.enable()


def run_simulated(main: Callable[[SimulatedLoop], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run ``main(loop)`` to its end, in simulated time. Raises StandstillError if it can't get there."""
    loop = SimulatedLoop()
    with _patched(loop, seed), asyncio.Runner(loop_factory=lambda: loop) as runner:
        loop.set_exception_handler(lambda *_: None)
        return runner.run(main(loop))
