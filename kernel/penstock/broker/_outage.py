"""Whether the object store works: told by the calls that everybody makes, in the log and in the statistics.

An outage begins when a call fails, when attempts fail that the store repeats by itself, or when a small request isn't
answered for some seconds. It ends when the same kind of call succeeds, or any call a while after the last failure: a
disk that is full for objects takes a small entry of metadata, and works for nobody. Each is one line in the log.
"""

from __future__ import annotations

__all__ = ("WatchedStore",)

import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio

from penstock.errors import UnavailableError
from penstock.spi.object_store import ObjectStore, ObjectStoreStatistics
from penstock.work.periodic import Jobs, PeriodicJob
from penstock.work.store_around import Request, StoreAround

logger = logging.getLogger("penstock.broker")

#: How often it's looked for calls that aren't answered.
LOOK_S = 1.0
#: So long a request that moves little may take before it's an outage; one that may move an object may take longer.
ANSWER_S = 5.0
WRITE_S = 20.0
_LONG = frozenset({"get", "put", "append", "delete", "write_part", "complete"})
#: Attempts in a row that the store repeats by itself; one alone is no news.
_ATTEMPTS = 2
#: During an outage, a start says again that it waits after so long.
_AGAIN_S = 15.0
#: So long after a failure, any call that succeeds ends the outage.
_QUIET_S = 10.0


class WatchedStore(StoreAround):
    """The store of the plugin, watched. Use ``async with WatchedStore.open(...)``."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        super().__init__(store)
        self._clock = clock
        endpoint = getattr(store, "endpoint", "")
        #: Where it is, for people; never with credentials.
        self.place = f"{store.location} endpoint={endpoint}" if endpoint else store.location
        self._numbers = itertools.count()
        #: When it's too late for each call that isn't answered yet.
        self._due: dict[int, float] = {}
        self._failures = 0
        self._last_error = ""
        self._since: float | None = None
        self._told_at = 0.0
        #: The kind of call that failed last, when, and whether one of another kind succeeded since.
        self._failed_call = ""
        self._failed_at = 0.0
        self._others_work = False
        #: A start gives up after an outage of so long; None once it's complete.
        self._start_timeout_s: float | None = None
        self.jobs = Jobs(
            PeriodicJob("look at the object store", self.look, LOOK_S, puts_off=False, logger=logger)
        )

    @classmethod
    @asynccontextmanager
    async def open(
        cls, store: ObjectStore, clock: Callable[[], float], start_timeout_s: float
    ) -> AsyncIterator[WatchedStore]:
        """Watch ``store`` until the context is left.

        Until :meth:`started`, an outage of ``start_timeout_s`` ends the scope with UnavailableError.
        """
        watched = cls(store, clock)
        watched._start_timeout_s = start_timeout_s
        async with anyio.create_task_group() as tasks:
            watched.jobs.start(tasks)
            try:
                yield watched
            finally:
                tasks.cancel_scope.cancel()

    def started(self) -> None:
        """The start is complete: from now on outages are waited for, however long they take."""
        self._start_timeout_s = None

    @property
    def outage(self) -> str:
        """The present fault of the store, and where it was met; empty while the store works."""
        if self._since is None:
            return ""
        return (
            f"{self.place} outage_s={self._clock() - self._since:.0f} failures={self._failures} "
            f"last_error={self._last_error!r}"
        )

    # -- watching --------------------------------------------------------------------------------------------

    def around(self, request: Request) -> AbstractAsyncContextManager[None]:
        """See what comes of ``request``."""
        return _Watch(self, request.call)

    def begun(self, call: str) -> int:
        """A call has begun; its number, for ``ended``."""
        number = next(self._numbers)
        self._due[number] = self._clock() + (WRITE_S if call in _LONG else ANSWER_S)
        return number

    def ended(self, number: int, call: str, error: BaseException | None) -> None:
        """A call has ended, with ``error`` if it failed."""
        del self._due[number]
        if isinstance(error, UnavailableError):
            self._failures += 1
            self._failed_call, self._failed_at, self._others_work = call, self._clock(), False
            self._begin(str(error))
        elif error is None:
            self._others_work = True
            if self._failed_call in ("", call) or self._is_quiet():
                self._end()

    def _is_quiet(self) -> bool:
        return self._clock() - self._failed_at >= _QUIET_S

    def _begin(self, reason: str) -> None:
        self._last_error = reason
        if self._since is not None:
            return
        self._since = self._told_at = self._clock()
        logger.warning(
            "the object store doesn't work, nothing is lost and it's tried again: %s error=%s",
            self.place,
            reason,
        )

    def _end(self) -> None:
        failures, self._failures, self._failed_call = self._failures, 0, ""
        if self._since is None:
            return
        logger.warning(
            "the object store works again: %s outage_s=%.1f failures=%d",
            self.place,
            self._clock() - self._since,
            failures,
        )
        self._since = None

    def look(self) -> None:
        """Begin an outage that no call has told of; raises UnavailableError when a start has waited too long."""
        now = self._clock()
        told = self._store.statistics()
        if told.consecutive_failures >= _ATTEMPTS:
            self._begin(told.last_error)
        elif any(due < now for due in self._due.values()):
            self._begin("it doesn't answer")
        elif self._others_work and self._is_quiet():
            self._end()
        if self._since is None or self._start_timeout_s is None:
            return
        waited_s = now - self._since
        if waited_s >= self._start_timeout_s:
            raise UnavailableError(
                "the object store didn't work for too long, so the start is given up, look after the store or raise "
                f"broker.start_timeout: {self.outage}"
            )
        if now - self._told_at >= _AGAIN_S:
            self._told_at = now
            logger.warning("the start still waits for the object store: %s", self.outage)

    def statistics(self) -> ObjectStoreStatistics:
        """The plugin's statistics, with the outage that the calls have met."""
        told = self._store.statistics()
        return dataclasses.replace(
            told,
            consecutive_failures=max(self._failures, told.consecutive_failures),
            last_error=self._last_error or told.last_error,
            outage_s=0.0 if self._since is None else round(self._clock() - self._since, 1),
        )


class _Watch:
    """What a call is made in. Not a generator: each put of a write-ahead log is in one, and that takes longer."""

    __slots__ = ("_call", "_number", "_store")

    def __init__(self, store: WatchedStore, call: str) -> None:
        self._store = store
        self._call = call

    async def __aenter__(self) -> None:
        self._number = self._store.begun(self._call)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._store.ended(self._number, self._call, error)
