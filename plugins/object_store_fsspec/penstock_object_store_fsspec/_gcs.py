"""GCS through gcsfs's session: one request per call, none of them repeated by the library."""

from __future__ import annotations

__all__ = ("GcsBackend",)

import io
import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from penstock.spi.object_store import ObjectInfo
from penstock_object_store_fsspec._remote import RemoteBackend


class GcsBackend(RemoteBackend):
    """Google Cloud Storage by its JSON API."""

    async def ask(self, method: str, path: str, *names: str, **parameters: Any) -> bytes:
        """One request, one attempt. ``names`` fill the gaps of ``path``, quoted."""
        request = type(self.filesystem)._request
        once = getattr(request, "__wrapped__", request)  # without gcsfs's own six attempts
        try:
            _, _, _, contents = await once(self.filesystem, method, path, *names, **parameters)
        except OSError as error:
            if type(error) is OSError and str(error).startswith("Forbidden"):  # how gcsfs tells a 403
                raise PermissionError("refused") from None  # its text may have more than it should
            raise
        return bytes(contents)

    def name(self, key: str) -> str:
        """The object's name in the bucket."""
        return f"{self.prefix}{key}"

    async def request_get(self, key: str, start: int, end: int | None) -> bytes:
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        return await self.ask("GET", "b/{}/o/{}", self.bucket, self.name(key), alt="media", headers=wanted)

    async def request_head(self, key: str) -> ObjectInfo:
        found = json.loads(await self.ask("GET", "b/{}/o/{}", self.bucket, self.name(key)))
        return _info(key, found)

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        # gcsfs's own boundary is always the same; bytes that have it in them, as any producer can write them, would
        # end the object there.
        boundary = uuid4().hex
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'name': self.name(key)})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        answer = await self.ask(
            "POST",
            f"{self.filesystem._location}/upload/storage/v1/b/{{}}/o",
            self.bucket,
            uploadType="multipart",
            headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
            data=io.BytesIO(b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))),
            **({"ifGenerationMatch": "0"} if mode == "create" else {}),
        )
        return str(json.loads(answer)["generation"])

    async def delete_one(self, key: str) -> None:
        await self.ask("DELETE", "b/{}/o/{}", self.bucket, self.name(key))

    async def request_list(self, prefix: str, start_after: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        parameters = {"prefix": self.name(prefix), "maxResults": "1000"}
        if start_after:
            parameters["startOffset"] = self.name(start_after)  # which is in the answer itself
        while True:
            answer = await self.request(
                "list", prefix, lambda: self.ask("GET", "b/{}/o", self.bucket, **parameters)
            )
            page = json.loads(answer)
            infos = [_info(found["name"].removeprefix(self.prefix), found) for found in page.get("items", ())]
            yield [info for info in infos if info.key > start_after]
            if not page.get("nextPageToken"):
                return
            parameters["pageToken"] = page["nextPageToken"]


def _info(key: str, found: dict[str, Any]) -> ObjectInfo:
    modified = datetime.fromisoformat(found["updated"])
    return ObjectInfo(
        key=key,
        size=int(found.get("size", 0)),
        modified_ms=int(modified.timestamp() * 1000),
        token=str(found["generation"]),
    )
