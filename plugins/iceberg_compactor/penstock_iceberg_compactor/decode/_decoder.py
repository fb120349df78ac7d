"""What every decoder of records keeps to, and how one bad record is kept from the others."""

from __future__ import annotations

__all__ = (
    "Decoded",
    "Decoder",
    "Failure",
    "MEMORY_MAX",
    "MisfitError",
    "PlainDecoder",
    "RefusedError",
    "TooManyError",
    "check_memory",
    "joined",
    "memory_of",
    "panics_caught",
    "parts",
    "swelling",
)

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from penstock.spi.lake import BinaryColumn
from penstock_iceberg_compactor.decode._arrow import arrow_column, null_bytes, storage
from penstock_iceberg_compactor.decode.evolution import conform

#: A run of so few records is decoded one by one: halving it further would cost more than it saves.
_ROW_WISE_MAX = 64
#: Once a bulk decoder refused, it is given runs of so many records: what it does before it refuses is lost each time.
_RUN = 256
#: What records may become that are decoded together: a list of structs takes memory for each column of each item,
#: and a byte or two in its record.
MEMORY_MAX = 128 * 2**20
#: Rows of so many bytes are Python's objects at a time, where their columns are known.
_OBJECTS_BYTES = 2**20
#: When so many times the records were decoded in bulk for nothing, the rest goes one by one.
_WASTE_MAX = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that couldn't be decoded."""

    index: int
    #: Why, in lowercase words that go on after "can't be read: ".
    reason: str
    #: It could be read, and doesn't fit the columns.
    misfit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What became of a column of records: each is a row, or a failure."""

    #: The records that could be decoded, in their order, null for those that are null; its type may have more
    #: columns each time. Everything in it is optional.
    rows: pa.Array
    #: For each row which record of the column it is: int32.
    indices: pa.Array
    #: In the order of records.
    failures: Sequence[Failure] = ()
    #: In how many rows a value that doesn't fit became null, by a decoder that was told so.
    nulled: int = 0
    #: The last of those rows, and why.
    lost: Failure | None = None
    #: For each row what it does to the table, "c", "u", "d" or "r" (string), if the format says so; else None.
    operations: pa.Array | None = None


class Decoder(Protocol):
    """Turns keys or values of one topic into Arrow.

    A decoder remembers the columns that it has seen, so that the rows of later calls agree with earlier ones; it is
    used by one thread at a time. Calls block (a schema registry may be asked): run them in a thread.
    """

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items.

        Raises UnavailableError if the schema registry can't be asked now; what was remembered is then still true.
        Raises TooManyError if they might take too much memory together; one alone fails, if it would.
        """

    def bind(self, columns: pa.DataType) -> None:
        """From now on the table has these columns (a struct type), so none of them changes its type any more."""


class MisfitError(ValueError):
    """A value doesn't fit its column; ``path`` grows while it is on its way to the top."""

    def __init__(self, reason: str, *path: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = list(path)

    def __str__(self) -> str:
        return f'column "{".".join(reversed(self.path))}" {self.reason}' if self.path else f"it {self.reason}"


class RefusedError(Exception):
    """A bulk decoder doesn't take these records together: one of them is bad, or needs the slow way."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        #: Which one it is, if that is known; a wrong guess costs time only.
        self.at = at


class TooManyError(Exception):
    """Fewer records have to be decoded at a time."""


def swelling(kind: pa.DataType, least_bytes: int = 2) -> int:
    """How many bytes of memory a byte of a record may become in lists, whose items take ``least_bytes`` of it."""
    types = pa.types
    if types.is_struct(kind):
        return max((swelling(field.type, least_bytes) for field in kind), default=0)
    if not (types.is_list(kind) or types.is_map(kind)):
        return 0
    inner = kind.value_type if types.is_list(kind) else pa.struct([kind.key_field, kind.item_field])
    return null_bytes(inner) // least_bytes + swelling(inner, least_bytes)


def memory_of(items: pa.Array, kind: pa.DataType, swell: int) -> int:
    """What rows of this type, made of these items, may take beside what stands in the items."""
    return len(items) * null_bytes(kind) + (pc.sum(pc.binary_length(items)).as_py() or 0) * swell


def check_memory(size: int, count: int) -> None:
    """Raise TooManyError if so many records may take so much, and are more than one."""
    if size > MEMORY_MAX and count > 1:
        raise TooManyError


def _taker(kind: pa.DataType) -> Callable[[Any], int] | None:
    """What says how much memory the items of all lists in a row take; None if there are no lists."""
    types = pa.types
    if types.is_struct(kind):
        parts = [(field.name, of) for field in kind if (of := _taker(field.type)) is not None]
        if not parts:
            return None
        return lambda row: sum(of(row.get(name)) for name, of in parts) if row else 0
    if types.is_list(kind):
        width, of_item = null_bytes(kind.value_type), _taker(kind.value_type)
        if of_item is None:
            return lambda row: len(row) * width if row else 0
        return lambda row: len(row) * width + sum(map(of_item, row)) if row else 0
    if types.is_map(kind):
        width, of_value = null_bytes(pa.struct([kind.key_field, kind.item_field])), _taker(kind.item_type)
        if of_value is None:
            return lambda row: len(row) * width if row else 0
        return lambda row: len(row) * width + sum(of_value(one) for _, one in row) if row else 0
    return None


@contextmanager
def panics_caught() -> Iterator[None]:
    """Raises a panic of a library in Rust as a RuntimeError: it is no Exception, so it would end the process."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a library panicked: {error}") from None


class PlainDecoder:
    """Items as they are (``raw``), or as text (``string``): rows of binary or string, no struct."""

    def __init__(self, *, text: bool = False) -> None:
        self._text = text

    def decode(self, column: BinaryColumn) -> Decoded:
        """Decode all items; of text, those that aren't UTF-8 fail."""
        items = arrow_column(column)
        if not self._text:
            return Decoded(rows=items, indices=_range(len(items)))
        return parts(items, pa.string(), _text, _text_row)

    def bind(self, columns: pa.DataType) -> None:
        """Nothing to remember."""


def _text(items: pa.Array) -> pa.Array:
    try:
        return items.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise RefusedError from error


def _text_row(item: bytes) -> Any:
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no utf-8, from byte {error.start} on") from None


def parts(
    items: pa.Array,
    kind: pa.DataType | Callable[[], pa.DataType],
    bulk: Callable[[pa.Array], pa.Array] | None,
    row: Callable[[bytes], Any],
    *,
    wary: bool = False,
    swell: int = 0,
) -> Decoded:
    """Decode ``items`` (binary) with ``bulk`` as far as it takes them, else each with ``row``.

    ``bulk`` raises RefusedError, and is then tried with short runs, without the one that is to blame, or with
    each half of a run, until that has cost more than it can save; ``wary`` begins with short runs. ``row`` raises
    ValueError with the reason as text. They agree wherever both give a result. ``kind`` is the type of all rows,
    asked for at the end. With ``swell`` of :func:`swelling`, a record alone that might take too much memory is looked
    at for what it takes.
    """
    if len(items) == 1 and swell and memory_of(items, pa.null(), swell) > MEMORY_MAX:
        bulk, row = None, _measured(row, kind)
    made: list[pa.Array | list[Any]] = []
    # objects of columns that hold nothing take much more than what is made of them
    at_once = max(1, _OBJECTS_BYTES // max(1, null_bytes(kind))) if isinstance(kind, pa.DataType) else 0
    failures: list[Failure] = []
    todo = _runs(0, len(items)) if wary else [(0, len(items))]
    waste = 0
    while todo:
        begin, end = todo.pop()
        if (
            bulk is not None
            and waste <= _WASTE_MAX * len(items)
            and (end - begin > _ROW_WISE_MAX or end - begin == len(items))
        ):
            try:
                made.append(bulk(items[begin:end]))
                continue
            except RefusedError as refused:
                waste += refused.at if refused.at >= 0 else end - begin
                bad = begin + refused.at
                if begin <= bad < end and end - begin > 1:
                    todo += (*_runs(bad + 1, end), (bad, bad + 1), (begin, bad))
                    continue
                if end - begin > 2 * _RUN:
                    todo += _runs(begin, end)
                    continue
                if end - begin > _ROW_WISE_MAX:
                    middle = (begin + end) // 2
                    todo += ((middle, end), (begin, middle))
                    continue
        rows: list[Any] = []
        for index, item in enumerate(items[begin:end].to_pylist(), begin):
            try:
                rows.append(None if item is None else row(item))
            except ValueError as error:
                misfit = isinstance(error, MisfitError) and bool(error.path)
                failures.append(Failure(index, str(error), misfit))
            if at_once and len(rows) >= at_once:
                made.append(_chunk(rows, kind))
                rows = []
        made.append(rows)
    return joined(made, kind if isinstance(kind, pa.DataType) else kind(), len(items), failures)


def _measured(
    row: Callable[[bytes], Any], kind: pa.DataType | Callable[[], pa.DataType]
) -> Callable[[bytes], Any]:
    def measured(item: bytes) -> Any:
        made = row(item)
        taken = _taker(kind if isinstance(kind, pa.DataType) else kind())
        if taken is not None and taken(made) > MEMORY_MAX:
            raise ValueError(f"its lists would take too much memory: bytes_max={MEMORY_MAX}")
        return made

    return measured


def _runs(begin: int, end: int) -> list[tuple[int, int]]:
    """Runs of what is between, the last one first."""
    return [(at, min(at + _RUN, end)) for at in range(begin, end, _RUN)][::-1]


def joined(
    made: Iterable[pa.Array | list[Any]], kind: pa.DataType, count: int, failures: Sequence[Failure]
) -> Decoded:
    """Rows of type ``kind`` from arrays and lists of rows, one after the other, without those that failed."""
    chunks = [_chunk(chunk, kind) for chunk in made if len(chunk)]
    rows = pa.concat_arrays(chunks) if chunks else pa.nulls(0, kind)
    indices = _range(count)
    if failures:
        failed = {one.index for one in failures}
        indices = pa.array([index for index in range(count) if index not in failed], pa.int32())
    assert len(rows) == len(indices)
    return Decoded(rows=rows, indices=indices, failures=failures)


def _chunk(chunk: pa.Array | list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(chunk, list):
        stored = storage(kind)
        try:
            chunk = pa.array(chunk, stored)
        except pa.ArrowInvalid:  # integers too large for the double that their column became later
            chunk = pa.array([_rounded(row, stored) for row in chunk], stored)
    return conform(chunk, kind, rounded=True).rows


def _rounded(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _rounded(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_rounded(one, kind.value_type) for one in value]
    if pa.types.is_map(kind):
        return [(key, _rounded(one, kind.item_type)) for key, one in value]
    return float(value) if pa.types.is_floating(kind) else value


def _range(count: int) -> pa.Array:
    return pa.array(range(count), pa.int32())
