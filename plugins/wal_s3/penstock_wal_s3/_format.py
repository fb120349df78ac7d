"""Bytes and keys of the objects: pure functions.

    key of an object    PREFIXNODE/EPOCH.SLOT      EPOCH and SLOT: 20 decimal digits

Slots are numbered through the whole life of a log. An owner puts its objects under its own epoch, beginning with the
slot after the seal by which it took over. An object is a header, and behind that of data a group
(``penstock.wal.framing``)::

    header, 96 bytes
        0   4  magic "PSWO"
        4   2  version, 1
        6   1  kind: 1 data, 2 seal, 3 note, 4 barrier
        7   1  1 if the log is sealed for good, else 0
        8   8  log id, drawn when the log is created
       16   8  epoch of the key
       24   8  slot
       32   8  epoch of who wrote this: of a seal the next owner's
       40   8  first slot of the epoch of the key
       48   8  confirmed slot: it and all before it were durable when this was begun
       56   8  epoch of the start: the object that a recovery begins with
       64   8  slot of the start; what is before it may be gone
       72   8  trim position
       80  12  nonce of the opening that wrote this
       92   4  CRC-32C of the bytes before

All integers are big-endian. A reader refuses versions above its own.
"""

from __future__ import annotations

__all__ = ("BIRTH", "HEADER_BYTES", "NONCE_BYTES", "Header", "Key", "Kind", "parse_key")

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from penstock.checksum import checksum
from penstock.errors import CorruptError, NewerVersionError
from penstock.spi import Buffer

NONCE_BYTES = 12
_VERSION = 1
_MAGIC = b"PSWO"
_HEADER = struct.Struct(">4sHBBQQQQQQQQQ12s")
_CRC = struct.Struct(">I")
HEADER_BYTES = _HEADER.size + _CRC.size
_NAME = re.compile(r"(\d{20})\.(\d{20})")


class Kind(IntEnum):
    """The purpose of an object."""

    #: A group of entries.
    DATA = 1
    #: The end of an owner: the writer is the next one, and goes on with the next slot under its own epoch.
    SEAL = 2
    #: A place in the log that holds no entries, and tells how far it is trimmed.
    NOTE = 3
    #: Like a seal, put further on to stop an owner that is faster than its successor; it tells nothing of the log.
    BARRIER = 4

    @property
    def ends_owner(self) -> bool:
        """The writer of such an object goes on in the place of the owner before it."""
        return self in (Kind.SEAL, Kind.BARRIER)


class Key(NamedTuple):
    """The place of an object in its log; keys sort as the log goes."""

    epoch: int
    slot: int

    def under(self, folder: str) -> str:
        """The key in the object store, of the log in ``folder``."""
        return f"{folder}{self.epoch:020d}.{self.slot:020d}"


#: Whoever creates a log puts a seal here: it takes over from nobody.
BIRTH = Key(0, 0)


def parse_key(folder: str, key: str) -> Key:
    """The place of the object under ``key``. Raises CorruptError for a name that no object of a log has."""
    match = _NAME.fullmatch(key.removeprefix(folder))
    if match is None:
        raise CorruptError(f"an object among those of the wal is none of it, remove it: key={key!r}")
    return Key(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of an object; the fields are in the picture at the top."""

    kind: Kind
    sealed: bool = False
    log_id: int
    key: Key
    writer: int
    first_slot: int
    confirmed_slot: int
    start: Key
    trim_position: int
    nonce: bytes

    def encode(self) -> bytes:
        """The bytes of the header."""
        fixed = _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.kind,
            self.sealed,
            self.log_id,
            *self.key,
            self.writer,
            self.first_slot,
            self.confirmed_slot,
            *self.start,
            self.trim_position,
            self.nonce,
        )
        return fixed + _CRC.pack(checksum(fixed))

    @classmethod
    def decode(cls, data: Buffer, key: Key, where: str) -> Header:
        """The header that begins ``data``, the object at ``key``. Raises CorruptError, NewerVersionError."""
        fixed = data[: _HEADER.size]
        if len(data) < HEADER_BYTES or fixed[:4] != _MAGIC:
            raise _damaged("is not of this format", where)
        _, version, kind, sealed, log_id, epoch, slot, writer, first, confirmed, *rest = _HEADER.unpack(fixed)
        if checksum(fixed) != _CRC.unpack_from(data, _HEADER.size)[0]:
            raise _damaged("has a header that fails its checksum", where)
        if version > _VERSION:
            raise NewerVersionError.of("the wal", f"key={where!r}", version=version, known=_VERSION)
        if Key(epoch, slot) != key:
            raise _damaged(f"is the one of another place ({epoch}.{slot})", where)
        start_epoch, start_slot, trim_position, nonce = rest
        return cls(
            kind=Kind(kind),
            sealed=bool(sealed),
            log_id=log_id,
            key=key,
            writer=writer,
            first_slot=first,
            confirmed_slot=confirmed,
            start=Key(start_epoch, start_slot),
            trim_position=trim_position,
            nonce=nonce,
        )


def _damaged(what: str, where: str) -> CorruptError:
    return CorruptError(f"an object of the wal {what}, restore it from a copy: key={where!r}")
