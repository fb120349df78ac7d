"""Requests are answered as Apache Kafka answers them, field by field, or the difference is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.depth import FULL
from tests.differential.codec_cases import CODEC_CASES
from tests.differential.compare import Pair, Report, grouped
from tests.differential.corner_cases import CORNER_CASES
from tests.differential.first_faults import FIRST_FAULTS
from tests.differential.further_cases import FURTHER_CASES
from tests.differential.group_cases import GROUP_CASES
from tests.differential.kafka import ApacheKafka, kafka_jars
from tests.differential.lasting_cases import LASTING_CASES
from tests.differential.meant import MEANT
from tests.differential.odd_requests import odd_requests
from tests.differential.scenarios import SCENARIOS
from tests.differential.side import Side
from tests.differential.twice_cases import TWICE_CASES
from tests.integration.conftest import ServeProcess
from tests.integration.kafka_clients import serving

from penstock.api.dispatch import apis
from penstock.wire import ApiKey

pytestmark = pytest.mark.slow

REQUESTS_PER_VERSION_MIN = 10
SCRIPTS = {
    **SCENARIOS,
    **CORNER_CASES,
    **FURTHER_CASES,
    **FIRST_FAULTS,
    **GROUP_CASES,
    **CODEC_CASES,
    **TWICE_CASES,
    **LASTING_CASES,
}
SETTINGS = ("broker.node_id=1", "groups.initial_rebalance_delay=0ms", "groups.offsets_partitions=1")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), kafka_jars()) as broker:
        yield broker


@pytest.fixture(scope="module")
def penstock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(tmp_path_factory.mktemp("penstock"), *SETTINGS) as broker:
        yield broker


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """What the whole module finds; written to the file that PENSTOCK_DIFFERENTIAL_REPORT names."""
    found = Report()
    yield found
    print(found)
    place = os.environ.get("PENSTOCK_DIFFERENTIAL_REPORT")
    if place:
        Path(place).write_text(f"{found}\n\nUnexpected:\n{grouped(found.unexpected)}\n")


@pytest.fixture(scope="module")
def pair(kafka: ApacheKafka, penstock: ServeProcess, report: Report) -> Iterator[Pair]:
    sides = Side("kafka", kafka.port), Side("penstock", penstock.port)
    both = Pair(*sides, report)
    both.set_up()
    yield both
    for side in sides:
        side.close()


@pytest.mark.parametrize("api_key", [pytest.param(key, id=ApiKey(key).name.lower()) for key in apis()])
def test_odd_requests_are_answered_as_by_kafka(pair: Pair, api_key: int) -> None:
    api = apis()[api_key]
    with pair.comparing(ApiKey(api_key).name.lower()):
        # what is in between the oldest and the newest differs from them in fields, which codecs have tests of
        for version in range(api.low, api.high + 1) if FULL else sorted({api.low, api.high}):
            if version > api.low:
                pair.renew()
            requests = odd_requests(api_key, version)
            assert len(requests) > REQUESTS_PER_VERSION_MIN
            for request in requests:
                pair.prepare(api_key)
                kafka, penstock = pair.compare(api_key, version, request)
                if api_key == ApiKey.DELETE_TOPICS and "'error_code': 0" in f"{kafka}{penstock}":
                    pair.renew_victim()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scenarios_are_answered_as_by_kafka(pair: Pair, name: str) -> None:
    with pair.comparing(name):
        SCRIPTS[name](pair)


def test_each_difference_that_is_meant_is_looked_for_somewhere() -> None:
    """And found there: where one isn't any more, that comparison fails."""
    comparisons = {ApiKey(key).name.lower() for key in apis()} | SCRIPTS.keys()
    assert {meant.name: [where for where in meant.where if where not in comparisons] for meant in MEANT} == {
        meant.name: [] for meant in MEANT
    }
    assert all(meant.where for meant in MEANT)
