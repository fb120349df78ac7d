"""Creating objects: patient with a store that fails, and with a second put beside one that is slow."""

from __future__ import annotations

__all__ = ("Puts",)

import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio

from penstock.errors import (
    AlreadyExistsError,
    CorruptError,
    FencedError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi import Buffer
from penstock.spi.object_store import ObjectStore
from penstock_wal_s3._format import HEADER_BYTES

#: Puts that are remembered, and how many must be before the first is hedged.
_PUTS_KEPT = 128
_PUTS_MIN = 16
_SLOW_PART = 0.95
_HEDGE_S_MIN = 0.01
#: Second puts at the same time: when the whole store is slow they don't help.
_HEDGES_MAX = 2
_DELAY_S = (0.1, 5.0)
#: A put that took longer is believed only when its owner has looked whether it is still the owner.
_DOUBT_S = 30.0


class Puts:
    """Creates the objects of one opening of a log. ``still_owner()`` raises FencedError if it isn't any more."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        hedge_after_ms: int,
        clock: Callable[[], float],
        still_owner: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._hedge_after_s = hedge_after_ms / 1000
        self._clock = clock
        self._still_owner = still_owner
        self._durations: deque[float] = deque(maxlen=_PUTS_KEPT)
        self._hedging = 0

    async def create(self, key: str, body: Sequence[Buffer]) -> None:
        """Create the object, whose first buffer is its header; returns when it is durable, and the log's.

        A store that is unavailable is waited for. Raises FencedError if somebody else's object is there.
        """
        started, since_boot = self._clock(), _since_boot()
        delay_s, delay_s_max = _DELAY_S
        while True:
            try:
                await self._create_hedged(key, body)
                break
            except UnavailableError:
                await anyio.sleep(delay_s * random.uniform(0.5, 1))
                delay_s = min(2 * delay_s, delay_s_max)
        # Slots are vacant again when they are long trimmed. A successor keeps its seal for an hour, so only a put
        # that was begun before, and was held up for so long, can land in one.
        if max(self._clock() - started, _since_boot() - since_boot) > _DOUBT_S:
            await self._still_owner()

    async def _create_hedged(self, key: str, body: Sequence[Buffer]) -> None:
        ended = anyio.Event()
        errors: list[PenstockError] = []
        running = 1
        is_created = False

        async def put() -> None:
            nonlocal running, is_created
            try:
                await self._create_once(key, body)
            except PenstockError as error:
                errors.append(kept(error))
                running -= 1
                if running:
                    return  # the other one may do better
            else:
                is_created = True
            ended.set()

        started = self._clock()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put)
            with anyio.move_on_after(self._slow_s()):
                await ended.wait()
            if not ended.is_set() and self._hedging < _HEDGES_MAX:
                running += 1
                self._hedging += 1
                try:
                    tasks.start_soon(put)
                    await ended.wait()
                finally:
                    self._hedging -= 1
            await ended.wait()
            tasks.cancel_scope.cancel()
        if not is_created:
            raise again(errors[0])
        self._durations.append(self._clock() - started)

    def _slow_s(self) -> float:
        """After so long a put is slow."""
        if self._hedge_after_s:
            return self._hedge_after_s
        if len(self._durations) < _PUTS_MIN:
            return float("inf")
        return max(_HEDGE_S_MIN, sorted(self._durations)[int(len(self._durations) * _SLOW_PART)])

    async def _create_once(self, key: str, body: Sequence[Buffer]) -> None:
        try:
            await self._store.put_if_absent(key, body)
        except AlreadyExistsError:
            # Perhaps it is ours: a reply was lost, or two of our puts met. The header has a nonce.
            try:
                found = bytes(await self._store.get(key))
            except NotFoundError:
                found = b""  # only a newer owner deletes what it took
            if found[:HEADER_BYTES] != bytes(body[0])[:HEADER_BYTES]:
                raise FencedError(f"a newer owner took the wal over: key={key!r}") from None
            if found != b"".join(body):  # there are stores that keep what came of a put that broke off
                raise CorruptError(
                    f"the object store kept a part of an object as the whole, its puts aren't atomic: key={key!r} "
                    f"bytes={len(found)} wanted={sum(map(len, body))}"
                ) from None


def _since_boot() -> float:
    """Seconds, also those in which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
