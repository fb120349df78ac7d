"""Clauses of ``penstock.spi.allocator``: long queues, many who give up, listeners, memory that lives and goes."""

from __future__ import annotations

import gc
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import FullError
from penstock_conformance._clause import not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._leaks import leaves_nothing

KIND = "allocator"

_MIB = 2**20
_LIMIT = 8 * _MIB
_SETTINGS = {"limit": str(_LIMIT)}
#: More than a table of listeners may be thought to need.
_LISTENERS = 150
#: What a listener lets go of at a time, and is then asked again.
#: Who waits in a long queue.
_QUEUE = 300
_PIECE = _MIB // 32


async def _turns(count: int = 3) -> None:
    for _ in range(count):
        await checkpoint()


async def _expect_free(allocator: Any, what: str, held: int = 0) -> None:
    """All the limit but ``held`` can be had, and no more."""
    gc.collect()
    await _turns()
    used = allocator.statistics()
    assert used.waiting == 0, f"{what}: {used.waiting} requests wait though nobody asks"
    try:
        rest = allocator.charge_nowait(_LIMIT - held, "append")
    except FullError:
        raise AssertionError(f"{what}: memory leaks from the account: {used}") from None
    try:
        more = allocator.charge_nowait(1, "append")
    except FullError:
        rest.release()
    else:
        more.release()
        rest.release()
        raise AssertionError(f"{what}: more can be had than the limit: {used}")


async def test_account_counts_beyond_32_bits(env: Env) -> None:
    """Account for bytes made elsewhere: any number of them, each under its purpose, whatever that is called."""
    gib = 2**30
    purposes = ["append", f"{'a purpose of many words ' * 5}1", f"{'a purpose of many words ' * 5}2", "größe"]
    purposes.append("Append")
    async with env.open(settings={"limit": "24GiB"}) as allocator:
        before = dict(allocator.statistics().used_by_purpose)
        charges = [
            allocator.charge_nowait(2 * gib + 1, purposes[0]),
            allocator.charge_nowait(4 * gib, purposes[1]),
            await allocator.charge(5 * gib, purposes[2]),
            allocator.charge_anyway(6 * gib + 3, purposes[3]),
            allocator.charge_nowait(gib // 2, purposes[4]),
        ]
        told = allocator.statistics()
        assert told.limit_bytes == 24 * gib, f"24 GiB are the limit: {told}"
        assert told.used_bytes == sum(before.values()) + 17 * gib + gib // 2 + 4, (
            f"17.5 GiB and 4 bytes are in use: {told}"
        )
        for charge, purpose in zip(charges, purposes, strict=True):
            used = told.used_by_purpose.get(purpose, 0) - before.get(purpose, 0)
            assert used == charge.size, f"{charge.size} bytes are in use as {purpose!r}: {told}"
        for size in (8 * gib, 2**33 + 1):
            with raises(FullError):
                allocator.charge_nowait(size, "append")
        for charge in charges:
            charge.release()
        left = allocator.statistics().used_bytes
        assert left == sum(before.values()), f"all is released, and {left} bytes are in use"


async def test_small_requests_pass_no_large_one(env: Env) -> None:
    """Waits, first come first served: what fits waits behind what came first and doesn't fit yet."""
    async with env.open(settings=_SETTINGS) as allocator:
        held = [allocator.charge_nowait(_MIB, "append") for _ in range(8)]
        order: list[int] = []
        got: list[Any] = []
        sizes = [5 * _MIB, 1000, 2 * _MIB, 10, 100, 50_000]

        async def wait(number: int) -> None:
            take = allocator.allocate if number in (2, 4) else allocator.charge
            got.append(await take(sizes[number], "upload"))
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(len(sizes)):
                tasks.start_soon(wait, number)
                await _turns()
            for freed in range(1, 9):
                held.pop().release()
                await _turns()
                if freed < 5:
                    assert order == [], f"request {order} was served before the one that came first"
                for nowait in (allocator.charge_nowait, allocator.allocate_nowait):
                    if len(order) < len(sizes):
                        with raises(FullError):
                            nowait(1, "append")
                if freed == 8:
                    await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(env.target.deadline_s):
                while len(order) < len(sizes):
                    await checkpoint()
        assert order == sorted(order), f"served out of order: {order}"
        while got:
            got.pop().release()
        await _expect_free(allocator, "after a queue of all sizes")


async def test_long_queue_is_served_in_order(env: Env) -> None:
    """First come first served, whoever gives up in between: hundreds wait, every third is cancelled."""
    async with env.open(settings=_SETTINGS) as allocator:
        full = allocator.charge_nowait(_LIMIT, "append")
        order: list[int] = []
        scopes = [anyio.CancelScope() for _ in range(_QUEUE)]

        async def wait(number: int) -> None:
            with scopes[number]:
                take = allocator.allocate if number % 2 else allocator.charge
                item = await take(3000 + 997 * (number * 7 % _QUEUE), "upload")
                order.append(number)
                await checkpoint()
                item.release()

        async with anyio.create_task_group() as tasks:
            for number in range(_QUEUE):
                tasks.start_soon(wait, number)
                await checkpoint()
                await checkpoint()
            assert allocator.statistics().waiting == _QUEUE, "not all of hundreds of requests wait"
            for number in range(0, _QUEUE, 3):
                scopes[number].cancel()
            await _turns(5)
            left = _QUEUE - len(range(0, _QUEUE, 3))
            assert allocator.statistics().waiting == left, "who gave up still waits"
            full.release()
            with anyio.fail_after(env.target.deadline_s):
                while len(order) < left:
                    await checkpoint()
        assert order == [number for number in range(_QUEUE) if number % 3], f"served out of order: {order}"
        await _expect_free(allocator, "after a long queue")


async def test_many_who_give_up_leave_nothing(env: Env) -> None:
    """Cancelling a wait gives back its place and what was granted, in whatever order they come."""
    async with env.open(settings=_SETTINGS) as allocator:
        for _ in range(25):
            held = [allocator.charge_nowait(_MIB, "append") for _ in range(8)]
            item = allocator.reserve(3 * _MIB, "network")
            scopes = [anyio.CancelScope() for _ in range(12)]

            sizes = [env.random.choice((10, 70_000, 900_000)) for _ in scopes]

            async def wait(
                number: int,
                scopes: list[anyio.CancelScope] = scopes,
                sizes: list[int] = sizes,
                item: Any = item,
            ) -> None:
                with scopes[number]:
                    if number == 4:
                        await item.grant(2 * _MIB)
                    else:
                        take = allocator.allocate if number % 2 else allocator.charge
                        (await take(sizes[number], "upload")).release()

            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(wait, number)
                await _turns()
                steps = [*(held.pop().release for _ in range(8)), *(scope.cancel for scope in scopes)]
                for step in env.random.sample(steps, len(steps)):
                    step()
                    if env.random.random() < 0.3:
                        await checkpoint()
            assert item.granted in (0, 2 * _MIB), f"a grant was cut: {item.granted}"
            item.release()
            del item, wait
            await _expect_free(allocator, "after grants and cancellations")


async def test_grants_keep_to_the_queue(env: Env) -> None:
    """FullError like ``allocate_nowait``: a reservation takes no more while others wait, though it would fit."""
    async with env.open(settings=_SETTINGS) as allocator:
        item = allocator.reserve(2 * _MIB, "network")
        item.grant_nowait(1000)
        held = allocator.charge_nowait(4 * _MIB, "append")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(allocator.charge, 5 * _MIB, "upload")
            await _turns()
            assert allocator.statistics().waiting == 1, "a request that finds no room doesn't wait"
            with raises(FullError):
                item.grant_nowait(_MIB)
            assert item.granted == 1000, "a refused grant changed something"
            tasks.cancel_scope.cancel()
        item.grant_nowait(_MIB)
        held.release()
        item.release()
        del item
        await _expect_free(allocator, "after a refused grant")


async def test_account_is_right_with_a_listener(env: Env) -> None:
    """The request is tried again before it fails or waits: what a listener made room for is accounted for as well."""
    async with env.open(settings=_SETTINGS) as allocator:
        cached: list[Any] = []

        def evict(bytes_wanted: int) -> int:
            freed = 0
            while cached and freed < bytes_wanted:
                freed += cached[-1].size
                cached.pop().release()
            return freed

        allocator.add_pressure_listener(evict)
        held: list[Any] = []
        for number in range(60):
            if number % 3 == 0:
                while len(cached) < 8:
                    try:
                        cached.append(allocator.charge_nowait(200_000, "block_cache"))
                    except FullError:
                        break
            take = env.random.choice((allocator.charge_nowait, allocator.charge, allocator.charge_anyway))
            size = env.random.choice((40_000, 300_000, 700_000))
            taken = take(size, "append")
            held.append(await taken if take == allocator.charge else taken)
            counters = allocator.statistics()
            there = sum(item.size for item in held) + sum(item.size for item in cached)
            assert counters.used_bytes == there, (
                f"{there} bytes are out, {counters.used_bytes} on the account"
            )
            assert counters.used_by_purpose.get("append", 0) == sum(item.size for item in held), (
                f"another purpose is charged: {counters.used_by_purpose}"
            )
            assert counters.used_bytes <= _LIMIT, "the limit is exceeded with a listener"
            while sum(item.size for item in held) > 6 * _MIB:
                held.pop(0).release()
        while held:
            held.pop().release()
        while cached:
            cached.pop().release()
        await _expect_free(allocator, "after requests under pressure")


async def test_listeners_are_asked_as_long_as_they_free(env: Env) -> None:
    """A listener may say how many bytes it let go of: as long as it did, it's asked again; all of them are asked."""
    async with env.open(settings=_SETTINGS) as allocator:
        pieces = range(4 * _MIB // _PIECE)
        stores = [[allocator.charge_nowait(_PIECE, "block_cache") for _ in pieces] for _ in range(2)]
        calls = 0

        def listener(cached: list[Any]) -> Any:
            def evict_one(_: int) -> int:
                nonlocal calls
                calls += 1
                if not cached:
                    return 0
                cached.pop().release()
                return _PIECE

            return evict_one

        for cached in stores:
            allocator.add_pressure_listener(listener(cached))
        try:
            first = allocator.charge_nowait(7 * _MIB, "append")
        except FullError as error:
            left = _PIECE * sum(map(len, stores))
            raise AssertionError(f"refused though listeners had {left} bytes to give: {error}") from None
        left = _PIECE * sum(map(len, stores))
        assert left <= _MIB, f"listeners still hold {left} bytes beside the 7 MiB that were granted"
        calls = 0
        with raises(FullError):
            allocator.charge_nowait(2 * _MIB, "append")
        assert 0 < calls < 50, f"listeners that have nothing were asked {calls} times"
        first.release()
        for cached in stores:
            while cached:
                cached.pop().release()
        await _expect_free(allocator, "after listeners gave bit by bit")
        crumbs = [allocator.charge_nowait(1, "block_cache") for _ in range(9)]
        full = allocator.charge_nowait(_LIMIT - len(crumbs), "append")

        def drop_a_crumb(_: int) -> int:
            if not crumbs:
                return 0
            crumbs.pop().release()
            return 1

        allocator.add_pressure_listener(drop_a_crumb)
        try:
            allocator.charge_nowait(9, "append").release()
        except FullError as error:
            raise AssertionError(
                f"refused though a listener had {len(crumbs)} single bytes: {error}"
            ) from None
        full.release()


async def test_debt_is_made_up_before_anybody(env: Env) -> None:
    """What is over the limit is made up by the next releases, before anybody else is granted anything."""
    async with env.open(settings=_SETTINGS) as allocator:
        held = [allocator.charge_nowait(_MIB, "append") for _ in range(8)]
        state = [allocator.charge_anyway(600_000, "state") for _ in range(5)]
        used = allocator.statistics().used_bytes
        assert used == _LIMIT + 3_000_000, f"{used} bytes on the account instead of {_LIMIT + 3_000_000}"
        got: list[Any] = []

        async def wait() -> None:
            got.append(await allocator.charge(1000, "upload"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await _turns()
            for number in range(3):
                held.pop().release()
                await _turns(5)
                free = _LIMIT - (len(held) * _MIB + 3_000_000)
                assert bool(got) == (free >= 1000), (
                    f"after {number + 1} releases {free} bytes are free: {got}"
                )
        for item in [*held, *state, *got]:
            item.release()
        held.clear()
        state.clear()
        got.clear()
        del item
        await _expect_free(allocator, "after a debt")


async def test_peak_is_the_most_that_was_in_use(env: Env) -> None:
    """``peak_bytes``: the most that was in use, however short, and it doesn't sink."""
    async with env.open(settings=_SETTINGS) as allocator:
        allocator.charge_nowait(5 * _MIB, "append").release()
        assert allocator.statistics().peak_bytes == 5 * _MIB, "a short peak isn't seen"
        item = allocator.charge_nowait(_MIB, "append")
        assert allocator.statistics().peak_bytes == 5 * _MIB, "the peak sank"
        more = allocator.charge_anyway(6 * _MIB, "state")
        assert allocator.statistics().peak_bytes == 7 * _MIB, "what is charged anyway isn't in the peak"
        more.release()
        item.release()
        memory = allocator.allocate_nowait(4 * _MIB, "append")
        kept = memory.view
        memory.release()
        assert allocator.statistics().peak_bytes == 7 * _MIB, "what is pinned is in the peak twice"
        del kept, memory


async def test_memory_keeps_its_bytes_while_others_come_and_go(env: Env) -> None:
    """Memory of exactly ``size`` bytes that nobody else has, for as long as it is held."""
    async with env.open(settings=_SETTINGS) as allocator:
        held: list[tuple[Any, int]] = []
        for number in range(1500):
            if held and (len(held) > 40 or env.random.random() < 0.45):
                item, value = held.pop(env.random.randrange(len(held)))
                view = item.view
                same = bytes(view[:64]) + bytes(view[-64:]) == bytes([value]) * (2 * min(64, item.size))
                assert same, f"memory of {item.size} bytes changed while it was held"
                del view
                item.release()
                del item
            else:
                try:
                    item = allocator.allocate_nowait(
                        env.random.choice((1, 100, 5000, 70_000, 400_000)), "append"
                    )
                except FullError:
                    continue
                item.view[:] = bytes([number % 251]) * item.size
                held.append((item, number % 251))
                del item
        for item, value in held:
            assert bytes(item.view) == bytes([value]) * item.size, f"memory of {item.size} bytes changed"
            item.release()
        held.clear()
        del item
        await _expect_free(allocator, "after many allocations")
        small: list[Any] = []
        with suppress(FullError):  # where each takes pages of its own
            while len(small) < 1500:
                small.append(allocator.allocate_nowait(20, "append"))
        for number, item in enumerate(small):
            item.view[:] = number.to_bytes(4) * 5
        for number, item in enumerate(small):
            assert bytes(item.view) == number.to_bytes(4) * 5, (
                f"piece {number} of thousands of small ones changed"
            )
            item.release()
        small.clear()
        del item
        await _expect_free(allocator, "after thousands of small allocations at once")


async def test_large_memory_is_like_any_other(env: Env) -> None:
    """Writable memory of exactly ``size`` bytes that nobody else has, and that stays accounted for while a part of it
    is referenced."""
    async with env.open(settings={"limit": "64MiB"}) as allocator:
        for size in (_MIB + 1, 3 * _MIB + 4, 17 * _MIB):
            items = [allocator.allocate_nowait(size, "append") for _ in range(2)]
            for value, item in enumerate(items, 1):
                view = item.view
                assert len(view) == view.nbytes == size, f"{len(view)} bytes instead of {size}"
                assert not view.readonly, f"memory of {size} bytes can't be written to"
                view[:4096] = view[-4096:] = bytes([value]) * 4096
            parts = [view[-100:] for view in (item.view for item in items)]
            assert [bytes(part) for part in parts] == [b"\1" * 100, b"\2" * 100], "two allocations overlap"
            for item in items:
                item.release()
            items.clear()
            del item, view
            gc.collect()
            pinned = allocator.statistics().used_by_purpose.get("pinned", 0)
            assert pinned >= 2 * size, f"{pinned} bytes are pinned, two of {size} are referenced"
            other = allocator.allocate_nowait(size, "append")
            other.view[-100:] = b"\3" * 100
            assert [bytes(part) for part in parts] == [b"\1" * 100, b"\2" * 100], (
                "pinned memory was handed out"
            )
            parts.clear()
            other.release()
            del other
            gc.collect()
            await _turns()
            allocator.charge_nowait(64 * _MIB, "append").release()  # all of it


async def test_pinned_reservation_is_never_handed_out(env: Env) -> None:
    """Memory released but still referenced stays accounted for: of a reservation, what was granted of it."""
    async with env.open(settings=_SETTINGS) as allocator:
        item = allocator.reserve(6 * _MIB, "network")
        item.grant_nowait(2 * _MIB)
        item.view[: 2 * _MIB] = b"r" * (2 * _MIB)
        view = item.view[_MIB : 2 * _MIB]
        item.release()
        del item
        gc.collect()
        pinned = allocator.statistics().used_by_purpose.get("pinned", 0)
        assert pinned >= 2 * _MIB, f"{pinned} bytes are pinned, 2 MiB of a reservation are in use"
        assert pinned < 3 * _MIB, f"{pinned} bytes are pinned, only 2 MiB were granted"
        others = []
        for _ in range(5):
            other = allocator.reserve(_MIB, "network")
            other.grant_nowait(_MIB)
            other.view[:] = b"o" * _MIB
            others.append(other)
        assert bytes(view) == b"r" * _MIB, "memory was handed out while somebody still reads it"
        for other in others:
            other.release()
        del other, view
        others.clear()
        await _expect_free(allocator, "after a pinned reservation")


async def test_released_memory_goes_back_to_the_system(env: Env) -> None:
    """A hard limit: what the process has doesn't grow with what was allocated and released over time."""
    async with env.open(settings=_SETTINGS) as allocator:
        grown = 0
        for number in range(90):
            if number == 30:
                grown = _resident_bytes()
            item = allocator.allocate_nowait((1 + number % 3) * _MIB, "append")
            item.view[::4096] = b"x" * len(item.view[::4096])
            item.release()
            del item
            other = allocator.reserve(_MIB, "network")
            other.grant_nowait(_MIB)
            other.view[::4096] = b"x" * len(other.view[::4096])
            other.release()
            del other
            await checkpoint()
        grown = _resident_bytes() - grown
        assert grown < 3 * _LIMIT, (
            f"{grown} bytes more are resident, with a limit of {_LIMIT} and nothing in use"
        )


async def test_reservations_take_nothing_at_first(env: Env) -> None:
    """Nothing is granted yet, so nothing is taken, of the limit or of the system: however many, and however large."""
    async with env.open(settings=_SETTINGS) as allocator:
        used, resident = allocator.statistics().used_bytes, _resident_bytes()
        try:
            held = [allocator.reserve(size, "network") for size in (*[3 * _MIB] * 40, 512 * _MIB)]
        except FullError as error:
            raise AssertionError(f"there are addresses, and a reservation was refused: {error}") from error
        resident = _resident_bytes() - resident
        assert allocator.statistics().used_bytes == used, "nothing was granted, and something is in use"
        assert resident < 60 * _MIB, f"of 120 MiB nothing was granted, and {resident} bytes are resident"
        for item in held:
            item.release()


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        not_applicable("the system doesn't say how much memory the process has")
    return pages * resource.getpagesize()


async def test_what_is_held_outlives_the_end(env: Env) -> None:
    """Leaving the context: memory that somebody still holds stays as it is, and can be given back."""
    async with env.open(settings=_SETTINGS) as allocator:
        items = [allocator.allocate_nowait(size, "append") for size in (10, 5000, 300_000)]
        for item in items:
            item.view[:] = b"k" * item.size
        charge = allocator.charge_nowait(1000, "append")
    for item in items:
        assert bytes(item.view) == b"k" * item.size, "memory changed when the allocator ended"
        item.release()
    charge.release()


async def test_many_tasks_are_all_served(env: Env) -> None:
    """Waits until there is room, and no longer: hundreds who take, grow and give back come to their end."""
    async with env.open(settings=_SETTINGS) as allocator:
        done = 0

        async def work(number: int) -> None:
            nonlocal done
            rng = env.random_of(number)
            for _ in range(6):
                # Whoever holds memory waits for no more of it: two who did would wait for each other.
                item = allocator.reserve(_MIB, "network")
                await item.grant(rng.choice((1000, 200_000, _MIB)))
                await checkpoint()
                item.release()
                del item
                (await allocator.allocate(rng.choice((10, 90_000)), "append")).release()
            done += 1

        await together([call(work, number) for number in range(150)])
        assert done == 150, f"{150 - done} of 150 tasks didn't come to their end"
        await _expect_free(allocator, "after many tasks")


async def test_opening_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""

    async def use(allocator: Any) -> None:
        allocator.allocate_nowait(1000, "append").release()
        (await allocator.charge(1000, "append")).release()

    await leaves_nothing(env, use)


async def test_dozens_of_listeners_are_all_asked(env: Env) -> None:
    """When a request finds no room, *each* listener is called, however many there are."""
    async with env.open(settings=_SETTINGS) as allocator:
        cached = [allocator.charge_nowait(_LIMIT // _LISTENERS, "block_cache") for _ in range(_LISTENERS)]

        def listener(number: int) -> Any:
            def evict(_: int) -> int:
                if cached[number] is None:
                    return 0
                cached[number].release()
                cached[number] = None
                return _LIMIT // _LISTENERS

            return evict

        for number in range(_LISTENERS):
            allocator.add_pressure_listener(listener(number))
        try:
            whole = allocator.charge_nowait(_LIMIT, "append")
        except FullError:
            left = sum(item is not None for item in cached)
            raise AssertionError(
                f"{left} of {_LISTENERS} listeners weren't asked for what they have"
            ) from None
        whole.release()


async def test_who_gives_up_lets_the_next_ones_in(env: Env) -> None:
    """Cancelling a wait gives back its place: what fits behind it is granted, though nothing is released."""
    for count in (20, 1):
        async with env.open(settings=_SETTINGS) as allocator:
            await _give_up_before(allocator, count)


async def _give_up_before(allocator: Any, count: int) -> None:
    """A large request gives up, and ``count`` small ones are behind it."""
    held = allocator.charge_nowait(_LIMIT - _MIB, "append")
    first, served = anyio.CancelScope(), 0

    async def large() -> None:
        with first:
            (await allocator.charge(4 * _MIB, "upload")).release()

    async def small(take: Any) -> None:
        nonlocal served
        grant = await take(1000, "upload")
        served += 1
        grant.release()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(large)
        await _turns()
        for number in range(count):
            tasks.start_soon(small, allocator.allocate if number % 2 else allocator.charge)
        await _turns()
        first.cancel()
        await _turns(200)
        waiting = count - served
        tasks.cancel_scope.cancel()
    assert not waiting, (
        f"{waiting} of {count} requests wait on, though there is room and nobody is before them"
    )
    held.release()
    await _expect_free(allocator, "after one gave up")
