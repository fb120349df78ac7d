"""What the APIs answer for a partition that could not be opened."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import metadata, offsets
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


async def test_an_unavailable_partition_is_offline_and_takes_only_deletions(logs: FakeLogs) -> None:
    """Compacted or not, and at the log start too: it may come back by it."""
    partition = logs.at("t")
    partition.write(4)
    partition.unavailable = "damaged"
    logs.topics()["t"].configs["cleanup.policy"] = "compact"
    asked = MetadataRequest(topics=[MetadataRequestTopic(name="t")])
    shown = metadata.metadata_nowait(asked, make_context(logs, 12))
    assert shown is not None
    offline = shown.topics[0].partitions[0]
    assert (offline.error_code, offline.leader_id) == (ErrorCode.LEADER_NOT_AVAILABLE, -1)
    assert (offline.leader_epoch, offline.offline_replicas) == (partition.leader_epoch, [logs.node_id])
    for timestamp in (-1, -2, -3, 0):
        wanted = ListOffsetsTopic(
            name="t", partitions=[ListOffsetsPartition(partition_index=0, timestamp=timestamp)]
        )
        listed = await offsets.handle_list_offsets(
            ListOffsetsRequest(replica_id=-1, topics=[wanted]), make_context(logs, 7)
        )
        assert listed.topics[0].partitions[0].error_code == ErrorCode.KAFKA_STORAGE_ERROR
    for offset in (0, 2):
        topic = DeleteRecordsTopic(
            name="t", partitions=[DeleteRecordsPartition(partition_index=0, offset=offset)]
        )
        response = await offsets.handle_delete_records(
            DeleteRecordsRequest(topics=[topic]), make_context(logs, 2)
        )
        got = response.topics[0].partitions[0]
        assert (got.error_code, got.low_watermark) == (0, offset)
