"""The object store as the kernel sees it: checks, refusals and counters around one backend."""

from __future__ import annotations

__all__ = ("FsspecObjectStore",)

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Final, cast

from anyio.lowlevel import checkpoint

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer
from penstock_object_store_fsspec._backend import Backend, body_size, check_key, check_prefix

#: Objects that are listed before others get their turn: about a millisecond.
_LISTED: Final = 100


class FsspecObjectStore:
    """See ``penstock.spi.object_store.ObjectStore`` for the contract of every method."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._counts = {"gets": 0, "puts": 0, "deletes": 0, "lists": 0, "errors": 0}
        self._bytes_read = 0
        self._bytes_written = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location}>"

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        """What the backend of the configured URL can do."""
        return self._backend.capabilities

    @property
    def location(self) -> str:
        """The URL without secrets."""
        return self._backend.location

    @property
    def endpoint(self) -> str:
        """The server that requests go to, without credentials; empty for local stores, and where it's the default."""
        return self._backend.endpoint

    @contextmanager
    def _counted(self, what: str, amount: int = 1) -> Iterator[None]:
        self._counts[what] += amount
        try:
            yield
        except UnavailableError as error:
            self._counts["errors"] += 1
            if not self._backend.health.consecutive_failures:
                self._backend.health.failed(error)
            raise
        except (NotFoundError, AlreadyExistsError, ConflictError):
            self._backend.health.worked()  # a refusal is an answer
            raise
        else:
            self._backend.health.worked()

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        """See ``ObjectStore.get``."""
        check_key(key)
        if start < 0 or (end is not None and end < start):
            raise InvalidRequestError(f"not a range: key={key!r} start={start} end={end}")
        with self._counted("gets"):
            data = await self._backend.get(key, start, end)
        self._bytes_read += len(data)
        return data

    async def head(self, key: str) -> ObjectInfo:
        """See ``ObjectStore.head``."""
        check_key(key)
        with self._counted("gets"):
            return await self._backend.head(key)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        """See ``ObjectStore.put``."""
        check_key(key)
        with self._counted("puts"):
            token = await self._backend.put(key, body)
        self._bytes_written += body_size(body)
        return token

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        """See ``ObjectStore.put_if_absent``."""
        self._require("put_if_absent")
        check_key(key)
        with self._counted("puts"):
            token = await self._backend.put_if_absent(key, body)
        self._bytes_written += body_size(body)
        return token

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        """See ``ObjectStore.compare_and_swap``."""
        self._require("compare_and_swap")
        check_key(key)
        with self._counted("puts"):
            new_token = await self._backend.compare_and_swap(key, body, token)
        self._bytes_written += body_size(body)
        return new_token

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        """See ``AppendableStore.append``."""
        self._require("append")
        check_key(key)
        if offset < 0 or not body_size(body):
            raise InvalidRequestError(f"not an append: key={key!r} offset={offset} size={body_size(body)}")
        with self._counted("puts"):
            token = await self._backend.append(key, body, offset)
        self._bytes_written += body_size(body)
        return token

    async def create_multipart(self, key: str) -> MultipartUpload:
        """See ``ObjectStore.create_multipart``."""
        self._require("multipart")
        check_key(key)
        with self._counted("puts"):
            return _CountedUpload(self, await self._backend.create_multipart(key))

    async def delete(self, keys: Sequence[str]) -> None:
        """See ``ObjectStore.delete``."""
        for key in keys:
            check_key(key)
        with self._counted("deletes", len(keys)):
            await self._backend.delete(keys)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """See ``ObjectStore.list``."""
        check_prefix(prefix)
        check_prefix(start_after)
        if start_after:
            self._require("ordered_listing")
        with self._counted("lists"):
            # Every backend's list is an async generator; closing it here keeps its clean-up in this scope.
            async with aclosing(cast("Any", self._backend.list(prefix, start_after))) as found:
                left = _LISTED
                async for info in found:
                    if not left:
                        # a page comes at once, and what is done with each object takes some time, too
                        await checkpoint()
                        left = _LISTED
                    left -= 1
                    yield info

    def statistics(self) -> ObjectStoreStatistics:
        """See ``ObjectStore.statistics``."""
        return ObjectStoreStatistics(
            **self._counts,
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
            consecutive_failures=self._backend.health.consecutive_failures,
            last_error=self._backend.health.last_error,
        )

    def _require(self, capability: str) -> None:
        if not getattr(self._backend.capabilities, capability):
            raise InvalidRequestError(f"the object store has no {capability}: location={self.location}")


class _CountedUpload:
    """An upload whose bytes and errors are counted by its store."""

    def __init__(self, store: FsspecObjectStore, upload: MultipartUpload) -> None:
        self._store = store
        self._upload = upload

    async def write_part(self, part: Sequence[Buffer]) -> None:
        with self._store._counted("puts"):
            await self._upload.write_part(part)
        self._store._bytes_written += body_size(part)

    async def complete(self) -> None:
        with self._store._counted("puts"):
            await self._upload.complete()

    async def abort(self) -> None:
        await self._upload.abort()
