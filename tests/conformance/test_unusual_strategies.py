"""Strategies that keep their promises in an unusual way: no random life accuses them.

The full run tries all of them, and every random life on each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.depth import FULL, in_full
from tests.keeper import in_memory
from tests.patience import HANG_S

_PLUGINS = str(Path(__file__).with_name("_plugins"))
_SHARED = {"object_store.url": "file://{dir}/objects"}
#: Settings, and the lives that are tried in every run.
_STRATEGIES: dict[str, tuple[dict[str, str], str]] = {
    "many_tiny_objects": (
        {
            "stream.object_split_bytes": "1KiB",
            "stream.block_bytes": "1KiB",
            "stream.upload_interval": "20ms",
            "stream.upload_bytes": "4KiB",
        },
        "kills",
    ),
    "all_of_references": (
        {
            "object_store.plugin": "reference",
            "metadata_log.plugin": "reference",
            "wal.plugin": "reference",
            "wal.capacity": "8MiB",
            "log_cache.plugin": "reference",
            "block_cache.plugin": "reference",
        },
        "restarts",
    ),
    "caches_that_keep_nothing_and_a_slow_metadata_log": (
        {
            "block_cache.plugin": "unusual",
            "block_cache.manner": "KeepsNothing",
            "metadata_log.plugin": "unusual",
            "metadata_log.manner": "TakesItsTime",
        },
        "restarts",
    ),
    "metadata_that_is_read_in_ones_and_kept_for_ever": (
        {
            "metadata_log.plugin": "unusual",
            "metadata_log.manner": "ReadsInOnes",
            "wal.plugin": "wal_s3",
            **_SHARED,
        },
        "takeovers",
    ),
    "slow_store": (
        {"object_store.plugin": "unusual_object_store", "object_store.way": "slow"},
        "kills",
    ),
    "uploads_that_never_come_in_time": (
        {"stream.upload_interval": "1h", "stream.upload_bytes": "256MiB", "stream.delete_delay": "1h"},
        "kills",
    ),
}
#: What every run tries; the others come to the same places by other ways.
_QUICK = ("all_of_references",)
_SCRIPT = """
import json, sys
from penstock_conformance import Target, run

settings, plugins, select, work_dir, deadline_s = json.loads(sys.argv[1])
target = Target(kind="strategy", plugin="unusual", settings=settings, plugins_dirs=(plugins,), work_dir=work_dir,
                modules=("penstock_conformance.reference",), deadline_s=deadline_s)
for clause in run(target, select=select).clauses:
    print(json.dumps([clause.name, clause.outcome, clause.detail]))
"""


@pytest.mark.parametrize("name", [*_QUICK, *in_full(*(name for name in _STRATEGIES if name not in _QUICK))])
def test_unusual_strategy_is_not_accused(name: str, tmp_path: Path) -> None:
    settings, life = _STRATEGIES[name]
    memory = in_memory()  # brokers sync a lot
    select = "random_lives" if FULL else f"random_lives_with_{life}"
    arguments = json.dumps([settings, _PLUGINS, select, str(memory or tmp_path), HANG_S / 3])
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CI": "true"},
        timeout=HANG_S,
        check=False,
    )
    clauses = [json.loads(line) for line in done.stdout.splitlines()]
    assert clauses, done.stderr
    accused = [clause for clause in clauses if clause[1] not in ("pass", "not_applicable")]
    assert not accused
    assert any(clause[1] == "pass" for clause in clauses)
