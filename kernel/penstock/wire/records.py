"""Record batches, version 2: what a producer sends, what is stored and what a consumer reads.

A batch is 61 bytes of header and then its records, compressed together or not. Penstock stores and
serves a batch as it came: the produce path reads the header, checks the CRC-32C once and patches base
offset and leader epoch in place (both lie outside the checksum). Records are walked only where a rule
needs them. All functions are pure: bytes in, values out, no clock.

Sources: Kafka's documented message format v2 (KIP-98, KIP-82 headers, KIP-32 and KIP-937 timestamps,
KIP-110 zstd) and, for what a broker refuses with which code, the behaviour of Kafka 4.

Whatever the bytes are, the only error is ``BatchError``.
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
    "INFLATED_BYTES_MAX",
    "LEADER_EPOCH_POS",
    "LENGTH_POS",
    "MAGIC_POS",
    "MAX_TIMESTAMP_POS",
    "TIMESTAMP_TYPE_BIT",
    "TRANSACTIONAL_BIT",
    "BatchBuilder",
    "BatchError",
    "BatchHeader",
    "Header",
    "Record",
    "assign_offsets",
    "build_batch",
    "build_marker",
    "find_timestamp",
    "iter_batches",
    "iter_records",
    "max_timestamp_record",
    "read_header",
    "plain_records",
    "recompress",
    "repack",
    "set_log_append_time",
    "whole_checksum",
)

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

from penstock.wire.compression import (
    CODEC_NONE,
    compress,
)
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import (
    ATTRIBUTES_POS,
    BASE_OFFSET_POS,
    BATCH_HEADER,
    CODEC_MASK,
    CONTROL_BIT,
    COUNT_POS,
    CRC_POS,
    DELETE_HORIZON_BIT,
    HEADER_BYTES,
    LEADER_EPOCH_POS,
    LENGTH_POS,
    MAGIC_POS,
    MAX_TIMESTAMP_POS,
    TIMESTAMP_TYPE_BIT,
    TRANSACTIONAL_BIT,
    BatchError,
    BatchHeader,
    assign_offsets,
    iter_batches,
    read_header,
    seal_batch,
    set_log_append_time,
    whole_checksum,
)
from penstock.wire.record_builder import BatchBuilder, build_batch, build_marker
from penstock.wire.record_walk import (
    INFLATED_BYTES_MAX,
    long_varint,
    malformed,
    plain_records,
    record_cut,
    skim,
)

_NO_TIMESTAMP: Final = -1
_INT64_MAX: Final = (1 << 63) - 1
_RECORD_ERRORS_MAX: Final = 100  # enough to find the fault; a response must not grow with the batch

Header: TypeAlias = tuple[str, bytes | None]


class Record(NamedTuple):
    """One record; key and value are views into the (inflated) batch, None is null."""

    offset: int
    timestamp_ms: int
    key: memoryview | None
    value: memoryview | None
    headers: list[Header]


# --- walking records ---


def iter_records(batch: memoryview, *, inflated_bytes_max: int = INFLATED_BYTES_MAX) -> Iterator[Record]:
    """The records of the batch at the start of ``batch``, in order.

    Offsets and timestamps are absolute; on a LogAppendTime batch every timestamp is the append time.
    Records of control batches come like any other. Header keys that aren't UTF-8 come with replacement
    characters, as in the Java client. The checksum isn't looked at. Gaps in the offsets (compaction)
    are fine.

    Raises:
        BatchError: the header is cut, the records can't be inflated or don't parse; records before the
            fault have been yielded.
    """
    header = read_header(batch)
    data = bytes(plain_records(batch, header, inflated_bytes_max))
    view = memoryview(data)
    size = len(data)
    append_time = header.max_timestamp if header.attributes & TIMESTAMP_TYPE_BIT else None
    base_offset, base_timestamp = header.base_offset, header.base_timestamp
    pos = 0
    for index in range(header.count):
        try:
            n, pos = long_varint(data, pos)
            end = pos + (n >> 1)
            if n & 1 or end > size:
                malformed("its length leaves the batch", index)
            n, pos = long_varint(data, pos + 1, 64)
            timestamp = base_timestamp + ((n >> 1) ^ -(n & 1)) if append_time is None else append_time
            n, pos = long_varint(data, pos)
            offset = base_offset + ((n >> 1) ^ -(n & 1))
            key, pos = _field(data, view, pos, index)
            value, pos = _field(data, view, pos, index)
            headers: list[Header] = []
            if data[pos]:
                pos = _read_headers(data, pos, index, headers)
            else:
                pos += 1
        except IndexError:
            raise record_cut() from None
        if pos != end:
            malformed("its fields don't fill its length", index)
        yield Record(offset, timestamp, key, value, headers)


def _field(data: bytes, view: memoryview, pos: int, index: int) -> tuple[memoryview | None, int]:
    n = data[pos]
    pos += 1
    if n >= 0x80:
        n, pos = long_varint(data, pos - 1)
    if n & 1:
        if n != 1:
            malformed("a length is negative", index)
        return None, pos
    end = pos + (n >> 1)
    return view[pos:end], end


def _read_headers(data: bytes, pos: int, index: int, headers: list[Header]) -> int:
    n, pos = long_varint(data, pos)
    if n & 1:
        malformed("its header count is negative", index)
    for _ in range(n >> 1):
        n, pos = long_varint(data, pos)
        if n & 1:
            malformed("a header without key", index)
        key = data[pos : pos + (n >> 1)].decode(errors="replace")
        n, pos = long_varint(data, pos + (n >> 1))
        if n & 1:
            if n != 1:
                malformed("a header value's length is negative", index)
            headers.append((key, None))
        else:
            headers.append((key, data[pos : pos + (n >> 1)]))
            pos += n >> 1
    return pos


# --- time ------------------------------------------------------------------------------------------


def find_timestamp(
    batch: memoryview,
    target_ms: int,
    *,
    min_offset: int = 0,
    inflated_bytes_max: int = INFLATED_BYTES_MAX,
) -> tuple[int, int] | None:
    """(offset, timestamp) of the first record at or after ``target_ms`` and ``min_offset``, or None.

    On a LogAppendTime batch every record has the append time. A batch whose max timestamp is older
    than the target isn't inflated. ``min_offset`` is the log start, which may lie within the batch.

    Raises:
        BatchError: the batch doesn't parse.
    """
    header = read_header(batch)
    if header.max_timestamp < target_ms or header.last_offset < min_offset:
        return None
    return next(
        (
            (offset, timestamp)
            for offset, timestamp in _offsets_and_times(batch, header, inflated_bytes_max)
            if timestamp >= target_ms and offset >= min_offset
        ),
        None,
    )


def max_timestamp_record(
    batch: memoryview, *, inflated_bytes_max: int = INFLATED_BYTES_MAX
) -> tuple[int, int] | None:
    """(offset, timestamp) of the first record with the largest timestamp; None if the batch is empty.

    Raises:
        BatchError: the batch doesn't parse.
    """
    best: tuple[int, int] | None = None
    for offset, timestamp in _offsets_and_times(batch, read_header(batch), inflated_bytes_max):
        if best is None or timestamp > best[1]:
            best = (offset, timestamp)
    return best


def _offsets_and_times(
    batch: memoryview, header: BatchHeader, inflated_bytes_max: int
) -> Iterator[tuple[int, int]]:
    append_time = header.max_timestamp if header.attributes & TIMESTAMP_TYPE_BIT else None
    if append_time is not None and header.count == header.last_offset_delta + 1:
        for offset in range(header.base_offset, header.next_offset):
            yield offset, append_time
        return
    data = bytes(plain_records(batch, header, inflated_bytes_max))
    for offset_delta, delta, _ in skim(data, header.count):
        timestamp = header.base_timestamp + delta if append_time is None else append_time
        yield header.base_offset + offset_delta, timestamp


# --- another codec ---


def recompress(
    batch: memoryview,
    codec: int,
    level: int | None = None,
    *,
    inflated_bytes_max: int = INFLATED_BYTES_MAX,
    size_bytes_max: int = INFLATED_BYTES_MAX,
) -> bytearray:
    """The batch with its records under another codec (topic setting ``compression.type``).

    All header fields but length, codec and checksum stay; no record is decoded. ``size_bytes_max`` is for the
    result. May run in any thread.

    Raises:
        BatchError: INVALID_RECORD if the records can't be inflated; MESSAGE_TOO_LARGE if they inflate to more than
            ``inflated_bytes_max`` (bounded further as in inflate_records), or the result is too large.
    """
    header = read_header(batch)
    if codec == CODEC_NONE:
        inflated_bytes_max = min(inflated_bytes_max, max(1, size_bytes_max - HEADER_BYTES))
    return repack(header, plain_records(batch, header, inflated_bytes_max), codec, level, size_bytes_max)


def repack(
    header: BatchHeader, plain: bytes | memoryview, codec: int, level: int | None, size_bytes_max: int
) -> bytearray:
    """The batch of ``header`` and its ``plain`` records under ``codec``; length, codec and checksum follow.

    Raises:
        BatchError: MESSAGE_TOO_LARGE if the result is over ``size_bytes_max``.
    """
    body = compress(codec, plain, level)
    if HEADER_BYTES + len(body) > size_bytes_max:
        raise BatchError(
            f"recompressed record batch is over the topic's max.message.bytes "
            f"batch_bytes={HEADER_BYTES + len(body)} max_message_bytes={size_bytes_max}",
            ErrorCode.MESSAGE_TOO_LARGE,
        )
    attributes = header.attributes & ~CODEC_MASK | codec
    return seal_batch(msgspec.structs.replace(header, attributes=attributes), body)
