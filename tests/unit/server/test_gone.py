"""Clients that close, finish sending or are reset: noticed in every state, answered as long as they may read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from tests.unit.api.fakes import FakeClock, FakeLogs, make_batch
from tests.unit.server.harness import Client, Harness, offsets, produce, serving, until

from penstock.api.client import Client as ApiClient
from penstock.api.context import RequestContext
from penstock.api.declaration import Api
from penstock.api.dispatch import apis
from penstock.api.gate import Gate
from penstock.server import registry
from penstock.server.connection import Connection
from penstock.server.pipeline import Wait
from penstock.server.registry import Connections
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.describe_groups import DescribeGroupsRequest, DescribeGroupsResponse
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.registry import Message, encode_request

pytestmark = pytest.mark.anyio

PRODUCE = ApiKey.PRODUCE
FETCH = ApiKey.FETCH
MEMORY_BYTES = 1 << 24
HOUR_MS = 3_600_000


@pytest.fixture(params=["asyncio", "asyncio+uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "asyncio+uvloop"}


@pytest.fixture
def logs() -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 2)
    return logs


def fetch(max_wait_ms: int) -> FetchRequest:
    partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 30)
    return FetchRequest(
        max_wait_ms=max_wait_ms, min_bytes=1, topics=[FetchTopic(topic="t", partitions=[partition])]
    )


async def test_half_closed_connection_gets_the_answers_of_parked_requests(logs: FakeLogs) -> None:
    async with (
        serving(logs, half_closed_wait_ms=HOUR_MS) as harness,
        await harness.connect() as alone,
        await harness.connect() as pipelining,
    ):
        await alone.send(FETCH, 11, fetch(60_000))
        for max_wait_ms in (60_000, 1):
            await pipelining.send(FETCH, 11, fetch(max_wait_ms))
        await pipelining.send(PRODUCE, 9, produce(make_batch(), partition=1))
        for client in (alone, pipelining):
            await client.finish_sending()
        await until(lambda: len(logs.at("t").listeners) == 2)
        harness.server.connections.sweep()
        logs.at("t").write(1)
        for client in (alone, pipelining):
            assert (await client.receive()).responses[0].partitions[0].records
        assert (await pipelining.receive()).responses[0].partitions[0].records
        assert offsets(await pipelining.receive()) == [(0, 0)]
        for client in (alone, pipelining):
            assert await client.ends()


_FRAME_BEHIND = b"".join(encode_request(ApiKey.API_VERSIONS, 0, 9, "behind", ApiVersionsRequest()))


class Throttling:
    """Quotas by which everybody has to rest for an hour."""

    def throttle_ms(self, client: ApiClient, api: Api, request_bytes: int) -> int:
        return HOUR_MS


async def _never(request: Message, context: RequestContext) -> Message:
    await anyio.sleep_forever()
    raise AssertionError


#: What a client waits for: the wait, and the request that begins it.
WAITS: dict[str, tuple[Wait, int, int, Message]] = {
    "parked fetch": (Wait.ALONE, FETCH, 11, fetch(HOUR_MS)),
    "a handler that goes on": (
        Wait.ALONE,
        ApiKey.INIT_PRODUCER_ID,
        3,
        InitProducerIdRequest(transactional_id=None),
    ),
    "room in the log": (Wait.NOT_NOW, PRODUCE, 9, produce(make_batch(), timeout_ms=HOUR_MS)),
    "memory": (Wait.MEMORY, PRODUCE, 9, produce(make_batch(1, b"x" * 900_000))),
    "its quota": (Wait.QUOTA, ApiKey.API_VERSIONS, 0, ApiVersionsRequest()),
    "the log": (Wait.ORDER, PRODUCE, 9, produce(make_batch())),
    "its own reading": (Wait.PEER, FETCH, 11, fetch(0)),
}


@asynccontextmanager
async def waiting(logs: FakeLogs, wait: str, **settings: Any) -> AsyncIterator[tuple[Harness, Client]]:
    """A client of which nothing more is read, because of ``wait``."""
    begins, api_key, version, request = WAITS[wait]
    logs.durable_at_once = False
    if begins is Wait.PEER:
        for _ in range(20):
            logs.at("t").write(1, value=b"x" * 1_000_000)
    elif begins is Wait.NOT_NOW:
        logs.room = 0
    async with serving(
        logs,
        gate=Gate(quotas=Throttling()) if begins is Wait.QUOTA else None,
        memory_bytes=MEMORY_BYTES,
        handlers=[replace(apis()[ApiKey.INIT_PRODUCER_ID], handler=_never, nowait=None)],
        memory_wait_ms_max=HOUR_MS,
        api_settings={"produce_wait_ms_max": HOUR_MS},
        **settings,
    ) as harness:
        if begins is Wait.MEMORY:
            harness.allocator.allocate_nowait(MEMORY_BYTES, "network")
        client = await harness.connect()
        frames = client.frame(api_key, version, request) + _FRAME_BEHIND
        await client.send_raw(frames[:20_000])  # a large frame isn't whole then
        await until(lambda: any(one.channel.pipeline.is_waiting(begins) for one in connections(harness)))
        await until(lambda: all(one.is_unread for one in connections(harness)))
        async with client:
            yield harness, client


def swept(harness: Harness) -> int:
    """How many connections there are when the server has looked after them."""
    harness.server.connections.sweep()
    return harness.server.statistics().connections


def has_hung_up(harness: Harness) -> bool:
    return any(one.outbox.has_hung_up() for one in connections(harness))


def connections(harness: Harness) -> list[Connection]:
    return [one for one in harness.server.connections if isinstance(one, Connection)]


@pytest.mark.parametrize("wait", WAITS)
async def test_a_reset_connection_is_noticed_whatever_it_waits_for(logs: FakeLogs, wait: str) -> None:
    async with waiting(logs, wait, half_closed_wait_ms=HOUR_MS) as (harness, client):
        await client.reset()
        await until(lambda: swept(harness) == 0)


async def test_who_is_gone_keeps_nobody_waiting_until_the_next_sweep(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held while its request was handled came back after up to five seconds."""
    monkeypatch.setattr(Connections, "_sweeping", lambda _: iter(()))
    began = anyio.Event()

    async def answer(request: Message, context: RequestContext) -> Message:
        if not began.is_set():
            began.set()
            await anyio.sleep_forever()
        return DescribeGroupsResponse(groups=[])

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=answer, cancellable=True)
    request = DescribeGroupsRequest(groups=["g" * 100] * 300)
    async with (
        serving(logs, handlers=[api], receive_bytes_max=1 << 20) as harness,
        await harness.connect() as other,
    ):
        client = await harness.connect()
        await client.send_raw(client.frame(ApiKey.DESCRIBE_GROUPS, 1, request) + _FRAME_BEHIND)
        await began.wait()
        await until(lambda: any(one.is_unread for one in connections(harness)))
        (holder,) = [one for one in connections(harness) if one.is_unread]
        # more than half, which no request counts
        harness.server.core.handling.take(holder.channel.handling, 1)
        await other.send(ApiKey.DESCRIBE_GROUPS, 1, request)
        await until(lambda: harness.server.core.handling.waiting == 1)
        await client.reset()
        assert not (await other.receive()).groups


async def test_all_that_hold_what_others_wait_for_are_looked_at_whatever_else_is_short(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_POLLED_AT_ONCE", 1)
    looked: list[Connection] = []
    async with serving(logs, clock=FakeClock()) as harness, AsyncExitStack() as clients:
        for _ in range(3):
            await clients.enter_async_context(await harness.connect())
        await until(lambda: len(connections(harness)) == 3)
        core, all_three = harness.server.core, connections(harness)
        for one in all_three:
            core.handling.take(one.channel.handling, core.handling.limit)
        core.incoming.take(all_three[0].channel.incoming, core.incoming.limit + 1)
        monkeypatch.setattr(Connections, "_end_gone", lambda _, some: looked.extend(some))
        for _ in range(3):
            harness.server.connections.relieve()
        assert set(looked) == set(all_three)
        for one in all_three:
            core.handling.give(one.channel.handling, core.handling.limit)
        core.incoming.give(all_three[0].channel.incoming, core.incoming.limit + 1)


@pytest.mark.parametrize("wait", WAITS)
async def test_a_closed_connection_is_noticed_whatever_it_waits_for(logs: FakeLogs, wait: str) -> None:
    clock = FakeClock()
    async with waiting(logs, wait, clock=clock, stalled_write_timeout_ms=10 * HOUR_MS) as (harness, client):
        await client.__aexit__(None, None, None)
        if wait in {"a handler that goes on", "the log"}:
            await until(lambda: swept(harness) and has_hung_up(harness))
            clock.now_s += 600
        await until(lambda: swept(harness) == 0)
        await until(lambda: not logs.at("t").listeners)


@pytest.mark.parametrize("wait", ["parked fetch", "room in the log", "the log"])
async def test_what_waits_for_an_answer_that_comes_is_not_given_up(logs: FakeLogs, wait: str) -> None:
    async with waiting(logs, wait, half_closed_wait_ms=HOUR_MS) as (harness, client):
        await client.finish_sending()
        await until(lambda: swept(harness) and has_hung_up(harness))
        if wait == "parked fetch":
            logs.at("t").write(1)
        else:
            logs.make_room(100)
            await until(lambda: logs.at("t").pending)
            logs.at("t").commit()
        assert await client.receive()
        size = int.from_bytes(await client.receive_raw(4))
        assert await client.receive_raw(size)
        assert await client.ends()
