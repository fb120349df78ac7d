"""Object stores that keep the contract and are otherwise unlike those of Penstock: ``way`` says how.

All are in an SQLite database. A suite that accuses one of them asks for more than the contract does.
"""

from __future__ import annotations

__all__ = ("WAYS", "penstock_register_object_store")

import hashlib
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.files import Access, create_file
from penstock.hookspecs import hookimpl
from penstock.spi import Settings as BaseSettings
from penstock.spi.object_store import (
    MultipartUpload,
    ObjectInfo,
    ObjectStoreCapabilities,
    ObjectStoreSpec,
    ObjectStoreStatistics,
)
from penstock.spi.plugin import Buffer, Services

R = TypeVar("R")


@dataclass(frozen=True)
class Way:
    """What is unusual about a store."""

    multipart: bool = True
    put_if_absent: bool = True
    compare_and_swap: bool = True
    page: int = 1000
    #: What a time of modification is a multiple of; 0: none is told.
    clock_ms: int = 1
    request_ms: int = 0
    gives: Callable[[bytes], Buffer] = bytes
    #: Tokens are of contents: what is put again as it was has the same one.
    hashes: bool = False
    #: Without swaps nobody needs one.
    tokens: bool = True
    compressed: bool = False
    #: No reply to a creation ever comes: whose bytes are there is looked for.
    loses_replies: bool = False
    #: Conditions are told by looking first, under a lock.
    looks_first: bool = False
    one_at_a_time: bool = False
    #: Listings come in any order.
    ordered: bool = True
    #: A listing that is under way has one of as many connections as requests may be on their way.
    streams: bool = False
    append: bool = True
    #: One in so many requests isn't answered.
    fails_each: int = 0
    #: So many appends to what is there, and no more until it is written anew.
    appends_max: int = 1_000_000


WAYS = {
    "plain": Way(),
    "no_parts": Way(multipart=False),
    "no_conditions": Way(put_if_absent=False, compare_and_swap=False, tokens=False),
    "no_swap": Way(compare_and_swap=False),
    "tiny_pages": Way(page=2),
    "no_clock": Way(clock_ms=0),
    "coarse_clock": Way(clock_ms=60_000),
    "busy": Way(fails_each=700),
    "ticks": Way(clock_ms=100, appends_max=1),
    "slow": Way(request_ms=10),
    "gives_bytearrays": Way(gives=bytearray),
    "gives_views": Way(gives=lambda data: memoryview(b"x" + data)[1:]),
    "content_hashes": Way(hashes=True),
    "compresses": Way(compressed=True),
    "loses_replies": Way(loses_replies=True),
    "looks_first": Way(looks_first=True),
    "one_at_a_time": Way(one_at_a_time=True),
    "lists_in_any_order": Way(ordered=False, streams=True, page=2, append=False),
    "has_a_connection_for_each_listing": Way(streams=True, page=2),
}


class Settings(BaseSettings):
    way: str = "plain"


class UnusualStore:
    """See ``penstock.spi.object_store.ObjectStore``."""

    def __init__(self, way: Way, path: Path, access: Access, *, read_only: bool = False) -> None:
        self._way = way
        if way.append:  # who doesn't claim it needn't have the method
            self.append = self._append
        self.location = f"sqlite:{path}"
        place = f"file:{path}?mode=ro" if path.exists() else ":memory:"
        if not read_only and not path.exists():
            with suppress(FileExistsError):
                os.close(create_file(path, os.O_RDWR, access))
        self._database = sqlite3.connect(
            place if read_only else path, isolation_level=None, check_same_thread=False, uri=read_only
        )
        self._database.execute("pragma busy_timeout = 60000")
        if not read_only or not path.exists():
            self._database.execute("pragma journal_mode = truncate")
            self._database.execute("pragma synchronous = off")  # processes die here, machines don't
            self._database.execute(
                "create table if not exists objects (key text primary key, body blob, modified integer, token text,"
                " appends integer default 0)"
            )
        self._mutex = threading.Lock()
        self._limiter = anyio.CapacityLimiter(1 if way.one_at_a_time else 8)
        self._connections = anyio.Semaphore(8)
        self._counts: Counter[str] = Counter()
        self._last_error = ""

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        way = self._way
        return ObjectStoreCapabilities(
            put_if_absent=way.put_if_absent,
            compare_and_swap=way.compare_and_swap,
            append=way.append,
            multipart=way.multipart,
            ordered_listing=way.ordered,
            requests_max=1 if way.one_at_a_time else 8,
        )

    async def _ask(self, counted: str, work: Callable[[], R]) -> R:
        self._counts[counted] += 1

        def locked() -> R:
            time.sleep(self._way.request_ms / 1000)
            with self._mutex:
                return work()

        try:
            if self._way.fails_each and secrets.randbelow(self._way.fails_each) == 0:
                raise sqlite3.OperationalError("it is busy")
            async with self._connection(wanted=counted != "lists"):
                answer = await anyio.to_thread.run_sync(locked, limiter=self._limiter)
        except sqlite3.Error as error:
            self._counts["errors"] += 1
            self._counts["failing"] += 1
            self._last_error = f"the store's database fails: reason={error}"
            raise UnavailableError(self._last_error) from error
        self._counts["failing"] = 0
        return answer

    @asynccontextmanager
    async def _connection(self, *, wanted: bool = True) -> AsyncIterator[None]:
        if not (wanted and self._way.streams):
            yield
            return
        async with self._connections:
            yield

    def _row(self, key: str) -> Any:
        row = self._database.execute(
            "select body, modified, token from objects where key = ?", (key,)
        ).fetchone()
        if row is None:
            raise NotFoundError(f"there is no such object: key={key}")
        return row

    def _info(self, key: str, body: bytes, modified: int, token: str) -> ObjectInfo:
        size = len(zlib.decompress(body)) if self._way.compressed else len(body)
        return ObjectInfo(key=key, size=size, modified_ms=modified, token=token if self._way.tokens else "")

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        def work() -> bytes:
            body: bytes = self._row(key)[0]
            return zlib.decompress(body) if self._way.compressed else body

        if start < 0 or (end is not None and end < start):
            await checkpoint()
            raise InvalidRequestError(f"there is no such range: start={start} end={end}")
        body = await self._ask("gets", work)
        if start > len(body):
            raise InvalidRequestError(f"the object isn't that long: start={start} size={len(body)}")
        self._counts["bytes_read"] += len(body[start:end])
        return self._way.gives(body[start:end])

    async def head(self, key: str) -> ObjectInfo:
        return await self._ask("gets", lambda: self._info(key, *self._row(key)))

    async def _write(self, key: str, body: Sequence[Buffer], write: Callable[..., str]) -> str:
        data = b"".join(body)
        self._counts["bytes_written"] += len(data)
        token = hashlib.sha256(data).hexdigest() if self._way.hashes else secrets.token_hex(8)
        now = int(time.time() * 1000)
        now = now // self._way.clock_ms * self._way.clock_ms if self._way.clock_ms else 0
        stored = zlib.compress(data, 1) if self._way.compressed else data
        written = await self._ask("puts", partial(write, key, stored, now, token))
        return written if self._way.tokens else ""

    def _put(self, key: str, body: bytes, now: int, token: str) -> str:
        self._database.execute(
            "insert or replace into objects values (?, ?, ?, ?, 0)", (key, body, now, token)
        )
        return token

    def _create(self, key: str, body: bytes, now: int, token: str) -> str:
        if self._way.looks_first:
            self._database.execute("begin immediate")
            try:
                if self._database.execute("select 1 from objects where key = ?", (key,)).fetchone():
                    raise AlreadyExistsError(f"there is an object: key={key}")
                self._put(key, body, now, token)
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")
            return token
        row = (key, body, now, token)
        done = self._database.execute("insert or ignore into objects values (?, ?, ?, ?, 0)", row)
        if self._way.loses_replies:  # whether it was done isn't known: what is there tells
            there = self._row(key)
            if there[0] == body:
                return str(there[2])
            raise AlreadyExistsError(f"there is an object: key={key}")
        if not done.rowcount:
            raise AlreadyExistsError(f"there is an object: key={key}")
        return token

    def _swap(self, before: str, key: str, body: bytes, now: int, token: str) -> str:
        done = self._database.execute(
            "update objects set body = ?, modified = ?, token = ?, appends = 0 where key = ? and token = ?",
            (body, now, token, key, before),
        )
        if not done.rowcount:
            raise ConflictError(f"the object changed: key={key}")
        return token

    async def _append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        await checkpoint()
        data = b"".join(body)
        if offset < 0 or not data:
            raise InvalidRequestError(f"no append: key={key} offset={offset} bytes={len(data)}")
        return await self._write(key, [data], partial(self._grow, data, offset))

    def _grow(self, data: bytes, offset: int, key: str, _: bytes, now: int, token: str) -> str:
        self._database.execute("begin immediate")
        try:
            row = self._database.execute("select body, appends from objects where key = ?", (key,)).fetchone()
            there, times = row or (b"", -1)
            there = zlib.decompress(there) if row and self._way.compressed else there
            if len(there) != offset:
                raise ConflictError(f"the object ends elsewhere: key={key} offset={offset} size={len(there)}")
            if times >= self._way.appends_max:
                raise InvalidRequestError(f"the object takes no more appends: key={key} appends={times}")
            grown = there + data
            if self._way.hashes:
                token = hashlib.sha256(grown).hexdigest()
            stored = zlib.compress(grown, 1) if self._way.compressed else grown
            self._put(key, stored, now, token)
            self._database.execute("update objects set appends = ? where key = ?", (times + 1, key))
        except BaseException:
            self._database.execute("rollback")
            raise
        self._database.execute("commit")
        return token

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await self._write(key, body, self._put)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        await self._refuse("put_if_absent")
        return await self._write(key, body, self._create)

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        await self._refuse("compare_and_swap")
        return await self._write(key, body, partial(self._swap, token))

    async def create_multipart(self, key: str) -> MultipartUpload:
        await self._refuse("multipart")
        return Parts(self, key)

    async def _refuse(self, name: str) -> None:
        await checkpoint()
        if not getattr(self.capabilities, name):
            raise InvalidRequestError(f"this store has no {name}")

    async def delete(self, keys: Sequence[str]) -> None:
        def work() -> None:
            self._database.execute("begin immediate")
            self._database.executemany("delete from objects where key = ?", [(key,) for key in keys])
            self._database.execute("commit")

        await self._ask("deletes", work)

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        if start_after:
            await self._refuse("ordered_listing")
        beyond, order = (">", "asc") if self._way.ordered else ("<", "desc")
        start_after = start_after if self._way.ordered else "~~"

        def work(after: str) -> list[Any]:
            return self._database.execute(
                f"select key, body, modified, token from objects where key {beyond} ? and substr(key, 1, ?) = ?"
                f" order by key {order} limit ?",
                (after, len(prefix), prefix, self._way.page),
            ).fetchall()

        async with self._connection():
            while page := await self._ask("lists", partial(work, start_after)):
                for row in page:
                    yield self._info(*row)
                start_after = page[-1][0]

    def statistics(self) -> ObjectStoreStatistics:
        counts = self._counts
        return ObjectStoreStatistics(
            gets=counts["gets"],
            puts=counts["puts"],
            deletes=counts["deletes"],
            lists=counts["lists"],
            bytes_read=counts["bytes_read"],
            bytes_written=counts["bytes_written"],
            errors=counts["errors"],
            consecutive_failures=counts["failing"],
            last_error=self._last_error,
        )

    def close(self) -> None:
        with self._mutex:  # a thread may still be at it
            self._database.close()


class Parts:
    """An upload whose parts wait in memory."""

    def __init__(self, store: UnusualStore, key: str) -> None:
        self._store, self._key, self._parts = store, key, [b""]

    async def write_part(self, part: Sequence[Buffer]) -> None:
        await checkpoint()
        self._parts.append(b"".join(part))

    async def complete(self) -> None:
        await self._store.put(self._key, self._parts)

    async def abort(self) -> None:
        await checkpoint()
        self._parts.clear()


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[UnusualStore]:
    await checkpoint()
    path = services.data_dir / "unusual.sqlite"
    store = UnusualStore(WAYS[settings.way], path, services.access, read_only=services.read_only)
    try:
        yield store
    finally:
        store.close()


@hookimpl
def penstock_register_object_store() -> ObjectStoreSpec[Settings]:
    return ObjectStoreSpec(
        name="unusual_object_store",
        summary="keeps the contract in an unusual way",
        settings=Settings,
        capabilities=ObjectStoreCapabilities(put_if_absent=True, compare_and_swap=True, multipart=True),
        open=_open,
    )
