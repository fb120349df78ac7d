"""S3 through s3fs: its own session and configuration, requests by name, listing by pages, uploads in parts."""

from __future__ import annotations

__all__ = ("S3Backend", "is_directory_bucket", "lean_options")

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, cast

from penstock.checksum import checksum
from penstock.errors import ConflictError, InvalidRequestError, NotFoundError, PenstockError, UnavailableError
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock.threads import run_in_thread
from penstock_object_store_fsspec._remote import (
    SWAP_MARK,
    Backoff,
    DeniedError,
    RemoteBackend,
    shown_code,
    status_of,
)

logger = logging.getLogger("penstock.store")

#: DeleteObjects takes 1000 keys a request.
_DELETE_KEYS_MAX = 1000
#: The checksum of more than this is computed in a thread.
_CHECKSUM_INLINE_BYTES = 2**20
#: What stores answer to a header that they don't know.
_UNKNOWN_HEADER = frozenset({400, 501})
#: Directory buckets and their access points: AWS keeps these ends of names for them.
_DIRECTORY_BUCKET = re.compile(r"--xa?-s3$")
#: Requests in flight. botocore's own 10 let one slow reader's requests hold up a writer's.
_CONNECTIONS_MAX = 64


def is_directory_bucket(name: str) -> bool:
    """Whether a bucket is of S3 Express One Zone: in one zone, listed in any order, whatever ``StartAfter`` is."""
    return _DIRECTORY_BUCKET.search(name) is not None


def lean_options(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` over defaults: no checksums of botocore's, no retries but this plugin's, connections enough."""
    config: dict[str, Any] = {
        "max_pool_connections": _CONNECTIONS_MAX,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "retries": {"max_attempts": 0},
        "s3": {"payload_signing_enabled": False},
    }
    return {**options, "config_kwargs": {**config, **options.get("config_kwargs", {})}}


def _session(options: dict[str, Any]) -> Any:
    """As s3fs makes one, but that reads the thousand times of a page of a listing without guessing their format, and
    the description of S3, a megabyte, once a process."""
    from aiobotocore.session import AioSession

    session = AioSession(**options)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    return session


@cache
def _loader(data_path: str | None) -> Any:
    """What AWS's services are like, as read from there; nobody changes it."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def _time(told: Any) -> datetime:
    from botocore.utils import parse_timestamp

    try:
        found = datetime.fromisoformat(told)
    except (TypeError, ValueError):
        return cast("datetime", parse_timestamp(told))
    return found if found.tzinfo else cast("datetime", parse_timestamp(told))


class S3Backend(RemoteBackend):
    """S3 and what speaks its protocol."""

    _session: Any = None
    #: Whether the store takes a checksum with a put; None until the first one.
    _takes_checksums: bool | None = None

    async def start_session(self) -> None:
        self.filesystem.retries = 1
        if getattr(self.filesystem, "session", self) is None:
            self.filesystem.session = _session(self.filesystem.kwargs)
        self._session = await self.filesystem.set_session()
        config = self.settings.options.get("config_kwargs", {})
        connections = config.get("max_pool_connections", _CONNECTIONS_MAX)
        self.capabilities = replace(self.capabilities, multipart=True, requests_max=connections)
        if is_directory_bucket(self.bucket):
            self.capabilities = replace(
                self.capabilities, append=True, ordered_listing=False, durability_domain="zone"
            )

    async def end_session(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, operation: str, key: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One request of the S3 API."""
        if key is not None:
            parameters["Key"] = f"{self.prefix}{key}"
        answer: dict[str, Any] = await self.filesystem._call_s3(operation, Bucket=self.bucket, **parameters)
        return answer

    async def request_get(self, key: str, start: int, end: int | None) -> Buffer:
        wanted = f"bytes={start}-{'' if end is None else end - 1}"
        answer = await self.call("get_object", key, Range=wanted)
        async with answer["Body"] as body:
            data = bytes(await body.read())
        self.check_told_range(key, start, answer.get("ContentRange"), len(data))
        return data

    async def request_head(self, key: str) -> ObjectInfo:
        found = await self.call("head_object", key)
        return self._info("head", key, found, "ContentLength")

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        return await self._put(key, data, **({"IfNoneMatch": "*"} if mode == "create" else {}))

    async def request_swap(self, key: str, data: bytes, token: str, mark: str) -> str:
        return await self._put(key, data, IfMatch=token, Metadata={SWAP_MARK: mark})

    async def request_mark(self, key: str) -> tuple[str, str]:
        found = await self.call("head_object", key)
        return found.get("Metadata", {}).get(SWAP_MARK, ""), self.tag_of("head", key, found)

    async def _put(self, key: str, data: bytes, **parameters: Any) -> str:
        if self._takes_checksums is not False:
            # Without one, some stores keep what came of a put that broke off, as if that were the object.
            large = len(data) > _CHECKSUM_INLINE_BYTES
            crc = await run_in_thread(checksum, data) if large else checksum(data)
            encoded = base64.b64encode(crc.to_bytes(4, "big")).decode()
            try:
                answer = await self.call("put_object", key, Body=data, ChecksumCRC32C=encoded, **parameters)
            except Exception as error:
                if self._takes_checksums or status_of(error)[0] not in _UNKNOWN_HEADER:
                    raise
            else:
                self._takes_checksums = True
                return self.tag_of("put", key, answer)
        answer = await self.call("put_object", key, Body=data, **parameters)
        if self._takes_checksums is None:
            self._takes_checksums = False
            logger.warning(
                "the object store takes no checksum with what is put, `penstock object-store probe` tells whether it "
                "drops a put that breaks off all the same: location=%s",
                self.location,
            )
        return self.tag_of("put", key, answer)

    async def request_delete(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), _DELETE_KEYS_MAX):
            chunk = keys[at : at + _DELETE_KEYS_MAX]
            objects = [{"Key": f"{self.prefix}{key}"} for key in chunk]

            async def delete(objects: Sequence[dict[str, str]] = objects) -> None:
                answer = await self.call("delete_objects", Delete={"Objects": objects, "Quiet": True})
                if errors := answer.get("Errors"):
                    raise UnavailableError(
                        f"objects could not be deleted: location={self.location} count={len(errors)} "
                        f"first_key={errors[0].get('Key')!r} code={shown_code(errors[0].get('Code'))}"
                    )

            await self.request("delete many", chunk[0], delete)

    async def request_list(self, prefix: str, start_after: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        wanted = f"{self.prefix}{prefix}"
        parameters: dict[str, Any] = {"Prefix": wanted}
        if is_directory_bucket(self.bucket):  # its prefixes are folders; below any other it lists nothing
            parameters["Prefix"] = wanted[: wanted.rfind("/") + 1]
        if start_after:
            parameters["StartAfter"] = f"{self.prefix}{start_after}"

        async def next_page() -> tuple[list[ObjectInfo], str | None]:
            answer = await self.call("list_objects_v2", **parameters)
            infos = [self._listed(found) for found in answer.get("Contents", ())]
            if parameters["Prefix"] != wanted:
                infos = [info for info in infos if info.key.startswith(prefix)]
            if not answer.get("IsTruncated"):
                return infos, None
            field = "NextContinuationToken"
            return infos, self.told("list", prefix, field, answer.get(field))

        while True:
            infos, token = await self.request("list", prefix, next_page)
            yield infos
            if token is None:
                return
            parameters["ContinuationToken"] = token

    def _listed(self, found: dict[str, Any]) -> ObjectInfo:
        name = self.told("list", "", "Key", found.get("Key"))
        return self._info("list", name.removeprefix(self.prefix), found, "Size")

    def _info(self, action: str, key: str, found: dict[str, Any], size_field: str) -> ObjectInfo:
        modified = self.told(action, key, "LastModified", found.get("LastModified"))
        return ObjectInfo(
            key=key,
            size=self.told(action, key, size_field, found.get(size_field)),
            modified_ms=int(modified.timestamp() * 1000),
            token=self.tag_of(action, key, found),
        )

    def tag_of(self, action: str, key: str, found: dict[str, Any]) -> str:
        # proxies that compress call an answer's tag weak, and no condition holds for such a one; some lack the quotes
        tag = str(self.told(action, key, "ETag", found.get("ETag"))).removeprefix("W/").strip('"')
        return f'"{tag}"'

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        data = self._join(key, body)

        async def put() -> str:
            return self.tag_of(
                "append", key, await self.call("put_object", key, Body=data, WriteOffsetBytes=offset)
            )

        backoff = Backoff(self._clock, self.settings.retry_budget_ms)
        while True:
            try:
                return await self.attempt("append", key, put)
            except DeniedError:
                raise
            except (ConflictError, InvalidRequestError, NotFoundError, UnavailableError) as error:
                # a lost reply, or an end or a limit that was reached by ourselves: what is there tells
                ends_there = offset == 0
                with suppress(NotFoundError, InvalidRequestError):
                    # the token first: a later one may be of what another made of the object
                    there = await self.head(key)
                    ends_there = there.size == offset
                    if await self.get(key, offset, offset + len(data)) == data:
                        return there.token
                if isinstance(error, InvalidRequestError) and ends_there:
                    raise
                if not isinstance(error, UnavailableError):
                    raise ConflictError(
                        f"the object ends elsewhere: key={key!r} offset={offset} location={self.location}"
                    ) from error
                if not await backoff.wait():
                    raise

    async def create_multipart(self, key: str) -> _Upload:
        answer = await self.request("create upload", key, lambda: self.call("create_multipart_upload", key))
        return _Upload(self, key, self.told("create upload", key, "UploadId", answer.get("UploadId")))


class _Upload:
    """Buffers are gathered until they make a part; S3 refuses parts under 5 MiB but for the last."""

    def __init__(self, backend: S3Backend, key: str, upload_id: str) -> None:
        self._backend = backend
        self._key = key
        self._upload_id = upload_id
        self._tags: list[str] = []
        self._gathered = bytearray()
        self._open = True

    async def write_part(self, part: Sequence[Buffer]) -> None:
        self._check_open()
        for buffer in part:
            self._gathered += buffer
        if len(self._gathered) >= self._backend.settings.multipart_part_bytes:
            await self._send()

    async def _send(self) -> None:
        data = bytes(self._gathered)
        number = len(self._tags) + 1
        try:
            answer = await self._request("upload_part", PartNumber=number, Body=data)
        except NotFoundError as error:
            raise self._lost() from error
        self._tags.append(self._backend.tag_of("upload_part", self._key, answer))
        self._gathered.clear()

    async def complete(self) -> None:
        self._check_open()
        if self._gathered or not self._tags:
            await self._send()
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._tags, 1)]
        try:
            await self._request("complete_multipart_upload", MultipartUpload={"Parts": parts})
        except NotFoundError as error:  # dropped, or completed by an attempt whose reply was lost
            if not await self._is_stored():
                raise self._lost() from error
        self._open = False

    async def _is_stored(self) -> bool:
        """Whether the object is this upload's, as S3 makes the ETag of an object of those of its parts."""
        try:
            digests = b"".join(bytes.fromhex(tag.strip('"')) for tag in self._tags)
            found = (await self._backend.head(self._key)).token
        except (NotFoundError, ValueError):
            return False
        digest = hashlib.md5(digests, usedforsecurity=False).hexdigest()
        return found.strip('"') == f"{digest}-{len(self._tags)}"

    async def abort(self) -> None:
        if self._open:
            self._open = False
            try:
                await self._request("abort_multipart_upload")
            except NotFoundError:
                return

    async def _request(self, operation: str, **parameters: Any) -> dict[str, Any]:
        backend = self._backend
        return await backend.request(
            operation,
            self._key,
            lambda: backend.call(operation, self._key, UploadId=self._upload_id, **parameters),
        )

    def _lost(self) -> PenstockError:
        return UnavailableError(
            f"the upload is gone, begin it again: key={self._key!r} location={self._backend.location}"
        )

    def _check_open(self) -> None:
        if not self._open:
            raise InvalidRequestError(f"the upload was completed or aborted: key={self._key!r}")
