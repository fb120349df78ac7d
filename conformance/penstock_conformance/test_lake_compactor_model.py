"""Clauses of ``penstock.spi.lake``, all at once: random histories of tables, held against a model of their rows."""

from __future__ import annotations

import math
import random
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ConflictError, FencedError, NotFoundError, UnavailableError
from penstock.spi.lake import LakeCompactor, LakeRecord, LakeRecords, LakeTopic
from penstock_conformance._child import Child
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._growth import counts
from penstock_conformance._lake import check_table, columns, look_at, made, spec_of, topic_of

KIND = "lake_compactor"

_STEPS = 12
_PARTITIONS = 130
#: Where the first record of a partition may be: around what 31, 32 and 53 bits count, and near the end.
_BEGINNINGS = (0, 0, 1, 2**31 - 3, 2**32 - 5, 2**53 - 4, 2**62)
_TEXTS = (b"", b"k", b"k ", b"k\0", b"\r\n", b"\xff\xfe", b"\x80", b"null", "é\u2028".encode())
_TIMES = (-1, 0, 1, 7, 2**31, 2**41 + 123)
#: Partitions that a history has its own use for.
_ONLY_GAPS, _ALL_KINDS, _FIRST_OTHER = 2, 3, 4
_MANY_ROWS = 2500
_LARGE = 1_500_000
#: Below what is left of a megabyte that was written and not committed.
_MEGABYTE = 2**20
_OPENINGS = 24
#: What goes on behind its caller's back has come to its end by then.
_LATE_S = 0.2
#: Of the time that a commit takes, after which it is cancelled; early ones, as a busy machine takes longer.
_SHARES = (math.inf, 0.02, 0.1, 0.3, 0.6, 0.9)
#: Each has a chance of its own to hit a window of some milliseconds, however busy the machine is.
_MEETINGS = 12
#: One of two owners is faster, so the other one is alone by then.
_ATTEMPTS = 5


def _text(rng: random.Random) -> bytes | None:
    return rng.choice((None, *_TEXTS, rng.randbytes(rng.randrange(80))))


def _odd_row(rng: random.Random, partition: int, offset: int) -> LakeRecord:
    """A record of the kinds that somebody might take for another."""
    count = 300 if rng.random() < 0.01 else rng.choice((0, 0, 1, 2, 4))
    headers = tuple((rng.choice(_TEXTS), _text(rng)) for _ in range(count))
    return LakeRecord(partition, offset, rng.choice(_TIMES), _text(rng), _text(rng), headers)


def _overwrite(records: LakeRecords) -> None:
    """The memory is the caller's again."""
    for column in (records.keys, records.values, records.headers.names, records.headers.values):
        assert isinstance(column.data, bytearray)
        column.data[:] = b"#" * len(column.data)
    for numbers in (records.offsets, records.timestamps):
        numbers[:] = numbers[::-1]


def _check_rows(found: Sequence[LakeRecord], wanted: Sequence[LakeRecord], what: str) -> None:
    """The same, in any order."""
    places = Counter((row.partition, row.offset) for row in found)
    twice = [place for place, count in places.items() if count > 1]
    assert not twice, f"{what}: a record is in the table twice, the first is {min(twice)}"
    missing = {(row.partition, row.offset) for row in wanted} - set(places)
    assert not missing, (
        f"{what}: {len(missing)} records below the positions are missing, the first is {min(missing)}"
    )
    above = set(places) - {(row.partition, row.offset) for row in wanted}
    assert not above, f"{what}: records are in the table that nobody committed, the first is {min(above)}"
    for got, row in zip(sorted(found, key=_place), sorted(wanted, key=_place), strict=True):
        assert got == row, f"{what}: a row isn't the record: got {str(got)[:300]} wanted {str(row)[:300]}"


def _place(row: LakeRecord) -> tuple[int, int]:
    return row.partition, row.offset


class _LeavesError(Exception):
    """An error of who uses the table."""


class _History:
    """What one table must hold: what was committed, and what is written since."""

    def __init__(self, env: Env, topic: LakeTopic, rng: random.Random, *, maintains: bool) -> None:
        self.maintains = maintains
        self._env = env
        self._random = rng
        self._topic = topic
        self._epoch = 1
        self._positions: dict[int, int] = {}
        self._rows: list[LakeRecord] = []
        self._versions: set[str] = set()
        #: A commit whose outcome isn't known: what its positions were to be.
        self._doubt: dict[int, int] = {}
        #: The last commit.
        self._took_s = 0.01
        self._next: dict[int, int] = {}
        self._written: list[LakeRecord] = []

    async def live(self, compactor: Any, lives: int) -> None:
        """Open the table again and again, by the same epoch or by a higher one; the topic grows."""
        for life in range(lives):
            self._topic = replace(self._topic, partition_count=_PARTITIONS * (life + 1) // lives)
            with suppress(_LeavesError):
                async with compactor.open_table(self._topic, self._epoch) as table:
                    self._settle(dict(await table.positions()))
                    await self._one_of_each(compactor, table)
                    for _ in range(_STEPS):
                        await self._random.choice((self._write, self._write, self._write, self._commit))(
                            table
                        )
                        await checkpoint()
                    if self._random.random() < 0.7:
                        await self._leave(table)
            async with self._env.open(node_id=2) as reader:
                await self.look(reader)
            self._epoch += self._random.choice((0, 0, 1, 5))

    async def _one_of_each(self, compactor: Any, table: Any) -> None:
        """What every life has, however the steps fall: a partition among others that moves without rows, one that
        is come back to, the newest one, and all kinds of records; and another table is left by an error meanwhile."""
        start = self._next.get(_ALL_KINDS, 2**53 - 3)  # its positions are odd, and no float is
        rows = [
            LakeRecord(_ALL_KINDS, start + at, _TIMES[at % len(_TIMES)], text, text, ((text or b"", text),))
            for at, text in enumerate((None, *_TEXTS, _TEXTS[-1]))
        ]
        rows[-1] = rows[-2]._replace(offset=start + 2**33)  # they are equal
        await self.write(table, _ALL_KINDS, rows, start)
        newest = self._topic.partition_count - 1
        await self._add_one(table, newest)
        await self._add_one(table, _ALL_KINDS)
        await self.write(table, _ONLY_GAPS, [], self._next.get(_ONLY_GAPS, 0), gap=2)
        topic_id = self._topic.topic_id.replace("-8000-", "-9000-")
        beside = replace(self._topic, name=f"{self._topic.name}-beside", topic_id=topic_id)
        with suppress(_LeavesError):
            async with compactor.open_table(beside, self._epoch):
                raise _LeavesError
        await self._commit(table)

    def _settle(self, found: dict[int, int]) -> None:
        """A table was opened: a commit in doubt has happened, or it never will."""
        if self._doubt and found == self._positions | self._doubt:
            self._positions |= self._doubt
            self._rows += self._written
        assert found == self._positions, f"positions: {found}, and those committed are {self._positions}"
        self._next = dict(found)
        self._written, self._doubt = [], {}

    async def _leave(self, table: Any) -> None:
        """Leave it by an error, or in the middle of a commit."""
        if self._random.random() < 0.5:
            self._doubt = {
                key: value for key, value in self._next.items() if self._positions.get(key) != value
            }
            with anyio.move_on_after(self._random.random() * self._took_s):
                await table.commit(dict(self._doubt))
        raise _LeavesError

    async def _write(self, table: Any) -> None:
        rng = self._random
        partition = rng.choice((0, 1, rng.randrange(_FIRST_OTHER, self._topic.partition_count)))
        start = self._next.get(partition, rng.choice(_BEGINNINGS))
        await self.write(table, partition, self._invent(partition, start), start, rng.choice((0, 0, 2)))

    async def _add_one(self, table: Any, partition: int) -> None:
        start = self._next.get(partition, 0)
        await self.write(table, partition, [_odd_row(self._random, partition, start)], start)

    def _invent(self, partition: int, start: int) -> list[LakeRecord]:
        """Some records from ``start`` on, of which some have equals, and between which others were left out."""
        rng, offset = self._random, start
        rows: list[LakeRecord] = []
        for _ in range(rng.choice((0, 1, 1, 5, 70))):
            offset += rng.choice((0, 0, 0, 0, 0, 1, 9)) if rng.random() < 0.99 else 2**33
            like = rows and rng.random() < 0.2
            rows.append(rows[-1]._replace(offset=offset) if like else _odd_row(rng, partition, offset))
            offset += 1
        return rows

    async def write(
        self, table: Any, partition: int, rows: list[LakeRecord], start: int, gap: int = 0
    ) -> None:
        """Write them, in parts that aren't larger than a write gets; behind them is a gap. Take the memory back."""
        stop = rows[-1].offset + 1 if rows else start
        records = columns(partition, rows, start, stop + gap)
        half = len(rows) // 2
        if half and records.nbytes > spec_of(self._env).batch_bytes:
            await self.write(table, partition, rows[:half], start)
            await self.write(table, partition, rows[half:], self._next[partition], gap)
            return
        written = await table.write(records)
        assert (written.rows, dict(written.rejected)) == (len(rows), {}), f"not all are rows: {written}"
        _overwrite(records)
        self._next[partition] = records.next_offset
        self._written += rows
        if written.is_full:
            await self._commit(table)

    async def _commit(self, table: Any) -> None:
        moved = {key: value for key, value in self._next.items() if self._positions.get(key) != value}
        given = dict(moved)
        began = time.monotonic()
        done = await table.commit(given)
        self._took_s = time.monotonic() - began
        given.clear()  # it is the caller's again
        assert done.rows == len(self._written), f"a commit of {len(self._written)} rows says {done.rows}"
        if moved or self._written:
            assert done.version not in self._versions, f"two commits have one name: {done.version}"
        self._versions.add(done.version)
        self._positions |= moved
        self._rows += self._written
        self._written = []
        if self._random.random() < 0.1 and self.maintains:
            await table.maintain()

    async def look(self, compactor: Any) -> None:
        """Hold the table against what was committed."""
        positions, rows = await look_at(compactor, self._topic)
        if self._doubt:
            self._settle(positions)
        what = f"table of {self._topic.name[:20]!r}"
        assert positions == self._positions, (
            f"{what}: positions {positions}, and those committed are {self._positions}"
        )
        _check_rows(rows, self._rows, what)


async def test_random_histories_agree_with_a_model(env: Env) -> None:
    """It has every record below its positions once, as it was written, and none at or above them: whatever is written
    and committed, to several tables at once, whoever leaves one by an error and opens it again."""
    topics = [
        topic_of(env, name=name, topic_id=f"5a1c9d20-0000-4000-8000-00000000020{n}", partitions=_PARTITIONS)
        for n, name in enumerate(("orders", "orders-2"))
    ]
    async with env.open() as compactor:
        maintains = compactor.capabilities.maintains

        async def live(n: int) -> None:
            await _History(env, topics[n], env.random_of(n), maintains=maintains).live(compactor, 3)

        await together([call(live, n) for n in range(2)])


async def test_many_rows_partitions_and_commits(env: Env) -> None:
    """The same of thousands of rows in one write, a hundred writes in one commit, values of more than a MiB, and
    more commits than one history has."""
    topic = topic_of(env, partitions=_PARTITIONS)
    async with env.open() as compactor:
        history = _History(env, topic, env.random, maintains=compactor.capabilities.maintains)
        async with compactor.open_table(topic, 1) as table:
            if history.maintains:
                await table.maintain()  # of nothing yet
            rows = [_odd_row(env.random, 0, offset) for offset in range(_MANY_ROWS)]
            await history.write(table, 0, rows, 0)
            large = [LakeRecord(1, n, 5, b"k", env.random.randbytes(_LARGE // n)) for n in (1, 2)]
            await history.write(table, 1, large, 0)
            for partition in range(2, 70):
                await history.write(table, partition, [_odd_row(env.random, partition, 3)], 3)
            await history._commit(table)
            for _number in range(66):
                start = history._next[69]
                await history.write(table, 69, [_odd_row(env.random, 69, start)], start)
                await history._commit(table)
            await history.write(table, 69, [], history._next[69], gap=2)
            await history._commit(table)
            if history.maintains:
                await table.maintain()
        async with env.open(node_id=2) as reader:
            await history.look(reader)


# --- what is left behind


async def test_what_is_kept_is_charged(env: Env) -> None:
    """What a compactor keeps of records after ``write`` it charges to the allocator, or asks for a commit."""
    topic = topic_of(env)
    size, writes = 2**20, 24
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            await table.write(made(0, 0, 8))
            before = env.account.statistics().used_bytes
            tracemalloc.start()
            try:
                for number in range(writes):
                    rows = [LakeRecord(1, number, 1, b"k", env.random.randbytes(size))]
                    written = await table.write(columns(1, rows, number, number + 1))
                    del rows
                    if written.is_full:
                        break
                kept = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            charged = env.account.statistics().used_bytes - before
            assert kept < charged + 8 * size, (
                f"{number + 1} MiB were written, of which {kept >> 20} MiB are kept, and {charged >> 20} MiB charged"
            )


def _size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def test_files_of_failed_attempts_are_removed(env: Env) -> None:
    """What was written and not committed is gone, and its files are removed, by ``open_table`` at the latest; and
    opening a table again leaves no trace."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            await table.write(made(0, 0, 5))
            await table.commit({0: 5})
        before = _size_of(env.data_dir)
        for number in range(3):
            with suppress(_LeavesError):
                async with compactor.open_table(topic, 1 + number // 2) as table:
                    for offset in range(5, 13):
                        await table.write(made(0, offset, offset + 1, _MEGABYTE // 2))
                    raise _LeavesError
        async with compactor.open_table(topic, 2):
            left = _size_of(env.data_dir) - before
        assert left < _MEGABYTE, f"{left} bytes are left of three attempts of 4 MiB"
        await check_table(compactor, topic, {0: 5})
        files = sum(1 for _ in env.data_dir.rglob("*"))
        descriptors, tasks, threads = await counts()
        tables: list[weakref.ref[Any]] = []
        for _ in range(_OPENINGS):
            async with compactor.open_table(topic, 2) as table:
                assert await table.positions() == {0: 5}
                with suppress(TypeError):  # an object with slots can't be watched
                    tables.append(weakref.ref(table))
        del table
        now_descriptors, now_tasks, now_threads = await counts()
        alive = sum(ref() is not None for ref in tables)
        assert alive < _OPENINGS // 2, (
            f"{alive} of {_OPENINGS} opened tables are still in memory after their end"
        )
        assert now_descriptors - descriptors < _OPENINGS // 2, "each opening leaves a descriptor"
        assert now_tasks - tasks < _OPENINGS // 2, "each opening leaves a task"
        assert now_threads - threads < _OPENINGS // 2, "each opening leaves a thread"
        grown = sum(1 for _ in env.data_dir.rglob("*")) - files
        assert grown < _OPENINGS, f"{_OPENINGS} openings left {grown} files"


@clause(level=3)
async def test_files_of_who_was_killed_are_removed(env: Env) -> None:
    """The same of an owner that died: whoever opens the table next removes them."""
    topic = topic_of(env)
    async with Child(env, "lake_write", epoch=1, size=_MEGABYTE // 2) as child:
        assert await child.next() == "written"
        child.kill()
    async with env.open(node_id=9) as compactor:
        async with compactor.open_table(topic, 2) as table:
            assert dict(await table.positions()) == {}
        left = _size_of(env.data_dir)
        assert left < _MEGABYTE, f"{left} bytes are left of 7 MiB that a killed owner didn't commit"
        await check_table(compactor, topic, {})


# --- owners


async def test_epochs_are_numbers(env: Env) -> None:
    """Once a table was opened with an epoch, whoever has a lower one commits and maintains nothing, and disturbs
    nobody: neither when it is refused, nor when it leaves; around 10 and all that 32 and 53 bits count."""
    topic = topic_of(env)
    end = 0
    async with env.open(node_id=1) as first, env.open(node_id=2, epoch=2) as second:
        for low, high in ((9, 10), (2**31 - 1, 2**31), (2**32, 2**32 + 1), (2**53, 2**53 + 1)):
            async with second.open_table(topic, low) as middle, AsyncExitStack() as stack:
                old = await stack.enter_async_context(first.open_table(topic, low))
                await old.write(made(0, end, end + 3))
                async with second.open_table(topic, high) as new:
                    assert dict(await new.positions()) == ({0: end} if end else {})
                    await new.write(made(0, end, end + 2))
                    with raises(FencedError):
                        await old.commit({0: end + 3})
                    await stack.aclose()
                    with raises(FencedError):
                        async with first.open_table(topic, low):
                            pass
                    await new.write(made(0, end + 2, end + 4))
                    await new.commit({0: end + 4})
                    end += 4
                    if second.capabilities.maintains:
                        with raises(FencedError):
                            await middle.maintain()
                        await new.maintain()
                        with raises(FencedError):
                            async with first.open_table(topic, low):
                                pass
                    await check_table(second, topic, {0: end})


async def test_a_topic_is_who_has_its_id(env: Env) -> None:
    """A topic made again never goes on in a table of the old one: nor in an empty one, nor if most of the
    id is the same; topics whose names differ little share none. ConflictError, or a table of its own."""
    async with env.open() as compactor:
        for number, (name, positions) in enumerate((("orders", {}), ("without-records", {0: 7}))):
            ids = [f"5a1c9d20-0000-4000-8000-0000000003{number}{each}" for each in (1, 2)]
            first, again = (topic_of(env, name=name, topic_id=each) for each in ids)
            async with compactor.open_table(first, 1) as table:
                if positions:
                    await table.commit(positions)
            try:
                async with compactor.open_table(again, 2):
                    pass
            except ConflictError:
                await _feed(compactor, first, 3)
            else:  # then it is the new topic's, and was never the old one's
                await _feed(compactor, again, 3)
                await _feed(compactor, again, 4)
                await check_table(compactor, again, {0: 6})
        names = ("a.b", "a_b", "a-b", "A.B", "x" * 248 + "1", "x" * 248 + "2")
        for number, name in enumerate(names):
            topic = topic_of(env, name=name, topic_id=f"5a1c9d20-0000-4000-8000-00000000040{number}")
            with suppress(ConflictError):
                await _feed(compactor, topic, 1)
                await check_table(compactor, topic, {0: 3})


async def _feed(compactor: Any, topic: LakeTopic, epoch: int) -> None:
    async with compactor.open_table(topic, epoch) as table:
        start = dict(await table.positions()).get(0, 0)
        await table.write(made(0, start, start + 3))
        await table.commit({0: start + 3})


@clause(level=2)
async def test_owners_that_race_neither_lose_nor_repeat(env: Env) -> None:
    """Several claim a table, and commit until they are fenced, while another looks: nothing is lost or
    there twice, whoever opens it finds what was acknowledged before, and who looks finds every record below the
    positions that it read before."""
    topic = topic_of(env)
    acknowledged = claimed = 0
    over = anyio.Event()

    async def own(n: int) -> None:
        nonlocal acknowledged, claimed
        async with env.open(node_id=n + 1, epoch=n + 1) as compactor:
            for turn in range(3):
                epoch, known = 1 + n + 3 * turn, acknowledged
                with suppress(FencedError, ConflictError, UnavailableError):
                    async with compactor.open_table(topic, epoch) as table:
                        claimed = max(claimed, epoch)
                        start = dict(await table.positions()).get(0, 0)
                        assert start >= known, f"a commit is lost: positions={start} acknowledged={known}"
                        for _ in range(4):
                            await table.write(made(0, start, start + 3))
                            await table.write(made(1, start, start + 3))
                            newest = claimed
                            await table.commit({0: start + 3, 1: start + 3})
                            assert newest <= epoch, f"who is fenced commits: {epoch=} newer={newest}"
                            start += 3
                            acknowledged = max(acknowledged, start)

    async def look_on() -> None:
        async with env.open(node_id=9) as reader:
            while not over.is_set():
                known = acknowledged
                with suppress(NotFoundError):
                    async with reader.open_table(topic, 0) as table:
                        stop = dict(await table.positions()).get(0, 0)
                        assert stop >= known, f"who looks misses a commit: {stop=} acknowledged={known}"
                        offsets = Counter([row.offset async for row in table.rows()])
                        odd = [offset for offset in range(stop) if offsets[offset] != 2]
                        assert not odd, (
                            f"who looks finds {offsets[odd[0]]} records of 2 at an offset: {odd[0]}"
                        )
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look_on)
        await together([call(own, n) for n in range(3)])
        over.set()
    async with env.open(node_id=9) as reader:
        found = await check_table(reader, topic)
    assert found.get(0, 0) >= acknowledged, f"a commit is lost: positions={found} acknowledged={acknowledged}"


class _Gate:
    """Lets nobody through before both are there."""

    def __init__(self) -> None:
        self._missing = 2
        self._opened = anyio.Event()

    async def passed(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._opened.set()
        await self._opened.wait()


class _Encounter:
    """A newer owner claims the table at the moment at which another one commits, or claims it."""

    def __init__(self, topic: LakeTopic, acknowledged: int) -> None:
        self.acknowledged = acknowledged
        #: How long a commit takes.
        self.took_s = 0.0
        self._topic = topic
        self._begun, self._met = _Gate(), _Gate()

    async def be_older(
        self, compactor: LakeCompactor, epoch: int, pause_s: float, *, only_claims: bool
    ) -> None:
        """Commit at that moment, or claim the table; whatever came of it, nothing more is committed after it."""
        async with AsyncExitStack() as stack:
            start = self.acknowledged
            try:
                if only_claims:
                    await self._begin(pause_s)
                    table = await stack.enter_async_context(compactor.open_table(self._topic, epoch))
                    await table.write(made(0, start, start + 3))
                else:
                    table = await self._open(stack, compactor, epoch)
                    await table.write(made(0, start, start + 3))
                    await self._begin(pause_s)
                    await table.commit({0: start + 3})
                    self.acknowledged = start = start + 3
                    await table.write(made(0, start, start + 3))
                is_refused = False
            except (FencedError, ConflictError, UnavailableError):
                is_refused = True
            await self._met.passed()
            if not is_refused:
                with raises(FencedError):
                    await table.commit({0: start + 3})

    async def be_newer(self, compactor: LakeCompactor, epoch: int, pause_s: float) -> None:
        """Claim the table, find in it what is acknowledged, and go on."""
        async with AsyncExitStack() as stack:
            await self._begin(pause_s)
            table = await self._open(stack, compactor, epoch)
            await self._met.passed()
            start = dict(await table.positions()).get(0, 0)
            assert start >= self.acknowledged, (
                f"a commit is lost: positions={start} acknowledged={self.acknowledged}"
            )
            await table.write(made(0, start, start + 3))
            began = time.monotonic()
            await table.commit({0: start + 3})
            self.took_s = time.monotonic() - began
            self.acknowledged = start + 3

    async def _begin(self, pause_s: float) -> None:
        await self._begun.passed()
        await anyio.sleep(pause_s)

    async def _open(self, stack: AsyncExitStack, compactor: LakeCompactor, epoch: int) -> Any:
        """Open it as the newest owner, who may find that the other one was faster."""
        for _ in range(_ATTEMPTS):
            with suppress(ConflictError, UnavailableError):
                return await stack.enter_async_context(compactor.open_table(self._topic, epoch))
        raise AssertionError(f"the newest owner never gets the table: {epoch=} attempts={_ATTEMPTS}")


@clause(level=2)
async def test_a_newer_owner_may_come_at_a_commit_or_a_claim(env: Env) -> None:
    """A commit that meets the claim of a newer owner is found by it, or never happens; a claim that does so is good
    for no commit. They meet again and again, at once or one a moment before the other."""
    topic = topic_of(env)
    acknowledged, took_s = 0, 0.0
    async with env.open(node_id=1) as older, env.open(node_id=2, epoch=2) as newer:
        for number in range(_MEETINGS * env.rounds):
            pause_s = env.random.random() * took_s if number % 2 else 0.0
            pauses_s = env.random.sample((0.0, pause_s), k=2)
            encounter = _Encounter(topic, acknowledged)
            async with anyio.create_task_group() as tasks:
                be_older = partial(encounter.be_older, only_claims=number % 3 == 2)
                tasks.start_soon(be_older, older, 2 * number + 1, pauses_s[0])
                tasks.start_soon(encounter.be_newer, newer, 2 * number + 2, pauses_s[1])
            acknowledged, took_s = encounter.acknowledged, encounter.took_s
        await check_table(newer, topic, {0: acknowledged})


@clause(level=4)
async def test_a_cancelled_commit_never_comes_late(env: Env) -> None:
    """It is in ``positions`` of the table opened again, or never happens, also if its owner's epoch stays."""
    topic = topic_of(env)
    acknowledged = 0
    took_s = math.inf  # a commit that isn't cancelled
    async with env.open() as compactor:
        for share in _SHARES:
            async with compactor.open_table(topic, 5) as table:
                start = dict(await table.positions()).get(0, 0)
                assert start >= acknowledged, f"a commit is lost: {start=} {acknowledged=}"
                await table.write(made(0, start, start + 3))
                with anyio.move_on_after(share * took_s):
                    await table.commit({0: start + 3})
            async with compactor.open_table(topic, 5) as table:
                start = dict(await table.positions()).get(0, 0)
                await table.write(made(0, start, start + 4))
                began = time.monotonic()
                await table.commit({0: start + 4})
                took_s = min(took_s, time.monotonic() - began)
                acknowledged = start + 4
        await anyio.sleep(_LATE_S)
        found = await check_table(compactor, topic)
        assert found.get(0, 0) >= acknowledged, f"a commit is lost: positions={found} {acknowledged=}"


# --- policies


async def test_policies_count_every_batch_by_itself(env: Env) -> None:
    """``LakeWritten`` is about the records of one write: how many are rows, how many were rejected, why the last."""
    policies = spec_of(env).policies
    if policies is None:
        not_applicable("every record can be read")
    for number, (policy, configs) in enumerate(policies.configs.items()):
        topic = topic_of(env, configs, name=f"policy-{number}", partitions=_PARTITIONS)
        partition, start = 83, 2**33 + 1000
        async with env.open() as compactor:
            for _ in range(2):
                async with compactor.open_table(topic, 1) as table:
                    start, waiting = dict(await table.positions()).get(partition, start), 0
                    for chance in (0.5, 0.0, 0.02, 0.0, *env.random.choices((0.0, 0.02, 0.5), k=4)):
                        bad = {at for at in range(90) if policy != "stop" and env.random.random() < chance}
                        rows = [
                            LakeRecord(
                                partition, start + at, 5, b"k", policies.bad if at in bad else policies.good
                            )
                            for at in range(90)
                        ]
                        written = await table.write(columns(partition, rows, start, start + 90))
                        wanted = {policy: len(bad)} if bad else {}
                        assert dict(written.rejected) == wanted, f"rejected {written}, and it were {wanted}"
                        assert written.rows == 90 - len(bad), "rows and rejected aren't all records"
                        last = str(start + max(bad)) if bad else ""
                        assert last in written.reason, (
                            f"the reason isn't that of offset {last}: {written.reason}"
                        )
                        assert not bad or str(partition) in written.reason.replace(last, ""), (
                            f"the reason doesn't name the partition {partition}: {written.reason}"
                        )
                        assert written.reason.isprintable(), f"a reason is one line: {written.reason!r}"
                        assert bool(written.reason) == bool(bad), (
                            f"a reason, and nothing was rejected: {written}"
                        )
                        start += 90
                        waiting += written.rows
                    done = await table.commit({partition: start})
                    if policy == "stop":
                        assert done.rows == waiting, f"a commit of {waiting} rows says {done.rows}"
