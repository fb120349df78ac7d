"""Raw requests to a real broker over a blocking socket: clauses of the protocol that no client shows."""

from __future__ import annotations

__all__ = (
    "TIME_MS",
    "Wire",
    "batch_of",
    "batches_in",
    "fetch_request",
    "fetch_topic",
    "list_offsets",
    "partition_at",
    "produce_request",
    "values_in",
)

import itertools
import socket
import struct
from typing import Any

from tests.integration.conftest import ServeProcess
from tests.integration.kafka_clients import DEADLINE_S, unique

from penstock.wire import ApiKey, decode_response, encode_request
from penstock.wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic, PartitionData
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.record_builder import build_batch
from penstock.wire.records import iter_records

_BATCH_PREFIX = struct.Struct(">qi")
#: When the first record of ``batch_of`` was made.
TIME_MS = 1_700_000_000_000


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
    """A batch of records without keys, a millisecond after each other from ``TIME_MS`` on."""
    return build_batch([(None, value, (), TIME_MS + at) for at, value in enumerate(values)], **settings)


def produce_request(
    topic: str, batch: bytes | bytearray | None, acks: int = -1, partition: int = 0
) -> ProduceRequest:
    """One partition of one topic."""
    records = None if batch is None else memoryview(batch)
    data = TopicProduceData(
        name=topic, partition_data=[PartitionProduceData(index=partition, records=records)]
    )
    return ProduceRequest(acks=acks, timeout_ms=30_000, topic_data=[data])


def partition_at(
    offset: int, *, partition: int = 0, bytes_max: int = 1 << 20, **settings: Any
) -> FetchPartition:
    """What a fetch asks of a partition."""
    return FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=bytes_max, **settings)


def fetch_topic(topic: str | bytes, partitions: list[FetchPartition]) -> FetchTopic:
    """By name, or by id where that is bytes."""
    if isinstance(topic, bytes):
        return FetchTopic(topic_id=topic, partitions=partitions)
    return FetchTopic(topic=topic, partitions=partitions)


def fetch_request(topics: list[FetchTopic], **settings: Any) -> FetchRequest:
    """A fetch that does not wait, unless told."""
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
    """Offset and value of each record."""
    return [
        (record.offset, bytes(record.value or b""))
        for batch in batches_in(data)
        for record in iter_records(memoryview(batch))
    ]


def list_offsets(
    wire: Wire, topic: str, asked: list[ListOffsetsPartition], version: int = 11, isolation: int = 0
) -> list[Any]:
    """The results of one topic, in the order of the answer."""
    request = ListOffsetsRequest(
        replica_id=-1, isolation_level=isolation, topics=[ListOffsetsTopic(name=topic, partitions=asked)]
    )
    (found,) = wire.ask(ApiKey.LIST_OFFSETS, version, request).topics
    return list(found.partitions)
