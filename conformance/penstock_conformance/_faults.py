"""An object store between a plugin and its medium that fails when it is told to."""

from __future__ import annotations

__all__ = ("FaultyStore", "error_of")

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

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
        #: Calls that failed.
        self.failed = 0

    def fail(self, method: str, *, times: int = 1) -> None:
        """The next calls of ``method`` do nothing and raise."""
        self._before[method] += times

    def lose_reply(self, method: str, *, times: int = 1) -> None:
        """The next calls of ``method`` do what they should, and raise."""
        self._after[method] += times

    def heal(self) -> None:
        """From now on all goes well."""
        self._before.clear()
        self._after.clear()

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
        self._meet(self._before, "list")
        async for info in self._store.list(prefix, start_after):
            yield info
            self._meet(self._after, "list")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _pass(self, method: str, call: Awaitable[T]) -> T:
        try:
            self._meet(self._before, method)
        except UnavailableError:
            call.close()  # type: ignore[attr-defined] # a coroutine that nobody will await
            raise
        result = await call
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
