"""The small interface between the store and what it is kept on; keys come here already checked."""

from __future__ import annotations

__all__ = ("Backend", "Health", "body_size", "check_key", "check_prefix", "check_range")

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.errors import InvalidRequestError, UnavailableError
from penstock.spi.object_store import MultipartUpload, ObjectInfo, ObjectStoreCapabilities
from penstock.spi.plugin import Buffer

_PRINTABLE = re.compile(r"[\x20-\x7e]*")
#: S3 and GCS take 1024 bytes; the prefix of the URL needs some of them.
_KEY_BYTES_MAX = 900


@dataclass(slots=True)
class Health:
    """Attempts that failed in a row, also those that are repeated before anybody hears of them."""

    consecutive_failures: int = 0
    last_error: str = ""

    def failed(self, error: UnavailableError) -> None:
        """An attempt failed."""
        self.consecutive_failures += 1
        self.last_error = str(error)

    def worked(self) -> None:
        """An attempt was answered, be it with a refusal."""
        self.consecutive_failures = 0


class Backend(Protocol):
    """Each method means what its namesake in ``ObjectStore`` means; refusals and counting are done above."""

    @property
    def capabilities(self) -> ObjectStoreCapabilities: ...

    @property
    def location(self) -> str: ...

    @property
    def endpoint(self) -> str: ...

    @property
    def health(self) -> Health: ...

    async def get(self, key: str, start: int, end: int | None) -> Buffer: ...

    async def head(self, key: str) -> ObjectInfo: ...

    async def put(self, key: str, body: Sequence[Buffer]) -> str: ...

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str: ...

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str: ...

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str: ...

    async def create_multipart(self, key: str) -> MultipartUpload: ...

    async def delete(self, keys: Sequence[str]) -> None: ...

    def list(self, prefix: str, start_after: str) -> AsyncIterator[ObjectInfo]: ...


def check_key(key: str) -> None:
    """Raise InvalidRequestError unless ``key`` is a plain relative ``/``-separated path of printable ASCII."""
    if not key or len(key) > _KEY_BYTES_MAX or not _PRINTABLE.fullmatch(key):
        raise InvalidRequestError(
            f"object keys are 1 to {_KEY_BYTES_MAX} printable ASCII characters: key={key!r}"
        )
    for part in key.split("/"):
        if part in {"", ".", ".."}:
            raise InvalidRequestError(f"object keys have no empty, '.' or '..' part: key={key!r}")


def check_prefix(prefix: str) -> None:
    """Raise InvalidRequestError unless ``prefix`` could be the beginning of a key (or is empty)."""
    if prefix.startswith("/") or not _PRINTABLE.fullmatch(prefix):
        raise InvalidRequestError(
            f"a key prefix is printable ASCII without a leading slash: prefix={prefix!r}"
        )


def check_range(key: str, size: int, start: int, end: int | None) -> int:
    """The exclusive end of the range, cut to ``size``. Raises InvalidRequestError for a bad range."""
    if start < 0 or start > size or (end is not None and end < start):
        raise InvalidRequestError(
            f"range outside of the object: key={key!r} start={start} end={end} size={size}"
        )
    return size if end is None or end > size else end


def body_size(body: Sequence[Buffer]) -> int:
    """Bytes in ``body``."""
    return sum(map(len, body))
