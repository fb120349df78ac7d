"""Clauses of ``penstock.spi.partitioner``: Java's hash, many partitions, topics and keys, news that change."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from typing import Any

from penstock.spi.partitioner import PartitionLoad
from penstock_conformance._clause import clause
from penstock_conformance._env import Env
from penstock_conformance._leaks import leaves_nothing

KIND = "partitioner"

#: As much as a batch has at most: whoever sticks to a partition until one is full leaves it with the next record.
_TURN_BYTES = 2**20

#: ``org.apache.kafka.common.utils.Utils.murmur2`` of each key. The first six are those of Kafka's own tests.
_JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    # lengths 0 to 8, with bytes that Java takes for negative
    b"": 275646681,
    b"\x00": 375494588,
    b"\x00\x00": 595382058,
    b"\x00\x00\x00\x00": 850957120,
    b"\x80": 857690492,
    b"\xff": -311467685,
    b"\xff\xfe": 1717632651,
    b"\x80\x80\x80": -1134684817,
    b"\xff\xff\xff\xff\xff": -363838622,
    b"\xff\xff\xff\xff\xff\xff\xff": -71293549,
    # keys as Java's serializers write them: texts, whole and negative numbers
    b"key": -1079937367,
    b"Key": -2138801467,
    b"key ": 1890285721,
    "é".encode(): 186971271,
    "e\N{COMBINING ACUTE ACCENT}".encode(): -1650544357,
    "Straße".encode(): 403542409,
    "ключ".encode(): 2122343024,
    "日本語".encode(): 1431860170,
    "🗝".encode(): -1240477019,
    (1).to_bytes(8, "big"): 2100486060,
    (-1).to_bytes(4, "big", signed=True): 644171429,
    (-2).to_bytes(8, "big", signed=True): 1902219751,
    (-(2**31)).to_bytes(4, "big", signed=True): -65415266,
    (-(2**63)).to_bytes(8, "big", signed=True): 1290709624,
    bytes(range(256)): -1948347274,
    b"k" * 1000: -1575721008,
    # and longer than any buffer that somebody might have for them
    b"k" * 4097: -930179984,
    bytes(range(256)) * 257: -2108738617,
    b"\xff" * 100_003: -62348868,
    # that end in zeros, and begin with them
    b"a-key-of-a-number\0\0": 2095663062,
    bytes(7) + b"a-key": -1606504808,
}
#: Of numbers that are great and have no factor of two, partitions tell nearly all of the hash.
_COUNTS = (1, 2, 3, 7, 10, 64, 999, 1_000_003)


def _spread(partitioner: Any, topic: str, count: int, partition_count: int) -> Counter[int]:
    return Counter(partitioner.choose(topic, None, _TURN_BYTES, partition_count) for _ in range(count))


@clause(claims="java_hash")
async def test_keys_go_where_java_sends_them(env: Env) -> None:
    """``(murmur2(key) & 0x7fffffff) % partition_count``, of the key's bytes as they are."""
    async with env.open() as partitioner:
        for key, value in _JAVA.items():
            for partition_count in _COUNTS:
                wanted = (value & 0x7FFFFFFF) % partition_count
                got = partitioner.choose("topic", key, 10, partition_count)
                assert got == wanted, (
                    f"partition {got} instead of {wanted} of {partition_count}: key={key[:24]!r} murmur2={value}"
                )


@clause(claims="key_affinity")
async def test_keys_that_differ_little_are_others(env: Env) -> None:
    """Records with *equal* keys go together: keys are bytes, whatever texts they are, and no two of them are one."""
    pairs = [
        (b"key", b"Key"),
        (b"key", b"key "),
        (b"key", b"key\0"),
        ("é".encode(), "e\N{COMBINING ACUTE ACCENT}".encode()),
        (b"\xff", b"\xfe"),
        (b"\x80abc", b"\x81abc"),
        (b"1", b"01"),
        (b"x" * 300 + b"1", b"x" * 300 + b"2"),
        (b"x" * 300, b"x" * 300 + b"\0"),
        (bytes(16), bytes(24)),
        (b"1" + b"x" * 300, b"2" + b"x" * 300),
    ]
    async with env.open() as partitioner:
        for one, other in pairs:
            chosen = [partitioner.choose("topic", key, 10, 1_000_003) for key in (one, other)]
            assert chosen[0] != chosen[1], f"two keys are taken for one: {one[-8:]!r} and {other[-8:]!r}"


@clause(claims="key_affinity")
async def test_keys_keep_their_place_among_many(env: Env) -> None:
    """Equal keys go to equal partitions while the count stays: after thousands of others, in any opener."""
    keys = [b"key-%d" % number for number in range(3000)]
    async with env.open() as partitioner:
        first = [partitioner.choose("topic", key, 100, 48) for key in keys]
        for number in range(3000):
            partitioner.choose("topic", None, 4000, 48)
            partitioner.choose(f"topic-{number % 7}", b"other-%d" % number, 100, 48)
        assert [partitioner.choose("topic", key, 100, 48) for key in keys] == first, "keys moved"
        for count in (12, 96, 48):
            moved = [partitioner.choose("topic", key, 100, count) for key in keys]
        assert moved == first, "keys didn't come back when the count did"
    for _ in range(2):
        async with env.open() as partitioner:
            again = [partitioner.choose("topic", key, 100, 48) for key in keys[::-1]][::-1]
            assert again == first, "keys go elsewhere in another opener"


async def test_memory_does_not_grow_with_keys(env: Env) -> None:
    """Pure and synchronous: what it knows is about topics, not about every record that it ever saw."""
    async with env.open() as partitioner:
        for number in range(1000):
            partitioner.choose("topic", b"warm-%d" % number, 100, 12)
            partitioner.choose("topic", None, 100, 12)
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(10_000):
                partitioner.choose("topic", b"key-%d" % number, 100, 12)
                partitioner.choose("topic", None, 100, 12)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert grown < 200_000, f"10,000 keys take {grown} bytes for ever"


async def test_many_partitions_are_all_used(env: Env) -> None:
    """Records without a key use all partitions, over time, however many there are, none far more than others."""
    async with env.open() as partitioner:
        chosen = Counter(partitioner.choose("wide", None, _TURN_BYTES, 300) for _ in range(20 * 300))
        unused = sorted(set(range(300)) - set(chosen))
        assert not unused, f"{len(unused)} of 300 partitions get nothing, the first is {unused[0]}"
        assert max(chosen.values()) < 4 * 20, (
            f"a partition gets {max(chosen.values())} records of 20 expected"
        )


async def test_new_partitions_are_used(env: Env) -> None:
    """0 <= p < ``partition_count`` of *this* call: partitions that are added get their part."""
    async with env.open() as partitioner:
        _spread(partitioner, "topic", 500, 2)
        grown = _spread(partitioner, "topic", 4000, 6)
        assert set(grown) == set(range(6)), f"only these of 6 partitions are used: {sorted(grown)}"
        assert min(grown.values()) >= 150, f"new partitions get too little: {dict(grown)}"
        shrunk = _spread(partitioner, "topic", 2000, 3)
        assert set(shrunk) == {0, 1, 2}, f"other partitions than 3: {sorted(shrunk)}"
        again = _spread(partitioner, "topic", 4000, 6)
        assert set(again) == set(range(6)), f"of 6 partitions that are there again: {sorted(again)}"


@clause(claims="adaptive")
async def test_news_are_about_one_topic(env: Env) -> None:
    """News about the partitions of ``topic``, and of no other."""
    loads = {0: PartitionLoad(available=False), 1: PartitionLoad(queued_batches=500), 2: PartitionLoad()}
    async with env.open() as partitioner:
        for topic in ("one", "two"):
            _spread(partitioner, topic, 100, 3)
        partitioner.update_load("one", loads, 0.0)
        for number in range(300):
            partitioner.update_load(f"topic-{number}", {0: PartitionLoad()}, 0.0)
        _spread(partitioner, "one", 20, 3)
        chosen = _spread(partitioner, "one", 100, 3)
        assert not chosen[0], f"news about other topics took the place of its own: {dict(chosen)}"
        chosen = _spread(partitioner, "two", 2000, 3)
        assert set(chosen) == {0, 1, 2}, f"news about another topic were applied: {dict(chosen)}"
        assert min(chosen.values()) >= 300, f"news about another topic were applied: {dict(chosen)}"


@clause(claims="adaptive")
async def test_newest_news_count(env: Env) -> None:
    """Partitions that drain faster: now. What was slow or away and isn't any more gets its part again."""
    async with env.open() as partitioner:
        for number in range(300):
            partitioner.update_load("topic", {number % 3: PartitionLoad(available=number % 2 == 0)}, 0.0)
        for round_number, queue in enumerate((60, 2**16, 2**32)):
            slow = round_number % 3
            loads = {number: PartitionLoad(queued_batches=queue * (number == slow)) for number in range(3)}
            loads[(slow + 1) % 3] = PartitionLoad(available=False)
            partitioner.update_load("topic", loads, round_number * 100.0)
            _spread(partitioner, "topic", 20, 3)
            partitioner.update_load("topic", loads, round_number * 100.0 + 1)
            chosen = _spread(partitioner, "topic", 1500, 3)
            best = (slow + 2) % 3
            assert chosen[best] > 1000, (  # who draws two and takes the better one comes to three of four
                f"the only free partition, {best}, gets {chosen[best]} of 1500: {dict(chosen)}"
            )
        partitioner.update_load("topic", {number: PartitionLoad() for number in range(3)}, 1000.0)
        chosen = _spread(partitioner, "topic", 3000, 3)
        assert min(chosen.values(), default=0) >= 600, f"an old load still counts: {dict(chosen)}"
        assert set(chosen) == {0, 1, 2}, f"an old load still counts: {dict(chosen)}"


@clause(claims="adaptive")
async def test_news_take_the_place_of_older_ones(env: Env) -> None:
    """They take the place of those told before, whatever ``now_ms`` is: of others nothing is known."""
    away = {number: PartitionLoad(available=False, queued_batches=50) for number in (0, 2)}
    async with env.open() as partitioner:
        for now_ms in (100.0, 50.0):
            partitioner.update_load("topic", away, now_ms)
            _spread(partitioner, "topic", 20, 3)
            partitioner.update_load("topic", {}, now_ms)
            _spread(partitioner, "topic", 20, 3)
            chosen = _spread(partitioner, "topic", 3000, 3)
            assert min(chosen[number] for number in range(3)) >= 300, (
                f"older news still count: {dict(chosen)}"
            )


@clause(claims="adaptive")
async def test_news_are_taken_as_they_were_told(env: Env) -> None:
    """What the caller does with its mapping afterwards is its own affair."""
    async with env.open() as partitioner:
        loads = {number: PartitionLoad() for number in range(3)}
        partitioner.update_load("topic", loads, 0.0)
        for number in range(3):
            loads[number] = PartitionLoad(available=number == 1)
        _spread(partitioner, "topic", 20, 3)
        chosen = _spread(partitioner, "topic", 2000, 3)
        assert set(chosen) == {0, 1, 2}, f"the caller's later changes were taken for news: {dict(chosen)}"
        partitioner.update_load(
            "topic", {number: PartitionLoad(queued_batches=1) for number in range(40)}, 1.0
        )
        chosen = _spread(partitioner, "topic", 2000, 3)
        assert set(chosen) == {0, 1, 2}, (
            f"news of partitions that aren't there changed the choice: {dict(chosen)}"
        )


async def test_opening_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""

    async def use(partitioner: Any) -> None:
        _spread(partitioner, "topic", 20, 3)

    await leaves_nothing(env, use)
