"""Validation of a batch that a producer sent, as in Kafka 4's log validator. Pure.

A header says of its records how many there are, how far their offsets go and which timestamp is the greatest.
None of it is believed: with ``BatchRules.full`` each record is looked at, what the header says wrongly of timestamps
is put right, and attributes that are the broker's to set are cleared.

Where Kafka's answer is an accident, ours is another on purpose; docs/kafka-compatibility.md has the list.
"""

from __future__ import annotations

__all__ = (
    "BROKER_BITS",
    "INLINE_BYTES_MAX",
    "INLINE_INFLATED_BYTES_MAX",
    "INLINE_PYTHON_BYTES_MAX",
    "INLINE_RECORDS_MAX",
    "BatchRules",
    "amend_batch",
    "amended_header",
    "check_batch",
    "check_frames",
    "check_sum",
    "check_records",
    "check_records_nowait",
)

from typing import Final, NoReturn

import msgspec

from penstock.checksum import checksum, held_checksum, yielding_checksum
from penstock.errors import InvalidRequestError
from penstock.wire import native_code
from penstock.wire.compression import CODEC_NONE, CODEC_ZSTD, Buffer
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import (
    ATTRIBUTES_POS,
    BATCH_HEADER,
    CODEC_MASK,
    CONTROL_BIT,
    HEADER_BYTES,
    MAGIC_POS,
    PREFIX_BYTES,
    TIMESTAMP_TYPE_BIT,
    TRANSACTIONAL_BIT,
    BatchError,
    BatchHeader,
    amend_header,
    batch_end,
    read_header,
)
from penstock.wire.record_walk import plain_records, skim, walk

#: How much may be looked at on the event loop, where it holds everybody up. Native code walks a mebibyte of large
#: records in 50 us, and so many records in 250 us, however small. Python takes 0.3 us per header and 0.8 per record,
#: and has to say what is wrong: 130 us for an honest batch of this size, 6 ms for one that was made to be slow.
INLINE_BYTES_MAX: Final = 1024 * 1024
INLINE_RECORDS_MAX: Final = 16 * 1024
INLINE_PYTHON_BYTES_MAX: Final = 32 * 1024
#: Gzip inflates to so much in 250 us, lz4 in 30.
INLINE_INFLATED_BYTES_MAX: Final = 128 * 1024

#: A codec, and no other bit.
_USUAL_ATTRIBUTES: Final = frozenset(range(CODEC_ZSTD + 1))
_ZSTD_VERSION: Final = 7
_NO_TIMESTAMP: Final = -1
_INT64_MIN: Final = -(1 << 63)
_INT64_MAX: Final = (1 << 63) - 1
_RECORD_ERRORS_MAX: Final = 100  # enough to find the fault; a response must not grow with the batch
#: Attributes that a producer has no say in. The timestamp type and the delete horizon are the broker's, and the other
#: bits are nobody's yet: whichever gets a meaning later must not be found set by strangers.
BROKER_BITS: Final = ~(CODEC_MASK | TRANSACTIONAL_BIT)


class BatchRules(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The demands of a topic on batches: its configs, as numbers. Times in milliseconds.

    ``before_max_ms`` and ``after_max_ms`` bound CreateTime (message.timestamp.before.max.ms, after.max.ms);
    ``keys_required`` is for compacted topics. Without ``full`` only the header is looked at: a careless or lying
    producer can then store records that no consumer gets past, and a wrong greatest timestamp, by which retention
    deletes them early, or never, and lookups by time miss them.
    """

    max_message_bytes: int
    is_log_append_time: bool = False
    before_max_ms: int = _INT64_MAX
    after_max_ms: int = _INT64_MAX
    keys_required: bool = False
    full: bool = True


def check_batch(records: memoryview, rules: BatchRules, produce_version: int, now_ms: int) -> BatchHeader:
    """Check all but the records themselves: exactly one batch of version 2 must fill ``records``.

    That is framing, size, CRC-32C, codec, offset range against count, bits that clients may set, and the producer's
    fields. Without ``rules.full`` also what the header says of timestamps. About 1 us, plus the checksum
    (16 KB: 0.9 us). That of a batch which takes a thread anyway is left to ``check_sum``.

    Raises:
        BatchError: the batch is refused.
    """
    size = len(records)
    if size < HEADER_BYTES:
        _refuse_short(records, produce_version)
    header = BatchHeader(*BATCH_HEADER.unpack_from(records))
    if (
        header.magic != 2
        or header.length + PREFIX_BYTES != size
        or size > rules.max_message_bytes
        or header.attributes not in _USUAL_ATTRIBUTES
        or (produce_version < _ZSTD_VERSION and header.attributes == CODEC_ZSTD)
        or header.base_offset
        or not 0 <= header.last_offset_delta == header.count - 1
        or (header.producer_id >= 0 and (header.base_sequence < 0 or header.producer_epoch < 0))
        or (
            held_checksum(records[ATTRIBUTES_POS:], 0, 0) != header.crc
            if size <= INLINE_PYTHON_BYTES_MAX
            else not _takes_a_thread(records, rules) and checksum(records[ATTRIBUTES_POS:]) != header.crc
        )
    ):
        _look_closer(records, header, rules, produce_version)
    if not rules.full and not rules.is_log_append_time:
        _check_header_times(header, rules, now_ms)
    return header


def _refuse_short(records: memoryview, produce_version: int) -> NoReturn:
    """Refuse what is shorter than the header of a batch."""
    check_frames(records, produce_version)
    raise BatchError(
        f"record batch is shorter than its own header buffer_bytes={len(records)}", ErrorCode.CORRUPT_MESSAGE
    )


def _look_closer(records: memoryview, header: BatchHeader, rules: BatchRules, produce_version: int) -> None:
    """Say what is wrong, in Kafka's order; or nothing is, and the batch is only unusual."""
    check_frames(records, produce_version)
    if header.base_offset:
        raise BatchError(
            f"a client's record batch must start at offset 0 base_offset={header.base_offset}",
            ErrorCode.INVALID_RECORD,
        )
    size = header.size_bytes
    if size > rules.max_message_bytes:
        raise BatchError(
            f"record batch is over the topic's max.message.bytes batch_bytes={size} "
            f"max_message_bytes={rules.max_message_bytes}",
            ErrorCode.MESSAGE_TOO_LARGE,
        )
    if size < HEADER_BYTES or checksum(records[ATTRIBUTES_POS:size]) != header.crc:
        _refuse_sum(header)
    if size < len(records):
        raise BatchError(
            "exactly one record batch per partition is expected, it is followed by more bytes "
            f"batch_bytes={size} buffer_bytes={len(records)}",
            ErrorCode.INVALID_RECORD,
        )
    if header.codec > CODEC_ZSTD:
        raise BatchError(
            f"unknown compression codec, kafka knows 0 to 4 codec={header.codec}",
            ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
        )
    _check_offsets(header)
    _check_producer(header)
    if header.attributes & CONTROL_BIT:
        raise BatchError("clients may not write control batches", ErrorCode.INVALID_RECORD)
    if header.attributes & TIMESTAMP_TYPE_BIT and (
        rules.is_log_append_time or not rules.full or header.max_timestamp == _NO_TIMESTAMP
    ):
        text = "clients may not set the timestamp type to LogAppendTime"
        indexes = range(min(header.count, _RECORD_ERRORS_MAX))
        raise BatchError(text, ErrorCode.INVALID_TIMESTAMP, [(index, text) for index in indexes])


def _refuse_sum(header: BatchHeader) -> NoReturn:
    raise BatchError(f"record batch checksum mismatch stored={header.crc:#010x}", ErrorCode.CORRUPT_MESSAGE)


def check_sum(records: memoryview, header: BatchHeader, rules: BatchRules) -> None:
    """Check the CRC-32C of a batch if ``check_batch`` left it. From any thread, which lets go of the interpreter.

    Raises:
        BatchError: CORRUPT_MESSAGE.
    """
    if _takes_a_thread(records, rules) and yielding_checksum(records[ATTRIBUTES_POS:]) != header.crc:
        _refuse_sum(header)


def _takes_a_thread(records: memoryview, rules: BatchRules) -> bool:
    """Whether a batch is too long for ``check_records_nowait``, whatever its records are, as its header tells.

    Then the checksum is for the thread, too: of a megabyte it takes 0.1 to 0.2 ms.
    """
    size = len(records)
    if not rules.full or size <= INLINE_PYTHON_BYTES_MAX + HEADER_BYTES:
        return False
    if native_code.walk is None:
        return True
    header = BatchHeader(*BATCH_HEADER.unpack_from(records))
    if header.attributes & CODEC_MASK == CODEC_NONE:
        return size - HEADER_BYTES > INLINE_BYTES_MAX or header.count > INLINE_RECORDS_MAX
    return size > INLINE_INFLATED_BYTES_MAX


def _check_header_times(header: BatchHeader, rules: BatchRules, now_ms: int) -> None:
    # Max first: the usual fault is a clock that runs ahead, or microseconds.
    for timestamp in (header.max_timestamp, header.base_timestamp):
        age_ms = now_ms - timestamp
        if timestamp != _NO_TIMESTAMP and not -rules.after_max_ms <= age_ms <= rules.before_max_ms:
            raise BatchError(
                f"timestamp out of the topic's range timestamp_ms={timestamp} now_ms={now_ms}",
                ErrorCode.INVALID_TIMESTAMP,
            )


def check_frames(records: memoryview, produce_version: int) -> None:
    """Check that there is one batch of version 2, in a codec that this version of Produce may use.

    This is what Kafka looks at first, before it asks whether the request may write there at all.

    Raises:
        BatchError: the batch is refused; ``is_of_frames``.
    """
    end = batch_end(records)
    if not end:
        _refuse_frames(
            "exactly one record batch per partition is expected, there is no whole one "
            f"buffer_bytes={len(records)}"
        )
    if records[MAGIC_POS] != 2:
        _refuse_frames(f"only record batches of version 2 are accepted magic={records[MAGIC_POS]}")
    if produce_version < _ZSTD_VERSION and end > ATTRIBUTES_POS + 1:  # KIP-110
        codec = records[ATTRIBUTES_POS + 1] & CODEC_MASK
        if codec >= CODEC_ZSTD:
            raise BatchError(
                f"this codec needs produce version 7 or newer codec={codec} produce_version={produce_version}",
                ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
                is_of_frames=True,
            )
    if batch_end(records, end) != end:
        _refuse_frames(
            "exactly one record batch per partition is expected, another one follows "
            f"batch_bytes={end} buffer_bytes={len(records)}"
        )


def _refuse_frames(message: str) -> NoReturn:
    raise BatchError(message, ErrorCode.INVALID_RECORD, is_of_frames=True)


def _check_offsets(header: BatchHeader) -> None:
    if header.count <= 0 or header.last_offset_delta + 1 != header.count:
        raise BatchError(
            f"offset range and record count disagree last_offset_delta={header.last_offset_delta} "
            f"count={header.count}",
            ErrorCode.INVALID_RECORD,
        )


def _check_producer(header: BatchHeader) -> None:
    if header.producer_id >= 0:
        if header.base_sequence < 0:  # of epochs below 0 the book of producers decides
            raise BatchError(
                f"a producer id needs a sequence producer_id={header.producer_id} "
                f"producer_epoch={header.producer_epoch} base_sequence={header.base_sequence}",
                ErrorCode.INVALID_RECORD,
            )
    elif header.attributes & TRANSACTIONAL_BIT:
        raise BatchError("a transactional record batch needs a producer id", ErrorCode.INVALID_RECORD)


def check_records_nowait(
    records: memoryview, header: BatchHeader, rules: BatchRules, now_ms: int
) -> int | None:
    """``check_records`` for a whole batch, if that takes no longer than about a millisecond; None if it does.

    None may also mean that something is wrong, and that it takes longer to say what.

    Raises:
        BatchError: as check_records; and as plain_records.
    """
    native = native_code.walk
    data: Buffer
    if header.attributes & CODEC_MASK == CODEC_NONE:
        data, start = records, HEADER_BYTES
    else:
        bytes_max = INLINE_PYTHON_BYTES_MAX if native is None else INLINE_INFLATED_BYTES_MAX
        if len(records) > bytes_max:
            return None  # it hardly ever inflates to less
        try:
            data, start = plain_records(records, header, bytes_max, from_client=True), 0
        except BatchError as error:
            if error.error_code == ErrorCode.MESSAGE_TOO_LARGE:
                return None
            raise
    size = len(data) - start
    is_short = size <= INLINE_PYTHON_BYTES_MAX
    if native is None or (not is_short and (size > INLINE_BYTES_MAX or header.count > INLINE_RECORDS_MAX)):
        return check_records(data, start, header, rules, now_ms) if is_short else None
    facts = native(data, start, header.count)
    if facts is not None:
        low, high, null_key = facts
        low, high = header.base_timestamp + low, header.base_timestamp + high
        if _are_fine(low, high, null_key, rules, now_ms):
            return header.max_timestamp if rules.is_log_append_time else max(high, _NO_TIMESTAMP)
    return check_records(data, start, header, rules, now_ms) if is_short else None


def check_records(data: Buffer, start: int, header: BatchHeader, rules: BatchRules, now_ms: int) -> int:
    """Look at each of the plain records that fill ``data`` from ``start`` on; return the max timestamp to store.

    That is the greatest of their timestamps, or -1; where the topic has LogAppendTime, what the header has.
    Checks that they are in order (see ``walk``), that keys are there if ``rules.keys_required``, and CreateTime
    against the topic's range; records without timestamp, -1, always pass. From any thread.

    Raises:
        BatchError: INVALID_RECORD, or INVALID_TIMESTAMP; ``record_errors`` (KIP-467) has keys and timestamps.
    """
    low, high, null_key = walk(data, start, header.count)
    low, high = header.base_timestamp + low, header.base_timestamp + high
    if not _are_fine(low, high, null_key, rules, now_ms):
        _raise_record_errors(bytes(data[start:] if start else data), header, rules, now_ms)
    return header.max_timestamp if rules.is_log_append_time else max(high, _NO_TIMESTAMP)


def _are_fine(low: int, high: int, null_key: bool, rules: BatchRules, now_ms: int) -> bool:
    """Whether no record can be at fault; if not, one may still be without timestamp, which is none."""
    if null_key and rules.keys_required:
        return False
    return rules.is_log_append_time or (
        now_ms - rules.before_max_ms <= low
        and high <= now_ms + rules.after_max_ms
        and low >= _INT64_MIN
        and high <= _INT64_MAX
    )


def _raise_record_errors(data: bytes, header: BatchHeader, rules: BatchRules, now_ms: int) -> None:
    """As Kafka: a missing key comes before the same record's timestamp, a timestamp decides on the batch's code."""
    oldest = max(now_ms - rules.before_max_ms, _INT64_MIN)
    newest = min(now_ms + rules.after_max_ms, _INT64_MAX)
    errors: list[tuple[int, str | None]] = []
    code = ErrorCode.INVALID_RECORD
    for index, (_, delta, null_key) in enumerate(skim(data, header.count)):
        timestamp = header.base_timestamp + delta
        if null_key and rules.keys_required:
            errors.append((index, "a compacted topic takes no record without key"))
        elif rules.is_log_append_time or timestamp == _NO_TIMESTAMP or oldest <= timestamp <= newest:
            continue
        else:
            code = ErrorCode.INVALID_TIMESTAMP
            text = (
                f"timestamp out of the topic's range timestamp_ms={timestamp} oldest={oldest} newest={newest}"
            )
            errors.append((index, text))
        if len(errors) == _RECORD_ERRORS_MAX:
            break
    if errors:
        what = "timestamps" if code == ErrorCode.INVALID_TIMESTAMP else "records without key"
        raise BatchError(
            f"the batch is refused for {what} first_index={errors[0][0]} first_error={errors[0][1]}",
            code,
            errors,
        )


def amend_batch(records: memoryview, header: BatchHeader, max_timestamp: int) -> BatchHeader:
    """Put right in place what the header says wrongly, and renew the checksum; return the header as it is then.

    That is the greatest timestamp, and attributes that clients may not set.

    Raises:
        InvalidRequestError: ``records`` isn't writable and something has to be put right.
    """
    amended = amended_header(header, max_timestamp)
    if amended is header:
        return header
    if records.readonly:
        raise InvalidRequestError("the produce buffer must be writable to put a batch's header right")
    amend_header(records, amended.attributes, amended.max_timestamp)
    return read_header(records)


def amended_header(header: BatchHeader, max_timestamp: int) -> BatchHeader:
    """The header with the right attributes and greatest timestamp; ``header`` itself if it has them."""
    attributes = header.attributes & ~BROKER_BITS
    if max_timestamp == header.max_timestamp and attributes == header.attributes:
        return header
    return msgspec.structs.replace(header, attributes=attributes, max_timestamp=max_timestamp)
