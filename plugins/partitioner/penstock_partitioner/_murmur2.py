"""MurmurHash2, 32 bits, with the seed of the Java client: Java and Penstock send equal keys to equal partitions."""

from __future__ import annotations

__all__ = ("murmur2",)

from struct import Struct

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF
#: Unpacks that many words, for keys of usual length: building the format would cost as much as hashing.
_WORDS_MAX = 16
_UNPACK = tuple(Struct(f"<{words}I").unpack_from for words in range(_WORDS_MAX + 1))


def murmur2(data: bytes) -> int:
    """The hash of ``data`` as a signed 32-bit number (``org.apache.kafka.common.utils.Utils.murmur2``)."""
    length = len(data)
    words = length >> 2
    multiplier, mask = _MULTIPLIER, _MASK
    state = _SEED ^ length
    for word in (_UNPACK[words] if words <= _WORDS_MAX else Struct(f"<{words}I").unpack_from)(data):
        word = word * multiplier & mask
        state = (state * multiplier ^ (word ^ word >> 24) * multiplier) & mask
    if length & 3:
        state = (state ^ int.from_bytes(data[length & ~3 :], "little")) * multiplier & mask
    state = (state ^ state >> 13) * multiplier & mask
    state ^= state >> 15
    return state - 0x1_0000_0000 if state & 0x8000_0000 else state
