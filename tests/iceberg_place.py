"""Compactors for tests, on an SQLite catalog and a local warehouse."""

from __future__ import annotations

__all__ = ("load", "opened", "services", "topic")

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._settings import Settings
from pyiceberg.table import Table

from penstock.spi import Services
from penstock.spi.lake import LakeTopic


def services(place: Path, **others: Any) -> Services:
    """Those of a broker with its data there."""
    return Services(node_id=1, epoch=1, cluster_id="c", data_dir=place, clock=time.monotonic, **others)


def topic(name: str = "orders", *, topic_id: str = "t-1", table: str = "", **configs: str) -> LakeTopic:
    """A topic; configs with _ for the dots of their names."""
    return LakeTopic(
        name=name,
        topic_id=topic_id,
        partition_count=4,
        table=table,
        configs={key.replace("_", "."): value for key, value in configs.items()},
    )


@asynccontextmanager
async def opened(place: Path, **settings: Any) -> AsyncIterator[IcebergCompactor]:
    """A compactor whose catalog and tables are in ``place``."""
    async with IcebergCompactor.opened(Settings(**settings), services(place)) as compactor:
        yield compactor


def load(compactor: IcebergCompactor, name: str = "orders") -> Table:
    """The table as another writer has it."""
    return compactor.catalog.load_table(("kafka", name))
