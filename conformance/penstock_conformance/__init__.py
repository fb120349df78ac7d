"""The conformance suite of Penstock's plugin contracts: clauses per kind, in ``test_KIND.py`` and
the modules whose names go on after that.

A *clause* is one test: its name says what is proved, its docstring quotes the rule in ``penstock.spi``. Clauses come
in five levels: 1 semantics, 2 races between processes, 3 crashes (a real SIGKILL, damage on the medium), 4 faults (a
medium that fills up, loses replies, or is away for a while), 5 cost (what an idle one does, what a long use leaves).

:func:`run` is what ``penstock conformance run`` calls. The same clauses run under a pytest of your own with
``pytest -p penstock_conformance.plugin --pyargs penstock_conformance --penstock-kind=wal --penstock-plugin=NAME``.
"""

from __future__ import annotations

__all__ = ("KINDS", "LEVELS", "STRATEGY", "SUITE_VERSION", "Target", "run")

from typing import TYPE_CHECKING, Any

from penstock_conformance import _catalogue
from penstock_conformance._target import KINDS, STRATEGY, SUITE_VERSION, Target

if TYPE_CHECKING:
    from penstock_conformance._run import run

#: The numbers of all levels.
LEVELS = tuple(_catalogue.LEVELS)


def __getattr__(name: str) -> Any:
    """``run`` is imported when it is used: child processes can do without pytest."""
    if name == "run":
        from penstock_conformance._run import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
