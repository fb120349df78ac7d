"""The orphan sweep (I6): what metadata forgot goes from the store, and nothing else ever does."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import HANG_S
from tests.unit.stream.harness import NODE, SETTINGS, Engine, World, swept_until_damage

from penstock.errors import UnavailableError
from penstock.metadata.commands.objects import CommitUpload, PrepareObjects, UploadedObject
from penstock.metadata.objects import ObjectState
from penstock.spi.object_store import ObjectInfo
from penstock.stream import orphans as orphans_module
from penstock.stream.object_format import object_key
from penstock.stream.orphans import OrphanSweeper, object_id_of

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
GRACE_MS = SETTINGS.orphan_grace_ms


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The sweep tells the store's times by its own clock: the tests set both."""
    return World(tmp_path)


class TimedStore:
    """Tells modification times as the test says, and does something in the middle of a listing."""

    def __init__(self, e: Engine, world: World) -> None:
        self._inner = e.store._inner
        self.capabilities = self._inner.capabilities
        self._world = world
        self.modified_ms: dict[str, int] = {}
        self.failures: list[Exception] = []
        self.after_list: Callable[[], Awaitable[object]] | None = None
        self.listed_from: list[str] = []
        self.deleted: list[list[str]] = []

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self.listed_from.append(start_after)
        async for info in self._inner.list(prefix, start_after):
            yield dataclasses.replace(info, modified_ms=self.modified_ms.get(info.key, 1))
        if self.after_list is not None:
            await self.after_list()

    async def delete(self, keys: Sequence[str]) -> None:
        if self.failures:
            raise self.failures.pop()
        self.deleted.append(list(keys))
        await self._inner.delete(keys)


def sweeper(e: Engine, world: World, store: TimedStore) -> OrphanSweeper:
    return OrphanSweeper(
        e.metadata,
        store,  # type: ignore[arg-type] # a part of one
        now_ms=lambda: world.now_ms,
        interval_ms=HOUR_MS,
        grace_ms=GRACE_MS,
        bus=e.bus,
    )


async def prepare(e: Engine, count: int, deadline_ms: int) -> list[int]:
    epoch = e.metadata.image.nodes.require(NODE).epoch
    object_ids = await e.metadata.submit(PrepareObjects(NODE, epoch, count, deadline_ms))
    assert isinstance(object_ids, list)
    return object_ids


async def forgotten(e: Engine, world: World, count: int) -> list[int]:
    """Ids that were given out and forgotten again."""
    object_ids = await prepare(e, count, world.now_ms)
    for _ in range(2):
        await e.engine._lifecycle.sweep()
    assert not set(object_ids) & set(e.metadata.image.objects.ids())
    world.destroyed.clear()
    return object_ids


async def plant(e: Engine, *object_ids: int) -> list[str]:
    """Puts that land now."""
    for object_id in object_ids:
        await e.store.put(object_key(object_id), [b"late"])
    return sorted(object_key(object_id) for object_id in object_ids)


@given(st.integers(1, 2**63))
def test_the_key_of_an_object_gives_its_id_back(object_id: int) -> None:
    assert object_id_of(object_key(object_id)) == object_id


@given(st.text(alphabet="objects/0123456789abcdefABCDEF_+-. x", max_size=30))
def test_only_a_well_formed_key_has_an_id(key: str) -> None:
    object_id = object_id_of(key)
    assert object_id is None or object_key(object_id) == key


async def test_a_put_that_lands_after_its_object_was_forgotten_is_swept(world: World) -> None:
    async with world.open() as e:
        (object_id,) = await forgotten(e, world, 1)
        await plant(e, object_id)
        store = TimedStore(e, world)
        assert await sweeper(e, world, store).sweep() == 1
        assert await e.store.keys() == []
        assert [event.object_ids for event in world.destroyed] == [(object_id,)]


async def test_a_young_orphan_waits_for_its_grace_time(world: World) -> None:
    async with world.open() as e:
        (key,) = await plant(e, *await forgotten(e, world, 1))
        store = TimedStore(e, world)
        store.modified_ms[key] = world.now_ms
        sweep = sweeper(e, world, store).sweep
        world.now_ms += GRACE_MS - 1
        assert await sweep() == 0
        world.now_ms += 1
        assert await sweep() == 1


@pytest.mark.parametrize("told_ms", [0, 10**15])
async def test_without_times_in_the_store_the_age_of_ids_counts(world: World, told_ms: int) -> None:
    """Or with times of a broken clock. An id is as old as the sweeper's first sight of a greater next one."""
    async with world.open() as e:
        store = TimedStore(e, world)
        orphans = sweeper(e, world, store)
        (old,) = await plant(e, *await forgotten(e, world, 1))
        store.modified_ms[old] = told_ms
        assert await orphans.sweep() == 0
        (young,) = await plant(e, *await forgotten(e, world, 1))
        store.modified_ms[young] = told_ms
        world.now_ms += GRACE_MS - 1
        assert await orphans.sweep() == 0
        world.now_ms += 1
        assert await orphans.sweep() == 1
        assert await e.store.keys() == [young]
        world.now_ms += GRACE_MS
        assert await orphans.sweep() == 1


async def test_the_age_of_ids_counts_anew_by_a_clock_that_was_set_back(world: World) -> None:
    async with world.open() as e:
        store = TimedStore(e, world)
        sweep = sweeper(e, world, store).sweep
        (key,) = await plant(e, *await forgotten(e, world, 1))
        store.modified_ms[key] = 0
        await sweep()
        world.now_ms -= HOUR_MS * 24 * 365
        assert await sweep() == 0
        world.now_ms += GRACE_MS
        assert await sweep() == 1


async def test_what_metadata_knows_stays(world: World) -> None:
    """Prepared, committed and destroyed objects are the business of others, however old they are."""
    world.settings = dataclasses.replace(SETTINGS, delete_delay_ms=HOUR_MS)
    async with world.open() as e:
        for _ in range(2):
            e.append(b"x" * 50)
            await e.engine.flush()
        await e.engine.trim_streams([(e.stream.stream_id, 1)])
        await plant(e, *await prepare(e, 1, world.now_ms + HOUR_MS))
        assert {h.state for h in e.metadata.image.objects.all()} == {"prepared", "committed", "destroyed"}
        before = await e.store.keys()
        assert len(before) == 3
        assert await sweeper(e, world, TimedStore(e, world)).sweep() == 0
        assert await e.store.keys() == before


async def test_an_id_that_was_never_given_out_is_left_alone_and_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.open() as e:
        strange = [e.metadata.image.objects.next_id, 10**6]
        await plant(e, *strange)
        orphans = sweeper(e, world, TimedStore(e, world))
        for _ in range(3):
            assert await orphans.sweep() == 0
        assert len(await e.store.keys()) == 2
        told = [r.getMessage() for r in caplog.records if "never gave out" in r.getMessage()]
        assert len(told) == 1
        assert "2 objects" in told[0]
        assert object_key(10**6) in told[0]
        assert orphans.statistics().unknown_objects == 2


async def test_an_id_that_is_given_out_during_the_sweep_is_not_strange(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Another node's put may be seen before the image has its id."""
    async with world.open() as e:
        await plant(e, e.metadata.image.objects.next_id)
        store = TimedStore(e, world)
        store.after_list = lambda: prepare(e, 1, world.now_ms + HOUR_MS)
        assert await sweeper(e, world, store).sweep() == 0
        assert len(await e.store.keys()) == 1
        assert "never gave out" not in caplog.text


async def test_a_commit_that_races_with_the_sweep_keeps_its_object(world: World) -> None:
    async with world.open() as e:
        (object_id,) = await prepare(e, 1, world.now_ms + HOUR_MS)
        (orphan,) = await forgotten(e, world, 1)
        await plant(e, object_id, orphan)
        epoch = e.metadata.image.nodes.require(NODE).epoch

        async def commit() -> None:
            await e.metadata.submit(CommitUpload(NODE, epoch, [UploadedObject(object_id, 4, [])]))

        store = TimedStore(e, world)
        store.after_list = commit
        assert await sweeper(e, world, store).sweep() == 1
        assert await e.store.keys() == [object_key(object_id)]


async def test_the_image_is_asked_again_right_before_a_deletion(world: World) -> None:
    """What is known then stays, whatever it was when it was listed."""
    async with world.open() as e:
        one, two = await forgotten(e, world, 2)
        await plant(e, one, two)
        store = TimedStore(e, world)

        async def know() -> None:
            e.metadata.image.objects.put(two, ObjectState(two, "committed", 4, 0))

        store.after_list = know
        assert await sweeper(e, world, store).sweep() == 1
        assert await e.store.keys() == [object_key(two)]
        e.metadata.image.objects.drop(two)


async def test_a_store_that_lists_in_any_order_is_listed_from_the_start(world: World) -> None:
    """Nothing is taken for done because a key after it was listed, also after a failure."""
    async with world.open() as e:
        await plant(e, *await forgotten(e, world, 2))
        store = TimedStore(e, world)
        store.capabilities = dataclasses.replace(store.capabilities, ordered_listing=False)
        store.failures = [UnavailableError("down")]
        sweep = sweeper(e, world, store)
        with pytest.raises(UnavailableError):
            await sweep.sweep()
        assert await sweep.sweep() == 2
        assert store.listed_from == ["", ""]


async def test_foreign_keys_stay(world: World) -> None:
    async with world.open() as e:
        (object_id,) = await forgotten(e, world, 1)
        digits = object_key(object_id).removeprefix("objects/")
        foreign = [
            f"objects/{digits}.bak",
            f"objects/{digits[:-1]}",
            f"objects/{digits.replace('1', 'A')}",
            f"objects/sub/{digits}",
            f"objects-old/{digits}",
            f"metadata-old/{digits}",
            "objects/0000000000000000",
            "objects/README",
        ]
        for key in foreign:
            await e.store.put(key, [b"theirs"])
        before = sorted([info.key async for info in e.store.list("")])
        await plant(e, object_id)
        assert await sweeper(e, world, TimedStore(e, world)).sweep() == 1
        assert sorted([info.key async for info in e.store.list("")]) == before


async def test_a_failed_sweep_goes_on_where_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans_module, "DELETE_BATCH_MAX", 2)
    async with world.open() as e:
        keys = await plant(e, *await forgotten(e, world, 5))
        store = TimedStore(e, world)
        orphans = sweeper(e, world, store)
        delete = store.delete

        async def fail_second(deleted: Sequence[str]) -> None:
            if store.deleted:
                raise UnavailableError("not now")
            await delete(deleted)

        with monkeypatch.context() as patch:
            patch.setattr(store, "delete", fail_second)
            with pytest.raises(UnavailableError):
                await orphans.sweep()
        assert await orphans.sweep() == 5
        assert store.listed_from == ["objects/", keys[1]]
        assert store.deleted == [keys[:2], keys[2:4], keys[4:]]
        assert await e.store.keys() == []
        statistics = orphans.statistics()
        assert (statistics.sweeps, statistics.deleted_objects, statistics.deleted_bytes) == (1, 5, 20)
        assert await orphans.sweep() == 0
        assert store.listed_from[-1] == "objects/"


async def test_a_great_many_objects_are_listed_by_first_digit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the sweep failed under one digit and goes on."""
    monkeypatch.setattr(orphans_module, "LISTED_WHOLE_MAX", -1)
    monkeypatch.setattr(orphans_module, "DELETE_BATCH_MAX", 3)
    async with world.open() as e:
        await plant(e, *await forgotten(e, world, 40))
        store = TimedStore(e, world)
        orphans = sweeper(e, world, store)
        store.failures.append(UnavailableError("not now"))
        with pytest.raises(UnavailableError):
            await orphans.sweep()
        assert await orphans.sweep() == 40
        assert await e.store.keys() == []


async def test_the_task_tries_again_after_failures_and_ends_the_engine_on_damage(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.settings = dataclasses.replace(SETTINGS, orphan_sweep_interval_ms=0)
    caplog.set_level(logging.WARNING)
    await swept_until_damage(world, monkeypatch, "_orphans")
    assert caplog.text.count("orphan sweep failed") == 2


async def test_the_engine_sweeps_by_itself(world: World) -> None:
    world.settings = dataclasses.replace(SETTINGS, orphan_sweep_interval_ms=1, orphan_grace_ms=0)
    async with world.open() as e:
        deleted = anyio.Event()
        delete = e.store._inner.delete

        async def watched(keys: Sequence[str]) -> None:
            await delete(keys)
            deleted.set()

        e.store.delete = watched  # type: ignore[attr-defined]
        object_ids = await forgotten(e, world, 1)
        deleted = anyio.Event()
        await plant(e, *object_ids)
        with anyio.fail_after(HANG_S):
            await deleted.wait()
        assert await e.store.keys() == []
