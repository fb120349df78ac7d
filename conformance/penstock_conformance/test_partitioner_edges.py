"""Clauses of ``penstock.spi.partitioner``: news of some partitions, in any order; clocks and seeds."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from penstock.spi.partitioner import PartitionLoad
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env

KIND = "partitioner"

#: As much as a batch has at most: whoever sticks to a partition until one is full leaves it with the next record.
_TURN_BYTES = 2**20
_AWAY = PartitionLoad(available=False)
_CLOCKS = ("time", "monotonic", "perf_counter")


def _spread(partitioner: Any, count: int, partition_count: int) -> Counter[int]:
    return Counter(partitioner.choose("topic", None, _TURN_BYTES, partition_count) for _ in range(count))


@clause(claims="adaptive")
async def test_news_are_by_partition(env: Env) -> None:
    """News by partition: in whatever order, and mapping, they are told."""
    loads = {3: PartitionLoad(), 1: _AWAY, 0: PartitionLoad(), 2: _AWAY}
    async with env.open() as partitioner:
        for told in (loads, dict(reversed(loads.items())), {2: _AWAY, 1: _AWAY}):
            partitioner.update_load("topic", MappingProxyType(told), 0.0)
            _spread(partitioner, 20, 4)  # a sticky choice from before may run out first
            chosen = _spread(partitioner, 100, 4)
            assert set(chosen) <= {0, 3}, f"1 and 2 have no leader: news={list(told)} chosen={dict(chosen)}"


@clause(claims="adaptive")
async def test_partitions_without_news_are_chosen(env: Env) -> None:
    """Of a partition that isn't among the news nothing is known: it is chosen as if nobody had ever told of it."""
    idle, loaded = PartitionLoad(), PartitionLoad(queued_batches=50)
    async with env.open() as partitioner:
        for loads in ({0: idle, 1: idle}, {2: idle}):
            partitioner.update_load("topic", loads, 0.0)
            _spread(partitioner, 20, 4)
            chosen = _spread(partitioner, 800, 4)
            assert min(chosen[number] for number in range(4)) >= 80, (
                f"all partitions are idle, news are of {sorted(loads)}, and far from even: {dict(chosen)}"
            )
        partitioner.update_load("topic", {1: _AWAY}, 0.0)
        _spread(partitioner, 20, 4)
        chosen = _spread(partitioner, 800, 4)
        assert min(chosen[number] for number in (0, 2, 3)) >= 80, f"only 1 is away, chosen: {dict(chosen)}"
        partitioner.update_load("topic", {0: loaded, 1: loaded}, 0.0)
        _spread(partitioner, 20, 4)
        chosen = _spread(partitioner, 800, 4)
        known, unknown = chosen[0] + chosen[1], chosen[2] + chosen[3]
        assert 2 * unknown > 3 * known, (
            f"of 0 and 1 there are queues, of 2 and 3 no news, and as many go to the queues: {dict(chosen)}"
        )


@clause(claims="adaptive")
async def test_two_partitioners_have_news_of_their_own(env: Env) -> None:
    """News are told to the partitioner that was opened: another one of this process knows nothing of them."""
    async with env.open() as first, env.open() as second:
        first.update_load("topic", {0: _AWAY, 1: _AWAY}, 0.0)
        second.update_load("topic", {2: _AWAY}, 0.0)
        for partitioner, fit in ((first, {2}), (second, {0, 1})):
            _spread(partitioner, 20, 3)
            chosen = set(_spread(partitioner, 100, 3))
            assert chosen == fit, (
                f"news leave {fit}, chosen were {chosen}: another one was told of the others"
            )


@clause(claims="adaptive")
async def test_news_last_until_there_are_others(env: Env) -> None:
    """News take the place of those told before; time comes from outside: by the clock alone none is forgotten."""
    async with env.open() as partitioner:
        partitioner.update_load("topic", {0: _AWAY}, 0.0)
        _spread(partitioner, 20, 3)
        later = {name: getattr(time, name)() + 10**6 for name in _CLOCKS}
        with ExitStack() as stack:  # nothing is awaited meanwhile: the event loop has its own clock
            for name, now in later.items():
                stack.enter_context(patch.object(time, name, lambda now=now: now))
                stack.enter_context(patch.object(time, f"{name}_ns", lambda now=now: int(now * 10**9)))
            chosen = _spread(partitioner, 100, 3)
        assert not chosen[0], f"days later the clock has made up for news: {dict(chosen)}"


async def test_a_seed_makes_choices_repeatable(env: Env) -> None:
    """Its settings may have ``seed`` for repeatable choices; randomness comes from nowhere else."""
    if "seed" not in env.spec().settings.model_fields:
        not_applicable("its settings have no seed")
    news = {0: _AWAY, 1: PartitionLoad(queued_batches=3), 5: PartitionLoad(queued_batches=90)}
    for seed in ("0", "7"):
        told = []
        for turn in range(2):
            random.seed(turn)
            async with env.open(settings={"seed": seed}) as partitioner:
                chosen = [partitioner.choose("topic", None, _TURN_BYTES, 12) for _ in range(40)]
                partitioner.update_load("topic", news, 0.0)
                for number in range(40):
                    chosen.append(partitioner.choose("topic", None, _TURN_BYTES, 12))
                    partitioner.choose("topic", b"%d" % number, 10, 12)
                    random.random()  # others draw, too
                told.append(chosen)
        assert told[0] == told[1], f"seed {seed} gave {told[0][:6]}..., and {told[1][:6]}... the second time"
        async with (
            env.open(settings={"seed": seed}) as first,
            env.open(settings={"seed": seed}) as second,
        ):
            for number in range(40):
                pair = [each.choose("topic", None, _TURN_BYTES, 12) for each in (first, second)]
                assert pair == [told[0][number]] * 2, (
                    f"of two partitioners of seed {seed} in turns choice {number} is {pair}, and {told[0][number]} "
                    f"of one alone"
                )
