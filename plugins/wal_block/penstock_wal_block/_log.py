"""The log on its device: blocking and single-threaded, without an event loop, so that crashes can be simulated."""

from __future__ import annotations

__all__ = ("NO_SPACE", "BlockLog", "CachedReader", "Owner")

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from penstock.errors import ConfigError, CorruptError, FencedError, NewerVersionError, UnavailableError
from penstock.spi import Buffer
from penstock.wal import Boundaries, Cursor, DecodedGroup, Group, LogScan, encode_group
from penstock_wal_block._device import Device
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES, Header, newest_header

_READ_AHEAD_BYTES = 2**20
#: The log can be cut at this many places, evenly spread: memory against the precision of a trim.
_BOUNDARIES_MAX = 4096
#: Groups that are written under one taking of the data lock, while more are waiting. Each system call lets go of the
#: interpreter, and a thread waits long to get it back from a busy event loop.
_GROUPS_PER_LOCK = 16
#: The errors after which a write succeeds once somebody has made room.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who opens the log."""

    cluster_id: str
    node_id: int
    epoch: int
    #: 16 random bytes, new at each opening.
    incarnation: bytes
    #: Random; becomes the id of the log if it is created now.
    log_id: int


class BlockLog:
    """The ring, its header and its owner. Life: construct (takes over), scan to the end, write and trim, close.

    Every method may raise OSError from the device, and FencedError when a newer owner shows in the header.
    """

    def __init__(self, device: Device, owner: Owner, *, location: str, window_bytes: int) -> None:
        """Take the log over for ``owner``, or create it.

        Raises ConfigError (another cluster, node or capacity; the same epoch is open elsewhere), FencedError (a newer
        owner has it), CorruptError (both headers are damaged), NewerVersionError.
        """
        self._device = device
        #: The data lock, while it is held.
        self._lock = ExitStack()
        self._groups_under_lock = 0
        self._owner = owner
        self._location = location
        self._ring_bytes = (device.capacity_bytes - HEADER_AREA_BYTES) // BLOCK_BYTES * BLOCK_BYTES
        if not device.claim(owner.epoch):
            raise ConfigError(
                f"the wal is in use by another broker with the same node id and epoch, stop one of them: "
                f"path={location} node_id={owner.node_id} epoch={owner.epoch}"
            )
        with device.header_lock():
            found = self._find_header()
            self._found = found
            self._put_header(
                replace(
                    found,
                    sequence=found.sequence + 1,
                    node_id=owner.node_id,
                    epoch=owner.epoch,
                    incarnation=owner.incarnation,
                    window_bytes=max(found.window_bytes, window_bytes),
                    clean=False,
                )
            )
        # The old owner judges the header under this lock before it writes a group. So once we have had it, the
        # old owner's last group is on the device, and it writes no other.
        with device.data_lock():
            pass
        self._cursor = found.start
        self._confirmed = found.confirmed_position
        self._boundaries = Boundaries(
            found.start, step_bytes=max(BLOCK_BYTES, self._ring_bytes // _BOUNDARIES_MAX)
        )

    # -- taking over ---------------------------------------------------------------------------------------

    def _find_header(self) -> Header:
        header = self._device.find_header(self._location)
        if header is not None:
            self._check_header(header)
            return header
        return Header(
            sequence=0,
            log_id=self._owner.log_id,
            cluster_id=self._owner.cluster_id,
            node_id=self._owner.node_id,
            epoch=self._owner.epoch,
            incarnation=self._owner.incarnation,
            ring_bytes=self._ring_bytes,
            trim_position=0,
            start=Cursor(),
            confirmed_position=0,
            window_bytes=0,
            clean=True,
        )

    def _check_header(self, header: Header) -> None:
        owner, path = self._owner, self._location
        if header.cluster_id != owner.cluster_id:
            raise ConfigError(
                f"the wal belongs to another cluster, point this broker to another path: path={path} "
                f"found={header.cluster_id!r} expected={owner.cluster_id!r}"
            )
        # another node's is taken over as an older life's is: epochs grow over all nodes, and whether that node's
        # records are this one's was decided when this one got its epoch
        if header.ring_bytes != self._ring_bytes:
            raise ConfigError(
                f"the wal was created with another capacity, set it back (or drain the broker and delete the file): "
                f"path={path} found={header.ring_bytes + HEADER_AREA_BYTES} "
                f"expected={self._ring_bytes + HEADER_AREA_BYTES}"
            )
        if header.epoch > owner.epoch:
            raise FencedError(
                f"a newer owner holds the wal: path={path} owner_epoch={header.epoch} epoch={owner.epoch}"
            )

    def _put_header(self, header: Header) -> None:
        self._device.write_header_slot(header.sequence % 2, header.encode())
        # Only what is durable counts. If the write failed, the next try takes the same slot, torn or not.
        self._header = header
        self._area = self._device.read_header_area()

    def _update_header(self, **changes: object) -> None:
        """Replace the header, unless it isn't ours any more."""
        self.rest()
        with self._device.header_lock():
            self._check_owner()
            self._put_header(replace(self._header, sequence=self._header.sequence + 1, **changes))  # type: ignore[arg-type]

    def _check_owner(self) -> None:
        area = self._device.read_header_area()
        if area == self._area:
            return
        try:
            header = newest_header(area, self._location)
        except NewerVersionError as error:
            raise FencedError(f"a newer penstock took over the wal: path={self._location}") from error
        if header is None:
            raise CorruptError(f"the wal's header was damaged while it was open: path={self._location}")
        if (header.epoch, header.incarnation) != (self._owner.epoch, self._owner.incarnation):
            raise FencedError(
                f"a newer owner took over the wal: path={self._location} owner_epoch={header.epoch} "
                f"epoch={self._owner.epoch}"
            )
        self._area = area

    # -- recovery ------------------------------------------------------------------------------------------

    def scan(self) -> Iterator[DecodedGroup]:
        """All groups from the trim point on; after the last one the log may be written.

        Raises CorruptError where acknowledged entries are lost (I10), NewerVersionError.
        """
        found = self._found
        if found.clean and found.confirmed_position == found.start.position:
            return
        scan = LogScan(
            CachedReader(self._device.read, self._ring_bytes).read,
            found.start,
            log_id=found.log_id,
            alignment=BLOCK_BYTES,
            end_limit=found.start.position + self._ring_bytes,
            confirmed_position=found.confirmed_position,
            lookahead_bytes=0 if found.clean else found.window_bytes,
            settled_position=found.settled_position,
            settled_epoch=found.settled_epoch,
        )
        for group in scan:
            self._advance(group.entries[-1].next_position, scan.cursor)
            yield group
            if found.clean and scan.cursor.position == found.confirmed_position:
                break
        self._confirmed = self._cursor.position

    def settle(self) -> None:
        """Make what the scan found durable, and record that it is: a later recovery finds it, and nothing else."""
        self._device.sync_all()
        end = self._cursor.position
        self._update_header(confirmed_position=end, settled_position=end, settled_epoch=self._owner.epoch)

    def _advance(self, entries_end: int, cursor: Cursor) -> None:
        self._cursor = cursor
        self._boundaries.add(entries_end, cursor)

    # -- writing -------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> Cursor:
        """The end of the log: where the next group goes."""
        return self._cursor

    @property
    def header(self) -> Header:
        """The header as this owner wrote it last."""
        return self._header

    @property
    def ring_bytes(self) -> int:
        """The room for groups."""
        return self._ring_bytes

    def write(self, group: Group) -> None:
        """Make ``group`` durable at the end of the log. On return it may be acknowledged.

        After an error the log is as before: the same group may be written again. :meth:`rest` when no other group
        follows at once.
        """
        try:
            digest = self._write_durably(group)
        except BaseException:
            self.rest()
            raise
        self._confirmed = group.end_position
        self._advance(group.position + group.length, Cursor(group.end_position, group.sequence + 1, digest))

    def _write_durably(self, group: Group) -> int:
        """The digest of the group."""
        if self._header.sealed:
            raise FencedError(f"the wal is sealed: path={self._location}")
        assert group.position == self._cursor.position, "groups are written in order"
        assert group.sequence == self._cursor.sequence, "groups are written in order"
        parts, digest = encode_group(
            log_id=self._header.log_id,
            cursor=self._cursor,
            epoch=self._owner.epoch,
            confirmed_position=self._confirmed,
            appends=group.appends,
            payloads=group.payloads,
            checksums=group.checksums,
        )
        self._take_lock()
        self._write_ring(group.position, parts, group.length)
        self._device.sync()
        if self._device.shareable:
            # Locks end at the host: only this second look shows the claim of another one.
            self._check_owner()
        return digest

    def rest(self) -> None:
        """Let go of the data lock: nothing is about to be written."""
        self._groups_under_lock = 0
        self._lock.close()

    def _take_lock(self) -> None:
        """Hold the data lock as the owner. Who takes the log over writes the header, then waits for the lock."""
        if self._groups_under_lock >= _GROUPS_PER_LOCK:
            self.rest()
        if self._groups_under_lock == 0:
            self._lock.enter_context(self._device.data_lock())
        self._groups_under_lock += 1
        if self._groups_under_lock == 1 or self._device.shareable:
            self._check_owner()
            self._check_place()

    def look(self) -> None:
        """While nothing is written: raise FencedError, or UnavailableError if the file was removed or replaced."""
        self.rest()  # who wrote before us left the lock to whoever comes next
        self._check_owner()
        self._check_place()

    def _check_place(self) -> None:
        """Raise UnavailableError if the file was removed or replaced: what is written to it is lost."""
        if not self._device.in_place:
            raise UnavailableError(
                "the wal's file was removed or replaced while the broker ran, so nothing more is acknowledged; start "
                f"it again: path={self._location}"
            )

    def _write_ring(self, position: int, parts: Sequence[Buffer], length: int) -> None:
        offset = position % self._ring_bytes
        room = self._ring_bytes - offset
        if length <= room:
            self._device.write(HEADER_AREA_BYTES + offset, parts, length)
        else:
            data = memoryview(b"".join(parts))
            self._device.write(HEADER_AREA_BYTES + offset, [data[:room]], room)
            self._device.write(HEADER_AREA_BYTES, [data[room:]], length - room)

    def trim(self, position: int) -> int:
        """Forget entries up to ``position``; the new start of the log: what lies below may be overwritten."""
        self.rest()  # also if there is nothing to do: who wrote before us left the lock to whoever comes next
        position = min(position, self._cursor.position)
        if position > self._header.trim_position:
            # First the header is durable, then the room is used: recovery must never start in overwritten groups.
            start = self._boundaries.trim(position)
            self._update_header(trim_position=position, start=start, confirmed_position=self._confirmed)
        return self._header.start.position

    def seal(self) -> None:
        """No group is ever written again, by this owner or another."""
        self._update_header(sealed=True, confirmed_position=self._confirmed)

    def close(self) -> None:
        """Record that the log ends exactly here."""
        self._update_header(clean=True, confirmed_position=self._cursor.position)


class CachedReader:
    """Reads ring positions through one read-ahead buffer."""

    def __init__(self, read: Callable[[int, int], memoryview], ring_bytes: int) -> None:
        """``read(offset, size)`` reads the medium; the ring of ``ring_bytes`` follows the header area."""
        self._read = read
        self._ring_bytes = ring_bytes
        self._position = 0
        self._data = memoryview(b"")

    def read(self, position: int, size: int) -> memoryview:
        """``size`` bytes from ``position``; fewer where the device was never written."""
        offset = position - self._position
        if not 0 <= offset <= offset + size <= len(self._data):
            self._data = self._load(position, max(size, _READ_AHEAD_BYTES))
            self._position = position
            offset = 0
        return self._data[offset : offset + size]

    def _load(self, position: int, size: int) -> memoryview:
        offset = position % self._ring_bytes
        room = self._ring_bytes - offset
        if size <= room:
            return self._read(HEADER_AREA_BYTES + offset, size)
        head = self._read(HEADER_AREA_BYTES + offset, room)
        if len(head) < room:
            return head
        return memoryview(b"".join((head, self._read(HEADER_AREA_BYTES, size - room))))
