"""The server: listeners, the scope that everything runs in, draining, statistics."""

from __future__ import annotations

__all__ = ("Server",)

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import anyio
from anyio import AsyncContextManagerMixin

from penstock.api.context import ApiContext, Endpoint
from penstock.api.declaration import Api
from penstock.api.dispatch import advertised
from penstock.api.gate import Gate
from penstock.errors import ConfigError, UnavailableError
from penstock.server.arrivals import Arrivals
from penstock.server.connection import Connection
from penstock.server.core import ServerCore
from penstock.server.registry import Connections
from penstock.server.settings import ListenerSettings, ServerSettings, ServerStatistics
from penstock.spi.allocator import Allocator

#: Why a listener can't be bound now, and may be in a moment: the process before this one may still hold the port.
_MAY_PASS: Final = frozenset({errno.EADDRINUSE, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
#: Why the others don't, and what to do.
_WHY_NOT: Final = {
    errno.EADDRINUSE: "somebody listens there already, stop that or choose another port with listener.bind",
    errno.EADDRNOTAVAIL: "the address isn't one of this machine, correct it",
    errno.EACCES: "this user may not have the port, choose one above 1023",
}


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
        self.core = ServerCore(
            api=api,
            apis=apis,
            allocator=allocator,
            settings=settings or ServerSettings(),
            gate=gate or Gate(authorizer=api.authorizer),
        )
        self.connections = Connections(self.core)
        self._arrivals = Arrivals(self.core)
        #: Where clients reach this broker, one per listener, once the scope is open.
        self.endpoints: tuple[Endpoint, ...] = ()
        self._listeners = tuple(listeners)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Server]:
        loop = asyncio.get_running_loop()
        core = self.core
        # uvloop gathers buffers into one writev. So does asyncio from 3.12 on, but in 3.12.1 and 3.13.0 it doesn't
        # tell then that the socket is full, and a client that never reads would be sent everything it asks for.
        core.gathers = type(loop).__module__.startswith("uvloop")
        core.api.api_versions = advertised(core.apis)
        sockets: list[asyncio.Server] = []
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            core.open(loop, tasks)
            try:
                for listener in self._listeners:
                    sockets.append(await self._listen(loop, listener))
                self.connections.open(tasks)
                yield self
            except Exception as error:  # noqa: BLE001 - raised again below, out of the task group's wrapping
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await self._drain(sockets)
                core.sender.close()
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
            return Connection(self.core, self.connections, endpoint)

        try:
            server = await loop.create_server(
                connect,
                listener.host or None,
                listener.port,
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
        endpoint = Endpoint(
            node_id=self.core.api.logs.node_id,
            host=host,
            port=port,
            rack=listener.rack,
            listener=listener.name,
        )
        self.endpoints += (endpoint,)
        for bound in server.sockets:
            self._arrivals.listen(bound.fileno(), connect, self.core.settings.backlog)
        return server

    async def _drain(self, sockets: Sequence[asyncio.Server]) -> None:
        self._arrivals.close()
        for server in sockets:
            server.close()
        self.core.api.draining.set()
        await self.connections.drain(self.core.settings.drain_timeout_ms)

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        core, connections = self.core, self.connections
        return ServerStatistics(
            connections=len(connections),
            connections_total=connections.total,
            connections_rejected=connections.rejected,
            connections_closed_for_fault=core.faults,
            connections_closed_for_timeout=connections.timeouts,
            connections_closed_for_others=connections.outcompeted,
            requests_by_api=MappingProxyType(dict(core.requests_by_api)),
            requests_in_flight=sum(connection.unanswered for connection in connections),
            handler_errors=core.handler_errors,
            received_bytes=core.received_bytes,
            sent_bytes=core.sent_bytes,
            waiting_for_room=core.waiting_for_room,
            preparing=core.preparing,
            waiting_for_memory=core.waiting_for_memory,
            receive_bytes=core.incoming.used,
            carried_bytes=core.carried_bytes,
            jobs=connections.jobs.statistics(),
        )
