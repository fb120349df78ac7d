"""Bytes and keys against literals; the checksums in them were computed bit by bit (RFC 3720, B.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_metadata_object._format import (
    ENTRY_MAGIC,
    HEADER_BYTES,
    SNAPSHOT_MAGIC,
    SnapshotKey,
    decode,
    encode_header,
    entry_index,
    entry_key,
    parse_snapshot_key,
)

from penstock.errors import CorruptError, NewerVersionError

NONCE = bytes(range(16))
ENTRY = bytes.fromhex(
    "50534d4c"  # PSML
    "0001 0000"  # version, flags
    "000000000000002a"  # index
    "00000005"  # payload length
    "000102030405060708090a0b0c0d0e0f"  # nonce
    "eaaf8823"  # CRC-32C of all but itself
    "68656c6c6f"  # hello
)
EMPTY_SNAPSHOT = bytes.fromhex("50534d53 0001 0000 0000000000000007 00000000" + "00" * 16 + "4cb0150e")


def test_an_entry_has_these_bytes() -> None:
    assert encode_header(ENTRY_MAGIC, 42, b"hello", NONCE) + b"hello" == ENTRY
    assert decode(ENTRY_MAGIC, 42, "k", ENTRY) == b"hello"
    assert HEADER_BYTES == 40


def test_a_snapshot_has_these_bytes() -> None:
    assert encode_header(SNAPSHOT_MAGIC, 7, b"", bytes(16)) == EMPTY_SNAPSHOT
    assert decode(SNAPSHOT_MAGIC, 7, "k", memoryview(EMPTY_SNAPSHOT)) == b""


def test_an_entry_is_no_snapshot() -> None:
    with pytest.raises(CorruptError, match="not of this format"):
        decode(SNAPSHOT_MAGIC, 42, "k", ENTRY)


def test_a_newer_version_asks_for_an_upgrade() -> None:
    newer = ENTRY[:4] + b"\x00\x02" + ENTRY[6:]
    with pytest.raises(NewerVersionError, match=r"newer penstock.* upgrade .*version=2 known=1"):
        decode(ENTRY_MAGIC, 42, "k", newer)


@pytest.mark.parametrize("size", range(len(ENTRY)))
def test_every_truncation_is_found(size: int) -> None:
    with pytest.raises(CorruptError, match=r"^metadata object (is|fails) .*key='the/key' index=42") as caught:
        decode(ENTRY_MAGIC, 42, "the/key", ENTRY[:size])
    assert "is fails" not in str(caught.value)


def test_trailing_bytes_are_found() -> None:
    with pytest.raises(CorruptError):
        decode(ENTRY_MAGIC, 42, "k", ENTRY + b"\x00")


@given(st.integers(1, 2**63), st.binary(max_size=200), st.binary(min_size=16, max_size=16))
def test_what_is_encoded_is_decoded(index: int, data: bytes, nonce: bytes) -> None:
    assert decode(ENTRY_MAGIC, index, "k", encode_header(ENTRY_MAGIC, index, data, nonce) + data) == data


def test_keys_have_these_names() -> None:
    assert entry_key("metadata/", 42) == "metadata/log/00000000000000000042"
    assert entry_index("metadata/", "metadata/log/00000000000000000042") == 42
    snapshot = SnapshotKey(42, 17, "ab" * 16)
    name = "metadata/snapshot/00000000000000000042.00000000000000000017." + "ab" * 16
    assert snapshot.key("metadata/") == name
    assert parse_snapshot_key("metadata/", name) == snapshot


@pytest.mark.parametrize("name", ["42", "0000000000000000004x", "00000000000000000042.tmp", ""])
def test_other_names_are_reported(name: str) -> None:
    with pytest.raises(CorruptError, match="key="):
        entry_index("metadata/", f"metadata/log/{name}")
    with pytest.raises(CorruptError, match="key="):
        parse_snapshot_key("metadata/", f"metadata/snapshot/{name}")
