"""Clauses of ``penstock.spi.log_cache``, all at once: random operations, held against a model of what is cached."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from penstock.checksum import checksum
from penstock.errors import InvariantError
from penstock.spi.log_cache import LogCacheStatistics, StreamEntry
from penstock_conformance._entries import told
from penstock_conformance._env import Env
from penstock_conformance._figures import Figures
from penstock_conformance._leaks import errors_come_out
from penstock_conformance.reference._allocator import PlainAllocator

KIND = "log_cache"

_STEPS = 1450
_LIVES = 40
#: Entries of one stream in one block.
_LONG_RUN = 300
_STREAMS = (0, 1, 2, 2**31, 2**33 + 1)
_ALL = 2**63 - 1
_SIZES = (0, 1, 40, 300, 5000)
#: Offsets of an entry: compaction leaves few records of a great many.
_RECORDS = (1, 1, 7, 1000, 1000, 2**31 + 5)
_TIMES = (-1, -(2**63), -2, 0, 1_700_000_000_000, 2**63 - 1)


class _Block:
    """A frozen block, and what it was when it was frozen."""

    def __init__(self, block: Any, entries: Sequence[StreamEntry]) -> None:
        self.block = block
        self.entries = list(entries)
        self.wal_end = block.wal_end
        self.size_bytes = sum(len(entry.data) for entry in entries)
        self.uploaded = False


class _Model:
    """What a cache must have: everything that isn't uploaded, and of the rest whatever it likes."""

    def __init__(self, env: Env, cache: Any, allocator: PlainAllocator) -> None:
        self._random = env.random
        self._cache = cache
        self._allocator = allocator
        self._before = allocator.statistics().used_bytes
        self._position = env.random.choice((0, 2**31 - 500, 2**53))
        self._active: list[StreamEntry] = []
        self._blocks: list[_Block] = []
        #: All entries of each stream that weren't dropped with it, evicted ones too.
        self._history: dict[int, list[StreamEntry]] = {}
        self._got: list[tuple[Sequence[StreamEntry], list[tuple[Any, ...]]]] = []
        self._figures = Figures(LogCacheStatistics)

    def begin(self, blocks: int) -> None:
        """So many blocks wait, the last of which has no bytes, while all memory is wanted: nothing of them goes."""
        for left in reversed(range(blocks)):
            self._put(size=1 if left else 0)
            self._freeze()
        self._evict(10**9)
        self._check_account()

    def step(self, drops: float = 0.01) -> None:
        """Do something, and look what came of it; ``drops`` is how likely a stream is deleted then."""
        steps: Sequence[Callable[[], None]] = (
            *(self._put,) * 6,
            *(self._get,) * 5,
            self._freeze,
            self._upload,
            self._evict,
            self._refuse,
        )
        self._random.choice(steps)()
        if self._random.random() < drops:
            self._drop()
        self._check_account()

    def read_what_grows(self) -> None:
        """Read all of a young stream, then put one more entry of it."""
        stream_id = self._random.choice(_STREAMS)
        self._put(stream_id=stream_id)
        got = self._cache.get(stream_id, 0, _ALL, _ALL)
        self._got.append((got, told(got)))
        self._put(stream_id=stream_id)

    def upload_a_long_run(self) -> None:
        """A block with a great many entries of one stream is uploaded: its memory stays accounted for."""
        stream_id = self._random.choice(_STREAMS)
        for _ in range(_LONG_RUN):
            self._put(size=10, stream_id=stream_id)
        self._freeze()
        while not all(block.uploaded for block in self._blocks):
            self._upload()
            self._check_account()

    def _put(self, size: int | None = None, stream_id: int | None = None) -> None:
        if stream_id is None:
            stream_id = self._random.choice(_STREAMS)
        mine = self._history.setdefault(stream_id, [])
        base = mine[-1].next_offset if mine else self._random.choice((0, 5, 2**31 - 9, 2**40))
        entry = self._entry(stream_id, base, size)
        was = told([entry])
        self._cache.put(entry)
        assert told([entry]) == was, f"an entry changed when it was put: {entry!r}"
        mine.append(entry)
        self._active.append(entry)

    def _entry(self, stream_id: int, base: int, size: int | None = None) -> StreamEntry:
        body = self._random.randbytes(self._random.choice(_SIZES) if size is None else size)
        self._position += len(body) + 8
        charge = self._allocator.charge_nowait(len(body), "append")
        end, time_ms = base + self._random.choice(_RECORDS), self._random.choice(_TIMES)
        known = self._random.choice((None, checksum(body)))
        return StreamEntry(stream_id, base, end, time_ms, memoryview(body), charge, self._position, known)

    def _refuse(self) -> None:
        """An entry that doesn't continue its stream leaves all as it was, and is the caller's again."""
        newest = [entry for entry in self._active if self._history.get(entry.stream_id, [None])[-1] is entry]
        if not newest:
            return
        before = self._random.choice(newest)
        refused = self._entry(before.stream_id, before.next_offset + self._random.choice((-1, 1, 10)))
        try:
            self._cache.put(refused)
        except InvariantError:
            assert refused.charge is not None
            refused.charge.release()
            self._position -= len(refused.data) + 8
        else:
            raise AssertionError(f"an entry that leaves a gap was taken: {refused!r} after {before!r}")

    def _get(self) -> None:
        stream_id = self._random.choice(_STREAMS)
        mine = self._history.get(stream_id, [])
        if not mine:
            assert list(self._cache.get(stream_id, 0, _ALL, _ALL)) == [], "entries of a stream that has none"
            return
        at = self._random.choice(mine[-40:])
        start = self._random.choice(
            (at.base_offset, at.next_offset - 1, at.base_offset - 1, 0, mine[-1].next_offset)
        )
        start = max(start, 0)
        end = max(start + 1, self._random.choice((_ALL, 0, at.next_offset, mine[-1].next_offset)))
        bytes_max = self._random.choice((0, 1, 400, 12_000, _ALL))
        got = self._cache.get(stream_id, start, end, bytes_max)
        self._check_run(mine, got, start, end, bytes_max)
        self._got.append((got, told(got)))
        del self._got[:-50]

    def _check_run(
        self, mine: Sequence[StreamEntry], got: Sequence[StreamEntry], start: int, end: int, bytes_max: int
    ) -> None:
        what = f"a read of [{start}, {end}), {bytes_max} bytes"
        surely = {entry.wal_position for entry in self._kept()}
        holds = next((entry for entry in mine if entry.base_offset <= start < entry.next_offset), None)
        if holds is not None and holds.wal_position in surely:
            assert got and got[0].wal_position == holds.wal_position, (
                f"{what} doesn't begin with the entry that holds its start"
            )
        if not got:
            return
        first = next(
            (place for place, entry in enumerate(mine) if entry.wal_position == got[0].wal_position), None
        )
        assert first is not None, f"{what} has an entry that isn't of the stream: {got[0]!r}"
        run = mine[first : first + len(got)]
        assert told(got) == told(run), f"{what} isn't continuous, or has other entries than were put"
        assert got[-1].base_offset < end, f"{what} goes on behind its end: {got[-1]!r}"
        size = sum(len(entry.data) for entry in got)
        assert len(got) == 1 or size <= bytes_max, f"{what} has {size} bytes"
        if first + len(got) < len(mine):
            following = mine[first + len(got)]
            more = following.base_offset < end and size + len(following.data) <= bytes_max
            assert not more or following.wal_position not in surely, f"{what} ends before {following!r}"

    def _kept(self) -> list[StreamEntry]:
        """What surely is cached."""
        waiting = [entry for block in self._blocks if not block.uploaded for entry in block.entries]
        return [*waiting, *self._active]

    def _freeze(self) -> None:
        block = self._cache.freeze()
        assert (block is None) == (not self._active), "freeze gave a block of nothing, or none of something"
        if block is not None:
            last = self._active[-1].wal_position
            assert last <= block.wal_end <= self._position, (  # the log is done with what was dropped, too
                f"a block ends at {block.wal_end}, its last entry at {last}, the last of all at {self._position}"
            )
            self._blocks.append(_Block(block, self._active))
            self._active = []

    def _upload(self) -> None:
        waiting = [block for block in self._blocks if not block.uploaded]
        if waiting:
            block = waiting[0]  # in order, so that what is evicted is older than what is kept
            self._check_block(block)
            self._cache.mark_uploaded(block.block)
            block.uploaded = True

    def _check_block(self, block: _Block) -> None:
        assert block.block.wal_end == block.wal_end, (
            f"the end of a frozen block moved: {block.wal_end} {block.block.wal_end}"
        )
        assert block.block.size_bytes == block.size_bytes, "the size of a frozen block changed"
        for stream_id in {entry.stream_id for entry in block.entries}:
            wanted = [entry for entry in block.entries if entry.stream_id == stream_id]
            assert told(block.block.streams[stream_id]) == told(wanted), "a frozen block changed"

    def _evict(self, wanted: int | None = None) -> None:
        before = self._allocator.statistics().used_bytes
        if wanted is None:
            wanted = self._random.choice((0, 1, 700, 20_000, 10**9))
        freed = self._cache.evict(wanted)
        given = before - self._allocator.statistics().used_bytes
        assert freed == given, f"evict({wanted}) says {freed}, the account got {given}"
        assert wanted or not freed, f"{freed} bytes were evicted, of which nobody wanted any"

    def _drop(self) -> None:
        stream_id = self._random.choice(_STREAMS)
        if any(entry.stream_id == stream_id for block in self._blocks for entry in block.entries):
            return  # whether a block that is on its way keeps it is the cache's own affair
        self._cache.drop_stream(stream_id)
        self._history.pop(stream_id, None)
        self._active = [entry for entry in self._active if entry.stream_id != stream_id]
        assert list(self._cache.get(stream_id, 0, _ALL, _ALL)) == [], "entries of a deleted stream are read"

    def _check_account(self) -> None:
        told = self._figures.look(self._cache.statistics())
        kept = sum(len(entry.data) for entry in self._kept())
        active = sum(len(entry.data) for entry in self._active)
        assert self._cache.active_bytes == told.active_bytes == active, f"{active} bytes are active: {told}"
        assert told.active_bytes + told.frozen_bytes == kept, f"{kept} bytes aren't uploaded: {told}"
        used = self._allocator.statistics().used_bytes - self._before
        whole = kept + told.uploaded_bytes
        assert used == whole, f"{used} bytes are accounted for, {whole} are cached"
        if not any(block.uploaded for block in self._blocks):
            assert told.entries == len(self._kept()), f"{len(self._kept())} entries are cached: {told}"

    def end(self) -> None:
        """What was returned is what it was, and so are the blocks that aren't uploaded."""
        for got, was in self._got:
            assert told(got) == was, "what a read returned has changed since"
        for block in self._blocks:
            if not block.uploaded:
                self._check_block(block)
        self._figures.end()


async def test_random_operations_agree_with_a_model(env: Env) -> None:
    """What isn't uploaded is cached, continuous and as it was put, whatever was frozen, evicted and read."""
    async with env.open() as cache:
        model = _Model(env, cache, env.account)
        model.begin(blocks=9)
        for _ in range(_STEPS):
            model.step()
        model.upload_a_long_run()
        model.end()
    used = env.account.statistics().used_bytes
    assert used == 0, f"{used} bytes are still accounted for"


async def test_short_lives_agree_with_a_model(env: Env) -> None:
    """A cache that holds next to nothing is right, too: of an only stream that is dropped nothing stays, and what a
    first read returned doesn't grow."""
    for life in range(_LIVES):
        async with env.open() as cache:
            model = _Model(env, cache, env.account)
            model.begin(blocks=life % 2)
            model.read_what_grows()
            for _ in range(12):
                model.step(drops=0.3)
            model.end()


async def test_entry_of_many_offsets_is_found(env: Env) -> None:
    """The entry that holds ``start_offset``, however far its offsets go on; and the one behind it."""
    span = 2**41 + 5
    entries = [
        StreamEntry(1, n * span, (n + 1) * span, -1, memoryview(b"%d" % n), None, n + 1) for n in range(3)
    ]
    async with env.open() as cache:
        for entry in entries:
            cache.put(entry)
        for entry in entries:
            for start in (entry.base_offset, entry.base_offset + 7, entry.next_offset - 1):
                found = told(cache.get(1, start, start + 1, 100))
                assert found == told([entry]), f"a read of [{start}, {start + 1}) didn't find {entry!r}"


async def test_two_caches_have_nothing_to_do_with_each_other(env: Env) -> None:
    """All calls are about the cache that was opened: another one of this process has streams of its own."""
    async with env.open() as first:
        one = _Model(env, first, env.account)
        async with env.open() as second:
            other = _Model(env, second, env.account)
            for _ in range(150):
                one.step()
                other.step()
            other.end()
        one.end()


async def test_error_of_its_owner_comes_out(env: Env) -> None:
    """Leaving the context releases every charge, and hides nothing: an error inside comes out, as it is."""

    async def use(cache: Any, _: int) -> None:
        with contextlib.suppress(InvariantError):
            cache.put(_Model(env, cache, env.account)._entry(1, 0))

    await errors_come_out(env, use)
    used = env.account.statistics().used_bytes
    assert used == 0, f"{used} bytes are still accounted for when an error came out"
