"""S3 with its two frequent requests by obstore: puts and ranged reads, with a fraction of the event loop's time.

Everything else is s3fs's, and so are endpoint, region and credentials. botocore makes each request on the event loop,
in 0.7 to 1.5 ms; obstore makes it in threads of its own, without the interpreter. It signs the SHA-256 of what it
puts, so a store refuses a put that broke off.
"""

from __future__ import annotations

__all__ = ("ObstoreBackend", "unfit_option")

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
from obstore.store import S3Store

from penstock_object_store_fsspec._remote import SWAP_MARK
from penstock_object_store_fsspec._s3 import S3Backend, is_directory_bucket

#: The options of s3fs that mean the same here; what they lead to is taken from its client.
_OPTIONS = frozenset({"key", "secret", "token", "profile", "endpoint_url", "client_kwargs", "config_kwargs"})
_CLIENT_OPTIONS = frozenset({"region_name", "endpoint_url"})
_CONFIG_OPTIONS = frozenset({"max_pool_connections"})
#: So long credentials are used until s3fs's are asked again, which renews them.
_CREDENTIALS_S = 300
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_LACKING = re.compile(r"([A-Z][A-Za-z-]+) [Hh]eader (?:missing|not present)")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")


class ResponseError(Exception):
    """What the store answered, or 0 if it didn't."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"status={status} code={code}")  # the client's own text may show a request
        self.status_code = status
        self.error_code = code


class ConnectionFailedError(ResponseError):
    """There is no connection; its name says so, as those of other clients do."""


class NoCredentialsError(ResponseError):
    """There are no credentials; its name is botocore's."""


def unfit_option(bucket: str, options: Mapping[str, Any]) -> str:
    """The option, or what of the URL, that only s3fs understands; empty if there is none."""
    if is_directory_bucket(bucket):
        return "a directory bucket"
    for prefix, given, known in (
        ("", options, _OPTIONS),
        ("client_kwargs.", options.get("client_kwargs") or {}, _CLIENT_OPTIONS),
        ("config_kwargs.", options.get("config_kwargs") or {}, _CONFIG_OPTIONS),
    ):
        for name in sorted(given):
            if name not in known:
                return f"options.{prefix}{name}"
    return ""


class ObstoreBackend(S3Backend):
    """See ``S3Backend``: attempts, retries and the meaning of errors are the same."""

    _store: S3Store | None = None

    async def start_session(self) -> None:
        await super().start_session()
        client = self._session
        self._credentials = client._request_signer._credentials
        if self._credentials is None:
            raise NoCredentialsError(0, "")
        endpoint, region = client.meta.endpoint_url, client.meta.region_name
        own_endpoint = endpoint != f"https://s3.{region}.amazonaws.com"
        self._store = S3Store(
            self.bucket,
            region=region,
            virtual_hosted_style_request=not own_endpoint,
            credential_provider=self._provide,
            client_options={
                "allow_http": endpoint.startswith("http:"),
                "timeout": timedelta(milliseconds=self.settings.request_timeout_ms),
            },
            retry_config={"max_retries": 0},  # attempts are made here, where their outcomes are looked at
            **({"endpoint": endpoint} if own_endpoint else {}),
        )

    async def end_session(self) -> None:
        self._store = None
        await super().end_session()

    async def _provide(self) -> Any:
        frozen = await self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=_CREDENTIALS_S),
        }

    async def request_get(self, key: str, start: int, end: int | None) -> memoryview:
        place = f"{self.prefix}{key}"
        try:
            if end is not None:
                return memoryview(await obstore.get_range_async(self._opened, place, start=start, end=end))
            found = await obstore.get_async(self._opened, place, options={"range": {"offset": start}})
            return memoryview(await found.bytes_async())
        except (obstore.exceptions.BaseError, OSError) as error:
            raise self._failure("get", key, error) from None

    async def request_swap(self, key: str, data: bytes, token: str, mark: str) -> str:
        return await self._send(key, data, mode={"e_tag": token}, attributes={SWAP_MARK: mark})

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        return await self._send(key, data, mode="create" if mode == "create" else "overwrite")

    async def _send(self, key: str, data: bytes, **parameters: Any) -> str:
        place = f"{self.prefix}{key}"
        try:
            answer = await obstore.put_async(self._opened, place, data, use_multipart=False, **parameters)
        except (obstore.exceptions.BaseError, OSError) as error:
            raise self._failure("put", key, error) from None
        return self.tag_of("put", key, {"ETag": answer["e_tag"]})

    def _failure(self, action: str, key: str, error: Exception) -> Exception:
        if "non-partial response" in str(error):
            return self.ignores_ranges(key)
        lacking = _LACKING.search(str(error))
        return self.lacks(action, key, lacking[1]) if lacking else _response_of(error)

    @property
    def _opened(self) -> S3Store:
        assert self._store is not None, "the session was started"
        return self._store


def _response_of(error: Exception) -> ResponseError:
    """What obstore says in words only."""
    text = str(error)
    if "kind: Connect" in text:
        return ConnectionFailedError(0, "")
    status, code = _STATUS.search(text), _CODE.search(text)
    return ResponseError(int(status[1]) if status else 0, code[1] if code else "")
