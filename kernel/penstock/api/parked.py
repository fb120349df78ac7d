"""Fetches that wait for data, and the memory that they keep meanwhile: bounded, who waits longest gives way. Pure.

1. A fetch that waits keeps memory for each partition that it watches, for as long as its client likes. That is
   charged here, and no longer as a request that is handled: who waits for data takes nothing that others need to go
   on.
2. Where there is no room for one more, another one **gives way**: of the address that keeps most, the one that waits
   longest. It is answered with what there is, as if its time were up. Until that is done, it counts beyond the limit.
3. Its client's next request is taken no sooner than the answer would have come, for at most ``REST_S_MAX``: a crowd
   that waits for long comes again as seldom as it said, and waits in its own memory.
4. While those that gave way and aren't answered yet keep half as much as all may, it is **crowded**: whoever comes
   gives way at once, and has nothing to keep. Else a crowd would come faster than others have turns to end.
"""

from __future__ import annotations

__all__ = ("REST_S_MAX", "Parked", "ParkedFetch")

from collections.abc import Callable
from typing import Final

from penstock.account import Ledger

#: The client of a fetch that gave way rests no longer.
REST_S_MAX: Final = 10.0


class ParkedFetch:
    """One fetch that waits; ``wake`` is called when it gives way."""

    __slots__ = ("_wake", "address", "counts", "gave_way", "size_bytes")

    def __init__(self, address: str, size_bytes: int, wake: Callable[[], None]) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.gave_way = False
        #: What it keeps is accounted for, until it leaves.
        self.counts = False
        self._wake = wake

    def give_way(self) -> None:
        """Have it answered now."""
        self.gave_way = True
        self._wake()


class _Address:
    __slots__ = ("fetches", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        #: Who waits longest first.
        self.fetches: dict[ParkedFetch, None] = {}


class Parked:
    """All fetches of a broker that wait for data, within ``memory``."""

    def __init__(self, memory: Ledger) -> None:
        self._memory = memory
        #: Those that wait; who gave way isn't among them.
        self._addresses: dict[str, _Address] = {}
        #: What those keep that gave way and haven't left.
        self._leaving_bytes = 0

    def __len__(self) -> int:
        return sum(len(address.fetches) for address in self._addresses.values())

    @property
    def is_crowded(self) -> bool:
        """Whether a fetch that came now would give way at once: then it need not get ready to wait."""
        return self._leaving_bytes > self._memory.limit_bytes // 2

    def enter(self, address: str, size_bytes: int, wake: Callable[[], None]) -> ParkedFetch:
        """A fetch begins to wait; ``leave`` ends that.

        Others give way for it. If it is larger than all there is, or it is crowded, it does so itself, at once.
        """
        fetch = ParkedFetch(address, size_bytes, wake)
        if size_bytes > self._memory.limit_bytes or self.is_crowded:
            fetch.gave_way = True
            return fetch
        fetch.counts = True
        there = self._addresses.get(address)
        if there is None:
            there = self._addresses[address] = _Address()
        there.fetches[fetch] = None
        there.size_bytes += size_bytes
        self._memory.add(size_bytes)
        while self._memory.used_bytes - self._leaving_bytes > self._memory.limit_bytes:
            largest = max(self._addresses.values(), key=_size)
            longest = next(iter(largest.fetches))
            self._remove(longest)
            self._leaving_bytes += longest.size_bytes
            longest.give_way()
        return fetch

    def leave(self, fetch: ParkedFetch) -> None:
        """The fetch has ended, and keeps nothing any more; once is enough."""
        if not fetch.counts:
            return
        fetch.counts = False
        self._memory.add(-fetch.size_bytes)
        if fetch.gave_way:
            self._leaving_bytes -= fetch.size_bytes
        else:
            self._remove(fetch)

    def _remove(self, fetch: ParkedFetch) -> None:
        """The fetch is none of those that wait any more."""
        address = self._addresses[fetch.address]
        del address.fetches[fetch]
        address.size_bytes -= fetch.size_bytes
        if not address.fetches:
            del self._addresses[fetch.address]


def _size(address: _Address) -> int:
    return address.size_bytes
