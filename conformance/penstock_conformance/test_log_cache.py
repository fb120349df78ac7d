"""Clauses of ``penstock.spi.log_cache``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from penstock.errors import InvariantError
from penstock.spi.log_cache import StreamEntry
from penstock_conformance._entries import told
from penstock_conformance._env import Env, raises
from penstock_conformance.reference._allocator import PlainAllocator

KIND = "log_cache"


class _Feeder:
    """Makes entries of several streams, with charges, in WAL order."""

    def __init__(self, env: Env) -> None:
        self.allocator: PlainAllocator = env.account
        self._offsets: dict[int, int] = {}
        self._wal_position = 0

    def entry(
        self, stream_id: int, records: int = 1, size: int = 100, base: int | None = None
    ) -> StreamEntry:
        base = self._offsets.get(stream_id, 0) if base is None else base
        self._offsets[stream_id] = base + records
        self._wal_position += size + 10
        data = memoryview(f"{stream_id}/{base};".encode().ljust(size, b".")[:size])
        charge = self.allocator.charge_nowait(size, "append")
        return StreamEntry(stream_id, base, base + records, 1000 + base, data, charge, self._wal_position)

    @property
    def used_bytes(self) -> int:
        return self.allocator.statistics().used_bytes


def _ranges(entries: Sequence[StreamEntry]) -> list[tuple[int, int]]:
    return [(entry.base_offset, entry.next_offset) for entry in entries]


def _check_run(entries: Sequence[StreamEntry], stream_id: int) -> None:
    for entry in entries:
        assert entry.stream_id == stream_id, "an entry of another stream"
    for earlier, later in itertools.pairwise(entries):
        assert earlier.next_offset == later.base_offset, f"not continuous: {_ranges(entries)}"


async def test_get_returns_what_was_put(env: Env) -> None:
    """Cached entries of [start_offset, end_offset), in offset order, continuous."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        put = [feeder.entry(stream_id, records=3) for _ in range(10) for stream_id in (1, 2)]
        for entry in put:
            cache.put(entry)
        for stream_id in (1, 2):
            mine = [entry for entry in put if entry.stream_id == stream_id]
            assert told(cache.get(stream_id, 0, 10**9, 10**9)) == told(mine), "other entries than were put"
            assert told(cache.get(stream_id, 6, 15, 10**9)) == told(mine[2:5]), "other than of the range"
            assert told(cache.get(stream_id, 7, 13, 10**9)) == told(mine[2:5]), "a range inside of entries"
            assert told(cache.get(stream_id, 29, 30, 1)) == told(mine[9:]), "other than the last entry"
        assert list(cache.get(1, 30, 10**9, 10**9)) == [], "something past the end"
        assert list(cache.get(3, 0, 10**9, 10**9)) == [], "something of an unknown stream"


async def test_entries_must_continue_their_stream(env: Env) -> None:
    """It starts where the stream's newest cached entry ends; InvariantError if not, unless nothing is cached."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        cache.put(feeder.entry(1, records=5, base=100))
        for base in (106, 104, 100, 0):
            wrong = feeder.entry(1, base=base)
            with raises(InvariantError):
                cache.put(wrong)
            assert wrong.charge is not None
            wrong.charge.release()
        cache.put(feeder.entry(1, base=105))
        block = cache.freeze()
        wrong = feeder.entry(1, base=107)
        with raises(InvariantError):
            cache.put(wrong)
        assert wrong.charge is not None
        wrong.charge.release()
        cache.put(feeder.entry(2, base=7))
        cache.mark_uploaded(block)
        cache.evict(10**9)
        for base in (500, 3):  # nothing of the stream is cached any more: it goes on anywhere
            cache.put(feeder.entry(1, base=base))
            found = _ranges(cache.get(1, 0, 10**9, 10**9))
            assert found == [(base, base + 1)], f"entries from before a gap came back: {found}"
            cache.mark_uploaded(cache.freeze())
            cache.evict(10**9)


async def test_get_respects_bytes_max(env: Env) -> None:
    """At most ``bytes_max`` payload bytes but at least that one entry."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        for size in (100, 50, 200, 10, 10):
            cache.put(feeder.entry(1, size=size))
        for bytes_max, count in (
            (0, 1),
            (1, 1),
            (100, 1),
            (149, 1),
            (150, 2),
            (349, 2),
            (350, 3),
            (10**6, 5),
        ):
            got = cache.get(1, 0, 10**9, bytes_max)
            assert len(got) == count, f"bytes_max={bytes_max}: {len(got)} entries instead of {count}"


async def test_get_offers_the_newest_continuous_range(env: Env) -> None:
    """Otherwise: a run beginning at the oldest cached offset of the newest continuous range, if below the end."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        blocks = []
        for _ in range(3):
            for _ in range(4):
                cache.put(feeder.entry(1))
            blocks.append(cache.freeze())
        for _ in range(4):
            cache.put(feeder.entry(1))
        cache.mark_uploaded(blocks[0])
        assert cache.evict(400) == 400, "the block that was uploaded isn't evicted"
        assert _ranges(cache.get(1, 0, 10**9, 10**9)) == [(n, n + 1) for n in range(4, 16)]
        assert _ranges(cache.get(1, 2, 7, 10**9)) == [(4, 5), (5, 6), (6, 7)]
        assert list(cache.get(1, 0, 4, 10**9)) == [], "nothing of what was asked for is cached"
        cache.mark_uploaded(blocks[2])
        if cache.evict(400):  # out of order: a hole between block 1 and the active one
            for start, first, end in ((0, 12, 16), (5, 5, 8), (8, 12, 16), (11, 12, 16), (13, 13, 16)):
                run = _ranges(cache.get(1, start, 10**9, 10**9))
                assert run == [(n, n + 1) for n in range(first, end)], (
                    f"from {start}, with a hole at 8: {run}"
                )
        for start in range(17):
            _check_run(cache.get(1, start, 10**9, 10**9), 1)


async def test_freeze_hands_over_the_active_block(env: Env) -> None:
    """Close the active block and start a new one; None if the active block is empty."""
    async with env.open() as cache:
        assert cache.freeze() is None
        feeder = _Feeder(env)
        put = [feeder.entry(stream_id, size=30) for stream_id in (5, 3, 5, 5, 3)]
        for entry in put:
            cache.put(entry)
        assert cache.active_bytes == 150
        block = cache.freeze()
        assert cache.active_bytes == 0
        assert cache.freeze() is None
        assert block.size_bytes == 150
        assert block.wal_end == put[-1].wal_position
        streams = {stream_id: told(entries) for stream_id, entries in block.streams.items() if entries}
        assert streams == {5: told([put[0], put[2], put[3]]), 3: told([put[1], put[4]])}
        cache.put(feeder.entry(5, size=30))
        assert len(block.streams[5]) == 3, "a frozen block changed"
        assert len(cache.get(5, 0, 10**9, 10**9)) == 4, "a read across a frozen and the active block"


async def test_only_uploaded_blocks_are_evicted(env: Env) -> None:
    """Drop uploaded blocks, oldest first, until ``bytes_wanted`` are free or none is left; bytes freed."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        blocks = []
        for stream_id in range(5):
            cache.put(feeder.entry(stream_id, size=1000))
            blocks.append(cache.freeze())
        cache.put(feeder.entry(9, size=1000))
        assert cache.evict(10**9) == 0, "data that were never uploaded were dropped"
        for number in (3, 2, 1, 0):  # whichever was uploaded first
            cache.mark_uploaded(blocks[number])
        assert len(cache.get(0, 0, 1, 10**9)) == 1, (
            "an uploaded block no longer serves though nobody wants memory"
        )
        assert cache.evict(0) == cache.evict(-1000) == 0, "evicted though no memory was wanted"
        assert cache.evict(1500) == 2000, "evicted more or less than asked"
        kept = [stream_id for stream_id in range(10) if cache.get(stream_id, 0, 1, 10**9)]
        assert kept == [2, 3, 4, 9], "not the oldest were evicted"
        assert cache.evict(1000) == 1000, "evicted more or less than asked"
        assert cache.evict(10**9) == 1000
        assert cache.evict(10**9) == 0
        assert [stream_id for stream_id in range(10) if cache.get(stream_id, 0, 1, 10**9)] == [4, 9]
        assert feeder.used_bytes == 2000, "memory of evicted entries is still accounted for"


async def test_dropped_streams_are_gone(env: Env) -> None:
    """The stream was deleted: its entries are never read again; their memory is released once."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        for _ in range(2):
            for stream_id in (1, 2):
                cache.put(feeder.entry(stream_id, size=100))
            block = cache.freeze()
        for stream_id in (1, 2):
            cache.put(feeder.entry(stream_id, size=100))
        cache.drop_stream(1)
        cache.drop_stream(1)
        cache.drop_stream(77)
        assert list(cache.get(1, 0, 10**9, 10**9)) == [], "entries of a deleted stream are read"
        assert len(cache.get(2, 0, 10**9, 10**9)) == 3
        cache.mark_uploaded(block)
        cache.evict(10**9)
        cache.put(feeder.entry(1, base=0))  # a stream of this id may come again
        assert _ranges(cache.get(1, 0, 10**9, 10**9)) == [(0, 1)]
    assert feeder.used_bytes == 0


async def test_leaving_the_context_releases_everything(env: Env) -> None:
    """Leaving its context releases every charge."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        for number in range(3):
            for stream_id in (1, 2, 3):
                cache.put(feeder.entry(stream_id, size=500))
            block = cache.freeze()
            if number == 0:
                cache.mark_uploaded(block)
        cache.put(feeder.entry(1, size=500))
        assert feeder.used_bytes == 5000
        for number in range(200):  # long lists, frozen and active
            cache.put(feeder.entry(1, size=5))
            if number == 100:
                cache.freeze()
    assert feeder.used_bytes == 0, f"{feeder.used_bytes} bytes are still accounted for"


async def test_statistics_add_up(env: Env) -> None:
    """A snapshot, in payload bytes."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        cache.put(feeder.entry(1, size=10))
        first = cache.freeze()
        cache.put(feeder.entry(1, size=20))
        second = cache.freeze()
        uncharged = feeder.entry(1, size=40)
        assert uncharged.charge is not None
        uncharged.charge.release()
        uncharged.charge = None
        cache.put(uncharged)
        cache.mark_uploaded(first)
        cache.get(1, 0, 10**9, 10**9)
        cache.get(4, 0, 10**9, 10**9)
        counters = cache.statistics()
        assert (counters.uploaded_bytes, counters.frozen_bytes, counters.active_bytes) == (10, 20, 40)
        assert counters.entries == 3
        assert (counters.hits, counters.misses) == (1, 1), "each read is one of the two"
        cache.put(feeder.entry(5, base=10))
        assert cache.get(5, 0, 10**9, 10**9), "a read from before what is cached gets what is"
        counters = cache.statistics()
        assert (counters.hits, counters.misses) == (1, 2), "a read that gets something else isn't a hit"
        cache.mark_uploaded(second)
        cache.drop_stream(1)
        cache.drop_stream(5)
        cache.evict(10**9)
        told = cache.statistics()
        left = (told.active_bytes, told.frozen_bytes, told.uploaded_bytes, told.entries)
        assert left == (0, 0, 0, 0), f"all streams were deleted, and nothing of them is in memory: {told}"


async def test_random_walk_agrees_with_a_model(env: Env) -> None:
    """Any sequence of calls: every run is continuous and in range, and nothing is lost that isn't uploaded."""
    async with env.open() as cache:
        feeder = _Feeder(env)
        model: dict[int, list[tuple[int, int]]] = {stream_id: [] for stream_id in range(4)}
        safe: dict[int, int] = dict.fromkeys(model, 0)  # below this, data may have been evicted
        frozen: list[Any] = []
        for _ in range(1500):
            stream_id = env.random.randrange(4)
            action = env.random.random()
            if action < 0.5:
                entry = feeder.entry(stream_id, env.random.randrange(1, 5), env.random.randrange(20, 300))
                cache.put(entry)
                model[stream_id].append((entry.base_offset, entry.next_offset))
            elif action < 0.6:
                block = cache.freeze()
                if block is not None:
                    frozen.append(block)
            elif action < 0.7 and frozen:
                block = frozen.pop(0)
                for stream, entries in block.streams.items():
                    if entries:
                        safe[stream] = entries[-1].next_offset
                cache.mark_uploaded(block)
            elif action < 0.75:
                cache.evict(env.random.randrange(2000))
            else:
                _check_get(env, cache, stream_id, model[stream_id], safe[stream_id])
    assert feeder.used_bytes == 0


def _check_get(env: Env, cache: Any, stream_id: int, known: list[tuple[int, int]], safe: int) -> None:
    end = known[-1][1] if known else 0
    start = env.random.randrange(end + 2)
    stop = env.random.randrange(start + 1, end + 4)
    got = cache.get(stream_id, start, stop, env.random.choice((1, 500, 10**9)))
    _check_run(got, stream_id)
    assert set(_ranges(got)) <= set(known), "entries that were never put"
    for entry in got:
        assert entry.base_offset < stop, "an entry past the asked end"
        assert bytes(entry.data).startswith(f"{stream_id}/{entry.base_offset};".encode()[: len(entry.data)])
    if safe <= start < end:
        assert got, f"data that aren't uploaded are gone: offset={start}"
        assert got[0].base_offset <= start < got[0].next_offset, "the run doesn't begin with the asked offset"
    elif got:
        assert got[0].next_offset > start, "the run begins before the asked offset"
