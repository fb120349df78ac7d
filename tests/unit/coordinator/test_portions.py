"""Long work of groups is done in portions: others get their turn, and what they do meanwhile counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Self, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog, settle
from tests.unit.coordinator.test_group_service import OFFSET, REQUEST, SETTINGS

from penstock.api import find_coordinator, groups
from penstock.api.group_offsets import handle_offset_fetch
from penstock.coordinator import group_coordinator, records
from penstock.coordinator.answers import ANSWERS
from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_offsets import OffsetBook
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupSettings, OffsetAndMetadata, SyncRequest, TopicPartition
from penstock.coordinator.timers import Timers
from penstock.coordinator.waiting import Waiter
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_groups import DescribeGroupsRequest
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from penstock.wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestGroup
from penstock.wire.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from penstock.work.pieces import PORTION

pytestmark = pytest.mark.anyio
LONG: Final = {("t", index): OffsetAndMetadata(index) for index in range(1_000)}
Open: TypeAlias = Callable[..., AbstractAsyncContextManager[GroupService]]


@pytest.fixture
def opened(log: MemoryLog, clock: FakeClock) -> Open:
    ids = itertools.count(1)

    @asynccontextmanager
    async def open_service(settings: GroupSettings = SETTINGS) -> AsyncIterator[GroupService]:
        async with LedService(log, settings, clock, lambda: str(next(ids))) as service:
            yield service

    return open_service


class Turns:
    """Counts calls of functions by the turn of the loop that they are made in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._turn = 0
        self._calls: Counter[int] = Counter()

    def count(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls[self._turn] += 1
            return real(*args, **kwargs)

        self._patch.setattr(owner, name, counted)

    @property
    def calls(self) -> int:
        return self._calls.total()

    @property
    def most(self) -> int:
        """Calls in one turn."""
        return max(self._calls.values())

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._turn_over)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _turn_over(self) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            self._turn += 1


async def test_filters_of_a_list_are_read_in_portions(opened: Open) -> None:
    """A request of a megabyte may have 180,000 states, each of which was read in one go."""
    read: list[int] = []
    turn = 0

    class State(str):
        __slots__ = ()

        def lower(self) -> str:
            read.append(turn)
            return super().lower()

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await anyio.lowlevel.checkpoint()

    async with opened() as service, anyio.create_task_group() as tasks:
        tasks.start_soon(take_turns)
        await service.list_groups([State("Empty")] * 5_000, [State("classic")] * 5_000)
        tasks.cancel_scope.cancel()
    assert len(read) == 10_000
    assert max(Counter(read).values()) <= 2_000


@pytest.mark.parametrize("what", ["offsets", "group"])
async def test_tombstones_of_many_offsets_are_made_in_portions(
    opened: Open, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with opened() as service:
        await service.commit_offsets("g", LONG)
        turns = Turns(monkeypatch)
        turns.count(group_coordinator, "encode_offset_key")
        async with turns:
            if what == "group":
                assert await service.delete_groups(["g"]) == {"g": ErrorCode.NONE}
            else:
                errors = dict.fromkeys(LONG, ErrorCode.NONE)
                assert await service.delete_offsets("g", list(LONG)) == (ErrorCode.NONE, errors)
        assert turns.calls == len(LONG)
        assert turns.most <= PORTION + 1
        assert (await service.fetch_offsets("g"))[1] == {}


async def test_groups_are_listed_in_portions(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as service:
        for number in range(700):
            await service.commit_offsets(f"g{number}", {("t", 0): OFFSET})
        turns = Turns(monkeypatch)
        turns.count(Group, "listing")
        async with turns:
            _, groups = await service.list_groups()
        assert len(groups) == turns.calls == 700
        assert turns.most <= PORTION + 1


async def test_offsets_that_have_expired_are_looked_for_in_portions(
    opened: Open, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where none has."""
    async with opened() as service:
        for number in range(200):
            await service.commit_offsets(f"g{number}", {("t", 0): OFFSET})
        turns = Turns(monkeypatch)
        turns.count(Group, "expired_offsets")
        async with turns:
            await clock.advance(SETTINGS.offsets_retention_check_interval_ms)
        assert turns.calls >= 200
        assert turns.most <= PORTION


async def test_offsets_of_a_deleted_topic_are_removed_from_some_groups_at_a_time(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as service:
        for number in range(700):
            await service.commit_offsets(f"g{number}", {("t", 0): OFFSET, ("u", 0): OFFSET})
        turns = Turns(monkeypatch)
        turns.count(group_coordinator, "encode_offset_key")
        looked = Turns(monkeypatch)
        looked.count(OffsetBook, "of_topics")
        async with turns, looked:
            await service.on_topics_deleted(["t"])
            await service.on_topics_deleted(["none"])
        assert turns.calls == 700
        assert turns.most <= 200
        assert looked.calls >= 2 * 700
        assert looked.most <= 3 * 200
        assert all([set((await service.fetch_offsets(f"g{n}"))[1]) == {("u", 0)} for n in range(700)])


@pytest.mark.parametrize(("key", "at_a_time"), [("g" * 1_000, 2), ("g", 2 * PORTION)])
async def test_coordinators_of_groups_with_long_names_are_found_one_by_one(
    opened: Open, monkeypatch: pytest.MonkeyPatch, key: str, at_a_time: int
) -> None:
    """A request of 1 MiB holds 32 names of 32 KiB; hashing them takes 0.1 s."""
    turns = Turns(monkeypatch)
    async with opened() as service, turns:
        turns.count(service, "coordinates")
        context: Any = SimpleNamespace(
            version=4,
            groups=service,
            denied=lambda *_: (),
            client=SimpleNamespace(advertised=SimpleNamespace(node_id=1, host="h", port=1)),
        )
        request = FindCoordinatorRequest(
            key_type=0, coordinator_keys=[f"{key}{number}" for number in range(300)]
        )
        response = await find_coordinator.handle_find_coordinator(request, context)
    assert len(response.coordinators) == turns.calls == 300
    assert at_a_time // 4 <= turns.most <= at_a_time


class Seen(list[Any]):
    """Elements of a request, each told when somebody comes to it."""

    def __init__(self, elements: Iterable[Any]) -> None:
        super().__init__(elements)
        self.come_to: Callable[[Any], Any] = lambda element: element

    def __iter__(self) -> Iterator[Any]:
        for element in super().__iter__():
            yield self.come_to(element)


async def test_what_members_join_and_sync_with_is_taken_in_portions(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of 4 MiB holds a million of them, and anybody may send it."""
    protocols = Seen(JoinGroupRequestProtocol(name=f"p{n}", metadata=b"") for n in range(9_000))
    assignments = Seen(SyncGroupRequestAssignment(member_id=f"m{n}", assignment=b"") for n in range(9_000))
    turns = Turns(monkeypatch)
    turns.count(protocols, "come_to")
    turns.count(assignments, "come_to")
    join = JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        protocol_type="consumer",
        protocols=protocols,
    )
    sync = SyncGroupRequest(group_id="g", member_id="m", generation_id=1, assignments=assignments)
    async with opened() as service, turns:
        context: Any = SimpleNamespace(
            version=4, groups=service, is_long=False, client=SimpleNamespace(client_id="c", host="h")
        )
        joined = await groups.handle_join_group(join, context)
        synced = await groups.handle_sync_group(sync, context)
    assert joined.error_code == ErrorCode.GROUP_MAX_SIZE_REACHED
    assert synced.error_code == ErrorCode.UNKNOWN_MEMBER_ID
    assert turns.calls == 18_000
    assert turns.most <= 2 * PORTION + 1


async def test_sessions_that_end_together_are_ended_in_portions(
    opened: Open, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as service, anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(service.join, "g", REQUEST)
        await settle()
        await clock.advance(2 * SETTINGS.initial_rebalance_delay_ms)
        assert service.statistics().members == 300
        turns = Turns(monkeypatch)
        turns.count(Group, "timer_fired")
        async with turns:
            await clock.advance(REQUEST.session_timeout_ms)
        assert turns.calls >= 300
        assert turns.most <= PORTION + 1
        assert service.statistics().members == 0


async def test_members_of_a_large_group_are_answered_some_at_a_time(
    opened: Open, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [f"client-{number}" for number in range(1, 301)]
    answered: list[str] = []
    async with opened() as service, anyio.create_task_group() as tasks:
        turns = Turns(monkeypatch)
        turns.count(Waiter, "answer")
        encoded = Turns(monkeypatch)
        encoded.count(records, "MemberValue")

        async def sync(member: str) -> None:
            request = SyncRequest(member_id=member, generation_id=1, assignments=dict.fromkeys(members, b"x"))
            assert (await service.sync("g", request)).assignment == b"x"
            answered.append(member)

        for _ in members:
            tasks.start_soon(service.join, "g", REQUEST)
        await settle()
        async with turns:
            await clock.advance(2 * SETTINGS.initial_rebalance_delay_ms)
        assert turns.calls == len(members)
        assert turns.most <= ANSWERS
        for member in reversed(members):
            tasks.start_soon(sync, member)
        async with turns, encoded:
            await settle()
        assert encoded.calls == len(members)
        assert encoded.most <= PORTION
        assert answered == members
        assert turns.most <= ANSWERS
        made = Turns(monkeypatch)
        made.count(groups, "DescribedGroupMember")
        context: Any = SimpleNamespace(denied=lambda *_: set(), groups=service, version=5)
        async with made:
            response = await groups.handle_describe_groups(DescribeGroupsRequest(groups=["g"]), context)
        assert len(response.groups[0].members) == made.calls == len(members)
        assert made.most <= PORTION
        assert context.is_long, "others have their turn while it is encoded, too"
        for _ in members:
            tasks.start_soon(service.join, "h", REQUEST)
        await settle()
        service.drain()
    assert turns.calls == 3 * len(members), "also those whose turn hadn't come when the scope ended"


async def test_an_offset_that_is_committed_while_tombstones_of_old_ones_are_made_is_kept(
    opened: Open, clock: FakeClock
) -> None:
    """Its tombstone would be behind its record: the loss of an acknowledged commit."""
    old = dict(itertools.islice(LONG.items(), 500))
    async with opened() as service, anyio.create_task_group() as tasks:
        await service.commit_offsets("g", old)
        await clock.advance(SETTINGS.offsets_retention_ms - 1_000)
        service.drain()
        clock._now_ms += 2_000
        tasks.start_soon(service._expire_offsets)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        assert len((await service.fetch_offsets("g"))[1]) == len(old), "tombstones are being made"
        last = ("t", len(old) - 1)
        assert await service.commit_offsets("g", {last: OFFSET}) == {last: ErrorCode.NONE}
        await settle()
        assert set((await service.fetch_offsets("g"))[1]) == {last}
    async with opened() as service:
        assert set((await service.fetch_offsets("g"))[1]) == {last}


async def test_offsets_of_a_topic_that_is_subscribed_to_while_they_are_deleted_are_said_to_be_kept(
    opened: Open, log: MemoryLog, clock: FakeClock
) -> None:
    answers: list[tuple[ErrorCode, dict[TopicPartition, ErrorCode]]] = []
    async with (
        opened(replace(SETTINGS, append_bytes_max=2_000)) as service,
        anyio.create_task_group() as tasks,
    ):
        await service.commit_offsets("g", LONG)

        async def delete() -> None:
            answers.append(await service.delete_offsets("g", list(LONG)))

        log.gate = anyio.Event()
        tasks.start_soon(delete)
        await settle()
        tasks.start_soon(service.join, "g", REQUEST)
        await settle()
        await clock.advance(SETTINGS.initial_rebalance_delay_ms)
        log.gate.set()
        while not answers:
            await settle()
        kept = (await service.fetch_offsets("g"))[1]
        assert 0 < len(kept) < len(LONG), "some were on their way when the member came"
        assert answers == [
            (
                ErrorCode.NONE,
                {one: ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC if one in kept else ErrorCode.NONE for one in LONG},
            )
        ]
        service.drain()


async def test_timers_of_an_owner_that_is_forgotten_between_two_portions_fire_no_more(
    clock: FakeClock,
) -> None:
    fired: list[int] = []

    def fire(owner: str, key: int, _now_ms: int) -> None:
        fired.append(key)
        tasks.start_soon(forget, owner)

    async def forget(owner: str) -> None:
        timers.forget(owner)

    timers = Timers[str, int](clock, fire, lambda _owner, _key: True)
    for key in range(3 * PORTION):
        timers.schedule("partition", key, clock.now_ms())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timers.run)
        await settle()
        tasks.cancel_scope.cancel()
    assert fired == list(range(PORTION))


@pytest.mark.parametrize("length", [1, 1_000])
async def test_many_groups_are_looked_at_in_one_go_unless_their_names_are_long(
    opened: Open, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """300,000 groups aren't 300,000 turns, each of which waits beside others; but hashing names takes time."""
    names = [f"{number:0{length}}" for number in range(300)]
    fetched = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id=name, topics=[]) for name in names])
    async with opened() as service:
        context: Any = SimpleNamespace(version=8, groups=service, may=lambda *_: True, denied=lambda *_: ())
        for asked in (
            partial(service.describe, names),
            partial(service.delete_groups, names),
            partial(handle_offset_fetch, fetched, context),
        ):
            turns = Turns(monkeypatch)
            turns.count(service, "_find")
            async with turns:
                await asked()
            assert turns.calls == 300
            assert turns.most <= (PORTION if length == 1 else 2)
            assert turns.most >= (PORTION // 4 if length == 1 else 1)
