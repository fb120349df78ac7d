"""Records that say what they do to a row: Debezium's envelopes, and plain records with a field for it."""

from __future__ import annotations

__all__ = ("DebeziumDecoder", "OperationDecoder")

from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from penstock.spi.lake import BinaryColumn
from penstock_iceberg_compactor.decode._decoder import Decoded, Failure
from penstock_iceberg_compactor.decode.evolution import compare, conform

#: What producers call what they do, in lower case.
_OPERATIONS = {
    **dict.fromkeys(("c", "i", "create", "created", "insert", "inserted"), "c"),
    **dict.fromkeys(("u", "update", "updated", "upsert"), "u"),
    **dict.fromkeys(("d", "delete", "deleted", "remove"), "d"),
    **dict.fromkeys(("r", "read", "snapshot"), "r"),
}


class _Inner(Protocol):
    def decode(self, column: BinaryColumn) -> Decoded: ...

    def bind(self, columns: pa.DataType) -> None: ...


class DebeziumDecoder:
    """Rows of what ``inner`` decodes as Debezium's envelopes, each with its operation.

    A row is ``after``, for deletes ``before``; a delete without ``before``, and a record without value, is a null
    row, whose key says which it is. What is no change of a row (truncate, message) fails.
    """

    def __init__(self, inner: _Inner) -> None:
        self._inner = inner

    def bind(self, columns: pa.DataType) -> None:
        """The table has these columns now."""
        self._inner.bind(pa.struct([("before", columns), ("after", columns)]))

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items."""
        decoded = self._inner.decode(column)
        rows = decoded.rows
        before, after = _column(rows, "before"), _column(rows, "after")
        op = _column(rows, "op")
        op = op if pa.types.is_string(op.type) else pa.nulls(len(rows), pa.string())
        deletes = pc.fill_null(pc.equal(op, "d"), False)
        changes = pc.fill_null(pc.is_in(op, pa.array(["c", "u", "r"])), False)
        good = pc.or_(rows.is_null(), pc.or_(deletes, pc.and_(changes, after.is_valid())))
        kind = after.type if pa.types.is_struct(after.type) else pa.struct([])
        if pa.types.is_struct(before.type):
            kind = compare(kind, before.type).merged
        made = conform(after, kind, rounded=True).rows
        if pc.any(deletes, min_count=0).as_py():
            old = conform(before, kind, rounded=True)
            places = pc.if_else(
                deletes, pa.array(range(len(rows), 2 * len(rows))), pa.array(range(len(rows)))
            )
            made = pa.concat_arrays([made, old.rows]).take(places)
        reasons = "it is no debezium envelope of a row's change: op={}"
        return _rejecting(decoded, made, op, good, reasons)


class OperationDecoder:
    """Rows of what ``inner`` decodes, without the column ``name``, which says what each does.

    Known are c, i, u, d, r and the words for them (create, insert, update, upsert, delete, read, snapshot), in upper
    or lower case; other operations fail.
    """

    def __init__(self, inner: _Inner, name: str) -> None:
        self._inner = inner
        self._name = name

    def bind(self, columns: pa.DataType) -> None:
        """The table has these columns now."""
        kept = [field for field in columns if field.name != self._name]
        self._inner.bind(pa.struct([*kept, (self._name, pa.string())]))

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items."""
        decoded = self._inner.decode(column)
        said = _column(decoded.rows, self._name)
        said = said if pa.types.is_string(said.type) else pa.nulls(len(decoded.rows), pa.string())
        words = pc.index_in(pc.utf8_lower(said), pa.array(list(_OPERATIONS)))
        operations = pa.array(list(_OPERATIONS.values())).take(words)
        good = pc.or_(decoded.rows.is_null(), operations.is_valid())
        kept = pa.struct([field for field in decoded.rows.type if field.name != self._name])
        rows = conform(decoded.rows, kept).rows
        reason = f'its operation is unknown: field "{self._name}" is {{}}'
        return _rejecting(decoded, rows, operations, good, reason, said)


def _column(rows: pa.Array, name: str) -> pa.Array:
    at = rows.type.get_field_index(name) if pa.types.is_struct(rows.type) else -1
    return pa.nulls(len(rows)) if at < 0 else rows.flatten()[at]


def _rejecting(
    decoded: Decoded,
    rows: pa.Array,
    operations: pa.Array,
    good: pa.Array,
    reason: str,
    said: pa.Array | None = None,
) -> Decoded:
    if pc.all(good, min_count=0).as_py():
        return Decoded(
            rows=rows,
            indices=decoded.indices,
            failures=decoded.failures,
            nulled=decoded.nulled,
            lost=decoded.lost,
            operations=operations,
        )
    bad = pc.invert(good)
    texts = (operations if said is None else said).filter(bad).to_pylist()
    failures = [
        Failure(index, reason.format(None if text is None else text[:40]))
        for index, text in zip(decoded.indices.filter(bad).to_pylist(), texts, strict=True)
    ]
    return Decoded(
        rows=rows.filter(good),
        indices=decoded.indices.filter(good),
        failures=sorted([*decoded.failures, *failures], key=lambda one: one.index),
        nulled=decoded.nulled,
        lost=decoded.lost,
        operations=operations.filter(good),
    )
