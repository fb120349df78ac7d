"""Results: series and quantiles under the benchmark's keys, and an account that finds what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError
from penstock_tools.bench.budgets import of_floor
from penstock_tools.bench.histogram import RELATIVE_ERROR, Histogram
from penstock_tools.bench.results import Sample, account, load_result, result_of, summary
from penstock_tools.bench.workload import Workload

WORKLOAD = Workload(name="try", useRandomizedPayloads=True, randomizedPayloadPoolSize=1)


def sample(time_s: float, *latencies_us: int, **values: Any) -> Sample:
    histogram = Histogram()
    for latency in latencies_us:
        histogram.record(latency)
    usual: dict[str, Any] = {
        "phase": "measuring",
        "time_s": time_s,
        "publish_rate": 1000.0,
        "publish_bytes_rate": 1_024_000.0,
        "error_rate": 0.0,
        "consume_rate": 900.0,
        "consume_bytes_rate": 921_600.0,
        "backlog": 100,
        "client_cpu": 0.5,
        "broker_cpu": 0.25,
        "broker_resident_bytes": 64_000_000,
        "histograms": {"publish": histogram, "publishDelay": histogram, "endToEnd": histogram},
    }
    return Sample(**{**usual, **values})


def result(**facts: Any) -> dict[str, Any]:
    samples = [sample(1.0, *[1000] * 99, 50_000), sample(2.0, *[2000] * 100)]
    balance = {"acked": 2000, "errors": 0, "expected": 2000, "received": 2000, "lost": 0, "duplicates": 0}
    usage = {"cpuSeconds": 1.5, "residentMaxMB": 70.0}
    return result_of(WORKLOAD, samples, {"account": balance, "broker": usage, **facts})


def test_series_have_a_value_for_each_period() -> None:
    found = result()
    assert found["publishRate"] == [1000.0, 1000.0]
    assert found["consumeRate"] == [900.0, 900.0]
    assert found["backlog"] == [100, 100]
    assert found["time"] == [1.0, 2.0]
    assert found["publishLatency50pct"] == pytest.approx([1.0, 2.0], rel=RELATIVE_ERROR)
    assert found["publishLatencyMax"] == pytest.approx([50.0, 2.0], rel=RELATIVE_ERROR)
    assert found["brokerResidentMB"] == [64.0, 64.0]


def test_aggregates_are_over_all_values_not_over_periods() -> None:
    found = result()
    assert found["aggregatedPublishLatency50pct"] == pytest.approx(2.0, rel=RELATIVE_ERROR)
    assert found["aggregatedEndToEndLatencyMax"] == pytest.approx(50.0, rel=RELATIVE_ERROR)
    assert found["aggregatedPublishLatencyAvg"] == pytest.approx((99 + 50 + 200) / 200, rel=RELATIVE_ERROR)
    quantiles = found["aggregatedPublishLatencyQuantiles"]
    assert next(iter(quantiles)) == "0"
    assert quantiles["50"] == pytest.approx(2.0, rel=RELATIVE_ERROR)
    assert quantiles["100"] == pytest.approx(50.0, rel=RELATIVE_ERROR)


def test_delay_is_in_microseconds_as_in_the_benchmark() -> None:
    assert result()["aggregatedPublishDelayLatencyMax"] == pytest.approx(50_000, rel=RELATIVE_ERROR)


def test_keys_are_those_of_the_benchmark() -> None:
    ends = ("Avg", "50pct", "75pct", "95pct", "99pct", "999pct", "9999pct", "99999pct", "Max")
    wanted = {
        "workload",
        "driver",
        "messageSize",
        "topics",
        "partitions",
        "producersPerTopic",
        "consumersPerTopic",
    }
    wanted |= {"publishRate", "publishErrorRate", "consumeRate", "backlog"}
    for name in ("PublishLatency", "PublishDelayLatency", "EndToEndLatency"):
        wanted |= {f"{name[0].lower()}{name[1:]}{end}" for end in ends}
        wanted |= {f"aggregated{name}{end}" for end in (*ends, "Quantiles")}
    assert wanted <= set(result())


def test_result_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(result()))
    assert load_result(path) == result()


@pytest.mark.parametrize("text", ["{", "[]", '{"workload": "x"}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        load_result(tmp_path / "run.json")


def test_summary_says_rates_latencies_and_the_account() -> None:
    text = summary(
        result(backlogPhase={"messages": 5000, "buildSeconds": 3, "drainSeconds": 2, "drainMB": 40.0})
    )
    assert "published    1,000 messages/s, 1.0 MB/s" in text
    assert "0.25 processors busy, 70 MB resident at most" in text
    assert "lost 0, duplicates 0" in text
    assert "5,000 messages built in 3 s, drained in 2 s at 40 MB/s" in text


def test_summary_says_when_the_rate_was_not_reached() -> None:
    assert "fewer than" not in summary(result())
    asked = {**result()["workloadConfig"], "producerRate": 1100.0}
    assert "fewer than the 1,100 messages/s asked for" in summary({**result(), "workloadConfig": asked})


# -- account -------------------------------------------------------------------------------------------------


def writer(producer: int, acked: int, errors: int = 0, topic: str = "t") -> dict[str, Any]:
    return {"producer": producer, "topic": topic, "acked": acked, "errors": errors}


def reader(unique: dict[str, int], duplicates: int = 0, group: str = "g", topic: str = "t") -> dict[str, Any]:
    return {"group": group, "topic": topic, "unique": unique, "duplicates": duplicates}


def test_members_of_a_group_share_the_messages() -> None:
    found = account([writer(0, 10), writer(1, 5)], [reader({"0": 4, "1": 5}), reader({"0": 6})], 1)
    assert found == {"acked": 15, "errors": 0, "expected": 15, "received": 15, "lost": 0, "duplicates": 0}


def test_each_subscription_gets_everything() -> None:
    found = account([writer(0, 10)], [reader({"0": 10}, group="a"), reader({"0": 7}, group="b")], 2)
    assert (found["expected"], found["received"], found["lost"]) == (20, 17, 3)


def test_subscription_that_saw_nothing_lost_everything() -> None:
    assert account([writer(0, 10)], [reader({})], 1)["lost"] == 10


def test_topics_are_kept_apart() -> None:
    produced = [writer(0, 10, topic="a"), writer(1, 10, topic="b")]
    found = account(
        produced, [reader({"0": 10}, group="ga", topic="a"), reader({"1": 10}, group="gb", topic="b")], 1
    )
    assert found["lost"] == 0


def test_surplus_of_one_producer_does_not_hide_a_loss_of_another() -> None:
    found = account([writer(0, 10), writer(1, 10)], [reader({"0": 12, "1": 8})], 1)
    assert (found["lost"], found["duplicates"]) == (2, 2)


def test_failed_messages_that_were_stored_all_the_same_are_no_duplicates() -> None:
    assert account([writer(0, 10, errors=2)], [reader({"0": 12})], 1)["duplicates"] == 0


def test_without_consumers_nothing_is_expected() -> None:
    assert account([writer(0, 10)], [], 0)["lost"] == 0


# -- budgets -------------------------------------------------------------------------------------------------


def floor_row(case: str, ratio: float, rate: float = 0.0) -> dict[str, Any]:
    found = [{"requests_per_s": rate}]
    return {"case": case, "ratio": ratio, "ratio_with_objects": 0.88, "penstock": found, "floor": []}


def test_verdicts_on_the_floor() -> None:
    good = of_floor(
        [floor_row("200 KiB", 0.7), floor_row("1 KiB", 0.1, 20_000), floor_row("1 KiB, depth 1", 2.0)]
    )
    assert good.count("  met") == 3
    assert "MISSED" not in good
    assert "88%" in good
    bad = of_floor(
        [floor_row("200 KiB", 0.69), floor_row("1 KiB", 0.9, 19_999), floor_row("1 KiB, depth 1", 2.1)]
    )
    assert bad.count("MISSED") == 3
    assert of_floor([floor_row("16 KiB", 0.1)]) == ""
