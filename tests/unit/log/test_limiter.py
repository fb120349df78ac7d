"""The bytes limiter: its members wait their turn, and a cancelled wait leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from penstock.errors import FullError
from penstock.log.limiter import SERVED_AT_ONCE, BytesLimiter
from penstock.shares import Member

pytestmark = pytest.mark.anyio


def members(limiter: BytesLimiter, count: int, address: str = "here") -> list[Member]:
    return [limiter.join(address, None) for _ in range(count)]


async def test_charges_up_to_the_limit_and_one_larger_than_it_alone() -> None:
    limiter = BytesLimiter(100, credit=100, credit_max=100)
    first, second = members(limiter, 2)
    large = limiter.charge_nowait(1000, first)
    with pytest.raises(FullError, match="used=1000 limit=100"):
        limiter.charge_nowait(1, second)
    large.release()
    assert limiter.used == 0
    limiter.charge_nowait(30, first)
    with pytest.raises(FullError):
        limiter.charge_nowait(71, second)
    limiter.charge_nowait(30, second)


async def test_who_waits_is_served_when_others_give_back() -> None:
    limiter = BytesLimiter(100, credit=100, credit_max=100)
    first, second, third = members(limiter, 3)
    held = await limiter.charge(100, first)
    order: list[int] = []

    async def wait(member: Member, number: int, size: int) -> None:
        await limiter.charge(size, member)
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for member, number, size in ((second, 0, 20), (third, 1, 30)):
            tasks.start_soon(wait, member, number, size)
            await anyio.wait_all_tasks_blocked()
        assert limiter.waiting == 2
        assert limiter.is_short
        held.release()
    assert order == [0, 1]
    assert limiter.used == 50


async def test_of_a_crowd_that_waits_some_are_served_in_each_iteration_of_the_loop() -> None:
    """Each has a task that goes on then. Who comes meanwhile and needs less goes first."""
    crowd_size = 3 * SERVED_AT_ONCE
    limiter = BytesLimiter(1000, credit=1000, credit_max=1000)
    first, late, *crowd = members(limiter, 2 + crowd_size)
    held = [limiter.charge_nowait(1000, first)]
    order: list[Member] = []

    async def wait(member: Member, size: int) -> None:
        await limiter.charge(size, member)
        order.append(member)

    async with anyio.create_task_group() as tasks:
        for member in crowd:
            tasks.start_soon(wait, member, 20)
        await anyio.wait_all_tasks_blocked()
        while held:
            held.pop().release()
        assert limiter.waiting == crowd_size - SERVED_AT_ONCE
        limiter.serve()
        assert limiter.waiting == crowd_size - SERVED_AT_ONCE, "not more in the same iteration"
        tasks.start_soon(wait, late, 1)
        await anyio.lowlevel.checkpoint()
        assert limiter.waiting == crowd_size - 2 * SERVED_AT_ONCE
    assert set(order) == {late, *crowd}
    assert order.index(late) < crowd_size


async def test_a_cancelled_wait_gives_up_its_place() -> None:
    limiter = BytesLimiter(10, credit=10, credit_max=10)
    first, second, third = members(limiter, 3)
    held = limiter.charge_nowait(10, first)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limiter.charge, 10, second)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.charge, 4, third)
        await anyio.wait_all_tasks_blocked()
        held.release()
    assert limiter.used == 4


async def test_a_wait_cancelled_while_it_is_granted_either_has_the_bytes_or_gives_them_back() -> None:
    limiter = BytesLimiter(10, credit=10, credit_max=10)
    first, second = members(limiter, 2)
    held = limiter.charge_nowait(10, first)
    granted: list[int] = []

    async def wait() -> None:
        charge = await limiter.charge(10, second)
        granted.append(charge.size)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            held.release()
            scope.cancel()
    assert limiter.used == sum(granted)


async def test_who_finds_no_room_has_one_closed_that_is_stuck_and_no_more_than_it_needs() -> None:
    limiter = BytesLimiter(100, credit=100, credit_max=100, clock=lambda: 5.0)
    crowd = members(limiter, 3)
    for member in crowd:
        limiter.take(member, 30)
    closed: list[Member] = []

    def close(spare: Member | None) -> Iterator[None]:
        for member in crowd:
            closed.append(member)
            limiter.leave(member)
            yield

    limiter.on_shortage = close
    (late,) = members(limiter, 1, "there")
    limiter.charge_nowait(20, late)
    assert closed == crowd[:1]


async def test_a_member_that_left_owes_nothing() -> None:
    limiter = BytesLimiter(100, credit=100, credit_max=100)
    (member,) = members(limiter, 1)
    charge = limiter.charge_nowait(60, member)
    limiter.leave(member)
    assert limiter.used == 0
    charge.release()
    assert limiter.used == 0
