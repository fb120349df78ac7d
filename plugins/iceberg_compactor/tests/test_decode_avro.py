"""Avro to Arrow: every type, bad bytes, and the bulk way held against the row-wise one and that against fastavro."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import uuid
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_iceberg_compactor.decode._avro import AvroCodec
from penstock_iceberg_compactor.decode._decoder import Decoded
from tests.arrow_text import visible
from tests.depth import examples
from tests.lake_records import avro


def _encode(schema: Any, *values: Any) -> list[bytes]:
    return avro(schema, values)


def _decode(schema: Any, *items: bytes, row_wise: bool = False) -> Decoded:
    return AvroCodec.of(json.dumps(schema), row_wise=row_wise).decode(pa.array(items, pa.binary()))


def _record(**fields: Any) -> Any:
    return {
        "type": "record",
        "name": "R",
        "fields": [{"name": name, "type": kind} for name, kind in fields.items()],
    }


_UTC = datetime.UTC
_E = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
_IN = {"type": "record", "name": "In", "namespace": "n", "fields": [{"name": "x", "type": ["null", "int"]}]}


def _logical(kind: str, logical: str, **more: Any) -> Any:
    return {"type": kind, "logicalType": logical, **more}


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize(
    ("kind", "value", "arrow", "wanted"),
    [
        ("boolean", True, pa.bool_(), True),
        ("int", -5, pa.int32(), -5),
        ("long", 2**40, pa.int64(), 2**40),
        ("float", 0.5, pa.float32(), 0.5),
        ("double", 0.1, pa.float64(), 0.1),
        ("bytes", b"\xff", pa.binary(), b"\xff"),
        ("string", "é", pa.string(), "é"),
        (_E, "B", pa.string(), "B"),
        ({"type": "fixed", "name": "F", "size": 3}, b"abc", pa.binary(3), b"abc"),
        ({"type": "array", "items": "long"}, [1, -2], pa.list_(pa.int64()), [1, -2]),
        (
            {"type": "map", "values": "bytes"},
            {"k": b"\xfe"},
            pa.map_(pa.string(), pa.binary()),
            [("k", b"\xfe")],
        ),
        (["null", "string"], None, pa.string(), None),
        (["string", "null"], "x", pa.string(), "x"),
        (_IN, {"x": 1}, pa.struct([("x", pa.int32())]), {"x": 1}),
        (["null", {"type": "array", "items": ["null", _IN]}], [{"x": None}, None], None, [{"x": None}, None]),
        (
            ["null", "long", "string", _IN],
            "x",
            pa.struct(
                [("long", pa.int64()), ("string", pa.string()), ("In", pa.struct([("x", pa.int32())]))]
            ),
            {"long": None, "string": "x", "In": None},
        ),
        (_logical("int", "date"), datetime.date(1969, 1, 1), pa.date32(), datetime.date(1969, 1, 1)),
        (
            _logical("int", "time-millis"),
            datetime.time(1, 2, 3, 4000),
            pa.time64("us"),
            datetime.time(1, 2, 3, 4000),
        ),
        (
            _logical("long", "time-micros"),
            datetime.time(1, 2, 3, 4),
            pa.time64("us"),
            datetime.time(1, 2, 3, 4),
        ),
        (
            _logical("long", "timestamp-millis"),
            datetime.datetime(1969, 1, 1, tzinfo=_UTC),
            pa.timestamp("us", "UTC"),
            datetime.datetime(1969, 1, 1, tzinfo=_UTC),
        ),
        (
            _logical("long", "local-timestamp-micros"),
            datetime.datetime(2026, 1, 1, 0, 0, 0, 5),
            pa.timestamp("us"),
            datetime.datetime(2026, 1, 1, 0, 0, 0, 5),
        ),
        (
            _logical("bytes", "decimal", precision=9, scale=2),
            decimal.Decimal("-1.25"),
            pa.decimal128(9, 2),
            decimal.Decimal("-1.25"),
        ),
        (
            {"type": "fixed", "name": "F", "size": 5, "logicalType": "decimal", "precision": 9, "scale": 2},
            decimal.Decimal("-1.25"),
            pa.decimal128(9, 2),
            decimal.Decimal("-1.25"),
        ),
        (_logical("string", "uuid"), uuid.UUID(int=5), pa.uuid(), uuid.UUID(int=5)),
    ],
)
def test_each_type_has_its_arrow_type(kind: Any, value: Any, arrow: Any, wanted: Any, row_wise: bool) -> None:
    schema = _record(f=kind, after="int")
    decoded = _decode(schema, *_encode(schema, {"f": value, "after": 7}), row_wise=row_wise)
    assert decoded.failures == []
    assert arrow is None or decoded.rows.type.field("f").type == arrow
    assert decoded.rows.to_pylist() == [{"f": wanted, "after": 7}]


def test_a_schema_that_is_no_record_gives_no_struct() -> None:
    assert _decode("string", *_encode("string", "x")).rows.to_pylist() == ["x"]


_FLAT = _record(
    a="int", s="string", l={"type": "array", "items": "long"}, u=["null", "long"], b="boolean", e=_E
)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"", "it ends in the middle of a value of its schema"),
        (b"\x02\x04x", "it ends in the middle of a value of its schema"),
        (b"\x02\x01", "it has a string or bytes of negative length"),
        (b"\x02\x02\xff\x00\x00\x00\x00", "it has a string that is no utf-8"),
        (b"\x02\x00\x00\x00\x00\x00zz", "it has 2 bytes more than its schema says"),
        (b"\xfe\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00", "it has an integer beyond an int"),
        (b"\xff" * 12, "it has an integer of more than ten bytes"),
        (b"\x02\x00\x00\x04\x00\x00", "it has a union's branch that its schema hasn't: branch=2"),
        (b"\x02\x00\x00\x00\x02\x00", "it has a boolean that is neither 0 nor 1"),
        (b"\x02\x00\x00\x00\x00\x04", "it has an enum's symbol that its schema hasn't: index=2"),
        (b"\x02\x00\xfe\xff\xff\xff\x0f\x00", "it has an array or map of more items than it has bytes"),
    ],
)
def test_bytes_that_arent_of_the_schema_say_why(item: bytes, reason: str, row_wise: bool) -> None:
    (good,) = _encode(_FLAT, {"a": 1, "s": "x", "l": [1], "u": 5, "b": True, "e": "A"})
    decoded = _decode(_FLAT, *[good] * 20, item, *[good] * 20, row_wise=row_wise)
    assert [(one.index, one.reason) for one in decoded.failures] == [(20, reason)]
    assert len(decoded.rows) == 40


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize(
    ("of", "logical", "least", "most", "what"),
    [
        ("int", "date", -719_162, 2_932_896, "date"),
        ("int", "time-millis", 0, 86_399_999, "time"),
        ("long", "timestamp-millis", -62_135_596_800_000, 253_402_300_799_999, "timestamp"),
        ("long", "local-timestamp-micros", -62_135_596_800_000_000, 253_402_300_799_999_999, "timestamp"),
    ],
)
def test_what_no_calendar_has_fails_alone(
    of: str, logical: str, least: int, most: int, what: str, row_wise: bool
) -> None:
    """It would be a row that nobody can read, and for which no partition by days can be found."""
    items = _encode(_record(f=of), *({"f": one} for one in (least - 1, least, most, most + 1)))
    decoded = _decode(_record(f=_logical(of, logical)), *items, row_wise=row_wise)
    reason = f"it has a {what} out of range"
    assert [(one.index, one.reason) for one in decoded.failures] == [(0, reason), (3, reason)]
    assert len(decoded.rows.to_pylist()) == 2


def test_arrays_in_blocks_with_sizes_are_read() -> None:
    schema = _record(l={"type": "array", "items": "int"})
    decoded = _decode(schema, b"\x01\x02\x02\x02\x04\x00", b"\x02\x02\x00")
    assert decoded.rows.to_pylist() == [{"l": [1, 2]}, {"l": [1]}]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "the schema is no json"),
        (json.dumps("nope"), "the schema uses a name that it doesn't declare: name=nope"),
        (json.dumps(_record(f=["null", "R"])), "the schema is recursive, which no table can be: name=R"),
        (json.dumps({"items": "int"}), "the schema has a part that is no type"),
        (
            json.dumps({"type": "enum", "name": "E", "symbols": ["A", 1]}),
            "the schema has names of an enum's symbols that are no text",
        ),
        (
            json.dumps(_record(**{"\ud800": "int"})),
            "the schema has names of a record's fields that are no text",
        ),
        (
            json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}] * 2}),
            "the schema has a name of a record's fields twice",
        ),
        (json.dumps({"type": "fixed", "name": "F", "size": 0}), "the schema has a fixed of no bytes"),
        (
            json.dumps(_record(f=["null", {"type": "fixed", "name": "F", "size": 500_000_000}])),
            "the schema has rows that take 500000000 bytes without a value: bytes_max=1048576",
        ),
    ],
)
def test_a_schema_that_cant_be_a_table_says_why(schema: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        AvroCodec.of(schema)


def test_a_schema_uses_types_of_its_references() -> None:
    codec = AvroCodec.of(json.dumps(_record(i="n.In")), [json.dumps(_IN)])
    assert codec.type == pa.struct([("i", pa.struct([("x", pa.int32())]))])


_names = iter(range(10**9))


def _leaf(kind: Any, values: st.SearchStrategy[Any]) -> Any:
    return kind, values


_INTS = st.integers(-(2**31), 2**31 - 1) | st.integers(-100, 100)
_LONGS = st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 100)
_LEAVES = st.sampled_from(
    [
        ("boolean", st.booleans()),
        ("int", _INTS),
        ("long", _LONGS),
        ("float", st.floats(width=32, allow_nan=False)),
        ("double", st.floats(allow_nan=False)),
        ("bytes", st.binary(max_size=5)),
        ("string", st.text(max_size=5)),
        ("null", st.none()),
        (_logical("int", "date"), st.integers(-100_000, 100_000)),
        (_logical("long", "timestamp-millis"), st.integers(-(2**40), 2**40) | st.integers(2**62, 2**63 - 1)),
        (_logical("long", "timestamp-nanos"), _LONGS),
        (_logical("int", "time-millis"), st.integers(-1, 90_000_000)),
        (_logical("string", "uuid"), st.uuids().map(str) | st.just("no")),
        (_logical("bytes", "decimal", precision=4, scale=2), st.binary(max_size=3)),
    ]
)


def _nested(inner: Any) -> Any:
    def of_record(parts: list[Any]) -> Any:
        name = f"r{next(_names)}"
        fields = [{"name": f"f{at}", "type": kind} for at, (kind, _) in enumerate(parts)]
        values = st.fixed_dictionaries({f"f{at}": value for at, (_, value) in enumerate(parts)})
        return {"type": "record", "name": name, "fields": fields}, values

    return st.one_of(
        inner.map(lambda one: ({"type": "array", "items": one[0]}, st.lists(one[1], max_size=3))),
        inner.map(
            lambda one: (
                {"type": "map", "values": one[0]},
                st.dictionaries(st.text(max_size=2), one[1], max_size=3),
            )
        ),
        inner.filter(lambda one: one[0] != "null" and not isinstance(one[0], list)).map(
            lambda one: (["null", one[0]], st.none() | one[1])
        ),
        st.lists(inner, max_size=3).map(of_record),
    )


_SCHEMAS = st.recursive(_LEAVES, _nested, max_leaves=5)


@given(data=st.data())
@settings(max_examples=examples(100))
def test_the_bulk_way_says_what_the_row_wise_way_says(data: st.DataObject) -> None:
    schema, values = data.draw(_SCHEMAS)
    physical = fastavro.parse_schema(_without_logical(schema))

    def encode(value: Any) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, physical, value)
        return out.getvalue()

    good = values.map(encode)
    cut = st.tuples(good, st.integers(1, 3)).map(lambda one: one[0][: -one[1]])
    changed = st.tuples(good, st.integers(0, 30), st.integers(0, 255)).map(
        lambda one: one[0][: one[1]] + bytes([one[2]]) + one[0][one[1] + 1 :]
    )
    items = data.draw(st.lists(st.one_of(good, good, good, cut, changed, st.binary(max_size=4)), max_size=30))
    got, wanted = _decode(schema, *items), _decode(schema, *items, row_wise=True)
    assert got.failures == wanted.failures
    assert got.rows.type == wanted.rows.type
    assert visible(got.rows) == visible(wanted.rows)
    assert got.indices.equals(wanted.indices)
    got.rows.validate(full=True)


@given(data=st.data())
@settings(max_examples=examples(100))
def test_the_row_wise_way_reads_what_fastavro_reads(data: st.DataObject) -> None:
    schema, values = data.draw(_SCHEMAS)
    schema = _without_logical(schema)
    items = _encode(schema, *data.draw(st.lists(values, max_size=5)))
    read = AvroCodec.of(json.dumps(schema), row_wise=True)._row
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    for item in items:
        value: Any = fastavro.schemaless_reader(io.BytesIO(item), parsed)
        assert str(read(item)) == str(_as_arrow(schema, value))


def _without_logical(schema: Any) -> Any:
    """The schema of the encoding alone, so that values may be wrong for what it means."""
    if isinstance(schema, list):
        return [_without_logical(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: one for key, one in schema.items() if key != "logicalType"}
    for key in kept.keys() & {"items", "values"}:
        kept[key] = _without_logical(kept[key])
    if "fields" in kept:
        kept["fields"] = [{**one, "type": _without_logical(one["type"])} for one in kept["fields"]]
    return kept


def _as_arrow(schema: Any, value: Any) -> Any:
    """What fastavro reads as the row-wise way gives it: maps as pairs, no fields that are always null."""
    if isinstance(schema, list):
        return None if value is None else _as_arrow(schema[1], value)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind == "array":
        return [_as_arrow(schema["items"], one) for one in value]
    if kind == "map":
        return [(key, _as_arrow(schema["values"], one)) for key, one in value.items()]
    if kind == "record":
        fields = [(one["name"], one["type"]) for one in schema["fields"]]
        return {name: _as_arrow(kind, value[name]) for name, kind in fields if kind != "null"}
    return value
