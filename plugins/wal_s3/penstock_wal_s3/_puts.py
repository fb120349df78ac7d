"""Creating objects: patient with a store that fails, and with a second put beside one that is slow."""

from __future__ import annotations

__all__ = ("Puts",)

import asyncio
import bisect
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

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

logger = logging.getLogger("penstock.wal.s3")

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
        #: Of the last puts; and the same ones, the shortest first.
        self._durations: deque[float] = deque()
        self._by_length: list[float] = []
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
        started = self._clock()
        put = _Attempt(self._create_once(key, body))
        running, errors, hedges = {put.task: put}, list[PenstockError](), 0
        try:
            # not a task group: that takes as long as all else that a put costs the event loop
            await asyncio.wait(running, timeout=self._slow_s())
            if not put.task.done() and self._hedging < _HEDGES_MAX:
                hedges = 1
                self._hedging += hedges
                put = _Attempt(self._create_once(key, body))
                running[put.task] = put
            while running:
                ended = [task for task in running if task.done()]
                if not ended:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    del running[task]
                    error = task.result()
                    if error is None:
                        self._took(self._clock() - started)
                        return
                    errors.append(error)  # the other one may do better
        finally:
            self._hedging -= hedges
            if running:
                for each in running.values():
                    each.scope.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait(running)
                for task in running:
                    if not task.cancelled() and (bug := task.exception()) is not None:
                        logger.error("a put that was given up failed: key=%s", key, exc_info=bug)
        raise again(errors[0])

    def _took(self, duration: float) -> None:
        if len(self._durations) == _PUTS_KEPT:
            oldest = self._durations.popleft()
            del self._by_length[bisect.bisect_left(self._by_length, oldest)]
        self._durations.append(duration)
        bisect.insort(self._by_length, duration)

    def _slow_s(self) -> float | None:
        """After so long a put is slow; None: that isn't known yet."""
        if self._hedge_after_s:
            return self._hedge_after_s
        if len(self._by_length) < _PUTS_MIN:
            return None
        return max(_HEDGE_S_MIN, self._by_length[int(len(self._by_length) * _SLOW_PART)])

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


class _Attempt:
    """A put under way. Its task returns the error that it ends with: one that it raised would be kept with frames."""

    __slots__ = ("scope", "task")

    def __init__(self, put: Coroutine[Any, Any, None]) -> None:
        self.scope = anyio.CancelScope()
        self.task = asyncio.get_running_loop().create_task(self._run(put), name="wal-put")

    async def _run(self, put: Coroutine[Any, Any, None]) -> PenstockError | None:
        with self.scope:
            try:
                await put
            except PenstockError as error:
                return kept(error)
        return None


def _since_boot() -> float:
    """Seconds, also those in which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
