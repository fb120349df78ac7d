"""What a consumer that catches up on old data does to the latency of producing.

    penstock bench cold-reads
    python tools/bench/cold_reads.py --rounds 5 --seconds 4 --bytes 1GiB

One broker gets ``--bytes`` of old data, which should be more than its memory. Then a producer sends at a modest pace,
and windows without and with a reader of the old data take turns; the reader begins again when it reaches the end. In
one run both kinds of window meet the same disk and the same noise. The reader only fetches, at ``--read-rate``: a
client that looks into records fills a processor, and what is asked is what reads do to the broker. As it would be on
another machine, it has the lowest priority here, and receives in small pieces. With ``--realtime``, the servers and
the producers have a real-time priority, and the reader the one below: at an ordinary one, a server whose processor
another process has just got waits for it for up to some milliseconds, even if others are idle.

A bare server (``penstock_tools.bench.bare_log``) that syncs the same batches, and sends old data of its own from the
same disk to the same reader, takes turns with the broker. What the reader does to *its* latency is the floor: that of
the processors, the disk and the clients.

What counts is the median over the windows of each window's p50 and p99. Noise is the spread of the quiet windows
(``penstock_tools.bench.noise``).
"""

from __future__ import annotations

__all__ = ("ColdReads", "measure_cold_reads", "report")

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_high

from penstock.errors import UnavailableError
from penstock_tools.bench.bare_log import BareLog, bare_log_process
from penstock_tools.bench.histogram import Histogram
from penstock_tools.bench.noise import spread
from penstock_tools.bench.priority import take_realtime
from penstock_tools.bench.probe import PARTITIONS, probe, probe_load
from penstock_tools.bench.run import create_topics
from penstock_tools.bench.server import BrokerProcess
from penstock_tools.bench.workers import Crew
from penstock_tools.bench.workload import Driver

_OLD_TOPIC, _NEW_TOPIC = "old", "new"
_FILL_STALLED_S = 60.0
#: The ratio that is aimed at.
_RATIO_MAX = 1.3
#: A reader that gets less of what it wants was in nobody's way.
_READ_PART_MIN = 0.95


@dataclass(frozen=True, slots=True)
class ColdReads:
    """Milliseconds, a value for each window, and how fast the reader read."""

    quiet_p50_ms: list[float]
    quiet_p99_ms: list[float]
    reading_p50_ms: list[float]
    reading_p99_ms: list[float]
    read_megabytes_per_s: float
    #: How fast it was to read; 0: as fast as it could.
    wanted_megabytes_per_s: float = 0.0
    #: The same of the bare server.
    floor: ColdReads | None = None

    @property
    def p50_ratio(self) -> float:
        """Median p50 with the reader over that without."""
        return median_high(self.reading_p50_ms) / median_high(self.quiet_p50_ms)

    @property
    def ratio(self) -> float:
        """Median p99 with the reader over that without."""
        return median_high(self.reading_p99_ms) / median_high(self.quiet_p99_ms)

    @property
    def is_met(self) -> bool:
        """Whether p50 and p99 with the reader are, at the median, what is aimed at or within the noise."""
        pairs = ((self.quiet_p50_ms, self.reading_p50_ms), (self.quiet_p99_ms, self.reading_p99_ms))
        return all(median_high(reading) <= _bound(quiet) for quiet, reading in pairs)


def _bound(quiet: Sequence[float]) -> float:
    """What a median beside the reader may be: ``_RATIO_MAX`` times the quiet one, or more by the quiet spread."""
    middle = median_high(quiet)
    return max(_RATIO_MAX * middle, middle + spread(quiet))


def measure_cold_reads(
    directory: Path,
    *,
    old_bytes: int,
    seconds: float,
    rounds: int,
    rate: float,
    read_bytes_per_s: float = 0,
    realtime: bool = False,
    sets: Sequence[str] = (),
) -> ColdReads:
    """Run it against a broker of its own; ``read_bytes_per_s`` 0 reads as fast as it goes.

    With ``realtime`` this process has that priority, too, from then on. Raises UnavailableError when the broker or a
    client fails, ConfigError when there is no such priority.
    """
    if realtime:
        take_realtime()
    with (
        BrokerProcess(directory / "broker", sets) as broker,
        bare_log_process(directory / "bare", old_bytes) as bare,
        Crew() as ours,
        Crew() as theirs,
    ):
        place = broker.bootstrap_servers
        create_topics(place, Driver(), [_OLD_TOPIC, _NEW_TOPIC], PARTITIONS)
        _fill(place, old_bytes)
        _hire(ours, BareLog(produce=place, fetch=place), read_bytes_per_s)
        _hire(theirs, bare, read_bytes_per_s)
        sides = (_Windows(ours, rate), _Windows(theirs, rate))
        for number in range(rounds):
            for side in sides:
                side.measure(seconds, warms_up=number == 0)
    wanted = round(read_bytes_per_s / 1e6, 1)
    found, floor = (replace(side.found(), wanted_megabytes_per_s=wanted) for side in sides)
    return replace(found, floor=floor)


def _hire(crew: Crew, place: BareLog, read_bytes_per_s: float) -> None:
    """A reader that has begun and a producer that hasn't."""
    reader = {"index": 0, "topic": _OLD_TOPIC, "config": {"bootstrap.servers": place.fetch}}
    load = {"partitions": PARTITIONS, "bytesPerSecond": read_bytes_per_s, "givesWay": True}
    crew.hire("fetcher", [reader], load, 1)
    _wait_reading(crew)
    crew.order("fetcher", "pause")
    crew.hire("producer", [probe(place.produce, _NEW_TOPIC, linger_ms=0)], probe_load(), 1)


def _fill(place: str, size: int) -> None:
    """Have ``size`` bytes in the old topic."""
    with Crew() as crew:
        crew.hire("producer", [probe(place, _OLD_TOPIC, linger_ms=0)], probe_load(), 1)
        crew.order("producer", "start", rate=0)
        moved_at, sent = time.monotonic(), 0
        while (now := crew.counters().sent_bytes) < size:
            if now > sent:
                moved_at, sent = time.monotonic(), now
            elif time.monotonic() - moved_at > _FILL_STALLED_S:
                raise UnavailableError(f"the broker took nothing for {_FILL_STALLED_S:.0f} s: stored={sent}")
            time.sleep(0.1)
        crew.order("producer", "end")


def _wait_reading(crew: Crew) -> None:
    deadline = time.monotonic() + 60
    while not (now := crew.counters()).received:
        if now.failures or time.monotonic() > deadline:
            raise UnavailableError(f"the reader got nothing: failures={now.failures}")
        time.sleep(0.1)


class _Windows:
    """Quiet and reading windows of one server."""

    def __init__(self, crew: Crew, rate: float) -> None:
        self._crew = crew
        self._rate = rate
        self._found: dict[str, list[Histogram]] = {"pause": [], "start": []}
        self._read_bytes = 0
        self._read_s = 0.0

    def measure(self, seconds: float, *, warms_up: bool) -> None:
        """One window of each kind; both crews produce only in their windows."""
        crew = self._crew
        crew.order("producer", "start", rate=self._rate)
        time.sleep(min(1.0 if warms_up else 0.3, seconds / 2))
        for order, histograms in self._found.items():
            crew.order("fetcher", order, rate=0)
            time.sleep(min(0.3, seconds / 4))  # what the reader still had in flight isn't this window's
            before = crew.counters().received_bytes
            time.sleep(seconds)
            now = crew.counters()
            histograms.append(now.histograms["publish"])
            if order == "start":
                self._read_bytes += now.received_bytes - before
                self._read_s += seconds
                if now.received_bytes == before:
                    raise UnavailableError(
                        f"the reader got nothing in a whole window: failures={now.failures}"
                    )
            if not histograms[-1].count:
                raise UnavailableError(f"nothing was acknowledged in a whole window: failures={now.failures}")
        crew.order("fetcher", "pause")
        crew.order("producer", "pause")

    def found(self) -> ColdReads:
        """The figures of all windows so far."""

        def windows(order: str, q: float) -> list[float]:
            return [round(histogram.quantile(q) / 1000, 3) for histogram in self._found[order]]

        return ColdReads(
            quiet_p50_ms=windows("pause", 0.5),
            quiet_p99_ms=windows("pause", 0.99),
            reading_p50_ms=windows("start", 0.5),
            reading_p99_ms=windows("start", 0.99),
            read_megabytes_per_s=round(self._read_bytes / self._read_s / 1e6, 1),
        )


def report(found: ColdReads) -> str:
    """Both kinds of window, of the broker and of the bare server, and the verdict on the budget."""
    verdict = "met" if found.is_met else "MISSED"
    lines = [f"{'produce latency':<34}{'p50':>12}{'p99':>12}{'p99 of the windows':>36}"]
    lines += _rows("", found)
    if found.floor is not None:
        lines += _rows("bare server, ", found.floor)
        lines.append(
            f"bare server, with / without: p50 {found.floor.p50_ratio:.2f}, p99 {found.floor.ratio:.2f}, "
            f"{_reader(found.floor)}: no broker on this machine does better"
        )
    lines.append(
        f"with / without: p50 {found.p50_ratio:.2f}, p99 {found.ratio:.2f}, {_reader(found)}; "
        f"aim (at most {_RATIO_MAX}, or within noise): {verdict}"
    )
    return "\n".join(lines)


def _reader(found: ColdReads) -> str:
    said = f"reader at {found.read_megabytes_per_s:,.0f} MB/s"
    if found.read_megabytes_per_s < _READ_PART_MIN * found.wanted_megabytes_per_s:
        said += f", not at the {found.wanted_megabytes_per_s:,.0f} that it was to have"
    return said


def _rows(of: str, found: ColdReads) -> Iterator[str]:
    for label, p50, p99 in (
        (f"{of}without reader", found.quiet_p50_ms, found.quiet_p99_ms),
        (f"{of}with catch-up reader", found.reading_p50_ms, found.reading_p99_ms),
    ):
        windows = " ".join(f"{value:.2f}" for value in p99)
        yield f"{label:<34}{median_high(p50):>9.2f} ms{median_high(p99):>9.2f} ms{windows:>36}"
