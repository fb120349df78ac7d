"""The task of one table and the service around it, with fakes, in simulated time: no thread, no file, no clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import anyio
import pytest
from tests.unit.lake.harness import (
    DOWN,
    ENABLED,
    INTERVAL_S,
    NODE,
    EndedError,
    Stored,
    World,
    simulated,
    suppress_in_groups,
)

from penstock.errors import ClosedError, FencedError, UnavailableError
from penstock.lake.configs import LAKE_PREFIX, MAINTENANCE_REQUEST
from penstock.lake.memory import KEPT_S
from penstock.lake.source import Throttle
from penstock.lake.states import LakeState
from penstock.metadata.commands.lake import REASON_LENGTH_MAX
from penstock.metadata.commands.nodes import RegisterNode, ReleaseWal
from penstock.metadata.commands.streams import OpenStreams


def test_records_are_in_the_table_once_after_the_interval_and_a_stop_commits_the_rest() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            world.upload("orders", 5)
            await anyio.sleep(INTERVAL_S)
            assert world.tables["orders"].rows == [0, 1, 2, 3, 4]
            assert service.statistics().tables["orders"].lag_records == {"0": 0}
            world.upload("orders", 2)
        assert world.tables["orders"].rows == list(range(7))
        assert world.claim("orders").state == "stopped"

    simulated(test)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_commit() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.always["open", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(40)
            told = world.claim("orders")
            assert (told.state, told.reason) == ("failed", "the catalog is down")
            tries = world.times("open")
            pauses = [after - before for before, after in pairwise(tries)]
            for pause_s, wanted_s in zip(pauses, (1, 2, 4, 8, 8), strict=False):
                assert wanted_s * 0.8 <= pause_s <= wanted_s * 1.2
            assert len(pauses) >= 5
            del world.always["open", "orders"]
            world.upload("orders", 1)
            await anyio.sleep(20)
            assert world.claim("orders").state == "running"
            world.errors["commit", "orders"] = [DOWN]
            world.upload("orders", 1)
            began = len(world.times("open"))
            await anyio.sleep(INTERVAL_S + 2)
            assert len(world.times("open")) == began + 1, "the first pause again"
        assert world.tables["orders"].rows == [0, 1]

    simulated(test)


def test_a_table_runs_again_with_the_next_try_and_not_an_interval_later() -> None:
    """Whether records wait for it, or it has them all."""

    async def test(world: World) -> None:
        world.create("orders")
        world.alter("orders", commit_interval_ms="3600000")
        async with world.serve():
            await anyio.sleep(1)
            for rows in ([], [0]):
                world.always["open", "orders"] = DOWN
                world.alter("orders", format=f"with {len(rows)}")  # so it is opened again
                await anyio.sleep(20)
                assert world.claim("orders").state == "failed"
                if rows:
                    world.upload("orders", 1)
                del world.always["open", "orders"]
                await anyio.sleep(1.2 * world.settings.retry_max_s)
                assert world.claim("orders").state == "running"
                assert world.tables["orders"].rows == rows

    simulated(test)


def test_a_stop_ends_the_pause_after_a_failure() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, retry_min_s=1000, retry_max_s=1000)
        world.always["open", "orders"] = DOWN
        async with world.serve():
            await anyio.sleep(1)
            began = world.clock()
        assert world.clock() - began < 1
        assert world.claim("orders").state == "stopped"

    simulated(test)


def test_a_config_of_the_compactor_opens_the_table_again_with_what_was_written_committed() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve():
            await anyio.sleep(1)
            world.upload("orders", 3)
            world.alter("orders", format="json")
            await anyio.sleep(1)
            assert world.tables["orders"].rows == [0, 1, 2]
            assert len(world.times("open")) == 2
            world.alter("orders", commit_interval_ms="1000")  # the kernel's own: nothing is to be opened
            world.upload("orders", 1)
            await anyio.sleep(1.5)
            assert world.tables["orders"].rows == [0, 1, 2, 3]
            assert len(world.times("open")) == 2

    simulated(test)


def test_a_config_change_ends_the_pause_after_a_failure() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, retry_min_s=1000, retry_max_s=1000)
        world.errors["open", "orders"] = [DOWN]
        async with world.serve():
            await anyio.sleep(1)
            world.alter("orders", format="json")
            await anyio.sleep(1)
            assert len(world.times("open")) == 2
            await anyio.sleep(INTERVAL_S)
            assert world.claim("orders").state == "running"

    simulated(test)


@pytest.mark.parametrize(
    "step", ["claim", "open", "positions", "read", "write", "commit", "maintain", "tell", "memory"]
)
@pytest.mark.parametrize("how", ["disabled", "ended"])
def test_cancellation_at_each_step_leaves_no_memory_task_or_table(step: str, how: str) -> None:
    """By a topic that wants no table any more, and by an owner that ends without waiting."""

    async def test(world: World) -> None:
        world.create("orders", ENABLED | {MAINTENANCE_REQUEST: "1"})
        world.hangs = step
        if step == "memory":
            world.allocator.free = 0
        world.settings = replace(world.settings, stop_timeout_s=5)
        with suppress_in_groups(EndedError):
            async with world.serve():
                await anyio.sleep(1)
                world.upload("orders", 20)
                await anyio.sleep(INTERVAL_S)
                assert world.steps[-1][0] == step
                if how == "ended":
                    raise EndedError
                world.alter("orders", enable="false")
                await anyio.sleep(2 * KEPT_S + 1)
                assert world.allocator.used == 0
                assert world.limiter.borrowed_tokens == 0

    simulated(test)


def test_a_stop_that_hangs_ends_after_its_time() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve():
            await anyio.sleep(1)
            world.hangs = "commit"
            world.upload("orders", 1)
            began = world.clock()
        assert world.clock() - began == pytest.approx(world.settings.stop_timeout_s)

    simulated(test)


def test_a_stop_waits_little_for_a_table_that_stands() -> None:
    """What it waits for may be dead: a catalog, a registry."""

    async def test(world: World) -> None:
        world.create("bad")
        world.settings = replace(world.settings, stop_timeout_s=1000)
        world.always["open", "bad"] = UnavailableError("the catalog is away")
        async with world.serve():
            await anyio.sleep(1)
            assert world.claim("bad").state == "failed"
            del world.always["open", "bad"]
            world.hangs = "open"
            await anyio.sleep(3 * INTERVAL_S)
            began = world.clock()
        assert world.clock() - began < 10

    simulated(test)


def test_a_failing_table_stops_no_other() -> None:
    """Whatever it raises, also what isn't one of our errors."""

    async def test(world: World) -> None:
        world.create("bad")
        world.create("good")
        world.always["write", "bad"] = ValueError("a bug\nof two lines")
        async with world.serve():
            world.upload("bad", 3)
            world.upload("good", 3)
            await anyio.sleep(3 * INTERVAL_S)
            assert world.tables["good"].rows == [0, 1, 2]
            assert world.tables["bad"].rows == []
            assert world.claim("bad").reason == "the compactor raised ValueError: a bug of two lines"
            del world.always["write", "bad"]
            await anyio.sleep(3 * INTERVAL_S)
            assert world.tables["bad"].rows == [0, 1, 2]
            assert (world.claim("bad").state, world.claim("bad").reason) == ("running", "")

    simulated(test)


def test_a_compactor_that_says_it_is_closed_is_tried_again() -> None:
    """Only metadata that are closed say that the broker ends."""

    async def test(world: World) -> None:
        world.create("orders")
        world.errors["write", "orders"] = [ClosedError("the catalog's session is closed")]
        async with world.serve():
            world.upload("orders", 1)
            await anyio.sleep(INTERVAL_S + 0.5)
            assert world.claim("orders").reason == "the catalog's session is closed"
            await anyio.sleep(2 * INTERVAL_S)
            assert world.tables["orders"].rows == [0]

    simulated(test)


def test_a_table_that_is_far_behind_is_committed_all_the_same_and_hears_of_its_configs() -> None:
    """After an outage there may be hours of work."""

    async def test(world: World) -> None:
        world.create("orders")
        world.settings = replace(world.settings, stop_timeout_s=0)
        world.write_s, world.read_max = 1, 1
        async with world.serve():
            world.upload("orders", 1000)
            await anyio.sleep(1)
            world.alter("orders", maintenance_request="1")
            await anyio.sleep(3 * INTERVAL_S)
            stored = world.tables["orders"]
            assert stored.maintained == 1
            assert len(stored.rows) >= INTERVAL_S
            world.alter("orders", format="json")
            await anyio.sleep(2 * INTERVAL_S)
            assert len(world.times("open")) == 2
            assert stored.rows == list(range(len(stored.rows)))

    simulated(test)


@pytest.mark.parametrize("error", [UnavailableError, ValueError])
def test_a_reason_that_is_no_text_or_long_is_told_as_far_as_metadata_can_keep_it(
    error: type[Exception],
) -> None:
    """A name of a file may have halves of surrogate pairs; metadata that can't be written end the broker."""

    async def test(world: World) -> None:
        world.create("orders")
        world.errors["open", "orders"] = [error("file \udcff " + "x" * 10 * REASON_LENGTH_MAX)]
        async with world.serve():
            await anyio.sleep(0.5)
            told = world.claim("orders")
            assert told.state == "failed"
            assert "file ? xxx" in told.reason
            assert len(told.reason) <= REASON_LENGTH_MAX

    simulated(test)


def test_a_table_that_was_opened_by_another_is_claimed_again_only_by_the_leader() -> None:
    """Fenced, the task claims anew after a pause, as it leads; the claim of another leader ends it."""

    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            first = world.claim("orders").epoch
            world.tables["orders"].epoch = first + 1  # somebody's, who claimed nothing
            world.image.index += 5
            world.upload("orders", 2)
            await anyio.sleep(2 * INTERVAL_S + 2 * world.settings.retry_max_s)
            assert world.claim("orders").epoch > first + 1
            assert world.tables["orders"].rows == [0, 1]
            # another node leads now
            world.fold(ReleaseWal(NODE, world.node_epoch))
            world.fold(RegisterNode(2, "other"))
            stream = world.stream("orders")
            world.fold(OpenStreams(2, world.image.nodes.require(2).epoch, [stream.stream_id]))
            await anyio.sleep(1)
            assert service.statistics().tables == {}
            claims = len(world.times("claim"))
            await anyio.sleep(100)
            assert len(world.times("claim")) == claims

    simulated(test)


def test_a_table_that_a_stranger_took_is_told_of_and_not_raced_for() -> None:
    """A broker from a copy of this one's directory claims in metadata of its own: ours know of nobody."""

    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            world.tables["orders"].epoch += 1000
            claims = len(world.times("claim"))
            world.upload("orders", 1)
            await anyio.sleep(INTERVAL_S)
            told = service.statistics().tables["orders"]
            assert told.state == LakeState.FAILED
            assert told.reason.startswith(
                "somebody else owns the table: topic=orders (no broker of this cluster"
            )
            assert world.claim("orders").reason == told.reason
            assert len(world.times("claim")) == claims
            await anyio.sleep(world.settings.retry_max_s)
            assert len(world.times("claim")) == claims + 1
            world.image.index += 10_000
            await anyio.sleep(world.settings.retry_max_s + INTERVAL_S)
            assert service.statistics().tables["orders"].state == LakeState.RUNNING
            assert world.tables["orders"].rows == [0]

    simulated(test)


def test_memory_that_is_refused_is_asked_for_again_and_holds_up_one_table_only_so_long() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.allocator.free = 0
        async with world.serve():
            world.upload("orders", 2)
            await anyio.sleep(INTERVAL_S + 5)
            assert world.allocator.refused > 3
            assert world.tables["orders"].rows == []
            world.allocator.free = 2**40
            await anyio.sleep(2)
            assert world.tables["orders"].rows == [0, 1]

    simulated(test)


def test_memory_of_tables_that_come_back_for_it_is_kept_for_them_but_not_for_long() -> None:
    """Caches let go of what they are granted, and what they give back is made anew."""

    async def test(world: World) -> None:
        world.create("orders")
        world.alter("orders", commit_interval_ms="2000")
        async with world.serve():
            for number in range(10):
                world.upload("orders", 2)
                await anyio.sleep(2)
                assert world.allocator.used == world.settings.memory_bytes or not number
            assert len(world.times("commit")) > 5
            assert world.allocator.charges == 1
            await anyio.sleep(3 * KEPT_S)
            assert world.allocator.used == 0
            world.upload("orders", 2)
            await anyio.sleep(3)
            assert world.allocator.charges == 2
            assert world.allocator.used == world.settings.memory_bytes
            world.allocator.waiting = 1
            await anyio.sleep(KEPT_S)
            assert world.allocator.used == 0, "somebody waits for memory"
            world.upload("orders", 2)
            await anyio.sleep(3)
            assert world.allocator.charges == 3
            assert world.allocator.used == 0
            world.allocator.waiting = 0
            world.upload("orders", 2)
            await anyio.sleep(3)
            assert world.allocator.used == world.settings.memory_bytes
        assert world.allocator.used == 0

    simulated(test)


def test_a_gap_stops_the_topic_and_nothing_is_skipped_before_its_config_says_so() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve() as service:
            await anyio.sleep(1)
            world.always["write", "orders"] = DOWN
            world.upload("orders", 10)
            await anyio.sleep(2 * INTERVAL_S)
            world.trim("orders", 4)
            await anyio.sleep(5 * INTERVAL_S)
            del world.always["write", "orders"]
            await anyio.sleep(2 * INTERVAL_S)
            told = world.claim("orders")
            assert told.state == "gap"
            assert "position=0 start=4" in told.reason
            assert world.tables["orders"].rows == []
            world.alter("orders", gap="skip")
            await anyio.sleep(INTERVAL_S + 1)
            assert world.tables["orders"].rows == [4, 5, 6, 7, 8, 9]
            assert world.claim("orders").state == "running"
            assert service.statistics().tables["orders"].gap_records == 4

    simulated(test)


def test_what_was_read_before_retention_deleted_it_is_in_the_table() -> None:
    """Also if it waits for its commit when there is a gap behind it: it couldn't be read again."""

    async def test(world: World) -> None:
        world.create("orders")
        async with world.serve():
            await anyio.sleep(1)
            world.upload("orders", 20)
            await anyio.sleep(INTERVAL_S / 10)
            assert world.times("write")
            assert world.tables["orders"].rows == []
            world.upload("orders", 20)
            world.trim("orders", 30)
            await anyio.sleep(3 * INTERVAL_S)
            told = world.claim("orders")
            assert told.state == "gap"
            assert "position=20 start=30" in told.reason
            assert world.tables["orders"].rows == list(range(20))

    simulated(test)


@pytest.mark.parametrize("seed", range(5))
def test_beside_retention_each_record_is_in_the_table_once_or_counted_as_a_gap(seed: int) -> None:
    """Retention doesn't wait for the table."""
    random = Random(seed)

    async def test(world: World) -> None:
        world.create("orders", ENABLED | {LAKE_PREFIX + "gap": "skip"})
        world.write_s = INTERVAL_S / 3
        world.read_max = 7
        async with world.serve() as service:
            await anyio.sleep(1)
            for _ in range(100):
                world.upload("orders", random.randrange(1, 30))
                await anyio.sleep(random.random() * INTERVAL_S)
                stream = world.stream("orders")
                world.trim("orders", random.randrange(stream.start, stream.end + 1))
                if not random.randrange(10):
                    world.errors["write", "orders"] = [DOWN]
            await anyio.sleep(100 * INTERVAL_S)
            rows, of_table = world.tables["orders"].rows, service.statistics().tables["orders"]
            assert rows == sorted(set(rows))
            assert rows
            assert of_table.gap_records == world.stream("orders").end - len(rows) > 0

    simulated(test)


def test_a_state_that_was_refused_is_told_by_the_next_claim() -> None:
    """What metadata didn't take isn't known to anybody."""

    async def test(world: World) -> None:
        world.create("orders")
        world.errors["tell", "orders"] = [FencedError("claimed again")]
        async with world.serve():
            await anyio.sleep(INTERVAL_S + 1)
            assert world.claim("orders").state == "running"

    simulated(test)


def test_a_table_that_is_ahead_of_its_topic_is_refused() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.tables["orders"] = Stored(positions={0: 9})
        async with world.serve():
            await anyio.sleep(1)
            assert "ahead of its topic" in world.claim("orders").reason

    simulated(test)


def test_a_table_that_stands_is_claimed_once_however_often_it_is_tried() -> None:
    """A claim is a commit of the table, and an entry of metadata."""

    async def test(world: World) -> None:
        world.create("orders")
        world.always["write", "orders"] = DOWN
        world.upload("orders", 1)
        async with world.serve():
            await anyio.sleep(20 * INTERVAL_S)
            assert len(world.times("open")) > 5
            assert len(world.times("claim")) == 1

    simulated(test)


def test_a_table_that_is_full_is_committed_before_its_interval_is_over() -> None:
    async def test(world: World) -> None:
        world.create("orders")
        world.rows_max, world.read_max = 20, 5
        async with world.serve():
            world.upload("orders", 100)
            await anyio.sleep(1)
            stored = world.tables["orders"]
            assert len(stored.rows) >= 80, "batches that aren't whole wait for the interval"
            assert stored.commits >= 4

    simulated(test)


def test_figures_of_a_strange_compactor_are_told_as_far_as_metadata_can_keep_them() -> None:
    async def test(world: World) -> None:
        world.create("orders", ENABLED | {MAINTENANCE_REQUEST: "1"})
        world.figures = {f"\udcff{n}" + "x" * 1000: 2**70 for n in range(1000)}
        async with world.serve():
            await anyio.sleep(5)
            told = world.claim("orders").maintained
            assert told is not None
            assert Counter(told.figures.values()) == {2**63 - 1: 32}
            assert all(len(name) <= 100 for name in told.figures)

    simulated(test)


def test_what_was_read_is_paid_for_before_more_is() -> None:
    async def test(world: World) -> None:
        throttle = Throttle(100, world.clock)
        began = world.clock()
        for size in (50, 300, 10):
            await throttle.wait()
            throttle.take(size)
        assert world.clock() - began == pytest.approx(3.5)
        free = Throttle(0, world.clock)
        free.take(10**9)
        await free.wait()
        assert world.clock() - began == pytest.approx(3.5)

    simulated(test)
