"""A table with an owner: opened with an epoch that fences others, written and committed under its stamp. Blocking."""

from __future__ import annotations

__all__ = ("OwnedTable",)

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.update import RemoveSnapshotsUpdate

from penstock.errors import (
    ConflictError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi.lake import LakeRecord, LakeTopic
from penstock_iceberg_compactor._catalog import make_namespace
from penstock_iceberg_compactor._columns import OPERATION, RAW_SCHEMA, SYSTEM_SCHEMA
from penstock_iceberg_compactor._commit import Commit, Landed, LostError, UnknownError, guarded, head_of
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._files import FileWriter, arrow_schema, fitted, undivided_spec
from penstock_iceberg_compactor._io import listed, remove
from penstock_iceberg_compactor._lost import found_again, free_location
from penstock_iceberg_compactor._place import Life, Place
from penstock_iceberg_compactor._schema import (
    add_undivided_spec,
    change_shape,
    check_columns,
    creation_properties,
    order_of,
    shape_of,
    spec_of,
)
from penstock_iceberg_compactor._stamp import Stamp, newest_stamp
from penstock_iceberg_compactor._upsert import collapsed, upserted

logger = logging.getLogger("penstock.lake.iceberg")

#: Another writer may be faster so often, then the kernel opens the table again.
_TRIES_MAX = 10
#: The newest version of Iceberg's format that pyiceberg writes.
_FORMAT_MAX = 2


class OwnedTable:
    """The life of one opening: loaded metadata, the stamp that holds, and files that wait for their commit."""

    def __init__(
        self, place: Place, topic: LakeTopic, configs: TableConfigs, table: Table, epoch: int
    ) -> None:
        self._place = place
        self._topic = topic
        self._configs = configs
        self._epoch = epoch
        self.table = table
        self.stamp = self._stamp_now()
        #: Whether this opening has a life of its own.
        self._claimed = False
        #: Files of this life so far, as a number.
        self._files = 0
        self._pending: list[DataFile] = []
        #: Where all files are that were begun since the last commit, also those that failed.
        self._begun: list[str] = []
        #: Commits of this life that were planned so far: they name manifests.
        self._commits = 0
        self._fault: PenstockError | None = None
        self._outcome_known = True

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self.table.name()[-1]

    @classmethod
    def open(
        cls,
        place: Place,
        topic: LakeTopic,
        configs: TableConfigs,
        name: str,
        epoch: int,
        schema: Schema | None = None,
    ) -> OwnedTable:
        """Load the table, or make it with ``schema``; fence lower epochs, and remove what they left."""
        identifier = (*place.namespace.split("."), name)
        catalog = place.catalog
        try:
            table = catalog.load_table(identifier)
        except NoSuchTableError:
            if not epoch:
                raise NotFoundError(f"there is no such table: table={name}") from None
            make_namespace(catalog, place.namespace)
            table = found_again(place, catalog, identifier) or _make(
                place, catalog, topic, configs, identifier, schema
            )
        place.catalogs.saw(name)
        owned = cls(place, topic, configs, table, epoch)
        if epoch:
            owned._claim()
            owned.take_columns(None)  # partitions and order that were set since
        return owned

    # what holds

    def _stamp_now(self) -> Stamp:
        metadata = self.table.metadata
        # pyiceberg's summaries have the methods of a mapping that are called, not all of them
        snapshots: Any = metadata.snapshots
        stamp = newest_stamp(snapshots, head_of(self.table), metadata.properties, self.name)
        if stamp.topic_id != self._topic.topic_id:
            raise ConflictError(
                f"the table belongs to another topic, or to a former one of this name: choose another name "
                f"with penstock.lake.table, or drop the table: table={self.name} topic={stamp.topic} "
                f"topic_id={stamp.topic_id}"
            )
        if self._epoch and stamp.epoch > self._epoch:
            raise FencedError(
                f"somebody else owns the table now: table={self.name} epoch={self._epoch} owner={stamp.epoch}"
            )
        if self._epoch and metadata.format_version > _FORMAT_MAX:
            raise ConflictError(
                f"somebody made the table one of a newer format of Iceberg, which can't be written here: choose "
                f"another name with penstock.lake.table, or replay into a new table: table={self.name} "
                f"format_version={metadata.format_version} known={_FORMAT_MAX}"
            )
        if self._epoch:
            check_columns(self.table.schema(), self._configs, self.name)
        return stamp

    def check_owner(self) -> None:
        """Raise what made this opening useless, or InvalidRequestError if it is one to look only."""
        if not self._epoch:
            raise InvalidRequestError(f"the table is open to look at it only: table={self.name}")
        if self._fault is not None:
            raise again(self._fault)

    # opening

    def _claim(self) -> None:
        """Fence lower epochs, and whatever an earlier opening of this one left on its way."""
        life = self._place.lives.pop(self.name, None)
        if self.stamp.epoch < self._epoch or self._leftovers(self.stamp):
            self._begin_life()
        # Else the same owner opens it again, perhaps only to find that it can't go on: no snapshot for that.
        elif life is not None and life.name == self.stamp.life:
            self._claimed, self._files, self._commits = True, life.file, life.commit

    def _begin_life(self) -> None:
        """Claim the table with a name of one's own for files.

        The name is in the table before the first file is there, so that whoever comes next finds them; and each
        opening has another, so that no file is ever written twice.
        """
        for _ in range(_TRIES_MAX):
            before = self.stamp
            stamp = replace(before, epoch=self._epoch, life=new_life(self._epoch), files=0)
            try:
                Commit(self.table, stamp, number=self._next_commit()).send()
            except LostError:
                self.table.refresh()
                self.stamp = self._stamp_now()
                if self.stamp.epoch == self._epoch and self.stamp != before:
                    raise self._opened_again() from None
                continue
            except (UnknownError, NoSuchTableError) as error:
                raise self._unknown("the table was claimed", error) from None
            self.stamp = stamp
            self._claimed = True
            self._place.step("table claimed")
            # Nothing of an earlier life can be committed from here on, so what it left can go.
            with contextlib.suppress(OSError):
                self._remove(self._leftovers(before))
            return
        raise self._too_many()

    def _leftovers(self, stamp: Stamp) -> list[str]:
        """Files that the life of ``stamp`` wrote for commits that didn't happen."""
        if not stamp.life:
            return []
        found = []
        for file in listed(self.table.io, self.table.location_provider().data_path, stamp.life):
            number = file.location.rpartition("-")[2].partition(".")[0]
            if number.isdecimal() and int(number) >= stamp.files:
                found.append(file.location)
        return found

    # writing

    def _location(self) -> str:
        number, self._files = self._files, self._files + 1
        location = f"{self.table.location_provider().data_path}/{self.stamp.life}-{number:06d}.parquet"
        self._begun.append(location)
        return location

    def _next_commit(self) -> int:
        number, self._commits = self._commits, self._commits + 1
        return number

    def write(self, rows: Sequence[pa.Table]) -> None:
        """Write rows into files for the next commit."""
        if not self._claimed:
            self._begin_life()
        writer = FileWriter(self.table, self._location)
        wanted = writer.columns
        files_max = max(1, self._configs.partition_files_max - len(self._pending))
        parts = writer.parts(pa.concat_tables([fitted(part, wanted) for part in rows]), files_max)
        if any(part.partition is None for part in parts) and undivided_spec(self.table) is None:
            self._change(add_undivided_spec)
            writer = FileWriter(self.table, self._location)
        self._pending += writer.write(parts)
        self._place.step("files written")

    # committing

    def commit(self, positions: Mapping[int, int]) -> Landed:
        """Make pending files visible with these positions; others stay."""

        def plan() -> tuple[Stamp, Commit]:
            stamp = replace(self.stamp, files=self._files, positions={**self.stamp.positions, **positions})
            return stamp, Commit(self.table, stamp, added=self._pending, number=self._next_commit())

        return self._commit(plan)

    def upsert(self, positions: Mapping[int, int], batch: pa.Table) -> Landed:
        """Make one row a key (marked by OPERATION) take the place of what is there, with these positions."""

        def plan() -> tuple[Stamp, Commit]:
            self._drop()  # of an attempt on an older snapshot
            taken = upserted(self.table, batch, self._configs.key_columns, self.write, self._place.buffer)
            stamp = replace(self.stamp, files=self._files, positions={**self.stamp.positions, **positions})
            commit = Commit(self.table, stamp, added=self._pending, taken=taken, number=self._next_commit())
            return stamp, commit

        return self._commit(plan)

    def collapsed(self, rows: Sequence[pa.Table]) -> pa.Table:
        """The last row of each key, under the present columns and OPERATION."""
        wanted = self.columns.append(pa.field(OPERATION, pa.bool_()))
        return collapsed(pa.concat_tables([fitted(part, wanted) for part in rows]), self._configs.key_columns)

    def rewrite(self, parts: Sequence[tuple[Sequence[DataFile], Callable[[], Iterator[pa.Table]]]]) -> Landed:
        """Put the rows of some files into one file for each part, and merge manifests; rows stay as they are.

        Raises ConflictError if somebody committed meanwhile: what was to be rewritten may be gone.
        """
        self.check_owner()
        if not self._claimed:
            self._begin_life()
        head = head_of(self.table)

        def plan() -> tuple[Stamp, Commit]:
            if head_of(self.table) != head:
                raise ConflictError(f"another writer committed during maintenance: table={self.name}")
            taken = [file for files, _ in parts for file in files]
            writer = FileWriter(self.table, self._location)
            for files, read in parts:
                divided = files[0].spec_id == self.table.metadata.default_spec_id
                self._pending.append(writer.write_one(files[0].partition if divided else None, read()))
                self._place.step("file rewritten")
            stamp = replace(self.stamp, files=self._files)
            number = self._next_commit()
            added = self._pending
            return stamp, Commit(
                self.table, stamp, added=added, taken=taken, replaces=True, merge_all=True, number=number
            )

        try:
            return self._commit(plan)
        except ConflictError:
            self._drop()
            raise

    def expire(self, snapshot_ids: Sequence[int]) -> None:
        """Let go of snapshots, in a commit that is guarded as all others are."""
        self.check_owner()
        update = RemoveSnapshotsUpdate.model_validate({"snapshot-ids": list(snapshot_ids)})
        try:
            self.table._do_commit((update,), guarded(self.table))
        except CommitFailedException:
            self.refresh()
            raise ConflictError(f"another writer committed during maintenance: table={self.name}") from None
        self._place.step("snapshots expired")

    # columns

    @property
    def columns(self) -> pa.Schema:
        """The columns that rows are fitted to."""
        return arrow_schema(self.table.schema())

    def take_columns(self, wanted: pa.Schema | None) -> None:
        """Have these columns, too, and what configs say of partitions and order: a commit, guarded as the others are.

        Raises InvalidRequestError if Iceberg can't express the change.
        """
        self._change(lambda table: change_shape(table, self._configs, wanted))

    def _change(self, change: Callable[[Table], bool]) -> None:
        """Have ``change`` commit something to the table as it is; it says whether there was anything to commit."""
        self.check_owner()
        for _ in range(_TRIES_MAX):
            try:
                changed = change(self.table)
            except LostError:
                self.refresh()
                continue
            if changed:
                self._place.step("columns changed")
            return
        raise self._too_many()

    def _commit(self, plan: Callable[[], tuple[Stamp, Commit]]) -> Landed:
        """Send what ``plan`` makes of the table as it is; when it is in, its stamp holds and no file is pending."""
        self.check_owner()
        if not self._claimed:
            self._begin_life()
        for _ in range(_TRIES_MAX):
            stamp, commit = plan()
            # Files stay unless it is sure that the table doesn't refer to them, whatever is raised from here on.
            self._outcome_known = False
            try:
                landed = self._send(commit)
            except LostError:
                self._outcome_known = True
                self.refresh()
                continue
            except Exception as error:  # noqa: BLE001 - whatever it was, it isn't known what happened
                self._fault = kept(self._unknown("the commit happened", error))
                raise again(self._fault) from None
            self._outcome_known = True
            self.stamp = stamp
            self._pending, self._begun = [], []
            return landed
        raise self._too_many()

    def _send(self, commit: Commit) -> Landed:
        self._place.step("manifests written")
        self._place.catalogs.check()
        landed = commit.send()
        self._place.step("committed")
        return landed

    def _unknown(self, what: str, error: Exception) -> PenstockError:
        if isinstance(error, PenstockError):
            return error
        if isinstance(error, NoSuchTableError):
            return NotFoundError(
                f"somebody dropped the table or gave it another name, so it is made again from what the topic still "
                f"has: table={self.name}"
            )
        cause = self._place.secrets.hide(" ".join(str(error).split()))
        return UnavailableError(f"the catalog didn't say whether {what}: table={self.name} cause={cause}")

    def refresh(self) -> None:
        """Load the newest metadata; go on only if they leave everything that this opening relies on.

        Nothing else may load them: a commit on a head that wasn't looked at would pass the compare-and-swap.
        """
        self.table.refresh()
        try:
            now = self._stamp_now()
            if self._epoch and now != self.stamp:
                raise self._opened_again()
            self.stamp = now
        except (ConflictError, FencedError) as error:
            self._fault = kept(error)
            raise

    def _opened_again(self) -> FencedError:
        return FencedError(
            f"somebody opened the table again with this epoch: table={self.name} epoch={self._epoch}"
        )

    def _too_many(self) -> ConflictError:
        return ConflictError(
            f"other writers of the table were faster each time: table={self.name} tries={_TRIES_MAX}"
        )

    # leaving, looking

    def leave(self) -> None:
        """Remove files that weren't committed; not if the commit may still be on its way."""
        if self._outcome_known:
            if self._claimed:
                self._place.lives[self.name] = Life(self.stamp.life, self._files, self._commits)
            with contextlib.suppress(OSError):  # the next owner removes them
                self._drop()

    def _drop(self) -> None:
        begun, self._begun, self._pending = self._begun, [], []
        self._remove(begun)

    def _remove(self, locations: Sequence[str]) -> None:
        if locations:
            remove(self.table.io, locations)
            logger.info("removed files of commits that failed: table=%s files=%d", self.name, len(locations))

    def describe(self) -> dict[str, str]:
        """The table by words."""
        table = self.table
        snapshot = table.current_snapshot()
        summary = (
            {} if snapshot is None or snapshot.summary is None else snapshot.summary.additional_properties
        )
        return {
            "place": table.location(),
            "metadata": table.metadata_location,
            "columns": shape_of(table.schema()),
            "partitions": ", ".join(f"{field.transform}({field.name})" for field in table.spec().fields)
            or "none",
            "rows": summary.get("total-records", "0"),
            "files": summary.get("total-data-files", "0"),
            "bytes": summary.get("total-files-size", "0"),
            "snapshot": str(snapshot.snapshot_id) if snapshot else "none",
            "snapshots": str(len(table.metadata.snapshots)),
            "owner epoch": str(self.stamp.epoch),
        }

    def files(self) -> list[FileScanTask]:
        """What is to be read for all rows."""
        self.refresh()
        return list(self.table.scan().plan_files())

    def records_of(self, task: FileScanTask) -> list[LakeRecord]:
        """The records of one file of a raw table."""
        from penstock_iceberg_compactor._scan import read_files, records_of

        return records_of(read_files(self.table, [task]))


def new_life(epoch: int) -> str:
    """A name for a life: digits of the epoch, then random ones; hexadecimal, as UUIDs of commits begin with it."""
    return f"{epoch:012x}{uuid.uuid4().hex[:8]}"


def _make(
    place: Place,
    catalog: Catalog,
    topic: LakeTopic,
    configs: TableConfigs,
    identifier: tuple[str, ...],
    schema: Schema | None,
) -> Table:
    schema = schema or (RAW_SCHEMA if configs.raw else SYSTEM_SCHEMA)
    stamp = Stamp(topic=topic.name, topic_id=topic.topic_id, epoch=0)
    try:
        table = catalog.create_table(
            identifier,
            schema,
            location=free_location(catalog, identifier),
            partition_spec=spec_of(configs, schema),
            sort_order=order_of(configs, schema),
            properties={**creation_properties(configs), **stamp.properties()},
        )
    except TableAlreadyExistsError:
        return catalog.load_table(identifier)  # another host was faster
    place.step("table made")
    return table
