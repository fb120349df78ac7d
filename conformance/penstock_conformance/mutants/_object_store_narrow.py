"""Object stores that are right for the usual sequence of buffers or keys, way of writing and order of calls."""

from __future__ import annotations

__all__ = ()

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import DirectoryStore, _Upload

KIND = "object_store"


@mutant(KIND, "takes_lists_and_tuples_only", "no_way_of_writing_keeps_a_buffer")
class TakesListsAndTuplesOnly(DirectoryStore):
    """Anything else is a buffer."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await super().put(key, body if isinstance(body, list | tuple) else body[:1])


@mutant(KIND, "deletes_lists_and_tuples", "deleted_objects_are_gone")
class DeletesListsAndTuples(DirectoryStore):
    """Anything else is a key."""

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys if isinstance(keys, list | tuple) else keys[:1])


@mutant(KIND, "loses_an_upload_whose_object_is_deleted", "upload_under_way_is_nothing_yet")
class LosesAnUploadWhoseObjectIsDeleted(DirectoryStore):
    """All that there is of a key goes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._uploads: dict[str, list[_Upload]] = {}

    async def create_multipart(self, key: str) -> _Upload:
        upload = await super().create_multipart(key)
        self._uploads.setdefault(key, []).append(upload)
        return upload

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys)
        for key in keys:
            for upload in self._uploads.pop(key, []):
                upload._parts.clear()


class _KeepsTheTime(DirectoryStore):
    """An object is as old as its beginning."""

    @contextmanager
    def _as_old(self, key: str) -> Iterator[None]:
        began = self._path(key).stat().st_mtime_ns if self._path(key).exists() else 0
        yield
        if began:
            os.utime(self._path(key), ns=(began, began))


_TIME = "time_of_an_object_is_that_of_its_newest_put"


@mutant(KIND, "keeps_the_time_over_a_swap", _TIME)
class KeepsTheTimeOverASwap(_KeepsTheTime):
    """Whoever swaps changes an object that there is."""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        with self._as_old(key):
            return await super().compare_and_swap(key, body, token)


class _AsOld(_Upload):
    async def complete(self) -> None:
        assert isinstance(self._store, _KeepsTheTime)
        with self._store._as_old(self._key):
            await super().complete()


@mutant(KIND, "keeps_the_time_over_an_upload", _TIME)
class KeepsTheTimeOverAnUpload(_KeepsTheTime):
    """Of what was there before."""

    async def create_multipart(self, key: str) -> _Upload:
        return _AsOld(self, key)
