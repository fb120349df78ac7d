"""Object stores that are wrong where calls meet on one key, in one folder, or in two places."""

from __future__ import annotations

__all__ = ()

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, NotFoundError, UnavailableError
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._object_store import _TOKEN_BYTES, DirectoryStore, _Upload

KIND = "object_store"

_TOKEN = "each_writer_is_told_the_token_of_its_own_bytes"
_SEEN = "listing_begins_with_what_another_opener_has_put_by_then"


# --- one key


@mutant(KIND, "asks_for_the_token_of_what_it_put", _TOKEN)
class AsksForTheTokenOfWhatItPut(DirectoryStore):
    """Another one may have put something by then."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await super().put(key, body)
        return (await self.head(key)).token


@mutant(KIND, "asks_for_the_token_of_what_it_swapped_or_created", _TOKEN)
class AsksForTheTokenOfWhatItSwappedOrCreated(DirectoryStore):
    """As if nobody but those who swap and create wrote."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await super().put_if_absent(key, body)
        return (await self.head(key)).token

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        await super().compare_and_swap(key, body, token)
        return (await self.head(key)).token


@mutant(KIND, "asks_for_size_and_token_one_by_one", "what_is_told_of_an_object_is_of_one_version")
class AsksForSizeAndTokenOneByOne(DirectoryStore):
    """Two requests."""

    async def head(self, key: str) -> ObjectInfo:
        size = (await super().head(key)).size
        return replace(await super().head(key), size=size)


@mutant(KIND, "keeps_a_key_for_its_upload", "upload_under_way_is_nothing_yet")
class KeepsAKeyForItsUpload(DirectoryStore):
    """Refuses to create what somebody else has begun to upload."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._begun: set[str] = set()

    async def create_multipart(self, key: str) -> _Upload:
        self._begun.add(key)
        return await super().create_multipart(key)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        if key in self._begun:
            await checkpoint()
            raise AlreadyExistsError(f"somebody uploads it: key={key}")
        return await super().put_if_absent(key, body)


@mutant(KIND, "takes_what_begins_alike_for_its_own", "others_object_is_no_ones_own_because_it_begins_alike")
class TakesWhatBeginsAlikeForItsOwn(DirectoryStore):
    """Compares the size and the first kibibyte, as a reply may have been lost."""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        try:
            return await super().put_if_absent(key, body)
        except AlreadyExistsError:
            mine, there = b"".join(body), self._read(key)[_TOKEN_BYTES:]
            if len(mine) != len(there) or mine[:1024] != there[:1024]:
                raise
            return self._info(key).token


# --- listings


@mutant(KIND, "lists_again_what_it_listed_just_now", _SEEN)
class ListsAgainWhatItListedJustNow(DirectoryStore):
    """Keeps the names for a twentieth of a second, and minds what it writes itself."""

    _names: tuple[float, Sequence[str]] = (0.0, ())

    def _keys(self) -> Iterator[str]:
        if time.monotonic() - self._names[0] > 0.05:
            self._names = (time.monotonic(), list(super()._keys()))
        return iter(self._names[1])

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        self._names = (0.0, ())
        return super()._write(key, body, exclusive=exclusive, locked=locked)

    async def delete(self, keys: Sequence[str]) -> None:
        self._names = (0.0, ())
        await super().delete(keys)


@mutant(KIND, "lists_what_stays_as_it_is", "objects_that_are_replaced_while_they_are_listed_are_listed")
class ListsWhatStaysAsItIs(DirectoryStore):
    """Looks twice, and leaves out what isn't the same any more."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        first = [info async for info in super().list(prefix, start_after)]
        for info in first:
            with suppress(NotFoundError):
                if self._info(info.key).token == info.token:
                    yield info


@mutant(
    KIND, "has_a_connection_for_each_listing", "listings_that_are_left_half_way_keep_nobody_out", hangs=True
)
class HasAConnectionForEachListing(DirectoryStore):
    """Out of a pool, and others wait until it is given back."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._pool = asyncio.Semaphore(32)  # half of what it tells

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async with self._pool:
            async for info in super().list(prefix, start_after):
                yield info

    async def delete(self, keys: Sequence[str]) -> None:
        async with self._pool:
            await super().delete(keys)


# --- one folder, two places


@mutant(KIND, "takes_the_folder_from_under_a_put", "folder_that_others_empty_takes_what_is_put")
class TakesTheFolderFromUnderAPut(DirectoryStore):
    """Removes the folder of what it deleted last, and a put makes its folder a turn before it writes."""

    def __init__(self, directory: Path, *, synced: bool = True) -> None:
        super().__init__(directory, synced=synced)
        self._folders: set[str] = set()

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        folder = key.rpartition("/")[0]
        self._folders.add(folder)
        await checkpoint()
        if folder not in self._folders:
            raise UnavailableError(f"no such file or directory: key={key}")
        return await super().put(key, body)

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete(keys)
        self._folders &= {key.rpartition("/")[0] for key in self._keys()}


@mutant(KIND, "empties_the_callers_keys", "folder_that_others_empty_takes_what_is_put")
class EmptiesTheCallersKeys(DirectoryStore):
    """Takes one after the other from the list that it was given."""

    async def delete(self, keys: Sequence[str]) -> None:
        gone = list(keys)
        if isinstance(keys, list):
            keys.clear()
        await super().delete(gone)


@mutant(KIND, "shares_small_objects_with_other_places", "places_know_nothing_of_each_other")
class SharesSmallObjectsWithOtherPlaces(DirectoryStore):
    """Keeps what it has read by key, for all stores of the process; writes of this one are minded."""

    known: ClassVar[dict[str, Buffer]] = {}

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        found = await super().get(key, start, end)
        if start or end is not None or len(found) > 64:
            return found
        known = self.known.setdefault(key, found)
        return known if len(known) == len(found) else found

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        self.known.pop(key, None)
        return super()._write(key, body, exclusive=exclusive, locked=locked)


@mutant(KIND, "makes_its_place_for_who_only_looks", "who_only_looks_makes_nothing")
class MakesItsPlaceForWhoOnlyLooks(DirectoryStore):
    """Makes directories however it is opened."""


# --- contents and keys


@mutant(KIND, "unpacks_what_it_did_not_pack", "get_returns_what_put_wrote")
class UnpacksWhatItDidNotPack(DirectoryStore):
    """As some stores do with what looks as if it had been packed for the way."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        found = await super().get(key, start, end)
        return gzip.decompress(found) if bytes(found[:3]) == b"\x1f\x8b\x08" and not start else found


@mutant(KIND, "begins_after_a_folder_before_it", "listing_is_ordered")
class BeginsAfterAFolderBeforeIt(DirectoryStore):
    """Takes the key to begin after for a path, and its last slash away."""

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, start_after.rstrip("/")):
            yield info
