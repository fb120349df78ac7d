"""The format of groups of WAL entries, the same on any medium: pure bytes, no I/O.

A group is what one write (one object, one fdatasync) makes durable::

    +--------------+--------------+---------+--------------+-------+--------------+---------+-----+
    | group header | entry header | payload | entry header | zeros | entry header | payload | ... |
    +--------------+--------------+---------+--------------+-------+--------------+---------+-----+
                     an entry                 a filler               an entry

    group header, 72 bytes
        0   4  magic "PSWG"
        4   2  version, 1
        6   2  flags, 0
        8   8  log id
       16   8  sequence: the group before has one less
       24   8  position of this header in the log
       32   8  epoch of the owner that wrote it
       40   8  confirmed position: below it everything was durable when the group was begun
       48   4  length: from the start of this header to the end of the last payload
       52   4  entries, fillers included
       56   4  digest of the group before, 0 for the first
       60   4  digest of the entries: the chained CRC-32C of the last one
       64   4  reserved, 0
       68   4  CRC-32C of the bytes before: the digest of this group

    entry header, 24 bytes
        0   4  magic: "PSWE", or "PSWF" for a filler
        4   4  length of the payload, or of the zeros
        8   8  position of this header in the log
       16   4  CRC-32C of the payload
       20   4  chained CRC-32C: of the bytes before, begun with that of the entry before (first: the digest at 56)

A filler makes a large payload lie where it can be written without a copy. All integers are big-endian. Later versions
keep magic, version, log id, position, and the header's size and checksum, so that a reader that is too old for a
group can tell it from the end of the log.

Three things make stale bytes visible without a clock or a clean medium:

* every header carries its absolute position, so bytes of an earlier lap of a ring never fit;
* the log id is drawn when the log is created, so bytes of another log never fit;
* each group carries the digest of the one before it, and a group's digest covers its entries' checksums. So a
  group that an earlier owner wrote, but that its successor never saw, can't join the successor's log.
"""

from __future__ import annotations

__all__ = (
    "ENTRY_HEADER_BYTES",
    "GROUP_HEADER_BYTES",
    "Cursor",
    "DamageError",
    "DecodedGroup",
    "GroupHeader",
    "check_successor",
    "decode_entries",
    "decode_group",
    "encode_group",
    "parse_group_header",
    "refuse_newer",
)

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from penstock.checksum import HOLD_BYTES_MAX, checksum, held_checksum
from penstock.errors import CorruptError, NewerVersionError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry

_VERSION = 1
_GROUP_MAGIC = b"PSWG"
_ENTRY_MAGIC = 0x50535745  # "PSWE"
_FILLER_MAGIC = 0x50535746  # "PSWF"

# Both without the checksum that ends them; the fields are in the picture at the top.
_GROUP = struct.Struct(">4sHHQQQQQIIIII")
_ENTRY = struct.Struct(">IIQI")
_CRC = struct.Struct(">I")

GROUP_HEADER_BYTES = _GROUP.size + _CRC.size
ENTRY_HEADER_BYTES = _ENTRY.size + _CRC.size
assert GROUP_HEADER_BYTES == 72
assert ENTRY_HEADER_BYTES == 24


class DamageError(CorruptError):
    """The bytes at a position aren't the group that belongs there.

    On its own that is no loss: it is how the end of a log looks. :mod:`penstock.wal.scan` decides.
    """

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"{reason}: position={position}")
        self.reason = reason
        self.position = position


class Cursor(NamedTuple):
    """A place between two groups: where the next one starts and what it must chain to."""

    position: int = 0
    sequence: int = 0
    #: Digest of the group before; a new log starts with 0.
    digest: int = 0


class GroupHeader(NamedTuple):
    """The header of a group, decoded."""

    log_id: int
    sequence: int
    position: int
    epoch: int
    #: Everything below was durable, and its owner not fenced, when this group was written.
    confirmed_position: int
    #: Bytes from the start of this header to the end of the last payload.
    length: int
    #: Fillers included.
    entry_count: int
    previous_digest: int
    entries_digest: int
    #: Identifies this group and, through the chain, all before it.
    digest: int


@dataclass(frozen=True, slots=True)
class DecodedGroup:
    """A group whose every checksum fits."""

    header: GroupHeader
    entries: list[WalEntry]


def encode_group(
    *,
    log_id: int,
    cursor: Cursor,
    epoch: int,
    confirmed_position: int,
    appends: Sequence[WalAppend],
    payloads: Sequence[Sequence[Buffer]],
    checksums: Sequence[int | None] | None = None,
) -> tuple[list[Buffer], int]:
    """The group as a gather list that refers to the payloads (nothing is copied), and its digest.

    ``appends[i]`` says where ``payloads[i]`` goes, as :class:`penstock.wal.GroupCommit` laid it out; gaps are
    filled. ``checksums[i]`` is the CRC-32C of ``payloads[i]``, where it is known.
    """
    assert appends, "a group holds at least one entry"
    position, sequence, previous_digest = cursor
    parts: list[Buffer] = [b""]
    chain = previous_digest
    end = position + GROUP_HEADER_BYTES
    count = len(appends)
    pack, pack_crc = _ENTRY.pack, _CRC.pack
    for append, payload, crc in zip(appends, payloads, checksums or repeat(None, count), strict=True):
        start = append.position
        if start != end:
            gap = start - end
            assert gap >= ENTRY_HEADER_BYTES, "entries follow each other, or leave room for a filler"
            zeros = bytes(gap - ENTRY_HEADER_BYTES)
            head = pack(_FILLER_MAGIC, len(zeros), end, checksum(zeros))
            chain = checksum(head, chain)
            parts += (head, pack_crc(chain), zeros)
            count += 1
        end = append.next_position
        if crc is None:
            crc = 0
            for part in payload:
                crc = held_checksum(part, crc, 0) if len(part) <= HOLD_BYTES_MAX else checksum(part, crc)
        head = pack(_ENTRY_MAGIC, end - start - ENTRY_HEADER_BYTES, start, crc)
        chain = held_checksum(head, chain, 0)
        parts.append(head + pack_crc(chain))
        parts.extend(payload)
    fixed = _GROUP.pack(
        _GROUP_MAGIC,
        _VERSION,
        0,
        log_id,
        sequence,
        position,
        epoch,
        confirmed_position,
        end - position,
        count,
        previous_digest,
        chain,
        0,
    )
    digest = held_checksum(fixed, 0, 0)
    parts[0] = fixed + _CRC.pack(digest)
    return parts, digest


def parse_group_header(data: Buffer, offset: int = 0) -> GroupHeader | None:
    """The header at ``offset`` if its magic, version and checksum fit, else None."""
    end = offset + GROUP_HEADER_BYTES
    if data[offset : offset + 4] != _GROUP_MAGIC or len(data) < end:
        return None
    fixed = data[offset : end - _CRC.size]
    (digest,) = _CRC.unpack_from(data, end - _CRC.size)
    if checksum(fixed) != digest:
        return None
    _, version, _, *fields, _ = _GROUP.unpack(fixed)
    if version != _VERSION:
        return None
    return GroupHeader._make((*fields, digest))


def refuse_newer(data: Buffer, offset: int, *, log_id: int, position: int) -> None:
    """Raise NewerVersionError if a newer version's group of the log ``log_id``, at ``position``, is at ``offset``."""
    end = offset + GROUP_HEADER_BYTES
    if data[offset : offset + 4] != _GROUP_MAGIC or len(data) < end:
        return
    _, version, _, found_log_id, _, found_position, *_ = _GROUP.unpack_from(data, offset)
    (digest,) = _CRC.unpack_from(data, end - _CRC.size)
    belongs = (found_log_id, found_position) == (log_id, position)
    if belongs and version > _VERSION and checksum(data[offset : end - _CRC.size]) == digest:
        raise NewerVersionError.of("the wal", f"position={position}", version=version, known=_VERSION)


def decode_group(data: memoryview, cursor: Cursor, *, log_id: int) -> DecodedGroup:
    """The group at the start of ``data``, which must be the one that follows ``cursor`` in the log ``log_id``.

    Raises DamageError (with the position of the first byte that doesn't fit) if it isn't, or is incomplete;
    NewerVersionError.
    """
    header = parse_group_header(data)
    if header is None:
        refuse_newer(data, 0, log_id=log_id, position=cursor.position)
        raise DamageError("no valid group header", cursor.position)
    check_successor(header, cursor, log_id=log_id)
    return DecodedGroup(header, decode_entries(header, data))


def check_successor(header: GroupHeader, cursor: Cursor, *, log_id: int) -> None:
    """Raise DamageError unless ``header`` is of this log and continues it at ``cursor``."""
    position = cursor.position
    if header.log_id != log_id:
        raise DamageError("a group of another log", position)
    if header.position != position:
        raise DamageError(f"a group of another place (it says {header.position})", position)
    if header.sequence != cursor.sequence or header.previous_digest != cursor.digest:
        raise DamageError("a group that doesn't continue the one before it", position)


def decode_entries(header: GroupHeader, data: memoryview) -> list[WalEntry]:
    """The entries of the group whose bytes start ``data``; views of ``data``, nothing is copied.

    Raises DamageError naming the entry's position when one is missing or fails a checksum.
    """
    entries: list[WalEntry] = []
    offset, end, base = GROUP_HEADER_BYTES, header.length, header.position
    chain = header.previous_digest
    if len(data) < end:
        raise DamageError("the group is cut short", base)
    for _ in range(header.entry_count):
        position, payload_at = base + offset, offset + ENTRY_HEADER_BYTES
        if payload_at > end:
            raise DamageError("an entry reaches over the end of its group", position)
        magic, length, stored_position, payload_crc = _ENTRY.unpack_from(data, offset)
        chain = checksum(data[offset : offset + _ENTRY.size], chain)
        (stored_chain,) = _CRC.unpack_from(data, offset + _ENTRY.size)
        if magic not in (_ENTRY_MAGIC, _FILLER_MAGIC) or stored_position != position or stored_chain != chain:
            raise DamageError("an entry header fails its checksum", position)
        offset = payload_at + length
        if offset > end:
            raise DamageError("an entry reaches over the end of its group", position)
        payload = data[payload_at:offset]
        if checksum(payload) != payload_crc:
            raise DamageError("an entry's payload fails its checksum", position)
        if magic == _ENTRY_MAGIC:
            entries.append(WalEntry(position, base + offset, payload))
    if offset != end or chain != header.entries_digest:
        raise DamageError("the entries of a group don't add up to its digest", base)
    return entries
