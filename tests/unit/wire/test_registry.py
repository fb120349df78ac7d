"""Headers, versions and lookup of codecs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from penstock.wire import (
    ApiKey,
    DecodeError,
    EncodeError,
    ErrorCode,
    decode_data,
    decode_request,
    decode_request_header,
    decode_response,
    encode_data,
    encode_request,
    encode_response,
    is_flexible,
    is_supported,
    supported_versions,
)
from penstock.wire.messages._index import INDEX
from penstock.wire.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from penstock.wire.messages.consumer_protocol_subscription import ConsumerProtocolSubscription
from penstock.wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from penstock.wire.messages.offset_delete import OffsetDeleteRequest

# Key -> versions of Kafka 4.2's broker listener, for the APIs this broker may advertise.
ADVERTISABLE = {
    0: (3, 13), 1: (4, 18), 2: (1, 11), 3: (0, 13), 8: (2, 10), 9: (1, 10), 10: (0, 6), 11: (0, 9), 12: (0, 4),
    13: (0, 5), 14: (0, 5), 15: (0, 6), 16: (0, 5), 17: (0, 1), 18: (0, 4), 19: (2, 7), 20: (1, 6),
    21: (0, 2), 22: (0, 5),
    23: (2, 4), 29: (1, 3), 30: (1, 3), 31: (1, 3), 32: (1, 4), 33: (0, 2), 35: (1, 4), 37: (0, 3), 42: (0, 2),
    43: (0, 2), 44: (0, 1), 45: (0, 1), 46: (0, 0), 47: (0, 0), 48: (0, 1), 50: (0, 0), 60: (0, 2), 61: (0, 0),
    65: (0, 0), 66: (0, 2), 68: (0, 1),
    74: (0, 1), 75: (0, 0),
}  # fmt: skip


def test_every_advertisable_version_has_codecs() -> None:
    for key, (low, high) in ADVERTISABLE.items():
        found = supported_versions(key)
        assert found is not None, key
        assert found.low <= low, key
        assert found.high >= high, key
    assert set(INDEX) == set(ADVERTISABLE), "a new api gets its versions in Kafka in ADVERTISABLE"


def test_api_key_names_are_the_module_names() -> None:
    assert {int(key): key.name.lower() for key in ApiKey} == {key: entry[0] for key, entry in INDEX.items()}


def test_request_header_v1_literal() -> None:
    frame = bytes.fromhex("0003 0001 00000007 0002") + b"me" + b"body"
    header = decode_request_header(frame)
    assert (header.api_key, header.api_version, header.correlation_id) == (3, 1, 7)
    assert header.client_id == "me"
    assert frame[header.body_pos :] == b"body"


def test_request_header_v2_skips_tags_and_keeps_the_int16_client_id() -> None:
    frame = bytes.fromhex("0003 000c 00000007 0002") + b"me" + bytes.fromhex("01 05 03 aabbcc") + b"body"
    header = decode_request_header(frame)
    assert header.client_id == "me"
    assert frame[header.body_pos :] == b"body"


def test_null_client_id_is_legal() -> None:
    assert decode_request_header(bytes.fromhex("0003 0001 00000007 ffff")).client_id is None


def test_header_of_an_unknown_version_still_tells_who_asked() -> None:
    """Enough to answer ApiVersions with UNSUPPORTED_VERSION (KIP-511)."""
    header = decode_request_header(bytes.fromhex("0012 7fff 00000007 0001 78 01 00 01 61 ff ff"))
    assert (header.api_key, header.api_version, header.correlation_id, header.client_id) == (
        18,
        0x7FFF,
        7,
        "x",
    )


@pytest.mark.parametrize("tail", ["", "01 00 03 61", "ff"])
def test_header_of_a_later_api_versions_is_read_whole(tail: str) -> None:
    with pytest.raises(DecodeError):
        decode_request_header(bytes.fromhex("0012 7fff 00000007 0001 78" + tail))
    assert decode_request_header(bytes.fromhex("0003 7fff 00000007 0001 78" + tail)).client_id == "x"


@pytest.mark.parametrize("tail", ["", "0005 61", "0001 ff", "0001 61", "0001 61 01", "0001 61 01 00 05"])
def test_malformed_header_raises_decode_error(tail: str) -> None:
    whole = bytes.fromhex("0003 000c 00000007" + tail)
    for end in range(len(whole) + 1):
        with pytest.raises(DecodeError):
            decode_request_header(whole[:end])


def test_request_round_trips_with_its_header() -> None:
    request = HeartbeatRequest(group_id="g", generation_id=3, member_id="m")
    for version in range(5):
        frame = b"".join(encode_request(ApiKey.HEARTBEAT, version, 11, "client", request))
        assert int.from_bytes(frame[:4], "big") == len(frame) - 4
        view = memoryview(frame)[4:]
        header = decode_request_header(view)
        assert (header.api_key, header.api_version, header.correlation_id) == (12, version, 11)
        assert decode_request(12, version, view, header.body_pos) == request


def test_response_header_has_tags_only_in_flexible_versions() -> None:
    response = HeartbeatResponse(error_code=ErrorCode.REBALANCE_IN_PROGRESS)
    assert b"".join(encode_response(12, 3, 1, response)) == bytes.fromhex("0000000a 00000001 00000000 001b")
    assert b"".join(encode_response(12, 4, 1, response)) == bytes.fromhex(
        "0000000c 00000001 00 00000000 001b 00"
    )
    assert decode_response(12, 4, bytes.fromhex("00000001 01 07 01 ff 00000000 001b 00")) == (1, response)


def test_api_versions_response_header_is_always_v0() -> None:
    frame = b"".join(encode_response(18, 3, 1, ApiVersionsResponse()))
    assert frame == bytes.fromhex("0000000c 00000001 0000 01 00000000 00")
    assert decode_response(18, 3, frame[4:]) == (1, ApiVersionsResponse())


def test_offset_delete_is_never_flexible() -> None:
    assert not any(is_flexible(ApiKey.OFFSET_DELETE, version) for version in range(-1, 10))
    frame = b"".join(encode_request(47, 0, 1, None, OffsetDeleteRequest(group_id="PLAIN", topics=[])))
    assert frame[4:] == bytes.fromhex("002f 0000 00000001 ffff 0005") + b"PLAIN" + bytes(4)


@pytest.mark.parametrize(("api_key", "version"), [(0, 2), (0, 14), (3, -1), (4, 0), (-1, 0), (9999, 0)])
def test_without_a_codec_decode_and_encode_raise(api_key: int, version: int) -> None:
    assert not is_supported(api_key, version)
    assert not is_flexible(api_key, version)
    with pytest.raises(DecodeError, match="no codec"):
        decode_request(api_key, version, b"")
    with pytest.raises(DecodeError, match="no codec"):
        decode_response(api_key, version, b"\0\0\0\0")
    with pytest.raises(EncodeError, match="no codec"):
        encode_response(api_key, version, 1, ApiVersionsResponse())
    with pytest.raises(EncodeError, match="no codec"):
        encode_request(api_key, version, 1, None, ApiVersionsRequest())


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\1", b"\0\0\0\1\1\1"])
def test_short_response_raises_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_response(12, 4, data)


def test_consumer_protocol_of_a_newer_client_is_read_leniently() -> None:
    subscription = ConsumerProtocolSubscription(topics=["a"], generation_id=4)
    data = encode_data(3, subscription)
    assert decode_data(ConsumerProtocolSubscription, data) == (3, subscription)
    newer = b"\0\x09" + data[2:] + b"more"
    assert decode_data(ConsumerProtocolSubscription, newer, lenient=True) == (9, subscription)
    for bad in (newer, data + b"x", data[:-1], b"\0", b"\xff\xff"):
        with pytest.raises(DecodeError):
            decode_data(ConsumerProtocolSubscription, bad)
    with pytest.raises(EncodeError):
        encode_data(4, subscription)


def test_importing_the_package_imports_no_codec() -> None:
    code = "import sys, penstock.wire; print([m for m in sys.modules if m.startswith('penstock.wire.messages.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['penstock.wire.messages._index']"


def test_error_codes_are_those_of_kafka() -> None:
    kio = pytest.importorskip("kio.schema.errors")
    assert {code.name: (int(code), code.retriable) for code in ErrorCode} == {
        code.name.upper(): (int(code), code.retriable) for code in kio.ErrorCode
    }
    assert all(code.message for code in ErrorCode if code is not ErrorCode.NONE)
    assert ErrorCode(3) is ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
