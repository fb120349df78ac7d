"""Dedicated threads for blocking writes, with one wake-up of the event loop per batch of results.

A queue and a thread of one's own cost about 20 µs a round trip; a hop through a thread pool more than twice that.
"""

from __future__ import annotations

__all__ = ("WriterThread",)

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import anyio

from penstock.errors import ClosedError, UnavailableError, again, kept
from penstock.threads import run_in_thread
from penstock.wal.job_queue import JobQueue

R = TypeVar("R")

_Job: TypeAlias = tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]


class WriterThread:
    """An async context manager that owns one thread, or a few. Jobs begin in the order of their submission.

    With one thread each job has ended before the next begins; with several (``threads``) they overlap, and results
    come in the order in which jobs end.

    ``idle()`` runs in a thread that had no further job for ``idle_after_s`` since its last one; if it returns True,
    again after as long.

    Leaving it lets the threads finish the jobs that were submitted, joins them, and delivers the results. If a
    job hangs on the medium longer than ``join_timeout_s``, leaving raises UnavailableError; its thread is then
    left behind as a daemon, because nothing can interrupt a blocked system call.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        join_timeout_s: float = 30.0,
        idle: Callable[[], bool | None] = lambda: None,
        idle_after_s: float | None = None,
    ) -> None:
        self._name = name
        self._threads_count = threads
        self._join_timeout_s = join_timeout_s
        self.idle = idle
        self._idle_after_s = idle_after_s
        self._jobs: JobQueue[_Job | None] = JobQueue()
        self._results: deque[Callable[[], None]] = deque()
        self._wake_up_pending = False
        self._open = False

    async def __aenter__(self) -> WriterThread:
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._run, name=self._name, daemon=True)
            for _ in range(self._threads_count)
        ]
        self._open = True
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        for _ in self._threads:
            self._jobs.put(None)
        with anyio.CancelScope(shield=True):
            await run_in_thread(self._join)
        self._deliver()
        if self.running:
            raise UnavailableError(
                f"the medium doesn't answer, a writer thread is left behind: thread={self._name} "
                f"waited_s={self._join_timeout_s}"
            )

    def _join(self) -> None:
        deadline = time.monotonic() + self._join_timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def running(self) -> bool:
        """A thread may still be in a job."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def has_more(self) -> bool:
        """From a job: another one waits to begin."""
        return not self._jobs.empty()

    def submit(self, work: Callable[[], R], done: Callable[[R | None, Exception | None], None]) -> None:
        """Run ``work()`` in a thread, then ``done(result, error)`` on the event loop."""
        if not self._open:
            raise ClosedError(f"the writer thread is closed: thread={self._name}")
        self._jobs.put((work, done))

    async def run(self, work: Callable[[], R]) -> R:
        """Run ``work()`` in a thread; it begins after all jobs before it. Raises what it raises.

        Cancelling abandons the result, not the work.
        """
        event = anyio.Event()
        outcome: list[tuple[Any, Exception | None]] = []

        def done(result: R | None, error: Exception | None) -> None:
            outcome.append((result, error))
            event.set()

        self.submit(work, done)
        await event.wait()
        result, error = outcome[0]
        if error is not None:
            raise again(error)
        value: R = result
        return value

    def notify(self, callback: Callable[[], None]) -> None:
        """From a thread: run ``callback()`` on the event loop, in order with the results."""
        self._results.append(callback)
        if not self._wake_up_pending:
            self._wake_up_pending = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # The loop was closed without leaving our context: nobody is left to be told.
                assert self._loop.is_closed()

    def _run(self) -> None:
        worked = False
        while True:
            try:
                job = self._jobs.get(self._idle_after_s if worked else None)
            except Empty:
                worked = bool(self.idle())
                continue
            if job is None:
                return
            worked = True
            work, done = job
            result: Any = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as raised:  # noqa: BLE001 - handed to whoever submitted the job
                error = kept(raised)
            self.notify(_bind(done, result, error))
            del job, work, done, result, error  # payloads must not live until the next job

    def _deliver(self) -> None:
        # First the flag, then the results: a result that arrives in between schedules one more wake-up.
        self._wake_up_pending = False
        try:
            while self._results:
                self._results.popleft()()
        finally:
            if self._results:  # a callback raised: that is for the loop's handler, and the rest still comes
                self._wake_up_pending = True
                self._loop.call_soon(self._deliver)


def _bind(
    done: Callable[[Any, Exception | None], None], result: Any, error: Exception | None
) -> Callable[[], None]:
    return lambda: done(result, error)
