"""Maintenance changes neither rows nor positions, and leaves nothing that nobody needs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from penstock_iceberg_compactor import _maintain, _owned
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._maintain import Reach
from penstock_iceberg_compactor._scan import read_parts
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import StringType
from tests.depth import how_many
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records

from penstock.errors import FencedError

pytestmark = pytest.mark.anyio

#: 500 by hand: the figures of docs/lake.md.
COMMITS = how_many("lake_commits")
EAGER = {"snapshot_retention_ms": "0", "snapshot_retention_count": "1"}


async def commits(compactor: IcebergCompactor, count: int, start: int = 0) -> None:
    async with compactor.open_table(topic(**EAGER), 1) as table:
        for offset in range(start, start + count):
            await table.write(lake_records([b"%d" % offset], start=offset))
            await table.commit({0: offset + 1})


def data_files(place: Path) -> set[Path]:
    return set(place.glob("lake/warehouse/kafka/orders/data/*.parquet"))


def files(place: Path) -> set[Path]:
    return {path for path in place.glob("lake/warehouse/**/*") if path.is_file()}


async def values(compactor: IcebergCompactor) -> list[int]:
    async with compactor.open_table(topic(), 0) as table:
        return sorted([int(row.value or b"") async for row in table.rows()])


async def test_snapshots_that_somebody_else_expires_meanwhile_are_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head stays where it was, so nothing else tells that the plan doesn't fit the table any more."""

    def expired(self: Reach, snapshots: Iterable[Snapshot]) -> dict[str, int]:
        monkeypatch.undo()
        table = load(compactor)
        old = [one.snapshot_id for one in table.metadata.snapshots if one != table.current_snapshot()]
        table.maintenance.expire_snapshots().by_ids(old).commit()
        return reached(self, snapshots)

    reached = Reach.of
    async with opened(tmp_path) as compactor:
        await commits(compactor, 3)
        async with compactor.open_table(topic(**EAGER, target_file_bytes="1048576"), 1) as table:
            await table.maintain()
            await table.write(lake_records([b"3"], start=3))
            await table.commit({0: 4})
            monkeypatch.setattr(Reach, "of", expired)
            await table.maintain()
            await table.write(lake_records([b"4"], start=4))
            await table.commit({0: 5})
        assert await values(compactor) == [0, 1, 2, 3, 4]


async def test_files_that_somebody_else_removes_while_they_are_read_are_left_to_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(table: Table, task: FileScanTask) -> Iterator[pa.Table]:
        monkeypatch.undo()
        load(compactor).delete("offset = 0")
        first.unlink()
        return read_parts(table, task)

    async with opened(tmp_path) as compactor:
        await commits(compactor, 1)
        (first,) = data_files(tmp_path)
        await commits(compactor, 2, 1)
        async with compactor.open_table(topic(**EAGER), 1) as table:
            monkeypatch.setattr(_maintain, "read_parts", gone)
            done = await table.maintain()
            assert done.figures["data files left to other writers"] == 3
            assert len(data_files(tmp_path)) == 2, "nothing is left of what was begun"
            assert (await table.maintain()).figures["data files rewritten"] == 2
        assert await values(compactor) == [1, 2]


async def test_many_small_commits_become_one_file_one_manifest_and_no_orphan(tmp_path: Path) -> None:
    async with opened(tmp_path, orphan_grace=0) as compactor:
        await commits(compactor, COMMITS)
        orphan = tmp_path / "lake/warehouse/kafka/orders/data/left.parquet"
        orphan.write_bytes(b"x" * 100)
        async with compactor.open_table(topic(**EAGER), 0) as table:
            before = files(tmp_path)
            plan = await table.maintain(dry_run=True)
            assert files(tmp_path) == before, "a dry run changes nothing"
            assert plan.figures["data files rewritten"] == COMMITS
            assert plan.figures["orphans removed"] >= 1, "and manifests that were merged at once"
        async with compactor.open_table(topic(**EAGER), 1) as table:
            done = await table.maintain()
            assert await table.positions() == {0: COMMITS}
            assert (done.figures["data files before"], done.figures["data files after"]) == (COMMITS, 1)
            assert done.figures["manifests merged"] > 1
            head = load(compactor).current_snapshot()
            assert head is not None
            assert len(head.manifests(load(compactor).io)) <= 2
            assert done.saved_bytes > 0
            await table.maintain()
            left = files(tmp_path)
            await table.write(lake_records([b"%d" % COMMITS], start=COMMITS))
            await table.commit({0: COMMITS + 1})
        assert await values(compactor) == list(range(COMMITS + 1))
        data = [path for path in left if path.suffix == ".parquet"]
        assert len(data) == 1
        assert not orphan.exists()
        if COMMITS > 100:
            print(f"{COMMITS} commits: {len(before)} files before, {len(left)} after", done.figures)  # noqa: T201 # of -s


async def test_the_table_of_dead_letters_is_maintained_too(tmp_path: Path) -> None:
    """Each commit with some leaves a snapshot and a file there, also those of openings before."""
    bad = topic(**EAGER, value_format="json", on_bad_record="dead_letter")
    async with opened(tmp_path, orphan_grace=0) as compactor:
        async with compactor.open_table(bad, 1) as table:
            for offset in range(2):
                await table.write(lake_records([b"bad"], start=offset))
                await table.commit({0: offset + 1})
        before = files(tmp_path)
        for epoch in (0, 2):
            async with compactor.open_table(bad, epoch) as table:
                done = await table.maintain(dry_run=not epoch)
                assert done.figures["data files rewritten"] == 2
            assert epoch or files(tmp_path) == before, "a dry run changes nothing"
        dead = load(compactor, "orders__dead_letter")
        assert len(list(dead.scan().plan_files())) == 1
        assert len(dead.metadata.snapshots) == 1
        async with compactor.open_table(bad, 2) as table:  # and goes on
            await table.write(lake_records([b"bad"], start=2))
            await table.commit({0: 3})
        dead.refresh()
        assert sorted(dead.scan().to_arrow().column("offset").to_pylist()) == [0, 1, 2]


async def test_files_of_others_that_are_young_stay(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await commits(compactor, 2)
        young = tmp_path / "lake/warehouse/kafka/orders/data/young.parquet"
        young.write_bytes(b"x")
        async with compactor.open_table(topic(**EAGER), 1) as table:
            assert (await table.maintain()).figures["orphans removed"] == 0
        assert young.exists()


async def test_snapshots_that_are_kept_can_be_read_after_maintenance(tmp_path: Path) -> None:
    async with opened(tmp_path, orphan_grace=0) as compactor:
        await commits(compactor, 4)
        table = load(compactor)
        head = table.current_snapshot()
        assert head is not None
        assert head.parent_snapshot_id is not None
        table.manage_snapshots().create_tag(head.parent_snapshot_id, "kept").commit()
        async with compactor.open_table(topic(**EAGER), 1) as owned:
            await owned.maintain()
        table.refresh()
        assert len(table.scan(snapshot_id=head.parent_snapshot_id).to_arrow()) == 3
        assert len(table.scan().to_arrow()) == 4


async def test_a_snapshot_that_somebody_names_during_maintenance_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, orphan_grace=0) as compactor:
        await commits(compactor, 3)
        before = load(compactor).metadata.snapshots[1].snapshot_id
        reach = Reach.of

        def named(self: Reach, snapshots: Iterable[Snapshot]) -> dict[str, int]:
            monkeypatch.undo()
            load(compactor).manage_snapshots().create_tag(before, "kept").commit()
            return reach(self, snapshots)

        monkeypatch.setattr(Reach, "of", named)
        async with compactor.open_table(topic(**EAGER), 1) as owned:
            assert (await owned.maintain()).figures["snapshots expired"] > 0
        table = load(compactor)
        assert table.metadata.refs["kept"].snapshot_id == before
        assert len(table.scan(snapshot_id=before).to_arrow()) == 1


async def test_a_fenced_owner_maintains_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, orphan_grace=0) as compactor:
        await commits(compactor, 3)
        async with compactor.open_table(topic(**EAGER), 1) as table:
            async with compactor.open_table(topic(**EAGER), 2):
                before = load(compactor).metadata_location
                with pytest.raises(FencedError):
                    await table.maintain()
                assert load(compactor).metadata_location == before
        assert await values(compactor) == [0, 1, 2]


async def test_maintenance_beside_a_writer_that_is_faster_each_time_leaves_the_rows_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_owned, "_TRIES_MAX", 1)
    theirs = 0
    async with opened(tmp_path) as compactor:
        await commits(compactor, 3)

        def foreign(name: str) -> None:
            nonlocal theirs
            if name == "manifests written":
                theirs += 1
                table = load(compactor)
                table.append(table.scan().to_arrow().slice(0, 1))

        async with compactor.open_table(topic(**EAGER), 1) as table:
            compactor.watch(foreign)
            done = await table.maintain()
        assert (done.figures["data files rewritten"], done.figures["data files left to other writers"]) == (
            0,
            3,
        )
        compactor.watch(lambda name: None)
        async with compactor.open_table(topic(**EAGER), 1) as table:
            assert await table.positions() == {0: 3}
            await table.maintain()
        assert len(await values(compactor)) == 3 + theirs
        assert only_known(compactor, tmp_path)


def only_known(compactor: IcebergCompactor, place: Path) -> bool:
    """Whether the files of rows are those of the table, and no other is there."""
    known = {task.file.file_path.rpartition("/")[2] for task in load(compactor).scan().plan_files()}
    return {path.name for path in files(place) if path.suffix == ".parquet"} == known


@pytest.mark.parametrize("lost", [1, 2])
async def test_what_was_rewritten_is_committed_behind_others_commits_by_halves_if_need_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """The files that were rewritten are there still, so they aren't read again for the second try."""
    monkeypatch.setattr(_owned, "_TRIES_MAX", 2)
    parts = topic(**EAGER, partition_by="partition")
    steps = []

    def watch(name: str) -> None:
        steps.append(name)
        if name == "manifests written" and steps.count(name) <= lost:
            table = load(compactor)
            table.append(table.scan().to_arrow().slice(0, 1))

    async with opened(tmp_path) as compactor:
        async with compactor.open_table(parts, 1) as table:
            for offset in range(4):
                await table.write(lake_records([b"%d" % offset], start=offset // 2, partition=offset % 2))
                await table.commit({offset % 2: offset // 2 + 1})
            compactor.watch(watch)
            done = await table.maintain()
            assert done.figures["data files rewritten"] == 4
            assert steps.count("file rewritten") == (2 if lost == 1 else 4)
        assert sorted(set(await values(compactor))) == [0, 1, 2, 3]
        assert len(await values(compactor)) == 4 + lost


async def test_rows_that_another_writer_deletes_during_maintenance_dont_come_back(tmp_path: Path) -> None:
    """What it deleted of one file keeps no other from being rewritten."""
    parts = topic(**EAGER, partition_by="partition")

    def foreign(name: str) -> None:
        if name == "manifests written":
            compactor.watch(lambda name: None)
            load(compactor).delete("partition = 0 and offset = 1")

    async with opened(tmp_path, orphan_grace=0) as compactor:
        async with compactor.open_table(parts, 1) as table:
            for offset in range(4):
                await table.write(lake_records([b"%d" % offset], start=offset // 2, partition=offset % 2))
                await table.commit({offset % 2: offset // 2 + 1})
            compactor.watch(foreign)
            done = await table.maintain()
        assert (done.figures["data files rewritten"], done.figures["data files left to other writers"]) == (
            2,
            2,
        )
        assert await values(compactor) == [0, 1, 3]
        assert only_known(compactor, tmp_path)


async def test_snapshots_of_others_that_lead_to_the_newest_stamp_stay(tmp_path: Path) -> None:
    """Without them the table would look as if somebody had replaced its history."""
    async with opened(tmp_path) as compactor:
        await commits(compactor, 1)
        for _ in range(3):
            foreign = load(compactor)
            foreign.overwrite(foreign.scan().to_arrow())
        async with compactor.open_table(topic(**EAGER), 1) as table:
            assert (await table.maintain()).figures["snapshots expired"] > 3
        async with compactor.open_table(topic(**EAGER), 2) as table:
            assert await table.positions() == {0: 1}
        assert await values(compactor) == [0]


async def test_maintenance_that_lost_to_a_change_of_columns_has_each_row_once(tmp_path: Path) -> None:
    """It is tried again, as the rows are the same; the files of the first attempt are no part of the second."""
    async with opened(tmp_path) as compactor:
        await commits(compactor, 3)

        def foreign(name: str) -> None:
            if name == "manifests written":
                compactor.watch(lambda name: None)
                load(compactor).update_schema().add_column("more", StringType()).commit()

        async with compactor.open_table(topic(**EAGER), 1) as table:
            compactor.watch(foreign)
            done = await table.maintain()
        assert (done.figures["data files rewritten"], done.figures["data files after"]) == (3, 1)
        assert await values(compactor) == [0, 1, 2]
        assert only_known(compactor, tmp_path)


async def test_a_clock_that_jumps_leaves_a_table_that_every_reader_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iceberg's Java library refuses a log of snapshots that isn't sorted, but for a minute."""
    now, jumped_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + jumped_s[0])
    async with opened(tmp_path) as compactor:
        for offset, jump_s in enumerate((0, 86_400 * 365, -86_400, 0, 10)):
            jumped_s[0] = jump_s
            await commits(compactor, 1, start=offset)
            async with compactor.open_table(topic(**EAGER), 1) as table:
                done = await table.maintain()
            log = [entry.timestamp_ms for entry in load(compactor).metadata.snapshot_log]
            assert log == sorted(log)
            if offset > 1:
                assert not done.figures["snapshots expired"], "nobody knows how old they are"
        assert await values(compactor) == [0, 1, 2, 3, 4]
