"""Arrow types and arrays as decoders use them: one type for each meaning, all of it optional."""

from __future__ import annotations

__all__ = ("UUID", "arrow_column", "cut", "null_bytes", "plain", "storage", "type_name")

import pyarrow as pa
import pyarrow.compute as pc

from penstock.spi.lake import BinaryColumn

UUID = pa.uuid()
_NAMES = {
    pa.int32(): "an int",
    pa.int64(): "a long",
    pa.float32(): "a float",
    pa.float64(): "a double",
    pa.bool_(): "a boolean",
    pa.string(): "a string",
    pa.binary(): "binary",
    pa.date32(): "a date",
    pa.time64("us"): "a time",
    pa.timestamp("us"): "a timestamp",
    pa.timestamp("us", "UTC"): "a timestamp with zone",
    UUID: "a uuid",
    pa.null(): "null",
}


def arrow_column(column: BinaryColumn) -> pa.Array:
    """The column as an Arrow array of binary, without a copy."""
    buffers = (column.valid, column.offsets, column.data)
    return pa.Array.from_buffers(
        pa.binary(), len(column), [None if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    )


def cut(items: pa.Array, begin: int, end: int = 0) -> pa.Array:
    """Binary items without so many bytes at their begin and end; those that are shorter become empty."""
    # without a stop, Arrow computes sizes that overflow
    return pc.binary_slice(items, begin, -end or 2**31)


def type_name(kind: pa.DataType) -> str:
    """The type for people, with its article: ``a long``."""
    kind = plain(kind)
    if pa.types.is_struct(kind):
        return "a struct"
    if pa.types.is_list(kind):
        return f"a list of {type_name(kind.value_type).removeprefix('a ').removeprefix('an ')}"
    if pa.types.is_map(kind):
        return "a map"
    if pa.types.is_decimal(kind):
        return f"a decimal({kind.precision},{kind.scale})"
    return _NAMES.get(kind) or f"a {kind}"


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without what says nothing of its meaning: large and view layouts, metadata, not-null.

    Timestamps and times become those of microseconds, unsigned integers the smallest signed type that holds them.
    """
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return kind if kind == UUID else plain(kind.storage_type)
    if types.is_struct(kind):
        return pa.struct([(field.name, plain(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", plain(kind.value_type)))
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    for test, result in (
        (lambda one: types.is_large_string(one) or types.is_string_view(one), pa.string()),
        (lambda one: types.is_large_binary(one) or types.is_binary_view(one), pa.binary()),
        (lambda one: types.is_int8(one) or types.is_int16(one), pa.int32()),
        (lambda one: types.is_uint8(one) or types.is_uint16(one), pa.int32()),
        (types.is_uint32, pa.int64()),
        (types.is_uint64, pa.decimal128(20, 0)),
        (types.is_float16, pa.float32()),
        (types.is_time, pa.time64("us")),
        (types.is_date, pa.date32()),
    ):
        if test(kind):
            return result
    if types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    return kind


def null_bytes(kind: pa.DataType) -> int:
    """What an item of the type takes in memory whatever it holds: also one that is null."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return null_bytes(kind.storage_type)
    if types.is_struct(kind):
        return sum(null_bytes(field.type) for field in kind)
    if types.is_null(kind):
        return 0
    if types.is_fixed_size_binary(kind):  # whose width in bits overflows
        return int(kind.byte_width)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # of variable width: an offset
        return 4


def storage(kind: pa.DataType) -> pa.DataType:
    """The plain type with UUIDs as 16 bytes, which is what Arrow makes nested arrays of."""
    if kind == UUID:
        return pa.binary(16)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, storage(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(storage(kind.key_type), storage(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(pa.field("element", storage(kind.value_type)))
    return kind
