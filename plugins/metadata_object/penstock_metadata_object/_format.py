"""Bytes and keys of entries and snapshots: pure functions. Both are one header and the payload::

    header, 40 bytes
        0   4  magic: "PSML" for an entry, "PSMS" for a snapshot
        4   2  version, 1
        6   2  flags, 0
        8   8  index of the entry, or of the last one that the snapshot has
       16   4  length of the payload
       20  16  nonce of the writer
       36   4  CRC-32C of the bytes before and of the payload

    key of an entry      PREFIXlog/INDEX                        INDEX and FLOOR: 20 decimal digits
    key of a snapshot    PREFIXsnapshot/INDEX.FLOOR.NONCE       NONCE: 32 hexadecimal digits

All integers are big-endian. Only the kernel knows what is in the payloads (``penstock.metadata``). A reader refuses
versions above its own; version N reads N-1.
"""

from __future__ import annotations

__all__ = (
    "ENTRY_MAGIC",
    "HEADER_BYTES",
    "NONCE_BYTES",
    "SNAPSHOT_MAGIC",
    "SnapshotKey",
    "decode",
    "encode_header",
    "entry_index",
    "entry_key",
    "parse_snapshot_key",
)

import re
import struct
from dataclasses import dataclass

from crc32c import crc32c

from penstock.errors import CorruptError, NewerVersionError

ENTRY_MAGIC = b"PSML"
SNAPSHOT_MAGIC = b"PSMS"
NONCE_BYTES = 16
_VERSION = 1

_HEADER = struct.Struct(">4sHHQI16sI")
HEADER_BYTES = _HEADER.size
_CRC_AT = HEADER_BYTES - 4

_ENTRY_NAME = re.compile(r"\d{20}")
_SNAPSHOT_NAME = re.compile(r"(\d{20})\.(\d{20})\.([0-9a-f]{32})")


def encode_header(magic: bytes, index: int, data: bytes, nonce: bytes) -> bytes:
    """The header that makes ``data`` an entry or a snapshot."""
    assert len(nonce) == NONCE_BYTES, len(nonce)
    header = _HEADER.pack(magic, _VERSION, 0, index, len(data), nonce, 0)[:_CRC_AT]
    return header + struct.pack(">I", crc32c(data, crc32c(header)))


def decode(magic: bytes, index: int, key: str, stored: bytes | bytearray | memoryview) -> bytes:
    """The payload of what was stored under ``key``.

    Raises CorruptError if it is not whole, fails its checksum, or is not the one of ``index``; NewerVersionError.
    """
    view = memoryview(stored)
    if len(view) < HEADER_BYTES:
        raise _corrupt("is shorter than its header", index, key)
    found_magic, version, _, found_index, length, _, crc = _HEADER.unpack_from(view)
    if found_magic != magic:
        raise _corrupt("is not of this format", index, key)
    if version > _VERSION:
        raise NewerVersionError.of(
            "the metadata log", f"key={key!r} index={index}", version=version, known=_VERSION
        )
    if crc != crc32c(view[HEADER_BYTES:], crc32c(view[:_CRC_AT])):
        raise _corrupt("fails its checksum", index, key)
    if length != len(view) - HEADER_BYTES:
        raise _corrupt("is not as long as its header says", index, key)
    if found_index != index:
        raise _corrupt(f"is the one of index {found_index}", index, key)
    return bytes(view[HEADER_BYTES:])


def _corrupt(what: str, index: int, key: str) -> CorruptError:
    return CorruptError(f"metadata object {what}, restore it from a backup: key={key!r} index={index}")


def entry_key(prefix: str, index: int) -> str:
    """Key of the entry ``index``; keys sort as their indexes do."""
    return f"{prefix}log/{index:020d}"


def entry_index(prefix: str, key: str) -> int:
    """Index of the entry under ``key``. Raises CorruptError for a name that no entry has."""
    name = key.removeprefix(f"{prefix}log/")
    if not _ENTRY_NAME.fullmatch(name):
        raise CorruptError(f"an object among the metadata entries is none, remove it: key={key!r}")
    return int(name)


@dataclass(frozen=True, slots=True, order=True)
class SnapshotKey:
    """A snapshot as its key tells of it.

    Entries up to ``floor`` may have been deleted once the snapshot is there. The nonce makes a key that was
    deleted never come back, whatever a broker does that slept through its own deposition.
    """

    index: int
    floor: int
    nonce: str

    def key(self, prefix: str) -> str:
        """Where the snapshot is."""
        return f"{prefix}snapshot/{self.index:020d}.{self.floor:020d}.{self.nonce}"


def parse_snapshot_key(prefix: str, key: str) -> SnapshotKey:
    """The index, floor and nonce in the key of a snapshot. Raises CorruptError for a name that no snapshot has."""
    match = _SNAPSHOT_NAME.fullmatch(key.removeprefix(f"{prefix}snapshot/"))
    if match is None:
        raise CorruptError(f"an object among the metadata snapshots is none, remove it: key={key!r}")
    return SnapshotKey(int(match[1]), int(match[2]), match[3])
