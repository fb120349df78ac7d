"""What a client makes a broker remember, and what it makes it say, stays within ``memory.limit``; others are served.

Each attack runs against a real ``penstock serve`` with 256 MiB, and took more than that, or had no bound, before.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tests.depth import how_many
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.raw_client import connect, create, produce
from tests.patience import HANG_S
from tests.unit.server.harness import Client

from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.describe_groups import DescribeGroupsRequest
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from penstock.wire.messages.leave_group import LeaveGroupRequest
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from penstock.wire.records import build_batch

MIB = 1024 * 1024
LIMIT = 256 * MIB
#: State that isn't bounded is over the limit with a few of these.
SMALL = ("memory.limit=256MiB", "groups.initial_rebalance_delay=500ms")

#: After so many, memory is as full as it gets; each of them is another try to fill it.
REFUSALS = how_many("refusals")

Answers = Counter[int]


async def in_parallel(count: int, at_once: int, work: Callable[[int], Awaitable[None]]) -> None:
    """``work(number)``, some at a time. A connection that the broker closes is an answer too."""
    limiter = anyio.CapacityLimiter(at_once)

    async def one(number: int) -> None:
        async with limiter:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, AssertionError):
                await work(number)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(one, number)


def join(group: str, size: int) -> JoinGroupRequest:
    return JoinGroupRequest(
        group_id=group,
        session_timeout_ms=1_800_000,
        rebalance_timeout_ms=60_000,
        protocol_type="consumer",
        protocols=[JoinGroupRequestProtocol(name="range", metadata=memoryview(bytes(size)))],
    )


async def members_with_large_metadata(address: str) -> Answers:
    """JoinGroups of a megabyte, all parked: 717 MiB at a limit of 256."""
    codes: Answers = Counter()

    with anyio.move_on_after(HANG_S) as enough:

        async def work(number: int) -> None:
            async with await connect(address) as client:
                answer = await client.call(ApiKey.JOIN_GROUP, 3, join(f"g{number % 40}", 1_000_000))
                codes[answer.error_code] += 1
                if codes.total() == 100:
                    enough.cancel()

        await in_parallel(250, 250, work)
    return codes


async def ids_that_never_come_back(address: str) -> Answers:
    codes: Answers = Counter()

    async def work(number: int) -> None:
        async with await connect(address) as client:
            for turn in range(500):
                answer = await client.call(ApiKey.JOIN_GROUP, 4, join(f"g{number}-{turn}" * 200, 10))
                codes[answer.error_code] += 1
                if codes[ErrorCode.COORDINATOR_NOT_AVAILABLE] > REFUSALS:
                    return

    await in_parallel(20, 20, work)
    return codes


async def offsets_with_long_metadata(address: str) -> Answers:
    codes: Answers = Counter()
    partition = OffsetCommitRequestPartition(
        partition_index=0, committed_offset=1, committed_metadata="m" * 4_000
    )
    topic = OffsetCommitRequestTopic(name="good", partitions=[partition])

    async def work(number: int) -> None:
        async with await connect(address) as client:
            for turn in range(200):
                request = OffsetCommitRequest(
                    group_id=f"g{number}-{turn}",
                    generation_id_or_member_epoch=-1,
                    member_id="",
                    topics=[topic],
                )
                answer = await client.call(ApiKey.OFFSET_COMMIT, 8, request)
                codes[answer.topics[0].partitions[0].error_code] += 1
                if codes[ErrorCode.COORDINATOR_NOT_AVAILABLE] > REFUSALS:
                    return

    await in_parallel(25, 20, work)
    return codes


async def sessions_with_many_partitions(address: str) -> Answers:
    asked = [FetchPartition(partition=one, fetch_offset=0, partition_max_bytes=100) for one in range(2_000)]
    topics = [FetchTopic(topic=f"none{one}", partitions=asked) for one in range(4)]
    request = FetchRequest(
        max_wait_ms=0, min_bytes=0, max_bytes=1000, session_id=0, session_epoch=0, topics=topics
    )
    sessions: Answers = Counter()

    async def work(number: int) -> None:
        async with await connect(address) as client:
            answer = await client.call(ApiKey.FETCH, 11, request)
            sessions[0 if answer.session_id else 1] += 1

    await in_parallel(16, 6, work)
    return sessions


async def producer_ids_that_are_made_up(address: str) -> Answers:
    codes: Answers = Counter()

    async def work(number: int) -> None:
        async with await connect(address) as client:
            for turn in range(400):
                batch = build_batch(
                    [(None, b"v", (), 0)],
                    producer_id=number * 10_000 + turn,
                    producer_epoch=0,
                    base_sequence=0,
                )
                codes[await produce(client, "good", batch)] += 1

    await in_parallel(10, 10, work)
    return codes


async def answers_that_nobody_takes(address: str) -> Answers:
    """A group of a few megabytes, described again and again for clients that don't read: 393 MiB at 256."""
    codes: Answers = Counter()
    async with contextlib.AsyncExitStack() as stack:
        members = [await stack.enter_async_context(await connect(address)) for _ in range(8)]
        for member in members:
            await member.send(ApiKey.JOIN_GROUP, 3, join("large", 700_000))
        for member in members:
            codes[(await member.receive()).error_code] += 1
        readers: list[Client] = []
        for _ in range(60):
            readers.append(await stack.enter_async_context(await connect(address)))
        request = DescribeGroupsRequest(groups=["large"] * 1_000)
        for reader in readers:
            for _ in range(3):
                await reader.send(ApiKey.DESCRIBE_GROUPS, 1, request, answered=False)
        await anyio.sleep(2)
    return codes


ATTACKS: dict[Callable[[str], Awaitable[Answers]], set[int]] = {
    members_with_large_metadata: {ErrorCode.COORDINATOR_NOT_AVAILABLE},
    ids_that_never_come_back: {ErrorCode.COORDINATOR_NOT_AVAILABLE},
    offsets_with_long_metadata: {ErrorCode.COORDINATOR_NOT_AVAILABLE},
    sessions_with_many_partitions: {1},
    producer_ids_that_are_made_up: set(),
    answers_that_nobody_takes: set(),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_a_client_makes_the_broker_hold_is_bounded(
    serve: ServeFactory, attack: Callable[[str], Awaitable[Answers]]
) -> None:
    """Resident memory stays under the limit plus 10 %, others are served, and the answer at the bound is Kafka's."""
    broker = serve(*SMALL)
    peak = 0
    served: list[int] = []

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, broker.resident_bytes())
            await anyio.sleep(0.02)

    async def produce_well() -> None:
        async with await connect(broker.bootstrap_servers) as client:
            while True:
                served.append(await produce(client, "good", build_batch([(None, b"v" * 100, (), 0)])))
                await anyio.sleep(0.05)

    async def run() -> Answers:
        async with await connect(broker.bootstrap_servers) as client:
            assert await create(client, "good") == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            tasks.start_soon(produce_well)
            with anyio.fail_after(HANG_S):
                answers = await attack(broker.bootstrap_servers)
            tasks.cancel_scope.cancel()
        return answers

    answers = anyio.run(run)
    assert peak < LIMIT * 1.1
    assert served
    assert set(served) == {0}
    assert ATTACKS[attack] <= set(answers)


def statistics_of(broker: ServeProcess) -> dict[str, Any]:
    before = len(broker.output_so_far)
    broker.signal(signal.SIGUSR1)
    line = broker.wait_for_output("penstock.statistics: ", after=before)
    found: dict[str, Any] = json.loads(line.partition("penstock.statistics: ")[2])
    return found


def test_state_that_is_gone_is_off_the_account(serve: ServeFactory) -> None:
    broker = serve(*SMALL)

    async def run() -> None:
        async with await connect(broker.bootstrap_servers) as client:
            await client.send(ApiKey.JOIN_GROUP, 3, join("g", 500_000))
            assert (await client.receive()).error_code == 0
        held = statistics_of(broker)
        assert held["groups"]["memory"]["used_bytes"] > 500_000
        assert held["memory"]["groups"] > 500_000
        async with await connect(broker.bootstrap_servers) as client:
            member = (
                await client.call(ApiKey.DESCRIBE_GROUPS, 1, DescribeGroupsRequest(groups=["g"]))
            ).groups[0]
            leave = LeaveGroupRequest(group_id="g", member_id=member.members[0].member_id)
            assert (await client.call(ApiKey.LEAVE_GROUP, 0, leave)).error_code == 0
        assert statistics_of(broker)["groups"]["memory"]["used_bytes"] < 10_000

    anyio.run(run)


def test_no_door_leads_to_more_partitions_than_there_may_be(serve: ServeFactory) -> None:
    broker = serve("topics.partitions_max=4")

    async def run() -> None:
        async with await connect(broker.bootstrap_servers) as client:
            assert [await create(client, f"t{number}") for number in range(3)] == [0, 0, 0]
            grow = CreatePartitionsRequest(
                topics=[CreatePartitionsTopic(name="t0", count=3, assignments=None)], timeout_ms=10_000
            )
            (grown,) = (await client.call(ApiKey.CREATE_PARTITIONS, 2, grow)).results
            assert grown.error_code == ErrorCode.POLICY_VIOLATION
            assert await create(client, "t3") == 0
            assert await create(client, "t4") == ErrorCode.POLICY_VIOLATION
            asked = MetadataRequest(topics=[MetadataRequestTopic(name="t5")], allow_auto_topic_creation=True)
            (described,) = (await client.call(ApiKey.METADATA, 8, asked)).topics
            assert described.error_code == ErrorCode.POLICY_VIOLATION

    anyio.run(run)
