"""Bytes that connections carry between reads: counted for all of them together, charged, and bounded. No I/O.

Carried are halves of small frames, frames that were received and can't be handled yet, and copies of Produces that
wait. They are in Python's memory, not the allocator's, and each connection's are few; of thousands they add up.

1. They are charged to the allocator when they are there, whatever is free: who carries never waits for that. At most
   ``limit_bytes`` are charged, which is what the broker's budget leaves them. So what a connection carries can't fill
   the memory that it waits for itself.
2. The first ``FREE_BYTES`` are not charged: a broker always carries some, and its process has memory for them. So a
   request that is larger than the whole allocator is still alone in it.
3. Above half of the limit (``is_high``) connections receive small pieces, and who is stuck loses its place.
4. Above the limit (``is_over``) somebody loses its place in any case: at each step, of the address that carries most,
   who hasn't moved for longest; those who wait for us come after all others of their address, and behind
   them who carries little, at most half of what its connections carry on average: closing it would free nothing.
"""

from __future__ import annotations

__all__ = ("FREE_BYTES", "Carried")

from collections.abc import Iterator
from heapq import heapify, heapreplace
from typing import Final

from penstock.account import Ledger
from penstock.shares import Member
from penstock.spi.allocator import Allocator

#: What all connections may carry uncharged.
FREE_BYTES: Final = 1024 * 1024
#: Who sheds, sheds so much that it's not to be done again at once.
_TARGET_NUMERATOR: Final = 7
_TARGET_DENOMINATOR: Final = 8
#: Little is at most this part of what the connections of an address carry on average.
_LITTLE_PART: Final = 2


class Carried:
    """What the members of a server's ``incoming`` shares carry: at most ``limit_bytes`` and what is free."""

    __slots__ = ("_charged", "_high", "_limit", "_members", "bytes", "is_high", "is_over")

    def __init__(self, limit_bytes: int, allocator: Allocator) -> None:
        self._limit = FREE_BYTES + limit_bytes
        self._high = self._limit // 2
        self._charged = Ledger("carried", limit_bytes, allocator)
        #: Who carries how much; who hasn't moved for longest is the first.
        self._members: dict[Member, int] = {}
        self.bytes = 0
        #: More than half of the limit is carried; more than the limit is.
        self.is_high = self.is_over = False

    def set(self, member: Member, size: int) -> None:
        """``member`` carries ``size`` bytes now: a call that changes something is a move."""
        before = self._members.pop(member, 0)
        if size:
            self._members[member] = size
        self.bytes += size - before
        charged = min(max(0, self.bytes - FREE_BYTES), self._charged.limit_bytes)
        if charged != self._charged.used_bytes:
            self._charged.add(charged - self._charged.used_bytes)
        self.is_high = self.bytes > self._high
        self.is_over = self.bytes > self._limit

    def victims(self, now: float) -> Iterator[Member]:
        """Who is to lose its place now, one at each step, as long as too much is carried (rules 3 and 4).

        Between two steps members may move, carry more or less, and leave.
        """
        if self.is_high:
            for member in tuple(self._members):
                if self.bytes <= self._high:
                    return
                if member in self._members and member.is_stuck(now):
                    yield member
        if self.bytes <= self._limit:
            return
        target = self._limit * _TARGET_NUMERATOR // _TARGET_DENOMINATOR
        addresses = self._by_address()
        while self.bytes > target and addresses:
            size, _, members = addresses[0]
            member, carried = members.pop()
            heapreplace(addresses, (size + carried if members else 0, id(members), members))
            if member in self._members:
                yield member
            if addresses[0][0] == 0:
                return

    def _by_address(self) -> list[tuple[int, int, list[tuple[Member, int]]]]:
        """A heap of what each address carries, negated, and who does: who goes first is the last."""
        found: dict[str, list[tuple[Member, int]]] = {}
        for member, carried in reversed(self._members.items()):
            found.setdefault(member.address, []).append((member, carried))
        heap = []
        for members in found.values():
            whole = sum(carried for _, carried in members)
            little = whole // (_LITTLE_PART * len(members))
            # who goes first is the last, of equals who hasn't moved for longest: they are in that order already
            members.sort(key=lambda one: (one[1] > little, not one[0].busy))
            heap.append((-whole, id(members), members))
        heapify(heap)
        return heap
