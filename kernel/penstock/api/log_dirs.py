"""DescribeLogDirs v1-4: the size of every partition, under the one place that holds the data."""

from __future__ import annotations

__all__ = ("APIS", "handle_describe_log_dirs")

from collections.abc import Iterator
from typing import Final

from penstock.api.authorization import the_cluster
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.lookup import partitions_by_topic
from penstock.log.manager import LogManager
from penstock.spi.authorizer import Operation
from penstock.threads import run_in_thread
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.describe_log_dirs import (
    DescribableLogDirTopic,
    DescribeLogDirsPartition,
    DescribeLogDirsRequest,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
)
from penstock.work.pieces import in_portions

_UNKNOWN: Final = -1


async def handle_describe_log_dirs(
    request: DescribeLogDirsRequest, context: RequestContext
) -> DescribeLogDirsResponse:
    """DescribeLogDirs (KIP-113): all partitions if ``topics`` is null; those that aren't here are left out.

    A partition's size is that of its record batches, as stored: in objects, and what only the write-ahead log
    holds. The place's own size (KIP-827) is known for a local one only.
    """
    api = context.api
    topics: dict[str, DescribeLogDirsTopic] = {}
    context.is_long = True
    seen: set[tuple[str, int]] = set()
    async for name, index in in_portions(_wanted(request.topics, api.logs)):
        if (name, index) in seen:
            continue
        seen.add((name, index))
        partition = api.logs.partition(name, index)
        if partition is None:
            continue
        topics.setdefault(name, DescribeLogDirsTopic(name=name, partitions=[])).partitions.append(
            DescribeLogDirsPartition(partition_index=index, partition_size=partition.size_bytes)
        )
    capacity = await run_in_thread(api.data_place.capacity)
    total, usable = (_UNKNOWN, _UNKNOWN) if capacity is None else capacity
    return DescribeLogDirsResponse(
        results=[
            DescribeLogDirsResult(
                log_dir=api.data_place.location,
                topics=list(topics.values()),
                total_bytes=total,
                usable_bytes=usable,
            )
        ]
    )


def _wanted(asked: list[DescribableLogDirTopic] | None, logs: LogManager) -> Iterator[tuple[str, int]]:
    if asked is None:
        yield from ((name, index) for name, indexes in partitions_by_topic(logs) for index in indexes)
    else:
        yield from ((topic.topic, index) for topic in asked for index in topic.partitions)


APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_LOG_DIRS,
        high=4,  # 5 has cordoned directories (KIP-1066), by which clients also tell Kafka 4.3
        needs=(the_cluster(Operation.DESCRIBE),),
        handler=handle_describe_log_dirs,
        failure=one_code(DescribeLogDirsResponse, since=3),
        note="one directory: the object store. A partition's size is that of its batches, uploaded or not; total and "
        "usable bytes are told of a local store, -1 of others",
    ),
)
