"""The connections of a server, as many as may be: who gets in, who gives way to others, who is closed in time."""

from __future__ import annotations

__all__ = ("Connections", "Peer")

import asyncio
import logging
import math
import select
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from penstock.api.client import Client
from penstock.log.limiter import BytesLimiter
from penstock.server.core import ServerCore
from penstock.server.outbox import HUNG_UP, Outbox
from penstock.server.overdue import Overdue, Pending
from penstock.shares import GRACE_S, Member
from penstock.work.periodic import Jobs, PeriodicJob
from penstock.work.pieces import pieces

logger = logging.getLogger("penstock.server")

#: How long a closed connection may take to send its last bytes.
_LINGER_S: Final = 10.0
#: How often it's looked for clients that don't move while others wait, and how soon again if there were more of them
#: than are closed at a time: each takes as long as two small requests, most of it for the system, which gets its
#: pages back; and those who waited for its bytes go on at once.
_RELIEF_S: Final = 0.05
_RELIEF_SOON_S: Final = 0.002
_CLOSED_AT_ONCE: Final = 2
#: Who finds no room looks for such clients too, unless somebody did so in vain a moment ago: there may be thousands.
_LOOK_AGAIN_S: Final = 0.05
#: With too many connections, one gives its place to a new one if it has sent no request for so long after it was
#: opened, or was idle for so long. At most so many are looked at.
_SILENT_S: Final = 2.0
_IDLE_S: Final = 10.0
_LOOK_MAX: Final = 64
#: Clients that are closed at a time because they hold many times what others wait for.
_HOARDERS_MAX: Final = 4
#: Who carried too much, or didn't send what it had room for, is closed at this pace, of all who did: an accept and a
#: close cost as much as a few requests, and with its place it would get memory again. One at a time: several in a row
#: are a millisecond in which nobody is served.
_LEAVING_S: Final = 0.01
_LEAVING_AT_ONCE: Final = 1
#: Connections that a sweep looks at, or asks the system about, before others get their turn: some tenths of a
#: millisecond.
_SWEPT_AT_ONCE: Final = 100
_POLLED_AT_ONCE: Final = 20
#: Both ends are closed, or the connection was reset: nobody reads.
_GONE: Final = select.POLLHUP | select.POLLERR
_NOBODY: Final = object()


class Peer(Protocol):
    """One connection, as far as the set of all looks at it."""

    @property
    def address(self) -> str:
        """Where it comes from."""

    @property
    def opened(self) -> float:
        """When it was opened."""

    @property
    def last_active(self) -> float:
        """When bytes came last."""

    @property
    def closing_since(self) -> float | None:
        """When it began to close, None if it doesn't."""

    @property
    def unanswered(self) -> int:
        """Requests that aren't answered."""

    @property
    def waits_for_us(self) -> bool:
        """Whether it is our turn: a quiet client is no idle client then."""

    @property
    def is_for_itself(self) -> bool:
        """Whether what it waits for is of no use when it's gone."""

    @property
    def is_unread(self) -> bool:
        """Whether nothing is read of it just now, so that its end isn't noticed by itself."""

    def hung_up(self) -> None:
        """Note that the client sends nothing more."""

    @property
    def client(self) -> Client:
        """Who it is."""

    @property
    def outbox(self) -> Outbox:
        """What is on its way to it."""

    @property
    def pending(self) -> Pending | None:
        """What its client waits for next (``penstock.server.overdue``)."""

    def describe(self) -> str:
        """Where its oldest request is, for the log."""

    def frame_is_late(self, now: float, grace_s: float) -> bool:
        """Whether an unfinished frame has stopped."""

    def probe(self, now: float) -> None:
        """Look how much the client has taken."""

    def lose_place(self) -> None:
        """Close now, and give back at once what others need."""

    def lose_place_slowly(self) -> bool:
        """Give back at once what others need, and take nothing more; whether ``abort`` may come later."""

    def drain(self) -> None:
        """Take no more requests; answer those in flight, then close."""

    def close(self) -> None:
        """Close when the bytes written so far have left."""

    def abort(self) -> None:
        """Close now."""


class Connections:
    """All open connections. From ``open`` to ``drain``, a job and timers look after them."""

    def __init__(self, core: ServerCore) -> None:
        self._core = core
        self._open: dict[Peer, None] = {}
        #: Connections that have sent no request yet, the oldest first.
        self._silent: dict[Peer, None] = {}
        self.total = 0
        self.rejected = 0
        self.timeouts = 0
        #: Closed because others needed what they held.
        self.outcompeted = 0
        #: Connections that have lost their place and are to be closed, in this order.
        self._leaving: dict[Peer, None] = {}
        self._leaving_timer: asyncio.TimerHandle | None = None
        self._overdue = Overdue[Peer](self._tell_overdue)
        self._is_draining = False
        self._is_shedding = False
        self._all_closed = anyio.Event()
        self._relief_timer: asyncio.TimerHandle | None = None
        #: How long that takes from when it was set.
        self._relief_delay_s = 0.0
        #: When somebody found nobody who could be closed for others.
        self._in_vain: dict[BytesLimiter, float] = {}
        #: Which of those that hold something is looked at next for being gone.
        self._looked: dict[BytesLimiter, int] = {}
        settings = core.settings
        shortest_ms = min(
            settings.idle_timeout_ms, settings.half_open_timeout_ms, settings.stalled_write_timeout_ms
        )
        #: Time limits.
        self.jobs = Jobs(
            PeriodicJob("sweep", self._sweep_in_turns, min(shortest_ms / 4000, 5.0), logger=logger)
        )
        for limiter in (core.incoming, core.outgoing):
            limiter.on_shortage = partial(self.close_stuck, limiter)
        for limiter in (core.incoming, core.outgoing, core.handling):
            limiter.on_waiting = self.relieve_soon

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._open))

    def open(self, tasks: TaskGroup) -> None:
        """Begin to look after time limits, in ``tasks``."""
        self.jobs.start(tasks)

    async def drain(self, timeout_ms: int) -> None:
        """Take no further connection, answer what is in flight within ``timeout_ms``, and close all."""
        self._is_draining = True
        for timer in (self._relief_timer, self._leaving_timer):
            if timer is not None:
                timer.cancel()
        for connection in self:
            connection.drain()
        with anyio.move_on_after(timeout_ms / 1000):
            self._abort_unread_soon()
            await self._wait_closed()
        if self._relief_timer is not None:
            self._relief_timer.cancel()
        for connection in self:
            connection.abort()
        with anyio.move_on_after(1):
            await self._wait_closed()

    def _abort_unread_soon(self) -> None:
        """Look again and again who doesn't take its last answers, or is gone: the stop doesn't wait for that."""
        self._relief_timer = self._core.call_later(_RELIEF_S, self._abort_unread)

    def _abort_unread(self) -> None:
        now = self._core.time()
        for connection in self:
            connection.probe(now)
            is_gone = connection.is_for_itself and connection.outbox.has_hung_up()
            if is_gone or connection.outbox.stalled_for(now) >= GRACE_S:
                connection.abort()
        self._abort_unread_soon()

    async def _wait_closed(self) -> None:
        if self._open:
            await self._all_closed.wait()

    # -- who gets in --------------------------------------------------------------------------------------

    def opened(self, connection: Peer) -> bool:
        """Count it; False when there are too many."""
        self.total += 1
        settings = self._core.settings
        address = connection.address
        reason = None
        if self._is_draining:
            reason = "the broker stops"
        elif len(self._open) >= settings.connections_max and not self._displace(None):
            reason = f"too many: connections_max={settings.connections_max}"
        elif self._core.incoming.shares.members_of(
            address
        ) > settings.connections_per_address_max and not self._displace(address):
            maximum = settings.connections_per_address_max
            reason = f"too many of one address: connections_per_address_max={maximum} address={address}"
        self._open[connection] = None
        self._silent[connection] = None
        if reason is not None:
            self.rejected += 1
            self._core.warn(f"connection refused, {reason}")
        return reason is None

    def asked(self, connection: Peer) -> None:
        """Note that a connection has sent a request: it isn't one of the silent, who lose their places first."""
        self._silent.pop(connection, None)

    def closed(self, connection: Peer) -> None:
        """Remove a connection that has ended."""
        self._silent.pop(connection, None)
        self._leaving.pop(connection, None)
        self._open.pop(connection, None)
        if self._is_draining and not self._open:
            self._all_closed.set()

    def _displace(self, address: str | None) -> bool:
        """Make room for a new connection (of ``address``): close one that has asked nothing yet, or is idle.

        Or one that has lost its place anyway.
        """
        for connection in islice(self._leaving, _LOOK_MAX):
            if address in {None, connection.address}:
                connection.abort()
                self.closed(connection)
                return True
        now = self._core.time()
        found: Peer | None = None
        for connection in islice(self._silent, _LOOK_MAX):
            if now - connection.opened > _SILENT_S and address in {None, connection.address}:
                found = connection
                break
        if found is None:
            found = self._longest_idle(now, address)
        if found is None:
            return False
        self.outcompeted += 1
        found.lose_place()
        self.closed(found)
        return True

    def _longest_idle(self, now: float, address: str | None) -> Peer | None:
        """Of those looked at this time the one that has been idle longest, if that's long; others next time."""
        found: Peer | None = None
        for connection in tuple(islice(self._open, _LOOK_MAX)):
            self._open[connection] = self._open.pop(connection)
            if connection.waits_for_us or address not in {None, connection.address}:
                continue
            if now - connection.last_active > _IDLE_S and (
                found is None or connection.last_active < found.last_active
            ):
                found = connection
        return found

    # -- shortage -----------------------------------------------------------------------------------------

    def close_stuck(self, limiter: BytesLimiter, spare: Member | None) -> Iterator[None]:
        """Close who holds what others need and doesn't move, one at each step; but not ``spare``.

        If there are more than ``_CLOSED_AT_ONCE``, ``relieve`` goes on soon.
        """
        core = self._core
        now = core.time()
        if spare is not None and now - self._in_vain.get(limiter, -math.inf) < _LOOK_AGAIN_S:
            return
        shares = limiter.shares
        for member in shares.holders:
            member.owner.probe(now)
        is_in_vain, left = True, _CLOSED_AT_ONCE
        for member in shares.victims(now, spare=spare):
            # the list is as old as the last of them; and the client may have moved meanwhile, without our noticing
            if member.held and not member.owner.outbox.is_our_turn():
                if not left:
                    self._relieve_in(_RELIEF_SOON_S)
                    return
                is_in_vain, left = False, left - 1
                self._close_for_others(limiter, member)
                yield
        if spare is None:
            for member in shares.hoarders()[:_HOARDERS_MAX]:
                if member.held:  # it hasn't left since the step before
                    self._close_for_others(limiter, member)
                    yield
        elif is_in_vain:
            self._in_vain[limiter] = now

    def _close_for_others(self, limiter: BytesLimiter, member: Member) -> None:
        """What it holds is free at once. Who sends too little is closed in its turn, as it may come again at once."""
        core, owner = self._core, member.owner
        self.outcompeted += 1
        client = owner.client
        is_request = limiter is core.incoming
        what = "request that doesn't come" if is_request else "response that nobody takes"
        core.warn(
            f"connection closed, others need what it holds of a {what}: "
            f"peer={client.host}:{client.port} bytes={member.held}"
        )
        if not is_request:
            owner.lose_place()
        elif owner.lose_place_slowly():
            self._close_later(owner)

    def relieve_soon(self) -> None:
        """Somebody waits for a share: look again and again who doesn't move, for as long as it's so."""
        self._relieve_in(_RELIEF_S)

    def _relieve_in(self, delay_s: float) -> None:
        timer = self._relief_timer
        if self._is_draining or (timer is not None and self._relief_delay_s <= delay_s):
            return
        if timer is not None:
            timer.cancel()
        self._relief_delay_s = delay_s
        self._relief_timer = self._core.call_later(delay_s, self._relieve_and_schedule)

    def _relieve_and_schedule(self) -> None:
        self._relief_timer = None
        if not self._is_draining:
            self.relieve()

    def relieve(self) -> None:
        """While somebody waits for a share, close who holds some and doesn't move, or is gone."""
        core = self._core
        limiters = (core.incoming, core.outgoing)
        if not self._is_shedding:
            self._shed_carried()
        for limiter in limiters:
            limiter.serve()
            stuck = self.close_stuck(limiter, None)
            while limiter.is_short and next(stuck, _NOBODY) is not _NOBODY:
                pass
        short = [limiter for limiter in (*limiters, core.handling) if limiter.is_short]
        for limiter in short:
            self._end_gone(self._some_holders(limiter))
        if core.carried.is_high or short:
            self.relieve_soon()

    def _some_holders(self, limiter: BytesLimiter) -> list[Peer]:
        """Some of those that hold what others wait for, others the next time."""
        holders = limiter.shares.holders
        begin = self._looked.get(limiter, 0)
        if begin >= len(holders):
            begin = 0
        self._looked[limiter] = begin + _POLLED_AT_ONCE
        return [one.owner for one in holders[begin : begin + _POLLED_AT_ONCE] if one.owner in self._open]

    def carried_much(self) -> None:
        """A connection has just begun to carry more, and all together carry much: see that some give way.

        If it's too much that is done in the next turn of the loop: now the connection is in the midst of its bytes.
        """
        self.relieve_soon()
        if self._core.carried.is_over and not self._is_shedding:
            self._is_shedding = True
            self._core.call_soon(self._shed_carried)

    def _shed_carried(self) -> None:
        self._is_shedding = True
        self._go_on_shedding(self._shedding())

    def _go_on_shedding(self, steps: Iterator[None]) -> None:
        """Close some now, the others in the next turns of the loop: there may be thousands."""
        if self._is_draining:
            return
        for _ in islice(steps, _CLOSED_AT_ONCE):
            pass
        if next(steps, _NOBODY) is _NOBODY:
            self._is_shedding = False
        else:
            self._core.call_soon(partial(self._go_on_shedding, steps))

    def _shedding(self) -> Iterator[None]:
        """Close who carries bytes and is to lose its place for that: at once what is too much, then one a step."""
        core = self._core
        for member in core.carried.victims(core.time()):
            if not core.carried.is_over:
                yield
                if member.owner is None or member.owner.outbox.is_our_turn():
                    continue  # it has left, or waits for us
            self.outcompeted += 1
            client = member.owner.client
            core.warn(
                "connection closed, too much is carried of requests that aren't whole or wait: "
                f"peer={client.host}:{client.port} bytes={member.held} carried={core.carried.bytes}"
            )
            if member.owner.lose_place_slowly():
                self._close_later(member.owner)

    def _close_later(self, connection: Peer) -> None:
        self._leaving[connection] = None
        self._close_leaving_later()

    def _close_leaving_later(self) -> None:
        """Close those that have lost their place some at a time, as many of them come again at once."""
        if self._leaving_timer is None and not self._is_draining:
            self._leaving_timer = self._core.call_later(_LEAVING_S, self._close_leaving)

    def _close_leaving(self) -> None:
        self._leaving_timer = None
        for connection in tuple(islice(self._leaving, _LEAVING_AT_ONCE)):
            del self._leaving[connection]
            connection.abort()
        if self._leaving:
            self._close_leaving_later()

    # -- time limits --------------------------------------------------------------------------------------

    async def _sweep_in_turns(self) -> None:
        """As ``sweep``, some connections in each turn of the loop: there may be thousands."""
        for number, _ in enumerate(self._sweeping(), 1):
            if number % _SWEPT_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
            if self._is_draining:
                return

    def sweep(self) -> None:
        """Close connections that are idle, half open, or don't take their responses; tell of overdue requests."""
        for _ in self._sweeping():
            pass

    def _sweeping(self) -> Iterator[None]:
        """One connection a step; those that are opened meanwhile have time."""
        settings = self._core.settings
        now = self._core.time()
        idle = now - settings.idle_timeout_ms / 1000
        grace_s = settings.half_open_timeout_ms / 1000
        stalled_s = settings.stalled_write_timeout_ms / 1000
        self.relieve()
        swept = tuple(self)
        for connection in swept:
            yield
            if connection not in self._open:
                continue
            connection.probe(now)
            if connection.closing_since is not None:
                if connection.closing_since < now - _LINGER_S:
                    connection.abort()
            elif connection.outbox.stalled_for(now) > stalled_s:
                self.timeouts += 1
                connection.abort()
            elif connection.waits_for_us:
                continue
            elif connection.last_active < idle or connection.frame_is_late(now, grace_s):
                self.timeouts += 1
                connection.close()
        for some in pieces(swept, _POLLED_AT_ONCE):
            yield
            self._end_gone(one for one in some if one in self._open)
        yield from self._overdue.look((one for one in swept if one in self._open), now)

    def _tell_overdue(self, connection: Peer, seconds: float) -> None:
        self._core.warn(f"a request has no answer yet: age_s={seconds:.0f} {connection.describe()}")

    def _end_gone(self, connections: Iterable[Peer]) -> None:
        """Notice clients that closed while nothing is read of them, which the transport doesn't notice then."""
        unread = {one.outbox.descriptor: one for one in connections if one.is_unread}
        unread.pop(-1, None)
        poll = select.poll()
        for descriptor in unread:
            poll.register(descriptor, HUNG_UP)
        for descriptor, events in poll.poll(0):
            if events & _GONE:
                unread[descriptor].abort()
            else:
                unread[descriptor].hung_up()
