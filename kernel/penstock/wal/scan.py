"""The recovery scan: pure logic over a reader, which tells the end of a log from a loss (I10)."""

from __future__ import annotations

__all__ = ("LogScan", "Reader")

from collections.abc import Callable, Iterator
from typing import TypeAlias

from penstock.errors import CorruptError
from penstock.wal.framing import (
    GROUP_HEADER_BYTES,
    Cursor,
    DamageError,
    DecodedGroup,
    GroupHeader,
    check_successor,
    decode_entries,
    parse_group_header,
    refuse_newer,
)

#: ``reader(position, size)``: the bytes at a log position; fewer than ``size`` where the medium ends.
Reader: TypeAlias = Callable[[int, int], memoryview]

_MAGIC_STEP_BYTES = 4 * 2**20


class LogScan:
    """Iterates over the groups of a log whose positions map onto one medium (a file, a device, a ring).

    The scan ends at the first place that doesn't hold the group that belongs there. That is the end of the log
    if nothing shows that more was confirmed: neither what the caller knows (``confirmed_position``), nor any
    group before, nor a group within ``lookahead_bytes`` after it. Such a later group may well exist without
    being a loss: an earlier owner wrote it and its successor never saw what came before. But then it says that
    nothing past the end was confirmed, because the successor recovered all that was.

    After exhaustion ``cursor`` is where the next group goes, and ``end_reason`` says how the end looked.
    """

    def __init__(
        self,
        read: Reader,
        cursor: Cursor,
        *,
        log_id: int,
        alignment: int,
        end_limit: int,
        confirmed_position: int = 0,
        lookahead_bytes: int = 0,
        settled_position: int = 0,
        settled_epoch: int = 0,
        ring_bytes: int = 0,
    ) -> None:
        """Scan from ``cursor``; no byte at or past ``end_limit`` belongs to the log.

        On a medium whose end the log goes around, each multiple of ``ring_bytes`` is at its beginning; 0: it doesn't.

        At ``settled_position`` an earlier recovery, by the owner ``settled_epoch``, found the end of the log. Groups
        of older owners from there on were not part of it then, so they aren't now.
        """
        assert cursor.position % alignment == 0, "groups start aligned"
        self.cursor = cursor
        self.confirmed_position = confirmed_position
        self.end_reason = ""
        self._read = read
        self._log_id = log_id
        self._alignment = alignment
        self._end_limit = end_limit
        self._lookahead_bytes = lookahead_bytes
        self._settled_position = settled_position
        self._settled_epoch = settled_epoch
        self._ring_bytes = ring_bytes

    def __iter__(self) -> Iterator[DecodedGroup]:
        """The groups in order. Raises CorruptError, naming the position, where a confirmed entry is lost.

        Raises NewerVersionError at a group that a newer version wrote.
        """
        while True:
            try:
                group = self._next()
            except DamageError as damage:
                self._decide(damage)
                return
            header = group.header
            self.confirmed_position = max(self.confirmed_position, header.confirmed_position)
            self.cursor = Cursor(self._group_end(header), header.sequence + 1, header.digest)
            yield group

    def _next(self) -> DecodedGroup:
        position = self.cursor.position
        header = self._header_at(position)
        if header is None:
            raise DamageError("no valid group header", position)
        check_successor(header, self.cursor, log_id=self._log_id)
        if position >= self._settled_position and header.epoch < self._settled_epoch:
            raise DamageError("a group of an owner before the last recovery", position)
        if self._group_end(header) > self._end_limit:
            raise DamageError("a group reaches over the end of the log's room", position)
        return DecodedGroup(header, decode_entries(header, self._read(position, header.length)))

    def _header_at(self, position: int) -> GroupHeader | None:
        if position + GROUP_HEADER_BYTES > self._end_limit:
            return None
        return self._parse(self._read(position, GROUP_HEADER_BYTES), 0, position)

    def _parse(self, data: memoryview, offset: int, position: int) -> GroupHeader | None:
        header = parse_group_header(data, offset)
        if header is None:
            refuse_newer(data, offset, log_id=self._log_id, position=position)
        return header

    def _group_end(self, header: GroupHeader) -> int:
        return -(-(header.position + header.length) // self._alignment) * self._alignment

    def _decide(self, damage: DamageError) -> None:
        """Accept ``damage`` as the end of the log, or raise CorruptError."""
        self.end_reason = str(damage)
        end = self.cursor.position
        confirmed = self.confirmed_position
        if confirmed <= end:
            confirmed = self._confirmed_by_later_group(end)
        if confirmed > end:
            raise CorruptError(
                f"the wal lost acknowledged entries, so recovery stops; restore the medium or a copy of it: "
                f"reason={damage.reason!r} position={damage.position} confirmed_position={confirmed}"
            )

    def _confirmed_by_later_group(self, end: int) -> int:
        """The first confirmed position past ``end`` that a group within the lookahead tells of, or 0."""
        limit = min(self._end_limit, end + self._lookahead_bytes)
        confirmed = self._confirmed_in(end, limit, end)
        if not confirmed and self._ring_bytes and self._lookahead_bytes:
            # of a medium that was cut off, what is missing may be more than that; a group that went around its end
            # had its header there, so the next one may be as far behind the beginning as that was long
            again = -(-end // self._ring_bytes) * self._ring_bytes
            limit = again + max(_MAGIC_STEP_BYTES, self._lookahead_bytes)
            confirmed = self._confirmed_in(again, min(self._end_limit, limit), end)
        return confirmed

    def _confirmed_in(self, position: int, limit: int, end: int) -> int:
        """The first confirmed position past ``end`` that a group in [``position``, ``limit``) tells of, or 0."""
        while position < limit:
            wanted = min(_MAGIC_STEP_BYTES, limit - position)
            window = self._read(position, wanted)
            for offset in range(0, len(window), self._alignment):
                header = self._parse(window, offset, position + offset)
                if (
                    header is not None
                    and header.log_id == self._log_id
                    and header.position == position + offset
                    and header.confirmed_position > end
                ):
                    return header.confirmed_position
            if len(window) < wanted:
                break
            position += len(window)
        return 0
