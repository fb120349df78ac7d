"""Cold reads: few requests, shared loads, verified bytes."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import HANG_S
from tests.unit.stream.harness import SETTINGS, Engine, World

from penstock.errors import CorruptError, UnavailableError
from penstock.metadata.commands.topics import CreateTopic
from penstock.metadata.topics import TopicState
from penstock.spi.block_cache import BlockRef
from penstock.spi.log_cache import StreamEntry
from penstock.spi.plugin import Buffer
from penstock.stream.object_format import ObjectWriter, object_key
from penstock.stream.open_stream import Stream
from penstock.stream.reader import (
    INDEX_TAIL_BYTES,
    Part,
    ReaderSettings,
    compact,
    copy_buffers,
    merge_near,
    split_run,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def cold(e: Engine, count: int = 20, size: int = 100) -> list[tuple[int, bytes]]:
    """Entries in one object that nothing is cached of; what reading them must give."""
    payloads = [(i, b"%d " % i * size) for i in range(count)]
    for _, payload in payloads:
        e.append(payload)
    await e.engine.flush()
    e.log_cache.evict(2**30)
    return payloads


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50), st.booleans()), max_size=30),
    st.integers(1, 200),
)
async def test_merged_runs_hold_the_same_blocks_and_only_neighbours(
    blocks: list[tuple[int, int, bool]], bytes_max: int
) -> None:
    refs = []
    position = 0
    for object_id, size, gap in blocks:
        position += 7 if gap else 0
        refs.append(BlockRef(object_id, position, size))
        position += size
    runs = merge_near(refs, bytes_max, 0)
    assert [ref for run in runs for ref in run] == refs
    for run in runs:
        assert len(run) == 1 or run[-1].position + run[-1].size - run[0].position <= bytes_max
        for one, two in pairwise(run):
            assert (one.object_id, one.position + one.size) == (two.object_id, two.position)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(0, 20)), max_size=30),
    st.integers(1, 200),
    st.integers(0, 20),
)
async def test_runs_with_gaps_are_bounded_in_size_and_gap_and_no_two_of_them_could_be_one(
    blocks: list[tuple[int, int, int]], bytes_max: int, gap_max: int
) -> None:
    refs = []
    position = 0
    for object_id, size, gap in blocks:
        position += gap
        refs.append(BlockRef(object_id, position, size))
        position += size
    runs = merge_near(refs, bytes_max, gap_max)
    assert [ref for run in runs for ref in run] == refs
    for run in runs:
        assert len(run) == 1 or run[-1].position + run[-1].size - run[0].position <= bytes_max
        for one, two in pairwise(run):
            assert one.object_id == two.object_id
            assert two.position - (one.position + one.size) <= gap_max
    for one_run, two_run in pairwise(runs):
        last, first = one_run[-1], two_run[0]
        assert (
            last.object_id != first.object_id
            or first.position - (last.position + last.size) > gap_max
            or first.position + first.size - one_run[0].position > bytes_max
        )


def parts_of(blocks: list[tuple[list[int], int]]) -> tuple[list[StreamEntry], list[Part]]:
    """Entries that are views of blocks: (the sizes of a block's entries that were read, bytes of it that weren't)."""
    entries: list[StreamEntry] = []
    parts = []
    for sizes, unread in blocks:
        block = memoryview(bytes(range(256)) * ((sum(sizes) + unread) // 256 + 1))[: sum(sizes) + unread]
        first, position = len(entries), 0
        for size in sizes:
            number = len(entries)
            entries.append(StreamEntry(1, number, number + 1, 7, block[position : position + size]))
            position += size
        parts.append(Part(first, len(entries), position, len(block)))
    return entries, parts


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(0, 500)), max_size=6)
)
async def test_a_read_keeps_a_third_more_than_its_own_bytes_at_most(
    blocks: list[tuple[list[int], int]],
) -> None:
    entries, parts = parts_of(blocks)
    wanted = [(x.stream_id, x.base_offset, x.next_offset, x.time_ms, bytes(x.data)) for x in entries]
    before = list(entries)
    found = compact(entries, parts)
    assert [(x.stream_id, x.base_offset, x.next_offset, x.time_ms, bytes(x.data)) for x in found] == wanted
    held = sum(part.block_bytes if found[part.first] is before[part.first] else part.bytes for part in parts)
    assert held * 3 <= sum(part.bytes for part in parts) * 4


async def test_long_parts_are_copied_piece_by_piece_as_they_are() -> None:
    entries, parts = parts_of([([70_000, 1, 200_000], 300_000)])
    found = compact(list(entries), parts)
    assert [bytes(one.data) for one in found] == [bytes(one.data) for one in entries]
    assert all(one is not other for one, other in zip(found, entries, strict=True))


async def test_a_read_copies_no_more_than_the_smallest_parts_of_its_blocks() -> None:
    entries, parts = parts_of([([100], 100), ([200], 0), ([90], 110)])
    before = list(entries)
    found = compact(entries, parts)
    assert [one is other for one, other in zip(found, before, strict=True)] == [True, True, False]


async def test_a_read_that_keeps_little_more_than_it_takes_copies_nothing() -> None:
    entries, parts = parts_of([([150, 50], 0), ([100], 90)])
    before = list(entries)
    found = compact(entries, parts)
    assert all(one is other for one, other in zip(found, before, strict=True))


def run_of(*sizes: int) -> tuple[list[BlockRef], bytes]:
    """Data blocks that hold an entry of each size, one behind the other in an object, and their bytes."""
    builder = ObjectWriter(7, 1)
    refs: list[BlockRef] = []
    for number, size in enumerate(sizes):
        start = builder.waiting_bytes
        builder.add(1, [StreamEntry(1, number, number + 1, 7, memoryview(bytes([number]) * size))])
        refs.append(BlockRef(7, start, builder.waiting_bytes - start))
    return refs, b"".join(builder.take())


@pytest.mark.parametrize("spare", [0, 20_000, 100_000])
async def test_a_block_read_alone_is_copied_only_if_it_would_keep_an_eighth_more_alive(spare: int) -> None:
    refs, data = run_of(300_000)
    memory = bytearray(data + bytes(spare))
    (block,) = split_run(refs, memoryview(memory)[: len(data)], copy_buffers()).values()
    assert isinstance(block, memoryview)
    assert block == data
    assert (block.obj is memory) == (spare < 37_000)
    assert memoryview(block.obj).nbytes - len(block) <= len(block) // 8, "a cache would copy it, on the loop"


def memory_of(block: Buffer) -> int:
    assert isinstance(block, memoryview)
    assert isinstance(block.obj, ctypes.Array)
    return ctypes.addressof(block.obj)


async def test_copies_of_blocks_use_the_memory_of_those_that_nobody_sees_any_more() -> None:
    refs, data = run_of(300_000, 90_000)
    buffers = copy_buffers()
    found = split_run(refs, data, buffers)
    assert b"".join(found.values()) == data
    places = {memory_of(block) for block in found.values()}
    del found
    again = split_run(refs, data, buffers)
    assert b"".join(again.values()) == data
    assert {memory_of(block) for block in again.values()} == places


async def test_a_cold_read_takes_one_request_for_the_index_and_one_for_the_blocks(world: World) -> None:
    async with world.open() as e:
        payloads = await cold(e)
        entries = await e.engine.reads.read(e.stream, 0, 10**6)
        assert [(x.base_offset, bytes(x.data)) for x in entries] == payloads
        assert e.store.gets == 2


async def test_readers_of_one_place_share_its_loads(world: World) -> None:
    async with world.open() as e:
        payloads = await cold(e)
        found: list[int] = []

        async def read() -> None:
            found.append(len(await e.engine.reads.read(e.stream, 0, 10**6)))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(read)
        assert found == [len(payloads)] * 10
        assert e.store.gets == 2


async def test_a_reader_that_goes_away_leaves_the_others_their_data(world: World) -> None:
    async with world.open() as e:
        payloads = await cold(e)
        held = anyio.Event()
        e.store.before_get = held.wait
        found: list[int] = []

        async def read(scope: anyio.CancelScope) -> None:
            with scope:
                found.append(len(await e.engine.reads.read(e.stream, 0, 10**6)))

        first, second = anyio.CancelScope(), anyio.CancelScope()
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, first)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(read, second)
                await anyio.wait_all_tasks_blocked()
                first.cancel()
                await anyio.wait_all_tasks_blocked()
                held.set()
        assert found == [len(payloads)]


async def test_a_failed_read_fails_its_readers_and_not_the_next_ones(world: World) -> None:
    async with world.open() as e:
        payloads = await cold(e)

        async def fail() -> None:
            raise UnavailableError("the steered store fails")

        e.store.before_get = fail
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await e.engine.reads.read(e.stream, 0, 1000)
        e.store.before_get = None
        assert await e.read_all() == payloads


@pytest.mark.parametrize("position", [40, -20, -100], ids=["block", "footer", "index"])
async def test_a_damaged_object_is_told_from_data(world: World, position: int) -> None:
    """I11."""
    async with world.open() as e:
        await cold(e)
        (key,) = await e.store.keys()
        data = bytearray(await e.store.get(key))
        data[position] ^= 1
        await e.store.put(key, [data])
        with pytest.raises(CorruptError, match="checksum"):
            await e.engine.reads.read(e.stream, 0, 10**6)


async def test_a_cut_object_is_damage(world: World) -> None:
    """The store refuses a range past its end: that is for whoever keeps the object, not for who asked."""
    async with world.open() as e:
        await cold(e, count=100)
        (key,) = await e.store.keys()
        data = bytes(await e.store.get(key))
        await e.store.put(key, [data[:50]])
        with pytest.raises(CorruptError):
            await e.engine.reads.read(e.stream, 0, 10**6)
        await e.store.put(key, [data])
        assert await e.engine.reads.read(e.stream, 0, 100)
        await e.store.put(key, [data[:50]])
        with pytest.raises(CorruptError, match="shorter"):
            await e.engine.reads.read(e.stream, 90, 10**6)


async def test_an_index_larger_than_the_tail_takes_one_request_more(world: World) -> None:
    upload = dataclasses.replace(SETTINGS.upload, block_bytes=1)
    world.settings = dataclasses.replace(SETTINGS, upload=upload)
    async with world.open() as e:
        payloads = await cold(e, count=INDEX_TAIL_BYTES // 48 + 100, size=1)
        entries = await e.engine.reads.read(e.stream, 0, 1)
        assert bytes(entries[0].data) == payloads[0][1]
        assert e.engine.statistics().reader.index_gets == 1
        assert e.store.gets == 3
        last = payloads[-1]
        entries = await e.engine.reads.read(e.stream, last[0], 1)
        assert (entries[0].base_offset, bytes(entries[0].data)) == last


async def test_few_indexes_are_kept_and_those_dropped_are_read_again(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, reader=ReaderSettings(index_cache_bytes=1))
    async with world.open() as e:
        for i in range(3):
            e.append(b"%d" % i)
            await e.engine.flush()
        e.log_cache.evict(2**30)
        for _ in range(2):
            assert [offset for offset, _ in await e.read_all()] == [0, 1, 2]
        assert len(e.engine._reader._indexes) == 1


async def test_an_object_that_lacks_what_metadata_says_is_damage(world: World) -> None:
    async with world.open() as e:
        await cold(e, count=2)
        await cold(e, count=2)
        keys = sorted(object_key(held.object_id) for held in e.metadata.image.objects.all())
        assert len(keys) == 2
        state = e.metadata.image.streams.require(e.stream.stream_id)
        state.ranges[1] = type(state.ranges[1])(2, 4, state.ranges[0].object_id, 1, 0)
        with pytest.raises(CorruptError, match="doesn't hold"):
            await e.engine.reads.read(e.stream, 2, 1000)


async def test_reads_of_the_newest_range_are_tail_traffic_and_those_before_are_catch_up(world: World) -> None:
    async with world.open() as e:
        await cold(e)
        await cold(e)
        assert world.traffic is not None
        requests = world.traffic.statistics().requests
        assert (requests["upload"], requests["tail"], requests["catch_up"]) == (2, 0, 0)
        await e.engine.reads.read(e.stream, 0, 1)
        requests = world.traffic.statistics().requests
        assert requests["tail"] == 0
        assert requests["catch_up"] >= 2, "an index, and a block"
        await e.engine.reads.read(e.stream, 39, 1)
        assert world.traffic.statistics().requests["tail"] == 2


async def test_readers_near_the_end_do_not_wait_behind_those_that_catch_up(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, reader=ReaderSettings(parallel_max=1, prefetch_max=0))
    async with world.open() as e:
        await cold(e)
        await cold(e)
        held = anyio.Event()

        async def hold_the_second() -> None:
            if e.store.gets == 2:  # the first is for the index
                await held.wait()

        e.store.before_get = hold_the_second
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(e.engine.reads.read, e.stream, 0, 1)
            await anyio.wait_all_tasks_blocked()
            assert e.store.gets == 2
            with anyio.fail_after(HANG_S):
                assert (await e.engine.reads.read(e.stream, 39, 1))[0].base_offset == 39
            held.set()


async def test_a_load_of_one_ranged_read_is_one_task(world: World) -> None:
    """A task group for it was a tenth of what a catch-up reader took of the event loop."""
    world.settings = dataclasses.replace(SETTINGS, reader=ReaderSettings(prefetch_max=0))
    async with world.open() as e:
        await cold(e)
        before, during = asyncio.all_tasks(), set[str]()

        async def look() -> None:
            during.update(task.get_name() for task in asyncio.all_tasks() - before)

        e.store.before_get = look
        assert (await e.engine.reads.read(e.stream, 0, 1))[0].base_offset == 0
        assert e.store.gets == 2, "the index, and the block"
        assert len(during) == 1, "the block cache's, which no reader's cancellation touches"


async def many_streams(e: Engine, count: int, entry_bytes: int) -> list[Stream]:
    """So many streams with two blocks each, side by side in one object that nothing is cached of."""
    topic = await e.metadata.submit(CreateTopic("many", b"m" * 16, count))
    assert isinstance(topic, TopicState)
    e.streams = await e.engine.open_streams(topic.log_streams)
    for number in range(count):
        for _ in range(2):
            e.append(bytes([number]) * entry_bytes, stream=number)
    await e.engine.flush()
    e.log_cache.evict(2**30)
    e.store.gets = 0
    return e.streams


@pytest.mark.parametrize(("every", "gap_max", "gets"), [(1, 0, 1), (2, 2048, 1), (2, 0, 20), (4, 2048, 10)])
async def test_reads_of_many_streams_of_one_object_are_prepared_with_few_requests(
    world: World, every: int, gap_max: int, gets: int
) -> None:
    """Alone, each of the 40 streams would take one: at 2 KiB in each, half a million requests for a GiB."""
    world.settings = dataclasses.replace(
        SETTINGS, reader=ReaderSettings(merge_gap_max=gap_max, prefetch_max=0)
    )
    async with world.open() as e:
        streams = (await many_streams(e, 40, 900))[::every]
        await e.engine.reads.load([(stream, 0, 10_000) for stream in streams], 2**20)
        assert e.store.gets == 1 + gets, "the index, and the blocks"
        for stream in streams:
            entries = await e.engine.reads.read(stream, 0, 10_000)
            assert [entry.base_offset for entry in entries] == [0, 1]
            assert bytes(entries[0].data) == bytes([e.streams.index(stream)]) * 900
        assert e.store.gets == 1 + gets
        assert e.engine.statistics().reader.ranged_gets == gets


async def test_a_merged_read_is_bounded_in_size(world: World) -> None:
    world.settings = dataclasses.replace(
        SETTINGS, reader=ReaderSettings(merge_bytes_max=8192, prefetch_max=0)
    )
    async with world.open() as e:
        streams = await many_streams(e, 40, 900)
        await e.engine.reads.load([(stream, 0, 10_000) for stream in streams], 2**20)
        assert 40 * 2 * 900 // 8192 < e.store.gets - 1 <= 40 * 2 * 1000 // (8192 - 2000)


async def test_no_more_is_prepared_than_is_asked_for(world: World) -> None:
    async with world.open() as e:
        streams = await many_streams(e, 40, 900)
        await e.engine.reads.load([(stream, 0, 10_000) for stream in streams], 10_000)
        assert 10_000 <= e.engine.statistics().reader.ranged_bytes < 13_000


async def test_what_cannot_be_prepared_is_read_by_itself_and_says_what_went_wrong(world: World) -> None:
    async with world.open() as e:
        streams = await many_streams(e, 3, 900)

        async def fail() -> None:
            raise UnavailableError("the store is away")

        e.store.before_get = fail
        await e.engine.reads.load([(stream, 0, 10_000) for stream in streams], 10_000)
        with pytest.raises(UnavailableError, match="the store is away"):
            await e.engine.reads.read(streams[0], 0, 1)
        e.store.before_get = None
        assert await e.engine.reads.read(streams[0], 0, 1)
