"""Good record bytes with something done to them, and what holds for each: native code gives the reference's answer.

By hand, for as long as you like: ``python -m tests.unit.wire.walk_mutants FOLDER COUNT [SEED]``, where FOLDER has
the compiled modules (with sanitizers, say).
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.unit.wire.batches import NOW

from penstock.checksum import combine_in_python
from penstock.wire.native_code import Walk
from penstock.wire.record_batch import HEADER_BYTES, BatchError
from penstock.wire.record_columns import Columns, Filled, Measured, gather_records, measure_records
from penstock.wire.record_walk import scan
from penstock.wire.records import build_batch

#: Numbers at the edges of what one, two, five and ten bytes of a varint hold, and of what lengths mean.
EDGES = (0, 1, 2, 3, 12, 0x7E, 0x7F, 0x80, 0x81, 0x82, 0x8F, 0xFE, 0xFF)


def varint(value: int, size: int) -> bytes:
    """``value`` (as it is, no zigzag) in ``size`` bytes."""
    parts = [value >> 7 * at & 0x7F | 0x80 for at in range(size)]
    parts[-1] &= 0x7F
    return bytes(parts)


def good(random: Random) -> tuple[bytes, int]:
    """Record bytes in order, and how many records they are."""
    count = random.choice((1, 1, 2, 3, 8, 70, 200))
    size = random.choice((0, 1, 10, 63, 64, 100, 9000 // count))
    step = random.choice((0, 1, 40, 10**6, 2**40))
    records = []
    for _ in range(count):
        key = random.choice((None, b"", random.randbytes(min(size, 70))))
        value = random.choice((None, b"", random.randbytes(size)))
        headers = [
            ("h" * random.choice((0, 1, 64)), random.choice((None, b"", b"x" * 70)))
            for _ in range(random.choice((0, 0, 0, 1, 2, 70)) if count < 10 else 0)
        ]
        records.append((key, value, headers, NOW + random.randint(-step, step)))
    return bytes(build_batch(records)[HEADER_BYTES:]), count


def odd(random: Random) -> bytes:
    """One record whose length is right, of numbers in any number of bytes, maybe too many or with too many bits."""

    def number(value: int, bits: int) -> bytes:
        size = random.randint(1, bits // 7 + 1)
        if random.randrange(4) == 0:
            value, size = (
                value | 1 << random.randint(bits - 1, bits + 2),
                bits // 7 + random.choice((1, 1, 2)),
            )
        return varint(value, size)

    time, value = random.choice((0, 1, 2**13, 2**62)), random.choice((0, 1, 2))
    body = (
        b"\x00" + number(time, 64) + number(0, 32) + number(1, 32) + number(value, 32) + b"v" * (value >> 1)
    )
    body += number(0, 32)
    return varint(2 * len(body), 2) + body


def mutants(seed: int) -> Iterator[tuple[bytes, int]]:
    """Without end."""
    random = Random(seed)
    while True:
        whole, count = good(random)
        yield whole, count
        yield odd(random), 1
        for _ in range(20):
            data = bytearray(whole)
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                at = random.randrange(min(len(data), random.choice((8, 30, 10**9)))) if data else 0
                match random.randrange(8):
                    case 0 if data:
                        data[at] ^= 1 << random.randrange(8)
                    case 1 if data:
                        data[at] = random.choice(EDGES)
                    case 2:
                        data[at:at] = bytes([random.choice(EDGES)])
                    case 3:
                        del data[at : at + random.choice((1, 2, 9))]
                    case 4:
                        del data[len(data) - random.randint(0, min(12, len(data))) :]
                    case 5 if data:  # the same number in more bytes, or with bits that it has no room for
                        value, size = data[at], random.randint(1, 12)
                        match random.randrange(4):
                            case 0:
                                value = random.getrandbits(70)
                            case 1:
                                value, size = value | 1 << random.randint(31, 34), 5
                            case 2:
                                value, size = value | 1 << random.randint(63, 69), 10
                        data[at : at + 1] = varint(value, size)
                    case 6 if 0 in data:  # nothing becomes null, or negative
                        at = random.choice([at for at, byte in enumerate(data) if byte == 0])
                        data[at] = random.choice((1, 1, 3))
                    case _:
                        data += random.randbytes(random.randint(1, 9))
            counts = (count, count, count, count - 1, count + 1, 0, -1, 2**31 - 1, 2**31, 2**40)
            yield bytes(data), random.choice(counts)


def reference(data: bytes, count: int) -> tuple[int, int, bool] | None:
    """What native code has to say."""
    try:
        return scan(data, count) if count > 0 else None
    except BatchError:
        return None


def compare(native: Walk, data: bytes, count: int) -> bool:
    """Whether the records are in order, of which both must be sure. Memory is as long as it says, for sanitizers."""
    expected = reference(data, count)
    for start in (0, 3):
        found = native(memoryview(array("B", b"\x80" * start + data)), start, count)
        assert found == expected, f"{found} {expected} start={start} count={count} data={data.hex()}"
    return expected is not None


def compare_columns(native: Any, data: bytes, count: int, bytes_max: int, *, roomy: bool = True) -> bool:
    """Whether the records can be made columns, of which both must be sure, and that these are the same.

    Without ``roomy`` the columns are a little too small, so native code must refuse them.
    """
    expected: Measured | None = None
    with contextlib.suppress(BatchError):
        expected = measure_records(data, 0, count, -1, bytes_max)
    found = native.measure(memoryview(array("B", data)), 0, count, -1, bytes_max)
    assert found == expected, f"{found} {expected} count={count} bytes_max={bytes_max} data={data.hex()}"
    if expected is None or not expected.records:
        return False
    size = Filled(
        expected.records,
        expected.key_bytes,
        expected.value_bytes,
        expected.headers,
        expected.name_bytes,
        expected.header_value_bytes,
    )
    arguments = (0, expected.records, 2**40, 2**62 - 5, True)
    if not roomy:
        small = Columns.of(size._replace(records=expected.records - 1))
        assert native.gather(data, *arguments, small, Filled()) is None
        return True
    ours, theirs = Columns.of(size), Columns.of(size)
    filled: Filled | None = None
    with contextlib.suppress(BatchError):
        filled = gather_records(data, *arguments, ours, Filled())
    told = native.gather(memoryview(array("B", data)), *arguments, theirs, Filled())
    assert told == filled, f"{told} {filled} data={data.hex()}"
    if filled is not None:
        assert filled == size
        assert theirs == ours, f"data={data.hex()}"
    return True


def compare_buffers(random: Random, number: int) -> None:
    """Buffers copied to where they just fit, or don't; and checksums combined."""
    import _buffers  # type: ignore[import-not-found]

    for _ in range(number):
        parts = [random.randbytes(random.choice((0, 1, 24, 300))) for _ in range(random.randint(0, 9))]
        position = random.randint(0, 9)
        end = position + sum(map(len, parts))
        target = array("B", bytes(max(0, end - random.choice((0, 0, 1, 400)))))
        if len(target) < end:
            with contextlib.suppress(ValueError):
                _buffers.copy(target, position, parts)
                raise AssertionError(f"more was copied than fits: room={len(target)} end={end}")
            assert not any(target)
        else:
            assert _buffers.copy(target, position, parts) == end
            assert bytes(target[position:]) == b"".join(parts)
        numbers = (random.getrandbits(32), random.getrandbits(32), random.getrandbits(random.randint(1, 63)))
        assert _buffers.combine(*numbers) == combine_in_python(*numbers)


def main(folder: str, number: str, seed: str = "1") -> None:
    """Compare so many."""
    sys.path.insert(0, folder)
    import _walk  # type: ignore[import-not-found]

    in_order = 0
    for (data, count), _ in zip(mutants(int(seed)), range(int(number)), strict=False):
        in_order += compare(_walk.walk, data, count)
        if count > 0:
            for bytes_max in (0, 100, 2**62):
                compare_columns(_walk, data, count, bytes_max, roomy=bytes_max != 100)
    compare_buffers(Random(int(seed)), int(number) // 10)
    print(f"{number} walked alike, {in_order} of them in order")


if __name__ == "__main__":
    main(*sys.argv[1:])
