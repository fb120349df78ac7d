"""Uploads: which streams go where, large objects in parts, commits that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.patience import HANG_S
from tests.unit.stream.harness import SETTINGS, World

from penstock.errors import UnavailableError
from penstock.metadata.commands.objects import UploadedObject, UploadedRange
from penstock.metadata.image import Image
from penstock.metadata.streams import StreamState
from penstock.spi.log_cache import StreamEntry
from penstock.stream import uploader as uploader_module
from penstock.stream.upload_plan import first_part, live_offsets, plan_objects, split_parts

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
    return plan_objects(frozen, live_offsets(frozen, found), object_split_bytes, streams_max)


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


async def test_a_large_object_is_put_in_parts_and_a_failed_attempt_is_aborted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = dataclasses.replace(SETTINGS.upload, multipart_bytes=1000, part_bytes=400)
    world.settings = dataclasses.replace(SETTINGS, upload=upload)
    async with world.open() as e:
        attempts: list[Parts] = []

        async def create_multipart(key: str) -> Parts:
            attempts.append(Parts(e.store._inner, key, fail_part=-1 if attempts else 2))
            return attempts[-1]

        monkeypatch.setattr(e.store, "create_multipart", create_multipart)
        capabilities = dataclasses.replace(e.store.capabilities, multipart=True)
        monkeypatch.setattr(e.store, "capabilities", capabilities, raising=False)
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
@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.integers(1, 200))
def test_parts_are_the_body_and_large_enough(body: list[bytes], part_bytes: int) -> None:
    """S3 refuses parts that are too small, but for the last."""
    parts = split_parts(body, part_bytes)
    assert [buffer for part in parts for buffer in part] == body
    assert all(sum(map(len, part)) >= part_bytes for part in parts[:-1])
    assert all(sum(map(len, part[:-1])) < part_bytes for part in parts)
    assert parts[-1]
