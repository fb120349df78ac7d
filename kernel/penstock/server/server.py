"""The server: listeners, the set of connections, limits in time, draining."""

from __future__ import annotations

__all__ = ("Server",)

import asyncio
import errno
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from penstock.api.context import ApiContext, Client, Endpoint
from penstock.api.declaration import Api
from penstock.api.dispatch import advertised
from penstock.api.gate import Gate
from penstock.api.produce_response import ResponseTemplates
from penstock.errors import ConfigError, UnavailableError
from penstock.log.limiter import BytesLimiter
from penstock.server.connection import Connection
from penstock.server.produce_heads import ProduceHeads
from penstock.server.settings import SCRATCH_BYTES, ListenerSettings, ServerSettings, ServerStatistics
from penstock.server.turns import Turns, metered
from penstock.shares import Member
from penstock.spi.allocator import Allocator
from penstock.time_shares import TimeMember, TimeShares

_log = logging.getLogger("penstock.server")

#: How long a closed connection may take to send its last bytes.
_LINGER_S: Final = 10.0
#: What a client may hold of a large request before it has sent anything: up to so many bytes get memory at once that
#: was used before, which is the quicker way. Grows with what it sends.
_RECEIVE_CREDIT: Final = 16 * 1024
_RECEIVE_CREDIT_MAX: Final = 16 * 1024 * 1024
#: How often it's looked for clients that don't move while others wait.
_RELIEF_S: Final = 0.25
#: With too many connections, one gives its place to a new one if it has sent no request for so long after it was
#: opened, or was idle for so long. At most so many are looked at.
_SILENT_S: Final = 2.0
_IDLE_S: Final = 10.0
_LOOK_MAX: Final = 64
#: Connections that are accepted in one turn of the loop.
_ACCEPTS_MAX: Final = 4
#: What long requests take once they are decoded, of all clients, as a part of what they may take before.
_HANDLING_PART: Final = 2
#: Clients that are closed at a time because they hold many times what others wait for.
_HOARDERS_MAX: Final = 4
#: A write of so many bytes counts as time of the loop, by estimate: the system copies a gigabyte a second.
_WRITE_BYTES_MIN: Final = 64 * 1024
_WRITE_S_PER_BYTE: Final = 1e-9
_NOBODY: Final = object()
#: Why a listener can't be bound now, and may be in a moment: the process before this one may still hold the port.
_MAY_PASS: Final = frozenset({errno.EADDRINUSE, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
#: Why the others don't, and what to do.
_WHY_NOT: Final = {
    errno.EADDRINUSE: "somebody listens there already, stop that or choose another port",
    errno.EADDRNOTAVAIL: "the address isn't one of this machine, correct it",
    errno.EACCES: "this user may not have the port, choose one above 1023",
}
#: At most so many lines about bad input per this many seconds.
_FAULT_LINES_MAX: Final = 5
_FAULT_WINDOW_S: Final = 10.0


class Server(AsyncContextManagerMixin):
    """Accepts Kafka clients while its scope is open.

    ``apis`` maps API keys to what handles them (``penstock.api.dispatch.apis``). Entering binds all listeners
    and raises ConfigError when one can't be bound; then ``endpoints`` tells where. Leaving stops accepting,
    raises ``api.draining``, answers what is in flight within ``drain_timeout_ms``, and closes all connections.
    Runs on the asyncio backend only.
    """

    def __init__(
        self,
        *,
        listeners: Sequence[ListenerSettings],
        api: ApiContext,
        apis: Mapping[int, Api],
        allocator: Allocator,
        settings: ServerSettings | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.api = api
        self.apis = apis
        #: What every request passes before its handler.
        self.gate = gate or Gate(authorizer=api.authorizer)
        self.allocator = allocator
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.templates = ResponseTemplates()
        self.produce_heads = ProduceHeads()
        #: Where clients reach this broker, one per listener, once the scope is open.
        self.endpoints: tuple[Endpoint, ...] = ()
        self.received_bytes = 0
        self.sent_bytes = 0
        self.carried_bytes = 0
        self.waiting_for_room = 0
        self.preparing = 0
        self.waiting_for_memory = 0
        self.requests_by_api: Counter[int] = Counter()
        self.gathers = False
        self.time: Callable[[], float] = api.clock
        #: What connections hold of requests, and of responses on their way.
        receive_max = self.settings.receive_bytes_max
        self.incoming = BytesLimiter(
            receive_max,
            credit=_RECEIVE_CREDIT,
            credit_max=min(_RECEIVE_CREDIT_MAX, max(_RECEIVE_CREDIT, receive_max // 8)),
            passes_elder=True,
            clock=self.time,
        )
        self.outgoing = api.logs.fetch_memory
        self.outgoing.clock = self.time
        for limiter in (self.incoming, self.outgoing):
            limiter.on_shortage = partial(self._close_stuck, limiter)
            limiter.on_waiting = self.relieve_soon
        #: What requests take while they are handled.
        handling_max = receive_max // _HANDLING_PART
        self.handling = BytesLimiter(
            handling_max, credit=handling_max, credit_max=handling_max, clock=self.time
        )
        #: Long requests are decoded, and their responses encoded, in this many threads.
        self.long_requests = anyio.CapacityLimiter(1)
        #: Who used how much of the loop's time.
        self.loop_time = TimeShares()
        self.processor_time: Callable[[], float] = time.thread_time
        self.turns = Turns(self._call_soon, self._call_at, self.time, self.processor_time, self.loop_time)
        self._listeners = tuple(listeners)
        self._connections: dict[Connection, None] = {}
        #: Connections that have sent no request yet, the oldest first.
        self._silent: dict[Connection, None] = {}
        self._connections_total = 0
        self._rejected = 0
        self._faults = 0
        self._timeouts = 0
        self._outcompeted = 0
        self._handler_errors = 0
        self._fault_window = _Window(_FAULT_LINES_MAX, _FAULT_WINDOW_S)
        self._dirty: list[Connection] = []
        self._draining = False
        self._all_closed = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._relief_timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Server]:
        loop = self._loop = asyncio.get_running_loop()
        # uvloop gathers buffers into one writev; asyncio does so from 3.12 on.
        self.gathers = sys.version_info >= (3, 12) or type(loop).__module__.startswith("uvloop")
        self.api.api_versions = advertised(self.apis)
        sockets: list[asyncio.Server] = []
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                for listener in self._listeners:
                    sockets.append(await self._listen(loop, listener))
                self._schedule_sweep()
                yield self
            except Exception as error:  # noqa: BLE001 - raised again below, out of the task group's wrapping
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await self._drain(sockets)
                tasks.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    async def _listen(self, loop: asyncio.AbstractEventLoop, listener: ListenerSettings) -> asyncio.Server:
        endpoint: Endpoint | None = None

        def connect() -> Connection:
            assert endpoint is not None
            return Connection(self, endpoint)

        try:
            server = await loop.create_server(
                connect,
                listener.host or None,
                listener.port,
                backlog=_ACCEPTS_MAX,
                start_serving=False,
            )
        except OSError as error:
            kind = UnavailableError if error.errno in _MAY_PASS else ConfigError
            reason = _WHY_NOT.get(error.errno or 0, error.strerror or str(error))
            if isinstance(error, socket.gaierror):
                reason = "host name isn't known, correct the address"
            raise kind(
                f"can't listen, {reason}: listener={listener.name} host={listener.host} port={listener.port}"
            ) from error
        host = listener.advertised_host or listener.host
        port = listener.advertised_port or server.sockets[0].getsockname()[1]
        if host in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            host = "localhost"
        endpoint = Endpoint(node_id=self.api.logs.node_id, host=host, port=port, listener=listener.name)
        self.endpoints += (endpoint,)
        await server.start_serving()
        for bound in server.sockets:
            # asyncio accepts as many at a time, without turns for others, as wait at most
            with socket.socket(fileno=os.dup(bound.fileno())) as same:
                same.listen(self.settings.backlog)
        return server

    async def _drain(self, sockets: Sequence[asyncio.Server]) -> None:
        self._draining = True
        for timer in (self._sweep_timer, self._relief_timer):
            if timer is not None:
                timer.cancel()
        for server in sockets:
            server.close()
        self.api.draining.set()
        for connection in tuple(self._connections):
            connection.drain()
        with anyio.move_on_after(self.settings.drain_timeout_ms / 1000):
            await self._wait_closed()
        for connection in tuple(self._connections):
            connection.abort()
        with anyio.move_on_after(1):
            await self._wait_closed()

    async def _wait_closed(self) -> None:
        if self._connections:
            await self._all_closed.wait()

    # -- what connections call ------------------------------------------------------------------------

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` in the server's scope."""
        assert self._tasks is not None
        self._tasks.start_soon(self._guarded, function, args)

    def start_metered(
        self, member: TimeMember, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """The same; ``member`` pays for the time of the loop that it takes."""
        assert self._tasks is not None
        self._tasks.start_soon(self._guarded, self._metered, (member, function, args))

    async def _metered(
        self,
        member: TimeMember,
        function: Callable[..., Coroutine[Any, Any, None]],
        args: tuple[Any, ...],
    ) -> None:
        await metered(
            function(*args), member, self.loop_time, self.time, self.processor_time, self.turns.defers
        )

    async def _guarded(
        self, function: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]
    ) -> None:
        """One connection's bug ends that connection's task, not the server."""
        try:
            await function(*args)
        except Exception as error:  # noqa: BLE001 - logged as a bug
            self.handler_failed(-1, error, expected=False)

    def flush_soon(self, connection: Connection) -> None:
        """Flush it in the next turn of the loop, when all callbacks of this turn have run."""
        if not self._dirty:
            assert self._loop is not None
            self._loop.call_soon(self._flush_dirty)
        self._dirty.append(connection)

    def _flush_dirty(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            sent = self.sent_bytes
            try:
                connection.flush()
            except Exception as error:  # noqa: BLE001 - logged as a bug; the others still get their answers
                self.handler_failed(-1, error, expected=False)
                connection.abort()
            sent = self.sent_bytes - sent
            if sent >= _WRITE_BYTES_MIN:
                taken = sent * _WRITE_S_PER_BYTE
                self.loop_time.used(connection.time, taken, taken, self.time())
        self.turns.answered()

    def _call_soon(self, function: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon(function)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        """Call ``function`` after a while, unless the handle is cancelled."""
        assert self._loop is not None
        return self._loop.call_later(delay_s, function)

    def _call_at(self, when: float, function: Callable[[], None]) -> None:
        self.call_later(max(0.0, when - self.time()), function)

    def connection_opened(self, connection: Connection) -> bool:
        """Count it; False when there are too many."""
        self._connections_total += 1
        settings = self.settings
        address = connection.address
        reason = None
        if self._draining:
            reason = "the broker stops"
        elif len(self._connections) >= settings.connections_max and not self._displace(None):
            reason = f"too many: connections_max={settings.connections_max}"
        elif self.incoming.shares.members_of(
            address
        ) > settings.connections_per_address_max and not self._displace(address):
            maximum = settings.connections_per_address_max
            reason = f"too many of one address: connections_per_address_max={maximum} address={address}"
        self._connections[connection] = None
        self._silent[connection] = None
        if reason is not None:
            self._rejected += 1
            self._warn(f"connection refused, {reason}")
        return reason is None

    def _displace(self, address: str | None) -> bool:
        """Make room for a new connection (of ``address``): close one that has asked nothing yet, or is idle."""
        now = self.time()
        found: Connection | None = None
        for connection in islice(self._silent, _LOOK_MAX):
            if now - connection.opened > _SILENT_S and address in {None, connection.address}:
                found = connection
                break
        if found is None:
            found = self._longest_idle(now, address)
        if found is None:
            return False
        self._outcompeted += 1
        found.lose_place()
        self.connection_closed(found)
        return True

    def _longest_idle(self, now: float, address: str | None) -> Connection | None:
        """Of those looked at this time the one that has been idle longest, if that's long; others next time."""
        found: Connection | None = None
        for connection in tuple(islice(self._connections, _LOOK_MAX)):
            self._connections[connection] = self._connections.pop(connection)
            if connection.waits_for_us or address not in {None, connection.address}:
                continue
            if now - connection.last_active > _IDLE_S and (
                found is None or connection.last_active < found.last_active
            ):
                found = connection
        return found

    def connection_asked(self, connection: Connection) -> None:
        """It has sent its first request."""
        self._silent.pop(connection, None)

    def connection_closed(self, connection: Connection) -> None:
        """It is gone."""
        self._silent.pop(connection, None)
        self._connections.pop(connection, None)
        if self._draining and not self._connections:
            self._all_closed.set()

    # -- shortage -------------------------------------------------------------------------------------

    def _close_stuck(self, limiter: BytesLimiter, spare: Member | None) -> Iterator[None]:
        """Close who holds what others need and doesn't move, one at each step."""
        now = self.time()
        for member in limiter.shares.holders:
            member.owner.probe(now)
        victims = [m for m in limiter.shares.victims(now, spare=spare) if not m.owner.outbox.is_our_turn()]
        if spare is None:
            victims += [m for m in limiter.shares.hoarders()[:_HOARDERS_MAX] if m not in victims]
        for member in victims:
            self._outcompeted += 1
            client = member.owner.client
            what = "request that doesn't come" if limiter is self.incoming else "response that nobody takes"
            self._warn(
                f"connection closed, others need what it holds of a {what}: "
                f"peer={client.host}:{client.port} bytes={member.held}"
            )
            member.owner.lose_place()
            yield

    def relieve_soon(self) -> None:
        """Somebody waits for a share: look again and again who doesn't move, for as long as it's so."""
        if self._relief_timer is None and self._loop is not None:
            self._relief_timer = self._loop.call_later(_RELIEF_S, self._relieve_and_schedule)

    def _relieve_and_schedule(self) -> None:
        self._relief_timer = None
        if not self._draining:
            self.relieve()

    def relieve(self) -> None:
        """While somebody waits for a share, close who holds some and doesn't move."""
        for limiter in (self.incoming, self.outgoing):
            limiter.serve()
            stuck = self._close_stuck(limiter, None)
            while limiter.is_short and next(stuck, _NOBODY) is not _NOBODY:
                limiter.serve()
        if any(limiter.is_short for limiter in (self.incoming, self.outgoing)):
            self.relieve_soon()

    def connection_faulted(self, connection: Connection, reason: str) -> None:
        """It sent what no client should, and will be closed."""
        self._faults += 1
        client = connection.client
        self._warn(f"connection closed: {reason} peer={client.host}:{client.port}")

    def handler_failed(
        self, api_key: int, error: BaseException, *, expected: bool, client: Client | None = None
    ) -> None:
        """A handler raised. An operating error gets a line, a bug its traceback."""
        if expected:
            peer = "" if client is None else f" peer={client.host}:{client.port}"
            self._warn(f"request failed: api_key={api_key}{peer} error={type(error).__name__}: {error}")
            return
        self._handler_errors += 1
        _log.error("request failed, this is a bug: api_key=%s", api_key, exc_info=error)

    def _warn(self, line: str) -> None:
        skipped = self._fault_window.admit(self.time())
        if skipped is None:
            _log.debug("%s", line)
        else:
            _log.warning("%s%s", line, f" (and {skipped} more not shown)" if skipped else "")

    # -- time limits ----------------------------------------------------------------------------------

    def _schedule_sweep(self) -> None:
        settings = self.settings
        shortest_ms = min(
            settings.idle_timeout_ms, settings.half_open_timeout_ms, settings.stalled_write_timeout_ms
        )
        assert self._loop is not None
        self._sweep_timer = self._loop.call_later(min(shortest_ms / 4000, 5.0), self._sweep_and_schedule)

    def _sweep_and_schedule(self) -> None:
        self.sweep()
        self._schedule_sweep()

    def sweep(self) -> None:
        """Close connections that are idle, half open, or don't take their responses."""
        now = self.time()
        idle = now - self.settings.idle_timeout_ms / 1000
        grace_s = self.settings.half_open_timeout_ms / 1000
        stalled_s = self.settings.stalled_write_timeout_ms / 1000
        self.relieve()
        for connection in tuple(self._connections):
            connection.probe(now)
            if connection.closing_since is not None:
                if connection.closing_since < now - _LINGER_S:
                    connection.abort()
            elif connection.outbox.stalled_for(now) > stalled_s:
                self._timeouts += 1
                connection.abort()
            elif connection.waits_for_us:
                continue
            elif connection.last_active < idle or connection.frame_is_late(now, grace_s):
                self._timeouts += 1
                connection.close()

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        return ServerStatistics(
            connections=len(self._connections),
            connections_total=self._connections_total,
            connections_rejected=self._rejected,
            connections_closed_for_fault=self._faults,
            connections_closed_for_timeout=self._timeouts,
            connections_closed_for_others=self._outcompeted,
            requests_by_api=MappingProxyType(dict(self.requests_by_api)),
            requests_in_flight=sum(len(connection.slots) for connection in self._connections),
            handler_errors=self._handler_errors,
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
            waiting_for_room=self.waiting_for_room,
            preparing=self.preparing,
            waiting_for_memory=self.waiting_for_memory,
            receive_bytes=self.incoming.used,
            carried_bytes=self.carried_bytes + sum(c.pending_bytes for c in self._connections),
        )


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
