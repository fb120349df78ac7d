"""Columns of records against those of a table: compared, merged and cast."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from penstock_iceberg_compactor.decode import compare, conform


def _struct(**columns: Any) -> pa.DataType:
    return pa.struct(list(columns.items()))


def test_columns_that_the_table_has_are_equal_whatever_their_layout() -> None:
    table = _struct(a=pa.large_string(), l=pa.large_list(pa.large_string()), u=pa.uuid(), b=pa.large_binary())
    records = _struct(b=pa.binary(), l=pa.list_(pa.string()), a=pa.string(), u=pa.uuid())
    assert compare(table, records).verdict == "equal"
    assert compare(table, _struct(a=pa.string())).verdict == "equal"


@pytest.mark.parametrize(
    ("before", "records", "after"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(5, 2), pa.decimal128(9, 2), pa.decimal128(9, 2)),
        (pa.decimal128(5, 2), pa.decimal128(5, 1), pa.decimal128(6, 2)),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (_struct(a=pa.int32()), _struct(a=pa.int64(), b=pa.string()), _struct(a=pa.int64(), b=pa.string())),
        (
            pa.map_(pa.string(), pa.int32()),
            pa.map_(pa.string(), pa.int64()),
            pa.map_(pa.string(), pa.int64()),
        ),
    ],
)
def test_what_iceberg_can_express_is_additive(
    before: pa.DataType, records: pa.DataType, after: pa.DataType
) -> None:
    comparison = compare(_struct(c=before), _struct(c=records, new=pa.string()))
    assert comparison.verdict == "additive"
    assert comparison.merged == _struct(c=after, new=pa.string())
    assert [one.path for one in comparison.changes if one.kind == "add"][-1] == ("new",)
    assert compare(comparison.merged, _struct(c=records)).verdict == "equal"


@pytest.mark.parametrize(
    ("before", "records"),
    [
        (pa.int64(), pa.string()),
        (pa.string(), pa.int64()),
        (pa.int64(), pa.float64()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.decimal128(5, 2), pa.decimal128(9, 3)),
        (pa.list_(pa.int64()), pa.int64()),
        (_struct(a=pa.int64()), pa.string()),
        (pa.binary(16), pa.uuid()),
    ],
)
def test_what_iceberg_cant_express_names_the_column_and_both_types(
    before: pa.DataType, records: pa.DataType
) -> None:
    comparison = compare(_struct(o=_struct(c=before)), _struct(o=_struct(c=records), new=pa.int64()))
    assert comparison.verdict == "impossible"
    (conflict,) = comparison.conflicts
    assert (conflict.path, conflict.table_type, conflict.records_type) == (("o", "c"), before, records)
    assert comparison.merged.field("o").type.field("c").type == before


def test_a_required_column_becomes_optional() -> None:
    table = pa.struct([pa.field("a", pa.int64(), nullable=False)])
    (change,) = compare(table, _struct(a=pa.int64())).changes
    assert (change.kind, change.path) == ("make_optional", ("a",))


def test_a_conflict_is_one_sentence() -> None:
    comparison = compare(_struct(a=pa.int64()), _struct(a=pa.list_(pa.string())))
    assert str(comparison.conflicts[0]) == 'column "a" is a list of string in records and a long in the table'


_TABLE = _struct(
    a=pa.int64(),
    d=pa.float64(),
    l=pa.large_list(pa.large_string()),
    m=pa.map_(pa.large_string(), pa.int64()),
    o=_struct(x=pa.large_string(), y=pa.bool_()),
    u=pa.uuid(),
)


def test_rows_are_cast_to_the_tables_columns() -> None:
    rows = pa.array(
        [
            {"m": [("k", 1)], "a": 1, "l": ["x", None], "o": {"x": "y"}, "u": b"1" * 16},
            None,
            {"l": [], "o": None},
        ],
        _struct(
            m=pa.map_(pa.string(), pa.int32()),
            more=pa.string(),
            a=pa.int32(),
            l=pa.list_(pa.string()),
            o=_struct(x=pa.string()),
            u=pa.binary(16),
        ),
    )
    for begin in range(3):
        cast = conform(rows[begin:], _TABLE)
        cast.rows.validate(full=True)
        assert cast.bad is None
        assert cast.rows.type == _TABLE
        first = {"a": 1, "d": None, "l": ["x", None], "m": [("k", 1)], "o": {"x": "y", "y": None}}
        found = cast.rows.to_pylist()
        if begin == 0:
            assert found[0].pop("u").bytes == b"1" * 16
            assert found[0] == first
        assert found[-1] == {"a": None, "d": None, "l": [], "m": None, "o": None, "u": None}


def test_uuids_in_lists_and_maps_are_cast() -> None:
    one, other = b"1" * 16, b"2" * 16
    kind = _struct(
        l=pa.list_(pa.binary(16)), m=pa.map_(pa.string(), pa.binary(16)), u=_struct(v=pa.binary(16))
    )
    table = _struct(l=pa.list_(pa.uuid()), m=pa.map_(pa.string(), pa.uuid()), u=_struct(v=pa.uuid()))
    values = [
        {"l": [one, None], "m": [("a", one)], "u": {"v": one}},
        {"l": None},
        None,
        {"l": [other], "m": []},
    ]
    rows = conform(pa.array(values, kind), table).rows
    assert rows.type == table
    more = pa.struct([*table, ("new", pa.int64())])
    for begin in range(4):
        cast = conform(rows[begin:], more)
        cast.rows.validate(full=True)
        assert conform(cast.rows, kind).rows.to_pylist() == pa.array(values, kind)[begin:].to_pylist()
    chosen = rows.filter(pa.array([True, False, False, True])).take(pa.array([1, 0]))
    assert conform(chosen, kind).rows.to_pylist() == pa.array([values[3], values[0]], kind).to_pylist()


def test_values_that_cant_be_cast_are_null_and_their_rows_marked() -> None:
    rows = pa.array(
        [
            {"a": "x", "l": [], "d": 1},
            {"a": None, "l": [1, 2], "d": 2},
            {"a": None, "l": None, "d": 2**60 + 1},
            {"a": None, "l": [None], "d": 3},
        ],
        _struct(a=pa.string(), l=pa.list_(pa.int64()), d=pa.int64()),
    )
    cast = conform(rows, _TABLE)
    assert cast.bad is not None
    assert cast.bad.to_pylist() == [True, True, True, False]
    assert [row["d"] for row in cast.rows.to_pylist()] == [1.0, 2.0, None, 3.0]
    assert [row["l"] for row in cast.rows.to_pylist()] == [[], [None, None], None, [None]]
    assert conform(rows[3:], _TABLE).bad is None
