"""Programs that read Iceberg tables with their own code; where one isn't there, its tests are skipped."""

from __future__ import annotations

__all__ = ("duckdb_with_iceberg",)

import importlib.util
from pathlib import Path
from typing import Any

import pytest


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
