"""Clients that connect: accepted a few at a time, let in by turns, at the cost of their address.

To let a client in and to see it go takes as long as several of its requests, before anything is known of it but where
it comes from. So that is on its address's account (``penstock.server.visitors``), and those that connect while this
has used more than its part wait here for their turn: some of them accepted, the others in the system's queue.
"""

from __future__ import annotations

__all__ = ("ACCEPTS_MAX", "ARRIVALS_MAX", "Arrivals")

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from penstock.server.core import ServerCore
from penstock.shares import address_of
from penstock.time_shares import TimeMember

#: Connections that are accepted of one listener in one iteration of the loop.
ACCEPTS_MAX: Final = 4
#: Accepted ones that wait for their turn; the system keeps further ones.
ARRIVALS_MAX: Final = 256
#: What letting one in takes apart from ``connection_made``, by estimate: system calls, the transport, a task.
_ACCEPT_S: Final = 1e-4
#: How long nobody is accepted when the process or the system has no more descriptors, or no memory for one.
_SHORT_S: Final = 0.5
_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Arrival:
    """A client that is accepted and waits to be let in."""

    __slots__ = ("_let_in", "address", "is_greedy", "sock", "time")

    awaits_log = False

    def __init__(
        self, sock: socket.socket, address: str, member: TimeMember, let_in: Callable[[_Arrival], None]
    ) -> None:
        self.sock = sock
        self.address = address
        self.time = member
        self.is_greedy = True
        self._let_in = let_in

    def turn(self) -> None:
        """Let it in."""
        self._let_in(self)


class Arrivals:
    """Accepts clients of several listeners from ``listen`` to ``close``."""

    def __init__(self, core: ServerCore) -> None:
        self._core = core
        self._listeners: list[tuple[socket.socket, Callable[[], asyncio.BaseProtocol]]] = []
        #: Those that wait for their turn.
        self._waiting: dict[_Arrival, None] = {}
        self._is_accepting = False
        self._is_closed = False
        self._again: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def listen(self, descriptor: int, connect: Callable[[], asyncio.BaseProtocol], backlog: int) -> None:
        """Begin to accept at this bound socket, of which a duplicate is kept; each client gets a protocol."""
        sock = socket.socket(fileno=os.dup(descriptor))
        sock.setblocking(False)
        self._listeners.append((sock, connect))
        sock.listen(backlog)
        self._pause()
        self._accept_again()

    def close(self) -> None:
        """Accept nobody any more; who waits is turned away."""
        self._is_closed = True
        self._pause()
        if self._again is not None:
            self._again.cancel()
        for sock, _ in self._listeners:
            sock.close()
        for arrival in tuple(self._waiting):
            self._turn_away(arrival)

    # -- accepting ------------------------------------------------------------------------------------

    def _pause(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            loop = asyncio.get_running_loop()
            for sock, _ in self._listeners:
                loop.remove_reader(sock)

    def _accept_again(self) -> None:
        self._again = None
        if not self._is_accepting and not self._is_closed and len(self._waiting) < ARRIVALS_MAX:
            self._is_accepting = True
            loop = asyncio.get_running_loop()
            for sock, connect in self._listeners:
                loop.add_reader(sock, self._accept, sock, connect)

    def _accept(self, listener: socket.socket, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        """Some clients connect."""
        for _ in range(ACCEPTS_MAX):
            if not self._is_accepting:
                return
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _SHORT:
                    self._core.warn(f"can't accept clients, trying again: error={error}")
                    self._pause()
                    self._again = self._core.call_later(_SHORT_S, self._accept_again)
                    return
                continue  # that one is gone again
            self._arrived(sock, str(peer[0]), connect)

    def _arrived(self, sock: socket.socket, host: str, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        core = self._core
        address = address_of(host)
        member = core.visitors.enter(address)
        arrival = _Arrival(sock, address, member, partial(self._let_in, connect))
        if core.turns.hold_back(arrival, core.time(), is_greedy=True):
            self._waiting[arrival] = None
            if len(self._waiting) >= ARRIVALS_MAX:
                self._pause()
            core.turns.add(arrival)
        else:
            self._begin(arrival, connect)

    def _let_in(self, connect: Callable[[], asyncio.BaseProtocol], arrival: _Arrival) -> None:
        if arrival not in self._waiting:
            return
        del self._waiting[arrival]
        if self._again is None and len(self._waiting) <= ARRIVALS_MAX // 2:
            self._accept_again()
        self._core.turns.end_slice()  # its transport is made in the next iteration: that is this slice
        self._begin(arrival, connect)

    def _turn_away(self, arrival: _Arrival) -> None:
        self._waiting.pop(arrival, None)
        arrival.sock.close()
        self._core.visitors.leave(arrival.address)

    # -- letting in -----------------------------------------------------------------------------------

    def _begin(self, arrival: _Arrival, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        core = self._core
        core.loop_time.used(arrival.time, _ACCEPT_S, _ACCEPT_S, core.time())
        core.start_task(self._connect, arrival, connect)

    async def _connect(self, arrival: _Arrival, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        """From here on it's the protocol that enters and leaves for it."""
        try:
            # Not broken off: uvloop closes the transport then, and never tells its protocol.
            with anyio.CancelScope(shield=True):
                transport, _ = await asyncio.get_running_loop().connect_accepted_socket(connect, arrival.sock)
            try:
                await checkpoint_if_cancelled()
            except BaseException:
                transport.abort()
                raise
        except Exception as error:  # noqa: BLE001 - logged; it ends this client, not the server
            arrival.sock.close()
            self._core.handler_failed(-1, error, expected=isinstance(error, OSError))
        except BaseException:
            arrival.sock.close()
            raise
        finally:
            self._core.visitors.leave(arrival.address)
