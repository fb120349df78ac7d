"""The base of every plugin's config model, with sizes and durations as people write them."""

from __future__ import annotations

__all__ = ("Duration", "Settings", "Size")

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from penstock.units import parse_duration_ms, parse_size

#: Bytes; written as ``512MiB`` or a plain integer.
Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema({"type": "string", "format": "size"})]

#: Milliseconds; written as ``250ms``, ``30s``, ``7d``.
Duration = Annotated[
    int, BeforeValidator(parse_duration_ms), WithJsonSchema({"type": "string", "format": "duration"})
]


class Settings(BaseModel):
    """Frozen, typed, closed: an unknown key is an error. Give each field a ``Field(description=...)``.

    The description is what ``penstock plugins info NAME`` and ``penstock config explain`` show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
