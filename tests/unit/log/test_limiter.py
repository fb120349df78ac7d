"""The bytes limiter: first come, first served, and a cancelled wait leaves no trace."""

from __future__ import annotations

import anyio
import pytest

from penstock.errors import FullError
from penstock.log.limiter import BytesLimiter

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_charges_up_to_the_limit_and_one_larger_than_it_alone() -> None:
    limiter = BytesLimiter(100)
    large = limiter.charge_nowait(1000)
    with pytest.raises(FullError):
        limiter.charge_nowait(1)
    large.release()
    assert limiter.used == 0
    limiter.charge_nowait(60)
    with pytest.raises(FullError):
        limiter.charge_nowait(41)
    limiter.charge_nowait(40)


async def test_waiters_are_served_in_order_and_nobody_overtakes() -> None:
    limiter = BytesLimiter(100)
    held = await limiter.charge(100)
    order: list[int] = []

    async def wait(number: int, size: int) -> None:
        await limiter.charge(size)
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number, size in enumerate((90, 5, 5)):
            tasks.start_soon(wait, number, size)
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(FullError, match="used=100"):
            limiter.charge_nowait(0)
        held.release()
    assert order == [0, 1, 2]
    assert limiter.used == 100


async def test_a_cancelled_wait_gives_up_its_place() -> None:
    limiter = BytesLimiter(10)
    held = limiter.charge_nowait(10)
    with anyio.move_on_after(0.01):
        await limiter.charge(10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.charge, 4)
        await anyio.wait_all_tasks_blocked()
        held.release()
    assert limiter.used == 4


async def test_a_wait_cancelled_while_it_is_granted_either_has_the_bytes_or_gives_them_back() -> None:
    limiter = BytesLimiter(10)
    held = limiter.charge_nowait(10)
    granted: list[int] = []

    async def wait() -> None:
        charge = await limiter.charge(10)
        granted.append(charge.size)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            held.release()
            scope.cancel()
    assert limiter.used == sum(granted)
