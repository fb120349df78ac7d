"""DuckDB, Polars and ClickHouse read what was written, with their own code."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from tests.depth import in_full
from tests.iceberg_place import load, opened, topic
from tests.iceberg_readers import chdb, duckdb_with_iceberg
from tests.lake_records import lake_records

pytestmark = pytest.mark.anyio

#: By mode: count, sum of place.x, rows with ``late``, greatest offset, fewest headers.
EXPECTED = {
    "append": (300, sum(range(300)), 200, 299, 1),
    "upsert": (150, sum(range(150, 300)), 150, 299, 1),
}


@asynccontextmanager
async def written(place: Path, mode: str) -> AsyncIterator[Any]:
    """A table of 300 records in three commits, a column of which comes with the second; each id is there twice."""
    wanted = topic(
        value_format="json",
        mode=mode,
        partition_by="day(_kafka.timestamp), bucket(4, id)",
        **({"key_columns": "id"} if mode == "upsert" else {}),
    )
    async with opened(place) as compactor:
        async with compactor.open_table(wanted, 1) as table:
            for start in range(0, 300, 100):
                late = {"late": 1.5} if start else {}
                rows = [
                    {"id": at % 150, "name": f"n{at}", "tags": ["a"], "place": {"x": at}, **late}
                    for at in range(start, start + 100)
                ]
                records = [json.dumps(row).encode() for row in rows]
                await table.write(lake_records(records, start=start, headers=[[(b"h", b"v")]] * 100))
                await table.commit({0: start + 100})
            await table.maintain()
        yield load(compactor)


@pytest.mark.parametrize("mode", ["append", *in_full("upsert")])
async def test_duckdb_and_polars_see_the_same_rows(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with written(tmp_path, mode) as loaded:
        connection = duckdb_with_iceberg()
        scan = f"iceberg_scan('{loaded.metadata_location}')"
        query = (
            "SELECT count(*), sum(place.x), count(late), max(_kafka.offset), min(len(_kafka.headers)) FROM "
        )
        assert connection.execute(query + scan).fetchone() == EXPECTED[mode]
        assert connection.execute(f"SELECT name FROM {scan} WHERE id = 149").fetchall() in (
            [("n299",)],
            [("n149",), ("n299",)],
            [("n299",), ("n149",)],
        )
        connection.close()
        monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else it warns that there is a quicker one
        polars = pytest.importorskip("polars")
        frame = polars.scan_iceberg(loaded).select("id", polars.col("place").struct.field("x")).collect()
        assert (len(frame), frame["x"].sum()) == EXPECTED[mode][:2]


@pytest.mark.parametrize("mode", ["upsert", *in_full("append")])
async def test_clickhouse_sees_the_same_rows(tmp_path: Path, mode: str) -> None:
    async with written(tmp_path, mode) as loaded:
        scan = f"icebergLocal('{loaded.location().removeprefix('file://')}')"
        query = (
            "SELECT count(), sum(place.x), count(late), max(_kafka.offset), min(length(_kafka.headers)) FROM "
        )
        row = await anyio.to_thread.run_sync(chdb, query + scan, tmp_path)
        assert row == ",".join(map(str, EXPECTED[mode])) + "\n"
