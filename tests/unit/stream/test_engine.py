"""The stream engine on real plugins in memory: order, durability, upload, recovery, back-pressure."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.patience import HANG_S
from tests.unit.stream.harness import SETTINGS, World, leaves

from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    FullError,
    NewerVersionError,
    UnavailableError,
)
from penstock.metadata.commands.nodes import RegisterNode
from penstock.metadata.commands.topics import DeleteTopic
from penstock.spi.wal import WalEntry
from penstock.stream import reads as reads_module
from penstock.stream import uploader as uploader_module

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_an_append_is_visible_when_durable_and_not_before(world: World) -> None:
    async with world.open() as e:
        world.wal.automatic = False
        first, second = e.append(b"one"), e.append(b"two", count=3)
        assert (first, second, e.stream.next_offset, e.stream.confirmed_offset) == ([], [], 4, 0)
        world.wal.complete(1)
        assert (first, second, e.stream.confirmed_offset) == ([None], [], 1)
        world.wal.complete()
        assert await e.read_all() == [(0, b"one"), (1, b"two")]


async def test_failed_appends_give_their_offsets_back_once(world: World) -> None:
    async with world.open() as e:
        e.append(b"kept")
        world.wal.automatic = False
        resets: list[int] = []
        e.stream.on_reset = resets.append
        outcomes = [e.append(b"lost"), e.append(b"lost too")]
        world.wal.fail()
        assert [type(o[0]) for o in outcomes] == [UnavailableError, UnavailableError]
        assert resets == [1]
        world.wal.automatic = True
        e.append(b"again")
        assert await e.read_all() == [(0, b"kept"), (1, b"again")]
        assert e.allocator.statistics().used_by_purpose.get("append", 0) > 0


async def test_data_are_the_same_from_memory_and_from_objects(world: World) -> None:
    async with world.open() as e:
        payloads = [bytes([i]) * (i * 7 + 1) for i in range(60)]
        for payload in payloads:
            e.append(payload, stream=0)
            e.append(payload[::-1], stream=1)
        warm = await e.read_all(0), await e.read_all(1)
        await e.engine.flush()
        assert e.log_cache.evict(2**30) > 0
        assert e.engine.reads.read_cached(e.stream, 0, 1000) is None
        assert (await e.read_all(0), await e.read_all(1)) == warm
        assert [payload for _, payload in warm[0]] == payloads


async def test_the_wal_is_trimmed_only_after_the_commit(world: World) -> None:
    """I4."""
    async with world.open() as e:
        e.append(b"x" * 100)
        e.store.gate = anyio.Event()
        await e.flush_until(e.store.held)
        assert len(world.wal.left) == 1
        e.store.gate.set()
        await e.engine.flush()
        assert world.wal.left == []
        assert e.metadata.image.streams.require(e.stream.stream_id).end == 1


async def test_uploads_that_fail_are_tried_until_they_work_and_lose_nothing(world: World) -> None:
    async with world.open() as e:
        e.append(b"x" * 100)
        e.store.fail_puts = True
        await e.flush_until(e.store.failed)
        await anyio.wait_all_tasks_blocked()
        statistics = e.engine.statistics().uploader
        assert statistics.failures > 0
        assert "steered store fails" in statistics.last_error
        e.store.fail_puts = False
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        # objects of failed attempts are given up, and deleted by the next sweep
        states = [held.state for held in e.metadata.image.objects.all()]
        assert states.count("committed") == 1
        assert "prepared" not in states


async def test_blocks_are_committed_in_log_order_even_if_put_out_of_order(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, upload_bytes=100)
    async with world.open() as e:
        for i in range(20):
            e.append(bytes([i]) * 60)
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        assert len(world.uploads) >= 5
        ranges = e.metadata.image.streams.require(e.stream.stream_id).ranges
        assert ranges[0].start == 0
        assert all(a.end == b.start for a, b in pairwise(ranges))


async def test_a_large_stream_gets_an_object_of_its_own(world: World) -> None:
    world.settings = dataclasses.replace(
        SETTINGS, upload=dataclasses.replace(SETTINGS.upload, object_split_bytes=1000)
    )
    async with world.open() as e:
        e.append(b"x" * 2000, stream=0)
        e.append(b"y", stream=1)
        await e.engine.flush()
        states = [e.metadata.image.streams.require(stream.stream_id) for stream in e.streams[:2]]
        large, small = ({r.object_id for r in state.ranges} for state in states)
        assert len(large) == len(small) == 1
        assert large != small


async def test_a_crash_keeps_what_was_durable_and_nothing_else(world: World) -> None:
    """I1 over a crash."""
    async with world.open() as e:
        e.append(b"uploaded")
        await e.engine.flush()
        e.append(b"in the wal", count=2)
        world.wal.automatic = False
        e.append(b"never acknowledged")
    world.wal.crash()
    async with world.open() as e:
        assert world.recovered[-1].entries == 1
        assert await e.read_all() == [(0, b"uploaded"), (1, b"in the wal")]
        assert e.stream.next_offset == 3
        assert world.wal.left == []
        e.append(b"and on")
        assert (await e.read_all())[-1] == (3, b"and on")


async def test_entries_that_come_back_after_a_trim_are_skipped(world: World) -> None:
    async with world.open() as e:
        e.append(b"one")
        await e.engine.flush()
    world.wal.trimmed = 0  # the trim was not durable yet
    async with world.open() as e:
        assert (world.recovered[-1].entries, world.recovered[-1].skipped_entries) == (0, 1)
        assert await e.read_all() == [(0, b"one")]


async def test_a_hole_in_the_wal_stops_recovery_and_says_what_is_missing(world: World) -> None:
    """I10."""
    async with world.open() as e:
        for payload in (b"a", b"b", b"c"):
            e.append(payload)
    world.wal.lose(1)
    with pytest.raises(ExceptionGroup) as caught:
        async with world.open():
            pass
    (error,) = leaves(caught.value)
    assert isinstance(error, CorruptError)
    assert "missing=[1,2)" in str(error)


async def test_a_wal_entry_of_another_format_stops_recovery(world: World) -> None:
    world.wal.durable.append(WalEntry(0, 10, memoryview(b"\x00 garbage")))
    with pytest.raises(ExceptionGroup) as caught:
        async with world.open():
            pass
    assert [type(error) for error in leaves(caught.value)] == [CorruptError]


async def test_a_wal_entry_of_a_newer_version_stops_recovery_and_is_named(world: World) -> None:
    world.wal.durable.append(WalEntry(0, 10, memoryview(b"\x02 what comes later")))
    with pytest.raises(ExceptionGroup) as caught:
        async with world.open():
            pass
    (error,) = leaves(caught.value)
    assert isinstance(error, NewerVersionError)
    assert "newer penstock, upgrade this one: position=0 version=2 known=1" in str(error)
    assert len(world.wal.durable) == 1


async def test_data_of_a_deleted_topic_are_neither_kept_nor_uploaded(world: World) -> None:
    async with world.open() as e:
        e.append(b"x" * 50)
        ids = await e.metadata.submit(DeleteTopic(b"t" * 16))
        e.engine.forget_streams(ids)
        await e.engine.flush()
        assert e.store.object_puts == 0
        assert world.wal.left == []


async def test_a_wal_full_of_deleted_data_is_trimmed(world: World) -> None:
    async with world.open() as e:
        e.append(b"x" * 50)
        await e.engine.flush()
        e.append(b"y" * 50)
        ids = e.streams[0].stream_id, e.streams[1].stream_id
        e.engine.forget_streams(ids[:1])
        world.wal.full = True
        with pytest.raises(FullError):
            e.append(b"z", stream=1)
        with anyio.fail_after(HANG_S):
            await e.engine.wait_for_room(1)
        assert world.wal.left == []


async def test_trimmed_data_go_away_and_the_rest_stays(world: World) -> None:
    async with world.open() as e:
        for i in range(4):
            e.append(bytes([i]) * 50)
            await e.engine.flush()
        await e.engine.trim_streams([(e.stream.stream_id, 2)])
        assert (await e.store.keys()) != []
        await e.engine._lifecycle.sweep()
        assert len(await e.store.keys()) == 2
        assert [offset for offset, _ in await e.read_all()] == [2, 3]
        assert len(world.destroyed[0].object_ids) == 2


async def test_uncommitted_objects_past_their_deadline_are_deleted(world: World) -> None:
    """I6."""
    from penstock.metadata.commands.objects import PrepareObjects

    async with world.open() as e:
        epoch = e.metadata.image.nodes.require(1).epoch
        (object_id,) = await e.metadata.submit(PrepareObjects(1, epoch, 1, world.now_ms + 10))
        from penstock.stream.object_format import object_key

        await e.store.put(object_key(object_id), [b"half"])
        await e.engine._lifecycle.sweep()
        assert await e.store.keys() == [object_key(object_id)], "not before its deadline"
        world.now_ms += 11
        await e.engine._lifecycle.sweep()
        await e.engine._lifecycle.sweep()
        assert await e.store.keys() == []
        assert not e.metadata.image.objects


async def test_an_upload_that_misses_its_deadline_is_put_again(world: World) -> None:
    async with world.open() as e:
        e.append(b"x" * 50)
        e.store.gate = anyio.Event()
        await e.flush_until(e.store.held)
        world.now_ms += 120_000
        await e.engine._lifecycle.sweep()
        e.store.gate.set()
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        assert e.store.object_puts == 2
        assert e.log_cache.evict(2**30)
        assert await e.read_all() == [(0, b"x" * 50)]


async def test_too_much_in_flight_is_refused_and_room_comes_with_durability(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, in_flight_bytes_max=100)
    async with world.open() as e:
        world.wal.automatic = False
        e.append(b"x" * 100)
        with pytest.raises(FullError):
            e.append(b"y")
        assert e.stream.next_offset == 1, "nothing changed"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(e.engine.wait_for_room, 10)
            await anyio.wait_all_tasks_blocked()
            world.wal.complete()
        e.append(b"y")


async def test_a_full_wal_forces_an_upload_and_room_comes_with_the_trim(world: World) -> None:
    async with world.open() as e:
        e.append(b"x" * 100)
        world.wal.full = True
        with pytest.raises(FullError):
            e.append(b"y")
        with anyio.fail_after(HANG_S):
            await e.engine.wait_for_room(10)
        assert world.uploads, "the upload was forced"
        world.wal.full = False
        e.append(b"y")


async def test_memory_pressure_evicts_what_is_uploaded_and_uploads_the_rest(world: World) -> None:
    """I8: appends go on for ever in bounded memory."""
    world.limit = 2 * 2**20
    world.settings = dataclasses.replace(SETTINGS, upload_bytes=2**19)
    async with world.open() as e:
        for i in range(100):
            payload = bytes([i]) * 100_000
            while True:
                try:
                    e.append(payload)
                    break
                except FullError:
                    with anyio.fail_after(HANG_S):
                        await e.engine.wait_for_room(len(payload))
            statistics = e.allocator.statistics()
            assert statistics.used_bytes <= statistics.limit_bytes + 2**20
            assert sum(statistics.used_by_purpose.values()) == statistics.used_bytes
        found = await e.read_all()
        assert [offset for offset, _ in found] == list(range(100))
        assert all(payload == bytes([offset]) * 100_000 for offset, payload in found)


async def test_those_who_need_something_uploaded_share_an_upload_and_the_end_of_the_engine(
    world: World,
) -> None:
    async with anyio.create_task_group() as waiting, world.open() as e:
        for _ in range(2):
            e.append(b"a")
            e.append(b"b", stream=1)
            async with anyio.create_task_group() as tasks:
                for stream in (0, 1, 0):
                    tasks.start_soon(e.engine.upload_to, e.streams[stream], e.stream.confirmed_offset)
        assert len(world.uploads) == 2
        assert [e.engine.uploaded_end(stream.stream_id) for stream in e.streams] == [2, 2]
        e.append(b"c")
        e.store.gate = anyio.Event()
        told: list[str] = []

        async def wait() -> None:
            try:
                await e.engine.upload_to(e.stream, 3)
            except ClosedError as error:
                told.append(str(error))

        waiting.start_soon(wait)
        await e.store.held.wait()
    with pytest.raises(ClosedError):
        await e.engine.upload_to(e.stream, 3)
    assert len(told) == 1


# longer than any host has run: the first ones don't wait, whatever its clock says
@pytest.mark.parametrize("pause_s", [1e9, 1e-6])
async def test_uploads_that_are_asked_for_again_and_again_have_pauses_between_them(
    world: World, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    """Many who delete records one after the other don't make many small objects; others' uploads serve them, too."""
    monkeypatch.setattr(uploader_module, "ASKED_UPLOAD_PAUSE_S", pause_s)
    async with world.open() as e:
        for i in range(uploader_module.ASKED_UPLOADS):
            e.append(b"a")
            await e.engine.upload_to(e.stream, i + 1)
        e.append(b"b")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(e.engine.upload_to, e.stream, e.stream.confirmed_offset)
            if pause_s > 1:
                await anyio.wait_all_tasks_blocked()
                assert len(world.uploads) == uploader_module.ASKED_UPLOADS
                await e.engine.flush()
        assert e.engine.uploaded_end(e.stream.stream_id) == e.stream.confirmed_offset


async def test_waiting_for_room_ends_when_the_engine_does(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, in_flight_bytes_max=10)
    outcome: list[type] = []

    async def wait(e: object, room: object) -> None:
        try:
            await room(10)  # type: ignore[operator]
        except ClosedError as error:
            outcome.append(type(error))

    async with anyio.create_task_group() as tasks:
        async with world.open() as e:
            world.wal.automatic = False
            e.append(b"x" * 20)
            tasks.start_soon(wait, e, e.engine.wait_for_room)
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(HANG_S):
            while not outcome:
                await anyio.lowlevel.checkpoint()
    assert outcome == [ClosedError]


async def test_a_fenced_engine_ends_with_that_error(world: World) -> None:
    """I9: another process registers as the same node; the next commit finds out."""

    async def live() -> None:
        async with world.open() as e:
            e.append(b"x" * 50)
            await e.metadata.submit(RegisterNode(1, "a newer life"))
            await e.engine.flush()
            await anyio.sleep(HANG_S)

    with pytest.raises(ExceptionGroup) as caught:
        await live()
    assert any(isinstance(error, FencedError) for error in leaves(caught.value))


async def test_lookups_by_time_find_the_first_entry_in_memory_and_in_objects(world: World) -> None:
    async with world.open() as e:
        times = [10, 30, 20, 50, 40]
        for i, time_ms in enumerate(times):
            e.append(b"%d" % i, time_ms=time_ms)
            if i == 2:
                await e.engine.flush()
                e.log_cache.evict(2**30)

        async def first(time_ms: int) -> int | None:
            entry = await e.engine.reads.find_time(e.stream, 0, time_ms)
            return None if entry is None else entry.base_offset

        assert [await first(t) for t in (0, 10, 11, 30, 31, 50, 51)] == [0, 0, 1, 1, 3, 3, None]
        assert await e.engine.reads.max_time(e.stream, 0) == 50
        assert await e.engine.reads.max_time(e.stream, 4) == 40
        for read_bytes in (1, 2**20):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(reads_module, "UNCOMMITTED_READ_BYTES", read_bytes)
                assert [time_ms for _, _, time_ms in e.engine.reads.ranges(e.stream)] == [30, 50, 40]
                assert e.engine.reads.size_bytes(e.stream) == len(times)


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from(["append", "append", "append", "flush", "evict", "crash", "trim", "fail"]),
        max_size=25,
    )
)
async def test_any_history_keeps_exactly_the_acknowledged_records(tmp_path: Path, history: list[str]) -> None:
    """I1, I2, I4 over random appends, uploads, evictions, failures, trims and crashes."""
    world = World(tmp_path)
    expected: dict[int, bytes] = {}
    start = number = 0
    steps = list(history)
    while True:
        async with world.open() as e:
            while steps:
                step = steps.pop(0)
                if step == "append":
                    payload = b"%d " % number * (1 + number % 40)
                    number += 1
                    offset = e.stream.next_offset
                    assert e.append(payload) == [None]
                    expected[offset] = payload
                elif step == "flush":
                    await e.engine.flush()
                elif step == "evict":
                    e.log_cache.evict(2**30)
                elif step == "fail":
                    world.wal.automatic = False
                    e.append(b"lost")
                    world.wal.fail()
                    world.wal.automatic = True
                elif step == "trim" and e.stream.confirmed_offset > start:
                    start += 1
                    await e.engine.trim_streams([(e.stream.stream_id, start)])
                elif step == "crash":
                    world.wal.automatic = False
                    e.append(b"never acknowledged")
                    break
            live = {offset: payload for offset, payload in expected.items() if offset >= start}
            assert dict(await e.read_all()) == live
            assert e.stream.confirmed_offset == len(expected)
            if not steps:
                return
        world.wal.crash()


async def test_who_fails_to_reset_a_stream_keeps_nobody_from_being_told(world: World) -> None:
    def fail(offset: int) -> None:
        raise ValueError(offset)

    async with world.open() as e:
        world.wal.automatic = False
        e.stream.on_reset = fail
        outcome = e.append(b"lost")
        with pytest.raises(ValueError, match="0"):
            world.wal.fail()
        assert [type(error) for error in outcome] == [UnavailableError]
