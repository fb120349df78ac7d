"""Group commit without I/O: order, batching, in-order completion, capacity and failure of appends.

A WAL drives one :class:`GroupCommit` from the event loop's thread::

    append(data)         fixes the order; give what it returns to the caller
    take()               the next group to write, or None; write it wherever the medium is
    finish(group)        its bytes are durable; completes what is complete, in order
    fail(error)          the medium is lost or the owner fenced; answers everybody
    fail(error, group=)  this group can't be made durable; answers it and all after it, once those before it ended
    release(position)    trimmed: makes room below ``position``
"""

from __future__ import annotations

__all__ = ("BESIDE_BYTES_MAX", "Group", "GroupCommit")

import sys
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter

from penstock.direct_io import LARGE_BYTES
from penstock.errors import (
    ClosedError,
    FencedError,
    FullError,
    InvalidRequestError,
    PenstockError,
    again,
    kept,
)
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalStatistics, complete_all
from penstock.wal.framing import ENTRY_HEADER_BYTES, GROUP_HEADER_BYTES

#: What is in flight and what goes beside it are together at most so many bytes, full groups apart.
BESIDE_BYTES_MAX = 2**16

_UNBOUNDED = 2**63 - 1
_NOTHING = -1
_append_of, _payload_of, _checksum_of = map(itemgetter, range(3))
_GROUP_LIMIT = 2**32 - 2**20  # the length field of a group header is 32 bits wide


class Group:
    """Appends that are written together. The layout is :mod:`penstock.wal.framing`'s."""

    __slots__ = ("done", "end_position", "entries", "error", "filler_bytes", "length", "position", "sequence")

    def __init__(self, sequence: int, position: int) -> None:
        self.sequence = sequence
        self.position = position
        #: Bytes with framing, without padding; 0 until the group is closed.
        self.length = 0
        #: Bytes in front of large entries, with their headers.
        self.filler_bytes = 0
        #: Where the next group starts: position + length, aligned up; set when the group is closed.
        self.end_position = position
        #: Each append, its payload, and the payload's CRC-32C where the caller knew it; empty once completed.
        self.entries: list[tuple[WalAppend, Sequence[Buffer], int | None]] = []
        #: Durable, or answered.
        self.done = False
        #: Why it can't be made durable.
        self.error: PenstockError | None = None

    @property
    def appends(self) -> list[WalAppend]:
        """In the order of their positions."""
        return list(map(_append_of, self.entries))  # no step of Python for each

    @property
    def payloads(self) -> list[Sequence[Buffer]]:
        """One for each append."""
        return list(map(_payload_of, self.entries))

    @property
    def checksums(self) -> list[int | None]:
        """One for each append."""
        return list(map(_checksum_of, self.entries))

    def payload_bytes(self, tail: int) -> int:
        """Bytes of its payloads, if its last entry ends at ``tail``."""
        framing = GROUP_HEADER_BYTES + len(self.entries) * ENTRY_HEADER_BYTES + self.filler_bytes
        return tail - self.position - framing


class GroupCommit:
    """Collects appends into groups and completes them in order. Not thread-safe; no clock, no I/O.

    Positions count the framed bytes of the log, with each group aligned to ``alignment``. A group is closed when
    the next entry would push it over ``group_bytes_max`` (a larger entry gets a group of its own), or by ``take``.
    Nothing may be appended before :meth:`start`.
    """

    def __init__(
        self,
        *,
        alignment: int = 1,
        group_bytes_max: int = 2**20,
        entry_bytes_max: int = 128 * 2**20,
        capacity_bytes: int = 0,
        filler_bytes: Callable[[int, Sequence[Buffer]], int] | None = None,
    ) -> None:
        """``capacity_bytes`` 0 means unbounded; else a multiple of ``alignment``.

        ``filler_bytes(position, data)`` may ask for that many bytes in front of a large entry whose payload ``data``
        would start at ``position`` of the log, as :func:`penstock.direct_io.filler_bytes` does.
        """
        assert capacity_bytes % alignment == 0, "capacity is a whole number of aligned units"
        assert entry_bytes_max <= _GROUP_LIMIT, "an entry fits one group"
        assert group_bytes_max <= _GROUP_LIMIT, "a group's length fits its field"
        self._alignment = alignment
        self._group_bytes_max = group_bytes_max
        self._entry_bytes_max = entry_bytes_max
        self._capacity_bytes = capacity_bytes
        self._filler_bytes = filler_bytes
        self._large_bytes = LARGE_BYTES if filler_bytes is not None else sys.maxsize
        #: Entries below this size are neither large nor too large.
        self._small_end = min(self._large_bytes, entry_bytes_max + 1)
        self._error = ""
        self._refusal: PenstockError | None = InvalidRequestError(
            "recover the wal to its end before appending"
        )
        self._paused = False
        self._started = False
        self._state = "open"
        self._open: Group | None = None
        #: The entries of the open group, and the position up to which it takes small ones: all that most appends
        #: have to know. -1: it takes none, since there is no such group, or appends are refused.
        self._open_entries: list[tuple[WalAppend, Sequence[Buffer], int | None]] = []
        self._open_end = _NOTHING
        self._ready: deque[Group] = deque()
        self._flying: deque[Group] = deque()
        self._flying_entries = 0
        self._sequence = 0
        self._tail = 0  # the end of the last entry laid out
        self._start = 0  # the first byte that still takes room
        self._limit = 0  # no entry may end past it
        self._trimmed = 0
        self._confirmed = 0
        self._done_entries = 0
        self._done_groups = 0
        self._done_payload_bytes = 0
        self._written_bytes = 0

    # -- what a WAL tells us -------------------------------------------------------------------------------

    def start(
        self, position: int, sequence: int, *, start_position: int | None = None, trimmed: int = 0
    ) -> None:
        """Recovery is done: the next group has this position (aligned) and sequence; allows appends.

        ``start_position`` is the oldest byte that still takes room (default: nothing does).
        """
        assert position % self._alignment == 0, "groups start aligned"
        self._started = True
        self._tail = self._confirmed = position
        self._sequence = sequence
        self._trimmed = trimmed
        self._start = position if start_position is None else start_position
        self._set_limit()
        if self._state == "open":
            self._refusal = None

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        """Lay out one entry; see ``WriteAheadLog.append`` for the contract and every Raises."""
        size = sum(map(len, data))
        position = self._tail
        end = position + ENTRY_HEADER_BYTES + size
        if end > self._open_end or not 0 < size < self._small_end:
            return self._append_elsewhere(data, checksum, size)
        append = WalAppend(position, end)
        self._open_entries.append((append, tuple(data), checksum))  # the caller's list is the caller's again
        self._tail = end
        return append

    def _append_elsewhere(self, data: Sequence[Buffer], checksum: int | None, size: int) -> WalAppend:
        """``append`` for whatever isn't a small entry for the open group."""
        if self._refusal is not None:
            raise again(self._refusal)
        if not 0 < size <= self._entry_bytes_max:
            raise self._bad_size(size)
        group = self._open
        position = self._tail
        is_large = size >= self._large_bytes
        if is_large:
            position += self._filler(position, data)
        end = position + ENTRY_HEADER_BYTES + size
        if group is None or end - group.position > self._group_bytes_max:
            group_position = -(-self._tail // self._alignment) * self._alignment
            position = group_position + GROUP_HEADER_BYTES
            if is_large:
                position += self._filler(position, data)
            end = position + ENTRY_HEADER_BYTES + size
            if end > self._limit:
                raise self._full(size)
            if group is not None:
                self._ready.append(self._close_open_group())
            group = self._open = Group(self._sequence, group_position)
            self._open_entries = group.entries
            self._open_end = min(group_position + self._group_bytes_max, self._limit)
            self._sequence += 1
        elif end > self._limit:
            raise self._full(size)
        append = WalAppend(position, end)
        group.entries.append((append, tuple(data), checksum))
        group.filler_bytes += position - max(self._tail, group.position + GROUP_HEADER_BYTES)
        self._tail = end
        return append

    def check_open(self) -> None:
        """Raise the error with which ``append`` refuses every entry, if it does: of a fence, a failure, an end."""
        if self._refusal is not None:
            raise again(self._refusal)

    def would_fit(self, size: int) -> bool:
        """See ``BoundedLog.would_fit``; for large entries it leaves room for a filler, whatever that takes."""
        end = self._tail + ENTRY_HEADER_BYTES + size
        if end <= self._open_end and size < self._small_end:
            return True
        if self._refusal is not None:
            return not isinstance(self._refusal, FullError)
        if (
            self._open is not None
            and size < self._large_bytes
            and end - self._open.position <= self._group_bytes_max
        ):
            return end <= self._limit
        position = -(-self._tail // self._alignment) * self._alignment + GROUP_HEADER_BYTES
        # at the most: the payload is moved to a page of its own
        filler = 2 * max(self._alignment, 4096) if size >= self._large_bytes else 0
        return position + filler + ENTRY_HEADER_BYTES + size <= self._limit

    def take(self, *, partial: bool = True) -> Group | None:
        """The next group to write, in order, or None. ``partial``: also one that has room left."""
        if self._ready:
            group = self._ready.popleft()
        elif partial and self._open is not None:
            group = self._close_open_group()
        else:
            return None
        self._flying.append(group)
        self._flying_entries += len(group.entries)
        return group

    def take_beside(self, groups_max: int, span_bytes_max: int) -> Group | None:
        """The next group to write beside those in flight, or None if they are ``groups_max``, or reach too far.

        Beside others a group with room left is worth a write if it holds half as much as they do together: a second
        lone request is written at once, and what comes in by hundreds isn't cut to pieces, each of which costs
        the processor as much as many entries. Past :data:`BESIDE_BYTES_MAX` together it is bytes that take time, not
        syncs: what comes meanwhile goes with the next group, unless a single entry is in flight.
        """
        flying = self._flying
        if self._open is None and not self._ready:
            return None
        if not flying:
            return self.take()
        if len(flying) >= groups_max or self.span_bytes > span_bytes_max:
            return None
        count = self._flying_entries
        if count > 1 and self.span_bytes > BESIDE_BYTES_MAX:
            return self.take(partial=False)
        return self.take(partial=2 * self.open_entries >= count)

    def finish(self, group: Group) -> None:
        """``group`` is durable. Completes it and what follows, as far as no earlier group is unfinished.

        Callbacks run here. If one raises, the others still run; then the first error is raised.
        """
        assert not group.done, "a group finishes once"
        group.done = True
        first_error: Exception | None = None
        flying = self._flying
        while flying and flying[0].done:
            finished = flying.popleft()
            count = len(finished.entries)
            self._flying_entries -= count
            self._account(finished, count)
            first_error = _complete(finished, None) or first_error
        if flying and (error := flying[0].error) is not None:
            first_error = self._answer_all(error) or first_error
        if first_error is not None:
            raise again(first_error)

    def release(self, start_position: int, trimmed_position: int) -> None:
        """The room below ``start_position`` may be written again; ``trimmed_position`` is for statistics."""
        self._start = max(self._start, start_position)
        self._trimmed = max(self._trimmed, trimmed_position)
        self._set_limit()

    def pause(self, error: PenstockError) -> None:
        """Refuse appends with ``error`` until :meth:`resume`; what was appended stays pending."""
        if self._state == "open":
            self._refusal = error
            self._paused = True
            self._set_open_end()

    def resume(self) -> None:
        """End :meth:`pause`."""
        if self._paused and self._state == "open":
            self._refusal = None
            self._paused = False
            self._set_open_end()

    def close(self) -> None:
        """Refuse appends from now on; what was appended may still finish."""
        if self._state == "open":
            self._state = "closed"
            self._refusal = ClosedError("the wal is closed")
            self._set_open_end()

    def fail(
        self,
        error: PenstockError,
        *,
        state: str = "failed",
        refusal: PenstockError | None = None,
        group: Group | None = None,
    ) -> None:
        """Answer everything pending with ``error``, in order, and refuse appends with ``refusal`` from now on.

        With ``group``, a group that was taken, what was appended before it is answered by its own end, finished or
        failed; only then are it and all that follows answered with its error.

        ``refusal`` defaults to ``error`` if that is a FencedError, else to a ClosedError that quotes it. A later
        call doesn't change them.
        """
        if self._state in ("open", "closed"):
            self._state = state
            self._error = "" if state == "closed" else str(error)
            if refusal is None and isinstance(error, FencedError):
                refusal = kept(error)
            self._refusal = refusal or ClosedError(
                f"the wal {state}, restart the broker to recover: cause={error}"
            )
            self._set_open_end()
        if group is not None:
            if group.done:
                return
            group.error = error
            if self._flying[0] is not group:
                return
        first_error = self._answer_all(error)
        if first_error is not None:
            raise again(first_error)

    # -- what a WAL asks -----------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``open``, ``fenced``, ``failed`` or ``closed``."""
        return self._state

    @property
    def in_flight(self) -> int:
        """Groups taken and not yet completed."""
        return len(self._flying)

    @property
    def in_flight_entries(self) -> int:
        """The entries in these groups."""
        return self._flying_entries

    @property
    def has_ready(self) -> bool:
        """A full group waits to be taken."""
        return bool(self._ready)

    @property
    def open_entries(self) -> int:
        """Entries in the group that ``take(partial=True)`` would close; 0 if there is none."""
        return len(self._open.entries) if self._open is not None else 0

    @property
    def open_bytes(self) -> int:
        """Bytes in that group."""
        return self._tail - self._open.position if self._open is not None else 0

    @property
    def span_bytes(self) -> int:
        """From the oldest group in flight to the end of the one that ``take`` would give."""
        end = self._ready[0].end_position if self._ready else self._tail
        return end - self._flying[0].position if self._flying else 0

    @property
    def idle(self) -> bool:
        """Nothing is pending."""
        return not self._flying and not self._ready and self._open is None

    @property
    def confirmed_position(self) -> int:
        """Everything below is completed without error."""
        return self._confirmed

    @property
    def trimmed_position(self) -> int:
        """The highest position that was released."""
        return self._trimmed

    def statistics(self, *, last_group_us: int = 0) -> WalStatistics:
        """A snapshot."""
        groups = [*self._flying, *self._ready, *([self._open] if self._open else [])]
        pending_entries = sum(len(group.entries) for group in groups)
        pending_payload = sum(
            group.payload_bytes(group.position + group.length if group.length else self._tail)
            for group in groups
        )
        return WalStatistics(
            appended_entries=self._done_entries + pending_entries,
            appended_payload_bytes=self._done_payload_bytes + pending_payload,
            written_groups=self._done_groups,
            written_bytes=self._written_bytes,
            pending_entries=pending_entries,
            pending_bytes=pending_payload,
            used_bytes=max(0, self._tail - self._start),
            capacity_bytes=self._capacity_bytes,
            trimmed_position=self._trimmed,
            confirmed_position=self._confirmed,
            end_position=self._tail if self._started else -1,
            last_group_us=last_group_us,
            state=self._state,
            last_error=self._error,
        )

    # -- inside --------------------------------------------------------------------------------------------

    def _filler(self, position: int, data: Sequence[Buffer]) -> int:
        """Bytes to leave free at ``position`` in front of an entry: a filler has a header too."""
        assert self._filler_bytes is not None
        size = self._filler_bytes(position + ENTRY_HEADER_BYTES, data)
        return size + self._alignment if 0 < size < ENTRY_HEADER_BYTES else size

    def _close_open_group(self) -> Group:
        group = self._open
        assert group is not None
        group.length = self._tail - group.position
        group.end_position = -(-self._tail // self._alignment) * self._alignment
        self._open = None
        self._open_end = _NOTHING
        return group

    def _answer_all(self, error: PenstockError) -> Exception | None:
        """Answer everything pending with ``error``; the first error that a callback raised."""
        groups = [*self._flying, *self._ready, *([self._open] if self._open else [])]
        self._flying.clear()
        self._flying_entries = 0
        self._ready.clear()
        self._open = None
        self._set_open_end()
        first_error: Exception | None = None
        for group in groups:
            group.done = True
            first_error = _complete(group, error) or first_error
        return first_error

    def _account(self, group: Group, count: int) -> None:
        end = self._confirmed = group.end_position
        self._done_groups += 1
        self._done_entries += count
        framing = GROUP_HEADER_BYTES + count * ENTRY_HEADER_BYTES + group.filler_bytes
        self._done_payload_bytes += group.length - framing
        self._written_bytes += end - group.position

    def _set_limit(self) -> None:
        self._limit = self._start + self._capacity_bytes if self._capacity_bytes else _UNBOUNDED
        self._set_open_end()

    def _set_open_end(self) -> None:
        """To be called when the open group, the limit or the refusal changes."""
        self._open_end = _NOTHING
        if self._open is not None and self._refusal is None:
            self._open_end = min(self._open.position + self._group_bytes_max, self._limit)

    def _bad_size(self, size: int) -> InvalidRequestError:
        if size == 0:
            return InvalidRequestError("a wal entry must not be empty")
        return InvalidRequestError(
            f"a wal entry is too large: entry_bytes={size} entry_bytes_max={self._entry_bytes_max}"
        )

    def _full(self, size: int) -> FullError:
        return FullError(
            f"the wal is full, trim it and retry: entry_bytes={size} used_bytes={self._tail - self._start} "
            f"capacity_bytes={self._capacity_bytes}"
        )


def _complete(group: Group, error: PenstockError | None) -> Exception | None:
    """Complete all appends of ``group``; the first error that a callback raised."""
    entries = group.entries
    try:
        if len(entries) == 1:
            entries[0][0].complete(error if error is None else again(error))
        else:
            complete_all(list(map(_append_of, entries)), error)
    except Exception as raised:  # noqa: BLE001 - raised when everybody is answered
        return kept(raised)
    finally:
        entries.clear()  # whoever keeps the group, or this list, doesn't keep payloads
    return None
