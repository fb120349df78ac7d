"""Clauses of ``penstock.spi.log_cache``: many streams and entries, blocks that stay as they are, memory that goes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

from crc32c import crc32c

from penstock.spi.log_cache import StreamEntry
from penstock_conformance._env import Env
from penstock_conformance._leaks import leaves_nothing
from penstock_conformance._pace import Pace
from penstock_conformance.reference._allocator import PlainAllocator

KIND = "log_cache"

_ALL = 2**63 - 1
#: Entries of one stream: more than any count of 16 bits.
_TENS_OF_THOUSANDS = 70_000


class _Payload(bytearray):
    """Bytes of which one can see whether anybody still has them."""

    __slots__ = ("__weakref__",)


class _Log:
    """A WAL as it were: makes entries of many streams in its order, and knows what each stream has."""

    def __init__(self, allocator: PlainAllocator, wal_position: int = 0) -> None:
        self._allocator = allocator
        self._wal_position = wal_position
        self.streams: dict[int, list[StreamEntry]] = {}

    def entry(
        self,
        stream_id: int,
        records: int = 1,
        size: int = 24,
        *,
        base: int | None = None,
        time_ms: int | None = None,
        checksum: int | None = None,
    ) -> StreamEntry:
        mine = self.streams.setdefault(stream_id, [])
        if base is None:
            base = mine[-1].next_offset if mine else 0
        self._wal_position += size + 8
        made = StreamEntry(
            stream_id,
            base,
            base + records,
            base if time_ms is None else time_ms,
            memoryview(_Payload(f"{stream_id}/{base};".encode().ljust(size, b".")[:size])),
            self._allocator.charge_nowait(size, "append"),
            self._wal_position,
            checksum,
        )
        mine.append(made)
        return made

    @property
    def used_bytes(self) -> int:
        return self._allocator.statistics().used_bytes


def _ranges(entries: Sequence[StreamEntry]) -> list[tuple[int, int]]:
    return [(entry.base_offset, entry.next_offset) for entry in entries]


def _check(got: Sequence[StreamEntry], wanted: Sequence[StreamEntry], what: str) -> None:
    """The same entries, with what they were made of."""
    assert _ranges(got) == _ranges(wanted), (
        f"{what}: {len(got)} entries {_ranges(got)[:2]}... instead of {len(wanted)} {_ranges(wanted)[:2]}..."
    )
    for one, other in zip(got, wanted, strict=True):
        assert one.stream_id == other.stream_id, f"{what}: an entry of stream {one.stream_id}"
        assert bytes(one.data) == bytes(other.data), f"{what}: other bytes at offset {one.base_offset}"


async def test_frozen_block_stays_as_it_was(env: Env) -> None:
    """A frozen block's entries don't change any more; ``wal_end`` is the greatest position *in the block*."""
    async with env.open() as cache:
        log = _Log(env.account)
        frozen: list[tuple[Any, int, int, dict[int, list[StreamEntry]]]] = []
        for number in range(6):
            put = [log.entry(stream_id, size=20 + stream_id) for stream_id in (7, 2, 9, 2) for _ in range(3)]
            for entry in put:
                cache.put(entry)
            block = cache.freeze()
            streams = {
                stream_id: [entry for entry in put if entry.stream_id == stream_id] for stream_id in (7, 2, 9)
            }
            size = sum(len(entry.data) for entry in put)
            frozen.append((block, put[-1].wal_position, size, streams))
            if number == 3:
                cache.mark_uploaded(frozen[0][0])
                cache.get(2, 0, _ALL, _ALL)
            for block, wal_end, size, streams in frozen:
                assert block.wal_end == wal_end, (
                    f"the end of a frozen block moved from {wal_end} to {block.wal_end}: what lies between "
                    f"would be trimmed though nobody has uploaded it"
                )
                assert block.size_bytes == size, "the size of a frozen block changed"
                found = {stream_id: list(entries) for stream_id, entries in block.streams.items() if entries}
                assert found.keys() == streams.keys(), f"other streams in a frozen block: {sorted(found)}"
                for stream_id, entries in streams.items():
                    _check(found[stream_id], entries, "a frozen block")
            cache.put(log.entry(2))
            cache.put(log.entry(11))
            held = cache.freeze()
            assert held.wal_end == log.streams[11][-1].wal_position, (
                "the end of a block of two streams is wrong"
            )
        cache.put(log.entry(2))
        assert frozen[-1][0].wal_end == frozen[-1][1], "the end of a frozen block moved with the active one"


async def test_end_of_a_block_is_of_its_last_entry(env: Env) -> None:
    """The greatest ``wal_position`` in the block, whichever stream has it."""
    async with env.open() as cache:
        log = _Log(env.account, wal_position=2**40)
        for order in ((1, 2, 3), (3, 2, 1), (1, 2, 1), (2, 1, 2), (2, 2, 2), (5,), (1, 5)):
            for stream_id in order:
                cache.put(log.entry(stream_id))
            block = cache.freeze()
            wanted = log.streams[order[-1]][-1].wal_position
            assert block.wal_end == wanted, f"the end is {block.wal_end}, not {wanted}: streams {order}"


async def test_reads_go_on_over_many_blocks(env: Env) -> None:
    """Cached entries of [start_offset, end_offset), in offset order, however often the block was frozen."""
    async with env.open() as cache:
        log = _Log(env.account)
        blocks = []
        for number in range(40):
            for stream_id in (1, 2, 3) if number % 3 else (1, 3):
                for _ in range(1 + number % 4):
                    cache.put(log.entry(stream_id, records=1 + number % 5))
            blocks.append(cache.freeze())
        for stream_id, entries in log.streams.items():
            end = entries[-1].next_offset
            _check(cache.get(stream_id, 0, _ALL, _ALL), entries, "a read over 40 blocks")
            for start in {*range(0, end, 7), end - 1}:
                wanted = [entry for entry in entries if entry.next_offset > start]
                _check(cache.get(stream_id, start, _ALL, _ALL), wanted, f"a read over blocks from {start}")
        uploaded = [entry for block in blocks[:25] for entries in block.streams.values() for entry in entries]
        for block in blocks[:25]:
            cache.mark_uploaded(block)
        cache.evict(sum(len(entry.data) for entry in uploaded))
        gone = {entry.wal_position for entry in uploaded}
        for stream_id, entries in log.streams.items():
            left = [entry for entry in entries if entry.wal_position not in gone]
            kept = cache.get(stream_id, left[0].base_offset, _ALL, _ALL)
            _check(kept, left, "a read of what was never uploaded, after the rest was evicted")


async def test_thousands_of_streams_are_kept_apart(env: Env) -> None:
    """Entries by stream id, any number of streams; what isn't uploaded stays."""
    # Ids that are alike in their low bits, and more than fit in 32.
    ids = [
        *range(2600),
        *(2**32 + number for number in range(200)),
        *(2**48 + 64 * number for number in range(200)),
    ]
    async with env.open() as cache:
        log = _Log(env.account)
        for stream_id in ids:
            cache.put(log.entry(stream_id))
        block = cache.freeze()
        assert len(block.streams) == len(ids), f"{len(block.streams)} streams in a block of {len(ids)}"
        for stream_id in ids:
            cache.put(log.entry(stream_id, size=30))
        for stream_id in ids:
            _check(
                cache.get(stream_id, 0, _ALL, _ALL),
                log.streams[stream_id],
                f"stream {stream_id} of {len(ids)}",
            )
        assert cache.statistics().entries == 2 * len(ids), (
            f"{cache.statistics().entries} of {2 * len(ids)} entries"
        )
    assert log.used_bytes == 0, f"{log.used_bytes} bytes are still accounted for"


async def test_hundreds_of_blocks_wait_for_their_upload(env: Env) -> None:
    """Until it is uploaded a block serves reads and isn't evicted, however many wait: an outage may last."""
    async with env.open() as cache:
        log = _Log(env.account)
        blocks = []
        for number in range(300):
            for stream_id in (1, 1000 + number):
                cache.put(log.entry(stream_id))
            block = cache.freeze()
            assert block is not None, f"nothing was frozen, with {number} blocks that wait"
            blocks.append(block)
        assert cache.evict(10**9) == 0, "data that were never uploaded were dropped"
        for stream_id, entries in log.streams.items():
            _check(cache.get(stream_id, 0, _ALL, _ALL), entries, "a read with 300 blocks that wait")
        told = cache.statistics()
        assert told.frozen_bytes == log.used_bytes, f"{log.used_bytes} bytes wait: {told}"
        for number, block in enumerate(blocks):
            _check(block.streams[1000 + number], log.streams[1000 + number], f"block {number} of 300")
            assert block.wal_end == log.streams[1000 + number][0].wal_position, (
                f"the end of block {number} moved"
            )
            cache.mark_uploaded(block)
        assert cache.evict(10**9) == told.frozen_bytes, "not all that was uploaded went"
        assert log.used_bytes == 0, f"{log.used_bytes} bytes are still accounted for"


async def test_payloads_of_all_sizes_are_whole(env: Env) -> None:
    """Entries are those that were put, or others that tell the same: also large ones; ``bytes_max`` is 64 bits."""
    sizes = (2**16, 1, 2**20, 2**20 + 1, 2**22, 2**23, 2**24 + 1)
    async with env.open() as cache:
        log = _Log(env.account)
        sums = []
        known: list[int | None] = []
        for number, size in enumerate(sizes):
            entry = log.entry(1, size=size)
            entry.data[:] = body = env.random.randbytes(size)
            sums.append(crc32c(body))
            entry.checksum = sums[-1] if number % 3 else None
            known.append(entry.checksum)
            cache.put(entry)
        for when in ("active", "frozen"):
            for bytes_max in (2**31, 2**32, 2**32 + 1, _ALL):
                got = cache.get(1, 0, _ALL, bytes_max)
                found = [len(entry.data) for entry in got]
                assert found == list(sizes), f"{when}, at most {bytes_max} bytes: payloads of {found} bytes"
            assert [crc32c(entry.data) for entry in got] == sums, f"{when}: other bytes than were put"
            assert [entry.checksum for entry in got] == known, f"{when}: other checksums than were known"
            if when == "active":
                assert cache.active_bytes == sum(sizes), f"{cache.active_bytes} of {sum(sizes)} bytes"
                block = cache.freeze()
        assert block.size_bytes == sum(sizes), f"a block of {sum(sizes)} bytes has {block.size_bytes}"


async def test_long_streams_are_read_to_their_end(env: Env) -> None:
    """A run of at most ``bytes_max`` payload bytes: no other bound, and the right entry from wherever it begins."""
    async with env.open() as cache:
        log = _Log(env.account)
        for number in range(2500):
            cache.put(log.entry(1, records=1 + number % 3))
            if number == 1300:
                cache.freeze()
        entries = log.streams[1]
        _check(cache.get(1, 0, _ALL, _ALL), entries, "a read of 2,500 entries")
        for place in (0, 1, 63, 64, 65, 1023, 1024, 1025, 1299, 1300, 1301, 2498, 2499):
            entry = entries[place]
            for start in (entry.base_offset, entry.next_offset - 1):
                got = cache.get(1, start, start + 1, _ALL)
                _check(got, [entry], f"a read at entry {place} of 2,500")
            got = cache.get(1, entry.base_offset, _ALL, 24 * 1500)
            _check(got, entries[place : place + 1500], f"a read of 1,500 entries from entry {place}")
        cache.drop_stream(1)
        active = (cache.active_bytes, cache.statistics().active_bytes)
        assert active == (0, 0), (
            f"the only stream is deleted, and so many bytes are in the active block: {active}"
        )
        data = memoryview(b"more")
        pace = Pace(env.target.deadline_s / 10, _TENS_OF_THOUSANDS // 1000)
        count = 0
        while count < _TENS_OF_THOUSANDS and not pace.is_over:
            for at in range(count, count := count + 1000):
                cache.put(StreamEntry(2, at, at + 1, at, data, None, 2**40 + at))
            pace.step()
        got = cache.get(2, 0, _ALL, _ALL)
        assert [entry.base_offset for entry in got] == list(range(count)), (
            f"a read of {count} entries: {len(got)}, or others"
        )


async def test_offsets_and_positions_of_any_size(env: Env) -> None:
    """Offsets and positions are 64 bits: nothing is rounded or cut, and times are kept as they are."""
    async with env.open() as cache:
        log = _Log(env.account, wal_position=2**53)
        told: dict[int, list[tuple[int, int | None, int]]] = {}
        for stream_id, base in ((1, 2**31 - 2), (2, 2**32 - 2), (3, 2**53 - 1), (4, 2**62), (5, 0)):
            log.streams[stream_id] = []
            for number, time_ms in enumerate((-1, 0, 2**41, -(2**40), 5)):
                entry = log.entry(
                    stream_id, base=base if not number else None, time_ms=time_ms, checksum=number or None
                )
                cache.put(entry)
            for start in range(base, base + 5):
                got = cache.get(stream_id, start, start + 1, _ALL)
                _check(got, [log.streams[stream_id][start - base]], f"a read at offset {start}")
            kept = [
                (entry.time_ms, entry.checksum, entry.wal_position)
                for entry in cache.get(stream_id, base, _ALL, _ALL)
            ]
            wanted = [(entry.time_ms, entry.checksum, entry.wal_position) for entry in log.streams[stream_id]]
            assert kept == wanted, f"times, checksums or positions changed: {kept} instead of {wanted}"
            told[stream_id] = wanted
        block = cache.freeze()
        assert block.wal_end == log.streams[5][-1].wal_position, "a great position is wrong"
        for stream_id, wanted in told.items():
            kept = [(entry.time_ms, entry.checksum, entry.wal_position) for entry in block.streams[stream_id]]
            assert kept == wanted, (
                f"a freeze changed times, checksums or positions: {kept} instead of {wanted}"
            )


async def test_bytes_of_a_stream_are_more_than_32_bits(env: Env) -> None:
    """At most ``bytes_max`` payload bytes: of a stream of which there were more than 4 GiB, as of any other."""
    size = 2**24
    body = memoryview(bytes(size))
    async with env.open() as cache:
        blocks: list[Any] = []
        for number in range(2**32 // size + 6):
            cache.put(StreamEntry(1, number, number + 1, 0, body, None, (number + 1) * size))
            if number % 3 == 2:
                blocks.append(cache.freeze())
            if len(blocks) > 1:  # the newest one isn't uploaded yet, and stays
                cache.mark_uploaded(blocks.pop(0))
                cache.evict(3 * size)
            if number > 5:
                found = [len(cache.get(1, number - 2, _ALL, count * size)) for count in (1, 2, 3)]
                assert found == [1, 2, 3], (
                    f"{found} entries for the bytes of 1, 2 and 3, behind {number} others"
                )


async def test_uploads_end_in_any_order(env: Env) -> None:
    """The block's data are committed: *its* data; blocks before it that aren't uploaded stay."""
    async with env.open() as cache:
        log = _Log(env.account)
        blocks = []
        for stream_id in range(6):
            for _ in range(3):
                cache.put(log.entry(stream_id, size=500))
            blocks.append(cache.freeze())
        for place in (4, 2):
            cache.mark_uploaded(blocks[place])
            cache.evict(10**9)
            for stream_id in {0, 1, 2, 3, 5} - ({2} if place == 2 else set()):
                _check(
                    cache.get(stream_id, 0, _ALL, _ALL),
                    log.streams[stream_id],
                    f"stream {stream_id}, whose block isn't uploaded, after block {place} was",
                )
        assert log.used_bytes == sum(len(e.data) for n in (0, 1, 3, 5) for e in log.streams[n]), (
            "other memory is accounted for than that of the blocks that aren't uploaded"
        )


async def test_eviction_tells_what_it_freed(env: Env) -> None:
    """Until ``bytes_wanted`` are free or none is left; bytes freed: as many as the account got back."""
    async with env.open() as cache:
        log = _Log(env.account)
        for _ in range(30):
            for stream_id in range(20):
                cache.put(log.entry(stream_id, size=30 + stream_id))
            cache.mark_uploaded(cache.freeze())
        cache.put(log.entry(99, size=400))
        left = log.used_bytes - 400
        for wanted in (0, 1, 100, 5000, 3, 1000, 10**9, 1):
            before = log.used_bytes
            freed = cache.evict(wanted)
            assert freed == before - log.used_bytes, (
                f"evict({wanted}) says {freed}, the account got {before - log.used_bytes}"
            )
            assert freed >= min(wanted, left), f"evict({wanted}) freed {freed} though {left} could go"
            left -= freed
            counters = cache.statistics()
            assert counters.uploaded_bytes == left, (
                f"statistics say {counters.uploaded_bytes}, {left} are left"
            )
        assert left == 0, f"{left} uploaded bytes never went"
        _check(cache.get(99, 0, _ALL, _ALL), log.streams[99], "what isn't uploaded")
        assert log.used_bytes == 400, "memory that isn't uploaded went, or memory that went is accounted for"


async def test_memory_that_was_let_go_is_free(env: Env) -> None:
    """Who drops the entry releases it: nothing keeps the bytes of what was evicted, or of a cache that was closed."""
    async with env.open() as cache:
        for end in ("evicted", "closed"):
            watched: list[weakref.ref[Any]] = []
            log = _Log(env.account)
            for stream_id in (1, 2):
                for _ in range(50):
                    entry = log.entry(stream_id + (0 if end == "evicted" else 2))
                    watched.append(weakref.ref(entry.data.obj))
                    cache.put(entry)
                    cache.get(entry.stream_id, entry.base_offset, entry.next_offset, _ALL)
            if end == "evicted":
                block = cache.freeze()
                cache.mark_uploaded(block)
                cache.evict(10**9)
                del block
            del entry
            log.streams.clear()
            if end == "evicted":
                gc.collect()
                alive = sum(ref() is not None for ref in watched)
                assert alive <= 1, f"{alive} of {len(watched)} evicted payloads are still in memory"
    del cache
    gc.collect()
    alive = sum(ref() is not None for ref in watched)
    assert alive <= 1, f"{alive} of {len(watched)} payloads are still in memory after the end of the cache"


async def test_streams_that_come_again_begin_anew(env: Env) -> None:
    """The stream was deleted: its entries are never read again, also not between those of its successor."""
    async with env.open() as cache:
        log = _Log(env.account)
        for round_number in range(4):
            log.streams.pop(1, None)
            for _ in range(3):
                cache.put(log.entry(1, records=4))
            block = cache.freeze()
            for _ in range(2):
                cache.put(log.entry(1, records=4))
            cache.put(log.entry(2))
            _check(cache.get(1, 0, _ALL, _ALL), log.streams[1], f"a stream in its life {round_number + 1}")
            cache.drop_stream(1)
            assert list(cache.get(1, 0, _ALL, _ALL)) == [], "entries of a deleted stream are read"
            newest = log.streams[2][-1]
            _check(
                cache.get(2, newest.base_offset, _ALL, _ALL), [newest], "a stream beside one that was deleted"
            )
            if round_number % 2:
                cache.mark_uploaded(block)
                cache.evict(10**9)
    assert log.used_bytes == 0, f"{log.used_bytes} bytes are still accounted for"


async def test_deleted_stream_changes_no_frozen_block(env: Env) -> None:
    """``size_bytes`` and ``wal_end`` are what they were at the freeze; of a deleted stream nothing else is there."""
    async with env.open() as cache:
        log = _Log(env.account)
        blocks = []
        for order in ((2, 1), (1, 2, 1), (1,), (1, 3, 2), (2, 2, 1)):
            put = [log.entry(stream_id, records=3, size=50 + stream_id) for stream_id in order]
            for entry in put:
                cache.put(entry)
            blocks.append((cache.freeze(), put, sum(len(entry.data) for entry in put)))
        old = log.streams.pop(1)
        cache.drop_stream(1)
        _check_frozen(blocks, "a stream in them was deleted")
        for _ in range(3):  # its successor has the same offsets
            cache.put(log.entry(1, records=3, size=400))
        _check_frozen(blocks, "a stream of the same id came again")
        _check(cache.get(1, 0, _ALL, _ALL), log.streams[1], "the successor of a deleted stream")
        last = old[-1].base_offset
        assert list(cache.get(1, last, last + 1, _ALL)) == [], "an entry of a deleted stream was read"
        blocks.append((cache.freeze(), log.streams[1], 1200))
        _check_frozen(blocks, "their successor was frozen, too")
        _check(cache.get(2, 0, _ALL, _ALL), log.streams[2], "a stream beside one that was deleted")
        cache.drop_stream(3)
        _check_frozen(blocks, "another stream in them was deleted")
        for block, _, _ in blocks:
            cache.mark_uploaded(block)
            told = cache.statistics()
            cached = told.active_bytes + told.frozen_bytes + told.uploaded_bytes
            assert cached == log.used_bytes, f"{log.used_bytes} bytes are accounted for: {told}"
        before = log.used_bytes
        freed = cache.evict(10**9)
        assert freed == before - log.used_bytes, (
            f"evict says {freed}, the account got {before - log.used_bytes}"
        )
        assert log.used_bytes == 0, f"{log.used_bytes} bytes of uploaded blocks never went"
        told = cache.statistics()
        left = (told.active_bytes, told.frozen_bytes, told.uploaded_bytes, told.entries)
        assert left == (0, 0, 0, 0), f"nothing is cached any more: {told}"


def _check_frozen(blocks: Sequence[tuple[Any, Sequence[StreamEntry], int]], when: str) -> None:
    for number, (block, put, size_bytes) in enumerate(blocks):
        wal_end = put[-1].wal_position
        assert block.wal_end == wal_end, (
            f"block {number} ended at {wal_end}, and ends at {block.wal_end} since {when}"
        )
        assert block.size_bytes == size_bytes, (
            f"block {number} had {size_bytes} bytes, and has {block.size_bytes} since {when}"
        )
        for stream_id, entries in dict(block.streams).items():
            wanted = [entry for entry in put if entry.stream_id == stream_id]
            if entries or stream_id == 2:
                _check(entries, wanted, f"stream {stream_id} in block {number}, since {when}")
        assert 2 in block.streams or all(entry.stream_id != 2 for entry in put), (
            f"a stream that nobody deleted went from block {number} since {when}"
        )


async def test_opening_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""

    async def use(cache: Any) -> None:
        log = _Log(env.account)
        for _ in range(20):
            cache.put(log.entry(1))
        cache.freeze()
        cache.put(log.entry(1))

    await leaves_nothing(env, use)


async def test_many_megabytes_are_evicted_at_once(env: Env) -> None:
    """Until ``bytes_wanted`` are free or none is left, also when that is much."""
    async with env.open() as cache:
        log = _Log(env.account)
        for stream_id in range(6):
            for _ in range(4):
                cache.put(log.entry(stream_id, size=2**19))
            cache.mark_uploaded(cache.freeze())
        for wanted, left in ((9 * 2**20, 3 * 2**20), (2**40, 0)):
            freed = cache.evict(wanted)
            assert log.used_bytes <= left, (
                f"evict({wanted}) freed {freed} though more could go: {log.used_bytes} left"
            )
