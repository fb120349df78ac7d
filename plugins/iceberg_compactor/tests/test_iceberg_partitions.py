"""Tables divided by columns of every type, with values at the ends of them: each row is found by its value."""

from __future__ import annotations

import datetime
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.iceberg_place import load, opened, topic
from tests.iceberg_readers import duckdb_with_iceberg
from tests.lake_records import avro, lake_records

pytestmark = pytest.mark.anyio

UTC = datetime.UTC


def _logical(kind: str, logical: str, **more: Any) -> Any:
    return {"type": kind, "logicalType": logical, **more}


#: By column: its Avro schema, and values.
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "boolean": ("boolean", [True, False]),
    "int": ("int", [0, -1, 2**31 - 1, -(2**31)]),
    "long": ("long", [0, -1, 2**63 - 1, -(2**63)]),
    "float": ("float", [0.0, 1.5, float("inf")]),
    "double": ("double", [0.1, 1e300, -5e-324, float("-inf")]),
    "string": ("string", ["", "a/b", "../..", "é漢😀", "a=b&c", "%2F", "null", "x" * 3000, "a\nb", "\0z"]),
    "bytes": ("bytes", [b"", b"\xff\x00", b"a/b"]),
    "fixed": ({"type": "fixed", "name": "F", "size": 3}, [b"abc", b"\xff/\xff"]),
    "decimal": (
        _logical("bytes", "decimal", precision=9, scale=2),
        [Decimal("-1.23"), Decimal("9999999.99")],
    ),
    "date": (
        _logical("int", "date"),
        [datetime.date(1969, 12, 31), datetime.date(1, 1, 1), datetime.date(9999, 12, 31)],
    ),
    "time": (_logical("long", "time-micros"), [datetime.time(0), datetime.time(23, 59, 59, 999999)]),
    "timestamp": (
        _logical("long", "timestamp-micros"),
        [
            datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
            datetime.datetime(2024, 2, 29, tzinfo=UTC),
        ],
    ),
    "uuid": (_logical("string", "uuid"), [str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))]),
}
#: What has no buckets in Iceberg, and a UUID, of which DuckDB computes another one.
_NO_BUCKETS = {"boolean", "float", "double", "uuid"}
#: The last one has nothing in any column but its number.
ROWS = 11


def row(at: int) -> dict[str, Any]:
    """Row number ``at``, which is also its column ``i``."""
    if at == ROWS - 1:
        return {"i": at} | dict.fromkeys(COLUMNS)
    return {"i": at} | {name: values[at % len(values)] for name, (_, values) in COLUMNS.items()}


SCHEMA = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "i", "type": "int"},
        *({"name": name, "type": ["null", kind]} for name, (kind, _) in COLUMNS.items()),
    ],
}


def _wanted(place: Path, **configs: str) -> Any:
    schemas = place / "lake" / "schemas"
    schemas.mkdir(parents=True, exist_ok=True)
    (schemas / "r.avsc").write_text(json.dumps(SCHEMA))
    return topic(value_format="avro", value_schema_file="r.avsc", **configs)


@pytest.mark.parametrize(
    "by",
    [
        ", ".join(COLUMNS),
        ", ".join(f"bucket(4, {name})" for name in COLUMNS if name not in _NO_BUCKETS),
        "truncate(3, int), truncate(3, long), truncate(3, bytes), day(date), hour(timestamp)",
    ],
    ids=["identity", "bucket", "truncate"],
)
async def test_each_row_of_a_divided_table_is_found_by_its_values(tmp_path: Path, by: str) -> None:
    """Manifests are written again, and files, and both keep the values of partitions."""
    items = avro(SCHEMA, map(row, range(ROWS)))
    async with opened(tmp_path) as compactor:
        wanted = _wanted(tmp_path, partition_by=by, sort_by="uuid desc, double")
        async with compactor.open_table(wanted, 1) as table:
            for start in (0, ROWS):
                await table.write(lake_records(items, start=start))
                await table.commit({0: start + ROWS})
            await table.maintain()
        made = load(compactor)
        assert len(made.spec().fields) == len(by.replace("(4, ", "(").replace("(3, ", "(").split(","))
        reader = duckdb_with_iceberg()
        scan = f"iceberg_scan('{made.metadata_location}')"
        for at in range(ROWS):
            values = {name: value for name, value in row(at).items() if name != "i"}
            where = " AND ".join(
                f"{name} IS NULL" if value is None else f"{name} = ?" for name, value in values.items()
            )
            given = [value for value in values.values() if value is not None]
            found = reader.execute(f"SELECT i FROM {scan} WHERE {where}", given).fetchall()
            assert found == [(at,), (at,)]
        reader.close()


async def test_values_that_no_partition_can_have_are_in_files_that_are_not_divided(tmp_path: Path) -> None:
    rows = [row(0) | {"double": value} for value in (float("nan"), 0.1, float("nan"), None)]
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(_wanted(tmp_path, partition_by="double"), 1) as table:
            await table.write(lake_records(avro(SCHEMA, rows)))
            await table.commit({0: 4})
        files = [task.file for task in load(compactor).scan().plan_files()]
        assert sorted((one.record_count, one.spec_id) for one in files) == [(1, 1), (1, 1), (2, 0)]
        assert {one.partition[0] for one in files if one.spec_id} == {0.1, None}


@pytest.mark.parametrize("keys", ["uuid", "double", ",".join(COLUMNS)], ids=["uuid", "double", "all"])
async def test_rows_are_told_apart_by_keys_of_each_type(tmp_path: Path, keys: str) -> None:
    """The second commit has the same keys, so its rows take the place of the first one's."""
    count = ROWS - 1
    last = {tuple(row(at)[name] for name in keys.split(",")): count + at for at in range(count)}
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(_wanted(tmp_path, mode="upsert", key_columns=keys), 1) as table:
            for start in (0, count):
                await table.write(lake_records(avro(SCHEMA, map(row, range(count))), start=start))
                await table.commit({0: start + count})
        rows = load(compactor).scan().to_arrow().to_pylist()
        assert sorted(one["_kafka"]["offset"] for one in rows) == sorted(last.values())
