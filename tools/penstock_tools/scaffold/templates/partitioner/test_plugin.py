"""What is particular to this partitioner."""

from __future__ import annotations

from penstock_conformance.reference import PlainPartitioner, murmur2


def test_the_hash_is_that_of_java() -> None:
    assert murmur2(b"21") == -973932308 & 0xFFFFFFFF
    assert murmur2("ü".encode()) == murmur2(b"\xc3\xbc")


def test_records_without_a_key_stay_for_16_kib() -> None:
    partitioner = PlainPartitioner(seed=1)
    chosen = [partitioner.choose("topic", None, 1024, 1000) for _ in range(48)]
    assert [len(set(chosen[start : start + 16])) for start in (0, 16, 32)] == [1, 1, 1]
    assert len(set(chosen)) == 3
