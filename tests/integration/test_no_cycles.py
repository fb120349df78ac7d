"""What fails leaves nothing behind for the garbage collector, which comes late or, in a busy process, never.

Each test does one thing that fails, several times with the collector off, and then looks at what only the collector
could free: no error, no frame and no payload is among it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.garbage import nothing_to_collect
from tests.integration.raw_client import connect, create, produce, produce_request
from tests.unit.server.harness import Client

from penstock import Broker
from penstock.wire.api_keys import ApiKey
from penstock.wire.compression import CODEC_GZIP
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from penstock.wire.records import build_batch

pytestmark = pytest.mark.anyio
TIMES = 4
NOW_MS = 1_700_000_000_000


@asynccontextmanager
async def broker_at(path: Path, **more: Any) -> AsyncIterator[Broker]:
    overrides = {
        "broker.data_dir": str(path),
        "listener.bind": "127.0.0.1:0",
        "groups.initial_rebalance_delay": "0ms",
        "wal.capacity": "64MiB",
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    async with Broker(overrides=overrides) as broker:
        yield broker


def batch(size: int = 100_000, *, codec: int = 0, producer: tuple[int, int, int] = (-1, -1, -1)) -> bytearray:
    return build_batch(
        [(None, b"x" * size, (), NOW_MS)],
        codec=codec,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
    )


def damaged(data: bytearray, position: int = -1) -> bytearray:
    data[position] ^= 0xFF
    return data


REFUSED: dict[str, tuple[Callable[[], bytearray], ErrorCode]] = {
    "checksum": (lambda: damaged(batch()), ErrorCode.CORRUPT_MESSAGE),
    "cut": (lambda: batch()[:-10], ErrorCode.CORRUPT_MESSAGE),
    "too large": (lambda: batch(2_000_000), ErrorCode.MESSAGE_TOO_LARGE),
    "magic": (lambda: damaged(batch(), 16), ErrorCode.CORRUPT_MESSAGE),
    "sequence": (lambda: batch(producer=(7, 0, 5)), ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER),
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_refused_batches_leave_nothing_to_collect(tmp_path: Path, fault: str) -> None:
    make, code = REFUSED[fault]
    async with broker_at(tmp_path) as broker, await connect(broker.bootstrap_servers) as client:
        assert await create(client, "t") == 0
        if fault == "sequence":
            assert await produce(client, "t", batch(producer=(7, 0, 0))) == 0
        got = {await produce(client, "t", make())}
        with nothing_to_collect():
            for _ in range(TIMES):
                got.add(await produce(client, "t", make()))
        assert got <= {code, ErrorCode.INVALID_RECORD, ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT}


async def test_a_batch_that_inflates_too_far_leaves_nothing_to_collect(tmp_path: Path) -> None:
    """60 KB that become 60 MB, for a topic with a codec of its own: refused, 63 MB stayed behind each time."""
    bomb = batch(60_000_000, codec=CODEC_GZIP)
    async with broker_at(tmp_path) as broker, await connect(broker.bootstrap_servers) as client:
        assert await create(client, "t", compression_type="zstd") == 0
        got = {await produce(client, "t", bomb)}
        with nothing_to_collect():
            for _ in range(TIMES):
                got.add(await produce(client, "t", bomb))
        assert got <= {ErrorCode.MESSAGE_TOO_LARGE, ErrorCode.INVALID_RECORD}


async def test_a_batch_that_cannot_be_inflated_leaves_nothing_to_collect(tmp_path: Path) -> None:
    from crc32c import crc32c

    bad = batch(3_000_000, codec=CODEC_GZIP) + bytearray(40_000)
    bad[8:12] = (len(bad) - 12).to_bytes(4, "big")
    bad[-39_990:] = b"\xff" * 39_990
    bad[17:21] = crc32c(bytes(bad[21:])).to_bytes(4, "big")
    async with broker_at(tmp_path) as broker, await connect(broker.bootstrap_servers) as client:
        assert await create(client, "t", compression_type="lz4") == 0
        got = {await produce(client, "t", bad)}
        with nothing_to_collect():
            for _ in range(TIMES):
                got.add(await produce(client, "t", bad))
        assert 0 not in got


async def test_refused_commands_of_metadata_leave_nothing_to_collect(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker, await connect(broker.bootstrap_servers) as client:
        assert await create(client, "t") == 0
        assert await create(client, "t") == ErrorCode.TOPIC_ALREADY_EXISTS
        with nothing_to_collect():
            for _ in range(TIMES):
                assert await create(client, "t") == ErrorCode.TOPIC_ALREADY_EXISTS
                assert await create(client, "a b") == ErrorCode.INVALID_TOPIC_EXCEPTION
                assert await create(client, "u", compression_type="none of it") == ErrorCode.INVALID_CONFIG


def fetch_request(offset: int, wait_ms: int) -> FetchRequest:
    partition = FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=1 << 20)
    return FetchRequest(
        max_wait_ms=wait_ms,
        min_bytes=1,
        max_bytes=1 << 20,
        topics=[FetchTopic(topic="t", partitions=[partition])],
    )


def join_request() -> JoinGroupRequest:
    return JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        protocol_type="consumer",
        protocols=[JoinGroupRequestProtocol(name="range", metadata=memoryview(b"m" * 5_000))],
    )


async def _gone_in_a_frame(client: Client) -> None:
    await client.send_raw(client.frame(ApiKey.PRODUCE, 9, produce_request("t", batch()))[:50_000])


async def _gone_unanswered(client: Client) -> None:
    for _ in range(3):
        await client.send(ApiKey.PRODUCE, 9, produce_request("t", batch()), answered=False)


async def _gone_while_a_fetch_is_parked(client: Client) -> None:
    await client.send(ApiKey.FETCH, 11, fetch_request(10_000, 20_000), answered=False)
    await client.send(ApiKey.FETCH, 11, fetch_request(0, 20_000), answered=False)


async def _gone_while_it_joins(client: Client) -> None:
    await client.send(ApiKey.JOIN_GROUP, 3, join_request(), answered=False)
    await anyio.sleep(0.01)


async def _gone_after_nonsense(client: Client) -> None:
    await client.send_raw(b"\x00\x00\x00\x20" + b"\xff" * 32)


async def _gone_after_a_cut_request(client: Client) -> None:
    frame = client.frame(ApiKey.PRODUCE, 9, produce_request("t", batch()))
    await client.send_raw((20_000).to_bytes(4, "big") + frame[4:20_004])


async def _gone_while_records_are_inflated(client: Client) -> None:
    for _ in range(3):
        await client.send(
            ApiKey.PRODUCE, 9, produce_request("z", batch(900_000, codec=CODEC_GZIP)), answered=False
        )


GONE: list[Callable[[Client], Awaitable[None]]] = [
    _gone_in_a_frame,
    _gone_unanswered,
    _gone_while_a_fetch_is_parked,
    _gone_while_it_joins,
    _gone_after_nonsense,
    _gone_after_a_cut_request,
    _gone_while_records_are_inflated,
]


@pytest.mark.parametrize("leave", GONE, ids=lambda stage: stage.__name__.strip("_"))
async def test_dropped_connections_leave_nothing_to_collect(
    tmp_path: Path, leave: Callable[[Client], Awaitable[None]]
) -> None:
    async def once(broker: Broker) -> None:
        async with await connect(broker.bootstrap_servers) as client:
            await leave(client)
        # the broker has seen the end when it answers somebody who came after
        async with await connect(broker.bootstrap_servers) as client:
            assert await produce(client, "t", batch(10)) == 0
            assert await produce(client, "z", batch(10)) == 0

    async with broker_at(tmp_path) as broker:
        async with await connect(broker.bootstrap_servers) as client:
            assert await create(client, "t") == 0
            assert await create(client, "z", compression_type="zstd") == 0
        await once(broker)
        with nothing_to_collect():
            for _ in range(TIMES):
                await once(broker)
