"""Maintenance: small files become large ones, manifests are merged, snapshots expire with their files, orphans go.

pyiceberg has none of it but the removal of snapshots from the metadata: rewriting data files waits for
https://github.com/apache/iceberg-python/issues/1092, manifests for .../issues/3629, orphans for .../issues/1065.
"""

from __future__ import annotations

__all__ = ("Keeper",)

import logging
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlparse

from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.table.update import RemoveSnapshotsUpdate

from penstock.errors import ConflictError
from penstock.spi.lake import LakeMaintenance
from penstock_iceberg_compactor._commit import Landed, head_of, newest_ms, send_updates
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._files import undivided_spec
from penstock_iceberg_compactor._find import is_shared
from penstock_iceberg_compactor._io import Listed, listed, remove
from penstock_iceberg_compactor._owned import Change, OwnedTable
from penstock_iceberg_compactor._scan import read_parts
from penstock_iceberg_compactor._stamp import PREFIX

logger = logging.getLogger("penstock.lake.iceberg")

#: A file below this part of the target is small.
_SMALL = 0.75
#: Clocks of writers agree so far; Iceberg's Java library allows as much.
_CLOCK_MS = 60_000
#: Manifests beyond this number are merged although no file is small.
_MANIFESTS_MAX = 10


class Keeper:
    """Maintains one table. Blocking."""

    def __init__(self, owned: OwnedTable, configs: TableConfigs, grace_ms: int) -> None:
        self._owned = owned
        self._configs = configs
        self._grace_ms = grace_ms

    @property
    def _table(self) -> Table:
        return self._owned.table

    def maintain(self, *, dry_run: bool) -> LakeMaintenance:
        """Do all of it, or say what that would do."""
        self._owned.refresh()
        tasks, bins = self._small()
        manifests = len(self._manifests())
        written = 0
        rewrites = bool(bins) or manifests > _MANIFESTS_MAX
        if rewrites and not dry_run:
            self._owned.begin()  # which may be a commit, so what there is is looked at again
            tasks, bins = self._small()
            written = self._rewrite(bins).size_bytes
        expired, unneeded = self._expire(dry_run=dry_run)
        orphans = self._orphans(unneeded)
        removed = sum(unneeded.values()) + sum(file.size for file in orphans)
        if not dry_run:
            remove(self._table.io, [file.location for file in orphans])
        small = sum(len(one) for one in bins)
        figures = {
            "data files before": len(tasks),
            "data files after": len(tasks) - small + len(bins),
            "data files rewritten": small,
            "manifests merged": manifests if rewrites else 0,
            "snapshots expired": expired,
            "files removed": len(unneeded),
            "orphans removed": len(orphans),
        }
        return LakeMaintenance(figures=figures, saved_bytes=removed - written, dry_run=dry_run)

    def _small(self) -> tuple[list[FileScanTask], list[list[FileScanTask]]]:
        """All files, and the small ones of them that would become one each."""
        tasks = list(self._table.scan().plan_files())
        specs = {self._table.metadata.default_spec_id, undivided_spec(self._table)}
        return tasks, packed(tasks, self._configs.target_file_bytes, specs)

    def _rewrite(self, bins: Sequence[Sequence[FileScanTask]]) -> Landed:
        """Put the rows of each bin into one file, and merge manifests.

        Raises ConflictError if somebody committed meanwhile: what was to be rewritten may be gone.
        """
        check_head = self._unchanged(head_of)

        def plan() -> Change:
            check_head()
            for tasks in bins:
                file = tasks[0].file
                divided = file.spec_id == self._table.metadata.default_spec_id
                rows = (part for task in tasks for part in read_parts(self._table, task))
                self._owned.write_file(file.partition if divided else None, rows)
            return Change(taken=[task.file for tasks in bins for task in tasks], rewrites=True)

        try:
            return self._owned.commit(plan)
        except ConflictError:
            self._owned.drop()
            raise

    def _unchanged(self, part: Callable[[Table], object]) -> Callable[[], None]:
        """A function that raises ConflictError once this part of the table isn't what it is now."""
        before = part(self._table)

        def check() -> None:
            if part(self._table) != before:
                raise ConflictError(f"another writer committed during maintenance: table={self._owned.name}")

        return check

    def _manifests(self) -> list[str]:
        snapshot = self._table.current_snapshot()
        return [one.manifest_path for one in snapshot.manifests(self._table.io)] if snapshot else []

    def _expire(self, *, dry_run: bool) -> tuple[int, dict[str, int]]:
        """Expire snapshots; how many, and the files that only they needed, with sizes."""
        metadata = self._table.metadata
        if newest_ms(self._table) > time.time() * 1000 + _CLOCK_MS:
            return (
                0,
                {},
            )  # the clock went back: what it says of ages is wrong, and so would be the time of the change
        check_names = self._unchanged(names_of)
        gone = expirable(
            metadata.snapshots,
            self._table.current_snapshot(),
            set(names_of(self._table).values()),
            lambda head: ancestors_of(head, metadata),
            keep_count=self._configs.snapshot_retention_count,
            before_ms=int(time.time() * 1000) - self._configs.snapshot_retention_ms,
        )
        if not gone:
            return 0, {}
        kept = [one for one in metadata.snapshots if one.snapshot_id not in gone]
        reach = Reach(self._table)
        needed = reach.of(kept)
        unneeded = {
            location: size
            for location, size in reach.of(
                one for one in metadata.snapshots if one.snapshot_id in gone
            ).items()
            if location not in needed
        }
        if not dry_run:
            self._let_go(sorted(gone), check_names)
            # Not needed by any snapshot from here on; if this is cut off, they are orphans.
            remove(self._table.io, unneeded)
        return len(gone), unneeded

    def _let_go(self, snapshot_ids: Sequence[int], check_names: Callable[[], None]) -> None:
        """Take snapshots out of the metadata. Raises ConflictError if somebody committed, or named one, meanwhile."""
        update = RemoveSnapshotsUpdate.model_validate({"snapshot-ids": list(snapshot_ids)})

        def change(table: Table) -> bool:
            self._owned.refresh()  # a tag goes with the snapshot that it names, and nothing guards it but this look
            check_names()
            return send_updates(table, (update,))

        self._owned.change("snapshots expired", change)

    def _orphans(self, unneeded: Iterable[str]) -> list[Listed]:
        """Files below the table's place that no snapshot knows and that are older than the grace time."""
        # Listed first: what is committed between the two is known then.
        there = list(listed(self._table.io, self._table.location()))
        self._owned.refresh()
        metadata = self._table.metadata
        known = set(map(_path, Reach(self._table).of(metadata.snapshots)))
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


def names_of(table: Table) -> dict[str, int]:
    """The snapshots that branches, also the main one, and tags name."""
    return {name: ref.snapshot_id for name, ref in table.metadata.refs.items()}


class Reach:
    """Which files snapshots need; manifests are read once."""

    def __init__(self, table: Table) -> None:
        self._io = table.io
        self._read: dict[str, dict[str, int]] = {}

    def of(self, snapshots: Iterable[Snapshot]) -> dict[str, int]:
        """Manifest lists, manifests and files of rows or deletes, with sizes as far as they are known."""
        found: dict[str, int] = {}
        for snapshot in snapshots:
            found[snapshot.manifest_list] = 0
            for manifest in snapshot.manifests(self._io):
                path = manifest.manifest_path
                if path not in self._read:
                    entries = manifest.fetch_manifest_entry(self._io, discard_deleted=True)
                    files = {
                        entry.data_file.file_path: entry.data_file.file_size_in_bytes for entry in entries
                    }
                    self._read[path] = {path: manifest.manifest_length, **files}
                found.update(self._read[path])
        return found


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


def expirable(
    snapshots: Iterable[Snapshot],
    head: Snapshot | None,
    referenced: set[int],
    ancestors: Callable[[Snapshot], Iterable[Snapshot]],
    *,
    keep_count: int,
    before_ms: int,
) -> set[int]:
    """Snapshots that are older, but for the newest ``keep_count``, those with names, and the newest stamped one."""
    keep = set(referenced)
    stamped = False
    for index, snapshot in enumerate(ancestors(head) if head is not None else ()):
        has_stamp = snapshot.summary is not None and snapshot.summary.get(PREFIX + "version") is not None
        if index < keep_count or (has_stamp and not stamped):
            keep.add(snapshot.snapshot_id)
        stamped = stamped or has_stamp
    return {one.snapshot_id for one in snapshots if one.timestamp_ms < before_ms} - keep


def _path(location: str) -> str:
    place = urlparse(location)
    return f"{place.netloc}/{place.path.lstrip('/')}"
