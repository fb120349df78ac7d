"""One object store for several classes of traffic: the write-ahead log never waits behind the others.

The store of a process has one client, with so many connections (``ObjectStoreCapabilities.requests_max``). Each
request takes a place: one, or one per mebibyte if it moves more, so that places also bound what is on its way.

- The write-ahead log takes its place at once, always. A quarter of the places is left to it; when it has more
  requests on their way, others get fewer places, but never less than half.
- Every other class has at most its part of the rest.
- A place that becomes free goes to a class that has nothing on its way, so nobody starves; then by urgency; within
  a class to whoever came first. A large request at the head is waited for: smaller ones behind it don't pass it.

:class:`Turns` is that rule, pure. :class:`SharedStore` is a store that keeps it.
"""

from __future__ import annotations

__all__ = ("SharedStore", "TrafficStatistics", "Turns", "view_of")

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Final, Generic, NamedTuple, TypeVar

import anyio

from penstock.errors import InvariantError
from penstock.spi.object_store import ObjectStore
from penstock.spi.statistics import counter, gauge
from penstock.spi.traffic import Traffic
from penstock.work.store_around import Request, StoreAround

W = TypeVar("W")

#: A request that moves more than this takes a place for each: one large read weighs as much as many small ones.
PLACE_BYTES: Final = 2**20
_WAL_PART: Final = Fraction(1, 4)
_WAL_PART_MAX: Final = Fraction(1, 2)
#: What a class may have of the places that the write-ahead log leaves. A backlog of reads and one of uploads
#: together leave nothing, so each waits for the other; what is urgent and rare finds more than what is neither.
_PARTS: Final[Mapping[Traffic, Fraction]] = {
    Traffic.TAIL: Fraction(3, 4),
    Traffic.CATCH_UP: Fraction(1, 2),
    Traffic.UPLOAD: Fraction(1, 2),
    Traffic.COMPACTION: Fraction(1, 8),
    Traffic.LAKE: Fraction(1, 4),
}
#: With fewer places than this, parts of them mean nothing.
_PLACES_MIN: Final = 2 * len(Traffic)


class _Waiting(NamedTuple, Generic[W]):
    places: int
    waiter: W


@dataclass(slots=True, eq=False)
class _Class(Generic[W]):
    """One class: what it has, and who waits in it."""

    most: int
    #: Requests on their way, and the places that they take.
    running: int = 0
    taken: int = 0
    waiting: deque[_Waiting[W]] = field(default_factory=deque)


class Turns(Generic[W]):
    """Whose request begins next; see the module. A *waiter* is whatever the caller knows a waiting request by."""

    def __init__(self, places: int) -> None:
        """``places`` is what the store takes at once."""
        self._places = max(places, _PLACES_MIN)
        self._wal = 0
        #: What is left to the write-ahead log at least, and at most.
        self._wal_min, self._wal_max = int(self._places * _WAL_PART), int(self._places * _WAL_PART_MAX)
        #: Requests that wait, of all classes.
        self._queued = 0
        rest = self._places - self._wal_min
        self._classes: dict[Traffic, _Class[W]] = {
            traffic: _Class(max(1, int(rest * part))) for traffic, part in _PARTS.items()
        }

    def running(self, traffic: Traffic) -> int:
        """Requests of the class that are on their way."""
        return self._wal if traffic is Traffic.WAL else self._classes[traffic].running

    def waiting(self, traffic: Traffic) -> int:
        """Requests of the class that wait."""
        return 0 if traffic is Traffic.WAL else len(self._classes[traffic].waiting)

    def places(self, traffic: Traffic, size: int) -> int:
        """The places that a request of ``size`` bytes takes; no more than the class can have."""
        if traffic is Traffic.WAL:
            return 1
        return min(max(1, -(-size // PLACE_BYTES)), self._classes[traffic].most)

    def begin_now(self, traffic: Traffic, places: int) -> bool:
        """True if the request begins now, as there is room and nobody waits; else nothing has changed."""
        if traffic is Traffic.WAL:
            self._wal += 1
            return True
        begins = self._classes[traffic]
        if self._queued or begins.taken + places > begins.most or places > self._free():
            return False
        begins.running += 1
        begins.taken += places
        return True

    def begin(self, traffic: Traffic, places: int, waiter: W) -> bool:
        """True if the request begins now; else it waits, and a later call returns ``waiter`` when it has begun."""
        if self.begin_now(traffic, places):
            return True
        self._classes[traffic].waiting.append(_Waiting(places, waiter))
        self._queued += 1
        # nothing else can begin: it couldn't before, and nothing has become free
        return bool(self._admit())

    def end(self, traffic: Traffic, places: int) -> list[W]:
        """A request is over; those that begin in its place, which count as begun."""
        if traffic is Traffic.WAL:
            self._wal -= 1
        else:
            ended = self._classes[traffic]
            ended.running -= 1
            ended.taken -= places
        return self._admit()

    def give_up(self, traffic: Traffic, waiter: W) -> list[W]:
        """A request waits no longer; those that begin because it isn't in their way any more."""
        waiting = self._classes[traffic].waiting
        for at, each in enumerate(waiting):
            if each.waiter is waiter:
                del waiting[at]
                self._queued -= 1
                return self._admit()
        raise InvariantError(f"a request that doesn't wait gave up: traffic={traffic}")

    def _free(self) -> int:
        for_wal = min(max(self._wal, self._wal_min), self._wal_max)
        return self._places - for_wal - sum(each.taken for each in self._classes.values())

    def _admit(self) -> list[W]:
        begun: list[W] = []
        if not self._queued:
            return begun
        free = self._free()
        while (chosen := self._next()) is not None and chosen.waiting[0].places <= free:
            places, waiter = chosen.waiting.popleft()
            self._queued -= 1
            chosen.running += 1
            chosen.taken += places
            free -= places
            begun.append(waiter)
        return begun

    def _next(self) -> _Class[W] | None:
        """The class whose turn it is, of those that have room of their own."""
        able = [
            each
            for each in self._classes.values()
            if each.waiting and each.taken + each.waiting[0].places <= each.most
        ]
        # the classes are in the order of urgency, and min takes the first of equals
        return min(able, key=lambda each: each.running > 0, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficStatistics:
    """What each class of traffic asked of the object store."""

    requests: Annotated[Mapping[str, int], counter("requests", "Requests that began.", by="traffic")]
    bytes: Annotated[Mapping[str, int], counter("bytes", "Bytes read and written.", by="traffic")]
    in_flight: Annotated[Mapping[str, int], gauge("requests", "Requests on their way.", by="traffic")]
    waiting: Annotated[Mapping[str, int], gauge("requests", "Requests that wait for a place.", by="traffic")]
    waits: Annotated[Mapping[str, int], counter("requests", "Requests that had to wait.", by="traffic")]
    waited_ms: Annotated[Mapping[str, int], counter("ms", "How long they waited, together.", by="traffic")]


class SharedStore:
    """Has the users of a store take turns. They use its views, one for each class of traffic."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._turns: Turns[anyio.Event] = Turns(store.capabilities.requests_max)
        self._requests = dict.fromkeys(Traffic, 0)
        self._bytes = dict.fromkeys(Traffic, 0)
        self._waits = dict.fromkeys(Traffic, 0)
        self._waited_s = dict.fromkeys(Traffic, 0.0)
        self._views = {traffic: _View(self, store, traffic) for traffic in Traffic}

    def view(self, traffic: Traffic) -> ObjectStore:
        """The store for one class of traffic."""
        return self._views[traffic]

    def statistics(self) -> TrafficStatistics:
        """A snapshot, by class."""
        turns = self._turns
        return TrafficStatistics(
            requests=_told(self._requests),
            bytes=_told(self._bytes),
            in_flight=_told({traffic: turns.running(traffic) for traffic in Traffic}),
            waiting=_told({traffic: turns.waiting(traffic) for traffic in Traffic}),
            waits=_told(self._waits),
            waited_ms=_told({traffic: int(waited * 1000) for traffic, waited in self._waited_s.items()}),
        )

    def place(
        self, traffic: Traffic, size: int = 0, *, counts: bool = True, sends: int = 0
    ) -> AbstractAsyncContextManager[None]:
        """A request that may move ``size`` bytes is on its way while the context is entered, which may have to wait.

        Without ``counts`` it goes on with one that was counted. ``sends``: what it has moved when it succeeded.
        """
        return _Place(self, traffic, self._turns.places(traffic, size), counts=counts, sends=sends)

    def moved(self, traffic: Traffic, size: int) -> None:
        """A request has moved ``size`` bytes."""
        self._bytes[traffic] += size

    async def begin(self, traffic: Traffic, places: int, *, counts: bool) -> None:
        """Return when a request that takes ``places`` may be made."""
        if not self._turns.begin_now(traffic, places):
            begun = anyio.Event()
            if not self._turns.begin(traffic, places, begun):
                await self._wait(traffic, places, begun)
        self._requests[traffic] += counts

    def end(self, traffic: Traffic, places: int) -> None:
        """The request is over."""
        _wake(self._turns.end(traffic, places))

    async def _wait(self, traffic: Traffic, places: int, begun: anyio.Event) -> None:
        since = self._clock()
        self._waits[traffic] += 1
        try:
            await begun.wait()
        except BaseException:
            if begun.is_set():  # cancelled when it had just begun
                _wake(self._turns.end(traffic, places))
            else:
                _wake(self._turns.give_up(traffic, begun))
            raise
        finally:
            self._waited_s[traffic] += self._clock() - since


def view_of(store: ObjectStore, traffic: Traffic) -> ObjectStore:
    """``store`` for that class of traffic; as it is if nobody shares it out."""
    return store.shared.view(traffic) if isinstance(store, _View) else store


def _told(values: Mapping[Traffic, int]) -> dict[str, int]:
    return {traffic.value: value for traffic, value in values.items()}


def _wake(begun: Sequence[anyio.Event]) -> None:
    for each in begun:
        each.set()


class _Place:
    """See ``SharedStore.place``. Not a generator: each put of a write-ahead log is in one, and that takes longer."""

    __slots__ = ("_counts", "_places", "_sends", "_shared", "_traffic")

    def __init__(
        self, shared: SharedStore, traffic: Traffic, places: int, *, counts: bool, sends: int
    ) -> None:
        self._shared = shared
        self._traffic = traffic
        self._places = places
        self._counts = counts
        self._sends = sends

    async def __aenter__(self) -> None:
        await self._shared.begin(self._traffic, self._places, counts=self._counts)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._shared.end(self._traffic, self._places)
        if error is None:
            self._shared.moved(self._traffic, self._sends)


class _View(StoreAround):
    """A shared store, for one class of traffic."""

    def __init__(self, shared: SharedStore, store: ObjectStore, traffic: Traffic) -> None:
        super().__init__(store)
        self.shared = shared
        self._traffic = traffic

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._traffic} {self.location}>"

    def around(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Have a place while ``request`` is on its way."""
        sends = request.sends
        return self.shared.place(self._traffic, sends + request.asks, counts=not request.goes_on, sends=sends)

    def came(self, size: int) -> None:
        """Count what was read."""
        self.shared.moved(self._traffic, size)
