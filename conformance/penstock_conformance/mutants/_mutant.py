"""The registration of mutants: what is wrong with each, and which clauses must notice."""

from __future__ import annotations

__all__ = ("DEFECT", "MUTANTS", "NAME", "SUMMARY", "Defective", "Mutant", "find", "make", "mutant")

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import Field

from penstock.errors import ConfigError
from penstock.spi import Settings
from penstock_conformance._target import STRATEGY

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
    medium that is ``on_disk``. One whose registration is wrong has a ``plugin`` of its own. What is wrong with a
    strategy is its plugin of the kind ``part``; ``settings`` are those of the other parts.
    """

    kind: str
    defect: str
    caught_by: tuple[str, ...]
    level: int
    make: Callable[..., Any]
    hangs: bool = False
    on_disk: bool = False
    part: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    plugin: str = NAME

    def all_settings(self) -> Mapping[str, str]:
        """What selects it: settings of the plugin, or of a strategy."""
        if self.plugin != NAME:
            return {}
        if not self.part:
            return {"defect": self.defect}
        return {f"{self.part}.plugin": NAME, f"{self.part}.defect": self.defect, **self.settings}


#: All mutants by kind and defect.
MUTANTS: dict[tuple[str, str], Mutant] = {}


def mutant(
    kind: str,
    defect: str,
    *caught_by: str,
    level: int = 1,
    hangs: bool = False,
    on_disk: bool = False,
    part: str = "",
    settings: Mapping[str, str] | None = None,
    plugin: str = NAME,
) -> Callable[[C], C]:
    """Register a class as the mutant ``defect`` of ``kind``."""
    assert caught_by, "a mutant names the clauses that must catch it"

    def register(made: C) -> C:
        assert (kind, defect) not in MUTANTS, f"two mutants of one name: {kind} {defect}"
        MUTANTS[kind, defect] = Mutant(
            kind, defect, caught_by, level, made, hangs, on_disk, part, settings or {}, plugin
        )
        return made

    return register


def find(kind: str, defect: str) -> Mutant | None:
    """The mutant of a kind of plugins, or of a strategy of which such a plugin is what is wrong."""
    of_strategy = MUTANTS.get((STRATEGY, defect))
    if of_strategy is not None and of_strategy.part == kind:
        return of_strategy
    return MUTANTS.get((kind, defect))


def make(kind: str, defect: str, *arguments: Any) -> Any:
    """The broken object. Raises ConfigError for a defect that isn't known."""
    found = find(kind, defect)
    if found is None:
        known = ", ".join(sorted(name for other, name in MUTANTS if other == kind))
        raise ConfigError(f"no mutant of this kind has this defect, choose from {known}: defect={defect!r}")
    return found.make(*arguments)
