"""The table beside a table: records that it couldn't take, with the reason.

It has an owner, positions and a stamp of its own, so it is as exact as the other: its position in a partition is the
offset after the last record that is in it. It is committed first. If the other commit then doesn't happen, the same
records are read again: what it has of those below its position is looked up, as others may be refused by now.
"""

from __future__ import annotations

__all__ = ("DEAD_SCHEMA", "SUFFIX", "DeadLetters")

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema
from pyiceberg.types import NestedField, StringType, TimestamptzType

from penstock.spi.lake import LakeRecords
from penstock_iceberg_compactor._columns import RAW_SCHEMA, raw_rows
from penstock_iceberg_compactor._owned import Change, OwnedTable
from penstock_iceberg_compactor._reading import Rejected
from penstock_iceberg_compactor._scan import read_as_written

SUFFIX = "__dead_letter"
DEAD_SCHEMA = Schema(
    *RAW_SCHEMA.fields,
    NestedField(100, "reason", StringType(), required=True),
    NestedField(101, "rejected_at", TimestamptzType()),
)


class DeadLetters:
    """Collects rejected records for the next commit. Blocking."""

    def __init__(
        self,
        open_table: Callable[[], OwnedTable],
        look: Callable[[], OwnedTable | None],
        now_us: Callable[[], int],
    ) -> None:
        """``open_table`` is called for the first of them; ``look`` opens what is there, to look at it only."""
        self._open_table = open_table
        self._look = look
        self._now_us = now_us
        self._table: OwnedTable | None = None
        self._rows: list[pa.Table] = []
        self._positions: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(rows.nbytes for rows in self._rows)

    def add(self, records: LakeRecords, rejected: Sequence[Rejected]) -> None:
        """Take those that aren't in the table yet."""
        if self._table is None:
            self._table = self._open_table()
        partition = records.partition
        there = self._table.stamp.positions.get(partition, 0)
        refused = [records.offsets[one.at] for one in rejected]
        known = self._known(partition, min(refused), there) if min(refused) < there else ()
        new = [one for one in rejected if records.offsets[one.at] not in known]
        if not new:
            return
        rows = raw_rows(records).take([one.at for one in new])
        # its own memory, as that of the records goes
        rows = pa.concat_tables(
            [rows.append_column("reason", pa.array([one.reason for one in new], pa.string()))]
        )
        now = pa.array([self._now_us()] * len(new), pa.timestamp("us", "UTC"))
        self._rows.append(rows.append_column("rejected_at", now))
        self._positions[partition] = max(there, records.offsets[new[-1].at] + 1)

    def _known(self, partition: int, start: int, end: int) -> set[int]:
        """The offsets from ``start`` up to ``end`` that were written, also of letters that somebody deleted since."""
        assert self._table is not None
        wanted = f"partition = {partition} and offset >= {start} and offset < {end}"
        found: set[int] = set()
        for rows in read_as_written(self._table.table, wanted, ("partition", "offset")):
            there = rows.filter(pc.equal(rows.column("partition"), partition))
            found.update(there.column("offset").to_pylist())
        return found

    def spill(self) -> None:
        """Write what is in memory into files."""
        if self._rows and self._table is not None:
            rows, self._rows = self._rows, []
            self._table.write(rows)

    def commit(self) -> None:
        """Make them visible."""
        if self._positions and self._table is not None:
            self.spill()
            self._table.commit(lambda: Change(positions=self._positions))
            self._positions = {}

    def to_maintain(self, *, dry_run: bool) -> OwnedTable | None:
        """The table, also of earlier openings; None if there is none. For a dry run, it may be one to look at."""
        if self._table is None:
            there = self._look()
            if there is None or dry_run:
                return there
            self._table = self._open_table()
        return self._table

    def clear(self) -> None:
        """Let go of what is in memory."""
        self._rows.clear()

    def leave(self) -> None:
        """Drop what wasn't committed."""
        self.clear()
        if self._table is not None:
            self._table.leave()
