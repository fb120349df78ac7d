"""Lake compactors and partitioners that are right in unusual ways: no clause accuses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.keeper import in_memory
from tests.patience import HANG_S

_WAYS = {
    "lake_compactor": (
        ["file_per_row", "writes_at_the_commit", "partition_by_partition", "named_by_id"],
        "histories or kept_is_charged or failed_attempts or epochs_are or topic_is_who or nothing_is_visible",
    ),
    "partitioner": (
        ["anywhere", "in_turn", "java_only", "sticky", "two_choices", "shortest"],
        "model or keyless or unavailable or drain or newest or new_partitions",
    ),
}
_SCRIPT = """
import json, sys
from penstock_conformance import Target, run

kind, plugins, ways, select, work_dir, deadline_s = json.loads(sys.argv[1])
for way in ways:
    target = Target(kind=kind, plugin="unusual_" + kind, settings={"way": way}, plugins_dirs=(plugins,),
                    work_dir=work_dir, levels=(1,), deadline_s=deadline_s)
    for clause in run(target, select=select).clauses:
        print(json.dumps([way, clause.name, clause.outcome, clause.detail]))
"""


@pytest.mark.parametrize("kind", _WAYS)
def test_what_the_contract_leaves_open_is_not_accused(kind: str, tmp_path: Path) -> None:
    ways, select = _WAYS[kind]
    plugins = str(Path(__file__).with_name("_plugins"))
    order = [kind, plugins, ways, select, str(in_memory() or tmp_path), HANG_S / 3]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    clauses = [json.loads(line) for line in done.stdout.splitlines()]
    assert {way for way, *_ in clauses} == set(ways)
    assert not [clause for clause in clauses if clause[2] in ("fail", "deadline")]
