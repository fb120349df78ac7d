"""Who waits for room in the log gets it by address, then by connection, and some are woken at a time."""

from __future__ import annotations

import anyio
import pytest
from tests.unit.api.fakes import FakeLogs, make_batch
from tests.unit.server.harness import Client, offsets, produce, serving, until

from penstock.server.room_turns import AT_ONCE, RoomTurns

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    param: tuple[str, dict[str, bool]] = request.param
    return param


async def turns_of_the_loop() -> None:
    """Until who can go on has done so: each step of it is a few turns."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


class Log:
    """A log without room: lets one of those that wait at it go on at a time."""

    def __init__(self) -> None:
        self.turns = RoomTurns()
        self.at_log: list[tuple[str, anyio.Event]] = []
        self.most = 0
        self.done: list[str] = []

    async def append(self, address: str, size: int = 1) -> None:
        async def wait() -> None:
            event = anyio.Event()
            self.at_log.append((address, event))
            self.most = max(self.most, len(self.at_log))
            await event.wait()

        await self.turns.wait(address, size, wait)
        self.done.append(address)

    async def let_go_on(self, count: int) -> None:
        for _ in range(count):
            _, event = self.at_log.pop(0)
            event.set()
            await turns_of_the_loop()

    async def come(self, tasks: anyio.abc.TaskGroup, address: str, count: int, size: int = 1) -> None:
        for _ in range(count):
            tasks.start_soon(self.append, address, size)
        await turns_of_the_loop()


async def test_so_many_wait_at_the_log_at_once_and_all_get_there() -> None:
    log = Log()
    async with anyio.create_task_group() as tasks:
        await log.come(tasks, "a", 10 * AT_ONCE)
        assert len(log.at_log) == AT_ONCE
        await log.let_go_on(10 * AT_ONCE)
    assert log.most == AT_ONCE
    assert len(log.done) == 10 * AT_ONCE


async def test_an_address_with_many_connections_goes_behind_one_that_got_less() -> None:
    log = Log()
    async with anyio.create_task_group() as tasks:
        await log.come(tasks, "bad", 20 * AT_ONCE)
        await log.come(tasks, "good", 4)
        await log.let_go_on(9)
        assert [address for address, _ in log.at_log].count("good") == 4, (
            "in turn, though all others came first"
        )
        await log.let_go_on(20 * AT_ONCE + 4 - 9)
    assert log.done.index("good") < 2 * AT_ONCE


async def test_addresses_get_room_by_bytes() -> None:
    log = Log()
    async with anyio.create_task_group() as tasks:
        await log.come(tasks, "first", AT_ONCE)
        await log.come(tasks, "large", 50, 10)
        await log.come(tasks, "small", 50, 1)
        await log.let_go_on(AT_ONCE + 33)
        got = log.done[AT_ONCE:]
        assert got.count("small") >= 9 * (got.count("large") - 1)
        await log.let_go_on(100 - 33)


async def test_who_waits_again_comes_behind_the_others_of_its_address() -> None:
    log = Log()
    order: list[int] = []

    async def connection(number: int) -> None:
        for _ in range(2):
            await log.append("a")
            order.append(number)

    count = 2 * AT_ONCE
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(connection, number)
        await anyio.wait_all_tasks_blocked()
        await log.let_go_on(2 * count)
    assert sorted(order[:count]) == list(range(count)), "everybody once before anybody twice"


@pytest.mark.parametrize("at_log", [True, False], ids=["at the log", "before it"])
async def test_who_gives_up_leaves_its_place_to_others(at_log: bool) -> None:
    log = Log()
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as given_up:
            await log.come(given_up, "a", AT_ONCE if at_log else 2 * AT_ONCE)
            await log.come(tasks, "b", 1)
            given_up.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        log.at_log = [one for one in log.at_log if one[0] == "b"]
        await log.let_go_on(1)
    assert log.done == ["b"]


async def test_one_producer_gets_room_beside_an_address_with_a_hundred() -> None:
    logs = FakeLogs()
    logs.add("t", 2)
    logs.room = 0
    async with serving(logs) as harness:
        server = harness.server
        bad = [await harness.connect() for _ in range(100)]
        for client in bad:
            await client.send(0, 9, produce(make_batch(1, b"x"), timeout_ms=60_000))
        await until(lambda: server.statistics().waiting_for_room == 100)
        stream = await anyio.connect_tcp("127.0.0.1", server.endpoints[0].port, local_host="127.0.0.2")
        async with Client(stream) as good:
            await good.send(0, 9, produce(make_batch(1, b"x"), timeout_ms=60_000))
            await until(lambda: server.statistics().waiting_for_room == 101)
            logs.make_room(AT_ONCE + 1)
            assert offsets(await good.receive())[0][0] == 0
            logs.make_room(1000)
            for client in bad:
                assert offsets(await client.receive())[0][0] == 0
                await client.__aexit__(None, None, None)
