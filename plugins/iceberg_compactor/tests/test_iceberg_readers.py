"""DuckDB and Polars read what was written, with their own code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def duckdb_with_iceberg() -> Any:
    """A connection with extensions that came as wheels; nothing is downloaded."""
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    for name in ("avro", "httpfs", "iceberg"):  # avro first: the last one needs it
        found = importlib.util.find_spec(f"duckdb_extension_{name}")
        if found is None or not found.submodule_search_locations:
            pytest.skip(f"there is no wheel of this extension: {name}")
        (file,) = Path(found.submodule_search_locations[0]).glob(f"extensions/*/{name}.duckdb_extension")
        connection.execute(f"LOAD '{file}'")
    return connection


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
