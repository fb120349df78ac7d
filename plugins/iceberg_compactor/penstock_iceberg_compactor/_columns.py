"""Records as Arrow columns: those that every table has, and the rows of a raw table."""

from __future__ import annotations

__all__ = (
    "KEY",
    "OPERATION",
    "RAW_SCHEMA",
    "RESERVED",
    "SYSTEM",
    "SYSTEM_SCHEMA",
    "binary_array",
    "part_of",
    "raw_rows",
    "system_column",
)

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BinaryType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    StructType,
    TimestamptzType,
)

from penstock.spi import Buffer
from penstock.spi.lake import BinaryColumn, HeaderColumn, LakeRecords

#: The column of what Kafka says of a record, in tables that aren't raw.
SYSTEM = "_kafka"
#: The column of decoded keys.
KEY = "_key"
#: In rows of upsert and cdc: whether the row deletes what is there. It isn't a column of the table.
OPERATION = "_kafka_deletes"
#: Names that no column of values has.
RESERVED = frozenset((SYSTEM, KEY, OPERATION))
#: 31 December 9999; a producer may write any number, and readers fail for those beyond.
_TIMESTAMP_MAX_MS = 253_402_300_799_999


def _headers(ids: int, name: BinaryType | StringType) -> ListType:
    header = StructType(
        NestedField(ids + 1, "name", name, required=True), NestedField(ids + 2, "value", BinaryType())
    )
    return ListType(ids, header, element_required=True)


#: The ids are given anew when the table is made.
RAW_SCHEMA = Schema(
    NestedField(1, "partition", IntegerType(), required=True),
    NestedField(2, "offset", LongType(), required=True),
    NestedField(3, "timestamp", TimestamptzType()),
    NestedField(4, "key", BinaryType()),
    NestedField(5, "value", BinaryType()),
    NestedField(6, "headers", _headers(7, BinaryType())),
)
#: Nothing right in the struct is required: a row of another writer has none of it, and Arrow writes no required field
#: of a struct that is null.
SYSTEM_SCHEMA = Schema(
    NestedField(
        1,
        SYSTEM,
        StructType(
            NestedField(2, "partition", IntegerType()),
            NestedField(3, "offset", LongType()),
            NestedField(4, "timestamp", TimestamptzType()),
            NestedField(5, "key", BinaryType()),
            NestedField(6, "headers", _headers(7, StringType())),
        ),
    ),
)


def _copied(buffer: Buffer | None) -> pa.Buffer | None:
    """A copy, as rows live longer than the records that they are made of; made without holding the interpreter."""
    if buffer is None:
        return None
    made = pa.allocate_buffer(memoryview(buffer).nbytes)
    pa.FixedSizeBufferWriter(made).write(buffer)
    return made


def binary_array(column: BinaryColumn) -> pa.Array:
    """A copy of the column."""
    buffers = (column.valid, column.offsets, column.data)
    return pa.Array.from_buffers(pa.binary(), len(column), [_copied(buffer) for buffer in buffers])


def part_of(records: LakeRecords, begin: int, end: int) -> LakeRecords:
    """The records from ``begin`` up to ``end``, without a copy of what they hold."""
    if begin == 0 and end >= len(records):
        return records
    starts, names, values = records.headers.starts, records.headers.names, records.headers.values
    first, last = starts[begin], starts[min(end, len(records))]
    return replace(
        records,
        offsets=records.offsets[begin:end],
        timestamps=records.timestamps[begin:end],
        keys=_part(records.keys, begin, end),
        values=_part(records.values, begin, end),
        headers=HeaderColumn(
            starts=_moved(starts[begin : end + 1]),
            names=_part(names, first, last),
            values=_part(values, first, last),
        ),
    )


def _part(column: BinaryColumn, begin: int, end: int) -> BinaryColumn:
    ends, valid = column.offsets[begin : end + 1], column.valid
    if valid is not None:
        bits = int.from_bytes(memoryview(valid)[begin >> 3 : (end + 7) >> 3], "little") >> (begin & 7)
        valid = bits.to_bytes(((len(ends) - 1 + 7) >> 3) + 1, "little")
    return BinaryColumn(memoryview(column.data)[ends[0] : ends[-1]], _moved(ends), valid)


def _moved(ends: memoryview) -> memoryview:
    """Ends with the distances of ``ends``, counted from 0 on."""
    there = pa.Array.from_buffers(pa.int32(), len(ends), [None, pa.py_buffer(ends)])
    moved = pc.subtract(there, pa.scalar(ends[0], pa.int32()))
    return memoryview(moved.buffers()[1]).cast("B")[: 4 * len(ends)].cast("i")


def raw_rows(records: LakeRecords) -> pa.Table:
    """The rows of a raw table: whatever the bytes are, they stay."""
    columns = _common(records, as_text=False)
    columns["value"] = binary_array(records.values)
    return pa.table({field.name: columns[field.name] for field in RAW_SCHEMA.fields})


def system_column(records: LakeRecords, rows: Sequence[int] | pa.Array | None = None) -> pa.Array:
    """The struct of system columns, of all records or of those with these indices, in this order."""
    columns = _common(records, as_text=True)
    struct = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return struct if rows is None else struct.take(pa.array(rows, pa.int64()))


def _common(records: LakeRecords, *, as_text: bool) -> dict[str, pa.Array]:
    count = len(records)
    timestamps = pa.Array.from_buffers(pa.int64(), count, [None, _copied(records.timestamps)])
    known = pc.and_(pc.greater_equal(timestamps, 0), pc.less_equal(timestamps, _TIMESTAMP_MAX_MS))
    micros = pc.multiply(pc.if_else(known, timestamps, pa.scalar(None, pa.int64())), 1000)
    names = binary_array(records.headers.names)
    if as_text:
        names = _text(names)
    header = pa.StructArray.from_arrays(
        [names, binary_array(records.headers.values)], names=["name", "value"]
    )
    starts = pa.Array.from_buffers(pa.int32(), count + 1, [None, _copied(records.headers.starts)])
    return {
        "partition": pa.repeat(pa.scalar(records.partition, pa.int32()), count),
        "offset": pa.Array.from_buffers(pa.int64(), count, [None, _copied(records.offsets)]),
        "timestamp": micros.cast(pa.timestamp("us", "UTC")),
        "key": binary_array(records.keys),
        "headers": pa.ListArray.from_arrays(starts, header),
    }


def _text(names: pa.Array) -> pa.Array:
    """Names of headers as strings; what isn't UTF-8 in them is replaced."""
    try:
        return names.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([name.decode(errors="replace") for name in names.to_pylist()], pa.string())
