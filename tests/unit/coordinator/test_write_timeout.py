"""Writes to the group log that take too long: whoever waits is told so, and what lands later counts all the same."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog, settle
from tests.unit.coordinator.test_group_service import OFFSET, REQUEST, SETTINGS, TP, Calls, stable

from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupState, LeaveMember, SyncRequest
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio
LATE = ErrorCode.COORDINATOR_NOT_AVAILABLE


@pytest.fixture
async def service(log: MemoryLog, clock: FakeClock) -> AsyncIterator[GroupService]:
    ids = itertools.count(1)
    settings = replace(SETTINGS, append_bytes_max=2_000)
    async with LedService(log, settings, clock, lambda: str(next(ids))) as service:
        yield service


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    async with anyio.create_task_group() as tasks:
        yield Calls(tasks)


def hold(log: MemoryLog) -> anyio.Event:
    """Nothing is durable any more until this is set."""
    log.gate = anyio.Event()
    return log.gate


async def test_a_commit_that_takes_too_long_is_answered_and_visible_once_it_lands(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    gate = hold(log)
    calls.start("commit", service.commit_offsets("g", {TP: OFFSET}))
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms - 1)
    assert calls.results == {}
    await clock.advance(1)
    assert calls.results == {"commit": {TP: LATE}}
    assert (await service.fetch_offsets("g"))[1] == {}
    gate.set()
    await settle()
    assert set((await service.fetch_offsets("g"))[1]) == {TP}


async def test_of_a_long_commit_only_what_is_not_durable_in_time_is_refused(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    offsets = {("t", index): OFFSET for index in range(60)}
    first = hold(log)
    calls.start("commit", service.commit_offsets("g", offsets))
    await settle()
    gate = hold(log)  # of the sets that come after the first
    first.set()
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms)
    durable = (await service.fetch_offsets("g"))[1]
    assert 0 < len(durable) < len(offsets)
    assert calls.results == {"commit": {one: ErrorCode.NONE if one in durable else LATE for one in offsets}}
    gate.set()


async def test_an_assignment_that_takes_too_long_is_refused_and_the_group_rebalances(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    calls.start("a", service.join("g", REQUEST))
    calls.start("b", service.join("g", REQUEST))
    await settle()
    await clock.advance(2 * SETTINGS.initial_rebalance_delay_ms)
    members = [calls.results.pop(name).member_id for name in ("a", "b")]
    gate = hold(log)
    for member in members:
        calls.start(member, service.sync("g", SyncRequest(member_id=member, generation_id=1)))
        await settle()
    await clock.advance(SETTINGS.write_timeout_ms - 1)
    assert calls.results == {}
    await clock.advance(1)
    assert [calls.results[member].error for member in members] == [LATE, LATE]
    assert await service.heartbeat("g", members[0], 1) is ErrorCode.REBALANCE_IN_PROGRESS
    gate.set()
    await settle()
    (described,) = await service.describe(["g"])
    assert described.state is GroupState.PREPARING_REBALANCE, "the assignment lands, and nobody has it"
    assert {one.assignment for one in described.members} == {b""}
    log.gate = None
    for member in members:
        calls.start(member, service.join("g", replace(REQUEST, member_id=member)))
    await settle()
    assert [calls.results[member].generation_id for member in members] == [2, 2]


async def test_a_static_member_whose_replacement_takes_too_long_is_told_so(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    member = await stable(service, clock, group_instance_id="i")
    gate = hold(log)
    calls.start("join", service.join("g", replace(REQUEST, group_instance_id="i")))
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms)
    assert calls.results["join"].error is LATE
    assert await service.heartbeat("g", member, 1, "i") is ErrorCode.NONE, "the one before is a member again"
    gate.set()


async def test_the_last_member_that_leaves_is_answered_in_time(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    member = await stable(service, clock)
    gate = hold(log)
    calls.start("leave", service.leave("g", [LeaveMember(member)]))
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms)
    assert calls.results == {"leave": (LATE, [])}
    assert await service.heartbeat("g", member, 1) is ErrorCode.UNKNOWN_MEMBER_ID
    gate.set()


async def test_deleted_offsets_are_gone_once_that_lands_and_the_rest_is_left_alone(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    offsets = {("t", index): OFFSET for index in range(200)}
    await service.commit_offsets("g", offsets)
    gate = hold(log)
    calls.start("delete", service.delete_offsets("g", list(offsets)))
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms)
    assert calls.results == {"delete": (LATE, {})}
    assert set((await service.fetch_offsets("g"))[1]) == set(offsets)
    gate.set()
    await settle()
    assert 0 < len((await service.fetch_offsets("g"))[1]) < len(offsets)


async def test_whoever_comes_during_a_deletion_that_takes_too_long_is_let_in_only_when_its_end_is_known(
    service: GroupService, log: MemoryLog, clock: FakeClock, calls: Calls
) -> None:
    """A commit that is let in before would be forgotten with the group once the tombstones land."""
    await service.commit_offsets("g", {("t", 1): OFFSET})
    gate = hold(log)
    calls.start("delete", service.delete_groups(["g"]))
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms)
    assert calls.results == {"delete": {"g": LATE}}
    calls.start("early", service.commit_offsets("g", {TP: OFFSET}))
    await settle()
    await clock.advance(SETTINGS.write_timeout_ms)
    assert calls.results["early"] == {TP: LATE}
    calls.start("late", service.commit_offsets("g", {TP: OFFSET}))
    await settle()
    gate.set()
    await settle()
    assert calls.results["late"] == {TP: ErrorCode.NONE}
    assert set((await service.fetch_offsets("g"))[1]) == {TP}
