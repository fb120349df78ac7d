"""Object lifecycle (I6): what nothing refers to goes, in time, whatever fails on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.unit.stream.harness import NODE, SETTINGS, Engine, World, swept_until_damage

from penstock.errors import UnavailableError
from penstock.metadata.commands.objects import ForgetObjects, PrepareObjects
from penstock.metadata.image import Image
from penstock.metadata.objects import ObjectState
from penstock.stream import lifecycle as lifecycle_module
from penstock.stream.lifecycle import due_objects

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def prepare(e: Engine, count: int, deadline_ms: int) -> list[int]:
    command = PrepareObjects(NODE, e.metadata.image.nodes.require(NODE).epoch, count, deadline_ms)
    object_ids = await e.metadata.submit(command)
    assert isinstance(object_ids, list)
    return object_ids


async def destroyed(e: Engine, world: World) -> None:
    e.append(b"x" * 50)
    await e.engine.flush()
    await e.engine.trim_streams([(e.stream.stream_id, e.stream.confirmed_offset)])


def test_what_is_due_depends_on_state_and_time_only() -> None:
    image = Image()
    for object_id, (state, at_ms) in enumerate(
        [("prepared", 100), ("prepared", 101), ("committed", 0), ("destroyed", 90), ("destroyed", 91)]
    ):
        image.objects.put(object_id, ObjectState(object_id, state, 0, at_ms))  # type: ignore[arg-type]
    assert due_objects(image, 100, 10, 50) == ([0], [3])
    assert due_objects(image, 0, 0, 50) == ([], [])


async def test_a_clock_that_is_set_back_by_years_keeps_nothing_for_years(world: World) -> None:
    """I6: what was destroyed, or prepared, by a clock that was wrong goes as soon as anything else."""
    async with world.open() as e:
        now_ms, world.now_ms = world.now_ms, world.now_ms + 365 * 24 * 3_600_000
        await destroyed(e, world)
        await prepare(e, 1, world.now_ms + SETTINGS.upload.prepare_deadline_ms)
        world.now_ms = now_ms
        for _ in range(2):
            assert await e.engine._lifecycle.sweep() == 1
        assert await e.store.keys() == []
        assert not len(e.metadata.image.objects)


async def test_readers_are_given_their_delay(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, delete_delay_ms=1000)
    async with world.open() as e:
        await destroyed(e, world)
        world.now_ms += 999
        assert await e.engine._lifecycle.sweep() == 0
        world.now_ms += 1
        assert await e.engine._lifecycle.sweep() == 1
        assert await e.store.keys() == []


@pytest.mark.parametrize("what", ["delete", "forget"])
async def test_a_deletion_that_fails_half_way_is_done_again(
    world: World, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.open() as e:
        await destroyed(e, world)
        submit, delete = e.metadata.submit, e.store._inner.delete

        async def lose(command: Any) -> Any:
            if isinstance(command, ForgetObjects):
                raise UnavailableError("not forgotten")
            return await submit(command)

        async def fail(keys: Sequence[str]) -> None:
            raise UnavailableError("not deleted")

        with monkeypatch.context() as patch:
            if what == "delete":
                patch.setattr(e.store._inner, "delete", fail)
            else:
                patch.setattr(e.metadata, "submit", lose)
            with pytest.raises(UnavailableError):
                await e.engine._lifecycle.sweep()
            assert len(e.metadata.image.objects) == 1
        assert e.store._inner.delete == delete
        assert await e.engine._lifecycle.sweep() == 1
        assert (await e.store.keys(), list(e.metadata.image.objects.all())) == ([], [])
        assert [event.object_ids for event in world.destroyed] == [(1,)]


async def test_many_objects_are_deleted_in_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle_module, "DELETE_BATCH_MAX", 3)
    async with world.open() as e:
        await prepare(e, 8, world.now_ms)
        await e.engine._lifecycle.sweep()
        assert {held.state for held in e.metadata.image.objects.all()} == {"destroyed"}
        assert await e.engine._lifecycle.sweep() == 8
        assert [len(event.object_ids) for event in world.destroyed] == [3, 3, 2]
        assert not e.metadata.image.objects


async def test_ids_of_forgotten_objects_never_come_back(world: World) -> None:
    async with world.open() as e:
        first = await prepare(e, 3, world.now_ms)
        for _ in range(2):
            await e.engine._lifecycle.sweep()
    world.wal.crash()
    async with world.open() as e:
        assert min(await prepare(e, 1, world.now_ms)) > max(first)


async def test_what_a_crash_left_between_put_and_commit_goes(world: World) -> None:
    async with world.open() as e:
        e.append(b"x" * 50)
        commits = anyio.Event()

        async def hold(command: Any) -> Any:
            if type(command).__name__ == "CommitUpload":
                commits.set()
                await anyio.sleep_forever()
            return await submit(command)

        submit = e.metadata.submit
        e.metadata.submit = hold  # type: ignore[method-assign]
        await e.flush_until(commits)
        assert len(await e.store.keys()) == 1
    world.wal.crash()
    async with world.open() as e:
        assert len(await e.store.keys()) == 2, "uploaded again at recovery"
        world.now_ms += SETTINGS.upload.prepare_deadline_ms
        for _ in range(2):
            await e.engine._lifecycle.sweep()
        assert len(await e.store.keys()) == 1
        assert await e.read_all() == [(0, b"x" * 50)]


async def test_sweeping_goes_on_after_the_store_failed_and_ends_the_engine_on_damage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = dataclasses.replace(SETTINGS, lifecycle_interval_ms=0)
    await swept_until_damage(world, monkeypatch, "_lifecycle")
