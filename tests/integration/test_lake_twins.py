"""Brokers that don't know of each other and one table: what each of them says, and that no row is there twice."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import ServeFactory
from tests.integration.test_lake import WITH_TABLES, create, produce
from tests.patience import HANG_S


def shared(place: Path) -> tuple[str, ...]:
    """A catalog and a warehouse that don't go with the data directory."""
    return (
        "lake_compactor.plugin=iceberg_compactor",
        "lake_compactor.catalog.type=sql",
        f"lake_compactor.catalog.uri=sqlite:///{place}/catalog.db",
        f"lake_compactor.warehouse={place}/warehouse",
        *WITH_TABLES[1:],
    )


def values_of(place: Path) -> Counter[bytes]:
    catalogs: Any = pytest.importorskip("pyiceberg.catalog")
    catalog = catalogs.load_catalog("penstock", type="sql", uri=f"sqlite:///{place}/catalog.db")
    try:
        if not catalog.table_exists("kafka.orders"):
            return Counter()
        return Counter(catalog.load_table("kafka.orders").scan().to_arrow()["value"].to_pylist())
    finally:
        catalog.close()


def offsets_of(place: Path) -> list[int]:
    catalogs: Any = pytest.importorskip("pyiceberg.catalog")
    catalog = catalogs.load_catalog("penstock", type="sql", uri=f"sqlite:///{place}/catalog.db")
    try:
        found: list[int] = catalog.load_table("kafka.orders").scan().to_arrow()["offset"].to_pylist()
        return found
    finally:
        catalog.close()


def wait_for_values(place: Path, expected: Counter[bytes]) -> None:
    until = time.monotonic() + HANG_S
    while (found := values_of(place)) != expected:
        assert time.monotonic() < until, found
        time.sleep(0.3)  # a look reads the whole table


def test_another_cluster_is_told_whose_table_it_is(serve: ServeFactory, tmp_path: Path) -> None:
    """Two clusters with a topic of one name, one catalog: the second stands with a sentence, the first goes on."""
    first, second = serve(*shared(tmp_path)), serve(*shared(tmp_path))
    create(first, "orders")
    produce(first, "orders", [b"a"] * 3)
    wait_for_values(tmp_path, Counter({b"a": 3}))
    create(second, "orders")
    produce(second, "orders", [b"b"] * 3)
    second.wait_for_output("the table belongs to another topic")
    produce(first, "orders", [b"c"] * 3)
    wait_for_values(tmp_path, Counter({b"a": 3, b"c": 3}))


def test_a_broker_from_a_copy_of_another_ones_directory_writes_no_row_twice(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """A zombie: the one that is fenced says so, and doesn't race for the table; each offset is there once."""
    broker = serve(*shared(tmp_path))
    create(broker, "orders")
    produce(broker, "orders", [b"a%d" % n for n in range(5)])
    wait_for_values(tmp_path, Counter(b"a%d" % n for n in range(5)))
    broker.kill()
    twin = serve(*shared(tmp_path))
    twin.kill()
    shutil.rmtree(twin.data_dir)
    shutil.copytree(broker.data_dir, twin.data_dir)
    broker.start()
    twin.start()
    for n in range(20):
        produce(broker, "orders", [b"b%d" % n])
        produce(twin, "orders", [b"t%d" % n])
        if "a copy of this broker's data directory" in broker.output_so_far + twin.output_so_far:
            break
        time.sleep(0.2)
    else:
        raise AssertionError("neither says that the table is somebody else's")
    offsets = offsets_of(tmp_path)
    assert sorted(offsets) == list(range(len(offsets)))
