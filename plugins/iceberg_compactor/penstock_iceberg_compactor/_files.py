"""Data files: rows in Arrow become Parquet files, cut by partition and sorted, with their figures for Iceberg."""

from __future__ import annotations

__all__ = ("FileWriter", "arrow_schema", "fitted", "undivided_spec", "without_extension")

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec, partition_record_value
from pyiceberg.schema import Schema, sanitize_column_names
from pyiceberg.table import Table
from pyiceberg.table.sorting import SortDirection
from pyiceberg.typedef import Record

#: Rows of a row group, which is what readers skip by, and about how many bytes they have in memory: readers hold
#: several.
_ROW_GROUP = 128 * 1024
_ROW_GROUP_BYTES = 16 * 2**20


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of a table in Arrow, without field ids."""
    return schema_to_pyarrow(schema, include_field_ids=False)


def fitted(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """``rows`` with the columns of ``wanted``, nested ones too, by name: those that are missing are null."""
    if rows.schema.equals(wanted):
        return rows
    there = set(rows.schema.names)
    return pa.table(
        [
            _fit(rows.column(field.name), field.type)
            if field.name in there
            else pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
            for field in wanted
        ],
        schema=wanted,
    )


def without_extension(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as it is stored, where it has an extension type, as UUIDs have: Arrow doesn't compare those."""
    kind = column.type
    return _fit(column, kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else column


def _fit(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    if isinstance(column.type, pa.BaseExtensionType) and not isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return pa.chunked_array([_fit_array(chunk, kind) for chunk in column.chunks], kind)


def _fit_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    types = pa.types
    if array.type.equals(kind):
        return array
    if types.is_struct(kind) and types.is_struct(array.type):
        names = [field.name for field in array.type]
        # flatten gives a null child where the struct is null, whatever lies below
        children = dict(zip(names, array.flatten(), strict=True))
        fields = [
            _fit_array(children[field.name], field.type)
            if field.name in children
            else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(
            fields, fields=list(kind), mask=array.is_null() if array.null_count else None
        )
    if _is_list(kind) and _is_list(array.type):
        large = pa.large_list if types.is_large_list(kind) else pa.list_
        values = _fit_array(array.values, kind.value_type)
        parts = pa.LargeListArray if types.is_large_list(array.type) else pa.ListArray
        mask = array.is_null() if array.null_count else None
        if array.offset and mask is not None:  # arrays with an offset can't have a mask
            array = pa.concat_arrays([array])
            return _fit_array(array, kind)
        fit = parts.from_arrays(array.offsets, values, mask=mask)
        return fit.cast(large(kind.value_field))
    return array.cast(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def undivided_spec(table: Table) -> int | None:
    """The partition spec of the table that has no partitions, for rows of more partitions than files are wanted."""
    return next((number for number, spec in table.specs().items() if spec.is_unpartitioned()), None)


class Part(NamedTuple):
    """Rows of a file to be, and their partition; None for rows of many, or of none."""

    partition: Record | None
    rows: pa.Table


class FileWriter:
    """Writes rows as files of one table, under the schema, partition spec and order that it has now. Blocking."""

    def __init__(self, table: Table, name: Callable[[], str]) -> None:
        """``name`` gives the location of each file."""
        self._metadata = table.metadata
        self._io = table.io
        self._name = name
        self._spec = table.spec()
        self._undivided = undivided_spec(table)
        self._schema = table.schema()
        # Parquet and Avro disagree on names with dots and dashes; readers go by id.
        self._file_schema = sanitize_column_names(self._schema)
        self._arrow = schema_to_pyarrow(self._file_schema, include_field_ids=True)
        #: The columns that rows are fitted to.
        self.columns = arrow_schema(self._schema)

    def parts(self, rows: pa.Table, files_max: int) -> list[Part]:
        """What each file would hold: a partition of ``rows``, or with a partition of None all that aren't divided.

        These are rows of which no partition can be told, and with more than ``files_max`` partitions the rows of
        those that have less than their share.
        """
        rows = fitted(rows, self.columns)
        found = list(_partitions(rows, self._spec, self._schema))
        share = rows.num_rows if len(found) > files_max else 0
        divided: list[Part] = []
        others: list[Part] = []
        for part in found:
            is_large = part.partition is not None and part.rows.num_rows * files_max >= share
            (divided if is_large else others).append(part)
        if others:
            divided.append(Part(None, pa.concat_tables([part.rows for part in others])))
        return divided

    def write(self, parts: Iterable[Part]) -> list[DataFile]:
        """A file for each part."""
        return [self.write_one(part.partition, iter([part.rows])) for part in parts]

    def _sorted(self, rows: pa.Table) -> pa.Table:
        order = self._metadata.sort_order_by_id(self._metadata.default_sort_order_id)
        if order is None or order.is_unsorted:
            return rows
        by = pa.table(
            {
                str(at): without_extension(_column(rows, self._schema, one.source_id))
                for at, one in enumerate(order.fields)
            }
        )
        keys = [
            (str(at), "ascending" if one.direction == SortDirection.ASC else "descending")
            for at, one in enumerate(order.fields)
        ]
        return rows.take(pc.sort_indices(by, sort_keys=keys))

    def write_one(self, partition: Record | None, parts: Iterator[pa.Table]) -> DataFile:
        """One file of all parts, which are of one partition, or of any; one part at a time is in memory."""
        spec_id = self._spec.spec_id if partition is not None else self._undivided
        assert spec_id is not None, "the table has a spec that doesn't divide"
        rows = (self._sorted(fitted(part, self.columns)) for part in parts)
        return self._file(partition or Record(), spec_id, rows)

    def _file(self, partition: Record, spec_id: int, parts: Iterable[pa.Table]) -> DataFile:
        location = self._name()
        output = self._io.new_output(location)
        with output.create(overwrite=True) as stream:
            with pq.ParquetWriter(
                stream, self._arrow, compression="zstd", compression_level=3, store_decimal_as_integer=True
            ) as writer:
                for rows in parts:
                    # the field ids are in the schema's metadata, so it is laid over columns of the same types
                    columns = [_fit(rows.column(at), field.type) for at, field in enumerate(self._arrow)]
                    table = pa.Table.from_arrays(columns, schema=self._arrow)
                    fit = _ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes)
                    writer.write_table(table, row_group_size=max(1, min(_ROW_GROUP, fit)))
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=writer.writer.metadata,
            stats_columns=compute_statistics_plan(self._file_schema, self._metadata.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(self._file_schema),
        )
        made = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=location,
            file_format=FileFormat.PARQUET,
            partition=partition,
            file_size_in_bytes=len(output),
            sort_order_id=None,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )
        made.spec_id = spec_id
        return made


#: Instead of the value of a partition field, where there is none.
_NO_PARTITION = object()


def _partitions(rows: pa.Table, spec: PartitionSpec, schema: Schema) -> Iterator[Part]:
    """The rows of each partition, in the order that they were in; those without one are of the partition None."""
    if spec.is_unpartitioned():
        yield Part(Record(), rows)
        return
    keys = [_partition_values(rows, field, schema) for field in spec.fields]
    combined = pa.nulls(0, pa.int64())
    for index, (codes, values) in enumerate(keys):
        combined = codes if index == 0 else pc.add(pc.multiply(combined, len(values)), codes)
        # keeps the numbers below the number of rows, however many columns there are
        combined = pc.dictionary_encode(combined).indices.cast(pa.int64())
    order = pc.sort_indices(combined)  # stable
    runs = pc.run_end_encode(combined.take(order))
    start = 0
    for end in runs.run_ends.to_pylist():
        part = order.slice(start, end - start)
        first = part[0].as_py()
        found = [values[codes[first].as_py()] for codes, values in keys]
        yield Part(None if _NO_PARTITION in found else Record(*found), rows.take(part))
        start = end


def _partition_values(rows: pa.Table, field: PartitionField, schema: Schema) -> tuple[pa.Array, list[Any]]:
    """For each row a code, and for each code the value of the partition field.

    Iceberg's transforms are applied to each distinct value once. pyiceberg applies them to columns only with another
    large library.
    """
    column = without_extension(_column(rows, schema, field.source_id))
    if (unit := str(field.transform)) in ("year", "month", "day", "hour") and pa.types.is_timestamp(
        column.type
    ):
        column = pc.floor_temporal(column, unit=unit)
    encoded = pc.dictionary_encode(column, null_encoding="encode")
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    transform = field.transform.transform(schema.find_field(field.source_id).field_type)
    values: list[Any] = []
    code_of: dict[Any, int] = {}
    codes = []
    for item in encoded.dictionary:
        value = transform(partition_record_value(field, item.as_py(), schema))
        if not _is_partition(value, column.type):
            value = _NO_PARTITION
        if value not in code_of:
            code_of[value] = len(values)
            values.append(value)
        codes.append(code_of[value])
    return pa.array(codes, pa.int64()).take(encoded.indices), values


def _is_partition(value: Any, kind: pa.DataType) -> bool:
    """Whether Iceberg's metadata can say this value of a partition, and every reader finds it again.

    NaN is equal to nothing. A whole number near the least of its type, truncated, is beyond that type, where readers
    differ: those in Java come out at the other end of it.
    """
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, int) and pa.types.is_integer(kind):
        return bool(value >= -(1 << (kind.bit_width - 1)))
    return True


def _column(rows: pa.Table, schema: Schema, field_id: int) -> pa.ChunkedArray:
    """A column, or a field of a struct in one, by its id."""
    path = [field.name for field in _path(schema.fields, field_id)]
    column = rows.column(path[0])
    for name in path[1:]:
        column = pc.struct_field(column, name)
    return column


def _path(fields: Any, field_id: int) -> list[Any]:
    for field in fields:
        if field.field_id == field_id:
            return [field]
        inner = getattr(field.field_type, "fields", ())
        if inner and (found := _path(inner, field_id)):
            return [field, *found]
    return []
