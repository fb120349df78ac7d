"""What replicas hold, and the word in metadata that says which replicas count.

An entry of a replica is a header in front of the entry that was appended::

    header, 24 bytes
        0   1  version, 1
        1   1  kind: 0 an entry, 1 a note, which only keeps the place when everything before it is trimmed
        2   6  the log's tag, which is the beginning of its identity
        8   8  position in the replicated log; the next one is at this, plus the size with the header
       16   8  epoch under which it was written into this replica

Checksums, order and a chain of digests are the replica's own.

The word ``members`` is text: the identity of the log, then ``IDENTITY:SINCE`` for each replica that holds it, between
spaces. Entries of a replica from before the epoch SINCE are of a time when it didn't count, and no part of the log.
"""

from __future__ import annotations

__all__ = (
    "HEADER_BYTES",
    "Entry",
    "Kind",
    "Members",
    "check_follows",
    "check_same",
    "decode_entry",
    "encode_header",
    "is_tagged",
)

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from penstock.errors import CorruptError, NewerVersionError
from penstock.spi.wal import WalEntry

_VERSION = 1
_HEADER = Struct(">BB6sqq")
HEADER_BYTES = _HEADER.size
_TAG = slice(2, 8)


class Kind(IntEnum):
    """The kinds of entries in a replica."""

    DATA = 0
    NOTE = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as a replica gave it back."""

    kind: Kind
    position: int
    next_position: int
    epoch: int
    data: memoryview
    #: Where it begins in the replica.
    replica_position: int


def encode_header(kind: Kind, tag: bytes, position: int, epoch: int) -> bytes:
    """The header of an entry."""
    return _HEADER.pack(_VERSION, kind, tag, position, epoch)


def is_tagged(entry: WalEntry, tag: bytes) -> bool:
    """Whether the entry of a replica is one of the log with this tag."""
    return entry.data[_TAG] == tag


def decode_entry(entry: WalEntry, key: str) -> Entry:
    """The entry of the replica ``key``. Raises CorruptError, NewerVersionError."""
    if len(entry.data) < HEADER_BYTES:
        raise CorruptError(
            f"the replica {key} has an entry that isn't of a replicated wal, give the replica a place of its own: "
            f"position={entry.position}"
        )
    version, kind, _, position, epoch = _HEADER.unpack_from(entry.data)
    if kind not in tuple(Kind) or version < 1 or position < 0:
        raise CorruptError(
            f"the replica {key} has an entry that isn't of a replicated wal, give the replica a place of its own: "
            f"position={entry.position}"
        )
    if version > _VERSION:
        raise NewerVersionError.of("a replicated wal", f"replica={key}", version=version, known=_VERSION)
    end = position + len(entry.data)
    return Entry(Kind(kind), position, end, epoch, entry.data[HEADER_BYTES:], entry.position)


def check_follows(before: Entry | None, entry: Entry, key: str) -> None:
    """Raises CorruptError if the replica ``key`` lacks what was between two entries that it gave back in turn."""
    if before is not None and entry.position != before.next_position:
        raise CorruptError(
            f"the replica {key} lost entries: position={before.next_position} found={entry.position}"
        )


def check_same(entry: Entry, other: Entry, keys: str) -> None:
    """Raises CorruptError if what the replicas ``keys`` hold at one position isn't the same."""
    if (entry.kind, entry.data) != (other.kind, other.data):
        raise CorruptError(
            f"two replicas hold different entries at one position, so one of their places was changed from outside; "
            f"move the wrong one away, and it's given the log again: position={entry.position} replicas={keys}"
        )


@dataclass(frozen=True, slots=True)
class Members:
    """The replicas that hold the whole log, by identity, and since which epoch each does."""

    log_id: str
    since: Mapping[str, int]

    @property
    def tag(self) -> bytes:
        """What the entries of the log carry."""
        return bytes.fromhex(self.log_id)[:6]

    def encode(self) -> str:
        """The word."""
        return " ".join([self.log_id, *(f"{identity}:{since}" for identity, since in self.since.items())])

    @classmethod
    def decode(cls, word: str) -> Members:
        """What a word says; without one, no replica holds anything. Raises CorruptError."""
        log_id, _, rest = word.partition(" ")
        try:
            pairs = [text.rpartition(":") for text in rest.split()]
            bytes.fromhex(log_id)
            return cls(log_id, {identity: int(since) for identity, _, since in pairs})
        except ValueError as error:
            raise CorruptError(f"the word of a replicated wal can't be read: word={word!r}") from error
