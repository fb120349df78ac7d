"""An object store between a plugin and its medium that fails when it is told to."""

from __future__ import annotations

__all__ = ("FaultyStore", "error_of")

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

import anyio

from penstock.errors import UnavailableError
from penstock.spi.object_store import ObjectInfo, ObjectStore
from penstock.spi.plugin import Buffer

T = TypeVar("T")


class FaultyStore:
    """Passes everything on; calls that were told to fail raise UnavailableError, before or after their effect."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._before: Counter[str] = Counter()
        self._after: Counter[str] = Counter()
        self._skip: Counter[str] = Counter()
        self._held_methods: dict[str, bool] = {}
        #: Calls that wait to be released, in their order.
        self.held: list[anyio.Event] = []
        self._news = anyio.Event()
        #: Calls that were made, by method; and how many failed.
        self.calls: Counter[str] = Counter()
        self.failed = 0

    def fail(self, method: str, *, times: int = 1, skip: int = 0) -> None:
        """The calls of ``method`` behind the next ``skip`` do nothing and raise."""
        self._skip[method] = skip
        self._before[method] += times

    def lose_reply(self, method: str, *, times: int = 1) -> None:
        """The next calls of ``method`` do what they should, and raise."""
        self._after[method] += times

    def heal(self) -> None:
        """From now on all goes well."""
        self._before.clear()
        self._after.clear()
        self._skip.clear()

    def hold(self, *methods: str, after: bool = False) -> None:
        """From now on hold up calls of these methods, and of no other: before their effect, or their replies."""
        self._held_methods = dict.fromkeys(methods, after)

    def release(self) -> None:
        """Let all calls go on that are held up."""
        while self.held:
            self.release_one(0)

    def release_one(self, place: int) -> None:
        """Let one of :attr:`held` go on."""
        self.held.pop(place).set()

    async def wait_held(self, count: int) -> None:
        """Return when so many calls are held up."""
        while len(self.held) < count:
            await self._news.wait()

    async def _hold(self, method: str, *, after: bool) -> None:
        if self._held_methods.get(method) is after:
            event = anyio.Event()
            self.held.append(event)
            self._news.set()
            self._news = anyio.Event()
            await event.wait()

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        return await self._pass("get", self._store.get(key, start, end))

    async def head(self, key: str) -> ObjectInfo:
        return await self._pass("head", self._store.head(key))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await self._pass("put", self._store.put(key, body))

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        return await self._pass("put_if_absent", self._store.put_if_absent(key, body))

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        return await self._pass("compare_and_swap", self._store.compare_and_swap(key, body, token))

    async def delete(self, keys: Sequence[str]) -> None:
        await self._pass("delete", self._store.delete(keys))

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self.calls["list"] += 1
        self._meet(self._before, "list")
        async for info in self._store.list(prefix, start_after):
            yield info
            self._meet(self._after, "list")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _pass(self, method: str, call: Coroutine[Any, Any, T]) -> T:
        self.calls[method] += 1
        try:
            await self._hold(method, after=False)
            if self._skip[method] > 0:
                self._skip[method] -= 1
            else:
                self._meet(self._before, method)
        except BaseException:
            call.close()  # a coroutine that nobody will await
            raise
        result = await call
        await self._hold(method, after=True)
        self._meet(self._after, method)
        return result

    def _meet(self, faults: Counter[str], method: str) -> None:
        if faults[method] > 0:
            faults[method] -= 1
            self.failed += 1
            raise UnavailableError(f"the suite lets the medium fail, try again: method={method}")


async def error_of(awaitable: Awaitable[object]) -> Exception | None:
    """What it raised, for the clause to judge."""
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 # judged by the clause
        return error
    return None
