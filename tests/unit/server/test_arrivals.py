"""Clients that connect are let in some at a time, by turns, at the cost of their address."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import pytest
from tests.unit.api.fakes import FakeClock, FakeLogs
from tests.unit.server.harness import Harness, serving, until

from penstock.server import arrivals
from penstock.server.arrivals import ACCEPTS_MAX
from penstock.server.visitors import Visitors
from penstock.time_shares import WINDOW_S, TimeShares
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.api_versions import ApiVersionsRequest

pytestmark = pytest.mark.anyio

#: Another address of this machine than the one that clients come from.
ELSEWHERE = "127.0.0.2"


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    found: list[socket.socket] = []
    yield found
    for one in found:
        one.close()


def come(harness: Harness, clients: list[socket.socket], count: int, address: str = "127.0.0.1") -> None:
    """Connect without a turn of the loop: the system keeps them until they are accepted."""
    for _ in range(count):
        one = socket.socket()
        clients.append(one)
        one.bind((address, 0))
        one.connect(("127.0.0.1", harness.server.endpoints[0].port))


def limit_visitors(harness: Harness) -> None:
    """The clients that come from here used more than their part."""
    core = harness.server.core
    (member,) = [member for member, _ in core.visitors._members.values()]
    core.loop_time.used(member, 1.0, 0.0, core.time())
    member.limit(math.ulp(0.0))
    core.loop_time._limited.append(member)  # until the window ends


def passing(clock: FakeClock, condition: Callable[[], bool]) -> Callable[[], bool]:
    """``condition``, with some time that passes whenever it is asked."""

    def ask() -> bool:
        clock.now_s += WINDOW_S / 10
        return condition()

    return ask


async def test_of_many_that_connect_at_a_time_a_few_are_accepted_in_one_iteration(
    clients: list[socket.socket],
) -> None:
    count = 10 * ACCEPTS_MAX
    async with serving() as harness:
        server = harness.server
        come(harness, clients, count)
        most, before = 0, 0
        while len(server.connections) < count:
            await anyio.lowlevel.checkpoint()
            now = server.connections.total
            most, before = max(most, now - before), now
        assert 1 <= most <= 2 * ACCEPTS_MAX, "two listening sockets at most"
    assert len(server.core.visitors) == 0


async def test_while_those_of_an_address_used_their_part_they_wait_and_others_come_in(
    clients: list[socket.socket],
) -> None:
    clock = FakeClock()
    async with serving(FakeLogs(), clock=clock) as harness:
        server = harness.server
        come(harness, clients, 1)
        await until(lambda: len(server.connections) == 1)
        limit_visitors(harness)
        come(harness, clients, 5)
        await until(lambda: len(server._arrivals) == 5)
        come(harness, clients, 1, ELSEWHERE)
        await until(lambda: len(server.connections) == 2)
        assert {one.address for one in server.connections} == {"127.0.0.1", ELSEWHERE}
        assert len(server._arrivals) == 5
        await until(passing(clock, lambda: len(server.connections) == 7))
        assert len(server._arrivals) == 0


async def test_who_waits_when_the_server_stops_is_turned_away(clients: list[socket.socket]) -> None:
    async with serving(FakeLogs(), clock=FakeClock()) as harness:
        server = harness.server
        come(harness, clients, 1)
        await until(lambda: len(server.connections) == 1)
        limit_visitors(harness)
        come(harness, clients, 3)
        await until(lambda: len(server._arrivals) == 3)
    assert len(server._arrivals) == len(server.connections) == len(server.core.visitors) == 0
    assert [one.recv(1) for one in clients] == [b""] * 4


async def test_when_many_wait_the_system_keeps_the_others(
    clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "ARRIVALS_MAX", 4)
    clock = FakeClock()
    async with serving(FakeLogs(), clock=clock) as harness:
        server = harness.server
        come(harness, clients, 1)
        await until(lambda: len(server.connections) == 1)
        limit_visitors(harness)
        come(harness, clients, 9)
        await until(lambda: len(server._arrivals) == 4)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert len(server._arrivals) == 4
        await until(passing(clock, lambda: len(server.connections) == 10))


async def test_coming_and_going_is_paid_for_by_the_address() -> None:
    async with serving(FakeLogs(), clock=FakeClock()) as harness:
        core = harness.server.core
        async with await harness.connect() as one:
            await one.call(ApiKey.API_VERSIONS, 0, ApiVersionsRequest())
            (member,) = [member for member, _ in core.visitors._members.values()]
            came = member.used_s
            assert came > 0.0
            core.visitors.enter("127.0.0.1")  # it's still looked at when the last one is gone
        await until(lambda: len(harness.server.connections) == 0)
        assert member.used_s > came
        core.visitors.leave("127.0.0.1")
        assert len(core.visitors) == 0


async def test_without_descriptors_nobody_is_accepted_for_a_while_and_then_they_are(
    clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    accept = socket.socket.accept

    def short(sock: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise OSError(errno.EMFILE, "too many open files")
        return accept(sock)

    monkeypatch.setattr(arrivals, "_SHORT_S", 0.001)
    async with serving() as harness:
        monkeypatch.setattr(socket.socket, "accept", short)
        come(harness, clients, 3)
        await until(lambda: len(harness.server.connections) == 3)
    assert failures == 2


async def test_a_client_that_is_gone_before_it_is_accepted_keeps_no_other_out(
    clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    accept = socket.socket.accept

    def aborted(sock: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if not failures:
            failures += 1
            raise ConnectionAbortedError(errno.ECONNABORTED, "gone")
        return accept(sock)

    async with serving() as harness:
        monkeypatch.setattr(socket.socket, "accept", aborted)
        come(harness, clients, 1)
        await until(lambda: len(harness.server.connections) == 1)
    assert failures == 1


def test_visitors_have_one_account_of_an_address_as_long_as_one_is_there() -> None:
    shares = TimeShares()
    visitors = Visitors(shares.join, shares.leave)
    first, second, other = visitors.enter("a"), visitors.enter("a"), visitors.enter("b")
    assert first is second is not other
    visitors.leave("a")
    assert visitors.member("a") is first
    visitors.leave("a")
    visitors.leave("b")
    assert len(visitors) == 0
    assert visitors.enter("a") is not first


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": uses}) for uses in (False, True)], ids=["asyncio", "uvloop"]
)
async def test_a_connection_that_is_being_made_while_the_server_ends_is_told_of_its_end(
    clients: list[socket.socket],
) -> None:
    """Broken off in the middle, uvloop's transport is closed under a protocol that never hears of it."""
    heard: list[str] = []

    class Heard(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            heard.append("made")
            scope.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            heard.append("lost")

    async with serving() as harness:
        ours, theirs = socket.socketpair()
        clients.append(theirs)
        with anyio.CancelScope() as scope:
            arrived = harness.server._arrivals
            core = harness.server.core
            member = core.visitors.enter("127.0.0.1")
            await arrived._connect(arrivals._Arrival(ours, "127.0.0.1", member, lambda _: None), Heard)
        assert scope.cancelled_caught
        await until(lambda: heard == ["made", "lost"])
