"""Broken lake compactors."""

from __future__ import annotations

__all__ = ()

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio

from penstock.errors import NotFoundError, UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi.allocator import Charge
from penstock.spi.lake import (
    LakeCommit,
    LakeCompactor,
    LakeCompactorSpec,
    LakeMaintenance,
    LakeRecord,
    LakeRecords,
    LakeTopic,
    LakeWritten,
)
from penstock.spi.plugin import Services
from penstock_conformance.mutants._mutant import NAME, SUMMARY, Defective, make, mutant
from penstock_conformance.reference._lake_compactor import (
    JsonLinesCompactor,
    JsonLinesTable,
    _record,
)
from penstock_conformance.reference._lake_compactor import (
    penstock_register_lake_compactor as _reference,
)
from penstock_conformance.reference._plugin import closing

KIND = "lake_compactor"
_SPEC = _reference()


class _Broken(JsonLinesCompactor):
    """Opens tables of a class that is broken."""

    def __init__(self, services: Services, table: type[JsonLinesTable]) -> None:
        super().__init__(services.data_dir / "lake", services.access)
        self._table_class = table

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        return self._table_class(self, topic, epoch)


def _broken(
    defect: str, *caught_by: str, level: int = 1, on_disk: bool = False
) -> Callable[[type[JsonLinesTable]], type[JsonLinesTable]]:
    """Register a class of tables as a mutant."""

    def register(table: type[JsonLinesTable]) -> type[JsonLinesTable]:
        class Compactor(_Broken):
            def __init__(self, services: Services) -> None:
                super().__init__(services, table)

        mutant(KIND, defect, *caught_by, level=level, on_disk=on_disk)(Compactor)
        return table

    return register


@_broken("takes_null_for_empty", "rows_are_the_records")
class TakesNullForEmpty(JsonLinesTable):
    """Writes an empty value where there is none."""

    def _row(self, row: LakeRecord) -> dict[str, Any]:
        return super()._row(row._replace(value=row.value or b""))


@_broken("folds_headers_of_one_name", "rows_are_the_records")
class FoldsHeaders(JsonLinesTable):
    """Keeps headers in a map, so the last of a name wins."""

    def _row(self, row: LakeRecord) -> dict[str, Any]:
        return super()._row(row._replace(headers=tuple(dict(row.headers).items())))


@_broken("shows_what_is_written", "nothing_is_visible_before_a_commit")
class ShowsWhatIsWritten(JsonLinesTable):
    """Puts each file into the manifest at once."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        with self._locked():
            manifest = self._read()
            files, self._files = self._files, []
            self._replace({**manifest, "files": manifest["files"] + files})
        return written


@_broken("goes_on_from_what_is_written", "nothing_is_visible_before_a_commit")
class GoesOnFromWhatIsWritten(JsonLinesTable):
    """Tells its owner the positions that it has, committed or not."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        self._written = {records.partition: records.next_offset}
        return super()._write(records)

    async def positions(self) -> Mapping[int, int]:
        return {**await super().positions(), **getattr(self, "_written", {})}


@_broken("opens_its_manifest_with_each_commit", "commits_and_looks_leave_nothing_open")
class OpensItsManifestWithEachCommit(JsonLinesTable):
    """And never closes it."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        os.open(self._folder / "manifest.json", os.O_RDONLY)
        return super()._commit(positions)


@_broken("forgets_other_partitions", "positions_of_other_partitions_stay")
class ForgetsOtherPartitions(JsonLinesTable):
    """Stores the positions of the newest commit only."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        commit = super()._commit(positions)
        with self._locked():
            manifest = self._read()
            self._replace({**manifest, "positions": {str(key): value for key, value in positions.items()}})
        return commit


@_broken("skips_commits_without_rows", "positions_move_without_records")
class SkipsCommitsWithoutRows(JsonLinesTable):
    """Nothing was written, so there is nothing to commit."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        if not self._files:
            return LakeCommit(version=str(self._version), files=0, rows=0, size_bytes=0)
        return super()._commit(positions)


@_broken("derives_positions_from_rows", "positions_move_without_records")
class DerivesPositionsFromRows(JsonLinesTable):
    """Says that a partition goes on after its last row."""

    _last: dict[int, int]

    def _write(self, records: LakeRecords) -> LakeWritten:
        self._last = {**getattr(self, "_last", {}), records.partition: records.offsets[-1] + 1}
        return super()._write(records)

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        last = getattr(self, "_last", {})
        return super()._commit({key: last.get(key, value) for key, value in positions.items()})


@_broken("commits_what_was_left", "what_was_not_committed_is_dropped")
class CommitsWhatWasLeft(JsonLinesTable):
    """Adds the files that it finds at the next opening, instead of removing them."""

    def drop_uncommitted(self) -> None:
        """Leave them for the next opening."""

    def _remove_unknown(self, manifest: Mapping[str, Any]) -> None:
        known = {file["name"] for file in manifest["files"]}
        for path in sorted(self._folder.glob("*.jsonl")):
            if path.name not in known:
                data = path.read_bytes()
                self._files.append({"name": path.name, "rows": data.count(b"\n"), "bytes": len(data)})


@_broken("keeps_records_until_the_commit", "records_are_not_kept_beyond_a_write")
class KeepsRecords(JsonLinesTable):
    """Writes files when they are committed, from memory that isn't its own any more."""

    _kept: list[LakeRecords]

    async def write(self, records: LakeRecords) -> LakeWritten:
        self._kept = [*getattr(self, "_kept", []), records]
        return LakeWritten(rows=len(records))

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        kept, self._kept = getattr(self, "_kept", []), []
        for records in kept:
            if len(records):
                self._write(records)
        return super()._commit(positions)


@_broken("never_looks_at_the_epoch", "a_higher_epoch_fences", "a_claim_alone_fences")
class NeverLooksAtTheEpoch(JsonLinesTable):
    """Lets everybody commit on top of what is there."""

    def _current(self) -> dict[str, Any]:
        manifest = self._read()
        self._version = manifest["version"]
        return manifest


@_broken("opens_with_any_epoch", "a_lower_epoch_cannot_open")
class OpensWithAnyEpoch(JsonLinesTable):
    """Whoever comes last is the owner."""

    def open(self) -> None:
        """Take the table over whatever the epoch is."""
        if self._epoch:
            with contextlib.suppress(NotFoundError):
                manifest = self._read()
                if manifest.get("epoch", 0) > self._epoch:
                    self._replace({**manifest, "epoch": self._epoch})
        super().open()


@_broken("claims_with_the_first_commit", "a_claim_alone_fences")
class ClaimsWithTheFirstCommit(JsonLinesTable):
    """An opening says nothing of its epoch; a commit does."""

    _opening = False

    def open(self) -> None:
        """Open without a claim."""
        self._opening = True
        super().open()
        self._opening = False

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        if self._opening:
            try:
                manifest = {**manifest, "epoch": self._read().get("epoch", 0)}
            except NotFoundError:
                manifest = {**manifest, "epoch": 0}
        else:
            manifest = {**manifest, "epoch": self._epoch}
        super()._replace(manifest)


@_broken("makes_what_it_looks_for", "epoch_zero_only_looks")
class MakesWhatItLooksFor(JsonLinesTable):
    """Makes an empty table for who only looks."""

    def open(self) -> None:
        """Make the table first."""
        if not self._epoch and not (self._folder / "manifest.json").exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._replace({"topic_id": self._topic.topic_id, "version": 0, "positions": {}, "files": []})
        super().open()


@_broken("leaves_a_folder_where_it_looked", "epoch_zero_only_looks")
class LeavesAFolderWhereItLooked(JsonLinesTable):
    """Makes the folder of a table that isn't there, also for who only looks."""

    def open(self) -> None:
        """Make the folder first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        super().open()


@_broken("cleans_while_it_looks", "epoch_zero_only_looks")
class CleansWhileItLooks(JsonLinesTable):
    """Removes what isn't committed whenever a table is opened."""

    def open(self) -> None:
        """Look, and tidy up."""
        super().open()
        if not self._epoch:
            self._remove_unknown(self._read())


@_broken("knows_topics_by_name", "a_topic_made_again_does_not_go_on_in_the_old_table")
class KnowsTopicsByName(JsonLinesTable):
    """A topic is who bears its name."""

    def _check_topic(self, manifest: Mapping[str, Any]) -> None:
        pass


@_broken("looks_at_whatever_has_the_name", "a_topic_made_again_does_not_go_on_in_the_old_table")
class LooksAtWhateverHasTheName(JsonLinesTable):
    """Only who writes has to be of the table's topic."""

    def _check_topic(self, manifest: Mapping[str, Any]) -> None:
        if self._epoch:
            super()._check_topic(manifest)


@_broken("replays_into_the_same_table", "a_table_of_another_name_is_its_own")
class ReplaysIntoTheSameTable(JsonLinesTable):
    """Doesn't look at the name that a replay gives."""

    def __init__(self, compactor: JsonLinesCompactor, topic: LakeTopic, epoch: int) -> None:
        super().__init__(compactor, topic, epoch)
        self._folder = compactor.folder / topic.name


@mutant(KIND, "shares_a_list_of_files", "tables_are_used_at_the_same_time")
class SharesAListOfFiles(JsonLinesCompactor):
    """All tables that are open have one list of what was written."""

    def __init__(self, services: Services) -> None:
        super().__init__(services.data_dir / "lake", services.access)
        self._shared: list[dict[str, Any]] = []

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        table = super()._table(topic, epoch)
        table._files = self._shared

        def commit(positions: Mapping[int, int]) -> LakeCommit:
            try:
                return JsonLinesTable._commit(table, positions)
            finally:
                self._shared.clear()
                table._files = self._shared

        table._commit = commit  # type: ignore[method-assign] # it is broken on purpose
        return table


@_broken("has_room_for_a_hundred_positions", "positions_of_other_partitions_stay")
class HasRoomForAHundredPositions(JsonLinesTable):
    """Takes the first hundred partitions of a commit."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        return super()._commit(dict(list(positions.items())[:100]))


@_broken("looks_for_files_that_were_joined", "maintenance_changes_no_row_and_no_position")
class LooksForFilesThatWereJoined(JsonLinesTable):
    """Remembers which files there were at the first look, and leaves out those that are gone."""

    _seen: Sequence[Mapping[str, Any]] = ()

    async def rows(self) -> AsyncIterator[LakeRecord]:
        self._seen = self._seen or self._read()["files"]
        for file in self._seen:
            path = self._folder / file["name"]
            for line in path.read_text().splitlines() if path.exists() else ():
                yield _record(json.loads(line))


@mutant(KIND, "lists_tables_as_they_come", "a_table_of_another_name_is_its_own")
class ListsTablesAsTheyCome(_Broken):
    """Newest first."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)

    async def tables(self) -> Sequence[str]:
        return sorted(await super().tables(), reverse=True)


@_broken("counts_rejected_as_rows", "what_cannot_be_read_is_counted_by_policy")
class CountsRejectedAsRows(JsonLinesTable):
    """Every record has a row, so it counts rows."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        return LakeWritten(rows=len(records), rejected=written.rejected, reason=written.reason)


@_broken("passes_over_what_it_cannot_read", "a_policy_to_stop_loses_nothing")
class PassesOver(JsonLinesTable):
    """Says nothing of a record that it can't read."""

    def _row(self, row: LakeRecord) -> dict[str, Any]:
        try:
            return super()._row(row)
        except ValueError:
            return super()._row(row._replace(value=None))


@_broken("maintains_in_a_dry_run", "maintenance_changes_no_row_and_no_position")
class MaintainsInADryRun(JsonLinesTable):
    """Says that it would, and does."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        done = super()._maintain(False)
        return LakeMaintenance(figures=done.figures, saved_bytes=0, dry_run=dry_run)


@_broken("drops_positions_in_maintenance", "maintenance_changes_no_row_and_no_position")
class DropsPositionsInMaintenance(JsonLinesTable):
    """Writes the manifest anew, and doesn't carry the positions forward."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        done = super()._maintain(dry_run)
        if not dry_run:
            self._replace({**self._read(), "positions": {}})
        return done


@_broken("checks_its_epoch_before_the_lock", "a_stopped_owner_is_fenced_when_it_wakes", level=2)
class ChecksItsEpochOnce(JsonLinesTable):
    """Trusts what it read when it opened the table."""

    _manifest: dict[str, Any] | None = None

    def _current(self) -> dict[str, Any]:
        if self._manifest is None:
            self._manifest = super()._current()
        return self._manifest

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        super()._replace(manifest)
        if self._manifest is not None:
            self._manifest = dict(manifest)


@_broken(
    "commits_positions_after_rows",
    "each_record_is_there_once_whatever_step_a_kill_hits",
    level=3,
)
class CommitsPositionsAfterRows(JsonLinesTable):
    """Two steps: a kill between them has rows without their positions."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        commit = super()._commit({})
        self._step("rows committed")
        with self._locked():
            manifest = self._read()
            stored = manifest["positions"] | {str(key): value for key, value in positions.items()}
            self._replace({**manifest, "positions": stored})
        return commit


@_broken("commits_rows_after_positions", "each_record_is_there_once_whatever_step_a_kill_hits", level=3)
class CommitsRowsAfterPositions(JsonLinesTable):
    """Two steps: a kill between them has positions without their rows."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        with self._locked():
            manifest = self._read()
            stored = manifest["positions"] | {str(key): value for key, value in positions.items()}
            self._replace({**manifest, "positions": stored})
        self._step("positions committed")
        return super()._commit({})


@_broken("repeats_a_commit_of_unknown_outcome", "a_lost_reply_neither_loses_nor_repeats", level=4)
class RepeatsACommit(JsonLinesTable):
    """Tries again when it hears nothing, on top of whatever is there."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        files = list(self._files)
        try:
            return super()._commit(positions)
        except UnavailableError:
            self._files = [self._copy(file) for file in files]
            self._version = self._read()["version"]
            return super()._commit(positions)

    def _copy(self, file: dict[str, Any]) -> dict[str, Any]:
        name = "again-" + file["name"]
        (self._folder / name).write_bytes((self._folder / file["name"]).read_bytes())
        return {**file, "name": name}


@_broken("takes_a_lost_reply_for_a_commit", "a_lost_reply_neither_loses_nor_repeats", level=4)
class TakesALostReplyForACommit(JsonLinesTable):
    """Believes that what it sent arrived, and forgets the file whose reply was lost."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        before = list(self._files)
        try:
            return super()._write(records)
        except UnavailableError:
            self._files = before
            return LakeWritten(rows=len(records))


@_broken("drops_what_is_committed", "a_lost_reply_neither_loses_nor_repeats", level=4)
class DropsWhatIsCommitted(JsonLinesTable):
    """Removes the files of a commit that failed, which may have arrived."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        files = list(self._files)
        try:
            return super()._commit(positions)
        except UnavailableError:
            for file in files:
                (self._folder / file["name"]).unlink(missing_ok=True)
            raise

    async def rows(self) -> AsyncIterator[LakeRecord]:
        for file in self._read()["files"]:
            path = self._folder / file["name"]
            for line in path.read_text().splitlines() if path.exists() else ():
                yield _record(json.loads(line))


@_broken("begins_again_at_each_opening", "a_table_goes_on_where_its_last_commit_ended")
class BeginsAgain(JsonLinesTable):
    """Knows the positions of its own commits only."""

    _own: Mapping[int, int] | None = None

    async def positions(self) -> Mapping[int, int]:
        await super().positions()
        return self._own or {}

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        self._own = {**(self._own or {}), **positions}
        return super()._commit(positions)


@_broken("cuts_large_values", "the_largest_batch_and_a_larger_record")
class CutsLargeValues(JsonLinesTable):
    """Thinks that no record is larger than a batch."""

    def _row(self, row: LakeRecord) -> dict[str, Any]:
        return super()._row(row if row.value is None else row._replace(value=row.value[: 8 * 2**20]))


@mutant(KIND, "keeps_its_charge", "the_account_is_even_at_the_end")
class KeepsItsCharge(_Broken):
    """Charges what it keeps, and gives nothing back for what was never committed."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)
        self._allocator = services.allocator

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        table = super()._table(topic, epoch)
        charges: list[Charge] = []
        write, commit = table.write, table.commit

        async def charged(records: LakeRecords) -> LakeWritten:
            assert self._allocator is not None
            charges.append(self._allocator.charge_anyway(records.nbytes, "lake"))
            return await write(records)

        async def released(positions: Mapping[int, int]) -> LakeCommit:
            done = await commit(positions)
            while charges:
                charges.pop().release()
            return done

        table.write, table.commit = charged, released  # type: ignore[method-assign] # it is broken on purpose
        return table


@_broken("commits_in_two_steps", "a_cancelled_call_neither_loses_nor_repeats", level=4)
class CommitsInTwoSteps(JsonLinesTable):
    """Rows first, and positions a moment later, if it isn't cancelled."""

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        done = await super().commit({})
        await anyio.sleep(0.005)
        await super().commit(positions)
        return done


def _watch(compactor: LakeCompactor, step: Callable[[str], None]) -> None:
    assert isinstance(compactor, JsonLinesCompactor)
    compactor.step = step


@_broken("tells_the_size_of_the_table", "rows_are_the_records")
class TellsTheSizeOfTheTable(JsonLinesTable):
    """A commit is as large as all that there is."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        done = super()._commit(positions)
        return replace(done, size_bytes=sum(file["bytes"] for file in self._read()["files"]))


@_broken("is_always_full", "rows_are_the_records")
class IsAlwaysFull(JsonLinesTable):
    """Wants each write committed at once."""

    async def write(self, records: LakeRecords) -> LakeWritten:
        return replace(await super().write(records), is_full=True)


@_broken("plans_in_a_file", "epoch_zero_only_looks")
class PlansInAFile(JsonLinesTable):
    """Writes down what maintenance would do."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        if dry_run:
            (self._folder / "plan").touch()
        return super()._maintain(dry_run)


@_broken("saves_a_terabyte", "maintenance_changes_no_row_and_no_position")
class SavesATerabyte(JsonLinesTable):
    """Tells what might be."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        return replace(super()._maintain(dry_run), saved_bytes=10**12)


@hookimpl
def penstock_register_lake_compactor() -> LakeCompactorSpec[Defective]:
    """Register the broken lake compactors."""
    return LakeCompactorSpec(
        name=NAME,
        summary=SUMMARY,
        settings=Defective,
        capabilities=_SPEC.capabilities,
        open=closing(lambda settings, services: make(KIND, settings.defect, services)),
        topic_configs=_SPEC.topic_configs,
        fault_of=_SPEC.fault_of,
        raw_configs=_SPEC.raw_configs,
        policies=_SPEC.policies,
        watch=_watch,
    )
