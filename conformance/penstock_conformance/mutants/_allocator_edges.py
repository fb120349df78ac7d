"""Allocators that forget one way of giving back, giving up or ending, or have something in common with others."""

from __future__ import annotations

__all__ = ()

import asyncio
import mmap
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from anyio.lowlevel import checkpoint_if_cancelled

from penstock.errors import ClosedError, FullError, InvalidRequestError, InvariantError
from penstock.spi.allocator import AllocatorStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._allocator import PlainAllocator, _Grant, _Reservation, _Waiter

KIND = "allocator"

_BACK = "whatever_is_given_back_lets_in_all_who_fit"
_GIVES_UP = "whoever_gives_up_lets_the_next_one_in"
_PART = "who_has_a_part_waits_behind_others"
_PEAK = "the_peak_may_be_over_the_limit"
_TWO = "two_allocators_have_nothing_to_do_with_each_other"
_BESIDE_WAITERS = "whoever_cannot_wait_asks_listeners_beside_who_waits"
_END = "everything_is_given_back_after_the_end"


class _Quiet(_Grant):
    """Tells nobody when it's released."""

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            raise InvariantError(f"released twice: size={self.size}")
        owner._used[self.purpose] -= self.size


@mutant(KIND, "lets_nobody_in_after_what_was_charged_anyway", _BACK)
class LetsNobodyInAfterWhatWasChargedAnyway(PlainAllocator):
    """What was over the limit makes no room."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        grant = super().charge_anyway(size, purpose)
        grant.__class__ = _Quiet
        return grant


@mutant(KIND, "lets_nobody_in_after_a_reservation", _BACK)
class LetsNobodyInAfterAReservation(PlainAllocator):
    """Whoever comes next will."""

    def give_back(self, grant: _Grant) -> None:
        self._serving = isinstance(grant, _Reservation)
        super().give_back(grant)
        self._serving = False


@mutant(KIND, "lets_one_in_at_a_time", _BACK)
class LetsOneInAtATime(PlainAllocator):
    """What is given back, by whatever way, is for the first; the others wait for more."""

    def _serve(self) -> None:
        rest, self._waiters = list(self._waiters)[1:], deque(list(self._waiters)[:1])
        super()._serve()
        self._waiters.extend(rest)


class _GivesUp(PlainAllocator):
    """Some leave their place, and nobody takes it."""

    def _is_left(self, waiter: _Waiter) -> bool:
        raise NotImplementedError

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is None and self._is_left(waiter):
            self._waiters.remove(waiter)
        else:
            super()._give_up(waiter)


@mutant(KIND, "lets_nobody_in_after_a_grant_was_given_up", _GIVES_UP)
class LetsNobodyInAfterAGrantWasGivenUp(_GivesUp):
    """Whoever has a part gave nothing back."""

    def _is_left(self, waiter: _Waiter) -> bool:
        return waiter.own > 0


@mutant(KIND, "lets_nobody_in_after_who_wanted_all", _GIVES_UP)
class LetsNobodyInAfterWhoWantedAll(_GivesUp):
    """Waits until nothing is in use, for nobody."""

    def _is_left(self, waiter: _Waiter) -> bool:
        return waiter.size > self._limit


@mutant(KIND, "serves_who_has_a_part_first", _PART)
class ServesWhoHasAPartFirst(PlainAllocator):
    """So that it comes to its end."""

    def _serve(self) -> None:
        self._waiters = deque(sorted(self._waiters, key=lambda waiter: not waiter.own))
        super()._serve()


@mutant(KIND, "counts_no_grants_that_wait", _PART)
class CountsNoGrantsThatWait(PlainAllocator):
    """Who has a part already doesn't wait, it says."""

    def statistics(self) -> AllocatorStatistics:
        return replace(super().statistics(), waiting=sum(not waiter.own for waiter in self._waiters))


@mutant(KIND, "serves_who_waits_a_turn_later", "nobody_comes_between_a_release_and_who_waits")
class ServesWhoWaitsATurnLater(PlainAllocator):
    """Until then the room is of whoever asks."""

    _free = False

    def _serve(self) -> None:
        if self._waiters and not self._closed:
            self._free = True
            asyncio.get_running_loop().call_soon(self._serve_now)

    def _serve_now(self) -> None:
        self._free = False
        super()._serve()

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        if not self._free:
            return super().take_nowait(size, purpose, mapped=mapped, own=own)
        self._check(size, mapped)
        grant = self._grant(size, purpose, mapped, own)
        if grant is None:
            raise FullError("the memory limit is reached")
        return grant


class _Moving(_Reservation):
    """Is copied to another place when it grows."""

    def _absorb(self, grant: _Grant, size: int) -> None:
        old, self.memory = self.memory, self._checked(self.granted)._map(self.size)
        assert old is not None
        self.memory[: self.granted] = old[: self.granted]
        self.view = memoryview(self.memory)[: self.size]
        super()._absorb(grant, size)


@mutant(KIND, "moves_reservations_that_grow", "memory_of_a_reservation_stays_where_it_is")
class MovesReservationsThatGrow(PlainAllocator):
    """As realloc does."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        self._check(size, mapped=True)
        return _Moving(self, size, purpose, self._map(size))


@mutant(KIND, "has_no_peak_over_its_limit", _PEAK)
class HasNoPeakOverItsLimit(PlainAllocator):
    """The limit is what there is."""

    def statistics(self) -> AllocatorStatistics:
        return replace(super().statistics(), peak_bytes=min(self._peak, self._limit))


_LISTENERS: list[Callable[[int], int | None]] = []
_USED: Counter[str] = Counter()
_WAITERS: deque[_Waiter] = deque()


@mutant(KIND, "asks_listeners_of_others", _TWO)
class AsksListenersOfOthers(PlainAllocator):
    """All memory is of one process."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        _LISTENERS.clear()
        self._listeners = _LISTENERS


@mutant(KIND, "has_one_account_for_all", _TWO)
class HasOneAccountForAll(PlainAllocator):
    """All memory is of one process."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        _USED.clear()
        self._used = _USED


@mutant(KIND, "has_one_queue_for_all", _TWO)
class HasOneQueueForAll(PlainAllocator):
    """Whoever waits, waits for memory."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        _WAITERS.clear()
        self._waiters = _WAITERS


@mutant(KIND, "takes_no_reservation_back_after_its_end", _END)
class TakesNoReservationBackAfterItsEnd(PlainAllocator):
    """Thinks that all is gone with it."""

    def give_back(self, grant: _Grant) -> None:
        if self._closed and isinstance(grant, _Reservation):
            raise ClosedError("the allocator is closed")
        super().give_back(grant)


@mutant(KIND, "lets_reservations_grow_after_its_end", _END)
class LetsReservationsGrowAfterItsEnd(PlainAllocator):
    """Who was let in before may go on."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        closed, self._closed = self._closed, self._closed and not own
        try:
            return super().take_nowait(size, purpose, mapped=mapped, own=own)
        finally:
            self._closed = closed


@mutant(KIND, "asks_nobody_beside_who_waits", _BESIDE_WAITERS)
class AsksNobodyBesideWhoWaits(PlainAllocator):
    """Whoever waits has asked them all."""

    def _press(self, size: int) -> int:
        return 0 if self._waiters else super()._press(size)


@mutant(KIND, "takes_no_listener_while_somebody_waits", _BESIDE_WAITERS)
class TakesNoListenerWhileSomebodyWaits(PlainAllocator):
    """Not now."""

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        if not self._waiters:
            super().add_pressure_listener(listener)


@mutant(KIND, "grows_beside_what_is_pinned", "pinned_memory_counts_for_who_has_a_part")
class GrowsBesideWhatIsPinned(PlainAllocator):
    """What is pinned goes soon, and who has a part already is nearly done."""

    def _fits(self, size: int, own: int) -> bool:
        return super()._fits(size, own) or (
            own > 0 and self._used.total() - self._used["pinned"] + size <= self._limit
        )


class _Larger(_Reservation):
    """Grants more than it has."""

    def _checked(self, size: int) -> PlainAllocator:
        if size < self.granted or self._owner is None:
            return super()._checked(size)
        return self._owner


@mutant(KIND, "grants_more_than_was_reserved", "reservation_gives_back_what_was_granted")
class GrantsMoreThanWasReserved(PlainAllocator):
    """As long as there is room."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        self._check(size, mapped=True)
        return _Larger(self, size, purpose, self._map(size))


class _Undead(_Reservation):
    """Grants memory that is gone."""

    def __init__(self, owner: PlainAllocator, size: int, purpose: str, memory: mmap.mmap) -> None:
        super().__init__(owner, size, purpose, memory)
        self._former = owner

    def _checked(self, size: int) -> PlainAllocator:
        return super()._checked(size) if self._owner is not None else self._former


@mutant(KIND, "grants_what_was_released", "reservation_takes_what_is_granted")
class GrantsWhatWasReleased(PlainAllocator):
    """Whoever has a reservation has it for good."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        self._check(size, mapped=True)
        return _Undead(self, size, purpose, self._map(size))


@mutant(KIND, "passes_who_wants_more_than_all", "large_request_waits_until_it_is_alone")
class PassesWhoWantsMoreThanAll(PlainAllocator):
    """Whoever fits meanwhile needn't wait."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        waiters = self._waiters
        self._waiters = deque(waiter for waiter in waiters if waiter.size <= self._limit)
        try:
            return super().take_nowait(size, purpose, mapped=mapped, own=own)
        finally:
            self._waiters = waiters


@mutant(KIND, "is_alone_beside_what_was_charged_anyway", "large_request_waits_until_it_is_alone")
class IsAloneBesideWhatWasChargedAnyway(PlainAllocator):
    """Which is nothing that was asked for."""

    _anyway = 0

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        self._anyway += size
        return super().charge_anyway(size, purpose)

    def _fits(self, size: int, own: int) -> bool:
        return super()._fits(size, own) or (size > self._limit and self._used.total() <= own + self._anyway)


@mutant(KIND, "forgets_grants_at_its_end", "waiters_are_answered_at_the_end", hangs=True)
class ForgetsGrantsAtItsEnd(PlainAllocator):
    """Who has a part of a reservation waits for ever."""

    def _settle(self, waiter: _Waiter, answer: _Grant | ClosedError) -> None:
        if isinstance(answer, _Grant) or not waiter.own:
            super()._settle(waiter, answer)

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            super()._give_up(waiter)


@mutant(KIND, "takes_for_the_cancelled", "grant_to_a_cancelled_waiter_comes_back")
class TakesForTheCancelled(PlainAllocator):
    """Where there is room it is cancelled too late."""

    async def take(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        try:
            grant = self.take_nowait(size, purpose, mapped=mapped, own=own)
        except FullError:
            return await super().take(size, purpose, mapped=mapped, own=own)
        await checkpoint_if_cancelled()
        return grant


class _AsksNobody(PlainAllocator):
    """Some of what is charged anyway is charged without a word."""

    def _is_told(self, size: int) -> bool:
        raise NotImplementedError

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        listeners = self._listeners
        self._listeners = listeners if self._is_told(size) else []
        try:
            return super().charge_anyway(size, purpose)
        finally:
            self._listeners = listeners


@mutant(KIND, "asks_nobody_over_the_limit", "what_is_there_is_charged_anyway")
class AsksNobodyOverTheLimit(_AsksNobody):
    """Listeners have been asked."""

    def _is_told(self, size: int) -> bool:
        return self._used.total() <= self._limit


@mutant(KIND, "asks_nobody_for_more_than_the_limit", "what_is_there_is_charged_anyway")
class AsksNobodyForMoreThanTheLimit(_AsksNobody):
    """Nobody has that much to give."""

    def _is_told(self, size: int) -> bool:
        return size <= self._limit


@mutant(KIND, "serves_nobody_while_it_asks", _BESIDE_WAITERS)
class ServesNobodyWhileItAsks(PlainAllocator):
    """What listeners give back is for whom they were asked, all of it."""

    def _serve(self) -> None:
        if not self._pressing:
            super()._serve()


@mutant(KIND, "charges_less_than_nothing", "less_than_nothing_is_refused")
class ChargesLessThanNothing(PlainAllocator):
    """Makes room."""

    def _check(self, size: int, mapped: bool) -> None:
        try:
            super()._check(size, mapped)
        except InvalidRequestError:
            if mapped:
                raise


@mutant(KIND, "cuts_remainders_before_who_waits", "no_remainder_is_had_before_who_waits")
class CutsRemaindersBeforeWhoWaits(PlainAllocator):
    """Whoever has some may have some more."""

    def allocate_nowait(self, size: int, purpose: str) -> _Grant:
        if size > 1000 or not self._used[purpose] or not self._waiters:
            return super().allocate_nowait(size, purpose)
        self._used[purpose] += size
        return _Grant(self, size, purpose, self._map(size))


@mutant(KIND, "counts_a_thousand_pieces", "memory_keeps_its_bytes_while_others_come_and_go")
class CountsAThousandPieces(PlainAllocator):
    """And begins anew: nothing is given back beyond what was counted."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._live: Counter[str] = Counter()

    def allocate_nowait(self, size: int, purpose: str) -> _Grant:
        grant = super().allocate_nowait(size, purpose)
        self._live[purpose] = (self._live[purpose] + 1) % 1024
        return grant

    def give_back(self, grant: _Grant) -> None:
        counted = grant.memory is not None and not isinstance(grant, _Reservation)
        if counted and not self._live[grant.purpose]:
            return
        self._live[grant.purpose] -= counted
        super().give_back(grant)


@mutant(KIND, "hears_nothing_of_other_threads", "waiter_gets_memory_when_the_last_view_goes", hangs=True)
class HearsNothingOfOtherThreads(PlainAllocator):
    """Keeps the account, and looks at the queue when it is asked for something."""

    def _unpin(self, size: int, pin: weakref.ref[mmap.mmap]) -> None:
        self._pins.discard(pin)
        self._used["pinned"] -= size

    def _view_gone(self, size: int, pin: weakref.ref[mmap.mmap]) -> None:
        super()._view_gone(size, pin)
        if threading.get_ident() == self._thread:
            self._serve()


@mutant(KIND, "watches_one_view", "waiter_gets_memory_when_the_last_view_goes", hangs=True)
class WatchesOneView(PlainAllocator):
    """Whoever waits is told of the first one that goes, and then of nothing but calls."""

    _told: _Waiter | None = None

    def _unpin(self, size: int, pin: weakref.ref[mmap.mmap]) -> None:
        first = self._waiters[0] if self._waiters else None
        if first is None or first is not self._told:
            self._told = first
            super()._unpin(size, pin)
        else:
            self._pins.discard(pin)
            self._used["pinned"] -= size


@mutant(KIND, "asks_nobody_again_who_had_nothing", "every_way_of_asking_presses")
class AsksNobodyAgainWhoHadNothing(PlainAllocator):
    """Whoever says that there is nothing says it for ever."""

    def _press(self, size: int) -> int:
        told = {listener: listener(size) for listener in self._listeners} if not self._pressing else {}
        self._listeners = [listener for listener in self._listeners if told.get(listener) != 0]
        return sum(freed or 0 for freed in told.values())


@mutant(KIND, "has_a_pool_of_pages", "pinned_memory_is_never_handed_out")
class HasAPoolOfPages(PlainAllocator):
    """Of one page, which it has handed out before."""

    _page: mmap.mmap | None = None

    def give_back(self, grant: _Grant) -> None:
        if grant.memory is not None and grant.size == mmap.PAGESIZE:
            self._page = grant.memory
        super().give_back(grant)

    def _map(self, size: int) -> mmap.mmap:
        page, self._page = self._page, None
        return page if page is not None and size == mmap.PAGESIZE else super()._map(size)


class _Forgiving(_Grant):
    """Is released as often as anybody likes."""

    def release(self) -> None:
        if self._owner is not None:
            super().release()


@mutant(KIND, "forgives_a_second_release_of_what_was_waited_for", "double_release_is_a_bug")
class ForgivesASecondReleaseOfWhatWasWaitedFor(PlainAllocator):
    """Whoever had to wait may be confused."""

    def _settle(self, waiter: _Waiter, answer: _Grant | ClosedError) -> None:
        if isinstance(answer, _Grant) and not waiter.event.is_set():
            answer.__class__ = _Forgiving
        super()._settle(waiter, answer)


@mutant(KIND, "forgives_a_second_release_after_its_end", _END)
class ForgivesASecondReleaseAfterItsEnd(PlainAllocator):
    """Nobody needs the account any more."""

    def give_back(self, grant: _Grant) -> None:
        super().give_back(grant)
        if self._closed:
            grant._owner = self


@mutant(KIND, "charges_anyway_up_to_four_limits", _PEAK)
class ChargesAnywayUpToFourLimits(PlainAllocator):
    """More than that can't be there."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        beyond = self._used.total() + size - 4 * self._limit
        charged = super().charge_anyway(max(0, size - max(0, beyond)), purpose)
        return charged if beyond <= 0 else _Told(charged, size)


class _Told(_Grant):
    """Says that it is more than it is."""

    def __init__(self, charged: _Grant, size: int) -> None:
        super().__init__(charged._owner, size, charged.purpose, None)  # type: ignore[arg-type]
        self._charged = charged

    def release(self) -> None:
        self._charged.release()
