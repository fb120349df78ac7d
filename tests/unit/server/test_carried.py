"""What connections carry between reads is charged and bounded, and nobody waits for what it carries itself."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.api.fakes import FakeAllocator, FakeClock, FakeLogs, make_batch
from tests.unit.server.harness import Client, offsets, produce, serving, until
from tests.unit.server.test_fairness import KIB, MIB, announcement, crowd, leave

from penstock.limits import ALLOCATOR_BYTES_MIN, Budget
from penstock.server import registry
from penstock.server.carried import FREE_BYTES, Carried
from penstock.server.connection import Connection
from penstock.server.settings import LARGE_FRAME_BYTES, SHORT_BYTES
from penstock.shares import Member, Shares
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic

pytestmark = pytest.mark.anyio

LIMIT = 4 * MIB
MOST = FREE_BYTES + LIMIT


@pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    param: tuple[str, dict[str, bool]] = request.param
    return param


@pytest.fixture
def logs() -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 2)
    return logs


class Crowd:
    """Members that carry: their shares, and who gave way."""

    def __init__(self) -> None:
        self.allocator = FakeAllocator()
        self.carried = Carried(LIMIT, self.allocator)  # type: ignore[arg-type]
        self.shares = Shares(1 << 30, credit=1, credit_max=1)

    def carry(self, address: str, size: int, *, now: float = 0.0, busy: bool = False) -> Member:
        member = self.shares.join(address, None, now)
        self.shares.take(member, size, now)
        member.busy = busy
        self.carried.set(member, size)
        return member

    def shed(self, now: float = 0.0) -> list[Member]:
        """Let who is to lose its place lose it."""
        gone = []
        for member in self.carried.victims(now):
            self.carried.set(member, 0)
            gone.append(member)
        return gone


# -- the account ------------------------------------------------------------------------------------------


def test_what_is_carried_is_charged_but_for_what_every_broker_carries() -> None:
    crowd = Crowd()
    member = crowd.carry("a", FREE_BYTES)
    assert crowd.allocator.used == 0
    crowd.carried.set(member, FREE_BYTES + MIB)
    assert crowd.allocator.used == MIB
    crowd.carried.set(member, 0)
    assert crowd.allocator.used == crowd.carried.bytes == 0


def test_no_more_is_charged_than_the_budget_leaves() -> None:
    crowd = Crowd()
    crowd.carry("a", 3 * LIMIT)
    assert crowd.allocator.used == LIMIT


@given(st.integers(ALLOCATOR_BYTES_MIN, 1 << 40), st.integers(0, 4))
def test_what_is_carried_takes_nothing_of_the_quarter_that_payload_has_alone(
    allocator: int, groups: int
) -> None:
    # groups: as configured, up to the quarter that they may have at most
    budget = Budget.of(allocator=allocator, wal=0, groups=allocator * groups // 16)
    state = budget.groups + budget.producers + budget.sessions
    assert 0 <= budget.carried <= allocator // 16
    assert state + allocator // 4 + budget.carried <= allocator * 3 // 4


# -- who gives way ----------------------------------------------------------------------------------------


def test_below_half_of_the_limit_nobody_gives_way() -> None:
    crowd = Crowd()
    crowd.carry("a", MOST // 2)
    assert crowd.shed(now=1000.0) == []


def test_above_half_of_the_limit_who_is_stuck_gives_way_until_it_is_half() -> None:
    crowd = Crowd()
    stuck = [crowd.carry("a", MOST // 8) for _ in range(4)]
    busy = crowd.carry("a", MOST // 8, busy=True)
    moving = crowd.carry("a", MOST // 8, now=1000.0)
    assert crowd.shed(now=1000.0) == stuck[:2], "longest without moving first"
    assert not busy.is_stuck(1000.0)
    assert not moving.is_stuck(1000.0)


def test_above_the_limit_the_address_that_carries_most_gives_way_longest_without_moving_first() -> None:
    crowd = Crowd()
    good = crowd.carry("good", MOST // 8)
    busy = crowd.carry("bad", MOST // 8, busy=True)
    bad = [crowd.carry("bad", MOST // 8) for _ in range(7)]
    for size in (MOST // 8 - 1, MOST // 8):
        crowd.carried.set(bad[0], size)  # it moved
    gone = crowd.shed()
    assert gone == [bad[1], bad[2]]
    assert good not in gone
    assert busy not in gone, "who waits for us comes after the others of its address"


def test_above_the_limit_who_waits_for_us_gives_way_too() -> None:
    crowd = Crowd()
    waiting = [crowd.carry("a", MOST // 8, busy=True) for _ in range(9)]
    assert crowd.shed() == waiting[:2]
    assert not crowd.carried.is_over


@pytest.mark.parametrize("busy", [False, True])
def test_above_the_limit_who_carries_little_keeps_its_place_beside_others_of_its_address(busy: bool) -> None:
    """Though it hasn't moved for longest: it asked for little, and waits for its turn behind those who carry much."""
    crowd = Crowd()
    good = crowd.carry("a", 512, busy=busy)
    bad = [crowd.carry("a", MOST // 200, busy=True) for _ in range(201)]
    gone = crowd.shed()
    assert good not in gone
    assert gone == bad[: len(gone)]
    assert not crowd.carried.is_over


def test_addresses_that_carry_the_same_give_way_in_turn() -> None:
    crowd = Crowd()
    for _ in range(9):
        for address in "abcd":
            crowd.carry(address, MOST // 32)
    gone = crowd.shed()
    assert len(gone) == 8
    assert {sum(member.address == address for member in gone) for address in "abcd"} == {2}


# -- connections ------------------------------------------------------------------------------------------


async def test_halves_of_small_requests_are_charged(logs: FakeLogs) -> None:
    async with serving(logs, carried_bytes_max=16 * MIB) as harness:
        halves = await crowd(harness, 100, announcement(31_000) + bytes(30_000))
        assert harness.allocator.used >= 100 * 30_000 - FREE_BYTES
        assert harness.server.statistics().connections_closed_for_others == 0
        await leave(halves)
        await until(lambda: harness.server.core.carried_bytes == 0)
        assert harness.allocator.used == 0


async def test_connections_that_carry_too_much_together_give_way_though_memory_is_free(
    logs: FakeLogs,
) -> None:
    async with serving(logs, carried_bytes_max=MIB) as harness:
        halves = await crowd(harness, 150, announcement(31_000) + bytes(30_000))
        await until(lambda: harness.server.core.carried_bytes <= 2 * MIB)
        assert harness.server.statistics().connections_closed_for_others >= 80
        assert harness.allocator.used <= 2 * MIB
        async with await harness.connect() as good:
            answer = await good.call(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 20_000)))
            assert offsets(answer) == [(0, 0)]
        await leave(halves)


async def test_of_those_that_carry_too_much_a_few_are_closed_in_an_iteration(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is above the limit goes at once, and what makes room for the next ones after that some at a time."""
    closed = [0]
    loop = asyncio.get_running_loop()
    lose_place_slowly = Connection.lose_place_slowly

    def count(connection: Connection) -> bool:
        if not harness.server.core.carried.is_over:
            closed[-1] += 1
        return lose_place_slowly(connection)

    def iterate() -> None:
        if closed[-1]:
            closed.append(0)
        ticks.append(loop.call_soon(iterate))

    monkeypatch.setattr(Connection, "lose_place_slowly", count)
    async with serving(logs, carried_bytes_max=3 * MIB) as harness:
        ticks = [loop.call_soon(iterate)]
        halves = await crowd(harness, 150, announcement(31_000) + bytes(30_000))
        await until(lambda: sum(closed) >= 12)
        ticks[-1].cancel()
        assert max(closed) <= 5, closed
        await leave(halves)


async def test_who_leaves_before_its_turn_to_be_closed_is_passed_over(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(logs, carried_bytes_max=MIB) as harness:
        halves = await crowd(harness, 3, announcement(31_000) + bytes(30_000))
        monkeypatch.setattr(Carried, "victims", lambda carried, _: iter(tuple(carried._members)))
        closing = harness.server.connections._shedding()
        next(closing)  # who is to go first is chosen
        await leave(halves[:1])
        await until(lambda: len(harness.server.connections) == 2)
        assert len(list(closing)) == 2, "the others are closed"
        assert harness.server.statistics().connections_closed_for_others == 2
        await leave(halves[1:])


async def test_who_carried_too_much_gives_it_back_at_once_and_is_closed_at_a_pace(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So thousands that come again whenever they are closed don't have the loop accept and close all the time."""
    at_once = registry._LEAVING_AT_ONCE
    monkeypatch.setattr(registry, "_LEAVING_AT_ONCE", 0)
    async with serving(logs, carried_bytes_max=MIB) as harness:
        halves = await crowd(harness, 150, announcement(31_000) + bytes(30_000))
        await until(lambda: harness.server.core.carried_bytes <= 2 * MIB)
        given_way = harness.server.statistics().connections_closed_for_others
        assert given_way >= 80
        assert harness.server.statistics().connections == 150
        before = harness.server.core.received_bytes
        for client in halves:
            await client.send_raw(bytes(100))
        await until(lambda: harness.server.core.received_bytes >= before + (150 - given_way) * 100)
        assert harness.server.core.received_bytes == before + (150 - given_way) * 100, (
            "nothing more is received"
        )
        monkeypatch.setattr(registry, "_LEAVING_AT_ONCE", at_once)
        await until(lambda: harness.server.statistics().connections == 150 - given_way)
        assert harness.server.statistics().connections_closed_for_others == given_way
        await leave(halves)
        await until(lambda: not len(harness.server.connections))


async def test_who_is_to_be_closed_anyway_gives_its_place_to_a_new_connection(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LEAVING_AT_ONCE", 0)
    async with serving(logs, carried_bytes_max=MIB, connections_max=150) as harness:
        halves = await crowd(harness, 150, announcement(31_000) + bytes(30_000))
        await until(lambda: harness.server.core.carried_bytes <= 2 * MIB)
        for _ in range(5):
            async with await harness.connect() as good:
                await good.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
        assert harness.server.statistics().connections_rejected == 0
        await leave(halves)


async def test_what_is_sent_behind_a_request_that_is_parked_is_little_when_all_carry_much(
    logs: FakeLogs,
) -> None:
    async with serving(logs, carried_bytes_max=5 * MIB) as harness:
        halves = await crowd(harness, 110, announcement(31_000) + bytes(30_000))
        assert harness.server.core.carried.is_high
        before = harness.server.core.carried_bytes
        async with await harness.connect() as client:
            fetch = parked(client)
            # with half of a request carried, what came next was received into all of the scratch buffer
            await client.send_raw(fetch[:20])
            await until(lambda: harness.server.core.carried_bytes > before)
            more = client.frame(ApiKey.API_VERSIONS, 0, ApiVersionsRequest(), answered=False)
            client.send_now(fetch[20:] + more * 1000)
            await until(lambda: harness.server.statistics().requests_in_flight == 1)
            assert harness.server.core.carried_bytes <= before + LARGE_FRAME_BYTES + SHORT_BYTES
            assert harness.server.core.carried_bytes <= before + SHORT_BYTES + 20
        await leave(halves)


@pytest.mark.parametrize("ends", ["reset", "time", "malformed"])
async def test_who_ends_while_it_waits_for_memory_carries_nothing_any_more(logs: FakeLogs, ends: str) -> None:
    """The first bytes of a large request are kept outside of the allocator until there is memory for it."""
    wait_ms = 50 if ends == "time" else 600_000
    async with serving(logs, memory_bytes=4 * MIB, memory_wait_ms_max=wait_ms) as harness:
        payload = harness.allocator.allocate_nowait(4 * MIB, "append")
        async with await harness.connect() as client:
            await client.send_raw(announcement(2 * MIB) + bytes(9_000))
            await until(lambda: harness.server.statistics().waiting_for_memory == 1 or ends == "time")
            if ends == "reset":
                assert harness.server.core.carried_bytes > 9_000
                await client.reset()
            elif ends == "malformed":
                (connection,) = harness.server.connections
                assert isinstance(connection, Connection)
                connection.channel.fault("it is closed for others")
            await until(lambda: not harness.server.statistics().connections)
        await until(lambda: harness.server.statistics().waiting_for_memory == 0)
        assert harness.server.core.carried_bytes == 0
        payload.release()


async def test_a_produce_never_waits_for_memory_that_copies_of_produces_hold(logs: FakeLogs) -> None:
    logs.room = 0
    async with serving(logs, clock=FakeClock(), memory_bytes=4 * MIB, carried_bytes_max=MIB // 2) as harness:
        payload = harness.allocator.allocate_nowait(4 * MIB, "append")
        clients = [await harness.connect() for _ in range(45)]
        for client in clients:
            await client.send(ApiKey.PRODUCE, 9, produce(make_batch(1, b"x" * 30_000), timeout_ms=60_000))
        await until(lambda: harness.server.statistics().waiting_for_room == 45)
        assert harness.server.core.carried_bytes > 45 * 30_000
        assert 0 < harness.allocator.used - 4 * MIB <= MIB // 2
        payload.release()
        logs.make_room(1000)
        await until(lambda: harness.server.core.carried_bytes == 0)
        answers = [offsets(await client.receive()) for client in clients]
        assert sorted(answers) == [[(0, at)] for at in range(45)]
        assert harness.server.statistics().connections_closed_for_others == 0
        await leave(clients)


def parked(client: Client) -> bytes:
    """A Fetch that is answered in minutes."""
    partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=MIB)
    request = FetchRequest(
        max_wait_ms=300_000,
        min_bytes=MIB,
        max_bytes=MIB,
        topics=[FetchTopic(topic="t", partitions=[partition])],
    )
    frame = client.frame(ApiKey.FETCH, 11, request)
    assert struct.unpack_from(">i", frame)[0] + 4 == len(frame) < 20 * KIB
    return frame
