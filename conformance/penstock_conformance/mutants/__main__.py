"""Put the mutants through the clauses that must catch them; one JSON line each, exit code 1 if one survives.

``python -m penstock_conformance.mutants [KIND ...]``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from penstock_conformance import Target, run
from penstock_conformance.mutants import MUTANTS, Mutant

_DEADLINE_S = 3.0


def try_mutant(mutant: Mutant) -> dict[str, object]:
    """What failed, and which of the clauses that should have failed didn't."""
    target = Target(
        kind=mutant.kind,
        plugin="mutant",
        settings={"defect": mutant.defect},
        modules=("penstock_conformance.mutants",),
        levels=(mutant.level,),
        deadline_s=_DEADLINE_S,
    )
    report = run(target, select=" or ".join(f"test_{name}" for name in mutant.caught_by))
    failed = {result.name: result.detail for result in report.clauses if result.outcome == "fail"}
    return {
        "kind": mutant.kind,
        "defect": mutant.defect,
        "failed": failed,
        "survived": sorted(set(mutant.caught_by) - set(failed)),
        "seconds": report.duration_s,
    }


def main(kinds: Sequence[str]) -> int:
    """Try all mutants of ``kinds``, or all there are."""
    survivors = 0
    for mutant in MUTANTS.values():
        if not kinds or mutant.kind in kinds:
            line = try_mutant(mutant)
            survivors += bool(line["survived"])
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
