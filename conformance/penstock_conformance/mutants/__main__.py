"""Put the mutants through the clauses that must catch them, and print the table; exit code 1 if one survives.

``python -m penstock_conformance.mutants [--json] [--all-clauses | --alone] [KIND | DEFECT | KIND:DEFECT ...]``

``--json`` prints one JSON line each instead. ``--all-clauses`` tries every clause of the mutant's level, and tells
which others notice, too. ``--alone`` runs clauses without sessions of pytest, in half the time, and
says less of what was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from penstock_conformance import Target, run
from penstock_conformance._catalogue import LEVELS
from penstock_conformance._run import run_alone
from penstock_conformance._target import STRATEGY
from penstock_conformance.mutants import MUTANTS, Mutant

#: For mutants that don't hang: a busy machine must neither catch one by slowness nor let one by.
_DEADLINE_S = 60.0
#: A whole broker is started and stopped several times, and so is its client.
_STRATEGY_DEADLINE_S = 180.0
#: Of a mutant that keeps something with each use, each use takes longer than the one before, and there are most.
_COST_DEADLINE_S = 180.0
#: For those that are caught because they hang.
_HANG_S = 2.0
#: A race or a kill hits the moment that a mutant gets wrong, or doesn't; each try has another seed.
_TRIES = {1: 1, 2: 4, 3: 4, 4: 1, 5: 1}
_SEMANTICS, _COST = 1, 5
#: So does a random life of a cluster.
_LIVES = 4
#: A file system in memory: nothing is synced, so the same clauses take a tenth of the time.
_MEMORY = Path("/dev/shm")


def try_mutant(mutant: Mutant, all_clauses: bool = False, alone: bool = False) -> dict[str, object]:
    """What failed, and which of the clauses that should have failed didn't."""
    survived = set(mutant.caught_by)
    caught: dict[str, str] = {}
    seconds = 0.0
    outcome = "deadline" if mutant.hangs else "fail"
    patient_s = _COST_DEADLINE_S if mutant.level == _COST else _DEADLINE_S
    if mutant.kind == STRATEGY and mutant.level == _SEMANTICS:  # the others' deadline is so long anyway
        patient_s = _STRATEGY_DEADLINE_S
    for seed in range(_LIVES if mutant.kind == STRATEGY else _TRIES[mutant.level]):
        target = Target(
            kind=mutant.kind,
            plugin=mutant.plugin,
            settings=mutant.all_settings(),
            modules=("penstock_conformance.mutants",),
            levels=(mutant.level,),
            deadline_s=_HANG_S if mutant.hangs else patient_s,
            seed=seed,
            work_dir=str(_MEMORY) if _MEMORY.is_dir() and not mutant.on_disk else tempfile.gettempdir(),
        )
        # the rest of the suite, and where in the text each one failed, would take most of the time
        started = time.monotonic()
        if alone:
            results = run_alone(target, sorted(survived))
        else:
            results = run(target, clauses=() if all_clauses else sorted(survived), tracebacks=False).clauses
        caught |= {result.name: result.detail for result in results if result.outcome == outcome}
        seconds += time.monotonic() - started
        survived -= set(caught)
        if not survived:
            break
    return {
        "kind": mutant.kind,
        "defect": mutant.defect,
        "level": mutant.level,
        "caught_by": {name: caught[name] for name in mutant.caught_by if name in caught},
        "noticed_by": sorted(set(caught) - set(mutant.caught_by)),
        "survived": sorted(survived),
        "seconds": round(seconds, 3),
    }


def _row(tried: dict[str, object]) -> str:
    """A line of the table: kind, level, defect, and each clause with what it said."""
    head = f"{tried['kind']:<13} {tried['level']}  {tried['defect']}\n"
    caught, survived, noticed = tried["caught_by"], tried["survived"], tried["noticed_by"]
    assert isinstance(caught, dict)
    assert isinstance(survived, list)
    assert isinstance(noticed, list)
    lines = [f"    caught by {name}: {said}\n" for name, said in caught.items()]
    lines += [f"    NOT CAUGHT by {name}\n" for name in survived]
    if noticed:
        lines.append(f"    noticed by {', '.join(noticed)}\n")
    return head + "".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Try all mutants of the kinds or defects that are named, or all there are."""
    parser = argparse.ArgumentParser(prog="python -m penstock_conformance.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="KIND, DEFECT or KIND:DEFECT", help="only these")
    parser.add_argument("--json", action="store_true", help="one JSON line each")
    parser.add_argument("--all-clauses", action="store_true", help="try all clauses of the mutant's level")
    parser.add_argument("--alone", action="store_true", help="run clauses without sessions of pytest")
    options = parser.parse_args(arguments)
    names = set(options.names)
    tried = survivors = 0
    for mutant in MUTANTS.values():
        if names and not names & {mutant.kind, mutant.defect, f"{mutant.kind}:{mutant.defect}"}:
            continue
        line = try_mutant(mutant, options.all_clauses, options.alone)
        tried += 1
        survivors += bool(line["survived"])
        sys.stdout.write(json.dumps(line) + "\n" if options.json else _row(line))
        sys.stdout.flush()
    if not options.json:
        levels = ", ".join(f"{number} {noun}" for number, noun in LEVELS.items())
        sys.stdout.write(f"{tried - survivors} of {tried} mutants were caught (levels: {levels})\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
