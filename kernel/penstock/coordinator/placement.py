"""The partition of the internal topic that a coordinator's key lives in, chosen as in Kafka."""

from __future__ import annotations

__all__ = ("hash_steps", "partition_for")

import sys
from typing import Final

_HASH_MASK: Final = 0xFFFF_FFFF
_INT32_MIN: Final = 0x8000_0000
#: In the host's byte order, without a mark.
_UTF_16: Final = f"utf-16-{sys.byteorder[:1]}e"
#: Hashing so many takes a microsecond.
_CHARACTERS: Final = 16


def partition_for(key: str, partition_count: int) -> int:
    """The partition of a group id or transactional id: `abs(key.hashCode()) % partitions`.

    Java hashes UTF-16 code units with 32-bit overflow, and Kafka's abs maps the one number without a positive
    counterpart to 0.
    """
    digest = 0
    for unit in memoryview(key.encode(_UTF_16, "surrogatepass")).cast("H"):
        digest = (31 * digest + unit) & _HASH_MASK
    if digest == _INT32_MIN:
        return 0
    return (digest if digest < _INT32_MIN else _HASH_MASK + 1 - digest) % partition_count


def hash_steps(key: str) -> int:
    """As how many elements of a request finding the partition of ``key`` counts."""
    return len(key) // _CHARACTERS
