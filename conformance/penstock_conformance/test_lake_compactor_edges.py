"""Clauses of ``penstock.spi.lake``: who only looks, who is refused, and what fails or is cancelled half-way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
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
from penstock.lake.configs import LAKE_PREFIX, topic_config_table
from penstock.log.errors import KafkaError
from penstock.log.topic_config import TopicConfigTable
from penstock.spi.lake import LakeRecord, LakeTopicConfig
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises
from penstock_conformance._lake import check_table, columns, made, spec_of, topic_of
from penstock_conformance._leaks import looks_leave_nothing
from penstock_conformance._medium import unsynced_files
from penstock_conformance._pace import Pace
from penstock_conformance._private import each_access, without_umask

KIND = "lake_compactor"

_OTHER_ID = "5a1c9d20-0000-4000-8000-000000000501"
_NAME = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")
#: What a topic may be given where no values are listed: texts, numbers and lists, and the longest one.
_VALUES = (
    *(
        "",
        "x",
        "true",
        "false",
        "0",
        "1",
        "-1",
        str(2**31 - 1),
        str(2**63 - 1),
        "a,b,,a",
        "a=b",
        "a:b",
        "(",
        "%s{0}",
    ),
    *("\0", "a\nb", "\u202e\u00e4\U0001f600", "https://user:word@host/path?a=b", "9" * 5000, "x" * 32_767),
)
_FAULT_CHARS_MAX = 2000
_SMALL_BYTES = 500
_STEPS_MAX = 12


async def _commit(table: Any, start: int, stop: int) -> Any:
    await table.write(made(0, start, stop))
    return await table.commit({0: stop})


async def test_who_looks_is_not_fenced(env: Env) -> None:
    """Epoch 0 only looks: it tells of the table as it was, or as it is, whoever claims it meanwhile."""
    topic = topic_of(env)
    async with env.open() as compactor, env.open() as reader:
        async with compactor.open_table(topic, 1) as table:
            await _commit(table, 0, 5)
        async with reader.open_table(topic, 0) as looked, compactor.open_table(topic, 2) as table:
            await _commit(table, 5, 8)
            for _ in range(2):
                position = (await looked.positions()).get(0)
                assert position in (5, 8), f"who looks is told of {position}, and it was 5 and is 8"
                offsets = sorted([row.offset async for row in looked.rows()])
                assert offsets in (list(range(5)), list(range(8))), f"who looks finds these rows: {offsets}"
                assert await looked.describe(), "who looks is told nothing"


async def test_an_empty_table_is_a_table(env: Env) -> None:
    """A table of which nothing was committed is described, looked at and maintained like any other."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 1) as table:
            facts = dict(await table.describe())
        async with compactor.open_table(topic, 0) as looked:
            facts |= await looked.describe()
            if compactor.capabilities.maintains:
                assert (await looked.maintain(dry_run=True)).dry_run
        odd = {word: fact for word, fact in facts.items() if not isinstance(fact, str)}
        assert facts, "nothing is told of an empty table"
        assert not odd, f"facts that are no text: {odd}"


async def test_a_commit_tells_of_its_own_files(env: Env) -> None:
    """A commit tells what it added, not what the table has: of ten alike the last has no more files."""
    async with env.open() as compactor, compactor.open_table(topic_of(env), 1) as table:
        files = [(await _commit(table, number, number + 1)).files for number in range(10)]
        assert files[-1] <= files[0], f"ten commits of one record each say so many files: {files}"
        for start in range(10, 18):
            await table.write(made(0, start, start + 1))
        commit = await table.commit({0: 18})
        assert commit.files > 0, f"eight records are in no file: {commit}"
        assert commit.size_bytes > 0, f"eight records take no room: {commit}"


async def test_who_is_refused_disturbs_nobody(env: Env) -> None:
    """An opening that is refused, by topic or epoch, takes nothing from the owner: not what it wrote either."""
    topic = topic_of(env)
    async with env.open() as compactor, env.open(node_id=2) as others:
        async with compactor.open_table(topic, 3) as table:
            await _commit(table, 0, 5)
            await table.write(made(0, 5, 9))
            for other in (
                topic_of(env, topic_id=_OTHER_ID),
                topic_of(env, name="another", topic_id=_OTHER_ID, table=table.name),
            ):
                with suppress(PenstockError):  # or it has a table of its own
                    async with others.open_table(other, 4) as its:
                        assert dict(await its.positions()) == {}, (
                            "a topic goes on in the table of another one"
                        )
            with raises(FencedError):
                async with others.open_table(topic, 2):
                    pass
            await table.commit({0: 9})
        await check_table(others, topic, {0: 9})


async def test_refused_openings_leave_nothing_open(env: Env) -> None:
    """However often an opening is refused, no descriptor, task or thread stays of it."""
    topic = topic_of(env)
    async with env.open() as compactor:
        async with compactor.open_table(topic, 5) as table:
            await _commit(table, 0, 5)

        async def refused() -> None:
            with raises(FencedError):
                async with compactor.open_table(topic, 4):
                    pass
            with suppress(ConflictError):
                async with compactor.open_table(topic_of(env, topic_id=_OTHER_ID), 6):
                    pass
            with raises(NotFoundError):
                async with compactor.open_table(
                    topic_of(env, name="missing", topic_id=f"{_OTHER_ID[:-1]}2"), 0
                ):
                    pass

        await looks_leave_nothing(refused)


async def test_tables_are_sorted(env: Env) -> None:
    """The names of the tables, sorted, whatever letters they are of."""
    async with env.open() as compactor:
        for number, name in enumerate(("b", "B", "a", "C", "a-", "a0")):
            topic = topic_of(env, name=name, topic_id=f"5a1c9d20-0000-4000-8000-00000000060{number}")
            with suppress(ConflictError):
                async with compactor.open_table(topic, 1):
                    pass
        names = list(await compactor.tables())
        assert names == sorted(names), f"tables aren't sorted: {names}"


async def test_a_write_that_fails_costs_nothing(env: Env) -> None:
    """What a compactor keeps it charges, and gives back when the table is left: also where a write was refused."""
    policies = spec_of(env).policies
    if policies is None or "stop" not in policies.configs:
        not_applicable("there is no policy to stop")
    topic = topic_of(env, policies.configs["stop"])
    rows = [LakeRecord(0, 0, 5, b"k", policies.good), LakeRecord(0, 1, 5, b"k", policies.bad)]
    async with env.open() as compactor:
        before = env.account.statistics().used_bytes
        for _ in range(2):
            with suppress(InvalidRequestError):
                async with compactor.open_table(topic, 1) as table:
                    await table.write(columns(0, rows, 0, 2))
                    await table.commit({0: 2})
            used = env.account.statistics().used_bytes
            assert used == before, f"{used - before} bytes stay charged after a write that failed"


async def test_positions_pass_what_was_rejected(env: Env) -> None:
    """Records that go where the policy sends them are done with: positions move, also past batches of no row."""
    policies = spec_of(env).policies
    others = (
        {} if policies is None else {name: made for name, made in policies.configs.items() if name != "stop"}
    )
    if policies is None or not others:
        not_applicable("there is no policy but to stop")
    for number, (policy, configs) in enumerate(others.items()):
        topic = topic_of(env, configs, name=f"policy-{number}")
        async with env.open() as compactor, compactor.open_table(topic, 1) as table:
            for start, value in ((0, policies.bad), (3, policies.good), (6, policies.bad)):
                rows = [LakeRecord(0, start + at, 5, b"k", value) for at in range(3)]
                written = await table.write(columns(0, rows, start, start + 3))
                there = 0 if value == policies.bad else 3
                found = (written.rows, sum(written.rejected.values()))
                assert found == (there, 3 - there), f"{policy}: of 3 records {there} can be read: {written}"
                await table.commit({0: start + 3})
                told = dict(await table.positions())
                assert told == {0: start + 3}, f"{policy}: committed up to {start + 3}, positions are {told}"


async def test_files_are_for_nobody_else(env: Env) -> None:
    """``access`` are the modes of local directories and files that hold data, whatever the umask says."""
    topic = topic_of(env)
    for place, access in each_access(env):
        with without_umask(place, access) as check_modes:
            async with place.open(access=access) as compactor, compactor.open_table(topic, 1) as table:
                for stop in (2, 4):
                    await _commit(table, stop - 2, stop)
                if compactor.capabilities.maintains:
                    await table.maintain()
                await table.write(made(0, 4, 6))
                check_modes()


async def test_topic_configs_are_those_that_a_topic_can_have(env: Env) -> None:
    """Lowercase words joined by dots, none twice and none of the kernel's, of which a sentence says what they are;
    a default is one of the values, and of the defaults, the raw configs and those of policies nothing is wrong."""
    spec = spec_of(env)
    try:
        table = topic_config_table(spec, {}, {})
    except PenstockError as error:
        raise AssertionError(f"no broker takes these topic configs: {error}") from error
    for config in spec.topic_configs:
        assert _NAME.fullmatch(config.name), f"a name of other than lowercase words: {config.name!r}"
        assert config.doc.strip(), f"nothing says what it is: {config.name}"
        assert len(config.doc.splitlines()) == 1, f"it takes more than a sentence to say: {config.name}"
        if config.type == "boolean":
            assert set(config.choices) in (set(), {"true", "false"}), (
                f"a boolean has two values: {config.name}"
            )
    chosen = {"raw_configs": spec.raw_configs}
    if spec.policies is not None:
        chosen |= {f"the policy {policy}": configs for policy, configs in spec.policies.configs.items()}
    chosen |= {"the defaults": {config.name: config.default for config in spec.topic_configs}}
    for what, configs in chosen.items():
        for name, value in configs.items():
            try:
                kept = table.validate(LAKE_PREFIX + name, value)
            except KafkaError as error:
                raise AssertionError(f"no topic can have what {what} says: {error}") from error
            assert kept == value, f"{what}: a topic has it as {kept!r} instead of {value!r}: {name}"
        fault = spec.fault_of(topic_of(env, configs).configs)
        assert fault == "", f"{what} can't be used: {fault}"


async def test_what_is_wrong_with_configs_is_told(env: Env) -> None:
    """One sentence, empty if nothing is wrong, the same each time, for whatever values a topic can have: it never
    raises, and tells no more of a long value than a person can read."""
    spec = spec_of(env)
    table = topic_config_table(spec, {}, {})
    values = {config.name: list(_values(table, config)) for config in spec.topic_configs}
    told: list[tuple[Mapping[str, str], str]] = []
    defaults = {config.name: config.default for config in spec.topic_configs}
    each = [{**defaults, name: value} for name, some in values.items() for value in some]
    several = [{name: env.random.choice(some) for name, some in values.items()} for _ in range(len(each))]
    for values_of_all in each + several:
        configs = MappingProxyType(values_of_all)
        try:
            fault = spec.fault_of(configs)
        except Exception as error:
            raise AssertionError(f"it must not raise: {type(error).__name__}: {str(error)[:200]}") from error
        assert isinstance(fault, str), f"what is wrong is a text, empty if nothing is: {fault!r}"
        assert fault.isprintable(), f"no sentence for people: {fault[:200]!r}"
        assert len(fault) <= _FAULT_CHARS_MAX, f"no sentence has {len(fault)} characters: {fault[:200]}..."
        told.append((configs, fault))
    for before, fault in reversed(told):
        assert spec.fault_of(before) == fault, f"of the same values something else is said: {fault}"


def _values(table: TopicConfigTable, config: LakeTopicConfig) -> Iterator[str]:
    """Some that a topic can have, as the kernel hands them over."""
    for value in (*config.choices, *_VALUES):  # of numbers, a topic may have more than what is listed
        with suppress(KafkaError):
            yield table.validate(LAKE_PREFIX + config.name, value)


@clause(level=4, claims="maintains")
async def test_cancelled_maintenance_changes_nothing(env: Env) -> None:
    """Cancelled or failed, the table is as good as before: every row is there once, and its owner goes on."""
    topic = topic_of(env)
    async with env.open() as compactor:
        for epoch, turns in enumerate((1, 2, 4), 1):
            async with compactor.open_table(topic, epoch) as table:
                start = dict(await table.positions()).get(0, 0)
                for stop in (start + 2, start + 4):
                    await _commit(table, stop - 2, stop)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(table.maintain)
                    for _ in range(turns):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
            await check_table(compactor, topic, {0: start + 4})


# --- 3: what a power cut would take


@clause(level=3)
async def test_commits_are_on_the_disk(env: Env) -> None:
    """Durable when it returns: nothing of a commit, or of maintenance, waits to be written."""
    topic = topic_of(env)
    async with env.open() as compactor, compactor.open_table(topic, 1) as table:
        before = {path for path in env.data_dir.rglob("*") if path.is_file()}
        for number in range(3):
            stop = 100 * number + 100
            await table.write(made(0, stop - 100, stop, 2000))
            idle = _small_and_unsynced(env.data_dir)
            await table.commit({0: stop})
            _check_synced(env.data_dir, idle, "a commit of rows")
            idle = _small_and_unsynced(env.data_dir)
            await table.commit({0: stop, 1: stop})
            _check_synced(env.data_dir, idle, "a commit of positions")
        if not {path for path in env.data_dir.rglob("*") if path.is_file()} - before:
            not_applicable("the tables aren't in files of the data directory")
        if compactor.capabilities.maintains:
            idle = _small_and_unsynced(env.data_dir)
            await table.maintain()
            _check_synced(env.data_dir, idle, "maintenance")


def _written(path: Path) -> tuple[int, int]:
    """Its size, and when it was written; nothing of one that is gone."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return 0, 0


def _small_and_unsynced(folder: Path) -> set[tuple[Path, tuple[int, int]]]:
    """Who owns a lock may be written somewhere, and needn't outlast anything; no rows are in so few bytes."""
    found = {(path, _written(path)) for path in unsynced_files(folder)}
    return {(path, (size, when)) for path, (size, when) in found if size < _SMALL_BYTES}


def _check_synced(folder: Path, idle: set[tuple[Path, tuple[int, int]]], what: str) -> None:
    waiting = {
        path: size
        for path, size in unsynced_files(folder).items()
        # SQLite's index of its log is memory that processes share
        if not path.name.endswith("-shm") and (path, _written(path)) not in idle
    }
    assert not waiting, (
        f"{sum(waiting.values())} bytes aren't on the disk when {what} returns, of {min(waiting)}"
    )


# --- 4: faults


@clause(level=4, claims="maintains")
async def test_failed_maintenance_changes_nothing(env: Env) -> None:
    """Cancelled or failed, the table is as good as before: whichever thing that it did was the last one."""
    watch = spec_of(env).watch
    if watch is None:
        not_applicable("the plugin doesn't tell its steps")
    topic, pace = topic_of(env), Pace(env.target.deadline_s / 4, _STEPS_MAX)
    async with env.open() as compactor:
        left = 0

        def lose(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise UnavailableError(f"the reply is lost: step={name}")

        watch(compactor, lose)
        for number in range(1, _STEPS_MAX + 1):
            left = 0
            async with compactor.open_table(topic, number) as table:
                start = dict(await table.positions()).get(0, 0)
                for stop in (start + 2, start + 4):
                    await _commit(table, stop - 2, stop)
                left = number
                with suppress(UnavailableError):
                    await table.maintain()
                was_last, left = left > 0, 0
            await check_table(compactor, topic, {0: start + 4})
            pace.step()
            if was_last or pace.is_over:
                break
