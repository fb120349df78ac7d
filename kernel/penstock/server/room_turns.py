"""Who may try the log again when it had no room: some at a time, address by address, then connection by connection.

A log tells all who wait for it that there may be room. With thousands that is a herd, of which the first few fit, and
an address with a thousand connections would be nearly all of those. So only ``AT_ONCE`` wait at the log. Whoever is
done there leaves its place to the address that got fewest bytes since the shortage began, and there to who came
first; a connection that waits again comes behind the others of its address.

So do those whose batches are looked into in a thread: there are few threads, and each batch counts as one.
"""

from __future__ import annotations

__all__ = ("AT_ONCE", "RoomTurns")

from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any, Final

import anyio

#: So many wait at the log, and are woken together.
AT_ONCE: Final = 16
#: How many addresses are looked at for the one that got least; others the next time.
_LOOK_MAX: Final = 64
#: Addresses of which it's known what they got, beyond those that wait.
_KNOWN_MAX: Final = 1024


class _Turn:
    """One who waits for a place; ``event`` is set when it has it."""

    __slots__ = ("event", "size")

    def __init__(self, size: int) -> None:
        self.event = anyio.Event()
        self.size = size


class RoomTurns:
    """The places at one log, or at its threads. Nobody waits for a place while one is free."""

    __slots__ = ("_at_log", "_got", "_least", "_places", "_queues")

    def __init__(self, places: int = AT_ONCE) -> None:
        self._places = places
        self._at_log = 0
        #: Who waits for a place, by address, in the order in which they came.
        self._queues: dict[str, dict[_Turn, None]] = {}
        #: Bytes that had a place at the log, by address; and what the last one had got that was given one.
        self._got: dict[str, int] = {}
        self._least = 0

    async def wait(self, address: str, size: int, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """``await wait()``, the log's, when it's the turn of ``address`` with ``size`` bytes. Cancellable."""
        await self._come(address, size)
        try:
            await wait()
        finally:
            # whoever is given the place runs after this one, which tries again first
            self._leave()

    async def _come(self, address: str, size: int) -> None:
        if self._at_log < self._places:
            self._begin(address, size)
            return
        turn = _Turn(size)
        queue = self._queues.get(address)
        if queue is None:
            queue = self._queues[address] = {}
            # it didn't wait, so it has no claim to what the others got meanwhile
            self._got[address] = max(self._got.get(address, 0), self._least)
        queue[turn] = None
        try:
            await turn.event.wait()
        except BaseException:
            if turn.event.is_set():
                self._leave()
            else:
                self._unqueue(address, turn)
            raise

    def _unqueue(self, address: str, turn: _Turn) -> None:
        queue = self._queues[address]
        del queue[turn]
        if not queue:
            del self._queues[address]

    def _begin(self, address: str, size: int) -> None:
        self._at_log += 1
        if address not in self._got and len(self._got) > _KNOWN_MAX + len(self._queues):
            self._got = {name: self._got[name] for name in self._queues}
        self._got[address] = self._got.get(address, self._least) + size

    def _leave(self) -> None:
        self._at_log -= 1
        while self._queues and self._at_log < self._places:
            address = min(islice(self._queues, _LOOK_MAX), key=self._got.__getitem__)
            self._least = self._got[address]
            turn = next(iter(self._queues[address]))
            self._queues[address] = self._queues.pop(address)  # others are looked at next
            self._unqueue(address, turn)
            self._begin(address, turn.size)
            turn.event.set()
        if not self._at_log:
            self._got.clear()
            self._least = 0
