"""Tables in a bucket: a real S3 server, other writers beside, and DuckDB reading over S3."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from penstock_iceberg_compactor._compactor import IcebergCompactor, catalog_properties
from penstock_iceberg_compactor._settings import Settings
from pyiceberg.catalog import load_catalog
from tests.iceberg_place import load, opened, services, topic
from tests.iceberg_readers import duckdb_with_iceberg
from tests.lake_records import lake_records
from tests.s3_server import S3Server, serving_s3

from penstock.config._clouds import CLOUDS
from penstock.errors import UnavailableError

pytestmark = pytest.mark.anyio

_KEEPS_LITTLE = {"snapshot_retention_ms": "0", "snapshot_retention_count": "1"}
TOPIC = topic(value_format="json", **_KEEPS_LITTLE)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def catalog(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """Address and region, as people write them; credentials are where AWS's tools have them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    return {"s3": {"endpoint": s3.endpoint_url, "region": s3.region}}


def values(start: int, count: int) -> list[bytes]:
    return [b'{"id": %d}' % number for number in range(start, start + count)]


def files_of(compactor: IcebergCompactor) -> set[str]:
    """What is really there, without anything remembered."""
    table = load(compactor)
    fs = fsspec.filesystem(
        "s3",
        endpoint_url=table.io.properties["s3.endpoint"],
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    return {f"s3://{path}" for path in fs.find(table.location())}


async def test_what_others_commit_is_seen_after_files_were_listed(
    tmp_path: Path, s3: S3Server, catalog: Mapping[str, Any]
) -> None:
    """s3fs remembers listings for ever: files that came later were called gone."""
    warehouse = f"s3://{s3.make_bucket()}/lake"
    async with opened(tmp_path, catalog=catalog, warehouse=warehouse) as compactor:
        async with compactor.open_table(TOPIC, 1) as table:
            await table.write(lake_records(values(0, 10)))
            await table.commit({0: 10})
            await table.maintain()
            properties, _ = catalog_properties(
                Settings(catalog=catalog, warehouse=warehouse), services(tmp_path)
            )
            io = {"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"}  # shares nothing with ours
            other = load_catalog("penstock", **{**properties, **io})
            other.load_table("kafka.orders").delete("id < 5")
            other.close()
            await table.write(lake_records(values(10, 1), start=10))
            await table.commit({0: 11})
            await table.maintain(dry_run=True)
        assert sorted(load(compactor).scan().to_arrow()["id"].to_pylist()) == [5, 6, 7, 8, 9, 10]


async def test_a_table_in_a_bucket_is_exact_and_holds_no_file_too_many(
    tmp_path: Path, s3: S3Server, catalog: Mapping[str, Any]
) -> None:
    """A failed attempt, another owner, upserts, expired snapshots and an orphan; DuckDB reads it over S3."""
    upserts = topic(value_format="json", mode="upsert", key_columns="id", **_KEEPS_LITTLE)
    warehouse = f"s3://{s3.make_bucket()}/lake"
    async with opened(tmp_path, catalog=catalog, warehouse=warehouse, orphan_grace=0) as compactor:
        async with compactor.open_table(upserts, 1) as table:
            await table.write(lake_records(values(0, 10)))
            await table.commit({0: 10})

            def step(name: str) -> None:
                if name == "files written":
                    raise OSError("cut off")

            compactor.watch(step)
            await table.write(lake_records(values(5, 10), start=10))
            with pytest.raises(UnavailableError, match="the warehouse can't be used"):
                await table.commit({0: 20})
            compactor.watch(lambda _: None)
        async with compactor.open_table(upserts, 2) as table:
            assert await table.positions() == {0: 10}
            await table.write(lake_records(values(5, 10), start=10))
            await table.commit({0: 20})
            orphan = f"{load(compactor).location()}/data/orphan.parquet"
            load(compactor).io.new_output(orphan).create().close()
            done = await table.maintain()
        assert done.figures["snapshots expired"] > 1
        assert done.figures["orphans removed"] >= 1
        now = load(compactor)
        snapshot = now.current_snapshot()
        assert snapshot is not None
        there = files_of(compactor)
        needed = {now.metadata_location, snapshot.manifest_list}
        needed |= {one.manifest_path for one in snapshot.manifests(now.io)}
        needed |= {task.file.file_path for task in now.scan().plan_files()}
        needed |= {one.metadata_file for one in now.metadata.metadata_log}
        needed |= {one.manifest_list for one in now.metadata.snapshots}
        assert there <= needed
        with duckdb_with_iceberg() as connection:
            connection.execute(
                f"CREATE SECRET (TYPE s3, KEY_ID '{s3.access_key}', SECRET '{s3.secret_key}', "
                f"ENDPOINT '127.0.0.1:{s3.port}', URL_STYLE 'path', USE_SSL false, REGION '{s3.region}')"
            )
            scan = f"iceberg_scan('{now.metadata_location}')"
            query = f"SELECT count(*), sum(id), max(_kafka.offset) FROM {scan}"
            assert connection.execute(query).fetchone() == (15, sum(range(15)), 19)


async def test_a_bucket_that_refuses_access_is_one_sentence_without_secrets(
    tmp_path: Path, s3: S3Server, catalog: Mapping[str, Any]
) -> None:
    if not s3.checks_credentials:
        pytest.skip(f"{s3.kind} takes any credentials")
    wrong = {**catalog, "s3.access-key-id": s3.access_key, "s3.secret-access-key": "very-secret"}
    async with opened(tmp_path, catalog=wrong, warehouse=f"s3://{s3.make_bucket()}/lake") as compactor:
        with pytest.raises(UnavailableError, match="the warehouse refuses access, check") as caught:
            async with compactor.open_table(TOPIC, 1):
                pass
    assert "very-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cloud", [name for name, one in CLOUDS.items() if one.lake])
def test_tables_in_the_template_of_a_cloud_can_be_set_up_as_they_stand_there(
    tmp_path: Path, cloud: str
) -> None:
    """What is commented out is a configuration that the plugin takes."""
    lines = [line for line in CLOUDS[cloud].lake.splitlines() if " = " in line]
    section = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
    assert section.pop("plugin") == "iceberg_compactor"
    found, where = catalog_properties(Settings(**section), services(tmp_path))
    assert section["warehouse"] in where
    assert set(found) > {"type", "uri", "warehouse"}


def test_properties_of_the_warehouse_go_with_the_embedded_catalog(tmp_path: Path) -> None:
    """Written as tables in TOML, with its types; a catalog that is named isn't the embedded one."""
    given: Any = {"s3": {"endpoint": "http://x", "connect-timeout": 5}, "s3.anonymous": True}
    found, where = catalog_properties(
        Settings(catalog=given, warehouse="s3://bucket/lake"), services(tmp_path)
    )
    assert found["uri"] == f"sqlite:///{tmp_path}/lake/catalog.db"
    assert found["warehouse"] == "s3://bucket/lake"
    assert (found["s3.endpoint"], found["s3.connect-timeout"], found["s3.anonymous"]) == (
        "http://x",
        "5",
        "true",
    )
    assert "s3://bucket/lake" in where
    given = {"type": "glue", "s3": {"region": "x"}}
    found, _ = catalog_properties(Settings(catalog=given, warehouse="s3://b/l"), services(tmp_path))
    assert "uri" not in found
