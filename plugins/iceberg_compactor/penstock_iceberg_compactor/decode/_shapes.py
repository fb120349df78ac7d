"""Columns of JSON as a tree that grows with what records hold, and the one way to fit a value into it.

A tree is never changed: fitting a value gives the tree that has its columns, too, which is the same object if there
are none. So a record that fails halfway leaves nothing behind. Fitting says what is true; faster ways to decode JSON
have to agree with it.
"""

from __future__ import annotations

__all__ = (
    "Fitter",
    "Leaf",
    "Limits",
    "ListShape",
    "MapShape",
    "RepeatedNames",
    "Shape",
    "StructShape",
    "arrow_type",
    "shape_of",
)

import base64
import binascii
import datetime
import decimal
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from penstock_iceberg_compactor.decode._arrow import UUID, plain, type_name
from penstock_iceberg_compactor.decode._decoder import MisfitError

_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)
#: As a timestamp with a zone is written in JSON by RFC 3339, year 1 at least: these, and no other strings.
TIMESTAMP = re.compile(
    r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)


class RepeatedNames(dict[str, Any]):
    """A JSON object that has names more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.names = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far records may make a table grow."""

    #: Columns, nested ones included, that the tree has at most; those that only had nulls so far count, too.
    columns_max: int = 1000
    #: Structs and lists inside each other; what a table has already may be deeper.
    depth_max: int = 16
    #: UTF-8 bytes of a column's name.
    name_bytes_max: int = 255
    #: Names of rows' columns that a table has for other things.
    reserved: frozenset[str] = frozenset()
    #: How deep rows are: 1, or 2 if they are within envelopes.
    rows_depth: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A column of values without parts."""

    type: pa.DataType
    #: What a JSON value is in Python's objects for this type; ValueError or TypeError if it is none.
    take: Callable[[Any], Any]
    #: It was only just inferred, so it may still become a double.
    open: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StructShape:
    """A column with columns, in order of first appearance."""

    fields: Mapping[str, Shape]


@dataclass(frozen=True, slots=True, eq=False)
class ListShape:
    """A column of lists."""

    element: Shape


@dataclass(frozen=True, slots=True, eq=False)
class MapShape:
    """A column of maps, which in JSON are objects: only where it was given."""

    value: Shape


#: None: there were only nulls so far.
Shape: TypeAlias = Leaf | StructShape | ListShape | MapShape | None


def _bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise TypeError


def _integer(allowed: range) -> Callable[[Any], int]:
    def take(value: Any) -> int:
        if type(value) is float and value.is_integer() and abs(value) <= 2**53:
            value = int(value)
        if type(value) is not int:
            raise TypeError
        if value not in allowed:
            raise ValueError("is an integer out of range")
        return value

    return take


def _double(value: float) -> float:
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError("is a number beyond a double") from None
    if not isinstance(value, float):
        raise TypeError
    if math.isinf(value):
        raise ValueError("is a number beyond a double")
    return value


def _float(value: float) -> float:
    value = _double(value)
    if value != 0 and abs(value) >= 3.4028235677973366e38:  # from here on it rounds to infinity
        raise ValueError("is a number beyond a float")
    return value


def _never(value: Any) -> Any:
    raise ValueError("is of a type that isn't read from json")


def _string(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _timestamp(value: Any) -> datetime.datetime:
    if not TIMESTAMP.fullmatch(_string(value)):
        raise ValueError("is no timestamp with zone as 2026-01-31T12:00:00Z")
    text, fraction = value.upper(), ""
    found = re.search(r"\.(\d+)", text)
    if found:  # digits beyond microseconds are cut off
        fraction = found[1]
        text = text.replace(f".{fraction}", f".{fraction[:6]:0<6}")
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError("is a timestamp that can't be") from None


def _local_timestamp(value: Any) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(_string(value))
    except ValueError:
        raise ValueError("is no timestamp as 2026-01-31T12:00:00") from None
    if found.tzinfo is not None:
        raise ValueError("is a timestamp with a zone, and the column has none")
    return found


def _date(value: Any) -> datetime.date:
    try:
        return datetime.date.fromisoformat(_string(value))
    except ValueError:
        raise ValueError("is no date as 2026-01-31") from None


def _time(value: Any) -> datetime.time:
    try:
        found = datetime.time.fromisoformat(_string(value))
    except ValueError:
        raise ValueError("is no time as 12:00:00") from None
    if found.tzinfo is not None:
        raise ValueError("is a time with a zone")
    return found


def _uuid(value: Any) -> bytes:
    try:
        return uuid.UUID(_string(value)).bytes
    except ValueError:
        raise ValueError("is no uuid") from None


def _binary(size: int | None) -> Callable[[Any], bytes]:
    def take(value: Any) -> bytes:
        try:
            found = base64.b64decode(_string(value), validate=True)
        except binascii.Error:
            raise ValueError("is no base64") from None
        if size is not None and len(found) != size:
            raise ValueError(f"has {len(found)} bytes, not {size}")
        return found

    return take


def _decimal(kind: pa.DataType) -> Callable[[Any], decimal.Decimal]:
    context = decimal.Context(prec=kind.precision, traps=[decimal.Inexact, decimal.InvalidOperation])
    unit = decimal.Decimal(1).scaleb(-kind.scale)

    def take(value: Any) -> decimal.Decimal:
        if type(value) not in (int, float, str):
            raise TypeError
        try:
            # a float by its shortest text, which is what stood in the JSON if that had at most 15 digits
            found = decimal.Decimal(repr(value) if type(value) is float else value)
            if type(value) is float and len(found.as_tuple().digits) > 15:
                raise ValueError
            return found.quantize(unit, context=context)
        except (decimal.DecimalException, ValueError):
            raise ValueError(f"doesn't fit decimal({kind.precision},{kind.scale})") from None

    return take


_LEAVES: dict[pa.DataType, Callable[[Any], Any]] = {
    pa.bool_(): _bool,
    pa.int32(): _integer(_INT32),
    pa.int64(): _integer(_INT64),
    pa.float32(): _float,
    pa.float64(): _double,
    pa.string(): _string,
    pa.timestamp("us", "UTC"): _timestamp,
    pa.timestamp("us"): _local_timestamp,
    pa.date32(): _date,
    pa.time64("us"): _time,
    pa.binary(): _binary(None),
    UUID: _uuid,
}
_BOOL, _DOUBLE, _STRING, _ZONED = (
    Leaf(kind, _LEAVES[kind]) for kind in (pa.bool_(), pa.float64(), pa.string(), pa.timestamp("us", "UTC"))
)
_OPEN_LONG = Leaf(pa.int64(), _LEAVES[pa.int64()], open=True)


def shape_of(kind: pa.DataType) -> Shape:
    """The tree of a plain type; none of its columns changes its type."""
    types = pa.types
    if types.is_null(kind):
        return None
    if types.is_struct(kind):
        return StructShape({field.name: shape_of(field.type) for field in kind})
    if types.is_list(kind):
        return ListShape(shape_of(kind.value_type))
    if types.is_map(kind):
        return MapShape(shape_of(kind.item_type)) if kind.key_type == pa.string() else Leaf(kind, _never)
    take = _LEAVES.get(kind)
    if take is None and types.is_decimal(kind):
        take = _decimal(kind)
    if take is None and types.is_fixed_size_binary(kind):
        take = _binary(kind.byte_width)
    return Leaf(kind, take or _never)


def arrow_type(shape: Shape, *, seen: bool = False) -> pa.DataType | None:
    """The plain type of a tree without what only had nulls; None if nothing is left.

    With ``seen`` those columns are there, as columns of nulls.
    """
    if shape is None:
        return pa.null() if seen else None
    if isinstance(shape, Leaf):
        return shape.type
    if isinstance(shape, StructShape):
        typed = [(name, arrow_type(one, seen=seen)) for name, one in shape.fields.items()]
        kept = [(name, kind) for name, kind in typed if kind is not None]
        return pa.struct(kept) if kept or seen else None
    inner = arrow_type(shape.element if isinstance(shape, ListShape) else shape.value, seen=seen)
    if inner is None:
        return None
    return (
        pa.list_(pa.field("element", inner)) if isinstance(shape, ListShape) else pa.map_(pa.string(), inner)
    )


def count_columns(shape: Shape) -> int:
    """How many columns a tree has, nested ones included; the top is none."""
    if isinstance(shape, StructShape):
        return sum(1 + count_columns(one) for one in shape.fields.values())
    if isinstance(shape, ListShape):
        return 1 + count_columns(shape.element)
    return 1 + count_columns(shape.value) if isinstance(shape, MapShape) else 0


def json_name(value: Any) -> str:
    """What a JSON value is, for people: ``a string``."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
    }
    return "an object" if isinstance(value, dict) else names.get(type(value), "null")


class Fitter:
    """Fits records into a tree that it keeps.

    ``grow``: names that the tree doesn't have become columns; otherwise they are left out. ``nulls``: a value that
    doesn't fit becomes null instead of failing its record. ``timestamps``: strings that look like one are inferred as
    timestamps with zone. ``doubles``: integers are inferred as doubles.
    """

    def __init__(
        self,
        known: pa.DataType | None = None,
        *,
        limits: Limits | None = None,
        grow: bool = True,
        nulls: bool = False,
        timestamps: bool = False,
        doubles: bool = False,
    ) -> None:
        self.limits = limits or Limits()
        self.grow = grow
        self.nulled = 0
        #: Why the last value became null that doesn't fit.
        self.lost = ""
        #: Where in the record it is, as far as values that don't fit become null.
        self._names: list[str] = []
        self._nulls, self._timestamps, self._doubles = nulls, timestamps, doubles
        self.shape: StructShape = StructShape({})
        self._columns = self._added = 0
        self._lost = False
        if known is not None:
            self.bind(known)

    @property
    def type(self) -> pa.DataType:
        """The struct type of all columns that have one."""
        return arrow_type(self.shape) or pa.struct([])

    def bind(self, columns: pa.DataType) -> None:
        """The columns as a table has them; those seen beside them are kept."""
        bound = shape_of(plain(columns))
        assert isinstance(bound, StructShape)
        self.shape = _bound(bound, self.shape)
        self._columns = count_columns(self.shape)

    def fit(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record as Python objects of which Arrow makes rows of ``type``, which has what is new in it.

        Raises MisfitError, and nothing has changed.
        """
        self._added, self._lost = 0, False
        self._names.clear()
        fitted, shape = self._struct(record, self.shape, 1)
        if shape is not self.shape:
            _refuse_same_paths(shape)
            self.shape = shape
            self._columns = count_columns(shape)
        self.nulled += self._lost
        return fitted

    def _fit(self, value: Any, shape: Shape, depth: int) -> tuple[Any, Shape]:
        if value is None:
            return None, shape
        if shape is None:
            return self._infer(value, depth)
        try:
            if isinstance(shape, Leaf):
                return self._leaf(value, shape)
            if isinstance(shape, StructShape) and isinstance(value, dict):
                return self._struct(value, shape, depth + 1)
            if isinstance(shape, ListShape) and type(value) is list:
                return self._list(value, shape, depth + 1)
            if isinstance(shape, MapShape) and isinstance(value, dict):
                return self._map(value, shape, depth + 1)
            raise self._misfit(value, shape)
        except MisfitError as error:
            if not self._nulls:
                raise
            self._lose(error)
            return None, shape

    def _lose(self, error: MisfitError) -> None:
        self._lost = True
        self.lost = str(MisfitError(error.reason, *error.path, *reversed(self._names)))

    def _leaf(self, value: Any, shape: Leaf) -> tuple[Any, Leaf]:
        if type(value) is float and shape.open:
            shape = _DOUBLE
        try:
            return shape.take(value), shape
        except TypeError:
            raise self._misfit(value, shape) from None
        except ValueError as error:
            raise MisfitError(str(error)) from None

    def _misfit(self, value: Any, shape: Shape) -> MisfitError:
        there = arrow_type(shape, seen=True)
        assert there is not None
        return MisfitError(f"holds {json_name(value)} but is {type_name(there)}")

    def _struct(
        self, record: dict[str, Any], shape: StructShape, depth: int
    ) -> tuple[dict[str, Any], StructShape]:
        fitted: dict[str, Any] = {}
        fields = shape.fields
        more: dict[str, Shape] = {}
        if isinstance(record, RepeatedNames):
            self._refuse_repeated(name for name in record.names if self.grow or name in fields)
        for name, value in record.items():
            if self._nulls:
                self._names.append(name)
            try:
                if name in fields:
                    before = fields[name]
                    fitted[name], after = self._fit(value, before, depth)
                    if after is not before:
                        more[name] = after
                elif self.grow:
                    self._admit(name, depth)
                    fitted[name], more[name] = self._fit(value, None, depth)
            except MisfitError as error:
                if self._nulls and name not in fields:
                    self._lose(error)
                    continue
                error.path.append(name)
                raise
            finally:
                if self._nulls:
                    self._names.pop()
        return fitted, StructShape({**fields, **more}) if more else shape

    def _list(self, values: list[Any], shape: ListShape, depth: int) -> tuple[list[Any], ListShape]:
        fitted, element = [], shape.element
        for value in values:
            one, element = self._fit(value, element, depth)
            fitted.append(one)
        return fitted, shape if element is shape.element else ListShape(element)

    def _map(
        self, value: dict[str, Any], shape: MapShape, depth: int
    ) -> tuple[list[tuple[str, Any]], MapShape]:
        fitted, inner = [], shape.value
        if isinstance(value, RepeatedNames):
            self._refuse_repeated(value.names)
        for name, item in value.items():
            try:
                one, inner = self._fit(item, inner, depth)
            except MisfitError as error:
                error.path.append(name)
                raise
            fitted.append((name, one))
        return fitted, shape if inner is shape.value else MapShape(inner)

    def _refuse_repeated(self, names: Iterable[str]) -> None:
        for name in names:
            raise MisfitError(f'has "{name}" twice in one object')

    def _admit(self, name: str, depth: int) -> None:
        if name in self.limits.reserved and depth == self.limits.rows_depth:
            raise MisfitError("has a name that the table needs itself")
        size = len(name.encode(errors="replace"))
        if not name or size > self.limits.name_bytes_max:
            fault = (
                f"has a name of {size} bytes, at most {self.limits.name_bytes_max}" if name else "has no name"
            )
            raise MisfitError(fault)
        if self._columns + self._added >= self.limits.columns_max:
            raise MisfitError(f"would be one too many: columns_max={self.limits.columns_max}")
        self._added += 1

    def _infer(self, value: Any, depth: int) -> tuple[Any, Shape]:
        kind = type(value)
        if isinstance(value, dict | list):
            if depth >= self.limits.depth_max:
                raise MisfitError(f"is nested too deep: depth_max={self.limits.depth_max}")
            if isinstance(value, dict):
                return self._struct(value, StructShape({}), depth + 1)
            self._added += 1
            return self._list(value, ListShape(None), depth + 1)
        if kind is bool:
            return value, _BOOL
        if kind is str:
            if self._timestamps and TIMESTAMP.fullmatch(value):
                return self._leaf(value, _ZONED)
            return value, _STRING
        return self._leaf(value, _DOUBLE if kind is float or self._doubles else _OPEN_LONG)


def _refuse_same_paths(shape: Shape) -> None:
    """Two columns ``a.b``, one of which is b in a, can't be in one table."""
    seen: set[str] = set()
    for path in _paths(shape, ()):
        name = ".".join(path)
        if name in seen:
            raise MisfitError("has the name of another one, which is in a struct or list", name)
        seen.add(name)


def _paths(shape: Shape, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(shape, StructShape):
        for name, one in shape.fields.items():
            yield from _paths(one, (*path, name))
    elif isinstance(shape, ListShape):
        yield from _paths(shape.element, (*path, "element"))
    elif isinstance(shape, MapShape):
        yield (*path, "key")
        yield from _paths(shape.value, (*path, "value"))


def _bound(table: Shape, seen: Shape) -> Any:
    """``table`` with what was ``seen`` beside its columns."""
    if isinstance(table, StructShape) and isinstance(seen, StructShape):
        fields = {name: _bound(one, seen.fields.get(name)) for name, one in table.fields.items()}
        return StructShape(
            {**fields, **{name: one for name, one in seen.fields.items() if name not in fields}}
        )
    if isinstance(table, ListShape) and isinstance(seen, ListShape):
        return ListShape(_bound(table.element, seen.element))
    return seen if table is None else table
