"""The stream engine where two things happen at once, or where one of them fails half-way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.stream.harness import SETTINGS, FakeWal, World, leaves

from penstock.errors import ClosedError, CorruptError, FullError
from penstock.metadata.commands.streams import TrimStreams

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_trim_of_dead_data_spares_what_became_durable_before_it_ran(world: World) -> None:
    """I4: the trim covers what was dead when it was decided on, nothing that came since."""
    async with world.open() as e:
        e.append(b"dead" * 10)
        e.engine.forget_streams([e.stream.stream_id])
        world.wal.full = True
        with pytest.raises(FullError):
            e.append(b"z", stream=1)
        world.wal.full = False
        assert e.append(b"live", stream=1) == [None]
        await anyio.wait_all_tasks_blocked()
        (live,) = world.wal.left
        assert world.wal.trimmed == live.position
    world.wal.crash()
    async with world.open() as e:
        assert await e.read_all(1) == [(0, b"live")]


async def test_a_trim_of_dead_data_spares_what_becomes_durable_with_it(world: World) -> None:
    """I4: one group has the end of a deleted stream, whose writer appends again at once, and what must stay."""
    async with world.open() as e:
        world.wal.automatic = False

        def append_again(_: Exception | None) -> None:
            world.wal.full = True
            with pytest.raises(FullError):
                e.append(b"z", stream=1)
            world.wal.full = False

        e.engine.append(e.stream, 1, 0, memoryview(b"dead"), None, append_again)
        outcome = e.append(b"live", stream=1)
        e.engine.forget_streams([e.stream.stream_id])
        world.wal.complete(together=True)
        assert outcome == [None]
        world.wal.automatic = True
        await anyio.wait_all_tasks_blocked()
    world.wal.crash()
    async with world.open() as e:
        assert await e.read_all(1) == [(0, b"live")]


async def test_a_drain_ends_when_the_last_appends_fail_while_the_wal_is_full(world: World) -> None:
    async with world.open() as e:
        world.wal.automatic = False
        world.wal.fail_trims = True
        outcome = e.append(b"x")
        world.wal.full = True
        with pytest.raises(FullError):
            e.append(b"y")
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(e.engine.drain)
                await anyio.wait_all_tasks_blocked()
                world.wal.fail_trims = False
                world.wal.fail()
        assert len(outcome) == 1


async def test_a_drain_says_whether_the_wal_holds_nothing_any_more_and_takes_nothing_then(
    world: World,
) -> None:
    async with world.open() as e:
        e.append(b"x")
        world.wal.fail_trims = True
        async with anyio.create_task_group() as tasks:
            drained: list[bool] = []

            async def drain() -> None:
                drained.append(await e.engine.drain())

            tasks.start_soon(drain)
            await anyio.wait_all_tasks_blocked()
            assert drained == [], "uploaded, and not trimmed"
            world.wal.fail_trims = False
        assert drained == [True]
        assert world.wal.left == []
        with pytest.raises(ClosedError):
            e.append(b"y")


async def test_a_drain_whose_last_trim_fails_says_so(world: World) -> None:
    """What is left is of a deleted stream, so there is no upload whose trim would be tried until it works."""
    async with world.open() as e:
        e.append(b"x")
        e.engine.forget_streams([e.stream.stream_id])
        world.wal.fail_trims = True
        assert not await e.engine.drain()
        world.wal.fail_trims = False
        assert await e.engine.drain()


async def test_a_drain_doesnt_make_others_miss_the_room_they_wait_for(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, in_flight_bytes_max=10)
    async with world.open() as e:
        world.wal.automatic = False
        e.append(b"x" * 20)
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(e.engine.wait_for_room, 1)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(e.engine.drain)
                await anyio.wait_all_tasks_blocked()
                world.wal.complete()
                world.wal.automatic = True


async def test_appends_that_become_durable_after_the_engine_ended_are_answered(world: World) -> None:
    """A WAL flushes when it is closed, which is after the engine and the log cache."""
    async with world.open() as e:
        world.wal.automatic = False
        outcome = e.append(b"x")
        used = e.allocator
    world.wal.complete()
    assert outcome == [None]
    assert used.statistics().used_by_purpose.get("append", 0) == 0


async def test_records_of_a_wal_that_another_process_passed_over_are_not_dropped_silently(
    world: World, tmp_path: Path
) -> None:
    """I1: a broker with another WAL opened the streams without these records; they must not be trimmed away."""
    async with world.open() as e:
        e.append(b"committed")
        await e.engine.flush()
        e.append(b"acknowledged, only in this wal")
    other = World(tmp_path, wal=FakeWal(), url=world.url)
    async with other.open():
        pass
    world.wal.crash()
    with pytest.raises(ExceptionGroup) as caught:
        async with world.open():
            pass
    (error,) = leaves(caught.value)
    assert isinstance(error, CorruptError)
    assert "range=[1,2)" in str(error)
    assert len(world.wal.left) == 1


async def test_a_lookup_by_time_sees_what_is_uploaded_and_evicted_while_it_looks(world: World) -> None:
    async with world.open() as e:
        e.append(b"0", time_ms=50)
        e.append(b"1", time_ms=10)
        await e.engine.flush()
        e.log_cache.evict(2**30)
        e.append(b"2", time_ms=60)

        looked: list[bool] = []

        async def upload_and_evict() -> None:
            e.store.before_get = None
            looked.append(True)
            await e.engine.flush()
            e.log_cache.evict(2**30)

        e.store.before_get = upload_and_evict
        found = await e.engine.reads.find_time(e.stream, 1, 40)
        assert looked, "the upload came in between"
        assert found is not None
        assert found.base_offset == 2


async def test_a_read_of_what_was_just_trimmed_is_not_taken_for_damage(world: World) -> None:
    """Metadata knows of a trim a moment before the stream does."""
    async with world.open() as e:
        for i in range(3):
            e.append(b"%d" % i)
            await e.engine.flush()
        e.log_cache.evict(2**30)
        epoch = e.metadata.image.nodes.require(1).epoch
        await e.metadata.submit(TrimStreams(1, epoch, [(e.stream.stream_id, 2)]))
        assert e.stream.start_offset == 0
        assert await e.engine.reads.read(e.stream, 0, 1000) == []
        assert e.stream.start_offset == 2


async def test_an_upload_that_lands_after_its_object_was_forgotten_leaves_no_orphan(world: World) -> None:
    """I6."""
    async with world.open() as e:
        e.append(b"x" * 50)
        e.store.gate = anyio.Event()
        await e.flush_until(e.store.held)
        world.now_ms += 120_000
        await e.engine._lifecycle.sweep()
        await e.engine._lifecycle.sweep()
        assert not e.metadata.image.objects, "given up, deleted and forgotten while the put was on its way"
        e.store.gate.set()
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        await e.engine._lifecycle.sweep()
        assert len(await e.store.keys()) == len(e.metadata.image.objects) == 1
        assert await e.read_all() == [(0, b"x" * 50)]


async def test_a_block_of_many_streams_is_committed_in_parts(world: World) -> None:
    """A metadata entry has a size limit: no number of streams may make a commit impossible."""
    upload = dataclasses.replace(SETTINGS.upload, commit_ranges_max=1)
    world.settings = dataclasses.replace(SETTINGS, upload=upload)
    async with world.open() as e:
        e.append(b"a", stream=0)
        e.append(b"b", stream=1)
        before = e.metadata.image.index
        await e.engine.flush()
        assert e.metadata.image.index == before + 3, "one entry prepares, two commit"
        e.log_cache.evict(2**30)
        assert (await e.read_all(0), await e.read_all(1)) == ([(0, b"a")], [(0, b"b")])
        assert world.wal.left == []


async def test_a_commit_that_loses_its_objects_half_way_puts_only_the_rest_again(world: World) -> None:
    upload = dataclasses.replace(SETTINGS.upload, commit_ranges_max=1)
    world.settings = dataclasses.replace(SETTINGS, upload=upload)
    async with world.open() as e:
        e.append(b"a", stream=0)
        e.append(b"b", stream=1)
        submit = e.metadata.submit
        commits = 0

        async def expire_the_second(command: object) -> object:
            nonlocal commits
            if type(command).__name__ == "CommitUpload":
                commits += 1
                if commits == 2:
                    world.now_ms += 120_000
                    await e.engine._lifecycle.sweep()
            return await submit(command)  # type: ignore[arg-type]

        e.metadata.submit = expire_the_second  # type: ignore[method-assign, assignment]
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        e.log_cache.evict(2**30)
        assert (await e.read_all(0), await e.read_all(1)) == ([(0, b"a")], [(0, b"b")])
        await e.engine._lifecycle.sweep()
        assert len(await e.store.keys()) == 2


async def test_any_number_of_streams_is_opened_and_trimmed_in_entries_that_fit(world: World) -> None:
    async with world.open() as e:
        missing = [2**40 + i for i in range(120_000)]
        (opened,) = await e.engine.open_streams([*missing, e.stream.stream_id])
        assert opened.stream_id == e.stream.stream_id
        e.append(b"x")
        await e.engine.trim_streams([*((stream_id, 2**40) for stream_id in missing), (e.stream.stream_id, 0)])
