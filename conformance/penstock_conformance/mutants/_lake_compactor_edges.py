"""Lake compactors that are wrong for who looks, for who is refused, and where something fails or is cancelled."""

from __future__ import annotations

__all__ = ()

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from penstock.errors import ConflictError, FencedError, InvalidRequestError, UnavailableError
from penstock.files import ACCESSES, create_file, make_directories
from penstock.spi.allocator import Allocator
from penstock.spi.lake import LakeCommit, LakeMaintenance, LakeRecord, LakeRecords, LakeTopic, LakeWritten
from penstock.spi.plugin import Services
from penstock_conformance.mutants._lake_compactor import KIND, _Broken, _broken
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._lake_compactor import JsonLinesCompactor, JsonLinesTable

_LOOKS = "who_looks_is_not_fenced"
_REFUSED = "who_is_refused_disturbs_nobody"
_DISK = "commits_are_on_the_disk"


@_broken("fences_who_looks", _LOOKS)
class FencesWhoLooks(JsonLinesTable):
    """Somebody else has the table now."""

    _epoch_seen = 0

    def open(self) -> None:
        super().open()
        self._epoch_seen = self._read()["epoch"]

    async def rows(self) -> AsyncIterator[LakeRecord]:
        if self._read()["epoch"] != self._epoch_seen:
            raise FencedError("another owner has opened the table since")
        async for row in super().rows():
            yield row


@_broken("wants_the_table_as_it_was_for_who_looks", _LOOKS)
class WantsTheTableAsItWasForWhoLooks(JsonLinesTable):
    """Whoever looks looks at one version."""

    async def positions(self) -> Mapping[int, int]:
        if self._read()["version"] != self._version:
            raise ConflictError("somebody else changed the table")
        return await super().positions()


@_broken("describes_the_newest_file", "an_empty_table_is_a_table")
class DescribesTheNewestFile(JsonLinesTable):
    """There is none in an empty table."""

    async def describe(self) -> Mapping[str, str]:
        newest = max(file["name"] for file in self._read()["files"])
        return {**await super().describe(), "newest": newest}


@_broken("tells_the_files_of_the_table", "a_commit_tells_of_its_own_files")
class TellsTheFilesOfTheTable(JsonLinesTable):
    """All that there are by now."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        return replace(super()._commit(positions), files=len(self._read()["files"]))


@_broken("tidies_up_before_it_looks_at_the_topic", _REFUSED)
class TidiesUpBeforeItLooksAtTheTopic(JsonLinesTable):
    """Removes what the owner has written, and is refused."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if manifest["topic_id"] != self._topic.topic_id:
            self._remove_unknown(manifest)
        super()._check(manifest)


@_broken("lends_named_tables_to_anybody", _REFUSED)
class LendsNamedTablesToAnybody(JsonLinesTable):
    """Whoever names a table knows what it is of."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        mine = self._topic.topic_id if self._topic.table else manifest["topic_id"]
        super()._check({**manifest, "topic_id": mine})


@_broken("keeps_a_descriptor_of_who_was_refused", "refused_openings_leave_nothing_open")
class KeepsADescriptorOfWhoWasRefused(JsonLinesTable):
    """Closes its lock when the table is left."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        super()._check(manifest)
        os.close(descriptor)


@mutant(KIND, "sorts_tables_as_a_dictionary_does", "tables_are_sorted")
class SortsTablesAsADictionaryDoes(_Broken):
    """Capital letters beside small ones."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)

    async def tables(self) -> Sequence[str]:
        return sorted(await super().tables(), key=str.lower)


class _Charging(JsonLinesTable):
    """Gives back what it charged when it is written."""

    allocator: Allocator

    async def write(self, records: LakeRecords) -> LakeWritten:
        charge = self.allocator.charge_anyway(records.nbytes, "lake")
        written = await super().write(records)
        charge.release()
        return written


@mutant(KIND, "keeps_charges_of_writes_that_fail", "a_write_that_fails_costs_nothing")
class KeepsChargesOfWritesThatFail(_Broken):
    """There is nothing written, it says, so nothing to give back."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, _Charging)
        self._services = services

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        table = super()._table(topic, epoch)
        assert isinstance(table, _Charging)
        assert self._services.allocator is not None
        table.allocator = self._services.allocator
        return table


@_broken("stays_before_what_was_rejected_whole", "positions_pass_what_was_rejected")
class StaysBeforeWhatWasRejectedWhole(JsonLinesTable):
    """A batch without rows moves nothing."""

    def __init__(self, compactor: JsonLinesCompactor, topic: LakeTopic, epoch: int) -> None:
        super().__init__(compactor, topic, epoch)
        self._without_rows: set[int] = set()

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        (self._without_rows.discard if written.rows else self._without_rows.add)(records.partition)
        return written

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        return super()._commit({key: at for key, at in positions.items() if key not in self._without_rows})


@_broken("maintains_in_two_steps", "cancelled_maintenance_changes_nothing", level=4)
class MaintainsInTwoSteps(JsonLinesTable):
    """Takes all files but one out of the table before it joins them."""

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        manifest = self._read()
        if not dry_run and len(manifest["files"]) > 1:
            self._replace({**manifest, "files": manifest["files"][:1]})
            await anyio.sleep(0.001)
            self._replace(manifest)
        return await super().maintain(dry_run=dry_run)


@_broken("goes_on_behind_a_lost_reply", "who_is_fenced_while_a_reply_is_lost_goes_on_behind_nobody", level=4)
class GoesOnBehindALostReply(JsonLinesTable):
    """Looks up what became of its commit, and takes whatever is there now for its own."""

    _trusted = -1

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if manifest["version"] != self._trusted:
            super()._check(manifest)

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        step, self._step = self._step, lambda name: None
        try:
            done = super()._commit(positions)
        finally:
            self._step = step
        try:
            step("manifest replaced")
        except UnavailableError:
            self._version = self._trusted = self._read()["version"]
        return done


@mutant(KIND, "makes_tables_for_everybody", "files_are_for_nobody_else")
class MakesTablesForEverybody(_Broken):
    """Leaves to the umask what others may read."""

    def __init__(self, services: Services) -> None:
        super().__init__(replace(services, access=ACCESSES["everybody"]), JsonLinesTable)


@mutant(KIND, "makes_tables_for_its_owner_only", "files_are_for_nobody_else")
class MakesTablesForItsOwnerOnly(_Broken):
    """Whatever it is told that others may read."""

    def __init__(self, services: Services) -> None:
        super().__init__(replace(services, access=ACCESSES["owner"]), JsonLinesTable)


@_broken("forgets_its_owner_with_the_fourth_commit", "a_lower_epoch_cannot_open")
class ForgetsItsOwnerWithTheFourthCommit(JsonLinesTable):
    """Begins a manifest anew once in a while."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        super()._replace({**manifest, "epoch": 0} if manifest["version"] % 4 == 3 else manifest)


@_broken("forgets_its_owner_with_maintenance", "a_lower_epoch_cannot_open")
class ForgetsItsOwnerWithMaintenance(JsonLinesTable):
    """The manifest of a table that was brought into shape has what is needed only."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        done = super()._maintain(dry_run)
        if not dry_run:
            with self._locked():
                self._replace({**self._read(), "epoch": 0})
        return done


@_broken("tells_no_size_of_many_files", "a_commit_tells_of_its_own_files")
class TellsNoSizeOfManyFiles(JsonLinesTable):
    """Looks up the size of one."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        done = super()._commit(positions)
        return replace(done, size_bytes=0) if done.files > 3 else done


@_broken("takes_no_partition_that_came_since", "positions_of_other_partitions_stay")
class TakesNoPartitionThatCameSince(JsonLinesTable):
    """Knows how many there are."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        if records.partition >= self._topic.partition_count:
            raise InvalidRequestError(f"there is no such partition: partition={records.partition}")
        return super()._write(records)


@_broken("makes_a_folder_for_who_looks", "epoch_zero_only_looks")
class MakesAFolderForWhoLooks(JsonLinesTable):
    """Where there are tables already."""

    def open(self) -> None:
        if self._folder.parent.exists():
            make_directories(self._folder, self._access)
        super().open()


@_broken("goes_on_where_no_record_is", "a_topic_is_who_has_its_id")
class GoesOnWhereNoRecordIs(JsonLinesTable):
    """A table without rows is anybody's."""

    def _check_topic(self, manifest: Mapping[str, Any]) -> None:
        if manifest["positions"] and not manifest["files"] and isinstance(manifest, dict):
            manifest["topic_id"] = self._topic.topic_id
        super()._check_topic(manifest)


@_broken("tidies_up_before_it_looks_whose_it_is", "a_higher_epoch_fences")
class TidiesUpBeforeItLooksWhoseItIs(JsonLinesTable):
    """Maintenance takes what a newer owner has yet to commit for what somebody left."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        if not dry_run:
            self._remove_unknown(self._read())
        return super()._maintain(dry_run)


@_broken("writes_what_it_read_again", "epoch_zero_only_looks")
class WritesWhatItReadAgain(JsonLinesTable):
    """Whoever looks leaves the manifest as it was, and new."""

    def open(self) -> None:
        super().open()
        if not self._epoch:
            with self._locked():
                self._replace(self._read())


class _SyncsNot(JsonLinesTable):
    """Leaves files to the system, which writes them some time."""

    def _create(self, path: Path, data: bytes) -> None:
        if not self._is_left(path):
            super()._create(path, data)
            return
        with os.fdopen(create_file(path, os.O_WRONLY, self._access), "wb") as file:
            file.write(data)

    def _is_left(self, path: Path) -> bool:
        raise NotImplementedError


@_broken("syncs_no_rows", _DISK, level=3, on_disk=True)
class SyncsNoRows(_SyncsNot):
    """The manifest says that they are there."""

    def _is_left(self, path: Path) -> bool:
        return path.suffix == ".jsonl"


@_broken("syncs_no_files_that_it_joins", _DISK, level=3, on_disk=True)
class SyncsNoFilesThatItJoins(_SyncsNot):
    """All of it was on the disk before."""

    def _is_left(self, path: Path) -> bool:
        return "-all-" in path.name


@_broken("counts_rows_of_a_batch_that_was_rejected_whole", "positions_pass_what_was_rejected")
class CountsRowsOfABatchThatWasRejectedWhole(JsonLinesTable):
    """Each of them is somewhere."""

    async def write(self, records: LakeRecords) -> LakeWritten:
        written = await super().write(records)
        return written if written.rows else replace(written, rows=sum(written.rejected.values()))


@_broken("removes_files_before_others_take_their_place", "failed_maintenance_changes_nothing", level=4)
class RemovesFilesBeforeOthersTakeTheirPlace(JsonLinesTable):
    """All of it has been read."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        names = {file["name"] for file in manifest["files"]}
        if any("-all-" in name for name in names):
            for path in self._folder.glob("*.jsonl"):
                if path.name not in names:
                    path.unlink()
            self._step("files removed")
        super()._replace(manifest)
