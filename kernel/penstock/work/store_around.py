"""An object store around another one: for whoever has something to do before and after each request."""

from __future__ import annotations

__all__ = ("Request", "StoreAround")

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, cast

from penstock.errors import InvalidRequestError
from penstock.spi.object_store import (
    AppendableStore,
    MultipartUpload,
    ObjectInfo,
    ObjectStore,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer


class Request(NamedTuple):
    """One request to a store."""

    #: The name of the method: ``get``, ``write_part``.
    call: str
    #: Bytes that it sends.
    sends: int = 0
    #: Bytes that it asks for; 0 where nobody knows.
    asks: int = 0
    #: It goes on with a listing that was counted when it began.
    goes_on: bool = False


class StoreAround:
    """See ``ObjectStore``: each request to ``store`` is made within :meth:`around`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def around(self, request: Request) -> AbstractAsyncContextManager[None]:
        """What is entered before the request and left after it, with its error if there is one."""
        raise NotImplementedError

    def came(self, size: int) -> None:
        """So many bytes were read by a request that is over."""

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        """See ``ObjectStore.capabilities``."""
        return self._store.capabilities

    @property
    def location(self) -> str:
        """See ``ObjectStore.location``."""
        return self._store.location

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        """See ``ObjectStore.get``."""
        async with self.around(Request("get", asks=0 if end is None else end - start)):
            data = await self._store.get(key, start, end)
        self.came(len(data))
        return data

    async def head(self, key: str) -> ObjectInfo:
        """See ``ObjectStore.head``."""
        async with self.around(Request("head")):
            return await self._store.head(key)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        """See ``ObjectStore.put``."""
        async with self.around(_sends("put", body)):
            return await self._store.put(key, body)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        """See ``ObjectStore.put_if_absent``."""
        async with self.around(_sends("put_if_absent", body)):
            return await self._store.put_if_absent(key, body)

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        """See ``ObjectStore.compare_and_swap``."""
        async with self.around(_sends("compare_and_swap", body)):
            return await self._store.compare_and_swap(key, body, token)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        """See ``AppendableStore.append``."""
        if not self.capabilities.append:
            raise InvalidRequestError(f"the object store has no append: location={self.location}")
        async with self.around(_sends("append", body)):
            return await cast("AppendableStore", self._store).append(key, body, offset)

    async def create_multipart(self, key: str) -> MultipartUpload:
        """See ``ObjectStore.create_multipart``."""
        async with self.around(Request("create_multipart")):
            return _UploadAround(self, await self._store.create_multipart(key))

    async def delete(self, keys: Sequence[str]) -> None:
        """See ``ObjectStore.delete``."""
        async with self.around(Request("delete")):
            await self._store.delete(keys)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """See ``ObjectStore.list``."""
        listing = aiter(self._store.list(prefix, start_after))
        request = Request("list")
        try:
            while True:
                # one after the other: who takes its time between two is not in a request meanwhile
                async with self.around(request):
                    info = await anext(listing, None)
                if info is None:
                    return
                yield info
                request = Request("list", goes_on=True)
        finally:
            close = getattr(listing, "aclose", None)
            if close is not None:
                await close()

    def statistics(self) -> ObjectStoreStatistics:
        """See ``ObjectStore.statistics``."""
        return self._store.statistics()


class _UploadAround:
    """See ``MultipartUpload``."""

    def __init__(self, store: StoreAround, upload: MultipartUpload) -> None:
        self._store = store
        self._upload = upload

    async def write_part(self, part: Sequence[Buffer]) -> None:
        async with self._store.around(_sends("write_part", part)):
            await self._upload.write_part(part)

    async def complete(self) -> None:
        async with self._store.around(Request("complete")):
            await self._upload.complete()

    async def abort(self) -> None:
        await self._upload.abort()  # all is over, and there may be little time: nobody is asked


def _sends(call: str, body: Sequence[Buffer]) -> Request:
    return Request(call, sends=sum(map(len, body)))
