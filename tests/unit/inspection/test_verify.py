"""``penstock verify`` finds what was broken on purpose, and nothing in intact data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.stream.harness import Engine, World
from tests.unit.wire.batches import GOOD, with_body

from penstock.metadata.commands.nodes import ReleaseWal, UseWal
from penstock.metadata.commands.objects import PrepareObjects
from penstock.metadata.ranges import Ranges
from penstock.spi.object_store import ObjectInfo
from penstock.spi.wal import WalEntry
from penstock.stream.object_format import object_key
from penstock.wire.records import assign_offsets, build_batch
from penstock_tools.inspection.places import Places
from penstock_tools.inspection.verify import Report, check_tiling, verify

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def append(e: Engine, *values: bytes) -> None:
    batch = build_batch([(None, value, (), 1000) for value in values])
    assign_offsets(batch, e.stream.next_offset, 0)
    e.append(bytes(batch), count=len(values))


async def check(
    world: World,
    e: Engine,
    *,
    quick: bool = False,
    identify_wal: Callable[[], Awaitable[str | None]] | None = None,
) -> Report:
    places = Places(
        object_store=e.store,
        metadata_log=e.metadata_log,
        wal_name="fake",
        read_wal=world.wal.recover,
        describe_wal=None,
        identify_wal=identify_wal,
    )
    return await verify(places, now_ms=world.now_ms, delete_delay_ms=0, quick=quick)


async def filled(e: Engine) -> str:
    """Two uploads and something that only the WAL holds; the key of the first object."""
    append(e, b"a" * 300, b"b")
    append(e, b"c" * 300)
    await e.engine.flush()
    append(e, b"d")
    await e.engine.flush()
    append(e, b"e")
    return (await e.store.keys())[0]


async def test_intact_data_pass_and_everything_is_counted(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        report = await check(world, e)
        assert report.problems == []
        assert (report.objects, report.batches, report.wal_entries) == (2, 4, 1)


@pytest.mark.parametrize("position", [0, 30, 200, -1, -30, -100])
async def test_a_flipped_byte_anywhere_in_an_object_is_found(world: World, position: int) -> None:
    async with world.open() as e:
        key = await filled(e)
        data = bytearray(await e.store.get(key))
        data[position] ^= 0x40
        await e.store.put(key, [data])
        report = await check(world, e)
        assert {problem.invariant for problem in report.problems} <= {"I11", "I2"}
        assert any(key in problem.place for problem in report.problems)


@pytest.mark.parametrize("codec", range(5))
async def test_a_batch_that_no_consumer_gets_past_is_found(world: World, codec: int) -> None:
    """Stored while headers were believed: its bytes are intact, its records are not."""
    async with world.open() as e:
        append(e, b"good")
        malformed = with_body(GOOD + b"\x00", 1, codec)
        assign_offsets(malformed, e.stream.next_offset, 0)
        e.append(bytes(malformed), count=1)
        await e.engine.flush()
        report = await check(world, e)
        assert [problem.invariant for problem in report.problems] == ["I12"]
        assert "offsets=[1,2)" in report.problems[0].place
        assert "left_bytes=1" in report.problems[0].message


async def test_where_no_metadata_are_nothing_is_said_to_hold(world: World) -> None:
    """A mistyped directory, or a backup that lacks the metadata log, doesn't pass for an intact one."""
    async with world.open() as e:
        places = Places(
            object_store=e.store,
            metadata_log=e.metadata_log,
            wal_name="fake",
            read_wal=None,
            describe_wal=None,
        )
        await filled(e)
        await e.store.delete([info.key async for info in e.store.list("metadata/")])
        report = await verify(places, now_ms=world.now_ms, delete_delay_ms=0)
        assert "I7" in {problem.invariant for problem in report.problems}


async def test_a_missing_object_is_found(world: World) -> None:
    async with world.open() as e:
        key = await filled(e)
        await e.store.delete([key])
        report = await check(world, e)
        assert [(p.invariant, p.place) for p in report.problems] == [("I6", key)]


async def test_an_object_of_another_size_is_found_even_in_a_quick_run(world: World) -> None:
    async with world.open() as e:
        key = await filled(e)
        data = bytes(await e.store.get(key))
        await e.store.put(key, [data, b"!"])
        report = await check(world, e, quick=True)
        assert [problem.invariant for problem in report.problems] == ["I6"]


async def test_an_orphan_is_found_but_not_an_object_that_is_being_uploaded(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        epoch = e.metadata.image.nodes.require(1).epoch
        (object_id,) = await e.metadata.submit(PrepareObjects(1, epoch, 1, world.now_ms + 1000))
        await e.store.put(object_key(object_id), [b"half"])
        assert (await check(world, e)).problems == []
        await e.store.put(object_key(10**6), [b"orphan"])
        report = await check(world, e)
        assert [(p.invariant, p.place) for p in report.problems] == [("I6", object_key(10**6))]
        assert "never given out" in report.problems[0].message


async def test_what_becomes_of_an_orphan_is_said(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        await e.engine.trim_streams([(e.stream.stream_id, e.stream.confirmed_offset)])
        await e.engine._lifecycle.sweep()
        (forgotten,) = {1} - set(e.metadata.image.objects.ids())
        await e.store.put(object_key(forgotten), [b"late"])
        await e.store.put("objects/theirs", [b"foreign"])
        messages = {p.place: p.message for p in (await check(world, e)).problems}
    assert "a running broker deletes it" in messages.pop(object_key(forgotten))
    assert "not one of penstock's" in messages.pop("objects/theirs")
    assert messages == {}


async def test_a_hole_between_objects_and_the_wal_is_found(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        append(e, b"f")
        world.wal.lose(-2)
        report = await check(world, e)
        assert [problem.invariant for problem in report.problems] == ["I10"]
        assert "missing=[4,5)" in report.problems[0].message


@pytest.mark.parametrize("found", [None, "w2"])
async def test_another_wal_than_the_recorded_one_is_found_unless_that_one_was_left_empty(
    world: World, found: str | None
) -> None:
    async def identify() -> str | None:
        return found

    async def identify_recorded() -> str:
        return "w1"

    async with world.open() as e:
        await filled(e)
        epoch = e.metadata.image.nodes.require(1).epoch
        await e.metadata.submit(UseWal(1, epoch, "w1", "/there"))
        report = await check(world, e, identify_wal=identify)
        assert [(problem.invariant, problem.place) for problem in report.problems] == [("I1", "WAL")]
        assert f"recorded=w1 recorded_at=/there found={found or 'none'}" in report.problems[0].message
        assert (await check(world, e, identify_wal=identify_recorded)).problems == []
        await e.metadata.submit(ReleaseWal(1, epoch))
        report = await check(world, e, identify_wal=identify)
        assert report.problems == []
        assert ("there is no WAL" in report.notes) == (found is None)


async def test_a_damaged_wal_entry_is_found(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        last = world.wal.durable[-1]
        damaged = bytearray(last.data)
        damaged[-1] ^= 1
        world.wal.durable[-1] = WalEntry(last.position, last.next_position, memoryview(damaged))
        report = await check(world, e)
        assert [problem.invariant for problem in report.problems] == ["I10/I11"]


async def test_a_wal_that_cant_be_read_from_outside_is_said_so(world: World) -> None:
    async with world.open() as e:
        places = Places(
            object_store=e.store, metadata_log=e.metadata_log, wal_name="x", read_wal=None, describe_wal=None
        )
        report = await verify(places, now_ms=0, delete_delay_ms=0)
        assert report.wal_entries is None
        assert "can't be read from outside" in report.notes[0]


Break = Callable[[Ranges], None]


@pytest.mark.parametrize(
    "break_ranges",
    [
        lambda ranges: ranges.pop(0),
        lambda ranges: ranges.pop(),
        lambda ranges: ranges.insert(1, ranges[0]),
        lambda ranges: ranges.clear(),
    ],
    ids=["missing start", "missing end", "overlap", "nothing"],
)
async def test_ranges_that_dont_tile_are_found(world: World, break_ranges: Break) -> None:
    async with world.open() as e:
        await filled(e)
        break_ranges(e.metadata.image.streams.require(e.stream.stream_id).ranges)
        report = Report()
        check_tiling(e.metadata.image, report)
        assert "I2" in {problem.invariant for problem in report.problems}


async def test_an_object_that_counts_other_ranges_than_there_are_is_found(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        for held in e.metadata.image.objects.all():
            held.live_ranges += 1
        report = Report()
        check_tiling(e.metadata.image, report)
        assert {problem.invariant for problem in report.problems} == {"I6"}


async def test_a_damaged_metadata_log_is_named_and_ends_the_check(world: World) -> None:
    async with world.open() as e:
        await filled(e)
        keys = [info.key async for info in _list(e, "metadata/log/")]
        data = bytearray(await e.store.get(keys[1]))
        data[-1] ^= 1
        await e.store.put(keys[1], [data])
        report = await check(world, e)
        assert [problem.invariant for problem in report.problems] == ["I7/I11"]


async def _list(e: Engine, prefix: str) -> AsyncIterator[ObjectInfo]:
    async for info in e.store.list(prefix):
        yield info


async def test_records_that_another_wal_passed_over_are_found(world: World, tmp_path: Path) -> None:
    """I1: they were acknowledged, and no start of a broker would bring them back."""
    async with world.open() as e:
        append(e, b"only in this wal")
    other = World(tmp_path, url=world.url)
    async with other.open() as e:
        report = await check(world, e)
    assert [problem.invariant for problem in report.problems] == ["I1"]


async def test_an_object_that_goes_while_it_is_looked_at_is_no_orphan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live broker deletes and forgets what was listed a moment ago."""
    async with world.open() as e:
        await filled(e)
        await e.engine.trim_streams([(e.stream.stream_id, 3)])
        store_list = e.store._inner.list

        async def list_and_sweep(prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
            found = [info async for info in store_list(prefix, start_after)]
            if prefix == "objects/":
                await e.engine._lifecycle.sweep()
            for info in found:
                yield info

        monkeypatch.setattr(e.store._inner, "list", list_and_sweep)
        report = await check(world, e)
        assert report.problems == []
