"""What a run showed, in the keys of the OpenMessaging Benchmark's result files.

Latencies are milliseconds, except ``publishDelayLatency...`` (microseconds, as there). Keys that the benchmark
doesn't have: ``time``, ``publishMB``, ``consumeMB``, ``clientCpu``, ``brokerCpu``, ``brokerResidentMB`` (series like
the others), ``account`` (messages acked, received, lost), ``failures`` (what clients reported), ``backlogPhase``,
and what the run was: ``version``, ``label``, ``beginTime``, ``workloadConfig``, ``machine``, ``broker``.
"""

from __future__ import annotations

__all__ = ("SCHEMA_VERSION", "Sample", "account", "load_result", "result_of", "summary")

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock_tools.bench.histogram import Histogram, quantile_ticks
from penstock_tools.bench.workload import Workload

SCHEMA_VERSION = 1

_PERCENTS = {
    "50pct": 0.5,
    "75pct": 0.75,
    "95pct": 0.95,
    "99pct": 0.99,
    "999pct": 0.999,
    "9999pct": 0.9999,
    "99999pct": 0.99999,
    "Max": 1.0,
}
#: Key of the series -> (name of the histogram, microseconds in the reported unit).
_LATENCIES = {
    "publishLatency": ("publish", 1000.0),
    "publishDelayLatency": ("publishDelay", 1.0),
    "endToEndLatency": ("endToEnd", 1000.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One period of a run: what happened in it, per second; the backlog is that at its end."""

    phase: str
    #: Seconds from the begin of the phase to the end of the period.
    time_s: float
    publish_rate: float
    publish_bytes_rate: float
    error_rate: float
    consume_rate: float
    consume_bytes_rate: float
    backlog: int
    #: Processors busy, on average.
    client_cpu: float
    broker_cpu: float | None
    broker_resident_bytes: int | None
    #: ``publish``, ``publishDelay``, ``endToEnd``: microseconds.
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def latency_ms(self, name: str, q: float) -> float:
        """A quantile of one of the histograms; 0 when nothing was counted."""
        histogram = self.histograms.get(name)
        return histogram.quantile(q) / 1000 if histogram is not None else 0.0


def account(
    produced: Sequence[dict[str, Any]], consumed: Sequence[dict[str, Any]], subscriptions: int
) -> dict[str, int]:
    """What became of the messages, from what producers and consumers say they sent and read.

    ``lost`` counts those that were acknowledged and didn't reach a subscription; with errors at the producer, a
    message that failed may have been stored all the same, and then hides a lost one. ``duplicates`` are those that
    came again, or behind a later one of the same producer and partition.
    """
    unique: dict[tuple[str, str], int] = {}
    for reader in consumed:
        for producer, count in reader["unique"].items():
            key = (reader["group"], producer)
            unique[key] = unique.get(key, 0) + count
    groups = sorted({(reader["group"], reader["topic"]) for reader in consumed})
    lost = extra = 0
    for writer in produced:
        for group, topic in groups:
            if topic == writer["topic"]:
                got = unique.get((group, str(writer["producer"])), 0)
                lost += max(0, writer["acked"] - got)
                extra += max(0, got - writer["acked"] - writer["errors"])
    acked = sum(writer["acked"] for writer in produced)
    return {
        "acked": acked,
        "errors": sum(writer["errors"] for writer in produced),
        "expected": acked * subscriptions,
        "received": sum(unique.values()),
        "lost": lost,
        "duplicates": extra + sum(reader["duplicates"] for reader in consumed),
    }


def result_of(workload: Workload, samples: Iterable[Sample], facts: dict[str, Any]) -> dict[str, Any]:
    """The result of a run, fit for JSON; ``facts`` are its further keys."""
    samples = list(samples)
    result: dict[str, Any] = {
        "version": SCHEMA_VERSION,
        "workload": workload.name,
        "driver": workload.driver.name,
        "messageSize": workload.messageSize,
        "topics": workload.topics,
        "partitions": workload.partitionsPerTopic,
        "producersPerTopic": workload.producersPerTopic,
        "consumersPerTopic": workload.consumerPerSubscription * workload.subscriptionsPerTopic,
        **facts,
        "workloadConfig": workload.as_dict(),
        "time": [round(s.time_s, 3) for s in samples],
        "publishRate": [round(s.publish_rate, 1) for s in samples],
        "publishErrorRate": [round(s.error_rate, 1) for s in samples],
        "consumeRate": [round(s.consume_rate, 1) for s in samples],
        "publishMB": [round(s.publish_bytes_rate / 1e6, 3) for s in samples],
        "consumeMB": [round(s.consume_bytes_rate / 1e6, 3) for s in samples],
        "backlog": [s.backlog for s in samples],
        "clientCpu": [round(s.client_cpu, 3) for s in samples],
        "brokerCpu": [None if s.broker_cpu is None else round(s.broker_cpu, 3) for s in samples],
        "brokerResidentMB": [
            None if s.broker_resident_bytes is None else round(s.broker_resident_bytes / 1e6, 1)
            for s in samples
        ],
    }
    for key, (name, unit) in _LATENCIES.items():
        histograms = [sample.histograms.get(name, Histogram()) for sample in samples]
        _put_latencies(result, key, histograms, unit)
    return result


def _put_latencies(result: dict[str, Any], key: str, histograms: list[Histogram], unit: float) -> None:
    """The series of one kind of latency, and what all periods together show."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    result[f"{key}Avg"] = [round(histogram.mean / unit, 4) for histogram in histograms]
    quantiles = [histogram.quantiles(_PERCENTS.values()) for histogram in histograms]
    for number, name in enumerate(_PERCENTS):
        result[f"{key}{name}"] = [round(values[number] / unit, 4) for values in quantiles]
    aggregated = f"aggregated{key[0].upper()}{key[1:]}"
    result[f"{aggregated}Avg"] = round(whole.mean / unit, 4)
    for name, value in zip(_PERCENTS, whole.quantiles(_PERCENTS.values()), strict=True):
        result[f"{aggregated}{name}"] = round(value / unit, 4)
    ticks = quantile_ticks(whole.count)
    result[f"{aggregated}Quantiles"] = {
        f"{tick * 100:.8g}": round(value / unit, 4)
        for tick, value in zip(ticks, whole.quantiles(ticks), strict=True)
    }


def summary(result: dict[str, Any]) -> str:
    """A result of ours in a few lines for the terminal."""

    def mean(key: str) -> float:
        values = [value for value in result[key] if value is not None]
        return sum(values) / len(values) if values else 0.0

    lines = [f"{result['workload']}"]
    lines.append(f"  published    {mean('publishRate'):,.0f} messages/s, {mean('publishMB'):,.1f} MB/s")
    asked = result["workloadConfig"]["producerRate"]
    if mean("publishRate") < 0.95 * asked:
        processors = result.get("machine", {}).get("processors", "all")
        lines.append(
            f"               fewer than the {asked:,.0f} messages/s asked for: broker, disk or clients are at their "
            f"limit (clients keep {mean('clientCpu'):.1f} of {processors} processors busy)"
        )
    lines.append(f"  consumed     {mean('consumeRate'):,.0f} messages/s, {mean('consumeMB'):,.1f} MB/s")
    for label, key in (("publish", "PublishLatency"), ("end to end", "EndToEndLatency")):
        figures = [
            f"{shown} {result[f'aggregated{key}{suffix}']:.2f}"
            for shown, suffix in (("p50", "50pct"), ("p99", "99pct"), ("p99.9", "999pct"), ("max", "Max"))
        ]
        lines.append(f"  {label:<12} {', '.join(figures)} ms")
    if result["broker"].get("cpuSeconds") is not None:
        lines.append(
            f"  broker       {mean('brokerCpu'):.2f} processors busy, "
            f"{result['broker']['residentMaxMB']:.0f} MB resident at most"
        )
    if drained := result.get("backlogPhase"):
        lines.append(
            f"  backlog      {drained['messages']:,} messages built in {drained['buildSeconds']} s, "
            f"drained in {drained['drainSeconds']} s at {drained['drainMB']:,.0f} MB/s"
        )
    lines.append(
        "  account      " + ", ".join(f"{key} {count:,}" for key, count in result["account"].items())
    )
    lines += [f"  failure      {text}" for text in result.get("failures", [])]
    return "\n".join(lines)


def load_result(path: Path) -> dict[str, Any]:
    """A result file of ours or of the OpenMessaging Benchmark. Raises ConfigError when it is neither."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"file can't be read, {error.strerror}: path={path}") from error
    except ValueError as error:
        raise ConfigError(f"this is no JSON: {error}, path={path}") from error
    wanted = ("workload", "publishRate", "consumeRate", "aggregatedPublishLatencyQuantiles")
    if not isinstance(result, dict) or any(key not in result for key in wanted):
        raise ConfigError(f"this is no result of penstock bench, which has {', '.join(wanted)}: path={path}")
    return result
