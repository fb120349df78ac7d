"""One client connection: the transport that bytes come from, and what they are read into.

Thin: ``frames`` cuts and keeps the bytes, ``pipeline`` says what may go on, ``channel`` answers, and
``short_produce``, ``long_produce`` and ``requests`` handle what is taken. Here are the calls of asyncio's transport,
memory for large frames, and pausing: reading pauses when a frame isn't taken, and goes on when it was.

What it holds of requests that aren't handled is on the account of its member of ``core.incoming``; ``_count`` tells.
"""

from __future__ import annotations

__all__ = ("Connection",)

import asyncio
import socket
from typing import Final

import anyio

from penstock.api.client import Client, Endpoint
from penstock.api.errors import quoted
from penstock.errors import PenstockError
from penstock.server import long_produce, requests
from penstock.server.channel import Channel
from penstock.server.core import ServerCore
from penstock.server.frames import FrameReader, ReadEnd, other_protocol, start_of
from penstock.server.large_frame import LargeFrame, length_fault
from penstock.server.long_produce import ProduceHeader
from penstock.server.outbox import Outbox
from penstock.server.overdue import Pending
from penstock.server.pipeline import Phase, Wait
from penstock.server.registry import Connections
from penstock.server.settings import SHORT_BYTES
from penstock.server.short_produce import ShortProduces
from penstock.server.turns import SLICE_REQUESTS
from penstock.shares import PACE_MIN
from penstock.spi.allocator import Allocation
from penstock.time_shares import TimeMember
from penstock.wire.api_keys import ApiKey

_PRODUCE: Final = int(ApiKey.PRODUCE)
_FETCH: Final = int(ApiKey.FETCH)
#: The kinds of work that each get their part of an address's time. Who hasn't asked for anything does something else.
_ELSE, _PRODUCING, _FETCHING = range(3)
_END: Final = int(Wait.END)
_NOTHING: Final = object()


class Connection(asyncio.BufferedProtocol):
    """One of ``connections``. All methods run on the event loop."""

    __slots__ = (
        "_advertised",
        "_awaited",
        "_awaited_since",
        "_carried",
        "_connections",
        "_core",
        "_ending",
        "_header",
        "_in_turn",
        "_is_paused",
        "_reader",
        "_short",
        "_transport",
        "channel",
        "has_asked",
        "is_greedy",
        "last_active",
        "opened",
        "time",
    )

    def __init__(self, core: ServerCore, connections: Connections, advertised: Endpoint) -> None:
        self._core = core
        self._connections = connections
        self._advertised = advertised
        self._reader = FrameReader(core.settings.request_bytes_max)
        #: From ``connection_made`` on.
        self.channel: Channel
        self.time: TimeMember
        self._short: ShortProduces
        self._transport: asyncio.Transport
        self._header = ProduceHeader()
        #: A frame wasn't taken, and the transport doesn't read.
        self._is_paused = False
        #: It asked for more than fits into one turn of the loop; it has such a turn just now.
        self.is_greedy = self._in_turn = False
        #: What ``_count`` told last of bytes that are carried.
        self._carried = 0
        #: What a client that has hung up waits for, since when, and when that is looked at again.
        self._awaited: object = None
        self._awaited_since = 0.0
        self._ending: asyncio.TimerHandle | None = None
        self.last_active = self.opened = core.time()
        #: It has sent a whole request.
        self.has_asked = False

    # -- the transport's calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment] # uvloop's has the methods, not the class
        core = self._core
        began, begin = core.time(), core.processor_time()
        self.channel = Channel(core, self._connections, self, self._transport, self._advertised, self._go_on)
        self._short = ShortProduces(self.channel)
        self.time = self.channel.time
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # as Kafka does: a host that vanished never says so
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not self._connections.opened(self):
            self.abort()
        core.turns.used(core.visitors.enter(self.address), began, begin)

    def connection_lost(self, exc: Exception | None) -> None:
        core = self._core
        began, begin = core.time(), core.processor_time()
        self._release_large()
        self._reader.drop()
        self.channel.lose()
        self._awaited = None
        if self._ending is not None:
            self._ending.cancel()
        self._count()
        self._connections.closed(self)
        core.turns.forget(self)
        core.turns.used(core.visitors.member(self.address), began, begin)
        core.visitors.leave(self.address)

    def eof_received(self) -> bool:
        pipeline, is_sending = self.channel.pipeline, self.outbox.is_sending
        pipeline.advance(Phase.FINISHING)
        if pipeline.is_over(is_stuck=self._reader.is_stuck):
            return is_sending
        self.hung_up()
        return True

    def pause_writing(self) -> None:
        channel = self.channel
        channel.pipeline.begin(Wait.PEER)
        self._mark_busy()
        channel.outbox.filled(self._core.time())

    def resume_writing(self) -> None:
        channel = self.channel
        channel.pipeline.end(Wait.PEER)
        self._mark_busy()
        channel.outbox.emptied()
        channel.go_on()

    def get_buffer(self, sizehint: int) -> memoryview:
        core, reader = self._core, self._reader
        large = reader.large
        if large is not None:
            return large.room[: core.fresh_room] if large.takes_fresh_memory else large.room
        if core.carried.is_high or core.incoming.is_short:
            return reader.buffer(core.scratch)[:SHORT_BYTES]
        if reader.partial or reader.expects_large:
            return reader.buffer(core.scratch)
        return core.scratch

    def buffer_updated(self, nbytes: int) -> None:
        core, channel, reader = self._core, self.channel, self._reader
        core.received_bytes += nbytes
        now = self.last_active = core.time()
        if reader.large is not None:
            channel.incoming.moved(nbytes, now)
            self._received_large(reader.large, nbytes, now)
            return
        if channel.pipeline.waits & _END:
            return
        end = nbytes
        if reader.partial:
            channel.incoming.moved(nbytes, now)
            end = reader.joined(nbytes)
        if core.turns.hold_back(self, now, is_greedy=self.is_greedy):
            reader.keep(core.scratch[:end])
            self._wait_for_turn(is_greedy=self.is_greedy)
            return
        begin = core.processor_time() if core.loop_time.is_measured else None
        self._read(core.scratch, end, now)
        if reader.partial or channel.incoming.held or channel.waiting is not None:
            self._count()
        core.turns.used(channel.time, now, begin)

    # -- frames ---------------------------------------------------------------------------------------

    def _read(self, view: memoryview, end: int, now: float) -> None:
        """Take the frames in ``view[:end]`` as far as that may be; keep what is left of them."""
        core, short, reader = self._core, self._short, self._reader
        pipeline = self.channel.pipeline
        short.now_ms = core.api.now_ms()
        ended = reader.read(
            view,
            end,
            short.take,
            self._take,
            count=pipeline.room(SLICE_REQUESTS),
            until=now + core.turns.slice_s,
            clock=core.time,
        )
        if short.taken:
            core.requests_by_api[_PRODUCE] += short.taken
            self.time.kind = _PRODUCING
            short.taken = 0
            if not self.has_asked:
                self._asked()
        if ended is ReadEnd.MORE:
            return
        if ended is ReadEnd.LARGE:
            self._begin_large()
        elif ended is ReadEnd.MALFORMED:
            length, length_max = reader.bad_length, core.settings.request_bytes_max
            hint = "" if self.has_asked else other_protocol(length)
            self.channel.fault(f"frame length is out of range{hint}: length={length} length_max={length_max}")
        elif ended is ReadEnd.TURN_OVER and pipeline.has_room():
            self._wait_for_turn()
        else:
            self._pause()

    def _take(
        self,
        frame: memoryview,
        api_key: int,
        version: int,
        correlation_id: int,
        allocation: Allocation | None = None,
    ) -> bool:
        """Take a frame that isn't a short Produce (``penstock.server.frames.Take``); ``allocation`` goes with it."""
        channel = self.channel
        pipeline = channel.pipeline
        if pipeline.waits:
            return False
        if not self.has_asked:
            self._asked()
        try:
            if api_key == _PRODUCE:
                if not pipeline.has_room():
                    return False
                self.time.kind = _PRODUCING
                long_produce.start(channel, self._header, frame, version, correlation_id, allocation)
                return True
            if pipeline.slots:
                channel.write_completed()
                if not pipeline.is_first() or pipeline.waits:
                    return False
            self.time.kind = _FETCHING if api_key == _FETCH else _ELSE
            is_kept = requests.start(channel, frame, api_key, version, allocation)
        except PenstockError as error:
            api = channel.core.apis.get(api_key)
            if api is None or api.low <= version <= api.high:
                channel.fault(f"request is malformed: api_key={api_key} version={version}: {error}")
            else:
                channel.fault(requests.not_served(api, api_key, version, channel.client.client_id))
            return False
        if allocation is not None and not is_kept:
            allocation.release()
        return True

    def _asked(self) -> None:
        self.has_asked = True
        self._connections.asked(self)

    # -- large frames ---------------------------------------------------------------------------------

    def _begin_large(self) -> None:
        """Receive the rest of a large frame straight into memory of its own."""
        core, reader, incoming = self._core, self._reader, self.channel.incoming
        size, start = reader.large_size, reader.large_start
        reader.large_start = b""
        api_key = int.from_bytes(start[:2], signed=True)
        fault = length_fault(api_key, size, core.apis, core.settings, self.channel.client)
        if fault is not None:
            self.channel.fault(fault)
            return
        large = reader.large = LargeFrame(size, start, at_once=size <= incoming.credit)
        self._grant(large)
        self._received_fresh(large, large.pos)

    def _grant(self, large: LargeFrame) -> None:
        core, channel = self._core, self.channel
        if large.try_grant(core.allocator, core.incoming, channel.incoming):
            return
        large.start = bytes(large.start)
        channel.pipeline.begin(Wait.MEMORY)
        self._pause()
        core.start_soon(channel, self._wait_for_memory, large)

    async def _wait_for_memory(self, large: LargeFrame) -> None:
        core, channel = self._core, self.channel
        core.waiting_for_memory += 1
        granted = False
        try:
            with channel.scopes.entered(anyio.move_on_after(core.settings.memory_wait_ms_max / 1000)):
                if not channel.is_lost:
                    await large.wait_for_grant(core.allocator, core.incoming, channel.incoming)
                    granted = True
        finally:
            core.waiting_for_memory -= 1
            channel.pipeline.end(Wait.MEMORY)
            if channel.pipeline.is_waiting(Wait.END):
                self._release_large()
                self._count()  # who was lost meanwhile carried its start until now
        if channel.pipeline.is_waiting(Wait.END):
            return
        if not granted:
            self.channel.fault(f"no memory for a large request in time: length={large.size}")
        else:
            self.last_active = core.time()
            self._go_on()

    def _received_large(self, large: LargeFrame, nbytes: int, now: float) -> None:
        large.pos += nbytes
        if not large.is_whole:
            if large.pos == large.granted:
                self._grant(large)
            self._received_fresh(large, nbytes)
            return
        core = self._core
        if core.turns.hold_back(self, now, is_greedy=self.is_greedy):
            self._wait_for_turn(is_greedy=self.is_greedy)
            return
        begin = core.processor_time() if core.loop_time.is_measured else None
        self._take_large(large)
        core.turns.used(self.time, now, begin)

    def _received_fresh(self, large: LargeFrame, nbytes: int) -> None:
        """Let others go first if that was much; at once would be for as long as the client has bytes on their way."""
        if large.takes_fresh_memory and self._core.received_fresh(nbytes):
            self._wait_for_turn()

    def _take_large(self, large: LargeFrame) -> bool:
        """Handle a large frame that is whole; whether that may be now."""
        reader, channel = self._reader, self.channel
        reader.large = None
        core, short, memory = self._core, self._short, large.memory
        frame = memory.view
        start = start_of(frame)
        short.now_ms = core.api.now_ms()
        if channel.pipeline.room(1) and short.take(frame, *start, memory):
            core.requests_by_api[_PRODUCE] += 1
            self.time.kind = _PRODUCING
            short.taken = 0
            if not self.has_asked:
                self._asked()
        elif not self._take(frame, *start, memory):
            if channel.pipeline.is_waiting(Wait.END):
                large.release()
            else:
                reader.large = large
            self._pause()
            return False
        core.incoming.shares.earn(channel.incoming, large.size)
        self._count()
        return True

    def _release_large(self) -> None:
        reader = self._reader
        large = reader.large
        if large is not None and not self.channel.pipeline.is_waiting(
            Wait.MEMORY
        ):  # else who waits for it does so
            reader.large = None
            large.release()

    def _count(self) -> None:
        """Tell the accounts how many bytes are held of requests that aren't handled yet."""
        core, channel, reader = self._core, self.channel, self._reader
        incoming, member = core.incoming, channel.incoming
        carried, size = reader.carried_bytes, reader.held_bytes
        if channel.waiting is not None:
            carried += channel.waiting.carried_bytes
            size += channel.waiting.carried_bytes
        if channel.held is not None:
            size += channel.held.allocated_bytes
        if carried != self._carried:
            self._carried = carried
            core.carried.set(member, carried)
            if core.carried.is_high and carried:
                self._connections.carried_much()
        if channel.is_lost:
            return
        self._mark_busy()
        if size < member.held:
            incoming.give(member, member.held - size)
        elif size > member.held:
            incoming.take(member, size - member.held)
            if incoming.is_short:
                self._connections.relieve_soon()

    def _mark_busy(self) -> None:
        """Say whether what it holds waits for us: then it isn't closed for others as one that doesn't move."""
        channel = self.channel
        waits = channel.waiting is not None or (channel.held is not None and channel.held.allocated_bytes)
        is_ours = self._is_paused or bool(waits)
        channel.incoming.busy = is_ours and not channel.pipeline.is_waiting(Wait.PEER)

    # -- pausing --------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """A frame wasn't taken: read nothing more until it is."""
        pipeline = self.channel.pipeline
        if pipeline.is_waiting(Wait.END):
            self._reader.drop()
        elif not self._is_paused:
            self._is_paused = True
            if not self._transport.is_closing():
                self._transport.pause_reading()
        self._count()

    def _go_on(self) -> None:
        """Something that was waited for is over: take what was kept, as far as it goes; then read on."""
        channel = self.channel
        pipeline = channel.pipeline
        if not self._is_paused and not channel.incoming.held and pipeline.phase is Phase.OPEN:
            return
        if pipeline.waits & _END:
            self._reader.drop()
        if channel.incoming.held and not pipeline.is_waiting(Wait.MEMORY):  # else it is being counted
            self._count()
        if self._is_paused and not pipeline.waits:
            self._take_kept()
            if not self._reader.is_stuck and not pipeline.is_waiting(Wait.MEMORY | Wait.END):
                self._is_paused = False
                self._mark_busy()
                channel.incoming.rested(self._core.time())
                if not self._transport.is_closing():
                    self._transport.resume_reading()
        if pipeline.is_over(is_stuck=self._reader.is_stuck):
            self.close()

    def _take_kept(self) -> None:
        core, reader = self._core, self._reader
        if not reader.is_stuck:
            return
        now, begin = core.time(), core.processor_time()
        if not self._in_turn and core.turns.hold_back(self, now, is_greedy=True):
            self._wait_for_turn()
            return
        large = reader.large
        if large is not None:
            self._take_large(large)
        else:
            backlog = reader.take_backlog()
            self._read(memoryview(backlog), len(backlog), now)
            self._count()
        if not self._in_turn:
            core.turns.used(self.time, now, begin)

    def _wait_for_turn(self, *, is_greedy: bool = True) -> None:
        """Others first: go on in the next turn of this connection."""
        self.is_greedy = is_greedy
        self.channel.pipeline.begin(Wait.TURN)
        self._pause()
        self._core.turns.add(self)

    def turn(self) -> None:
        """Go on with what was kept back for this turn."""
        pipeline = self.channel.pipeline
        pipeline.end(Wait.TURN)
        self._in_turn = True
        self.channel.go_on()
        self._in_turn = False
        if self._reader.large is not None:
            self._core.turns.end_slice()  # what it receives now is its slice
        # what it receives next waits too, if this wasn't all
        self.is_greedy = pipeline.is_waiting(Wait.TURN)

    # -- what the set of connections asks -------------------------------------------------------------

    @property
    def client(self) -> Client:
        """Who is at the other end."""
        return self.channel.client

    @property
    def outbox(self) -> Outbox:
        """What is on its way to the client."""
        return self.channel.outbox

    @property
    def address(self) -> str:
        """Where the client is."""
        return self.channel.address

    @property
    def closing_since(self) -> float | None:
        """When it began to close, None if it doesn't."""
        return self.channel.closing_since

    @property
    def unanswered(self) -> int:
        """Requests that aren't answered."""
        return len(self.channel.pipeline.slots)

    @property
    def waits_for_us(self) -> bool:
        """A request is being handled or waits for memory: a quiet client is no idle client."""
        pipeline = self.channel.pipeline
        return bool(pipeline.slots) or pipeline.is_waiting(Wait.MEMORY | Wait.QUOTA)

    @property
    def is_for_itself(self) -> bool:
        """Whether it waits for a request that is parked, or for room: nobody else needs that done."""
        return self.channel.pipeline.is_waiting(Wait.ALONE | Wait.NOT_NOW)

    @property
    def is_unread(self) -> bool:
        """Whether the transport doesn't read: it doesn't notice then that the client is gone."""
        return self._is_paused or self.channel.pipeline.phase is Phase.FINISHING

    def hung_up(self) -> None:
        """The client sends nothing more. It may still read, or be gone, which looks the same: it gets what is
        answered soon.

        That is as long as a request that only this client has use for takes no longer than ``half_closed_wait_ms``,
        and one that changes something no longer than an idle connection may be there. Kafka waits as long for both.
        """
        if self._ending is None:
            core = self._core
            awaited = self.channel.running or self.channel.waiting or self._reader.large or _NOTHING
            if awaited is not self._awaited:
                self._awaited, self._awaited_since = awaited, core.time()
            self._ending = core.call_later(core.settings.half_closed_wait_ms / 1000, self._end_or_wait)

    def _end_or_wait(self) -> None:
        self._ending = None
        channel, settings = self.channel, self._core.settings
        since, awaited = self._awaited_since, self._awaited
        self.hung_up()
        if awaited is not self._awaited:
            return  # it gets on
        is_parked = channel.scopes or channel.pipeline.is_waiting(Wait.QUOTA)
        if is_parked or self._core.time() - since >= settings.idle_timeout_ms / 1000:
            self.abort()

    @property
    def awaits_log(self) -> bool:
        """Whether it waits for nothing but acknowledgements of the log."""
        pipeline = self.channel.pipeline
        return bool(pipeline.slots) and not pipeline.is_waiting(Wait.ALONE)

    @property
    def pending(self) -> Pending | None:
        """What the client waits for next, as ``Overdue`` wants to know it."""
        pipeline, reader = self.channel.pipeline, self._reader
        if pipeline.is_waiting(Wait.QUOTA | Wait.END) or self.outbox.waits_for_client:
            return None
        if pipeline.slots:
            return Pending(pipeline.slots[0], pipeline.slots[0].asked_ms / 1000)
        if reader.is_stuck:
            return Pending(reader.backlog or reader.large, 0.0)
        return None

    def describe(self) -> str:
        """Where its oldest request is, for the log."""
        core, pipeline, reader = self._core, self.channel.pipeline, self._reader
        waits = "+".join(wait.name for wait in Wait if pipeline.is_waiting(wait))
        api_key = pipeline.slots[0].api_key if pipeline.slots else -1
        client, turns = self.client, core.turns
        return (
            f"api_key={api_key} waits={waits or 'LOG'} phase={pipeline.phase.name} unanswered={len(pipeline.slots)} "
            f"kept_bytes={reader.held_bytes} {turns.describe(self.time)} in_room={core.waiting_for_room} "
            f"in_threads={core.preparing} peer={client.host}:{client.port} client_id={quoted(client.client_id or '')}"
        )

    def frame_is_late(self, now: float, grace_s: float) -> bool:
        """A frame that is due has stopped: nothing came for ``grace_s``, and a little more for each byte so far.

        A new connection owes its first frame.
        """
        if self._is_paused or (self.has_asked and not self._reader.has_begun):
            return False
        return now - self.last_active > grace_s + self._reader.begun_bytes / PACE_MIN

    def probe(self, now: float) -> None:
        """Look how much of a response the client has taken since the last time."""
        taken = self.outbox.probe(now)
        if taken > 0:
            self.channel.incoming.moved(taken, now)

    # -- the end --------------------------------------------------------------------------------------

    def lose_place_slowly(self) -> bool:
        """Give back at once what others need, and take nothing more; whether ``abort`` may come later.

        Not if something is on its way to the client, or waits for memory: that would go on.
        """
        pipeline = self.channel.pipeline
        if pipeline.slots or pipeline.is_waiting(Wait.PEER | Wait.MEMORY):
            self.lose_place()
            return False
        pipeline.advance(Phase.CLOSING)
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()
        self._give_back()
        return True

    def lose_place(self) -> None:
        """Close now, and give back at once what others need."""
        self.abort()
        self._give_back()

    def _give_back(self) -> None:
        self._release_large()
        self._reader.drop()
        self.channel.drop_waiting()
        self._count()
        self.outbox.lose()

    def drain(self) -> None:
        """Take no more requests; answer those in flight, then close."""
        pipeline = self.channel.pipeline
        pipeline.advance(Phase.DRAINING)
        if not pipeline.slots:
            self.close()

    def close(self) -> None:
        """Close when the bytes written so far have left."""
        self.channel.close()

    def abort(self) -> None:
        """Close now."""
        self.channel.abort()
