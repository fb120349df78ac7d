"""What client processes send: values and keys."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from penstock_tools.bench._worker import keys, payloads
from penstock_tools.bench.workload import HEADER_BYTES


def test_random_part_of_a_value_includes_its_header() -> None:
    pool = payloads({"size": 100, "file": None, "random_ratio": 0.5, "pool": 3, "seed": 0})
    assert [len(body) for body in pool] == [100 - HEADER_BYTES] * 3
    assert len(set(pool)) == 3
    for body in pool:
        assert body[50 - HEADER_BYTES :] == bytes(50)
        assert any(body[: 50 - HEADER_BYTES])


def test_value_may_have_no_random_bytes() -> None:
    spec = {"size": 100, "file": None, "random_ratio": 0.1, "pool": 1, "seed": 0}
    assert payloads(spec) == [bytes(100 - HEADER_BYTES)]


def test_same_seed_gives_the_same_values() -> None:
    spec = {"size": 64, "file": None, "random_ratio": 1.0, "pool": 2, "seed": 5}
    assert payloads(spec) == payloads(spec)
    assert payloads(spec) != payloads({**spec, "seed": 6})


def test_value_from_a_file_keeps_its_end(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(bytes(range(64)))
    assert payloads({"size": 64, "file": str(path)}) == [bytes(range(HEADER_BYTES, 64))]


def test_no_key_is_no_key() -> None:
    assert keys("NO_KEY") is None


def test_round_robin_goes_through_all_keys() -> None:
    key = keys("KEY_ROUND_ROBIN")
    assert key is not None
    first = [key() for _ in range(10_000)]
    assert [key() for _ in range(10_000)] == first
    assert all(a != b for a, b in pairwise(first))


def test_nanosecond_keys_come_from_the_same_pool() -> None:
    ring, clock = keys("KEY_ROUND_ROBIN"), keys("RANDOM_NANO")
    assert ring is not None
    assert clock is not None
    assert {clock() for _ in range(100)} <= {ring() for _ in range(10_000)}
