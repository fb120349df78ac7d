"""Clauses of ``penstock.spi.allocator``: all ways to give back, to give up and to end; two accounts."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import FullError, InvalidRequestError, InvariantError, PenstockError
from penstock_conformance._env import Env, raises

KIND = "allocator"

_MIB = 2**20
_LIMIT = 8 * _MIB
_SETTINGS = {"limit": str(_LIMIT)}


async def _turns(count: int = 4) -> None:
    for _ in range(count):
        await checkpoint()


async def _in_time(served: list[Any], count: int) -> None:
    """Turns, until so many are served, or would have been long ago."""
    for turn in range(50):
        if turn == 5:
            gc.collect()
        await _turns()
        if len(served) >= count:
            return


def _fill(allocator: Any, left: int = 0) -> Any:
    """A charge for all but ``left`` bytes of what is free."""
    return allocator.charge_nowait(_LIMIT - allocator.statistics().used_bytes - left, "append")


def _charge(allocator: Any) -> Callable[[], None]:
    release: Callable[[], None] = allocator.charge_nowait(_MIB, "state").release
    return release


def _charge_anyway(allocator: Any) -> Callable[[], None]:
    release: Callable[[], None] = allocator.charge_anyway(_MIB, "state").release
    return release


def _allocate(allocator: Any) -> Callable[[], None]:
    release: Callable[[], None] = allocator.allocate_nowait(_MIB, "state").release
    return release


def _reserve(allocator: Any) -> Callable[[], None]:
    item = allocator.reserve(2 * _MIB, "state")
    item.grant_nowait(_MIB)
    release: Callable[[], None] = item.release
    return release


def _pin(allocator: Any) -> Callable[[], None]:
    item = allocator.allocate_nowait(_MIB, "state")
    views = [item.view[10:20]]
    item.release()
    return views.clear


async def test_whatever_is_given_back_lets_in_all_who_fit(env: Env) -> None:
    """Waits until there is room: whatever way it was taken and comes back, and for as many as it is enough."""
    async with env.open(settings=_SETTINGS) as allocator:
        for take in (_charge, _charge_anyway, _allocate, _reserve, _pin):
            give_back = take(allocator)
            rest = _fill(allocator)
            served: list[Any] = []

            async def wait(served: list[Any] = served) -> None:
                served.append(await allocator.charge(1000, "upload"))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await _turns()
                assert not served, f"{take.__name__}: somebody was let in, and there is no room"
                give_back()
                del give_back
                await _in_time(served, 3)
                tasks.cancel_scope.cancel()
            assert len(served) == 3, f"{take.__name__}: given back, which lets {len(served)} in of 3 who fit"
            for item in (rest, *served):
                item.release()
            await _turns()


async def test_whoever_gives_up_lets_the_next_one_in(env: Env) -> None:
    """Cancelling a wait gives back its place: of one who has a part already, or wants more than all, as of any."""
    async with env.open(settings=_SETTINGS) as allocator:
        grown = allocator.reserve(6 * _MIB, "network")
        grown.grant_nowait(_MIB)
        asks: dict[str, Callable[[], Awaitable[Any]]] = {
            "a charge": lambda: allocator.charge(4 * _MIB, "upload"),
            "memory": lambda: allocator.allocate(4 * _MIB, "upload"),
            "a reservation that grows": lambda: grown.grant(6 * _MIB),
            "more than the limit": lambda: allocator.charge(_LIMIT + 1, "upload"),
        }
        for name, ask in asks.items():
            held = _fill(allocator, left=_MIB // 2)
            gone = anyio.CancelScope()
            served: list[str] = []

            async def large(ask: Callable[[], Awaitable[Any]] = ask, gone: Any = gone) -> None:
                with gone:
                    await ask()

            async def small(served: list[str] = served) -> None:
                (await allocator.charge(1000, "upload")).release()
                served.append("small")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(large)
                await _turns()
                tasks.start_soon(small)
                await _turns()
                told = allocator.statistics()
                assert (served, told.waiting) == ([], 2), (
                    f"{name}, and one behind it: {served} served, {told}"
                )
                gone.cancel()
                await _in_time(served, 1)
                tasks.cancel_scope.cancel()
            assert served, f"{name} was given up, and who fits behind it waits on"
            held.release()
        grown.release()


async def test_who_has_a_part_waits_behind_others(env: Env) -> None:
    """In one queue with ``allocate``: who has a part of a reservation already comes in its turn, and is told."""
    async with env.open(settings=_SETTINGS) as allocator:
        item = allocator.reserve(_MIB, "network")
        item.grant_nowait(1000)
        held = _fill(allocator)
        order: list[str] = []

        async def charge() -> None:
            (await allocator.charge(2000, "upload")).release()
            order.append("charge")

        async def grant() -> None:
            await item.grant(2000)
            order.append("grant")

        async with anyio.create_task_group() as tasks:
            for number, wait in enumerate((charge, grant, charge), 1):
                tasks.start_soon(wait)
                await _turns()
                told = allocator.statistics()
                assert told.waiting == number, f"{number} requests wait: {told}"
            held.release()
        assert order == ["charge", "grant", "charge"], f"served out of order: {order}"
        item.release()


async def test_nobody_comes_between_a_release_and_who_waits(env: Env) -> None:
    """First come first served: what is given back is theirs who wait, also before they know."""
    async with env.open(settings=_SETTINGS) as allocator:
        for give_back in (_charge, _allocate, _pin):
            release = give_back(allocator)
            rest = _fill(allocator)
            served: list[Any] = []

            async def wait(served: list[Any] = served) -> None:
                served.append(await allocator.charge(_MIB, "upload"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await _turns()
                release()
                del release
                for nowait in (allocator.charge_nowait, allocator.allocate_nowait):
                    with raises(FullError):
                        nowait(_MIB // 2, "append")
                await _in_time(served, 1)
                tasks.cancel_scope.cancel()
            assert served, f"{give_back.__name__}: who waited doesn't have what was given back"
            for item in (rest, *served):
                item.release()
            await _turns()


async def test_memory_of_a_reservation_stays_where_it_is(env: Env) -> None:
    """Memory in one piece: a view of what was granted is of the same memory when more of it is."""
    async with env.open(settings=_SETTINGS) as allocator:
        for size in (100_000, 3 * _MIB):
            item = allocator.reserve(size, "network")
            item.grant_nowait(1000)
            view = item.view[:1000]
            for granted in (5000, size):
                item.grant_nowait(granted)
                view[:] = b"%04d" % (granted % 10_000) * 250
                assert item.view[:1000] == view, f"a reservation moved when {granted} of {size} were granted"
            item.release()
            del view, item


async def test_the_peak_may_be_over_the_limit(env: Env) -> None:
    """``peak_bytes``: the most that was in use, also of what was charged anyway, or is larger than the limit."""
    async with env.open(settings=_SETTINGS) as allocator:
        for size in (_LIMIT + 5, _LIMIT + _MIB):
            allocator.charge_nowait(size, "append").release()
            told = allocator.statistics()
            assert told.peak_bytes == size, f"{size} bytes were in use: {told}"
        held = allocator.charge_nowait(_LIMIT, "append")
        allocator.charge_anyway(2 * _MIB, "state").release()
        told = allocator.statistics()
        assert told.peak_bytes == _LIMIT + 2 * _MIB, f"{_LIMIT + 2 * _MIB} bytes were in use: {told}"
        anyway = [allocator.charge_anyway(_LIMIT + number, "state") for number in range(10)]
        told = allocator.statistics()
        there = sum(item.size for item in (held, *anyway))
        assert (told.used_bytes, told.peak_bytes) == (there, there), f"{there} bytes are in use: {told}"
        for item in (held, *anyway):
            item.release()
        assert not allocator.statistics().used_bytes, "all was given back that was over the limit"


async def test_two_allocators_have_nothing_to_do_with_each_other(env: Env) -> None:
    """All calls are about the account that was opened: its limit, queue and listeners are nobody else's."""
    async with env.open(settings=_SETTINGS) as first, env.open(settings=_SETTINGS) as second:
        asked: list[int] = []
        first.add_pressure_listener(asked.append)
        used = second.statistics().used_bytes
        held = _fill(first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.charge, _MIB, "upload")
            await _turns()
            asked.clear()
            told = second.statistics()
            assert (told.waiting, told.used_bytes) == (0, used), f"another one is in use: {told}"
            whole = _fill(second)
            with raises(FullError):
                second.charge_nowait(1, "append")
            assert not asked, "a listener of another one was asked"
            whole.release()
            await _turns()
            told = first.statistics()
            assert told.waiting == 1, f"room of another one was given to who waits: {told}"
            tasks.cancel_scope.cancel()
        held.release()


async def test_everything_is_given_back_after_the_end(env: Env) -> None:
    """Leaving the context closes the account: what is held, however it was taken, goes back, and grows no more."""
    async with env.open(settings=_SETTINGS) as allocator:
        given = [take(allocator) for take in (_charge, _charge_anyway, _allocate, _reserve, _pin)]
        untouched = allocator.reserve(_MIB, "network")
        growing = allocator.reserve(_MIB, "network")
        growing.grant_nowait(1000)
    with raises(PenstockError):
        growing.grant_nowait(2000)
    with raises(PenstockError):
        await growing.grant(2000)
    assert growing.granted == 1000, f"a grant that was refused changed something: {growing.granted}"
    for give_back in (*given, untouched.release, growing.release):
        give_back()
    for give_back in (*given[:-1], untouched.release, growing.release):
        with raises(InvariantError):
            give_back()


async def test_whoever_cannot_wait_asks_listeners_beside_who_waits(env: Env) -> None:
    """If there is no room, pressure listeners are asked for it: also while others wait, and one that came since."""
    async with env.open(settings=_SETTINGS) as allocator:
        held = _fill(allocator)
        asked: list[int] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(allocator.charge, 4 * _MIB, "upload")
            await _turns()
            allocator.add_pressure_listener(asked.append)
            allocator.charge_anyway(_MIB, "state").release()
            assert asked, "there was no room for what is charged anyway, and a listener wasn't asked for it"
            tasks.cancel_scope.cancel()
        held.release()
        cached = [_fill(allocator)]
        served: list[Any] = []

        async def wait() -> None:
            served.append(await allocator.charge(4 * _MIB, "upload"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await _turns()
            allocator.add_pressure_listener(lambda _: cached.pop().release() if cached else None)
            there = allocator.charge_anyway(_MIB, "state")
            await _in_time(served, 1)
            tasks.cancel_scope.cancel()
        assert served, "a listener gave back what one waits for, asked for another, and who waits waits on"
        there.release()
        served.pop().release()


async def test_pinned_memory_counts_for_who_has_a_part(env: Env) -> None:
    """The limit is hard: what is pinned is in use, also when a reservation grows that was granted a part before."""
    async with env.open(settings=_SETTINGS) as allocator:
        item = allocator.reserve(4 * _MIB, "network")
        item.grant_nowait(_MIB)
        memory = allocator.allocate_nowait(2 * _MIB, "append")
        view = memory.view[:10]
        memory.release()
        del memory
        rest = _fill(allocator, left=_MIB // 2)
        with raises(FullError):
            item.grant_nowait(2 * _MIB)
        told = allocator.statistics()
        assert told.used_bytes <= _LIMIT, f"the limit is exceeded beside pinned memory: {told}"
        del view
        rest.release()
        item.release()


async def test_less_than_nothing_is_refused(env: Env) -> None:
    """Less than nothing is an InvalidRequestError: it would be room for others that isn't there."""
    async with env.open(settings=_SETTINGS) as allocator:
        used = allocator.statistics().used_bytes
        for ask in (
            allocator.charge_nowait,
            allocator.charge_anyway,
            allocator.allocate_nowait,
            allocator.reserve,
        ):
            with raises(InvalidRequestError):
                ask(-1, "append")
        for wait in (allocator.charge, allocator.allocate):
            with raises(InvalidRequestError):
                await wait(-1, "append")
        told = allocator.statistics()
        assert (told.used_bytes, told.waiting) == (used, 0), f"what was refused is on the account: {told}"


async def test_no_remainder_is_had_before_who_waits(env: Env) -> None:
    """FullError if others already wait: also of what is left where memory was cut from before."""
    async with env.open(settings=_SETTINGS) as allocator:
        small = allocator.allocate_nowait(100, "append")
        held = _fill(allocator)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(allocator.charge, _MIB, "upload")
            await _turns()
            for size in (1, 100):
                with raises(FullError):
                    allocator.allocate_nowait(size, "append")
            tasks.cancel_scope.cancel()
        small.release()
        held.release()
