"""Allocators that are wrong about large and small memory, many purposes, who waits, and other ways of asking."""

from __future__ import annotations

__all__ = ()

import asyncio
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from penstock.errors import FullError
from penstock.spi.allocator import AllocatorCapabilities, AllocatorStatistics
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._allocator import PlainAllocator, _Grant, _Reservation, _Waiter

KIND = "allocator"

_MODEL = "random_histories_agree_with_a_model"
_PRESSES = "every_way_of_asking_presses"
_ALONE = "large_request_waits_until_it_is_alone"
_END = "nothing_is_had_after_the_end"
_GROWTH = "long_use_grows_nothing"
_MIB = 2**20


@mutant(KIND, "counts_large_memory_in_mebibytes", _MODEL)
class CountsLargeMemoryInMebibytes(PlainAllocator):
    """What is beyond whole mebibytes of an allocation isn't on the account."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        grant = super()._grant(size, purpose, mapped, own)
        if grant is not None and mapped and size > _MIB:
            self._used[purpose] -= size % _MIB
        return grant

    def give_back(self, grant: _Grant) -> None:
        if grant.memory is not None and not isinstance(grant, _Reservation) and grant.size > _MIB:
            self._used[grant.purpose] += grant.size % _MIB
        super().give_back(grant)


@mutant(KIND, "knows_8_purposes", _MODEL)
class Knows8Purposes(PlainAllocator):
    """All others are one, when somebody looks."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        some = dict(list(told.used_by_purpose.items())[:8])
        rest = told.used_bytes - sum(some.values())
        return AllocatorStatistics(
            limit_bytes=told.limit_bytes,
            used_bytes=told.used_bytes,
            used_by_purpose=some | {"others": rest},
            waiting=told.waiting,
            peak_bytes=told.peak_bytes,
        )


@mutant(KIND, "uses_small_memory_again_at_once", _MODEL)
class UsesSmallMemoryAgainAtOnce(PlainAllocator):
    """A view of a few bytes doesn't count."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._free: dict[int, list[mmap.mmap]] = {}

    def _map(self, size: int) -> mmap.mmap:
        free = self._free.get(size)
        return free.pop() if free else super()._map(size)

    def give_back(self, grant: _Grant) -> None:
        if grant.memory is not None and grant.size < 8192 and not isinstance(grant, _Reservation):
            self._free.setdefault(grant.size, []).append(grant.memory)
        super().give_back(grant)


@mutant(KIND, "gives_pinned_memory_back_when_it_is_small", _MODEL)
class GivesPinnedMemoryBackWhenItIsSmall(PlainAllocator):
    """Thinks that a small view isn't worth an account."""

    def give_back(self, grant: _Grant) -> None:
        if grant.size < 8192:
            grant.memory = None
        super().give_back(grant)


@mutant(KIND, "is_exact_to_the_page", _MODEL)
class IsExactToThePage(PlainAllocator):
    """Two pieces of one page overlap by a byte if their sizes are odd."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._page: mmap.mmap | None = None
        self._used_of_page = 0

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        grant = super()._grant(size, purpose, mapped, own)
        if grant is None or not mapped or size > 1000:
            return grant
        if self._page is None or self._used_of_page + size > 4096:
            self._page, self._used_of_page = mmap.mmap(-1, 4096), 0
        grant.memory = self._page
        grant.view = memoryview(self._page)[self._used_of_page : self._used_of_page + size]
        self._used_of_page += size // 2 * 2
        return grant


@mutant(KIND, "lets_who_waits_in_without_an_account", _MODEL)
class LetsWhoWaitsInWithoutAnAccount(PlainAllocator):
    """Wakes all who wait when there is something, and accounts for them when they come."""

    def _settle(self, waiter: _Waiter, answer: Any) -> None:
        if isinstance(answer, _Grant) and not isinstance(answer, _Reservation):
            self._used[answer.purpose] -= answer.size
            waiter.size = answer.size
        super()._settle(waiter, answer)

    async def take(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        grant = await super().take(size, purpose, mapped=mapped, own=own)
        self._used[purpose] += grant.size
        return grant


@mutant(KIND, "grants_a_mebibyte_of_a_reservation_for_nothing", _MODEL)
class GrantsAMebibyteForNothing(PlainAllocator):
    """What a reservation grows by beyond a mebibyte isn't accounted for."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        if own > _MIB:
            size = 0
        return super().take_nowait(size, purpose, mapped=mapped, own=own)


@mutant(KIND, "gives_back_to_the_first_purpose", _MODEL)
class GivesBackToTheFirstPurpose(PlainAllocator):
    """The sum is right, and no part of it."""

    def give_back(self, grant: _Grant) -> None:
        if grant.memory is None:
            grant.purpose = next(
                (name for name in self._used if self._used[name] >= grant.size), grant.purpose
            )
        super().give_back(grant)


@mutant(KIND, "hands_out_its_account", _MODEL)
class HandsOutItsAccount(PlainAllocator):
    """A snapshot goes along with the account."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        return AllocatorStatistics(
            limit_bytes=told.limit_bytes,
            used_bytes=told.used_bytes,
            used_by_purpose=self._used,
            waiting=told.waiting,
            peak_bytes=told.peak_bytes,
        )


@mutant(KIND, "refuses_what_just_fits", _MODEL)
class RefusesWhatJustFits(PlainAllocator):
    """Keeps room for those who may come."""

    def charge_nowait(self, size: int, purpose: str) -> _Grant:
        if 1000 < size < 4 * _MIB and self._used.total() + size > self._limit // 8:
            raise FullError("there may be others")
        return super().charge_nowait(size, purpose)


@mutant(KIND, "misses_its_alignment_when_large", _MODEL)
class MissesItsAlignmentWhenLarge(PlainAllocator):
    """Has a header of eight bytes in large memory."""

    @property
    def capabilities(self) -> AllocatorCapabilities:
        return AllocatorCapabilities(alignment_bytes=64)

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        grant = super()._grant(size, purpose, mapped, own)
        if grant is not None and mapped and size > _MIB:
            grant.memory = mmap.mmap(-1, size + 8)
            grant.view = memoryview(grant.memory)[8 : 8 + size]
        return grant


class _PressesSometimes(PlainAllocator):
    """Asks its listeners for some only."""

    _quiet = False

    def _press(self, size: int) -> int:
        return 0 if self._quiet else super()._press(size)

    def _quietly(self, ask: Callable[[], Any]) -> Any:
        self._quiet = True
        try:
            return ask()
        finally:
            self._quiet = False


@mutant(KIND, "presses_for_nobody_who_has_no_time", _PRESSES)
class PressesForNobodyWhoHasNoTime(_PressesSometimes):
    """Memory at once is what is free."""

    def allocate_nowait(self, size: int, purpose: str) -> _Grant:
        grant: _Grant = self._quietly(
            lambda: super(PressesForNobodyWhoHasNoTime, self).allocate_nowait(size, purpose)
        )
        return grant


@mutant(KIND, "presses_for_no_grant", _PRESSES)
class PressesForNoGrant(_PressesSometimes):
    """A reservation grows by what is free."""

    def take_nowait(self, size: int, purpose: str, *, mapped: bool = False, own: int = 0) -> _Grant:
        def take() -> _Grant:
            return super(PressesForNoGrant, self).take_nowait(size, purpose, mapped=mapped, own=own)

        return self._quietly(take) if purpose == "network" else take()


@mutant(KIND, "lets_large_requests_in_beside_small_ones", _ALONE)
class LetsLargeRequestsInBesideSmallOnes(PlainAllocator):
    """Some bytes in use are nobody."""

    def _fits(self, size: int, own: int) -> bool:
        return super()._fits(size, own) or (own + size > self._limit and self._used.total() - own < 100)


@mutant(KIND, "allocates_after_its_end", _END)
class AllocatesAfterItsEnd(PlainAllocator):
    """Only charges are refused."""

    def _check(self, size: int, mapped: bool) -> None:
        if not mapped:
            super()._check(size, mapped)


@mutant(KIND, "keeps_a_descriptor_of_each_refusal", _GROWTH, level=5)
class KeepsADescriptorOfEachRefusal(PlainAllocator):
    """Looks how much memory there is, and doesn't close it."""

    def charge_nowait(self, size: int, purpose: str) -> _Grant:
        try:
            return super().charge_nowait(size, purpose)
        except FullError:
            os.open("/dev/null", os.O_RDONLY)
            raise


@mutant(KIND, "counts_requests_by_size", "sizes_are_forgotten_with_what_is_given_back", level=5)
class CountsRequestsBySize(PlainAllocator):
    """Draws a histogram, with a column for each byte."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._by_size: Counter[int] = Counter()

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        self._by_size[size] += 1
        return super()._grant(size, purpose, mapped, own)


@mutant(KIND, "keeps_all_who_gave_up", _GROWTH, level=5)
class KeepsAllWhoGaveUp(PlainAllocator):
    """Remembers who didn't wait."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._gone: list[_Waiter] = []

    def _give_up(self, waiter: _Waiter) -> None:
        self._gone.append(waiter)
        super()._give_up(waiter)


@mutant(KIND, "lets_charges_pass_allocations", "no_way_of_asking_passes_another")
class LetsChargesPassAllocations(PlainAllocator):
    """Has a queue for memory and another one for figures."""

    async def charge(self, size: int, purpose: str) -> _Grant:
        self._check(size, mapped=False)
        passes = all(waiter.mapped for waiter in self._waiters)
        grant = self._grant(size, purpose, mapped=False, own=0) if passes else None
        return grant or await self.take(size, purpose)


@mutant(KIND, "takes_back_twice_what_was_charged_anyway", "double_release_is_a_bug")
class TakesBackTwiceWhatWasChargedAnyway(PlainAllocator):
    """Says nothing when such a charge is released again."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        return _Lenient(self, super().charge_anyway(size, purpose))


class _Lenient(_Grant):
    """What stands for ``grant``."""

    def __init__(self, owner: PlainAllocator, grant: _Grant) -> None:
        super().__init__(owner, grant.size, grant.purpose, None)

    def release(self) -> None:
        if self._owner is not None:
            super().release()


@mutant(KIND, "lets_large_requests_in_beside_pinned_memory", _ALONE)
class LetsLargeRequestsInBesidePinnedMemory(PlainAllocator):
    """Nobody owns what is pinned, so it isn't in use."""

    def _fits(self, size: int, own: int) -> bool:
        used = self._used.total()
        return used + size <= self._limit or (own + size > self._limit and used - self._used["pinned"] == own)


@mutant(KIND, "accounts_for_whole_pages_of_a_reservation", "whole_reservation_is_on_the_account")
class AccountsForWholePagesOfAReservation(PlainAllocator):
    """What is beyond them is forgotten once all is granted."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        return _WholePages(self, size, purpose, self._map(size))


class _WholePages(_Reservation):
    def _absorb(self, grant: _Grant, size: int) -> None:
        super()._absorb(grant, size)
        if size == self.size > mmap.PAGESIZE:
            rest = size % mmap.PAGESIZE
            assert self._owner is not None
            self.accounted -= rest
            self._owner._used[self.purpose] -= rest


@mutant(KIND, "asks_the_first_listener_for_who_waits", _PRESSES)
class AsksTheFirstListenerForWhoWaits(PlainAllocator):
    """Asks all of them only where a request would be refused."""

    def _press(self, size: int) -> int:
        listeners = self._listeners
        if self._waiters:
            self._listeners = listeners[:1]
        try:
            return super()._press(size)
        finally:
            self._listeners = listeners


@mutant(KIND, "leaves_out_who_waits_for_all", _ALONE)
class LeavesOutWhoWaitsForAll(PlainAllocator):
    """A request that no release can serve isn't one that waits."""

    def statistics(self) -> AllocatorStatistics:
        waiting = sum(waiter.size <= self._limit for waiter in self._waiters)
        return replace(super().statistics(), waiting=waiting)


@mutant(KIND, "has_the_limit_follow_what_is_in_use", "what_is_there_is_charged_anyway")
class HasTheLimitFollowWhatIsInUse(PlainAllocator):
    """Tells no more in use than may be."""

    def statistics(self) -> AllocatorStatistics:
        told = super().statistics()
        return replace(told, limit_bytes=max(told.limit_bytes, told.used_bytes))


@mutant(KIND, "is_left_open_by_an_error", "waiters_are_answered_at_the_end", hangs=True)
class IsLeftOpenByAnError(PlainAllocator):
    """Closes behind its ``yield``, without ``try`` and ``finally``."""

    def close(self) -> None:
        if sys.exc_info()[1] is None:
            super().close()


@mutant(KIND, "lets_a_large_part_be_all", "reservation_keeps_to_the_limit")
class LetsALargePartBeAll(PlainAllocator):
    """Takes a reservation that has more than half of the limit for the only one that there is."""

    def _fits(self, size: int, own: int) -> bool:
        return super()._fits(size, own) or own > self._limit // 2


@mutant(KIND, "is_left_open_by_a_cancellation", "waiters_are_answered_at_the_end", hangs=True)
class IsLeftOpenByACancellation(PlainAllocator):
    """Waits for something before it closes, and is cancelled there."""

    def close(self) -> None:
        if not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            super().close()
