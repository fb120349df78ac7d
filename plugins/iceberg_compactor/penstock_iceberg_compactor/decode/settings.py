"""A decoder for what a topic's configs say its keys or values are."""

from __future__ import annotations

__all__ = ("FORMATS", "DecodeSettings", "fault_of", "open_decoder")

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from penstock.errors import ConfigError
from penstock_iceberg_compactor.decode._arrow import plain
from penstock_iceberg_compactor.decode._decoder import Decoder, PlainDecoder
from penstock_iceberg_compactor.decode._framed import Codec, FramedDecoder, GivenDecoder
from penstock_iceberg_compactor.decode._given import struct_of
from penstock_iceberg_compactor.decode._json import JsonDecoder
from penstock_iceberg_compactor.decode._shapes import Fitter, Limits
from penstock_iceberg_compactor.decode.changes import DebeziumDecoder, OperationDecoder
from penstock_iceberg_compactor.decode.registry import SchemaRegistry

FORMATS = ("raw", "string", "json", "avro", "protobuf")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """What keys or values are."""

    format: Literal["raw", "string", "json", "avro", "protobuf"]
    #: A file with the schema: an Avro schema; a file descriptor set of ``protoc``, or .proto text; a JSON schema, or
    #: an Iceberg schema in JSON. Without one, JSON is inferred and the others ask the registry.
    schema_file: str = ""
    #: Of protobuf with a file: the message's full name; by default the first message of the last file.
    message: str = ""
    #: Values begin with a schema's id, which is asked for here; of JSON it is only cut off.
    registry: SchemaRegistry | None = None
    #: Values are changes in Debezium's envelopes; of JSON with or without Kafka Connect's schema around.
    debezium: bool = False
    #: Values are changes, and this field says which.
    operation_field: str = ""
    #: JSON: Kafka Connect's schema is around each value, as around Debezium's keys.
    connect: bool = False
    #: What doesn't fit its column becomes null, instead of failing its record.
    nulls: bool = False
    #: JSON: strings that are RFC 3339 timestamps become timestamps.
    timestamps: bool = False
    #: JSON: whole numbers become doubles, too.
    doubles: bool = False
    limits: Limits = field(default_factory=Limits)


def fault_of(settings: DecodeSettings) -> str:
    """What is wrong with settings, one sentence; empty if nothing is. Looks at no file."""
    if settings.format in ("avro", "protobuf") and bool(settings.schema_file) == (
        settings.registry is not None
    ):
        return f"{settings.format} needs either a schema registry or a file with its schema"
    if settings.format in ("raw", "string") and settings.schema_file:
        return f"{settings.format} has no schema: leave the file out"
    if settings.format in ("raw", "string") and (settings.debezium or settings.operation_field):
        return f"{settings.format} says nothing of operations: take json, avro or protobuf"
    if settings.debezium and settings.operation_field:
        return "debezium's envelopes have their operation: leave the field out"
    if settings.message and settings.format != "protobuf":
        return "only protobuf has messages to choose from"
    return ""


def open_decoder(settings: DecodeSettings, known: pa.DataType | None = None) -> Decoder:
    """The decoder for ``settings``; ``known`` are the columns that a table has for what it decodes (a struct type).

    Reads the schema file. Raises ConfigError with one sentence if settings are wrong, or the file is.
    """
    fault = fault_of(settings)
    if fault:
        raise ConfigError(fault)
    inner = known
    if known is not None and settings.debezium:
        inner = pa.struct([("before", known), ("after", known)])
    if known is not None and settings.operation_field:
        inner = pa.struct([*known, (settings.operation_field, pa.string())])
    try:
        decoder = _open(settings, inner)
    except OSError as error:
        raise ConfigError(
            f"the schema's file can't be read: path={settings.schema_file} fault={error}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{error} path={settings.schema_file}") from None
    if settings.debezium:
        return DebeziumDecoder(decoder)
    return OperationDecoder(decoder, settings.operation_field) if settings.operation_field else decoder


def _open(settings: DecodeSettings, known: pa.DataType | None) -> Decoder:
    if settings.format in ("raw", "string"):
        return PlainDecoder(text=settings.format == "string")
    if settings.format == "json":
        return _json(settings, known)
    if settings.registry is not None:
        registry = settings.registry
        if settings.format == "avro":
            return FramedDecoder(
                lambda number, _: _avro_of(registry, number), known=known, nulls=settings.nulls
            )
        return FramedDecoder(
            lambda number, indexes: _protobuf_of(registry, number, indexes),
            indexed=True,
            known=known,
            nulls=settings.nulls,
        )
    data = Path(settings.schema_file).read_bytes()
    codec = _avro(data.decode()) if settings.format == "avro" else _protobuf(data, settings)
    return GivenDecoder(codec, known=known, nulls=settings.nulls)


def _json(settings: DecodeSettings, known: pa.DataType | None) -> Decoder:
    options: dict[str, Any] = {
        "limits": settings.limits,
        "nulls": settings.nulls,
        "timestamps": settings.timestamps,
        "doubles": settings.doubles,
    }
    if settings.schema_file:
        try:
            schema = json.loads(Path(settings.schema_file).read_bytes())
        except (ValueError, RecursionError):
            raise ValueError("the schema's file is no json") from None
        fitter = Fitter(struct_of(schema), grow=False, **options)
    else:
        fitter = Fitter(None if known is None else plain(known), **options)
    return JsonDecoder(
        fitter, framed=settings.registry is not None, connect=settings.connect or settings.debezium
    )


def _avro(text: str) -> Codec:
    from penstock_iceberg_compactor.decode._avro import AvroCodec

    return AvroCodec.of(text)


def _avro_of(registry: SchemaRegistry, number: int) -> Codec:
    from penstock_iceberg_compactor.decode._avro import AvroCodec

    schema = registry.schema(number)
    if schema.type != "AVRO":
        raise ValueError(f"its schema isn't for avro: type={schema.type} id={number}")
    return AvroCodec.of(schema.text, [text for _, text in schema.references])


def _protobuf_of(registry: SchemaRegistry, number: int, indexes: tuple[int, ...]) -> Codec:
    from penstock_iceberg_compactor.decode import _protobuf

    schema = registry.schema(number)
    if schema.type != "PROTOBUF":
        raise ValueError(f"its schema isn't for protobuf: type={schema.type} id={number}")
    name = f"penstock-schema-{number}.proto"
    pool = _protobuf.descriptor_pool(_protobuf.compile_files({**dict(schema.references), name: schema.text}))
    return _protobuf.ProtobufCodec(_protobuf.message_at(pool, name, indexes))


def _protobuf(data: bytes, settings: DecodeSettings) -> Codec:
    from penstock_iceberg_compactor.decode import _protobuf

    if settings.schema_file.endswith(".proto"):
        name = Path(settings.schema_file).name
        files = _protobuf.compile_files({name: data.decode()})
    else:
        files = _protobuf.files_of(data)
        name = files[-1].name
    pool = _protobuf.descriptor_pool(files)
    if not settings.message:
        return _protobuf.ProtobufCodec(_protobuf.message_at(pool, name, (0,)))
    try:
        return _protobuf.ProtobufCodec(pool.FindMessageTypeByName(settings.message))
    except KeyError:
        raise ValueError(f"the schema has no message of this name: message={settings.message}") from None
