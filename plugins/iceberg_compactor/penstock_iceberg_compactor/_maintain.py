"""Maintenance: small files become large ones, manifests are merged, snapshots expire with their files, orphans go.

pyiceberg has none of it but the removal of snapshots from the metadata: rewriting data files waits for
https://github.com/apache/iceberg-python/issues/1092, manifests for .../issues/3629, orphans for .../issues/1065.
"""

from __future__ import annotations

__all__ = ("Keeper",)

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import urlparse

from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.table.update import RemoveSchemasUpdate, RemoveSnapshotsUpdate

from penstock.spi.lake import LakeMaintenance
from penstock_iceberg_compactor._commit import LostError, head_of, newest_ms, send_updates
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._errors import passed_over
from penstock_iceberg_compactor._files import undivided_spec
from penstock_iceberg_compactor._find import is_shared
from penstock_iceberg_compactor._io import Listed, listed, remove
from penstock_iceberg_compactor._owned import Change, OutrunError, OwnedTable
from penstock_iceberg_compactor._scan import EqualityDeletesError, files_of, read_parts
from penstock_iceberg_compactor._schema import SCHEMAS_COLUMNS_MAX
from penstock_iceberg_compactor._stamp import PREFIX
from penstock_iceberg_compactor.decode.waits import check_wanted

logger = logging.getLogger("penstock.lake.iceberg")

#: A file below this part of the target is small.
_SMALL = 0.75
#: Clocks of writers agree so far; Iceberg's Java library allows as much.
_CLOCK_MS = 60_000
#: Manifests beyond this number are merged although no file is small.
_MANIFESTS_MAX = 10
#: What is rewritten in one commit, which is as much as one that doesn't happen costs.
_GROUP_BYTES = 2**30
_GROUP_FILES = 1000
#: So many of the newest schemas stay.
_SCHEMAS_KEPT = 10

_T = TypeVar("_T")
#: Files that become one, as they were found.
_Bin = Sequence[FileScanTask]


class Keeper:
    """Maintains one table. Blocking."""

    def __init__(self, owned: OwnedTable, configs: TableConfigs, grace_ms: int) -> None:
        self._owned = owned
        self._configs = configs
        self._grace_ms = grace_ms
        self._reach = Reach(owned.table)
        #: The head that files were found at.
        self._found_at: int | None = None

    @property
    def _table(self) -> Table:
        return self._owned.table

    def maintain(self, *, dry_run: bool) -> LakeMaintenance:
        """Do all of it, or say what that would do."""
        self._owned.refresh()
        tasks, bins = self._small()
        manifests = len(self._manifests())
        rewrites = bool(bins) or manifests > _MANIFESTS_MAX
        done = Rewritten(len(bins), sum(map(len, bins)), 0)
        if rewrites and not dry_run:
            self._owned.begin()  # which may be a commit, so what there is is looked at again
            tasks, bins = self._small()
            done = self._rewrite(bins)
        before = len(tasks) or self._count()
        expired, unneeded = self._expire(dry_run=dry_run)
        if not dry_run:
            self._drop_schemas()
        orphans = self._orphans(unneeded)
        removed = sum(unneeded.values()) + sum(file.size for file in orphans)
        if not dry_run:
            remove(self._table.io, [file.location for file in orphans])
        figures = {
            "data files before": before,
            "data files after": before - done.taken + done.made,
            "data files rewritten": done.taken,
            "data files left to other writers": sum(map(len, bins)) - done.taken,
            "manifests merged": manifests if rewrites else 0,
            "snapshots expired": expired,
            "files removed": len(unneeded),
            "orphans removed": len(orphans),
        }
        return LakeMaintenance(figures=figures, saved_bytes=removed - done.written_bytes, dry_run=dry_run)

    def _small(self) -> tuple[list[FileScanTask], list[list[FileScanTask]]]:
        """All files, and the small ones of them that would become one each."""
        try:
            tasks = files_of(self._table)
        except EqualityDeletesError as error:  # snapshots expire all the same
            logger.warning("files aren't rewritten: %s", error)
            tasks = []
        self._found_at = head_of(self._table)
        specs = {self._table.metadata.default_spec_id, undivided_spec(self._table)}
        return tasks, packed(tasks, self._configs.target_file_bytes, specs)

    def _rewrite(self, bins: Sequence[_Bin]) -> Rewritten:
        """Put the rows of each bin into one file, some bins a commit, and merge manifests with the last one.

        If other writers are faster each time, half as many bins are tried; if that is so with one, the rest is left.
        """
        done = Rewritten(0, 0, 0)
        groups = deque(grouped(bins) or [[]])
        while groups:
            group = groups.popleft()
            try:
                done = done.with_those(self._rewrite_group(group, merges=not groups))
            except OutrunError as error:
                if len(group) < 2:
                    logger.warning("files aren't rewritten for now: %s", error)
                    return done
                half = len(group) // 2
                groups.extendleft((group[half:], group[:half]))
        return done

    def _rewrite_group(self, bins: Sequence[_Bin], *, merges: bool) -> Rewritten:
        """One commit, without bins of which another writer took a file, or deleted rows, meanwhile.

        Raises OutrunError if others were faster each time.
        """
        made: list[tuple[_Bin, DataFile]] = []
        tries = 0

        def plan() -> Change:
            nonlocal tries
            tries += 1
            if made and (tries > 1 or head_of(self._table) != head):
                self._leave_changed(made)
            taken = [task.file for tasks, _ in made for task in tasks]
            # manifests are merged at the first try only: a commit that is made quickly wins
            return Change(taken=taken, rewrites=True, merges=merges and (tries == 1 or not bins))

        try:
            for tasks in bins:
                file = tasks[0].file
                divided = file.spec_id == self._table.metadata.default_spec_id
                rows = _while_wanted(part for task in tasks for part in read_parts(self._table, task))
                try:
                    written = self._owned.write_file(file.partition if divided else None, rows)
                except FileNotFoundError:
                    self._owned.refresh()
                    if self._are_there(tasks):
                        raise
                    continue  # another writer took it out, and removed it
                made.append((tasks, written))
            head = self._found_at
            landed = self._owned.commit(plan)
        except OutrunError:
            self._owned.drop()
            raise
        return Rewritten(len(made), sum(len(tasks) for tasks, _ in made), landed.size_bytes)

    def _are_there(self, tasks: _Bin) -> bool:
        there = {task.file.file_path for task in files_of(self._table)}
        return all(task.file.file_path in there for task in tasks)

    def _leave_changed(self, made: list[tuple[_Bin, DataFile]]) -> None:
        """Drop those that were made of files which aren't there any more, or which others deleted rows of."""
        there = {task.file.file_path: task for task in files_of(self._table)}
        for one in list(made):
            tasks, file = one
            if any(_deletes(there.get(task.file.file_path)) != _deletes(task) for task in tasks):
                self._owned.drop_one(file)
                made.remove(one)

    def _count(self) -> int:
        """How many data files there are, as the newest snapshot tells."""
        head = self._table.current_snapshot()
        summary = None if head is None else head.summary
        return int((summary and summary.get("total-data-files")) or 0)

    def _manifests(self) -> list[str]:
        snapshot = self._table.current_snapshot()
        return [one.manifest_path for one in snapshot.manifests(self._table.io)] if snapshot else []

    def _expire(self, *, dry_run: bool) -> tuple[int, dict[str, int]]:
        """Expire snapshots; how many, and the files that only they needed, with sizes."""
        if dry_run:
            gone, unneeded = self._expirable()
            return len(gone), unneeded
        found: tuple[set[int], dict[str, int]] = set(), {}

        def change(table: Table) -> bool:
            nonlocal found
            found = self._expirable()
            names = names_of(table)
            if not found[0]:
                return False
            self._owned.refresh()  # a tag goes with the snapshot that it names, and nothing guards it but this look
            there = {one.snapshot_id for one in table.metadata.snapshots}
            if names_of(table) != names or not found[0] <= there:
                raise LostError("another writer committed, named a snapshot, or expired one")
            update = RemoveSnapshotsUpdate.model_validate({"snapshot-ids": sorted(found[0])})
            return send_updates(table, (update,))

        try:
            if len(list(unstamped(self._table))) > self._configs.snapshot_retention_count:
                self._owned.commit(Change)  # a stamp that those of others needn't stay for
            self._owned.change("snapshots expired", change)
        except OutrunError as error:
            logger.warning("snapshots don't expire for now: %s", error)
            return 0, {}
        gone, unneeded = found
        # Not needed by any snapshot from here on; if this is cut off, they are orphans.
        remove(self._table.io, unneeded)
        return len(gone), unneeded

    def _expirable(self) -> tuple[set[int], dict[str, int]]:
        """The ids of snapshots that may go, and the files that only they need, with sizes."""
        metadata = self._table.metadata
        if newest_ms(self._table) > time.time() * 1000 + _CLOCK_MS:
            # the clock went back: what it says of ages is wrong, and so would be the time of the change
            return set(), {}
        gone = expirable(
            metadata.snapshots,
            self._table.current_snapshot(),
            set(names_of(self._table).values()),
            lambda head: ancestors_of(head, metadata),
            keep_count=self._configs.snapshot_retention_count,
            before_ms=int(time.time() * 1000) - self._configs.snapshot_retention_ms,
        )
        if not gone:
            return set(), {}
        needed = self._reach.of(one for one in metadata.snapshots if one.snapshot_id not in gone)
        theirs = self._reach.of(one for one in metadata.snapshots if one.snapshot_id in gone)
        return gone, {location: size for location, size in theirs.items() if location not in needed}

    def _drop_schemas(self) -> None:
        """Take schemas out of the metadata that no snapshot needs, if they are much of these.

        A catalog that doesn't know how keeps them.
        """

        def change(table: Table) -> bool:
            metadata = table.metadata
            needed = {one.schema_id for one in metadata.snapshots} | {metadata.current_schema_id}
            # another writer may be about to commit with one that was current a moment ago
            old = sorted(one.schema_id for one in metadata.schemas)[:-_SCHEMAS_KEPT]
            gone = [schema_id for schema_id in old if schema_id not in needed]
            if metadata.last_column_id * len(gone) < SCHEMAS_COLUMNS_MAX // 10:
                return False
            update = RemoveSchemasUpdate.model_validate({"schema-ids": gone})
            return send_updates(table, (update,))

        with passed_over("removing schemas that no snapshot needs"):
            self._owned.change("schemas removed", change)

    def _orphans(self, unneeded: Iterable[str]) -> list[Listed]:
        """Files below the table's place that no snapshot knows and that are older than the grace time."""
        # Listed first: what is committed between the two is known then.
        there = list(_while_wanted(listed(self._table.io, self._table.location())))
        self._owned.refresh()
        metadata = self._table.metadata
        known = set(map(_path, self._reach.of(metadata.snapshots)))
        known.update(map(_path, unneeded))
        known.update(_path(entry.metadata_file) for entry in metadata.metadata_log)
        known.update(_path(one.statistics_path) for one in metadata.statistics)
        known.update(_path(one.statistics_path) for one in metadata.partition_statistics)
        known.add(_path(self._table.metadata_location))
        before = time.time() - self._grace_ms / 1000
        unknown = [
            file
            for file in there
            if _path(file.location) not in known and not file.location.endswith("version-hint.text")
        ]
        if is_shared(self._table, (file.location for file in unknown)):
            logger.warning(
                "another table's files are in the same place, so no orphans are removed: table=%s place=%s",
                self._owned.name,
                self._table.location(),
            )
            return []
        return [file for file in unknown if file.modified is not None and file.modified < before]


def _while_wanted(items: Iterable[_T]) -> Iterator[_T]:
    """All of them. Raises UnavailableError in between when nobody waits for maintenance any more."""
    for item in items:
        check_wanted()
        yield item


def names_of(table: Table) -> dict[str, int]:
    """The snapshots that branches, also the main one, and tags name."""
    return {name: ref.snapshot_id for name, ref in table.metadata.refs.items()}


def unstamped(table: Table) -> Iterator[Snapshot]:
    """The snapshots of others on top of Penstock's newest: what leads to its stamp."""
    for one in ancestors_of(table.current_snapshot(), table.metadata):
        if has_stamp(one):
            return
        yield one


def has_stamp(snapshot: Snapshot) -> bool:
    """Whether Penstock made it."""
    return snapshot.summary is not None and snapshot.summary.get(PREFIX + "version") is not None


class Rewritten(NamedTuple):
    """Files that became fewer: how many were made, of how many that were taken out."""

    made: int
    taken: int
    written_bytes: int

    def with_those(self, others: Rewritten) -> Rewritten:
        """The sums."""
        return Rewritten(
            self.made + others.made, self.taken + others.taken, self.written_bytes + others.written_bytes
        )


class Reach:
    """Which files snapshots need; lists of manifests, and manifests, are read once."""

    def __init__(self, table: Table) -> None:
        self._io = table.io
        self._lists: dict[int, list[str]] = {}
        self._read: dict[str, dict[str, int]] = {}

    def of(self, snapshots: Iterable[Snapshot]) -> dict[str, int]:
        """Manifest lists, manifests and files of rows or deletes, with sizes as far as they are known."""
        found: dict[str, int] = {}
        for snapshot in snapshots:
            found[snapshot.manifest_list] = 0
            if snapshot.snapshot_id not in self._lists:
                self._lists[snapshot.snapshot_id] = [self._reads(one) for one in snapshot.manifests(self._io)]
            for path in self._lists[snapshot.snapshot_id]:
                found.update(self._read[path])
        return found

    def _reads(self, manifest: ManifestFile) -> str:
        path = manifest.manifest_path
        if path not in self._read:
            check_wanted()
            entries = manifest.fetch_manifest_entry(self._io, discard_deleted=True)
            files = {entry.data_file.file_path: entry.data_file.file_size_in_bytes for entry in entries}
            self._read[path] = {path: manifest.manifest_length, **files}
        return path


class _Group(NamedTuple):
    tasks: list[FileScanTask]
    size: int


def packed(
    tasks: Sequence[FileScanTask], target: int, specs: Container[int | None]
) -> list[list[FileScanTask]]:
    """Small files, and those with deletes, put together by partition to files of about ``target`` bytes.

    Files of other partition specs stay: their rows may belong into several partitions.
    """
    by_partition: dict[tuple[int, str], list[FileScanTask]] = {}
    for task in tasks:
        small = task.file.file_size_in_bytes < target * _SMALL
        if task.file.spec_id in specs and (small or task.delete_files):
            by_partition.setdefault((task.file.spec_id, repr(task.file.partition)), []).append(task)
    bins = []
    for members in by_partition.values():
        group = _Group([], 0)
        for task in members:
            size = task.file.file_size_in_bytes
            if group.tasks and group.size + size > target:
                bins.append(group.tasks)
                group = _Group([], 0)
            group = _Group([*group.tasks, task], group.size + size)
        bins.append(group.tasks)
    return [one for one in bins if len(one) > 1 or one[0].delete_files]


def grouped(bins: Iterable[_Bin]) -> list[list[_Bin]]:
    """Bins for one commit each, in their order; none has no bin."""
    groups: list[list[_Bin]] = []
    size = files = 0
    for tasks in bins:
        more = sum(task.file.file_size_in_bytes for task in tasks)
        if not groups or size + more > _GROUP_BYTES or files + len(tasks) > _GROUP_FILES:
            groups.append([])
            size = files = 0
        groups[-1].append(tasks)
        size, files = size + more, files + len(tasks)
    return groups


def _deletes(task: FileScanTask | None) -> set[str] | None:
    """Which files delete rows of it; None if it isn't there."""
    return None if task is None else {file.file_path for file in task.delete_files}


def expirable(
    snapshots: Iterable[Snapshot],
    head: Snapshot | None,
    referenced: set[int],
    ancestors: Callable[[Snapshot], Iterable[Snapshot]],
    *,
    keep_count: int,
    before_ms: int,
) -> set[int]:
    """Snapshots that are older, but for the newest ``keep_count``, those with names, and all from the head to the
    newest stamped one, which is found by them.
    """
    keep = set(referenced)
    stamped = False
    for index, snapshot in enumerate(ancestors(head) if head is not None else ()):
        if index < keep_count or not stamped:
            keep.add(snapshot.snapshot_id)
        stamped = stamped or has_stamp(snapshot)
    return {one.snapshot_id for one in snapshots if one.timestamp_ms < before_ms} - keep


def _path(location: str) -> str:
    place = urlparse(location)
    return f"{place.netloc}/{place.path.lstrip('/')}"
