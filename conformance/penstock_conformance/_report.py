"""The report of a run, as JSON and as a table."""

from __future__ import annotations

__all__ = ("ClauseResult", "Report")

import dataclasses
import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import penstock
from penstock.plugins import PluginInfo
from penstock_conformance._target import SUITE_VERSION, Target

#: Version of the report's own form.
REPORT_VERSION = 1

_SECRET = re.compile(r"secret|password|token|key|options", re.IGNORECASE)
_USERINFO = re.compile(r"(//)[^/@\s]+@")


@dataclass(slots=True, kw_only=True)
class ClauseResult:
    """``outcome`` is one of ``pass``, ``fail``, ``unclaimed``, ``unclaimed_passes``, ``not_applicable``."""

    name: str
    rule: str
    level: int
    capability: str
    outcome: str = ""
    duration_ms: float = 0.0
    detail: str = ""
    traceback: str = ""


@dataclass(slots=True, eq=False)
class Report:
    """One run of the suite; :meth:`to_json` is what ``--report`` writes."""

    target: Target
    info: PluginInfo
    clauses: list[ClauseResult] = field(default_factory=list)
    #: Of the opened instance; None until it was opened.
    capabilities: Mapping[str, Any] | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration_s: float = 0.0

    def add(self, result: ClauseResult) -> None:
        """Take one clause's result."""
        self.clauses.append(result)

    def finish(self) -> None:
        """The run is over; clauses in a stable order, whatever order they ran in."""
        self.duration_s = round((datetime.now(UTC) - self.started).total_seconds(), 3)
        self.clauses.sort(key=lambda result: (result.level, result.name))

    @property
    def passed(self) -> bool:
        """Something was proved and nothing failed."""
        outcomes = self.counts
        return outcomes["fail"] == 0 and outcomes["pass"] > 0

    @property
    def counts(self) -> Counter[str]:
        """Clauses by outcome."""
        return Counter(result.outcome for result in self.clauses)

    def to_json(self) -> str:
        """The report as a JSON document; secrets in settings are masked."""
        target = self.target
        document = {
            "report_version": REPORT_VERSION,
            "suite_version": SUITE_VERSION,
            "penstock_version": penstock.__version__,
            "result": "pass" if self.passed else "fail",
            "plugin": {
                "kind": self.info.kind,
                "name": self.info.name,
                "version": self.info.version,
                "spi_version": self.info.spi_version,
                "origin": self.info.origin,
                "summary": self.info.summary,
            },
            "settings": {key: _masked(key, value) for key, value in target.settings.items()},
            "services": {
                "object_store": target.object_store or "suite",
                "allocator": target.allocator or "suite",
            },
            "capabilities": dict(self.capabilities or {}),
            "machine": _machine(),
            "levels": list(target.levels),
            "rounds": target.rounds,
            "seed": target.seed,
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": self.duration_s,
            "counts": dict(self.counts),
            "clauses": [dataclasses.asdict(result) for result in self.clauses],
        }
        return json.dumps(document, indent=2, default=str) + "\n"


def _masked(key: str, value: str) -> str:
    """A report is shown to others: no secrets, no user part of URLs."""
    if _SECRET.search(key):
        return "***"
    return _USERINFO.sub(r"\1***@", value)


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
    }
