"""Units, kinds and meanings of figures in statistics, at the fields themselves: exporters need no list of their own.

Statistics are frozen dataclasses. Each field is one of:

- a figure: ``hits: Annotated[int, counter("blocks", "Blocks that were there.")]``;
- figures by a key: ``Annotated[Mapping[str, int], gauge("bytes", "Memory in use.", by="purpose")]``;
- a text, for people: ``Annotated[str, text("Why it failed.")]``;
- a part: another dataclass of statistics, or ``Annotated[Mapping[str, Any], parts("...")]``, several by name.
"""

from __future__ import annotations

__all__ = ("Measure", "counter", "figures", "gauge", "measures", "parts", "text")

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Measure:
    """The meaning of one field. ``unit`` is a plural word, ``ms``, ``s``, ``us``, or empty where there is none."""

    #: A counter only grows, from 0 at the start; a gauge is how it is now.
    kind: Literal["counter", "gauge", "text", "parts"]
    unit: str
    #: One sentence.
    help: str
    #: What the keys of a mapping are; empty for a single figure.
    by: str = ""


def counter(unit: str, help: str, *, by: str = "") -> Measure:  # noqa: A002 # the field's word
    """The measure of a figure that only grows, from 0 at the start."""
    return Measure("counter", unit, help, by)


def gauge(unit: str, help: str, *, by: str = "") -> Measure:  # noqa: A002 # the field's word
    """The measure of a figure that goes up and down; its value is that of the moment."""
    return Measure("gauge", unit, help, by)


def text(help: str) -> Measure:  # noqa: A002 # the field's word
    """The measure of a text for people, which no exporter can count."""
    return Measure("text", "", help)


def parts(help: str) -> Measure:  # noqa: A002 # the field's word
    """The measure of a mapping from names to statistics, each a dataclass of its own."""
    return Measure("parts", "", help)


def measures(statistics: type[Any]) -> Mapping[str, Measure | type[Any]]:
    """The measure of each field of a dataclass of statistics; for a part, its dataclass.

    Raises TypeError for a field without one.
    """
    hints = get_type_hints(statistics, include_extras=True)
    found: dict[str, Measure | type[Any]] = {}
    for field in dataclasses.fields(statistics):
        hint = hints[field.name]
        said = [item for item in get_args(hint) if isinstance(item, Measure)]
        if get_origin(hint) is Annotated and len(said) == 1:
            found[field.name] = said[0]
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found[field.name] = hint
        else:
            raise TypeError(f"a field doesn't say what it is: field={statistics.__name__}.{field.name}")
    return found


def figures(statistics: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Measure, Any]]:
    """Each figure and text of ``statistics`` and of its parts: the names that lead to it, what it is, its value."""
    for name, said in measures(type(statistics)).items():
        value = getattr(statistics, name)
        if not isinstance(said, Measure):
            yield from figures(value, (*path, name))
        elif said.kind == "parts":
            for part, inner in value.items():
                yield from figures(inner, (*path, part))
        else:
            yield (*path, name), said, value
