"""Allocators that forget one way of giving back, giving up or ending, or have something in common with others."""

from __future__ import annotations

__all__ = ()

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from penstock.errors import ClosedError, FullError, InvariantError
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
