"""The records of one batch as bytes: inflated, and walked from front to back. Pure.

``walk`` says whether records are in order. Native code does it where it was built (``penstock.wire.native_code``);
``scan`` here is the reference, the fallback, and alone says what is wrong.

The walks in Python read varints in line, one and two bytes long, since a function call per number would double their
cost. Positions only grow, so a read beyond the end is an IndexError, which each public function turns into
BatchError. They work on bytes: indexing those is faster than indexing a memoryview.
"""

from __future__ import annotations

__all__ = (
    "INFLATED_BYTES_MAX",
    "long_varint",
    "malformed",
    "plain_records",
    "record_cut",
    "scan",
    "skim",
    "walk",
)

from collections.abc import Iterator
from typing import Final, NoReturn

from penstock.wire import native_code
from penstock.wire.compression import (
    CODEC_NONE,
    Buffer,
    CompressionError,
    InflateLimitError,
    UnknownCodecError,
    check_readable,
    decompress,
)
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import (
    HEADER_BYTES,
    LENGTH_MIN,
    BatchError,
    BatchHeader,
)

#: The most that one batch may inflate to, by default.
INFLATED_BYTES_MAX: Final = 128 * 1024 * 1024
# Below this size no ratio is suspicious: a megabyte of one letter packs into some fifty bytes.
_INFLATED_BYTES_FREE: Final = 16 * 1024 * 1024
_INFLATE_RATIO_MAX: Final = 1000

_INT64_MIN: Final = -(1 << 63)
_INT64_MAX: Final = (1 << 63) - 1


def plain_records(
    batch: memoryview,
    header: BatchHeader,
    inflated_bytes_max: int = INFLATED_BYTES_MAX,
    *,
    from_client: bool = False,
) -> bytes | memoryview:
    """The plain record bytes of one batch: a view of it, or what its records inflate to.

    At most ``inflated_bytes_max``, and at most a thousandfold of the batch (but 16 MiB are never suspicious). What
    comes ``from_client`` has to be what all clients can inflate.

    Raises:
        BatchError: MESSAGE_TOO_LARGE if they inflate to more, INVALID_RECORD if the batch is cut or isn't what its
            codec says, UNSUPPORTED_COMPRESSION_TYPE for an unknown codec.
    """
    if header.length < LENGTH_MIN or header.size_bytes > len(batch):
        raise record_cut()
    packed = batch[HEADER_BYTES : header.size_bytes]
    codec = header.codec
    if codec == CODEC_NONE:
        return packed
    room = min(inflated_bytes_max, max(_INFLATED_BYTES_FREE, len(packed) * _INFLATE_RATIO_MAX))
    try:
        if from_client:
            check_readable(codec, packed)
        return decompress(codec, packed, room)
    except UnknownCodecError as error:
        raise BatchError(str(error), ErrorCode.UNSUPPORTED_COMPRESSION_TYPE) from error
    except CompressionError as error:
        code = (
            ErrorCode.MESSAGE_TOO_LARGE if isinstance(error, InflateLimitError) else ErrorCode.INVALID_RECORD
        )
        raise BatchError(f"records can't be inflated: {error}", code) from error


def record_cut() -> BatchError:
    """The error for records that go on beyond the end of their batch."""
    return BatchError("record batch ends in the middle of a record", ErrorCode.INVALID_RECORD)


def malformed(what: str, index: int) -> NoReturn:
    """Raise the error for the record at ``index`` of its batch."""
    raise BatchError(f"malformed record, {what} batch_index={index}", ErrorCode.INVALID_RECORD)


def long_varint(data: bytes, pos: int, bits: int = 32) -> tuple[int, int]:
    """The unsigned varint at ``pos`` (not yet zigzag-decoded), and the position after it.

    Kafka reads ``bits`` = 32 from at most five bytes, and 64 (timestamps) from at most ten. Java drops what is beyond
    them without a word, so that two readers could understand different records: such numbers are refused here.

    Raises:
        BatchError: the number is longer. IndexError: it is cut.
    """
    value = data[pos]
    pos += 1
    if value < 0x80:
        return value, pos
    value &= 0x7F
    shift, end = 7, pos + bits // 7
    while pos < end:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> bits:
                break
            return value, pos
        shift += 7
    raise BatchError(f"a varint has more than its {bits} bits pos={pos}", ErrorCode.INVALID_RECORD)


def walk(data: Buffer, start: int, count: int) -> tuple[int, int, bool]:
    """Check the structure of ``count`` records that fill ``data`` from ``start`` on.

    Returns the smallest and the largest timestamp delta, and whether any key is null. In order are records whose
    offset deltas run 0..count-1, whose keys, values and headers fill their lengths, and after which nothing is left.
    Costs 10 ns per record with native code, which lets go of the GIL for more than a megabyte; 0.8 us without.

    Raises:
        BatchError: INVALID_RECORD.
    """
    native = native_code.walk
    if native is not None:
        facts = native(data, start, count)
        if facts is not None:
            return facts
    return scan(bytes(data[start:] if start else data), count)


def scan(data: bytes, count: int) -> tuple[int, int, bool]:
    """``walk`` in Python, and the one that knows the errors."""
    try:
        return _scan(data, count)
    except IndexError:
        raise record_cut() from None


def _scan(data: bytes, count: int) -> tuple[int, int, bool]:  # noqa: C901 - see above
    pos, size = 0, len(data)
    low, high = _INT64_MAX, _INT64_MIN
    null_key = False
    for index in range(count):
        n = data[pos]  # record length
        pos += 1
        if n >= 0x80:
            m = data[pos]
            if m < 0x80:
                n += (m << 7) - 0x80
                pos += 1
            else:
                n, pos = long_varint(data, pos - 1)
        end = pos + (n >> 1)
        if n & 1 or end > size:
            malformed("its length leaves the batch", index)
        if (
            data[pos] >= 0x80
        ):  # none is in use, but some clients read them as a number, which goes on after this one
            malformed("its attributes aren't one byte for all clients", index)
        n = data[pos + 1]  # timestamp delta
        pos += 2
        if n >= 0x80:
            m = data[pos]
            if m < 0x80:
                n += (m << 7) - 0x80
                pos += 1
            else:
                n, pos = long_varint(data, pos - 1, 64)
        n = (n >> 1) ^ -(n & 1)
        if n > high:
            high = n
        if n < low:
            low = n
        n = data[pos]  # offset delta
        pos += 1
        if n >= 0x80:
            m = data[pos]
            if m < 0x80:
                n += (m << 7) - 0x80
                pos += 1
            else:
                n, pos = long_varint(data, pos - 1)
        if n != index << 1:
            malformed("offsets must run from 0 in steps of 1", index)
        n = data[pos]  # key length
        pos += 1
        if n >= 0x80:
            m = data[pos]
            if m < 0x80:
                n += (m << 7) - 0x80
                pos += 1
            else:
                n, pos = long_varint(data, pos - 1)
        if n & 1:
            if n != 1:
                malformed("its key length is negative", index)
            null_key = True
        else:
            pos += n >> 1
        n = data[pos]  # value length
        pos += 1
        if n >= 0x80:
            m = data[pos]
            if m < 0x80:
                n += (m << 7) - 0x80
                pos += 1
            else:
                n, pos = long_varint(data, pos - 1)
        if n & 1:
            if n != 1:
                malformed("its value length is negative", index)
        else:
            pos += n >> 1
        n = data[pos]  # header count
        pos += 1
        if n:
            pos = _skip_headers(data, pos - 1, index)
        if pos != end:
            malformed("its fields don't fill its length", index)
    if pos != size:
        raise BatchError(
            f"bytes are left after the last record count={count} left_bytes={size - pos}",
            ErrorCode.INVALID_RECORD,
        )
    return low, high, null_key


def _skip_headers(data: bytes, pos: int, index: int) -> int:
    n, pos = long_varint(data, pos)
    if n & 1:
        malformed("its header count is negative", index)
    for _ in range(n >> 1):
        n, pos = long_varint(data, pos)
        if n & 1:
            malformed("a header without key", index)
        pos += n >> 1
        n, pos = long_varint(data, pos)
        if n & 1:
            if n != 1:
                malformed("a header value's length is negative", index)
        else:
            pos += n >> 1
    return pos


def skim(data: bytes, count: int) -> Iterator[tuple[int, int, bool]]:
    """(offset delta, timestamp delta, whether the key is null) of each record, skipping the rest by its length.

    Raises:
        BatchError: the records don't parse as far as that; those before have been yielded.
    """
    pos, size = 0, len(data)
    for index in range(count):
        try:
            n, pos = long_varint(data, pos)
            end = pos + (n >> 1)
            if n & 1 or end > size:
                malformed("its length leaves the batch", index)
            time, pos = long_varint(data, pos + 1, 64)
            offset, pos = long_varint(data, pos)
            key, pos = long_varint(data, pos)
        except IndexError:
            raise record_cut() from None
        if pos > end:
            malformed("its fields leave its length", index)
        yield (offset >> 1) ^ -(offset & 1), (time >> 1) ^ -(time & 1), key == 1
        pos = end
