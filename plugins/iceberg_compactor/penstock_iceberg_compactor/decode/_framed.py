"""Records that begin with the id of the schema that wrote them: Confluent's wire format.

A byte 0, the id in four bytes, for protobuf the message's indexes in its file, then the value. Records are decoded by
schema, together, and their rows are put in the order of records again, under columns that all of them fit.
"""

from __future__ import annotations

__all__ = ("Codec", "FramedDecoder", "GivenDecoder")

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import NotFoundError
from penstock.spi.lake import BinaryColumn
from penstock_iceberg_compactor.decode._arrow import arrow_column, cut, plain
from penstock_iceberg_compactor.decode._decoder import Decoded, Failure, check_memory
from penstock_iceberg_compactor.decode.evolution import Comparison, compare, conform

T = TypeVar("T")

_CODECS_MAX = 1000
#: Ids and message types, but for those that are known, that one column may have at most: each is a question to the
#: registry. Those that most records name come first: else who makes ids up, one a record, has others' left out.
_SCHEMAS_MAX = 200
_TOO_MANY = f"too many schemas are named side by side: schemas_max={_SCHEMAS_MAX}"
_HEADER = 5
_ID_MAX = 2**31 - 1
_INDEXES_MAX = 16


class Codec(Protocol):
    """Decodes values of one schema."""

    @property
    def type(self) -> pa.DataType:
        """The type of its rows."""

    def memory_of(self, items: pa.Array) -> int:
        """What rows of these items may take in memory."""

    def decode(self, items: pa.Array) -> Decoded:
        """Decode an array of binary without nulls."""


class _Columns:
    """The columns of all records so far, of which each schema has some."""

    def __init__(self, known: pa.DataType | None, *, nulls: bool) -> None:
        self._type: pa.DataType | None = None if known is None else plain(known)
        self._nulls = nulls
        #: A table has these columns, so rows have to be structs.
        self.bound = known is not None

    @property
    def type(self) -> pa.DataType:
        return pa.struct([]) if self._type is None else self._type

    def bind(self, columns: pa.DataType) -> None:
        bound = plain(columns)
        self.bound = True
        self._type = bound if self._type is None else compare(bound, self._type).merged

    def admit(self, kind: pa.DataType) -> Comparison:
        """Have the columns of one more schema."""
        comparison = compare(kind if self._type is None else self._type, kind)
        self._type = comparison.merged
        return comparison

    def fit(
        self, decoded: Decoded, comparison: Comparison, indices: pa.Array
    ) -> tuple[pa.Array, pa.Array, list[Failure], list[Failure]]:
        """Rows under all columns, their places, those that have lost a value, and those that don't fit."""
        cast = conform(pa.StructArray.from_arrays([decoded.rows], ["v"]), pa.struct([("v", self.type)]))
        rows, places = cast.rows.field(0), indices.take(decoded.indices)
        if cast.bad is None:
            return rows, places, [], []
        conflicts = "; ".join(map(str, comparison.conflicts[:3])) or "a value is beyond what its column holds"
        failures = [Failure(index, conflicts, misfit=True) for index in places.filter(cast.bad).to_pylist()]
        if self._nulls:
            return rows, places, failures, []
        good = pc.invert(cast.bad)
        return rows.filter(good), places.filter(good), [], failures


class GivenDecoder:
    """Decodes records of one schema that is given, without anything in front of them."""

    def __init__(self, codec: Codec, *, known: pa.DataType | None = None, nulls: bool = False) -> None:
        self._codec = codec
        self._columns = _Columns(known, nulls=nulls)

    def bind(self, columns: pa.DataType) -> None:
        """The table has these columns now."""
        self._columns.bind(columns)

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items."""
        return self.decode_array(arrow_column(column))

    def decode_array(self, items: pa.Array) -> Decoded:
        """Decode all items of an array of binary."""
        places = _places(items)
        groups = _Groups(self._columns, len(items))
        groups.add(self._codec, items.filter(items.is_valid()), places.filter(items.is_valid()))
        groups.add_nulls(places.filter(items.is_null()))
        return groups.done()


class FramedDecoder:
    """Decodes records that name their schema, which ``codec_of(id, indexes)`` has; ``indexes`` only if ``indexed``.

    ``codec_of`` raises ValueError or NotFoundError if the records of a schema can't be decoded, UnavailableError if
    that isn't known now.
    """

    def __init__(
        self,
        codec_of: Callable[[int, tuple[int, ...]], Codec],
        *,
        indexed: bool = False,
        known: pa.DataType | None = None,
        nulls: bool = False,
    ) -> None:
        self._codec_of = codec_of
        self._indexed = indexed
        self._columns = _Columns(known, nulls=nulls)
        #: Schemas never change, so what is wrong with one is remembered as well.
        self._codecs: OrderedDict[tuple[int, tuple[int, ...]], Codec | ValueError] = OrderedDict()

    def bind(self, columns: pa.DataType) -> None:
        """The table has these columns now."""
        self._columns.bind(columns)

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items."""
        return self.decode_array(arrow_column(column))

    def decode_array(self, items: pa.Array) -> Decoded:
        """Decode all items of an array of binary."""
        places = _places(items)
        groups = _Groups(self._columns, len(items))
        groups.add_nulls(places.filter(items.is_null()))
        headers = pc.binary_slice(items, 0, _HEADER)
        framed = pc.and_(pc.equal(pc.binary_length(headers), _HEADER), pc.starts_with(headers, b"\0"))
        groups.fail(
            places.filter(pc.invert(pc.fill_null(framed, True))), "it doesn't begin with the id of a schema"
        )
        # in order of first appearance, in which columns are added
        counted = pc.value_counts(headers.filter(framed))
        named = dict(
            zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
        )
        known = {number for number, _ in self._codecs}
        new = {header: count for header, count in named.items() if _number(header) not in known}
        left_out = set(new) - _most(new, _SCHEMAS_MAX)
        groups.fail(
            places.filter(pc.is_in(headers, value_set=pa.array(list(left_out), pa.binary()))), _TOO_MANY
        )
        questions = _SCHEMAS_MAX - len(new) + len(left_out)  # beside one for each that is new
        for header in [one for one in named if one not in left_out]:
            number = _number(header)
            mask = pc.fill_null(pc.equal(headers, header), False)
            runs = self._split(places.filter(mask), cut(items.filter(mask), _HEADER), groups)
            unknown = {
                indexes: len(there) for indexes, there, _ in runs if (number, indexes) not in self._codecs
            }
            asked = _most(unknown, questions + (header in new))
            questions -= max(0, len(asked) - (header in new))
            for indexes, some_places, some in runs:
                if indexes in unknown and indexes not in asked:
                    groups.fail(some_places, _TOO_MANY)
                    continue
                try:
                    if number > _ID_MAX:  # which registries don't understand
                        raise ValueError("it names a schema by a number that is no id:")
                    codec = self._codec(number, indexes)
                except (ValueError, NotFoundError) as error:
                    groups.fail(
                        some_places, f"{error} id={number}" if "id=" not in str(error) else str(error)
                    )
                    continue
                groups.add(codec, some, some_places)
        return groups.done()

    def _codec(self, number: int, indexes: tuple[int, ...]) -> Codec:
        key = number, indexes
        codec = self._codecs.get(key)
        if codec is None:
            try:
                codec = self._codec_of(number, indexes)
            except ValueError as error:
                codec = ValueError(str(error))
            self._codecs[key] = codec
            if len(self._codecs) > _CODECS_MAX:
                self._codecs.popitem(last=False)
        self._codecs.move_to_end(key)
        if isinstance(codec, ValueError):
            raise ValueError(str(codec))
        return codec

    def _split(
        self, places: pa.Array, bodies: pa.Array, groups: _Groups
    ) -> list[tuple[tuple[int, ...], pa.Array, pa.Array]]:
        """Bodies by message, without the indexes that name it."""
        if not self._indexed:
            return [((), places, bodies)]
        short = pc.equal(
            pc.binary_slice(bodies, 0, 1), b"\0"
        )  # the first message of its file, as nearly always
        if pc.all(short).as_py():
            return [((0,), places, cut(bodies, 1))]
        by_message: dict[tuple[int, ...], list[tuple[int, bytes]]] = {}
        for place, body in zip(places.to_pylist(), bodies.to_pylist(), strict=True):
            try:
                indexes, end = _indexes(body)
            except (ValueError, IndexError):
                groups.fail(pa.array([place], pa.int32()), "it has no message indexes behind the schema's id")
                continue
            by_message.setdefault(indexes, []).append((place, body[end:]))
        return [
            (
                indexes,
                pa.array([at for at, _ in found], pa.int32()),
                pa.array([body for _, body in found], pa.binary()),
            )
            for indexes, found in by_message.items()
        ]


def _most(counts: Mapping[T, int], places: int) -> set[T]:
    """The ``places`` with the greatest counts; of equals the first."""
    return set(sorted(counts, key=counts.__getitem__, reverse=True)[:places])


def _number(header: bytes) -> int:
    return int.from_bytes(header[1:], "big")


def _indexes(body: bytes) -> tuple[tuple[int, ...], int]:
    count, at = _zigzag(body, 0)
    if count == 0:
        return (0,), at
    if not 0 < count <= _INDEXES_MAX:
        raise ValueError
    found = []
    for _ in range(count):
        index, at = _zigzag(body, at)
        found.append(index)
    return tuple(found), at


def _zigzag(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 28:
            raise ValueError


def _in_value(decoded: Decoded) -> Decoded:
    """Rows that are no structs in a column ``value``, as tables have them."""
    rows = pa.StructArray.from_arrays([decoded.rows], ["value"], mask=decoded.rows.is_null())
    return replace(decoded, rows=rows)


def _places(items: pa.Array) -> pa.Array:
    return pa.array(range(len(items)), pa.int32())


class _Groups:
    """Rows of several schemas, on their way back into the order of records."""

    def __init__(self, columns: _Columns, count: int) -> None:
        self._columns = columns
        self._count = count
        #: What rows may take, of all schemas.
        self._memory = 0
        self._rows: list[pa.Array] = []
        self._places: list[pa.Array] = []
        self._failures: list[Failure] = []
        #: Those with a value that became null.
        self._lost: list[Failure] = []

    def add(self, codec: Codec, items: pa.Array, places: pa.Array) -> None:
        if not len(items):
            return
        self._memory += codec.memory_of(items)
        check_memory(self._memory, self._count)
        decoded = codec.decode(items)
        if self._columns.bound and not pa.types.is_struct(codec.type):
            decoded = _in_value(decoded)
        comparison = self._columns.admit(decoded.rows.type)
        self._failures += [Failure(places[one.index].as_py(), one.reason) for one in decoded.failures]
        rows, there, lost, failures = self._columns.fit(decoded, comparison, places)
        self._rows.append(rows)
        self._places.append(there)
        self._lost += lost
        self._failures += failures

    def add_nulls(self, places: pa.Array) -> None:
        if len(places):
            self._rows.append(pa.nulls(len(places), pa.null()))
            self._places.append(places)

    def fail(self, places: pa.Array, reason: str) -> None:
        self._failures += [Failure(index, reason) for index in places.to_pylist()]

    def done(self) -> Decoded:
        kind = self._columns.type
        rows: Any = pa.nulls(0, kind)
        places = pa.array([], pa.int32())
        if self._rows:
            wide = pa.struct([("v", kind)])
            rows = pa.concat_arrays(
                [conform(pa.StructArray.from_arrays([one], ["v"]), wide).rows.field(0) for one in self._rows]
            )
            places = pa.concat_arrays(self._places)
        if len(self._rows) > 1:
            order = pc.sort_indices(places)
            rows, places = rows.take(order), places.take(order)
        failures = sorted(self._failures, key=lambda one: one.index)
        assert len(rows) + len(failures) == self._count
        last = max(self._lost, key=lambda one: one.index, default=None)
        return Decoded(rows=rows, indices=places, failures=failures, nulled=len(self._lost), lost=last)
