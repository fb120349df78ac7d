"""Deliberately broken plugins, which the suite must catch by name: the suite's own test.

They ship with the suite, so that whoever changes or extends a clause can prove it the same way::

    penstock conformance run wal -p penstock_conformance.mutants --plugin mutant --set defect=ignores_the_fence

Each is a reference implementation with one thing wrong. ``MUTANTS`` names them all, with the clauses that must fail.
"""

from __future__ import annotations

__all__ = ("MUTANTS", "Mutant")

from penstock_conformance._hooks import hooks_in
from penstock_conformance.mutants._mutant import MUTANTS, Mutant

# a plugin's hooks are its module's attributes; each kind's module has its own, and its mutants
globals().update(hooks_in(__name__, __path__))
