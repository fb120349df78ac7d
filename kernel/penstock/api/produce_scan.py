"""Counting the partitions of a Produce request before it is decoded.

A partition without records takes 6 bytes on the wire and a hundred times that as objects, so a request as large as a
frame may be would take gigabytes. Counting walks over the request without making anything, and stops at the limit.
"""

from __future__ import annotations

__all__ = ("count_parts", "has_too_many_partitions")

import struct
from typing import Final

from penstock.errors import PenstockError
from penstock.wire.registry import is_flexible

_PRODUCE: Final = 0
_TOPIC_IDS_VERSION: Final = 13
_ACKS_AND_TIMEOUT_BYTES: Final = 6
#: A partition takes so many bytes of a request at least.
_PARTITION_BYTES_MIN: Final = 6

_unpack_int16 = struct.Struct(">h").unpack_from
_unpack_int32 = struct.Struct(">i").unpack_from


class _TooManyError(PenstockError):
    pass


def has_too_many_partitions(frame: memoryview, body_pos: int, version: int, maximum: int) -> bool:
    """Whether the request has more than ``maximum`` topics, or partitions and tagged fields. False for what is
    malformed anyway.
    """
    return count_parts(frame, body_pos, version, maximum) is None


def count_parts(frame: memoryview, body_pos: int, version: int, maximum: int) -> int | None:
    """How many topics, partitions and tagged fields there are to be decoded; None as ``has_too_many_partitions``.

    Of what is malformed: as many as there may be before the decoder finds out.
    """
    try:
        if is_flexible(_PRODUCE, version):
            topics, left = _walk_flexible(frame, body_pos, version, maximum)
        else:
            topics, left = _walk(frame, body_pos, maximum)
    except _TooManyError:
        return None
    except (struct.error, IndexError):  # the decoder says what is wrong
        return min(len(frame) // _PARTITION_BYTES_MIN, maximum)
    return topics + maximum - left


def _walk(frame: memoryview, pos: int, left: int) -> tuple[int, int]:
    """The topics, and what is left of the partitions."""
    (size,) = _unpack_int16(frame, pos)
    pos += 2 + max(size, 0) + _ACKS_AND_TIMEOUT_BYTES
    (topics,) = _unpack_int32(frame, pos)
    pos += 4
    if topics > left:
        raise _TooManyError
    for _ in range(topics):
        (size,) = _unpack_int16(frame, pos)
        pos += 2 + max(size, 0)
        (partitions,) = _unpack_int32(frame, pos)
        pos += 4
        left -= max(partitions, 0)
        if left < 0:
            raise _TooManyError
        for _ in range(partitions):
            (size,) = _unpack_int32(frame, pos + 4)
            pos += 8 + max(size, 0)
    return max(topics, 0), left


def _walk_flexible(frame: memoryview, pos: int, version: int, left: int) -> tuple[int, int]:
    size, pos = _uvarint(frame, pos)
    pos += max(size - 1, 0) + _ACKS_AND_TIMEOUT_BYTES
    topics, pos = _uvarint(frame, pos)
    if topics - 1 > left:
        raise _TooManyError
    for _ in range(topics - 1):
        if version >= _TOPIC_IDS_VERSION:
            pos += 16
        else:
            size, pos = _uvarint(frame, pos)
            pos += max(size - 1, 0)
        partitions, pos = _uvarint(frame, pos)
        left -= max(partitions - 1, 0)
        if left < 0:
            raise _TooManyError
        for _ in range(partitions - 1):
            size, pos = _uvarint(frame, pos + 4)
            pos, left = _skip_tags(frame, pos + max(size - 1, 0), left)
        pos, left = _skip_tags(frame, pos, left)
    _, left = _skip_tags(frame, pos, left)
    return max(topics - 1, 0), left


def _skip_tags(frame: memoryview, pos: int, left: int) -> tuple[int, int]:
    """Where the tagged fields end, and what is left when each counts as a partition: they take as long to skip."""
    count, pos = _uvarint(frame, pos)
    if count > left:
        raise _TooManyError
    for _ in range(count):
        _, pos = _uvarint(frame, pos)
        size, pos = _uvarint(frame, pos)
        pos += size
    return pos, left - count


def _uvarint(frame: memoryview, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = frame[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 28:
            return value, pos
        shift += 7
