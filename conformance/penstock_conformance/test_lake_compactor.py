"""Clauses of ``penstock.spi.lake``."""

from __future__ import annotations

import math
import random
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    ConflictError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi.lake import LakeRecord, LakeTopic
from penstock_conformance._child import Child
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._lake import check_table, columns, look_at, made, row, spec_of, topic_of
from penstock_conformance._leaks import looks_leave_nothing

KIND = "lake_compactor"

#: A process that sleeps may have a lock; it is woken after so long.
_LOCKED_S = 1.0
#: More than an opening and three commits do on a medium, or enough of it.
_STEPS_MAX = 12


async def _commit(table: Any, partition: int, start: int, stop: int) -> Any:
    written = await table.write(made(partition, start, stop))
    assert written.rows == stop - start, "rows of a raw table were rejected"
    return await table.commit({partition: stop})


async def test_rows_are_the_records(env: Env) -> None:
    """Each record is a row: nulls, empty values, headers and their order, records without timestamp, big values."""
    topic = topic_of(env)
    rows = [
        LakeRecord(0, 0, 5, b"k", b"v", ((b"a", b"1"), (b"a", b"2"), (b"b", None), (b"", b""))),
        LakeRecord(0, 1, -1, None, None),
        LakeRecord(0, 2, 0, b"", b""),
        LakeRecord(0, 3, 2**42, bytes(range(256)), env.random.randbytes(3 * 2**20)),
        LakeRecord(0, 4, 2**46 + 1, b"\n", b'{"a": "line\nline"}\n'),
        LakeRecord(0, 5, 7, b"k" * 70_001, b"v", ((b"n" * 70_001, b"v" * 70_001),)),
    ]
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            assert await table.positions() == {}, "a new table has positions"
            written = await table.write(columns(0, rows, 0, 6))
            assert (written.rows, dict(written.rejected)) == (6, {})
            commit = await table.commit({0: 6})
            assert commit.rows == 6
            assert commit.version
            assert commit.files > 0
            assert commit.size_bytes > 3 * 2**20, f"a commit of more than 3 MiB says otherwise: {commit}"
            assert await table.positions() == {0: 6}
            rows.append(row(0, 6))
            written = await table.write(columns(0, rows[-1:], 6, 7))
            assert not written.is_full, (
                "one small record is said to take so much memory that it has to be committed"
            )
            commit = await table.commit({0: 7})
            assert commit.size_bytes < 2**20, f"a commit of one small record says otherwise: {commit}"
        positions, found = await look_at(compactor, topic)
    assert positions == {0: 7}
    assert found == rows, "rows aren't the records"


async def test_nothing_is_visible_before_a_commit(env: Env) -> None:
    """Make all that was written visible, with positions, in one step: before that, nothing of it is."""
    topic = topic_of(env)
    async with env.open() as compactor, env.open() as reader:
        async with compactor.open_table(topic, 1) as table:
            await table.write(made(0, 0, 10))
            assert await look_at(reader, topic) == ({}, []), "what wasn't committed is visible"
            await table.commit({0: 10})
            await check_table(reader, topic, {0: 10})
            await table.write(made(0, 10, 20))
            await table.write(made(1, 0, 5))
            await check_table(reader, topic, {0: 10})
            told = await table.positions()
            assert told == {0: 10}, (
                f"positions are those of the newest commit, not of what was written: {told}"
            )
            await table.commit({0: 20, 1: 5})
            await check_table(reader, topic, {0: 20, 1: 5})


async def test_commits_and_looks_leave_nothing_open(env: Env) -> None:
    """However often a table is written to, committed and looked at, no descriptor, task or thread stays of it."""
    async with env.open() as compactor, compactor.open_table(topic_of(env), 1) as table:
        offset = 0

        async def commit() -> None:
            nonlocal offset
            await _commit(table, 0, offset, offset + 3)
            offset += 3
            await table.positions()
            await table.describe()

        await looks_leave_nothing(commit)


async def test_a_table_goes_on_where_its_last_commit_ended(env: Env) -> None:
    """``positions`` are those of the newest commit, whoever opens the table, after any number of commits."""
    topic = topic_of(env)
    for epoch in range(1, 4):
        async with env.open() as compactor, compactor.open_table(topic, epoch) as table:
            positions = dict(await table.positions())
            assert positions == ({0: (epoch - 1) * 20, 1: (epoch - 1) * 5} if epoch > 1 else {})
            for _ in range(2):
                await _commit(table, 0, positions.get(0, 0), positions.get(0, 0) + 10)
                positions[0] = positions.get(0, 0) + 10
            await _commit(table, 1, positions.get(1, 0), positions.get(1, 0) + 5)
    async with env.open() as compactor:
        await check_table(compactor, topic, {0: 60, 1: 15})


async def test_positions_of_other_partitions_stay(env: Env) -> None:
    """A commit names some partitions; those of others stay. With many partitions, one that came since, too."""
    topic = topic_of(env, partitions=2**16)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            for partition in range(40):
                await table.write(made(partition, 0, partition % 3))
            await table.commit({partition: partition % 3 for partition in range(40)})
            await _commit(table, 39, 0, 4)
            for partition in (2**15, 2**16):
                await _commit(table, partition, 0, 1)
        expected = {partition: partition % 3 for partition in range(40)} | {39: 4, 2**15: 1, 2**16: 1}
        await check_table(compactor, topic, expected)
        many = dict.fromkeys(range(1000, 1150), 0)
        async with compactor.open_table(topic, 2) as table:
            await table.commit(many)
        await check_table(compactor, topic, expected | many)


async def test_positions_move_without_records(env: Env) -> None:
    """There may be no record at all, only a position that moves on; offsets may have gaps."""
    topic = topic_of(env)
    rows = [row(0, offset) for offset in (3, 4, 9)]
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            written = await table.write(columns(0, [], 0, 3))
            assert written.rows == 0
            commit = await table.commit({0: 3})
            assert commit.rows == 0
            assert await table.positions() == {0: 3}
            await table.write(columns(0, rows, 3, 12))
            await table.commit({0: 12})
            await table.commit({0: 14})
            await table.write(columns(0, [], 14, 2**40))
            await table.commit({0: 2**40})
        positions, found = await look_at(compactor, topic)
    assert positions == {0: 2**40}
    assert found == rows


async def test_what_was_not_committed_is_dropped(env: Env) -> None:
    """Leaving a table drops what wasn't committed; the next opening writes those records again, once."""
    topic = topic_of(env)
    async with env.open() as compactor:
        for epoch in (1, 2, 3):
            async with compactor.open_table(topic, epoch) as table:
                start = dict(await table.positions()).get(0, 0)
                await _commit(table, 0, start, start + 5)
                await table.write(made(0, start + 5, start + 9))
        await check_table(compactor, topic, {0: 15})


async def test_openings_of_one_epoch_repeat_nothing(env: Env) -> None:
    """What an earlier opening sends late is in ``positions``, or never happens, or fails the next commit."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as earlier, compactor.open_table(topic, 1) as later:
            assert await later.positions() == {}
            for table, stop in ((earlier, 10), (later, 15)):
                with suppress(PenstockError):
                    await table.write(made(0, 0, stop))
                    await table.commit({0: stop})
        positions, _ = await look_at(compactor, topic)
        assert positions, "of two openings neither could commit"
        await check_table(compactor, topic, positions)


async def test_records_are_not_kept_beyond_a_write(env: Env) -> None:
    """A compactor copies what it keeps: the kernel uses the memory again when ``write`` has returned."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            for start in (0, 8):
                records = made(0, start, start + 8)
                await table.write(records)
                for column in (records.keys, records.values, records.headers.names, records.headers.values):
                    assert isinstance(column.data, bytearray)
                    column.data[:] = b"#" * len(column.data)
                for numbers in (records.offsets, records.timestamps):
                    for index in range(len(numbers)):
                        numbers[index] = 77
            await table.commit({0: 16})
        await check_table(compactor, topic, {0: 16})


async def test_the_largest_batch_and_a_larger_record(env: Env) -> None:
    """A write gets up to ``batch_bytes``, and one larger record alone."""
    topic = topic_of(env)
    batch_bytes = min(spec_of(env).batch_bytes, 16 * 2**20)
    size = batch_bytes // 8 - 200
    large = LakeRecord(0, 7, 1, b"k", env.random.randbytes(batch_bytes + 2**20))
    rows = [LakeRecord(0, offset, 1, b"k", env.random.randbytes(size)) for offset in range(7)]
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            await table.write(columns(0, rows, 0, 7))
            await table.write(columns(0, [large], 7, 8))
            await table.commit({0: 8})
        _, found = await look_at(compactor, topic)
    assert found == [*rows, large]


async def test_the_account_is_even_at_the_end(env: Env) -> None:
    """What it keeps it charges to ``Services.allocator``, and gives back when the table is left, also by an error."""
    topic = topic_of(env)
    async with env.open() as compactor:
        before = env.account.statistics().used_bytes
        for leaves in (False, True):
            with suppress(ZeroDivisionError):
                async with compactor.open_table(topic, 1) as table:
                    position = dict(await table.positions()).get(0, 0)
                    for start in range(position, position + 40, 10):
                        await table.write(made(0, start, start + 10, 50_000))
                    await table.commit({0: position + 40})
                    await table.write(made(0, position + 40, position + 50, 50_000))
                    if leaves:
                        raise ZeroDivisionError
            used = env.account.statistics().used_bytes
            assert used == before, f"memory stays charged after the table was left: by an error={leaves}"


# --- owners


async def test_a_higher_epoch_fences(env: Env) -> None:
    """Once a table was opened with an epoch, commits and maintenance with a lower one fail and change nothing."""
    topic = topic_of(env)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(env.open(node_id=1))
        second = await stack.enter_async_context(env.open(node_id=2, epoch=2))
        old = await stack.enter_async_context(first.open_table(topic, 1))
        await _commit(old, 0, 0, 5)
        await old.write(made(0, 5, 9))
        new = await stack.enter_async_context(second.open_table(topic, 2))
        assert await new.positions() == {0: 5}
        with raises(FencedError):
            await old.commit({0: 9})
        await check_table(second, topic, {0: 5})
        await _commit(new, 0, 5, 12)
        with raises(FencedError):
            await old.commit({0: 9})
        await new.write(made(0, 12, 14))
        if first.capabilities.maintains:
            with raises(FencedError):
                await old.maintain()
        await new.commit({0: 14})
        await check_table(second, topic, {0: 14})


async def test_a_lower_epoch_cannot_open(env: Env) -> None:
    """Opening a table with a lower epoch than it was opened with fails with FencedError."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 5) as table:
            await _commit(table, 0, 0, 5)
        with raises(FencedError):
            async with compactor.open_table(topic, 4):
                pass
        async with compactor.open_table(topic, 6) as table:
            for offset in range(5, 8):
                await _commit(table, 0, offset, offset + 1)
            with raises(FencedError):  # however many commits there were since
                async with compactor.open_table(topic, 5):
                    pass
            if compactor.capabilities.maintains:
                await table.maintain()
        with raises(FencedError):
            async with compactor.open_table(topic, 5):
                pass
        await check_table(compactor, topic, {0: 8})


async def test_a_claim_alone_fences(env: Env) -> None:
    """An opening fences also if it commits nothing, and was left."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as old:
            await old.write(made(0, 0, 5))
            async with compactor.open_table(topic, 2) as new:
                assert await new.positions() == {}
            with raises(FencedError):
                await old.commit({0: 5})
        assert list(await compactor.tables()) == [new.name], "an empty table isn't among those that are kept"
        async with compactor.open_table(topic, 0) as looked:
            assert (await looked.positions(), [row async for row in looked.rows()]) == ({}, [])


async def test_epoch_zero_only_looks(env: Env) -> None:
    """It fences nobody, makes nothing and removes nothing; a table that isn't there is a NotFoundError."""
    topic = topic_of(env)
    async with env.open() as compactor, env.open() as reader:
        files = _files_of(env)
        with raises(NotFoundError):
            async with reader.open_table(topic, 0):
                pass
        assert list(await reader.tables()) == [], "looking made a table"
        assert _files_of(env) == files, "looking for a table that isn't there left something behind"
        async with compactor.open_table(topic, 3) as table:
            await _commit(table, 0, 0, 5)
            await _commit(table, 1, 0, 5)
            await table.write(made(0, 5, 9))
            files = _files_of(env)
            async with reader.open_table(topic, 0) as looked:
                assert await looked.positions() == {0: 5, 1: 5}
                facts = await looked.describe()
                assert facts
                assert all(isinstance(fact, str) for fact in facts.values())
                if reader.capabilities.maintains:
                    assert (await looked.maintain(dry_run=True)).dry_run
            missing = topic_of(env, name="missing", topic_id="5a1c9d20-0000-4000-8000-000000000004")
            with raises(NotFoundError):
                async with reader.open_table(missing, 0):
                    pass
            assert _files_of(env) == files, "looking, or a dry run, changed files"
            await table.commit({0: 9})
        await check_table(reader, topic, {0: 9, 1: 5})


def _files_of(env: Env) -> list[str]:
    """Everything below the clause's directory; of files when they were written, too."""
    return sorted(
        f"{path} {path.stat().st_mtime_ns if path.is_file() else ''}" for path in env.data_dir.rglob("*")
    )


async def test_a_topic_made_again_does_not_go_on_in_the_old_table(env: Env) -> None:
    """Its offsets begin anew, so rows of two topics of one name are never mixed: ConflictError, or a table anew."""
    topic = topic_of(env)
    again = topic_of(env, topic_id="5a1c9d20-0000-4000-8000-000000000002")
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            await _commit(table, 0, 0, 5)
        with suppress(ConflictError, NotFoundError):
            async with compactor.open_table(again, 0) as table:
                assert dict(await table.positions()) == {}, (
                    "who looks for the new topic sees the old one's table"
                )
        try:
            async with compactor.open_table(again, 2) as table:
                assert dict(await table.positions()) == {}, "the new topic goes on at the old one's offsets"
                await _commit(table, 0, 0, 3)
        except ConflictError:  # and who has the table isn't fenced
            async with compactor.open_table(topic, 1) as table:
                await _commit(table, 0, 5, 6)
            await check_table(compactor, topic, {0: 6})
        else:
            await check_table(compactor, again, {0: 3})


async def test_a_table_of_another_name_is_its_own(env: Env) -> None:
    """``table`` instead of what the configs say: a replay goes into a table of its own. All are listed, sorted."""
    topic, replay = topic_of(env), topic_of(env, table="orders_again")
    other = topic_of(env, name="another", topic_id="5a1c9d20-0000-4000-8000-000000000003")
    async with env.open() as compactor:
        told = []
        for each, stop in ((topic, 9), (replay, 4), (other, 2)):
            async with compactor.open_table(each, 1) as table:
                told.append(table.name)
                await _commit(table, 0, 0, stop)
        names = list(await compactor.tables())
        assert names == sorted(told), (
            f"three tables are listed by their names, sorted: {told=} listed={names}"
        )
        for each, stop in ((topic, 9), (replay, 4), (other, 2)):
            await check_table(compactor, each, {0: stop})


async def test_tables_are_used_at_the_same_time(env: Env) -> None:
    """One table is used by one task; tables of several topics by as many, at once."""
    topics = [
        topic_of(env, name=f"topic-{n}", topic_id=f"5a1c9d20-0000-4000-8000-00000000010{n}") for n in range(4)
    ]
    async with env.open() as compactor:

        async def feed(n: int) -> None:
            async with compactor.open_table(topics[n], n + 1) as table:
                for start in range(0, 20, 5):
                    await _commit(table, n % 2, start, start + 5)
                    await checkpoint()

        await together([call(feed, n) for n in range(4)])
        for n in range(4):
            await check_table(compactor, topics[n], {n % 2: 20})


# --- policies


async def test_what_cannot_be_read_is_counted_by_policy(env: Env) -> None:
    """The sum of rows and rejected is the number of records; the reason names partition and offset."""
    policies = spec_of(env).policies
    if policies is None:
        not_applicable("every record can be read")
    values = [policies.bad if offset % 3 == 1 else policies.good for offset in range(8)]
    rows = [LakeRecord(1, 40 + n, 5, b"k", value) for n, value in enumerate(values)]
    for number, (policy, configs) in enumerate(policies.configs.items()):
        if policy == "stop":
            continue
        topic = topic_of(env, configs, name=f"policy-{number}")
        async with env.open() as compactor, compactor.open_table(topic, 1) as table:
            written = await table.write(columns(1, rows, 40, 48))
            assert dict(written.rejected) == {policy: 3}, f"counts by policy: {written}"
            assert written.rows == 5, "rows and rejected aren't all records"
            assert "47" in written.reason, (
                f"the reason doesn't name the offset of the last one: {written.reason}"
            )
            await table.commit({1: 48})
            assert await table.positions() == {1: 48}


async def test_a_policy_to_stop_loses_nothing(env: Env) -> None:
    """InvalidRequestError if records don't fit and the policy is to stop: the table is as it was, and goes on."""
    policies = spec_of(env).policies
    if policies is None or "stop" not in policies.configs:
        not_applicable("there is no such policy")
    topic = topic_of(env, policies.configs["stop"])
    good = [LakeRecord(0, offset, 5, b"k", policies.good) for offset in range(4)]
    bad = [LakeRecord(0, 4, 5, b"k", policies.good), LakeRecord(0, 5, 5, b"k", policies.bad)]
    async with env.open() as compactor:
        for epoch in (1, 2):
            async with compactor.open_table(topic, epoch) as table:
                if epoch == 1:
                    await table.write(columns(0, good, 0, 4))
                    await table.commit({0: 4})
                assert await table.positions() == {0: 4}
                try:
                    await table.write(columns(0, bad, 4, 6))
                    await table.commit({0: 6})
                except InvalidRequestError as error:
                    assert "5" in str(error), f"the reason doesn't name the offset: {error}"
                else:
                    raise AssertionError("a record that can't be read was passed over")
        async with compactor.open_table(topic, 3) as table:
            assert await table.positions() == {0: 4}, "positions moved past a record that isn't in the table"
            await table.write(columns(0, bad[:1], 4, 5))
            await table.commit({0: 5})
            assert await table.positions() == {0: 5}


# --- maintenance


@clause(claims="maintains")
async def test_maintenance_changes_no_row_and_no_position(env: Env) -> None:
    """Bring the table into good shape: rows and positions don't change, and commits go on afterwards."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            for start in range(0, 30, 3):
                await _commit(table, start % 2, start // 6 * 3, start // 6 * 3 + 3)
            expected = dict(await table.positions())
            would = await table.maintain(dry_run=True)
            assert would.dry_run
            assert abs(would.saved_bytes) < 2**30, f"a table of 30 records would take so much less: {would}"
            await check_table(compactor, topic, expected)
            async with compactor.open_table(topic, 0) as looked:
                rows = sorted([row async for row in looked.rows()])
                did = await table.maintain()
                found = sorted([row async for row in looked.rows()])
            assert found == rows, f"who looks had {len(rows)} rows, and {len(found)} since maintenance"
            assert not did.dry_run
            assert dict(did.figures) == dict(would.figures), "a dry run says something else than is done"
            assert abs(did.saved_bytes) < 2**30, f"a table of 30 records takes so much less: {did}"
            await check_table(compactor, topic, expected)
            await _commit(table, 0, expected[0], expected[0] + 5)
            await table.maintain()
            expected[0] += 5
        await check_table(compactor, topic, expected)
        async with compactor.open_table(topic, 2) as table:
            assert await table.positions() == expected


@clause(refuses="maintains")
async def test_maintenance_that_is_not_claimed_is_refused(env: Env) -> None:
    """Raises InvalidRequestError if unclaimed."""
    async with env.open() as compactor, compactor.open_table(topic_of(env), 1) as table:
        with raises(InvalidRequestError):
            await table.maintain()


# --- 2: owners in several processes


@clause(level=2)
async def test_a_stopped_owner_is_fenced_when_it_wakes(env: Env) -> None:
    """In any process: an owner that slept through a takeover commits nothing any more."""
    topic = topic_of(env)
    async with Child(env, "lake_feed", epoch=1, step=0, commits=0) as child:
        assert await child.next() == "ready"
        told = [0, 0]
        for _ in range(env.random.randrange(1, 5)):
            await child.tell("go")
            told = await child.next()
        await child.tell("go")
        await anyio.sleep(env.random.random() * 0.01)
        child.stop()
        async with env.open(node_id=2, epoch=2) as compactor:
            positions = await _take_over(compactor, topic, child)
            assert positions[0] >= told[0] + 3, "an acknowledged commit is lost"
            child.wake()
            try:
                await child.tell("go")
                for _ in range(2):  # the commit that it slept in may have been done
                    assert await child.next() is not None
            except (AssertionError, BrokenPipeError) as error:
                assert not str(error) or "FencedError" in str(error), f"it wasn't fenced: {error}"
            else:
                raise AssertionError("an owner that was fenced went on")
            await check_table(compactor, topic, positions)


async def _take_over(compactor: Any, topic: LakeTopic, sleeping: Child) -> dict[int, int]:
    """Claim the table, and commit; where it is then. Who sleeps with a lock that an opening needs is woken."""
    positions: dict[int, int] = {}

    async def wake_later() -> None:
        await anyio.sleep(_LOCKED_S)
        sleeping.wake()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wake_later)
        async with compactor.open_table(topic, 2) as table:
            positions |= await table.positions()
            await _commit(table, 0, positions[0], positions[0] + 3)
            positions[0] += 3
        tasks.cancel_scope.cancel()
    return positions


# --- 3: crashes


@clause(level=3)
async def test_each_record_is_there_once_whatever_step_a_kill_hits(env: Env) -> None:
    """A kill at each thing that an opening or a commit does: the table has what its positions say, and goes on."""
    topic = topic_of(env)
    told = [0, 0]
    steps = 14 if spec_of(env).watch is not None else 0
    for epoch in range(1, (steps or 6 * env.rounds) + 1):
        async with Child(env, "lake_feed", epoch=epoch, step=epoch if steps else 0, commits=6) as child:
            if not steps:
                assert await child.next() == "ready"
                for _ in range(env.random.randrange(3)):
                    told = await child.next() or told
                await anyio.sleep(env.random.random() * 0.02)
                child.kill()
            lines = await child.rest()
        told = next((line for line in reversed(lines) if isinstance(line, list)), told)
        async with env.open(node_id=9) as compactor:
            positions = await check_table(compactor, topic)
        assert positions.get(0, 0) >= told[0], "an acknowledged commit is lost"
        assert positions.get(1, 0) >= told[1], "an acknowledged commit is lost"


# --- 4: faults


@clause(level=4)
async def test_a_lost_reply_neither_loses_nor_repeats(env: Env) -> None:
    """If the outcome of a commit isn't known, what then holds ``positions`` of the table opened again tells."""
    watch = spec_of(env).watch
    if watch is None:
        not_applicable("the plugin doesn't tell its steps")
    topic = topic_of(env)
    rng = random.Random(env.random.randrange(2**32))
    losses = 0
    async with env.open() as compactor:
        left = 0

        def lose(name: str) -> None:
            nonlocal left, losses
            left -= 1
            if left == 0:
                losses += 1
                raise UnavailableError(f"the reply is lost: step={name}")

        watch(compactor, lose)
        committed = {0: 0, 1: 0}
        for epoch in range(1, 25):
            left = 1 + epoch % 8
            try:
                async with compactor.open_table(topic, epoch) as table:
                    positions = {0: 0, 1: 0} | dict(await table.positions())
                    assert all(positions[each] >= committed[each] for each in positions), "a commit is lost"
                    for _ in range(2):
                        for partition in (0, 1):
                            start, count = positions[partition], rng.randrange(4)
                            await table.write(made(partition, start, start + count))
                            positions[partition] = start + count
                        await table.commit(positions)
                        committed = dict(positions)
                    if compactor.capabilities.maintains:
                        await table.maintain()
            except UnavailableError:
                left = 0
            left = 0
            found = await check_table(compactor, topic)
            assert all(found.get(each, 0) >= offset for each, offset in committed.items()), "a commit is lost"
    assert losses >= 10, f"too few steps of a commit were told to lose their replies: {losses}"


@clause(level=4)
async def test_a_cancelled_call_neither_loses_nor_repeats(env: Env) -> None:
    """Cancelled or failed, the table is left and opened again: nothing is lost or written twice. It comes anywhere in
    the time that all takes, and directly behind each step, if the plugin tells them."""
    topic = topic_of(env)
    watch = spec_of(env).watch
    committed = epoch = told = 0
    async with env.open() as compactor:

        async def live() -> None:
            nonlocal committed, epoch
            epoch += 1
            async with compactor.open_table(topic, epoch) as table:
                position = dict(await table.positions()).get(0, 0)
                assert position >= committed, "a commit is lost"
                for _ in range(3):
                    await _commit(table, 0, position, position + 3)
                    committed = position = position + 3
                    await checkpoint()

        async def live_until(step: int) -> None:
            """Cancelled directly after so many things were done on a medium."""
            ended = False

            async def run() -> None:
                nonlocal ended
                await live()
                ended = True

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                while told < step and not ended:
                    await checkpoint()
                tasks.cancel_scope.cancel()

        async def check() -> None:
            found = await check_table(compactor, topic)
            assert found.get(0, 0) >= committed, "a commit is lost"

        # what isn't cancelled, so that cancellations come anywhere, whatever the machine's speed
        took_s = math.inf
        for number in range(14 if watch is None else 8):
            began = time.monotonic()
            with anyio.move_on_after(math.inf if number < 2 else env.random.random() * took_s) as scope:
                await live()
            if not scope.cancelled_caught:
                took_s = min(took_s, time.monotonic() - began)
            await check()
        if watch is None:
            return

        def count(_: str) -> None:
            nonlocal told
            told += 1

        watch(compactor, count)
        for step in range(1, _STEPS_MAX + 1):
            told = 0
            await live_until(step)
            await check()
