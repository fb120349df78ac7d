"""Protobuf to Arrow: every type, bad bytes, and the bulk way held against the row-wise one."""

from __future__ import annotations

import base64
import datetime
import functools
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_iceberg_compactor.decode import _protobuf
from penstock_iceberg_compactor.decode._decoder import Decoded
from penstock_iceberg_compactor.decode._protobuf import (
    ProtobufCodec,
    compile_files,
    descriptor_pool,
    message_at,
)
from tests.arrow_text import visible
from tests.depth import examples

from penstock.errors import UnavailableError

_TEXT = """
syntax = "proto3";
package x;
import "google/protobuf/timestamp.proto";
enum Color { NONE = 0; RED = 1; }
message In { int32 a = 1; repeated string names = 2; message Deep { bool b = 1; } }
message M {
  int64 id = 1; string s = 2; bytes b = 3; double d = 4; float f = 5; bool ok = 6; Color color = 7;
  In inner = 8; repeated In items = 9; map<string, int64> counts = 10; map<int32, In> ins = 11;
  google.protobuf.Timestamp ts = 12; optional int32 opt = 14;
  oneof one { string os = 15; int64 oi = 16; In om = 17; }
  uint32 u32 = 18; uint64 u64 = 19; sint64 s64 = 20; fixed64 f64 = 21; repeated int32 nums = 22;
  repeated Color colors = 23; In.Deep deep = 24; sfixed32 sf = 25; repeated google.protobuf.Timestamp times = 26;
}
"""
_ODD = """
syntax = "proto3";
package y;
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/wrappers.proto";
message Odd {
  google.protobuf.Duration lasts = 1; google.protobuf.Struct any = 2; Odd next = 3; google.protobuf.Empty none = 4;
  google.protobuf.StringValue w = 5; google.protobuf.Int64Value n = 6;
}
"""
_TWO = """
syntax = "proto2";
package z;
message Two { optional int32 a = 1 [default = 7]; optional string s = 2; repeated int32 l = 3; required bool r = 4; }
"""


@functools.cache
def _message(text: str, *indexes: int) -> Any:
    return message_at(descriptor_pool(compile_files({"t.proto": text})), "t.proto", indexes)


@functools.cache
def _codec(text: str, *indexes: int, row_wise: bool = False) -> ProtobufCodec:
    return ProtobufCodec(_message(text, *indexes), row_wise=row_wise)


def _decode(*items: bytes, row_wise: bool = False) -> Decoded:
    return _codec(_TEXT, 1, row_wise=row_wise).decode(pa.array(items, pa.binary()))


@pytest.mark.parametrize("row_wise", [False, True])
def test_each_type_has_its_arrow_type(row_wise: bool) -> None:
    made = message_factory.GetMessageClass(_message(_TEXT, 1))()
    made.id, made.s, made.b, made.d, made.f, made.ok, made.color = -5, "é", b"\xff", 0.1, 0.5, True, 1
    made.inner.a = 1
    made.items.add(names=["x"])
    made.counts["k"] = 2
    made.ins[3].a = 4
    made.ts.seconds, made.ts.nanos = -1, 999_999_999
    made.opt = 0
    made.oi = 6
    made.u32, made.u64, made.s64, made.f64 = 2**32 - 1, 2**64 - 1, -1, 1
    made.nums.append(7)
    made.colors.append(9)
    (row,) = _decode(made.SerializeToString(), row_wise=row_wise).rows.to_pylist()
    assert row == {
        "id": -5,
        "s": "é",
        "b": b"\xff",
        "d": 0.1,
        "f": 0.5,
        "ok": True,
        "color": "RED",
        "inner": {"a": 1, "names": []},
        "items": [{"a": 0, "names": ["x"]}],
        "counts": [("k", 2)],
        "ins": [(3, {"a": 4, "names": []})],
        "ts": datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC),
        "opt": 0,
        "os": None,
        "oi": 6,
        "om": None,
        "u32": 2**32 - 1,
        "u64": Decimal(2**64 - 1),
        "s64": -1,
        "f64": Decimal(1),
        "nums": [7],
        "colors": ["9"],
        "deep": None,
        "sf": 0,
        "times": [],
    }


@pytest.mark.parametrize("row_wise", [False, True])
def test_an_empty_value_is_a_message_of_defaults(row_wise: bool) -> None:
    (row,) = _decode(b"", row_wise=row_wise).rows.to_pylist()
    assert (row["id"], row["s"], row["opt"], row["inner"], row["nums"]) == (0, "", None, None, [])


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize(
    "item", [b"\x08", b"\x12\x05a", b"\x12\x01\xff", b"\x0b", b"\x00\x00", b"\x08" + b"\xff" * 11]
)
def test_bytes_that_are_no_message_fail(item: bytes, row_wise: bool) -> None:
    decoded = _decode(*[b"\x08\x01"] * 20, item, *[b"\x08\x01"] * 20, row_wise=row_wise)
    assert [(one.index, one.reason) for one in decoded.failures] == [(20, "it is no message of its schema")]
    assert len(decoded.rows) == 40


def test_what_tables_dont_have_is_told_in_what_they_have() -> None:
    made = message_factory.GetMessageClass(_message(_ODD, 0))()
    made.lasts.seconds = 2
    made.any["k"] = [1, "x"]
    made.next.lasts.seconds = 1
    made.none.SetInParent()
    made.w.value = ""
    decoded = _codec(_ODD, 0).decode(pa.array([made.SerializeToString()], pa.binary()))
    assert decoded.rows.to_pylist() == [
        {
            "lasts": 2_000_000,
            "any": '{"k": [1.0, "x"]}',
            "next": b"\n\x02\x08\x01",
            "w": "",
            "n": None,
        }
    ]


@pytest.mark.parametrize("row_wise", [False, True])
def test_proto2_fields_that_arent_set_are_null(row_wise: bool) -> None:
    codec = _codec(_TWO, 0, row_wise=row_wise)
    assert codec.decode(pa.array([b"\x20\x01"], pa.binary())).rows.to_pylist() == [
        {"a": None, "s": None, "l": [], "r": True}
    ]


def test_messages_are_found_by_their_indexes() -> None:
    assert _message(_TEXT, 0, 0).full_name == "x.In.Deep"
    with pytest.raises(ValueError, match=r"no message at these indexes: indexes=\[0, 1\]"):
        _message(_TEXT, 0, 1)


def test_schemas_are_text_or_descriptors_and_import_each_other() -> None:
    base = 'syntax = "proto3"; package a; message Base { int32 x = 1; }'
    (compiled,) = compile_files({"a/base.proto": base})
    text = 'syntax = "proto3"; import "a/base.proto"; message Top { a.Base base = 1; }'
    for source in (base, base64.b64encode(compiled.SerializeToString()).decode()):
        files = compile_files({"a/base.proto": source, "top": text})
        codec = ProtobufCodec(message_at(descriptor_pool(files), "top", [0]))
        assert codec.type == pa.struct([("base", pa.struct([("x", pa.int32())]))])


@pytest.mark.parametrize(
    "name", ["--python_out={folder}", "-I/", "--plugin=protoc-gen-x=/bin/true", "@{folder}/a"]
)
def test_a_name_that_looks_like_an_option_is_a_name(tmp_path: Path, name: str) -> None:
    """Names of references are whatever somebody registered: none makes the compiler write files or run programs."""
    (tmp_path / "a").write_text("--version")
    name = name.format(folder=tmp_path)
    files = compile_files(
        {name: 'syntax = "proto3"; message A {}', "top": 'syntax = "proto3"; message Top {}'}
    )
    assert sorted(one.message_type[0].name for one in files) == ["A", "Top"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("names", [["a", "a/b"], ["x" * 300], [""], ["../a"]])
def test_names_that_no_files_can_have_are_refused(names: list[str]) -> None:
    """Not as a failure of a disk, after which the table would wait for one that works."""
    with pytest.raises(
        ValueError, match=r"the schema has a file name that (no file can have|leads elsewhere)"
    ):
        compile_files({name: f'syntax = "proto3"; message A{at} {{}}' for at, name in enumerate(names)})


def test_a_schema_that_crashes_its_compiler_is_refused_in_words() -> None:
    """It ran in the process that makes all tables, which ended each time that the record was read."""
    deep = "{x:[" * 1000 + "]}" * 1000
    text = f"""syntax = "proto3"; import "google/protobuf/descriptor.proto";
        extend google.protobuf.FileOptions {{ X x = 50000; }} message X {{ repeated X x = 1; }}
        option (x) = {{ x: [{deep}] }};"""
    with pytest.raises(ValueError, match="the schema can't be compiled: it is nested too deep, or too large"):
        compile_files({"a.proto": text})
    with pytest.raises(
        ValueError, match=r"the schema can't be compiled: a.proto:1:1: Expected top-level statement"
    ):
        compile_files({"a.proto": "garbage"})


def test_a_compiler_that_fails_itself_says_nothing_of_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a schema is remembered; a host short of memory is better off later."""
    monkeypatch.setattr(_protobuf, "_COMPILER", "raise MemoryError('none')")
    with pytest.raises(
        UnavailableError, match=r"compiles a protobuf schema failed: cause=.*MemoryError: none"
    ):
        compile_files({"a.proto": "garbage"})


def test_schemas_are_compiled_where_the_host_has_lower_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))"
    monkeypatch.setattr(_protobuf, "_COMPILER", f"{lower}\n{_protobuf._COMPILER}")
    assert compile_files({"a.proto": 'syntax = "proto3"; message A {}'})


def test_a_file_that_isnt_there_is_named() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="t", dependency=["gone.proto"])
    with pytest.raises(ValueError, match=r"imports a file that isn't there: name=gone\.proto"):
        descriptor_pool([file])


_SMALL = st.integers(-(2**31), 2**31 - 1)
_LONG = st.integers(-(2**63), 2**63 - 1)
_IN = st.fixed_dictionaries({}, optional={"a": _SMALL, "names": st.lists(st.text(max_size=2), max_size=2)})
_TS = st.fixed_dictionaries(
    {},
    optional={
        "seconds": st.integers(-(2**40), 2**40) | st.integers(-(2**43), 2**43),
        "nanos": st.integers(0, 10**9 - 1) | _SMALL,
    },
)
_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "id": _LONG,
        "s": st.text(max_size=3),
        "b": st.binary(max_size=3),
        "d": st.floats(allow_nan=False),
        "f": st.floats(width=32, allow_nan=False),
        "color": st.integers(-1, 3),
        "inner": _IN,
        "items": st.lists(_IN, max_size=2),
        "counts": st.dictionaries(st.text(max_size=2), _LONG, max_size=2),
        "ts": _TS,
        "times": st.lists(_TS, max_size=2),
        "opt": _SMALL,
        "os": st.text(max_size=2),
        "oi": _LONG,
        "u32": st.integers(0, 2**32 - 1),
        "u64": st.integers(0, 2**64 - 1),
        "s64": _LONG,
        "nums": st.lists(_SMALL, max_size=3),
        "colors": st.lists(st.integers(0, 3), max_size=3),
        "sf": _SMALL,
    },
)


def test_of_several_fields_of_a_oneof_the_last_one_counts() -> None:
    kind = message_factory.GetMessageClass(_message(_TEXT, 1))
    one, other = kind(oi=5).SerializeToString(), kind(os="x").SerializeToString()
    rows = _decode(one + other, other + one, one).rows.to_pylist()
    assert [(row["oi"], row["os"]) for row in rows] == [(None, "x"), (5, None), (5, None)]


def test_of_several_values_of_a_key_the_last_one_counts() -> None:
    kind = message_factory.GetMessageClass(_message(_TEXT, 1))
    one, other = kind(counts={"a": 1, "b": 2}).SerializeToString(), kind(counts={"a": 3}).SerializeToString()
    rows = _decode(one + other, one).rows.to_pylist()
    assert [sorted(row["counts"]) for row in rows] == [[("a", 3), ("b", 2)], [("a", 1), ("b", 2)]]


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(b"\xbb\x06\x14", id="an unknown group that ends as another"),
        pytest.param(b"\x42\x02\x3b\x14", id="such a group in a message inside"),
        pytest.param(b"\xbb\x06" * 110 + b"\xbc\x06" * 110, id="unknown groups nested too deep"),
        pytest.param(b"\x88\x80\x80\x80\x10\x01", id="a tag beyond 32 bits"),
        pytest.param(b"\x88\x80\x80\x80\x80\x00\x01", id="an overlong tag"),
    ],
)
@pytest.mark.parametrize("beside", [0, 100])
def test_what_protobuf_refuses_is_refused_whatever_is_beside_it(item: bytes, beside: int) -> None:
    got = _decode(item, *[b"\x08\x01"] * beside)
    assert [(failure.index, failure.reason) for failure in got.failures] == [
        (0, "it is no message of its schema")
    ]
    assert len(got.rows) == beside


def test_good_records_are_looked_at_together_and_no_object_is_made_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = message_factory.GetMessageClass(_message(_TEXT, 1))
    items = [kind(oi=number, ts={"seconds": number}).SerializeToString() for number in range(300)]
    codec = ProtobufCodec(_message(_TEXT, 1))
    alone: list[bytes] = []

    class Counted:
        DESCRIPTOR = kind.DESCRIPTOR

        @staticmethod
        def FromString(item: bytes) -> Any:  # noqa: N802 - as Protobuf has it
            alone.append(item)
            return kind.FromString(item)

    monkeypatch.setattr(codec, "_class", Counted)
    assert len(codec.decode(pa.array(items, pa.binary())).rows) == 300
    assert alone == []
    codec.decode(pa.array([b"b\x02\x08\x01b\x00"], pa.binary()))
    assert alone, "one to be merged is looked at alone"


def test_a_schema_that_takes_the_name_of_the_list_is_read_all_the_same() -> None:
    text = 'syntax = "proto3"; message penstock_lists { int64 a = 1; }'
    got = _codec(text, 0).decode(pa.array([b"\x08\x01", b"\x08\x02"], pa.binary()))
    assert got.rows.to_pylist() == [{"a": 1}, {"a": 2}]


def test_a_schema_at_which_the_bulk_decoder_panics_is_read_all_the_same() -> None:
    """ptars refuses names that differ by case, by a panic, which no ``except Exception`` stops."""
    got = _codec('syntax = "proto3"; message M { int32 a = 1; string A = 2; }', 0).decode(
        pa.array([b"\x08\x01\x12\x01x"] * 100, pa.binary())
    )
    assert got.rows.to_pylist() == [{"a": 1, "A": "x"}] * 100


def test_a_timestamp_that_is_there_twice_is_merged() -> None:
    rows = _decode(b"b\x02\x08\x01b\x00", *[b"b\x00"] * 100).rows.to_pylist()
    assert [row["ts"].timestamp() for row in rows] == [1, *[0] * 100]


@given(data=st.data())
@settings(max_examples=examples(100))
def test_the_bulk_way_says_what_the_row_wise_way_says(data: st.DataObject) -> None:
    kind = message_factory.GetMessageClass(_message(_TEXT, 1))
    good = _MESSAGES.map(lambda values: kind(**values).SerializeToString(deterministic=True))
    cut = st.tuples(good, st.integers(1, 3)).map(lambda one: one[0][: -one[1]])
    changed = st.tuples(good, st.integers(0, 30), st.integers(0, 255)).map(
        lambda one: one[0][: one[1]] + bytes([one[2]]) + one[0][one[1] + 1 :]
    )
    twice = st.tuples(good, good).map(b"".join)  # messages merge
    bad = st.one_of(cut, changed, twice, st.binary(max_size=4))
    items = data.draw(st.lists(st.one_of(good, good, bad), max_size=30))
    got, wanted = _decode(*items), _decode(*items, row_wise=True)
    assert got.failures == wanted.failures
    assert got.rows.type == wanted.rows.type
    assert visible(got.rows, maps_in_order=False) == visible(wanted.rows, maps_in_order=False)
    assert got.indices.equals(wanted.indices)
    got.rows.validate(full=True)
