"""The report of a run: what was tried, under which conditions, what came out, and the verdict in one sentence."""

from __future__ import annotations

__all__ = ("DEADLINE", "UNDECIDED", "ClauseResult", "Report", "check_places")

import dataclasses
import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import penstock
from penstock.errors import ConfigError
from penstock.plugins import PluginInfo
from penstock.spi import SPI_VERSION
from penstock_conformance._catalogue import LEVELS, clause_names
from penstock_conformance._medium import file_system
from penstock_conformance._target import STRATEGY, SUITE_VERSION, Target

#: Version of the report's own form.
REPORT_VERSION = 2

#: The outcome of a clause that didn't end in time: neither proved nor broken.
DEADLINE = "deadline"
#: The outcome of a clause that broke off by something that isn't under test.
UNDECIDED = "undecided"

_SECRET = re.compile(
    r"secret|password|token|key|credential|authorization|connection.?string|options", re.IGNORECASE
)
_USERINFO = re.compile(r"(//)[^/@\s]+@")
_NAMES_MAX = 3


@dataclass(slots=True, kw_only=True)
class ClauseResult:
    """``outcome``: ``pass``, ``fail``, ``deadline``, ``undecided``, ``unclaimed``, ``unclaimed_passes`` or
    ``not_applicable``.

    ``deadline_s`` is what the clause had, ``duration_ms`` what it took.
    """

    name: str
    rule: str
    level: int
    capability: str
    outcome: str = ""
    duration_ms: float = 0.0
    deadline_s: float = 0.0
    detail: str = ""
    traceback: str = ""

    @property
    def moot(self) -> bool:
        """The clause is about plugins that don't claim what this one claims: it leaves nothing untried."""
        return self.outcome == "not_applicable" and self.detail == f"{self.capability} is claimed"


@dataclass(slots=True, eq=False)
class Report:
    """One run of the suite; :meth:`to_json` is what ``--report`` writes."""

    target: Target
    info: PluginInfo
    #: A pytest expression over clause names; empty if nothing was left out by name.
    select: str = ""
    clauses: list[ClauseResult] = field(default_factory=list)
    #: Of the opened instance; None until it was opened.
    capabilities: Mapping[str, Any] | None = None
    #: Where the opened instance keeps its data, if it says so.
    location: str = ""
    #: What a bounded log has room for; 0 for others.
    capacity_bytes: int = 0
    #: The settings as the plugin got them, defaults included.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: Keys of settings whose values the plugin wants shown to nobody.
    secrets: frozenset[str] = frozenset()
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
    def result(self) -> str:
        """``pass``, ``fail``, or ``undecided``: nothing failed, but something didn't end, or nothing was proved."""
        outcomes = self.counts
        if outcomes["fail"]:
            return "fail"
        return "pass" if outcomes["pass"] and not outcomes[DEADLINE] + outcomes[UNDECIDED] else "undecided"

    @property
    def passed(self) -> bool:
        """Something was proved, and everything that was tried holds."""
        return self.result == "pass"

    @property
    def counts(self) -> Counter[str]:
        """Clauses by outcome."""
        return Counter(result.outcome for result in self.clauses)

    @property
    def left_out(self) -> Sequence[str]:
        """Clauses of the kind that this run didn't try: a run with any is partial."""
        tried = {result.name for result in self.clauses}
        return [name for name in clause_names(self.target.kind) if name not in tried]

    @property
    def verdict(self) -> str:
        """One sentence: whether it conforms, and what that doesn't say."""
        broken = self._names("fail")
        late = self._names(DEADLINE)
        broken_off = self._names(UNDECIDED)
        if broken:
            words = f"does not conform: {_count(broken, 'clause', 'fails', 'fail')}"
        elif late:
            words = f"undecided: {_count(late, 'clause', 'missed its deadline', 'missed their deadlines')}"
        elif broken_off:
            words = f"undecided: {_count(broken_off, 'clause', 'broke off', 'broke off')}"
        elif not self.counts["pass"]:
            words = "undecided: no clause proved anything"
        else:
            words = "conforms"
        for level, noun in LEVELS.items():
            mine = [result.outcome for result in self.clauses if result.level == level and not result.moot]
            if idle := mine.count("not_applicable"):
                words += f", {idle} of {len(mine)} {noun} clauses not applicable"
        if self.left_out:
            total = len(self.left_out) + len(self.clauses)
            words += f"; partial, {len(self.clauses)} of {total} clauses were tried"
        return words

    def _names(self, outcome: str) -> list[str]:
        return [result.name for result in self.clauses if result.outcome == outcome]

    def to_json(self) -> str:
        """The report as a JSON document; secrets in settings are masked."""
        target = self.target
        document = {
            "report_version": REPORT_VERSION,
            "suite_version": SUITE_VERSION,
            "penstock_version": penstock.__version__,
            "result": self.result,
            "verdict": self.verdict,
            "partial": bool(self.left_out),
            "plugin": {
                "kind": self.info.kind,
                "name": self.info.name,
                "version": self.info.version,
                "spi_version": self.info.spi_version,
                "origin": self.info.origin,
                "summary": self.info.summary,
            },
            "settings": {key: self._masked(key, value) for key, value in target.settings.items()},
            "effective_settings": {
                key: self._masked(key, str(value)) for key, value in self.settings.items()
            },
            "services": {
                "object_store": target.object_store or "suite",
                "object_store_settings": {
                    key: _masked(key, value) for key, value in target.object_store_settings.items()
                },
                "allocator": target.allocator or "suite",
            },
            "capabilities": dict(self.capabilities or {}),
            "medium": self._medium(),
            "machine": _machine(),
            "versions": _versions(target.kind),
            "target": {
                **dataclasses.asdict(target),
                "settings": {key: self._masked(key, value) for key, value in target.settings.items()},
                "object_store_settings": {
                    key: _masked(key, value) for key, value in target.object_store_settings.items()
                },
            },
            "selection": {
                "levels": list(target.levels),
                "select": self.select,
                "left_out": list(self.left_out),
            },
            "levels": list(target.levels),
            "rounds": target.rounds,
            "seed": target.seed,
            "deadlines_s": {str(level): target.deadline_of(level) for level in target.levels},
            "command": self.command,
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": self.duration_s,
            "counts": dict(self.counts),
            "clauses": [dataclasses.asdict(result) for result in self.clauses],
        }
        return json.dumps(document, indent=2, default=str) + "\n"

    @property
    def command(self) -> str:
        """What to type for the same run again; masked settings are to be filled in."""
        target = self.target
        if target.kind == STRATEGY:
            words = ["penstock", "conformance", "strategy"]
            if target.config:
                words += ["--config", target.config]
        else:
            words = ["penstock", "conformance", "run", target.kind, "--plugin", target.plugin]
        for key, value in target.settings.items():
            words += ["--set", f"{key}={self._masked(key, value)}"]
        for directory in target.plugins_dirs:
            words += ["--plugins-dir", directory]
        for module in target.modules:
            words += ["-p", module]
        if target.object_store:
            words += ["--object-store", target.object_store]
        for key, value in target.object_store_settings.items():
            words += ["--object-store-set", f"{key}={_masked(key, value)}"]
        if target.allocator:
            words += ["--allocator", target.allocator]
        if target.levels != tuple(LEVELS):
            words += [word for level in target.levels for word in ("--level", str(level))]
        if self.select:
            words += ["-k", self.select]
        words += ["--rounds", str(target.rounds), "--seed", str(target.seed)]
        words += ["--deadline", f"{target.deadline_s:g}"]
        if target.work_dir:
            words += ["--work-dir", target.work_dir]
        return shlex.join(words)

    def _masked(self, key: str, value: str) -> str:
        return "***" if key in self.secrets else _masked(key, value)

    def _medium(self) -> dict[str, Any]:
        work_dir = Path(self.target.work_dir or tempfile.gettempdir())
        return {
            "location": _USERINFO.sub(r"\1***@", self.location),
            "work_dir": str(work_dir),
            "file_system": file_system(work_dir),
        }


def _count(names: Sequence[str], noun: str, singular: str, plural: str) -> str:
    shown = ", ".join(names[:_NAMES_MAX]) + (", ..." if len(names) > _NAMES_MAX else "")
    one = len(names) == 1
    return f"{len(names)} {noun if one else noun + 's'} {singular if one else plural} ({shown})"


def _masked(key: str, value: str) -> str:
    """A report is shown to others: no secrets, no user part of URLs."""
    if _SECRET.search(key):
        return "***"
    return _USERINFO.sub(r"\1***@", value)


def _versions(kind: str) -> dict[str, str]:
    """What could change an outcome, beside the plugin."""
    found = {"spi": str(SPI_VERSION), "suite": SUITE_VERSION, "penstock": penstock.__version__}
    for package in ("pytest", "anyio", *(("confluent-kafka",) if kind == STRATEGY else ())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
    }


def check_places(target: Target, report: Path | None) -> None:
    """Raise ConfigError, before anything is tried, where clauses can have no data or the report can't be written."""
    for name, place in (
        ("work directory", target.work_dir),
        ("report's directory", report and report.parent),
    ):
        if place and not (Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK)):
            raise ConfigError(f"the {name} must be there, and be ours to write to: path={place}")
    if report is not None and report.exists() and (report.is_dir() or not os.access(report, os.W_OK)):
        raise ConfigError(f"the report must be a new file, or one to write over: path={report}")
