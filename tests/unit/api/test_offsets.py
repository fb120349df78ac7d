"""ListOffsets, OffsetForLeaderEpoch and DeleteRecords: one clause of the protocol each."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from tests.unit.api.fakes import FakeLogs, FakePartition, make_context

from penstock.api import offsets
from penstock.errors import UnavailableError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


async def list_offset(
    logs: FakeLogs,
    timestamp: int,
    *,
    version: int = 11,
    partition: int = 0,
    epoch: int = -1,
    isolation: int = 0,
) -> tuple[int, int, int, int]:
    asked = ListOffsetsPartition(partition_index=partition, timestamp=timestamp, current_leader_epoch=epoch)
    request = ListOffsetsRequest(
        isolation_level=isolation, topics=[ListOffsetsTopic(name="t", partitions=[asked])]
    )
    response = await offsets.handle_list_offsets(request, make_context(logs, version))
    result = response.topics[0].partitions[0]
    return result.error_code, result.offset, result.timestamp, result.leader_epoch


@pytest.mark.parametrize(
    ("timestamp", "version", "result"),
    [
        (-1, 1, (0, 10, -1, 3)),
        (-2, 1, (0, 2, -1, 3)),
        (-3, 7, (0, 9, 5004, 3)),
        (-3, 6, (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)),
        (-4, 8, (0, 2, -1, 3)),
        (-5, 9, (0, -1, -1, -1)),
        (-6, 11, (0, -1, -1, -1)),
        (-6, 10, (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)),
        (-7, 11, (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)),
        (1003, 5, (0, 3, 1003, 3)),
        (2000, 5, (0, 5, 5000, 3)),
        (9999, 5, (0, -1, -1, -1)),
    ],
)
async def test_list_offsets(logs: FakeLogs, timestamp: int, version: int, result: tuple[int, ...]) -> None:
    logs.at("t").write(5, timestamp=1000)
    logs.at("t").write(5, timestamp=5000)
    logs.at("t").log_start_offset = 2
    assert await list_offset(logs, timestamp, version=version) == result


async def test_list_offsets_answers_for_every_partition_that_was_asked(logs: FakeLogs) -> None:
    assert (await list_offset(logs, -1, partition=9))[0] == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await list_offset(logs, -1, epoch=2))[0] == ErrorCode.FENCED_LEADER_EPOCH
    assert (await list_offset(logs, -1, epoch=4))[0] == ErrorCode.UNKNOWN_LEADER_EPOCH
    assert (await list_offset(logs, -1, epoch=3, isolation=1)) == (0, 0, -1, 3)


async def test_list_offsets_looks_at_the_timestamp_before_it_looks_for_the_partition(logs: FakeLogs) -> None:
    for unknown in ({"partition": 9}, {"epoch": 2}):
        assert (await list_offset(logs, -7, **unknown))[0] == ErrorCode.UNSUPPORTED_VERSION


@pytest.mark.parametrize(
    ("partition", "current", "asked", "result"),
    [
        (0, -1, 3, (0, 3, 4)),
        (0, 3, 9, (0, 3, 4)),
        (0, -1, 1, (0, -1, -1)),
        (0, 2, 3, (ErrorCode.FENCED_LEADER_EPOCH, -1, -1)),
        (8, -1, 3, (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, -1)),
    ],
)
async def test_offset_for_leader_epoch(
    logs: FakeLogs, partition: int, current: int, asked: int, result: tuple[int, ...]
) -> None:
    logs.at("t").write(4)
    topic = OffsetForLeaderTopic(
        topic="t",
        partitions=[
            OffsetForLeaderPartition(partition=partition, current_leader_epoch=current, leader_epoch=asked)
        ],
    )
    response = await offsets.handle_offset_for_leader_epoch(
        OffsetForLeaderEpochRequest(topics=[topic]), make_context(logs, 4)
    )
    got = response.topics[0].partitions[0]
    assert (got.error_code, got.leader_epoch, got.end_offset) == result


@pytest.mark.parametrize(
    ("offset", "result"),
    [
        (2, (0, 2)),
        (-1, (0, 4)),
        (0, (0, 1)),
        (5, (ErrorCode.OFFSET_OUT_OF_RANGE, -1)),
        (-2, (ErrorCode.OFFSET_OUT_OF_RANGE, -1)),
    ],
)
async def test_delete_records(logs: FakeLogs, offset: int, result: tuple[int, int]) -> None:
    logs.at("t").write(4)
    logs.at("t").log_start_offset = 1
    topic = DeleteRecordsTopic(
        name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=offset)]
    )
    response = await offsets.handle_delete_records(
        DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
    )
    got = response.topics[0].partitions[0]
    assert (got.error_code, got.low_watermark) == result


async def test_records_of_many_partitions_are_deleted_together(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for a metadata entry, perhaps for an upload: they share them. One that fails says so of itself."""
    most = under_way = 0

    async def delete(self: FakePartition, offset: int) -> int:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        await anyio.lowlevel.checkpoint()
        under_way -= 1
        if self.index == 7:
            raise UnavailableError("not now")
        return offset

    monkeypatch.setattr(FakePartition, "delete_records", delete)
    monkeypatch.setattr(offsets, "_DELETIONS", 20)
    logs.add("many", 50)
    for index in range(50):
        logs.at("many", index).write(2)
    asked = [DeleteRecordsPartition(partition_index=index, offset=1) for index in range(51)]
    topic = DeleteRecordsTopic(name="many", partitions=asked)
    response = await offsets.handle_delete_records(
        DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
    )
    assert most == 20
    results = response.topics[0].partitions
    assert [result.partition_index for result in results] == list(range(51))
    failed = {result.partition_index: result.error_code for result in results if result.low_watermark != 1}
    assert failed == {7: ErrorCode.KAFKA_STORAGE_ERROR, 50: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION}


async def test_records_of_a_compacted_topic_are_not_deleted(logs: FakeLogs) -> None:
    logs.topics()["t"].configs["cleanup.policy"] = "compact"
    topic = DeleteRecordsTopic(name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=0)])
    response = await offsets.handle_delete_records(
        DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
    )
    assert response.topics[0].partitions[0].error_code == ErrorCode.POLICY_VIOLATION
