"""The format of the engine's WAL entries: a fixed header, then the payload::

    header, 41 bytes
        0   1  version, 1
        1   8  stream id; 0 is a mark (``penstock.stream.marks``)
        9   8  epoch of the stream: the metadata index at which it was opened
       17   8  base offset
       25   8  next offset
       33   8  time, ms

The payload in a partition's log stream is one record batch, in its state stream a snapshot of its producers. Integers
are big-endian and signed, but for the version. The WAL frames and checksums entries; nothing is checksummed here.

The time of an entry is its greatest timestamp. Records without any have the time of their append instead, as a number
below every timestamp: the greatest time of some entries is then still a timestamp if there is one, the time of
the newest append if not, and no lookup by timestamp finds it.
"""

from __future__ import annotations

__all__ = (
    "ENTRY_VERSION",
    "HEADER",
    "WalHeader",
    "decode_header",
    "encode_header",
    "pack_header",
    "retention_time_ms",
    "untimed",
)

from struct import Struct
from typing import NamedTuple

from penstock.errors import CorruptError, NewerVersionError
from penstock.limits import STREAM_HEADER_BYTES

ENTRY_VERSION = 1
#: Added to the time of an append; timestamps from here to -1 don't occur.
_UNTIMED_BASE = -(2**62)

HEADER = Struct(
    ">"
    "B"  # version
    "q"  # stream id
    "q"  # stream epoch
    "q"  # base offset
    "q"  # next offset
    "q"  # time, ms: see above
)
assert HEADER.size == STREAM_HEADER_BYTES


#: ``encode_header`` without its call; takes the version first.
pack_header = HEADER.pack


class WalHeader(NamedTuple):
    """Which records an entry holds."""

    stream_id: int
    epoch: int
    base_offset: int
    next_offset: int
    time_ms: int


def untimed(append_ms: int) -> int:
    """The time of an entry whose records have no timestamp, appended at ``append_ms`` (wall clock)."""
    return _UNTIMED_BASE + append_ms


def retention_time_ms(time_ms: int) -> int:
    """The time that retention goes by: the greatest timestamp, else that of the newest append, else -1 (unknown)."""
    if time_ms >= 0:
        return time_ms
    return max(-1, time_ms - _UNTIMED_BASE) if time_ms < _UNTIMED_BASE // 2 else -1


def encode_header(stream_id: int, epoch: int, base_offset: int, next_offset: int, time_ms: int) -> bytes:
    """The header's bytes."""
    return HEADER.pack(ENTRY_VERSION, stream_id, epoch, base_offset, next_offset, time_ms)


def decode_header(data: memoryview, position: int) -> WalHeader:
    """The header of the entry at WAL ``position``. Raises CorruptError if it is none, NewerVersionError."""
    if len(data) and data[0] > ENTRY_VERSION:
        raise NewerVersionError.of(
            "an entry of the wal", f"position={position}", version=data[0], known=ENTRY_VERSION
        )
    if len(data) < HEADER.size or data[0] != ENTRY_VERSION:
        raise CorruptError(
            f"WAL entry isn't one of penstock: position={position} size={len(data)} "
            f"version={data[0] if len(data) else None}"
        )
    header = WalHeader(*HEADER.unpack_from(data)[1:])
    if not 0 <= header.base_offset <= header.next_offset:
        # a composite log puts a header of its own in front of what a broker appended, which may begin alike
        raise CorruptError(
            f"WAL entry isn't one of penstock: position={position} size={len(data)} "
            f"range=[{header.base_offset},{header.next_offset})"
        )
    return header
