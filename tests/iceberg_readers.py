"""Programs that read Iceberg tables with their own code; where one isn't there, its tests are skipped."""

from __future__ import annotations

__all__ = ("chdb", "duckdb_with_iceberg")

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.fetched import python_environment
from tests.patience import HANG_S


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


def chdb(query: str, directory: Path) -> str:
    """What ClickHouse in a process answers, as CSV, with files below ``directory`` in reach.

    It is half a gigabyte, so it has an environment of its own.
    """
    fetched = python_environment("chdb==4.4.0", "chdb-core==26.9.0", with_dependencies=False)
    program = "import sys, chdb; print(chdb.query(sys.argv[1], 'CSV'), end='')"
    command = [str(fetched / "python"), "-c", program, query]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, run.stderr
    return run.stdout
