"""The header of the log: pure bytes::

    offset in the file   0        4096     8192
                         +--------+--------+------------------------------------------------+
                         | slot 0 | slot 1 | ring: position p of the log is at              |
                         |        |        | 8192 + p % ring bytes, and groups go on at the |
                         +--------+--------+ ring's start where they reach its end ---------+

    slot, 260 bytes, then zeros
        0   8  magic "PSTKWALB"
        8   2  version, 1
       10   2  flags: 1 sealed, 2 ended cleanly at the confirmed position
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
      256   4  CRC-32C of the bytes before

Groups are those of ``penstock.wal.framing``, each from a multiple of 4 KiB on. Integers are big-endian.

The file or device starts with two slots of 4 KiB. A header is written to slot ``sequence % 2``, so that a torn write
leaves the one before it intact; the valid one with the highest sequence counts. Later versions keep magic and
version where they are; and as an opening writes a header first, that tells whether the whole log can be read.
"""

from __future__ import annotations

__all__ = (
    "BLOCK_BYTES",
    "HEADER_AREA_BYTES",
    "Header",
    "is_begun",
    "newest_header",
    "newest_of",
    "parse_slots",
)

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from crc32c import crc32c

from penstock.errors import NewerVersionError
from penstock.spi import Buffer
from penstock.wal import Cursor

BLOCK_BYTES = 4096
HEADER_AREA_BYTES = 2 * BLOCK_BYTES

_MAGIC = b"PSTKWALB"
_VERSION = 1
_SEALED, _CLEAN = 1, 2

# The fields are in the picture at the top; the checksum follows.
_FIXED = struct.Struct(">8sHHQQqq16sQQQQIQQQq128s")
_CRC = struct.Struct(">I")
_VERSION_FIELD = struct.Struct(">H")


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

    def encode(self) -> bytes:
        """The header as one slot."""
        flags = (_SEALED if self.sealed else 0) | (_CLEAN if self.clean else 0)
        cluster_id = self.cluster_id.encode()
        assert len(cluster_id) <= 128, "checked when the log is opened"
        fixed = _FIXED.pack(
            _MAGIC,
            _VERSION,
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
        return (fixed + _CRC.pack(crc32c(fixed))).ljust(BLOCK_BYTES, b"\0")

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
        if version > _VERSION:
            raise NewerVersionError.of("the wal", f"path={location}", version=version, known=_VERSION)
        fixed = bytes(slot[: _FIXED.size])
        if crc32c(fixed) != _CRC.unpack_from(slot, _FIXED.size)[0]:
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
        )


def is_begun(area: Buffer) -> bool:
    """Whether creating a log broke off while its first header was written: in slot 1, and nothing else."""
    first, second = area[:BLOCK_BYTES], area[BLOCK_BYTES:HEADER_AREA_BYTES]
    return not any(first) and second[: len(_MAGIC)] == _MAGIC


def parse_slots(area: Buffer, location: str) -> list[Header | None]:
    """Both slots of the header area of the log at ``location``. Raises NewerVersionError if either is newer."""
    return [Header.decode(area[offset : offset + BLOCK_BYTES], location) for offset in (0, BLOCK_BYTES)]


def newest_of(slots: Iterable[Header | None]) -> Header | None:
    """The header that counts, or None if no slot is valid."""
    return max((slot for slot in slots if slot is not None), key=lambda slot: slot.sequence, default=None)


def newest_header(area: Buffer, location: str) -> Header | None:
    """The header that counts, or None if neither slot is valid. Raises NewerVersionError if either is newer."""
    return newest_of(parse_slots(area, location))
