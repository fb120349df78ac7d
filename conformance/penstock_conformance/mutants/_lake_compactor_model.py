"""Lake compactors that are right for few rows, small numbers, one partition, one opening and a quiet time."""

from __future__ import annotations

__all__ = ()

import contextlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import anyio

from penstock.errors import FencedError, InvalidRequestError, NotFoundError, UnavailableError
from penstock.spi.allocator import Charge
from penstock.spi.lake import (
    LakeCommit,
    LakeMaintenance,
    LakeRecord,
    LakeRecords,
    LakeTopic,
    LakeWritten,
)
from penstock.spi.plugin import Services
from penstock_conformance.mutants._lake_compactor import KIND, _Broken, _broken
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._lake_compactor import JsonLinesTable

_HISTORY = "random_histories_agree_with_a_model"
_MANY = "many_rows_partitions_and_commits"
_KEPT = "what_is_kept_is_charged"
_LEFT = "files_of_failed_attempts_are_removed"
_KILLED = "files_of_who_was_killed_are_removed"
_EPOCHS = "epochs_are_numbers"
_IDS = "a_topic_is_who_has_its_id"
_RACE = "owners_that_race_neither_lose_nor_repeat"
_COMES = "a_newer_owner_may_come_at_a_commit_or_a_claim"
_POLICIES = "policies_count_every_batch_by_itself"
_LATE = "a_cancelled_commit_never_comes_late"
_ROWS = "rows_are_the_records"
_CLAIM = "a_claim_alone_fences"
_LOST = "a_lost_reply_neither_loses_nor_repeats"


class _Picks(JsonLinesTable):
    """Writes some of the records, or other ones, and says that it wrote all."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return rows

    def _write(self, records: LakeRecords) -> LakeWritten:
        rows = list(self._pick(list(records.rows())))
        if not rows:
            return LakeWritten(rows=len(records))

        class Picked:
            partition = records.partition
            start_offset = records.start_offset

            def __len__(self) -> int:
                return len(records)

            def rows(self) -> Iterable[LakeRecord]:
                return rows

        return super()._write(Picked())  # type: ignore[arg-type] # it has what is read


@_broken("writes_a_thousand_rows_of_a_batch", _MANY)
class WritesAThousandRowsOfABatch(_Picks):
    """Stops at a limit that no test met."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return rows[:1000]


@_broken("reads_validity_by_words", _MANY)
class ReadsValidityByWords(_Picks):
    """Looks for nulls among 64 bits, again and again."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        for at, row in enumerate(rows):
            yield row._replace(key=None) if row.key is not None and rows[at & 63].key is None else row


@_broken("commits_64_files", _MANY)
class Commits64Files(JsonLinesTable):
    """Takes the newest 64 files into a commit."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        self._files = self._files[-64:]
        return super()._commit(positions)


@_broken("keeps_64_commits", _MANY)
class Keeps64Commits(JsonLinesTable):
    """A manifest that has room for so many files."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        super()._replace({**manifest, "files": manifest["files"][-64:]})


@_broken("keeps_64_positions", _MANY)
class Keeps64Positions(JsonLinesTable):
    """Has room for 64 partitions."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        stored = sorted(manifest["positions"].items(), key=lambda one: int(one[0]))[:64]
        super()._replace({**manifest, "positions": dict(stored)})


@_broken("stores_positions_as_floats", _HISTORY)
class StoresPositionsAsFloats(JsonLinesTable):
    """JSON knows no integers beyond 2^53."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        super()._replace(
            {
                **manifest,
                "positions": {key: int(float(value)) for key, value in manifest["positions"].items()},
            }
        )


@_broken("stores_offsets_as_floats", _HISTORY)
class StoresOffsetsAsFloats(_Picks):
    """Offsets of rows are floats, too."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [row._replace(offset=int(float(row.offset))) for row in rows]


@_broken("stores_offsets_as_deltas_of_32_bits", _HISTORY)
class StoresOffsetsAsDeltasOf32Bits(_Picks):
    """An offset is the first one's, and a delta."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [
            row._replace(offset=rows[0].offset + (row.offset - rows[0].offset & 0x7FFFFFFF)) for row in rows
        ]


@_broken("takes_header_names_for_text", _HISTORY)
class TakesHeaderNamesForText(_Picks):
    """What isn't UTF-8 is replaced."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [
            row._replace(headers=tuple((n.decode(errors="replace").encode(), v) for n, v in row.headers))
            for row in rows
        ]


@_broken("knows_255_headers", _MANY)
class Knows255Headers(_Picks):
    """Counts them in a byte."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [row._replace(headers=row.headers[:255]) for row in rows]


@_broken("takes_equal_records_for_one", _HISTORY)
class TakesEqualRecordsForOne(_Picks):
    """What is equal in all but its offset was sent twice."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return list({row._replace(offset=0): row for row in reversed(rows)}.values())


@_broken("stores_a_mebibyte_of_a_value", _MANY)
class StoresAMebibyteOfAValue(_Picks):
    """What is behind the first MiB is zeros."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        for row in rows:
            if row.value is not None and len(row.value) > 2**20:
                row = row._replace(value=row.value[: 2**20].ljust(len(row.value), b"\0"))
            yield row


@_broken("forgets_what_came_before_another_partition", _HISTORY)
class ForgetsWhatCameBeforeAnotherPartition(JsonLinesTable):
    """Has a file for the partition at hand; when it comes back to one, it begins anew."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        mark = f"-{records.partition}-"
        if self._files and mark not in self._files[-1]["name"]:
            self._files = [file for file in self._files if mark not in file["name"]]
        return super()._write(records)


@_broken("knows_the_first_partition_count", _HISTORY)
class KnowsTheFirstPartitionCount(_Picks):
    """Partitions that came after the table are none of it."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        super()._replace({"count": self._topic.partition_count, **manifest})

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [] if rows[0].partition >= self._read()["count"] else rows


@_broken("leaves_files_behind", _LEFT)
class LeavesFilesBehind(JsonLinesTable):
    """Never removes what wasn't committed."""

    def drop_uncommitted(self) -> None:
        """Leave them."""

    def _remove_unknown(self, manifest: Mapping[str, Any]) -> None:
        pass


@_broken("leaves_files_of_others_behind", _KILLED, level=3)
class LeavesFilesOfOthersBehind(JsonLinesTable):
    """Removes those of its own epoch, whatever died before."""

    def _remove_unknown(self, manifest: Mapping[str, Any]) -> None:
        known = {file["name"] for file in manifest["files"]}
        for path in self._folder.glob(f"{self._epoch:020}-*"):
            if path.name not in known:
                path.unlink()


@_broken("compares_epochs_as_text", _EPOCHS)
class ComparesEpochsAsText(JsonLinesTable):
    """10 comes before 9."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if str(manifest.get("epoch", 0)) > str(self._epoch):
            raise FencedError("another owner has opened the table since")
        super()._check({**manifest, "epoch": 0})


@_broken("compares_epochs_in_31_bits", _EPOCHS)
class ComparesEpochsIn31Bits(JsonLinesTable):
    """The claim of a large epoch fences nobody."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        super()._check({**manifest, "epoch": min(manifest.get("epoch", 0), 2**31 - 1)})


@_broken("tidies_up_after_it_was_fenced", _EPOCHS)
class TidiesUpAfterItWasFenced(JsonLinesTable):
    """As it leaves it removes everything that isn't committed, of whoever is at work."""

    def drop_uncommitted(self) -> None:
        """Remove what isn't in the table."""
        self._remove_unknown(self._read())


@_broken("tidies_up_before_it_looks_at_the_epoch", _EPOCHS)
class TidiesUpBeforeItLooksAtTheEpoch(JsonLinesTable):
    """An opening that is refused has removed the files of the one that has it open."""

    def open(self) -> None:
        """Tidy up, then look."""
        if self._epoch:
            with contextlib.suppress(Exception):
                self._remove_unknown(self._read())
        super().open()


@_broken("goes_on_behind_a_cancelled_commit", _LATE, level=4)
class GoesOnBehindACancelledCommit(JsonLinesTable):
    """A commit that was cancelled happens a moment later, on top of whatever is there then."""

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        try:
            await anyio.sleep(0.01)
        except BaseException:
            files, self._files = self._files, []

            def late() -> None:
                time.sleep(0.05)
                with self._locked():
                    manifest = self._read()
                    if manifest.get("epoch", 0) <= self._epoch:
                        self._replace(
                            {
                                **manifest,
                                "positions": manifest["positions"]
                                | {str(key): value for key, value in positions.items()},
                                "files": manifest["files"] + files,
                            }
                        )

            threading.Thread(target=late).start()
            raise
        return await super().commit(positions)


@_broken("counts_rejected_since_it_was_opened", _POLICIES)
class CountsRejectedSinceItWasOpened(JsonLinesTable):
    """The number grows from write to write."""

    _so_far = 0

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        self._so_far += sum(written.rejected.values())
        return replace(written, rejected={"dead_letter": self._so_far} if written.rejected else {})


@_broken("rejects_what_follows", _POLICIES)
class RejectsWhatFollows(JsonLinesTable):
    """What comes behind a record that can't be read is rejected, too."""

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        if not written.rejected:
            return written
        first = 0
        for at, row in enumerate(records.rows()):
            try:
                json.loads(row.value or b"null")
            except ValueError:
                first = at
                break
        return replace(written, rows=first, rejected={"dead_letter": len(records) - first})


@_broken("gives_the_first_reason", _POLICIES)
class GivesTheFirstReason(JsonLinesTable):
    """Why the first was rejected, for ever."""

    _first = ""

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        self._first = self._first or written.reason
        return replace(written, reason=self._first if written.rejected else "")


@_broken("counts_rows_of_all_commits", _HISTORY)
class CountsRowsOfAllCommits(JsonLinesTable):
    """What a commit says of itself is said of the table."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        done = super()._commit(positions)
        return replace(done, rows=sum(file["rows"] for file in self._read()["files"]))


@_broken("calls_all_commits_by_one_name", _HISTORY)
class CallsAllCommitsByOneName(JsonLinesTable):
    """The version is the epoch's."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        return replace(super()._commit(positions), version=str(self._epoch))


@_broken("keeps_rows_until_the_commit", _KEPT)
class KeepsRowsUntilTheCommit(JsonLinesTable):
    """Copies all records, says nothing of it, and writes them when it commits."""

    _kept: list[tuple[LakeRecords, list[LakeRecord]]]

    def _write(self, records: LakeRecords) -> LakeWritten:
        self._kept = getattr(self, "_kept", [])
        self._kept.append((records, list(records.rows())))
        if self._topic.configs["format"] == "json":
            self._flush()
        return LakeWritten(rows=len(records))

    def _flush(self) -> None:
        kept, self._kept = getattr(self, "_kept", []), []
        for records, rows in kept:

            class Kept:
                partition = records.partition
                start_offset = records.start_offset

                def __len__(self, count: int = len(rows)) -> int:
                    return count

                def rows(self, rows: list[LakeRecord] = rows) -> Iterable[LakeRecord]:
                    return rows

            super()._write(Kept())  # type: ignore[arg-type] # it has what is read

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        self._flush()
        return super()._commit(positions)


@_broken("keeps_views_of_large_batches", _MANY)
class KeepsViewsOfLargeBatches(JsonLinesTable):
    """Copies what is small; what is large it writes with the next one, from where it lay."""

    _large: LakeRecords | None = None

    def _write(self, records: LakeRecords) -> LakeWritten:
        self._flush()
        if records.nbytes > 2**19:
            self._large = records
            return LakeWritten(rows=len(records))
        return super()._write(records)

    def _flush(self) -> None:
        large, self._large = self._large, None
        if large is not None:
            super()._write(large)

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        self._flush()
        return super()._commit(positions)


@_broken("joins_64_files", _MANY)
class Joins64Files(JsonLinesTable):
    """Maintenance joins so many at a time, and forgets the others."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        if not dry_run:
            with self._locked():
                manifest = self._read()
                self._replace({**manifest, "files": manifest["files"][:64]})
        return super()._maintain(dry_run)


@_broken("forgets_its_claim_in_maintenance", _EPOCHS)
class ForgetsItsClaimInMaintenance(JsonLinesTable):
    """Writes the manifest anew, without the epoch."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        done = super()._maintain(dry_run)
        if not dry_run:
            self._replace({**self._read(), "epoch": 0})
        return done


@_broken("cannot_maintain_an_empty_table", _MANY)
class CannotMaintainAnEmptyTable(JsonLinesTable):
    """Nothing to read is an error."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        if not self._read()["files"]:
            raise ValueError("no files")
        return super()._maintain(dry_run)


@_broken("adopts_empty_tables", _IDS)
class AdoptsEmptyTables(JsonLinesTable):
    """A table without rows may be of anybody."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if not manifest["files"]:
            manifest = {**manifest, "topic_id": self._topic.topic_id}
        super()._check(manifest)


@_broken("commits_without_a_lock", _COMES, level=2)
class CommitsWithoutALock(JsonLinesTable):
    """Looks, and a moment later replaces; two do so at once."""

    @contextlib.contextmanager
    def _locked(self) -> Any:
        yield

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        time.sleep(0.003)
        super()._replace(manifest)


@_broken("writes_the_manifest_in_place", _RACE, level=2)
class WritesTheManifestInPlace(JsonLinesTable):
    """A reader finds half of it, and so does who comes after a kill."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        data = json.dumps(manifest).encode()
        with open(self._folder / "manifest.json", "wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            self._step("half of the manifest is written")
            time.sleep(0.01)
            file.write(data[len(data) // 2 :])


@_broken("leaks_a_descriptor_for_each_opening", _LEFT)
class LeaksADescriptorForEachOpening(JsonLinesTable):
    """Never closes its lock's file."""

    def open(self) -> None:
        """Open one more."""
        super().open()
        os.open(self._folder, os.O_RDONLY)


@_broken("leaves_a_file_for_each_opening", _LEFT)
class LeavesAFileForEachOpening(JsonLinesTable):
    """An opening leaves a trace in the table."""

    def open(self) -> None:
        """Note who it was."""
        super().open()
        if self._epoch:
            (self._folder / f"opened-{time.monotonic_ns()}").write_bytes(b"")

    def _remove_unknown(self, manifest: Mapping[str, Any]) -> None:
        known = {file["name"] for file in manifest["files"]}
        for path in self._folder.glob("*.jsonl"):
            if path.name not in known:
                path.unlink()


@mutant(KIND, "remembers_every_opening", _LEFT)
class RemembersEveryOpening(_Broken):
    """Keeps each table that was opened."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)
        self._all: list[JsonLinesTable] = []

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        self._all.append(super()._table(topic, epoch))
        return self._all[-1]


@mutant(KIND, "has_one_failure_be_everybodys", _HISTORY)
class HasOneFailureBeEverybodys(_Broken):
    """An error of one table has all others drop what they wrote."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)
        self._all: list[JsonLinesTable] = []

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        self._all.append(super()._table(topic, epoch))
        return self._all[-1]

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[JsonLinesTable]:
        async with super().open_table(topic, epoch) as table:
            try:
                yield table
            except Exception:
                for other in self._all:
                    other._files = []
                raise


@_broken("forgets_a_partition_that_moved_without_rows", _HISTORY)
class ForgetsAPartitionThatMovedWithoutRows(JsonLinesTable):
    """Positions of partitions of which nothing was written stay where they were, if another one has rows."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        wrote = {int(file["name"].split("-")[1]) for file in self._files}
        if wrote:
            positions = {key: value for key, value in positions.items() if key in wrote}
        return super()._commit(positions)


@_broken("breaks_on_line_ends_in_keys", _HISTORY)
class BreaksOnLineEndsInKeys(_Picks):
    """Keys are lines."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [row._replace(key=None if row.key is None else row.key.rstrip(b"\r\n\0 ")) for row in rows]


@_broken("loses_rows_of_a_commit_after_a_lost_reply", _LOST, level=4)
class LosesRowsOfACommitAfterALostReply(JsonLinesTable):
    """Positions are those it sent before, if it heard nothing."""

    _sent: ClassVar[dict[str, dict[int, int]]] = {}

    async def positions(self) -> Mapping[int, int]:
        return {**await super().positions(), **self._sent.pop(str(self._folder), {})}

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        self._step("about to commit")
        return super()._commit(positions)

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        try:
            return await super().commit(positions)
        except UnavailableError:
            self._sent[str(self._folder)] = dict(positions)
            raise


# --- what is told, sizes and refusals


class _Reasons(JsonLinesTable):
    """Tells another reason than the right one."""

    def _reason(self, reason: str, offset: int) -> str:
        return reason

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        if not written.rejected:
            return written
        offset = int(written.reason.split("offset=")[1].split()[0])
        return replace(written, reason=self._reason(written.reason, offset))


@_broken("gives_reasons_in_31_bits", _POLICIES)
class GivesReasonsIn31Bits(_Reasons):
    """Looks for the record that it names by a small offset."""

    def _reason(self, reason: str, offset: int) -> str:
        return reason.replace(f"offset={offset}", f"offset={offset & 0x7FFFFFFF}")


@_broken("gives_reasons_without_a_partition", _POLICIES)
class GivesReasonsWithoutAPartition(_Reasons):
    """Offsets are enough in a table of one partition."""

    def _reason(self, reason: str, offset: int) -> str:
        return f"a value isn't JSON: offset={offset}"


@_broken("gives_reasons_of_many_lines", _POLICIES)
class GivesReasonsOfManyLines(_Reasons):
    """As its parser said it."""

    def _reason(self, reason: str, offset: int) -> str:
        return f"{reason}\n^ here"


@_broken("gives_the_last_reason_for_ever", _POLICIES)
class GivesTheLastReasonForEver(JsonLinesTable):
    """Why one was rejected is told of all that follow."""

    _last = ""

    def _write(self, records: LakeRecords) -> LakeWritten:
        written = super()._write(records)
        self._last = written.reason or self._last
        return replace(written, reason=self._last)


@_broken("is_called_by_its_topic", "a_table_of_another_name_is_its_own")
class IsCalledByItsTopic(JsonLinesTable):
    """Whatever its own name is."""

    @property
    def name(self) -> str:
        return self._topic.name


@_broken("commits_behind_another_opening", "openings_of_one_epoch_repeat_nothing")
class CommitsBehindAnotherOpening(JsonLinesTable):
    """Looks at the epoch, and not at what else came since it was opened."""

    def _current(self) -> dict[str, Any]:
        manifest = self._read()
        self._check(manifest)
        self._version = manifest["version"]
        return manifest


@_broken("takes_gaps_of_32_bits", "positions_move_without_records")
class TakesGapsOf32Bits(JsonLinesTable):
    """A position moves on by so much at most."""

    async def write(self, records: LakeRecords) -> LakeWritten:
        if records.next_offset - records.start_offset >= 2**32:
            raise InvalidRequestError("there can't be so many records")
        return await super().write(records)


@_broken("says_nothing_of_sizes", _ROWS)
class SaysNothingOfSizes(JsonLinesTable):
    """A commit has no bytes, whatever it has."""

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        return replace(super()._commit(positions), size_bytes=0)


@_broken("cuts_headers_at_32_kib", _ROWS)
class CutsHeadersAt32Kib(_Picks):
    """Lengths of 15 bits."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [row._replace(headers=tuple((n, v and v[:32767]) for n, v in row.headers)) for row in rows]


@_broken("knows_times_of_45_bits", _ROWS)
class KnowsTimesOf45Bits(_Picks):
    """A thousand years are enough."""

    def _pick(self, rows: list[LakeRecord]) -> Iterable[LakeRecord]:
        return [row._replace(timestamp=min(row.timestamp, 2**45)) for row in rows]


@_broken("knows_partitions_of_15_bits", "positions_of_other_partitions_stay")
class KnowsPartitionsOf15Bits(JsonLinesTable):
    """Two partitions are one."""

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        positions = {str(int(key) & 0x7FFF): value for key, value in manifest["positions"].items()}
        super()._replace({**manifest, "positions": positions})


@_broken("takes_positions_from_rows_in_maintenance", _MANY)
class TakesPositionsFromRowsInMaintenance(JsonLinesTable):
    """A partition goes on behind its last row, whatever came after it."""

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        done = super()._maintain(dry_run)
        if not dry_run:
            manifest = self._read()
            positions = dict(manifest["positions"])
            for file in manifest["files"]:
                for line in (self._folder / file["name"]).read_text().splitlines():
                    row = json.loads(line)
                    positions[str(row["partition"])] = row["offset"] + 1
            self._replace({**manifest, "positions": positions})
        return done


@mutant(KIND, "lists_no_empty_tables", _CLAIM)
class ListsNoEmptyTables(_Broken):
    """A table is what has rows."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)

    async def tables(self) -> Sequence[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/*.jsonl"))


@_broken("finds_no_empty_tables", _CLAIM)
class FindsNoEmptyTables(JsonLinesTable):
    """Who looks at a table without a commit is told that there is none."""

    def open(self) -> None:
        """Look whether there is anything."""
        super().open()
        if not self._epoch and not self._read()["positions"]:
            raise NotFoundError("there is no such table")


@_broken("claims_before_it_looks_at_the_topic", "a_topic_made_again_does_not_go_on_in_the_old_table")
class ClaimsBeforeItLooksAtTheTopic(JsonLinesTable):
    """A refused opening fences the owner."""

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if manifest["topic_id"] != self._topic.topic_id:
            self._replace({**manifest, "epoch": self._epoch})
        super()._check(manifest)


@mutant(KIND, "keeps_charges_after_an_error", "the_account_is_even_at_the_end")
class KeepsChargesAfterAnError(_Broken):
    """Gives memory back where all goes well."""

    def __init__(self, services: Services) -> None:
        super().__init__(services, JsonLinesTable)
        self._allocator = services.allocator
        self._charges: list[Charge] = []

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[JsonLinesTable]:
        async with super().open_table(topic, epoch) as table:
            assert self._allocator is not None
            self._charges.append(self._allocator.charge_anyway(1, "lake"))
            yield table
            self._charges.pop().release()


@_broken("maintains_without_the_lock", "a_newer_owner_may_come_during_maintenance", level=2)
class MaintainsWithoutTheLock(JsonLinesTable):
    """Nobody else should be at work when a table is maintained."""

    _is_at_work = False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._is_at_work else super()._locked():
            yield

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        self._is_at_work = True
        try:
            return super()._maintain(dry_run)
        finally:
            self._is_at_work = False
