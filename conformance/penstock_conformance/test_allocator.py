"""Clauses of ``penstock.spi.allocator``."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ClosedError, FullError, InvariantError, PenstockError
from penstock_conformance._env import Env, raises, together
from penstock_conformance._leaks import each_way_out

KIND = "allocator"

_LIMIT = 8 * 2**20
_SETTINGS = {"limit": str(_LIMIT)}
#: What an allocator that works in chunks may need beyond what was asked for.
_SLACK = 2 * 2**20


def _check_sum(allocator: Any) -> None:
    counters = allocator.statistics()
    assert sum(counters.used_by_purpose.values()) == counters.used_bytes, "the purposes don't add up"


async def _expect_in_use(allocator: Any, held: int = 0) -> None:
    """All the limit but ``held`` can be had, no more; however much is kept for reuse, or open in chunks."""
    await _settled()
    _check_sum(allocator)
    try:
        rest = allocator.charge_nowait(_LIMIT - held, "append")
    except FullError as error:
        raise AssertionError(f"memory leaks from the account: {allocator.statistics()}") from error
    assert allocator.statistics().used_bytes == _LIMIT, "the account is wrong"
    with raises(FullError):
        allocator.charge_nowait(1, "append")
    rest.release()


async def _settled() -> None:
    """Give an allocator a chance to hear that the last view is gone."""
    gc.collect()
    for _ in range(3):
        await checkpoint()


async def test_allocation_has_the_asked_size(env: Env) -> None:
    """Writable memory of exactly ``size`` bytes, that nobody else has."""
    async with env.open(settings=_SETTINGS) as allocator:
        held = []
        for number, size in enumerate((1, 2, 63, 64, 4095, 4096, 4097, 100_000, 1, 700_000)):
            allocation = (
                await allocator.allocate(size, "append")
                if number % 2
                else allocator.allocate_nowait(size, "append")
            )
            assert allocation.size == size
            assert len(allocation.view) == size
            assert allocation.view.nbytes == size
            assert not allocation.view.readonly
            allocation.view[:] = bytes([number + 1]) * size
            held.append(allocation)
        for number, allocation in enumerate(held):
            assert bytes(allocation.view) == bytes([number + 1]) * allocation.size, "two allocations overlap"
        for allocation in held:
            allocation.release()


async def test_addresses_are_aligned(env: Env) -> None:
    """The address of each allocation is a multiple of ``alignment_bytes``."""
    async with env.open(settings=_SETTINGS) as allocator:
        alignment = allocator.capabilities.alignment_bytes
        assert alignment >= 1
        held = [allocator.allocate_nowait(size, "append") for size in (1, 17, 100, 5000, 65_537)]
        for allocation in held:
            address = ctypes.addressof(ctypes.c_char.from_buffer(allocation.view))
            assert address % alignment == 0, f"address={address:#x} alignment_bytes={alignment}"
        gc.collect()
        for allocation in held:
            allocation.release()


async def test_account_returns_to_zero(env: Env) -> None:
    """Accounted bytes; ``release`` gives them back: when all is released, nothing is in use."""
    async with env.open(settings=_SETTINGS) as allocator:
        for _ in range(50):
            held: list[Any] = []
            for _ in range(env.random.randrange(1, 30)):
                size = env.random.choice((10, 1000, 30_000, 150_000))
                purpose = env.random.choice(("append", "block_cache", "upload"))
                take = env.random.choice((allocator.allocate_nowait, allocator.charge_nowait))
                held.append(take(size, purpose))
            env.random.shuffle(held)
            taken = sum(item.size for item in held)
            assert allocator.statistics().used_bytes >= taken, "less is accounted for than was taken"
            _check_sum(allocator)
            for item in held:
                item.release()
        held.clear()
        del item
        await _expect_in_use(allocator)


async def test_limit_holds(env: Env) -> None:
    """``used_bytes`` never exceeds ``limit_bytes``; FullError when over the limit."""
    async with env.open(settings=_SETTINGS) as allocator:
        assert allocator.statistics().limit_bytes == _LIMIT
        for take in (allocator.allocate_nowait, allocator.charge_nowait):
            held: list[Any] = []
            for _ in range(3 * _LIMIT // 100_000):
                try:
                    held.append(take(100_000, "append"))
                except FullError:
                    break
                assert allocator.statistics().used_bytes <= _LIMIT, "the limit is exceeded"
            taken = 100_000 * len(held)
            assert taken <= _LIMIT, "more was handed out than the limit allows"
            assert taken >= _LIMIT - _SLACK, "much less was handed out than the limit allows"
            held.pop().release()
            for item in held:
                item.release()
            del item
            held.clear()
            await _expect_in_use(allocator)
        assert allocator.statistics().peak_bytes >= _LIMIT - _SLACK


async def test_request_over_the_limit_is_granted_alone(env: Env) -> None:
    """A request larger than the whole limit is granted alone (when nothing else is in use)."""
    async with env.open(settings=_SETTINGS) as allocator:
        small = allocator.allocate_nowait(1000, "append")
        with raises(FullError):
            allocator.allocate_nowait(_LIMIT + 1, "append")
        small.release()
        del small
        await _settled()
        with anyio.fail_after(env.target.deadline_s):
            large = await allocator.allocate(_LIMIT + 1, "append")
        assert len(large.view) == _LIMIT + 1
        with raises(FullError):
            allocator.charge_nowait(1, "append")
        large.release()
        del large
        await _settled()
        allocator.allocate_nowait(1000, "append").release()


async def test_double_release_is_a_bug(env: Env) -> None:
    """Give the bytes back. Once; a second call raises InvariantError."""
    async with env.open(settings=_SETTINGS) as allocator:
        other = allocator.charge_nowait(5000, "append")
        for item in (
            allocator.allocate_nowait(1000, "append"),
            allocator.charge_nowait(1000, "append"),
            allocator.charge_anyway(1000, "append"),
            await allocator.allocate(1000, "append"),
            await allocator.charge(1000, "append"),
            allocator.reserve(1000, "append"),
        ):
            item.release()
            with raises(InvariantError):
                item.release()
        del item
        await _expect_in_use(allocator, 5000)
        full = allocator.charge_nowait(_LIMIT - 5000, "append")
        growing = allocator.reserve(1000, "append")
        waited: list[Any] = []

        async def wait(take: Callable[[], Awaitable[Any]]) -> None:
            waited.append(await take())

        async with anyio.create_task_group() as tasks:
            for ask in (allocator.allocate, allocator.charge):
                tasks.start_soon(wait, partial(ask, 1000, "append"))
            tasks.start_soon(wait, partial(growing.grant, 1000))
            while allocator.statistics().waiting < 3:
                await checkpoint()
            full.release()
        waited.append(growing)
        del growing
        for item in filter(None, waited):  # a grant returns nothing
            item.release()
            with raises(InvariantError):
                item.release()
        waited.clear()
        del item
        await _expect_in_use(allocator, 5000)
        other.release()


async def test_waiters_are_served_in_order(env: Env) -> None:
    """Waits, first come first served, until there is room; FullError for others while somebody waits."""
    async with env.open(settings=_SETTINGS) as allocator:
        full = [await allocator.charge(_LIMIT // 2, "append"), await allocator.charge(_LIMIT // 2, "append")]
        order: list[int] = []
        got: list[Any] = []

        async def wait(number: int, size: int) -> None:
            take = allocator.allocate if number % 2 else allocator.charge
            got.append(await take(size, "upload"))
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number, size in enumerate((3 * 2**20, 1000, 2000, 2**20)):
                tasks.start_soon(wait, number, size)
                await checkpoint()
                await checkpoint()
            assert allocator.statistics().waiting == 4
            with raises(FullError):
                allocator.charge_nowait(1, "append")
            for item in full:
                item.release()
            with anyio.fail_after(env.target.deadline_s):
                while len(got) < 4:
                    await checkpoint()
        assert order == [0, 1, 2, 3], f"served out of order: {order}"
        for item in got:
            item.release()
        got.clear()
        del item
        await _expect_in_use(allocator)


async def test_cancelled_waiter_leaves_the_queue(env: Env) -> None:
    """Cancelling a wait gives back its place, and what was granted meanwhile."""
    async with env.open(settings=_SETTINGS) as allocator:
        full = await allocator.charge(_LIMIT, "append")
        served = anyio.Event()

        async def wait() -> None:
            (await allocator.allocate(1000, "upload")).release()
            served.set()

        async with anyio.create_task_group() as tasks:
            blocked = anyio.CancelScope()

            async def wait_blocked() -> None:
                with blocked:
                    await allocator.charge(_LIMIT, "upload")

            tasks.start_soon(wait_blocked)
            await checkpoint()
            await checkpoint()
            tasks.start_soon(wait)
            await checkpoint()
            await checkpoint()
            blocked.cancel()
            await checkpoint()
            await checkpoint()
            full.release()
            with anyio.fail_after(env.target.deadline_s):
                await served.wait()
        await _settled()
        assert allocator.statistics().waiting == 0
        await _expect_in_use(allocator)


async def test_grant_to_a_cancelled_waiter_comes_back(env: Env) -> None:
    """Cancelling in the very moment of the grant loses nothing, whichever comes first."""
    async with env.open(settings=_SETTINGS) as allocator:
        for take in (allocator.allocate, allocator.charge):
            for grant_first in (True, False):
                await _grant_and_cancel(allocator, take, grant_first)
                await _expect_in_use(allocator)
            with anyio.CancelScope() as gone:
                gone.cancel()  # before it asks, and there is room
                (await take(5000, "upload")).release()
            await _expect_in_use(allocator)


async def _grant_and_cancel(allocator: Any, take: Any, grant_first: bool) -> None:
    full = allocator.charge_nowait(_LIMIT, "append")

    async def wait() -> None:
        (await take(5000, "upload")).release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await checkpoint()
        await checkpoint()
        if grant_first:
            full.release()
        tasks.cancel_scope.cancel()
        if not grant_first:
            full.release()


async def test_waiters_are_answered_at_the_end(env: Env) -> None:
    """Leaving the context, be it by an error or a cancellation, answers every waiter."""
    for context in each_way_out(env, settings=_SETTINGS):
        await _leave_with_waiters(context, env.target.deadline_s)


async def _leave_with_waiters(context: AbstractAsyncContextManager[Any], deadline_s: float) -> None:
    answers: list[str] = []

    async def wait(ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            await ask()
        except ClosedError:
            answers.append("closed")

    async with anyio.create_task_group() as tasks:
        async with context as allocator:
            part = allocator.reserve(_LIMIT, "network")
            part.grant_nowait(1000)
            full = allocator.charge_nowait(_LIMIT - allocator.statistics().used_bytes, "append")
            for ask in (
                partial(allocator.charge, _LIMIT, "upload"),
                partial(allocator.allocate, 1, "upload"),
            ):
                tasks.start_soon(wait, ask)
            tasks.start_soon(wait, partial(part.grant, _LIMIT))
            await checkpoint()
            await checkpoint()
        with anyio.fail_after(deadline_s):
            while len(answers) < 3:
                await checkpoint()
        full.release()
        part.release()
    assert answers == ["closed"] * 3
    with raises(PenstockError):
        allocator.charge_nowait(1, "append")


async def test_pinned_memory_is_never_handed_out(env: Env) -> None:
    """Memory released but still referenced stays accounted for, as ``pinned``, and is never handed out again."""
    async with env.open(settings=_SETTINGS) as allocator:
        allocations = [allocator.allocate_nowait(300_000, "append") for _ in range(8)]
        for number, allocation in enumerate(allocations):
            allocation.view[:] = bytes([number + 1]) * 300_000
        pinned = [(number + 1, allocation.view[100:200_000]) for number, allocation in enumerate(allocations)]
        for allocation in allocations:
            allocation.release()
        del allocation
        allocations.clear()
        gc.collect()
        counters = allocator.statistics()
        assert counters.used_by_purpose.get("pinned", 0) >= 8 * 300_000, (
            f"pinned isn't accounted for: {counters}"
        )
        others = []
        while True:  # all the memory there is
            try:
                other = allocator.allocate_nowait(250_000, "append")
            except FullError:
                break
            other.view[:] = bytes([255]) * 250_000
            others.append(other)
            assert len(others) * 250_000 <= _LIMIT
        del other
        for value, view in pinned:
            assert view[0] == view[-1] == value, "memory was handed out while somebody still reads it"
            assert bytes(view) == bytes([value]) * len(view), (
                "memory was handed out while somebody still reads it"
            )
        for other in others:
            other.release()
        del other, view
        others.clear()
        pinned.clear()
        await _settled()
        counters = allocator.statistics()
        assert counters.used_by_purpose.get("pinned", 0) == 0, f"pinned for ever: {counters}"
        await _expect_in_use(allocator)
        for size in (1, 64, 512, 4096, 8192, 65_536, 2**20):  # of which somebody may have a pool
            allocation = allocator.allocate_nowait(size, "append")
            allocation.view[:] = b"p" * size
            view = allocation.view[:]
            allocation.release()
            del allocation
            others = [allocator.allocate_nowait(size, "append") for _ in range(3)]
            for other in others:
                other.view[:] = b"x" * size
            assert bytes(view) == b"p" * size, (
                f"memory of {size} bytes was handed out, and somebody still reads it"
            )
            for other in others:
                other.release()
            del other, view
            others.clear()
            await _expect_in_use(allocator)


async def test_waiter_gets_memory_when_the_last_view_goes(env: Env) -> None:
    """Pinned until the last reference is gone, in whatever thread; then those who wait are served."""
    async with env.open(settings=_SETTINGS) as allocator:
        for count, in_thread in ((1, False), (3, False), (1, True)):
            views = []
            for _ in range(count):
                allocation = allocator.allocate_nowait((_LIMIT - _SLACK) // count, "append")
                views.append(allocation.view[10:20])
                allocation.release()
                del allocation
            served = anyio.Event()

            async def wait(served: anyio.Event = served) -> None:
                (await allocator.charge(_LIMIT, "upload")).release()
                served.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                for _ in range(5):
                    await checkpoint()
                while views:
                    assert not served.is_set(), "pinned memory was given away"
                    if in_thread:
                        await anyio.to_thread.run_sync(views.clear)
                    else:
                        del views[0]
                    gc.collect()
                    for _ in range(3):
                        await checkpoint()
                with anyio.fail_after(env.target.deadline_s):
                    await served.wait()


async def test_reservation_takes_what_is_granted(env: Env) -> None:
    """Accounted for as it is granted: a reservation of which nothing is granted takes no memory."""
    async with env.open(settings=_SETTINGS) as allocator:
        held = [allocator.reserve(_LIMIT, "network") for _ in range(20)]
        assert [item.granted for item in held] == [0] * 20
        await _expect_in_use(allocator)
        for number, item in enumerate(held):
            assert item.size == len(item.view) == _LIMIT
            item.grant_nowait(100_000)
            assert item.granted == 100_000
            item.view[:100_000] = bytes([number]) * 100_000
        assert 20 * 100_000 <= allocator.statistics().used_bytes <= 20 * 100_000 + _SLACK
        _check_sum(allocator)
        for number, item in enumerate(held):
            assert bytes(item.view[:100_000]) == bytes([number]) * 100_000, "two reservations overlap"
        held[0].grant_nowait(400_000)
        held[0].view[100_000:400_000] = b"x" * 300_000
        assert bytes(held[0].view[:100_000]) == bytes(100_000), "a grant changed what was there"
        for item in held:
            item.release()
            with raises(InvariantError):
                item.release()
            with raises(PenstockError):
                item.grant_nowait(item.granted + 1)  # of memory that is gone
        held.clear()
        del item
        await _expect_in_use(allocator)


async def test_reservation_gives_back_what_was_granted(env: Env) -> None:
    """All are given back by ``release``, granted in part, whole or not at all."""
    async with env.open(settings=_SETTINGS) as allocator:
        for size, granted in ((1, 1), (5000, 1), (5000, 5000), (3_000_000, 700_001), (3_000_000, 3_000_000)):
            item = allocator.reserve(size, "network")
            item.grant_nowait(granted)
            with raises(PenstockError):
                item.grant_nowait(size + 1)
            with raises(PenstockError):
                await item.grant(size + 1)
            assert item.granted == granted, f"{item.granted} of {size} are granted after a refusal"
            item.view[:granted] = bytes(granted)
            item.release()
            del item
            await _expect_in_use(allocator)


async def test_reservation_keeps_to_the_limit(env: Env) -> None:
    """FullError like ``allocate_nowait``; more than the whole limit is granted while nothing else is in use."""
    async with env.open(settings=_SETTINGS) as allocator:
        other = allocator.charge_nowait(_LIMIT // 2, "append")
        item = allocator.reserve(2 * _LIMIT, "network")
        item.grant_nowait(_LIMIT // 4)
        with raises(FullError):
            item.grant_nowait(_LIMIT)
        assert item.granted == _LIMIT // 4, "a refused grant changed something"
        for size in (_LIMIT // 4 - 1, 2 * _LIMIT + 1):
            with raises(PenstockError):
                item.grant_nowait(size)
        other.release()
        del other
        await _settled()
        item.grant_nowait(_LIMIT - _SLACK)
        other = allocator.charge_nowait(1, "append")
        with raises(FullError):  # what it has already makes it no exception
            item.grant_nowait(2 * _LIMIT)
        other.release()
        for size in (_LIMIT, _LIMIT + 5000, 2 * _LIMIT):
            item.grant_nowait(size)
        item.view[2 * _LIMIT - 1] = 1
        with raises(FullError):
            allocator.charge_nowait(1, "append")
        item.release()
        del item
        await _expect_in_use(allocator)


async def test_grant_waits_its_turn(env: Env) -> None:
    """Waits, in one queue with ``allocate``."""
    async with env.open(settings=_SETTINGS) as allocator:
        full = allocator.charge_nowait(_LIMIT, "append")
        item = allocator.reserve(1_000_000, "network")
        order: list[str] = []

        async def grant() -> None:
            await item.grant(500_000)
            order.append("grant")

        async def charge() -> None:
            (await allocator.charge(_LIMIT - _SLACK, "upload")).release()
            order.append("charge")

        async with anyio.create_task_group() as tasks:
            for wait in (grant, charge):
                tasks.start_soon(wait)
                await checkpoint()
                await checkpoint()
            assert allocator.statistics().waiting == 2
            full.release()
            with anyio.fail_after(env.target.deadline_s):
                while len(order) < 2:
                    await checkpoint()
        assert order == ["grant", "charge"]
        assert item.granted == 500_000
        item.release()
        await _expect_in_use(allocator)


async def test_cancelled_grant_changes_nothing(env: Env) -> None:
    """Cancelled, nothing more is granted."""
    async with env.open(settings=_SETTINGS) as allocator:
        for grant_first in (True, False):
            full = allocator.charge_nowait(_LIMIT - 500_000, "append")
            item = allocator.reserve(2_000_000, "network")
            item.grant_nowait(100_000)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(item.grant, 1_500_000)
                await checkpoint()
                await checkpoint()
                if grant_first:
                    full.release()
                tasks.cancel_scope.cancel()
                if not grant_first:
                    full.release()
            await _settled()
            assert allocator.statistics().waiting == 0
            assert item.granted == 100_000 or (grant_first and item.granted == 1_500_000)
            item.release()
            del item
            await _expect_in_use(allocator)


async def test_listener_makes_room(env: Env) -> None:
    """The listener frees what it can before it returns; the request is then tried again before it fails or waits."""
    async with env.open(settings=_SETTINGS) as allocator:
        cached = [allocator.charge_nowait(_LIMIT // 8, "block_cache") for _ in range(8)]
        wanted: list[int] = []

        def evict(bytes_wanted: int) -> None:
            wanted.append(bytes_wanted)
            freed = 0
            while cached and freed < bytes_wanted:
                item = cached.pop()
                freed += item.size
                item.release()

        allocator.add_pressure_listener(evict)
        first = allocator.charge_nowait(_LIMIT // 4, "append")
        assert wanted, "the listener wasn't called"
        assert wanted[0] > 0
        with anyio.fail_after(env.target.deadline_s):
            second = await allocator.allocate(_LIMIT // 4, "append")
        first.release()
        second.release()
        del second
        await _settled()
        while allocator.statistics().used_bytes <= _LIMIT * 7 // 8:
            cached.append(allocator.charge_nowait(_LIMIT // 8, "block_cache"))
        growing = allocator.reserve(_LIMIT // 2, "network")
        try:
            for size in (_LIMIT // 8, _LIMIT // 4):
                growing.grant_nowait(size)
        except FullError as error:
            raise AssertionError(f"what was granted in part asks no listener for more: {error}") from None
        with anyio.fail_after(env.target.deadline_s):
            await growing.grant(_LIMIT // 2)
        growing.release()
        for item in cached:
            item.release()


async def test_many_tasks_stay_under_the_limit(env: Env) -> None:
    """Past the limit producers slow down, nothing dies, and the account is right all the time (I8)."""
    async with env.open(settings=_SETTINGS) as allocator:
        taken = 0
        served = 0

        async def work() -> None:
            nonlocal taken, served
            for _ in range(25):
                size = env.random.choice((100, 40_000, 300_000, 900_000))
                take = env.random.choice((allocator.allocate, allocator.charge))
                item = await take(size, env.random.choice(("append", "upload")))
                taken += size
                assert taken <= _LIMIT, "more is handed out than the limit allows"
                assert allocator.statistics().used_bytes <= _LIMIT
                for _ in range(env.random.randrange(3)):
                    await checkpoint()
                item.release()
                taken -= size
                served += 1

        await together([work] * 20)
        assert served == 500
        await _expect_in_use(allocator)


async def test_what_is_there_is_charged_anyway(env: Env) -> None:
    """Account for bytes that are there already, over the limit if need be; the next releases make up for it."""
    async with env.open(settings=_SETTINGS) as allocator:
        pressed: list[int] = []
        allocator.add_pressure_listener(pressed.append)
        held = [allocator.charge_nowait(_LIMIT // 4, "append") for _ in range(4)]
        there = allocator.charge_anyway(100_000, "state")
        statistics = allocator.statistics()
        assert statistics.used_bytes == _LIMIT + 100_000, "what is there isn't accounted for"
        assert statistics.used_by_purpose["state"] == there.size == 100_000
        assert statistics.limit_bytes == _LIMIT, f"the limit is what it was: {statistics}"
        assert pressed, "nobody was asked for room"
        for size in (1000, _LIMIT + 1):
            pressed.clear()
            allocator.charge_anyway(size, "state").release()
            assert pressed, f"nobody was asked for {size} bytes more, over the limit"
        held.pop().release()
        with raises(FullError):
            allocator.charge_nowait(_LIMIT // 4, "append")
        held.append(allocator.charge_nowait(_LIMIT // 4 - 100_000, "append"))
        with anyio.fail_after(env.target.deadline_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(allocator.charge, 1000, "append")
                await anyio.wait_all_tasks_blocked()
                assert allocator.statistics().waiting == 1
                more = allocator.charge_anyway(1000, "state")  # doesn't wait behind who waits
                more.release()
                tasks.cancel_scope.cancel()
        for one in [*held, there]:
            one.release()
        held.clear()
        del one
        await _expect_in_use(allocator)
