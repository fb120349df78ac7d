"""A relay between a client library and its server that can hold back the last byte of a request.

A store that decides at the *start* of a conditional put whether the object is there lets two writers win if one of
them is slow. A client library gives no hold on its last byte; so all connections of the event loop lead through
this relay, and bytes are counted here, encrypted ones as well as others.
"""

from __future__ import annotations

__all__ = ("Hold", "Relay", "RelayedLoop")

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketAttribute, SocketStream, TaskGroup

_CHUNK_BYTES = 65536
#: The relay's own connections don't go through it.
_direct: ContextVar[bool] = ContextVar("_direct", default=False)


class RelayedLoop(asyncio.SelectorEventLoop):
    """An event loop whose outgoing TCP connections go through ``relay``, while there is one."""

    relay: Relay | None = None

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        if self.relay is not None and not _direct.get() and sock.family in (socket.AF_INET, socket.AF_INET6):
            address = await self.relay.address_for(sock.family, address)
        await super().sock_connect(sock, address)


class Hold:
    """The last byte of one request: ``held`` is set when nothing else of it is left to send.

    The first connection that carries half of ``size`` bytes is the one; what is less than that (handshakes, a head
    that waits for an answer, other requests) isn't held.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._carrier: object = None
        self._server: ByteSendStream | None = None
        self._last = b""
        self._released = False
        self._lock = anyio.Lock()
        self.held = anyio.Event()

    def takes(self, connection: object, count: int) -> bool:
        """Whether the connection, which has carried ``count`` bytes since the hold began, is the one that is held."""
        if self._carrier is None and count >= self._size // 2 and not self._released:
            self._carrier = connection
        return self._carrier is connection

    async def forward(self, server: ByteSendStream, data: bytes, count: int) -> None:
        """Send what came before, and ``data`` but for its last byte."""
        async with self._lock:
            self._server = server
            whole = self._last + data
            send, self._last = (whole, b"") if self._released else (whole[:-1], whole[-1:])
            if send:
                await server.send(send)
        if count >= self._size:
            self.held.set()

    async def release(self) -> None:
        """Send what is held, and hold nothing more."""
        async with self._lock:
            self._released = True
            if self._last and self._server is not None:
                last, self._last = self._last, b""
                try:
                    await self._server.send(last)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return  # the server gave up; the client sees it, too


class Relay:
    """Relays of all the addresses that a loop connects to, one listener each."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._listeners: dict[Any, int] = {}
        self._lock = anyio.Lock()
        self._hold: Hold | None = None

    @classmethod
    def running(cls, loop: RelayedLoop) -> AbstractAsyncContextManager[Relay]:
        """Relay the connections of ``loop`` as long as the context lasts."""
        return _running(cls, loop)

    def hold(self, size: int) -> Hold:
        """Hold back the last byte of the next request with a body of ``size`` bytes."""
        self._hold = Hold(size)
        return self._hold

    async def address_for(self, family: int, address: Any) -> Any:
        """Where to connect to instead of to ``address``."""
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        async with self._lock:
            port = self._listeners.get(address)
            if port is None:
                listener = await anyio.create_tcp_listener(local_host=host, local_port=0)
                port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no database
                self._listeners[address] = port

                async def serve(client: SocketStream) -> None:
                    await self._serve(client, address[0], address[1])

                self._tasks.start_soon(listener.serve, serve)
        return (host, port, *address[2:])

    async def _serve(self, client: SocketStream, host: str, port: int) -> None:
        _direct.set(True)
        async with client:
            try:
                server = await anyio.connect_tcp(host, port)
            except OSError:
                return
            async with server, anyio.create_task_group() as tasks:
                tasks.start_soon(_copy, server, client, tasks)
                await self._copy_up(client, server)
                tasks.cancel_scope.cancel()

    async def _copy_up(self, client: ByteReceiveStream, server: ByteSendStream) -> None:
        hold, count = self._hold, 0
        try:
            while True:
                data = await client.receive(_CHUNK_BYTES)
                if self._hold is not hold:
                    hold, count = self._hold, 0
                count += len(data)
                if hold is not None and hold.takes(client, count):
                    await hold.forward(server, data, count)
                else:
                    await server.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return


async def _copy(source: ByteReceiveStream, target: ByteSendStream, tasks: TaskGroup) -> None:
    try:
        while True:
            await target.send(await source.receive(_CHUNK_BYTES))
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _running(make: type[Relay], loop: RelayedLoop) -> AsyncGenerator[Relay]:
    async with anyio.create_task_group() as tasks:
        loop.relay = make(tasks)
        try:
            yield loop.relay
        finally:
            loop.relay = None
            tasks.cancel_scope.cancel()
