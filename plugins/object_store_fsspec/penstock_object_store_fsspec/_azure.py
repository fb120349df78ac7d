"""Azure Blob Storage through adlfs's client: one request per call, none of them repeated by the library."""

from __future__ import annotations

__all__ = ("AzureBackend",)

from collections.abc import AsyncIterator, Sequence
from typing import Any

from azure.core import MatchConditions

from penstock.spi.object_store import ObjectInfo
from penstock_object_store_fsspec._remote import SWAP_MARK, RemoteBackend

_PAGE_KEYS = 5000
#: The library would wait 15 s before it tries again.
_ONCE = {"retry_total": 0}


class AzureBackend(RemoteBackend):
    """Containers of blobs. Keys are names as they are; adlfs would take ``*`` and ``?`` in them for patterns."""

    def blob(self, key: str) -> Any:
        """The library's client for one object."""
        return self.filesystem.service_client.get_blob_client(self.bucket, f"{self.prefix}{key}")

    async def request_get(self, key: str, start: int, end: int | None) -> bytes:
        length = None if end is None else end - start
        stream = await self.blob(key).download_blob(offset=start, length=length, **_ONCE)
        return bytes(await stream.readall())

    async def request_head(self, key: str) -> ObjectInfo:
        return self._info("head", key, await self.blob(key).get_blob_properties(**_ONCE))

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        answer = await self.blob(key).upload_blob(data, overwrite=mode != "create", **_ONCE)
        return _token(self.told("put", key, "ETag", answer.get("etag")))

    async def request_swap(self, key: str, data: bytes, token: str, mark: str) -> str:
        answer = await self.blob(key).upload_blob(
            data,
            overwrite=True,
            etag=f'"{token}"',
            match_condition=MatchConditions.IfNotModified,
            metadata={SWAP_MARK: mark},
            **_ONCE,
        )
        return _token(self.told("swap", key, "ETag", answer.get("etag")))

    async def request_mark(self, key: str) -> tuple[str, str]:
        found = await self.blob(key).get_blob_properties(**_ONCE)
        # a proxy may change the case of headers, and the library keeps it
        names = {name.lower(): value for name, value in (found.metadata or {}).items()}
        return names.get(SWAP_MARK, ""), self._info("head", key, found).token

    async def delete_one(self, key: str) -> None:
        await self.blob(key).delete_blob(**_ONCE)

    async def request_list(self, prefix: str, start_after: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        container = self.filesystem.service_client.get_container_client(self.bucket)
        token: str | None = None
        while True:

            async def next_page(after: str | None = token) -> tuple[list[ObjectInfo], str | None]:
                listing = container.list_blobs(
                    name_starts_with=f"{self.prefix}{prefix}", results_per_page=_PAGE_KEYS, **_ONCE
                )
                pages = listing.by_page(after)
                async for page in pages:
                    infos = [self._listed(found) async for found in page]
                    return infos, pages.continuation_token
                return [], None

            infos, token = await self.request("list", prefix, next_page)
            yield [info for info in infos if info.key > start_after]
            if not token:
                return

    def _listed(self, found: Any) -> ObjectInfo:
        name = self.told("list", "", "Name", found.name)
        return self._info("list", name.removeprefix(self.prefix), found)

    def _info(self, action: str, key: str, found: Any) -> ObjectInfo:
        modified = self.told(action, key, "Last-Modified", found.last_modified)
        return ObjectInfo(
            key=key,
            size=self.told(action, key, "Content-Length", found.size),
            modified_ms=int(modified.timestamp() * 1000),
            token=_token(self.told(action, key, "ETag", found.etag)),
        )


def _token(etag: str) -> str:
    """The ETag as listings have it: other answers put quotes around it, and what compresses them calls it weak."""
    return etag.removeprefix("W/").strip('"')
