"""The contract of its kind, first level: semantics. ``penstock conformance run`` tries the other levels, too."""

from __future__ import annotations

from penstock_conformance import Target, run


def test_level_1_of_the_contract_holds() -> None:
    # the deadline is that of a clause, on a busy machine
    report = run(Target(kind="template_kind", plugin="template_name", levels=(1,), deadline_s=60))
    assert report.passed, "\n".join([report.verdict, *(clause.traceback for clause in report.clauses)])
