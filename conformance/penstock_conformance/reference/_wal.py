"""A write-ahead log in one file: a header block, then records; one write and one fdatasync per group."""

from __future__ import annotations

__all__ = (
    "WAL_CAPABILITIES",
    "FileWal",
    "WalSettings",
    "describe_wal",
    "format_wal",
    "identify_wal",
    "open_wal",
    "read_wal",
)

import asyncio
import errno
import fcntl
import os
import struct
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from anyio.lowlevel import checkpoint
from crc32c import crc32c
from pydantic import Field

from penstock.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.files import ACCESSES, create_file, make_directories
from penstock.hookspecs import hookimpl
from penstock.spi import Settings, Size
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalSpec, WalStatistics, complete_all

WAL_CAPABILITIES = WalCapabilities(
    durability_domain="host", fencing=True, bounded=True, seal=True, identity=True, entry_bytes_max=2**20
)

_HEADER_BYTES = 4096
# epoch, start of the first kept record, confirmed position, sealed, identity; CRC-32C of these
_HEADER = struct.Struct(">QQQ?8s")
# magic, payload length, position, confirmed position when it was written; CRC-32C of these and the payload
_RECORD = struct.Struct(">4sIQQ")
_CRC = struct.Struct(">I")
_MAGIC = b"PCWL"
RECORD_BYTES = _RECORD.size + _CRC.size


class Header(NamedTuple):
    """Who owns the log and where it starts."""

    epoch: int = 0
    start: int = _HEADER_BYTES
    confirmed: int = _HEADER_BYTES
    sealed: bool = False
    #: Drawn when the log is created.
    identity: bytes = bytes(8)


class FileWal:
    """See ``penstock.spi.wal.WriteAheadLog``.

    A file lock is held over each group, so that a new owner never meets half of one.
    """

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        self._path = path
        self._epoch = epoch
        self._capacity = capacity
        # more than it has room for, no log takes
        largest = min(WAL_CAPABILITIES.entry_bytes_max, capacity - RECORD_BYTES)
        self._capabilities = replace(WAL_CAPABILITIES, entry_bytes_max=largest)
        access = ACCESSES["owner"]
        make_directories(path.parent, access)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, access.file_mode)
        self._queue: list[tuple[WalAppend, list[Buffer]]] = []
        self._scheduled = False
        self._recovered = False
        self._state, self._error = "open", ""
        self._ends: list[int] = []
        self._entries = self._payload_bytes = self._groups = self._written_bytes = 0
        try:
            self._take_over()
        except OSError as error:
            os.close(self._file)
            raise UnavailableError(f"the log can't be opened: {error}") from error
        except BaseException:
            os.close(self._file)
            raise

    @property
    def capabilities(self) -> WalCapabilities:
        return self._capabilities

    @property
    def location(self) -> str:
        return str(self._path)

    # Ownership

    def _take_over(self) -> None:
        with self._locked():
            header = self._read_header()
            if header.epoch >= self._epoch:
                raise FencedError(
                    "a newer owner holds the log, or this epoch was used before: "
                    f"epoch={header.epoch} own={self._epoch}"
                )
            self._header = header._replace(epoch=self._epoch)
            self._write_header()
        self._end = self._confirmed = self._header.start

    @classmethod
    def identify(cls, path: Path, _epoch: int) -> str | None:
        """The identity of the log at ``path``; None if there is none."""
        try:
            raw = path.read_bytes()[:_HEADER_BYTES]
        except FileNotFoundError:
            return None
        return Header._make(_HEADER.unpack(cls._checked(path, raw))).identity.hex() if raw else None

    @classmethod
    async def format(cls, path: Path, consent: str) -> Mapping[str, object]:
        """Remove the log at ``path``, if there is one, for who says the right words."""
        await checkpoint()
        return cls._remove(path, consent)

    @classmethod
    def _remove(cls, path: Path, consent: str) -> Mapping[str, object]:
        words = f"erase {path}"
        held = path.stat().st_size if path.exists() else 0
        if held and consent != words:
            raise ConfigError(
                f"the place holds a log, so nothing was changed; if that can go, say '{words}': path={path}"
            )
        path.unlink(missing_ok=True)
        return {"path": str(path), "held_bytes": held}

    @classmethod
    async def read(cls, path: Path, _epoch: int) -> AsyncIterator[WalEntry]:
        """What ``recover`` would return now, from outside."""
        await checkpoint()
        header, log = cls._look(path)
        position, confirmed = header.start, header.confirmed
        while (found := cls._record(log, position)) is not None:
            entry, record_confirmed = found
            confirmed = max(confirmed, record_confirmed)
            yield entry
            position = entry.next_position
        cls._judge_end(log, position, confirmed)

    @classmethod
    async def describe(cls, path: Path, _epoch: int) -> Mapping[str, object]:
        """Who owns the log, and where it is kept from."""
        await checkpoint()
        header, log = cls._look(path)
        return {"epoch": header.epoch, "start": header.start, "sealed": header.sealed, "bytes": len(log)}

    @classmethod
    def _look(cls, path: Path) -> tuple[Header, memoryview]:
        try:
            raw = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no log: path={path}") from error
        return Header._make(_HEADER.unpack(cls._checked(path, raw))), memoryview(raw)

    def _is_owner(self) -> bool:
        header = self._read_header()
        return header.epoch == self._epoch and not header.sealed

    def _read_header(self) -> Header:
        raw = os.pread(self._file, _HEADER.size + _CRC.size, 0)
        if not raw:
            return Header(identity=os.urandom(8))
        return Header._make(_HEADER.unpack(self._checked(self._path, raw)))

    @staticmethod
    def _checked(path: Path, raw: bytes) -> bytes:
        fixed = raw[: _HEADER.size]
        if len(raw) < _HEADER.size + _CRC.size or crc32c(fixed) != _CRC.unpack_from(raw, _HEADER.size)[0]:
            raise CorruptError(f"the header of the log fails its checksum: path={path} position=0")
        return fixed

    def _write_header(self) -> None:
        fixed = _HEADER.pack(*self._header)
        os.pwrite(self._file, (fixed + _CRC.pack(crc32c(fixed))).ljust(_HEADER_BYTES, b"\0"), 0)
        os.fdatasync(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    # Recovery

    async def recover(self) -> AsyncIterator[WalEntry]:
        if self._recovered:
            raise InvalidRequestError("the log is recovered once")
        try:
            log = memoryview(os.pread(self._file, os.fstat(self._file).st_size, 0))
        except OSError as error:
            raise UnavailableError(f"the log can't be read: {error}") from error
        confirmed = self._header.confirmed
        position = self._header.start
        while (found := self._record(log, position)) is not None:
            entry, record_confirmed = found
            confirmed = max(confirmed, record_confirmed)
            await checkpoint()
            yield entry
            position = entry.next_position
            self._ends.append(position)
        self._judge_end(log, position, confirmed)
        try:
            self._settle(position)
        except OSError as error:
            raise UnavailableError(f"the log can't be written: {error}") from error
        self._recovered = True

    def _settle(self, position: int) -> None:
        self._end = self._confirmed = position
        with self._locked():
            if self._is_owner():  # what is behind belongs to a newer owner otherwise
                os.ftruncate(self._file, position)
                self._header = self._header._replace(confirmed=position)
                self._write_header()

    @classmethod
    def _record(cls, log: memoryview, position: int) -> tuple[WalEntry, int] | None:
        """The record at ``position`` and the confirmed position it tells of, if all of it is there and fits."""
        if position + RECORD_BYTES > len(log):
            return None
        magic, length, stored, confirmed = _RECORD.unpack_from(log, position)
        (crc,) = _CRC.unpack_from(log, position + _RECORD.size)
        end = position + RECORD_BYTES + length
        if magic != _MAGIC or stored != position or end > len(log):
            return None
        payload = log[position + RECORD_BYTES : end]
        if not cls._fits(log[position : position + _RECORD.size], payload, crc):
            return None
        return WalEntry(position, end, payload), confirmed

    @classmethod
    def _fits(cls, head: memoryview, payload: memoryview, crc: int) -> bool:
        return crc32c(payload, crc32c(head)) == crc

    @classmethod
    def _judge_end(cls, log: memoryview, position: int, confirmed: int) -> None:
        """Nothing fits at ``position``: the end of the log, unless something shows that more was acknowledged."""
        later = log.tobytes()
        place = later.find(_MAGIC, position)
        while place >= 0 and confirmed <= position:
            found = cls._record(log, place)
            if found is not None:
                confirmed = max(confirmed, found[1])
            place = later.find(_MAGIC, place + 1)
        if confirmed > position:
            raise CorruptError(
                f"the log lost acknowledged entries: position={position} confirmed_position={confirmed}"
            )

    # Appending

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        if not self._recovered:
            raise InvalidRequestError("recover the log to its end before the first append")
        if self._state == "fenced":
            raise FencedError("a newer owner took over the log")
        if self._state != "open":
            raise ClosedError(f"the log is {self._state}")
        size = sum(len(part) for part in data)
        if not 0 < size <= self._capabilities.entry_bytes_max:
            raise InvalidRequestError(f"an entry is empty or too large: bytes={size}")
        self._check_room(size)
        append = WalAppend(self._end, self._end + RECORD_BYTES + size)
        self._end = append.next_position
        self._queue.append((append, list(data)))
        self._entries += 1
        self._payload_bytes += size
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)
        return append

    def would_fit(self, entry_bytes: int) -> bool:
        """See ``penstock.spi.wal.BoundedLog``."""
        return self._end + RECORD_BYTES + entry_bytes - self._header.start <= self._capacity

    def _check_room(self, size: int) -> None:
        if self._end + RECORD_BYTES + size - self._header.start > self._capacity:
            raise FullError(f"the log is at its capacity, trim it: capacity={self._capacity}")

    def _flush(self) -> None:
        """Everything queued becomes one group: written, made durable, answered in order."""
        self._scheduled = False
        if self._state != "open" or not self._queue:
            return
        group, self._queue = self._queue, []
        try:
            with self._locked():
                if not self._is_owner():
                    self._fail("fenced", group, FencedError("a newer owner took over the log"))
                    return
                self._write(group)
        except OSError as error:
            self._fail("failed", group, UnavailableError(f"the log can't be written: {error}"))
            return
        self._ends += [append.next_position for append, _ in group]
        self._confirmed = group[-1][0].next_position
        self._groups += 1
        self._answer(group)

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        pieces: list[Buffer] = []
        for append, data in group:
            payload = b"".join(data)
            head = _RECORD.pack(_MAGIC, len(payload), append.position, self._confirmed)
            pieces += [head, _CRC.pack(crc32c(payload, crc32c(head))), payload]
        block = b"".join(pieces)
        written = os.pwrite(self._file, block, group[0][0].position)
        if written != len(block):
            raise OSError(errno.ENOSPC, "the medium took a part of a group only")
        os.fdatasync(self._file)
        self._written_bytes += written

    def _answer(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        complete_all([append for append, _ in group])

    def _fail(self, state: str, group: list[tuple[WalAppend, list[Buffer]]], error: Exception) -> None:
        if self._state not in ("fenced", "failed"):
            self._state, self._error = state, "" if state == "closed" else str(error)
        pending, self._queue = [*group, *self._queue], []
        complete_all([append for append, _ in pending], error)

    # Trimming, sealing, closing

    async def trim(self, position: int) -> None:
        position = min(position, self._confirmed)  # what is there now, nothing that comes later
        await checkpoint()
        try:
            self._drop(position)
        except OSError as error:
            raise UnavailableError(f"the trim can't be written: {error}") from error

    def _drop(self, position: int) -> None:
        kept = bisect_right(self._ends, position)
        if kept and self._state == "open":
            start = self._ends[kept - 1]
            del self._ends[:kept]
            with self._locked():
                if self._is_owner():
                    self._header = self._header._replace(start=start, confirmed=self._confirmed)
                    self._write_header()

    async def seal(self) -> None:
        await checkpoint()
        if self._state in ("closed", "failed"):
            raise ClosedError(f"the log is {self._state}")
        self._flush()
        with self._locked():
            if self._read_header().epoch != self._epoch:
                raise FencedError("a newer owner took over the log: it isn't this one's to seal")
            if self._is_owner():
                self._header = self._header._replace(sealed=True, confirmed=self._confirmed)
                self._write_header()
        if self._state == "open":
            self._fail("fenced", [], FencedError("the log is sealed"))

    def close(self) -> None:
        """Flush, note where the log ends, and answer everything."""
        self._flush()
        if self._state == "open" and self._recovered:
            with suppress(OSError), self._locked():  # what is confirmed is only known a little less well then
                if self._is_owner():
                    self._header = self._header._replace(confirmed=self._confirmed)
                    self._write_header()
        self._fail("closed", [], ClosedError("the log was closed"))
        os.close(self._file)

    def statistics(self) -> WalStatistics:
        return WalStatistics(
            appended_entries=self._entries,
            appended_payload_bytes=self._payload_bytes,
            written_groups=self._groups,
            written_bytes=self._written_bytes,
            pending_entries=len(self._queue),
            pending_bytes=sum(append.next_position - append.position for append, _ in self._queue),
            used_bytes=self._end - self._header.start,
            capacity_bytes=self._capacity,
            trimmed_position=self._header.start,
            confirmed_position=self._confirmed,
            end_position=self._end if self._recovered else -1,
            state=self._state,
            last_error=self._error,
        )


def open_wal(
    make: Callable[[Path, int, int], FileWal],
) -> Callable[[Any, Services], AbstractAsyncContextManager[FileWal]]:
    """The ``open`` of a WAL of the class ``make``."""

    @asynccontextmanager
    async def opened(settings: Any, services: Services) -> AsyncIterator[FileWal]:
        path = _path(services)
        make_directories(path.parent, services.access)
        with suppress(FileExistsError):
            os.close(create_file(path, os.O_RDWR, services.access))
        wal = make(path, services.epoch, settings.capacity)
        try:
            yield wal
        finally:
            wal.close()

    return opened


def identify_wal(
    choose: Callable[[Any], type[FileWal]],
) -> Callable[[Any, Services], Awaitable[str | None]]:
    """The ``identify`` of a WAL whose class is chosen by the settings."""

    async def identified(settings: Any, services: Services) -> str | None:
        await checkpoint()
        return choose(settings).identify(_path(services), services.epoch)

    return identified


def read_wal(
    choose: Callable[[Any], type[FileWal]],
) -> Callable[[Any, Services], AsyncIterator[WalEntry]]:
    """The ``read`` of a WAL whose class is chosen by the settings."""
    return lambda settings, services: choose(settings).read(_path(services), services.epoch)


def describe_wal(
    choose: Callable[[Any], type[FileWal]],
) -> Callable[[Any, Services], Awaitable[Mapping[str, object]]]:
    """The ``describe`` of a WAL whose class is chosen by the settings."""
    return lambda settings, services: choose(settings).describe(_path(services), services.epoch)


def format_wal(
    choose: Callable[[Any], type[FileWal]],
) -> Callable[[Any, Services, str], Awaitable[Mapping[str, object]]]:
    """The ``format`` of a WAL whose class is chosen by the settings."""
    return lambda settings, services, consent: choose(settings).format(_path(services), consent)


def _path(services: Services) -> Path:
    return services.data_dir / "wal" / "log"


class WalSettings(Settings):
    """Settings of the file WAL."""

    capacity: Size = Field(default=2 * 2**20, ge=4096, description="bytes of the log between trims")


@hookimpl
def penstock_register_wal() -> WalSpec[WalSettings]:
    """Register the file WAL."""
    return WalSpec(
        name="reference",
        summary="A write-ahead log in one file, one write and one fdatasync per group.",
        settings=WalSettings,
        capabilities=WAL_CAPABILITIES,
        open=open_wal(FileWal),
        identify=identify_wal(lambda _: FileWal),
        read=read_wal(lambda _: FileWal),
        describe=describe_wal(lambda _: FileWal),
        format=format_wal(lambda _: FileWal),
    )
