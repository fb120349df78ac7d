"""The base of every plugin's config model, with sizes and durations as people write them."""

from __future__ import annotations

__all__ = ("Duration", "PluginTable", "Settings", "Size", "plugin_tables")

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

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


class PluginTable(BaseModel):
    """A table of a plugin's settings that configures another plugin, which the first one opens.

    A subclass says of which ``kind`` that is; fields of :class:`Settings` have it as their type, or a tuple of it::

        class Replica(PluginTable):
            kind = "wal"

        class Settings(BaseSettings):
            replicas: tuple[Replica, ...] = Field(default=(...), description="...")

    People write ``replicas = [{ plugin = "wal_block", path = "a.wal" }]``. The kernel checks the other plugin's keys
    with everything else; ``penstock.spi.Services.open_plugin`` opens it.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: ClassVar[str]

    plugin: str = Field(min_length=1)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The other plugin's keys, unchecked."""
        return self.model_extra or {}


def plugin_tables(settings: Settings) -> Iterator[tuple[tuple[str, ...], PluginTable]]:
    """Each table of another plugin in ``settings``, with the path of its key: ``("replicas", "1")``."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, PluginTable):
            yield (name,), value
        elif isinstance(value, tuple | list):
            for index, item in enumerate(value):
                if isinstance(item, PluginTable):
                    yield (name, str(index)), item
