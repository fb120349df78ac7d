"""Clauses of ``penstock.spi.block_cache``."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    CorruptError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi.block_cache import BlockRef
from penstock.spi.plugin import Buffer
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together

KIND = "block_cache"

_BLOCK_BYTES = 10_000


def _block(object_id: int, number: int, size: int = _BLOCK_BYTES) -> BlockRef:
    return BlockRef(object_id, number * _BLOCK_BYTES, size)


def _content(block: BlockRef) -> bytes:
    name = f"{block.object_id}/{block.position};".encode()
    return (name * (block.size // len(name) + 1))[: block.size]


class _Store:
    """The loader: counts what is loaded, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.calls: list[list[BlockRef]] = []
        self.loaded: Counter[BlockRef] = Counter()
        self.gate: anyio.Event | None = None
        self.error: Exception | None = None
        self.pauses = 1
        self.in_hand = 0

    async def load(self, blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        self.calls.append(list(blocks))
        self.loaded.update(blocks)
        self.in_hand += 1
        try:
            for _ in range(self.pauses):
                await checkpoint()
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
            return [_content(block) for block in blocks]
        finally:
            self.in_hand -= 1

    async def load_tuple(self, blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        """Any sequence will do."""
        return tuple(await self.load(tuple(blocks)))


def _check(blocks: Sequence[BlockRef], got: Sequence[Buffer]) -> None:
    assert len(got) == len(blocks), f"{len(got)} blocks instead of {len(blocks)}"
    for block, data in zip(blocks, got, strict=True):
        assert bytes(data) == _content(block), f"the bytes of another block: {block}"


def _expect_kept(cache: Any, count: int) -> None:
    """The cache decides what to keep; what it says that it keeps it is held to."""
    blocks = cache.statistics().blocks
    if blocks < count:
        not_applicable(f"the cache keeps {blocks} of {count} small blocks")


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await checkpoint()


async def test_get_returns_the_blocks_in_order(env: Env) -> None:
    """The bytes of ``blocks``, in order, whatever of them is cached."""
    async with env.open() as cache:
        store = _Store()
        for wanted in ([0], [0, 1], [1, 2, 3], [5], [3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [6, 7]):
            blocks = [_block(1, number, 1000 + 37 * number) for number in wanted]
            _check(blocks, await cache.get(blocks, store.load if len(blocks) % 2 else store.load_tuple))
        two_objects = (_block(1, 3, 1111), _block(2, 3, 1111))
        for _ in range(2):
            _check(two_objects, await cache.get(two_objects, store.load))
        assert list(await cache.get([], store.load)) == []


async def test_cached_blocks_are_not_loaded_again(env: Env) -> None:
    """Those not cached nor being loaded go to one ``load`` call, ascending."""
    async with env.open() as cache:
        store = _Store()
        await cache.get([_block(1, 1), _block(1, 2)], store.load)
        _expect_kept(cache, 2)
        await cache.get([_block(1, number) for number in range(5)], store.load)
        assert store.calls == [[_block(1, 1), _block(1, 2)], [_block(1, 0), _block(1, 3), _block(1, 4)]], (
            f"loaded other blocks than the missing ones, or not in one call: {store.calls}"
        )
        _expect_kept(cache, 5)
        await cache.get([_block(1, number) for number in range(5)], store.load)
        assert len(store.calls) == 2, "cached blocks were loaded again"
        counters = cache.statistics()
        assert counters.hits >= 5
        assert counters.misses >= 5
        assert counters.blocks == 5
        assert counters.loading == 0
        await cache.get([_block(2, number) for number in range(4)], store.load, prefetch=True)
        await _turns()
        assert len(store.calls) <= 3, f"four blocks were read ahead, not in one call: {store.calls[2:]}"


async def test_concurrent_readers_share_one_load(env: Env) -> None:
    """Concurrent readers of one block share one load."""
    async with env.open() as cache:
        store = _Store()
        store.gate = anyio.Event()

        async def read(number: int) -> None:
            blocks = [_block(1, number % 3), _block(1, number % 3 + 1)]
            _check(blocks, await cache.get(blocks, store.load))

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(read, number)
            await _turns()
            told = cache.statistics()
            assert (told.loading, told.blocks) == (4, 0), (
                f"four blocks are on their way, and none is there: {told}"
            )
            store.gate.set()
        assert set(store.loaded.values()) == {1}, f"a block was loaded twice: {store.loaded}"
        assert cache.statistics().joined >= 1


async def test_cancelled_loader_strands_nobody(env: Env) -> None:
    """If the reader that loads is cancelled, the others still get their block."""
    for waiters in (1, 3):
        async with env.open() as cache:
            await _cancel_the_loader(cache, waiters)


async def _cancel_the_loader(cache: Any, waiters: int) -> None:
    store = _Store()
    store.gate = anyio.Event()
    blocks = [_block(1, 0), _block(1, 1)]
    first = anyio.CancelScope()
    got = 0

    async def read_first() -> None:
        with first:
            await cache.get(blocks, store.load)

    async def read() -> None:
        nonlocal got
        _check(blocks, await cache.get(blocks, store.load))
        got += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_first)
        await _turns(4)
        for _ in range(waiters):
            tasks.start_soon(read)
        await _turns(4)
        first.cancel()
        await _turns(4)
        store.gate.set()
        while got < waiters:
            await checkpoint()
    _check([_block(1, 1)], await cache.get([_block(1, 1)], store.load))


async def test_lone_cancelled_read_leaves_the_cache_usable(env: Env) -> None:
    """A cancelled read, with nobody else waiting: the next one gets the block."""
    async with env.open() as cache:
        store = _Store()
        store.gate = anyio.Event()
        for turns in range(5):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cache.get, [_block(1, turns)], store.load)
                    await _turns(turns)
                    scope.cancel()
        store.gate.set()
        for turns in range(5):
            _check([_block(1, turns)], await cache.get([_block(1, turns)], store.load))
        await _turns()
        assert store.in_hand == 0, "a load runs on for ever"
        assert cache.statistics().loading == 0


async def test_failed_load_is_told_to_all_and_not_cached(env: Env) -> None:
    """A failed load raises its error, of whatever kind it is, to all who wait for it, and caches nothing."""
    async with env.open() as cache:
        for kind in (UnavailableError, NotFoundError, CorruptError, OSError):
            store = _Store()
            store.gate, store.error = anyio.Event(), kind(f"the suite has a load end with {kind.__name__}")
            told: list[str] = []

            async def read(_: int, store: _Store = store, told: list[str] = told) -> None:
                try:
                    await cache.get([_block(1, 0), _block(1, 1)], store.load)
                except Exception as error:  # noqa: BLE001 - it is compared
                    told.append(repr(error))

            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(read, number)
                    if number:  # two come at once, the others when the load is under way
                        await _turns()
                store.gate.set()
            assert told == [repr(store.error)] * 4, f"4 readers of a load that failed were told: {told}"
            assert cache.statistics().blocks == 0
            assert cache.statistics().used_bytes == 0
        ahead = _Store()
        ahead.gate, ahead.error = anyio.Event(), UnavailableError("the suite has a load end so")
        answers: list[str] = []

        async def read_ahead() -> None:
            try:
                answers.append(repr(await cache.get([_block(2, 0)], ahead.load, prefetch=True)))
            except Exception as error:  # noqa: BLE001 - it is compared
                answers.append(repr(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_ahead)
            await _turns()
            waits = ahead.in_hand and not answers
            ahead.gate.set()
        assert not waits or answers == [repr(ahead.error)], (
            f"who waited for blocks to be read ahead: {answers}"
        )
        store.error = None
        _check([_block(1, 0)], await cache.get([_block(1, 0)], store.load))


async def test_no_kind_of_error_is_kept(env: Env) -> None:
    """A failed load caches nothing: not even that the object isn't there, or can't be read. It takes no memory."""
    async with env.open() as cache:
        kinds = (NotFoundError, CorruptError, InvalidRequestError, FullError, UnavailableError)
        for number, kind in enumerate(kinds):
            blocks = [_block(number, 0), _block(number, 1)]
            store = _Store()
            store.error = kind("the suite lets the load fail")
            used = env.account.statistics().used_bytes
            with raises(kind):
                await cache.get(blocks, store.load)
            kept = env.account.statistics().used_bytes - used
            assert kept <= 0, f"a load that failed with {kind.__name__} keeps {kept} bytes"
            store.error = None
            _check(blocks, await cache.get(blocks, store.load))


async def test_memory_stays_under_the_limit(env: Env) -> None:
    """Memory stays under the limit; what isn't waited for goes; a read that finds no room waits for it."""
    async with env.open() as cache:
        limit = cache.statistics().limit_bytes
        assert limit > 0, "a cache tells its limit"
        if limit > 64 * 2**20:
            not_applicable("the limit is too large to be reached here, set one of at most 64MiB")
        size = limit // 10
        store = _Store()
        store.pauses = 3
        for number in range(30):
            _check([_block(1, number, size)], await cache.get([_block(1, number, size)], store.load))
            counters = cache.statistics()
            assert counters.used_bytes <= limit, "the limit is exceeded"
        assert counters.evicted >= 1 or counters.blocks < 5, "not all fit, and nothing was evicted"

        async def read(number: int) -> None:
            for step in range(6):
                blocks = [_block(2, number * 100 + step * 2 + half, size) for half in (0, 1)]
                _check(blocks, await cache.get(blocks, store.load))
                assert cache.statistics().used_bytes <= limit, "the limit is exceeded by concurrent reads"

        await together([call(read, number) for number in range(12)])


async def test_prefetch_pushes_out_nobody(env: Env) -> None:
    """With ``prefetch`` blocks are for later: they must not push out blocks that are being waited for."""
    async with env.open() as cache:
        limit = cache.statistics().limit_bytes
        if limit > 64 * 2**20:
            not_applicable("the limit is too large to be reached here, set one of at most 64MiB")
        size = limit // 4
        store = _Store()
        store.gate = anyio.Event()
        got: list[Sequence[Buffer]] = []
        blocks = [_block(1, number, size) for number in range(3)]

        async def read() -> None:
            got.append(await cache.get(blocks, store.load))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await _turns()
            ahead = [_block(1, number, size) for number in range(3, 9)]
            async with anyio.create_task_group() as prefetching:

                async def prefetch() -> None:
                    result = await cache.get(ahead, store.load, prefetch=True)
                    assert len(result) in (0, len(ahead))

                prefetching.start_soon(prefetch)
                await _turns()
                assert cache.statistics().used_bytes <= limit
                store.gate.set()
        _check(blocks, got[0])
        assert store.loaded[blocks[0]] == 1
        _check(ahead[:1], await cache.get(ahead[:1], store.load))


async def test_eviction_frees_memory(env: Env) -> None:
    """Drop blocks that nobody waits for until ``bytes_wanted`` are free or none is left; bytes freed."""
    async with env.open() as cache:
        store = _Store()
        blocks = [_block(1, number) for number in range(10)]
        await cache.get(blocks[:5], store.load, prefetch=True)
        await cache.get(blocks, store.load)
        _expect_kept(cache, 10)
        allocator = env.plain_allocator
        before = allocator.statistics().used_bytes if allocator is not None else 0
        assert cache.evict(0) == cache.evict(-25_000) == 0, "blocks were dropped though nobody wanted memory"
        freed = cache.evict(25_000)
        assert 25_000 <= freed < 60_000, f"freed={freed}"
        evicted = cache.statistics().evicted
        assert evicted == freed // _BLOCK_BYTES, f"{freed} bytes were freed: evicted={evicted}"
        assert cache.statistics().used_bytes == 100_000 - freed
        if allocator is not None and before >= 100_000:
            assert allocator.statistics().used_bytes <= before - freed, (
                "evicted memory is still accounted for"
            )
        assert cache.evict(10**9) == 100_000 - freed
        assert cache.evict(10**9) == 0
        wasted = cache.statistics().wasted
        assert wasted == 0, f"all blocks were read before they were evicted: wasted={wasted}"
        _check(blocks, await cache.get(blocks, store.load))


async def test_awaited_blocks_are_not_evicted(env: Env) -> None:
    """Drop blocks that nobody waits for: a load under way goes on."""
    async with env.open() as cache:
        store = _Store()
        store.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                _check([_block(1, 0)], await cache.get([_block(1, 0)], store.load))

            tasks.start_soon(read)
            await _turns()
            cache.evict(10**9)
            cache.forget_object(2)
            store.gate.set()
        assert store.loaded[_block(1, 0)] == 1


async def test_forgotten_objects_are_dropped(env: Env) -> None:
    """The object was destroyed: its blocks are never read again, nor those that are just being read ahead."""
    async with env.open() as cache:
        store = _Store()

        async def read_ahead() -> None:
            await cache.get([_block(3, 0)], store.load, prefetch=True)

        for object_id in (1, 2, 0):
            await cache.get([_block(object_id, number) for number in range(3)], store.load)
        _expect_kept(cache, 9)
        for object_id in (1, 1, 0):
            cache.forget_object(object_id)
        assert cache.statistics().used_bytes == 30_000, "blocks of a destroyed object take memory"
        await cache.get([_block(2, 1)], store.load)
        assert store.loaded[_block(2, 1)] == 1, "blocks of another object were dropped"
        store.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_ahead)
            await _turns()
            cache.forget_object(3)
            store.gate.set()
        await _turns()
        assert cache.statistics().used_bytes == 30_000, (
            "what was read ahead of a destroyed object takes memory"
        )


async def test_leaving_the_context_releases_everything(env: Env) -> None:
    """Leaving its context releases every charge."""
    async with env.open() as cache:
        store = _Store()
        await cache.get([_block(1, number) for number in range(20)], store.load)
    used = env.account.statistics().used_bytes
    assert used == 0, f"{used} bytes are still accounted for"


async def test_readers_are_answered_at_the_end(env: Env) -> None:
    """Leaving the context answers every waiter."""
    store = _Store()
    store.gate = anyio.Event()
    answered = 0

    async def read(cache: Any) -> None:
        nonlocal answered
        with contextlib.suppress(PenstockError):
            await cache.get([_block(1, 0)], store.load)
        answered += 1

    async with anyio.create_task_group() as tasks:
        async with env.open() as cache:
            for _ in range(3):
                tasks.start_soon(read, cache)
            await _turns()
        store.gate.set()
        with anyio.fail_after(env.target.deadline_s):
            while answered < 3:
                await checkpoint()
    if env.plain_allocator is not None:
        used = env.plain_allocator.statistics().used_bytes
        assert used == 0, "a load under way left its charge behind"


async def test_random_reads_agree_with_the_store(env: Env) -> None:
    """Any mixture of reads, prefetches, cancellations and evictions returns the right bytes and comes to an end."""
    async with env.open() as cache:
        limit = cache.statistics().limit_bytes
        store = _Store()
        store.pauses = 2

        async def read(_: int) -> None:
            for _ in range(30):
                first, count = env.random.randrange(40), env.random.randrange(1, 6)
                object_id = env.random.choice((1, 2))
                blocks = [_block(object_id, number) for number in range(first, first + count)]
                ahead = env.random.random() < 0.2
                with anyio.CancelScope() as scope:
                    if env.random.random() < 0.15:
                        scope.deadline = anyio.current_time()
                    got = await cache.get(blocks, store.load, prefetch=ahead)
                    if got or not ahead:
                        _check(blocks, got)
                if env.random.random() < 0.1:
                    cache.evict(env.random.randrange(100_000))
                assert cache.statistics().used_bytes <= limit

        await together([call(read, number) for number in range(10)])
        await _turns(50)
        assert cache.statistics().loading == 0, "a load never ends"
    if env.plain_allocator is not None:
        assert env.plain_allocator.statistics().used_bytes == 0, "a charge was left behind"


@clause(claims="readahead")
async def test_sequential_readers_read_further_ahead(env: Env) -> None:
    """A reader that continues where it ended is sequential and gets more each time, up to a bound."""
    async with env.open() as cache:
        windows = [cache.readahead_bytes(1, offset, offset + 100) for offset in range(0, 6000, 100)]
        assert windows[-1] > 0, "a sequential reader reads nothing ahead"
        grown = [window for window in windows if window]
        assert grown[0] < max(grown), "the window doesn't grow"
        assert windows[-1] == windows[-2], "the window grows without a bound"
        jumps = [
            cache.readahead_bytes(2, offset, offset + 100)
            for offset in env.random.sample(range(0, 10**6, 1000), 30)
        ]
        assert max(jumps[1:]) < max(grown), "a random reader reads ahead as far as a sequential one"
        strides = [cache.readahead_bytes(3, offset, offset + 100) for offset in range(0, 60 * 10**6, 10**6)]
        assert max(strides[1:]) < max(grown), "a reader that leaves most out reads ahead as if it read all"
        again = [cache.readahead_bytes(4, 0, 100) for _ in range(60)]
        assert max(again) < max(grown), (
            "a reader that reads the same again and again reads ahead as if it went on"
        )
        back = [cache.readahead_bytes(5, offset, offset + 100) for offset in range(6000, 0, -100)]
        assert max(back) < max(grown), "a reader that goes backwards reads ahead as if it went on"
        odd = [
            window
            for window in (*windows, *jumps, *strides, *again, *back)
            if type(window) is not int or window < 0
        ]
        assert not odd, f"not a number of bytes: {odd[:3]}"


@clause(refuses="readahead")
async def test_unclaimed_readahead_is_zero(env: Env) -> None:
    """``readahead`` False: it always answers 0."""
    async with env.open() as cache:
        for offset in range(0, 3000, 100):
            assert cache.readahead_bytes(1, offset, offset + 100) == 0
