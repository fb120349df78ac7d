"""The codecs against bytes written out by hand, and the promises kio can't be asked about."""

from __future__ import annotations

import importlib.util
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penstock.wire import (
    ZERO_UUID,
    ApiKey,
    DecodeError,
    EncodeError,
    decode_request,
    decode_response,
    encode_response,
)
from penstock.wire._runtime import TAGS_MAX, Writer, decode_uvarint, encode_uvarint
from penstock.wire.messages import (
    api_versions,
    describe_transactions,
    fetch,
    find_coordinator,
    heartbeat,
    incremental_alter_configs,
    join_group,
    metadata,
    offset_commit,
    produce,
    sync_group,
)
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.group_metadata_value import GroupMetadataValue, MemberMetadata
from penstock.wire.messages.offset_commit_value import OffsetCommitValue
from penstock.wire.registry import decode_data, decode_request_header, encode_data, encode_request

ROOT = Path(__file__).resolve().parents[3]

PRODUCE_V9 = bytes.fromhex(
    "00"  # transactional_id: null
    "ffff"  # acks: -1
    "00007530"  # timeout_ms: 30000
    "02"  # topic_data: 1
    "06" + b"topic".hex() +  # name
    "02"  # partition_data: 1
    "00000003"  # index
    "05" + b"\x01\x02\x03\x04".hex() +  # records: 4 bytes
    "00" "00" "00"  # tags of the partition, the topic, the request
)  # fmt: skip

API_VERSIONS_RESPONSE_V0 = bytes.fromhex("000000000001001200000004")
API_VERSIONS_RESPONSE_V3 = bytes.fromhex(
    "0000"  # error_code
    "02" "0012" "0000" "0004" "00"  # one key: 18, 0-4, no tags
    "00000000"  # throttle_time_ms
    "02"  # two tagged fields, in ascending order
    "00" "08" "02" "02" "66" "0000" "0001" "00"  # tag 0, 8 bytes: supported features, one: "f" 0-1
    "01" "08" "0000000000000007"  # tag 1, 8 bytes: finalized epoch 7
)  # fmt: skip


def encoded(encode: object, message: object) -> bytes:
    assert callable(encode)
    out = Writer(bytearray())
    encode(message, out)
    return b"".join(out.segments())


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_wire", ROOT / "tools/wire/generate_wire.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_wire"] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["generate_wire"]
    return module


def test_checked_in_modules_are_what_the_schemas_generate() -> None:
    generator = _generator()
    files: dict[str, str] = generator.render()
    assert {path.name for path in generator.MESSAGES_DIR.glob("*.py")} == set(files)
    stale = [name for name, text in files.items() if (generator.MESSAGES_DIR / name).read_text() != text]
    assert not stale, "run tools/wire/generate_wire.py generate"


@pytest.mark.parametrize(
    ("encode", "message", "array", "most"),
    [
        pytest.param(
            join_group.encode_request_v0,
            join_group.JoinGroupRequest(protocols=[join_group.JoinGroupRequestProtocol()]),
            "protocols",
            1_000,
            id="join_v0",
        ),
        pytest.param(
            join_group.encode_request_v9,
            join_group.JoinGroupRequest(protocols=[join_group.JoinGroupRequestProtocol()]),
            "protocols",
            1_000,
            id="join_v9",
        ),
        pytest.param(
            sync_group.encode_request_v5,
            sync_group.SyncGroupRequest(assignments=[sync_group.SyncGroupRequestAssignment()]),
            "assignments",
            20_000,
            id="sync_v5",
        ),
        pytest.param(
            offset_commit.encode_request_v9,
            offset_commit.OffsetCommitRequest(topics=[offset_commit.OffsetCommitRequestTopic()]),
            "topics",
            20_000,
            id="commit_v9",
        ),
    ],
)
def test_no_more_elements_are_decoded_than_anybody_sends(
    encode: Callable[[Any, Writer], None], message: Any, array: str, most: int
) -> None:
    """Each has three bytes, or a few, and takes a hundred times that in memory: 4 MiB took 400 MB."""
    version = int(encode.__name__.rpartition("v")[2])
    keys = {
        "protocols": ApiKey.JOIN_GROUP,
        "assignments": ApiKey.SYNC_GROUP,
        "topics": ApiKey.OFFSET_COMMIT,
    }
    key = keys[array]
    one = getattr(message, array)
    setattr(message, array, one * most)
    assert len(getattr(decode_request(key, version, encoded(encode, message)), array)) == most
    setattr(message, array, one * (most + 1))
    with pytest.raises(DecodeError, match=f"more elements than are taken: .*count={most + 1} most={most}"):
        decode_request(key, version, encoded(encode, message))


def test_no_more_configs_or_transactions_are_decoded_than_anybody_sends() -> None:
    config = incremental_alter_configs.AlterableConfig(name="n")
    resource = incremental_alter_configs.AlterConfigsResource(configs=[config] * 10_001)
    request = incremental_alter_configs.IncrementalAlterConfigsRequest(resources=[resource])
    data = encoded(incremental_alter_configs.encode_request_v1, request)
    with pytest.raises(DecodeError, match=r"resources\.configs count=10001 most=10000"):
        decode_request(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, data)
    ids = describe_transactions.DescribeTransactionsRequest(transactional_ids=[""] * 100_001)
    data = encoded(describe_transactions.encode_request_v0, ids)
    with pytest.raises(DecodeError, match=r"transactional_ids count=100001 most=100000"):
        decode_request(ApiKey.DESCRIBE_TRANSACTIONS, 0, data)
    keys = find_coordinator.FindCoordinatorRequest(coordinator_keys=[""] * 100_001)
    data = encoded(find_coordinator.encode_request_v6, keys)
    with pytest.raises(DecodeError, match=r"coordinator_keys count=100001 most=100000"):
        decode_request(ApiKey.FIND_COORDINATOR, 6, data)


def test_produce_v9_literal() -> None:
    message = produce.ProduceRequest(
        acks=-1,
        timeout_ms=30_000,
        topic_data=[
            produce.TopicProduceData(
                name="topic",
                partition_data=[produce.PartitionProduceData(index=3, records=b"\x01\x02\x03\x04")],
            )
        ],
    )
    assert encoded(produce.encode_request_v9, message) == PRODUCE_V9
    assert decode_request(ApiKey.PRODUCE, 9, PRODUCE_V9) == message


def test_api_versions_literals_in_v0_and_v3() -> None:
    key = api_versions.ApiVersion(api_key=18, min_version=0, max_version=4)
    message = api_versions.ApiVersionsResponse(api_keys=[key])
    assert encoded(api_versions.encode_response_v0, message) == API_VERSIONS_RESPONSE_V0
    message.supported_features = [api_versions.SupportedFeatureKey(name="f", min_version=0, max_version=1)]
    message.finalized_features_epoch = 7
    assert encoded(api_versions.encode_response_v3, message) == API_VERSIONS_RESPONSE_V3
    assert decode_response(18, 3, b"\0\0\0\x05" + API_VERSIONS_RESPONSE_V3) == (5, message)
    request = bytes.fromhex("03" + b"ab".hex() + "04" + b"1.0".hex() + "00")
    assert decode_request(18, 3, request) == api_versions.ApiVersionsRequest(
        client_software_name="ab", client_software_version="1.0"
    )
    assert decode_request(18, 0, b"") == api_versions.ApiVersionsRequest()


def test_records_and_bytes_are_decoded_as_views_of_the_frame() -> None:
    frame = bytearray(PRODUCE_V9)
    message = decode_request(ApiKey.PRODUCE, 9, frame)
    assert isinstance(message, produce.ProduceRequest)
    records = message.topic_data[0].partition_data[0].records
    assert isinstance(records, memoryview)
    assert records.obj is frame
    assert bytes(records) == b"\x01\x02\x03\x04"


def test_records_are_encoded_without_copying() -> None:
    """A fetch answer goes out as the very buffers it was given, batch by batch, empty ones left out."""
    batches: list[memoryview | bytes] = [memoryview(b"a" * 10), b"", memoryview(b"b" * 20)]
    message = fetch.FetchResponse(
        responses=[
            fetch.FetchableTopicResponse(
                topic="t",
                partitions=[
                    fetch.PartitionData(partition_index=0, records=batches),
                    fetch.PartitionData(partition_index=1, records=b""),
                    fetch.PartitionData(partition_index=2, records=b"tail"),
                ],
            )
        ]
    )
    segments = encode_response(ApiKey.FETCH, 12, 9, message)
    assert any(segment is batches[0] for segment in segments)
    assert any(segment is batches[2] for segment in segments)
    assert all(len(segment) for segment in segments)
    frame = b"".join(segments)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    correlation_id, decoded = decode_response(ApiKey.FETCH, 12, memoryview(frame)[4:])
    assert isinstance(decoded, fetch.FetchResponse)
    found = [partition.records for partition in decoded.responses[0].partitions]
    assert correlation_id == 9
    assert found == [b"a" * 10 + b"b" * 20, b"", b"tail"]


def test_unknown_tagged_fields_are_skipped() -> None:
    """KIP-482: at every level, also several at once and with two-byte tags and sizes."""
    unknown = bytes.fromhex("0263 01 ff8001 8101") + bytes(129)
    message = decode_request(ApiKey.PRODUCE, 9, PRODUCE_V9[:-1] + unknown)
    assert message == decode_request(ApiKey.PRODUCE, 9, PRODUCE_V9)
    nested = PRODUCE_V9[:-3] + unknown + unknown + b"\0"
    assert decode_request(ApiKey.PRODUCE, 9, nested) == message


def test_no_more_tagged_fields_are_skipped_than_anybody_sends() -> None:
    """They were skipped in the event loop: of a header's, or behind a Produce of 100 MiB, for fifteen seconds."""

    def tags(count: int) -> bytes:
        out = bytearray()
        encode_uvarint(out, count)
        return bytes(out) + b"\x63\0" * count

    request = encode_request(ApiKey.FETCH, 12, 1, "c", fetch.FetchRequest())
    frame = b"".join(request)[4:]  # ends with the number of its tagged fields, of which some are known
    produce_start = struct.pack(">hhihB", 0, 9, 1, 1, ord("c"))
    header = decode_request_header(produce_start + tags(TAGS_MAX))
    assert header.body_pos == len(produce_start) + 2 + 2 * TAGS_MAX
    assert decode_request(ApiKey.PRODUCE, 9, PRODUCE_V9[:-1] + tags(TAGS_MAX)) is not None
    assert decode_request(ApiKey.FETCH, 12, frame[:-1] + tags(TAGS_MAX), 12) is not None
    most = f"count={TAGS_MAX + 1} most={TAGS_MAX}"
    with pytest.raises(DecodeError, match=most):
        decode_request_header(produce_start + tags(TAGS_MAX + 1))
    with pytest.raises(DecodeError, match=most):
        decode_request(ApiKey.PRODUCE, 9, PRODUCE_V9[:-1] + tags(TAGS_MAX + 1))
    with pytest.raises(DecodeError, match=most):
        decode_request(ApiKey.FETCH, 12, frame[:-1] + tags(TAGS_MAX + 1), 12)


def test_unknown_tag_beside_known_ones_is_skipped() -> None:
    data = (
        API_VERSIONS_RESPONSE_V3.replace(bytes.fromhex("02 00 08"), bytes.fromhex("03 00 08")) + b"\x32\x02ab"
    )
    with_unknown = decode_response(18, 3, b"\0\0\0\x05" + data)
    assert with_unknown == decode_response(18, 3, b"\0\0\0\x05" + API_VERSIONS_RESPONSE_V3)


def test_known_tag_of_the_wrong_size_is_refused() -> None:
    damaged = API_VERSIONS_RESPONSE_V3[:-10] + bytes.fromhex("01 09 0000000000000007 00")
    with pytest.raises(DecodeError, match="announced size"):
        decode_response(18, 3, b"\0\0\0\x05" + damaged)


def test_bytes_after_the_message_are_refused() -> None:
    with pytest.raises(DecodeError, match="left over"):
        decode_request(ApiKey.PRODUCE, 9, PRODUCE_V9 + b"\0")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"gr\xffoup", "gr\ufffdoup"),
        (b"\xc3", "\ufffd"),
        (b"\xf0\x9f\x98", "\ufffd"),  # the beginning of a character
        (b"\xed\xa0\x80x", "\ufffdx"),  # a surrogate: one for Java, three for Python's "replace"
        (b"\xed\xb8", "\ufffd"),
        (b"\xed\xb6\xe7%\xed", "\ufffd\ufffd%\ufffd"),
        (b"\xc0\x80", "\ufffd\ufffd"),  # Java's own zero is for class files only
        (b"\xf7\x89\xe6\x9c\xed\xa3", "\ufffd" * 4),
        ("größe\U0001f600".encode(), "größe\U0001f600"),
    ],
)
def test_strings_that_are_not_utf8_are_read_as_java_reads_them(data: bytes, text: str) -> None:
    """The expected texts are those of ``new String(data, UTF_8)`` of OpenJDK 17."""
    body = len(data).to_bytes(2, "big") + data
    request = decode_request(ApiKey.FIND_COORDINATOR, 0, body)
    assert isinstance(request, FindCoordinatorRequest)
    assert request.key == text
    header = (10).to_bytes(2, "big") + b"\0\0" + bytes(4) + body
    assert decode_request_header(header).client_id == text


def test_strings_that_could_not_be_sent_back_are_refused() -> None:
    """U+FFFD takes three bytes, so 11,000 bytes that aren't UTF-8 don't fit into a string any more."""
    longest, too_long = b"\xff" * (32_767 // 3), b"\xff" * (32_767 // 3 + 1)
    request = decode_request(ApiKey.FIND_COORDINATOR, 0, len(longest).to_bytes(2, "big") + longest)
    assert isinstance(request, FindCoordinatorRequest)
    assert len(request.key.encode()) == 32_766
    body = len(too_long).to_bytes(2, "big") + too_long
    with pytest.raises(DecodeError, match=r"text is too long: field=FindCoordinatorRequest.key"):
        decode_request(ApiKey.FIND_COORDINATOR, 0, body)
    with pytest.raises(DecodeError, match=r"text is too long: field=RequestHeader.client_id"):
        decode_request_header((10).to_bytes(2, "big") + b"\0\0" + bytes(4) + body)
    body = (32_767).to_bytes(2, "big") + b"x" * 32_767
    assert decode_request(ApiKey.FIND_COORDINATOR, 0, body) == FindCoordinatorRequest(key="x" * 32_767)


@pytest.mark.parametrize(
    ("api_key", "version", "data"),
    [
        (3, 12, b"\xff\xff\xff\xff\x0f" + bytes(20)),  # compact array of 2^32-2 topics
        (3, 1, b"\x7f\xff\xff\xff" + bytes(20)),  # array of 2^31-1 topics
        (3, 0, b"\xff\xff\xff\xff"),  # null where v0 has no null
        (3, 0, b"\x80\0\0\0"),
        (0, 9, b"\xff\xff\xff\xff\x7f" + bytes(20)),  # a varint over 32 bits
        (1, 4, bytes(21) + b"\x40\0\0\0" + bytes(40)),  # 2^30 topics
        (
            10,
            3,
            b"\x81\x80\x02" + b"x" * 32_768 + b"\0\0",
        ),  # a compact string longer than Kafka's strings are
    ],
)
def test_absurd_lengths_are_refused_without_allocating(api_key: int, version: int, data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_request(api_key, version, data)  # imports the codec outside the measurement
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode_request(api_key, version, data)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_null_where_the_version_has_none_is_an_encode_error() -> None:
    """Metadata v0 can't ask for "all topics" by null."""
    request = metadata.MetadataRequest(topics=None)
    assert encoded(metadata.encode_request_v1, request) == b"\xff\xff\xff\xff"
    with pytest.raises(EncodeError, match=r"MetadataRequest\.topics"):
        encoded(metadata.encode_request_v0, request)


@pytest.mark.parametrize(
    "partition",
    [
        produce.PartitionProduceResponse(base_offset=1 << 63),
        produce.PartitionProduceResponse(error_message="x" * 0x8000),
        produce.PartitionProduceResponse(error_code="0"),  # type: ignore[arg-type]
    ],
)
def test_value_the_wire_cannot_carry_is_an_encode_error(partition: produce.PartitionProduceResponse) -> None:
    topic = produce.TopicProduceResponse(name="t", partition_responses=[partition])
    with pytest.raises(EncodeError, match="ProduceResponse version=8"):
        encode_response(0, 8, 1, produce.ProduceResponse(responses=[topic]))


def test_absent_fields_keep_their_defaults() -> None:
    topic = fetch.FetchTopic()
    assert topic.topic_id == ZERO_UUID
    assert fetch.FetchPartition().current_leader_epoch == -1
    first, second = fetch.FetchRequest(), fetch.FetchRequest()
    first.topics.append(topic)
    assert second.topics == []
    assert first.replica_state is not second.replica_state


def test_group_metadata_round_trips_in_all_versions() -> None:
    value = GroupMetadataValue(
        protocol_type="consumer",
        generation=7,
        protocol="range",
        leader="m",
        members=[
            MemberMetadata(
                member_id="m", client_id="c", client_host="/h", session_timeout=9, subscription=b"s"
            )
        ],
    )
    for version in range(5):
        data = encode_data(version, value)
        assert decode_data(GroupMetadataValue, data) == (version, value)
    assert encode_data(0, value) == bytes.fromhex(
        "0000 0008" + b"consumer".hex() + "00000007 0005" + b"range".hex() + "0001 6d"
        "00000001 0001 6d 0001 63 0002 2f68 00000009 00000001 73 00000000"
    )


def test_offset_commit_value_literals() -> None:
    value = OffsetCommitValue(offset=5, leader_epoch=2, metadata="m", commit_timestamp=9)
    assert encode_data(3, value) == bytes.fromhex("0003 0000000000000005 00000002 0001 6d 0000000000000009")
    assert encode_data(4, value) == bytes.fromhex("0004 0000000000000005 00000002 02 6d 0000000000000009 00")
    value.topic_id = bytes(range(16))
    assert decode_data(OffsetCommitValue, encode_data(4, value)) == (4, value)


@pytest.mark.parametrize(
    "value", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_456, 0x8000_0000]
)
def test_uvarint_round_trips_at_every_width(value: int) -> None:
    out = bytearray()
    encode_uvarint(out, value)
    assert decode_uvarint(memoryview(out), 0) == (value, len(out))
    for end in range(len(out)):
        with pytest.raises(IndexError):
            decode_uvarint(memoryview(out)[:end], 0)


def test_a_length_below_zero_is_read_as_java_reads_it() -> None:
    """32 bits with a sign: a field that may be null is null, and of tagged fields there are none."""
    request = heartbeat.HeartbeatRequest(group_id="g", generation_id=1, member_id="m")
    frame = b"".join(map(bytes, encode_request(ApiKey.HEARTBEAT, 4, 7, "c", request)))[4:]
    for value in (b"\xff\xff\xff\xff\x0f", b"\x81\x80\x80\x80\x08"):
        odd = frame[:-2] + value + value  # the instance id, and how many tagged fields follow
        assert decode_request(ApiKey.HEARTBEAT, 4, odd, 12) == request
        with pytest.raises(DecodeError, match=r"longer than its message|may not be"):
            decode_request(
                ApiKey.HEARTBEAT, 4, frame[:-1] + b"\1\5" + value, 12
            )  # a tagged field of that size
    with pytest.raises(DecodeError, match="longer than its message"):
        decode_request(ApiKey.HEARTBEAT, 4, frame[:-2] + b"\x80\x80\x80\x80\x08\0", 12)
