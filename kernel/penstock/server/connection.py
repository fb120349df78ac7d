"""One client connection: frames in, responses out, in order.

Rules that the methods below keep:

1. Responses leave in the order of the requests. Each request has a slot in ``slots``; the head of the queue is
   flushed as far as it is complete.
2. A Produce is decoded and handed to the log where its bytes are, in the call that received them. It may follow
   unanswered Produces, never an unfinished request of another kind.
3. A request of another kind starts when all earlier ones are answered, as in Kafka, and runs alone.
4. What can't go on is not read: unparsed bytes are kept in ``_stash`` and reading pauses until ``_resume``.
5. What it holds of requests that aren't handled, and of responses that haven't left, is on the account of its
   ``Member`` of ``server.incoming`` and ``server.outgoing``; ``_count`` tells the first of them.
6. The scratch buffer is its own only within one ``get_buffer`` / ``buffer_updated`` pair; nothing refers to it later.
"""

from __future__ import annotations

__all__ = ("Connection",)

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import anyio

from penstock.api.context import Client, Endpoint, RequestContext
from penstock.api.declaration import Api, Frame
from penstock.api.errors import error_code_of, is_expected
from penstock.api.gate import UnidentifiedError
from penstock.api.produce import ProduceCall
from penstock.api.produce_scan import has_too_many_partitions
from penstock.errors import InvalidRequestError, NotNowError, PenstockError
from penstock.server import short_produce
from penstock.server.admission import admit, admit_produce
from penstock.server.large_frame import LargeFrame, length_fault
from penstock.server.long_request import COUNTED_BYTES, HeldFrame, admit_and_decode, admit_nowait, encode
from penstock.server.outbox import Outbox
from penstock.server.responses import count_response, encode_in_turn
from penstock.server.settings import CARRIED_BYTES_SOFT, LARGE_FRAME_BYTES, PEEK_BYTES, SHORT_BYTES
from penstock.server.slots import ProduceHeader, ProduceSlot, Slot
from penstock.server.turns import SLICE_REQUESTS
from penstock.server.waiting import WaitingProduce
from penstock.shares import PACE_MIN, Member, address_of
from penstock.spi.allocator import Allocation, Charge
from penstock.time_shares import TimeMember
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.registry import Message, decode_request, decode_request_header, encode_response

if TYPE_CHECKING:
    from penstock.server.server import Server

_PREFIX_BYTES: Final = 4
#: API key, version, correlation id, length of the client id: no request is shorter.
_HEADER_BYTES_MIN: Final = 10
_PRODUCE: Final = int(ApiKey.PRODUCE)

_unpack_prefix = struct.Struct(">i").unpack_from
_unpack_prefix_and_key = struct.Struct(">ih").unpack_from
_unpack_start = struct.Struct(">hhi").unpack_from


class Connection(asyncio.BufferedProtocol):
    """One connection of ``Server``. All methods run on the event loop."""

    __slots__ = (
        "_advertised",
        "_blocked",
        "_closing",
        "_expect_large",
        "_finishing",
        "flush_scheduled",
        "_greedy",
        "_handling",
        "in_flight_bytes",
        "_incoming",
        "_large",
        "_large_ready",
        "_lost",
        "_memory_wait",
        "outbox",
        "_pending",
        "_produce_header",
        "_rest",
        "_running",
        "_scopes",
        "server",
        "slots",
        "_stash",
        "_transport",
        "_turn_due",
        "_waiting",
        "address",
        "client",
        "closing_since",
        "frame_since",
        "has_asked",
        "head_end",
        "last_active",
        "opened",
        "time",
    )

    def __init__(self, server: Server, advertised: Endpoint) -> None:
        self.server = server
        self._advertised = advertised
        #: Who is at the other end, and its share of what requests may hold, from ``connection_made`` on.
        self.client: Client
        self._incoming: Member
        self._handling: Member
        self.time: TimeMember
        self.outbox: Outbox
        self._transport: asyncio.Transport | None = None
        self.slots: deque[Slot] = deque()
        self.in_flight_bytes = 0
        self.head_end = 0  # of the last usual Produce
        #: The request that runs alone, if any.
        self._running: Slot | None = None
        #: What waits on behalf of this client, and ends with it.
        self._scopes: set[anyio.CancelScope] = set()
        #: A Produce that found no room, or is being recompressed.
        self._waiting: WaitingProduce | None = None
        #: Start of an unfinished small frame.
        self._pending = b""
        #: Whole frames, and perhaps the start of one, that can't be handled yet. Reading is paused.
        self._stash: bytearray | None = None
        #: The large frame that is being received.
        self._large: LargeFrame | None = None
        self._large_ready = False
        self._expect_large = False
        self._blocked = False
        self.flush_scheduled = False
        self._memory_wait = False
        #: It asked for more than fits into one turn of the loop, and waits for its next one.
        self._turn_due = False
        self._greedy = False
        #: Until it's over, what comes from a client that is over its quota isn't handled.
        self._rest: asyncio.TimerHandle | None = None
        #: No further request is taken.
        self._closing = False
        #: Close when all is answered.
        self._finishing = False
        self._lost = False
        self._produce_header = ProduceHeader()
        self.last_active = self.opened = server.time()
        #: It has sent a whole request.
        self.has_asked = False
        #: When the unfinished frame began, None between frames. A new connection owes its first one.
        self.frame_since: float | None = self.last_active
        self.closing_since: float | None = None

    # -- the transport's calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]
        assert self._transport is not None
        server = self.server
        peer = transport.get_extra_info("peername")
        host, port = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) and len(peer) >= 2 else ("", 0)
        address = self.address = address_of(host)
        outgoing = server.outgoing.join(address, self)
        self.outbox = Outbox(self._transport, server.outgoing, outgoing, gathers=server.gathers)
        self.client = Client(host=host, port=port, advertised=self._advertised, outgoing=outgoing)
        self._incoming = server.incoming.join(address, self)
        self._handling = server.handling.join(address, self)
        self.time = server.loop_time.join(address)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not server.connection_opened(self):
            self._closing = True
            transport.abort()  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._closing = True
        for scope in tuple(self._scopes):
            scope.cancel()
        if self._rest is not None:
            self._rest.cancel()
        if self._waiting is not None:
            self._waiting.drop()
            self._waiting = None
        self._release_large()
        self._pending = b""
        self._stash_dropped()
        for slot in self.slots:
            if slot is not self._running:  # a running handler's charges are released when it ends
                slot.release_charges()
        self.slots.clear()
        self.outbox.release()
        self.server.incoming.leave(self._incoming)
        self.server.handling.leave(self._handling)
        self.server.loop_time.leave(self.time)
        self.server.outgoing.leave(self.client.outgoing)
        self.server.connection_closed(self)

    def eof_received(self) -> bool:
        # A closed socket and a half-closed one look the same. Nobody waits for a parked request or for room, but
        # answers of the log are at hand soon and are written in case somebody reads them.
        if self._running is not None or self._waiting is not None:
            return False
        self._finishing = True
        return not self._quiet()

    def pause_writing(self) -> None:
        self._incoming.busy = False
        self.outbox.filled(self.server.time())

    def resume_writing(self) -> None:
        self._incoming.busy = self._blocked
        self.outbox.emptied()
        if not self._lost:
            self._resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        large = self._large
        if large is not None:
            return large.room
        scratch = self.server.scratch
        pending = self._pending
        if pending:
            size = len(pending)
            scratch[:size] = pending
            return scratch[size:]
        if self._expect_large:
            return scratch[:PEEK_BYTES]
        if self.server.carried_bytes > CARRIED_BYTES_SOFT or self.server.incoming.is_short:
            return scratch[:SHORT_BYTES]
        return scratch

    def buffer_updated(self, nbytes: int) -> None:
        server = self.server
        server.received_bytes += nbytes
        now = self.last_active = server.time()
        large = self._large
        if large is not None:
            large.pos += nbytes
            self._incoming.moved(nbytes, now)
            if large.is_whole:
                self._large_received()
            elif large.pos == large.granted:
                self._grant(large)
            return
        if self._closing:
            return
        end = nbytes
        if self._pending:
            self._incoming.moved(nbytes, now)
            end += len(self._pending)
            self._pending = b""
        if server.turns.hold_back(self, now, is_greedy=self._greedy):
            self._greedy = False
            self._wait_for_turn(server.scratch, 0, end)
            return
        begin = server.processor_time()
        self._parse(server.scratch, end, now)
        if self._pending or self._incoming.held:
            self._count()
        later = server.time()
        server.loop_time.used(self.time, server.processor_time() - begin, later - now, later)

    # -- frames ---------------------------------------------------------------------------------------

    def _parse(self, view: memoryview, end: int, now: float) -> None:
        """Handle the frames in ``view[:end]``; keep what is left of them."""
        pos = 0
        size_max = self.server.settings.request_bytes_max
        turn_requests = SLICE_REQUESTS
        turn_end, clock = now + self.server.turns.slice_s, self.server.time
        while end - pos >= _PREFIX_BYTES:
            (size,) = _unpack_prefix(view, pos)
            if not _HEADER_BYTES_MIN <= size <= size_max:
                self._fault(f"frame length is out of range: length={size} length_max={size_max}")
                return
            stop = pos + _PREFIX_BYTES + size
            if stop > end:
                if size >= LARGE_FRAME_BYTES and end - pos >= _PREFIX_BYTES + _HEADER_BYTES_MIN:
                    self._begin_large(view, pos, end, size)
                    return
                break
            if turn_requests <= 0 or (turn_requests < SLICE_REQUESTS and clock() > turn_end):
                self._wait_for_turn(view, pos, end)
                return
            turn_requests -= 1
            self._expect_large = False
            if not self._take(view[pos + _PREFIX_BYTES : stop], None):
                if not self._closing:
                    self._block(view, pos, end)
                return
            pos = stop
        if pos == end:
            self.frame_since = None
            return
        if self.frame_since is None or pos:
            self.frame_since = self.last_active
        self._pending = bytes(view[pos:end])

    def _take(self, frame: memoryview, allocation: Allocation | None) -> bool:
        """Handle one frame; False when it has to wait (nothing has changed) or the connection is closing.

        A frame that is taken takes its ``allocation`` with it.
        """
        held = self._waiting is not None or self._running is not None or self._rest is not None
        if held or self._closing or self.outbox.is_full:
            return False
        if not self.has_asked:
            self.has_asked = True
            self.server.connection_asked(self)
        api_key, version, correlation_id = _unpack_start(frame, 0)
        try:
            if api_key == _PRODUCE:
                settings = self.server.settings
                if (
                    len(self.slots) >= settings.pipeline_requests_max
                    or self.in_flight_bytes >= settings.pipeline_bytes_max
                ):
                    return False
                if allocation is not None or not short_produce.start(self, frame, version, correlation_id):
                    self._start_produce(frame, version, correlation_id, allocation)
                return True
            if self.slots:
                self._write_completed()
                if self.slots or self._closing or self.outbox.is_full or self._rest is not None:
                    return False
            is_kept = self._start(frame, api_key, version, allocation)
        except PenstockError as error:
            self._fault(f"request is malformed: api_key={api_key} version={version}: {error}")
            return False
        if allocation is not None and not is_kept:
            allocation.release()
        return True

    def _start_produce(
        self, frame: memoryview, version: int, correlation_id: int, allocation: Allocation | None
    ) -> None:
        body_pos = self._produce_header.body_pos(frame, version, self.client)
        if allocation is not None:
            maximum = self.server.settings.produce_partitions_max
            if has_too_many_partitions(frame, body_pos, version, maximum):
                raise InvalidRequestError(f"too many partitions in one request: partitions_max={maximum}")
        request = decode_request(_PRODUCE, version, frame, body_pos, lenient=True)
        assert isinstance(request, ProduceRequest)
        server = self.server
        if allocation is None:
            server.produce_heads.learn(frame, self.client.client_id, version, request)
        server.requests_by_api[_PRODUCE] += 1
        slot = ProduceSlot(version, correlation_id, len(frame), connection=self)
        self.slots.append(slot)
        self.in_flight_bytes += len(frame)
        call = ProduceCall(request, version, server.api, self.client, allocation, slot)
        slot.call = call
        if not server.gate.is_open and not admit_produce(server, self, slot, call, request):
            return
        try:
            call.advance()
        except NotNowError as not_now:
            own_frame = frame if allocation is None else None
            waiting = self._waiting = WaitingProduce(server, call, own_frame, is_work=not_now.is_work)
            server.start_soon(self._wait_for_room, waiting)

    def _start(self, frame: memoryview, api_key: int, version: int, allocation: Allocation | None) -> bool:
        """Begin a request of another kind; whether it keeps ``frame`` and ``allocation``. Handlers get a copy."""
        header = decode_request_header(frame)
        self.client.client_id = header.client_id
        server = self.server
        api = server.apis.get(api_key)
        slot = Slot(version, header.correlation_id, len(frame))
        if api is None or not api.low <= version <= api.high:
            if api is not None and api.unsupported is not None:
                slot.version = 0
                self.slots.append(slot)
                self.in_flight_bytes += slot.request_bytes
                self._answer(slot, api_key, api.unsupported(server.api))
                return False
            self._fault(f"api or version is not supported: api_key={api_key} version={version}")
            return False
        context = RequestContext(api=server.api, client=self.client, version=version)
        slot.charges = context.charges
        if len(frame) >= COUNTED_BYTES and not admit_nowait(server, self._handling, context, len(frame)):
            message = None  # _run_long decodes it
        else:
            message = decode_request(api_key, version, bytes(frame), header.body_pos, lenient=True)
        server.requests_by_api[api_key] += 1
        self.slots.append(slot)
        self.in_flight_bytes += slot.request_bytes
        if message is None:
            self._running = slot
            held = HeldFrame(frame, allocation, header.body_pos)
            server.start_metered(self.time, self._run_long, slot, api, held, context)
            return allocation is not None
        try:
            admit(server, self, api, message, slot)
            response = None if api.nowait is None else api.nowait(message, context)
        except Exception as error:  # noqa: BLE001 - logged and answered in _fail
            self._fail(slot, api, message, error)
            return False
        if response is not None:
            self._answer(slot, api_key, response)
            return False
        self._running = slot
        server.start_metered(self.time, self._run, slot, api, message, context)
        return False

    async def _run_long(self, slot: Slot, api: Api, frame: HeldFrame, context: RequestContext) -> None:
        message: Message | None = None
        with frame, anyio.CancelScope() as scope:
            self._scopes.add(scope)
            if not self._lost:
                try:
                    message = await admit_and_decode(self.server, self._handling, context, api.key, frame)
                except PenstockError as error:
                    self._fault(f"request is malformed: api_key={api.key} version={slot.version}: {error}")
        self._scopes.discard(scope)
        if message is None or self._lost:
            self._running = None
            slot.release_charges()
            return
        try:
            admit(self.server, self, api, message, slot)
            response = None if api.nowait is None else api.nowait(message, context)
        except Exception as error:  # noqa: BLE001 - logged and answered in _fail
            self._running = None
            self._fail(slot, api, message, error)
            return
        if response is not None:
            await self._answer_in_turn(slot, api.key, response, is_long=True)
            return
        await self._run(slot, api, message, context, is_long=True)

    async def _answer_in_turn(self, slot: Slot, api_key: int, response: Message, *, is_long: bool) -> None:
        buffers: list[Any] | None = None
        if not self._lost:
            make = encode if is_long else encode_in_turn
            buffers = await make(self.server, self.client, slot, api_key, response)
        self._running = None
        self._answer(slot, api_key, response, buffers)

    async def _run(
        self, slot: Slot, api: Api, message: Message, context: RequestContext, *, is_long: bool = False
    ) -> None:
        """Run one handler to its end, which may be that the client went away or that the server stops."""
        assert api.handler is not None
        if api.frame is Frame.GROUP:
            context.release_charges()  # groups account for what they keep, and may keep it long
        scope = anyio.CancelScope()
        try:
            with scope:
                if api.cancellable:
                    self._scopes.add(scope)
                    if self._lost:
                        scope.cancel()
                try:
                    response = await api.handler(message, context)
                except Exception as error:  # noqa: BLE001 - logged and answered in _fail
                    self._running = None
                    self._fail(slot, api, message, error)
                    return
                self._scopes.add(scope)  # who is gone doesn't wait to be answered
                await self._answer_in_turn(slot, api.key, response, is_long=is_long)
        finally:
            self._scopes.discard(scope)
            if self._running is slot:  # cancelled: there is nobody left to answer
                self._running = None
                slot.release_charges()

    def _answer(self, slot: Slot, api_key: int, response: Message, buffers: list[Any] | None = None) -> None:
        if self._lost:
            slot.release_charges()
            return
        try:
            slot.buffers = buffers or encode_response(api_key, slot.version, slot.correlation_id, response)
        except PenstockError as error:
            self.answer_failed(slot, error)
        count_response(self.server, self.client, slot)
        self.slot_completed(slot)

    def answer_failed(self, slot: Slot, error: PenstockError) -> None:
        """A response can't be encoded, which is a bug: the client gets nothing but the end of the connection."""
        self.server.handler_failed(-1, error, expected=False)
        slot.buffers = []
        slot.close = True

    def _fail(self, slot: Slot, api: Api, message: Message, error: Exception) -> None:
        """A handler raised: say so in the log if it is a bug, and to the client where the API has a place for it."""
        self.server.handler_failed(api.key, error, expected=is_expected(error), client=self.client)
        slot.release_charges()
        response = None
        if not isinstance(error, UnidentifiedError):
            response = api.failure_response(message, slot.version, error_code_of(error))
        if response is None:
            slot.buffers = []
            slot.close = True
            self.slot_completed(slot)
        else:
            self._answer(slot, api.key, response)

    # -- large frames ---------------------------------------------------------------------------------

    def _begin_large(self, view: memoryview, pos: int, end: int, size: int) -> None:
        """Receive the rest of a large frame straight into memory of its own."""
        _, api_key = _unpack_prefix_and_key(view, pos)
        fault = length_fault(api_key, size, self.server.apis, self.server.settings, self.client)
        if fault is not None:
            self._fault(fault)
            return
        if self.frame_since is None or pos:
            self.frame_since = self.last_active
        self._expect_large = True
        large = LargeFrame(size, view[pos + _PREFIX_BYTES : end], at_once=size <= self._incoming.credit)
        self._large = large
        self._large_ready = False
        self._grant(large)

    def _grant(self, large: LargeFrame) -> None:
        if large.try_grant(self.server.allocator, self.server.incoming, self._incoming):
            return
        large.start = bytes(large.start)
        self._memory_wait = True
        self._pause()
        self.server.start_soon(self._wait_for_memory, large)

    async def _wait_for_memory(self, large: LargeFrame) -> None:
        server = self.server
        server.waiting_for_memory += 1
        carried = len(large.start)
        server.carried_bytes += carried
        granted = False
        scope = anyio.move_on_after(server.settings.memory_wait_ms_max / 1000)
        try:
            with scope:
                self._scopes.add(scope)
                if not self._lost:
                    await large.wait_for_grant(server.allocator, server.incoming, self._incoming)
                    granted = True
        finally:
            server.waiting_for_memory -= 1
            server.carried_bytes -= carried
            self._scopes.discard(scope)
            self._memory_wait = False
            if self._closing:
                self._release_large()
        if self._closing:
            return
        if not granted:
            self._fault(f"no memory for a large request in time: length={large.size}")
        else:
            self.last_active = self.frame_since = server.time()
            self._resume()

    def _large_received(self) -> None:
        large = self._large
        assert large is not None
        self._large = None
        self._large_ready = False
        if self._take(large.memory.view, large.memory):
            self.frame_since = None
            self.server.incoming.shares.earn(self._incoming, large.size)
            self._count()
        elif self._closing:
            large.release()
            self._count()
        else:
            self._large = large
            self._large_ready = True
            self._pause()

    def _release_large(self) -> None:
        large = self._large
        if large is not None and not self._memory_wait:  # else who waits for it releases it
            self._large = None
            self._large_ready = False
            large.release()

    def _count(self) -> None:
        """Tell the account how many bytes are held of requests that aren't handled yet."""
        size = len(self._pending) + len(self._stash or b"")
        if self._waiting is not None:
            size += self._waiting.carried_bytes
        if self._large is not None:
            size += self._large.granted
        incoming, member = self.server.incoming, self._incoming
        if size < member.held:
            incoming.give(member, member.held - size)
        elif size > member.held:
            incoming.take(member, size - member.held)
            if incoming.is_short:
                self.server.relieve_soon()

    # -- waiting --------------------------------------------------------------------------------------

    def _block(self, view: memoryview, pos: int, end: int) -> None:
        self._stash = bytearray(view[pos:end])
        self.server.carried_bytes += end - pos
        self.frame_since = None
        self._pause()
        self._count()

    def _wait_for_turn(self, view: memoryview, pos: int, end: int) -> None:
        """Others first: go on in the next turn of this connection."""
        self._turn_due = True
        self._block(view, pos, end)
        self.server.turns.add(self)

    def turn(self) -> None:
        """Go on with what was kept back for this turn."""
        self._turn_due = False
        if self._lost or self._closing:
            return
        try:
            self._resume()
        except Exception as error:  # noqa: BLE001 - logged as a bug; the others still get their turns
            self.server.handler_failed(-1, error, expected=False)
            self.abort()
        # what it receives next waits too, if this wasn't all
        self._greedy = self._turn_due
        if self._finishing and self._quiet():
            self.close()

    @property
    def awaits_log(self) -> bool:
        """Whether it waits for nothing but acknowledgements of the log."""
        return bool(self.slots) and self._running is None

    def rest(self, delay_ms: int) -> None:
        """Handle nothing more of this client for so long."""
        if self._rest is None and not self._lost:
            self._rest = self.server.call_later(delay_ms / 1000, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self._resume()
        if self._finishing and self._quiet():
            self.close()

    def _pause(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._incoming.busy = not self.outbox.is_full
            transport = self._transport
            if transport is not None and not transport.is_closing():
                transport.pause_reading()

    def _resume(self) -> None:
        """Go on with what was kept back, as far as it goes; then read on."""
        if (
            not self._blocked
            or self._memory_wait
            or self._turn_due
            or self._closing
            or self.outbox.is_full
            or self._rest is not None
        ):
            return
        if self._large_ready:
            self._large_received()
            if self._is_stuck():
                return
        stash, self._stash = self._stash, None
        if stash is not None:
            self.server.carried_bytes -= len(stash)
            self._parse(memoryview(stash), len(stash), self.server.time())
            self._count()
            if self._is_stuck():
                return
        self._blocked = False
        self._incoming.busy = False
        self._incoming.rested(self.server.time())
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def _is_stuck(self) -> bool:
        """There is still something that can't go on."""
        return (
            self._large_ready
            or self._stash is not None
            or self._memory_wait
            or self._turn_due
            or self._closing
        )

    async def _wait_for_room(self, waiting: WaitingProduce) -> None:
        """Produce back-pressure. Later frames of the connection wait behind this one, so appends stay in order."""
        await waiting.run(self._scopes)
        if self._waiting is waiting:
            self._waiting = None
            self._count()
            self._resume()

    # -- responses ------------------------------------------------------------------------------------

    def slot_completed(self, slot: Slot) -> None:
        """A slot has its answer: flush soon, together with others that complete in the same turn of the loop."""
        if self._lost:
            slot.release_charges()
        elif not self.flush_scheduled and self.slots and self.slots[0].buffers is not None:
            self.flush_scheduled = True
            self.server.flush_soon(self)

    def flush(self) -> None:
        """Send what is complete, then go on with what waited for that."""
        self.flush_scheduled = False
        self._write_completed()
        if self._finishing and self._quiet():
            self.close()
        elif self._blocked:
            self._resume()

    def _write_completed(self) -> None:
        slots = self.slots
        buffers: list[Any] = []
        charges: list[Charge] = []
        close = False
        while slots and slots[0].buffers is not None:
            slot = slots.popleft()
            self.in_flight_bytes -= slot.request_bytes
            buffers += slot.buffers or ()
            if slot.charges:
                charges += slot.charges
            if slot.close:
                close = True
                break
        if buffers or charges:
            self.server.sent_bytes += self.outbox.write(buffers, charges)
            if self.outbox.is_full and self.server.outgoing.is_short:
                self.server.relieve_soon()
        if close:
            self.close()

    # -- the end --------------------------------------------------------------------------------------

    def _quiet(self) -> bool:
        """Nothing is in flight and nothing that could be done is kept back."""
        is_idle = self._stash is None and self._waiting is None and not self._large_ready
        return not self.slots and (self._closing or is_idle)

    @property
    def waits_for_us(self) -> bool:
        """A request is being handled or waits for memory: a quiet client is no idle client."""
        return bool(self.slots) or self._memory_wait or self._rest is not None

    def frame_is_late(self, now: float, grace_s: float) -> bool:
        """An unfinished frame has stopped: nothing came for ``grace_s``, and a little more for each byte so far."""
        if self.frame_since is None:
            return False
        received = self._large.pos if self._large is not None else len(self._pending)
        return now - self.last_active > grace_s + received / PACE_MIN

    @property
    def pending_bytes(self) -> int:
        """Size of an unfinished small frame."""
        return len(self._pending)

    def probe(self, now: float) -> None:
        """Look how much of a response the client has taken since the last time."""
        taken = self.outbox.probe(now)
        if taken > 0:
            self._incoming.moved(taken, now)

    def lose_place(self) -> None:
        """Close now, and give back at once what others need."""
        self.abort()
        self._release_large()
        self._pending = b""
        self._stash_dropped()
        self._count()
        self.outbox.release()

    def drain(self) -> None:
        """Take no more requests; answer those in flight, then close."""
        self._closing = self._finishing = True
        if not self.slots:
            self.close()

    def close(self) -> None:
        """Close when the bytes written so far have left."""
        self._closing = True
        if self.closing_since is None:
            self.closing_since = self.server.time()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _fault(self, reason: str) -> None:
        self.server.connection_faulted(self, reason)
        self._stash_dropped()
        self.close()

    def _stash_dropped(self) -> None:
        stash, self._stash = self._stash, None
        if stash is not None:
            self.server.carried_bytes -= len(stash)
