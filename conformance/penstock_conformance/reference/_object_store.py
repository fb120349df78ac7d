"""An object store in a directory: one file per object, its name the key in a reversible escape."""

from __future__ import annotations

__all__ = ("STORE_CAPABILITIES", "DirectoryStore", "forget_names")

import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from anyio.lowlevel import checkpoint
from pydantic import Field

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.files import ACCESSES, Access, create_file, make_directories
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.object_store import (
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreSpec,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer, Services

STORE_CAPABILITIES = ObjectStoreCapabilities(
    put_if_absent=True, compare_and_swap=True, append=True, multipart=True, small_parts=True
)

#: Tokens are random and stored in front of the body.
_TOKEN_BYTES = 16


@dataclass(slots=True)
class _Counts:
    gets: int = 0
    puts: int = 0
    deletes: int = 0
    lists: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    consecutive_failures: int = 0
    last_error: str = ""


@lru_cache(maxsize=4096)
def _name_of(key: str) -> str:
    """Of its file. A dot is escaped, too: "." and ".." are no names of files."""
    return quote(key, safe="").replace(".", "%2E")


class DirectoryStore:
    """Every method is one checkpoint, then blocking file I/O: simple, and whole or not at all."""

    def __init__(
        self,
        directory: Path,
        *,
        synced: bool = True,
        access: Access = ACCESSES["owner"],
        read_only: bool = False,
    ) -> None:
        self._synced = synced
        self._access = access
        self._objects = directory / "objects"
        self._temporary = directory / "temporary"
        self._read_only = read_only
        if not read_only:
            make_directories(self._objects, access)
            make_directories(self._temporary, access)
        self._lock_path = directory / "lock"
        self._counts = _Counts()

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        return STORE_CAPABILITIES

    @property
    def location(self) -> str:
        return str(self._objects)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        await checkpoint()
        if start < 0 or (end is not None and end < start):
            raise InvalidRequestError(f"not a range: key={key} start={start} end={end}")
        with self._counted():
            body = self._read(key)[_TOKEN_BYTES:]
            if start > len(body):
                raise InvalidRequestError(f"the range starts past the object: key={key} start={start}")
            data = self._range(body, start, end)
            self._counts.gets += 1
            self._counts.bytes_read += len(data)
            return data

    def _range(self, body: bytes, start: int, end: int | None) -> bytes:
        return body[start:end]

    async def head(self, key: str) -> ObjectInfo:
        await checkpoint()
        with self._counted():
            return self._info(key)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        with self._counted():
            return self._write(key, body, exclusive=False)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await checkpoint()
        with self._counted():
            return self._write(key, body, exclusive=True)

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        await checkpoint()
        with self._counted(), self._locked():
            try:
                current = self._info(key).token
            except NotFoundError:
                current = ""
            if not token or current != token:
                raise ConflictError(f"the object changed: key={key} token={token}")
            return self._write(key, body, exclusive=False, locked=True)

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        await checkpoint()
        if offset < 0 or not any(map(len, body)):
            raise InvalidRequestError(f"not an append: key={key} offset={offset}")
        with self._counted(), self._locked():
            try:
                there = self._read(key)[_TOKEN_BYTES:]
            except NotFoundError:
                there = b""
            if len(there) != offset:
                raise ConflictError(f"the object ends elsewhere: key={key} offset={offset} size={len(there)}")
            return self._write(key, [there, *body], exclusive=False, locked=True)

    async def create_multipart(self, key: str) -> _Upload:
        await checkpoint()
        return _Upload(self, key)

    async def delete(self, keys: Sequence[str]) -> None:
        await checkpoint()
        with self._counted(), self._locked():
            for key in keys:
                self._path(key).unlink(missing_ok=True)
                self._counts.deletes += 1

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await checkpoint()
        self._counts.lists += 1
        with self._counted():
            keys = sorted(self._keys())
        for key in keys:
            if key.startswith(prefix) and key > start_after:
                try:
                    with self._counted():
                        info = self._info(key)
                except NotFoundError:
                    continue
                yield info

    def _keys(self) -> Iterator[str]:
        try:
            names = os.listdir(self._objects)
        except OSError as error:
            if self._read_only and isinstance(error, FileNotFoundError):
                return iter(())  # nobody has made the place yet
            raise UnavailableError(f"the medium failed, try again: error={error.strerror}") from error
        return map(_key_of, names)

    def statistics(self) -> ObjectStoreStatistics:
        counts = self._counts
        return ObjectStoreStatistics(
            gets=counts.gets,
            puts=counts.puts,
            deletes=counts.deletes,
            lists=counts.lists,
            bytes_read=counts.bytes_read,
            bytes_written=counts.bytes_written,
            errors=counts.errors,
            consecutive_failures=counts.consecutive_failures,
            last_error=counts.last_error,
        )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A call that fails is counted; every other one is answered by the medium, be it with a refusal."""
        try:
            yield
        except UnavailableError as error:
            self._counts.errors += 1
            self._counts.consecutive_failures += 1
            self._counts.last_error = str(error)
            raise
        except PenstockError:
            self._counts.consecutive_failures = 0
            raise
        self._counts.consecutive_failures = 0

    def _path(self, key: str) -> Path:
        return self._objects / _name_of(key)

    def _read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise _told(key, error) from error

    def _info(self, key: str) -> ObjectInfo:
        try:
            with self._path(key).open("rb") as file:
                token = file.read(_TOKEN_BYTES).hex()
                status = os.fstat(file.fileno())
        except OSError as error:
            raise _told(key, error) from error
        return ObjectInfo(
            key=key,
            size=status.st_size - _TOKEN_BYTES,
            modified_ms=status.st_mtime_ns // 1_000_000,
            token=token,
        )

    def _write(self, key: str, body: Sequence[Buffer], *, exclusive: bool, locked: bool = False) -> str:
        token = secrets.token_bytes(_TOKEN_BYTES)
        temporary = self._temporary / token.hex()
        try:
            self._fill(temporary, (token, *body))
            if exclusive:
                self._link(temporary, key)
            elif locked:
                temporary.replace(self._path(key))
            else:
                with self._locked():
                    temporary.replace(self._path(key))
        except OSError as error:
            raise _told(key, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._counts.puts += 1
        self._counts.bytes_written += sum(len(part) for part in body)
        return token.hex()

    def _fill(self, path: Path, parts: Sequence[Buffer]) -> None:
        with os.fdopen(create_file(path, os.O_WRONLY, self._access), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if self._synced:
                os.fsync(file.fileno())

    def _link(self, temporary: Path, key: str) -> None:
        """A hard link is created or not, whoever else tries."""
        try:
            os.link(temporary, self._path(key))
        except FileExistsError:
            raise AlreadyExistsError(f"the object exists: key={key}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Between processes: compare-and-swap is two steps. Nothing is awaited while it is held."""
        try:
            descriptor = os.open(self._lock_path, os.O_WRONLY | os.O_CREAT, self._access.file_mode)
        except OSError as error:
            raise UnavailableError(f"the medium failed, try again: error={error.strerror}") from error
        with os.fdopen(descriptor, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@lru_cache(maxsize=8192)
def _key_of(name: str) -> str:
    """The key of a file. Listings are most of what is asked of a directory: of the same names, again and again."""
    return unquote(name)


def forget_names() -> None:
    """Empty what is remembered of keys, for who measures memory."""
    _name_of.cache_clear()
    _key_of.cache_clear()


def _told(key: str, error: OSError) -> Exception:
    """A medium that fails is no object that is missing."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"no such object: key={key}")
    return UnavailableError(f"the medium failed, try again: key={key} error={error.strerror}")


class _Upload:
    """Parts in memory until completed."""

    def __init__(self, store: DirectoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._parts: list[bytes] = []

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await checkpoint()
        self._parts.append(b"".join(part))

    async def complete(self) -> None:
        await self._store.put(self._key, self._parts)

    async def abort(self) -> None:
        await checkpoint()
        self._parts.clear()


class ObjectStoreSettings(Settings):
    """Where the objects are."""

    path: str = Field(
        default="objects", description="The directory; relative paths start at broker.data_dir."
    )


@asynccontextmanager
async def _open(settings: ObjectStoreSettings, services: Services) -> AsyncIterator[DirectoryStore]:
    yield DirectoryStore(
        services.data_dir / settings.path, access=services.access, read_only=services.read_only
    )


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[ObjectStoreSettings]:
    """Register the directory store."""
    return ObjectStoreSpec(
        name="reference",
        summary="An object store in a directory, one file per object.",
        settings=ObjectStoreSettings,
        capabilities=STORE_CAPABILITIES,
        open=_open,
    )
