"""Whatever comes in by the socket: bounded memory, the right codes, no traceback, and real clients go on."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from crc32c import crc32c
from tests.depth import in_full
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.ledger import Ledger, check, create_topic, read_all
from tests.patience import HANG_S

from penstock.wire import ApiKey, encode_request
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages import api_versions, fetch, metadata, produce
from penstock.wire.records import ATTRIBUTES_POS, CRC_POS, build_batch
from penstock.wire.registry import decode_response

TOPIC = "fuzzed"
MIB = 2**20
PRODUCE_VERSION = 9
MAGIC_POS = 16
BATCH_LENGTH_POS = 8
RECORD_COUNT_POS = 57
FRAMES = 3000


def connect(broker: ServeProcess) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", broker.port))
    sock.settimeout(HANG_S)
    return sock


def receive(sock: socket.socket) -> bytes | None:
    """One frame, or None when the broker closed the connection."""
    prefix = receive_exactly(sock, 4)
    return None if prefix is None else receive_exactly(sock, int.from_bytes(prefix, "big"))


def receive_exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(size - len(data))
        except ConnectionResetError:
            return None
        if not piece:
            return None
        data += piece
    return data


def batch(count: int = 3) -> bytearray:
    now_ms = time.time_ns() // 1_000_000
    return bytearray(build_batch([(b"key", b"value" * 10, (), now_ms)] * count))


def with_crc(records: bytearray) -> bytearray:
    """The batch with the checksum that its present bytes have."""
    records[CRC_POS : CRC_POS + 4] = crc32c(bytes(records[ATTRIBUTES_POS:])).to_bytes(4, "big")
    return records


def produce_frame(records: bytes | bytearray | None, *, acks: int = -1, topic: str = TOPIC) -> bytes:
    data = produce.PartitionProduceData(index=0, records=None if records is None else bytes(records))
    request = produce.ProduceRequest(
        acks=acks,
        timeout_ms=5000,
        topic_data=[produce.TopicProduceData(name=topic, partition_data=[data])],
    )
    return b"".join(encode_request(ApiKey.PRODUCE, PRODUCE_VERSION, 7, "bad", request))


def produce_code(broker: ServeProcess, records: bytes | bytearray | None) -> int:
    """The error code that the records are answered with."""
    with connect(broker) as sock:
        sock.sendall(produce_frame(records))
        frame = receive(sock)
    assert frame is not None, "closed instead of answered"
    response = decode_response(ApiKey.PRODUCE, PRODUCE_VERSION, frame)[1]
    assert isinstance(response, produce.ProduceResponse)
    return response.responses[0].partition_responses[0].error_code


API_VERSIONS_FRAME = b"".join(
    encode_request(ApiKey.API_VERSIONS, 3, 1, "bad", api_versions.ApiVersionsRequest())
)


def good_frames() -> list[bytes]:
    """Requests of several kinds, well formed."""
    partition = fetch.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=MIB)
    return [
        produce_frame(batch()),
        produce_frame(batch(50), acks=0),
        API_VERSIONS_FRAME,
        b"".join(
            encode_request(
                ApiKey.METADATA,
                9,
                2,
                "bad",
                metadata.MetadataRequest(topics=[metadata.MetadataRequestTopic(name=TOPIC)]),
            )
        ),
        b"".join(
            encode_request(
                ApiKey.FETCH,
                12,
                3,
                "bad",
                fetch.FetchRequest(
                    max_wait_ms=1,
                    min_bytes=1,
                    max_bytes=MIB,
                    topics=[fetch.FetchTopic(topic=TOPIC, partitions=[partition])],
                ),
            )
        ),
    ]


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """Something like ``frame`` that no client would send."""
    data = bytearray(frame)
    kind = rng.randrange(6)
    if kind == 0:  # cut off, with a length that says so, or not
        data = data[: rng.randrange(4, len(data))]
        if rng.random() < 0.5:
            data[:4] = (len(data) - 4).to_bytes(4, "big")
    elif kind == 1:  # some bits
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(4, len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:  # a length somewhere becomes absurd
        position = rng.randrange(4, max(5, len(data) - 4))
        value = rng.choice([-1, -2, -(2**31), 2**31 - 1, 2**24, 0])
        data[position : position + 4] = struct.pack(">i", value)
        data[:4] = (len(data) - 4).to_bytes(4, "big")
    elif kind == 3:  # another api or version
        data[4:8] = struct.pack(">hh", rng.randrange(-5, 120), rng.randrange(-2, 30))
    elif kind == 4:  # noise in a frame of the right length
        noise = rng.randbytes(rng.randrange(10, 3000))
        data = bytearray(len(noise).to_bytes(4, "big") + noise)
    else:  # a varint that doesn't end
        position = rng.randrange(8, len(data))
        data[position : position + 12] = b"\xff" * 12
        data[:4] = (len(data) - 4).to_bytes(4, "big")
    return bytes(data)


@pytest.fixture
def target(serve: ServeFactory) -> Iterator[ServeProcess]:
    """A broker that must be as good as new afterwards; it logs no bug, and shows no traceback (``serve``)."""
    broker = serve()
    create_topic(broker.bootstrap_servers, TOPIC)
    yield broker
    assert broker.running, broker.output_so_far
    prove_service(broker)
    assert broker.terminate() == 0, broker.output_so_far
    assert "this is a bug" not in broker.output, broker.output
    assert broker.output.count("\n") < 400, "bad input floods the log"


def prove_service(broker: ServeProcess) -> None:
    """Real clients write to a fresh topic of the same broker and read it back."""
    topic = f"real-{random.randrange(2**32)}"
    create_topic(broker.bootstrap_servers, topic)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=1, topic=topic)
    with ledger:
        deadline = time.monotonic() + HANG_S
        while len(ledger.acked) < 100:
            assert time.monotonic() < deadline, "a real client isn't served any more"
            time.sleep(0.02)
    check(read_all(broker.bootstrap_servers, topic), ledger, idempotent=True)


@pytest.mark.parametrize("seed", [1, *in_full(2)])
def test_fuzzed_frames(target: ServeProcess, seed: int) -> None:
    """Thousands of mutated requests: each is answered or ends its connection, and memory stays where it was."""
    rng = random.Random(seed)
    frames = good_frames()
    before = target.resident_bytes()
    sent = answered = 0
    while sent < FRAMES:
        with connect(target) as sock:
            # whatever earlier connections sent, a well-formed request on a new one is answered
            sock.sendall(API_VERSIONS_FRAME)
            assert receive(sock) is not None, f"not served after {sent} mutated frames"
            answered += 1
            with contextlib.suppress(OSError):  # closed by the broker: fine
                for _ in range(rng.randrange(1, 12)):
                    sock.sendall(mutate(rng, rng.choice(frames)))
                    sent += 1
                sock.shutdown(socket.SHUT_WR)
                while receive(sock) is not None:
                    answered += 1
    assert answered > 100, (
        "each connection begins with a request that is answered; some mutations are harmless too"
    )
    assert target.resident_bytes() - before < 96 * MIB


@pytest.mark.parametrize("length", [-1, -(2**31), 0, 3, 2**31 - 1, 101 * MIB])
def test_absurd_frame_length(target: ServeProcess, length: int) -> None:
    """The connection ends at once; nothing is allocated."""
    before = target.resident_bytes()
    with connect(target) as sock:
        sock.sendall(struct.pack(">i", length) + b"\x00\x00\x00\x09" + b"x" * 100)
        assert receive(sock) is None
    target.wait_for_output("frame length is out of range")
    assert target.resident_bytes() - before < 16 * MIB


def test_announced_and_not_sent(target: ServeProcess) -> None:
    """60 connections announce 64 MiB each and send nothing: no more than the memory limit is set aside."""
    start = produce_frame(batch())[4:40]
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            sock = stack.enter_context(connect(target))
            sock.sendall(struct.pack(">i", 64 * MIB) + start)
        prove_alive(target)
        assert target.resident_bytes() < 540 * MIB


def prove_alive(broker: ServeProcess) -> None:
    """A small request is answered."""
    with connect(broker) as sock:
        sock.sendall(good_frames()[2])
        assert receive(sock) is not None


def test_batches_that_are_wrong(target: ServeProcess) -> None:
    """Each is refused with the code that Kafka gives, and the connection goes on."""
    wrong_crc = batch()
    wrong_crc[CRC_POS] ^= 0xFF
    damaged = batch()
    damaged[-1] ^= 0xFF
    assert produce_code(target, wrong_crc) == ErrorCode.CORRUPT_MESSAGE
    assert produce_code(target, damaged) == ErrorCode.CORRUPT_MESSAGE
    for magic in (0, 1):
        old = batch()
        old[MAGIC_POS] = magic
        assert produce_code(target, old) in {
            ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT,
            ErrorCode.INVALID_RECORD,
            ErrorCode.CORRUPT_MESSAGE,
        }
    unknown = batch()
    unknown[MAGIC_POS] = 3
    assert produce_code(target, unknown) in {
        ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        ErrorCode.INVALID_RECORD,
        ErrorCode.CORRUPT_MESSAGE,
    }
    for length in (-1, 0, 2**31 - 1, len(batch()) + 1):
        absurd = batch()
        absurd[BATCH_LENGTH_POS : BATCH_LENGTH_POS + 4] = struct.pack(">i", length)
        assert produce_code(target, absurd) in {ErrorCode.CORRUPT_MESSAGE, ErrorCode.INVALID_RECORD}
    for count in (-1, 0, 2, 4, 2**31 - 1):
        miscounted = batch()
        miscounted[RECORD_COUNT_POS : RECORD_COUNT_POS + 4] = struct.pack(">i", count)
        assert produce_code(target, with_crc(miscounted)) in {
            ErrorCode.INVALID_RECORD,
            ErrorCode.CORRUPT_MESSAGE,
        }
    assert produce_code(target, batch() + batch()) == ErrorCode.INVALID_RECORD
    assert produce_code(target, b"") in {ErrorCode.INVALID_RECORD, ErrorCode.CORRUPT_MESSAGE}
    assert produce_code(target, None) in {ErrorCode.INVALID_RECORD, ErrorCode.CORRUPT_MESSAGE}
    assert produce_code(target, bytes(batch())[:40]) in {ErrorCode.INVALID_RECORD, ErrorCode.CORRUPT_MESSAGE}
    too_large = build_batch([(None, bytes(2 * MIB), (), 0)])
    assert produce_code(target, too_large) == ErrorCode.MESSAGE_TOO_LARGE
    assert produce_code(target, batch()) == ErrorCode.NONE


def test_unknown_apis_and_versions(target: ServeProcess) -> None:
    """ApiVersions of an unknown version is told what there is (KIP-511); all else ends its connection."""
    with connect(target) as sock:
        sock.sendall(struct.pack(">ihhihB", 11, ApiKey.API_VERSIONS, 99, 5, -1, 0))
        frame = receive(sock)
    assert frame is not None
    correlation_id, response = decode_response(ApiKey.API_VERSIONS, 0, frame)
    assert isinstance(response, api_versions.ApiVersionsResponse)
    assert (correlation_id, response.error_code) == (5, ErrorCode.UNSUPPORTED_VERSION)
    assert any(api.api_key == ApiKey.API_VERSIONS for api in response.api_keys)
    for api_key, version in [(-1, 0), (999, 0), (32767, -1), (ApiKey.PRODUCE, 99), (ApiKey.FETCH, -1)]:
        with connect(target) as sock:
            sock.sendall(struct.pack(">ihhih", 10, api_key, version, 5, -1))
            assert receive(sock) is None, (api_key, version)


def test_byte_by_byte(target: ServeProcess) -> None:
    """Requests that come one byte at a time, from many clients at once, are answered like others."""
    frame = produce_frame(batch())
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(target)) for _ in range(20)]
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(frame)):
            for sock in socks:
                sock.sendall(frame[i : i + 1])
        for sock in socks:
            answer = receive(sock)
            assert answer is not None
            response = decode_response(ApiKey.PRODUCE, PRODUCE_VERSION, answer)[1]
            assert isinstance(response, produce.ProduceResponse)
            assert response.responses[0].partition_responses[0].error_code == 0


def test_a_thousand_idle_and_half_open_connections(target: ServeProcess) -> None:
    """They cost little memory and nobody's service; half of them say nothing, half stop within a request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    before = target.resident_bytes()
    frame = produce_frame(batch(200))
    with contextlib.ExitStack() as stack:
        for i in range(1000):
            sock = stack.enter_context(connect(target))
            if i % 2:
                sock.sendall(frame[: len(frame) - 1 - i % 50])
        prove_alive(target)
        prove_service(target)
        growth = target.resident_bytes() - before
        assert growth < 64 * MIB, f"{growth / 1000 / 1024:.0f} KiB each"
    prove_alive(target)


def test_half_open_connections_are_closed(serve: ServeFactory) -> None:
    """A connection that is reset in the middle of a large request gives its memory back."""
    broker = serve("memory.limit=256MiB")
    create_topic(broker.bootstrap_servers, TOPIC)
    start = produce_frame(batch())[4:40]
    linger = struct.pack("ii", 1, 0)
    for _ in range(60):  # 60 x 32 MiB would be far over the limit
        with connect(broker) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # a reset, not a FIN
            sock.sendall(struct.pack(">i", 32 * MIB) + start + bytes(100_000))
    prove_service(broker)
    assert broker.resident_bytes() < 256 * MIB
