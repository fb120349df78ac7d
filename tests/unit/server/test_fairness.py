"""One client, or one address, can't take what others need: memory, the loop, connections."""

from __future__ import annotations

import asyncio
import itertools
import math
import struct
from typing import Any
from zlib import crc32

import anyio
import pytest
from tests.unit.api.fakes import FakeClock, FakeLogs, make_batch
from tests.unit.server.harness import Client, Harness, offsets, produce, serving, until
from tests.unit.server.test_any_order import Transport

from penstock.api.declaration import Api
from penstock.server import Server
from penstock.server.connection import Connection
from penstock.time_shares import NAMES, WINDOW_S
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.list_groups import ListGroupsRequest, ListGroupsResponse
from penstock.wire.messages.metadata import MetadataRequest
from penstock.wire.registry import encode_request

pytestmark = pytest.mark.anyio

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    param: tuple[str, dict[str, bool]] = request.param
    return param


@pytest.fixture
def logs() -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 2)
    return logs


def announcement(size: int) -> bytes:
    """The first bytes of a Produce of ``size`` bytes."""
    return struct.pack(">ihhih", size, ApiKey.PRODUCE, 9, 1, -1)


async def crowd(harness: Harness, count: int, data: bytes) -> list[Client]:
    """Clients that sent ``data`` and stopped."""
    before = harness.server.core.received_bytes
    clients = [await harness.connect() for _ in range(count)]
    for client in clients:
        await client.send_raw(data)
    await until(lambda: harness.server.core.received_bytes == before + count * len(data))
    return clients


async def leave(clients: list[Client]) -> None:
    for client in clients:
        await client.__aexit__(None, None, None)


async def test_an_announced_request_takes_no_more_memory_than_its_bytes(logs: FakeLogs) -> None:
    async with serving(logs, memory_bytes=128 * MIB, receive_bytes_max=64 * MIB) as harness:
        bad = await crowd(harness, 20, announcement(90 * MIB))
        assert harness.allocator.used <= 20 * 16 * KIB + 20 * 64
        async with await harness.connect() as good:
            for at in range(20):
                answer = await good.call(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 200_000)))
                assert offsets(answer) == [(0, at)]
        assert harness.server.statistics().connections_closed_for_others == 0, "there is room for all"
        await leave(bad)


async def test_who_holds_memory_and_stops_gives_way_to_who_needs_it(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, receive_bytes_max=4 * MIB) as harness:
        bad = await crowd(harness, 40, announcement(MIB) + bytes(10_000))
        clock.now_s += 2
        async with await harness.connect() as good:
            for at in range(5):
                answer = await good.call(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 900_000)))
                assert offsets(answer) == [(0, at)]
        statistics = harness.server.statistics()
        assert 0 < statistics.connections_closed_for_others <= 40
        assert statistics.handler_errors == 0
        await leave(bad)
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.server.statistics().receive_bytes == 0


async def test_who_has_sent_what_the_broker_did_not_come_to_is_not_stuck(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, receive_bytes_max=MIB) as harness, await harness.connect() as good:
        frame = good.frame(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 100_000)))
        await good.send_raw(frame[:10_000])
        await until(lambda: harness.server.core.received_bytes == 10_000)
        clock.now_s += 5
        good.send_now(frame[10_000:])  # the loop doesn't know of it yet
        assert (
            next(harness.server.connections.close_stuck(harness.server.core.incoming, None), "nobody")
            == "nobody"
        )
        assert offsets(await good.receive()) == [(0, 0)]


async def test_a_produce_that_waits_for_us_counts_and_is_not_stuck(logs: FakeLogs) -> None:
    clock = FakeClock()
    logs.room = 0
    async with (
        serving(logs, clock=clock, receive_bytes_max=MIB, memory_bytes=10_000) as harness,
        await harness.connect() as good,
    ):
        core, connections = harness.server.core, harness.server.connections
        others = harness.allocator.allocate_nowait(5_000, "append")
        await good.send(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 20_000)))
        await until(lambda: harness.server.statistics().waiting_for_room == 1)
        assert core.incoming.used > 20_000
        clock.now_s += 5
        assert next(connections.close_stuck(core.incoming, None), "nobody") == "nobody"
        others.release()
        await until(lambda: core.incoming.used == 0)
        assert core.waiting_for_room == 1, "its records are the log's, which has no room"
        logs.make_room(1)
        assert offsets(await good.receive()) == [(0, 0)]


async def test_who_loses_its_place_gives_back_a_produce_that_waits(logs: FakeLogs) -> None:
    logs.room = 0
    async with serving(logs, memory_bytes=10_000) as harness, await harness.connect() as client:
        harness.allocator.allocate_nowait(5_000, "append")
        await client.send(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 20_000)))
        await until(lambda: harness.server.statistics().waiting_for_room == 1)
        (connection,) = harness.server.connections
        connection.lose_place()
        assert harness.server.core.incoming.used == 0
        assert harness.server.core.carried_bytes == 0
        await until(lambda: harness.server.statistics().waiting_for_room == 0)


async def test_who_stops_is_left_in_peace_while_nobody_needs_its_memory(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, receive_bytes_max=64 * MIB) as harness:
        slow = await crowd(harness, 5, announcement(MIB) + bytes(100 * KIB))
        clock.now_s += 25
        async with await harness.connect() as good:
            await good.call(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 200_000)))
        await until(lambda: harness.server.statistics().connections == 5)
        harness.server.connections.sweep()
        assert harness.server.statistics().connections == 5
        await leave(slow)


async def test_a_slow_request_that_moves_is_never_too_late(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with (
        serving(logs, clock=clock, half_open_timeout_ms=1000) as harness,
        await harness.connect() as slow,
    ):
        frame = slow.frame(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 50_000)))
        for at in range(0, len(frame), 5000):
            await slow.send_raw(frame[at : at + 5000])
            await until(lambda at=at: harness.server.core.received_bytes == min(len(frame), at + 5000))
            clock.now_s += 0.9
            harness.server.connections.sweep()
        assert offsets(await slow.receive()) == [(0, 0)]


async def test_halves_of_small_requests_count_and_give_way_too(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, receive_bytes_max=2 * MIB) as harness:
        bad = await crowd(harness, 100, announcement(31_000) + bytes(30_000))
        assert harness.server.statistics().receive_bytes >= 100 * 30_000
        clock.now_s += 2
        harness.server.connections.relieve()
        assert 0 < harness.server.statistics().connections_closed_for_others <= 4, "a few at a time"
        await until(lambda: harness.server.statistics().receive_bytes <= 2 * MIB)
        assert harness.server.statistics().connections_closed_for_others >= 30
        await leave(bad)


async def test_who_finds_no_room_closes_only_a_few_of_those_that_are_stuck(logs: FakeLogs) -> None:
    """The others follow some at a time: a hundred at once are as long as a hundred requests."""
    clock = FakeClock()
    async with serving(logs, clock=clock, receive_bytes_max=2 * MIB) as harness:
        bad = await crowd(harness, 100, announcement(31_000) + bytes(30_000))
        clock.now_s += 2
        limiter = harness.server.core.incoming
        member = limiter.join("other", next(iter(harness.server.connections)))
        assert not limiter.try_take(member, MIB), "more than those few make room for"
        assert 0 < harness.server.statistics().connections_closed_for_others <= 4
        await until(lambda: harness.server.statistics().receive_bytes <= 2 * MIB)
        limiter.leave(member)
        await leave(bad)


async def test_thousands_of_requests_of_one_client_leave_turns_to_others(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as bad, await harness.connect() as good:
        many = 5000
        cheap = bad.frame(ApiKey.API_VERSIONS, 0, ApiVersionsRequest(), answered=False)
        await bad.send_raw(cheap * many)
        await until(lambda: harness.server.core.requests_by_api[ApiKey.API_VERSIONS] > 0)
        await good.call(ApiKey.PRODUCE, 9, produce(make_batch()))
        assert harness.server.core.requests_by_api[ApiKey.API_VERSIONS] < many
        await until(lambda: harness.server.core.requests_by_api[ApiKey.API_VERSIONS] == many)
        assert harness.server.statistics().handler_errors == 0


async def test_producing_fetching_and_the_rest_have_their_own_parts_of_an_addresss_time(
    logs: FakeLogs,
) -> None:
    """A connection counts among those that asked for the same kind of work last."""
    asked = FetchTopic(topic="t", partitions=[FetchPartition(partition=0, partition_max_bytes=1)])
    fetch = FetchRequest(max_wait_ms=0, min_bytes=0, max_bytes=1, topics=[asked])
    kinds, names = [], set[int]()
    async with serving(logs) as harness, await harness.connect() as client:
        (connection,) = harness.server.connections
        assert isinstance(connection, Connection)
        requests = [
            (ApiKey.PRODUCE, 9, produce(make_batch())),
            (ApiKey.METADATA, 9, MetadataRequest(topics=[])),
            (ApiKey.FETCH, 11, fetch),
            (ApiKey.LIST_GROUPS, 4, ListGroupsRequest()),
            (ApiKey.PRODUCE, 9, produce(make_batch())),  # the short way: its head is known
        ]
        for api_key, version, request in requests:
            await client.call(api_key, version, request)
            kinds.append(connection.time.kind)
            names.add(connection.time.name)
    assert names == {crc32((connection.client.client_id or "").encode()) % NAMES}, (
        "the client id, in each way to be served"
    )
    producing, metadata, fetching, groups, short = kinds
    assert len({producing, metadata, fetching}) == 3
    assert groups == metadata
    assert short == producing


async def test_requests_behind_one_that_a_handler_answers_wait_for_turns_too(logs: FakeLogs) -> None:
    running = handled = most = 0

    async def handle(_request: Any, _context: Any) -> ListGroupsResponse:
        nonlocal running, handled, most
        running, handled = running + 1, handled + 1
        if 100 < handled < 300:  # all of them have begun, and none has finished
            most = max(most, running)
        asyncio.get_running_loop().call_soon(ended)
        return ListGroupsResponse(groups=[])

    def ended() -> None:
        nonlocal running
        running -= 1

    api = Api(key=ApiKey.LIST_GROUPS, needs=(), handler=handle)
    async with serving(logs, handlers=[api]) as harness:
        clients = [await harness.connect() for _ in range(20)]
        other = await harness.connect()
        for client in clients:
            client.send_now(client.frame(ApiKey.LIST_GROUPS, 4, ListGroupsRequest()) * 20)
        other.send_now(other.frame(ApiKey.API_VERSIONS, 0, ApiVersionsRequest(), answered=False) * 5000)
        await until(lambda: handled == 400)
        assert 0 < most <= 2, "one in a slice"
        await leave([*clients, other])


async def test_a_long_request_is_answered_like_a_short_one(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        topics = FetchTopic(
            topic="t", partitions=[FetchPartition(partition=at, fetch_offset=0) for at in range(5000)]
        )
        long = FetchRequest(max_wait_ms=0, min_bytes=0, max_bytes=MIB, topics=[topics])
        await client.send(ApiKey.FETCH, 11, long)
        await client.send(ApiKey.METADATA, 9, MetadataRequest(topics=None))
        response = await client.receive()
        assert len(response.responses[0].partitions) == 5000
        assert [topic.name for topic in (await client.receive()).topics] == ["t"]
        assert harness.allocator.used == 0
        assert harness.server.core.handling.used == 0


async def test_a_long_request_that_is_malformed_ends_the_connection_with_nothing_held(logs: FakeLogs) -> None:
    async with serving(logs) as harness, await harness.connect() as client:
        ask = FindCoordinatorRequest(key_type=0, coordinator_keys=["group"] * 5000)
        frame = bytearray(client.frame(ApiKey.FIND_COORDINATOR, 4, ask))
        frame[-20:] = b"\xff" * 20
        await client.send_raw(bytes(frame))
        assert await client.ends()
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.server.statistics().connections_closed_for_fault == 1
        assert (harness.allocator.used, harness.server.core.handling.used) == (0, 0)


async def test_long_requests_wait_for_their_share_and_short_ones_dont(logs: FakeLogs) -> None:
    async with serving(logs, receive_bytes_max=4 * MIB) as harness, await harness.connect() as other:
        partitions = [FetchPartition(partition=at, fetch_offset=0) for at in range(1500)]
        topics = [FetchTopic(topic="nowhere", partitions=partitions)]
        parked = FetchRequest(max_wait_ms=300_000, min_bytes=1, max_bytes=MIB, topics=topics)
        for partition in partitions:
            partition.partition = 0
        parked.topics[0].topic = "t"
        bad = [await harness.connect() for _ in range(6)]
        for client in bad:
            # elements of 33 bytes each, so that decoding finds no more to count
            await client.send(ApiKey.FETCH, 12, parked)
        await until(lambda: harness.server.core.handling.waiting > 0)
        await other.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
        await other.call(ApiKey.PRODUCE, 9, produce(make_batch(), partition=1))
        assert harness.server.core.handling.used <= 2 * MIB
        await leave(bad)
        await until(lambda: harness.server.core.handling.used == 0)


async def test_a_large_request_counts_as_its_addresss_until_it_is_decoded(logs: FakeLogs) -> None:
    """What waits for its turn to be decoded is as much memory as what isn't whole."""
    async with serving(logs, receive_bytes_max=4 * MIB) as harness:
        core = harness.server.core
        taken = core.handling.join("other", None)
        core.handling.take(taken, core.handling.limit)
        topics = [FetchTopic(topic="t", partitions=[FetchPartition(partition=0)] * 1500)]
        bad = [await harness.connect() for _ in range(3)]
        for count, client in enumerate(bad, 1):
            frame = client.frame(ApiKey.FETCH, 11, FetchRequest(max_wait_ms=0, min_bytes=0, topics=topics))
            before = core.received_bytes
            await client.send_raw(frame[:20])
            await until(lambda before=before: core.received_bytes == before + 20)
            await client.send_raw(frame[20:])  # comes into memory of its own, as more than a read has
            await until(lambda count=count: core.handling.waiting == count)
        assert core.incoming.used == len(bad) * (len(frame) - 4)
        assert not core.incoming.shares.victims(math.inf), "it's our turn"
        core.handling.leave(taken)
        for client in bad:
            await client.receive()
        assert core.incoming.used == 0
        await leave(bad)


async def test_one_address_leaves_connections_for_others(logs: FakeLogs) -> None:
    async with serving(logs, connections_per_address_max=2) as harness:
        async with await harness.connect() as one, await harness.connect() as two:
            for client in (one, two):
                await client.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            async with await harness.connect() as three:
                assert await three.ends()
            await one.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
        await until(lambda: harness.server.statistics().connections == 0)
        assert harness.server.statistics().connections_rejected == 1


async def test_a_connection_that_asks_nothing_gives_its_place_to_a_new_one(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, connections_max=3) as harness, await harness.connect() as busy:
        await busy.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
        silent = await crowd(harness, 2, b"\0\0")
        async with await harness.connect() as early:
            assert await early.ends(), "everybody has a moment"
        clock.now_s += 3
        async with await harness.connect() as late:
            await late.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            await busy.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            assert await silent[0].ends()
        await leave(silent)


async def test_the_connection_that_is_idle_longest_gives_its_place_to_a_new_one(logs: FakeLogs) -> None:
    clock = FakeClock()
    async with serving(logs, clock=clock, connections_max=2) as harness:
        async with await harness.connect() as idle, await harness.connect() as busy:
            for client in (idle, busy):
                await client.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            clock.now_s += 11
            await busy.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            async with await harness.connect() as late:
                await late.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
                assert await idle.ends()
                await busy.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())


class _Newcomer:
    """A connection whose client has sent all of a large frame: the system has as much of it as is wanted."""

    def __init__(self, server: Server, data: bytes) -> None:
        self.transport = Transport()
        self.connection = Connection(server.core, server.connections, server.endpoints[0])
        self.transport.connection = self.connection
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.data = memoryview(data)

    def receive(self) -> None:
        """As libuv does: again and again while there are bytes and they are wanted."""
        while self.transport.is_reading and self.data:
            buffer = self.connection.get_buffer(-1)
            size = min(len(buffer), len(self.data))
            buffer[:size] = self.data[:size]
            self.data = self.data[size:]
            self.connection.buffer_updated(size)


async def _receive_all(harness: Harness, crowd: list[_Newcomer]) -> None:
    """Each receives all that it has, the crowd half a mebibyte at most in one turn of the loop; then it goes."""
    core = harness.server.core
    while any(one.data for one in crowd):
        before = core.received_bytes
        for one in crowd:
            one.receive()
        assert core.received_bytes - before <= MIB // 2
        await anyio.lowlevel.checkpoint()
    for one in crowd:
        one.connection.connection_lost(None)
    assert harness.allocator.used == 0


async def test_newcomers_receive_little_into_fresh_memory_in_one_turn_of_the_loop(logs: FakeLogs) -> None:
    """A crowd that sends megabytes holds others up for a piece at a time, and each gets on."""
    async with serving(logs) as harness:
        frame = b"".join(encode_request(ApiKey.PRODUCE, 9, 1, "t", produce(make_batch(1, bytes(2 * MIB)))))
        crowd = [_Newcomer(harness.server, frame[:-1]) for _ in range(20)]
        for one in crowd:
            one.receive()  # what comes first is received before it's known how long it is
        await _receive_all(harness, crowd)


async def test_newcomers_that_have_room_already_receive_little_of_it_in_one_turn_of_the_loop(
    logs: FakeLogs,
) -> None:
    """Each may have room for a quarter of a megabyte, and what fills it may come for all of them at a time."""
    async with serving(logs) as harness:
        frame = b"".join(encode_request(ApiKey.PRODUCE, 9, 1, "t", produce(make_batch(1, bytes(2 * MIB)))))
        crowd = [_Newcomer(harness.server, frame[:MIB]) for _ in range(20)]
        while any(one.data or not one.transport.is_reading for one in crowd):
            for one in crowd:
                one.receive()
            await anyio.lowlevel.checkpoint()
        for one in crowd:
            one.data = memoryview(frame)[MIB:-1]
        await _receive_all(harness, crowd)


def large_produce(records_bytes: int = 100 * KIB) -> bytes:
    """A whole Produce that is received into memory of its own."""
    request = produce(make_batch(1, bytes(records_bytes)))
    return b"".join(encode_request(ApiKey.PRODUCE, 9, 1, "t", request))


async def test_the_handling_of_a_large_produce_is_paid_for(logs: FakeLogs) -> None:
    """Else who sends nothing but large requests is never found to use the loop."""
    async with serving(logs, clock=FakeClock()) as harness:
        core = harness.server.core
        frame = large_produce()
        client = _Newcomer(harness.server, frame[:-1])
        client.receive()
        time = client.connection.time
        core.loop_time.used(time, 0.0, 0.0, core.time())  # a window begins
        core.loop_time.is_measured = True
        ticks = itertools.count()
        core.processor_time = core.turns.processor_time = lambda: float(next(ticks))
        client.data = memoryview(frame[-1:])
        client.receive()
        assert core.requests_by_api[ApiKey.PRODUCE] == 1
        assert time.used_s == 1.0
        client.connection.connection_lost(None)


async def test_large_produces_of_those_who_used_their_part_wait_for_turns(logs: FakeLogs) -> None:
    """However many become whole at a time: they are handled a slice at a time, and none is lost."""
    count = 20
    clock = FakeClock()
    async with serving(logs, clock=clock) as harness:
        core = harness.server.core
        handled = core.requests_by_api
        ticks = itertools.count()
        core.processor_time = core.turns.processor_time = lambda: float(
            next(ticks)
        )  # one request is more than a slice
        frame = large_produce()
        crowd = [_Newcomer(harness.server, frame[:-1]) for _ in range(count)]
        for one in crowd:
            one.receive()
            assert not one.data
        await until(lambda: all(one.transport.is_reading for one in crowd))  # they received much at a time
        for one in crowd:
            core.loop_time.used(one.connection.time, 1.0, 0.0, core.time())
            one.connection.time.limit(math.ulp(0.0))
        for one in crowd:
            one.data = memoryview(frame[-1:])
            one.receive()
            assert not one.data
        assert handled[ApiKey.PRODUCE] == 0, "all wait"
        clock.now_s += WINDOW_S
        while handled[ApiKey.PRODUCE] < count:
            before = handled[ApiKey.PRODUCE]
            await anyio.lowlevel.checkpoint()
            assert handled[ApiKey.PRODUCE] <= before + 1
        await until(lambda: all(one.transport.sent for one in crowd))
        for one in crowd:
            one.connection.connection_lost(None)
