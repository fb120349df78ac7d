"""The suite is tested with broken plugins: each must fail the clauses that it declares."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from penstock_conformance import KINDS
from penstock_conformance.mutants import MUTANTS


@functools.cache
def _tried(kind: str) -> dict[str, dict[str, Any]]:
    """What came out for all mutants of a kind; they share one process, because starting one costs most."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock_conformance.mutants", kind],
        capture_output=True,
        text=True,
        env={**os.environ, "PENSTOCK_LOAD_PLUGINS": ""},
        timeout=110,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return {line["defect"]: line for line in lines}


@pytest.mark.parametrize(("kind", "defect"), sorted(MUTANTS))
def test_mutant_is_caught_by_name(kind: str, defect: str) -> None:
    """Every clause that the mutant names fails."""
    tried = _tried(kind)
    assert defect in tried, f"the run broke off before this mutant, after: {list(tried)}"
    assert tried[defect]["survived"] == [], f"not caught: {tried[defect]}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_mutants(kind: str) -> None:
    """At least five broken plugins a kind, and only known kinds have any."""
    assert sum(mutant.kind == kind for mutant in MUTANTS.values()) >= 5
    assert {mutant.kind for mutant in MUTANTS.values()} == set(KINDS)
