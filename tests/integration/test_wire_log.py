"""Clauses of the protocol that no client shows: connections, produce, fetch, sessions and offsets by time."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import DEADLINE_S, serving
from tests.integration.wire import (
    TIME_MS,
    Wire,
    batch_of,
    batches_in,
    fetch_request,
    fetch_topic,
    list_offsets,
    partition_at,
    produce_request,
    values_in,
)

from penstock.wire import ApiKey, ErrorCode
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.fetch import FetchPartition, ForgottenTopic
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.list_offsets import ListOffsetsPartition
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.record_builder import build_batch
from penstock.wire.records import iter_records


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("wire-log")) as broker:
        yield broker


@pytest.fixture
def wire(shared: ServeProcess) -> Iterator[Wire]:
    with Wire(shared) as connection:
        yield connection


# -- connection ------------------------------------------------------------------------------------------------


def test_api_versions_of_an_unknown_version_is_answered_in_version_0(wire: Wire) -> None:
    """KIP-511: error 35 in a v0 body, with the versions of ApiVersions itself; the connection goes on."""
    wire.send_raw(struct.pack(">hhih", ApiKey.API_VERSIONS, 99, 5, -1) + b"\x00 whatever comes in v99")
    answer = wire.receive(ApiKey.API_VERSIONS, 0, 5)
    assert answer.error_code == ErrorCode.UNSUPPORTED_VERSION
    assert [(api.api_key, api.min_version, api.max_version) for api in answer.api_keys] == [(18, 0, 4)]
    assert wire.ask(ApiKey.API_VERSIONS, 0, ApiVersionsRequest()).error_code == 0


@pytest.mark.parametrize("version", range(5))
def test_api_versions_advertises_what_clients_need(wire: Wire, version: int) -> None:
    request = ApiVersionsRequest(client_software_name="wire", client_software_version="1.0")
    answer = wire.ask(ApiKey.API_VERSIONS, version, request)
    assert answer.error_code == 0
    table = {api.api_key: (api.min_version, api.max_version) for api in answer.api_keys}
    assert table[ApiKey.PRODUCE] == (0, 13), "KAFKA-18659: 0 is advertised, though only 3 and up are taken"
    assert table[ApiKey.FETCH] == (4, 18)
    assert table[ApiKey.METADATA] == (0, 13)
    assert table[ApiKey.OFFSET_FOR_LEADER_EPOCH] == (2, 4)
    assert table[ApiKey.INIT_PRODUCER_ID] == (0, 5)
    assert table[ApiKey.LIST_OFFSETS] == (1, 11)
    never = {4, 5, 6, 7, 52, 53, 54, 56, 58, 59, 62, 63, 67, 70, 73, 80, 81, 82, 83, 84, 85, 86, 87}
    assert not never & set(table)


@pytest.mark.parametrize(
    ("key", "version"), [(4, 0), (999, 0), (ApiKey.PRODUCE, 2), (ApiKey.FETCH, 3), (ApiKey.METADATA, 77)]
)
def test_an_unknown_api_or_version_closes_the_connection(wire: Wire, key: int, version: int) -> None:
    wire.send_raw(struct.pack(">hhih", key, version, 1, -1))
    assert wire.receive_raw() == b""


def test_answers_come_in_the_order_of_the_requests(wire: Wire) -> None:
    """A fetch that waits holds back what was asked after it; nothing overtakes on one connection."""
    topic = wire.create("order")
    waiting = wire.send(
        ApiKey.FETCH, 12, fetch_request([fetch_topic(topic, [partition_at(0)])], max_wait_ms=300, min_bytes=1)
    )
    after = wire.send(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
    (found,) = wire.receive(ApiKey.FETCH, 12, waiting).responses
    assert found.partitions[0].error_code == 0
    assert wire.receive(ApiKey.API_VERSIONS, 0, after).error_code == 0


# -- produce ---------------------------------------------------------------------------------------------------


def test_acks_0_has_no_answer(wire: Wire) -> None:
    """The next answer on the connection is that of the next request, and the records are there by then."""
    topic = wire.create("silent")
    wire.produce(topic, batch_of([b"a", b"b"]), acks=0)
    assert wire.produce(topic, batch_of([b"c"]), acks=1).base_offset == 2
    assert values_in(wire.fetch(topic, 0)) == [(0, b"a"), (1, b"b"), (2, b"c")]


def test_a_failed_acks_0_closes_the_connection(wire: Wire) -> None:
    """All that a client which wants no answer can be told."""
    wire.produce("nobody-made-this-topic", batch_of([b"x"]), acks=0)
    assert wire.receive_raw() == b""


def test_produce_refuses_what_kafka_refuses(wire: Wire) -> None:
    topic = wire.create("refused")
    good = bytes(batch_of([b"one", b"two"]))
    bad_crc = bytearray(good)
    bad_crc[-1] ^= 1
    old_magic = bytearray(good)
    old_magic[16] = 1
    for batch, acks, code in (
        (bad_crc, -1, ErrorCode.CORRUPT_MESSAGE),
        (old_magic, -1, ErrorCode.INVALID_RECORD),
        (good + good, -1, ErrorCode.INVALID_RECORD),
        (b"", -1, ErrorCode.INVALID_RECORD),
        (None, -1, ErrorCode.INVALID_RECORD),
        (good[:-3], -1, ErrorCode.INVALID_RECORD),
        (good, 2, ErrorCode.INVALID_REQUIRED_ACKS),
        (batch_of([b"x"], control=True), -1, ErrorCode.INVALID_RECORD),
        (batch_of([bytes(2_000_000)]), -1, ErrorCode.MESSAGE_TOO_LARGE),
        (build_batch([(None, b"x", (), 32_503_680_000_000)]), -1, ErrorCode.INVALID_TIMESTAMP),
    ):
        result = wire.produce(topic, batch, acks=acks)
        assert (result.error_code, result.base_offset) == (code, -1), code
    for name, partition, code in (
        (topic, 1, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (topic, -1, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        ("nobody-made-this-topic", 0, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        ("no/such*name", 0, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    ):
        assert wire.produce(name, good, partition=partition).error_code == code
    assert wire.produce(topic, batch_of([b"x"], codec=4), version=6).error_code == (
        ErrorCode.UNSUPPORTED_COMPRESSION_TYPE
    )
    assert wire.produce(topic, good).base_offset == 0, "nothing of all this was stored"


def test_one_partition_that_begins_with_no_batch_has_the_whole_produce_refused(wire: Wire) -> None:
    """As in Kafka, which looks at the first batch of each partition before it asks where they go."""
    topic = wire.create("one-of-two", 2)
    good = bytes(batch_of([b"one"]))
    for spoilt in (good[:16] + b"\3" + good[17:], good[:8] + b"\xff" * 4 + good[12:]):
        data = [
            PartitionProduceData(index=index, records=records) for index, records in enumerate((good, spoilt))
        ]
        asked = [TopicProduceData(name=topic, partition_data=data)]
        request = ProduceRequest(acks=-1, timeout_ms=5000, topic_data=asked)
        (found,) = wire.ask(ApiKey.PRODUCE, 9, request).responses
        assert [one.error_code for one in found.partition_responses] == [ErrorCode.CORRUPT_MESSAGE] * 2
    assert wire.produce(topic, good).base_offset == 0, "nothing of all this was stored"
    for acks, batch, code in (
        (2, good, ErrorCode.INVALID_REQUIRED_ACKS),
        (2, good[:-1], ErrorCode.INVALID_RECORD),
        (-1, good, ErrorCode.INVALID_TOPIC_EXCEPTION),
        (-1, good[:-1], ErrorCode.INVALID_RECORD),
    ):
        name = topic if acks == 2 else "__consumer_offsets"
        assert wire.produce(name, batch, acks=acks).error_code == code


@pytest.mark.parametrize("version", range(3, 14))
def test_every_produce_and_fetch_version_works(wire: Wire, version: int) -> None:
    """By name up to v12, by topic id from v13 on; Fetch in the version of about the same age."""
    topic = wire.create("versions")
    request = produce_request(topic, batch_of([b"one", b"two"], codec=3))
    key: str | bytes = topic
    if version >= 13:
        key = request.topic_data[0].topic_id = wire.topic_id(topic)
        request.topic_data[0].name = ""
    (answer,) = wire.ask(ApiKey.PRODUCE, version, request).responses
    (result,) = answer.partition_responses
    assert (result.error_code, result.base_offset, result.log_append_time_ms) == (0, 0, -1)
    fetch_version = version + 5 if version >= 8 else version + 1
    by = key if fetch_version < 13 else wire.topic_id(topic)
    request_fetch = fetch_request([fetch_topic(by, [partition_at(0)])], session_epoch=-1)
    (found,) = wire.ask(ApiKey.FETCH, fetch_version, request_fetch).responses
    assert found.topic == (topic if fetch_version < 13 else "")
    (data,) = found.partitions
    assert values_in(data) == [(0, b"one"), (1, b"two")]
    assert (data.high_watermark, data.last_stable_offset) == (2, 2)


def test_an_idempotent_batch_sent_again_is_answered_with_its_first_offset(wire: Wire) -> None:
    """The window is five batches; a gap, an older epoch and a sequence beyond the window have their codes."""
    topic = wire.create("again")
    given = wire.ask(ApiKey.INIT_PRODUCER_ID, 4, InitProducerIdRequest(transactional_id=None))
    assert given.error_code == 0

    def send(sequence: int, epoch: int = 0) -> tuple[int, int]:
        batch = batch_of(
            [b"a", b"b"], producer_id=given.producer_id, producer_epoch=epoch, base_sequence=sequence
        )
        result = wire.produce(topic, batch)
        return result.error_code, result.base_offset

    for number in range(6):
        assert send(2 * number) == (0, 2 * number)
    for number in range(1, 6):
        assert send(2 * number) == (0, 2 * number), "one of the last five is known still"
    assert send(14)[0] == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert send(0, epoch=1) == (0, 12), "a new epoch starts at 0"
    assert send(2, epoch=0)[0] == ErrorCode.INVALID_PRODUCER_EPOCH
    assert wire.fetch(topic, 0).high_watermark == 14


def test_an_idempotent_producer_goes_on_after_a_kill(serve: ServeFactory) -> None:
    """Sequences, the window of five and the ids that were given out are known still; no id is given twice."""
    broker = serve()

    def given(wire: Wire) -> int:
        answer = wire.ask(ApiKey.INIT_PRODUCER_ID, 4, InitProducerIdRequest(transactional_id=None))
        assert answer.error_code == 0
        assert isinstance(answer.producer_id, int)
        return answer.producer_id

    def send(wire: Wire, topic: str, producer_id: int, sequence: int) -> tuple[int, int]:
        batch = batch_of([b"a", b"b"], producer_id=producer_id, producer_epoch=0, base_sequence=sequence)
        result = wire.produce(topic, batch)
        return result.error_code, result.base_offset

    with Wire(broker) as wire:
        topic = wire.create("goes-on")
        ids = [given(wire) for _ in range(5)]
        for sequence in range(0, 12, 2):
            assert send(wire, topic, ids[0], sequence) == (0, sequence)
    for stop in (broker.kill, broker.terminate, broker.kill):
        stop()
        broker.start()
        with Wire(broker) as wire:
            ids += [given(wire) for _ in range(5)]
            assert len(set(ids)) == len(ids)
            for sequence in range(2, 12, 2):
                assert send(wire, topic, ids[0], sequence) == (0, sequence), "sent again, stored once"
            assert send(wire, topic, ids[0], 14)[0] == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
            assert wire.fetch(topic, 0).high_watermark == 12
    with Wire(broker) as wire:
        assert send(wire, topic, ids[0], 12) == (0, 12)


# -- fetch -----------------------------------------------------------------------------------------------------


def test_a_fetch_in_the_middle_of_a_batch_returns_the_whole_batch(wire: Wire) -> None:
    topic = wire.create("middle")
    for start in (0, 10):
        wire.produce(topic, batch_of([b"%d" % (start + at) for at in range(10)], codec=1))
    data = wire.fetch(topic, 7)
    assert [offset for offset, _ in values_in(data)] == list(range(20))
    assert values_in(wire.fetch(topic, 19))[0] == (10, b"10")
    assert data.log_start_offset == 0


def test_the_first_batch_comes_whatever_the_limits(wire: Wire) -> None:
    """KIP-74: limits are soft for the first batch of the first partition that has data, and only for that."""
    topic = wire.create("limits", 3)
    for partition in (1, 2):
        for _ in range(3):
            wire.produce(topic, batch_of([bytes(5000)]), partition=partition)
    asked = [partition_at(0, partition=partition, bytes_max=1) for partition in range(3)]
    (found,) = wire.ask(ApiKey.FETCH, 12, fetch_request([fetch_topic(topic, asked)], max_bytes=1)).responses
    assert [len(batches_in(data)) for data in found.partitions] == [0, 1, 0]
    asked = [partition_at(0, partition=partition, bytes_max=12_000) for partition in range(3)]
    (found,) = wire.ask(ApiKey.FETCH, 12, fetch_request([fetch_topic(topic, asked)])).responses
    assert [data.partition_index for data in found.partitions] == [0, 1, 2]
    assert [len(batches_in(data)) for data in found.partitions] == [0, 2, 2]
    asked = [partition_at(0, partition=partition) for partition in range(3)]
    request = fetch_request([fetch_topic(topic, asked)], max_bytes=16_000)
    (found,) = wire.ask(ApiKey.FETCH, 12, request).responses
    assert [len(batches_in(data)) for data in found.partitions] == [0, 3, 0]


def test_offsets_outside_of_the_log_are_told(wire: Wire) -> None:
    topic = wire.create("range")
    wire.produce(topic, batch_of([b"x"]))
    assert wire.fetch(topic, 1).error_code == 0, "the end is no error"
    beyond = wire.fetch(topic, 2)
    assert (beyond.error_code, beyond.high_watermark) == (ErrorCode.OFFSET_OUT_OF_RANGE, -1), (
        "as Kafka has it"
    )
    assert wire.fetch(topic, -1).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
    assert wire.fetch(topic, 0, partition=5).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    unknown = fetch_request([fetch_topic(b"0123456789abcdef", [partition_at(0)])])
    (found,) = wire.ask(ApiKey.FETCH, 13, unknown).responses
    assert found.partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID


def test_a_fetch_waits_for_min_bytes_and_is_woken(shared: ServeProcess, wire: Wire) -> None:
    """One small batch isn't enough, the second one is; the wait ends long before max_wait."""
    topic = wire.create("wait")
    request = fetch_request(
        [fetch_topic(topic, [partition_at(0)])], max_wait_ms=int(DEADLINE_S * 1000), min_bytes=1500
    )
    number = wire.send(ApiKey.FETCH, 12, request)
    with Wire(shared) as producer:
        for _ in range(2):
            producer.produce(topic, batch_of([bytes(1000)]))
    (found,) = wire.receive(ApiKey.FETCH, 12, number).responses
    assert len(batches_in(found.partitions[0])) == 2


def test_a_waiting_fetch_is_told_that_its_topic_is_gone(shared: ServeProcess, wire: Wire) -> None:
    """By name and by id; a session's fetch, too. Nobody waits out its time for a topic that was deleted.

    Apache Kafka 4.2.1 answers UNKNOWN_TOPIC_OR_PARTITION to all of them: the id was known when the request came.
    """
    for version, session_epoch in ((12, -1), (12, 0), (13, -1), (17, -1), (17, 0)):
        topic = wire.create("doomed")
        key: str | bytes = topic if version < 13 else wire.topic_id(topic)
        request = fetch_request(
            [fetch_topic(key, [partition_at(0)])],
            max_wait_ms=int(DEADLINE_S * 1000),
            session_epoch=session_epoch,
        )
        number = wire.send(ApiKey.FETCH, version, request)
        with Wire(shared) as other:
            state = DeleteTopicState(name=topic)
            (deleted,) = other.ask(
                ApiKey.DELETE_TOPICS,
                6,
                DeleteTopicsRequest(topics=[state], topic_names=[], timeout_ms=10_000),
            ).responses
            assert deleted.error_code == 0
        (found,) = wire.receive(ApiKey.FETCH, version, number).responses
        gone = (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, ErrorCode.NOT_LEADER_OR_FOLLOWER)
        assert found.partitions[0].error_code in gone


def test_leader_epochs_are_fenced(serve: ServeFactory) -> None:
    """KIP-320: older metadata than the broker's, newer than the broker's, and where an epoch ended."""
    broker = serve()
    with Wire(broker) as wire:
        topic = wire.create("epochs")
        wire.produce(topic, batch_of([b"1", b"2"]))
    broker.kill()
    broker.start()
    with Wire(broker) as wire:
        request = MetadataRequest(topics=[MetadataRequestTopic(name=topic)])
        (described,) = wire.ask(ApiKey.METADATA, 12, request).topics
        epoch = described.partitions[0].leader_epoch
        assert epoch > 0, "each opening of a partition has an epoch of its own"
        wire.produce(topic, batch_of([b"3"]))
        assert wire.fetch(topic, 0, current_leader_epoch=epoch).error_code == 0
        for asked, code in (
            (epoch - 1, ErrorCode.FENCED_LEADER_EPOCH),
            (epoch + 1, ErrorCode.UNKNOWN_LEADER_EPOCH),
        ):
            assert wire.fetch(topic, 0, current_leader_epoch=asked).error_code == code
            partition = ListOffsetsPartition(partition_index=0, current_leader_epoch=asked, timestamp=-1)
            (found,) = list_offsets(wire, topic, [partition])
            assert found.error_code == code
            (end,) = end_of_epoch(wire, topic, epoch, current=asked)
            assert end.error_code == code
        for asked, expected in ((epoch, (epoch, 3)), (epoch - 1, (epoch - 1, 2)), (epoch + 1, (-1, -1))):
            (end,) = end_of_epoch(wire, topic, asked)
            assert (end.error_code, end.leader_epoch, end.end_offset) == (0, *expected)
        diverging = wire.fetch(topic, 3, last_fetched_epoch=epoch - 1)
        assert (diverging.diverging_epoch.epoch, diverging.diverging_epoch.end_offset) == (epoch - 1, 2)


def end_of_epoch(wire: Wire, topic: str, epoch: int, current: int = -1) -> list[Any]:
    asked = OffsetForLeaderPartition(partition=0, current_leader_epoch=current, leader_epoch=epoch)
    found: list[Any] = []
    for version in (2, 3, 4):
        request = OffsetForLeaderEpochRequest(topics=[OffsetForLeaderTopic(topic=topic, partitions=[asked])])
        (result,) = wire.ask(ApiKey.OFFSET_FOR_LEADER_EPOCH, version, request).topics
        found = list(result.partitions)
    return found


# -- fetch sessions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [7, 12, 13, 18])
def test_an_incremental_session_tells_what_changed(wire: Wire, version: int) -> None:
    """KIP-227: all at first, then only what is new; forgotten partitions stay away; the wrong epoch is refused."""
    topic = wire.create("session", 3)
    key: str | bytes = topic if version < 13 else wire.topic_id(topic)
    wire.produce(topic, batch_of([b"p1"]), partition=1)

    def ask(
        session: int, epoch: int, partitions: list[FetchPartition], forgotten: tuple[int, ...] = ()
    ) -> Any:
        topics = [fetch_topic(key, partitions)] if partitions else []
        gone = []
        if forgotten:
            name = {"topic_id": key} if isinstance(key, bytes) else {"topic": key}
            gone = [ForgottenTopic(**name, partitions=list(forgotten))]
        return wire.ask(
            ApiKey.FETCH,
            version,
            fetch_request(topics, session_id=session, session_epoch=epoch, forgotten_topics_data=gone),
        )

    def told(answer: Any) -> dict[int, int]:
        assert answer.error_code == 0
        return {
            data.partition_index: len(values_in(data))
            for found in answer.responses
            for data in found.partitions
        }

    first = ask(0, 0, [partition_at(0, partition=index) for index in range(3)])
    assert told(first) == {0: 0, 1: 1, 2: 0}
    session = first.session_id
    assert session > 0
    answer = ask(session, 1, [partition_at(1, partition=1)])
    assert answer.session_id == session
    assert told(answer) == {}, "nothing new"
    wire.produce(topic, batch_of([b"p2"]), partition=2)
    assert told(ask(session, 2, [])) == {2: 1}
    assert told(ask(session, 3, [partition_at(1, partition=2)])) == {}
    wire.produce(topic, batch_of([b"p0"]), partition=0)
    wire.produce(topic, batch_of([b"p1"]), partition=1)
    assert told(ask(session, 4, [], forgotten=(0,))) == {1: 1}
    assert ask(session, 4, []).error_code == ErrorCode.INVALID_FETCH_SESSION_EPOCH
    assert ask(session + 1, 1, []).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
    closed = ask(session, -1, [])
    assert (closed.error_code, closed.session_id) == (0, 0)
    assert ask(session, 5, []).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


def test_an_empty_incremental_fetch_waits_for_the_sessions_partitions(
    shared: ServeProcess, wire: Wire
) -> None:
    """It names no partition and still has some: answered when one of them gets data, not at once."""
    topic = wire.create("parked")
    first = wire.ask(
        ApiKey.FETCH,
        12,
        fetch_request([fetch_topic(topic, [partition_at(0)])], session_id=0, session_epoch=0),
    )
    request = fetch_request(
        [], session_id=first.session_id, session_epoch=1, max_wait_ms=int(DEADLINE_S * 1000)
    )
    number = wire.send(ApiKey.FETCH, 12, request)
    with Wire(shared) as producer:
        producer.produce(topic, batch_of([b"woken"]))
    (found,) = wire.receive(ApiKey.FETCH, 12, number).responses
    assert values_in(found.partitions[0]) == [(0, b"woken")]


# -- offsets ---------------------------------------------------------------------------------------------------


def test_list_offsets_knows_every_special_timestamp_from_its_version_on(wire: Wire) -> None:
    topic = wire.create("special")
    epoch_of = {"leader_epoch": 0}
    wire.produce(topic, build_batch([(None, b"x", (), TIME_MS + more) for more in (100, 900, 300)], codec=2))
    for timestamp, since, expected in (
        (-1, 1, (3, -1)),
        (-2, 1, (0, -1)),
        (-3, 7, (1, TIME_MS + 900)),
        (-4, 8, (0, -1)),
        (-5, 9, (-1, -1)),
        (-6, 11, (-1, -1)),
        (TIME_MS + 101, 1, (1, TIME_MS + 900)),
        (TIME_MS + 901, 1, (-1, -1)),
        (0, 1, (0, TIME_MS + 100)),
    ):
        for version in range(1, 12):
            for isolation in (0, 1):
                asked = ListOffsetsPartition(partition_index=0, timestamp=timestamp)
                (found,) = list_offsets(wire, topic, [asked], version, isolation if version >= 2 else 0)
                if version < since:
                    assert found.error_code == ErrorCode.UNSUPPORTED_VERSION, (timestamp, version)
                else:
                    assert found.error_code == 0
                    assert (found.offset, found.timestamp) == expected, (timestamp, version)
                    if version >= 4 and found.offset >= 0:
                        assert found.leader_epoch >= epoch_of["leader_epoch"]
    both = [ListOffsetsPartition(partition_index=index, timestamp=-1) for index in (0, 9)]
    assert [found.error_code for found in list_offsets(wire, topic, both)] == [
        0,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    ]


def test_times_that_go_back_are_found_all_the_same(wire: Wire) -> None:
    """Batches out of the order of time: the first record in the order of offsets counts."""
    topic = wire.create("backwards")
    for times in ((500, 900), (100, 200), (600, 950)):
        wire.produce(topic, build_batch([(None, b"x", (), TIME_MS + time_ms) for time_ms in times]))
    for asked_ms, expected in ((0, 0), (100, 0), (501, 1), (900, 1), (901, 5), (951, -1)):
        asked = ListOffsetsPartition(partition_index=0, timestamp=TIME_MS + asked_ms)
        (found,) = list_offsets(wire, topic, [asked])
        assert found.offset == expected, asked_ms
    (found,) = list_offsets(wire, topic, [ListOffsetsPartition(partition_index=0, timestamp=-3)])
    assert (found.offset, found.timestamp) == (5, TIME_MS + 950)


def test_time_is_the_brokers_where_the_topic_says_so(wire: Wire) -> None:
    """LogAppendTime: in the produce answer, in the stored batch, and in what time look-ups find."""
    topic = wire.create("stamped", 1, {"message.timestamp.type": "LogAppendTime"})
    before_ms = int(time.time() * 1000)
    result = wire.produce(topic, batch_of([b"a", b"b"], codec=3))
    assert before_ms <= result.log_append_time_ms <= int(time.time() * 1000)
    (batch,) = batches_in(wire.fetch(topic, 0))
    assert {record.timestamp_ms for record in iter_records(memoryview(batch))} == {result.log_append_time_ms}
    asked = ListOffsetsPartition(partition_index=0, timestamp=result.log_append_time_ms)
    (found,) = list_offsets(wire, topic, [asked])
    assert (found.offset, found.timestamp) == (0, result.log_append_time_ms)
