"""An object store on files that fails on command: what a third party would write, plus a control file.

The control file holds a mode, and optionally the prefix of the keys that it is for:

    ok            works
    fail          refuses every call
    stall         answers nothing for as long as the mode lasts
    stall_puts    answers no put for as long as the mode lasts
    lose          writes take effect, then the reply is lost
    slow          every call takes 50 ms longer
    slower        every call takes 700 ms longer
"""

from __future__ import annotations

__all__ = ("FlakySettings", "FlakyStore", "penstock_register_object_store")

import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from pydantic import Field

from penstock.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi import Buffer, Services, Settings
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreSpec,
    ObjectStoreStatistics,
)

CAPABILITIES = ObjectStoreCapabilities(put_if_absent=True)
_TEMPORARY = "~"
_DELAYS_S = {"slow": 0.05, "slower": 0.7}


class FlakySettings(Settings):
    """Where the objects and the control file are."""

    root: str = Field(default="flaky", description="Directory of the objects.")
    control: str = Field(default="flaky.control", description="File with the mode; absent means ok.")


class FlakyStore:
    """See ``penstock.spi.object_store.ObjectStore``."""

    def __init__(self, root: Path, control: Path) -> None:
        self._root = root
        self._control = control
        self._numbers = itertools.count()
        self._puts = self._gets = self._errors = 0

    capabilities = CAPABILITIES

    @property
    def location(self) -> str:
        return f"flaky://{self._root}"

    def _mode(self, key: str) -> str:
        try:
            words = self._control.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return "ok"
        if not words or (len(words) > 1 and not key.startswith(words[1])):
            return "ok"
        return words[0]

    async def _enter(self, key: str, *, puts: bool = False) -> None:
        await anyio.lowlevel.checkpoint()
        stalling = {"stall", "stall_puts"} if puts else {"stall"}
        while self._mode(key) in stalling:  # noqa: ASYNC110 - the file is changed by another process
            await anyio.sleep(0.02)
        if self._mode(key) in _DELAYS_S:
            await anyio.sleep(_DELAYS_S[self._mode(key)])
        if self._mode(key) == "fail":
            self._errors += 1
            raise UnavailableError(f"the flaky store refuses: key={key!r}")

    def _leave(self, key: str) -> None:
        if self._mode(key) == "lose":
            self._errors += 1
            raise UnavailableError(f"the flaky store lost its reply: key={key!r}")

    def _path(self, key: str) -> Path:
        return self._root / key.replace("/", "%")

    def _write(self, body: Sequence[Buffer]) -> Path:
        path = self._root / f"{_TEMPORARY}{os.getpid()}.{next(self._numbers)}"
        with path.open("wb") as file:
            file.writelines(body)
        return path

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        await self._enter(key)
        self._gets += 1
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read() if end is None else file.read(end - start)
        except FileNotFoundError:
            raise NotFoundError(f"no such object: key={key!r}") from None

    async def head(self, key: str) -> ObjectInfo:
        await self._enter(key)
        try:
            return ObjectInfo(key=key, size=self._path(key).stat().st_size)
        except FileNotFoundError:
            raise NotFoundError(f"no such object: key={key!r}") from None

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        await self._enter(key, puts=True)
        self._puts += 1
        self._write(body).rename(self._path(key))
        self._leave(key)
        return ""

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await self._enter(key, puts=True)
        self._puts += 1
        temporary = self._write(body)
        try:
            os.link(temporary, self._path(key))
        except FileExistsError:
            raise AlreadyExistsError(f"the object exists: key={key!r}") from None
        finally:
            temporary.unlink()
        self._leave(key)
        return ""

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        raise InvalidRequestError("flaky_store doesn't claim compare_and_swap")

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise InvalidRequestError("flaky_store doesn't claim multipart")

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._enter(key)
            self._path(key).unlink(missing_ok=True)
            self._leave(key)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._enter(prefix)
        keys = sorted(
            name.replace("%", "/") for name in os.listdir(self._root) if not name.startswith(_TEMPORARY)
        )
        for key in keys:
            if key.startswith(prefix) and key > start_after:
                try:
                    yield ObjectInfo(key=key, size=self._path(key).stat().st_size)
                except FileNotFoundError:
                    continue

    def statistics(self) -> ObjectStoreStatistics:
        return ObjectStoreStatistics(gets=self._gets, puts=self._puts, errors=self._errors)


@asynccontextmanager
async def _open(settings: FlakySettings, services: Services) -> AsyncIterator[FlakyStore]:
    root = services.data_dir / settings.root
    root.mkdir(parents=True, exist_ok=True)
    yield FlakyStore(root, services.data_dir / settings.control)


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[FlakySettings]:
    """Register ``flaky_store``."""
    return ObjectStoreSpec(
        name="flaky_store",
        summary="files that fail on command",
        settings=FlakySettings,
        capabilities=CAPABILITIES,
        open=_open,
    )
