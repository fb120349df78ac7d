"""Fetches that wait for data, and the memory that they keep meanwhile: bounded, who waits longest gives way. Pure.

1. A fetch that waits keeps memory for each partition that it watches, for as long as its client likes. That is
   charged here, and no longer as a request that is handled: who waits for data takes nothing that others need to go
   on.
2. Where there is no room for one more, another one **gives way**: of the address that keeps most, the one that waits
   longest. It is answered with what there is, as if its time were up.
3. Its client's next request is taken no sooner than the answer would have come, for at most ``REST_S_MAX``: a crowd
   that waits for long comes again as seldom as it said, and waits in its own memory.
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

    __slots__ = ("_wake", "address", "gave_way", "size_bytes")

    def __init__(self, address: str, size_bytes: int, wake: Callable[[], None]) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.gave_way = False
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
        self._addresses: dict[str, _Address] = {}

    def __len__(self) -> int:
        return sum(len(address.fetches) for address in self._addresses.values())

    def enter(self, address: str, size_bytes: int, wake: Callable[[], None]) -> ParkedFetch:
        """A fetch begins to wait; ``leave`` ends that.

        Others give way for it; if it is larger than all there is, it does so itself, at once.
        """
        fetch = ParkedFetch(address, size_bytes, wake)
        if size_bytes > self._memory.limit_bytes:
            fetch.gave_way = True
            return fetch
        there = self._addresses.get(address)
        if there is None:
            there = self._addresses[address] = _Address()
        there.fetches[fetch] = None
        there.size_bytes += size_bytes
        self._memory.add(size_bytes)
        while self._memory.used_bytes > self._memory.limit_bytes:
            largest = max(self._addresses.values(), key=_size)
            longest = next(iter(largest.fetches))
            self.leave(longest)
            longest.give_way()
        return fetch

    def leave(self, fetch: ParkedFetch) -> None:
        """The fetch waits no longer, if it did."""
        address = self._addresses.get(fetch.address)
        if address is None or fetch not in address.fetches:
            return
        del address.fetches[fetch]
        address.size_bytes -= fetch.size_bytes
        self._memory.add(-fetch.size_bytes)
        if not address.fetches:
            del self._addresses[fetch.address]


def _size(address: _Address) -> int:
    return address.size_bytes
