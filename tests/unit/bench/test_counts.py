"""The steps of the hot paths are counted, and don't grow unsaid (tools/bench/counts.py)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tools/bench/counts.py"
AGREED = ROOT / "tools/bench/counts.txt"


@pytest.fixture(scope="module")
def counts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_counts", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_counts"] = module
    spec.loader.exec_module(module)
    return module


def test_no_hot_path_takes_more_steps_than_agreed() -> None:
    # a process of its own: what traces tests here would be counted there, and the other way round
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [line.split()[1] for line in done.stdout.splitlines() if line[:2] == "3."]
    assert cases == [
        "produce",
        "validation",
        "produce-idempotent",
        "produce-alone",
        "fetch-small-batch",
    ]


@pytest.mark.parametrize(("now", "is_fault"), [(1000, False), (1050, False), (1052, True), (900, False)])
def test_a_count_may_grow_by_a_twentieth(counts: ModuleType, now: float, is_fault: bool) -> None:
    known = {"produce": counts.Counts(1000, 20, 10)}
    faults = counts.grown({"produce": counts.Counts(now, 20, 10)}, known)
    assert bool(faults) is is_fault


def test_a_case_needs_a_figure(counts: ModuleType) -> None:
    assert counts.grown({"new": counts.Counts(1, 1, 1)}, {})


def test_each_agreed_figure_has_its_reason(counts: ModuleType) -> None:
    text = AGREED.read_text()
    assert counts.agreed(text, "3.11")
    with pytest.raises(ValueError, match="not enough values"):
        counts.agreed("3.11 produce 1 2 3", "3.11")
