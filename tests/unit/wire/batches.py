"""Record batches to send: good ones, and ones with anything in their header or body."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
from crc32c import crc32c

from penstock.wire import compression
from penstock.wire.records import (
    ATTRIBUTES_POS,
    BATCH_HEADER,
    CRC_POS,
    HEADER_BYTES,
    LEADER_EPOCH_POS,
    build_batch,
    read_header,
)

NOW = 1_700_000_000_000

#: The smallest record: key null, value null, no headers.
GOOD = b"\x0c\x00\x00\x00\x01\x01\x00"


def sample(count: int = 3, **fields: Any) -> bytearray:
    return build_batch([(b"key", b"value %d" % i, (), NOW + i) for i in range(count)], **fields)


def with_header(batch: bytearray, **fields: int) -> bytearray:
    """The batch with other header fields and a valid checksum."""
    header = msgspec.structs.replace(read_header(batch), **fields)
    changed = bytearray(batch)
    BATCH_HEADER.pack_into(changed, 0, *msgspec.structs.astuple(header))
    struct.pack_into(">I", changed, CRC_POS, crc32c(memoryview(changed)[ATTRIBUTES_POS:]))
    return changed


def with_body(body: bytes | bytearray, count: int, codec: int = 0, **fields: int) -> bytearray:
    """A batch of hand-made record bytes with a valid checksum."""
    packed = compression.compress(codec, body) if codec else body
    batch = sample(1)[:HEADER_BYTES] + packed
    fields = {
        "count": count,
        "last_offset_delta": count - 1,
        "attributes": codec,
        "base_timestamp": NOW,
    } | fields
    return with_header(batch, length=len(batch) - LEADER_EPOCH_POS, **fields)
