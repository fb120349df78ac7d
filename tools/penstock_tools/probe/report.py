"""What a probe found, and what follows: which plugins the store carries, and the configuration to start with."""

from __future__ import annotations

__all__ = (
    "Finding",
    "Latency",
    "PluginVerdict",
    "Report",
    "Verdict",
    "judge_plugins",
    "latency_of",
    "start_config",
)

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from penstock.spi.object_store import ObjectStoreCapabilities
from penstock.spi.plugin import PluginSpec

#: ``kept``: tried and true; ``broken``: a writer or reader saw otherwise; ``not offered``: the store doesn't claim
#: it; ``not tested``: it couldn't be tried here, which is no proof of anything.
Verdict: TypeAlias = Literal["kept", "broken", "not offered", "not tested"]

#: Options that hold no secrets; all others are named, and their values left to whoever has them.
_PLAIN_OPTIONS: Final = frozenset(
    {"account_name", "anon", "endpoint_url", "profile", "project", "region_name"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer to one question. ``capability`` is the claim that it belongs to; empty: every store must keep it."""

    name: str
    verdict: Verdict
    detail: str = ""
    capability: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long requests of one kind took, one after the other."""

    request: str
    size_bytes: int
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginVerdict:
    """Whether the store carries a plugin. ``lacks`` are the capabilities and promises that are missing."""

    kind: str
    name: str
    supported: bool
    lacks: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it."""

    location: str
    plugin: str
    writers: int
    findings: Sequence[Finding]
    latencies: Sequence[Latency]
    plugins: Sequence[PluginVerdict]
    config: str

    @property
    def broken(self) -> list[Finding]:
        """Promises that the store doesn't keep."""
        return [finding for finding in self.findings if finding.verdict == "broken"]

    @property
    def carries_a_broker(self) -> bool:
        """Whether there is a metadata log and a WAL for the store, and nothing is broken."""
        kinds = {each.kind for each in self.plugins if each.supported}
        return not self.broken and {"wal", "metadata_log"} <= kinds

    @property
    def why_no_broker(self) -> str:
        """What the store lacks or broke, and what it is good for all the same."""
        if self.broken:
            return (
                f"no broker can stand on this store: it broke {', '.join(each.name for each in self.broken)}"
            )
        lacks = sorted({lack for each in self.plugins for lack in each.lacks})
        why = f"no broker can stand on this store alone: it has no {', '.join(lacks)}"
        if any(each.lacks for each in self.plugins if each.kind == "wal"):
            return why
        return (
            f"{why}\na log can be in it, beside a broker's store that has: as object_store of a table in "
            f"wal.replicas, as `penstock config init --cloud aws-express` writes it"
        )


def latency_of(request: str, size_bytes: int, durations_s: Sequence[float]) -> Latency:
    """The percentiles of ``durations_s``; each is one that was measured."""
    ordered = sorted(durations_s)

    def percentile(percent: int) -> float:
        return round(ordered[math.ceil(len(ordered) * percent / 100) - 1] * 1000, 2)

    return Latency(
        request=request,
        size_bytes=size_bytes,
        samples=len(ordered),
        p50_ms=percentile(50),
        p90_ms=percentile(90),
        p99_ms=percentile(99),
        max_ms=percentile(100),
    )


def judge_plugins(
    specs: Iterable[PluginSpec[Any, Any]],
    claimed: ObjectStoreCapabilities,
    findings: Sequence[Finding],
) -> list[PluginVerdict]:
    """What each plugin requires against what the store claims and keeps."""
    broken = {finding.capability for finding in findings if finding.verdict == "broken"}
    everywhere = [
        finding.name for finding in findings if finding.verdict == "broken" and not finding.capability
    ]
    verdicts = []
    for spec in specs:
        lacks = everywhere + [
            capability
            for capability in sorted(spec.requires)
            if not getattr(claimed, capability, False) or capability in broken
        ]
        verdicts.append(PluginVerdict(kind=spec.kind, name=spec.name, supported=not lacks, lacks=lacks))
    return verdicts


def start_config(
    store_settings: Mapping[str, Any], plugin: str, verdicts: Sequence[PluginVerdict], wal: str
) -> str:
    """A configuration file for the store, in TOML; ``wal`` is used if the store carries it."""
    lines = ["[object_store]", f"plugin = {_toml(plugin)}"]
    for name, value in store_settings.items():
        lines += _setting_lines(name, value, plain=name != "options")
    wals = [each.name for each in verdicts if each.kind == "wal" and each.supported]
    if wals:
        chosen = wal if wal in wals else wals[0]
        lines += ["", "[wal]", f"plugin = {_toml(chosen)}"]
        lines += [f"# or {_toml(other)}" for other in wals if other != chosen]
    return "".join(f"{line}\n" for line in lines)


def _setting_lines(name: str, value: Any, *, plain: bool) -> list[str]:
    if isinstance(value, Mapping):
        return [line for key in value for line in _setting_lines(f"{name}.{key}", value[key], plain=False)]
    if not plain and name.rpartition(".")[2] not in _PLAIN_OPTIONS:
        return [
            f"# {name} = ...  as you gave it; it may be a secret, which is better kept in the environment"
        ]
    if isinstance(value, str) and "://" in value:
        parts = urlsplit(value)
        value = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return [f"{name} = {_toml(value)}"]


def _toml(value: Any) -> str:
    """Strings, numbers, booleans and lists of them are written in TOML as in JSON."""
    return json.dumps(value)
