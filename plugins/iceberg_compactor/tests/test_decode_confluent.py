"""What confluent-kafka's own serializers write, with their own client of the registry, is read."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import pyarrow as pa
import pytest
from penstock_iceberg_compactor.decode import DecodeSettings, SchemaRegistry, open_decoder
from tests.fetched import python_environment
from tests.patience import HANG_S
from tests.schema_registry import SchemaRegistryServer

#: Registers and serializes; prints a line of JSON for each format: its values in base64.
_PROGRAM = """
import base64, json, sys
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

client = SchemaRegistryClient({"url": sys.argv[1]})

def serialize(format, serializer, values):
    context = SerializationContext("topic-" + format, MessageField.VALUE)
    print(json.dumps([format, [base64.b64encode(serializer(value, context)).decode() for value in values]]))

avro = {"type": "record", "name": "R", "fields": [
    {"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"]},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}
rows = [{"id": 1, "name": "x", "at": 1000}, {"id": -(2**40), "name": None, "at": -1}]
serialize("avro", AvroSerializer(client, json.dumps(avro)), rows)

schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "R", "type": "object",
          "properties": {"id": {"type": "integer"}, "name": {"type": ["string", "null"]}}}
serialize("json", JSONSerializer(json.dumps(schema), client), [{"id": 1, "name": "x"}, {"id": 2, "name": None}])

file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="p", syntax="proto3",
                                          dependency=["google/protobuf/timestamp.proto"])
other = file.message_type.add(name="Other")
message = file.message_type.add(name="R")
message.field.add(name="id", number=1, type=3, label=1)
message.field.add(name="at", number=2, type=11, label=1, type_name=".google.protobuf.Timestamp")
pool = descriptor_pool.DescriptorPool()
pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
pool.AddSerializedFile(file.SerializeToString())
R = message_factory.GetMessageClass(pool.FindMessageTypeByName("p.R"))
value = R(id=5)
value.at.seconds = 1
serialize("protobuf", ProtobufSerializer(R, client, {"use.deprecated.format": False}), [value, R()])
"""


@pytest.fixture(scope="module")
def serialized() -> Any:
    python = python_environment("confluent-kafka[avro,protobuf,json,schemaregistry]==2.16.1") / "python"
    with SchemaRegistryServer() as registry:
        command = [str(python), "-c", _PROGRAM, registry.url]
        run = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
        assert run.returncode == 0, run.stderr
        lines = map(json.loads, run.stdout.splitlines())
        yield registry, {name: [base64.b64decode(one) for one in values] for name, values in lines}


@pytest.mark.parametrize(
    ("format_", "wanted"),
    [
        ("avro", [{"id": 1, "name": "x", "at": 1_000_000}, {"id": -(2**40), "name": None, "at": -1000}]),
        ("json", [{"id": 1, "name": "x"}, {"id": 2, "name": None}]),
        ("protobuf", [{"id": 5, "at": 1_000_000}, {"id": 0, "at": None}]),
    ],
)
def test_values_of_confluents_serializers_are_read(serialized: Any, format_: Any, wanted: Any) -> None:
    registry, values = serialized
    decoder: Any = open_decoder(DecodeSettings(format=format_, registry=SchemaRegistry(registry.url)))
    decoded = decoder.decode_array(pa.array(values[format_], pa.binary()))
    assert decoded.failures == []
    kind = pa.struct([(one.name, pa.int64() if one.name == "at" else one.type) for one in decoded.rows.type])
    rows = [array.cast(field.type) for array, field in zip(decoded.rows.flatten(), kind, strict=True)]
    assert pa.StructArray.from_arrays(rows, fields=list(kind)).to_pylist() == wanted
