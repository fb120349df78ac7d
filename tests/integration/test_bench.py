"""``penstock bench`` against real brokers: the figures are plausible and no message is missing."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from tests.integration.conftest import ServeProcess, free_port
from tests.patience import HANG_S

from penstock.errors import ConfigError, UnavailableError
from penstock_tools.bench.cold_reads import measure_cold_reads
from penstock_tools.bench.floor import compare
from penstock_tools.bench.lake import measure_lake
from penstock_tools.bench.lake import report as report_of_lake
from penstock_tools.bench.results import Sample
from penstock_tools.bench.run import Run
from penstock_tools.bench.server import BrokerProcess
from penstock_tools.bench.start import measure_starts
from penstock_tools.bench.workload import Driver, KeyDistributor, Workload
from penstock_tools.cli import main

SMOKE = Path(__file__).parents[2] / "tools" / "bench" / "workloads" / "smoke.yaml"
SMALL = ["--set", "wal.capacity=64MiB", "--set", "groups.initial_rebalance_delay=100ms"]


def workload(**values: Any) -> Workload:
    usual: dict[str, Any] = {
        "name": "try",
        "partitionsPerTopic": 2,
        "messageSize": 200,
        "useRandomizedPayloads": True,
        "randomBytesRatio": 0.5,
        "randomizedPayloadPoolSize": 10,
        "producerRate": 500,
        "testDurationMinutes": 1.5 / 60,
        "warmupDurationMinutes": 0,
    }
    return Workload(**{**usual, **values})


def test_smoke_workload_against_a_broker_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(SMOKE), "--out", str(tmp_path), "--name", "try me", *SMALL]) == 0
    (json_path,) = tmp_path.glob("try-me-*.json")
    (html_path,) = tmp_path.glob("try-me-*.html")
    result = json.loads(json_path.read_text())
    assert result["workload"] == "smoke"
    assert result["label"] == "try me"
    balance = result["account"]
    assert balance["acked"] > 1000, "2000 messages/s for more than three seconds, on however slow a machine"
    assert balance["received"] == balance["expected"] == balance["acked"]
    assert (balance["lost"], balance["duplicates"], balance["errors"]) == (0, 0, 0)
    assert len(result["publishRate"]) == len(result["time"]) == 6
    assert 0 < statistics.median(result["publishRate"]) < 2500, (
        "paced; what a busy machine held up comes in one go"
    )
    p50, p99, most = (result[f"aggregatedPublishLatency{end}"] for end in ("50pct", "99pct", "Max"))
    assert 0 < p50 <= p99 <= most
    assert result["aggregatedEndToEndLatency50pct"] > 0
    assert result["broker"]["residentMaxMB"] > 10
    assert max(result["brokerCpu"]) > 0
    assert {"processors", "librdkafka", "penstock", "python", "filesystem"} <= set(result["machine"])
    root = ET.fromstring(html_path.read_text().partition("\n")[2])
    assert len(list(root.iter("figure"))) >= 6
    shown = capfd.readouterr()
    assert "lost 0, duplicates 0" in shown.out
    assert "measuring" in shown.err


@pytest.mark.full
def test_any_broker_can_be_measured_and_keeps_no_topics(
    broker: ServeProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(SMOKE), "--out", str(tmp_path), "--duration", "1s"]
    assert main([*arguments, "--bootstrap-server", broker.bootstrap_servers]) == 0
    (json_path,) = tmp_path.glob("*.json")
    result = json.loads(json_path.read_text())
    assert result["broker"]["bootstrapServers"] == broker.bootstrap_servers
    assert result["brokerCpu"] == [None, None]
    topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=HANG_S).topics
    assert not [name for name in topics if name.startswith("bench-")]
    assert "lost 0" in capfd.readouterr().out


def test_driver_file_says_where_and_how(
    broker: ServeProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    driver = tmp_path / "driver.yaml"
    driver.write_text(
        "name: Kafka\n"
        "driverClass: io.openmessaging.benchmark.driver.kafka.KafkaBenchmarkDriver\n"
        "replicationFactor: 1\n"
        f"commonConfig: |\n  bootstrap.servers={broker.bootstrap_servers}\n"
        "producerConfig: |\n  enable.idempotence=true\n  compression.type=lz4\n  linger.ms=5\n"
        "consumerConfig: |\n  enable.auto.commit=false\n  max.partition.fetch.bytes=1048576\n"
    )
    arguments = ["bench", str(SMOKE), "--driver", str(driver), "--duration", "1s", "--out", str(tmp_path)]
    assert main(arguments) == 0
    (json_path,) = tmp_path.glob("*.json")
    result = json.loads(json_path.read_text())
    assert result["driver"] == "Kafka"
    assert result["broker"]["bootstrapServers"] == broker.bootstrap_servers
    assert result["account"]["lost"] == result["account"]["duplicates"] == 0
    assert "smoke" in capfd.readouterr().out


@pytest.mark.full
def test_topics_subscriptions_and_keys(broker: ServeProcess) -> None:
    load = workload(
        topics=2,
        subscriptionsPerTopic=2,
        consumerPerSubscription=2,
        producersPerTopic=2,
        keyDistributor=KeyDistributor.KEY_ROUND_ROBIN,
    )
    balance = Run(load, broker.bootstrap_servers).run({})["account"]
    assert balance["acked"] > 0
    assert balance["received"] == balance["expected"] == 2 * balance["acked"]
    assert (balance["lost"], balance["duplicates"]) == (0, 0)


@pytest.mark.full
def test_as_fast_as_it_can(broker: ServeProcess) -> None:
    result = Run(workload(producerRate=0), broker.bootstrap_servers).run({})
    assert max(result["publishRate"]) > 1000
    assert result["account"]["lost"] == 0


@pytest.mark.full
def test_backlog_is_built_and_drained(broker: ServeProcess) -> None:
    phases: list[str] = []
    load = workload(producerRate=5000, messageSize=1024, consumerBacklogSizeGB=0.003)
    result = Run(load, broker.bootstrap_servers, on_phase=phases.append).run({})
    assert (
        phases.index("building the backlog")
        < phases.index("draining the backlog")
        < phases.index("measuring")
    )
    assert result["backlogPhase"]["messages"] == int(0.003 * 2**30) // 1024
    assert result["backlogPhase"]["drainRate"] > 0
    assert result["account"]["lost"] == 0


def test_property_that_librdkafka_does_not_know_is_told(broker: ServeProcess) -> None:
    wrong = {"no.such.property": "1"}
    for driver in (Driver(commonConfig=wrong), Driver(producerConfig=wrong), Driver(consumerConfig=wrong)):
        load = workload(driver=driver)
        with pytest.raises(ConfigError, match=r"no\.such\.property"):
            Run(load, broker.bootstrap_servers).run({})


def test_topic_config_that_the_broker_refuses_is_told(broker: ServeProcess) -> None:
    load = workload(driver=Driver(topicConfig={"retention.ms": "soon"}))
    with pytest.raises(ConfigError, match="the broker refuses a topic"):
        Run(load, broker.bootstrap_servers).run({})


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_tools.bench.run.REACH_S", 1.0)
    with pytest.raises(UnavailableError, match="can't reach a broker"):
        Run(workload(), f"127.0.0.1:{free_port()}").run({})


def test_broker_that_does_not_start_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(SMOKE), "--out", str(tmp_path), "--set", "wal.capacty=1GiB"]) == 1
    assert "the nearest key is wal.capacity" in capfd.readouterr().err


def test_broker_that_dies_in_the_middle_ends_the_run(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, ["wal.capacity=64MiB"]) as broker:
        pid = broker.pid

        def kill(sample: Sample) -> None:
            if sample.phase == "measuring":
                os.kill(pid, signal.SIGKILL)

        run = Run(workload(testDurationMinutes=1), broker.bootstrap_servers, broker=broker, on_sample=kill)
        with pytest.raises(UnavailableError, match="the broker ended in the middle"):
            run.run({})


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_measurement_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    data = tmp_path / "data"
    data.mkdir()
    command = [sys.executable, "-m", "penstock", "bench", str(SMOKE), "--duration", "60s"]
    command += ["--dir", str(data), "--out", str(tmp_path / "out"), *SMALL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("measuring"):
                break
        process.send_signal(number)
        rest = process.stdout.read()  # ends when the broker and all clients, which inherited it, are gone
        assert process.wait(HANG_S) == 130
    assert "Traceback" not in rest
    assert list(data.iterdir()) == []


def test_producers_alone(broker: ServeProcess) -> None:
    result = Run(workload(subscriptionsPerTopic=0), broker.bootstrap_servers).run({})
    assert result["account"]["acked"] > 0
    assert (result["account"]["expected"], result["account"]["lost"]) == (0, 0)
    assert set(result["backlog"]) == {0}


def test_failures_of_clients_are_told(broker: ServeProcess) -> None:
    load = workload(messageSize=20_000, driver=Driver(topicConfig={"max.message.bytes": "10000"}))
    result = Run(load, broker.bootstrap_servers).run({})
    assert result["account"]["acked"] == 0
    assert result["account"]["errors"] > 0
    assert "MSG_SIZE_TOO_LARGE" in " ".join(result["failures"])


def test_floor_is_compared(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (row,) = compare(tmp_path, 0.3, 1, ["wal.capacity=64MiB"], "16 KiB")
    assert row["ratio"] > 0
    assert row["ratio_with_objects"] > 0
    assert row["penstock"][0]["requests_per_s"] > 0
    assert "16 KiB" in capfd.readouterr().out


@pytest.mark.full
def test_starts_are_measured(tmp_path: Path) -> None:
    found = measure_starts(tmp_path, 1, ["wal.capacity=64MiB"])
    for starts in found.values():
        (start,) = starts
        assert min(start.import_ms, start.start_ms, start.first_ack_ms) > 0


@pytest.mark.full
def test_cold_reads_are_measured(tmp_path: Path) -> None:
    found = measure_cold_reads(
        tmp_path, old_bytes=4 * 2**20, seconds=2.5, rounds=1, rate=200, sets=["wal.capacity=64MiB"]
    )
    assert found.read_megabytes_per_s > 0
    assert min(found.quiet_p99_ms + found.reading_p99_ms) > 0
    assert found.ratio == pytest.approx(found.reading_p99_ms[0] / found.quiet_p99_ms[0])
    assert found.floor is not None
    assert found.floor.read_megabytes_per_s > 0
    assert min(found.floor.quiet_p99_ms + found.floor.reading_p99_ms) > 0


@pytest.mark.full
def test_the_lake_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg")
    found = measure_lake(
        tmp_path, seconds=0.6, rounds=1, rate=400, interval_s=0.2, sets=["wal.capacity=64MiB"]
    )
    assert min(found.without_p99_ms + found.with_p99_ms + found.neutral_p99_ms + found.late_s) > 0
    assert found.table_cpu_per_s > 0
    assert found.table_bytes_per_s > 0
    assert found.rows > 200
    assert "late by" in report_of_lake(found)


def test_wal_latency_measures_each_load_and_writes_a_plot_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "bench",
        "wal-latency",
        "--seconds",
        "0.3",
        "--idle",
        "0.1",
        "--put-p50-ms",
        "2",
        "--put-p99-ms",
        "4",
    ]
    files = ["--plot", str(tmp_path / "plot.svg"), "--json", str(tmp_path / "figures.json")]
    assert main([*arguments, *files]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}  " in printed for name in ("lone", "1 MiB/s", "10 MiB/s", "100 MiB/s"))
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["idle_requests"] for row in rows] == [0, 0, 0, 0]
    assert all(row["ack_ms_p50"] > 1 for row in rows)
    assert (tmp_path / "plot.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
