"""A broker whose objects and tables are in one bucket, killed while it makes a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.depth import how_many
from tests.iceberg_readers import duckdb_with_iceberg
from tests.integration.conftest import ServeFactory, penstock
from tests.integration.test_lake import TABLE, WITH_TABLES, create, produced_over_kills
from tests.patience import HANG_S
from tests.s3_server import S3Server, serving_s3

#: 20 by hand.
KILLS = how_many("lake_kills_s3")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.mark.full  # tables over kills, and tables in a bucket, are tried apart from each other in each run
def test_records_are_in_a_table_in_the_bucket_once_over_kills(
    serve: ServeFactory, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 while a client produces; the command and DuckDB read what is in the bucket."""
    pytest.importorskip("pyiceberg")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    bucket = s3.make_bucket()
    sets = (
        "lake_compactor.plugin=iceberg_compactor",
        f"lake_compactor.warehouse=s3://{bucket}/lake",
        f"lake_compactor.catalog.s3.endpoint={s3.endpoint_url}",
        f"lake_compactor.catalog.s3.region={s3.region}",
        f"object_store.url=s3://{bucket}/penstock",
        f"object_store.options.endpoint_url={s3.endpoint_url}",
        f"object_store.options.client_kwargs.region_name={s3.region}",
        "stream.upload_interval=1h",
        *WITH_TABLES[1:],
    )
    broker = serve(*sets)
    create(broker, "orders", 3, TABLE | {"penstock.lake.commit.interval.ms": "300"})
    sent = produced_over_kills(broker, "orders", KILLS)
    arguments = [part for one in (f"broker.data_dir={broker.data_dir}", *sets) for part in ("--set", one)]
    with duckdb_with_iceberg() as connection:
        connection.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{s3.access_key}', SECRET '{s3.secret_key}', "
            f"ENDPOINT '127.0.0.1:{s3.port}', URL_STYLE 'path', USE_SSL false, REGION '{s3.region}')"
        )
        found: Counter[bytes] = Counter()
        until = time.monotonic() + HANG_S
        while found.total() < len(sent) and time.monotonic() < until:
            described = penstock("lake", "describe", "orders", *arguments)
            metadata = dict(line.split(": ", 1) for line in described.stdout.splitlines())["metadata"]
            rows = connection.execute(f"SELECT value FROM iceberg_scan('{metadata}')").fetchall()
            found = Counter(value for (value,) in rows)
    assert found == Counter(sent)
