"""What the engine writes into a WAL entry: a fixed header, then the payload.

The WAL frames and checksums entries; nothing is checksummed twice here.
"""

from __future__ import annotations

__all__ = ("HEADER", "WalHeader", "decode_header", "encode_header")

from struct import Struct
from typing import NamedTuple

from penstock.errors import CorruptError

ENTRY_VERSION = 1

HEADER = Struct(
    ">"
    "B"  # version
    "q"  # stream id
    "q"  # stream epoch
    "q"  # base offset
    "q"  # next offset
    "q"  # greatest timestamp, ms
)


class WalHeader(NamedTuple):
    """Which records an entry holds."""

    stream_id: int
    epoch: int
    base_offset: int
    next_offset: int
    time_ms: int


def encode_header(stream_id: int, epoch: int, base_offset: int, next_offset: int, time_ms: int) -> bytes:
    """The header's bytes."""
    return HEADER.pack(ENTRY_VERSION, stream_id, epoch, base_offset, next_offset, time_ms)


def decode_header(data: memoryview, position: int) -> WalHeader:
    """The header of the entry at WAL ``position``. Raises CorruptError if it is none."""
    if len(data) < HEADER.size or data[0] != ENTRY_VERSION:
        raise CorruptError(
            f"WAL entry isn't one that this penstock reads: position={position} size={len(data)} "
            f"version={data[0] if len(data) else None} supported={ENTRY_VERSION}"
        )
    fields = HEADER.unpack_from(data)
    return WalHeader(*fields[1:])
