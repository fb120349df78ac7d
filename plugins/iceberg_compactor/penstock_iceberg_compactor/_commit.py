"""One commit: a new snapshot with its stamp, by compare-and-swap on the head of the main branch, tried once.

pyiceberg's own ``append`` tries again by itself when somebody was faster, which would write the same offsets twice.
Here nothing is tried again that wasn't looked at: a commit that lost, or of which the reply was lost, is looked up by
its snapshot id.
"""

from __future__ import annotations

__all__ = (
    "Commit",
    "Landed",
    "LostError",
    "Planning",
    "UnknownError",
    "head_of",
    "newest_ms",
    "reload",
    "send_updates",
)

import contextlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Summary, ancestors_of
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertCurrentSchemaId,
    AssertRefSnapshotId,
    AssertTableUUID,
    SetPropertiesUpdate,
    TableRequirement,
    TableUpdate,
    update_table_metadata,
)
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _MergeAppendFiles

from penstock_iceberg_compactor._errors import NotSentError, cause_of
from penstock_iceberg_compactor._stamp import Stamp, stamped_snapshot


class LostError(Exception):
    """Somebody else committed first; this commit didn't happen, and never will."""


class UnknownError(Exception):
    """Whether the commit happened can't be found out for now."""


class Landed(NamedTuple):
    """A commit that happened."""

    snapshot_id: int
    files: int
    rows: int
    size_bytes: int


class Planning(Transaction):
    """A transaction whose metadata are made once for its updates.

    pyiceberg's makes a deep copy of all columns and snapshots whenever somebody looks at them, a few dozen times for
    each commit: most of the time of commits on tables with hundreds of either.
    """

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._made = table.metadata, self._updates

    @property
    def table_metadata(self) -> TableMetadata:
        """The table's metadata with all updates so far."""
        metadata, updates = self._made
        if updates is not self._updates:
            metadata = update_table_metadata(self._table.metadata, self._updates)
            self._made = metadata, self._updates
        return metadata


class _Snapshot(_MergeAppendFiles):
    """A snapshot that adds files, and takes others out.

    pyiceberg's overwrite never merges manifests and keeps those that hold nothing any more: waits for
    https://github.com/apache/iceberg-python/issues/270.
    """

    #: Rows stay as they are.
    rewrites = False
    #: All manifests are merged.
    merges = False

    def taking(self, files: Iterable[DataFile]) -> None:
        """Take these files out."""
        for file in files:
            self.delete_data_file(file)
        self._taken = {file.file_path for file in self._deleted_data_files}
        self._gone: list[ManifestEntry] = []
        self._kept: list[ManifestFile] = []
        self._plan()

    def adding(self, files: Iterable[DataFile]) -> None:
        """Put these files in; the base knows one partition spec only, so those of others get their own manifest."""
        default = self._transaction.table_metadata.default_spec_id
        for file in files:
            self.append_data_file(file)
        self._others = [file for file in self._added_data_files if file.spec_id != default]
        self._added_data_files = [file for file in self._added_data_files if file.spec_id == default]
        for spec_id in {file.spec_id for file in self._others}:
            with self.new_manifest_writer(self.spec(spec_id)) as writer:
                for file in self._others:
                    if file.spec_id == spec_id:
                        writer.add(
                            ManifestEntry.from_args(
                                status=ManifestEntryStatus.ADDED,
                                snapshot_id=self._snapshot_id,
                                sequence_number=None,
                                file_sequence_number=None,
                                data_file=file,
                            )
                        )
            self._kept.append(writer.to_manifest_file())

    def _plan(self) -> None:
        for manifest in super()._existing_manifests():
            if not (manifest.has_added_files() or manifest.has_existing_files()):
                continue
            if not self._taken or manifest.content != ManifestContent.DATA:
                self._kept.append(manifest)
                continue
            entries = self.fetch_manifest_entry(manifest)
            out = [entry for entry in entries if entry.data_file.file_path in self._taken]
            if not out:
                self._kept.append(manifest)
                continue
            self._gone += (self._with(entry, ManifestEntryStatus.DELETED) for entry in out)
            if len(out) < len(entries):
                with self.new_manifest_writer(self.spec(manifest.partition_spec_id)) as writer:
                    for entry in entries:
                        if entry.data_file.file_path not in self._taken:
                            writer.add_entry(self._with(entry, ManifestEntryStatus.EXISTING))
                self._kept.append(writer.to_manifest_file())
        missing = self._taken - {entry.data_file.file_path for entry in self._gone}
        if missing:
            raise LostError(f"a file that was rewritten is gone: file={min(missing)}")

    def _with(self, entry: ManifestEntry, status: ManifestEntryStatus) -> ManifestEntry:
        deleted = status == ManifestEntryStatus.DELETED
        return ManifestEntry.from_args(
            status=status,
            snapshot_id=self._snapshot_id if deleted else entry.snapshot_id,
            sequence_number=entry.sequence_number,
            file_sequence_number=entry.file_sequence_number,
            data_file=entry.data_file,
        )

    def _existing_manifests(self) -> list[ManifestFile]:
        return self._kept

    def _deleted_entries(self) -> list[ManifestEntry]:
        return self._gone

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        if not self.merges:
            return super()._process_manifests(manifests)
        data = [manifest for manifest in manifests if manifest.content == ManifestContent.DATA]
        others = [manifest for manifest in manifests if manifest.content != ManifestContent.DATA]
        merged: list[ManifestFile] = self._merger().merge_manifests(data)
        return merged + others

    def _merger(self) -> Any:
        return _ManifestMergeManager(
            target_size_bytes=self._target_size_bytes,
            min_count_to_merge=2,
            merge_enabled=True,
            snapshot_producer=self,
        )

    def _summary(self, snapshot_properties: dict[str, str] = {}) -> Summary:  # noqa: B006 - as its base has it
        divided = self._added_data_files
        self._added_data_files = [*divided, *self._others]
        summary = super()._summary(snapshot_properties)
        self._added_data_files = divided
        if self.rewrites:  # for which the base refuses to count
            return Summary(Operation.REPLACE, **summary.additional_properties)
        return summary


class Commit:
    """A commit on the table as it was loaded; made, sent once, and forgotten. Blocking."""

    def __init__(
        self,
        table: Table,
        stamp: Stamp,
        *,
        added: Sequence[DataFile] = (),
        taken: Sequence[DataFile] = (),
        rewrites: bool = False,
        merges: bool = False,
        number: int = 0,
    ) -> None:
        """Plan it, and write its manifests. With ``rewrites`` rows stay as they are; ``merges`` is of manifests."""
        self._table = table
        self._base = head_of(table)
        self._stamped_before = stamped_snapshot(table.properties)
        self._added = added
        self._snapshot = _Snapshot(
            operation=Operation.OVERWRITE if taken else Operation.APPEND,
            transaction=Planning(table),
            io=table.io,
            commit_uuid=commit_uuid(stamp.life, number),
            snapshot_properties=stamp.properties(),
        )
        self._snapshot.rewrites = rewrites
        self._snapshot.merges = merges
        try:
            self._snapshot.taking(taken)
            self._snapshot.adding(added)
            changes, requirements = self._snapshot._commit()
        except BaseException:
            self.drop()
            raise
        changes = tuple(_dated(change, newest_ms(table) + 1) for change in changes)
        copy = SetPropertiesUpdate(updates=stamp.table_properties(self._snapshot.snapshot_id))
        self._updates = (*changes, copy)
        # The head stays when columns are changed: rows would be without what a column held that is no more.
        columns = AssertCurrentSchemaId.model_validate(
            {"current-schema-id": table.metadata.current_schema_id}
        )
        self._requirements = (*requirements, columns, AssertTableUUID(uuid=table.metadata.table_uuid))

    def send(self, sent: Callable[[str], None]) -> Landed:
        """Send it; the table's metadata are then the new ones.

        ``sent`` is called with the name of the step once the catalog has answered; what it raises is a lost reply.
        Raises LostError or NotSentError, after which nothing is left of it, UnknownError, after which everything is,
        and NoSuchTableError if there is no table any more.
        """
        try:
            self._table._do_commit(self._updates, self._requirements)
            sent("sent")
        except CommitFailedException as error:
            # A proxy, or the catalog, may have tried twice: then the second try lost to the first.
            if self._landed():
                return self._result()
            self.drop()
            raise LostError(str(error)) from error
        except NotSentError:
            self.drop()
            raise
        except Exception as error:
            if self._landed(error):
                return self._result()
            # It isn't there now. It may still be on its way to a server, so its files have to stay.
            raise UnknownError(cause_of(error)) from error
        return self._result()

    def drop(self) -> None:
        """Remove the manifests of a commit that wasn't sent, or lost."""
        with contextlib.suppress(
            Exception
        ):  # what is left has the life in its name and is found by the next owner
            self._snapshot._clean_all_uncommitted()

    def _landed(self, cause: Exception | None = None) -> bool:
        try:
            reload(self._table)
        except NoSuchTableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known now
            raise UnknownError(cause_of(cause or error)) from (cause or error)
        landed = self._is_known()
        if landed is None:
            raise UnknownError("its snapshot would have expired by now") from cause
        return landed

    def _is_known(self) -> bool | None:
        """Whether the metadata that were loaded say that it happened, or that it didn't; None if they say neither.

        Others may have expired its snapshot since, and then its files are those of later ones.
        """
        metadata, ours = self._table.metadata, self._snapshot.snapshot_id
        stamped = stamped_snapshot(metadata.properties)
        if metadata.snapshot_by_id(ours) is not None or stamped == str(ours):
            return True
        line = ancestors_of(metadata.current_snapshot(), metadata)
        if stamped == self._stamped_before or any(one.snapshot_id == self._base for one in line):
            return False
        return None

    def _result(self) -> Landed:
        return Landed(
            self._snapshot.snapshot_id,
            len(self._added),
            sum(file.record_count for file in self._added),
            sum(file.file_size_in_bytes for file in self._added),
        )


def reload(table: Table) -> None:
    """Load the table's newest metadata. Raises NoSuchTableError also if another table has its name now."""
    try:
        table.refresh()
    except ValueError as error:
        if "UUID" not in str(error):
            raise
        raise NoSuchTableError(str(error)) from error


def newest_ms(table: Table) -> int:
    """When the table changed last, by the clock of whoever changed it, in milliseconds."""
    metadata = table.metadata
    return max((metadata.last_updated_ms, *(entry.timestamp_ms for entry in metadata.snapshot_log)))


def _dated(change: TableUpdate, least_ms: int) -> TableUpdate:
    """The change with a snapshot that is newer than what came before it, however far the clock went back.

    Iceberg's Java library, and with it Spark, Trino and Flink, refuses to read a table whose log isn't sorted.
    """
    if not isinstance(change, AddSnapshotUpdate) or change.snapshot.timestamp_ms >= least_ms:
        return change
    dated = change.snapshot.model_copy(update={"timestamp_ms": least_ms})
    return change.model_copy(update={"snapshot": dated})


def commit_uuid(life: str, number: int) -> uuid.UUID:
    """The UUID in the names of a commit's manifests: the life of its owner in front, a number after it."""
    return uuid.UUID(hex=(life or uuid.uuid4().hex)[:20] + f"{number:012x}")


def head_of(table: Table) -> int | None:
    """The head of the main branch."""
    snapshot = table.metadata.current_snapshot()
    return None if snapshot is None else snapshot.snapshot_id


def send_updates(
    table: Table, updates: Sequence[TableUpdate], requirements: Sequence[TableRequirement] = ()
) -> bool:
    """Commit changes that make no snapshot, if nobody committed since the table was loaded. False if there are none.

    Raises LostError if somebody did, and where they failed and the table is another by now: then they didn't fit it
    any more, or were done and the reply was lost, and looking again tells.
    """
    if not updates:
        return False
    guards = (
        AssertRefSnapshotId.model_validate({"ref": "main", "snapshot-id": head_of(table)}),
        AssertTableUUID(uuid=table.metadata.table_uuid),
    )
    try:
        table._do_commit(tuple(updates), (*requirements, *guards))
    except CommitFailedException as error:
        raise LostError(str(error)) from error
    except Exception as error:
        if _is_another(table):
            raise LostError(cause_of(error)) from error
        raise
    return True


def _is_another(table: Table) -> bool:
    """Whether the catalog has other metadata of the table by now, as far as it answers."""
    try:
        return table.catalog.load_table(table.name()).metadata_location != table.metadata_location
    except Exception:  # noqa: BLE001 - what failed before is told
        return False
