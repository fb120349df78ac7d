"""An object store whose requests take time, fail, lose their replies, and outlive the process that made them."""

from __future__ import annotations

__all__ = ("Bucket", "BucketClient", "Pace")

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from random import Random
from typing import Any, TypeVar

from penstock.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, UnavailableError
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer
from penstock_conformance.simulation._loop import SimulatedLoop

T = TypeVar("T")

_PAGE = 50


class Pace:
    """How long requests take, and how many go wrong; changed from life to life."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.fault_rate = 0.0
        self.typical_s = 0.02

    def delay_s(self) -> float:
        """Of one way: mostly near the typical, sometimes far more."""
        slow = self._random.random()
        factor = 100 if slow < self.fault_rate / 20 else 8 if slow < 0.05 else 1
        return self.typical_s * factor * self._random.uniform(0.05, 1.0)

    def fault(self) -> str:
        """What happens to a request: nothing, ``refused`` before its effect, or ``lost`` is the reply."""
        if self._random.random() >= self.fault_rate:
            return ""
        return self._random.choice(("refused", "refused", "lost", "conflict"))


class Bucket:
    """The objects. They outlive every process; each request has its effect at one moment."""

    def __init__(self, loop: SimulatedLoop, random: Random) -> None:
        self.loop = loop
        self.pace = Pace(random)
        self.objects: dict[str, bytes] = {}
        self.modified_ms: dict[str, int] = {}
        #: Every object that was ever created with put-if-absent, the entries of the metadata log among them.
        self.created: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.faults = 0
        #: Every request is refused.
        self.is_failing = False
        #: So much longer than usual everything takes.
        self.slowness = 1.0

    def store(self, key: str, body: bytes) -> None:
        """Keep an object, now."""
        self.objects[key] = body
        self.modified_ms[key] = int(self.loop.time() * 1000)


class BucketClient:
    """The bucket as one process sees it. Satisfies ``penstock.spi.object_store.ObjectStore``."""

    capabilities = ObjectStoreCapabilities(put_if_absent=True, durable=True, durability_domain="region")
    location = "simulated bucket"

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        #: A dead process changes nothing any more, and hears nothing.
        self.is_dead = False
        #: Until then replies are held up: the process is cut off, while what it sent has its effect.
        self.cut_off_until_s = 0.0

    async def _request(self, name: str, effect: Callable[[], T]) -> T:
        """Send a request: its effect comes after a while, whatever becomes of who sent it, then its reply."""
        bucket = self._bucket
        loop, pace = bucket.loop, bucket.pace
        if self.is_dead:
            await asyncio.sleep(0.01)
            raise UnavailableError("simulated: this process is dead")
        bucket.requests[name] += name != "also deleted"
        fault = "refused" if bucket.is_failing else pace.fault()
        reply: asyncio.Future[T] = loop.create_future()
        way_back_s = pace.delay_s() * bucket.slowness

        def answer(value: Any, error: Exception | None) -> None:
            if self.is_dead:
                error = UnavailableError("simulated: this process is dead")
            if reply.done():
                return
            if error is not None:
                reply.set_exception(error)
            else:
                reply.set_result(value)

        def arrive() -> None:
            value: Any = None
            error: Exception | None = None
            if fault == "refused":
                error = UnavailableError("simulated: 503, slow down")
            elif fault == "conflict":
                error = UnavailableError("simulated: 409, another request is under way")
            else:
                try:
                    value = effect()
                except Exception as raised:  # noqa: BLE001 - the reply
                    error = raised
            if fault:
                bucket.faults += 1
            if fault == "lost":
                value, error = None, UnavailableError("simulated: the reply was lost")
            held_s = max(0.0, self.cut_off_until_s - loop.time())
            loop.call_later(held_s + way_back_s, answer, value, error)

        loop.call_later(pace.delay_s() * bucket.slowness, arrive)
        return await reply

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        def effect() -> bytes:
            body = self._found(key)
            if start > len(body):
                raise InvalidRequestError(f"the range starts past the object: key={key}")
            return body[start:end]

        return await self._request("get", effect)

    async def head(self, key: str) -> ObjectInfo:
        return await self._request("head", lambda: self._info(key))

    def _found(self, key: str) -> bytes:
        try:
            return self._bucket.objects[key]
        except KeyError:
            raise NotFoundError(f"no such object: key={key}") from None

    def _info(self, key: str) -> ObjectInfo:
        return ObjectInfo(
            key=key, size=len(self._found(key)), modified_ms=self._bucket.modified_ms.get(key, 0)
        )

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        data = b"".join(body)
        await self._request("put", lambda: self._bucket.store(key, data))
        return ""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        data = b"".join(body)

        def effect() -> None:
            if key in self._bucket.objects:
                raise AlreadyExistsError(f"the object is there already: key={key}")
            self._bucket.store(key, data)
            # the first is the one that counts: what was deleted isn't vacant, whoever comes late
            self._bucket.created.setdefault(key, data)

        await self._request("put_if_absent", effect)
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise InvalidRequestError("the simulated bucket has no compare-and-swap")

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise InvalidRequestError("the simulated bucket has no uploads in parts")

    async def delete(self, keys: Sequence[str]) -> None:
        def effect(key: str) -> None:
            self._bucket.objects.pop(key, None)

        # of a bulk deletion, which is one request, some keys may fail
        for number, key in enumerate(keys):
            await self._request("also deleted" if number else "delete", partial(effect, key))

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        after = start_after
        while True:

            def effect(after: str = after) -> list[ObjectInfo]:
                keys = sorted(k for k in self._bucket.objects if k.startswith(prefix) and k > after)
                return [self._info(key) for key in keys[:_PAGE]]

            page = await self._request("list", effect)
            for info in page:
                yield info
            if len(page) < _PAGE:
                return
            after = page[-1].key

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics()
