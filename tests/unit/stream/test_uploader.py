"""Uploads: which streams go where, large objects in parts, commits that fit."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.patience import HANG_S
from tests.unit.stream.harness import SETTINGS, Engine, FakeWal, World

from penstock.errors import FullError, UnavailableError
from penstock.metadata.commands.objects import UploadedObject, UploadedRange
from penstock.metadata.image import Image
from penstock.metadata.streams import StreamState
from penstock.spi.log_cache import StreamEntry
from penstock.stream import object_puts as object_puts_module
from penstock.stream import uploader as uploader_module
from penstock.stream.pacer import PRESSURE_MAX, Pacer
from penstock.stream.upload_plan import first_part, live_offsets, object_pieces, plan_objects

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader_module, "_BACKOFF_S", (0,))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def block(*entries: tuple[int, int, int]) -> Any:
    """A frozen block of (stream, base offset, size); each entry has one record."""
    streams: dict[int, list[StreamEntry]] = {}
    for stream_id, base, size in entries:
        entry = StreamEntry(stream_id, base, base + 1, 0, memoryview(bytes(size)))
        streams.setdefault(stream_id, []).append(entry)
    return SimpleNamespace(streams=streams)


def image(**streams: tuple[int, int]) -> Image:
    found = Image()
    for name, (start, end) in streams.items():
        stream_id = int(name[1:])
        found.streams.put(stream_id, StreamState(stream_id, b"", 0, start=start, end=end))
    return found


def plan_of(
    frozen: Any, found: Image, object_split_bytes: int, streams_max: int
) -> list[list[tuple[int, Sequence[StreamEntry]]]]:
    return plan_objects(frozen, live_offsets(frozen.streams, found), object_split_bytes, streams_max)


def planned(plan: Sequence[Sequence[tuple[int, Sequence[StreamEntry]]]]) -> list[list[tuple[int, list[int]]]]:
    return [[(stream_id, [e.base_offset for e in entries]) for stream_id, entries in one] for one in plan]


def test_large_streams_go_alone_and_the_rest_together_in_stream_order() -> None:
    plan = plan_of(
        block((3, 0, 10), (1, 0, 10), (2, 0, 60), (2, 1, 60)), image(s1=(0, 0), s2=(0, 0), s3=(0, 0)), 100, 10
    )
    assert planned(plan) == [[(2, [0, 1])], [(1, [0]), (3, [0])]]


def test_what_is_deleted_trimmed_or_committed_is_left_out() -> None:
    plan = plan_of(
        block((1, 0, 1), (2, 0, 1), (2, 1, 1), (3, 0, 1), (3, 1, 1)), image(s2=(1, 0), s3=(0, 2)), 100, 10
    )
    assert planned(plan) == [[(2, [1])]]
    assert plan_of(block((1, 0, 1)), image(), 100, 10) == []


def test_no_object_is_shared_by_more_streams_than_a_commit_takes() -> None:
    entries = [(i, 0, 1) for i in range(1, 8)]
    plan = plan_of(block(*entries), image(**{f"s{i}": (0, 0) for i in range(1, 8)}), 100, 3)
    assert [len(one) for one in plan] == [3, 3, 1]


def test_a_commit_takes_as_many_objects_as_fit_and_at_least_one() -> None:
    def uploaded(object_id: int, ranges: int) -> UploadedObject:
        return UploadedObject(object_id, 1, [UploadedRange(i, 0, 1, 1, 0) for i in range(ranges)])

    objects = [uploaded(1, 2), uploaded(2, 1), uploaded(3, 1)]
    assert [o.object_id for o in first_part(objects, 3)] == [1, 2]
    assert [o.object_id for o in first_part(objects, 1)] == [1]
    assert [o.object_id for o in first_part(objects, 100)] == [1, 2, 3]


class Parts:
    """A multipart upload that fails once if told so."""

    def __init__(self, store: Any, key: str, fail_part: int) -> None:
        self._store = store
        self._key = key
        self._fail_part = fail_part
        self.parts: list[bytes] = []
        self.ended = ""

    async def write_part(self, part: Sequence[Any]) -> None:
        if len(self.parts) == self._fail_part:
            raise UnavailableError("the part failed")
        self.parts.append(b"".join(part))

    async def complete(self) -> None:
        self.ended = "completed"
        await self._store.put(self._key, self.parts)

    async def abort(self) -> None:
        self.ended = "aborted"


def takes_parts(
    store: Any, monkeypatch: pytest.MonkeyPatch, *, fails_at: int = -1, small_parts: bool = False
) -> list[Parts]:
    """The uploads in parts that ``store`` takes from now on; the first one fails at a part if that is asked for."""
    uploads: list[Parts] = []

    async def create_multipart(key: str) -> Parts:
        uploads.append(Parts(store._inner, key, fail_part=-1 if uploads else fails_at))
        return uploads[-1]

    monkeypatch.setattr(store, "create_multipart", create_multipart)
    capabilities = dataclasses.replace(store.capabilities, multipart=True, small_parts=small_parts)
    monkeypatch.setattr(store, "capabilities", capabilities, raising=False)
    return uploads


async def test_a_large_object_is_put_in_parts_and_a_failed_attempt_is_aborted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = dataclasses.replace(SETTINGS.upload, multipart_bytes=1000, part_bytes=400)
    world.settings = dataclasses.replace(SETTINGS, upload=upload)
    async with world.open() as e:
        attempts = takes_parts(e.store, monkeypatch, fails_at=2)
        payloads = [(i, bytes([i]) * 300) for i in range(6)]
        for _, payload in payloads:
            e.append(payload)
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        assert [attempt.ended for attempt in attempts] == ["aborted", "completed"]
        assert all(len(part) >= 400 for part in attempts[1].parts[:-1])
        e.log_cache.evict(2**30)
        assert await e.read_all() == payloads
        states = [held.state for held in e.metadata.image.objects.all()]
        assert sorted(states) == ["committed", "destroyed"], "the first attempt's object is given up"


async def test_an_upload_that_can_not_be_aborted_is_told_of_by_why_it_was_to_be(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_: Parts) -> None:
        raise UnavailableError("aborting isn't allowed")

    monkeypatch.setattr(Parts, "abort", refuse)
    upload = dataclasses.replace(SETTINGS.upload, multipart_bytes=1000, part_bytes=400)
    world.settings = dataclasses.replace(SETTINGS, upload=upload)
    async with world.open() as e:
        takes_parts(e.store, monkeypatch, fails_at=2)
        for i in range(6):
            e.append(bytes([i]) * 300)
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        assert e.engine.statistics().uploader.last_error == "the part failed"
    assert "aborting isn't allowed" in caplog.text


async def test_puts_run_in_parallel_and_commits_in_order(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, upload_bytes=50)
    async with world.open() as e:
        e.store.gate = anyio.Event()
        for i in range(6):
            e.append(bytes([i]) * 60)
        await anyio.wait_all_tasks_blocked()
        prepared = [held.state for held in e.metadata.image.objects.all()]
        assert prepared == ["prepared"] * SETTINGS.upload.parallel_max
        assert len(world.wal.left) == 6
        e.store.gate.set()
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        assert [event.object_ids for event in world.uploads] == [(1,), (2,), (3,), (4,), (5,), (6,)]
        assert world.wal.left == []


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(1, 200),
    st.integers(1, 400),
    st.booleans(),
)
def test_parts_are_the_body_and_large_enough(
    payloads: list[list[bytes]], block_bytes: int, part_bytes: int, direct_io: bool
) -> None:
    """S3 refuses parts that are too small, but for the last."""
    streams = [
        (stream_id, [StreamEntry(stream_id, i, i + 1, i, memoryview(data)) for i, data in enumerate(some)])
        for stream_id, some in enumerate(payloads, 1)
    ]
    ((body, uploaded),) = object_pieces(7, streams, block_bytes, sys.maxsize, direct_io=direct_io)
    parts = list(object_pieces(7, streams, block_bytes, part_bytes, direct_io=direct_io))
    assert b"".join(b for part, _ in parts for b in part) == b"".join(body)
    assert [said for _, said in parts] == [None] * (len(parts) - 1) + [uploaded]
    assert all(sum(map(len, part)) >= part_bytes for part, _ in parts[:-1])
    assert parts[-1][0]
    assert uploaded is not None
    assert uploaded.size == sum(map(len, body))
    assert [(r.stream_id, r.size, r.time_ms) for r in uploaded.ranges] == [
        (stream_id, sum(map(len, some)), len(some) - 1) for stream_id, some in enumerate(payloads, 1)
    ]


class NoHaste:
    """A pacer that has everything wait for an hour, unless something presses."""

    rate = 1.0
    burst_bytes = 0

    def __init__(self, *_: float) -> None:
        pass

    def pause_s(self, size: int, now_s: float, taken_bytes: int, pressure: float) -> float:
        return 0.0 if pressure >= PRESSURE_MAX else 3600.0


async def _flush(e: Engine) -> None:
    await e.engine.flush()


async def _meet_a_full_wal(e: Engine) -> None:
    wal = e.engine._wal
    assert isinstance(wal, FakeWal)
    wal.full = True
    with pytest.raises(FullError):
        e.append(b"x")
    await e.engine.wait_for_room(0)


async def _want_memory(e: Engine) -> None:
    (await e.allocator.charge(e.allocator.statistics().limit_bytes - 2000, "test")).release()


@pytest.mark.parametrize("somebody", [_flush, _meet_a_full_wal, _want_memory])
async def test_uploads_keep_to_the_pace_until_somebody_waits_for_them(
    world: World, monkeypatch: pytest.MonkeyPatch, somebody: Callable[[Engine], Awaitable[None]]
) -> None:
    monkeypatch.setattr(uploader_module, "Pacer", NoHaste)
    world.settings = dataclasses.replace(SETTINGS, upload_bytes=2000)
    async with world.open() as e:
        for _ in range(3):
            e.append(bytes(1000))
        await anyio.wait_all_tasks_blocked()
        assert (e.engine.statistics().uploader.pending_blocks, e.store.object_puts) == (1, 0)
        with anyio.fail_after(HANG_S):
            await somebody(e)
            while not world.uploads:
                await anyio.wait_all_tasks_blocked()
        assert e.store.object_puts >= 1


async def test_what_is_wanted_soon_is_put_twice_as_fast_and_what_comes_after_it_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressures: list[float] = []

    def pause_s(pacer: Pacer, size: int, now_s: float, taken_bytes: int, pressure: float) -> float:
        pressures.append(pressure)
        return 0.0

    monkeypatch.setattr(Pacer, "pause_s", pause_s)
    world.settings = dataclasses.replace(SETTINGS, upload_bytes=2000)
    async with world.open() as e:
        for count, begin in ((1, e.engine.begin_upload), (2, lambda: None)):
            e.append(bytes(1000))
            e.append(bytes(900 if count == 1 else 1100))
            await anyio.wait_all_tasks_blocked()
            begin()
            with anyio.fail_after(HANG_S):
                while e.engine.statistics().uploader.committed_blocks < count:
                    await anyio.wait_all_tasks_blocked()
    assert pressures == [1.0, 0.0]


async def test_where_parts_cost_nothing_an_object_is_put_in_small_ones_each_in_its_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_puts_module, "PIECE_BYTES", 500)
    paced: list[int] = []

    def pause_s(pacer: Pacer, size: int, *args: float) -> float:
        paced.append(size)
        return 0.0

    monkeypatch.setattr(Pacer, "pause_s", pause_s)
    async with world.open() as e:
        uploads = takes_parts(e.store, monkeypatch, small_parts=True)
        payloads = [(i, bytes([i]) * 300) for i in range(6)]
        for _, payload in payloads:
            e.append(payload)
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        (upload,) = uploads
        sizes = [len(part) for part in upload.parts]
        assert len(sizes) >= 3
        assert all(500 <= size < 900 for size in sizes[:-1])
        assert paced == sizes
        e.log_cache.evict(2**30)
        assert await e.read_all() == payloads


@pytest.mark.parametrize(
    ("burst_bytes", "buffers_max", "parts"),
    [(0, 100, 7), (1200, 100, 4), (sys.maxsize, 100, 2), (sys.maxsize, 1, 7)],
    ids=[
        "one when they are rarely due",
        "some when more is due",
        "all when nothing is put off",
        "few of many buffers",
    ],
)
async def test_small_parts_that_are_due_together_are_put_together(
    world: World, monkeypatch: pytest.MonkeyPatch, burst_bytes: int, buffers_max: int, parts: int
) -> None:
    monkeypatch.setattr(object_puts_module, "PIECE_BYTES", 500)
    monkeypatch.setattr(object_puts_module, "BURST_BUFFERS_MAX", buffers_max)
    monkeypatch.setattr(Pacer, "pause_s", lambda *args: 0.0)
    pacers: list[Pacer] = []

    def make_pacer(now_s: float) -> Pacer:
        pacers.append(Pacer(now_s))
        pacers[-1].burst_bytes = burst_bytes
        return pacers[-1]

    monkeypatch.setattr(uploader_module, "Pacer", make_pacer)
    async with world.open() as e:
        uploads = takes_parts(e.store, monkeypatch, small_parts=True)
        payloads = [(i, bytes([i]) * 600) for i in range(6)]
        for _, payload in payloads:
            e.append(payload)
        with anyio.fail_after(HANG_S):
            await e.engine.flush()
        (upload,) = uploads
        assert len(upload.parts) == parts
        e.log_cache.evict(2**30)
        assert await e.read_all() == payloads
