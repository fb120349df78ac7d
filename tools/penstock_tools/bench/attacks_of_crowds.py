"""Attacks whose single requests are cheap: crowds that wake at a time, come and go, or come from many addresses."""

from __future__ import annotations

__all__ = ()

import asyncio
import contextlib
import os
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from penstock.wire import ApiKey
from penstock.wire.messages import (
    api_versions,
    create_topics,
    delete_topics,
    fetch,
    list_offsets,
    produce,
)
from penstock.wire.records import build_batch
from penstock.wire.registry import decode_response
from penstock_tools.bench.good_client import fetch_request, request
from penstock_tools.bench.peers import MIB, Peer, ask, attack, crowd, flood, make_topics


def _small_produce(topic: str, partitions: int = 1) -> bytes:
    batch = bytes(build_batch([(None, b"v", (), 0)]))
    data = [produce.PartitionProduceData(index=number, records=batch) for number in range(partitions)]
    body = produce.ProduceRequest(
        acks=-1, timeout_ms=1000, topic_data=[produce.TopicProduceData(name=topic, partition_data=data)]
    )
    return request(ApiKey.PRODUCE, 9, body)


async def _again(count: int, port: int, conduct: Callable[[Peer], Awaitable[None]]) -> None:
    """Have ``count`` connections do what ``conduct`` does and come again without a pause."""

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                async with Peer(port) as peer:
                    await conduct(peer)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one())


@attack
async def woken_by_own(port: int) -> None:
    """500 consumers wait on a topic that 4 others produce to, and read what comes"""
    await make_topics(port, "own")

    async def conduct(peer: Peer) -> None:
        place = list_offsets.ListOffsetsPartition(partition_index=0, timestamp=-1)
        topics = [list_offsets.ListOffsetsTopic(name="own", partitions=[place])]
        body = list_offsets.ListOffsetsRequest(replica_id=-1, topics=topics)
        await peer.send(request(ApiKey.LIST_OFFSETS, 5, body))
        answer: Any = decode_response(ApiKey.LIST_OFFSETS, 5, await peer.frame())[1]
        end = answer.topics[0].partitions[0].offset
        while True:
            await peer.send(fetch_request(MIB, topic="own", wait_ms=10_000, offset=end))
            got: Any = decode_response(ApiKey.FETCH, 11, await peer.frame())[1]
            end = got.responses[0].partitions[0].high_watermark

    small = _small_produce("own")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crowd(500, port, conduct))
        tasks.create_task(ask(4, port, lambda number, turn: small))


@attack
async def short_waits(port: int) -> None:
    """500 clients wait 1 ms for data that never come, again and again"""
    await make_topics(port, "parked", partitions=20)
    data = fetch_request(MIB, 20, wait_ms=1, topic="parked")
    await ask(500, port, lambda number, turn: data)


@attack
async def random_fetches(port: int) -> None:
    """200 clients fetch a single batch at random offsets"""
    await ask(200, port, lambda number, turn: fetch_request(1, offset=random.randrange(20_000)))


@attack
async def waits_pipelined(port: int) -> None:
    """200 clients pipeline 500 fetches that each wait for ever"""
    await make_topics(port, "parked")
    data = fetch_request(MIB, wait_ms=300_000, topic="parked") * 500

    async def conduct(peer: Peer) -> None:
        await peer.send(data)
        await peer.hold()

    await crowd(200, port, conduct)


@attack
async def churn(port: int) -> None:
    """100 clients connect, ask ApiVersions and leave, without a pause"""
    data = request(ApiKey.API_VERSIONS, 3, api_versions.ApiVersionsRequest())

    async def conduct(peer: Peer) -> None:
        await peer.send(data)
        await peer.frame()

    await _again(100, port, conduct)


@attack
async def garbage(port: int) -> None:
    """100 clients send TLS hellos and random bytes, and come again without a pause"""

    async def conduct(peer: Peer) -> None:
        await peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500))
        await peer.receive()

    await _again(100, port, conduct)


@attack
async def unknown_apis(port: int) -> None:
    """50 clients pipeline requests of APIs that there aren't, and come again without a pause"""
    data = struct.pack(">ihhih", 10, 999, 99, 1, -1) * 10

    async def conduct(peer: Peer) -> None:
        await peer.send(data)
        await peer.receive()

    await _again(50, port, conduct)


@attack
async def cut_short(port: int) -> None:
    """50 clients ask for 50 MiB and leave in the midst of it, without a pause"""
    data = fetch_request(50 * MIB)

    async def conduct(peer: Peer) -> None:
        await peer.send(data)
        await peer.receive()

    await _again(50, port, conduct)


@attack
async def cheap_from_200(port: int) -> None:
    """200 connections from as many addresses pipeline ApiVersions by the hundred"""
    await flood(200, port, request(ApiKey.API_VERSIONS, 3, api_versions.ApiVersionsRequest()), 100, 200)


@attack
async def topics_come_and_go(port: int) -> None:
    """8 clients create a topic and delete it, in a loop"""

    def asked(number: int, turn: int) -> bytes:
        name = f"goes-{number}-{turn // 2}"
        if turn % 2:
            gone = delete_topics.DeleteTopicsRequest(topic_names=[name], timeout_ms=5000)
            return request(ApiKey.DELETE_TOPICS, 5, gone)
        topic = create_topics.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
        made = create_topics.CreateTopicsRequest(topics=[topic], timeout_ms=5000)
        return request(ApiKey.CREATE_TOPICS, 5, made)

    await ask(8, port, asked)


@attack
async def wide_produces(port: int) -> None:
    """2 clients produce a record to each of 5,000 partitions, in a loop"""
    await make_topics(port, "wide", partitions=5000)
    await flood(2, port, _small_produce("wide", 5000), 1)


@attack
async def tiny_records(port: int) -> None:
    """4 clients produce batches of 100,000 empty records"""
    await make_topics(port, "tiny")
    batch = bytes(build_batch([(None, None, (), 0)] * 100_000))
    data = [produce.PartitionProduceData(index=0, records=batch)]
    body = produce.ProduceRequest(
        acks=-1, timeout_ms=5000, topic_data=[produce.TopicProduceData(name="tiny", partition_data=data)]
    )
    await flood(4, port, request(ApiKey.PRODUCE, 9, body), 1)


@attack
async def forgotten(port: int) -> None:
    """3 clients forget 100,000 partitions in a fetch, in a loop"""
    gone = [fetch.ForgottenTopic(topic="none", partitions=list(range(100_000)))]
    body = fetch.FetchRequest(
        max_wait_ms=0,
        min_bytes=0,
        max_bytes=1000,
        session_id=0,
        session_epoch=0,
        topics=[],
        forgotten_topics_data=gone,
    )
    await flood(3, port, request(ApiKey.FETCH, 11, body), 1)
