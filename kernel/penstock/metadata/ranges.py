"""The committed ranges of a stream, 40 bytes each.

A cluster has millions of them and a broker holds them all. As objects they would take 130 to 250 bytes each, their
decoding and freeing would hold up the event loop for tenths of seconds, and so would every look of the garbage
collector. As numbers in one array a stream's ranges are copied, written and dropped in one go.

In a snapshot they are bytes, of each range in order of offsets::

    range, 40 bytes
        0   8  start offset
        8   8  end offset
       16   8  object id
       24   8  size of the payload
       32   8  greatest timestamp, ms

Unlike everywhere else, integers are little-endian: on most machines that is how they lie in memory.
"""

from __future__ import annotations

__all__ = ("Ranges", "StreamRange")

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, MutableSequence
from typing import Any, SupportsIndex, overload

import msgspec

_FIELDS = 5
_END, _OBJECT_ID, _SIZE, _TIME_MS = 1, 2, 3, 4
_pack = struct.Struct(f"={_FIELDS}q").pack
#: Looking in a copy of so few ends is faster than calling back for each step.
_COPIED_MAX = 200 * _FIELDS


class StreamRange(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Offsets [start, end) of a stream, found in an object."""

    start: int
    end: int
    object_id: int
    size: int
    time_ms: int


class Ranges(MutableSequence[StreamRange]):
    """A list of :class:`StreamRange`, which are made when somebody looks at them."""

    __slots__ = ("_numbers",)

    def __init__(self, ranges: Iterable[StreamRange] = ()) -> None:
        self._numbers = array("q")
        for one in ranges:
            self.add(one.start, one.end, one.object_id, one.size, one.time_ms)

    def __len__(self) -> int:
        return len(self._numbers) // _FIELDS

    def __iter__(self) -> Iterator[StreamRange]:
        numbers = self._numbers
        at = 0
        while at < len(numbers):  # like a list, it may change meanwhile
            yield StreamRange(*numbers[at : at + _FIELDS])
            at += _FIELDS

    def _span(self, index: SupportsIndex) -> slice:
        at = range(len(self))[index] * _FIELDS
        return slice(at, at + _FIELDS)

    def _part(self, index: slice) -> slice:
        first, last, step = index.indices(len(self))
        if step != 1:
            raise ValueError("ranges are cut in one piece")
        return slice(first * _FIELDS, max(first, last) * _FIELDS)

    @overload
    def __getitem__(self, index: int) -> StreamRange: ...
    @overload
    def __getitem__(self, index: slice) -> Ranges: ...
    def __getitem__(self, index: int | slice) -> StreamRange | Ranges:
        if isinstance(index, slice):
            part = Ranges()
            part._numbers = self._numbers[self._part(index)]
            return part
        return StreamRange(*self._numbers[self._span(index)])

    @overload
    def __setitem__(self, index: int, value: StreamRange) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[StreamRange]) -> None: ...
    def __setitem__(self, index: int | slice, value: StreamRange | Iterable[StreamRange]) -> None:
        if isinstance(index, slice):
            assert not isinstance(value, StreamRange)
            self._numbers[self._part(index)] = Ranges(value)._numbers
        else:
            assert isinstance(value, StreamRange)
            self._numbers[self._span(index)] = Ranges((value,))._numbers

    def __delitem__(self, index: int | slice) -> None:
        del self._numbers[self._part(index) if isinstance(index, slice) else self._span(index)]

    def insert(self, index: int, value: StreamRange) -> None:
        """Put it before the range at ``index``."""
        self[index:index] = (value,)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return NotImplemented
        return self._numbers == other._numbers

    __hash__ = None  # type: ignore[assignment] # it changes, like a list

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"

    def add(self, start: int, end: int, object_id: int, size: int, time_ms: int) -> None:
        """Append a range without making an object of it."""
        self._numbers.frombytes(_pack(start, end, object_id, size, time_ms))

    def copy(self) -> Ranges:
        """A copy, which later changes don't touch."""
        return self[:]

    @property
    def object_ids(self) -> array[int]:
        """The object of each."""
        return self._numbers[_OBJECT_ID::_FIELDS]

    @property
    def size_bytes(self) -> int:
        """Payload of all together."""
        return sum(self._numbers[_SIZE::_FIELDS])

    def find(self, offset: int) -> int:
        """Index of the range that holds ``offset``, or of the first one after it."""
        numbers = self._numbers
        if len(numbers) <= _COPIED_MAX:
            return bisect_right(numbers[_END::_FIELDS], offset)
        return bisect_right(range(len(self)), offset, key=lambda i: numbers[i * _FIELDS + _END])

    def since(self, time_ms: int) -> list[StreamRange]:
        """The ranges whose greatest timestamp is ``time_ms`` or later, as they are now."""
        return [self[i] for i, found in enumerate(self._numbers[_TIME_MS::_FIELDS]) if found >= time_ms]

    def drop(self, offset: int) -> array[int]:
        """Remove the ranges that end at or before ``offset``; returns the object of each."""
        numbers = self._numbers
        if not numbers or numbers[_END] > offset:
            return array("q")
        end = self.find(offset) * _FIELDS
        object_ids = numbers[_OBJECT_ID:end:_FIELDS]
        del numbers[:end]
        return object_ids

    def to_bytes(self) -> bytes:
        """The numbers in little-endian order."""
        numbers = self._numbers
        if sys.byteorder == "big":
            numbers = numbers[:]
            numbers.byteswap()
        return numbers.tobytes()

    @classmethod
    def of(cls, stored: Any) -> Ranges:
        """Ranges from what :meth:`to_bytes` gave, or a list of lists (version 1). Raises ValueError, TypeError."""
        ranges = cls()
        if isinstance(stored, bytes):
            if len(stored) % (_FIELDS * 8):
                raise ValueError("ranges aren't whole")
            ranges._numbers.frombytes(stored)
            if sys.byteorder == "big":
                ranges._numbers.byteswap()
        else:
            for one in stored:
                ranges.append(msgspec.convert(one, StreamRange))
        return ranges
