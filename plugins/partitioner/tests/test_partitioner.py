"""The partitioner: hashes equal Java's, sticky is uniform over bytes, weights and availability count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_partitioner import PartitionerSettings, penstock_register_partitioner
from penstock_partitioner._murmur2 import murmur2
from penstock_partitioner._partitioner import ConfiguredPartitioner
from tests.depth import examples

from penstock.errors import InvalidRequestError
from penstock.spi import Services
from penstock.spi.partitioner import PartitionerCapabilities, PartitionLoad

# From Kafka's UtilsTest.testMurmur2.
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def make(**config: Any) -> ConfiguredPartitioner:
    return ConfiguredPartitioner(PartitionerSettings.model_validate({"seed": 7, **config}))


def bytes_by_partition(partitioner: ConfiguredPartitioner, sizes: list[int], count: int) -> Counter[int]:
    sent: Counter[int] = Counter()
    for size in sizes:
        sent[partitioner.choose("t", None, size, count)] += size
    return sent


@pytest.mark.parametrize(("key", "expected"), JAVA_VECTORS.items())
def test_murmur2_is_the_one_of_java(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected


def reference_murmur2(data: bytes) -> int:
    """The Java method, statement by statement."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    for i in range(len(data) // 4):
        k = data[4 * i] + (data[4 * i + 1] << 8) + (data[4 * i + 2] << 16) + (data[4 * i + 3] << 24)
        k = (k * m) & mask
        k ^= k >> 24
        k = (k * m) & mask
        h = (h * m) & mask
        h ^= k
    tail = len(data) & ~3
    if len(data) % 4 == 3:
        h ^= data[tail + 2] << 16
    if len(data) % 4 >= 2:
        h ^= data[tail + 1] << 8
    if len(data) % 4 >= 1:
        h ^= data[tail]
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


@given(st.binary(max_size=100))
def test_murmur2_equals_the_statements_of_the_java_method(data: bytes) -> None:
    assert murmur2(data) == reference_murmur2(data)


@pytest.mark.parametrize(("key", "expected"), JAVA_VECTORS.items())
def test_a_key_chooses_the_partition_that_java_chooses(key: bytes, expected: int) -> None:
    partitioner = make()
    for count in (1, 3, 7, 100):
        positive = expected if expected >= 0 else expected + 2**31  # Utils.toPositive: drops the sign bit
        assert partitioner.choose("t", key, 10, count) == positive % count


def test_an_empty_key_is_a_key() -> None:
    partitioner = make(batch_bytes=1)
    assert len({partitioner.choose("t", b"", 10, 50) for _ in range(100)}) == 1
    assert len({partitioner.choose("t", None, 10, 50) for _ in range(100)}) > 10


@pytest.mark.parametrize("strategy", ["sticky", "round_robin"])
def test_the_other_strategies_ignore_keys(strategy: str) -> None:
    partitioner = make(strategy=strategy, batch_bytes=1)
    assert len({partitioner.choose("t", b"key", 10, 8) for _ in range(200)}) == 8


@pytest.mark.parametrize("strategy", ["hash", "sticky", "round_robin"])
@pytest.mark.parametrize("key", [None, b"k"])
def test_without_partitions_there_is_no_choice(strategy: str, key: bytes | None) -> None:
    with pytest.raises(InvalidRequestError):
        make(strategy=strategy).choose("t", key, 1, 0)


def test_sticky_stays_until_a_batch_of_bytes_has_gone() -> None:
    partitioner = make(batch_bytes=1000)
    chosen = [partitioner.choose("t", None, 100, 1000) for _ in range(30)]
    assert [len(set(chosen[i : i + 10])) for i in (0, 10, 20)] == [1, 1, 1]
    assert len(set(chosen)) == 3


def test_topics_have_states_of_their_own() -> None:
    partitioner = make(batch_bytes=1000)
    one = [partitioner.choose("one", None, 400, 1000) for _ in range(2)]
    partitioner.choose("two", None, 5000, 1000)
    one.append(partitioner.choose("one", None, 400, 1000))
    assert len(set(one)) == 1


@settings(max_examples=examples(15), deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 6))
def test_bytes_are_spread_evenly_whatever_the_record_sizes(seed: int, count: int) -> None:
    partitioner = make(seed=seed, batch_bytes=1000)
    sizes = [1 + (i * i * 7919) % 600 for i in range(12_000)]
    sent = bytes_by_partition(partitioner, sizes, count)
    fair = sum(sizes) / count
    assert all(0.75 * fair < sent[p] < 1.25 * fair for p in range(count))


def test_weights_fall_with_the_queue_as_in_java() -> None:
    """Queues 0, 3, 1 give the weights 4, 1, 3 (the example in BuiltInPartitioner)."""
    partitioner = make(batch_bytes=1)
    partitioner.update_load("t", {p: PartitionLoad(queued_batches=q) for p, q in enumerate((0, 3, 1))}, 0)
    sent = bytes_by_partition(partitioner, [1] * 16_000, 3)
    assert sent[0] == pytest.approx(8000, rel=0.05)
    assert sent[1] == pytest.approx(2000, rel=0.1)
    assert sent[2] == pytest.approx(6000, rel=0.05)


def test_without_adaptation_queues_do_not_count_but_leaders_do() -> None:
    partitioner = make(batch_bytes=1, adaptive=False, availability_timeout="1ms")
    partitioner.update_load(
        "t",
        {
            0: PartitionLoad(queued_batches=1000, waiting_since_ms=0),
            1: PartitionLoad(),
            2: PartitionLoad(available=False),
        },
        1e6,
    )
    sent = bytes_by_partition(partitioner, [1] * 4000, 3)
    assert set(sent) == {0, 1}
    assert sent[0] == pytest.approx(2000, rel=0.1)


def test_a_partition_that_does_not_drain_is_left_out_after_the_timeout() -> None:
    partitioner = make(batch_bytes=1, availability_timeout="1s")
    loads = {0: PartitionLoad(waiting_since_ms=500.0), 1: PartitionLoad()}
    partitioner.update_load("t", loads, 1500.0)
    assert set(bytes_by_partition(partitioner, [1] * 100, 2)) == {0, 1}
    partitioner.update_load("t", loads, 1501.0)
    assert set(bytes_by_partition(partitioner, [1] * 100, 2)) == {1}
    partitioner.update_load("t", {}, 1502.0)
    assert set(bytes_by_partition(partitioner, [1] * 100, 2)) == {0, 1}


def test_a_sticky_partition_is_left_when_it_becomes_unavailable() -> None:
    partitioner = make(batch_bytes=10**9)
    first = partitioner.choose("t", None, 1, 3)
    partitioner.update_load("t", {first: PartitionLoad(available=False)}, 0)
    second = partitioner.choose("t", None, 1, 3)
    assert second != first
    partitioner.update_load("t", {}, 0)
    assert partitioner.choose("t", None, 1, 3) == second


def test_round_robin_takes_turns_among_partitions_with_a_leader() -> None:
    partitioner = make(strategy="round_robin")
    assert [partitioner.choose("t", b"k", 9, 3) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    partitioner.update_load("t", {1: PartitionLoad(available=False)}, 0)
    assert [partitioner.choose("t", None, 9, 3) for _ in range(4)] == [0, 2, 0, 2]


@given(
    strategy=st.sampled_from(["hash", "sticky", "round_robin"]),
    news=st.lists(
        st.one_of(
            st.integers(1, 6),
            st.dictionaries(
                st.integers(0, 8),
                st.builds(
                    PartitionLoad,
                    queued_batches=st.integers(0, 100),
                    available=st.booleans(),
                    waiting_since_ms=st.one_of(st.none(), st.floats(0, 100)),
                ),
            ),
        ),
        max_size=20,
    ),
    seed=st.integers(0, 100),
)
def test_a_choice_exists_is_in_range_available_if_possible_and_repeatable(
    strategy: str, news: list[int | dict[int, PartitionLoad]], seed: int
) -> None:
    one, two = (
        make(strategy=strategy, seed=seed, batch_bytes=50, availability_timeout="50ms") for _ in range(2)
    )
    loads: dict[int, PartitionLoad] = {}
    for item in news:
        if isinstance(item, dict):
            loads = item
            one.update_load("t", loads, 100.0)
            two.update_load("t", loads, 100.0)
            continue
        for _ in range(5):
            chosen = one.choose("t", None, 20, item)
            assert 0 <= chosen < item
            assert two.choose("t", None, 20, item) == chosen
            leaders = {p for p in range(item) if p not in loads or loads[p].available}
            assert not leaders or chosen in leaders
            if strategy != "round_robin":
                waits = {p: loads[p].waiting_since_ms if p in loads else None for p in leaders}
                quick = {p for p, since in waits.items() if since is None or 100.0 - since <= 50}
                assert not quick or chosen in quick


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_spec_opens_what_it_says() -> None:
    spec = penstock_register_partitioner()
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(), clock=lambda: 0.0)
    async with spec.open(spec.settings(), services) as partitioner:
        assert partitioner.capabilities == spec.capabilities
    async with spec.open(spec.settings(strategy="round_robin"), services) as partitioner:
        assert partitioner.capabilities == PartitionerCapabilities()
