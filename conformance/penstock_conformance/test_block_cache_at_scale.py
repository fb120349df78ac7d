"""Clauses of ``penstock.spi.block_cache``: many readers, great numbers, cancellation at every moment, the account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import UnavailableError
from penstock.spi.block_cache import BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, together
from penstock_conformance._leaks import leaves_nothing
from penstock_conformance.reference._allocator import PlainAllocator

KIND = "block_cache"

_BLOCK_BYTES = 4000


def _block(object_id: int, number: int, size: int = _BLOCK_BYTES) -> BlockRef:
    return BlockRef(object_id, number * _BLOCK_BYTES, size)


def _content(block: BlockRef) -> bytes:
    return (f"{block.object_id}/{block.position};".encode() * (block.size // 4 + 1))[: block.size]


class _Store:
    """The loader: counts what is loaded, holds loads up at a gate, and fails for objects that it is told."""

    def __init__(self, *, open_gate: bool = True) -> None:
        self.loaded: Counter[BlockRef] = Counter()
        self.calls = 0
        self.gate = anyio.Event()
        self.broken: set[int] = set()
        self.in_hand = 0
        if open_gate:
            self.gate.set()

    async def load(self, blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        assert list(blocks) == sorted(set(blocks)), f"a loader was asked out of order, or twice: {blocks[:8]}"
        self.loaded.update(blocks)
        self.calls += 1
        self.in_hand += 1
        try:
            await checkpoint()
            await self.gate.wait()
            if self.broken & {block.object_id for block in blocks}:
                raise UnavailableError("the suite lets the store fail, try again")
            return [_content(block) for block in blocks]
        finally:
            self.in_hand -= 1


def _check(blocks: Sequence[BlockRef], got: Sequence[Buffer], what: str) -> None:
    assert len(got) == len(blocks), f"{what}: {len(got)} blocks instead of {len(blocks)}"
    for block, data in zip(blocks, got, strict=True):
        assert len(data) == block.size, f"{what}: {len(data)} bytes instead of {block.size}: {block}"
        assert bytes(data) == _content(block), f"{what}: other bytes than the store has: {block}"


async def _turns(count: int = 6) -> None:
    for _ in range(count):
        await checkpoint()


async def test_hundreds_of_readers_share_one_load(env: Env) -> None:
    """Concurrent readers of one block share one load, however many they are and whenever they come."""
    async with env.open() as cache:
        store = _Store(open_gate=False)
        got = 0

        async def read(number: int) -> None:
            nonlocal got
            first = number % 5
            blocks = [_block(1, first), _block(1, first + 1), _block(1, first + 2)]
            _check(blocks, await cache.get(blocks, store.load), f"reader {number} of 300")
            got += 1

        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(read, number)
                if number % 50 == 0:
                    await _turns()
            await _turns()
            store.gate.set()
        assert got == 300, f"{300 - got} of 300 readers got nothing"
        twice = [block for block, count in store.loaded.items() if count > 1]
        assert not twice, (
            f"a block was loaded {store.loaded[twice[0]]} times for 300 readers at once: {twice[0]}"
        )
        assert set(store.loaded) == {_block(1, number) for number in range(7)}, "other blocks were loaded"


async def test_block_of_a_cancelled_reader_is_whole(env: Env) -> None:
    """If a reader is cancelled, whichever and whenever, the others still get their block, whole."""
    async with env.open() as cache:
        number = 0
        for victim in (0, 1, 2):
            for turns in range(6):
                store = _Store(open_gate=False)
                blocks = [_block(1, number), _block(1, number + 1)]
                number += 2
                scopes = [anyio.CancelScope() for _ in range(3)]
                got: list[int] = []

                async def read(
                    owner: int,
                    blocks: Sequence[BlockRef] = blocks,
                    store: _Store = store,
                    scopes: Sequence[anyio.CancelScope] = scopes,
                    got: list[int] = got,
                ) -> None:
                    with scopes[owner]:
                        _check(
                            blocks,
                            await cache.get(blocks, store.load),
                            "a reader beside one that was cancelled",
                        )
                        got.append(owner)

                async with anyio.create_task_group() as tasks:
                    for owner in range(3):
                        tasks.start_soon(read, owner)
                        await checkpoint()
                    await _turns(turns)
                    scopes[victim].cancel()
                    await _turns(turns % 3)
                    store.gate.set()
                assert set(got) >= {0, 1, 2} - {victim}, (
                    f"only {got} got their block when {victim} was cancelled"
                )
                _check(blocks, await cache.get(blocks, store.load), "the next reader after a cancelled one")
        await _turns(20)
        assert cache.statistics().loading == 0, "a load never ends"
        cache.evict(10**9)
        used = cache.statistics().used_bytes
        assert used == 0, f"{used} bytes of cancelled reads can't be evicted any more"


async def test_cancelled_prefetch_strands_nobody(env: Env) -> None:
    """With ``prefetch`` the blocks are for later: a reader that joins such a load gets its block."""
    async with env.open() as cache:
        for turns in range(5):
            store = _Store(open_gate=False)
            blocks = [_block(2, turns)]
            gone = anyio.CancelScope()

            async def prefetch(
                blocks: Sequence[BlockRef] = blocks, store: _Store = store, gone: anyio.CancelScope = gone
            ) -> None:
                with gone:
                    await cache.get(blocks, store.load, prefetch=True)

            async def read(blocks: Sequence[BlockRef] = blocks, store: _Store = store) -> None:
                _check(blocks, await cache.get(blocks, store.load), "a reader of what another one prefetched")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prefetch)
                await _turns(2 + turns)
                tasks.start_soon(read)
                await _turns(2)
                gone.cancel()
                await _turns(2)
                store.gate.set()
            assert store.loaded[blocks[0]] <= 2, (
                f"a prefetched block was loaded {store.loaded[blocks[0]]} times"
            )
            _check(blocks, await cache.get(blocks, store.load), "the next reader after a cancelled prefetch")


async def test_failure_of_one_load_harms_no_other(env: Env) -> None:
    """A failed load raises its error to all who wait for it and caches nothing; who waits for others gets those."""
    async with env.open() as cache:
        store = _Store(open_gate=False)
        store.broken.add(3)
        kept = [_block(4, number) for number in range(4)]
        good = [_block(5, number) for number in range(3)]
        bad = [_block(3, number) for number in range(3)]
        open_store = _Store()
        idle = [_block(6, number) for number in range(3)]
        _check([*kept, *idle], await cache.get([*kept, *idle], open_store.load), "a first read")
        keeps = cache.statistics().blocks == 7
        told: list[str] = []

        async def read(what: str, blocks: Sequence[BlockRef]) -> None:
            try:
                got = await cache.get(blocks, store.load)
            except UnavailableError:
                told.append(what)
            else:
                _check(blocks, got, f"a reader of {what} blocks")

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read, "bad", bad)
                await _turns(2)
                tasks.start_soon(read, "good", good)
                await _turns(2)
                tasks.start_soon(read, "mixed", [*kept, *good, *bad])
                await _turns(2)
            store.gate.set()
        assert Counter(told) == {"bad": 3, "mixed": 3}, f"told of the failure: {told}"
        before = Counter(open_store.loaded)
        again = [*kept, *idle, *good]
        _check(again, await cache.get(again, open_store.load), "blocks beside those that failed")
        assert not keeps or Counter(open_store.loaded) == before, (
            "what was cached, or loaded well, went with what failed"
        )
        store.broken.clear()
        _check(bad, await cache.get(bad, open_store.load), "blocks whose load failed before")
        cache.evict(10**9)
        used = cache.statistics().used_bytes
        assert used == 0, f"{used} bytes of failed loads are still accounted for"


async def test_blocks_of_any_place_are_kept_apart(env: Env) -> None:
    """Blocks are named by (object_id, position), 64 bits each, and no two of them are one; one may be asked twice."""
    numbers = (0, 1, 2**16, 2**31, 2**32, 2**32 + 1, 2**40)
    blocks = [
        BlockRef(object_id, position, 600 + place)
        for object_id in numbers
        for place, position in enumerate(numbers)
    ]
    async with env.open() as cache:
        store = _Store()
        for start in range(0, len(blocks), 7):
            piece = blocks[start : start + 7]
            _check(piece, await cache.get(piece, store.load), "blocks of great numbers")
        mixed = env.random.sample(blocks, len(blocks))
        mixed = [*mixed[:20], *mixed[:3], mixed[0], *mixed[20:]]
        _check(mixed, await cache.get(mixed, store.load), "blocks of many objects, some of them twice")
        if cache.statistics().blocks < len(blocks):
            not_applicable("the cache doesn't keep all of them")
        assert set(store.loaded.values()) == {1}, "blocks were loaded again"
        cache.forget_object(2**32)
        left = [block for block in blocks if block.object_id != 2**32]
        _check(left, await cache.get(left, store.load), "blocks beside a destroyed object")
        assert all(store.loaded[block] == 1 for block in left), (
            "blocks of another object than the destroyed one went"
        )


async def test_cached_memory_is_on_the_account(env: Env) -> None:
    """Memory stays under the limit: what is cached, or being loaded, is charged, and what goes is given back."""
    async with env.open() as cache:
        account = env.account
        fixed = account.statistics().used_bytes
        store = _Store()
        blocks = [_block(1, number) for number in range(60)]
        for start in range(0, 60, 6):
            await cache.get(blocks[start : start + 6], store.load)
            used, charged = cache.statistics().used_bytes, account.statistics().used_bytes
            if cache.statistics().blocks < start + 6:
                not_applicable("the cache doesn't keep all of them")
            assert used == (start + 6) * _BLOCK_BYTES, (
                f"{start + 6} blocks are {used} bytes in the statistics"
            )
            assert charged >= used, f"{used} bytes are cached, {charged} are on the account"
        held = _Store(open_gate=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.get, [_block(2, 0), _block(2, 1)], held.load)
            await _turns()
            charged = account.statistics().used_bytes
            assert charged >= 62 * _BLOCK_BYTES, (
                f"blocks that are being loaded aren't on the account: {charged}"
            )
            held.gate.set()
        before = account.statistics().used_bytes
        freed = cache.evict(10 * _BLOCK_BYTES)
        now = account.statistics().used_bytes
        assert freed >= 10 * _BLOCK_BYTES, f"evict freed {freed} of {10 * _BLOCK_BYTES} bytes"
        assert before - now >= freed - 6 * _BLOCK_BYTES, f"evict says {freed}, the account got {before - now}"
        cache.forget_object(1)
        cache.evict(10**9)
        assert account.statistics().used_bytes == fixed, "memory that was evicted is still on the account"


async def test_cache_gives_way_to_others(env: Env) -> None:
    """Drop blocks until ``bytes_wanted`` are free: a request of somebody else that finds no room gets it."""
    allocator = PlainAllocator(40 * _BLOCK_BYTES)
    async with env.open(allocator=allocator) as cache:
        if cache.statistics().limit_bytes < 40 * _BLOCK_BYTES:
            not_applicable("the limit of the cache is below what this clause needs")

        def relieve(bytes_wanted: int) -> None:
            cache.evict(bytes_wanted)

        allocator.add_pressure_listener(relieve)
        store = _Store()
        for number in range(30):
            block = [_block(1, number)]
            _check(block, await cache.get(block, store.load), "a read with little memory")
        before = cache.statistics()
        charge = allocator.charge_nowait(35 * _BLOCK_BYTES, "append")
        used = cache.statistics().used_bytes
        assert used <= 5 * _BLOCK_BYTES, f"{used} bytes are cached though others have the memory"
        told = cache.statistics()
        gone, evicted = before.blocks - told.blocks, told.evicted - before.evicted
        assert evicted >= gone, f"{gone} blocks made room for others: evicted={evicted}"
        for number in range(3):
            block = [_block(2, number)]
            _check(block, await cache.get(block, store.load), "a read when others have the memory")
            assert allocator.statistics().used_bytes <= 40 * _BLOCK_BYTES, (
                "the limit of the allocator is exceeded"
            )
        charge.release()
        _check(
            [_block(1, 7)], await cache.get([_block(1, 7)], store.load), "a read when there is memory again"
        )
        cache.evict(10**12)
        before = cache.statistics()
        await cache.get([_block(3, number) for number in range(4)], store.load, prefetch=True)
        await _turns()
        ahead = cache.statistics().blocks
        allocator.charge_nowait(37 * _BLOCK_BYTES, "append").release()
        told = cache.statistics()
        gone, wasted = ahead - told.blocks, told.wasted - before.wasted
        assert wasted >= gone, f"{gone} blocks were read ahead and made room for others: wasted={wasted}"
    assert allocator.statistics().used_bytes == 0, "a charge was left behind"


async def test_eviction_during_loads_loses_nothing(env: Env) -> None:
    """Drop blocks that nobody waits for: however often, in the midst of many readers, each gets what it asked for."""
    async with env.open() as cache:
        store = _Store()

        async def read(owner: int) -> None:
            for step in range(12):
                blocks = [_block(owner % 3, (owner + step + number) % 20) for number in range(3)]
                _check(blocks, await cache.get(blocks, store.load), "a read beside evictions")

        async def evict() -> None:
            for step in range(60):
                cache.evict((step % 4) * _BLOCK_BYTES or 10**9)
                if step % 7 == 0:
                    cache.forget_object(step % 3)
                await checkpoint()

        await together([*(call(read, owner) for owner in range(20)), evict])
        await _turns(20)
        assert store.in_hand == 0, "a load runs on for ever"
        cache.evict(10**9)
        assert cache.statistics().used_bytes == 0, "memory that can't be evicted any more"


@clause(claims="readahead")
async def test_readers_do_not_disturb_each_other(env: Env) -> None:
    """A reader that continues where it ended is sequential, whoever reads beside it; one that jumps isn't."""
    async with env.open() as cache:
        alone = [cache.readahead_bytes(1, offset, offset + 100) for offset in range(0, 4000, 100)]
        beside: dict[int, list[int]] = {2: [], 3: []}
        for step in range(40):
            beside[2].append(cache.readahead_bytes(2, step * 100, step * 100 + 100))
            cache.readahead_bytes(9, env.random.randrange(10**9), 10**9)
            beside[3].append(cache.readahead_bytes(3, 2**40 + step * 100, 2**40 + step * 100 + 100))
        for stream_id, windows in beside.items():
            assert max(windows) > 0, f"reader {stream_id} reads nothing ahead beside others"
            assert max(windows) * 4 >= max(alone), f"reader {stream_id} reads far less ahead beside others"


async def test_object_of_thousands_of_blocks_is_forgotten(env: Env) -> None:
    """The object was destroyed: none of its blocks takes memory, however many there were."""
    async with env.open() as cache:
        store = _Store()
        other = [BlockRef(2, number * 50, 50) for number in range(100)]
        await cache.get([BlockRef(1, number * 50, 50) for number in range(4400)], store.load)
        await cache.get(other, store.load)
        cache.forget_object(1)
        used = cache.statistics().used_bytes
        assert used <= 5000, f"{used} bytes are used by 100 blocks of 50"
        _check(other, await cache.get(other, store.load), "blocks beside those of a destroyed object")
        assert cache.evict(10**9) == used, "memory that nobody uses was freed, or wasn't"


async def test_opening_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""

    async def use(cache: Any) -> None:
        store = _Store()
        await cache.get([_block(1, number) for number in range(5)], store.load)
        cache.readahead_bytes(1, 0, 100)

    await leaves_nothing(env, use)


async def test_one_read_may_want_thousands_of_blocks(env: Env) -> None:
    """The bytes of ``blocks``, all of them and in order, whether they are cached or not."""
    blocks = [BlockRef(1 + number % 3, number * 64, 64) for number in range(3000)]
    async with env.open() as cache:
        store = _Store()
        for what in ("a read of 3000 blocks", "the same read when they may be cached"):
            before = cache.statistics()
            _check(blocks, await cache.get(blocks, store.load), what)
            told = cache.statistics()
            calls = store.calls if told.limit_bytes >= 3000 * 64 else 1
            assert calls == 1, f"blocks that fit into the cache go to one load: {calls} loads"
            seen = told.hits + told.misses - before.hits - before.misses
            assert seen == 3000, f"{what}: so many were there or had to be loaded: {seen}"
