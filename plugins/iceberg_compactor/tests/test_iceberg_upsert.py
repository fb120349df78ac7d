"""Upsert tables equal a replay of the log at every commit."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from penstock_iceberg_compactor import _files, _owned
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._schema import add_undivided_spec
from penstock_iceberg_compactor._settings import Settings
from penstock_iceberg_compactor._upsert import _may_hold, _without, collapsed
from pyiceberg.conversions import to_bytes
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import DoubleType, NestedField
from tests.iceberg_place import load, opened, services, topic
from tests.lake_records import lake_records

from penstock_conformance.reference._allocator import PlainAllocator

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("keys", ["id", "id,area"])
async def test_the_table_equals_a_replay_of_the_log_at_every_commit(tmp_path: Path, keys: str) -> None:
    rng = random.Random(keys)
    wanted = topic(
        value_format="json",
        key_format="json",
        mode="upsert",
        key_columns=keys,
        partition_by="bucket(2, area)",
    )
    names = keys.split(",")
    replay: dict[tuple[object, ...], tuple[int, object]] = {}
    offset = 0
    async with opened(tmp_path) as compactor:
        for commit in range(8):
            async with compactor.open_table(wanted, 1 + commit // 4) as table:
                for _ in range(2):
                    records, log_keys = [], []
                    for number in range(30):
                        row = {"id": rng.randrange(40), "area": f"a{rng.randrange(3)}", "n": offset + number}
                        key = {name: row[name] for name in names}
                        gone = rng.random() < 0.2
                        records.append(None if gone else json.dumps(row).encode())
                        log_keys.append(json.dumps(key).encode())
                        replay.pop(tuple(key.values()), None)
                        if not gone:
                            replay[tuple(key.values())] = (offset + number, row["n"])
                    await table.write(lake_records(records, keys=log_keys, start=offset))
                    offset += len(records)
                await table.commit({0: offset})
            rows = load(compactor).scan().to_arrow().to_pylist()
            found = {tuple(row[name] for name in names): (row["_kafka"]["offset"], row["n"]) for row in rows}
            assert len(found) == len(rows), "a key is there once"
            assert found == replay
        assert len(list(load(compactor).scan().plan_files())) < 20


async def test_a_row_that_came_while_the_commit_was_planned_is_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan may change the table, for rows of no partition, and sees then what another writer did meanwhile."""
    wanted = topic(value_format="json", mode="upsert", key_columns="id", partition_by="_kafka.partition")

    def added(table: Table) -> bool:
        if load(compactor).scan().count() == 2:
            load(compactor).append(load(compactor).scan().to_arrow())
        return add_undivided_spec(table)

    async with opened(tmp_path) as compactor, compactor.open_table(wanted, 1) as table:
        await table.write(lake_records([b'{"id": 1, "x": 0.5}', b'{"id": 2, "x": 0.5}']))
        await table.commit({0: 2})
        monkeypatch.setattr(_owned, "add_undivided_spec", added)
        monkeypatch.setattr(_files, "_is_partition", lambda *_: False)
        await table.write(lake_records([b'{"id": 1, "x": 1.5}'], start=2))
        await table.commit({0: 3})
        rows = load(compactor).scan().to_arrow().to_pylist()
        assert sorted((row["id"], row["x"]) for row in rows) == [(1, 1.5), (2, 0.5), (2, 0.5)]


async def test_a_commit_of_upserts_accounts_for_what_it_reads_and_writes_again(tmp_path: Path) -> None:
    """Rows of files on their way into files took tens of megabytes that nobody was told of."""
    allocator, configs = PlainAllocator(512 * 2**20), {"value_format": "json", "mode": "upsert"}
    used: list[tuple[str, int]] = []
    place = services(tmp_path, allocator=allocator)
    async with IcebergCompactor.opened(Settings(buffer=4 * 2**20), place) as compactor:
        compactor.watch(lambda step: used.append((step, allocator.statistics().used_bytes)))
        async with compactor.open_table(topic(key_columns="id", **configs), 1) as table:
            await table.write(lake_records([b'{"id": 1}']))
            await table.commit({0: 1})
    assert dict(used)["files written"] > 2 * 4 * 2**20
    assert not allocator.statistics().used_bytes


async def test_rows_of_many_keys_ask_for_their_commit_before_they_fill_the_memory(tmp_path: Path) -> None:
    """Those of few keys don't: they make room for one another. All of them are accounted for until the commit."""
    configs = {"value_format": "json", "mode": "upsert", "key_columns": "id"}
    async with opened(tmp_path, buffer=4 * 2**20) as compactor:
        for epoch, keys in ((1, 3), (2, 10_000)):
            async with compactor.open_table(topic(table=f"t{keys}", **configs), epoch) as table:
                full = []
                for start in range(0, 40, 4):
                    rows = [
                        json.dumps({"id": f"{at % keys:0100000}"}).encode() for at in range(start, start + 4)
                    ]
                    full.append((await table.write(lake_records(rows, start=start))).is_full)
                assert any(full) is (keys > 40)
                assert (await table.commit({0: 40})).rows == min(keys, 40)


async def test_a_key_that_is_not_a_number_may_be_in_any_file() -> None:
    """Bounds say nothing of NaN; a file that was passed over for it would keep the row that is replaced."""
    bounds = [{1: to_bytes(DoubleType(), value)} for value in (1.0, 2.0)]
    file: Any = SimpleNamespace(lower_bounds=bounds[0], upper_bounds=bounds[1])
    schema = Schema(NestedField(1, "k", DoubleType()))
    held = [
        _may_hold(file, schema, pa.table({"k": pa.array([key], pa.float64())}), ["k"])
        for key in (1.0, 2.0, 3.0, math.nan, None)
    ]
    assert held == [True, True, False, True, False]


@pytest.mark.parametrize("keys", [["k"], ["k", "area"]])
def test_keys_are_equal_as_they_are_for_sql(keys: list[str]) -> None:
    """Both zeros are one key, and all bit patterns of NaN: a reader who groups by the key finds one row each."""
    nan = struct.unpack("d", struct.pack("Q", 0x7FF8000000000001))[0]
    batch = pa.table({"k": [0.0, math.nan, -0.0, nan, 1.0], "area": ["x"] * 5})
    last = collapsed([batch], batch.schema, keys)
    assert [str(key) for key in last.column("k").to_pylist()] == ["-0.0", "nan", "1.0"]
    there = pa.table({"k": [0.0, nan, 2.0], "area": ["x"] * 3})
    stay = _without(there, last, keys)
    assert stay is not None
    assert stay.column("k").to_pylist() == [2.0]
