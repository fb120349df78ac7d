"""The records of batches as columns: keys, values and headers gathered from plain bytes, each copied once. Pure.

Two steps, so that memory is taken once and in the right size: ``measure`` walks records and says how much of each
column they are, ``gather`` copies them behind what is in the columns already. Native code does both where it was
built (``penstock.wire.native_code``); ``measure_records`` and ``gather_records`` here are the reference and the
fallback, and alone say what is wrong. They agree on every input.

A column of byte strings is in Arrow's layout: 32-bit ends, the bytes, and a bit for each that isn't null. Numbers are
in the machine's byte order.
"""

from __future__ import annotations

__all__ = (
    "RECORD_COST",
    "ColumnMemory",
    "Columns",
    "Filled",
    "Measured",
    "gather",
    "gather_records",
    "measure",
    "measure_records",
    "seek",
)

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final, NamedTuple

from penstock.wire import native_code
from penstock.wire.record_walk import long_varint, malformed, record_cut

#: What a record takes beside its key, value and headers (offset, timestamp, ends of key, value and headers), and what
#: a header takes beside its name and value.
RECORD_COST: Final = 8 + 8 + 3 * 4
HEADER_COST: Final = 2 * 4
#: Columns from this size on are memory of their own.
_MAPPED_MIN: Final = 64 * 1024

_INT64_MAX: Final = (1 << 63) - 1


class Measured(NamedTuple):
    """What some records take; the first three say how to go on after them."""

    records: int
    #: After the last of them in the plain bytes, and its offset delta.
    position: int
    last_delta: int
    key_bytes: int = 0
    value_bytes: int = 0
    headers: int = 0
    name_bytes: int = 0
    header_value_bytes: int = 0
    null_keys: int = 0
    null_values: int = 0
    null_header_values: int = 0

    @property
    def cost(self) -> int:
        """Bytes of all columns together."""
        return (
            self.records * RECORD_COST
            + self.headers * HEADER_COST
            + self.key_bytes
            + self.value_bytes
            + self.name_bytes
            + self.header_value_bytes
        )


class Filled(NamedTuple):
    """How far columns are filled."""

    records: int = 0
    key_bytes: int = 0
    value_bytes: int = 0
    headers: int = 0
    name_bytes: int = 0
    header_value_bytes: int = 0


class ColumnMemory:
    """Memory for the large columns of one batch after the other: the next one's are where the last one's were.

    New memory costs a fault for each page, and giving it back as much again.
    """

    def __init__(self, size: int) -> None:
        """``size``: of all columns of a batch. It takes no memory before it is used."""
        self._memory = _mapped(size) if size >= _MAPPED_MIN else memoryview(b"")
        self._used = 0

    def begin(self) -> None:
        """What was cut from it isn't looked at any more."""
        self._used = 0

    def cut(self, size: int) -> bytearray | memoryview:
        """``size`` bytes, whatever they are; memory of their own for what is small, or doesn't fit."""
        end = self._used + size
        if size < _MAPPED_MIN or end > len(self._memory):
            return _zeros(size)
        found = self._memory[self._used : end]
        self._used = end
        return found


class Columns(NamedTuple):
    """Memory for columns; ends begin with one that stays 0, and all that isn't filled with bytes is zero at first."""

    offsets: bytearray
    timestamps: bytearray
    key_ends: bytearray
    keys: bytearray | memoryview
    key_valid: bytearray
    value_ends: bytearray
    values: bytearray | memoryview
    value_valid: bytearray
    header_ends: bytearray
    name_ends: bytearray
    names: bytearray | memoryview
    header_value_ends: bytearray
    header_values: bytearray | memoryview
    header_value_valid: bytearray

    @classmethod
    def of(cls, size: Filled, memory: ColumnMemory | None = None) -> Columns:
        """Room for so much, in ``memory`` if that is there; what was there before is overwritten."""
        records, headers = size.records, size.headers
        cut = _zeros
        if memory is not None:
            memory.begin()
            cut = memory.cut
        return cls(
            offsets=bytearray(8 * records),
            timestamps=bytearray(8 * records),
            key_ends=bytearray(4 * (records + 1)),
            keys=cut(size.key_bytes),
            key_valid=bytearray((records + 7) // 8),
            value_ends=bytearray(4 * (records + 1)),
            values=cut(size.value_bytes),
            value_valid=bytearray((records + 7) // 8),
            header_ends=bytearray(4 * (records + 1)),
            name_ends=bytearray(4 * (headers + 1)),
            names=cut(size.name_bytes),
            header_value_ends=bytearray(4 * (headers + 1)),
            header_values=cut(size.header_value_bytes),
            header_value_valid=bytearray((headers + 7) // 8),
        )


def _zeros(size: int) -> bytearray | memoryview:
    """Memory that is zero; much of it isn't touched for that, which would hold the interpreter for a ms per MiB."""
    if size < _MAPPED_MIN:
        return bytearray(size)
    return _mapped(size)


def _mapped(size: int) -> memoryview:
    return memoryview(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS))


def measure(data: bytes | memoryview, position: int, count: int, last_delta: int, bytes_max: int) -> Measured:
    """Of the ``count`` records from ``position`` on, those that take ``bytes_max`` at most, maybe none.

    ``last_delta`` is the offset delta before them, -1 at the start of a batch: deltas only grow. Costs 10 ns a record
    with native code.

    Raises:
        BatchError: INVALID_RECORD.
    """
    native = native_code.measure
    if native is not None:
        found = native(data, position, count, last_delta, bytes_max)
        if found is not None:
            return Measured(*found)
    return measure_records(data, position, count, last_delta, bytes_max)


def gather(
    data: bytes | memoryview,
    measured: Measured,
    position: int,
    base_offset: int,
    base_timestamp: int,
    is_timed: bool,
    columns: Columns,
    filled: Filled,
) -> Filled:
    """Copy the records at ``position`` that were ``measured`` behind what is in ``columns``.

    Timestamps are ``base_timestamp``, and the record's delta if ``is_timed``.

    Raises:
        BatchError: INVALID_RECORD, for a timestamp that isn't one.
    """
    count = measured.records
    native = native_code.gather
    if native is not None:
        found = native(data, position, count, base_offset, base_timestamp, is_timed, columns, filled)
        if found is not None:
            return Filled(*found)
    return gather_records(data, position, count, base_offset, base_timestamp, is_timed, columns, filled)


def measure_records(
    data: bytes | memoryview, position: int, count: int, last_delta: int, bytes_max: int
) -> Measured:
    """``measure`` in Python, and the one that knows the errors."""
    try:
        return _measure(bytes(data), position, count, last_delta, bytes_max)
    except IndexError:
        raise record_cut() from None


def _measure(data: bytes, pos: int, count: int, last_delta: int, bytes_max: int) -> Measured:
    found = Measured(0, pos, last_delta)
    for index in range(count):
        keys = values = null_key = null_value = 0
        pos, end, _, delta = _begin(data, found.position, index)
        if delta <= found.last_delta:
            malformed("offsets must grow", index)
        key, pos = _field(data, pos, end, index)
        value, pos = _field(data, pos, end, index)
        null_key, keys = (1, 0) if key is None else (0, len(key))
        null_value, values = (1, 0) if value is None else (0, len(value))
        headers, pos = _header_count(data, pos, end, index)
        names = header_values = null_header_values = 0
        for _ in range(headers):
            name, pos = _field(data, pos, end, index)
            if name is None:
                malformed("a header without key", index)
            header_value, pos = _field(data, pos, end, index)
            names += len(name)
            if header_value is None:
                null_header_values += 1
            else:
                header_values += len(header_value)
        if pos != end:
            malformed("its fields don't fill its length", index)
        longer = Measured(
            found.records + 1,
            end,
            delta,
            found.key_bytes + keys,
            found.value_bytes + values,
            found.headers + headers,
            found.name_bytes + names,
            found.header_value_bytes + header_values,
            found.null_keys + null_key,
            found.null_values + null_value,
            found.null_header_values + null_header_values,
        )
        if longer.cost > bytes_max:
            break
        found = longer
    return found


def gather_records(
    data: bytes | memoryview,
    position: int,
    count: int,
    base_offset: int,
    base_timestamp: int,
    is_timed: bool,
    columns: Columns,
    filled: Filled,
) -> Filled:
    """``gather`` in Python, of records that were measured."""
    data = bytes(data)
    offsets, timestamps = memoryview(columns.offsets).cast("q"), memoryview(columns.timestamps).cast("q")
    key_ends, value_ends = memoryview(columns.key_ends).cast("i"), memoryview(columns.value_ends).cast("i")
    header_ends = memoryview(columns.header_ends).cast("i")
    name_ends = memoryview(columns.name_ends).cast("i")
    header_value_ends = memoryview(columns.header_value_ends).cast("i")
    row, keys, values, header, names, header_values = filled
    pos = position
    for index in range(count):
        pos, end, time, delta = _begin(data, pos, index)
        timestamp = base_timestamp + (time if is_timed else 0)
        if not -_INT64_MAX - 1 <= timestamp <= _INT64_MAX:
            malformed("its timestamp has more than 64 bits", index)
        offsets[row], timestamps[row] = base_offset + delta, timestamp
        key, pos = _field(data, pos, end, index)
        keys = _put(columns.keys, columns.key_valid, key_ends, row, keys, key)
        value, pos = _field(data, pos, end, index)
        values = _put(columns.values, columns.value_valid, value_ends, row, values, value)
        headers, pos = _header_count(data, pos, end, index)
        for _ in range(headers):
            name, pos = _field(data, pos, end, index)
            names = _put(columns.names, None, name_ends, header, names, name)
            value, pos = _field(data, pos, end, index)
            header_values = _put(
                columns.header_values,
                columns.header_value_valid,
                header_value_ends,
                header,
                header_values,
                value,
            )
            header += 1
        row += 1
        header_ends[row] = header
    return Filled(row, keys, values, header, names, header_values)


def seek(data: bytes | memoryview, count: int, delta: int) -> tuple[int, int, int]:
    """(position, records skipped, offset delta of the last of them) of the first record with ``delta`` or more.

    Raises:
        BatchError: INVALID_RECORD.
    """
    data = bytes(data)
    pos, last = 0, -1
    try:
        for index in range(count):
            _, end, _, found = _begin(data, pos, index)
            if found >= delta:
                return pos, index, last
            pos, last = end, found
    except IndexError:
        raise record_cut() from None
    return pos, count, last


def _begin(data: bytes, pos: int, index: int) -> tuple[int, int, int, int]:
    """(position of the key, end of the record, timestamp delta, offset delta) of the record at ``pos``."""
    n, pos = long_varint(data, pos)
    end = pos + (n >> 1)
    if n & 1 or end > len(data):
        malformed("its length leaves the batch", index)
    if pos == end or data[pos] >= 0x80:
        malformed("its attributes aren't one byte for all clients", index)
    time, pos = long_varint(data, pos + 1, 64)
    delta, pos = long_varint(data, pos)
    if delta & 1:
        malformed("its offset is before its batch", index)
    if pos > end:
        malformed("its fields leave its length", index)
    return pos, end, (time >> 1) ^ -(time & 1), delta >> 1


def _field(data: bytes, pos: int, end: int, index: int) -> tuple[bytes | None, int]:
    n, pos = long_varint(data, pos)
    if n == 1:
        return None, pos
    if n & 1 or pos + (n >> 1) > end:
        malformed("the length of a field leaves the record", index)
    return data[pos : pos + (n >> 1)], pos + (n >> 1)


def _header_count(data: bytes, pos: int, end: int, index: int) -> tuple[int, int]:
    n, pos = long_varint(data, pos)
    if n & 1 or n >> 1 > end - pos:  # each takes two bytes at least
        malformed("its header count is no count", index)
    return n >> 1, pos


def _put(
    column: bytearray | memoryview,
    valid: bytearray | None,
    ends: memoryview,
    row: int,
    at: int,
    field: bytes | None,
) -> int:
    if field is not None:
        column[at : at + len(field)] = field
        at += len(field)
        if valid is not None:
            valid[row >> 3] |= 1 << (row & 7)
    ends[row + 1] = at
    return at
