"""CRC-32C (RFC 3720, appendix B.4), which every durable byte here is covered by."""

from __future__ import annotations

__all__ = (
    "COMBINE_BYTES_MIN",
    "HOLD_BYTES_MAX",
    "checksum",
    "combine",
    "combine_in_python",
    "held_checksum",
    "yielding_checksum",
)

import threading
from typing import Final

from crc32c import crc32c

from penstock import native

#: Up to this size the interpreter isn't let go of. At 20 GB/s, 1 MiB takes 50 us; a thread that has let go waits
#: longer than that to get it back from a busy event loop, once for each buffer of a group commit.
HOLD_BYTES_MAX: Final = 2**20
#: From this size on, combining two checksums takes less time than going over the bytes again, which come from memory.
COMBINE_BYTES_MIN: Final = 64 * 1024 if native.combine is None else 4096
#: The polynomial, bits reversed, without its highest term.
_POLYNOMIAL: Final = 0x82F63B78


def checksum(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The CRC-32C of ``data``, going on from ``value``, the CRC-32C of what comes before it."""
    return crc32c(data, value, 0 if len(data) <= HOLD_BYTES_MAX else -1)


def yielding_checksum(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """``checksum`` for a thread that can wait for the interpreter: it is let go of from some 32 KiB on."""
    return crc32c(data, value, -1)


#: ``held_checksum(data, value, 0)`` is ``checksum`` of up to ``HOLD_BYTES_MAX`` bytes, without a call of Python.
held_checksum = crc32c


def combine_in_python(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32C of two runs of bytes, one behind the other, from the CRC-32C of each; 3 to 15 us.

    To append n zero bytes to a message multiplies its remainder by x^8n. Each power of two has a table for that.
    From any thread.
    """
    if second_bytes >> len(_shifts):
        _add_shifts(second_bytes.bit_length())
    for shift in _shifts:
        if second_bytes & 1:
            first = _apply(shift, first)
        second_bytes >>= 1
        if not second_bytes:
            break
    return first ^ second


#: The same, in C where that was built: 0.2 us. The reference has 4 KiB of tables for each power of two, which
#: payloads push out of the processor's cache.
combine: Final[native.Combine] = native.combine or combine_in_python


_Shift = tuple[list[int], list[int], list[int], list[int]]

#: ``_shifts[k]`` multiplies by x^(8 * 2^k): the product of a remainder is the sum of those of its four bytes.
_shifts: list[_Shift] = []
#: The event loop and threads that build objects may want a further table at once. Each must get in once: all
#: checksums would be wrong from then on.
_adding = threading.Lock()


def _add_shifts(count: int) -> None:
    with _adding:
        while len(_shifts) < count:
            _add_shift()


def _add_shift() -> None:
    if not _shifts:
        columns = [_times_x8(1 << bit) for bit in range(32)]
    else:
        columns = [_apply(_shifts[-1], _apply(_shifts[-1], 1 << bit)) for bit in range(32)]
    tables = []
    for byte in range(4):
        table = [0]
        for column in columns[8 * byte : 8 * byte + 8]:
            table += [entry ^ column for entry in table]
        tables.append(table)
    _shifts.append((tables[0], tables[1], tables[2], tables[3]))


def _times_x8(remainder: int) -> int:
    for _ in range(8):
        remainder = remainder >> 1 ^ (_POLYNOMIAL if remainder & 1 else 0)
    return remainder


def _apply(shift: _Shift, remainder: int) -> int:
    t0, t1, t2, t3 = shift
    return t0[remainder & 255] ^ t1[remainder >> 8 & 255] ^ t2[remainder >> 16 & 255] ^ t3[remainder >> 24]
