"""The table of waits and phases: any order of events, no wait forgotten, answers in order, nothing left over."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.depth import examples

from penstock.server import pipeline
from penstock.server.pipeline import Phase, Pipeline, Wait
from penstock.server.slots import Slot

REQUESTS_MAX = 4
BYTES_MAX = 100
#: Waits that others begin and end; the pipeline knows of SLOT, ORDER and END itself.
OUTSIDE = [Wait.ALONE, Wait.NOT_NOW, Wait.MEMORY, Wait.TURN, Wait.QUOTA, Wait.PEER]


class Charge:
    """Released once."""

    def __init__(self) -> None:
        self.size = 1
        self.is_released = False

    def release(self) -> None:
        assert not self.is_released, "once"
        self.is_released = True


class AnyOrder(RuleBasedStateMachine):
    """A client that sends requests, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = Pipeline(requests_max=REQUESTS_MAX, bytes_max=BYTES_MAX)
        self.begun: set[Wait] = set()
        #: The next frame is of another kind than Produce.
        self.refused_for: Wait | None = None
        self.queue: list[Slot] = []
        self.sent = 0
        self.written: list[int] = []

    @property
    def is_open(self) -> bool:
        return self.pipeline.phase < Phase.DRAINING

    @rule(wait=st.sampled_from(OUTSIDE))
    def begin(self, wait: Wait) -> None:
        self.begun.add(wait)
        self.pipeline.begin(wait)

    @rule(wait=st.sampled_from(OUTSIDE))
    def end(self, wait: Wait) -> None:
        self.begun.discard(wait)
        self.pipeline.end(wait)

    def take(self, size: int) -> None:
        slot = Slot(1, self.sent, size, charges=[Charge()])
        self.sent += 1
        self.queue.append(slot)
        self.pipeline.take(slot)

    @precondition(lambda self: self.pipeline.waits == 0)
    @rule(size=st.integers(1, BYTES_MAX))
    def produce(self, size: int) -> None:
        has_room = len(self.queue) < REQUESTS_MAX and sum(s.request_bytes for s in self.queue) < BYTES_MAX
        assert self.pipeline.has_room() == has_room
        assert (self.pipeline.room(99) > 0) == has_room
        if has_room:
            self.take(size)
        else:
            assert self.pipeline.waits == Wait.SLOT
            self.refused_for = Wait.SLOT

    @precondition(lambda self: self.pipeline.waits == 0)
    @rule(size=st.integers(1, BYTES_MAX))
    def another_kind(self, size: int) -> None:
        assert self.pipeline.is_first() == (not self.queue)
        if self.queue:
            assert self.pipeline.waits == Wait.ORDER
            self.refused_for = Wait.ORDER
        else:
            self.take(size)

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), close=st.sampled_from([False] * 9 + [True]), silent=st.booleans())
    def answer(self, data: st.DataObject, close: bool, silent: bool) -> None:
        slot = data.draw(st.sampled_from(self.queue))
        slot.buffers = [] if silent else [b"%d" % slot.correlation_id]
        slot.close = slot.close or close

    @rule()
    def write(self) -> None:
        buffers: list[Any] = []
        charges: list[Any] = []
        ends = self.pipeline.leave(buffers, charges)
        left: list[Slot] = []
        while self.queue and self.queue[0].buffers is not None:
            left.append(self.queue.pop(0))
            if left[-1].close:
                break
        assert buffers == [one for slot in left for one in slot.buffers or ()]
        assert ends == bool(left and left[-1].close)
        assert len(charges) == len(left)
        for charge in charges:
            charge.release()
        self.written += [slot.correlation_id for slot in left]
        if (self.refused_for is Wait.SLOT and left) or not self.queue:
            self.refused_for = None

    @rule(phase=st.sampled_from([Phase.OPEN, Phase.FINISHING, Phase.DRAINING, Phase.CLOSING]))
    def advance(self, phase: Phase) -> None:
        before = self.pipeline.phase
        self.pipeline.advance(phase)
        assert self.pipeline.phase is max(before, phase)

    @precondition(lambda self: self.sent > 3)
    @rule()
    def lose(self) -> None:
        lost = self.pipeline.lose()
        assert lost == self.queue, "whoever wasn't answered is told, so that what they hold goes back"
        self.queue = []
        self.refused_for = None
        assert self.pipeline.phase is Phase.LOST
        assert not self.pipeline.slots

    @invariant()
    def no_wait_is_forgotten_and_none_is_left_over(self) -> None:
        expected = set(self.begun)
        if self.refused_for is not None:
            expected.add(self.refused_for)
        if not self.is_open:
            expected.add(Wait.END)
        waits = {wait for wait in Wait if self.pipeline.is_waiting(wait)}
        if self.pipeline.phase is Phase.LOST:  # nobody goes on
            assert Wait.END in waits
        else:
            assert waits == expected
        assert (self.pipeline.waits == 0) == (not waits)

    @invariant()
    def requests_are_in_order_and_bounded(self) -> None:
        assert list(self.pipeline.slots) == self.queue
        assert self.pipeline.bytes == sum(slot.request_bytes for slot in self.queue)
        assert len(self.queue) <= REQUESTS_MAX
        assert self.pipeline.bytes < 2 * BYTES_MAX
        assert self.written == sorted(self.written)

    @invariant()
    def it_is_over_when_nothing_can_come_any_more(self) -> None:
        phase, empty = self.pipeline.phase, not self.queue
        for is_stuck in (False, True):
            over = self.pipeline.is_over(is_stuck=is_stuck)
            assert over == (
                empty and (phase is Phase.DRAINING or (phase is Phase.FINISHING and not is_stuck))
            )


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=examples(150), stateful_step_count=60, deadline=None)


def test_the_bits_of_waits_are_apart() -> None:
    assert sum(Wait) == 2 ** len(Wait) - 1


def test_every_wait_and_phase_is_in_the_table() -> None:
    text = pipeline.__doc__ or ""
    for name in [*Wait.__members__, *Phase.__members__]:
        assert f"    {name} " in text or f"-> {name} " in text


def test_small_frames_that_are_there_share_the_room_that_is_left() -> None:
    made = Pipeline(requests_max=10, bytes_max=BYTES_MAX)
    assert made.room(64) == 10
    for number in range(7):
        made.take(Slot(1, number, 1))
    assert made.room(64) == 3
    assert made.room(2) == 2
    made.take(Slot(1, 8, BYTES_MAX))
    assert made.room(64) == 0
    assert made.waits == 0, "nothing was refused"
