"""What holds between clients, and clauses of the protocol that no client shows: raw requests over a socket."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.integration import test_aiokafka, test_confluent, test_kafka_python
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import CODECS, DEADLINE_S, Row, real_rows, serving, unique

from penstock.wire import (
    ZERO_UUID,
    ApiKey,
    ErrorCode,
    decode_response,
    encode_request,
    supported_versions,
)
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfig,
    CreateTopicsRequest,
)
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.describe_cluster import DescribeClusterRequest
from penstock.wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from penstock.wire.messages.describe_groups import DescribeGroupsRequest
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsRequestCursor,
    TopicRequest,
)
from penstock.wire.messages.fetch import (
    FetchPartition,
    FetchRequest,
    FetchTopic,
    ForgottenTopic,
    PartitionData,
)
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from penstock.wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.record_builder import build_batch
from penstock.wire.records import iter_records

_BATCH_PREFIX = struct.Struct(">qi")
_TIME_MS = 1_700_000_000_000


class Wire:
    """One connection, one request after the other unless ``send`` and ``receive`` are used by themselves."""

    def __init__(self, broker: ServeProcess) -> None:
        self._socket = socket.create_connection(("127.0.0.1", broker.port), timeout=DEADLINE_S)
        self._ids = itertools.count(1)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, key: int, version: int, request: Any) -> int:
        number = next(self._ids)
        frame = encode_request(key, version, number, "wire", request)
        self._socket.sendall(b"".join(bytes(part) for part in frame))
        return number

    def send_raw(self, frame: bytes) -> None:
        self._socket.sendall(struct.pack(">i", len(frame)) + frame)

    def receive_raw(self) -> bytes:
        """One frame without its length; b"" when the broker has closed the connection."""
        head = self._read(4)
        return self._read(int.from_bytes(head, "big")) if head else b""

    def receive(self, key: int, version: int, number: int) -> Any:
        answered, message = decode_response(key, version, self.receive_raw())
        assert answered == number
        return message

    def ask(self, key: int, version: int, request: Any) -> Any:
        return self.receive(key, version, self.send(key, version, request))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                chunk = self._socket.recv(size - len(data))
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                assert not data, "the connection ended in the middle of an answer"
                return b""
            data += chunk
        return bytes(data)

    # -- what many tests need -----------------------------------------------------------------------------

    def create(self, prefix: str, partitions: int = 1, configs: dict[str, str] | None = None) -> str:
        name = unique(prefix)
        settings = [CreatableTopicConfig(name=key, value=value) for key, value in (configs or {}).items()]
        asked = CreatableTopic(
            name=name, num_partitions=partitions, replication_factor=1, assignments=[], configs=settings
        )
        (result,) = self.ask(ApiKey.CREATE_TOPICS, 7, CreateTopicsRequest(topics=[asked])).topics
        assert result.error_code == 0, result
        return name

    def topic_id(self, name: str) -> bytes:
        (topic,) = self.ask(
            ApiKey.METADATA, 13, MetadataRequest(topics=[MetadataRequestTopic(name=name)])
        ).topics
        assert topic.error_code == 0
        return bytes(topic.topic_id)

    def produce(
        self,
        topic: str,
        batch: bytes | bytearray | None,
        *,
        acks: int = -1,
        version: int = 9,
        partition: int = 0,
    ) -> Any:
        """The partition's result; nothing is waited for with acks=0."""
        number = self.send(ApiKey.PRODUCE, version, produce_request(topic, batch, acks, partition))
        if acks == 0:
            return None
        (answer,) = self.receive(ApiKey.PRODUCE, version, number).responses
        (result,) = answer.partition_responses
        return result

    def fetch(self, topic: str, offset: int, version: int = 12, **settings: Any) -> PartitionData:
        request = fetch_request([fetch_topic(topic, [partition_at(offset, **settings)])])
        (answer,) = self.ask(ApiKey.FETCH, version, request).responses
        (data,) = answer.partitions
        assert isinstance(data, PartitionData)
        return data


def batch_of(values: list[bytes], **settings: Any) -> bytearray:
    return build_batch([(None, value, (), _TIME_MS + at) for at, value in enumerate(values)], **settings)


def produce_request(
    topic: str, batch: bytes | bytearray | None, acks: int = -1, partition: int = 0
) -> ProduceRequest:
    records = None if batch is None else memoryview(batch)
    data = TopicProduceData(
        name=topic, partition_data=[PartitionProduceData(index=partition, records=records)]
    )
    return ProduceRequest(acks=acks, timeout_ms=30_000, topic_data=[data])


def partition_at(
    offset: int, *, partition: int = 0, bytes_max: int = 1 << 20, **settings: Any
) -> FetchPartition:
    return FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=bytes_max, **settings)


def fetch_topic(topic: str | bytes, partitions: list[FetchPartition]) -> FetchTopic:
    if isinstance(topic, bytes):
        return FetchTopic(topic_id=topic, partitions=partitions)
    return FetchTopic(topic=topic, partitions=partitions)


def fetch_request(topics: list[FetchTopic], **settings: Any) -> FetchRequest:
    settings = {
        "max_wait_ms": 0,
        "min_bytes": 1,
        "max_bytes": 1 << 24,
        "forgotten_topics_data": [],
        **settings,
    }
    return FetchRequest(topics=topics, **settings)


def batches_in(data: PartitionData) -> list[bytes]:
    """The whole batches of a fetched partition; a cut one would fail here."""
    records = data.records or b""
    raw = b"".join([records] if isinstance(records, bytes | bytearray | memoryview) else records)
    found: list[bytes] = []
    while raw:
        _, length = _BATCH_PREFIX.unpack_from(raw)
        assert len(raw) >= length + 12, "a batch is cut"
        found.append(raw[: length + 12])
        raw = raw[length + 12 :]
    return found


def values_in(data: PartitionData) -> list[tuple[int, bytes]]:
    return [
        (record.offset, bytes(record.value or b""))
        for batch in batches_in(data)
        for record in iter_records(memoryview(batch))
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("semantics")) as broker:
        yield broker


@pytest.fixture
def wire(shared: ServeProcess) -> Iterator[Wire]:
    with Wire(shared) as connection:
        yield connection


# -- between clients -------------------------------------------------------------------------------------------


def write_with_all(broker: ServeProcess, topic: str, rows: list[Row]) -> list[Row]:
    """Each client writes all rows with each of its codecs; what must be in the one partition, in order."""
    written: list[Row] = []
    for codec in CODECS:
        name = None if codec == "none" else codec
        test_confluent.produce(broker, topic, rows, compression_type=codec, linger_ms=100)
        written += rows
        if codec != "snappy" or test_kafka_python.HAS_SNAPPY:
            test_kafka_python.produce(broker, topic, rows, compression_type=name, linger_ms=100)
            written += rows
        asyncio.run(
            test_aiokafka.produce(broker, topic, rows, compression_type=name, enable_idempotence=True)
        )
        written += rows
    return written


def check_with_all(broker: ServeProcess, topic: str, written: list[Row]) -> None:
    """Each client reads the same, and finds the same place in time."""
    found = test_confluent.read(broker, topic, len(written))
    assert [test_confluent.as_row(message) for message in found] == written
    records = test_kafka_python.read(broker, topic, len(written))
    assert [test_kafka_python.as_row(record) for record in records] == written
    records = asyncio.run(test_aiokafka.read(broker, topic, len(written)))
    assert [test_aiokafka.as_row(record) for record in records] == written
    assert [record.offset for record in records] == list(range(len(written)))


def test_each_client_reads_what_the_others_wrote(serve: ServeFactory, log_lines: list[str]) -> None:
    """From memory, from the WAL after a kill, and from the object store after a clean stop."""
    broker = serve()
    topic = unique("babel")
    written = write_with_all(broker, topic, real_rows(log_lines, lines=60, rows=30))
    check_with_all(broker, topic, written)
    broker.kill()
    broker.start()
    check_with_all(broker, topic, written)
    assert broker.terminate() == 0
    broker.start()
    check_with_all(broker, topic, written)


def test_committed_offsets_are_the_same_for_all_clients(shared: ServeProcess) -> None:
    """A group that one client's consumer left is taken over by the next client's."""
    topic, group = unique("relay"), unique("relay")
    test_confluent.produce(shared, topic, [test_confluent.text(number) for number in range(30)])
    with closing(test_confluent.consumer_of(shared, group, enable_auto_commit=False)) as consumer:
        consumer.subscribe([topic])
        messages = test_confluent.take(consumer, 10)
        consumer.commit(message=messages[-1], asynchronous=False)
        assert [message.offset() for message in messages] == list(range(10))
    with closing(test_kafka_python.consumer_of(shared, group, enable_auto_commit=False)) as consumer:
        consumer.subscribe([topic])
        records = test_kafka_python.take(consumer, 10)
        consumer.commit()
        assert [record.offset for record in records] == list(range(10, 20))

    async def finish() -> None:
        settings = {"group_id": group, "enable_auto_commit": False}
        async with test_aiokafka.consumer_of(shared, topic, **settings) as consumer:
            records = await test_aiokafka.take(consumer, 10)
            assert [record.offset for record in records] == list(range(20, 30))

    asyncio.run(finish())


def test_what_holds_in_memory_holds_in_the_object_store(serve: ServeFactory) -> None:
    """Middle of a batch, limits, times and log start of data that only objects have, a batch cut by the log start."""
    broker = serve()
    with Wire(broker) as wire:
        topic = wire.create("cold")
        for start in range(0, 50, 10):
            times = [_TIME_MS + 100 * start + 10 * at for at in range(10)]
            records = [(None, b"%d" % (start + at), (), time_ms) for at, time_ms in enumerate(times)]
            assert wire.produce(topic, build_batch(records, codec=start // 10)).base_offset == start
    assert broker.terminate() == 0
    broker.start()
    with Wire(broker) as wire:
        assert [offset for offset, _ in values_in(wire.fetch(topic, 13))] == list(range(10, 50))
        assert values_in(wire.fetch(topic, 49, bytes_max=1)) == [(at, b"%d" % at) for at in range(40, 50)]
        assert wire.fetch(topic, 51).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        for asked_ms, expected in ((0, 0), (1, 1), (1011, 12), (4090, 49), (4091, -1), (95, 10)):
            asked = ListOffsetsPartition(partition_index=0, timestamp=_TIME_MS + asked_ms)
            (found,) = list_offsets(wire, topic, [asked])
            assert (found.error_code, found.offset) == (0, expected), asked_ms
        (found,) = list_offsets(wire, topic, [ListOffsetsPartition(partition_index=0, timestamp=-3)])
        assert (found.offset, found.timestamp) == (49, _TIME_MS + 4090)
        trim = DeleteRecordsTopic(
            name=topic, partitions=[DeleteRecordsPartition(partition_index=0, offset=25)]
        )
        request = DeleteRecordsRequest(topics=[trim], timeout_ms=30_000)
        (answer,) = wire.ask(ApiKey.DELETE_RECORDS, 2, request).topics
        assert (answer.partitions[0].error_code, answer.partitions[0].low_watermark) == (0, 25)
    broker.kill()
    broker.start()
    with Wire(broker) as wire:
        assert wire.fetch(topic, 24).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        data = wire.fetch(topic, 25)
        assert data.log_start_offset == 25
        assert [offset for offset, _ in values_in(data)] == list(range(20, 50)), (
            "the whole batch that holds 25"
        )
        for timestamp, expected in ((-2, 25), (_TIME_MS, 25), (_TIME_MS + 2061, 27)):
            asked = ListOffsetsPartition(partition_index=0, timestamp=timestamp)
            (found,) = list_offsets(wire, topic, [asked])
            assert found.offset == expected


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


def list_offsets(
    wire: Wire, topic: str, asked: list[ListOffsetsPartition], version: int = 11, isolation: int = 0
) -> list[Any]:
    request = ListOffsetsRequest(
        replica_id=-1, isolation_level=isolation, topics=[ListOffsetsTopic(name=topic, partitions=asked)]
    )
    (found,) = wire.ask(ApiKey.LIST_OFFSETS, version, request).topics
    return list(found.partitions)


def test_list_offsets_knows_every_special_timestamp_from_its_version_on(wire: Wire) -> None:
    topic = wire.create("special")
    epoch_of = {"leader_epoch": 0}
    wire.produce(topic, build_batch([(None, b"x", (), _TIME_MS + more) for more in (100, 900, 300)], codec=2))
    for timestamp, since, expected in (
        (-1, 1, (3, -1)),
        (-2, 1, (0, -1)),
        (-3, 7, (1, _TIME_MS + 900)),
        (-4, 8, (0, -1)),
        (-5, 9, (-1, -1)),
        (-6, 11, (-1, -1)),
        (_TIME_MS + 101, 1, (1, _TIME_MS + 900)),
        (_TIME_MS + 901, 1, (-1, -1)),
        (0, 1, (0, _TIME_MS + 100)),
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
        wire.produce(topic, build_batch([(None, b"x", (), _TIME_MS + time_ms) for time_ms in times]))
    for asked_ms, expected in ((0, 0), (100, 0), (501, 1), (900, 1), (901, 5), (951, -1)):
        asked = ListOffsetsPartition(partition_index=0, timestamp=_TIME_MS + asked_ms)
        (found,) = list_offsets(wire, topic, [asked])
        assert found.offset == expected, asked_ms
    (found,) = list_offsets(wire, topic, [ListOffsetsPartition(partition_index=0, timestamp=-3)])
    assert (found.offset, found.timestamp) == (5, _TIME_MS + 950)


def test_offsets_of_an_unknown_group_are_no_error(wire: Wire) -> None:
    """-1 with error 0 in every version; all offsets of a group nobody knows are none."""
    topic = wire.create("nogroup")
    for version in range(1, 10):
        group = unique("nobody")
        if version < 8:
            asked = [OffsetFetchRequestTopic(name=topic, partition_indexes=[0])]
            answer = wire.ask(
                ApiKey.OFFSET_FETCH, version, OffsetFetchRequest(group_id=group, topics=asked, groups=[])
            )
            found = answer
        else:
            wanted = [OffsetFetchRequestTopics(name=topic, partition_indexes=[0])]
            request = OffsetFetchRequest(
                groups=[OffsetFetchRequestGroup(group_id=group, topics=wanted)], topics=None
            )
            (found,) = wire.ask(ApiKey.OFFSET_FETCH, version, request).groups
        if version >= 2:
            assert found.error_code == 0
        (partition,) = found.topics[0].partitions
        assert (partition.committed_offset, partition.error_code) == (-1, 0)
    request = OffsetFetchRequest(
        groups=[OffsetFetchRequestGroup(group_id=unique("x"), topics=None)], topics=None
    )
    (found,) = wire.ask(ApiKey.OFFSET_FETCH, 9, request).groups
    assert (found.error_code, found.topics) == (0, [])


def test_a_commit_without_a_group_and_one_with_long_metadata(wire: Wire) -> None:
    topic = wire.create("simple")
    group = unique("simple")

    def commit(metadata: str, **settings: Any) -> int:
        partition = OffsetCommitRequestPartition(
            partition_index=0, committed_offset=5, committed_metadata=metadata
        )
        request = OffsetCommitRequest(
            group_id=group,
            topics=[OffsetCommitRequestTopic(name=topic, partitions=[partition])],
            **settings,
        )
        (found,) = wire.ask(ApiKey.OFFSET_COMMIT, 8, request).topics
        code = found.partitions[0].error_code
        assert isinstance(code, int)
        return code

    assert commit("here") == 0
    assert commit("m" * 4097) == ErrorCode.OFFSET_METADATA_TOO_LARGE
    assert commit("", generation_id_or_member_epoch=3, member_id="somebody") == ErrorCode.UNKNOWN_MEMBER_ID


def test_a_commit_answers_once_for_each_topic_that_is_not_there_and_before_those_that_are(wire: Wire) -> None:
    topic, missing = wire.create("partly"), unique("missing")

    def wanted(name: str, *indexes: int) -> OffsetCommitRequestTopic:
        partitions = [
            OffsetCommitRequestPartition(partition_index=one, committed_offset=1) for one in indexes
        ]
        return OffsetCommitRequestTopic(name=name, partitions=partitions)

    asked = [wanted(topic, 0), wanted(missing, 0), wanted(topic, 9), wanted(missing, 1), wanted(unique("x"))]
    request = OffsetCommitRequest(group_id=unique("partly"), topics=asked)
    answer = wire.ask(ApiKey.OFFSET_COMMIT, 8, request).topics
    unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert [(one.name, [(p.partition_index, p.error_code) for p in one.partitions]) for one in answer] == [
        (missing, [(0, unknown), (1, unknown)]),
        (topic, [(9, unknown), (0, 0)]),
        (asked[-1].name, []),
    ]


# -- groups ----------------------------------------------------------------------------------------------------


def test_a_member_has_to_come_with_an_id(wire: Wire) -> None:
    """JoinGroup v4+ without a member id: MEMBER_ID_REQUIRED with one to come back with (KIP-394)."""
    group = unique("ids")
    protocols = [JoinGroupRequestProtocol(name="range", metadata=b"")]

    def join(version: int, **settings: Any) -> Any:
        settings = {"session_timeout_ms": 6000, "rebalance_timeout_ms": 6000, **settings}
        request = JoinGroupRequest(group_id=group, protocol_type="consumer", protocols=protocols, **settings)
        return wire.ask(ApiKey.JOIN_GROUP, version, request)

    assert join(5, session_timeout_ms=5999).error_code == ErrorCode.INVALID_SESSION_TIMEOUT
    refused = join(9)
    assert refused.error_code == ErrorCode.MEMBER_ID_REQUIRED
    assert refused.member_id
    joined = join(9, member_id=refused.member_id)
    assert (joined.error_code, joined.leader, joined.member_id) == (0, refused.member_id, refused.member_id)
    assert [member.member_id for member in joined.members] == [refused.member_id]
    assert (joined.protocol_type, joined.protocol_name) == ("consumer", "range")


def test_groups_nobody_knows_are_described_as_dead(wire: Wire) -> None:
    for version in range(7):
        request = DescribeGroupsRequest(groups=[unique("dead")])
        (found,) = wire.ask(ApiKey.DESCRIBE_GROUPS, version, request).groups
        expected = ErrorCode.NONE if version < 6 else ErrorCode.GROUP_ID_NOT_FOUND
        assert (found.error_code, found.group_state, found.members) == (expected, "Dead", [])


@pytest.mark.parametrize("version", range(7))
def test_the_coordinator_of_a_group_is_found(shared: ServeProcess, wire: Wire, version: int) -> None:
    request = FindCoordinatorRequest(key="g", key_type=0, coordinator_keys=["g", "h"] if version >= 4 else [])
    answer = wire.ask(ApiKey.FIND_COORDINATOR, version, request)
    found = answer.coordinators if version >= 4 else [answer]
    assert len(found) == (2 if version >= 4 else 1)
    for coordinator in found:
        assert (coordinator.error_code, coordinator.host, coordinator.port) == (0, "127.0.0.1", shared.port)


# -- metadata --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(14))
def test_metadata_of_every_version(shared: ServeProcess, wire: Wire, version: int) -> None:
    """All topics, none, one, an unknown one, an impossible name; controller, cluster id and topic ids."""
    topic = wire.create("meta", 2)
    everything = MetadataRequest(topics=[] if version == 0 else None)
    answer = wire.ask(ApiKey.METADATA, version, everything)
    assert [(broker.host, broker.port) for broker in answer.brokers] == [("127.0.0.1", shared.port)]
    assert topic in {found.name for found in answer.topics}
    if version >= 1:
        assert answer.controller_id == answer.brokers[0].node_id
        assert wire.ask(ApiKey.METADATA, version, MetadataRequest(topics=[])).topics == []
    if version >= 2:
        assert answer.cluster_id

    names = [topic, unique("nobody"), "no/such*name"]
    request = MetadataRequest(
        topics=[MetadataRequestTopic(name=name) for name in names], allow_auto_topic_creation=False
    )
    found = wire.ask(ApiKey.METADATA, version, request).topics
    assert [one.name for one in found] == names
    if version >= 4:  # before, every request creates what it names
        assert found[1].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert found[2].error_code == ErrorCode.INVALID_TOPIC_EXCEPTION
    assert (found[0].error_code, found[0].is_internal) == (0, False)
    assert [partition.partition_index for partition in found[0].partitions] == [0, 1]
    for partition in found[0].partitions:
        leader = answer.brokers[0].node_id
        assert (partition.leader_id, partition.replica_nodes, partition.isr_nodes) == (
            leader,
            [leader],
            [leader],
        )
    if version >= 10:
        assert found[0].topic_id != ZERO_UUID
    if version >= 8:
        assert found[0].topic_authorized_operations == -(2**31), "not asked for"
    if version >= 12:
        by_id = [
            MetadataRequestTopic(topic_id=found[0].topic_id, name=None),
            MetadataRequestTopic(topic_id=b"0123456789abcdef", name=None),
        ]
        known, unknown = wire.ask(ApiKey.METADATA, version, MetadataRequest(topics=by_id)).topics
        assert (known.error_code, known.name) == (0, topic)
        assert (unknown.error_code, unknown.name) == (ErrorCode.UNKNOWN_TOPIC_ID, None)


def test_topics_are_created_on_request_only(shared: ServeProcess, wire: Wire, serve: ServeFactory) -> None:
    name = unique("auto")
    asked = MetadataRequest(topics=[MetadataRequestTopic(name=name)], allow_auto_topic_creation=True)
    (found,) = wire.ask(ApiKey.METADATA, 12, asked).topics
    assert (found.error_code, len(found.partitions)) == (0, 1)
    strict = serve("topics.auto_create=false")
    with Wire(strict) as other:
        (found,) = other.ask(ApiKey.METADATA, 12, asked).topics
        assert found.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert other.produce(name, batch_of([b"x"])).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def test_a_topic_made_again_has_another_id(wire: Wire) -> None:
    """By its old id it is unknown: to Fetch, to Produce, to DeleteTopics."""
    name = wire.create("again")
    old = wire.topic_id(name)
    request = DeleteTopicsRequest(
        topics=[DeleteTopicState(name=None, topic_id=old)], topic_names=[], timeout_ms=10_000
    )
    (deleted,) = wire.ask(ApiKey.DELETE_TOPICS, 6, request).responses
    assert (deleted.error_code, deleted.name) == (0, name)
    asked = CreatableTopic(name=name, num_partitions=-1, replication_factor=-1, assignments=[], configs=[])
    (made,) = wire.ask(ApiKey.CREATE_TOPICS, 7, CreateTopicsRequest(topics=[asked])).topics
    assert made.error_code == 0
    assert bytes(made.topic_id) != old
    (found,) = wire.ask(ApiKey.FETCH, 13, fetch_request([fetch_topic(old, [partition_at(0)])])).responses
    assert found.partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID
    produced = produce_request("", batch_of([b"x"]))
    produced.topic_data[0].topic_id = old
    (answer,) = wire.ask(ApiKey.PRODUCE, 13, produced).responses
    assert answer.partition_responses[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID
    (again,) = wire.ask(ApiKey.DELETE_TOPICS, 6, request).responses
    assert again.error_code == ErrorCode.UNKNOWN_TOPIC_ID


# -- null and empty --------------------------------------------------------------------------------------------


def test_lists_in_answers_are_empty_rather_than_null(wire: Wire) -> None:
    """A null where the Java client expects a list ends its admin thread."""
    asked = CreatableTopic(
        name=unique("lists"), num_partitions=2, replication_factor=1, assignments=[], configs=[]
    )
    for version in (5, 6, 7):
        asked.name = unique("lists")
        (made,) = wire.ask(ApiKey.CREATE_TOPICS, version, CreateTopicsRequest(topics=[asked])).topics
        assert made.configs
        assert (made.num_partitions, made.replication_factor) == (2, 1)
    described = wire.ask(
        ApiKey.DESCRIBE_TOPIC_PARTITIONS,
        0,
        DescribeTopicPartitionsRequest(
            topics=[TopicRequest(name=asked.name)], response_partition_limit=1, cursor=None
        ),
    )
    (topic,) = described.topics
    (partition,) = topic.partitions
    assert (partition.eligible_leader_replicas, partition.last_known_elr, partition.offline_replicas) == (
        [],
        [],
        [],
    )
    cursor = described.next_cursor
    assert (cursor.topic_name, cursor.partition_index) == (asked.name, 1)
    described = wire.ask(
        ApiKey.DESCRIBE_TOPIC_PARTITIONS,
        0,
        DescribeTopicPartitionsRequest(
            topics=[TopicRequest(name=asked.name)],
            response_partition_limit=1,
            cursor=DescribeTopicPartitionsRequestCursor(topic_name=asked.name, partition_index=1),
        ),
    )
    assert [one.partition_index for one in described.topics[0].partitions] == [1]
    assert described.next_cursor is None


def test_no_config_names_means_all_of_them(wire: Wire) -> None:
    topic = wire.create("names")
    for keys, count in ((None, 20), (["retention.ms"], 1)):
        for version in range(1, 5):
            resource = DescribeConfigsResource(resource_type=2, resource_name=topic, configuration_keys=keys)
            request = DescribeConfigsRequest(resources=[resource])
            (found,) = wire.ask(ApiKey.DESCRIBE_CONFIGS, version, request).results
            assert found.error_code == 0
            assert len(found.configs) >= count
            assert keys is None or [config.name for config in found.configs] == keys


def test_every_topic_of_a_request_has_a_result(wire: Wire) -> None:
    topic = wire.create("grow")
    request = CreatePartitionsRequest(
        timeout_ms=10_000,
        topics=[
            CreatePartitionsTopic(name=name, count=3, assignments=None)
            for name in (topic, "nobody-made-this")
        ],
    )
    for version, first in ((0, ErrorCode.NONE), (3, ErrorCode.INVALID_PARTITIONS)):
        results = wire.ask(ApiKey.CREATE_PARTITIONS, version, request).results
        assert {result.name: result.error_code for result in results} == {
            topic: first,
            "nobody-made-this": ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        }


@pytest.mark.parametrize("version", range(3))
def test_the_cluster_is_described(shared: ServeProcess, wire: Wire, version: int) -> None:
    answer = wire.ask(ApiKey.DESCRIBE_CLUSTER, version, DescribeClusterRequest(endpoint_type=1))
    assert answer.error_code == 0
    assert answer.cluster_id
    assert [broker.port for broker in answer.brokers] == [shared.port]
    assert answer.controller_id == answer.brokers[0].broker_id


def test_every_advertised_version_has_a_codec(wire: Wire) -> None:
    answer = wire.ask(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
    for api in answer.api_keys:
        codecs = supported_versions(api.api_key)
        assert codecs is not None
        low = 3 if api.api_key == ApiKey.PRODUCE else api.min_version
        assert codecs.low <= low <= api.max_version <= codecs.high, api


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
