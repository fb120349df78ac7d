"""Reading files of a table back, with deletes of others applied and columns as they are called now."""

from __future__ import annotations

__all__ = ("EqualityDeletesError", "files_of", "read_as_written", "read_files", "read_parts", "records_of")

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue, parser
from pyiceberg.expressions.visitors import _InclusiveMetricsEvaluator
from pyiceberg.io.pyarrow import (
    ArrowScan,
    _get_column_projection_values,
    _read_all_delete_files,
    _to_requested_schema,
    pyarrow_to_schema,
)
from pyiceberg.manifest import FileFormat, ManifestContent
from pyiceberg.schema import prune_columns
from pyiceberg.table import FileScanTask, Table

from penstock.errors import ConflictError
from penstock.spi.lake import LakeRecord

#: Rows that are read at a time, and about how many bytes they are before they are fitted.
_ROWS = 64 * 1024
_BATCH_BYTES = 4 * 2**20


class EqualityDeletesError(ConflictError):
    """The table has deletes that can't be read here."""


def files_of(table: Table) -> list[FileScanTask]:
    """The files of the table's newest snapshot, with what deletes rows of them.

    Raises EqualityDeletesError: pyiceberg waits for https://github.com/apache/iceberg/issues/6568.
    """
    try:
        return list(table.scan().plan_files())
    except ValueError as error:
        if "equality deletes" not in str(error):
            raise
        raise EqualityDeletesError(
            f"another writer deletes rows by equality, as Flink does, which can't be read here: have it write the "
            f"files again (rewrite_data_files) or delete by position: table={table.name()[-1]}"
        ) from None


def read_files(table: Table, tasks: Sequence[FileScanTask], columns: Sequence[str] = ()) -> pa.Table:
    """All rows of some files, under the table's present schema, or under these columns of it."""
    return _scan(table, columns).to_table(tasks)


def read_as_written(table: Table, wanted: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the files that may hold rows like ``wanted``, with other rows, and deleted ones."""
    snapshot = table.current_snapshot()
    may_hold = _InclusiveMetricsEvaluator(table.schema(), parser.parse(wanted)).eval
    for manifest in snapshot.manifests(table.io) if snapshot else ():
        if manifest.content != ManifestContent.DATA:
            continue
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            if may_hold(entry.data_file):
                yield from read_parts(table, FileScanTask(entry.data_file), columns)


def read_parts(table: Table, task: FileScanTask, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The rows of a file, a row group at a time in memory: what is compressed may be large.

    pyiceberg's own readers make lists of all of them, or read far ahead.
    """
    scan = _scan(table, columns)
    if task.delete_files or task.file.file_format != FileFormat.PARQUET:
        deletes = _read_all_delete_files(table.io, [task])
        batches = scan._record_batches_from_scan_tasks_and_deletes([task], deletes)
    else:
        batches = _row_groups(table, scan, task)
    return (pa.Table.from_batches([batch]) for batch in batches)


def _row_groups(table: Table, scan: ArrowScan, task: FileScanTask) -> Iterator[pa.RecordBatch]:
    """As pyiceberg reads a file without deletes: by field ids, with what the file doesn't have."""
    metadata, wanted = table.metadata, scan._projected_schema
    downcast = metadata.format_version <= 2
    with table.io.new_input(task.file.file_path).open() as source:
        file = pq.ParquetFile(source, pre_buffer=False)
        schema = pyarrow_to_schema(
            file.schema_arrow,
            metadata.name_mapping(),
            downcast_ns_timestamp_to_us=downcast,
            format_version=metadata.format_version,
        )
        spec = metadata.specs().get(task.file.spec_id)
        missing = _get_column_projection_values(task.file, wanted, metadata.schema(), spec, schema.field_ids)
        there = prune_columns(schema, scan._projected_field_ids, select_full_types=False)
        names = [column.name for column in there.columns]
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows = max(1, min(_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
            for batch in file.iter_batches(rows, row_groups=[number], columns=names, use_threads=False):
                yield _to_requested_schema(
                    wanted,
                    there,
                    batch,
                    downcast_ns_timestamp_to_us=downcast,
                    projected_missing_fields=missing,
                    allow_timestamp_tz_mismatch=True,
                )


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
