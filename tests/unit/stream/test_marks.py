"""Marks of metadata in the WAL: what they say, when they are written, and that the newest one stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.stream.harness import FakeWal, World

from penstock.errors import ClosedError, ConfigError, CorruptError, FullError, NotFoundError
from penstock.metadata.commands.objects import AbandonObjects
from penstock.metadata.commands.topics import DeleteTopic
from penstock.spi.wal import WalEntry
from penstock.stream.marks import Evidence, Mark, MetadataMarks, collect_evidence, encode_mark

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def marked(wal: FakeWal) -> list[int]:
    """The indexes of marks that recovery would return, in order."""
    evidence = Evidence()
    left = [entry for entry in wal.durable if entry.next_position > wal.trimmed]
    return [mark.index for entry in left if (mark := evidence.add(entry)) is not None]


def marks(wal: FakeWal) -> tuple[MetadataMarks, list[int]]:
    told: list[int] = []
    return MetadataMarks(wal, "c", node_epoch=2, now_ms=lambda: 5, told=told.append), told


def test_a_mark_is_these_bytes() -> None:
    header, name = encode_mark(Mark(7, "cluster"), 2, 5)
    assert header.hex() == "01" + f"{0:016x}" + f"{2:016x}" + f"{0:016x}" + f"{7:016x}" + f"{5:016x}"
    assert name == b"cluster"
    evidence = Evidence()
    assert evidence.add(WalEntry(0, 1, memoryview(header + name))) == Mark(7, "cluster")
    assert evidence == Evidence(7, "cluster", 0, 1)
    with pytest.raises(CorruptError, match="position=9"):
        evidence.add(WalEntry(9, 10, memoryview(header + b"\xff")))


async def test_nothing_is_told_before_the_mark_is_durable_and_one_stands_for_all_that_wait() -> None:
    wal = FakeWal()
    wal.automatic = False
    writer, told = marks(wal)
    for index in (3, 4, 5):
        writer.mark(index)
    assert (len(wal.pending), told) == (1, [])
    wal.complete()
    assert (len(wal.pending), told) == (1, [3])
    wal.complete()
    assert (len(wal.pending), told) == (0, [3, 5])
    assert marked(wal) == [3, 5]


async def test_a_wal_that_takes_nothing_holds_nobody_up_and_gets_the_mark_when_it_was_trimmed() -> None:
    wal = FakeWal()
    writer, told = marks(wal)
    writer.mark(3)
    wal.full = True
    writer.mark(4)
    assert told == [3, 4]
    end = wal.position
    trim = wal.trim

    async def trim_makes_room(position: int) -> None:
        await trim(position)
        wal.full = False

    wal.trim = trim_makes_room  # type: ignore[method-assign]
    await writer.trim(end)
    assert marked(wal) == [4]


async def test_a_mark_that_fails_is_told_of_and_comes_with_the_next_trim() -> None:
    wal = FakeWal()
    wal.automatic = False
    writer, told = marks(wal)
    writer.mark(3)
    wal.fail()
    assert told == [3]
    wal.automatic = True
    await writer.trim(0)
    assert marked(wal) == [3]


async def test_a_mark_that_had_to_go_since_there_was_no_room_to_write_it_again_is_back_after_the_trim() -> (
    None
):
    wal = FakeWal()
    writer, _ = marks(wal)
    writer.mark(3)
    wal.capacity = wal.position
    await writer.trim(wal.position)
    assert marked(wal) == [3]


async def test_a_trim_waits_for_one_mark_and_not_for_all_that_follow_it() -> None:
    wal = FakeWal()
    writer, _ = marks(wal)
    writer.mark(3)
    wal.automatic = False
    writer.mark(4)
    trimmed = anyio.Event()

    async def trim() -> None:
        await writer.trim(wal.durable[-1].next_position)
        trimmed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trim)
        await anyio.wait_all_tasks_blocked()
        writer.mark(5)
        wal.complete(1)  # 4 is durable, and 5 on its way
        with anyio.fail_after(HANG_S):
            await trimmed.wait()


async def test_a_trim_writes_the_newest_mark_again_before_it_drops_it_and_only_then() -> None:
    wal = FakeWal()
    writer, _ = marks(wal)
    writer.mark(3)
    wal.append([b"x" * 41])
    end = wal.position
    await writer.trim(end)
    assert marked(wal) == [3]
    assert wal.trimmed == end
    await writer.trim(end)
    assert wal.position > end
    written = wal.position
    await writer.trim(end)
    assert wal.position == written, "nothing is written that isn't needed"


async def test_where_a_wal_cant_be_read_what_was_read_counts() -> None:
    async def broken() -> AsyncIterator[WalEntry]:
        yield WalEntry(0, 1, memoryview(b"".join(encode_mark(Mark(7, "c"), 2, 5))))
        raise CorruptError("torn")

    async def missing(there: bool) -> AsyncIterator[WalEntry]:
        if not there:
            raise NotFoundError("there is no wal")
        yield WalEntry(0, 1, memoryview(b""))

    assert await collect_evidence(broken()) == Evidence(7, "c", 0)
    assert await collect_evidence(missing(there=False)) == Evidence()


@pytest.mark.parametrize("what", [b"", b"\1" * 24, b"\1" + bytes(15) + (2).to_bytes(8) + b"\1" + bytes(40)])
async def test_an_entry_that_no_broker_appended_is_told_apart_from_a_wal_that_cant_be_read(
    what: bytes,
) -> None:
    """The last one is a replicated log's header, and a broker's entry behind it."""

    async def foreign() -> AsyncIterator[WalEntry]:
        yield WalEntry(0, 1, memoryview(b"".join(encode_mark(Mark(7, "c"), 2, 5))))
        yield WalEntry(1, 2, memoryview(what))

    evidence = await collect_evidence(foreign())
    assert "isn't one of penstock: position=1" in evidence.foreign
    assert (evidence.index, evidence.cluster_id) == (0, "")


# -- in the engine ------------------------------------------------------------------------------------------


async def test_a_command_is_told_to_have_succeeded_when_its_mark_is_durable(world: World) -> None:
    async with world.open() as e:
        world.wal.automatic = False
        ended = anyio.Event()

        async def submit() -> None:
            await e.metadata.submit(AbandonObjects([]))
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit)
            await anyio.wait_all_tasks_blocked()
            assert not ended.is_set()
            world.wal.complete()
        assert marked(world.wal)[-1] == e.metadata.image.index
        world.wal.automatic = True


async def test_a_wal_that_marks_alone_have_filled_makes_room_for_marks_and_records(world: World) -> None:
    world.wal.capacity = 2000
    async with world.open() as e:
        for _ in range(60):
            await e.metadata.submit(AbandonObjects([]))
            await anyio.wait_all_tasks_blocked()
            assert marked(world.wal)[-1] == e.metadata.image.index
        while world.wal.position - world.wal.trimmed + 200 < world.wal.capacity:
            await e.metadata.submit(AbandonObjects([]))
        with pytest.raises(FullError):
            e.append(b"x" * 300)
        with anyio.fail_after(HANG_S):
            await e.engine.wait_for_room(0)
        e.append(b"x" * 300)


async def test_a_flush_of_a_full_wal_trims_it_once_and_not_for_ever(world: World) -> None:
    async with world.open() as e:
        e.append(b"x")
        await e.engine.flush()
        world.wal.full = True
        await e.metadata.submit(AbandonObjects([]))  # its mark has no room
        await anyio.wait_all_tasks_blocked()
        before = world.wal.trims
        await e.engine.flush()
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        world.wal.full = False
        assert world.wal.trims - before <= 2


async def test_without_commands_nothing_is_written(world: World) -> None:
    async with world.open() as e:
        e.append(b"x")
        await e.engine.flush()
        written = world.wal.position
        for _ in range(3):
            await e.engine.flush()
            e.engine._freeze()
        await anyio.wait_all_tasks_blocked()
        assert world.wal.position == written


async def test_the_newest_mark_is_there_after_every_trim(world: World) -> None:
    """Also after those of deleted streams, and at a clean stop: nothing else is left then."""
    async with world.open() as e:
        for _ in range(3):
            e.append(b"x")
            await e.engine.flush()
            assert max(marked(world.wal)) == e.metadata.image.index
        e.engine.forget_streams(await e.metadata.submit(DeleteTopic(b"t" * 16)))
        assert e.stream.stream_id not in e.metadata.image.streams
        e.append(b"of a deleted stream")
        assert await e.engine.drain()
        assert world.wal.left == []
        assert max(marked(world.wal)) == e.metadata.image.index
        with pytest.raises(ClosedError):
            e.append(b"y")


async def test_recovery_refuses_a_wal_that_knows_of_more_metadata_than_there_are(world: World) -> None:
    """Where the WAL can't be read from outside, it is found here, before anything is uploaded or trimmed."""
    async with world.open() as e:
        e.append(b"x")
        reached = e.metadata.image.index
        await e.store.delete([f"metadata/log/{reached:020d}"])
    world.wal.crash()
    before = len(world.wal.durable), world.wal.trimmed
    with pytest.raises(ExceptionGroup) as caught:
        async with world.open():
            pass
    (error,) = caught.value.exceptions
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, CorruptError)
    assert f"reached={reached} found={reached - 1}" in str(error)
    assert (len(world.wal.durable), world.wal.trimmed) == before


async def test_recovery_refuses_the_wal_of_another_cluster(world: World, tmp_path: Path) -> None:
    async with world.open():
        pass
    other = World(tmp_path, wal=world.wal)
    with pytest.raises(ExceptionGroup) as caught:
        async with other.open():
            pass
    (error,) = caught.value.exceptions
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, ConfigError)
    assert "the WAL is of another cluster" in str(error)
