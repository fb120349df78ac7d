"""GCS through gcsfs's session: one request per call, none of them repeated by the library."""

from __future__ import annotations

__all__ = ("GcsBackend",)

import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from penstock.spi.object_store import ObjectInfo
from penstock_object_store_fsspec._remote import SWAP_MARK, RemoteBackend


class GcsBackend(RemoteBackend):
    """Google Cloud Storage by its JSON API."""

    async def ask(
        self, method: str, path: str, *names: str, **parameters: Any
    ) -> tuple[Mapping[str, str], bytes]:
        """One request, one attempt; the answer's headers and bytes. ``names`` fill the gaps of ``path``, quoted."""
        request = type(self.filesystem)._request
        once = getattr(request, "__wrapped__", request)  # without gcsfs's own six attempts
        try:
            _, headers, _, contents = await once(self.filesystem, method, path, *names, **parameters)
        except OSError as error:
            if type(error) is OSError and str(error).startswith("Forbidden"):  # how gcsfs tells a 403
                raise PermissionError("refused") from None  # its text may have more than it should
            raise
        return headers, bytes(contents)

    async def ask_json(self, method: str, path: str, *names: str, **parameters: Any) -> dict[str, Any]:
        """The fields of an answer in JSON. Raises ValueError if it is something else."""
        _, contents = await self.ask(method, path, *names, **parameters)
        answer = json.loads(contents)
        if not isinstance(answer, dict):
            raise ValueError("not an object of JSON")
        return answer

    def name(self, key: str) -> str:
        """The object's name in the bucket."""
        return f"{self.prefix}{key}"

    async def request_get(self, key: str, start: int, end: int | None) -> bytes:
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        told, data = await self.ask(
            "GET", "b/{}/o/{}", self.bucket, self.name(key), alt="media", headers=wanted
        )
        self.check_told_range(key, start, told.get("Content-Range"), len(data))
        return data

    async def request_head(self, key: str) -> ObjectInfo:
        found = await self.ask_json("GET", "b/{}/o/{}", self.bucket, self.name(key))
        return self._info("head", key, found)

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        return await self._upload(key, data, {}, **({"ifGenerationMatch": "0"} if mode == "create" else {}))

    async def request_swap(self, key: str, data: bytes, token: str, mark: str) -> str:
        return await self._upload(key, data, {"metadata": {SWAP_MARK: mark}}, ifGenerationMatch=token)

    async def request_mark(self, key: str) -> tuple[str, str]:
        found = await self.ask_json("GET", "b/{}/o/{}", self.bucket, self.name(key))
        return (found.get("metadata") or {}).get(SWAP_MARK, ""), self._info("head", key, found).token

    async def _upload(self, key: str, data: bytes, fields: dict[str, Any], **condition: str) -> str:
        # gcsfs's own boundary is always the same; bytes that have it in them, as any producer can write them, would
        # end the object there.
        boundary = uuid4().hex
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'name': self.name(key), **fields})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        answer = await self.ask_json(
            "POST",
            f"{self.filesystem._location}/upload/storage/v1/b/{{}}/o",
            self.bucket,
            uploadType="multipart",
            headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
            data=io.BytesIO(b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))),
            **condition,
        )
        return str(self.told("put", key, "generation", answer.get("generation")))

    async def delete_one(self, key: str) -> None:
        await self.ask("DELETE", "b/{}/o/{}", self.bucket, self.name(key))

    async def request_list(self, prefix: str, start_after: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        parameters = {"prefix": self.name(prefix), "maxResults": "1000"}
        if start_after:
            parameters["startOffset"] = self.name(start_after)  # which is in the answer itself

        async def next_page() -> tuple[list[ObjectInfo], str | None]:
            page = await self.ask_json("GET", "b/{}/o", self.bucket, **parameters)
            return [self._listed(found) for found in page.get("items", ())], page.get("nextPageToken")

        while True:
            infos, token = await self.request("list", prefix, next_page)
            yield [info for info in infos if info.key > start_after]
            if not token:
                return
            parameters["pageToken"] = token

    def _listed(self, found: dict[str, Any]) -> ObjectInfo:
        name = self.told("list", "", "name", found.get("name"))
        return self._info("list", name.removeprefix(self.prefix), found)

    def _info(self, action: str, key: str, found: dict[str, Any]) -> ObjectInfo:
        modified = datetime.fromisoformat(self.told(action, key, "updated", found.get("updated")))
        return ObjectInfo(
            key=key,
            size=int(self.told(action, key, "size", found.get("size"))),
            modified_ms=int(modified.timestamp() * 1000),
            token=str(self.told(action, key, "generation", found.get("generation"))),
        )
