"""What a run shows: a table on a terminal, few lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from penstock_tools.bench.histogram import Histogram
from penstock_tools.bench.progress import Progress
from penstock_tools.bench.results import Sample


def sample(phase: str, time_s: float, error_rate: float = 0.0) -> Sample:
    histogram = Histogram()
    histogram.record(2000)
    return Sample(
        phase=phase,
        time_s=time_s,
        publish_rate=12_345.0,
        publish_bytes_rate=12_345_000.0,
        error_rate=error_rate,
        consume_rate=12_000.0,
        consume_bytes_rate=12_000_000.0,
        backlog=345,
        client_cpu=1.0,
        broker_cpu=0.5,
        broker_resident_bytes=1,
        histograms={"publish": histogram, "endToEnd": histogram},
    )


def shown(samples: list[Sample], *, terminal: bool) -> str:
    file = io.StringIO()
    with Progress("try", Console(file=file, force_terminal=terminal, width=140, no_color=True)) as progress:
        for one in samples:
            progress.phase(one.phase)
            progress.sample(one)
    return file.getvalue()


def test_terminal_shows_a_table() -> None:
    text = shown([sample("warming up", 1.0), sample("measuring", 1.0)], terminal=True)
    for part in ("try: measuring", "pub msg/s", "12,345", "345", "2.0 ms", "0.50"):
        assert part in text


def test_elsewhere_a_line_comes_every_few_seconds() -> None:
    file = io.StringIO()
    with Progress("try", Console(file=file, width=140)) as progress:
        progress.phase("measuring")
        for second in range(1, 13):
            progress.sample(sample("measuring", float(second)))
    lines = file.getvalue().splitlines()
    assert lines[0] == "try"
    assert [line.split()[1] for line in lines[1:]] == ["1", "6", "11"]
    assert "pub 12,345 msg/s 12.3 MB/s | con 12,000 msg/s 12.0 MB/s | backlog 345 | pub p50 2.0" in lines[1]


def test_errors_are_shown_when_there_are_any() -> None:
    assert "errors" not in shown([sample("measuring", 1.0)], terminal=False)
    assert "errors 7/s" in shown([sample("measuring", 1.0, error_rate=7.0)], terminal=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_setting_up_is_no_period(terminal: bool) -> None:
    assert "12,345" not in shown([sample("setting up", 0.0)], terminal=terminal)
