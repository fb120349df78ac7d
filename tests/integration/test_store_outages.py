"""A store that hangs, refuses or is full: admin calls keep their timeouts, and people are told what happens."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.ledger import TOPIC, create_topic
from tests.integration.test_faults import (
    FLAKY,
    WITH_PLUGINS,
    Flaky,
    eventually,
    one_sentence,
    run_serve,
)
from tests.integration.wire import Wire, batch_of
from tests.patience import HANG_S

from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.metadata import MetadataRequest

TIMEOUT_MS = 300


@pytest.fixture
def flaky(serve: ServeFactory) -> Iterator[Flaky]:
    """A broker with a topic on a store that fails on command; it works again before the broker is stopped."""
    switch = Flaky(serve(*FLAKY, arguments=WITH_PLUGINS))
    create_topic(switch.broker.bootstrap_servers)
    yield switch
    switch.turn("ok")


def create(wire: Wire, name: str) -> int:
    topic = CreatableTopic(name=name, num_partitions=1, replication_factor=1, assignments=[], configs=[])
    request = CreateTopicsRequest(topics=[topic], timeout_ms=TIMEOUT_MS)
    (result,) = wire.ask(ApiKey.CREATE_TOPICS, 7, request).topics
    return int(result.error_code)


def delete(wire: Wire, name: str) -> int:
    request = DeleteTopicsRequest(topic_names=[name], timeout_ms=TIMEOUT_MS)
    (result,) = wire.ask(ApiKey.DELETE_TOPICS, 5, request).responses
    return int(result.error_code)


def grow(wire: Wire, name: str) -> int:
    topic = CreatePartitionsTopic(name=name, count=9, assignments=None)
    request = CreatePartitionsRequest(topics=[topic], timeout_ms=TIMEOUT_MS)
    (result,) = wire.ask(ApiKey.CREATE_PARTITIONS, 3, request).results
    return int(result.error_code)


def delete_records(wire: Wire, name: str) -> int:
    partition = DeleteRecordsPartition(partition_index=0, offset=1)
    request = DeleteRecordsRequest(
        topics=[DeleteRecordsTopic(name=name, partitions=[partition])], timeout_ms=TIMEOUT_MS
    )
    (topic,) = wire.ask(ApiKey.DELETE_RECORDS, 2, request).topics
    (result,) = topic.partitions
    return int(result.error_code)


def topics(wire: Wire) -> dict[str, int]:
    """Partitions of each topic."""
    answer = wire.ask(ApiKey.METADATA, 12, MetadataRequest(topics=None))
    return {topic.name: len(topic.partitions) for topic in answer.topics if not topic.is_internal}


@pytest.mark.parametrize("mode", ["stall", "fail"])
def test_admin_calls_keep_their_timeouts_and_take_effect_when_the_store_is_back(
    flaky: Flaky, mode: str
) -> None:
    """A store that is full fails as one that refuses. What is asked for is neither lost nor half done."""
    with Wire(flaky.broker) as wire:
        assert create(wire, "to-delete") == 0
        assert create(wire, "to-shorten") == 0
        assert wire.produce("to-shorten", batch_of([b"a", b"b"])).error_code == 0
        flaky.turn(mode)
        late = ErrorCode.REQUEST_TIMED_OUT
        assert create(wire, "to-create") == late
        assert create(wire, "to-create") == late
        assert grow(wire, TOPIC) == late
        assert delete(wire, "to-delete") == late
        assert delete_records(wire, "to-shorten") == late
        assert wire.produce("to-shorten", batch_of([b"c"])).error_code == 0, "only metadata waits"
        flaky.turn("ok")
        eventually(lambda: topics(wire) == {"to-create": 1, TOPIC: 9, "to-shorten": 1}, "all changes")
        eventually(lambda: delete_records(wire, "to-shorten") == 0, "the deletion of records")
        assert create(wire, "to-create") == ErrorCode.TOPIC_ALREADY_EXISTS
        assert grow(wire, TOPIC) == ErrorCode.INVALID_PARTITIONS


@pytest.mark.slow
def test_calls_without_a_timeout_of_their_own_are_answered_before_clients_hang_up(flaky: Flaky) -> None:
    """AdminClient's request.timeout.ms is 30 s."""
    with Wire(flaky.broker) as wire:
        flaky.turn("stall")
        answer = wire.ask(ApiKey.INIT_PRODUCER_ID, 4, InitProducerIdRequest(transactional_id=None))
        assert answer.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE


# -- people are told -------------------------------------------------------------------------------------------


def statistics(broker: ServeProcess) -> dict[str, Any]:
    """What it says of its store now."""
    before = len(broker.output_so_far)
    broker.signal(signal.SIGUSR1)
    line = broker.wait_for_output('"object_store": ', after=before)
    found = json.loads(line[line.index("{") :])["object_store"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("mode", "reason"), [("stall", "it doesn't answer"), ("fail", "the flaky store refuses")]
)
def test_an_outage_is_one_line_at_its_begin_and_one_at_its_end_and_is_in_the_statistics(
    flaky: Flaky, mode: str, reason: str
) -> None:
    broker = flaky.broker
    with Wire(broker) as wire:
        found = statistics(broker)
        assert (found["outage_s"], found["consecutive_failures"]) == (0, 0)
        flaky.turn(mode)
        assert create(wire, "late") == ErrorCode.REQUEST_TIMED_OUT
        broker.wait_for_output(
            "the object store doesn't work, nothing is lost and it's tried again: flaky://"
        )
        eventually(lambda: statistics(broker)["outage_s"] > 0, "the outage in the statistics")
        assert reason in statistics(broker)["last_error"]
        flaky.turn("ok")
        broker.wait_for_output("the object store works again: flaky://")
        eventually(lambda: statistics(broker)["outage_s"] == 0, "the end of it in the statistics")
    assert broker.terminate() == 0
    assert broker.output.count("the object store doesn't work, nothing is lost") == 1
    assert broker.output.count("the object store works again") == 1


def test_the_last_words_of_a_stop_name_the_store_that_fails(serve: ServeFactory) -> None:
    broker = serve(*FLAKY, "broker.drain_timeout=1s", "stream.upload_interval=1h", arguments=WITH_PLUGINS)
    create_topic(broker.bootstrap_servers)
    flaky = Flaky(broker)
    with Wire(broker) as wire:
        flaky.turn("fail")
        assert wire.produce(TOPIC, batch_of([b"only in the wal"])).error_code == 0
        assert create(wire, "late") == ErrorCode.REQUEST_TIMED_OUT
    broker.wait_for_output("the object store doesn't work")
    assert broker.terminate() == 0
    (line,) = [line for line in broker.output.splitlines() if "that only the WAL holds" in line]
    assert "the object store doesn't work: flaky://" in line
    assert "last_error=" in line
    flaky.turn("ok")


@pytest.mark.parametrize("mode", ["stall", "fail"])
def test_a_start_without_its_store_says_so_and_ends_in_its_time(serve: ServeFactory, mode: str) -> None:
    """With the exit code that a restart may help."""
    broker = serve(*FLAKY, "broker.start_timeout=2s", arguments=WITH_PLUGINS)
    create_topic(broker.bootstrap_servers)
    broker.kill()
    flaky = Flaky(broker)
    flaky.turn(mode)
    broker.launch()
    assert broker.wait(HANG_S) == 1
    said = broker.output[broker.printed_before :]
    assert one_sentence(said)
    assert "flaky" in said
    flaky.turn("ok")
    broker.start()


def test_a_start_whose_endpoint_doesnt_answer_names_it_within_seconds_and_never_its_credentials(
    tmp_path: Path,
) -> None:
    pytest.importorskip("s3fs")
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, output = run_serve(
            tmp_path / "data",
            "object_store.url=s3://bucket/prefix",
            f'object_store.options={{endpoint_url="{endpoint}", key="TheKeyId", secret="TheSecret"}}',
            "object_store.request_timeout_ms=4s",
            "object_store.retry_budget_ms=4s",
        )
    assert code == 1, output
    assert one_sentence(output)
    lines = output.splitlines()
    assert "the object store doesn't answer yet" in lines[0]
    assert f"location=s3://bucket/prefix/ endpoint={endpoint} waited_s=3" in lines[0]
    assert endpoint in lines[-1]
    assert "TheKeyId" not in output
    assert "TheSecret" not in output
