"""CRC-32C (RFC 3720, appendix B.4), which every durable byte here is covered by."""

from __future__ import annotations

__all__ = ("checksum",)

from crc32c import crc32c

#: Up to this size the interpreter isn't let go of. At 20 GB/s, 1 MiB takes 50 us; a thread that has let go waits
#: longer than that to get it back from a busy event loop, once for each buffer of a group commit.
_HOLD_BYTES_MAX = 2**20


def checksum(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The CRC-32C of ``data``, going on from ``value``, the CRC-32C of what comes before it."""
    return crc32c(data, value, 0 if len(data) <= _HOLD_BYTES_MAX else -1)
