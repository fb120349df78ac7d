"""Turns on the loop: who asks for much gets slices, and everybody else is served in between."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.patience import HANG_S

from penstock.server.core import ServerCore
from penstock.server.singles import LOOK_MAX, LOOK_NAMES_MAX, Singles
from penstock.server.turns import (
    ASKS_AGAIN_S,
    DEFER_S,
    DEFER_S_MAX,
    HELD_MAX,
    HELD_S_MAX,
    LOOKS_MAX,
    SLICE_S,
    SLICE_SHORT_S,
    SPARED_OTHERS_MAX,
    SPARED_S_MAX,
    UNMEASURED_S_MAX,
    Turns,
    metered,
)
from penstock.time_shares import WINDOW_S, TimeMember, TimeShares


class Work:
    """Needs so many slices, each of which takes ``SLICE_S``."""

    def __init__(self, loop: Loop, name: str, slices: int, *, is_greedy: bool = True) -> None:
        self._loop = loop
        self.is_greedy = is_greedy
        self._name = name
        self._slices = slices
        self.time = loop.shares.join(name)
        self.awaits_log = False

    def turn(self) -> None:
        self._loop.now += SLICE_S
        self._loop.history.append(self._name)
        self._slices -= 1
        if self._slices:
            self._loop.turns.add(self)


class Loop:
    """Iterations of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history: list[str] = []
        self._next: list[Callable[[], None]] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        #: For when each timer was set.
        self.timers: list[float] = []
        self.shares = TimeShares()
        self.turns = Turns(
            self._next.append,
            self._call_at,
            lambda: self.now,
            lambda: self.now,
            self.shares,
        )

    def _call_at(self, at: float, call: Callable[[], None]) -> None:
        self.timers.append(at)
        self._later.append((at, call))

    def iterate(self, times: int = 1) -> None:
        for _ in range(times):
            calls, self._next[:] = list(self._next), []
            for call in calls:
                call()

    def call_soon(self, call: Callable[[], None]) -> None:
        self._next.append(call)

    def idle(self) -> None:
        """Go to the next thing that is due."""
        at, call = first = min(self._later, key=lambda item: item[0])
        self._later.remove(first)
        self.now = max(self.now, at)
        call()

    def limit(self, greedy: TimeMember) -> None:
        """Have it use all of the loop's time, beside others that use little."""
        modest = self.shares.join("modest")
        for _ in range(3):
            self.now += WINDOW_S
            self.shares.used(modest, SLICE_S, SLICE_S, self.now)
            self.shares.used(greedy, WINDOW_S, WINDOW_S, self.now)


def test_connections_take_turns_and_all_of_them_together_one_slice_in_each_second_iteration() -> None:
    loop = Loop()
    for name, slices in (("a", 3), ("b", 1), ("c", 2)):
        loop.turns.add(Work(loop, name, slices))
    for count in range(1, 7):
        loop.iterate(2)
        assert len(loop.history) == count
    assert loop.history == ["a", "b", "c", "a", "c", "a"]
    loop.iterate(2)
    assert len(loop.history) == 6
    assert len(loop.turns) == 0


def test_one_alone_gets_one_slice_in_each_second_iteration_too() -> None:
    loop = Loop()
    loop.turns.add(Work(loop, "a", 50))
    loop.iterate(20)
    assert loop.history == ["a"] * 10


def test_what_was_asked_for_during_a_slice_is_done_before_the_next_one() -> None:
    loop = Loop()
    loop.turns.add(Work(loop, "a", 3))
    loop.iterate(2)
    # what the loop received during the slice has to go two steps further
    loop.call_soon(lambda: loop.history.append("received"))
    loop.iterate(2)
    assert loop.history == ["a", "received", "a"]


def test_an_answer_within_a_slice_has_no_slice_begin_before_what_came_in_meanwhile() -> None:
    """What is asked for one after the other is answered in the slice that reads it, while somebody lets others go."""
    loop = Loop()
    limited(loop, 4)
    loop.iterate(4)

    class Asks(Work):
        def turn(self) -> None:
            loop.turns.answered([self])
            super().turn()

    loop.turns.add(Asks(loop, "a", 3))
    loop.iterate(2)
    loop.call_soon(lambda: loop.history.append("received"))
    loop.iterate()
    assert loop.history == ["a", "received"]
    loop.iterate()
    assert loop.history == ["a", "received", "a"]


def test_who_used_its_part_waits_until_it_may_go_on_and_others_go_first() -> None:
    loop = Loop()
    greedy = Work(loop, "a", 2)
    loop.limit(greedy.time)
    loop.turns.add(greedy)
    loop.turns.add(Work(loop, "b", 2))
    loop.iterate(6)
    assert loop.history == ["b", "b"]
    assert len(loop.turns) == 1
    for _ in range(20):
        loop.idle()
        loop.iterate(2)
        if not len(loop.turns):
            break
    assert loop.history == ["b", "b", "a", "a"]


def test_a_timer_that_was_overtaken_by_another_sets_none_of_its_own() -> None:
    loop = Loop()
    later, sooner = Work(loop, "later", 9), Work(loop, "sooner", 9)
    modest = loop.shares.join("modest")
    for sooner_s in (WINDOW_S / 4, SLICE_S):
        loop.now += WINDOW_S
        for member, used_s in ((modest, SLICE_S), (later.time, WINDOW_S), (sooner.time, sooner_s)):
            loop.shares.used(member, used_s, used_s, loop.now)
    for one in (later, sooner):
        loop.turns.add(one)
        loop.iterate(2)
    assert len(loop._later) == 2, "the second is due before the first"
    while len(loop.turns):
        loop.idle()
        loop.iterate(2)
    assert len(loop.timers) <= 1 + len(set(loop.timers)), "one was overtaken, and set again"


def limited(loop: Loop, slices: int) -> tuple[Work, Work]:
    """Somebody who is limited and has just had a slice, and somebody who isn't and waits for the log."""
    greedy, modest = Work(loop, "greedy", slices), Work(loop, "modest", 1)
    loop.limit(greedy.time)
    loop.turns.add(greedy)
    loop.iterate(2)
    while not loop.history:
        loop.idle()
    loop.now += WINDOW_S / 2  # now it has some slices left
    loop.iterate(2)
    assert loop.history == ["greedy", "greedy"]
    loop.history.clear()
    assert greedy.time.is_limited
    assert not loop.turns.hold_back(modest, loop.now, is_greedy=False)
    modest.awaits_log = True
    return greedy, modest


def test_who_is_limited_lets_others_go_first_until_they_are_answered() -> None:
    loop = Loop()
    _, modest = limited(loop, 4)
    loop.iterate(4)
    assert loop.history == []
    assert len(loop.turns) == 1
    loop.turns.answered()
    loop.iterate(2)
    assert loop.history == [], "not all of them were"
    modest.awaits_log = False
    loop.turns.answered()
    loop.iterate()
    assert loop.history == ["greedy"]


def test_who_is_limited_lets_others_go_first_for_a_bounded_time() -> None:
    loop = Loop()
    greedy, _ = limited(loop, 4)
    last = loop.now
    loop.iterate(4)
    assert loop.turns.hold_back(greedy, loop.now, is_greedy=False), "nor does it go on with what it sends now"
    loop.idle()
    assert loop.history == ["greedy"]
    assert loop.now == pytest.approx(last + DEFER_S + SLICE_S)


def deferred_s(loop: Loop) -> float:
    """For how long the next slice lets others go first."""
    since, count = loop.now, len(loop.history)
    loop.iterate(2)
    while len(loop.history) == count:
        loop.idle()
        loop.iterate(2)
    return loop.now - SLICE_S - since


def test_what_slices_leave_of_their_time_for_others_is_spared_for_a_later_request_and_not_beside_many() -> (
    None
):
    """Who asks now and then is let go first for as long as its request takes; in all it's no more than before."""
    loop = Loop()
    greedy, modest = limited(loop, 40)
    modest.awaits_log = False
    greedy.time.limit(math.inf)
    loop.iterate(8)
    assert loop.history == ["greedy"] * 4, "as soon as they can"
    modest.awaits_log = True
    assert deferred_s(loop) == pytest.approx(DEFER_S + SPARED_S_MAX)
    assert deferred_s(loop) == pytest.approx(DEFER_S)
    assert deferred_s(loop) == pytest.approx(DEFER_S)
    modest.awaits_log = False
    loop.turns.answered()
    loop.iterate(8)
    modest.awaits_log = True
    many = [Work(loop, "modest", 1) for _ in range(SPARED_OTHERS_MAX)]
    for one in many:
        assert not loop.turns.hold_back(one, loop.now, is_greedy=False)
    assert deferred_s(loop) == pytest.approx(DEFER_S), "it was spared again, and they are many now"


def test_who_was_answered_may_ask_again_before_who_is_limited_goes_on() -> None:
    """The slice that an answer let begin kept the next request of the same client waiting, each time."""
    loop = Loop()
    _, modest = limited(loop, 4)
    loop.iterate(4)
    modest.awaits_log = False
    loop.turns.answered([modest])
    for _ in range(8):
        loop.iterate()
        assert loop.history == []
    assert not loop.turns.hold_back(modest, loop.now, is_greedy=False)
    modest.awaits_log = True  # it has asked again
    loop.now += ASKS_AGAIN_S
    loop.iterate(8)
    assert loop.history == []
    modest.awaits_log = False
    loop.turns.answered([modest])
    loop.now += ASKS_AGAIN_S / 2
    loop.iterate(8)
    assert loop.history == []
    loop.now += ASKS_AGAIN_S
    loop.iterate(2)
    assert loop.history == ["greedy"], "without a timer, which would be for a millisecond"


def test_who_is_limited_goes_on_in_time_though_others_are_answered_again_and_again() -> None:
    loop = Loop()
    _, modest = limited(loop, 4)
    since = loop.now
    loop.iterate(2)
    modest.awaits_log = False
    while not loop.history:
        loop.turns.hold_back(modest, loop.now, is_greedy=False)
        loop.turns.answered([modest])
        loop.iterate(2)
        loop.now += ASKS_AGAIN_S / 4
    assert loop.now - SLICE_S - since == pytest.approx(DEFER_S, abs=ASKS_AGAIN_S)


def test_of_many_others_and_of_a_limited_crowd_nobody_is_waited_for_to_ask_again() -> None:
    loop = Loop()
    greedy, modest = limited(loop, 9)
    greedy.time.limit(math.inf)
    many = [Work(loop, "modest", 1) for _ in range(SPARED_OTHERS_MAX)]

    def goes_on_after(*answered: Work) -> bool:
        loop.iterate(4)  # who is limited waits
        count = len(loop.history)
        modest.awaits_log = False
        loop.turns.answered(answered)
        loop.iterate(2)
        modest.awaits_log = True
        return len(loop.history) > count

    assert goes_on_after(greedy), "the answer was one of the crowd's"
    assert not goes_on_after(greedy, modest)
    loop.now += ASKS_AGAIN_S
    for one in many:
        assert not loop.turns.hold_back(one, loop.now, is_greedy=False)
    assert goes_on_after(*many, modest), "one of many was answered just now at any time"


def test_nobody_of_a_limited_crowd_nor_who_waits_for_a_turn_is_one_of_those_who_go_first() -> None:
    loop = Loop()
    _, modest = limited(loop, 9)
    modest.awaits_log = False
    one, another = Work(loop, "crowd", 1, is_greedy=False), Work(loop, "another", 1)
    one.awaits_log = another.awaits_log = True
    one.time.among.limit(math.inf)
    assert not loop.turns.hold_back(one, loop.now, is_greedy=False)
    assert deferred_s(loop) == 0.0
    assert not loop.turns.hold_back(another, loop.now, is_greedy=False)
    assert deferred_s(loop) > 0.0, "who asks for little does"
    loop.turns.add(another)
    loop.iterate(2)
    assert loop.history[-1] == "another"
    assert deferred_s(loop) == 0.0, "who asks for more doesn't"


@pytest.mark.parametrize("is_greedy", [True, False])
def test_who_is_limited_goes_on_in_the_end_beside_others_who_are_always_in_the_midst_of_something(
    is_greedy: bool,
) -> None:
    """Handlers of others who aren't limited have their portions one after the other, and a thread always works."""
    loop = Loop()
    greedy, modest = limited(loop, 4)
    greedy.is_greedy = is_greedy
    loop.turns._threads = 1  # of somebody whose work takes long
    since = loop.now
    while not loop.history:
        loop.now += DEFER_S / 2
        loop.turns.hold_back(modest, loop.now, is_greedy=False)
        loop.turns.used_slice(modest.time, loop.now, loop.now)
        loop.iterate(2)
        if any(at <= loop.now for at, _ in loop._later):
            loop.idle()
        assert loop.now - since < 2 * DEFER_S_MAX


def test_who_asks_one_thing_at_a_time_and_lets_others_go_first_does_not_wait_for_its_pace_then() -> None:
    loop = Loop()
    greedy, _ = limited(loop, 4)
    single = Work(loop, "greedy", 1, is_greedy=False)
    single.time = greedy.time
    loop.shares.used(single.time, WINDOW_S * 0.35, WINDOW_S * 0.35, loop.now)
    pace = loop.shares.ready_at(single.time, loop.now)
    assert pace > loop.now + DEFER_S, "what it used is more than its part"
    assert loop.turns.hold_back(single, loop.now, is_greedy=False)
    loop.turns.add(single)
    loop.iterate(2)
    assert loop.history == []
    while not loop.history:
        loop.idle()
    assert loop.now < pace


class Single(Work):
    """Asks one thing that takes ``costs_s``, and the next a moment after it was answered."""

    def __init__(self, loop: Loop, costs_s: float) -> None:
        super().__init__(loop, "crowd", 1, is_greedy=False)
        self._costs_s = costs_s
        self._asked = 0
        self.asks_at = 0.0
        #: How many requests of others were served while one of its own waited, at most.
        self.overtaken = 0

    def label(self, name: str) -> None:
        """Be in the history as ``name``."""
        self._name = name

    def ask(self) -> None:
        loop = self._loop
        self.asks_at, self._asked = math.inf, len(loop.history)
        if loop.turns.hold_back(self, loop.now, is_greedy=False):
            loop.turns.add(self)
            return
        began = loop.now
        self.turn()
        loop.turns.used(self.time, began, began)

    def turn(self) -> None:
        loop = self._loop
        self.overtaken = max(self.overtaken, len(loop.history) - self._asked)
        loop.now += self._costs_s
        loop.history.append(self._name)
        self.asks_at = loop.now + DEFER_S / 5


def test_of_a_crowd_that_asks_one_thing_at_a_time_nobody_waits_while_others_are_served_again_and_again() -> (
    None
):
    loop = Loop()
    crowd = [Single(loop, 0.0002 if number % 10 else 0.002) for number in range(100)]
    modest, modest_at = loop.shares.join("modest"), 0.0
    while len(loop.history) < 30 * len(crowd):
        if loop.now >= modest_at:
            modest_at = loop.now + WINDOW_S / 10
            loop.shares.used(modest, SLICE_S / 100, SLICE_S / 100, loop.now)
        for one in crowd:
            if one.asks_at <= loop.now:
                one.ask()
        loop.iterate()
        due = min([one.asks_at for one in crowd] + [at for at, _ in loop._later])
        if not loop._next:
            loop.now = max(loop.now, due)
        if any(at <= loop.now for at, _ in loop._later):
            loop.idle()
        if len(loop.history) <= 8 * len(crowd):  # from then on they are limited
            for one in crowd:
                one.overtaken = 0
    assert max(one.overtaken for one in crowd) < 2 * len(crowd)


def held_back(loop: Loop, address: str, name: str = "") -> Single:
    """One that is limited and waits to ask one thing."""
    single = Single(loop, SLICE_S)
    single.time = loop.shares.join(address)
    single.time.set_name(name)
    single.label(address + name)
    loop.turns.add(single)
    return single


def test_of_those_who_ask_one_thing_addresses_take_turns_then_names_then_whoever_came_first() -> None:
    loop = Loop()
    for _ in range(3):
        held_back(loop, "a", "x")
    for _ in range(2):
        held_back(loop, "a", "y")
    held_back(loop, "b")
    loop.iterate(12)
    assert loop.history == ["ax", "b", "ay", "ax", "ay", "ax"]


def test_an_address_that_may_not_go_on_keeps_no_other_waiting_behind_it() -> None:
    loop = Loop()
    crowd = [held_back(loop, "crowd") for _ in range(500)]
    for one in crowd:
        loop.shares.used(one.time, WINDOW_S, WINDOW_S, loop.now)  # nothing of the loop is left, either
        one.time.limit(math.ulp(0.0))
    other = held_back(loop, "other")
    other.time.limit(WINDOW_S)
    loop.iterate(2)
    assert loop.history == ["other"]
    assert len(loop.turns) == len(crowd)


def test_of_many_addresses_that_may_not_go_on_a_bounded_number_is_looked_at() -> None:
    singles = Singles[Single]()
    loop = Loop()
    for number in range(2 * LOOK_MAX):
        single = Single(loop, SLICE_S)
        single.time = loop.shares.join(str(number))
        singles.add(single)
    assert [address for (address, _), _ in singles.heads()] == [str(number) for number in range(LOOK_MAX)]
    served = [singles.take(next(singles.heads())[0]) for _ in range(len(singles))]
    assert [one.time.address for one in served] == [str(number) for number in range(2 * LOOK_MAX)]
    assert not len(singles)
    assert not list(singles)


def test_a_name_that_may_not_go_on_keeps_no_other_of_its_address_waiting_behind_it() -> None:
    loop = Loop()
    for name in ("x", "y"):
        crowd = [held_back(loop, "a", name) for _ in range(50)]
        for one in crowd:
            loop.shares.used(one.time, WINDOW_S, WINDOW_S, loop.now)
            one.time.limit(math.ulp(0.0))
    other = held_back(loop, "a", "z")
    other.time.limit(WINDOW_S)
    loop.iterate(2)
    assert loop.history == ["az"]
    heads = Singles[Single]()
    for name in "abcdefgh":
        single = Single(loop, SLICE_S)
        single.time.set_name(name)
        heads.add(single)
    assert len(list(heads.heads())) == LOOK_NAMES_MAX, "a bounded number is looked at"


def test_a_crowd_that_comes_in_one_iteration_goes_on_by_turns_though_each_asks_for_little() -> None:
    """Who comes after a pause used nothing, so its own pace lets it go on at once, and all others like it."""
    loop = Loop()

    def one_of(name: str) -> Single:
        single = Single(loop, SLICE_S)
        single.time = loop.shares.join("a")
        single.time.set_name(name)
        single.label(name)
        return single

    loop.limit(one_of("flood").time)
    good = one_of("good")
    assert good.time.may_wait, "since its address is limited"
    for one in [*(one_of("crowd") for _ in range(500)), good]:  # in the order in which the loop finds them
        one.ask()
    assert loop.history == ["crowd"], "one slice, in the iteration in which all of them came"
    while "good" not in loop.history:
        loop.iterate()
    assert good.overtaken <= 1
    served = len(loop.history)
    loop.iterate(20)
    assert len(loop.history) >= served + 9, "the others go on, with a slice in each second iteration"
    late = one_of("late")
    late.ask()
    assert loop.history[-1] == "late", "in an iteration of its own it goes on at once"


def test_answers_of_a_crowd_leave_some_at_a_time_behind_those_of_others() -> None:
    """Each takes as long as a small request: five hundred that are woken together held the loop for 10 ms."""
    loop = Loop()
    flushed: list[str] = []

    def channel(name: str, *, is_crowded: bool) -> Any:
        time = SimpleNamespace(is_crowded=is_crowded)
        return SimpleNamespace(flush=lambda: flushed.append(name), time=time)

    core = object.__new__(ServerCore)
    core._dirty, core.sent_bytes, core.turns = [], 0, loop.turns
    core.call_soon = loop.call_soon  # type: ignore[method-assign,assignment]
    for number in range(20):
        core.flush_soon(channel(f"{number}", is_crowded=True))
    core.flush_soon(channel("good", is_crowded=False))
    loop.iterate()
    assert flushed == ["good", *map(str, range(8))]
    core.flush_soon(channel("late", is_crowded=False))
    loop.iterate()
    assert flushed[9:] == ["late", *map(str, range(8, 16))]
    loop.iterate(2)
    assert flushed[18:] == ["16", "17", "18", "19"]


def test_a_timer_is_set_for_a_millisecond_at_least() -> None:
    """One of less was called at once, as uvloop rounds: who looked at the clock then set it again, ten times."""
    delays: list[float] = []
    core = SimpleNamespace(time=lambda: 5.0, call_later=lambda delay_s, _: delays.append(delay_s))
    for at in (4.0, 5.0003, 5.25):
        ServerCore._call_at(core, at, lambda: None)  # type: ignore[arg-type]
    assert delays == pytest.approx([0.001, 0.001, 0.25])


def test_who_is_not_limited_lets_nobody_go_first() -> None:
    loop = Loop()
    modest = Work(loop, "modest", 1)
    modest.awaits_log = True
    loop.turns.add(Work(loop, "greedy", 3))
    assert not loop.turns.hold_back(modest, loop.now, is_greedy=False)
    loop.iterate(6)
    assert loop.history == ["greedy"] * 3


def test_of_who_is_gone_nothing_is_left() -> None:
    """What asked last beside others was kept until somebody waited again: ten thousand connections, perhaps."""
    loop = Loop()
    loop.turns.add(Work(loop, "much", 2))
    loop.iterate(2)
    little = Work(loop, "little", 1)
    assert not loop.turns.hold_back(little, loop.now, is_greedy=False)
    gone = weakref.ref(little)
    loop.turns.forget(little)
    del little
    assert gone() is None


def test_slices_are_short_while_others_are_served_beside_them() -> None:
    loop = Loop()
    loop.turns.add(Work(loop, "greedy", 400))
    assert not loop.turns.hold_back(Work(loop, "modest", 1), loop.now, is_greedy=False)
    loop.iterate(2)
    assert loop.turns.slice_s == SLICE_SHORT_S
    loop.iterate(700)
    assert loop.turns.slice_s == SLICE_S


def test_without_a_reading_of_processor_time_the_time_that_passed_is_used() -> None:
    def reading() -> float:
        raise AssertionError("a system call")

    shares = TimeShares()
    now = 5.0
    turns = Turns(lambda call: None, lambda at, call: None, lambda: now, reading, shares)
    member = shares.join("a")
    now += 0.002
    turns.used(member, 5.0, None)
    assert member.used_s == pytest.approx(0.002)
    other = shares.join("a")
    now += 2.0
    turns.used(other, 5.0, None)
    assert other.used_s == UNMEASURED_S_MAX, "the process may have been without a processor for a while"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_metered_handler_pays_for_its_time_returns_its_result_and_is_cancelled_where_it_waits() -> (
    None
):
    loop = Loop()
    member = loop.shares.join("a")

    async def work(fails: bool) -> str:
        loop.now += 0.01
        await anyio.lowlevel.checkpoint()
        loop.now += 0.02
        if fails:
            raise ValueError("a fault of its own")
        return "done"

    assert await metered(work(False), member, loop.turns) == "done"
    assert member.used_s == pytest.approx(0.03)
    with pytest.raises(ValueError, match="a fault of its own"):
        await metered(work(True), member, loop.turns)

    ended: list[bool] = []

    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def run() -> None:
        await metered(waits(), member, loop.turns)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    assert ended


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_portions_of_handlers_take_turns_one_in_a_slice() -> None:
    loop = Loop()
    finished = []

    async def work(name: str) -> None:
        for _ in range(3):
            loop.history.append(name)
            await anyio.lowlevel.checkpoint()
        finished.append(name)

    async def run(name: str) -> None:
        await metered(work(name), loop.shares.join(name), loop.turns)

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(run, name)
        waiting = Work(loop, "connection", 3)
        loop.turns.add(waiting)
        while len(finished) < 3:
            before = len(loop.history)
            loop.iterate(2)
            await anyio.wait_all_tasks_blocked()
            assert len(loop.history) <= max(4, before + 1), (
                "the first portions come at once, the others in slices"
            )
    assert sorted(loop.history) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["connection"] * 3


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_handlers_of_a_limited_crowd_whose_waits_are_over_let_others_go_first_some_of_them() -> None:
    """They go on one in each slice when others are answered, and those that are too many at once."""
    loop = Loop()
    _, modest = limited(loop, 2)
    events = [anyio.Event() for _ in range(HELD_MAX + 3)]
    went_on: list[int] = []

    async def work(number: int) -> None:
        await events[number].wait()
        went_on.append(number)

    async def run(number: int) -> None:
        member = loop.shares.join("crowd")
        member.among.limit(math.inf)
        await metered(work(number), member, loop.turns)

    modest.awaits_log = False
    async with anyio.create_task_group() as tasks:
        for number in range(len(events)):
            tasks.start_soon(run, number)
        await anyio.wait_all_tasks_blocked()
        modest.awaits_log = True
        for event in events:
            event.set()
        await anyio.wait_all_tasks_blocked()
        assert went_on == [HELD_MAX, HELD_MAX + 1, HELD_MAX + 2]
        modest.awaits_log = False
        loop.turns.answered()
        for count in range(1, HELD_MAX + 1):
            loop.iterate(2)
            await anyio.wait_all_tasks_blocked()
            assert went_on[3:] == list(range(count))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_has_a_place_among_the_threads_lets_nobody_go_first_with_it() -> None:
    loop = Loop()
    _, modest = limited(loop, 2)
    member = loop.shares.join("crowd")
    places = anyio.CapacityLimiter(1)

    async def run() -> None:
        await metered(loop.turns.run_in_thread(lambda: done.append(True), places), member, loop.turns)

    done: list[bool] = []
    modest.awaits_log = False
    await places.acquire_on_behalf_of(loop)
    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            member.among.limit(math.inf)
            modest.awaits_log = True
            places.release_on_behalf_of(loop)
    assert done == [True, True], "nor when its first thread has ended, and the second one is at work"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_slice_spares_counts_once_when_a_handler_goes_on_beside_it() -> None:
    loop = Loop()
    greedy, modest = limited(loop, 40)
    greedy.time.limit(math.inf)
    modest.awaits_log = False
    loop.turns.hold(greedy.time)
    loop.now += DEFER_S * 0.9
    loop.iterate(2)
    assert loop.history == ["greedy"]
    modest.awaits_log = True
    assert deferred_s(loop) == pytest.approx(DEFER_S * 1.1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_handlers_that_let_others_go_first_go_on_soon_though_these_always_wait() -> None:
    loop = Loop()
    greedy, modest = limited(loop, 2)
    since = loop.now
    held = [loop.turns.hold(greedy.time) for _ in range(HELD_MAX)]
    while not all(one._go_on.done() for one in held):
        loop.now += DEFER_S / 2
        loop.turns.hold_back(modest, loop.now, is_greedy=False)
        loop.turns.used_slice(modest.time, loop.now, loop.now)
        loop.iterate(2)
        if any(at <= loop.now for at, _ in loop._later):
            loop.idle()
        assert loop.now - since < HELD_S_MAX + 2 * DEFER_S, "all of them: others may wait for what they have"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_lets_others_go_first_before_it_begins_can_be_cancelled() -> None:
    loop = Loop()
    limited(loop, 2)
    member = loop.shares.join("crowd")
    member.among.limit(math.inf)

    async def run() -> None:
        await metered(anyio.lowlevel.checkpoint(), member, loop.turns)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            assert "held" in loop.turns.describe(member)
            scope.cancel()
    loop.iterate(4)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_thread_of_who_is_limited_does_not_wait_for_itself_to_end() -> None:
    loop = Loop()
    member = loop.shares.join("limited")
    done = []

    async def run() -> None:
        member.limit(1.0)
        done.append(
            await metered(loop.turns.run_in_thread(lambda: 1, anyio.CapacityLimiter(1)), member, loop.turns)
        )

    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            while not done:
                loop.iterate(1)
                await anyio.lowlevel.checkpoint()
    assert done == [1]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_asks_one_thing_at_a_time_does_not_wait_for_threads_of_those_who_are_limited() -> None:
    loop = Loop()
    greedy, single = Work(loop, "greedy", 1), Work(loop, "single", 1, is_greedy=False)
    begun, end = threading.Event(), threading.Event()

    def decode() -> None:
        begun.set()
        assert end.wait(HANG_S)

    async def run() -> None:
        await metered(loop.turns.run_in_thread(decode, anyio.CapacityLimiter(1)), greedy.time, loop.turns)

    for one in (greedy, single):
        one.time.limit(1.0)
    try:
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                while not begun.is_set():
                    loop.iterate(1)
                    await anyio.lowlevel.checkpoint()
                another = Work(loop, "another", 1)
                another.time.limit(1.0)
                assert loop.turns.hold_back(another, loop.now, is_greedy=True)
                assert not loop.turns.hold_back(single, loop.now, is_greedy=False)
                loop.turns.add(another)
                loop.turns.add(single)
                loop.iterate(4)
                assert loop.history == ["single"]
                end.set()
    finally:
        end.set()


def test_of_many_that_wait_for_one_pace_a_few_are_looked_at_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each slice of one of them costs a look at all of them, which nobody pays for."""
    loop = Loop()
    crowd = [Work(loop, "crowd", 1) for _ in range(1_000)]
    loop.limit(crowd[0].time)
    looks, ready_at = 0, loop.shares.ready_at

    def counted(member: TimeMember, now: float, *, is_greedy: bool = True) -> float:
        nonlocal looks
        looks += 1
        return ready_at(member, now, is_greedy=is_greedy)

    monkeypatch.setattr(loop.shares, "ready_at", counted)
    for one in crowd:
        loop.turns.add(one)
    total = 0
    while len(loop.history) < 20:
        looks = 0
        if loop._next:
            loop.iterate()
        else:
            loop.idle()
        total += looks
        assert looks <= 2 * LOOKS_MAX
    assert total <= len(crowd) + 20 * 3 * LOOKS_MAX, "each once, and a few for each that went on"


def test_who_need_not_wait_goes_on_before_a_crowd_that_came_first_and_has_to() -> None:
    loop = Loop()
    crowd = [Work(loop, "crowd", 1) for _ in range(1_000)]
    loop.limit(crowd[0].time)
    for one in crowd:
        loop.turns.add(one)
    loop.turns.add(Work(loop, "modest", 1))
    loop.iterate(4)
    assert "modest" in loop.history[:2], "one of the crowd is within its pace"


def test_of_those_that_wait_for_one_pace_who_came_first_goes_on_first_also_before_newcomers() -> None:
    loop = Loop()
    crowd = [Work(loop, "crowd", 1) for _ in range(20)]
    loop.limit(loop.shares.join("crowd"))
    gone: list[int] = []
    for number, one in enumerate(crowd):
        one.turn = lambda number=number: gone.append(number)  # type: ignore[method-assign,misc]
    for one in crowd[:10]:
        loop.turns.add(one)
    late = iter(crowd[10:])
    while len(gone) < 20:
        before = len(gone)
        if loop._next:
            loop.iterate()
        else:
            loop.idle()
        if len(gone) > before and (one_more := next(late, None)) is not None:
            loop.turns.add(one_more)
    assert gone == list(range(20))
    assert len(loop.turns) == 0
