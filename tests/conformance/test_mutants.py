"""The suite is tested with broken plugins: each must fail the clauses that it declares."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from tests.depth import in_full
from tests.keeper import MARK
from tests.patience import HANG_S

from penstock_conformance import KINDS, STRATEGY, Target, run
from penstock_conformance._run import run_alone
from penstock_conformance.mutants import MUTANTS

_Outcomes = dict[tuple[str, str], dict[str, Any]]


#: Mutants that share a process, because starting one costs most; few enough that a busy machine has time for them.
_AT_ONCE = 75
#: A mutant of a strategy takes as long as a dozen others.
_STRATEGIES_AT_ONCE = 6


def _try_all(names: Sequence[tuple[str, str]]) -> _Outcomes:
    """What came out for these mutants, by kind and defect: all of plugins, or all of strategies."""
    # CI: pytest would tell differences in full; those that are in no memory are on a disk
    env = {**os.environ, "CI": "true", "TMPDIR": os.environ[MARK]}
    if names[0][0] != STRATEGY:
        env["PENSTOCK_LOAD_PLUGINS"] = ""  # they stand alone; a strategy is a broker with all its plugins
    done = subprocess.run(
        [
            *(sys.executable, "-m", "penstock_conformance.mutants", "--json", "--alone"),
            *(f"{kind}:{defect}" for kind, defect in names),
        ],
        capture_output=True,
        text=True,
        env=env,
        timeout=HANG_S,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return {(line["kind"], line["defect"]): line for line in lines}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[_Outcomes]]]:
    """By kind and defect. Mutants mostly hang until their deadline, so several at once cost little more than one."""
    chosen = [
        (str(item.callspec.params["kind"]), str(item.callspec.params["defect"]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_mutant_is_caught_by_name
    ]
    with ThreadPoolExecutor(max_workers=3) as pool:
        found: dict[tuple[str, str], Future[_Outcomes]] = {}
        strategies = [name for name in chosen if name[0] == STRATEGY]
        others = [name for name in chosen if name[0] != STRATEGY]
        for names, at_once in ((others, _AT_ONCE), (strategies, _STRATEGIES_AT_ONCE)):
            for start in range(0, len(names), at_once):
                part = names[start : start + at_once]
                found |= dict.fromkeys(part, pool.submit(_try_all, part))
        yield found


#: Of strategies, what is caught in a few seconds.
_QUICK = ("stays_in_memory",)

#: Clauses of thousands of steps, megabytes or waits: a mutant for each takes as long as ten for others.
_LONG = (
    *("thousands_of_keys_are_listed_and_deleted", "reader_waits_for_memory_of_others"),
    *("memory_does_not_grow_with_keys", "the_largest_batch_and_a_larger_record"),
    *("large_snapshot_comes_back_whole", "object_of_thousands_of_blocks_is_forgotten"),
    *("durable_entries_take_no_memory", "long_use_grows_nothing", "many_partitions_are_all_used"),
    *("end_leaves_no_load_and_no_reader", "cancelled_loader_strands_nobody"),
    *("tens_of_thousands_of_entries_come_back", "random_choices_agree_with_a_model"),
    *("each_way_of_writing_is_atomic", "waiters_are_answered_at_the_end"),
    *("ranges_lie_right_in_large_objects", "released_memory_goes_back_to_the_system"),
    *("more_than_four_thousand_entries_are_read", "objects_appear_whole_between_processes"),
)


def _tried() -> Iterator[object]:
    """In each run the first mutants that each clause catches, but for long ones; in the full run all there are."""
    caught: set[tuple[str, str]] = set()
    for (kind, defect), mutant in sorted(MUTANTS.items()):
        by = {(kind, clause) for clause in mutant.caught_by if clause not in _LONG}
        if defect in _QUICK if kind == STRATEGY else not by <= caught:
            caught |= by
            yield kind, defect
        else:
            yield from in_full((kind, defect))


@pytest.mark.parametrize(("kind", "defect"), list(_tried()))
def test_mutant_is_caught_by_name(
    kind: str, defect: str, outcomes: dict[tuple[str, str], Future[_Outcomes]]
) -> None:
    """Every clause that the mutant names fails."""
    tried = outcomes[kind, defect].result()
    assert (kind, defect) in tried, f"the run broke off before this mutant, after: {list(tried)}"
    assert tried[kind, defect]["survived"] == [], f"not caught: {tried[kind, defect]}"


def test_clauses_without_a_session_of_pytest_come_out_as_in_one() -> None:
    """One fails, one passes, one doesn't apply."""
    target = Target(
        kind="wal",
        plugin="mutant",
        settings={"defect": "acks_after_the_seal"},
        modules=("penstock_conformance.mutants",),
        levels=(1,),
    )
    gc.freeze()
    frozen = gc.get_freeze_count()
    session = run(target, select="seal or new_log", tracebacks=False).clauses
    alone = run_alone(target, [clause.name for clause in session])
    assert gc.get_freeze_count() > frozen / 2, (
        "who had frozen a heap would have its garbage looked for in all of it"
    )
    assert {clause.outcome for clause in session} == {"pass", "fail", "not_applicable"}
    assert [(each.name, each.outcome) for each in alone] == [(each.name, each.outcome) for each in session]


@pytest.mark.parametrize("kind", [*KINDS, STRATEGY])
def test_every_kind_has_mutants(kind: str) -> None:
    """At least five broken plugins a kind, and only known kinds have any."""
    assert sum(mutant.kind == kind for mutant in MUTANTS.values()) >= 5
    assert {mutant.kind for mutant in MUTANTS.values()} == {*KINDS, STRATEGY}
