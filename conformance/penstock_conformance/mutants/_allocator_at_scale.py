"""Allocators that are right for short queues, patient requests, and without listeners."""

from __future__ import annotations

__all__ = ()

import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from penstock.errors import FullError
from penstock.spi.allocator import AllocatorStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._allocator import PlainAllocator, _Grant, _Reservation, _Waiter

KIND = "allocator"

_ORDER = "small_requests_pass_no_large_one"
_QUEUE = "long_queue_is_served_in_order"
_GIVE_UP = "many_who_give_up_leave_nothing"
_LISTENER = "account_is_right_with_a_listener"
_ASKED = "listeners_are_asked_as_long_as_they_free"
_BITS = "account_counts_beyond_32_bits"


@mutant(KIND, "lets_small_ones_pass", _ORDER)
class LetsSmallOnesPass(PlainAllocator):
    """Serves whoever fits, if the first doesn't."""

    def _serve(self) -> None:
        super()._serve()
        for waiter in list(self._waiters)[1:]:
            grant = self._grant(waiter.size, waiter.purpose, waiter.mapped, waiter.own)
            if grant is not None:
                self._waiters.remove(waiter)
                self._settle(waiter, grant)


@mutant(KIND, "lets_small_ones_in_at_once", _ORDER)
class LetsSmallOnesInAtOnce(PlainAllocator):
    """A few bytes more aren't worth a queue."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        if size < 100 and (grant := self._grant(size, purpose, mapped, own)) is not None:
            return grant
        return super().take_nowait(size, purpose, mapped=mapped, own=own)


@mutant(KIND, "fills_gaps_from_the_end", _QUEUE)
class FillsGapsFromTheEnd(PlainAllocator):
    """Who gives up is replaced by the last of the queue."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is None and len(self._waiters) > 8:
            self._waiters[self._waiters.index(waiter)] = self._waiters.pop()
        else:
            super()._give_up(waiter)


@mutant(KIND, "serves_long_queues_by_size", _QUEUE)
class ServesLongQueuesBySize(PlainAllocator):
    """Beyond sixteen it takes those first that fit best."""

    def _serve(self) -> None:
        if len(self._waiters) > 16 and self._used.total() < self._limit:
            ordered = sorted(self._waiters, key=lambda waiter: waiter.size)
            self._waiters.clear()
            self._waiters.extend(ordered)
        super()._serve()


@mutant(KIND, "counts_who_gave_up", _QUEUE)
class CountsWhoGaveUp(PlainAllocator):
    """Counts everybody who ever waited as waiting, a little."""

    _gone = 0

    def _give_up(self, waiter: _Waiter) -> None:
        super()._give_up(waiter)
        self._gone += 1

    def statistics(self) -> AllocatorStatistics:
        found = super().statistics()
        return AllocatorStatistics(
            limit_bytes=found.limit_bytes,
            used_bytes=found.used_bytes,
            used_by_purpose=found.used_by_purpose,
            waiting=found.waiting + self._gone // 10,
            peak_bytes=found.peak_bytes,
        )


@mutant(KIND, "loses_every_tenth_that_gives_up", _GIVE_UP)
class LosesEveryTenthThatGivesUp(PlainAllocator):
    """Sometimes what was granted to who is gone is gone, too."""

    _given_up = 0

    def _give_up(self, waiter: _Waiter) -> None:
        self._given_up += isinstance(waiter.answer, _Grant)
        if isinstance(waiter.answer, _Grant) and self._given_up % 10 == 0:
            return
        super()._give_up(waiter)


@mutant(KIND, "gives_back_what_was_never_granted", _GIVE_UP)
class GivesBackWhatWasNeverGranted(PlainAllocator):
    """Who gives up a large request gives back a part of it, granted or not."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is None and waiter.size > 800_000:
            self._used["upload"] -= 1
        super()._give_up(waiter)


@mutant(KIND, "grants_past_the_queue", "grants_keep_to_the_queue")
class GrantsPastTheQueue(PlainAllocator):
    """A reservation that has begun goes on before others."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        if own and (grant := self._grant(size, purpose, mapped, own)) is not None:
            return grant
        return super().take_nowait(size, purpose, mapped=mapped, own=own)


@mutant(KIND, "undercounts_with_a_listener", _LISTENER)
class UndercountsWithAListener(PlainAllocator):
    """What a listener made room for is taken from what the listener had, and isn't counted."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        pressed = not self._fits(size, own)
        grant = super()._grant(size, purpose, mapped, own)
        if grant is not None and pressed:
            self._used[purpose] -= size // 2
        return grant


@mutant(KIND, "charges_the_listener", _LISTENER)
class ChargesTheListener(PlainAllocator):
    """Room that was made is charged to who made it."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        return super()._grant(size, purpose if self._fits(size, own) else "block_cache", mapped, own)


@mutant(KIND, "forgets_what_was_there_with_a_listener", _LISTENER)
class ForgetsWhatWasThereWithAListener(PlainAllocator):
    """What must be charged anyway isn't, once a listener made room for it."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        pressed = self._used.total() + size > self._limit
        grant = super().charge_anyway(size, purpose)
        if pressed and self._used.total() <= self._limit:
            self._used[purpose] -= size
        return grant


@mutant(KIND, "asks_once", _ASKED)
class AsksOnce(PlainAllocator):
    """Asks each listener once, and gives up."""

    def _press(self, size: int) -> int:
        super()._press(size)
        return 0


@mutant(KIND, "asks_the_first_listener", _ASKED)
class AsksTheFirstListener(PlainAllocator):
    """Has one cache in mind."""

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        if not self._listeners:
            super().add_pressure_listener(listener)


@mutant(KIND, "asks_in_vain", _ASKED)
class AsksInVain(PlainAllocator):
    """Asks those who have nothing a hundred times more."""

    def _press(self, size: int) -> int:
        freed = super()._press(size)
        for _ in range(0 if freed else 100):
            super()._press(size)
        return freed


@mutant(KIND, "forgives_debts", "debt_is_made_up_before_anybody")
class ForgivesDebts(PlainAllocator):
    """What is over the limit doesn't count for others."""

    _debt = 0

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        grant = super().charge_anyway(size, purpose)
        self._debt = max(self._debt, self._used.total() - self._limit)
        return grant

    def _fits(self, size: int, own: int) -> bool:
        return super()._fits(size - self._debt, own)


@mutant(KIND, "says_what_is_in_use", "peak_is_the_most_that_was_in_use")
class SaysWhatIsInUse(PlainAllocator):
    """Tells what is in use now as the peak."""

    def statistics(self) -> AllocatorStatistics:
        self._peak = self._used.total()
        return super().statistics()


@mutant(KIND, "has_no_peak_above_the_limit", "peak_is_the_most_that_was_in_use")
class HasNoPeakAboveTheLimit(PlainAllocator):
    """What is charged anyway is no peak."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        peak = self._peak
        grant = super().charge_anyway(size, purpose)
        self._peak = peak
        return grant


@mutant(KIND, "hands_out_memory_twice", "memory_keeps_its_bytes_while_others_come_and_go")
class HandsOutMemoryTwice(PlainAllocator):
    """After a while two get the same."""

    _count = 0
    _last: mmap.mmap | None = None

    def _map(self, size: int) -> mmap.mmap:
        self._count += 1
        if self._count % 100 == 0 and self._last is not None and len(self._last) >= size:
            return self._last
        made = super()._map(size)
        if self._last is None or size > len(self._last) or self._count % 10 == 0:
            self._last = made
        return made


@mutant(KIND, "pins_what_was_announced", "pinned_reservation_is_never_handed_out")
class PinsWhatWasAnnounced(PlainAllocator):
    """A reservation that is pinned counts with all of its size."""

    def give_back(self, grant: _Grant) -> None:
        if isinstance(grant, _Reservation):
            self._used[grant.purpose] += grant.size - grant.accounted
            grant.accounted = grant.size
        super().give_back(grant)


@mutant(KIND, "forgets_pinned_reservations", "pinned_reservation_is_never_handed_out")
class ForgetsPinnedReservations(PlainAllocator):
    """Looks whether allocations are still read, and not at reservations."""

    def give_back(self, grant: _Grant) -> None:
        if isinstance(grant, _Reservation):
            grant.memory = None
        super().give_back(grant)


@mutant(KIND, "keeps_released_memory", "released_memory_goes_back_to_the_system")
class KeepsReleasedMemory(PlainAllocator):
    """Has it on the account as free, and in the process for ever."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._kept: list[mmap.mmap] = []

    def give_back(self, grant: _Grant) -> None:
        memory = grant.memory
        grant.memory = None
        if memory is not None:
            self._kept.append(memory)
        super().give_back(grant)


@mutant(KIND, "takes_its_memory_along", "what_is_held_outlives_the_end")
class TakesItsMemoryAlong(PlainAllocator):
    """Wipes everything when it ends, whoever has it."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._made: list[mmap.mmap] = []

    def _map(self, size: int) -> mmap.mmap:
        made = super()._map(size)
        self._made.append(made)
        return made

    def close(self) -> None:
        super().close()
        for memory in self._made:
            memory[:] = bytes(len(memory))


@mutant(KIND, "serves_forty", "many_tasks_are_all_served", hangs=True)
class ServesForty(PlainAllocator):
    """Loses those who come when forty wait."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._waiters or waiter.answer is not None:
            super()._give_up(waiter)

    def _serve(self) -> None:
        while len(self._waiters) > 40:
            self._waiters.pop()
        super()._serve()


_OPENED: list[Any] = []


@mutant(KIND, "keeps_every_opener", "opening_leaves_nothing_behind")
class KeepsEveryOpener(PlainAllocator):
    """Is in a list of all allocators that there ever were."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        _OPENED.append(self)


@mutant(KIND, "asks_eight_listeners", "dozens_of_listeners_are_all_asked")
class AsksEightListeners(PlainAllocator):
    """Has a table of a fixed size."""

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        if len(self._listeners) < 8:
            super().add_pressure_listener(listener)


@mutant(KIND, "forgets_those_behind_who_gave_up", "who_gives_up_lets_the_next_ones_in")
class ForgetsThoseBehindWhoGaveUp(PlainAllocator):
    """Looks at the queue only when memory is released."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is None:
            self._waiters.remove(waiter)
        else:
            super()._give_up(waiter)


@mutant(KIND, "counts_in_32_bits", _BITS)
class CountsIn32Bits(PlainAllocator):
    """Has a field of four bytes for a size."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        return super().charge_anyway(size & 0xFFFFFFFF, purpose)


@mutant(KIND, "counts_in_31_bits", _BITS)
class CountsIn31Bits(PlainAllocator):
    """Takes a large size for a negative one, and that for none."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        return super().take_nowait(size if size < 2**31 else 0, purpose, mapped=mapped, own=own)


@mutant(KIND, "cuts_purposes", _BITS)
class CutsPurposes(PlainAllocator):
    """Has a column of a fixed width for the name of a purpose."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        return replace(told, used_by_purpose={name[:64]: size for name, size in told.used_by_purpose.items()})


@mutant(KIND, "hands_large_memory_out_read_only", "large_memory_is_like_any_other")
class HandsLargeMemoryOutReadOnly(PlainAllocator):
    """Maps megabytes in another way than less."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        grant = super().take_nowait(size, purpose, mapped=mapped, own=own)
        if mapped and size > 3 * 2**20:
            grant.view = grant.view.toreadonly()
        return grant


@mutant(KIND, "pins_no_large_memory", "large_memory_is_like_any_other")
class PinsNoLargeMemory(PlainAllocator):
    """Of megabytes it is told when they are released, and doesn't look whether somebody reads them."""

    def give_back(self, grant: _Grant) -> None:
        if grant.memory is not None and not isinstance(grant, _Reservation) and grant.size > 3 * 2**20:
            grant.memory = None
        super().give_back(grant)


@mutant(KIND, "knows_no_case", _BITS)
class KnowsNoCase(PlainAllocator):
    """Keeps purposes as an environment keeps its names."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        used: dict[str, int] = {}
        for name, size in told.used_by_purpose.items():
            used[name.lower()] = used.get(name.lower(), 0) + size
        return replace(told, used_by_purpose=used)


@mutant(KIND, "has_places_for_64_listeners", "dozens_of_listeners_are_all_asked")
class HasPlacesFor64Listeners(PlainAllocator):
    """Calls as many as there are bits in a word."""

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        if len(self._listeners) < 64:
            super().add_pressure_listener(listener)


@mutant(KIND, "asks_eight_times", _ASKED)
class AsksEightTimes(PlainAllocator):
    """Takes listeners that gave bit by bit for such as have nothing."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        for _ in range(8):
            if not self._fits(size, own) and not self._press(size):
                break
        return super()._grant(size, purpose, mapped, own) if self._fits(size, own) else None


@mutant(KIND, "asks_nobody_to_grow", "listener_makes_room")
class AsksNobodyToGrow(PlainAllocator):
    """Presses listeners for those who have nothing yet."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        return None if own and not self._fits(size, own) else super()._grant(size, purpose, mapped, own)


@mutant(KIND, "overlooks_a_lone_next_one", "who_gives_up_lets_the_next_ones_in")
class OverlooksALoneNextOne(PlainAllocator):
    """Looks for others behind who gave up, and counts one too few."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is None and len(self._waiters) == 2:
            self._waiters.remove(waiter)
        else:
            super()._give_up(waiter)


@mutant(KIND, "has_no_addresses_beyond_many_limits", "reservations_take_nothing_at_first")
class HasNoAddressesBeyondManyLimits(PlainAllocator):
    """Nobody will ever be granted that."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        if size > 4 * self._limit:
            raise FullError(f"the reservation is larger than any request: size={size}")
        return super().reserve(size, purpose)


@mutant(KIND, "clears_what_is_reserved", "reservations_take_nothing_at_first")
class ClearsWhatIsReserved(PlainAllocator):
    """So that nobody meets what another has left."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        item = super().reserve(size, purpose)
        if size <= 4 * 2**20:
            item.view[:] = bytes(size)
        return item


@mutant(KIND, "counts_what_is_pinned_twice", "peak_is_the_most_that_was_in_use")
class CountsWhatIsPinnedTwice(PlainAllocator):
    """Adds what is pinned before it takes it from its purpose, and looks at the peak in between."""

    def give_back(self, grant: _Grant) -> None:
        if grant.memory is not None:
            self._peak = max(self._peak, self._used.total() + grant.size)
        super().give_back(grant)


@mutant(KIND, "knows_of_128_who_wait", _QUEUE)
class KnowsOf128WhoWait(PlainAllocator):
    """Statistics have room for no more."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        return replace(told, waiting=min(told.waiting, 128))


@mutant(KIND, "takes_a_single_byte_for_nothing", _ASKED)
class TakesASingleByteForNothing(PlainAllocator):
    """Asks no more when listeners let go of one byte."""

    def _press(self, size: int) -> int:
        freed = super()._press(size)
        return freed if freed > 1 else 0
