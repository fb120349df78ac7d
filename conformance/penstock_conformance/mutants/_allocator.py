"""Broken allocators."""

from __future__ import annotations

__all__ = ()

import mmap
import weakref

from pydantic import Field

from penstock.hookspecs import hookimpl
from penstock.spi.allocator import AllocatorCapabilities, AllocatorSpec
from penstock_conformance.mutants._mutant import DEFECT, NAME, SUMMARY, make, mutant
from penstock_conformance.reference._allocator import (
    AllocatorSettings,
    PlainAllocator,
    _Grant,
    _Reservation,
    _Waiter,
)
from penstock_conformance.reference._plugin import closing

KIND = "allocator"


@mutant(KIND, "leaks_from_the_account", "account_returns_to_zero", "many_tasks_stay_under_the_limit")
class LeaksFromTheAccount(PlainAllocator):
    """Forgets the small change."""

    def give_back(self, grant: _Grant) -> None:
        grant.size = grant.size // 100 * 99
        super().give_back(grant)


@mutant(KIND, "loses_grants_of_the_cancelled", "grant_to_a_cancelled_waiter_comes_back")
class LosesGrantsOfTheCancelled(PlainAllocator):
    """What was granted to somebody who is gone is gone too."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is None:
            super()._give_up(waiter)


@mutant(KIND, "blocks_the_queue_when_cancelled", "cancelled_waiter_leaves_the_queue", hangs=True)
class BlocksTheQueueWhenCancelled(PlainAllocator):
    """Leaves a cancelled request in the queue."""

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.answer is not None:
            super()._give_up(waiter)


@mutant(KIND, "hands_out_pinned_memory", "pinned_memory_is_never_handed_out")
class HandsOutPinnedMemory(PlainAllocator):
    """Recycles memory as soon as it is released."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._recycled: list[mmap.mmap] = []

    def _map(self, size: int) -> mmap.mmap:
        for memory in self._recycled:
            if len(memory) >= size:
                self._recycled.remove(memory)
                return memory
        return super()._map(size)

    def give_back(self, grant: _Grant) -> None:
        memory, grant.memory = grant.memory, None
        if memory is not None:
            self._recycled.append(memory)
        super().give_back(grant)


@mutant(KIND, "forgets_pinned_memory", "pinned_memory_is_never_handed_out")
class ForgetsPinnedMemory(PlainAllocator):
    """Takes released for free."""

    def give_back(self, grant: _Grant) -> None:
        grant.memory = None
        super().give_back(grant)


@mutant(KIND, "exceeds_the_limit", "limit_holds", "many_tasks_stay_under_the_limit")
class ExceedsTheLimit(PlainAllocator):
    """Looks only at what is there, not at what is asked for."""

    def _fits(self, size: int, own: int) -> bool:
        return self._used.total() < self._limit


@mutant(KIND, "releases_twice", "double_release_is_a_bug")
class ReleasesTwice(PlainAllocator):
    """Gives bytes back as often as it is told to."""

    def give_back(self, grant: _Grant) -> None:
        super().give_back(grant)
        grant._owner = self


@mutant(KIND, "serves_the_last_first", "waiters_are_served_in_order", "grant_waits_its_turn")
class ServesTheLastFirst(PlainAllocator):
    """A stack instead of a queue."""

    def _serve(self) -> None:
        self._waiters.reverse()
        super()._serve()
        self._waiters.reverse()


@mutant(KIND, "forgets_waiters_at_the_end", "waiters_are_answered_at_the_end", hangs=True)
class ForgetsWaitersAtTheEnd(PlainAllocator):
    """Ends without a word."""

    def close(self) -> None:
        self._closed = True


@mutant(KIND, "never_asks_for_room", "listener_makes_room")
class NeverAsksForRoom(PlainAllocator):
    """Knows its listeners and doesn't call them."""

    def _grant(self, size: int, purpose: str, mapped: bool, own: int) -> _Grant | None:
        self._listeners.clear()
        return super()._grant(size, purpose, mapped, own)


@mutant(KIND, "refuses_the_maximal_record", "request_over_the_limit_is_granted_alone", hangs=True)
class RefusesTheMaximalRecord(PlainAllocator):
    """A record over the limit waits for ever."""

    def _fits(self, size: int, own: int) -> bool:
        return self._used.total() + size <= self._limit


@mutant(KIND, "hands_out_whole_pages", "allocation_has_the_asked_size")
class HandsOutWholePages(PlainAllocator):
    """Rounds up."""

    def allocate_nowait(self, size: int, purpose: str) -> _Grant:
        grant = super().allocate_nowait(size, purpose)
        assert grant.memory is not None
        grant.view = memoryview(grant.memory).cast("B")[: -(-size // 8) * 8] if size % 8 else grant.view
        return grant

    def _map(self, size: int) -> mmap.mmap:
        return mmap.mmap(-1, -(-size // 8) * 8)


@mutant(KIND, "claims_too_much_alignment", "addresses_are_aligned")
class ClaimsTooMuchAlignment(PlainAllocator):
    """Promises what the system doesn't."""

    @property
    def capabilities(self) -> AllocatorCapabilities:
        return AllocatorCapabilities(alignment_bytes=2**30)


@mutant(KIND, "does_not_hear_of_the_last_view", "waiter_gets_memory_when_the_last_view_goes", hangs=True)
class DoesNotHearOfTheLastView(PlainAllocator):
    """Looks at pinned memory only when something is released."""

    def give_back(self, grant: _Grant) -> None:
        size = grant.accounted if isinstance(grant, _Reservation) else grant.size
        self._used[grant.purpose] -= size
        memory, grant.memory = grant.memory, None
        if memory is not None:
            self._used["pinned"] += size

            def gone(pin: weakref.ref[mmap.mmap]) -> None:
                self._pins.discard(pin)
                self._used["pinned"] -= size

            self._pins.add(weakref.ref(memory, gone))
            del memory
        self._serve()


@mutant(KIND, "refuses_what_is_there", "what_is_there_is_charged_anyway")
class RefusesWhatIsThere(PlainAllocator):
    """Has its limit, whatever is there."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        return self.charge_nowait(size, purpose)


@mutant(KIND, "overlooks_what_is_there", "what_is_there_is_charged_anyway")
class OverlooksWhatIsThere(PlainAllocator):
    """Can't refuse it, so why count it."""

    def charge_anyway(self, size: int, purpose: str) -> _Grant:
        return self.charge_nowait(0, purpose)


@mutant(KIND, "pays_for_what_is_announced", "reservation_takes_what_is_granted")
class PaysForWhatIsAnnounced(PlainAllocator):
    """Takes the announced size at once."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        reservation = super().reserve(size, purpose)
        reservation.grant_nowait(size)
        return reservation


@mutant(KIND, "grants_for_nothing", "reservation_keeps_to_the_limit")
class GrantsForNothing(PlainAllocator):
    """Has the memory mapped anyway, so why count it."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        return _Generous(self, size, purpose, self._map(size))


class _Generous(_Reservation):
    def grant_nowait(self, size: int) -> None:
        self.granted = size


@mutant(KIND, "keeps_what_was_granted", "reservation_gives_back_what_was_granted")
class KeepsWhatWasGranted(PlainAllocator):
    """Gives back only reservations that were granted whole."""

    def give_back(self, grant: _Grant) -> None:
        if isinstance(grant, _Reservation) and grant.granted < grant.size:
            return
        super().give_back(grant)


@mutant(KIND, "grants_before_it_has", "cancelled_grant_changes_nothing")
class GrantsBeforeItHas(PlainAllocator):
    """Says that it's granted when it's only asked for."""

    def reserve(self, size: int, purpose: str) -> _Reservation:
        return _Hasty(self, size, purpose, self._map(size))


class _Hasty(_Reservation):
    async def grant(self, size: int) -> None:
        owner = self._checked(size)
        more, self.granted = size - self.granted, size
        self._absorb(await owner.take(more, self.purpose, own=self.accounted), size)


class DefectiveAllocator(AllocatorSettings):
    """Which mutant it is, and the limit."""

    defect: str = Field(description=DEFECT)


@hookimpl
def penstock_register_allocator() -> AllocatorSpec[DefectiveAllocator]:
    """Register the broken allocators."""
    return AllocatorSpec(
        name=NAME,
        summary=SUMMARY,
        settings=DefectiveAllocator,
        capabilities=AllocatorCapabilities(),
        open=closing(lambda settings, _: make("allocator", settings.defect, settings.limit)),
    )
