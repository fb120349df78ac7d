"""Avro records to Arrow, by the schema that wrote them.

pyruhvro decodes what it can, on a schema of physical types with the same encoding; what those mean is made of its
columns afterwards. It takes bytes left over and integers that are too large without a word: so the bytes that rows
must have taken are computed from its columns, and have to be those that there are.
"""

from __future__ import annotations

__all__ = ("AvroCodec",)

import decimal
import importlib.util
import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from penstock_iceberg_compactor.decode._arrow import null_bytes
from penstock_iceberg_compactor.decode._avro_schema import Node, parse_schema, physical_schema
from penstock_iceberg_compactor.decode._decoder import Decoded, RefusedError, memory_of, panics_caught, parts

_Read: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
#: What of logical types' values there is, by the first word of their names: days, or microseconds; years 1 to 9999,
#: beyond which neither Python nor a partition by days can say them.
_RANGES = {
    "date": (-719_162, 2_932_896, "date"),
    "time": (0, 86_400_000_000 - 1, "time"),
    **dict.fromkeys(("timestamp", "local"), (-62_135_596_800_000_000, 253_402_300_799_999_999, "timestamp")),
}
#: Factors to microseconds; below 0: what to divide by.
_MICROSECONDS = {"millis": 1000, "micros": 1, "nanos": -1000}
#: Items that take no bytes, such as nulls, would cost nothing to send: so many in one array.
_ITEMS_MAX = 64


class AvroCodec:
    """Decodes values that one Avro schema wrote."""

    def __init__(self, node: Node, *, row_wise: bool = False) -> None:
        self._node = node
        self._read = _reader(node)
        self._swell = _swelling(node)
        bulk = node.bulk and not row_wise and importlib.util.find_spec("pyruhvro") is not None
        self._physical = physical_schema(node) if bulk else ""

    @classmethod
    def of(cls, text: str, references: Sequence[str] = (), *, row_wise: bool = False) -> AvroCodec:
        """The codec of a schema in JSON. Raises ValueError with the reason."""
        return cls(parse_schema(text, references), row_wise=row_wise)

    @property
    def type(self) -> pa.DataType:
        """The type of rows: a struct, if the schema is a record."""
        return self._node.type

    def decode(self, items: pa.Array) -> Decoded:
        """Decode an array of binary."""
        bulk = self._bulk if self._physical else None
        return parts(items, self.type, bulk, self._row, swell=self._swell)

    def memory_of(self, items: pa.Array) -> int:
        """What rows of these items may take in memory."""
        return memory_of(items, self.type, self._swell)

    def _row(self, item: bytes) -> Any:
        try:
            value, end = self._read(item, 0)
        except (IndexError, struct.error):
            raise ValueError("it ends in the middle of a value of its schema") from None
        except UnicodeDecodeError:
            raise ValueError("it has a string that is no utf-8") from None
        if end != len(item):
            raise ValueError(f"it has {len(item) - end} bytes more than its schema says")
        return value

    def _bulk(self, items: pa.Array) -> pa.Array:
        import pyruhvro

        if items.null_count or not len(items):
            raise RefusedError
        try:
            with panics_caught():
                batch = pyruhvro.deserialize_array(items.to_pylist(), self._physical)
        except Exception as error:
            raise RefusedError from error
        values = batch.column(0)
        sizes = _sizes(self._node, values)
        wrong = pc.index(pc.equal(sizes, pc.binary_length(items).cast(pa.int64())), False).as_py()
        if wrong >= 0:
            raise RefusedError(wrong)
        return _logical(self._node, values)


def _least(node: Node) -> int:
    """How many bytes a value of the node takes at least."""
    if node.kind == "record":
        return sum(_least(one) for _, one in node.fields)
    return {"null": 0, "float": 4, "double": 8, "fixed": node.size}.get(node.kind, 1)


def _swelling(node: Node) -> int:
    """As :func:`swelling`, by what items take at least."""
    if node.items is None:
        return max((_swelling(one) for _, one in node.fields), default=0)
    least = _least(node.items) + (node.kind == "map")
    width = null_bytes(node.items.type) + 4 * (node.kind == "map")
    return width // max(1, least) + _swelling(node.items)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("it has an integer of more than ten bytes")
    return (found >> 1) ^ -(found & 1), at


def _long(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    if not -(2**63) <= value < 2**63:
        raise ValueError("it has an integer beyond a long")
    return value, at


def _int(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    if not -(2**31) <= value < 2**31:
        raise ValueError("it has an integer beyond an int")
    return value, at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    if size < 0:
        raise ValueError("it has a string or bytes of negative length")
    if at + size > len(data):
        raise IndexError
    return data[at : at + size], at + size


def _boolean(data: bytes, at: int) -> tuple[bool, int]:
    if data[at] > 1:
        raise ValueError("it has a boolean that is neither 0 nor 1")
    return data[at] == 1, at + 1


def _string(data: bytes, at: int) -> tuple[str, int]:
    value, at = _bytes(data, at)
    return value.decode(), at


_PRIMITIVE_READERS: dict[str, _Read] = {
    "null": lambda data, at: (None, at),
    "boolean": _boolean,
    "int": _int,
    "long": _long,
    "float": lambda data, at: (struct.unpack_from("<f", data, at)[0], at + 4),
    "double": lambda data, at: (struct.unpack_from("<d", data, at)[0], at + 8),
    "bytes": _bytes,
    "string": _string,
}


def _reader(node: Node) -> _Read:
    """What reads a value of the node: from bytes and a position to the value, as Arrow takes it, and the next one."""
    if node.kind == "record":
        return _record_reader(node)
    if node.kind == "union":
        return _union_reader(node)
    if node.kind in ("array", "map"):
        return _items_reader(node)
    if node.kind == "enum":
        return _enum_reader(node)
    read = _fixed_reader(node.size) if node.kind == "fixed" else _PRIMITIVE_READERS[node.kind]
    if not node.logical:
        return read
    convert = _converter(node)

    def logical(data: bytes, at: int) -> tuple[Any, int]:
        value, at = read(data, at)
        return convert(value), at

    return logical


def _fixed_reader(size: int) -> _Read:
    def fixed(data: bytes, at: int) -> tuple[bytes, int]:
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size

    return fixed


def _record_reader(node: Node) -> _Read:
    readers = [(name, _reader(one), one.kind == "null") for name, one in node.fields]

    def record(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        row = {}
        for name, read, is_null in readers:
            value, at = read(data, at)
            if not is_null:
                row[name] = value
        return row, at

    return record


def _union_reader(node: Node) -> _Read:
    several = pa.types.is_struct(node.type) and sum(one.kind != "null" for _, one in node.fields) > 1
    readers = [(name, _reader(one), several and one.kind != "null") for name, one in node.fields]

    def union(data: bytes, at: int) -> tuple[Any, int]:
        branch, at = _long(data, at)
        if not 0 <= branch < len(readers):
            raise ValueError(f"it has a union's branch that its schema hasn't: branch={branch}")
        name, read, named = readers[branch]
        value, at = read(data, at)
        return ({name: value} if named else value), at

    return union


def _items_reader(node: Node) -> _Read:
    assert node.items is not None
    read, is_map = _reader(node.items), node.kind == "map"
    hollow = node.items.hollow and not is_map

    def items_max(data: bytes) -> int:
        return _ITEMS_MAX if hollow else len(data)

    def items(data: bytes, at: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while True:
            count, at = _long(data, at)
            if count == 0:
                return found, at
            if count < 0:  # followed by the block's size in bytes
                count = -count
                _, at = _long(data, at)
            if len(found) + count > items_max(data):
                raise ValueError("it has an array or map of more items than it has bytes")
            for _ in range(count):
                if is_map:
                    key, at = _string(data, at)
                    value, at = read(data, at)
                    found.append((key, value))
                else:
                    value, at = read(data, at)
                    found.append(value)

    return items


def _enum_reader(node: Node) -> _Read:
    def enum(data: bytes, at: int) -> tuple[str, int]:
        index, at = _int(data, at)
        if not 0 <= index < len(node.symbols):
            raise ValueError(f"it has an enum's symbol that its schema hasn't: index={index}")
        return node.symbols[index], at

    return enum


def _converter(node: Node) -> Callable[[Any], Any]:
    if node.logical == "decimal":
        return lambda value: _decimal(value, node.type)
    if node.logical == "uuid":
        return lambda value: value if isinstance(value, bytes) else _uuid(value)
    least, most, what = _RANGES[node.logical.partition("-")[0]]
    factor = _MICROSECONDS.get(node.logical.rpartition("-")[2], 1)

    def convert(value: int) -> int:
        value = value * factor if factor > 0 else (abs(value) // -factor) * (1 if value >= 0 else -1)
        if not least <= value <= most:
            raise ValueError(f"it has a {what} out of range")
        return value

    return convert


def _uuid(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ValueError("it has a string that is no uuid") from None


def _decimal(data: bytes, kind: pa.DataType) -> decimal.Decimal:
    value = int.from_bytes(data, "big", signed=True)
    if abs(value) >= 10**kind.precision:
        raise ValueError(f"it has a decimal of more than {kind.precision} digits")
    return decimal.Decimal(value).scaleb(-kind.scale, decimal.Context(prec=38))


def _logical(node: Node, array: pa.Array) -> pa.Array:
    """Columns of physical types as columns of ``node.type``."""
    if node.kind == "union":
        inner = node.optional
        return pa.nulls(len(array), node.type) if inner is None else _logical(inner, array)
    if node.kind == "record":
        children = [
            _logical(one, array.field(at))
            for at, (_, one) in enumerate(node.fields)
            if not pa.types.is_null(one.type)
        ]
        if not children:
            return pa.array([{} if one else None for one in array.is_valid().to_pylist()], node.type)
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(node.type), mask=mask)
    if node.kind == "array":
        assert node.items is not None
        mask = array.is_null() if array.null_count else None
        values = _logical(node.items, array.values)
        return pa.ListArray.from_arrays(array.offsets, values, type=node.type, mask=mask)
    if node.kind == "map":
        assert node.items is not None
        mask = array.is_null() if array.null_count else None
        _text(array.keys)
        values = _logical(node.items, array.items)
        return pa.MapArray.from_arrays(array.offsets, array.keys, values, type=node.type, mask=mask)
    if node.kind in ("string", "enum") and not node.logical:
        return _text(array)
    if node.kind == "bytes":
        array = pa.Array.from_buffers(
            pa.binary(), len(array), array.buffers(), null_count=array.null_count, offset=array.offset
        )
    return _logical_leaf(node, array) if node.logical else array


def _text(array: pa.Array) -> pa.Array:
    try:
        array.validate(full=True)  # pyruhvro doesn't look whether strings are UTF-8
    except pa.ArrowInvalid as error:
        raise RefusedError from error
    return array


def _logical_leaf(node: Node, array: pa.Array) -> pa.Array:
    if node.logical in ("decimal", "uuid"):
        convert = _converter(node)
        try:
            values = [None if one is None else convert(one) for one in array.to_pylist()]
            made = pa.array(values, pa.binary(16) if node.logical == "uuid" else node.type)
        except ValueError as error:
            raise RefusedError from error
        return pa.ExtensionArray.from_storage(node.type, made) if node.logical == "uuid" else made
    factor = _MICROSECONDS.get(node.logical.rpartition("-")[2], 1)
    try:
        scaled = array.cast(pa.int64())
        scaled = pc.multiply_checked(scaled, factor) if factor > 0 else pc.divide(scaled, -factor)
    except pa.ArrowInvalid as error:
        raise RefusedError from error
    least, most, _ = _RANGES[node.logical.partition("-")[0]]
    found = pc.min_max(scaled).as_py()
    if found["min"] is not None and not least <= found["min"] <= found["max"] <= most:
        raise RefusedError
    return array.view(node.type) if node.logical == "date" else scaled.view(node.type)


def _sizes(node: Node, array: pa.Array) -> pa.Array:
    """How many bytes each item takes in Avro, as writers write it: arrays and maps in one block."""
    count = len(array)
    if node.kind == "union":
        inner = node.optional
        assert inner is not None
        return pc.add(pc.if_else(array.is_valid(), pc.fill_null(_sizes(inner, array), 0), 0), 1)
    if node.kind == "record":
        total = pa.repeat(pa.scalar(0, pa.int64()), count)
        for at, (_, one) in enumerate(node.fields):
            total = pc.add(total, _sizes(one, array.field(at)))
        return total
    if node.kind in ("array", "map"):
        assert node.items is not None
        lengths = pc.fill_null(pc.subtract(array.offsets[1:], array.offsets[:-1]), 0)
        if node.kind == "map":
            keys = _prefixed(pc.binary_length(array.keys))
            inner_sizes = pc.add(keys, _sizes(node.items, array.items))
        else:
            inner_sizes = _sizes(node.items, array.values)
        ends = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(inner_sizes)])
        inside = pc.subtract(ends.take(array.offsets[1:]), ends.take(array.offsets[:-1]))
        blocks = pc.add(_varint_sizes(lengths), 1)
        return pc.if_else(pc.equal(lengths, 0), pa.scalar(1, pa.int64()), pc.add(inside, blocks))
    if node.kind in ("string", "bytes"):
        return _prefixed(pc.binary_length(array))
    if node.kind == "enum":
        return _varint_sizes(pc.index_in(array, pa.array(node.symbols, pa.string())))
    if node.kind in ("int", "long"):
        return _varint_sizes(array)
    size = {"null": 0, "boolean": 1, "float": 4, "double": 8}[node.kind]
    return pa.repeat(pa.scalar(size, pa.int64()), count)


def _prefixed(lengths: pa.Array) -> pa.Array:
    return pc.add(_varint_sizes(lengths), lengths.cast(pa.int64()))


def _varint_sizes(values: pa.Array) -> pa.Array:
    """How many bytes each integer takes: a byte for each 7 bits of it and its sign."""
    values = values.cast(pa.int64())
    least = pc.min_max(values).as_py()
    low, high = least["min"] or 0, least["max"] or 0
    if low < 0:
        values = pc.if_else(pc.less(values, 0), pc.bit_wise_not(values), values)
        high = max(high, ~low)
    sizes = pa.repeat(pa.scalar(1, pa.int64()), len(values))
    for bits in range(6, 63, 7):
        if high < 1 << bits:
            break
        sizes = pc.add(sizes, pc.greater_equal(values, 1 << bits).cast(pa.int64()))
    return sizes
