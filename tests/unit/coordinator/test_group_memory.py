"""What groups take in memory is counted exactly and bounded; at the bound the answers are Kafka's."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog, entries, settle
from tests.unit.coordinator.test_group_service import REQUEST, SETTINGS, Calls, stable

from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import (
    GroupSettings,
    LeaveMember,
    OffsetAndMetadata,
    SyncRequest,
)
from penstock.errors import UnavailableError
from penstock.wire.error_codes import ErrorCode
from penstock_conformance.reference._allocator import PlainAllocator

pytestmark = pytest.mark.anyio
KIB = 1024
SMALL = replace(SETTINGS, memory_bytes_max=64 * KIB, member_bytes_max=8 * KIB)
Open: TypeAlias = Callable[..., AbstractAsyncContextManager[GroupService]]


@pytest.fixture
def allocator() -> PlainAllocator:
    return PlainAllocator(16 * KIB * KIB)


@pytest.fixture
def opened(log: MemoryLog, clock: FakeClock, allocator: PlainAllocator) -> Open:
    ids = itertools.count(1)

    @asynccontextmanager
    async def open_service(settings: GroupSettings = SMALL) -> AsyncIterator[GroupService]:
        async with LedService(log, settings, clock, lambda: str(next(ids)), allocator) as service:
            yield service

    return open_service


def used(service: GroupService) -> int:
    return service.statistics().memory.used_bytes


def charged(allocator: PlainAllocator) -> int:
    return allocator.statistics().used_by_purpose.get("groups", 0)


def with_metadata(size: int, **more: Any) -> Any:
    return replace(REQUEST, protocols=(("range", bytes(size)),), **more)


async def test_a_member_with_more_metadata_than_one_may_have_is_refused_for_good(opened: Open) -> None:
    async with opened() as service:
        result = await service.join("g", with_metadata(9 * KIB))
        assert result.error is ErrorCode.GROUP_MAX_SIZE_REACHED
        assert used(service) == 0


async def test_members_over_the_memory_are_told_to_come_again_and_others_go_on(
    opened: Open, clock: FakeClock
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        member = await stable(service, clock)
        calls = Calls(tasks)
        for number in range(40):
            calls.start(f"g{number}", service.join(f"g{number}", with_metadata(7 * KIB)))
        await settle()
        errors = {result.error for result in calls.results.values()}
        assert errors == {ErrorCode.COORDINATOR_NOT_AVAILABLE}
        assert 0 < 40 - len(calls.results) < 10
        assert used(service) <= SMALL.memory_bytes_max
        assert await service.heartbeat("g", member, 1) is ErrorCode.NONE
        # a member that comes back with what it had needs no more room
        calls.start("again", service.join("g", replace(REQUEST, member_id=member)))
        await settle()
        assert calls.results["again"].error is ErrorCode.NONE
        service.drain()


async def test_ids_that_are_given_out_and_never_come_back_are_bounded(opened: Open) -> None:
    """KIP-394: each JoinGroup without a member id gets one, and is remembered for a session timeout."""
    async with opened() as service:
        request = replace(REQUEST, client_id="c" * 3_000, require_known_member_id=True)
        errors = [(await service.join("g", request)).error for _ in range(100)]
        assert set(errors) == {ErrorCode.MEMBER_ID_REQUIRED, ErrorCode.COORDINATOR_NOT_AVAILABLE}
        assert used(service) <= SMALL.memory_bytes_max


async def test_groups_that_have_nothing_give_way_to_others_before_they_expire(
    opened: Open, clock: FakeClock
) -> None:
    """Refused members leave an empty group each, until it is looked what has expired: every ten minutes."""
    one = {("t", 0): OffsetAndMetadata(1)}
    async with opened() as service:
        assert await service.commit_offsets("kept", one) == {("t", 0): ErrorCode.NONE}
        errors = {(await service.join(f"g{at}", replace(REQUEST, protocols=()))).error for at in range(500)}
        assert errors == {ErrorCode.INCONSISTENT_GROUP_PROTOCOL, ErrorCode.COORDINATOR_NOT_AVAILABLE}
        await clock.advance(1_000)
        for number in range(10):
            assert await service.commit_offsets(f"more{number}", one) == {("t", 0): ErrorCode.NONE}
        kept = {group.group_id for group in (await service.list_groups())[1]}
        assert kept >= {"kept", *(f"more{number}" for number in range(10))}
        again = await service.join("kept", replace(REQUEST, require_known_member_id=True))
        assert again.error is ErrorCode.MEMBER_ID_REQUIRED


async def test_assignments_over_the_memory_are_refused(opened: Open, clock: FakeClock) -> None:
    async with opened() as service:
        member = await stable(service, clock)
        joined: list[Any] = []
        joined.append(await service.join("g", with_metadata(10, member_id=member)))
        synced = await service.sync(
            "g", SyncRequest(member_id=member, generation_id=2, assignments={member: bytes(60 * KIB)})
        )
        assert synced.error is ErrorCode.COORDINATOR_NOT_AVAILABLE
        assert used(service) < 16 * KIB


async def test_offsets_over_the_memory_are_refused_and_known_ones_go_on(opened: Open) -> None:
    async with opened() as service:
        offsets = {("t", partition): OffsetAndMetadata(1, -1, "m" * 100) for partition in range(100)}
        assert set((await service.commit_offsets("g", offsets)).values()) == {ErrorCode.NONE}
        more = {("u", partition): OffsetAndMetadata(1) for partition in range(200)}
        refused = ErrorCode.COORDINATOR_NOT_AVAILABLE
        assert set((await service.commit_offsets("g", more)).values()) == {refused}
        assert set((await service.commit_offsets("h", more)).values()) == {refused}
        assert set((await service.commit_offsets("g", offsets)).values()) == {ErrorCode.NONE}
        assert used(service) <= SMALL.memory_bytes_max


async def test_records_that_wait_for_a_slow_log_are_bounded(opened: Open, log: MemoryLog) -> None:
    settings = replace(SETTINGS, memory_bytes_max=8 * KIB * KIB)
    async with opened(settings) as service, anyio.create_task_group() as tasks:
        log.gate = anyio.Event()
        calls = Calls(tasks)
        for number in range(40):
            offsets = {("t", one): OffsetAndMetadata(1, -1, "m" * 4_000) for one in range(50)}
            calls.start(str(number), service.commit_offsets(f"g{number}", offsets))
        await settle()
        refused = [set(result.values()) for result in calls.results.values()]
        assert refused
        assert all(one == {ErrorCode.COORDINATOR_NOT_AVAILABLE} for one in refused)
        assert service.statistics().writes.used_bytes <= 2 * KIB * KIB
        log.gate.set()
        await settle()
        assert service.statistics().writes.used_bytes == 0


async def test_a_start_with_more_state_than_fits_keeps_it_and_takes_no_more(
    opened: Open, clock: FakeClock, allocator: PlainAllocator
) -> None:
    offsets = {("t", partition): OffsetAndMetadata(1) for partition in range(100)}
    async with opened() as service:
        await service.commit_offsets("g", offsets)
    assert charged(allocator) == 0
    tiny = replace(SMALL, memory_bytes_max=16 * KIB)
    async with opened(tiny) as service:
        assert used(service) > tiny.memory_bytes_max
        _, found = await service.fetch_offsets("g")
        assert len(found) == 100
        one = {("u", 0): OffsetAndMetadata(1)}
        assert await service.commit_offsets("g", one) == {("u", 0): ErrorCode.COORDINATOR_NOT_AVAILABLE}
        assert set((await service.commit_offsets("g", offsets)).values()) == {ErrorCode.NONE}
        assert await service.delete_groups(["g"]) == {"g": ErrorCode.NONE}
        assert await service.commit_offsets("g", one) == {("u", 0): ErrorCode.NONE}


async def test_timers_of_members_that_left_are_forgotten(opened: Open, clock: FakeClock) -> None:
    """A session may last half an hour; who joins and leaves all the time leaves one timer each behind."""
    settings = replace(SETTINGS, max_session_timeout_ms=1_800_000)
    async with opened(settings) as service:
        request = replace(REQUEST, session_timeout_ms=1_800_000, require_known_member_id=True)
        for number in range(3_000):
            given_id = (await service.join(f"g{number}", request)).member_id
            await service.leave(f"g{number}", [LeaveMember(given_id)])
        assert service._timers.held <= 1_001
        await clock.advance(
            settings.offsets_retention_check_interval_ms
        )  # until then groups stay, as in Kafka
        while service.statistics().groups:  # they are looked at some at a time
            await settle()
        assert used(service) == 0


@settings(
    max_examples=examples(40),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["join", "again", "sync", "leave", "commit", "forget", "delete", "time", "fail", "move"]
            ),
            st.integers(0, 2),
            st.integers(0, 3_000),
        ),
        max_size=30,
    )
)
def test_any_history_is_counted_exactly_and_ends_at_nothing(steps: list[tuple[str, int, int]]) -> None:
    anyio.run(_live, steps)


async def _live(steps: list[tuple[str, int, int]]) -> None:
    log, clock, allocator = MemoryLog(), FakeClock(), PlainAllocator(64 * KIB * KIB)
    ids = itertools.count(1)
    async with LedService(log, SETTINGS, clock, lambda: str(next(ids)), allocator) as service:
        async with anyio.create_task_group() as tasks:
            calls = Calls(tasks)
            for number, (step, which, size) in enumerate(steps):
                group_id = f"g{which}"
                entry = entries(service).get(group_id)
                members = list(entry.group.members) if entry is not None else []
                generation = entry.group.generation_id if entry is not None else 0
                log.error = None
                if step in ("join", "again"):
                    member_id = members[size % len(members)] if members and step == "again" else ""
                    request = with_metadata(
                        size,
                        member_id=member_id,
                        require_known_member_id=size % 3 == 0,
                        group_instance_id=f"i{size % 2}" if size % 5 == 0 and not member_id else None,
                    )
                    calls.start(str(number), service.join(group_id, request))
                elif step == "sync" and members:
                    assignments = {name: bytes(size) for name in members}
                    for name in members:
                        sync = SyncRequest(member_id=name, generation_id=generation, assignments=assignments)
                        calls.start(f"{number}{name}", service.sync(group_id, sync))
                elif step == "leave":
                    pending = list(entry.group.pending_members) if entry is not None else []
                    leaving = [LeaveMember(name) for name in (members + pending)[:2]]
                    calls.start(str(number), service.leave(group_id, leaving))
                elif step == "commit":
                    offsets = {("t", size % 7): OffsetAndMetadata(1, -1, "m" * size)}
                    calls.start(str(number), service.commit_offsets(group_id, offsets))
                elif step == "forget":
                    calls.start(str(number), service.delete_offsets(group_id, [("t", size % 7)]))
                elif step == "delete":
                    calls.start(str(number), service.delete_groups([group_id]))
                elif step == "fail":
                    log.error = UnavailableError("the log fails")
                elif step == "time":
                    await clock.advance(size * 5)
                elif step == "move":  # the partition goes, and comes back
                    service.resign(which)
                    service.lead(which)
                await settle()
            log.error = None
            service.drain()
            await settle()
            expected = sum(
                entry.group.size_bytes + len(entry.value or b"") for entry in entries(service).values()
            )
            assert used(service) == expected
            for entry in entries(service).values():
                assert entry.group._members.size_bytes == sum(
                    one.size_bytes for one in entry.group.members.values()
                )
                fresh = type(entry.group.offsets)()
                for item in entry.group.offsets.items():
                    fresh.restore(*item)
                assert entry.group.offsets.size_bytes == fresh.size_bytes
            await clock.advance(SETTINGS.max_session_timeout_ms)
            await service.delete_groups(list(entries(service)))
            await settle()
            assert {name: entry.group.state for name, entry in entries(service).items()} == {}
            assert used(service) == 0
            assert charged(allocator) == 0
            tasks.cancel_scope.cancel()
    assert allocator.statistics().used_bytes == 0
