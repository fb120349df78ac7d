"""A commit of thousands of offsets is prepared in portions, then decided on in one step: whatever happens between."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog, entries, settle
from tests.unit.coordinator.test_group_service import SETTINGS, Calls, stable

from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import LeaveMember, OffsetAndMetadata
from penstock.coordinator.placement import partition_for
from penstock.wire.error_codes import ErrorCode
from penstock_conformance.reference._allocator import PlainAllocator

pytestmark = pytest.mark.anyio
LONG: Final = {("t", index): OffsetAndMetadata(index) for index in range(2_000)}
#: Turns after which a commit of LONG is half prepared.
HALF: Final = 10
Open: TypeAlias = Callable[[], AbstractAsyncContextManager[GroupService]]


@pytest.fixture
def allocator() -> PlainAllocator:
    return PlainAllocator(16 * 2**20)


@pytest.fixture
def opened(log: MemoryLog, clock: FakeClock, allocator: PlainAllocator) -> Open:
    ids = itertools.count(1)

    @asynccontextmanager
    async def open_service() -> AsyncIterator[GroupService]:
        async with LedService(log, SETTINGS, clock, lambda: str(next(ids)), allocator) as service:
            yield service
        assert allocator.statistics().used_bytes == 0

    return open_service


async def turns(count: int = HALF) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def records(log: MemoryLog) -> int:
    return sum(map(len, log.records))


async def test_readers_see_all_of_a_commit_or_nothing_and_it_is_one_append(
    opened: Open, log: MemoryLog
) -> None:
    seen: set[int] = set()

    async def read(service: GroupService) -> None:
        while True:
            seen.add(len((await service.fetch_offsets("g"))[1]))

    async with opened() as service, anyio.create_task_group() as tasks:
        tasks.start_soon(read, service)
        errors = await service.commit_offsets("g", LONG)
        assert errors == dict.fromkeys(LONG, ErrorCode.NONE)
        await turns()
        assert seen == {0, len(LONG)}
        assert log.batches == [len(LONG)]
        tasks.cancel_scope.cancel()


async def test_a_member_that_goes_while_its_commit_is_prepared_commits_nothing(
    opened: Open, log: MemoryLog, clock: FakeClock
) -> None:
    """Kafka checks the generation where it appends: an owner of before never overwrites its successor."""
    async with opened() as service, anyio.create_task_group() as tasks:
        member = await stable(service, clock)
        calls = Calls(tasks)
        calls.start("long", service.commit_offsets("g", LONG, member_id=member, generation_id=1))
        await turns()
        await service.leave("g", [LeaveMember(member)])
        await settle()
        assert calls.results == {"long": dict.fromkeys(LONG, ErrorCode.UNKNOWN_MEMBER_ID)}
        assert (await service.fetch_offsets("g"))[1] == {}


async def test_a_short_commit_that_is_taken_while_a_long_one_is_prepared_is_before_it_in_the_log_and_to_readers(
    opened: Open, log: MemoryLog
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        calls.start("long", service.commit_offsets("g", LONG))
        await turns()
        await service.commit_offsets("g", {("t", 7): OffsetAndMetadata(99)})
        assert "long" not in calls.results
        await settle()
        assert log.batches == [1, len(LONG)]
        offsets = (await service.fetch_offsets("g", [("t", 7)]))[1]
        assert [one and one.offset for one in offsets.values()] == [7]
        held = entries(service)["g"].group.offsets
    async with opened() as service:
        replayed = entries(service)["g"].group.offsets
        assert dict(replayed.items()) == dict(held.items())
        assert replayed.size_bytes == held.size_bytes


async def test_a_coordinator_that_is_unloaded_while_a_commit_is_prepared_takes_nothing(
    opened: Open, log: MemoryLog
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        calls.start("long", service.commit_offsets("g", LONG))
        await turns()
        service.resign(partition_for("g", log.partition_count))
        await settle()
        assert calls.results == {"long": dict.fromkeys(LONG, ErrorCode.NOT_COORDINATOR)}
        assert records(log) == 0
        assert service.statistics().memory.used_bytes == 0


async def test_a_coordinator_that_is_loaded_anew_while_a_commit_is_prepared_takes_it(
    opened: Open, log: MemoryLog
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        await service.commit_offsets("g", {("before", 0): OffsetAndMetadata(1)})
        calls.start("long", service.commit_offsets("g", LONG))
        await turns(3)
        partition = partition_for("g", log.partition_count)
        service.resign(partition)
        service.lead(partition)
        await service.wait_loaded()
        await settle()
        assert calls.results == {"long": dict.fromkeys(LONG, ErrorCode.NONE)}
        assert set((await service.fetch_offsets("g"))[1]) == {("before", 0), *LONG}


async def test_a_commit_whose_group_is_being_deleted_when_it_is_prepared_comes_after_the_deletion(
    opened: Open, log: MemoryLog
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        await service.commit_offsets("g", {("before", 0): OffsetAndMetadata(1)})
        calls.start("long", service.commit_offsets("g", LONG))
        await turns()
        log.gate = anyio.Event()
        calls.start("delete", service.delete_groups(["g"]))
        await settle()
        assert calls.results == {}
        log.gate.set()
        await settle()
        assert calls.results == {
            "delete": {"g": ErrorCode.NONE},
            "long": dict.fromkeys(LONG, ErrorCode.NONE),
        }
        assert set((await service.fetch_offsets("g"))[1]) == set(LONG)
        assert len(log.live()) == len(LONG)


async def test_a_commit_that_is_cancelled_while_it_is_prepared_leaves_nothing_behind(
    opened: Open, log: MemoryLog
) -> None:
    async with opened() as service:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.commit_offsets, "g", LONG)
            tasks.start_soon(service.commit_offsets, "other", LONG)
            await turns()
            tasks.cancel_scope.cancel()
        await settle()
        assert records(log) == 0
        assert service.statistics().memory.used_bytes == 0
        assert service.statistics().groups == 0
        assert await service.commit_offsets("g", LONG) == dict.fromkeys(LONG, ErrorCode.NONE)


async def test_a_commit_that_is_prepared_when_the_scope_ends_is_answered_and_gives_its_memory_back(
    opened: Open, log: MemoryLog, allocator: PlainAllocator
) -> None:
    async with anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        async with opened() as service:
            calls.start("long", service.commit_offsets("g" * 10_000, LONG))
            await turns()
            assert allocator.statistics().used_bytes > 2**20, "its records have the group's id each"
        await settle()
        assert set(calls.results["long"].values()) == {ErrorCode.NOT_COORDINATOR}
        assert allocator.statistics().used_bytes == 0


async def test_long_commits_are_prepared_one_after_the_other_and_leave_others_their_room(
    opened: Open, log: MemoryLog, allocator: PlainAllocator
) -> None:
    """The records of one may take a thousand times what its request did."""
    async with opened() as service, anyio.create_task_group() as tasks:
        log.gate = anyio.Event()
        for number in range(20):
            tasks.start_soon(service.commit_offsets, f"{number}" * 1_000, LONG)
        most = 0
        while len(entries(service)) < 20:
            await anyio.lowlevel.checkpoint()
            most = max(most, service._prepared.used_bytes)
            held = sum(entry.charged_bytes for entry in entries(service).values())
            assert service.statistics().memory.used_bytes == held
        assert 2**20 < most < 2 * 2_100 * len(LONG)
        log.gate.set()


async def test_what_is_more_than_may_wait_for_the_log_is_refused_as_retriable_and_not_even_made(
    opened: Open, log: MemoryLog, allocator: PlainAllocator
) -> None:
    limit = 2**20
    async with opened() as service:
        service._prepared.limit_bytes = limit
        errors = await service.commit_offsets("g" * 10_000, LONG)
        taken = [partition for partition, error in errors.items() if error is ErrorCode.NONE]
        assert set(errors) == set(LONG)
        assert set(errors.values()) == {ErrorCode.NONE, ErrorCode.COORDINATOR_NOT_AVAILABLE}
        assert limit < 10_000 * len(taken) < limit + 2 * SETTINGS.append_bytes_max
        assert set((await service.fetch_offsets("g" * 10_000))[1]) == set(taken)
