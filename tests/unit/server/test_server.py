"""The server over real loopback sockets: order, framing, back-pressure, limits, and how it ends."""

from __future__ import annotations

import itertools
import logging
import random
import struct
import threading
from dataclasses import replace
from typing import Any

import anyio
import pytest
from tests.unit.api.fakes import FakeClock, FakeLogs, make_batch
from tests.unit.server.harness import DEADLINE_S, Client, Harness, offsets, produce, serving, until

from penstock.api.context import RequestContext
from penstock.api.declaration import Api
from penstock.api.dispatch import apis
from penstock.errors import UnavailableError
from penstock.log.preparation import Preparation, Preparer
from penstock.server import ListenerSettings, Server
from penstock.server.connection import Connection
from penstock.server.settings import SCRATCH_BYTES
from penstock.wire.api_keys import ApiKey
from penstock.wire.compression import CODEC_GZIP
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest
from penstock.wire.record_batch import read_header, seal_batch
from penstock.wire.records import build_batch, iter_records
from penstock.wire.registry import Message, decode_response

pytestmark = pytest.mark.anyio

PRODUCE = ApiKey.PRODUCE
FETCH = ApiKey.FETCH
#: A frame with so much in it never fits the buffer that connections share.
LARGE = SCRATCH_BYTES + 10_000


@pytest.fixture(params=["asyncio", "asyncio+uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "asyncio+uvloop"}


@pytest.fixture
def logs() -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 2)
    return logs


def fetch(
    offset: int = 0, *, max_wait_ms: int = 0, min_bytes: int = 1, partition_max_bytes: int = 1 << 20
) -> FetchRequest:
    partition = FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=partition_max_bytes)
    return FetchRequest(
        max_wait_ms=max_wait_ms, min_bytes=min_bytes, topics=[FetchTopic(topic="t", partitions=[partition])]
    )


def latest() -> ListOffsetsRequest:
    partition = ListOffsetsPartition(partition_index=0, timestamp=-1)
    return ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name="t", partitions=[partition])])


@pytest.mark.parametrize("version", range(3, 14))
async def test_produce_is_answered_in_every_version(version: int) -> None:
    async with serving() as harness, await harness.connect() as client:
        request = produce(make_batch(3), make_batch(2))
        request.topic_data[0].topic_id = harness.logs.topics()["t"].id
        assert offsets(await client.call(PRODUCE, version, request)) == [(0, 0), (0, 0)]
        assert offsets(await client.call(PRODUCE, version, request)) == [(0, 3), (0, 2)]


async def test_pipelined_produces_are_sequenced_before_the_first_is_durable(logs: FakeLogs) -> None:
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        for _ in range(5):
            await client.send(PRODUCE, 9, produce(make_batch(2)))
        await until(lambda: len(logs.at("t").batches) == 5)
        assert harness.server.statistics().requests_in_flight == 5
        logs.at("t").commit()
        assert [offsets(await client.receive())[0][1] for _ in range(5)] == [0, 2, 4, 6, 8]


async def test_responses_leave_in_request_order_whatever_becomes_durable_first(logs: FakeLogs) -> None:
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(PRODUCE, 9, produce(make_batch(), partition=0))
        await client.send(PRODUCE, 9, produce(make_batch(4), partition=1))
        await until(lambda: logs.at("t", 1).pending)
        logs.at("t", 1).commit()
        logs.at("t", 0).commit()
        first, second = await client.receive(), await client.receive()
        assert first.responses[0].partition_responses[0].index == 0
        assert second.responses[0].partition_responses[0].index == 1


async def test_another_request_waits_for_the_produces_before_it(logs: FakeLogs) -> None:
    """A ListOffsets sent behind a Produce sees its records, as in Kafka."""
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send_raw(
            client.frame(PRODUCE, 9, produce(make_batch(3))) + client.frame(ApiKey.LIST_OFFSETS, 7, latest())
        )
        await until(lambda: logs.at("t").pending)
        logs.at("t").commit()
        await client.receive()
        assert (await client.receive()).topics[0].partitions[0].offset == 3


async def test_produce_waits_for_the_request_before_it(logs: FakeLogs) -> None:
    """A parked fetch holds back the Produce behind it, which would wake it: so it waits its full time."""
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send_raw(
            client.frame(FETCH, 11, fetch(max_wait_ms=50)) + client.frame(PRODUCE, 9, produce(make_batch()))
        )
        fetched = await client.receive()
        assert not fetched.responses[0].partitions[0].records
        assert offsets(await client.receive()) == [(0, 0)]


async def test_many_pipelined_requests_of_other_kinds_are_answered_in_order() -> None:
    async with serving() as harness, await harness.connect() as client:
        data = b""
        for at in range(300):
            if at % 3:
                data += client.frame(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            else:
                data += client.frame(ApiKey.LIST_OFFSETS, 7, latest())
        await client.send_raw(data)
        for _ in range(300):
            await client.receive()


async def test_frames_may_come_byte_by_byte() -> None:
    async with serving() as harness, await harness.connect() as client:
        data = client.frame(PRODUCE, 9, produce(make_batch())) + client.frame(
            PRODUCE, 9, produce(make_batch())
        )
        for at in range(len(data)):
            await client.send_raw(data[at : at + 1])
            await anyio.lowlevel.checkpoint()
        assert offsets(await client.receive()) == [(0, 0)]
        assert offsets(await client.receive()) == [(0, 1)]
        assert harness.server.statistics().carried_bytes == 0


async def test_large_frame_becomes_the_property_of_the_log(logs: FakeLogs) -> None:
    batch = make_batch(1, b"x" * 300_000)
    async with serving(logs) as harness, await harness.connect() as client:
        for at in range(3):
            assert offsets(await client.call(PRODUCE, 9, produce(batch))) == [(0, at)]
        charges = logs.at("t").charges
        assert len(charges) == 3
        assert harness.allocator.used == sum(charge.size for charge in charges)
        assert bytes(batch[61:]) == logs.at("t").batches[2][2][61:]


async def test_large_frame_of_two_partitions_is_released_when_both_let_go(logs: FakeLogs) -> None:
    batch = make_batch(1, b"x" * 100_000)
    async with serving(logs) as harness, await harness.connect() as client:
        assert offsets(await client.call(PRODUCE, 9, produce(batch, batch))) == [(0, 0), (0, 0)]
        (one,), (other,) = logs.at("t", 0).charges, logs.at("t", 1).charges
        one.release()
        assert harness.allocator.used > 0
        other.release()
        assert harness.allocator.used == 0


async def test_refused_large_frame_gives_its_memory_back(logs: FakeLogs) -> None:
    batch = make_batch(1, b"x" * LARGE)
    batch[70] ^= 1
    async with serving(logs) as harness, await harness.connect() as client:
        code, _ = offsets(await client.call(PRODUCE, 9, produce(batch)))[0]
        assert code == ErrorCode.CORRUPT_MESSAGE
        assert harness.allocator.used == 0


async def test_large_frame_waits_for_memory(logs: FakeLogs) -> None:
    async with serving(logs, memory_bytes=LARGE * 3 // 2) as harness, await harness.connect() as client:
        batch = make_batch(1, b"x" * LARGE)
        await client.send(PRODUCE, 9, produce(batch))
        await client.receive()
        await client.send_raw(
            client.frame(PRODUCE, 9, produce(batch)) + client.frame(PRODUCE, 9, produce(make_batch()))
        )
        await until(lambda: harness.server.statistics().waiting_for_memory == 1)
        logs.at("t").charges[0].release()
        assert offsets(await client.receive()) == [(0, 1)]
        assert offsets(await client.receive()) == [(0, 2)]


async def test_memory_that_does_not_come_ends_the_connection(logs: FakeLogs) -> None:
    async with (
        serving(logs, memory_bytes=LARGE * 3 // 2, memory_wait_ms_max=20) as harness,
        await harness.connect() as client,
    ):
        batch = make_batch(1, b"x" * LARGE)
        await client.call(PRODUCE, 9, produce(batch))
        await client.send(PRODUCE, 9, produce(batch))
        assert await client.ends()


async def test_lost_connection_gives_a_half_received_frame_back() -> None:
    async with serving() as harness:
        async with await harness.connect() as client:
            frame = client.frame(PRODUCE, 9, produce(make_batch(1, b"x" * 100_000)))
            await client.send_raw(frame[:50_000])
            await until(lambda: harness.allocator.used)
        await until(lambda: not harness.allocator.used)


@pytest.mark.parametrize("size", [10, 50_000, 200_000])
async def test_full_log_holds_producers_back_and_lets_them_go_on(logs: FakeLogs, size: int) -> None:
    logs.room = 2
    async with serving(logs) as harness, await harness.connect() as client:
        for _ in range(6):
            await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * size)))
        await until(lambda: harness.server.statistics().waiting_for_room == 1)
        assert [offsets(await client.receive()) for _ in range(2)] == [[(0, 0)], [(0, 1)]]
        logs.make_room(1)
        assert offsets(await client.receive()) == [(0, 2)]
        logs.make_room(100)
        assert [offsets(await client.receive()) for _ in range(3)] == [[(0, 3)], [(0, 4)], [(0, 5)]]
        assert harness.server.statistics().carried_bytes == 0


def recompressing(harness: Harness, *partitions: int, codec: int = CODEC_GZIP) -> None:
    for at in partitions:
        harness.logs.at("t", at).codec = codec
        harness.logs.at("t", at).preparer = Preparer(harness.allocator, threads=2)  # type: ignore[arg-type]


def values(logs: FakeLogs, partition: int = 0) -> list[bytes]:
    return [
        bytes(record.value or b"")
        for _, _, batch in logs.at("t", partition).batches
        for record in iter_records(memoryview(batch))
    ]


async def test_recompressed_batches_keep_the_order_of_their_connection(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        recompressing(harness, 0)
        sent = [
            bytes([at]) * (300_000 if at % 3 == 0 else 100 if at % 3 == 1 else 40_000) for at in range(12)
        ]
        for value in sent:
            await client.send(PRODUCE, 9, produce(make_batch(1, value)))
        answers = [offsets(await client.receive()) for _ in sent]
        assert answers == [[(0, at)] for at in range(12)]
        assert values(logs) == sent
        assert {read_header(batch).codec for _, _, batch in logs.at("t").batches} == {CODEC_GZIP}
        assert harness.server.statistics().carried_bytes == 0
        for charge in logs.at("t").charges:
            charge.release()
        assert harness.allocator.used == 0, "the frames are given back: the log has the recompressed batches"


@pytest.mark.parametrize("size", [100, 100_000])
async def test_one_partition_of_a_request_is_recompressed_and_the_others_are_not(
    logs: FakeLogs, size: int
) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        recompressing(harness, 1)
        batches = [make_batch(1, bytes([at]) * size) for at in range(2)]
        assert offsets(await client.call(PRODUCE, 3, produce(*batches))) == [(0, 0), (0, 0)]
        assert [read_header(logs.at("t", at).batches[0][2]).codec for at in range(2)] == [0, CODEC_GZIP]
        for at in range(2):
            assert values(logs, at) == [bytes([at]) * size]
            for charge in logs.at("t", at).charges:
                charge.release()
        assert harness.allocator.used == 0


async def test_a_batch_that_can_not_be_recompressed_is_refused_and_the_next_is_not(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        recompressing(harness, 0)
        damaged = seal_batch(read_header(build_batch([(None, b"v", (), 9_000)], codec=4)), b"no zstd" * 9000)
        await client.send(PRODUCE, 9, produce(damaged))
        await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * 90_000)))
        assert offsets(await client.receive()) == [(ErrorCode.INVALID_RECORD, -1)]
        assert offsets(await client.receive()) == [(0, 0)]


async def test_recompression_gets_its_time_however_short_the_clients_is(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        recompressing(harness, 0)
        request = produce(make_batch(1, b"x" * 300_000), timeout_ms=0)
        assert offsets(await client.call(PRODUCE, 9, request)) == [(0, 0)]


async def test_a_recompressed_batch_waits_for_room_as_it_is(logs: FakeLogs) -> None:
    logs.room = 0
    async with serving(logs) as harness, await harness.connect() as client:
        recompressing(harness, 0)
        await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * 300_000)))
        await until(lambda: harness.server.statistics().waiting_for_room == 1)
        logs.make_room(1)
        assert offsets(await client.receive()) == [(0, 0)]
        assert values(logs) == [b"x" * 300_000]


async def test_threads_look_into_batches_in_turn_by_address(logs: FakeLogs) -> None:
    async with serving(logs) as harness:
        recompressing(harness, 0)
        statistics = harness.server.statistics
        preparer = logs.at("t").preparer
        assert preparer is not None
        async with preparer.turns, preparer.turns:
            crowd = [await harness.connect() for _ in range(30)]
            for client in crowd:
                await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * 50_000)))
            await until(lambda: statistics().preparing == 30)
            port = harness.server.endpoints[0].port
            good = Client(await anyio.connect_tcp("127.0.0.1", port, local_host="127.0.0.2"))
            await good.send(PRODUCE, 9, produce(make_batch(1, b"good" * 50_000)))
            await until(lambda: statistics().preparing == 31)
        assert offsets(await good.receive())[0][1] < 10, "though all others came first"
        for client in crowd:
            assert offsets(await client.receive())[0][0] == 0
        for client in (good, *crowd):
            await client.__aexit__(None, None, None)


async def test_a_connection_lost_while_its_batch_waits_for_its_turn_leaves_nothing(logs: FakeLogs) -> None:
    async with serving(logs) as harness:
        recompressing(harness, 0)
        preparer = logs.at("t").preparer
        assert preparer is not None
        async with await harness.connect() as client, preparer.turns, preparer.turns:
            await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * 900_000)))
            await until(lambda: harness.server.statistics().preparing == 1)
            assert harness.server.statistics().waiting_for_room == 0
        await until(lambda: harness.server.statistics().connections == 0)
        await until(lambda: harness.server.statistics().preparing == 0)
        assert harness.allocator.used == 0
        assert not logs.at("t").batches


async def test_a_connection_lost_while_its_batch_is_recompressed_leaves_nothing(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    pack = Preparation._repacked

    def slow(self: Preparation, inflated_max: int) -> bytearray:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        return pack(self, inflated_max)

    monkeypatch.setattr(Preparation, "_repacked", slow)
    async with serving(logs) as harness:
        recompressing(harness, 0)
        async with await harness.connect() as client:
            await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * 900_000)))
            await until(begun.is_set)
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.allocator.used >= 900_000, "what a thread reads is nobody else's"
        go_on.set()
        await until(lambda: harness.server.statistics().preparing == 0)
        assert harness.allocator.used == 0
        assert not logs.at("t").batches


async def test_request_is_resumed_at_the_partition_that_found_no_room(logs: FakeLogs) -> None:
    logs.room = 1
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(PRODUCE, 9, produce(make_batch(2), make_batch(3)))
        await until(lambda: harness.server.statistics().waiting_for_room == 1)
        logs.make_room(1)
        assert offsets(await client.receive()) == [(0, 0), (0, 0)]
        assert [len(logs.at("t", at).batches) for at in range(2)] == [1, 1]


async def test_full_log_is_told_to_the_client_after_its_timeout(logs: FakeLogs) -> None:
    logs.room = 1
    async with serving(logs) as harness, await harness.connect() as client:
        response = await client.call(PRODUCE, 9, produce(make_batch(), make_batch(), timeout_ms=20))
        assert offsets(response) == [(0, 0), (ErrorCode.NOT_ENOUGH_REPLICAS, -1)]
        logs.make_room(1)
        assert offsets(await client.call(PRODUCE, 9, produce(make_batch()))) == [(0, 1)]
        assert harness.server.statistics().waiting_for_room == 0


async def test_connection_lost_while_it_waits_for_room_leaves_nothing(logs: FakeLogs) -> None:
    logs.room = 0
    async with serving(logs) as harness:
        async with await harness.connect() as client:
            await client.send(PRODUCE, 9, produce(make_batch(1, b"x" * 100_000)))
            await until(lambda: harness.server.statistics().waiting_for_room == 1)
        await until(lambda: harness.server.statistics().waiting_for_room == 0)
        assert harness.allocator.used == 0
        assert harness.server.statistics().connections == 0
        logs.make_room(5)
        assert not logs.at("t").batches


async def test_pipeline_depth_stops_reading(logs: FakeLogs) -> None:
    logs.durable_at_once = False
    async with serving(logs, pipeline_requests_max=4) as harness, await harness.connect() as client:
        for _ in range(10):
            await client.send(PRODUCE, 9, produce(make_batch()))
        await until(lambda: harness.server.statistics().carried_bytes)
        assert len(logs.at("t").batches) == 4
        for first in (0, 4, 8):
            await until(lambda first=first: len(logs.at("t").batches) >= min(first + 4, 10))
            assert len(logs.at("t").batches) == min(first + 4, 10)
            logs.at("t").commit()
        assert [offsets(await client.receive())[0][1] for _ in range(10)] == list(range(10))


async def test_acks_0_gets_no_response(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        for _ in range(3):
            await client.send(PRODUCE, 9, produce(make_batch(), acks=0), answered=False)
        assert (await client.call(ApiKey.LIST_OFFSETS, 7, latest())).topics[0].partitions[0].offset == 3


async def test_acks_0_ends_the_connection_on_error() -> None:
    async with serving() as harness, await harness.connect() as client:
        await client.send(PRODUCE, 9, produce(make_batch(), topic="unknown", acks=0), answered=False)
        assert await client.ends()


async def test_fetch_gets_what_was_produced(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        await client.call(PRODUCE, 9, produce(make_batch(3)))
        (partition,) = (await client.call(FETCH, 11, fetch())).responses[0].partitions
        assert bytes(partition.records) == logs.at("t").batches[0][2]
        assert partition.high_watermark == 3


async def test_parked_fetch_is_woken_by_an_append(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as one, await harness.connect() as other:
        await one.send(FETCH, 11, fetch(max_wait_ms=60_000))
        await until(lambda: logs.at("t").listeners)
        await other.call(PRODUCE, 9, produce(make_batch(3)))
        assert (await one.receive()).responses[0].partitions[0].records
        assert not logs.at("t").listeners


async def test_parked_fetch_ends_with_its_connection(logs: FakeLogs) -> None:
    async with serving(logs) as harness:
        async with await harness.connect() as client:
            await client.send(FETCH, 11, fetch(max_wait_ms=60_000))
            await until(lambda: logs.at("t").listeners)
        await until(lambda: not logs.at("t").listeners)


async def test_fetch_memory_is_held_until_the_bytes_have_left(logs: FakeLogs) -> None:
    for _ in range(20):
        logs.at("t").write(1, value=b"x" * 1_000_000)
    memory = logs.fetch_memory
    async with serving(logs) as harness, await harness.connect() as client:
        request = fetch(partition_max_bytes=1 << 30)
        await client.send(FETCH, 11, request)
        await until(lambda: harness.server.statistics().sent_bytes > 20_000_000)
        assert memory.used > 20_000_000
        response = await client.receive()
        assert len(response.responses[0].partitions[0].records) > 20_000_000
        await until(lambda: memory.used == 0)


async def test_client_that_does_not_read_is_not_served_further(logs: FakeLogs) -> None:
    for _ in range(20):
        logs.at("t").write(1, value=b"x" * 1_000_000)
    async with serving(logs) as harness, await harness.connect() as client:
        request = fetch(partition_max_bytes=1 << 30)
        await client.send_raw(b"".join(client.frame(FETCH, 11, request) for _ in range(5)))
        await until(lambda: harness.server.statistics().sent_bytes > 20_000_000)
        for _ in range(5):
            await anyio.wait_all_tasks_blocked()
        assert harness.server.statistics().sent_bytes < 30_000_000
        for _ in range(5):
            assert (await client.receive()).responses[0].partitions[0].high_watermark == 20


async def test_client_that_takes_nothing_gives_way_to_those_who_wait(logs: FakeLogs) -> None:
    for _ in range(20):
        logs.at("t").write(1, value=b"x" * 1_000_000)
    clock = FakeClock()
    async with serving(logs, clock=clock) as harness, await harness.connect() as client:
        await client.send(FETCH, 11, fetch(partition_max_bytes=1 << 30))
        await until(lambda: harness.server.statistics().sent_bytes > 20_000_000)
        await harness.until_clients_are_full()
        harness.server.connections.sweep()
        clock.now_s += 60
        harness.server.connections.sweep()
        assert harness.server.statistics().connections == 1, "nobody waits"
        logs.fetch_memory.shares.limit = 20_000_000
        async with await harness.connect() as other:
            response = await other.call(FETCH, 11, fetch())
            assert response.responses[0].partitions[0].records
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.server.statistics().connections_closed_for_others == 1
        assert logs.fetch_memory.used == 0


async def test_client_that_never_reads_is_cut_off(logs: FakeLogs) -> None:
    for _ in range(20):
        logs.at("t").write(1, value=b"x" * 1_000_000)
    clock = FakeClock()
    async with serving(logs, clock=clock, stalled_write_timeout_ms=60_000) as harness:
        async with await harness.connect() as client:
            await client.send(FETCH, 11, fetch(partition_max_bytes=1 << 30))
            await until(lambda: harness.server.statistics().sent_bytes > 20_000_000)
            await harness.until_clients_are_full()
            clock.now_s += 59
            harness.server.connections.sweep()
            assert harness.server.statistics().connections == 1
            clock.now_s += 2
            harness.server.connections.sweep()
            await until(lambda: harness.server.statistics().connections == 0)
            assert logs.fetch_memory.used == 0


async def test_unknown_version_of_api_versions_gets_a_version_0_answer() -> None:
    async with serving() as harness, await harness.connect() as client:
        await client.send_raw(struct.pack(">ihhihB", 11, ApiKey.API_VERSIONS, 99, 5, -1, 0))
        size = struct.unpack(">i", await client._exactly(4))[0]
        correlation_id, message = decode_response(ApiKey.API_VERSIONS, 0, await client._exactly(size))
        assert correlation_id == 5
        assert isinstance(message, ApiVersionsResponse)
        assert message.error_code == ErrorCode.UNSUPPORTED_VERSION
        assert [(key.api_key, key.min_version, key.max_version) for key in message.api_keys] == [(18, 0, 4)]
        await client.call(
            ApiKey.API_VERSIONS, 4, ApiVersionsRequest(client_software_name="a", client_software_version="1")
        )


async def test_bytes_behind_a_request_are_ignored_as_in_kafka() -> None:
    """What librdkafka 2.16 sends to list all topics ends in three bytes too many."""
    async with serving() as harness, await harness.connect() as client:
        body = bytes.fromhex("00000000010000")
        client._sent.append((ApiKey.METADATA, 13, 5))
        await client.send_raw(struct.pack(">ihhihb", 11 + len(body), 3, 13, 5, -1, 0) + body)
        assert [topic.name for topic in (await client.receive()).topics] == ["t"]


async def test_names_that_are_not_utf8_are_answered_as_in_kafka() -> None:
    """Kafka reads U+FFFD for what isn't UTF-8, answers with it, and goes on."""
    async with serving() as harness, await harness.connect() as client:
        client._sent.append((ApiKey.METADATA, 1, 5))
        header = struct.pack(">hhih", 3, 1, 5, 2) + b"c\xff"
        body = struct.pack(">ih", 1, 2) + b"t\xff"
        await client.send_raw(struct.pack(">i", len(header + body)) + header + body)
        (topic,) = (await client.receive()).topics
        assert (topic.name, topic.error_code) == ("t\ufffd", ErrorCode.INVALID_TOPIC_EXCEPTION)
        assert harness.server.statistics().connections_closed_for_fault == 0


BAD_FRAMES = {
    "negative length": struct.pack(">i", -1),
    "absurd length": struct.pack(">i", 0x7FFFFFFF),
    "longer than allowed": struct.pack(">i", 100 * 1024 * 1024 + 1),
    "shorter than a header": struct.pack(">ihh", 4, 3, 0),
    "unknown api": struct.pack(">ihhih", 10, 4242, 0, 1, -1),
    "large frame of an unknown api": struct.pack(">ihhih", 50_000_000, 4242, 0, 1, -1),
    "large frame of a small api": struct.pack(">ihhih", 50_000_000, 3, 0, 1, -1) + b"x" * 70_000,
    "unsupported version": struct.pack(">ihhih", 10, 3, 77, 1, -1),
    "produce that is too old": struct.pack(">ihhih", 10, 0, 2, 1, -1),
    "client id longer than the frame": struct.pack(">ihhih", 10, 3, 0, 1, 999),
    "array longer than the frame": struct.pack(">ihhihi", 14, 3, 0, 1, -1, 0x7FFFFFF0),
    "text that can't be sent back": struct.pack(">ihhihih", 30_016, 3, 1, 1, -1, 1, 30_000)
    + b"\xff" * 30_000,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls hello": bytes.fromhex("16030100c8010000c40303"),
}


@pytest.mark.parametrize(
    ("api_key", "version", "said"),
    [
        (8, 1, "the client is too old, use a newer one: api=OffsetCommit versions=2-10 version=1"),
        (0, 2, "the client is too old, use a newer one: api=Produce versions=3-13 version=2"),
        (3, 99, "the client is too new, use an older one: api=Metadata versions=0-13 version=99"),
        (4242, 1, "there is no such api here: api_key=4242 version=1"),
    ],
)
async def test_a_client_that_is_not_served_is_told_of_by_name_and_with_what_to_do(
    caplog: pytest.LogCaptureFixture, api_key: int, version: int, said: str
) -> None:
    async with serving() as harness, await harness.connect() as client:
        await client.send_raw(struct.pack(">ihhih", 16, api_key, version, 1, 6) + b"sarama")
        assert await client.ends()
    (record,) = caplog.records
    assert said in record.getMessage()
    assert "client_id='sarama'" in record.getMessage() or api_key == ApiKey.PRODUCE


async def test_a_client_that_speaks_another_protocol_is_told_of_with_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    asked = struct.pack(">ihhih", 10, ApiKey.API_VERSIONS, 0, 1, -1)
    async with serving() as harness:
        for data in (hello, b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n\0\r\nQUIT\n!", b"FTP!" * 4, asked + hello):
            async with await harness.connect() as client:
                await client.send_raw(data)
                if data.startswith(asked):  # what was right is answered before that
                    await client.receive_raw(int.from_bytes(await client.receive_raw(4)))
                assert await client.ends()
    said = [record.getMessage().split(": length=")[0] for record in caplog.records]
    assert ["TLS" in each and "security.protocol=PLAINTEXT" in each for each in said] == [True, *[False] * 4]
    assert ["HTTP" in each for each in said] == [False, True, False, False, False]
    assert ["PROXY" in each for each in said] == [False, False, True, False, False]
    assert {each.endswith("frame length is out of range") for each in said[3:]} == {True}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_bad_frame_ends_the_connection_with_one_line(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with serving() as harness, await harness.connect() as client:
        await client.send_raw(data)
        assert await client.ends()
        assert harness.server.statistics().connections_closed_for_fault == 1
        async with await harness.connect() as other:
            await other.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


async def test_request_of_a_million_empty_partitions_is_not_even_decoded() -> None:
    async with serving() as harness, await harness.connect() as client:
        partitions = 1_000_000
        body = (
            struct.pack(">hhiih1si", -1, 1, 1000, 1, 1, b"t", partitions)
            + struct.pack(">ii", 0, 0) * partitions
        )
        await client.send_raw(struct.pack(">ihhih", 10 + len(body), 0, 8, 1, -1))
        await client.send_raw(body)
        assert await client.ends()
        assert harness.server.statistics().connections_closed_for_fault == 1
        assert harness.server.core.requests_by_api[PRODUCE] == 0
        assert harness.allocator.used == 0


async def test_lines_about_bad_input_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with serving(clock=clock) as harness:
        for _ in range(30):
            async with await harness.connect() as client:
                await client.send_raw(struct.pack(">i", -1))
                assert await client.ends()
        assert len(caplog.records) == 5
        clock.now_s += 60
        async with await harness.connect() as client:
            await client.send_raw(struct.pack(">i", -1))
            assert await client.ends()
        assert "25 more" in caplog.records[-1].message


async def test_fuzzed_frames_never_reach_the_console(caplog: pytest.LogCaptureFixture) -> None:
    """Valid frames with random damage: answered or cut off, never a traceback, never a server that is gone."""
    rng = random.Random(7)
    async with serving() as harness:
        harness.logs.fail_with = UnavailableError("storage is away")
        for _ in range(150):
            async with await harness.connect() as client:
                kind = rng.randrange(4)
                if kind == 0:
                    data = client.frame(PRODUCE, rng.randrange(3, 13), produce(make_batch(2), make_batch()))
                elif kind == 1:
                    data = client.frame(FETCH, rng.randrange(4, 13), fetch())
                elif kind == 2:
                    data = client.frame(ApiKey.METADATA, rng.randrange(0, 13), MetadataRequest(topics=[]))
                else:
                    data = client.frame(ApiKey.LIST_OFFSETS, rng.randrange(1, 11), latest())
                damaged = bytearray(data)
                for _ in range(rng.randrange(1, 6)):
                    damaged[rng.randrange(4, len(damaged))] = rng.randrange(256)
                if rng.random() < 0.3:
                    del damaged[rng.randrange(8, len(damaged)) :]
                await client.send_raw(bytes(damaged))
                await client.finish_sending()
                while not await client.ends():
                    pass
        await until(lambda: harness.server.statistics().connections == 0)
        async with await harness.connect() as client:
            await client.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
        assert harness.server.statistics().handler_errors == 0
        assert harness.allocator.used == 0
    assert all(record.exc_info is None for record in caplog.records)


async def test_a_thousand_idle_and_half_open_connections_hold_almost_nothing() -> None:
    clock = FakeClock()
    async with serving(clock=clock, half_open_timeout_ms=30_000) as harness:
        clients: list[Client] = []
        for at in range(1000):
            client = await harness.connect()
            clients.append(client)
            if at % 2:
                await client.send_raw(struct.pack(">ihh", 60_000_000, 0, 9))
        await until(lambda: harness.server.statistics().carried_bytes == 500 * 8)
        assert harness.server.statistics().connections == 1000
        assert harness.allocator.used == 0
        clock.now_s += 31
        harness.server.connections.sweep()
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.server.statistics().connections_closed_for_timeout == 1000
        for client in clients:
            await client.__aexit__(None, None, None)


async def test_a_sweep_of_many_connections_lets_others_have_their_turn(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    looked: list[object] = []
    real = Connection.probe

    def probe(connection: Connection, now: float) -> None:
        looked.append(connection)
        real(connection, now)

    async with serving(logs, clock=clock, idle_timeout_ms=60_000) as harness:
        clients = [await harness.connect() for _ in range(250)]
        await until(lambda: harness.server.statistics().connections == 250)
        monkeypatch.setattr(Connection, "probe", probe)
        clock.now_s += 61
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(harness.server.connections._sweep_in_turns)
            seen = [0]
            while seen[-1] < 250:
                await anyio.lowlevel.checkpoint()
                seen.append(len(looked))
        assert max(after - before for before, after in itertools.pairwise(seen)) <= 100
        await until(lambda: harness.server.statistics().connections == 0)
        assert len(set(looked)) == 250
        for client in clients:
            await client.__aexit__(None, None, None)


async def test_slow_large_frame_may_take_its_time_but_not_stop(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, half_open_timeout_ms=30_000) as harness:
        slow, stopped = await harness.connect(), await harness.connect()
        for client in (slow, stopped):
            frame = client.frame(PRODUCE, 9, produce(make_batch(1, b"x" * 1_000_000)))
            await client.send_raw(frame[:500_000])
        await until(lambda: harness.server.core.received_bytes == 1_000_000)
        clock.now_s += 50
        harness.server.connections.sweep()
        assert harness.server.statistics().connections == 2
        await slow.send_raw(frame[500_000:])
        assert offsets(await slow.receive()) == [(0, 0)]
        clock.now_s += 20
        harness.server.connections.sweep()
        assert await stopped.ends()
        await until(lambda: harness.server.statistics().connections == 1)
        for client in (slow, stopped):
            await client.__aexit__(None, None, None)


async def test_idle_connection_is_closed_but_not_one_that_waits_for_its_answer(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with (
        serving(logs, idle_timeout_ms=60_000, clock=clock) as harness,
        await harness.connect() as idle,
        await harness.connect() as parked,
    ):
        await idle.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
        await parked.send(FETCH, 11, fetch(max_wait_ms=300_000))
        await until(lambda: logs.at("t").listeners)
        clock.now_s += 59
        harness.server.connections.sweep()
        assert harness.server.statistics().connections == 2
        clock.now_s += 2
        harness.server.connections.sweep()
        assert await idle.ends()
        logs.at("t").write(1)
        assert (await parked.receive()).responses


async def test_connections_beyond_the_maximum_are_refused() -> None:
    async with serving(connections_max=2) as harness:
        async with await harness.connect() as one, await harness.connect() as two:
            await one.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            await two.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            async with await harness.connect() as three:
                assert await three.ends()
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.server.statistics().connections_rejected == 1


def _failing(key: int, error: Exception) -> list[Api]:
    async def handler(request: Message, context: RequestContext) -> Message:
        await anyio.lowlevel.checkpoint()
        raise error

    def nowait(request: Message, context: RequestContext) -> Message | None:
        raise error

    api = apis()[key]
    return [replace(api, handler=handler, nowait=None), replace(api, handler=None, nowait=nowait)]


@pytest.mark.parametrize("api", _failing(ApiKey.INIT_PRODUCER_ID, ZeroDivisionError("oops")))
async def test_bug_in_a_handler_is_logged_and_answered(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(handlers=[api]) as harness, await harness.connect() as client:
        request = InitProducerIdRequest(transactional_id=None)
        response = await client.call(ApiKey.INIT_PRODUCER_ID, 3, request)
        assert response.error_code == ErrorCode.UNKNOWN_SERVER_ERROR
        assert harness.server.statistics().handler_errors == 1
    (record,) = caplog.records
    assert record.exc_info is not None


@pytest.mark.parametrize("api", _failing(ApiKey.INIT_PRODUCER_ID, UnavailableError("storage is away")))
async def test_operating_error_of_a_handler_is_answered_without_traceback(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(handlers=[api]) as harness, await harness.connect() as client:
        response = await client.call(ApiKey.INIT_PRODUCER_ID, 3, InitProducerIdRequest(transactional_id=None))
        assert response.error_code == ErrorCode.KAFKA_STORAGE_ERROR
    (record,) = caplog.records
    assert record.exc_info is None


@pytest.mark.parametrize("api", _failing(ApiKey.METADATA, ZeroDivisionError("oops")))
async def test_bug_without_a_place_in_the_response_ends_the_connection(api: Api) -> None:
    async with serving(handlers=[api]) as harness, await harness.connect() as client:
        await client.send(ApiKey.METADATA, 5, MetadataRequest(topics=[]))
        assert await client.ends()
        assert harness.server.statistics().handler_errors == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_failed_handler_gives_its_memory_back(logs: FakeLogs, waits: bool) -> None:
    def nowait(request: Message, context: RequestContext) -> Message | None:
        context.charges.append(logs.fetch_memory.charge_nowait(100, context.client.outgoing))
        if waits:
            return None
        raise ZeroDivisionError("oops")

    async def handler(request: Message, context: RequestContext) -> Message:
        raise ZeroDivisionError("oops")

    api = replace(apis()[FETCH], nowait=nowait, handler=handler)
    async with serving(logs, handlers=[api]) as harness, await harness.connect() as client:
        response = await client.call(FETCH, 11, fetch())
        assert response.error_code == ErrorCode.UNKNOWN_SERVER_ERROR
        assert logs.fetch_memory.used == 0


async def test_error_of_the_body_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving():
            raise ZeroDivisionError("oops")


async def test_port_in_use_is_one_sentence() -> None:
    async with serving() as harness:
        port = harness.server.endpoints[0].port
        other = Server(
            listeners=[ListenerSettings(port=port)],
            api=harness.api,
            apis={},
            allocator=harness.server.core.allocator,
        )
        with pytest.raises(UnavailableError, match=f"can't listen.*port={port}"):
            async with other:
                pass


async def test_bug_in_the_log_fails_that_partition_only(
    logs: FakeLogs, caplog: pytest.LogCaptureFixture
) -> None:
    logs.at("t", 0).fail_with = ZeroDivisionError("oops")
    async with serving(logs) as harness, await harness.connect() as client:
        response = await client.call(PRODUCE, 9, produce(make_batch(), make_batch()))
        assert offsets(response) == [(ErrorCode.UNKNOWN_SERVER_ERROR, -1), (0, 0)]
        assert "oops" not in (response.responses[0].partition_responses[0].error_message or "")
    assert caplog.records[0].exc_info is not None


async def test_draining_answers_what_is_in_flight_and_parked(logs: FakeLogs) -> None:
    logs.durable_at_once = False
    received: list[Any] = []

    async def receive(client: Client) -> None:
        received.append(await client.receive())
        assert await client.ends()

    async with anyio.create_task_group() as tasks:
        async with serving(logs) as harness:
            producer, consumer, idle = [await harness.connect() for _ in range(3)]
            await producer.send(PRODUCE, 9, produce(make_batch()))
            await consumer.send(FETCH, 11, fetch(max_wait_ms=300_000))
            await until(lambda: logs.at("t").pending and logs.at("t").listeners)
            tasks.start_soon(receive, producer)
            tasks.start_soon(receive, consumer)
            harness.api.draining.add_listener(logs.at("t").commit)  # the WAL finishes while the server drains
        assert await idle.ends()
    assert len(received) == 2
    assert not logs.at("t").listeners
    for client in (producer, consumer, idle):
        await client.__aexit__(None, None, None)


async def test_draining_has_a_deadline(logs: FakeLogs) -> None:
    logs.durable_at_once = False
    async with serving(logs, drain_timeout_ms=20) as harness:
        client = await harness.connect()
        await client.send(PRODUCE, 9, produce(make_batch()))
        await until(lambda: logs.at("t").pending)
    assert await client.ends()
    logs.at("t").commit()  # late answers meet nobody, and that is all
    await client.__aexit__(None, None, None)


async def test_a_stop_does_not_wait_for_who_does_not_take_its_answer(logs: FakeLogs) -> None:
    for _ in range(20):
        logs.at("t").write(1, value=b"x" * 1_000_000)
    clock = FakeClock()
    async with serving(logs, clock=clock, drain_timeout_ms=3_600_000) as harness:
        client = await harness.connect()
        await client.send(FETCH, 11, fetch(partition_max_bytes=1 << 30))
        await until(lambda: harness.server.statistics().sent_bytes > 20_000_000)
        await harness.until_clients_are_full()

        def pass_time() -> None:
            clock.now_s += 2

        harness.api.draining.add_listener(pass_time)
    assert harness.server.statistics().connections == 0
    await client.__aexit__(None, None, None)


async def test_a_stop_does_not_wait_for_the_request_of_a_client_that_is_gone() -> None:
    async def handler(request: Message, context: RequestContext) -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    api = replace(apis()[ApiKey.INIT_PRODUCER_ID], handler=handler, nowait=None)
    async with serving(handlers=[api], drain_timeout_ms=3_600_000) as harness:
        async with await harness.connect() as client:
            request = InitProducerIdRequest(transactional_id=None)
            behind = client.frame(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            # what comes behind a request that is handled isn't read, so it isn't noticed that nothing will
            await client.send_raw(client.frame(ApiKey.INIT_PRODUCER_ID, 3, request) + behind)
            await until(lambda: harness.server.core.carried_bytes == len(behind))
        assert harness.server.statistics().connections == 1
    assert harness.server.statistics().connections == 0


async def test_half_closed_connection_gets_its_answers(logs: FakeLogs) -> None:
    logs.durable_at_once = False
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(PRODUCE, 9, produce(make_batch()))
        await client.finish_sending()
        await until(lambda: logs.at("t").pending)
        logs.at("t").commit()
        assert offsets(await client.receive()) == [(0, 0)]
        assert await client.ends()
