"""The runtime of the generated codecs: error classes, varints, tags, arrays and the segment writer.

Every helper here is called with lengths a stranger wrote, so each checks its length against the bytes that
are left before it allocates anything.
"""

from __future__ import annotations

__all__ = (
    "MALFORMED",
    "ZERO_UUID",
    "Buffer",
    "DecodeError",
    "EncodeError",
    "Records",
    "Writer",
    "bad_length",
    "check_text",
    "decode_fixed_array",
    "decode_uuid_array",
    "decode_uvarint",
    "encode_uvarint",
    "malformed",
    "missing",
    "records_size",
    "skip_tags",
    "tag_count",
    "tag_header",
    "too_many",
    "uvarint_rest",
    "wrong_tag_size",
)

import codecs
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any, TypeAlias

from penstock.errors import PenstockError
from penstock.spi.buffers import Buffer

# Buffers are bytes as messages carry them. Decoding gives memoryviews into the frame: copy what outlives the frame.

Records: TypeAlias = bytes | bytearray | memoryview | Sequence[Buffer]
"""Record batches on their way out: one buffer, or several that follow each other on the wire uncopied."""

ZERO_UUID = bytes(16)
"""The uuid that stands for "none" on the wire."""

MALFORMED = (struct.error, IndexError, ValueError, OverflowError)
"""What reading past the end raises inside a decoder, before it becomes a DecodeError."""

TEXT_BYTES_MAX = 32_767
"""Kafka's limit for a string, however its length is encoded."""

_JAVA_SIZE_END = 2**31
_FLAT_MIN = 1_000
_FLAT_CODES = "bhiq"

TAGS_MAX = 1_000
"""Tagged fields of one structure."""


_pack_2_bytes = struct.Struct("BB").pack
_pack_3_bytes = struct.Struct("BBB").pack


class DecodeError(PenstockError):
    """The bytes are not a well-formed message: answer nothing, close the connection (never retryable)."""


class EncodeError(PenstockError):
    """A message holds a value its wire version can't carry: a bug of whoever built the message."""


def malformed(message: str, cause: Exception) -> DecodeError:
    """The error for a message that ended early."""
    return DecodeError(f"message ends before its last field: message={message}")


def bad_length(field: str, length: int, left: int) -> DecodeError:
    """The error for a length or count that is negative without leave, or larger than what is left."""
    if length < 0:
        return DecodeError(f"field is null but may not be: field={field} length={length}")
    return DecodeError(f"field is longer than its message: field={field} length={length} bytes_left={left}")


def too_many(field: str, count: int, most: int) -> DecodeError:
    """The error for an array of more elements than anybody has a use for."""
    return DecodeError(f"field has more elements than are taken: field={field} count={count} most={most}")


def _replace_as_java(error: UnicodeError) -> tuple[str, int]:
    """Put U+FFFD for what isn't UTF-8, as many as Java's ``new String(bytes, UTF_8)`` does.

    So Kafka reads every string of a request. Python's own ``replace`` differs in one case: it makes three of a
    surrogate in three bytes, where Java makes one.
    """
    assert isinstance(error, UnicodeDecodeError)
    data, start, end = error.object, error.start, error.end
    if data[start] == 0xED and b"\xa0" <= data[start + 1 : start + 2] <= b"\xbf":
        end = start + 2
        if b"\x80" <= data[end : end + 1] <= b"\xbf":
            end += 1
    return "\N{REPLACEMENT CHARACTER}", end


codecs.register_error("kafka", _replace_as_java)


def check_text(field: str, size: int, text: str) -> None:
    """Refuse what Kafka can't read, or could not send back: more bytes than a string has on the wire.

    Raises DecodeError.
    """
    if size > TEXT_BYTES_MAX or len(text.encode()) > TEXT_BYTES_MAX:
        raise DecodeError(f"text is too long: field={field} length={size} length_max={TEXT_BYTES_MAX}")


def wrong_tag_size(field: str) -> DecodeError:
    """The error for a tagged field whose content doesn't fill its announced size (KIP-482)."""
    return DecodeError(f"tagged field does not fill its announced size: field={field}")


def missing(field: str) -> EncodeError:
    """The error for None in a field that the encoded version can't carry as null."""
    return EncodeError(f"field may not be null in this version: field={field}")


def uvarint_rest(buf: memoryview, pos: int, first: int) -> tuple[int, int]:
    """Finish an unsigned varint whose first byte (>= 0x80) is already read; returns (value, next position).

    It is a length plus one, or a number of tagged fields. Java has them in 32 bits with a sign: what is more than
    2**31 is less than nothing there, and read as null, or as none. So it is 0 here.

    Raises DecodeError past 32 bits; IndexError at the end of the buffer, which the caller translates.
    """
    second = buf[pos]
    if second < 0x80:
        return first & 0x7F | second << 7, pos + 1
    third = buf[pos + 1]
    value = first & 0x7F | (second & 0x7F) << 7 | (third & 0x7F) << 14
    if third < 0x80:
        return value, pos + 2
    fourth = buf[pos + 2]
    value |= (fourth & 0x7F) << 21
    if fourth < 0x80:
        return value, pos + 3
    fifth = buf[pos + 3]
    if fifth > 0x0F:
        raise DecodeError(f"varint exceeds 32 bits: first_byte={first} fifth_byte={fifth}")
    value |= fifth << 28
    return (value if value <= _JAVA_SIZE_END else 0), pos + 4


def decode_uvarint(buf: memoryview, pos: int) -> tuple[int, int]:
    """Read one unsigned varint (KIP-482); returns (value, next position)."""
    value = buf[pos]
    if value < 0x80:
        return value, pos + 1
    return uvarint_rest(buf, pos + 1, value)


def encode_uvarint(out: bytearray, value: int) -> None:
    """Append one unsigned varint."""
    if value < 0x80:
        out.append(value)
    elif value < 0x4000:
        out += _pack_2_bytes(value & 0x7F | 0x80, value >> 7)
    elif value < 0x20_0000:
        out += _pack_3_bytes(value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14)
    else:
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)


def tag_header(buf: memoryview, pos: int, end: int) -> tuple[int, int, int]:
    """Read one tagged field's header; returns (tag, start of its content, end of its content)."""
    tag, pos = decode_uvarint(buf, pos)
    if not tag and buf[pos - 1]:
        tag = -1  # less than nothing, see uvarint_rest: one that nobody knows
    size, pos = decode_uvarint(buf, pos)
    if size > end - pos or (not size and buf[pos - 1]):
        raise bad_length("tagged field", size or -1, end - pos)
    return tag, pos, pos + size


def tag_count(buf: memoryview, pos: int, first: int) -> tuple[int, int]:
    """Finish the number of tagged fields, of which ``first`` is the first byte; returns (number, next position).

    Each has two bytes or more and takes some tenths of a microsecond to skip: of a megabyte of them a header alone,
    which is read before anything else is known, would keep everybody waiting. No message has as many as are taken.
    """
    count = first
    if first >= 0x80:
        count, pos = uvarint_rest(buf, pos, first)
    if count > TAGS_MAX:
        raise too_many("tagged fields", count, TAGS_MAX)
    return count, pos


def skip_tags(buf: memoryview, pos: int, end: int, count: int) -> int:
    """Skip ``count`` tagged fields nobody here knows (KIP-482); ``count`` may still be a varint's first byte."""
    if count >= 0x80:
        count, pos = tag_count(buf, pos, count)
    if count * 2 > end - pos:
        raise bad_length("tagged fields", count, end - pos)
    for _ in range(count):
        _, _, pos = tag_header(buf, pos, end)
    return pos


def decode_fixed_array(buf: memoryview, pos: int, count: int, code: str) -> Sequence[Any]:
    """``count`` (already checked against what is left) numbers of one struct format ``code``; a list if they are few.

    Many are a flat array: as objects 100,000 partitions take milliseconds when they are made, when they are dropped,
    and in each pass of the garbage collector that comes by their list.
    """
    if count < _FLAT_MIN or code not in _FLAT_CODES:
        return list(struct.unpack_from(f">{count}{code}", buf, pos))
    numbers = array(code)
    numbers.frombytes(buf[pos : pos + count * numbers.itemsize])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def decode_uuid_array(buf: memoryview, pos: int, count: int) -> list[bytes]:
    """``count`` (already checked against what is left) uuids."""
    return [bytes(buf[at : at + 16]) for at in range(pos, pos + 16 * count, 16)]


class Writer:
    """Collects one outgoing message: small parts in ``data``, records beside it, uncopied.

    ``splices`` holds (offset in ``data``, records) in ascending order: the records go out before that offset.
    They must stay unchanged until sent.
    """

    __slots__ = ("data", "splices")

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.splices: list[tuple[int, Records]] = []

    def size(self) -> int:
        """Bytes of the whole message so far."""
        size = len(self.data)
        for _, records in self.splices:
            size += records_size(records)
        return size

    def segments(self) -> list[Buffer]:
        """The message as buffers in wire order, for ``writelines``; none of them is empty."""
        if not self.splices:
            return [self.data]
        view = memoryview(self.data)
        result: list[Buffer] = []
        done = 0
        for at, records in self.splices:
            if not records_size(records):
                continue
            if at > done:
                result.append(view[done:at])
                done = at
            if isinstance(records, (memoryview, bytes, bytearray)):
                result.append(records)
            else:
                result += filter(len, records)  # of small batches there may be thousands
        if done < len(view):
            result.append(view[done:])
        return result


def records_size(records: Records) -> int:
    """Bytes of ``records``."""
    if isinstance(records, (memoryview, bytes, bytearray)):
        return len(records)
    return sum(map(len, records))
