"""The state that a server's connections share: settings, accounts, counters, the gate, the loop."""

from __future__ import annotations

__all__ = ("ServerCore",)

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup

from penstock.api.context import ApiContext, Client
from penstock.api.declaration import Api
from penstock.api.gate import Gate
from penstock.api.produce_response import ResponseTemplates
from penstock.log.limiter import BytesLimiter
from penstock.log.manager import PREPARATION_THREADS
from penstock.server.carried import Carried
from penstock.server.produce_heads import ProduceHeads
from penstock.server.room_turns import RoomTurns
from penstock.server.sender import Sender
from penstock.server.settings import SCRATCH_BYTES, SHORT_BYTES, ServerSettings
from penstock.server.turns import Turns, metered
from penstock.server.visitors import Visitors
from penstock.spi.allocator import Allocator
from penstock.time_shares import TimeMember, TimeShares

logger = logging.getLogger("penstock.server")

#: What a client may hold of a large request before it has sent anything: up to so many bytes get memory at once that
#: was used before, which is the quicker way. Grows with what it sends.
_RECEIVE_CREDIT: Final = 16 * 1024
_RECEIVE_CREDIT_MAX: Final = 16 * 1024 * 1024
#: What long requests take once they are decoded, of all clients, as a part of what they may take before.
_HANDLING_PART: Final = 2
#: A write of so many bytes counts as time of the loop, by estimate: a call and a copy, a gigabyte a second.
_WRITE_BYTES_MIN: Final = 4 * 1024
_WRITE_S: Final = 2e-5
_WRITE_S_PER_BYTE: Final = 1e-9
#: Connections of limited crowds whose answers leave in one turn of the loop: some 25 µs each, which count for nobody.
_CROWD_FLUSHED: Final = 8
#: Bytes that are received into fresh memory in one turn of the loop: each of its pages is a fault, together some
#: tenths of a millisecond. Connections by the hundred that announce much have megabytes there at a time.
_FRESH_BYTES_MAX: Final = 256 * 1024
#: uvloop's timers go by milliseconds, and one of less than half is called at once: who looked at the clock then set
#: it again and again, some ten times, when the loop should be idle for others' sake.
_TIMER_S_MIN: Final = 0.001
#: At most so many lines about bad input per this many seconds.
_FAULT_LINES_MAX: Final = 5
_FAULT_WINDOW_S: Final = 10.0


class Flushable(Protocol):
    """Has answers to write."""

    time: TimeMember

    def flush(self) -> None:
        """Write what is complete."""

    def abort(self) -> None:
        """Close now."""

    def abandon(self, error: BaseException) -> None:
        """End, since something that was done for this client broke off with ``error``."""


class ServerCore:
    """One for all connections of a server; ``open`` binds it to the loop and to the task group of its scope."""

    def __init__(
        self,
        *,
        api: ApiContext,
        apis: Mapping[int, Api],
        allocator: Allocator,
        settings: ServerSettings,
        gate: Gate,
    ) -> None:
        self.settings = settings
        self.api = api
        self.apis = apis
        #: What every request passes before its handler.
        self.gate = gate
        self.allocator = allocator
        #: The receive buffer that all connections share, within one ``get_buffer`` and ``buffer_updated`` each.
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.templates = ResponseTemplates()
        self.produce_heads = ProduceHeads()
        #: Whether a transport writes many buffers without joining them.
        self.gathers = False
        #: Sends large responses.
        self.sender = Sender()
        self.received_bytes = 0
        self.sent_bytes = 0
        #: Who may try the log again when it had no room.
        self.room_turns = RoomTurns()
        #: Whose batch is looked into in a thread next; one more than there are, so that none waits for the loop.
        self.work_turns = RoomTurns(PREPARATION_THREADS + 1)
        #: What connections carry between reads, outside of the memory that the allocator hands out.
        self.carried = Carried(settings.carried_bytes_max, allocator)
        self.waiting_for_room = 0
        self.preparing = 0
        self.waiting_for_memory = 0
        self.faults = 0
        self.handler_errors = 0
        self.requests_by_api: Counter[int] = Counter()
        self.time: Callable[[], float] = api.clock
        #: What connections hold of requests, and of responses on their way.
        receive_max = settings.receive_bytes_max
        self.incoming = BytesLimiter(
            receive_max,
            credit=_RECEIVE_CREDIT,
            credit_max=min(_RECEIVE_CREDIT_MAX, max(_RECEIVE_CREDIT, receive_max // 8)),
            passes_elder=True,
            clock=self.time,
        )
        self.outgoing = api.logs.fetch_memory
        self.outgoing.clock = self.time
        #: What requests take while they are handled.
        handling_max = receive_max // _HANDLING_PART
        self.handling = BytesLimiter(
            handling_max, credit=handling_max, credit_max=handling_max, clock=self.time
        )
        #: Long requests are decoded, and their responses encoded, in this many threads.
        self.long_requests = anyio.CapacityLimiter(1)
        #: Who used how much of the loop's time.
        self.loop_time = TimeShares()
        self.visitors = Visitors(self.loop_time.join, self.loop_time.leave)
        self.processor_time: Callable[[], float] = time.thread_time
        self.turns = Turns(self.call_soon, self._call_at, self.time, self.processor_time, self.loop_time)
        self._dirty: list[Flushable] = []
        #: So many bytes more may come into fresh memory in this turn of the loop; a few more of each that waits for
        #: its turn then, as whoever is read from has to have a buffer.
        self.fresh_room = _FRESH_BYTES_MAX
        self._fault_window = _Window(_FAULT_LINES_MAX, _FAULT_WINDOW_S)
        self._tasks: TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, loop: asyncio.AbstractEventLoop, tasks: TaskGroup) -> None:
        """From now on tasks and timers can be started."""
        self._loop = loop
        self._tasks = tasks
        self.sender.open(loop)

    @property
    def carried_bytes(self) -> int:
        """Bytes that connections carry between reads."""
        return self.carried.bytes

    # -- tasks and timers -------------------------------------------------------------------------------

    def start_task(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function``, which doesn't raise, in the server's scope."""
        assert self._tasks is not None
        self._tasks.start_soon(function, *args)

    def start_soon(
        self, channel: Flushable, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Run ``function`` for ``channel`` in the server's scope; whatever breaks it off ends the channel."""
        assert self._tasks is not None
        self._tasks.start_soon(self._guarded, channel, function, args)

    def start_metered(
        self, channel: Flushable, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Start ``function`` like ``start_soon``; the channel pays for the time of the loop that it takes."""
        self.turns.end_slice()
        self.start_soon(channel, self._metered, channel, function, args)

    async def _metered(
        self,
        channel: Flushable,
        function: Callable[..., Coroutine[Any, Any, None]],
        args: tuple[Any, ...],
    ) -> None:
        await metered(function(*args), channel.time, self.turns)

    @staticmethod
    async def _guarded(
        channel: Flushable, function: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]
    ) -> None:
        """One connection's bug ends that connection, not the server.

        So does a cancellation that is neither the connection's own, which ``function`` would have dealt with, nor
        the server's: nothing else would ever answer the request.
        """
        try:
            await function(*args)
        except Exception as error:  # noqa: BLE001 - logged as a bug
            channel.abandon(error)
        except BaseException as error:
            channel.abandon(error)
            raise

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call ``function`` in the next turn of the loop."""
        assert self._loop is not None
        self._loop.call_soon(function)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        """Call ``function`` after a while, unless the handle is cancelled."""
        assert self._loop is not None
        return self._loop.call_later(delay_s, function)

    def _call_at(self, when: float, function: Callable[[], None]) -> None:
        self.call_later(max(_TIMER_S_MIN, when - self.time()), function)

    def received_fresh(self, size: int) -> bool:
        """Whether so many bytes came into fresh memory in this turn of the loop that others are to go first."""
        if self.fresh_room == _FRESH_BYTES_MAX:
            self.call_soon(self._forget_fresh)
        self.fresh_room = max(SHORT_BYTES, self.fresh_room - size)
        return self.fresh_room <= SHORT_BYTES

    def _forget_fresh(self) -> None:
        self.fresh_room = _FRESH_BYTES_MAX

    # -- answers ----------------------------------------------------------------------------------------

    def flush_soon(self, channel: Flushable) -> None:
        """Flush it in the next turn of the loop, when all callbacks of this turn have run."""
        if not self._dirty:
            self.call_soon(self.flush_dirty)
        self._dirty.append(channel)

    def flush_dirty(self) -> None:
        """Flush those who asked for it."""
        dirty, self._dirty = self._dirty, []
        if len(dirty) > _CROWD_FLUSHED:
            dirty = self._crowds_later(dirty)
        for channel in dirty:
            sent = self.sent_bytes
            try:
                channel.flush()
            except Exception as error:  # noqa: BLE001 - logged as a bug; the others still get their answers
                self.handler_failed(-1, error, expected=False)
                channel.abort()
            sent = self.sent_bytes - sent
            if sent >= _WRITE_BYTES_MIN:
                taken = _WRITE_S + sent * _WRITE_S_PER_BYTE
                self.loop_time.used(channel.time, taken, taken, self.time())
        self.turns.answered(dirty)

    def _crowds_later(self, dirty: list[Flushable]) -> list[Flushable]:
        """Who of ``dirty`` is flushed now: of limited crowds some, behind all others, and more in the next turn."""
        crowd = [channel for channel in dirty if channel.time.is_crowded]
        if len(crowd) <= _CROWD_FLUSHED:
            return dirty
        self._dirty = crowd[_CROWD_FLUSHED:]
        self.call_soon(self.flush_dirty)
        return [channel for channel in dirty if not channel.time.is_crowded] + crowd[:_CROWD_FLUSHED]

    # -- what goes wrong --------------------------------------------------------------------------------

    def connection_faulted(self, client: Client, reason: str) -> None:
        """A client sent what none should, and its connection will be closed."""
        self.faults += 1
        self.warn(f"connection closed: {reason} peer={client.host}:{client.port}")

    def handler_failed(
        self, api_key: int, error: BaseException, *, expected: bool, client: Client | None = None
    ) -> None:
        """A handler raised. An operating error gets a line, a bug its traceback."""
        if expected:
            peer = "" if client is None else f" peer={client.host}:{client.port}"
            self.warn(f"request failed: api_key={api_key}{peer} error={type(error).__name__}: {error}")
            return
        self.handler_errors += 1
        logger.error("request failed, this is a bug: api_key=%s", api_key, exc_info=error)

    def warn(self, line: str) -> None:
        """Log what a client can make happen often: a few lines per while, and how many there were."""
        skipped = self._fault_window.admit(self.time())
        if skipped is None:
            logger.debug("%s", line)
        else:
            logger.warning("%s%s", line, f" (and {skipped} more not shown)" if skipped else "")


class _Window:
    """Admits so many events per window of time, and counts the others."""

    __slots__ = ("_admitted", "_limit", "_since", "_skipped", "_window_s")

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._since = float("-inf")
        self._admitted = 0
        self._skipped = 0

    def admit(self, now: float) -> int | None:
        """None when this one is over the limit; else how many were, since the last one admitted."""
        if now - self._since >= self._window_s:
            self._since = now
            self._admitted = 0
        if self._admitted >= self._limit:
            self._skipped += 1
            return None
        self._admitted += 1
        skipped, self._skipped = self._skipped, 0
        return skipped
