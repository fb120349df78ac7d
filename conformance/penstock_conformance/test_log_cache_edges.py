"""Clauses of ``penstock.spi.log_cache``: what goes first, what outlives the cache, where a stream comes again."""

from __future__ import annotations

from typing import Any

from penstock.spi.log_cache import StreamEntry
from penstock_conformance._entries import told
from penstock_conformance._env import Env
from penstock_conformance._wanted import WantedMemory

KIND = "log_cache"

_ALL = 2**63 - 1
#: Payload bytes of the entries of some blocks.
_BLOCKS = ((300, 300, 300), (50,), (50,), (400, 10), (2000, 5, 5))


class _Log:
    """Makes entries in the order of a WAL."""

    def __init__(self, env: Env) -> None:
        self._allocator = env.account
        self._position = 0

    def entry(self, stream_id: int, base: int, records: int = 1, size: int = 20) -> StreamEntry:
        self._position += size + 8
        body = f"{stream_id}/{base}/{self._position};".encode().ljust(size, b".")[:size]
        received = bytearray(b"".join((b"before", body, b"behind")))  # as of a connection
        charge = self._allocator.charge_nowait(size, "append")
        data = memoryview(received)[6 : 6 + size]
        return StreamEntry(stream_id, base, base + records, 5, data, charge, self._position)


async def test_oldest_entries_go_first(env: Env) -> None:
    """Drop uploaded entries, oldest first: no entry goes before an older one, of whatever block, stream and size."""
    for wanted in ((1900,), (40, 500, 60), (1, 1, 1, 900), (901, 2000)):
        async with env.open() as cache:
            log = _Log(env)
            streams = list(range(100, 100 - sum(map(len, _BLOCKS)), -1))
            place = iter(streams)
            for sizes in _BLOCKS:
                for size in sizes:
                    cache.put(log.entry(next(place), 0, size=size))
                cache.mark_uploaded(cache.freeze())
            for bytes_wanted in wanted:
                cache.evict(bytes_wanted)
                kept = [bool(cache.get(stream_id, 0, 1, _ALL)) for stream_id in streams]
                assert kept == sorted(kept), (
                    f"evict {wanted}: after {bytes_wanted} entry {kept.index(True)} is cached, and a younger one "
                    f"is gone: {kept}"
                )


async def test_what_was_read_outlives_the_cache(env: Env) -> None:
    """What was returned doesn't change, whatever is put or dropped later: a response may be on its way at the end."""
    got: list[tuple[Any, list[tuple[Any, ...]]]] = []
    async with env.open() as cache:
        log = _Log(env)
        for base in range(6):
            for stream_id in (1, 2, 3):
                cache.put(log.entry(stream_id, base))
            if base == 1:
                oldest = cache.freeze()
            for stream_id in (1, 2, 3):
                found = cache.get(stream_id, 0, _ALL, _ALL)
                got.append((found, told(found)))
        for base in range(40):  # a long list, and all of it active
            cache.put(log.entry(4, base))
            found = cache.get(4, 0, _ALL, _ALL)
            got.append((found, told(found)))
        cache.mark_uploaded(oldest)
        cache.evict(10**9)
        cache.drop_stream(2)
        cache.put(log.entry(1, 6))
    for found, was in got:
        assert told(found) == was, "what a read returned has changed since the cache was left"


async def test_successor_may_begin_anywhere(env: Env) -> None:
    """A stream of this id may come again, at any offset, also where the deleted one ended: that is never read."""
    for begins in (5, 10, 11, 9, 0, 2**40):
        async with env.open() as cache:
            log = _Log(env)
            cache.put(log.entry(1, 0, records=5))
            block = cache.freeze()
            cache.put(log.entry(1, 5, records=5))
            cache.drop_stream(1)
            successor = [log.entry(1, begins, records=2), log.entry(1, begins + 2)]
            for entry in successor:
                cache.put(entry)
            for when in ("put", "frozen", "uploaded"):
                if when == "frozen":
                    cache.freeze()
                elif when == "uploaded":
                    cache.mark_uploaded(block)
                    cache.evict(10**9)
                found = told(cache.get(1, 0, _ALL, _ALL))
                assert found == told(successor), f"a successor from {begins} on, {when}, reads as {found}"
                for start in (0, 7):
                    end = start + 1
                    found = told(cache.get(1, start, end, _ALL))
                    mine = [entry for entry in successor if entry.base_offset <= start < entry.next_offset]
                    assert found == told(mine), f"a read at {start} of a successor from {begins} on: {found}"
        used = env.account.statistics().used_bytes
        assert used == 0, f"{used} bytes are still accounted for"


async def test_read_from_within_an_entry_is_a_hit(env: Env) -> None:
    """Reads that found what they asked for: wherever in an entry they begin, and however little they may have."""
    async with env.open() as cache:
        log = _Log(env)
        cache.put(log.entry(1, 100, records=10))
        cache.freeze()
        cache.put(log.entry(1, 110, records=10))
        for number, start in enumerate((100, 101, 109, 110, 119), 1):
            cache.get(1, start, start + 1, number % 2)
            told = cache.statistics()
            assert (told.hits, told.misses) == (number, 0), f"a read at {start} finds its entry: {told}"
        for number, start in enumerate((120, 121, 500), 1):  # where a reader waits for more
            got = cache.get(1, start, start + 1, _ALL)
            told = cache.statistics()
            assert (list(got), told.hits, told.misses) == ([], 5, number), (
                f"a read at {start}, behind the last entry, finds nothing: {told}"
            )


async def test_charges_of_empty_entries_go_with_them(env: Env) -> None:
    """``charge`` is the memory that goes when the entry does: also where a payload is empty, and its entry is not."""
    async with env.open() as cache:
        before = env.account.statistics().used_bytes
        for way in ("evicted", "deleted", "deleted when it was frozen", "deleted when it was uploaded"):
            log = _Log(env)
            for stream_id in (1, 2):
                entry = log.entry(stream_id, 0, size=0)
                entry.charge = env.account.charge_nowait(300, "append")
                cache.put(entry)
            uncharged = log.entry(3, 0, size=10)
            assert uncharged.charge is not None
            uncharged.charge.release()
            uncharged.charge = None
            cache.put(uncharged)
            cache.put(log.entry(3, 1, size=10))
            if way != "deleted":
                block = cache.freeze()
            if way in ("evicted", "deleted when it was uploaded"):
                cache.mark_uploaded(block)
                used = env.account.statistics().used_bytes - before
                found = [len(cache.get(stream_id, 0, 2, _ALL)) for stream_id in (1, 2, 3)]
                assert (found, used) == ([1, 1, 2], 610), (
                    f"nobody wants the memory of what was uploaded: {found} entries are there, {used} bytes charged"
                )
            if way != "evicted":
                for stream_id in (1, 2, 3):
                    cache.drop_stream(stream_id)
            if way == "deleted when it was frozen":
                cache.mark_uploaded(block)
            cache.evict(10**9)
            used = env.account.statistics().used_bytes - before
            assert used == 0, f"all entries were {way}, and {used} bytes are on the account"


async def test_memory_that_goes_may_be_wanted_at_once(env: Env) -> None:
    """``evict`` may be called while the cache gives memory back, for whoever waited for it: what goes, goes once, and
    in the thread of the event loop."""
    for way in ("evicted", "deleted", "uploaded", "left"):
        account = WantedMemory()
        try:
            async with env.open() as cache:
                blocks = []
                for base in range(4):
                    for stream_id in (1, 2, 3):
                        for number in (0, 1):
                            charge = account.charge_nowait(20, "append")
                            data = memoryview(bytes(20))
                            offset = 2 * base + number
                            cache.put(StreamEntry(stream_id, offset, offset + 1, 5, data, charge, offset + 1))
                    if base < 3:
                        blocks.append(cache.freeze())
                for block in blocks[:2]:
                    cache.mark_uploaded(block)
                account.evict = cache.evict
                if way == "evicted":
                    told = cache.evict(121) + account.freed
                    assert told == 240, (
                        f"two blocks of 120 bytes went, and {told} bytes were told to who wanted them"
                    )
                elif way == "deleted":
                    cache.drop_stream(2)
                elif way == "uploaded":
                    cache.mark_uploaded(blocks[2])
                told = cache.statistics()
                held = told.active_bytes + told.frozen_bytes + told.uploaded_bytes
                used = account.statistics().used_bytes
                assert used == held, f"{way}: {used} bytes are on the account, and {held} in memory: {told}"
                for stream_id in (1, 3):
                    last = [entry.base_offset for entry in cache.get(stream_id, 4, _ALL, _ALL)]
                    assert last == [4, 5, 6, 7] or way == "uploaded", (
                        f"{way}: of stream {stream_id} these are left that nobody has uploaded: {last}"
                    )
            used = account.statistics().used_bytes
            assert not used, f"{way}: {used} bytes are on the account when the cache was left"
            assert not account.other_threads, f"{way}: memory was given back in another thread"
        finally:
            account.close()
