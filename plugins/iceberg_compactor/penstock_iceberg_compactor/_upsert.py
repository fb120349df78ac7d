"""Upserts and deletes by copy-on-write: files that hold a key of the batch are written again without its row.

pyiceberg's own upsert makes a filter term of each row, which takes seconds for a thousand rows of two key columns;
and readers in Python can't apply equality deletes, so none are written.
"""

from __future__ import annotations

__all__ = ("collapsed", "upsert")

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.types import PrimitiveType

from penstock_iceberg_compactor._columns import OPERATION
from penstock_iceberg_compactor._commit import Landed
from penstock_iceberg_compactor._files import fitted, without_extension
from penstock_iceberg_compactor._owned import Change, OwnedTable
from penstock_iceberg_compactor._scan import files_of, read_parts

_ROW = "_kafka_row"


def collapsed(rows: Sequence[pa.Table], columns: pa.Schema, keys: Sequence[str]) -> pa.Table:
    """The last row of each key, in the order that they came, with these columns and OPERATION."""
    wanted = columns.append(pa.field(OPERATION, pa.bool_()))
    together = pa.concat_tables([fitted(part, wanted) for part in rows])
    numbered = _keys(together, keys).append_column(_ROW, pa.array(range(together.num_rows), pa.int64()))
    last = numbered.group_by(list(keys)).aggregate([(_ROW, "max")]).column(f"{_ROW}_max")
    return together.take(last.take(pc.sort_indices(last)))


def upsert(
    owned: OwnedTable,
    positions: Mapping[int, int],
    batch: pa.Table,
    keys: Sequence[str],
    together_bytes: int,
) -> Landed:
    """Commit a batch of one row a key, marked by OPERATION, in place of what is there, with these positions.

    Files are made of about ``together_bytes`` of rows in memory. Blocking; a part of a file is in memory beside them.
    """

    return owned.commit(lambda: Change(positions=positions, taken=_write(owned, batch, keys, together_bytes)))


def _write(owned: OwnedTable, batch: pa.Table, keys: Sequence[str], together_bytes: int) -> list[DataFile]:
    """Write the batch, and what stays of the files that have keys of it; those are to be taken out."""
    table = owned.table
    taken = []
    waiting = [batch.filter(pc.invert(batch.column(OPERATION)))]
    for task in files_of(table) if batch.num_rows else ():
        if not _may_hold(task.file, table.schema(), batch, keys):
            continue
        if all(_without(part, batch, keys) is None for part in read_parts(table, task, keys)):
            continue
        taken.append(task.file)
        for part in read_parts(table, task):
            stay = _without(part, batch, keys)
            waiting.append(part if stay is None else stay)
            if sum(rows.nbytes for rows in waiting) > together_bytes:
                owned.write(waiting)
                waiting = []
    if any(rows.num_rows for rows in waiting):
        owned.write(waiting)
    return taken


def _without(rows: pa.Table, gone: pa.Table, keys: Sequence[str]) -> pa.Table | None:
    """``rows`` but those whose key is in ``gone``; None if none is, so nothing changes."""
    names = list(keys)
    here, there = _keys(rows, names), _keys(gone, names)
    if len(names) == 1:
        column, values = here.column(0), there.column(0).combine_chunks()
        hit = pc.is_in(column, value_set=values.cast(column.type))
        if not pc.any(hit, min_count=0).as_py():
            return None
        return rows.filter(pc.invert(hit))
    # Arrow joins tables of nested columns not at all, so only keys and the rows' numbers are joined.
    left = here.append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
    right = there.cast(here.schema)
    stay = left.join(right, keys=names, join_type="left anti", use_threads=False).column(_ROW)
    if len(stay) == rows.num_rows:
        return None
    return rows.take(stay.take(pc.sort_indices(stay)))


def _keys(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """The key columns, in types that Arrow compares, and as it compares them: by their bits."""
    return pa.table({name: _canonical(without_extension(rows.column(name))) for name in names})


def _canonical(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with one zero and one NaN, as all of either are equal for SQL, and for Iceberg's buckets."""
    if not pa.types.is_floating(column.type):
        return column
    zero, nan = (pa.scalar(value, column.type) for value in (0.0, math.nan))
    return pc.if_else(pc.is_nan(column), nan, pc.add(column, zero))  # -0.0 + 0.0 is 0.0


def _may_hold(file: DataFile, schema: Schema, batch: pa.Table, keys: Sequence[str]) -> bool:
    """Whether the bounds of a file leave it possible that a key of the batch is in it."""
    possible: Any = None
    for name in keys:
        field = schema.find_field(name)
        assert isinstance(field.field_type, PrimitiveType)
        lower, upper = (
            bounds.get(field.field_id) for bounds in (file.lower_bounds or {}, file.upper_bounds or {})
        )
        if lower is None or upper is None:
            continue
        column = batch.column(name)
        try:
            least, most = (
                pa.scalar(from_bytes(field.field_type, one), column.type) for one in (lower, upper)
            )
            inside = pc.and_(pc.greater_equal(column, least), pc.less_equal(column, most))
            if pa.types.is_floating(column.type):
                inside = pc.or_(inside, pc.is_nan(column))  # which bounds leave out
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, TypeError, ValueError):
            continue  # bounds that don't compare tell nothing
        possible = inside if possible is None else pc.and_(possible, inside)
    return possible is None or bool(pc.any(possible, min_count=0).as_py())
