"""Maintenance of tables by the service: when it runs, what it tells, and whom it holds up."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from tests.unit.lake.harness import (
    DOWN,
    ENABLED,
    INTERVAL_S,
    World,
    simulated,
)

from penstock.lake.configs import LAKE_PREFIX, MAINTENANCE_REQUEST


def test_a_stop_begins_no_maintenance_of_a_table_that_is_just_tried_again() -> None:
    """Cancelled, maintenance may take other tables' last commits along."""

    async def test(world: World) -> None:
        world.create("bad")
        world.settings = replace(world.settings, retry_min_s=100, retry_max_s=100)
        world.always["write", "bad"] = DOWN
        world.upload("bad", 1)
        async with world.serve():
            await anyio.sleep(INTERVAL_S + 2)
            assert world.claim("bad").state == "failed"
            world.open_s = 1.5
            world.alter("bad", maintenance_request="1")
            await anyio.sleep(1)
            assert len(world.times("open", "bad")) == 2
        assert not world.times("maintain", "bad")

    simulated(test)


def test_maintenance_runs_on_its_schedule_also_over_restarts() -> None:
    """Restarts that come more often than maintenance don't put it off."""

    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, maintenance_interval_s=100)
        async with world.serve():
            await anyio.sleep(105 + INTERVAL_S)
        assert world.tables["orders"].maintained == 1
        told = world.claim("orders").maintained
        assert told is not None
        assert (told.reason, told.saved_bytes, told.figures) == ("", 7, {"files": 3})
        for _ in range(4):
            async with world.serve():
                await anyio.sleep(50)
        assert world.tables["orders"].maintained == 3

    simulated(test)


def test_a_request_for_maintenance_is_answered_once_with_everything_committed_before() -> None:
    async def test(world: World) -> None:
        world.create("orders", ENABLED | {LAKE_PREFIX + "commit.interval.ms": "1000000"})
        async with world.serve():
            await anyio.sleep(1)
            world.upload("orders", 2)
            world.alter("orders", maintenance_request="5")
            await anyio.sleep(1)
            assert world.tables["orders"].rows == [0, 1]
            assert world.tables["orders"].maintained == 1
            told = world.claim("orders").maintained
            assert told is not None
            assert told.request == 5
            world.alter("orders", maintenance_request="4")
            await anyio.sleep(1)
        async with world.serve():
            await anyio.sleep(1)
            assert world.tables["orders"].maintained == 1
            world.alter("orders", maintenance_request="6")
            await anyio.sleep(1)
            assert world.tables["orders"].maintained == 2

    simulated(test)


def test_maintenance_that_fails_is_told_once_and_keeps_no_record_from_the_table() -> None:
    async def test(world: World) -> None:
        world.create("orders", ENABLED | {MAINTENANCE_REQUEST: "1"})
        world.always["maintain", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(5)
            told = world.claim("orders").maintained
            assert told is not None
            assert (told.request, told.reason) == (1, "the catalog is down")
            world.upload("orders", 2)
            await anyio.sleep(10 * INTERVAL_S)
            assert world.tables["orders"].rows == [0, 1]
            assert len(world.times("maintain")) == 1
            assert world.claim("orders").state == "running"

    simulated(test)


def test_a_table_that_stands_is_maintained_on_its_schedule_and_on_request() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, maintenance_interval_s=1000)
        world.always["write", "orders"] = DOWN
        world.upload("orders", 1)
        async with world.serve():
            await anyio.sleep(20 * INTERVAL_S)
            assert world.tables["orders"].maintained == 0
            world.alter("orders", maintenance_request="1")
            await anyio.sleep(1 + world.settings.retry_max_s)
            told = world.claim("orders").maintained
            assert told is not None
            assert (told.request, told.reason) == (1, "")
            assert world.claim("orders").state == "failed"
            await anyio.sleep(1100)
            assert world.tables["orders"].maintained == 2

    simulated(test)


def test_who_asks_for_maintenance_of_a_table_that_cant_be_opened_is_told_why() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.always["open", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(20 * INTERVAL_S)
            assert world.claim("orders").maintained is None
            world.alter("orders", maintenance_request="3")
            await anyio.sleep(1)
            told = world.claim("orders").maintained
            assert told is not None
            assert (told.request, told.reason) == (3, "the table can't be opened: the catalog is down")
            del world.always["open", "orders"]
            await anyio.sleep(20 * INTERVAL_S)
            assert world.tables["orders"].maintained == 0, "it was answered"

    simulated(test)


def test_maintenance_that_takes_long_keeps_no_other_topics_records_from_their_tables() -> None:
    """One table at a time is maintained; others take records meanwhile, and have their turn after it."""

    async def test(world: World) -> None:
        names = ("a", "b", "c")
        world.maintain_s = 1000
        for name in names:
            world.create(name)
        async with world.serve():
            await anyio.sleep(1)
            for name in names:
                world.alter(name, maintenance_request="1")
            await anyio.sleep(INTERVAL_S)
            began = [name for name in names if world.times("maintain", name)]
            assert len(began) == 1
            for name in names:
                world.upload(name, 2)
            await anyio.sleep(2 * INTERVAL_S)
            assert [name for name in names if world.tables[name].rows] == [
                name for name in names if name not in began
            ]
            await anyio.sleep(3000)
            assert [world.tables[name].maintained for name in names] == [1, 1, 1]
            assert [world.tables[name].rows for name in names] == [[0, 1]] * 3

    simulated(test)


@pytest.mark.parametrize("stands", [False, True])
def test_a_stop_waits_little_for_maintenance_and_commits_what_others_have(*, stands: bool) -> None:
    """It waited for all of ``drain_timeout``, and then for the compactor to leave off: 49 s."""

    async def test(world: World) -> None:
        world.settings = replace(world.settings, stop_timeout_s=1000)
        world.write_s = 5
        if stands:
            world.always["write", "a"] = DOWN
        world.maintain_s = 3600
        for name in ("a", "b"):
            world.create(name)
        world.upload("a", 1)
        async with world.serve():
            await anyio.sleep(INTERVAL_S + 2)
            world.alter("a", maintenance_request="1")
            await anyio.sleep(INTERVAL_S + world.settings.retry_max_s)
            assert world.times("maintain", "a")
            world.upload("b", 2)
            began = world.clock()
        assert world.clock() - began < 10
        assert world.tables["b"].rows == [0, 1]
        assert world.times("left", "a")[-1:] >= world.times("commit", "b")[-1:], (
            "it may end the compactor as a whole"
        )

    simulated(test)
