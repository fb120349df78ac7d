"""The medium: a file or block device, with direct or buffered writes, and the locks between its openers."""

from __future__ import annotations

__all__ = ("Device", "FileDevice", "is_owned")

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol

from penstock.direct_io import LARGE_BYTES, DirectGather, write_vectors
from penstock.errors import ConfigError, UnavailableError
from penstock.files import (
    ACCESSES,
    Access,
    create_file,
    excess_mode,
    make_directories,
    open_own,
    sync_directory,
)
from penstock.spi import Buffer
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES, SHARED_AREA_BYTES, Header
from penstock_wal_block._place import check_place, find_header, mounted_type, real_path
from penstock_wal_block._reservation import Reservation

logger = logging.getLogger("penstock.wal.block")

#: A file is written with zeros this far ahead of small groups: a write that extends a file costs twice as much.
_GROWTH_BYTES = 2**20
_SMALL_GROUP_BYTES = 2**18
_IOV_MAX = 1000
#: A group of so many bytes has no payload that is written from where it is: it is put together in one go.
_WHOLE_BYTES_MAX = LARGE_BYTES
#: File systems whose writes with RWF_DSYNC are known to be what a write and fdatasync are. Others may hand the flag
#: on to somebody who doesn't look at it (FUSE).
_DSYNC_SYSTEMS = frozenset({"ext4", "xfs"})
#: A group of so many bytes is one request to the disk. Larger ones are several, which a disk may have to make durable
#: one by one; then one sync behind them is better.
_DSYNC_BYTES_MAX = 2**16
_MOUNTS = Path("/proc/self/mountinfo")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Groups of pieces smaller than this on average are joined first: 0.06 µs a piece against 0.3 µs one by one.
_JOIN_PART_BYTES = 4096
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

# Locks are single bytes far past any data: Linux "open file description" locks (fcntl(2)), which also hold between
# two openers in one process, and end with the process.
_OWNER_LOCK_BASE = 2**61
_HEADER_LOCK = 2**62
_DATA_LOCK = 2**62 + 1
_LOCK_TIMEOUT_S = 10.0
_LOCK_RETRY_S = 0.002
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


def is_owned(fd: int) -> bool:
    """Whether an opener of this host has the log at ``fd``, which has no lock itself. Raises OSError."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _OWNER_LOCK_BASE, 0, 0)
    found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
    return bool(found[0] != fcntl.F_UNLCK)


class Device(Protocol):
    """The medium, as the log needs it. All calls block; a failure of the medium is an OSError."""

    @property
    def capacity_bytes(self) -> int:
        """Bytes that can be written."""

    @property
    def extent_bytes(self) -> int:
        """What is there to be written over. A write past it makes a file longer, and takes ten times as long."""

    @property
    def in_place(self) -> bool:
        """The log's path still leads to it; what is written to a file that was removed is gone at the end."""

    @property
    def is_linked(self) -> bool:
        """The file has a name, whichever: less than :attr:`in_place` says, in half the time."""

    def find_header(self, location: str) -> Header | None:
        """The header that counts; None where nothing was ever written. Changes nothing.

        Raises CorruptError, ConfigError for what isn't ours, NewerVersionError.
        """

    @property
    def shareable(self) -> bool:
        """Other hosts may have the medium open too."""

    def read_header_area(self, offset: int, size: int) -> bytes:
        """Header slots, from the medium itself; shorter if it is new."""

    def write_header_slot(self, index: int, slot: bytes) -> None:
        """Write one slot and make it durable."""

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes at ``offset`` of the medium; fewer where it ends."""

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        """Write ``parts`` (``length`` bytes in sum) at the aligned ``offset``, padded with zeros to a block.

        Several threads may write at the same time, each somewhere else.
        """

    def sync(self) -> None:
        """Make what this thread wrote durable."""

    def sync_all(self) -> None:
        """Make durable what is on the medium, whoever wrote it."""

    def header_lock(self) -> AbstractContextManager[None]:
        """Held while the header is read, judged and replaced."""

    def data_lock(self) -> AbstractContextManager[None]:
        """Held by an owner while it writes a group."""

    @property
    def devices(self) -> int:
        """How many a log is striped over; 0 if it isn't."""

    @property
    def stripe_bytes(self) -> int:
        """What follows each other on one of them."""

    def label(self, log_id: int) -> None:
        """Say on each but the first whose it is, where that isn't said yet."""

    def claim(self, epoch: int) -> bool:
        """Take the lock of ``epoch`` for the life of this device; False if another opener has it."""

    @property
    def seat(self) -> bytes:
        """16 bytes, the same for all openers that see each other's locks, and for no other."""

    def reserve(self, epoch: int, earlier: Sequence[int]) -> frozenset[int]:
        """Have the device refuse what other hosts write, if that is wished.

        Returns those of the ``earlier`` owners whose writes can't land any more. Raises ConfigError,
        UnavailableError.
        """

    def is_free(self, epoch: int) -> bool:
        """No opener of this seat has the lock of ``epoch``: who had it has ended, and so have all its writes."""


class FileDevice:
    """A regular file, which grows as it is written, or a block device.

    Each thread that writes has a descriptor and a bounce buffer of its own. A failed write-back of the page cache is
    reported once to each open descriptor; over a shared one, the sync of another thread could take the report away.
    """

    devices = stripe_bytes = 0

    def __init__(
        self,
        path: Path,
        *,
        capacity_bytes: int,
        io: Literal["auto", "direct", "buffered"],
        sync: Literal["auto", "fdatasync", "dsync"],
        buffer_bytes: int,
        writers: int = 1,
        access: Access = ACCESSES["owner"],
        reservations: Literal["off", "auto", "on"] = "off",
    ) -> None:
        """Open or create ``path``, for ``writers`` threads that write, with bounce buffers of ``buffer_bytes`` each.

        Raises ConfigError if it can't be used, OSError if the system refuses.
        """
        self._fds: list[int] = []
        self._reservation: Reservation | None = None
        self._sync = sync
        self._buffer_bytes = buffer_bytes
        self._local = threading.local()
        self._growing = threading.Lock()
        try:
            self._open(real_path(path), capacity_bytes, io, access)
            if reservations != "off":
                self._reservation = Reservation(self._fd, location=str(path), required=reservations == "on")
            self._free_lanes = [self._new_lane() for _ in range(writers)]
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, capacity_bytes: int, io: str, access: Access) -> None:
        self._path = path
        self._fd = self._keep(self._open_or_create(path, access))
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        self._extent = self._size()
        if self.is_block_device and self._extent < capacity_bytes:
            raise ConfigError(
                f"the block device is smaller than the wal's capacity, lower the capacity: path={path} "
                f"device_bytes={self._extent} capacity={capacity_bytes}"
            )
        self._capacity_bytes = capacity_bytes
        self._direct_fd = self._open_direct(path, io)
        self._header_fd = self._fd
        if self.is_block_device:
            # Another host may have it open, so its header is read from the medium, not from the page cache.
            header_fd = self._direct_fd if self.direct else self._open_direct(path, "auto")
            self._header_fd = header_fd if header_fd >= 0 else self._fd
        self._header_buffer = mmap.mmap(-1, SHARED_AREA_BYTES)
        self._zeros = mmap.mmap(-1, _GROWTH_BYTES)

    @staticmethod
    def _open_or_create(path: Path, access: Access) -> int:
        """Never through a link, and never a file that somebody else made in between."""
        if not check_place(path):
            made = make_directories(path.parent, access)
            try:
                fd = create_file(path, os.O_RDWR, access)
            except FileExistsError:
                pass  # another broker, at the same time
            else:
                for name in (*made, path):
                    sync_directory(name.parent)
                return fd
        fd = open_own(path, os.O_RDWR, block_device=True)
        if not stat.S_ISBLK(os.fstat(fd).st_mode) and (mode := excess_mode(fd, access)):
            logger.warning(
                "records in the wal can be read by others, take that from them (chmod go-rwx), or set "
                "broker.data_access if they may: path=%s mode=%s",
                path,
                mode,
            )
        return fd

    def _open_direct(self, path: Path, io: str) -> int:
        if io == "buffered":
            return -1
        try:
            fd = self._open_again(path, getattr(os, "O_DIRECT", 0))
            os.preadv(fd, [mmap.mmap(-1, BLOCK_BYTES)], 0)
        except OSError as error:
            if io == "auto" and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return -1
            raise
        return fd

    def _open_again(self, path: Path, flags: int) -> int:
        fd = self._keep(open_own(path, os.O_RDWR | flags, block_device=True))
        if not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            raise OSError(errno.ESTALE, "the file was replaced while it was opened")
        return fd

    def _new_lane(self) -> _Lane:
        fd = self._open_again(self._path, getattr(os, "O_DIRECT", 0) if self.direct else 0)
        return _Lane(fd, self._dsync_bytes_max(), self._buffer_bytes if self.direct else 0)

    def _dsync_bytes_max(self) -> int:
        """Groups up to this size are written with RWF_DSYNC."""
        match self._sync:
            case "dsync":
                return sys.maxsize
            case "auto" if self.is_block_device or self._system_type() in _DSYNC_SYSTEMS:
                return _DSYNC_BYTES_MAX
            case _:
                return 0

    def _system_type(self) -> str:
        try:
            return mounted_type(_MOUNTS.read_text(errors="replace"), self._identity[0])
        except OSError as error:
            logger.debug("the file system of the wal can't be told: path=%s error=%s", self._path, error)
            return ""

    @property
    def _lane(self) -> _Lane:
        """The calling thread's."""
        try:
            lane: _Lane = self._local.lane
        except AttributeError:
            try:
                lane = self._free_lanes.pop()
            except IndexError:
                lane = self._new_lane()
            self._local.lane = lane
        return lane

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Close; ends the locks, and the reservation."""
        if self._reservation is not None:
            self._reservation.release()
        while self._fds:
            os.close(self._fds.pop())

    @property
    def capacity_bytes(self) -> int:
        """See :class:`Device`."""
        return self._capacity_bytes

    @property
    def extent_bytes(self) -> int:
        """See :class:`Device`."""
        return self._extent

    @property
    def direct(self) -> bool:
        """Groups bypass the page cache."""
        return self._direct_fd >= 0

    @property
    def in_place(self) -> bool:
        """See :class:`Device`."""
        if self.is_block_device:
            return True
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # it can't be told
        return (status.st_dev, status.st_ino) == self._identity

    @property
    def is_linked(self) -> bool:
        """See :class:`Device`."""
        return os.fstat(self._fd).st_nlink > 0

    def find_header(self, location: str) -> Header | None:
        """See :class:`Device`."""
        header = find_header(
            self.read_header_area(0, SHARED_AREA_BYTES),
            self._size(),
            lambda offset, size: os.pread(self._fd, size, offset),
            location,
            is_block_device=self.is_block_device,
        )
        if header is None and self.is_block_device:
            self._refuse_used_device()
        return header

    def _refuse_used_device(self) -> None:
        """The system knows what it uses a device for, whatever is on it (open(2), O_EXCL on block devices)."""
        try:
            os.close(os.open(self._path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise ConfigError(
                f"the device for the wal is in use, mounted or as part of a volume, choose another: path={self._path}"
            ) from error

    @property
    def shareable(self) -> bool:
        """See :class:`Device`."""
        return self.is_block_device

    def _size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def label(self, log_id: int) -> None:
        """See :class:`Device`. It has the header."""

    # -- header --------------------------------------------------------------------------------------------

    def read_header_area(self, offset: int, size: int) -> bytes:
        """See :class:`Device`."""
        if self._header_fd == self._fd:
            return os.pread(self._fd, size, offset)
        with memoryview(self._header_buffer)[:size] as buffer:
            return bytes(buffer[: os.preadv(self._header_fd, [buffer], offset)])

    def write_header_slot(self, index: int, slot: bytes) -> None:
        """See :class:`Device`."""
        assert len(slot) == BLOCK_BYTES, "a header fills its slot"
        with memoryview(self._header_buffer)[:BLOCK_BYTES] as buffer:
            buffer[:] = slot
            written = os.pwritev(self._header_fd, [buffer], index * BLOCK_BYTES)
        if written != BLOCK_BYTES:
            raise OSError(errno.ENOSPC, "short write of a wal header")
        os.fdatasync(self._header_fd)
        self._extent = max(self._extent, (index + 1) * BLOCK_BYTES)

    # -- data ----------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> memoryview:
        """See :class:`Device`."""
        if not (self.is_block_device and self.direct):
            return memoryview(os.pread(self._fd, size, offset))
        start = offset // BLOCK_BYTES * BLOCK_BYTES
        end = -(-(offset + size) // BLOCK_BYTES) * BLOCK_BYTES
        buffer = mmap.mmap(-1, end - start)
        got = os.preadv(self._direct_fd, [buffer], start)
        return memoryview(buffer)[offset - start : min(got, offset - start + size)].toreadonly()

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        """See :class:`Device`."""
        assert offset % BLOCK_BYTES == 0, "groups start aligned"
        end = offset + -(-length // BLOCK_BYTES) * BLOCK_BYTES
        assert HEADER_AREA_BYTES <= offset < end <= self._capacity_bytes, "a group lies in the ring"
        if end > self._extent:
            # Before the write: behind it another thread may be writing the next group already.
            with self._growing:
                self._extend(end, is_small=length < _SMALL_GROUP_BYTES)
        self._lane.write(offset, parts, length, end - offset - length)

    def _extend(self, end: int, *, is_small: bool) -> None:
        if end <= self._extent:
            return
        # Who owned the log before may have gone on, even around the ring, after this device object was made.
        self._extent = max(end, self._size())
        if self._extent == end and is_small and not self.is_block_device:
            self._grow(end)

    def sync(self) -> None:
        """See :class:`Device`."""
        lane = self._lane
        if lane.is_behind:
            os.fdatasync(lane.fd)
            lane.is_behind = False

    def sync_all(self) -> None:
        """See :class:`Device`."""
        os.fdatasync(self._direct_fd if self.direct else self._fd)

    def _grow(self, start: int) -> None:
        """Write zeros past ``start``, so that the next groups don't extend the file."""
        end = min(-(-(start + 1) // _GROWTH_BYTES) * _GROWTH_BYTES, self._capacity_bytes)
        try:
            with memoryview(self._zeros)[: end - start] as zeros:
                fd = self._direct_fd if self.direct else self._fd
                self._extent += os.pwritev(fd, [zeros], start) // BLOCK_BYTES * BLOCK_BYTES
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise

    # -- locks ---------------------------------------------------------------------------------------------

    def header_lock(self) -> AbstractContextManager[None]:
        """See :class:`Device`."""
        return self._locked(_HEADER_LOCK)

    def data_lock(self) -> AbstractContextManager[None]:
        """See :class:`Device`."""
        return self._locked(_DATA_LOCK)

    def claim(self, epoch: int) -> bool:
        """See :class:`Device`."""
        return self._try_lock(_OWNER_LOCK_BASE + epoch)

    @property
    def seat(self) -> bytes:
        """See :class:`Device`. Locks belong to an inode: containers on one host may have one each."""
        boot = _BOOT_ID.read_text()
        return hashlib.blake2b(f"{boot} {self._identity}".encode(), digest_size=16).digest()

    def reserve(self, epoch: int, earlier: Sequence[int]) -> frozenset[int]:
        """See :class:`Device`."""
        return frozenset() if self._reservation is None else self._reservation.take(epoch, earlier)

    def is_free(self, epoch: int) -> bool:
        """See :class:`Device`."""
        if not self._try_lock(_OWNER_LOCK_BASE + epoch):
            return False
        self._unlock(_OWNER_LOCK_BASE + epoch)
        return True

    @contextmanager
    def _locked(self, place: int) -> Iterator[None]:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while not self._try_lock(place):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "another process holds a lock of the wal and doesn't let go, is it stopped or its disk stuck? "
                    f"waited_s={_LOCK_TIMEOUT_S}"
                )
            time.sleep(_LOCK_RETRY_S)
        try:
            yield
        finally:
            self._unlock(place)

    def _unlock(self, place: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, place, 1, 0))

    def _try_lock(self, place: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True


class _Lane:
    """The descriptor and the bounce buffer of one writer thread."""

    def __init__(self, fd: int, dsync_bytes_max: int, buffer_bytes: int) -> None:
        """``buffer_bytes`` 0: through the page cache. Up to ``dsync_bytes_max`` a write is durable on return."""
        self.fd = fd
        #: Something was written, or tried, that needs a sync.
        self.is_behind = False
        self._dsync_bytes_max = dsync_bytes_max
        self._flags = 0
        self._gather = DirectGather(buffer_bytes, self._write_vectors) if buffer_bytes else None
        self._position = 0

    def write(self, offset: int, parts: Sequence[Buffer], length: int, padding: int) -> None:
        """Write ``parts`` (``length`` bytes) and ``padding`` zeros at ``offset``."""
        if length <= self._dsync_bytes_max:
            self._flags = os.RWF_DSYNC
        else:
            self._flags = 0
            self.is_behind = True
        gather = self._gather
        if gather is not None:
            whole = gather.whole(parts, length) if length <= _WHOLE_BYTES_MAX else None
            if whole is None:
                self._write_direct(gather, offset, parts)
            elif os.pwritev(self.fd, (whole,), offset, self._flags) != len(whole):
                write_vectors(self.fd, (whole,), offset, self._flags)  # tells why
            return
        parts = [*parts, bytes(padding)]
        if len(parts) > _IOV_MAX or length < _JOIN_PART_BYTES * len(parts):
            parts = [b"".join(parts)]
        write_vectors(self.fd, [memoryview(part) for part in parts], offset, self._flags)

    def _write_direct(self, gather: DirectGather, offset: int, parts: Sequence[Buffer]) -> None:
        """Write large payloads from where they are, and what is small from the bounce buffer."""
        self._position = offset
        try:
            gather.add_all(parts)
            gather.pad()
            gather.flush()
        finally:
            gather.reset()

    def _write_vectors(self, vectors: Sequence[memoryview]) -> None:
        write_vectors(self.fd, vectors, self._position, self._flags)
        self._position += sum(map(len, vectors))
