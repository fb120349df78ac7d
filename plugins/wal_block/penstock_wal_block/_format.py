"""The header of the log: pure bytes::

    offset in the file   0        4096     8192
                         +--------+--------+------------------------------------------------+
                         | slot 0 | slot 1 | ring: position p of the log is at              |
                         |        |        | 8192 + p % ring bytes, and groups go on at the |
                         +--------+--------+ ring's start where they reach its end ---------+

    slot, 260 bytes, then zeros
        0   8  magic "PSTKWALB"
        8   2  version: 1, or 2 with what follows byte 260
       10   2  flags: 1 sealed, 2 ended cleanly at the confirmed position, 4 shared, 8 a claim
       12   8  sequence of the header
       20   8  log id
       28   8  node id of the owner
       36   8  epoch of the owner
       44  16  incarnation of the owner
       60   8  ring bytes
       68   8  trim position
       76   8  start: position of the group where recovery begins,
       84   8  its sequence,
       92   4  and the digest of the group before it
       96   8  confirmed position
      104   8  window bytes
      112   8  settled position
      120   8  settled epoch
      128 128  cluster id, UTF-8, then zeros
      256   4  CRC-32C of the bytes before; in version 2, and of those from 260 on

    more, 34 bytes, from 260 on in version 2 (a log that is shared between hosts, or striped over devices)
        0   8  generation: how many owners were before; its slots are 2 * (generation % 8) and the next
        8  16  seat: where the owner runs
       24   2  devices, 0 for a log on one
       26   4  stripe bytes
       30   2  sections, at most 16, each 20 bytes: position, index, first and last zone
       32   2  zones, at most 64, each 24 bytes: offset, length, epoch

A shared log has 16 slots, 64 KiB, before its ring: a pair for each owner, so that a write of an owner that comes late
never hits its successor's header. See ``_ring.py`` for sections and zones.

Groups are those of ``penstock.wal.framing``, each from a multiple of 4 KiB on. Integers are big-endian.

The file or device starts with two slots of 4 KiB. A header is written to slot ``sequence % 2`` of its pair, so that a
torn write leaves the one before it intact; the valid one with the highest epoch, then sequence, counts. Later
versions keep magic and version where they are; and as an opening writes a header first, that tells whether the whole
log can be read.
"""

from __future__ import annotations

__all__ = (
    "BLOCK_BYTES",
    "HEADER_AREA_BYTES",
    "PAIRS",
    "SECTIONS_MAX",
    "SHARED_AREA_BYTES",
    "ZONES_MAX",
    "Header",
    "area_bytes",
    "is_begun",
    "joined",
    "newest_header",
    "newest_of",
    "parse_slots",
    "slot_of",
)

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from penstock.errors import NewerVersionError
from penstock.spi import Buffer
from penstock.wal import Cursor
from penstock_wal_block._ring import RingMap, Section, Zone

BLOCK_BYTES = 4096
#: A pair of slots.
HEADER_AREA_BYTES = 2 * BLOCK_BYTES
#: In a shared log. A pair is used again by the eighth owner after.
PAIRS = 8
SHARED_AREA_BYTES = PAIRS * HEADER_AREA_BYTES

_MAGIC = b"PSTKWALB"
_VERSION, _VERSION_MAX = 1, 2
_SEALED, _CLEAN, _SHARED, _CLAIM = 1, 2, 4, 8

# The fields are in the picture at the top; the checksum follows.
_FIXED = struct.Struct(">8sHHQQqq16sQQQQIQQQq128s")
_CRC = struct.Struct(">I")
_VERSION_FIELD = struct.Struct(">H")
# Of version 2.
_MORE = struct.Struct(">Q16sHIHH")
_SECTION = struct.Struct(">QQHH")
_ZONE = struct.Struct(">QQQ")
SECTIONS_MAX, ZONES_MAX = 16, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Who owns the log, and where it starts."""

    sequence: int
    #: Drawn at creation; every group carries it, so that bytes of an earlier log on the device never fit.
    log_id: int
    cluster_id: str
    node_id: int
    epoch: int
    #: Drawn at each opening; tells apart two openings with the same epoch.
    incarnation: bytes
    #: Bytes of the ring, which follows the header area; the capacity is their sum.
    ring_bytes: int
    #: Entries whose next position is at most this may be dropped.
    trim_position: int
    #: The group at or before the trim position at which recovery starts.
    start: Cursor
    confirmed_position: int
    #: Recovery looks this far past the end for groups that shouldn't be there.
    window_bytes: int
    #: Where the last recovery ended, and whose it was: groups of older owners from there on don't count.
    settled_position: int = 0
    settled_epoch: int = 0
    sealed: bool = False
    #: The log ends exactly at the confirmed position.
    clean: bool = False
    #: Several hosts may have the log open.
    shared: bool = False
    #: Only who claims the log counts; what is in it, its owner will say.
    claim: bool = False
    #: How many owners were before, in a shared log.
    generation: int = 0
    #: 16 bytes; the same for processes that see each other's locks on the device.
    seat: bytes = bytes(16)
    #: Devices of a striped log, and the bytes that follow each other on one; 0 for a log on one device.
    devices: int = 0
    stripe_bytes: int = 0
    #: None: a ring without zones.
    zoned: RingMap | None = field(default=None, compare=False)

    @property
    def ring(self) -> RingMap:
        """Where positions are."""
        return self.zoned or RingMap(self.ring_bytes)

    @property
    def lookahead_bytes(self) -> int:
        """How far behind where the log seems to end recovery looks for a group that proves a loss.

        What was in flight may be missing, and before what the other devices of a striped log hold, all that one lost.
        """
        return 0 if self.clean else self.window_bytes + self.devices * self.stripe_bytes

    def encode(self) -> bytes:
        """The header as one slot."""
        flags = _SEALED * self.sealed | _CLEAN * self.clean | _SHARED * self.shared | _CLAIM * self.claim
        more = self._encode_more() if self.shared or self.devices else b""
        cluster_id = self.cluster_id.encode()
        assert len(cluster_id) <= 128, "checked when the log is opened"
        fixed = _FIXED.pack(
            _MAGIC,
            _VERSION_MAX if more else _VERSION,
            flags,
            self.sequence,
            self.log_id,
            self.node_id,
            self.epoch,
            self.incarnation,
            self.ring_bytes,
            self.trim_position,
            self.start.position,
            self.start.sequence,
            self.start.digest,
            self.confirmed_position,
            self.window_bytes,
            self.settled_position,
            self.settled_epoch,
            cluster_id,
        )
        return (fixed + _CRC.pack(crc32c(more, crc32c(fixed))) + more).ljust(BLOCK_BYTES, b"\0")

    def _encode_more(self) -> bytes:
        sections, zones = self.ring.sections, self.ring.zones
        assert len(sections) <= SECTIONS_MAX, "checked by whoever adds one"
        assert len(zones) <= ZONES_MAX, "checked by whoever adds one"
        more = _MORE.pack(
            self.generation, self.seat, self.devices, self.stripe_bytes, len(sections), len(zones)
        )
        parts = [more, *(_SECTION.pack(*one) for one in sections), *(_ZONE.pack(*one) for one in zones)]
        return b"".join(parts).ljust(BLOCK_BYTES - _FIXED.size - _CRC.size, b"\0")

    @classmethod
    def decode(cls, slot: Buffer, location: str) -> Header | None:
        """The header in ``slot`` if its magic and checksum fit, else None.

        Raises NewerVersionError, whatever the checksum: where a newer version puts it isn't known here. The other
        slot must not count then, for it may be older than what the newer version wrote.
        """
        end = _FIXED.size + _CRC.size
        if len(slot) < end or slot[:8] != _MAGIC:
            return None
        (version,) = _VERSION_FIELD.unpack_from(slot, len(_MAGIC))
        if version > _VERSION_MAX:
            raise NewerVersionError.of("the wal", f"path={location}", version=version, known=_VERSION_MAX)
        fixed = bytes(slot[: _FIXED.size])
        more = bytes(slot[end:BLOCK_BYTES]) if version > _VERSION else b""
        if crc32c(more, crc32c(fixed)) != _CRC.unpack_from(slot, _FIXED.size)[0]:
            return None
        (
            _,
            _,
            flags,
            sequence,
            log_id,
            node_id,
            epoch,
            incarnation,
            ring_bytes,
            trim_position,
            start_position,
            start_sequence,
            start_digest,
            confirmed_position,
            window_bytes,
            settled_position,
            settled_epoch,
            cluster_id,
        ) = _FIXED.unpack(fixed)
        return cls(
            sequence=sequence,
            log_id=log_id,
            cluster_id=cluster_id.rstrip(b"\0").decode(),
            node_id=node_id,
            epoch=epoch,
            incarnation=incarnation,
            ring_bytes=ring_bytes,
            trim_position=trim_position,
            start=Cursor(start_position, start_sequence, start_digest),
            confirmed_position=confirmed_position,
            window_bytes=window_bytes,
            settled_position=settled_position,
            settled_epoch=settled_epoch,
            sealed=bool(flags & _SEALED),
            clean=bool(flags & _CLEAN),
            shared=bool(flags & _SHARED),
            claim=bool(flags & _CLAIM),
            **(_decode_more(more, ring_bytes) if more else {}),
        )


def _decode_more(more: bytes, ring_bytes: int) -> dict[str, Any]:
    generation, seat, devices, stripe_bytes, section_count, zone_count = _MORE.unpack_from(more)
    zones_at = _MORE.size + section_count * _SECTION.size
    sections = _SECTION.iter_unpack(more[_MORE.size : zones_at])
    zones = _ZONE.iter_unpack(more[zones_at : zones_at + zone_count * _ZONE.size])
    return {
        "generation": generation,
        "seat": seat,
        "devices": devices,
        "stripe_bytes": stripe_bytes,
        "zoned": RingMap(ring_bytes, tuple(map(Zone._make, zones)), tuple(map(Section._make, sections))),
    }


def joined(pieces: Iterable[tuple[memoryview, int]]) -> memoryview:
    """Pieces of the log that were read, each with the length that was asked for, as one; shorter at their end only.

    What is missing before another piece is zeros: what is behind it may tell that something was there.
    """
    parts: list[memoryview] = []
    done = end = 0
    for part, length in pieces:
        if part:
            end = done + len(part)
        parts.append(part if len(part) == length else memoryview(bytes(part).ljust(length, b"\0")))
        done += length
    return (parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))[:end]


def area_bytes(*, shared: bool) -> int:
    """What the slots take before the ring."""
    return SHARED_AREA_BYTES if shared else HEADER_AREA_BYTES


def slot_of(header: Header) -> int:
    """The number of the slot that a header belongs in."""
    return 2 * (header.generation % PAIRS) + header.sequence % 2


def is_begun(area: Buffer) -> bool:
    """Whether creating a log broke off while its first header was written: in slot 1, and nothing else."""
    first, second = area[:BLOCK_BYTES], area[BLOCK_BYTES:HEADER_AREA_BYTES]
    return not any(first) and second[: len(_MAGIC)] == _MAGIC


def parse_slots(area: Buffer, location: str) -> list[Header | None]:
    """The slots of the header area of the log at ``location``. Raises NewerVersionError if one is newer."""
    starts = range(0, max(len(area), HEADER_AREA_BYTES), BLOCK_BYTES)
    return [Header.decode(area[start : start + BLOCK_BYTES], location) for start in starts]


def newest_of(slots: Iterable[Header | None]) -> Header | None:
    """The header that counts, or None if no slot is valid."""
    valid = (slot for slot in slots if slot is not None)
    return max(valid, key=lambda header: (header.epoch, header.sequence), default=None)


def newest_header(area: Buffer, location: str) -> Header | None:
    """The header that counts, or None if neither slot is valid. Raises NewerVersionError if either is newer."""
    return newest_of(parse_slots(area, location))
