"""A WAL on a medium that is no file, a shelf of this process, which lets itself be disturbed.

What an outside author would write for a medium of his own: the log on the building blocks of ``penstock.wal``, and
``medium``, by which the conformance suite damages and disturbs it.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from anyio.lowlevel import checkpoint
from crc32c import crc32c

from penstock.errors import CorruptError, FencedError, InvalidRequestError, UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi import Buffer, Services, Settings
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalSpec, WalStatistics
from penstock.wal import Boundaries, Cursor, Group, GroupCommit, GroupWriter, LogScan, encode_group

CAPABILITIES = WalCapabilities(durability_domain="process", fencing=True, entry_bytes_max=2**20)
_LOG_ID = 7
#: Epoch, confirmed position, cursor of the start, trim position; CRC-32C of these.
_HEADER = struct.Struct(">QQQQIQ")
_CRC = struct.Struct(">I")
HEADER_BYTES = _HEADER.size + _CRC.size


class Shelf:
    """Bytes that outlive who opens them. Each call may fail, as ``step`` decides."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.step: Callable[[str], None] = lambda _: None

    def load(self) -> bytes:
        """All of it, for the suite to look at."""
        return bytes(self._data)

    def store(self, data: bytes) -> None:
        """Something else in its place, for the suite to damage it."""
        self._data[:] = data

    def read(self, start: int, size: int) -> bytes:
        self.step("read")
        return bytes(self._data[start : start + size])

    def write(self, start: int, data: bytes) -> None:
        self.step("write")
        self._data.extend(bytes(max(0, start - len(self._data))))
        self._data[start : start + len(data)] = data


_shelves: dict[str, Shelf] = {}


class ShelfWal:
    """See ``penstock.spi.wal.WriteAheadLog``."""

    capabilities = CAPABILITIES

    def __init__(self, shelf: Shelf, location: str, epoch: int) -> None:
        self.medium = shelf
        self.location = location
        self._epoch = epoch
        self._start = self._cursor = Cursor()
        self._confirmed = self._trimmed = 0
        self._commit = GroupCommit(entry_bytes_max=CAPABILITIES.entry_bytes_max, group_bytes_max=2**18)
        self.writer = GroupWriter(
            self._commit, begin=self._begin, write=self._write, writes_max=1, linger_s=0.001
        )
        owner = self._owner()
        if owner >= epoch:
            raise FencedError(
                f"a newer owner holds the log, or the epoch was used: epoch={owner} own={epoch}"
            )
        self._note()

    def _owner(self) -> int:
        raw = self.medium.read(0, HEADER_BYTES)
        if not raw:
            return 0
        fixed = raw[: _HEADER.size]
        if len(raw) < HEADER_BYTES or _CRC.unpack_from(raw, _HEADER.size)[0] != crc32c(fixed):
            raise CorruptError(f"the header of the log fails its checksum: position=0 shelf={self.location}")
        epoch, self._confirmed, *start, self._trimmed = _HEADER.unpack(fixed)
        self._start = Cursor(*start)
        return int(epoch)

    def _note(self) -> None:
        fixed = _HEADER.pack(self._epoch, self._confirmed, *self._start, self._trimmed)
        self.medium.write(0, fixed + _CRC.pack(crc32c(fixed)))

    async def recover(self) -> AsyncIterator[WalEntry]:
        size = len(self.medium.load())
        scan = LogScan(
            lambda position, size: memoryview(self.medium.read(HEADER_BYTES + position, size)),
            self._start,
            log_id=_LOG_ID,
            alignment=1,
            end_limit=size,
            confirmed_position=self._confirmed,
            lookahead_bytes=size,
            settled_position=self._confirmed,
            settled_epoch=0,
        )
        self._boundaries = Boundaries(self._start, step_bytes=1)
        groups = iter(scan)
        while True:
            try:
                group = next(groups, None)
            except OSError as error:
                raise UnavailableError(f"the shelf can't be read: {error}") from error
            if group is None:
                break
            self._boundaries.add(group.entries[-1].next_position, scan.cursor)
            for entry in group.entries:
                await checkpoint()
                if entry.next_position > self._trimmed:
                    yield entry
        self._cursor = scan.cursor
        self._confirmed = scan.cursor.position
        if self._owner_now() == self._epoch:  # what is behind is a newer owner's otherwise
            self.medium.store(self.medium.load()[: HEADER_BYTES + self._confirmed])
        self._commit.start(self._cursor.position, self._cursor.sequence, start_position=self._start.position)

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = self._commit.append(data, checksum)
        self.writer.wake()
        return append

    async def _begin(self, group: Group) -> tuple[Group, bytes]:
        parts, digest = encode_group(
            log_id=_LOG_ID,
            cursor=self._cursor,
            epoch=self._epoch,
            confirmed_position=self._commit.confirmed_position,
            appends=group.appends,
            payloads=group.payloads,
        )
        self._ends = group.appends[-1].next_position
        self._cursor = Cursor(group.end_position, group.sequence + 1, digest)
        return group, b"".join(parts)

    async def _write(self, begun: tuple[Group, bytes]) -> None:
        group, data = begun
        ends, cursor = self._ends, self._cursor
        await checkpoint()
        try:
            if self._owner_now() != self._epoch:
                raise FencedError("a newer owner took over the log")
            self.medium.write(HEADER_BYTES + group.position, data)
            self.medium.step("sync")
        except OSError as error:
            raise UnavailableError(f"the shelf can't be written: {error}") from error
        self._boundaries.add(ends, cursor)
        self._confirmed = cursor.position

    def _owner_now(self) -> int:
        return int(_HEADER.unpack_from(self.medium.read(0, HEADER_BYTES))[0])

    async def trim(self, position: int) -> None:
        await checkpoint()
        if position <= self._trimmed:
            return
        try:
            if self._owner_now() != self._epoch:
                raise FencedError("a newer owner took over the log")
            self._trimmed = min(position, self._confirmed)
            self._start = self._boundaries.trim(self._trimmed)
            self._note()
        except OSError as error:
            raise UnavailableError(f"the trim can't be written: {error}") from error
        self._commit.release(self._start.position, self._trimmed)

    async def seal(self) -> None:
        raise InvalidRequestError("this log can't be sealed")

    def statistics(self) -> WalStatistics:
        return self._commit.statistics()


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[ShelfWal]:
    location = f"shelf {services.data_dir} {services.node_id}"
    try:
        wal = ShelfWal(_shelves.setdefault(location, Shelf()), location, services.epoch)
    except OSError as error:
        raise UnavailableError(f"the shelf can't be opened: {error}") from error
    async with wal.writer:
        yield wal


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    return WalSpec(
        name="wal_on_shelf",
        summary="on a shelf of this process",
        settings=Settings,
        capabilities=CAPABILITIES,
        open=_open,
    )
