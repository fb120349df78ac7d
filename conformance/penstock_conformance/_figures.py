"""Statistics over a time: what no snapshot may do to the ones before it, whatever the kind."""

from __future__ import annotations

__all__ = ("Figures",)

from collections.abc import Mapping
from typing import Any

from penstock.spi.statistics import Measure, measures


class Figures:
    """The snapshots of one opened plugin, whose statistics are of the class ``kind`` of its contract."""

    def __init__(self, kind: type[Any]) -> None:
        self._measures = {
            name: measure for name, measure in measures(kind).items() if isinstance(measure, Measure)
        }
        self._first: tuple[Any, Mapping[str, Any]] | None = None
        self._last: Mapping[str, Any] = {}

    def look(self, statistics: Any) -> Any:
        """Take the next snapshot: no counter is less than in the one before. Returns it."""
        told = self._told(statistics)
        for name, measure in self._measures.items():
            if measure.kind == "counter":
                before = self._last.get(name, 0)
                assert told[name] >= before, f"a counter fell: {name}={told[name]} before={before}"
        self._last = told
        self._first = self._first or (statistics, told)
        return statistics

    def end(self) -> None:
        """The first snapshot is still what it was."""
        if self._first is None:
            return
        snapshot, told = self._first
        now = self._told(snapshot)
        changed = [name for name in told if told[name] != now[name]]
        assert not changed, f"a snapshot changed after it was taken: {', '.join(changed)}"

    def _told(self, statistics: Any) -> Mapping[str, Any]:
        told = {name: getattr(statistics, name) for name in self._measures}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in told.items()}
