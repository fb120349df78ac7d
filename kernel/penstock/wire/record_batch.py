"""The record batch, version 2: its 61-byte header, and what may be patched without looking further.

Source: Kafka's documented message format v2 (KIP-98). Most code imports these names from
``penstock.wire.records``, which re-exports them.
"""

from __future__ import annotations

__all__ = (
    "ATTRIBUTES_POS",
    "BASE_OFFSET_POS",
    "BATCH_HEADER",
    "CODEC_MASK",
    "CONTROL_BIT",
    "COUNT_POS",
    "CRC_POS",
    "DELETE_HORIZON_BIT",
    "HEADER_BYTES",
    "LEADER_EPOCH_POS",
    "LENGTH_MIN",
    "LENGTH_POS",
    "MAGIC_POS",
    "MAX_TIMESTAMP_POS",
    "PREFIX_BYTES",
    "TIMESTAMP_TYPE_BIT",
    "TRANSACTIONAL_BIT",
    "BatchError",
    "BatchHeader",
    "amend_header",
    "assign_offsets",
    "batch_end",
    "is_transactional",
    "iter_batches",
    "pack_start_into",
    "read_header",
    "seal_batch",
    "set_log_append_time",
    "whole_checksum",
)

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

import msgspec
from crc32c import crc32c

from penstock.checksum import COMBINE_BYTES_MIN, checksum, combine
from penstock.errors import PenstockError
from penstock.wire.compression import Buffer
from penstock.wire.error_codes import ErrorCode

BATCH_HEADER: Final = Struct(
    ">"
    "q"  # 0   base offset: of the first record; set by the broker
    "i"  # 8   length: of all that follows this field
    "i"  # 12  partition leader epoch: set by the broker
    "b"  # 16  magic: 2
    "I"  # 17  CRC-32C of all that follows this field
    "h"  # 21  attributes: the bits below
    "i"  # 23  last offset delta: stays when records are compacted away
    "q"  # 27  base timestamp: of the first record; the delete horizon if its bit is set
    "q"  # 35  max timestamp: or the append time if its bit is set
    "q"  # 43  producer id: -1 without idempotence
    "h"  # 51  producer epoch
    "i"  # 53  base sequence: of the first record
    "i"  # 57  record count
)
HEADER_BYTES: Final = BATCH_HEADER.size  # 61

BASE_OFFSET_POS: Final = 0
LENGTH_POS: Final = 8
LEADER_EPOCH_POS: Final = 12
MAGIC_POS: Final = 16
CRC_POS: Final = 17
ATTRIBUTES_POS: Final = 21
MAX_TIMESTAMP_POS: Final = 35
COUNT_POS: Final = 57

#: What a batch has before the bytes that its length field counts.
PREFIX_BYTES: Final = LEADER_EPOCH_POS
LENGTH_MIN: Final = HEADER_BYTES - PREFIX_BYTES

CODEC_MASK: Final = 0b111
TIMESTAMP_TYPE_BIT: Final = 1 << 3
TRANSACTIONAL_BIT: Final = 1 << 4
CONTROL_BIT: Final = 1 << 5
DELETE_HORIZON_BIT: Final = 1 << 6

#: The least that a batch's length field counts in any format, and up to where the format's version is told.
_LENGTH_MIN_EVER: Final = 14
_MAGIC_END: Final = MAGIC_POS + 1
_ATTRIBUTES_END: Final = ATTRIBUTES_POS + 2
_MAGIC_MAX: Final = 2
_WITHOUT_LOG_START: Final = frozenset({ErrorCode.CORRUPT_MESSAGE, ErrorCode.MESSAGE_TOO_LARGE})

_INT16: Final = Struct(">h")
_INT32: Final = Struct(">i")
_UINT32: Final = Struct(">I")
_INT64: Final = Struct(">q")


class BatchError(PenstockError):
    """A record batch that must be refused: answer with ``error_code``.

    ``error_code`` is Kafka's. ``record_errors`` names the records at fault as (index in the batch,
    text or None), at most a hundred, empty if the batch as a whole is at fault (Produce v8+, KIP-467).
    ``is_of_frames``: the fault is one that ``check_frames`` finds.
    """

    def __init__(
        self,
        message: str,
        error_code: int,
        record_errors: Iterable[tuple[int, str | None]] = (),
        *,
        is_of_frames: bool = False,
    ) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.record_errors: list[tuple[int, str | None]] = list(record_errors)
        self.is_of_frames = is_of_frames

    @property
    def tells_log_start(self) -> bool:
        """Whether Kafka answers with the log start: it finds the fault in the log, and not by size or checksum."""
        return not self.is_of_frames and self.error_code not in _WITHOUT_LOG_START


def is_transactional(records: memoryview) -> bool:
    """Whether ``records`` begin with a whole batch that says it belongs to a transaction.

    Nothing else is checked: as in Kafka, a batch may say so that is shorter than its header.
    """
    return (
        len(records) >= _ATTRIBUTES_END
        and records[MAGIC_POS] == 2
        and bool(records[ATTRIBUTES_POS + 1] & TRANSACTIONAL_BIT)
        and int.from_bytes(records[LENGTH_POS:PREFIX_BYTES], "big") + PREFIX_BYTES <= len(records)
    )


def batch_end(records: memoryview, pos: int = 0) -> int:
    """The end of the batch, of any version, that begins at ``pos``; ``pos`` if there is no whole one.

    Raises:
        BatchError: what begins there is no batch, by its length or its version (CORRUPT_MESSAGE).
    """
    left = len(records) - pos
    if left < PREFIX_BYTES:
        return pos
    (length,) = _INT32.unpack_from(records, pos + LENGTH_POS)
    if length < _LENGTH_MIN_EVER:
        raise BatchError(
            f"record batch is shorter than its own header length={length}",
            ErrorCode.CORRUPT_MESSAGE,
            is_of_frames=True,
        )
    if left < _MAGIC_END:
        return pos
    magic = records[pos + MAGIC_POS]
    if magic > _MAGIC_MAX:
        raise BatchError(
            f"only record batches of version 2 are accepted magic={magic}",
            ErrorCode.CORRUPT_MESSAGE,
            is_of_frames=True,
        )
    size = length + PREFIX_BYTES
    return pos + size if size <= left else pos


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """The fixed 61 bytes of a batch; timestamps in milliseconds since the epoch."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int

    @property
    def size_bytes(self) -> int:
        """The whole batch, header included."""
        return self.length + PREFIX_BYTES

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def codec(self) -> int:
        return self.attributes & CODEC_MASK

    @property
    def is_transactional(self) -> bool:
        return self.attributes & TRANSACTIONAL_BIT != 0

    @property
    def is_control(self) -> bool:
        return self.attributes & CONTROL_BIT != 0

    @property
    def timestamp_type(self) -> str:
        """``"LogAppendTime"`` or ``"CreateTime"``."""
        return "LogAppendTime" if self.attributes & TIMESTAMP_TYPE_BIT else "CreateTime"

    @property
    def last_sequence(self) -> int:
        """Of the last record; sequences wrap from 2**31 - 1 to 0. -1 if the batch has none."""
        if self.base_sequence < 0:
            return -1
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF


def read_header(buf: Buffer, pos: int = 0) -> BatchHeader:
    """The batch header at ``pos``; nothing but its presence is checked.

    Raises:
        BatchError: fewer than 61 bytes are left (CORRUPT_MESSAGE).
    """
    if pos < 0 or len(buf) - pos < HEADER_BYTES:
        raise BatchError(
            f"a record batch header is cut, it takes 61 bytes pos={pos} buffer_bytes={len(buf)}",
            ErrorCode.CORRUPT_MESSAGE,
        )
    return BatchHeader(*BATCH_HEADER.unpack_from(buf, pos))


def iter_batches(buf: Buffer) -> Iterator[tuple[int, BatchHeader]]:
    """Each batch in ``buf`` as (position, header), front to back; checksums aren't looked at.

    Raises:
        BatchError: a batch is cut or not of version 2 (CORRUPT_MESSAGE, UNSUPPORTED_FOR_MESSAGE_FORMAT);
            those before it have been yielded.
    """
    pos, size = 0, len(buf)
    while pos < size:
        header = read_header(buf, pos)
        if header.magic != 2:
            raise BatchError(
                f"only record batches of version 2 are known magic={header.magic} pos={pos}",
                ErrorCode.UNSUPPORTED_FOR_MESSAGE_FORMAT,
            )
        end = pos + header.length + PREFIX_BYTES
        if header.length < LENGTH_MIN or end > size or header.last_offset_delta < 0:
            raise BatchError(
                f"a record batch leaves its buffer pos={pos} length={header.length} buffer_bytes={size}",
                ErrorCode.CORRUPT_MESSAGE,
            )
        yield pos, header
        pos = end


#: Writes base offset, length and leader epoch, which is how a batch starts: ``assign_offsets`` in one step for who
#: knows the length.
pack_start_into = Struct(">qii").pack_into


def assign_offsets(buf: bytearray | memoryview, base_offset: int, leader_epoch: int) -> None:
    """Write base offset and leader epoch into the batch at the start of ``buf`` (writable), in place.

    Both lie outside the checksum, so it stays valid.
    """
    _INT64.pack_into(buf, BASE_OFFSET_POS, base_offset)
    _INT32.pack_into(buf, LEADER_EPOCH_POS, leader_epoch)


def whole_checksum(batch: Buffer) -> int | None:
    """The CRC-32C of all bytes of the one valid ``batch``, from the CRC that it carries; None if that isn't worth it.

    The CRC leaves out what stands before it, which is short.
    """
    if len(batch) < COMBINE_BYTES_MIN:
        return None
    (crc,) = _UINT32.unpack_from(batch, CRC_POS)
    return combine(checksum(batch[:ATTRIBUTES_POS]), crc, len(batch) - ATTRIBUTES_POS)


def set_log_append_time(buf: bytearray | memoryview, now_ms: int) -> None:
    """Make the one batch in ``buf`` (writable) say LogAppendTime at ``now_ms``; renews the checksum."""
    (attributes,) = _INT16.unpack_from(buf, ATTRIBUTES_POS)
    amend_header(buf, attributes | TIMESTAMP_TYPE_BIT, now_ms)


def amend_header(buf: bytearray | memoryview, attributes: int, max_timestamp: int) -> None:
    """Write both into the one batch in ``buf`` (writable); renews the checksum."""
    _INT16.pack_into(buf, ATTRIBUTES_POS, attributes)
    _INT64.pack_into(buf, MAX_TIMESTAMP_POS, max_timestamp)
    _UINT32.pack_into(buf, CRC_POS, checksum(memoryview(buf)[ATTRIBUTES_POS:]))


def seal_batch(header: BatchHeader, body: Buffer) -> bytearray:
    """The batch of ``header`` and (compressed) ``body``, with the length and checksum that follow from them."""
    batch = bytearray(HEADER_BYTES + len(body))
    batch[HEADER_BYTES:] = body
    header = msgspec.structs.replace(header, length=LENGTH_MIN + len(body))
    BATCH_HEADER.pack_into(batch, 0, *msgspec.structs.astuple(header))
    _UINT32.pack_into(batch, CRC_POS, crc32c(memoryview(batch)[ATTRIBUTES_POS:]))
    return batch
