"""Which clauses there are, from the suite's own text: nothing is imported, and nothing has to be tried."""

from __future__ import annotations

__all__ = ("LEVELS", "clause_files", "clause_names", "clause_places")

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent

#: The levels, and what a clause of each is called in a verdict.
LEVELS = {1: "semantics", 2: "race", 3: "crash", 4: "fault", 5: "cost"}


@cache
def clause_files(kind: str) -> Sequence[Path]:
    """The modules of a kind: ``test_<kind>.py``, the contract word by word, and what is added to it beside that."""
    return sorted([_FOLDER / f"test_{kind}.py", *_FOLDER.glob(f"test_{kind}_*.py")])


@cache
def clause_places(kind: str) -> Mapping[str, Path]:
    """Each clause of a kind, without its ``test_``, in the order of the text, and the module that it is in."""
    return {
        node.name.removeprefix("test_"): path
        for path in clause_files(kind)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def clause_names(kind: str) -> Sequence[str]:
    """All clauses of a kind, without their ``test_``, in the order of the text."""
    return list(clause_places(kind))
