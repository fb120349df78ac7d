"""A stop, whenever it comes: everything is answered or its connection closed, what was acknowledged is durable."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time

import pytest
from confluent_kafka import Consumer
from tests.depth import in_full
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.ledger import SILENT, TOPIC, Ledger, check, create_topic, read_all
from tests.integration.test_faults import acks_go_on
from tests.patience import HANG_S

from penstock.wire import ApiKey, encode_request
from penstock.wire.messages import fetch, join_group, metadata
from penstock.wire.registry import decode_response

#: Longer than a test waits: a stop that is held up by a request that waits so long, or for its limit, hangs.
NEVER_S = 10 * int(HANG_S)


def request(broker: ServeProcess, frame: bytes) -> socket.socket:
    """A connection with the request on its way."""
    sock = socket.create_connection(("127.0.0.1", broker.port))
    sock.settimeout(HANG_S)
    sock.sendall(frame)
    return sock


def answer(sock: socket.socket) -> bytes | None:
    """The response without its length, or None: the connection was closed without one."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            assert not data, "half a response"
            return None
        data += piece
    return data[4:]


def parked_fetch(broker: ServeProcess) -> socket.socket:
    """A fetch at the end of the topic that would wait for long."""
    partition = fetch.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=2**20)
    message = fetch.FetchRequest(
        max_wait_ms=NEVER_S * 1000,
        min_bytes=2**20,
        max_bytes=2**21,
        topics=[fetch.FetchTopic(topic="quiet", partitions=[partition])],
    )
    return request(broker, b"".join(encode_request(ApiKey.FETCH, 11, 1, "parked", message)))


def parked_join(broker: ServeProcess, group: str) -> socket.socket:
    """The first member of a group, which waits for others to come."""
    protocol = join_group.JoinGroupRequestProtocol(name="range", metadata=b"\0\0\0\0\0\0\0\0\0\0")
    message = join_group.JoinGroupRequest(
        group_id=group,
        session_timeout_ms=30_000,
        rebalance_timeout_ms=NEVER_S * 1000,
        protocol_type="consumer",
        protocols=[protocol],
    )
    return request(broker, b"".join(encode_request(ApiKey.JOIN_GROUP, 2, 1, "parked", message)))


def test_parked_requests_are_answered(serve: ServeFactory) -> None:
    """Fetches and joins that wait get their answer, or the end of the connection, and the stop is not held up."""
    broker = serve(f"groups.initial_rebalance_delay={NEVER_S}s", f"broker.drain_timeout={NEVER_S}s")
    create_topic(broker.bootstrap_servers, "quiet")
    fetches = [parked_fetch(broker) for _ in range(20)]
    joins = [parked_join(broker, f"group-{i}") for i in range(5)]
    alive = b"".join(encode_request(ApiKey.METADATA, 9, 1, "alive", metadata.MetadataRequest(topics=[])))
    with request(broker, alive) as sock:
        assert answer(sock) is not None  # so what was sent before is parked by now
    assert broker.terminate() == 0, broker.output
    for sock in fetches:
        frame = answer(sock)
        assert frame is not None, "the fetch was not answered"
        response = decode_response(ApiKey.FETCH, 11, frame)[1]
        assert isinstance(response, fetch.FetchResponse)
        assert response.responses[0].partitions[0].error_code == 0
        sock.close()
    for sock in joins:
        frame = answer(sock)
        if frame is not None:
            response = decode_response(ApiKey.JOIN_GROUP, 2, frame)[1]
            assert isinstance(response, join_group.JoinGroupResponse)
            assert response.error_code != 0
        sock.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, *in_full(signal.SIGINT)])
def test_stops_under_load(serve: ServeFactory, number: signal.Signals) -> None:
    """Stopped again and again under producers and a consumer group: nothing acknowledged is lost or doubled."""
    rng = random.Random(int(number))
    broker = serve("stream.upload_interval=500ms", f"broker.drain_timeout={NEVER_S}s")
    create_topic(broker.bootstrap_servers)
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": "under-load",
            "auto.offset.reset": "earliest",
            "logger": SILENT,
        }
    )
    consumer.subscribe([TOPIC])
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=3)
    with contextlib.closing(consumer), ledger:
        for _ in range(2):
            end = time.monotonic() + rng.uniform(0.3, 1.0)
            while time.monotonic() < end:
                consumer.consume(500, timeout=0.05)
            broker.signal(number)
            assert broker.wait(HANG_S) == 0, broker.output
            broker.start()
    assert len(ledger.acked) > 100
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    assert broker.terminate() == 0
    assert "recovered" not in broker.output, "a clean stop leaves nothing to recover"


def test_second_signal_changes_nothing(broker: ServeProcess) -> None:
    """Impatience is noted, and the stop goes on as it was."""
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    with ledger:
        acks_go_on(ledger)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            if broker.running:
                broker.signal(number)
        assert broker.wait(HANG_S) == 0
        broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
