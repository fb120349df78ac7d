"""Debezium's envelopes, fields that say what a record does, and decoders opened by settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from penstock_iceberg_compactor.decode import Decoded, DecodeSettings, open_decoder
from penstock_iceberg_compactor.decode._connect import without_connect_schema

from penstock.errors import ConfigError


class _Column:
    """Items as the kernel gives them."""

    def __init__(self, *items: bytes | None) -> None:
        array = pa.array(items, pa.binary())
        valid, offsets, data = array.buffers()
        self.data, self.valid = data or b"", valid
        self.offsets = memoryview(offsets).cast("i")[: len(items) + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def _decode(decoder: Any, *items: Any) -> Decoded:
    texts = [item if isinstance(item, bytes | None) else json.dumps(item).encode() for item in items]
    decoded: Decoded = decoder.decode(_Column(*texts))
    return decoded


def _change(op: str, before: Any, after: Any) -> Any:
    return {"before": before, "after": after, "source": {"lsn": 1}, "op": op, "ts_ms": 5, "transaction": None}


_CHANGES = [
    _change("r", None, {"id": 1, "x": "a"}),
    _change("c", None, {"id": 2, "x": None, "more": 1.5}),
    _change("u", {"id": 1, "x": "a"}, {"id": 1, "x": "b"}),
    _change("d", {"id": 2, "x": None}, None),
    None,
    _change("d", None, None),
]
_ROWS = [
    {"id": 1, "x": "a", "more": None},
    {"id": 2, "x": None, "more": 1.5},
    {"id": 1, "x": "b", "more": None},
    {"id": 2, "x": None, "more": None},
    None,
    None,
]


@pytest.mark.parametrize("around", [False, True])
def test_debezium_changes_are_rows_with_operations(around: bool) -> None:
    decoder = open_decoder(DecodeSettings(format="json", debezium=True))
    schema = {"type": "struct", "fields": [{"field": "payload", "type": "struct"}]}
    items = [{"schema": schema, "payload": one} if around and one else one for one in _CHANGES]
    decoded = _decode(decoder, *items)
    assert decoded.failures == []
    assert decoded.rows.to_pylist() == _ROWS
    assert decoded.operations is not None
    assert decoded.operations.to_pylist() == ["r", "c", "u", "d", None, "d"]


def test_what_is_no_change_of_a_row_fails() -> None:
    decoder = open_decoder(DecodeSettings(format="json", debezium=True))
    good = _change("c", None, {"id": 1})
    decoded = _decode(
        decoder, good, _change("t", None, None), {"id": 1}, b"{", _change("c", {"id": 1}, None), good
    )
    assert [(one.index, one.reason.partition(" at ")[0]) for one in decoded.failures] == [
        (1, "it is no debezium envelope of a row's change: op=t"),
        (2, "it is no debezium envelope of a row's change: op=None"),
        (3, "it is no json: expecting property name enclosed in double quotes"),
        (4, "it is no debezium envelope of a row's change: op=c"),
    ]
    assert decoded.indices.to_pylist() == [0, 5]


def test_a_column_that_the_table_has_keeps_its_type_in_envelopes() -> None:
    known = pa.struct([("id", pa.int64()), ("at", pa.timestamp("us", "UTC"))])
    decoder = open_decoder(DecodeSettings(format="json", debezium=True), known)
    decoded = _decode(decoder, _change("c", None, {"id": 1, "at": "2026-01-31T12:00:00Z"}))
    assert decoded.rows.type == known
    assert len(_decode(decoder, _change("c", None, {"id": "x"})).failures) == 1


def test_a_field_says_what_a_record_does_and_is_no_column() -> None:
    decoder = open_decoder(DecodeSettings(format="json", operation_field="op"))
    decoded = _decode(
        decoder, {"op": "INSERT", "id": 1}, {"id": 2, "op": "d"}, {"id": 3}, None, {"op": "x", "id": 4}
    )
    assert decoded.rows.to_pylist() == [{"id": 1}, {"id": 2}, None]
    assert decoded.operations is not None
    assert decoded.operations.to_pylist() == ["c", "d", None]
    assert [(one.index, one.reason) for one in decoded.failures] == [
        (2, 'its operation is unknown: field "op" is None'),
        (4, 'its operation is unknown: field "op" is x'),
    ]
    decoder.bind(pa.struct([("id", pa.int64())]))
    assert _decode(decoder, {"op": "u", "id": 1}).rows.to_pylist() == [{"id": 1}]


def test_connects_schema_is_cut_off_whatever_surrounds_it() -> None:
    items = [
        b'{"schema":{"a":[1,"}"]},"payload":{"id":1}}',
        b'{"schema":{"a":[1,"}"]},"payload":{"id":2}}',
        b'{"schema":{"b":1},"payload":{"id":3}}',
        b' {"schema" : null , "payload" : {"id":4} } ',
        b'{"payload":{"id":5},"schema":{}}',
        b'{"schema":1}',
        b'{"schema":{"a":[1,"}"]},"payload":{"id":6},"x":1}',
        None,
        b"{",
    ]
    cut = without_connect_schema(pa.array(items, pa.binary())).to_pylist()
    assert [item and item.replace(b" ", b"") for item in cut[:4]] == [
        b'{"id":%d}' % number for number in (1, 2, 3, 4)
    ]
    assert cut[4:] == [items[4], b'{"schema":1}', b'{"id":6},"x":1', None, b"{"]


def test_a_payload_is_as_it_stands_however_many_schemas_there_are() -> None:
    """Of some texts of schemas the payload is cut off, of others it is looked for: what is wrong with it stays so."""
    payload = b'{"a":1,"a" : 2.50}'
    items = [b'{"schema":{"n":%d},"payload":%b}' % (number, payload) for number in range(20)]
    items += [b' { "schema" : {} , "payload" : %b } ' % payload, b'{"schema":"}", "payload":%b }' % payload]
    assert set(without_connect_schema(pa.array(items, pa.binary())).to_pylist()) == {payload}


def test_json_by_a_json_schema_or_an_iceberg_schema(tmp_path: Path) -> None:
    wanted = pa.struct(
        [
            ("id", pa.int64()),
            ("at", pa.timestamp("us", "UTC")),
            ("tags", pa.list_(pa.string())),
            ("o", pa.struct([("x", pa.float64())])),
            ("m", pa.map_(pa.string(), pa.int64())),
        ]
    )
    of_json = {
        "type": "object",
        "$defs": {"o": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}}},
        "properties": {
            "id": {"type": "integer"},
            "at": {"type": "string", "format": "date-time"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "o": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/o"}]},
            "m": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
    }
    element = {"type": "list", "element-id": 4, "element": "string", "element-required": False}
    inner = {"type": "struct", "fields": [{"id": 6, "name": "x", "type": "double", "required": False}]}
    pairs = {
        "type": "map",
        "key-id": 8,
        "key": "string",
        "value-id": 9,
        "value": "long",
        "value-required": False,
    }
    types = {"id": "long", "at": "timestamptz", "tags": element, "o": inner, "m": pairs}
    of_iceberg = {
        "type": "struct",
        "fields": [
            {"id": at, "name": name, "required": False, "type": kind}
            for at, (name, kind) in enumerate(types.items())
        ],
    }
    for schema in (of_json, of_iceberg):
        path = tmp_path / "schema.json"
        path.write_text(json.dumps(schema))
        decoder = open_decoder(DecodeSettings(format="json", schema_file=str(path)))
        decoded = _decode(decoder, {"id": 1, "m": {"k": 1}, "more": 1})
        assert decoded.rows.type == wanted
        assert decoded.rows.to_pylist()[0]["m"] == [("k", 1)]


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        ({"format": "avro"}, None, "avro needs either a schema registry or a file with its schema"),
        ({"format": "raw", "debezium": True}, None, "raw says nothing of operations"),
        ({"format": "json", "debezium": True, "operation_field": "op"}, None, "leave the field out"),
        ({"format": "json"}, "{", "the schema's file is no json"),
        ({"format": "json"}, '{"type":"string"}', "the schema has no properties"),
        (
            {"format": "json"},
            '{"properties":{"a":{"type":["string","integer"]}}}',
            "leaves a type open.*place=/a",
        ),
        ({"format": "json"}, '{"properties":{"a":{"$ref":"#"}}}', "nested too deep, or recursive"),
        ({"format": "json"}, '{"type":"struct","fields":[{"name":"a","type":"odd"}]}', "type=odd"),
        ({"format": "avro"}, '["nope"]', "a name that it doesn't declare: name=nope path="),
        ({"format": "protobuf"}, "x", "no file descriptor set"),
    ],
)
def test_wrong_settings_are_told_in_one_sentence(
    tmp_path: Path, settings: Any, text: Any, reason: str
) -> None:
    if text is not None:
        (tmp_path / "schema").write_text(text)
        settings = {**settings, "schema_file": str(tmp_path / "schema")}
    with pytest.raises(ConfigError, match=reason):
        open_decoder(DecodeSettings(**settings))


def test_a_schema_file_that_isnt_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the schema's file can't be read: path=.*gone"):
        open_decoder(DecodeSettings(format="avro", schema_file=str(tmp_path / "gone")))
