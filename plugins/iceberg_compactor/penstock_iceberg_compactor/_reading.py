"""Records become rows: decoded, fitted to the table's columns; what can't be goes where the topic's policies say."""

from __future__ import annotations

__all__ = ("OPERATION", "DecodingReader", "RawReader", "Read", "Reader", "Rejected", "TooManyError")

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import InvalidRequestError
from penstock.spi.lake import BinaryColumn, LakeRecords, one_line
from penstock_iceberg_compactor._columns import KEY, OPERATION, RESERVED, SYSTEM, raw_rows, system_column
from penstock_iceberg_compactor._configs import TableConfigs

#: So many records are read at a time, of which it isn't known yet how wide the table becomes by them.
_ROWS_MAX = 16_384
#: What rows that are read at a time take at least, in a table whose columns are known.
_ROWS_BYTES = 64 * 2**20
#: A reason is kept with each dead letter and shown to people; what it quotes is the producer's.
_REASON_MAX = 500


class TooManyError(Exception):
    """Fewer records have to be read at a time, for what they may take in memory."""


class Rejected(NamedTuple):
    """A record that isn't a row."""

    #: Which one of the records.
    at: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Rows of some records, and which records aren't among them."""

    rows: pa.Table
    #: Records for the table beside this one, in offset order.
    dead: Sequence[Rejected] = ()
    #: How many records aren't whole rows, by policy.
    counts: dict[str, int] = field(default_factory=dict)
    reason: str = ""


class Reader(Protocol):
    """Reads records for one table."""

    @property
    def rows_max(self) -> int:
        """So many records are read at a time: their rows may take far more memory than they do."""

    def read(self, records: LakeRecords) -> Read:
        """The rows, under the columns that the table has, or has from now on. Blocking.

        Raises InvalidRequestError for what a policy stops at, and TooManyError if fewer have to be read at a time.
        """

    def begin_batch(self) -> None:
        """What is read from here on came with one ``write``."""

    def close(self) -> None:
        """Let go of what is used for it. Blocking."""


class RawReader:
    """Takes every record as it is."""

    rows_max = 2**31

    def begin_batch(self) -> None:
        """All of them are read alike."""

    def close(self) -> None:
        """Nothing to let go of."""

    def read(self, records: LakeRecords) -> Read:
        """A row for each record."""
        return Read(rows=raw_rows(records))


class Decoded(Protocol):
    """What the decoders of :mod:`penstock_iceberg_compactor.decode` give."""

    @property
    def rows(self) -> pa.Array:
        """A row for each record that could be decoded."""

    @property
    def indices(self) -> pa.Array:
        """For each row which record it is."""

    @property
    def failures(self) -> Sequence[Any]:
        """Records that couldn't be decoded: ``index``, ``reason``, ``misfit`` if only their columns are wrong."""

    @property
    def nulled(self) -> int:
        """In how many rows a value that doesn't fit became null."""

    @property
    def lost(self) -> Any:
        """The last of those rows, as a failure; None if there is none."""

    @property
    def operations(self) -> pa.Array | None:
        """What each row does to the table."""


class Decoder(Protocol):
    """A decoder of keys or values."""

    def decode(self, column: BinaryColumn) -> Any:
        """A ``Decoded``."""

    def bind(self, columns: pa.DataType) -> None:
        """The table has these columns now."""


class Columns(Protocol):
    """The columns of the table, which may be changed."""

    @property
    def columns(self) -> pa.Schema:
        """As they are now."""

    def take_columns(self, wanted: pa.Schema) -> None:
        """Have these columns, too. Raises InvalidRequestError if the table can't."""


class Registry(Protocol):
    """What decoders ask for schemas."""

    def begin_batch(self) -> None:
        """Ask again for what wasn't there."""

    def close(self) -> None:
        """Close its connections."""


class DecodingReader:
    """Reads values, and keys where they are columns, with decoders."""

    def __init__(
        self,
        table: Columns,
        configs: TableConfigs,
        name: str,
        values: Decoder,
        keys: Decoder | None,
        registry: Registry | None,
    ) -> None:
        self._table = table
        self._configs = configs
        self._name = name
        self._values = values
        self._keys = keys
        self._registry = registry
        #: Records of a few bytes make rows of thousands of columns, if the table has them.
        self.rows_max = _ROWS_MAX
        self._bind()

    def begin_batch(self) -> None:
        """What is read from here on came with one ``write``."""
        if self._registry is not None:
            self._registry.begin_batch()

    def close(self) -> None:
        """Let go of the registry's connections. Blocking."""
        if self._registry is not None:
            self._registry.close()

    def _type(self) -> pa.DataType:
        """The table's columns but the system's, as a struct."""
        return pa.struct([column for column in self._table.columns if column.name != SYSTEM])

    def _bind(self) -> None:
        """Tell the decoders which columns there are."""
        from penstock_iceberg_compactor.decode import null_bytes

        kind = self._type()
        self.rows_max = max(1, min(_ROWS_MAX, _ROWS_BYTES // max(1, null_bytes(kind))))
        columns = {column.name: column for column in kind}
        key = columns.pop(KEY, None)
        self._values.bind(pa.struct(list(columns.values())))
        if self._keys is not None and key is not None and pa.types.is_struct(key.type):
            self._keys.bind(key.type)

    def read(self, records: LakeRecords) -> Read:
        """A row for each record that can be read; of upsert and cdc with what it does."""
        from penstock_iceberg_compactor import decode

        found = _Findings(self._name, records)
        try:
            decoded = self._values.decode(records.values)
            keys = None if self._keys is None else self._keys.decode(records.keys)
        except decode.TooManyError:
            raise TooManyError from None
        self._fail(decoded.failures, "a record", found)
        rows, indices = _as_struct(decoded.rows), decoded.indices
        operations = decoded.operations
        made = self._without_reserved(rows, indices, found)
        if keys is not None:
            self._fail(keys.failures, "the key of a record", found)
            made = _with_column(made, KEY, _at(keys, len(records), indices))
        fitted = self._fit(made, indices, found)
        columns = dict(zip((column.name for column in fitted.type), fitted.flatten(), strict=True))
        columns[SYSTEM] = system_column(records, indices)
        table = pa.table(columns)
        if self._configs.mode != "append":
            table = self._with_operations(table, rows, operations, indices, records, found)
        keep = found.kept(indices)
        if keep is not None:
            table = table.filter(keep)
        table = self._with_nulls(table, records, found)
        counts = found.counts()
        if decoded.nulled:
            counts["null"] = counts.get("null", 0) + decoded.nulled
            if decoded.lost is not None and not found.reason:
                found.tell(decoded.lost.index, f"a record doesn't fit the table: {decoded.lost.reason}")
        return Read(rows=table, dead=found.dead(), counts=counts, reason=found.reason)

    def _fail(self, failures: Sequence[Any], what: str, found: _Findings) -> None:
        for failure in failures:
            if failure.misfit:
                policy, why = (
                    self._configs.on_schema_change,
                    f"{what} doesn't fit the table: {failure.reason}",
                )
            else:
                policy, why = self._configs.on_bad_record, f"{what} can't be read: {failure.reason}"
            found.reject(failure.index, policy, why)

    def _without_reserved(self, rows: pa.Array, indices: pa.Array, found: _Findings) -> pa.Array:
        """Rows without columns that the table has for other things, and keys that rows can't be told apart by.

        What held a value there follows the policy.
        """
        taken = {
            column.name: f'column "{column.name}" has a name that the table needs itself'
            for column in rows.type
            if column.name in RESERVED
        }
        if self._configs.mode != "append":
            there = {column.name for column in self._type()}
            for column in rows.type:
                is_key = column.name in self._configs.key_columns and column.name not in there
                if is_key and pa.types.is_nested(column.type):
                    taken[column.name] = _parts_as_key(column.name)
        for name, why in taken.items():
            self._misfit(rows.flatten()[rows.type.get_field_index(name)].is_valid(), indices, why, found)
        return _without_columns(rows, list(taken))

    def _fit(self, rows: pa.Array, indices: pa.Array, found: _Findings) -> pa.Array:
        from penstock_iceberg_compactor.decode import compare, conform

        comparison = compare(self._type(), _storable(rows.type))
        policy = self._configs.on_schema_change
        if comparison.conflicts and policy == "stop":
            first = indices[0].as_py() if len(indices) else 0
            found.reject(first, policy, f"the table can't take a changed schema: {comparison.conflicts[0]}")
        if any(change.kind != "make_optional" for change in comparison.changes):
            for name, why in self._take(list(comparison.merged)):
                there = self._type()
                at = there.get_field_index(name)
                column = rows.flatten()[rows.type.get_field_index(name)]
                self._misfit(_beyond(column, None if at < 0 else there.field(at).type), indices, why, found)
            self._bind()
        conformed = conform(rows, self._type())
        if conformed.bad is not None:
            what = str(comparison.conflicts[0]) if comparison.conflicts else "a value doesn't fit its column"
            self._misfit(conformed.bad, indices, what, found)
        return conformed.rows

    def _take(self, columns: Sequence[pa.Field]) -> list[tuple[str, str]]:
        """Give the table these columns, as far as it takes them; the names of the others, and why."""
        try:
            self._table.take_columns(pa.schema(columns))
        except InvalidRequestError as error:
            if len(columns) == 1:
                return [(columns[0].name, str(error))]
            half = len(columns) // 2
            return self._take(columns[:half]) + self._take(columns[half:])
        return []

    def _misfit(self, bad: pa.Array, indices: pa.Array, why: str, found: _Findings) -> None:
        """The rows that are marked don't fit, and follow the policy; with ``null`` the rest of them stays."""
        policy = self._configs.on_schema_change
        for at in pc.indices_nonzero(bad).to_pylist():
            found.reject(
                indices[at].as_py(), policy, f"a record doesn't fit the table: {why}", fits=policy == "null"
            )

    def _with_operations(
        self,
        table: pa.Table,
        rows: pa.Array,
        operations: pa.Array | None,
        indices: pa.Array,
        records: LakeRecords,
        found: _Findings,
    ) -> pa.Table:
        """Mark the rows that delete; those without value have their key columns from the record's key."""
        without = rows.is_null()
        deletes = without
        if operations is not None:
            deletes = pc.or_(deletes, pc.fill_null(pc.equal(operations, "d"), False))
        table = table.append_column(OPERATION, deletes)
        if pc.any(without).as_py() and KEY in table.schema.names:
            table = _keys_of_tombstones(table, without, self._configs.key_columns)
        for name in self._configs.key_columns:
            column = name if name in table.schema.names else name.partition(".")[0]
            if column in table.schema.names and pa.types.is_nested(table.schema.field(column).type):
                found.reject(indices[0].as_py() if len(indices) else 0, "stop", _parts_as_key(name))
            if name not in table.schema.names:  # no record had it so far
                table = table.append_column(name, pa.nulls(table.num_rows))
            for at in pc.indices_nonzero(table.column(name).is_null()).to_pylist():
                index = indices[at].as_py()
                if found.is_gone(index):
                    continue
                if without[at].as_py() and records.keys[index] is None:
                    found.drop(index)  # it says neither what nor for whom
                else:
                    found.reject(
                        index,
                        self._configs.on_bad_record,
                        f"a record has no value of a key column: column={name}",
                    )
        return table

    def _with_nulls(self, table: pa.Table, records: LakeRecords, found: _Findings) -> pa.Table:
        """Add a row of nulls for each record that the policy keeps so."""
        empty = found.empty()
        if not empty or self._configs.mode != "append":
            return table
        rows = pa.table(
            {
                name: system_column(records, empty)
                if name == SYSTEM
                else pa.nulls(len(empty), table.schema.field(name).type)
                for name in table.schema.names
            },
            schema=table.schema,
        )
        return pa.concat_tables([table, rows])


class _Findings:
    """What is wrong with records, by policy."""

    def __init__(self, name: str, records: LakeRecords) -> None:
        self._name = name
        self._records = records
        self._by: dict[int, tuple[str, str]] = {}
        self._fits: set[int] = set()
        self._dropped: set[int] = set()
        self.reason = ""

    def reject(self, at: int, policy: str, why: str, *, fits: bool = False) -> None:
        """Record ``at`` isn't a whole row; with ``fits``, it is one with a null in it. Raises if it is to stop."""
        reason = self._sentence(at, why)
        if policy == "stop":
            raise InvalidRequestError(reason)
        if at in self._by and (fits or self.is_gone(at)):
            return
        self._by[at] = (policy, reason)
        self.reason = reason
        (self._fits.add if fits else self._fits.discard)(at)

    def tell(self, at: int, why: str) -> None:
        """A value of record ``at`` is null for this reason."""
        self.reason = self._sentence(at, why)

    def _sentence(self, at: int, why: str) -> str:
        where = f"partition={self._records.partition} offset={self._records.offsets[at]}"
        return f"{one_line(why, _REASON_MAX)}: table={self._name} {where}"

    def is_gone(self, at: int) -> bool:
        """Whether record ``at`` is no row for a reason that is known."""
        return at in self._by and at not in self._fits

    def drop(self, at: int) -> None:
        """Record ``at`` says nothing."""
        self._dropped.add(at)

    def kept(self, indices: pa.Array) -> pa.Array | None:
        """For each row whether it stays; None if all do."""
        gone = self._dropped | (set(self._by) - self._fits)
        if not gone:
            return None
        return pc.invert(pc.is_in(indices, value_set=pa.array(sorted(gone), indices.type)))

    def dead(self) -> list[Rejected]:
        """The records for the table beside."""
        return [
            Rejected(at, reason)
            for at, (policy, reason) in sorted(self._by.items())
            if policy == "dead_letter"
        ]

    def empty(self) -> list[int]:
        """The records that are rows of nulls."""
        return [
            at for at, (policy, _) in sorted(self._by.items()) if policy == "null" and at not in self._fits
        ]

    def counts(self) -> dict[str, int]:
        """How many, by policy."""
        counts: dict[str, int] = {}
        for policy, _ in self._by.values():
            counts[policy] = counts.get(policy, 0) + 1
        return counts


def _as_struct(rows: pa.Array) -> pa.Array:
    """Rows of text or bytes become the column ``value``."""
    if pa.types.is_struct(rows.type):
        return rows
    rows = rows.take(
        pa.array(range(len(rows)), pa.int64())
    )  # a copy: they are parts of the records themselves
    mask = rows.is_null() if rows.null_count else None
    return pa.StructArray.from_arrays([rows], names=["value"], mask=mask)


def _with_column(rows: pa.Array, name: str, column: pa.Array) -> pa.Array:
    """Rows with one column more, none of them null; those that were have nulls."""
    names = [one.name for one in rows.type]
    return pa.StructArray.from_arrays([*rows.flatten(), column], [*names, name])


def _without_columns(rows: pa.Array, names: Sequence[str]) -> pa.Array:
    from penstock_iceberg_compactor.decode import conform

    return (
        conform(rows, pa.struct([one for one in rows.type if one.name not in names])).rows if names else rows
    )


def _parts_as_key(name: str) -> str:
    return f"rows can't be told apart by a column with parts, set key.columns: column={name}"


def _storable(kind: pa.DataType) -> pa.DataType:
    """The struct type without what files can't hold: columns that had only nulls so far, structs without any, and
    lists and maps of such.
    """
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([(one.name, inner) for one in kind if not _is_hollow(inner := _storable(one.type))])
    if types.is_list(kind):
        inner = _storable(kind.value_type)
        return pa.null() if _is_hollow(inner) else pa.list_(kind.value_field.with_type(inner))
    if types.is_map(kind):
        inner = _storable(kind.item_type)
        return pa.null() if _is_hollow(inner) else pa.map_(kind.key_type, inner)
    return kind


def _is_hollow(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind) or (pa.types.is_struct(kind) and not kind.num_fields))


def _beyond(column: pa.Array, there: pa.DataType | None) -> pa.Array:
    """Which items hold something that a column of the type ``there`` has no place for."""
    if there is None or not (pa.types.is_struct(there) and pa.types.is_struct(column.type)):
        return column.is_valid()
    found = pa.repeat(pa.scalar(False), len(column))
    for one, child in zip(list(column.type), column.flatten(), strict=True):
        at = there.get_field_index(one.name)
        if at < 0 or pa.types.is_struct(one.type):
            found = pc.or_(found, _beyond(child, None if at < 0 else there.field(at).type))
    return found


def _at(keys: Any, count: int, indices: pa.Array) -> pa.Array:
    """The decoded keys of the records with these indices, null for those that couldn't be decoded."""
    if len(keys.rows) == count:
        return keys.rows.take(indices)
    where = pc.index_in(indices, value_set=keys.indices)
    return keys.rows.take(where)


def _keys_of_tombstones(table: pa.Table, without: pa.Array, columns: Sequence[str]) -> pa.Table:
    from penstock_iceberg_compactor.decode import conform

    key = table.column(KEY).combine_chunks()
    for name in columns:
        kind = table.schema.field(name).type if name in table.schema.names else None
        if kind is None:
            continue
        if pa.types.is_struct(key.type):
            of_key = pc.struct_field(key, name) if key.type.get_field_index(name) >= 0 else None
        else:
            of_key = key if len(columns) == 1 else None
        if of_key is None:
            continue
        at = table.schema.get_field_index(name)
        # a key that can't be that is null, as one that isn't there
        cast = conform(pa.StructArray.from_arrays([of_key], ["v"]), pa.struct([("v", kind)])).rows.field(0)
        table = table.set_column(at, name, pc.if_else(without, cast, table.column(name)))
    return table
