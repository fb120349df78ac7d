"""JSON objects: their columns inferred and grown, or given.

pyarrow's reader does the work where it says the same as the row-wise way; what it takes too easily is kept from it:
NUL bytes, bytes that aren't UTF-8, numbers that aren't finite. Each value is put into an object of its own,
``{"v":VALUE}``, and unknown names are errors, so that as many rows as values means a value for each row: a value that
is half an object, or two, can't pass for its neighbour.
"""

from __future__ import annotations

__all__ = ("JsonDecoder",)

import contextlib
import json
import re
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from penstock.spi.lake import BinaryColumn
from penstock_iceberg_compactor.decode._arrow import arrow_column, cut
from penstock_iceberg_compactor.decode._connect import without_connect_schema
from penstock_iceberg_compactor.decode._decoder import (
    Decoded,
    Failure,
    MisfitError,
    RefusedError,
    check_memory,
    memory_of,
    parts,
    swelling,
)
from penstock_iceberg_compactor.decode._shapes import (
    Fitter,
    Leaf,
    ListShape,
    MapShape,
    RepeatedNames,
    Shape,
    json_name,
)

#: What pyarrow's reader makes of JSON as the row-wise way does.
_READ = (pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string())
#: Timestamps that are read as strings and then cast; others go the row-wise way.
_CASTABLE = r"^(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z$"
_ZONED = pa.timestamp("us", "UTC")
_ROW = re.compile(r" in row (\d+)$")
_LOOK = 64 * 1024
_RAW_VALUES = msgspec.json.Decoder(list[msgspec.Raw])


class JsonDecoder:
    """Decodes JSON objects of any columns into rows of a struct that grows.

    A record that isn't a JSON object, has a name twice, or doesn't fit the columns fails; JSON's null is null, as a
    record without a value is. ``framed``: a schema's id in front of a value is cut off. ``connect``: so is
    the schema that Kafka Connect puts around a payload. With ``row_wise`` nothing is done in bulk: it is what the
    bulk way is held against.
    """

    def __init__(
        self, fitter: Fitter, *, framed: bool = False, connect: bool = False, row_wise: bool = False
    ) -> None:
        self._fitter = fitter
        self._framed = framed
        self._connect = connect
        self._row_wise = row_wise
        #: The last record of which a value became null that doesn't fit.
        self._lost: bytes | None = None
        #: Whether a record of the last call failed: the next ones that do are probably not far.
        self._wary = False

    def bind(self, columns: pa.DataType) -> None:
        """The table has these columns now."""
        self._fitter.bind(columns)

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items."""
        return self.decode_array(arrow_column(column))

    def decode_array(self, items: pa.Array) -> Decoded:
        """Decode all items of an array of binary."""
        before = self._fitter.nulled
        if self._framed:
            with_id = pc.fill_null(pc.starts_with(items, b"\0"), False)
            items = pc.if_else(with_id, cut(items, 5), items)
        if self._connect:
            items = without_connect_schema(items)
        if not self._row_wise and not self._fitter.shape.fields and self._fitter.grow:
            self._learn(items)
        bulk = None if self._row_wise else self._bulk
        decoded = parts(
            items,
            lambda: self._checked_type(items),
            bulk,
            self._row,
            wary=self._wary,
            swell=self._swell(items),
        )
        self._wary = bool(decoded.failures)
        return Decoded(
            rows=decoded.rows,
            indices=decoded.indices,
            failures=decoded.failures,
            nulled=self._fitter.nulled - before,
            lost=self._lost_of(items) if self._fitter.nulled > before else None,
        )

    def _swell(self, items: pa.Array) -> int:
        """What :func:`swelling` says. Raises TooManyError if these items may take too much memory together."""
        kind = self._fitter.type
        swell = swelling(kind)
        check_memory(memory_of(items, kind, swell), len(items))
        return swell

    def _checked_type(self, items: pa.Array) -> pa.DataType:
        """The type of all columns, looked at again if there are more of them by now."""
        self._swell(items)
        return self._fitter.type

    def _lost_of(self, items: pa.Array) -> Failure:
        """The last of the records with a value that became null, or one with the same bytes."""
        return Failure(items.index(pa.scalar(self._lost, items.type)).as_py(), self._fitter.lost, misfit=True)

    def _learn(self, items: pa.Array) -> None:
        """Infer the columns of the first record that isn't null, so that the bulk way has something to begin with.

        It is fitted once more later, with the same result.
        """
        first = next((item for item in items[:16].to_pylist() if item is not None), None)
        nulled = self._fitter.nulled
        if first is not None:
            with contextlib.suppress(ValueError):
                self._row(first)
        self._fitter.nulled = nulled

    def _row(self, item: bytes) -> dict[str, Any] | None:
        try:
            text = item.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"it is no utf-8, from byte {error.start} on") from None
        try:
            value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        except RecursionError:
            raise ValueError("it is nested too deep to be read") from None
        except json.JSONDecodeError as error:
            raise ValueError(
                f"it is no json: {_lower(error.msg).removesuffix(' at')} at character {error.pos}"
            ) from None
        except MisfitError:
            raise
        except ValueError:  # of Python, which bounds the digits of a whole number
            raise ValueError("it has a number of thousands of digits") from None
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ValueError(f"it is {json_name(value)}, not an object")
        try:
            if "\\u" in text and not _is_text(value):
                raise ValueError("it has half of a surrogate pair in a string")
            nulled = self._fitter.nulled
            fitted = self._fitter.fit(value)
            if self._fitter.nulled > nulled:
                self._lost = item
            return fitted
        except RecursionError:  # Python's own code takes more of the stack than the parser did
            raise ValueError("it is nested too deep to be read") from None

    def _bulk(self, items: pa.Array) -> pa.Array:
        shape = self._fitter.shape
        wanted = _read_type(shape)
        if wanted is None:
            raise RefusedError
        try:
            items.cast(pa.string())  # the reader doesn't look whether strings are UTF-8
        except pa.ArrowInvalid as error:
            raise RefusedError from error
        lines = pc.binary_join_element_wise(b'{"v":', pc.fill_null(items, b"null"), b"}\n", b"")
        assert lines.offset == 0
        data = lines.buffers()[2] or pa.py_buffer(b"")
        if not self._fitter.grow and not _single(items):
            raise RefusedError
        if _has_nul(memoryview(data)):  # the reader takes it for the end
            raise RefusedError
        try:
            table = pj.read_json(
                pa.BufferReader(data),
                pj.ReadOptions(use_threads=False, block_size=data.size + 1),
                pj.ParseOptions(
                    explicit_schema=pa.schema([("v", wanted)]),
                    newlines_in_values=False,
                    unexpected_field_behavior="error" if self._fitter.grow else "ignore",
                ),
            )
        except pa.ArrowInvalid as error:
            row = _ROW.search(str(error))
            raise RefusedError(int(row[1]) if row else -1) from error
        if table.num_rows != len(items) or not len(items):
            raise RefusedError
        return _checked(table.column("v").chunk(0), self._fitter.type)


def _read_type(shape: Shape) -> pa.DataType | None:
    """The type that pyarrow's reader is asked for; None if there is something that it doesn't read as it should."""
    if shape is None:
        return pa.null()
    if isinstance(shape, Leaf):
        return shape.type if shape.type in _READ else pa.string() if shape.type == _ZONED else None
    if isinstance(shape, MapShape):
        return None
    if isinstance(shape, ListShape):
        inner = _read_type(shape.element)
        return None if inner is None else pa.list_(pa.field("element", inner))
    fields = [(name, _read_type(one)) for name, one in shape.fields.items()]
    return None if any(kind is None for _, kind in fields) else pa.struct(fields)


def _checked(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array as one of ``kind``, without the columns of nulls that it has besides.

    Refused if a number isn't finite. Columns of nulls aren't touched: lists of nulls can be of wrong length.
    """
    types = pa.types
    if types.is_floating(array.type):
        if not pc.all(pc.is_finite(array), min_count=0).as_py():
            raise RefusedError
        return array
    if types.is_struct(array.type):
        children = [_checked(array.field(field.name), field.type) for field in kind]
        if not children:
            return pa.array([{} if one else None for one in array.is_valid().to_pylist()], kind)
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if types.is_list(array.type):
        values = _checked(array.values, kind.value_type)
        return pa.ListArray.from_arrays(array.offsets, values, type=kind, mask=array.is_null())
    if kind == _ZONED:
        if not pc.all(pc.match_substring_regex(array, _CASTABLE), min_count=0).as_py():
            raise RefusedError
        try:
            return array.cast(kind)
        except pa.ArrowInvalid as error:
            raise RefusedError from error
    return array


def _has_nul(data: memoryview) -> bool:
    """Looks at copies of a few pages: a copy of all is new memory, which takes a ms per MiB."""
    return any(b"\0" in data[at : at + _LOOK].tobytes() for at in range(0, len(data), _LOOK))


def _single(items: pa.Array) -> bool:
    """Whether no item is ``VALUE,"name":VALUE``, which the reader takes where it leaves unknown names out."""
    values = [b"null" if item is None else item for item in items.to_pylist()]
    try:
        _RAW_VALUES.decode(b"[%b]" % b",".join(values))
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else RepeatedNames(pairs)


def _constant(name: str) -> Any:
    raise MisfitError(f"has the number {name}, which json doesn't know")


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= one <= "\udfff" for one in value)
    if isinstance(value, dict):
        return all(_is_text(name) and _is_text(one) for name, one in value.items())
    return all(map(_is_text, value)) if isinstance(value, list) else True


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
