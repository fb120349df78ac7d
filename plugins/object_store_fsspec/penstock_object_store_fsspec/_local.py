"""Objects as files: the asynchronous half.

A call that is cancelled ends when its step on the worker thread ends, so buffers are never used afterwards.
A file system that stalls therefore stalls the call; no timeout could free its thread.
"""

from __future__ import annotations

__all__ = ("LocalBackend", "open_local")

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter

from penstock.errors import InvalidRequestError
from penstock.files import ACCESSES, Access
from penstock.spi.object_store import ObjectInfo, ObjectStoreCapabilities
from penstock.spi.plugin import Buffer
from penstock.threads import run_in_thread
from penstock_object_store_fsspec._backend import Health
from penstock_object_store_fsspec._files import FileTree, PartialFile
from penstock_object_store_fsspec._settings import LOCAL_CAPABILITIES

T = TypeVar("T")

#: Reads and writes have threads of their own, so that a burst of cold reads doesn't hold up a put.
_READERS_MAX = 8
_WRITERS_MAX = 8
_LIST_PAGE = 1000


@asynccontextmanager
async def open_local(
    root: str, *, read_only: bool = False, access: Access = ACCESSES["owner"]
) -> AsyncIterator[LocalBackend]:
    """Open the directory ``root``, an absolute path, making it if need be, or only to look at what is there.

    Raises ConfigError if it can't be used.
    """
    tree = FileTree(root, access)
    if not read_only:
        await run_in_thread(tree.open)
    backend = LocalBackend(tree)
    try:
        yield backend
    finally:
        with CancelScope(shield=True):
            await backend.close()


class LocalBackend:
    """Runs the steps of a FileTree on worker threads."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        self._readers = CapacityLimiter(_READERS_MAX)
        self._writers = CapacityLimiter(_WRITERS_MAX)
        self.uploads: set[_Upload] = set()
        self.health = Health()

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        return replace(LOCAL_CAPABILITIES, put_if_absent=self._tree.links)

    @property
    def location(self) -> str:
        return f"file://{self._tree.root}"

    @property
    def endpoint(self) -> str:
        return ""

    async def close(self) -> None:
        for upload in tuple(self.uploads):
            await upload.abort()
        await run_in_thread(self._tree.close)

    async def get(self, key: str, start: int, end: int | None) -> Buffer:
        return await run_in_thread(self._tree.get, key, start, end, limiter=self._readers)

    async def head(self, key: str) -> ObjectInfo:
        return await run_in_thread(self._tree.head, key, limiter=self._readers)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await run_in_thread(self._tree.put, key, body, limiter=self._writers)
        return ""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await run_in_thread(self._tree.put_if_absent, key, body, limiter=self._writers)
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise InvalidRequestError(f"files have no compare-and-swap: key={key!r}")

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        raise InvalidRequestError(
            f"appends aren't supported here: key={key!r} location={self.location} offset={offset}"
        )

    async def create_multipart(self, key: str) -> _Upload:
        partial = await run_in_thread(self._tree.create, key, limiter=self._writers)
        upload = _Upload(self, self._tree, self._writers, partial)
        self.uploads.add(upload)
        return upload

    async def delete(self, keys: Sequence[str]) -> None:
        await run_in_thread(self._tree.delete, keys, limiter=self._writers)

    async def list(self, prefix: str, start_after: str) -> AsyncIterator[ObjectInfo]:
        walk = self._tree.list(prefix, start_after)
        while page := await run_in_thread(_take, walk, limiter=self._readers):
            for info in page:
                yield info


def _take(walk: Iterator[T]) -> Sequence[T]:
    return tuple(islice(walk, _LIST_PAGE))


class _Upload:
    """Parts appended to a temporary file, which ``complete`` renames."""

    def __init__(
        self, backend: LocalBackend, tree: FileTree, writers: CapacityLimiter, partial: PartialFile
    ) -> None:
        self._backend = backend
        self._tree = tree
        self._writers = writers
        self._partial = partial

    def _check_open(self) -> None:
        if self not in self._backend.uploads:
            raise InvalidRequestError(f"the upload was completed or aborted: key={self._partial.key!r}")

    async def write_part(self, part: Sequence[Buffer]) -> None:
        self._check_open()
        await run_in_thread(self._tree.write, self._partial, part, limiter=self._writers)

    async def complete(self) -> None:
        self._check_open()
        await run_in_thread(self._tree.publish, self._partial, limiter=self._writers)
        await self.abort()

    async def abort(self) -> None:
        if self in self._backend.uploads:
            self._backend.uploads.remove(self)
            with CancelScope(shield=True):
                await run_in_thread(self._tree.discard, self._partial, limiter=self._writers)
