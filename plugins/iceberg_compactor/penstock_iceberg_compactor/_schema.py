"""The shape of a table: making it, and changing schema, partitions and order under the guard of the main branch."""

from __future__ import annotations

__all__ = (
    "SCHEMAS_COLUMNS_MAX",
    "add_undivided_spec",
    "change_shape",
    "check_columns",
    "creation_properties",
    "order_of",
    "spec_of",
)

from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import ResolveError, ValidationError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema, index_by_name, sanitize_column_names, visit_with_partner
from pyiceberg.table import Table
from pyiceberg.table.sorting import NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.table.update import AddPartitionSpecUpdate
from pyiceberg.table.update.schema import PartnerIdByNameAccessor, UpdateSchema, _UnionByNameVisitor
from pyiceberg.transforms import (
    BucketTransform,
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    Transform,
    TruncateTransform,
    YearTransform,
)
from pyiceberg.types import StructType

from penstock.errors import ConfigError, ConflictError, InvalidRequestError
from penstock_iceberg_compactor._columns import RAW_SCHEMA, SYSTEM, SYSTEM_SCHEMA
from penstock_iceberg_compactor._commit import Planning, send_updates
from penstock_iceberg_compactor._configs import Field, TableConfigs
from penstock_iceberg_compactor.decode import plain

#: Whatever schemas say, a table has no more columns, nested ones included: readers and metadata suffer.
_COLUMNS_MAX = 10_000

#: Levels of a column in Parquet files, of which a list or map has two of its own: Arrow writes more than it reads.
_LEVELS_MAX = 96

#: Columns of all schemas that a table had, together: its metadata have each of them, and are read and written whole.
SCHEMAS_COLUMNS_MAX = 200_000

#: Tables were made with 0 of it, for all of their writers.
_RETRIES = "commit.retry.num-retries"

_TRANSFORMS: dict[str, Any] = {
    "identity": IdentityTransform,
    "year": YearTransform,
    "month": MonthTransform,
    "day": DayTransform,
    "hour": HourTransform,
    "bucket": BucketTransform,
    "truncate": TruncateTransform,
}


def creation_properties(configs: TableConfigs) -> dict[str, str]:
    """Properties of new tables: metadata that don't pile up, but stay as long as readers remember where they were.

    None forbids retries: Penstock's own commits have none anyway, and other writers need theirs beside it.
    """
    return {
        "commit.manifest-merge.enabled": "true",
        "commit.manifest.min-count-to-merge": "20",
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "30",
        "write.target-file-size-bytes": str(configs.target_file_bytes),
        "write.parquet.compression-codec": "zstd",
    }


def _transform(field: Field) -> Transform[Any, Any]:
    made = _TRANSFORMS[field.transform](field.width) if field.width else _TRANSFORMS[field.transform]()
    assert isinstance(made, Transform)
    return made


def _name(field: Field) -> str:
    column = field.column.replace(".", "_")
    return column if field.transform == "identity" else f"{column}_{field.transform}"


def _known(schema: Schema, columns: list[str]) -> bool:
    return all(schema._name_to_id.get(column) is not None for column in columns)


def spec_of(configs: TableConfigs, schema: Schema) -> PartitionSpec:
    """The partition spec that is wanted; none as long as one of its columns isn't there."""
    if not configs.partition_by or not _known(schema, [field.column for field in configs.partition_by]):
        return UNPARTITIONED_PARTITION_SPEC
    fields = []
    for index, field in enumerate(configs.partition_by):
        source = schema.find_field(field.column)
        transform = _transform(field)
        if not transform.can_transform(source.field_type):
            raise InvalidRequestError(
                f"a table can't be divided like this, set penstock.lake.partition.by: column={field.column} "
                f"transform={field.transform} type={source.field_type}"
            )
        fields.append(PartitionField(source.field_id, 1000 + index, transform, _name(field)))
    return PartitionSpec(*fields)


def order_of(configs: TableConfigs, schema: Schema) -> SortOrder:
    """The sort order that is wanted; none as long as one of its columns isn't there."""
    if not _known(schema, [order.column for order in configs.sort_by]):
        return SortOrder()
    for order in configs.sort_by:
        if not schema.find_field(order.column).field_type.is_primitive:
            raise ConfigError(
                f"a table can't be sorted by a column with parts, set penstock.lake.sort.by: column={order.column}"
            )
    return SortOrder(
        *(
            SortField(
                source_id=schema.find_field(order.column).field_id,
                transform=IdentityTransform(),
                direction=SortDirection.DESC if order.descending else SortDirection.ASC,
                null_order=NullOrder.NULLS_LAST,
            )
            for order in configs.sort_by
        )
    )


def change_shape(table: Table, configs: TableConfigs, columns: pa.Schema | None = None) -> bool:
    """Give the table these columns beside its own, and the partitions and order that are wanted.

    Columns come, become wider, and become optional; nothing else. One commit, by compare-and-swap; True if there was
    one, and the table's metadata are the new ones. Raises InvalidRequestError for what Iceberg can't express,
    LostError if somebody committed meanwhile, and errors of the catalog.
    """
    changes = Planning(table)
    open_to_others(changes)
    if columns is not None:
        try:
            there = set(schema_to_pyarrow(table.schema(), include_field_ids=False))
            new = [column for column in columns if column not in there]
            if new and table.metadata.last_column_id * len(table.metadata.schemas) > SCHEMAS_COLUMNS_MAX:
                raise ValueError(
                    "its columns changed too often, wait until old snapshots expire, and with them their schemas: "
                    f"schemas={len(table.metadata.schemas)}"
                )
            deep = next((column.name for column in new if _levels(column.type) > _LEVELS_MAX), None)
            if deep is not None:
                raise ValueError(
                    f"column {deep} is nested deeper than readers of its files go: levels_max={_LEVELS_MAX}"
                )
            with changes.update_schema() as update:
                _unite(update, pa.schema(new))
            after = changes.table_metadata.schema()
            if len(after.column_names) > _COLUMNS_MAX:
                raise ValueError(f"it would have too many columns: columns_max={_COLUMNS_MAX}")
            index_by_name(
                sanitize_column_names(after)
            )  # names that are the same in Parquet files are refused
        except (ValidationError, ResolveError, ValueError, TypeError) as error:
            cause = " ".join(str(error).split())
            raise InvalidRequestError(
                f"the table can't take this change of the schema: table={'.'.join(table.name())} cause={cause}"
            ) from error
    schema = changes.table_metadata.schema()
    try:
        _change_spec(changes, spec_of(configs, schema), schema)
        _change_order(changes, order_of(configs, schema))
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"the table can't be divided or sorted as penstock.lake.partition.by and sort.by say: "
            f"table={'.'.join(table.name())} cause={cause}"
        ) from error
    return send_updates(table, changes._updates, tuple(changes._requirements))


def _levels(kind: pa.DataType) -> int:
    own = 2 if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind) else 1
    parts = () if isinstance(kind, pa.BaseExtensionType) else range(kind.num_fields)
    return own + max((_levels(kind.field(at).type) for at in parts), default=0)


class _Partners(PartnerIdByNameAccessor):
    """pyiceberg's makes a struct of all columns for each that is looked up, which takes minutes for thousands."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema, case_sensitive=True)
        self._columns = {column.name: column.field_id for column in schema.fields}

    def field_partner(self, partner_field_id: int | None, field_id: int, field_name: str) -> int | None:
        if partner_field_id == -1:
            return self._columns.get(field_name)
        return super().field_partner(partner_field_id, field_id, field_name)


def _unite(update: UpdateSchema, columns: pa.Schema) -> None:
    """As ``union_by_name`` of pyiceberg, in a time that grows with the columns, and not with their square."""
    there = update._schema
    visitor = _UnionByNameVisitor(update_schema=update, existing_schema=there, case_sensitive=True)
    wanted = Catalog._convert_schema_if_needed(columns)
    visit_with_partner(wanted, -1, visitor, _Partners(there))  # type: ignore[misc] # as in pyiceberg


def open_to_others(changes: Any) -> None:
    """Take back what earlier versions gave their tables, and what other writers failed for."""
    metadata = changes.table_metadata
    if metadata.properties.get(_RETRIES) == "0":
        changes.remove_properties(_RETRIES)
    system = next((one.field_type for one in metadata.schema().fields if one.name == SYSTEM), None)
    strict = [one.name for one in system.fields if one.required] if isinstance(system, StructType) else []
    if strict:
        update = changes.update_schema()
        for name in strict:
            update.make_column_optional((SYSTEM, name))
        update.commit()


def add_undivided_spec(table: Table) -> bool:
    """Give the table a spec without partitions beside its own, for files whose rows are of too many of them.

    One commit, as :func:`change_shape`.
    """
    spec = PartitionSpec(spec_id=max(table.specs()) + 1)
    return send_updates(table, (AddPartitionSpecUpdate(spec=spec),))


def _change_spec(changes: Any, wanted: PartitionSpec, schema: Schema) -> None:
    now = changes.table_metadata.spec()
    if wanted.is_unpartitioned() or now.compatible_with(wanted):
        return
    update = changes.update_spec()
    for field in now.fields:
        update.remove_field(field.name)
    for field in wanted.fields:
        update.add_field(schema.find_column_name(field.source_id), field.transform, field.name)
    update.commit()


def _change_order(changes: Any, wanted: SortOrder) -> None:
    metadata = changes.table_metadata
    now = metadata.sort_order_by_id(metadata.default_sort_order_id)
    if wanted.is_unsorted or (now is not None and now.fields == wanted.fields):
        return
    update = changes.update_sort_order()
    schema = metadata.schema()
    for field in wanted.fields:
        name = schema.find_column_name(field.source_id)
        (update.asc if field.direction == SortDirection.ASC else update.desc)(
            name, field.transform, field.null_order
        )
    update.commit()


def check_columns(schema: Schema, configs: TableConfigs, table: str) -> None:
    """Raise ConflictError if the table has not, or no longer, the columns that Penstock itself writes.

    What has no column is left out without a word, so rows would be lost.
    """
    there = {field.name: field.type for field in schema_to_pyarrow(schema, include_field_ids=False)}
    for field in schema_to_pyarrow(RAW_SCHEMA if configs.raw else SYSTEM_SCHEMA, include_field_ids=False):
        if field.name not in there or plain(there[field.name]) != plain(field.type):
            raise ConflictError(
                f"the table's columns aren't what penstock.lake.value.format makes, so the format was changed or "
                f"somebody changed the table: set that back, or another name with penstock.lake.table: "
                f"table={table} column={field.name}"
            )
