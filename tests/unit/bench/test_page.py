"""The page: well-formed, self-contained, and with every run in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_tools.bench._svg import Line, chart, linear_axis, log_axis, quantile_axis, short, time_axis
from penstock_tools.bench.histogram import Histogram
from penstock_tools.bench.page import page
from penstock_tools.bench.results import Sample, result_of
from penstock_tools.bench.workload import Workload


def result(label: str | None = "one", **facts: Any) -> dict[str, Any]:
    histogram = Histogram()
    for value in range(500, 5000):
        histogram.record(value)
    samples = [
        Sample(
            phase="measuring",
            time_s=second,
            publish_rate=1000.0 + second,
            publish_bytes_rate=1e6,
            error_rate=0.0,
            consume_rate=1000.0,
            consume_bytes_rate=1e6,
            backlog=int(second) % 7,
            client_cpu=0.5,
            broker_cpu=0.25,
            broker_resident_bytes=64_000_000,
            histograms={"publish": histogram, "endToEnd": histogram},
        )
        for second in range(1, 20)
    ]
    workload = Workload(name="work <&> load")
    balance = {"acked": 2000, "errors": 0, "expected": 2000, "received": 2000, "lost": 0, "duplicates": 0}
    facts = {"account": balance, "broker": {"residentMaxMB": 70.0, "says": ["is ready"]}, **facts}
    return result_of(workload, samples, {"label": label, **facts})


def parsed(html: str) -> ET.Element:
    """The page as the XML that it also is."""
    doctype, _, rest = html.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def texts(root: ET.Element, tag: str) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(tag)]


def test_page_is_well_formed_and_has_the_plots() -> None:
    root = parsed(page([result()], "a title with <marks> & more"))
    assert texts(root, "h1") == ["a title with <marks> & more"]
    captions = texts(root, "figcaption")
    for caption in (
        "Publish latency by percentile",
        "End-to-end latency by percentile",
        "Publish latency over time",
        "End-to-end latency over time",
        "Throughput over time",
    ):
        assert caption in captions
    for figure in root.iter("figure"):
        drawn = [path for path in figure.iter("path") if "line" in path.get("class", "")]
        assert any("L" in path.get("d", "") for path in drawn), "a line with more than one point"


def test_page_fetches_and_runs_nothing() -> None:
    html = page([result()], "title")
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://", html)


def test_runs_are_side_by_side() -> None:
    root = parsed(page([result("before"), result("after")], "both"))
    assert texts(root, "th") == ["", "before", "after"]
    for row in root.iter("tr"):
        assert len(list(row)) == 3
    keys = [key for key in texts(root, "span") if key.startswith(("before", "after"))]
    assert any(key.startswith("before, p50") for key in keys)
    assert any(key.startswith("after, p99") for key in keys)


def test_runs_without_labels_still_have_names_of_their_own() -> None:
    root = parsed(page([result(None), result(None)], "both"))
    assert texts(root, "th") == ["", "work <&> load", "work <&> load #2"]


def test_lost_messages_catch_the_eye() -> None:
    balance = {"acked": 10, "errors": 0, "expected": 10, "received": 9, "lost": 1, "duplicates": 0}
    root = parsed(page([result(), result("bad", account=balance)], "both"))
    assert [cell.text for cell in root.iter("td") if cell.get("class") == "bad"] == ["1"]


def test_result_of_the_java_benchmark_is_shown() -> None:
    java = {
        "workload": "1 topic",
        "driver": "Kafka",
        "publishRate": [50_000.0, 50_010.0],
        "consumeRate": [50_000.0, 50_010.0],
        "backlog": [0, 12],
        "publishLatency50pct": [2.0, 2.1],
        "publishLatency99pct": [9.0, 8.1],
        "aggregatedPublishLatency50pct": 2.0,
        "aggregatedPublishLatencyQuantiles": {"0.0": 0.5, "50.0": 2.0, "99.0": 9.0, "100.0": 20.0},
    }
    root = parsed(page([result(), java], "both"))
    assert texts(root, "th") == ["", "one: work <&> load", "1 topic"]


def test_run_that_saw_nothing_still_gives_a_page() -> None:
    empty = result_of(Workload(name="nothing"), [], {"account": {"lost": 0}, "broker": {}})
    assert texts(parsed(page([empty], "nothing")), "figure") == []


# -- charts --------------------------------------------------------------------------------------------------

POSITIVE = st.floats(1e-3, 1e9)


@given(high=st.floats(0, 1e12))
def test_linear_axis_holds_its_values_and_has_few_ticks(high: float) -> None:
    axis = linear_axis(high)
    assert axis.place(0) == 0
    assert axis.place(high) <= 1 + 1e-9
    assert 2 <= len(axis.ticks) <= 7


def test_time_axis_ends_with_the_run() -> None:
    axis = time_axis(90)
    assert [text for _, text in axis.ticks] == ["0", "20", "40", "60", "80"]
    assert axis.place(90) == 1.0
    assert axis.place(45) == 0.5


@given(values=st.tuples(POSITIVE, POSITIVE))
def test_log_axis_holds_its_values_in_order(values: tuple[float, float]) -> None:
    low, high = sorted(values)
    axis = log_axis(low, high)
    assert -1e-9 <= axis.place(low) <= axis.place(high) <= 1 + 1e-9
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value, _ in axis.ticks)


def test_quantile_axis_puts_nines_at_equal_distances() -> None:
    axis = quantile_axis(0.9995)
    assert [text for _, text in axis.ticks] == ["0", "50%", "90%", "99%", "99.9%", "99.99%"]
    assert [axis.place(part) for part in (0.0, 0.9, 0.99)] == pytest.approx([0, 0.25, 0.5])
    assert axis.place(1.0) == 1.0


@given(
    points=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e6)), max_size=50), label=st.text(max_size=5)
)
def test_chart_is_well_formed_and_stays_in_its_frame(points: list[tuple[float, float]], label: str) -> None:
    label = re.sub(r"[^\x20-\ud7ff]", "", label)
    root = ET.fromstring(
        chart([Line(label, points)], linear_axis(100), linear_axis(1e6), label, label, label)
    )
    for path in root.iter("path"):
        if path.get("class", "").startswith("line"):
            numbers = [float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))]
            assert all(0 <= x <= 720 for x in numbers[::2])
            assert all(0 <= y <= 300 for y in numbers[1::2])


def test_numbers_at_the_axis_are_short() -> None:
    assert [short(value) for value in (0, 2.5, 1500, 2e6, 3e9)] == ["0", "2.5", "1.5k", "2M", "3G"]
