"""Clauses of ``penstock.spi.partitioner``."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.spi.partitioner import PartitionLoad
from penstock_conformance._clause import clause
from penstock_conformance._env import Env, raises

KIND = "partitioner"

#: As much as a batch has at most: whoever sticks to a partition until one is full leaves it with the next record.
_TURN_BYTES = 2**20


def _keys(env: Env, count: int) -> list[bytes]:
    return [env.random.randbytes(env.random.randrange(0, 40)) for _ in range(count)]


def _spread(partitioner: Any, topic: str, count: int, partition_count: int) -> Counter[int]:
    return Counter(partitioner.choose(topic, None, _TURN_BYTES, partition_count) for _ in range(count))


async def test_partition_is_in_range(env: Env) -> None:
    """The partition, 0 <= p < ``partition_count``, for records of any key and size."""
    async with env.open() as partitioner:
        for partition_count in (1, 2, 3, 7, 64, 1000):
            for key in (None, b"", b"\x00", b"\xff" * 9, *_keys(env, 200)):
                chosen = partitioner.choose("topic", key, env.random.randrange(100_000), partition_count)
                assert type(chosen) is int, f"not an integer: {chosen!r}"
                assert 0 <= chosen < partition_count, f"no such partition: {chosen} of {partition_count}"


async def test_partition_stays_in_range_when_the_count_changes(env: Env) -> None:
    """0 <= p < ``partition_count`` of this call, whatever it was before, also right after news about more of them."""
    async with env.open() as partitioner:
        for _ in range(300):
            partition_count = env.random.randrange(1, 12)
            partitioner.update_load(
                "topic", {number: PartitionLoad(queued_batches=number) for number in range(12)}, 0.0
            )
            chosen = partitioner.choose("topic", None, env.random.randrange(20_000), partition_count)
            assert 0 <= chosen < partition_count, f"no such partition: {chosen} of {partition_count}"


async def test_no_partitions_is_refused(env: Env) -> None:
    """Raises InvalidRequestError if ``partition_count`` < 1."""
    async with env.open() as partitioner:
        for partition_count in (0, -1, -2, -(2**31)):
            for key in (None, b"key"):
                with raises(InvalidRequestError):
                    partitioner.choose("topic", key, 10, partition_count)


class _Key(bytes):
    """Bytes that Python hashes otherwise each time, as each process does."""

    def __hash__(self) -> int:
        return next(_hashes)


_hashes = itertools.count()


@clause(claims="key_affinity")
async def test_equal_keys_go_together(env: Env) -> None:
    """Records with equal keys go to equal partitions while the partition count stays; in every producer."""
    keys = _keys(env, 300)
    async with env.open() as first, env.open() as second:
        for partition_count in (2, 5, 12):
            for key in keys:
                chosen = {
                    partitioner.choose(topic, _Key(key), size, partition_count)
                    for partitioner in (first, second)
                    for topic in ("one", "two")
                    for size in (1, 100_000)
                }
                assert len(chosen) == 1, f"one key, several partitions: {sorted(chosen)}"


@clause(claims="key_affinity")
async def test_keys_spread(env: Env) -> None:
    """A partition is chosen for a record: many keys leave no partition empty."""
    async with env.open() as partitioner:
        chosen = Counter(partitioner.choose("topic", b"key-%d" % n, 10, 8) for n in range(2000))
        assert set(chosen) == set(range(8)), (
            f"partitions without records: {sorted(set(range(8)) - set(chosen))}"
        )


@clause(claims="key_affinity")
async def test_news_move_no_key(env: Env) -> None:
    """Records with equal keys go to equal partitions while the partition count stays, whatever the load."""
    async with env.open() as partitioner:
        keys = _keys(env, 100)
        before = [partitioner.choose("topic", key, 10, 4) for key in keys]
        away, long = PartitionLoad(available=False), PartitionLoad(queued_batches=99)
        for news in ({0: long, 1: away}, dict.fromkeys(range(4), away), dict.fromkeys(range(4), long), {}):
            partitioner.update_load("topic", news, 5)
            assert [partitioner.choose("topic", key, 10, 4) for key in keys] == before


async def test_keyless_records_spread(env: Env) -> None:
    """Records without a key use all partitions, over time."""
    async with env.open() as partitioner:
        chosen = _spread(partitioner, "topic", 3000, 4)
        assert set(chosen) == {0, 1, 2, 3}, (
            f"partitions without records: {sorted({0, 1, 2, 3} - set(chosen))}"
        )
        assert min(chosen.values()) >= 300, f"far from even: {dict(chosen)}"
        others: list[tuple[str, bytes | None]] = [("another", None)]
        if partitioner.capabilities.key_affinity:  # else a key makes no difference
            others.append(("topic", b"key"))
        for beside, keyed in others:  # large ones, in turns with others
            mixed: Counter[int] = Counter()
            for _ in range(800):
                mixed[partitioner.choose("topic", None, 3 * _TURN_BYTES, 4)] += 1
                partitioner.choose(beside, keyed, _TURN_BYTES, 4)
            assert min(mixed[number] for number in range(4)) >= 60, (
                f"far from even beside others: {dict(mixed)}"
            )


async def test_news_are_accepted_by_all(env: Env) -> None:
    """``update_load``: ignored by partitioners that aren't adaptive."""
    async with env.open() as partitioner:
        partitioner.update_load("never seen", {}, 0.0)
        partitioner.update_load("topic", {5: PartitionLoad(waiting_since_ms=1.0)}, 2.0)
        assert 0 <= partitioner.choose("topic", None, 10, 2) < 2


@clause(claims="adaptive")
async def test_partitions_that_drain_faster_get_more(env: Env) -> None:
    """Uses ``update_load`` to prefer partitions that drain faster (KIP-794)."""
    loads = {0: PartitionLoad(queued_batches=40), 1: PartitionLoad(), 2: PartitionLoad()}
    async with env.open() as partitioner:
        for round_number in range(60):
            partitioner.update_load("topic", loads, round_number * 10.0)
            _spread(partitioner, "topic", 5, 3)
        chosen: Counter[int] = Counter()
        for round_number in range(400):
            partitioner.update_load("topic", loads, 1000 + round_number * 10.0)
            chosen += _spread(partitioner, "topic", 5, 3)
        assert chosen[0] * 3 < chosen[1], f"the loaded partition gets its full share: {dict(chosen)}"
        assert chosen[0] * 3 < chosen[2], f"the loaded partition gets its full share: {dict(chosen)}"


@clause(claims="adaptive")
async def test_unavailable_partitions_get_nothing(env: Env) -> None:
    """``available`` is False while the partition has no reachable leader: keyless records go elsewhere."""
    loads = {0: PartitionLoad(), 1: PartitionLoad(available=False), 2: PartitionLoad()}
    async with env.open() as partitioner:
        partitioner.update_load("topic", loads, 0.0)
        _spread(partitioner, "topic", 50, 3)  # a sticky choice from before may run out first
        partitioner.update_load("topic", loads, 100.0)
        chosen = _spread(partitioner, "topic", 600, 3)
        assert chosen[1] == 0, f"records for a partition without a leader: {dict(chosen)}"
        many = {number: PartitionLoad(available=number % 20 == 7) for number in range(100)}
        partitioner.update_load("many", many, 150.0)
        away = [number for number in _spread(partitioner, "many", 300, 100) if not many[number].available]
        assert not away, f"records for partitions without a leader, of which there are 95 of 100: {away}"
        partitioner.update_load("topic", dict.fromkeys(range(3), PartitionLoad(available=False)), 200.0)
        assert sum(_spread(partitioner, "topic", 10, 3).values()) == 10, "with none available, any will do"
