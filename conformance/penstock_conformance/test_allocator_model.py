"""Clauses of ``penstock.spi.allocator``, all at once: random requests, held against a model of the account."""

from __future__ import annotations

import ctypes
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import FullError, PenstockError
from penstock.spi.allocator import AllocatorStatistics
from penstock_conformance._clause import clause
from penstock_conformance._env import Env, raises
from penstock_conformance._figures import Figures
from penstock_conformance._growth import grows_nothing, kept_bytes
from penstock_conformance._steps import Steps

KIND = "allocator"

_MIB = 2**20
_LIMIT = 16 * _MIB
_SETTINGS = {"limit": str(_LIMIT)}
_STEPS = 325
_SIZES = (1, 3, 61, 997, 5_001, 66_003, 300_007, _MIB + 1, 2 * _MIB + 77)
#: Requests that come and go, each of another size; a number that is kept of each.
_REQUESTS = 1500
_REQUEST_BYTES = 30
_PURPOSES = [f"purpose-{number}" for number in range(24)]


class _Held:
    """Something that was taken, and what is on the account for it at least."""

    def __init__(self, item: Any, size: int, purpose: str, mark: bytes = b"") -> None:
        self.item = item
        self.size = size
        self.purpose = purpose
        #: What its memory is full of; nothing for a charge.
        self.mark = mark

    def check(self) -> None:
        """Nobody else wrote to it."""
        if self.mark:
            same = self.item.view[: self.size] == self.mark * self.size
            assert same, f"memory changed while it was held: {self.size} bytes"


class _Model:
    """What is out, and what must be on the account for it."""

    def __init__(self, env: Env, allocator: Any) -> None:
        self._random = env.random
        self._allocator = allocator
        self._alignment = allocator.capabilities.alignment_bytes
        self.steps = Steps()
        self._held: list[_Held] = []
        self._anyway: list[_Held] = []
        #: Views of memory that was released.
        self._pinned: list[tuple[memoryview, bytes, int]] = []
        self._marks = 0
        self._peak = 0
        self._figures = Figures(AllocatorStatistics)

    def begin(self) -> None:
        """Something is out for every purpose at once."""
        for purpose in _PURPOSES:
            self._held.append(_Held(self._allocator.charge_nowait(1, purpose), 1, purpose))
        self._check()

    async def step(self) -> None:
        """Do something, and look what came of it."""
        steps: Sequence[Callable[[], Awaitable[None]]] = (
            *(self._take,) * 4,
            self._reserve,
            self._charge_anyway,
            *(self._release,) * 5,
            self._unpin,
        )
        await self._random.choice(steps)()
        if self._random.random() < 0.04:
            await self._queue()
        self._check()

    def _size(self) -> int:
        return self._random.choice((*_SIZES, self._random.randrange(1, 20_000)))

    def _filled(self, item: Any, size: int, purpose: str) -> _Held:
        self._marks = self._marks % 250 + 1
        mark = bytes([self._marks])
        assert len(item.view) == item.size, f"{len(item.view)} bytes of memory instead of {item.size}"
        address = ctypes.addressof(ctypes.c_char.from_buffer(item.view))
        assert address % self._alignment == 0, f"not aligned: size={item.size} address={address:#x}"
        item.view[:size] = mark * size
        return _Held(item, size, purpose, mark)

    async def _take(self) -> None:
        size, memory = self._size(), self._random.random() < 0.6
        purpose = self._random.choice(_PURPOSES[:2] if memory else _PURPOSES)
        self.steps.note(f"{'allocate' if memory else 'charge'} {size}")
        before = self._allocator.statistics()
        try:
            if memory:
                held = self._filled(self._allocator.allocate_nowait(size, purpose), size, purpose)
            else:
                held = _Held(self._allocator.charge_nowait(size, purpose), size, purpose)
        except FullError:
            fits = not memory and before.used_bytes + size <= _LIMIT
            assert not fits, f"{size} bytes were refused, though there is room and nobody waits: {before}"
        else:
            self._held.append(held)

    async def _reserve(self) -> None:
        """Memory that is granted bit by bit keeps what is in it."""
        size = self._random.choice((5_001, 400_003, 3 * _MIB + 5))
        self.steps.note(f"reserve {size}")
        item = self._allocator.reserve(size, "network")
        held = _Held(item, 0, "network")
        for part in sorted(self._random.sample(range(1, size + 1), 3)):
            held.check()
            try:
                item.grant_nowait(part)
            except FullError:
                assert item.granted == held.size, f"a refused grant changed something: {item.granted}"
                break
            assert item.granted == part, f"{item.granted} bytes are granted instead of {part}"
            held.check()
            held = self._filled(item, part, "network")
        self._held.append(held)

    async def _charge_anyway(self) -> None:
        if len(self._anyway) < 8:
            size = self._random.randrange(1, 100_000)
            self.steps.note(f"charge {size} anyway")
            self._anyway.append(_Held(self._allocator.charge_anyway(size, "state"), size, "state"))
        else:
            self._anyway.pop(self._random.randrange(8)).item.release()

    async def _release(self) -> None:
        if not self._held:
            return
        held = self._held.pop(self._random.randrange(len(self._held)))
        self.steps.note(f"release {held.size}")
        held.check()
        if held.mark and self._random.random() < 0.3:
            start = self._random.randrange(held.size)
            self._pinned.append((held.item.view[start : held.size], held.mark, held.size))
        held.item.release()

    async def _unpin(self) -> None:
        if self._pinned:
            view, mark, size = self._pinned.pop(self._random.randrange(len(self._pinned)))
            self.steps.note(f"let go of a view of {size}")
            assert view == mark * len(view), f"memory was handed out that somebody reads: {size} bytes"

    async def _queue(self) -> None:
        """Some wait, some of them give up, and nobody passes another."""
        self.steps.note("several wait")
        free = _LIMIT - self._allocator.statistics().used_bytes
        rest = self._allocator.charge_nowait(free, "append") if free > 0 else None
        served: list[int] = []
        scopes = [anyio.CancelScope() for _ in range(8)]
        sizes = [self._random.choice(_SIZES[:6]) for _ in scopes]
        gone = set(self._random.sample(range(8), 2))
        taken: list[Any] = []

        async def wait(number: int) -> None:
            with scopes[number]:
                if number % 3 == 2:
                    item = self._allocator.reserve(sizes[number], "network")
                    await item.grant(sizes[number])
                else:
                    take = self._allocator.allocate if number % 3 else self._allocator.charge
                    item = await take(sizes[number], "upload")
                served.append(number)
                taken.append(item)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(wait, number)
                await checkpoint()
                await checkpoint()
            for number in gone:
                scopes[number].cancel()
            await checkpoint()
            await checkpoint()
            self._make_room(rest)
            told = self._allocator.statistics()
            waits = [sizes[number] for number in range(8) if number not in {*served, *gone}]
            if not told.waiting:
                least = self._least() + sum(waits) + sum(item.size for item in taken)
                assert told.used_bytes >= least, f"who waited was let in, and isn't on the account: {told}"
            else:
                with raises(FullError):
                    self._allocator.charge_nowait(1, "append")
            while told.waiting and self._held:
                await self._release()
                await checkpoint()
                told = self._allocator.statistics()
            self._pinned.clear()
            gc.collect()
        assert served == sorted(served), f"served out of order: {served}"
        assert {*served, *gone} == set(range(8)), f"not all were served: {served}"
        for item in taken:
            item.release()
        taken.clear()

    def _make_room(self, rest: Any) -> None:
        while self._anyway:
            self._anyway.pop().item.release()
        if rest is not None:
            rest.release()

    def _least(self) -> int:
        held = sum(held.size for held in (*self._held, *self._anyway))
        return held + sum(size for _, _, size in self._pinned)

    def _check(self) -> None:
        told = self._figures.look(self._allocator.statistics())
        least = self._least()
        assert told.used_bytes >= least, f"{least} bytes are out: {told}"
        over = told.used_bytes - _LIMIT
        assert over <= sum(held.size for held in self._anyway), f"the limit is exceeded by {over}: {told}"
        assert sum(told.used_by_purpose.values()) == told.used_bytes, f"the purposes don't add up: {told}"
        self._peak = max(self._peak, told.used_bytes)
        assert told.peak_bytes >= self._peak, f"{self._peak} bytes were in use: {told}"
        assert told.waiting == 0, f"nobody waits: {told}"
        purposes: Counter[str] = Counter()
        for held in (*self._held, *self._anyway):
            purposes[held.purpose] += held.size
        for purpose, size in purposes.items():
            on_account = told.used_by_purpose.get(purpose, 0)
            assert on_account >= size, f"{size} bytes of {purpose} are out: {told}"

    def end(self) -> None:
        """All is given back."""
        for held in (*self._held, *self._anyway):
            held.check()
            held.item.release()
        for view, mark, size in self._pinned:
            assert view == mark * len(view), f"memory was handed out that somebody reads: {size} bytes"
        self._held.clear()
        self._anyway.clear()
        self._pinned.clear()
        self._figures.end()


async def _expect_free(allocator: Any) -> None:
    """All the limit can be had."""
    gc.collect()
    for _ in range(3):
        await checkpoint()
    try:
        allocator.charge_nowait(_LIMIT, "append").release()
    except FullError as error:
        raise AssertionError(f"memory leaks from the account: {allocator.statistics()}") from error


async def test_random_histories_agree_with_a_model(env: Env) -> None:
    """What is out is on the account, by its purpose, and is nobody else's, whatever is taken and given back."""
    async with env.open(settings=_SETTINGS) as allocator:
        model = _Model(env, allocator)
        with model.steps.told():
            model.begin()
            for _ in range(_STEPS):
                await model.step()
            model.end()
            del model
        await _expect_free(allocator)


async def _granted(name: str, asked: Any) -> Any:
    """What comes of a request that needn't wait long."""
    got: list[Any] = []

    async def wait() -> None:
        got.append(await asked)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for _ in range(200):
            await checkpoint()
        tasks.cancel_scope.cancel()
    assert got, f"{name}: waits, though a listener has memory to give"
    return got[0]


async def test_every_way_of_asking_presses(env: Env) -> None:
    """When a request finds no room, all listeners are called: whatever it is for, and whether it would wait."""
    async with env.open(settings=_SETTINGS) as allocator:
        cached: list[Any] = []

        def evict(bytes_wanted: int) -> int:
            freed = 0
            while cached and freed < bytes_wanted:
                freed += cached[-1].size
                cached.pop().release()
            return freed

        for listener in (lambda _: 0, evict, lambda _: 0):  # the others have nothing to give
            allocator.add_pressure_listener(listener)
        full = allocator.charge_nowait(_LIMIT, "append")
        for _ in range(2):
            with raises(FullError):  # nobody has anything to give yet, and is asked again later
                allocator.charge_nowait(1, "append")
        full.release()
        reserved = [allocator.reserve(_MIB, "network") for _ in range(2)]
        asks: dict[str, Callable[[], Any]] = {
            "charge_nowait": lambda: allocator.charge_nowait(_MIB, "append"),
            "charge": lambda: allocator.charge(_MIB, "append"),
            "charge_anyway": lambda: allocator.charge_anyway(_MIB, "append"),
            "allocate_nowait": lambda: allocator.allocate_nowait(_MIB, "append"),
            "allocate": lambda: allocator.allocate(_MIB, "append"),
            "grant_nowait": lambda: reserved[0].grant_nowait(_MIB),
            "grant": lambda: reserved[1].grant(_MIB),
        }
        for name, ask in asks.items():
            while True:
                try:
                    cached.append(allocator.charge_nowait(_MIB // 4, "block_cache"))
                except FullError:
                    break
                if len(cached) * _MIB // 4 >= _LIMIT:
                    break
            before = len(cached)
            try:
                given = ask()
                if name in ("charge", "allocate", "grant"):
                    given = await _granted(name, given)
            except FullError as error:
                raise AssertionError(
                    f"{name}: refused, though a listener has memory to give: {error}"
                ) from error
            assert len(cached) < before, f"{name}: no listener was asked"
            told = allocator.statistics()
            assert told.used_bytes <= _LIMIT, f"{name}: the limit is exceeded: {told}"
            item = reserved.pop(0) if "grant" in name and name == "grant_nowait" else given
            if name == "grant_nowait":
                item.release()
                reserved.insert(0, None)
            elif name != "grant":
                item.release()
        reserved[1].release()
        while cached:
            cached.pop().release()
        reserved.clear()
        item = given = None
        await _expect_free(allocator)


async def test_large_request_waits_until_it_is_alone(env: Env) -> None:
    """A request larger than the whole limit is granted alone: not beside a single byte, however it is asked for."""
    async with env.open(settings=_SETTINGS) as allocator:
        reserved = allocator.reserve(_LIMIT + 1, "network")
        for ask, beside in (
            (partial(allocator.charge, _LIMIT + 1, "append"), "memory"),
            (partial(allocator.charge, _LIMIT + 1, "append"), "pinned"),
            (partial(allocator.charge, _LIMIT + 1, "append"), "charged anyway"),
            (partial(allocator.allocate, _LIMIT + 1, "append"), "memory"),
            (partial(reserved.grant, _LIMIT + 1), "memory"),
        ):
            small: Any = allocator.allocate_nowait(1, "append")
            view = small.view if beside == "pinned" else None
            if beside != "memory":
                small.release()
            if beside == "charged anyway":
                small = allocator.charge_anyway(1, "state")
            got: list[Any] = []

            async def wait(ask: Any = ask, got: list[Any] = got) -> None:
                got.append(await ask())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                for _ in range(4):
                    await checkpoint()
                assert not got, "more than the whole limit was granted while something else is in use"
                told = allocator.statistics()
                assert told.waiting == 1, f"a request that waits for all of it isn't told: {told}"
                with raises(FullError):  # or it would never be alone
                    allocator.charge_nowait(1, "append")
                if view is None:
                    small.release()
                view = small = None
            (reserved if got[0] is None else got[0]).release()
            got.clear()
        del reserved, ask, wait
        await _expect_free(allocator)


async def test_whole_reservation_is_on_the_account(env: Env) -> None:
    """Memory that is accounted for as it is granted: to the last byte, once all of it is."""
    async with env.open(settings=_SETTINGS) as allocator:
        for size in (1, 4_097, 400_003, 3 * _MIB + 5):
            item = allocator.reserve(size, "network")
            item.grant_nowait(size // 2)
            item.grant_nowait(size)
            told = allocator.statistics().used_by_purpose.get("network", 0)
            assert told >= size, f"{told} bytes are on the account, {size} are granted"
            item.release()
            del item
        await _expect_free(allocator)


async def test_no_way_of_asking_passes_another(env: Env) -> None:
    """One queue: what would fit waits behind what came first and doesn't fit, whatever way either was asked for."""
    async with env.open(settings=_SETTINGS) as allocator:

        async def grant(size: int, purpose: str) -> Any:
            item = allocator.reserve(size, purpose)
            await item.grant(size)
            return item

        ways = (allocator.charge, allocator.allocate, grant)
        for large, small in product(ways, ways):
            held = allocator.charge_nowait(_LIMIT - _MIB, "append")
            order: list[int] = []

            async def ask(way: Any, size: int, order: list[int] = order) -> None:
                (await way(size, "upload")).release()
                order.append(size)

            async with anyio.create_task_group() as tasks:
                for way, size in ((large, 2 * _MIB), (small, 1000)):
                    tasks.start_soon(ask, way, size)
                    for _ in range(4):
                        await checkpoint()
                names = f"{small.__name__} behind {large.__name__}"
                assert order == [], f"a small request passed a large one: {names}"
                told = allocator.statistics()
                assert told.waiting == 2, f"{names}: two requests wait, and {told.waiting} are told"
                held.release()
            assert order == [2 * _MIB, 1000], f"served out of order: {order} {names}"
        await _expect_free(allocator)


async def test_nothing_is_had_after_the_end(env: Env) -> None:
    """Leaving the context closes the account: nothing is taken from it any more, in no way."""
    async with env.open(settings=_SETTINGS) as allocator:
        allocator.allocate_nowait(1000, "append").release()
    for ask in (allocator.charge_nowait, allocator.allocate_nowait):
        with raises(PenstockError):
            ask(1000, "append")
    for wait in (allocator.charge, allocator.allocate):
        with raises(PenstockError):
            await wait(1000, "append")


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Requests that are refused, given up, pinned or granted in part cost nothing that stays."""
    async with env.open(settings=_SETTINGS) as allocator:

        async def cycle(number: int) -> None:
            held = allocator.charge_nowait(_LIMIT - 2 * _MIB, f"purpose-{number % 5}")
            with raises(FullError):
                allocator.charge_nowait(4 * _MIB, "append")
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(allocator.allocate, 4 * _MIB, "append")
                    await checkpoint()
                    await checkpoint()
                    scope.cancel()
            item = allocator.reserve(_MIB, "network")
            item.grant_nowait(10_000)
            item.release()
            item = allocator.allocate_nowait(5_000, "append")
            view = item.view[10:20]
            item.release()
            held.release()
            del item, view

        await grows_nothing(cycle)


@clause(level=5)
async def test_sizes_are_forgotten_with_what_is_given_back(env: Env) -> None:
    """An account that is even takes no memory, of however many sizes the requests were."""
    async with env.open(settings=_SETTINGS) as allocator:

        async def come_and_go(first: int) -> None:
            for size in range(first, first + _REQUESTS):
                allocator.charge_nowait(size, "append").release()
                (await allocator.charge(size, "fetch")).release()
                allocator.charge_anyway(size, "state").release()
                if size % 20 == 0:
                    allocator.allocate_nowait(size, "append").release()

        await come_and_go(1)
        async with kept_bytes() as grown:
            await come_and_go(1 + _REQUESTS)
            kept = grown()
    assert kept < _REQUESTS * _REQUEST_BYTES, f"{_REQUESTS} sizes came and went, and {kept} bytes stay"
