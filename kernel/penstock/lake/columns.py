"""Record batches of one partition as ``LakeRecords``: bounded, in offset order, only committed records. Pure."""

from __future__ import annotations

__all__ = ("decode_entries", "no_records")

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from penstock.spi.lake import BinaryColumn, HeaderColumn, LakeRecords
from penstock.spi.log_cache import StreamEntry
from penstock.wire.record_batch import TIMESTAMP_TYPE_BIT, BatchHeader, iter_batches
from penstock.wire.record_columns import ColumnMemory, Columns, Filled, Measured, gather, measure, seek
from penstock.wire.record_walk import plain_records


class _Piece(NamedTuple):
    """Records of one batch that lie side by side."""

    plain: bytes | memoryview
    position: int
    measured: Measured
    header: BatchHeader


def _nothing(header: BatchHeader) -> bool:
    return False


def decode_entries(
    partition: int,
    entries: Iterable[StreamEntry],
    start_offset: int,
    bytes_max: int,
    is_left_out: Callable[[BatchHeader], bool] = _nothing,
    memory: ColumnMemory | None = None,
) -> Iterator[LakeRecords]:
    """The records of ``entries`` from ``start_offset`` on, in batches of at most ``bytes_max`` (or one record).

    Control batches are left out, and those of which ``is_left_out`` says so (aborted transactions); the last batch
    ends where the entries do, even if that is all it says. At any time one batch is inflated beside what
    was gathered. With ``memory`` the columns of a batch are there until the next one is asked for.

    Raises BatchError if records can't be read.
    """
    builder = _Builder(partition, start_offset, memory)
    for entry in entries:
        for _, header in iter_batches(entry.data):
            if header.next_offset <= builder.next_offset:
                continue
            if not (header.is_control or header.count == 0 or is_left_out(header)):
                yield from _decode_batch(builder, entry.data, header, bytes_max)
            builder.next_offset = header.next_offset
    if builder.next_offset > builder.start_offset:
        yield builder.finish()


def no_records(partition: int, start_offset: int, next_offset: int) -> LakeRecords:
    """Only a position that moves on."""
    builder = _Builder(partition, start_offset)
    builder.next_offset = next_offset
    return builder.finish()


def _decode_batch(
    builder: _Builder, batch: memoryview, header: BatchHeader, bytes_max: int
) -> Iterator[LakeRecords]:
    plain = plain_records(batch, header)
    at, skipped, last_delta = 0, 0, -1
    if builder.next_offset > header.base_offset:
        at, skipped, last_delta = seek(plain, header.count, builder.next_offset - header.base_offset)
    left = header.count - skipped
    while left:
        found = measure(plain, at, left, last_delta, bytes_max - builder.cost)
        if not found.records:
            if builder.cost:
                yield builder.finish()
                continue
            found = measure(
                plain, at, 1, last_delta, sys.maxsize
            )  # it is larger than all that a batch may be
        builder.add(_Piece(plain, at, found, header))
        at, last_delta = found.position, found.last_delta
        left -= found.records


class _Builder:
    """Gathers pieces until they are made columns."""

    def __init__(self, partition: int, start_offset: int, memory: ColumnMemory | None = None) -> None:
        self._partition = partition
        self._memory = memory
        self.start_offset = self.next_offset = start_offset
        self.cost = 0
        self._pieces: list[_Piece] = []

    def add(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        self.cost += piece.measured.cost
        self.next_offset = piece.header.base_offset + piece.measured.last_delta + 1

    def finish(self) -> LakeRecords:
        """The columns of all pieces; the next ones begin where they end."""
        pieces, self._pieces = self._pieces, []
        all_measured = [piece.measured for piece in pieces]
        columns = Columns.of(
            Filled(
                records=sum(each.records for each in all_measured),
                key_bytes=sum(each.key_bytes for each in all_measured),
                value_bytes=sum(each.value_bytes for each in all_measured),
                headers=sum(each.headers for each in all_measured),
                name_bytes=sum(each.name_bytes for each in all_measured),
                header_value_bytes=sum(each.header_value_bytes for each in all_measured),
            ),
            self._memory,
        )
        filled = Filled()
        for plain, position, measured, header in pieces:
            is_timed = not header.attributes & TIMESTAMP_TYPE_BIT
            base = header.base_timestamp if is_timed else header.max_timestamp
            filled = gather(plain, measured, position, header.base_offset, base, is_timed, columns, filled)
        records = LakeRecords(
            partition=self._partition,
            offsets=memoryview(columns.offsets).cast("q"),
            timestamps=memoryview(columns.timestamps).cast("q"),
            keys=_column(
                columns.keys, columns.key_ends, columns.key_valid, any(m.null_keys for m in all_measured)
            ),
            values=_column(
                columns.values,
                columns.value_ends,
                columns.value_valid,
                any(m.null_values for m in all_measured),
            ),
            headers=HeaderColumn(
                starts=memoryview(columns.header_ends).cast("i"),
                names=_column(columns.names, columns.name_ends, columns.header_value_valid, False),
                values=_column(
                    columns.header_values,
                    columns.header_value_ends,
                    columns.header_value_valid,
                    any(m.null_header_values for m in all_measured),
                ),
            ),
            start_offset=self.start_offset,
            next_offset=self.next_offset,
        )
        self.start_offset, self.cost = self.next_offset, 0
        return records


def _column(data: bytearray | memoryview, ends: bytearray, valid: bytearray, has_nulls: bool) -> BinaryColumn:
    return BinaryColumn(data=data, offsets=memoryview(ends).cast("i"), valid=valid if has_nulls else None)
