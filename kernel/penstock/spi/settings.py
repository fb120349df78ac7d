"""The base of every plugin's config model, with sizes and durations as people write them."""

from __future__ import annotations

__all__ = ("Duration", "Settings", "Size")

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from penstock.units import parse_duration_ms, parse_size

#: Bytes; written as ``512MiB`` or a plain integer.
Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema({"type": "string", "format": "size"})]


def _parse_duration(value: str | int) -> int:
    """Milliseconds; an integer, as in a default or in code, is taken as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return parse_duration_ms(value)


#: Milliseconds: an integer in code and in defaults, ``250ms``, ``30s`` or ``7d`` in files and variables (where
#: the kernel refuses a bare number, so that nobody has to guess its unit).
Duration = Annotated[
    int, BeforeValidator(_parse_duration), WithJsonSchema({"type": "string", "format": "duration"})
]


class Settings(BaseModel):
    """Frozen, typed, closed: an unknown key is an error. Give each field a ``Field(description=...)``.

    The description is what ``penstock plugins info NAME`` and ``penstock config explain`` show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
