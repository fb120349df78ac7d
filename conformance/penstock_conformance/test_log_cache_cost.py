"""Clauses of ``penstock.spi.log_cache`` about continuity: what a long use leaves."""

from __future__ import annotations

from typing import Any

from penstock.spi.log_cache import StreamEntry
from penstock_conformance._clause import clause
from penstock_conformance._env import Env
from penstock_conformance._growth import kept_bytes

KIND = "log_cache"

_CYCLES = 200
_STREAMS = 20
_LASTING = 10**6
_ALL = 2**63 - 1
#: Of a stream that is gone nothing may stay, be it a number under its own number.
_STREAM_BYTES = 30


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Of streams that come and go, blocks that were uploaded and reads, whatever they found, nothing stays."""
    async with env.open() as cache:
        for number in range(_CYCLES):
            _come_and_go(cache, number)
        async with kept_bytes() as grown:
            for number in range(_CYCLES, 2 * _CYCLES):
                _come_and_go(cache, number)
            kept = grown()
        cache.drop_stream(_LASTING)
        entries = cache.statistics().entries
    assert not entries, f"everything was evicted or deleted, and {entries} entries are cached"
    count = _CYCLES * _STREAMS
    assert kept < count * _STREAM_BYTES, f"{count} streams came and went, and {kept} bytes stay"


def _come_and_go(cache: Any, number: int) -> None:
    streams = range(number * _STREAMS, (number + 1) * _STREAMS)
    for stream_id in streams:
        cache.put(StreamEntry(stream_id, 7, 9, 0, memoryview(b"first"), None, 2 * stream_id + 1))
        cache.put(StreamEntry(stream_id, 9, 10, 0, memoryview(b"second"), None, 2 * stream_id + 2))
        assert len(cache.get(stream_id, 7, 10, 1000)) == 2
        assert not cache.get(stream_id, 10, 11, 1000)
    cache.drop_stream(streams[0])
    block = cache.freeze()
    for offset in streams:  # one is read to its end all the time
        cache.put(
            StreamEntry(_LASTING, offset, offset + 1, 0, memoryview(b"lasting"), None, 2 * streams[-1] + 3)
        )
        assert len(cache.get(_LASTING, offset, _ALL, 1000)) == 1
    cache.put(StreamEntry(streams[1], 10, 11, 0, memoryview(b"third"), None, 10**9 + number))
    cache.drop_stream(streams[1])
    cache.mark_uploaded(block)
    cache.evict(2**40)
