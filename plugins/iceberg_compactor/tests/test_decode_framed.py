"""Confluent's wire format and its registry: a small HTTP server stands for that."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from penstock_iceberg_compactor.decode import DecodeSettings, SchemaRegistry, open_decoder
from penstock_iceberg_compactor.decode._decoder import Decoded
from tests.schema_registry import SchemaRegistryServer

from penstock.errors import ConfigError, NotFoundError, UnavailableError


@pytest.fixture
def registry() -> Iterator[SchemaRegistryServer]:
    with SchemaRegistryServer() as server:
        yield server


def _client(registry: SchemaRegistryServer, **options: Any) -> SchemaRegistry:
    return SchemaRegistry(registry.url + "/", **options)


def _record(**fields: Any) -> Any:
    return {
        "type": "record",
        "name": "R",
        "fields": [{"name": name, "type": kind} for name, kind in fields.items()],
    }


def _avro(number: int, schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), value)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


def _decoder(client: SchemaRegistry, format_: Any = "avro", known: Any = None, **options: Any) -> Any:
    return open_decoder(DecodeSettings(format=format_, registry=client, **options), known)


def _decode(decoder: Any, *items: bytes | None) -> Decoded:
    decoded: Decoded = decoder.decode_array(pa.array(items, pa.binary()))
    return decoded


_OLD = _record(a="int", b="string")
_NEW = _record(b="string", c=["null", "double"], a="long")


def test_records_of_several_schemas_have_the_columns_of_all(registry: SchemaRegistryServer) -> None:
    registry.add(1, _OLD)
    registry.add(2, _NEW)
    decoder = _decoder(_client(registry))
    items = [_avro(1, _OLD, {"a": 1, "b": "x"}), None, _avro(2, _NEW, {"a": 2**40, "b": "y", "c": 0.5})]
    items += [_avro(1, _OLD, {"a": 3, "b": "z"})]
    decoded = _decode(decoder, *items)
    assert decoded.rows.type == pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())])
    assert decoded.rows.to_pylist() == [
        {"a": 1, "b": "x", "c": None},
        None,
        {"a": 2**40, "b": "y", "c": 0.5},
        {"a": 3, "b": "z", "c": None},
    ]
    assert decoded.indices.to_pylist() == [0, 1, 2, 3]
    assert registry.asked == ["/schemas/ids/1", "/schemas/ids/2"]
    _decode(decoder, *items)
    assert len(registry.asked) == 2


def test_a_schema_that_contradicts_the_table_fails_only_records_with_such_values(
    registry: SchemaRegistryServer,
) -> None:
    optional = _record(a=["null", "string"], b="string")
    registry.add(1, _OLD)
    registry.add(2, optional)
    items = [_avro(2, optional, {"a": "no", "b": "x"}), _avro(2, optional, {"a": None, "b": "y"})]
    items += [_avro(1, _OLD, {"a": 1, "b": "z"})]
    known = pa.struct([("a", pa.int32())])
    decoded = _decode(_decoder(_client(registry), known=known), *items)
    assert [(one.index, one.reason, one.misfit) for one in decoded.failures] == [
        (0, 'column "a" is a string in records and an int in the table', True)
    ]
    assert decoded.rows.to_pylist() == [{"a": None, "b": "y"}, {"a": 1, "b": "z"}]
    decoded = _decode(_decoder(_client(registry), known=known, nulls=True), *items)
    assert decoded.nulled == 1
    assert decoded.lost is not None
    assert (decoded.lost.index, decoded.lost.misfit) == (0, True)
    assert decoded.rows.to_pylist()[0] == {"a": None, "b": "x"}


def test_a_value_that_is_no_record_is_a_column_of_the_table(registry: SchemaRegistryServer) -> None:
    registry.add(1, '"string"')
    item = _avro(1, "string", "x")
    decoder = _decoder(_client(registry))
    assert _decode(decoder, item).rows.to_pylist() == ["x"]
    for columns in (pa.struct([]), pa.struct([("value", pa.large_string())])):
        decoder = _decoder(_client(registry))
        decoder.bind(columns)
        assert _decode(decoder, item, None).rows.to_pylist() == [{"value": "x"}, None]


def test_a_record_whose_schema_is_missing_or_no_schema_fails_alone(registry: SchemaRegistryServer) -> None:
    registry.add(1, _OLD)
    registry.add(3, "{", schemaType="AVRO")
    registry.add(4, "{}", schemaType="JSON")
    good = _avro(1, _OLD, {"a": 1, "b": "x"})
    bad = b"\0\0\0\0"
    decoded = _decode(
        _decoder(_client(registry)), good, bad + b"\7x", bad + b"\3x", bad + b"\4x", b"{}", b"", good
    )
    assert [(one.index, one.reason.partition(": url")[0]) for one in decoded.failures] == [
        (1, "the schema registry has no such schema"),
        (
            2,
            "the schema is no json: expecting property name enclosed in double quotes id=3",
        ),
        (3, "its schema isn't for avro: type=JSON id=4"),
        (4, "it doesn't begin with the id of a schema"),
        (5, "it doesn't begin with the id of a schema"),
    ]
    assert decoded.indices.to_pylist() == [0, 6]


def test_a_hostile_producer_cant_ask_the_registry_without_end(registry: SchemaRegistryServer) -> None:
    items = [b"\0" + number.to_bytes(4, "big") for number in range(1, 400)]
    decoded = _decode(_decoder(_client(registry)), *items)
    assert len(decoded.failures) == 399
    assert len(registry.asked) == 200
    assert "too many schemas are named side by side" in decoded.failures[-1].reason


def test_a_hostile_producer_cant_have_records_of_known_schemas_fail(registry: SchemaRegistryServer) -> None:
    """200 ids that nobody has, in front of them, made all others too many."""
    registry.add(1000, _OLD)
    decoder = _decoder(_client(registry))
    good = _avro(1000, _OLD, {"a": 1, "b": "x"})
    _decode(decoder, good)
    decoded = _decode(decoder, *[b"\0" + number.to_bytes(4, "big") for number in range(1, 300)], good)
    assert len(decoded.failures) == 299
    assert decoded.indices.to_pylist() == [299]
    assert len(registry.asked) == 201


def test_of_new_schemas_those_of_most_records_are_asked_for(registry: SchemaRegistryServer) -> None:
    """200 ids made up, in front of others' records of a new schema, made these too many."""
    registry.add(1000, _OLD)
    good = _avro(1000, _OLD, {"a": 1, "b": "x"})
    made_up = [b"\0" + number.to_bytes(4, "big") for number in range(1, 300)]
    decoded = _decode(_decoder(_client(registry)), *made_up, good, good)
    assert decoded.indices.to_pylist() == [299, 300]
    assert len(registry.asked) == 200


@pytest.mark.parametrize("answer", [b"<html>no such page</html>", {"error_code": 404}, ["404"], b""])
def test_a_404_that_isnt_a_registrys_says_nothing_of_schemas(
    registry: SchemaRegistryServer, answer: Any
) -> None:
    """A proxy without a backend, or a wrong path: all records were bad ones, and dead letters."""
    registry.answers["/schemas/ids/1"] = 404, answer
    with pytest.raises(UnavailableError, match="what answers for the schema registry knows no schemas"):
        _decode(_decoder(_client(registry)), b"\0\0\0\0\1")


def test_a_number_that_is_no_id_fails_alone_and_isnt_asked_for(registry: SchemaRegistryServer) -> None:
    """Registries have signed ids, and say of others what they say of a wrong path."""
    failure = _decode(_decoder(_client(registry)), b"\0\xff\0\0\0").failures[0]
    assert failure.reason == "it names a schema by a number that is no id: id=4278190080"
    assert not registry.asked


def test_a_registry_that_fails_is_asked_again_and_then_unavailable(registry: SchemaRegistryServer) -> None:
    registry.answers["/schemas/ids/1"] = 503, {}
    item = _avro(1, _OLD, {"a": 1, "b": "x"})
    decoder = _decoder(_client(registry, attempts=2))
    with pytest.raises(UnavailableError, match=r"the schema registry refuses: .* status=503"):
        _decode(decoder, item)
    assert len(registry.asked) == 2
    registry.add(1, _OLD)
    assert len(_decode(decoder, item).rows) == 1


@pytest.mark.parametrize("answer", [(401, {}), (200, b"no json"), (200, {"x": 1}), (200, b"<" * 2**23)])
def test_an_answer_that_is_no_schema_is_unavailable(registry: SchemaRegistryServer, answer: Any) -> None:
    registry.answers["/schemas/ids/1"] = answer
    with pytest.raises(UnavailableError):
        _client(registry, attempts=1).schema(1)


def test_secrets_are_sent_and_never_shown(
    registry: SchemaRegistryServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = SchemaRegistry(f"http://me:hunt%40er@{registry.address}", attempts=1)
    with pytest.raises(NotFoundError) as missing:
        client.schema(1)
    assert registry.authorizations == {"Basic bWU6aHVudEBlcg=="}
    closed = SchemaRegistry("http://me:hunter@127.0.0.1:1", attempts=1)
    with pytest.raises(UnavailableError) as unreachable:
        closed.schema(1)
    shown = f"{missing.value} {unreachable.value} {client.location} {closed.location} {caplog.text}"
    assert "hunt" not in shown
    assert "bWU6" not in shown
    token = SchemaRegistry(registry.url, token="secret-token", attempts=1)
    with pytest.raises(NotFoundError):
        token.schema(1)
    assert "Bearer secret-token" in registry.authorizations


def test_a_url_that_is_none_is_refused_without_its_secrets() -> None:
    with pytest.raises(ConfigError, match=r"no http url: url=ftp://host/x$"):
        SchemaRegistry("ftp://me:hunter@host/x")


def test_only_so_many_schemas_are_remembered(registry: SchemaRegistryServer) -> None:
    for number in range(4):
        registry.add(number, _OLD)
    client = _client(registry, schemas_max=2)
    for number in (0, 1, 0, 2, 0, 1):
        client.schema(number)
    assert registry.asked == [f"/schemas/ids/{number}" for number in (0, 1, 2, 1)]


def test_only_so_many_bytes_of_schemas_are_remembered(
    registry: SchemaRegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of 4 MiB, each with 256 that it refers to, were remembered for each topic."""
    monkeypatch.setattr("penstock_iceberg_compactor.decode.registry._KEPT_BYTES_MAX", 10_000)
    for number in range(4):
        registry.add(number, json.dumps(_OLD) + " " * 4_000)
    client = _client(registry)
    for number in (0, 1, 0, 2, 0, 1):
        client.schema(number)
    assert registry.asked == [f"/schemas/ids/{number}" for number in (0, 1, 2, 1)]
    refer = [{"name": "n.In", "subject": "in", "version": 1}]
    registry.add(4, _OLD, references=refer)
    registry.answers["/subjects/in/versions/1"] = 200, {"schema": json.dumps(_OLD) + " " * 10_000}
    monkeypatch.setattr("penstock_iceberg_compactor.decode.registry._SCHEMA_BYTES_MAX", 10_000)
    with pytest.raises(NotFoundError, match="larger than is read with those that it refers to"):
        client.schema(4)


def test_what_a_registry_hasnt_is_asked_for_once_for_all_records_that_came_together(
    registry: SchemaRegistryServer,
) -> None:
    client = _client(registry)
    decoder = _decoder(client)
    item = _avro(7, _OLD, {"a": 1, "b": "x"})
    for _ in range(3):  # parts of what came together
        assert "has no such schema" in _decode(decoder, item).failures[0].reason
    assert registry.asked == ["/schemas/ids/7"]
    registry.add(7, _OLD)
    client.begin_batch()
    assert not _decode(decoder, item).failures


def test_references_are_followed(registry: SchemaRegistryServer) -> None:
    inner = {"type": "record", "name": "n.In", "fields": [{"name": "x", "type": "int"}]}
    middle = {"type": "record", "name": "n.Mid", "fields": [{"name": "i", "type": "n.In"}]}
    refer = [{"name": "n.Mid", "subject": "mid/x", "version": 2}]
    registry.add(1, _record(m="n.Mid"), references=refer)
    registry.answers["/subjects/mid%2Fx/versions/2"] = (
        200,
        {"schema": json.dumps(middle), "references": [{"name": "n.In", "subject": "in", "version": 1}]},
    )
    registry.answers["/subjects/in/versions/1"] = 200, {"schema": json.dumps(inner)}
    decoded = _decode(_decoder(_client(registry)), b"\0\0\0\0\1\x0a")
    assert decoded.rows.to_pylist() == [{"m": {"i": {"x": 5}}}]


def test_protobuf_is_found_by_message_indexes(registry: SchemaRegistryServer) -> None:
    text = (
        'syntax = "proto3"; message A { int32 a = 1; message B { string b = 1; } } message C { int32 a = 1; }'
    )
    registry.add(7, text, schemaType="PROTOBUF")
    header = b"\0\0\0\0\7"
    decoder = _decoder(_client(registry), "protobuf")
    assert _decode(decoder, header + b"\0\x08\x05").rows.to_pylist() == [{"a": 5}]
    decoded = _decode(
        decoder,
        header + b"\0\x08\x05",
        header + b"\4\0\0\x0a\1x",
        header + b"\2\2\x08\x06",
        header,
        header + b"\2\x08",
        header + b"\0",
    )
    assert decoded.rows.to_pylist() == [
        {"a": 5, "b": None},
        {"a": None, "b": "x"},
        {"a": 6, "b": None},
        {"a": 0, "b": None},
    ]
    assert [(one.index, one.reason) for one in decoded.failures] == [
        (3, "it has no message indexes behind the schema's id"),
        (4, "its schema has no message at these indexes: indexes=[4] id=7"),
    ]


def test_indexes_made_up_within_one_schema_leave_others_their_question(
    registry: SchemaRegistryServer,
) -> None:
    for number in (7, 8):
        registry.add(number, 'syntax = "proto3"; message A { int32 a = 1; }', schemaType="PROTOBUF")
    made_up = [b"\0\0\0\0\7\2" + bytes([number % 64 * 2 | 0x80, number // 64]) for number in range(1, 300)]
    decoded = _decode(_decoder(_client(registry), "protobuf"), *made_up, b"\0\0\0\0\x08\0\x08\x05")
    assert decoded.indices.to_pylist() == [299]
    reasons = [one.reason.partition(":")[0] for one in decoded.failures]
    assert reasons.count("too many schemas are named side by side") == 100


def test_json_in_the_wire_format_is_json(registry: SchemaRegistryServer) -> None:
    decoded = _decode(_decoder(_client(registry), "json"), b'\0\0\0\0\1{"a":1}', None, b'{"a":2}')
    assert decoded.rows.to_pylist() == [{"a": 1}, None, {"a": 2}]
    assert registry.asked == []
