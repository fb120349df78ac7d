"""The registration of mutants: what is wrong with each, and which clauses must notice."""

from __future__ import annotations

__all__ = ("DEFECT", "MUTANTS", "NAME", "SUMMARY", "Defective", "Mutant", "make", "mutant")

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import Field

from penstock.errors import ConfigError
from penstock.spi import Settings

C = TypeVar("C", bound=type)

#: How the plugins that register mutants describe themselves, and the setting that chooses one.
NAME: Final = "mutant"
SUMMARY: Final = "deliberately broken, to test the conformance suite"
DEFECT: Final = "what is wrong with it"


class Defective(Settings):
    """Which mutant it is."""

    defect: str = Field(description=DEFECT)


@dataclass(frozen=True, slots=True)
class Mutant:
    """``caught_by`` are clauses, all of which must fail; they are of ``level``.

    One that ``hangs`` is caught by their deadlines instead. One that is caught by how files are written needs a
    medium that is ``on_disk``.
    """

    kind: str
    defect: str
    caught_by: tuple[str, ...]
    level: int
    make: Callable[..., Any]
    hangs: bool = False
    on_disk: bool = False


#: All mutants by kind and defect.
MUTANTS: dict[tuple[str, str], Mutant] = {}


def mutant(
    kind: str, defect: str, *caught_by: str, level: int = 1, hangs: bool = False, on_disk: bool = False
) -> Callable[[C], C]:
    """Register a class as the mutant ``defect`` of ``kind``."""
    assert caught_by, "a mutant names the clauses that must catch it"

    def register(made: C) -> C:
        assert (kind, defect) not in MUTANTS, f"two mutants of one name: {kind} {defect}"
        MUTANTS[kind, defect] = Mutant(kind, defect, caught_by, level, made, hangs, on_disk)
        return made

    return register


def make(kind: str, defect: str, *arguments: Any) -> Any:
    """The broken object. Raises ConfigError for a defect that isn't known."""
    if (kind, defect) not in MUTANTS:
        known = ", ".join(sorted(name for other, name in MUTANTS if other == kind))
        raise ConfigError(f"no mutant of this kind has this defect, choose from {known}: defect={defect!r}")
    return MUTANTS[kind, defect].make(*arguments)
