"""What it costs to turn records into Arrow columns, by format and way: records per second of one core's time.

Twelve fields as in an order: numbers, strings, a timestamp, a list and a struct. Processor time, so that other work
on the machine matters less; each figure is the best of several runs.

    python tools/bench/lake_decode.py [--records 10000] [--runs 7] [--bad 0]
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from typing import Any

import fastavro
import pyarrow as pa
from google.protobuf import message_factory
from penstock_iceberg_compactor.decode import Fitter, JsonDecoder
from penstock_iceberg_compactor.decode._avro import AvroCodec
from penstock_iceberg_compactor.decode._framed import GivenDecoder
from penstock_iceberg_compactor.decode._protobuf import (
    ProtobufCodec,
    compile_files,
    descriptor_pool,
    message_at,
)

PROTO = """
syntax = "proto3";
import "google/protobuf/timestamp.proto";
message Address { string street = 1; string zip = 2; }
message Order {
  int64 id = 1; string name = 2; optional string email = 3; double amount = 4; bool paid = 5;
  google.protobuf.Timestamp at = 6; repeated string tags = 7; Address address = 8; int32 items = 9; int32 weight = 10;
  string text = 11; string state = 12;
}
"""
AVRO = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": "string"},
        {"name": "email", "type": ["null", "string"]},
        {"name": "amount", "type": "double"},
        {"name": "paid", "type": "boolean"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {
            "name": "address",
            "type": {
                "type": "record",
                "name": "Address",
                "fields": [{"name": "street", "type": "string"}, {"name": "zip", "type": "string"}],
            },
        },
        {"name": "items", "type": "int"},
        {"name": "weight", "type": "int"},
        {"name": "text", "type": "string"},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "SENT"]}},
    ],
}
#: With what pyruhvro alone doesn't read.
AVRO_MORE = {
    **AVRO,
    "fields": [
        *AVRO["fields"],
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
    ],
}


def orders(count: int) -> list[dict[str, Any]]:
    """Records as Python objects."""
    return [
        {
            "id": number,
            "name": f"customer {number % 997}",
            "email": f"c{number}@example.com" if number % 3 else None,
            "amount": number * 0.25,
            "paid": number % 2 == 0,
            "at": 1_790_000_000_000_000 + number * 1000,
            "tags": ["a", "express"][: number % 3],
            "address": {"street": f"{number} long street", "zip": f"{number % 90000:05}"},
            "items": number % 12,
            "weight": number % 1000 - 500,
            "text": "some words that are the same " + str(number % 17),
            "state": ("NEW", "SENT")[number % 2],
            "price": (number * 7).to_bytes(8, "big").lstrip(b"\0") or b"\0",
            "uuid": f"00000000-0000-4000-8000-{number:012x}",
        }
        for number in range(count)
    ]


def encoded(count: int) -> dict[str, list[bytes]]:
    """The records in each format."""
    rows = orders(count)
    made: dict[str, list[bytes]] = {"json": [], "avro": [], "avro with decimal, uuid": [], "protobuf": []}
    plain, more = fastavro.parse_schema(AVRO), fastavro.parse_schema(_physical(AVRO_MORE))
    order = message_factory.GetMessageClass(_message())
    for row in rows:
        short = {name: value for name, value in row.items() if name not in ("price", "uuid")}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row["at"] // 10**6))
        made["json"].append(json.dumps({**short, "at": f"{stamp}.{row['at'] % 10**6:06}Z"}).encode())
        for name, schema, value in (("avro", plain, short), ("avro with decimal, uuid", more, row)):
            out = io.BytesIO()
            fastavro.schemaless_writer(out, schema, value)
            made[name].append(out.getvalue())
        at = {"seconds": row["at"] // 10**6, "nanos": row["at"] % 10**6 * 1000}
        made["protobuf"].append(order(**{**short, "at": at}).SerializeToString())
    return made


def _physical(schema: Any) -> Any:
    fields = [{**one, "type": _bare(one["type"])} for one in schema["fields"]]
    return {**schema, "fields": fields}


def _bare(kind: Any) -> Any:
    if isinstance(kind, dict) and "logicalType" in kind and kind["type"] in ("bytes", "string"):
        return kind["type"]
    return kind


def _message() -> Any:
    return message_at(descriptor_pool(compile_files({"order.proto": PROTO})), "order.proto", (1,))


def ways() -> list[tuple[str, str, Callable[[pa.Array], Any]]]:
    """Format, way, and what decodes an array of binary."""
    found: list[tuple[str, str, Callable[[pa.Array], Any]]] = [
        ("raw", "as it is", lambda items: items),
        ("string", "UTF-8 checked", lambda items: items.cast(pa.string())),
    ]
    for slow in (False, True):
        way = "row by row" if slow else "in bulk"
        found.append(("json", way, JsonDecoder(Fitter(), row_wise=slow).decode_array))
        if not slow:
            found.append(("json", "in bulk, timestamps", JsonDecoder(Fitter(timestamps=True)).decode_array))
        for name, schema in (("avro", AVRO), ("avro with decimal, uuid", AVRO_MORE)):
            codec = AvroCodec.of(json.dumps(schema), row_wise=slow)
            found.append((name, way, GivenDecoder(codec).decode_array))
        found.append(("protobuf", way, GivenDecoder(ProtobufCodec(_message(), row_wise=slow)).decode_array))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--bad", type=int, default=0, help="so many records, evenly spread, are cut short")
    arguments = parser.parse_args()
    items = encoded(arguments.records)
    items["raw"] = items["string"] = items["json"]
    print(f"{'format':<25}{'way':<22}{'bytes':>7}{'records/s':>12}{'MB/s':>7}")
    for name, way, decode in ways():
        values = list(items[name])
        for at in range(arguments.bad):
            place = at * len(values) // arguments.bad
            values[place] = values[place][:-1]
        column = pa.array(values, pa.binary())
        best = float("inf")
        for _ in range(arguments.runs):
            begin = time.process_time()
            decode(column)
            best = min(best, time.process_time() - begin)
        size = sum(map(len, values))
        rate = len(values) / max(best, 1e-9)
        print(
            f"{name:<25}{way:<22}{size // len(values):>7}{rate:>12,.0f}{size / max(best, 1e-9) / 1e6:>7.0f}"
        )


if __name__ == "__main__":
    main()
