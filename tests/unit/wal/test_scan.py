"""The recovery scan tells the end of a log from a loss."""

from __future__ import annotations

import random

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import CorruptError, NewerVersionError
from penstock.spi.wal import WalAppend
from penstock.wal import ENTRY_HEADER_BYTES, GROUP_HEADER_BYTES, Cursor, LogScan, encode_group

ALIGNMENT = 512
START = Cursor()


class Medium:
    """A flat medium and a writer of groups with one entry each."""

    def __init__(self) -> None:
        self.data = bytearray(64 * ALIGNMENT)
        self.cursor = Cursor()

    def write(self, payload: bytes, *, confirmed: int | None = None) -> int:
        position = self.cursor.position
        start = position + GROUP_HEADER_BYTES
        parts, digest = encode_group(
            log_id=1,
            cursor=self.cursor,
            epoch=1,
            confirmed_position=position if confirmed is None else confirmed,
            appends=[WalAppend(start, start + ENTRY_HEADER_BYTES + len(payload))],
            payloads=[[payload]],
        )
        group = b"".join(parts)
        self.data[position : position + len(group)] = group
        end = -(-(position + len(group)) // ALIGNMENT) * ALIGNMENT
        self.cursor = Cursor(end, self.cursor.sequence + 1, digest)
        return position

    def scan(self, *, start: Cursor = START, confirmed: int = 0, lookahead: int = 8 * ALIGNMENT) -> LogScan:
        return LogScan(
            lambda position, size: memoryview(self.data)[position : position + size],
            start,
            log_id=1,
            alignment=ALIGNMENT,
            end_limit=len(self.data),
            confirmed_position=confirmed,
            lookahead_bytes=lookahead,
        )


def payloads(scan: LogScan) -> list[bytes]:
    return [bytes(entry.data) for group in scan for entry in group.entries]


def test_an_unwritten_tail_ends_the_log() -> None:
    medium = Medium()
    medium.write(b"one")
    medium.write(b"two" * 300)
    scan = medium.scan()
    assert payloads(scan) == [b"one", b"two" * 300]
    assert scan.cursor == medium.cursor
    assert "no valid group header" in scan.end_reason


def test_a_full_medium_ends_the_log() -> None:
    medium = Medium()
    for _ in range(64):
        medium.write(b"x")
    assert len(payloads(medium.scan())) == 64


def test_a_torn_last_group_ends_the_log() -> None:
    medium = Medium()
    medium.write(b"one")
    torn = medium.write(b"two")
    medium.data[torn + 97] ^= 1
    scan = medium.scan()
    assert payloads(scan) == [b"one"]
    assert scan.cursor.position == torn


def test_a_later_group_that_confirms_the_damaged_one_makes_it_a_loss() -> None:
    medium = Medium()
    medium.write(b"one")
    lost = medium.write(b"two")
    medium.write(b"three")
    medium.data[lost + 97] ^= 1
    with pytest.raises(CorruptError, match=f"position={lost + GROUP_HEADER_BYTES} "):
        payloads(medium.scan())


def test_a_later_group_that_confirms_nothing_past_the_end_is_only_the_past() -> None:
    medium = Medium()
    medium.write(b"one")
    confirmed = medium.cursor.position
    hole = medium.write(b"two", confirmed=confirmed)
    medium.write(b"three", confirmed=confirmed)
    medium.data[hole : hole + ALIGNMENT] = bytes(ALIGNMENT)
    assert payloads(medium.scan()) == [b"one"]


@settings(deadline=None)
@given(
    groups=st.integers(1, 14),
    window=st.integers(1, 6),
    rng=st.randoms(use_true_random=False),
)
def test_a_hole_is_the_end_unless_a_later_group_says_that_it_was_confirmed(
    groups: int, window: int, rng: random.Random
) -> None:
    """Groups are written in any order within a window; each says what was durable when it began."""
    medium = Medium()
    positions: list[int] = []
    confirmed: list[int] = []
    ended = 0  # all before this one were durable at some time
    for number in range(groups):
        ended = max(ended, number + 1 - window, rng.randint(ended, number))
        confirmed.append(positions[ended] if ended < number else medium.cursor.position)
        positions.append(medium.write(b"%d" % number * rng.choice([1, 600]), confirmed=confirmed[-1]))
    lost = sorted(rng.sample(range(groups), rng.randint(0, min(3, groups))))
    for number in lost:
        medium.data[positions[number] + rng.choice([0, 20, 72, 80, 96])] ^= 1
    end = lost[0] if lost else groups
    intact = [number for number in range(groups) if number not in lost]
    # of a torn group the header may be whole, and says what it says
    scan = medium.scan(lookahead=64 * ALIGNMENT)
    if any(confirmed[number] > positions[end] for number in intact if number > end):
        with pytest.raises(CorruptError, match="lost acknowledged entries"):
            payloads(scan)
        return
    try:
        found = payloads(scan)
    except CorruptError:
        assert any(confirmed[number] > positions[end] for number in lost)
        return
    assert [int(payload[: len(str(number))]) for number, payload in enumerate(found)] == list(range(end))


def test_a_known_confirmed_position_makes_a_missing_tail_a_loss() -> None:
    medium = Medium()
    medium.write(b"one")
    end = medium.cursor.position
    assert payloads(medium.scan(confirmed=end)) == [b"one"]
    with pytest.raises(CorruptError, match=f"position={end} confirmed_position={end + 1}"):
        payloads(medium.scan(confirmed=end + 1))


def test_a_group_further_than_the_lookahead_is_not_seen() -> None:
    medium = Medium()
    lost = medium.write(b"one")
    medium.write(b"two" * 1000)
    medium.write(b"three")
    medium.data[lost : lost + 20] = bytes(20)
    assert payloads(medium.scan(lookahead=ALIGNMENT)) == []
    with pytest.raises(CorruptError):
        payloads(medium.scan(lookahead=16 * ALIGNMENT))


def test_a_scan_starts_at_any_group() -> None:
    medium = Medium()
    medium.write(b"one")
    start = medium.cursor
    medium.write(b"two")
    assert payloads(medium.scan(start=start)) == [b"two"]


@pytest.mark.parametrize("place", [1, 2], ids=["where the log would end", "within the lookahead"])
def test_a_group_of_a_newer_version_stops_the_scan_and_is_named(place: int) -> None:
    medium = Medium()
    positions = [medium.write(payload) for payload in (b"one", b"two", b"three")]
    position = positions[place]
    head = bytearray(medium.data[position : position + GROUP_HEADER_BYTES - 4])
    head[5] = 2
    medium.data[position : position + len(head) + 4] = head + crc32c(bytes(head)).to_bytes(4, "big")
    if place == 2:
        medium.data[positions[1]] ^= 1
    with pytest.raises(NewerVersionError, match=f"position={position} version=2 known=1"):
        payloads(medium.scan())
