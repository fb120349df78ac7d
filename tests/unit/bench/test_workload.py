"""Workload files: the benchmark's keys are read, everything else is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock_tools.bench.workload import Driver, KeyDistributor, load_driver, load_workload

SHIPPED = sorted((Path(__file__).parents[3] / "tools/bench/workloads").glob("*.yaml"))

GOOD = """
name: try
topics: 2
partitionsPerTopic: 3
messageSize: 100
useRandomizedPayloads: true
randomBytesRatio: 0.5
randomizedPayloadPoolSize: 10
keyDistributor: "KEY_ROUND_ROBIN"
subscriptionsPerTopic: 2
consumerPerSubscription: 1
producersPerTopic: 4
producerRate: 500
consumerBacklogSizeGB: 0
testDurationMinutes: 15
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "workload.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_workload(written(tmp_path, text))
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_workload_is_read(path: Path) -> None:
    assert load_workload(path).name


def test_there_are_shipped_workloads() -> None:
    assert {"smoke", "1-topic-1-partition-1kb", "max-rate-1-topic-1-partition-100b"} <= {
        p.stem for p in SHIPPED
    }


def test_keys_of_the_benchmark_are_read(tmp_path: Path) -> None:
    workload = load_workload(written(tmp_path, GOOD))
    assert (workload.topics, workload.partitionsPerTopic, workload.producersPerTopic) == (2, 3, 4)
    assert workload.keyDistributor is KeyDistributor.KEY_ROUND_ROBIN
    assert workload.producerRate == 500
    assert workload.test_s == 900
    assert workload.warmup_s == 60
    assert workload.driver == Driver()


def test_name_is_by_default_that_of_the_file(tmp_path: Path) -> None:
    assert load_workload(written(tmp_path, GOOD.replace("name: try", ""))).name == "workload"


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("topics: 2", "topic: 2", "topic is no key, the nearest key is topics: value=2"),
        ("topics: 2", "topics: two", "topics must be an integer: value='two'"),
        ("topics: 2", "topics: true", "topics must be an integer: value=True"),
        ("topics: 2", "topics: 0", "topics must be at least 1: value=0"),
        ("topics: 2", "topics:", "topics must be an integer: value=None"),
        ("producerRate: 500", "producerRate: fast", "producerRate must be a number: value='fast'"),
        ("producerRate: 500", "producerRate: .nan", "producerRate must be at least 0: value=nan"),
        ("producerRate: 500", "producerRate: .inf", "producerRate must be at least 0: value=inf"),
        ("randomBytesRatio: 0.5", "randomBytesRatio: 1.5", "randomBytesRatio must be between 0 and 1: value=1.5"),
        ("messageSize: 100", "messageSize: 8", "messageSize must be at least 16: value=8"),
        ("PoolSize: 10", "PoolSize: 0", "randomizedPayloadPoolSize must be at least 1: value=0"),
        ("useRandomizedPayloads: true", "useRandomizedPayloads: 1", "useRandomizedPayloads must be true or false"),
        ("useRandomizedPayloads: true", "", "say what messages hold, with useRandomizedPayloads or payloadFile"),
        ('"KEY_ROUND_ROBIN"', "ROUND", "keyDistributor must be one of NO_KEY, KEY_ROUND_ROBIN, RANDOM_NANO"),
        ("name: try", "name: 3", "name must be text: value=3"),
        ("name: try", "driver: [1]", "driver is a file name or a section with keys"),
        ("name: try", "driver: {producerConfg: {}}", "driver.producerConfg is no key, the nearest key is driver."),
        ("name: try", "driver: {topicConfig: 'a b'}", "driver.topicConfig takes lines of name=value: line='a b'"),
        ("name: try", "driver: {driverClass: a.PulsarBenchmarkDriver}", "only Kafka's driver is known"),
        ("name: try", "driver: {replicationFactor: 0}", "driver.replicationFactor must be at least 1"),
    ],
)  # fmt: skip
def test_mistake_is_refused(tmp_path: Path, before: str, after: str, sentence: str) -> None:
    assert before in GOOD
    message = refusal(tmp_path, GOOD.replace(before, after))
    assert message.startswith(str(tmp_path / "workload.yaml"))
    assert sentence in message


def test_backlog_needs_a_rate_and_consumers(tmp_path: Path) -> None:
    backlog = GOOD.replace("consumerBacklogSizeGB: 0", "consumerBacklogSizeGB: 0.5")
    assert load_workload(written(tmp_path, backlog)).backlog_bytes == 2**29
    assert "needs a producerRate" in refusal(
        tmp_path, backlog.replace("producerRate: 500", "producerRate: 0")
    )
    assert "needs consumers" in refusal(tmp_path, backlog.replace("PerSubscription: 1", "PerSubscription: 0"))


@pytest.mark.parametrize("text", ["topics: [1", "just text", "- 1"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "workload.yaml") in refusal(tmp_path, text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_workload(tmp_path / "nothing.yaml")


def test_payload_file_is_beside_the_workload_and_has_the_message_size(tmp_path: Path) -> None:
    text = GOOD.replace("useRandomizedPayloads: true", "payloadFile: payload.data")
    assert "can't read payloadFile" in refusal(tmp_path, text)
    (tmp_path / "payload.data").write_bytes(bytes(99))
    assert "payloadFile must have messageSize bytes: file=99 messageSize=100" in refusal(tmp_path, text)
    (tmp_path / "payload.data").write_bytes(bytes(100))
    assert load_workload(written(tmp_path, text)).payloadFile == str(tmp_path / "payload.data")


def test_driver_file_of_the_benchmark_is_read(tmp_path: Path) -> None:
    (tmp_path / "driver.yaml").write_text(
        "name: Kafka\n"
        "driverClass: io.openmessaging.benchmark.driver.kafka.KafkaBenchmarkDriver\n"
        "replicationFactor: 3\n"
        "reset: true\n"
        "topicConfig: |\n  min.insync.replicas=2\n"
        "commonConfig: |\n  # where\n  bootstrap.servers=localhost:9092\n"
        "producerConfig: |\n  acks=all\n\n  linger.ms = 1\n"
        "consumerConfig: {enable.auto.commit: false, fetch.min.bytes: 1}\n"
    )
    driver = load_driver(tmp_path / "driver.yaml")
    assert driver.name == "Kafka"
    assert driver.replicationFactor == 3
    assert driver.topicConfig == {"min.insync.replicas": "2"}
    assert driver.commonConfig == {"bootstrap.servers": "localhost:9092"}
    assert driver.producerConfig == {"acks": "all", "linger.ms": "1"}
    assert driver.consumerConfig == {"enable.auto.commit": "false", "fetch.min.bytes": "1"}
    workload = load_workload(written(tmp_path, GOOD + "driver: driver.yaml\n"))
    assert workload.driver == driver


def test_shorter_run_has_a_shorter_warm_up(tmp_path: Path) -> None:
    workload = load_workload(written(tmp_path, GOOD)).lasting(8)
    assert workload.test_s == pytest.approx(8)
    assert workload.warmup_s == pytest.approx(2)
