"""A table with an owner: opened with an epoch that fences others, written and committed under its stamp. Blocking."""

from __future__ import annotations

__all__ = ("Change", "OutrunError", "OwnedTable")

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.typedef import Record

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
from penstock.spi.lake import LakeTopic
from penstock_iceberg_compactor._commit import Commit, Landed, LostError, UnknownError, head_of, reload
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._errors import cause_of, passed_over
from penstock_iceberg_compactor._files import FileWriter, arrow_schema, fitted, undivided_spec
from penstock_iceberg_compactor._find import find_table
from penstock_iceberg_compactor._life import Life, leftovers, remove_failed
from penstock_iceberg_compactor._place import Place
from penstock_iceberg_compactor._schema import add_undivided_spec, change_shape, check_columns
from penstock_iceberg_compactor._stamp import Stamp, newest_stamp

#: Another writer may be faster so often, then the kernel opens the table again.
_TRIES_MAX = 10
#: The newest version of Iceberg's format that pyiceberg writes.
_FORMAT_MAX = 2


class OutrunError(ConflictError):
    """Other writers were faster each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a commit does to a table beside adding the files that wait."""

    #: Those of these partitions move; others stay.
    positions: Mapping[int, int] = field(default_factory=dict)
    #: Files that are taken out.
    taken: Sequence[DataFile] = ()
    #: Whether the files that are added hold the same rows as those that are taken.
    rewrites: bool = False
    #: Whether all manifests are merged.
    merges: bool = False


class OwnedTable:
    """One opening of a table: metadata as loaded, the stamp that holds, and the life that files are written in."""

    def __init__(
        self, place: Place, topic: LakeTopic, configs: TableConfigs, table: Table, epoch: int
    ) -> None:
        self._place = place
        self._topic = topic
        self._configs = configs
        self._epoch = epoch
        self.table = table
        self.stamp = self._stamp_now()
        #: None as long as this opening has written nothing.
        self._life: Life | None = None
        self._fault: PenstockError | None = None
        self._outcome_known = True
        #: Names and ids of columns that rows since the last commit were read for.
        self._read_for: set[tuple[str, int]] = set()

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
        table = find_table(place, topic, configs, name, schema, may_make=epoch > 0)
        owned = cls(place, topic, configs, table, epoch)
        if epoch:
            owned._claim()
            owned.take_columns(None)  # partitions and order that were set since
        return owned

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self.table.name()[-1]

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

    def refresh(self) -> None:
        """Load the newest metadata; go on only if they leave everything that this opening relies on.

        Nothing else may load them: a commit on a head that wasn't looked at would pass the compare-and-swap.
        """
        try:
            reload(self.table)
        except NoSuchTableError:
            raise self._dropped() from None
        self._check_stamp()

    def _check_stamp(self) -> None:
        """Raise, from now on, if the metadata that were loaded are another owner's by now."""
        try:
            now = self._stamp_now()
            if self._epoch and now != self.stamp:
                raise self._opened_again()
            self.stamp = now
        except (ConflictError, FencedError) as error:
            self._fault = kept(error)
            raise

    def _check_head(self, landed: Landed) -> None:
        """Look at what came behind a commit whose reply was lost, as the metadata that show it have that, too."""
        if head_of(self.table) != landed.snapshot_id:
            self._check_stamp()

    # claiming

    def _claim(self) -> None:
        """Fence lower epochs, and whatever an earlier opening of this one left on its way."""
        life = self._place.lives.pop(self.name, None)
        if self.stamp.epoch < self._epoch or leftovers(self.table, self.stamp):
            self._begin_life()
        # Else the same owner opens it again, perhaps only to find that it can't go on: no snapshot for that.
        elif life is not None and life.name == self.stamp.life:
            self._life = life

    def begin(self) -> Life:
        """The life of this opening, which begins with a commit of its own if it hasn't yet."""
        self.check_owner()
        return self._life or self._begin_life()

    def _begin_life(self) -> Life:
        """Claim the table with a name of one's own for files.

        The name is in the table before the first file is there, so that whoever comes next finds them; and each
        opening has another, so that no file is ever written twice.
        """
        for _ in range(_TRIES_MAX):
            before, life = self.stamp, Life(self._epoch)
            stamp = replace(before, epoch=self._epoch, life=life.name, files=0)
            try:
                landed = Commit(self.table, stamp, number=life.next_commit()).send(self._place.step)
            except LostError:
                reload(self.table)
                self.stamp = self._stamp_now()
                if self.stamp.epoch == self._epoch and self.stamp != before:
                    raise self._opened_again() from None
                continue
            except (UnknownError, NoSuchTableError) as error:
                raise self._unknown("the table was claimed", error) from None
            self.stamp, self._life = stamp, life
            self._check_head(landed)
            self._place.step("table claimed")
            # Nothing of an earlier life can be committed from here on, so what it left can go.
            with passed_over("removing what an earlier owner left"):
                remove_failed(self.table, leftovers(self.table, before))
            return life
        raise self._too_many()

    # writing

    def _writer(self, life: Life) -> FileWriter:
        return FileWriter(self.table, lambda: life.location(self.table.location_provider().data_path))

    def write(self, rows: Sequence[pa.Table]) -> None:
        """Write rows into files for the next commit."""
        life = self.begin()
        self._read_for |= self._columns_now()
        writer = self._writer(life)
        wanted = writer.columns
        files_max = max(1, self._configs.partition_files_max - len(life.waiting))
        parts = writer.parts(pa.concat_tables([fitted(part, wanted) for part in rows]), files_max)
        if any(part.partition is None for part in parts) and undivided_spec(self.table) is None:
            self.change("columns changed", add_undivided_spec)
            writer = self._writer(life)
        life.waiting += writer.write(parts)
        self._place.step("files written")

    def write_file(self, partition: Record | None, parts: Iterator[pa.Table]) -> DataFile:
        """Write one file for the next commit, of rows of one partition, or of any with None.

        Raises FileNotFoundError if what ``parts`` are read from isn't there any more, and nothing is left of it.
        """
        life = self.begin()
        try:
            file = self._writer(life).write_one(partition, parts)
        except FileNotFoundError:
            remove_failed(self.table, life.take_back_begun())
            raise
        life.waiting.append(file)
        self._place.step("file rewritten")
        return file

    def drop_one(self, file: DataFile) -> None:
        """Remove a file that waits."""
        if self._life is not None:
            remove_failed(self.table, self._life.let_go(file))

    def drop(self) -> None:
        """Remove the files that wait."""
        if self._life is not None:
            remove_failed(self.table, self._life.forget())

    def leave(self) -> None:
        """Remove files that weren't committed; not if the commit may still be on its way."""
        if self._outcome_known and self._life is not None:
            self._place.lives[self.name] = self._life
            with passed_over("removing files that nothing committed"):  # the next owner does it
                self.drop()

    # committing

    def commit(self, plan: Callable[[], Change]) -> Landed:
        """Make the files that wait visible, with the change that ``plan`` makes of the table as it is.

        Raises FencedError also if it did happen, and was looked up where a newer owner had gone on.

        It is called again if another writer was faster, whatever that one changed, and may write files itself: those
        of an attempt that lost are taken back.
        """
        life = self.begin()
        before = len(life.waiting)
        for _ in range(_TRIES_MAX):
            remove_failed(self.table, life.take_back(before))
            head = head_of(self.table)
            change = plan()
            if head_of(self.table) != head:
                continue  # it changed the table, and saw two snapshots of it
            if not change.rewrites:
                self._check_columns_stay()
            positions = {**self.stamp.positions, **change.positions}
            stamp = replace(self.stamp, files=life.files, positions=positions)
            commit = Commit(
                self.table,
                stamp,
                added=life.waiting,
                taken=change.taken,
                rewrites=change.rewrites,
                merges=change.merges,
                number=life.next_commit(),
            )
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
            if not change.rewrites:
                self._read_for.clear()
            life.forget()
            self._check_head(landed)
            return landed
        raise self._too_many()

    def _check_columns_stay(self) -> None:
        """Raise ConflictError if the table has no place any more for what may be in rows."""
        gone = sorted(self._read_for - self._columns_now())
        if gone:
            self._fault = ConflictError(
                f"somebody dropped or renamed a column while rows waited for their commit, so they are read again: "
                f"table={self.name} column={gone[0][0]}"
            )
            raise again(self._fault)

    def _send(self, commit: Commit) -> Landed:
        self._place.step("manifests written")
        self._place.catalogs.check()
        landed = commit.send(self._place.step)
        self._place.step("committed")
        return landed

    # changing what isn't rows

    @property
    def columns(self) -> pa.Schema:
        """The columns that rows are fitted to."""
        self._read_for |= self._columns_now()
        return arrow_schema(self.table.schema())

    def _columns_now(self) -> set[tuple[str, int]]:
        """A column that was dropped and added again has another id, by which readers find values in files."""
        return set(self.table.schema()._name_to_id.items())

    def take_columns(self, wanted: pa.Schema | None) -> None:
        """Have these columns, too, and what configs say of partitions and order: a commit, guarded as the others are.

        Raises InvalidRequestError if Iceberg can't express the change.
        """
        self.change("columns changed", lambda table: change_shape(table, self._configs, wanted))

    def change(self, step: str, change: Callable[[Table], bool]) -> None:
        """Have ``change`` commit something to the table as it is; it says whether there was anything to commit.

        It raises LostError if another writer was faster, and is then called again.
        """
        self.check_owner()
        for _ in range(_TRIES_MAX):
            try:
                changed = change(self.table)
            except LostError:
                self.refresh()
                continue
            if changed:
                self._place.step(step)
            return
        raise self._too_many()

    # what went wrong

    def _unknown(self, what: str, error: Exception) -> PenstockError:
        if isinstance(error, PenstockError):
            return error
        if isinstance(error, NoSuchTableError):
            return self._dropped()
        cause = self._place.secrets.hide(cause_of(error))
        return UnavailableError(f"the catalog didn't say whether {what}: table={self.name} cause={cause}")

    def _dropped(self) -> NotFoundError:
        return NotFoundError(
            f"somebody dropped the table or gave it another name, so it is made again from what the topic still "
            f"has: table={self.name}"
        )

    def _opened_again(self) -> FencedError:
        return FencedError(
            f"somebody opened the table again with this epoch: table={self.name} epoch={self._epoch}"
        )

    def _too_many(self) -> OutrunError:
        return OutrunError(
            f"other writers of the table were faster each time: table={self.name} tries={_TRIES_MAX}"
        )
