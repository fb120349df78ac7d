"""The log on its device: blocking, without threads and event loop of its own, so that crashes can be simulated."""

from __future__ import annotations

__all__ = ("NO_SPACE", "BlockLog", "CachedReader", "Flight", "scan_from")

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from penstock.errors import ConfigError, FencedError, UnavailableError, kept
from penstock.spi import Buffer
from penstock.wal import Boundaries, Cursor, DecodedGroup, Group, LogScan, encode_group
from penstock_wal_block._device import Device
from penstock_wal_block._format import BLOCK_BYTES, SECTIONS_MAX, ZONES_MAX, Header, area_bytes, joined
from penstock_wal_block._headers import Headers, Owner, SharedHeaders
from penstock_wal_block._ring import RingMap

_READ_AHEAD_BYTES = 2**20
#: The log can be cut at this many places, evenly spread: memory against the precision of a trim.
_BOUNDARIES_MAX = 4096
#: An owner looks at the header and at its place before every group of this number, and before a group when it looked
#: last so long ago. Each system call lets go of the interpreter, and a thread waits long to get it back from a busy
#: event loop; for a lone group it is a tenth of all that the processor does.
_GROUPS_PER_CHECK = 16
_CHECK_AFTER_S = 0.01
#: What predecessors may still write to is left alone, of so many take-overs. A write of an owner before those would
#: have been on its way for as many lives of others.
_TAKE_OVERS_MAX = 4
#: The errors after which a write succeeds once somebody has made room.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Flight:
    """A group between :meth:`BlockLog.begin` and the end of all groups up to it."""

    __slots__ = ("after", "before", "entries_end", "is_durable", "length", "parts")

    def __init__(
        self, before: Cursor, after: Cursor, parts: Sequence[Buffer], length: int, entries_end: int
    ) -> None:
        self.before = before
        self.after = after
        self.parts = parts
        self.length = length
        self.entries_end = entries_end
        self.is_durable = False

    def let_go(self) -> None:
        """Keep no buffer of the appends: it won't be put again."""
        self.parts = ()


class BlockLog:
    """The ring, its header and its owner. Life: construct (takes over), scan to the end, write and trim, close.

    Groups are begun one after the other, which fixes place and chain, and then put by as many threads as there are,
    in any order. A group counts once all up to it are durable, so each says of how much that was true when it began:
    its confirmed position. From that, recovery knows which holes may be.

    Every method may raise OSError from the device, and FencedError when a newer owner shows in the header.
    """

    def __init__(
        self, device: Device, owner: Owner, *, location: str, window_bytes: int, shared: bool = False
    ) -> None:
        """Take the log over for ``owner``, or create it; ``shared``: several hosts may have it open.

        Raises ConfigError (another cluster, node or capacity; the same epoch is open elsewhere), FencedError (a newer
        owner has it), CorruptError (both headers are damaged), NewerVersionError.
        """
        self._device = device
        #: Guards everything below, and the header on the medium; not held while a group is written.
        self._mutex = threading.RLock()
        #: The data lock, while it is held.
        self._lock = ExitStack()
        self._holds_lock = False
        self._groups_since_check = 0
        self._checked_s = 0.0
        #: No other group was about to be written when the last one ended.
        self._is_lone = False
        self._wrote_s = 0.0
        #: The last group was written by :meth:`write_at_once`.
        self._wrote_at_once = False
        #: Groups being written under the lock.
        self._writing = 0
        #: Why the last sync failed that did.
        self._sync_error: OSError | None = None
        #: Begun, and not yet counted; oldest first.
        self._flights: deque[Flight] = deque()
        self._owner = owner
        self._location = location
        self._area_bytes = area_bytes(shared=shared)
        self._ring_bytes = (device.capacity_bytes - self._area_bytes) // BLOCK_BYTES * BLOCK_BYTES
        if not device.claim(owner.epoch):
            raise ConfigError(
                f"the wal is in use by another broker with the same node id and epoch, stop one of them: "
                f"path={location} node_id={owner.node_id} epoch={owner.epoch}"
            )
        #: Who is stopped must not stop others, so no lock is held on a shared log.
        self._locks = not shared
        kind = SharedHeaders if shared else Headers
        self._headers = kind(device, owner, location=location, ring_bytes=self._ring_bytes)
        found = self._found = self._headers.take_over(window_bytes)
        if not found.settled_epoch:  # nothing was written to it yet
            device.label(self._headers.header.log_id)
        self._ring = self._headers.header.ring
        self._confirmed_before = 0
        self._cursor = found.start
        self._confirmed = found.confirmed_position
        self._boundaries = Boundaries(
            found.start, step_bytes=max(BLOCK_BYTES, self._ring_bytes // _BOUNDARIES_MAX)
        )

    def _update_header(self, *, final: bool = False, **changes: object) -> None:
        """Replace the header, unless it isn't ours any more."""
        self.rest()
        with self._mutex:
            try:
                self._headers.update(final=final, **changes)
            except OSError as error:
                self._sync_error = kept(error)
                raise

    # -- recovery ------------------------------------------------------------------------------------------

    def scan(self) -> Iterator[DecodedGroup]:
        """All groups from the trim point on; after the last one the log may be written.

        Raises CorruptError where acknowledged entries are lost (I10), NewerVersionError.
        """
        found = self._found
        if found.clean and found.confirmed_position == found.start.position:
            return
        scan = scan_from(found.start, found, self._device.read)
        for group in scan:
            if group.header.epoch > self._owner.epoch:
                # whoever was overtaken in its recovery must not take what the newer one writes for its own
                raise FencedError(
                    f"a newer owner took over the wal: path={self._location} "
                    f"owner_epoch={group.header.epoch} epoch={self._owner.epoch}"
                )
            self._cursor = scan.cursor
            self._boundaries.add(group.entries[-1].next_position, scan.cursor)
            yield group
            if found.clean and scan.cursor.position == found.confirmed_position:
                break
        self._confirmed_before = scan.confirmed_position
        self._confirmed = self._cursor.position

    def settle(self) -> None:
        """Make what the scan found durable, and record that it is: a later recovery finds it, and nothing else.

        Raises ConfigError where too many earlier owners may still write.
        """
        self._device.sync_all()
        end = self._cursor.position
        if self._headers.haunted:
            self._ring = _ring_around(self._headers.header, end, self._confirmed_before, self._location)
        self._update_header(
            confirmed_position=end,
            settled_position=end,
            settled_epoch=self._owner.epoch,
            zoned=self._ring,
        )

    # -- writing -------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> Cursor:
        """Where the next group goes."""
        return self._cursor

    @property
    def header(self) -> Header:
        """The header as this owner wrote it last."""
        return self._headers.header

    @property
    def ring_bytes(self) -> int:
        """The room for groups, if nothing is left alone."""
        return self._ring_bytes

    @property
    def left_bytes(self) -> int:
        """What of it is left alone, since an earlier owner may still write there."""
        return self._ring_bytes - self._ring.room_bytes

    def write(self, group: Group) -> None:
        """Begin ``group`` and put it. On return it may be acknowledged, if no other one is in flight.

        After an error the log is as before: the same group may be written again. :meth:`rest` when no other group
        follows at once.
        """
        try:
            flight = self.begin(group)
            try:
                self.put(flight)
            except BaseException:
                with self._mutex:
                    if self._flights[-1] is flight:
                        self._flights.pop()
                        self._cursor = flight.before
                raise
        except BaseException:
            self.rest()
            raise

    def write_at_once(self, group: Group) -> tuple[Flight, Exception | None] | None:
        """Begin ``group`` and put it, if that waits for nothing but the medium; None if it would.

        With the error why it couldn't be put: then it is begun, and may be put again. For the event loop: it never
        waits for a lock, or for several devices; and looks who owns the log only where that comes from memory.
        """
        if self._device.devices or not self._mutex.acquire(blocking=False):
            return None
        try:
            if not self._holds_lock or self._flights or self._device.shareable or self._headers.header.sealed:
                return None
            if self._makes_longer(group):
                return None
            self.look_before_next()
            flight = self.begin(group)
            try:
                self.put(flight)
            except Exception as error:  # noqa: BLE001 - the caller answers the group with it
                return flight, kept(error)
            self.look_before_next()
            self._wrote_at_once = True
            return flight, None
        finally:
            self._mutex.release()

    def _makes_longer(self, group: Group) -> bool:
        """The file has to grow for ``group``: the medium takes several milliseconds for that, however quick it is."""
        extent = self._device.extent_bytes
        if extent >= self._device.capacity_bytes:
            return False
        pieces = self._ring.pieces(group.position, group.end_position - group.position)
        return any(self._area_bytes + offset + size > extent for offset, size in pieces)

    def begin(self, group: Group) -> Flight:
        """Give ``group`` its place at the end of the log, which moves behind it. Nothing is written yet."""
        with self._mutex:
            if self._headers.header.sealed:
                raise FencedError(f"the wal is sealed: path={self._location}")
            before = self._cursor
            assert group.position == before.position, "groups begin in order"
            assert group.sequence == before.sequence, "groups begin in order"
            parts, digest = encode_group(
                log_id=self._headers.header.log_id,
                cursor=before,
                epoch=self._owner.epoch,
                confirmed_position=self._confirmed,
                appends=group.appends,
                payloads=group.payloads,
                checksums=group.checksums,
            )
            after = Cursor(group.end_position, group.sequence + 1, digest)
            flight = Flight(before, after, parts, group.length, group.position + group.length)
            self._flights.append(flight)
            self._cursor = after
        return flight

    def put(self, flight: Flight) -> None:
        """Make a group durable; it may be acknowledged once this has returned for it and for all begun before it.

        Several threads may put groups at the same time. After an error the same one may be put again.
        """
        self._enter()
        is_durable = False
        failed_before = self._sync_error
        try:
            self._write(flight)
            self._sync(failed_before)
            if self._device.shareable:
                # Locks end at the host: only this second look shows the claim of another one.
                with self._mutex:
                    self._headers.check()
            is_durable = True
        finally:
            with self._mutex:
                self._writing -= 1
                self._wrote_s = time.monotonic()
                self._wrote_at_once = False
                if is_durable:
                    self._landed(flight)

    def _write(self, flight: Flight) -> None:
        """Write a group to its place in the ring."""
        try:
            self._write_ring(flight.before.position, flight.parts, flight.length)
        except OSError as error:
            if self._device.devices:  # they make durable what they write: it may have been that which failed
                self._sync_error = kept(error)
            raise

    def _sync(self, failed_before: OSError | None) -> None:
        """Make durable what was written since a sync failed with ``failed_before``.

        One that fails may take with it what other threads have written, to a cache of the system or of the disk;
        theirs may find nothing left to do, and succeed. So they fail alike.
        """
        try:
            self._device.sync()
        except OSError as error:
            self._sync_error = kept(error)
            raise
        failed = self._sync_error
        if failed is not None and failed is not failed_before:
            raise OSError(failed.errno, f"a sync beside it failed: {failed.strerror}")

    def _landed(self, flight: Flight) -> None:
        """A group is durable; those that no gap is before any more are confirmed."""
        flight.is_durable = True
        flight.let_go()
        flights = self._flights
        while flights and flights[0].is_durable:
            first = flights.popleft()
            self._confirmed = first.after.position
            self._boundaries.add(first.entries_end, first.after)

    def _enter(self) -> None:
        """Hold the data lock as the owner. Who takes the log over writes the header, then waits for the lock.

        An owner that keeps the lock from group to group sees the header soon; then it writes nothing more.
        """
        with self._mutex:
            if not self._holds_lock:
                if self._locks:
                    self._lock.enter_context(self._device.data_lock())
                self._holds_lock = True
                self._groups_since_check = (
                    _GROUPS_PER_CHECK  # nobody writes under this lock before a check succeeded
                )
            if self._is_check_due:
                self._headers.check()
                self._check_place(self._device.in_place)
                self._groups_since_check = 0
                self._checked_s = time.monotonic()
            elif self._is_lone and not self._writing:
                self._check_place(self._device.is_linked)
            self._is_lone = False
            self._groups_since_check += 1
            self._writing += 1

    @property
    def _is_check_due(self) -> bool:
        return (
            self._groups_since_check >= _GROUPS_PER_CHECK
            or time.monotonic() - self._checked_s > _CHECK_AFTER_S
            or self._device.shareable
        )

    def rest(self) -> None:
        """Let go of the data lock, unless a group is being written: nothing is about to be."""
        with self._mutex:
            if not self._writing:
                self._holds_lock = False
                self._lock.close()

    def look_before_next(self) -> None:
        """No group follows at once: who puts the next one sees first that the file wasn't removed."""
        self._is_lone = True

    def rest_after(self, seconds: float) -> bool:
        """Let go of the data lock if nothing was written for so long; whether somebody has to come again for it.

        Whoever writes in a thread comes later; the event loop doesn't.
        """
        with self._mutex:
            if time.monotonic() - self._wrote_s >= seconds:
                self.rest()
            return self._holds_lock and self._wrote_at_once

    def look(self) -> None:
        """Check an idle log: raises FencedError, or UnavailableError if the file was removed or replaced."""
        with self._mutex:
            self.rest()  # who wrote before us left the lock to whoever comes next
            self._headers.check()
            self._check_place(self._device.in_place)

    def _check_place(self, is_there: bool) -> None:
        """Raise UnavailableError if the file was removed or replaced: what is written to it is lost."""
        if not is_there:
            raise UnavailableError(
                "the wal's file was removed or replaced while the broker ran, so nothing more is acknowledged; start "
                f"it again: path={self._location}"
            )

    def _write_ring(self, position: int, parts: Sequence[Buffer], length: int) -> None:
        pieces = self._ring.pieces(position, length)
        if len(pieces) == 1:
            self._device.write(self._area_bytes + pieces[0][0], parts, length)
            return
        data = memoryview(b"".join(parts))
        for offset, size in pieces:
            self._device.write(self._area_bytes + offset, [data[:size]], size)
            data = data[size:]

    def trim(self, position: int) -> int:
        """Forget entries up to ``position``; the new start of the log: what lies below may be overwritten."""
        with self._mutex:
            self.rest()  # also if there is nothing to do: who wrote before us left the lock to whoever comes next
            position = min(position, self._confirmed)
            if position > self._headers.header.trim_position:
                # First the header is durable, then the room is used: recovery must never start in overwritten groups.
                start = self._boundaries.trim(position)
                self._update_header(
                    trim_position=position,
                    start=start,
                    confirmed_position=self._confirmed,
                    zoned=self._headers.header.ring.trimmed(start.position),
                )
            return self._headers.header.start.position

    def seal(self) -> None:
        """No group is ever begun again, by this owner or another."""
        self._update_header(final=True, sealed=True, confirmed_position=self._confirmed)

    def close(self) -> None:
        """Record that the log ends exactly here. Nothing is in flight."""
        assert not self._flights, "the end is marked when everything is written"
        self._update_header(clean=True, confirmed_position=self._cursor.position)


def _ring_around(header: Header, end: int, confirmed: int, location: str) -> RingMap:
    """Where groups go after a recovery that found ``end``, while whoever was before may still write.

    Everything before ``confirmed`` had been confirmed.

    Raises UnavailableError where nothing is left to write to.
    """
    ring = header.ring
    # What is in flight begins where all before is confirmed, spans no more than the window, and has room in the ring.
    first = max(min(confirmed, end), end - header.window_bytes, ring.sections[-1].position)
    last = max(end, min(end + header.window_bytes, header.start.position + ring.usable_bytes))
    if last > first:
        ring = ring.around(first, end, last, epoch=header.epoch, kept=_TAKE_OVERS_MAX - 1)
    if (
        ring.room_bytes < header.window_bytes
        or len(ring.sections) > SECTIONS_MAX
        or len(ring.zones) > ZONES_MAX
    ):
        raise UnavailableError(
            "the wal was taken over too often without being trimmed, and earlier owners may still write to all of "
            f"it; end them, then start on the host of the last one: path={location} take_overs={len(ring.sections)}"
        )
    return ring


def scan_from(cursor: Cursor, header: Header, read: Callable[[int, int], memoryview]) -> LogScan:
    """The groups from ``cursor`` on of the log that ``header`` describes; ``read`` is of the medium."""
    return LogScan(
        CachedReader(read, header).read,
        cursor,
        log_id=header.log_id,
        alignment=BLOCK_BYTES,
        end_limit=header.start.position + header.ring_bytes,
        confirmed_position=header.confirmed_position,
        lookahead_bytes=header.lookahead_bytes,
        settled_position=header.settled_position,
        settled_epoch=header.settled_epoch,
        ring_bytes=0 if header.shared else header.ring_bytes,
    )


class CachedReader:
    """Reads ring positions through one read-ahead buffer."""

    def __init__(self, read: Callable[[int, int], memoryview], header: Header) -> None:
        """``read(offset, size)`` reads the medium; the ring of the log of ``header`` follows the header area."""
        self._read = read
        self._area_bytes = area_bytes(shared=header.shared)
        self._ring = header.ring
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
        pieces = self._ring.pieces(position, size)
        return joined((self._read(self._area_bytes + offset, length), length) for offset, length in pieces)
