"""The LRU block cache: shared loads, cancellation, bounds, and what survives a scan."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from penstock_cache_lru import penstock_register_block_cache
from penstock_cache_lru._cache import LruBlockCache, LruBlockCacheSettings, open_block_cache

from penstock.errors import ClosedError, FullError, InvariantError, UnavailableError
from penstock.spi import Buffer, Services
from penstock.spi.allocator import Charge
from penstock.spi.block_cache import BlockRef

pytestmark = pytest.mark.anyio

SERVICES = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(), clock=lambda: 0.0)


def ref(number: int, size: int = 10, object_id: int = 1) -> BlockRef:
    return BlockRef(object_id, number * 1000, size)


def body(block: BlockRef) -> bytes:
    return bytes([block.position // 1000 % 251]) * block.size


class Store:
    """Loads blocks when its gate is open, and remembers what it was asked for."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.calls: list[list[BlockRef]] = []
        self.gate = anyio.Event()
        self.error: Exception | None = None
        self.cancelled = 0
        if is_open:
            self.gate.set()

    async def load(self, blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        self.calls.append(list(blocks))
        try:
            await self.gate.wait()
        except BaseException:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return [body(block) for block in blocks]


class Memory:
    """An allocator that only charges: its limit can be moved, and one waiter be let in by hand."""

    class Taken:
        def __init__(self, memory: Memory, size: int) -> None:
            self.memory = memory
            self.size = size
            self.released = False

        def release(self) -> None:
            assert not self.released
            self.released = True
            self.memory.used -= self.size
            self.memory.room.set()

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.room = anyio.Event()

    def charge_nowait(self, size: int, purpose: str) -> Charge:
        assert purpose == "block_cache"
        if self.used + size > self.limit:
            raise FullError(f"full: size={size}")
        self.used += size
        return Memory.Taken(self, size)

    def charge_anyway(self, size: int, purpose: str) -> Charge:
        raise NotImplementedError

    async def charge(self, size: int, purpose: str) -> Charge:
        self.room = anyio.Event()
        await self.room.wait()
        return self.charge_nowait(size, purpose)


@asynccontextmanager
async def opened(
    limit: int = 100, memory: Memory | None = None, readahead: int = 0
) -> AsyncIterator[LruBlockCache]:
    services = replace(SERVICES, allocator=memory)  # type: ignore[arg-type]
    async with open_block_cache(
        LruBlockCacheSettings(limit=limit, readahead_max=readahead), services
    ) as cache:
        yield cache


async def settle() -> None:
    for _ in range(6):
        await checkpoint()


async def test_missing_blocks_go_to_one_load_and_come_back_in_order() -> None:
    store = Store()
    async with opened() as cache:
        assert list(await cache.get([ref(2)], store.load)) == [body(ref(2))]
        wanted = [ref(1), ref(2), ref(3), ref(1)]
        assert list(await cache.get(wanted, store.load)) == [body(block) for block in wanted]
        assert store.calls == [[ref(2)], [ref(1), ref(3)]]
        assert list(await cache.get([], store.load)) == []
        state = cache.statistics()
        assert (state.blocks, state.used_bytes, state.loading) == (3, 30, 0)


async def test_concurrent_readers_share_one_load() -> None:
    store = Store(is_open=False)
    got: list[Sequence[Buffer]] = []
    async with opened() as cache:

        async def read() -> None:
            got.append(await cache.get([ref(1)], store.load))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(read)
            await settle()
            assert cache.statistics().loading == 1
            store.gate.set()
        assert [list(each) for each in got] == [[body(ref(1))]] * 5
        assert len(store.calls) == 1
        assert (cache.statistics().misses, cache.statistics().joined) == (1, 4)


async def test_cancelling_the_reader_that_loads_does_not_disturb_the_others() -> None:
    store = Store(is_open=False)
    got: list[Sequence[Buffer]] = []
    async with opened() as cache, anyio.create_task_group() as group:
        first = anyio.CancelScope()

        async def loader() -> None:
            with first:
                await cache.get([ref(1), ref(2)], store.load)

        async def joiner() -> None:
            got.append(await cache.get([ref(1)], store.load))

        group.start_soon(loader)
        await settle()
        group.start_soon(joiner)
        await settle()
        first.cancel()
        await settle()
        assert store.cancelled == 0
        store.gate.set()
        await settle()
        assert list(got[0]) == [body(ref(1))]
        assert list(await cache.get([ref(2)], store.load)) == [body(ref(2))]
        assert len(store.calls) == 1


async def test_a_failed_load_fails_for_all_who_wait_and_caches_nothing() -> None:
    store = Store(is_open=False)
    store.error = UnavailableError("store is away")
    memory = Memory(1000)
    failed: list[Exception] = []
    async with opened(memory=memory) as cache:

        async def read() -> None:
            try:
                await cache.get([ref(1)], store.load)
            except UnavailableError as error:
                failed.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read)
            await settle()
            store.gate.set()
        assert len(failed) == 3
        assert cache.statistics().used_bytes == memory.used == 0
        store.error = None
        assert list(await cache.get([ref(1)], store.load)) == [body(ref(1))]


async def test_a_loader_that_returns_the_wrong_bytes_is_a_bug_that_shows() -> None:
    async def short(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        await checkpoint()
        return [body(block)[1:] for block in blocks]

    async with opened() as cache:
        with pytest.raises(InvariantError):
            await cache.get([ref(1)], short)
        assert cache.statistics().used_bytes == 0


async def test_the_limit_holds_and_the_least_recently_used_block_goes() -> None:
    store = Store()
    memory = Memory(1000)
    async with opened(limit=30, memory=memory) as cache:
        for number in (1, 2, 3, 4):
            await cache.get([ref(number)], store.load)
            assert cache.statistics().used_bytes == memory.used <= 30
        await cache.get([ref(2), ref(3), ref(4)], store.load)
        assert len(store.calls) == 4
        await cache.get([ref(1)], store.load)
        assert len(store.calls) == 5
        assert cache.statistics().evicted == 2
    assert memory.used == 0


async def test_a_cold_scan_does_not_wipe_blocks_that_were_used_again() -> None:
    store = Store()
    async with opened(limit=100) as cache:
        hot = [ref(number) for number in range(4)]
        for _ in range(2):
            for block in hot:
                await cache.get([block], store.load)
        for number in range(100, 200):
            for _ in range(2):  # a scan takes each block in two pieces
                await cache.get([ref(number)], store.load)
        loads = len(store.calls)
        await cache.get(hot, store.load)
        assert len(store.calls) == loads


async def test_protected_blocks_leave_room_for_others() -> None:
    store = Store()
    async with opened(limit=100) as cache:
        for _ in range(3):
            await cache.get([ref(number) for number in range(10)], store.load)
        await cache.get([ref(50)], store.load)
        await cache.get([ref(51)], store.load)
        loads = len(store.calls)
        await cache.get([ref(50), ref(51)], store.load)
        assert len(store.calls) == loads


async def test_evict_spares_what_is_being_loaded() -> None:
    store = Store()
    slow = Store(is_open=False)
    async with opened(limit=100) as cache, anyio.create_task_group() as group:
        await cache.get([ref(1), ref(2)], store.load)
        group.start_soon(cache.get, [ref(3)], slow.load)
        await settle()
        assert cache.evict(1) == 10
        assert cache.evict(1000) == 10
        assert cache.evict(1000) == 0
        assert cache.statistics().used_bytes == 10
        slow.gate.set()


async def test_a_read_that_finds_no_room_waits_for_it_in_order() -> None:
    slow = Store(is_open=False)
    store = Store()
    order: list[int] = []
    async with opened(limit=20) as cache, anyio.create_task_group() as group:
        group.start_soon(cache.get, [ref(1), ref(2)], slow.load)
        await settle()

        async def read(number: int, size: int) -> None:
            await cache.get([ref(number, size)], store.load)
            order.append(number)

        group.start_soon(read, 3, 20)
        await settle()
        group.start_soon(read, 4, 1)
        await settle()
        assert store.calls == []
        assert cache.statistics().used_bytes == 20
        slow.gate.set()
        await settle()
        await settle()
        assert order == [3, 4]


async def test_a_cancelled_waiter_for_room_lets_the_next_one_in() -> None:
    slow = Store(is_open=False)
    store = Store()
    async with opened(limit=20) as cache, anyio.create_task_group() as group:
        group.start_soon(cache.get, [ref(1)], slow.load)
        await settle()
        scope = anyio.CancelScope()

        async def large() -> None:
            with scope:
                await cache.get([ref(2, 20)], store.load)

        group.start_soon(large)
        await settle()
        group.start_soon(cache.get, [ref(3)], store.load)
        await settle()
        scope.cancel()
        await settle()
        assert store.calls == [[ref(3)]]
        slow.gate.set()


async def test_a_read_may_evict_what_it_also_hits() -> None:
    store = Store()
    async with opened(limit=30) as cache:
        await cache.get([ref(1), ref(2)], store.load)
        wanted = [ref(1), ref(2), ref(3), ref(4)]
        assert list(await cache.get(wanted, store.load)) == [body(block) for block in wanted]
        assert cache.statistics().used_bytes <= 30


async def test_blocks_larger_than_the_limit_pass_through() -> None:
    store = Store()
    memory = Memory(1000)
    async with opened(limit=30, memory=memory) as cache:
        await cache.get([ref(1)], store.load)
        large = ref(2, 50)
        for _ in range(2):
            assert list(await cache.get([large], store.load)) == [body(large)]
        assert store.calls == [[ref(1)], [large], [large]]
        assert cache.statistics().used_bytes == memory.used == 10
        assert list(await cache.get([large], store.load, prefetch=True)) == []


async def test_blocks_larger_than_the_limit_pass_through_one_load_at_a_time() -> None:
    slow = Store(is_open=False)
    async with opened(limit=30) as cache, anyio.create_task_group() as group:
        for number in (1, 2):
            group.start_soon(cache.get, [ref(number, 50)], slow.load)
            await settle()
        assert slow.calls == [[ref(1, 50)]]
        slow.gate.set()
        await settle()
        assert slow.calls == [[ref(1, 50)], [ref(2, 50)]]


async def test_prefetched_blocks_are_hits_and_joined_like_others() -> None:
    store = Store(is_open=False)
    async with opened() as cache, anyio.create_task_group() as group:

        async def ahead() -> None:
            await cache.get([ref(1), ref(2)], store.load, prefetch=True)

        group.start_soon(ahead)
        await settle()
        group.start_soon(cache.get, [ref(1)], store.load)
        await settle()
        store.gate.set()
        await settle()
        await cache.get([ref(2)], store.load)
        state = cache.statistics()
        assert (state.hits, state.misses, state.joined) == (1, 0, 1)
        cache.evict(1000)
        assert cache.statistics().wasted == 0
        assert len(store.calls) == 1


async def test_prefetch_gives_up_when_there_is_no_room() -> None:
    store = Store()
    slow = Store(is_open=False)
    memory = Memory(30)
    async with opened(limit=100, memory=memory) as cache, anyio.create_task_group() as group:
        group.start_soon(cache.get, [ref(1), ref(2), ref(3)], slow.load)
        await settle()
        assert list(await cache.get([ref(4)], store.load, prefetch=True)) == []
        memory.limit = 1000
        assert list(await cache.get([ref(5, 80)], store.load, prefetch=True)) == []
        assert store.calls == []
        assert memory.used == 30
        slow.gate.set()


async def test_prefetch_does_not_push_out_protected_blocks() -> None:
    store = Store()
    async with opened(limit=40) as cache:
        for _ in range(3):
            await cache.get([ref(1), ref(2)], store.load)
        await cache.get([ref(3), ref(4)], store.load)
        assert list(await cache.get([ref(5, 30)], store.load, prefetch=True)) == []
        assert len(await cache.get([ref(6, 20)], store.load, prefetch=True)) == 1
        loads = len(store.calls)
        await cache.get([ref(1), ref(2)], store.load)
        assert len(store.calls) == loads


async def test_blocks_evicted_unread_count_as_waste_and_cool_readahead_down() -> None:
    store = Store()
    mib = 1024 * 1024
    async with opened(limit=64 * mib, readahead=8 * mib) as cache:
        grown = [cache.readahead_bytes(1, offset, offset + 1) for offset in range(4)][-1]
        assert grown == 2 * mib
        await cache.get([ref(1)], store.load, prefetch=True)
        await cache.get([ref(2)], store.load, prefetch=True)
        await cache.get([ref(2)], store.load)
        cache.evict(1000)
        assert cache.statistics().wasted == 1
        assert cache.readahead_bytes(1, 4, 5) == mib // 2


async def test_a_read_waits_for_memory_of_the_allocator() -> None:
    store = Store()
    memory = Memory(15)  # enough for the first block only
    got: list[Sequence[Buffer]] = []
    async with opened(memory=memory) as cache:

        async def read() -> None:
            got.append(await cache.get([ref(1), ref(2)], store.load))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await settle()
            assert store.calls == []
            assert memory.used == 0
            memory.limit = 20
            memory.room.set()
        assert list(got[0]) == [body(ref(1)), body(ref(2))]
        assert memory.used == 20
        assert cache.evict(1000) == 20
        assert memory.used == 0


async def test_a_forgotten_object_is_gone_also_if_it_was_being_loaded() -> None:
    store = Store()
    slow = Store(is_open=False)
    memory = Memory(1000)
    async with opened(memory=memory) as cache, anyio.create_task_group() as group:
        await cache.get([ref(1), ref(1, object_id=2)], store.load)
        got: list[Sequence[Buffer]] = []

        async def read() -> None:
            got.append(await cache.get([ref(2)], slow.load))

        group.start_soon(read)
        await settle()
        cache.forget_object(1)
        cache.forget_object(77)
        slow.gate.set()
        await settle()
        assert list(got[0]) == [body(ref(2))]
        assert cache.statistics().used_bytes == memory.used == 10
        await cache.get([ref(1, object_id=2)], store.load)
        assert len(store.calls) == 1
        await cache.get([ref(2)], store.load)
        assert len(store.calls) == 2


async def test_a_small_slice_of_a_large_buffer_does_not_keep_it() -> None:
    large = bytearray(1000)

    async def load(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
        await checkpoint()
        return [memoryview(large)[block.position // 1000 :][: block.size] for block in blocks]

    async with opened() as cache:
        (found,) = await cache.get([ref(0)], load)
        large.clear()  # raises BufferError while a view exists
        assert bytes(found) == bytes(10)


async def test_leaving_the_context_answers_readers_and_releases_all_memory() -> None:
    slow = Store(is_open=False)
    store = Store()
    memory = Memory(25)
    errors: list[ClosedError] = []
    async with anyio.create_task_group() as group:
        async with opened(limit=30, memory=memory) as cache:

            async def read(number: int, size: int = 10) -> None:
                try:
                    await cache.get([ref(number, size)], slow.load)
                except ClosedError as error:
                    errors.append(error)

            await cache.get([ref(1)], store.load)
            group.start_soon(read, 2)  # loads
            await settle()
            group.start_soon(read, 3)  # waits for the allocator
            await settle()
            group.start_soon(read, 4, 20)  # waits for room
            await settle()
        await settle()
        assert len(errors) == 3
    assert memory.used == 0
    assert slow.cancelled == 1
    with pytest.raises(ClosedError):
        await cache.get([ref(1)], store.load)


async def test_an_error_of_the_body_leaves_the_context_unwrapped() -> None:
    with pytest.raises(UnavailableError):
        async with opened():
            raise UnavailableError("away")


async def test_the_spec_opens_what_it_says() -> None:
    spec = penstock_register_block_cache()
    async with spec.open(spec.settings(), SERVICES) as cache:
        assert cache.capabilities == spec.capabilities
        assert cache.statistics().limit_bytes == 64 * 1024**2


@pytest.mark.parametrize("seed", range(8))
async def test_random_readers_always_get_their_bytes_within_the_limit(seed: int) -> None:
    """Many readers with cancellations, failures, prefetch and eviction, in random order."""
    rng = random.Random(seed)
    memory = Memory(10_000)
    async with opened(limit=60, memory=memory) as cache:

        async def load(blocks: Sequence[BlockRef]) -> Sequence[Buffer]:
            for _ in range(rng.randrange(4)):
                await checkpoint()
            if rng.random() < 0.1:
                raise UnavailableError("away")
            return [body(block) for block in blocks]

        async def reader() -> None:
            for _ in range(30):
                wanted = [
                    ref(rng.randrange(12), object_id=rng.randrange(2)) for _ in range(rng.randint(1, 8))
                ]
                prefetch = rng.random() < 0.3
                with anyio.CancelScope() as scope:
                    if rng.random() < 0.2:
                        group.start_soon(cancel_later, scope)
                    try:
                        found = await cache.get(wanted, load, prefetch=prefetch)
                    except UnavailableError:
                        continue
                    assert list(found) == [body(block) for block in wanted] or (prefetch and not found)
                if rng.random() < 0.1:
                    cache.evict(rng.randrange(40))
                if rng.random() < 0.05:
                    cache.forget_object(rng.randrange(2))
                assert cache.statistics().used_bytes <= 60

        async def cancel_later(scope: anyio.CancelScope) -> None:
            for _ in range(rng.randrange(3)):
                await checkpoint()
            scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(reader)
        await settle()
        state = cache.statistics()
        assert state.loading == 0
        assert state.used_bytes == memory.used == 10 * state.blocks
        cache.evict(1000)
        assert cache.statistics().used_bytes == memory.used == 0
