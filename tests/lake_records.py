"""Records for tests of lake compactors, as the kernel hands them over."""

from __future__ import annotations

__all__ = ("avro", "lake_records", "of_rows")

import io
import json
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import fastavro

from penstock.spi.lake import BinaryColumn, HeaderColumn, LakeRecord, LakeRecords


def avro(schema: Any, values: Iterable[Any]) -> list[bytes]:
    """Each value in Avro, without a header."""
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))  # it changes what it is given
    items = []
    for value in values:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, value)
        items.append(out.getvalue())
    return items


def lake_records(
    values: Sequence[bytes | None],
    *,
    partition: int = 0,
    start: int = 0,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Sequence[tuple[bytes, bytes | None]]] | None = None,
    timestamps: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    next_offset: int | None = None,
) -> LakeRecords:
    """A batch of ``values`` from offset ``start`` on, without keys and headers, of 1 January 2026."""
    count = len(values)
    at = list(offsets) if offsets is not None else list(range(start, start + count))
    listed = headers if headers is not None else [()] * count
    starts = [0]
    for one in listed:
        starts.append(starts[-1] + len(one))
    return LakeRecords(
        partition=partition,
        offsets=memoryview(array("q", at)),
        timestamps=memoryview(
            array("q", timestamps if timestamps is not None else [1_767_225_600_000] * count)
        ),
        keys=_column(keys if keys is not None else [None] * count),
        values=_column(values),
        headers=HeaderColumn(
            memoryview(array("i", starts)),
            _column([name for one in listed for name, _ in one]),
            _column([value for one in listed for _, value in one]),
        ),
        start_offset=start,
        next_offset=next_offset if next_offset is not None else (at[-1] + 1 if at else start),
    )


def of_rows(
    rows: Iterable[LakeRecord], *, start: int | None = None, next_offset: int | None = None
) -> LakeRecords:
    """A batch of these records, all of one partition."""
    records = list(rows)
    return lake_records(
        [one.value for one in records],
        partition=records[0].partition,
        start=records[0].offset if start is None else start,
        keys=[one.key for one in records],
        headers=[one.headers for one in records],
        timestamps=[one.timestamp for one in records],
        offsets=[one.offset for one in records],
        next_offset=next_offset,
    )


def _column(items: Sequence[bytes | None]) -> BinaryColumn:
    ends = [0]
    for item in items:
        ends.append(ends[-1] + len(item or b""))
    valid = None
    if any(item is None for item in items):
        bits = bytearray((len(items) + 7) // 8)
        for index, item in enumerate(items):
            if item is not None:
                bits[index >> 3] |= 1 << (index & 7)
        valid = bytes(bits)
    return BinaryColumn(b"".join(item or b"" for item in items), memoryview(array("i", ends)), valid)
