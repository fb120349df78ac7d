"""DuckDB and Polars read what was written, with their own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.iceberg_place import load, opened, topic
from tests.iceberg_readers import duckdb_with_iceberg
from tests.lake_records import lake_records

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("mode", ["append", "upsert"])
async def test_duckdb_and_polars_see_the_same_rows(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = topic(
        value_format="json",
        mode=mode,
        partition_by="day(_kafka.timestamp), bucket(4, id)",
        **({"key_columns": "id"} if mode == "upsert" else {}),
    )
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(wanted, 1) as table:
            for start in range(0, 300, 100):
                rows = [
                    {
                        "id": number % 150,
                        "name": f"n{number}",
                        "tags": ["a"],
                        "place": {"x": number},
                        **({"late": 1.5} if start else {}),
                    }
                    for number in range(start, start + 100)
                ]
                records = [json.dumps(row).encode() for row in rows]
                await table.write(lake_records(records, start=start, headers=[[(b"h", b"v")]] * 100))
                await table.commit({0: start + 100})
            await table.maintain()
        loaded = load(compactor)
        count, total, not_null = (
            (300, sum(range(300)), 200) if mode == "append" else (150, sum(range(150, 300)), 150)
        )
        connection = duckdb_with_iceberg()
        scan = f"iceberg_scan('{loaded.metadata_location}')"
        query = (
            "SELECT count(*), sum(place.x), count(late), max(_kafka.offset), min(len(_kafka.headers)) FROM "
        )
        assert connection.execute(query + scan).fetchone() == (count, total, not_null, 299, 1)
        assert connection.execute(f"SELECT name FROM {scan} WHERE id = 149").fetchall() in (
            [("n299",)],
            [("n149",), ("n299",)],
            [("n299",), ("n149",)],
        )
        connection.close()
        monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else it warns that there is a quicker one
        polars = pytest.importorskip("polars")
        frame = polars.scan_iceberg(loaded).select("id", polars.col("place").struct.field("x")).collect()
        assert (len(frame), frame["x"].sum()) == (count, total)
