"""The client's end of a connection: who it is, what it's on account of, its pipeline, and its way out.

Whatever handles requests works on a channel: it takes a slot in the pipeline, and tells the channel when the slot has
its answer. The connection reads for it, and is called when something that was waited for is over (``go_on``).
"""

from __future__ import annotations

__all__ = ("Channel",)

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from penstock.api.client import NAME_CHARS_MAX, Client, Endpoint
from penstock.errors import InvariantError
from penstock.server.core import ServerCore
from penstock.server.large_frame import HeldFrame
from penstock.server.outbox import Outbox
from penstock.server.pipeline import Phase, Pipeline, Wait
from penstock.server.registry import Connections, Peer
from penstock.server.scopes import Scopes
from penstock.server.slots import Slot
from penstock.server.waiting import Waiting
from penstock.shares import Member, address_of
from penstock.spi.allocator import Charge
from penstock.spi.buffers import Buffer
from penstock.time_shares import TimeMember


class Channel:
    """One client of ``core``, from when its connection is made. ``go_on`` is called when a wait is over."""

    __slots__ = (
        "_connections",
        "_go_on",
        "_resting",
        "_transport",
        "client",
        "closing_since",
        "core",
        "flush_scheduled",
        "handling",
        "held",
        "incoming",
        "outbox",
        "pipeline",
        "running",
        "scopes",
        "time",
        "waiting",
    )

    def __init__(
        self,
        core: ServerCore,
        connections: Connections,
        owner: Peer,
        transport: asyncio.Transport,
        advertised: Endpoint,
        go_on: Callable[[], None],
    ) -> None:
        peer = transport.get_extra_info("peername")
        host, port = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) and len(peer) >= 2 else ("", 0)
        address = address_of(host)
        settings = core.settings
        outgoing = core.outgoing.join(address, owner)
        self.core = core
        self._connections = connections
        self._transport = transport
        self._go_on: Callable[[], None] | None = go_on
        self.client = Client(host=host, port=port, advertised=advertised, outgoing=outgoing)
        #: Its shares of what requests may hold until they are handled, and while they are; and of the loop's time.
        self.incoming: Member = core.incoming.join(address, owner)
        self.handling: Member = core.handling.join(address, owner)
        self.time: TimeMember = core.loop_time.join(address)
        self.outbox = Outbox(transport, core.outgoing, outgoing, core.sender, gathers=core.gathers)
        self.pipeline = Pipeline(
            requests_max=settings.pipeline_requests_max, bytes_max=settings.pipeline_bytes_max
        )
        #: The request that runs alone, if any; and a Produce that was told to wait.
        self.running: Slot | None = None
        self.waiting: Waiting | None = None
        #: The frame of the request that runs alone, until it's decoded.
        self.held: HeldFrame | None = None
        #: What waits on behalf of this client, and ends with it.
        self.scopes = Scopes()
        self.flush_scheduled = False
        self.closing_since: float | None = None
        self._resting: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Where the client is."""
        return self.incoming.address

    def set_client_id(self, client_id: str | None) -> None:
        """The client says who it is; those of its address that say the same are one client to the loop's time."""
        self.client.client_id = client_id if client_id is None else client_id[:NAME_CHARS_MAX]
        self.time.set_name(client_id or "")

    @property
    def is_lost(self) -> bool:
        """Whether there is nobody left to answer."""
        return self.pipeline.phase is Phase.LOST

    def go_on(self) -> None:
        """Something that was waited for is over."""
        if self._go_on is None:
            return
        try:
            self._go_on()
        except Exception as error:  # noqa: BLE001 - logged as a bug; nobody else would go on with this connection
            self.abandon(error)

    # -- waiting ----------------------------------------------------------------------------------------

    def run_alone(self, slot: Slot, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Answer ``slot`` by ``function(*args)``, in a task; nothing is taken until then.

        It ends with an answer, or with the connection: what comes behind a request without one waits for good.
        """
        self.running = slot
        self.pipeline.begin(Wait.ALONE)
        self.core.start_metered(self, self._run_alone, slot, function, args)

    async def _run_alone(
        self, slot: Slot, function: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]
    ) -> None:
        try:
            await function(*args)
        finally:
            self.running = None
            self.pipeline.end(Wait.ALONE)
            if slot.buffers is None:
                slot.release_charges()
        if slot.buffers is None and self.pipeline.phase < Phase.CLOSING:
            raise InvariantError("a request has ended without an answer")

    def rest(self, delay_ms: int) -> None:
        """Take nothing more of this client for so long (KIP-219)."""
        if self._resting is None and not self.is_lost:
            self.pipeline.begin(Wait.QUOTA)
            self._resting = self.core.call_later(delay_ms / 1000, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self.pipeline.end(Wait.QUOTA)
        self.go_on()

    def wait_not_now(self, waiting: Waiting) -> None:
        """A Produce waits. Later frames of the connection wait behind it, so appends stay in order."""
        self.waiting = waiting
        self.pipeline.begin(Wait.NOT_NOW)
        self.core.start_metered(self, self._wait_not_now, waiting)

    async def _wait_not_now(self, waiting: Waiting) -> None:
        await waiting.run(self.scopes, self.go_on)
        if not waiting.is_over:
            raise InvariantError("a produce that waited has ended before all of it was handed over")
        if self.waiting is waiting:
            self.waiting = None
            self.pipeline.end(Wait.NOT_NOW)
            self.go_on()

    def drop_waiting(self) -> None:
        """Give up a Produce that waits: nobody takes its answer."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.drop()

    # -- answers ----------------------------------------------------------------------------------------

    def slot_completed(self, slot: Slot) -> None:
        """A slot has its answer: flush soon, together with others that complete in the same turn of the loop."""
        pipeline = self.pipeline
        if pipeline.phase is Phase.LOST:
            slot.release_charges()
            return
        slots = pipeline.slots
        if not self.flush_scheduled and slots and slots[0].buffers is not None:
            self.flush_scheduled = True
            self.core.flush_soon(self)

    def answered(self, slot: Slot, *, reads_on: bool = False) -> None:
        """A request has its answer. If it is the client's only request, the answer leaves at once.

        Nothing could leave with it, so waiting for the next turn of the loop would only cost time: what others have
        the loop do until then. And nobody would pay for the write there. ``reads_on``: the caller goes on with what
        else the client has sent.
        """
        pipeline = self.pipeline
        is_kept = self.incoming.held and not reads_on
        if len(pipeline.slots) != 1 or pipeline.waits or pipeline.phase or is_kept or slot.close:
            self.slot_completed(slot)
            return
        core = self.core
        try:
            core.sent_bytes += self.outbox.write(pipeline.leave_alone(), slot.charges or ())
            if self.outbox.is_full and core.outgoing.is_short:
                self._connections.relieve_soon()
        except Exception as error:  # noqa: BLE001 - logged as a bug; the log goes on
            core.handler_failed(-1, error, expected=False)
            self.abort()
        core.turns.answered((self,))

    def answer_failed(self, slot: Slot, error: Exception) -> None:
        """A response can't be encoded, which is a bug: the client gets nothing but the end of the connection."""
        self.core.handler_failed(-1, error, expected=False)
        slot.buffers = []
        slot.close = True

    def flush(self) -> None:
        """Write what is complete, then go on with what waited for that."""
        self.flush_scheduled = False
        self.write_completed()
        if self._go_on is not None:
            self._go_on()

    def write_completed(self) -> None:
        """Write the answers that are there, in the order of the requests."""
        buffers: list[Buffer] = []
        charges: list[Charge] = []
        ends = self.pipeline.leave(buffers, charges)
        if buffers or charges:
            core = self.core
            core.sent_bytes += self.outbox.write(buffers, charges)
            if self.outbox.is_full and core.outgoing.is_short:
                self._connections.relieve_soon()
        if ends:
            self.close()

    # -- the end ----------------------------------------------------------------------------------------

    def fault(self, reason: str) -> None:
        """The client sent what none should: close when the bytes written so far have left."""
        self.core.connection_faulted(self.client, reason)
        self.close()
        self.go_on()

    def abandon(self, error: BaseException) -> None:
        """Close now, since something done for this client broke off: a bug, or a cancellation from elsewhere.

        A cancellation is expected where nobody waits any more: the client is gone, or the server ends.
        """
        is_expected = not isinstance(error, Exception) and (
            self.pipeline.phase >= Phase.CLOSING
            # whoever ends the server cancels the scope that its tasks are in
            or anyio.current_effective_deadline() == -math.inf
        )
        if not is_expected:
            self.core.handler_failed(-1, error, expected=False)
        self.abort()

    def close(self) -> None:
        """Close when the bytes written so far have left; nothing more is taken, and nothing written."""
        self.pipeline.advance(Phase.CLOSING)
        if self.closing_since is None:
            self.closing_since = self.core.time()
        self.outbox.close()

    def abort(self) -> None:
        """Close now."""
        self.pipeline.advance(Phase.CLOSING)
        self._transport.abort()

    def lose(self) -> None:
        """The transport is gone: give back everything, and end what waits for this client."""
        core = self.core
        lost = self.pipeline.lose()
        self.scopes.end()
        if self._resting is not None:
            self._resting.cancel()
        self.drop_waiting()
        for slot in lost:
            if slot is not self.running:  # a running handler's charges are released when it ends
                slot.lose()
        self.outbox.lose()
        core.incoming.leave(self.incoming)
        core.handling.leave(self.handling)
        core.loop_time.leave(self.time)
        core.outgoing.leave(self.client.outgoing)
        self._go_on = None  # it leads to the connection, which leads here
