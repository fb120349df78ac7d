"""No record is missing in a table and none is there twice, whatever happens at whichever step."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._files import FileWriter
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
from pyiceberg.types import BooleanType
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records
from tests.patience import HANG_S

from penstock.errors import FencedError, InvalidRequestError, UnavailableError

pytestmark = pytest.mark.anyio

STEPS = ("table made", "table claimed", "files written", "manifests written", "committed")


async def append(compactor: IcebergCompactor, epoch: int, values: list[bytes], start: int = 0) -> None:
    async with compactor.open_table(topic(), epoch) as table:
        await table.write(lake_records(list(values), start=start))
        await table.commit({0: start + len(values)})


async def content(compactor: IcebergCompactor) -> tuple[list[bytes | None], dict[int, int]]:
    async with compactor.open_table(topic(), 0) as table:
        rows = sorted([row async for row in table.rows()], key=lambda row: row.offset)
        return [row.value for row in rows], dict(await table.positions())


def data_files(place: Path) -> set[str]:
    return {path.name for path in place.glob("lake/warehouse/kafka/orders/data/*.parquet")}


def referenced(table: Table) -> set[str]:
    return {task.file.file_path.rpartition("/")[2] for task in table.scan().plan_files()}


KILLED = """
import os, signal, sys
from pathlib import Path
import anyio
from tests.iceberg_place import opened, topic
from tests.lake_records import lake_records
import penstock_iceberg_compactor._table

async def main(place, fatal):
    async with opened(Path(place)) as compactor:
        def step(name):
            if name == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        compactor.watch(step)
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a", b"b"]))
            await table.commit({0: 2})

for argument in sys.argv[1:]:  # in a fork each: importing takes longest
    place, _, fatal = argument.partition(":")
    if not (child := os.fork()):
        anyio.run(main, place, fatal)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, argument
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Places whose owner of epoch 1 was killed at a step, one for each epoch of the next owner."""
    places = {(step, epoch): tmp_path_factory.mktemp("killed") for step in STEPS for epoch in (1, 2)}
    arguments = [f"{place}:{step}" for (step, _), place in places.items()]
    subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=HANG_S, check=True)
    return places


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("epoch", [1, 2])
async def test_after_a_kill_at_any_step_the_next_owner_goes_on_exactly_there(
    killed: dict[tuple[str, int], Path], step: str, epoch: int
) -> None:
    place = killed[step, epoch]
    async with opened(place) as compactor:
        async with compactor.open_table(topic(), epoch) as table:
            at = (await table.positions()).get(0, 0)
            assert at == (2 if step == "committed" else 0)
            if at == 0:
                await table.write(lake_records([b"a", b"b"]))
            await table.write(lake_records([b"c"], start=2))
            await table.commit({0: 3})
        assert await content(compactor) == ([b"a", b"b", b"c"], {0: 3})
        assert data_files(place) == referenced(load(compactor)), "what the killed one left is removed"


@pytest.mark.parametrize("step", STEPS[2:])
async def test_a_lost_reply_neither_loses_nor_repeats_records(tmp_path: Path, step: str) -> None:
    async with opened(tmp_path) as compactor:
        await append(compactor, 1, [b"a"])

        def lose(name: str) -> None:
            if name == step:
                raise UnavailableError("the reply is lost")

        async with compactor.open_table(topic(), 1) as table:
            compactor.watch(lose)
            await table.write(lake_records([b"b"], start=1))
            with pytest.raises(UnavailableError):
                await table.commit({0: 2})
            with pytest.raises(UnavailableError):
                await table.commit({0: 2})
        compactor.watch(lambda name: None)
        async with compactor.open_table(topic(), 1) as table:
            at = (await table.positions())[0]
            assert at == (2 if step == "committed" else 1)
            if at == 1:
                await table.write(lake_records([b"b"], start=1))
                await table.commit({0: 2})
        assert await content(compactor) == ([b"a", b"b"], {0: 2})
        assert data_files(tmp_path) == referenced(load(compactor))


@pytest.mark.parametrize("when", ["after ours", "while ours is on its way"])
async def test_a_stale_append_of_another_writer_is_there_once_and_so_are_our_rows(
    tmp_path: Path, when: str
) -> None:
    """pyiceberg plans an append that lost anew and sends it again; ours is looked at first, then planned anew."""
    async with opened(tmp_path) as compactor:
        await append(compactor, 1, [b"a"])
        async with compactor.open_table(topic(), 1) as table:
            other = load(compactor)
            theirs = other.scan().to_arrow()
            stale = other.metadata.current_snapshot_id
            await table.write(lake_records([b"b"], start=1))
            await table.commit({0: 2})
            await table.write(lake_records([b"c"], start=2))
            assert load(compactor).metadata.current_snapshot_id != stale == other.metadata.current_snapshot_id
            if when == "after ours":
                other.append(theirs)
            else:
                compactor.watch(once("manifests written", lambda: other.append(theirs)))
            await table.commit({0: 3})
        assert other.metadata.current_snapshot_id != stale, "it did commit, by itself"
        assert await content(compactor) == ([b"a", b"a", b"b", b"c"], {0: 3})
        assert data_files(tmp_path) == referenced(load(compactor)), "no file of an attempt that lost is left"


def once(step: str, act: Callable[[], object]) -> Callable[[str], None]:
    """``act`` at the first ``step``."""
    left = [act]

    def watching(name: str) -> None:
        if name == step and left:
            left.pop()()

    return watching


@pytest.mark.parametrize("written", ["before", "after"])
async def test_a_higher_epoch_fences_commits_that_are_under_way(tmp_path: Path, written: str) -> None:
    async with opened(tmp_path) as old, opened(tmp_path) as new:
        async with old.open_table(topic(), 1) as table:
            if written == "before":
                await table.write(lake_records([b"old"]))
            async with new.open_table(topic(), 2) as newer:
                if written == "after":
                    await table.write(lake_records([b"old"]))
                with pytest.raises(FencedError):
                    await table.commit({0: 1})
                await newer.write(lake_records([b"new"]))
                await newer.commit({0: 1})
        with pytest.raises(FencedError):
            async with old.open_table(topic(), 1):
                pass
        assert await content(new) == ([b"new"], {0: 1})
        assert data_files(tmp_path) == referenced(load(new))


@pytest.mark.parametrize("at", ["the claim", "a commit"])
async def test_who_was_fenced_while_a_reply_was_lost_is_fenced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """What became of the commit is looked up in metadata that have the next owner's commits, too."""
    send = Table._do_commit

    def lose(table: Table, *parts: Any) -> None:
        monkeypatch.undo()
        send(table, *parts)
        anyio.run(append, new, 3, [b"new"], start)
        raise OSError("the reply is lost")

    async def go_on(old: IcebergCompactor) -> None:
        async with old.open_table(topic(), 2) as table:
            await table.write(lake_records([b"b"], start=1))
            if at == "a commit":
                monkeypatch.setattr(Table, "_do_commit", lose)
            await table.commit({0: 2})
            await table.write(lake_records([b"c"], start=2))
            await table.commit({0: 3})

    async with opened(tmp_path) as old, opened(tmp_path) as new:
        await append(old, 1, [b"a"])
        start = 1 if at == "the claim" else 2
        if at == "the claim":
            monkeypatch.setattr(Table, "_do_commit", lose)
        with pytest.raises(FencedError):
            await go_on(old)
        wanted = [b"a", b"new"] if at == "the claim" else [b"a", b"b", b"new"]
        assert await content(new) == (wanted, {0: len(wanted)})


@pytest.mark.parametrize(
    ("reply", "next_owner"), [("lost", False), ("of a second try", False), ("of a second try", True)]
)
async def test_a_commit_is_found_although_others_expired_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str, next_owner: bool
) -> None:
    """Its rows and files are the table's by then, with nothing in the list of snapshots that says so."""
    send = Table._do_commit

    def lose(table: Table, *parts: Any) -> None:
        monkeypatch.undo()
        send(table, *parts)
        if next_owner:
            anyio.run(append, new, 2, [b"c"], 2)
        foreign = load(new)
        foreign.append(foreign.scan().to_arrow().slice(0, 1))
        snapshots = foreign.metadata.snapshots[:-1]
        foreign.maintenance.expire_snapshots().by_ids([one.snapshot_id for one in snapshots]).commit()
        raise OSError("the reply is lost") if reply == "lost" else CommitFailedException("sent twice")

    async with opened(tmp_path) as old, opened(tmp_path) as new:
        await append(old, 1, [b"a"])
        async with old.open_table(topic(), 1) as table:
            await table.write(lake_records([b"b"], start=1))
            monkeypatch.setattr(Table, "_do_commit", lose)
            if next_owner:
                with pytest.raises((FencedError, UnavailableError)):
                    await table.commit({0: 2})
            else:
                await table.commit({0: 2})
                await table.write(lake_records([b"c"], start=2))
                await table.commit({0: 3})
        rows, positions = await content(new)
        assert (sorted({row or b"" for row in rows}), len(rows), positions) == ([b"a", b"b", b"c"], 4, {0: 3})
        assert data_files(tmp_path) == referenced(load(new))


async def test_files_of_a_fenced_owner_cant_be_committed_after_they_were_removed(tmp_path: Path) -> None:
    """The planned commit is on its way to a slow catalog while a new owner cleans up."""
    async with opened(tmp_path) as old, opened(tmp_path) as new:
        newer: list[Any] = []

        async with old.open_table(topic(), 1) as table:
            await table.write(lake_records([b"old"]))

            def claim(name: str) -> None:
                if name == "manifests written" and not newer:
                    newer.append(new)
                    anyio.run(append, new, 2, [b"new"])

            old.watch(claim)
            with pytest.raises(FencedError):
                await table.commit({0: 1})
        assert await content(new) == ([b"new"], {0: 1})


async def test_an_owner_whose_file_was_removed_by_the_next_one_is_fenced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as old, opened(tmp_path) as new:

        def vanish(*_: Any) -> list[Any]:
            patch.undo()  # the next owner's is written
            anyio.run(append, new, 2, [b"new"])
            raise FileNotFoundError(errno.ENOENT, "gone")

        async with old.open_table(topic(), 1) as table:
            await table.write(lake_records([b"old"]))
            with monkeypatch.context() as patch:
                patch.setattr(FileWriter, "write", vanish)
                with pytest.raises(FencedError):
                    await table.commit({0: 1})
        assert await content(new) == ([b"new"], {0: 1})


async def test_another_writers_append_is_kept_and_positions_hold(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await append(compactor, 1, [b"a"])
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"b"], start=1))
            foreign = load(compactor)
            foreign.append(foreign.scan().to_arrow())
            await table.commit({0: 2})
            foreign.refresh()
            foreign.append(foreign.scan().to_arrow().slice(0, 1))
        assert await content(compactor) == ([b"a", b"a", b"b", b"b"], {0: 2})
        async with compactor.open_table(topic(), 2) as table:
            assert await table.positions() == {0: 2}


async def test_positions_hold_when_others_expired_our_snapshots(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await append(compactor, 1, [b"a"])
        foreign = load(compactor)
        foreign.append(foreign.scan().to_arrow())
        foreign.maintenance.expire_snapshots().by_ids(
            [one.snapshot_id for one in foreign.metadata.snapshots[:-1]]
        ).commit()
        async with compactor.open_table(topic(), 2) as table:
            assert await table.positions() == {0: 1}


async def test_a_rolled_back_table_gets_its_records_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await append(compactor, 1, [b"a"])
        before = load(compactor).current_snapshot()
        assert before is not None
        await append(compactor, 1, [b"b"], start=1)
        load(compactor).manage_snapshots().rollback_to_snapshot(before.snapshot_id).commit()
        await append(compactor, 2, [b"b2"], start=1)
        assert await content(compactor) == ([b"a", b"b2"], {0: 2})


@pytest.mark.parametrize("harm", ["foreign", "stripped", "other topic", "nonsense"])
async def test_a_table_that_penstock_cant_go_on_from_is_refused_and_not_touched(
    tmp_path: Path, harm: str
) -> None:
    async with opened(tmp_path) as compactor:
        identifier = ("kafka", "orders")
        if harm == "foreign":
            compactor.catalog.create_table(identifier, pa.schema([("x", pa.int64())]))
        else:
            await append(compactor, 1, [b"a"])
        table = load(compactor)
        if harm == "stripped":
            foreign = table.scan().to_arrow()
            compactor.catalog.drop_table(identifier)
            compactor.catalog.create_table(identifier, foreign.schema).append(foreign)
        elif harm == "nonsense":
            table.append(
                table.scan().to_arrow(),
                snapshot_properties={"penstock.version": "1", "penstock.positions": "x"},
            )
        before = load(compactor).metadata_location
        wanted = topic(topic_id="another") if harm == "other topic" else topic()
        with pytest.raises(Exception, match="drop the table") as caught:
            async with compactor.open_table(wanted, 5):
                pass
        assert type(caught.value).__name__ == ("CorruptError" if harm == "nonsense" else "ConflictError")
        assert load(compactor).metadata_location == before


async def test_an_owner_that_was_opened_again_elsewhere_commits_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a"]))
            await append(compactor, 1, [b"a"])
            with pytest.raises(FencedError, match="opened the table again"):
                await table.commit({0: 1})
        assert await content(compactor) == ([b"a"], {0: 1})


def files_of(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("warehouse/**/*") if path.is_file())


@pytest.mark.parametrize("fails", ["record", "file", "dead_letter"])
async def test_tries_that_fail_leave_the_table_as_it_was(tmp_path: Path, fails: str) -> None:
    """However many files they wrote before: a topic can stand for days, and is tried each minute."""
    policy = "dead_letter" if fails == "dead_letter" else "stop"
    configs = {"value_format": "json", "on_bad_record": policy}
    good, bad = b'{"id": "%s"}' % (b"x" * 2**20), b"{"  # more than the buffer: a file of its own

    async with opened(tmp_path, buffer=2**20) as compactor:

        def full(step: str) -> None:
            if fails == "file" and step == "files written":
                raise OSError(28, "No space left on device")

        async def attempt(last: bytes) -> None:
            async with compactor.open_table(topic(**configs), 1) as table:
                await table.write(lake_records([good, bad if fails == "dead_letter" else good]))
                await table.write(lake_records([last], start=2))
                if fails == "dead_letter" and last == bad:
                    raise UnavailableError("the broker's memory is full")
                await table.commit({0: 3})

        async with compactor.open_table(topic(**configs), 1):
            pass
        compactor.watch(full)
        seen = []
        for _ in range(3):
            with pytest.raises((InvalidRequestError, UnavailableError)):
                await attempt(bad)
            seen.append(files_of(tmp_path))
        assert seen[0] == seen[1] == seen[2]
        assert not any(name.endswith(".parquet") for name in seen[2])
        compactor.watch(lambda step: None)
        await attempt(good)
        assert load(compactor).scan().to_arrow().num_rows == (2 if fails == "dead_letter" else 3)


async def test_a_record_that_is_refused_only_when_it_is_read_again_is_a_dead_letter(tmp_path: Path) -> None:
    """A later one of its commit is one already, as dead letters are committed first."""
    configs = {"value_format": "json", "on_bad_record": "dead_letter", "on_schema_change": "dead_letter"}
    values = [b'{"n": 1}', b"bad", b'{"m": 1}', b"bad"]
    async with opened(tmp_path) as compactor:
        steps = []

        def fail(name: str) -> None:
            steps.append(name)
            if steps.count("manifests written") == 2:
                raise UnavailableError("the catalog is away")

        async with compactor.open_table(topic(**configs), 1):
            pass
        async with compactor.open_table(topic(**configs), 1) as table:
            compactor.watch(fail)
            await table.write(lake_records(list(values)))
            with pytest.raises(UnavailableError):
                await table.commit({0: 4})
        compactor.watch(lambda name: None)
        foreign = load(compactor)
        foreign.update_schema().delete_column("n").commit()
        foreign.update_schema().add_column("n", BooleanType()).commit()
        async with compactor.open_table(topic(**configs), 1) as table:
            await table.write(lake_records(list(values)))
            await table.commit({0: 4})
        dead = load(compactor, "orders__dead_letter").scan().to_arrow().column("offset").to_pylist()
        rows = load(compactor).scan().to_arrow().column("m").to_pylist()
        assert (sorted(dead), rows) == ([0, 1, 3], [1])
