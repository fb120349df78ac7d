"""What the lake does to the latency of producing, and how late rows are.

    penstock bench lake
    python tools/bench/lake.py --rounds 5 --seconds 8 --rate 20000

One broker has two topics, of which one is also an Iceberg table in an SQLite catalog. A producer sends to each in
turn, so that in one run both kinds of window meet the same disk and the same noise; before the turn changes, the
table gets everything. What else isn't uploaded by then is uploaded in the next window, so the order changes, too.
What counts is the median over the windows of each window's p50 and p99. Noise is the spread of those without a table
(``penstock_tools.bench.noise``).

In a third kind of window, also without a table, a process that has nothing to do with the broker takes as much of the
processors and writes as many bytes beside it as the one that makes tables: what that does to producers is the part of
whoever puts a second program on the broker's machine.

How late a row is: at each commit, the time since the oldest record in it was acknowledged. The catalog is looked at
ten times a second, as another reader would, in windows of both kinds.
"""

from __future__ import annotations

__all__ = ("Lake", "measure_lake", "report")

import json
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from itertools import cycle, permutations
from pathlib import Path
from statistics import median_high
from urllib.parse import unquote, urlsplit

from penstock.errors import UnavailableError
from penstock_tools.bench.histogram import Histogram
from penstock_tools.bench.neutral import NeutralProcess
from penstock_tools.bench.noise import spread
from penstock_tools.bench.probe import MESSAGE_BYTES, PARTITIONS, probe, probe_load
from penstock_tools.bench.run import create_topics
from penstock_tools.bench.server import BrokerProcess, Spent
from penstock_tools.bench.workers import Crew
from penstock_tools.bench.workload import Driver

#: The ratio that is aimed at, and how much later than the commit interval a row may be.
_RATIO_MAX = 1.3
_LATE_MAX_S = 5.0
_LOOK_S = 0.1
_TABLE_STALLED_S = 60.0
#: Of windows; what the neutral process takes is known after the first with a table.
_KINDS = ("without", "with", "neutral")


@dataclass(frozen=True, slots=True)
class Lake:
    """Milliseconds of producing, a value for each window; seconds of how late the rows of each commit were."""

    without_p50_ms: list[float]
    without_p99_ms: list[float]
    with_p50_ms: list[float]
    with_p99_ms: list[float]
    #: Without a table, beside a process that takes as much of the machine.
    neutral_p50_ms: list[float]
    neutral_p99_ms: list[float]
    #: Of a second, what the process that makes tables takes: processor seconds, and bytes that it writes.
    table_cpu_per_s: float
    table_bytes_per_s: float
    late_s: list[float]
    interval_s: float
    rows: int
    #: Processor seconds of the broker in both kinds of window, with what the table took after them.
    without_cpu_s: float
    with_cpu_s: float
    neutral_cpu_s: float

    @property
    def ratio(self) -> float:
        """Median p99 with the lake over that without."""
        return median_high(self.with_p99_ms) / median_high(self.without_p99_ms)

    @property
    def neutral_ratio(self) -> float:
        """Median p99 beside the neutral process over that without."""
        return median_high(self.neutral_p99_ms) / median_high(self.without_p99_ms)

    @property
    def is_within_noise(self) -> bool:
        """Whether the medians of p99 differ by no more than the windows without a table do among themselves."""
        return median_high(self.with_p99_ms) <= median_high(self.without_p99_ms) + spread(self.without_p99_ms)

    @property
    def is_met(self) -> bool:
        """Whether producers notice nothing, and rows are in time."""
        return self.ratio <= _RATIO_MAX and max(self.late_s) <= self.interval_s + _LATE_MAX_S


def measure_lake(
    directory: Path,
    *,
    seconds: float,
    rounds: int,
    rate: float,
    interval_s: float,
    json_values: bool = False,
    sets: Sequence[str] = (),
) -> Lake:
    """Run it against a broker of its own. Raises UnavailableError when the broker, a client or the table fails."""
    configs = {
        "penstock.lake.enable": "true",
        "penstock.lake.commit.interval.ms": str(int(interval_s * 1000)),
    }
    if json_values:
        configs["penstock.lake.value.format"] = "json"
    found: dict[str, list[Histogram]] = {kind: [] for kind in _KINDS}
    cpu_s = dict.fromkeys(_KINDS, 0.0)
    table, table_s = Spent(), 0.0
    with ExitStack() as stack:
        broker = stack.enter_context(
            BrokerProcess(directory / "broker", ["lake_compactor.plugin=iceberg_compactor", *sets])
        )
        place = broker.bootstrap_servers
        windows = {}
        for kind, topic_configs in (("without", {}), ("with", configs)):
            create_topics(place, Driver(topicConfig=topic_configs), [kind], PARTITIONS)
            crew = stack.enter_context(Crew())
            crew.hire("producer", [probe(place, kind, linger_ms=1)], probe_load(json=json_values), 1)
            windows[kind] = _Windows(crew, directory / "broker", has_table=bool(topic_configs))
        orders = cycle(permutations(_KINDS))
        for number in range(rounds + 1):  # the first round warms up
            for kind in next(orders):
                neutral = NeutralProcess(
                    directory,
                    cpu_per_s=table.cpu_s / max(table_s, seconds),
                    bytes_per_s=table.written_bytes / max(table_s, seconds),
                    period_s=interval_s,
                )
                before, spent = broker.usage(), broker.children()
                with neutral if kind == "neutral" else nullcontext():
                    histogram = windows["with" if kind == "with" else "without"].measure(seconds, rate)
                after = broker.usage()
                if kind == "with":
                    now, table_s = broker.children(), table_s + seconds
                    table = Spent(
                        table.cpu_s + now.cpu_s - spent.cpu_s,
                        table.written_bytes + now.written_bytes - spent.written_bytes,
                    )
                if number:
                    found[kind].append(histogram)
                    if before is not None and after is not None:
                        cpu_s[kind] += after.cpu_s - before.cpu_s
    late_s = windows["with"].late_s

    def quantiles(kind: str, q: float) -> list[float]:
        return [round(histogram.quantile(q) / 1000, 3) for histogram in found[kind]]

    return Lake(
        without_p50_ms=quantiles("without", 0.5),
        without_p99_ms=quantiles("without", 0.99),
        with_p50_ms=quantiles("with", 0.5),
        with_p99_ms=quantiles("with", 0.99),
        neutral_p50_ms=quantiles("neutral", 0.5),
        neutral_p99_ms=quantiles("neutral", 0.99),
        table_cpu_per_s=round(table.cpu_s / table_s, 3),
        table_bytes_per_s=round(table.written_bytes / table_s),
        late_s=[round(value, 3) for value in late_s],
        interval_s=interval_s,
        rows=windows["with"].rows,
        without_cpu_s=round(cpu_s["without"], 2),
        with_cpu_s=round(cpu_s["with"], 2),
        neutral_cpu_s=round(cpu_s["neutral"], 2),
    )


class _Windows:
    """Windows of producing to one topic, and its table, if it has one."""

    def __init__(self, crew: Crew, data_dir: Path, *, has_table: bool) -> None:
        self._crew = crew
        self._data_dir = data_dir
        self._has_table = has_table
        self.rows = 0
        self.late_s: list[float] = []
        #: When how many were acknowledged, as far as they aren't in the table.
        self._acked: deque[tuple[float, int]] = deque()

    def measure(self, seconds: float, rate: float) -> Histogram:
        """One window; the table has everything when it ends."""
        self._crew.order("producer", "start", rate=rate)
        found = Histogram()
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            found.merge(self._look())
        self._crew.order("producer", "pause")
        moved_at, rows = time.monotonic(), self.rows
        while self._acked:
            self._look()
            if self.rows > rows:
                moved_at, rows = time.monotonic(), self.rows
            elif time.monotonic() > moved_at + _TABLE_STALLED_S:
                raise UnavailableError(f"the table doesn't get on: rows={rows} records={self._acked[-1][1]}")
        if not found.count:
            raise UnavailableError("nothing was acknowledged in a whole window")
        return found

    def _look(self) -> Histogram:
        """What was acknowledged since the last look, after a moment; and how late what is new in the table was."""
        time.sleep(_LOOK_S)
        now = self._crew.counters()
        rows = _rows(self._data_dir)
        if self._has_table:
            if now.acked > (self._acked[-1][1] if self._acked else self.rows):
                self._acked.append((time.monotonic(), now.acked))
            if rows > self.rows and self._acked:
                self.late_s.append(time.monotonic() - self._acked[0][0])
            self.rows = rows
            while self._acked and self._acked[0][1] <= rows:
                self._acked.popleft()
        return now.histograms.get("publish", Histogram())


def _rows(data_dir: Path) -> int:
    """How many rows the only table has, as its newest metadata say."""
    try:
        with closing(sqlite3.connect(data_dir / "lake" / "catalog.db", timeout=10)) as catalog:
            found = catalog.execute("SELECT metadata_location FROM iceberg_tables").fetchone()
        if found is None:
            return 0
        metadata = json.loads(Path(unquote(urlsplit(found[0]).path)).read_text())
    except (sqlite3.OperationalError, FileNotFoundError):
        return 0  # the table isn't made yet
    head = metadata.get("current-snapshot-id")
    return sum(
        int(snapshot["summary"].get("total-records", 0))
        for snapshot in metadata.get("snapshots", ())
        if snapshot["snapshot-id"] == head
    )


def report(found: Lake) -> str:
    """Both kinds of window, how late rows were, and the verdict."""
    lines = [f"{'produce latency':<20}{'p50':>12}{'p99':>12}{'broker cpu':>14}{'p99 of the windows':>36}"]
    for label, p50, p99, cpu_s in (
        ("without a table", found.without_p50_ms, found.without_p99_ms, found.without_cpu_s),
        ("with a table", found.with_p50_ms, found.with_p99_ms, found.with_cpu_s),
        ("beside a neutral", found.neutral_p50_ms, found.neutral_p99_ms, found.neutral_cpu_s),
    ):
        windows = " ".join(f"{value:.2f}" for value in p99)
        lines.append(
            f"{label:<20}{median_high(p50):>9.2f} ms{median_high(p99):>9.2f} ms{cpu_s:>12.1f} s {windows:>35}"
        )
    late = found.late_s
    lines.append(
        f"rows late by {median_high(late):.1f} s (median of {len(late)} commits), {max(late):.1f} s at most; "
        f"commits every {found.interval_s:g} s, {found.rows:,} rows of {MESSAGE_BYTES} bytes"
    )
    noise = spread(found.without_p99_ms)
    within = "within" if found.is_within_noise else "more than"
    lines.append(f"noise: windows without a table differ by {noise:.2f} ms; the difference is {within} that")
    lines.append(
        f"p99 beside a neutral process / without: {found.neutral_ratio:.2f}; it takes what the process of tables "
        f"does, {found.table_cpu_per_s:.2f} s of a processor and {found.table_bytes_per_s / 1e6:.1f} MB a second"
    )
    verdict = "met" if found.is_met else "MISSED"
    lines.append(
        f"p99 with / without: {found.ratio:.2f}; aim (at most {_RATIO_MAX}, and late by no more than the interval "
        f"and {_LATE_MAX_S:.0f} s): {verdict}"
    )
    return "\n".join(lines)
