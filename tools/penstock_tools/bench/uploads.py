"""What uploads do to the latency of producing.

    penstock bench uploads
    python tools/bench/uploads.py --rounds 5 --seconds 6 --rate 20000

Two brokers on one disk take turns, with a producer each. One uploads blocks of ``--upload-bytes`` as they fill, the
other uploads nothing: its blocks are larger than what it gets. So in one run both kinds of window meet the same disk
and the same noise. Between windows is a pause, in which uploads that are under way end.

What counts is the median over the windows of each window's p99.
"""

from __future__ import annotations

__all__ = ("Uploads", "measure_uploads", "report")

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

from penstock.errors import UnavailableError
from penstock_tools.bench.histogram import Histogram
from penstock_tools.bench.probe import MESSAGE_BYTES, PARTITIONS, probe, probe_load
from penstock_tools.bench.run import create_topics
from penstock_tools.bench.server import BrokerProcess
from penstock_tools.bench.workers import Crew
from penstock_tools.bench.workload import Driver

_TOPIC = "records"
#: The ratio that is aimed at.
_RATIO_MAX = 1.3
#: Uploads that are under way at the end of a window.
_SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Uploads:
    """Milliseconds, a value for each window."""

    without_p50_ms: list[float]
    without_p99_ms: list[float]
    without_max_ms: list[float]
    with_p50_ms: list[float]
    with_p99_ms: list[float]
    with_max_ms: list[float]
    objects: int

    @property
    def ratio(self) -> float:
        """Median p99 with uploads over that without."""
        return median_high(self.with_p99_ms) / median_high(self.without_p99_ms)

    @property
    def is_met(self) -> bool:
        """Whether the ratio is what is aimed at, or less."""
        return self.ratio <= _RATIO_MAX


def measure_uploads(
    directory: Path,
    *,
    seconds: float,
    rounds: int,
    rate: float,
    upload_bytes: int,
    sets: Sequence[str] = (),
) -> Uploads:
    """Run it against two brokers of its own. Raises UnavailableError when a broker or a client fails."""
    # room for all that the broker without uploads gets, and a WAL of the same size for both
    held = int((seconds + _SETTLE_S) * (rounds + 1) * rate * 2 * MESSAGE_BYTES)
    common = [f"wal.capacity={4 * held}", "stream.upload_interval=1h", *sets]
    settings = {
        "without": [*common, f"memory.limit={3 * held + 512 * 2**20}", f"stream.upload_bytes={held}"],
        "with": [*common, f"stream.upload_bytes={upload_bytes}"],
    }
    found: dict[str, list[Histogram]] = {kind: [] for kind in settings}
    with ExitStack() as stack:
        crews = {}
        for kind, some in settings.items():
            broker = stack.enter_context(BrokerProcess(directory / kind, some))
            create_topics(broker.bootstrap_servers, Driver(), [_TOPIC], PARTITIONS)
            crews[kind] = stack.enter_context(Crew())
            crews[kind].hire(
                "producer", [probe(broker.bootstrap_servers, _TOPIC, linger_ms=1)], probe_load(), 1
            )
        for number in range(rounds + 1):  # the first round warms up
            for kind, crew in crews.items():
                window = _window(crew, seconds, rate)
                if number:
                    found[kind].append(window)
        objects = sum(1 for path in (directory / "with").rglob("objects/**/*") if path.is_file())
    if not objects:
        raise UnavailableError("nothing was uploaded, use more rounds, a higher rate or smaller blocks")

    def quantiles(kind: str, q: float) -> list[float]:
        return [round(histogram.quantile(q) / 1000, 3) for histogram in found[kind]]

    return Uploads(
        without_p50_ms=quantiles("without", 0.5),
        without_p99_ms=quantiles("without", 0.99),
        without_max_ms=quantiles("without", 1.0),
        with_p50_ms=quantiles("with", 0.5),
        with_p99_ms=quantiles("with", 0.99),
        with_max_ms=quantiles("with", 1.0),
        objects=objects,
    )


def _window(crew: Crew, seconds: float, rate: float) -> Histogram:
    crew.order("producer", "start", rate=rate)
    time.sleep(0.5)
    crew.counters()  # what came before the window isn't its
    time.sleep(seconds)
    now = crew.counters()
    crew.order("producer", "pause")
    time.sleep(_SETTLE_S)
    crew.counters()
    histogram = now.histograms["publish"]
    if not histogram.count:
        raise UnavailableError(f"nothing was acknowledged in a whole window: failures={now.failures}")
    return histogram


def report(found: Uploads) -> str:
    """Both kinds of window, and the verdict."""
    lines = [f"{'produce latency':<20}{'p50':>12}{'p99':>12}{'max':>12}{'p99 of the windows':>36}"]
    for label, p50, p99, greatest in (
        ("without uploads", found.without_p50_ms, found.without_p99_ms, found.without_max_ms),
        ("with uploads", found.with_p50_ms, found.with_p99_ms, found.with_max_ms),
    ):
        windows = " ".join(f"{value:.2f}" for value in p99)
        lines.append(
            f"{label:<20}{median_high(p50):>9.2f} ms{median_high(p99):>9.2f} ms"
            f"{median_high(greatest):>9.2f} ms{windows:>36}"
        )
    verdict = "met" if found.is_met else "MISSED"
    lines.append(
        f"p99 with / without: {found.ratio:.2f}, {found.objects} objects; aim (at most {_RATIO_MAX}): {verdict}"
    )
    return "\n".join(lines)
