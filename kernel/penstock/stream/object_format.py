"""The bytes of an object (version 1): data blocks, one index block, a footer. Big-endian; every byte checksummed::

    +------------+------------+-----+-------------+--------+
    | data block | data block | ... | index block | footer |
    +------------+------------+-----+-------------+--------+
    data block  = block header, then entries and fillers
    entry       = entry header, then the payload
    filler      = entry header with -1 for both offsets, then zeros: it makes a large payload lie where it is
                  written without a copy
    index block = an index row for each data block, in (stream, offset) order

    block header, 20 bytes
        0   4  magic "PSB1"
        4   4  entries, without fillers
        8   8  length of all that follows this header
       16   4  CRC-32C of the bytes before and of all that follows

    entry header, 28 bytes
        0   8  base offset
        8   8  next offset
       16   8  greatest timestamp, ms (``penstock.stream.entry`` says what stands there without one)
       24   4  length of the payload

    index row, 48 bytes
        0   8  stream id
        8   8  base offset of the block's first entry
       16   8  next offset of its last one
       24   8  greatest timestamp of its entries, ms; -1 if none has one
       32   8  position of the block in the object
       40   8  size of the block with its header

    footer, 40 bytes
        0   8  position of the index block
        8   8  size of the index block
       16   4  CRC-32C of the index block
       20   8  object id
       28   8  magic "PSOBJ001"
       36   4  CRC-32C of the bytes before

A data block holds entries of one stream. An object with blocks of one stream is called a stream object, one
with several a stream set object; the format is the same.

The version is in the magics, as digits. Whatever changes in a later version, an object ends with the magic of its
footer and four bytes more.
"""

from __future__ import annotations

__all__ = (
    "FOOTER",
    "IndexRow",
    "ObjectIndex",
    "ObjectWriter",
    "decode_block",
    "decode_footer",
    "decode_index",
    "object_key",
    "verify_block",
)

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from struct import Struct, iter_unpack
from typing import NamedTuple

from penstock.checksum import checksum, combine, yielding_checksum
from penstock.direct_io import BLOCK_BYTES, filler_bytes
from penstock.errors import CorruptError, NewerVersionError
from penstock.spi.log_cache import StreamEntry
from penstock.spi.plugin import Buffer

#: Both offsets of a filler.
_FILLER = -1
BLOCK_MAGIC = 0x50534231  # "PSB1"
FOOTER_MAGIC = 0x50534F424A303031  # "PSOBJ001"
_FOOTER_VERSIONS = re.compile(rb"PSOBJ(\d{3})")
_FOOTER_MAGIC_AT = slice(-12, -4)
_VERSION = 1

BLOCK_HEADER = Struct(
    ">"
    "I"  # magic
    "I"  # entry count
    "Q"  # length of the entries, bytes
    "I"  # CRC-32C of the header up to here, then of the entries
)
_BLOCK_CRC_POS = BLOCK_HEADER.size - 4
ENTRY_HEADER = Struct(
    ">"
    "q"  # base offset
    "q"  # next offset
    "q"  # greatest timestamp, ms
    "I"  # payload length
)
INDEX_ROW = Struct(
    ">"
    "q"  # stream id
    "q"  # start offset
    "q"  # end offset
    "q"  # greatest timestamp, ms
    "Q"  # position of the block in the object
    "Q"  # size of the block with its header
)
FOOTER = Struct(
    ">"
    "Q"  # position of the index
    "Q"  # size of the index
    "I"  # CRC-32C of the index
    "q"  # object id
    "Q"  # magic
    "I"  # CRC-32C of the footer up to here
)


def object_key(object_id: int) -> str:
    """The key of an object: its id's hex digits, lowest first, so that neighbours spread over prefixes."""
    return f"objects/{f'{object_id:016x}'[::-1]}"


class IndexRow(NamedTuple):
    """One data block."""

    stream_id: int
    start: int
    end: int
    time_ms: int
    position: int
    size: int


class ObjectIndex:
    """The index of one object: blocks in (stream, offset) order."""

    __slots__ = ("object_id", "rows", "size")

    def __init__(self, object_id: int, rows: list[IndexRow], size: int) -> None:
        self.object_id = object_id
        self.rows = rows
        #: Bytes of the index block, for accounting.
        self.size = size

    def blocks_from(self, stream_id: int, offset: int) -> Iterator[IndexRow]:
        """Blocks of the stream from the one that holds ``offset`` (or the first after it) on."""
        position = bisect_right(self.rows, (stream_id, offset), key=lambda row: (row.stream_id, row.start))
        if (
            position
            and self.rows[position - 1].stream_id == stream_id
            and offset < self.rows[position - 1].end
        ):
            position -= 1
        for i in range(position, len(self.rows)):
            if self.rows[i].stream_id != stream_id:
                return
            yield self.rows[i]


class ObjectWriter:
    """Collects entries and gives the object's bytes as buffers, without copying a payload.

    Streams come one after the other, entries of a stream in offset order. ``direct_io``: fillers put large payloads
    where they can be written without a copy, for a store that has that capability.
    """

    def __init__(self, object_id: int, block_bytes: int, *, direct_io: bool = False) -> None:
        self.object_id = object_id
        self._block_bytes = block_bytes
        self._direct_io = direct_io
        self._parts: list[Buffer] = []
        self._rows: list[IndexRow] = []
        self._size = 0
        self._taken = 0

    def add(self, stream_id: int, entries: Sequence[StreamEntry]) -> None:
        """Add the entries of one stream, cut into data blocks of about ``block_bytes``."""
        for _ in self.add_blocks(stream_id, entries):
            pass

    def add_blocks(self, stream_id: int, entries: Sequence[StreamEntry]) -> Iterator[tuple[int, int]]:
        """``add``, block by block: (payload bytes of it, greatest time of all entries so far) when it is added.

        Times of entries without timestamps are below -1; a block's row has -1 for them.
        """
        first = 0
        size = 0
        time_ms = entries[0].time_ms
        for i, entry in enumerate(entries):
            size += len(entry.data)
            time_ms = max(time_ms, entry.time_ms)
            if size >= self._block_bytes or i == len(entries) - 1:
                self._add_block(stream_id, entries[first : i + 1])
                yield size, time_ms
                first, size = i + 1, 0

    @property
    def waiting_bytes(self) -> int:
        """What was added and not taken."""
        return self._size - self._taken

    def take(self) -> list[Buffer]:
        """What was added since the last call, to be written behind that; ``finish`` gives the rest."""
        parts, self._parts = self._parts, []
        self._taken = self._size
        return parts

    def _add_block(self, stream_id: int, entries: Sequence[StreamEntry]) -> None:
        parts: list[Buffer] = []
        length = crc = 0
        time_ms = -1
        for entry in entries:
            size = len(entry.data)
            fields = ENTRY_HEADER.pack(entry.base_offset, entry.next_offset, entry.time_ms, size)
            if self._direct_io:
                position = self._size + BLOCK_HEADER.size + length
                fields = _filler(position, entry.data) + fields
            crc = checksum(fields, crc)
            if entry.checksum is None:
                crc = checksum(entry.data, crc)
            else:
                crc = combine(crc, entry.checksum, size)
            parts.append(fields)
            parts.append(entry.data)
            length += len(fields) + size
            time_ms = max(time_ms, entry.time_ms)
        header = BLOCK_HEADER.pack(BLOCK_MAGIC, len(entries), length, 0)[:_BLOCK_CRC_POS]
        crc = combine(checksum(header), crc, length)
        self._parts.append(header + crc.to_bytes(4, "big"))
        self._parts.extend(parts)
        size = BLOCK_HEADER.size + length
        self._rows.append(
            IndexRow(stream_id, entries[0].base_offset, entries[-1].next_offset, time_ms, self._size, size)
        )
        self._size += size

    def finish(self) -> tuple[list[Buffer], int]:
        """The object, or what wasn't taken of it, as buffers, and the object's size. Nothing can be added then."""
        index = b"".join(INDEX_ROW.pack(*row) for row in self._rows)
        footer = FOOTER.pack(self._size, len(index), checksum(index), self.object_id, FOOTER_MAGIC, 0)
        footer = footer[:-4] + checksum(footer[:-4]).to_bytes(4, "big")
        return [*self._parts, index, footer], self._size + len(index) + len(footer)


def _filler(position: int, data: Buffer) -> bytes:
    """What fills up from ``position`` of the object, so that ``data``, behind its header, lies right."""
    size = filler_bytes(position + ENTRY_HEADER.size, (data,))
    if not size:
        return b""
    if size < ENTRY_HEADER.size:
        size += BLOCK_BYTES
    length = size - ENTRY_HEADER.size
    return ENTRY_HEADER.pack(_FILLER, _FILLER, -1, length) + bytes(length)


def decode_footer(data: Buffer, object_id: int) -> tuple[int, int, int]:
    """(position, size, CRC-32C) of the index, from the object's last bytes.

    Raises CorruptError, NewerVersionError.
    """
    tail = memoryview(data)[-FOOTER.size :]
    versioned = _FOOTER_VERSIONS.fullmatch(tail[_FOOTER_MAGIC_AT])
    if versioned is not None and int(versioned[1]) > _VERSION and not _is_damaged(tail):
        raise NewerVersionError.of(
            "an object", f"object_id={object_id}", version=int(versioned[1]), known=_VERSION
        )
    if len(tail) < FOOTER.size:
        raise CorruptError(f"object is too short to have a footer: object_id={object_id} size={len(tail)}")
    position, size, crc, found_id, magic, footer_crc = FOOTER.unpack(tail)
    if magic != FOOTER_MAGIC or footer_crc != checksum(tail[:-4]):
        raise CorruptError(f"object footer fails its checksum: object_id={object_id}")
    if found_id != object_id:
        raise CorruptError(f"object footer names another object: object_id={object_id} found={found_id}")
    return position, size, crc


def _is_damaged(footer: memoryview) -> bool:
    """Whether the footer's checksum is that of this version, so that only the digits of the version are wrong."""
    known = bytearray(footer)
    known[_FOOTER_MAGIC_AT] = FOOTER_MAGIC.to_bytes(8, "big")
    return checksum(known[:-4]) == int.from_bytes(known[-4:], "big")


def decode_index(data: Buffer, crc: int, object_id: int) -> ObjectIndex:
    """The index of an object. Raises CorruptError."""
    if checksum(data) != crc or len(data) % INDEX_ROW.size:
        raise CorruptError(f"object index fails its checksum: object_id={object_id} size={len(data)}")
    rows = [IndexRow(*fields) for fields in iter_unpack(INDEX_ROW.format, data)]
    return ObjectIndex(object_id, rows, len(data))


def verify_block(data: Buffer, object_id: int, position: int) -> memoryview:
    """The entries of a data block, its checksum verified. Raises CorruptError."""
    view = memoryview(data)
    if len(view) >= BLOCK_HEADER.size:
        magic, _count, length, crc = BLOCK_HEADER.unpack_from(view)
        entries = view[BLOCK_HEADER.size :]
        found = yielding_checksum(entries, checksum(view[:_BLOCK_CRC_POS]))
        if magic == BLOCK_MAGIC and len(entries) == length and found == crc:
            return entries
    raise CorruptError(
        f"data block fails its checksum: object_id={object_id} position={position} size={len(view)}"
    )


def decode_block(data: Buffer, stream_id: int) -> Iterator[StreamEntry]:
    """The entries of a data block whose checksum was verified when it was loaded; payloads are views."""
    view = memoryview(data)
    position = BLOCK_HEADER.size
    end = len(view)
    while position < end:
        base_offset, next_offset, time_ms, length = ENTRY_HEADER.unpack_from(view, position)
        position += ENTRY_HEADER.size
        if base_offset != _FILLER:
            yield StreamEntry(
                stream_id, base_offset, next_offset, time_ms, view[position : position + length]
            )
        position += length
