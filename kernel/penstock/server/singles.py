"""Who waits to ask one thing: an address at a time, of it a name at a time, of that whoever came first. Pure.

In one queue of all, a crowd of one address would be in front of everybody else's one request. An address or a name
whose next one may not go on yet doesn't keep others waiting, either: the first of several are looked at.
"""

from __future__ import annotations

__all__ = ("LOOK_MAX", "LOOK_NAMES_MAX", "Place", "Singles")

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from penstock.time_shares import TimeMember

#: So many addresses are looked at for one that may go on.
LOOK_MAX: Final = 16
#: And of each address so many names.
LOOK_NAMES_MAX: Final = 4
#: An address, and the number of a name.
Place: TypeAlias = tuple[str, int]


class _Waits(Protocol):
    time: TimeMember


W = TypeVar("W", bound=_Waits)


class Singles(Generic[W]):
    """A queue of queues."""

    __slots__ = ("_addresses", "_size")

    def __init__(self) -> None:
        #: Those of each address by name, addresses and names in the order in which it's their turn; none is empty.
        self._addresses: dict[str, dict[int, deque[W]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[W]:
        return (one for names in self._addresses.values() for queue in names.values() for one in queue)

    def add(self, one: W) -> None:
        """``one`` waits behind those of its address and name."""
        names = self._addresses.setdefault(one.time.address, {})
        names.setdefault(one.time.name, deque()).append(one)
        self._size += 1

    def heads(self) -> Iterator[tuple[Place, W]]:
        """The next one of each name of each address, with its place: of the first ones, in turn."""
        for address, names in islice(self._addresses.items(), LOOK_MAX):
            for name, queue in islice(names.items(), LOOK_NAMES_MAX):
                yield (address, name), queue[0]

    def take(self, place: Place) -> W:
        """The next one of ``place``, out of the queue; its address and its name come last then."""
        address, name = place
        names = self._addresses.pop(address)
        queue = names.pop(name)
        one = queue.popleft()
        if queue:
            names[name] = queue
        if names:
            self._addresses[address] = names
        self._size -= 1
        return one
