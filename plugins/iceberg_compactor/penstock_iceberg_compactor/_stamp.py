"""The stamp: what a table says of itself, in the summary of each snapshot that Penstock makes.

Positions, topic and owner are in the same snapshot as the rows, so they become true in the same step. Iceberg's only
compare-and-swap that guards both is the one on the head of the main branch; there is none on properties. So whoever
opens a table with a higher epoch commits an empty snapshot with its stamp, and from then on every commit that was
planned before fails, whoever sends it and whenever it arrives.

Other writers may append: their snapshots have no stamp, and that of the nearest ancestor holds. A copy is in the
table's properties, for the case that somebody else's maintenance expired all stamped snapshots.
"""

from __future__ import annotations

__all__ = ("PREFIX", "Stamp", "newest_stamp", "stamped_snapshot")

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from penstock.errors import ConflictError, CorruptError, NewerVersionError

PREFIX = "penstock."
_VERSION = 1
_SNAPSHOT = PREFIX + "snapshot-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What is true at a snapshot."""

    topic: str
    topic_id: str
    #: The owner; a higher one fences it.
    epoch: int
    #: A life of the owner: its files begin with it. Empty for a table that nobody opened to write.
    life: str = ""
    #: Files that this life has written for this and earlier commits; higher numbers are of attempts that failed.
    files: int = 0
    #: For each partition the offset to go on from.
    positions: Mapping[int, int] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        """As Iceberg keeps it."""
        positions = ",".join(f"{partition}:{offset}" for partition, offset in sorted(self.positions.items()))
        return {
            PREFIX + "version": str(_VERSION),
            PREFIX + "topic": self.topic,
            PREFIX + "topic-id": self.topic_id,
            PREFIX + "epoch": str(self.epoch),
            PREFIX + "life": self.life,
            PREFIX + "files": str(self.files),
            PREFIX + "positions": positions,
        }

    def table_properties(self, snapshot_id: int) -> dict[str, str]:
        """The copy for the table's properties, of the snapshot that it belongs to."""
        return {**self.properties(), _SNAPSHOT: str(snapshot_id)}

    @classmethod
    def parse(cls, properties: Mapping[str, str | None], table: str) -> Stamp | None:
        """That in ``properties``; None if there is none. Raises CorruptError, NewerVersionError."""
        version = properties.get(PREFIX + "version")
        if version is None:
            return None
        try:
            if int(version) > _VERSION:
                raise NewerVersionError.of(
                    "the table", f"table={table}", version=int(version), known=_VERSION
                )
            pairs = (pair.split(":") for pair in (properties[PREFIX + "positions"] or "").split(",") if pair)
            return cls(
                topic=properties[PREFIX + "topic"] or "",
                topic_id=properties[PREFIX + "topic-id"] or "",
                epoch=int(properties[PREFIX + "epoch"] or ""),
                life=properties[PREFIX + "life"] or "",
                files=int(properties[PREFIX + "files"] or ""),
                positions={int(partition): int(offset) for partition, offset in pairs},
            )
        except (KeyError, ValueError) as error:
            raise CorruptError(
                f"the table's own positions can't be read, somebody else changed them: restore the penstock.* keys, "
                f"or drop the table and let it be made again: table={table} cause={error}"
            ) from error


def stamped_snapshot(properties: Mapping[str, str]) -> str | None:
    """The id of the snapshot that the copy in the table's properties belongs to: the newest that Penstock made."""
    return properties.get(_SNAPSHOT)


class _Snapshot(Protocol):
    snapshot_id: int
    parent_snapshot_id: int | None
    summary: Mapping[str, str | None] | None


def newest_stamp(
    snapshots: Iterable[_Snapshot], head: int | None, properties: Mapping[str, str], table: str
) -> Stamp:
    """What holds at snapshot ``head``, None for a table without one.

    Raises ConflictError if that isn't known: the table isn't Penstock's, or somebody replaced it.
    """
    by_id = {snapshot.snapshot_id: snapshot for snapshot in snapshots}
    copy = Stamp.parse(properties, table)
    at, oldest = head, None
    while at is not None and (snapshot := by_id.get(at)) is not None:
        stamp = Stamp.parse(snapshot.summary or {}, table)
        if stamp is not None:
            return stamp
        at, oldest = snapshot.parent_snapshot_id, snapshot
    if copy is None:
        raise ConflictError(
            f"the table exists, and penstock didn't make it or somebody dropped its penstock.* properties: choose "
            f"another name with penstock.lake.table, or drop the table: table={table}"
        )
    stamped = stamped_snapshot(properties)
    if stamped is not None and (stamped in map(str, by_id) or _begins_empty(oldest)):
        raise ConflictError(
            f"somebody replaced the table's history, so penstock doesn't know which records it holds: drop the table "
            f"to have it made again, or roll it back to a snapshot of penstock: table={table} snapshot={stamped}"
        )
    return copy


def _begins_empty(oldest: _Snapshot | None) -> bool:
    """Whether the oldest ancestor that is left began with no rows: then it isn't one that a stamped one came before.

    Its parent says nothing: some writers drop that when they expire the parent.
    """
    if oldest is None or oldest.summary is None:
        return True
    total, added, deleted = (
        int(oldest.summary.get(name) or 0) for name in ("total-records", "added-records", "deleted-records")
    )
    return total - added + deleted <= 0
