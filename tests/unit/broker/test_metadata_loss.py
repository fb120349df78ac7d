"""A metadata log that lost its newest entries, or isn't there, is noticed before anything is written."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.broker.test_second_owner import problems, write
from tests.unit.broker.test_wal import Place, end_offset, fail

from penstock.broker import Broker
from penstock.errors import ConfigError, CorruptError
from penstock.log.manager import LogManager
from penstock.stream.object_format import object_key

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Run = Callable[..., Awaitable[None]]


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A broker's life in which 3 records and a topic's setting are acknowledged; ``killed`` or stopped cleanly."""

    async def run(*, killed: bool) -> None:
        with monkeypatch.context() as patch:
            if killed:
                patch.setattr(LogManager, "drain", fail)
            async with place.broker() as broker:
                await write(broker, 3)
                await broker.logs.alter_configs("topic", {"retention.ms": "123456"})

    return run


def store(place: Place) -> Path:
    return place.directory / "data" / "objects"


def entries(place: Place) -> list[Path]:
    return sorted((store(place) / "metadata" / "log").iterdir())


def snapshots(place: Place) -> list[Path]:
    return sorted((store(place) / "metadata" / "snapshot").iterdir())


def media(place: Place) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in place.directory.rglob("*")
        if path.is_file() and path.name != "penstock.lock" and ".penstock-tmp" not in path.parts
    }


async def refusal(place: Place, kind: type[Exception], **more: object) -> str:
    """What a start says that is refused; it changes nothing on any medium."""
    before = media(place)
    with pytest.raises(kind) as refused:
        await place.broker(**more).__aenter__()
    assert media(place) == before
    assert "nothing was changed" in str(refused.value)
    return str(refused.value)


def retention(broker: Broker) -> str:
    topic = broker._running.metadata.image.topics.named("topic")
    assert topic is not None
    return topic.configs["retention.ms"]


async def test_a_lost_newest_entry_after_a_crash_is_refused_and_its_way_back_works(
    place: Place, run: Run
) -> None:
    await run(killed=True)
    newest = entries(place)[-1]
    index = int(newest.name)
    kept = newest.read_bytes()
    newest.unlink()
    said = await refusal(place, CorruptError)
    assert f"found={index - 1} reached={index}" in said
    assert f"broker.accept_lost_metadata={index}:" in said
    assert str(store(place)) in said
    (problem,) = await problems(place)
    assert problem.invariant == "I7"
    assert f"reached={index} found={index - 1}" in problem.message
    await refusal(place, CorruptError, broker__accept_lost_metadata=str(index - 1))
    newest.write_bytes(kept)
    assert await problems(place) == []
    async with place.broker() as broker:
        assert retention(broker) == "123456"
        assert end_offset(broker) == 3


async def test_a_loss_that_is_accepted_gives_nothing_again(
    place: Place, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    await run(killed=True)
    async with place.broker() as broker:
        before = broker._running.metadata.image
        await broker.logs.alter_configs("topic", {"retention.ms": "7"})
    for path in snapshots(place):
        path.unlink()
    lost = entries(place)[-2:]
    for path in lost:
        path.unlink()
    index = int(lost[-1].name)
    with caplog.at_level(logging.WARNING):
        async with place.broker(broker__accept_lost_metadata=str(index)) as broker:
            assert end_offset(broker) == 3
            image = broker._running.metadata.image
            assert broker._running.node_epoch > index
            assert image.streams.next_id > before.streams.next_id
            assert image.producer_ids.next_id > before.producer_ids.next_id
    assert "METADATA ENTRIES WERE GIVEN UP" in caplog.text
    assert await problems(place) == []
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        async with place.broker(broker__accept_lost_metadata=str(index)):
            pass
    assert "isn't needed, take it out" in caplog.text


async def test_a_loss_after_a_clean_stop_is_refused(place: Place, run: Run) -> None:
    """Nothing but the mark is left in the WAL then."""
    await run(killed=False)
    assert place.entries() == []
    index = int(entries(place)[-1].name)
    entries(place)[-1].unlink()
    for path in snapshots(place):
        path.unlink()
    assert f"reached={index}" in await refusal(place, CorruptError)
    assert f"reached={index}" in (await problems(place))[0].message


async def test_a_snapshot_that_is_newer_than_the_last_entry_is_used(place: Place, run: Run) -> None:
    await run(killed=False)
    for path in entries(place)[-2:]:
        path.unlink()
    assert await problems(place) == []
    for _ in range(2):
        async with place.broker() as broker:
            assert retention(broker) == "123456"
            assert end_offset(broker) == 3
    assert await problems(place) == []


@pytest.mark.parametrize("left", [(0, 1, 40), (40,)], ids=["", "the oldest are gone by retention"])
async def test_objects_under_ids_that_were_never_given_out_are_a_loss(
    place: Place, run: Run, left: tuple[int, ...]
) -> None:
    """Also where no WAL tells: on another host, for another node."""
    await run(killed=False)
    next_id = await _next_object_id(place)
    # what a lost PrepareObjects gave out
    lost = [store(place) / object_key(next_id + offset) for offset in left]
    for path in lost:
        path.write_bytes(b"an object")
    shutil.rmtree(place.directory / "data" / "wal")
    said = await refusal(place, CorruptError)
    assert "ids that were never given out" in said
    assert object_key(next_id + left[len(left) // 2]) in said
    (name,) = re.findall(r"accept_lost_metadata=(\d+\+\d+):", said)
    async with place.broker(broker__accept_lost_metadata=name) as broker:
        assert broker._running.metadata.image.objects.next_id == next_id + 41
    async with place.broker():
        pass


async def _next_object_id(place: Place) -> int:
    """Of a broker that stopped."""
    running = []
    async with place.broker() as broker:
        running.append(broker._running.metadata)
    return running[0].image.objects.next_id


@pytest.mark.parametrize("killed", [True, False])
async def test_a_store_that_vanished_is_no_new_cluster(place: Place, run: Run, killed: bool) -> None:
    """Unmounted, mistyped, or deleted: while there is a WAL, no metadata log is begun, and no directory made."""
    await run(killed=killed)
    away = place.directory / "away"
    store(place).rename(away)
    said = await refusal(place, ConfigError)
    assert "is the store mounted" in said
    assert f"data_dir={place.directory / 'data'}" in said
    assert not store(place).exists()
    await refusal(place, ConfigError, broker__cluster_id="named")
    away.rename(store(place))
    async with place.broker() as broker:
        assert end_offset(broker) == 3
        assert retention(broker) == "123456"


async def test_the_wal_of_another_cluster_is_refused_before_anything_is_written(
    place: Place, run: Run
) -> None:
    await run(killed=True)
    other = {"object_store__url": f"file://{place.directory}/other", "wal__path": "other.wal"}
    async with place.broker(**other):
        pass
    said = await refusal(place, ConfigError, object_store__url=other["object_store__url"])
    assert "the WAL is of another cluster" in said


def wal_file(place: Place) -> Path:
    return place.directory / "data" / "wal" / "penstock.wal"


async def test_a_wal_that_was_rolled_back_is_refused_and_its_way_back_works(
    place: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata remember how far the WAL got, as the WAL remembers how far metadata got."""
    await run(killed=True)
    with monkeypatch.context() as patch:
        patch.setattr(LogManager, "drain", fail)
        async with place.broker() as broker:
            await write(broker, 3)
            old = wal_file(place).read_bytes()
            await write(broker, 1)
            for retention_ms in ("1000001", "1000002"):
                await broker.logs.alter_configs("topic", {"retention.ms": retention_ms})
    right = wal_file(place).read_bytes()
    wal_file(place).write_bytes(old)
    said = await refusal(place, CorruptError)
    assert "the WAL ends before the position that metadata recorded" in said
    assert "broker.accept_lost_wal=" in said
    assert [problem.invariant for problem in await problems(place)] == ["I1"]
    wal_file(place).write_bytes(right)
    assert await problems(place) == []
    async with place.broker() as broker:
        assert end_offset(broker) == 7


async def test_a_wal_that_was_rolled_back_can_be_moved_away_and_given_up(
    place: Place, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    await run(killed=True)
    wal_file(place).rename(wal_file(place).with_name("rolled-back"))
    (identity,) = re.findall(r"broker\.accept_lost_wal=(\w+)", str(await refusal(place, ConfigError)))
    async with place.broker(broker__accept_lost_wal=identity) as broker:
        assert end_offset(broker) == 0
        await write(broker, 2)
    async with place.broker() as broker:
        assert end_offset(broker) == 2
    assert "ACKNOWLEDGED RECORDS WERE GIVEN UP" in caplog.text


@pytest.mark.parametrize("killed", [True, False])
async def test_one_replica_of_a_wal_isnt_taken_for_the_whole_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    """Its entries are a broker's behind a header; that it knows of more metadata than there are was said once."""
    common = {"broker.data_dir": str(place.directory / "data"), "listener.bind": "127.0.0.1:0"}
    replicas = [{"plugin": "wal_block", "path": path, "capacity": "4MiB"} for path in ("one", "two")]
    composite = {**common, "wal.plugin": "wal_s3express_replicated", "wal.replicas": replicas}
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr(LogManager, "drain", fail)
        async with Broker(overrides=composite) as broker:
            await write(broker, 3)
    said = await refusal(place, ConfigError, wal__path="one")
    assert "what the WAL holds wasn't appended by a broker" in said
    assert "one replica of a WAL that is in several places" in said
    async with Broker(overrides=composite) as broker:
        assert end_offset(broker) == 3
