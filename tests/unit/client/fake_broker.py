"""A scripted Kafka broker on a loopback port: one topic log per partition, KIP-98's rules, and faults on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from penstock.wire import (
    ApiKey,
    ErrorCode,
    Message,
    decode_request,
    decode_request_header,
    encode_response,
)
from penstock.wire.messages.api_versions import ApiVersion, ApiVersionsResponse
from penstock.wire.messages.fetch import FetchableTopicResponse, FetchRequest, FetchResponse, PartitionData
from penstock.wire.messages.init_producer_id import InitProducerIdResponse
from penstock.wire.messages.metadata import (
    MetadataRequest,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from penstock.wire.messages.produce import (
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceResponse,
)
from penstock.wire.records import assign_offsets, iter_records, read_header
from penstock_tools.client._frames import FrameReader
from penstock_tools.client._scope import task_group

#: What a handler may return instead of a response.
HANG_UP = "hang up"
SILENCE = "silence"

VERSIONS = {
    ApiKey.PRODUCE: (3, 9),
    ApiKey.FETCH: (4, 11),
    ApiKey.METADATA: (1, 9),
    ApiKey.INIT_PRODUCER_ID: (0, 2),
    ApiKey.API_VERSIONS: (0, 3),
}

Handler = Callable[[Any], "Message | str"]


class FakeBroker:
    """Answers what it is told to; ``seen`` lists (API key, version, message)."""

    def __init__(self, topics: dict[str, int] | None = None) -> None:
        self.topics = {"t": 1} if topics is None else topics
        self.versions = dict(VERSIONS)
        self.port = 0
        self.seen: list[tuple[int, int, Any]] = []
        self.connections = 0
        #: Of the coming Produce requests, front first: an error code to refuse with, "lose" (append, then hang
        #: up), "drop" (hang up without appending), or None.
        self.produce_faults: list[int | str | None] = []
        self.override: dict[int, Handler] = {}
        self.logs: dict[tuple[str, int], list[bytes]] = {}
        self.high_watermarks: dict[tuple[str, int], int] = {}
        self._producers: dict[tuple[str, int, int], list[tuple[int, int, int]]] = {}
        self._next_producer_id = 100

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeBroker]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            yield self

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        frames = FrameReader(2**31 - 1)
        async with stream:
            try:
                while True:
                    for frame in frames.feed(await stream.receive()):
                        answer = self._answer(frame)
                        if answer is None:
                            return
                        if answer:
                            await stream.send(answer)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    def _answer(self, frame: memoryview) -> bytes | None:
        """The response frame; empty for none, None to hang up."""
        header = decode_request_header(frame)
        low, high = self.versions.get(ApiKey(header.api_key), (0, -1))
        if not low <= header.api_version <= high:
            assert header.api_key == ApiKey.API_VERSIONS, "a client must not send what isn't advertised"
            refusal = ApiVersionsResponse(error_code=ErrorCode.UNSUPPORTED_VERSION)
            return b"".join(encode_response(header.api_key, 0, header.correlation_id, refusal))
        request = decode_request(header.api_key, header.api_version, frame, header.body_pos)
        self.seen.append((header.api_key, header.api_version, request))
        handler = self.override.get(header.api_key) or self._handlers[header.api_key]
        response = handler(request)
        if response == HANG_UP:
            return None
        if isinstance(response, str):
            return b""
        return b"".join(encode_response(header.api_key, header.api_version, header.correlation_id, response))

    @property
    def _handlers(self) -> dict[int, Handler]:
        return {
            ApiKey.API_VERSIONS: self.api_versions,
            ApiKey.METADATA: self.metadata,
            ApiKey.INIT_PRODUCER_ID: self.init_producer_id,
            ApiKey.PRODUCE: self.produce,
            ApiKey.FETCH: self.fetch,
        }

    def api_versions(self, request: Message) -> Message:
        keys = [
            ApiVersion(api_key=key, min_version=low, max_version=high)
            for key, (low, high) in self.versions.items()
        ]
        return ApiVersionsResponse(api_keys=keys)

    def metadata(self, request: MetadataRequest) -> MetadataResponse:
        names = (
            list(self.topics) if request.topics is None else [topic.name or "" for topic in request.topics]
        )
        return MetadataResponse(
            brokers=[MetadataResponseBroker(node_id=1, host="127.0.0.1", port=self.port)],
            cluster_id="fake",
            controller_id=1,
            topics=[self.topic_metadata(name) for name in names],
        )

    def topic_metadata(self, name: str, leader: int = 1) -> MetadataResponseTopic:
        if name not in self.topics:
            return MetadataResponseTopic(name=name, error_code=ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        partitions = [
            MetadataResponsePartition(partition_index=index, leader_id=leader)
            for index in range(self.topics[name])
        ]
        return MetadataResponseTopic(name=name, partitions=partitions)

    def init_producer_id(self, request: Message) -> Message:
        self._next_producer_id += 1
        return InitProducerIdResponse(producer_id=self._next_producer_id, producer_epoch=0)

    def produce(self, request: ProduceRequest) -> Message | str:
        (topic,) = request.topic_data
        (data,) = topic.partition_data
        fault = self.produce_faults.pop(0) if self.produce_faults else None
        if fault == "drop":
            return HANG_UP
        result = PartitionProduceResponse(index=data.index)
        if isinstance(fault, int):
            result.error_code = fault
        else:
            assert data.records is not None
            code, offset = self.append(topic.name, data.index, bytearray(data.records))
            result.error_code, result.base_offset = code, offset
        if fault == "lose":
            return HANG_UP
        if request.acks == 0:
            return SILENCE
        return ProduceResponse(
            responses=[TopicProduceResponse(name=topic.name, partition_responses=[result])]
        )

    def append(self, topic: str, partition: int, batch: bytearray) -> tuple[int, int]:
        """(error code, base offset), with the duplicate and order rules of KIP-98."""
        header = read_header(batch)
        log = self.logs.setdefault((topic, partition), [])
        known = self._producers.setdefault((topic, partition, header.producer_id), [])
        if header.producer_id >= 0:
            for first, last, offset in known[-5:]:
                if (first, last) == (header.base_sequence, header.last_sequence):
                    return ErrorCode.NONE, offset
            expected = known[-1][1] + 1 if known else header.base_sequence
            if header.base_sequence != expected:
                return ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, -1
        base_offset = self.high_watermarks.get((topic, partition), 0)
        assign_offsets(batch, base_offset, 0)
        log.append(bytes(batch))
        known.append((header.base_sequence, header.last_sequence, base_offset))
        self.high_watermarks[topic, partition] = base_offset + header.count
        return ErrorCode.NONE, base_offset

    def values(self, topic: str = "t", partition: int = 0) -> list[bytes | None]:
        """The values in a partition, in order."""
        return [
            None if record.value is None else bytes(record.value)
            for batch in self.logs.get((topic, partition), [])
            for record in iter_records(memoryview(batch))
        ]

    def fetch(self, request: FetchRequest) -> Message:
        responses = []
        for topic in request.topics:
            partitions = []
            for each in topic.partitions:
                key = (topic.topic, each.partition)
                batches = [
                    batch
                    for batch in self.logs.get(key, [])
                    if read_header(batch).last_offset >= each.fetch_offset
                ]
                end = self.high_watermarks.get(key, 0)
                code = ErrorCode.OFFSET_OUT_OF_RANGE if each.fetch_offset > end else ErrorCode.NONE
                partitions.append(
                    PartitionData(
                        partition_index=each.partition,
                        error_code=code,
                        high_watermark=end,
                        records=b"".join(batches),
                    )
                )
            responses.append(FetchableTopicResponse(topic=topic.topic, partitions=partitions))
        return FetchResponse(responses=responses)
