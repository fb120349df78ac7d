"""Marks a test as a clause of a contract."""

from __future__ import annotations

__all__ = (
    "Clause",
    "MissedDeadline",
    "NotApplicable",
    "Undecided",
    "clause",
    "clause_of",
    "not_applicable",
)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "__penstock_clause__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """``claims`` names the capability that the clause proves, ``refuses`` the one whose absence it proves."""

    level: int = 1
    claims: str = ""
    refuses: str = ""


class NotApplicable(Exception):  # noqa: N818 # an outcome, not an error
    """The clause says nothing about this plugin or medium; the text says why."""


class MissedDeadline(Exception):  # noqa: N818 # an outcome, not an error
    """The clause didn't end in time, which proves nothing."""


class Undecided(Exception):  # noqa: N818 # an outcome, not an error
    """The clause broke off by something that isn't under test, which proves nothing; the text says what."""


def clause(*, level: int = 1, claims: str = "", refuses: str = "") -> Callable[[F], F]:
    """Declare a test's level and capability. Undeclared, a test is of level 1 and for every plugin of the kind."""

    def mark(function: F) -> F:
        setattr(function, _ATTRIBUTE, Clause(level=level, claims=claims, refuses=refuses))
        return function

    return mark


def clause_of(function: object) -> Clause:
    """The declaration of a test."""
    found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Clause) else Clause()


def not_applicable(reason: str) -> NoReturn:
    """Leave the clause: it can't be tried here."""
    raise NotApplicable(reason)
