"""What is particular to a log cache of lists."""

from __future__ import annotations

from penstock.spi.log_cache import StreamEntry
from penstock_conformance.reference import PlainLogCache


def entry(base_offset: int) -> StreamEntry:
    return StreamEntry(1, base_offset, base_offset + 10, 0, memoryview(b"x" * 10), None, base_offset + 1)


def test_a_read_goes_on_from_a_frozen_block_to_the_active_one() -> None:
    cache = PlainLogCache()
    cache.put(entry(0))
    block = cache.freeze()
    cache.put(entry(10))
    assert [found.base_offset for found in cache.get(1, 5, 100, 1000)] == [0, 10]
    assert block is not None
    assert block.wal_end == 1


def test_only_what_was_uploaded_is_evicted() -> None:
    cache = PlainLogCache()
    cache.put(entry(0))
    block = cache.freeze()
    assert block is not None
    assert cache.evict(10) == 0
    cache.mark_uploaded(block)
    assert cache.evict(10) == 10
