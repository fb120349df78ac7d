"""The coordinators of a broker: one for each partition of a keyed log that it leads, loaded and unloaded with that.

    absent     -> loading     the broker leads the partition (`lead`); a bounded number of them load at a time
    loading    -> active      every record is applied
    loading    -> loading     the log can't be read now: tried again, less and less often
    loading    -> failed      records are damaged: nothing is written to the partition
    loading    -> unloading   the broker doesn't lead it any more (`resign`, or the partition was closed)
    active     -> unloading   `resign`: who waits is told, and nothing is taken any more
    failed     -> loading     `lead`, again
    failed     -> absent      `resign`
    unloading  -> absent      what was being appended has ended; until then, nothing of the partition is loaded anew

In all phases but active there is an answer in the coordinator's place: NOT_COORDINATOR (absent, unloading),
COORDINATOR_LOAD_IN_PROGRESS (loading), COORDINATOR_NOT_AVAILABLE (failed); clients ask again after each of them. A
record of a newer version ends the whole broker: nothing older may take its place.
"""

from __future__ import annotations

__all__ = ("Coordinator", "Coordinators", "Phase")

import enum
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Final, Generic, Protocol, TypeVar

import anyio
import anyio.abc

from penstock.account import Ledger
from penstock.coordinator.state_log import State, StateLog, StateLogCounters, StateLogSettings
from penstock.errors import ClosedError, FencedError, NewerVersionError, PenstockError, again, kept
from penstock.log.keyed_log import RecordLog
from penstock.wire.error_codes import ErrorCode
from penstock.work.retry import doubling, retry

logger = logging.getLogger("penstock.coordinator")
_RETRY_PAUSES_S: Final = doubling(0.1, 10.0)


class Phase(enum.Enum):
    """Where the coordinator of a partition stands; without one, the partition's is absent."""

    LOADING = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    ACTIVE = ErrorCode.NONE
    FAILED = ErrorCode.COORDINATOR_NOT_AVAILABLE
    UNLOADING = ErrorCode.NOT_COORDINATOR

    @property
    def error(self) -> ErrorCode:
        """What is answered in this phase; NONE if the coordinator is asked."""
        return ErrorCode(self.value)


class Coordinator(State, Protocol):
    """What is known of one partition, and who is asked about it."""

    async def start(self) -> None:
        """All records are applied: get ready to be asked.

        Raises:
            CorruptError: what the records say isn't well-formed.
            NewerVersionError: a newer version wrote it.
        """

    async def close(self) -> None:
        """Answer everybody who waits with NOT_COORDINATOR, and give back all memory; also after half a load, and
        beside another call.
        """


C = TypeVar("C", bound=Coordinator)


class _Term(Generic[C]):
    """The time from leading a partition to not leading it any more."""

    __slots__ = ("coordinator", "ended", "log", "partition", "phase", "put_off", "scope", "settled")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.phase = Phase.LOADING
        self.log: StateLog | None = None
        self.coordinator: C | None = None
        #: Of its load.
        self.scope = anyio.CancelScope()
        #: Set when its load has ended, or was put off.
        self.settled = anyio.Event()
        #: Why it was put off.
        self.put_off: PenstockError | None = None
        #: Set when nothing of it is appended any more.
        self.ended = anyio.Event()


class Coordinators(Generic[C]):
    """See the table above. `begin` before anything is led; `close` at the end."""

    def __init__(
        self,
        log: RecordLog,
        settings: StateLogSettings,
        memory: Ledger,
        make: Callable[[StateLog], C],
        *,
        what: str,
        load_concurrency: int,
        loaded: Callable[[C], None],
    ) -> None:
        """``make`` gives the empty coordinator of ``StateLog.partition``; ``what`` it coordinates is for people.

        ``loaded`` is told of each that is asked from then on.

        ``memory`` is of the records that wait for the log; ``load_concurrency`` partitions load at a time.
        """
        self._what = what
        self._log = log
        self._settings = settings
        self._memory = memory
        self._make = make
        self._loaded = loaded
        self._limiter = anyio.CapacityLimiter(load_concurrency)
        self._terms: dict[int, _Term[C]] = {}
        #: Those that were resigned, and aren't closed yet.
        self._closing: list[C] = []
        self._tasks: anyio.abc.TaskGroup | None = None
        self.counters = StateLogCounters()
        #: Why the scope of ``begin`` was cancelled from here.
        self.fatal: PenstockError | None = None

    @property
    def partition_count(self) -> int:
        """Of the log; those that are led and others."""
        return self._log.partition_count

    def begin(self, tasks: anyio.abc.TaskGroup) -> None:
        """Work in ``tasks``. A record of a newer version cancels them; `fatal` says so."""
        self._tasks = tasks

    def lead(self, partition: int) -> None:
        """The broker leads ``partition``: load its coordinator in the background, if that isn't done already."""
        assert self._tasks is not None, "nothing is led outside the scope"
        before = self._terms.get(partition)
        if before is not None and before.phase in (Phase.LOADING, Phase.ACTIVE):
            return
        term = self._terms[partition] = _Term[C](partition)
        self._tasks.start_soon(self._run, term, before)

    def resign(self, partition: int) -> None:
        """The broker doesn't lead ``partition`` any more: nobody is answered for it from here on."""
        term = self._terms.get(partition)
        if term is None:
            return
        if term.phase is Phase.FAILED:
            del self._terms[partition]
        elif term.phase is not Phase.UNLOADING:
            self._end(term)
            if term.coordinator is not None:
                assert self._tasks is not None, "what is led was begun"
                self._closing.append(term.coordinator)
                self._tasks.start_soon(self._close, term.coordinator)

    async def _close(self, coordinator: C) -> None:
        await coordinator.close()
        self._closing.remove(coordinator)

    async def close(self) -> None:
        """Answer everything that waits. What is being appended goes on in the tasks, until they are cancelled."""
        terms = list(self._terms.values())
        # some may have been resigned a moment ago: the tasks that close them are cancelled next
        left = [*self._closing, *(term.coordinator for term in terms if term.coordinator is not None)]
        with anyio.CancelScope(shield=True):
            # all of them, also if a bug ends one
            async with AsyncExitStack() as stack:
                for coordinator in reversed(left):
                    stack.push_async_callback(coordinator.close)
                for term in reversed(terms):
                    stack.callback(self._end, term)

    def _end(self, term: _Term[C]) -> None:
        term.phase = Phase.UNLOADING
        if term.log is None:
            term.scope.cancel()
        else:
            term.log.close()  # not cancelled: whether the last append has landed must be known to who comes next

    # -- what is there ------------------------------------------------------------------------------------

    def find(self, partition: int) -> C | ErrorCode:
        """The coordinator of ``partition``, or what is answered instead."""
        term = self._terms.get(partition)
        if term is None:
            return ErrorCode.NOT_COORDINATOR
        if term.phase is Phase.ACTIVE:
            assert term.coordinator is not None, "an active one was loaded"
            return term.coordinator
        return term.phase.error

    def active(self) -> Iterator[C]:
        """The coordinators that are asked now."""
        for term in list(self._terms.values()):
            if term.phase is Phase.ACTIVE:
                assert term.coordinator is not None, "an active one was loaded"
                yield term.coordinator

    def count(self, phase: Phase) -> int:
        """How many partitions are in this phase."""
        return sum(term.phase is phase for term in self._terms.values())

    def pending_writes(self) -> int:
        """Sets of records that wait for their append."""
        return sum(term.log.pending for term in self._terms.values() if term.log is not None)

    async def wait_loaded(self) -> None:
        """Return when nothing is loading any more.

        Raises:
            PenstockError: a load is put off, since the log can't be read now; it goes on nevertheless.
        """
        for term in list(self._terms.values()):
            await term.settled.wait()
            if term.put_off is not None:
                raise again(term.put_off)

    # -- inside -------------------------------------------------------------------------------------------

    async def _run(self, term: _Term[C], before: _Term[C] | None) -> None:
        try:
            if before is not None:
                # what it appends must be read, or be known never to come
                await before.ended.wait()
            with term.scope:
                await self._load(term)
            term.settled.set()
            if term.phase is Phase.ACTIVE:
                assert term.log is not None, "an active one was loaded"
                await term.log.run()
        finally:
            term.settled.set()
            term.ended.set()
            # one that was cancelled while it was active is left for `close`, which answers who waits
            if term.phase is Phase.UNLOADING and self._terms.get(term.partition) is term:
                del self._terms[term.partition]

    async def _load(self, term: _Term[C]) -> None:
        def put_off(error: PenstockError) -> None:
            term.put_off = kept(error)
            term.settled.set()

        try:
            log, coordinator = await retry(
                f"loading the coordinator of partition {term.partition}",
                lambda: self._load_once(term.partition),
                _RETRY_PAUSES_S,
                logger=logger,
                on_failure=put_off,
            )
        except (ClosedError, FencedError) as error:
            term.phase = Phase.UNLOADING
            logger.info("no coordinator is loaded: partition=%d error=%s", term.partition, error)
            return
        except NewerVersionError as error:
            term.phase = Phase.FAILED
            self.fatal = kept(error)
            assert self._tasks is not None, "what is led was begun"
            self._tasks.cancel_scope.cancel()
            return
        except PenstockError as error:
            if term.phase is Phase.LOADING:
                term.phase = Phase.FAILED
                term.put_off = None  # nobody waits for it any more
                self._tell_of_damage(term.partition, error)
            return
        if term.phase is Phase.LOADING:
            term.log, term.coordinator = log, coordinator
            term.phase = Phase.ACTIVE
            term.put_off = None
            self._loaded(coordinator)
        else:  # resigned in the last moment
            await coordinator.close()

    def _tell_of_damage(self, partition: int, error: PenstockError) -> None:
        logger.error(
            "%s have no coordinator, their partition of the log is damaged; mend it, or give up its damaged "
            "records, and start again: partition=%d of %d error=%s",
            self._what,
            partition,
            self._log.partition_count,
            error,
        )

    async def _load_once(self, partition: int) -> tuple[StateLog, C]:
        log = StateLog(partition, self._log, self._settings, self._memory, self.counters)
        coordinator = self._make(log)
        try:
            async with self._limiter:
                await log.load(coordinator)
                await coordinator.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await coordinator.close()
            raise
        return log, coordinator
