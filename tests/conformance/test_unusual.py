"""The suite accuses no plugin that keeps its contract, however unlike those of this repository it is.

``_plugins/unusual_*.py`` have them. Here some are held against the clauses that once accused one of its kind, or
might; with ``PENSTOCK_UNUSUAL=all`` all of them against all clauses, which takes a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.keeper import in_memory
from tests.patience import HANG_S

_PLUGINS = Path(__file__).with_name("_plugins")
_ALL = os.environ.get("PENSTOCK_UNUSUAL") == "all"

#: Ways of a kind, and the clauses that tell most about them.
_TELLING = {
    "wal": (
        "tiny small_entries never_trims positions_with_gaps completes_in_bursts looks_first exclusive",
        "statistics_go or all_sizes or exactly_what or known_checksum or laps or oversized or burst or epoch_has",
    ),
    "object_store": (
        "no_parts tiny_pages no_clock content_hashes loses_replies",
        "model or swap or told_alike or creates_once",
    ),
    "log_cache": (
        "entry_by_entry evicts_blocks copies compacts_frozen_blocks flat drops_with_blocks",
        "model or newest_continuous or what_was_put or hands_over or many_blocks or deleted or dropped",
    ),
}
_SCRIPT = """
import json, sys
from penstock_conformance import LEVELS, Target, run

kind, plugins, ways, select, work_dir, levels, deadline_s = json.loads(sys.argv[1])
for way in ways:
    target = Target(kind=kind, plugin="unusual_" + kind, settings={"way": way}, plugins_dirs=(plugins,),
                    work_dir=work_dir, levels=tuple(levels), deadline_s=deadline_s)
    report = run(target, select=select)
    for clause in report.clauses:
        print(json.dumps([way, clause.name, "moot" if clause.moot else clause.outcome, clause.detail]))
"""


@pytest.mark.parametrize("kind", _TELLING)
def test_plugins_that_keep_the_contract_in_unusual_ways_conform(kind: str, tmp_path: Path) -> None:
    ways, select = _TELLING[kind]
    chosen = ways.split()
    levels = [1]
    if _ALL:
        sys.path.insert(0, str(_PLUGINS))
        chosen, select, levels = list(__import__(f"unusual_{kind}").WAYS), "", [1, 2, 3, 4, 5]
    place = str(in_memory() or tmp_path)  # clauses sync a lot
    order = [kind, str(_PLUGINS), chosen, select, place, levels, HANG_S / 3]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=None if _ALL else HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    clauses = [json.loads(line) for line in done.stdout.splitlines()]
    assert {way for way, *_ in clauses} == set(chosen)
    accused = [clause for clause in clauses if clause[2] in ("fail", "deadline")]
    assert not accused
    # a clause that can't be tried on a single one proves nothing here
    for name in {clause[1] for clause in clauses if clause[2] == "not_applicable"}:
        assert any(clause[1] == name and clause[2] == "pass" for clause in clauses), name
