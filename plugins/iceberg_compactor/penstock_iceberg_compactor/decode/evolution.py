"""What a table's columns and those of records have to do with each other: compared, merged, cast.

All of it by name, on Arrow types. What Iceberg lets a column become: an int a long, a float a double, a decimal one
of more digits before the point, a required column an optional one; and columns may be added. Everything else that
doesn't fit is a conflict.
"""

from __future__ import annotations

__all__ = ("Change", "Comparison", "Conflict", "Conformed", "compare", "conform")

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from penstock_iceberg_compactor.decode._arrow import UUID, plain, type_name


@dataclass(frozen=True, slots=True)
class Change:
    """Something that the table's schema has to become, so that records fit."""

    kind: Literal["add", "widen", "make_optional"]
    #: Names from the top; ``element``, ``key`` and ``value`` for what lists and maps hold, as in Iceberg.
    path: tuple[str, ...]
    #: The type that the column will have.
    type: pa.DataType


@dataclass(frozen=True, slots=True)
class Conflict:
    """A column of records that no change of the table can take in."""

    path: tuple[str, ...]
    table_type: pa.DataType
    records_type: pa.DataType

    def __str__(self) -> str:
        what = f'column "{".".join(self.path)}"' if self.path else "the whole"
        return f"{what} is {type_name(self.records_type)} in records and {type_name(self.table_type)} in the table"


@dataclass(slots=True)
class Comparison:
    """How the columns of records differ from a table's."""

    #: The table's type with all changes made, as a plain type.
    merged: pa.DataType
    changes: list[Change] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)

    @property
    def verdict(self) -> Literal["equal", "additive", "impossible"]:
        """``equal`` if the table takes the records as it is, ``additive`` if it does after ``changes``."""
        return "impossible" if self.conflicts else "additive" if self.changes else "equal"


@dataclass(frozen=True, slots=True)
class Conformed:
    """Rows under a table's columns."""

    rows: pa.Array
    #: For each row whether a value of it couldn't be cast and is null; None if all could.
    bad: pa.Array | None = None


def compare(table: pa.DataType, records: pa.DataType) -> Comparison:
    """What the type ``table``, mostly a struct, has to become to take rows of the type ``records``.

    Columns that records lack are no difference, unless the table requires them.
    """
    comparison = Comparison(table)
    comparison.merged = _merge(table, plain(records), (), comparison)
    return comparison


def _merge(table: pa.DataType, records: pa.DataType, path: tuple[str, ...], found: Comparison) -> pa.DataType:
    types = pa.types
    if types.is_struct(table) and types.is_struct(records):
        return _merge_structs(table, records, path, found)
    if _is_list(table) and types.is_list(records):
        element = _merge(table.value_type, records.value_type, (*path, "element"), found)
        return pa.list_(pa.field("element", element))
    if types.is_map(table) and types.is_map(records):
        key = _merge(table.key_type, records.key_type, (*path, "key"), found)
        return pa.map_(key, _merge(table.item_type, records.item_type, (*path, "value"), found))
    table = plain(table)
    if _fits(records, table):
        return table
    if _widens(table, records):
        found.changes.append(Change("widen", path, records))
        return records
    if types.is_decimal(table) and types.is_decimal(records) and records.scale <= table.scale:
        digits = max(records.precision - records.scale, table.precision - table.scale) + table.scale
        if digits <= 38:
            wider = pa.decimal128(digits, table.scale)
            found.changes.append(Change("widen", path, wider))
            return wider
    found.conflicts.append(Conflict(path, table, records))
    return table


def _merge_structs(
    table: pa.DataType, records: pa.DataType, path: tuple[str, ...], found: Comparison
) -> pa.DataType:
    merged = {}
    of_records = {one.name: one.type for one in records}
    for column in table:
        if not column.nullable:
            found.changes.append(Change("make_optional", (*path, column.name), plain(column.type)))
        there = of_records.pop(column.name, None)
        merged[column.name] = (
            plain(column.type) if there is None else _merge(column.type, there, (*path, column.name), found)
        )
    for name, kind in of_records.items():
        found.changes.append(Change("add", (*path, name), kind))
        merged[name] = kind
    return pa.struct(list(merged.items()))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _widens(table: pa.DataType, records: pa.DataType) -> bool:
    return (table, records) in ((pa.int32(), pa.int64()), (pa.float32(), pa.float64()))


def _fits(records: pa.DataType, table: pa.DataType) -> bool:
    """Whether a column of plain type ``table`` takes values of plain type ``records``, as far as types can tell."""
    if records == table or pa.types.is_null(records) or _widens(records, table):
        return True
    if pa.types.is_decimal(records) and pa.types.is_decimal(table):
        return bool(
            records.scale <= table.scale
            and records.precision - records.scale <= table.precision - table.scale
        )
    # a long that a double can't hold is found when it is cast
    return bool(pa.types.is_integer(records) and table == pa.float64())


def conform(rows: pa.Array, table: pa.DataType, *, rounded: bool = False) -> Conformed:
    """``rows`` (a struct array) as an array of exactly the type ``table``, column by column.

    Columns that rows lack are null, columns that the table lacks are left out. A value that can't be cast is null,
    and its row is marked ``bad``; with ``rounded`` a long that no double is equal to becomes the nearest one.
    """
    cast = _Cast(len(rows), rounded=rounded)
    result = cast.to(rows, table, None)
    return Conformed(result, cast.bad)


class _Cast:
    def __init__(self, count: int, *, rounded: bool) -> None:
        self._count = count
        self._rounded = rounded
        self.bad: pa.Array | None = None

    def to(self, array: pa.Array, target: pa.DataType, rows: pa.Array | None) -> pa.Array:
        """Cast; ``rows`` tells of which row each item is part (None: item i of row i)."""
        types = pa.types
        if array.type == target:
            return array
        if types.is_null(array.type):
            return pa.nulls(len(array), target)
        if types.is_struct(array.type) and types.is_struct(target):
            return self._struct(array, target, rows)
        if _is_list(array.type) and _is_list(target):
            return self._list(array, target, rows)
        if types.is_map(array.type) and types.is_map(target):
            return self._map(array, target, rows)
        return self._leaf(array, target, rows)

    def _struct(self, array: pa.Array, target: pa.DataType, rows: pa.Array | None) -> pa.Array:
        children = []
        for column in target:
            at = array.type.get_field_index(column.name)
            child = (
                pa.nulls(len(array), column.type) if at < 0 else self.to(array.field(at), column.type, rows)
            )
            children.append(child)
        mask = array.is_null() if array.null_count else None
        if not children:  # it couldn't tell how many there are
            return pa.array([{} if one else None for one in array.is_valid().to_pylist()], target)
        fields = [column.with_nullable(True) for column in target]
        made = pa.StructArray.from_arrays(children, fields=fields, mask=mask)
        return made if made.type == target else made.cast(target)

    def _list(self, array: pa.Array, target: pa.DataType, rows: pa.Array | None) -> pa.Array:
        array = _stored(array)
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        values = self.to(array.flatten(), target.value_type, self._parents(lengths, rows))
        mask = array.is_null() if array.null_count else None
        large = pa.types.is_large_list(target)
        offsets = _offsets(lengths, pa.int64() if large else pa.int32())
        kind = pa.LargeListArray if large else pa.ListArray
        return kind.from_arrays(offsets, values, type=target, mask=mask)

    def _map(self, array: pa.Array, target: pa.DataType, rows: pa.Array | None) -> pa.Array:
        array = _stored(array)
        as_list = array.cast(
            pa.list_(pa.struct([("key", array.type.key_type), ("value", array.type.item_type)]))
        )
        lengths = pc.fill_null(pc.list_value_length(as_list), 0)
        entries = as_list.flatten()
        parents = self._parents(lengths, rows)
        keys = self.to(entries.field(0), target.key_type, parents)
        items = self.to(entries.field(1), target.item_type, parents)
        mask = array.is_null() if array.null_count else None
        return pa.MapArray.from_arrays(_offsets(lengths, pa.int32()), keys, items, type=target, mask=mask)

    def _parents(self, lengths: pa.Array, rows: pa.Array | None) -> pa.Array:
        parents = pc.list_parent_indices(
            pa.ListArray.from_arrays(
                _offsets(lengths, pa.int32()), pa.nulls(pc.sum(lengths, min_count=0).as_py() or 0)
            )
        )
        return parents if rows is None else rows.take(parents)

    def _leaf(self, array: pa.Array, target: pa.DataType, rows: pa.Array | None) -> pa.Array:
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        extension = target if isinstance(target, pa.BaseExtensionType) else None
        stored = extension.storage_type if extension is not None else target
        source, wanted = plain(array.type), plain(target)
        if extension is not None and extension == UUID and source == pa.binary(16):
            source = wanted
        if _fits(source, wanted):
            made = self._cast(array, stored, rows)
        else:
            self._mark(array.is_valid(), rows)
            made = pa.nulls(len(array), stored)
        return made if extension is None else pa.ExtensionArray.from_storage(extension, made)

    def _cast(self, array: pa.Array, target: pa.DataType, rows: pa.Array | None) -> pa.Array:
        try:
            return array.cast(target, safe=not (self._rounded and pa.types.is_floating(target)))
        except pa.ArrowInvalid:
            if len(array) == 1:
                self._mark(array.is_valid(), rows)
                return pa.nulls(1, target)
        half = len(array) // 2  # the few that can't be cast are found by halving
        return pa.concat_arrays(
            [
                self._cast(array[:half], target, pa.array(range(half)) if rows is None else rows[:half]),
                self._cast(
                    array[half:], target, pa.array(range(half, len(array))) if rows is None else rows[half:]
                ),
            ]
        )

    def _mark(self, bad: pa.Array, rows: pa.Array | None) -> None:
        if rows is not None:
            marks = [False] * self._count
            for row in rows.filter(bad).to_pylist():
                marks[row] = True
            bad = pa.array(marks, pa.bool_())
        if pc.any(bad, min_count=0).as_py():
            self.bad = bad if self.bad is None else pc.or_(self.bad, bad)


def _stored(array: pa.Array) -> pa.Array:
    """The array without extension types, of which Arrow flattens no lists."""
    types = pa.types
    if isinstance(array.type, pa.BaseExtensionType):
        return array.storage
    if "extension<" not in str(array.type):
        return array
    mask = array.is_null()
    if types.is_struct(array.type):
        children = [_stored(array.field(at)) for at in range(array.type.num_fields)]
        return pa.StructArray.from_arrays(children, [one.name for one in array.type], mask=mask)
    offsets = pa.array(array.offsets.to_pylist(), array.offsets.type)
    if types.is_map(array.type):
        return pa.MapArray.from_arrays(offsets, _stored(array.keys), _stored(array.items), mask=mask)
    kind = pa.LargeListArray if types.is_large_list(array.type) else pa.ListArray
    return kind.from_arrays(offsets, _stored(array.values), mask=mask)


def _offsets(lengths: pa.Array, kind: pa.DataType) -> Any:
    ends = pc.cumulative_sum(lengths.cast(kind))
    return pa.concat_arrays([pa.array([0], kind), ends])
