"""Allocator: the one account of the memory that payload takes, with a hard limit and back-pressure.

Three kinds of taking: ``allocate`` hands out memory, ``charge`` only accounts for memory that somebody else
made (a library's reply, the Python objects of an entry), and ``reserve`` hands out memory that is accounted for as it
is filled (a large request of which only the size is known). All are given back by ``release``.

Memory that was released but is still referenced (a fetch response on its way to a slow socket holds a
memoryview of it) stays accounted for, under the purpose ``pinned``, until the last reference is gone, in whatever
thread; it is never handed out again before that.

Plugins import all of this from :mod:`penstock.spi.allocator`, where the registration is, too.
"""

from __future__ import annotations

__all__ = (
    "Allocation",
    "Allocator",
    "AllocatorCapabilities",
    "AllocatorStatistics",
    "Charge",
    "Reservation",
)

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from penstock.spi.statistics import gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorCapabilities:
    """What an allocator promises."""

    #: The address of each allocation is a multiple of this.
    alignment_bytes: int = 1


class Charge(Protocol):
    """Accounted bytes; ``release`` gives them back."""

    @property
    def size(self) -> int:
        """Bytes accounted."""

    def release(self) -> None:
        """Give the bytes back. Once; a second call raises InvariantError. From the event loop's thread."""


class Allocation(Charge, Protocol):
    """A piece of memory; releasing it promises that nobody writes to ``view`` any more."""

    @property
    def view(self) -> memoryview:
        """Writable memory of exactly ``size`` bytes, contents undefined."""


class Reservation(Allocation, Protocol):
    """Memory in one piece that is accounted for as it is granted, from its start on.

    Only the first ``granted`` bytes of ``view`` may be touched. A reservation of which nothing is granted takes no
    memory.
    """

    @property
    def granted(self) -> int:
        """Bytes that may be used so far, 0 at first, ``size`` at the end."""

    def grant_nowait(self, size: int) -> None:
        """Let the first ``size`` bytes be used; no fewer than before, at most all. Raises FullError like
        ``allocate_nowait``, InvalidRequestError for other sizes, InvariantError once it was released.

        More than the whole limit is granted while nothing else is in use.
        """

    async def grant(self, size: int) -> None:
        """Like ``grant_nowait``, but waits, in one queue with ``allocate``. Cancelled, nothing more is granted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorStatistics:
    """A snapshot. ``used_bytes`` never exceeds ``limit_bytes`` plus one maximal allocation (I8)."""

    limit_bytes: Annotated[int, gauge("bytes", "Memory that may be in use.")]
    used_bytes: Annotated[int, gauge("bytes", "Memory in use.")]
    used_by_purpose: Annotated[Mapping[str, int], gauge("bytes", "Memory in use.", by="purpose")]
    waiting: Annotated[int, gauge("requests", "Requests for memory that wait.")]
    peak_bytes: Annotated[int, gauge("bytes", "The most that was in use.")]


class Allocator(Protocol):
    """The contract of an allocator. All calls come from the event loop's thread."""

    @property
    def capabilities(self) -> AllocatorCapabilities:
        """What this instance promises."""

    def allocate_nowait(self, size: int, purpose: str) -> Allocation:
        """Memory of ``size`` > 0 bytes. Raises FullError when over the limit or others already wait.

        A request larger than the whole limit is granted alone (when nothing else is in use), so that a
        maximal record can pass a small limit.
        """

    async def allocate(self, size: int, purpose: str) -> Allocation:
        """Like ``allocate_nowait``, but waits, first come first served, until there is room."""

    def reserve(self, size: int, purpose: str) -> Reservation:
        """Memory of ``size`` > 0 bytes of which nothing is granted yet.

        Raises FullError only if the system has no addresses left.
        """

    def charge_nowait(self, size: int, purpose: str) -> Charge:
        """Account for ``size`` >= 0 bytes made elsewhere. Raises FullError like ``allocate_nowait``.

        Less than nothing is an InvalidRequestError, in whatever way it is asked for.
        """

    async def charge(self, size: int, purpose: str) -> Charge:
        """Like ``charge_nowait``, but waits, in one queue with ``allocate``."""

    def charge_anyway(self, size: int, purpose: str) -> Charge:
        """Account for ``size`` bytes that are there already, over the limit if need be. Never refused, never waits.

        For what can't be put off: state of clients, which its owner bounds (a part of the limit). If there is no
        room, pressure listeners are asked for it; what is then over the limit is made up by the next releases, before
        anybody else is granted anything.
        """

    def add_pressure_listener(self, listener: Callable[[int], int | None]) -> None:
        """Have ``listener(bytes_wanted)`` called, synchronously, when a request finds no room.

        The listener frees what it can (caches evict) before it returns; the request is then tried again
        before it fails or waits. A listener may say how many bytes it let go of: as long as it did, it's asked again,
        also if there is no room yet (memory that is cut into many pieces comes free as a whole).
        """

    def statistics(self) -> AllocatorStatistics:
        """A snapshot of the account."""
