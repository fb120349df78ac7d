"""Reading files of a table back, with deletes of others applied and columns as they are called now."""

from __future__ import annotations

__all__ = ("read_files", "read_parts", "records_of")

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, _read_all_delete_files
from pyiceberg.table import FileScanTask, Table

from penstock.spi.lake import LakeRecord


def read_files(table: Table, tasks: Sequence[FileScanTask], columns: Sequence[str] = ()) -> pa.Table:
    """All rows of some files, under the table's present schema, or under these columns of it."""
    return _scan(table, columns).to_table(tasks)


def read_parts(table: Table, task: FileScanTask, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The rows of a file, a few row groups of it in memory at a time: what is compressed may be large.

    pyiceberg's own ``to_record_batches`` makes lists of them.
    """
    deletes = _read_all_delete_files(table.io, [task])
    batches = _scan(table, columns)._record_batches_from_scan_tasks_and_deletes([task], deletes)
    return (pa.Table.from_batches([batch]) for batch in batches)


def _scan(table: Table, columns: Sequence[str]) -> ArrowScan:
    schema = table.schema().select(*columns) if columns else table.schema()
    return ArrowScan(table.metadata, table.io, schema, AlwaysTrue())


def records_of(rows: pa.Table) -> list[LakeRecord]:
    """Rows of a raw table as records."""
    times = pc.fill_null(pc.divide(rows.column("timestamp").cast(pa.int64()), 1000), -1)
    columns = (
        rows.column("partition").to_pylist(),
        rows.column("offset").to_pylist(),
        times.to_pylist(),
        rows.column("key").to_pylist(),
        rows.column("value").to_pylist(),
        rows.column("headers").to_pylist(),
    )
    return [
        LakeRecord(
            partition, offset, time, key, value, tuple((one["name"], one["value"]) for one in headers or ())
        )
        for partition, offset, time, key, value, headers in zip(*columns, strict=True)
    ]
