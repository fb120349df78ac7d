"""The FIFO log cache: examples for each clause, and random histories against a simple model."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from penstock_cache_fifo import penstock_register_log_cache
from penstock_cache_fifo._cache import FifoLogCache, FifoLogCacheSettings
from tests.depth import examples

from penstock.errors import ClosedError, InvariantError
from penstock.spi import Services
from penstock.spi.allocator import AllocatorStatistics, Charge
from penstock.spi.log_cache import LogCacheBlock, LogCacheStatistics, StreamEntry

pytestmark = pytest.mark.anyio


class CountingCharge:
    """Counts how often it was released, and can look around at that moment."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.releases = 0

    def release(self) -> None:
        self.releases += 1


def entry(stream: int, base: int, end: int, size: int = 10, charge: Charge | None = None) -> StreamEntry:
    return StreamEntry(stream, base, end, 0, memoryview(bytes(size)), charge, wal_position=base * 100 + end)


def ranges(found: object) -> list[tuple[int, int]]:
    assert isinstance(found, list | tuple)
    return [(e.base_offset, e.next_offset) for e in found]


def frozen(cache: FifoLogCache) -> LogCacheBlock:
    block = cache.freeze()
    assert block is not None
    return block


def make(uploaded_bytes_max: int = 0) -> FifoLogCache:
    return FifoLogCache(FifoLogCacheSettings(uploaded_bytes_max=uploaded_bytes_max))


def test_a_read_begins_with_the_entry_that_holds_the_offset() -> None:
    cache = make()
    for base in (0, 10, 20):
        cache.put(entry(7, base, base + 10))
    assert ranges(cache.get(7, 15, 100, 1000)) == [(10, 20), (20, 30)]


def test_a_read_respects_the_end_and_the_bytes_but_gives_at_least_one_entry() -> None:
    cache = make()
    for base in range(0, 50, 10):
        cache.put(entry(7, base, base + 10, size=100))
    assert ranges(cache.get(7, 0, 20, 1000)) == [(0, 10), (10, 20)]
    assert ranges(cache.get(7, 0, 21, 1000)) == [(0, 10), (10, 20), (20, 30)]
    assert ranges(cache.get(7, 0, 100, 299)) == [(0, 10), (10, 20)]
    assert ranges(cache.get(7, 0, 100, 300)) == [(0, 10), (10, 20), (20, 30)]
    assert ranges(cache.get(7, 0, 100, 1)) == [(0, 10)]
    assert ranges(cache.get(7, 20, 20, 1000)) == []


def test_a_read_crosses_blocks() -> None:
    cache = make()
    for base in (0, 10, 20):
        cache.put(entry(7, base, base + 10))
        frozen(cache)
    assert ranges(cache.get(7, 5, 100, 1000)) == [(0, 10), (10, 20), (20, 30)]


def test_a_read_below_the_cache_gets_the_suffix_if_it_reaches_it() -> None:
    cache = make()
    cache.put(entry(7, 100, 110))
    cache.put(entry(7, 110, 120))
    assert ranges(cache.get(7, 50, 200, 1000)) == [(100, 110), (110, 120)]
    assert ranges(cache.get(7, 50, 101, 1000)) == [(100, 110)]
    assert ranges(cache.get(7, 50, 100, 1000)) == []
    assert ranges(cache.get(7, 120, 200, 1000)) == []
    assert ranges(cache.get(8, 0, 200, 1000)) == []


def test_an_entry_that_does_not_continue_its_stream_is_refused() -> None:
    cache = make()
    cache.put(entry(7, 100, 110))
    for base in (99, 111, 100):
        with pytest.raises(InvariantError):
            cache.put(entry(7, base, base + 10))
    cache.put(entry(8, 5, 6))
    assert ranges(cache.get(7, 100, 200, 1000)) == [(100, 110)]


def test_out_of_order_upload_leaves_a_hole_that_no_read_crosses() -> None:
    cache = make()
    blocks = []
    for base in (0, 10, 20):
        cache.put(entry(7, base, base + 10))
        blocks.append(frozen(cache))
    cache.mark_uploaded(blocks[1])
    assert cache.evict(1) == 10
    assert ranges(cache.get(7, 0, 100, 1000)) == [(0, 10)]
    assert ranges(cache.get(7, 10, 100, 1000)) == [(20, 30)]
    assert ranges(cache.get(7, 12, 100, 1000)) == [(20, 30)]
    cache.put(entry(7, 30, 40))
    cache.mark_uploaded(blocks[0])
    assert cache.evict(1) == 10
    assert ranges(cache.get(7, 0, 100, 1000)) == [(20, 30), (30, 40)]


def test_a_stream_goes_on_after_its_newest_block_was_evicted() -> None:
    cache = make()
    cache.put(entry(7, 0, 10))
    frozen(cache)
    cache.put(entry(7, 10, 20))
    cache.mark_uploaded(frozen(cache))
    cache.evict(1)
    with pytest.raises(InvariantError):
        cache.put(entry(7, 10, 20))
    cache.put(entry(7, 20, 30))
    assert ranges(cache.get(7, 0, 100, 1000)) == [(0, 10)]
    assert ranges(cache.get(7, 10, 100, 1000)) == [(20, 30)]


def test_an_evicted_newest_block_is_not_kept_alive_by_its_stream() -> None:
    class Watched(StreamEntry, weakref=True, gc=True, eq=False):
        pass

    cache = make()
    cache.put(entry(7, 0, 10))
    frozen(cache)
    newest = Watched(7, 10, 20, 0, memoryview(b"x"))
    gone = weakref.ref(newest)
    cache.put(newest)
    del newest
    cache.mark_uploaded(frozen(cache))
    assert gone() is not None
    cache.evict(1)
    assert gone() is None


@pytest.mark.parametrize("streams", [1, 3, 100, 200, 2_000])
def test_a_block_of_many_entries_is_evicted_in_portions_oldest_first(streams: int) -> None:
    """All of it at once would hold the event loop up."""
    random, cache = Random(streams), make()
    ends = dict.fromkeys(range(streams), 0)
    charges: list[CountingCharge] = []
    position = 0
    for _ in range(3000):
        stream = random.randrange(streams)
        position += random.randrange(1, 200)
        charges.append(CountingCharge(10))
        cache.put(
            StreamEntry(
                stream, ends[stream], ends[stream] + 1, 0, memoryview(bytes(10)), charges[-1], position
            )
        )
        ends[stream] += 1
    block = frozen(cache)
    cache.put(StreamEntry(0, ends[0], ends[0] + 1, 0, memoryview(bytes(10)), None, position + 1))
    assert cache.evict(1) == 0
    cache.mark_uploaded(block)
    freed = rounds = 0
    while one := cache.evict(1):
        freed += one
        rounds += 1
        assert one <= 10 * 2_000
        released = [charge.releases for charge in charges]
        assert released == [1] * (freed // 10) + [0] * (3000 - freed // 10), "in WAL order, and each once"
        assert cache.statistics().uploaded_bytes == block.size_bytes == 30_000 - freed
        for stream, end in ends.items():
            found = ranges(cache.get(stream, 0, end, 10**9))
            left = sum(map(len, [block.streams.get(stream, ())]))
            assert found[-left:] == [(n, n + 1) for n in range(end - left, end)] if left else found == []
    assert freed == 30_000
    assert rounds >= 3
    assert ranges(cache.get(0, 0, ends[0] + 1, 10**9)) == [(ends[0], ends[0] + 1)]


def test_a_stream_that_is_deleted_while_its_block_is_evicted_is_dropped_once() -> None:
    cache = make()
    charges = [CountingCharge(10) for _ in range(3_000)]
    for number, charge in enumerate(charges):
        base, stream = divmod(number, 1_000)
        cache.put(StreamEntry(stream, base, base + 1, 0, memoryview(bytes(10)), charge, number))
    block = frozen(cache)
    cache.drop_stream(999)
    assert charges[999].releases == 0, "it is uploaded first"
    cache.put(StreamEntry(999, 0, 1, 0, memoryview(bytes(10)), None, 5_000))
    cache.mark_uploaded(block)
    assert [charge.releases for charge in charges[999::1_000]] == [1, 1, 1]
    freed = cache.evict(1)
    cache.drop_stream(998)
    while one := cache.evict(1):
        freed += one
    assert freed == 10 * (3_000 - 6)
    assert {charge.releases for charge in charges} == {1}
    assert ranges(cache.get(999, 0, 1, 10**9)) == [(0, 1)], "a stream of this id that came again"
    assert cache.statistics().uploaded_bytes == 0


def test_entries_are_not_the_garbage_collectors() -> None:
    """A pass over all that a cache holds would take a quarter of a second."""
    assert not gc.is_tracked(entry(1, 0, 1, charge=CountingCharge(1)))


def test_remembered_positions_outlive_evictions() -> None:
    cache = make()
    for base in range(0, 60, 10):
        cache.put(entry(7, base, base + 10))
        if base == 20:
            block = frozen(cache)
    assert ranges(cache.get(7, 25, 100, 20)) == [(20, 30), (30, 40)]
    cache.mark_uploaded(block)
    cache.evict(1)
    stream = cache._streams[7]
    assert stream.entries[stream.hints[40] - stream.removed].base_offset == 40
    assert ranges(cache.get(7, 40, 100, 1000)) == [(40, 50), (50, 60)]


def test_a_block_holds_all_streams_and_the_end_in_the_wal() -> None:
    cache = make()
    assert cache.freeze() is None
    cache.put(entry(7, 0, 10, size=3))
    cache.put(entry(8, 5, 6, size=4))
    cache.put(entry(7, 10, 20, size=5))
    assert cache.active_bytes == 12
    block = frozen(cache)
    assert {stream: ranges(entries) for stream, entries in block.streams.items()} == {
        7: [(0, 10), (10, 20)],
        8: [(5, 6)],
    }
    assert block.size_bytes == 12
    assert block.wal_end == 10 * 100 + 20
    assert cache.active_bytes == 0
    assert cache.freeze() is None


def test_only_uploaded_blocks_are_evicted_and_the_oldest_first() -> None:
    cache = make()
    blocks = []
    for base in (0, 10, 20):
        cache.put(entry(7, base, base + 10))
        blocks.append(frozen(cache))
    cache.put(entry(7, 30, 40))
    assert cache.evict(1000) == 0
    cache.mark_uploaded(blocks[0])
    cache.mark_uploaded(blocks[1])
    assert ranges(cache.get(7, 0, 100, 1000)) == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert cache.evict(1) == 10
    assert ranges(cache.get(7, 0, 100, 1000)) == [(10, 20), (20, 30), (30, 40)]
    assert cache.evict(1000) == 10
    assert cache.evict(1000) == 0
    assert ranges(cache.get(7, 0, 100, 1000)) == [(20, 30), (30, 40)]


def test_a_block_is_marked_once_and_only_by_its_cache() -> None:
    cache, other = make(), make()
    for each in (cache, other):
        each.put(entry(7, 0, 10))
    block, foreign = frozen(cache), frozen(other)
    cache.mark_uploaded(block)
    with pytest.raises(InvariantError):
        cache.mark_uploaded(block)
    with pytest.raises(InvariantError):
        cache.mark_uploaded(foreign)


def test_uploaded_data_has_its_own_bound() -> None:
    cache = make(uploaded_bytes_max=25)
    for base in range(0, 50, 10):
        cache.put(entry(7, base, base + 10))
        cache.mark_uploaded(frozen(cache))
    assert cache.statistics().uploaded_bytes == 20
    assert ranges(cache.get(7, 0, 100, 1000)) == [(30, 40), (40, 50)]


def test_blocks_that_become_evictable_while_somebody_waits_are_evicted_as_needed() -> None:
    waiting = [False, True, False]
    cache = FifoLogCache(FifoLogCacheSettings(), lambda: waiting.pop(0))
    blocks = []
    for base in (0, 10, 20):
        cache.put(entry(7, base, base + 10))
        blocks.append(frozen(cache))
    cache.mark_uploaded(blocks[0])
    assert cache.statistics().entries == 3
    cache.mark_uploaded(blocks[1])
    assert cache.statistics().entries == 2


def test_pressure_in_the_middle_of_an_eviction_evicts_no_more_than_wanted() -> None:
    class Pressing(CountingCharge):
        def release(self) -> None:
            super().release()
            nested.append(cache.evict(1))

    nested: list[int] = []
    cache = make()
    for base in (0, 10):
        cache.put(entry(7, base, base + 10, charge=Pressing(10)))
        cache.mark_uploaded(frozen(cache))
    assert cache.evict(1) == 10
    assert nested == [0]
    assert cache.statistics().entries == 1


def test_the_entries_are_gone_before_their_charge_is_released() -> None:
    seen: list[int] = []

    class Witness(CountingCharge):
        def release(self) -> None:
            seen.append(len(exported))

    exported: list[int] = []

    class Watched(StreamEntry, eq=False):
        def __del__(self) -> None:
            exported.append(1)

    cache = make()
    cache.put(Watched(7, 0, 10, 0, memoryview(b"x"), Witness(1)))
    cache.put(Watched(8, 0, 10, 0, memoryview(b"x"), Witness(1)))
    block = frozen(cache)
    cache.mark_uploaded(block)
    cache.evict(1)
    assert seen == [2, 2]


def test_dropping_a_stream_releases_what_no_upload_reads() -> None:
    cache = make()
    charges = [CountingCharge(10) for _ in range(3)]
    cache.put(entry(7, 0, 10, charge=charges[0]))
    uploaded = frozen(cache)
    cache.mark_uploaded(uploaded)
    cache.put(entry(7, 10, 20, charge=charges[1]))
    cache.put(entry(8, 0, 10))
    uploading = frozen(cache)
    cache.put(entry(7, 20, 30, charge=charges[2]))
    cache.drop_stream(7)
    assert [charge.releases for charge in charges] == [1, 0, 1]
    assert ranges(cache.get(7, 0, 100, 1000)) == []
    assert ranges(uploading.streams[7]) == [(10, 20)]
    assert cache.active_bytes == 0
    cache.mark_uploaded(uploading)
    assert [charge.releases for charge in charges] == [1, 1, 1]
    assert cache.statistics() == LogCacheStatistics(uploaded_bytes=10, entries=1, misses=1)


def test_a_dropped_stream_may_begin_anew() -> None:
    cache = make()
    cache.put(entry(7, 0, 10))
    old = frozen(cache)
    cache.drop_stream(7)
    cache.put(entry(7, 3, 4))
    cache.mark_uploaded(old)
    cache.evict(100)
    assert ranges(cache.get(7, 3, 100, 1000)) == [(3, 4)]


async def test_leaving_the_context_releases_every_charge_once() -> None:
    spec = penstock_register_log_cache()
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(), clock=lambda: 0.0)
    charges = [CountingCharge(10) for _ in range(3)]
    async with spec.open(spec.settings(), services) as cache:
        assert cache.capabilities == spec.capabilities
        for base, charge in zip((0, 10, 20), charges, strict=True):
            cache.put(entry(7, base, base + 10, charge=charge))
            if base < 20:
                block = cache.freeze()
        assert block is not None
        cache.mark_uploaded(block)
    assert [charge.releases for charge in charges] == [1, 1, 1]
    with pytest.raises(ClosedError):
        cache.put(entry(7, 30, 40))
    async with spec.open(spec.settings(), services):
        pass


async def test_the_allocator_is_asked_whether_somebody_waits() -> None:
    class Waiting:
        def statistics(self) -> AllocatorStatistics:
            return AllocatorStatistics(
                limit_bytes=1, used_bytes=1, used_by_purpose={}, waiting=1, peak_bytes=1
            )

    spec = penstock_register_log_cache()
    services = Services(
        node_id=1,
        epoch=1,
        cluster_id="c",
        data_dir=Path(),
        clock=lambda: 0.0,
        allocator=Waiting(),  # type: ignore[arg-type]
    )
    async with spec.open(spec.settings(), services) as cache:
        cache.put(entry(7, 0, 10))
        block = cache.freeze()
        assert block is not None
        cache.mark_uploaded(block)
        assert cache.statistics().entries == 0


class LogCacheMachine(RuleBasedStateMachine):
    """The model: per block a list of (stream, base, end, size); reads search all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make()
        self.ends: dict[int, int] = {}
        self.blocks: list[list[StreamEntry]] = [[]]
        self.handles: list[LogCacheBlock | None] = [None]
        self.uploaded: list[bool] = [False]
        self.dropped: set[int] = set()
        self.charges: list[CountingCharge] = []

    def cached(self, stream: int) -> list[StreamEntry]:
        return [
            e for block in self.blocks for e in block if e.stream_id == stream and id(e) not in self.dropped
        ]

    @rule(stream=st.integers(0, 2), count=st.integers(1, 5), size=st.integers(0, 20), runs=st.integers(1, 4))
    def put(self, stream: int, count: int, size: int, runs: int) -> None:
        for _ in range(runs):
            base = self.ends.get(stream, 100)
            if not self.cached(stream):
                base += 7
            charge = CountingCharge(size)
            self.charges.append(charge)
            new = entry(stream, base, base + count, size, charge)
            self.cache.put(new)
            self.ends[stream] = base + count
            self.blocks[-1].append(new)

    @rule()
    def freeze(self) -> None:
        block = self.cache.freeze()
        live = [e for e in self.blocks[-1] if id(e) not in self.dropped]
        assert (block is None) == (not live)
        if block is not None:
            assert sorted(id(e) for entries in block.streams.values() for e in entries) == sorted(
                map(id, live)
            )
            assert block.size_bytes == sum(len(e.data) for e in live)
            self.blocks[-1] = live
            self.handles[-1] = block
            self.blocks.append([])
            self.handles.append(None)
            self.uploaded.append(False)

    @precondition(lambda self: not all(self.uploaded[:-1]))
    @rule(data=st.data())
    def mark_uploaded(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([i for i, done in enumerate(self.uploaded[:-1]) if not done]))
        handle = self.handles[index]
        assert handle is not None
        self.cache.mark_uploaded(handle)
        self.uploaded[index] = True

    @rule(wanted=st.integers(0, 60))
    def evict(self, wanted: int) -> None:
        freed = 0
        index = 0
        while freed < wanted and index < len(self.blocks):
            live = [e for e in self.blocks[index] if id(e) not in self.dropped]
            if not self.uploaded[index]:
                index += 1
                continue
            freed += sum(len(e.data) for e in live)
            del self.blocks[index], self.handles[index], self.uploaded[index]
        assert self.cache.evict(wanted) == freed

    @rule(stream=st.integers(0, 2))
    def drop_stream(self, stream: int) -> None:
        self.dropped |= {id(e) for e in self.cached(stream)}
        self.graveyard = [*getattr(self, "graveyard", []), *(e for block in self.blocks for e in block)]
        self.cache.drop_stream(stream)

    @rule(
        stream=st.integers(0, 2),
        start=st.integers(95, 180),
        length=st.integers(0, 60),
        bytes_max=st.integers(0, 100),
    )
    def get(self, stream: int, start: int, length: int, bytes_max: int) -> None:
        self.compare(stream, start, start + length, bytes_max)

    @rule(stream=st.integers(0, 2), bytes_max=st.integers(0, 60))
    def read_on(self, stream: int, bytes_max: int) -> None:
        """A reader that goes from the oldest entry to the end, which exercises remembered positions."""
        offset = min((e.base_offset for e in self.cached(stream)), default=0)
        while found := self.compare(stream, offset, 10**9, bytes_max):
            offset = found[-1][1]

    def compare(self, stream: int, start: int, end: int, bytes_max: int) -> list[tuple[int, int]]:
        entries = self.cached(stream)
        index = next((i for i, e in enumerate(entries) if e.base_offset <= start < e.next_offset), None)
        if index is None and entries:
            tail = len(entries) - 1
            while tail and entries[tail - 1].next_offset == entries[tail].base_offset:
                tail -= 1
            if start < entries[tail].base_offset < end:
                index = tail
        expected: list[tuple[int, int]] = []
        if index is not None and start < end:
            size = 0
            for e in entries[index:]:
                size += len(e.data)
                if expected and (
                    e.base_offset != expected[-1][1] or e.base_offset >= end or size > bytes_max
                ):
                    break
                expected.append((e.base_offset, e.next_offset))
        assert ranges(self.cache.get(stream, start, end, bytes_max)) == expected
        return expected

    @invariant()
    def account_is_right(self) -> None:
        state = self.cache.statistics()
        kept = [
            [e for e in block if id(e) not in self.dropped or (handle is not None and not done)]
            for block, handle, done in zip(self.blocks, self.handles, self.uploaded, strict=True)
        ]
        sizes = [sum(len(e.data) for e in block) for block in kept]
        assert state.active_bytes == self.cache.active_bytes == sizes[-1]
        done = self.uploaded
        assert state.uploaded_bytes == sum(size for size, flag in zip(sizes, done, strict=True) if flag)
        assert state.frozen_bytes == sum(
            size for size, flag in zip(sizes[:-1], done[:-1], strict=True) if not flag
        )
        assert state.entries == sum(map(len, kept))
        assert sum(charge.releases == 0 for charge in self.charges) == state.entries
        assert all(charge.releases <= 1 for charge in self.charges)

    def teardown(self) -> None:
        self.cache.close()
        assert all(charge.releases == 1 for charge in self.charges)
        assert self.cache.statistics().entries == 0


TestLogCacheMachine = LogCacheMachine.TestCase
TestLogCacheMachine.settings = hypothesis_settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None
)


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    blocks=st.sets(st.integers(1, 29)),
    evicted=st.sets(st.integers(0, 29)),
    start=st.integers(0, 60),
    end=st.integers(0, 60),
    bytes_max=st.integers(0, 3000),
)
def test_a_run_has_what_going_from_entry_to_entry_would_find(
    sizes: list[int], blocks: set[int], evicted: set[int], start: int, end: int, bytes_max: int
) -> None:
    cache = FifoLogCache(FifoLogCacheSettings())
    entries = []
    for number, size in enumerate(sizes):
        if number in blocks and (block := cache.freeze()) is not None and number in evicted:
            cache.mark_uploaded(block)
        entries.append(
            StreamEntry(1, 2 * number, 2 * number + 2, 0, memoryview(bytes(size)), None, number + 1)
        )
        cache.put(entries[-1])
    cache.evict(10**9)
    held = list(cache._streams[1].entries)
    first = next((at for at, e in enumerate(held) if e.base_offset <= start < e.next_offset), None)
    if first is not None and start < end:
        run = [held[first]]
        left = bytes_max - len(run[0].data)
        for later in held[first + 1 :]:
            left -= len(later.data)
            if left < 0 or later.base_offset != run[-1].next_offset or later.base_offset >= end:
                break
            run.append(later)
        assert list(cache.get(1, start, end, bytes_max)) == run
