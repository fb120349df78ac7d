"""The bytes of groups: literal layout, round trips, and that no damaged byte passes."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import NewerVersionError
from penstock.spi.wal import WalAppend
from penstock.wal import (
    ENTRY_HEADER_BYTES,
    GROUP_HEADER_BYTES,
    Cursor,
    DamageError,
    decode_group,
    encode_group,
    parse_group_header,
)


def group_bytes(
    payloads: list[bytes], cursor: Cursor, *, log_id: int = 9, confirmed: int = 0
) -> tuple[bytes, int]:
    position = cursor.position + GROUP_HEADER_BYTES
    appends = []
    for payload in payloads:
        end = position + ENTRY_HEADER_BYTES + len(payload)
        appends.append(WalAppend(position, end))
        position = end
    parts, digest = encode_group(
        log_id=log_id,
        cursor=cursor,
        epoch=3,
        confirmed_position=confirmed,
        appends=appends,
        payloads=[[memoryview(payload)[:1], payload[1:]] for payload in payloads],
    )
    return b"".join(parts), digest


def test_the_layout_is_fixed() -> None:
    data, digest = group_bytes([b"hello"], Cursor(4096, 2, 0xAABBCCDD), confirmed=4000)
    entry_head = b"PSWE" + bytes.fromhex("00000005 0000000000001048") + crc32c(b"hello").to_bytes(4, "big")
    entry_crc = crc32c(entry_head, 0xAABBCCDD).to_bytes(4, "big")
    head = (
        b"PSWG"
        + bytes.fromhex("0001 0000 0000000000000009 0000000000000002 0000000000001000 0000000000000003")
        + bytes.fromhex("0000000000000fa0 00000065 00000001 aabbccdd")
        + entry_crc
        + bytes(4)
    )
    assert data == head + crc32c(head).to_bytes(4, "big") + entry_head + entry_crc + b"hello"
    assert digest == crc32c(head)


def test_gaps_between_entries_are_filled_checked_and_skipped() -> None:
    cursor = Cursor(4096, 2, 77)
    first = cursor.position + GROUP_HEADER_BYTES + ENTRY_HEADER_BYTES
    appends = [
        WalAppend(first, first + ENTRY_HEADER_BYTES + 3),
        WalAppend(first + 2 * ENTRY_HEADER_BYTES + 3 + 100, first + 3 * ENTRY_HEADER_BYTES + 3 + 100 + 4),
    ]
    parts, _ = encode_group(
        log_id=9,
        cursor=cursor,
        epoch=3,
        confirmed_position=0,
        appends=appends,
        payloads=[[b"abc"], [b"defg"]],
    )
    data = b"".join(parts)
    group = decode_group(memoryview(data), cursor, log_id=9)
    assert [(e.position, e.next_position, bytes(e.data)) for e in group.entries] == [
        (appends[0].position, appends[0].next_position, b"abc"),
        (appends[1].position, appends[1].next_position, b"defg"),
    ]
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(DamageError):
            decode_group(memoryview(damaged), cursor, log_id=9)


@pytest.mark.parametrize("offset", [-1, 1, ENTRY_HEADER_BYTES - 1])
def test_entries_that_overlap_or_leave_too_small_a_gap_are_a_bug(offset: int) -> None:
    start = GROUP_HEADER_BYTES + offset
    append = WalAppend(start, start + ENTRY_HEADER_BYTES + 5)
    with pytest.raises(AssertionError, match="room for a filler"):
        encode_group(
            log_id=1, cursor=Cursor(), epoch=1, confirmed_position=0, appends=[append], payloads=[[b"hello"]]
        )


def test_a_checksum_that_is_known_gives_the_same_bytes() -> None:
    position = GROUP_HEADER_BYTES
    appends = [
        WalAppend(position, position + ENTRY_HEADER_BYTES + 5),
        WalAppend(position + ENTRY_HEADER_BYTES + 5, position + 2 * ENTRY_HEADER_BYTES + 9),
    ]

    def group(checksums: list[int | None] | None) -> bytes:
        parts, _ = encode_group(
            log_id=1,
            cursor=Cursor(),
            epoch=1,
            confirmed_position=0,
            appends=appends,
            payloads=[[b"he", b"llo"], [b"four"]],
            checksums=checksums,
        )
        return b"".join(parts)

    assert group([crc32c(b"hello"), None]) == group(None)


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=10),
    cursor=st.builds(Cursor, st.integers(0, 2**60), st.integers(0, 2**60), st.integers(0, 2**32 - 1)),
    trailing=st.binary(max_size=100),
)
def test_a_group_decodes_to_its_entries_whatever_follows(
    payloads: list[bytes], cursor: Cursor, trailing: bytes
) -> None:
    data, digest = group_bytes(payloads, cursor)
    group = decode_group(memoryview(data + trailing), cursor, log_id=9)
    assert [bytes(entry.data) for entry in group.entries] == payloads
    assert group.entries[0].position == cursor.position + GROUP_HEADER_BYTES
    for before, after in zip(group.entries, group.entries[1:], strict=False):
        assert before.next_position == after.position
    assert group.header.length == len(data)
    assert group.header.digest == digest


@given(place=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_no_flipped_byte_passes(place: int, mask: int) -> None:
    cursor = Cursor(8192, 5, 77)
    data = bytearray(group_bytes([b"first", b"second entry"], cursor)[0])
    data[place % len(data)] ^= mask
    with pytest.raises(DamageError):
        decode_group(memoryview(data), cursor, log_id=9)


def test_no_truncated_group_passes() -> None:
    cursor = Cursor()
    data = group_bytes([b"first", b"second entry"], cursor)[0]
    for size in range(len(data)):
        with pytest.raises(DamageError):
            decode_group(memoryview(data)[:size], cursor, log_id=9)


@pytest.mark.parametrize(
    ("cursor", "log_id", "reason"),
    [
        (Cursor(4096, 5, 77), 9, "another place"),
        (Cursor(8192, 6, 77), 9, "doesn't continue"),
        (Cursor(8192, 5, 78), 9, "doesn't continue"),
        (Cursor(8192, 5, 77), 8, "another log"),
    ],
)
def test_a_group_of_elsewhere_is_refused(cursor: Cursor, log_id: int, reason: str) -> None:
    data = group_bytes([b"entry"], Cursor(8192, 5, 77))[0]
    with pytest.raises(DamageError, match=f"{reason}.*position={cursor.position}"):
        decode_group(memoryview(data), cursor, log_id=log_id)


def test_the_body_of_another_group_at_the_same_place_is_refused() -> None:
    """A torn write: the new header is there, with the body that an earlier owner wrote, same sizes."""
    cursor = Cursor(0, 0, 0)
    old, new = group_bytes([b"old!"], cursor)[0], group_bytes([b"new!"], cursor)[0]
    with pytest.raises(DamageError, match="don't add up"):
        decode_group(memoryview(new[:GROUP_HEADER_BYTES] + old[GROUP_HEADER_BYTES:]), cursor, log_id=9)


def test_an_unknown_version_is_no_header() -> None:
    data = bytearray(group_bytes([b"entry"], Cursor())[0])
    data[5] = 2
    data[GROUP_HEADER_BYTES - 4 : GROUP_HEADER_BYTES] = crc32c(
        bytes(data[: GROUP_HEADER_BYTES - 4])
    ).to_bytes(4, "big")
    assert parse_group_header(data) is None


def test_a_group_of_a_newer_version_is_named_and_never_the_end_of_the_log() -> None:
    data = newer(group_bytes([b"entry"], Cursor(8192, 5, 77))[0])
    with pytest.raises(
        NewerVersionError, match=r"newer penstock, upgrade this one: position=8192 version=2 known=1"
    ):
        decode_group(memoryview(data), Cursor(8192, 5, 77), log_id=9)
    for cursor, log_id in ((Cursor(4096, 5, 77), 9), (Cursor(8192, 5, 77), 8)):
        with pytest.raises(DamageError):  # of an earlier lap, or of another log: no part of this one
            decode_group(memoryview(data), cursor, log_id=log_id)


def newer(data: bytes) -> bytes:
    """The group as version 2, its checksum right."""
    head = data[:4] + b"\0\2" + data[6 : GROUP_HEADER_BYTES - 4]
    return head + crc32c(head).to_bytes(4, "big") + data[GROUP_HEADER_BYTES:]
