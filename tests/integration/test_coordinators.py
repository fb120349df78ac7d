"""The groups of a broker follow its partitions of `__consumer_offsets`, while it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.integration.raw_client import connect, create, produce
from tests.integration.test_embedding import on_asyncio, overrides

from penstock import Broker
from penstock.coordinator.placement import partition_for
from penstock.log.keyed_log import KeyedLog, Record
from penstock.spi.events import PartitionClosed, PartitionOpened
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
)
from penstock.wire.records import build_batch

PARTITIONS = 4
GROUP = "billing"


async def commit(client: Any, group_id: str, offset: int) -> int:
    partition = OffsetCommitRequestPartition(
        partition_index=0, committed_offset=offset, committed_metadata="", committed_leader_epoch=-1
    )
    request = OffsetCommitRequest(
        group_id=group_id,
        generation_id_or_member_epoch=-1,
        topics=[OffsetCommitRequestTopic(name="t", partitions=[partition])],
    )
    answer = await client.call(ApiKey.OFFSET_COMMIT, 8, request)
    code: int = answer.topics[0].partitions[0].error_code
    return code


async def fetch(client: Any, group_id: str) -> tuple[int, int]:
    """(error, offset)"""
    topics = [OffsetFetchRequestTopics(name="t", partition_indexes=[0])]
    request = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id=group_id, topics=topics)])
    (group,) = (await client.call(ApiKey.OFFSET_FETCH, 8, request)).groups
    return group.error_code, -1 if group.error_code else group.topics[0].partitions[0].committed_offset


async def find(client: Any, group_id: str) -> int:
    request = FindCoordinatorRequest(coordinator_keys=[group_id])
    (one,) = (await client.call(ApiKey.FIND_COORDINATOR, 4, request)).coordinators
    code: int = one.error_code
    return code


def test_a_broker_listens_while_its_groups_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kafka: clients are told that the coordinator is loading, and all that isn't groups works."""
    settings = overrides(tmp_path / "data", groups__offsets_partitions=PARTITIONS)
    go_on: list[anyio.Event] = []
    read_all = KeyedLog.read_all

    async def held(log: KeyedLog, partition: int) -> AsyncIterator[Record]:
        if go_on:
            await go_on[0].wait()
        async for record in read_all(log, partition):
            yield record

    monkeypatch.setattr(KeyedLog, "read_all", held)

    async def main() -> None:
        async with Broker(overrides=settings) as broker, await connect(broker.bootstrap_servers) as client:
            assert await create(client, "t") == 0
            while (code := await commit(client, GROUP, 7)) == ErrorCode.COORDINATOR_LOAD_IN_PROGRESS:
                await anyio.lowlevel.checkpoint()
            assert code == 0
        go_on.append(anyio.Event())
        async with Broker(overrides=settings) as broker, await connect(broker.bootstrap_servers) as client:
            assert await find(client, GROUP) == 0
            assert await fetch(client, GROUP) == (ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, -1)
            assert await produce(client, "t", build_batch([(None, b"v", (), 1)])) == 0
            assert broker.statistics().parts["groups"].loading_partitions == PARTITIONS
            go_on[0].set()
            while (found := await fetch(client, GROUP))[0]:
                assert found[0] == ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
            assert found == (0, 7)

    on_asyncio(main)


def test_groups_go_and_come_with_the_partition_that_the_broker_leads(tmp_path: Path) -> None:
    settings = overrides(tmp_path / "data", groups__offsets_partitions=PARTITIONS)
    mine = partition_for(GROUP, PARTITIONS)
    other = next(name for name in ("a", "b", "c", "d", "e") if partition_for(name, PARTITIONS) != mine)

    async def main() -> None:
        async with Broker(overrides=settings) as broker, await connect(broker.bootstrap_servers) as client:
            assert await create(client, "t") == 0
            for name in (GROUP, other):
                while await commit(client, name, 7):
                    await anyio.lowlevel.checkpoint()
            bus = broker.logs._bus
            topic = "__consumer_offsets"
            bus.publish(PartitionClosed(topic=topic, partition=mine, end_offset=1))
            bus.publish(PartitionClosed(topic="t", partition=partition_for(other, PARTITIONS), end_offset=0))
            assert await fetch(client, GROUP) == (ErrorCode.NOT_COORDINATOR, -1)
            assert await find(client, GROUP) == ErrorCode.COORDINATOR_NOT_AVAILABLE
            assert await fetch(client, other) == (0, 7)
            opened = PartitionOpened(
                topic=topic, partition=mine, leader_epoch=2, start_offset=0, end_offset=1
            )
            bus.publish(opened)
            while (found := await fetch(client, GROUP))[0]:
                assert found[0] == ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
            assert found == (0, 7)

    on_asyncio(main)
