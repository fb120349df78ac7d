"""Drives a group commit whose groups are written by coroutines: for media that are asked over a network.

Beside :class:`~penstock.wal.WriterThread`, which is for media whose writes block a thread.
"""

from __future__ import annotations

__all__ = ("GroupWriter",)

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio

from penstock.errors import ClosedError, FencedError, PenstockError, UnavailableError, kept
from penstock.wal.group_commit import Group, GroupCommit

T = TypeVar("T")


class GroupWriter(Generic[T]):
    """An async context manager that writes the groups of ``commit``, several at a time, and completes them in order.

    Call :meth:`wake` after each ``commit.append``. For each group, two coroutines of the WAL are run:

    * ``begin(group)``, for one group after another, in their order: here the bytes are laid out, and the digest of
      the one before is known;
    * ``write(begun)`` with what it returned, for up to ``writes_max`` groups at a time: when it returns, the group is
      durable. Appends complete in order, whichever group is durable first.

    When either raises, what was appended before that group is answered by its own end, and everything after it with
    the error; nothing is begun any more. FencedError makes the state ``fenced``, any other error ``failed``.

    *When a group is taken.* With nothing in flight at once: a lone append isn't held back, and what one turn of the
    event loop appends goes together. Beside others when it is full, or when its oldest entry has waited for
    ``linger_s``: what comes in while a request is under way shares the next one. Nothing runs while nothing is
    pending.

    *At the end.* Leaving the context refuses appends and writes what is pending, for ``close_timeout_s`` at most,
    also when it is left by an error or by cancellation; then it cancels what is still under way, and answers
    everybody. Errors of a write don't reach the body, and groups of errors nobody: a callback that raises is told to
    the event loop's exception handler.
    """

    def __init__(
        self,
        commit: GroupCommit,
        *,
        begin: Callable[[Group], Awaitable[T]],
        write: Callable[[T], Awaitable[None]],
        failed: Callable[[PenstockError], None] = lambda _: None,
        writes_max: int,
        linger_s: float,
        close_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``failed(error)`` is called once, when the first group can't be made durable, before the answers."""
        self._commit = commit
        self._begin = begin
        self._write = write
        self._failed = failed
        self._writes_max = writes_max
        self._linger_s = linger_s
        self._close_timeout_s = close_timeout_s
        self._clock = clock
        #: Since when the oldest entry of the open group waits; None: there is none.
        self._open_since: float | None = None
        self._news = asyncio.Event()
        self._closing = False
        self._held = False
        #: Those who wait until nothing is in flight.
        self._landed: list[anyio.Event] = []
        # Not a task group: a cancelled scope would end writes that are to be finished, and errors come in groups.
        self._writes: set[asyncio.Task[None]] = set()
        self._last_write_us = 0

    @property
    def last_write_us(self) -> int:
        """How long the last group took, from when it was begun until it was durable, in microseconds."""
        return self._last_write_us

    async def __aenter__(self) -> GroupWriter[T]:
        self._pump_task = asyncio.get_running_loop().create_task(self._pump(), name="wal-pump")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def wake(self) -> None:
        """Something was appended."""
        if self._open_since is None:
            self._open_since = self._clock()
            self._news.set()
        elif not self._commit.in_flight or self._commit.has_ready:
            self._news.set()

    async def hold(self) -> None:
        """Begin no group any more, until :meth:`resume`; return when nothing is in flight."""
        self._held = True
        await self._wait_landed()

    def resume(self) -> None:
        """End :meth:`hold`."""
        self._held = False
        self._news.set()

    def fail(self, error: Exception, group: Group | None = None) -> None:
        """Answer what is pending with ``error``; with ``group``, what was appended before it by its own end."""
        if not isinstance(error, PenstockError):
            _tell("a bug ended the writer of the wal", error)
            error = UnavailableError(f"the wal's writer failed, restart the broker: error={error!r}")
        if self._commit.state in ("open", "closed"):
            self._failed(error)
        try:
            if isinstance(error, FencedError):
                self._commit.fail(error, state="fenced", refusal=error, group=group)
            else:
                self._commit.fail(error, group=group)
        except Exception as raised:  # noqa: BLE001 - of a callback; the WAL goes on
            _tell("a callback of the wal raised", raised)

    async def close(self) -> None:
        """Refuse appends, write what is pending, answer everybody. Leaving the context does it, if nobody did."""
        if self._pump_task.done():
            return
        self._commit.close()
        self._closing = True
        self.resume()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._close_timeout_s):
                while not self._commit.idle:
                    await self._wait_landed()
            tasks = [self._pump_task, *self._writes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            self._commit.fail(ClosedError("the wal was closed before the append was durable"), state="closed")
        except Exception as raised:  # noqa: BLE001 - of a callback; the WAL is closed
            _tell("a callback of the wal raised", raised)

    # -- inside --------------------------------------------------------------------------------------------

    async def _wait_landed(self) -> None:
        if self._commit.in_flight or not (self._held or self._commit.idle):
            landed = anyio.Event()
            self._landed.append(landed)
            await landed.wait()

    async def _pump(self) -> None:
        while True:
            # first the flag, then the look: what is appended in between sets it again
            self._news.clear()
            group = self._take()
            if group is not None:
                await self._start(group)
                continue
            if not self._commit.in_flight:
                for landed in self._landed:
                    landed.set()
                self._landed.clear()
            wait_s = self._wait_s()
            if wait_s == math.inf:
                await self._news.wait()
                continue
            timer = asyncio.get_running_loop().call_later(wait_s, self._news.set)
            try:
                await self._news.wait()
            finally:
                timer.cancel()

    def _take(self) -> Group | None:
        commit = self._commit
        if self._held or commit.in_flight >= self._writes_max or commit.state not in ("open", "closed"):
            return None
        had_ready = commit.has_ready
        group = commit.take(partial=not commit.in_flight or self._closing or self._wait_s() <= 0)
        if group is not None:
            # the group behind a full one was opened when that one was closed, a moment ago
            self._open_since = self._clock() if had_ready and commit.open_entries else None
        return group

    def _wait_s(self) -> float:
        """Until the open group has lingered long enough."""
        if self._open_since is None or self._commit.in_flight >= self._writes_max or self._held:
            return math.inf
        if self._commit.state not in ("open", "closed"):  # nothing is open any more, and no timer may run out
            return math.inf
        return self._open_since + self._linger_s - self._clock()

    async def _start(self, group: Group) -> None:
        started = time.perf_counter_ns()
        try:
            begun = await self._begin(group)
        except Exception as error:  # noqa: BLE001 - whoever appended is told
            self.fail(kept(error), group)
            return
        task = asyncio.get_running_loop().create_task(self._finish(group, begun, started), name="wal-write")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _finish(self, group: Group, begun: T, started: int) -> None:
        try:
            await self._write(begun)
        except Exception as error:  # noqa: BLE001 - whoever appended is told
            self.fail(kept(error), group)
        else:
            self._last_write_us = (time.perf_counter_ns() - started) // 1000
            if not group.done:
                try:
                    self._commit.finish(group)
                except Exception as raised:  # noqa: BLE001 - of a callback; the WAL goes on
                    _tell("a callback of the wal raised", raised)
        finally:
            self._news.set()


def _tell(message: str, error: Exception) -> None:
    context: dict[str, Any] = {"message": message, "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
