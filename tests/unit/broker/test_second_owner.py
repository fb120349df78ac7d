"""What two brokers leave that took streams from each other, as the rules of metadata version 1 let them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.broker.test_wal import Place, end_offset, fail

from penstock.broker import Broker
from penstock.config import load_config
from penstock.errors import ConfigError, CorruptError
from penstock.log.manager import LogManager
from penstock.metadata import commands, service
from penstock.plugins import PluginRegistry
from penstock_tools.inspection.places import open_places
from penstock_tools.inspection.verify import Problem, verify

pytestmark = pytest.mark.anyio


async def write(broker: Broker, count: int) -> None:
    async with broker.producer() as producer:
        for i in range(count):
            await producer.send("topic", value=b"%d" % i, partition=0)


@pytest.fixture
async def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, dict[str, str | int], str]:
    """Node 1 has 3 records in its WAL and was killed; node 2 gave their offsets again, and stopped cleanly."""
    place = Place(tmp_path)
    second: dict[str, str | int] = {
        "broker__node_id": 2,
        "broker__data_dir": str(tmp_path / "second"),
        "object_store__url": f"file://{tmp_path}/data/objects",
    }
    with monkeypatch.context() as patch:
        patch.setattr(commands, "METADATA_VERSION", 1)
        patch.setattr(service, "METADATA_VERSION", 1)
        with monkeypatch.context() as killed:
            killed.setattr(LogManager, "drain", fail)
            async with place.broker() as broker:
                await write(broker, 3)
                identity = broker.wal_identity
        async with place.broker(**second) as broker:
            await write(broker, 5)
            assert end_offset(broker) == 5
    return place, second, identity


async def problems(place: Place, **more: object) -> list[Problem]:
    settings: dict[str, object] = {"broker.data_dir": str(place.directory / "data"), "wal.capacity": "4MiB"}
    settings.update({key.replace("__", "."): value for key, value in more.items()})
    config = load_config(None, overrides=settings)
    async with open_places(config, PluginRegistry()) as places:
        return (await verify(places, now_ms=0, delete_delay_ms=0)).problems


async def test_verify_sees_the_ranges_that_overlap_from_the_side_of_the_killed_node(
    damaged: tuple[Place, dict[str, str | int], str],
) -> None:
    """Also below the committed end, where what the second owner wrote hides it."""
    place, _, _ = damaged
    (problem,) = await problems(place)
    assert problem.invariant == "I1"
    assert problem.place.startswith("topic-0 ")
    assert "gave their offsets again: range=[" in problem.message
    assert "opened_at=0 committed_end=5" in problem.message


async def test_verify_sees_the_wal_that_was_passed_over_from_the_side_of_the_second_node(
    damaged: tuple[Place, dict[str, str | int], str],
) -> None:
    place, second, identity = damaged
    (problem,) = await problems(place, **second)
    assert (problem.invariant, problem.place) == ("I1", "WAL of node 1")
    assert f"recorded={identity} recorded_at={place.directory}/data/wal/penstock.wal" in problem.message


async def test_neither_node_starts_on_such_a_history_unless_told_what_to_give_up(
    damaged: tuple[Place, dict[str, str | int], str],
) -> None:
    """The first one's records can't be put where others are; the second one doesn't pass over them again."""
    place, second, identity = damaged
    with pytest.raises(CorruptError, match=r"passed over .*range=\[0,"):
        await place.broker().__aenter__()
    with pytest.raises(ConfigError, match=f"the WAL of node 1 only.*accept_lost_wal={identity}"):
        await place.broker(**second).__aenter__()
    async with place.broker(**second, broker__accept_lost_wal=identity) as broker:
        assert end_offset(broker) == 5
    assert await problems(place, **second) == []
