"""DescribeLogDirs: one place, and the size of each partition in it."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.context import DataPlace
from penstock.api.log_dirs import handle_describe_log_dirs
from penstock.wire import ApiKey, encode_response
from penstock.wire.messages.describe_log_dirs import (
    DescribableLogDirTopic,
    DescribeLogDirsRequest,
    DescribeLogDirsResult,
)

pytestmark = pytest.mark.anyio


async def describe(
    logs: FakeLogs, topics: list[DescribableLogDirTopic] | None, version: int = 4
) -> DescribeLogDirsResult:
    response = await handle_describe_log_dirs(
        DescribeLogDirsRequest(topics=topics), make_context(logs, version)
    )
    encode_response(ApiKey.DESCRIBE_LOG_DIRS, version, 1, response)
    assert response.error_code == 0
    (result,) = response.results
    return result


def sizes(result: DescribeLogDirsResult) -> dict[tuple[str, int], int]:
    return {(t.name, p.partition_index): p.partition_size for t in result.topics for p in t.partitions}


@pytest.mark.parametrize("version", [1, 2, 3, 4])
async def test_null_means_all_partitions(logs: FakeLogs, version: int) -> None:
    logs.add("a", 1)
    logs.at("t", 1).write(3)
    size = logs.at("t", 1).size_bytes
    assert size > 0
    found = sizes(await describe(logs, None, version))
    assert found == {("a", 0): 0, ("t", 0): 0, ("t", 1): size, ("t", 2): 0}


async def test_what_is_not_here_is_left_out_as_in_kafka(logs: FakeLogs) -> None:
    logs.shut("t", 2)
    asked = [
        DescribableLogDirTopic(topic="t", partitions=[0, 2, 7, -1, 0]),
        DescribableLogDirTopic(topic="none", partitions=[0]),
        DescribableLogDirTopic(topic="t", partitions=[1, 0]),
    ]
    assert sorted(sizes(await describe(logs, asked))) == [("t", 0), ("t", 1)]


async def test_an_empty_list_tells_about_the_place_only(logs: FakeLogs) -> None:
    result = await describe(logs, [])
    assert (result.topics, result.log_dir, result.total_bytes, result.usable_bytes) == (
        [],
        "memory://",
        1000,
        400,
    )


async def test_an_unknown_capacity_is_minus_one(logs: FakeLogs) -> None:
    context = make_context(logs, 4)
    context.api.data_place = DataPlace(location="s3://bucket")
    (result,) = (await handle_describe_log_dirs(DescribeLogDirsRequest(topics=None), context)).results
    assert (result.total_bytes, result.usable_bytes) == (-1, -1)
