"""Clauses of ``penstock.spi.block_cache``: loads beside the limit, each figure, who gives up, leaps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import UnavailableError
from penstock.spi.block_cache import BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, together
from penstock_conformance._told_sizes import check_memory, told_sizes
from penstock_conformance._wanted import WantedMemory

KIND = "block_cache"

_MIB = 2**20
_EVERYTHING = 10**12
#: Blocks that are read ahead at once.
_AHEAD = 10


class _Load:
    """A loader: all blocks of a size share their bytes, so that large ones cost nothing."""

    def __init__(self, *, held: bool = False, error: Exception | None = None) -> None:
        self.gate = anyio.Event()
        self.error = error
        self.calls = 0
        #: Bytes that are being loaded, and the most that ever were.
        self.in_hand = 0
        self.most = 0
        self._bytes: dict[int, bytes] = {}
        if not held:
            self.gate.set()

    async def __call__(self, blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        size = sum(block.size for block in blocks)
        self.calls += 1
        self.in_hand += size
        self.most = max(self.most, self.in_hand)
        try:
            await _turns(3)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return [self._bytes.setdefault(block.size, bytes(block.size)) for block in blocks]
        finally:
            self.in_hand -= size


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await checkpoint()


def _blocks(object_id: int, count: int, size: int) -> list[BlockRef]:
    return [BlockRef(object_id, number * size, size) for number in range(count)]


def _limit_of(cache: Any, limit_max: int = 64 * _MIB) -> int:
    limit: int = cache.statistics().limit_bytes
    if limit > limit_max:
        not_applicable(f"the limit is too large to be reached here, set one of at most {limit_max >> 20}MiB")
    return limit


async def test_loads_under_way_keep_to_the_limit(env: Env) -> None:
    """Memory stays under the limit: of what is being loaded for all readers together, too."""
    async with env.open() as cache:
        limit = _limit_of(cache)
        load = _Load()

        async def read(number: int) -> None:
            await cache.get(_blocks(number, 2, limit // 10), load)

        await together([call(read, number) for number in range(20)])
        assert load.most <= limit, f"{load.most} bytes were loaded at once, the limit is {limit}"


async def test_whatever_makes_room_is_counted(env: Env) -> None:
    """``evicted``: blocks that made room for others, each of them; what was destroyed made none."""
    async with env.open() as cache:
        limit = _limit_of(cache)
        load = _Load()
        for block in _blocks(1, 20, limit // 40):
            await cache.get([block], load)
        before = cache.statistics()
        await cache.get(_blocks(2, 1, limit * 3 // 4), load)
        await _turns()
        told = cache.statistics()
        gone = before.blocks - told.blocks
        assert told.evicted - before.evicted >= gone, (
            f"at least {gone} blocks made room for a large one: {before} {told}"
        )
        for block in _blocks(3, 4, limit // 40):
            await cache.get([block], load)
        before = cache.statistics()
        for object_id in (1, 2, 3):
            cache.forget_object(object_id)
        told = cache.statistics()
        assert told.evicted == before.evicted, f"objects were destroyed, and nothing made room: {told}"


async def test_a_lone_reader_joins_nobody(env: Env) -> None:
    """``joined``: loads that were joined because *another* reader was already at it."""
    async with env.open() as cache:
        load = _Load()
        for blocks in (_blocks(1, 3, 1000), _blocks(1, 5, 1000), _blocks(2, 40, 100)):
            await cache.get(blocks, load)
            await _turns()
        told = cache.statistics()
        assert told.joined == 0, f"there is one reader, and each load is its own: {told}"


async def test_what_was_read_is_not_wasted(env: Env) -> None:
    """``wasted``: read ahead and evicted before *anybody* read them: before, while or after they were loaded."""
    async with env.open() as cache:
        load = _Load()
        await cache.get(_blocks(9, 3, 1000), load, prefetch=True)
        await _turns(30)
        if cache.statistics().blocks < 3:
            not_applicable("the cache keeps less than that of what is read ahead")
        await cache.get(_blocks(9, 3, 1000), load)
        for what, blocks in (
            ("read while they were loaded", _blocks(1, 3, 1000)),
            ("read before they were to be read ahead", _blocks(2, 3, 1000)),
            ("read ahead twice, and then read", _blocks(3, 3, 1000)),
            ("read ahead, and then destroyed", _blocks(4, 3, 1000)),
        ):
            held = _Load(held=True)
            async with anyio.create_task_group() as tasks:
                if blocks[0].object_id == 2:
                    await cache.get(blocks, load)
                for ahead in (True, True) if blocks[0].object_id == 3 else (True,):
                    tasks.start_soon(_read_ahead, cache, blocks, held, ahead)
                    await _turns()
                if blocks[0].object_id == 1:
                    tasks.start_soon(cache.get, blocks, held)
                    await _turns()
                held.gate.set()
            if blocks[0].object_id == 3:
                await cache.get(blocks, load)
            if blocks[0].object_id == 4:
                await _turns()
                cache.forget_object(4)
            cache.evict(_EVERYTHING)
            told = cache.statistics()
            assert told.wasted == 0, f"blocks were {what}: {told}"


@clause(claims="readahead")
async def test_waste_is_counted_and_cools_readers_down(env: Env) -> None:
    """``wasted``: blocks that were read ahead and evicted before anybody read them; waste cools a reader down."""
    async with env.open() as cache:
        start = most = 0
        for _ in range(30):
            most = cache.readahead_bytes(1, start, start + 100)
            start += 100
        if not most:
            not_applicable("nobody reads ahead")
        for number in range(5):
            before = cache.statistics()
            for _ in range(1 + number % 2):  # to be read ahead once more isn't to be read
                await cache.get(_blocks(number, _AHEAD, 1000), _Load(), prefetch=True)
                await _turns(30)
            ahead = cache.statistics().blocks
            cache.evict(_EVERYTHING)
            told = cache.statistics()
            gone, wasted = ahead - told.blocks, told.wasted - before.wasted
            if not gone:
                not_applicable("the cache keeps nothing of what is read ahead")
            assert gone <= wasted <= _AHEAD, (
                f"{gone} of {_AHEAD} blocks were read ahead and went unread, told are {wasted}"
            )
            cooled = [
                cache.readahead_bytes(1, start + 100 * step, start + 100 * step + 100) for step in range(30)
            ]
            start += 3000
            assert min(cooled[:5]) < most, (
                f"all was wasted, and its reader still gets {cooled[:5]} bytes instead of {most}"
            )


async def _read_ahead(cache: Any, blocks: Sequence[BlockRef], load: _Load, prefetch: bool) -> None:
    await cache.get(blocks, load, prefetch=prefetch)


async def test_failed_prefetch_is_nobodys(env: Env) -> None:
    """A failed load is told to all who wait for it and caches nothing: who comes later has a load of its own."""
    async with env.open() as cache:
        base = env.account.statistics().used_bytes
        for count in (1, 3):
            blocks = _blocks(count, count, 1000)
            for _ in range(2):
                with suppress(UnavailableError):
                    await cache.get(
                        blocks, _Load(error=UnavailableError("the suite lets the load fail")), prefetch=True
                    )
                await _turns()
                cache.evict(_EVERYTHING)
                load = _Load()
                got = await cache.get(blocks, load)  # raises, if the failure is still known
                assert [len(data) for data in got] == [1000] * count, f"{len(got)} of {count} blocks"
                cache.evict(_EVERYTHING)
                charged = env.account.statistics().used_bytes - base
                assert charged == 0, f"nothing is cached, and {charged} bytes are on the account"


async def test_who_gives_up_waiting_for_room_takes_none(env: Env) -> None:
    """A read that finds no room waits for it; if it is cancelled, there is as much for others as before."""
    async with env.open() as cache:
        limit = _limit_of(cache)
        for number in range(4):
            held, waits = _Load(held=True), _Load()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cache.get, _blocks(number, 2, limit // 3), held)
                await _turns()
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as waiting:
                        waiting.start_soon(cache.get, _blocks(100 + number, 1, limit // 2), waits)
                        await _turns()
                        scope.cancel()
                held.gate.set()
            await _turns()
        load = _Load()
        got = False
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                nonlocal got
                await cache.get(_blocks(1000, 3, limit * 3 // 10), load)
                got = True

            tasks.start_soon(read)
            await _turns(200)
            told = cache.statistics()
            tasks.cancel_scope.cancel()
        assert got, f"four waited for room and gave up, and there is none for who comes now: {told}"


async def test_room_of_a_load_that_fails_is_had_by_who_waits(env: Env) -> None:
    """A read that finds no room waits for it: also for that of a load which fails when its own reader has gone."""
    async with env.open() as cache:
        limit = _limit_of(cache)
        for number in range(3):
            held = _Load(held=True, error=UnavailableError("the suite lets the load fail"))
            got: list[int] = []

            async def read(number: int = number, got: list[int] = got) -> None:
                got.append(len(await cache.get(_blocks(100 + number, 1, limit // 2), _Load())))

            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as leaving:
                        leaving.start_soon(cache.get, _blocks(number, 2, limit // 3), held)
                        await _turns()
                        tasks.start_soon(read)
                        await _turns()
                        scope.cancel()
                held.gate.set()
                await _turns(200)
                told = cache.statistics()
                tasks.cancel_scope.cancel()
            assert got == [1], f"a load has failed, and who waits for its room has none: {told}"
            cache.evict(_EVERYTHING)


async def test_bytes_of_what_is_too_large_are_the_readers(env: Env) -> None:
    """A block larger than the limit is read, and not kept; what is returned stays as it is while it is referenced."""
    async with env.open() as cache:
        size = _limit_of(cache, 16 * _MIB) + 1
        failing = _Load(error=UnavailableError("the suite lets the load fail"))
        with suppress(UnavailableError):  # and the next one is read all the same
            await cache.get([BlockRef(1, 0, size)], failing)
        got = []
        for number in range(3):
            body = bytes([number + 1]) * size

            async def load(blocks: Sequence[BlockRef], body: bytes = body) -> Sequence[Buffer]:
                return [body]

            got += await cache.get([BlockRef(1, number * size, size)], load)
        ends = [(data[0], data[-1], len(data)) for data in got]
        assert ends == [(1, 1, size), (2, 2, size), (3, 3, size)], (
            f"three large blocks, the first and last byte of each: {ends}"
        )
        large = _Load(held=True)
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(cache.get, [BlockRef(2, number * size, size)], large)
            await _turns(50)
            large.gate.set()
        assert large.most <= 2 * size, (
            f"{large.most} bytes were being loaded at once, in blocks that are larger than the limit: {size - 1}"
        )


class _Payload(bytearray):
    """Bytes of which one can see whether anybody still has them."""

    __slots__ = ("__weakref__",)


async def test_what_goes_is_let_go(env: Env) -> None:
    """Memory stays under the limit: of blocks that were evicted, or destroyed, only their readers have something."""
    async with env.open() as cache:
        alive: list[weakref.ref[_Payload]] = []

        async def load(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
            payloads = [_Payload(block.size) for block in blocks]
            alive.extend(map(weakref.ref, payloads))
            return [memoryview(payload) for payload in payloads]

        for number in range(6):
            for blocks in (_blocks(number, 1, 1000), _blocks(number, 4, 1000)):
                await cache.get(blocks, load)
            if number % 2:
                cache.forget_object(number)
        cache.evict(_EVERYTHING)
        await _turns()
        gc.collect()
        kept = sum(payload() is not None for payload in alive)
        told = cache.statistics()
        assert not kept, f"{kept} of {len(alive)} blocks are in memory, and not on the account: {told}"


async def test_memory_that_goes_may_be_wanted_at_once(env: Env) -> None:
    """``evict`` may be called while the cache gives memory back, for whoever waited for it: what goes, goes once, and
    in the thread of the event loop."""
    for way in ("evicted", "destroyed", "left", "pushed out by others"):
        account = WantedMemory()
        try:
            async with env.open(allocator=account) as cache:
                size = min(_limit_of(cache) // 24, 2**16)
                for number in range(1, 3):
                    for block in _blocks(number, 8, size):
                        await cache.get([block], _Load())
                before, kept = account.statistics().used_bytes, cache.statistics().used_bytes
                account.evict = cache.evict
                if way == "evicted":
                    told = cache.evict(8 * size) + account.freed
                    gone = kept - cache.statistics().used_bytes
                    assert told == gone, f"{gone} bytes went, and {told} were told to who wanted them"
                elif way == "destroyed":
                    cache.forget_object(1)
                elif way == "pushed out by others":
                    await cache.get(_blocks(3, _limit_of(cache) // size, size), _Load())
                    account.evict = None
                    cache.evict(_EVERYTHING)
                now = cache.statistics()
                gone = kept - now.used_bytes
                charged = before - account.statistics().used_bytes
                assert charged == gone, (
                    f"{way}: the cache has {gone} bytes less, and gave {charged} back: {now}"
                )
                account.evict = cache.evict
                for block in _blocks(2, 8, size):  # as good as before
                    (got,) = await cache.get([block], _Load())
                    assert len(got) == size, f"{way}: a block of {len(got)} instead of {size} bytes"
            used = account.statistics().used_bytes
            assert not used, f"{way}: {used} bytes are on the account when the cache was left"
            assert not account.other_threads, f"{way}: memory was given back in another thread"
        finally:
            account.close()


async def test_loaders_of_all_readers_are_let_go(env: Env) -> None:
    """``load`` is let go with its call: of who joined another's load, was cancelled, or only read ahead, too."""
    async with env.open() as cache:
        watched: dict[str, weakref.ref[_Load]] = {}

        def loader(of: str, *, held: bool = True) -> _Load:
            made = _Load(held=held)
            watched[of] = weakref.ref(made)
            return made

        blocks = _blocks(1, 2, 1000)
        gone = anyio.CancelScope()

        async def read(load: _Load, scope: anyio.CancelScope | None = None) -> None:
            with scope or anyio.CancelScope():
                await cache.get(blocks, load)

        first = loader("who loads")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, first)
            await _turns()
            tasks.start_soon(read, loader("who joins"))
            tasks.start_soon(read, loader("who joins and is cancelled"), gone)
            await _turns()
            gone.cancel()
            await _turns()
            first.gate.set()
        del first
        await cache.get(blocks[:1], loader("who finds it cached", held=False))
        await _turns()
        gc.collect()
        kept = [of for of, load in watched.items() if load() is not None]
        assert not kept, f"loaders are kept after their readers have gone: {kept}"


async def test_what_is_read_often_makes_room_like_any_other(env: Env) -> None:
    """Memory stays under the limit, and what goes gives all of it back: also what was read again and again."""
    async with env.open() as cache:
        limit = _limit_of(cache)
        load = _Load()
        for number in range(8):
            blocks = _blocks(number, 9, limit // 10)
            for _ in range(4):
                await cache.get(blocks[number % 2 :], load)
            if number % 2:
                cache.forget_object(number)
            else:
                cache.evict(_EVERYTHING)
            told = cache.statistics()
            assert (told.used_bytes, told.blocks) == (0, 0), f"all is gone, and its memory isn't: {told}"


@clause(claims="readahead")
async def test_whoever_goes_on_is_sequential(env: Env) -> None:
    """A reader that continues where it ended is sequential: however much it reads, and whatever it did before; one
    that ended elsewhere isn't, however far away."""
    async with env.open() as cache:

        def windows(stream_id: int, start: int, lengths: Sequence[int]) -> list[int]:
            told = []
            for length in lengths:
                told.append(cache.readahead_bytes(stream_id, start, start + length))
                start += length
            return told

        most = windows(1, 0, [100] * 30)[-1]
        assert most > 0, "a sequential reader reads nothing ahead"
        lengths = [1 + number * 37 % 500 for number in range(30)]
        for name, told in {
            "with reads of all lengths": windows(2, 0, lengths),
            "after a leap": [*windows(3, 0, [100] * 3), *windows(3, 2**20, [100] * 30)],
            "after many leaps": [
                *(windows(4, n * 2**20, [100])[0] for n in range(5)),
                *windows(4, 0, [100] * 30),
            ],
            "after thousands of others that came once": [
                *(windows(1000 + n, 0, [100])[0] for n in range(3000)),
                *windows(6, 0, [100] * 30),
            ],
        }.items():
            assert told[-1] > 0, f"a reader that goes on {name} reads nothing ahead: {told[-5:]}"
        leaps = [windows(5, number * (2**32 + 100), [100])[0] for number in range(30)]
        assert max(leaps[1:]) < most, (
            f"a reader that leaps over 2**32 offsets is taken for one that goes on: {leaps}"
        )


async def test_sizes_are_told_before_as_they_are(env: Env) -> None:
    """``sizes`` tells before anything is opened what the cache then holds, and charges as long as it is open."""
    told = told_sizes(env)
    async with env.open() as cache:
        check_memory(env, told)
        limit = cache.statistics().limit_bytes
    assert told.capacity is None or told.capacity.size == limit, (
        f"sizes tells of {told.capacity and told.capacity.size} bytes, the cache of {limit}"
    )
