"""WALs that keep the contract and are otherwise unlike those of Penstock: ``way`` says how.

Written from the docstrings of ``penstock.spi.wal`` alone, without the building blocks of ``penstock.wal``. A suite
that accuses one of them asks for more than the contract does.
"""

from __future__ import annotations

__all__ = ("WAYS", "penstock_register_wal")

import contextlib
import errno
import fcntl
import json
import os
import queue
import random
import secrets
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
)
from penstock.files import Access, make_directories
from penstock.hookspecs import hookimpl
from penstock.spi import Settings as BaseSettings
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalSpec, WalStatistics, complete_all

_RECORD = struct.Struct(">4sIIq")  # magic, bytes of the body, CRC-32 of the rest, epoch
_ENTRY = struct.Struct(">qqI")  # position, next position, bytes
_MAGIC = b"odd!"


@dataclass(frozen=True)
class Way:
    """What is unusual about a log."""

    group_entries_max: int = 10_000
    first_position: int = 0
    #: Positions that an entry of so many bytes covers, and that are left out before it.
    covers: Callable[[int], int] = lambda size: size
    gap: Callable[[], int] = lambda: 0
    #: Completions are told so many ms later, those of several groups at once.
    burst_ms: int = 0
    #: Each completion is a call of its own from the thread that writes.
    one_by_one: bool = False
    #: ``append`` returns when the entry is durable; a write that took a part only has failed.
    at_once: bool = False
    write_ms: int = 0
    open_ms: int = 0
    close_ms: int = 0
    #: Only so many trimmed bytes are worth a new file.
    trim_bytes_min: int = 0
    compressed: bool = False
    #: Each group writes the whole log anew.
    rewrites: bool = False
    copies_recovered: bool = False
    entry_bytes_max: int = 2**20
    capacity: int = 0
    #: ``append`` looks who owns the log, and raises at once.
    looks_first: bool = False
    #: The log isn't fenced; it has one owner at a time, who keeps others out.
    exclusive: bool = False
    #: On nothing that outlives the process.
    in_memory: bool = False
    #: Its owner writes so often that it is alive.
    alive_ms: int = 0
    #: Rests when it has recovered, and says in plain words what formatting asks for.
    rests: bool = False


_random = random.Random(7)
WAYS = {
    "plain": Way(),
    "an_entry_a_group": Way(group_entries_max=1, rests=True),
    "huge_positions": Way(first_position=2**62),
    "positions_with_gaps": Way(gap=lambda: _random.choice((0, 0, 1, 7, 2**33))),
    "positions_count_entries": Way(covers=lambda _: 1),
    "completes_in_bursts": Way(burst_ms=30),
    "completes_one_by_one": Way(one_by_one=True),
    "completes_at_once": Way(at_once=True, rests=True),
    "slow": Way(write_ms=50),
    "opens_slowly": Way(open_ms=3000),
    "closes_slowly": Way(close_ms=300),
    "says_that_it_lives": Way(alive_ms=1000),
    "trims_lazily": Way(trim_bytes_min=2**20),
    "never_trims": Way(trim_bytes_min=2**62),
    "compresses": Way(compressed=True),
    "rewrites": Way(rewrites=True),
    "gives_copies": Way(copies_recovered=True),
    "small_entries": Way(entry_bytes_max=2**14),
    "tiny": Way(capacity=2**15, entry_bytes_max=2**14),
    "looks_first": Way(looks_first=True),
    "exclusive": Way(exclusive=True),
    "in_memory": Way(in_memory=True),
}


class Settings(BaseSettings):
    way: str = "plain"


class FileMedium:
    """``log`` and ``owner`` in a directory."""

    def __init__(self, path: Path, access: Access, *, completes: bool) -> None:
        self._path = path
        self._completes = completes
        self._mode = access.file_mode
        make_directories(path, access)
        self.location = str(path)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)  # nothing is in it
        self._log = -1

    def keep_others_out(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(f"another owner has the log: path={self._path}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def get(self, name: str) -> bytes:
        try:
            file = os.open(self._path / name, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            found = bytearray()
            while piece := os.pread(file, 2**20, len(found)):
                found += piece
            return bytes(found)
        finally:
            os.close(file)

    def replace(self, name: str, data: bytes) -> None:
        file = os.open(self._path / f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self._mode)
        try:
            self._write(file, 0, data)
        finally:
            os.close(file)
        os.rename(self._path / f"{name}.new", self._path / name)
        directory = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        if name == "log":
            self._close_log()

    def note(self, name: str, data: bytes) -> None:
        """In its place, and of no importance."""
        file = os.open(self._path / name, os.O_WRONLY | os.O_CREAT, self._mode)
        try:
            os.pwrite(file, data.ljust(64), 0)
        finally:
            os.close(file)

    def extend(self, start: int, data: bytes) -> None:
        if self._log < 0:
            self._log = os.open(self._path / "log", os.O_WRONLY)
        self._write(self._log, start, data)

    def _write(self, file: int, start: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(file, rest, start)
            if written < len(rest) and not self._completes:
                raise OSError(errno.EIO, "the medium took a part only")
            start, rest = start + written, rest[written:]
        os.fdatasync(file)

    def _close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def close(self) -> None:
        self._close_log()
        os.close(self._lock)


class MemoryMedium:
    """The same in this process."""

    _all: ClassVar[dict[str, dict[str, bytearray]]] = {}
    _mutex = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.location = f"memory:{path}"
        self._files = self._all.setdefault(str(path), {})

    def locked(self) -> threading.Lock:
        return self._mutex

    def get(self, name: str) -> bytes:
        return bytes(self._files.get(name, b""))

    def replace(self, name: str, data: bytes) -> None:
        self._files[name] = bytearray(data)

    def extend(self, start: int, data: bytes) -> None:
        self._files["log"][start:] = data

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Owner:
    log_id: str
    epoch: int
    #: Entries below are trimmed; the log ended at least there at the last clean close or trim.
    trimmed: int
    end: int

    @classmethod
    def of(cls, medium: Any) -> Owner | None:
        raw = medium.get("owner")
        if not raw:
            return None
        try:
            fields, crc = json.loads(raw)
            if zlib.crc32(json.dumps(fields).encode()) != crc:
                raise ValueError("its checksum is wrong")
            return cls(*fields)
        except (ValueError, TypeError) as error:
            raise CorruptError(
                f"the log doesn't say whose it is: position=0 location={medium.location}"
            ) from error

    def keep(self, medium: Any) -> None:
        fields = [self.log_id, self.epoch, self.trimmed, self.end]
        medium.replace("owner", json.dumps([fields, zlib.crc32(json.dumps(fields).encode())]).encode())


def _record(epoch: int, entries: Sequence[tuple[int, int, bytes]], compressed: bool) -> bytes:
    body = b"".join(_ENTRY.pack(position, end, len(data)) + data for position, end, data in entries)
    body = zlib.compress(body, 1) if compressed else body
    crc = zlib.crc32(body, epoch & 0xFFFFFFFF)
    return _RECORD.pack(_MAGIC, len(body), crc, epoch) + body


def _parse(raw: bytes, start: int) -> tuple[bytes, int] | None:
    """The body of the record at ``start`` and where it ends; None if there is none whole."""
    if len(raw) - start < _RECORD.size:
        return None
    magic, size, crc, epoch = _RECORD.unpack_from(raw, start)
    end = start + _RECORD.size + size
    body = raw[start + _RECORD.size : end]
    if magic != _MAGIC or len(body) < size or zlib.crc32(body, epoch & 0xFFFFFFFF) != crc:
        return None
    return body, end


#: Logs whose owners tell that they live; as it happens, also while somebody looks.
_living: set[UnusualWal] = set()


class UnusualWal:
    """See ``penstock.spi.wal.WriteAheadLog``."""

    def __init__(self, way: Way, medium: Any, epoch: int, capabilities: WalCapabilities) -> None:
        self._way, self._medium, self._epoch = way, medium, epoch
        self.capabilities = capabilities
        self.location = medium.location
        #: For people, and nothing that the suite could disturb.
        self.medium = medium.location
        self._ready = False
        self._state, self._error = "open", ""
        self._failure: Exception | None = None
        self._waiting: deque[tuple[WalAppend, list[Buffer]]] = deque()
        #: What the writer has, and what is durable and not yet told.
        self._writing: list[WalAppend] = []
        self._untold: list[WalAppend] = []
        self._entries: deque[tuple[int, int, int]] = deque()  # position, end, bytes: of what isn't trimmed
        self._used = self._size = self._trimmed = self._confirmed = 0
        self._appended = self._appended_bytes = self._groups = self._written_bytes = 0
        self._end = -1
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="unusual-wal", daemon=True)
        self._idle = anyio.Event()

    # -- the thread that has the medium ------------------------------------------------------------------------

    def start(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._thread.start()
        if self._way.alive_ms:
            _living.add(self)
            self._live()

    def _live(self) -> None:
        if self in _living:
            self.beat()
            self._next_beat = self._loop.call_later(self._way.alive_ms / 1000, self._live)

    def beat(self) -> None:
        self._medium.note("alive", json.dumps([self._epoch, time.time_ns()]).encode())

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - told to whoever asked
                future.set_exception(_translated(error, self.location))
            else:
                future.set_result(result)
            del job, work, future  # the next one may be long in coming

    def _submit(self, work: Callable[[], Any], done: Callable[[Future[Any]], None]) -> None:
        future: Future[Any] = Future()
        future.add_done_callback(lambda ended: self._loop.call_soon_threadsafe(done, ended))
        self._jobs.put((work, future))

    async def _ask(self, work: Callable[[], Any]) -> Any:
        ended = anyio.Event()
        found: list[Future[Any]] = []

        def done(future: Future[Any]) -> None:
            found.append(future)
            ended.set()

        self._submit(work, done)
        with anyio.CancelScope(shield=True):
            await ended.wait()
        await checkpoint()
        return found[0].result()

    def _own(self) -> Owner:
        owner = Owner.of(self._medium)
        if owner is None or owner.epoch != self._epoch:
            raise FencedError(f"a newer owner has the log: location={self.location} epoch={self._epoch}")
        return owner

    def take_over(self) -> None:
        with self._medium.locked() if not self._way.exclusive else contextlib.nullcontext():
            owner = Owner.of(self._medium)
            if owner is None:
                owner = Owner(secrets.token_hex(8), 0, self._way.first_position, self._way.first_position)
                self._medium.replace("log", b"")
            if owner.epoch >= self._epoch:
                raise FencedError(f"a newer owner has the log: location={self.location} epoch={self._epoch}")
            replace(owner, epoch=self._epoch).keep(self._medium)

    def _write(self, entries: Sequence[tuple[int, int, bytes]]) -> int:
        time.sleep(self._way.write_ms / 1000)
        record = _record(self._epoch, entries, self._way.compressed)
        with self._medium.locked() if not self._way.exclusive else contextlib.nullcontext():
            self._own()
            if self._way.rewrites:
                self._medium.replace("log", self._medium.get("log")[: self._size] + record)
            else:
                self._medium.extend(self._size, record)
            self._size += len(record)
        return len(record)

    # -- recover -----------------------------------------------------------------------------------------------

    async def recover(self) -> AsyncIterator[WalEntry]:
        raw, owner = await self._ask(lambda: (self._medium.get("log"), self._own()))
        place, end = 0, max(owner.end, owner.trimmed)
        last = owner.trimmed
        while (found := _parse(raw, place)) is not None:
            body, place = found
            body = zlib.decompress(body) if self._way.compressed else body
            at = 0
            while at < len(body):
                position, last, size = _ENTRY.unpack_from(body, at)
                at += _ENTRY.size
                data = memoryview(body)[at : at + size]
                at += size
                if last <= owner.trimmed:
                    continue
                self._entries.append((position, last, size))
                self._used += size
                if self._way.copies_recovered:
                    data = memoryview(bytes(data))
                    await checkpoint()
                yield WalEntry(position, last, data)
        at = raw.find(_MAGIC, place + 1)
        while at >= 0:
            if _parse(raw, at) is not None:
                raise CorruptError(f"an entry is damaged: position={last} location={self.location}")
            at = raw.find(_MAGIC, at + 1)
        if last < owner.end:
            raise CorruptError(f"acknowledged entries are missing: position={last} location={self.location}")
        await self._ask(lambda: self._settle(raw[:place]))
        self._size, self._trimmed = place, owner.trimmed
        self._end = self._confirmed = max(last, end)
        self._ready = True
        if self._way.rests:
            await checkpoint()

    def _settle(self, log: bytes) -> None:
        """What was recovered stays, and nothing is behind it."""
        with self._medium.locked() if not self._way.exclusive else contextlib.nullcontext():
            self._own()
            self._medium.replace("log", log)

    # -- append ------------------------------------------------------------------------------------------------

    def would_fit(self, entry_bytes: int) -> bool:
        return not self._way.capacity or self._used + entry_bytes <= self._way.capacity

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if self._failure is not None:
            raise again(self._failure)
        if self._state == "closed":
            raise ClosedError("the log is closed")
        size = sum(memoryview(part).nbytes for part in data)
        if not self._ready:
            raise InvalidRequestError("the log wasn't recovered")
        if not 0 < size <= self._way.entry_bytes_max:
            raise InvalidRequestError(f"the entry is empty or too large: bytes={size}")
        if self._way.looks_first:
            try:
                self._own()
            except FencedError as error:
                self._fail(error)
                raise
        if not self.would_fit(size):
            raise FullError(f"the log is full: used_bytes={self._used}")
        position = self._end + self._way.gap()
        append = WalAppend(position=position, next_position=position + self._way.covers(size))
        self._end = append.next_position
        self._entries.append((position, self._end, size))
        self._used += size
        self._appended += 1
        self._appended_bytes += size
        self._waiting.append((append, list(data)))
        self._pump()
        return append

    def _pump(self) -> None:
        if self._writing or not self._waiting or self._failure is not None:
            return
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._way.group_entries_max))]
        self._writing = [append for append, _ in taken]
        entries = [(append.position, append.next_position, b"".join(data)) for append, data in taken]
        if self._way.at_once:
            done: Future[Any] = Future()
            self._jobs.put((lambda: self._write(entries), done))
            wait([done])
            self._written(done)
        else:
            self._submit(lambda: self._write(entries), self._written)

    def _written(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            try:
                self._tell()
            finally:
                self._fail(error if isinstance(error, Exception) else RuntimeError(str(error)))
            return
        self._groups += 1
        self._written_bytes += future.result()
        self._untold += self._writing
        self._writing = []
        try:
            self._tell_in_its_way()
        finally:
            self._pump()

    def _tell_in_its_way(self) -> None:
        if self._way.burst_ms:
            self._loop.call_later(self._way.burst_ms / 1000, self._tell)
        elif self._way.one_by_one:
            self._jobs.put((partial(self._call_each, len(self._untold)), Future()))
        else:
            self._tell()

    def _call_each(self, count: int) -> None:
        for _ in range(count):
            self._loop.call_soon_threadsafe(self._tell, 1)

    def _tell(self, count: int | None = None) -> None:
        told, self._untold = self._untold[:count], self._untold[len(self._untold[:count]) :]
        if told:
            self._confirmed = told[-1].next_position
        try:
            complete_all(told)
        finally:
            if not self._untold and not self._writing and not self._waiting:
                self._idle.set()

    def _fail(self, error: Exception) -> None:
        if self._failure is not None:
            return
        fenced = isinstance(error, FencedError)
        self._state, self._error = "fenced" if fenced else "failed", str(error)
        self._failure = error if fenced else ClosedError(f"the log failed: {error}")
        failed = [*self._writing, *(append for append, _ in self._waiting)]
        self._writing = []
        self._waiting.clear()
        try:
            complete_all(failed, error)
        finally:
            self._idle.set()

    # -- the rest ----------------------------------------------------------------------------------------------

    async def trim(self, position: int) -> None:
        position = min(position, self._confirmed)
        await checkpoint()
        if position <= self._trimmed:
            return
        if self._way.trim_bytes_min and sum(e[2] for e in self._entries if e[1] <= position) < (
            self._way.trim_bytes_min
        ):
            return
        if self._failure is not None:
            fenced = isinstance(self._failure, FencedError)
            raise again(self._failure) if fenced else UnavailableError(str(self._failure))
        await self._ask(lambda: self._trim(position))
        self._trimmed = max(self._trimmed, position)
        while self._entries and self._entries[0][1] <= position:
            self._used -= self._entries.popleft()[2]

    def _trim(self, position: int) -> None:
        with self._medium.locked() if not self._way.exclusive else contextlib.nullcontext():
            owner = self._own()
            replace(owner, trimmed=position, end=max(owner.end, position)).keep(self._medium)
            raw = self._medium.get("log")[: self._size]
            place, kept = 0, bytearray()
            while (found := _parse(raw, place)) is not None:
                body = zlib.decompress(found[0]) if self._way.compressed else found[0]
                if _last(body) > position:
                    kept += raw[place : found[1]]
                place = found[1]
            self._medium.replace("log", bytes(kept))
            self._size = len(kept)

    async def seal(self) -> None:
        raise InvalidRequestError("this log can't be sealed")

    def statistics(self) -> WalStatistics:
        pending = [*self._untold, *self._writing, *(append for append, _ in self._waiting)]
        return WalStatistics(
            appended_entries=self._appended,
            appended_payload_bytes=self._appended_bytes,
            written_groups=self._groups,
            written_bytes=self._written_bytes,
            pending_entries=len(pending),
            pending_bytes=sum(size for at, _, size in self._entries if at >= pending[0].position)
            if pending
            else 0,
            used_bytes=self._used,
            capacity_bytes=self._way.capacity,
            trimmed_position=self._trimmed,
            confirmed_position=self._confirmed,
            end_position=self._end,
            state=self._state,
            last_error=self._error,
        )

    async def close(self) -> None:
        if self in _living:
            _living.discard(self)
            self._next_beat.cancel()
        if self._state == "open":
            self._state = "closed"
        with anyio.CancelScope(shield=True):
            await anyio.sleep(self._way.close_ms / 1000)
            while self._untold or self._writing or (self._waiting and self._failure is None):
                self._idle = anyio.Event()
                await self._idle.wait()
            if self._ready and self._failure is None:
                with contextlib.suppress(PenstockError):
                    await self._ask(self._note_end)
            self._jobs.put(None)
            await anyio.to_thread.run_sync(self._thread.join)
            self._medium.close()

    def _note_end(self) -> None:
        with self._medium.locked() if not self._way.exclusive else contextlib.nullcontext():
            replace(self._own(), end=self._confirmed).keep(self._medium)


def _last(body: bytes) -> int:
    at = last = 0
    while at < len(body):
        _, last, size = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size + size
    return last


def _translated(error: BaseException, location: str) -> BaseException:
    if isinstance(error, OSError):
        return UnavailableError(f"the log's files fail: location={location} reason={error}")
    return error


def _capabilities(way: Way) -> WalCapabilities:
    return WalCapabilities(
        durability_domain="process" if way.in_memory else "host",
        fencing=not way.exclusive,
        bounded=way.capacity > 0,
        identity=True,
        expected_latency_ms_p50=float(way.write_ms or 1),
        entry_bytes_max=way.entry_bytes_max,
    )


def _medium(settings: Settings, services: Services) -> Any:
    path = services.data_dir / f"unusual-{services.node_id}"
    way = WAYS[settings.way]
    if way.in_memory:
        return MemoryMedium(path)
    return FileMedium(path, services.access, completes=not way.at_once)


def _opened(settings: Settings, services: Services) -> UnusualWal:
    way = WAYS[settings.way]
    time.sleep(way.open_ms / 1000)
    medium = _medium(settings, services)
    try:
        if way.exclusive:
            medium.keep_others_out()
        wal = UnusualWal(way, medium, services.epoch, _capabilities(way))
        wal.take_over()
    except BaseException:
        medium.close()
        raise
    return wal


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[UnusualWal]:
    try:
        wal = await anyio.to_thread.run_sync(_opened, settings, services)
    except OSError as error:
        raise UnavailableError(f"the log's files fail: reason={error}") from error
    wal.start()
    try:
        yield wal
    finally:
        await wal.close()


async def _identify(settings: Settings, services: Services) -> str | None:
    await checkpoint()
    path = services.data_dir / f"unusual-{services.node_id}"
    if not WAYS[settings.way].in_memory and not path.exists():
        return None
    medium = _medium(settings, services)
    try:
        owner = Owner.of(medium)
    finally:
        medium.close()
    for wal in _living:
        wal.beat()
    return None if owner is None else owner.log_id


def _looked_at(settings: Settings, services: Services) -> tuple[Owner, bytes, str]:
    path = services.data_dir / f"unusual-{services.node_id}"
    look = MemoryMedium(path) if WAYS[settings.way].in_memory else FileLook(path)
    owner = Owner.of(look)
    if owner is None:
        raise NotFoundError(f"there is no log: location={path}")
    for wal in _living:
        wal.beat()
    return owner, look.get("log"), str(path)


class FileLook:
    """What is in the files, for who has none of them."""

    def __init__(self, path: Path) -> None:
        self._path, self.location = path, str(path)

    def get(self, name: str) -> bytes:
        path = self._path / name
        return path.read_bytes() if path.exists() else b""


async def _read(settings: Settings, services: Services) -> AsyncIterator[WalEntry]:
    await checkpoint()
    owner, raw, _ = _looked_at(settings, services)
    for entry in _entries(raw, owner.trimmed, compressed=WAYS[settings.way].compressed):
        yield entry


def _entries(raw: bytes, trimmed: int, *, compressed: bool) -> Iterator[WalEntry]:
    place = 0
    while (found := _parse(raw, place)) is not None:
        body, place = found
        body = zlib.decompress(body) if compressed else body
        at = 0
        while at < len(body):
            position, last, size = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size + size
            if last > trimmed:
                yield WalEntry(position, last, memoryview(body)[at - size : at])


async def _describe(settings: Settings, services: Services) -> Mapping[str, object]:
    """What the owner has noted: where the log ended when it was last trimmed, or closed."""
    await checkpoint()
    owner, _, _ = _looked_at(settings, services)
    return {"epoch": owner.epoch, "trimmed": owner.trimmed, "end": owner.end}


async def _format(settings: Settings, services: Services, consent: str) -> Mapping[str, object]:
    if consent != "force" and await _identify(settings, services) is not None:
        word = "force" if WAYS[settings.way].rests else "'force'"
        raise ConfigError(f"there is a log; it goes for who says {word}")
    medium = _medium(settings, services)
    try:
        medium.replace("owner", b"")
    finally:
        medium.close()
    return {}


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    return WalSpec(
        name="unusual_wal",
        summary="keeps the contract in an unusual way",
        settings=Settings,
        capabilities=_capabilities(WAYS["plain"]),
        open=_open,
        identify=_identify,
        read=_read,
        describe=_describe,
        format=_format,
    )
