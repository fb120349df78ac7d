"""Periodic jobs: work that a room repeats for as long as it lives."""

from __future__ import annotations

__all__ = ("JobStatistics", "Jobs", "JobsStatistics", "PeriodicJob")

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated

import anyio
from anyio.abc import TaskGroup

from penstock.errors import InvariantError, PenstockError
from penstock.spi.statistics import counter, gauge, parts, text
from penstock.work.retry import Backoff


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatistics:
    """A snapshot."""

    runs: Annotated[int, counter("runs", "Runs that ended well.")]
    failures: Annotated[int, counter("runs", "Runs that failed, and were put off.")]
    last_ms: Annotated[float, gauge("ms", "How long the last run took.")]
    last_error: Annotated[str, text("Why the last run failed; empty if it didn't.")]
    next_s: Annotated[float, gauge("s", "Time until the next run; 0 while one is under way or due.")]
    paused: Annotated[bool, gauge("", "Whether it waits to be resumed.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsStatistics:
    """A snapshot of the periodic jobs of a room."""

    by_name: Annotated[Mapping[str, JobStatistics], parts("What every job says of itself.")]


class PeriodicJob:
    """Does ``work`` every ``interval_s``, the first time after ``first_s``; :meth:`run` is its task.

    An error that can be retried is logged and counted; the next run comes after the interval, or after those of
    ``retry_s`` in turn. Any other error ends the task, and every one does if
    ``puts_off`` is false. ``jitter`` spreads the pauses, so that the jobs of many brokers
    don't meet: 0.1 is up to a tenth more or less. The interval counts from the end of a run.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[object] | None],
        interval_s: float,
        *,
        first_s: float | None = None,
        retry_s: Sequence[float] = (),
        puts_off: bool = True,
        jitter: float = 0.0,
        random: Random | None = None,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.name = name
        self._work = work
        self._logger = logger
        self._clock = clock
        self._sleep = sleep
        draw = (random or Random()).random if jitter else lambda: 0.5
        self._interval = Backoff((interval_s,), jitter=jitter, random=draw)
        self._retry = Backoff(tuple(retry_s) or (interval_s,), jitter=jitter, random=draw)
        self._first_s = first_s
        self._puts_off = puts_off
        self._resumed: anyio.Event | None = None
        self._runs = 0
        self._failures = 0
        self._last_s = 0.0
        #: When the next run begins; None while none is waited for.
        self._due_at: float | None = None
        self._last_error = ""

    async def run(self) -> None:
        """Repeat the work until it is cancelled, or ends with an error that can't be retried."""
        pause_s = self._interval.failed() if self._first_s is None else self._first_s
        while True:
            self._due_at = self._clock() + pause_s
            await self._sleep(pause_s)
            if self._resumed is not None:
                await self._resumed.wait()
            pause_s = await self._run_once()

    async def _run_once(self) -> float:
        """Do the work; the pause before the next time."""
        self._due_at = None
        started = self._clock()
        try:
            doing = self._work()
            if doing is not None:
                await doing
        except PenstockError as error:
            if not (self._puts_off and error.retryable):
                raise
            self._failures += 1
            self._last_error = str(error)
            pause_s = self._retry.failed()
            self._logger.warning("%s failed, trying again in %d ms: %s", self.name, pause_s * 1000, error)
            return pause_s
        finally:
            self._last_s = self._clock() - started
        self._runs += 1
        self._last_error = ""
        self._retry.succeeded()
        return self._interval.failed()

    def pause(self) -> None:
        """Don't begin another run until :meth:`resume`; one that is under way goes on."""
        if self._resumed is None:
            self._resumed = anyio.Event()

    def resume(self) -> None:
        """Go on; a run that was due in the meantime comes at once."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    def statistics(self) -> JobStatistics:
        """A snapshot of the state."""
        return JobStatistics(
            runs=self._runs,
            failures=self._failures,
            last_ms=self._last_s * 1000,
            last_error=self._last_error,
            next_s=0.0 if self._due_at is None else max(0.0, self._due_at - self._clock()),
            paused=self._resumed is not None,
        )


class Jobs:
    """The periodic jobs of a room: run by its tasks, told in its statistics. So none is run that nobody tells of."""

    def __init__(self, *jobs: PeriodicJob) -> None:
        self._jobs = {job.name.replace(" ", "_").lower(): job for job in jobs}
        if len(self._jobs) < len(jobs):
            raise InvariantError(f"two jobs of a room have one name: names={[job.name for job in jobs]}")

    def start(self, tasks: TaskGroup) -> None:
        """Run all of them in ``tasks``, until these are cancelled."""
        for job in self._jobs.values():
            tasks.start_soon(job.run)

    def statistics(self) -> JobsStatistics:
        """A snapshot of each, by its name with underscores."""
        return JobsStatistics(by_name={name: job.statistics() for name, job in self._jobs.items()})
