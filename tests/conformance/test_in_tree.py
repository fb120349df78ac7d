"""Every plugin of this repository conforms, and so do the suite's own references."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from tests.depth import in_full
from tests.integration.conftest import penstock
from tests.keeper import MARK
from tests.patience import HANG_S

from penstock_conformance import KINDS

_SHELF = ("--plugins-dir", str(Path(__file__).with_name("_plugins")))
_REFERENCE = ("-p", "penstock_conformance.reference")

_TWO_BUCKETS = 'replicas=[{plugin="wal_s3", prefix="a/"}, {plugin="wal_s3", prefix="b/"}]'

#: What is held to a disk; the others have their files where all temporary ones are.
_ON_DISK = ("object_store_fsspec", "wal_block")

#: Logs of tens of thousands of entries and of large ones: what makes them up is the same in a log of a few.
_LARGE = "tens_of_thousands_of_entries or a_thousand_groups or largest_entry"

#: What takes a table longest: thousands of rows, and processes that the plugin's own tests kill and cut off, too.
_LONG = "many_rows or lost_reply or used_at_the_same_time"

#: Of a plugin that another run holds to faults of its medium, with other sizes: they are answered by the same code.
_OF_THE_SIZES = ("--level", "1", "--level", "3")

#: Each plugin, and between them all clauses.
_RUNS: list[tuple[str, ...]] = [
    ("object_store", "object_store_fsspec"),
    ("wal", "wal_block", "--set", "capacity=4MiB", "--set", "group_bytes_max=256KiB"),
    # what a kill leaves of a log in a store are objects, each whole or not there: a run of such a broker shows it
    ("wal", "wal_s3", *(part for level in "1245" for part in ("--level", level)), "-k", f"not ({_LARGE})"),
    ("wal", "wal_s3express_replicated", "--level", "1", "-k", f"not ({_LARGE} or random_lives)"),
    ("log_cache", "cache_fifo"),
    ("block_cache", "cache_lru"),
    ("allocator", "allocator_sequential"),
    ("metadata_log", "metadata_object"),
    ("partitioner", "partitioner"),
    # kills at each step, and its process of its own, are in its own tests: each process has to import its libraries
    (
        *("lake_compactor", "iceberg_compactor", "--set", "own_process=false"),
        *("--level", "1", "--level", "4", "-k", f"not ({_LONG})"),
    ),
    # what no plugin here claims, or only in its own tests
    ("object_store", "reference", *_REFERENCE, "-k", "swap or token or append"),
    ("metadata_log", "reference", *_REFERENCE, "-k", "news or in_order"),
    (
        "lake_compactor",
        "reference",
        *_REFERENCE,
        "-k",
        f"kill or fence or maintenance or newer_owner or race or {_LONG}",
    ),
    ("wal", "wal_on_shelf", *_SHELF, "-k", "unclaimed or entry or trim"),
]
#: The same on other media, with other sizes, or at all levels; and what mutants are made of.
_MORE: list[tuple[str, ...]] = [
    ("lake_compactor", "iceberg_compactor", "--set", "own_process=false", "--level", "2"),
    ("lake_compactor", "iceberg_compactor", "--set", "own_process=false", "-k", _LONG),
    ("wal", "wal_s3", "--level", "3"),
    ("wal", "wal_s3", "-k", _LARGE),
    ("object_store", "object_store_fsspec", "--set", "url=memory://conformance"),
    (
        *("wal", "wal_block", "--set", "capacity=4MiB", "--set", "group_bytes_max=64KiB"),
        *("--set", "io=buffered", *_OF_THE_SIZES),
    ),
    (
        *("wal", "wal_s3", "--object-store", "object_store_fsspec"),
        *("--set", "writes_max=2", "--set", "linger=0ms", *_OF_THE_SIZES),
    ),
    ("wal", "wal_s3express_replicated", "-k", f"{_LARGE} or random_lives"),
    ("wal", "wal_s3express_replicated", "--level", "3", "--level", "4"),
    # of a file, a stopped owner may hold the lock, and each round waits for it
    ("wal", "wal_s3express_replicated", "--set", _TWO_BUCKETS, "--level", "2"),
    ("block_cache", "cache_lru", "--allocator", "allocator_sequential"),
    # a log on a store that conforms: what is left is what a kill leaves in real files
    ("metadata_log", "metadata_object", "--object-store", "object_store_fsspec", "--level", "3"),
    ("wal", "wal_on_shelf", *_SHELF),
    ("wal", "plain_store_wal", *_SHELF, "--level", "2", "--level", "4"),
    *((kind, "reference", *_REFERENCE) for kind in KINDS),
]


@pytest.mark.parametrize(
    "run",
    [*_RUNS, *(one for run in _MORE for one in in_full((run,)))],
    ids=lambda run: "-".join(run).replace(str(Path(__file__).parent), ""),
)
def test_plugin_conforms(run: tuple[str, ...], tmp_path: Path) -> None:
    """No clause fails, and something was proved."""
    kind, plugin, *options = run
    report = tmp_path / "report.json"
    place = os.environ[MARK] if plugin in _ON_DISK else tempfile.gettempdir()
    done = penstock(
        *("conformance", "run", kind, "--plugin", plugin, "--work-dir", place),
        *("--report", str(report), "--deadline", str(HANG_S / 3), *options),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    outcome = json.loads(report.read_text())
    assert outcome["result"] == "pass"
    assert outcome["counts"]["pass"] >= 2
