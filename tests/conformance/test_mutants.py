"""The suite is tested with broken plugins: each must fail the clauses that it declares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from tests.patience import HANG_S

from penstock_conformance import KINDS
from penstock_conformance.mutants import MUTANTS

_Outcomes = dict[str, dict[str, Any]]


def _try_all(kind: str) -> _Outcomes:
    """What came out for all mutants of a kind; they share one process, because starting one costs most."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock_conformance.mutants", "--json", kind],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PENSTOCK_LOAD_PLUGINS": "",
            "CI": "true",
        },  # where pytest would tell differences in full
        timeout=HANG_S,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return {line["defect"]: line for line in lines}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[_Outcomes]]]:
    """By kind. Mutants mostly hang until their deadline, so several kinds at once cost little more than one."""
    kinds = {
        str(item.callspec.params["kind"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_mutant_is_caught_by_name
    }
    with ThreadPoolExecutor(max_workers=3) as pool:
        yield {kind: pool.submit(_try_all, kind) for kind in sorted(kinds)}


@pytest.mark.parametrize(("kind", "defect"), sorted(MUTANTS))
def test_mutant_is_caught_by_name(kind: str, defect: str, outcomes: dict[str, Future[_Outcomes]]) -> None:
    """Every clause that the mutant names fails."""
    tried = outcomes[kind].result()
    assert defect in tried, f"the run broke off before this mutant, after: {list(tried)}"
    assert tried[defect]["survived"] == [], f"not caught: {tried[defect]}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_mutants(kind: str) -> None:
    """At least five broken plugins a kind, and only known kinds have any."""
    assert sum(mutant.kind == kind for mutant in MUTANTS.values()) >= 5
    assert {mutant.kind for mutant in MUTANTS.values()} == set(KINDS)
