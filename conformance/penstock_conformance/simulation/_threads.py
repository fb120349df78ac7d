"""Threads that take turns: a real thread runs until it waits for its medium, and goes on when simulated time says so.

So blocking code runs as it is, interleaved with everything else at each of its accesses to the medium, and always in
the same way.
"""

from __future__ import annotations

__all__ = ("SimulatedLock", "SimulatedWriter", "Turns", "life_of_task", "pause", "running_life")

import asyncio
import threading
import types
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from random import Random
from typing import Any

import anyio

from penstock.errors import ClosedError, again, kept
from penstock_conformance.simulation._loop import SimulatedLoop

#: The life that opens something, for what it opens.
life_of_task: ContextVar[int] = ContextVar("life_of_task", default=-1)
_local = threading.local()


class _Turn:
    """A piece of work, who does it, and when it goes on."""

    def __init__(self, life: int, work: Callable[[], Any]) -> None:
        self.life = life
        self.worker: _Worker | None = None
        self._work = work
        #: None: until somebody wakes it.
        self.pause_s: float | None = 0.0
        self.is_done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.wake: Callable[[], None] = lambda: None

    def run(self) -> None:
        """In the thread."""
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001 - handed to whoever started it
            self.error = kept(error)
        self.is_done = True


class _Worker:
    """A thread. It runs while the event loop waits, and the other way round."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        #: What to do next; None: end.
        self.turn: _Turn | None = None
        #: Let go of to let the thread go on.
        self.go = threading.Lock()
        self.go.acquire()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        _local.turns = self._turns
        self.go.acquire()
        while (turn := self.turn) is not None:
            _local.turn = turn
            turn.run()
            self._turns.end_turn()
            self.go.acquire()


class Turns:
    """Gives turns to threads, one at a time, from the event loop.

    A thread that has done its work does the next: a history has thousands of them, and threads are slow to start.
    """

    def __init__(self, loop: SimulatedLoop, random: Random) -> None:
        self._loop = loop
        self._random = random
        self._back = threading.Lock()
        self._back.acquire()
        self._idle: list[_Worker] = []

    def start(
        self, life: int, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]
    ) -> None:
        """Run ``work()`` in a thread of ``life``, then ``done(result, error)`` on the loop."""
        turn = _Turn(life, work)

        def go_on() -> None:
            if turn.worker is None:
                turn.worker = self._idle.pop() if self._idle else _Worker(self)
                turn.worker.turn = turn
            turn.worker.go.release()
            self._back.acquire()
            if turn.is_done:
                self._idle.append(turn.worker)
                self._loop.call_later(self._random.uniform(0, 0.0005), done, turn.result, turn.error)
            elif turn.pause_s is not None:
                self._loop.call_later(turn.pause_s, go_on)

        def wake() -> None:
            self._loop.call_later(0, go_on)

        turn.wake = wake
        self._loop.call_later(self._random.uniform(0, 0.0005), go_on)

    def give_back(self, turn: _Turn, seconds: float | None) -> None:
        """From a thread: let simulated time go on, and wait for the next turn."""
        if seconds is not None and self._loop.try_pass(seconds):
            return
        turn.pause_s = seconds
        self._back.release()
        assert turn.worker is not None
        turn.worker.go.acquire()

    def end_turn(self) -> None:
        """From a thread: its work is done."""
        self._back.release()

    def close(self) -> None:
        """No thread works any more: let them end. One that waits for a turn that nobody gives it stays."""
        for worker in self._idle:
            worker.turn = None
            worker.go.release()
        self._idle.clear()


def pause(seconds: float) -> None:
    """From such a thread: take so long. Elsewhere nothing."""
    turn = getattr(_local, "turn", None)
    if turn is not None:
        _local.turns.give_back(turn, seconds)


def running_life() -> int:
    """The life whose thread this is."""
    turn = getattr(_local, "turn", None)
    return life_of_task.get() if turn is None else int(turn.life)


class SimulatedLock:
    """Stands for ``threading.Lock`` and ``RLock``: who waits for it lets time go on."""

    def __init__(self) -> None:
        self._owner: object = None
        self._depth = 0
        self._waiting: deque[_Turn] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        """``blocking`` False, for who must not wait: it never succeeds on the event loop, whose time stands still."""
        me = getattr(_local, "turn", None) or threading.current_thread()
        if not blocking and (self._owner not in (None, me) or not isinstance(me, _Turn)):
            return False
        while self._owner not in (None, me):
            assert isinstance(me, _Turn), "the event loop waits for a thread"
            self._waiting.append(me)
            _local.turns.give_back(me, None)
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            if self._waiting:
                self._waiting.popleft().wake()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


#: In the place of the module ``threading`` in a plugin.
THREADING = types.SimpleNamespace(
    Lock=SimulatedLock, RLock=SimulatedLock, Event=threading.Event, local=threading.local
)


class SimulatedWriter:
    """Stands for ``penstock.wal.WriterThread``: jobs begin in order, results come in the order in which jobs end."""

    turns: Turns  # of the history that runs

    def __init__(
        self, name: str, *, threads: int = 1, idle_after_s: float | None = None, **_: object
    ) -> None:
        self._lanes = threads
        self._busy = 0
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]] = deque()
        self._life = life_of_task.get()
        self._open = False
        self._idle_after_s = idle_after_s
        self._worked = 0
        self.idle: Callable[[], None] = lambda: None

    async def __aenter__(self) -> SimulatedWriter:
        self._open = True
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        with anyio.CancelScope(shield=True):
            while self._busy or self._jobs:  # noqa: ASYNC110 - simulated time
                await anyio.sleep(0.001)

    @property
    def running(self) -> bool:
        return self._busy > 0

    @property
    def has_more(self) -> bool:
        return bool(self._jobs)

    def submit(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        if not self._open:
            raise ClosedError("the writer thread is closed")
        self._jobs.append((work, done))
        self._next()

    def _next(self) -> None:
        while self._jobs and self._busy < self._lanes:
            work, done = self._jobs.popleft()
            self._busy += 1
            self._worked += 1

            def ended(result: Any, error: Exception | None, done: Any = done) -> None:
                self._busy -= 1
                self._next()
                done(result, error)
                if not self._busy and self._idle_after_s is not None and self._open:
                    self._loop.call_later(self._idle_after_s, self._perhaps_idle, self._worked)

            self.turns.start(self._life, work, ended)

    def _perhaps_idle(self, worked: int) -> None:
        if self._open and worked == self._worked and not self._busy:
            self._busy += 1

            def ended(_: Any, __: Exception | None) -> None:
                self._busy -= 1
                self._next()

            self.turns.start(self._life, self.idle, ended)

    async def run(self, work: Callable[[], Any]) -> Any:
        event = anyio.Event()
        outcome: list[tuple[Any, Exception | None]] = []

        def done(result: Any, error: Exception | None) -> None:
            outcome.append((result, error))
            event.set()

        self.submit(work, done)
        await event.wait()
        result, error = outcome[0]
        if error is not None:
            raise again(error)
        return result

    @classmethod
    async def run_in_turn(cls, work: Callable[..., Any], *arguments: Any) -> Any:
        """Stands for ``penstock.threads.run_in_thread``."""
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: Exception | None) -> None:
            if ended.done():
                return
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(result)

        cls.turns.start(life_of_task.get(), partial(work, *arguments), done)
        return await ended

    def notify(self, callback: Callable[[], None]) -> None:
        self._loop.call_later(0, callback)
