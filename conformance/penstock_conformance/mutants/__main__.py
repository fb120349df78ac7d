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
#: A race or a kill hits the moment that a mutant gets wrong, or doesn't; each try has another seed.
_TRIES = {1: 1, 2: 4, 3: 4}


def try_mutant(mutant: Mutant) -> dict[str, object]:
    """What failed, and which of the clauses that should have failed didn't."""
    survived = set(mutant.caught_by)
    failed: dict[str, str] = {}
    seconds = 0.0
    for seed in range(_TRIES[mutant.level]):
        target = Target(
            kind=mutant.kind,
            plugin="mutant",
            settings={"defect": mutant.defect},
            modules=("penstock_conformance.mutants",),
            levels=(mutant.level,),
            deadline_s=_DEADLINE_S,
            seed=seed,
        )
        report = run(target, select=" or ".join(f"test_{name}" for name in sorted(survived)))
        failed |= {result.name: result.detail for result in report.clauses if result.outcome == "fail"}
        seconds += report.duration_s
        survived -= set(failed)
        if not survived:
            break
    return {
        "kind": mutant.kind,
        "defect": mutant.defect,
        "failed": failed,
        "survived": sorted(survived),
        "seconds": seconds,
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
