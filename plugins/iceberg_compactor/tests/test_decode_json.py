"""JSON to Arrow: columns that grow, records that fail, and the bulk way held against the row-wise one."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_iceberg_compactor.decode import Decoded, Fitter, JsonDecoder, Limits, conform
from tests.depth import examples


def _decode(*items: bytes | None, decoder: JsonDecoder | None = None) -> Decoded:
    return (decoder or JsonDecoder(Fitter())).decode_array(pa.array(items, pa.binary()))


def _one_reason(*items: bytes, decoder: JsonDecoder | None = None) -> str:
    (failure,) = _decode(*items, decoder=decoder).failures
    return failure.reason


def test_integers_are_longs_and_a_fraction_makes_the_column_double() -> None:
    decoded = _decode(b'{"a":1,"b":1}', b'{"a":2.5,"b":2}')
    assert decoded.rows.type == pa.struct([("a", pa.float64()), ("b", pa.int64())])
    assert decoded.rows.to_pylist() == [{"a": 1.0, "b": 1}, {"a": 2.5, "b": 2}]


def test_a_column_that_the_table_has_isnt_widened_to_double() -> None:
    decoder = JsonDecoder(Fitter())
    _decode(b'{"a":1}', decoder=decoder)
    decoder.bind(pa.struct([("a", pa.int64())]))
    assert _one_reason(b'{"a":2.5}', decoder=decoder) == 'column "a" holds a number but is a long'
    assert _decode(b'{"a":2.0}', decoder=decoder).rows.to_pylist() == [{"a": 2}]


def test_integers_that_a_double_cant_hold_are_rounded_when_their_column_becomes_double() -> None:
    decoded = _decode(b'{"a":9007199254740993}', b'{"a":0.5}')
    assert decoded.rows.to_pylist() == [{"a": 9007199254740992.0}, {"a": 0.5}]


def test_objects_are_structs_and_arrays_lists() -> None:
    decoded = _decode(b'{"o":{"x":"1","y":[[1],[]]}}', b'{"o":{"z":true}}')
    inner = pa.struct([("x", pa.string()), ("y", pa.list_(pa.list_(pa.int64()))), ("z", pa.bool_())])
    assert decoded.rows.to_pylist() == [
        {"o": {"x": "1", "y": [[1], []], "z": None}},
        {"o": {"x": None, "y": None, "z": True}},
    ]
    assert decoded.rows.type.field("o").type.field("x") == inner.field("x")


def test_columns_with_only_nulls_wait_for_a_type() -> None:
    decoder = JsonDecoder(Fitter())
    assert _decode(b'{"a":null,"l":[],"o":{},"b":1}', decoder=decoder).rows.to_pylist() == [{"b": 1}]
    decoded = _decode(b'{"a":"x","l":[1],"o":{"p":1}}', decoder=decoder)
    assert decoded.rows.to_pylist() == [{"a": "x", "l": [1], "o": {"p": 1}, "b": None}]


def test_dates_stay_strings_unless_asked_for() -> None:
    value = b'{"t":"2026-01-31T12:00:00.5Z","d":"2026-01-31"}'
    assert _decode(value).rows.type.field("t").type == pa.string()
    decoded = _decode(value, decoder=JsonDecoder(Fitter(timestamps=True)))
    assert decoded.rows.type.field("t").type == pa.timestamp("us", "UTC")
    assert decoded.rows.type.field("d").type == pa.string()
    assert decoded.rows.field("t").cast(pa.int64()).to_pylist() == [1769860800500000]


def test_null_and_records_without_value_are_null_rows() -> None:
    decoded = _decode(None, b"null", b'{"a":1}')
    assert decoded.rows.to_pylist() == [None, None, {"a": 1}]
    assert decoded.indices.to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"", "it is no json: expecting value at character 0"),
        (b'{"a":"\n"}', "it is no json: invalid control character at character 6"),
        (b"[1]", "it is a list, not an object"),
        (b'{"a":1} x', "it is no json: extra data at character 8"),
        (b'{"a":1,"a":2}', 'it has "a" twice in one object'),
        (b'{"a":NaN}', "it has the number NaN, which json doesn't know"),
        (b'{"a":1e400}', 'column "a" is a number beyond a double'),
        (b'{"a":9223372036854775808}', 'column "a" is an integer out of range'),
        (b'{"a":"\\ud800"}', "it has half of a surrogate pair in a string"),
        (b'{"a":"\xff"}', "it is no utf-8, from byte 6 on"),
        (b'{"a":' + b"[" * 100_000, "it is nested too deep to be read"),
        (b'{"":1}', 'column "" has no name'),
        (b'{"a":{"b":[1,"x"]}}', 'column "a.b" holds a string but is a long'),
    ],
)
def test_a_record_that_cant_be_read_says_why_and_leaves_no_column_behind(item: bytes, reason: str) -> None:
    decoder = JsonDecoder(Fitter())
    decoded = _decode(b'{"ok":1}', item, b'{"ok":2}', decoder=decoder)
    assert [(one.index, one.reason) for one in decoded.failures] == [(1, reason)]
    assert decoded.rows.to_pylist() == [{"ok": 1}, {"ok": 2}]
    assert decoded.indices.to_pylist() == [0, 2]


def test_a_hostile_record_cant_make_more_columns_than_allowed() -> None:
    decoder = JsonDecoder(Fitter(limits=Limits(columns_max=10)))
    hostile = json.dumps({f"k{number}": number for number in range(100_000)}).encode()
    assert _one_reason(b'{"a":1}', hostile, decoder=decoder) == (
        'column "k9" would be one too many: columns_max=10'
    )
    assert _decode(b'{"b":1}', decoder=decoder).rows.type == pa.struct([("a", pa.int64()), ("b", pa.int64())])


def test_depth_and_names_are_bounded() -> None:
    decoder = JsonDecoder(Fitter(limits=Limits(depth_max=3, name_bytes_max=4)))
    assert _one_reason(b'{"a":{"b":{"c":1}}}', b'{"a":{"b":{"d":[1]}}}', decoder=decoder) == (
        'column "a.b.d" is nested too deep: depth_max=3'
    )
    assert "has a name of 5 bytes, at most 4" in _one_reason(b'{"abcde":1}', decoder=decoder)


def test_values_that_dont_fit_become_null_and_are_counted_once_a_record() -> None:
    decoder = JsonDecoder(Fitter(pa.struct([("a", pa.int64()), ("b", pa.int64())]), nulls=True))
    decoded = _decode(b'{"a":"x","b":"y","c":1}', b'{"a":1}', decoder=decoder)
    assert decoded.rows.to_pylist() == [{"a": None, "b": None, "c": 1}, {"a": 1, "b": None, "c": None}]
    assert decoded.nulled == 1


def test_a_given_schema_takes_its_types_and_leaves_other_names_out() -> None:
    kind = pa.struct(
        [
            ("t", pa.timestamp("us", "UTC")),
            ("d", pa.date32()),
            ("n", pa.decimal128(9, 2)),
            ("b", pa.binary()),
            ("u", pa.uuid()),
            ("m", pa.map_(pa.string(), pa.int64())),
        ]
    )
    value = (
        b'{"t":"2026-01-31T12:00:00+01:00","d":"2026-01-31","n":1.25,"b":"aGk=",'
        b'"u":"00000000-0000-0000-0000-000000000005","m":{"x":1},"more":1}'
    )
    decoded = _decode(value, decoder=JsonDecoder(Fitter(kind, grow=False)))
    (row,) = decoded.rows.to_pylist()
    assert decoded.rows.type.field("u").type == pa.uuid()
    assert (str(row["t"]), str(row["d"]), str(row["n"]), row["b"], row["u"].int, row["m"]) == (
        "2026-01-31 11:00:00+00:00",
        "2026-01-31",
        "1.25",
        b"hi",
        5,
        [("x", 1)],
    )
    reason = _one_reason(b'{"n":1.255}', decoder=JsonDecoder(Fitter(kind, grow=False)))
    assert reason == 'column "n" doesn\'t fit decimal(9,2)'


def test_a_column_that_json_cant_fill_fails_only_records_that_try() -> None:
    kind = pa.struct([("m", pa.map_(pa.int64(), pa.string())), ("a", pa.int64())])
    decoder = JsonDecoder(Fitter(kind))
    assert _decode(b'{"a":1}', decoder=decoder).rows.to_pylist() == [{"m": None, "a": 1}]
    (failure,) = _decode(b'{"m":{"1":"x"}}', decoder=decoder).failures
    assert failure.reason == 'column "m" is of a type that isn\'t read from json'


def test_names_that_a_table_needs_itself_or_cant_have_twice_fail_their_records() -> None:
    decoder = JsonDecoder(Fitter(limits=Limits(reserved=frozenset({"_sys"}))))
    good = b'{"a":{"b":1,"_sys":1}}'
    decoded = _decode(good, b'{"_sys":1}', b'{"a.b":1}', b'{"c":[1],"c.element":1}', good, decoder=decoder)
    assert [(one.index, one.reason, one.misfit) for one in decoded.failures] == [
        (1, 'column "_sys" has a name that the table needs itself', True),
        (2, 'column "a.b" has the name of another one, which is in a struct or list', True),
        (3, 'column "c.element" has the name of another one, which is in a struct or list', True),
    ]
    assert decoded.rows.type == pa.struct([("a", pa.struct([("b", pa.int64()), ("_sys", pa.int64())]))])


def test_a_failure_says_whether_the_record_or_its_columns_are_wrong() -> None:
    decoded = _decode(b'{"a":1}', b'{"a":"x"}', b"{", b'{"b":NaN}')
    assert [one.misfit for one in decoded.failures] == [True, False, False]


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.floats(),
    st.sampled_from(
        [
            "",
            "x",
            "é\0\n",
            "2026-01-31T12:00:00Z",
            "2026-02-30T12:00:00Z",
            "2026-01-31T24:00:00.123456Z",
            "0000-01-01T00:00:00Z",
        ]
    ),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
_RECORDS = st.dictionaries(st.sampled_from("abcdv"), _VALUES, max_size=4)
#: Values that want to be taken for their neighbours, or for what they aren't.
_HOSTILE = st.sampled_from(
    [
        b"",
        b" ",
        b"\n",
        b"{",
        b'{"a":1',
        b',"a":1}',
        b"{}}",
        b'{"a":1}}{"v":{"a":2}',
        b'{"a":1}}\n{"v":{"a":2}}\0',
        b'{"a":1},"v":{"a":2}',
        b'{"a":1},"w":{"a":2}',
        b'{"a":1}\0',
        b'{"a":1,"a":null}',
        b'{"a":01}',
        b'{"a":1}\n{"a":2}',
        b'{"a":[1}',
        b"\xef\xbb\xbf{}",
        b'{"a":-0}',
        b'{"a":-0.0}',
        b'{"a":1e3}',
        b'{"a":1.7976931348623159e308}',
        b'{"a":Infinity}',
        b'{"\\u0061":1}',
        b'{"\\ud800":1}',
        b'{"a":"\t"}',
        b"[]",
        b"1",
        b"null",
        b'{"a":"\xc3"}',
    ]
)


def _text(record: Any) -> st.SearchStrategy[bytes]:
    plain = json.dumps(record).encode()
    return st.sampled_from(
        [plain, json.dumps(record, indent=1, ensure_ascii=False).encode(), b" " + plain + b"\n"]
    )


_ITEMS = st.lists(
    st.one_of(st.none(), _RECORDS.flatmap(_text), _RECORDS.flatmap(_text), _HOSTILE, st.binary(max_size=6)),
    max_size=40,
)
_KNOWN = pa.struct(
    [
        ("a", pa.float64()),
        ("b", pa.list_(pa.int64())),
        ("c", pa.struct([("a", pa.string())])),
        ("d", pa.int32()),
    ]
)


@given(
    batches=st.lists(_ITEMS, max_size=3),
    known=st.sampled_from([None, _KNOWN]),
    grow=st.booleans(),
    nulls=st.booleans(),
    timestamps=st.booleans(),
)
@settings(max_examples=examples(100))
def test_the_bulk_way_says_what_the_row_wise_way_says(
    batches: list[list[bytes | None]], known: Any, grow: bool, nulls: bool, timestamps: bool
) -> None:
    def decoder(*, row_wise: bool) -> JsonDecoder:
        return JsonDecoder(Fitter(known, grow=grow, nulls=nulls, timestamps=timestamps), row_wise=row_wise)

    fast, slow = decoder(row_wise=False), decoder(row_wise=True)
    for items in batches:
        got, wanted = _decode(*items, decoder=fast), _decode(*items, decoder=slow)
        assert got.failures == wanted.failures
        assert got.rows.type == wanted.rows.type
        assert got.rows.equals(wanted.rows)
        assert got.indices.equals(wanted.indices)
        assert got.nulled == wanted.nulled
        got.rows.validate(full=True)


@given(items=_ITEMS, cut=st.integers(0, 40), nulls=st.booleans())
@settings(max_examples=examples(100))
def test_columns_are_the_same_wherever_batches_end(items: list[bytes | None], cut: int, nulls: bool) -> None:
    whole, parts = JsonDecoder(Fitter(nulls=nulls)), JsonDecoder(Fitter(nulls=nulls))
    wanted = _decode(*items, decoder=whole)
    got = [_decode(*items[:cut], decoder=parts), _decode(*items[cut:], decoder=parts)]
    kind = got[1].rows.type
    assert kind == wanted.rows.type
    rows = pa.concat_arrays([conform(one.rows, kind, rounded=True).rows for one in got])
    assert _pruned(rows.to_pylist()) == _pruned(wanted.rows.to_pylist())
    assert [one.reason for part in got for one in part.failures] == [one.reason for one in wanted.failures]


def _pruned(value: Any) -> Any:
    """Without what has no value inside: while a column has no type, that becomes null."""
    if isinstance(value, dict):
        value = {name: _pruned(one) for name, one in value.items()}
        return value if any(one is not None for one in value.values()) else None
    if isinstance(value, list):
        value = [_pruned(one) for one in value]
        return value if any(one is not None for one in value) else None
    return value


def test_good_records_around_a_bad_one_are_decoded_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, slow = JsonDecoder(Fitter()), 0

    def counted(item: bytes, way: Any = decoder._row) -> Any:
        nonlocal slow
        slow += 1
        return way(item)

    monkeypatch.setattr(decoder, "_row", counted)
    items = [b'{"a":%d}' % number for number in range(2000)]
    items[700] = b"{"
    items[1500] = b'{"a":1,"new":1}'
    decoded = _decode(*items, decoder=decoder)
    assert [one.index for one in decoded.failures] == [700]
    assert len(decoded.rows) == 1999
    assert slow < 200
