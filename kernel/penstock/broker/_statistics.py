"""The statistics of a running broker."""

from __future__ import annotations

__all__ = ("BrokerStatistics", "resident_bytes")

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from penstock.spi.statistics import Measure, gauge, measures, parts, text


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatistics:
    """A snapshot of the statistics of all parts; ``memory`` is bytes by purpose."""

    memory_limit_bytes: Annotated[int, gauge("bytes", "Memory that payload may take.")]
    memory_used_bytes: Annotated[int, gauge("bytes", "Memory that payload takes.")]
    memory: Annotated[Mapping[str, int], gauge("bytes", "Memory that payload takes.", by="purpose")]
    resident_bytes: Annotated[int, gauge("bytes", "Memory that the process holds.")]
    tasks: Annotated[
        int, gauge("tasks", "Of the event loop; a request's and a waiting connection's among them.")
    ]
    parts: Annotated[Mapping[str, Any], parts("What every part says of itself.")]
    fetch_in_flight_bytes: Annotated[int, gauge("bytes", "What responses hold on their way to clients.")]
    unavailable_partitions: Annotated[Sequence[str], text("Partitions that are damaged and serve nobody.")]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "memory_limit_bytes": self.memory_limit_bytes,
            "memory_used_bytes": self.memory_used_bytes,
            "memory": dict(self.memory),
            "resident_bytes": self.resident_bytes,
            "tasks": self.tasks,
            **{name: _plain(part) for name, part in self.parts.items()},
            "fetch_in_flight_bytes": self.fetch_in_flight_bytes,
            "unavailable_partitions": list(self.unavailable_partitions),
        }


def resident_bytes() -> int:
    """Memory that this process holds, in bytes; 0 where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0  # no /proc here
    return pages * os.sysconf("SC_PAGE_SIZE")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {}
        several = _fields_of_parts(type(value))
        for field in dataclasses.fields(value):
            told = _plain(getattr(value, field.name))
            plain.update(told if field.name in several else {field.name: told})
        return plain
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _fields_of_parts(statistics: type[Any]) -> set[str]:
    """The fields that are parts by name: these names stand in place of the field's, as in ``figures``."""
    try:
        said = measures(statistics)
    except TypeError:
        return set()  # a plugin's, that doesn't say what its fields are; people can read it nevertheless
    return {name for name, what in said.items() if isinstance(what, Measure) and what.kind == "parts"}
