"""Plugins of several kinds that are right in unusual ways: no clause accuses them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import pytest
from tests.depth import how_many
from tests.keeper import in_memory
from tests.patience import HANG_S

#: The ways of each kind's unusual plugin, those that differ most first, the levels, and the clauses.
_WAYS: dict[str, tuple[Sequence[str], Sequence[int], str]] = {
    "object_store": (
        [
            "lists_in_any_order",
            "ticks",
            "no_conditions",
            "tiny_pages",
            "loses_replies",
            "gives_views",
            "compresses",
        ],
        (1,),
        (
            "operations_agree or told_alike or minds_empty or listings_are_each or deleted_objects or half_way"
            " or replaced_while or files_are or unclaimed or append"
            " or time_of"
        ),
    ),
    "wal": (
        [
            *(
                "completes_at_once",
                "says_that_it_lives",
                "an_entry_a_group",
                "positions_with_gaps",
                "never_trims",
            ),
            *("completes_in_bursts", "completes_one_by_one", "compresses", "gives_copies", "in_memory"),
        ],
        (1, 4),
        (
            "trim_past or trim_below or part_permits or end_of_an_empty or a_callback or failed_writes or power_cut"
            " or formatting or given_up_keeps or files_are or however_late or callback_that_raises or unsynced"
            " or short_writes or outside or describing or looking_for"
        ),
    ),
    "log_cache": (
        ["entry_by_entry", "evicts_blocks", "flat", "copies", "compacts_frozen_blocks", "drops_with_blocks"],
        (1,),
        "model or deleted or come_again or frozen or wait_for_their",
    ),
    "lake_compactor": (
        ["file_per_row", "writes_at_the_commit", "partition_by_partition", "named_by_id"],
        (1,),
        "histories or kept_is_charged or failed_attempts or epochs_are or topic_is_who or nothing_is_visible",
    ),
    "partitioner": (
        ["anywhere", "sticky", "shortest", "in_turn", "java_only", "two_choices"],
        (1,),
        "model or keyless or unavailable or drain or newest or new_partitions",
    ),
}
_SCRIPT = """
import json, sys
from penstock_conformance import Target, run

plugins_dir, work_dir, deadline_s, orders = json.loads(sys.argv[1])
for kind, plugin, ways, levels, select in orders:
    for way in ways:
        target = Target(kind=kind, plugin=plugin, settings={"way": way} if way else {}, plugins_dirs=(plugins_dir,),
                        work_dir=work_dir, levels=tuple(levels), deadline_s=deadline_s)
        for clause in run(target, select=select).clauses:
            print(json.dumps([kind, way, clause.name, clause.outcome, clause.detail]))
"""


def _ways(kind: str) -> Sequence[str]:
    return _WAYS[kind][0][: how_many("unusual")]


@pytest.fixture(scope="module")
def clauses(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Sequence[Sequence[str]]:
    """Kind, way, name, outcome and detail of each; by one process, because starting it costs most."""
    chosen = [str(item.callspec.params["kind"]) for item in request.session.items if _is_of_this_module(item)]
    orders = [(kind, f"unusual_{kind}", _ways(kind), *_WAYS[kind][1:]) for kind in chosen]
    if "wal" in chosen:  # a log that drops whole groups only
        orders.append(("wal", "plain_store_wal", [""], (1,), "needs_of_the_store"))
    place = in_memory() or tmp_path_factory.mktemp("unusual")
    plugins = Path(__file__).with_name("_plugins")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps([str(plugins), str(place), HANG_S / 3, orders])],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", _WAYS)
def test_what_the_contract_leaves_open_is_not_accused(kind: str, clauses: Sequence[Sequence[str]]) -> None:
    mine = [clause for clause in clauses if clause[0] == kind]
    assert {way for _, way, *_ in mine} >= set(_ways(kind))
    assert not [clause for clause in mine if clause[3] in ("fail", "deadline")]


def _is_of_this_module(item: pytest.Item) -> TypeGuard[pytest.Function]:
    return (
        isinstance(item, pytest.Function)
        and item.function is test_what_the_contract_leaves_open_is_not_accused
    )
