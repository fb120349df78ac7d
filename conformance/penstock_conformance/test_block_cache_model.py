"""Clauses of ``penstock.spi.block_cache``, all at once: random reads, held against a model of what may be cached."""

from __future__ import annotations

import gc
import random
import weakref
import zlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import cache as remembered
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import FullError, PenstockError, UnavailableError
from penstock.spi.block_cache import BlockCacheStatistics, BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._figures import Figures
from penstock_conformance._leaks import each_way_out
from penstock_conformance._steps import Steps
from penstock_conformance.reference._allocator import PlainAllocator

KIND = "block_cache"

_STEPS = 160
_LARGE = 9 * 2**20 + 5
_LIMIT_MAX = 64 * 2**20
_SIZE_MAX = 16 * 2**20
#: Numbers that are the same in their lower 32 or 48 bits, or when one is shifted and added to the other.
_OBJECTS = (1, 2, 2**32 + 1, 2**48 + 1, 2**63 - 1)
_PLACES = (0, 2**20, 2**32, 2**48)
_STEP = 2**17


@remembered
def _fill() -> bytes:
    return random.Random(0).randbytes(_SIZE_MAX + 2**17)


def _content(block: BlockRef, salt: int = 0) -> memoryview:
    """Bytes that no other block has, of any size, without a copy."""
    start = zlib.crc32(f"{block.object_id}/{block.position}/{salt}".encode()) % 2**17
    return memoryview(_fill())[start : start + block.size]


def _check(blocks: Sequence[BlockRef], got: Sequence[Buffer], salt: int = 0) -> None:
    assert len(got) == len(blocks), f"{len(got)} blocks instead of {len(blocks)}"
    for block, data in zip(blocks, got, strict=True):
        assert len(data) == block.size, f"{len(data)} bytes instead of {block.size}: {block}"
        # as bytes: views are compared byte by byte, which takes ten times as long as both copies
        assert bytes(data) == bytes(_content(block, salt)), f"other bytes than were loaded: {block}"


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await checkpoint()


class _Load:
    """The loader of one read."""

    def __init__(
        self, salt: int = 0, error: Exception | None = None, gate: anyio.Event | None = None
    ) -> None:
        self.calls: list[list[BlockRef]] = []
        self.in_hand = 0
        self._salt = salt
        self._error = error
        self._gate = gate

    async def __call__(self, blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        self.calls.append(list(blocks))
        self.in_hand += 1
        try:
            await checkpoint()
            if self._gate is not None:
                await self._gate.wait()
            if self._error is not None:
                raise self._error
            return [_content(block, self._salt) for block in blocks]
        finally:
            self.in_hand -= 1

    def check_calls(self, wanted: Sequence[BlockRef]) -> None:
        """Ascending, each once, and nothing that this read didn't want: what others want has their loaders."""
        for asked in self.calls:
            assert asked, "a loader was called for no block"
            assert asked == sorted(set(asked)), f"a loader was asked out of order, or twice: {asked[:4]}"
            strange = set(asked) - set(wanted)
            assert not strange, f"a loader was asked for what its reader didn't want: {sorted(strange)[:2]}"


class _Model:
    """What a cache may have, and what it must tell."""

    def __init__(self, env: Env, cache: Any) -> None:
        self._random = env.random
        self._cache = cache
        self._account = env.account
        self._charged_before = self._account.statistics().used_bytes
        self.steps = Steps()
        limit = cache.statistics().limit_bytes
        self._large = limit // 5 if limit <= _LIMIT_MAX else 0
        #: All that was loaded and wasn't dropped since, as far as is known from outside.
        self._may: set[BlockRef] = set()
        self._loaded = 0
        self._got: list[tuple[Sequence[BlockRef], Sequence[Buffer]]] = []
        self._figures = Figures(BlockCacheStatistics)

    async def step(self) -> None:
        """Do something, and look what came of it."""
        steps = (self._read, self._read, self._read, self._crowd, self._evict, self._forget, self._ahead)
        await self._random.choice(steps)()
        self._check_figures()

    def _blocks(self) -> list[BlockRef]:
        """Of one object, or of two, in any order; or none."""
        count = self._random.choice((0, 1, 2, 5, 5, 90))
        found = set()
        for object_id in self._random.sample(_OBJECTS, self._random.choice((1, 2))):
            place = self._random.choice(_PLACES)
            first = self._random.randrange(12)
            for number in range(first, first + count):
                size = (1, 100, 700, 5000)[(number + place // 2**20) % 4]
                found.add(BlockRef(object_id, place + number * _STEP, size))
        return self._random.sample(sorted(found), len(found))

    async def _read(self) -> None:
        """One reader alone: what it's told is exact."""
        blocks = self._blocks()
        error = (
            UnavailableError(f"it fails: {self._random.random()}") if self._random.random() < 0.15 else None
        )
        load = _Load(error=error)
        before = self._cache.statistics()
        held = before.used_bytes == sum(block.size for block in self._may)
        self.steps.note(f"read {len(blocks)} blocks")
        try:
            got = await self._cache.get(blocks, load)
        except UnavailableError as raised:
            assert load.calls, f"a read whose loader wasn't called failed: {raised}"
            assert str(raised) == str(error), f"another error than the loader's was raised: {raised}"
            load.check_calls(blocks)
            return
        load.check_calls(blocks)
        assert error is None or not load.calls, "a load failed, and its reader wasn't told"
        _check(blocks, got)
        assert len(load.calls) <= 1, f"{len(load.calls)} loads for one read of {len(blocks)} small blocks"
        loaded = set(load.calls[0]) if load.calls else set()
        again = loaded & self._may
        assert not held or not again, f"a block that is cached was loaded again: {sorted(again)[:1]}"
        after = self._cache.statistics()
        figures = (after.hits - before.hits, after.misses - before.misses)
        wanted = (len(blocks) - len(loaded), len(loaded))
        assert figures == wanted, f"hits and misses: {figures} are told, {wanted} were"
        self._took(loaded)
        self._got.append((blocks, got))

    def _took(self, loaded: set[BlockRef]) -> None:
        self._may |= loaded
        self._loaded += len(loaded)

    async def _crowd(self) -> None:
        """Many at once, some of whom give up, fail, or only read ahead; and there isn't room for all."""
        gate = anyio.Event()
        errors: list[tuple[str, _Load]] = []
        loads: list[_Load] = []
        large = self._large if self._random.random() < 0.1 else 0
        scopes = [anyio.CancelScope() for _ in range(8)]
        shared = self._blocks()
        wants = [self._blocks() if number % 3 == 0 else shared[: number + 1] for number in range(8)]
        late, gone = self._random.randrange(8), self._random.sample(range(8), 2)
        evicted, forgotten = self._random.choice((0, 1000)), self._random.choice(_OBJECTS)
        self.steps.note("a crowd reads" + (" large blocks" if large else ""))

        async def read(number: int) -> None:
            error = UnavailableError(f"it fails: {number}") if number == 5 else None
            load = _Load(error=error, gate=gate if number % 2 else None)
            loads.append(load)
            if error is not None:
                errors.append((str(error), load))
            blocks = wants[number]
            if large:
                blocks = [BlockRef(9, (2 * number + half) * _LIMIT_MAX, large) for half in (0, 1)]
            ahead = number == 6
            with scopes[number]:
                try:
                    got = await self._cache.get(blocks, load, prefetch=ahead)
                except UnavailableError as raised:
                    guilty = [each for text, each in errors if text == str(raised)]
                    mine = guilty and set(blocks) & {block for asked in guilty[0].calls for block in asked}
                    assert mine, f"a reader was told of the failure of what it didn't want: {raised}"
                else:
                    if got or not ahead:
                        _check(blocks, got)
                        self._got.append((blocks, got))
            load.check_calls(blocks)

        async def disturb() -> None:
            await _turns(late)
            for number in gone:
                scopes[number].cancel()
            self._cache.evict(evicted)
            self._cache.forget_object(forgotten)
            await _turns(3)
            told = self._cache.statistics()
            limit = told.limit_bytes
            assert told.used_bytes <= limit, f"{told.used_bytes} bytes are used, the limit is {limit}"
            gate.set()

        await together([*(call(read, number) for number in range(8)), disturb])
        while any(load.in_hand for load in loads):
            await checkpoint()
        await _turns()
        for load in loads:
            for asked in load.calls:
                self._took(set(asked))
        del self._got[:-40]

    async def _ahead(self) -> None:
        blocks = self._blocks()
        self.steps.note(f"read {len(blocks)} blocks ahead")
        load = _Load()
        before = self._cache.statistics()
        got = await self._cache.get(blocks, load, prefetch=True)
        if got:
            _check(blocks, got)
        while load.in_hand:
            await checkpoint()
        await _turns()
        load.check_calls(blocks)
        for asked in load.calls:
            self._took(set(asked))
        after = self._cache.statistics()
        hits, misses = after.hits - before.hits, after.misses - before.misses
        loaded = sum(map(len, load.calls))
        assert hits <= len(blocks) - loaded, (
            f"of {len(blocks)} blocks read ahead {loaded} were loaded: hits={hits}"
        )
        assert misses <= loaded, f"of {len(blocks)} blocks read ahead {loaded} were loaded: misses={misses}"

    async def _evict(self) -> None:
        before = self._cache.statistics().used_bytes
        wanted = self._random.choice((0, 1, 5000, before // 2, before, 10**12))
        self.steps.note(f"evict {wanted}")
        freed = self._cache.evict(wanted)
        after = self._cache.statistics().used_bytes
        assert freed == before - after, f"evict({wanted}) says {freed}: before={before} after={after}"
        assert freed >= min(wanted, before), f"evict({wanted}) freed {freed} of {before}, and nobody waits"
        if not after:
            self._may.clear()

    async def _forget(self) -> None:
        object_id = self._random.choice(_OBJECTS)
        self.steps.note(f"forget {object_id}")
        self._cache.forget_object(object_id)
        self._may = {block for block in self._may if block.object_id != object_id}

    def _check_figures(self) -> None:
        told = self._figures.look(self._cache.statistics())
        most = sum(block.size for block in self._may)
        assert told.used_bytes <= min(most, told.limit_bytes), f"at most {most} bytes are cached: {told}"
        assert told.blocks <= len(self._may), f"at most {len(self._may)} blocks are cached: {told}"
        assert told.loading == 0, f"nothing is being loaded: {told}"
        gone = self._loaded - told.blocks
        assert told.evicted <= gone, f"only {gone} blocks were loaded and are gone: {told}"
        charged = self._account.statistics().used_bytes - self._charged_before
        assert charged >= told.used_bytes, f"{charged} bytes are on the account: {told}"
        assert told.blocks or charged <= 0, f"nothing is cached, and {charged} bytes are on the account"

    def end(self) -> None:
        """What was returned is what it was."""
        for blocks, got in self._got:
            _check(blocks, got)
        self._figures.end()


async def test_random_histories_agree_with_a_model(env: Env) -> None:
    """Each reader gets its blocks, by its own loader or another's, and the figures tell what happened."""
    async with env.open() as cache:
        model = _Model(env, cache)
        with model.steps.told():
            for _ in range(_STEPS):
                await model.step()
            model.end()
    used = env.account.statistics().used_bytes
    assert used == 0, f"{used} bytes are still accounted for"


async def test_blocks_of_any_size_are_whole(env: Env) -> None:
    """The bytes of ``blocks``, small or large; one that is larger than the limit is read, and not kept."""
    async with env.open() as cache:
        limit = cache.statistics().limit_bytes
        sizes = [1, 65_537, 2**20 + 1, 3 * 2**20 + 7, _LARGE, 1000]
        if limit < _SIZE_MAX:
            sizes.append(limit + 1)
        blocks = [BlockRef(1, number * 2**30, size) for number, size in enumerate(sizes)]
        for wanted in (*([block] for block in blocks for _ in range(2)), blocks[:4], blocks[:2]):
            _check(wanted, await cache.get(wanted, _Load()))
            await _turns()
            used = cache.statistics().used_bytes
            assert used <= limit, f"{used} bytes are kept, the limit is {limit}"


async def test_two_caches_have_nothing_to_do_with_each_other(env: Env) -> None:
    """All calls are about the cache that was opened: another one, at once or later, has blocks of its own."""
    blocks = [BlockRef(1, number * _STEP, 500) for number in range(4)]
    async with env.open() as first:
        for wanted in (blocks, blocks[:1]):
            _check(wanted, await first.get(wanted, _Load(1)), 1)
        async with env.open() as second:
            for wanted in (blocks, blocks[:1]):
                _check(wanted, await second.get(wanted, _Load(2)), 2)
                _check(wanted, await first.get(wanted, _Load(1)), 1)
            for step in range(20):
                window = first.readahead_bytes(1, step * 100, step * 100 + 100)
            ahead = second.readahead_bytes(1, 2000, 2100)
            assert ahead == 0 or ahead < window, f"a new reader gets {ahead} bytes, an old one {window}"
    async with env.open(epoch=2) as third:
        for block in blocks:
            _check([block], await third.get([block], _Load(3)), 3)


async def test_end_leaves_no_load_and_no_reader(env: Env) -> None:
    """Leaving the context, be it by an error or a cancellation, answers every waiter, those for room too; then no
    load runs on."""
    allocator = PlainAllocator(2 * _LIMIT_MAX)
    for context in each_way_out(env, allocator=allocator):
        await _leave_with_readers(context, allocator)


async def _leave_with_readers(context: AbstractAsyncContextManager[Any], allocator: PlainAllocator) -> None:
    answered = 0
    gate = anyio.Event()
    loads: list[_Load] = []

    async def read(cache: Any, number: int, size: int) -> None:
        nonlocal answered
        loads.append(_Load(gate=gate))
        with suppress(PenstockError):
            await cache.get([BlockRef(1, number * _LIMIT_MAX, size)], loads[-1])
        answered += 1

    async with anyio.create_task_group() as tasks:
        async with context as cache:
            limit = cache.statistics().limit_bytes
            size = limit // 5 if limit <= _LIMIT_MAX else 1000
            for number in range(9):
                tasks.start_soon(read, cache, number, size)
            await _turns()
        while answered < 9:
            await checkpoint()
    await _turns()
    running = sum(load.in_hand for load in loads)
    assert not running, f"{running} loads run on after the end"
    late = _Load()
    with raises(PenstockError):
        await cache.get([BlockRef(1, 0, size)], late)
    assert not late.calls, "a cache that was left loads"
    used = allocator.statistics().used_bytes
    assert used == 0, f"{used} bytes are still accounted for"
    whole = allocator.charge_nowait(2 * _LIMIT_MAX, "append")
    with raises(FullError):  # no listener of the cache is in the way
        allocator.charge_nowait(1, "append")
    whole.release()


async def test_reader_waits_for_memory_of_others(env: Env) -> None:
    """A read that finds no room waits for it: there is none while others have it, and some when they are done."""
    size = 10_000
    allocator = PlainAllocator(20 * size)
    async with env.open(allocator=allocator) as cache:
        base = allocator.statistics().used_bytes
        if base > 5 * size or cache.statistics().limit_bytes < 20 * size:
            not_applicable("the cache needs memory of its own, or is too small")
        for round_ in range(3):
            wanted = [BlockRef(round_, number * _STEP, size) for number in range(4)]
            others = allocator.charge_nowait(18 * size - base, "append")
            with raises(FullError):
                allocator.charge_nowait(10 * size, "append")

            async def read(wanted: Sequence[BlockRef] = wanted) -> None:
                with suppress(FullError):  # told, instead of waiting
                    _check(wanted, await cache.get(wanted, _Load()))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(read)
                await _turns()
                used = allocator.statistics().used_bytes
                assert used <= 20 * size, f"{used} bytes are used, the limit of the allocator is {20 * size}"
                others.release()
            held = await cache.get(wanted, _Load())
            cache.evict(1)
            kept, charged = cache.statistics().used_bytes, allocator.statistics().used_bytes - base
            assert charged >= kept, f"{kept} bytes are cached, {charged} of them on the account"
            with suppress(FullError):  # a cache that isn't asked for memory gives none
                allocator.charge_nowait(18 * size - base, "append").release()
            _check(wanted, held)  # whatever the cache gave up
            cache.evict(10**12)
            charged = allocator.statistics().used_bytes - base
            assert charged == 0, f"nothing is cached, and {charged} bytes are on the account"
        for turns in range(6):  # who waits gives up, sooner or later after there is room
            wanted = [BlockRef(10 + turns, number * _STEP, size) for number in range(4)]
            others = allocator.charge_nowait(18 * size - base, "append")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, wanted)
                await _turns()
                others.release()
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            for _ in range(200):  # the load may go on, for others
                await checkpoint()
                cache.evict(10**12)
                charged = allocator.statistics().used_bytes - base
                if not charged:
                    break
            assert charged == 0, f"who waited for memory gave up, and {charged} bytes are on the account"
    used = allocator.statistics().used_bytes
    assert used == 0, f"{used} bytes are still accounted for"


async def test_cached_blocks_of_a_read_may_make_room_for_its_others(env: Env) -> None:
    """The bytes of ``blocks``, in order: of those too that were cached, and went when the others wanted memory."""
    size = 10_000
    allocator = PlainAllocator(20 * size)
    async with env.open(allocator=allocator) as cache:
        base = allocator.statistics().used_bytes
        if base > 5 * size or cache.statistics().limit_bytes < 20 * size:
            not_applicable("the cache needs memory of its own, or is too small")

        def relieve(bytes_wanted: int) -> None:
            cache.evict(bytes_wanted)

        allocator.add_pressure_listener(relieve)
        cached = [BlockRef(1, number * _STEP, size) for number in range(6)]
        for block in cached:
            await cache.get([block], _Load())
        others = allocator.charge_nowait(
            14 * size - base, "append"
        )  # all is in use, if it keeps what it read
        for number, block in enumerate(cached):
            wanted = [block, BlockRef(2, number * _STEP, size)]
            with suppress(FullError):  # told, instead of waiting
                _check(wanted, await cache.get(wanted, _Load()))
        others.release()


async def test_loaders_are_let_go(env: Env) -> None:
    """A loader is the reader's: when its call has ended, and its reader is gone, the cache keeps nothing of it."""
    async with env.open() as cache:
        loaders = []
        for number in range(20):
            load = _Load(error=UnavailableError("the suite lets the load fail") if number > 15 else None)
            loaders.append(weakref.ref(load))
            with suppress(UnavailableError):
                await cache.get([BlockRef(1, number * _STEP, 100)], load)
        del load
        await _turns()
        gc.collect()
        alive = sum(loader() is not None for loader in loaders)
        assert not alive, f"{alive} of 20 loaders are kept after their readers got their blocks, or an error"


@clause(claims="readahead")
async def test_each_reader_is_known_by_its_number(env: Env) -> None:
    """A reader that continues where it ended gets more each time, whoever has a number like its own."""
    numbers = [7, *(7 + 2**bits for bits in (3, 6, 8, 10, 16, 32, 48))]
    async with env.open() as cache:
        windows: dict[int, list[int]] = {number: [] for number in numbers}
        for step in range(20):
            for place, number in enumerate(numbers):
                start = place * 2**30 + step * 100
                windows[number].append(cache.readahead_bytes(number, start, start + 100))
        for number, told in windows.items():
            assert told[-1] > 0, f"reader {number} reads nothing ahead beside {len(numbers) - 1} others"
            assert told[1:] == sorted(told[1:]), (
                f"reader {number} gets less, though nothing was wasted: {told}"
            )
