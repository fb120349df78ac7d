"""Turns on the event loop: the requests of one connection are handled in slices, between which others are served.

A connection handles what it received in the call that received it, as long as that is little. The rest waits here.
Connections that wait get their turns one after the other, for one slice in each second iteration of the loop; so
whoever asks for little is served after one slice, however many others ask for much. Who used more than its share of
the loop's time (``penstock.time_shares``) waits until it may go on; so does a handler, between two of its portions,
each of which is a slice. Those of them that ask one thing at a time go on in turn by address and name, and there in
the order in which they came (``penstock.server.singles``), so nobody waits while its equals are served again and
again. In one iteration of the loop those that may have to wait go on at once for one slice all together; what else
came in it waits here, too, however little each asks for.

Who is limited to its share goes on when nobody else waits for the log: the threads that write it need the
interpreter, and what they have done is to be told at once. It waits for that no longer than ``DEFER_S`` after its
last slice, so that it gets on beside others who always have something in flight, and for what earlier slices spared
of that time; and no longer than ``DEFER_S_MAX`` in all, since slices of others who aren't limited come one after the
other, too. Handlers of limited crowds that begin or go on after a wait do the same, a few of them. Within the same
time it lets who was answered just now ask again.
"""

from __future__ import annotations

__all__ = (
    "ASKS_AGAIN_S",
    "DEFER_S",
    "DEFER_S_MAX",
    "HELD_MAX",
    "HELD_S_MAX",
    "LOOKS_MAX",
    "SLICE_REQUESTS",
    "SLICE_S",
    "SLICE_SHORT_S",
    "SPARED_OTHERS_MAX",
    "SPARED_S_MAX",
    "UNMEASURED_S_MAX",
    "Turns",
    "metered",
)

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from types import coroutine
from typing import Any, Final, Protocol, TypeVar

from anyio import CapacityLimiter

from penstock.server.singles import Place, Singles
from penstock.threads import run_in_thread
from penstock.time_shares import WINDOW_S, TimeMember, TimeShares

T = TypeVar("T")

#: Seconds that one connection, and all that wait together, may take before others get their turn.
SLICE_S: Final = 0.0005
#: The same while others are served beside them: half of it is what these wait for, and each slice has its costs.
SLICE_SHORT_S: Final = 0.0002
#: How long who is limited waits after its last slice for others' requests to be answered.
DEFER_S: Final = 0.001
#: Slices that come sooner spare it for later ones, up to so much: so a request that others make now and then is let
#: go first from its start to its end, and beside others who always have something in flight nothing changes.
SPARED_S_MAX: Final = 0.002
#: Nothing is spared beside more others than these: one of them is in the midst of something at most moments, and a
#: crowd that goes on in the moments between would lose these, too.
SPARED_OTHERS_MAX: Final = 8
#: Who was answered may ask again at once, as who produces and then fetches: so long after an answer no slice begins,
#: as long as one is. Not beside more others than those of ``SPARED_OTHERS_MAX``.
ASKS_AGAIN_S: Final = SLICE_SHORT_S
#: The first of those who wait for others' requests, or for threads, waits no longer: beside many who are always in
#: the midst of something there is no moment at which nobody is.
DEFER_S_MAX: Final = 0.25
#: So many handlers of limited crowds let others go first, and go on one after the other then; further ones go on.
HELD_MAX: Final = 16
#: None of them for longer, each time: it may have what others wait for, a lock or a place at the object store.
HELD_S_MAX: Final = 0.025
#: Others are those who asked for little in this time. So many of them are looked at, the latest first.
_OTHERS_S: Final = 0.1
_OTHERS_LOOK_MAX: Final = 32
#: What wasn't measured in processor time costs no more: the processor may have been somebody else's meanwhile, and
#: nobody is to pay for that in the windows to come.
UNMEASURED_S_MAX: Final = 0.005
#: Requests of one connection in one slice.
SLICE_REQUESTS: Final = 64
#: So many of those that wait for one pace are looked at for one that may go on.
LOOKS_MAX: Final = 8
#: Where nobody waits.
_NOWHERE: Final[Place] = "", 0

#: Who pays for what the current task does.
_payer: ContextVar[TimeMember | None] = ContextVar("_payer", default=None)


class _Asks(Protocol):
    time: TimeMember


class _Waits(_Asks, Protocol):
    #: Whether it waits with more than it received last: who doesn't may go on before its pace says so.
    is_greedy: bool

    def turn(self) -> None:
        """Go on for one slice. Doesn't raise."""

    @property
    def awaits_log(self) -> bool:
        """Whether what it asked for is in the log's hands."""


class Turns:
    """Connections that have more to do.

    ``call_soon(function)`` runs it in the next iteration of the loop, ``call_at(time, function)`` at a time of
    ``clock``.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], Any],
        call_at: Callable[[float, Callable[[], None]], Any],
        clock: Callable[[], float],
        processor_time: Callable[[], float],
        shares: TimeShares,
    ) -> None:
        self._call_soon = call_soon
        self._call_at = call_at
        self.clock = clock
        self.processor_time = processor_time
        self._shares = shares
        #: How many wait.
        self._size = 0
        self._waiting: deque[_Waits | _Group] = deque()
        #: Those that may have to wait for their pace; each group waits, or is limited, or deferred.
        self._groups: dict[object, _Group] = {}
        #: Groups that may not go on yet, by the time when they may.
        self._limited: list[tuple[float, int, _Group]] = []
        self._number = 0
        #: Those that may, and let others go first.
        self._deferred: list[_Waits | _Group] = []
        #: Since when the first of them waits.
        self._deferred_since = 0.0
        #: Handlers of limited crowds that would go on, and let others go first.
        self._held: deque[_Portion] = deque()
        #: Those that ask one thing at a time, whether they may go on or not. They don't wait for threads: one that
        #: works for somebody who is limited may be there at any time.
        self._singles = Singles[_Waits]()
        #: Since when the first of them may go on and lets others go first.
        self._single_deferred_since: float | None = None
        #: When all of them are looked at next: who waits for a whole window would seem to ask for nothing in it.
        self._singles_look_at = 0.0
        #: Whether the next slice begins with one of them: slices do by turns.
        self._single_first = True
        #: Who else asked lately, and when, the longest ago first. Of a plain dict it takes a step for each that was
        #: removed before to find the first.
        self._others: OrderedDict[_Waits, float] = OrderedDict()
        #: When one of a limited crowd was served last beside those who wait here.
        self._crowd_asked = -math.inf
        #: Until then somebody waits here, or did a moment ago.
        self._contended_until = 0.0
        self._last_slice = 0.0
        #: What the slices so far left of the time for which each of them is to let others go first.
        self._spared_s = 0.0
        #: Since when somebody lets others' requests go first.
        self._lets_since: float | None = None
        #: When one of the others was answered last while somebody waited here.
        self._answered = -math.inf
        self._slice_ended = False
        #: Threads that work for somebody who is limited.
        self._threads = 0
        #: Who has threads at work, or is about to, and how many: answers are encoded while the next request is read.
        self._at_work = Counter[TimeMember]()
        self._is_scheduled = False
        #: Slices run just now.
        self._in_slices = False
        #: When the first of those that may have to wait went on in this iteration of the loop.
        self._iteration_began: float | None = None
        #: When ``_wake`` is called next.
        self._wakes_at: float | None = None
        #: How long a connection may take in its turn.
        self.slice_s = SLICE_S

    def __len__(self) -> int:
        return self._size

    def hold_back(self, connection: _Waits, now: float, *, is_greedy: bool) -> bool:
        """Whether what ``connection`` has just received has to wait for a turn."""
        member = connection.time
        if member.may_wait:
            # what is left of the loop is for those who wait for it already: newcomers would take it for seconds
            if self._shares.ready_at(member, now, is_greedy=is_greedy or bool(self._singles)) > now:
                return True
            if member.is_limited:
                goes_behind = self._threads > 0 if is_greedy else bool(self._singles)
                if goes_behind or self._others_first(now):
                    return True
            if self._is_used_up(now):
                return True
            if member.is_crowded:  # it lets others go first, and is none of them
                self._crowd_asked = now
                return False
        elif is_greedy and self._size > 0:
            return True
        elif now > self._contended_until:
            return False
        self._others[connection] = now
        self._others.move_to_end(connection)
        return False

    def forget(self, connection: _Waits) -> None:
        """Drop a connection that is gone: those that asked lately are only looked at as long as somebody waits."""
        self._others.pop(connection, None)

    def _is_used_up(self, now: float) -> bool:
        """Whether those that may have to wait have had a slice in this iteration of the loop.

        Each of a crowd may ask for little. All of it at once would still be as long as it is large.
        """
        if self._iteration_began is None:
            self._iteration_began = now
            self._call_soon(self._end_iteration)
        return now - self._iteration_began >= SLICE_S

    def _end_iteration(self) -> None:
        self._iteration_began = None

    def makes_wait(self, member: TimeMember) -> bool:
        """Whether a handler's next portion has to wait for a turn.

        Not while its own thread begins: that is its slice, and others who are limited wait until it ends.
        """
        if member in self._at_work:
            return False
        return self._size > 0 or member.may_wait

    def used(self, member: TimeMember, began: float, begin: float | None) -> None:
        """The loop computed for ``member`` until now, from ``began`` on the clock and ``begin`` of processor time.

        ``begin`` is None where that wasn't worth a reading (``TimeShares.is_measured``).
        """
        now = self.clock()
        passed = now - began
        spent = min(passed, UNMEASURED_S_MAX) if begin is None else self.processor_time() - begin
        self._shares.used(member, spent, passed, now)

    def used_slice(self, member: TimeMember, began: float, begin: float) -> None:
        """Count a handler's portion like ``used``, and as the loop's newest slice."""
        self.used(member, began, begin)
        self._last_slice = self.clock()

    def end_slice(self) -> None:
        """A handler begins, or goes on, in the next iteration: its portion is this slice."""
        self._slice_ended = True

    async def run_in_thread(self, work: Callable[[], T], limiter: CapacityLimiter) -> T:
        """``work()`` in a thread, at the cost of whom this task is metered for.

        A thread needs the interpreter as the loop does. So for who is limited its work is a slice: it waits for its
        turn, and others who are limited get none meanwhile.
        """
        member = _payer.get()
        if member is None:
            return await run_in_thread(work, limiter=limiter)
        spent_s = 0.0

        def timed() -> T:
            nonlocal spent_s
            begin = self.processor_time()
            try:
                return work()
            finally:
                spent_s = self.processor_time() - begin

        if self.makes_wait(member):
            await self._wait(member)  # without a place among the threads, which others may take meanwhile
        self._at_work[member] += 1  # else it would let others go first when it has a place, who may want that
        try:
            async with limiter:
                is_slice = member.may_wait
                self._threads += is_slice
                try:
                    return await run_in_thread(timed)
                finally:
                    self._threads -= is_slice
                    self._last_slice = now = self.clock()
                    self._shares.used(member, spent_s, spent_s, now)
                    self.answered()
        finally:
            self._at_work[member] -= 1
            if not self._at_work[member]:
                del self._at_work[member]

    def _wait(self, member: TimeMember) -> _Portion:
        portion = _Portion(member, self)
        self.add(portion)
        return portion

    def add(self, connection: _Waits) -> None:
        """Give ``connection`` a turn after those that wait already."""
        self._size += 1
        if connection.is_greedy:
            self._others.pop(connection, None)
            self._add_greedy(connection)
        else:
            self._singles.add(connection)
        self._run_soon()

    def _add_greedy(self, connection: _Waits) -> None:
        """Behind those of its group if it may have to wait for its pace, not in front of those who needn't."""
        member = connection.time
        if not member.may_wait:
            self._waiting.append(connection)
            return
        among = member.among
        group = self._groups.get(among)
        if group is None:
            group = self._groups[among] = _Group(among)
            self._waiting.append(group)
        group.queue.append(connection)

    def _others_first(self, now: float) -> bool:
        """Whether requests of others are in the log's hands, and who is limited can let them go first for longer."""
        return (
            bool(self._others)
            and now < self._defers_until(now)
            and (self._others_wait(now) or self._may_ask_again(now))
        )

    def _may_ask_again(self, now: float) -> bool:
        """Whether one of the others was answered just now. Of many one always was, and nobody else would go on."""
        return now < self._answered + ASKS_AGAIN_S and 0 < len(self._others) <= SPARED_OTHERS_MAX

    def _defers_until(self, now: float) -> float:
        until = self._last_slice + DEFER_S
        if len(self._others) > SPARED_OTHERS_MAX:
            return until
        return max(until, now if self._lets_since is None else self._lets_since) + self._spared_s

    def _lets_others_ask(self, now: float) -> bool:
        """Whether somebody waits for no more than that one of the others may ask again."""
        is_deferred = self._deferred or self._held or self._single_deferred_since is not None
        return bool(is_deferred) and self._may_ask_again(now)

    def _lets_others(self, now: float) -> None:
        if self._lets_since is None:
            self._lets_since = now

    def _count_spared(self, now: float) -> None:
        """A slice of somebody who is limited begins: earlier than it had to, or later."""
        due = self._last_slice + DEFER_S
        if now < due:
            self._spared_s = min(SPARED_S_MAX, self._spared_s + due - now)
        elif self._lets_since is not None:
            self._spared_s = max(0.0, self._spared_s - (now - max(due, self._lets_since)))
        self._lets_since = None

    def _others_wait(self, now: float) -> bool:
        others = self._others
        while others and now - others[next(iter(others))] > _OTHERS_S:
            others.popitem(last=False)
        return any(other.awaits_log for other in islice(reversed(others), _OTHERS_LOOK_MAX))

    # -- handlers of limited crowds ---------------------------------------------------------------------

    def holds(self, member: TimeMember) -> bool:
        """Whether a handler that could go on lets others go first, who are in the midst of something."""
        if not member.is_crowded or len(self._held) >= HELD_MAX or member in self._at_work:
            return False
        return self._others_first(self.clock())

    def hold(self, member: TimeMember) -> _Portion:
        """What a handler waits for that lets others go first."""
        now = self.clock()
        self._lets_others(now)
        portion = _Portion(member, self)
        self._held.append(portion)
        if not self._is_scheduled:
            self._schedule(now)
        return portion

    # -- when others are answered -----------------------------------------------------------------------

    def answered(self, whose: Iterable[_Asks] = ()) -> None:
        """Requests of ``whose`` were, or a thread's work is done: see whether who let them go first can go on."""
        if self._size or self._held:
            for one in whose:
                if not one.time.is_crowded:
                    self._answered = self.clock()
                    break
        is_deferred = self._deferred or self._held or self._single_deferred_since is not None
        if is_deferred and self._in_slices:
            self._run_soon()  # behind what came in during the slice, as any next one
        elif is_deferred and not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._run)

    def describe(self, member: TimeMember) -> str:
        """Where ``member`` waits for its turn, and why, for the log."""
        places: dict[str, Iterable[_Waits]] = {
            "waiting": _each(self._waiting),
            "single": self._singles,
            "limited": _each(group for _, _, group in self._limited),
            "deferred": _each(self._deferred),
            "held": self._held,
        }
        found = "+".join(name for name, place in places.items() if any(one.time is member for one in place))
        return f"turn={found or 'none'} threads={self._threads} {self._shares.describe(member)}"

    def _run_soon(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._let_others_first)

    def _schedule(self, now: float) -> None:
        waits_for_others = self._others_first(now)
        at, _ = self._next_single(now, defers=waits_for_others)
        if self._waiting or at <= now or (self._held and not waits_for_others):
            self._run_soon()
            return
        if waits_for_others and self._lets_others_ask(now):
            self._run_soon()  # timers go by milliseconds
            return
        if self._limited:
            at = min(at, self._limited[0][0])
        if self._held or (self._deferred and not self._threads):
            at = min(at, self._defers_until(now))
        elif self._deferred:
            at = min(at, self._deferred_since + DEFER_S_MAX)
        if at < (math.inf if self._wakes_at is None else self._wakes_at):
            self._wakes_at = at
            self._call_at(at, partial(self._wake, at))

    def _next_single(self, now: float, *, defers: bool) -> tuple[float, Place]:
        """When one of those who ask one thing at a time may go on, not after ``now`` if at once; and its place."""
        earliest, where = math.inf, _NOWHERE
        for place, single in self._singles.heads():
            ready = self._shares.ready_at(single.time, now, is_greedy=False)
            if ready <= now and defers and single.time.may_wait:
                if self._single_deferred_since is None:
                    self._single_deferred_since = now
                until = self._single_deferred_since + DEFER_S_MAX
                self._lets_others(now)
                ready = now if until <= now else min(until, self._defers_until(now))
            if ready < earliest:
                earliest, where = ready, place
                if ready <= now:
                    break
        return earliest, where

    def _let_others_first(self) -> None:
        """Run the next slice one iteration later.

        What came in during the last slice has asked for callbacks by now (a group of the WAL to hand over, answers to
        send). Without this they would run behind the next slice, at each step of a request.
        """
        self._call_soon(self._run)

    def _wake(self, at: float) -> None:
        if at != self._wakes_at:
            return  # overtaken by one that was set later for earlier: of two each would set the next, and so on
        self._wakes_at = None
        if not self._is_scheduled:
            self._run()

    def _run(self) -> None:
        self._is_scheduled = False
        waiting, shares = self._waiting, self._shares
        now = self.clock()
        used = self.processor_time()
        end = used + self.slice_s
        waits_for_others = self._others_first(now)
        is_counted = bool(self._held) and not waits_for_others  # one of these goes on with the slice
        if is_counted:
            self._count_spared(now)
        defers = self._end_waits(now, waits_for_others=waits_for_others)
        self.slice_s = SLICE_SHORT_S if self._others or now < self._crowd_asked + _OTHERS_S else SLICE_S
        self._slice_ended = False
        if self._singles and now >= self._singles_look_at:
            self._singles_look_at = now + WINDOW_S
            for single in self._singles:
                shares.ready_at(single.time, now)
        looks, single_first = len(waiting), self._single_first
        self._single_first = not single_first
        self._in_slices = True
        while True:
            single_at, place = math.inf, _NOWHERE
            if single_first or not looks:
                single_at, place = self._next_single(now, defers=waits_for_others)
            connection: _Waits
            if single_at <= now:
                connection = self._singles.take(place)
                self._single_deferred_since = None
            elif looks:
                looks -= 1
                found = self._look_at_next(now, defers=defers)
                if found is None:
                    continue
                connection = found
            else:
                break
            single_first = False
            self._size -= 1
            if not is_counted and connection.time.may_wait:
                self._count_spared(now)
                is_counted = True
            connection.turn()
            began, now = now, self.clock()
            begin, used = used, self.processor_time()
            shares.used(connection.time, used - begin, now - began, now)
            self._last_slice = now
            if used >= end or self._slice_ended:
                break
        self._in_slices = False
        if waits_for_others and self._deferred:
            self._lets_others(now)
        self._contended_until = now + _OTHERS_S
        self._schedule(now)

    def _end_waits(self, now: float, *, waits_for_others: bool) -> bool:
        """Have go on what waited for its pace or for others long enough; whether who is limited defers to these."""
        waiting, limited = self._waiting, self._limited
        while limited and limited[0][0] <= now:
            waiting.append(heappop(limited)[2])
        held = self._held
        if held and not waits_for_others:
            held.popleft().turn()
        while held and now - held[0].since >= HELD_S_MAX:
            held.popleft().turn()
        defers = waits_for_others or self._threads > 0
        if self._deferred and now - self._deferred_since >= DEFER_S_MAX:
            defers = False
        if not defers:
            waiting.extend(self._deferred)
            self._deferred.clear()
        return defers

    def _look_at_next(self, now: float, *, defers: bool) -> _Waits | None:
        """The next of those that wait, if it may go on; else it's put where it waits for that."""
        first = self._waiting.popleft()
        if isinstance(first, _Group):
            at, ready = self._look_at_group(first, now)
            connection = first.queue[at]
        else:
            connection = first
            if first.time.may_wait:  # by now
                self._add_greedy(first)
                return None
            ready = self._shares.ready_at(first.time, now)
        if ready > now:
            if not isinstance(first, _Group):  # a new window has just limited it
                self._add_greedy(first)
            else:
                self._number += 1
                heappush(self._limited, (ready, self._number, first))
            return None
        if defers and connection.time.may_wait:
            if not self._deferred:
                self._deferred_since = now
            self._deferred.append(first)
            return None
        if isinstance(first, _Group):
            del first.queue[at]
            if first.queue:
                self._waiting.append(first)
            else:
                del self._groups[first.among]
        return connection

    def _look_at_group(self, group: _Group, now: float) -> tuple[int, float]:
        """Which of the first of a group may go on first, and when."""
        earliest, found = math.inf, 0
        for at, one in enumerate(islice(group.queue, LOOKS_MAX)):
            ready = self._shares.ready_at(one.time, now)
            if ready < earliest:
                earliest, found = ready, at
                if ready <= now:
                    break
        return found, earliest


class _Group:
    """Connections that are counted together, and may have to wait for their pace, in the order in which they came.

    A thousand may wait for one pace, which the first that goes on uses up: looking at all of them each time would
    take longer than what they wait for.
    """

    __slots__ = ("among", "queue")

    def __init__(self, among: object) -> None:
        self.among = among
        #: Not empty while it waits.
        self.queue: deque[_Waits] = deque()


def _each(waiting: Iterable[_Waits | _Group]) -> Iterator[_Waits]:
    for one in waiting:
        if isinstance(one, _Group):
            yield from one.queue
        else:
            yield one


class _Portion:
    """The next portion of a handler's work, while it waits for its turn."""

    __slots__ = ("_go_on", "_turns", "since", "time")

    awaits_log = False
    is_greedy = True

    def __init__(self, member: TimeMember, turns: Turns) -> None:
        self.time = member
        self.since = turns.clock()
        self._turns = turns
        self._go_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def turn(self) -> None:
        if not self._go_on.done():  # not cancelled
            self._go_on.set_result(None)
            self._turns.end_slice()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._go_on.__await__()


@coroutine
def metered(work: Coroutine[Any, Any, T], member: TimeMember, turns: Turns) -> Generator[Any, Any, T]:
    """Run ``work`` at the cost of ``member``; where it lets others go first, it waits for a turn if somebody does."""

    def step(go_on: Callable[[Any], Any], value: Any) -> Any:
        began, begin = turns.clock(), turns.processor_time()
        try:
            return go_on(value)
        finally:
            del value  # of an error, whose frames lead here from Python 3.12 on
            turns.used_slice(member, began, begin)

    _payer.set(member)
    if turns.holds(member):
        try:
            yield from turns.hold(member).__await__()
        except BaseException:
            work.close()
            raise
    try:
        waits = step(work.send, None)
        while True:
            try:
                yield waits
                if waits is None and turns.makes_wait(member):  # a checkpoint: it could go on at once
                    yield from turns._wait(member).__await__()
                elif waits is not None and turns.holds(member):
                    yield from turns.hold(member).__await__()
            except BaseException as raised:  # noqa: BLE001 - it is raised where work waits
                waits = step(work.throw, raised)
            else:
                waits = step(work.send, None)
    except StopIteration as end:
        result: T = end.value
        return result
