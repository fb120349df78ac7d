"""When the garbage collector runs: young passes always, a full one by time and by what nobody accounts for."""

from __future__ import annotations

import gc

import pytest

from penstock.broker._collector import Collector

MIB = 1024 * 1024


class World:
    """A process whose memory, time and collector the test steers."""

    def __init__(self) -> None:
        self.unaccounted = 100 * MIB
        self.now = 0.0
        self.full_s = 0.05
        #: Memory in cycles, freed by a full pass; and what was frozen before it was garbage, by a whole pass only.
        self.cycles = 0
        self.frozen_cycles = 0
        self.is_frozen = True
        self.whole = 0
        self.passes: list[int] = []
        self.collector = Collector(
            lambda: self.unaccounted,
            clock=lambda: self.now,
            collect=self.collect,
            freeze=self.freeze,
            unfreeze=self.unfreeze,
        )

    def freeze(self) -> None:
        self.is_frozen = True

    def unfreeze(self) -> None:
        self.is_frozen = False

    def collect(self, generation: int) -> int:
        self.passes.append(generation)
        if generation < 2:
            return 0
        self.now += self.full_s
        self.unaccounted -= self.cycles
        self.cycles = 0
        if not self.is_frozen:
            self.whole += 1
            self.unaccounted -= self.frozen_cycles
            self.frozen_cycles = 0
        return 7

    def leak(self, size: int) -> None:
        self.cycles += size
        self.unaccounted += size

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.now += 1
            self.collector.tick()

    @property
    def full(self) -> int:
        return self.passes.count(2)


@pytest.fixture
def world() -> World:
    return World()


def test_young_objects_are_looked_at_every_second_and_older_ones_every_ten(world: World) -> None:
    world.tick(30)
    assert world.passes == ([0] * 9 + [1]) * 3


def test_cycles_that_hold_memory_are_collected_within_seconds(world: World) -> None:
    world.tick(10)
    for _ in range(15):
        world.leak(63 * MIB)
        world.tick(1)
    world.tick(10)
    assert world.cycles == 0
    assert world.unaccounted == 100 * MIB


def test_small_cycles_are_collected_within_minutes(world: World) -> None:
    world.leak(1000)
    world.tick(299)
    assert world.full == 0
    world.tick(1)
    assert (world.full, world.cycles) == (1, 0)


def test_memory_that_is_in_use_is_looked_through_once(world: World) -> None:
    world.unaccounted += 500 * MIB
    world.tick(200)
    assert world.full == 1


def test_full_passes_take_a_hundredth_of_the_time_at_most(world: World) -> None:
    world.full_s = 2.0
    for _ in range(1000):
        world.leak(100 * MIB)
        world.tick(1)
    assert world.full * world.full_s <= 0.01 * world.now + world.full_s


def test_what_was_in_use_at_the_last_pass_is_looked_at_when_much_has_come_or_after_long(world: World) -> None:
    """A pass over all objects of ten thousand topics holds everybody for 200 ms."""
    for _ in range(3):
        world.leak(30 * MIB)
        world.unaccounted += 1 * MIB
        world.tick(60)
    assert (world.full, world.whole) == (3, 0)
    world.frozen_cycles = 100 * MIB
    world.unaccounted += world.frozen_cycles
    world.tick(10)
    assert (world.whole, world.frozen_cycles, world.is_frozen) == (1, 0, True)
    world.frozen_cycles = 25 * MIB
    world.unaccounted += world.frozen_cycles
    world.tick(250)
    assert (world.whole, world.frozen_cycles) == (1, 25 * MIB)
    world.tick(310)
    assert (world.whole, world.frozen_cycles) == (2, 0)
    world.frozen_cycles = 1 * MIB
    world.unaccounted += world.frozen_cycles
    world.tick(3_200)
    assert (world.whole, world.full > 10) == (2, True)
    world.tick(900)
    assert (world.whole, world.frozen_cycles) == (3, 0)


def test_statistics_tell_how_long_everything_stood(world: World) -> None:
    world.leak(100 * MIB)
    world.tick(2)
    statistics = world.collector.statistics()
    assert (statistics.full_passes, statistics.full_ms_last, statistics.full_ms_max) == (1, 50.0, 50.0)
    assert (statistics.collected, statistics.whole_passes) == (7, 1)


def test_what_requests_make_is_looked_at_some_hundreds_of_objects_at_a_time(world: World) -> None:
    looked: list[int] = []

    def begins(phase: str, facts: dict[str, int]) -> None:
        if phase == "start":
            looked.append(sum(len(gc.get_objects(generation=at)) for at in range(facts["generation"] + 1)))

    thresholds = gc.get_threshold()
    world.collector.start()
    gc.callbacks.append(begins)
    try:
        made: list[list[object]] = [[] for _ in range(150_000)]
    finally:
        gc.callbacks.remove(begins)
        gc.set_threshold(*thresholds)
        # what is frozen stays so, as all that the run began with (tests/run.py)
    assert len(made) == 150_000
    assert looked
    assert max(looked) < 2_000
