"""Which requests of a connection may go on: a pure state machine, without clock, I/O or tasks.

Frames are taken in the order in which they came, and answered in that order. A Produce may follow unanswered
Produces. A request of another kind begins when all before it are answered, as in Kafka, and nothing is taken until
it is answered.

Rule 1: these are all the ways of not going on. A frame is taken while none of them is; then reading pauses.

    wait      begins                                                     ends
    SLOT      a frame comes while as many requests, or bytes of          some of the answers have left
              requests, are unanswered as may be
    ORDER     a request of another kind comes behind unanswered ones     all answers have left
    ALONE     a request of another kind has begun and has to wait        it is answered, or given up
    NOT_NOW   a Produce was told to wait (``NotNowError``)               all of it is handed over, or given up
    MEMORY    a large frame has no memory for what comes next            it has some
    TURN      others go first on the event loop                          its turn comes
    QUOTA     its client is over its quota (KIP-219)                     the time that was set is over
    PEER      the client doesn't take its answers                        it has taken all of them
    END       nothing more is taken: ``Phase.DRAINING`` and later        never

Rule 2: these are all the phases. None comes back.

    OPEN      -> FINISHING  the client has finished sending: what came is handled, what is answered may be read
    OPEN      -> DRAINING   the server stops: what was taken is answered
    FINISHING -> DRAINING   the same
    any       -> CLOSING    all is answered while FINISHING or DRAINING; a malformed frame; too late; an answer that
                            ends the connection: what was written leaves, nothing else does
    any       -> LOST       the transport is gone: nothing is left of it here

Rule 3: a request's slot is in the queue from when it is taken until its answer is written. Answers are written from
the head of the queue, as far as they are there.
"""

from __future__ import annotations

__all__ = ("Phase", "Pipeline", "Wait")

from collections import deque
from enum import IntEnum
from typing import Final

from penstock.server.slots import Slot
from penstock.spi.allocator import Charge
from penstock.spi.buffers import Buffer


class Wait(IntEnum):
    """The ways of not going on, as bits; Rule 1 says what begins and ends each."""

    SLOT = 1
    ORDER = 2
    ALONE = 4
    NOT_NOW = 8
    MEMORY = 16
    TURN = 32
    QUOTA = 64
    PEER = 128
    END = 256


class Phase(IntEnum):
    """How far a connection has come; Rule 2."""

    OPEN = 0
    FINISHING = 1
    DRAINING = 2
    CLOSING = 3
    LOST = 4


class Pipeline:
    """The requests of one connection: at most ``requests_max``, and no further one to those of ``bytes_max``."""

    __slots__ = ("_bytes_max", "_requests_max", "bytes", "phase", "slots", "waits")

    def __init__(self, *, requests_max: int, bytes_max: int) -> None:
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self.phase = Phase.OPEN
        #: The bits of ``Wait`` that are on. 0: the next frame is taken.
        self.waits = 0
        #: Requests that were taken and whose answers weren't written, the oldest first.
        self.slots: deque[Slot] = deque()
        #: The bytes of those requests.
        self.bytes = 0

    def begin(self, wait: Wait) -> None:
        """Wait for ``wait`` from now on."""
        self.waits |= wait

    def end(self, wait: Wait) -> None:
        """Wait for ``wait`` no longer; harmless if it wasn't waited for."""
        self.waits &= ~wait

    def is_waiting(self, waits: int) -> bool:
        """Whether one of these waits is on."""
        return self.waits & waits != 0

    def advance(self, phase: Phase) -> None:
        """Go to a later phase; to an earlier one, or the same, changes nothing."""
        if phase > self.phase:
            self.phase = phase
            if phase >= Phase.DRAINING:
                self.waits |= Wait.END

    # -- requests ---------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether another request may be taken; else SLOT begins."""
        if len(self.slots) < self._requests_max and self.bytes < self._bytes_max:
            return True
        self.waits |= Wait.SLOT
        return False

    def room(self, count: int) -> int:
        """How many of ``count`` small frames, which are there already, may be taken in one go."""
        return min(count, self._requests_max - len(self.slots)) if self.bytes < self._bytes_max else 0

    def is_first(self) -> bool:
        """Whether a request of another kind may be taken; else ORDER begins."""
        if not self.slots:
            return True
        self.waits |= Wait.ORDER
        return False

    def take(self, slot: Slot) -> None:
        """A request is taken: it is the last in the queue."""
        self.slots.append(slot)
        self.bytes += slot.request_bytes

    def leave(self, buffers: list[Buffer], charges: list[Charge]) -> bool:
        """Take out of the queue whose answers are to be written now; these go to ``buffers``, and their ``charges``.

        True: the last of them ends the connection.
        """
        slots = self.slots
        count = size = 0
        ends = False
        for slot in slots:
            answer = slot.buffers
            if answer is None:
                break
            count += 1
            size += slot.request_bytes
            buffers += answer
            if slot.charges:
                charges += slot.charges
            if slot.close:
                ends = True
                break
        self.bytes -= size
        if count == len(slots):
            slots.clear()
            self.waits &= _NOT_SLOT_NOR_ORDER
        elif count:
            for _ in range(count):
                slots.popleft()
            self.waits &= _NOT_SLOT
        return ends

    def leave_alone(self) -> list[Buffer]:
        """Take the only request, which is answered, out of the queue; its answer."""
        slot = self.slots.pop()
        assert slot.buffers is not None, "what leaves is answered"
        self.bytes -= slot.request_bytes
        return slot.buffers

    def is_over(self, *, is_stuck: bool) -> bool:
        """Whether it is time for CLOSING: all is answered, and nothing is left to take (``is_stuck``: there is)."""
        if self.phase is Phase.OPEN or self.slots:
            return False
        return self.phase is Phase.DRAINING or (self.phase is Phase.FINISHING and not is_stuck)

    def lose(self) -> list[Slot]:
        """The transport is gone; the slots that nobody answers any more, out of the queue."""
        self.advance(Phase.LOST)
        lost = list(self.slots)
        self.slots.clear()
        self.bytes = 0
        return lost


_NOT_SLOT: Final = ~int(Wait.SLOT)
_NOT_SLOT_NOR_ORDER: Final = ~int(Wait.SLOT | Wait.ORDER)
