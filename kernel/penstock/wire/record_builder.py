"""Building record batches: for the kernel's own records (group coordinator, client, tools) and tests."""

from __future__ import annotations

__all__ = ("BatchBuilder", "build_batch", "build_marker")

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from penstock.errors import InvalidRequestError
from penstock.wire.compression import Buffer, compress
from penstock.wire.record_batch import CONTROL_BIT, HEADER_BYTES, TRANSACTIONAL_BIT, BatchHeader, seal_batch

_NO_TIMESTAMP: Final = -1
_NO_LIMIT: Final = 1 << 62
_MARKER_KEY: Final = Struct(">hh")  # version 0, type: 0 abort, 1 commit
_MARKER_VALUE: Final = Struct(">hi")  # version 0, coordinator epoch


def _varint_bytes(value: int) -> bytes:
    """``value`` as zigzag varint."""
    n = (value << 1) ^ (value >> 63)
    if n < 0x80:
        return _SMALL_VARINTS[n]
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


_SMALL_VARINTS: Final = tuple(bytes((n,)) for n in range(0x80))
_NULL: Final = b"\x01"  # length -1


class BatchBuilder:
    """Grows one batch record by record: append until it is full, build, clear, start again.

    Not safe for use by two tasks at once. ``bytes_max`` limits the uncompressed batch, header
    included; the first record always fits, as a record can't be split.
    """

    __slots__ = ("_base_timestamp", "_body", "_count", "_max_timestamp", "bytes_max", "codec", "level")

    def __init__(self, *, bytes_max: int = 1 << 20, codec: int = 0, level: int | None = None) -> None:
        self.bytes_max = bytes_max
        self.codec = codec
        self.level = level
        self._body = bytearray()
        self.clear()

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Of the batch so far, before compression."""
        return HEADER_BYTES + len(self._body)

    def clear(self) -> None:
        """Forget all records."""
        self._body.clear()
        self._count = 0
        self._base_timestamp = self._max_timestamp = _NO_TIMESTAMP

    def append(
        self,
        key: Buffer | None,
        value: Buffer | None,
        headers: Sequence[tuple[str, Buffer | None]] = (),
        timestamp_ms: int = _NO_TIMESTAMP,
    ) -> int | None:
        """Add one record; its offset delta, or None if it doesn't fit any more (nothing was added)."""
        count = self._count
        delta = timestamp_ms - self._base_timestamp if count else 0
        parts: list[Buffer] = [b"\x00", _varint_bytes(delta), _varint_bytes(count)]
        for field in (key, value):
            if field is None:
                parts.append(_NULL)
            else:
                parts += (_varint_bytes(len(field)), field)
        parts.append(_varint_bytes(len(headers)))
        for name, content in headers:
            raw = name.encode()
            parts += (_varint_bytes(len(raw)), raw)
            parts += (_NULL,) if content is None else (_varint_bytes(len(content)), content)
        record = b"".join(parts)
        length = _varint_bytes(len(record))
        if count and self.size_bytes + len(length) + len(record) > self.bytes_max:
            return None
        if not count:
            self._base_timestamp = self._max_timestamp = timestamp_ms
        elif timestamp_ms > self._max_timestamp:
            self._max_timestamp = timestamp_ms
        self._body += length
        self._body += record
        self._count = count + 1
        return count

    def build(
        self,
        *,
        base_offset: int = 0,
        producer_id: int = -1,
        producer_epoch: int = -1,
        base_sequence: int = -1,
        leader_epoch: int = -1,
        transactional: bool = False,
        control: bool = False,
    ) -> bytearray:
        """The batch of all records so far; the builder keeps them until ``clear``.

        Raises:
            InvalidRequestError: there is no record, or a field is out of range.
        """
        if not self._count:
            raise InvalidRequestError("a record batch needs at least one record")
        body: Buffer = self._body if self.codec == 0 else compress(self.codec, self._body, self.level)
        attributes = self.codec
        attributes |= TRANSACTIONAL_BIT if transactional else 0
        attributes |= CONTROL_BIT if control else 0
        return seal_batch(
            BatchHeader(
                base_offset=base_offset,
                length=0,
                leader_epoch=leader_epoch,
                magic=2,
                crc=0,
                attributes=attributes,
                last_offset_delta=self._count - 1,
                base_timestamp=self._base_timestamp,
                max_timestamp=self._max_timestamp,
                producer_id=producer_id,
                producer_epoch=producer_epoch,
                base_sequence=base_sequence,
                count=self._count,
            ),
            body,
        )


def build_batch(
    records: Iterable[tuple[Buffer | None, Buffer | None, Sequence[tuple[str, Buffer | None]], int]],
    *,
    base_offset: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    codec: int = 0,
    leader_epoch: int = -1,
    transactional: bool = False,
    control: bool = False,
) -> bytearray:
    """One batch of ``records``, each (key, value, headers, timestamp_ms), whatever their size.

    Raises:
        InvalidRequestError: there is no record.
    """
    builder = BatchBuilder(bytes_max=_NO_LIMIT, codec=codec)
    for key, value, headers, timestamp_ms in records:
        builder.append(key, value, headers, timestamp_ms)
    return builder.build(
        base_offset=base_offset,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
        leader_epoch=leader_epoch,
        transactional=transactional,
        control=control,
    )


def build_marker(
    *,
    producer_id: int,
    producer_epoch: int,
    commit: bool,
    coordinator_epoch: int,
    timestamp_ms: int,
    base_offset: int = 0,
    leader_epoch: int = -1,
) -> bytearray:
    """The control batch that ends a transaction in one partition (KIP-98)."""
    record = (_MARKER_KEY.pack(0, commit), _MARKER_VALUE.pack(0, coordinator_epoch), (), timestamp_ms)
    return build_batch(
        [record],
        base_offset=base_offset,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        leader_epoch=leader_epoch,
        transactional=True,
        control=True,
    )
