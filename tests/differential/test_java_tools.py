"""Kafka's own Java tools, of the version that answers are compared with, against Penstock: they end with 0."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.differential.kafka import ApacheKafka, kafka_jars
from tests.differential.test_answers import SETTINGS
from tests.integration.conftest import ServeProcess
from tests.integration.conftest import penstock as run_penstock
from tests.integration.kafka_clients import serving
from tests.patience import HANG_S

pytestmark = [pytest.mark.full, pytest.mark.slow]

REASSIGN = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"
CONFIGS = "kafka.admin.ConfigCommand"

Tool = Callable[..., str]


@pytest.fixture(scope="module")
def penstock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(tmp_path_factory.mktemp("penstock"), *SETTINGS) as broker:
        yield broker


@pytest.fixture(scope="module")
def tool(penstock: ServeProcess, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Runs a tool to its good end; what it printed."""
    programs = ApacheKafka(tmp_path_factory.mktemp("tools"), kafka_jars())

    def run(main: str, *arguments: str) -> str:
        command = programs.command(main, "--bootstrap-server", penstock.bootstrap_servers, *arguments)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANG_S
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def test_reassignments_end_well_and_leave_nothing_behind(
    tool: Tool, penstock: ServeProcess, tmp_path: Path
) -> None:
    where = ("--bootstrap-server", penstock.bootstrap_servers)
    assert run_penstock("topic", "create", "moved", "--partitions", "2", *where).returncode == 0
    plan = tmp_path / "plan.json"
    partitions = [{"topic": "moved", "partition": index, "replicas": [1]} for index in range(2)]
    plan.write_text(json.dumps({"version": 1, "partitions": partitions}))
    asked = ("--reassignment-json-file", str(plan))
    executed = tool(REASSIGN, *asked, "--execute", "--throttle", "1000000")
    assert "Successfully started partition reassignments" in executed, executed
    verified = tool(REASSIGN, *asked, "--verify")
    assert verified.count("is completed") == 2, verified
    tool(REASSIGN, *asked, "--cancel")
    described = json.loads(run_penstock("topic", "describe", "moved", "--json", *where).stdout)
    set_for_it = [each["name"] for each in described["configs"] if each["source"] == "topic"]
    assert [name for name in set_for_it if "throttled" in name] == []


def test_a_brokers_configs_are_described_with_where_they_come_from(
    tool: Tool, penstock: ServeProcess
) -> None:
    shown = tool(CONFIGS, "--describe", "--all", "--entity-type", "brokers", "--entity-name", "1")
    assert f"listeners=PLAINTEXT://{penstock.bootstrap_servers}" in shown, shown
    assert "offsets.topic.num.partitions=1" in shown, shown
    assert "STATIC_BROKER_CONFIG:offsets.topic.num.partitions=1" in shown, shown
    assert "DEFAULT_CONFIG:offsets.topic.num.partitions=50" in shown, shown
